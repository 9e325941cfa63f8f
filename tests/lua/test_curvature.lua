-- Parameters as vectors, products with second derivatives, conjugate gradients.
local lu = require "luaunit"
local peri = require "perilune"
local dist, nn, optim, rl = peri.dist, peri.nn, peri.optim, peri.rl

local function near(got, want, tolerance, what)
  lu.assertEquals(got.shape, want.shape, what)
  local off = got:sub(want):abs():max():item()
  lu.assertTrue(off <= tolerance, ("%s: %g off"):format(what or "", off))
end

local function net(seed)
  peri.seed(seed or 1)
  return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)):to "f64"
end
local function some(...) return peri.randn({ ... }, "f64") end

-- ---- vectors ----

TestFlat = {}

function TestFlat.test_a_vector_has_the_parameters_in_their_order()
  local model = net()
  local theta, at = optim.flatten(model), 1
  lu.assertEquals(theta:numel(), model:num_parameters())
  for i, p in ipairs(model:parameters()) do
    near(theta:narrow(1, at, p:numel()):reshape(p.shape), p:detach(), 0)
    near(optim.unflatten(theta, model)[i], p:detach(), 0)
    at = at + p:numel()
  end
  lu.assertFalse(theta.requires_grad)
  near(optim.flatten(model:parameters()), theta, 0, "of a list")
  near(optim.flatten { model:parameters()[2] }, model:parameters()[2]:detach(), 0, "of one")
end

function TestFlat.test_writing_a_vector_back_changes_the_parameters_and_no_copy()
  local model = net()
  local theta = optim.flatten(model)
  optim.assign_(model, theta * 2)
  near(optim.flatten(model), theta * 2, 0, "assigned")
  optim.assign_(model, optim.unflatten(theta, model))
  near(optim.flatten(model), theta, 0, "assigned as a list")
  for _, p in ipairs(model:parameters()) do lu.assertTrue(p.requires_grad and p.is_leaf) end
end

function TestFlat.test_gradients_are_zero_where_there_is_none()
  local model = net()
  lu.assertEquals(optim.flatten_grads(model):abs():sum():item(), 0)
  model(some(2, 3)):sum():backward()
  local g = optim.flatten_grads(model)
  near(g:narrow(1, 1, 15):reshape { 5, 3 }, model[1].weight.grad, 0)
  model:zero_grad()
  lu.assertTrue(g:abs():sum():item() > 0) -- a copy
end

function TestFlat.test_frozen_parameters_are_left_out()
  local model = net()
  model[1]:freeze()
  lu.assertEquals(optim.flatten(model):numel(), 24)
  model[3]:freeze()
  lu.assertErrorMsgContains("flatten: no parameter takes gradients", optim.flatten, model)
end

function TestFlat.test_what_does_not_fit_is_named()
  local model = net()
  local mixed = { peri.ones({ 2 }, "f32"):requires_grad_(), peri.ones({ 2 }, "f64"):requires_grad_() }
  for words, fn in pairs {
    ["flatten: parameter 2 is of dtype f64, those before it f32"] = function() optim.flatten(mixed) end,
    ["assign_: vector has shape (3), expected (44)"] = function() optim.assign_(model, peri.ones { 3 }) end,
    ["unflatten: vector has shape (44, 1), expected (44)"] = function() optim.unflatten(peri.ones { 44, 1 }, model) end,
    ["assign_: vector has 1 tensors, expected 4"] = function() optim.assign_(model, { peri.ones { 3 } }) end,
    ["vector for parameter 0.bias has shape (2), expected (5)"] = function()
      local parts = optim.unflatten(optim.flatten(model), model)
      parts[2] = peri.ones { 2 }
      optim.assign_(model, parts)
    end,
  } do
    local before = optim.flatten(model)
    lu.assertErrorMsgContains(words, fn)
    near(optim.flatten(model), before, 0, "nothing changed")
  end
end

-- ---- products ----

TestProducts = {}

local function loss_of(model, x) return function() return model(x):square():mean():add(model(x):sin():mean()) end end

function TestProducts.test_the_product_is_how_the_gradient_changes_along_the_vector()
  local model, x = net(), some(6, 3)
  local loss, theta, v = loss_of(model, x), optim.flatten(model), some(44)
  local function gradient(at)
    optim.assign_(model, at)
    model:zero_grad()
    loss():backward()
    return optim.flatten_grads(model)
  end
  local h = 1e-5
  local want = (gradient(theta + v * h) - gradient(theta - v * h)) / (2 * h)
  optim.assign_(model, theta)
  near(peri.hvp(loss, model, v), want, 1e-8, "of a function")
  near(peri.hvp(loss(), model, v), want, 1e-8, "of a tensor")
  local list = peri.hvp(loss, model, optim.unflatten(v, model))
  for i, part in ipairs(optim.unflatten(want, model)) do near(list[i], part, 1e-8, "as a list") end
end

function TestProducts.test_products_are_linear_and_symmetric_and_repeat()
  local model = net()
  local H = optim.curvature(loss_of(model, some(6, 3)), model)
  local u, v = some(44), some(44)
  local hu, hv = H(u), H(v)
  near(H(u * 2 - v * 3), hu * 2 - hv * 3, 1e-12, "linear")
  lu.assertAlmostEquals(u:mul(hv):sum():item(), v:mul(hu):sum():item(), 1e-12)
  near(H(u), hu, 0, "again")
  local damped = optim.curvature(loss_of(model, peri.ones({ 1, 3 }, "f64")), model, { damping = 0.5 })
  local plain = optim.curvature(loss_of(model, peri.ones({ 1, 3 }, "f64")), model)
  near(damped(u), plain(u) + u * 0.5, 1e-14, "damped")
end

function TestProducts.test_of_a_quadratic_it_is_the_matrix()
  local a = some(5, 5)
  a = a + a:transpose(1, 2)
  local x = some(5):requires_grad_()
  local v = some(5)
  near(peri.hvp(x:matmul(a):mul(x):sum() * 0.5, { x }, v), a:matmul(v), 1e-12)
  near(peri.hvp(x:sum(), { x }, v), peri.zeros({ 5 }, "f64"), 0, "of a linear loss")
  local free = some(5):requires_grad_() -- the loss does not know it
  local both = peri.hvp(x:pow(3):sum(), { free, x }, { v, v })
  near(both[1], peri.zeros({ 5 }, "f64"), 0)
  near(both[2], x:detach() * v * 6, 1e-12)
end

-- F v = E[g (g v)], g the gradients of the log-probabilities of the actions.
function TestProducts.test_the_fisher_information_is_that_of_the_scores()
  local model, x = net(3), some(6, 3)
  local v = some(44)
  local want = peri.zeros({ 44 }, "f64")
  for row = 1, 6 do
    local state = x:narrow(1, row, 1)
    for action = 0, 3 do
      local logp = dist.Categorical(model(state)):log_prob(peri.tensor({ action }, "i64"))
      model:zero_grad()
      logp:sum():backward()
      local g = optim.flatten_grads(model)
      want = want + g * (g:mul(v):sum():item() * math.exp(logp:item()) / 6)
    end
  end
  near(rl.fisher(dist.Categorical(model(x)), model)(v), want, 1e-12)
  near(rl.fisher(dist.Categorical(model(x)), model, { damping = 0.1 })(v), want + v * 0.1, 1e-12)
end

-- Policies of every family with a divergence: F is no more negative than rounding, in every direction.
function TestProducts.test_fisher_information_is_positive_of_every_family()
  local model, x = net(4), some(6, 3)
  local out = model(x) -- (6, 4)
  local log_std = peri.zeros({ 4 }, "f64"):requires_grad_()
  local left, right = out:narrow(2, 1, 2), out:narrow(2, 3, 2)
  for _, d in ipairs { dist.Categorical(out), dist.MultiCategorical(out, { 1, 3 }), dist.Bernoulli(out, { event = 1 }),
    dist.Normal(out, { log_std = log_std, event = 1 }), dist.SquashedNormal(out, { log_std = log_std, event = 1 }),
    dist.Beta(left:softplus() + 1, right:softplus() + 1, { event = 1 }),
    dist.Categorical(out, { mask = peri.tensor { 1, 0, 1, 1 } }) } do
    local F = rl.fisher(d, { model, log_std })
    for _ = 1, 3 do
      local v = some(48)
      lu.assertTrue(F(v):mul(v):sum():item() > 0, tostring(d))
    end
    lu.assertFalse(F(some(48)).requires_grad)
  end
end

function TestProducts.test_what_cannot_be_multiplied_is_named()
  local model, x = net(), some(2, 3)
  local v = peri.ones({ 44 }, "f64")
  for words, fn in pairs {
    ["hvp: the loss is of shape (2, 4), expected a tensor of one element"] = function() peri.hvp(model(x), model, v) end,
    ["hvp: the loss is a nil"] = function() peri.hvp(nil, model, v) end,
    ["hvp: the loss depends on no parameter"] = function() peri.hvp(x:sum(), model, v) end,
    ["hvp: v has shape (3), expected (44)"] = function() peri.hvp(model(x):mean(), model, peri.ones { 3 }) end,
    ["curvature: damping is -1"] = function() optim.curvature(model(x):mean(), model, { damping = -1 }) end,
    ["hvp: the product is NaN at element 0 (from 0) of parameter 0.weight"] = function()
      peri.hvp(model(x * (0 / 0)):square():mean(), model, v)
    end,
  } do
    lu.assertErrorMsgContains(words, fn)
  end
end

-- ---- conjugate gradients ----

TestConjugate = {}

local function by(a) return function(v) return a:matmul(v) end end

function TestConjugate.test_numbers_are_those_of_sb3_contrib()
  local f = assert(io.open("tests/data/conjugate.json", "rb"))
  for i, case in ipairs(assert(peri.json.decode(f:read "a"))) do
    local a, b = peri.tensor(case.a, "f64"), peri.tensor(case.b, "f64")
    local x = optim.conjugate_gradient(by(a), b, { iterations = case.iterations, tolerance = case.tolerance,
      start = peri.tensor(case.start, "f64") })
    near(x, peri.tensor(case.x, "f64"), 1e-7, "case " .. i)
  end
  f:close()
end

function TestConjugate.test_n_steps_solve_a_system_of_n()
  local m, b = some(7, 7), some(7)
  local a = m:matmul(m:transpose(1, 2)) + peri.eye(7):to "f64"
  local x, info = optim.conjugate_gradient(by(a), b)
  near(a:matmul(x), b, 1e-4, "solved")
  lu.assertTrue(info.converged and info.iterations <= 8 and info.residual < 1e-10)
  local y = optim.conjugate_gradient(by(a - peri.eye(7):to "f64"), b, { damping = 1 })
  near(y, x, 1e-4, "damping is the identity times it")
  local z, short = optim.conjugate_gradient(by(a), b, { iterations = 2 })
  lu.assertEquals({ short.iterations, short.converged }, { 2, false })
  near(b - a:matmul(z), b - a:matmul(z), 0)
  lu.assertAlmostEquals((b - a:matmul(z)):square():sum():item(), short.residual, 1e-10)
  local none, nothing = optim.conjugate_gradient(by(a), peri.zeros({ 7 }, "f64"), { tolerance = 0 })
  lu.assertEquals({ none:abs():sum():item(), nothing.iterations, nothing.converged }, { 0, 0, true })
end

function TestConjugate.test_a_direction_that_curves_down_ends_it_and_is_told()
  local a = peri.tensor({ { 1, 0 }, { 0, -1 } }, "f64")
  local x, info = optim.conjugate_gradient(by(a), peri.tensor({ 0, 1 }, "f64"))
  lu.assertEquals(x:tolist(), { 0, 0 })
  lu.assertEquals({ info.direction:tolist(), info.curvature, info.converged }, { { 0, 1 }, -1, false })
  local flat = select(2, optim.conjugate_gradient(by(a:mul(0)), peri.tensor({ 1, 1 }, "f64")))
  lu.assertEquals(flat.curvature, 0)
end

function TestConjugate.test_products_that_are_no_numbers_are_refused()
  local b = peri.ones { 2 }
  local count = 0
  for words, fn in pairs {
    ["product 1 holds NaN or inf"] = function() return peri.full({ 2 }, 0 / 0) end,
    ["product 2 holds NaN or inf"] = function(v)
      count = count + 1
      return count == 2 and v / 0 or v * peri.tensor { 1, 2 }
    end,
    ["product 1 is of shape (3), expected a tensor of shape (2)"] = function() return peri.ones { 3 } end,
    ["product 1 is a nil"] = function() end,
  } do
    count = 0
    lu.assertErrorMsgContains("conjugate_gradient: " .. words, optim.conjugate_gradient, fn, b)
  end
  lu.assertErrorMsgContains("b is not finite", optim.conjugate_gradient, by(b), peri.tensor { 1, 0 / 0 })
  lu.assertErrorMsgContains("start has shape (3), b (2)", optim.conjugate_gradient, by(b), b, { start = peri.ones { 3 } })
end

-- The step of a trust region: along it the divergence is what it was meant to be, as far as it is quadratic.
function TestConjugate.test_a_natural_step_has_the_length_in_kl_that_it_was_given()
  local model, x = net(5), some(64, 3)
  local actions = dist.Categorical(model(x)):sample()
  dist.Categorical(model(x)):log_prob(actions):mul(some(64)):mean():backward()
  local g = optim.flatten_grads(model)
  local F = rl.fisher(dist.Categorical(model(x)), model)
  local s = optim.conjugate_gradient(F, g, { iterations = 44, damping = 1e-3 })
  local delta = 1e-6
  local step = s * math.sqrt(2 * delta / F(s):mul(s):sum():item())
  local old = dist.Categorical(model(x)):detach()
  optim.assign_(model, optim.flatten(model) + step)
  lu.assertAlmostEquals(dist.kl(old, dist.Categorical(model(x))):mean():item() / delta, 1, 0.05)
end

os.exit(lu.LuaUnit.run())
