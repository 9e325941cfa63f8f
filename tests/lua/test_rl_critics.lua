-- What SAC and TD3 share: actors, critics of several learners, soft values, temperature, checks of a replay loop.
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"
local rl, nn = peri.rl, peri.nn

TestActors, TestCritics, TestSoft, TestReplayChecks = {}, {}, {}, {}

local function close(a, b, tolerance) lu.assertTrue((a - b):abs():max():item() <= (tolerance or 1e-6)) end

-- ---- actors ----

function TestActors.test_a_gaussian_actor_draws_from_its_own_squashed_normal()
  local actor = rl.GaussianActor(3, 2, { hidden = { 8 } })
  local obs = peri.randn { 5, 3 }
  local mean, log_std = actor(obs)
  lu.assertEquals({ mean.shape, log_std.shape }, { { 5, 2 }, { 5, 2 } })
  peri.seed(3)
  local action, logp = actor:act(obs)
  peri.seed(3)
  local e = peri.randn { 5, 2 }
  local u = mean + log_std:exp() * e
  close(action, u:tanh())
  local by_hand = (e:square() * -0.5 - log_std - 0.5 * math.log(2 * math.pi) - (1 - u:tanh():square()):log()):sum(-1)
  close(logp, by_hand, 1e-3)
  close(actor:best(obs), mean:tanh())
  action:sum():backward()
  for _, p in ipairs(actor:parameters()) do lu.assertTrue(p.grad:abs():sum():item() > 0) end
end

function TestActors.test_deviations_stay_between_bounds()
  local actor = rl.GaussianActor(1, 1, { hidden = { 4 }, log_std_min = -3, log_std_max = 0.5 })
  local _, wide = actor(peri.full({ 1, 1 }, 1e6))
  local _, narrow = actor(peri.full({ 1, 1 }, -1e6))
  for _, t in ipairs { wide, narrow } do lu.assertTrue(t:item() >= -3 and t:item() <= 0.5) end
  lu.assertErrorMsgContains("log_std_min 1 is above log_std_max 0", rl.GaussianActor, 1, 1,
    { log_std_min = 1, log_std_max = 0 })
end

function TestActors.test_copies_are_their_actors()
  for _, class in ipairs { rl.GaussianActor, rl.TanhActor } do
    local all = nn.Copies(3, function () return class(4, 2, { hidden = { 8, 8 } }) end, { seeds = { 5, 6, 7 } })
    local obs = peri.randn { 3, 6, 4 }
    local y = all(obs)
    for i = 1, 3 do close(y:select(1, i), (all:single(i)(obs:select(1, i))), 1e-5) end
  end
end

function TestActors.test_a_policy_file_acts_as_the_actor()
  local path = scratch.folder() .. "/policy.safetensors"
  for _, id in ipairs { "Pendulum-v1", "MountainCarContinuous-v0" } do
    local env = peri.env.make(id, { n = 6, seed = 2 })
    local inputs = env.obs_space.shape[1]
    local obs = env:reset()
    local gaussian, plain = rl.GaussianActor(inputs, 1, { hidden = { 8, 4 } }), rl.TanhActor(inputs, 1, { hidden = { 8 } })
    rl.policy.save(path, { net = gaussian, head = "squashed", env = env })
    local file = assert(rl.policy.load(path))
    close(file:act(obs, { deterministic = true }), rl.stretched(gaussian:best(obs), env.action_space), 1e-5)
    local drawn = file:act(obs:select(1, 1):unsqueeze(1):expand { 4000, inputs }:contiguous())
    local mean, log_std = gaussian(obs:select(1, 1):unsqueeze(1))
    local wanted = rl.stretched((mean + log_std:exp() * peri.randn { 20000, 1 }):tanh(), env.action_space)
    close(drawn:mean(), wanted:mean(), 0.1)
    close(drawn:std(), wanted:std(), 0.1)
    rl.policy.save(path, { net = plain, head = "tanh", env = env })
    close(assert(rl.policy.load(path)):act(obs, { deterministic = true }), rl.stretched(plain(obs), env.action_space), 1e-5)
  end
end

function TestActors.test_stretched_actions_reach_the_bounds_and_no_further()
  local space = peri.env.box { low = { -2, 0.1 }, high = { 2, 0.7 }, shape = { 2 } }
  local y = rl.stretched(peri.tensor { { -1.0, -1.0 }, { 1.0, 1.0 }, { 0.0, 0.0 } }, space)
  close(y, peri.tensor { { -2, 0.1 }, { 2, 0.7 }, { 0, 0.4 } }, 1e-6)
  lu.assertTrue(space:contains(y:select(1, 1)) and space:contains(y:select(1, 2)))
  lu.assertTrue(rl.stretched(peri.full({ 1, 2 }, 0 / 0), space):isnan():all():item()) -- the environment refuses it
  lu.assertErrorMsgContains("no bounds", rl.stretched, peri.zeros { 1 }, peri.env.box { low = 0, high = math.huge, shape = { 1 } })
  lu.assertErrorMsgContains("expected a box", rl.stretched, peri.zeros { 1 }, peri.env.discrete(3))
end

function TestActors.test_noise_is_clipped_and_so_is_what_comes_of_it()
  peri.seed(1)
  local y = rl.gaussian_noise(peri.full({ 20000 }, 0.2), 0.3, 0.5)
  lu.assertTrue(y:max():item() <= 0.7001 and y:min():item() >= -0.3001)
  lu.assertAlmostEquals(y:mean():item(), 0.2, 0.01)
  lu.assertTrue(rl.gaussian_noise(peri.full({ 1000 }, 0.9), 2):abs():max():item() <= 1)
  close(rl.gaussian_noise(peri.full({ 3 }, 0.5), 0), peri.full({ 3 }, 0.5), 0)
  lu.assertErrorMsgContains("std is -1", rl.gaussian_noise, peri.zeros { 1 }, -1)
end

-- ---- critics ----

function TestCritics.test_each_critic_of_each_seed_is_a_network_of_its_own()
  local critics = rl.Critics { inputs = 4, critics = 2, seeds = { 3, 9, 4 }, hidden = { 8, 8 } }
  local obs, action = peri.randn { 3, 7, 3 }, peri.randn { 3, 7, 1 }
  local q = critics(obs, action)
  lu.assertEquals(q.shape, { 2, 3, 7 })
  local seen = {}
  for c = 1, 2 do
    for s = 1, 3 do
      local one = critics.net:single((c - 1) * 3 + s)
      close(q:select(1, c):select(1, s), one(peri.cat({ obs, action }, -1):select(1, s)):squeeze(-1), 1e-5)
      seen[one.layers[1].weight:sum():item()] = true
    end
  end
  local n = 0
  for _ in pairs(seen) do n = n + 1 end
  lu.assertEquals(n, 6)
  q:select(1, 1):select(1, 2):sum():backward() -- no gradient goes from one to another
  for i, norm in ipairs(critics.net:parameters()[1].grad:square():sum(-1):sum(-1):tolist()) do
    lu.assertEquals(norm > 0, i == 2)
  end
  local alone = rl.Critics { inputs = 4, critics = 2, seeds = { 9 }, hidden = { 8, 8 } } -- a seed is the same in any company
  close(alone(obs:narrow(1, 2, 1), action:narrow(1, 2, 1)):select(2, 1), q:select(2, 2), 1e-5)
  lu.assertErrorMsgContains("rows of 2 seeds, there are critics of 3", critics.forward, critics, obs:narrow(1, 1, 2),
    action:narrow(1, 1, 2))
end

function TestCritics.test_values_of_all_actions()
  local critics = rl.Critics { inputs = 3, outputs = 4, critics = 3, hidden = { 8 } }
  lu.assertEquals(critics(peri.randn { 1, 5, 3 }).shape, { 3, 1, 5, 4 })
end

-- ---- values ----

function TestSoft.test_an_episode_that_was_cut_has_a_value_behind_it()
  local batch = { reward = peri.tensor { 1.0, 1.0, 1.0 }, discount = peri.tensor { 0.9, 0.9, 0.81 },
    terminated = peri.tensor { false, true, false }, truncated = peri.tensor { true, true, false } }
  local value = peri.tensor { 10.0, 10.0, 10.0 }:requires_grad_()
  local y = rl.backup(batch, value)
  close(y, peri.tensor { 10.0, 1.0, 9.1 })
  lu.assertFalse(y.requires_grad)
  lu.assertErrorMsgContains("the batch has no discount", rl.backup, { reward = value }, value)
end

function TestSoft.test_values_of_draws_and_of_choices()
  local q = peri.tensor { { 1.0, 5.0 }, { 2.0, 3.0 } }
  close(rl.least_value(q), peri.tensor { 1.0, 3.0 })
  close(rl.least_value(q:narrow(1, 1, 1)), peri.tensor { 1.0, 5.0 })
  close(rl.least_value(q, peri.tensor { -1.0, 2.0 }, 0.5), peri.tensor { 1.5, 2.0 })
  local logp = peri.tensor { { 0.25, 0.75 } }:log()
  local value, entropy = rl.expected_value(q:unsqueeze(2), logp, 0.1)
  local h = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
  close(entropy, peri.tensor { h })
  close(value, peri.tensor { 0.25 * 1 + 0.75 * 3 + 0.1 * h })
end

-- The softmax of values over the temperature is the policy that the value of states is greatest of: log-sum-exp.
function TestSoft.test_the_soft_value_is_greatest_of_the_boltzmann_policy()
  local q = peri.tensor { { { 1.0, -0.5, 2.0 } } }
  local best = rl.expected_value(q, (q:select(1, 1) / 0.7):log_softmax(-1), 0.7)
  lu.assertAlmostEquals(best:item(), 0.7 * (q / 0.7):logsumexp(-1):item(), 1e-5)
  for _ = 1, 20 do
    lu.assertTrue((rl.expected_value(q, peri.randn { 1, 3 }:log_softmax(-1), 0.7)):item() <= best:item() + 1e-6)
  end
end

function TestSoft.test_the_temperature_rises_while_the_entropy_is_low()
  local t = rl.Temperature { learners = 2, target = -1, start = 0.5 }
  close(t(), peri.full({ 2, 1 }, 0.5))
  lu.assertFalse(t().requires_grad)
  t:loss(peri.tensor { { -3.0, -1.0 }, { 2.0, 4.0 } }):backward()
  close(t.log_alpha.grad, peri.tensor { { -1.0 }, { 4.0 } }) -- mean entropies -2 and 3, less the target
  local opt = peri.optim.Adam(t, { lr = 0.1 })
  opt:step()
  local alpha = t():flatten():tolist()
  lu.assertTrue(alpha[1] > 0.5 and alpha[2] < 0.5)
  local fixed = rl.Temperature { target = 0, start = 0, fixed = true }
  lu.assertEquals(fixed():item(), 0)
  lu.assertErrorMsgContains("start is 0", rl.Temperature, { target = 0, start = 0 })
end

-- ---- checks, each against the mistake that it is for ----

local function played(wrong)
  local env = peri.env.make("Pendulum-v1", { n = 3, seed = 1, max_steps = 5 })
  local buffer = peri.replay { capacity = 50, rows = 3, observed = { obs = { "f32", 3 } }, seed = 1 }
  local obs = env:reset()
  for _ = 1, 20 do
    local next_obs, reward, terminated, truncated = env:step(peri.randn { 3, 1 }:clamp(-2, 2))
    local led = wrong == "reset" and next_obs or wrong == "stale" and obs or env.final_obs
    rl.checks.step { next_obs = led, obs = next_obs, terminated = terminated, truncated = truncated }
    buffer:add { obs = obs, next_obs = led, reward = reward, terminated = terminated, truncated = truncated }
    obs = next_obs
  end
  lu.assertEquals(buffer:breaks(), 0)
  return buffer
end

function TestReplayChecks.test_what_an_episode_ended_with_is_not_what_the_next_begins_with()
  played()
  lu.assertErrorMsgContains("the episode of row 1 ended", played, "reset")
  lu.assertErrorMsgContains("the episode of row 1 goes on from something else", played, "stale")
end

function TestReplayChecks.test_targets_bootstrap_where_an_episode_was_cut()
  local batch = played():sample(64)
  local value = peri.full({ 64 }, 100)
  local right = rl.backup(batch, value)
  rl.checks.targets { batch = batch, target = right, value = value }
  local function wrong(target) return rl.checks.targets { batch = batch, target = target, value = value } end
  local ended = { reward = batch.reward, discount = batch.discount,
    terminated = batch.terminated:logical_or(batch.truncated) }
  lu.assertErrorMsgContains("was truncated, which is no end", wrong, rl.backup(ended, value))
  lu.assertErrorMsgContains("a gradient would reach", wrong, right + peri.zeros({ 64 }):requires_grad_())
  lu.assertErrorMsgContains("expected", wrong, right * (0 / 0))
  batch.terminated, batch.truncated = peri.ones({ 64 }, "bool"), peri.zeros({ 64 }, "bool")
  lu.assertErrorMsgContains("its episode terminated", wrong, right)
end

-- An action that is no number is refused by the environment, by row and value, and what was learnt from stays.
function TestReplayChecks.test_an_action_that_is_no_number_is_named_and_changes_nothing()
  local env = peri.env.make("Pendulum-v1", { n = 3, seed = 1 })
  env:reset()
  local before = env.obs:tolist()
  local action = peri.zeros { 3, 1 }
  action:select(1, 2):fill_(0 / 0)
  local ok, message = pcall(env.step, env, rl.stretched(action, env.action_space))
  lu.assertFalse(ok)
  for _, word in ipairs { "Pendulum-v1", "row 2", "nan" } do lu.assertStrContains(message:lower(), word:lower()) end
  lu.assertEquals(env.obs:tolist(), before)
end

os.exit(lu.LuaUnit.run())
