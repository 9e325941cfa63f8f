-- domains.lua - three domains that one small model learns: English sums, Chinese sums (tasks.chain, without chat and
-- without mixing the two) and word lists (tasks.words). A style goes with each: English answers think between marks,
-- the others have no marks. It is what a specialist of another domain forgets first.
local chain = require "perilune.tasks.chain"
local chain_words = require "perilune.tasks.chain_words"
local options = require "perilune.options"
local text = require "perilune.text"
local words = require "perilune.tasks.words"

local M = {}

M.name = "domains"
M.about = "English sums, Chinese sums and word lists, each with its style"

--- The names of the domains.
M.names = { "english", "chinese", "lists" }

local lang_of = { english = "en", chinese = "zh" }
local WRONG <const>, TAGS <const> = 0.12, 0.5 -- of the corpus of sums

local vocabulary = table.move(chain_words.of_sums, 1, #chain_words.of_sums, 1, {})
do
  local seen = {}
  for _, word in ipairs(vocabulary) do seen[word] = true end
  for _, word in ipairs(words.vocabulary) do if not seen[word] then vocabulary[#vocabulary + 1] = word end end
end

--- The tokenizer of the three domains: their words and four special ids.
--- @return perilune.text.Units
function M.tokenizer()
  local tokenizer = text.words(vocabulary)
  return tokenizer
end

--- The config of a Llama for the domains, as chain.config. 4 layers of width 128 have 0.80M parameters.
--- @param layers integer
--- @param width integer  a multiple of 32
--- @return table config  for models.llama.new
function M.config(layers, width) return chain.config(layers, width, #vocabulary + 4) end

-- ---- problems ----

local domain_rule = options.choice(options.none, M.names, "of all rows; left out: all in turn")

local problems_rules = {
  domain = domain_rule, nmax = options.integer(4, "[2, inf)", "longest chain of a sum"),
  held_out = options.boolean(false, "of the held-out tenth, in place of all others"),
}

local function problems_of(domain, rng, n, o)
  local rows
  if lang_of[domain] then
    rows = chain.problems(rng, n, { nmax = o.nmax, lang = lang_of[domain], held_out = o.held_out })
  else rows = words.problems(rng, n, { held_out = o.held_out }) end
  for _, row in ipairs(rows) do row.domain = domain end
  return rows
end

--- So many different problems.
--- @param rng table  of peri.rng
--- @param n integer
--- @param opts table?
--- @return table[] rows  as of chain.problem or words.problem, with domain
function M.problems(rng, n, opts)
  local o = options.fill("domains.problems", opts, problems_rules)
  options.argument("domains.problems", "n", n, "number")
  if o.domain then return problems_of(o.domain, rng, n, o) end
  local lists, rows = {}, {}
  for k, domain in ipairs(M.names) do lists[k] = problems_of(domain, rng, (n - k) // #M.names + 1, o) end
  for i = 1, n do rows[i] = lists[(i - 1) % #M.names + 1][(i - 1) // #M.names + 1] end
  return rows
end
options.declare(M.problems, { "rng", "n" }, problems_rules)

--- The right answer in the style of its domain.
--- @param row table  of M.problems
--- @return string
function M.clean(row)
  if row.kind == "list" then return words.clean(row) end
  local answer = chain.clean(row)
  return row.domain == "english" and answer or (answer:gsub("</?think> ", ""))
end

--- Problems with clean answers: few of them are a cold start.
--- @param rng table  of peri.rng
--- @param n integer
--- @param opts table?
--- @return table[] rows  with completion
function M.clean_rows(rng, n, opts)
  local rows = M.problems(rng, n, opts)
  for _, row in ipairs(rows) do row.completion = M.clean(row) end
  return rows
end
options.declare(M.clean_rows, { "rng", "n" }, problems_rules)

local corpus_rules = { domain = domain_rule, nmax = problems_rules.nmax }

--- Rows of the corpus, of problems that are not held out: steps are wrong in 12 % of the cases, chains are given up for
--- a guess, half of the sums think between marks; lists as words.corpus has them.
--- @param rng table  of peri.rng
--- @param n integer
--- @param opts table?
--- @return table[] rows  with domain and completion
function M.corpus_rows(rng, n, opts)
  local o, rows = options.fill("domains.corpus_rows", opts, corpus_rules), {}
  options.argument("domains.corpus_rows", "n", n, "number")
  local how = { nmax = o.nmax, chat = 0, mixed = 0, wrong = WRONG, again = 0, tags = TAGS }
  for i = 1, n do
    local domain = o.domain or M.names[(i - 1) % #M.names + 1]
    how.lang = lang_of[domain]
    local row = how.lang and chain.corpus(rng, how) or words.corpus(rng)
    row.domain, rows[i] = domain, row
  end
  return rows
end
options.declare(M.corpus_rows, { "rng", "n" }, corpus_rules)

--- Rows with completions as examples for algo.sft, as chain.examples makes them, which keep their domain.
--- @param tokenizer perilune.text.Units
--- @param rows table[]  prompt, completion
--- @param whole boolean?  also the prompt
--- @return table[] examples  ids, mask, domain
function M.examples(tokenizer, rows, whole)
  local examples = chain.examples(tokenizer, rows, whole)
  for i, row in ipairs(rows) do examples[i].domain = row.domain end
  return examples
end

-- ---- scores ----

--- 1 when an answer is right, else 0.
--- @param row table
--- @param answer string
--- @return number
function M.accuracy(row, answer)
  return row.kind == "list" and words.accuracy(row, answer) or chain.accuracy(row, answer)
end

--- 1 when an answer has the style of its domain, else 0: English as chain.format has it, the others without marks.
--- @param row table
--- @param answer string
--- @return number
function M.style(row, answer)
  if row.domain == "english" then return chain.format(row, answer) end
  return answer:find("</?think>") and 0 or 1
end

--- 1 when an answer is right and has its style, else 0.
--- @param row table
--- @param answer string
--- @return number
function M.worthy(row, answer) return M.accuracy(row, answer) * M.style(row, answer) end

--- Means over completions: accuracy of each domain under its name and style as NAME_style; mean and style, the means
--- of these over the domains that there are.
--- @param rows table[]
--- @param answers string[]
--- @return table<string, number>
function M.measure(rows, answers)
  local sums, out = {}, { mean = 0, style = 0 }
  for i, row in ipairs(rows) do
    local sum = sums[row.domain] or { 0, 0, 0 }
    sums[row.domain] = sum
    sum[1], sum[2], sum[3] = sum[1] + 1, sum[2] + M.accuracy(row, answers[i]), sum[3] + M.style(row, answers[i])
  end
  local n = 0
  for domain, sum in pairs(sums) do
    out[domain], out[domain .. "_style"], n = sum[2] / sum[1], sum[3] / sum[1], n + 1
  end
  for _, domain in ipairs(M.names) do -- in order: sums of floats
    out.mean, out.style = out.mean + (out[domain] or 0) / n, out.style + (out[domain .. "_style"] or 0) / n
  end
  return out
end

return require "perilune.names"(M, "perilune.tasks.domains")
