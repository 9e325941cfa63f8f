-- tokenizer.lua - tokenizers of Hugging Face folders as values of a GGUF file, and byte-level ones back
-- (conversion/base.py and gguf-py/gguf/vocab.py of llama.cpp). Nothing is tokenized here.
local peri = require "perilune"

local M = {}

-- ---- pre-tokenizers ------------------------------------------------------------------------------

local suffix = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
local spaces = "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
local word, signs = "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+", " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
local high, low = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]", "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
local function cased(ending, digits)
  local lead = "[^\\r\\n\\p{L}\\p{N}]?"
  return lead .. high .. "*" .. low .. "+" .. ending .. "|" .. lead .. high .. "+" .. low .. "*" .. ending .. "|"
    .. digits .. "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" .. spaces
end
local deepseek_tail = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
  .. "| ?[\\p{P}\\p{S}]+[\r\n]*|" .. spaces

-- Steps: a string is the pattern of a Split, "digits" single digits, "gpt-2" ByteLevel's own pattern.
local families = {
  { "gpt-2", { gpt2 = true } },
  { "llama-bpe", { suffix .. "|" .. word .. "|\\p{N}{1,3}|" .. signs .. "|" .. spaces } },
  { "qwen2", { suffix .. "|" .. word .. "|\\p{N}|" .. signs .. "|" .. spaces } },
  { "smollm", { digits = true, gpt2 = true } },
  { "deepseek-v3", { "\\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", deepseek_tail } },
  { "gpt-4o", { cased(suffix .. "?", "\\p{N}{1,3}") } },
  { "tekken", { cased("", "\\p{N}") } },
}

-- Other names with the same patterns.
local same = {
  ["phi-2"] = "gpt-2", mpt = "gpt-2", olmo = "gpt-2", jais = "gpt-2", exaone4 = "gpt-2", gigachat = "gpt-2",
  llama3 = "llama-bpe", ["llama-v3"] = "llama-bpe", falcon3 = "llama-bpe", ["smaug-bpe"] = "llama-bpe",
  dbrx = "llama-bpe", ["deepseek-r1-qwen"] = "qwen2", megrez = "qwen2", stablelm2 = "qwen2", hunyuan = "qwen2",
  starcoder = "smollm", refact = "smollm", ["command-r"] = "smollm", codeshell = "smollm", llama4 = "gpt-4o",
}

-- JSON writes a line feed in a class as \n or as the character: both mean the same.
local function plain(pattern) return (pattern:gsub("\\r", "\r"):gsub("\\n", "\n")) end

local function signature(steps)
  local parts = {}
  for i, pattern in ipairs(steps) do parts[i] = plain(pattern) end
  return table.concat(parts, "\0") .. (steps.digits and "\0digits" or "") .. (steps.gpt2 and "\0gpt2" or "")
end

-- What a pre_tokenizer of tokenizer.json does, or nil when it does something else.
local function steps_of(pre)
  local steps, byte_level = {}, false
  for _, p in ipairs(pre.type == "Sequence" and pre.pretokenizers or { pre }) do
    if p.type == "Split" and p.pattern and p.pattern.Regex then steps[#steps + 1] = p.pattern.Regex
    elseif p.type == "Digits" and p.individual_digits then steps.digits = true
    elseif p.type == "ByteLevel" then
      byte_level = true
      if p.use_regex ~= false then steps.gpt2 = true end
    else return nil, p.type end
  end
  return steps, byte_level
end

-- Name of tokenizer.ggml.pre.
local function pre_name(pre)
  local steps, what = steps_of(pre)
  if not steps then return nil, ("a pre-tokenizer of type %q has no name in GGUF"):format(tostring(what)) end
  local wanted = signature(steps)
  for _, family in ipairs(families) do
    if signature(family[2]) == wanted then return family[1] end
  end
  return nil, "no name of tokenizer.ggml.pre is known for its pre-tokenizer's pattern"
end

-- The pre_tokenizer of a name.
local function pre_of(name)
  name = same[name] or name
  for _, family in ipairs(families) do
    if family[1] == name then
      local list = {}
      for _, pattern in ipairs(family[2]) do
        list[#list + 1] = { type = "Split", pattern = { Regex = pattern }, behavior = "Isolated", invert = false }
      end
      if family[2].digits then list[#list + 1] = { type = "Digits", individual_digits = true } end
      list[#list + 1] = { type = "ByteLevel", add_prefix_space = false, trim_offsets = true,
                          use_regex = family[2].gpt2 == true }
      return #list == 1 and list[1] or { type = "Sequence", pretokenizers = list }
    end
  end
end

-- ---- Hugging Face to GGUF ------------------------------------------------------------------------

local NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

local function read_json(path)
  if peri.files.exists(path) ~= "file" then return nil end
  local text, err = peri.files.read(path)
  if not text then return nil, err end
  local value, message = peri.json.decode(text, { foreign = true })
  if type(value) ~= "table" then return nil, ("%s: %s"):format(path, message or "an object is expected") end
  return value
end

-- Tokens and types by id (from 1), and ids by token.
local function vocabulary(tok, size)
  local tokens, types, ids, largest = {}, {}, {}, -1
  local function set(token, id, kind)
    if math.type(id) ~= "integer" or id < 0 or id > 1 << 24 then return end
    tokens[id + 1], types[id + 1], ids[token] = token, kind, id
    largest = math.max(largest, id)
  end
  if tok.model.type == "Unigram" then
    for i, pair in ipairs(tok.model.vocab) do set(pair[1], i - 1, i - 1 == tok.model.unk_id and UNKNOWN or NORMAL) end
  else
    for token, id in pairs(tok.model.vocab) do
      local byte = tok.model.byte_fallback and token:find "^<0x%x%x>$"
      set(token, id, byte and BYTE or token == tok.model.unk_token and UNKNOWN or NORMAL)
    end
  end
  for _, added in ipairs(tok.added_tokens or {}) do
    local unknown = added.content == tok.model.unk_token and tok.model.type ~= "WordPiece"
    set(added.content, added.id, unknown and UNKNOWN or added.special and CONTROL or USER)
  end
  for id = 0, math.max(size or 0, largest + 1) - 1 do
    if not tokens[id + 1] then tokens[id + 1], types[id + 1] = ("[PAD%d]"):format(id), UNUSED end
  end
  return tokens, types, ids
end

local function merges_of(model)
  local out = {}
  for i, m in ipairs(model.merges or {}) do out[i] = type(m) == "table" and m[1] .. " " .. m[2] or m end
  return out
end

-- Scores under which SentencePiece merges in the order of the merges.
local function scores_of(tok, tokens, ids)
  local scores = {}
  for i = 1, #tokens do scores[i] = 0.0 end
  if tok.model.type == "Unigram" then
    for i, pair in ipairs(tok.model.vocab) do scores[i] = pair[2] + 0.0 end
    return scores
  end
  for rank, merge in ipairs(merges_of(tok.model)) do
    local a, b = merge:match "^(.-) (.+)$"
    local id = a and ids[a .. b]
    if id and scores[id + 1] == 0 then scores[id + 1] = -rank + 0.0 end
  end
  return scores
end

local function content(v) return type(v) == "table" and v.content or type(v) == "string" and v or nil end

-- Whether the post-processor puts a token first (or last).
local function template_has(tok, token, last)
  local function look(p)
    if type(p) ~= "table" then return nil end
    if p.type == "Sequence" then
      for _, q in ipairs(p.processors or {}) do
        local found = look(q)
        if found ~= nil then return found end
      end
      return nil
    end
    if p.type ~= "TemplateProcessing" or type(p.single) ~= "table" then return nil end
    local piece = p.single[last and #p.single or 1]
    return type(piece) == "table" and piece.SpecialToken ~= nil and piece.SpecialToken.id == token
  end
  return look(tok.post_processor)
end

local specials = { { "bos", "bos_token" }, { "eos", "eos_token" }, { "unknown", "unk_token" },
  { "seperator", "sep_token" }, { "padding", "pad_token" }, { "cls", "cls_token" }, { "mask", "mask_token" } }

-- Special ids, whether they are added, and the chat template.
local function put_specials(put, folder, tok, ids, config)
  local settings, err = read_json(folder .. "/tokenizer_config.json")
  if err then return err end
  settings = settings or {}
  for _, s in ipairs(specials) do
    local id = ids[content(settings[s[2]]) or false]
    local fallback = config[s[2] .. "_id"]
    if type(fallback) == "table" then fallback = fallback[1] end
    id = id or math.type(fallback) == "integer" and fallback or nil
    if id then put(("tokenizer.ggml.%s_token_id"):format(s[1]), "u32", id) end
  end
  for _, s in ipairs { { "bos", false }, { "eos", true } } do
    local add = settings["add_" .. s[1] .. "_token"]
    if type(add) ~= "boolean" then add = template_has(tok, content(settings[s[1] .. "_token"]), s[2]) end
    if type(add) == "boolean" then put(("tokenizer.ggml.add_%s_token"):format(s[1]), "bool", add) end
  end
  local template = settings.chat_template
  if peri.files.exists(folder .. "/chat_template.jinja") then
    template, err = peri.files.read(folder .. "/chat_template.jinja")
    if not template then return err end
  end
  if type(template) == "table" then -- several by name
    local default
    for _, t in ipairs(template) do if t.name == "default" then default = t.template end end
    template = default
  end
  if type(template) == "string" then put("tokenizer.chat_template", "text", template) end
end

local function is_byte_level(tok)
  local _, byte_level = steps_of(type(tok.pre_tokenizer) == "table" and tok.pre_tokenizer or {})
  return byte_level == true
end

-- Words begin with U+2581, what continues one has no ##.
local function phantom(tokens, types)
  local out = {}
  for i, token in ipairs(tokens) do
    if types[i] == CONTROL or types[i] == UNUSED then out[i] = token
    elseif token:find "^##" then out[i] = token:sub(3)
    else out[i] = "\u{2581}" .. token end
  end
  return out
end

--- Values {key, type, value} of the tokenizer of a folder.
--- @param folder string
--- @param config table  Hugging Face config
--- @return table[]|nil
--- @return string? message
function M.values(folder, config)
  local path = folder .. "/tokenizer.json"
  local tok, err = read_json(path)
  if not tok then return nil, err or folder .. ": there is no tokenizer.json" end
  if type(tok.model) ~= "table" or type(tok.model.vocab) ~= "table" then
    return nil, path .. ": model.vocab is missing"
  end
  local out = {}
  local function put(key, kind, value) out[#out + 1] = { key = key, type = kind, value = value } end
  local kind, tokens, types, ids = tok.model.type or "BPE", vocabulary(tok, config.vocab_size)
  local byte_level = is_byte_level(tok)
  local model = kind == "BPE" and (byte_level and "gpt2" or tok.model.byte_fallback and "llama")
    or kind == "Unigram" and "t5" or kind == "WordPiece" and "bert"
  if not model then return nil, ("%s: a %s model of this kind has no name in GGUF"):format(path, kind) end
  local pre = model == "bert" and "jina-v2-en" or "default"
  if model == "gpt2" then
    pre, err = pre_name(tok.pre_tokenizer)
    if not pre then return nil, path .. ": " .. err end
  end
  put("tokenizer.ggml.model", "text", model)
  put("tokenizer.ggml.pre", "text", pre)
  put("tokenizer.ggml.tokens", "text", model == "bert" and phantom(tokens, types) or tokens)
  if model == "llama" or model == "t5" then put("tokenizer.ggml.scores", "f32", scores_of(tok, tokens, ids)) end
  put("tokenizer.ggml.token_type", "i32", types)
  if model == "gpt2" then put("tokenizer.ggml.merges", "text", merges_of(tok.model)) end
  if model == "bert" then put("tokenizer.ggml.token_type_count", "u32", config.type_vocab_size or 1) end
  err = put_specials(put, folder, tok, ids, config)
  if err then return nil, err end
  return out
end

-- ---- GGUF to Hugging Face ------------------------------------------------------------------------

--- tokenizer.json and tokenizer_config.json of a GGUF file with a byte-level vocabulary.
--- @param file perilune.gguf.File
--- @return table|nil tokenizer
--- @return table|string config or message
function M.json(file)
  local model = file:get "tokenizer.ggml.model"
  if not model then return nil, "the file has no tokenizer" end
  if model ~= "gpt2" then
    return nil, ("a tokenizer of kind %q cannot be written as tokenizer.json, only byte-level ones (gpt2)")
      :format(tostring(model))
  end
  local name = file:get "tokenizer.ggml.pre" or "gpt-2"
  local pre = pre_of(name)
  if not pre then return nil, ("the pattern of pre-tokenizer %q is not known here"):format(tostring(name)) end
  local tokens, types, merges = file:get "tokenizer.ggml.tokens", file:get "tokenizer.ggml.token_type" or {},
    file:get "tokenizer.ggml.merges"
  if type(tokens) ~= "table" or type(merges) ~= "table" then return nil, "tokens or merges are missing" end
  local vocab, added = {}, {}
  for i, token in ipairs(tokens) do
    if types[i] == CONTROL or types[i] == USER or types[i] == UNKNOWN then
      added[#added + 1] = { id = i - 1, content = token, single_word = false, lstrip = false, rstrip = false,
                            normalized = false, special = types[i] ~= USER }
    end
    if types[i] ~= UNUSED then vocab[token] = i - 1 end
  end
  local pairs_of = {}
  for i, merge in ipairs(merges) do
    local a, b = merge:match "^(.-) (.+)$"
    if not a then return nil, ("merge %d is no pair: %q"):format(i, merge) end
    pairs_of[i] = { a, b }
  end
  local function token_of(key)
    local id = file:get(("tokenizer.ggml.%s_token_id"):format(key))
    return math.type(id) == "integer" and tokens[id + 1] or nil
  end
  local bos, byte_level = token_of "bos", { type = "ByteLevel", add_prefix_space = false, trim_offsets = true,
    use_regex = true }
  local add_bos = file:get "tokenizer.ggml.add_bos_token"
  if add_bos == nil then add_bos = name == "llama-bpe" or name == "llama3" or name == "llama-v3" end
  local post = byte_level
  if add_bos and bos then
    post = { type = "TemplateProcessing",
      single = { { SpecialToken = { id = bos, type_id = 0 } }, { Sequence = { id = "A", type_id = 0 } } },
      pair = { { SpecialToken = { id = bos, type_id = 0 } }, { Sequence = { id = "A", type_id = 0 } },
               { SpecialToken = { id = bos, type_id = 1 } }, { Sequence = { id = "B", type_id = 1 } } },
      special_tokens = { [bos] = { id = bos, ids = { (file:get "tokenizer.ggml.bos_token_id") }, tokens = { bos } } } }
  end
  local null = peri.json.null
  local tokenizer = { version = "1.0", truncation = null, padding = null, added_tokens = peri.json.array(added),
    normalizer = (same[name] or name) == "qwen2" and { type = "NFC" } or null,
    pre_tokenizer = pre, post_processor = post, decoder = byte_level,
    model = { type = "BPE", dropout = null, unk_token = null, continuing_subword_prefix = "",
              end_of_word_suffix = "", fuse_unk = false, byte_fallback = false,
              ignore_merges = (same[name] or name) == "llama-bpe", vocab = vocab, merges = peri.json.array(pairs_of) } }
  local config = { tokenizer_class = "PreTrainedTokenizerFast", clean_up_tokenization_spaces = false,
    bos_token = bos, eos_token = token_of "eos", unk_token = token_of "unknown", pad_token = token_of "padding",
    add_bos_token = add_bos,
    model_max_length = file:get(tostring(file:get "general.architecture") .. ".context_length"),
    chat_template = file:get "tokenizer.chat_template" }
  return tokenizer, config
end

return M
