-- ngrams.lua - what a text says about its next character by counting alone: the baseline of character models.

local options = require "perilune.options"

--- @class perilune.text.Ngrams
--- @field order integer  of the longest n-gram
local Ngrams = { __name = "ngrams" }
Ngrams.__index = Ngrams

local M = {}

local BYTES <const> = 256

local rules = {
  order = options.integer(5, "[1, 16]", "of the longest n-gram: so many bytes, the one that is said among them"),
}

--- A model of the next byte of a text from counts of n-grams, interpolated over all orders by Witten and Bell (1991,
--- method C): p_n(c | h) = (count(h c) + kinds(h) p_{n-1}(c | h')) / (count(h) + kinds(h)), where kinds(h) is how many
--- different bytes follow h, h' is h without its first, and p_0 = 1 / 256. A context that was never seen leaves the
--- probability of the shorter one.
---   local counts = text.ngrams(train, { order = 5 })
---   print(counts:bits(test)[5])
--- @param text string  bytes
--- @param opts table?
--- @return perilune.text.Ngrams
function M.ngrams(text, opts)
  options.argument("text.ngrams", "text", text, "string")
  local o = options.fill("text.ngrams", opts, rules)
  local seen = {}
  for n = 0, o.order - 1 do -- bytes of the context
    for i = n + 1, #text do
      local context, c = text:sub(i - n, i - 1), text:byte(i)
      local entry = seen[context]
      if not entry then
        entry = { total = 0, kinds = 0 }
        seen[context] = entry
      end
      if not entry[c] then entry.kinds = entry.kinds + 1 end
      entry[c], entry.total = (entry[c] or 0) + 1, entry.total + 1
    end
  end
  return setmetatable({ order = math.tointeger(o.order), _seen = seen }, Ngrams)
end
options.declare(M.ngrams, { "text" }, rules)

-- p_n for n = 1 .. order of the byte c at place i of a text, one by one to fn(n, p).
local function each_order(self, text, i, c, fn)
  local p = 1 / BYTES
  for n = 0, self.order - 1 do
    local entry = i > n and self._seen[text:sub(i - n, i - 1)]
    if entry then p = ((entry[c] or 0) + entry.kinds * p) / (entry.total + entry.kinds) end
    fn(n + 1, p)
  end
  return p
end

local function nothing() end

--- The probability of a byte behind a context, by the longest n-gram; those of all 256 add up to 1.
--- @param context string  what stands before; of it the last order - 1 bytes count
--- @param character string  one byte
--- @return number
function Ngrams:probability(context, character)
  options.argument("probability", "context", context, "string")
  if type(character) ~= "string" or #character ~= 1 then
    options.raise(("probability: %s, expected one byte"):format(options.is("character", character)))
  end
  local p = each_order(self, context, #context + 1, character:byte(), nothing)
  return p
end

--- Mean bits a byte of a text, by n-grams of every order: { of single bytes, of pairs, ... }. What comes before the
--- text is not known.
--- @param text string  not empty
--- @return number[]
function Ngrams:bits(text)
  options.argument("bits", "text", text, "string")
  if text == "" then options.raise "bits: the text is empty" end
  local bits = {}
  local function add(n, p) bits[n] = (bits[n] or 0) - math.log(p, 2) / #text end
  for i = 1, #text do each_order(self, text, i, text:byte(i), add) end
  return bits
end

return M
