-- Tables of action values: how they choose, what they learn from, and that the recipe's rules reach the exact optimum.
local lu = require "luaunit"
local peri = require "perilune"
local child = require "child"
local scratch = require "scratch"
local rl = peri.rl

TestTabular = {}

local function lake(opts) return peri.env.make("FrozenLake-v1", opts) end

local function shares(n, actions, choose)
  local count = {}
  for a = 1, actions do count[a] = 0 end
  for _ = 1, n do
    local a = choose()
    count[a] = count[a] + 1 / n
  end
  return count
end

function TestTabular.test_epsilon_greedy_breaks_ties_at_random_and_tries_all_alike()
  local t = rl.tabular(lake(), { seed = 1 })
  t.q[1] = { 1, 3, 3, 0 }
  local share = shares(20000, 4, function () return t:epsilon_greedy(1, 0.4) end)
  for a, want in ipairs { 0.1, 0.4, 0.4, 0.1 } do lu.assertAlmostEquals(share[a], want, 0.015) end
  lu.assertEquals(t:greedy(1), 2)
  lu.assertEquals(t:max(1), 3)
end

function TestTabular.test_boltzmann_draws_by_the_exponential_of_values()
  local t = rl.tabular(lake(), { seed = 2 })
  t.q[5] = { 0, math.log(2), math.log(4), -1000 }
  local share = shares(20000, 4, function () return t:boltzmann(5, 1) end)
  for a, want in ipairs { 1 / 7, 2 / 7, 4 / 7, 0 } do lu.assertAlmostEquals(share[a], want, 0.015) end
end

function TestTabular.test_the_expected_value_is_that_of_epsilon_greedy()
  local t = rl.tabular(lake(), { seed = 3 })
  t.q[2] = { 1, 2, 4, 1 }
  lu.assertAlmostEquals(t:expected(2, 0.2), 0.8 * 4 + 0.2 * 2, 1e-12)
  lu.assertAlmostEquals(t:expected(2, 0), 4, 1e-12)
  lu.assertAlmostEquals(t:expected(2, 1), 2, 1e-12)
end

function TestTabular.test_the_step_size_falls_with_the_updates_of_a_value()
  local t = rl.tabular(lake(), { seed = 4, initial = 7 })
  local sum = 0
  for i = 1, 5 do
    t:update(3, 2, i * i, 1, 1)
    sum = sum + i * i
    lu.assertAlmostEquals(t.q[3][2], sum / i, 1e-12) -- omega 1: the mean, whatever it was at first
  end
  lu.assertEquals(t:update(3, 1, 9, 0.5, 0), 2)
  lu.assertEquals(t:update(3, 1, 9, 0.5, 0), 1)
  lu.assertEquals({ t.q[3][1], t.q[3][3], t.visits[3][1], t.visits[3][3] }, { 8.5, 7, 2, 0 })
end

function TestTabular.test_observations_of_several_numbers_are_one_state_each()
  local env = peri.env.make("Blackjack-v1", { seed = 1 })
  local t = rl.tabular(env, { seed = 1 })
  lu.assertEquals(t.states, 32 * 11 * 2)
  lu.assertEquals(t:state(peri.tensor({ 20, 7, 1 }, "i64")), (20 * 11 + 7) * 2 + 1 + 1)
  lu.assertEquals(t:state(peri.tensor({ 31, 10, 1 }, "i64")), t.states)
  t.q[t:state(peri.tensor({ 20, 7, 1 }, "i64"))] = { 0, 1 }
  local view = (20 * 11 + 7) * 2 + 1
  lu.assertEquals(t:policy()(view), 1)
  lu.assertEquals(t:policy()(view + t.states), 1) -- the model's naturals look like other hands
  lu.assertEquals(t:policy()(view - 1), 0)
end

-- Whatever is observed, the module of a table says the table's values, and a policy file acts by them.
function TestTabular.test_a_table_is_a_policy_file()
  for _, id in ipairs { "FrozenLake-v1", "Blackjack-v1", "Taxi-v4" } do
    local env = peri.env.make(id, { seed = 5 })
    local t, rng = rl.tabular(env, { seed = 5 }), peri.env.rng(5)
    for s = 1, t.states do
      for a = 1, t.actions do t.q[s][a] = rng:normal() end
    end
    local path = os.tmpname()
    local obs = env:reset()
    rl.policy.save(path, { net = t:network(), head = "greedy", env = env })
    local policy = assert(rl.policy.load(path))
    for _ = 1, 20 do
      local action = t:greedy(t:state(obs)) - 1
      lu.assertEquals(policy:act(obs, { deterministic = true }), action)
      local terminated, truncated
      obs, _, terminated, truncated = env:step(action)
      if terminated or truncated then obs = env:reset() end
    end
    os.remove(path)
  end
end

function TestTabular.test_a_state_goes_on_with_the_same_draws()
  local a, b = rl.tabular(lake(), { seed = 6 }), rl.tabular(lake(), { seed = 7 })
  a:update(1, 2, 5, 1, 0.5)
  a:epsilon_greedy(1, 1)
  b:load_state_dict(a:state_dict())
  lu.assertEquals({ b.q, b.visits }, { a.q, a.visits })
  for _ = 1, 20 do lu.assertEquals(a:epsilon_greedy(1, 0.7), b:epsilon_greedy(1, 0.7)) end
  local other = rl.tabular(peri.env.make "Taxi-v4", { seed = 1 })
  lu.assertErrorMsgContains("q has shape (16, 4), expected (500, 6)", other.load_state_dict, other, a:state_dict())
end

function TestTabular.test_what_is_no_table_is_refused()
  for message, env in pairs {
    ["observations are a Box"] = peri.env.make "CartPole-v1",
    ["make it without n"] = lake { n = 2 },
  } do lu.assertErrorMsgContains(message, rl.tabular, env) end
  lu.assertErrorMsgContains('unknown option "alpha"', rl.tabular, lake(), { alpha = 1 })
end

-- ---- the recipe ----

local function learned(flags)
  local folder = scratch.folder()
  local command = ("%s run recipes/classic/q_learning.lua --seeds 1 --interval 100000 --runs %s --run r %s >%s/log 2>&1")
    :format(child.program, folder, flags, folder)
  lu.assertTrue(os.execute(command) == true, peri.files.read(folder .. "/log"))
  local last
  for line in peri.files.lines(folder .. "/r/metrics.jsonl") do last = peri.json.decode(line) end
  peri.files.remove_tree(folder)
  return last
end

-- Within 5 % of what dynamic programming says.
for name, flags in pairs {
  lake = "--env FrozenLake-v1 --steps 300000", cliff = "--env CliffWalking-v1 --steps 300000",
  taxi = "--env Taxi-v4 --steps 500000", wide_lake = "--env FrozenLake8x8-v1 --steps 2000000 --final 0.3",
  blackjack = "--env Blackjack-v1 --steps 500000 --final 0.6 --omega 0.9",
  sarsa = "--rule sarsa --steps 500000 --final 0.02", expected_sarsa = "--rule expected_sarsa --steps 500000 --final 0.02",
  double = "--rule double --steps 500000", boltzmann = "--explore boltzmann --steps 500000 --temperature 0.2",
} do
  TestTabular["test_the_recipe_reaches_the_optimum_" .. name] = function ()
    local row = learned(flags)
    lu.assertTrue(row.value >= row.optimum - 0.05 * math.abs(row.optimum), ("%g of %g"):format(row.value, row.optimum))
  end
end

-- The cliff (Sutton and Barto, example 6.6): who learns the value of what it does keeps away from the edge, who learns
-- that of the best walks along it and falls in while it explores.
function TestTabular.test_sarsa_earns_more_while_it_explores_q_learning_has_the_better_policy()
  local flags = "--env CliffWalking-v1 --epsilon 0.1 --final 0.1 --omega 0 --alpha 0.5 --steps 300000 --rule "
  local q, sarsa = learned(flags .. "q"), learned(flags .. "sarsa")
  lu.assertEquals(q.value, -13)
  lu.assertTrue(sarsa.value < q.value)
  lu.assertTrue(sarsa["return"] > q["return"] + 10, ("%g %g"):format(sarsa["return"], q["return"]))
end

os.exit(lu.LuaUnit.run())
