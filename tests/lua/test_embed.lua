-- Vectors of texts: hidden states that transformers stored, pooled; folders of sentence-transformers; the order and
-- the lengths of texts; encoders where something that generates is expected.
local lu = require "luaunit"
local peri = require "perilune"
local batches = require "perilune.text.batch"
local models = require "perilune.models"
local scratch = require "scratch"
local tiny = require "tiny"

local tests = {}
local dir
scratch.each(tests, function (path) dir = path end)

-- What pooling is, written out over lists.
local by_hand = {}
function by_hand.cls(row, mask)
  for t, on in ipairs(mask) do if on == 1 then return row[t] end end
end
function by_hand.last(row, mask)
  for t = #mask, 1, -1 do if mask[t] == 1 then return row[t] end end
end
local function mean(weight, power)
  return function (row, mask)
    local out, sum, n = {}, 0, 0
    for t, on in ipairs(mask) do
      n = n + on
      for d, v in ipairs(row[t]) do out[d] = (out[d] or 0) + on * (weight and n or 1) * v end
      sum = sum + on * (weight and n or 1)
    end
    for d = 1, #out do out[d] = out[d] / sum ^ power end
    return out
  end
end
by_hand.mean, by_hand.weighted_mean, by_hand.mean_sqrt_len = mean(false, 1), mean(true, 1), mean(false, 0.5)
function by_hand.max(row, mask)
  local out = {}
  for t, on in ipairs(mask) do
    for d, v in ipairs(row[t]) do if on == 1 then out[d] = math.max(out[d] or -math.huge, v) end end
  end
  return out
end

local function near(got, want, most)
  want = peri.is_tensor(want) and want or peri.tensor(want, "f32")
  local off = got:sub(want):abs():max():item()
  lu.assertTrue(off <= (most or 1e-6), ("off by %g"):format(off))
end

for _, name in ipairs { "bert", "distilbert" } do
  tests["test_vectors_are_transformers_hidden_states_pooled_in_" .. name] = function ()
    local model, io = tiny.load(name)
    local _ <close> = peri.no_grad()
    local rows, masks = io.last_hidden_state:tolist(), io.attention_mask:tolist()
    for kind, fn in pairs(by_hand) do
      local want = {}
      for b, row in ipairs(rows) do want[b] = fn(row, masks[b]) end
      near(model:vectors(io.input_ids, { attention_mask = io.attention_mask, pooling = kind }), want, 2e-6)
      local units = {}
      for b, v in ipairs(want) do
        local sum = 0
        for _, x in ipairs(v) do sum = sum + x * x end
        units[b] = {}
        for d, x in ipairs(v) do units[b][d] = x / math.sqrt(sum) end
      end
      near(model:vectors(io.input_ids, { mask = io.attention_mask, pooling = kind, normalize = true }), units)
    end
    local both = model:vectors(io.input_ids, { mask = io.attention_mask, pooling = { "cls", "mean" } })
    lu.assertEquals(both.shape, { #rows, 2 * model.settings.dim })
    lu.assertErrorMsgContains('unknown pooling "men"; did you mean "mean"', model.vectors, model, io.input_ids,
      { pooling = "men" })
    lu.assertErrorMsgContains("atention_mask", model.vectors, model, io.input_ids, { atention_mask = io.attention_mask })
  end
end

function tests.test_every_kind_of_model_pools_the_tokens_of_a_row_on_either_side()
  local lists = { { 5, 17, 3, 9 }, { 40, 2 } }
  for _, name in ipairs { "bert", "llama", "gpt2", "gemma2", "t5" } do
    local model = tiny.load(name)
    local _ <close> = peri.no_grad()
    for kind in pairs(by_hand) do
      for _, side in ipairs { "left", "right" } do
        local both = model:vectors(batches.pad(lists, { side = side, length = 6 }), { pooling = kind })
        for b, list in ipairs(lists) do
          near(both:select(1, b), model:vectors(peri.tensor({ list }, "i64"), { pooling = kind }):select(1, 1), 5e-6)
        end
      end
    end
  end
end

-- ---- texts ------------------------------------------------------------------------------------------

local texts = { "the king", "a man and the king of the men", "", "the man", "a", "king and man and king and man" }

-- A model with a tokenizer in a folder; changes: files by name.
local function folder(files)
  local tok = assert(peri.tokenizer.load "tests/data/tokenizers/wordpiece.json")
  peri.seed(3)
  local model = models.bert.new { model_type = "bert", vocab_size = tok.size, hidden_size = 16, num_hidden_layers = 2,
    num_attention_heads = 2, intermediate_size = 32, max_position_embeddings = 12, architectures = { "BertModel" } }
  assert(model:save(dir))
  assert(peri.files.write(dir .. "/tokenizer.json", assert(peri.files.read "tests/data/tokenizers/wordpiece.json")))
  for name, value in pairs(files or {}) do
    local place = (dir .. "/" .. name):match "^(.*)/"
    assert(peri.files.make_folder(place))
    assert(peri.files.write(dir .. "/" .. name, type(value) == "table" and peri.json.encode(value) or value))
  end
  return model:eval(), tok
end

local function modules(...)
  local list = peri.json.array {}
  for i, entry in ipairs { ... } do
    list[i] = { idx = i - 1, name = tostring(i - 1), path = entry[2] or "", type = "sentence_transformers.models." .. entry[1] }
  end
  return list
end

function tests.test_texts_come_back_in_their_order_whatever_the_size_of_a_batch()
  local model, tok = folder()
  local encoder = assert(peri.embed.load(dir))
  local want = {}
  for i, text in ipairs(texts) do
    want[i] = peri.no_grad(function ()
      return model:vectors(tok:batch({ text }, { truncation = true, max_length = 12 })):select(1, 1)
    end)
  end
  for _, size in ipairs { 1, 2, 4, 32 } do
    local got, report = encoder:encode(texts, { batch_size = size })
    for i, w in ipairs(want) do near(got:select(1, i), w) end
    lu.assertEquals(report.truncated, 0)
  end
  near(encoder:encode(texts[2]), want[2])
  lu.assertEquals(encoder:encode(texts[2]).shape, { 16 })
  local same = encoder:similarity(encoder:encode(texts), encoder:encode(texts))
  for i = 1, #texts do lu.assertAlmostEquals(same:at(i, i), 1, 1e-6) end
end

function tests.test_long_texts_are_cut_and_counted_or_refused()
  folder()
  local encoder = assert(peri.embed.load(dir))
  lu.assertEquals(encoder.max_length, 12)
  local long = ("king "):rep(40)
  local _, report = encoder:encode { "a", long, long }
  lu.assertEquals(report.truncated, 2)
  lu.assertErrorMsgContains("2 of 3 texts have more than 12 tokens (the longest 82)", encoder.encode, encoder,
    { "a", long, long }, { truncation = false })
  lu.assertErrorMsgContains("text 2 is a number", encoder.encode, encoder, { "a", 7 })
  lu.assertErrorMsgContains("expected a text or a list", encoder.encode, encoder, {})
  lu.assertErrorMsgContains("text 2 is a nil", encoder.encode, encoder, { "a", nil, "b" })
  lu.assertErrorMsgContains("max_length is 1, the special tokens alone are 2", encoder.encode, encoder, "a", { max_length = 1 })
  lu.assertErrorMsgContains("max_length is 9999, the model has", encoder.encode, encoder, "a", { max_length = 9999 })
  lu.assertErrorMsgContains("pooling is an empty list", encoder.encode, encoder, "a", { pooling = {} })
  lu.assertErrorMsgContains('similarity: a is "a", expected tensor', encoder.similarity, encoder, "a", "b")
  lu.assertErrorMsgContains('did you mean "normalize"', encoder.encode, encoder, "a", { normalise = true })
end

function tests.test_a_folder_of_sentence_transformers_says_how()
  local model, tok = folder {
    ["modules.json"] = modules({ "Transformer" }, { "Pooling", "1_Pooling" }, { "Dense", "2_Dense" }, { "Normalize", "3_Normalize" }),
    ["1_Pooling/config.json"] = { word_embedding_dimension = 16, pooling_mode_cls_token = true, pooling_mode_mean_tokens = true },
    ["2_Dense/config.json"] = { in_features = 32, out_features = 4, bias = true, activation_function = "torch.nn.modules.activation.Tanh" },
    ["sentence_bert_config.json"] = { max_seq_length = 6, do_lower_case = true },
    ["config_sentence_transformers.json"] = { prompts = { query = "the king " }, default_prompt_name = peri.json.null },
  }
  local w, b = peri.randn { 4, 32 }, peri.randn { 4 }
  assert(peri.safetensors.save(dir .. "/2_Dense/model.safetensors", { ["linear.weight"] = w, ["linear.bias"] = b }))
  local encoder = assert(peri.embed.load(dir))
  lu.assertEquals({ encoder.pooling, encoder.normalize, encoder.max_length }, { { "cls", "mean" }, true, 6 })
  local function by_parts(text)
    local _ <close> = peri.no_grad()
    local batch = tok:batch({ text }, { truncation = true, max_length = 6 })
    local x = model:vectors(batch, { pooling = { "cls", "mean" } }):linear(w, b):tanh()
    return x:div(x:norm(2, -1, true)):select(1, 1)
  end
  near(encoder:encode "a MAN and a king of men", by_parts "a man and a king of men")
  near(encoder:encode("man", { prompt_name = "query" }), by_parts "the king man")
  near(encoder:encode("man", { prompt = "the king " }), by_parts "the king man")
  lu.assertErrorMsgContains('unknown prompt "qury"', encoder.encode, encoder, "a", { prompt_name = "qury" })
  local plain = assert(peri.embed.load(dir, { pooling = "cls", normalize = false }))
  lu.assertEquals({ plain.pooling, plain.normalize }, { { "cls" }, false })
end

function tests.test_what_a_folder_says_and_we_do_not_know_is_named()
  local function refused(files, ...)
    folder(files)
    local encoder, message = peri.embed.load(dir)
    lu.assertNil(encoder)
    for _, part in ipairs { ... } do lu.assertStrContains(message, part) end
  end
  refused({ ["modules.json"] = modules({ "Transformer" }, { "CNN", "1_CNN" }) }, "modules.json", "models.CNN is not supported")
  refused({ ["modules.json"] = modules({ "Transformer" }, { "Pooling", "1_Pooling" }),
            ["1_Pooling/config.json"] = { pooling_mode_attention = true } }, "pooling_mode_attention is not supported")
  refused({ ["modules.json"] = modules({ "Transformer" }, { "Pooling", "1_Pooling" }),
            ["1_Pooling/config.json"] = { pooling_mode = "men" } }, 'unknown pooling_mode "men"')
  refused({ ["modules.json"] = "[" }, "modules.json")
end

function tests.test_a_causal_model_makes_vectors_too()
  local tok = assert(peri.tokenizer.train_bpe({ "the cat sat on the mat" }, { vocab_size = 270 }))
  local model = models.llama.new { model_type = "llama", vocab_size = tok.size, hidden_size = 16, intermediate_size = 32,
    num_hidden_layers = 2, num_attention_heads = 2, num_key_value_heads = 2 }
  local encoder = peri.embed.new(model, tok, { pooling = "last" })
  local got = encoder:encode { "the cat", "the cat sat on the mat" }
  near(got:select(1, 1), peri.no_grad(function ()
    return model:forward(tok:encode_tensor("the cat"):unsqueeze(1)):select(2, -1):select(1, 1)
  end))
  lu.assertErrorMsgContains("text 2 has no tokens", encoder.encode, encoder, { "a", "" })
end

-- ---- encoders where something that generates is expected -----------------------------------------------

local NO <const> = "bert is an encoder: it cannot generate"

function tests.test_an_encoder_says_that_it_cannot_generate()
  local model, tok = folder()
  local ids = peri.tensor({ { 1, 2, 3 } }, "i64")
  for _, name in ipairs { "generate", "cache", "token_logprobs", "token_logprob" } do
    local ok, message = pcall(function () model[name](model, ids, 2) end)
    lu.assertFalse(ok)
    lu.assertStrContains(message, NO)
    lu.assertStrContains(message, "test_embed.lua")
  end
  lu.assertErrorMsgContains(NO, peri.lm.new, model, tok)
  lu.assertErrorMsgContains(NO, model.generate, model, ids, { num_beams = 2 })
  lu.assertErrorMsgContains(NO, require("perilune.decode.engine").new, model)
  local opt = peri.optim.AdamW(model, { lr = 1e-3 })
  local rows = { { prompt = "a", completion = "the king" } }
  local how = { model = model, tokenizer = tok, rows = rows, optimizer = opt }
  lu.assertErrorMsgContains("sft: " .. NO, peri.post.sft.new, how)
  how.reward = function () return 1 end
  lu.assertErrorMsgContains("grpo: " .. NO, peri.post.grpo.new, how)
  lu.assertErrorMsgContains(NO, peri.rl.rollout, model, tok, rows, how.reward, {})
  lu.assertErrorMsgContains(NO, peri.rl.shared_prompt, model, ids)
  local lm, message = peri.lm.load(dir)
  lu.assertNil(lm)
  lu.assertStrContains(message, NO)
  lm, message = peri.lm.load "tests/data/hf_tiny/t5"
  lu.assertNil(lm)
  lu.assertStrContains(message, "t5 is an encoder-decoder")
end

local function program(command, input)
  local place = arg[-2] or "build/perilune"
  local from, err = scratch.path(), scratch.path()
  assert(peri.files.write(from, input or ""))
  local pipe = assert(io.popen(("%s %s <%s 2>%s"):format(place, command, from, err)))
  local out = pipe:read "a"
  local _, _, status = pipe:close()
  local said = assert(peri.files.read(err))
  os.remove(from)
  os.remove(err)
  return out, said, status
end

function tests.test_commands_say_so_in_a_line()
  folder()
  for _, command in ipairs { "complete %s hello", "chat %s" } do
    local out, err, status = program(command:format(dir))
    lu.assertEquals({ out, status }, { "", 1 })
    lu.assertStrContains(err, NO)
    lu.assertNotStrContains(err, "traceback")
  end
end

function tests.test_the_command_writes_lines_and_files()
  folder()
  local want = assert(peri.embed.load(dir)):encode { "the king", "a" }
  local out, err, status = program(("embed %s 'the king' a"):format(dir))
  lu.assertEquals({ err, status }, { "", 0 })
  local rows = {}
  for line in out:gmatch "[^\n]+" do rows[#rows + 1] = assert(peri.json.decode(line)) end
  lu.assertEquals({ #rows, rows[1].text, rows[2].text }, { 2, "the king", "a" })
  lu.assertEquals(peri.tensor({ rows[1].embedding, rows[2].embedding }, "f32"):bytes(), want:bytes())
  for _, form in ipairs { "npy", "safetensors", "jsonl" } do
    local path = dir .. "/out." .. form
    out, err, status = program(("embed %s --out %s"):format(dir, path), "the king\na\n")
    lu.assertEquals({ out, err, status }, { "", "", 0 })
    local got
    if form == "npy" then got = assert(peri.npy.load(path))
    elseif form == "safetensors" then got = assert(peri.safetensors.load(path)).embeddings end
    if got then lu.assertEquals(got:bytes(), want:bytes()) end
  end
  out, err, status = program(("embed %s '%s'"):format(dir, ("king "):rep(30)))
  lu.assertEquals({ #out > 0, status }, { true, 0 })
  lu.assertStrContains(err, "1 of 1 texts were longer than 12 tokens and are cut")
  for command, part in pairs { ["embed %s x --pooling men"] = 'did you mean "mean"', ["embed %s x --out a.b"] = ".npy",
      ["embed %s-nothing x"] = "there is no such file", ["embed %s x --no-truncation --max_length 2"] = "more than 2 tokens" } do
    out, err, status = program(command:format(dir))
    lu.assertEquals(out, "")
    lu.assertTrue(status == 1 or status == 2)
    lu.assertStrContains(err, part)
    lu.assertNotStrContains(err, "traceback")
  end
end

return tests
