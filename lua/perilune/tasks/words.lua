-- words.lua - lists of words that are to be said backwards or in order of the alphabet:
--   sort wolf cat elk =  ->  cat elk wolf
-- The corpus puts wrong words into its answers, ends them early and sometimes sets them between marks, at known rates.
local distinct = require "perilune.tasks.distinct"
local options = require "perilune.options"

local M = {}

M.name = "words"
M.about = "lists of words to be reversed or sorted"

--- The words of the lists, in order of the alphabet.
M.list = {}
for word in ("ant bear cat dog elk fox goat hen ibex jay koala lion mole newt owl pig rat seal toad wolf"):gmatch "%S+"
do M.list[#M.list + 1] = word end

local what = { "reverse", "sort" } -- is asked

--- All words that prompts and answers are made of.
M.vocabulary = { "<think>", "</think>", "=", what[1], what[2], table.unpack(M.list) }

-- ---- problems ----

-- FNV-1a of the prompt: the same everywhere.
local function hash(text)
  local h = 0xcbf29ce484222325
  for i = 1, #text do h = (h ~ text:byte(i)) * 0x100000001b3 end
  return h
end

--- Whether a problem is one of the tenth that is never trained on.
--- @param row table  prompt
--- @return boolean
function M.held_out(row) return (hash(row.prompt) >> 20) % 10 == 0 end

local problem_rules = {
  least = options.integer(3, "[2, 20]", "words of a list at least"),
  most = options.integer(6, "[2, 20]", "words of a list at most"),
}

local function checked(who, opts, rules)
  local o = options.fill(who, opts, rules, 4)
  if o.least > o.most then
    options.raise(("%s: least is %d, expected at most most, which is %d"):format(who, o.least, o.most))
  end
  return o
end

local function draw(rng, o)
  local asked, list = what[rng:int(1, 2)], table.move(M.list, 1, #M.list, 1, {})
  rng:shuffle(list)
  local words, answer = table.move(list, 1, rng:int(o.least, o.most), 1, {}), {}
  for i, word in ipairs(words) do answer[#words + 1 - i] = word end
  if asked == "sort" then table.sort(answer) end
  return { kind = "list", words = words, answer = table.concat(answer, " "),
           prompt = ("%s %s = "):format(asked, table.concat(words, " ")) }
end

--- A problem: 3 to 6 different words to be reversed or sorted.
--- @param rng table  of peri.rng
--- @param opts table?
--- @return table row  kind "list", words, answer (a text), prompt
function M.problem(rng, opts)
  local o = checked("words.problem", opts, problem_rules)
  options.argument("words.problem", "rng", rng, "table or userdata")
  return draw(rng, o)
end
options.declare(M.problem, { "rng" }, problem_rules)

local problems_rules = { held_out = options.boolean(false, "of the held-out tenth, in place of all others") }
for name, rule in pairs(problem_rules) do problems_rules[name] = rule end

--- So many different problems.
--- @param rng table  of peri.rng
--- @param n integer
--- @param opts table?
--- @return table[] rows
function M.problems(rng, n, opts)
  local o = checked("words.problems", opts, problems_rules)
  local function drawn() return draw(rng, o) end
  return distinct("words.problems", n, drawn, function (row) return M.held_out(row) == o.held_out end)
end
options.declare(M.problems, { "rng", "n" }, problems_rules)

--- The right answer, without marks.
--- @param row table  of M.problem
--- @return string
function M.clean(row) return row.answer end

local attempt_rules = {
  wrong = options.number(0.15, "[0, 1]", "share of the words that are others of the twenty"),
  short = options.number(0.15, "[0, 1]", "share of the answers that end early"),
  tags = options.number(0.3, "[0, 1]", "share of the answers that stand between marks"),
}

local function attempt(row, rng, o)
  local said = {}
  for word in row.answer:gmatch "%S+" do
    local other = word
    if rng:uniform() < o.wrong then
      while other == word do other = rng:choice(M.list) end
    end
    said[#said + 1] = other
  end
  local n = rng:uniform() < o.short and rng:int(1, #said - 1) or #said
  local text = table.concat(said, " ", 1, n)
  return rng:uniform() < o.tags and ("<think> %s </think>"):format(text) or text
end

--- An answer as the corpus has it: with wrong words, cut short, between marks.
--- @param row table  of M.problem
--- @param rng table  of peri.rng
--- @param opts table?
--- @return string
function M.attempt(row, rng, opts) return attempt(row, rng, options.fill("words.attempt", opts, attempt_rules)) end
options.declare(M.attempt, { "row", "rng" }, attempt_rules)

local corpus_rules = {}
for _, rules in ipairs { problem_rules, attempt_rules } do
  for name, rule in pairs(rules) do corpus_rules[name] = rule end
end

--- A row of the corpus: a problem that is not held out with an attempt.
--- @param rng table  of peri.rng
--- @param opts table?
--- @return table row  as of M.problem, with completion
function M.corpus(rng, opts)
  local o = checked("words.corpus", opts, corpus_rules)
  local row
  repeat row = draw(rng, o) until not M.held_out(row)
  row.completion = attempt(row, rng, o)
  return row
end
options.declare(M.corpus, { "rng" }, corpus_rules)

-- ---- scores ----

local function is_list(row) return row.kind == "list" end

--- What an answer says, without marks and with one blank between two words.
--- @param text string
--- @return string
function M.said(text)
  local words = {}
  for word in text:gmatch "%S+" do
    if word ~= "<think>" and word ~= "</think>" then words[#words + 1] = word end
  end
  return table.concat(words, " ")
end

--- 1 when an answer is the right list, with or without marks, else 0; abstains from other rows.
--- @param row table
--- @param text string
--- @return number?
function M.accuracy(row, text)
  if not is_list(row) then return nil end
  return M.said(text) == row.answer and 1 or 0
end

--- 1 when an answer has no marks, else 0; abstains from other rows.
--- @param row table
--- @param text string
--- @return number?
function M.plain(row, text)
  if not is_list(row) then return nil end
  return text:find("</?think>") and 0 or 1
end

return require "perilune.names"(M, "perilune.tasks.words")
