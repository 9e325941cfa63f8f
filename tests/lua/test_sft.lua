-- Supervised fine-tuning: row formats, packing, one divisor for the whole update; and the shared prompt of
-- a GRPO group.
local lu = require "luaunit"
local peri = require "perilune"
local models, optim, sft, rl = require "perilune.models", require "perilune.optim", require "perilune.algo.sft",
  require "perilune.rl"
local rows, peft = require "perilune.data.rows", require "perilune.peft"

local BASE = "tests/data/hf_tiny/llama"

-- A tokenizer of bytes: 0 pads, 1 ($) ends, 2.. are bytes; a chat is <role:content> after <role:content>.
local tok = { pad = 0, eos = 1, size = 258 }
function tok:encode(text) -- luacheck: ignore 212
  local ids = {}
  for i = 1, #text do ids[i] = text:sub(i, i) == "$" and 1 or text:byte(i) + 2 end
  return ids
end
function tok:token(id) return id == 1 and "$" or string.char(id - 2) end -- luacheck: ignore 212
function tok:encode_chat(messages, opts)
  local ids, mask = {}, {}
  local function put(text, on)
    for _, id in ipairs(self:encode(text)) do
      ids[#ids + 1], mask[#mask + 1] = id, on
    end
  end
  for _, m in ipairs(messages) do
    put("<" .. m.role .. ":", 0)
    put(m.content .. ">", m.role == "assistant" and 1 or 0)
  end
  if opts.add_generation_prompt then put("<assistant:", 0) end
  return ids, mask
end

local function text_of(ids, mask)
  local out = {}
  for i, id in ipairs(ids) do
    if not mask or mask[i] == 1 then out[#out + 1] = id >= 2 and string.char(id - 2) or "$" end
  end
  return table.concat(out)
end

local function user(text) return { role = "user", content = text } end
local function assistant(text) return { role = "assistant", content = text } end

TestRows = {}

function TestRows.test_every_format_is_known_by_its_keys()
  local cases = {
    { "language_modeling", false, { text = "a" } }, { "language_modeling", true, { messages = {} } },
    { "prompt_only", false, { prompt = "a" } }, { "prompt_only", true, { prompt = { user "a" } } },
    { "prompt_completion", false, { prompt = "a", completion = "b" } },
    { "prompt_completion", true, { prompt = { user "a" }, completion = { assistant "b" } } },
    { "preference", false, { prompt = "a", chosen = "b", rejected = "c" } },
    { "preference", false, { chosen = "a b", rejected = "a c" } },
    { "preference", true, { chosen = { user "a", assistant "b" }, rejected = { user "a", assistant "c" } } },
    { "unpaired_preference", false, { prompt = "a", completion = "b", label = true } },
    { "stepwise_supervision", false, { prompt = "a", completions = { "b" }, labels = { true } } },
  }
  for _, c in ipairs(cases) do
    local kind, chat = rows.kind(c[3])
    lu.assertEquals({ kind, chat }, { c[1], c[2] })
  end
  local kind, message = rows.kind { question = "a", answer = "b" }
  lu.assertNil(kind)
  lu.assertStrContains(message, "answer, question")
end

function TestRows.test_only_what_the_assistant_says_is_learned()
  local e = rows.encode(tok, { messages = { user "hi", assistant "yes", user "go", assistant "no" } })
  lu.assertEquals(text_of(e.ids), "<user:hi><assistant:yes><user:go><assistant:no>")
  lu.assertEquals(text_of(e.ids, e.mask), "yes>no>")
end

function TestRows.test_only_the_completion_is_learned()
  local e = rows.encode(tok, { prompt = "2+2=", completion = "4" })
  lu.assertEquals(text_of(e.ids), "2+2=4$")
  lu.assertEquals(text_of(e.ids, e.mask), "4$")
  e = rows.encode(tok, { prompt = "2+2=", completion = "4" }, { completion_only = false })
  lu.assertEquals(text_of(e.ids, e.mask), "2+2=4$")
  e = rows.encode(tok, { prompt = { user "hi" }, completion = { assistant "yes" } })
  lu.assertEquals(text_of(e.ids), "<user:hi><assistant:yes>")
  lu.assertEquals(text_of(e.ids, e.mask), "yes>")
end

function TestRows.test_preferences_find_their_prompt()
  local e = rows.encode(tok, { chosen = "The sky is blue.", rejected = "The sky is green." })
  lu.assertEquals({ text_of(e.prompt), text_of(e.chosen), text_of(e.rejected) }, { "The sky is", " blue.$", " green.$" })
  e = rows.encode(tok, { chosen = { user "a", assistant "b" }, rejected = { user "a", assistant "c" } })
  lu.assertEquals({ text_of(e.prompt), text_of(e.chosen), text_of(e.rejected) }, { "<user:a><assistant:", "b>", "c>" })
  e = rows.encode(tok, { prompt = "a", chosen = { user "a", assistant "b" }, rejected = { user "a", assistant "c" } })
  lu.assertEquals({ text_of(e.prompt), text_of(e.chosen), text_of(e.rejected) }, { "<user:a><assistant:", "b>", "c>" })
end

function TestRows.test_rows_without_an_answer_are_refused_by_number()
  lu.assertErrorMsgContains("row 2 is of the format prompt_only", rows.examples, tok, { { text = "a b" }, { prompt = "c" } })
  lu.assertErrorMsgContains("row 1", rows.examples, tok, { { question = "a" } })
end

TestSFT = {}

-- Examples with numbers below the tiny model's vocabulary.
local function examples(n)
  local list = {}
  for i = 1, n do
    local e = { ids = {}, mask = {} }
    for k = 1, 4 + i * 5 % 7 do e.ids[k], e.mask[k] = (i * 7 + k * 3) % 50, k > 2 and 1 or 0 end
    list[i] = e
  end
  return list
end

function TestSFT.test_packing_is_best_fit_decreasing()
  local list = {}
  for i, n in ipairs { 6, 3, 5, 2, 4 } do list[i] = { ids = table.pack(string.rep("x", n):byte(1, n)) } end
  lu.assertEquals(sft.pack(list, 10), { { 1, 5 }, { 3, 2, 4 } })
  lu.assertErrorMsgContains("example 1 has 6 tokens", sft.pack, list, 5)
end

local function loss_and_gradients(model, list)
  local batch = sft.batch(list, 0)
  local loss = sft.loss(model, batch):div(batch.learned)
  loss:backward()
  local grads = {}
  for i, p in ipairs(model:parameters()) do
    grads[i] = p.grad
    p:zero_grad()
  end
  return loss:item(), grads, batch.learned
end

-- The same sums in another order: 1e-5 of the largest gradient.
function TestSFT.test_packed_rows_do_not_see_each_other()
  local model, list = assert(models.load(BASE)), examples(6)
  local apart, packed = {}, {}
  for i, e in ipairs(list) do apart[i] = { e } end
  for i, bin in ipairs(sft.pack(list, 24)) do
    packed[i] = {}
    for k, index in ipairs(bin) do packed[i][k] = list[index] end
  end
  lu.assertTrue(#packed < #apart)
  local a, ga, na = loss_and_gradients(model, apart)
  local b, gb, nb = loss_and_gradients(model, packed)
  lu.assertEquals(na, nb)
  lu.assertAlmostEquals(a, b, 1e-6)
  for i, g in ipairs(ga) do
    lu.assertTrue(g:sub(gb[i]):abs():max():item() <= 1e-5 * math.max(g:abs():max():item(), 1e-3))
  end
end

function TestSFT.test_an_update_on_given_examples_is_that_of_a_stepper_and_no_cut_changes_it()
  local list, want = examples(8), nil
  for _, micro in ipairs { 16, 3, 1 } do
    local model = assert(models.load(BASE))
    local opt = optim.SGD(model:parameters(), { lr = 0.1 })
    local row = sft.update(model, opt, list, { length = 24, micro = micro, lr = 0.05 })
    want = want or { row, model:state_dict() }
    lu.assertEquals(row.tokens, want[1].tokens)
    lu.assertAlmostEquals(row.loss, want[1].loss, 1e-6)
    for name, t in pairs(model:state_dict()) do lu.assertEquals(t:bytes(), want[2][name]:bytes()) end
  end
  local model = assert(models.load(BASE))
  local opt = optim.SGD(model:parameters(), { lr = 0.05 })
  local row = sft.new({ model = model, optimizer = opt, examples = list, batch_size = 8 }):step()
  lu.assertAlmostEquals(row.loss, want[1].loss, 1e-5) -- padded rows: the same sums in another order
  lu.assertAlmostEquals(row.grad_norm, want[1].grad_norm, 1e-4 * row.grad_norm)
  lu.assertErrorMsgContains("there are no examples", sft.update, model, opt, {})
  lu.assertErrorMsgContains("example 1 has no token to learn", sft.update, model, opt, { { ids = { 1, 2 }, mask = { 1, 0 } } })
  lu.assertEquals(sft.example({ 5, 6 }, { 7 }), { ids = { 5, 6, 7 }, mask = { 0, 0, 1 } })
end

-- Micro-batches of unlike length add up to the gradient of the whole, because the divisor is the whole's.
function TestSFT.test_accumulation_divides_by_the_tokens_of_the_update()
  local list, norms, losses = examples(8), {}, {}
  for i, cut in ipairs { { 8, 1 }, { 2, 4 }, { 1, 8 } } do
    local model = assert(models.load(BASE))
    local opt = optim.SGD(model:parameters(), { lr = 0 })
    local row = sft.new { model = model, optimizer = opt, examples = list, batch_size = cut[1], accumulate = cut[2] }:step()
    norms[i], losses[i] = row.grad_norm, row.loss
  end
  for i = 2, 3 do
    lu.assertAlmostEquals(losses[i], losses[1], 1e-5)
    lu.assertAlmostEquals(norms[i], norms[1], 1e-5 * norms[1])
  end
end

function TestSFT.test_checkpointing_changes_no_gradient()
  local list = { examples(3) }
  local model = assert(models.load(BASE))
  local a, ga = loss_and_gradients(model, list)
  local b, gb = loss_and_gradients(model:checkpointing(true), list)
  lu.assertEquals(a, b)
  for i, g in ipairs(ga) do lu.assertEquals(g:sub(gb[i]):abs():max():item(), 0) end
end

function TestSFT.test_loss_falls_and_a_stepper_goes_on_where_it_was()
  local function run(stop)
    local model = assert(models.load(BASE))
    local opt = optim.AdamW(model:parameters(), { lr = 1e-3 })
    local how = { model = model, optimizer = opt, examples = examples(7), batch_size = 2, packing = true, max_length = 16 }
    local stepper, first, last = sft.new(how), nil, nil
    for step = 1, 12 do
      if step == stop then
        stepper = sft.new(how):set_state(peri.json.decode(peri.json.encode(stepper:state())))
      end
      last = stepper:step()
      first = first or last
    end
    lu.assertTrue(last.epoch > 1)
    lu.assertTrue(last.loss < first.loss - 0.3)
    return last.loss
  end
  lu.assertEquals(run(5), run())
end

-- An update of LoRA, packed and cut into micro-batches, against a plain loop in PyTorch over one example at a
-- time (tests/reference/sft.py): loss and norm 1e-5, parameters after AdamW's step 1e-4 of the step.
function TestSFT.test_one_update_equals_PyTorchs()
  local want = peri.json.decode(assert(peri.files.read "tests/data/sft.json"))
  for _, how in ipairs { { 8, 1, false }, { 2, 4, false }, { 1, 2, true }, { 1, 2, true, true } } do
    local model = assert(models.load(BASE)):checkpointing(how[4])
    local adapter = assert(peft.load(model, "tests/data/peft_lora"))
    local opt = optim.AdamW(adapter:parameters(), { lr = 1e-2, weight_decay = 0.1 })
    local stepper = sft.new { model = model, optimizer = opt, examples = examples(8), batch_size = how[1],
      accumulate = how[2], packing = how[3], max_length = 32 }
    lu.assertEquals(#stepper.units, how[1] * how[2])
    local row = stepper:step()
    lu.assertAlmostEquals(row.loss, want.loss, 1e-5 * want.loss)
    lu.assertAlmostEquals(row.grad_norm, want.grad_norm, 1e-5 * want.grad_norm)
    local n = 0
    for _, pair in ipairs(adapter:named_parameters()) do
      local got = pair[2]:detach():reshape { -1 }:tolist()
      for i, v in ipairs(want.after[pair[1]]) do
        lu.assertAlmostEquals(got[i], v, 1e-6, pair[1])
        n = n + 1
      end
    end
    lu.assertEquals(n, 8 * #adapter:parameters())
  end
end

-- The adapter's gradients are the same with blocks computed again, over packed rows, and less is held.
function TestSFT.test_checkpointing_of_packed_rows_under_lora()
  local ids = examples(12)
  local bins = {}
  for i, bin in ipairs(sft.pack(ids, 48)) do
    bins[i] = {}
    for k, index in ipairs(bin) do bins[i][k] = ids[index] end
  end
  local peaks, grads = {}, {}
  for i, on in ipairs { false, true } do
    local model = assert(models.load(BASE)):checkpointing(on)
    local adapter = assert(peft.load(model, "tests/data/peft_lora"))
    local batch = sft.batch(bins, 0)
    local loss = sft.loss(model, batch)
    peaks[i], grads[i] = peri.memory().live, {}
    loss:backward()
    for k, p in ipairs(adapter:parameters()) do grads[i][k] = p.grad end
    loss:release()
    collectgarbage()
    collectgarbage()
  end
  for k, g in ipairs(grads[1]) do lu.assertEquals(g:sub(grads[2][k]):abs():max():item(), 0) end
  lu.assertTrue(peaks[2] < peaks[1], ("%d held with, %d without"):format(peaks[2], peaks[1]))
end

TestSharedPrompt = {}

-- Sampled, trained with whole sequences, or with the prompt read once: the same bits; gradients are the same
-- sums in another order.
function TestSharedPrompt.test_equals_whole_sequences()
  local model = assert(models.load(BASE))
  local ids = assert(peri.safetensors.load(BASE .. "/io.safetensors")).input_ids
  local prompts, mask = ids:narrow(2, 1, 5), peri.ones({ 2, 5 }, "bool")
  mask:set(2, 1, false)
  local fake = { eos = 3, pad = 0, decode = function () return "" end, batch = function () return prompts, mask end }
  peri.seed(4)
  local batch = rl.rollout(model, fake, { { prompt = "a" }, { prompt = "b" } },
    function (_, _, tokens) return #tokens + tokens[1] % 5 end, { group = 3, max_new_tokens = 6 })
  local advantage, weight = rl.advantages(batch)
  local count, before = 0, {}
  for group in rl.groups(batch, advantage, weight) do
    local prompt = rl.shared_prompt(model, group.prompt)
    for part in group:parts(2) do
      local logp = rl.completion_logprobs(model, prompt, part.completions)
      lu.assertEquals(logp:detach():sub(part.logprobs:mul(part.weight)):abs():max():item(), 0)
      logp:mul(part.advantage):sum():backward()
      count = count + part.n
    end
    prompt:backward()
  end
  for i, p in ipairs(model:parameters()) do
    before[i] = p.grad
    p:zero_grad()
  end
  local rest = rl.with_signal(batch, advantage, weight)
  lu.assertEquals(count, rest.n)
  for part in rl.parts(rest, 8) do
    model:token_logprobs(part.ids, part.from, { start = part.start }):mul(part.advantage):sum():backward()
  end
  for i, p in ipairs(model:parameters()) do
    lu.assertTrue(p.grad:sub(before[i]):abs():max():item() <= 1e-5 * p.grad:abs():max():item())
  end
end

TestSummary = {}

-- By hand; the deviations are torch.std's, of a sample, as TRL logs them.
function TestSummary.test_names_and_numbers_are_TRLs()
  local rewards = { { "a", function (row) return row.a end }, { "b", function (row) return row.b end, 0.5 } }
  local list = { { a = 1, b = 2 }, { a = 0 }, { a = 3, b = 0 }, { a = 3, b = 0 } }
  local scored = rl.score(list, { "", "", "", "" }, { { 1 }, { 1 }, { 1 }, { 1 } }, rewards)
  lu.assertEquals(scored.total, { 2, 0, 3, 3 })
  local mask = peri.tensor({ { 1, 1, 1 }, { 1, 0, 0 }, { 1, 1, 0 }, { 1, 1, 1 } }, "f32")
  local s = rl.summary { total = scored.total, rewards = scored.rewards, names = scored.names, group = 2,
    tokens = { { 5, 6, 7 }, { 3 }, { 5, 3 }, { 5, 6, 3 } }, ended = { false, true, true, true }, mask = mask,
    logprobs = mask:mul(-0.5) }
  local want = { reward = 2, reward_std = math.sqrt(2) / 2, frac_reward_zero_std = 0.5, entropy = 0.5,
    ["rewards/a/mean"] = 7 / 4, ["rewards/a/std"] = 1.5, ["rewards/b/mean"] = 2 / 3,
    ["rewards/b/std"] = math.sqrt(4 / 3), ["rewards/b/abstained"] = 0.25,
    ["completions/mean_length"] = 9 / 4, ["completions/min_length"] = 1,
    ["completions/max_length"] = 3, ["completions/clipped_ratio"] = 0.25, ["completions/mean_terminated_length"] = 2,
    ["completions/min_terminated_length"] = 1, ["completions/max_terminated_length"] = 3 }
  for name, value in pairs(want) do lu.assertAlmostEquals(s[name], value, 1e-6, name) end
  for name in pairs(s) do lu.assertNotNil(want[name], name) end
end
