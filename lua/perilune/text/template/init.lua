-- template - chat templates: the part of Jinja2 that they are written in, compiled to closures,
-- under the settings of transformers (trim_blocks, lstrip_blocks, loop controls, its tojson,
-- raise_exception, strftime_now, {% generation %}). A template computes with values of its own and
-- makes text: it reaches nothing of Lua, and its steps, output and nesting are bounded.

local compile = require "perilune.text.template.compile"
local globals = require "perilune.text.template.globals"
local input = require "perilune.text.template.input"
local options = require "perilune.options"
local parser = require "perilune.text.template.parser"
require "perilune.text.template.statements"
local text = require "perilune.text.template.text"
local values = require "perilune.text.template.values"

local M = {}

local SOURCE_MAX = 1 << 20

--- @class perilune.Template
--- @field name string
--- @field marks boolean  it has {% generation %} blocks
local Template = {}
Template.__index = Template

-- What an error says; Lua's own errors (a stack that overflows) come as strings.
local function message_of(name, err)
  if type(err) ~= "table" or not err.template_error then return ("%s: %s"):format(name, tostring(err)) end
  if err.column then return ("%s:%d:%d: %s"):format(name, err.line, err.column, err.template_error) end
  if err.line then return ("%s:%d: %s"):format(name, err.line, err.template_error) end
  return ("%s: %s"):format(name, err.template_error)
end

local compile_rules = { name = options.value("template", "string", "what messages call it") }

--- Compiles a template.
--- @param source string  at most 1 MiB
--- @param opts table?
--- @return perilune.Template?  nil where the source is no template that is supported
--- @return string? message  with name:line:column
function M.compile(source, opts)
  if type(source) ~= "string" then error("template.compile: the source must be a string", 2) end
  local o = options.fill("template.compile", opts, compile_rules)
  if #source > SOURCE_MAX then
    return nil, ("%s: %d bytes: a template has at most %d"):format(o.name, #source, SOURCE_MAX)
  end
  local ok, run, marks = pcall(function() return compile.compile(parser.parse(source)) end)
  if not ok then return nil, message_of(o.name, run) end
  return setmetatable({ name = o.name, marks = marks, _run = run }, Template)
end

options.declare(M.compile, { "source" }, compile_rules)

local render_rules = {
  steps = options.integer(250000, "[1, inf)", "more are an error; each table of vars adds 1000 and each byte 2"),
  output_bytes = options.integer(32 << 20, "[1, inf)", "more are an error"),
  now = options.value(options.none, "number or table", "seconds since 1970, or the fields of os.date \"*t\", for "
    .. "strftime_now; default: the present"),
}

local function clock(now)
  return function()
    if type(now) == "table" then return now end
    return os.date("*t", now)
  end
end

-- Renders into a list of texts; marks: what to put around generation blocks.
local function render(self, vars, opts, marks)
  local o = options.fill("template:render", opts, render_rules, 4)
  local budget = values.start(o.steps, o.output_bytes)
  local state = compile.state
  local before = { state.line, state.depth, state.most, state.bytes, state.top }
  local ok, result = pcall(function()
    state.line, state.depth, state.most, state.bytes = nil, 0, o.output_bytes, 0
    local base = { strftime_now = globals.clock(clock(o.now)) }
    local top = setmetatable(input.variables(vars), { __index = setmetatable(base, { __index = globals.names }) })
    state.top = top
    local out = { n = 0, marks = marks }
    self._run(top, out)
    return table.concat(out, "", 1, out.n)
  end)
  if not ok and type(result) == "table" then result.line = result.line or state.line end
  state.line, state.depth, state.most, state.bytes, state.top = table.unpack(before, 1, 5)
  values.restore(budget)
  if not ok then return nil, message_of(self.name, result) end
  return result
end

--- Renders the template.
--- @param vars table  variables by name: strings, numbers, booleans, peri.json.null, and tables of
---   them: a table with keys 1 to n, or marked by peri.json.array, is a list, any other is a dict whose
---   keys come in the order of their text where they come from peri.json, else in that of M.key_order
--- @param opts table?
--- @return string?
--- @return string? message
function Template:render(vars, opts) return render(self, vars, opts) end
options.declare(Template.render, { "vars" }, render_rules)

--- Renders the template and says which bytes its {% generation %} blocks made.
--- @param vars table
--- @param opts table?  as for render
--- @return string?  the text, or nil
--- @return table|string  spans: a list of { first byte, last byte } (last is first - 1 where a block
---   made nothing); the message where there is no text
function Template:render_spans(vars, opts)
  local plain, message = render(self, vars, opts)
  if not plain then return nil, message end
  -- Marks that no UTF-8 holds travel with the text, through macros and set blocks too.
  local open, close = "\xFE\xFD<", "\xFE\xFD>"
  local marked = render(self, vars, opts, { open, close })
  local parts, spans, bytes, i, starts = {}, {}, 0, 1, {}
  while marked do
    local at = marked:find("\xFE\xFD[<>]", i)
    local part = marked:sub(i, at and at - 1)
    parts[#parts + 1] = part
    bytes = bytes + #part
    if not at then break end
    if marked:sub(at, at + 2) == open then
      starts[#starts + 1] = bytes + 1
    else
      local first = table.remove(starts)
      if not first then break end
      spans[#spans + 1] = { first, bytes }
    end
    i = at + 3
  end
  if #starts > 0 or table.concat(parts) ~= plain then
    return nil, self.name .. ": the template changes what its generation blocks made: their bytes are unknown"
  end
  return plain, spans
end
options.declare(Template.render_spans, { "vars" }, render_rules)

--- A dict (or list, or plain value) for render from JSON, keys in the order of the text.
--- @param s string
--- @return table?  opaque; stands for the value among the variables
--- @return string? message
function M.json(s)
  if type(s) ~= "string" then error("template.json: the text must be a string", 2) end
  local budget = values.start(math.maxinteger, math.maxinteger)
  local ok, v = pcall(text.read_json, s)
  values.restore(budget)
  if not ok then return nil, message_of("template.json", v) end
  return input.box(v, 1000 + 20 * #s)
end

--- A dict for render with its keys in the given order.
--- @param pairs_of table  list of { key, value }
--- @return table
function M.dict(pairs_of) return input.dict(pairs_of) end

M.key_order = input.key_order

return M
