-- Optimizers against independent figures (torch, apex's RefLAMB) and their bookkeeping.
local lu = require "luaunit"
local peri = require "perilune"
local nn = require "perilune.nn"
local optim = require "perilune.optim"

-- The generator of the reference figures: FNV-1a of a name, then a linear congruence.
local function values(name, n, scale)
  local x = 2166136261
  for i = 1, #name do x = ((x ~ name:byte(i)) * 16777619) & 0xffffffff end
  local out = {}
  for i = 1, n do
    x = (x * 1664525 + 1013904223) & 0xffffffff
    out[i] = ((x >> 8) / 2 ^ 24 - 0.5) * scale
  end
  return out
end

local function matrix(name) return peri.tensor(values(name, 12, 2), "f64"):reshape { 3, 4 } end

-- Three steps on fixed gradients.
local function three_steps(make)
  local p = nn.parameter(matrix "lamb.p")
  local opt = make { p }
  for i = 0, 2 do
    p.grad = matrix("lamb.g" .. i)
    opt:step():zero_grad()
  end
  return p
end

local reference = {
  adamw = { { -0.146337751588, -0.589506341927, -0.045942226298, 0.690470308554 },
    { 0.916358450427, -0.207784506512, 0.771295035166, 0.681149701852 },
    { 0.56387505472, 0.776063338336, 0.336034613322, -0.388628965964 } },
  sgd = { { -0.160594611173, -0.55285237886, -0.027921812329, 0.667122688801 },
    { 0.885503284289, -0.152326096971, 0.721026525508, 0.645005198257 },
    { 0.611897612441, 0.721678378037, 0.343298631517, -0.356219729214 } },
  lamb = { { -0.145552335383, -0.591364540263, -0.04694670768, 0.690757809916 },
    { 0.918100873382, -0.209814513669, 0.773434649281, 0.683123230873 },
    { 0.562198754932, 0.778251987388, 0.334629325423, -0.390486687342 } },
}

local function check(p, want) -- figures are printed with 12 digits
  lu.assertTrue(p:detach():sub(peri.tensor(want, "f64")):abs():max():item() < 2e-12)
end

TestOptim = {}

function TestOptim:test_adamw_equals_torch()
  check(three_steps(function(p)
    return optim.AdamW(p, { lr = 1e-3, betas = { 0.9, 0.95 }, eps = 1e-8, weight_decay = 0.1 })
  end), reference.adamw)
end

function TestOptim:test_sgd_with_nesterov_equals_torch()
  check(three_steps(function(p) return optim.SGD(p, { lr = 0.01, momentum = 0.9, nesterov = true }) end),
    reference.sgd)
end

function TestOptim:test_lamb_equals_apex()
  check(three_steps(function(p)
    return optim.Lamb(p, { lr = 5e-4, eps = 1e-8, weight_decay = 0.01, max_grad_norm = 1 })
  end), reference.lamb)
end

local function quadratic(make)
  peri.seed(4)
  local p = nn.parameter(peri.randn { 6, 6 })
  local opt = make { p }
  local first
  for _ in peri.steps(60) do
    local loss = p:square():sum()
    first = first or loss:item()
    loss:backward()
    opt:step():zero_grad()
  end
  return first, p:detach():square():sum():item()
end

function TestOptim:test_every_optimizer_goes_downhill()
  for name, o in pairs { SGD = { lr = 0.05, momentum = 0.5 }, Adam = { lr = 0.05 }, AdamW = { lr = 0.05 },
    RMSprop = { lr = 0.02, momentum = 0.2 }, Lamb = { lr = 0.05 }, Muon = { lr = 0.05 } } do
    local first, last = quadratic(function(p) return optim[name](p, o) end)
    lu.assertTrue(last < first * 0.3, ("%s: %g -> %g"):format(name, first, last))
  end
end

function TestOptim:test_groups_have_options_of_their_own()
  local a, b = nn.parameter(peri.ones { 1 }), nn.parameter(peri.ones { 1 })
  local opt = optim.SGD({ { params = { a } }, { params = { b }, lr = 0.2 } }, { lr = 0.1 })
  a.grad, b.grad = peri.ones { 1 }, peri.ones { 1 }
  opt:step()
  lu.assertAlmostEquals(a:item(), 0.9, 1e-6)
  lu.assertAlmostEquals(b:item(), 0.8, 1e-6)
  opt:step { lr = 0.05 } -- the ratio stays
  lu.assertAlmostEquals(a:item(), 0.85, 1e-6)
  lu.assertAlmostEquals(b:item(), 0.7, 1e-6)
end

function TestOptim:test_decay_groups_spare_vectors()
  local net = nn.Linear(2, 2)
  local groups = optim.decay_groups(net, 0.1)
  lu.assertEquals(#groups[1].params, 1)
  lu.assertEquals(groups[2].weight_decay, 0)
  lu.assertEquals(#optim.AdamW(groups):parameters(), 2)
end

function TestOptim:test_clip_scales_all_gradients_together()
  local a, b = nn.parameter(peri.zeros { 1 }), nn.parameter(peri.zeros { 1 })
  local opt = optim.SGD({ a, b }, { lr = 1 })
  a.grad, b.grad = peri.tensor { 3.0 }, peri.tensor { 4.0 }
  opt:step { clip = 1 }
  lu.assertAlmostEquals(opt.grad_norm, 5, 1e-6)
  lu.assertAlmostEquals(a:item(), -0.6, 1e-5)
  lu.assertAlmostEquals(b:item(), -0.8, 1e-5)
end

function TestOptim:test_clip_skips_a_step_that_is_not_finite()
  local a = nn.parameter(peri.ones { 1 })
  local opt = optim.SGD({ a }, { lr = 1 })
  a.grad = peri.tensor { 0 / 0 }
  opt:step { clip = 1 }
  lu.assertEquals(a:item(), 1)
  lu.assertEquals(opt.skipped, 1)
end

function TestOptim:test_parameters_without_gradient_stay()
  local a, b = nn.parameter(peri.ones { 1 }), nn.parameter(peri.ones { 1 })
  local opt = optim.AdamW({ a, b }, { lr = 0.1 })
  a.grad = peri.ones { 1 }
  opt:step()
  lu.assertEquals(b:item(), 1)
  b.grad = peri.ones { 1 }
  opt:step() -- a is at its second step, b at its first
  lu.assertAlmostEquals(b:item(), 0.899, 1e-5)
end

function TestOptim:test_a_restored_optimizer_goes_on_bit_for_bit()
  local function train(p, opt, from, to)
    for i = from, to do
      p.grad = peri.tensor(values("grad" .. i, 4, 1), "f32")
      opt:step():zero_grad()
    end
  end
  for name, o in pairs { AdamW = { lr = 0.1 }, SGD = { lr = 0.1, momentum = 0.9 }, RMSprop = { lr = 0.1 } } do
    local p = nn.parameter(peri.ones { 4 })
    local opt = optim[name]({ p }, o)
    train(p, opt, 1, 3)
    local q = nn.parameter(p:clone())
    local again = optim[name]({ q }, o)
    local tensors, plain = opt:state_dict()
    again:load_state_dict(tensors, peri.json.decode(peri.json.encode(plain)))
    train(p, opt, 4, 6)
    train(q, again, 4, 6)
    lu.assertEquals(q:tolist(), p:tolist(), name)
  end
end

function TestOptim:test_moments_outlive_scopes()
  local p = nn.parameter(peri.ones { 4 })
  local opt = optim.AdamW({ p })
  for _ in peri.steps(3) do
    p:square():sum():backward()
    opt:step():zero_grad()
  end
  lu.assertEquals((opt:state_dict())["0.m"].shape, { 4 })
end

function TestOptim:test_misuse_is_explained()
  local p = nn.parameter(peri.ones { 4 })
  lu.assertErrorMsgContains("lr is missing", optim.SGD, { p })
  lu.assertErrorMsgContains('did you mean "weight_decay"', optim.AdamW, { p }, { weight_decai = 1 })
  lu.assertErrorMsgContains("expected a matrix", optim.Muon, { p })
  lu.assertErrorMsgContains("no parameters", optim.AdamW, {})
  lu.assertErrorMsgContains("parameter 1 is a number", optim.AdamW, { 1 })
  local other = optim.SGD({ p }, { lr = 1 })
  lu.assertErrorMsgContains("expected SGD", other.load_state_dict, other, {}, { name = "AdamW", steps = {} })
end

-- Steps that are given no gradients take those of the parameters.
function TestOptim.test_gradients_that_are_left_out_are_the_parameters_own()
  local function pair(seed)
    peri.seed(seed)
    local a, b = peri.randn({ 3, 2 }):requires_grad_(), peri.randn({ 5 }):requires_grad_()
    a.grad, b.grad = peri.randn { 3, 2 }, peri.randn { 5 }
    return { a, b }
  end
  local function moments(list)
    local out = {}
    for i, p in ipairs(list) do out[i] = peri.zeros_like(p) end
    return out
  end
  local p, q = pair(1), pair(1)
  local _ <close> = peri.no_grad()
  peri.adam_(p, { p[1].grad, p[2].grad }, moments(p), moments(p), 0.1)
  peri.adam_(q, {}, moments(q), moments(q), 0.1)
  peri.sgd_(p, { p[1].grad, p[2].grad }, {}, 0.1)
  peri.sgd_(q, {}, {}, 0.1)
  for i = 1, 2 do lu.assertEquals(q[i]:bytes(), p[i]:bytes()) end
  lu.assertEquals(peri.grad_norm(q):item(), peri.global_norm({ q[1].grad, q[2].grad }):item())
  q[2]:zero_grad()
  lu.assertEquals(peri.grad_norm(q):item(), peri.global_norm({ q[1].grad }):item())
  lu.assertErrorMsgContains("grads are left out, and params 2 has no gradient", peri.sgd_, q, {}, {}, 0.1)
end
