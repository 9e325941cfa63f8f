-- What policy gradients share: advantages with what truncated episodes would have been worth, and the checks that run in
-- every recipe, each against the mistake that it is for.
local lu = require "luaunit"
local peri = require "perilune"
local rl, nn = peri.rl, peri.nn

TestGae, TestChecks, TestHead, TestActorCritic, TestRecurrent, TestApart = {}, {}, {}, {}, {}, {}

local STEPS, ROWS = 5, 4

-- A rollout over numbered observations, whose value is 10 times the number; row 1 is truncated at step 2, row 2
-- terminates there, row 3 does both.
local function rollout()
  local r = peri.rollout { steps = STEPS, rows = ROWS, fields = { obs = { "f32", 1 }, final_obs = { "f32", 1 },
    reward = "f32", terminated = "bool", truncated = "bool", advantage = "f32", returns = "f32", value = "f32" } }
  peri.seed(3)
  for t = 1, STEPS do
    local at = t == 2
    r:set(t, { obs = peri.randn { ROWS, 1 }, final_obs = peri.randn { ROWS, 1 }, reward = peri.randn { ROWS },
      truncated = peri.tensor { at, false, at, false }, terminated = peri.tensor { false, at, at, false } })
  end
  return r
end
local function value(obs) return obs:squeeze(-1) * 10 end
local last = peri.keep(peri.full({ ROWS, 1 }, 0.25))

-- The sums of the definition, one by one.
local function by_hand(r, gamma, lam, ignore)
  local obs, final = r:get("obs"):tolist(), r:get("final_obs"):tolist()
  local reward, over, cut = r:get("reward"):tolist(), r:get("terminated"):tolist(), r:get("truncated"):tolist()
  local out = {}
  for t = 1, STEPS do out[t] = {} end
  for row = 1, ROWS do
    local next_advantage = 0
    for t = STEPS, 1, -1 do
      local after = (t < STEPS and obs[t + 1][row][1] or 0.25) * 10
      if cut[t][row] then after = ignore and 0 or final[t][row][1] * 10 end
      if over[t][row] then after = 0 end
      local delta = reward[t][row] + gamma * after - obs[t][row][1] * 10
      next_advantage = delta + ((over[t][row] or cut[t][row]) and 0 or gamma * lam * next_advantage)
      out[t][row] = next_advantage
    end
  end
  return out
end

local function assert_near(got, want, margin)
  lu.assertTrue((got - want):abs():max():item() < (margin or 1e-4), tostring(got) .. tostring(want))
end

function TestGae.test_is_the_sum_of_its_definition()
  local r = rollout()
  for _, truncation in ipairs { "bootstrap", "ignore" } do
    for _, lam in ipairs { 0, 0.9, 1 } do
      local out = rl.gae(r, { value = value, last = last, gamma = 0.95, lam = lam, truncation = truncation })
      assert_near(out.advantage, peri.tensor(by_hand(r, 0.95, lam, truncation == "ignore"), "f32"))
      assert_near(out.value, r:get("obs"):squeeze(-1) * 10)
      assert_near(out.returns, out.advantage + out.value)
    end
  end
end

-- With seeds the value function gets the rows of each learner apart.
function TestGae.test_learners_see_their_own_rows()
  local r, seen = rollout(), nil
  local plain = rl.gae(r, { value = value, last = last })
  local out = rl.gae(r, { value = function (obs)
    seen = seen or obs
    return obs:squeeze(-1) * peri.tensor({ { 10 }, { 20 } }, "f32")
  end, last = last, seeds = 2 })
  lu.assertEquals(seen.shape, { 2, 10, 1 })
  lu.assertEquals(out.advantage:narrow(2, 1, 2):tolist(), plain.advantage:narrow(2, 1, 2):tolist())
  assert_near(out.value:narrow(2, 3, 2), r:get("obs"):squeeze(-1):narrow(2, 3, 2) * 20)
  lu.assertErrorMsgContains("seeds is 3, which does not divide the 4 rows", rl.gae, r,
    { value = value, last = last, seeds = 3 })
  lu.assertErrorMsgContains("value gave (20, 1), expected a tensor (20)", rl.gae, r,
    { value = function (x) return x end, last = last })
end

-- ---- checks ----

function TestChecks.test_the_first_ratio_is_one()
  local logp = peri.randn { 2, 6 }
  rl.checks.ratio(logp, logp:clone())
  rl.checks.ratio(logp, logp + 1e-5)
  local other = logp:tolist()
  other[2][3] = other[2][3] - math.log(2)
  lu.assertErrorMsgContains("the ratio of entry 8 (from 0) is 2, expected 1", rl.checks.ratio, logp, peri.tensor(other))
  other[1][5] = 0 / 0
  lu.assertErrorMsgContains("entry 4 (from 0) is nan", rl.checks.ratio, logp, peri.tensor(other))
  lu.assertErrorMsgContains("logp has shape (2, 6), old_logp (6)", rl.checks.ratio, logp, logp:select(1, 1))
end

-- A step of the optimizer between acting and learning, and a mask that only the actor saw.
function TestChecks.test_a_policy_that_moved_is_found()
  local net = rl.ActorCritic { obs = peri.env.box { low = -1, high = 1, shape = { 3 } }, action = peri.env.discrete(4) }
  local x = peri.randn { 8, 3 }
  local action, old = net:policy(x):act()
  rl.checks.ratio((net:policy(x):evaluate(action)), old)
  peri.no_grad(function () net.actor.layers[3].weight:copy_(net.actor.layers[3].weight + peri.randn { 4, 64 }) end)
  lu.assertErrorMsgContains("expected 1", function () rl.checks.ratio((net:policy(x):evaluate(action)), old) end)
  local mask = peri.tensor({ true, true, false, false }):expand { 8, 4 }
  action, old = net:policy(x, mask):act()
  lu.assertErrorMsgContains("expected 1", function () rl.checks.ratio((net:policy(x):evaluate(action)), old) end)
end

function TestChecks.test_a_truncated_step_goes_on_from_final_obs()
  local r = rollout()
  local how = { value = value, gamma = 0.95 }
  r:put(rl.gae(r, { value = value, last = last, gamma = 0.95 }))
  lu.assertTrue(rl.checks.bootstrap(r, how))
  r:put(rl.gae(r, { value = value, last = last, gamma = 0.95, truncation = "ignore" })) -- as if it had terminated
  lu.assertErrorMsgContains("step 2 of row 1 was truncated, and its advantage is", rl.checks.bootstrap, r, how)
  local none = peri.zeros({ ROWS, STEPS }, "bool")
  local v = value(r:get "obs"):transpose(1, 2)
  local wrong = peri.gae(r:get("reward"):transpose(1, 2), v, nil, none, none, { gamma = 0.95, lam = 0.95 })
  r:put { advantage = wrong:transpose(1, 2) } -- as if the next episode were the same one
  lu.assertErrorMsgContains("the value of final_obs", rl.checks.bootstrap, r, how)
  r:put { truncated = peri.zeros({ STEPS, ROWS }, "bool") }
  lu.assertFalse(rl.checks.bootstrap(r, how))
end

function TestChecks.test_no_gradient_reaches_what_was()
  local logp = peri.randn({ 3 }):requires_grad_()
  rl.checks.constant { old_logp = logp:detach(), advantage = peri.randn { 3 } }
  lu.assertErrorMsgContains("a gradient would reach old_logp", rl.checks.constant, { old_logp = logp * 1 })
  lu.assertErrorMsgContains("a gradient would reach advantage", rl.checks.constant,
    { old_logp = logp:detach(), advantage = logp })
end

-- ---- heads ----

function TestHead.test_every_space_of_actions_has_a_distribution()
  local e = peri.env
  for _, case in ipairs {
    { e.discrete(3, 5), 3, { "i64" } }, { e.multi_discrete { 2, 4 }, 6, { "i64", 2 } },
    { e.multi_binary(3), 3, { "f32", 3 } }, { e.box { low = { -1, 0 }, high = { 1, 2 } }, 2, { "f32", 2 } } } do
    local space, size, field = table.unpack(case)
    local head = rl.head(space)
    lu.assertEquals({ head.size, head.field }, { size, field })
    local d = head:dist(peri.randn { 50, size } * 3, { log_std = space.kind == "box" and peri.zeros { size } or nil })
    local action = d:act()
    lu.assertEquals(action.dtype, field[1])
    lu.assertEquals(#d:evaluate(action).shape, 1)
    for _, one in ipairs(head:sent(action):unbind(1)) do
      lu.assertTrue(space:contains(space.kind == "discrete" and one:item() or one), tostring(space) .. tostring(one))
    end
  end
  lu.assertErrorMsgContains("expected choices or a vector", rl.head, e.box { low = 0, high = 1, shape = { 2, 2 } })
end

function TestActorCritic.test_copies_are_its_networks_beside_each_other()
  for _, shared in ipairs { false, true } do
    local opts = { obs = peri.env.box { low = -1, high = 1, shape = { 3 } }, action = peri.env.discrete(2), shared = shared,
      hidden = { 8, 6 } }
    local copies = nn.Copies(3, function () return rl.ActorCritic(opts) end, { seeds = { 1, 2, 3 } })
    local x = peri.randn { 3, 5, 3 }
    local d, v = copies.net:both(x)
    lu.assertEquals(v.shape, { 3, 5 })
    lu.assertEquals(copies.net:value(x):tolist(), v:tolist())
    for i = 1, 3 do
      local one = copies:single(i)
      assert_near(one:policy(x:select(1, i)).logits, d.logits:select(1, i), 1e-6)
    end
    lu.assertTrue((d.logits:abs():max():item()) < 0.1) -- near uniform at first
  end
end

function TestActorCritic.test_a_saved_one_acts_as_it_does()
  for _, case in ipairs { { "CartPole-v1", "categorical" }, { "Taxi-v4", "categorical" }, { "Pendulum-v1", "gaussian" } } do
    for _, shared in ipairs { false, true } do
      local env = peri.env.make(case[1], { n = 6, seed = 1 })
      env:reset()
      local net = rl.ActorCritic { obs = env.obs_space, action = env.action_space, shared = shared, log_std = -1 }
      local path = os.tmpname()
      rl.policy.save(path, { net = net, head = case[2], env = env })
      local there = assert(rl.policy.load(path)):act(env.obs, { deterministic = true })
      assert_near(there:to "f32", net.head:sent(net:policy(env.obs):deterministic()):to "f32", 1e-5)
      os.remove(path)
    end
  end
  lu.assertErrorMsgContains("expected a vector or one of n", rl.ActorCritic,
    { obs = peri.env.box { low = 0, high = 1, shape = { 2, 2 } }, action = peri.env.discrete(2) })
end

-- A body of convolutions under both, saved with them.
function TestActorCritic.test_a_body_of_ones_own()
  local env, path = peri.env.make("MinBreakout-v0", { n = 5, seed = 1 }), os.tmpname()
  env:reset()
  local body = nn.Sequential(nn.Conv2d(4, 3, 3, { stride = 2, padding = 1 }), nn.ReLU(), nn.Flatten(), nn.Linear(75, 6))
  local net = rl.ActorCritic { obs = env.obs_space, action = env.action_space, body = body, width = 6 }
  nn.init.normal_(net.actor.layers[1].weight, 0, 3)
  local d, v = net:both(env.obs)
  lu.assertEquals({ d.logits.shape, v.shape }, { { 5, 3 }, { 5 } })
  rl.policy.save(path, { net = net, head = "categorical", env = env })
  lu.assertEquals(assert(rl.policy.load(path)):act(env.obs, { deterministic = true }):tolist(), d:deterministic():tolist())
  os.remove(path)
  lu.assertErrorMsgContains("body and width go together", rl.ActorCritic,
    { obs = env.obs_space, action = env.action_space, width = 6 })
end

-- ---- memory ----

-- Step by step and all at once are the same, over the beginnings of episodes; a saved one remembers in the same way.
function TestRecurrent.test_unrolled_is_step_by_step()
  local space = { obs = peri.env.box { low = -1, high = 1, shape = { 4 } }, action = peri.env.discrete(2) }
  for _, memory in ipairs { "lstm", "gru", "none" } do
    local net = rl.RecurrentActorCritic { obs = space.obs, action = space.action, memory = memory, hidden = 6,
      columns = { 1, 3 } }
    lu.assertEquals(net.encoder.in_features, 2)
    local x, starts = peri.randn { 3, 5, 4 }, peri.rand({ 3, 5 }):lt(0.3)
    local first = peri.randn { 3, table.unpack(net:state_shape()) }
    local logits, values, after = net:unroll(x, first, starts)
    local state = first
    for t = 1, 5 do
      local d, v
      d, v, state = net:step(x:select(2, t), state, starts:select(2, t))
      assert_near(d.logits, logits:select(2, t), 1e-6)
      assert_near(v, values:select(2, t), 1e-6)
    end
    assert_near(state, after, 1e-6)
  end
  lu.assertErrorMsgContains("column 5, expected 1 to 4", rl.RecurrentActorCritic,
    { obs = space.obs, action = space.action, columns = { 5 } })
end

function TestRecurrent.test_a_saved_one_remembers()
  local env, path = peri.env.make("CartPole-v1", { n = 4, seed = 1 }), os.tmpname()
  for _, memory in ipairs { "lstm", "gru", "none" } do
    local obs = env:reset { seed = 1 }
    local net = rl.RecurrentActorCritic { obs = env.obs_space, action = env.action_space, memory = memory, hidden = 6 }
    nn.init.normal_(net.actor.weight, 0, 3)
    rl.policy.save(path, { net = net, head = "categorical", env = env })
    local policy, state = assert(rl.policy.load(path)), net:initial(4)
    policy:restart()
    for _ = 1, 9 do
      local d
      d, _, state = net:step(obs, state)
      local action = policy:act(obs, { deterministic = true })
      lu.assertEquals(action:tolist(), d:deterministic():tolist())
      obs = env:step(action)
    end
  end
  os.remove(path)
end

-- The check of truncated episodes from values that the policy gave itself.
function TestRecurrent.test_values_behind_a_cut_may_be_given()
  local r = rollout()
  local out = rl.gae(r, { value = value, last = last, gamma = 0.95 })
  r:put(out)
  local after = r:get("final_obs"):squeeze(-1) * 10
  lu.assertTrue(rl.checks.bootstrap(r, { after = after, gamma = 0.95 }))
  lu.assertErrorMsgContains("step 2 of row 1 was truncated", rl.checks.bootstrap, r, { after = after + 1, gamma = 0.95 })
  lu.assertErrorMsgContains("expected one of value and after", rl.checks.bootstrap, r, { gamma = 0.95 })
end

-- ---- learners beside each other ----

function TestApart.test_rows_of_learners_stand_behind_each_other()
  local x = peri.arange(12):reshape { 6, 2 }
  local y = rl.apart(x, 3)
  lu.assertEquals(y:tolist()[2], { { 4, 5 }, { 6, 7 } })
  lu.assertEquals(rl.together(y):tolist(), x:tolist())
  lu.assertNil(rl.apart(nil, 3))
  lu.assertErrorMsgContains("4 seeds do not share the rows of (6, 2)", rl.apart, x, 4)
  lu.assertErrorMsgContains("x has shape (6), expected (seeds, n, ...)", rl.together, peri.zeros { 6 })
end

-- The first learner goes left, the second balances a little: means of their own.
function TestApart.test_an_evaluation_tells_learners_apart()
  local env = peri.env.make("CartPole-v1", { n = 8 })
  local score = rl.evaluate(env, function (obs)
    local better = obs:select(-1, 3):add(obs:select(-1, 4)):gt(0):to "i64"
    return better * (peri.arange(8):ge(4):to "i64")
  end, { episodes = 12, seeds = 2, seed = 1 })
  lu.assertEquals(#score.returns, 12)
  lu.assertEquals(#score.of_seed, 2)
  lu.assertTrue(score.of_seed[1] < 12 and score.of_seed[2] > 100, table.concat(score.of_seed, " "))
  lu.assertAlmostEquals((score.of_seed[1] + score.of_seed[2]) / 2, score.mean, 1e-9)
  lu.assertErrorMsgContains("3 seeds do not share 8 rows and 12 episodes evenly", rl.evaluate, env,
    function () return peri.zeros({ 8 }, "i64") end, { episodes = 12, seeds = 3 })
end

os.exit(lu.LuaUnit.run())
