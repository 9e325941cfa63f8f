-- estimator.lua - how good each token was: advantages from the rewards of whole answers, or of their steps. One
-- estimator a function; the loss that uses them is in perilune.loss.
local peri = require "perilune"
local kl = require "perilune.loss.kl"
local masked = require "perilune.loss.masked"
local options = require "perilune.options"
local tokens = require "perilune.rl.tokens"

local M = {}

local who = "rl.advantages"

-- ---- statistics of lists of rewards; NaN is an abstention and does not count ----

-- Mean and deviation ("sample": n - 1, "population": n) of those that are numbers, how many, and whether all are equal.
local function moments(list, how)
  local n, sum, squares, low, high = 0, 0, 0, math.huge, -math.huge
  for _, v in ipairs(list) do
    if v == v then n, sum, low, high = n + 1, sum + v, math.min(low, v), math.max(high, v) end
  end
  local mean = sum / math.max(n, 1)
  for _, v in ipairs(list) do
    if v == v then squares = squares + (v - mean) ^ 2 end
  end
  local spread = math.sqrt(squares / math.max(how == "population" and n or n - 1, 1))
  return mean, spread, n, low >= high
end

-- fn(values, first) -> their advantages, of each group of consecutive answers. A group that has no spread, or of
-- which at most one answer was scored, carries no signal: exactly 0. So are abstentions.
local function by_group(list, group, fn)
  local out = {}
  for first = 1, #list, group do
    local values = table.move(list, first, first + group - 1, 1, {})
    local _, _, _, flat = moments(values)
    local own = not flat and fn(values, first)
    for i, v in ipairs(values) do out[first + i - 1] = own and v == v and own[i] or 0 end
  end
  return out
end

-- (v - mean) / (deviation + eps); centred alone with "none".
local function normalised(values, how, eps)
  local mean, spread, _, flat = moments(values, how)
  local scale, out = how == "none" and 1 or 1 / (spread + eps), {}
  for i, v in ipairs(values) do out[i] = flat and 0 or (v - mean) * scale end
  return out
end

local function centred(list, group)
  return by_group(list, group, function (values) return normalised(values, "none") end)
end

local function column(list) return peri.tensor(list, "f32"):unsqueeze(2) end -- (B, 1)

-- ---- estimators: fn(f) -> (B, 1) or (B, N), of f.total (a list), f.batch, f.group, f.weight (B, N), f.o ----

local estimators = {}

-- (r - mean) / (std + eps) within the group  (DeepSeekMath, 2402.03300 section 4.1.2).
function estimators.grpo(f)
  local total, known = column(f.total), column(f.known)
  return peri.group_advantage(total:masked_fill(known:eq(0), 0), known, f.group, f.o.std or "sample", f.o.eps or 1e-4)
end

-- r - mean: without the deviation, which weighs easy and hard prompts more (Dr. GRPO, 2503.20783).
function estimators.dr_grpo(f) return column(centred(f.total, f.group)) end

-- r - mean of the group, divided by the deviation of all rewards (2508.08221; TRL's scale_rewards "batch").
function estimators.batch(f)
  local _, spread, _, flat = moments(f.total, f.o.std)
  local scale = (flat or f.o.std == "none") and 1 or spread + (f.o.eps or 1e-4)
  return column(centred(f.total, f.group)):div(scale)
end

-- r - mean of the group's other answers  (RLOO, 2402.14740): G / (G - 1) times dr_grpo.
function estimators.rloo(f)
  return column(by_group(f.total, f.group, function (values)
    local mean, _, n = moments(values)
    local out = {}
    for i, v in ipairs(values) do out[i] = (v - mean) * n / (n - 1) end
    return out
  end))
end

-- r: no baseline at all  (Williams 1992).
function estimators.reinforce(f)
  local out = {}
  for i, v in ipairs(f.total) do out[i] = v == v and v or 0 end
  return column(out)
end

-- Returns of tokens, each of which pays the KL, whitened over the batch  (REINFORCE++, 2501.03262).
function estimators.reinforce_plus_plus(f)
  return tokens.whiten(tokens.returns(f.token_rewards(), f.weight, f.o.gamma or 1), f.weight)
end

-- r - mean of the group, whitened over the tokens of the batch  (REINFORCE++-baseline, 2501.03262).
function estimators.reinforce_plus_plus_baseline(f)
  return tokens.whiten(column(centred(f.total, f.group)):mul(f.weight), f.weight)
end

-- r - reward of the greedy answer  (ReMax, 2310.10505); with a KL in the reward each token pays its own and
-- what comes behind it. Where the greedy answer was abstained from there is nothing to compare with: 0.
function estimators.remax(f)
  local greedy = f.batch.baseline
  if type(greedy) ~= "table" or #greedy ~= #f.total then
    options.raise(('%s: estimator "remax" needs batch.baseline, the reward of the greedy answer beside each of the %d '
      .. "rewards"):format(who, #f.total))
  end
  local base = column(greedy)
  return tokens.returns(f.token_rewards(), f.weight, 1):sub(base):masked_fill(base:isnan(), 0)
end

-- r - mean of the group weighted by lengths, the baseline of the least variance if every token's gradient has the same
-- (OPO, 2505.23585).
function estimators.opo(f)
  local said = f.batch.mask:sum(2):tolist()
  return column(by_group(f.total, f.group, function (values, first)
    local sum, lengths = 0, 0
    for i, v in ipairs(values) do
      local n = said[first + i - 1]
      if v == v then sum, lengths = sum + n * v, lengths + n end
    end
    local out = {}
    for i, v in ipairs(values) do out[i] = v - sum / math.max(lengths, 1) end
    return out
  end))
end

-- Each reward function normalised within the group, their weighted sum normalised over the batch, so that none is
-- drowned by one with a larger spread  (GDPO, 2601.05242).
function estimators.gdpo(f)
  local batch, how, eps = f.batch, f.o.std or "sample", f.o.eps or 1e-4
  if not batch.rewards then options.raise(who .. ': estimator "gdpo" needs a list of rewards, each with its name') end
  local sum = {}
  for i in ipairs(f.total) do sum[i] = 0 end
  for k, name in ipairs(batch.names) do
    local factor = batch.weights and batch.weights[k] or 1
    local own = by_group(batch.rewards[name], f.group, function (values) return normalised(values, how, eps) end)
    for i, v in ipairs(own) do sum[i] = sum[i] + factor * v end
  end
  for i, v in ipairs(f.total) do sum[i] = v == v and sum[i] or 0 / 0 end
  local out = normalised(sum, how, eps)
  for i, v in ipairs(out) do out[i] = v == v and v or 0 end
  return column(out)
end

-- ---- with step rewards: (B, N) and the tokens that they cover ----

local of_steps = {}

-- The return from each token on, normalised over those samples of the group whose prefix has been right so far.
local function returns_by_position(f, how)
  local returns = tokens.returns(f.batch.steps, f.batch.covered, 1)
  return peri.group_advantage(returns, f.batch.covered, f.group, how, f.o.eps or 1e-4)
end

function of_steps.grpo(f) return returns_by_position(f, f.o.std or "sample"), f.batch.covered end
function of_steps.dr_grpo(f) return returns_by_position(f, "none"), f.batch.covered end

-- Step rewards normalised over all steps of the group; a token gets the sum of those of the steps that end at it or
-- behind it  (DeepSeekMath, 2402.03300 section 4.1.3). batch.ends (B, N) says which tokens end a step; default: all
-- that are covered.
function of_steps.process(f)
  local ends = f.batch.ends or f.batch.covered
  local steps = masked.counted(f.batch.steps, ends)
  local each = peri.group_advantage(steps, ends, f.group, f.o.std or "sample", f.o.eps or 1e-4, true)
  local weight = f.batch.covered
  if f.batch.ends then weight = f.batch.mask:mul(column(f.known)) end -- what was abstained from counts nowhere
  return each:flip(2):cumsum(2):flip(2), weight
end

-- ---- the function ----

-- Options that some estimators take and others do not.
local takes = {
  grpo = { std = true, eps = true }, batch = { std = true, eps = true }, gdpo = { std = true, eps = true },
  process = { std = true, eps = true }, reinforce_plus_plus = { gamma = true },
}
local special = { "std", "eps", "gamma" }

--- Estimators whose baseline is of a group's answers: of one answer they make 0.
M.of_groups = { grpo = true, dr_grpo = true, batch = true, rloo = true, reinforce_plus_plus_baseline = true, opo = true,
  gdpo = true }

local known_names = { "process" }
for name in pairs(estimators) do known_names[#known_names + 1] = name end
table.sort(known_names)

--- Options of rl.advantages that are settings of a run: what a stepper takes and hands on.
M.advantage_rules = {
  estimator = options.choice("grpo", known_names, "how an advantage is made of rewards; see the table of estimators"),
  std = options.choice(options.none, { "sample", "population", "none" }, "the deviation that rewards are divided by: "
    .. "of n - 1, of n, or not; grpo, batch, gdpo, process; default: sample"),
  eps = options.number(options.none, "[0, inf)", "added to that deviation; default: 1e-4"),
  gamma = options.number(options.none, "[0, 1]", "discount of reinforce_plus_plus; default: 1"),
  mask_truncated = options.boolean(false, "answers that no stop token ended are not learned from; their rewards "
    .. "still count in the baselines (DAPO's overlong filter)"),
  reward_beta = options.number(0, "[0, inf)", "weight of the KL that is taken off the reward, summed over an answer"),
  reward_kl = options.choice("k1", { "k1", "k2", "k3" }, "estimate of that KL, see loss.kl"),
}

local rules = {
  ref = options.value(options.none, "tensor", "(B, N) log-probabilities of the reference; needed with reward_beta"),
}
for name, rule in pairs(M.advantage_rules) do rules[name] = rule end

-- What estimators know of a batch.
local function facts(batch, o, weight, total, known)
  local f = { batch = batch, o = o, group = batch.group, weight = weight, total = total, known = known }
  local cost
  if o.reward_beta > 0 then
    cost = kl.kl(batch.logprobs, o.ref, batch.mask, { estimator = o.reward_kl }):mul(batch.mask):mul(o.reward_beta)
    f.total = {}
    for i, paid in ipairs(cost:sum(2):tolist()) do f.total[i] = total[i] - paid end
  end
  function f.token_rewards()
    local scores = masked.counted(peri.tensor(total, "f32"), peri.tensor(known, "f32")) -- abstentions are NaN
    local rewards = tokens.token_rewards(scores, batch.mask)
    return cost and rewards:sub(cost) or rewards
  end
  return f
end

--- Advantages and the weights of tokens in the objective. Whole answers: what the estimator makes of their rewards,
--- on every token; by default those of GRPO, centred and scaled within the group (DeepSeekMath 2402.03300, 4.1.2). A
--- group without spread, and one of which fewer than two answers were scored, gives exactly 0 with every baseline
--- that is of a group; reinforce and remax have none. With step rewards (grpo, dr_grpo): the return from each token
--- on, centred and scaled over those samples of the group whose prefix has been right so far; process: the sum of the
--- following steps' rewards, scaled over all steps of the group (4.1.3); the tokens after the last step are masked
--- out. An answer that was abstained from counts nowhere.
--- @param batch table  of rl.rollout; remax: with baseline, the greedy answers' rewards; process: with ends (B, N) or
--- all tokens that steps cover end one
--- @param opts table?
--- @return perilune.Tensor advantage  (B, N) f32
--- @return perilune.Tensor weight  (B, N) f32, 0 or 1
function M.advantages(batch, opts)
  local o = options.fill(who, opts, rules)
  options.argument(who, "batch", batch, "table")
  local function refuse(...) options.raise(who .. ": " .. string.format(...)) end
  for _, name in ipairs(special) do
    if o[name] and not (takes[o.estimator] or {})[name] then refuse("estimator %q has no %s", o.estimator, name) end
  end
  if o.reward_beta > 0 and not o.ref then refuse("reward_beta is %g and there is no ref", o.reward_beta) end
  if o.reward_beta > 0 and o.estimator == "gdpo" then
    refuse("reward_beta is %g and gdpo takes its rewards one by one: use beta of loss.policy", o.reward_beta)
  end
  if o.reward_beta > 0 and batch.steps then refuse("reward_beta is %g and there are step rewards", o.reward_beta) end
  local ended
  if o.mask_truncated then
    ended = {}
    for i = 1, #batch.total do ended[i] = batch.ended[i] and 1 or 0 end
    ended = column(ended)
  end
  local advantage, weight
  local known = {}
  for i, v in ipairs(batch.total) do known[i] = v == v and 1 or 0 end
  if batch.steps then
    if not of_steps[o.estimator] then refuse("estimator %q has no credit for step rewards", o.estimator) end
    advantage, weight = of_steps[o.estimator](facts(batch, o, nil, batch.total, known))
    return advantage, ended and weight:mul(ended) or weight
  end
  if o.estimator == "process" then refuse('estimator "process" needs step rewards') end
  weight = batch.mask:mul(column(known))
  if ended then weight = weight:mul(ended) end
  advantage = estimators[o.estimator](facts(batch, o, weight, batch.total, known))
  return advantage:mul(batch.mask), weight
end
options.declare(M.advantages, { "batch" }, rules)

return M
