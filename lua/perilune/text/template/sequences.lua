-- sequences.lua - filters over sequences and mappings. Those that Jinja2 gives as iterators give
-- iterators (their values can be read once), those that it gives as lists give lists.

local filters = require "perilune.text.template.filters"
local methods = require "perilune.text.template.methods"
local operators = require "perilune.text.template.operators"
local params = require "perilune.text.template.params"
local tests = require "perilune.text.template.tests"
local text = require "perilune.text.template.text"
local values = require "perilune.text.template.values"

local raise, charge, charge_text = values.raise, values.charge, values.charge_text
local type_of, truth, None = values.type, values.truth, values.None

local function def(names, spec, fn, raw)
  for name in names:gmatch "%S+" do filters[name] = params.bind("filter " .. name, spec, fn, raw) end
end

local function flag(v) return v ~= nil and truth(v) end

-- ---- what the elements are looked at by ----

-- "a.b.0" to a function that gets it; default for what is undefined.
local function getter(attribute, default)
  local path = {}
  attribute = values.plain(attribute)
  if type(attribute) == "string" then
    for part in (attribute .. "."):gmatch "([^.]*)%." do
      path[#path + 1] = part:find "^%d+$" and math.tointeger(tonumber(part)) or part
    end
  else
    path[1] = attribute
  end
  return function(v)
    charge(#path + 1)
    for i = 1, #path do
      v = operators.item(v, path[i])
      if type(v) == "table" and v.t == "undef" and default ~= nil then v = default end
    end
    return v
  end
end

local function fold_case(v)
  v = values.plain(v)
  if type(v) ~= "string" then return v end
  charge_text(#v)
  return methods.lower(v)
end

local function folding(case_sensitive) return flag(case_sensitive) and function(v) return v end or fold_case end

-- Key of an element: its attribute, case folded unless told otherwise.
local function key_of(attribute, case_sensitive)
  local folded = folding(case_sensitive)
  if attribute == nil or attribute == None then return folded end
  local get = getter(attribute)
  return function(v) return folded(get(v)) end
end

-- Key of an element for sort: a tuple of the attributes between the commas.
local function keys_of(attribute, case_sensitive)
  local folded, list = folding(case_sensitive), {}
  if type(attribute) == "string" then
    for each in (attribute .. ","):gmatch "([^,]*)," do list[#list + 1] = getter(each) end
  elseif attribute == nil or attribute == None then
    list[1] = function(v) return v end
  else
    list[1] = getter(attribute)
  end
  return function(v)
    local out = {}
    for i = 1, #list do out[i] = folded(list[i](v)) end
    return values.tuple(out, #list)
  end
end

-- The elements in the order of their keys, with the keys: a table of { key, element } pairs.
local function keyed(v, key)
  local items, n = values.iterate(v)
  charge(2 * n)
  local out = { n = n }
  for i = 1, n do out[i] = { key(items[i]), items[i] } end
  return out, n
end

local function sorted(v, key, reverse)
  local rows, n = keyed(v, key)
  local function less(a, b) return values.lt(a[1], b[1], "<") end
  if reverse then return values.sort(rows, n, function(a, b) return less(b, a) end), n end
  return values.sort(rows, n, less), n
end

-- ---- ends, parts, order ----

def("length count", "", values.len)

def("list", "", function(v)
  local items, n = values.iterate(v)
  return values.list(values.copy(items, n))
end)

def("first", "", function(v)
  if type_of(v) == "gen" and not v.read and v.n > 0 then
    charge(v.n >> 2)
    v.read = v.n == 1
    v.n = v.n - 1
    return table.remove(v, 1)
  end
  local items, n = values.iterate(v)
  if n == 0 then return values.undef "No first item, sequence was empty." end
  return items[1]
end)

def("last", "", function(v)
  if type_of(v) == "gen" then raise "'generator' object is not reversible" end
  local items, n = values.iterate(v)
  if n == 0 then return values.undef "No last item, sequence was empty." end
  return items[n]
end)

def("reverse", "", function(v)
  local items, n = values.iterate(v)
  charge(n)
  local out = {}
  for i = 1, n do out[i] = items[n + 1 - i] end
  if values.is_markup(v) then return values.markup(table.concat(out)) end
  if type(v) == "string" then return table.concat(out) end
  return values.gen(out, n)
end, "first")

def("sort", "reverse case_sensitive attribute", function(v, reverse, case_sensitive, attribute)
  local rows, n = sorted(v, keys_of(attribute, case_sensitive), flag(reverse))
  local out = {}
  for i = 1, n do out[i] = rows[i][2] end
  return values.list(out, n)
end)

def("dictsort", "case_sensitive by reverse", function(v, case_sensitive, by, reverse)
  if type_of(values.defined(v)) ~= "dict" then raise("dictsort: a dict is needed, not %s", values.type_name(v)) end
  if by == nil then by = "key" end
  if by ~= "key" and by ~= "value" then raise 'You can only sort by either "key" or "value"' end
  local folded = folding(case_sensitive)
  local pick = by == "key" and 1 or 2
  local pairs_of = values.list(methods.items(v), v.n)
  local rows, n = sorted(pairs_of, function(pair) return folded(pair[pick]) end, flag(reverse))
  local out = {}
  for i = 1, n do out[i] = rows[i][2] end
  return values.list(out, n)
end)

def("items", "", function(v)
  if type_of(v) == "undef" then return values.gen({}, 0) end
  if type_of(v) ~= "dict" then raise "Can only get item pairs from a mapping." end
  return values.gen(methods.items(v), v.n)
end)

def("unique", "case_sensitive attribute", function(v, case_sensitive, attribute)
  local rows, n = keyed(v, key_of(attribute, case_sensitive))
  local seen, out = values.dict(), {}
  for i = 1, n do
    if values.get(seen, rows[i][1]) == nil then
      values.put(seen, rows[i][1], true)
      out[#out + 1] = rows[i][2]
    end
  end
  return values.gen(out, #out)
end)

local function extreme(name, better)
  def(name, "case_sensitive attribute", function(v, case_sensitive, attribute)
    local rows, n = keyed(v, key_of(attribute, case_sensitive))
    if n == 0 then return values.undef "No aggregated item, sequence was empty." end
    local best = rows[1]
    for i = 2, n do if better(rows[i][1], best[1]) then best = rows[i] end end
    return best[2]
  end)
end
extreme("min", function(a, b) return values.lt(a, b, "<") end)
extreme("max", function(a, b) return values.lt(b, a, ">") end)

def("sum", "attribute start", function(v, attribute, start)
  local items, n = values.iterate(v)
  local get = attribute ~= nil and attribute ~= None and getter(attribute) or nil
  local total = start == nil and 0 or start
  if type(total) == "string" then raise "sum() can't sum strings" end
  for i = 1, n do total = operators.binary["+"](total, get and get(items[i]) or items[i]) end
  return total
end)

def("join", "d attribute", function(v, d, attribute)
  d = d == nil and "" or text.str(d)
  local items, n = values.iterate(v)
  local get = attribute ~= nil and attribute ~= None and getter(attribute) or nil
  local out, bytes = {}, 0
  charge(n)
  for i = 1, n do
    local s = items[i]
    if get then s = get(s) end
    out[i] = text.str(s)
    bytes = bytes + #out[i] + #d
  end
  charge_text(bytes)
  return table.concat(out, d, 1, n)
end)

def("groupby", "attribute! default case_sensitive", function(v, attribute, default, case_sensitive)
  local get = getter(attribute, default)
  local folded = folding(case_sensitive)
  local rows, n = sorted(v, function(x) return folded(get(x)) end)
  local out, group, key = {}, nil, nil
  for i = 1, n do
    if not group or not values.eq(rows[i][1], key) then
      key = rows[i][1]
      local shown = get(rows[i][2])
      group = values.list({}, 0)
      out[#out + 1] = values.tuple({ shown, group }, 2)
      out[#out].fields = { grouper = shown, list = group }
    end
    group.n = group.n + 1
    group[group.n] = rows[i][2]
  end
  return values.list(out, #out)
end, "all")

def("batch", "linecount! fill_with", function(v, size, fill)
  size = values.int(size, "batch: linecount")
  local items, n = values.iterate(v)
  charge(2 * n)
  local out, row = {}, nil
  for i = 1, n do
    if not row or row.n == size then
      row = values.list({}, 0)
      out[#out + 1] = row
    end
    row.n = row.n + 1
    row[row.n] = items[i]
  end
  if row and fill ~= nil and fill ~= None and row.n < size then
    charge(size - row.n)
    while row.n < size do
      row.n = row.n + 1
      row[row.n] = fill
    end
  end
  return values.gen(out, #out)
end, "all")

def("slice", "slices! fill_with", function(v, slices, fill)
  slices = values.int(slices, "slice: slices")
  if slices == 0 then raise "integer division or modulo by zero" end
  local items, n = values.iterate(v)
  charge(n + math.max(slices, 0))
  local per, extra, out, at = n // slices, n % slices, {}, 0
  for k = 0, slices - 1 do
    local row = values.list({}, 0)
    for _ = 1, per + (k < extra and 1 or 0) do
      at, row.n = at + 1, row.n + 1
      row[row.n] = items[at]
    end
    if fill ~= nil and fill ~= None and k >= extra then
      row.n = row.n + 1
      row[row.n] = fill
    end
    out[#out + 1] = row
  end
  return values.gen(out, #out)
end, "all")

-- ---- each element ----

-- The arguments behind the first.
local function rest(args, from)
  local out = { n = math.max(0, (args and args.n or 0) - from + 1) }
  for i = 1, out.n do out[i] = args[from + i - 1] end
  return out
end

local function named(where, what, name)
  name = values.plain(name)
  if type(name) ~= "string" then raise("the name of a %s must be a string, not %s", what, values.type_name(name)) end
  local fn = where[name]
  if not fn then raise("no %s named '%s'", what, name) end
  return fn
end

function filters.map(v, args, names)
  if not truth(v) then return values.gen({}, 0) end
  local each
  local attribute = names and values.get(names, "attribute")
  if (not args or args.n == 0) and attribute ~= nil then
    for i = 1, names.n do
      local name = names.keys[i]
      if name ~= "attribute" and name ~= "default" then raise("map: unexpected keyword argument '%s'", name) end
    end
    each = getter(attribute, values.get(names, "default"))
  else
    if not args or args.n == 0 then raise "map requires a filter argument" end
    local filter, more = named(filters, "filter", args[1]), rest(args, 2)
    each = function(x) return filter(x, more, names) end
  end
  local items, n = values.iterate(v)
  local out = {}
  for i = 1, n do
    charge(4)
    out[i] = each(items[i])
  end
  return values.gen(out, n)
end

local function selecting(name, keep, by_attribute)
  filters[name] = function(v, args, names)
    if not truth(v) then return values.gen({}, 0) end
    local get, from = nil, 1
    if by_attribute then
      if not args or args.n == 0 then raise "Missing parameter for attribute name" end
      get, from = getter(args[1]), 2
    end
    local test, more = nil, nil
    if args and args.n >= from then test, more = named(tests, "test", args[from]), rest(args, from + 1) end
    local items, n = values.iterate(v)
    local out, count = {}, 0
    for i = 1, n do
      charge(4)
      local x = items[i]
      if get then x = get(x) end
      local passes
      if test then passes = test(x, more, names) else passes = truth(x) end
      if passes == keep then
        count = count + 1
        out[count] = items[i]
      end
    end
    return values.gen(out, count)
  end
end
selecting("select", true, false)
selecting("reject", false, false)
selecting("selectattr", true, true)
selecting("rejectattr", false, true)

for name, where in pairs { filter = filters, test = tests } do
  tests[name] = params.bind("test " .. name, "", function(v)
    local t = type_of(v)
    if t == "list" or t == "dict" or t == "view" then raise("unhashable type: '%s'", values.type_name(v)) end
    return type(v) == "string" and where[v] ~= nil
  end)
end

return filters
