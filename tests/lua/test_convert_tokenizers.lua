-- Tokenizers between Hugging Face folders and GGUF files: the same ids on some hundreds of texts before and after, or
-- what is lost is named.
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"
local shared = require "shared"
local pre_names = require "perilune.weights.gguf.pre"
local same_ids = require "perilune.weights.gguf.same_ids"
local to_gguf = require "perilune.weights.gguf.tokenizer"
local to_json = require "perilune.weights.gguf.tokenizer_json"

local T, dir = {}, nil
local DATA = "tests/data/tokenizers/"
local null = peri.json.null

scratch.each(T, function(path) dir = path end)

local function read_json(path) return assert(peri.json.decode(assert(peri.files.read(path)))) end
local function write(folder, name, value)
  assert(peri.files.make_folder(folder))
  assert(peri.files.write(folder .. "/" .. name, type(value) == "string" and value or peri.json.encode(value)))
end

-- A GGUF file of values, and its tokenizer.
local function gguf_of(values, name)
  local path = dir .. "/" .. (name or "t") .. ".gguf"
  assert(peri.gguf.save(path, { { key = "general.architecture", type = "text", value = "none" },
    table.unpack(values) }, {}))
  return path, assert(peri.tokenizer.load(path))
end

local function value_of(values, key)
  for _, v in ipairs(values) do if v.key == "tokenizer.ggml." .. key then return v.value end end
end

local function assert_same(a, b, what)
  lu.assertNil(same_ids.report(a, b), what)
  for _, role in ipairs { "bos", "eos", "pad", "mask" } do
    local words = a.cls and (role == "bos" or role == "eos") -- llama.cpp's names for [CLS] and [SEP]
    if a[role] and not words then lu.assertEquals(b[role], a[role], what .. ": " .. role) end
  end
end

-- Folder -> GGUF -> folder, without a loss.
local function there_and_back(folder, what, config)
  local values, losses = to_gguf.values(folder, config or {})
  lu.assertNotNil(values, ("%s: %s"):format(what, tostring(losses)))
  lu.assertEquals(losses, {}, what)
  local a = assert(peri.tokenizer.load(folder))
  local path, b = gguf_of(values)
  assert_same(a, b, what)
  local text, settings, lost = to_json.json(path)
  lu.assertNotNil(text, ("%s: %s"):format(what, tostring(settings)))
  lu.assertEquals(lost, {}, what)
  peri.files.remove_tree(dir .. "/back")
  assert(peri.files.make_folder(dir .. "/back"))
  assert(to_json.write(dir .. "/back", text, settings))
  assert_same(a, assert(peri.tokenizer.load(dir .. "/back")), what .. " and back")
  return values
end

-- A folder with tokenizer.json of a small vocabulary, changed, and a config.
local function folder_of(base, change, config)
  local json, folder = read_json(DATA .. base .. ".json"), dir .. "/folder"
  if change then change(json) end
  peri.files.remove_tree(folder)
  write(folder, "tokenizer.json", json)
  if config then write(folder, "tokenizer_config.json", config) end
  return folder
end

local function array(list) return peri.json.array(list) end
local function plain_bytes(json) -- GPT-2's way
  json.pre_tokenizer.add_prefix_space = false
  local kept = {}
  for _, a in ipairs(json.added_tokens) do if a.id == 0 then kept[1] = a end end
  json.added_tokens = array(kept)
end
local function gemma(json)
  json.normalizer = { type = "Replace", pattern = { String = " " }, content = "▁" }
  json.pre_tokenizer = { type = "Split", pattern = { String = " " }, behavior = "MergedWithPrevious", invert = false }
end
local function metaspace(scheme)
  return { type = "Metaspace", replacement = "▁", prepend_scheme = scheme, split = true }
end
local function t5(json)
  json.normalizer = { type = "Replace", pattern = { Regex = " {2,}" }, content = " " }
  json.pre_tokenizer = { type = "Sequence", pretokenizers = array { { type = "WhitespaceSplit" }, metaspace "always" } }
end
local BERT = { unk_token = "[UNK]", cls_token = "[CLS]", sep_token = "[SEP]", pad_token = "[PAD]", mask_token = "[MASK]" }
local LLAMA = { bos_token = "<s>", eos_token = "</s>", unk_token = "<unk>" }

-- Vocabularies from before tokenizer.json, and SentencePiece's own.
function T.test_older_files_keep_their_ids()
  local folder = dir .. "/folder"
  local function fresh(files)
    peri.files.remove_tree(folder)
    for name, value in pairs(files) do write(folder, name, value) end
    return folder
  end
  local json = read_json(DATA .. "bytelevel.json")
  plain_bytes(json)
  local merges = { "#version: 0.2" }
  for i, merge in ipairs(json.model.merges) do
    merges[i + 1] = type(merge) == "table" and table.concat(merge, " ") or merge
  end
  local pair = { ["vocab.json"] = json.model.vocab, ["merges.txt"] = table.concat(merges, "\n") .. "\n" }
  local values = there_and_back(fresh(pair), "vocab.json and merges.txt")
  lu.assertEquals({ value_of(values, "model"), value_of(values, "pre") }, { "gpt2", "gpt-2" })
  pair["tokenizer_config.json"] = { tokenizer_class = "Qwen2Tokenizer", eos_token = null }
  lu.assertEquals(value_of(there_and_back(fresh(pair), "Qwen 2's pair"), "pre"), "qwen2")
  local words = {}
  for word, id in pairs(read_json(DATA .. "wordpiece.json").model.vocab) do words[id + 1] = word end
  words = table.concat(words, "\n") .. "\n"
  values = there_and_back(fresh { ["vocab.txt"] = words }, "vocab.txt")
  lu.assertEquals({ value_of(values, "model"), value_of(values, "pre") }, { "bert", "jina-v2-en" })
  local _, losses = to_gguf.values(fresh { ["vocab.txt"] = words,
    ["tokenizer_config.json"] = { tokenizer_class = "BertTokenizer", do_basic_tokenize = false } }, {})
  lu.assertStrContains(table.concat(losses, "; "), "do_basic_tokenize = false")
  for _, name in ipairs { "bpe_plain", "bpe_bare", "bpe_user", "unigram_plain", "unigram_bare", "unigram_user" } do
    local model = assert(peri.files.read(DATA .. "sentencepiece/" .. name .. ".model"))
    local lost
    values, lost = to_gguf.values(fresh { ["tokenizer.model"] = model }, {})
    lu.assertNotNil(values, name)
    local tok, _, back = assert(peri.tokenizer.load(folder)), gguf_of(values)
    if #lost == 0 then assert_same(tok, back, name)
    else lu.assertStrContains(table.concat(lost, "; "), " of ", name) end
    lu.assertEquals(value_of(values, "model"), name:find "^bpe" and "llama" or "t5")
  end
end

function T.test_templates_by_name_come_back()
  local templates = array { { name = "default", template = "{{ 1 }}" }, { name = "tool_use", template = "{{ 2 }}" },
    { name = "rag", template = "{{ 3 }}" } }
  local folder = folder_of("bytelevel", plain_bytes, { chat_template = templates })
  there_and_back(folder, "templates")
  local back = read_json(dir .. "/back/tokenizer_config.json").chat_template
  local found = {}
  for _, t in ipairs(back) do found[t.name] = t.template end
  lu.assertEquals(found, { default = "{{ 1 }}", tool_use = "{{ 2 }}", rag = "{{ 3 }}" })
end

function T.test_a_vocabulary_shorter_than_the_model_is_filled_up()
  local folder = folder_of("bytelevel", plain_bytes)
  local n = assert(peri.tokenizer.load(folder)).size
  local values, losses = to_gguf.values(folder, { vocab_size = n + 3 })
  lu.assertEquals(losses, {})
  local tokens = value_of(values, "tokens")
  lu.assertEquals({ #tokens, tokens[n + 1], tokens[n + 3] }, { n + 3, ("[PAD%d]"):format(n), ("[PAD%d]"):format(n + 2) })
end

-- Whatever a tokenizer was read from, the folder that it saves has its ids.
function T.test_a_tokenizer_saves_itself_from_every_source()
  local function saved(tok, what)
    peri.files.remove_tree(dir .. "/saved")
    assert(tok:save(dir .. "/saved"))
    assert_same(tok, assert(peri.tokenizer.load(dir .. "/saved")), what)
  end
  for _, base in ipairs { "llama", "wordpiece", "unigram_bytes" } do
    write(dir .. "/j", "tokenizer.json", assert(peri.files.read(DATA .. base .. ".json")))
    saved(assert(peri.tokenizer.load(dir .. "/j/tokenizer.json")), base)
    saved(assert(peri.tokenizer.parse(assert(peri.files.read(DATA .. base .. ".json")))), base .. ", parsed")
    saved(assert(peri.tokenizer.load(folder_of(base))), base .. ", a folder")
  end
  local values = assert(to_gguf.values(folder_of("llama", nil, LLAMA), {}))
  saved(select(2, gguf_of(values)), "GGUF")
  write(dir .. "/sp", "tokenizer.model", assert(peri.files.read(DATA .. "sentencepiece/bpe_plain.model")))
  saved(assert(peri.tokenizer.load(dir .. "/sp/tokenizer.model")), "SentencePiece")
  local tok = assert(peri.tokenizer.load(DATA .. "sentencepiece/bpe_plain.model"))
  local ok, message = tok:save(dir .. "/none") -- its name says nothing to others
  lu.assertNil(ok)
  lu.assertStrContains(message, "bpe_plain.model is not written as a folder")
end

function T.test_folders_that_gguf_can_hold_keep_their_ids()
  there_and_back(folder_of("bytelevel", plain_bytes), "GPT-2")
  there_and_back(folder_of("bytelevel", function(json)
    plain_bytes(json)
    json.normalizer = { type = "NFC" }
  end), "NFC")
  local values = there_and_back(folder_of("llama", nil, LLAMA), "Llama 2")
  lu.assertEquals({ value_of(values, "add_space_prefix"), value_of(values, "add_bos_token"),
    value_of(values, "add_eos_token") }, { true, true, false })
  values = there_and_back(folder_of("llama", gemma, LLAMA), "Gemma 2")
  lu.assertEquals(value_of(values, "add_space_prefix"), false)
  values = there_and_back(folder_of("wordpiece", nil, BERT), "BERT")
  lu.assertNil(value_of(values, "add_bos_token"))
  lu.assertEquals({ value_of(values, "normalizer.lowercase"), value_of(values, "bos_token_id") }, { true, 2 })
  values = there_and_back(folder_of("wordpiece", function(json)
    json.normalizer.lowercase, json.normalizer.strip_accents = false, true
  end, BERT), "a BERT with cases")
  lu.assertEquals({ value_of(values, "normalizer.lowercase"), value_of(values, "normalizer.strip_accents") },
    { false, true })
  values = there_and_back(folder_of("wordpiece", nil, { tokenizer_class = "DistilBertTokenizer", do_lower_case = false }),
    "DistilBERT")
  lu.assertEquals(value_of(values, "normalizer.lowercase"), false)
end

function T.test_t5_keeps_its_ids()
  local folder = dir .. "/t5"
  for _, name in ipairs { "unigram_plain", "unigram_bare" } do
    peri.files.remove_tree(folder)
    write(folder, "spiece.model", assert(peri.files.read(DATA .. "sentencepiece/" .. name .. ".model")))
    local values = there_and_back(folder, name)
    lu.assertEquals({ value_of(values, "model"), value_of(values, "remove_extra_whitespaces"),
      value_of(values, "add_space_prefix") }, { "t5", name == "unigram_plain", name == "unigram_plain" })
  end
  peri.files.remove_tree(folder)
  write(folder, "spiece.model", assert(peri.files.read(DATA .. "sentencepiece/unigram_plain.model")))
  write(folder, "tokenizer_config.json", { tokenizer_class = "T5Tokenizer", extra_ids = 5 })
  there_and_back(folder, "T5 with extra ids")
  -- With a table of characters, as T5 has one: its bytes are in the file.
  local values, losses = to_gguf.values(folder_of("unigram", function(json)
    t5(json)
    local model = require("perilune.weights.gguf.sentencepiece").read(
      assert(peri.files.read(DATA .. "sentencepiece/unigram_rules.model")))
    local encoded = require("perilune.base64").encode(model.charsmap)
    json.normalizer = { type = "Sequence", normalizers = array { { type = "Precompiled", precompiled_charsmap = encoded },
      json.normalizer } }
  end), {})
  lu.assertTrue(#value_of(values, "precompiled_charsmap") > 100)
  -- The reference looks up whole graphemes and splits at every kind of white space: that is said.
  for _, what in ipairs(losses) do lu.assertStrContains(what, "texts get other ids") end
end

function T.test_a_llama3_without_bos_says_so()
  local function llama3(json)
    plain_bytes(json)
    json.pre_tokenizer = pre_names.json(pre_names.entry "llama-bpe")
    json.model.ignore_merges = true
  end
  local values = there_and_back(folder_of("bytelevel", llama3, { bos_token = "<|endoftext|>" }), "without bos")
  lu.assertEquals({ value_of(values, "pre"), value_of(values, "add_bos_token"), value_of(values, "ignore_merges") },
    { "llama-bpe", false })
  values = there_and_back(folder_of("bytelevel", function(json)
    llama3(json)
    json.post_processor = { type = "TemplateProcessing",
      single = array { { SpecialToken = { id = "<|endoftext|>", type_id = 0 } }, { Sequence = { id = "A", type_id = 0 } } },
      pair = array { { Sequence = { id = "A", type_id = 0 } }, { Sequence = { id = "B", type_id = 0 } } },
      special_tokens = { ["<|endoftext|>"] = { id = "<|endoftext|>", ids = array { 0 }, tokens = array { "<|endoftext|>" } } } }
  end), "with bos, whatever the config says")
  lu.assertEquals({ value_of(values, "add_bos_token"), value_of(values, "bos_token_id") }, { true, 0 })
  values = there_and_back(folder_of("bytelevel", function(json)
    llama3(json)
    json.model.ignore_merges = false
  end), "the same patterns with merges")
  lu.assertEquals(value_of(values, "pre"), "dbrx")
  values = there_and_back(folder_of("bytelevel", function(json)
    plain_bytes(json)
    json.model.ignore_merges = true
  end), "ignore_merges without a name")
  lu.assertEquals({ value_of(values, "pre"), value_of(values, "ignore_merges") }, { "gpt-2", true })
end

function T.test_what_gguf_cannot_hold_is_named()
  local function loses(part, folder)
    local values, losses = to_gguf.values(folder, {})
    lu.assertNotNil(values, tostring(losses))
    lu.assertStrContains(table.concat(losses, "\n"), part)
  end
  local function bytes_with(key, value)
    return folder_of("bytelevel", function(json)
      plain_bytes(json)
      json[key] = value
    end)
  end
  loses("normalizer Lowercase", bytes_with("normalizer", { type = "Sequence", normalizers = array { { type = "NFC" },
    { type = "Lowercase" } } }))
  loses('normalizer Replace ("x")', bytes_with("normalizer", { type = "Replace", pattern = { String = "x" }, content = "y" }))
  loses("add_prefix_space", bytes_with("pre_tokenizer", { type = "ByteLevel", add_prefix_space = true, use_regex = true,
    trim_offsets = true }))
  loses("which the post_processor puts before a text", bytes_with("post_processor", { type = "TemplateProcessing",
    single = array { { SpecialToken = { id = "x", type_id = 0 } }, { Sequence = { id = "A", type_id = 0 } } },
    pair = array { { Sequence = { id = "A", type_id = 0 } }, { Sequence = { id = "B", type_id = 0 } } },
    special_tokens = { x = { id = "x", ids = array { 7, 8 }, tokens = array { "x", "y" } } } }))
  loses("texts get other ids", folder_of "bytelevel") -- added tokens that take in spaces, that stand alone
  loses("normalizer NFKC", folder_of "unigram")
  loses("byte_fallback", folder_of "unigram_bytes")
  loses("handle_chinese_chars", folder_of("wordpiece", function(json) json.normalizer.handle_chinese_chars = false end, BERT))
  loses("pre_tokenizer Whitespace", folder_of("wordpiece", function(json) json.pre_tokenizer = { type = "Whitespace" } end, BERT))
  loses("what the post_processor puts around", folder_of("wordpiece", function(json) json.post_processor = null end, BERT))
  loses("normalizer Lowercase", folder_of("llama", function(json) json.normalizer = { type = "Lowercase" } end, LLAMA))
  local _, losses = to_gguf.values(folder_of("bytelevel", plain_bytes), { vocab_size = 100 })
  lu.assertStrContains(losses[1], "tokens from id 100 on")
  for name, part in pairs { wordlevel = "WordLevel model", prefix = "BPE model of this kind" } do
    local values, message = to_gguf.values(folder_of(name), {})
    lu.assertNil(values)
    lu.assertStrContains(message, part)
  end
  local values, message = to_gguf.values(bytes_with("pre_tokenizer", { type = "Sequence", pretokenizers = array {
    { type = "Split", pattern = { Regex = "x+" }, behavior = "Isolated", invert = false },
    { type = "ByteLevel", add_prefix_space = false, use_regex = false, trim_offsets = true } } }), {})
  lu.assertNil(values)
  lu.assertStrContains(message, "no name of tokenizer.ggml.pre is known")
end

function T.test_every_name_of_a_pre_tokenizer_comes_into_a_folder_and_out_of_it()
  local folder = folder_of("bytelevel", plain_bytes)
  local small = assert(to_gguf.values(folder, {}))
  local count = 0
  for _, entry in ipairs(peri._tokenizer.pre_names()) do
    count = count + 1
    local values = {}
    for i, v in ipairs(small) do values[i] = v end
    values[#values + 1] = { key = "tokenizer.ggml.bos_token_id", type = "u32", value = 0 }
    for i, v in ipairs(values) do
      if v.key == "tokenizer.ggml.pre" then values[i] = { key = v.key, type = "text", value = entry.name } end
      if v.key == "tokenizer.ggml.add_bos_token" then values[i] = { key = "x.y", type = "u32", value = 1 } end
    end
    local path, a = gguf_of(values, "pre")
    local text, settings, losses = to_json.json(path)
    lu.assertNotNil(text, entry.name .. ": " .. tostring(settings))
    lu.assertEquals(losses, {}, entry.name)
    local back = assert(peri.tokenizer.parse(text))
    lu.assertNil(same_ids.report(a, back), entry.name)
    if entry.byte_level then -- those of pieces of SentencePiece go to GGUF under its own kind
      peri.files.remove_tree(dir .. "/named")
      write(dir .. "/named", "tokenizer.json", text)
      local again, lost = to_gguf.values(dir .. "/named", {})
      lu.assertNotNil(again, entry.name .. ": " .. tostring(lost))
      lu.assertEquals(lost, {}, entry.name)
    end
  end
  lu.assertTrue(count > 80)
end

function T.test_gemma_4_is_read_as_llama_cpp_reads_it()
  local tokens = { "<pad>", "<bos>", "<eos>", "▁", "a", "b", "ab", "\n", "\n\n", "\n\n\n", "▁a" }
  local types = { 3, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1 }
  for byte = 0, 255 do
    tokens[#tokens + 1], types[#types + 1] = ("<0x%02X>"):format(byte), 6
  end
  local function file(model, more)
    local values = { { key = "tokenizer.ggml.model", type = "text", value = model },
      { key = "tokenizer.ggml.tokens", type = "text", value = tokens },
      { key = "tokenizer.ggml.token_type", type = "i32", value = types },
      { key = "tokenizer.ggml.merges", type = "text", value = { "a b", "▁ a" } },
      { key = "tokenizer.ggml.bos_token_id", type = "u32", value = 1 },
      { key = "tokenizer.ggml.eos_token_id", type = "u32", value = 2 } }
    for _, v in ipairs(more or {}) do values[#values + 1] = v end
    local path = dir .. "/g.gguf"
    assert(peri.gguf.save(path, { { key = "general.architecture", type = "text", value = "gemma4" },
      table.unpack(values) }, {}))
    return path
  end
  -- bos always; no space before a text; a run of line feeds that is a token is that token, without merges;
  -- characters that are no tokens are bytes.
  local path = file("gemma4", { { key = "tokenizer.ggml.add_bos_token", type = "bool", value = false },
    { key = "tokenizer.ggml.pre", type = "text", value = "default" } })
  local tok = assert(peri.tokenizer.load(path))
  lu.assertEquals(tok:encode "ab a\n\n\nb", { 1, 6, 10, 9, 5 })
  lu.assertEquals(tok:encode "\n\n\n\né", { 1, 7, 7, 7, 7, 11 + 0xC3, 11 + 0xA9 })
  lu.assertEquals(tok:decode(tok:encode "ab  a\n\n\né"), "ab  a\n\n\né")
  for _, name in ipairs { "rwkv", "plamo2", "hybriddna", "whitespace", "gemma5" } do
    local none, message = peri.tokenizer.load(file(name))
    lu.assertNil(none)
    lu.assertStrContains(message, ('tokenizer.ggml.model "%s" is not supported'):format(name))
  end
  local none, message = peri.tokenizer.load(file "no_vocab")
  lu.assertNil(none)
  lu.assertStrContains(message, "has no vocabulary")
end

function T.test_words_have_their_cls_and_sep_whatever_the_file_says()
  local values = assert(to_gguf.values(folder_of("wordpiece", nil, BERT), {}))
  values[#values + 1] = { key = "tokenizer.ggml.add_bos_token", type = "bool", value = false }
  values[#values + 1] = { key = "tokenizer.ggml.add_eos_token", type = "bool", value = false }
  local _, tok = gguf_of(values)
  lu.assertEquals(tok:encode "", { 2, 3 })
end

-- ---- published vocabularies, where they are ----

for _, name in ipairs { "llama-spm", "phi-3", "gpt-2", "deepseek-llm", "bert-bge" } do
  T["test_" .. name:gsub("-", "_") .. "_comes_into_a_folder_as_it_is"] = function()
    local path = shared.need("data/gguf_vocabs/ggml-vocab-" .. name .. ".gguf")
    local tok = assert(peri.tokenizer.load(path))
    assert(tok:save(dir .. "/saved"))
    local back = assert(peri.tokenizer.load(dir .. "/saved"))
    assert_same(tok, back, name)
    local values, losses = to_gguf.values(dir .. "/saved", {}, name) -- llama.cpp goes by Phi-3's name
    lu.assertNotNil(values, tostring(losses))
    lu.assertEquals(losses, {}, name)
  end
end

for _, name in ipairs { "qwen3", "deepseek_v3", "gpt2", "llama2" } do
  T["test_" .. name .. "_comes_into_a_gguf_file_as_it_is"] = function()
    there_and_back(shared.need("data/tokenizers/" .. name), name)
  end
end

return T
