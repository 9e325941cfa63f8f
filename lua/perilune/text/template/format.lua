-- format.lua - Python's two ways to fill a text: "%s" % values and "{}".format(values).

local strings = require "perilune.text.template.strings"
local text = require "perilune.text.template.text"
local values = require "perilune.text.template.values"

local M = {}

local raise, charge_text = values.raise, values.charge_text

local WIDTH_MAX = 10000

local function count(s, what)
  local n = tonumber(s)
  if n > WIDTH_MAX then raise("%s %s of a format is over %d", what, s:sub(1, 20), WIDTH_MAX) end
  return n
end

-- An integer's digits in base 2, 8, 10 or 16, without sign.
local function digits(n, kind)
  if kind == "d" then return (("%d"):format(n):gsub("^-", "")) end
  if n == math.mininteger then raise "integer too large to format" end
  n = math.abs(n)
  if kind == "x" or kind == "o" then return ("%" .. kind):format(n) end
  if kind == "X" then return ("%X"):format(n) end
  local out = ""
  repeat out, n = (n & 1) .. out, n >> 1 until n == 0
  return out
end

local function character(code)
  if code < 0 or code > 0x10FFFF then raise("%d is no character", code) end
  return utf8.char(code)
end

local function grouped(s, mark)
  local head, tail = s:match "^(%d+)(.*)$"
  if not head then return s end
  head = head:reverse():gsub("(%d%d%d)", "%1" .. mark):reverse()
  if head:sub(1, 1) == mark then head = head:sub(2) end
  return head .. tail
end

-- A float's text without sign, in kind f, e, g or their capitals.
local function float_digits(x, kind, precision, alternate)
  x = math.abs(x)
  if x ~= x or x == math.huge then
    local s = x ~= x and "nan" or "inf"
    return kind:find "%u" and s:upper() or s
  end
  if precision > 99 then raise "a precision over 99 is not supported" end
  return ("%%%s.%d%s"):format(alternate and "#" or "", precision, kind):format(x)
end

local function pad(s, width, align, fill, sign)
  local gap = width - strings.len(sign .. s)
  if gap <= 0 then return sign .. s end
  charge_text(width * #fill)
  if align == "=" then return sign .. fill:rep(gap) .. s end
  s = sign .. s
  if align == "<" then return s .. fill:rep(gap) end
  if align == "^" then return fill:rep(gap // 2) .. s .. fill:rep(gap - gap // 2) end
  return fill:rep(gap) .. s
end
M.pad = pad

-- ---- "%" ----

-- What MarkupSafe's wrapper of an argument says that it is as a number: texts of numbers, too, and none for %x.
local function markup_number(kind, x, number)
  if kind:find "^[xXo]$" then raise("%%%s format: an integer is required, not _MarkupEscapeHelper", kind) end
  x = values.plain(x)
  if number == nil and type(x) == "string" and x:find "^%s*[+-]?%d" then
    number = tonumber(x)
    if kind:find "^[diu]$" then number = math.tointeger(number) end
  end
  return number
end

--- The text with the conversions filled from a value, a tuple or a dict.
--- @param s string
--- @param v any
--- @param escape function?  of markup: what %s and %r write is escaped
--- @return string
function M.percent(s, v, escape)
  values.charge_chars(s)
  local out, n, i, used = {}, 0, 1, 0
  local is_tuple = type(v) == "table" and v.t == "tuple"
  local is_dict = type(v) == "table" and v.t == "dict"
  local given = is_tuple and v.n or 1
  local named = false
  local function put(x) n = n + 1; out[n] = x end
  local function take()
    used = used + 1
    if used > given then raise "not enough arguments for format string" end
    if is_tuple then return v[used] end
    return v
  end
  while true do
    local at = s:find("%", i, true)
    if not at then break end
    put(s:sub(i, at - 1))
    i = at + 1
    local key = s:match("^%(([^()]*)%)", i)
    if key then i = i + #key + 2 end
    local flags = s:match("^[-+ #0]*", i)
    i = i + #flags
    local width = s:match("^%d+", i) or s:match("^%*", i) or ""
    i = i + #width
    local dot, precision = s:match("^(%.)(%d*)", i)
    if dot then i = i + 1 + #precision end
    if dot and s:sub(i, i) == "*" then raise "a precision of * is not supported" end
    local kind = s:match("^[hlL]?(.)", i)
    if not kind then raise "incomplete format" end
    i = i + (s:find("^[hlL].", i) and 2 or 1)
    if width == "*" then
      width = values.int(take(), "the width of *")
      if width < 0 then flags, width = flags .. "-", -width end
      width = tostring(width)
    end
    width = width == "" and 0 or count(width, "width")
    precision = dot and (precision == "" and 0 or count(precision, "precision")) or nil
    if kind == "%" then
      put "%"
    else
      local x
      if key then
        if not is_dict then raise "format requires a mapping" end
        x, named = values.get(v, key), true
        if x == nil then raise("format key '%s' is missing", key) end
      else
        x = take()
      end
      local align = flags:find("-", 1, true) and "<" or ">"
      local body
      if kind == "s" or kind == "r" or kind == "a" then
        if kind == "s" then body = escape and escape(x) or text.str(x)
        else body = text.repr(x) end
        if escape and kind ~= "s" then body = escape(body) end
        if precision then body = strings.sub(body, 0, math.min(precision, strings.len(body))) end
        put(pad(body, width, align, " ", ""))
      elseif kind == "c" then
        if escape then raise "%c requires int or char" end
        x = values.plain(x)
        if type(x) == "number" then body = character(values.int(x, "%c"))
        else body = values.str_arg(x, "%c") end
        put(pad(body, width, align, " ", ""))
      else
        local number = values.num(values.defined(x))
        if escape then number = markup_number(kind, x, number) end
        if not number then raise("%%%s format: a real number is required, not %s", kind, values.type_name(x)) end
        if kind:find "^[diu]$" then
          number = M.truncate(number)
          body = digits(number, "d")
        elseif kind:find "^[xXo]$" then
          body = digits(values.int(number, "%" .. kind), kind)
          if flags:find("#", 1, true) then body = "0" .. kind .. body end
        elseif kind:find "^[eEfFgG]$" then
          body = float_digits(number, kind == "F" and "f" or kind, precision or 6, flags:find("#", 1, true))
          precision = nil
        else
          raise("unsupported format character '%s'", kind)
        end
        if precision and #body < precision then body = ("0"):rep(precision - #body) .. body end
        local negative = number < 0 or 1 / number == -math.huge and kind:find "^[eEfFgG]$"
        local sign = negative and "-" or flags:find("+", 1, true) and "+" or flags:find(" ", 1, true) and " " or ""
        local zero = flags:find("0", 1, true) and align == ">"
        put(pad(body, width, zero and "=" or align, zero and "0" or " ", sign))
      end
    end
  end
  if not named and not is_dict and used < given then
    local subscriptable = type(v) == "table" and (v.t == "list" or v.t == "range" or v.t == "undef")
    if not (subscriptable and used == 0) then raise "not all arguments converted during string formatting" end
  end
  put(s:sub(i))
  local result = table.concat(out)
  charge_text(#result)
  return result
end

--- A float towards zero as an integer.
--- @param x number
--- @return integer
function M.truncate(x)
  if math.type(x) == "integer" then return x end
  if x ~= x then raise "cannot convert float NaN to integer" end
  local whole = math.tointeger(x < 0 and math.ceil(x) or math.floor(x))
  if not whole then raise "the float is too large for an integer (64 bits)" end
  return whole
end

-- ---- "{}" ----

--- One value under a format specification.
--- @param v any
--- @param spec string
--- @return string
function M.value(v, spec)
  if spec == "" then return text.str(v) end
  local fill, align, rest = spec:match "^([%z\1-\127\192-\255][\128-\191]*)([<>=^])(.*)$"
  if not fill then
    align, rest = spec:match "^([<>=^])(.*)$"
    fill, rest = nil, rest or spec
  end
  local sign, alternate, zero, width, mark, tail = rest:match "^([-+ ]?)(#?)(0?)(%d*)([,_]?)(.*)$"
  local precision, kind = tail:match "^%.(%d+)(%a?%%?)$"
  if not precision then kind = tail:match "^(%a?%%?)$" end
  if not kind or #kind > 1 then raise("invalid format specifier '%s'", spec:sub(1, 40)) end
  precision = precision and count(precision, "precision")
  width = width == "" and 0 or count(width, "width")
  if zero == "0" and not align then fill, align = fill or "0", "=" end
  v = values.plain(v)
  local t, number = values.type(v), values.num(v)
  if not number then
    if t ~= "str" then
      raise("unsupported format string passed to %s", values.type_name(v))
    end
    if kind ~= "" and kind ~= "s" or sign ~= "" or mark ~= "" or align == "=" and zero ~= "0" then
      raise("invalid format specifier '%s' for a string", spec:sub(1, 40))
    end
    local s = text.str(v)
    if precision then s = strings.sub(s, 0, math.min(precision, strings.len(s))) end
    return pad(s, width, align == "=" and "<" or align or "<", fill or " ", "")
  end
  local body
  local is_int = math.type(number) == "integer"
  if kind == "" then kind = is_int and "d" or "repr" end
  if kind:find "^[bcdoxXn]$" then
    if not is_int then raise("format code '%s' needs an integer", kind) end
    if precision then raise "precision not allowed in integer format specifier" end
    if kind == "c" then
      body = character(number)
    else
      body = digits(number, kind == "n" and "d" or kind)
      if alternate == "#" and kind ~= "d" and kind ~= "n" then body = "0" .. kind .. body end
    end
  elseif kind == "repr" then
    body = precision and float_digits(number, "g", math.max(precision, 1)) or text.float(math.abs(number))
    if precision and not body:find "[.en]" then body = body .. ".0" end
  elseif kind == "%" then
    body = float_digits(number * 100, "f", precision or 6) .. "%"
  elseif kind:find "^[eEfFgG]$" then
    if kind == "F" then kind = "f" end
    precision = precision or 6
    if precision == 0 and kind:find "[gG]" then precision = 1 end
    body = float_digits(number, kind, precision, alternate == "#")
  else
    raise("unknown format code '%s'", kind)
  end
  if mark ~= "" then body = grouped(body, mark) end
  local minus = number < 0 or not is_int and 1 / number == -math.huge
  return pad(body, width, align or ">", fill or " ", minus and "-" or sign == "-" and "" or sign)
end

-- One value as markup's format writes it.
local function markup_value(v, spec, escape)
  if not values.is_markup(v) then return escape(M.value(v, spec)) end
  if spec ~= "" then raise "unsupported format specification for Markup" end
  return v.s
end

--- str.format: args a table with n, names a dict or nil; attr and item are the operators; escape: of markup.
--- @return string
function M.braces(s, args, names, attr, item, escape)
  local auto = 0
  local function field(path)
    local first, rest = path:match "^([^.%[]*)(.*)$"
    local v
    if first == "" or first:find "^%d+$" then
      if first == "" then
        if auto == nil then raise "cannot switch from manual to automatic field numbering" end
        first, auto = auto, auto + 1
      else
        if auto and auto > 0 then raise "cannot switch from automatic to manual field numbering" end
        auto = nil
      end
      local k = math.tointeger(tonumber(first)) or math.maxinteger - 1
      if k >= args.n then raise("replacement index %s out of range for positional arguments", tostring(first)) end
      v = args[k + 1]
    else
      v = names and values.get(names, first)
      if v == nil then raise("format: no argument '%s'", first) end
    end
    local i = 1
    while i <= #rest do
      local name = rest:match("^%.([^.%[]+)", i)
      local key = not name and rest:match("^%[([^%]]+)%]", i)
      if not name and not key then raise("format: a bad field '%s'", path:sub(1, 40)) end
      if name then v = attr(v, name) else v = item(v, math.tointeger(tonumber(key)) or key) end
      i = i + (name and #name + 1 or #key + 2)
    end
    return v
  end
  local function fill(source, depth)
    if depth > 2 then raise "format: nested too deep" end
    local out, n, i = {}, 0, 1
    local function put(x) n = n + 1; out[n] = x end
    while true do
      local at = source:find("[{}]", i)
      if not at then break end
      put(source:sub(i, at - 1))
      local c = source:sub(at, at)
      if source:sub(at + 1, at + 1) == c then
        put(c)
        i = at + 2
      elseif c == "}" then
        raise "single '}' encountered in format string"
      else
        local open, j = 1, at + 1
        while open > 0 do
          j = source:find("[{}]", j)
          if not j then raise "expected '}' before end of string" end
          open = open + (source:sub(j, j) == "{" and 1 or -1)
          j = j + 1
        end
        local inside = source:sub(at + 1, j - 2)
        local path, spec = inside:match "^([^:]*):(.*)$"
        path = path or inside
        local name, conversion = path:match "^(.-)!(.*)$"
        local v = field(name or path)
        if conversion == "r" or conversion == "a" then v = text.repr(v)
        elseif conversion == "s" then v = text.str(v)
        elseif conversion then raise("format: a bad conversion '!%s'", conversion:sub(1, 20)) end
        spec = spec and spec:find("{", 1, true) and fill(spec, depth + 1) or spec or ""
        put(escape and markup_value(v, spec, escape) or M.value(v, spec))
        i = j
      end
    end
    put(source:sub(i))
    local result = table.concat(out)
    charge_text(#result)
    return result
  end
  return fill(s, 1)
end

return M
