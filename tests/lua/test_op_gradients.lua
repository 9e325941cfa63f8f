-- Every differentiable op of the table against central differences in f64, first and, where
-- claimed, second derivatives. A new op is tested the day its descriptor is added.
local lu = require "luaunit"
local peri = require "perilune"
local optest = require "optest"

-- Central differences with step h err by h^2 f'''/6 + 1e-16/h: 1e-10 and 1e-11 at h = 1e-5.
local H, RTOL, ATOL = 1e-5, 1e-6, 1e-7

local function close(got, want) return math.abs(got - want) <= ATOL + RTOL * math.max(math.abs(got), math.abs(want)) end

local function flat(t) return t:reshape { t:numel() }:tolist() end

-- d f() / d x element by element; f reads x.
local function numeric(f, x)
  local view, grad = x:detach():reshape { x:numel() }, {}
  for i = 1, x:numel() do
    local v = view:at(i)
    view:set(i, v + H)
    local up = f()
    view:set(i, v - H)
    local down = f()
    view:set(i, v)
    grad[i] = (up - down) / (2 * H)
  end
  return grad
end

local function compare(name, what, got, want)
  for i = 1, #want do
    lu.assertTrue(close(got[i], want[i]),
      ("%s: %s [%d] is %.10g, finite difference %.10g"):format(name, what, i, got[i], want[i]))
  end
end

-- What peri.grad gave for one input, zeros where it gave nothing.
local function list_of(grad, n)
  if grad then return flat(grad) end
  local zeros = {}
  for i = 1, n do zeros[i] = 0 end
  return zeros
end

local function check_first(op, domain)
  local args, floats = optest.arguments(op, "f64", domain)
  lu.assertTrue(#floats > 0, op.name .. ": its domain has no float input")
  for _, x in ipairs(floats) do x:requires_grad_() end
  local loss = optest.scalar(optest.call(op, args))
  lu.assertNotNil(loss, op.name .. ": no float output")
  local grads = peri.grad(loss, floats)
  local function f()
    return peri.no_grad(function () return optest.scalar(optest.call(op, args)):item() end)
  end
  for k, x in ipairs(floats) do
    local want = numeric(f, x)
    compare(op.name, ("gradient of float input %d"):format(k), list_of(grads[k], #want), want)
  end
end

-- Second derivatives: the gradient of (first gradient . u) against differences of that product.
-- An op that claims none must refuse instead of giving a wrong one.
local function check_second(op, domain)
  local args, floats = optest.arguments(op, "f64", domain)
  for _, x in ipairs(floats) do x:requires_grad_() end
  local function product(create)
    local grads = peri.grad(optest.scalar(optest.call(op, args)), floats, { create_graph = create })
    local list = {}
    for k = 1, #floats do list[#list + 1] = grads[k] end
    return optest.scalar(list)
  end
  if op.flags.no_grad2 then
    local ok = pcall(function () peri.grad(product(true), floats) end)
    lu.assertFalse(ok, op.name .. ": a second derivative, though its descriptor claims none")
    return
  end
  local dot = product(true)
  local seconds = dot.requires_grad and peri.grad(dot, floats) or {} -- else linear in every input
  for k, x in ipairs(floats) do
    local want = numeric(function () return product(false):item() end, x)
    compare(op.name, ("second derivative of float input %d"):format(k), list_of(seconds[k], #want), want)
  end
end

-- Besides the descriptor's domain: attributes and shapes that take another way through the formula.
local variants = {
  add = { "x.shape=2,1; y.shape=3" },
  sub = { "x.shape=(); y.shape=2,3" },
  mul = { "x.shape=2,1,3; y.shape=4,1" },
  div = { "x.shape=2,3; y.shape=3; y=-3..-0.3" },
  pow = { "x=0.3..2; y.shape=()", "x=0.3..2; x.shape=2,1" },
  mod = { "x=-2.4..-2.1; y=0.9..1" },
  atan2 = { "x=-2..-0.3; y=-2..-0.3" },
  maximum = { "y.shape=3" },
  where = { "cond=bool; cond.shape=3; x.shape=(); y.shape=2,1" },
  lerp = { "weight.shape=(); y.shape=3" },
  masked_fill = { "mask=bool; mask.shape=2,1,3; x.shape=3; attr value=2" },
  leaky_relu = { "kinks=0; attr slope=-0.5" },
  elu = { "kinks=0; attr alpha=0.3" },
  gelu = { "attr approximate=tanh", "x=-9..9; attr approximate=tanh", "x=-9..9" },
  softplus = { "attr beta=3; attr threshold=4; kinks=1.3333" },
  clamp = { "attr max=0.2; kinks=0.2" },
  sum = { "attr dims=1; attr keep=true", "shape=2,3,2; attr dims=1,3", "shape=()" },
  mean = { "attr dims=-1", "shape=2,3,2; attr dims=1,3; attr keep=true" },
  prod = { "attr dims=2", "shape=3,1,2; attr dims=1; attr keep=true" },
  max = { "attr dims=2", "attr dims=1; attr keep=true" },
  min = { "attr dims=2", "attr dims=1; attr keep=true" },
  var = { "attr dims=2; attr ddof=0", "shape=2,3,2; attr dims=1,3; attr keep=true" },
  std = { "attr dims=2; attr ddof=0", "attr dims=1; attr keep=true" },
  logsumexp = { "attr dims=2", "shape=2,3,2; attr dims=1,3; attr keep=true" },
  norm = {
    "attr p=1; kinks=0",
    "attr p=3; attr dims=2; kinks=0",
    "attr p=1.5; attr dims=1; attr keep=true; kinks=0",
    "attr p=2; attr dims=2",
  },
  cumsum = { "shape=2,3,2; attr dim=2" },
  cumprod = { "shape=2,3,2; attr dim=2" },
  cummax = { "shape=5,2; attr dim=1" },
  sort = { "shape=5,2; attr dim=1; attr descending=true" },
  topk = { "shape=5,2; attr k=3; attr dim=1; attr largest=false" },
  flatten = { "shape=2,3,2; attr first=2; attr last=3" },
  transpose = { "shape=2,3,4; attr dim0=1; attr dim1=3" },
  squeeze = { "shape=2,1,3; attr dim=2" },
  flip = { "shape=2,3,2; attr dims=1,3" },
  narrow = { "attr dim=1; attr start=-1; attr length=1" },
  select = { "attr dim=2; attr index=2" },
  diagonal = { "shape=2,3,4; attr k=1", "shape=3,2; attr k=-1" },
  diag = { "shape=3; attr k=1", "shape=3,4; attr k=-1" },
  diag_embed = { "shape=2,3; attr k=-2" },
  tril = { "shape=2,3,4; attr k=-1" },
  triu = { "shape=2,3,4; attr k=1" },
  cat = { "shape=2,3; xs2.shape=2,1; attr dim=2" },
  stack = { "attr dim=-1" },
  roll = { "shape=4,2; attr shift=-3; attr dim=1" },
  pad = { "attr pads=2,1; attr value=3" },
  tile = { "shape=3; attr counts=2,2" },
  repeat_interleave = { "attr n=3; attr dim=-1" },
  gather = { "x.shape=3,4; index.shape=3,6; index=int:0..3; attr dim=2" },
  scatter = { "x.shape=3,4; index.shape=3,1; src.shape=3,1; index=int:0..3; attr dim=2" },
  scatter_add = { "x.shape=3,4; index.shape=3,6; src.shape=3,6; index=int:0..3; attr dim=-1" },
  index_select = { "x.shape=2,4,2; index.shape=5; index=int:0..3; attr dim=-2" },
  index_add = { "x.shape=2,4,2; index.shape=5; src.shape=2,5,2; index=int:0..3; attr dim=2" },
  embedding = { "weight.shape=5,3; ids.shape=4; ids=int:0..4; attr padding_idx=2" },
  embedding_backward = { "g.shape=6,3; ids.shape=6; ids=int:0..4; attr rows=5; attr padding_idx=2" },
  matmul = {
    "a.shape=3; b.shape=3",
    "a.shape=3; b.shape=2,3,4",
    "a.shape=2,4,3; b.shape=3",
    "a.shape=2,1,3,4; b.shape=3,4,2",
    "a.shape=2,3; b.shape=3,4",
  },
  linear = {
    "x.shape=4; weight.shape=5,4",
    "x.shape=3,4; weight.shape=5,4; bias.shape=5; attr act=relu",
    "x.shape=3,4; weight.shape=5,4; bias.shape=5; attr act=gelu",
    "x.shape=3,4; weight.shape=5,4; attr act=silu",
    "x.shape=3,4; weight.shape=5,4; attr act=gelu_tanh",
  },
  einsum = {
    "shape=2,3,3; attr equation=bij,bjk->bik",
    "shape=3,3; attr equation=ij,ij->",
    "xs1.shape=3; xs2.shape=4; attr equation=i,j->ji",
    "shape=2,3; xs2.shape=4,3; attr equation=bi,oi->bo",
    "shape=3,3; attr equation=ii,ij->ij",
    "shape=3,3; attr equation=ii,jj",
  },
  softmax = { "shape=3,4; attr dim=1" },
  log_softmax = { "shape=2,3,2; attr dim=2" },
  softmax_backward = { "y=0.1..0.9; shape=3,4; attr dim=1" },
  log_softmax_backward = { "y=-3..0; shape=3,4; attr dim=1" },
  layer_norm = { "x.shape=2,3,5", "x.shape=3,5; weight.shape=5; attr eps=0.1", "x.shape=3,5; bias.shape=5" },
  rms_norm = { "x.shape=2,3,5; attr eps=0.1" },
  layer_norm_backward = { "shape=3,5", "shape=3,5; weight.shape=5; attr params=false" },
  rms_norm_backward = { "shape=3,5; weight.shape=5" },
  add_layer_norm = { "x.shape=3,5; residual.shape=3,5" },
  add_rms_norm = { "x.shape=3,5; residual.shape=3,5" },
  group_norm = {
    "x.shape=2,6,2,2; weight.shape=6; attr groups=3",
    "x.shape=2,4; bias.shape=4; attr groups=2; attr eps=0.1",
  },
  dropout = { "attr p=0.4" },
  unpack_qkv = { "shape=2,3,5,2; attr heads=3; attr kv_heads=1" },
  rope = {
    "x.shape=2,3,2,6; positions=int:0..9; positions.shape=2,3; inv_freq=f32:0..2; inv_freq.shape=2; "
      .. "attr interleaved=true; attr scale=1.2",
    "x.shape=2,3,2,4; positions=int:0..9; positions.shape=3; inv_freq=f32:0..2; inv_freq.shape=2; attr inverse=true",
  },
  attention = {
    "shape=2,3,2,4",
    "q.shape=2,3,4,2; k.shape=2,5,2,2; v.shape=2,5,2,2; attr causal=true",
    "q.shape=2,3,2,2; k.shape=2,5,1,2; v.shape=2,5,1,2; attr causal=true; attr window=2; attr scale=0.3",
    "shape=2,3,2,4; mask=bool; mask.shape=2,3",
    "shape=2,3,2,4; mask=f64:-3..1; mask.shape=2,2,3,3",
    "shape=2,3,2,4; mask=-3..1; mask.shape=1,2,3,3; attr softcap=0.6",
    "shape=2,3,2,4; mask=-3..1; mask.shape=2,3; attr causal=true",
    "shape=2,3,2,4; start=int:0..2; start.shape=2,3; attr causal=true; attr softcap=0.8",
    "q.shape=1,2,2,2; k.shape=1,5,2,2; v.shape=1,5,2,2; attr causal=true; attr offset=1",
  },
  cross_entropy = {
    "shape=2,4; target.shape=2; target=int:0..3; attr reduction=sum",
    "shape=2,3,4; target.shape=2,3; target=int:0..3; attr reduction=none; attr ignore_index=2",
    "shape=5,4; target.shape=5; target=int:0..3; attr ignore_index=1; attr label_smoothing=0.2",
  },
  token_logprob = {
    "hidden.shape=2,3,4; weight.shape=5,4; target.shape=2,3; target=int:0..4; attr ignore_index=2",
    "hidden.shape=3,4; weight.shape=5,4; target.shape=3; target=int:0..4; attr temperature=2",
  },
  mse = { "attr reduction=sum", "attr reduction=none" },
  huber = { "attr delta=0.3; attr reduction=sum", "attr reduction=none" },
  bce_with_logits = { "target=0.1..0.9; weight=0.2..2; attr reduction=sum", "target=0.1..0.9; attr reduction=none" },
  kl_div = {
    "log_q=-3..-0.5; target=-3..-0.5; attr log_target=true",
    "log_q=-3..-0.5; target=0.1..0.9; attr reduction=none",
    "log_q=-3..-0.5; target=0.1..0.9; attr reduction=mean",
  },
  discounted_sum = {
    "rewards.shape=2,5; terminated=bool; terminated.shape=2,5; attr gamma=0.8",
    "rewards.shape=2,5; terminated=bool; terminated.shape=2,5; attr reverse=true",
  },
}

TestGradients = {}
local count = 0
for _, op in ipairs(peri.ops()) do
  if op.differentiable then
    count = count + 1
    local domains = { op.domain or "", table.unpack(variants[op.name] or {}) }
    variants[op.name] = nil
    for i, domain in ipairs(domains) do
      local name = i == 1 and op.name or ("%s [%s]"):format(op.name, domain)
      TestGradients["test_" .. name] = function () check_first(op, domain) end
      TestGradients["test_second_" .. name] = function () check_second(op, domain) end
    end
  end
end

function TestGradients.test_variants_name_differentiable_ops()
  lu.assertNil((next(variants)))
end

function TestGradients.test_the_table_is_not_empty() lu.assertTrue(count > 60, "only " .. count .. " ops") end

os.exit(lu.LuaUnit.run())
