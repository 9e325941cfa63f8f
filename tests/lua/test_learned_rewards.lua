-- Rewards that are learned from preferences, and bonuses for what is new.
local lu = require "luaunit"
local peri = require "perilune"

local rl, nn = peri.rl, peri.nn

TestLearnedRewards = {}

local STEPS <const>, ROWS <const> = 30, 6

-- A rollout of random actions; true_reward is a function of observation and action.
local function rollout_of(id, seed, max_steps)
  local env = peri.env.make(id, { n = ROWS, seed = seed, max_steps = max_steps })
  local obs_field = { env.obs_space.dtype, table.unpack(env.obs_space.shape) }
  local rollout = peri.rollout { steps = STEPS, rows = ROWS, fields = { obs = obs_field, final_obs = obs_field,
    action = rl.head(env.action_space).field, reward = "f32", terminated = "bool", truncated = "bool" } }
  local rng = peri.env.rng(seed)
  local obs = env:reset()
  for t = 1, STEPS do
    local action = env:sample(rng)
    local after, reward, terminated, truncated = env:step(action)
    rollout:set(t, { obs = obs, action = action, final_obs = env.final_obs, reward = reward, terminated = terminated,
      truncated = truncated })
    obs = after
  end
  return rollout, env, obs
end

local function model_of(env, more)
  local o = { obs = env.obs_space, action = env.action_space, seeds = { 1, 2 }, hidden = { 16 }, length = 5, members = 2 }
  for k, v in pairs(more or {}) do o[k] = v end
  return rl.PreferenceReward(o)
end

local kinds = { "Pendulum-v1", "CartPole-v1", "FrozenLake-v1" }

-- ---- preferences ----

function TestLearnedRewards.test_it_learns_what_the_judge_prefers()
  peri.seed(1)
  local rollout, env = rollout_of("Pendulum-v1", 3)
  local model = model_of(env, { lr = 1e-2, members = 3 })
  local said
  for _ = 1, 20 do
    said = model:compare(rollout, { pairs = 40 })
    model:learn(40)
  end
  local found = model:learn(50)
  lu.assertTrue(said.fresh > 0.85, said.fresh)
  lu.assertTrue(found.held_out > 0.85 and found.trained > 0.85)
  lu.assertEquals(#found.held_out_of_seed, 2)
  lu.assertTrue(said.correlation > 0.85)
  lu.assertTrue(rl.correlation(model:reward(rollout), rollout:get "reward") > 0.7)
  lu.assertEquals(model.pairs, 800)
end

-- Without actions states alone have worth, as a potential has.
function TestLearnedRewards.test_preferences_of_states_are_a_potential()
  peri.seed(1)
  local rollout, env = rollout_of("Pendulum-v1", 3)
  local model = rl.PreferenceReward { obs = env.obs_space, seeds = { 1, 2 }, length = 1, hidden = { 16 }, lr = 1e-2 }
  for _ = 1, 10 do
    model:compare(rollout, { pairs = 40, judge = function (x)
      local first = x:select(5, 1):select(4, 1) -- (S, P, 2): the first number of a segment's only step
      return first:select(3, 1):gt(first:select(3, 2)):to "f32"
    end })
    model:learn(40)
  end
  local obs = rollout:get("obs"):reshape({ STEPS, 2, ROWS // 2, 3 }):transpose(1, 2):reshape { 2, -1, 3 }
  local phi = model:potential(obs)
  lu.assertEquals(phi.shape, { 2, STEPS * ROWS // 2 })
  local order = peri.randperm(STEPS * ROWS // 2)
  local function other(x) return x - x:index_select(order, 2) end
  lu.assertTrue((other(phi) * other(obs:select(3, 1))):ge(0):to("f32"):mean():item() > 0.9)
  lu.assertErrorMsgContains("make it without action", function () model_of(env):potential(obs) end)
  local gain = rl.shaping(rollout, { potential = function (x) return model:potential(x) end, gamma = 0.9, seeds = 2 })
  lu.assertEquals(gain.shape, { STEPS, ROWS })
end

function TestLearnedRewards.test_labels_that_are_random_teach_nothing()
  peri.seed(1)
  local rollout, env = rollout_of("Pendulum-v1", 3)
  local model = model_of(env, { lr = 1e-2 })
  for _ = 1, 10 do model:compare(rollout, { pairs = 40, noise = 1 }) end
  lu.assertTrue(model:learn(200).held_out < 0.65)
end

-- A segment ends with its episode: what the model and the judge sum are its steps alone. By brute force.
function TestLearnedRewards.test_a_segment_ends_with_its_episode()
  for _, id in ipairs(kinds) do
    local rollout, env = rollout_of(id, 2, 7)
    local model, seen = model_of(env, { held_out = 0 }), nil
    model:compare(rollout, { pairs = 30, judge = function (x, weight)
      seen = { x:clone(), weight:tolist() }
      lu.assertEquals(x.shape, { 2, 30, 2, 5, model.features })
      return peri.zeros { 2, 30 }
    end })
    local cut = 0
    for s = 1, 2 do
      for p = 1, 30 do
        for k = 1, 2 do
          local w = seen[2][s][p][k]
          lu.assertEquals(w[1], 1)
          for t = 2, 5 do lu.assertTrue(w[t] <= w[t - 1]) end
          cut = cut + (w[5] == 0 and 1 or 0)
        end
      end
    end
    lu.assertTrue(cut > 0, id)
  end
end

-- Two learners have rows, pairs and networks of their own: what the other one has makes no difference.
function TestLearnedRewards.test_learners_are_apart()
  for _, id in ipairs(kinds) do
    local rollout, env = rollout_of(id, 2)
    local half = ROWS // 2
    local model = model_of(env)
    model:compare(rollout, { pairs = 12, judge = function (x)
      local mine = model.learned.x
      lu.assertEquals(mine.shape[1], 2)
      return x:select(4, 1):select(4, 1):select(3, 1):gt(0):to "f32"
    end })
    model:learn(3)
    local both = model:reward(rollout)
    local alone = model_of(env, { seeds = { 1 } })
    alone.net:load_state_dict(nn.Copies(2, function (i) return model.net:single(i) end):state_dict())
    alone.mean, alone.std = model.mean:narrow(1, 1, 2), model.std:narrow(1, 1, 2)
    local part = peri.rollout { steps = STEPS, rows = half, fields = { obs = { env.obs_space.dtype,
      table.unpack(env.obs_space.shape) }, action = rl.head(env.action_space).field } }
    part:put { obs = rollout:get("obs"):narrow(2, 1, half):contiguous(), action = rollout:get("action"):narrow(2, 1, half):contiguous() }
    lu.assertTrue((alone:reward(part) - both:narrow(2, 1, half)):abs():max():item() < 1e-5, id)
  end
end

function TestLearnedRewards.test_rewards_are_scaled_over_what_was_compared()
  local rollout, env = rollout_of("CartPole-v1", 2, 1000)
  for _, center in ipairs { true, false } do
    local model = model_of(env, { center = center, seeds = { 4 }, members = 1, length = 1, held_out = 0 })
    model:compare(rollout, { pairs = 300, judge = function () return peri.full({ 1, 300 }, 0.5) end })
    model:learn(1)
    local x = model.learned.x:narrow(2, 1, 300):reshape { 1, 600, 6 }
    local r = peri.no_grad(function () return model.net(x):squeeze(-1) end)
    lu.assertAlmostEquals(model.mean:item(), r:mean():item(), 1e-5)
    lu.assertAlmostEquals(model.std:item(), math.sqrt((r - r:mean()):square():mean():item() + 1e-8), 1e-5)
    local want = (peri.no_grad(function () return model.net(peri.cat({ rollout:get "obs", rollout:get("action"):one_hot(2):to "f32" },
      -1):reshape { 1, STEPS * ROWS, 6 }) end):reshape { STEPS, ROWS } - (center and r:mean() or 0)) / model.std:item()
    lu.assertTrue((model:reward(rollout) - want):abs():max():item() < 1e-4)
  end
end

-- Of many candidates those are asked for that the ensemble agrees least on.
function TestLearnedRewards.test_the_judge_is_asked_where_the_ensemble_disagrees()
  peri.seed(3)
  local rollout, env = rollout_of("Pendulum-v1", 3)
  local model = model_of(env, { members = 3 })
  model:compare(rollout, { pairs = 20 })
  model:learn(30)
  local spread = {}
  for i, candidates in ipairs { 1, 20 } do
    local some
    model:compare(rollout, { pairs = 20, candidates = candidates, judge = "reward" })
    local at = (model.learned.at - 16) % model.learned.capacity
    some = model.learned.x:narrow(2, at + 1, 16)
    local d = peri.no_grad(function ()
      return model.net(some:reshape({ 2, 1, 16 * 2 * 5, 4 }):expand({ 2, 3, 160, 4 }):reshape { 6, 160, 4 })
    end):reshape({ 6, 16, 2, 5 }):sum(-1)
    local p = ((d:select(3, 1) - d:select(3, 2)) / model.std):sigmoid():reshape { 2, 3, 16 }
    spread[i] = (p - p:mean(2, true)):square():mean():item()
  end
  lu.assertTrue(spread[2] > 1.5 * spread[1])
end

function TestLearnedRewards.test_a_state_goes_on_and_a_wrong_one_changes_nothing()
  for _, id in ipairs(kinds) do
    local rollout, env = rollout_of(id, 2)
    local a, b = model_of(env, { capacity = 20 }), model_of(env, { capacity = 20, seeds = { 8, 9 } })
    for _ = 1, 3 do a:compare(rollout, { pairs = 7 }) a:learn(2) end
    b:load_state_dict(a:state_dict())
    for _, model in ipairs { a, b } do
      peri.seed(5)
      model:compare(rollout, { pairs = 7 })
      model:learn(2)
    end
    lu.assertEquals(a:reward(rollout):tolist(), b:reward(rollout):tolist())
    local tensors, plain = a:state_dict()
    local before = b:reward(rollout):tolist()
    tensors.mean = nil
    lu.assertErrorMsgContains("mean is missing", b.load_state_dict, b, tensors, plain)
    tensors.mean, tensors.other = a.mean, a.mean
    lu.assertErrorMsgContains("unexpected other", b.load_state_dict, b, tensors, plain)
    lu.assertEquals(b:reward(rollout):tolist(), before)
  end
end

function TestLearnedRewards.test_what_does_not_fit_is_refused()
  local rollout, env = rollout_of("CartPole-v1", 2)
  local model = model_of(env)
  lu.assertErrorMsgContains("there are no pairs", model.learn, model, 3)
  lu.assertErrorMsgContains("steps is -1, expected an integer", model.learn, model, -1)
  lu.assertErrorMsgContains("judge gave number", model.compare, model, rollout, { judge = function () return 1 end })
  lu.assertErrorMsgContains("has no segment of 31", function () model_of(env, { length = 31 }):compare(rollout) end)
  lu.assertErrorMsgContains("4 learners do not share 6 rows", function () model_of(env, { seeds = { 1, 2, 3, 4 } }):reward(rollout) end)
  lu.assertErrorMsgContains("expected a vector or one of n", model_of, { obs_space = peri.env.box { low = 0, high = 1, shape = { 2, 2 } },
    action_space = env.action_space })
  lu.assertErrorMsgContains('did you mean "members"?', model_of, env, { member = 2 })
end

function TestLearnedRewards.test_a_correlation_is_that_of_the_numbers()
  local x = peri.tensor({ 1, 2, 3, 5 }, "f32")
  lu.assertAlmostEquals(rl.correlation(x, x * 3 + 1), 1, 1e-12)
  lu.assertAlmostEquals(rl.correlation(x, -x), -1, 1e-12)
  lu.assertAlmostEquals(rl.correlation(x, peri.tensor({ 2, 1, 4, 3 }, "f32")), 0.5291503, 1e-6)
  lu.assertNil(rl.correlation(x, peri.ones { 4 }))
end

-- ---- counts ----

function TestLearnedRewards.test_counts_are_those_of_brute_force()
  for _, of_pairs in ipairs { true, false } do
    local rollout, env = rollout_of("FrozenLake-v1", 2)
    local counts = rl.Counts { obs = env.obs_space, action = of_pairs and env.action_space or nil, seeds = 2 }
    local want = { {}, {} }
    for round = 1, 2 do
      local bonus = counts:bonus(rollout):tolist()
      local s, a, n = rollout:get("obs"):tolist(), rollout:get("action"):tolist(), rollout:get("final_obs"):tolist()
      local function key(t, row) return of_pairs and s[t][row] * 4 + a[t][row] or n[t][row] end
      for t = 1, STEPS do
        for row = 1, ROWS do
          local c = want[row <= 3 and 1 or 2]
          c[key(t, row)] = (c[key(t, row)] or 0) + 1
        end
      end
      for t = 1, STEPS do
        for row = 1, ROWS do
          lu.assertAlmostEquals(bonus[t][row], 1 / math.sqrt(want[row <= 3 and 1 or 2][key(t, row)]), 1e-6, round)
        end
      end
    end
    local other = rl.Counts { obs = env.obs_space, action = of_pairs and env.action_space or nil, seeds = 2 }
    other:load_state_dict(counts:state_dict())
    lu.assertEquals(other:bonus(rollout):tolist(), counts:bonus(rollout):tolist())
  end
end

function TestLearnedRewards.test_vectors_are_counted_by_the_signs_of_projections()
  local rollout, env = rollout_of("CartPole-v1", 2)
  local counts = rl.Counts { obs = env.obs_space, bits = 8, seed = 1 }
  local x = rollout:get("final_obs"):reshape { -1, 4 }
  local at = counts:state_of(x)
  lu.assertTrue(at:min():item() >= 0 and at:max():item() < 256)
  lu.assertEquals(counts:state_of(x * 7):tolist(), at:tolist())      -- directions alone count
  lu.assertTrue(#at:sort():tolist() == STEPS * ROWS)
  local distinct = {}
  for _, v in ipairs(at:tolist()) do distinct[v] = true end
  local n = 0
  for _ in pairs(distinct) do n = n + 1 end
  lu.assertTrue(n > 5)
  local first = counts:bonus(rollout)
  lu.assertTrue((counts:bonus(rollout) - first / math.sqrt(2)):abs():max():item() < 1e-6)
end

-- ---- distillation ----

function TestLearnedRewards.test_what_was_seen_often_is_no_longer_new()
  for _, id in ipairs { "FrozenLake-v1", "CartPole-v1" } do
    peri.seed(2)
    local rollout, env = rollout_of(id, 2)
    local novelty = rl.RandomDistillation { obs = env.obs_space, seeds = { 1, 2 }, epochs = 20 }
    local first = novelty:bonus(rollout)
    lu.assertEquals(first.shape, { STEPS, ROWS })
    lu.assertTrue(first:min():item() >= 0)
    local fixed = novelty.fixed:state_dict()
    local before = fixed[next(fixed)]:bytes()
    for _ = 1, 10 do novelty:learn(rollout) end
    lu.assertEquals(novelty.fixed:state_dict()[next(fixed)]:bytes(), before)
    lu.assertTrue(novelty:bonus(rollout):mean():item() < 0.3 * first:mean():item(), id)
    local other = rl.RandomDistillation { obs = env.obs_space, seeds = { 1, 2 }, epochs = 20 }
    other:load_state_dict(novelty:state_dict())
    lu.assertEquals(other:bonus(rollout):tolist(), novelty:bonus(rollout):tolist())
  end
end

-- A state that was never seen pays more than those that were: it is the state that is learned, not the bias.
function TestLearnedRewards.test_a_state_that_was_not_seen_stays_new()
  for _, size in ipairs { 4, 16 } do
    peri.seed(4)
    local env = peri.env.make("DeepSea-v0", { n = 4, size = size })
    local novelty = rl.RandomDistillation { obs = env.obs_space, seeds = { 1, 2 }, epochs = 20 }
    local function rollout_at(states)
      local rollout = peri.rollout { steps = #states, rows = 4, fields = { obs = "i64", final_obs = "i64" } }
      for t, s in ipairs(states) do rollout:set(t, { obs = peri.full({ 4 }, s, "i64"), final_obs = peri.full({ 4 }, s, "i64") }) end
      return rollout
    end
    local seen = {}
    for s = 0, size * size // 2 do seen[#seen + 1] = s end
    for _ = 1, 20 do novelty:learn(rollout_at(seen)) end
    local fresh = novelty:bonus(rollout_at { size * size - 1, size * size }):mean():item()
    lu.assertTrue(fresh > 3 * novelty:bonus(rollout_at(seen)):mean():item(), size)
  end
end

-- Bonuses are divided by the deviation of their discounted sum: by brute force on the first rollout.
function TestLearnedRewards.test_bonuses_are_scaled_by_the_deviation_of_their_sums()
  local rollout, env = rollout_of("FrozenLake-v1", 2)
  local novelty = rl.RandomDistillation { obs = env.obs_space, seeds = { 1 }, gamma = 0.8 }
  local x = rollout:get("final_obs"):reshape({ 1, -1 }):one_hot(16):to "f32" * 4 -- the root of 16 states
  local raw = peri.no_grad(function () return (novelty.net(x) - novelty.fixed(x)):square():mean(-1) end)
    :reshape({ STEPS, ROWS }):tolist()
  local sums, n, mean = {}, 0, 0
  for row = 1, ROWS do
    local sum = 0
    for t = 1, STEPS do
      sum = 0.8 * sum + raw[t][row]
      sums[#sums + 1], n, mean = sum, n + 1, mean + sum
    end
  end
  mean = mean / n
  local var = 0
  for _, v in ipairs(sums) do var = var + (v - mean) ^ 2 / n end
  local bonus = novelty:bonus(rollout):tolist()
  for t = 1, STEPS do
    for row = 1, ROWS do lu.assertAlmostEquals(bonus[t][row], raw[t][row] / math.sqrt(var + 1e-8), 1e-3) end
  end
end

-- The values of a bonus that does not end with an episode see past its end, those of an episodic one do not.
function TestLearnedRewards.test_a_bonus_is_valued_past_the_end_of_an_episode()
  for _, episodic in ipairs { true, false } do
    local rollout, env, last = rollout_of("FrozenLake-v1", 2)
    local critic = rl.BonusCritic { obs = env.obs_space, seeds = { 1, 2 }, gamma = 0.9, lam = 1, episodic = episodic }
    local bonus = peri.rand { STEPS, ROWS }
    local value = peri.no_grad(function ()
      local function of(x) return critic.value(x:reshape({ -1, 2, 3 }):transpose(1, 2):reshape { 2, -1 })
        :reshape({ 2, -1, 3 }):transpose(1, 2):reshape { -1, ROWS } end
      return { now = of(rollout:get "obs"):tolist(), last = of(last:reshape { 1, ROWS }):tolist()[1] }
    end)
    local b, t_, found = bonus:tolist(), rollout:get("terminated"):tolist(), critic:advantage(rollout, bonus, last):tolist()
    local ends = 0
    for row = 1, ROWS do
      local sum = value.last[row]
      for t = STEPS, 1, -1 do
        local over = episodic and t_[t][row] ~= false and t_[t][row] ~= 0
        ends = ends + (over and 1 or 0)
        sum = b[t][row] + (over and 0 or 0.9 * sum)
        lu.assertAlmostEquals(found[t][row], sum - value.now[t][row], 1e-4)
      end
    end
    lu.assertEquals(ends > 0, episodic)
  end
end

os.exit(lu.LuaUnit.run())
