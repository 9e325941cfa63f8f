-- Generation: transformers' greedy search under penalties and its beam search, the requests of a batch
-- against each alone, prompts read once, constraints, texts and where they stop.
local lu = require "luaunit"
local peri = require "perilune"
local engines = require "perilune.decode.engine"
local caches = require "perilune.nn.cache"
local constraint = require "perilune.decode.constraint"
local lms = require "perilune.lm"
local models = require "perilune.models"
local prefix_cache = require "perilune.decode.prefix_cache"
local regex = require "perilune.decode.regex"
local sampler = require "perilune.decode.sampler"
local reference = require "shared"
local text = require "perilune.text"

local function read(name) return assert(peri.json.decode(assert(peri.files.read("tests/data/" .. name)))) end
local function tiny(name) return assert(models.load("tests/data/hf_tiny/" .. name)) end

local digits_tok = text.from_codes(read("tiny_llama_digits/tokenizer_config.json").char_ords)
local function digits() return assert(models.load "tests/data/tiny_llama_digits") end

-- Generated ids of each row, without what follows the end.
local function kept(out)
  local tokens, mask = out.tokens:tolist(), out.mask:tolist()
  for r, row in ipairs(tokens) do
    for i = #row, 1, -1 do if not mask[r][i] then row[i] = nil end end
  end
  return tokens
end

TestGenerate = {}

function TestGenerate.test_beam_search_finds_what_transformers_finds()
  for i, c in ipairs(read "beam_search.json") do
    local out = tiny(c.model):generate(peri.tensor(c.prompt, "i64"), { num_beams = c.num_beams, stop = c.stop,
      length_penalty = c.length_penalty, early_stopping = c.early_stopping, max_new_tokens = c.max_new_tokens,
      num_return_sequences = c.num_return_sequences, repetition_penalty = c.repetition_penalty })
    local scores = out.scores:tolist()
    for r, row in ipairs(kept(out)) do
      lu.assertEquals(row, table.move(c.sequences[r], 1, #row, 1, {}), ("case %d row %d"):format(i, r))
      -- stored with 6 decimals; sums of at most 14 log-probabilities in f32
      lu.assertAlmostEquals(scores[r], c.scores[r], 1e-5 * math.max(1, math.abs(c.scores[r])))
    end
  end
end

-- More tokens than are read in one pass: in several, with what each row gets alone.
function TestGenerate.test_a_batch_too_long_for_one_pass_is_read_in_parts_and_gives_the_same()
  peri.seed(3)
  local model = models.llama.new({ model_type = "llama", vocab_size = 50, hidden_size = 16, intermediate_size = 512,
    num_hidden_layers = 2, num_attention_heads = 2, max_position_embeddings = 256, rms_norm_eps = 1e-6 }, { std = 0.3 })
  local rows, prompts = 48, {}
  for i = 1, rows do prompts[i] = peri.randint(0, 50, { 120 + i % 7 }):tolist() end -- of 5,900 tokens
  local batch = peri.batch.pad(prompts, { side = "left", pad = 0 })
  local how = { max_new_tokens = 3, temperature = 0, rows = rows }
  local out = model:generate(batch, how)
  for _, i in ipairs { 1, 7, 32, 33, 34, 48 } do
    local alone = model:generate(peri.batch.pad({ prompts[i] }, { side = "left", pad = 0 }), how)
    lu.assertEquals(out.tokens:select(1, i):tolist(), alone.tokens:select(1, 1):tolist(), i)
    lu.assertTrue(out.logprobs:select(1, i):sub(alone.logprobs:select(1, 1)):abs():max():item() <= 1e-6, i)
  end
end

function TestGenerate.test_beams_of_padded_prompts_are_those_of_each_alone()
  local model = tiny "llama"
  local o = { num_beams = 3, num_return_sequences = 3, max_new_tokens = 8, stop = { 5, 9, 33 }, repetition_penalty = 1.2 }
  local short, long = { 19, 34, 22 }, { 25, 40, 20, 35, 6, 47 }
  local padded = {}
  for k, v in pairs(o) do padded[k] = v end
  padded.prompt_mask = peri.tensor({ { false, false, false, true, true, true }, { true, true, true, true, true, true } }, "bool")
  local both = model:generate(peri.tensor { { 7, 7, 7, 19, 34, 22 }, long }, padded)
  for k, ids in ipairs { short, long } do
    local alone = model:generate(peri.tensor { ids }, o)
    lu.assertEquals(both.scores:narrow(1, 3 * k - 2, 3):bytes(), alone.scores:bytes())
    lu.assertEquals(table.move(kept(both), 3 * k - 2, 3 * k, 1, {}), kept(alone))
  end
end

function TestGenerate.test_greedy_search_under_penalties_equals_transformers()
  for _, c in ipairs(read "greedy_penalties.json") do
    local out = tiny(c.model):generate(peri.tensor { c.prompt }, { greedy = true, stop = c.stop,
      repetition_penalty = c.repetition_penalty, min_new_tokens = c.min_new_tokens, max_new_tokens = c.max_new_tokens })
    lu.assertEquals(kept(out)[1], c.tokens)
  end
end

function TestGenerate.test_frequency_and_presence_penalties_are_openais()
  local o = { greedy = true, frequency_penalty = 0.5, presence_penalty = 0.25 }
  for name, value in pairs(sampler.defaults) do
    if o[name] == nil and type(value) ~= "table" then o[name] = value end
  end
  local row = sampler.row(o, { 3 }, {})
  for _, id in ipairs { 1, 2, 1 } do row:accept(id) end
  -- logit - count * frequency - presence: 2 - 1.25, 1.4 - 0.75, 0.5, 0.6 (the prompt does not count)
  local x = sampler.process(peri.tensor { { 0.5, 2, 1.4, 0.6 } }, { row })
  local got = x:tolist()[1]
  for i, want in ipairs { 0.5, 0.75, 0.65, 0.6 } do lu.assertAlmostEquals(got[i], want, 1e-6) end
end

function TestGenerate.test_log_probabilities_and_the_likeliest_tokens()
  local model, io = tiny "llama", assert(peri.safetensors.load "tests/data/hf_tiny/llama/io.safetensors")
  local prompt = io.input_ids:narrow(1, 1, 1):narrow(2, 1, 7)
  local want = io.logits:select(1, 1):select(1, 7):to("f64"):log_softmax(-1) -- after the 7th token, from transformers
  local values, ids = want:topk(5)
  for _, o in ipairs { { greedy = true }, { greedy = true, repetition_penalty = 3 }, { temperature = 1, seed = 9 } } do
    o.top_logprobs, o.max_new_tokens = 5, 1
    local out = model:generate(prompt, o)
    for k, entry in ipairs(out.top[1][1]) do
      lu.assertEquals(entry.id, ids:at(k))
      lu.assertAlmostEquals(entry.logprob, values:at(k), 1e-5)
    end
    lu.assertAlmostEquals(out.logprobs:item(), want:at(out.tokens:item() + 1), 1e-5)
  end
end

function TestGenerate.test_a_seed_gives_each_sample_its_own_stream()
  local model = digits()
  local prompt = peri.tensor { { 4, 5, 6 }, { 7, 8, 9 } }
  local o = { seed = 11, samples = 4, max_new_tokens = 12 }
  peri.seed(1)
  local a = model:generate(prompt, o)
  local state = peri.rng_state()
  peri.seed(2)
  local b = model:generate(prompt, o)
  lu.assertEquals(a.tokens:tolist(), b.tokens:tolist())
  lu.assertEquals(state, { seed = 1, offset = 0 })
  local different = {}
  for _, row in ipairs(a.tokens:tolist()) do different[table.concat(row, ",")] = true end
  local n = 0
  for _ in pairs(different) do n = n + 1 end
  lu.assertEquals(n, 8)
  lu.assertNotEquals(model:generate(prompt, { seed = 12, samples = 4, max_new_tokens = 12 }).tokens:tolist(), a.tokens:tolist())
end

function TestGenerate.test_options_are_checked()
  local model, prompt = digits(), peri.tensor { { 4 } }
  local function refuse(o, ...)
    local ok, message = pcall(model.generate, model, prompt, o)
    lu.assertFalse(ok)
    for _, want in ipairs { ... } do lu.assertStrContains(message, want) end
  end
  refuse({ temprature = 1 }, "temprature", "temperature")
  refuse({ temperature = -1 }, "-1", "temperature")
  refuse({ top_p = 0 }, "top_p", "0")
  refuse({ top_k = 1.5 }, "1.5")
  refuse({ repetition_penalty = 0 }, "repetition_penalty")
  refuse({ max_new_tokens = 0 }, "max_new_tokens", "0")
  refuse({ num_beams = 2, num_return_sequences = 3 }, "3", "2")
  refuse({ num_beams = 2, samples = 3 }, "num_return_sequences")
  refuse({ num_beams = 2, temperature = 0.5 }, "temperature")
  refuse({ seed = "x" }, "seed", "x")
end

-- ---- the cache ----------------------------------------------------------------------------------

TestCache = {}

local function filled(batch, length)
  local c = caches.new { batch = batch, length = length, layers = 2, kv_heads = 2, head_dim = 3, value_dim = 4 }
  for i = 1, 2 do
    c.k[i]:copy_(peri.randn { batch, length, 2, 3 })
    c.v[i]:copy_(peri.randn { batch, length, 2, 4 })
  end
  c.length = length
  return c
end

-- What a row holds, whatever columns it is in.
local function contents(c, row)
  local first, parts = c:starts()[row], {}
  for i = 1, 2 do
    for _, t in ipairs { c.k[i], c.v[i] } do
      parts[#parts + 1] = t:narrow(1, row, 1):narrow(2, first + 1, c.length - first):contiguous():bytes()
    end
  end
  return table.concat(parts)
end

function TestCache.test_rows_keep_their_contents_wherever_they_go()
  local _ <close> = peri.no_grad()
  local a <close> = filled(3, 5)
  local b <close> = filled(2, 8)
  local rows, others = {}, {}
  for r = 1, 3 do rows[r] = contents(a, r) end
  for r = 1, 2 do others[r] = contents(b, r) end
  a:select_rows { 3, 1, 2 }
  lu.assertEquals(contents(a, 1), rows[3])
  lu.assertEquals(contents(a, 2), rows[1])
  a:append_rows(b, { 2 }) -- longer than what is there: everything moves back
  a:select_rows { 1, 4, 3 }
  lu.assertEquals(a.length, 8)
  lu.assertEquals(a:starts(), { 3, 0, 3 })
  lu.assertEquals({ contents(a, 1), contents(a, 2), contents(a, 3) }, { rows[3], others[2], rows[2] })
  a:select_rows { 1, 1, 2, 2, 3, 3 }
  lu.assertEquals(a.batch, 6)
  lu.assertEquals(contents(a, 6), rows[2])
  a:select_rows { 1, 5 }
  a:reserve(20)
  lu.assertEquals(a:compact(), 3)
  lu.assertEquals(a.length, 5)
  lu.assertNil(a.start)
  lu.assertEquals({ contents(a, 1), contents(a, 2) }, { rows[3], rows[2] })
  local one <close> = a:copy_row(2, 4)
  a:truncate(4)
  lu.assertEquals(contents(one, 1), contents(a, 2))
  lu.assertEquals(a:bytes(), 2 * 20 * 2 * (2 * 3 + 2 * 4) * 4)
  lu.assertErrorMsgContains("no row 3 among 2", a.select_rows, a, { 3 })
  lu.assertErrorMsgContains("to 9 of 4", a.truncate, a, 9)
end

-- Rows leave and enter in the memory there is: whatever list is kept, each row is what it was.
function TestCache.test_rows_that_leave_and_enter_cost_no_memory()
  local _ <close> = peri.no_grad()
  local rng = peri.rng(7)
  local a <close> = filled(12, 9)
  local b <close> = filled(3, 6)
  local held, others = {}, {}
  for r = 1, 12 do held[r] = contents(a, r) end
  for r = 1, 3 do others[r] = contents(b, r) end
  local bytes = a:bytes()
  for turn = 1, 30 do
    local list, want, n = {}, {}, rng:int(1, 12)
    for r = 1, n do
      list[r] = rng:int(1, a.batch)
      want[r] = held[list[r]]
    end
    a:select_rows(list)
    held = want
    if turn % 3 == 0 and n < 11 then
      a:append_rows(b, { 2, 3 })
      held[n + 1], held[n + 2] = others[2], others[3]
    end
    for r = 1, a.batch do lu.assertEquals(contents(a, r), held[r], ("turn %d, row %d"):format(turn, r)) end
    lu.assertEquals({ a.batch, a.capacity, a:bytes() }, { #held, 12, bytes })
  end
  lu.assertFalse(a.torn)
end

function TestCache.test_appending_gives_all_that_was_appended()
  local _ <close> = peri.no_grad()
  local c <close> = caches.new { batch = 2, length = 6, layers = 1, kv_heads = 1, head_dim = 2 }
  local k, v = peri.randn { 2, 6, 1, 2 }, peri.randn { 2, 6, 1, 2 }
  for _, at in ipairs { 1, 4 } do
    local got_k, got_v = c:append(1, k:narrow(2, at, 3), v:narrow(2, at, 3))
    c.length = c.length + 3
    lu.assertEquals(got_k:contiguous():bytes(), k:narrow(2, 1, c.length):contiguous():bytes())
    lu.assertEquals(got_v:contiguous():bytes(), v:narrow(2, 1, c.length):contiguous():bytes())
  end
end

-- Whatever layers keep, under names of their own and in either layout, goes with its row.
function TestCache.test_a_layer_says_what_it_keeps_and_every_part_goes_with_its_row()
  local _ <close> = peri.no_grad()
  local layers = { { { "latent", 1, 5 }, { "turned", 1, 2, true } }, { { "k", 2, 3, true }, { "v", 2, 3 } }, {},
    { { "latent", 2, 1, true }, { "state", 3, 2 } } }
  local function made(batch, length)
    local c = caches.new { batch = batch, length = length + 2, dtype = "f64", layers = layers }
    for at = 0, length - 1, 2 do
      c.length = at
      for i, parts in ipairs(layers) do
        for _, part in ipairs(parts) do
          local n = math.min(2, length - at)
          local new = peri.randn({ batch, n, part[2], part[3] }, "f64")
          lu.assertEquals(c:put(i, part[1], new):narrow(2, at + 1, n):contiguous():bytes(), new:bytes())
        end
      end
    end
    c.length = length
    return c
  end
  local function holds(c, row)
    local first, list = c:starts()[row], {}
    for i, parts in ipairs(layers) do
      for _, part in ipairs(parts) do
        list[#list + 1] = c.held[part[1]][i]:narrow(1, row, 1):narrow(2, first + 1, c.length - first):contiguous():bytes()
      end
    end
    return table.concat(list)
  end
  local a <close> = made(3, 5)
  local other <close> = made(2, 7)
  local rows, others = { holds(a, 1), holds(a, 2), holds(a, 3) }, { holds(other, 1), holds(other, 2) }
  a:select_rows { 2, 3 }
  a:append_rows(other, { 2, 1 })
  lu.assertEquals({ holds(a, 1), holds(a, 2), holds(a, 3), holds(a, 4) }, { rows[2], rows[3], others[2], others[1] })
  a:select_rows { 2, 1 }
  a:reserve(30)
  lu.assertEquals(a:compact(), 2)
  lu.assertEquals({ holds(a, 1), holds(a, 2) }, { rows[3], rows[2] })
  lu.assertEquals(a:bytes(), a.capacity * 30 * (5 + 2 + 6 + 6 + 2 + 6) * 8)
  local b = a:copy_row(2, 5)
  lu.assertEquals(holds(b, 1), rows[2])
  lu.assertErrorMsgContains("cache: 5 positions and 1 more, room for 5", b.put, b, 1, "latent", peri.zeros { 1, 1, 1, 5 })
  b:release()
  b:release()
end

-- ---- continuous batching ------------------------------------------------------------------------

TestBatching = {}

-- Requests of all kinds: lengths, samples, settings.
local function requests(n)
  local rng, list = peri.rng(3), {}
  for i = 1, n do
    local ids = {}
    for k = 1, rng:int(1, 30) do ids[k] = k < 8 and k * 3 % 61 or rng:int(0, 60) end -- all begin alike
    list[i] = { ids, {
      max_new_tokens = rng:int(1, 25), samples = rng:int(1, 3), temperature = rng:choice { 0, 0.7, 1.3 },
      top_k = rng:choice { 0, 5 }, top_p = rng:choice { 1, 0.8 }, repetition_penalty = rng:choice { 1, 1, 1.2 },
      presence_penalty = rng:choice { 0, 0, 0.5 }, seed = i * 7, stop = rng:choice { {}, { 2, 9, 14 } },
      min_new_tokens = rng:choice { 0, 3 }, top_logprobs = rng:choice { 0, 0, 2 } } }
  end
  return list
end

-- All that a request brought, to the last bit.
local function brought(request)
  local parts = {}
  for _, s in ipairs(request.sequences) do
    parts[#parts + 1] = table.concat(s.tokens, " ") .. " " .. s.reason
    for i, p in ipairs(s.logprobs) do parts[#parts + 1] = ("%a %d"):format(p, s.top and s.top[i][2].id or 0) end
  end
  return table.concat(parts, "\n")
end

local function check_batches(name)
  local model, list, alone = tiny(name), requests(24), {}
  for i, r in ipairs(list) do
    local s = engines.new(model, { rows = 1 })
    local request = s:submit(r[1], r[2])
    s:run()
    alone[i] = brought(request)
  end
  for _, how in ipairs { { 2 }, { 5, 1 << 20 }, { 8, 30000 }, { 16 } } do
    local shared = how[2] and prefix_cache.new { bytes = how[2] }
    local s = engines.new(model, { rows = how[1], prefix_cache = shared, prefill_chunk = shared and 7 or 512 })
    local got = {}
    for i, r in ipairs(list) do
      got[i] = s:submit(r[1], r[2])
      if i > 8 then s:step() end
    end
    s:run()
    for i in ipairs(list) do lu.assertEquals(brought(got[i]), alone[i], ("request %d, %d rows"):format(i, how[1])) end
    if shared then
      lu.assertTrue(shared.hits > 50)
      lu.assertTrue(shared.bytes <= how[2])
      shared:clear()
      lu.assertEquals(shared.bytes, 0)
    end
    lu.assertNil(s.cache)
  end
end

function TestBatching.test_every_request_gets_what_it_gets_alone() check_batches "llama" end
function TestBatching.test_also_with_norms_on_queries_and_keys() check_batches "qwen3" end
function TestBatching.test_also_with_a_sliding_window() check_batches "mistral" end

function TestBatching.test_a_request_equals_generate()
  local model = tiny "llama"
  for _, r in ipairs(requests(8)) do
    local s = engines.new(model)
    local request = s:submit(r[1], r[2])
    s:run()
    local out = kept(model:generate(peri.tensor { r[1] }, r[2]))
    for k, sequence in ipairs(request.sequences) do lu.assertEquals(sequence.tokens, out[k]) end
  end
end

function TestBatching.test_a_cancelled_request_makes_room()
  local model = tiny "llama"
  local s = engines.new(model, { rows = 2 })
  local a = s:submit({ 1, 2, 3 }, { max_new_tokens = 40, greedy = true })
  local b = s:submit({ 4, 5 }, { max_new_tokens = 6, greedy = true, on_token = function (q) return #q.tokens == 4 end })
  local c = s:submit({ 6 }, { max_new_tokens = 3, greedy = true })
  s:step()
  s:cancel(a)
  s:run()
  lu.assertEquals({ a.sequences[1].reason, b.sequences[1].reason, c.sequences[1].reason }, { "cancelled", "stop", "length" })
  lu.assertEquals({ #a.sequences[1].tokens, #b.sequences[1].tokens, #c.sequences[1].tokens }, { 2, 4, 3 })
  lu.assertTrue(a.done and b.done and c.done)
end

function TestBatching.test_the_context_is_the_limit()
  local s = engines.new(tiny "llama") -- of 64 positions
  local ids = {}
  for k = 1, 60 do ids[k] = k end
  local request = s:submit(ids, { max_new_tokens = 50, greedy = true })
  s:run()
  lu.assertEquals(#request.sequences[1].tokens, 4)
  lu.assertEquals(request.sequences[1].reason, "length")
  for k = 61, 64 do ids[k] = 1 end
  lu.assertErrorMsgContains("64 tokens", s.submit, s, ids)
  lu.assertErrorMsgContains("no tokens", s.submit, s, {})
end

function TestBatching.test_written_weights_empty_the_prefix_cache()
  local model, shared = tiny "llama", prefix_cache.new()
  local function run()
    local s = engines.new(model, { prefix_cache = shared })
    local request = s:submit({ 5, 6, 7, 8 }, { max_new_tokens = 6, greedy = true })
    s:run()
    return request
  end
  lu.assertEquals(run().cached_tokens, 0)
  local again = run()
  lu.assertEquals(again.cached_tokens, 3)
  peri.no_grad(function () model:parameters()[1]:mul_(0.5) end)
  local after = run()
  lu.assertEquals(after.cached_tokens, 0)
  lu.assertNotEquals(brought(after), brought(again))
  local adapter = require("perilune.peft").lora(model, { r = 2 })
  lu.assertEquals(run().cached_tokens, 0)
  lu.assertEquals(run().cached_tokens, 3)
  peri.no_grad(function () adapter:parameters()[1]:add_(0.5) end)
  lu.assertEquals(run().cached_tokens, 0)
  adapter:remove()
  lu.assertEquals(brought(run()), brought(after))
  shared:clear()
end

-- ---- constraints --------------------------------------------------------------------------------

TestConstraint = {}

-- What Python's re.fullmatch says.
local matches = {
  { "a*b+c?", { "b", "aabbc" }, { "", "ac", "bcc" } },
  { "(ab|cd)*e", { "e", "abcde" }, { "ab", "ae" } },
  { "[a-c]+\\d{2,3}", { "a12", "cab123" }, { "a1", "a1234", "d12" } },
  { "[^a-z]+", { "A1é", "\n" }, { "", "a", "Ab" } },
  { "-?(0|[1-9]\\d*)(\\.\\d+)?([eE][+-]?\\d+)?", { "0", "-12.50", "1e-9" }, { "01", "1.", ".5", "--1" } },
  { "(?:é|ü)+.", { "éx", "üé中" }, { "é", "ex" } },
  { "[à-ÿ]{1,4}", { "à", "éüÿà" }, { "a", "ééééé" } },
  { "[\\u4e00-\\u9fff]+。?", { "中文", "中。" }, { "。", "中x" } },
  { "\\{\"a\": \"[^\"\\\\]*\"\\}", { '{"a": ""}', '{"a": "x 😀"}' }, { '{"a": "x}', '{"a": "\\"}' } },
  { ".{3}", { "abc", "é中😀" }, { "ab", "a\nb", "abcd" } },
  { "^(a|b){2,}$", { "ab", "baba" }, { "a", "" } },
  { "[]a-]+", { "]", "-a" }, { "[", "" } },
  { "\\s*\\S+\\x21", { " x!", "\t!!" }, { "!x", " !x" } },
  { "", { "" }, { "a" } },
}

function TestConstraint.test_patterns_match_what_pythons_do()
  for _, case in ipairs(matches) do
    local automaton = regex.compile(case[1])
    for _, s in ipairs(case[2]) do lu.assertTrue(automaton:matches(s), ("%q should match %q"):format(case[1], s)) end
    for _, s in ipairs(case[3]) do lu.assertFalse(automaton:matches(s), ("%q should not match %q"):format(case[1], s)) end
  end
end

function TestConstraint.test_patterns_that_are_refused_name_the_place()
  for pattern, want in pairs { ["("] = "character 3", ["a)"] = "too many", ["[a"] = "without its ]", ["*a"] = "character 2",
    ["a{2"] = "{", ["a{3,1}"] = "below", ["\\q"] = "\\q", ["(?=a)"] = "(?:...)", ["[b-a]"] = "before", ["a{5000}"] = "1000",
    ["(((a{100}){100}){100})"] = "too large", ["a^b"] = "^", ["\xff"] = "UTF-8", ["[^\\x00-\u{10FFFF}]"] = "no character",
    [("("):rep(300)] = "deep" } do
    lu.assertErrorMsgContains(want, regex.compile, pattern)
  end
end

-- A tokenizer whose tokens are the given texts.
local function words(list)
  return { size = #list, decode = function (_, ids) return list[ids[1] + 1] end }
end

function TestConstraint.test_the_allowed_tokens_are_those_that_the_pattern_can_take()
  local list = { "a", "ab", "abc", "b", "bc", "c", "é", "\xc3", "\xa9", "", "abab", "x", "ab" }
  local tok = words(list)
  local c = constraint.regex("(ab)+c|é", tok)
  local function allowed(state, stop)
    local out = {}
    for id, no in ipairs(c:forbidden(state, 15, stop or {}):tolist()) do if not no then out[#out + 1] = id - 1 end end
    return out
  end
  lu.assertEquals(allowed(c:start()), { 0, 1, 2, 6, 7, 10, 12 }) -- a, ab, abc, é, its first byte, abab, ab
  local after = c:advance(c:start(), 1)
  lu.assertEquals(allowed(after), { 0, 1, 2, 5, 10, 12 })
  lu.assertEquals(allowed(c:advance(c:start(), 7)), { 8 })
  local last = c:advance(after, 5)
  lu.assertTrue(c:complete(last))
  lu.assertEquals(allowed(last, { 14 }), { 14 })
  lu.assertErrorMsgContains("token 3", c.advance, c, c:start(), 3)
  c.masks = {}
end

function TestConstraint.test_every_completion_is_a_text_of_the_pattern()
  local model = digits()
  local lm = lms.new(model, digits_tok, { prefix_cache_bytes = 0 })
  for _, pattern in ipairs { "\\d{2},\\d{2}", "(\\d,)*\\d", "1?2?3?:(4|56)" } do
    local automaton = regex.compile(pattern)
    local first = lm:complete("1,2", { regex = pattern, samples = 6, temperature = 1, seed = 4, max_new_tokens = 24 })
    for _, s in ipairs(first.samples) do
      lu.assertTrue(s.reason == "length" or automaton:matches(s.text), s.text)
    end
  end
  local seen = {}
  local out = lm:complete("1", { choices = { "12", "9,9", "4567" }, samples = 20, temperature = 5, seed = 1 })
  for _, s in ipairs(out.samples) do seen[s.text] = true end
  lu.assertEquals(seen, { ["12"] = true, ["9,9"] = true, ["4567"] = true })
  -- the log-probabilities are the model's own
  local one = lm:complete("1", { choices = { "12" } })
  local ids = peri.tensor { { digits_tok:encode("1")[1], table.unpack(one.tokens) } }
  local logp = peri.no_grad(function () return model:token_logprobs(ids, 2) end)
  for i, p in ipairs(logp:tolist()[1]) do lu.assertAlmostEquals(one.logprobs[i], p, 1e-5) end
end

-- ---- texts --------------------------------------------------------------------------------------

TestTexts = {}

local function digits_lm(opts) return lms.new(digits(), digits_tok, opts or { prefix_cache_bytes = 0 }) end

function TestTexts.test_a_stop_string_cuts_the_text_wherever_tokens_end()
  local lm = digits_lm()
  local o = { seed = 5, temperature = 1, max_new_tokens = 40, ignore_stop = true }
  local full = lm:complete("3,5:9,4", o).text
  lu.assertTrue(#full > 20)
  for at = 2, 12, 2 do
    for n = 1, 4 do
      local stop = full:sub(at, at + n - 1)
      o.stop = { "never here", stop, stop .. "5555555555" }
      local pieces = {}
      function o.on_text(piece) pieces[#pieces + 1] = piece end
      local r = lm:complete("3,5:9,4", o)
      lu.assertEquals(r.text, full:sub(1, full:find(stop, 1, true) - 1))
      lu.assertEquals(table.concat(pieces), r.text)
      lu.assertEquals(r.reason, "stop")
    end
  end
end

function TestTexts.test_what_might_have_been_a_stop_string_is_text_in_the_end()
  local lm = digits_lm()
  local o = { seed = 5, temperature = 1, max_new_tokens = 23, ignore_stop = true }
  local full = lm:complete("3,5:9,4", o).text
  o.stop = full:sub(-3) .. "x"
  lu.assertEquals(lm:complete("3,5:9,4", o).text, full)
end

function TestTexts.test_a_stream_gives_the_same_text_and_can_be_left()
  local lm = digits_lm()
  local o = { seed = 5, temperature = 1, max_new_tokens = 30, ignore_stop = true }
  local full, pieces = lm:complete("3,5:9,4", o).text, {}
  local stream = lm:stream("3,5:9,4", o)
  for piece in stream do pieces[#pieces + 1] = piece end
  lu.assertEquals(table.concat(pieces), full)
  lu.assertTrue(#pieces > 20)
  lu.assertEquals(stream.result.reason, "length")
  for _ in lm:stream("3,5:9,4", o) do break end
  lu.assertEquals(#lm.live, 0)
  lu.assertEquals(lm:complete("3,5:9,4", o).text, full)
end

function TestTexts.test_many_prompts_share_a_batch()
  local lm, alone = digits_lm { rows = 3, prefix_cache_bytes = 0 }, {}
  local prompts = { "1", "2,3", "4,5,6:", "7", "8,9", "1,2,3,4,5,6" }
  local o = { max_new_tokens = 9, temperature = 1, seed = 1, samples = 2 }
  for i, p in ipairs(prompts) do
    local r = lm:complete(p, o)
    alone[i] = { r.samples[1].text, r.samples[2].text }
  end
  for i, r in ipairs(lm:batch(prompts, o)) do
    lu.assertEquals({ r.samples[1].text, r.samples[2].text }, alone[i])
    lu.assertEquals(r.prompt_tokens, #prompts[i])
  end
end

function TestTexts.test_later_turns_find_what_was_read()
  local lm = digits_lm {}
  local o = { max_new_tokens = 8, ignore_stop = true }
  local first = lm:complete("3,5:9,4", o)
  lu.assertEquals(first.cached_tokens, 0)
  local second = lm:complete("3,5:9,4" .. first.text .. ",1", o)
  lu.assertEquals(second.cached_tokens, #"3,5:9,4" + 7) -- all but the token drawn last
  local fresh = digits_lm()
  lu.assertEquals(fresh:complete("3,5:9,4" .. first.text .. ",1", o).text, second.text)
  lm.prefix_cache:clear()
end

function TestTexts.test_a_chat_template_a_tool_of_the_tokenizer_and_thoughts()
  local tok = setmetatable({ chat_template = "x", chat = function (_, messages, vars)
    lu.assertTrue(vars.add_generation_prompt)
    lu.assertEquals(vars.enable_thinking, false)
    local parts = {}
    for i, m in ipairs(messages) do parts[i] = m.content end
    return table.concat(parts, ",") .. ":"
  end }, { __index = digits_tok })
  local lm = lms.new(digits(), tok, { prefix_cache_bytes = 0 })
  local r = lm:chat({ { role = "user", content = "3,5" }, { role = "assistant", content = "9" } },
    { max_new_tokens = 5, template = { enable_thinking = false }, ignore_stop = true })
  lu.assertEquals(r.message.role, "assistant")
  lu.assertEquals(r.message.content, r.text)
  lu.assertEquals(r.text, lm:complete("3,5,9:", { max_new_tokens = 5, ignore_stop = true }).text)
  lu.assertEquals({ lms.split_reasoning "<think>\nwell\n</think>\n\nYes." }, { "Yes.", "well" })
  lu.assertEquals({ lms.split_reasoning("well</think>Yes.", true) }, { "Yes.", "well" })
  lu.assertEquals({ lms.split_reasoning "a <think> b" }, { "a <think> b" })
end

-- The order is prefix, suffix, middle; the special tokens as the models' publishers name them.
function TestTexts.test_a_gap_is_filled_where_the_vocabulary_has_the_tokens()
  for name, tokens in pairs { qwen3 = { "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>" },
    deepseek_v3 = { "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>" } } do
    local tok = assert(peri.tokenizer.load(reference.need("data/tokenizers/" .. name)))
    local lm = lms.new(digits(), tok, { prefix_cache_bytes = 0 })
    local text_of = tok:decode(lm:ids("def f(x):\n", { suffix = "\n  return y <|fim_middle|>" }), { skip_special = false })
    lu.assertStrContains(text_of, ("%sdef f(x):\n%s\n  return y <|fim_middle|>%s"):format(table.unpack(tokens)))
    local n = 0 -- what a text holds is no special token
    for _, id in ipairs(lm:ids("<|fim_middle|>", { suffix = tokens[1] })) do
      if id == tok.fim.prefix or id == tok.fim.suffix or id == tok.fim.middle then n = n + 1 end
    end
    lu.assertEquals(n, 3)
  end
end

function TestTexts.test_what_is_wrong_is_said()
  local lm = digits_lm()
  lu.assertErrorMsgContains("no chat template", lm.chat, lm, { { role = "user", content = "1" } })
  lu.assertErrorMsgContains("fill-in-the-middle", lm.complete, lm, "1", { suffix = "2" })
  lu.assertErrorMsgContains('did you mean "temperature"', lm.complete, lm, "1", { temperatur = 1 })
  lu.assertErrorMsgContains("messages", lm.chat, lm, "1")
  lu.assertErrorMsgContains("not both", lm.complete, lm, "1", { regex = "1", choices = { "2" } })
  lu.assertErrorMsgContains("stop", lm.complete, lm, "1", { stop = { {} } })
end

os.exit(lu.LuaUnit.run())
