-- Environments as scripts see them: making, resets, steps, autoreset, what is refused.
local lu = require "luaunit"
local peri = require "perilune"
local claims = require "claims"

local message = claims.message

TestEnv = {}

local function ones(n) return peri.ones({ n }, "i64") end

function TestEnv.test_a_single_environment_gives_numbers_and_rows_without_a_batch()
  local env = peri.env.make "CartPole-v1"
  lu.assertEquals(env:reset({ seed = 0 }):tolist()[1], peri.tensor({ 0.013696168549358845 }, "f32"):item())
  local obs, reward, terminated, truncated = env:step(1)
  lu.assertEquals(obs.shape, { 4 })
  lu.assertEquals({ reward, terminated, truncated }, { 1.0, false, false })
  lu.assertEquals(env.final_obs:tolist(), obs:tolist())
  local steps = 1
  repeat
    terminated = select(3, env:step(1))
    steps = steps + 1
  until terminated
  lu.assertTrue(steps < 20)
  lu.assertStrContains(message(env.step, env, 1), "CartPole-v1: the episode of row 1 has ended: reset it first")
  lu.assertEquals(env:episodes(), { returns = { steps }, lengths = { steps }, rows = { 1 }, dropped = 0 })
  env:reset()
  env:step(0)
end

function TestEnv.test_row_i_has_the_seed_of_a_single_environment()
  local rows = peri.env.make("CartPole-v1", { n = 3, seed = 10 })
  local obs = rows:reset():tolist()
  for i = 1, 3 do
    local one = peri.env.make("CartPole-v1", { seed = 9 + i })
    lu.assertEquals(one:reset():tolist(), obs[i])
  end
end

function TestEnv.test_what_step_returns_is_new_unless_asked_otherwise()
  for _, copy in ipairs { true, false } do
    local env = peri.env.make("CartPole-v1", { n = 2, seed = 1, copy = copy })
    local first = env:reset()
    local before = first:tolist()
    local second = env:step(ones(2))
    lu.assertEquals(rawequal(first, second), not copy)
    lu.assertEquals(first:tolist()[1][1] == before[1][1], copy)
  end
end

function TestEnv.test_results_do_not_depend_on_threads()
  local all = {}
  for _, threads in ipairs { 1, 2, 0 } do
    local env = peri.env.make("CartPole-v1", { n = 700, seed = 4, threads = threads })
    env:reset()
    local obs, actions = nil, peri.tensor({ 0, 1, 1, 0, 1, 0, 0 }, "i64"):tile { 100 }
    for _ = 1, 60 do obs = env:step(actions) end
    all[#all + 1] = { obs:tolist(), env.final_obs:tolist(), env:episodes() }
  end
  lu.assertEquals(all[2], all[1])
  lu.assertEquals(all[3], all[1])
end

function TestEnv.test_misuse_says_what_was_expected()
  local env = peri.env.make("CartPole-v1", { n = 3 })
  lu.assertStrContains(message(env.step, env, ones(3)), "CartPole-v1: step before the first reset")
  env:reset()
  lu.assertStrContains(message(env.step, env, ones(2)), "step: actions are (2) of i64, expected (3) of i64")
  lu.assertStrContains(message(env.step, env, peri.ones { 3 }), "actions are (3) of f32, expected (3) of i64")
  lu.assertStrContains(message(env.step, env), "actions are missing, expected a tensor (3) of i64")
  lu.assertStrContains(message(env.step, env, { 0, 1 }), "the list of actions has 2 numbers, expected 3")
  lu.assertStrContains(message(env.step, env, { 0, 1, 2 }),
    "row 3, step 1 of its episode: action is 2, expected an integer from 0 to 1")
  env:step { 0, 1, 1 }
  env:step(ones(3):to "i32")
  lu.assertStrContains(message(function () return env.final_ob end), "has no 'final_ob'; did you mean 'final_obs'?")
  lu.assertStrContains(message(peri.env.make, "CartPole-v1", { autorest = 1 }), 'did you mean "autoreset"?')
  lu.assertStrContains(message(peri.env.make, "CartPole-v1", { sutton_barto = 1 }),
    'did you mean "sutton_barto_reward"?')
  lu.assertStrContains(message(peri.env.make, "CartPole"), 'unknown environment "CartPole"')
  lu.assertStrContains(message(peri.env.make, "CartPole-v1", { n = 0 }), "n is 0, expected an integer in [1, inf)")
end

function TestEnv.test_actions_that_are_no_whole_numbers_are_named()
  local rows, one = peri.env.make("CartPole-v1", { n = 3 }), peri.env.make "CartPole-v1"
  rows:reset()
  one:reset()
  rows:step { 0, 1, 0 }
  one:step(0)
  for text, v in pairs { nan = 0 / 0, inf = math.huge, ["1.5"] = 1.5, ["1e+300"] = 1e300 } do
    local said = (" 2 of its episode: action is %s, expected an integer of i64"):format(text)
    lu.assertStrContains(message(rows.step, rows, { 0, v, 1 }), "CartPole-v1: row 2, step" .. said)
    lu.assertStrContains(message(one.step, one, v), "CartPole-v1: row 1, step" .. said)
  end
  rows:step { 0, 1.0, 0 } -- nothing has happened
  one:step(1.0)
end

function TestEnv.test_a_mask_resets_some_rows()
  local env = peri.env.make("CartPole-v1", { n = 2, seed = 1, autoreset = "disabled" })
  env:reset()
  env:step { 1, 1 }
  local before = env.obs:tolist()
  local obs = env:reset { seed = 7, mask = peri.tensor { false, true } }
  lu.assertEquals(obs:tolist()[1], before[1])
  lu.assertEquals(obs:tolist()[2], peri.env.make("CartPole-v1", { seed = 8 }):reset():tolist())
end
