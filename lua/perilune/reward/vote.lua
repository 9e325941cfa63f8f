-- vote.lua - a reward without labels: what most answers to a prompt say is taken for right.
local options = require "perilune.options"
local select = require "perilune.rl.select"

local M = {}

local rules = {
  answer = options.value(options.required, "callable",
    "(text, row) -> what is voted on, a text, number or boolean, or nil where there is no answer"),
  least = options.number(0, "[0, 1]", "share of a prompt's completions that the majority must have"),
  ties = options.choice("first", { "first", "none" }, "of equally frequent answers: the first that was given is the "
    .. "majority, or none is"),
}

local Vote = {}
Vote.__index, Vote.__name = Vote, "perilune.reward.Vote"

local votable = { string = true, number = true, boolean = true }

-- The completions of each row, in the order in which they first come.
local function groups_of(rows)
  local of, list = {}, {}
  for i, row in ipairs(rows) do
    if not of[row] then
      of[row] = {}
      list[#list + 1] = of[row]
    end
    table.insert(of[row], i)
  end
  return list
end

-- What most of the answers are, where there is such a thing.
local function elected(o, answers, n)
  local most, votes = select.majority(answers, n)
  if most == nil or votes < o.least * n then return nil, votes end
  if o.ties == "none" then
    local counts = {}
    for i = 1, n do
      local a = answers[i]
      if a ~= nil and a ~= most then
        counts[a] = (counts[a] or 0) + 1
        if counts[a] == votes then return nil, votes end
      end
    end
  end
  return most, votes
end

-- A list from 1 on without holes, each entry of one type.
local function want_list(name, list, kind, of)
  local hint = (", expected a list of %s"):format(of)
  if type(list) ~= "table" then options.raise(("reward.vote: %s%s"):format(options.is(name, list), hint)) end
  for key in pairs(list) do
    if math.type(key) ~= "integer" or key < 1 or list[1] == nil or key > #list then
      options.raise(("reward.vote: %s has the key %q%s"):format(name, tostring(key), hint))
    end
  end
  for i = 1, #list do
    if type(list[i]) ~= kind then
      options.raise(("reward.vote: %s%s"):format(options.is(("%s %d"):format(name, i), list[i]), hint))
    end
  end
end

function Vote:__call(rows, texts)
  want_list("rows", rows, "table", "rows, one for each text")
  want_list("texts", texts, "string", "texts, one for each row")
  if #texts ~= #rows then
    options.raise(("reward.vote: there are %d texts for %d rows"):format(#texts, #rows))
  end
  local o, values, groups = self.options, { n = #rows }, groups_of(rows)
  if #rows > 1 and #groups == #rows then
    error("every prompt has one completion: a vote needs several of each (group)", 0)
  end
  self.share, self.undecided = 0, 0
  for _, places in ipairs(groups) do
    local answers = {}
    for k, i in ipairs(places) do
      local answer = o.answer(texts[i], rows[i])
      if answer ~= nil and (not votable[type(answer)] or answer ~= answer) then
        error(("answer gave %s, expected a text, number or boolean, or nil"):format(answer ~= answer and "nan"
          or "a " .. type(answer)), 0)
      end
      answers[k] = answer
    end
    local most, votes = elected(o, answers, #places)
    self.share = self.share + votes / #places / #groups
    if most == nil then self.undecided = self.undecided + 1 / #groups end
    for k, i in ipairs(places) do
      if most ~= nil then values[i] = answers[k] == most and 1 or 0 end
    end
  end
  return values
end

--- A reward for what most completions of a prompt answer (self-consistency as a label: TTRL, 2504.16084): 1 for the
--- majority's answer, 0 for another one or none. Completions of one row vote together, so the rollout needs a group:
--- rows of one prompt are the same table, as a rollout hands them over; two tables of one text are two prompts. It
--- abstains from prompts where nobody answers, where the majority is smaller than `least`, and, with ties = "none",
--- where it is none. Of the last batch: share (mean share of the largest vote) and undecided (share of the prompts).
--- The reward rises while a policy comes to agree with itself, right or wrong: watch pass@k on a few labelled problems
--- (rl.pass, rl.alarms with that as its metric).
--- @param opts table  answer
--- @return table reward  callable, of whole batches: reward(rows, texts) -> numbers
function M.vote(opts)
  return setmetatable({ batch = true, options = options.fill("reward.vote", opts, rules), share = 0, undecided = 0 },
    Vote)
end
options.declare(M.vote, {}, rules)

return M
