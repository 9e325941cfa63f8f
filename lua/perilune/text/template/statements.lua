-- statements.lua - the statements of the grammar; methods of the parser of parser.lua.

local lexer = require "perilune.text.template.lexer"
local options = require "perilune.options"
local parser = require "perilune.text.template.parser"

local Parser = parser.Parser

local statements = {}

local refused = { extends = true, include = true, import = true, from = true, trans = true, pluralize = true,
  debug = true }

-- Statements until a tag named in ends (a set), whose name is taken; nil: until the end.
function Parser:block(ends)
  if ends then
    self:skip ":"
    self:expect "block_end"
  end
  self:enter()
  local list = {}
  while true do
    local kind, at = self.kind[self.i], self.at[self.i]
    if kind == "eof" then
      if ends then
        lexer.fail(self.source, ends.at, "'%s' is not closed: expected %s", ends.of, table.concat(ends, " or "))
      end
      break
    end
    self.i = self.i + 1
    if kind == "data" then
      list[#list + 1] = { k = "data", at = at, text = self.value[self.i - 1] }
    elseif kind == "variable_begin" then
      local before = self.cost
      local node = self:tuple {}
      list[#list + 1] = { k = "print", at = at, node, cost = self.cost - before }
      self:expect "variable_end"
    else
      local name = self:is "name" and self.value[self.i]
      if not name then self:fail("expected the name of a statement, found %s", self:found()) end
      if ends and ends[name] then
        self.i = self.i + 1
        self:leave()
        return list, name
      end
      local fn = statements[name]
      if not fn then self:unknown_statement(name) end
      local before = self.cost
      self.i = self.i + 1
      local node = fn(self, at)
      node.at, node.cost = at, node.cost or self.cost - before
      list[#list + 1] = node
      self:expect "block_end"
    end
  end
  self:leave()
  return list
end

function Parser:unknown_statement(name)
  if refused[name] then self:fail("statement '%s' is not supported", name) end
  if name:find "^end" or name == "else" or name == "elif" then self:fail("unexpected '%s'", name) end
  self:fail("%s", options.unknown("statement", name, options.names(statements)))
end

-- The body of a statement; ends are names.
function Parser:body(of, at, ...)
  local ends = { ... }
  ends.of, ends.at = of, at
  for _, name in ipairs(ends) do ends[name] = true end
  return self:block(ends)
end

function Parser:target(opts)
  local at = self.at[self.i]
  opts.simple = true
  local node = opts.name and self:primary() or self:tuple(opts)
  local function check(each)
    if each.k == "tuple" then
      for _, part in ipairs(each) do check(part) end
    elseif each.k == "name" then
      if each.name == "loop" and self.fors > 0 then
        lexer.fail(self.source, each.at, "cannot assign to 'loop' in a loop")
      end
      self.uses[each.name] = self.uses[each.name] - 1
    elseif each.k ~= "nsref" then
      lexer.fail(self.source, at, "cannot assign to a %s", each.k == "const" and "constant" or each.k)
    end
  end
  check(node)
  if opts.name and node.k ~= "name" then lexer.fail(self.source, at, "expected a name") end
  return node
end

statements["if"] = function(self, at)
  local node = { k = "if" }
  local test
  while true do
    local before = self.cost
    test = self:tuple { plain = true }
    local cost = self.cost - before
    local body, ended = self:body("if", at, "elif", "else", "endif")
    node[#node + 1] = { test, body, cost = cost + 1 }
    if ended == "else" then node.otherwise = self:body("if", at, "endif") end
    if ended ~= "elif" then break end
  end
  node.cost = 1
  return node
end

statements["for"] = function(self, at)
  self.fors = self.fors + 1
  local node = { k = "for", target = self:target { stop = "in" } }
  if not self:skip_name "in" then self:fail("expected 'in', found %s", self:found()) end
  local before = self.cost
  node.over = self:tuple { plain = true, stop = "recursive" }
  if self:skip_name "if" then node.test = self:expression() end
  node.cost = self.cost - before + 1
  node.recursive = self:skip_name "recursive"
  local uses = self.uses.loop or 0
  self.loops = self.loops + 1
  local body, ended = self:body("for", at, "else", "endfor")
  self.loops = self.loops - 1
  node.body, node.extended = body, node.recursive or (self.uses.loop or 0) > uses
  if ended == "else" then node.otherwise = self:body("for", at, "endfor") end
  self.fors = self.fors - 1
  return node
end

local function loop_control(name)
  statements[name] = function(self)
    if self.loops == 0 then self:fail("'%s' outside of a loop", name) end
    return { k = name, cost = 1 }
  end
end
loop_control "break"
loop_control "continue"

-- Loops do not reach into bodies that are rendered elsewhere.
function Parser:apart(of, at, name)
  local loops = self.loops
  self.loops = 0
  local body = self:body(of, at, name)
  self.loops = loops
  return body
end

statements.set = function(self, at)
  local target = self:target { namespaces = true }
  if self:skip "=" then return { k = "set", target = target, value = self:tuple {} } end
  local before, filter = self.cost, nil
  while self:is "|" do filter = self:filter(filter) end
  local cost = self.cost - before + 1
  return { k = "capture", target = target, filter = filter, body = self:apart("set", at, "endset"), cost = cost }
end

-- Parameters in parentheses: names and defaults.
function Parser:signature()
  local names, defaults = {}, {}
  self:expect "("
  while not self:is ")" do
    if #names > 0 then self:expect "," end
    local name = self:target({ name = true }).name
    if names[name] then self:fail("parameter '%s' comes twice", name) end
    names[#names + 1], names[name] = name, true
    if self:skip "=" then defaults[#names] = self:expression()
    elseif next(defaults) then self:fail("parameter '%s' without a default behind one with a default", name) end
  end
  self:expect ")"
  return names, defaults
end

-- A body with parameters; notes which of the implicit variables it uses.
function Parser:callable(node, of, at, name)
  local implicit = { "caller", "kwargs", "varargs" }
  local before = {}
  for _, each in ipairs(implicit) do before[each] = self.uses[each] or 0 end
  node.body = self:apart(of, at, name)
  for _, each in ipairs(implicit) do node[each] = (self.uses[each] or 0) > before[each] end
  node.cost = 1
  return node
end

statements.macro = function(self, at)
  local node = { k = "macro", name = self:target({ name = true }).name }
  node.names, node.defaults = self:signature()
  return self:callable(node, "macro", at, "endmacro")
end

statements.call = function(self, at)
  local node = { k = "callblock", names = {}, defaults = {} }
  if self:is "(" then node.names, node.defaults = self:signature() end
  local before = self.cost
  node.call = self:expression()
  local cost = self.cost - before + 1
  if node.call.k ~= "call" then lexer.fail(self.source, at, "expected a call of a macro behind 'call'") end
  self:callable(node, "call", at, "endcall")
  node.cost = cost
  return node
end

statements.filter = function(self, at)
  local before = self.cost
  local node = self:filter(nil, true)
  while self:is "|" do node = self:filter(node) end
  local cost = self.cost - before + 1
  return { k = "filterblock", filter = node, body = self:apart("filter", at, "endfilter"), cost = cost }
end

statements.with = function(self, at)
  local node, before = { k = "with", targets = {}, values = {} }, self.cost
  while not self:is "block_end" do
    if #node.targets > 0 then self:expect "," end
    node.targets[#node.targets + 1] = self:target {}
    self:expect "="
    node.values[#node.values + 1] = self:expression()
  end
  node.cost = self.cost - before + 1
  node.body = self:body("with", at, "endwith")
  return node
end

statements.generation = function(self, at)
  return { k = "generation", body = self:apart("generation", at, "endgeneration"), cost = 1 }
end

statements["do"] = function(self) return { k = "do", self:tuple {} } end

statements.print = function(self)
  local list = {}
  while not self:is "block_end" do
    if #list > 0 then self:expect "," end
    list[#list + 1] = self:expression()
  end
  return { k = "prints", list = list }
end

statements.autoescape = function(self, at)
  if not (self:skip_name "false" or self:skip_name "False") then
    self:fail "autoescape is not supported: templates make plain text"
  end
  return { k = "with", targets = {}, values = {}, body = self:body("autoescape", at, "endautoescape"), cost = 1 }
end

statements.block = function(self, at)
  local name = self:expect "name"
  local scoped = self:skip_name "scoped"
  if self:skip_name "required" then self:fail "required blocks are not supported" end
  local body = self:apart("block", at, "endblock")
  self:skip_name(name)
  return { k = "named", name = name, scoped = scoped, body = body, cost = 1 }
end

return statements
