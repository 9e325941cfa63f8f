-- answers.lua - where a completion says its answer: behind "####", in \boxed{}, between <answer> tags, at its end; and
-- which part of a completion is the thought and which the summary. Every function takes time linear in the text,
-- whatever it is.
local number = require "perilune.tasks.numbers"
local options = require "perilune.options"

local M = {}

local function trimmed(text)
  local from = text:match "^%s*()"
  local last = #text
  while last >= from and text:find("^%s", last) do last = last - 1 end
  return text:sub(from, last)
end
M.trimmed = trimmed

-- ---- parts ----

-- The part of a completion that is looked at: all of it, the summary behind the last </think> (nil without one), or
-- the thought: what stands between <think> and the last </think>, or the end of the text; a text without either is
-- all thought.
function M.part(text, part)
  if part == "whole" then return text end
  local close, behind, at = nil, nil, 1
  while true do
    local from, to = text:find("</think>", at, true)
    if not from then break end
    close, behind, at = from, to + 1, to + 1
  end
  if part == "summary" then return behind and text:sub(behind) end
  local _, open = text:find("<think>", 1, true)
  if open and close and close <= open then close = nil end
  return text:sub((open or 0) + 1, close and close - 1)
end

-- The option that says which part.
function M.part_rule(default)
  return options.choice(default, { "whole", "summary", "thought" },
    "of the completion: all, what follows the last </think>, or what stands before it")
end

-- ---- what stands at a mark ----

-- What stands in the last \boxed{} whose braces close. One pass over the braces: a completion may open a million.
local function boxed(text)
  local begins = {}
  for brace in text:gmatch "\\boxed%s*(){" do begins[brace] = true end
  if not next(begins) then return nil end
  local open, from, to = {}, 0, 0
  for at, brace in text:gmatch "()([\\{}])" do
    if brace == "{" and text:byte(at - 1) ~= 0x5C then
      open[#open + 1] = at
    elseif brace == "}" and #open > 0 and text:byte(at - 1) ~= 0x5C then
      local begin = table.remove(open)
      if begins[begin] and begin > from then from, to = begin, at end
    end
  end
  return to > 0 and text:sub(from + 1, to - 1) or nil
end

-- What stands behind the first "####" of a line that has something there.
local function hashed(text)
  for at in text:gmatch "####+()" do
    local from = text:match("^[ \t\r\f\v]*()", at)
    if text:find("^[^\n#]", from) then return trimmed(text:match("^[^\n]*", from)) end
  end
end

-- What stands in the last <answer></answer>.
local function tagged(text)
  local found, at = nil, 1
  while true do
    local _, from = text:find("<answer>", at, true)
    local to, after = text:find("</answer>", (from or 0) + 1, true)
    if not (from and to) then return found end
    found, at = text:sub(from + 1, to - 1), after + 1
  end
end

local function marked(text)
  local inner = tagged(text)
  if inner then return hashed(inner) or boxed(inner) or trimmed(inner) end
  return hashed(text) or boxed(text)
end

local finders = {
  text = trimmed, hash = hashed, boxed = boxed, tag = tagged, marked = marked, last = number.last,
  any = function (text) return marked(text) or trimmed(text) end,
}

local places = { "any", "marked", "hash", "boxed", "tag", "last", "text" }

local choose = options.choice(nil, places)
local place = options.value(nil, "callable")

-- The option that says where an answer stands.
function M.from_rule(default)
  local rule = options.choice(default, places, "where the answer stands: see reward.extract; or a function of the text "
    .. "that gives it or nil")
  rule.kind = rule.kind .. ", callable"
  rule.accepts = function (v) return choose.accepts(v) or place.accepts(v) end
  return rule
end

--- The answer that a completion gives, as text: of "hash" what stands behind the first "####" of a line, of "boxed"
--- what stands in the last \boxed{}, of "tag" what stands in the last <answer></answer>, of "marked" the first of
--- these three that is there, within the tag where there is one, of "last" the last number, of "text" all of it, of
--- "any" what is marked or else all of it. nil where there is none.
--- @param text string
--- @param from string?  default "any"
--- @return string?
function M.extract(text, from)
  options.argument("reward.extract", "text", text, "string")
  from = from == nil and "any" or from
  if not choose.accepts(from) then options.raise("reward.extract: " .. options.problem("from", from, choose)) end
  return finders[from](text)
end

-- The answer by the option of from_rule; an error where a user's function gives no text.
function M.find(text, from)
  if type(from) == "string" then return finders[from](text) end
  local found = from(text)
  if found ~= nil and type(found) ~= "string" then
    error(("from gave a %s, expected the answer as text, or nil"):format(type(found)), 0)
  end
  return found
end

-- ---- numbers at a mark ----

-- The number behind the first "####" that has one, as in lm-evaluation-harness (strict-match), and what stands before.
local function hash_number(text)
  text = number.plain(text)
  for from, at in text:gmatch "()####+()" do
    local value = number.first(text, at)
    if value then return value, text:sub(1, from - 1) end
  end
end

local LONGEST <const> = 4096 -- bytes; what is longer is no number

-- LaTeX around a number.
local function box_number(inner)
  if #inner > LONGEST then return nil end
  inner = inner:gsub("\\text%s*%b{}", ""):gsub("\\[,;!%$%s]", ""):gsub("{,}", ",")
  return number.first(number.plain(inner):match "^%s*(.*)$")
end

local function boxed_number(text)
  local inner = boxed(text)
  return inner and box_number(inner)
end

local function tagged_number(text)
  local inner = tagged(text)
  return inner and (hash_number(inner) or boxed_number(inner) or box_number(inner))
end

local numbers = {
  text = number.whole, hash = hash_number, boxed = boxed_number, tag = tagged_number, last = number.last,
  marked = function (text)
    if tagged(text) then return tagged_number(text) end
    return hash_number(text) or boxed_number(text)
  end,
}
function numbers.any(text)
  if tagged(text) then return tagged_number(text) end
  return numbers.marked(text) or number.last(text)
end

-- The number that a completion gives as its answer, as text; of "hash" also what stands before it.
function M.number(text, from)
  if type(from) == "string" then return numbers[from](text) end
  local found = M.find(text, from)
  return found and number.whole(found)
end

-- ---- what a row says ----

-- The right answer of a row as text: what follows "#### " in it, or its \boxed{}, where it has one of them.
function M.gold(row, field)
  local gold = type(row) == "table" and row[field]
  if math.type(gold) == "float" and math.tointeger(gold) then gold = math.tointeger(gold) end
  if type(gold) == "number" and gold == gold and math.abs(gold) < math.huge then return tostring(gold) end
  if type(gold) ~= "string" then
    error(("the row's %s, expected the right answer: a text or a number"):format(options.is(field, gold)), 0)
  end
  return hashed(gold) or boxed(gold) or trimmed(gold)
end

return M
