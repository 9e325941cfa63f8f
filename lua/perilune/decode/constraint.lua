-- constraint.lua - completions that are texts of a regular expression or of a list: the ids that may
-- come next are those whose bytes the automaton can walk, and a stop token where the text may end.
-- What an automaton's state allows is computed once, over the sorted vocabulary.
local peri = require "perilune"
local regex = require "perilune.decode.regex"

local M = {}

--- @class perilune.models.Vocabulary
--- @field ids integer[][]  ids of the tokens that stand for the same bytes, in the order of these
--- @field bytes string[]  by place in that order
--- @field shared integer[]  bytes that a token has in common with the one before it

local known = setmetatable({}, { __mode = "k" })

-- The byte of each character of the byte-level alphabet (GPT-2's bytes_to_unicode).
local byte_of = {}
do
  local n = 0
  for byte = 0, 255 do
    local plain = byte >= 33 and byte <= 126 or byte >= 161 and byte <= 172 or byte >= 174
    byte_of[utf8.char(plain and byte or 256 + n)] = string.char(byte)
    if not plain then n = n + 1 end
  end
end

-- Bytes of a token that is written in the byte-level alphabet, which ends at U+0143.
local function unmapped(raw)
  if raw:find "[%c \xC6-\xFF]" then return nil end
  return (raw:gsub(utf8.charpattern, byte_of))
end

-- id -> the bytes that its token stands for within a text, or nil for tokens that stand for none. A
-- token is decoded behind another one: what begins a text may lose a space.
local function reader(tok)
  if not tok.token then return function (id) return tok:decode { id } end end
  local plain = { add_special = false }
  local before, space = tok:encode("a", plain), tok:encode("a b", plain)[2]
  for id = 0, tok.size - 1 do -- a vocabulary without a single letter
    if tok:decode(before) ~= "" then break end
    before = { id }
  end
  local n, base = #before, tok:decode(before)
  local byte_level = space and tok:token(space):find("\u{120}", 1, true) == 1 -- what a space is written as
  return function (id)
    local raw = tok:token(id)
    if not raw or tok:is_special(id) then return nil end
    local bytes = byte_level and unmapped(raw)
    if bytes then return bytes end
    local hex = raw:match "^<0x(%x%x)>$"
    if hex and not byte_level then return string.char(tonumber(hex, 16)) end
    before[n + 1] = id
    local text = tok:decode(before)
    return text:sub(1, #base) == base and text:sub(#base + 1) or nil
  end
end

--- The vocabulary of a tokenizer, sorted once.
--- @param tok table  perilune.tokenizer or perilune.text
--- @return perilune.models.Vocabulary
function M.vocabulary(tok)
  local v = known[tok]
  if v then return v end
  local list, of, bytes_of = {}, {}, reader(tok)
  for id = 0, tok.size - 1 do
    local bytes = bytes_of(id)
    if bytes and bytes ~= "" then
      local same = of[bytes]
      if same then same[#same + 1] = id
      else
        of[bytes] = { id }
        list[#list + 1] = bytes
      end
    end
  end
  table.sort(list)
  v = { ids = {}, bytes = list, shared = {}, text = {} }
  for i, bytes in ipairs(list) do
    local n, last = 0, list[i - 1] or ""
    while n < #last and n < #bytes and last:byte(n + 1) == bytes:byte(n + 1) do n = n + 1 end
    v.ids[i], v.shared[i] = of[bytes], n
    for _, id in ipairs(of[bytes]) do v.text[id] = bytes end
  end
  known[tok] = v
  return v
end

--- @class perilune.models.Constraint
local Constraint = {}
Constraint.__index = Constraint

local function new(automaton, tok)
  if type(tok) ~= "table" and type(tok) ~= "userdata" then error("constraint: a tokenizer is needed", 3) end
  return setmetatable({ automaton = automaton, vocabulary = M.vocabulary(tok), masks = {}, held = 0 }, Constraint)
end

--- Completions that match a pattern as a whole: see perilune.decode.regex.
--- @param pattern string
--- @param tok table
--- @return perilune.models.Constraint
function M.regex(pattern, tok) return new(regex.compile(pattern), tok) end

--- Completions that are one of a list of texts.
--- @param list string[]
--- @param tok table
--- @return perilune.models.Constraint
function M.choices(list, tok)
  if #list == 0 then error("constraint: a list of choices must not be empty", 2) end
  for i, text in ipairs(list) do
    if type(text) ~= "string" or text == "" then error(("constraint: choice %d is no text"):format(i), 2) end
  end
  return new(regex.list(list), tok)
end

--- The state before the first token.
function Constraint:start() return self.automaton.first end

--- The state after a token that was allowed.
function Constraint:advance(state, id)
  local bytes = self.vocabulary.text[id]
  local after = bytes and self.automaton:walk(state, bytes)
  if not after then error(("constraint: token %d is not allowed here"):format(id), 2) end
  return after
end

--- Whether the text is complete and nothing can follow.
function Constraint:complete(state) return state.accepting and state.final end

-- Ids whose bytes the automaton walks from a state.
local function allowed(self, state)
  local automaton, v = self.automaton, self.vocabulary
  local out, at, dead = {}, { [0] = state }, nil -- at[k]: after k bytes; dead: bytes that lead nowhere
  for i, bytes in ipairs(v.bytes) do
    local k = v.shared[i]
    if not (dead and k >= dead) then
      dead = nil
      local s = at[k]
      while k < #bytes do
        k = k + 1
        s = automaton:step(s, bytes:byte(k))
        if not s then
          dead = k
          break
        end
        at[k] = s
      end
      if s then
        for _, id in ipairs(v.ids[i]) do out[#out + 1] = id end
      end
    end
  end
  return out
end

local MASKS <const> = 256 -- that are kept

--- What may not come next.
--- @param state table
--- @param classes integer  size of the logits
--- @param stop integer[]  ids that end the text: allowed where it may end
--- @return perilune.Tensor  (classes) bool
function Constraint:forbidden(state, classes, stop)
  local key = classes .. ":" .. table.concat(stop, ",")
  local masks = self.masks[state]
  local mask = masks and masks[key]
  if mask then return mask end
  local is_stop, ids = {}, {}
  for _, id in ipairs(stop) do is_stop[id] = true end
  for _, id in ipairs(allowed(self, state)) do
    if id < classes and not is_stop[id] then ids[#ids + 1] = id end
  end
  if state.accepting then
    for _, id in ipairs(stop) do if id < classes then ids[#ids + 1] = id end end
  end
  if #ids == 0 then error("constraint: the vocabulary has no token that goes on from here", 0) end
  if self.held >= MASKS then self.masks, self.held = {}, 0 end
  do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    mask = peri.keep(peri.ones({ classes }, "bool")
      :scatter(peri.tensor(ids, "i64"), peri.zeros({ #ids }, "bool"), 1))
  end
  self.masks[state] = self.masks[state] or {}
  self.masks[state][key] = mask
  self.held = self.held + 1
  return mask
end

--- The constraint that options ask for: `regex` or `choices`, or none.
--- @param o table
--- @param tok table
--- @return perilune.models.Constraint?
function M.from(o, tok)
  if o.regex and o.choices then error("constraint: give regex or choices, not both", 3) end
  if o.regex then return M.regex(o.regex, tok) end
  if o.choices then return M.choices(o.choices, tok) end
  return nil
end

return M
