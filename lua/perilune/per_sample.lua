-- perilune.per_sample: the gradient of each sample's loss, as for clipping by sample (DP-SGD).
-- linear and embedding are vectorised over the batch: their weights' gradients are formed sample by
-- sample from one backward pass. Parameters used in any other way go through a loop over samples.
local peri = require "perilune.core"
local options = require "perilune.options"

local activations = {
  relu = function(x) return x:relu() end,
  tanh = function(x) return x:tanh() end,
  sigmoid = function(x) return x:sigmoid() end,
  silu = function(x) return x:silu() end,
  gelu = function(x) return x:gelu() end,
  gelu_tanh = function(x) return x:gelu("tanh") end,
}

local function add_to(sums, param, grad)
  sums[param] = sums[param] and sums[param] + grad or grad
end

-- Rows of x by sample: (B, T, last), whether x is (B, ..., last) or (B * T, last).
local function by_sample(x, n)
  return x:reshape { n, x:numel() // (n * x:size(-1)), x:size(-1) }
end

-- linear(x, weight, bias) whose weight and bias gradients go, by sample, into sums.
local function linear_of(sums, wanted, n)
  return peri.custom(function(ctx, x, weight, bias)
    ctx.x, ctx.weight, ctx.bias = x, weight, bias
    return peri.linear(x, weight, bias)
  end, function(ctx, g) -- (..., out)
    local rows = by_sample(g, n) -- (B, T, out)
    if wanted[ctx.weight] then
      add_to(sums, ctx.weight, rows:transpose(2, 3):matmul(by_sample(ctx.x, n))) -- (B, out, in)
    end
    if ctx.bias and wanted[ctx.bias] then add_to(sums, ctx.bias, rows:sum(2)) end -- (B, out)
    return g:matmul(ctx.weight)
  end)
end

local function embedding_of(sums, n, padding)
  return peri.custom(function(ctx, weight, ids)
    ctx.weight, ctx.ids = weight, ids
    return peri.embedding(weight, ids, padding)
  end, function(ctx, g)
    local v, d = ctx.weight:size(1), ctx.weight:size(2)
    local ids = ctx.ids:to("i64"):reshape { n, -1 } -- (B, T)
    local rows = g:reshape { -1, d }
    if padding then rows = rows * ids:reshape { -1, 1 }:ne(padding):to(g.dtype) end
    local at = (ids + (peri.arange(n) * v):to("i64"):reshape { n, 1 }):reshape { -1 }
    local sum = peri.zeros({ n * v, d }, g.dtype):index_add(at, rows, 1)
    add_to(sums, ctx.weight, sum:reshape { n, v, d })
  end)
end

-- Arguments by position from a call that may name some in a last table.
local function positional(op, names, ...)
  local n, args = select("#", ...), { ... }
  local last = args[n]
  if type(last) == "table" then
    args[n] = nil
    local left = {}
    for name, value in pairs(last) do left[name] = value end
    for i, name in ipairs(names) do
      if last[name] ~= nil then args[i], left[name] = last[name], nil end
    end
    local name = next(left)
    if name ~= nil then error(("%s: %s"):format(op, options.unknown("argument", name, names)), 0) end
  end
  return args
end

-- What linear and embedding do instead while the loss is computed.
local function interceptor(sums, wanted, n)
  local function linear(...)
    local a = positional("linear", { "x", "weight", "bias", "act" }, ...)
    local x, weight, bias, act = a[1], a[2], a[3], a[4]
    local ours = wanted[weight] or (bias and wanted[bias])
    if not ours or (x:numel() // x:size(-1)) % n ~= 0 then return peri.linear(x, weight, bias, act) end
    local y = linear_of(sums, wanted, n)(x, weight, bias)
    if act and act ~= "none" then y = activations[act](y) end
    return y
  end
  local function embedding(...)
    local a = positional("embedding", { "weight", "ids", "padding_idx" }, ...)
    if not wanted[a[1]] or a[2]:numel() % n ~= 0 then return peri.embedding(a[1], a[2], a[3]) end
    return embedding_of(sums, n, a[3])(a[1], a[2])
  end
  local function run(name, ...)
    peri._intercept(nil) -- the functions above call the ops themselves
    local results = table.pack(pcall(name == "linear" and linear or embedding, ...))
    peri._intercept(run)
    if not results[1] then error(results[2], 0) end
    return table.unpack(results, 2, results.n)
  end
  return run
end

local function intercepted(run, fn, ...)
  peri._intercept(run)
  local results = table.pack(pcall(fn, ...))
  peri._intercept(nil)
  if not results[1] then error(results[2], 0) end
  return table.unpack(results, 2, results.n)
end

-- Gradients of the listed params for one sample after the other: a (B, ...) tensor each.
local function loop(loss_fn, params, n, ...)
  local batch, found = table.pack(...), {}
  for k = 1, #params do found[k] = {} end
  for i = 1, n do
    local one = {}
    for j = 1, batch.n do
      one[j] = peri.is_tensor(batch[j]) and batch[j]:narrow(1, i, 1) or batch[j]
    end
    local grads = peri.grad(loss_fn(table.unpack(one, 1, batch.n)):sum(), params)
    for k, param in ipairs(params) do found[k][i] = grads[k] or peri.zeros_like(param) end
  end
  for k = 1, #params do found[k] = peri.stack(found[k], 1) end
  return found
end

--- The gradient of each sample's loss for each parameter: a list of tensors (B, shape of the parameter).
--- @param loss_fn fun(...): perilune.Tensor  of the batch; one loss for each sample (B), without mixing samples
--- @param params any  a list of tensors, a module, a model or an adapter
--- @param ... perilune.Tensor  the batch: tensors have the samples in dim 1
--- @return perilune.Tensor[]
return function(loss_fn, params, ...)
  local problem = options.problem("loss_fn", loss_fn, options.value(options.required, "callable"))
  if problem then error("per_sample_grad: " .. problem, 2) end
  params = require("perilune.optim.params").list("per_sample_grad", params)
  local n, wanted, sums = nil, {}, {}
  for i = 1, select("#", ...) do
    local t = select(i, ...)
    if not n and peri.is_tensor(t) then n = #t end
  end
  if not n then error("per_sample_grad: no tensor in the batch", 2) end
  for _, param in ipairs(params) do wanted[param] = true end
  local losses = intercepted(interceptor(sums, wanted, n), loss_fn, ...)
  if not peri.is_tensor(losses) then
    error(("per_sample_grad: the function gave a %s, expected a tensor of %d losses"):format(type(losses), n), 2)
  end
  if losses:numel() ~= n then
    error(("per_sample_grad: the function gave %d losses for %d samples"):format(losses:numel(), n), 2)
  end
  local others, rest, out = peri.grad(losses:sum(), params), {}, {}
  for k, param in ipairs(params) do
    if others[k] then rest[#rest + 1] = param end
  end
  local looped = #rest > 0 and loop(loss_fn, rest, n, ...) or {}
  for k, param in ipairs(rest) do sums[param] = looped[k] end
  for k, param in ipairs(params) do
    local shape = param.shape
    table.insert(shape, 1, n)
    out[k] = sums[param] or peri.zeros(shape, param.dtype)
  end
  return out
end
