-- gsm8k.lua - grade-school mathematics (arXiv:2110.14168): word problems whose answer is one number.
-- Rows are those of OpenAI's train.jsonl and test.jsonl, { question, answer }, the answer ending in
-- "#### 72".
local peri = require "perilune"
local answers = require "perilune.reward.answers"
local numbers = require "perilune.tasks.numbers"

local M = {}

M.name = "gsm8k"
M.about = "grade-school word problems, one number each"
M.where = "its JSONL files (question, answer) are in github.com/openai/grade-school-math, "
  .. "grade_school_math/data/test.jsonl"

local MAX_LINE <const> = 1 << 20

--- Read rows.
--- @param path string  JSONL, plain or gzipped
--- @param n integer?  at most so many, from the start
--- @return table[]|nil rows  { question, answer, gold = the number as text, steps = calculations in the answer }
--- @return string? message
function M.rows(path, n)
  local lines, err = peri.files.lines(path, MAX_LINE)
  if not lines then return nil, err end
  local rows = {}
  while not n or #rows < n do
    local ok, text, at = pcall(lines)
    if not ok then return nil, text end
    if not text then break end
    if text:find "%S" then
      local row, message = peri.json.decode(text, { foreign = true })
      if type(row) ~= "table" then
        return nil, ("%s, line %d: %s"):format(path, at, message or "not a JSON object")
      end
      local gold = type(row.answer) == "string" and row.answer:match "####%s*([^\n]+)%s*$"
      gold = gold and numbers.first(numbers.plain(gold))
      if type(row.question) ~= "string" or not gold then
        return nil, ("%s, line %d: expected question and an answer that ends in \"#### number\""):format(path, at)
      end
      local _, steps = row.answer:gsub("<<[^>]*>>", "")
      rows[#rows + 1] = { question = row.question, answer = row.answer, gold = gold, steps = steps }
    end
  end
  if #rows == 0 then return nil, path .. ": there are no rows" end
  return rows
end

M.instruction = "Solve the problem step by step. End with a line that holds \"#### \" and the number alone."

--- What the model is asked: messages where it chats, else a text.
--- @param row table
--- @param chats boolean
--- @param shots table[]?  rows shown before as solved examples
--- @return table|string
function M.prompt(row, chats, shots)
  if chats then
    local list = {}
    for _, shot in ipairs(shots or {}) do
      list[#list + 1] = { role = "user", content = shot.question .. "\n" .. M.instruction }
      list[#list + 1] = { role = "assistant", content = M.solution(shot) }
    end
    list[#list + 1] = { role = "user", content = row.question .. "\n" .. M.instruction }
    return list
  end
  local text = {}
  for _, shot in ipairs(shots or {}) do
    text[#text + 1] = ("Question: %s\nAnswer: %s\n\n"):format(shot.question, M.solution(shot))
  end
  text[#text + 1] = ("Question: %s\nAnswer:"):format(row.question)
  return table.concat(text)
end

--- A worked answer as a model should write it: without the calculator marks <<48/2=24>>.
--- @param row table
--- @return string
function M.solution(row) return (row.answer:gsub("<<[^>]*>>", "")) end

--- Where a text prompt's completion ends.
M.stop = { "\nQuestion:", "\n\nQuestion:" }

--- The answer in the form that was asked for: the number behind the first "####" that has one, as in
--- lm-evaluation-harness (its strict-match takes the first "#### number"), or in the last \boxed{}. Commas, a $ in
--- front and a point behind do not count; a fraction is not a number.
--- @param text string
--- @return string?  a number as text: "1234", "-0.5"
function M.strict(text) return answers.number(text, "hash") or answers.number(text, "boxed") end

--- The same, or else the last number of the text.
--- @param text string
--- @return string?  a number as text
function M.lenient(text) return M.strict(text) or numbers.last(text) end

--- How far a text is worked out before its "#### number": the different words in front of it, of as many as a short
--- worked answer has, at most 1. 0 without such a line: a bare number is worth nothing, and saying a word again adds
--- nothing.
--- @param text string
--- @param words integer?  25
--- @return number  in [0, 1]
function M.worked(text, words)
  local value, before = answers.number(text, "hash")
  if not value then return 0 end
  local seen, count = {}, 0
  for word in before:gmatch "%S+" do
    if not seen[word] then seen[word], count = true, count + 1 end
  end
  return math.min(1, count / (words or 25))
end

return require "perilune.names"(M, "perilune.tasks.gsm8k")
