-- alarms.lua - signs that a run goes wrong while its reward looks well: told from the metrics that are logged anyway,
-- with memory of a few numbers a metric, so that they go into a checkpoint. What looks alike in a run that goes well
-- (entropy and length fall when a task is solved) is told apart by the reward, or better by a held-out true metric.
local options = require "perilune.options"

local Alarms = {}
Alarms.__index, Alarms.__name = Alarms, "perilune.rl.Alarms"

local M = {}

local share = "[0, 1]"
local rules = {
  metric = options.value(options.none, "string", "name of the held-out true metric, larger is better"),
  best = options.number(1, "(0, inf)", "the reward of a task that is solved"),
  solved = options.number(0.8, share, "share of best from which less of entropy, signal and gradient is no bad sign"),
  window = options.integer(5, "[1, 1000]", "logged values that a mean is of"),
  patience = options.integer(3, "[1, 1000]", "values in a row that are bad before an alarm, and good before its end"),
  flat = options.number(0.95, share, "share of groups without any spread of rewards"),
  entropy = options.number(0.05, share, "share of the first entropy"),
  longer = options.number(2, "[1, inf)", "times the first length"),
  cut = options.number(0.5, share, "share of completions that the limit of length cuts"),
  shorter = options.number(0.5, share, "share of the first length; half of it where the true metric is not known"),
  fall = options.number(0.25, share, "of the true metric, as a share of its best"),
  least = options.number(0.02, "[0, inf)", "least fall of the true metric; least rise of the reward, a share of best"),
  kl = options.number(10, "(0, inf)", "nats a token"),
  jump = options.number(10, "[1, inf)", "times the middle of the last KLs, above 1"),
  still = options.number(0, "[0, inf)", "norm of the gradient up to which an update is none"),
  agree = options.number(0.55, share, "share of fresh pairs that a learned reward orders as the true return does"),
  off = options.value(options.none, "table", "names of alarms that are not wanted"),
  names = options.value(options.none, "table", "what other programs call a metric: { length = \"response/mean\" }"),
}

-- What is read, under TRL's names.
local reads = {
  reward = "reward", flat = "frac_reward_zero_std", entropy = "entropy", length = "completions/mean_length",
  cut = "completions/clipped_ratio", kl = "kl", grad = "grad_norm", change = "update_norm",
  idle = "no_op", stage = "stage", agreement = "agreement",
}

-- ---- memory: of each metric its first values, its last ones, how many there were ----

local function remember(self, name, value)
  local m = self.seen[name] or { n = 0, first = {}, last = {}, slow = value }
  self.seen[name] = m
  m.n = m.n + 1
  m.slow = m.slow + (value - m.slow) / math.min(m.n, 10 * self.window) -- a mean of ten windows
  if #m.first < self.window then m.first[#m.first + 1] = value end
  m.last[#m.last + 1] = value
  if #m.last > self.window then table.remove(m.last, 1) end
end

local function mean(list)
  local sum = 0
  for _, v in ipairs(list) do sum = sum + v end
  return sum / #list
end

local function first(self, name) return mean(self.seen[name].first) end
local function now(self, name) return self.seen[name] and mean(self.seen[name].last) end
-- There is more than the beginning, so that a first mean can be compared with a last one.
local function enough(self, name) return self.seen[name] ~= nil and self.seen[name].n > self.window end

local function middle(list)
  local sorted = table.move(list, 1, #list, 1, {})
  table.sort(sorted)
  return sorted[(#sorted + 1) // 2]
end

-- ---- what is bad ----

local function is_solved(self)
  local reward = now(self, "reward")
  return reward ~= nil and reward >= self.solved * self.best
end

local function risen(self, name, by) return enough(self, name) and now(self, name) - first(self, name) > by end

-- Whether the true metric says how the run goes: it has been measured since the beginning.
local function is_measured(self) return self.seen.metric ~= nil and self.seen.metric.n >= 2 end

-- What says that the run is on its way: the true metric where it is known, else the reward.
local function improves(self)
  if is_measured(self) then return self.last.metric - self.seen.metric.first[1] > self.least end
  return risen(self, "reward", self.least * self.best)
end

-- No longer rising, whether or not it is higher than at the beginning.
local function stands_still(self)
  return enough(self, "reward") and now(self, "reward") - self.seen.reward.slow <= self.least * self.best
end

-- One entry an alarm: the metric whose new value it looks at, and bad(self, value) -> a text where it is bad.
local kinds = {
  { "equal_groups", "flat", function (self, value)
    if value < self.flat or is_solved(self) then return end
    return ("%.0f %% of the groups have one reward for all: nothing to learn from"):format(100 * value)
  end },
  { "entropy_collapse", "entropy", function (self)
    if not enough(self, "entropy") or is_solved(self) or not stands_still(self) then return end
    local from, to = first(self, "entropy"), now(self, "entropy")
    if to > self.entropy * from then return end
    return ("entropy went from %.3g to %.3g nats a token and the reward stands still at %.3g"):format(from, to,
      now(self, "reward"))
  end },
  { "length_runaway", "length", function (self)
    if not enough(self, "length") or improves(self) then return end
    local from, to, cut = first(self, "length"), now(self, "length"), now(self, "cut")
    local is_cut = cut and cut >= self.cut and cut > first(self, "cut") + 0.1
    if to < self.longer * from and not is_cut then return end
    return ("completions went from %.4g to %.4g tokens%s and %s is no better"):format(from, to,
      is_cut and (", %.0f %% of them cut"):format(100 * cut) or "", self.metric or "the reward")
  end },
  { "length_shrinks", "length", function (self)
    if not enough(self, "length") then return end
    local from, to = first(self, "length"), now(self, "length")
    local judged = is_measured(self)
    local limit = judged and self.shorter or self.shorter / 2
    if to > limit * from or judged and improves(self) then return end
    return ("completions shrank from %.4g to %.4g tokens%s"):format(from, to,
      judged and (" and %s is no better"):format(self.metric) or "")
  end },
  { "reward_hacking", "metric", function (self, value)
    local top, reward = self.top, now(self, "reward")
    if not top or not reward then return end
    local before = top.reward or first(self, "reward") -- measured before the first step
    local drop = top.value - value
    if drop <= math.max(self.least, self.fall * math.abs(top.value)) then return end
    if reward - before <= self.least * self.best then return end
    return ("the reward rose from %.3g to %.3g while %s fell from %.3g to %.3g"):format(before, reward, self.metric,
      top.value, value)
  end },
  { "reward_parts", "agreement", function (self, value)
    if value > self.agree then return end
    return ("the learned reward orders %.0f %% of fresh pairs as the true return does"):format(100 * value)
  end },
  { "kl_blowup", "kl", function (self, value)
    local before = self.before_kl
    local jumped = before and value > 1 and value > self.jump * math.max(before, 1e-3)
    if value == value and value <= self.kl and not jumped then return end
    return ("the KL is %.4g nats a token%s"):format(value, before and (", it was %.3g"):format(before) or "")
  end },
  { "no_update", "grad", function (self, value)
    if value > self.still and not self.idled or is_solved(self) then return end
    return self.idled and "the weights are what they were before the update"
      or ("the norm of the gradient is %g: the update changes nothing"):format(value)
  end },
  { "no_update", "change", function (self, value)
    if value > 0 or is_solved(self) then return end
    return "the weights are what they were before the update"
  end },
}

--- @class perilune.rl.Alarms
--- @field count table<string, integer>  how often each has fired

--- Alarms of a run of reinforcement learning. :look(metrics) takes what is logged of a step and returns those that went
--- off then: "equal_groups" (no signal), "entropy_collapse", "length_runaway", "length_shrinks", "reward_hacking" (the
--- reward rises while the held-out true metric falls), "reward_parts" (a learned reward no longer orders fresh pairs of
--- segments as the true return does: agreement of rl.PreferenceReward), "kl_blowup", "no_update" (gradient of norm 0,
--- update_norm 0, or no_op of a stepper). An alarm goes off after `patience` bad values in a row ("kl_blowup" at once
--- where a KL is not finite) and may do so again after as many good ones. What is logged under TRL's names is read; a
--- metric that is not there is not judged. Give the true metric where there is one: without it a run that learns to
--- cheat looks like one that learns.
--- @param opts table?
--- @return perilune.rl.Alarms
function M.alarms(opts)
  local self = options.fill("rl.alarms", opts, rules)
  local known, all = {}, {}
  for _, kind in ipairs(kinds) do
    if not known[kind[1]] then all[#all + 1] = kind[1] end
    known[kind[1]] = true
  end
  self.without = {}
  for _, name in ipairs(self.off or {}) do
    if not known[name] then options.raise("rl.alarms: off: " .. options.unknown("alarm", name, all)) end
    self.without[name] = true
  end
  self.key = {}
  for name, key in pairs(reads) do self.key[name] = key end
  for name, key in pairs(self.names or {}) do
    if not reads[name] or type(key) ~= "string" then
      options.raise("rl.alarms: names: " .. options.unknown("metric", name, options.names(reads)))
    end
    self.key[name] = key
  end
  self.key.metric = self.metric
  self.off, self.names = nil, nil
  self.seen, self.last, self.run, self.active, self.count, self.idle, self.top = {}, {}, {}, {}, {}, 0, nil
  return setmetatable(self, Alarms)
end
options.declare(M.alarms, {}, rules)

-- Another stage trains another model for something else: what was before it says nothing of it.
local function begin_stage(self, stage)
  if stage == nil or stage == self.stage then return end
  self.seen, self.last, self.run, self.active, self.idle, self.top, self.stage = {}, {}, {}, {}, 0, nil, stage
end

-- The metrics of a step that are there and numbers; the middle of the KLs before it, for a jump.
local function take(self, metrics)
  local there = {}
  begin_stage(self, metrics[self.key.stage])
  local kl, idle = self.seen.kl, metrics[self.key.idle]
  self.idled = type(idle) == "number" and idle > self.idle -- a count, of updates that moved nothing
  if self.idled then self.idle = idle end
  self.before_kl = kl and #kl.last >= math.min(3, self.window) and middle(kl.last) or nil
  for name, key in pairs(self.key) do
    local value = metrics[key]
    if type(value) == "number" and name ~= "idle" and name ~= "stage" then
      there[name] = value
      if value == value and math.abs(value) < math.huge then
        remember(self, name, value)
        self.last[name] = value
      end
    end
  end
  return there
end

-- The true metric's best so far, and the reward then.
local function climb(self, value)
  if value ~= value or math.abs(value) == math.huge then return end
  if not self.top or value >= self.top.value then self.top = { value = value, reward = now(self, "reward") } end
end

local RARE <const> = 2 -- values of a true metric, which is a mean over many rows and measured seldom

-- One more bad or good value of an alarm: whether it goes off now.
local function count_value(self, id, bad, patience)
  local run = self.run[id] or 0
  run = bad and math.max(run, 0) + 1 or math.min(run, 0) - 1
  self.run[id] = run
  if not bad then
    if -run >= patience then self.active[id] = nil end
    return false
  end
  if self.active[id] or run < patience then return false end
  self.active[id] = true
  return true
end

--- Look at the metrics of one step.
--- @param metrics table<string, any>
--- @return { name: string, message: string }[]  those that go off now
function Alarms:look(metrics)
  options.argument("alarms:look", "metrics", metrics, "table")
  local there, fired = take(self, metrics), {}
  for i, kind in ipairs(kinds) do
    local name, reading, bad = kind[1], kind[2], kind[3]
    local value = there[reading]
    if value and not self.without[name] then
      local text = (value == value or reading == "kl") and bad(self, value) or nil
      local id = ("%s/%d"):format(name, i)
      if text and (value ~= value or value == math.huge) then self.run[id] = self.patience end
      local patience = reading == "metric" and math.min(self.patience, RARE) or self.patience
      if count_value(self, id, text ~= nil, patience) then
        fired[#fired + 1] = { name = name, message = text }
        self.count[name] = (self.count[name] or 0) + 1
      end
    end
  end
  if there.metric then climb(self, there.metric) end
  return fired
end

--- How many alarms have gone off so far.
--- @return integer
function Alarms:total()
  local n = 0
  for _, count in pairs(self.count) do n = n + count end
  return n
end

local function copy(value)
  if type(value) ~= "table" then return value end
  local out = {}
  for k, v in pairs(value) do out[k] = copy(v) end
  return out
end

local kept = { "seen", "last", "run", "active", "count", "top", "idle", "stage" }
local kind_of = { idle = "number" } -- a table where nothing else is said
local may_lack = { top = true, stage = true }

--- What a checkpoint keeps.
--- @return table
function Alarms:state()
  local s = {}
  for _, name in ipairs(kept) do s[name] = copy(self[name]) end
  return s
end

--- Go on from a state. One that is none raises, and then nothing changed.
--- @param s table
--- @return self
function Alarms:set_state(s)
  options.argument("alarms:set_state", "the state", s, "table")
  for _, name in ipairs(kept) do
    local fits = name == "stage" or type(s[name]) == (kind_of[name] or "table") or may_lack[name] and s[name] == nil
    if not fits then
      options.raise("alarms:set_state: the state is none of alarms: " .. options.is(name, s[name]))
    end
  end
  for _, m in pairs(s.seen) do
    if type(m) ~= "table" or type(m.n) ~= "number" or type(m.slow) ~= "number" or type(m.first) ~= "table"
      or type(m.last) ~= "table" then
      options.raise "alarms:set_state: the state is none of alarms: seen has something else"
    end
  end
  for _, name in ipairs(kept) do self[name] = copy(s[name]) end
  return self
end

return M
