-- Laws of perilune.rl's losses and estimators: what stands at weight 0 changes nothing by a bit, log-ratios are
-- bounded, statistics are what their names say, options are checked.
local lu = require "luaunit"
local peri = require "perilune"
local optim = require "perilune.optim"
local rl = require "perilune.rl"

local inf, nan = math.huge, 0 / 0

local function f(t, dtype) return peri.tensor(t, dtype or "f32") end

-- (3, 4): the first row whole, the second in part, the third not at all.
local WEIGHT = { { 1, 1, 1, 1 }, { 1, 1, 0, 0 }, { 0, 0, 0, 0 } }
local LOGP = { { -0.5, -1.5, -2, -0.1 }, { -3, -0.7, 0, 0 }, { 0, 0, 0, 0 } }
local OLD = { { -0.6, -1.1, -2.9, -0.1 }, { -1, -0.8, 0, 0 }, { 0, 0, 0, 0 } }
local REF = { { -0.4, -1.7, -2.1, -0.3 }, { -2, -1.9, 0, 0 }, { 0, 0, 0, 0 } }
local NONE = { { 0, 0, 0, 0 }, { 0, 0, 0, 0 }, { 0, 0, 0, 0 } }
local ADVANTAGE = { { 1, 1, 1, 1 }, { -0.5, -0.5, 0, 0 }, { 0, 0, 0, 0 } }

-- The same with a value wherever the weight is 0.
local function with(list, value)
  local out = {}
  for i, row in ipairs(list) do
    out[i] = {}
    for k, v in ipairs(row) do out[i][k] = WEIGHT[i][k] == 0 and value or v end
  end
  return out
end

local function bytes(stats)
  local out = {}
  for name, t in pairs(stats) do out[name] = t:bytes() end
  return out
end

local JUNK = { nan, inf, -inf, 1e30, -1e30, -100, 200, 1 }

TestJunkAtWeightZero = {}

-- Calls check with options for every level, reduction and penalty.
local function every_loss(check)
  for _, level in ipairs { "token", "sequence" } do
    for _, reduce in ipairs { "token", "sequence", "constant" } do
      for _, beta in ipairs { 0, 0.1 } do
        for _, ref in ipairs { false, true } do
          if ref or beta == 0 then check({ level = level, reduce = reduce, beta = beta }, ref) end
        end
      end
    end
  end
end

function TestJunkAtWeightZero.test_changes_no_loss_no_statistic_and_no_gradient()
  local function run(dtype, o, ref, logp, old, advantage, reference)
    local x = f(with(LOGP, logp), dtype):requires_grad_()
    local how = { ref = ref and f(with(REF, reference), dtype) or nil }
    for k, v in pairs(o) do how[k] = v end
    local loss, stats = rl.clipped(x, f(with(OLD, old), dtype), f(with(ADVANTAGE, advantage), dtype),
      f(WEIGHT, dtype), how)
    loss:backward()
    return { loss:bytes(), x.grad:bytes(), bytes(stats) }
  end
  for _, dtype in ipairs { "f32", "f64" } do
    every_loss(function (o, ref)
      local clean = run(dtype, o, ref, 0, 0, 0, 0)
      for i, junk in ipairs(JUNK) do
        local other = JUNK[i % #JUNK + 1]
        lu.assertEquals(run(dtype, o, ref, junk, 0, 0, 0), clean)
        lu.assertEquals(run(dtype, o, ref, 0, junk, 0, 0), clean)
        lu.assertEquals(run(dtype, o, ref, 0, 0, junk, 0), clean)
        lu.assertEquals(run(dtype, o, ref, 0, 0, 0, junk), clean)
        lu.assertEquals(run(dtype, o, ref, junk, other, junk, other), clean)
      end
    end)
  end
end

function TestJunkAtWeightZero.test_changes_no_kl()
  for _, junk in ipairs(JUNK) do
    local x, clean = f(with(LOGP, junk)):requires_grad_(), f(LOGP):requires_grad_()
    local kl, want = rl.kl(x, f(with(REF, -junk)), f(WEIGHT)), rl.kl(clean, f(REF), f(WEIGHT))
    lu.assertEquals(kl:bytes(), want:bytes())
    kl:sum():backward()
    want:sum():backward()
    lu.assertEquals(x.grad:bytes(), clean.grad:bytes())
    local function to(logp, ref)
      return rl.kl_to({ token_logprobs = function () return f(ref) end }, { ids = f(LOGP), from = 2,
        logprobs = f(logp), mask = f(WEIGHT) })
    end
    lu.assertEquals(to(with(LOGP, junk), with(REF, -junk)), to(LOGP, REF))
  end
end

function TestJunkAtWeightZero.test_changes_no_credit_no_choice_of_rows_and_no_summary()
  for _, junk in ipairs(JUNK) do
    local function batch(value)
      return { group = 3, total = { 1, 0.5, 0 }, steps = f(with(ADVANTAGE, value)), covered = f(WEIGHT),
        logprobs = f(with(LOGP, value)), mask = f(WEIGHT), tokens = { { 1 }, { 1 }, {} }, ended = {}, from = 2,
        ids = peri.zeros({ 3, 5 }, "i64") }
    end
    local a, w = rl.advantages(batch(junk))
    lu.assertEquals(a:bytes(), rl.advantages(batch(0)):bytes())
    lu.assertEquals(rl.summary(batch(junk)), rl.summary(batch(0)))
    local with_junk = f(with(ADVANTAGE, junk))
    for _, all in ipairs { false, true } do
      lu.assertEquals(rl.with_signal(batch(junk), with_junk, w, all).n, 2)
      local count = 0
      for group in rl.groups(batch(junk), with_junk, w, all) do count = count + #group.rows end
      lu.assertEquals(count, 2)
    end
  end
end

function TestJunkAtWeightZero.test_changes_no_estimate_of_the_ops()
  local mask = f(WEIGHT)
  for _, junk in ipairs(JUNK) do
    local function gae(v, flag)
      local a, r = peri.gae(f(with(ADVANTAGE, v)), f(with(OLD, v)), nil, nil, f(with(NONE, flag)), mask)
      return { a:bytes(), r:bytes() }
    end
    lu.assertEquals(gae(junk, 1), gae(0, 0)) -- a truncated step that is masked needs no value behind it
    lu.assertEquals(peri.group_advantage(f(with(ADVANTAGE, junk)), mask, 3):bytes(),
      peri.group_advantage(f(ADVANTAGE), mask, 3):bytes())
  end
end

-- By the op, and by the scores of models with a soft cap or an adapter on the head.
function TestJunkAtWeightZero.test_changes_no_log_probability_of_a_token()
  local base = require "perilune.models.base"
  local function run(by, junk)
    local h, w = f({ { 0.1, 0.2 }, { junk, junk } }):requires_grad_(), f({ { 1, 2 }, { 3, 4 }, { 0.5, -1 } }):requires_grad_()
    local target = peri.tensor({ 1, -100 }, "i64")
    local logp, entropy = by(h, w, target)
    logp:sum():add(entropy:sum()):backward()
    return { logp:add(0):bytes(), entropy:add(0):bytes(), h.grad:add(0):bytes(), w.grad:add(0):bytes() }
  end
  for _, by in ipairs { peri.token_logprob, function (h, w, target)
    return base.token_logprob_by(function (x) return x:linear(w) end, h, target)
  end } do
    for _, junk in ipairs(JUNK) do lu.assertEquals(run(by, junk), run(by, 0)) end
  end
end

TestBounds = {}

-- loss and gradient of one token.
local function one(logp, old, advantage, o)
  local x = f { { logp } }:requires_grad_()
  local loss, stats = rl.clipped(x, f { { old } }, f { { advantage } }, f { { 1 } }, o)
  loss:backward()
  return loss:item(), x.grad:item(), stats
end

function TestBounds.test_the_clipped_branch_has_a_gradient_of_0_however_large_the_ratio()
  for _, level in ipairs { "token", "sequence" } do
    for _, d in ipairs { 1, 19, 21, 89, 200, 1e4, inf } do
      local loss, grad = one(0, -d, 1, { level = level })
      lu.assertAlmostEquals(loss, -1.2, 1e-6)
      lu.assertEquals(grad, 0)
      local clipped_low = { one(-d, 0, -1, { level = level }) }
      lu.assertAlmostEquals(clipped_low[1], 0.8, 1e-6)
      lu.assertEquals(clipped_low[2], 0)
      lu.assertEquals((select(2, one(0, -d, 0, { level = level }))), 0)
    end
  end
end

function TestBounds.test_log_ratios_are_held_under_20()
  local top = math.exp(20)
  for _, d in ipairs { 20.5, 200, 1e30, inf } do
    local loss, grad, stats = one(0, -d, -1)
    lu.assertAlmostEquals(loss / top, 1, 1e-6)
    lu.assertEquals(grad, 0)
    lu.assertAlmostEquals(stats.ratio_max:item() / top, 1, 1e-6)
  end
  lu.assertAlmostEquals((select(2, one(0, -19, -1))) / math.exp(19), 1, 1e-6)
end

function TestBounds.test_the_kl_penalty_is_finite()
  local x = f { -100, -25, 0, -1 }:requires_grad_()
  local kl = rl.kl(x, f { 0, 0, -100, -1 })
  local top = math.exp(20) - 21
  lu.assertAlmostEquals(kl:at(1) / top, 1, 1e-6)
  lu.assertEquals(kl:at(2), kl:at(1))
  lu.assertEquals(kl:at(3), 99)
  kl:sum():backward()
  lu.assertEquals(x.grad:tolist(), { 0, 0, 1, 0 })
end

function TestBounds.test_no_token_at_all_is_a_loss_of_0()
  every_loss(function (o, ref)
    local x, zero = f(LOGP):requires_grad_(), peri.zeros { 3, 4 }
    o.ref = ref and f(REF) or nil
    local loss, stats = rl.clipped(x, f(OLD), f(ADVANTAGE), zero, o)
    loss:backward()
    lu.assertEquals(loss:item(), 0)
    lu.assertEquals(x.grad:abs():max():item(), 0)
    lu.assertEquals({ stats.ratio_min:item(), stats.ratio_max:item(), stats.clip_fraction:item() }, { 1, 1, 0 })
  end)
  local ref = { token_logprobs = function () return peri.zeros { 1, 2 } end }
  lu.assertEquals(rl.kl_to(ref, { ids = peri.zeros({ 1, 3 }, "i64"), from = 2, logprobs = peri.zeros { 1, 2 },
    mask = peri.zeros { 1, 2 } }), 0)
end

-- GSPO (2507.18071): d/dlogp_t of -s A with s = exp(mean of logp - old) is -s A / |y|, once.
function TestBounds.test_the_gradient_at_the_level_of_sequences_is_that_of_the_sequence_ratio()
  local x = f({ { -1, -2, -0.5 } }, "f64"):requires_grad_()
  local old = f({ { -1.1, -1.9, -0.6 } }, "f64")
  local loss = rl.clipped(x, old, f({ { 2, 2, 2 } }, "f64"), peri.ones({ 1, 3 }, "f64"), { level = "sequence",
    reduce = "sequence" })
  loss:backward()
  local s = math.exp(0.1 / 3)
  lu.assertAlmostEquals(loss:item(), -2 * s, 1e-12)
  for i = 1, 3 do lu.assertAlmostEquals(x.grad:at(1, i), -2 * s / 3, 1e-12) end
end

TestStatistics = {}

-- Ratios 0.5 and 2 with either sign: only a low one with a negative and a high one with a positive are clipped.
function TestStatistics.test_clipping_goes_by_the_sign_of_the_advantage()
  local logp = peri.tensor({ { 0.5, 2, 0.5, 2, 1, 3 } }, "f32"):log()
  local _, s = rl.clipped(logp, peri.zeros { 1, 6 }, f { { 1, 1, -1, -1, 1, 1 } }, f { { 1, 1, 1, 1, 1, 0 } })
  lu.assertAlmostEquals(s.clip_low:item(), 1 / 5, 1e-7)
  lu.assertAlmostEquals(s.clip_high:item(), 1 / 5, 1e-7)
  lu.assertAlmostEquals(s.clip_fraction:item(), 2 / 5, 1e-7)
  lu.assertAlmostEquals(s.ratio_max:item(), 2, 1e-6)
  lu.assertAlmostEquals(s.ratio_min:item(), 0.5, 1e-6)
end

function TestStatistics.test_the_ratios_extremes_are_ratios()
  local _, s = rl.clipped(f { { -3, -3 } }, f { { -1, -1 } }, f { { 1, 1 } }, f { { 1, 1 } })
  lu.assertEquals(s.clip_fraction:item(), 0)
  lu.assertAlmostEquals(s.ratio_max:item(), math.exp(-2), 1e-7)
  lu.assertAlmostEquals(s.ratio_min:item(), math.exp(-2), 1e-7)
end

function TestStatistics.test_micro_batches_add_up()
  local function run(first, n, tokens)
    local function part(t) return f(t):narrow(1, first, n) end
    local loss, s = rl.clipped(part(LOGP), part(OLD), part(ADVANTAGE), part(WEIGHT),
      { tokens = tokens, sequences = 3, beta = 0.1, ref = part(REF) })
    return { loss = loss:item(), clip = s.clip_fraction:item(), kl = s.kl:item() }
  end
  local whole, a, b = run(1, 3), run(1, 1, 6), run(2, 2, 6)
  for name, v in pairs(whole) do lu.assertAlmostEquals(a[name] + b[name], v, 1e-6) end
end

TestOptions = {}

function TestOptions.test_unknown_options_name_the_nearest_and_ranges_are_kept()
  local function clipped(o)
    return function () rl.clipped(f(LOGP), f(OLD), f(ADVANTAGE), f(WEIGHT), o) end
  end
  local batch = { total = { 1, 0 }, group = 2, mask = peri.ones { 2, 1 } }
  for message, call in pairs {
    ['loss.policy: unknown option "clip_hi"; did you mean "clip_high"?'] = clipped { clip_hi = 9 },
    ["loss.policy: beta is 0.5 and there is no ref"] = clipped { beta = 0.5 },
    ["clip is -0.1, expected a number in (0, inf]"] = clipped { clip = -0.1 },
    ["clip is 0, expected"] = clipped { clip = 0 },
    ["clip_high is nan"] = clipped { clip_high = nan },
    ["beta is -1, expected a number in [0, inf)"] = clipped { beta = -1, ref = f(REF) },
    ["level is \"tokens\", expected one of"] = clipped { level = "tokens" },
    ["reduce is \"mean\", expected one of"] = clipped { reduce = "mean" },
    ["tokens is 0, expected"] = clipped { tokens = 0 },
    ["ref is a number"] = clipped { ref = "x", beta = 1 },
    ["ref has shape (4), logp has (3, 4)"] = clipped { ref = peri.zeros { 4 }, beta = 1 },
    ['rl.advantages: unknown option "sdt"; did you mean "std"?'] = function () rl.advantages(batch, { sdt = "none" }) end,
    ["std is \"smaple\""] = function () rl.advantages(batch, { std = "smaple" }) end,
    ["eps is -1"] = function () rl.advantages(batch, { eps = -1 }) end,
    ['rl.curriculum: unknown option "flor"; did you mean "floor"?'] = function ()
      rl.curriculum({ {} }, { flor = 1 })
    end,
    ["floor is -0.1"] = function () rl.curriculum({ {} }, { floor = -0.1 }) end,
    ["best is 0"] = function () rl.curriculum({ {} }, { best = 0 }) end,
    ["best is nan"] = function () rl.curriculum({ {} }, { best = nan }) end,
    ["decay is 1.5"] = function () rl.curriculum({ {} }, { decay = 1.5 }) end,
    ["rl.curriculum: there are no rows"] = function () rl.curriculum {} end,
    ['rl.rollout: unknown option "gruop"; did you mean "group"?'] = function () rl.rollout({}, {}, { {} }, print, { gruop = 2 }) end,
    ["group is 0, expected an integer in [1, inf)"] = function () rl.rollout({}, {}, { {} }, print, { group = 0 }) end,
    ["rl.rollout: there are no rows"] = function () rl.rollout({}, {}, {}, print, { group = 1 }) end,
    ["rl.parts: size is 0"] = function () rl.parts({ n = 1 }, 0) end,
    ['rl.parts: size is "2", expected an integer in [1, inf)'] = function () rl.parts({ n = 1 }, "2") end,
    ["rl.parts: size is 1.5"] = function () rl.parts({ n = 1 }, 1.5) end,
    ["temperature is 0"] = function () rl.completion_logprobs({}, {}, {}, { temperature = 0 }) end,
  } do
    if message == "ref is a number" then message = 'ref is "x", expected tensor' end
    local ok, got = pcall(call)
    lu.assertFalse(ok, message)
    lu.assertStrContains(got, message)
    lu.assertStrContains(got, "test_rl_laws.lua") -- the place of the call
  end
end

function TestOptions.test_steppers_check_theirs()
  local x = peri.zeros { 2 }:requires_grad_()
  local opt = optim.SGD({ x }, { lr = 0.1 })
  local function grpo(o)
    local how = { model = {}, tokenizer = {}, rows = { {} }, reward = print, optimizer = opt }
    for k, v in pairs(o) do how[k] = v end
    return function () require("perilune.algo.grpo").new(how) end
  end
  local function sft(o)
    local how = { model = {}, optimizer = opt, examples = { { ids = { 1, 2 }, mask = { 0, 1 } } } }
    for k, v in pairs(o) do how[k] = v end
    return function () require("perilune.algo.sft").new(how) end
  end
  for message, call in pairs {
    ['grpo: unknown option "grop"; did you mean "group"?'] = grpo { grop = 2 },
    ["grpo: beta > 0 needs a reference model"] = grpo { beta = 0.1 },
    ["group is 0"] = grpo { group = 0 }, ["prompts is 1.5"] = grpo { prompts = 1.5 },
    ["clip_norm is -1"] = grpo { clip_norm = -1 }, ["temperature is 0"] = grpo { temperature = 0 },
    ["std is \"x\""] = grpo { std = "x" }, ["reward is 3"] = grpo { reward = 3 },
    ["grpo: there are no rows"] = grpo { rows = {} },
    ['sft: unknown option "packin"; did you mean "packing"?'] = sft { packin = true },
    ["batch_size is 0"] = sft { batch_size = 0 }, ["max_length is 1"] = sft { max_length = 1 },
    ["schedule is 3"] = sft { schedule = 3 }, ["packing is 1"] = sft { packing = 1 },
    ["sft: give rows or examples, not both"] = sft { rows = {} },
    ["sft: example 2 has no token to learn"] = sft { examples = { { ids = { 1, 2 }, mask = { 0, 1 } },
      { ids = { 1, 2 }, mask = { 1, 0 } } } },
    ["sft: example 1 has no ids with a mask"] = sft { examples = { { ids = { 1, 2 }, mask = { 1 } } } },
  } do lu.assertErrorMsgContains(message, call) end
  lu.assertErrorMsgContains("model is missing", require("perilune.algo.grpo").new, {})
  local sft_module = require "perilune.algo.sft"
  lu.assertErrorMsgContains("sft.evaluate: there are no examples", sft_module.evaluate, {}, {})
end

TestScores = {}

function TestScores.test_what_is_no_reward_names_the_function_and_the_completion()
  local rows = { { prompt = "1:2" }, { prompt = { { role = "user", content = "and then?" } } } }
  local function score(reward)
    return function () rl.score(rows, { "1", "2" }, { { 5 }, { 6 } }, reward) end
  end
  local function second(value, more)
    return function (row) if row == rows[2] then return value, more end return 1, more ~= nil and { 1 } or nil end
  end
  for message, reward in pairs {
    ['the value is a string, expected a number, or nil to abstain (completion 2: prompt "and then?", "2")'] = second "good",
    ["the value is nan"] = second(nan), ["the value is -inf"] = second(-inf), ["the value is a boolean"] = second(true),
    ["2 step rewards for 1 tokens (completion 2"] = second(1, { 1, 1 }),
    ["step 1 is inf"] = second(1, { inf }),
    ["the second value is 7, expected a list of step rewards"] = second(1, 7),
    ["reward accuracy: the value is a table"] = { { "length", function () return 1 end }, { "accuracy", second {} } },
    ["reward b: a list of step rewards: only a single function"] = { { "b", second(1, { 1 }) } },
    ["reward 2 is no { name, function, weight (1) }"] = { { "a", function () end }, { "b" } },
    ["reward 1 is no { name"] = { print }, ["the list of rewards is empty"] = {},
    ["rl.score: the reward is a number"] = 3,
    ["the value is 1e+39 (too large for f32), expected a number"] = second(1e39),
    ["step 1 is -1e+300 (too large for f32)"] = second(1, { -1e300 }),
    ["the weighted sum is 1.1e+39 (too large for f32)"] = { { "a", second(1e38), 1 }, { "b", second(1e38), 10 } },
  } do lu.assertErrorMsgContains(message, score(reward)) end
  lu.assertErrorMsgContains("reward 2 is no", score { { "a", second(1) }, { "a", second(1) } })
  lu.assertErrorMsgContains("reward 1 is no", score { { "a", second(1), nan } })
  lu.assertErrorMsgContains("1 rows, 2 texts, 1 lists of tokens", rl.score, { {} }, { "", "" }, { {} }, print)
end

-- Whichever completions have them, in whichever order.
function TestScores.test_step_rewards_come_with_all_completions_or_none()
  local rows, texts, tokens = { {}, {}, {} }, { "a", "b", "c" }, { { 1, 2 }, { 1, 2 }, { 1, 2 } }
  for pattern = 1, 6 do
    local k, given = 0, 0
    for i = 0, 2 do given = given + (pattern >> i & 1) end
    lu.assertErrorMsgContains(("step rewards came with %d of 3 completions"):format(given), rl.score, rows, texts, tokens,
      function ()
        k = k + 1
        return 1, pattern >> (k - 1) & 1 == 1 and { 1 } or nil
      end)
  end
  local k = 0
  local scored = rl.score(rows, texts, tokens, function ()
    k = k + 1
    if k == 2 then return nil end -- abstains
    return 1, k == 1 and { 1, 0.5 } or {}
  end)
  lu.assertEquals(scored.steps, { { 1, 0.5 }, {}, {} })
end

TestCurriculum = {}

-- Share of draws of each row.
local function shares(curriculum, n)
  local rng, count = peri.rng(3), {}
  for i = 1, #curriculum.rows do count[i] = 0 end
  for _ = 1, n do
    local row = curriculum:draw(rng)
    count[row.i] = count[row.i] + 1 / n
  end
  return count
end

local function curriculum(rewards, o)
  local rows, drawn = {}, {}
  for i in ipairs(rewards) do rows[i] = { i = i } end
  o = o or {}
  o.decay = 0
  local c = rl.curriculum(rows, o)
  for i, r in ipairs(rewards) do drawn[i] = { rows = { rows[i] }, total = { r } } c:update(drawn[i]) end
  return c
end

function TestCurriculum.test_a_draw_ends_whatever_the_rewards_were()
  local n = 4000
  for _, case in ipairs {
    { { 5, 5, 5 }, { 1 / 3, 1 / 3, 1 / 3 } },           -- all above the bound
    { { 5, 0.5 }, { 0.1 / 0.7, 0.6 / 0.7 } },
    { { -3, 1 }, { 1.1 / 1.2, 0.1 / 1.2 } },           -- below 0 counts as 0
    { { 1, 1, 1 }, { 1 / 3, 1 / 3, 1 / 3 }, 0 },       -- no chance is left to any
    { { 1, 0 }, { 0, 1 }, 0 }, { { 1e300, -1e300 }, { 0, 1 }, 0 },
    { { 0.5, 1 }, { 1, 0 }, 1e-12 },
  } do
    local got = shares(curriculum(case[1], { floor = case[3] }), n)
    for i, want in ipairs(case[2]) do
      -- five standard deviations of a share
      lu.assertAlmostEquals(got[i], want, 5 * math.sqrt(want * (1 - want) / n) + 1e-9)
    end
  end
end

function TestCurriculum.test_what_is_no_reward_of_its_rows_is_refused()
  local c = curriculum { 0, 0 }
  lu.assertErrorMsgContains("row 1 of the batch is none of its rows", c.update, c, { rows = { {} }, total = { 1 } })
  lu.assertErrorMsgContains("the reward of row 1 is inf", c.update, c, { rows = { c.rows[1] }, total = { inf } })
  lu.assertErrorMsgContains("the reward of row 2 is nil", c.update, c, { rows = c.rows, total = { 1 } })
  lu.assertEquals(c:state(), { seen = { 0, 0 } }) -- not half a batch
  for _, bad in ipairs { nan, inf, "x" } do
    lu.assertErrorMsgContains("the average of row 2 is", c.set_state, c, { seen = { 1, bad } })
  end
  lu.assertErrorMsgContains("the state is of 0 rows", c.set_state, c)
  lu.assertEquals(c:state(), { seen = { 0, 0 } })
  lu.assertErrorMsgContains("the reward of row 1 is nil", c.update, c, { rows = { c.rows[1] }, total = {} })
  c:update { rows = { c.rows[1] }, total = { nan } } -- abstained
  lu.assertEquals(c.seen, { 0, 0 })
  lu.assertErrorMsgContains("the state is of 1 rows, there are 2", c.set_state, c, { seen = { 1 } })
end

function TestCurriculum.test_a_row_that_comes_twice_has_one_average()
  local row, other = { i = 1 }, { i = 2 }
  local c = rl.curriculum({ row, other, row }, { decay = 0, floor = 0 })
  c:update { rows = { row }, total = { 1 } }
  local got = shares(c, 50)
  lu.assertEquals({ got[1], got[3] }, { 0, 0 })
end

os.exit(lu.LuaUnit.run())

function TestJunkAtWeightZero.test_an_argument_that_is_missing_is_named()
  local x = peri.zeros { 4, 2 }
  for message, call in pairs {
    ["loss.policy: weight is missing, expected tensor"] = function() rl.clipped(x, x, x) end,
    ["loss.policy: advantage is missing, expected tensor"] = function() rl.clipped(x, x, nil, x) end,
    ["loss.kl: ref is missing, expected tensor"] = function() rl.kl(x) end,
    ["rl.rollout: model is missing, expected table"] = function() rl.rollout() end,
    ["rl.summary: batch is missing, expected table"] = function() rl.summary() end,
    ["rl.score: rows is missing, expected table"] = function() rl.score() end,
    ["rl.groups: batch is missing, expected table"] = function() rl.groups() end,
    ["lora: model is missing, expected table"] = function() peri.peft.lora() end,
    ["collate: x: "] = function() peri.data.collate { { x = { 1, 2 } }, { x = { 1 } } } end,
  } do lu.assertErrorMsgContains(message, call) end
end
