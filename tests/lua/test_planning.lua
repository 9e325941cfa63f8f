-- Planning against optima that are known, learned dynamics against systems that are linear.
local lu = require "luaunit"
local peri = require "perilune"
local rl = peri.rl

TestPlanning = {}

-- Quadratics -(x - c)' A (x - c) of several rows at once: the optimum within a box is c where it lies inside.
function TestPlanning.test_cem_finds_the_top_of_quadratics()
  peri.seed(1)
  for _, shape in ipairs { { 1 }, { 5 }, { 4, 2 } } do
    for _, rows in ipairs { 1, 7 } do
      local n = 1
      for _, d in ipairs(shape) do n = n * d end
      local c = peri.rand { rows, 1, n } * 1.6 - 0.8
      local half = peri.randn { rows, n, n } * 0.1 + peri.eye(n)
      local function objective(x)
        local d = x:reshape { rows, x:size(2), n } - c
        return -(d:matmul(half)):square():sum(-1)
      end
      local mean, best, value = rl.cem(objective, { shape = shape, rows = rows, population = 300, elites = 30,
        iterations = 40 })
      lu.assertEquals(mean.shape, { rows, table.unpack(shape) })
      lu.assertTrue((mean:reshape { rows, n } - c:squeeze(2)):abs():max():item() < 0.02)
      lu.assertTrue((best:reshape { rows, n } - c:squeeze(2)):abs():max():item() < 0.02)
      lu.assertTrue(value:le(0):all():item() and value:ge(-1e-2):all():item())
      lu.assertTrue((objective(best:unsqueeze(2)) - value:unsqueeze(-1)):abs():max():item() < 1e-6) -- what it says of best
    end
  end
end

function TestPlanning.test_where_the_top_lies_outside_the_bounds_the_edge_is_found()
  peri.seed(2)
  local low, high = peri.tensor { -1, 0, 2 }, peri.tensor { 1, 5, 3 }
  local goal = peri.tensor { 4, -3, 2.5 }
  local function objective(x) return -(x - goal):square():sum(-1) end
  for _, plan in ipairs { { rl.cem, { iterations = 30, elites = 10, population = 100 } }, { rl.shooting, { population = 20000 } } } do
    local how = { shape = { 3 }, low = low, high = high, rows = 1 }
    for k, v in pairs(plan[2]) do how[k] = v end
    local x = plan[1](objective, how):flatten():tolist()
    for i, want in ipairs { 1, 0, 2.5 } do lu.assertAlmostEquals(x[i], want, plan[1] == rl.cem and 0.02 or 0.6) end
  end
end

-- What was found only gets better: with more iterations, and never worse than the best that was drawn.
function TestPlanning.test_the_best_is_the_best_of_all_that_was_asked_for()
  for keep = 0, 3 do
    peri.seed(3)
    local seen = peri.full({ 4 }, -math.huge)
    local function objective(x)
      local v = (x * 7):sin():sum(-1) - x:square():sum(-1)
      seen = seen:maximum((v:max(2)))
      return v
    end
    local _, best, value = rl.cem(objective, { shape = { 3 }, rows = 4, population = 50, elites = 5, keep = keep })
    lu.assertEquals(value:tolist(), seen:tolist())
    lu.assertEquals(objective(best:unsqueeze(2):expand { 4, 50, 3 }):select(2, 1):tolist(), value:tolist())
    local first, at = rl.shooting(objective, { shape = { 3 }, rows = 4, population = 50 })
    lu.assertEquals(objective(first:unsqueeze(2):expand { 4, 50, 3 }):select(2, 1):tolist(), at:tolist())
  end
end

function TestPlanning.test_rows_are_problems_of_their_own()
  local goal = peri.tensor { { -0.5 }, { 0.25 }, { 0.75 } }
  peri.seed(4)
  local mean = rl.cem(function (x) return -(x - goal:unsqueeze(2)):square():sum(-1) end, { shape = { 1 }, rows = 3,
    iterations = 20 })
  lu.assertTrue((mean - goal):abs():max():item() < 1e-2)
end

function TestPlanning.test_an_earlier_plan_is_where_the_next_begins()
  peri.seed(5)
  local earlier, first = peri.full({ 1, 2 }, 0.6), nil
  rl.cem(function (x) first = first or x:mean(2); return x:sum(-1) end, { shape = { 2 }, mean = earlier, std = 0.01 })
  lu.assertTrue((first - earlier):abs():max():item() < 0.01)
end

function TestPlanning.test_wrong_settings_and_objectives_are_named()
  local function sum(x) return x:sum(-1) end
  lu.assertErrorMsgContains("elites is 30, more than a population of 20", rl.cem, sum,
    { shape = { 1 }, population = 20, elites = 30 })
  lu.assertErrorMsgContains("keep is 9", rl.cem, sum, { shape = { 1 }, elites = 5, keep = 9 })
  lu.assertErrorMsgContains("low is not below high", rl.cem, sum, { shape = { 1 }, low = 2 })
  lu.assertErrorMsgContains("mean has shape (1, 3), expected (1, 1)", rl.cem, sum, { shape = { 1 }, mean = peri.zeros { 1, 3 } })
  lu.assertErrorMsgContains("a NaN", rl.cem, function (x) return sum(x) * (0 / 0) end, { shape = { 1 } })
  lu.assertErrorMsgContains("the objective gave (1, 200, 2), expected a tensor (1, 200)", rl.shooting,
    function (x) return x end, { shape = { 2 } })
  lu.assertErrorMsgContains("shape is missing", rl.shooting, sum, {})
end

-- ---- looking ahead ----

-- x' = x + a, r = -x a, ends beyond 3: sums by hand.
function TestPlanning.test_looking_ahead_is_the_sum_by_hand()
  local function model(obs, action)
    local led = obs + action
    return led, -(obs * action):sum(-1), led:abs():gt(3):any(-1)
  end
  peri.seed(6)
  local obs, actions = peri.randn { 3, 2 }, peri.randn { 3, 5, 6, 2 }
  for _, case in ipairs { { 1 }, { 0.9 }, { 0.9, function (x) return x:sum(-1) end } } do
    local got = rl.look_ahead(model, obs, actions, { gamma = case[1], last = case[2] })
    for row = 1, 3 do
      for k = 1, 5 do
        local x, want, discount, over = obs:select(1, row):tolist(), 0, 1, false
        for t = 1, 6 do
          if not over then
            local a = actions:select(1, row):select(1, k):select(1, t):tolist()
            want = want - discount * (x[1] * a[1] + x[2] * a[2])
            x = { x[1] + a[1], x[2] + a[2] }
            over = math.abs(x[1]) > 3 or math.abs(x[2]) > 3
          end
          discount = discount * case[1]
        end
        if case[2] and not over then want = want + discount * (x[1] + x[2]) end
        lu.assertAlmostEquals(got:select(1, row):at(k), want, 1e-4)
      end
    end
  end
end

-- ---- learned dynamics ----

-- Steps of a linear system with noise in its reward: (learners, n, ...), each learner its own system.
local function linear(learners, n, noise)
  local A, B = peri.randn { learners, 2, 2 } * 0.3, peri.randn { learners, 1, 2 }
  local obs, action = peri.randn { learners, n, 2 } * 5, peri.randn { learners, n, 1 }
  return { obs = obs, action = action, next_obs = obs + obs:matmul(A) + action:matmul(B),
    reward = action:squeeze(-1) * 2 + 1 + peri.randn { learners, n } * noise }
end

local function members_of(batch, m)
  local out = {}
  for name, x in pairs(batch) do
    local shape = x.shape
    out[name] = x:unsqueeze(1):expand { m, table.unpack(shape) }
  end
  return out
end

function TestPlanning.test_a_model_learns_a_linear_system_and_the_noise_of_its_reward()
  for _, probabilistic in ipairs { true, false } do
    peri.seed(7)
    local batch = linear(2, 400, 0.5)
    local model = rl.Dynamics { inputs = 2, actions = 1, members = 3, seeds = { 1, 2 }, hidden = { 16 },
      activation = "tanh", probabilistic = probabilistic }
    model:fit_scale(batch)
    local opt = peri.optim.Adam(model, { lr = 0.02 })
    local all = members_of(batch, 3)
    for _ = 1, 300 do
      local scope <close> = peri.scope() -- luacheck: ignore 211
      model:loss(all):backward()
      opt:step():zero_grad()
    end
    local n = 399 -- a multiple of the members
    local obs, action = batch.obs:narrow(2, 1, n), batch.action:narrow(2, 1, n)
    local led, reward = model:predict(obs, action)
    local err = (led - batch.next_obs:narrow(2, 1, n)):square():mean():sqrt():item()
    lu.assertTrue(err < 0.25, tostring(err)) -- of changes of some 3
    lu.assertTrue((reward - action:squeeze(-1) * 2 - 1):square():mean():sqrt():item() < 0.2)
    if probabilistic then -- draws differ from the means by what the reward's noise is
      local _, drawn = model:predict(obs, action, true)
      lu.assertAlmostEquals((drawn - reward):std():item(), 0.5, 0.1)
    end
  end
end

function TestPlanning.test_row_i_is_predicted_by_member_i_modulo_members_of_its_learner()
  peri.seed(8)
  local model = rl.Dynamics { inputs = 2, actions = 1, members = 3, seeds = { 1, 2 }, hidden = { 8 } }
  model:fit_scale(linear(2, 50, 0.1))
  local obs, action = peri.randn({ 2, 1, 2 }):expand { 2, 6, 2 }, peri.randn({ 2, 1, 1 }):expand { 2, 6, 1 }
  local led = model:predict(obs, action)
  for learner = 1, 2 do
    for i = 0, 5 do
      local one = model.net:single((i % 3) * 2 + learner)
      local x = (peri.cat({ obs:select(1, learner):select(1, 1), action:select(1, learner):select(1, 1) }, -1)
        - model.mean:select(1, learner):squeeze(1)) / model.spread:select(1, learner):squeeze(1)
      local y = one(x):narrow(-1, 1, 3) * model.scale:select(1, learner):squeeze(1) + model.shift:select(1, learner):squeeze(1)
      local want = obs:select(1, learner):select(1, 1) + y:narrow(-1, 1, 2)
      lu.assertTrue((led:select(1, learner):select(1, i + 1) - want):abs():max():item() < 1e-4)
    end
  end
end

-- Means and deviations are of what is known, however large or small; what never changes has no part.
function TestPlanning.test_scales_make_inputs_and_targets_of_mean_0_and_deviation_1()
  peri.seed(9)
  local batch = linear(2, 200, 0.1)
  batch.obs = batch.obs * 1000 + 5e3
  batch.next_obs = batch.obs + peri.randn(batch.obs.shape) * 1e-2
  batch.action = peri.full(batch.action.shape, 3)
  local model = rl.Dynamics { inputs = 2, actions = 1, seeds = { 1, 2 } }
  model:fit_scale(batch)
  local x = (peri.cat({ batch.obs, batch.action }, -1) - model.mean) / model.spread
  lu.assertTrue(x:mean(2):abs():max():item() < 1e-3)
  lu.assertTrue((x:narrow(-1, 1, 2):square():mean(2) - 1):abs():max():item() < 1e-3)
  lu.assertTrue(x:narrow(-1, 3, 1):abs():max():item() < 1e-3)
end

function TestPlanning.test_wrong_shapes_are_named()
  local model = rl.Dynamics { inputs = 2, actions = 1, members = 2, seeds = { 1, 2 } }
  lu.assertErrorMsgContains("the batch has no action", model.fit_scale, model, { obs = peri.zeros { 2, 1, 2 } })
  local b = linear(1, 4, 0)
  lu.assertErrorMsgContains("observations have shape (1, 4, 2), expected (2, n, 2)", model.fit_scale, model, b)
  lu.assertErrorMsgContains("expected (2, 2, n, 2)", model.loss, model, linear(2, 4, 0))
  lu.assertErrorMsgContains("5 rows are not shared out by 2 members", model.predict, model, peri.zeros { 2, 5, 2 },
    peri.zeros { 2, 5, 1 })
end

os.exit(lu.LuaUnit.run())
