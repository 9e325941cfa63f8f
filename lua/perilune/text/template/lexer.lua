-- lexer.lua - template source to tokens, as Jinja2 does it under trim_blocks and lstrip_blocks.
-- A bad character or an open end raises a syntax error with its place.

local strings = require "perilune.text.template.strings"

local M = {}

--- Line and column (both from 1) of a byte of the source.
--- @param source string
--- @param at integer
--- @return integer line
--- @return integer column
function M.place(source, at)
  local line, start = 1, 1
  while true do
    local nl = source:find("\n", start, true)
    if not nl or nl >= at then return line, strings.len(source:sub(start, at - 1)) + 1 end
    line, start = line + 1, nl + 1
  end
end

--- Raises a syntax error at a byte of the source.
--- @param source string
--- @param at integer
function M.fail(source, at, fmt, ...)
  local line, column = M.place(source, at)
  error({ template_error = fmt:format(...), line = line, column = column }, 0)
end

local operators = {}
for op in ("// ** == != >= <= + - / * % ~ [ ] ( ) { } > < = . : | , ;"):gmatch "%S+" do
  operators[op] = op
end

local closing = { ["("] = ")", ["["] = "]", ["{"] = "}" }

local escapes = { n = "\n", t = "\t", r = "\r", a = "\a", b = "\b", f = "\f", v = "\v", ["\\"] = "\\",
  ["'"] = "'", ['"'] = '"', ["\n"] = "" }
local hex_digits = { x = 2, u = 4, U = 8 }

-- The value of a string literal's inside.
local function unescape(source, at, s)
  if not s:find("\\", 1, true) then return s end
  local out, n, i = {}, 0, 1
  local function put(text) n = n + 1; out[n] = text end
  while true do
    local b = s:find("\\", i, true)
    if not b then break end
    put(s:sub(i, b - 1))
    local c = s:sub(b + 1, b + 1)
    i = b + 2
    if escapes[c] then
      put(escapes[c])
    elseif hex_digits[c] then
      local digits = s:match("^%x+", i) or ""
      local want = hex_digits[c]
      if #digits < want then M.fail(source, at, "truncated \\%s escape in a string", c) end
      local code = tonumber(digits:sub(1, want), 16)
      i = i + want
      -- A surrogate pair written as two escapes is one character.
      local low = code >= 0xD800 and code < 0xDC00 and s:match("^\\u(%x%x%x%x)", i)
      low = low and tonumber(low, 16)
      if low and low >= 0xDC00 and low < 0xE000 then
        code, i = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00), i + 6
      end
      if code > 0x10FFFF then M.fail(source, at, "illegal Unicode character in a string") end
      put(utf8.char(code))
    elseif c:find "[0-7]" then
      local digits = s:match("^[0-7][0-7]?[0-7]?", b + 1)
      put(utf8.char(tonumber(digits, 8)))
      i = b + 1 + #digits
    elseif c == "N" then
      M.fail(source, at, "character names (\\N) in strings are not supported")
    else
      put("\\" .. c)
    end
  end
  put(s:sub(i))
  return table.concat(out)
end

-- A number at byte i: kind, value, byte behind it; nil where there is none.
local function number(source, i)
  if not source:find("^%d", i) then return nil end
  if source:sub(i - 1, i - 1) ~= "." then
    local digits = source:match("^[%d_]+", i)
    digits = digits:match "^%d[%d_]*%d" or digits:match "^%d"
    if not digits:find("__", 1, true) then
      local j = i + #digits
      local fraction = source:match("^%.%d[%d_]*", j)
      if fraction then fraction = fraction:gsub("_+$", "") end
      local k = j + (fraction and #fraction or 0)
      local exponent = source:match("^[eE][+-]?%d[%d_]*", k)
      if exponent then exponent = exponent:gsub("_+$", "") end
      if fraction or exponent then
        local text = digits .. (fraction or "") .. (exponent or "")
        return "float", tonumber((text:gsub("_", ""))) + 0.0, i + #text
      end
    end
  end
  local prefix = source:match("^0([bBoOxX])_?%x", i)
  local base = prefix and ({ b = 2, o = 8, x = 16 })[prefix:lower()]
  if base then
    local digits = source:match(base == 2 and "^[01_]+" or base == 8 and "^[0-7_]+" or "^[%x_]+", i + 2)
    if digits then digits = digits:gsub("_+$", "") end
    local plain = digits and digits:gsub("_", "")
    if plain and plain ~= "" then
      if #plain > (base == 16 and 15 or base == 8 and 20 or 62) then
        M.fail(source, i, "an integer is too large")
      end
      return "integer", tonumber(plain, base), i + 2 + #digits
    end
  end
  local digits = source:match("^0[0_]*", i) or source:match("^[1-9][%d_]*", i)
  digits = digits:gsub("_+$", "")
  local value = math.tointeger(tonumber((digits:gsub("_", ""))))
  if not value or math.type(tonumber((digits:gsub("_", "")))) ~= "integer" then
    M.fail(source, i, "integer %s is too large (64 bits)", digits:sub(1, 40))
  end
  return "integer", value, i + #digits
end

-- Tokens of one tag from byte i until its end; returns the byte behind the tag.
local function tag(source, i, put, block)
  local start, open = i, {}
  while true do
    i = strings.skip_space(source, i)
    if i > #source then
      M.fail(source, start, "unexpected end of the template: %q is not closed", block and "{%" or "{{")
    end
    if #open == 0 then
      if block then
        if source:find("^%+%%}", i) then put("block_end", nil, i) return i + 3 end
        if source:find("^%-%%}", i) then put("block_end", nil, i) return strings.skip_space(source, i + 3) end
        local _, last = source:find("^%%}\n?", i)
        if last then put("block_end", nil, i) return last + 1 end
      else
        if source:find("^%-}}", i) then put("variable_end", nil, i) return strings.skip_space(source, i + 3) end
        if source:find("^}}", i) then put("variable_end", nil, i) return i + 2 end
      end
    end
    local c = source:sub(i, i)
    local kind, value, behind = number(source, i)
    if kind then
      put(kind, value, i)
      i = behind
    elseif c:find "[%a_\128-\255]" then
      local name = source:match("^[%w_\128-\255]+", i)
      put("name", name, i)
      i = i + #name
    elseif c == "'" or c == '"' then
      local j = i + 1
      while true do
        j = source:find(c == "'" and "['\\]" or '["\\]', j)
        if not j then M.fail(source, i, "a string is not closed") end
        if source:sub(j, j) == c then break end
        j = j + 2
      end
      put("string", unescape(source, i, source:sub(i + 1, j - 1)), i)
      i = j + 1
    else
      local op = operators[source:sub(i, i + 1)] or operators[c]
      if not op then M.fail(source, i, "unexpected character %q", c) end
      if closing[op] then
        open[#open + 1] = closing[op]
      elseif op == ")" or op == "]" or op == "}" then
        local expected = table.remove(open)
        if not expected then M.fail(source, i, "unexpected '%s'", op) end
        if expected ~= op then M.fail(source, i, "unexpected '%s', expected '%s'", op, expected) end
      end
      put(op, op, i)
      i = i + #op
    end
  end
end

-- Data before a tag under the tag's sign.
local function trimmed(text, sign, variable, line_start)
  if sign == "-" then return text:sub(1, strings.skip_space_back(text, #text, 1)) end
  if sign == "+" or variable then return text end
  local last = 0
  while true do
    local nl = text:find("\n", last + 1, true)
    if not nl then break end
    last = nl
  end
  if (last > 0 or line_start) and strings.skip_space(text, last + 1) > #text then return text:sub(1, last) end
  return text
end

-- Where a comment or a raw block ends: first byte of the end, byte behind it, its sign.
local function comment_end(source, i, start)
  local at = source:find("#}", i, true)
  if not at then M.fail(source, start, "a comment is not closed") end
  local sign = at > i and source:sub(at - 1, at - 1) or ""
  if sign == "-" then return strings.skip_space(source, at + 2) end
  if sign ~= "+" and source:sub(at + 2, at + 2) == "\n" then return at + 3 end
  return at + 2
end

local function raw_end(source, i, start)
  local from = i
  while true do
    local at, last, sign = source:find("{%%([-+]?)%s*endraw", from)
    if not at then M.fail(source, start, "a raw block is not closed: endraw is missing") end
    local j = strings.skip_space(source, last + 1)
    if source:find("^%+%%}", j) then return at, j + 3, sign end
    if source:find("^%-%%}", j) then return at, strings.skip_space(source, j + 3), sign end
    local _, done = source:find("^%%}\n?", j)
    if done then return at, done + 1, sign end
    from = at + 2
  end
end

--- Tokens of a template: parallel lists of kinds, values and bytes in the returned source, whose
--- line ends are "\n" and which lacks one line end at its end.
--- @param text string
--- @return table tokens  { kind =, value =, at =, n = }
--- @return string source
function M.tokens(text)
  local source = text:gsub("\r\n?", "\n")
  if source:sub(-1) == "\n" then source = source:sub(1, -2) end
  local kinds, values, places, n = {}, {}, {}, 0
  local function put(kind, value, at)
    n = n + 1
    kinds[n], values[n], places[n] = kind, value == nil and false or value, at
  end
  local i, line_start = 1, true
  while i <= #source do
    local at = source:find("{[{%%#]", i)
    if not at then
      put("data", source:sub(i), i)
      break
    end
    local kind = source:sub(at + 1, at + 1)
    local sign = source:match("^[-+]", at + 2) or ""
    local data = trimmed(source:sub(i, at - 1), sign, kind == "{", line_start)
    if data ~= "" then put("data", data, i) end
    local inside = at + 2 + #sign
    local raw = kind == "%" and source:match("^%s*raw()", inside)
    if raw then
      raw = strings.skip_space(source, raw)
      if source:find("^%-%%}", raw) then raw = strings.skip_space(source, raw + 3)
      elseif source:find("^%%}", raw) then raw = raw + 2
      else raw = nil end
    end
    if raw then
      local last, behind, mark = raw_end(source, raw, at)
      local inner = trimmed(source:sub(raw, last - 1), mark, false, source:sub(raw - 1, raw - 1) == "\n")
      if inner ~= "" then put("data", inner, raw) end
      i = behind
    elseif kind == "#" then
      i = comment_end(source, inside, at)
    elseif kind == "%" then
      put("block_begin", nil, at)
      i = tag(source, inside, put, true)
    else
      put("variable_begin", nil, at)
      i = tag(source, inside, put, false)
    end
    line_start = source:sub(i - 1, i - 1) == "\n"
  end
  put("eof", nil, #source + 1)
  return { kind = kinds, value = values, at = places, n = n }, source
end

return M
