-- The built-in environments: Gymnasium's episodes, models and their optima, batches that equal single rows.
local lu = require "luaunit"
local peri = require "perilune"

local all = peri.env.ids()
local builtin = { "Acrobot-v1", "Bandit-v0", "Blackjack-v1", "CartPole-v0", "CartPole-v1", "CliffWalking-v1",
  "CliffWalkingSlippery-v1", "ConnectFour-v0", "DeepSea-v0", "Forage-v0", "FrozenLake-v1", "FrozenLake8x8-v1",
  "GridWorld-v0", "MinBreakout-v0", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1", "Taxi-v4",
  "TicTacToe-v0" }

local function copy(t, more)
  local out = {}
  for k, v in pairs(t) do out[k] = v end
  for k, v in pairs(more or {}) do out[k] = v end
  return out
end

local function numbers(t) return t:reshape { t:numel() }:tolist() end

-- ---- episodes of Gymnasium (tests/reference/environments.py) ----

local cases = peri.json.decode(assert(peri.files.read "tests/data/environments.json"))
local values = peri.npz.load "tests/data/environments.npz"

-- The arrays of the cases, one after another.
local at = { f32 = 0, i32 = 0, f64 = 0 }
local function take(kind, n)
  at[kind] = at[kind] + n
  return values[kind]:narrow(1, at[kind] - n + 1, n):tolist()
end

-- Where two lists part: position and both values, nil when they are equal or within tol.
local function differ(got, want, from, tol)
  for i = 1, #got do
    local g, w = got[i], want[from + i]
    if g ~= w and (g ~= g or math.abs(g - w) > tol) then return i, g, w end
  end
end

local function replay(case)
  local act, obs = take(case.act, case.steps), take(case.obs, (case.steps + 1) * case.width)
  local reset, flags = take(case.obs, case.resets * case.width), take("i32", case.steps)
  local rewards = take("f64", case.steps)
  -- what libraries of other makers give for sine and cosine is not glibc's to the last bit
  local tol = case.id == "Acrobot-v1" and 1e-12 or 0
  local env = peri.env.make(case.id, copy(case.options, { n = 1, seed = case.seed, reward_dtype = "f64" }))
  local resets = 0
  local function same(what, t, got, want, from)
    local i, g, w = differ(got, want, from, tol)
    if i then
      lu.fail(("%s, seed %d, step %d: %s %d is %.17g, expected %.17g"):format(case.id, case.seed, t, what, i, g, w))
    end
  end
  same("first observation", 0, numbers(env:reset()), obs, 0)
  for t = 1, case.steps do
    local after, reward, terminated, truncated = env:step { act[t] }
    local ended = flags[t] ~= 0
    same("reward", t, numbers(reward), rewards, t - 1)
    same("flag", t, { (terminated:item() and 1 or 0) + (truncated:item() and 2 or 0) }, flags, t - 1)
    same("observation", t, numbers(ended and env.final_obs or after), obs, t * case.width)
    if ended then
      same("observation after reset", t, numbers(after), reset, resets * case.width)
      resets = resets + 1
    end
  end
  lu.assertEquals(resets, case.resets)
end

TestEnvBuiltin = {}

function TestEnvBuiltin.test_episodes_are_gymnasiums_bit_for_bit()
  for _, case in ipairs(cases) do replay(case) end
  lu.assertEquals(at, { f32 = values.f32:numel(), i32 = values.i32:numel(), f64 = values.f64:numel() })
end

-- ---- laws over all of them ----

local function chooser(env, n)
  local rng = peri.env.rng(n)
  local space = env.action_space
  return function ()
    local list = {}
    for i = 1, n * env.agents do
      list[i] = space.kind == "discrete" and rng:integer(space.n) or rng:uniform(-1.5, 1.5)
    end
    return list
  end
end

function TestEnvBuiltin.test_all_are_there()
  for _, id in ipairs(builtin) do lu.assertTableContains(all, id) end
end

function TestEnvBuiltin.test_a_batch_is_what_its_rows_are_alone()
  for _, id in ipairs(builtin) do
    local n = 37
    local many = peri.env.make(id, { n = n, seed = 5, threads = 2, reward_dtype = "f64" })
    local ones = {}
    for i = 1, n do ones[i] = peri.env.make(id, { n = 1, seed = 4 + i, reward_dtype = "f64" }) end
    local first, choose = numbers(many:reset()), chooser(many, n)
    local width = #first // n
    local function same(step, what, all_rows, one)
      for i = 1, n do
        local row = one(ones[i], i)
        for k = 1, #row do
          if row[k] ~= all_rows[(i - 1) * #row + k] then
            lu.fail(("%s, row %d, step %d: %s %d differs from the row alone"):format(id, i, step, what, k))
          end
        end
      end
    end
    same(0, "observation", first, function (e) return numbers(e:reset()) end)
    for step = 1, id == "Bandit-v0" and 3 or 120 do
      local actions = choose()
      local obs, reward = many:step(actions)
      local rewards = {}
      same(step, "observation", numbers(obs), function (e, i)
        local k = e.agents
        local o, r = e:step { table.unpack(actions, (i - 1) * k + 1, i * k) }
        table.move(numbers(r), 1, k, #rewards + 1, rewards)
        return numbers(o)
      end)
      lu.assertEquals(numbers(reward), rewards)
    end
    lu.assertEquals(width, #first // n)
  end
end

function TestEnvBuiltin.test_observations_lie_in_their_space()
  for _, id in ipairs(builtin) do
    local env = peri.env.make(id, { n = 16, seed = 1 })
    local choose, low, high = chooser(env, 16), env.obs_space.low, env.obs_space.high
    env:reset()
    for _ = 1, 200 do
      local list = numbers(env:step(choose()))
      local each = #list // env.rows
      for i, v in ipairs(list) do
        local k = (i - 1) % each + 1
        local least, most
        if env.obs_space.kind == "discrete" then least, most = 0, env.obs_space.n - 1
        elseif env.obs_space.kind == "multi_discrete" then least, most = 0, env.obs_space.nvec[k] - 1
        else
          least = type(low) == "table" and low[k] or low
          most = type(high) == "table" and high[k] or high
        end
        if not (v >= least and v <= most) then lu.fail(("%s: element %d is %g, not in [%g, %g]"):format(id, k, v, least, most)) end
      end
    end
  end
end

function TestEnvBuiltin.test_each_has_a_picture_in_characters()
  for _, id in ipairs(builtin) do
    local env = peri.env.make(id, { seed = 3 })
    env:reset()
    local text = env:text()
    lu.assertNotNil(text:find "^[\n\32-\126]+\n$", id)
  end
  local env = peri.env.make("FrozenLake-v1", { seed = 0, is_slippery = false })
  env:reset()
  env:step(2)
  lu.assertEquals(env:text(), " S [F] F  F \n F  H  F  H \n F  F  F  H \n H  F  F  G \n")
end

-- ---- models ----

local with_model = {
  { "FrozenLake-v1", {} }, { "FrozenLake-v1", { is_slippery = false } }, { "FrozenLake-v1", { success_rate = 0.7 } },
  { "FrozenLake8x8-v1", {} }, { "CliffWalking-v1", {} }, { "CliffWalkingSlippery-v1", {} }, { "Taxi-v4", {} },
  { "Taxi-v4", { is_rainy = true } }, { "Taxi-v4", { is_rainy = true, fickle_passenger = true } },
  { "Blackjack-v1", {} }, { "Blackjack-v1", { sab = false, natural = true } }, { "GridWorld-v0", {} },
  { "DeepSea-v0", {} }, { "DeepSea-v0", { size = 5, slip = 0.2, map_seed = 3 } },
  { "GridWorld-v0", { map = "Sa.A\n.#.G\nb.XB", slip = 0.1, wind = "0010" } },
  { "GridWorld-v0", { map = "SH0/.H1/X#G", treasures = { 2, 5 }, hazard_reward = -0.5, slip = 0.3 } },
}

local function each_model(fn)
  for _, m in ipairs(with_model) do fn(m[1], m[2], peri.env.make(m[1], m[2]):model()) end
end

function TestEnvBuiltin.test_probabilities_of_a_model_sum_to_1()
  local function sums(what, outcomes, states)
    local sum = 0
    for _, o in ipairs(outcomes) do
      sum = sum + o.p
      lu.assertTrue(o.p > 0 or o.p == 0 and #outcomes > 1, what)
      lu.assertTrue(o.next >= 0 and o.next < states, what)
    end
    lu.assertAlmostEquals(sum, 1, 1e-12, what)
  end
  each_model(function (id, _, model)
    sums(id .. " first", model.first, model.states)
    for s = 0, model.states - 1 do
      for a = 0, model.actions - 1 do sums(("%s %d %d"):format(id, s, a), model.transitions[s][a], model.states) end
    end
  end)
end

-- The model's state of an observation: Blackjack's tells a natural from other 21s, which only the first one can be.
local function state_of(id, o, i, first)
  if id ~= "Blackjack-v1" then return o[i] end
  local sum, card, ace = o[3 * i - 2], o[3 * i - 1], o[3 * i]
  return (sum * 11 + card) * 2 + ace + (first and sum == 21 and 704 or 0)
end

-- Pearson's statistic of outcomes that were seen, by pairs of state and action that were seen often.
local function chi_square(model, seen)
  local total, freedom = 0, 0
  for key, counts in pairs(seen) do
    local outcomes, n = model.transitions[key // 16][key % 16], 0
    for _, c in pairs(counts) do n = n + c end
    local expected = {}
    for _, o in ipairs(outcomes) do
      local name = ("%d %.9g %s"):format(o.terminated and -1 or o.next, o.reward, o.terminated)
      expected[name] = (expected[name] or 0) + o.p * n
    end
    for name in pairs(counts) do lu.assertNotNil(expected[name], name .. " is no outcome of the model") end
    local kinds, least = 0, math.huge
    for _, e in pairs(expected) do kinds, least = kinds + 1, math.min(least, e) end
    if least >= 5 then
      for name, e in pairs(expected) do total = total + ((counts[name] or 0) - e) ^ 2 / e end
      freedom = freedom + kinds - 1
    end
  end
  return total, freedom
end

function TestEnvBuiltin.test_steps_follow_the_model()
  each_model(function (id, opts, model)
    if opts.fickle_passenger then return end -- what the passenger has in mind is not observed
    local n = 256
    local env = peri.env.make(id, copy(opts, { n = n, seed = 9, reward_dtype = "f64" }))
    local choose, seen = chooser(env, n), {}
    local now = numbers(env:reset())
    local first = {}
    for i = 1, n do first[i] = true end
    for _ = 1, 250 do
      local actions = choose()
      local obs, reward, terminated, truncated = env:step(actions)
      local next_obs, final, r = numbers(obs), numbers(env.final_obs), numbers(reward)
      local over, cut = numbers(terminated), numbers(truncated)
      for i = 1, n do
        local key = state_of(id, now, i, first[i]) * 16 + actions[i]
        local ended = over[i] ~= 0 and over[i] ~= false
        local name = ("%d %.9g %s"):format(ended and -1 or state_of(id, final, i), r[i], ended)
        seen[key] = seen[key] or {}
        seen[key][name] = (seen[key][name] or 0) + 1
        first[i] = ended or cut[i] ~= 0 and cut[i] ~= false
      end
      now = next_obs
    end
    local total, freedom = chi_square(model, seen)
    if freedom > 0 then
      local z = (total - freedom) / math.sqrt(2 * freedom)
      lu.assertTrue(math.abs(z) < 5, ("%s: chi-square %.1f of %d degrees, z = %.2f"):format(id, total, freedom, z))
    else
      lu.assertTrue(id == "CliffWalking-v1" or id == "Taxi-v4" or id == "DeepSea-v0" or opts.is_slippery == false, id)
    end
  end)
end

-- ---- optima by dynamic programming ----

local function near(got, want, digits) lu.assertEquals(("%%.%df"):format(digits):format(got), want) end

function TestEnvBuiltin.test_optimal_values_are_the_known_ones()
  local function optimum(id, opts, how) return (peri.env.optimal(peri.env.make(id, opts), how)) end
  near(optimum "FrozenLake-v1", "0.7442", 4)
  near(optimum "FrozenLake8x8-v1", "0.9132", 4)
  near(optimum "CliffWalking-v1", "-13.00", 2)
  near(optimum("CliffWalkingSlippery-v1", {}, { steps = 200 }), "-64.70", 2)
  near(optimum "Blackjack-v1", "-0.0431", 4)
  near(optimum "Taxi-v4", "7.93", 2)
  near(optimum("GridWorld-v0", {}, { steps = 0 }), "0.705", 3) -- Russell and Norvig, figure 17.3
end

function TestEnvBuiltin.test_evaluating_the_optimal_policy_gives_the_optimal_value()
  for _, how in ipairs { { "CliffWalking-v1" }, { "Blackjack-v1" }, { "GridWorld-v0", steps = 0 },
    { "FrozenLake-v1", steps = 0, discount = 0.95 } } do
    local id = how[1]
    local opts = { steps = how.steps, discount = how.discount }
    local env = peri.env.make(id)
    local value, policy, best = peri.env.optimal(env, opts)
    local again, evaluated = peri.env.evaluate(env, policy, opts)
    lu.assertAlmostEquals(again, value, 1e-9, id)
    for s = 0, #best do lu.assertAlmostEquals(evaluated[s], best[s], 1e-9, id) end
    -- a policy as a function, and as probabilities
    local actions = env.action_space.n
    lu.assertAlmostEquals(peri.env.evaluate(env, function (s) return policy[s] end, opts), value, 1e-9)
    local even = {}
    for a = 1, actions do even[a] = 1 / actions end
    if id ~= "CliffWalking-v1" then
      lu.assertTrue(peri.env.evaluate(env, function () return even end, opts) < value)
    end
  end
end

function TestEnvBuiltin.test_misuse_of_dynamic_programming_is_named()
  local function message(fn, ...) return select(2, pcall(fn, ...)) end
  local lake = peri.env.make "FrozenLake-v1"
  lu.assertStrContains(message(peri.env.optimal, peri.env.make "CartPole-v1"), "CartPole-v1 has no transition model")
  lu.assertStrContains(message(peri.env.evaluate, lake, { [0] = 9 }), "state 0 has action 9, expected an integer from 0 to 3")
  lu.assertStrContains(message(peri.env.evaluate, lake, function () return { 1 } end), "1 probabilities, expected 4")
  lu.assertStrContains(message(peri.env.optimal, lake, { horizon = 3 }), 'unknown option "horizon"')
  lu.assertStrContains(message(peri.env.evaluate, peri.env.make "CliffWalking-v1", function () return 0 end, { sweeps = 50 }),
    "values still change by 1 after 50 sweeps")
end

-- ---- options ----

function TestEnvBuiltin.test_options_that_make_no_sense_are_named()
  local function refused(id, opts, text)
    local ok, message = pcall(peri.env.make, id, opts)
    lu.assertFalse(ok, text)
    lu.assertStrContains(message, text)
  end
  refused("FrozenLake-v1", { map_name = "5x5" }, 'expected 4x4, 8x8 or random, got "5x5"')
  refused("FrozenLake-v1", { desc = "SF/FFG" }, "row 2 of the map has 3 cells, the first has 2")
  refused("FrozenLake-v1", { desc = "SF/FX" }, "cell 'X' of row 2 is none of \"SFHG\"")
  refused("FrozenLake-v1", { desc = "FF/FG" }, "the map has no start 'S'")
  refused("FrozenLake-v1", { reward_schedule = "1,0" }, "expected three numbers with commas")
  refused("FrozenLake-v1", { success_rate = 1.5 }, "success_rate is 1.5, expected a number from 0 to 1")
  refused("GridWorld-v0", { wind = "01" }, "expected 4 digits, one for each column")
  refused("GridWorld-v0", { map = "..G" }, "the map has no start 'S'")
  refused("Bandit-v0", { kind = "poisson" }, "expected gaussian or bernoulli")
  refused("Bandit-v0", { arms = 2.5 }, "expected an integer")
  refused("FrozenLake-v1", { map_name = "random", map_size = 2.5 }, "'map_size' is 2.5, expected an integer")
  refused("FrozenLake-v1", { is_slippery = 0.5 }, "'is_slippery' is 0.5, expected true or false")
  refused("Acrobot-v1", { book_or_nips = "paper" }, "expected book or nips")
end

function TestEnvBuiltin.test_lists_are_options_as_gymnasium_has_them()
  local env = peri.env.make("FrozenLake-v1", { desc = { "SF", "HG" }, is_slippery = false, reward_schedule = { 5, -1, 0.5 } })
  env:reset()
  local _, on_ice = env:step(2)
  local state, at_goal, over = env:step(1)
  lu.assertEquals({ on_ice, state, at_goal, over }, { 0.5, 3, 5, true })
end

function TestEnvBuiltin.test_a_large_map_has_a_picture_in_characters()
  local rows = {}
  for i = 1, 200 do rows[i] = ("."):rep(199) .. (i == 1 and "S" or "G") end
  local env = peri.env.make("GridWorld-v0", { map = rows })
  env:reset()
  lu.assertEquals(#env:text(), 200 * (3 * 200 + 1))
end

function TestEnvBuiltin.test_a_gridworld_has_keys_doors_and_wind()
  local env = peri.env.make("GridWorld-v0", { map = "Sa.A.G", slip = 0, step_reward = 0 })
  lu.assertEquals(env.obs_space.n, 12)
  lu.assertEquals(env:reset(), 0)
  local seen = {}
  for i = 1, 5 do
    local s, r, over = env:step(1)
    seen[i] = { s, r, over }
  end
  lu.assertEquals(seen, { { 7, 0, false }, { 8, 0, false }, { 9, 0, false }, { 10, 0, false }, { 11, 1, true } })
  local closed = peri.env.make("GridWorld-v0", { map = "S.A.G", slip = 0 })
  closed:reset()
  closed:step(1)
  lu.assertEquals(closed:step(1), 1) -- no key: the door holds
  -- the windy gridworld of Sutton and Barto, example 6.5, takes 15 steps
  local rows = {}
  for i = 1, 7 do rows[i] = i == 4 and "S......G.." or ".........." end
  local windy = peri.env.make("GridWorld-v0", { map = table.concat(rows, "\n"), wind = "0001112210", slip = 0,
    step_reward = -1, goal_reward = 0 })
  lu.assertEquals((peri.env.optimal(windy)), -15)
end

-- One sequence of actions finds the treasure; every other one is worth 0 or less.
function TestEnvBuiltin.test_one_sequence_of_a_deep_sea_finds_the_treasure()
  for _, how in ipairs { { 4, 0.01 }, { 7, 0.3 }, { 7, 0 } } do
    local size, cost = table.unpack(how)
    local env = peri.env.make("DeepSea-v0", { size = size, cost = cost, map_seed = size })
    local best, policy = peri.env.optimal(env)
    near(best, ("%.4f"):format(1 - cost), 4)
    local rights = {}
    for way = 0, 2 ^ size - 1 do
      local s, sum, steps, over, count = env:reset(), 0, 0, false, 0
      while not over do
        local wanted = way >> steps & 1 == 1 and policy[s] or 1 - policy[s]
        if steps == s % size and wanted == policy[s] then count = count + 1 end -- right, as long as it was so far
        local reward
        s, reward, over = env:step(wanted)
        sum, steps = sum + reward, steps + 1
      end
      lu.assertEquals(steps, size)
      if sum > 0 then rights[#rights + 1] = way end
      lu.assertTrue(sum <= 1 - cost + 1e-9)
    end
    lu.assertEquals(rights, { 2 ^ size - 1 | 0 })
  end
  local maps = {}
  for seed = 1, 2 do maps[seed] = select(2, peri.env.optimal(peri.env.make("DeepSea-v0", { size = 8, map_seed = seed }))) end
  local apart = false
  for s = 0, 63, 9 do apart = apart or maps[1][s] ~= maps[2][s] end
  lu.assertTrue(apart)
  local slips = peri.env.make("DeepSea-v0", { size = 5, slip = 0.2 })
  near(peri.env.optimal(slips), ("%.4f"):format(0.8 ^ 5 - 0.01 / 5 * (1 + 0.8 + 0.8 ^ 2 + 0.8 ^ 3 + 0.8 ^ 4)), 4)
end

function TestEnvBuiltin.test_bandits_pay_what_their_arms_are_worth()
  for _, kind in ipairs { "gaussian", "bernoulli" } do
    local env = peri.env.make("Bandit-v0", { n = 200, seed = 2, kind = kind, arms = 4, contexts = 3, max_steps = 0 })
    env:reset()
    local paid, optimal, regret = 0, 0, 0
    local choose = chooser(env, 200)
    for _ = 1, 200 do
      local _, reward = env:step(choose())
      local m = env.metrics:tolist()
      for i = 1, 200 do optimal, regret = optimal + m[i][1], regret + m[i][2] end
      paid = paid + reward:sum():item()
    end
    local n = 200 * 200
    lu.assertAlmostEquals(optimal / n, 1 / 4, 0.02)
    -- the greatest of four less the mean: 1.029 for N(0, 1), 0.3 for U(0, 1)
    lu.assertAlmostEquals(regret / n, kind == "gaussian" and 1.029 or 0.3, 0.06)
    lu.assertAlmostEquals(paid / n, kind == "gaussian" and 0 or 0.5, 0.06)
  end
end

-- The rules of MinBreakout, played by one who follows the ball: what MinAtar's own gives for the same play.
function TestEnvBuiltin.test_a_paddle_that_follows_the_ball_clears_the_bricks()
  local env = peri.env.make("MinBreakout-v0", { seed = 1, sticky_action_prob = 0, max_steps = 0 })
  local obs = env:reset()
  local bricks, over = 0, false
  local function cell(o, plane) -- the cell of a plane that is 1
    for i, v in ipairs(numbers(o:select(1, plane))) do if v == 1 then return i - 1 end end
  end
  for _ = 1, 400 do
    local ball, trail, paddle = cell(obs, 2), cell(obs, 3), cell(obs, 1) % 10
    local dx = ball % 10 - trail % 10
    local target = ball % 10 + dx
    local reward
    obs, reward, over = env:step(target < paddle and 1 or target > paddle and 2 or 0)
    bricks = bricks + reward
    if over then break end
  end
  lu.assertFalse(over)
  lu.assertTrue(bricks > 30, bricks) -- more than there are at first
end
