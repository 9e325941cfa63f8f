-- text - character tokenizer: one id for each character of an alphabet, after four special ids.
-- The layout is verl's CharTokenizer (tests/e2e/envs/digit_completion): separator 0, end 1,
-- padding 2, unknown 3, then the characters in their order.

local batches = require "perilune.text.batch"
local options = require "perilune.options"

--- @class perilune.text.Chars
--- @field sep integer
--- @field eos integer
--- @field pad integer
--- @field unk integer
--- @field size integer  ids in all
local Chars = {}
Chars.__index = Chars

function Chars:__tostring()
  local list = {}
  for id = 4, self.size - 1 do list[#list + 1] = self._char[id] end
  return ("characters, %d tokens: 4 special ones and %q"):format(self.size, table.concat(list))
end

local M = {}

local chars_rules = { separator = options.boolean(false, ":batch ends each prompt with the separator") }

--- A tokenizer of single characters: special ids 0 to 3, then those of the alphabet in their order.
--- @param alphabet string  UTF-8, each character once
--- @param opts table?
--- @return perilune.text.Chars
function M.chars(alphabet, opts)
  local o = options.fill("text.chars", opts, chars_rules)
  if type(alphabet) ~= "string" then
    error(("text.chars: the alphabet is a %s, expected a string"):format(type(alphabet)), 2)
  end
  if not utf8.len(alphabet) then error("text.chars: the alphabet is no UTF-8", 2) end
  options.argument("text.chars", "alphabet", alphabet, "string")
  local self = setmetatable({ sep = 0, eos = 1, pad = 2, unk = 3, _id = {}, _char = {} }, Chars)
  self._separator, self.size = o.separator, 4
  for _, code in utf8.codes(alphabet) do
    local c = utf8.char(code)
    if self._id[c] then error(("text.chars: %q occurs twice in the alphabet"):format(c), 2) end
    self._id[c], self._char[self.size] = self.size, c
    self.size = self.size + 1
  end
  return self
end

options.declare(M.chars, { "alphabet" }, chars_rules)

--- A tokenizer from the list of code points that verl writes as "char_ords".
--- @param codes integer[]
--- @param opts table?
--- @return perilune.text.Chars
function M.from_codes(codes, opts)
  options.fill("text.from_codes", opts, chars_rules)
  options.argument("text.from_codes", "codes", codes, "table")
  return M.chars(utf8.char(table.unpack(codes)), opts)
end
options.declare(M.from_codes, { "codes" }, chars_rules)

--- @param text string
--- @return integer[]
function Chars:encode(text)
  local ids = {}
  for _, code in utf8.codes(text) do ids[#ids + 1] = self._id[utf8.char(code)] or self.unk end
  return ids
end

--- Special ids are left out.
--- @param ids integer[]
--- @return string
function Chars:decode(ids)
  local out = {}
  for _, id in ipairs(ids) do out[#out + 1] = self._char[id] end
  return table.concat(out)
end

local encode_rules = {
  add_special = options.boolean(true, "with a separator each text ends with it"),
  parse_special = options.boolean(true, "as other tokenizers take it; it has no meaning here"),
}

--- Ids of many texts.
--- @param texts string[]
--- @param opts table?
--- @return integer[][]
function Chars:encode_batch(texts, opts)
  local o = options.fill("text:encode_batch", opts, encode_rules)
  local lists = {}
  for i, text in ipairs(texts) do
    lists[i] = self:encode(text)
    if self._separator and o.add_special then table.insert(lists[i], self.sep) end
  end
  return lists
end

options.declare(Chars.encode_batch, { "texts" }, encode_rules)

--- Prompts as one batch, padded on the left so that all end together.
--- @param texts string[]
--- @param opts table?  as of a tokenizer's batch
--- @return perilune.Batch
function Chars:batch(texts, opts)
  local batch = batches.texts(self, texts, opts)
  return batch
end

return require "perilune.names"(M, "perilune.text")
