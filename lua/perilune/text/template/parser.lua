-- parser.lua - tokens to a tree: Jinja2's grammar (3.1) without what loads other templates. A node is
-- { k = kind, at = byte of the source, cost = nodes beneath, ... }. Nesting is bounded, so that a
-- hostile template can exhaust no stack.

local lexer = require "perilune.text.template.lexer"

local M = {}

local DEPTH_MAX = 100  -- brackets and statements within each other
local CHAIN_MAX = 1000 -- operators, attributes, filters and calls in one row

--- @class perilune.template.Parser
local Parser = {}
Parser.__index = Parser

function Parser:fail(fmt, ...) lexer.fail(self.source, self.at[self.i], fmt, ...) end

-- The current token in words.
function Parser:found()
  local kind = self.kind[self.i]
  if kind == "name" then return ("'%s'"):format(self.value[self.i]) end
  if kind == "eof" then return "the end of the template" end
  if kind == "block_end" or kind == "variable_end" then return "the end of the tag" end
  if kind == "string" or kind == "integer" or kind == "float" then return "a " .. kind end
  return ("'%s'"):format(kind)
end

function Parser:is(kind) return self.kind[self.i] == kind end

function Parser:is_name(name) return self.kind[self.i] == "name" and self.value[self.i] == name end

function Parser:skip(kind)
  if self.kind[self.i] ~= kind then return false end
  self.i = self.i + 1
  return true
end

function Parser:skip_name(name)
  if not self:is_name(name) then return false end
  self.i = self.i + 1
  return true
end

function Parser:expect(kind)
  if self.kind[self.i] ~= kind then
    self:fail("expected %s, found %s", kind == "name" and "a name" or "'" .. kind .. "'", self:found())
  end
  self.i = self.i + 1
  return self.value[self.i - 1]
end

function Parser:node(kind, at, node)
  node.k, node.at = kind, at
  self.cost = self.cost + 1
  return node
end

function Parser:enter()
  self.depth = self.depth + 1
  if self.depth > DEPTH_MAX then self:fail("nested deeper than %d", DEPTH_MAX) end
end

function Parser:leave() self.depth = self.depth - 1 end

-- Counts one link of a chain; a chain is compiled by recursion too.
function Parser:link(n)
  if n > CHAIN_MAX then self:fail("more than %d operations in a row", CHAIN_MAX) end
  return n + 1
end

-- ---- expressions, loosest first ----

function Parser:expression(plain)
  self:enter()
  local node = plain and self:either() or self:conditional()
  self:leave()
  return node
end

function Parser:conditional()
  local at, node, n = self.at[self.i], self:either(), 0
  while self:skip_name "if" do
    n = self:link(n)
    local test, otherwise = self:either(), nil
    if self:skip_name "else" then
      self:enter()
      otherwise = self:conditional()
      self:leave()
    end
    node = self:node("cond", at, { test, node, otherwise })
  end
  return node
end

function Parser:either()
  local at, node, n = self.at[self.i], self:both(), 0
  while self:skip_name "or" do
    n = self:link(n)
    node = self:node("or", at, { node, self:both() })
  end
  return node
end

function Parser:both()
  local at, node, n = self.at[self.i], self:negation(), 0
  while self:skip_name "and" do
    n = self:link(n)
    node = self:node("and", at, { node, self:negation() })
  end
  return node
end

function Parser:negation()
  local at = self.at[self.i]
  if not self:skip_name "not" then return self:comparison() end
  self:enter()
  local node = self:node("not", at, { self:negation() })
  self:leave()
  return node
end

local comparisons = { ["=="] = true, ["!="] = true, ["<"] = true, [">"] = true, ["<="] = true, [">="] = true }

function Parser:comparison()
  local at, node, ops = self.at[self.i], self:sum(), nil
  while true do
    local op = self.kind[self.i]
    if comparisons[op] then
      self.i = self.i + 1
    elseif self:skip_name "in" then
      op = "in"
    elseif self:is_name "not" and self.kind[self.i + 1] == "name" and self.value[self.i + 1] == "in" then
      op = "not in"
      self.i = self.i + 2
    else
      break
    end
    ops = ops or {}
    self:link(#ops)
    ops[#ops + 1] = { op = op, self:sum() }
  end
  return ops and self:node("compare", at, { node, ops = ops }) or node
end

-- A left-associative level of binary operators.
local function level(name, ops, tighter)
  Parser[name] = function(self)
    local at, node, n = self.at[self.i], self[tighter](self), 0
    while ops[self.kind[self.i]] do
      local op = self.kind[self.i]
      n = self:link(n)
      self.i = self.i + 1
      node = self:node("binary", at, { op = op, node, self[tighter](self) })
    end
    return node
  end
end

level("sum", { ["+"] = true, ["-"] = true }, "concat")
level("product", { ["*"] = true, ["/"] = true, ["//"] = true, ["%"] = true }, "power")
level("power", { ["**"] = true }, "unary")

function Parser:concat()
  local at, node = self.at[self.i], self:product()
  if not self:is "~" then return node end
  local list = { node }
  while self:skip "~" do
    self:link(#list)
    list[#list + 1] = self:product()
  end
  return self:node("concat", at, list)
end

function Parser:unary(bare)
  local at, node = self.at[self.i]
  if self:is "-" or self:is "+" then
    local op = self.kind[self.i]
    self.i = self.i + 1
    self:enter()
    node = self:node(op == "-" and "neg" or "pos", at, { self:unary(true) })
    self:leave()
  else
    node = self:primary()
  end
  node = self:postfix(node)
  if not bare then node = self:filters_and_tests(node) end
  return node
end

local constants = { ["true"] = true, ["True"] = true, ["false"] = false, ["False"] = false }

function Parser:primary(namespaces)
  local i = self.i
  local kind, value, at = self.kind[i], self.value[i], self.at[i]
  self.i = i + 1
  if kind == "name" then
    if constants[value] ~= nil then return self:node("const", at, { value = constants[value] }) end
    if value == "none" or value == "None" then return self:node("none", at, {}) end
    if namespaces and self:skip "." then return self:node("nsref", at, { name = value, attr = self:expect "name" }) end
    self.uses[value] = (self.uses[value] or 0) + 1
    return self:node("name", at, { name = value })
  elseif kind == "string" then
    local parts = { value }
    while self:is "string" do
      parts[#parts + 1] = self.value[self.i]
      self.i = self.i + 1
    end
    return self:node("const", at, { value = table.concat(parts) })
  elseif kind == "integer" or kind == "float" then
    return self:node("const", at, { value = value })
  elseif kind == "(" then
    self:enter()
    local node = self:tuple { parenthesised = true }
    self:leave()
    self:expect ")"
    return node
  elseif kind == "[" then
    return self:list(at)
  elseif kind == "{" then
    return self:dict(at)
  end
  self.i = i
  self:fail("expected an expression, found %s", self:found())
end

function Parser:list(at)
  local list = {}
  while not self:is "]" do
    if #list > 0 then
      self:expect ","
      if self:is "]" then break end
    end
    list[#list + 1] = self:expression()
  end
  self:expect "]"
  return self:node("list", at, list)
end

function Parser:dict(at)
  local list = {}
  while not self:is "}" do
    if #list > 0 then
      self:expect ","
      if self:is "}" then break end
    end
    local key = self:expression()
    self:expect ":"
    list[#list + 1] = { key, self:expression() }
  end
  self:expect "}"
  return self:node("dict", at, { pairs = list })
end

-- opts: simple (targets), plain (no conditional expression), stop (a name that ends it),
-- parenthesised (may be empty), namespaces
function Parser:tuple(opts)
  local at, list, is_tuple = self.at[self.i], {}, false
  while true do
    if #list > 0 then self:expect "," end
    local kind = self.kind[self.i]
    if kind == "variable_end" or kind == "block_end" or kind == ")" or opts.stop and self:is_name(opts.stop) then
      break
    end
    list[#list + 1] = opts.simple and self:primary(opts.namespaces) or self:expression(opts.plain)
    if not self:is "," then break end
    is_tuple = true
  end
  if not is_tuple then
    if list[1] then return list[1] end
    if not opts.parenthesised then self:fail("expected an expression, found %s", self:found()) end
  end
  return self:node("tuple", at, list)
end

function Parser:postfix(node)
  local n = 0
  while true do
    if self:is "." or self:is "[" then node = self:subscript(node)
    elseif self:is "(" then node = self:call(node)
    else return node end
    n = self:link(n)
  end
end

function Parser:filters_and_tests(node)
  local n = 0
  while true do
    if self:is "|" then node = self:filter(node)
    elseif self:is_name "is" then node = self:test(node)
    elseif self:is "(" then node = self:call(node)
    else return node end
    n = self:link(n)
  end
end

function Parser:subscript(node)
  local at = self.at[self.i]
  if self:skip "." then
    if self:is "integer" then
      local value = self:node("const", at, { value = self:expect "integer" })
      return self:node("item", at, { node, value })
    end
    return self:node("attr", at, { node, name = self:expect "name" })
  end
  self:expect "["
  local list = {}
  while not self:is "]" do
    if #list > 0 then self:expect "," end
    list[#list + 1] = self:subscribed()
  end
  self:expect "]"
  if #list == 0 then self:fail "expected a subscript between the brackets" end
  if #list == 1 then
    if list[1].k == "slice" then
      list[1][4] = node
      return list[1]
    end
    return self:node("item", at, { node, list[1] })
  end
  for _, each in ipairs(list) do
    if each.k == "slice" then lexer.fail(self.source, each.at, "slices in a tuple are not supported") end
  end
  return self:node("item", at, { node, self:node("tuple", at, list) })
end

function Parser:subscribed()
  local at, parts = self.at[self.i], { false, false, false }
  if not self:is ":" then
    parts[1] = self:expression()
    if not self:is ":" then return parts[1] end
  end
  self:expect ":"
  for k = 2, 3 do
    if not (self:is ":" or self:is "]" or self:is ",") then parts[k] = self:expression() end
    if not self:skip ":" then break end
  end
  return self:node("slice", at, parts)
end

-- Arguments of a call: { list..., names = { {name, node}... }, more =, more_names = }
function Parser:arguments()
  local args = { names = {} }
  self:expect "("
  local comma = false
  while not self:is ")" do
    if comma then
      self:expect ","
      if self:is ")" then break end
    end
    if self:skip "*" then
      if args.more or args.more_names then self:fail "a second * in a call" end
      args.more = self:expression()
    elseif self:skip "**" then
      if args.more_names then self:fail "a second ** in a call" end
      args.more_names = self:expression()
    elseif self:is "name" and self.kind[self.i + 1] == "=" then
      if args.more_names then self:fail "a named argument behind **" end
      local name = self:expect "name"
      self.i = self.i + 1
      args.names[#args.names + 1] = { name, self:expression() }
    else
      if args.more or args.more_names or args.names[1] then
        self:fail "an argument by position behind one by name"
      end
      args[#args + 1] = self:expression()
    end
    comma = true
  end
  self:expect ")"
  return args
end

function Parser:call(node)
  local at = self.at[self.i]
  return self:node("call", at, { node, args = self:arguments() })
end

function Parser:dotted()
  local name = self:expect "name"
  while self:skip "." do name = name .. "." .. self:expect "name" end
  return name
end

-- node is nil in filter blocks.
function Parser:filter(node, inline)
  if not inline then self:expect "|" end
  local at = self.at[self.i]
  local name = self:dotted()
  return self:node("filter", at, { node or false, name = name, args = self:is "(" and self:arguments() or nil })
end

local operand = { name = true, string = true, integer = true, float = true, ["["] = true, ["{"] = true }

function Parser:test(node)
  self:expect "name"
  local negated = self:skip_name "not"
  local at = self.at[self.i]
  local name, args = self:dotted(), nil
  if self:is "(" then
    args = self:arguments()
  elseif operand[self.kind[self.i]] and not (self:is_name "else" or self:is_name "or" or self:is_name "and") then
    if self:is_name "is" then self:fail "tests cannot be chained with 'is'" end
    args = { names = {}, self:postfix(self:primary()) }
  end
  node = self:node("test", at, { node, name = name, args = args })
  return negated and self:node("not", at, { node }) or node
end

--- The tree of a template.
--- @param text string
--- @return table tree
--- @return string source  that the places in the tree refer to
function M.parse(text)
  local tokens, source = lexer.tokens(text)
  local self = setmetatable({ source = source, kind = tokens.kind, value = tokens.value, at = tokens.at, i = 1,
    depth = 0, cost = 0, uses = {}, loops = 0, fors = 0 }, Parser)
  return self:block(nil), source
end

M.Parser = Parser

return M
