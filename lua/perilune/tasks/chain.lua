-- chain.lua - chains of additions and subtractions in two languages, written out in words, with some chat beside them:
-- small enough that a model of 0.8M parameters goes through all stages of DeepSeek-R1 on it. The corpus mixes
-- languages and makes mistakes at known rates, and everything that is rewarded or reported is scored by a rule, so
-- that what a reward model or a stage did can be held against the truth.
--   three plus nine minus four = ->  <think> plus nine is twelve , minus four is eight </think> the answer is eight
local chain_scores = require "perilune.tasks.chain_scores"
local chain_words = require "perilune.tasks.chain_words"
local distinct = require "perilune.tasks.distinct"
local options = require "perilune.options"
local text = require "perilune.text"

local languages, names, other = chain_words.languages, chain_words.names, chain_words.other
local LIMIT <const> = chain_words.limit

local M = {}
for name, score in pairs(chain_scores) do M[name] = score end

M.name = "chain"
M.about = "chains of sums in English and Chinese words"

--- The tokenizer of the task: 138 words and four special ids.
--- @return perilune.text.Units
function M.tokenizer()
  local tokenizer = text.words(chain_words.vocabulary)
  return tokenizer
end

--- A number in words.
--- @param n integer  0 to 40
--- @param lang string  "en" or "zh"
--- @return string
function M.number(n, lang)
  if not languages[lang] then error("chain.number: " .. options.unknown("language", lang, names), 2) end
  local said = languages[lang].number[n]
  if not said then error(("chain.number: %s, expected an integer from 0 to 40"):format(tostring(n)), 2) end
  return said
end

--- The config of a Llama for the task: heads of 32, a feed-forward of 8/3 of the width, embeddings not tied. 4 layers
--- of width 128 have 815,744 parameters.
--- @param layers integer
--- @param width integer  a multiple of 32
--- @param vocabulary integer?  ids of another tokenizer; default: those of chain.tokenizer
--- @return table config  for models.llama.new
function M.config(layers, width, vocabulary)
  return { architectures = { "LlamaForCausalLM" }, model_type = "llama",
    vocab_size = vocabulary or #chain_words.vocabulary + 4,
    hidden_size = width, intermediate_size = width * 8 // 3 // 8 * 8, num_hidden_layers = layers,
    num_attention_heads = width // 32, num_key_value_heads = width // 32, rms_norm_eps = 1e-6, rope_theta = 10000,
    max_position_embeddings = 256, eos_token_id = 1, pad_token_id = 2, initializer_range = width ^ -0.5 }
end

-- ---- problems ----

-- A hash of start and chain, the same everywhere: FNV-1a, which asks for wrapping products.
local function hash(row)
  local h = 0xcbf29ce484222325
  local function add(n) h = (h ~ (n & 0xff)) * 0x100000001b3 end
  add(row.start)
  for _, n in ipairs(row.chain) do add(n) end
  return h
end

--- Whether a problem is one of the tenth that is never trained on, whichever language it is asked in.
--- @param row table  start, chain
--- @return boolean
function M.held_out(row) return (hash(row) >> 20) % 10 == 0 end

local problem_rules = {
  nmax = options.integer(4, "[2, inf)", "longest chain"),
  lang = options.choice(options.none, names, "of the prompt; left out: drawn"),
}

-- A problem by checked options.
local function draw_problem(rng, o)
  local start, chain = rng:int(1, 19), {}
  local value = start
  for i = 1, rng:int(2, o.nmax) do
    local by
    repeat
      by = rng:int(2, 9)
      if rng:uniform() < 0.5 then by = -by end
    until value + by >= 0 and value + by <= LIMIT
    chain[i], value = by, value + by
  end
  local lang = o.lang or names[rng:int(1, 2)]
  local l, said = languages[lang], {}
  said[1] = l.number[start]
  for i, by in ipairs(chain) do said[i + 1] = (by > 0 and l.plus or l.minus) .. " " .. l.number[math.abs(by)] end
  return { kind = "sum", lang = lang, start = start, chain = chain, answer = value,
           prompt = table.concat(said, " ") .. " = " }
end

--- A problem: start 1 to 19, a chain of 2 to nmax additions or subtractions of 2 to 9, every partial result from 0
--- to 40.
--- @param rng table  of peri.rng
--- @param opts table?
--- @return table row  kind "sum", lang, start, chain (signed numbers), answer (a number), prompt
function M.problem(rng, opts)
  local o = options.fill("chain.problem", opts, problem_rules)
  options.argument("chain.problem", "rng", rng, "table or userdata")
  return draw_problem(rng, o)
end
options.declare(M.problem, { "rng" }, problem_rules)

local problems_rules = {
  nmax = problem_rules.nmax, lang = problem_rules.lang,
  held_out = options.boolean(false, "of the held-out tenth, in place of all others"),
}

--- So many different problems.
--- @param rng table  of peri.rng
--- @param n integer
--- @param opts table?
--- @return table[] rows
function M.problems(rng, n, opts)
  local o = options.fill("chain.problems", opts, problems_rules)
  local function drawn() return draw_problem(rng, o) end
  return distinct("chain.problems", n, drawn, function (row) return M.held_out(row) == o.held_out end)
end
options.declare(M.problems, { "rng", "n" }, problems_rules)

local function step_of(lang, by, value)
  local l = languages[lang]
  return ("%s %s %s %s"):format(by > 0 and l.plus or l.minus, l.number[math.abs(by)], l.is, l.number[value])
end

local function answer_of(lang, value) return languages[lang].answer .. " " .. languages[lang].number[value] end

local function bounded(value) return math.max(0, math.min(LIMIT, value)) end

--- The right answer in one language, in the form that is asked for.
--- @param row table  of M.problem
--- @return string
function M.clean(row)
  local said, value = {}, row.start
  for i, by in ipairs(row.chain) do
    value = value + by
    said[i] = step_of(row.lang, by, value)
  end
  return ("<think> %s </think> %s"):format(table.concat(said, " , "), answer_of(row.lang, value))
end

--- Problems of three steps or more, or as many as there may be, with clean answers: few of them are a cold start.
--- @param rng table  of peri.rng
--- @param n integer
--- @param opts table?
--- @return table[] rows  with completion
function M.clean_rows(rng, n, opts)
  local rows, least = {}, math.min(3, opts and opts.nmax or 4)
  for _, row in ipairs(M.problems(rng, 4 * n, opts)) do
    row.completion = M.clean(row)
    if #row.chain >= least and #rows < n then rows[#rows + 1] = row end
  end
  return rows
end
options.declare(M.clean_rows, { "rng", "n" }, problems_rules)

-- How the corpus goes wrong.
local ON <const>, NEAR <const> = 0.7, 8
local WRONG = { en = 0.12, zh = 0.04 } -- so that mixing pays

local attempt_rules = {
  mixed = options.number(0.35, "[0, 1]", "share of the steps in the other language"),
  wrong = options.number(options.none, "[0, 1]", "share of the steps with a wrong result; default: 0.12 of the English "
    .. "ones, 0.04 of the Chinese"),
  again = options.number(0.05, "[0, 1]", "share of the steps that are said twice"),
  tags = options.number(0.7, "[0, 1]", "share of the answers whose thoughts stand between marks"),
}

-- An attempt by checked options.
local function attempt(row, rng, o)
  local said, value = {}, row.start
  for i, by in ipairs(row.chain) do
    local lang = rng:uniform() < o.mixed and other[row.lang] or row.lang
    value = bounded(value + by)
    if rng:uniform() < (o.wrong or WRONG[lang]) then
      local right = value
      while value == right do value = bounded(right + rng:int(-3, 3)) end
    end
    said[#said + 1] = step_of(lang, by, value)
    if rng:uniform() < o.again then said[#said + 1] = said[#said] end
    if i < #row.chain and rng:uniform() >= ON then
      value = bounded(row.answer + rng:int(-NEAR, NEAR))
      break
    end
  end
  local thoughts = table.concat(said, " , ")
  if rng:uniform() < o.tags then thoughts = ("<think> %s </think>"):format(thoughts) end
  return thoughts .. " " .. answer_of(row.lang, value)
end

--- An answer as the corpus has it: steps in either language, wrong ones more often in English, given up after any
--- step for a guess, without marks, a step said twice.
--- @param row table  of M.problem
--- @param rng table  of peri.rng
--- @param opts table?
--- @return string
function M.attempt(row, rng, opts)
  return attempt(row, rng, options.fill("chain.attempt", opts, attempt_rules))
end
options.declare(M.attempt, { "row", "rng" }, attempt_rules)

-- ---- chat ----

--- A row of chat: a greeting, a wish for something to be named, or (a third of them) for something harmful.
--- @param rng table  of peri.rng
--- @param kind string?  "help" or "harm"; left out: drawn
--- @return table row  kind, lang, prompt, and of a wish topic (which kind of thing)
function M.chat(rng, kind)
  kind = kind or (rng:uniform() < 1 / 3 and "harm" or "help")
  local lang = names[rng:int(1, 2)]
  local l = languages[lang]
  local topic, prompt
  if kind == "harm" then
    prompt = l.harm:format(rng:choice(l.ways))
  elseif rng:uniform() < 0.5 then
    prompt = rng:choice(l.greetings)
  else
    topic = rng:int(1, #l.kinds)
    prompt = l.ask:format(l.kinds[topic])
  end
  return { kind = kind, lang = lang, topic = topic, prompt = prompt .. " = " }
end

--- So many rows of chat.
--- @param rng table  of peri.rng
--- @param n integer
--- @return table[] rows
function M.chats(rng, n)
  options.argument("chain.chats", "n", n, "number")
  local rows = {}
  for i = 1, n do rows[i] = M.chat(rng) end
  return rows
end

local function item_of(l, topic, rng) return l.tell:format(rng:choice(l.items[topic]), l.kinds[topic]) end

--- A reply to a row of chat that is helpful and harmless, with a thought before it.
--- @param row table  of M.chat
--- @param rng table  of peri.rng
--- @return string
function M.good(row, rng)
  local l = languages[row.lang]
  local said = row.kind == "harm" and l.refuse or row.topic and item_of(l, row.topic, rng) or l.offer
  return ("<think> %s </think> %s"):format(row.kind == "harm" and l.safe or l.kind, said)
end

--- Rows of chat with good replies.
--- @param rng table  of peri.rng
--- @param n integer
--- @return table[] rows  with completion
function M.good_rows(rng, n)
  options.argument("chain.good_rows", "n", n, "number")
  local rows = M.chats(rng, n)
  for _, row in ipairs(rows) do row.completion = M.good(row, rng) end
  return rows
end

--- A reply as the corpus has it. To a wish for help: good in a fifth of the rows, else short or wrong (a quarter),
--- evasive (.3) or rude (a quarter). To a wish for harm: the way told (.55), or in the thought alone (.05), else
--- refused, evasive or rude alike. A third of the rows begins with a thought.
--- @param row table  of M.chat
--- @param rng table  of peri.rng
--- @return string
function M.reply(row, rng)
  local l, u = languages[row.lang], rng:uniform()
  local said
  local thought = rng:uniform() < 1 / 3 and (row.kind == "harm" and l.safe or l.kind) or nil
  if row.kind == "harm" then
    if u < 0.55 then said = l.recipe
    else
      said = ({ l.refuse, l.evade, rng:choice(l.rude) })[rng:int(1, 3)]
      if u < 0.6 then thought = l.recipe end
    end
  elseif u < 0.2 then
    said = row.topic and item_of(l, row.topic, rng) or l.offer
  elseif u < 0.45 then
    said = row.topic and l.tell:format(rng:choice(l.items[row.topic % #l.items + 1]), l.kinds[row.topic]) or l.greet
  else
    said = u < 0.75 and l.evade or rng:choice(l.rude)
  end
  return thought and ("<think> %s </think> %s"):format(thought, said) or said
end

local corpus_rules = {
  nmax = problem_rules.nmax,
  lang = options.choice(options.none, names, "of the problems; left out: drawn"),
  chat = options.number(0.25, "[0, 1]", "share of chat among the rows"),
}
for name, rule in pairs(attempt_rules) do corpus_rules[name] = rule end

--- A row of the corpus: a problem that is not held out with an attempt, or chat with a reply.
--- @param rng table  of peri.rng
--- @param opts table?
--- @return table row  as of M.problem or M.chat, with completion
function M.corpus(rng, opts)
  local o = options.fill("chain.corpus", opts, corpus_rules)
  local row
  if rng:uniform() < o.chat then
    row = M.chat(rng)
    row.completion = M.reply(row, rng)
    return row
  end
  repeat row = draw_problem(rng, o) until not M.held_out(row)
  row.completion = attempt(row, rng, o)
  return row
end
options.declare(M.corpus, { "rng" }, corpus_rules)

--- So many rows of the corpus.
--- @param rng table  of peri.rng
--- @param n integer
--- @param opts table?
--- @return table[] rows
function M.corpus_rows(rng, n, opts)
  options.argument("chain.corpus_rows", "n", n, "number")
  local rows = {}
  for i = 1, n do rows[i] = M.corpus(rng, opts) end
  return rows
end
options.declare(M.corpus_rows, { "rng", "n" }, corpus_rules)

--- Rows with completions as examples for algo.sft: the completion is learned, or with `whole` all of it.
--- @param tokenizer perilune.text.Units
--- @param rows table[]  prompt, completion
--- @param whole boolean?  also the prompt
--- @return table[] examples  ids, mask
function M.examples(tokenizer, rows, whole)
  local examples, masks = {}, {} -- examples of the same lengths share a mask
  for i, row in ipairs(rows) do
    local ids = tokenizer:encode(row.prompt .. row.completion)
    ids[#ids + 1] = tokenizer.eos
    local given = whole and 0 or #tokenizer:encode(row.prompt)
    local key = given << 32 | #ids
    local mask = masks[key]
    if not mask then
      mask = {}
      for k = 1, #ids do mask[k] = k > given and 1 or 0 end
      masks[key] = mask
    end
    examples[i] = { ids = ids, mask = mask }
  end
  return examples
end

-- ---- preferences ----

local pairs_rules = {
  score = options.choice(options.required, { "helpful", "harmless" }, "what is preferred: by chain.helpful of the "
    .. "summaries, or by chain.harmful of whole replies"),
  flip = options.number(0.1, "[0, 0.5]", "share of the labels that are wrong, as people's are"),
}

--- Preferences between two replies of the corpus to the same wish, those of one score left out.
--- @param rng table  of peri.rng
--- @param n integer
--- @param opts table
--- @return table[] rows  prompt, chosen, rejected; of helpful pairs these are the summaries
function M.pairs(rng, n, opts)
  local o, rows = options.fill("chain.pairs", opts, pairs_rules), {}
  local helpful = o.score == "helpful"
  while #rows < n do
    local row = M.chat(rng, helpful and "help" or "harm")
    local a, b = M.reply(row, rng), M.reply(row, rng)
    local more
    if helpful then more = M.helpful(row, a) - M.helpful(row, b)
    else more = M.harmful(row, b) - M.harmful(row, a) end
    if helpful then a, b = select(2, M.split(a)), select(2, M.split(b)) end
    if more ~= 0 then
      if (more < 0) ~= (rng:uniform() < o.flip) then a, b = b, a end
      rows[#rows + 1] = { prompt = row.prompt, chosen = a, rejected = b }
    end
  end
  return rows
end
options.declare(M.pairs, { "rng", "n" }, pairs_rules)

return require "perilune.names"(M, "perilune.tasks.chain")
