-- Policy losses, KL estimates, values and advantages against TRL 1.16 and verl 0.9.1 on random inputs
-- (tests/data/policy_losses.json, written by tests/reference/policy_losses.py).
local lu = require "luaunit"
local peri = require "perilune"
local loss = require "perilune.loss"
local rl = require "perilune.rl"

local v = assert(peri.json.decode(assert(peri.files.read "tests/data/policy_losses.json")))
local input = v.inputs

local function f64(t) return peri.tensor(t, "f64") end

local function near(got, want, what)
  local d = got:sub(f64(want)):abs():max():item()
  lu.assertTrue(d < 1e-7, ("%s differs by %g"):format(what, d)) -- verl divides by counts + 1e-8
end

local mask, holes = f64(input.mask), f64(input.holes)
local ADVANTAGE = f64(input.advantage):unsqueeze(2)

-- Loss, gradients and statistics of the inputs under some options.
local function run(opts)
  local x, h = f64(input.logp):requires_grad_(), f64(input.entropy):requires_grad_()
  local o = { sampled = f64(input.sampled), entropy = h }
  for key, value in pairs(opts) do o[key] = value end
  if o.beta then o.ref = f64(input.ref) end
  local value, stats = loss.policy(x, f64(input.old), ADVANTAGE, mask, o)
  value:backward()
  return value, x.grad, stats, h.grad
end

local function check(name, opts, want, stats)
  local value, grad, got, entropy_grad = run(opts)
  lu.assertAlmostEquals(value:item(), want.loss, 1e-7, name)
  near(grad, want.grad, name .. ": gradient")
  if want.grad_entropy then near(entropy_grad, want.grad_entropy, name .. ": gradient of the entropy") end
  local named = loss.named(got)
  for key in pairs(stats or {}) do lu.assertAlmostEquals(named[key]:item(), want.stats[key], 1e-7, name .. ": " .. key) end
end

TestTrl = {}

local clips = { ["clip_ratio/low_mean"] = true, ["clip_ratio/high_mean"] = true, ["clip_ratio/region_mean"] = true,
  ["clip_ratio/low_min"] = true, ["clip_ratio/high_max"] = true, entropy = true }
local clips_and_kl = { kl = true }
for key in pairs(clips) do clips_and_kl[key] = true end

function TestTrl.test_losses_gradients_and_statistics_are_those_of_its_trainers()
  local sequence, high = "sequence", 0.28
  local cases = {
    grpo = { { reduce = sequence, clip_high = high }, clips },
    grpo_kl = { { reduce = sequence, clip_high = high, beta = 0.04 }, clips_and_kl },
    grpo_unbiased_kl = { { reduce = sequence, clip_high = high, beta = 0.04, unbiased_kl = true }, clips },
    grpo_delta = { { reduce = sequence, clip_high = high, delta = 1.5 }, clips },
    grpo_off_policy = { { reduce = sequence, clip_high = high, beta = 0.04, off_policy = 0.05 }, clips_and_kl },
    grpo_top_entropy = { { reduce = sequence, clip_high = high, beta = 0.04, top_entropy = 0.4 }, clips_and_kl },
    grpo_entropy = { { reduce = sequence, clip_high = high, entropy_coef = 0.05 }, clips },
    grpo_top_entropy_bonus = { { reduce = sequence, clip_high = high, entropy_coef = 0.05, top_entropy = 0.4 }, clips },
    gspo = { { reduce = sequence, level = sequence, clip = 0.03, clip_high = 0.04 } },
    gspo_kl = { { reduce = sequence, level = sequence, clip = 0.03, clip_high = 0.04, beta = 0.04 }, { kl = true } },
    bnpo = { { reduce = "token", clip_high = high }, clips },
    dapo = { { reduce = "token", clip_high = high }, clips },
    dr_grpo = { { reduce = "constant", max_length = 16, clip_high = high }, clips },
    cispo = { { objective = "cispo", clip = 1, clip_high = 0.5 } },
    sapo = { { objective = "sapo", reduce = sequence } },
    luspo = { { reduce = "sum", level = sequence, clip = 0.03, clip_high = 0.04 } },
    gmpo = { { objective = "gmpo", reduce = sequence, clip = 0.1, clip_high = 0.15, beta = 0.04 }, clips_and_kl },
  }
  for name, want in pairs(v.trl.losses) do check(name, cases[name][1], want, cases[name][2]) end
end

function TestTrl.test_importance_corrections_in_its_four_modes()
  for mode, want in pairs(v.trl.importance) do
    local factor, stats = loss.importance(f64(input.old), f64(input.sampled), mask,
      { mode = mode, max = want.max, min = want.min })
    near(factor:mul(mask), peri.tensor(want.factor, "f64"):mul(mask):tolist(), mode)
    check(mode, { factor = factor, clip_high = 0.28 }, want.dapo)
    lu.assertEquals(stats.masked:item() > 0, mode:find "mask$" ~= nil, mode)
    lu.assertTrue(stats.ratio_max:item() > want.max, mode .. ": of the ratios before they are held")
  end
end

local totals = {}
for i, a in ipairs(input.accuracy) do totals[i] = input.weights[1] * a + input.weights[2] * input.format[i] end

-- A rollout of these rewards.
local function batch_of(accuracy, format)
  local batch = { group = input.group, total = {}, names = { "accuracy", "format" }, weights = input.weights, tokens = {},
    rewards = { accuracy = accuracy, format = format }, mask = mask, logprobs = f64(input.old), ended = {},
    baseline = input.greedy }
  for i, row in ipairs(input.mask) do
    local a, b = accuracy[i] * input.weights[1], format[i] * input.weights[2]
    if a == a and b == b then batch.total[i] = a + b elseif a == a then batch.total[i] = a else batch.total[i] = b end
    batch.tokens[i] = {}
    for t, m in ipairs(row) do if m ~= 0 then batch.tokens[i][t] = 1 end end
  end
  return batch
end

-- Advantages of whole answers: one number a row.
local function per_answer(batch, opts)
  local a = rl.advantages(batch, opts)
  return a:to("f64"):at(1, 1) and a:to("f64"):sum(2):div(mask:sum(2))
end

local function near_f32(got, want, what)
  local d = got:sub(f64(want)):abs():max():item()
  lu.assertTrue(d < 1e-5, ("%s differs by %g"):format(what, d))
end

local shared = { group = {}, none = { estimator = "dr_grpo" }, batch = { estimator = "batch" }, gdpo = { estimator = "gdpo" },
  rloo = { estimator = "rloo" }, rloo_kl = { estimator = "rloo", reward_beta = 0.05, ref = f64(input.ref) } }

function TestTrl.test_advantages_are_those_of_its_trainers()
  for name, want in pairs(v.trl.advantages) do
    near_f32(per_answer(batch_of(input.accuracy, input.format), shared[name]), want, name)
  end
end

function TestTrl.test_abstentions_count_nowhere()
  local nan = 0 / 0
  local accuracy, format = { table.unpack(input.accuracy) }, { table.unpack(input.format) }
  accuracy[2], format[2], format[7] = nan, nan, nan
  local batch = batch_of(accuracy, format)
  for name, want in pairs(v.trl.abstained) do
    near_f32(per_answer(batch, shared[name]), want, name)
    local _, weight = rl.advantages(batch, shared[name])
    lu.assertEquals(weight:at(2):sum():item(), 0)
  end
end

TestVerl = {}

function TestVerl.test_losses_and_gradients_are_those_of_its_core_algorithms()
  local cases = {
    vanilla = { clip_high = 0.28, delta = 1.5 },
    vanilla_sequence = { clip_high = 0.28, delta = 3, reduce = "sequence" },
    vanilla_constant = { clip_high = 0.28, delta = 3, reduce = "constant" },
    vanilla_sum = { clip_high = 0.28, delta = 3, reduce = "sum" },
    dppo_tv = { objective = "dppo_tv", clip = 0.05, clip_high = 0.06, delta = 1.5 },
    gspo = { level = "sequence", reduce = "sequence", clip = 0.03, clip_high = 0.04 },
    sapo = { objective = "sapo", reduce = "sequence" },
    cispo = { objective = "cispo", clip_high = 0.28 },
    geo_mean = { objective = "gmpo", reduce = "sequence", clip = 0.1, clip_high = 0.15 },
    reinforce = { objective = "reinforce", reduce = "sum" },
  }
  for name, want in pairs(v.verl.losses) do
    check(name, cases[name], want)
    local _, _, stats = run(cases[name])
    if name:find "vanilla" or name == "dppo_tv" then
      lu.assertAlmostEquals(stats.clip_fraction:item(), want.stats.pg_clipfrac, 1e-7, name)
    end
  end
end

function TestVerl.test_kl_estimates_and_their_gradients()
  for name, want in pairs(v.verl.kl) do
    local x = f64(input.logp):requires_grad_()
    local kl = loss.kl(x, f64(input.ref), mask, { estimator = name })
    near(kl, want.value, name)
    kl:sum():backward()
    near(x.grad, want.grad, name .. ": gradient")
  end
end

function TestVerl.test_the_loss_of_values()
  local x, want = f64(input.new_values):requires_grad_(), v.verl.value
  local value, stats = loss.value(x, f64(input.token_rewards), mask, { clip = 0.2, old = f64(input.values) })
  value:backward()
  lu.assertAlmostEquals(value:item(), want.loss, 1e-7)
  near(x.grad, want.grad, "gradient")
  lu.assertAlmostEquals(stats.clip_fraction:item(), want.clipped, 1e-7)
end

function TestVerl.test_advantages_are_those_of_its_core_algorithms()
  local want, batch = v.verl.advantages, batch_of(input.accuracy, input.format)
  lu.assertEquals(batch.total, totals)
  for name, opts in pairs { grpo = { eps = 1e-6 }, rloo = { estimator = "rloo" }, opo = { estimator = "opo" },
    remax = { estimator = "remax" }, reinforce_plus_plus_baseline = { estimator = "reinforce_plus_plus_baseline" } } do
    near_f32(rl.advantages(batch, opts):to "f64", want[name], name)
  end
  batch.mask = holes -- a tool's tokens inside of answers: returns go through them
  near_f32(rl.advantages(batch, { estimator = "reinforce_plus_plus", gamma = 0.97, reward_beta = 0.05,
    ref = f64(input.ref) }):to "f64", want.reinforce_plus_plus, "reinforce_plus_plus")
end

-- verl steps over a tool's tokens; whitening comes after the returns.
function TestVerl.test_advantages_of_tokens_step_over_those_of_a_tool()
  local advantage, returns = rl.token_gae(f64(input.token_rewards), f64(input.values), holes, { gamma = 0.97, lam = 0.9 })
  near(rl.whiten(advantage, holes), v.verl.advantages.gae, "gae")
  near(returns, v.verl.advantages.gae_returns, "returns")
end

os.exit(lu.LuaUnit.run())
