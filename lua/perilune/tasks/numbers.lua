-- numbers.lua - numbers as people write them in a text: 1,234.50, $-3, .5.

local M = {}

-- The number that stands at a digit or a decimal point: its first and last byte, and it as text. A comma
-- belongs to it where three digits follow; a minus sign where no word, number or bracket is before it.
local function number_at(text, from)
  local whole, last = text:match("^(%d*)()", from)
  while true do
    local after = text:match("^,%d%d%d()", last)
    if not after or text:find("^%d", after) or whole == "" then break end
    whole, last = whole .. text:sub(last + 1, after - 1), after
  end
  local fraction, after = text:match("^%.(%d+)()", last)
  last = after or last
  whole, fraction = whole:gsub("^0+(%d)", "%1"), (fraction or ""):gsub("0+$", "")
  if whole == "" then whole = "0" end
  local value = fraction == "" and whole or whole .. "." .. fraction
  local before = from - 1
  if text:sub(before, before) == "$" then before = before - 1 end
  local negative = text:sub(before, before) == "-" and not text:find("^[%w%)%]]", before - 1)
  return last - 1, (negative and value ~= "0") and "-" .. value or value
end

-- Where the next number begins: a digit, or a point before one that is no end of a number.
local function next_number(text, at)
  local digit = text:find("%d", at)
  if not digit then return nil end
  if digit > at and text:sub(digit - 1, digit - 1) == "." and not text:find("^%d", digit - 2) then return digit - 1 end
  return digit
end

--- The number that a text begins with, spaces, signs and $ aside; the first part of a fraction is none.
--- @param text string
--- @return string?  as text, without commas and idle zeros: "1234.5"
function M.first(text)
  local from = next_number(text, 1)
  if not from or text:sub(1, from - 1):find "[^%s%$%-%+%*]" then return nil end
  local last, value = number_at(text, from)
  if text:find("^%s*/%s*%d", last + 1) then return nil end
  return value
end

--- The last number of a text. A minus counts as its sign where no word, number or bracket stands before it.
--- @param text string
--- @return string?  as text, without commas and idle zeros: "-0.5"
function M.last(text)
  local value, at = nil, 1
  while true do
    local from = next_number(text, at)
    if not from then return value end
    local last, found = number_at(text, from)
    value, at = found, last + 1
  end
end

return M
