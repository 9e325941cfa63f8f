-- Advantages of answers and of tokens: laws over every estimator, and the traps of PPO's and REINFORCE's pieces.
local lu = require "luaunit"
local peri = require "perilune"
local llama = require "perilune.models.llama"
local loss = require "perilune.loss"
local rl = require "perilune.rl"
local text = require "perilune.text"

local inf, nan = math.huge, 0 / 0

local function f(t, dtype) return peri.tensor(t, dtype or "f32") end

-- Three groups of four answers of up to four tokens, each with two rewards.
local LENGTHS = { 4, 2, 1, 3, 4, 4, 2, 1, 3, 3, 1, 2 }
local ACCURACY = { 1, 0, 0, 1, 0, 0, 0, 1, 1, 1, 1, 0 }
local FORMAT = { 0.5, -1, 0.25, 0, 1, 0.1, 0.2, 0.3, -0.5, 0.5, 0.75, 1 }
local W = {}
for i, n in ipairs(LENGTHS) do
  W[i] = {}
  for t = 1, 4 do W[i][t] = t <= n and 1 or 0 end
end

local function table_of(fn)
  local out = {}
  for i, row in ipairs(W) do
    out[i] = {}
    for t, w in ipairs(row) do out[i][t] = fn(i, t, w) end
  end
  return out
end

local LOGP = table_of(function (i, t) return -0.1 * i - 0.3 * t end)
local REF = table_of(function (i, t) return -0.15 * i - 0.2 * t * t / 2 end)

-- A rollout; junk stands where the mask is 0.
local function batch_of(o)
  o = o or {}
  local junk = o.junk or 0
  local function tensor(list)
    return f(table_of(function (i, t, w) return w == 0 and junk or list[i][t] end))
  end
  local batch = { group = o.group or 4, total = {}, names = { "accuracy", "format" }, weights = { 1, 0.5 },
    rewards = { accuracy = { table.unpack(o.accuracy or ACCURACY) }, format = { table.unpack(o.format or FORMAT) } },
    tokens = {}, ended = {}, mask = f(W), logprobs = tensor(LOGP), baseline = {} }
  for i, n in ipairs(LENGTHS) do
    batch.tokens[i], batch.ended[i], batch.baseline[i] = {}, n < 4, 0.25
    for t = 1, n do batch.tokens[i][t] = 1 end
    batch.total[i] = batch.rewards.accuracy[i] + 0.5 * batch.rewards.format[i]
  end
  return batch, tensor(REF)
end

-- Every estimator of whole answers.
local estimators = { "grpo", "dr_grpo", "batch", "rloo", "reinforce", "reinforce_plus_plus", "reinforce_plus_plus_baseline",
  "remax", "opo", "gdpo" }
local of_a_group = { grpo = true, dr_grpo = true, batch = true, rloo = true, reinforce_plus_plus_baseline = true, opo = true }

TestEstimators = {}

function TestEstimators.test_every_one_is_here()
  local known = {}
  for _, name in ipairs(estimators) do known[name] = true end
  known.process = true
  for name in rl.advantage_rules.estimator.kind:gmatch '"([%w_]+)"' do lu.assertTrue(known[name], name) end
  lu.assertErrorMsgContains('estimator is "rlo", expected one of "batch", "dr_grpo", "gdpo"', rl.advantages, batch_of(),
    { estimator = "rlo" })
end

function TestEstimators.test_what_stands_at_weight_0_changes_none_by_a_bit()
  for _, name in ipairs(estimators) do
    for _, beta in ipairs { 0, name ~= "gdpo" and 0.1 or nil } do
      local function run(junk)
        local batch, ref = batch_of { junk = junk }
        local a, w = rl.advantages(batch, { estimator = name, reward_beta = beta, ref = ref })
        return { a:bytes(), w:bytes() }
      end
      local clean = run(0)
      for _, junk in ipairs { nan, inf, -inf, 1e30 } do lu.assertEquals(run(junk), clean, name) end
    end
  end
end

function TestEstimators.test_an_abstention_counts_nowhere()
  for _, name in ipairs(estimators) do
    for _, beta in ipairs { 0, name ~= "gdpo" and 0.1 or nil } do
      local batch, ref = batch_of()
      batch.total[2], batch.rewards.accuracy[2], batch.rewards.format[2] = nan, nan, nan
      local o = { estimator = name, reward_beta = beta, ref = ref }
      local a, w = rl.advantages(batch, o)
      lu.assertTrue(a:isfinite():all():item(), name)
      lu.assertEquals(w:at(2):sum():item(), 0)
      if name ~= "remax" then lu.assertEquals(a:at(2):mul(w:at(2)):abs():max():item(), 0, name) end
      -- what it would have been changes none of the others
      batch.tokens[2], batch.logprobs = {}, batch.logprobs:add(f(table_of(function (i) return i == 2 and 7 or 0 end)))
      local again = rl.advantages(batch, o)
      for i = 1, 12 do if i ~= 2 then lu.assertEquals(again:at(i):bytes(), a:at(i):bytes(), name) end end
    end
  end
end

-- The other two groups have spread, so nothing is 0 by accident.
function TestEstimators.test_a_group_without_spread_gives_exactly_0()
  local accuracy, format = { table.unpack(ACCURACY) }, { table.unpack(FORMAT) }
  for i = 5, 8 do accuracy[i], format[i] = 0.1, 0.7 end -- 0.1 + 0.35 is rounded
  for _, name in ipairs(estimators) do
    for _, eps in ipairs { 0, 1e-4 } do
      local takes = name == "grpo" or name == "batch"
      local a = rl.advantages(batch_of { accuracy = accuracy, format = format },
        { estimator = name, eps = takes and eps or nil })
      lu.assertTrue(a:isfinite():all():item(), name)
      if of_a_group[name] and name ~= "reinforce_plus_plus_baseline" then -- which is whitened afterwards
        lu.assertEquals(a:narrow(1, 5, 4):abs():max():item(), 0, name)
      end
      lu.assertTrue(a:narrow(1, 1, 4):abs():max():item() > 0, name)
    end
  end
end

-- verl gives such an answer its raw reward; here a baseline of nothing but itself leaves nothing.
function TestEstimators.test_a_group_of_one_answer_gives_exactly_0()
  for name in pairs(of_a_group) do
    local a = rl.advantages(batch_of { group = 1 }, { estimator = name })
    lu.assertEquals(a:abs():max():item(), 0, name)
  end
  local a = rl.advantages(batch_of { group = 1 }, { estimator = "reinforce" })
  lu.assertEquals(a:at(1, 1), 1.25)
end

-- Dr. GRPO is RLOO up to G / (G - 1); where an answer abstained, G is how many did not.
function TestEstimators.test_dr_grpo_is_rloo_up_to_a_factor()
  local batch = batch_of()
  batch.total[6] = nan
  local centred, rloo = rl.advantages(batch, { estimator = "dr_grpo" }), rl.advantages(batch, { estimator = "rloo" })
  for group, factor in ipairs { 4 / 3, 3 / 2, 4 / 3 } do
    local first = (group - 1) * 4 + 1
    lu.assertTrue(centred:narrow(1, first, 4):mul(factor):sub(rloo:narrow(1, first, 4)):abs():max():item() < 1e-6)
  end
  -- and by hand: 1.25 less the mean of -0.5, 0.125 and 1
  lu.assertAlmostEquals(rloo:at(1, 1), 1.25 - 0.625 / 3, 1e-6)
  lu.assertTrue(rl.advantages(batch, { std = "none" }):sub(centred):abs():max():item() < 1e-6)
  lu.assertEquals(rl.advantages(batch, { estimator = "batch", std = "none" }):bytes(), centred:bytes())
end

function TestEstimators.test_the_deviation_is_chosen_and_eps_is_added()
  local batch = batch_of()
  for _, case in ipairs { { "sample", 0, 3 }, { "population", 0, 4 }, { "sample", 0.5, 3 }, { "population", 1e-6, 4 } } do
    local std, eps, n = table.unpack(case)
    local a = rl.advantages(batch, { std = std, eps = eps })
    local values, mean, squares = { 1.25, -0.5, 0.125, 1 }, 1.875 / 4, 0
    for _, v in ipairs(values) do squares = squares + (v - mean) ^ 2 end
    lu.assertAlmostEquals(a:at(1, 1), (1.25 - mean) / (math.sqrt(squares / n) + eps), 1e-6)
  end
end

-- RLOO takes the KL, k1 summed over the answer, off the reward: what is asked of each token is asked of the whole.
function TestEstimators.test_the_kl_in_the_reward_is_summed_over_the_answer()
  local batch, ref = batch_of()
  local paid = batch_of()
  for i, n in ipairs(LENGTHS) do
    for t = 1, n do paid.total[i] = paid.total[i] - 0.2 * (LOGP[i][t] - REF[i][t]) end
  end
  for _, name in ipairs { "grpo", "rloo", "batch", "opo", "dr_grpo" } do
    local got = rl.advantages(batch, { estimator = name, reward_beta = 0.2, ref = ref })
    local want = rl.advantages(paid, { estimator = name })
    lu.assertTrue(got:sub(want):abs():max():item() < 1e-5, name)
  end
end

function TestEstimators.test_truncated_answers_are_masked_and_still_count_in_the_baseline()
  for _, name in ipairs { "grpo", "rloo", "dr_grpo", "opo", "batch", "gdpo" } do
    local plain, weight = rl.advantages(batch_of(), { estimator = name })
    local masked, less = rl.advantages(batch_of(), { estimator = name, mask_truncated = true })
    lu.assertEquals(masked:bytes(), plain:bytes(), name)
    for i, n in ipairs(LENGTHS) do lu.assertEquals(less:at(i):sum():item(), n < 4 and n or 0) end
    lu.assertEquals(weight:sum():item(), f(W):sum():item())
  end
end

-- The whitened ones have mean 0 and variance 1 over the tokens that count, truncated answers left out.
function TestEstimators.test_reinforce_plus_plus_is_white_over_the_tokens_that_count()
  for _, name in ipairs { "reinforce_plus_plus", "reinforce_plus_plus_baseline" } do
    for _, truncated in ipairs { false, true } do
      local a, w = rl.advantages(batch_of(), { estimator = name, mask_truncated = truncated })
      local n = w:sum():item()
      lu.assertAlmostEquals(a:mul(w):sum():item() / n, 0, 1e-6)
      lu.assertAlmostEquals(a:mul(w):square():sum():item() / (n - 1), 1, 1e-5)
    end
  end
end

function TestEstimators.test_options_that_an_estimator_has_not_are_refused()
  local batch = batch_of()
  for message, call in pairs {
    ['estimator "rloo" has no std'] = { batch, { estimator = "rloo", std = "sample" } },
    ['estimator "grpo" has no gamma'] = { batch, { gamma = 0.9 } },
    ["reward_beta is 0.1 and there is no ref"] = { batch, { reward_beta = 0.1 } },
    ["reward_beta is 0.1 and gdpo takes its rewards one by one"] = { batch, { estimator = "gdpo", reward_beta = 0.1,
      ref = f(REF) } },
    ['estimator "process" needs step rewards'] = { batch, { estimator = "process" } },
    ["gamma is 2, expected"] = { batch, { estimator = "reinforce_plus_plus", gamma = 2 } },
  } do
    local ok, got = pcall(rl.advantages, table.unpack(call))
    lu.assertFalse(ok)
    lu.assertStrContains(got, "rl.advantages: " .. message)
  end
  batch.baseline = nil
  lu.assertErrorMsgContains("needs batch.baseline, the reward of the greedy answer beside each of the 12", rl.advantages,
    batch, { estimator = "remax" })
  batch.rewards = nil
  lu.assertErrorMsgContains('estimator "gdpo" needs a list of rewards', rl.advantages, batch, { estimator = "gdpo" })
  batch.steps, batch.covered = f(W), f(W)
  lu.assertErrorMsgContains('estimator "rloo" has no credit for step rewards', rl.advantages, batch, { estimator = "rloo" })
end

-- DeepSeekMath 4.1.3: the rewards of all steps of a group are normalised together, a token gets the sum of those that end
-- at it or behind it.
function TestEstimators.test_process_supervision_by_hand()
  local batch = { group = 2, total = { 0, 0 }, mask = f { { 1, 1, 1, 1 }, { 1, 1, 1, 0 } }, ended = { true, true },
    steps = f { { nan, 1, nan, 0 }, { 0, 0.5, 9, nan } }, covered = f { { 1, 1, 1, 1 }, { 1, 1, 1, 0 } },
    ends = f { { 0, 1, 0, 1 }, { 1, 1, 0, 0 } } }
  local mean, values = 1.5 / 4, { 1, 0, 0, 0.5 }
  local squares = 0
  for _, v in ipairs(values) do squares = squares + (v - mean) ^ 2 end
  local std = math.sqrt(squares / 4)
  local function r(v) return (v - mean) / std end
  local a, w = rl.advantages(batch, { estimator = "process", std = "population", eps = 0 })
  lu.assertEquals(w:bytes(), batch.mask:bytes())
  local less = { group = 2, total = { 0, nan }, mask = batch.mask, ended = {}, steps = batch.steps, covered = batch.covered,
    ends = f { { 0, 1, 0, 1 }, { 0, 0, 0, 0 } } }
  lu.assertEquals(select(2, rl.advantages(less, { estimator = "process" })):sum(2):tolist(), { 4, 0 })
  for i, row in ipairs { { r(1) + r(0), r(1) + r(0), r(0), r(0) }, { r(0) + r(0.5), r(0.5), 0, 0 } } do
    for t, want in ipairs(row) do lu.assertAlmostEquals(a:at(i, t), want, 1e-6) end
  end
end

-- ReMax's baseline is decoded once a prompt, and an answer that is the greedy one has nothing to learn.
function TestEstimators.test_remax_compares_with_the_greedy_answer()
  peri.seed(5)
  local tok = text.chars("0123456789,:", { separator = true })
  local model = llama.new({ model_type = "llama", vocab_size = tok.size, hidden_size = 16, intermediate_size = 32,
    num_hidden_layers = 1, num_attention_heads = 2, max_position_embeddings = 64 }, { std = 0.3 })
  local calls = 0
  local function reward(row, answer)
    calls = calls + 1
    if row.prompt == "3" then return nil end
    return #answer + (answer:byte() or 0) % 7
  end
  local rows, how = { { prompt = "1" }, { prompt = "2:4" }, { prompt = "3" } }, { max_new_tokens = 4 }
  local batch = rl.rollout(model, tok, rows, reward, { group = 3, max_new_tokens = 4 })
  batch.baseline = rl.greedy_rewards(batch, model, tok, reward, how)
  lu.assertEquals(calls, 9 + 3)
  local a, w = rl.advantages(batch, { estimator = "remax" })
  lu.assertTrue(a:isfinite():all():item())
  for i = 1, 6 do
    lu.assertEquals(a:at(i, 1), batch.total[i] - batch.baseline[i])
    lu.assertEquals(batch.baseline[i], batch.baseline[i <= 3 and 1 or 4])
  end
  lu.assertEquals(w:narrow(1, 7, 3):sum():item(), 0)
  batch.total[7], batch.total[8], batch.total[9] = 1, 2, 3 -- scored, and the greedy answer not
  lu.assertEquals(rl.advantages(batch, { estimator = "remax" }):narrow(1, 7, 3):abs():max():item(), 0)
end

TestTokens = {}

-- Ziegler et al. eq. 2, and TRL's missing_eos_penalty.
function TestTokens.test_rewards_of_tokens_score_at_the_last_kl_at_each()
  local w = f { { 1, 1, 0, 1, 0 }, { 1, 0, 0, 0, 0 }, { 0, 0, 0, 0, 0 } }
  local logp = f { { -1, -2, nan, -1, inf }, { -3, nan, nan, 1, 1 }, { nan, nan, nan, nan, nan } }
  local r = rl.token_rewards({ 5, 2, 9 }, w, { logp = logp, ref = peri.full({ 3, 5 }, -1.5), beta = 2,
    ended = { true, false, true }, missing_eos = 1 })
  lu.assertEquals(r:tolist(), { { -1, 1, 0, 4, 0 }, { 4, 0, 0, 0, 0 }, { 0, 0, 0, 0, 0 } })
  lu.assertErrorMsgContains("2 scores for 3 answers", rl.token_rewards, { 1, 2 }, w)
  lu.assertErrorMsgContains("beta is 1 and there is no ref", rl.token_rewards, { 1, 2, 3 }, w, { beta = 1, logp = w })
  lu.assertErrorMsgContains("missing_eos is 1 and there is no ended", rl.token_rewards, { 1, 2, 3 }, w, { missing_eos = 1 })
end

-- A tool's two tokens in the middle: stepped over as if they were not there, or steps of reward 0 and value 0.
function TestTokens.test_both_conventions_of_a_tools_tokens()
  local w = f({ { 1, 0, 0, 1 } }, "f64")
  local r, v = f({ { 0.5, nan, inf, 1 } }, "f64"), f({ { 0.2, nan, 9, 0.4 } }, "f64")
  local g, l = 0.9, 0.8
  local a, returns = rl.token_gae(r, v, w, { gamma = g, lam = l })
  local last = 1 - 0.4
  local first = 0.5 + g * 0.4 - 0.2 + g * l * last
  for t, want in ipairs { first, 0, 0, last } do lu.assertAlmostEquals(a:at(1, t), want, 1e-12) end
  lu.assertAlmostEquals(returns:at(1, 1), first + 0.2, 1e-12)
  local zero = rl.token_gae(r, v, w, { gamma = g, lam = l, skipped = "zero" })
  local third = g * 0.4 + g * l * last
  first = 0.5 + 0 - 0.2 + g * l * (g * l * third)
  for t, want in ipairs { first, 0, 0, last } do lu.assertAlmostEquals(zero:at(1, t), want, 1e-12) end
end

-- Without holes the two are one.
function TestTokens.test_without_holes_both_conventions_are_the_same()
  local w = f({ { 1, 1, 1, 0 }, { 1, 1, 1, 1 } }, "f64")
  local r, v = peri.randn({ 2, 4 }, { dtype = "f64" }), peri.randn({ 2, 4 }, { dtype = "f64" })
  local carried, returns = rl.token_gae(r, v, w)
  local zero, others = rl.token_gae(r, v, w, { skipped = "zero" })
  lu.assertTrue(carried:sub(zero):abs():max():item() < 1e-12)
  lu.assertTrue(returns:sub(others):abs():max():item() < 1e-12)
end

-- With gamma and lambda 1 and a value that is the same everywhere, PPO's advantages are REINFORCE's with that baseline.
function TestTokens.test_gae_of_a_constant_value_is_the_return_less_it()
  local w = f({ { 1, 1, 1, 0 } }, "f64")
  local a = rl.token_gae(f({ { 0, 0, 2, 0 } }, "f64"), peri.full({ 1, 4 }, 0.5, { dtype = "f64" }), w, { lam = 1 })
  for t, want in ipairs { 1.5, 1.5, 1.5, 0 } do lu.assertAlmostEquals(a:at(1, t), want, 1e-12) end
end

function TestTokens.test_whitening_is_of_what_counts()
  local x, w = f { { 1, 2, nan }, { 3, inf, -inf } }, f { { 1, 1, 0 }, { 1, 0, 0 } }
  local white = rl.whiten(x, w)
  for i, want in ipairs { -1, 0, 0 } do lu.assertAlmostEquals(white:at(1, i), want, 1e-6) end
  lu.assertAlmostEquals(white:at(2, 1), 1, 1e-6)
  lu.assertEquals(white:at(2):narrow(1, 2, 2):tolist(), { 0, 0 })
  local kept = rl.whiten(x, w, { shift = false })
  lu.assertAlmostEquals(kept:at(1, 1), -1 + 2, 1e-6)
  lu.assertEquals(kept:at(1, 3), 0)
  -- equal tokens, one token, no token: no variance, so nothing
  for _, case in ipairs { { 0.1, 0.1, 0.1 }, { 7, nan, nan } } do
    local own = f { case }
    lu.assertEquals(rl.whiten(own, own:isnan():logical_not():to "f32"):abs():max():item(), 0)
  end
  lu.assertEquals(rl.whiten(f { { nan } }, f { { 0 } }):item(), 0)
end

TestControl = {}

-- Ziegler et al. 2.2: a fifth over a horizon at most, and the state goes on to the bit.
function TestControl.test_the_kl_coefficient_follows_its_target()
  local c = rl.kl_controller { beta = 0.1, target = 2, horizon = 100 }
  lu.assertAlmostEquals(c:update(200, 50), 0.1 * 1.1, 1e-15) -- clipped to 0.2
  lu.assertAlmostEquals(c:update(0, 50), 0.11 * 0.9, 1e-15)
  lu.assertAlmostEquals(c:update(2.2, 50), 0.099 * 1.05, 1e-12)
  local before = c.beta
  lu.assertEquals(c:update(2, 1000), before)
  local other = rl.kl_controller { beta = 1, target = 2, horizon = 100 }
  other:set_state(peri.json.decode(peri.json.encode(c:state())))
  lu.assertEquals(other:update(3, 7), c:update(3, 7))
  for _, bad in ipairs { {}, { beta = "x" }, { beta = nan }, { beta = inf } } do
    lu.assertErrorMsgContains("the state has no finite number beta", c.set_state, c, bad)
  end
  lu.assertErrorMsgContains("kl_controller:update: kl is nan", c.update, c, nan, 1)
  lu.assertErrorMsgContains("target is missing", rl.kl_controller, { beta = 1 })
end

function TestControl.test_the_entropy_coefficient_is_applied_under_its_target_alone()
  local c = rl.entropy_controller { coef = 0.01, target = 0.5, delta = 0.02, max = 0.04 }
  lu.assertEquals(c:value(), 0) -- nothing was measured
  lu.assertEquals(c:update(0.6), 0)
  lu.assertEquals(c.coef, 0)
  lu.assertEquals(c:update(0.4), 0.02)
  lu.assertEquals(c:update(0.4), 0.04)
  lu.assertEquals(c:update(0.4), 0.04)
  local other = rl.entropy_controller { target = 0.5, delta = 0.02, max = 0.04 }
  other:set_state(peri.json.decode(peri.json.encode(c:state())))
  lu.assertEquals({ other:value(), other:update(1) }, { c:value(), c:update(1) })
  local fresh = rl.entropy_controller():set_state(rl.entropy_controller({ coef = 0.3 }):state())
  lu.assertEquals({ fresh.coef, fresh:value() }, { 0.3, 0 })
end

TestRefill = {}

local tok = text.chars("0123456789,:", { separator = true })

local function net(seed)
  peri.seed(seed)
  return llama.new({ model_type = "llama", vocab_size = tok.size, hidden_size = 16, intermediate_size = 32,
    num_hidden_layers = 1, num_attention_heads = 2, max_position_embeddings = 64 }, { std = 0.3 })
end

local function sevens(_, completion) return select(2, completion:gsub("7", "")) end

local function drawn(model, prompts, longest, reward)
  local rows = {}
  for i, p in ipairs(prompts) do rows[i] = { prompt = p } end
  return rl.rollout(model, tok, rows, reward or sevens, { group = 2, max_new_tokens = longest })
end

-- Rollouts of other widths, before and behind: every token has the log-probability that it was sampled with.
function TestRefill.test_joined_rollouts_are_the_rollouts()
  local model = net(1)
  local list = { drawn(model, { "1", "12:3" }, 3), drawn(model, { "1,2,3:4" }, 6), drawn(model, { "1:2", "5" }, 2) }
  local whole = rl.join(list)
  lu.assertEquals({ #whole.rows, #whole.texts, #whole.total, #whole.tokens, whole.ids:size(1) }, { 10, 10, 10, 10, 10 })
  local logp = model:token_logprobs(whole.sequences, whole.from)
  lu.assertEquals(logp:mul(whole.mask):bytes(), whole.logprobs:mul(whole.mask):bytes())
  local first = 1
  for _, batch in ipairs(list) do
    for i, ids in ipairs(batch.sequences:unpad()) do
      lu.assertEquals(whole.sequences:unpad()[first + i - 1], ids)
      lu.assertEquals(whole.texts[first + i - 1], batch.texts[i])
      lu.assertEquals(whole.total[first + i - 1], batch.total[i])
    end
    first = first + #batch.rows
  end
  local a, w = rl.advantages(whole)
  local apart, apart_w = {}, {}
  for k, batch in ipairs(list) do
    local b, v = rl.advantages(batch)
    apart[k], apart_w[k] = b:sum():item(), v:sum():item()
  end
  lu.assertAlmostEquals(a:sum():item(), apart[1] + apart[2] + apart[3], 1e-5)
  lu.assertEquals(w:sum():item(), apart_w[1] + apart_w[2] + apart_w[3])
  lu.assertTrue(rl.summary(whole).reward > -1)
  lu.assertErrorMsgContains("batch 2 has groups of another size", rl.join, { list[1], { group = 3 } })
end

function TestRefill.test_picked_groups_are_their_answers()
  local model = net(2)
  local batch = drawn(model, { "1", "2", "3" }, 3, { { "sevens", sevens }, { "length", function (_, t) return #t end, 0.1 } })
  local some = rl.pick(batch, { 3, 1 })
  for k, i in ipairs { 5, 6, 1, 2 } do
    lu.assertEquals({ some.texts[k], some.total[k], some.rewards.length[k], some.ended[k] },
      { batch.texts[i], batch.total[i], batch.rewards.length[i], batch.ended[i] })
    lu.assertEquals(some.logprobs:at(k):bytes(), batch.logprobs:at(i):bytes())
    lu.assertEquals(some.sequences:unpad()[k], batch.sequences:unpad()[i])
  end
  lu.assertEquals({ some.names, some.weights, some.from }, { batch.names, batch.weights, batch.from })
  lu.assertEquals(rl.summary(rl.pick(batch, { 1, 2, 3 })), rl.summary(batch))
  lu.assertErrorMsgContains("group 4, expected 1 to 3", rl.pick, batch, { 4 })
  lu.assertErrorMsgContains("there are no groups", rl.pick, batch, {})
end

function TestRefill.test_it_draws_until_enough_groups_have_spread()
  local model, asked = net(3), {}
  local function draw(n)
    asked[#asked + 1] = n
    local rows = {}
    for i = 1, n do rows[i] = ("%d"):format((#asked + i) % 10) end
    return drawn(model, rows, 3, function (row, _, tokens) -- every third prompt teaches
      return row.prompt:byte() % 3 == 0 and (tokens[1] % 2) + #tokens * 0.1 or 1
    end)
  end
  local batch, metrics = rl.refill(draw, 3, { most = 30 })
  lu.assertEquals(asked[1], 3)
  lu.assertEquals(metrics["sampling/draws"], #asked)
  local sum = 0
  for _, n in ipairs(asked) do sum = sum + n end
  lu.assertEquals(metrics["sampling/drawn"], sum)
  lu.assertEquals(#batch.rows, 2 * (3 - metrics["sampling/missing"]))
  lu.assertEquals(#rl.informative(batch), #batch.rows // 2)
  local none, of_none = rl.refill(function (n)
    local rows = {}
    for i = 1, n do rows[i] = "1" end
    return drawn(model, rows, 2, function () return 1 end)
  end, 2, { most = 3 })
  lu.assertNil(none)
  lu.assertEquals({ of_none["sampling/draws"], of_none["sampling/missing"], of_none["sampling/kept_ratio"] }, { 3, 2, 0 })
  lu.assertErrorMsgContains("prompts is 0", rl.refill, draw, 0)
end

-- The gradient of the parameters, by way of a model: a first step of GRPO is REINFORCE with the group's baseline to the bit.
function TestRefill.test_the_first_step_of_grpo_is_reinforce_with_the_groups_baseline()
  local model = net(4)
  local batch = drawn(model, { "1:2", "3", "4,5" }, 4)
  local advantage, weight = rl.advantages(batch)
  local function gradients(o)
    local logp = model:token_logprobs(batch.sequences, batch.from)
    loss.policy(logp, batch.logprobs, advantage, weight, o):backward()
    local out = {}
    for i, p in ipairs(model:parameters()) do
      out[i] = p.grad:add(0):bytes()
      p.grad = nil
    end
    return out
  end
  lu.assertEquals(gradients { reduce = "sequence" }, gradients { reduce = "sequence", objective = "reinforce" })
end

os.exit(lu.LuaUnit.run())
