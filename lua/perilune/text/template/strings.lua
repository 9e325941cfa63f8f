-- strings.lua - text as Python sees it: counted in code points, with Python's idea of white space.
-- Texts are Lua strings of UTF-8; bytes that are no UTF-8 count as characters of their own and pass
-- through. Nothing here matches patterns that come from a template.

local M = {}

--- @param s string
--- @return boolean
local function ascii(s) return not s:find "[\128-\255]" end
M.ascii = ascii

-- Length of the white-space character at byte i, or nil.
local function space_at(s, i)
  local b = s:byte(i)
  if not b then return nil end
  if b < 128 then return (b == 32 or b >= 9 and b <= 13 or b >= 28 and b <= 31) and 1 or nil end
  local c, d = s:byte(i + 1, i + 2)
  if b == 0xC2 then return (c == 0x85 or c == 0xA0) and 2 or nil end
  if b == 0xE1 then return c == 0x9A and d == 0x80 and 3 or nil end
  if b == 0xE2 and d then
    if c == 0x80 and (d >= 0x80 and d <= 0x8A or d == 0xA8 or d == 0xA9 or d == 0xAF) then return 3 end
    return c == 0x81 and d == 0x9F and 3 or nil
  end
  return b == 0xE3 and c == 0x80 and d == 0x80 and 3 or nil
end

--- First byte at or behind i that opens no white space; #s + 1 where all is white.
--- @param s string
--- @param i integer
--- @return integer
function M.skip_space(s, i)
  while true do
    local _, last = s:find("^[%s\28-\31]+", i)
    if last then i = last + 1 end
    local n = space_at(s, i)
    if not n then return i end
    i = i + n
  end
end

--- Last byte at or before j that is not part of white space; first - 1 where all is white.
--- @param s string
--- @param j integer
--- @param first integer
--- @return integer
function M.skip_space_back(s, j, first)
  while j >= first do
    local behind = s:sub(first, j):match "^.*[^%s\28-\31]()"
    if not behind then return first - 1 end
    j = first + behind - 2
    if s:byte(j) < 128 then
      return j
    elseif j - 1 >= first and space_at(s, j - 1) == 2 then
      j = j - 2
    elseif j - 2 >= first and space_at(s, j - 2) == 3 then
      j = j - 3
    else
      return j
    end
  end
  return j
end

--- First and last byte of the next run of white space at or behind i, or nil.
--- @param s string
--- @param i integer
function M.find_space(s, i)
  while true do
    local at = s:find("[%s\28-\31\194\225-\227]", i)
    if not at then return nil end
    if space_at(s, at) then return at, M.skip_space(s, at) - 1 end
    i = at + 1
  end
end

--- The characters of a text, one string each.
--- @param s string
--- @return table  with n
function M.chars(s)
  local list, n = {}, 0
  local loose = s:match "^[\128-\191]+"
  if loose then n, list[1] = 1, loose end
  for c in s:gmatch "[\0-\127\192-\255][\128-\191]*" do
    n = n + 1
    list[n] = c
  end
  list.n = n
  return list
end

--- Length in code points.
--- @param s string
--- @return integer
function M.len(s)
  if ascii(s) then return #s end
  return utf8.len(s, 1, -1, true) or M.chars(s).n
end

--- Characters number i to j, from 0, j excluded; both within the text.
--- @param s string
--- @param i integer
--- @param j integer
--- @return string
function M.sub(s, i, j)
  if i >= j then return "" end
  if ascii(s) then return s:sub(i + 1, j) end
  if utf8.len(s, 1, -1, true) then
    local a = utf8.offset(s, i + 1)
    return s:sub(a, utf8.offset(s, j - i + 1, a) - 1)
  end
  return table.concat(M.chars(s), "", i + 1, j)
end

--- Number of the character (from 0) that byte i opens.
--- @param s string
--- @param i integer
--- @return integer
function M.char_of_byte(s, i) return M.len(s:sub(1, i - 1)) end

--- @param s string
--- @param side string?  "left", "right", or both
--- @param chars string?  to take off; white space without
--- @return string
function M.strip(s, side, chars)
  if not chars then
    local i = side ~= "right" and M.skip_space(s, 1) or 1
    local j = side ~= "left" and M.skip_space_back(s, #s, i) or #s
    return s:sub(i, j)
  end
  local set, list = {}, M.chars(chars)
  for k = 1, list.n do set[list[k]] = true end
  local text = M.chars(s)
  local i, j = 1, text.n
  if side ~= "right" then while i <= j and set[text[i]] do i = i + 1 end end
  if side ~= "left" then while j >= i and set[text[j]] do j = j - 1 end end
  return table.concat(text, "", i, j)
end

-- Case: ASCII, Latin-1, Latin Extended-A, Greek and Cyrillic; other scripts stay as they are.
local to_upper, to_lower = {}, {}

local function pair(up, low)
  local u, l = utf8.char(up), utf8.char(low)
  to_upper[l], to_lower[u] = u, l
end

for c = 0xC0, 0xDE do if c ~= 0xD7 then pair(c, c + 32) end end
for c = 0x100, 0x136, 2 do if c ~= 0x130 then pair(c, c + 1) end end
for c = 0x139, 0x147, 2 do pair(c, c + 1) end
for c = 0x14A, 0x176, 2 do pair(c, c + 1) end
for c = 0x179, 0x17D, 2 do pair(c, c + 1) end
for c = 0x391, 0x3AB do if c ~= 0x3A2 then pair(c, c + 32) end end
for c = 0x410, 0x42F do pair(c, c + 32) end
for c = 0x400, 0x40F do pair(c, c + 80) end
for c = 0x460, 0x480, 2 do pair(c, c + 1) end
for c = 0x48A, 0x4BE, 2 do pair(c, c + 1) end
for c = 0x4D0, 0x52E, 2 do pair(c, c + 1) end
for c = 0x531, 0x556 do pair(c, c + 48) end
for c = 0x1E00, 0x1E94, 2 do pair(c, c + 1) end
for c = 0x1EA0, 0x1EFE, 2 do pair(c, c + 1) end
pair(0x178, 0xFF)
for up, low in pairs { [0x386] = 0x3AC, [0x388] = 0x3AD, [0x389] = 0x3AE, [0x38A] = 0x3AF,
  [0x38C] = 0x3CC, [0x38E] = 0x3CD, [0x38F] = 0x3CE } do pair(up, low) end
to_upper["ß"], to_upper["ς"], to_upper["ŉ"] = "SS", "Σ", "ʼN"
to_upper["µ"], to_lower["ẞ"], to_lower["İ"], to_upper["ı"] = "Μ", "ß", "i̇", "I"

local CHARACTER = "[\192-\255][\128-\191]*"

--- @param s string
--- @return string
function M.upper(s)
  s = s:upper()
  return ascii(s) and s or (s:gsub(CHARACTER, to_upper))
end

--- @param s string
--- @return string
function M.lower(s)
  s = s:lower()
  return ascii(s) and s or (s:gsub(CHARACTER, to_lower))
end

--- Whether the character is a cased letter, and which case: "upper", "lower" or nil.
--- @param c string
function M.case(c)
  if #c == 1 then return c:find "^%u$" and "upper" or c:find "^%l$" and "lower" or nil end
  return to_lower[c] and "upper" or to_upper[c] and "lower" or nil
end

--- Whether a character is a letter. Beyond ASCII: everything from U+00AA on that is neither
--- white space nor punctuation or a symbol of the common blocks.
--- @param c string
--- @return boolean
function M.is_letter(c)
  if #c == 1 then return c:find "^%a$" ~= nil end
  if space_at(c, 1) then return false end
  local ok, code = pcall(utf8.codepoint, c, 1, 1, true)
  if not ok then return false end
  return code >= 0xC0 and code ~= 0xD7 and code ~= 0xF7 and not (code >= 0x2000 and code <= 0x2BFF)
    and not (code >= 0x3000 and code <= 0x3004) and not (code >= 0x3008 and code <= 0x3020)
    and not (code >= 0xE000 and code <= 0xF8FF) and not (code >= 0xFF00 and code <= 0xFF20)
    and not (code >= 0x1F000 and code <= 0x1FBFF) or code == 0xAA or code == 0xB5 or code == 0xBA
end

--- Lines as str.splitlines makes them.
--- @param s string
--- @param keep boolean?  the line ends too
--- @return table  with n
function M.lines(s, keep)
  local out, n, i = {}, 0, 1
  while i <= #s do
    local at, last
    local from = i
    while true do
      at = s:find("[\n\r\v\f\28-\30\194\226]", from)
      if not at then break end
      local b, c, d = s:byte(at, at + 2)
      if b < 128 then last = (b == 13 and c == 10) and at + 1 or at
      elseif b == 0xC2 and c == 0x85 then last = at + 1
      elseif b == 0xE2 and c == 0x80 and (d == 0xA8 or d == 0xA9) then last = at + 2
      else last = nil end
      if last then break end
      from = at + 1
    end
    n = n + 1
    if not at then
      out[n] = s:sub(i)
      break
    end
    out[n] = s:sub(i, keep and last or at - 1)
    i = last + 1
  end
  out.n = n
  return out
end

--- Replaces plain text; at most limit times (all where negative).
--- @param s string
--- @param old string
--- @param new string
--- @param limit integer
--- @return string
function M.replace(s, old, new, limit)
  if limit == 0 then return s end
  local parts, n, i, count = {}, 0, 1, 0
  if old == "" then
    local list = M.chars(s)
    for k = 0, list.n do
      if limit < 0 or count < limit then
        n, count = n + 1, count + 1
        parts[n] = new
      end
      if k < list.n then
        n = n + 1
        parts[n] = list[k + 1]
      end
    end
    return table.concat(parts)
  end
  while limit < 0 or count < limit do
    local a, b = s:find(old, i, true)
    if not a then break end
    parts[n + 1], parts[n + 2] = s:sub(i, a - 1), new
    n, i, count = n + 2, b + 1, count + 1
  end
  if n == 0 then return s end
  parts[n + 1] = s:sub(i)
  return table.concat(parts)
end

--- How often a plain text occurs, without overlap.
--- @param s string
--- @param part string
--- @return integer
function M.count(s, part)
  if part == "" then return M.len(s) + 1 end
  local n, i = 0, 1
  while true do
    local _, b = s:find(part, i, true)
    if not b then return n end
    n, i = n + 1, b + 1
  end
end

return M
