-- text - tokenizers of a fixed list: one id for each character of an alphabet, or for each word of a list, after
-- four special ids. The layout is verl's CharTokenizer (tests/e2e/envs/digit_completion): separator 0, end 1,
-- padding 2, unknown 3, then the characters or words in their order.

local batches = require "perilune.text.batch"
local options = require "perilune.options"

--- @class perilune.text.Units
--- @field sep integer
--- @field eos integer
--- @field pad integer
--- @field unk integer
--- @field size integer  ids in all
local Units = {}
Units.__index = Units

local function each_character(text)
  local step, s, at = utf8.codes(text)
  return function ()
    local code
    at, code = step(s, at)
    return at and utf8.char(code)
  end
end

-- What a text is cut into, and what stands between two of them.
local kinds = {
  characters = { each = each_character, glue = "" },
  words = { each = function (text) return text:gmatch "%S+" end, glue = " " },
}

function Units:__tostring()
  local list = table.move(self._unit, 4, self.size - 1, 1, {})
  return ("%s, %d tokens: 4 special ones and %q"):format(self._kind, self.size, table.concat(list, self._glue))
end

local M = {}

-- A tokenizer of units in their order, each once.
local function new(kind, who, units, separator)
  local self = setmetatable({ sep = 0, eos = 1, pad = 2, unk = 3, _id = {}, _unit = {}, _kind = kind,
    _each = kinds[kind].each, _glue = kinds[kind].glue, _separator = separator, size = 4 }, Units)
  for _, unit in ipairs(units) do
    if self._id[unit] then error(("%s: %q occurs twice"):format(who, unit), 3) end
    self._id[unit], self._unit[self.size] = self.size, unit
    self.size = self.size + 1
  end
  return self
end

local chars_rules = { separator = options.boolean(false, ":batch ends each prompt with the separator") }

--- A tokenizer of single characters: special ids 0 to 3, then those of the alphabet in their order.
--- @param alphabet string  UTF-8, each character once
--- @param opts table?
--- @return perilune.text.Units
function M.chars(alphabet, opts)
  local o = options.fill("text.chars", opts, chars_rules)
  if type(alphabet) ~= "string" then
    error(("text.chars: the alphabet is a %s, expected a string"):format(type(alphabet)), 2)
  end
  if not utf8.len(alphabet) then error("text.chars: the alphabet is no UTF-8", 2) end
  options.argument("text.chars", "alphabet", alphabet, "string")
  local list = {}
  for _, code in utf8.codes(alphabet) do list[#list + 1] = utf8.char(code) end
  return (new("characters", "text.chars", list, o.separator))
end

options.declare(M.chars, { "alphabet" }, chars_rules)

--- A tokenizer of whole words: special ids 0 to 3, then those of the words in their order. Texts are cut at blanks,
--- and ids become words with one blank between two.
--- @param list string[]  words without blanks, each once
--- @param opts table?
--- @return perilune.text.Units
function M.words(list, opts)
  local o = options.fill("text.words", opts, chars_rules)
  options.argument("text.words", "list", list, "table")
  for i, word in ipairs(list) do
    if type(word) ~= "string" or not utf8.len(word) or not word:find "^%S+$" then
      error(("text.words: word %d is %s, expected UTF-8 text without blanks"):format(i,
        type(word) == "string" and ("%q"):format(word) or "a " .. type(word)), 2)
    end
  end
  return (new("words", "text.words", list, o.separator))
end
options.declare(M.words, { "list" }, chars_rules)

--- A tokenizer from the list of code points that verl writes as "char_ords".
--- @param codes integer[]
--- @param opts table?
--- @return perilune.text.Units
function M.from_codes(codes, opts)
  options.fill("text.from_codes", opts, chars_rules)
  options.argument("text.from_codes", "codes", codes, "table")
  return M.chars(utf8.char(table.unpack(codes)), opts)
end
options.declare(M.from_codes, { "codes" }, chars_rules)

--- @param text string
--- @return integer[]
function Units:encode(text)
  local ids, n, known, unk = {}, 0, self._id, self.unk
  for unit in self._each(text) do
    n = n + 1
    ids[n] = known[unit] or unk
  end
  return ids
end

--- Special ids are left out.
--- @param ids integer[]
--- @return string
function Units:decode(ids)
  local out = {}
  for _, id in ipairs(ids) do out[#out + 1] = self._unit[id] end
  return table.concat(out, self._glue)
end

local encode_rules = {
  add_special = options.boolean(true, "with a separator each text ends with it"),
  parse_special = options.boolean(true, "as other tokenizers take it; it has no meaning here"),
}

--- Ids of many texts.
--- @param texts string[]
--- @param opts table?
--- @return integer[][]
function Units:encode_batch(texts, opts)
  local o = options.fill("text:encode_batch", opts, encode_rules)
  local lists = {}
  for i, text in ipairs(texts) do
    lists[i] = self:encode(text)
    if self._separator and o.add_special then table.insert(lists[i], self.sep) end
  end
  return lists
end

options.declare(Units.encode_batch, { "texts" }, encode_rules)

--- Prompts as one batch, padded on the left so that all end together.
--- @param texts string[]
--- @param opts table?  as of a tokenizer's batch
--- @return perilune.Batch
function Units:batch(texts, opts)
  local batch = batches.texts(self, texts, opts)
  return batch
end

M.word_pieces = require("perilune.text.pieces").word_pieces
M.ngrams = require("perilune.text.ngrams").ngrams
M.mask_tokens = require("perilune.text.mask").mask_tokens

return require "perilune.names"(M, "perilune.text")
