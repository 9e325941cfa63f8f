-- Two levels of policies: whose subgoal is open, and the credit of decisions that last, beside brute force.
local lu = require "luaunit"
local peri = require "perilune"
local rl = peri.rl

local function bools(list) return peri.tensor(list, "u8"):ne(0) end

-- ---- credit ----

TestSmdp = {}

-- Steps of episodes and decisions drawn at random; a decision begins each episode.
local function drawn(steps, rows, rng, frequent)
  local x = { reward = {}, terminated = {}, truncated = {}, chosen = {}, obs = {}, final_obs = {} }
  local ended = {}
  for r = 1, rows do ended[r] = rng:uniform() < 0.5 end
  for t = 1, steps do
    for name in pairs(x) do x[name][t] = {} end
    for r = 1, rows do
      x.chosen[t][r] = (ended[r] or rng:uniform() < frequent) and 1 or 0
      x.reward[t][r] = rng:normal()
      x.terminated[t][r] = rng:uniform() < 0.15 and 1 or 0
      x.truncated[t][r] = rng:uniform() < 0.15 and 1 or 0
      x.obs[t][r], x.final_obs[t][r] = { rng:normal() }, { rng:normal() }
      ended[r] = x.terminated[t][r] + x.truncated[t][r] > 0
    end
  end
  local rollout = peri.rollout { steps = steps, rows = rows, fields = { obs = { "f64", 1 }, final_obs = { "f64", 1 },
    reward = "f64", terminated = "bool", truncated = "bool", chosen = "bool" } }
  local fields = {}
  for name, list in pairs(x) do
    fields[name] = name:find "^t" == nil and name ~= "chosen" and peri.tensor(list, "f64") or bools(list)
  end
  rollout:put(fields)
  return rollout, x
end

-- The same by the definition: the rewards of each decision one by one, then the decisions of an episode one by one.
local function by_hand(x, last, gamma, lam, ignore)
  local steps, rows, out = #x.reward, #x.reward[1], {}
  for t = 1, steps do out[t] = {} end
  for r = 1, rows do
    for t = 1, steps do
      local total, weight, at, first = 0, 1, t, true
      while x.chosen[t][r] == 1 do -- along the decisions from t on, each with gamma lam of the one before
        local value, rewards, discount, over = x.obs[at][r][1], 0, 1, nil
        local k = at
        while true do
          rewards, discount = rewards + discount * x.reward[k][r], discount * gamma
          if x.terminated[k][r] == 1 or ignore and x.truncated[k][r] == 1 then over = 0
          elseif x.truncated[k][r] == 1 then over = x.final_obs[k][r][1]
          elseif k == steps then over = last[r]
          end
          if over or x.chosen[k + 1][r] == 1 then break end
          k = k + 1
        end
        local after = over or x.obs[k + 1][r][1]
        total = total + weight * (rewards + discount * after - value)
        if over then break end
        weight, at, first = weight * discount * lam, k + 1, false
      end
      out[t][r] = total
      assert(first ~= nil)
    end
  end
  return peri.tensor(out, "f64")
end

function TestSmdp.test_it_is_the_definition_by_brute_force()
  local rng = peri.rng(1)
  for case = 1, 24 do
    local steps, rows = rng:int(1, 12), rng:int(1, 4)
    local rollout, x = drawn(steps, rows, rng, ({ 0, 0.2, 0.6, 1 })[case % 4 + 1])
    local last = {}
    for r = 1, rows do last[r] = rng:normal() end
    for _, truncation in ipairs { "bootstrap", "ignore" } do
      local o = { value = function (obs) return obs:squeeze(-1) end, last = peri.tensor(last, "f64"):unsqueeze(2),
        gamma = 0.9, lam = 0.7, truncation = truncation }
      local got = rl.smdp_gae(rollout, o)
      local want = by_hand(x, last, 0.9, 0.7, truncation == "ignore")
      lu.assertTrue(got.advantage:sub(want):abs():max():item() < 1e-12, ("case %d, %s"):format(case, truncation))
      local chosen = rollout:get("chosen"):to "f64"
      local value = rollout:get("obs"):squeeze(-1)
      lu.assertTrue(got.value:sub(value:mul(chosen)):abs():max():item() == 0)
      lu.assertTrue(got.returns:sub(want:add(value):mul(chosen)):abs():max():item() < 1e-12)
    end
  end
end

function TestSmdp.test_with_a_decision_at_every_step_it_is_gae_also_of_several_learners()
  local rng = peri.rng(2)
  local rollout = drawn(9, 6, rng, 1)
  local function value(obs) return obs:squeeze(-1):mul(peri.tensor({ { 1 }, { 2 }, { 3 } }, "f64")) end -- (3, n)
  local o = { value = value, last = peri.randn({ 6, 1 }, "f64"), gamma = 0.95, lam = 0.8, seeds = 3 }
  local got, want = rl.smdp_gae(rollout, o), rl.gae(rollout, o)
  for name, x in pairs(want) do lu.assertTrue(got[name]:sub(x):abs():max():item() < 1e-12, name) end
end

-- Rewards of 1, no values: a decision of k steps that truncates is worth 1 + gamma + ... and gamma^k of what was cut.
function TestSmdp.test_an_episode_that_is_cut_in_the_middle_of_a_decision_goes_on_in_value()
  local rollout = peri.rollout { steps = 4, rows = 1, fields = { obs = { "f32", 1 }, final_obs = { "f32", 1 },
    reward = "f32", terminated = "bool", truncated = "bool", chosen = "bool" } }
  rollout:put { obs = peri.zeros { 4, 1, 1 }, final_obs = peri.full({ 4, 1, 1 }, 10), reward = peri.ones { 4, 1 },
    terminated = bools { { 0 }, { 0 }, { 0 }, { 0 } }, truncated = bools { { 0 }, { 0 }, { 1 }, { 0 } },
    chosen = bools { { 1 }, { 0 }, { 0 }, { 1 } } }
  local a = rl.smdp_gae(rollout, { value = function (x) return x:squeeze(-1) end, last = peri.full({ 1, 1 }, 4),
    gamma = 0.5, lam = 1 }).advantage:squeeze(-1):tolist()
  lu.assertEquals(a, { 1 + 0.5 + 0.25 + 0.125 * 10, 0, 0, 1 + 0.5 * 4 })
end

function TestSmdp.test_a_new_episode_without_a_decision_is_refused()
  local rng = peri.rng(3)
  local rollout = drawn(3, 2, rng, 0)
  rollout:put { terminated = bools { { 0, 0 }, { 0, 1 }, { 0, 0 } }, truncated = bools { { 0, 0 }, { 0, 0 }, { 0, 0 } },
    chosen = bools { { 1, 1 }, { 0, 0 }, { 0, 0 } } }
  local o = { value = function (x) return x:squeeze(-1) end, last = peri.zeros({ 2, 1 }, "f64") }
  lu.assertErrorMsgContains("rl.smdp_gae: the episode of row 2 ended at step 2, and none was chosen at the next",
    rl.smdp_gae, rollout, o)
  o.chosen = peri.ones({ 2, 2 }, "bool")
  lu.assertErrorMsgContains("chosen has shape (2, 2), expected (3, 2)", rl.smdp_gae, rollout, o)
  o.seeds = 3
  o.chosen = peri.ones({ 3, 2 }, "bool")
  lu.assertErrorMsgContains("seeds is 3, which does not divide the 2 rows", rl.smdp_gae, rollout, o)
end

-- ---- subgoals ----

TestSubgoals = {}

local function along(n, steps) -- observations are numbers, and so are subgoals
  return rl.subgoals { rows = n, steps = steps, reached = function (obs, goal) return obs:eq(goal) end }
end

function TestSubgoals.test_one_holds_until_it_is_reached_or_its_steps_run_out()
  local sub, rng = along(3, 4), peri.rng(4)
  local goal, age, open = {}, {}, { true, true, true } -- the same in plain Lua
  for _ = 1, 60 do
    local new, obs = {}, {}
    for r = 1, 3 do new[r], obs[r] = rng:int(0, 5), rng:int(0, 5) end
    local chosen = sub:set(peri.tensor(new, "i64")):to("u8"):tolist()
    for r = 1, 3 do
      lu.assertEquals(chosen[r] == 1, open[r])
      if open[r] then goal[r], age[r] = new[r], 0 end
    end
    lu.assertEquals(sub.goal:tolist(), goal)
    local reached, out = sub:look(peri.tensor(obs, "i64"))
    local ended = reached:logical_or(out)
    for r = 1, 3 do
      lu.assertEquals(reached:tolist()[r], obs[r] == goal[r])
      lu.assertEquals(out:tolist()[r], obs[r] ~= goal[r] and age[r] == 3)
      open[r], age[r] = obs[r] == goal[r] or age[r] == 3, age[r] + 1
    end
    sub:close(ended)
    local other = along(3, 4) -- a run that was resumed goes on as if nothing had happened
    other:set_state(peri.json.decode(peri.json.encode(sub:state())))
    sub = other
  end
end

function TestSubgoals.test_what_does_not_fit_is_named()
  local sub = along(2, 3)
  lu.assertErrorMsgContains("goal has shape (3), expected (2)", sub.set, sub, peri.zeros({ 3 }, "i64"))
  lu.assertErrorMsgContains("what reached gave has shape (2, 2), expected (2)", sub.look, sub, peri.zeros({ 2, 1 }, "i64"))
  lu.assertErrorMsgContains("ended is missing", sub.close, sub)
  lu.assertErrorMsgContains("the state is of 3 rows, these are 2", sub.set_state, sub, along(3, 3):state())
  lu.assertErrorMsgContains("rl.subgoals: reached is missing", rl.subgoals, { rows = 1, steps = 1 })
  sub:set(peri.zeros({ 2 }, "i64"))
  sub:drop()
  lu.assertEquals(sub.open:tolist(), { true, true })
end

os.exit(lu.LuaUnit.run())
