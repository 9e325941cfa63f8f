-- verdicts.lua - sums and verdicts on them, for a model that answers and judges: a verdict is asked for by prompt,
-- answer and "Score:", as reward.judge does with this rubric, and is 1 or 0, with or without a thought before it.
--   six plus one = <think> plus one is nine </think> the answer is nine Score: -> <think> plus one is seven </think> 0
local chain = require "perilune.tasks.chain"
local chain_words = require "perilune.tasks.chain_words"
local options = require "perilune.options"
local text = require "perilune.text"

local M = {}

M.name = "verdicts"
M.about = "English sums, and verdicts on answers to them"

--- For reward.judge, with part = "whole", lowest = 0 and highest = 1.
M.rubric = "{prompt}{answer}\n"

local vocabulary = table.move(chain_words.of_sums, 1, #chain_words.of_sums, 1, {})
table.move({ "Score:", "0", "1" }, 1, 3, #vocabulary + 1, vocabulary)

--- The tokenizer of sums and verdicts.
--- @return perilune.text.Units
function M.tokenizer()
  local tokenizer = text.words(vocabulary)
  return tokenizer
end

--- The config of a Llama for sums and verdicts, as chain.config.
--- @param layers integer
--- @param width integer  a multiple of 32
--- @return table config  for models.llama.new
function M.config(layers, width) return chain.config(layers, width, #vocabulary + 4) end

local problems_rules = {
  nmax = options.integer(4, "[2, inf)", "longest chain of a sum"),
  held_out = options.boolean(false, "of the held-out tenth, in place of all others"),
}

--- So many different sums in English.
--- @param rng table  of peri.rng
--- @param n integer
--- @param opts table?
--- @return table[] rows  as of chain.problem
function M.problems(rng, n, opts)
  local o = options.fill("verdicts.problems", opts, problems_rules)
  return chain.problems(rng, n, { nmax = o.nmax, lang = "en", held_out = o.held_out })
end
options.declare(M.problems, { "rng", "n" }, problems_rules)

local corpus_rules = {
  nmax = problems_rules.nmax,
  wrong = options.number(0.12, "[0, 1]", "share of the steps with a wrong result, of answers and of thoughts"),
  thought = options.number(0.7, "[0, 1]", "share of the verdicts with a thought, the sum done again"),
  flip = options.number(0.1, "[0, 0.5]", "share of these that say the other of what the thought found"),
  guess = options.number(0.4, "[0, 0.5]", "share of the verdicts without a thought that are wrong"),
}

--- Rows of the corpus: every other one an answer to a sum, every other one a verdict on such an answer; sums that are
--- held out are in neither.
--- @param rng table  of peri.rng
--- @param n integer
--- @param opts table?
--- @return table[] rows  prompt, completion
function M.corpus_rows(rng, n, opts)
  local o, rows = options.fill("verdicts.corpus_rows", opts, corpus_rules), {}
  options.argument("verdicts.corpus_rows", "n", n, "number")
  local how = { nmax = o.nmax, chat = 0, lang = "en", mixed = 0, wrong = o.wrong, again = 0, tags = 1 }
  local again = { mixed = 0, wrong = o.wrong, again = 0, tags = 1 }
  for i = 1, n do
    local row = chain.corpus(rng, how)
    if i % 2 == 0 then
      local thinks = rng:uniform() < o.thought
      local mine = thinks and chain.attempt(row, rng, again)
      local verdict = (mine and chain.final(mine) or row.answer) == chain.final(row.completion)
      if rng:uniform() < (thinks and o.flip or o.guess) then verdict = not verdict end
      row.prompt = ("%s%s\nScore:"):format(row.prompt, row.completion)
      row.completion = (" %s%d"):format(mine and mine:match "^<think> .- </think>" .. " " or "", verdict and 1 or 0)
    end
    rows[i] = row
  end
  return rows
end
options.declare(M.corpus_rows, { "rng", "n" }, corpus_rules)

--- Answers that the rule has graded, as many right as wrong: of a rollout whose reward is chain.accuracy, in its order,
--- the first of each.
--- @param batch table  of rl.rollout
--- @return table[] rows
--- @return string[] texts
--- @return integer[] grades  1 of a right answer, 0 of a wrong one
function M.balanced(batch)
  options.argument("verdicts.balanced", "batch", batch, "table")
  local left, rows, texts, grades = { [0] = 0, [1] = 0 }, {}, {}, {}
  for _, grade in ipairs(batch.total) do left[grade] = left[grade] + 1 end
  left[0] = math.min(left[0], left[1])
  left[1] = left[0]
  for i, grade in ipairs(batch.total) do
    if left[grade] > 0 then
      left[grade] = left[grade] - 1
      rows[#rows + 1], texts[#texts + 1], grades[#grades + 1] = batch.rows[i], batch.texts[i], math.tointeger(grade)
    end
  end
  return rows, texts, grades
end

return require "perilune.names"(M, "perilune.tasks.verdicts")
