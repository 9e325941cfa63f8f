-- interpreter.lua - a Lua interpreter as a tool: each call is a process of its own in the sandbox.
local options = require "perilune.options"
local tool = require "perilune.tools.tool"

local M = {}

-- Runs in the sandbox: an expression gives its values, other code what it returns, both what they print.
local SOURCE <const> = [[
return function (code)
  if type(code) == "table" then code = code.code or code[1] end
  if type(code) ~= "string" then error("Lua code is expected", 0) end
  local f, why = load("return " .. code, "=code", "t")
  if not f then f, why = load(code, "=code", "t") end
  if not f then error(why, 0) end
  return table.pack(f())
end]]

local rules = {
  name = options.value("lua", "string", "that it is called by"),
  timeout = options.number(1, "(0, 3600]", "seconds of the processor"),
  memory = options.integer(64 << 20, "[65536, 1099511627776]", "bytes that the code may have"),
  output = options.integer(64 << 10, "[0, 1073741824]", "bytes that it may print or return"),
}

--- A Lua interpreter as a tool: an expression gives its value, code what it prints and returns, several values with
--- tabs between them. Each call is a process of its own in the sandbox, without files, network or memory of the calls
--- before.
--- @param ... any  options, one table
--- @return table tool
function M.interpreter(...)
  local o = options.read("tools.interpreter", {}, rules, 3, ...)
  local made = tool.tool { name = o.name, about = "runs Lua code and says what it prints and returns", source = SOURCE,
    timeout = o.timeout, memory = o.memory, output = o.output }
  made.packed = true
  return made
end
options.declare(M.interpreter, {}, rules)

return M
