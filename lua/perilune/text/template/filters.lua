-- filters.lua - what may stand behind "|" for single values: name to function (value, args, names).
-- Those that work over sequences are in sequences.lua. Texts are not escaped on output; "safe" and
-- "escape" make markup, which escapes what it is put together with, as MarkupSafe's does.

local format = require "perilune.text.template.format"
local markup = require "perilune.text.template.markup"
local methods = require "perilune.text.template.methods"
local operators = require "perilune.text.template.operators"
local params = require "perilune.text.template.params"
local strings = require "perilune.text.template.strings"
local text = require "perilune.text.template.text"
local values = require "perilune.text.template.values"

local filters = {}

local raise, charge, charge_text = values.raise, values.charge, values.charge_text
local type_of, truth, None = values.type, values.truth, values.None

local function def(names, spec, fn, raw)
  for name in names:gmatch "%S+" do filters[name] = params.bind("filter " .. name, spec, fn, raw) end
end

-- A filter of a text: whatever comes is turned into one, and paid for. keeps: of markup it makes markup.
local function text_def(names, spec, fn, keeps)
  def(names, spec, function(v, ...)
    local s = text.str(v)
    charge_text(#s)
    local result = fn(s, ...)
    return keeps and values.is_markup(v) and values.markup(result) or result
  end, "first")
end
local KEEPS <const> = true

local function flag(v) return v ~= nil and truth(v) end

def("default d", "default_value boolean", function(v, default, boolean)
  if default == nil then default = "" end
  if type_of(v) == "undef" or flag(boolean) and not truth(v) then return default end
  return v
end, "all")

text_def("string", "", function(s) return s end, KEEPS)
text_def("safe", "", values.markup)
text_def("upper", "", methods.upper, KEEPS)
text_def("lower", "", methods.lower, KEEPS)
text_def("capitalize", "", methods.capitalize, KEEPS)

text_def("title", "", function(s)
  charge(#s)
  local out, first = strings.chars(s), true
  for i = 1, out.n do
    local c = out[i]
    out[i] = first and strings.upper(c) or strings.lower(c)
    first = c:find "^[-({%[<]$" ~= nil or strings.skip_space(c, 1) > #c
  end
  return table.concat(out)
end)

text_def("trim", "chars", function(s, chars)
  if chars == nil or chars == None then return strings.strip(s) end
  values.charge_chars(s)
  return strings.strip(s, nil, values.str_arg(chars, "trim: chars"))
end, KEEPS)

def("replace", "old! new! count", function(v, old, new, count)
  return methods.replace(text.str(v), text.str(old), text.str(new), count)
end)

def("escape e", "", function(v)
  if values.is_markup(v) then return v end
  return values.markup(text.escape(v))
end, "first")
def("forceescape", "", function(v) return values.markup(text.escape_text(text.str(v))) end)

text_def("striptags", "", markup.striptags)

text_def("wordcount", "", function(s)
  local n = 0
  values.charge_chars(s)
  for _ in s:gmatch "[%w_\128-\255]+" do n = n + 1 end
  return n
end)

text_def("center", "width", function(s, width)
  return methods.str.center(s, { n = 1, width == nil and 80 or width })
end, KEEPS)

def("indent", "width first blank", function(v, width, first, blank)
  local s = values.str_arg(values.plain(values.defined(v)), "indent: the value")
  if width == nil then width = 4 end
  if type(width) ~= "string" then
    width = values.int(width, "indent: width")
    if width > 10000 then raise "indent: a width over 10000" end
    width = (" "):rep(width)
  end
  s = s .. "\n"
  local lines = strings.lines(s)
  charge(lines.n)
  charge_text(#s + lines.n * #width)
  for i = 2, lines.n do
    if lines[i] ~= "" or flag(blank) then lines[i] = width .. lines[i] end
  end
  local result = (flag(first) and width or "") .. table.concat(lines, "\n", 1, lines.n)
  return values.is_markup(v) and values.markup(result) or result
end, "first")

def("truncate", "length killwords end leeway", function(v, length, kill, mark, leeway)
  length = length == nil and 255 or values.int(length, "truncate: length")
  mark = mark == nil and "..." or mark
  values.str_arg(values.plain(mark), "truncate: end")
  leeway = (leeway == nil or leeway == None) and 5 or values.int(leeway, "truncate: leeway")
  local n, dots = values.len(v), values.len(mark)
  if length < dots then raise("truncate: expected length >= %d, got %d", dots, length) end
  if leeway < 0 then raise("truncate: expected leeway >= 0, got %d", leeway) end
  if n <= length + leeway then return v end
  local s = values.str_arg(values.plain(v), "truncate: the value")
  charge_text(#s)
  local head = strings.sub(s, 0, length - dots)
  if not flag(kill) then head = head:match "^(.*) [^ ]*$" or head end
  return operators.binary["+"](values.is_markup(v) and values.markup(head) or head, mark)
end, "all")

filters.format = function(v, args, names)
  if names and args and args.n > 0 then raise "format: arguments by position or by name, not both" end
  local given = names or values.tuple(values.copy(args or {}, args and args.n or 0))
  return operators.binary["%"](values.is_markup(v) and v or text.str(v), given)
end

local function quoted(v, slash)
  local s = text.str(v)
  charge(#s)
  return (s:gsub("[^%w_.~" .. (slash and "/" or "") .. "-]", function(c) return ("%%%02X"):format(c:byte()) end))
end

def("urlencode", "", function(v)
  local t = type_of(v)
  if t == "str" then return quoted(v, true) end
  local pairs_of = t == "dict" and values.list(methods.items(v), v.n) or v
  if not values.iterable(v) or t == "undef" then return quoted(v, true) end
  local items, n = values.iterate(pairs_of)
  local out = {}
  for i = 1, n do
    local pair = items[i]
    if type_of(pair) ~= "tuple" and type_of(pair) ~= "list" or pair.n ~= 2 then raise "urlencode needs pairs" end
    out[i] = quoted(pair[1]):gsub("%%20", "+") .. "=" .. quoted(pair[2]):gsub("%%20", "+")
  end
  return table.concat(out, "&")
end)

-- ---- numbers ----

def("abs", "", function(v)
  local x = values.num(values.defined(v))
  if not x then raise("bad operand type for abs(): '%s'", values.type_name(v)) end
  if x == math.mininteger and math.type(x) == "integer" then raise "integer too large (64 bits)" end
  return math.abs(x)
end)

-- A number's text; none is longer than 1000 bytes: matching takes the square of the length.
local function plain_number(s)
  s = strings.strip(s)
  if #s > 1000 then return nil end
  return s:match "^[+-]?%d[%d_]*%.?[%d_]*[eE]?[+-]?%d*$" or s:match "^[+-]?%.%d[%d_]*[eE]?[+-]?%d*$"
end

-- float() of a text, or nil.
local function read_float(s)
  local body = plain_number(s)
  if body and not body:find "__" and not body:find "_$" and not body:find "_[.eE]" and not body:find "[.eE]_" then
    local x = tonumber((body:gsub("_", ""):gsub("^%+", "")))
    return x and x + 0.0
  end
  local word = strings.strip(s):lower()
  local sign, name = word:match "^([+-]?)(%a+)$"
  if name == "inf" or name == "infinity" then return sign == "-" and -math.huge or math.huge end
  return name == "nan" and 0 / 0 or nil
end

local function read_int(s, base)
  local sign, body = strings.strip(s):lower():match "^([+-]?)([%w_]+)$"
  if not body or #body > 1000 or body:find "__" or body:find "_$" then return nil end
  local prefix = base == 16 and "^0x_?" or base == 8 and "^0o_?" or base == 2 and "^0b_?" or nil
  if base == 0 then
    local kind = body:match "^0([xob])"
    base = kind and ({ x = 16, o = 8, b = 2 })[kind] or 10
    prefix = kind and "^0" .. kind .. "_?" or nil
    if not kind and body:find "^0[0_]*[1-9]" then return nil end
  end
  if prefix then body = body:gsub(prefix, "") end
  body = body:gsub("_", "")
  if base < 2 or base > 36 or body == "" or not tonumber(body, base) then return nil end
  local value, most = 0, math.maxinteger
  for i = 1, #body do
    local digit = tonumber(body:sub(i, i), 36)
    if value > (most - digit) // base then raise "integer too large (64 bits)" end
    value = value * base + digit
  end
  return sign == "-" and -value or value
end

def("int", "default base", function(v, default, base)
  if default == nil then default = 0 end
  base = base == nil and 10 or values.int(base, "int: base")
  values.defined(v)
  if type(v) == "string" then
    values.charge_chars(v)
    local x = read_int(v, base)
    if x then return x end
    x = read_float(v)
    if not x or x ~= x then return default end
    if math.abs(x) == math.huge then return default end
    return format.truncate(x)
  end
  local x = values.num(v)
  if not x then return default end
  if x ~= x or math.abs(x) == math.huge then return default end
  return format.truncate(x)
end)

def("float", "default", function(v, default)
  values.defined(v)
  if default == nil then default = 0.0 end
  if type(v) == "string" then
    charge_text(#v)
    return read_float(v) or default
  end
  local x = values.num(v)
  return x and x + 0.0 or default
end)

def("round", "precision method", function(v, precision, method)
  precision = precision == nil and 0 or values.int(precision, "round: precision")
  if method == nil then method = "common" end
  if method ~= "common" and method ~= "ceil" and method ~= "floor" then
    raise "method must be common, ceil or floor"
  end
  local x = values.num(values.defined(v))
  if not x then raise("round: a number is needed, not %s", values.type_name(v)) end
  if precision > 300 or precision < -300 then raise "round: a precision beyond 300" end
  if method == "common" then
    if math.type(x) == "integer" then
      if precision >= 0 then return x end
      if precision < -18 then return 0 end
      local unit = math.tointeger(10.0 ^ -precision)
      local down = x // unit * unit
      local rest = x - down
      local up = rest * 2 > unit or rest * 2 == unit and (down // unit) % 2 == 1
      return up and down + unit or down
    end
    if x ~= x or math.abs(x) == math.huge then
      return x
    end
    if precision >= 0 then return tonumber(("%." .. math.min(precision, 99) .. "f"):format(x)) + 0.0 end
    local unit = 10.0 ^ -precision
    local down = x // unit
    local rest = x / unit - down
    if rest > 0.5 or rest == 0.5 and down % 2 == 1 then down = down + 1 end
    return down * unit
  end
  local unit = 10.0 ^ precision
  if precision >= 0 and precision <= 18 and math.type(x) == "integer" then unit = math.tointeger(unit) end
  local scaled = operators.binary["*"](x, unit)
  if scaled ~= scaled or math.abs(scaled) == math.huge then raise "cannot round an infinite number" end
  return (method == "ceil" and math.ceil(scaled) or math.floor(scaled)) / (10.0 ^ precision)
end)

def("filesizeformat", "binary", function(v, binary)
  local bytes = type(v) == "string" and read_float(v) or values.num(values.defined(v))
  if not bytes then raise("filesizeformat: a number is needed, not %s", values.type_name(v)) end
  local base = flag(binary) and 1024 or 1000
  local names = flag(binary) and { "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB" }
    or { "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB" }
  bytes = bytes + 0.0
  if bytes == 1 then return "1 Byte" end
  if bytes < base then return ("%d Bytes"):format(format.truncate(bytes)) end
  for i, name in ipairs(names) do
    if bytes < (base + 0.0) ^ (i + 1) or i == #names then
      return ("%.1f %s"):format(base * bytes / (base + 0.0) ^ (i + 1), name)
    end
  end
end)

-- ---- JSON ----

-- transformers' tojson: no HTML escapes, text as it is.
def("tojson", "ensure_ascii indent separators sort_keys", function(v, ascii, indent, separators, sort)
  local item, key = nil, ": "
  if indent == None then indent = nil end
  if indent ~= nil and type(indent) ~= "string" then
    indent = values.int(indent, "tojson: indent")
    if indent > 1000 then raise "tojson: an indent over 1000" end
    indent = (" "):rep(indent)
  end
  if separators ~= nil and separators ~= None then
    local items, n = values.iterate(separators)
    if n ~= 2 then raise "tojson: separators must be two" end
    item, key = values.str_arg(items[1], "tojson: a separator"), values.str_arg(items[2], "tojson: a separator")
  end
  return text.json(v, { ascii = flag(ascii), indent = indent, item = item or (indent and "," or ", "), key = key,
    sort = flag(sort) })
end)

-- Not Jinja2's, but templates call it where arguments may come as text.
def("from_json fromjson", "", function(v)
  local s = values.str_arg(values.defined(v), "from_json: the value")
  charge(#s)
  return text.read_json(s)
end)

def("attr", "name!", function(v, name) return operators.only_attr(v, text.str(name)) end, "first")

return filters
