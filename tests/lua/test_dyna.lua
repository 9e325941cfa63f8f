-- Models that are counted: outcomes as often as they came, planning that comes to the optimum.
local lu = require "luaunit"
local peri = require "perilune"
local rl = peri.rl

TestDyna = {}

function TestDyna.test_outcomes_are_drawn_as_often_as_they_were_seen_and_pairs_all_alike()
  local model = rl.tabular_model { seed = 1 }
  for _ = 1, 3 do model:observe(1, 1, 0, 2, false) end
  model:observe(1, 1, 5, 3, true)
  model:observe(2, 4, -1, 1, false)
  local n, ends, second = 40000, 0, 0
  for _ = 1, n do
    local s, a, reward, after, over = model:draw()
    if s == 2 then
      lu.assertEquals({ a, reward, after, over }, { 4, -1, 1, false })
      second = second + 1
    elseif over then
      lu.assertEquals({ reward, after }, { 5, 3 })
      ends = ends + 1
    else lu.assertEquals({ a, reward, after }, { 1, 0, 2 }) end
  end
  lu.assertAlmostEquals(second / n, 1 / 2, 0.02) -- 8 deviations
  lu.assertAlmostEquals(ends / (n - second), 1 / 4, 0.025)
end

-- Every state and action of an environment told once by its own model: planning alone comes to its exact values.
function TestDyna.test_planning_in_a_whole_model_comes_to_the_exact_values()
  for _, id in ipairs { "GridWorld-v0", "CliffWalking-v1" } do
    local env = peri.env.make(id, id == "GridWorld-v0" and { slip = 0 } or {})
    local facts, model = env:model(), rl.tabular_model { seed = 2 }
    local values = rl.tabular(env, { seed = 2 })
    for s = 0, facts.states - 1 do
      for a = 0, facts.actions - 1 do
        local o = facts.transitions[s][a][1]
        model:observe(s + 1, a + 1, o.reward, o.next + 1, o.terminated)
      end
    end
    for _ = 1, 60 * #model.pairs do
      local s, a, reward, after, over = model:draw()
      values:update(s, a, reward + (over and 0 or 0.9 * values:max(after)), 1, 0)
    end
    local _, _, exact = peri.env.optimal(env, { steps = 0, discount = 0.9 })
    for s = 0, facts.states - 1 do lu.assertAlmostEquals(values:max(s + 1), exact[s], 1e-6) end
  end
end

-- Steps of the environment until the greedy policy is optimal, in a corridor whose end pays.
local function steps_until_optimal(planning, seed)
  local env = peri.env.make("GridWorld-v0", { slip = 0, step_reward = 0, seed = seed, map =
    "S......./.######./.......G" })
  local values, model = rl.tabular(env, { seed = seed }), rl.tabular_model { seed = seed }
  local how = { steps = 30, discount = 0.9 }
  local optimum = peri.env.optimal(env, how)
  local s = values:state(env:reset())
  for t = 1, 20000 do
    local a = values:epsilon_greedy(s, 0.2)
    local obs, reward, over, cut = env:step(a - 1)
    local after = values:state(obs)
    values:update(s, a, reward + (over and 0 or 0.9 * values:max(after)), 0.5, 0)
    model:observe(s, a, reward, after, over)
    for _ = 1, planning do
      local s1, a1, r1, after1, over1 = model:draw()
      values:update(s1, a1, r1 + (over1 and 0 or 0.9 * values:max(after1)), 0.5, 0)
    end
    s = (over or cut) and values:state(env:reset()) or after
    if over and peri.env.evaluate(env, values:policy(), how) > optimum - 1e-9 then return t end
  end
  return math.huge
end

function TestDyna.test_planning_needs_fewer_steps_of_the_environment_than_q_learning()
  local plain, planned = {}, {}
  for seed = 1, 5 do
    plain[seed], planned[seed] = steps_until_optimal(0, seed), steps_until_optimal(20, seed)
  end
  lu.assertTrue(2 * rl.iqm(planned) < rl.iqm(plain), ("%g, %g"):format(rl.iqm(planned), rl.iqm(plain)))
end

function TestDyna.test_the_bonus_is_the_root_of_the_steps_since_and_the_last_outcome_may_be_all_that_counts()
  local model = rl.tabular_model { seed = 3, kappa = 0.5, last = true }
  model:observe(1, 1, 1, 2, false)
  model:observe(1, 1, 2, 3, false)
  lu.assertEquals({ model:draw() }, { 1, 1, 2, 3, false })
  for _ = 1, 9 do model:observe(2, 1, 0, 2, false) end
  for _ = 1, 50 do
    local s, _, reward = model:draw()
    lu.assertAlmostEquals(reward, s == 1 and 2 + 0.5 * 3 or 0, 1e-12)
  end
end

function TestDyna.test_actions_of_a_state_that_were_not_tried_lead_back_to_it_without_reward_until_they_are()
  local model = rl.tabular_model { seed = 5, actions = 3 }
  model:observe(7, 2, 1, 8, true)
  lu.assertEquals(#model.pairs, 3)
  for _ = 1, 50 do
    local s, a, reward, after, over = model:draw()
    lu.assertEquals({ s, reward, after, over }, a == 2 and { 7, 1, 8, true } or { 7, 0, 7, false })
  end
  model:observe(7, 1, 4, 9, false)
  model:observe(7, 1, 4, 9, false)
  lu.assertEquals(model.pairs[1].count, 2)
  for _ = 1, 50 do
    local _, a, reward = model:draw()
    lu.assertEquals(reward, a == 1 and 4 or a == 2 and 1 or 0)
  end
end

function TestDyna.test_a_model_goes_on_from_its_state_as_if_nothing_had_happened()
  local a = rl.tabular_model { seed = 4, kappa = 0.1, actions = 3 }
  local rng = peri.env.rng(1)
  local function feed(model, n, with)
    for _ = 1, n do
      model:observe(with:integer(5) + 1, with:integer(3) + 1, with:integer(2) - 0.5, with:integer(5) + 1, with:integer(4) == 0)
    end
  end
  feed(a, 200, rng)
  for _ = 1, 7 do a:draw() end
  local b = rl.tabular_model { seed = 9, kappa = 0.1, actions = 3 }
  b:load_state_dict(a:state_dict())
  local r1, r2 = peri.env.rng(2), peri.env.rng(2)
  feed(a, 50, r1)
  feed(b, 50, r2)
  for _ = 1, 500 do lu.assertEquals({ a:draw() }, { b:draw() }) end
  local empty = rl.tabular_model { seed = 1 }
  b:load_state_dict(empty:state_dict())
  lu.assertErrorMsgContains("nothing was observed yet", b.draw, b)
  lu.assertErrorMsgContains("outcomes has shape (2), expected (n, 8)", b.load_state_dict, b,
    { outcomes = peri.zeros { 2 }, time = peri.zeros { 1 }, rng = peri.zeros { 1 } })
end

os.exit(lu.LuaUnit.run())
