-- match.lua - rewards for the right answer: as text, as a number, as an expression, in the form that was asked for.
local answers = require "perilune.reward.answers"
local arithmetic = require "perilune.reward.arithmetic"
local number = require "perilune.tasks.numbers"
local options = require "perilune.options"

local M = {}

local function rules_with(more)
  local rules = {
    field = options.value("answer", "string", "of the row, that says the right answer"),
    part = answers.part_rule "whole",
    right = options.number(1, nil, "reward of a right answer"),
    wrong = options.number(0, nil, "reward of a wrong one, or of none"),
  }
  for name, rule in pairs(more) do rules[name] = rule end
  return rules
end

-- A reward that asks same(gold, text, o): true, false, or nil to abstain.
local function matcher(o, same)
  return function (row, text)
    local gold = answers.gold(row, o.field)
    local part = answers.part(text, o.part)
    local verdict = same(gold, part, o)
    if verdict == nil then return nil end
    return verdict and o.right or o.wrong
  end
end

-- ---- as text ----

local function spaced(text) return (answers.trimmed(text):gsub("%s+", " ")) end

local exact_rules = rules_with {
  from = answers.from_rule "any",
  case = options.boolean(true, "upper and lower case differ (of ASCII letters)"),
}

local function same_text(gold, text, o)
  local given = text and answers.find(text, o.from)
  if not given then return false end
  gold, given = spaced(gold), spaced(given)
  if not o.case then gold, given = gold:lower(), given:lower() end
  return gold == given
end

--- A reward for the answer that is the row's to the letter; runs of spaces count as one.
--- @param opts table?
--- @return function reward
function M.exact(opts) return matcher(options.fill("reward.exact", opts, exact_rules), same_text) end
options.declare(M.exact, {}, exact_rules)

-- ---- as a number ----

local numeric_rules = rules_with {
  from = answers.from_rule "any",
  tolerance = options.number(0, "[0, inf)", "of the difference, relative to numbers above 1; 0: digit for digit"),
}

local function same_number(gold, text, o)
  local wanted = number.whole(gold) or number.first(number.plain(gold))
  if not wanted then return nil end
  local given = text and answers.number(text, o.from)
  if not given then return false end
  if o.tolerance == 0 then return given == wanted end
  return arithmetic.near(tonumber(given), tonumber(wanted), o.tolerance)
end

--- A reward for the right number, whatever its form: 1,234.50 is 1234.5 and $1234.5. Numbers are compared as decimals,
--- of any length. By default the one that is marked counts, or else the last of the text. Rows whose right answer is no
--- number are abstained from.
--- @param opts table?
--- @return function reward
function M.numeric(opts) return matcher(options.fill("reward.numeric", opts, numeric_rules), same_number) end
options.declare(M.numeric, {}, numeric_rules)

-- ---- as an expression ----

local LONGEST <const> = arithmetic.LONGEST

-- Whether two texts say the same: as texts, as numbers, as expressions. nil where the right answer is none of the
-- latter.
local function same_value(gold, given, tolerance, must)
  if #given > LONGEST then return false end
  if spaced(gold) == spaced(given) then return true end
  local percent_of = gold:find("%", 1, true) or given:find("%", 1, true)
  local a, b = number.whole(gold), number.whole(given)
  if a and b and tolerance == 0 and not percent_of then return a == b end
  local wanted, percent = arithmetic.value(gold)
  if not wanted then
    if must then return nil end
    return false
  end
  local value, other = arithmetic.value(given)
  if not value then return false end
  if percent ~= other then -- 50 % is meant by 50 as well as by 0.5
    local share, whole = percent and wanted or value, percent and value or wanted
    return arithmetic.near(share, whole, tolerance) or arithmetic.near(share / 100, whole, tolerance)
  end
  return arithmetic.near(value, wanted, tolerance)
end

local expression_rules = rules_with {
  from = answers.from_rule "any",
  tolerance = options.number(0, "[0, inf)", "of the difference, relative to numbers above 1; 0: twelve digits"),
}

local function same_expression(gold, text, o)
  local given = text and answers.find(text, o.from)
  if not given then
    if not arithmetic.value(gold) then return nil end
    return false
  end
  return same_value(gold, given, o.tolerance, true)
end

--- A reward for an answer of the right value: 1/2, 0.5, \frac{1}{2} and 2^{-1} are one. It is read by a parser of
--- arithmetic, not run. Of "x = 5" the right side counts; of an equation between numbers both sides have to agree. Rows
--- whose right answer is no arithmetic are abstained from. An answer that leaves the sum to the reader (17 + 4 for 21)
--- is right: where that is the task, use numeric.
--- @param opts table?
--- @return function reward
function M.expression(opts)
  return matcher(options.fill("reward.expression", opts, expression_rules), same_expression)
end
options.declare(M.expression, {}, expression_rules)

-- ---- in the form that was asked for ----

local form_rules = rules_with {
  tolerance = options.number(0, "[0, inf)", "of the difference, relative to numbers above 1; 0: twelve digits"),
}

local function form(place)
  return function (gold, text, o)
    local given = text and answers.extract(text, place)
    return given ~= nil and same_value(gold, given, o.tolerance, false)
  end
end
local in_box, behind_hash = form "boxed", form "hash"

--- A reward for the right answer in \boxed{}, as text, number or expression. The last box whose braces close counts.
--- @param opts table?
--- @return function reward
function M.boxed(opts) return matcher(options.fill("reward.boxed", opts, form_rules), in_box) end
options.declare(M.boxed, {}, form_rules)

--- A reward for the right answer behind "#### ", as text, number or expression. The first line that has one counts.
--- @param opts table?
--- @return function reward
function M.hash(opts) return matcher(options.fill("reward.hash", opts, form_rules), behind_hash) end
options.declare(M.hash, {}, form_rules)

return M
