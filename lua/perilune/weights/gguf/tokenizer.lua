-- tokenizer.lua - tokenizers of Hugging Face folders as values of a GGUF file, with llama.cpp's meaning of every key
-- (conversion/base.py and gguf-py/gguf/vocab.py of llama.cpp). What the keys cannot say is a loss, by name.
-- tokenizer_json.lua is the way back.
local peri = require "perilune"
local foreign = require "perilune.foreign"
local tokenizers = require "perilune.text.tokenizer"
local base64 = require "perilune.base64"
local pre_names = require "perilune.weights.gguf.pre"
local same_ids = require "perilune.weights.gguf.same_ids"
local sentencepiece = require "perilune.weights.gguf.sentencepiece"

local M = {}

-- ORDER ggml token type: runtime/text/tokenizer_gguf.c
local NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
local SPACE = "\u{2581}"

local function is_table(v) return type(v) == "table" and v ~= peri.json.null end

-- ---- the vocabulary as GGUF has it ---------------------------------------------------------------

-- Texts and types by id (from 1): every token has one, so that ids stay what they are.
local function vocabulary(b)
  local tok, tokens, types = b.tok, {}, {}
  local bytes = b.kind ~= "bert" and not b.byte_level
  for id = 0, tok.size - 1 do
    local text = tok:token(id)
    if text then
      tokens[id + 1] = text
      types[id + 1] = b.types and b.types[id + 1] or bytes and text:find "^<0x%x%x>$" and BYTE
        or id == b.unk and b.kind ~= "bert" and b.kind ~= "gpt2" and UNKNOWN or NORMAL
    end
  end
  for _, a in ipairs(tok._c:added()) do
    local unknown = types[a.id + 1] == UNKNOWN
    types[a.id + 1] = unknown and UNKNOWN or a.special and CONTROL or USER
  end
  local taken = {}
  for _, text in pairs(tokens) do taken[text] = true end
  local count = math.max(tok.size, b.rows or 0)
  for id = 0, count - 1 do
    if not tokens[id + 1] then
      local text = ("[PAD%d]"):format(id)
      while taken[text] do text = text .. "_" end
      tokens[id + 1], types[id + 1], taken[text] = text, UNUSED, true
    end
  end
  if b.rows and tok.size > b.rows then
    b.lose(("tokens from id %d on: the embedding has %d rows and the tokenizer %d tokens"):format(b.rows, b.rows,
      tok.size))
  end
  return tokens, types
end

local function merges_of(model)
  local out = {}
  for i, m in ipairs(model.merges or {}) do out[i] = type(m) == "table" and m[1] .. " " .. m[2] or m end
  return out
end

-- Scores under which SentencePiece merges in the order of the merges.
local function scores_of_merges(merges, tokens, tok)
  local scores = {}
  for i = 1, #tokens do scores[i] = 0.0 end
  for rank, merge in ipairs(merges) do
    local a, b = merge:match "^(.-) (.+)$"
    local id = a and tok:id(a .. b)
    if id and scores[id + 1] == 0 then scores[id + 1] = -rank + 0.0 end
  end
  return scores
end

-- Words begin with U+2581, what continues one has no ##.
local function phantom(tokens, types)
  local out = {}
  for i, token in ipairs(tokens) do
    if types[i] == CONTROL or types[i] == UNUSED then out[i] = token
    elseif token:find "^##" then out[i] = token:sub(3)
    else out[i] = SPACE .. token end
  end
  return out
end

-- ---- parts of tokenizer.json ---------------------------------------------------------------------

-- A component and those of its sequences, laid flat.
local function flat(component, key, out)
  out = out or {}
  if not is_table(component) then return out end
  if component.type == "Sequence" then
    for _, part in ipairs(component[key] or {}) do flat(part, key, out) end
  else
    out[#out + 1] = component
  end
  return out
end

-- How messages call a component: its type and what tells it from others of the type.
local function called(what, part)
  local detail = ""
  local pattern = is_table(part.pattern) and (part.pattern.Regex or part.pattern.String)
  if pattern then detail = (" (%q)"):format(pattern) end
  if part.prepend then detail = (" (%q)"):format(part.prepend) end
  return ("%s %s%s"):format(what, tostring(part.type), detail)
end

local function escapes_spaces(part)
  return part.type == "Replace" and is_table(part.pattern) and part.pattern.String == " " and part.content == SPACE
end

local function squeezes_spaces(part)
  local regex = part.type == "Replace" and is_table(part.pattern) and part.pattern.Regex
  return regex and (regex == " {2,}" or regex == " +" or regex == "\\s{2,}" or regex == "\\s+")
    and (part.content == " " or part.content == SPACE)
end

local function prepends(metaspace) -- older files say add_prefix_space
  if metaspace.prepend_scheme then return metaspace.prepend_scheme ~= "never" end
  return metaspace.add_prefix_space ~= false
end

-- ---- kinds ---------------------------------------------------------------------------------------

local kinds = {}

-- Byte-level BPE: the pre-tokenizer has a name; normalisers have no key but one that is not llama.cpp's.
function kinds.gpt2(b, json)
  local wholes = json.model.ignore_merges == true
  local entry, err = pre_names.name(is_table(json.pre_tokenizer) and json.pre_tokenizer or {}, wholes)
  if not entry then return err end
  b.put("tokenizer.ggml.pre", "text", entry.name)
  if entry.ignore_merges ~= wholes then
    b.put("tokenizer.ggml.ignore_merges", "bool", wholes)
    b.note(("ignore_merges = %s is written as tokenizer.ggml.ignore_merges, which llama.cpp does not read")
      :format(wholes))
  end
  for _, part in ipairs(flat(json.normalizer, "normalizers")) do
    if part.type == "NFC" then
      b.put("tokenizer.ggml.normalizer.nfc", "bool", true)
      b.note "normalizer NFC is written as tokenizer.ggml.normalizer.nfc, which llama.cpp does not read"
    else
      b.lose(called("normalizer", part))
    end
  end
  if b.tok._c:describe().prefix_space then b.lose "add_prefix_space of the pre_tokenizer ByteLevel" end
  for _, key in ipairs { "continuing_subword_prefix", "end_of_word_suffix" } do
    local v = json.model[key]
    if type(v) == "string" and v ~= "" then b.lose(("%s %q of the model"):format(key, v)) end
  end
end

-- SentencePiece's BPE, told by merges: spaces are U+2581, unknown characters are bytes.
function kinds.llama(b, json)
  local escaped, prefix = false, b.tok._c:describe().prepends
  for _, part in ipairs(flat(json.normalizer, "normalizers")) do
    if escapes_spaces(part) then escaped = true
    elseif not (part.type == "Prepend" and part.prepend == SPACE) then b.lose(called("normalizer", part)) end
  end
  for _, part in ipairs(flat(json.pre_tokenizer, "pretokenizers")) do
    if part.type == "Metaspace" and (part.replacement or SPACE) == SPACE and not escaped then
      escaped, prefix = true, prepends(part)
    elseif not (part.type == "Split" and is_table(part.pattern) and part.pattern.String == " " and escaped) then
      b.lose(called("pre_tokenizer", part))
    end
  end
  if not escaped then b.lose "spaces that stay spaces: vocabularies of this kind write U+2581" end
  b.put("tokenizer.ggml.pre", "text", "default")
  b.put("tokenizer.ggml.add_space_prefix", "bool", prefix)
end

function kinds.t5(b, json)
  local prefix, merge, strip = false, false, false
  for _, part in ipairs(flat(json.normalizer, "normalizers")) do
    local table64 = part.type == "Precompiled" and part.precompiled_charsmap
    if type(table64) == "string" then
      b.charsmap = base64.decode(table64)
      if not b.charsmap then return "precompiled_charsmap is no base64" end
    elseif squeezes_spaces(part) then merge = true
    elseif part.type == "Prepend" and part.prepend == SPACE then prefix = true
    elseif part.type == "Strip" then strip = true
    elseif not escapes_spaces(part) and part.type ~= "Precompiled" then b.lose(called("normalizer", part)) end
  end
  for _, part in ipairs(flat(json.pre_tokenizer, "pretokenizers")) do
    if part.type == "Metaspace" then prefix = prepends(part)
    elseif part.type == "WhitespaceSplit" then merge = true
    else b.lose(called("pre_tokenizer", part)) end
  end
  b.put("tokenizer.ggml.pre", "text", "default")
  b.put("tokenizer.ggml.add_space_prefix", "bool", prefix)
  b.put("tokenizer.ggml.remove_extra_whitespaces", "bool", merge)
  if strip and not merge then b.lose "normalizer Strip" end
  if json.model.byte_fallback == true then b.lose "byte_fallback of a Unigram model" end
end

function kinds.bert(b, json)
  local facts = b.tok._c:describe().bert
  for _, part in ipairs(flat(json.normalizer, "normalizers")) do
    if part.type ~= "BertNormalizer" then b.lose(called("normalizer", part)) end
  end
  for _, part in ipairs(flat(json.pre_tokenizer, "pretokenizers")) do
    if part.type ~= "BertPreTokenizer" then b.lose(called("pre_tokenizer", part)) end
  end
  if not facts then b.lose "a normalizer that is no BertNormalizer"
  elseif not facts.clean_text then b.lose "clean_text = false of the normalizer BertNormalizer"
  elseif not facts.handle_chinese_chars then b.lose "handle_chinese_chars = false of the normalizer BertNormalizer" end
  local prefix = json.model.continuing_subword_prefix
  if type(prefix) == "string" and prefix ~= "##" then b.lose(("continuing_subword_prefix %q"):format(prefix)) end
  b.put("tokenizer.ggml.pre", "text", "jina-v2-en") -- llama.cpp's converter's name for [CLS] text [SEP]
  b.put("tokenizer.ggml.normalizer.lowercase", "bool", facts ~= nil and facts.lowercase)
  b.put("tokenizer.ggml.normalizer.strip_accents", "bool", facts ~= nil and facts.strip_accents)
end

-- ---- files of a vocabulary -----------------------------------------------------------------------

-- tokenizer.json
local function from_json(b, path)
  local json, err = foreign.read(path)
  if not json then return err end
  local model = json.model
  if not is_table(model) or not is_table(model.vocab) then return path .. ": model.vocab is missing" end
  local kind = model.type or model.merges and "BPE" or "WordPiece"
  if kind == "BPE" then b.kind = b.byte_level and "gpt2" or model.byte_fallback == true and "llama" or nil
  elseif kind == "Unigram" then b.kind = not b.byte_level and "t5" or nil
  elseif kind == "WordPiece" then b.kind = not b.byte_level and "bert" or nil end
  if not b.kind then return ("%s: a %s model of this kind has no name in GGUF"):format(path, tostring(kind)) end
  err = kinds[b.kind](b, json)
  if err then return ("%s: %s"):format(path, err) end
  b.merges = merges_of(model)
  if type(model.unk_token) == "string" then b.unk = b.tok:id(model.unk_token) or b.unk end
  if math.type(model.unk_id) == "integer" then b.unk = model.unk_id end
  if b.kind == "t5" then
    b.scores = {}
    for i, pair in ipairs(model.vocab) do b.scores[i] = pair[2] + 0.0 end
  end
end

-- tokenizer.model, spiece.model
local function from_sentencepiece(b, path)
  local bytes, err = peri.files.read(path)
  if not bytes then return err end
  local m = sentencepiece.read(bytes)
  b.kind, b.scores, b.types, b.charsmap = m.unigram and "t5" or "llama", {}, {}, m.charsmap
  for i, piece in ipairs(m.pieces) do b.scores[i], b.types[i] = piece.score, piece.type end
  if not m.escape then b.lose "escape_whitespaces = false of the normalizer_spec" end
  if m.suffix then b.lose "treat_whitespace_as_suffix of the trainer_spec" end
  if not m.unigram then
    local alone = " of the normalizer_spec, which only unigram models have in GGUF"
    if m.charsmap ~= "" then b.lose("precompiled_charsmap" .. alone) end
    if m.merge then b.lose("remove_extra_whitespaces" .. alone) end
  elseif m.byte_fallback then
    b.lose "byte_fallback of a unigram model"
  end
  b.put("tokenizer.ggml.pre", "text", "default")
  b.put("tokenizer.ggml.add_space_prefix", "bool", m.prefix)
  if m.unigram then b.put("tokenizer.ggml.remove_extra_whitespaces", "bool", m.merge) end
end

-- vocab.json + merges.txt: what the class puts around them is known to the tokenizer alone.
local function from_pair(b, path)
  local text, err = peri.files.read(path)
  if not text then return err end
  local config = peri.files.exists(b.folder .. "/tokenizer_config.json") and
    foreign.read(b.folder .. "/tokenizer_config.json") or {}
  local qwen2 = type(config.tokenizer_class) == "string" and config.tokenizer_class:find "^Qwen2Tokenizer"
  local merges = {}
  for line in text:gmatch "[^\r\n]+" do
    if not (#merges == 0 and line:find "^#version") then merges[#merges + 1] = line end
  end
  b.kind, b.merges = "gpt2", merges
  local byte_level = pre_names.json(pre_names.entry(qwen2 and "qwen2" or "gpt-2"))
  return kinds.gpt2(b, { model = {}, pre_tokenizer = byte_level, normalizer = qwen2 and { type = "NFC" } or nil })
end

local function from_words(b)
  b.kind = "bert"
  local json = { model = {} }
  if not b.tok._c:describe().bert then json.normalizer = { type = "do_basic_tokenize = false" } end
  return kinds.bert(b, json)
end

-- In the order in which the tokenizer itself looks for them.
local sources = {
  { "tokenizer.json", from_json }, { "tokenizer.model", from_sentencepiece }, { "spiece.model", from_sentencepiece },
  { "vocab.json", from_pair, "merges.txt" }, { "encoder.json", from_pair, "vocab.bpe" }, { "vocab.txt", from_words },
}

-- ---- what goes around a text ---------------------------------------------------------------------

-- Ids before and behind a text.
local function around(tok)
  local whole, plain = tok:encode "a", tok:encode("a", { add_special = false })
  for at = 0, #whole - #plain do
    local same = true
    for i, id in ipairs(plain) do same = same and whole[at + i] == id end
    if same then
      return table.move(whole, 1, at, 1, {}), table.move(whole, at + #plain + 1, #whole, 1, {})
    end
  end
  return {}, {}
end

local function quoted(tok, ids)
  local out = {}
  for i, id in ipairs(ids) do out[i] = tostring(tok:token(id)) end
  return table.concat(out, " ")
end

local specials = { { "bos", "bos" }, { "eos", "eos" }, { "unk", "unknown" }, { "sep", "seperator" },
  { "pad", "padding" }, { "cls", "cls" }, { "mask", "mask" } }

local function put_specials(b, config)
  local tok, ids = b.tok, {}
  for _, s in ipairs(specials) do
    local fallback = config[s[1] .. "_token_id"]
    if is_table(fallback) then fallback = fallback[1] end
    ids[s[1]] = b[s[1]] or tok[s[1]] or math.type(fallback) == "integer" and fallback or nil
  end
  local before, behind = around(tok)
  if b.kind == "bert" then
    ids.cls, ids.sep = ids.cls or before[1], ids.sep or behind[1]
    ids.bos, ids.eos = ids.cls, nil
    if #before ~= 1 or before[1] ~= ids.cls or #behind ~= 1 or behind[1] ~= ids.sep then
      b.lose(("what the post_processor puts around a text (%s text %s): llama.cpp puts [CLS] and [SEP]")
        :format(quoted(tok, before), quoted(tok, behind)))
    end
  else
    if #before == 1 then ids.bos = ids.bos or before[1] end
    if #behind == 1 then ids.eos = ids.eos or behind[1] end
    for _, side in ipairs { { before, ids.bos, "before", "bos" }, { behind, ids.eos, "behind", "eos" } } do
      local there = #side[1] > 0
      if #side[1] > 1 or there and side[1][1] ~= side[2] then
        b.lose(("%s, which the post_processor puts %s a text"):format(quoted(tok, side[1]), side[3]))
      end
      b.put(("tokenizer.ggml.add_%s_token"):format(side[4]), "bool", there)
    end
  end
  for _, s in ipairs(specials) do
    if ids[s[1]] then b.put(("tokenizer.ggml.%s_token_id"):format(s[2]), "u32", ids[s[1]]) end
  end
end

-- One template, or several by name as tokenizer_config.json lists them.
local function put_templates(b)
  local tok, names = b.tok, {}
  if tok.chat_template then b.put("tokenizer.chat_template", "text", tok.chat_template) end
  local config = peri.files.exists(b.folder .. "/tokenizer_config.json") == "file" and
    foreign.read(b.folder .. "/tokenizer_config.json")
  if not config or not is_table(config.chat_template) or peri.files.exists(b.folder .. "/chat_template.jinja") then
    return
  end
  for _, t in ipairs(config.chat_template) do
    if is_table(t) and type(t.name) == "string" and type(t.template) == "string" and t.name ~= "default" then
      names[#names + 1] = t.name
      b.put("tokenizer.chat_template." .. t.name, "text", t.template)
    end
  end
  if #names > 0 then b.put("tokenizer.chat_templates", "text", names) end
end

-- ---- all of it -----------------------------------------------------------------------------------

-- A file with these values alone, for a tokenizer to read. Its name counts: llama.cpp has rules for Phi-3's.
local function compared(values, tok, name)
  local path = os.tmpname()
  local list = { { key = "general.architecture", type = "text", value = "none" },
    { key = "general.name", type = "text", value = name or "none" } }
  local ok, err = peri.gguf.save(path, table.move(values, 1, #values, 3, list), {})
  local back
  if ok then back, err = tokenizers.load(path) end
  os.remove(path)
  if not back then return nil, "the tokenizer that was written does not load: " .. tostring(err) end
  return true, same_ids.report(tok, back)
end

--- Values {key, type, value} of the tokenizer of a folder, compared with the folder's own ids.
--- @param folder string
--- @param config table  Hugging Face config: vocab_size, type_vocab_size, ids of special tokens
--- @param name string?  general.name of the file
--- @return table[]|nil values
--- @return string[]|string losses  what of the tokenizer the file cannot say, by name; or a message
--- @return string[]? notes  what only this library's reader understands
function M.values(folder, config, name)
  local tok, err = tokenizers.load(folder)
  if not tok then return nil, err end
  local out, losses, notes = {}, {}, {}
  local b = {
    tok = tok, unk = tok.unk, folder = folder, byte_level = tok._c:describe().byte_level, rows = config.vocab_size,
    put = function(key, kind, value) out[#out + 1] = { key = key, type = kind, value = value } end,
    lose = function(what) losses[#losses + 1] = what end,
    note = function(what) notes[#notes + 1] = what end,
  }
  local source
  for _, s in ipairs(sources) do
    if not source and peri.files.exists(folder .. "/" .. s[1]) == "file" then source = s end
  end
  if not source then return nil, folder .. ": its tokenizer has no form in GGUF" end
  err = source[2](b, folder .. "/" .. (source[3] or source[1]))
  if err then return nil, err end
  local tokens, types = vocabulary(b)
  table.insert(out, 1, { key = "tokenizer.ggml.model", type = "text", value = b.kind })
  b.put("tokenizer.ggml.tokens", "text", b.kind == "bert" and phantom(tokens, types) or tokens)
  if b.kind == "llama" and not b.scores then b.scores = scores_of_merges(b.merges, tokens, tok) end
  if b.scores then
    for i = #b.scores + 1, #tokens do b.scores[i] = 0.0 end
    b.put("tokenizer.ggml.scores", "f32", b.scores)
  end
  b.put("tokenizer.ggml.token_type", "i32", types)
  if b.kind == "gpt2" then b.put("tokenizer.ggml.merges", "text", b.merges) end
  if b.kind == "bert" then b.put("tokenizer.ggml.token_type_count", "u32", config.type_vocab_size or 1) end
  if b.charsmap and #b.charsmap > 0 and b.kind == "t5" then
    local bytes = {}
    for i = 1, #b.charsmap do bytes[i] = b.charsmap:byte(i) end
    b.put("tokenizer.ggml.precompiled_charsmap", "u8", bytes)
  end
  put_specials(b, config)
  put_templates(b)
  local ok, report = compared(out, tok, name)
  if not ok then return nil, report end
  losses[#losses + 1] = report
  return out, losses, notes
end

return M
