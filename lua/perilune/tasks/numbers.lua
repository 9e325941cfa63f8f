-- numbers.lua - numbers in prose: where one begins and ends, and what it says, as text without commas, signs of money
-- or zeros that mean nothing. A number of any size keeps all its digits.

local M = {}

local MINUS <const> = "\u{2212}"

-- Other ways to write a digit or a sign: full width, and the minus of mathematics.
local plain_of = { [MINUS] = "-", ["\u{FF0D}"] = "-", ["\u{FF0B}"] = "+", ["\u{FF0E}"] = ".", ["\u{FF0C}"] = ",",
  ["\u{FF04}"] = "$" }
for d = 0, 9 do plain_of[utf8.char(0xFF10 + d)] = tostring(d) end

--- A text with digits, signs and points as ASCII has them. Bytes that are no UTF-8 stay as they are.
--- @param text string
--- @return string
function M.plain(text)
  if not text:find "[\xE2\xEF]" then return text end
  return (text:gsub("[\xE2\xEF][\x80-\xBF][\x80-\xBF]", plain_of))
end

local MOST_ZEROS <const> = 400 -- of an exponent; beyond it nothing is a number

-- whole and fraction, moved by an exponent; nil where that is out of range.
local function moved(whole, fraction, exponent)
  local by = #exponent <= 6 and math.tointeger(exponent)
  if not by or math.abs(by) > MOST_ZEROS then return nil end
  if by >= 0 then
    fraction = fraction .. ("0"):rep(by - #fraction)
    return whole .. fraction:sub(1, by), fraction:sub(by + 1)
  end
  whole = ("0"):rep(-by - #whole) .. whole
  return whole:sub(1, #whole + by), whole:sub(#whole + by + 1) .. fraction
end

--- The number that stands at a digit or a decimal point: a comma belongs to it where three digits follow, a minus
--- sign where no word, number or bracket is before it, an exponent (1.5e3) where no letter follows.
--- @param text string  of M.plain
--- @param from integer
--- @return integer last  its last byte
--- @return string? value  "1234", "-0.5"; nil of what is out of range, 1e999
function M.at(text, from)
  local whole, last = text:match("^(%d*)()", from)
  local parts = { whole }
  while whole ~= "" do
    local after = text:match("^,%d%d%d()", last)
    if not after or text:find("^%d", after) then break end
    parts[#parts + 1], last = text:sub(last + 1, after - 1), after
  end
  whole = table.concat(parts)
  local fraction, after = text:match("^%.(%d+)()", last)
  fraction, last = fraction or "", after or last
  local exponent, beyond = text:match("^[eE]([%+%-]?%d+)()", last)
  if exponent and not text:find("^[%w_]", beyond) then
    whole, fraction = moved(whole, fraction, exponent)
    last = beyond
    if not whole then return last - 1, nil end
  end
  whole = whole:sub(whole:match "^0*()")
  fraction = fraction:sub(1, #fraction + 1 - fraction:reverse():match "^0*()")
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

--- The number that a line begins with, spaces, signs, asterisks and $ aside; the first part of a fraction is none.
--- @param text string  of M.plain
--- @param at integer?  where the line begins
--- @return string?
function M.first(text, at)
  local from = text:match("^[ \t\r\f\v%$%-%+%*]*()", at or 1)
  if not text:find("^%.?%d", from) then return nil end
  local last, value = M.at(text, from)
  if text:find("^[ \t]*/[ \t]*%d", last + 1) then return nil end
  return value
end

--- The last number of a text.
--- @param text string
--- @return string?
function M.last(text)
  text = M.plain(text)
  local value, at = nil, 1
  while true do
    local from = next_number(text, at)
    if not from then return value end
    local last, found = M.at(text, from)
    value, at = found or value, last + 1
  end
end

--- The number that a text is, nothing before or behind it but spaces, a sign, $, % and a final point.
--- @param text string
--- @return string?
function M.whole(text)
  text = M.plain(text)
  local from = text:match "^%s*%$%-()" or text:match "^%s*[%-%+]?%$?()"
  if not text:find("^%.?%d", from) then return nil end
  local last, value = M.at(text, from)
  if not text:find("^%s*%%?%.?%s*$", last + 1) then return nil end
  return value
end

return M
