-- values.lua - what a template computes with, and how Python would treat it. Strings, integers,
-- floats and booleans are Lua's own; everything else is a table made here whose field t names its
-- type, so no template ever holds a table, a metatable or a function of Lua:
--   none, undef { message }, list / tuple / range { n, [1..n] }, dict { n, keys, map, seen },
--   markup { s } (MarkupSafe's: a text that is escaped already),
--   ns { dict }, gen (an iterator: its values are gone once read) and view (of a dict) { n, [1..n] },
--   func { name, fn }, macro, loop, cycler, joiner
-- Everything that can grow is charged to the budget of the running rendering.

local strings = require "perilune.text.template.strings"

local M = {}

local DEPTH_MAX = 100 -- of values within values when they are written or compared

-- ---- errors and the budget ----

--- Raises an error of the template.
function M.raise(fmt, ...) error({ template_error = select("#", ...) > 0 and fmt:format(...) or fmt }, 0) end
local raise = M.raise

local left, limit, text_max = 0, 0, 0

--- Starts a rendering's budget; returns the one before for M.restore.
--- @param steps integer
--- @param bytes integer  most of one text
function M.start(steps, bytes)
  local before = { left, limit, text_max }
  left, limit, text_max = steps, steps, bytes
  return before
end

function M.restore(before) left, limit, text_max = before[1], before[2], before[3] end

--- @param n integer  steps
local function charge(n)
  left = left - n
  if left < 0 then raise("the template takes more than %d steps", limit) end
end
M.charge = charge

--- For a text of n bytes that is about to be made.
--- @param n integer
local function charge_text(n)
  if n > text_max then raise("the template makes a text of more than %d bytes", text_max) end
  left = left - 1 - (n >> 4)
  if left < 0 then raise("the template takes more than %d steps", limit) end
end
M.charge_text = charge_text

--- For work on each character of a text.
--- @param s string
function M.charge_chars(s) charge(1 + (#s >> 2)) end

--- For a search of a plain text in another, which may compare it at every byte.
--- @param s string
--- @param part string
local function charge_find(s, part)
  charge_text(#s)
  charge((#s >> 5) * (#part >> 5))
end
M.charge_find = charge_find

--- Raises the bound of the running rendering.
--- @param n integer
function M.allow(n) left, limit = left + n, limit + n end

-- ---- making values ----

local None = { t = "none" }
M.None = None

function M.undef(fmt, ...) return { t = "undef", message = select("#", ...) > 0 and fmt:format(...) or fmt } end

--- A text that escaping leaves as it is, and that escapes what is added to it.
--- @param s string
function M.markup(s) return { t = "markup", s = s } end

--- @return boolean
local function is_markup(v) return type(v) == "table" and v.t == "markup" end
M.is_markup = is_markup

--- The text of markup, any other value as it is.
local function plain(v)
  if type(v) == "table" and v.t == "markup" then return v.s end
  return v
end
M.plain = plain

--- A list of the n values of a table, which becomes it.
function M.list(items, n)
  items.t, items.n = "list", n or items.n or #items
  return items
end

function M.tuple(items, n)
  items.t, items.n = "tuple", n or items.n or #items
  return items
end

function M.gen(items, n)
  items.t, items.n = "gen", n or items.n or #items
  return items
end

function M.view(name, items, n)
  items.t, items.n, items.name = "view", n, name
  return items
end

function M.func(name, fn) return { t = "func", name = name, fn = fn } end

function M.dict() return { t = "dict", n = 0, keys = {}, map = {}, seen = {} } end

local hash

-- What a key is stored under: equal keys (1, 1.0 and True) give the same, or nil: not hashable.
function hash(v)
  local kind = type(v)
  if kind == "string" then return v:byte(1) == 0 and "\0s" .. v or v end
  if kind == "number" then return v ~= v and "\0nan" or v end
  if kind == "boolean" then return v and 1 or 0 end
  if v.t == "markup" then return hash(v.s) end
  if v.t == "tuple" then
    local parts = { "\0t" }
    for i = 1, v.n do
      local h = hash(v[i])
      if h == nil then return nil end
      parts[#parts + 1] = type(h) == "string" and #h .. ":" .. h or tostring(h)
      charge_text(#parts[#parts])
    end
    return table.concat(parts, ",")
  end
  if v.t == "list" or v.t == "dict" or v.t == "view" then return nil end
  return v.t == "undef" and "\0undef" or v
end

function M.get(dict, key)
  local h = hash(key)
  if h == nil then raise("unhashable type: '%s'", M.type_name(key)) end
  return dict.map[h]
end

function M.put(dict, key, value)
  local h = hash(key)
  if h == nil then raise("unhashable type: '%s'", M.type_name(key)) end
  if dict.map[h] == nil then
    dict.n = dict.n + 1
    dict.keys[dict.n] = key
    dict.seen[dict.n] = h
  end
  dict.map[h] = value
end

--- Value number i of a dict, with its key before it.
function M.pair(dict, i) return dict.keys[i], dict.map[dict.seen[i]] end

-- ---- types ----

local names = { none = "NoneType", markup = "Markup", undef = "Undefined", ns = "Namespace", gen = "generator",
  macro = "Macro", loop = "LoopContext", func = "function", cycler = "Cycler", joiner = "Joiner" }

--- "str", "int", "float", "bool" or the t of a table.
local function type_of(v)
  local kind = type(v)
  if kind == "string" then return "str" end
  if kind == "number" then return math.type(v) == "integer" and "int" or "float" end
  if kind == "boolean" then return "bool" end
  return v.t
end
M.type = type_of

function M.type_name(v)
  local kind = type_of(v)
  return kind == "view" and v.name or names[kind] or kind
end

--- A number's value as Python computes with it (True is 1), or nil.
local function num(v)
  local kind = type(v)
  if kind == "number" then return v end
  if kind == "boolean" then return v and 1 or 0 end
  return nil
end
M.num = num

--- An integer (or bool), or an error that names what it is for.
function M.int(v, what)
  local n = num(v)
  if math.type(n) ~= "integer" then raise("%s must be an integer, not %s", what, M.type_name(v)) end
  return n
end

function M.str_arg(v, what)
  if type(v) ~= "string" then raise("%s must be a string, not %s", what, M.type_name(v)) end
  return v
end

function M.truth(v)
  local kind = type(v)
  if kind == "boolean" then return v end
  if kind == "string" then return v ~= "" end
  if kind == "number" then return v ~= 0 end
  local t = v.t
  if t == "none" or t == "undef" then return false end
  if t == "markup" then return v.s ~= "" end
  if t == "list" or t == "tuple" or t == "dict" or t == "range" or t == "view" then return v.n > 0 end
  return true
end

--- Raises when the value is undefined: what an operation on it does.
local function defined(v)
  if type(v) == "table" and v.t == "undef" then raise("%s", v.message) end
  return v
end
M.defined = defined

-- ---- equality and order ----

local eq

local function eq_tables(a, b, depth)
  if a == b then return true end
  local t = a.t
  if t == "undef" then return b.t == "undef" end
  if t ~= b.t then return false end
  if depth > DEPTH_MAX then raise("values are nested deeper than %d", DEPTH_MAX) end
  if t == "list" or t == "tuple" or t == "range" then
    if a.n ~= b.n then return false end
    for i = 1, a.n do if not eq(a[i], b[i], depth + 1) then return false end end
    return true
  elseif t == "dict" then
    if a.n ~= b.n then return false end
    for i = 1, a.n do
      local h = a.seen[i]
      local other = b.map[h]
      if other == nil or not eq(a.map[h], other, depth + 1) then return false end
    end
    return true
  end
  return false
end

function eq(a, b, depth)
  charge(1)
  a, b = plain(a), plain(b)
  local ta, tb = type(a), type(b)
  if ta == "table" and tb == "table" then return eq_tables(a, b, depth or 0) end
  if ta == tb then
    if ta == "string" and #a == #b then charge(#a >> 5) end
    return a == b
  end
  if ta == "boolean" and tb == "number" or ta == "number" and tb == "boolean" then return num(a) == num(b) end
  return false
end
M.eq = eq

local function not_ordered(op, a, b)
  defined(a)
  defined(b)
  raise("'%s' not supported between instances of '%s' and '%s'", op, M.type_name(a), M.type_name(b))
end

-- By code point, whatever the locale: UTF-8 orders as its bytes do.
local function text_lt(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = a:byte(i), b:byte(i)
    if x ~= y then
      charge(i >> 3)
      return x < y
    end
  end
  charge_text(math.min(#a, #b))
  return #a < #b
end

--- a < b, or an error that names op.
local function lt(a, b, op, depth)
  charge(1)
  a, b = plain(a), plain(b)
  local x, y = num(a), num(b)
  if x and y then return x < y end
  if type(a) == "string" and type(b) == "string" then return text_lt(a, b) end
  if type(a) == "table" and type(b) == "table" and a.t == b.t and (a.t == "list" or a.t == "tuple") then
    depth = depth or 0
    if depth > DEPTH_MAX then raise("values are nested deeper than %d", DEPTH_MAX) end
    for i = 1, math.min(a.n, b.n) do
      if not eq(a[i], b[i]) then return lt(a[i], b[i], op, depth + 1) end
    end
    return a.n < b.n
  end
  not_ordered(op or "<", a, b)
end
M.lt = lt

function M.le(a, b)
  local x, y = num(a), num(b)
  if x and y then return x <= y end
  return lt(a, b, "<=") or eq(a, b)
end

-- ---- iteration ----

--- The values that iterating gives: a table (not to be changed) and how many.
function M.iterate(v)
  v = plain(v)
  local kind = type(v)
  if kind == "string" then
    charge(#v)
    local list = strings.chars(v)
    return list, list.n
  elseif kind == "table" then
    local t = v.t
    if t == "list" or t == "tuple" or t == "range" or t == "view" then return v, v.n end
    if t == "dict" then return v.keys, v.n end
    if t == "undef" then return {}, 0 end
    if t == "gen" then
      if v.read then return {}, 0 end
      v.read = true
      return v, v.n
    end
  end
  raise("'%s' object is not iterable", M.type_name(v))
end

--- Whether M.iterate takes the value.
function M.iterable(v)
  local t = type_of(v)
  return t == "str" or t == "markup" or t == "list" or t == "tuple" or t == "range" or t == "view"
    or t == "dict" or t == "undef" or t == "gen" or t == "loop"
end

function M.len(v)
  v = plain(v)
  local t = type_of(v)
  if t == "str" then
    charge_text(#v)
    return strings.len(v)
  end
  if t == "list" or t == "tuple" or t == "dict" or t == "range" or t == "view" then return v.n end
  if t == "undef" then return 0 end
  if t == "loop" then return v.length() end
  raise("object of type '%s' has no len()", M.type_name(v))
end

function M.contains(container, item)
  container = plain(container)
  local t = type_of(container)
  if t == "str" then
    item = plain(defined(item))
    if type(item) ~= "string" then
      raise("'in <string>' requires string as left operand, not %s", M.type_name(item))
    end
    charge_find(container, item)
    return container:find(item, 1, true) ~= nil
  elseif t == "dict" then
    return M.get(container, item) ~= nil
  end
  local items, n = M.iterate(container)
  for i = 1, n do if eq(items[i], item) then return true end end
  return false
end

--- Adds n values to a list in the making, paid for.
function M.copy(items, n)
  charge(n)
  local out = { n = n }
  for i = 1, n do out[i] = items[i] end
  return out
end

-- ---- sorting ----

--- Sorts the first n values of a table by less, stably.
function M.sort(items, n, less)
  local from, to, width = items, {}, 1
  while width < n do
    charge(n)
    for start = 1, n, 2 * width do
      local i, mid = start, math.min(start + width, n + 1)
      local j, last = mid, math.min(start + 2 * width, n + 1)
      for k = start, last - 1 do
        if i < mid and (j >= last or not less(from[j], from[i])) then
          to[k] = from[i]
          i = i + 1
        else
          to[k] = from[j]
          j = j + 1
        end
      end
    end
    from, to, width = to, from, 2 * width
  end
  return from
end

return M
