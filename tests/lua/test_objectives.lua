-- Several objectives: multipliers and group-relative advantages against their formulas, fronts and volumes against brute
-- force, worlds with known fronts, the wrapper of preferences; hindsight against the episodes; random search on a bowl.
local lu = require "luaunit"
local peri = require "perilune"
local rl = peri.rl

-- ---- multipliers ----

TestLagrange = {}

function TestLagrange.test_the_multiplier_is_gradient_ascent_on_the_dual_by_default()
  local price, want = rl.lagrange { limit = 2, seeds = 3, rate = 0.3, first = 0.1 }, { 0.1, 0.1, 0.1 }
  local rng = peri.rng(1)
  for _ = 1, 50 do
    local cost = { rng:uniform(0, 4), rng:uniform(1, 5), rng:uniform(0, 2) }
    local value = price:update(peri.tensor(cost, "f64")):tolist()
    for i = 1, 3 do
      want[i] = math.max(0, want[i] + 0.3 * (cost[i] - 2))
      lu.assertAlmostEquals(value[i], want[i], 1e-12)
    end
  end
end

function TestLagrange.test_gains_are_those_of_a_pid_controller()
  local price = rl.lagrange { limit = 1, rate = 0.1, proportional = 2, derivative = 5, most = 30 }
  local integral, last = 0, nil
  for _, cost in ipairs { 3, 4, 2, 0, 0, 5, 1, 20, 0 } do
    integral = math.min(30, math.max(0, integral + 0.1 * (cost - 1)))
    local want = 2 * (cost - 1) + integral + 5 * math.max(0, cost - (last or cost))
    lu.assertAlmostEquals(price:update(cost):item(), math.min(30, math.max(0, want)), 1e-12)
    last = cost
  end
  local again = rl.lagrange { limit = 1, rate = 0.1, proportional = 2, derivative = 5, most = 30 }
  again:set_state(peri.json.decode(peri.json.encode(price:state())))
  lu.assertEquals(again:update(3):item(), price:update(3):item())
end

function TestLagrange.test_advantages_are_weighed_by_the_learners_own_price()
  peri.seed(1)
  local price = rl.lagrange { limit = 0, seeds = 2, rate = 1 }
  price:update(peri.tensor({ 0.5, 3 }, "f64"))
  local a, c = peri.randn { 4, 6 }, peri.randn { 4, 6 }
  local got = price:advantage(a, c):tolist()
  for t = 1, 4 do
    for row = 1, 6 do
      local lambda = row <= 3 and 0.5 or 3
      lu.assertAlmostEquals(got[t][row], (a:tolist()[t][row] - lambda * c:tolist()[t][row]) / (1 + lambda), 1e-6)
    end
  end
end

function TestLagrange.test_what_is_no_cost_is_refused()
  local price = rl.lagrange { limit = 0, seeds = 2 }
  lu.assertErrorMsgContains("expected (2)", price.update, price, peri.zeros { 3 })
  lu.assertErrorMsgContains("not finite", price.update, price, peri.tensor({ 0, 0 / 0 }, "f64"))
  lu.assertErrorMsgContains("expected (steps, rows)", price.advantage, price, peri.zeros { 2, 3 }, peri.zeros { 2, 3 })
  lu.assertErrorMsgContains("limit is missing", rl.lagrange, {})
  lu.assertErrorMsgContains("no 2 numbers integral", price.set_state, price, { integral = { 1 } })
end

-- Brute force: of every step what follows it in its episode, over all finished steps of the learner.
function TestLagrange.test_group_advantages_are_the_rest_of_the_episode_in_units_of_the_group()
  peri.seed(2)
  for _ = 1, 8 do
    local steps, seeds, each = 9, 2, 3
    local reward, over = peri.randn { steps, seeds * each }, peri.rand({ steps, seeds * each }):lt(0.25)
    local r, e = reward:tolist(), over:tolist()
    local got = rl.group_advantage(reward, over, { seeds = seeds }):tolist()
    for s = 1, seeds do
      local follow, list = {}, {}
      for row = (s - 1) * each + 1, s * each do
        for t = 1, steps do
          local sum, k, done = 0, t, false
          while k <= steps and not done do
            sum, done, k = sum + r[k][row], e[k][row], k + 1
          end
          if done then
            follow[t * 100 + row] = sum
            list[#list + 1] = sum
          end
        end
      end
      local mean, square = 0, 0
      for _, x in ipairs(list) do mean = mean + x / #list end
      for _, x in ipairs(list) do square = square + (x - mean) ^ 2 / #list end
      for row = (s - 1) * each + 1, s * each do
        for t = 1, steps do
          local x = follow[t * 100 + row]
          lu.assertAlmostEquals(got[t][row], x and (x - mean) / (square ^ 0.5 + 1e-8) or 0, 2e-4)
        end
      end
    end
  end
end

function TestLagrange.test_a_scale_of_an_objective_does_not_weigh()
  peri.seed(3)
  local reward, over = peri.randn { 12, 4 }, peri.rand({ 12, 4 }):lt(0.3)
  local a, b = rl.group_advantage(reward, over), rl.group_advantage(reward * 1000, over)
  lu.assertTrue((a - b):abs():max():item() < 1e-3)
end

-- Generalised advantages of a cost are those of a rollout whose reward it is.
function TestLagrange.test_gae_takes_another_reward()
  peri.seed(4)
  local rollout = peri.rollout { steps = 5, rows = 2, fields = { obs = { "f32", 3 }, reward = "f32", terminated = "bool",
    truncated = "bool", final_obs = { "f32", 3 } } }
  rollout:put { obs = peri.randn { 5, 2, 3 }, final_obs = peri.randn { 5, 2, 3 }, reward = peri.randn { 5, 2 },
    terminated = peri.rand({ 5, 2 }):lt(0.2), truncated = peri.rand({ 5, 2 }):lt(0.2) }
  local cost, last = peri.randn { 5, 2 }, peri.randn { 2, 3 }
  local how = { value = function (x) return x:sum(-1) end, last = last }
  how.reward = cost
  local a = rl.gae(rollout, how).advantage
  how.reward = nil
  rollout:put { reward = cost }
  lu.assertTrue((a - rl.gae(rollout, how).advantage):abs():max():item() == 0)
  how.reward = peri.zeros { 2, 5 }
  lu.assertErrorMsgContains("reward is (2, 5), expected (5, 2)", rl.gae, rollout, how)
end

-- ---- fronts ----

TestPareto = {}

local function better(a, b)
  local some = false
  for i = 1, #a do
    if a[i] < b[i] then return false end
    some = some or a[i] > b[i]
  end
  return some
end

function TestPareto.test_the_front_is_what_nothing_beats()
  local rng = peri.rng(5)
  for round = 1, 40 do
    local points = {}
    for i = 1, 1 + round % 12 do
      points[i] = {}
      for d = 1, 1 + round % 3 do points[i][d] = math.floor(rng:uniform(0, 5)) end
    end
    local front, seen = rl.pareto(points), {}
    for _, p in ipairs(front) do
      for _, q in ipairs(points) do lu.assertFalse(better(q, p)) end
      local key = table.concat(p, " ")
      lu.assertNil(seen[key])
      seen[key] = true
    end
    for _, p in ipairs(points) do
      local beaten = false
      for _, q in ipairs(front) do beaten = beaten or better(q, p) end
      lu.assertTrue(beaten or seen[table.concat(p, " ")])
    end
  end
end

-- On a grid of whole numbers the volume is a number of cells.
function TestPareto.test_the_hypervolume_is_a_count_of_cells()
  local rng = peri.rng(6)
  for round = 1, 40 do
    local d, points = 1 + round % 3, {}
    for i = 1, round % 7 do
      points[i] = {}
      for k = 1, d do points[i][k] = math.floor(rng:uniform(-1, 5)) end
    end
    local cells = 0
    for x = 0, 4 do
      for y = 0, d > 1 and 4 or 0 do
        for z = 0, d > 2 and 4 or 0 do
          local covered = false
          for _, p in ipairs(points) do
            covered = covered or (p[1] > x and (d < 2 or p[2] > y) and (d < 3 or p[3] > z))
          end
          cells = cells + (covered and 1 or 0)
        end
      end
    end
    local reference = { 0, 0, 0 }
    lu.assertEquals(rl.hypervolume(points, table.move(reference, 1, d, 1, {})), cells)
  end
  lu.assertErrorMsgContains("point 2 has 1 numbers", rl.pareto, { { 1, 2 }, { 1 } })
  lu.assertErrorMsgContains("the reference has 1", rl.hypervolume, { { 1, 2 } }, { 1 })
end

-- ---- a world of objectives ----

local SEA <const> = { "S.........", "0.........", "#1........", "##2.......", "###345....", "######....", "######....",
  "######67..", "########..", "########8.", "#########9" }
local function sea(more)
  local o = { map = SEA, treasures = "0.7,8.2,11.5,14,15.1,16.1,19.6,20.3,22.4,23.7", slip = 0, step_reward = 0,
    max_steps = 40 }
  for name, v in pairs(more or {}) do o[name] = v end
  return peri.env.make("GridWorld-v0", o)
end

-- Of Yang, Sun and Narasimhan (2019) and mo-gymnasium's deep-sea-treasure-v0: treasure and steps.
function TestPareto.test_the_front_of_deep_sea_treasure_is_the_published_one()
  local steps = { [0.7] = 1, [8.2] = 3, [11.5] = 5, [14] = 7, [15.1] = 8, [16.1] = 9, [19.6] = 13, [20.3] = 14,
    [22.4] = 17, [23.7] = 19 }
  local world, most, n = sea(), 0, 0
  for t = 1, 22 do
    local v = peri.env.optimal(world, { steps = t })
    if v > most then
      lu.assertEquals(steps[v], t)
      most, n = v, n + 1
    end
  end
  lu.assertEquals(n, 10)
end

function TestPareto.test_metrics_are_the_objectives_and_the_reward_weighs_them()
  local env = peri.env.make("GridWorld-v0", { map = "SH0/.H1/XHG", treasures = { 2, 5 }, slip = 0.3, n = 6, seed = 1,
    step_reward = -0.25, hazard_reward = -3, reward_dtype = "f64" })
  lu.assertEquals(env.metric_names, { "gain", "time", "hazard" })
  env:reset()
  local gains, hazards = {}, 0
  for _ = 1, 200 do
    local _, reward, terminated = env:step(env:sample())
    local m, r, over = env.metrics:tolist(), reward:tolist(), terminated:tolist()
    for i = 1, 6 do
      lu.assertAlmostEquals(r[i], m[i][1] - 0.25 * m[i][2] - 3 * m[i][3], 1e-12)
      lu.assertEquals(m[i][2], 1)
      lu.assertEquals(m[i][1] ~= 0, over[i])
      gains[m[i][1]], hazards = true, hazards + m[i][3]
    end
  end
  for _, v in ipairs { 2, 5, 1, -1 } do lu.assertTrue(gains[v], v) end
  lu.assertTrue(hazards > 50)
end

function TestPareto.test_maps_with_treasures_of_no_value_are_refused()
  local function make(o) return function () return peri.env.make("GridWorld-v0", o) end end
  lu.assertErrorMsgContains("cell '1' has no treasure, there are 1", make { map = "S01", treasures = "3" })
  lu.assertErrorMsgContains("expected at most ten numbers", make { map = "S0", treasures = "3,x" })
  lu.assertErrorMsgContains("expected at most ten numbers", make { map = "S0", treasures = "1,2,3,4,5,6,7,8,9,10,11" })
  lu.assertErrorMsgContains("expected at most ten numbers", make { map = "S0", treasures = "inf" })
end

-- The value of a price is linear in what it prices: return - price * cost, of any policy.
function TestPareto.test_returns_under_a_price_are_return_less_price_times_cost()
  local map, rng = "SHHHG/..H../.....", peri.rng(7)
  local function world(o)
    o.map, o.slip, o.max_steps = map, 0.1, 30
    return peri.env.make("GridWorld-v0", o)
  end
  local costs = world { step_reward = 0, goal_reward = 0, hazard_reward = 1 }
  for _ = 1, 4 do
    local policy, price = {}, rng:uniform(0, 2)
    for s = 0, 14 do policy[s] = math.floor(rng:uniform(0, 4)) end
    local r, c = peri.env.evaluate(world {}, policy), peri.env.evaluate(costs, policy)
    lu.assertAlmostEquals(peri.env.evaluate(world { hazard_reward = -price }, policy), r - price * c, 1e-9)
  end
end

-- ---- preferences ----

TestPreferences = {}

local how = { objectives = { "gain", "-time" }, scales = { 1, 0.5 } }

function TestPreferences.test_rewards_are_weighed_objectives_and_weights_change_with_the_episode()
  peri.seed(8)
  local inner = sea { n = 5, seed = 2, max_steps = 6 }
  local env = peri.env.preferences(inner, how)
  lu.assertEquals(env.obs_space.shape, { 112 })
  local obs, changed = env:reset(), 0
  for _ = 1, 60 do
    local before = env.preference:clone()
    lu.assertTrue(obs:narrow(2, 111, 2):eq(before):all():item())
    lu.assertTrue((before:sum(2) - 1):abs():max():item() < 1e-6 and before:ge(0):all():item())
    local next_obs, reward, terminated, truncated = env:step(inner:sample())
    local want = inner.metrics:select(2, 1) * before:select(2, 1) - inner.metrics:select(2, 2) * before:select(2, 2) * 0.5
    lu.assertTrue((reward - want):abs():max():item() < 1e-6)
    lu.assertTrue((env.objectives * before):sum(2):sub(reward):abs():max():item() < 1e-6)
    lu.assertTrue(env.final_obs:narrow(2, 111, 2):eq(before):all():item()) -- what the step led to, under its weights
    local over, same = terminated:logical_or(truncated), env.preference:eq(before):all(2)
    lu.assertTrue(over:logical_or(same):all():item())
    changed = changed + over:logical_and(same:logical_not()):to("f32"):sum():item()
    lu.assertEquals(next_obs:narrow(2, 1, 110):sum(2):tolist(), { 1, 1, 1, 1, 1 })
    obs = next_obs
  end
  lu.assertTrue(changed >= 40)
end

function TestPreferences.test_a_state_goes_on_with_the_same_weights()
  peri.seed(9)
  local function make() return peri.env.preferences(sea { n = 3, seed = 2, max_steps = 5 }, how) end
  local a, b = make(), make()
  a:reset()
  for _ = 1, 7 do a:step(peri.tensor({ 1, 2, 3 }, "i64")) end
  local tensors, state = a:state_dict()
  b:load_state_dict(tensors, state)
  lu.assertTrue(a.obs:eq(b.obs):all():item())
  local at = peri.rng_state()
  local x = (a:step(peri.tensor({ 1, 1, 1 }, "i64")))
  peri.set_rng_state(at)
  lu.assertTrue(x:eq((b:step(peri.tensor({ 1, 1, 1 }, "i64")))):all():item())
end

function TestPreferences.test_fixed_weights_stay()
  local weights = peri.tensor({ { 1, 0 }, { 0.25, 0.75 } }, "f32")
  local env = peri.env.preferences(sea { n = 2, seed = 2, max_steps = 3 }, { objectives = how.objectives, weights = weights })
  local at = peri.rng_state()
  env:reset()
  for _ = 1, 10 do env:step(peri.tensor({ 0, 0 }, "i64")) end
  lu.assertTrue(env.preference:eq(weights):all():item())
  lu.assertEquals(peri.rng_state(), at) -- nothing is drawn
end

function TestPreferences.test_what_has_no_such_objectives_is_refused()
  local function refused(text, env, o) lu.assertErrorMsgContains(text, peri.env.preferences, env, o) end
  refused('no metric "speed"; it has gain, time, hazard', sea { n = 2 }, { objectives = { "-speed" } })
  refused("it has none", peri.env.make("CartPole-v1", { n = 2 }), { objectives = { "gain" } })
  refused("make it with n", sea(), { objectives = { "gain" } })
  refused("weights are (1, 2), expected (2, 1)", sea { n = 2 }, { objectives = { "gain" }, weights = peri.zeros { 1, 2 } })
  refused("scale 1 is -1", sea { n = 2 }, { objectives = { "gain" }, scales = { -1 } })
  refused("objectives is empty", sea { n = 2 }, { objectives = {} })
end

-- ---- hindsight ----

TestHindsight = {}

-- Episodes in which a step leads from x to x + 1, with no pause between them, in two groups of two rows.
local function walked(groups)
  local rows = 2 * (groups or 1)
  local buffer = peri.replay { capacity = 60, rows = rows, groups = groups, observed = { obs = { "f32", 2 } },
    fields = { goal = { "f32", 1 }, action = "i64" }, seed = 3 }
  local at, count, rng, known = {}, {}, peri.rng(10), {}
  for row = 1, rows do at[row], count[row] = row * 1000, 0 end
  for _ = 1, 50 do
    local obs, after, over, cut = {}, {}, {}, {}
    for row = 1, rows do
      count[row] = count[row] + 1
      obs[row], after[row] = { at[row], row }, { at[row] + 1, row }
      over[row] = count[row] == 7 or rng:uniform() < 0.1
      cut[row] = not over[row] and rng:uniform() < 0.05
      known[at[row]] = { row = row, last = over[row] or cut[row] }
      at[row] = at[row] + 1
      if over[row] or cut[row] then at[row], count[row] = at[row] + 10, 0 end
    end
    buffer:add { obs = peri.tensor(obs, "f32"), next_obs = peri.tensor(after, "f32"), goal = peri.full({ rows, 1 }, -1),
      action = peri.zeros({ rows }, "i64"), reward = peri.full({ rows }, -9), terminated = peri.tensor(over),
      truncated = peri.tensor(cut) }
  end
  return buffer, known, at
end

local function where(x) return x:narrow(-1, 1, 1) end
local options = { n = 400, length = 7, share = 0.75, achieved = where,
  reward = function (a, goal) return a:eq(goal):all(-1):to("f32") - 1 end,
  reached = function (a, goal) return a:eq(goal):all(-1) end }

local function check(b, known, group)
  local counts = { new = 0, here = 0, ahead = 0 }
  for i = 1, 400 do
    local function of(name) return group and b[name]:select(1, group):select(1, i) or b[name]:select(1, i) end
    local x, goal = of("obs"):tolist()[1], of("goal"):item()
    local row = known[x].row
    if group then lu.assertTrue(row == 2 * group - 1 or row == 2 * group) end
    lu.assertEquals(of("next_obs"):tolist()[1], x + 1)
    if of("relabelled"):item() then
      lu.assertTrue(goal > x and goal <= x + 7) -- reached by this step or a later one ...
      for between = x, goal - 2 do lu.assertFalse(known[between].last) end -- ... of the same episode
      lu.assertEquals(of("reward"):item(), goal == x + 1 and 0 or -1)
      lu.assertEquals(of("terminated"):item(), goal == x + 1)
      counts.new = counts.new + 1
      counts[goal == x + 1 and "here" or "ahead"] = counts[goal == x + 1 and "here" or "ahead"] + 1
    else
      lu.assertEquals({ goal, of("reward"):item() }, { -1, -9 })
      lu.assertFalse(of("terminated"):item() and not known[x].last)
    end
  end
  lu.assertAlmostEquals(counts.new / 400, 0.75, 0.1)
  lu.assertTrue(counts.here > 30 and counts.ahead > 30)
end

function TestHindsight.test_goals_are_what_the_episode_came_to_later_with_the_reward_and_end_that_they_have()
  peri.seed(11)
  local buffer, known = walked()
  check(rl.hindsight(buffer, options), known)
end

function TestHindsight.test_groups_have_goals_of_their_own_episodes()
  peri.seed(12)
  local buffer, known = walked(2)
  local b = rl.hindsight(buffer, options)
  lu.assertEquals(b.obs.shape, { 2, 400, 2 })
  for group = 1, 2 do check(b, known, group) end
end

function TestHindsight.test_without_a_share_it_is_the_replay()
  local buffer = walked()
  local o = {}
  for name, v in pairs(options) do o[name] = v end
  o.share = 0
  local b = rl.hindsight(buffer, o)
  lu.assertFalse(b.relabelled:any():item())
  lu.assertTrue(b.goal:eq(-1):all():item() and b.reward:eq(-9):all():item())
  local ranked = peri.replay { capacity = 9, observed = { obs = { "f32", 2 } }, fields = { goal = { "f32", 1 } },
    prioritised = true }
  for t = 1, 9 do
    ranked:add { obs = peri.full({ 2 }, t), next_obs = peri.full({ 2 }, t + 1), goal = peri.zeros { 1 }, reward = 0,
      terminated = false, truncated = false }
  end
  lu.assertErrorMsgContains("weight is no field of every step", rl.hindsight, ranked, o)
  o.goal = "target"
  lu.assertErrorMsgContains("no field target", rl.hindsight, buffer, o)
end

-- ---- random search ----

TestRandomSearch = {}

function TestRandomSearch.test_an_update_is_the_papers()
  peri.seed(13)
  local s = rl.random_search { inputs = 2, outputs = 3, seeds = 2, directions = 4, top = 2, rate = 0.5, deviation = 0.1,
    normalize = false }
  s.weight = peri.randn({ 2, 3, 2 }, "f64")
  s:ask()
  local before, delta = s.weight:clone(), s.delta:clone()
  local returns = peri.tensor({ { 1, 5, 2, 0, 3, -1, 9, 1 }, { 0, 0, 4, 4, 1, 2, 3, 8 } }, "f64")
  local sigma = s:tell(returns):tolist()
  local best = { { 3, 2 }, { 4, 3 } } -- by max(r+, r-)
  for seed = 1, 2 do
    local r, mean, square, move = returns:tolist()[seed], 0, 0, peri.zeros({ 3, 2 }, "f64")
    for _, k in ipairs(best[seed]) do mean = mean + (r[k] + r[k + 4]) / 4 end
    for _, k in ipairs(best[seed]) do square = square + ((r[k] - mean) ^ 2 + (r[k + 4] - mean) ^ 2) / 4 end
    for _, k in ipairs(best[seed]) do move = move + delta:select(1, seed):select(1, k) * (r[k] - r[k + 4]) end
    lu.assertAlmostEquals(sigma[seed], square ^ 0.5, 1e-12)
    local want = before:select(1, seed) + move * (0.5 / (2 * square ^ 0.5))
    lu.assertTrue((s.weight:select(1, seed) - want):abs():max():item() < 1e-9)
  end
end

function TestRandomSearch.test_statistics_are_those_of_all_that_was_counted()
  peri.seed(14)
  local s = rl.random_search { inputs = 3, outputs = 1, seeds = 2, directions = 2 }
  local all = { {}, {} }
  for _ = 1, 6 do
    local obs, counts = peri.randn { 8, 3 } * 3 + 1, peri.rand({ 8 }):lt(0.6)
    s:observe(obs, counts)
    for row, on in ipairs(counts:tolist()) do
      if on then table.insert(all[row <= 4 and 1 or 2], obs:tolist()[row]) end
    end
  end
  for seed = 1, 2 do
    local x = peri.tensor(all[seed], "f64")
    lu.assertEquals(s.count:tolist()[seed][1], #all[seed])
    lu.assertTrue((s.mean:select(1, seed) - x:mean(1)):abs():max():item() < 1e-5)
    local var = (x - x:mean(1)):square():mean(1)
    lu.assertTrue((s.square:select(1, seed) / #all[seed] - var):abs():max():item() < 1e-4)
  end
  s.weight = peri.randn({ 2, 1, 3 }, "f64")
  local obs = peri.randn { 10, 3 }
  local want, net = s:act(obs, true), s:network(2)
  lu.assertTrue((net(obs:narrow(1, 6, 5)) - want:narrow(1, 6, 5)):abs():max():item() < 1e-4)
end

-- A policy of one number without observations to speak of: the search climbs to the top of a parabola.
function TestRandomSearch.test_it_climbs()
  peri.seed(15)
  local s = rl.random_search { inputs = 1, outputs = 2, seeds = 3, directions = 6, top = 3, rate = 0.1, deviation = 0.05,
    normalize = false }
  for _ = 1, 150 do
    s:ask()
    local y = s:act(peri.ones { 36, 1 }):to "f64"
    s:tell(-((y:select(2, 1) - 2):square() + (y:select(2, 2) + 1):square()):reshape { 3, 12 })
  end
  for _, w in ipairs(s.weight:tolist()) do
    lu.assertAlmostEquals(w[1][1], 2, 0.3)
    lu.assertAlmostEquals(w[2][1], -1, 0.3)
  end
end

function TestRandomSearch.test_misuse_is_refused()
  local s = rl.random_search { inputs = 2, outputs = 1, directions = 2 }
  lu.assertErrorMsgContains("ask for policies", s.tell, s, peri.zeros { 1, 4 })
  lu.assertErrorMsgContains("ask for policies", s.act, s, peri.zeros { 4, 2 })
  s:ask()
  lu.assertErrorMsgContains("3 rows of each learner, expected 4", s.act, s, peri.zeros { 3, 2 })
  lu.assertErrorMsgContains("expected (1, 4)", s.tell, s, peri.zeros { 4 })
  lu.assertErrorMsgContains("not finite", s.tell, s, peri.full({ 1, 4 }, 0 / 0))
  lu.assertErrorMsgContains("top is 3", rl.random_search, { inputs = 1, outputs = 1, directions = 2, top = 3 })
  lu.assertErrorMsgContains("the state has no ", s.load_state_dict, s, {})
end

os.exit(lu.LuaUnit.run())
