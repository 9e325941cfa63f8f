-- stops.lua - the text of an answer as it grows, up to a stop text. Special tokens are no part of an
-- answer's text, but a stop text may be one or hold one: "<|im_end|>", "\n<|user|>". What may be the
-- begin of a stop text is held back until that is known.

local M = {}

--- @class perilune.models.Stops
--- @field held string  text that is not given out yet
local Stops = {}
Stops.__index = Stops

-- Whether decoding leaves a part of a text out.
local function holds_special(tok, text)
  if not tok.is_special then return false end
  for _, id in ipairs(tok:encode(text, { add_special = false, parse_special = true })) do
    if tok:is_special(id) and text:find(tok:token(id), 1, true) then return true end
  end
  return false
end

--- @param texts string[]
--- @param tok table  tokenizer
--- @return perilune.models.Stops
function M.new(texts, tok)
  local self = setmetatable({ plain = {}, special = {}, held = "", marks = {} }, Stops)
  for _, text in ipairs(texts) do
    local list = holds_special(tok, text) and self.special or self.plain
    list[#list + 1] = text
  end
  return self
end

-- The held text with the special tokens that stand in it, and where each byte of it lies: place[i] is how many bytes
-- of the held text come before byte i.
local function written(self)
  local parts, place, at, n = {}, {}, 0, 0
  local function put(text, shown)
    parts[#parts + 1] = text
    for i = 1, #text do
      n = n + 1
      place[n] = at + (shown and i - 1 or 0)
    end
    if shown then at = at + #text end
  end
  for _, mark in ipairs(self.marks) do
    put(self.held:sub(at + 1, mark[1]), true)
    put(mark[2], false)
  end
  put(self.held:sub(at + 1), true)
  place[n + 1] = #self.held
  return table.concat(parts), place
end

-- Where the first of the stop texts begins, and from where on one may begin. Both in bytes of text, from 1.
local function look(text, stops)
  local cut
  for _, stop in ipairs(stops) do
    local at = text:find(stop, 1, true)
    if at and (not cut or at < cut) then cut = at end
  end
  local open
  for _, stop in ipairs(stops) do
    for n = math.min(#stop - 1, #text), 1, -1 do
      if text:sub(-n) == stop:sub(1, n) then
        open = math.min(open or math.huge, #text - n + 1)
        break
      end
    end
  end
  return cut, open
end

-- Give out the first n bytes of the held text.
local function give(self, n)
  local text, marks = self.held:sub(1, n), {}
  self.held = self.held:sub(n + 1)
  for _, mark in ipairs(self.marks) do
    if mark[1] >= n then marks[#marks + 1] = { mark[1] - n, mark[2] } end
  end
  self.marks = marks
  return text
end

--- Take in what a token adds.
--- @param piece string  its text, without what is special
--- @param special string?  the special token as it is written, when it is one
--- @return string text  that is certain now
--- @return boolean ended  a stop text was found, and text ends before it
function Stops:push(piece, special)
  self.held = self.held .. piece
  local cut, open = look(self.held, self.plain)
  local begun = false -- whether a stop text with special tokens may have begun
  if #self.special > 0 then
    if special then self.marks[#self.marks + 1] = { #self.held, special } end
    local text, place = written(self)
    local cut2, open2 = look(text, self.special)
    if cut2 then cut = math.min(cut or math.huge, place[cut2] + 1) end
    if open2 then open, begun = math.min(open or math.huge, place[open2] + 1), true end
  end
  if cut then
    local text = self.held:sub(1, cut - 1)
    self.held, self.marks = "", {}
    return text, true
  end
  if not begun then self.marks = {} end
  return give(self, open and open - 1 or #self.held), false
end

--- What was held back is text after all.
--- @param piece string  that comes with the end
--- @return string text
--- @return boolean ended
function Stops:finish(piece)
  local text, ended = self:push(piece)
  if ended then return text, true end
  text = text .. self.held
  self.held, self.marks = "", {}
  return text, false
end

return M
