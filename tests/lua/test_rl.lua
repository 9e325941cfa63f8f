-- The reinforcement-learning layer: the reward contract, credit, micro-batches, the stepper.
local lu = require "luaunit"
local peri = require "perilune"
local rl = require "perilune.rl"
local llama = require "perilune.models.llama"
local text = require "perilune.text"
local optim = require "perilune.optim"
local grpo = require "perilune.algo.grpo"

local tok = text.chars("0123456789,:", { separator = true })
local config = { model_type = "llama", vocab_size = tok.size, hidden_size = 32, intermediate_size = 48, num_hidden_layers = 2,
  num_attention_heads = 2, max_position_embeddings = 64, rms_norm_eps = 1e-6 }

local function model(seed)
  peri.seed(seed)
  return llama.new(config, { std = 0.1 })
end

-- Reward: the share of sevens among four characters; no step rewards.
local function sevens(_, completion)
  local _, n = completion:gsub("7", "")
  return n / 4
end

local rows = {}
for i = 0, 9 do rows[#rows + 1] = { prompt = ("%d:%d"):format(i, 9 - i) } end

TestRl = {}

function TestRl.test_a_reward_that_is_no_number_is_named()
  local row, tokens = { prompt = "1:2" }, { { 5 } }
  local function score(f) return function () rl.score({ row }, { "1" }, tokens, f) end end
  lu.assertErrorMsgContains('prompt "1:2"', score(function () return 0 / 0 end))
  lu.assertErrorMsgContains("expected a number", score(function () return "good" end))
  lu.assertErrorMsgContains("2 step rewards for 1 tokens", score(function () return 1, { 1, 1 } end))
  lu.assertErrorMsgContains("step 1 is", score(function () return 1, { math.huge } end))
end

function TestRl.test_abstaining_is_not_zero()
  local batch = { total = { 1, 0 / 0, 1, 0.5 }, group = 4, tokens = { {}, {}, {}, {} }, ended = {},
    mask = peri.ones { 4, 2 }, logprobs = peri.zeros { 4, 2 } }
  local advantage, weight = rl.advantages(batch)
  lu.assertEquals(weight:sum(2):tolist(), { 2, 0, 2, 2 })
  lu.assertEquals(advantage:at(2, 1), 0)
  lu.assertAlmostEquals(advantage:at(1, 1), (1 - 2.5 / 3) / (math.sqrt(1 / 12) + 1e-4), 1e-5) -- f32
  lu.assertAlmostEquals(rl.summary(batch).reward, 2.5 / 3, 1e-12)
end

function TestRl.test_process_credit_uses_the_samples_that_are_still_right()
  -- three samples of one prompt; step rewards 1/2 while right
  local batch = {
    group = 3, total = { 1, 0.5, 0 },
    steps = peri.tensor({ { 0.5, 0.5 }, { 0.5, 0 }, { 0, 0 } }, "f32"),
    covered = peri.tensor({ { 1, 1 }, { 1, 1 }, { 1, 0 } }, "f32"),
  }
  local a, w = rl.advantages(batch, { std = "none", eps = 0 })
  lu.assertEquals(w:tolist(), { { 1, 1 }, { 1, 1 }, { 1, 0 } })
  lu.assertAlmostEquals(a:at(1, 1), 1 - 0.5, 1e-6) -- returns 1, 0.5, 0: mean 0.5
  lu.assertAlmostEquals(a:at(1, 2), 0.5 - 0.25, 1e-6) -- returns 0.5, 0 of two samples
  lu.assertAlmostEquals(a:at(2, 2), 0 - 0.25, 1e-6)
  lu.assertEquals(a:at(3, 2), 0)
end

local function gradients(net, batch, micro, all, by_length)
  local advantage, weight = rl.advantages(batch)
  local useful = rl.with_signal(batch, advantage, weight, all)
  local tokens = weight:sum():item()
  for part in rl.parts(useful, micro, { by_length = by_length }) do
    local loss = rl.clipped(net:token_logprobs(part.sequences, part.from), part.logprobs, part.advantage, part.weight,
      { tokens = tokens })
    loss:backward()
  end
  local list = {}
  for i, p in ipairs(net:parameters()) do
    list[i] = p.grad
    p.grad = nil
  end
  return list, useful.n
end

local function largest(a, b)
  local d, m = 0, 0
  for i = 1, #a do
    d = math.max(d, a[i]:sub(b[i]):abs():max():item())
    m = math.max(m, b[i]:abs():max():item())
  end
  return d / m
end

function TestRl.test_micro_batches_and_left_out_rows_change_no_gradient()
  local net = model(3)
  local batch = rl.rollout(net, tok, rows, sevens, { group = 4, max_new_tokens = 4 })
  local whole, n = gradients(net, batch, 1000, true)
  lu.assertEquals(n, 40)
  local useful, fewer = gradients(net, batch, 1000, false)
  lu.assertTrue(fewer < 40 and fewer > 0, fewer .. " rows")
  -- 1e-5: sums of f32 products in another order
  lu.assertTrue(largest(useful, whole) < 1e-5)
  lu.assertTrue(largest(gradients(net, batch, 7, false), whole) < 1e-5)
end

function TestRl.test_slices_by_length_are_every_row_once_as_wide_as_the_longest_and_change_no_gradient()
  local net = model(5)
  local prompts = { { prompt = "1:2" }, { prompt = "1,2,3:2" }, { prompt = "2" } }
  local n = 0
  local batch = rl.rollout(net, tok, prompts, function () n = n + 1 return n % 3 end,
    { group = 8, max_new_tokens = 30, stop = tok:encode "1234" })
  local advantage, weight = rl.advantages(batch)
  local all = rl.with_signal(batch, advantage, weight)
  local seen, before, lengths = {}, math.huge, {}
  for part in rl.parts(all, 5, { by_length = true }) do
    local begins, counts = part.sequences:bounds()
    local widest = 0
    for i, first in ipairs(begins) do
      local last = first + counts[i]
      lu.assertTrue(last <= before) -- the longest first
      before, widest, lengths[last] = last, math.max(widest, last), true
      seen[#seen + 1] = table.concat(part.ids:at(i):narrow(1, first + 1, counts[i]):tolist(), " ")
    end
    lu.assertEquals({ part.n, part.ids.shape }, { #begins, { #begins, widest } })
    lu.assertEquals(part.weight.shape, { part.n, widest - part.from + 1 })
    local logp = net:token_logprobs(part.sequences, part.from) -- the same numbers as in the rollout
    lu.assertEquals(logp:sub(part.logprobs):mul(part.weight):abs():max():item(), 0)
  end
  lu.assertTrue(next(lengths, next(lengths)) ~= nil) -- they do differ
  local want = {}
  for i, ids in ipairs(all.sequences:unpad()) do want[i] = table.concat(ids, " ") end
  table.sort(seen)
  table.sort(want)
  lu.assertEquals(seen, want)
  -- 1e-5: sums of f32 products in another order
  lu.assertTrue(largest(gradients(net, batch, 5, false, true), gradients(net, batch, 1000)) < 1e-5)
  for _ in rl.parts({ n = 0 }, 5, { by_length = true }) do lu.fail "no rows, no slice" end
  lu.assertErrorMsgContains("by_length needs the sequences", rl.parts, { n = 1 }, 5, { by_length = true })
end

function TestRl.test_the_first_ratio_is_one()
  local net = model(4)
  local batch = rl.rollout(net, tok, rows, sevens, { group = 4, max_new_tokens = 5, temperature = 0.8 })
  local logp = net:token_logprobs(batch.ids, batch.from, { temperature = 0.8 })
  local ratio = logp:sub(batch.logprobs):mul(batch.mask):exp()
  lu.assertEquals(ratio:max():item(), 1)
  lu.assertEquals(ratio:min():item(), 1)
end

function TestRl.test_prompts_of_unequal_length_are_padded()
  local net = model(5)
  local mixed = { { prompt = "1" }, { prompt = "12:34" } }
  local batch = rl.rollout(net, tok, mixed, sevens, { group = 2, max_new_tokens = 4 })
  lu.assertEquals(batch.start:tolist(), { 4, 4, 0, 0 })
  local logp = net:token_logprobs(batch.ids, batch.from, { start = batch.start })
  lu.assertEquals(logp:mul(batch.mask):bytes(), batch.logprobs:mul(batch.mask):bytes())
end

function TestRl.test_the_stepper_learns()
  local net = model(6)
  local stepper = grpo.new { model = net, tokenizer = tok, rows = rows, reward = sevens, prompts = 10, group = 8,
    max_new_tokens = 4, optimizer = optim.AdamW(net:parameters(), { lr = 3e-3, weight_decay = 0 }), seed = 1 }
  local first, last
  for _ = 1, 40 do
    last = stepper:step()
    first = first or last
  end
  lu.assertTrue(first.reward < 0.2, "starts at " .. first.reward)
  lu.assertTrue(last.reward > 0.8, "ends at " .. last.reward)
  lu.assertEquals(last.step, 40)
  lu.assertTrue(last.entropy < first.entropy)
end

function TestRl.test_a_kl_penalty_needs_a_reference_and_holds_back()
  local net = model(7)
  local opts = { model = net, tokenizer = tok, rows = rows, reward = sevens, prompts = 4, group = 4, max_new_tokens = 3,
    optimizer = optim.AdamW(net:parameters(), { lr = 1e-3 }), beta = 0.1 }
  lu.assertErrorMsgContains("reference", grpo.new, opts)
  opts.reference = net:copy()
  local stepper = grpo.new(opts)
  lu.assertAlmostEquals(stepper:step().kl, 0, 1e-6) -- the policy is still the reference
  lu.assertTrue(stepper:step().kl > 0)
  opts.bata = 1
  lu.assertErrorMsgContains("bata", grpo.new, opts)
end

-- Prompts of unequal length, so that rows are padded; more rows than the reference reads at once.
function TestRl.test_a_kl_of_many_rows_is_read_in_slices_and_has_the_bits_of_a_whole_batch()
  local asked = {}
  for i = 1, 50 do asked[i] = { prompt = (i % 3 == 0) and "1:2" or "11,2:7" } end
  local policy, other = model(1), model(2)
  local batch = rl.rollout(policy, tok, asked, sevens, { group = 3, max_new_tokens = 6 })
  local _ <close> = peri.no_grad()
  local ref = other:token_logprobs(batch.sequences, batch.from)
  local want = peri.loss.kl(batch.logprobs, ref, batch.mask):mul(batch.mask):sum():item() / batch.mask:sum():item()
  lu.assertEquals(rl.kl_to(other, batch), want)
  lu.assertEquals(rl.kl_to(policy, batch), 0)
  lu.assertEquals(rl.kl_to(other, { ids = batch.ids, start = batch.start, from = batch.from, logprobs = batch.logprobs,
    mask = batch.mask }), want)
end

function TestRl.test_the_curriculum_prefers_what_is_unsolved()
  local two = { { prompt = "a" }, { prompt = "b" } }
  local c, rng, counts = rl.curriculum(two, { decay = 0 }), peri.rng(1), { a = 0, b = 0 }
  c:update { rows = { two[1], two[2] }, total = { 1, 0.5 } }
  for _ = 1, 3000 do
    local row = c:draw(rng)
    counts[row.prompt] = counts[row.prompt] + 1
  end
  -- chances 0.1 and 0.6: 429 expected, standard deviation 19
  lu.assertTrue(math.abs(counts.a - 3000 / 7) < 5 * 19, counts.a .. " draws of the solved row")
  local other = rl.curriculum(two)
  other:set_state(peri.json.decode(peri.json.encode(c:state())))
  lu.assertEquals(other.seen, { 1, 0.5 })
end

function TestRl.test_what_is_wrong_with_a_list_of_rewards_or_a_prompt_is_said_at_the_caller()
  local function one() return 1 end
  for want, list in pairs {
    ["it is a function"] = { one }, ["it has no name"] = { { name = "x", fn = one } },
    ['another one is called "x"'] = { { "x", one }, { "x", one } }, ['of "x" the second is a nil'] = { { "x" } },
    ['of "x" the weight is a string'] = { { "x", one, "1" } }, ["it has the key x, expected entries"] = { x = one },
  } do
    local ok, message = pcall(function () return rl.score({ {} }, { "a" }, { { 1 } }, list), 1 end)
    lu.assertFalse(ok)
    lu.assertStrContains(message, want)
    lu.assertStrContains(message, "test_rl.lua:")
  end
  local plain = text.chars "ab"
  lu.assertErrorMsgContains("the prompt of row 2 has no tokens", rl.prompts, plain, { { prompt = "a" }, { prompt = "" } })
  lu.assertErrorMsgContains("row 1 is a list of messages, and the tokenizer has no chat template", rl.prompts, plain,
    { { prompt = { { role = "user", content = "a" } } } })
end

os.exit(lu.LuaUnit.run())
