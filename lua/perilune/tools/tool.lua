-- tool.lua - what a model may call: a function of this program, whose errors and time are held, or a text of Lua that
-- runs in a process of its own (peri.sandbox). Whatever a tool does, a call ends with a text and whether it failed.
local peri = require "perilune"
local options = require "perilune.options"
local sandbox = require "perilune.sandbox"

local M = {}

local MEMORY <const> = 64 << 20
local DEEPEST <const> = 32 -- tables in tables of arguments
local MOST_VALUES <const> = 250 -- of an interpreter's code; what comes from a process is not trusted

local rules = {
  name = options.value(options.required, "string", "that it is called by: letters, digits and _"),
  about = options.value("", "string", "what it does, for a prompt"),
  run = options.value(options.none, "callable", "fn(arguments) -> what the model is told, in this process"),
  source = options.value(options.none, "string", "Lua text that returns such a function, for a process of its own"),
  timeout = options.number(1, "(0, 3600]", "seconds of a call: of run on the clock (a function of "
    .. "C is waited for), of source of the processor"),
  memory = options.integer(options.none, "[65536, 1099511627776]", "bytes that source may have (64 MiB)"),
  output = options.integer(64 << 10, "[0, 1073741824]", "bytes that a call may print or return"),
}

local Tool = {}
Tool.__index, Tool.__name = Tool, "perilune.tools.Tool"

--- Whether a value is a tool.
function M.is(value) return type(value) == "table" and getmetatable(value) == Tool end

-- Raise unless source is the text of a function. It runs in the sandbox; where that cannot be, calls say so.
local function compiled(o)
  local _, why = load(o.source, "=source", "t", {})
  if not why then
    local result = sandbox.run(("local f = load(%q, '=source')\nreturn type((f()))"):format(o.source),
      { timeout = o.timeout, memory = o.memory })
    if not result or result.status == "unprotected" then return end
    if result.status ~= "ok" then why = result.err or result.status
    elseif result.value ~= "function" then why = ("it returns a %s"):format(tostring(result.value)) end
  end
  if why then
    options.raise(("tools.tool: source of %s: %s; expected Lua text that returns a function"):format(o.name, why))
  end
end

--- A tool that a model may call: run is a function of this program, for what can be trusted; source is Lua text for the
--- sandbox, for what cannot. Arguments are what the call says: a text, or a table where it was JSON. A result is a
--- text, a number, a boolean, or plain data, which the model reads as JSON. A tool that raises, returns nil and a
--- message, takes too long, eats memory or gives more than `output` has failed, and the model is told so in a text.
---
---     local double = peri.tools.tool { name = "double", run = function (x) return 2 * tonumber(x) end }
---     local sort = peri.tools.tool { name = "sort", timeout = 0.2,
---       source = "return function (list) table.sort(list) return list end" }
---
--- @param ... any  options, one table
--- @return table tool  for tools.environment and tools.call
function M.tool(...)
  local o = options.read("tools.tool", {}, rules, 3, ...)
  if not o.name:find "^[%a_][%w_]*$" then
    options.raise(("tools.tool: name is %q, expected letters, digits and _"):format(o.name))
  end
  if (o.run == nil) == (o.source == nil) then
    options.raise(("tools.tool: %s has %s, expected one of run and source"):format(o.name,
      o.run and "both run and source" or "neither run nor source"))
  end
  if o.run and o.memory then
    options.raise(("tools.tool: %s has a run and memory is %d: that limits source alone"):format(o.name, o.memory))
  end
  o.memory = o.memory or MEMORY
  if o.source then compiled(o) end
  return setmetatable(o, Tool)
end
options.declare(M.tool, {}, rules)

-- ---- results as texts ----

-- A text of what a tool gave, or nil and why it is none.
local function text_of(value)
  local kind = type(value)
  if kind == "string" then return value end
  if kind == "nil" then return "" end
  if value ~= value then return "nan" end -- with or without a sign otherwise
  if math.type(value) == "float" and value % 1 == 0 and math.abs(value) < 0x1p53 then
    return ("%d"):format(value)
  end
  if kind == "number" then return math.type(value) == "integer" and tostring(value) or ("%.14g"):format(value) end
  if kind == "boolean" then return tostring(value) end
  if kind ~= "table" then return nil, ("the result is a %s"):format(kind) end
  local ok, text = pcall(peri.json.encode, value)
  if not ok then return nil, "the result cannot be written as JSON" end
  return text
end
M.text_of = text_of

-- An error as one line of text, without the place where it was raised.
local function reason_of(err)
  local text = type(err) == "string" and err or ("an error that is a %s"):format(type(err))
  text = text:match "^[^\n]*" or text
  return (text:gsub("^%[string [^%]]*%]:%d+: ", ""):gsub("^[^%s:]+%.lua:%d+: ", ""))
end

-- ---- calls in this process ----

-- fn(arguments) in a coroutine with a deadline: Lua that loops is stopped, whatever it catches and whatever coroutines
-- it makes. What it leaves to be closed has as long once more.
local function guarded(fn, arguments, seconds)
  local co = coroutine.create(function () return fn(arguments) end)
  local deadline <close> = peri._deadline(co, seconds)
  local ok, value, message = coroutine.resume(co)
  local slept = ok and coroutine.status(co) == "suspended"
  local late = deadline:ended(seconds)
  coroutine.close(co)
  if not ok and peri.interrupted() then error(value, 0) end
  if late then return nil, ("it took more than %g s"):format(seconds) end
  if slept then return nil, "it yielded" end
  if not ok then return nil, reason_of(value) end
  if value == nil and message ~= nil then return nil, reason_of(message) end -- as functions of Lua say what went wrong
  return value
end

local function run_here(tool, arguments)
  local value, why = guarded(tool.run, arguments, tool.timeout)
  if why then return nil, why end
  local text, none = text_of(value)
  if text and #text > tool.output then
    return nil, ("the result has %d bytes, more than %d"):format(#text, tool.output)
  end
  return text, none
end

-- ---- calls in processes ----

-- What of a value cannot go into a process, or nil.
local function odd_of(v, depth)
  depth = depth or 1
  if type(v) ~= "table" then
    return not (type(v) == "string" or type(v) == "number" or type(v) == "boolean") and "a " .. type(v) or nil
  end
  if depth > DEEPEST then return "a table that is too deep" end
  for key, value in next, v do
    local odd = odd_of(key, depth + 1) or odd_of(value, depth + 1)
    if odd then return odd end
  end
end

M.odd_of = odd_of

-- Plain data as Lua text.
local function literal(v)
  if type(v) ~= "table" then return ("%q"):format(v) end
  local out = {}
  for key, value in next, v do out[#out + 1] = ("[%s]=%s"):format(literal(key), literal(value)) end
  return "{" .. table.concat(out, ",") .. "}"
end

local function job_of(tool, arguments)
  local source = ([[
local load, type, error, tostring = load, type, error, tostring
local value, message = load(%q, "=source")()(%s)
if value == nil and message ~= nil then error(type(message) == "string" and message or tostring(message), 0) end
return value]]):format(tool.source, literal(arguments))
  return { source = source, timeout = tool.timeout, memory = tool.memory, output = tool.output, value = tool.output }
end

-- What became of a process, as the model is told it.
local function told(result, tool)
  if result.status == "unprotected" then error(result.err, 0) end
  if result.status ~= "ok" then return nil, reason_of(result.err or result.status) end
  if result.note then
    local why = result.note:gsub("^the value cannot be shown: ", "")
    if why == "it is too large" then return nil, ("the result has more than %d bytes"):format(tool.output) end
    return nil, "the result cannot be shown: " .. why
  end
  local values = tool.packed and result.value or { result.value, n = 1 } -- packed: as of table.pack
  local texts = {}
  for i = 1, math.min(math.tointeger(values.n) or 1, MOST_VALUES) do
    local text, why = text_of(values[i])
    if not text then return nil, why end
    texts[i] = values.n > 1 and values[i] == nil and "nil" or text
  end
  return result.stdout .. table.concat(texts, "\t")
end

local fields = { "tool", "arguments" }

-- Raise unless a value is a list of calls.
local function want(calls)
  options.argument("tools.call", "calls", calls, "table")
  for key in pairs(calls) do
    if math.type(key) ~= "integer" or key < 1 or key > #calls then
      options.raise(("tools.call: calls has the field %s, expected a list of { tool =, arguments = }"):format(
        tostring(key)))
    end
  end
  for i = 1, #calls do
    local call = calls[i]
    if type(call) ~= "table" or not M.is(call.tool) then
      options.raise(("tools.call: call %d has no tool of tools.tool"):format(i))
    end
    for key in pairs(call) do
      if key ~= "tool" and key ~= "arguments" then
        options.raise(("tools.call: call %d: %s"):format(i, options.unknown("field", key, fields)))
      end
    end
    if call.arguments == nil then
      options.raise(("tools.call: call %d, of %s, has no arguments, a text or plain data"):format(i, call.tool.name))
    end
    local odd = call.tool.source and odd_of(call.arguments)
    if odd then
      options.raise(("tools.call: arguments of call %d, of %s, hold %s, expected a text or plain data"):format(i,
        call.tool.name, odd))
    end
  end
end

--- Make calls, those of processes side by side.
--- @param calls table[]  { tool =, arguments = } each; arguments a text, or plain data
--- @return table[] results  of each { text =, failed = boolean }: what the model is told
function M.call(calls)
  want(calls)
  local results, jobs, places = {}, {}, {}
  for i, call in ipairs(calls) do
    if call.tool.source then jobs[#jobs + 1], places[#places + 1] = job_of(call.tool, call.arguments), i
    else
      local text, why = run_here(call.tool, call.arguments)
      results[i] = { text = text or why, failed = text == nil }
    end
  end
  if #jobs > 0 then
    local list, message = sandbox.run_many(jobs)
    if not list then error("tools.call: " .. message, 0) end
    for k, result in ipairs(list) do
      local text, why = told(result, calls[places[k]].tool)
      results[places[k]] = { text = text or why, failed = text == nil }
    end
  end
  return results
end

return M
