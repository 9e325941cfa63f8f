-- The step of TRPO: its length and direction against closed forms, its line search against what it promises; and A2C's
-- update against PPO's of one epoch and one minibatch (Huang et al. 2022).
local lu = require "luaunit"
local peri = require "perilune"

local nn, optim, dist, rl = peri.nn, peri.optim, peri.dist, peri.rl

-- A Gaussian whose mean is a parameter: F = 1 / sigma^2, KL = (difference / sigma)^2 / 2 exactly.
local function gaussian(from, sigma)
  local mean = nn.parameter(peri.tensor(from, "f32"))
  return mean, function () return dist.Normal(mean, { std = sigma, event = 1 }) end
end

TestTrustRegion = {}

function TestTrustRegion.test_the_whole_step_has_the_length_where_the_kl_is_delta()
  local mean, policy = gaussian({ 1, -2 }, 0.5)
  local info = rl.trust_region_({ mean }, { policy = policy, target_kl = 0.02, damping = 0, line_search = false,
    objective = function (d) return (d.loc * peri.tensor({ 3, 4 }, "f32")):sum() end })
  -- along (3, 4) / 5, as far as sigma sqrt(2 delta) = 0.5 * 0.2
  lu.assertTrue(info.accepted)
  lu.assertAlmostEquals(info.kl, 0.02, 1e-6)
  lu.assertAlmostEquals(info.step, 0.1, 1e-6)
  lu.assertAlmostEquals(info.improvement, 0.5, 1e-5)
  local x = mean:detach():tolist()
  lu.assertAlmostEquals(x[1], 1.06, 1e-6)
  lu.assertAlmostEquals(x[2], -1.92, 1e-6)
end

function TestTrustRegion.test_the_step_follows_the_fisher_information_not_the_gradient()
  local mean = nn.parameter(peri.zeros { 2 })
  local std = peri.tensor({ 1, 10 }, "f32")
  rl.trust_region_({ mean }, { damping = 0, line_search = false,
    policy = function () return dist.Normal(mean, { std = std, event = 1 }) end,
    objective = function (d) return d.loc:sum() end })
  local x = mean:detach():tolist()
  lu.assertAlmostEquals(x[2] / x[1], 100, 1e-3)
end

function TestTrustRegion.test_the_line_search_shrinks_until_the_kl_is_below_delta_and_the_objective_has_grown()
  for _, shrink in ipairs { 0.8, 0.5 } do
    local mean, policy = gaussian({ 0 }, 1)
    local info = rl.trust_region_({ mean }, { policy = policy, target_kl = 0.02, damping = 0, shrink = shrink,
      objective = function (d) return (d.loc - d.loc * d.loc * 6):sum() end }) -- less than at 0 beyond 1/6
    lu.assertTrue(info.accepted)
    lu.assertTrue(info.kl < 0.02 and info.improvement > 0)
    lu.assertAlmostEquals(mean:item(), 0.2 * shrink ^ (info.tries - 1), 1e-6)
    lu.assertEquals(info.tries, 2) -- the whole step is 0.2
  end
end

-- Parameters that are the distribution's own tensors, as a log_std is: the old policy is not them.
function TestTrustRegion.test_a_deviation_that_is_a_parameter_counts_in_the_kl()
  local mean, log_std = nn.parameter(peri.zeros { 2 }), nn.parameter(peri.zeros { 2 })
  local function policy() return dist.Normal(mean, { log_std = log_std, event = 1 }) end
  local before = policy():detach()
  local info = rl.trust_region_({ mean, log_std }, { policy = policy, objective = function (d) return -d.log_std:sum() end })
  lu.assertTrue(info.accepted)
  lu.assertTrue(log_std:max():item() < -1e-3)
  lu.assertAlmostEquals(info.kl, dist.kl(before, policy()):mean():item(), 1e-7)
  lu.assertTrue(info.kl > 1e-3 and info.kl < 0.01)
end

function TestTrustRegion.test_where_no_step_improves_the_policy_stays_to_the_bit()
  local mean, policy = gaussian({ 0.3, -0.7 }, 1)
  local before, calls = mean:detach():bytes(), 0
  local info = rl.trust_region_({ mean }, { policy = policy, tries = 4, objective = function (d)
    calls = calls + 1
    return calls == 1 and d.loc:sum() or d.loc:sum() - 10 -- it promised more than it keeps
  end })
  lu.assertFalse(info.accepted)
  lu.assertEquals({ info.tries, info.kl, info.improvement }, { 4, 0, 0 })
  lu.assertEquals(mean:detach():bytes(), before)
end

function TestTrustRegion.test_without_a_gradient_nothing_moves_and_one_that_is_no_number_is_an_error()
  local mean, policy = gaussian({ 0.3 }, 1)
  local before = mean:detach():bytes()
  local info = rl.trust_region_({ mean }, { policy = policy, objective = function (d) return (d.loc * 0):sum() end })
  lu.assertFalse(info.accepted)
  lu.assertErrorMsgContains("NaN or inf; nothing was changed", rl.trust_region_, { mean }, { policy = policy,
    objective = function (d) return (d.loc * (0 / 0)):sum() end })
  lu.assertErrorMsgContains("of shape (2, 1)", rl.trust_region_, { mean }, { policy = policy,
    objective = function (d) return peri.stack { d.loc, d.loc } end })
  lu.assertEquals(mean:detach():bytes(), before)
end

function TestTrustRegion.test_a_policy_of_choices_with_several_rows_takes_a_step()
  local logits = nn.parameter(peri.zeros { 4, 3 })
  local action = peri.tensor { 0, 1, 2, 0 }
  local before = dist.Categorical(logits):detach()
  local info = rl.trust_region_({ logits }, { policy = function () return dist.Categorical(logits) end,
    objective = function (d) return d:log_prob(action):mean() end })
  lu.assertTrue(info.accepted)
  lu.assertAlmostEquals(info.kl, dist.kl(before, dist.Categorical(logits)):mean():item(), 1e-6)
  lu.assertEquals(before.logits:abs():max():item(), 0)
end

-- ---- A2C is PPO with one epoch of one minibatch ----

TestA2C = {}

function TestA2C.test_an_update_is_that_of_ppo_with_one_epoch_of_one_minibatch()
  local env = peri.env.make("CartPole-v1", { n = 4, seed = 1 })
  local function learner()
    peri.seed(5)
    local net = rl.ActorCritic { obs = env.obs_space, action = env.action_space, hidden = { 16 } }
    return net, optim.RMSprop(net, { lr = 7e-3, alpha = 0.99, eps = 1e-5 })
  end
  local a2c, a2c_opt = learner()
  local ppo, ppo_opt = learner()
  local function value(x) return a2c:value(x) end
  local rollout = peri.rollout { steps = 8, rows = 4, fields = { obs = { "f32", 4 }, final_obs = { "f32", 4 }, action = "i64",
    logp = "f32", reward = "f32", terminated = "bool", truncated = "bool", advantage = "f32", returns = "f32", value = "f32" } }
  env:reset()
  for _ = 1, 25 do
    for t = 1, 8 do
      local _ <close> = peri.no_grad()
      local obs = env.obs
      local action, logp = a2c:policy(obs):act()
      rollout:set(t, { obs = obs, action = action, logp = logp })
      local _, reward, terminated, truncated = env:step(action)
      rollout:set(t, { reward = reward, terminated = terminated, truncated = truncated, final_obs = env.final_obs })
    end
    rollout:put(rl.gae(rollout, { value = value, last = env.obs, lam = 1 }))
    local b = rollout:flatten()
    local logp, entropy = a2c:policy(b.obs):evaluate(b.action)
    local loss = -(logp * b.advantage):mean() + (a2c:value(b.obs) - b.returns):square():mean() * 0.5 - entropy:mean() * 0.01
    loss:backward()
    a2c_opt:step({ clip = 0.5 }):zero_grad()
    local d, v = ppo:both(b.obs)
    logp, entropy = d:evaluate(b.action)
    -- PPO's value loss has a half of its own
    loss = peri.ppo_loss(logp, b.logp, b.advantage, entropy, v, b.returns, b.value,
      { clip = 0.2, vf_coef = 1, ent_coef = 0.01, normalize = false })
    loss:backward()
    ppo_opt:step({ clip = 0.5 }):zero_grad()
    lu.assertTrue((optim.flatten(a2c) - optim.flatten(ppo)):abs():max():item() < 2e-4)
  end
  lu.assertTrue((optim.flatten(a2c) - optim.flatten(learner())):abs():max():item() > 0.02) -- and they have moved
end

os.exit(lu.LuaUnit.run())
