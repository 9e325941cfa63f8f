-- calculator.lua - a calculator as a tool: whole numbers with + - * / and parentheses.
local arithmetic = require "perilune.reward.arithmetic"
local options = require "perilune.options"
local tool = require "perilune.tools.tool"

local M = {}

local function run(text)
  if type(text) == "table" then text = text.expression or text[1] end
  if type(text) ~= "string" then error("an expression is expected, such as 12*34", 0) end
  local value, why = arithmetic.evaluate(text)
  if not value then error(why, 0) end
  return value
end

local rules = { name = options.value("calculator", "string", "that it is called by") }

--- A calculator as a tool: an expression of whole numbers with + - * /, signs and parentheses gives its value, a whole
--- one as its digits. It is a parser and runs no code.
--- @param opts table?
--- @return table tool
function M.calculator(opts)
  local o = options.fill("tools.calculator", opts, rules)
  return tool.tool { name = o.name, about = "the value of an expression of whole numbers with + - * / and parentheses",
    run = run }
end
options.declare(M.calculator, {}, rules)

return M
