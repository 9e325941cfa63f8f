-- sums.lua - the smallest problems with answers that can be checked: "Calculate 17 + 4 = ?".
local numbers = require "perilune.tasks.numbers"
local options = require "perilune.options"

local M = {}

M.name = "sums"
M.about = "sums of two whole numbers, one number each"

local rules = {
  smallest = options.integer(1, "[0, 1000000]", "number that is added"),
  largest = options.integer(20, "[0, 1000000]", "number that is added"),
}

--- Every sum of two numbers, in order: each row has the question, the prompt as messages for a chat template, and the
--- answer as the number that it is.
--- @param opts table?
--- @return table[] rows  { question, prompt, answer }
function M.rows(opts)
  local o = options.fill("sums.rows", opts, rules)
  if o.largest < o.smallest then
    error(("sums.rows: largest is %d and smallest %d"):format(o.largest, o.smallest), 2)
  end
  local rows = {}
  for a = o.smallest, o.largest do
    for b = o.smallest, o.largest do
      local question = ("Calculate %d + %d = ?"):format(a, b)
      rows[#rows + 1] = { question = question, prompt = { { role = "user", content = question } }, answer = a + b }
    end
  end
  return rows
end
options.declare(M.rows, {}, rules)

--- Whether the last number of a text is a row's answer, whatever it is written with: a rule reward of 1 or 0.
--- @param row table  with .answer, a number
--- @param text string
--- @return integer
function M.reward(row, text)
  local last = numbers.last(text)
  return last and tonumber(last) == row.answer and 1 or 0
end

return require "perilune.names"(M, "perilune.tasks.sums")
