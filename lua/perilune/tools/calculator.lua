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

--- A calculator as a tool: an expression of whole numbers with + - * /, signs and parentheses gives its value. It is a
--- parser and runs no code. Whole values up to 2^62 are exact and given as digits; larger ones are rounded and given to
--- 14 digits, as 9.9999999998e+21.
--- @param ... any  options, one table
--- @return table tool
function M.calculator(...)
  local o = options.read("tools.calculator", {}, rules, 3, ...)
  return tool.tool { name = o.name, about = "the value of an expression of whole numbers with + - * / and parentheses",
    run = run }
end
options.declare(M.calculator, {}, rules)

return M
