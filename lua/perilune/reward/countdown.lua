-- countdown.lua - the reward of the countdown game, with TinyZero's constants.
local answers = require "perilune.reward.answers"
local arithmetic = require "perilune.reward.arithmetic"
local options = require "perilune.options"

local M = {}

local rules = {
  target = options.value("target", "string", "field of the row: the number to reach"),
  numbers = options.value("numbers", "string", "field of the row: the list of numbers, each to be used once"),
  from = answers.from_rule "tag",
  right = options.number(1, nil, "reward of an equation that gives the target"),
  form = options.number(0.1, nil, "reward of an answer that is wrong, or no equation of the numbers"),
  none = options.number(0, nil, "reward of a completion without an answer"),
  tolerance = options.number(1e-5, "(0, inf)", "the value is nearer to the target than this"),
}

local function field(row, name, kind)
  local value = type(row) == "table" and row[name]
  if type(value) ~= kind then
    error(("the row's %s, expected a %s"):format(options.is(name, value), kind), 0)
  end
  return value
end

-- Whether each number is used exactly once.
local function all_once(used, numbers)
  if #used ~= #numbers then return false end
  local left = {}
  for _, n in ipairs(numbers) do left[n] = (left[n] or 0) + 1 end
  for _, n in ipairs(used) do
    if (left[n] or 0) == 0 then return false end
    left[n] = left[n] - 1
  end
  return true
end

--- The reward of the countdown game: an equation of the row's numbers, each used exactly once, that gives the row's
--- target. 1 where it does, 0.1 for any other answer, 0 without one: TinyZero's constants. The answer is the last
--- <answer></answer>; it holds whole numbers, + - * /, parentheses and signs. (TinyZero's eval takes ** and // as well,
--- and looks at the last line alone.)
--- @param opts table?
--- @return function reward
function M.countdown(opts)
  local o = options.fill("reward.countdown", opts, rules)
  return function (row, text)
    local target, numbers = field(row, o.target, "number"), field(row, o.numbers, "table")
    local equation = answers.find(text, o.from)
    if not equation then return o.none end
    local value, used = arithmetic.evaluate(equation)
    if not value or not all_once(used, numbers) then return o.form end
    return math.abs(value - target) < o.tolerance and o.right or o.form
  end
end
options.declare(M.countdown, {}, rules)

return M
