-- Laws of perilune.loss over every variant that rl.preset names, and the traps of policy losses, each as a test.
local lu = require "luaunit"
local peri = require "perilune"
local loss = require "perilune.loss"
local options = require "perilune.options"
local rl = require "perilune.rl"

local inf, nan = math.huge, 0 / 0

local function f(t, dtype) return peri.tensor(t, dtype or "f64") end

-- Six answers of up to five tokens: two whole, one with a hole as a tool leaves it, one of one token, one of none.
local WEIGHT = { { 1, 1, 1, 1, 1 }, { 1, 1, 1, 1, 1 }, { 1, 0, 1, 1, 0 }, { 1, 0, 0, 0, 0 }, { 0, 0, 0, 0, 0 },
  { 1, 1, 1, 0, 0 } }

-- Random numbers of this file alone, in that shape.
local rng = peri.rng(7)
local function numbers(low, high)
  local out = {}
  for i, row in ipairs(WEIGHT) do
    out[i] = {}
    for k in ipairs(row) do out[i][k] = low + (high - low) * rng:uniform() end
  end
  return out
end

local function moved(list, by)
  local shift = numbers(-by, by)
  for i, row in ipairs(shift) do
    for k in ipairs(row) do row[k] = math.min(list[i][k] + row[k], -1e-3) end
  end
  return shift
end

local OLD = numbers(-4, -0.05)
local given = { old = OLD, logp = moved(OLD, 0.6), ref = moved(OLD, 0.9), sampled = moved(OLD, 0.3),
  entropy = numbers(0, 2), factor = numbers(0, 1.5), advantage = {} }
for i, a in ipairs { 1.2, -0.7, -1.1, 0.4, 2, -0.3 } do
  given.advantage[i] = { a, a, a, a, a }
end

-- Every objective at every level with every reduction; and what rl.preset says of the loss, by name, plain and with every
-- switch on, the estimates of the KL in turn.
local function variants()
  local out, estimators, n = {}, { "k1", "k2", "k3", "k1+", "k3+" }, 0
  for _, objective in ipairs { "clip", "reinforce", "cispo", "sapo", "gmpo", "dppo_tv" } do
    for _, level in ipairs(objective == "gmpo" and { "token" } or { "token", "sequence", "whole" }) do
      for _, reduce in ipairs { "token", "sequence", "sum", "constant" } do
        out[objective .. " " .. level .. " " .. reduce] = { objective = objective, level = level, reduce = reduce }
      end
    end
  end
  for _, name in ipairs(options.names(rl.presets)) do
    local plain, all = {}, {}
    for key, value in pairs(rl.preset(name)) do
      if loss.policy_rules[key] then plain[key], all[key] = value, value end
    end
    out[name] = plain
    n = n + 1
    all.beta, all.unbiased_kl, all.off_policy, all.entropy_coef = 0.1, n % 2 == 0, 0.1, 0.05
    all.kl = estimators[n % #estimators + 1]
    if all.objective ~= "gmpo" then all.top_entropy = 0.5 end
    out[name .. ", all switches"] = all
  end
  return out
end

-- Loss, gradients and statistics of rows first .. last.
local function run(variant, values, how)
  how = how or {}
  local dtype = how.dtype or "f64"
  local function part(t)
    t = f(t, dtype)
    return how.first and t:narrow(1, how.first, how.last - how.first + 1) or t
  end
  local o = { max_length = 9 }
  for _, t in ipairs { variant, how.whole or {} } do
    for key, value in pairs(t) do o[key] = value end
  end
  local x, h = part(values.logp):detach():requires_grad_(), part(values.entropy):detach():requires_grad_()
  if variant.beta and variant.beta > 0 then o.ref = part(values.ref) end
  if variant.off_policy then o.sampled, o.factor, o.entropy = part(values.sampled), part(values.factor), h end
  if variant.top_entropy then o.entropy = h end
  local value, stats = loss.policy(x, part(values.old), part(values.advantage), part(WEIGHT), o)
  value:backward()
  return { loss = value, grad = x.grad, entropy_grad = h.grad, stats = stats }
end

local function bytes(result)
  local out = { loss = result.loss:bytes(), grad = result.grad:bytes() }
  out.entropy_grad = result.entropy_grad and result.entropy_grad:bytes()
  for name, t in pairs(result.stats) do out[name] = t:bytes() end
  return out
end

local function with(list, value)
  local out = {}
  for i, row in ipairs(list) do
    out[i] = {}
    for k, v in ipairs(row) do out[i][k] = WEIGHT[i][k] == 0 and value or v end
  end
  return out
end

TestVariants = {}

function TestVariants.test_what_stands_at_weight_0_changes_no_variant_by_a_bit()
  for name, variant in pairs(variants()) do
    for _, dtype in ipairs { "f32", "f64" } do
      local clean = bytes(run(variant, given, { dtype = dtype }))
      for i, junk in ipairs { nan, inf, -inf, 1e30, -1e30 } do
        local dirty, k = {}, 0
        for key, list in pairs(given) do
          k = k + 1
          dirty[key] = with(list, ({ junk, -junk, nan })[(i + k) % 3 + 1])
        end
        lu.assertEquals(bytes(run(variant, dirty, { dtype = dtype })), clean, name)
      end
    end
  end
end

function TestVariants.test_tokens_of_weight_0_have_a_gradient_of_0()
  for name, variant in pairs(variants()) do
    local result = run(variant, given)
    local outside = f(WEIGHT):eq(0)
    lu.assertEquals(result.grad:masked_fill(outside:logical_not(), 0):abs():max():item(), 0, name)
    lu.assertTrue(result.grad:abs():max():item() > 0, name)
    if result.entropy_grad then
      lu.assertEquals(result.entropy_grad:masked_fill(outside:logical_not(), 0):abs():max():item(), 0, name)
    end
  end
end

-- Whatever an update is cut into, each token has the same gradient to the bit, and loss and statistics add up.
function TestVariants.test_micro_batches_are_the_whole()
  local cuts = { { 1, 2, 3, 4, 5, 6 }, { 3, 6 }, { 1, 6 }, { 5, 6 }, { 2, 4, 6 } }
  for name, variant in pairs(variants()) do
    local totals = loss.totals(f(WEIGHT), { entropy = f(given.entropy), top_entropy = variant.top_entropy or 1 })
    totals.max_length = 9
    local whole = run(variant, given)
    lu.assertEquals(bytes(run(variant, given, { whole = totals })), bytes(whole), name .. ": totals")
    for _, cut in ipairs(cuts) do
      local grads, entropy_grads, sums, first = {}, {}, {}, 1
      for k, last in ipairs(cut) do
        local part = run(variant, given, { first = first, last = last, whole = totals })
        grads[k], entropy_grads[k] = part.grad, part.entropy_grad
        sums.loss = (sums.loss or 0) + part.loss:item()
        for key, t in pairs(loss.named(part.stats)) do
          local v = t:item()
          if key:find "min$" then sums[key] = math.min(sums[key] or inf, v)
          elseif key:find "max$" then sums[key] = math.max(sums[key] or -inf, v)
          else sums[key] = (sums[key] or 0) + v end
        end
        first = last + 1
      end
      lu.assertEquals(peri.cat(grads, 1):bytes(), whole.grad:bytes(), name)
      if whole.entropy_grad then
        lu.assertEquals(peri.cat(entropy_grads, 1):bytes(), whole.entropy_grad:bytes(), name)
      end
      lu.assertAlmostEquals(sums.loss, whole.loss:item(), 1e-12, name)
      for key, t in pairs(loss.named(whole.stats)) do
        if not key:find "_min$" and not key:find "/min$" and not key:find "max$" then
          lu.assertAlmostEquals(sums[key], t:item(), 1e-12, name .. ": " .. key)
        end
      end
      lu.assertEquals({ sums["clip_ratio/high_max"] }, { whole.stats.clip_high_max:item() }, name)
    end
  end
end

-- Where the policy is the one that sampled, these change neither loss nor gradient by a bit.
function TestVariants.test_switches_for_other_policies_are_no_ops_on_policy()
  local at_once = {}
  for key, list in pairs(given) do at_once[key] = list end
  at_once.logp, at_once.sampled = given.old, given.old
  for name, variant in pairs(variants()) do
    if not variant.off_policy then
      local plain = bytes(run(variant, at_once))
      local function same(what, more)
        local o = {}
        for _, t in ipairs { variant, more } do
          for key, value in pairs(t) do o[key] = value end
        end
        local got = bytes(run(o, at_once))
        lu.assertEquals({ got.loss, got.grad }, { plain.loss, plain.grad }, name .. ": " .. what)
      end
      if not variant.objective or variant.objective == "clip" then
        same("delta", { delta = 20 })
        same("clip", { clip = 1e-6, clip_high = 1e-6 })
      end
      same("sampled", { sampled = f(given.old) })
      local x, old = f(at_once.logp), f(given.old)
      local drift = bytes { loss = peri.zeros {}, grad = peri.zeros {}, stats = (run(variant, at_once)).stats }
      lu.assertEquals(drift.mismatch_kl, f(0):bytes())
      for _, mode in ipairs { "token_truncate", "token_mask", "sequence_truncate", "sequence_mask" } do
        same(mode, { factor = (loss.importance(x, old, f(WEIGHT), { mode = mode, max = 1.01, min = 0.99 })) })
      end
      local o = { off_policy = 0, entropy = f(given.entropy), sampled = f(given.old), top_entropy = 1 }
      for key, value in pairs(variant) do if not o[key] or key == "top_entropy" then o[key] = value end end
      local function masked(off)
        local y = x:detach():requires_grad_()
        o.off_policy = off
        o.ref = variant.beta and f(given.ref) or nil
        o.max_length = 9
        local value = loss.policy(y, old, f(given.advantage), f(WEIGHT), o)
        value:backward()
        return { value:bytes(), y.grad:bytes() }
      end
      lu.assertEquals(masked(0), masked(nil), name .. ": off_policy")
    end
  end
end

-- The value is the same on-policy; the gradient is another one, which is the point of it.
function TestVariants.test_the_unbiased_kl_changes_the_gradient_and_not_the_value_on_policy()
  local at_once = { logp = given.old }
  for key, list in pairs(given) do at_once[key] = at_once[key] or list end
  local plain = run({ beta = 0.1 }, at_once)
  local unbiased = run({ beta = 0.1, unbiased_kl = true }, at_once)
  lu.assertEquals(unbiased.loss:bytes(), plain.loss:bytes())
  lu.assertTrue(unbiased.grad:sub(plain.grad):abs():max():item() > 1e-4)
end

-- A first step has ratio 1: its gradient is that of REINFORCE with the same advantages, whatever the clip.
function TestVariants.test_the_first_step_on_policy_is_reinforce_with_a_baseline()
  local at_once = { logp = given.old }
  for key, list in pairs(given) do at_once[key] = at_once[key] or list end
  for _, reduce in ipairs { "token", "sequence", "sum", "constant" } do
    local want = run({ objective = "reinforce", reduce = reduce }, at_once).grad
    for name in pairs(rl.presets) do
      local o = { reduce = reduce }
      for _, key in ipairs { "objective", "clip", "clip_high", "delta", "tau", "tau_low" } do
        o[key] = rl.preset(name)[key]
      end
      local got = run(o, at_once).grad
      if o.objective == "sapo" or o.objective == "gmpo" then -- by way of other functions
        lu.assertTrue(got:sub(want):abs():max():item() < 1e-12, name)
      else
        lu.assertEquals(got:add(0):bytes(), want:add(0):bytes(), name)
      end
    end
  end
end

function TestVariants.test_presets_are_options_that_there_are_and_are_documented()
  local page = assert(peri.files.read "docs/rl.md")
  local n = 0
  for name in pairs(rl.presets) do
    n = n + 1
    for key in pairs(rl.preset(name)) do
      lu.assertTrue(loss.policy_rules[key] ~= nil or rl.advantage_rules[key] ~= nil, name .. ": " .. key)
    end
    lu.assertTrue(page:find("| `" .. name .. "` |", 1, true) ~= nil, name .. " is not in docs/rl.md")
  end
  lu.assertTrue(n >= 20)
  local changed = rl.preset "grpo"
  changed.clip = 7
  lu.assertEquals(rl.preset "grpo".clip, 0.2)
end

TestKl = {}

local P, Q = f { 0.7, 0.2, 0.1 }, f { 0.5, 0.15, 0.35 }

local function exact(p, q) return p:mul(p:log():sub(q:log())):sum():item() end

function TestKl.test_the_mean_of_k1_and_k3_under_the_policy_is_the_exact_kl()
  for _, estimator in ipairs { "k1", "k3", "k1+", "k3+" } do
    lu.assertAlmostEquals(P:mul(loss.kl(P:log(), Q:log(), { estimator = estimator })):sum():item(), exact(P, Q), 1e-14)
  end
  lu.assertTrue(math.abs(P:mul(loss.kl(P:log(), Q:log(), { estimator = "k2" })):sum():item() - exact(P, Q)) > 1e-3)
  lu.assertAlmostEquals(loss.exact_kl(P:log(), Q:log():add(3)):item(), exact(P, Q), 1e-14)
  local sharp = loss.exact_kl(f { 0, -inf }, f { 0, -inf })
  lu.assertEquals(sharp:item(), 0) -- what is never done counts nothing
end

-- d/dlogits of the mean of an estimate over samples from p, the samples' own probabilities held fixed.
local function mean_gradient(estimator)
  local logits = P:log():detach():requires_grad_()
  P:mul(loss.kl(logits:log_softmax(-1), Q:log(), { estimator = estimator })):sum():backward()
  return logits.grad
end

local function gradient_of(fn)
  local logits = P:log():detach():requires_grad_()
  fn(logits):backward()
  return logits.grad
end

function TestKl.test_gradients_k2_has_that_of_the_kl_k1_has_none_and_k3_that_of_the_other_direction()
  local right = gradient_of(function (l) return loss.exact_kl(l, Q:log()) end)
  local other = gradient_of(function (l) return loss.exact_kl(Q:log(), l) end)
  local function near(a, b) return a:sub(b):abs():max():item() < 1e-14 end
  lu.assertTrue(near(mean_gradient "k2", right))
  lu.assertTrue(near(mean_gradient "k1", peri.zeros({ 3 }, "f64")))
  lu.assertTrue(near(mean_gradient "k3", other))
  lu.assertTrue(near(mean_gradient "k1+", right))
  lu.assertTrue(near(mean_gradient "k3+", right))
  lu.assertFalse(near(right, other))
end

-- DeepSeek-V3.2: samples of an older policy, each weighed by its ratio, give the gradient of the KL of the present one.
function TestKl.test_the_kl_times_the_ratio_has_the_right_gradient_off_policy()
  local older = f { 0.4, 0.35, 0.25 }
  local right = gradient_of(function (l) return loss.exact_kl(l, Q:log()) end)
  local logits = P:log():detach():requires_grad_()
  -- as three answers of one token each, drawn in proportion to the older policy
  local logp = logits:log_softmax(-1):unsqueeze(2)
  local total
  for i = 1, 3 do
    local row = loss.policy(logp:narrow(1, i, 1), older:log():narrow(1, i, 1):unsqueeze(2), peri.zeros({ 1, 1 }, "f64"),
      peri.ones({ 1, 1 }, "f64"), { beta = 1, unbiased_kl = true, ref = Q:log():narrow(1, i, 1):unsqueeze(2) })
    row = row:mul(older:at(i))
    total = total and total:add(row) or row
  end
  total:backward()
  lu.assertTrue(logits.grad:sub(right):abs():max():item() < 1e-14)
end

-- exp(-d) + d - 1 cancels: in f32 its naive form is off by a factor at 1e-4 and has the wrong sign at 1e-6.
function TestKl.test_k3_does_not_cancel_near_zero()
  for _, d in ipairs { 1e-2, 1e-4, 1e-6, -1e-4, -1e-6 } do
    local got = loss.kl(f({ d }, "f32"), f({ 0 }, "f32")):item()
    lu.assertTrue(got >= 0)
    local want = math.abs(d) > 1e-3 and math.exp(-d) - 1 + d or d * d / 2
    lu.assertAlmostEquals(got / want, 1, math.abs(d) > 1e-5 and 1e-2 or 0.15, d) -- 1e-6 is four roundings of itself
  end
end

function TestKl.test_estimates_are_bounded_and_their_signs_right()
  local one = f { -1 }
  lu.assertEquals(loss.kl(one, f { -2 }, { estimator = "k1" }):item(), 1) -- the policy is more sure than the reference
  for estimator, most in pairs { k1 = 20, k2 = 200, k3 = math.exp(20) - 21 } do
    for _, d in ipairs { 1e3, 1e30, inf } do
      local x = f { -d }:requires_grad_()
      local kl = loss.kl(x, f { 0 }, { estimator = estimator })
      lu.assertAlmostEquals(math.abs(kl:item()) / most, 1, 1e-12)
      kl:sum():backward()
      lu.assertEquals(x.grad:item(), 0)
    end
  end
  lu.assertErrorMsgContains('estimator is "k4", expected one of "k1", "k2", "k3", "k1+", "k3+"', loss.kl, one, one,
    { estimator = "k4" })
end

TestMasks = {}

-- Two tokens of high and two of low entropy: the low ones have no gradient but that of the KL.
function TestMasks.test_top_entropy_masks_the_objective_and_not_the_kl()
  local w, a = f { { 1, 1, 1, 1 } }, f { { 1, 1, 1, 1 } }
  local entropy, old, ref = f { { 2, 0.1, 1.5, 0.2 } }, f { { -1, -1, -1, -1 } }, f { { -2, -2, -2, -2 } }
  local function grad(o)
    local x = old:detach():requires_grad_()
    o.entropy, o.top_entropy = entropy, 0.5
    local value, stats = loss.policy(x, old, a, w, o)
    value:backward()
    return x.grad, stats
  end
  local without, stats = grad {}
  lu.assertEquals(without:tolist(), { { -0.25, 0, -0.25, 0 } })
  lu.assertEquals(stats.masked:item(), 0.5)
  local with_kl = grad { beta = 1, ref = ref }
  lu.assertAlmostEquals(with_kl:at(1, 2), (1 - math.exp(-1)) / 4, 1e-12)
  lu.assertAlmostEquals(with_kl:at(1, 4), (1 - math.exp(-1)) / 4, 1e-12)
  lu.assertAlmostEquals(loss.entropy_floor(entropy, w, 0.5), (1.5 + 0.2) / 2, 1e-15)
  lu.assertEquals(loss.entropy_floor(entropy, f { { 0, 0, 0, 0 } }, 0.5), inf)
  lu.assertEquals(loss.entropy_floor(f { { 3, nan } }, f { { 1, 0 } }, 0.2), 3)
end

-- V3.2: only answers with a negative advantage are dropped, and only when the policy has moved away from them.
function TestMasks.test_the_off_policy_mask_drops_bad_answers_that_are_old()
  local w = peri.ones({ 4, 2 }, "f64")
  local x = f { { -3, -3 }, { -3, -3 }, { -1, -1 }, { -1, -1 } }:requires_grad_()
  local sampled = peri.full_like(x, -1)
  local value, stats = loss.policy(x, x:detach(), f { { 1 }, { -1 }, { 1 }, { -1 } }, w, { sampled = sampled, off_policy = 0.5 })
  value:backward()
  lu.assertEquals(x.grad:ne(0):tolist(), { { true, true }, { false, false }, { true, true }, { true, true } })
  lu.assertEquals(stats.masked:item(), 0.25)
  lu.assertAlmostEquals(stats.mismatch_kl:item(), (math.exp(-2) + 1) / 2, 1e-12) -- r - 1 - log r of the policy's drift
end

-- Statistics are of the ratios as they are, before they are held or masked.
function TestMasks.test_importance_statistics_are_of_the_ratios_before_they_are_held()
  local logp, w = f { { 0.5, 4, 1, 9 } }:log(), f { { 1, 1, 1, 0 } }
  local zero = peri.zeros({ 1, 4 }, "f64")
  for mode, want in pairs { token_truncate = { 0.8, 2, 1, 1 }, token_mask = { 0, 0, 1, 1 } } do
    local factor, stats = loss.importance(logp, zero, w, { mode = mode, max = 2, min = 0.8 })
    for i = 1, 4 do lu.assertAlmostEquals(factor:at(1, i), want[i], 1e-12, mode) end
    lu.assertAlmostEquals(stats.ratio_max:item(), 4, 1e-12)
    lu.assertAlmostEquals(stats.ratio_min:item(), 0.5, 1e-12)
    lu.assertAlmostEquals(stats.ratio_mean:item(), 5.5 / 3, 1e-12)
    lu.assertAlmostEquals(stats.held:item(), 2 / 3, 1e-12)
    lu.assertAlmostEquals(stats.masked:item(), mode == "token_mask" and 2 / 3 or 0, 1e-12)
  end
  local whole = loss.importance(logp, zero, w, { mode = "sequence_truncate", max = 100 })
  for i, want in ipairs { 2, 2, 2, 1 } do lu.assertAlmostEquals(whole:at(1, i), want, 1e-12) end
  local unknown = loss.importance(logp, f { { nan, 0, 0, 0 } }, w, { max = 3 }) -- the sampler did not say
  lu.assertAlmostEquals(unknown:at(1, 1), 1, 1e-12)
  lu.assertErrorMsgContains("min is 3, expected at most max, which is 2", loss.importance, logp, zero, w, { min = 3 })
end

-- The dual clip bounds what a negative advantage can cost at delta times it, and its gradient is 0 there.
function TestMasks.test_the_dual_clip_bounds_negative_advantages_alone()
  local x = f { { 10, 10 } }:log():requires_grad_()
  local value = loss.policy(x, peri.zeros({ 1, 2 }, "f64"), f { { -1, 1 } }, f { { 1, 1 } }, { delta = 3, reduce = "sum" })
  value:backward()
  lu.assertAlmostEquals(value:item(), 3 - 1.2, 1e-12)
  lu.assertEquals(x.grad:tolist(), { { 0, 0 } })
end

function TestMasks.test_options_that_do_not_go_together_are_refused()
  local x, w = f(given.logp), f(WEIGHT)
  local function call(o) return function () loss.policy(x, x, x, w, o) end end
  for message, o in pairs {
    ["loss.policy: delta is 1.1, expected more than 1 + clip_high, which is 1.2"] = { delta = 1.1 },
    ['loss.policy: objective gmpo takes the mean over an answer\'s tokens itself: level is "whole"'] = {
      objective = "gmpo", level = "whole" },
    ["loss.policy: objective clip has no tau"] = { tau = 2 },
    ["loss.policy: objective cispo has no delta"] = { objective = "cispo", delta = 3 },
    ["loss.policy: top_entropy is 0.5 and there is no entropy"] = { top_entropy = 0.5 },
    ["loss.policy: entropy_coef is 0.1 and there is no entropy"] = { entropy_coef = 0.1 },
    ["loss.policy: beta is 1 and there is no ref"] = { beta = 1 },
    ["loss.policy: entropy has shape (2), logp has (6, 5)"] = { entropy = f { 1, 2 } },
    ["loss.policy: factor has shape (2), logp has (6, 5)"] = { factor = f { 1, 2 } },
    ['objective is "ppo", expected one of "cispo", "clip", "dppo_tv", "gmpo", "reinforce", "sapo"'] = { objective = "ppo" },
    ["top_entropy is 0, expected a number in (0, 1]"] = { top_entropy = 0 },
  } do
    local ok, got = pcall(call(o))
    lu.assertFalse(ok, message)
    lu.assertStrContains(got, message)
    lu.assertStrContains(got, "test_loss_laws.lua")
  end
  lu.assertErrorMsgContains("clip is 0.2 and there is no old", loss.value, x, x, w, { clip = 0.2 })
  lu.assertErrorMsgContains("old has shape (1), value has (6, 5)", loss.value, x, x, w, { clip = 0.2, old = f { 1 } })
  lu.assertErrorMsgContains("share is 2, expected a number in (0, 1]", loss.entropy_floor, x, w, 2)
end

TestValues = {}

function TestValues.test_values_at_weight_0_change_nothing_and_parts_add_up()
  local values, returns, old = numbers(-1, 1), numbers(-1, 1), numbers(-1, 1)
  local function run_value(junk, first, n, more)
    local function part(t) return f(with(t, junk)):narrow(1, first, n) end
    local x = part(values):detach():requires_grad_()
    local o = { clip = 0.2, old = part(old) }
    for key, v in pairs(more or {}) do o[key] = v end
    local value, stats = loss.value(x, part(returns), f(WEIGHT):narrow(1, first, n), o)
    value:backward()
    return value, x.grad, stats
  end
  for _, reduce in ipairs { "token", "sequence", "sum", "constant" } do
    local clean, grad = run_value(0, 1, 6, { reduce = reduce })
    for _, junk in ipairs { nan, inf, 1e30 } do
      local value, other = run_value(junk, 1, 6, { reduce = reduce })
      lu.assertEquals({ value:bytes(), other:bytes() }, { clean:bytes(), grad:bytes() })
    end
    local whole = loss.totals(f(WEIGHT))
    local more = { reduce = reduce, tokens = whole.tokens, sequences = whole.sequences, max_length = whole.max_length }
    local a, ga = run_value(0, 1, 2, more)
    local b, gb = run_value(0, 3, 4, more)
    lu.assertAlmostEquals(a:item() + b:item(), clean:item(), 1e-12)
    lu.assertEquals(peri.cat({ ga, gb }, 1):bytes(), grad:bytes())
  end
  -- without a bound it is half the mean squared error
  local plain = loss.value(f { { 1, 5 } }, f { { 3, 5 } }, f { { 1, 1 } })
  lu.assertEquals(plain:item(), 1)
end

os.exit(lu.LuaUnit.run())
