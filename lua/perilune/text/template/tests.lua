-- tests.lua - what may stand behind "is": name to function (value, args, names) -> boolean.

local params = require "perilune.text.template.params"
local strings = require "perilune.text.template.strings"
local text = require "perilune.text.template.text"
local values = require "perilune.text.template.values"

local tests = {}

local type_of = values.type

local function def(names, spec, fn, raw)
  for name in names:gmatch "%S+" do tests[name] = params.bind("test " .. name, spec, fn, raw) end
end

local function of_types(names, ...)
  local set = {}
  for _, t in ipairs { ... } do set[t] = true end
  def(names, "", function(v) return set[type_of(v)] or false end)
end

def("defined", "", function(v) return type_of(v) ~= "undef" end)
of_types("undefined", "undef")
of_types("none", "none")
of_types("boolean", "bool")
of_types("integer", "int")
of_types("float", "float")
of_types("number", "int", "float", "bool")
of_types("string", "str")
of_types("mapping", "dict")
of_types("sequence", "str", "list", "tuple", "range", "dict", "undef")
of_types("callable", "func", "macro", "cycler", "joiner", "loop", "undef")
def("iterable", "", values.iterable)
def("true", "", function(v) return v == true end)
def("false", "", function(v) return v == false end)
def("escaped", "", values.is_markup, "first")

local function cased(name, change)
  def(name, "", function(v)
    local s = text.str(v)
    values.charge_text(#s)
    local seen = false
    for c in s:gmatch "[\0-\127\192-\255][\128-\191]*" do
      local case = strings.case(c)
      if case and change(c) ~= c then return false end
      seen = seen or case ~= nil
    end
    return seen
  end)
end
cased("lower", strings.lower)
cased("upper", strings.upper)

local function integer_like(v, what)
  local n = values.num(values.defined(v))
  if not n then values.raise("%s: a number is needed, not %s", what, values.type_name(v)) end
  return n
end
def("odd", "", function(v) return integer_like(v, "odd") % 2 == 1 end)
def("even", "", function(v) return integer_like(v, "even") % 2 == 0 end)
def("divisibleby", "num!", function(v, n)
  local x, y = integer_like(v, "divisibleby"), integer_like(n, "divisibleby")
  if y == 0 then values.raise "modulo by zero" end
  return x % y == 0
end)

def("== eq equalto", "other!", values.eq)
def("!= ne", "other!", function(a, b) return not values.eq(a, b) end)
def("< lt lessthan", "other!", function(a, b) return values.lt(a, b, "<") end)
def("> gt greaterthan", "other!", function(a, b) return values.lt(b, a, ">") end)
def("<= le", "other!", values.le)
def(">= ge", "other!", function(a, b) return values.le(b, a) end)
def("in", "seq!", function(v, container) return values.contains(container, v) end)
def("sameas", "other!", function(a, b)
  return a == b and type_of(a) == type_of(b)
end, "all")

return tests
