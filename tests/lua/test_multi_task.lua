-- Several tasks on one network: weights of losses, gradients without conflict, the stepper.
local lu = require "luaunit"
local peri = require "perilune"
local nn, optim = peri.nn, peri.optim
local multi_task = peri.algo.multi_task

local function vector(list) return peri.tensor(list, "f64") end
local function near(got, want, what)
  lu.assertEquals(got.shape, want.shape, what)
  lu.assertTrue(got:sub(want):abs():max():item() < 1e-9, what)
end

-- ---- weights ----

TestTaskWeights = {}

function TestTaskWeights.test_fixed_ones_stay()
  local w = optim.task_weights { tasks = 3, weights = { 1, 2, 0 } }
  lu.assertEquals(w:update { 5, 6, 7 }, { 1, 2, 0 })
end

-- The minimum of exp(-s) L + s / 2 is at exp(-s) = 1 / (2 L).
function TestTaskWeights.test_uncertainty_settles_at_half_the_reciprocal_of_the_loss()
  local rng = peri.rng(1)
  for _ = 1, 5 do
    local losses = { rng:uniform(0.01, 5), rng:uniform(0.01, 5), rng:uniform(0.01, 5) }
    local w = optim.task_weights { tasks = 3, rule = "uncertainty", lr = 0.1 }
    for _ = 1, 2000 do w:update(losses) end
    for i = 1, 3 do lu.assertAlmostEquals(w.weights[i], 1 / (2 * losses[i]), 1e-6) end
  end
end

-- And a step is one of gradient descent on s = -log w.
function TestTaskWeights.test_a_step_of_uncertainty_descends_the_stated_loss()
  local w = optim.task_weights { tasks = 1, rule = "uncertainty", lr = 0.01, weights = { 0.7 } }
  local s = peri.tensor(-math.log(0.7), "f64"):requires_grad_()
  local loss = (-s):exp() * 1.3 + s / 2
  local g = peri.grad(loss, s):item()
  lu.assertAlmostEquals(-math.log(w:update({ 1.3 })[1]), s:item() - 0.01 * g, 1e-12)
end

function TestTaskWeights.test_gradnorm_brings_weighted_norms_together_and_keeps_the_sum()
  local w = optim.task_weights { tasks = 2, rule = "gradnorm", lr = 0.01, weights = { 1, 3 } }
  for _ = 1, 2000 do
    w:update({ 1, 1 }, { 8, 2 }) -- equal progress
    lu.assertAlmostEquals(w.weights[1] + w.weights[2], 4, 1e-9)
  end
  lu.assertTrue(math.abs(w.weights[1] * 8 - w.weights[2] * 2) < 0.3)
  local lagging = optim.task_weights { tasks = 2, rule = "gradnorm", lr = 0.01 }
  lagging:update({ 1, 1 }, { 1, 1 })
  for _ = 1, 200 do lagging:update({ 0.9, 0.3 }, { 1, 1 }) end
  lu.assertTrue(lagging.weights[1] > lagging.weights[2]) -- the first has more left to do
end

function TestTaskWeights.test_a_state_goes_on_and_what_does_not_fit_is_named()
  local a = optim.task_weights { tasks = 2, rule = "gradnorm" }
  a:update({ 1, 2 }, { 1, 3 })
  local b = optim.task_weights { tasks = 2, rule = "gradnorm" }
  b:set_state(peri.json.decode(peri.json.encode(a:state())))
  lu.assertEquals(a:update({ 0.5, 2 }, { 1, 1 }), b:update({ 0.5, 2 }, { 1, 1 }))
  lu.assertErrorMsgContains("losses has 1 entries, expected 2", a.update, a, { 1 })
  lu.assertErrorMsgContains("norms has no entries, expected 2", a.update, a, { 1, 2 })
  lu.assertErrorMsgContains("losses 2 is inf", a.update, a, { 1, math.huge }, { 1, 1 })
  lu.assertErrorMsgContains("1 weights for 2 tasks", optim.task_weights, { tasks = 2, weights = { 1 } })
  lu.assertErrorMsgContains("weight 2 is -1", optim.task_weights, { tasks = 2, weights = { 1, -1 } })
  lu.assertErrorMsgContains("state is of 1 tasks, these are 2", a.set_state, a, { weights = { 1 } })
end

-- ---- gradients ----

TestPcgrad = {}

function TestPcgrad.test_what_does_not_conflict_is_added_and_what_does_loses_its_part()
  near(optim.pcgrad { vector { 1, 2 }, vector { 3, 0 } }, vector { 4, 2 })
  near(optim.pcgrad { vector { 1, 0 }, vector { -1, 1 } }, vector { 0.5, 1.5 }) -- (1/2, 1/2) and (0, 1)
  near(optim.pcgrad { vector { 1, -2 } }, vector { 1, -2 })
  near(optim.pcgrad { vector { 1, -2 }, vector { 0, 0 } }, vector { 1, -2 })
end

function TestPcgrad.test_of_two_tasks_the_sum_is_against_neither()
  local rng = peri.rng(2)
  for n = 2, 12 do
    local g = {}
    for i = 1, 2 do
      local list = {}
      for k = 1, n do list[k] = rng:normal() end
      g[i] = vector(list)
    end
    local total = optim.pcgrad(g, rng)
    for i = 1, 2 do lu.assertTrue(total:mul(g[i]):sum():item() >= -1e-9) end
    if g[1]:mul(g[2]):sum():item() >= 0 then near(total, g[1] + g[2]) end
  end
  lu.assertErrorMsgContains("gradient 2 has shape (3), the first (2)", optim.pcgrad, { vector { 1, 2 }, vector { 1, 2, 3 } })
end

-- ---- the stepper ----

TestMultiTask = {}

local function made(opts)
  peri.seed(opts.init or 1)
  local net = nn.MultiTask(nn.MLP { 3, 6, 4 }, { a = nn.Linear(4, 1), b = nn.Linear(4, 2) }):to "f64"
  local x, y = peri.randn({ 5, 3 }, "f64"), { a = peri.randn({ 5, 1 }, "f64"), b = peri.randn({ 5, 2 }, "f64") }
  local function loss(name) return function () return (net(name, x) - y[name]):square():mean() end end
  local o = { shared = net.encoder, optimizer = optim.SGD(net, { lr = 0.1 }), clip_norm = 1e9,
    tasks = { { name = "a", loss = loss "a", weight = opts.a }, { name = "b", loss = loss "b", weight = opts.b } } }
  for name, value in pairs(opts.more or {}) do o[name] = value end
  return net, multi_task.new(o), loss
end

function TestMultiTask.test_a_step_is_one_on_the_weighted_sum()
  local net, stepper = made { a = 0.3, b = 2 }
  local other, _, loss = made {}
  local opt = optim.SGD(other, { lr = 0.1 })
  for k = 1, 4 do
    local metrics = stepper:step()
    local total = loss "a" () * 0.3 + loss "b" () * 2
    lu.assertAlmostEquals(metrics.loss, total:item(), 1e-9)
    lu.assertAlmostEquals(metrics.loss_b, loss "b" ():item(), 1e-9)
    lu.assertEquals({ metrics.step, metrics.weight_a, metrics.weight_b }, { k, 0.3, 2 })
    total:backward()
    opt:step():zero_grad()
    near(optim.flatten(net), optim.flatten(other))
  end
end

function TestMultiTask.test_surgery_changes_what_is_shared_and_nothing_else()
  local plain, a = made {}
  local net, b = made { more = { surgery = true } }
  local grads = {}
  for i, task in ipairs(b.tasks) do
    local list = peri.grad(task.loss(), net.encoder:parameters())
    for k, g in ipairs(list) do list[k] = g:reshape { -1 } end
    grads[i] = peri.cat(list)
  end
  local before = optim.flatten(net.encoder)
  local metrics = a:step()
  b:step()
  near(optim.flatten(net.encoder), before - optim.pcgrad(grads) * 0.1, "shared")
  near(optim.flatten(net.heads.a), optim.flatten(plain.heads.a))
  local dot = grads[1]:mul(grads[2]):sum():item()
  lu.assertAlmostEquals(metrics.cosine, dot / math.sqrt(grads[1]:square():sum():item() * grads[2]:square():sum():item()), 1e-9)
end

function TestMultiTask.test_every_weighting_learns_and_a_state_goes_on()
  for _, weighting in ipairs { "fixed", "uncertainty", "gradnorm" } do
    local _, stepper = made { more = { weighting = weighting } }
    local first, last = stepper:step(), nil
    for _ = 1, 60 do last = stepper:step() end
    lu.assertTrue(last.loss_a < first.loss_a and last.loss_b < first.loss_b, weighting)
    local net, a = made { more = { weighting = weighting, surgery = true } }
    for _ = 1, 3 do a:step() end
    local copy, b = made { more = { weighting = weighting, surgery = true } }
    copy:load_state_dict(net:state_dict())
    b:set_state(peri.json.decode(peri.json.encode(a:state())))
    for _ = 1, 3 do lu.assertEquals(a:step(), b:step()) end
  end
end

function TestMultiTask.test_a_step_that_raises_was_none()
  local net, stepper = made {}
  local before, good = optim.flatten(net), stepper.tasks[2].loss
  stepper.tasks[2].loss = function () return peri.zeros { 2 } end
  lu.assertErrorMsgContains('the loss of "b" is of shape (2), expected a tensor of one element', stepper.step, stepper)
  near(optim.flatten(net), before)
  for _, p in ipairs(net:parameters()) do lu.assertNil(p.grad) end
  stepper.tasks[2].loss = good
  lu.assertEquals(stepper:step().step, 1)
end

function TestMultiTask.test_what_does_not_fit_is_named()
  local net, _, loss = made {}
  local function message(words, opts) lu.assertErrorMsgContains(words, multi_task.new, opts) end
  local opt = optim.SGD(net, { lr = 0.1 })
  local task = { name = "a", loss = loss "a" }
  message("there are no tasks", { tasks = {}, shared = net.encoder, optimizer = opt })
  message('two tasks are called "a"', { tasks = { task, task }, shared = net.encoder, optimizer = opt })
  message('task 1: unknown option "weigth"; did you mean "weight"?', { tasks = { { name = "a", loss = print, weigth = 1 } },
    shared = net.encoder, optimizer = opt })
  message("shared parameter 1 takes gradients and is not the optimizer's", { tasks = { task }, shared = net.encoder,
    optimizer = optim.SGD(net.heads.a, { lr = 0.1 }) })
  net.encoder:freeze()
  message("no shared parameter takes gradients, and gradnorm needs theirs", { tasks = { task }, shared = net.encoder,
    optimizer = opt, weighting = "gradnorm" })
  lu.assertErrorMsgContains('MultiTask: unknown task "code"; there are: a, b', net, "code", peri.zeros({ 1, 3 }, "f64"))
  lu.assertErrorMsgContains("there is no head", nn.MultiTask, net.encoder, {})
  lu.assertErrorMsgContains("head 1 is a number", nn.MultiTask, net.encoder, { 3 })
end

os.exit(lu.LuaUnit.run())
