-- perilune.per_sample: the gradient of each sample's loss, as for clipping by sample (DP-SGD).
-- linear and embedding are vectorised over the batch: their weights' gradients are formed sample by
-- sample from one backward pass, where row blocks of their results belong to one sample each. That is
-- tested, not assumed: a second pass over losses of other scales must give each block its sample's
-- scale. Parameters used in any other way go through a loop over samples.
local peri = require "perilune.core"
local options = require "perilune.options"

local function add_to(sums, param, grad)
  sums[param] = sums[param] and sums[param] + grad or grad
end

-- Rows of x by sample: (B, T, last), whether x is (B, ..., last) or (B * T, last).
local function by_sample(x, n)
  return x:reshape { n, x:numel() // (n * x:size(-1)), x:size(-1) }
end

-- The state of one call: n samples, wanted[param], sums[param] as found, and in the second pass
-- scale, the factor of each sample's loss; mixed[param] where a block is not its sample's alone.
local TOLERANCE = 1e-4

-- In the second pass: is g, by sample, what it was times the scales? Then nothing else is left to do.
local function tested(state, ctx, g, ...)
  if not state.scale then
    ctx.g = g
    return false
  end
  local off = (g / state.scale:to(g.dtype):reshape { state.n, 1, 1 } - ctx.g):abs():max():item()
  local close = off <= TOLERANCE * ctx.g:abs():max():item() -- false of NaN
  for _, param in ipairs(close and {} or { ... }) do state.mixed[param] = true end
  ctx.g = nil
  return true
end

-- linear(x, weight, bias) whose weight and bias gradients go, by sample, into the sums.
local function linear_of(state)
  local n, wanted, sums = state.n, state.wanted, state.sums
  return peri.custom(function(ctx, x, weight, bias)
    ctx.x, ctx.weight, ctx.bias = x, weight, bias
    return peri.linear(x, weight, bias)
  end, function(ctx, g) -- (..., out)
    local rows = by_sample(g, n) -- (B, T, out)
    if not tested(state, ctx, rows, ctx.weight, ctx.bias) then
      if wanted[ctx.weight] then
        add_to(sums, ctx.weight, rows:transpose(2, 3):matmul(by_sample(ctx.x, n))) -- (B, out, in)
      end
      if ctx.bias and wanted[ctx.bias] then add_to(sums, ctx.bias, rows:sum(2)) end -- (B, out)
    end
    return g:matmul(ctx.weight)
  end)
end

local function embedding_of(state, padding)
  local n = state.n
  return peri.custom(function(ctx, weight, ids)
    ctx.weight, ctx.ids = weight, ids
    return peri.embedding(weight, ids, padding)
  end, function(ctx, g)
    if tested(state, ctx, by_sample(g, n), ctx.weight) then return end
    local v, d = ctx.weight:size(1), ctx.weight:size(2)
    local ids = ctx.ids:to("i64"):reshape { n, -1 } -- (B, T)
    local rows = g:reshape { -1, d }
    if padding then rows = rows * ids:reshape { -1, 1 }:ne(padding):to(g.dtype) end
    local at = (ids + (peri.arange(n) * v):to("i64"):reshape { n, 1 }):reshape { -1 }
    local sum = peri.zeros({ n * v, d }, g.dtype):index_add(at, rows, 1)
    add_to(state.sums, ctx.weight, sum:reshape { n, v, d })
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
local function interceptor(state)
  local n, wanted = state.n, state.wanted
  local function linear(...)
    local a = positional("linear", { "x", "weight", "bias", "act" }, ...)
    local x, weight, bias, act = a[1], a[2], a[3], a[4]
    local ours = wanted[weight] or (bias and wanted[bias])
    if not ours or (x:numel() // x:size(-1)) % n ~= 0 then return peri.linear(x, weight, bias, act) end
    local y = linear_of(state)(x, weight, bias)
    if act and act ~= "none" then y = peri[act](y) end
    return y
  end
  local function embedding(...)
    local a = positional("embedding", { "weight", "ids", "padding_idx" }, ...)
    if not wanted[a[1]] or a[2]:numel() % n ~= 0 then return peri.embedding(a[1], a[2], a[3]) end
    return embedding_of(state, a[3])(a[1], a[2])
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

-- Losses as seen with powers of two as factors, which no rounding changes; neighbours have other ones.
local function test_again(state, losses, params)
  local scale = {}
  for i = 1, state.n do scale[i] = 2.0 ^ (i % 8) end
  state.scale = peri.tensor(scale, losses.dtype)
  peri.grad(losses, params, { seed = state.scale:reshape(losses.shape) })
end

--- The gradient of each sample's loss for each parameter: a list of tensors (B, shape of the parameter).
--- Parameters of linear and embedding take two backward passes in all where blocks of rows belong to
--- one sample each; others, such as a table of positions that all samples share, one a sample.
--- @param loss_fn fun(...): perilune.Tensor  of the batch; one loss for each sample (B), without mixing samples
--- @param params any  a list of tensors, a module, a model or an adapter
--- @param ... perilune.Tensor  the batch: tensors have the samples in dim 1
--- @return perilune.Tensor[]
return function(loss_fn, params, ...)
  local problem = options.problem("loss_fn", loss_fn, options.value(options.required, "callable"))
  if problem then error("per_sample_grad: " .. problem, 2) end
  params = require("perilune.optim.params").list("per_sample_grad", params)
  local state = { wanted = {}, sums = {}, mixed = {} }
  for i = 1, select("#", ...) do
    local t = select(i, ...)
    if not state.n and peri.is_tensor(t) then state.n = #t end
  end
  local n = state.n
  if not n then error("per_sample_grad: no tensor in the batch", 2) end
  for _, param in ipairs(params) do state.wanted[param] = true end
  local losses = intercepted(interceptor(state), loss_fn, ...)
  if not peri.is_tensor(losses) then
    error(("per_sample_grad: the function gave a %s, expected a tensor of %d losses"):format(type(losses), n), 2)
  end
  if losses:numel() ~= n then
    error(("per_sample_grad: the function gave %d losses for %d samples"):format(losses:numel(), n), 2)
  end
  local others, rest, out = peri.grad(losses:sum(), params), {}, {}
  if n > 1 and next(state.sums) then test_again(state, losses, params) end
  for k, param in ipairs(params) do
    if others[k] or state.mixed[param] then rest[#rest + 1] = param end
  end
  local looped = #rest > 0 and loop(loss_fn, rest, n, ...) or {}
  for k, param in ipairs(rest) do state.sums[param] = looped[k] end
  for k, param in ipairs(params) do
    local shape = param.shape
    table.insert(shape, 1, n)
    out[k] = state.sums[param] or peri.zeros(shape, param.dtype)
  end
  return out
end
