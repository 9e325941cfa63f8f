-- Texts of a language model: stop texts of any kind, answers that begin clean, requests that fail without harm to
-- others.
local lu = require "luaunit"
local peri = require "perilune"
local engines = require "perilune.decode.engine"
local lms = require "perilune.lm"
local models = require "perilune.models"
local stops = require "perilune.decode.stops"

local function llama(vocab, more)
  local config = { model_type = "llama", vocab_size = vocab, hidden_size = 16, intermediate_size = 16,
    num_hidden_layers = 1, num_attention_heads = 2, num_key_value_heads = 2, max_position_embeddings = 64 }
  for k, v in pairs(more or {}) do config[k] = v end
  peri.seed(2)
  return models.llama.new(config):eval()
end

-- A model that says a list of ids, one a step.
local function saying(vocab, script)
  local model, at = {}, 0
  for k, v in pairs(llama(vocab)) do model[k] = v end
  setmetatable(model, getmetatable(llama(vocab)))
  function model:logits(hidden) -- luacheck: ignore 212
    at = at + 1
    local id = peri.tensor({ { script[at] or 0 } }, "i64"):expand { hidden:size(1), 1 }
    return peri.full({ hidden:size(1), vocab }, -50):scatter(id, peri.full({ hidden:size(1), 1 }, 50), 2)
  end
  return model, function () at = 0 end
end

local marks = { "<|end|>", "<|user|>", "<|tool|>" }
local tok = assert(peri.tokenizer.train_bpe({ "the cat sat on the mat. the dog sat on the log." },
  { vocab_size = 290, special_tokens = marks }))

local tests = {}

-- ---- stop texts ---------------------------------------------------------------------------------------

-- What is said, where to stop, the text before it.
local cut_cases = {
  { "the cat<|user|> sat", "<|user|>", "the cat" },
  { "the cat<|user|> sat", "<|tool|>", "the cat sat" },
  { "the cat<|user|> sat on", "<|user|> sat", "the cat" },
  { "the cat<|user|> mat<|user|> sat on", "<|user|> sat", "the cat mat" },
  { "the cat on<|user|>the mat", " on<|user|>", "the cat" },
  { "the cat on<|user|>the mat", "cat on<|user|>the", "the " },
  { "the cat<|user|><|tool|>mat", "<|user|><|tool|>", "the cat" },
  { "the cat<|user|>mat", "catmat", "the " }, -- as it is shown
  { "<|user|>the cat", "<|user|>", "" },
  { "the cat<|user|>", "<|user|>", "the cat" },
  { "the cat<|user|> on", "<|user|> sat", "the cat on" },
  { "the cat sat", "cat", "the " },
}

function tests.test_a_stop_text_may_be_or_hold_special_tokens()
  for _, case in ipairs(cut_cases) do
    local script = tok:encode(case[1], { add_special = false })
    local lm = lms.new(saying(tok.size, script), tok, { prefix_cache_bytes = 0, rows = 1 })
    local parts = {}
    local r = lm:complete("x", { max_new_tokens = #script, stop = { case[2], "never said" },
      on_text = function (piece) parts[#parts + 1] = piece end })
    lu.assertEquals(r.text, case[3], case[1] .. " until " .. case[2])
    lu.assertEquals(table.concat(parts), case[3])
    lu.assertEquals(r.reason, (case[1]:gsub("<|%l+|>", "") == case[3] and not case[1]:find(case[2], 1, true)) and "length"
      or "stop", case[1] .. " until " .. case[2])
  end
end

-- Against the definition, over all cuts of a text into tokens.
function tests.test_the_text_before_the_first_stop_is_given_out_whatever_the_pieces()
  local rng = peri.rng(5)
  local alphabet = { "a", "b", "ab", "ba", "<|user|>", "<|tool|>" }
  for _ = 1, 300 do
    local said, n = {}, rng:int(1, 9)
    for i = 1, n do said[i] = alphabet[rng:int(1, #alphabet)] end
    local wanted = {}
    for k = 1, rng:int(1, 2) do
      local parts = {}
      for i = 1, rng:int(1, 3) do parts[i] = alphabet[rng:int(1, #alphabet)] end
      wanted[k] = table.concat(parts)
    end
    -- by the definition: the first prefix of what was said that holds a stop text, as it is written or as it is shown
    local written, want = "", nil
    local function shown(s) return (s:gsub("<|%l+|>", "")) end
    for i = 1, n do
      written = written .. said[i]
      local best
      for _, stop in ipairs(wanted) do
        local text = stop:find("<|", 1, true) and written or shown(written)
        local at = text:find(stop, 1, true)
        local before = at and shown(text:sub(1, at - 1))
        if before and (not best or #before < #best) then best = before end
      end
      if best then
        want = best
        break
      end
    end
    local s, out, ended = stops.new(wanted, tok), {}, false
    for i = 1, n do
      local special = said[i]:find "^<" and said[i] or nil
      out[#out + 1], ended = s:push(special and "" or said[i], special)
      if ended then break end
    end
    if not ended then out[#out + 1] = s:finish "" end
    lu.assertEquals(table.concat(out), want or shown(written), table.concat(said, " ") .. " until " .. table.concat(wanted, " or "))
    lu.assertEquals(ended, want ~= nil)
  end
end

function tests.test_the_models_own_end_is_no_text_unless_it_is_asked_to_go_on()
  local script = tok:encode("the cat<|end|> sat", { add_special = false })
  local lm = lms.new(saying(tok.size, script), tok, { prefix_cache_bytes = 0, rows = 1 })
  lu.assertEquals(lm:complete("x").text, "the cat")
  local model = saying(tok.size, script)
  lm = lms.new(model, tok, { prefix_cache_bytes = 0, rows = 1 })
  local r = lm:complete("x", { ignore_stop = true, max_new_tokens = #script, stop = "<|end|> s" })
  lu.assertEquals({ r.text, r.reason }, { "the cat", "stop" })
  lu.assertErrorMsgContains("an empty text is no stop text", lm.complete, lm, "x", { stop = { "" } })
end

-- ---- answers begin clean ---------------------------------------------------------------------------------

function tests.test_nothing_of_the_prompt_reaches_the_answer()
  for _, name in ipairs { "llama", "unigram_bytes", "bytelevel" } do
    local t = assert(peri.tokenizer.load("tests/data/tokenizers/" .. name .. ".json"))
    local plain = { add_special = false }
    local answer = t:encode("yes", plain)
    local prompts = { "Hi", "Hi \u{1FAE0}", "\u{20BB7}", "\u{1F600}", "caf\u{E9}" }
    for _, prompt in ipairs(prompts) do
      local ids = t:encode(prompt)
      for _, n in ipairs { #ids, math.max(1, #ids - 1), math.max(1, #ids - 2) } do -- also within a character
        local given = table.move(ids, 1, n, 1, {})
        local lm = lms.new(saying(t.size, answer), t, { prefix_cache_bytes = 0, rows = 1 })
        lm.stop_ids = {}
        local r = lm:complete(given, { max_new_tokens = #answer })
        lu.assertEquals(r.text:gsub("^ ", ""), "yes", name .. " after " .. prompt)
        local pieces = {}
        lm = lms.new(saying(t.size, answer), t, { prefix_cache_bytes = 0, rows = 1 })
        lm.stop_ids = {}
        for piece in lm:stream(given, { max_new_tokens = #answer }) do pieces[#pieces + 1] = piece end
        lu.assertEquals(table.concat(pieces), r.text)
      end
    end
  end
end

function tests.test_a_word_keeps_its_space_behind_a_prompt()
  local t = assert(peri.tokenizer.load "tests/data/tokenizers/llama.json")
  local ids = t:encode("the king", { add_special = false })
  local whole = t:decode(ids)
  for n = 1, #ids - 1 do
    local rest = table.move(ids, n + 1, #ids, 1, {})
    local lm = lms.new(saying(t.size, rest), t, { prefix_cache_bytes = 0, rows = 1 })
    lm.stop_ids = {}
    local prompt = table.move(ids, 1, n, 1, {})
    lu.assertEquals(t:decode(prompt) .. lm:complete(prompt, { max_new_tokens = #rest }).text, whole)
  end
end

-- ---- requests that fail -------------------------------------------------------------------------------------

local function fresh(opts) return lms.new(llama(tok.size), tok, opts or { rows = 3 }) end
local short = { max_new_tokens = 3, ignore_stop = true, seed = 1 }

local function with(more)
  local o = {}
  for k, v in pairs(short) do o[k] = v end
  for k, v in pairs(more) do o[k] = v end
  return o
end

local long = {}
for i = 1, 64 do long[i] = 5 end

-- Requests that are refused where they are made: prompt, options, what is said.
local refused = {
  { { 99999999 }, {}, "entry 1 of the prompt is 99999999, the model has 2" },
  { { 1, -1 }, {}, "entry 2 of the prompt is -1" }, { { 1.5 }, {}, "entry 1 of the prompt is 1.5" },
  { { "a" }, {}, "entry 1 of the prompt is a" },
  { {}, {}, "the prompt has no tokens" }, { long, {}, "64 tokens, the model's context is 64" },
  { "a", { max_new_tokens = 0 }, "max_new_tokens is 0" }, { "a", { max_tokens = 3 }, 'did you mean "max_new_tokens"' },
  { "a", { temperature = -1 }, "temperature" }, { "a", { top_p = 0 }, "top_p" }, { "a", { stop = { true } }, "true is no stop" },
  { "a", { stop = { 123456 } }, "of stop is 123456, the model has" }, { "a", { regex = "(" }, "character 3" },
  { "a", { choices = {} }, "must not be empty" }, { "a", { regex = "a", choices = { "a" } }, "not both" },
  { "a", { logit_bias = { [123456] = 1 } }, "entry 1 of logit_bias is 123456" },
  { "a", { logit_bias = { x = 1 } }, "logit_bias" }, { "a", { logit_bias = { [1] = 0 / 0 } }, "logit_bias of 1" },
  { 7, {}, "a prompt is a text" }, { "a", { on_text = 3 }, "on_text is 3" }, { "a", { samples = 1.5 }, "samples is 1.5" },
}

function tests.test_what_is_wrong_with_a_request_is_said_where_it_is_made_and_harms_nobody()
  local lm = fresh()
  local want = fresh():complete("the cat", short).tokens
  for _, case in ipairs(refused) do
    local running = lm:submit("the cat", short)
    local ok, message = pcall(function () lm:complete(case[1], with(case[2])) end)
    lu.assertFalse(ok)
    lu.assertStrContains(message, case[3])
    lu.assertStrContains(message, "test_lm.lua")
    local good, why = pcall(lm.batch, lm, { "a", case[1], "b" }, with(case[2]))
    lu.assertFalse(good)
    lu.assertStrContains(tostring(why), case[3])
    lu.assertErrorMsgContains(case[3], lm.stream, lm, case[1], with(case[2]))
    lm:wait(running)
    lu.assertEquals(running.results[1].tokens, want)
    lu.assertEquals({ #lm.live, lm.scheduler.running }, { 0, 0 })
  end
end

-- Requests that fail while they run: options, and what comes of it.
local function failing()
  local thrown = { code = 7 }
  local dead = { start = function () return 1 end, advance = function () error("no way on", 0) end,
    forbidden = function () return peri.zeros({ tok.size }, "bool") end, complete = function () return false end }
  local stuck = { start = function () return 1 end, advance = function () return 1 end,
    forbidden = function () error("nothing fits", 0) end, complete = function () return false end }
  return {
    { { on_text = function () error("from the callback", 0) end }, "from the callback" },
    { { on_text = function () error(thrown) end }, thrown },
    { { on_text = function (_, result)
      if #result.tokens == 3 then error("the third token", 0) end
    end }, "the third token" },
    { { constraint = dead }, "no way on" }, { { constraint = stuck }, "nothing fits" },
  }
end

function tests.test_a_request_that_fails_leaves_with_its_error_and_the_others_go_on()
  local want = {}
  for i, prompt in ipairs { "the cat", "the dog", "on" } do want[i] = fresh():complete(prompt, short).tokens end
  for _, case in ipairs(failing()) do
    for _, rows in ipairs { 1, 2, 4 } do
      local lm = fresh { rows = rows }
      local before = lm:submit("the cat", short)
      local bad
      if case[1].constraint then -- has no name in lm: as the scheduler takes it
        bad = lm.scheduler:submit({ 5, 6 }, { max_new_tokens = 3, constraint = case[1].constraint, greedy = true })
      else
        bad = lm:submit("the dog", with { max_new_tokens = 9, on_text = case[1].on_text })
      end
      local after = lm:submit("on", short)
      lm:wait()
      lu.assertEquals(before.results[1].tokens, want[1])
      lu.assertEquals(after.results[1].tokens, want[3])
      lu.assertEquals(bad.error, case[2])
      if bad.results then lu.assertEquals(bad.results[1].reason, "error") end
      lu.assertEquals(lm:complete("the dog", short).tokens, want[2])
      lu.assertEquals({ #lm.live, lm.scheduler.running }, { 0, 0 })
      if case[1].on_text then
        local ok, message = pcall(lm.complete, lm, "the dog", with(case[1]))
        lu.assertFalse(ok)
        lu.assertEquals(message, case[2])
      end
    end
  end
end

function tests.test_an_answer_of_a_batch_that_fails_says_so_and_the_rest_is_there()
  local lm, n = fresh(), 0
  local out = lm:batch({ "the cat", "the dog", "on" }, with { on_text = function (_, result)
    if result.prompt_tokens == #tok:encode "on" then
      n = n + 1
      error("bad luck", 0)
    end
  end })
  lu.assertTrue(n >= 1)
  lu.assertEquals({ out[1].reason, out[2].reason, out[3].reason, out[3].error }, { "length", "length", "error", "bad luck" })
  lu.assertEquals(out[1].tokens, fresh():complete("the cat", short).tokens)
end

function tests.test_a_model_that_fails_fails_those_who_run_and_nobody_after()
  local model = llama(tok.size)
  local lm = lms.new(model, tok, { rows = 2 })
  local forward, calls = model.forward, 0
  function model:forward(...)
    calls = calls + 1
    if calls == 4 then error("out of memory", 0) end
    return forward(self, ...)
  end
  local a, b, c = lm:submit("the cat", short), lm:submit("the dog", short), lm:submit("on", short)
  lm:wait()
  lu.assertEquals({ a.error, b.error }, { "out of memory", "out of memory" })
  lu.assertNil(c.error)
  lu.assertEquals(c.results[1].tokens, fresh():complete("on", short).tokens)
  -- a prompt that cannot be read
  calls = 3
  local d, e = lm:submit("the log", short), lm:submit("the cat", short)
  lm:wait()
  lu.assertEquals(d.error, "out of memory")
  lu.assertEquals(e.results[1].tokens, fresh():complete("the cat", short).tokens)
end

function tests.test_callbacks_may_cancel_and_submit_but_not_wait()
  local lm = fresh()
  local other, added
  local first = lm:submit("the cat", with { max_new_tokens = 6, on_text = function (_, _)
    if not added then
      added = lm:submit("on", short)
      other:cancel()
    end
  end })
  other = lm:submit("the dog", with { max_new_tokens = 20 })
  lm:wait()
  lu.assertEquals({ other.results[1].reason, first.results[1].reason }, { "cancelled", "length" })
  lu.assertTrue(#other.results[1].tokens <= 2)
  lu.assertEquals(added.results[1].tokens, fresh():complete("on", short).tokens)
  local own
  own = lm:submit("the cat", with { max_new_tokens = 9, on_text = function () own:cancel() end })
  lm:wait()
  lu.assertEquals({ own.results[1].reason, own.error }, { "cancelled", nil })
  for name, call in pairs { complete = function () lm:complete("the dog", short) end, batch = function () lm:batch({ "a" }, short) end,
      wait = function () lm:wait() end, step = function () lm:step() end, reset = function () lm:reset() end } do
    lu.assertErrorMsgContains(name .. ": a step is running", lm.complete, lm, "the cat", with { on_text = call })
    lu.assertEquals({ #lm.live, lm.scheduler.running }, { 0, 0 }, name) -- nothing was asked for
    lu.assertEquals(lm:complete("on", short).tokens, added.results[1].tokens, name)
  end
  lu.assertErrorMsgContains("error without a message", lm.complete, lm, "the cat", with { on_text = function () error(nil) end })
  lu.assertErrorMsgContains("batch: list is missing", lm.batch, lm, nil, short)
end

function tests.test_a_bias_is_added_to_logits()
  local lm = fresh()
  lu.assertEquals(lm:complete("the cat", with { logit_bias = { [7] = 1000 } }).tokens, { 7, 7, 7 })
  local plain = lm:complete("the cat", short).tokens
  local biased = lm:complete("the cat", with { logit_bias = { [plain[1]] = -1000 } }).tokens
  lu.assertNotEquals(biased[1], plain[1])
  local model = llama(tok.size)
  local ids = peri.tensor({ { 5, 6, 7 } }, "i64")
  lu.assertEquals(model:generate(ids, { max_new_tokens = 2, greedy = true, logit_bias = { [9] = 1000 } }).tokens:tolist(), { { 9, 9 } })
end

function tests.test_greedy_is_known_before()
  local lm = fresh()
  lu.assertEquals({ lm:is_greedy(), lm:is_greedy { temperature = 0 }, lm:is_greedy { temperature = 0.5 }, lm:is_greedy { top_k = 4 } },
    { true, true, false, false })
end

function tests.test_a_scheduler_refuses_what_a_model_has_not()
  local s = engines.new(llama(20))
  lu.assertErrorMsgContains("entry 1 of stop is 20, the model has 20 tokens", s.submit, s, { 1 }, { stop = { 20 } })
  lu.assertErrorMsgContains("samples is 0", s.submit, s, { 1 }, { samples = 0 })
  lu.assertEquals(s.running, 0)
end

-- ---- prompts ------------------------------------------------------------------------------------------

-- Prefix, suffix, middle as the published models have it (arXiv:2207.14255); what the texts spell is text.
function tests.test_a_gap_between_two_texts_is_asked_for_by_its_tokens()
  local fim = { "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>" }
  local filling = assert(peri.tokenizer.train_bpe({ "the cat sat on the mat." }, { vocab_size = 280, special_tokens = fim }))
  local lm = lms.new(llama(filling.size), filling)
  local function ids(text) return filling:encode(text, { add_special = false, parse_special = false }) end
  local function gap(before, behind)
    local out = { filling:id(fim[1]) }
    table.move(ids(before), 1, #ids(before), #out + 1, out)
    out[#out + 1] = filling:id(fim[2])
    table.move(ids(behind), 1, #ids(behind), #out + 1, out)
    out[#out + 1] = filling:id(fim[3])
    return out
  end
  lu.assertEquals(lm:ids("the cat ", { suffix = " the mat." }), gap("the cat ", " the mat."))
  lu.assertEquals(lm:ids("", { suffix = "" }), gap("", ""))
  local spelled = lm:ids("a <|fim_suffix|> b", { suffix = "<|fim_middle|>" })
  local marks_in = 0
  for _, id in ipairs(spelled) do
    for _, mark in ipairs(fim) do if id == filling:id(mark) then marks_in = marks_in + 1 end end
  end
  lu.assertEquals(marks_in, 3) -- none of them from the texts
  lu.assertEquals(filling:decode(spelled, { skip_special = true }), "a <|fim_suffix|> b<|fim_middle|>")
  local answer = lm:complete("the", { suffix = "mat", max_new_tokens = 2, temperature = 0, ignore_stop = true })
  lu.assertEquals({ #answer.tokens, answer.prompt_tokens }, { 2, #gap("the", "mat") })
  local plain = lms.new(llama(tok.size), tok)
  lu.assertErrorMsgContains("has no tokens for fill-in-the-middle", plain.ids, plain, "the", { suffix = "mat" })
end

function tests.test_a_prompt_is_a_text_messages_or_ids()
  local lm = lms.new(llama(tok.size), tok)
  lu.assertEquals(lm:ids "the cat", tok:encode "the cat")
  lu.assertEquals(lm:ids { 3, 1, 2 }, { 3, 1, 2 })
  lu.assertErrorMsgContains("has no chat template; use complete", lm.ids, lm, { { role = "user", content = "a" } })
  lu.assertErrorMsgContains("a prompt is a text, a list of messages or a list of ids, not a number", lm.ids, lm, 7)
end

return tests
