-- statistics.lua - what the scores of several seeds say: interquartile mean, bootstrap intervals, which of two is
-- better. Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (rliable).
-- Scores are { score of a seed, ... }, or a list of such lists, one for each task; tensors of these shapes count, too.
local peri = require "perilune"
local options = require "perilune.options"

local M = {}

local finite = options.number(options.required)

-- Lists of numbers, one a task, out of what a user gave.
local function tasks_of(who, name, scores)
  options.argument(who, name, scores, "table or tensor")
  if peri.is_tensor(scores) then scores = scores:tolist() end
  if type(scores) ~= "table" or #scores == 0 then options.raise(("%s: there are no %s"):format(who, name)) end
  local tasks = type(scores[1]) == "table" and scores or { scores }
  for t, list in ipairs(tasks) do
    local where = #tasks > 1 and ("%s of task %d"):format(name, t) or name
    if type(list) ~= "table" or #list == 0 then options.raise(("%s: there are no %s"):format(who, where)) end
    for i, v in ipairs(list) do
      local problem = options.problem(("number %d of the %s"):format(i, where), v, finite)
      if problem then options.raise(("%s: %s"):format(who, problem)) end
    end
  end
  return tasks
end

local function mean_of(list, from, to)
  local sum = 0
  for i = from, to do sum = sum + list[i] end
  return sum / (to - from + 1)
end

local function joined(tasks)
  local all = {}
  for _, list in ipairs(tasks) do table.move(list, 1, #list, #all + 1, all) end
  return all
end

-- The mean without the lowest and the highest quarter, each rounded down (scipy's trim_mean at 0.25).
local function iqm_of(tasks)
  local all = joined(tasks)
  table.sort(all)
  local cut = #all // 4
  return mean_of(all, cut + 1, #all - cut)
end

local function mean_of_all(tasks)
  local all = joined(tasks)
  return mean_of(all, 1, #all)
end

local function median_of_means(tasks)
  local means = {}
  for t, list in ipairs(tasks) do means[t] = mean_of(list, 1, #list) end
  table.sort(means)
  local half = #means // 2
  return #means % 2 == 1 and means[half + 1] or (means[half] + means[half + 1]) / 2
end

local function gap_of(tasks, target)
  local sum, n = 0, 0
  for _, list in ipairs(tasks) do
    for _, v in ipairs(list) do sum, n = sum + math.min(v, target), n + 1 end
  end
  return target - sum / n
end

--- The interquartile mean of scores: the mean without the lowest and the highest quarter, over all seeds and tasks.
--- It is less moved by one lucky seed than a mean and wastes less than a median. Scores of several tasks are to be
--- normalised first.
--- @param scores number[]|number[][]|perilune.Tensor  (seeds), or (tasks, seeds)
--- @return number
function M.iqm(scores)
  local value = iqm_of(tasks_of("rl.iqm", "scores", scores))
  return value
end

--- How far scores lie below a target on average, what is above it counting as the target.
--- @param scores number[]|number[][]|perilune.Tensor  (seeds), or (tasks, seeds)
--- @param target number?  the score from which on more is worth nothing (1)
--- @return number
function M.optimality_gap(scores, target)
  local tasks = tasks_of("rl.optimality_gap", "scores", scores)
  if target == nil then target = 1 end
  local problem = options.problem("target", target, finite)
  if problem then options.raise("rl.optimality_gap: " .. problem) end
  return gap_of(tasks, target)
end

-- Tasks whose scores are drawn with replacement from their own.
local function resampled(tasks, rng)
  local out = {}
  for t, list in ipairs(tasks) do
    local n, drawn = #list, {}
    for i = 1, n do drawn[i] = list[rng:int(1, n)] end
    out[t] = drawn
  end
  return out
end

-- The quantile q of a sorted list, between neighbours linearly (NumPy's percentile).
local function quantile(sorted, q)
  local at = 1 + (#sorted - 1) * q
  local low = math.floor(at)
  local high = math.min(low + 1, #sorted)
  return sorted[low] + (sorted[high] - sorted[low]) * (at - low)
end

local function ends_of(values, confidence)
  table.sort(values)
  return quantile(values, (1 - confidence) / 2), quantile(values, (1 + confidence) / 2)
end

local statistics = { iqm = iqm_of, mean = mean_of_all, median = median_of_means }

local bootstrap_rules = {
  confidence = options.number(0.95, "(0, 1)", "share of resampled statistics inside"),
  samples = options.integer(2000, "[1, inf)", "resampled sets of scores"),
  seed = options.integer(1, nil, "of the resampling: the same scores give the same interval"),
}

local interval_rules = {
  statistic = options.value("iqm", "string or callable", "\"iqm\", \"mean\", \"median\" (of the means of tasks), or "
    .. "a function of the lists of scores of the tasks"),
}
for name, rule in pairs(bootstrap_rules) do interval_rules[name] = rule end

local function interval(who, tasks, statistic, o)
  local rng, values = peri.rng(o.seed), {}
  for k = 1, o.samples do
    values[k] = statistic(resampled(tasks, rng))
    local problem = options.problem("the statistic", values[k], finite)
    if problem then options.raise(("%s: %s"):format(who, problem)) end
  end
  return statistic(tasks), ends_of(values, o.confidence)
end

--- A statistic of scores with its stratified bootstrap interval: the scores of each task are drawn with replacement
--- from that task's, and the interval is between percentiles of the statistic over these sets.
---   local value, low, high = rl.interval({ 480, 500, 499, 500, 320 }, { statistic = "mean" })
--- @param scores number[]|number[][]|perilune.Tensor  (seeds), or (tasks, seeds)
--- @param opts table?
--- @return number value
--- @return number low
--- @return number high
function M.interval(scores, opts)
  local o = options.fill("rl.interval", opts, interval_rules)
  local statistic = o.statistic
  if type(statistic) == "string" then
    statistic = statistics[statistic]
    if not statistic then
      options.raise("rl.interval: " .. options.unknown("statistic", o.statistic, options.names(statistics)))
    end
  end
  local tasks = tasks_of("rl.interval", "scores", scores)
  local value, low, high = interval("rl.interval", tasks, statistic, o)
  return value, low, high
end
options.declare(M.interval, { "scores" }, interval_rules)

-- The chance that a score of one list is above one of the other, equal ones counting half, over tasks.
local function improvement(xs, ys)
  local sum = 0
  for t, x in ipairs(xs) do
    local y, wins = ys[t], 0
    for _, a in ipairs(x) do
      for _, b in ipairs(y) do wins = wins + (a > b and 1 or a == b and 0.5 or 0) end
    end
    sum = sum + wins / (#x * #y)
  end
  return sum / #xs
end

--- How likely a run of x is to score above one of y on a task drawn at random, with its bootstrap interval; equal
--- scores count half. An interval that holds 0.5 says that neither is better.
--- @param x number[]|number[][]|perilune.Tensor  (seeds), or (tasks, seeds)
--- @param y number[]|number[][]|perilune.Tensor  of the same tasks; it may have more or fewer seeds
--- @param opts table?
--- @return number chance
--- @return number low
--- @return number high
function M.probability_of_improvement(x, y, opts)
  local who = "rl.probability_of_improvement"
  local o = options.fill(who, opts, bootstrap_rules)
  local xs, ys = tasks_of(who, "x", x), tasks_of(who, "y", y)
  if #xs ~= #ys then options.raise(("%s: x has %d tasks and y %d"):format(who, #xs, #ys)) end
  local rng, values = peri.rng(o.seed), {}
  for k = 1, o.samples do values[k] = improvement(resampled(xs, rng), resampled(ys, rng)) end
  return improvement(xs, ys), ends_of(values, o.confidence)
end
options.declare(M.probability_of_improvement, { "x", "y" }, bootstrap_rules)

local report_rules = {
  digits = options.integer(options.none, "[0, 15]", "behind the point; default: four significant ones"),
}
for name, rule in pairs(bootstrap_rules) do report_rules[name] = rule end

local function count(n, word) return ("%d %s%s"):format(n, word, n == 1 and "" or "s") end

-- Four significant digits of the largest of them.
local function digits_for(...)
  local most = 0
  for _, v in ipairs { ... } do most = math.max(most, math.abs(v)) end
  if most == 0 then return 1 end
  return math.max(0, math.min(6, 3 - math.floor(math.log(most, 10))))
end

--- The line that a recipe prints of its seeds: "IQM 498.3 [490.1, 500.0] over 10 seeds", and its numbers. One seed
--- has no interval.
--- @param scores number[]|number[][]|perilune.Tensor  (seeds), or (tasks, seeds)
--- @param opts table?
--- @return string text
--- @return table numbers  iqm, low, high, seeds (fewest of a task), tasks
function M.report(scores, opts)
  local o = options.fill("rl.report", opts, report_rules)
  local tasks = tasks_of("rl.report", "scores", scores)
  local value, low, high = interval("rl.report", tasks, iqm_of, o)
  local seeds = math.huge
  for _, list in ipairs(tasks) do seeds = math.min(seeds, #list) end
  local number = ("%%.%df"):format(o.digits or digits_for(value, low, high))
  local range = seeds > 1 and ((" [%s, %s]"):format(number, number)):format(low, high) or ""
  local text = ("IQM " .. number .. "%s over %s"):format(value, range, count(seeds, "seed"))
  if #tasks > 1 then text = ("%s of %s"):format(text, count(#tasks, "task")) end
  return text, { iqm = value, low = low, high = high, seeds = seeds, tasks = #tasks }
end
options.declare(M.report, { "scores" }, report_rules)

--- The share of the variance of returns that values explain: 1 - Var(returns - values) / Var(returns). 1 is perfect,
--- 0 no better than a constant, below 0 worse; NaN where the returns are all equal.
--- @param values perilune.Tensor  predictions
--- @param returns perilune.Tensor  in the same shape
--- @param mask perilune.Tensor?  0 where a pair does not count
--- @return number
function M.explained_variance(values, returns, mask)
  options.argument("rl.explained_variance", "values", values, "tensor")
  options.argument("rl.explained_variance", "returns", returns, "tensor")
  if mask ~= nil then options.argument("rl.explained_variance", "mask", mask, "tensor") end
  for name, t in pairs { returns = returns, mask = mask } do
    if options.shape(t) ~= options.shape(values) then
      options.raise(("rl.explained_variance: values have shape %s and %s %s"):format(options.shape(values), name,
        options.shape(t)))
    end
  end
  local _ <close> = peri.no_grad()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  values, returns = values:to "f64", returns:to "f64"
  if mask then
    local at = mask:ne(0)
    values, returns = values:masked_select(at), returns:masked_select(at)
  end
  local function variance(x) return x:sub(x:mean()):square():mean():item() end
  local whole = variance(returns)
  if whole == 0 then return 0 / 0 end
  return 1 - variance(returns:sub(values)) / whole
end

return M
