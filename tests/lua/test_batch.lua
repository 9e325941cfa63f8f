-- A batch passes from a tokenizer to a model whole: on every architecture a row of a batch is the row
-- alone, on whichever side it is padded and under whichever name that is said; what is not known raises.
local lu = require "luaunit"
local peri = require "perilune"
local batches = require "perilune.text.batch"
local tiny = require "tiny"

local folders = { "llama", "llama31_rope", "qwen2", "qwen3", "mistral", "gpt2", "deepseek_v3", "gemma2", "bert",
                  "bert_mlm", "distilbert", "t5", "t5_gated" }

-- Rows of ids of different lengths, in this order, and the longest.
local lists = { { 5, 17, 3, 9, 22, 31, 8 }, { 40, 2, 11 }, { 7, 7, 19, 30, 4 }, { 6 } }
local WIDTH <const> = 9
local sides = { "left", "right", "mixed", "middle" }

-- ids, mask, start, lengths with the padding on a side; mixed: by turns; middle: on both.
local function padded(side)
  local rows, mask, start, lengths = {}, {}, {}, {}
  for b, list in ipairs(lists) do
    local spare = WIDTH - #list
    local before = side == "left" and spare or side == "right" and 0 or side == "middle" and spare // 2
      or b % 2 * spare
    rows[b], mask[b], start[b], lengths[b] = {}, {}, before, #list
    for t = 1, WIDTH do
      local id = list[t - before]
      rows[b][t], mask[b][t] = id or 59, id ~= nil
    end
  end
  return peri.tensor(rows, "i64"), peri.tensor(mask, "bool"), peri.tensor(start, "i64"), peri.tensor(lengths, "i64")
end

local labels = peri.tensor({ { 4, 9, 1 }, { 8, 1, -100 }, { 2, 3, 1 }, { 5, 1, -100 } }, "i64")

local function run(model, ids, opts)
  local _ <close> = peri.no_grad()
  if model.kind ~= "encoder-decoder" then return model:forward(ids, opts) end
  local o = { labels = labels }
  for k, v in pairs(opts or {}) do o[k] = v end
  return model:forward(ids, o)
end

-- Each row alone.
local function alone(model)
  local out = {}
  local _ <close> = peri.no_grad()
  for b, list in ipairs(lists) do
    local ids = peri.tensor({ list }, "i64")
    local o = model.kind == "encoder-decoder" and { labels = labels:narrow(1, b, 1) } or nil
    out[b] = model:forward(ids, o):select(1, 1)
  end
  return out
end

local function near(got, want, what)
  local off = got:sub(want):abs():max():item()
  local most = math.max(want:abs():max():item(), 1)
  lu.assertTrue(off <= 1e-6 * most, ("%s: off by %g of %g"):format(what, off, most))
end

local function check(model, hidden, starts, want, what)
  for b, list in ipairs(lists) do
    local row = hidden:select(1, b)
    if model.kind ~= "encoder-decoder" then row = row:narrow(1, starts[b] + 1, #list) end
    near(row, want[b], ("%s, row %d"):format(what, b))
  end
end

local tests = {}

for _, name in ipairs(folders) do
  tests["test_a_row_of_a_batch_is_the_row_alone_in_" .. name] = function ()
    local model = tiny.load(name)
    local want = alone(model)
    for _, side in ipairs(sides) do
      local ids, mask, start, lengths = padded(side)
      local starts, hidden = start:tolist(), nil
      local ways = {
        mask = { mask = mask }, attention_mask = { attention_mask = mask }, i64 = { attention_mask = mask:to "i64" },
        f32 = { mask = mask:to "f32" }, numbers = { start = start, lengths = lengths },
        all = { mask = mask, start = start, lengths = lengths }, tables = { start = starts, lengths = lengths:tolist() },
      }
      for way, opts in pairs(ways) do
        hidden = run(model, ids, opts)
        check(model, hidden, starts, want, side .. " by " .. way)
      end
      lu.assertEquals(hidden:isfinite():all():item(), true)
      hidden = run(model, { input_ids = ids, attention_mask = mask })
      check(model, hidden, starts, want, side .. " as a table")
      if side == "left" or side == "right" then
        local batch = batches.pad(lists, { side = side, pad = 59, length = WIDTH })
        check(model, run(model, batch), starts, want, side .. " as a batch")
      end
    end
  end

  tests["test_what_forward_does_not_know_raises_in_" .. name] = function ()
    local model = tiny.load(name)
    local ids, mask, start, lengths = padded "left"
    local function refused(opts, ...)
      if model.kind == "encoder-decoder" then opts.labels = labels end
      local ok, message = pcall(model.forward, model, ids, opts)
      lu.assertFalse(ok)
      for _, part in ipairs { ... } do lu.assertStrContains(message, part) end
    end
    refused({ atention_mask = mask }, "forward", "atention_mask", "attention_mask")
    refused({ nonsense = 1 }, "nonsense", "mask")
    refused({ maks = mask }, "maks", '"mask"')
    refused({ mask = true }, "mask is true, expected tensor")
    refused({ mask = mask, attention_mask = mask }, "mask is given under two names")
    refused({ mask = mask:narrow(2, 1, 3) }, "mask has shape (4, 3), expected (4, 9)")
    refused({ mask = mask:to("i64"):mul(2) }, "other values than 0 and 1")
    refused({ mask = mask, start = peri.zeros({ 4 }, "i64") }, "mask and start do not agree")
    refused({ mask = mask, lengths = lengths:mul(0):add(1), start = start }, "mask and lengths do not agree")
    refused({ start = peri.full({ 4 }, 10, "i64") }, "start of row 1 is 10, expected an integer from 0 to 9")
    refused({ start = start, lengths = peri.full({ 4 }, 9, "i64") }, "row 1 begins at 2 and has 9 tokens")
    refused({ lengths = { 1, 2 } }, "lengths has shape (2), expected (4)")
    lu.assertErrorMsgContains("expected (B, T)", model.forward, model, peri.tensor({ 1, 2 }, "i64"))
    lu.assertErrorMsgContains("ids is a string", model.forward, model, "a text")
    lu.assertErrorMsgContains("a table without ids", model.forward, model, { 1, 2 })
    lu.assertErrorMsgContains("options are a tensor", model.forward, model, ids, mask)
    local batch = batches.pad(lists)
    lu.assertErrorMsgContains("the batch has its own", model.forward, model, batch, { mask = mask })
    local _, message = pcall(function () model:forward(ids, { nonsense = 1 }) end)
    lu.assertStrContains(message, "test_batch.lua")
    if model.kind ~= "encoder" or model.settings.mlm then
      lu.assertErrorMsgContains("hidden states", model.logits, model, batch)
      lu.assertErrorMsgContains("not ids", model.logits, model, ids)
    end
  end

  -- As transformers: a hidden column keeps its place, and nothing of it reaches the others.
  tests["test_what_a_mask_hides_between_tokens_reaches_nothing_in_" .. name] = function ()
    local model = tiny.load(name)
    local ids = peri.tensor({ { 5, 17, 3, 9, 22 }, { 40, 2, 11, 30, 4 } }, "i64")
    local mask = peri.tensor({ { true, false, true, true, true }, { true, true, true, false, true } }, "bool")
    local other = ids:clone()
    other:set(1, 2, 33)
    other:set(2, 4, 12)
    labels = labels:narrow(1, 1, 2)
    local a, b, c = run(model, ids, { mask = mask }), run(model, other, { mask = mask }), run(model, ids)
    if model.kind ~= "encoder-decoder" then
      a, b = a:masked_fill(mask:logical_not():unsqueeze(3), 0), b:masked_fill(mask:logical_not():unsqueeze(3), 0)
    end
    lu.assertEquals(a:bytes(), b:bytes())
    lu.assertTrue(a:narrow(2, 2, 1):sub(c:narrow(2, 2, 1)):abs():max():item() > 1e-4)
  end
end

function tests.setUp()
  labels = peri.tensor({ { 4, 9, 1 }, { 8, 1, -100 }, { 2, 3, 1 }, { 5, 1, -100 } }, "i64")
end

function tests.tearDown() labels = nil end

-- ---- generation and scores -------------------------------------------------------------------------

for _, name in ipairs { "llama", "qwen3", "mistral", "gpt2", "deepseek_v3", "gemma2", "t5", "t5_gated" } do
  tests["test_prompts_on_either_side_go_on_as_alone_in_" .. name] = function ()
    local model = tiny.load(name)
    for _, beams in ipairs { 1, 3 } do
      local how = { max_new_tokens = 5, stop = {}, num_beams = beams, greedy = beams == 1 or nil }
      local want = {}
      for b, list in ipairs(lists) do
        want[b] = model:generate(peri.tensor({ list }, "i64"), how).tokens:tolist()[1]
      end
      for _, side in ipairs(sides) do
        local ids, mask, start, lengths = padded(side)
        for _, opts in ipairs { { mask = mask }, { attention_mask = mask:to "i64" }, { prompt_mask = mask },
                                { start = start, lengths = lengths } } do
          for k, v in pairs(how) do opts[k] = v end
          lu.assertEquals(model:generate(ids, opts).tokens:tolist(), want, side)
        end
      end
      local batch = batches.pad(lists, { side = "right" })
      lu.assertEquals(model:generate(batch, how).tokens:tolist(), want)
    end
    lu.assertErrorMsgContains("mask is given under two names", function ()
      local ids, mask = padded "left"
      model:generate(ids, { mask = mask, attention_mask = mask })
    end)
  end

  tests["test_log_probabilities_of_a_row_are_its_own_in_" .. name] = function ()
    local model = tiny.load(name)
    if model.kind ~= "causal" then
      lu.assertErrorMsgContains("t5 is an encoder-decoder", model.token_logprobs, model, (padded "left"), 2)
      return
    end
    local _ <close> = peri.no_grad()
    for _, side in ipairs(sides) do
      local ids, mask, start, lengths = padded(side)
      for _, opts in ipairs { { mask = mask }, { start = start, lengths = lengths } } do
        opts.temperature = 0.7
        local logp, entropy = model:token_logprobs(ids, 2, opts)
        for b, list in ipairs(lists) do
          local from = start:tolist()[b]
          local seen = 0
          for t = 2, #list do
            local want, spread = model:token_logprobs(peri.tensor({ list }, "i64"), 2, { temperature = 0.7 })
            local at = from + t - 1
            lu.assertAlmostEquals(logp:at(b, at), want:at(1, t - 1), 1e-5)
            lu.assertAlmostEquals(entropy:at(b, at), spread:at(1, t - 1), 1e-5)
            seen = seen + logp:at(b, at)
          end
          lu.assertAlmostEquals(logp:select(1, b):sum():item(), seen, 1e-4) -- the rest is 0
        end
      end
    end
    lu.assertErrorMsgContains("from is 1", model.token_logprobs, model, (padded "left"), 1)
    lu.assertErrorMsgContains('did you mean "temperature"', model.token_logprobs, model, (padded "left"), 2, { temprature = 1 })
  end
end

function tests.test_a_cache_remembers_where_its_rows_begin()
  local _ <close> = peri.no_grad()
  for _, name in ipairs { "llama", "gpt2" } do
    local model = tiny.load(name)
    local ids, mask = padded "left"
    local want = model:forward(ids, { mask = mask })
    local cache <close> = model:cache(4, WIDTH)
    model:forward(ids:narrow(2, 1, 8), { cache = cache, mask = mask:narrow(2, 1, 8) })
    local rest = model:forward(ids:narrow(2, 9, 1), { cache = cache })
    near(rest, want:narrow(2, 9, 1), name)
    local other <close> = model:cache(4, WIDTH)
    model:forward(ids:narrow(2, 1, 8), { cache = other, mask = mask:narrow(2, 1, 8) })
    near(model:forward(ids:narrow(2, 9, 1), { cache = other, attention_mask = mask }), want:narrow(2, 9, 1), name)
    local third <close> = model:cache(4, WIDTH)
    local right, right_mask = padded "right"
    lu.assertErrorMsgContains("rows end together", model.forward, model, right, { cache = third, mask = right_mask })
    lu.assertErrorMsgContains("cache is none that model:cache", model.forward, model, right, { cache = {} })
    lu.assertErrorMsgContains("3 rows, the cache has 4", model.forward, model, right:narrow(1, 1, 3), { cache = third })
  end
end

function tests.test_a_row_without_a_token_is_refused_where_it_has_no_meaning()
  local model = tiny.load "llama"
  local ids = peri.zeros({ 2, 3 }, "i64")
  local mask = peri.tensor({ { true, true, true }, { false, false, false } }, "bool")
  lu.assertErrorMsgContains("row 2 has no token", model.generate, model, ids, { mask = mask })
  lu.assertErrorMsgContains("row 2 has no token", model.vectors, model, ids, { mask = mask })
  lu.assertTrue(model:forward(ids, { mask = mask }):isfinite():all():item())
end

function tests.test_t5_says_what_its_forward_lacks()
  local model = tiny.load "t5"
  local ids = padded "left"
  lu.assertErrorMsgContains("neither labels nor decoder_ids is given", model.forward, model, ids)
  lu.assertErrorMsgContains("both given", model.forward, model, ids, { labels = labels, decoder_ids = labels })
  lu.assertErrorMsgContains("labels has shape (4, 3), expected (2, T)", model.forward, model, ids:narrow(1, 1, 2),
    { labels = labels })
  local shifted = peri.tensor({ { 0, 4, 9 }, { 0, 8, 1 }, { 0, 2, 3 }, { 0, 5, 1 } }, "i64")
  local want = model:forward(ids, { labels = labels })
  lu.assertEquals(model:forward(ids, { decoder_input_ids = shifted }):bytes(), want:bytes())
  -- a decoder's input may be padded on the left
  local more = peri.cat({ peri.full({ 4, 2 }, 7, "i64"), shifted }, 2)
  local got = model:forward(ids, { decoder_ids = more, decoder_attention_mask = peri.arange(5):ge(2):expand { 4, 5 } })
  near(got:narrow(2, 3, 3), want, "decoder")
end

function tests.test_token_types_and_positions_have_their_names()
  local bert, distil, llama = tiny.load "bert", tiny.load "distilbert", tiny.load "llama"
  local ids = padded "right"
  local types = ids:mod(2)
  lu.assertEquals(bert:forward(ids, { token_type_ids = types }):bytes(), bert:forward(ids, { token_types = types }):bytes())
  lu.assertNotEquals(bert:forward(ids, { token_type_ids = types }):bytes(), bert:forward(ids):bytes())
  lu.assertErrorMsgContains("distilbert has no token types", distil.forward, distil, ids, { token_type_ids = types })
  lu.assertErrorMsgContains("token_type_ids", llama.forward, llama, ids, { token_type_ids = types })
  local places = peri.arange(WIDTH):add(1)
  for _, model in ipairs { bert, distil, llama } do
    lu.assertEquals(model:forward(ids, { position_ids = places }):bytes(), model:forward(ids, { positions = places }):bytes())
    lu.assertErrorMsgContains("positions is i64 of shape (9), expected i64 of (3) or (4, 3)", model.forward, model,
      ids:narrow(2, 1, 3), { positions = places })
  end
end

function tests.test_a_model_of_learned_positions_takes_rows_that_fit_with_padding_on_any_side()
  for _, name in ipairs { "bert", "distilbert", "gpt2" } do
    local model = tiny.load(name)
    local most = model.settings.positions
    local _ <close> = peri.no_grad()
    local long, short = {}, { 5, 6, 7 }
    for i = 1, most do long[i] = i % 50 end
    local single = model:forward(peri.tensor({ short }, "i64"))
    for _, side in ipairs { "left", "right" } do
      local batch = batches.pad({ short, long }, { side = side, length = most + 5 })
      local hidden = model:forward(batch)
      local first = batch.start:at(1)
      near(hidden:select(1, 1):narrow(1, first + 1, 3), single:select(1, 1), name .. " " .. side)
    end
    local why = ("a token has position %d, the model has %d positions, from 0"):format(most, most)
    lu.assertErrorMsgContains(why, model.forward, model, peri.zeros({ 1, most + 1 }, "i64"))
    lu.assertErrorMsgContains(why, model.forward, model, peri.zeros({ 1, 2 }, "i64"),
      { positions = peri.tensor({ 0, most }, "i64") })
    lu.assertErrorMsgContains("a token has position -1", model.forward, model, peri.zeros({ 1, 2 }, "i64"),
      { position_ids = peri.tensor({ 0, -1 }, "i64") })
    model:forward(peri.zeros({ 1, 2 }, "i64"), { mask = peri.tensor({ { 1, 0 } }, "i64"),
      positions = peri.tensor({ 0, 1 << 40 }, "i64") }) -- what stands at padding is nobody's position
  end
end

function tests.test_fields_of_a_batch_that_belong_together_are_not_set_one_by_one()
  local batch = batches.pad { { 1, 2 }, { 3 } }
  for _, name in ipairs { "mask", "attention_mask", "start", "lengths", "positions", "side", "labels" } do
    lu.assertErrorMsgContains(name .. " cannot be set", function () batch[name] = batch.mask end)
  end
  batch.input_ids = batch.ids:add(1)
  lu.assertEquals(batch.ids:tolist(), { { 2, 3 }, { 4, 1 } })
  lu.assertErrorMsgContains("ids is of shape (1, 2), expected a tensor of shape (2, 2)", function ()
    batch.ids = batch.ids:narrow(1, 1, 1)
  end)
  lu.assertErrorMsgContains("ids is a table", function () batch.ids = { 1 } end)
  local names = {}
  for name in pairs(batch) do names[#names + 1] = name end
  lu.assertTrue(#names >= 6)
end

-- ---- texts --------------------------------------------------------------------------------------------

local function wordpiece() return assert(peri.tokenizer.load "tests/data/tokenizers/wordpiece.json") end

function tests.test_an_encoders_tokenizer_pads_on_the_right()
  local tok = wordpiece()
  local batch = tok:batch { "the king", "a" }
  lu.assertEquals(batch.side, "right")
  lu.assertEquals(batch.ids.shape, batch.mask.shape)
  lu.assertEquals({ batch.ids:at(2, 1), batch.mask:at(2, batch.ids:size(2)) }, { 2, false })
  lu.assertEquals(batch:unpad(), tok:encode_batch { "the king", "a" })
  lu.assertEquals(batch.start:tolist(), { 0, 0 })
  lu.assertEquals(batch.input_ids:tolist(), batch.ids:tolist())
  lu.assertEquals(#batch, 2)
  lu.assertErrorMsgContains('did you mean "lengths"', function () return batch.length end)
  local left = tok:batch({ "the king", "a" }, { padding_side = "left" })
  lu.assertEquals(left.mask:at(2, 1), false)
  lu.assertEquals(left:unpad(), batch:unpad())
  lu.assertEquals(left.positions:select(1, 2):tolist()[left.ids:size(2)], batch.lengths:tolist()[2] - 1)
end

function tests.test_lengths_of_a_batch_are_as_asked_for()
  local tok = wordpiece()
  local long = ("the king "):rep(10)
  local whole = tok:encode(long)
  local cut = tok:batch({ long, "a" }, { truncation = true, max_length = 7 })
  lu.assertEquals({ cut.ids:size(2), cut.truncated }, { 7, 1 })
  local row = cut:unpad()[1]
  lu.assertEquals(row, { whole[1], whole[2], whole[3], whole[4], whole[5], whole[6], whole[#whole] })
  local last = tok:batch({ long }, { truncation = true, max_length = 7, truncation_side = "left" }):unpad()[1]
  lu.assertEquals(last, { whole[1], table.unpack(whole, #whole - 5) })
  lu.assertEquals(tok:batch({ "a" }, { padding = "max_length", max_length = 12 }).ids.shape, { 1, 12 })
  lu.assertEquals(tok:batch({ "a" }, { pad_to_multiple_of = 8 }).ids.shape, { 1, 8 })
  lu.assertEquals(tok:batch({ "a", "b" }, { padding = false }).ids.shape, { 2, 3 })
  lu.assertEquals(tok:batch({ "a" }, { add_special_tokens = false }).ids:tolist(), { tok:encode("a", { add_special = false }) })
  local function refused(message, texts, opts) lu.assertErrorMsgContains(message, tok.batch, tok, texts, opts) end
  refused("padding is off and the texts have 3 to", { "a", long }, { padding = false })
  refused("1 of 2 texts have more than 7 tokens (the longest " .. #whole, { "a", long }, { padding = "max_length", max_length = 7 })
  refused("neither truncation nor padding", { long }, { max_length = 7 })
  refused("max_length is 1, the special tokens alone are 2", { long }, { truncation = true, max_length = 1 })
  refused('padding is "longst", expected one of', { "a" }, { padding = "longst" })
  refused('did you mean "truncation"', { "a" }, { truncaton = true })
  refused("text 2 is a number", { "a", 7 })
  refused("there are no texts", {})
  refused("expected a list of texts", "a")
end

function tests.test_pairs_have_token_types()
  local tok = wordpiece()
  local cls, sep = tok:id "[CLS]", tok:id "[SEP]"
  local a, b = tok:encode("the king", { add_special = false }), tok:encode("a man", { add_special = false })
  local batch = tok:batch { { "the king", "a man" } }
  local want, types = { cls }, { 0 }
  for _, id in ipairs(a) do want[#want + 1], types[#types + 1] = id, 0 end
  want[#want + 1], types[#types + 1] = sep, 0
  for _, id in ipairs(b) do want[#want + 1], types[#types + 1] = id, 1 end
  want[#want + 1], types[#types + 1] = sep, 1
  lu.assertEquals({ batch.ids:tolist()[1], batch.token_type_ids:tolist()[1] }, { want, types })
  lu.assertEquals(tok:batch({ "the king" }, { text_pair = { "a man" } }).ids:tolist(), batch.ids:tolist())
  lu.assertNil(tok:batch({ "the king" }).token_type_ids)
  local long = ("the king "):rep(10)
  local function lengths(strategy, texts, n)
    local kept = tok:batch({ texts }, { truncation = strategy, max_length = n })
    local counts = { 0, 0 }
    for i, t in ipairs(kept.token_type_ids:tolist()[1]) do
      local id = kept.ids:at(1, i)
      if id ~= cls and id ~= sep then counts[t + 1] = counts[t + 1] + 1 end
    end
    return counts
  end
  lu.assertEquals(lengths("longest_first", { long, "a man" }, 12), { 9 - #b, #b })
  lu.assertEquals(lengths(true, { long, long }, 12), { 4, 5 })
  lu.assertEquals(lengths("only_first", { long, "a man" }, 12), { 9 - #b, #b })
  lu.assertEquals(lengths("only_second", { "a man", long }, 12), { #b, 9 - #b })
  lu.assertErrorMsgContains("the second text alone has", tok.batch, tok, { { "a", long } },
    { truncation = "only_first", max_length = 12 })
  lu.assertErrorMsgContains("text 2 is no pair", tok.batch, tok, { { "a", "b" }, "a" })
  for _, off in ipairs { false, "do_not_pad" } do
    lu.assertErrorMsgContains("padding is off", tok.batch, tok, { "a" }, { padding = off, pad_to_multiple_of = 8 })
  end
  lu.assertErrorMsgContains("text 2 is a nil", tok.batch, tok, { "a", nil, "b" })
  lu.assertErrorMsgContains("row 2 is a nil", batches.pad, { { 1 }, nil, { 2 } })
  lu.assertErrorMsgContains("max_length is 9, no multiple of pad_to_multiple_of, 8", tok.batch, tok, { "a" },
    { padding = "max_length", max_length = 9, pad_to_multiple_of = 8 })
  lu.assertErrorMsgContains("text_pair has 1 texts for 2", tok.batch, tok, { "a", "b" }, { text_pair = { "a" } })
end

function tests.test_a_tokenizers_batch_is_what_the_model_wants()
  local tok, model = wordpiece(), tiny.load "bert"
  local shrunk = { "the king", "a" }
  local batch = tok:batch(shrunk)
  batch.ids = batch.ids:mod(61)
  local _ <close> = peri.no_grad()
  local hidden = model:forward(batch)
  local one = model:forward(peri.tensor({ batch:unpad()[2] }, "i64"))
  near(hidden:select(1, 2):narrow(1, 1, 3), one:select(1, 1), "bert")
end

function tests.test_ids_that_are_padded_already_become_the_same_batch()
  for _, side in ipairs { "left", "right" } do
    local want = batches.pad(lists, { side = side, pad = 59, length = WIDTH })
    local got = batches.new(want.ids, want.mask)
    for _, name in ipairs { "ids", "mask", "lengths", "start" } do
      lu.assertEquals(got[name]:tolist(), want[name]:tolist(), name)
    end
    lu.assertEquals({ got.side, got:unpad() }, { side, lists })
    lu.assertEquals(tostring(got), ("batch of 4 rows, 9 columns, padded on the %s"):format(side))
    local part = got:rows(2, 2)
    lu.assertEquals({ part:unpad(), part.side, part.truncated }, { { lists[2], lists[3] }, side, 0 })
  end
  local ids = peri.tensor({ { 1, 2 }, { 3, 4 } }, "i64")
  lu.assertEquals(batches.new(ids):unpad(), { { 1, 2 }, { 3, 4 } })
  lu.assertErrorMsgContains("ids are no tensor (B, T)", batches.new, peri.tensor({ 1, 2 }, "i64"))
  lu.assertErrorMsgContains("mask has shape (2, 3), expected (2, 2)", batches.new, ids, peri.ones({ 2, 3 }, "bool"))
  lu.assertErrorMsgContains("the mask has gaps", batches.new, peri.tensor({ { 1, 2, 3 } }, "i64"),
    peri.tensor({ { true, false, true } }, "bool"))
end

function tests.test_a_text_that_leaves_no_room_is_refused()
  local tok = wordpiece()
  lu.assertErrorMsgContains("max_length is 1, the special tokens alone are 2", tok.batch, tok, { "the king" },
    { truncation = true, max_length = 1 })
  lu.assertErrorMsgContains("the texts are no pairs", tok.batch, tok, { "the king the king" },
    { truncation = "only_second", max_length = 4 })
  lu.assertErrorMsgContains("the first text alone has", tok.batch, tok, { { "the king the king the king", "a" } },
    { truncation = "only_second", max_length = 6 })
  lu.assertErrorMsgContains("files name no model_max_length", tok.batch, tok, { "a" }, { truncation = true })
  lu.assertErrorMsgContains("two names of one option", tok.batch, tok, { "a" },
    { add_special = true, add_special_tokens = true })
  lu.assertErrorMsgContains("row 1 has 3 ids, length is 2", batches.pad, { { 1, 2, 3 } }, { length = 2 })
end

return tests
