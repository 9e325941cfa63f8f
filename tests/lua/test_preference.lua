-- Losses of preferences, rewards and steps: against TRL 1.16's own trainers (tests/reference/preferences.py) and stored
-- vectors, and laws over the table of losses.
local lu = require "luaunit"
local peri = require "perilune"
local loss = require "perilune.loss"
local optim = require "perilune.optim"

local trl = assert(peri.json.decode(assert(peri.files.read "tests/data/preferences.json")))
local vectors = assert(peri.json.decode(assert(peri.files.read "tests/data/rl_losses.json")))

local function f(t) return peri.tensor(t, "f64") end
local mask = f(trl.mask)
local B = mask:size(1) // 2

-- Options out of a stored case.
local function given(case, leave_out)
  local o = {}
  for k, v in pairs(case.given) do o[k] = v end
  for _, name in ipairs(leave_out or {}) do o[name] = nil end
  return o
end

local function near(got, want, what, tolerance)
  local most = got:sub(f(want)):abs():max():item()
  lu.assertTrue(most < (tolerance or 1e-5), ("%s: %g"):format(what, most)) -- TRL's are f32
end

local function halves(t) return t:narrow(1, 1, B), t:narrow(1, B + 1, B) end

-- Sums and lengths of the chosen and of the rejected answers of stored log-probabilities.
local function answers(logp)
  local sum, length = loss.answers(logp, mask)
  local a, b = halves(sum)
  local n, m = halves(length)
  return a, b, n, m
end

TestTRL = {}

function TestTRL.test_losses_of_pairs_with_a_reference()
  local ref_chosen, ref_rejected = answers(f(trl.ref))
  for _, case in ipairs(trl.dpo) do
    local x, o = f(trl.policy):requires_grad_(), given(case)
    local a, b, n, m = answers(x)
    o.chosen_length, o.rejected_length = n, m
    local got, rewards = loss.preference(a, b, ref_chosen, ref_rejected, o)
    got:backward()
    local name = o.loss .. " " .. (o.f_divergence or "")
    lu.assertAlmostEquals(got:item(), case.loss, 1e-5 * math.max(1, case.loss), name)
    near(x.grad:mul(mask), case.grad, name, 1e-5 * math.max(1, x.grad:abs():max():item()))
    for ours, theirs in pairs { chosen = "chosen", rejected = "rejected", margin = "margins", correct = "accuracies" } do
      lu.assertAlmostEquals(rewards[ours]:mean():item(), case.metrics["rewards/" .. theirs], 1e-5, name)
    end
  end
end

function TestTRL.test_losses_of_pairs_without_one()
  for _, list in ipairs { "odds", "cpo" } do
    for _, case in ipairs(trl[list]) do
      local x, o = f(trl.policy):requires_grad_(), given(case)
      local a, b, n, m = answers(x)
      o.chosen_length, o.rejected_length, o.loss = n, m, o.loss or "orpo"
      local got, rewards = loss.preference(a, b, o)
      got:backward()
      lu.assertAlmostEquals(got:item(), case.loss, 1e-5, o.loss)
      near(x.grad:mul(mask), case.grad, o.loss)
      near(rewards.chosen, case.rewards[1], o.loss)
      near(rewards.rejected, case.rewards[2], o.loss)
    end
  end
end

function TestTRL.test_kto()
  local label, ref = f(trl.label), (loss.answers(f(trl.ref), mask))
  for _, case in ipairs(trl.kto) do
    local x = f(trl.policy):requires_grad_()
    local o = given(case, { "swapped", "zero" })
    local mine, other = (loss.answers(f(trl.kl_policy), mask)), (loss.answers(f(trl.kl_ref), mask))
    if case.given.swapped then mine, other = other, mine end
    o.z = case.given.zero and 0 or loss.kto_point(mine, other)
    lu.assertAlmostEquals(peri.is_tensor(o.z) and o.z:item() or o.z, case.metrics.kl, 1e-5)
    local got, rewards = loss.kto((loss.answers(x, mask)), ref, label, o)
    got:backward()
    lu.assertAlmostEquals(got:item(), case.loss, 1e-5)
    near(x.grad:mul(mask), case.grad, "kto")
    lu.assertAlmostEquals(rewards:mul(label):sum():item() / label:sum():item(), case.metrics["rewards/chosen"], 1e-5)
  end
end

function TestTRL.test_bradley_terry()
  for _, case in ipairs(trl.reward) do
    local x = f(trl.scores):requires_grad_()
    local a, b = halves(x)
    local got, stats = loss.bradley_terry(a, b, { margin = case.given.margin and f(trl.margin) or 0,
      center = case.given.center })
    got:backward()
    lu.assertAlmostEquals(got:item(), case.loss, 1e-5)
    near(x.grad, case.grad, "reward")
    lu.assertAlmostEquals(stats.margin:mean():item(), case.metrics.margin, 1e-5)
    lu.assertAlmostEquals(stats.correct:mean():item(), case.metrics.accuracy, 1e-6)
  end
end

TestVectors = {}

function TestVectors.test_dpo()
  local v = vectors.dpo
  local chosen, rejected = f(v.policy_chosen):requires_grad_(), f(v.policy_rejected):requires_grad_()
  local function of(o)
    o.beta = v.beta
    return loss.preference(chosen, rejected, f(v.ref_chosen), f(v.ref_rejected), o)
  end
  local got, rewards = of {}
  got:backward()
  lu.assertAlmostEquals(got:item(), v.loss, 1e-8)
  near(chosen.grad, v.grad_chosen, "chosen", 1e-8)
  near(rejected.grad, v.grad_rejected, "rejected", 1e-8)
  near(rewards.chosen, v.reward_chosen, "reward", 1e-8)
  near(rewards.rejected, v.reward_rejected, "reward", 1e-8)
  lu.assertEquals(rewards.correct:mean():item(), v.accuracy)
  lu.assertAlmostEquals(of { label_smoothing = 0.1 }:item(), v.label_smoothing_0p1, 1e-8)
  lu.assertAlmostEquals(of { loss = "ipo", average = false }:item(), v.ipo, 1e-7)
end

function TestVectors.test_bradley_terry()
  local v = vectors.reward_model_bt
  lu.assertAlmostEquals(loss.bradley_terry(f(v.chosen), f(v.rejected)):item(), v.loss, 1e-8)
end

function TestVectors.test_aggregation()
  local v = vectors.prm_aggregate
  for ours, theirs in pairs { min = "min", product = "prod", last = "last", mean = "mean" } do
    for i, steps in ipairs(v.step_probs) do lu.assertAlmostEquals(loss.aggregate(steps, ours), v[theirs][i], 1e-9) end
  end
  lu.assertTrue(loss.aggregate({ 0.5, 0 / 0 }, "min") ~= loss.aggregate({ 0.5, 0 / 0 }, "min"))
  lu.assertErrorMsgContains("there are no steps", loss.aggregate, {})
  lu.assertErrorMsgContains('how is "max", expected one of "last", "mean", "min", "product"', loss.aggregate, { 1 }, "max")
end

-- ---- laws over the table ------------------------------------------------------------------------

TestLaws = {}

local CHOSEN, REJECTED = { -3.1, -0.4, -2.2, -5 }, { -2.5, -1.7, -3.9, -0.8 }
local REF_CHOSEN, REF_REJECTED = { -2.9, -0.9, -2.8, -4 }, { -2.8, -1.1, -3.3, -1 }
local LONG, SHORT = { 4, 1, 3, 5 }, { 2, 3, 5, 1 }

-- Every loss with some options: fn(name, o).
local function every(fn)
  for _, name in ipairs(loss.preference_names) do
    local o = { loss = name, beta = 0.3 }
    if name == "exo" then o.label_smoothing = 0.1 end
    fn(name, o, loss.preference_entry("test", setmetatable(o, { __index = { label_smoothing = 0,
      f_divergence = "reverse_kl", reference_free = false } })).reference)
  end
end

-- Loss and gradients of rows [from, to] of the four pairs, with values of one more at its end.
local function run(o, reference, dtype, from, to, junk, more)
  local function rows(list, value)
    local out = table.move(list, from, to, 1, {})
    if junk then out[#out + 1] = value end
    return peri.tensor(out, dtype)
  end
  local a, b = rows(CHOSEN, junk):requires_grad_(), rows(REJECTED, junk):requires_grad_()
  local how = { chosen_length = rows(LONG, junk), rejected_length = rows(SHORT, junk) }
  for k, v in pairs(o) do how[k] = v end
  for k, v in pairs(more or {}) do how[k] = v end
  if junk then
    how.weight = peri.ones({ to - from + 2 }, dtype)
    how.weight:select(1, to - from + 2):mul_(0)
  end
  local got, rewards
  if reference then got, rewards = loss.preference(a, b, rows(REF_CHOSEN, junk), rows(REF_REJECTED, junk), how)
  else got, rewards = loss.preference(a, b, how) end
  got:backward()
  return got, a.grad, b.grad, rewards
end

function TestLaws.test_every_loss_pushes_the_chosen_up_or_the_rejected_down_and_moves_both()
  every(function (name, o, reference)
    local _, up, down = run(o, reference, "f64", 1, 4)
    for i = 1, 4 do
      lu.assertTrue(up:select(1, i):item() ~= 0 or name == "hinge", name)
      lu.assertTrue(down:select(1, i):item() ~= 0 or name == "hinge", name)
    end
    -- the sum of the two says which way the margin goes
    lu.assertTrue(up:sub(down):sum():item() < 0, name)
  end)
end

function TestLaws.test_gradients_are_those_of_differences()
  every(function (name, o, reference)
    local got, up = run(o, reference, "f64", 1, 4)
    local before = CHOSEN[2]
    CHOSEN[2] = before + 1e-6
    local moved = run(o, reference, "f64", 1, 4)
    CHOSEN[2] = before
    lu.assertAlmostEquals((moved:item() - got:item()) / 1e-6, up:select(1, 2):item(), 1e-4, name)
  end)
end

function TestLaws.test_junk_at_weight_zero_changes_nothing_by_a_bit()
  for _, dtype in ipairs { "f32", "f64" } do
    every(function (name, o, reference)
      local clean, up, down, rewards = run(o, reference, dtype, 1, 4, 1)
      for _, junk in ipairs { 0 / 0, math.huge, -math.huge, 1e30, -1e30, 0 } do
        local got, a, b, r = run(o, reference, dtype, 1, 4, junk)
        lu.assertEquals(got:bytes(), clean:bytes(), name .. junk)
        lu.assertEquals(a:bytes(), up:bytes(), name .. junk)
        lu.assertEquals(b:bytes(), down:bytes(), name .. junk)
        for key, t in pairs(r) do lu.assertEquals(t:bytes(), rewards[key]:bytes(), name .. key .. junk) end
      end
      local plain, alone = run(o, reference, dtype, 1, 4)
      lu.assertAlmostEquals(clean:item(), plain:item(), 1e-6, name) -- sums of 5 and of 4
      lu.assertEquals(up:narrow(1, 1, 4):bytes(), alone:bytes(), name)
    end)
  end
end

function TestLaws.test_parts_of_a_batch_add_up()
  every(function (name, o, reference)
    local whole, up = run(o, reference, "f64", 1, 4)
    local sum, grads = 0, {}
    for _, part in ipairs { { 1, 1 }, { 2, 4 } } do
      local got, a = run(o, reference, "f64", part[1], part[2], nil, { pairs = 4, tokens = 13 })
      sum = sum + got:item()
      table.insert(grads, a)
    end
    lu.assertAlmostEquals(sum, whole:item(), 1e-14, name)
    lu.assertEquals(peri.cat(grads, 1):bytes(), up:bytes(), name) -- gradients are each pair's own
  end)
end

-- At the reference every margin is 0.
function TestLaws.test_at_the_reference_dpo_is_ln_2_and_its_gradient_half_of_beta()
  for _, beta in ipairs { 0.05, 0.1, 2 } do
    local a, b = f(CHOSEN):requires_grad_(), f(REJECTED):requires_grad_()
    local got, rewards = loss.preference(a, b, f(CHOSEN), f(REJECTED), { beta = beta })
    got:backward()
    lu.assertAlmostEquals(got:item(), math.log(2), 1e-15)
    near(a.grad, { -beta / 8, -beta / 8, -beta / 8, -beta / 8 }, "chosen", 1e-15) -- of 4 pairs
    near(b.grad, { beta / 8, beta / 8, beta / 8, beta / 8 }, "rejected", 1e-15)
    lu.assertEquals(rewards.margin:abs():max():item(), 0)
  end
end

function TestLaws.test_what_a_loss_does_not_know_is_an_error()
  local a, b = f(CHOSEN), f(REJECTED)
  local function fails(message, ...) lu.assertErrorMsgContains(message, loss.preference, a, b, ...) end
  fails('loss is "sigmoid", expected one of "apo_down", "apo_zero", "bco"', { loss = "sigmoid" })
  fails('loss "hinge" knows no label_smoothing', a, b, { loss = "hinge", label_smoothing = 0.1 })
  fails('loss "exo" needs a label_smoothing above 0', a, b, { loss = "exo" })
  fails('loss "dpo" knows no gamma', a, b, { gamma = 1 })
  fails('loss "apo_zero" knows no f_divergence', a, b, { loss = "apo_zero", f_divergence = "js" })
  fails('loss "orpo" is of means', { loss = "orpo", average = false })
  fails('loss "orpo" takes no reference', a, b, { loss = "orpo" })
  fails('loss "dpo" needs ref_chosen and ref_rejected', {})
  fails('loss "dpo" with reference_free takes no reference', a, b, { reference_free = true })
  fails('loss "simpo" has no reference to leave out', { loss = "simpo", reference_free = true })
  fails('loss "ipo" needs', a, b, { loss = "ipo" })
  fails('loss "orpo" needs', { loss = "orpo" })
  fails("label_smoothing is 0.5", a, b, { label_smoothing = 0.5 })
  fails("ref_chosen has shape (2), expected (4)", f { 1, 2 }, b)
  fails("ref_rejected has shape (2), expected (4)", b, f { 1, 2 })
  fails('unknown option "gama"; did you mean "gamma"?', { gama = 1 })
  lu.assertErrorMsgContains("chosen has shape (2, 4), expected (B)", loss.preference, peri.stack({ a, b }, 1), b, a, b)
  lu.assertErrorMsgContains("z is -1", loss.kto, a, b, f { 1, 0, 1, 0 }, { z = -1 })
  lu.assertErrorMsgContains("z is nan", loss.kto, a, b, f { 1, 0, 1, 0 }, { z = 0 / 0 })
end

function TestLaws.test_reference_free_is_a_reference_that_says_the_same_of_all()
  every(function (name, o, reference)
    if not reference then return end
    local a, b = f(CHOSEN), f(REJECTED)
    local how = { reference_free = true, chosen_length = f(LONG), rejected_length = f(SHORT) }
    for k, v in pairs(o) do how[k] = v end
    local free = loss.preference(a, b, how)
    how.reference_free = nil
    local flat = loss.preference(a, b, peri.zeros({ 4 }, "f64"), peri.zeros({ 4 }, "f64"), how)
    lu.assertEquals(free:item(), flat:item(), name)
  end)
end

-- A probability of 1 has infinite odds: it has a loss and a gradient that are finite.
function TestLaws.test_orpo_of_certain_answers_is_finite()
  for _, dtype in ipairs { "f32", "f64" } do
    local a, b = peri.tensor({ 0, -1e-9, -80 }, dtype):requires_grad_(), peri.tensor({ -80, 0, -1e-9 }, dtype):requires_grad_()
    local one = peri.ones({ 3 }, dtype)
    local got = loss.preference(a, b, { loss = "orpo", chosen_length = one, rejected_length = one })
    got:backward()
    for _, t in ipairs { got, a.grad, b.grad } do lu.assertTrue(t:isfinite():all():item()) end
  end
end

-- The mean, not the sum: an answer twice as long with the same odds a token has the same term.
function TestLaws.test_orpo_is_of_means()
  local function term(sum, n)
    return loss.preference(f { sum * n }, f { -0.7 * n }, { loss = "orpo", nll = 0, chosen_length = f { n },
      rejected_length = f { n } }):item()
  end
  lu.assertAlmostEquals(term(-0.5, 1), term(-0.5, 40), 1e-12)
end

-- ---- what they converge to ----------------------------------------------------------------------

-- One prompt, three answers, preferences by Bradley-Terry of known rewards: the optimum is reference * exp(reward /
-- beta), normalised (2305.18290 eq. 4).
function TestLaws.test_tabular_dpo_reaches_its_closed_form_optimum()
  local reward, beta = { 1.0, 0.2, -0.7 }, 0.5
  local ref = f { math.log(0.2), math.log(0.5), math.log(0.3) }
  local logits = peri.keep(ref:clone():requires_grad_())
  local opt = optim.Adam({ logits }, { lr = 0.05 })
  local first, second, share = {}, {}, {}
  for i = 1, 3 do
    for j = 1, 3 do
      if i ~= j then
        first[#first + 1], second[#second + 1] = i - 1, j - 1
        share[#share + 1] = 1 / (1 + math.exp(reward[j] - reward[i])) -- how often i is preferred to j
      end
    end
  end
  local i, j, weight = peri.tensor(first, "i64"), peri.tensor(second, "i64"), f(share)
  for _ = 1, 600 do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local logp = logits:log_softmax(-1)
    loss.preference(logp:index_select(i, 1), logp:index_select(j, 1), ref:index_select(i, 1), ref:index_select(j, 1),
      { beta = beta, weight = weight }):backward()
    opt:step():zero_grad()
  end
  local want, sum = {}, 0
  for k, r in ipairs(reward) do
    want[k] = ({ 0.2, 0.5, 0.3 })[k] * math.exp(r / beta)
    sum = sum + want[k]
  end
  for k = 1, 3 do want[k] = want[k] / sum end
  near(logits:softmax(-1), want, "policy", 1e-4) -- 600 steps of Adam
end

-- ---- unpaired -----------------------------------------------------------------------------------

TestUnpaired = {}

function TestUnpaired.test_kto_leaves_out_junk_and_adds_up()
  local label = { 1, 0, 0, 1 }
  local function kto(from, to, junk, o)
    local function rows(list)
      local out = table.move(list, from, to, 1, {})
      if junk then out[#out + 1] = junk end
      return f(out)
    end
    local x = rows(CHOSEN):requires_grad_()
    o = o or {}
    o.z, o.beta, o.desirable_weight = 0.2, 0.3, 1.3
    if junk then
      o.weight = peri.ones({ to - from + 2 }, "f64")
      o.weight:select(1, to - from + 2):mul_(0)
    end
    local got, rewards = loss.kto(x, rows(REF_CHOSEN), rows(label), o)
    got:backward()
    return got, x.grad, rewards
  end
  local clean, grad, rewards = kto(1, 4, 1)
  for _, junk in ipairs { 0 / 0, math.huge, -math.huge, 1e30 } do
    local got, g, r = kto(1, 4, junk)
    lu.assertEquals({ got:bytes(), g:bytes(), r:bytes() }, { clean:bytes(), grad:bytes(), rewards:bytes() })
  end
  local whole, all = kto(1, 4)
  local a, ga = kto(1, 2, nil, { answers = 4 })
  local b, gb = kto(3, 4, nil, { answers = 4 })
  lu.assertAlmostEquals(a:item() + b:item(), whole:item(), 1e-15)
  lu.assertEquals(peri.cat({ ga, gb }, 1):bytes(), all:bytes())
end

function TestUnpaired.test_the_reference_point_is_no_negative_and_has_no_gradient()
  local x = f(CHOSEN):requires_grad_()
  lu.assertFalse(loss.kto_point(x, f(REF_CHOSEN)).requires_grad)
  lu.assertEquals(loss.kto_point(x, x:add(1)):item(), 0)
  lu.assertAlmostEquals(loss.kto_point(x, x:sub(1)):item(), 1, 1e-12)
  lu.assertAlmostEquals(loss.kto_point(f { -1, 0 / 0 }, f { -3, 1 }, f { 1, 0 }):item(), 2, 1e-12)
end

-- ---- scorers ------------------------------------------------------------------------------------

TestScores = {}

local SCORES = { { 0.3, -1.2, 2.1, 0.7 }, { -0.4, 0.9, -0.1, 1.5 } }
local AT = { { 0, 1, 0, 1 }, { 1, 0, 0, 0 } }

function TestScores.test_outcome_judges_the_mean_each_token_or_the_last()
  local weight, label = f { { 1, 1, 1, 0 }, { 1, 1, 0, 0 } }, f { 1, 0 }
  local function bce(x, y) return math.log(1 + math.exp(x)) - x * y end
  local function got(level) return loss.outcome(f(SCORES), label, weight, { level = level }) end
  lu.assertAlmostEquals(got "answer":item(), (bce(0.4, 1) + bce(0.25, 0)) / 2, 1e-12)
  lu.assertAlmostEquals(got "last":item(), (bce(2.1, 1) + bce(0.9, 0)) / 2, 1e-12)
  lu.assertAlmostEquals(got "token":item(), (bce(0.3, 1) + bce(-1.2, 1) + bce(2.1, 1) + bce(-0.4, 0) + bce(0.9, 0)) / 5, 1e-12)
  local _, score = got "last"
  near(score, { 2.1, 0.9 }, "score", 1e-12)
end

function TestScores.test_process_is_binary_cross_entropy_at_step_ends()
  local label = f { { 9, 1, 9, 0 }, { 0.25, 9, 9, 9 } }
  local x = f(SCORES):requires_grad_()
  local got, stats = loss.process(x, label, f(AT))
  got:backward()
  local function bce(s, y) return math.log(1 + math.exp(s)) - s * y end
  lu.assertAlmostEquals(got:item(), (bce(-1.2, 1) + bce(0.7, 0) + bce(-0.4, 0.25)) / 3, 1e-12)
  lu.assertAlmostEquals(stats.accuracy:item(), 1 / 3, 1e-12)
  near(x.grad:ne(0):to "f64", AT, "where", 0.5)
  local steps = loss.step_scores(f(SCORES), f(AT))
  lu.assertEquals({ #steps[1], #steps[2] }, { 2, 1 })
  lu.assertAlmostEquals(steps[1][2], 1 / (1 + math.exp(-0.7)), 1e-12)
end

function TestScores.test_junk_at_weight_zero_changes_nothing_and_parts_add_up()
  local function with(list, junk)
    local out = {}
    for b, row in ipairs(list) do
      out[b] = {}
      for i, v in ipairs(row) do out[b][i] = AT[b][i] == 0 and junk or v end
    end
    return out
  end
  local calls = {
    process = function (x, junk) return (loss.process(x, f(with({ { 1, 1, 1, 0 }, { 1, 0, 0, 0 } }, junk)), f(AT))) end,
    answer = function (x) return (loss.outcome(x, f { 1, 0 }, f(AT))) end,
    token = function (x) return (loss.outcome(x, f { 1, 0 }, f(AT), { level = "token" })) end,
    last = function (x) return (loss.outcome(x, f { 1, 0 }, f(AT), { level = "last" })) end,
  }
  for name, call in pairs(calls) do
    local want
    for _, junk in ipairs { 0, 0 / 0, math.huge, -math.huge, 1e30 } do
      local x = f(with(SCORES, junk)):requires_grad_()
      local got = call(x, junk)
      got:backward()
      local bytes = { got:bytes(), x.grad:bytes() }
      want = want or bytes
      lu.assertEquals(bytes, want, name .. junk)
    end
  end
  local a = loss.process(f { SCORES[1] }, f { { 0, 1, 0, 0 } }, f { AT[1] }, { steps = 3 })
  local b = loss.process(f { SCORES[2] }, f { { 0, 0, 0, 0 } }, f { AT[2] }, { steps = 3 })
  local whole = loss.process(f(SCORES), f { { 0, 1, 0, 0 }, { 0, 0, 0, 0 } }, f(AT))
  lu.assertAlmostEquals(a:item() + b:item(), whole:item(), 1e-15)
end

function TestScores.test_a_margin_asks_for_more_and_junk_pairs_do_not_count()
  local a, b = f { 1, 0 / 0 }, f { 0.5, math.huge }
  local plain = loss.bradley_terry(f { 1 }, f { 0.5 }):item()
  lu.assertEquals(loss.bradley_terry(a, b, { weight = f { 1, 0 }, margin = f { 0, 0 / 0 } }):item(), plain)
  lu.assertTrue(loss.bradley_terry(f { 1 }, f { 0.5 }, { margin = 0.5 }):item() > plain)
  lu.assertErrorMsgContains("margin has shape (2), chosen has (1)", loss.bradley_terry, f { 1 }, f { 0 }, { margin = a })
end

os.exit(lu.LuaUnit.run())
