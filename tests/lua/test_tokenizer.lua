-- Tokenizers against the reference implementations: ids and texts of Hugging Face tokenizers 0.23 for small
-- vocabularies (tests/data/tokenizers), of transformers and llama.cpp for the published ones.
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"
local shared = require "shared"

local T = {}
local DATA = "tests/data/tokenizers/"
local PLAIN = { add_special = false }
local RAW = { add_special = false, parse_special = false }
local FULL = { skip_special = false }

local function read(path) return assert(peri.files.read(path)) end
local function decode(path) return assert(peri.json.decode(read(path))) end

local function same(got, want, what)
  local a, b = table.concat(got, " "), table.concat(want, " ")
  if a ~= b then lu.fail(("%s:\n got  %s\n want %s"):format(what, a, b)) end
end

-- Every claim of a column of vectors.json, and that streams and batches give the same.
local function agrees(tok, texts, want, name)
  local batch = tok:encode_batch(texts)
  for i, text in ipairs(texts) do
    local what = ("%s: %q"):format(name, text)
    same(tok:encode(text), want.ids[i], what)
    same(batch[i], want.ids[i], what .. " in a batch")
    same(tok:encode(text, PLAIN), want.plain[i], what .. " without special tokens")
    same(tok:encode(text, RAW), (want.raw or want.plain)[i], what .. " without parsing")
    if want.decoded then lu.assertEquals(tok:decode(want.plain[i]), want.decoded[i], what) end
    local stream, parts = tok:stream(FULL), {}
    for _, id in ipairs(want.plain[i]) do
      local part = stream:push(id)
      lu.assertNotNil(utf8.len(part), "a stream gives whole characters")
      parts[#parts + 1] = part
    end
    parts[#parts + 1] = stream:finish()
    lu.assertEquals(table.concat(parts), tok:decode(want.plain[i], FULL), what .. " as a stream")
  end
end

function T.test_small_vocabularies_of_every_model_agree_with_the_reference()
  local vectors = decode(DATA .. "vectors.json")
  for _, name in ipairs { "bytelevel", "ignore_merges", "llama", "prefix", "suffix", "unigram", "unigram_bytes",
    "wordlevel", "wordpiece" } do
    agrees(assert(peri.tokenizer.load(DATA .. name .. ".json")), vectors.texts, vectors[name], name)
  end
  local function changed(from, edits)
    local json = read(DATA .. from .. ".json")
    for _, edit in ipairs(edits) do
      local at, last = json:find(edit[1], 1, true)
      json = json:sub(1, at - 1) .. edit[2] .. json:sub(last + 1)
    end
    return assert(peri.tokenizer.parse(json))
  end
  agrees(changed("llama", { { '"byte_fallback":true', '"byte_fallback":false' } }), vectors.texts,
    vectors.llama_unk, "llama_unk")
  agrees(changed("wordpiece", { { '"max_input_chars_per_word":100', '"max_input_chars_per_word":8' },
    { '"strip_accents":null,"lowercase":true', '"strip_accents":false,"lowercase":false' } }), vectors.texts,
    vectors.wordpiece_cased, "wordpiece_cased")
end

function T.test_texts_that_are_no_utf8_count_as_replacement_characters()
  local tok = assert(peri.tokenizer.load(DATA .. "bytelevel.json"))
  for _, case in ipairs { { "a\xFFb", "a\u{FFFD}b" }, { "\xE4\xB8", "\u{FFFD}" }, { "\xF0\x9F\x99x", "\u{FFFD}x" },
    { "\xC0\x80", "\u{FFFD}\u{FFFD}" } } do -- as Python's bytes.decode(errors="replace")
    same(tok:encode(case[1]), tok:encode(case[2]), case[2])
    same(tok:encode_batch { "x", case[1] }[2], tok:encode(case[2]), case[2])
  end
end

function T.test_half_a_character_waits_and_then_is_a_replacement()
  local tok = assert(peri.tokenizer.load(DATA .. "bytelevel.json"))
  local ids = tok:encode("🙂", PLAIN)
  local stream = tok:stream()
  local parts = {}
  for i, id in ipairs(ids) do parts[i] = stream:push(id) end
  lu.assertEquals(table.concat(parts), " 🙂")
  for i = 1, #ids - 1 do lu.assertNil(parts[i]:find("[\x80-\xFF]")) end
  lu.assertEquals(stream:push(tok:id "ð"), "") -- byte F0 begins a character
  lu.assertEquals(stream:finish(), "\u{FFFD}")
  lu.assertEquals(stream:finish(), "")
  lu.assertEquals(tok:decode { ids[#ids] }, "\u{FFFD}")
  lu.assertEquals(tok:decode { 1 << 21, -1, ids[1] }, " ", "ids that there are not are left out")
end

function T.test_a_long_run_of_one_letter_takes_no_second()
  for _, name in ipairs { "bytelevel", "llama", "unigram_bytes", "wordpiece" } do
    local tok = assert(peri.tokenizer.load(DATA .. name .. ".json"))
    local before = os.clock()
    local n = tok:encode_tensor(("a"):rep(1000000)).shape[1]
    lu.assertTrue(os.clock() - before < 1.5, name .. ": " .. os.clock() - before)
    lu.assertTrue(n >= 1)
  end
end

function T.test_facts_of_a_vocabulary()
  local tok = assert(peri.tokenizer.load(DATA .. "wordpiece.json"))
  lu.assertEquals(tok.size, 1200)
  lu.assertEquals(tok:id("[CLS]"), 2)
  lu.assertNil(tok:id("nothing of the kind"))
  lu.assertEquals(tok:token(2), "[CLS]")
  lu.assertNil(tok:token(1200))
  lu.assertNil(tok.bos)
  lu.assertTrue(tok:is_special(2))
  lu.assertErrorMsgContains("unknown option", tok.encode, tok, "x", { ad_special = true })
  lu.assertErrorMsgContains("must be a string", tok.encode, tok, 7)
  lu.assertErrorMsgContains("a number, a string is expected", tok.encode_batch, tok, { "a", 7 })
end

local BPE = '{"added_tokens":[%s],"normalizer":%s,"pre_tokenizer":%s,"decoder":%s,"model":{"type":"%s","vocab":%s,"merges":%s%s}}'
local function bpe(o)
  return BPE:format(o.added or "", o.normalizer or "null", o.pre or "null", o.decoder or "null", o.type or "BPE",
    o.vocab or '{"a":0,"b":1,"ab":2}', o.merges or '["a b"]', o.more or "")
end

function T.test_what_a_file_gets_wrong_is_told()
  local function refuses(o, part)
    local tok, message = peri.tokenizer.parse(type(o) == "string" and o or bpe(o))
    lu.assertNil(tok)
    lu.assertStrContains(message, part)
  end
  lu.assertEquals(assert(peri.tokenizer.parse(bpe {})):encode("aabb"), { 0, 2, 1 })
  refuses({ type = "Mamba" }, 'model type "Mamba" is not supported')
  refuses({ normalizer = '{"type":"Sparkle"}' }, "Sparkle")
  refuses({ pre = '{"type":"Sparkle"}' }, "Sparkle")
  refuses({ decoder = '{"type":"Sparkle"}' }, "Sparkle")
  refuses({ more = ',"sparkle":true' }, 'field "sparkle" of a model')
  refuses({ more = ',"dropout":0.1' }, "dropout")
  refuses({ merges = '["a c"]' }, '"c" of merge 0 is not in the vocabulary')
  refuses({ merges = '["b a"]' }, '"ba", what merge 0 makes, is not in the vocabulary')
  refuses({ merges = '["ab"]' }, "merge 0 must be two tokens")
  refuses({ merges = '[["a"]]' }, "second token")
  refuses({ vocab = '{"a":0,"b":0,"ab":2}' }, "id 0 is that of two tokens")
  refuses({ vocab = '{"a":0,"a":1,"ab":2}' }, 'token "a" comes twice')
  refuses({ vocab = '{"a":4194304,"b":1,"ab":2}' }, "a token's id must be")
  refuses({ vocab = '{"a":-1,"b":1,"ab":2}' }, "a token's id must be")
  refuses({ vocab = '[["a",0]]' }, "does not fit the type of the model")
  refuses({ added = '{"id":1,"content":"x"}' }, 'added token "x" has id 1, which is "b"')
  refuses({ added = '{"content":"x"}' }, "without id")
  refuses({ added = ('{"id":3,"content":"%s"}'):format(("x"):rep(1025)) }, "the limit is 1024")
  refuses('{"model":{"type":"BPE","merges":[]}}', "without vocab")
  refuses("{}", "without model")
  refuses("[]", "must be an object")
  local tok, message = peri.tokenizer.load(DATA .. "nothing.json")
  lu.assertNil(tok)
  lu.assertStrContains(message, "nothing.json")
  tok, message = peri.tokenizer.load("tests/data/tiny_llama_digits/nothing")
  lu.assertNil(tok)
  lu.assertStrContains(message, "nothing")
end

-- A folder with these files as JSON.
local function folder_of(files)
  local folder = scratch.path()
  assert(peri.files.make_folder(folder))
  for name, value in pairs(files) do
    assert(peri.files.write(folder .. "/" .. name, type(value) == "string" and value or peri.json.encode(value)))
  end
  return folder
end

function T.test_sides_and_lengths_of_batches_are_what_the_files_say()
  local small = bpe {}
  local function facts(config, json)
    local folder = folder_of { ["tokenizer.json"] = json or small, ["tokenizer_config.json"] = config }
    local tok = assert(peri.tokenizer.load(folder))
    peri.files.remove_tree(folder)
    return { tok.padding_side or "-", tok.truncation_side or "-", tok.model_max_length or "-" }
  end
  lu.assertEquals(facts {}, { "-", "-", "-" })
  lu.assertEquals(facts { padding_side = "left", truncation_side = "right", model_max_length = 512 },
    { "left", "right", 512 })
  local both = '{"padding":{"strategy":"BatchLongest","direction":"Right","pad_id":0},'
    .. '"truncation":{"direction":"Left","max_length":128,"strategy":"LongestFirst","stride":0},' .. small:sub(2)
  lu.assertEquals(facts({}, both), { "right", "left", 128 })
  lu.assertEquals(facts({ model_max_length = 512, padding_side = "left" }, both), { "left", "left", 512 })
  lu.assertEquals(facts('{"model_max_length":1000000000000000019884624838656}', both), { "right", "left", 128 })
end

function T.test_merges_before_the_vocabulary_and_files_without_type()
  local tok = assert(peri.tokenizer.parse('{"model":{"merges":[["a","b"]],"vocab":{"ab":2,"a":0,"b":1}}}'))
  lu.assertEquals(tok:encode("aabb"), { 0, 2, 1 })
end

function T.test_training_gives_what_the_reference_trains_and_comes_back_from_a_folder()
  local folder = scratch.path()
  local texts = { "low low low low low lower lower newest newest newest newest newest newest widest widest widest" }
  local tok = assert(peri.tokenizer.train_bpe(texts, { vocab_size = 263 }))
  -- Of tokenizers 0.23: BpeTrainer(vocab_size=263, min_frequency=2, initial_alphabet=ByteLevel.alphabet()).
  local want = { "es", "est", "lo", "low", "ew", "new" }
  for i, token in ipairs(want) do lu.assertEquals(tok:token(256 + i), token) end
  lu.assertEquals(tok.size, 263)
  lu.assertEquals(tok.eos, 0)
  assert(tok:save(folder))
  local back = assert(peri.tokenizer.load(folder))
  lu.assertEquals({ back.eos, back.eos_ids }, { 0, { 0 } })
  assert(peri.files.write(folder .. "/generation_config.json", '{"a":[1,{}],"eos_token_id":[7,0,[5],9999]}'))
  lu.assertEquals(assert(peri.tokenizer.load(folder)).eos_ids, { 0, 7 })
  lu.assertEquals(back:encode("lowest newer 日本<|endoftext|>"), tok:encode("lowest newer 日本<|endoftext|>"))
  assert(back:save(folder .. "/copy"))
  lu.assertEquals(assert(peri.tokenizer.load(folder .. "/copy")):encode("lowest"), tok:encode("lowest"))
  peri.files.remove_tree(folder)
  lu.assertEquals(tok:decode(tok:encode("x\0y\r\n 🙂")), "x\0y\r\n 🙂")
  lu.assertErrorMsgContains("vocab_size 10", peri.tokenizer.train_bpe, texts, { vocab_size = 10 })
  lu.assertNil((peri.tokenizer.train_bpe("tests/data/nothing.txt")))
end

-- ---- published vocabularies, where they are ----

function T.test_published_tokenizers_encode_decode_and_render_as_transformers_does()
  local vectors = decode(shared.need "data/tokenizers/vectors.json")
  for name, v in pairs(vectors) do
    local tok = assert(peri.tokenizer.load(shared.need("data/tokenizers/" .. name)))
    for _, e in ipairs(v.encode) do
      same(tok:encode(e.text, PLAIN), e.ids, ("%s: %q"):format(name, e.text))
      lu.assertEquals(tok:decode(e.ids, FULL), e.decoded)
    end
    for _, c in ipairs(v.chat or {}) do
      lu.assertEquals(tok:chat(c.messages, { add_generation_prompt = c.add_generation_prompt }), c.text)
    end
  end
end

function T.test_the_assistants_tokens_are_marked()
  local tok = assert(peri.tokenizer.load(shared.need "data/tokenizers/qwen3"))
  local messages = { { role = "user", content = "Hi" }, { role = "assistant", content = "Hello there" } }
  local ids, mask = tok:encode_chat(messages)
  lu.assertEquals(ids, tok:encode(tok:chat(messages), PLAIN))
  lu.assertEquals(#ids, #mask)
  local said = {}
  for i, id in ipairs(ids) do if mask[i] == 1 then said[#said + 1] = id end end
  lu.assertStrContains(tok:decode(said), "Hello there")
  lu.assertNotStrContains(tok:decode(said, FULL), "Hi")
end

function T.test_vocabularies_in_gguf_encode_as_llama_cpp_does()
  for _, name in ipairs { "llama-spm", "phi-3", "gpt-2", "deepseek-llm", "bert-bge" } do
    local path = shared.need("data/gguf_vocabs/ggml-vocab-" .. name .. ".gguf")
    local tok = assert(peri.tokenizer.load(path))
    local texts, at = read(path .. ".inp"), 1
    local n = 0
    for line in read(path .. ".out"):gmatch("([^\n]*)\n") do
      local stop, last = texts:find("\n__ggml_vocab_test__\n", at, true)
      local text = texts:sub(at, (stop or #texts + 1) - 1)
      local want = {}
      for id in line:gmatch("%d+") do want[#want + 1] = id end
      same(tok:encode(text, PLAIN), want, ("%s: %q"):format(name, text))
      if name ~= "bert-bge" then lu.assertEquals(tok:decode(tok:encode(text)), text) end
      at, n = (last or #texts) + 1, n + 1
    end
    lu.assertEquals(n, 46)
  end
end

function T.test_smollm2_encodes_as_transformers_does()
  local tok = assert(peri.tokenizer.load(shared.need "data/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
  for _, e in ipairs(decode(shared.need "vectors/smollm2.json").encode) do
    same(tok:encode(e.text, PLAIN), e.ids, ("%q"):format(e.text))
  end
  lu.assertEquals(tok.eos, 2)
  lu.assertEquals(tok.eos_ids, { 0, 2 })
  local folder = scratch.path()
  assert(tok:save(folder))
  local back = assert(peri.tokenizer.load(folder))
  for _, text in ipairs(decode(DATA .. "vectors.json").texts) do
    same(back:encode(text), tok:encode(text), ("saved: %q"):format(text))
  end
  lu.assertEquals({ back.eos, back.chat_template }, { tok.eos, tok.chat_template })
  peri.files.remove_tree(folder)
  lu.assertStrContains(tok.chat_template, "im_start")
end

function T.test_older_files_hold_the_same_vocabularies()
  local gpt2 = assert(peri.tokenizer.load(shared.need "data/tokenizers/gpt2"))
  local gguf = assert(peri.tokenizer.load(shared.need "data/gguf_vocabs/ggml-vocab-gpt-2.gguf"))
  local model = assert(peri.tokenizer.load(shared.need "data/tokenizers/llama2/tokenizer.model"))
  local bin = assert(peri.tokenizer.load(shared.need "data/tokenizers/llama2/tokenizer.bin"))
  local spm = assert(peri.tokenizer.load(shared.need "data/gguf_vocabs/ggml-vocab-llama-spm.gguf"))
  for _, text in ipairs(decode(DATA .. "vectors.json").texts) do
    same(gpt2:encode(text), gguf:encode(text), ("gpt2: %q"):format(text))
    same(model:encode(text), spm:encode(text), ("llama: %q"):format(text))
    if not text:find "▁" then same(bin:encode(text), spm:encode(text), ("llama2.c: %q"):format(text)) end
  end
  lu.assertEquals({ model.bos, model.eos, model.unk }, { 1, 2, 0 })
  local tiny = assert(peri.tokenizer.load(shared.need "data/stories260k/tok512.bin"))
  lu.assertEquals(tiny:encode("Once upon a time"), { 1, 403, 407, 261, 378 }) -- run.c
  lu.assertEquals(tiny:decode(tiny:encode("Once upon a time,\nnaïve")), "Once upon a time,\nnaïve")
end

return T
