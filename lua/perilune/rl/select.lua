-- select.lua - which of many answers are kept: best of n, rejection sampling with random controls of equal size, votes;
-- and the chance that one of k is right.
local options = require "perilune.options"

local M = {}

-- ---- by score -----------------------------------------------------------------------------------

local ways = {}

-- Places in the order of their scores, the first of equal ones first, without NaN and what is under least.
local function ranked(scores, from, to, least)
  local order = {}
  for i = from, to do
    if scores[i] == scores[i] and scores[i] >= least then order[#order + 1] = i end
  end
  table.sort(order, function (a, b)
    if scores[a] ~= scores[b] then return scores[a] > scores[b] end
    return a < b
  end)
  return order
end

-- fn(first, last, n) for every prompt: its completions and how many are wanted.
local function each_prompt(scores, o, fn)
  for first = 1, #scores, o.group do fn(first, first + o.group - 1, o.keep) end
end

-- n places of [first, last], drawn without repetition, in order.
local function drawn(rng, first, last, n, out)
  local all, some = {}, {}
  for i = first, last do all[#all + 1] = i end
  rng:shuffle(all)
  for i = 1, math.min(n, #all) do some[i] = all[i] end
  table.sort(some)
  table.move(some, 1, #some, #out + 1, out)
end

-- The best of each prompt (2203.14465, 2308.01825).
function ways.prompt(scores, o)
  local out = {}
  each_prompt(scores, o, function (first, last, n)
    local order = ranked(scores, first, last, o.least)
    table.move(order, 1, math.min(n, #order), #out + 1, out)
  end)
  return out
end

-- The best of all, whatever prompt they answer.
function ways.flat(scores, o)
  local order = ranked(scores, 1, #scores, o.least)
  return table.move(order, 1, math.min(o.keep, #order), 1, {})
end

function ways.random_prompt(scores, o)
  local out = {}
  each_prompt(scores, o, function (first, last, n)
    if o.like then
      n = 0
      for _, i in ipairs(o.like) do if i >= first and i <= last then n = n + 1 end end
    end
    drawn(o.rng, first, last, n, out)
  end)
  return out
end

function ways.random_flat(scores, o)
  local out = {}
  drawn(o.rng, 1, #scores, o.like and #o.like or o.keep, out)
  return out
end

--- Options of rl.select that are settings of a run.
M.rules = {
  by = options.choice("prompt", { "prompt", "flat", "random_prompt", "random_flat" }, "the best of each prompt; the "
    .. "best of all; and as many drawn without a look at the scores, which any claim for the others is to be held "
    .. "against"),
  keep = options.integer(1, "[1, inf)", "how many: of each prompt, or of flat in all"),
  least = options.number(-math.huge, "[-inf, inf)", "what is under this score is not kept; of the random ones it is"),
}

local rules = {
  group = options.integer(options.none, "[1, inf)", "completions of each prompt, which stand together"),
  rng = options.value(options.none, "table or userdata", "of peri.rng, for the random ones"),
  like = options.value(options.none, "table", "of the random ones: as many as in this list of places, of each prompt"),
}
for name, rule in pairs(M.rules) do rules[name] = rule end

local function want_scores(who, scores)
  options.argument(who, "scores", scores, "table")
  if #scores == 0 then options.raise(who .. ": there are no scores") end
  for i, v in ipairs(scores) do
    if type(v) ~= "number" then
      options.raise(("%s: score %d is a %s, expected a number"):format(who, i, type(v)))
    end
  end
end

--- Rejection sampling: the places, from 1, of the completions that are kept, best first of each prompt (of flat: of
--- all). NaN, an abstention, is never kept by score; of equal scores the first is. The random ways draw as many without
--- a look at the scores: the control.
--- @param scores number[]  of completions, as rl.rollout's total
--- @param opts table?
--- @return integer[] places
function M.select(scores, opts)
  local who = "rl.select"
  local o = options.fill(who, opts, rules)
  want_scores(who, scores)
  local random = o.by:find "^random" ~= nil
  if o.by:find "prompt$" then
    if not o.group then options.raise(("%s: by = %q needs group"):format(who, o.by)) end
    if #scores % o.group ~= 0 then
      options.raise(("%s: %d scores are no whole groups of %d"):format(who, #scores, o.group))
    end
  end
  if random and not o.rng then options.raise(("%s: by = %q needs rng, of peri.rng"):format(who, o.by)) end
  if o.like and not random then options.raise(("%s: by = %q takes no like"):format(who, o.by)) end
  return ways[o.by](scores, o)
end
options.declare(M.select, { "scores" }, rules)

--- The best of n answers of each prompt: its place, from 1 among all, or false where all abstained.
--- @param scores number[]  of completions, those of a prompt together; NaN abstains
--- @param n integer  completions of each prompt
--- @return (integer|false)[] places  one for each prompt
function M.best_of_n(scores, n)
  local who = "rl.best_of_n"
  want_scores(who, scores)
  if math.type(n) ~= "integer" or n < 1 or #scores % n ~= 0 then
    options.raise(("%s: n is %s, expected an integer that divides %d scores"):format(who, tostring(n), #scores))
  end
  local out = {}
  for first = 1, #scores, n do
    out[#out + 1] = ranked(scores, first, first + n - 1, -math.huge)[1] or false
  end
  return out
end

-- ---- by answer ----------------------------------------------------------------------------------

--- The answer given most often; of equally frequent ones the first. With weights the one whose answers weigh most
--- together: the vote by a reward model (2203.11171, 2206.02336).
--- @param answers table  list with holes where there was no answer
--- @param n integer  its length
--- @param weights number[]?  of each answer; NaN counts nothing
--- @return any? answer
--- @return number votes
function M.majority(answers, n, weights)
  local count, best, most = {}, nil, 0
  local function weight(i)
    if not weights then return 1 end
    local w = weights[i]
    if type(w) ~= "number" then
      options.raise(("rl.majority: weight %d is a %s, expected a number"):format(i, type(w)))
    end
    return w == w and w or 0
  end
  for i = 1, n do
    local a = answers[i]
    if a ~= nil then count[a] = (count[a] or 0) + weight(i) end
  end
  for i = 1, n do
    local a = answers[i]
    if a ~= nil and (best == nil or count[a] > most) then best, most = a, count[a] end
  end
  return best, most
end

--- The chance that at least one of k answers is right, estimated without bias from n answers of which c
--- are: 1 - C(n - c, k) / C(n, k) (arXiv:2107.03374, equation 1).
--- @param n integer
--- @param c integer
--- @param k integer  at most n
--- @return number
function M.pass_at_k(n, c, k)
  if k > n or k < 1 or c > n or c < 0 then
    options.raise(("pass_at_k: n %d, c %d, k %d; expected 0 <= c <= n and 1 <= k <= n"):format(n, c, k))
  end
  if n - c < k then return 1 end
  local miss = 1
  for i = n - c + 1, n do miss = miss * (1 - k / i) end
  return 1 - miss
end

local pass_rules = {
  k = options.value({}, "table", "list of integers: chances that one of k answers is right, each at most the group"),
  right = options.number(1, nil, "the least reward of a right answer"),
  answer = options.value(options.none, "callable",
    "(text, row) -> what is voted on, or nil where there is no answer; with it the majority is counted"),
}

--- How often prompts are answered rightly when each is answered several times: means over the prompts of a batch.
--- An answer that the reward abstained from is wrong.
--- @param batch table  of rl.rollout
--- @param opts table?
--- @return table shares  pass_1 (of all answers), pass_K for each k, majority (with answer: of the prompts whose most
--- frequent answer is right)
function M.pass(batch, opts)
  options.argument("rl.pass", "batch", batch, "table")
  local o = options.fill("rl.pass", opts, pass_rules)
  local count, group, out = #batch.total, batch.group, { pass_1 = 0, majority = o.answer and 0 or nil }
  if count == 0 then options.raise "rl.pass: the batch has no completions" end
  for i, k in ipairs(o.k) do
    if math.type(k) ~= "integer" or k < 1 or k > group then
      options.raise(("rl.pass: k %d is %s, expected an integer from 1 to the group, %d"):format(i, tostring(k), group))
    end
    out["pass_" .. k] = 0
  end
  local function add(name, value) out[name] = out[name] + value * group / count end
  for first = 1, count, group do
    local right, answers, is_right = 0, {}, {}
    for i = first, first + group - 1 do
      local is = batch.total[i] >= o.right -- of NaN false
      right = right + (is and 1 or 0)
      local answer = o.answer and o.answer(batch.texts[i], batch.rows[i])
      if answer ~= nil then answers[i - first + 1], is_right[answer] = answer, is end
    end
    add("pass_1", right / group)
    for _, k in ipairs(o.k) do if k > 1 then add("pass_" .. k, M.pass_at_k(group, right, k)) end end
    if o.answer then
      local most = M.majority(answers, group)
      add("majority", most ~= nil and is_right[most] and 1 or 0)
    end
  end
  return out
end
options.declare(M.pass, { "batch" }, pass_rules)

return M
