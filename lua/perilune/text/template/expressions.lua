-- expressions.lua - expression nodes to closures scope -> value. A scope is a table of variables that
-- inherits from the one around it; nothing but values of values.lua ever lies in one.

local filters = require "perilune.text.template.sequences"
local lexer = require "perilune.text.template.lexer"
local methods = require "perilune.text.template.methods"
local operators = require "perilune.text.template.operators"
local options = require "perilune.options"
local tests = require "perilune.text.template.tests"
local text = require "perilune.text.template.text"
local values = require "perilune.text.template.values"

local M = {}

local None = values.None
local truth, undef, raise, charge = values.truth, values.undef, values.raise, values.charge

local compile = {}

--- The closure of an expression. c: { source, soft = depth of conditions around }
--- @param c table
--- @param node table
--- @return function
local function expression(c, node) return compile[node.k](c, node) end
M.expression = expression

local function all(c, nodes)
  local out = {}
  for i = 1, #nodes do out[i] = expression(c, nodes[i]) end
  return out
end

compile["const"] = function(_, node)
  local value = node.value
  return function() return value end
end

compile["none"] = function() return function() return None end end

compile["name"] = function(_, node)
  local name = node.name
  local message = ("'%s' is undefined"):format(name)
  return function(scope)
    local v = scope[name]
    if v == nil then return { t = "undef", message = message } end
    return v
  end
end

local function sequence(make)
  return function(c, node)
    local parts, n = all(c, node), #node
    return function(scope)
      local out = {}
      for i = 1, n do out[i] = parts[i](scope) end
      return make(out, n)
    end
  end
end

compile["tuple"], compile["list"] = sequence(values.tuple), sequence(values.list)

compile["dict"] = function(c, node)
  local keys, items = {}, {}
  for i, pair in ipairs(node.pairs) do keys[i], items[i] = expression(c, pair[1]), expression(c, pair[2]) end
  return function(scope)
    local out = values.dict()
    for i = 1, #keys do values.put(out, keys[i](scope), items[i](scope)) end
    return out
  end
end

-- Names that an untaken branch uses may be unknown: only reaching them is an error, as in Jinja2.
local function softly(c, fn)
  c.soft = c.soft + 1
  local out = fn()
  c.soft = c.soft - 1
  return out
end
M.softly = softly

compile["cond"] = function(c, node)
  return softly(c, function()
    local test, yes = expression(c, node[1]), expression(c, node[2])
    local no = node[3] and expression(c, node[3]) or function()
      return undef "the inline if-expression evaluated to false and no else section was defined"
    end
    return function(scope)
      if truth(test(scope)) then return yes(scope) end
      return no(scope)
    end
  end)
end

compile["or"] = function(c, node)
  local a, b = expression(c, node[1]), expression(c, node[2])
  return function(scope)
    local v = a(scope)
    if truth(v) then return v end
    return b(scope)
  end
end

compile["and"] = function(c, node)
  local a, b = expression(c, node[1]), expression(c, node[2])
  return function(scope)
    local v = a(scope)
    if not truth(v) then return v end
    return b(scope)
  end
end

compile["not"] = function(c, node)
  local a = expression(c, node[1])
  return function(scope) return not truth(a(scope)) end
end

compile["compare"] = function(c, node)
  local first, ops = expression(c, node[1]), {}
  for i, op in ipairs(node.ops) do ops[i] = { operators.compare[op.op], expression(c, op[1]) } end
  if #ops == 1 then
    local op, b = ops[1][1], ops[1][2]
    return function(scope) return op(first(scope), b(scope)) end
  end
  return function(scope)
    local left = first(scope)
    for i = 1, #ops do
      local right = ops[i][2](scope)
      if not ops[i][1](left, right) then return false end
      left = right
    end
    return true
  end
end

compile["binary"] = function(c, node)
  local op, a, b = operators.binary[node.op], expression(c, node[1]), expression(c, node[2])
  return function(scope) return op(a(scope), b(scope)) end
end

compile["concat"] = function(c, node)
  local parts, n = all(c, node), #node
  return function(scope)
    local out, bytes = {}, 0
    for i = 1, n do
      local s = text.str(parts[i](scope))
      out[i], bytes = s, bytes + #s
    end
    values.charge_text(bytes)
    return table.concat(out)
  end
end

compile["neg"] = function(c, node)
  local a = expression(c, node[1])
  return function(scope) return operators.neg(a(scope)) end
end

compile["pos"] = function(c, node)
  local a = expression(c, node[1])
  return function(scope) return operators.pos(a(scope)) end
end

compile["attr"] = function(c, node)
  local a, name, attr = expression(c, node[1]), node.name, operators.attr
  return function(scope) return attr(a(scope), name) end
end

compile["item"] = function(c, node)
  local a, key, item = expression(c, node[1]), expression(c, node[2]), operators.item
  return function(scope) return item(a(scope), key(scope)) end
end

compile["slice"] = function(c, node)
  local a = expression(c, node[4])
  local function bound(k) return node[k] and expression(c, node[k]) or function() return None end end
  local first, last, step = bound(1), bound(2), bound(3)
  return function(scope) return operators.slice(a(scope), first(scope), last(scope), step(scope)) end
end

-- ---- calls ----

-- Arguments to a closure scope -> args (a table with n), names (a dict or nil).
local function arguments(c, args)
  if not args then return function() return nil, nil end end
  local parts, n = all(c, args), #args
  local keys, items = {}, {}
  for i, pair in ipairs(args.names) do keys[i], items[i] = pair[1], expression(c, pair[2]) end
  local more = args.more and expression(c, args.more)
  local more_names = args.more_names and expression(c, args.more_names)
  if not more and not more_names and #keys == 0 then
    if n == 0 then return function() return { n = 0 }, nil end end
    if n == 1 then
      local part = parts[1]
      return function(scope) return { n = 1, part(scope) }, nil end
    end
  end
  return function(scope)
    local out = { n = n }
    for i = 1, n do out[i] = parts[i](scope) end
    if more then
      local list, m = values.iterate(values.defined(more(scope)))
      charge(m)
      for i = 1, m do out[n + i] = list[i] end
      out.n = n + m
    end
    local names
    if #keys > 0 or more_names then
      names = values.dict()
      for i = 1, #keys do
        if values.get(names, keys[i]) ~= nil then raise("argument '%s' is given twice", keys[i]) end
        values.put(names, keys[i], items[i](scope))
      end
      if more_names then
        local from = more_names(scope)
        if values.type(from) ~= "dict" then raise "argument after ** must be a mapping" end
        charge(from.n)
        for i = 1, from.n do
          local key, value = values.pair(from, i)
          key = values.plain(key)
          if type(key) ~= "string" then raise "keywords must be strings" end
          if values.get(names, key) ~= nil then raise("argument '%s' is given twice", key) end
          values.put(names, key, value)
        end
      end
    end
    return out, names
  end
end
M.arguments = arguments

local CALLS_MAX = 100

--- Calls a value.
--- @param v any
--- @param args table
--- @param names table?
function M.call(v, args, names)
  values.defined(v)
  local t = values.type(v)
  if t == "func" then return v.fn(args, names) end
  if t == "macro" or t == "loop" then return v.call(args, names) end
  if t == "joiner" then
    local s = v.used and v.sep or ""
    v.used = true
    return s
  end
  raise("'%s' object is not callable", values.type_name(v))
end
M.CALLS_MAX = CALLS_MAX

compile["call"] = function(c, node)
  local args, call = arguments(c, node.args), M.call
  local callee = node[1]
  if callee.k == "attr" then
    -- A method is called without making a bound one first.
    local object, name, of = expression(c, callee[1]), callee.name, methods.of
    return function(scope)
      local v = object(scope)
      charge(2)
      local own = type(v) == "string" and methods.str or of(values.type(v))
      local method = own and own[name]
      if method then return method(v, args(scope)) end
      return call(operators.attr(v, name), args(scope))
    end
  end
  local fn = expression(c, callee)
  return function(scope)
    charge(2)
    return call(fn(scope), args(scope))
  end
end

-- Jinja2 has these: a template that names one, reached or not, is refused.
local refused = { pprint = true, random = true, urlize = true, wordwrap = true, xmlattr = true }

-- A filter or a test by name; unknown is an error at once, or where it is reached if under a condition.
local function known(c, node, where, what)
  local fn = where[node.name]
  if fn then return fn end
  if what == "filter" and refused[node.name] then
    lexer.fail(c.source, node.at, "filter '%s' is not supported", node.name)
  end
  local message = options.unknown(what, node.name, options.names(where))
  if c.soft == 0 then lexer.fail(c.source, node.at, "%s", message) end
  return function() raise("%s", message) end
end

compile["filter"] = function(c, node)
  local fn, args = known(c, node, filters, "filter"), arguments(c, node.args)
  if not node[1] then
    return function(scope) return fn(scope[M.BODY], args(scope)) end
  end
  local a = expression(c, node[1])
  if not node.args then return function(scope) return fn(a(scope)) end end
  return function(scope)
    local v = a(scope)
    return fn(v, args(scope))
  end
end

compile["test"] = function(c, node)
  local fn, args = known(c, node, tests, "test"), arguments(c, node.args)
  local a = expression(c, node[1])
  if not node.args then return function(scope) return fn(a(scope)) end end
  return function(scope)
    local v = a(scope)
    return fn(v, args(scope))
  end
end

--- The variable that holds the text of a block while its filters run: no template can name it.
M.BODY = "(body)"

return M
