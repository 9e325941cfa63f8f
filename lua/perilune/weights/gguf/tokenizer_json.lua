-- tokenizer_json.lua - the tokenizer of a GGUF file as tokenizer.json and tokenizer_config.json of a Hugging Face
-- folder. The folder does what the file does as llama.cpp reads it, no more: a vocabulary of Qwen 2 gets the
-- normaliser NFC only where the file says so (tokenizer.ggml.normalizer.nfc).
local peri = require "perilune"
local tokenizers = require "perilune.text.tokenizer"
local base64 = require "perilune.base64"
local pre_names = require "perilune.weights.gguf.pre"
local same_ids = require "perilune.weights.gguf.same_ids"

local M = {}

-- ORDER ggml token type: runtime/text/tokenizer_gguf.c
local NORMAL, UNKNOWN, CONTROL, UNUSED, BYTE = 1, 2, 3, 5, 6
local SPACE = "\u{2581}"
local null = peri.json.null

local function array(list) return peri.json.array(list) end
local function sequence(list, key)
  if #list == 0 then return null end
  return #list == 1 and list[1] or { type = "Sequence", [key] = array(list) }
end
local function replace(pattern, content, regex)
  return { type = "Replace", pattern = regex and { Regex = pattern } or { String = pattern }, content = content }
end
local escape_spaces = replace(" ", SPACE)
local byte_level = { type = "ByteLevel", add_prefix_space = true, trim_offsets = false, use_regex = true }

-- Spaces from U+2581, bytes from <0x..>; strip: the text's first space goes.
local function pieces_decoder(strip)
  local list = { replace(SPACE, " "), { type = "ByteFallback" }, { type = "Fuse" } }
  if strip then list[#list + 1] = { type = "Strip", content = " ", start = 1, stop = 0 } end
  return sequence(list, "decoders")
end

-- ---- kinds: the model, what comes before it, the decoder -----------------------------------------

local kinds = {}

function kinds.gpt2(v)
  local name = v.model == "gemma4" and "gemma4" or v.get "pre" or "default"
  local entry = pre_names.entry(name)
  if not entry then return nil, ("pre-tokenizer %q is not known"):format(tostring(name)) end
  local merges, pairs_of = v.list "merges", {}
  if not merges then return nil, "tokenizer.ggml.merges is missing" end
  local seen = {}
  for i, merge in ipairs(merges) do
    local a, b = merge:match "^(.[^ ]*) (.+)$"
    if not a then return nil, ("merge %d is no pair: %q"):format(i, merge) end
    -- What leads into or out of no token never shows in a result.
    if v.ids[a] and v.ids[b] and v.ids[a .. b] and not seen[merge] then
      pairs_of[#pairs_of + 1], seen[merge] = array { a, b }, true
    end
  end
  local whole = v.get "ignore_merges"
  if whole == nil then whole = entry.ignore_merges end
  local normalizers = {}
  if v.get "normalizer.nfc" then normalizers[1] = { type = "NFC" } end
  if entry.escape_spaces then normalizers[#normalizers + 1] = escape_spaces end
  local vocab = {}
  for text, id in pairs(v.ids) do if v.types[id + 1] ~= UNUSED then vocab[text] = id end end
  return {
    normalizer = sequence(normalizers, "normalizers"), pre_tokenizer = pre_names.json(entry),
    decoder = entry.byte_level and byte_level or pieces_decoder(false),
    model = { type = "BPE", dropout = null, unk_token = null, continuing_subword_prefix = "", end_of_word_suffix = "",
      fuse_unk = false, byte_fallback = not entry.byte_level, ignore_merges = whole, vocab = vocab,
      merges = array(pairs_of) },
  }
end

-- Where a text may be cut in two: byte offsets of its characters but the first.
local function cuts(text)
  local out = {}
  for at in utf8.codes(text, true) do if at > 1 then out[#out + 1] = at end end
  return out
end

-- Merges in the order in which SentencePiece goes by scores: those of better tokens first, of equal ones the
-- longer halves (convert_slow_tokenizer.py of transformers).
local function merges_by_scores(v)
  local list, odd = {}, nil
  for id, text in ipairs(v.tokens) do
    id = id - 1
    if v.ids[text] == id and utf8.len(text, 1, -1, true) then
      local any, single = false, false
      for _, at in ipairs(cuts(text)) do
        local a, b = text:sub(1, at - 1), text:sub(at)
        if v.ids[a] and v.ids[b] then
          any = true
          list[#list + 1] = { a, b, v.scores[id + 1] or 0.0, #list }
        end
        single = single or (v.ids[a] or #cuts(a) == 0) and (v.ids[b] or #cuts(b) == 0)
      end
      if not any and single and v.types[id + 1] == NORMAL then odd = odd or text end
    end
  end
  table.sort(list, function(x, y)
    if x[3] ~= y[3] then return x[3] > y[3] end
    if #x[1] ~= #y[1] then return #x[1] > #y[1] end
    if #x[2] ~= #y[2] then return #x[2] > #y[2] end
    return x[4] < y[4]
  end)
  local out = {}
  for i, m in ipairs(list) do out[i] = array { m[1], m[2] } end
  return out, odd
end

function kinds.llama(v)
  if not v.scores then return nil, "tokenizer.ggml.scores is missing" end
  local merges, odd = merges_by_scores(v)
  if odd then v.lose(("token %q, which is merged of characters that are no tokens"):format(odd)) end
  local prefix = v.get "add_space_prefix" ~= false
  return {
    normalizer = prefix and { type = "Sequence", normalizers = array { { type = "Prepend", prepend = SPACE },
      escape_spaces } } or escape_spaces,
    pre_tokenizer = null, decoder = pieces_decoder(prefix),
    model = { type = "BPE", dropout = null, unk_token = v.unk and v.tokens[v.unk + 1] or null,
      continuing_subword_prefix = null, end_of_word_suffix = null, fuse_unk = false, byte_fallback = true,
      ignore_merges = false, vocab = v.ids, merges = array(merges) },
  }
end

function kinds.t5(v)
  if not v.scores then return nil, "tokenizer.ggml.scores is missing" end
  local prefix, merge = v.get "add_space_prefix" == true, v.get "remove_extra_whitespaces" == true
  local normalizers, map = {}, v.list "precompiled_charsmap"
  if map and #map > 0 then
    local bytes = {}
    for i, byte in ipairs(map) do bytes[i] = string.char(byte & 255) end
    normalizers[1] = { type = "Precompiled", precompiled_charsmap = base64.encode(table.concat(bytes)) }
  end
  if merge then -- one space before each word, none behind the last
    normalizers[#normalizers + 1] = replace("\\A +| +\\z", "", true)
    normalizers[#normalizers + 1] = replace(" +", SPACE, true)
    normalizers[#normalizers + 1] = { type = "Prepend", prepend = SPACE }
  else
    if prefix then normalizers[#normalizers + 1] = { type = "Prepend", prepend = SPACE } end
    normalizers[#normalizers + 1] = escape_spaces
  end
  local vocab = {}
  for i, text in ipairs(v.tokens) do
    -- What texts do not have is never the best way. (Users' tokens are found before.)
    local never = v.types[i] == CONTROL or v.types[i] == BYTE
    vocab[i] = array { text, never and -1e9 or v.scores[i] or 0.0 }
  end
  return {
    normalizer = sequence(normalizers, "normalizers"), pre_tokenizer = null, decoder = pieces_decoder(prefix or merge),
    model = { type = "Unigram", unk_id = v.unk or null, vocab = array(vocab), byte_fallback = false },
  }
end

function kinds.bert(v)
  local lower = v.get "normalizer.lowercase"
  if lower == nil then lower = true end
  local accents, vocab = v.get "normalizer.strip_accents", {}
  if accents == nil then accents = lower end
  local function word(text, kind)
    if kind == CONTROL or kind == UNUSED then return text end
    return text:find("^" .. SPACE) and text:sub(#SPACE + 1) or "##" .. text
  end
  for text, id in pairs(v.ids) do
    local said = word(text, v.types[id + 1])
    if vocab[said] then
      v.lose(("tokens %d and %d, which are both %q in a vocabulary of words"):format(vocab[said], id, said))
    end
    vocab[said] = id
  end
  return {
    normalizer = { type = "BertNormalizer", clean_text = true, handle_chinese_chars = true, strip_accents = accents,
      lowercase = lower },
    pre_tokenizer = { type = "BertPreTokenizer" },
    decoder = { type = "WordPiece", prefix = "##", cleanup = true },
    model = { type = "WordPiece", unk_token = v.unk and word(v.tokens[v.unk + 1], v.types[v.unk + 1]) or "[UNK]",
      continuing_subword_prefix = "##", max_input_chars_per_word = 1000000, vocab = vocab },
  }
end
kinds.gemma4 = kinds.gpt2

-- ---- around the model ----------------------------------------------------------------------------

-- A TemplateProcessing that puts tokens before and behind a text, or null.
local function template(v, before, behind)
  if not before and not behind then return nil end
  local single, pair, specials = {}, {}, {}
  local function put(list, id, type_id)
    if not id then return end
    local text = v.tok:token(id)
    specials[text] = { id = text, ids = array { id }, tokens = array { text } }
    list[#list + 1] = { SpecialToken = { id = text, type_id = type_id } }
  end
  local function text(list, name, type_id) list[#list + 1] = { Sequence = { id = name, type_id = type_id } } end
  local words = v.model == "bert" -- [CLS] A [SEP] B [SEP]
  put(single, before, 0)
  text(single, "A", 0)
  put(single, behind, 0)
  table.move(single, 1, #single, 1, pair)
  if not words then put(pair, before, 1) end
  text(pair, "B", 1)
  put(pair, behind, 1)
  return { type = "TemplateProcessing", single = array(single), pair = array(pair), special_tokens = specials }
end

-- Ids of the first and the last special token of a text.
local function around(tok)
  local whole, plain = tok:encode "a", tok:encode("a", { add_special = false })
  local before = #whole > #plain and whole[1] ~= plain[1] and whole[1] or nil
  local behind = #whole - #plain > (before and 1 or 0) and whole[#whole] or nil
  return before, behind
end

--- tokenizer.json and tokenizer_config.json of a GGUF file, compared with the file's own ids.
--- @param path string
--- @return string|nil tokenizer  the text of tokenizer.json
--- @return table|string config, or a message
--- @return string[]? losses  what the folder does not do as the file, by name
function M.json(path)
  local file, err = peri.gguf.open(path)
  if not file then return nil, err end
  local tok, message = tokenizers.load(path)
  if not tok then return nil, message end
  local model, losses = file:get "tokenizer.ggml.model", {}
  local kind = kinds[model]
  if not kind then return nil, ("a tokenizer of kind %q has no form as tokenizer.json here"):format(tostring(model)) end
  local v = { model = model, tok = tok, ids = {} }
  function v.get(key)
    local value = file:get("tokenizer.ggml." .. key)
    if type(value) ~= "table" then return value end
  end
  function v.list(key)
    local value = file:get("tokenizer.ggml." .. key)
    return type(value) == "table" and value or nil
  end
  function v.lose(what) losses[#losses + 1] = what end
  v.tokens, v.types, v.scores = v.list "tokens", v.list "token_type" or {}, v.list "scores"
  for i, text in ipairs(v.tokens) do v.ids[text] = i - 1 end -- of equal texts the last, as the reader has it
  v.unk = tok.unk
  for i, t in ipairs(v.types) do if t == UNKNOWN then v.unk = v.unk or i - 1 end end
  local json, why = kind(v)
  if not json then return nil, why end
  local added = tok._c:added()
  table.sort(added, function(a, b) return a.id < b.id end)
  local bytes = tok._c:describe().byte_level
  local post = template(v, around(tok))
  json.version, json.truncation, json.padding, json.added_tokens = "1.0", null, null, array(added)
  json.post_processor = post and bytes and { type = "Sequence", processors = array { byte_level, post } } or post
    or bytes and byte_level or null
  local arch = tostring(file:get "general.architecture")
  local config = { tokenizer_class = "PreTrainedTokenizerFast", clean_up_tokenization_spaces = false,
    model_max_length = file:get(arch .. ".context_length"), chat_template = tok.chat_template }
  for name, text in pairs(tok.special_tokens) do config[name] = text end
  if model == "bert" then config.bos_token, config.eos_token = nil, nil end
  local names = file:get "tokenizer.chat_templates"
  if type(names) == "table" and #names > 0 then
    local list = { { name = "default", template = tok.chat_template } }
    for _, name in ipairs(names) do
      list[#list + 1] = { name = name, template = file:get("tokenizer.chat_template." .. name) }
    end
    config.chat_template = array(list)
  end
  local text = peri.json.encode(json)
  local back, wrong = tokenizers.parse(text)
  if not back then return nil, wrong end
  losses[#losses + 1] = same_ids.report(tok, back)
  return text, config, losses
end

--- Write both into a folder that is there.
--- @param folder string
--- @param text string  of json
--- @param config table
--- @return boolean|nil ok
--- @return string? message
function M.write(folder, text, config)
  local ok, err = peri.files.write(folder .. "/tokenizer.json", text)
  if not ok then return nil, err end
  return peri.files.write(folder .. "/tokenizer_config.json", peri.json.encode(config, { indent = 2 }) .. "\n")
end

return M
