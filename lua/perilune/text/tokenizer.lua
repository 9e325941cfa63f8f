-- tokenizer.lua - text to ids and back by published vocabularies: byte-level and SentencePiece-style BPE,
-- unigram, WordPiece. The work is done in C (runtime/text/); this is its face in Lua.

local peri = require "perilune.core"
local options = require "perilune.options"

local core = peri._tokenizer

--- @class perilune.Tokenizer
--- @field size integer  highest id + 1
--- @field bos integer?
--- @field eos integer?
--- @field pad integer?
--- @field unk integer?
--- @field cls integer?
--- @field sep integer?
--- @field mask integer?
--- @field eos_ids integer[]  every id that ends a turn
--- @field fim { prefix: integer, suffix: integer, middle: integer }?  fill-in-the-middle tokens
--- @field padding_side string?  "left" or "right", where the files say one
--- @field truncation_side string?  the same for texts that are too long
--- @field model_max_length integer?  the most tokens that the files say a text may have
--- @field chat_template string?  its source
--- @field special_tokens table<string, string>  texts by name (bos_token, eos_token, ...)
--- @field source_path string?
local Tokenizer = {}
Tokenizer.__index = Tokenizer

function Tokenizer:__tostring()
  local special = {}
  for _, role in ipairs { "bos", "eos", "pad", "unk", "cls", "sep", "mask" } do
    local text = self.special_tokens[role .. "_token"]
    if text then special[#special + 1] = ("%s %q (%d)"):format(role, text, self[role]) end
  end
  return ("tokenizer, %d tokens%s%s%s"):format(self.size, #special > 0 and ": " or "", table.concat(special, ", "),
    self.chat_template and "; with a chat template" or "")
end

local M = {}

local encode_rules = {
  add_special = options.boolean(true, "the special tokens that the model expects around a text"),
  parse_special = options.boolean(true, "special tokens written in the text are ids"),
}
local decode_rules = { skip_special = options.boolean(true, "special tokens are left out") }

local function wrap(c, path)
  local facts = c:facts()
  local self = setmetatable({
    _c = c, source_path = path, size = facts.size, bos = facts.bos, eos = facts.eos, pad = facts.pad,
    unk = facts.unk, cls = facts.cls, sep = facts.sep, mask = facts.mask, eos_ids = facts.eos_ids,
    padding_side = facts.padding_side, truncation_side = facts.truncation_side,
    model_max_length = facts.model_max_length, chat_template = facts.chat_template, special_tokens = {},
  }, Tokenizer)
  if facts.fim_prefix and facts.fim_suffix and facts.fim_middle then
    self.fim = { prefix = facts.fim_prefix, suffix = facts.fim_suffix, middle = facts.fim_middle }
  end
  for _, role in ipairs { "bos", "eos", "pad", "unk", "cls", "sep", "mask" } do
    if facts[role] then self.special_tokens[role .. "_token"] = c:token(facts[role]) end
  end
  return self
end

--- A tokenizer from a Hugging Face folder, a tokenizer.json, a GGUF file, a SentencePiece tokenizer.model,
--- a llama2.c tokenizer .bin, a folder with vocab.json + merges.txt or encoder.json + vocab.bpe, vocab.txt.
--- @param path string
--- @return perilune.Tokenizer|nil
--- @return string? message
function M.load(path)
  local c, message = core.load(path)
  if not c then return nil, message end
  return wrap(c, path)
end

--- A tokenizer from the text of a tokenizer.json.
--- @param json string
--- @return perilune.Tokenizer|nil
--- @return string? message
function M.parse(json)
  local c, message = core.parse(json)
  if not c then return nil, message end
  local self = wrap(c)
  self._json = json
  return self
end

local train_rules = {
  vocab_size = options.integer(32000, "[1, inf)", "special tokens, 256 bytes and merges, at most"),
  min_count = options.integer(2, "[1, inf)", "pairs that are rarer are not merged"),
  special_tokens = options.value({ "<|endoftext|>" }, "table", "get the first ids; the first of them is eos and pad"),
  pattern = options.value(options.none, "string", "regular expression of the pre-tokenizer; default: GPT-2's"),
}

--- A byte-level BPE vocabulary of texts. The same texts give the same vocabulary.
--- @param texts string[]|string  texts, or the path of a file
--- @param opts table?
--- @return perilune.Tokenizer|nil
--- @return string? message
function M.train_bpe(texts, opts)
  local o = options.fill("tokenizer.train_bpe", opts, train_rules)
  if type(texts) == "string" then
    local text, message = peri.files.read(texts)
    if not text then return nil, message end
    texts = { text }
  end
  local json = core.train_bpe(texts, o.special_tokens, o.vocab_size, o.min_count, o.pattern)
  local self = assert(M.parse(json))
  local first = o.special_tokens[1]
  if first then
    self.eos, self.pad = self:id(first), self:id(first)
    self.special_tokens = { eos_token = first, pad_token = first }
    self.eos_ids = { self.eos }
  end
  return self
end
options.declare(M.train_bpe, { "texts" }, train_rules)

--- @param text string  UTF-8; what is none counts as U+FFFD
--- @param opts table?
--- @return integer[]
function Tokenizer:encode(text, opts)
  local o = options.fill("tokenizer:encode", opts, encode_rules)
  return self._c:encode(text, o.add_special, o.parse_special)
end
options.declare(Tokenizer.encode, { "text" }, encode_rules)

--- Many texts on all threads.
--- @param texts string[]
--- @param opts table?
--- @return integer[][]
function Tokenizer:encode_batch(texts, opts)
  local o = options.fill("tokenizer:encode_batch", opts, encode_rules)
  return self._c:encode_batch(texts, o.add_special, o.parse_special)
end
options.declare(Tokenizer.encode_batch, { "texts" }, encode_rules)

--- @param text string
--- @param opts table?
--- @return perilune.Tensor ids  (T) i64
function Tokenizer:encode_tensor(text, opts)
  local o = options.fill("tokenizer:encode_tensor", opts, encode_rules)
  return self._c:encode_tensor(text, o.add_special, o.parse_special)
end
options.declare(Tokenizer.encode_tensor, { "text" }, encode_rules)

--- Texts as one batch for a model: ids, mask, start, lengths; of pairs { first, second } token types as well.
--- @param texts table  texts or pairs
--- @param opts table?  padding (true), truncation (false), max_length, padding_side, truncation_side,
---   pad_to_multiple_of, add_special_tokens (true), parse_special (true), text_pair: second texts
--- @return perilune.Batch
function Tokenizer:batch(texts, opts)
  local batch = require("perilune.text.batch").texts(self, texts, opts)
  return batch
end

--- What stands around a text or a pair by the tokenizer's file: { type =, ids = } for special tokens and
--- { type =, text = 1 or 2 } in order, type being the token type.
--- @param pair boolean?
--- @return table[]|nil  nil where the file has no such list
function Tokenizer:parts(pair) return self._c:parts(pair or false) end

--- @param ids integer[]|perilune.Tensor  ids that the vocabulary lacks are left out
--- @param opts table?
--- @return string  valid UTF-8
function Tokenizer:decode(ids, opts)
  local o = options.fill("tokenizer:decode", opts, decode_rules)
  return self._c:decode(ids, o.skip_special)
end
options.declare(Tokenizer.decode, { "ids" }, decode_rules)

--- A decoder that takes one id at a time: s:push(id) returns the text that is certain by then, in whole
--- characters; s:finish() returns what was held back.
--- @param opts table?
function Tokenizer:stream(opts)
  local o = options.fill("tokenizer:stream", opts, decode_rules)
  return self._c:stream(o.skip_special)
end
options.declare(Tokenizer.stream, {}, decode_rules)

--- Id of a token as the vocabulary writes it.
--- @param token string
--- @return integer|nil
function Tokenizer:id(token) return self._c:id(token) end

--- A token as the vocabulary writes it.
--- @param id integer
--- @return string|nil
function Tokenizer:token(id) return self._c:token(id) end

--- @param id integer
--- @return boolean  decoding leaves it out
function Tokenizer:is_special(id) return self._c:is_special(id) end

-- Files that belong to a vocabulary, as other programs look for them.
local FILES = {
  "tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "encoder.json", "vocab.bpe",
  "vocab.txt", "tokenizer.bin", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json",
  "chat_template.jinja",
}

local function copy(from, to)
  local bytes, message = peri.files.read(from)
  if not bytes then return nil, message end
  return peri.files.write(to, bytes)
end

-- tokenizer_config.json for a vocabulary that came without one.
local function write_config(self, folder)
  local config = {
    tokenizer_class = "PreTrainedTokenizerFast", clean_up_tokenization_spaces = false,
    chat_template = self.chat_template,
  }
  for name, text in pairs(self.special_tokens) do config[name] = text end
  return peri.files.write(folder .. "/tokenizer_config.json", peri.json.encode(config, { indent = 2 }) .. "\n")
end

local function save_gguf(path, folder)
  local writer = require "perilune.weights.gguf.tokenizer_json"
  local text, config, losses = writer.json(path)
  if not text then return nil, "tokenizer:save: " .. tostring(config) end
  if #losses > 0 then return nil, "tokenizer:save: tokenizer.json would lose " .. table.concat(losses, "; ") end
  return writer.write(folder, text, config)
end

--- Write the files of the vocabulary into a folder, so that it loads here and elsewhere.
--- @param folder string  is made
--- @return boolean|nil
--- @return string? message
function Tokenizer:save(folder)
  local ok, message = peri.files.make_folder(folder)
  if not ok then return nil, message end
  if self._json then
    ok, message = peri.files.write(folder .. "/tokenizer.json", self._json)
    if not ok then return nil, message end
    return write_config(self, folder)
  end
  local source = self.source_path
  if peri.files.exists(source) == "folder" then
    for _, name in ipairs(FILES) do
      if peri.files.exists(source .. "/" .. name) == "file" then
        ok, message = copy(source .. "/" .. name, folder .. "/" .. name)
        if not ok then return nil, message end
      end
    end
    return true
  end
  if peri.gguf.open(source) then return save_gguf(source, folder) end
  local name = source:match("[^/]+$")
  for _, known in ipairs(FILES) do
    if name == known or (name:find "%.bin$" and known == "tokenizer.bin") then
      ok, message = copy(source, folder .. "/" .. known)
      if not ok then return nil, message end
      return write_config(self, folder)
    end
  end
  return nil, "tokenizer:save: " .. source .. " is not written as a folder"
end

-- The templates of a folder that has several by name; else the one there is.
local function templates_of(self)
  local config = self.source_path and peri.files.exists(self.source_path) == "folder"
    and require("perilune.foreign").read(self.source_path .. "/tokenizer_config.json")
  if config and type(config.chat_template) == "table"
    and not peri.files.exists(self.source_path .. "/chat_template.jinja") then
    return config.chat_template
  end
  return self.chat_template
end

-- The compiled chat template, made on first use.
local function chat_of(self)
  if not self._chat then
    if not self.chat_template then error("tokenizer:chat: the tokenizer has no chat template", 3) end
    local chat, message = require("perilune.text.chat").new(templates_of(self), self.special_tokens)
    if not chat then error("tokenizer:chat: " .. message, 3) end
    self._chat = chat
  end
  return self._chat
end

--- A conversation as the model's chat template writes it.
--- @param messages table[]  { role =, content =, ... }
--- @param opts table?  add_generation_prompt, tools, and further variables of the template
--- @return string
function Tokenizer:chat(messages, opts)
  local text, message = chat_of(self):render(messages, opts)
  if not text then error("tokenizer:chat: " .. message, 2) end
  return text
end

-- How many of ids, the tokens of a whole text, lie before a border in it: those that the text up to the
-- border has too. A token across the border is behind it.
local function tokens_before(self, ids, text, border)
  local part = self:encode(text:sub(1, border), { add_special = false })
  local n = 0
  while n < #part and part[n + 1] == ids[n + 1] do n = n + 1 end
  return n
end

--- @param messages table[]
--- @param opts table?  as of chat, and return_mask (true; false: templates that give no mask do, too)
--- @return integer[] ids  of the text that chat returns
--- @return integer[]? mask  1 where the assistant speaks
function Tokenizer:encode_chat(messages, opts)
  if opts and opts.return_mask ~= nil then
    local rest = {}
    for key, value in pairs(opts) do if key ~= "return_mask" then rest[key] = value end end
    if not opts.return_mask then return self:encode(self:chat(messages, rest), { add_special = false }) end
    opts = rest
  end
  local text, spans = chat_of(self):spans(messages, opts)
  if not text then error("tokenizer:encode_chat: " .. tostring(spans), 2) end
  local ids = self:encode(text, { add_special = false })
  local mask = {}
  for i = 1, #ids do mask[i] = 0 end
  for _, span in ipairs(spans) do
    local first = tokens_before(self, ids, text, span[1] - 1) + 1
    local last = span[2] >= #text and #ids or tokens_before(self, ids, text, span[2])
    for i = first, last do mask[i] = 1 end
  end
  return ids, mask
end

return require "perilune.names"(M, "perilune.tokenizer")
