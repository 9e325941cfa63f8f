-- methods.lua - the methods of Python's str, list, tuple, dict, int and float that a sandboxed template
-- may call: none changes its value. str.format is in operators.lua: it reads attributes.

local format = require "perilune.text.template.format"
local params = require "perilune.text.template.params"
local strings = require "perilune.text.template.strings"
local text = require "perilune.text.template.text"
local values = require "perilune.text.template.values"

local M = {}

local raise, charge, charge_text = values.raise, values.charge, values.charge_text
local None = values.None

local str, list, dict, float, int = {}, {}, {}, {}, {}
local by_type = { str = str, list = list, tuple = list, range = list, dict = dict, float = float, int = int,
  bool = int }

--- Name to function (value, args, names) of a type's methods, or nil.
--- @param t string
function M.of(t) return by_type[t] end

--- A table for the methods of one more type.
--- @param t string
function M.add(t)
  by_type[t] = {}
  return by_type[t]
end

local function def(where, name, spec, fn, raw) where[name] = params.bind(name, spec, fn, raw) end

-- Every method of a text is paid by the text's length.
local function text_def(name, spec, fn)
  local bound = params.bind(name, spec, fn)
  str[name] = function(s, args, names)
    charge_text(#s)
    return bound(s, args, names)
  end
end

local function optional_chars(chars)
  if chars == nil or chars == None then return nil end
  return values.str_arg(chars, "strip: chars")
end

for name, side in pairs { strip = "both", lstrip = "left", rstrip = "right" } do
  text_def(name, "/chars", function(s, chars)
    chars = optional_chars(chars)
    if chars then values.charge_chars(s) end
    return strings.strip(s, side, chars)
  end)
end

local function words(s, most)
  local out, n, i = {}, 0, strings.skip_space(s, 1)
  values.charge_chars(s)
  while i <= #s do
    local a, b = nil, nil
    if most < 0 or n < most then a, b = strings.find_space(s, i) end
    n = n + 1
    if not a then
      out[n] = s:sub(i)
      break
    end
    out[n] = s:sub(i, a - 1)
    i = b + 1
  end
  return out, n
end

local function words_back(s, most)
  local out, n, j = {}, 0, strings.skip_space_back(s, #s, 1)
  -- Runs of white space are found forwards: the ends of the last words are kept.
  local ends, count, i = {}, 0, 1
  values.charge_chars(s)
  while true do
    local a, b = strings.find_space(s, i)
    if not a or a > j then break end
    count = count + 1
    ends[count], i = { a, b }, b + 1
  end
  while j >= 1 do
    n = n + 1
    local space = ends[count]
    if n > most or not space or space[1] == 1 then
      out[n] = s:sub(n > most and 1 or space and space[2] + 1 or 1, j)
      break
    end
    out[n] = s:sub(space[2] + 1, j)
    j, count = space[1] - 1, count - 1
  end
  for k = 1, n // 2 do out[k], out[n + 1 - k] = out[n + 1 - k], out[k] end
  return out, n
end

local function pieces(s, sep, most)
  local out, n, i = {}, 0, 1
  while most < 0 or n < most do
    local a, b = s:find(sep, i, true)
    if not a then break end
    n = n + 1
    out[n] = s:sub(i, a - 1)
    i = b + 1
  end
  out[n + 1] = s:sub(i)
  return out, n + 1
end

-- Last place of a plain text, by looking in both texts backwards.
local function find_back(s, part)
  local a, b = s:reverse():find(part:reverse(), 1, true)
  if a then return #s - b + 1, #s - a + 1 end
end

local function pieces_back(s, sep, most)
  local out, n = pieces(s:reverse(), sep:reverse(), most)
  for k = 1, n // 2 do out[k], out[n + 1 - k] = out[n + 1 - k], out[k] end
  for k = 1, n do out[k] = out[k]:reverse() end
  return out, n
end

local function splitter(name, by_word, by_text)
  text_def(name, "sep maxsplit", function(s, sep, most)
    most = most == nil and -1 or values.int(most, name .. ": maxsplit")
    local out, n
    if sep == nil or sep == None then
      out, n = by_word(s, most)
    else
      if values.str_arg(sep, name .. ": sep") == "" then raise "empty separator" end
      values.charge_find(s, sep)
      out, n = by_text(s, sep, most)
    end
    charge(n)
    return values.list(out, n)
  end)
end
splitter("split", words, pieces)
splitter("rsplit", function(s, most)
  if most < 0 then return words(s, most) end
  return words_back(s, most)
end, function(s, sep, most)
  if most < 0 then return pieces(s, sep, most) end
  return pieces_back(s, sep, most)
end)

text_def("splitlines", "keepends", function(s, keep)
  local out = strings.lines(s, keep ~= nil and values.truth(keep))
  charge(out.n)
  return values.list(out)
end)

-- The part of a text from character first to last (Python's slice bounds; nil or None: open), and the
-- number of its first character; nil where it starts beyond the end.
local function range_of(s, first, last)
  if (first == nil or first == None) and (last == nil or last == None) then return s, 0 end
  local n = strings.len(s)
  local function clip(i, otherwise)
    if i == nil or i == None then return otherwise end
    i = values.int(i, "a bound")
    return math.max(0, i < 0 and i + n or math.min(i, n + 1))
  end
  local i, j = clip(first, 0), math.min(clip(last, n), n)
  if i > n or i > j then return nil, i end
  return strings.sub(s, i, j), i
end

local function edge(name, test)
  text_def(name, "/prefix! start end", function(s, part, first, last)
    local within = range_of(s, first, last)
    local function one(each)
      each = values.str_arg(values.plain(each), name .. ": the argument")
      charge(1)
      return within ~= nil and test(within, each)
    end
    if type(part) == "table" and part.t == "tuple" then
      for i = 1, part.n do if one(part[i]) then return true end end
      return false
    end
    return one(part)
  end)
end
edge("startswith", function(s, part) return s:sub(1, #part) == part end)
edge("endswith", function(s, part) return part == "" or s:sub(-#part) == part end)

local function finder(name, back, must)
  text_def(name, "/sub! start end", function(s, part, first, last)
    values.charge_find(s, values.str_arg(part, name .. ": the argument"))
    local within, offset = range_of(s, first, last)
    local at
    if within then
      if back then
        at = find_back(within, part)
      else
        at = within:find(part, 1, true)
      end
    end
    if at then return offset + strings.char_of_byte(within, at) end
    if must then raise "substring not found" end
    return -1
  end)
end
finder("find", false, false)
finder("rfind", true, false)
finder("index", false, true)
finder("rindex", true, true)

text_def("count", "/sub! start end", function(s, part, first, last)
  values.charge_find(s, values.str_arg(part, "count: the argument"))
  local within = range_of(s, first, last)
  return within and strings.count(within, part) or 0
end)

--- str.replace, paid for before it is made.
function M.replace(s, old, new, most)
  values.str_arg(old, "replace: the old text")
  values.str_arg(new, "replace: the new text")
  most = (most == nil or most == None) and -1 or values.int(most, "replace: count")
  values.charge_find(s, old)
  if old == "" then values.charge_chars(s) end
  if #new > #old and (most < 0 or most > 1) then
    local times = strings.count(s, old)
    if most >= 0 then times = math.min(times, most) end
    charge_text(#s + times * (#new - #old))
  end
  return strings.replace(s, old, new, most)
end
def(str, "replace", "/old! new! count", M.replace)

--- str.upper and str.lower, paid by the character where there is more than ASCII.
function M.upper(s)
  if not strings.ascii(s) then values.charge_chars(s) end
  return strings.upper(s)
end
function M.lower(s)
  if not strings.ascii(s) then values.charge_chars(s) end
  return strings.lower(s)
end
text_def("upper", "", M.upper)
text_def("lower", "", M.lower)
text_def("casefold", "", function(s) return (M.lower(s):gsub("ß", "ss")) end)

-- First character of each word as by first, the others as by rest.
local function recase(s, every_word)
  local out, inside = strings.chars(s), false
  for i = 1, out.n do
    local letter = strings.is_letter(out[i])
    local c = inside and strings.lower(out[i]) or strings.upper(out[i])
    out[i] = c == "SS" and "Ss" or c
    if every_word then inside = letter else inside = true end
  end
  return table.concat(out)
end
--- str.capitalize.
function M.capitalize(s)
  charge(#s)
  return recase(s, false)
end
text_def("capitalize", "", M.capitalize)
text_def("title", "", function(s)
  charge(#s)
  return recase(s, true)
end)
text_def("swapcase", "", function(s)
  charge(#s)
  local out = strings.chars(s)
  for i = 1, out.n do
    out[i] = strings.case(out[i]) == "upper" and strings.lower(out[i]) or strings.upper(out[i])
  end
  return table.concat(out)
end)

text_def("join", "/iterable!", function(sep, over)
  local items, n = values.iterate(over)
  local bytes, out = 0, {}
  for i = 1, n do
    out[i] = values.plain(items[i])
    if type(out[i]) ~= "string" then
      raise("sequence item %d: expected str instance, %s found", i - 1, values.type_name(items[i]))
    end
    bytes = bytes + #out[i] + #sep
  end
  charge(n)
  charge_text(bytes)
  return table.concat(out, sep, 1, n)
end)

-- Whether every character (of at least one) passes.
local function every(name, test)
  text_def(name, "", function(s)
    charge(#s)
    local list_of = strings.chars(s)
    for i = 1, list_of.n do if not test(list_of[i]) then return false end end
    return list_of.n > 0
  end)
end
local function is_digit(c) return c:find "^%d$" ~= nil end
every("isdigit", is_digit)
every("isdecimal", is_digit)
every("isnumeric", is_digit)
every("isalpha", strings.is_letter)
every("isalnum", function(c) return is_digit(c) or strings.is_letter(c) end)
every("isspace", function(c) return strings.skip_space(c, 1) > #c end)

local function cased(name, want)
  text_def(name, "", function(s)
    charge(#s)
    local list_of, seen = strings.chars(s), false
    for i = 1, list_of.n do
      local case = strings.case(list_of[i])
      if case and case ~= want then return false end
      seen = seen or case ~= nil
    end
    return seen
  end)
end
cased("isupper", "upper")
cased("islower", "lower")

text_def("istitle", "", function(s)
  charge(#s)
  local list_of, seen, inside = strings.chars(s), false, false
  for i = 1, list_of.n do
    local case = strings.case(list_of[i])
    if case == "upper" and inside or case == "lower" and not inside then return false end
    inside = case ~= nil
    seen = seen or inside
  end
  return seen
end)
text_def("isascii", "", strings.ascii)
text_def("isidentifier", "", function(s) return s:find "^[%a_\128-\255][%w_\128-\255]*$" ~= nil end)
text_def("isprintable", "", function(s) return not text.quote(s):find "\\[xuUnrt]" end)

local function width_of(n)
  n = values.int(n, "width")
  if n > 0 then charge_text(n) end
  return n
end

for name, align in pairs { center = "^", ljust = "<", rjust = ">" } do
  text_def(name, "/width! fillchar", function(s, width, fill)
    fill = fill == nil and " " or values.str_arg(fill, "fillchar")
    if strings.len(fill) ~= 1 then raise "the fill character must be exactly one character long" end
    width = width_of(width)
    local gap = width - strings.len(s)
    -- Python puts the odd blank of center on the left where the width is odd.
    if align == "^" and gap > 0 then
      local left = gap // 2 + (gap & width & 1)
      return fill:rep(left) .. s .. fill:rep(gap - left)
    end
    return format.pad(s, width, align, fill, "")
  end)
end

text_def("zfill", "/width!", function(s, width)
  local gap = width_of(width) - strings.len(s)
  if gap <= 0 then return s end
  local sign, rest = s:match "^([-+]?)(.*)$"
  return sign .. ("0"):rep(gap) .. rest
end)

text_def("removeprefix", "/prefix!", function(s, part)
  values.str_arg(part, "removeprefix: the argument")
  return s:sub(1, #part) == part and s:sub(#part + 1) or s
end)
text_def("removesuffix", "/suffix!", function(s, part)
  values.str_arg(part, "removesuffix: the argument")
  return part ~= "" and s:sub(-#part) == part and s:sub(1, -#part - 1) or s
end)

for name, back in pairs { partition = false, rpartition = true } do
  text_def(name, "/sep!", function(s, sep)
    if values.str_arg(sep, name .. ": sep") == "" then raise "empty separator" end
    values.charge_find(s, sep)
    local a, b
    if back then a, b = find_back(s, sep) else a, b = s:find(sep, 1, true) end
    if a then return values.tuple { s:sub(1, a - 1), sep, s:sub(b + 1) } end
    return values.tuple(back and { "", "", s } or { s, "", "" })
  end)
end

text_def("expandtabs", "tabsize", function(s, size)
  size = size == nil and 8 or values.int(size, "tabsize")
  if size > 1000 then raise "tabsize over 1000" end
  charge(#s)
  charge_text(#s + strings.count(s, "\t") * math.max(size, 0))
  local out, column = strings.chars(s), 0
  for i = 1, out.n do
    local c = out[i]
    if c == "\t" then
      local n = size > 0 and size - column % size or 0
      out[i], column = (" "):rep(n), column + n
    else
      column = (c == "\n" or c == "\r") and 0 or column + 1
    end
  end
  return table.concat(out)
end)

-- ---- sequences, dicts, numbers ----

def(list, "index", "/value! start stop", function(v, x, first, last)
  local i = first == nil and 0 or values.int(first, "start")
  local j = last == nil and v.n or values.int(last, "stop")
  if i < 0 then i = math.max(i + v.n, 0) end
  if j < 0 then j = j + v.n end
  for k = i + 1, math.min(j, v.n) do if values.eq(v[k], x) then return k - 1 end end
  raise "the value is not in the list"
end)
def(list, "count", "/value!", function(v, x)
  local n = 0
  for k = 1, v.n do if values.eq(v[k], x) then n = n + 1 end end
  return n
end)
def(list, "copy", "", function(v)
  if v.t ~= "list" then raise("'%s' has no attribute 'copy'", v.t) end
  return values.list(values.copy(v, v.n))
end)

def(dict, "get", "/key! default", function(v, key, default)
  local value = values.get(v, key)
  if value == nil then return default == nil and None or default end
  return value
end, "all")
def(dict, "keys", "", function(v) return values.view("dict_keys", values.copy(v.keys, v.n), v.n) end)
def(dict, "values", "", function(v)
  charge(v.n)
  local out = {}
  for i = 1, v.n do out[i] = v.map[v.seen[i]] end
  return values.view("dict_values", out, v.n)
end)
--- The pairs of a dict as tuples, in a table.
function M.items(v)
  charge(v.n * 2)
  local out = {}
  for i = 1, v.n do out[i] = values.tuple({ values.pair(v, i) }, 2) end
  return out
end
def(dict, "items", "", function(v) return values.view("dict_items", M.items(v), v.n) end)
--- A dict of its own with the same members.
function M.copy(v)
  local out = values.dict()
  charge(v.n)
  for i = 1, v.n do values.put(out, values.pair(v, i)) end
  return out
end
def(dict, "copy", "", M.copy)

def(float, "is_integer", "", function(v) return math.tointeger(v) ~= nil end)
def(int, "is_integer", "", function() return true end)
def(int, "bit_length", "", function(v)
  local n, bits = math.abs(values.num(v)), 0
  while n ~= 0 do n, bits = n >> 1, bits + 1 end
  return bits
end)

M.str = str

return M
