-- text.lua - values to text: Python's str and repr, JSON as json.dumps writes it, and a JSON reader
-- that keeps the order of keys.

local strings = require "perilune.text.template.strings"
local values = require "perilune.text.template.values"

local M = {}

local raise, charge, charge_text = values.raise, values.charge, values.charge_text
local DEPTH_MAX = 100

--- The shortest digits that give the float back, laid out as Python's repr.
--- @param x number
--- @return string
function M.float(x)
  if x ~= x then return "nan" end
  if x == math.huge then return "inf" end
  if x == -math.huge then return "-inf" end
  local text
  for digits = 14, 16 do
    text = ("%%.%de"):format(digits):format(x)
    if tonumber(text) == x then break end
  end
  local sign, head, tail, exponent = text:match "^(-?)(%d)%.(%d*)e([+-]%d+)$"
  local digits, e = (head .. tail):gsub("0+$", ""), tonumber(exponent)
  if digits == "" then digits = "0" end
  if e < -4 or e >= 16 then
    local fraction = #digits > 1 and "." .. digits:sub(2) or ""
    return ("%s%s%se%s%02d"):format(sign, digits:sub(1, 1), fraction, e < 0 and "-" or "+", math.abs(e))
  end
  if e < 0 then return sign .. "0." .. ("0"):rep(-e - 1) .. digits end
  if #digits <= e + 1 then return sign .. digits .. ("0"):rep(e + 1 - #digits) .. ".0" end
  return sign .. digits:sub(1, e + 1) .. "." .. digits:sub(e + 2)
end

local short = { ["\\"] = "\\\\", ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t" }

-- Characters beyond ASCII that repr escapes: controls, format characters, spaces, private use.
local function hidden(code)
  return code < 0xA1 or code == 0xAD or code == 0x1680 or code >= 0x2000 and code <= 0x200F
    or code >= 0x2028 and code <= 0x202F or code >= 0x205F and code <= 0x206F or code == 0x3000
    or code >= 0xD800 and code <= 0xF8FF or code == 0xFEFF or code >= 0xFFF0 and code <= 0xFFFB
    or code >= 0xE0000
end

--- @param s string
--- @return string
function M.quote(s)
  charge_text(#s)
  values.charge_chars(s)
  local q = s:find("'", 1, true) and not s:find('"', 1, true) and '"' or "'"
  local out = s:gsub("[%c\\'\"]", function(c)
    if c == "'" or c == '"' then return c == q and "\\" .. c or c end
    return short[c] or ("\\x%02x"):format(c:byte())
  end)
  if not strings.ascii(out) and utf8.len(out, 1, -1, true) then
    out = out:gsub("[\192-\255][\128-\191]*", function(c)
      local code = utf8.codepoint(c, 1, 1, true)
      if not hidden(code) then return c end
      return (code < 256 and "\\x%02x" or code < 65536 and "\\u%04x" or "\\U%08x"):format(code)
    end)
  end
  return q .. out .. q
end

local write

local function write_items(v, put, depth, n)
  for i = 1, n do
    if i > 1 then put ", " end
    write(v[i], put, depth)
  end
end

local function write_dict(v, put, depth)
  put "{"
  for i = 1, v.n do
    local key, value = values.pair(v, i)
    if i > 1 then put ", " end
    write(key, put, depth)
    put ": "
    write(value, put, depth)
  end
  put "}"
end

function write(v, put, depth)
  charge(1)
  if depth > DEPTH_MAX then raise("values are nested deeper than %d", DEPTH_MAX) end
  local t = values.type(v)
  depth = depth + 1
  if t == "str" then put(M.quote(v))
  elseif t == "markup" then put("Markup(" .. M.quote(v.s) .. ")")
  elseif t == "list" then
    put "["
    write_items(v, put, depth, v.n)
    put "]"
  elseif t == "tuple" then
    put "("
    write_items(v, put, depth, v.n)
    put(v.n == 1 and ",)" or ")")
  elseif t == "dict" then write_dict(v, put, depth)
  elseif t == "view" then
    put(v.name .. "([")
    write_items(v, put, depth, v.n)
    put "])"
  elseif t == "ns" then
    put "<Namespace "
    write_dict(v.dict, put, depth)
    put ">"
  elseif t == "undef" then put "Undefined"
  else put(M.str(v)) end
end

--- @return string
function M.repr(v)
  local out, n, bytes = {}, 0, 0
  write(v, function(s)
    n = n + 1
    out[n] = s
    bytes = bytes + #s
    charge_text(#s)
  end, 0)
  charge_text(bytes)
  return table.concat(out)
end

--- @return string
function M.str(v)
  local kind = type(v)
  if kind == "string" then return v end
  if kind == "number" then
    return math.type(v) == "integer" and ("%d"):format(v) or M.float(v)
  end
  if kind == "boolean" then return v and "True" or "False" end
  local t = v.t
  if t == "markup" then return v.s end
  if t == "none" then return "None" end
  if t == "undef" then return "" end
  if t == "range" then
    if v.step == 1 then return ("range(%d, %d)"):format(v.start, v.stop) end
    return ("range(%d, %d, %d)"):format(v.start, v.stop, v.step)
  end
  if t == "macro" then return v.name and ("<Macro %s>"):format(M.quote(v.name)) or "<Macro anonymous>" end
  if t == "loop" then return ("<LoopContext %d/%d>"):format(v.index0 + 1, v.length()) end
  if t == "func" then return ("<function %s>"):format(v.name) end
  if t == "gen" or t == "cycler" or t == "joiner" then return ("<%s object>"):format(values.type_name(v)) end
  return M.repr(v)
end

local entities = { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ["'"] = "&#39;", ['"'] = "&#34;" }

--- The text of a value as HTML writes it.
--- @param s string
--- @return string
function M.escape_text(s)
  charge_text(#s * 5)
  values.charge_chars(s)
  return (s:gsub("[&<>'\"]", entities))
end

--- The text of a value, escaped unless it is markup.
--- @return string
function M.escape(v)
  if values.is_markup(v) then return v.s end
  return M.escape_text(M.str(v))
end

-- ---- JSON ----

local json_short = { ['"'] = '\\"', ["\\"] = "\\\\", ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t",
  ["\b"] = "\\b", ["\f"] = "\\f" }

local function json_string(s, ascii)
  charge_text(#s)
  if ascii then values.charge_chars(s) end
  local out = s:gsub('[\0-\31"\\]', function(c) return json_short[c] or ("\\u%04x"):format(c:byte()) end)
  if ascii and not strings.ascii(out) then
    out = out:gsub("[\192-\255][\128-\191]*", function(c)
      local ok, code = pcall(utf8.codepoint, c, 1, 1, true)
      if not ok then return c end
      if code < 0x10000 then return ("\\u%04x"):format(code) end
      code = code - 0x10000
      return ("\\u%04x\\u%04x"):format(0xD800 + (code >> 10), 0xDC00 + (code & 0x3FF))
    end)
  end
  return '"' .. out .. '"'
end

local function json_float(x)
  if x ~= x then return "NaN" end
  if x == math.huge then return "Infinity" end
  return x == -math.huge and "-Infinity" or M.float(x)
end

local function json_key(key)
  key = values.plain(key)
  local t = values.type(key)
  if t == "str" then return key end
  if t == "int" then return ("%d"):format(key) end
  if t == "float" then return json_float(key) end
  if t == "bool" then return key and "true" or "false" end
  if t == "none" then return "null" end
  raise("keys must be str, int, float, bool or None, not %s", values.type_name(key))
end

--- @param v any
--- @param opts table  ascii, indent (a text), item and key (separators), sort
--- @return string
function M.json(v, opts)
  local out, n, bytes = {}, 0, 0
  local function put(s)
    n = n + 1
    out[n] = s
    bytes = bytes + #s
  end
  local encode
  local function line(depth)
    if opts.indent then
      charge_text(#opts.indent * depth)
      put("\n" .. opts.indent:rep(depth))
    end
  end
  local function members(x, count, open, close, depth, each)
    put(open)
    for i = 1, count do
      if i > 1 then put(opts.item) end
      line(depth)
      each(x, i)
    end
    if count > 0 then line(depth - 1) end
    put(close)
  end
  function encode(x, depth)
    charge(1)
    x = values.plain(x)
    if depth > DEPTH_MAX then raise("values are nested deeper than %d", DEPTH_MAX) end
    local t = values.type(x)
    if t == "str" then put(json_string(x, opts.ascii))
    elseif t == "int" then put(("%d"):format(x))
    elseif t == "float" then put(json_float(x))
    elseif t == "bool" then put(x and "true" or "false")
    elseif t == "none" then put "null"
    elseif t == "list" or t == "tuple" then
      members(x, x.n, "[", "]", depth + 1, function(list, i) encode(list[i], depth + 1) end)
    elseif t == "dict" then
      local order = values.copy(x.keys, x.n)
      if opts.sort then order = values.sort(order, x.n, values.lt) end
      members(x, x.n, "{", "}", depth + 1, function(dict, i)
        put(json_string(json_key(order[i]), opts.ascii))
        put(opts.key)
        encode(values.get(dict, order[i]), depth + 1)
      end)
    else
      raise("Object of type %s is not JSON serializable", values.type_name(x))
    end
  end
  encode(v, 0)
  charge_text(bytes)
  return table.concat(out)
end

local unescape = { ['"'] = '"', ["\\"] = "\\", ["/"] = "/", b = "\b", f = "\f", n = "\n", r = "\r", t = "\t" }
local literals = { ["true"] = true, ["false"] = false, null = values.None }

--- Reads JSON into values, objects in their order (a key that comes twice keeps its last value).
--- Raises a template error with the byte where it goes wrong.
--- @param s string
--- @return any
function M.read_json(s)
  local i = 1
  local value
  local function fail(what) raise("JSON: %s at byte %d", what, i) end
  local function space() i = s:find("[^ \t\r\n]", i) or #s + 1 end
  local function text()
    i = i + 1
    local parts = {}
    while true do
      local at = s:find('[%c"\\]', i)
      if not at then fail "a string is not closed" end
      parts[#parts + 1] = s:sub(i, at - 1)
      local c = s:sub(at, at)
      i = at + 1
      if c == '"' then return table.concat(parts) end
      if c == "\127" then
        parts[#parts + 1] = c
      elseif c ~= "\\" then
        fail "a control character in a string"
      else
        local e = s:sub(i, i)
        i = i + 1
        if e == "u" then
          local code = tonumber(s:match("^%x%x%x%x", i) or fail "a bad \\u escape", 16)
          i = i + 4
          local low = code >= 0xD800 and code < 0xDC00 and s:match("^\\u([dD][c-fC-F]%x%x)", i)
          if low then code, i = 0x10000 + ((code - 0xD800) << 10) + (tonumber(low, 16) - 0xDC00), i + 6 end
          if code >= 0xD800 and code < 0xE000 then fail "half of a surrogate pair" end
          parts[#parts + 1] = utf8.char(code)
        else
          parts[#parts + 1] = unescape[e] or fail "a bad escape"
        end
      end
    end
  end
  function value(depth)
    if depth > DEPTH_MAX then fail("nested deeper than " .. DEPTH_MAX) end
    space()
    local c = s:sub(i, i)
    if c == '"' then return text() end
    if c == "{" or c == "[" then
      local close = c == "{" and "}" or "]"
      local out = c == "{" and values.dict() or values.list({}, 0)
      i = i + 1
      space()
      if s:sub(i, i) == close then i = i + 1 return out end
      while true do
        if c == "{" then
          space()
          if s:sub(i, i) ~= '"' then fail "expected a key" end
          local key = text()
          space()
          if s:sub(i, i) ~= ":" then fail "expected ':'" end
          i = i + 1
          values.put(out, key, value(depth + 1))
        else
          out.n = out.n + 1
          out[out.n] = value(depth + 1)
        end
        space()
        local d = s:sub(i, i)
        if d ~= "," and d ~= close then fail(("expected ',' or '%s'"):format(close)) end
        i = i + 1
        if d == close then return out end
      end
    end
    local word = s:match("^%l+", i)
    if word and literals[word] ~= nil then i = i + #word return literals[word] end
    local number = s:match("^-?%d+%.?%d*[eE]?[+-]?%d*", i)
    local plain = number and number:match "^-?(%d+)"
    local x = number and not (plain:find "^0%d") and not number:find "%.$" and not number:find "%.[eE]"
      and tonumber(number)
    if not x then fail "expected a value" end
    i = i + #number
    return x
  end
  local out = value(0)
  space()
  if i <= #s then fail "something behind the value" end
  return out
end

return M
