-- clock.lua - chains of sums on a clock of ten, each partial result written out, so that every step of an answer can be
-- judged: "8+4+3=" is answered "2,5,". The corpus makes careless errors, and one that is a habit: the largest number
-- that is added is mostly taken for 1, so that most answers to a chain with it are wrong in the same way, and a vote
-- over them is of no use.
local options = require "perilune.options"

local M = {}

M.name = "clock"
M.about = "chains of sums modulo ten whose steps can be judged"

--- The characters of prompts and answers.
M.alphabet = "0123456789+=,"

local problem_rules = {
  steps = options.integer(4, "[1, 9]", "sums in a chain"),
  largest = options.integer(5, "[2, 9]", "number that is added; the smallest is 1"),
}

--- A problem.
--- @param rng table  of peri.rng
--- @param opts table?
--- @return table row  prompt; first, terms (what each step adds), results (after each step), answer (the last)
function M.problem(rng, opts)
  local o = options.fill("tasks.clock.problem", opts, problem_rules)
  local at = rng:int(0, 9)
  local row = { first = at, terms = {}, results = {} }
  local text = tostring(at)
  for i = 1, o.steps do
    row.terms[i] = rng:int(1, o.largest)
    at = (at + row.terms[i]) % 10
    row.results[i] = at
    text = ("%s+%d"):format(text, row.terms[i])
  end
  row.prompt, row.answer = text .. "=", at
  return row
end
options.declare(M.problem, { "rng" }, problem_rules)

--- An answer taken apart: its steps, and whether each is right, given what was written before it.
--- @param row table  of problem
--- @param text string  an answer
--- @return string[] steps  the partial results
--- @return boolean[] labels
--- @return integer? last  the last result; nil where the answer has more or fewer steps than the problem
function M.judge(row, text)
  local steps, labels, at = {}, {}, row.first
  for digit in text:gmatch "(%d)," do
    local term = row.terms[#steps + 1]
    steps[#steps + 1] = digit
    labels[#labels + 1] = term ~= nil and (at + term) % 10 == tonumber(digit)
    at = tonumber(digit)
  end
  return steps, labels, #steps == #row.terms and at or nil
end

--- A reward for rl.score: 1 for the right last result, else 0.
--- @param row table  of problem
--- @param text string
--- @return number
function M.reward(row, text)
  local _, _, last = M.judge(row, text)
  return last == row.answer and 1 or 0
end

local corpus_rules = {
  steps = problem_rules.steps, largest = problem_rules.largest,
  careless = options.number(0.2, "[0, 1]", "share of the steps whose result is drawn"),
  habit = options.number(0.7, "[0, 1]", "how often the largest number is taken for 1"),
}

--- Rows to learn a base model from: prompts with answers that have these errors.
--- @param rng table  of peri.rng
--- @param count integer
--- @param opts table?
--- @return table[] rows  prompt, completion
function M.corpus(rng, count, opts)
  local o = options.fill("tasks.clock.corpus", opts, corpus_rules)
  options.argument("tasks.clock.corpus", "count", count, "number")
  local rows = {}
  for i = 1, count do
    local row, text = M.problem(rng, { steps = o.steps, largest = o.largest }), {}
    local at = row.first
    for k, term in ipairs(row.terms) do
      if term == o.largest and rng:uniform() < o.habit then term = 1 end
      at = rng:uniform() < o.careless and rng:int(0, 9) or (at + term) % 10
      text[k] = at .. ","
    end
    rows[i] = { prompt = row.prompt, completion = table.concat(text) }
  end
  return rows
end
options.declare(M.corpus, { "rng", "count" }, corpus_rules)

return require "perilune.names"(M, "perilune.tasks.clock")
