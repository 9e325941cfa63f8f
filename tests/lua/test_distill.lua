-- Losses of distillation: against TRL 1.16's generalised Jensen-Shannon divergence (tests/reference/preferences.py),
-- stored vectors, and what they promise: logits that are never held together, top k and the rest, no gradient without a
-- teacher.
local lu = require "luaunit"
local peri = require "perilune"
local loss = require "perilune.loss"
local tiny = require "tiny"

local function f(t) return peri.tensor(t, "f64") end
local trl = assert(peri.json.decode(assert(peri.files.read "tests/data/preferences.json")))
local vectors = assert(peri.json.decode(assert(peri.files.read "tests/data/rl_losses.json")))

local function most(a, b) return a:sub(b):abs():max():item() end

-- Tensors named in the vectors: FNV-1a of the name, then a linear congruence.
local function stored(text)
  local name, n, m, scale = text:match "lcg%('([%w%.]+)',(%d+),(%d+),scale=(%d+)%)"
  local x, out = 2166136261, {}
  for i = 1, #name do x = ((x ~ name:byte(i)) * 16777619) & 0xffffffff end
  for i = 1, n do
    out[i] = {}
    for k = 1, m do
      x = (x * 1664525 + 1013904223) & 0xffffffff
      out[i][k] = ((x >> 8) / 2 ^ 24 - 0.5) * scale
    end
  end
  return f(out)
end

TestDistill = {}

function TestDistill.test_soft_targets_and_labels_have_the_stored_values()
  local v = vectors.distill
  local student, teacher = stored(v.student):requires_grad_(), stored(v.teacher)
  local got, stats = loss.distill(student, teacher, { temperature = v.T, hard = v.alpha,
    labels = peri.tensor(v.labels, "i64") })
  got:backward()
  lu.assertAlmostEquals(got:item(), v.total, 1e-8)
  lu.assertAlmostEquals(stats.divergence:item() * v.T ^ 2, v.kd, 1e-8)
  lu.assertAlmostEquals(stats.cross_entropy:item(), v.ce, 1e-8)
  lu.assertTrue(most(student.grad, f(v.grad)) < 1e-8)
end

function TestDistill.test_labels_without_their_share_are_refused()
  local x, y = peri.randn { 2, 3 }, peri.tensor({ 0, 1 }, "i64")
  lu.assertErrorMsgContains("loss.distill: there are labels and no hard", loss.distill, x, x, { labels = y })
  lu.assertErrorMsgContains("and no hard", loss.distill, x, x, peri.ones { 2 }, { labels = y, temperature = 2 })
  lu.assertEquals(loss.distill(x, x + 1, { labels = y, hard = 0 }):item(), loss.distill(x, x + 1):item())
end

function TestDistill.test_the_jensen_shannon_divergence_is_that_of_gkd()
  local teacher, weight = f(trl.teacher), peri.tensor(trl.labels, "i64"):ne(-100)
  for _, case in ipairs(trl.gkd) do
    local x, beta = f(trl.student):requires_grad_(), case.given.beta
    local o = { temperature = case.given.temperature, squared = false,
      divergence = beta == 0 and "forward" or beta == 1 and "reverse" or "jsd" }
    if o.divergence == "jsd" then o.beta = beta end
    local got = loss.distill(x, teacher, weight, o)
    got:backward()
    lu.assertAlmostEquals(got:item(), case.loss, 1e-5)
    lu.assertTrue(most(x.grad, f(case.grad)) < 1e-5)
  end
end

local function every(fn)
  for _, divergence in ipairs { "forward", "reverse", "jsd" } do
    for _, hard in ipairs { 0, 0.3, 1 } do
      fn { divergence = divergence, hard = hard, temperature = 1.7, labels = peri.tensor({ { 1, 2, 0 }, { 3, 0, 1 } }, "i64") }
    end
  end
end

local function logits(seed, dtype)
  local rng = peri.rng(seed)
  local out = {}
  for b = 1, 2 do
    out[b] = {}
    for i = 1, 3 do
      out[b][i] = {}
      for v = 1, 5 do out[b][i][v] = rng:normal(0, 2) end
    end
  end
  return peri.tensor(out, dtype or "f64")
end

function TestDistill.test_junk_at_weight_zero_changes_nothing_by_a_bit()
  local weight = f { { 1, 0, 1 }, { 0, 0, 1 } }
  local off = weight:eq(0):unsqueeze(3)
  every(function (o)
    local want
    for _, junk in ipairs { 0, 0 / 0, math.huge, -math.huge, 1e30 } do
      local x = logits(1):masked_fill(off, junk):detach():requires_grad_()
      local got = loss.distill(x, logits(2):masked_fill(off, junk), weight, o)
      got:backward()
      local bytes = { got:bytes(), x.grad:bytes() }
      want = want or bytes
      lu.assertEquals(bytes, want, o.divergence .. junk)
    end
  end)
end

function TestDistill.test_parts_of_a_batch_add_up()
  every(function (o)
    local whole = loss.distill(logits(1), logits(2), o):item()
    local sum, labels = 0, o.labels
    o.tokens = 6
    for b = 1, 2 do
      o.labels = labels:narrow(1, b, 1)
      sum = sum + loss.distill(logits(1):narrow(1, b, 1), logits(2):narrow(1, b, 1), o):item()
    end
    lu.assertAlmostEquals(sum, whole, 1e-14)
  end)
end

function TestDistill.test_equal_distributions_are_at_a_minimum_of_0()
  for _, divergence in ipairs { "forward", "reverse", "jsd" } do
    local x = logits(1):requires_grad_()
    local got = loss.distill(x, logits(1), { divergence = divergence })
    got:backward()
    lu.assertAlmostEquals(got:item(), 0, 1e-14)
    lu.assertTrue(x.grad:abs():max():item() < 1e-14)
    lu.assertTrue(loss.distill(logits(1), logits(2), { divergence = divergence }):item() > 0)
  end
end

-- A vocabulary with words that neither may say, or only one.
function TestDistill.test_what_is_impossible_counts_nothing_and_has_no_nan()
  local never = peri.tensor({ false, false, false, false, true }, "bool")
  for _, divergence in ipairs { "forward", "reverse", "jsd" } do
    local x = logits(1):masked_fill(never, -math.huge):detach():requires_grad_()
    local got = loss.distill(x, logits(2):masked_fill(never, -math.huge), { divergence = divergence })
    got:backward()
    local less = loss.distill(logits(1):narrow(3, 1, 4), logits(2):narrow(3, 1, 4), { divergence = divergence })
    lu.assertAlmostEquals(got:item(), less:item(), 1e-12)
    lu.assertTrue(x.grad:isfinite():all():item(), divergence)
  end
  lu.assertEquals(loss.distill(logits(1), logits(2):masked_fill(never, -math.huge), { divergence = "reverse" }):item(),
    math.huge)
end

function TestDistill.test_of_models_the_logits_are_made_a_few_at_a_time_with_the_same_result()
  local student, teacher = (tiny.load "llama"), (tiny.load "qwen3")
  local rows = {}
  for b = 1, 3 do
    rows[b] = {}
    for i = 1, 40 do rows[b][i] = (b * 7 + i * 5) % 50 + 3 end
  end
  local ids = peri.tensor(rows, "i64")
  local weight = peri.ones { 3, 40 }
  weight:narrow(2, 30, 5):mul_(0)
  for _, hard in ipairs { 0, 0.4 } do
    local o = { divergence = "jsd", beta = 0.3, temperature = 2, hard = hard, labels = ids }
    local hidden = peri.no_grad(function () return teacher:forward(ids) end)
    local function gradients(whole)
      local h = student:forward(ids)
      local got
      if whole then got = loss.distill(student:logits(h), peri.no_grad(function () return teacher:logits(hidden) end), weight, o)
      else got = loss.distill({ model = student, hidden = h }, { model = teacher, hidden = hidden }, weight, o) end
      got:backward()
      local out = student:gradients()
      for name, g in pairs(out) do out[name] = g:clone() end
      student:zero_grad()
      return got:item(), out
    end
    local one, a = gradients(true)
    local two, b = gradients(false)
    lu.assertAlmostEquals(one, two, 1e-5 * one) -- 120 f32 terms in another order
    for name, g in pairs(a) do lu.assertTrue(tiny.relative(b[name], g) < 1e-4, name) end
  end
  for _, p in ipairs(teacher:parameters()) do lu.assertNil(p.grad) end
end

-- Bytes that a forward and backward pass holds at most beyond what was there.
function TestDistill.test_of_models_memory_does_not_grow_with_tokens_times_vocabulary()
  local config = { model_type = "llama", vocab_size = 4000, hidden_size = 16, intermediate_size = 16, num_hidden_layers = 1,
    num_attention_heads = 2, num_key_value_heads = 2 }
  local student, teacher = peri.models.llama.new(config), peri.models.llama.new(config)
  local function peak(n)
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local ids = peri.zeros({ 1, n }, "i64")
    local hidden = peri.no_grad(function () return teacher:forward(ids) end)
    local before = peri.memory().live
    peri.reset_peak()
    loss.distill({ model = student, hidden = student:forward(ids) }, { model = teacher, hidden = hidden }):backward()
    student:zero_grad()
    return peri.memory().peak - before
  end
  local few, many = peak(64), peak(512)
  lu.assertTrue(many < 1.5 * few, ("%d, %d"):format(few, many)) -- the logits of all would be 7 times as much
end

TestTopK = {}

-- The k most likely tokens of logits at a temperature.
local function top(x, k, temperature)
  local value, ids = x:div(temperature or 1):log_softmax(-1):topk(k)
  return { logprobs = value, ids = ids, temperature = temperature }
end

function TestTopK.test_of_all_tokens_it_is_the_whole_divergence()
  for _, divergence in ipairs { "forward", "reverse", "jsd" } do
    local x, y = logits(1):requires_grad_(), logits(1):requires_grad_()
    local a = loss.distill(x, logits(2), { divergence = divergence, temperature = 2 })
    local b = loss.distill(y, top(logits(2), 5, 2), { divergence = divergence, temperature = 2 })
    a:backward()
    b:backward()
    lu.assertAlmostEquals(a:item(), b:item(), 1e-5) -- the rest is held at a probability of 6e-8
    lu.assertTrue(most(x.grad, y.grad) < 1e-5)
  end
end

function TestTopK.test_less_is_known_and_the_divergence_is_no_larger()
  for _, divergence in ipairs { "forward", "reverse", "jsd" } do
    local last = math.huge
    for k = 5, 1, -1 do
      local got = loss.distill(logits(1), top(logits(2), k), { divergence = divergence }):item()
      lu.assertTrue(got <= last + 1e-6 and got >= 0, divergence)
      last = got
    end
    local x = logits(2):requires_grad_()
    local same = loss.distill(x, top(logits(2), 2), { divergence = divergence })
    same:backward()
    lu.assertAlmostEquals(same:item(), 0, 1e-12)
    lu.assertTrue(x.grad:abs():max():item() < 1e-10)
  end
end

function TestTopK.test_another_temperature_is_refused()
  lu.assertErrorMsgContains("temperature is 1, the teacher's top k are of 2", loss.distill, logits(1), top(logits(2), 2, 2))
end

TestTokens = {}

function TestTokens.test_the_teacher_as_an_advantage_has_the_gradient_of_the_reverse_kl()
  local x, teacher = f { 0.3, -1, 0.8, 0.1 }:requires_grad_(), f { 1, 0.2, -0.5, 0.4 }:log_softmax(-1)
  loss.distill(x:unsqueeze(1), teacher:unsqueeze(1), { divergence = "reverse" }):backward()
  local want = x.grad:clone()
  x:zero_grad()
  local logp = x:log_softmax(-1)
  local advantage = loss.teacher_advantage(logp:unsqueeze(1), teacher:unsqueeze(1)):squeeze(1)
  lu.assertFalse(advantage.requires_grad)
  logp:exp():detach():mul(logp):mul(advantage):sum():neg():backward() -- the mean over what the student samples
  lu.assertTrue(most(x.grad, want) < 1e-14)
  -- and so has k2, which can be made small itself
  for _, estimator in ipairs { "k2", "k1+", "k3+" } do
    x:zero_grad()
    logp = x:log_softmax(-1)
    logp:exp():detach():mul(loss.token_kl(logp, teacher, { estimator = estimator })):sum():backward()
    lu.assertTrue(most(x.grad, want) < 1e-14, estimator)
  end
end

function TestTokens.test_k1_has_no_gradient_of_the_teacher_and_is_refused()
  local logp, teacher = f { { -1, -2 } }:requires_grad_(), f { { -3, -1 } }
  lu.assertErrorMsgContains("the gradient of k1 is that of log student alone", loss.token_kl, logp, teacher,
    { estimator = "k1" })
  lu.assertErrorMsgContains('expected one of "k1", "k2"', loss.token_kl, logp, teacher, { estimator = "k4" })
end

function TestTokens.test_junk_at_weight_zero_is_left_out()
  local weight = f { { 1, 0 } }
  for _, junk in ipairs { 0 / 0, math.huge, -math.huge } do
    local logp = f { { -1, junk } }:requires_grad_()
    lu.assertEquals(loss.teacher_advantage(logp, f { { -3, junk } }, weight):tolist(), { { -2, 0 } })
    loss.token_kl(logp, f { { -3, junk } }, weight):sum():backward()
    lu.assertEquals(logp.grad:tolist(), { { 2, 0 } })
  end
end

function TestTokens.test_what_does_not_fit_is_an_error()
  lu.assertErrorMsgContains("the student has 5 logits, the teacher 4", loss.distill, logits(1), logits(2):narrow(3, 1, 4))
  lu.assertErrorMsgContains("hard is 0.5 and there are no labels", loss.distill, logits(1), logits(2), { hard = 0.5 })
  lu.assertErrorMsgContains("weight has shape (2), expected (2, 3)", loss.distill, logits(1), logits(2), peri.ones { 2 })
  lu.assertErrorMsgContains("student is a table of neither", loss.distill, { 1 }, logits(2), peri.ones { 2, 3 })
  lu.assertErrorMsgContains('divergence is "kl"', loss.distill, logits(1), logits(2), { divergence = "kl" })
  lu.assertErrorMsgContains("teacher has shape (1), logp has (2)", loss.teacher_advantage, f { 1, 2 }, f { 1 })
end

os.exit(lu.LuaUnit.run())
