-- operators.lua - Python's operators on the values of values.lua, and access by attribute, item and
-- slice. Integers have 64 bits: what does not fit is an error, never a wrong number.

local format = require "perilune.text.template.format"
local markup = require "perilune.text.template.markup"
local methods = require "perilune.text.template.methods"
local strings = require "perilune.text.template.strings"
local text = require "perilune.text.template.text"
local values = require "perilune.text.template.values"

local M = {}

local raise, charge, charge_text = values.raise, values.charge, values.charge_text
local num, type_of, defined, undef = values.num, values.type, values.defined, values.undef

local is_markup = values.is_markup
local function is_text(v) return type(v) == "string" or is_markup(v) end

local function unsupported(op, a, b)
  defined(a)
  defined(b)
  raise("unsupported operand type(s) for %s: '%s' and '%s'", op, values.type_name(a), values.type_name(b))
end

local function overflow() raise "integer too large (64 bits)" end

local function both(make, a, b)
  charge(a.n + b.n)
  local out = {}
  for i = 1, a.n do out[i] = a[i] end
  for i = 1, b.n do out[a.n + i] = b[i] end
  return make(out, a.n + b.n)
end

local function multiply(x, y)
  if math.type(x) == "float" or math.type(y) == "float" then return x * y end
  local r = x * y
  local f = (x + 0.0) * y
  if f >= 2.0 ^ 63 or f < -2.0 ^ 63 or math.abs(f) > 2.0 ^ 62 and r // y ~= x then overflow() end
  return r
end

local function power(x, y)
  if math.type(x) == "float" or math.type(y) == "float" or y < 0 then
    if x == 0 and y < 0 then raise "0.0 cannot be raised to a negative power" end
    local r = (x + 0.0) ^ y
    if r ~= r and x == x and y == y then raise "complex numbers are not supported" end
    if (r == math.huge or r == -math.huge) and math.abs(x) ~= math.huge and math.abs(y) ~= math.huge then
      raise "the result is too large"
    end
    return r
  end
  local r = 1
  while y > 0 do
    if y & 1 == 1 then r = multiply(r, x) end
    y = y >> 1
    if y > 0 then x = multiply(x, x) end
  end
  return r
end

-- A sequence n times.
local function repeated(v, n)
  if type(v) == "string" then
    n = math.max(n, 0)
    if n > 0 and #v > 0 then
      if n > 1 << 40 then charge_text(math.maxinteger) end
      charge_text(#v * n)
      return v:rep(n)
    end
    return ""
  end
  n = math.max(n, 0)
  if v.n > 0 then
    if n > 1 << 40 then charge(math.maxinteger) end
    charge(v.n * n)
  end
  local out, k = {}, 0
  if v.n > 0 then
    for _ = 1, n do
      for i = 1, v.n do out[k + i] = v[i] end
      k = k + v.n
    end
  end
  return v.t == "tuple" and values.tuple(out, k) or values.list(out, k)
end

local function sequence(v)
  return type(v) == "string" or type(v) == "table" and (v.t == "list" or v.t == "tuple")
end

M.binary = {}

M.binary["+"] = function(a, b)
  local x, y = num(a), num(b)
  if x and y then
    local r = x + y
    if math.type(r) == "integer" and (x ~ r) & (y ~ r) < 0 then overflow() end
    return r
  end
  if type(a) == "string" and type(b) == "string" then
    charge_text(#a + #b)
    return a .. b
  end
  if is_markup(a) and is_text(b) or is_text(a) and is_markup(b) then
    local left, right = text.escape(a), text.escape(b)
    charge_text(#left + #right)
    return values.markup(left .. right)
  end
  if type(a) == "table" and type(b) == "table" and a.t == b.t then
    if a.t == "list" then return both(values.list, a, b) end
    if a.t == "tuple" then return both(values.tuple, a, b) end
  end
  unsupported("+", a, b)
end

M.binary["-"] = function(a, b)
  local x, y = num(a), num(b)
  if not (x and y) then unsupported("-", a, b) end
  local r = x - y
  if math.type(r) == "integer" and (x ~ y) & (x ~ r) < 0 then overflow() end
  return r
end

M.binary["*"] = function(a, b)
  local x, y = num(a), num(b)
  if x and y then return multiply(x, y) end
  if is_markup(a) and math.type(y) == "integer" then return values.markup(repeated(a.s, y)) end
  if is_markup(b) and math.type(x) == "integer" then return values.markup(repeated(b.s, x)) end
  if sequence(a) and math.type(y) == "integer" then return repeated(a, y) end
  if sequence(b) and math.type(x) == "integer" then return repeated(b, x) end
  unsupported("*", a, b)
end

M.binary["/"] = function(a, b)
  local x, y = num(a), num(b)
  if not (x and y) then unsupported("/", a, b) end
  if y == 0 then raise "division by zero" end
  return x / y
end

M.binary["//"] = function(a, b)
  local x, y = num(a), num(b)
  if not (x and y) then unsupported("//", a, b) end
  if y == 0 then raise "division by zero" end
  if y == -1 and x == math.mininteger and math.type(y) == "integer" then overflow() end
  return x // y
end

M.binary["%"] = function(a, b)
  if type(a) == "string" then return format.percent(a, b) end
  if is_markup(a) then return values.markup(format.percent(a.s, b, text.escape)) end
  local x, y = num(a), num(b)
  if not (x and y) then unsupported("%", a, b) end
  if y == 0 then raise "modulo by zero" end
  return x % y
end

M.binary["**"] = function(a, b)
  local x, y = num(a), num(b)
  if not (x and y) then unsupported("**", a, b) end
  return power(x, y)
end

function M.neg(v)
  local x = num(defined(v))
  if not x then raise("bad operand type for unary -: '%s'", values.type_name(v)) end
  if x == math.mininteger and math.type(x) == "integer" then overflow() end
  return -x
end

function M.pos(v)
  local x = num(defined(v))
  if not x then raise("bad operand type for unary +: '%s'", values.type_name(v)) end
  return x
end

local eq, lt, le, contains = values.eq, values.lt, values.le, values.contains

M.compare = {
  ["=="] = function(a, b) return eq(a, b) end,
  ["!="] = function(a, b) return not eq(a, b) end,
  ["<"] = function(a, b) return lt(a, b, "<") end,
  [">"] = function(a, b) return lt(b, a, ">") end,
  ["<="] = function(a, b) return le(a, b) end,
  [">="] = function(a, b) return le(b, a) end,
  ["in"] = function(a, b) return contains(b, a) end,
  ["not in"] = function(a, b) return not contains(b, a) end,
}

-- ---- attributes, items, slices ----

-- Attributes that are values, by type.
local fields = {
  ns = function(v, name) return values.get(v.dict, name) end,
  loop = function(v, name) return v.attribute(name) end,
  macro = function(v, name)
    if name == "name" then return v.name or values.None end
    if name == "arguments" then return values.tuple(values.copy(v.names, #v.names)) end
  end,
  cycler = function(v, name) return name == "current" and v.items[v.at + 1] or nil end,
  tuple = function(v, name) return v.fields and v.fields[name] end,
}

local mutating = {
  list = { append = true, clear = true, pop = true, reverse = true, insert = true, sort = true, extend = true,
    remove = true },
  dict = { clear = true, pop = true, popitem = true, setdefault = true, update = true },
}

-- An attribute proper: a field or a method bound to the value; nil where there is none.
local function attribute(v, name)
  local t = type_of(v)
  local field = fields[t]
  local value = field and field(v, name)
  if value ~= nil then return value end
  local own = methods.of(t)
  local method = own and own[name]
  if method then return values.func(name, function(args, names) return method(v, args, names) end) end
  if mutating[t] and mutating[t][name] then
    return undef("access to attribute '%s' of '%s' object is unsafe: it would change the value", name, t)
  end
  return nil
end

local function missing(v, name) return undef("'%s' has no attribute '%s'", values.type_name(v), name) end

--- v.name: the attribute, else the item.
function M.attr(v, name)
  defined(v)
  local value = attribute(v, name)
  if value ~= nil then return value end
  if type(v) == "table" and v.t == "dict" then
    value = values.get(v, name)
    if value ~= nil then return value end
  end
  return missing(v, name)
end

--- The attribute alone (filter attr).
function M.only_attr(v, name)
  local value = attribute(defined(v), name)
  if value == nil then return missing(v, name) end
  return value
end

--- v[key]: the item, else the attribute of that name.
function M.item(v, key)
  defined(v)
  local t = type_of(v)
  if t == "dict" then
    local hashed = not (type(key) == "table" and (key.t == "list" or key.t == "dict"))
    local value
    if hashed then value = values.get(v, key) end
    if value ~= nil then return value end
  elseif t == "list" or t == "tuple" or t == "range" or t == "str" or t == "markup" then
    local i = num(key)
    if math.type(i) == "integer" then
      local n = values.len(v)
      if i < 0 then i = i + n end
      if i < 0 or i >= n then return undef("%s has no element %d", t, num(key)) end
      if t == "str" then return strings.sub(v, i, i + 1) end
      if t == "markup" then return values.markup(strings.sub(v.s, i, i + 1)) end
      return v[i + 1]
    end
  end
  key = values.plain(key)
  if type(key) == "string" then
    local value = attribute(v, key)
    if value ~= nil then return value end
    return missing(v, key)
  end
  return undef("'%s' has no such element", values.type_name(v))
end

-- One bound of a slice as Python clips it.
local function bound(i, n, step, default)
  if i == nil then return default end
  if i < 0 then
    i = i + n
    if i < 0 then return step > 0 and 0 or -1 end
    return i
  end
  return i >= n and (step > 0 and n or n - 1) or i
end

--- v[first:last:step]; nil where left out.
function M.slice(v, first, last, step)
  defined(v)
  local t = type_of(v)
  if t == "markup" then return values.markup(M.slice(v.s, first, last, step)) end
  local sliced = t == "str" or t == "list" or t == "tuple" or t == "range"
  local parts = { first, last, step }
  for k = 1, 3 do
    local part = parts[k]
    if part == values.None then part = nil end
    local i = part ~= nil and num(part)
    if part ~= nil and math.type(i) ~= "integer" then sliced = false end
    parts[k] = i or nil
  end
  if not sliced then raise("'%s' cannot be sliced so", values.type_name(v)) end
  step = parts[3] or 1
  if step == 0 then raise "slice step cannot be zero" end
  local n = values.len(v)
  local i = bound(parts[1], n, step, step > 0 and 0 or n - 1)
  local j = bound(parts[2], n, step, step > 0 and n or -1)
  if t == "str" and step == 1 then
    charge_text(#v)
    return strings.sub(v, i, j)
  end
  local from = v
  if t == "str" then
    charge(n)
    from = strings.chars(v)
  end
  local out, count = {}, 0
  for k = i, step > 0 and j - 1 or j + 1, step do
    count = count + 1
    out[count] = from[k + 1]
    if count % 64 == 0 then charge(64) end
  end
  if t == "str" then return table.concat(out) end
  if t == "tuple" then return values.tuple(out, count) end
  if t == "range" then
    out.start, out.step = v.start + i * v.step, v.step * step
    out.stop = v.start + j * v.step
    out.t, out.n = "range", count
    return out
  end
  return values.list(out, count)
end

-- str.format and format_map read attributes and items.
local function safe_attr(v, name)
  if name:sub(1, 1) == "_" then return undef("access to attribute '%s' is unsafe", name) end
  return M.attr(v, name)
end

function methods.str.format(s, args, names)
  charge(#s)
  return format.braces(s, args, names, safe_attr, M.item)
end

local function mapping_of(args, names)
  if names or args.n ~= 1 or type_of(args[1]) ~= "dict" then raise "format_map takes one mapping" end
  return args[1]
end

function methods.str.format_map(s, args, names)
  charge(#s)
  return format.braces(s, { n = 0 }, mapping_of(args, names), safe_attr, M.item)
end

function markup.methods.format(v, args, names)
  charge(#v.s)
  return values.markup(format.braces(v.s, args, names, safe_attr, M.item, text.escape))
end

function markup.methods.format_map(v, args, names)
  charge(#v.s)
  return values.markup(format.braces(v.s, { n = 0 }, mapping_of(args, names), safe_attr, M.item, text.escape))
end

return M
