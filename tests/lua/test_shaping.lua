-- Potential-based shaping: on tables every policy's value changes by the potential alone and the optimum stays, for any
-- potential; other bonuses move it. In steps it adds up to what the theory says, cut or not.
local lu = require "luaunit"
local peri = require "perilune"

local rl = peri.rl

TestShaping = {}

local GAMMA <const> = 0.9
local free = { discount = GAMMA, steps = 0 } -- no horizon: a policy does not know the steps left

local function tables()
  return { peri.env.make "FrozenLake-v1", peri.env.make "GridWorld-v0", peri.env.make "CliffWalking-v1",
    peri.env.make("GridWorld-v0", { map = { "S.a", "#A#", "X.G" }, slip = 0.1 }), peri.env.make("DeepSea-v0", { size = 5 }) }
end

local function random_potential(rng, n, size)
  local phi = {}
  for s = 0, n - 1 do phi[s] = size * rng:normal() end
  return phi
end

function TestShaping.test_optimal_policies_stay_optimal_under_any_potential()
  local rng = peri.rng(1)
  for _, env in ipairs(tables()) do
    local best, _, values = peri.env.optimal(env, free)
    for size = 1, 4 do
      local phi = random_potential(rng, env.obs_space.n, 10 ^ (size - 2))
      local shaped = peri.env.shape_reward(env, { potential = phi, gamma = GAMMA })
      local _, policy, found = peri.env.optimal(shaped, free)
      for s = 0, env.obs_space.n - 1 do
        lu.assertAlmostEquals(found[s], values[s] - phi[s], 1e-7, env.id) -- eq. 3 of the paper
      end
      lu.assertAlmostEquals(peri.env.evaluate(env, policy, free), best, 1e-7, env.id)
    end
  end
end

function TestShaping.test_every_policys_value_changes_by_the_potential_alone()
  local rng = peri.rng(2)
  for _, env in ipairs(tables()) do
    local phi, policy = random_potential(rng, env.obs_space.n, 1), {}
    for s = 0, env.obs_space.n - 1 do
      local sum, list = 0, {}
      for a = 1, env.action_space.n do list[a] = rng:uniform(); sum = sum + list[a] end
      for a = 1, #list do list[a] = list[a] / sum end
      policy[s] = list
    end
    local _, before = peri.env.evaluate(env, policy, free)
    local _, after = peri.env.evaluate(peri.env.shape_reward(env, { potential = phi, gamma = GAMMA }), policy, free)
    for s = 0, env.obs_space.n - 1 do lu.assertAlmostEquals(after[s], before[s] - phi[s], 1e-7) end
  end
end

-- A table with other rewards: change(state, outcome) is added.
local function with(env, change)
  local model = env:model()
  for s = 0, model.states - 1 do
    for a = 0, model.actions - 1 do
      for _, x in ipairs(model.transitions[s][a]) do x.reward = x.reward + change(s, x) end
    end
  end
  return { model = function () return model end, max_steps = 0 }
end

-- The contrasts: a bonus for being somewhere, a potential that is kept where episodes terminate (Grzes 2017), and one
-- with another discount than the learner's all move the optimum.
function TestShaping.test_what_is_no_potential_moves_the_optimum()
  local env = peri.env.make("GridWorld-v0", { map = { "S...G", ".....", "X...." }, slip = 0, step_reward = -0.01 })
  local best = peri.env.optimal(env, free)
  local phi, worst = {}, {}
  for s = 0, 14 do phi[s] = s == 6 and 1 or s == 10 and 3 or 0 end -- 6: a cell of no worth; 10: the pit
  local kinds = {
    bonus = function (_, x) return x.terminated and 0 or phi[x.next] end,
    kept = function (s, x) return GAMMA * phi[x.next] - phi[s] end,
    undiscounted = function (s, x) return x.terminated and -2 * phi[s] or 2 * (phi[x.next] - GAMMA * phi[s]) end,
    potential = function (s, x) return (x.terminated and 0 or GAMMA * phi[x.next]) - phi[s] end,
  }
  for name, change in pairs(kinds) do
    local _, policy = peri.env.optimal(with(env, change), free)
    worst[name] = peri.env.evaluate(env, policy, free)
  end
  lu.assertAlmostEquals(worst.potential, best, 1e-9)
  for _, name in ipairs { "bonus", "kept", "undiscounted" } do lu.assertTrue(worst[name] < best - 0.1, name) end
end

local function phi_of(obs) return obs:select(2, 1):mul(3):add(obs:select(2, 2):square()) end

-- sum gamma^t F_t over an episode: -Phi(first), and gamma^T Phi(last) of a cut one besides.
function TestShaping.test_over_an_episode_it_adds_up_to_the_ends()
  for _, autoreset in ipairs { "same_step", "next_step", "disabled" } do
    local make = { n = 6, seed = 3, max_steps = 15, autoreset = autoreset }
    local bare = peri.env.make("CartPole-v1", make)
    local env = peri.env.shape_reward(peri.env.make("CartPole-v1", make), { potential = phi_of, gamma = GAMMA })
    local first = phi_of(env:reset()):tolist()
    bare:reset()
    local sum, discount, cut, ended = { 0, 0, 0, 0, 0, 0 }, { 1, 1, 1, 1, 1, 1 }, 0, 0
    local rng = peri.env.rng(4)
    for _ = 1, 60 do
      local actions = env:sample(rng)
      local obs, reward, terminated, truncated = env:step(actions)
      local _, plain = bare:step(actions)
      local valid = env.valid:tolist()
      lu.assertEquals(env.reward:tolist(), reward:tolist())
      local r, p, phi = reward:tolist(), plain:tolist(), phi_of(env.final_obs):tolist()
      local t, c, now = terminated:tolist(), truncated:tolist(), phi_of(obs):tolist()
      local over = {}
      for row = 1, 6 do
        local begun = not valid[row] or valid[row] == 0
        over[row] = false
        if begun then
          lu.assertEquals(r[row], p[row])
          first[row], sum[row], discount[row] = now[row], 0, 1
        else
          sum[row], discount[row] = sum[row] + discount[row] * (r[row] - p[row]), discount[row] * GAMMA
          local terminal, is_cut = t[row] ~= false and t[row] ~= 0, c[row] ~= false and c[row] ~= 0
          over[row] = terminal or is_cut
          if over[row] then
            lu.assertAlmostEquals(sum[row], (terminal and 0 or discount[row] * phi[row]) - first[row], 1e-4)
            ended, cut = ended + 1, cut + (terminal and 0 or 1)
            first[row], sum[row], discount[row] = now[row], 0, 1
          end
        end
      end
      if autoreset == "disabled" then
        local mask = peri.tensor(over, "bool")
        local begun = phi_of(env:reset { mask = mask }):tolist()
        bare:reset { mask = mask }
        for row = 1, 6 do if over[row] then first[row] = begun[row] end end
      end
    end
    lu.assertTrue(ended > 5 and cut > 0, autoreset)
  end
end

function TestShaping.test_a_single_environment_is_shaped_alike()
  local phi = { [0] = 0 }
  for s = 1, 15 do phi[s] = s / 7 end
  local env = peri.env.shape_reward(peri.env.make("FrozenLake-v1", { seed = 1 }), { potential = phi, gamma = 0.5 })
  local s = env:reset()
  for _ = 1, 40 do
    local after, reward, terminated, truncated = env:step(env:sample())
    local plain = after == 15 and 1 or 0
    lu.assertAlmostEquals(reward, plain + (terminated and 0 or 0.5 * phi[after]) - phi[s], 1e-12)
    lu.assertEquals(env.reward, reward)
    s = (terminated or truncated) and env:reset() or after
  end
end

-- The function of a rollout is the wrapper, whatever the number of learners.
function TestShaping.test_the_hook_gives_the_wrappers_rewards()
  for _, seeds in ipairs { 1, 3 } do
    local function make() return peri.env.make("CartPole-v1", { n = 6, seed = 3, max_steps = 9 }) end
    local function rollout_of(env)
      local rollout = peri.rollout { steps = 30, rows = 6, fields = { obs = { "f32", 4 }, final_obs = { "f32", 4 },
        reward = "f32", terminated = "bool", truncated = "bool" } }
      local obs, rng = env:reset(), peri.env.rng(4)
      for t = 1, 30 do
        local after, reward, terminated, truncated = env:step(env:sample(rng))
        rollout:set(t, { obs = obs, final_obs = env.final_obs, reward = reward, terminated = terminated, truncated = truncated })
        obs = after
      end
      return rollout
    end
    local plain = rollout_of(make())
    local shaped = rollout_of(peri.env.shape_reward(make(), { potential = phi_of, gamma = GAMMA }))
    local function phi(x) return phi_of(x:reshape { -1, 4 }):reshape { seeds, -1 } end
    local gain = rl.shaping(plain, { potential = phi, gamma = GAMMA, seeds = seeds })
    lu.assertTrue((plain:get "reward" + gain - shaped:get "reward"):abs():max():item() < 1e-5)
    lu.assertErrorMsgContains("gamma is missing", rl.shaping, plain, { potential = phi })
  end
end

-- A potential that changes is read when a state is reached, so that the sum still has its ends alone.
function TestShaping.test_a_potential_that_changes_still_adds_up()
  local scale, read = 1, {}
  local env = peri.env.shape_reward(peri.env.make("Pendulum-v1", { n = 1, seed = 1, max_steps = 50 }),
    { gamma = GAMMA, potential = function (obs)
      read[#read + 1] = obs:select(2, 1):mul(scale):to "f64"
      return read[#read]
    end })
  local bare = peri.env.make("Pendulum-v1", { n = 1, seed = 1, max_steps = 50 })
  env:reset()
  bare:reset()
  local first, sum = read[1]:item(), 0
  for t = 1, 20 do
    scale = scale * 1.3
    local actions = env:sample()
    local _, reward = env:step(actions)
    local _, plain = bare:step(actions)
    sum = sum + GAMMA ^ (t - 1) * (reward - plain):item()
    lu.assertAlmostEquals(sum, GAMMA ^ t * read[#read]:item() - first, 1e-4)
  end
end

function TestShaping.test_its_state_goes_along()
  local function make() return peri.env.shape_reward(peri.env.make("CartPole-v1", { n = 2, seed = 1 }),
    { potential = phi_of, gamma = GAMMA }) end
  local a, b = make(), make()
  a:reset()
  a:step(peri.tensor({ 0, 1 }, "i64"))
  b:load_state_dict(a:state_dict())
  for _ = 1, 30 do
    local _, x = a:step(peri.tensor({ 0, 1 }, "i64"))
    local _, y = b:step(peri.tensor({ 0, 1 }, "i64"))
    lu.assertEquals(x:tolist(), y:tolist())
  end
end

function TestShaping.test_what_is_no_potential_is_refused()
  local lake, pole = peri.env.make "FrozenLake-v1", peri.env.make("CartPole-v1", { n = 2, seed = 1 })
  local function refused(message, ...) lu.assertErrorMsgContains(message, peri.env.shape_reward, ...) end
  refused("gamma is missing", lake, { potential = phi_of })
  refused("gamma is 2", lake, { potential = phi_of, gamma = 2 })
  refused("no number for state 3 of 0 to 15", lake, { potential = { [0] = 1, 2, 3 }, gamma = 0.9 })
  refused("expected numbered states", pole, { potential = { 1 }, gamma = 0.9 })
  refused("expected an environment", 3, { potential = phi_of, gamma = 0.9 })
  local env = peri.env.shape_reward(pole, { potential = function () return 3 end, gamma = 0.9 })
  lu.assertErrorMsgContains("potential gave number, expected a tensor (2)", env.reset, env)
end

os.exit(lu.LuaUnit.run())
