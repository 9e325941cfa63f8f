-- compile.lua - statement nodes to closures (scope, out) -> nil, BREAK or CONTINUE. out is the text in
-- the making: { n, [1..n], bytes, marks (a text put around generation blocks) or nil }.

local expressions = require "perilune.text.template.expressions"
local globals = require "perilune.text.template.globals"
local lexer = require "perilune.text.template.lexer"
local text = require "perilune.text.template.text"
local values = require "perilune.text.template.values"

local M = {}

local truth, raise, charge = values.truth, values.raise, values.charge
local expression = expressions.expression

local BREAK, CONTINUE = "break", "continue"

local state = { line = 0, depth = 0, most = 0, bytes = 0 }
M.state = state

local compile = {}

local function emit(out, s)
  if s == "" then return end
  local bytes = state.bytes + #s
  state.bytes = bytes
  if bytes > state.most then raise("the template writes more than %d bytes", state.most) end
  charge(#s >> 5)
  local n = out.n + 1
  out.n, out[n] = n, s
end

local function capture(body, scope, out)
  local inner = { n = 0, marks = out.marks }
  body(scope, inner)
  return table.concat(inner, "", 1, inner.n)
end

local function inner_scope(scope) return setmetatable({}, { __index = scope }) end

-- A list of statements.
local function block(c, list)
  local steps, n = {}, 0
  for _, node in ipairs(list) do
    n = n + 1
    steps[n] = compile[node.k](c, node)
  end
  if n == 0 then return function() end end
  if n == 1 then return steps[1] end
  if n == 2 then
    local a, b = steps[1], steps[2]
    return function(scope, out)
      local signal = a(scope, out)
      if signal then return signal end
      return b(scope, out)
    end
  end
  return function(scope, out)
    for i = 1, n do
      local signal = steps[i](scope, out)
      if signal then return signal end
    end
  end
end

local function line_of(c, node)
  -- Statements come in order: count on from the last one asked for.
  while true do
    local nl = c.source:find("\n", c.seen, true)
    if not nl or nl >= node.at then break end
    c.line, c.seen = c.line + 1, nl + 1
  end
  if node.at < c.seen then
    local line = lexer.place(c.source, node.at)
    return line
  end
  return c.line
end

compile["data"] = function(_, node)
  local s = node.text
  return function(_, out)
    charge(1)
    emit(out, s)
  end
end

compile["print"] = function(c, node)
  local line, cost = line_of(c, node), node.cost
  local value, str = expression(c, node[1]), text.str
  return function(scope, out)
    state.line = line
    charge(cost)
    local v = value(scope)
    emit(out, type(v) == "string" and v or str(v))
  end
end

compile["prints"] = function(c, node)
  local line, cost, list = line_of(c, node), node.cost, {}
  for i, each in ipairs(node.list) do list[i] = expression(c, each) end
  return function(scope, out)
    state.line = line
    charge(cost)
    for i = 1, #list do emit(out, text.str(list[i](scope))) end
  end
end

compile["do"] = function(c, node)
  local line, cost, value = line_of(c, node), node.cost, expression(c, node[1])
  return function(scope)
    state.line = line
    charge(cost)
    value(scope)
  end
end

-- ---- assignment ----

local function assigner(node)
  if node.k == "name" then
    local name = node.name
    return function(scope, v) scope[name] = v end
  elseif node.k == "nsref" then
    local name, attr = node.name, node.attr
    return function(scope, v)
      local ns = scope[name]
      if ns == nil then raise("'%s' is undefined", name) end
      if type(ns) ~= "table" or ns.t ~= "ns" then raise "cannot assign attribute on non-namespace object" end
      globals.namespace_name(attr)
      values.put(ns.dict, attr, v)
    end
  end
  local parts, n = {}, #node
  for i, each in ipairs(node) do parts[i] = assigner(each) end
  return function(scope, v)
    local items, count = values.iterate(values.defined(v))
    if count ~= n then
      raise(count > n and "too many values to unpack (expected %d)"
        or "not enough values to unpack (expected %d, got %d)", n, count)
    end
    for i = 1, n do parts[i](scope, items[i]) end
  end
end

compile["set"] = function(c, node)
  local line, cost = line_of(c, node), node.cost
  local assign, value = assigner(node.target), expression(c, node.value)
  return function(scope)
    state.line = line
    charge(cost)
    assign(scope, value(scope))
  end
end

compile["capture"] = function(c, node)
  local line, cost = line_of(c, node), node.cost
  local assign, filter = assigner(node.target), node.filter and expression(c, node.filter)
  local body = block(c, node.body)
  return function(scope, out)
    charge(cost)
    local inside = inner_scope(scope)
    local v = capture(body, inside, out)
    state.line = line
    if filter then
      inside[expressions.BODY] = v
      v = filter(inside)
    end
    assign(scope, v)
  end
end

-- ---- conditions and loops ----

compile["if"] = function(c, node)
  return expressions.softly(c, function()
    local line = line_of(c, node)
    local tests, bodies, costs, n = {}, {}, {}, #node
    for i, branch in ipairs(node) do
      tests[i], bodies[i], costs[i] = expression(c, branch[1]), block(c, branch[2]), branch.cost
    end
    local otherwise = node.otherwise and block(c, node.otherwise)
    return function(scope, out)
      for i = 1, n do
        state.line = line
        charge(costs[i])
        if truth(tests[i](scope)) then return bodies[i](scope, out) end
      end
      if otherwise then return otherwise(scope, out) end
    end
  end)
end

compile["break"] = function() return function() return BREAK end end
compile["continue"] = function() return function() return CONTINUE end end

-- The variable loop. pull(k): whether there is an element k; items are those pulled so far.
local function loop_object(items, pull, depth0, recurse)
  local loop = { t = "loop", index0 = 0 }
  local changed
  function loop.length()
    local n = items.n
    while pull(n + 1) do n = items.n end
    return items.n
  end
  local fields = {
    index = function(i) return i + 1 end,
    index0 = function(i) return i end,
    first = function(i) return i == 0 end,
    last = function(i) return not pull(i + 2) end,
    length = loop.length,
    revindex = function(i) return loop.length() - i end,
    revindex0 = function(i) return loop.length() - i - 1 end,
    depth = function() return depth0 + 1 end,
    depth0 = function() return depth0 end,
    previtem = function(i)
      if i == 0 then return values.undef "there is no previous item" end
      return items[i]
    end,
    nextitem = function(i)
      if not pull(i + 2) then return values.undef "there is no next item" end
      return items[i + 2]
    end,
  }
  local calls = {
    cycle = function(args)
      if args.n == 0 then raise "no items for cycling given" end
      return args[loop.index0 % args.n + 1]
    end,
    changed = function(args)
      local now = values.tuple(args, args.n)
      if changed and values.eq(changed, now) then return false end
      changed = now
      return true
    end,
  }
  function loop.attribute(name)
    local field = fields[name]
    if field then return field(loop.index0) end
    return calls[name] and values.func(name, calls[name]) or nil
  end
  function loop.call(args)
    if not recurse then raise "the loop must have the 'recursive' marker to be called recursively" end
    if args.n ~= 1 then raise "loop() takes one sequence" end
    return recurse(args[1], depth0 + 1)
  end
  return loop
end

-- One step down; macros and recursive loops share the bound.
local function deeper(fn, ...)
  if state.depth >= expressions.CALLS_MAX then
    raise("macros and recursive loops are nested deeper than %d", expressions.CALLS_MAX)
  end
  state.depth = state.depth + 1
  local result = fn(...)
  state.depth = state.depth - 1
  return result
end

compile["for"] = function(c, node)
  local line, cost = line_of(c, node), node.cost
  local over = expression(c, node.over)
  local test = node.test and expression(c, node.test)
  local assign = assigner(node.target)
  local body = block(c, node.body)
  local otherwise = node.otherwise and block(c, node.otherwise)
  local extended = node.extended

  local function run(scope, out, value, depth0)
    local source, n = values.iterate(value)
    local mt = { __index = scope }
    local items, pull = source
    if test then
      -- Elements are tested when they are needed, as a generator would.
      items = { n = 0 }
      local at = 0
      function pull(k)
        while items.n < k and at < n do
          at = at + 1
          charge(cost)
          local inside = setmetatable({}, mt)
          assign(inside, source[at])
          if truth(test(inside)) then
            items.n = items.n + 1
            items[items.n] = source[at]
          end
        end
        return k <= items.n
      end
    else
      if extended then items = source.n == n and source or values.copy(source, n) end
      function pull(k) return k <= n end
    end
    local loop
    if extended then
      loop = loop_object(items, pull, depth0, node.recursive and function(inner, depth)
        return deeper(function()
          local buffer = { n = 0, marks = out.marks }
          run(scope, buffer, inner, depth)
          return table.concat(buffer, "", 1, buffer.n)
        end)
      end)
    end
    -- The else branch runs unless an element came to the end of the body, as Jinja2 has it.
    local i, complete = 1, false
    while pull(i) do
      charge(2)
      local inside = setmetatable({}, mt)
      if loop then
        loop.index0 = i - 1
        inside.loop = loop
      end
      assign(inside, items[i])
      local signal = body(inside, out)
      complete = complete or not signal
      if signal == BREAK then break end
      i = i + 1
    end
    if not complete and otherwise then return otherwise(setmetatable({}, mt), out) end
  end

  return function(scope, out)
    state.line = line
    charge(cost)
    return run(scope, out, over(scope), 0)
  end
end

-- ---- macros and scopes ----

-- A callable from a node with names, defaults and a body, in the scope where it is made.
local function callable(c, node, name)
  local names, defaults, count = node.names, {}, #node.names
  for i, each in pairs(node.defaults) do defaults[i] = expression(c, each) end
  local known, explicit = {}, false
  for i, each in ipairs(names) do
    known[each] = i
    explicit = explicit or each == "caller"
  end
  local body = block(c, node.body)
  local takes_caller, takes_names, takes_more = node.caller and not explicit, node.kwargs, node.varargs
  local who = name or "caller"
  return function(scope, out)
    local mt, marks = { __index = scope }, out.marks
    local macro = { t = "macro", name = name, names = names }
    local function invoke(args, given)
      charge(3 + count)
      local inside = setmetatable({}, mt)
      local rest
      if given then
        for i = 1, given.n do
          local key, value = values.pair(given, i)
          local k = known[key]
          if k and k <= args.n then
            raise("macro '%s' got argument '%s' twice", who, key)
          elseif k then
            inside[key] = value
          elseif takes_caller and key == "caller" then
            inside.caller = value
          elseif takes_names then
            rest = rest or values.dict()
            values.put(rest, key, value)
          else
            raise("macro '%s' takes no keyword argument '%s'", who, key)
          end
        end
      end
      if args.n > count and not takes_more then
        raise("macro '%s' takes not more than %d argument(s)", who, count)
      end
      for i = 1, count do
        local each = names[i]
        if i <= args.n then
          inside[each] = args[i]
        elseif rawget(inside, each) == nil then
          local default = defaults[i]
          inside[each] = values.undef("parameter '%s' was not provided", each)
          if default then inside[each] = default(inside) end
        end
      end
      if takes_names then inside.kwargs = rest or values.dict() end
      if takes_more then
        local more = {}
        for i = count + 1, args.n do more[i - count] = args[i] end
        inside.varargs = values.tuple(more, math.max(0, args.n - count))
      end
      if takes_caller and rawget(inside, "caller") == nil then inside.caller = values.undef "No caller defined" end
      local buffer = { n = 0, marks = marks }
      body(inside, buffer)
      return table.concat(buffer, "", 1, buffer.n)
    end
    function macro.call(args, given) return deeper(invoke, args, given) end
    return macro
  end
end

compile["macro"] = function(c, node)
  local make, name = callable(c, node, node.name), node.name
  return function(scope, out)
    charge(1)
    scope[name] = make(scope, out)
  end
end

compile["callblock"] = function(c, node)
  local line, cost = line_of(c, node), node.cost
  local fn, args = expression(c, node.call[1]), expressions.arguments(c, node.call.args)
  local make = callable(c, node, nil)
  return function(scope, out)
    state.line = line
    charge(cost)
    local list, names = args(scope)
    names = names or values.dict()
    values.put(names, "caller", make(scope, out))
    emit(out, text.str(expressions.call(fn(scope), list, names)))
  end
end

compile["filterblock"] = function(c, node)
  local line, cost = line_of(c, node), node.cost
  local filter, body = expression(c, node.filter), block(c, node.body)
  return function(scope, out)
    charge(cost)
    local inside = inner_scope(scope)
    local s = capture(body, inside, out)
    state.line = line
    inside[expressions.BODY] = s
    local v = values.plain(filter(inside))
    if type(v) ~= "string" then raise("a filter block must give a string, not %s", values.type_name(v)) end
    emit(out, v)
  end
end

compile["with"] = function(c, node)
  local line, cost, assigns, items = line_of(c, node), node.cost, {}, {}
  for i, target in ipairs(node.targets) do
    assigns[i], items[i] = assigner(target), expression(c, node.values[i])
  end
  local body = block(c, node.body)
  return function(scope, out)
    state.line = line
    charge(cost)
    local inside = inner_scope(scope)
    for i = 1, #items do assigns[i](inside, items[i](scope)) end
    return body(inside, out)
  end
end

compile["named"] = function(c, node)
  local body = block(c, node.body)
  local scoped = node.scoped
  return function(scope, out)
    charge(1)
    -- A block sees the variables of the top, those around it only if it says so.
    body(inner_scope(scoped and scope or state.top), out)
  end
end

compile["generation"] = function(c, node)
  c.marks = true
  local body = block(c, node.body)
  return function(scope, out)
    charge(1)
    if out.marks then emit(out, out.marks[1]) end
    body(inner_scope(scope), out)
    if out.marks then emit(out, out.marks[2]) end
  end
end

--- Closure (variables, out) of a tree.
--- @param tree table
--- @param source string
--- @return function
--- @return boolean  whether it has generation blocks
function M.compile(tree, source)
  local c = { source = source, soft = 0, line = 1, seen = 1, marks = false }
  return block(c, tree), c.marks
end

return M
