-- novelty.lua - what has not been seen pays by itself: bonuses by counts of visits and by random network distillation,
-- and the advantages of such a bonus where it does not end with an episode.

local peri = require "perilune"
local options = require "perilune.options"
local optim = require "perilune.optim"
local gae = require "perilune.rl.gae"

local nn = peri.nn
local M = {}

-- Rows of a rollout's field (steps, rows, ...) as learners have them: (S, steps * rows of each, ...).
local function by_learner(x, S)
  local shape = x.shape
  local steps, n = shape[1], shape[2] // S
  local apart = x:reshape({ steps, S, n, table.unpack(shape, 3) }):transpose(1, 2)
  return apart:reshape { S, steps * n, table.unpack(shape, 3) }
end

-- Back: (S, steps * rows of each) -> (steps, rows).
local function by_row(x, steps)
  local S, n = x.shape[1], x.shape[2] // steps
  return x:reshape({ S, steps, n }):transpose(1, 2):reshape { steps, S * n }
end

local function check_rollout(who, rollout, S)
  options.argument(who, "rollout", rollout, "userdata")
  local rows = rollout:get("obs").shape[2]
  if rows % S ~= 0 then options.raise(("%s: %d learners do not share %d rows"):format(who, S, rows)) end
end

-- ---- counts ----

local count_rules = {
  obs = options.value(options.required, "table", "the environment's obs_space: one of n, or a vector"),
  action = options.value(options.none, "table", "its action_space, of n: pairs of state and action are counted; none: "
    .. "the states that steps lead to"),
  seeds = options.integer(1, "[1, inf)", "learners, each with counts of its own"),
  bits = options.integer(12, "[1, 24]", "of the hash of a vector (Tang et al. 2017, eq. 3): more tell more apart"),
  seed = options.integer(0, "[0, inf)", "of that hash's random directions"),
}

local Counts = {}
Counts.__index, Counts.__name = Counts, "perilune.rl.Counts"

--- Counts of visits: a state or pair that was seen N times pays 1 / sqrt(N), MBIE-EB's bonus (Strehl and Littman 2008;
--- Bellemare et al. 2016, 1606.01868, with true counts). Vectors are counted by SimHash: the signs of random
--- projections (Tang et al. 2017, 1611.04717, eq. 3).
---
---     local counts = rl.Counts { obs = env.obs_space, action = env.action_space, seeds = 10 }
---     reward = function (rollout) return rollout:get("reward") + 0.1 * counts:bonus(rollout) end
---
--- @param opts table
--- @return perilune.rl.Counts
function M.Counts(opts)
  local self = options.fill("rl.Counts", opts, count_rules)
  if self.action and self.action.kind ~= "discrete" then
    options.raise(("rl.Counts: actions are %s, expected one of n"):format(tostring(self.action)))
  elseif not self.obs.n and #(self.obs.shape or {}) ~= 1 then
    options.raise(("rl.Counts: observations are %s, expected one of n or a vector"):format(tostring(self.obs)))
  end
  self.states, self.choices = self.obs.n or 2 ^ self.bits // 1 | 0, self.action and self.action.n or 1
  if not self.obs.n then
    local rng, list = peri.rng(self.seed), {}
    for i = 1, self.obs.shape[1] * self.bits do list[i] = rng:normal() end
    self._directions = peri.keep(peri.tensor(list, "f32"):reshape { self.obs.shape[1], self.bits })
    self._powers = peri.keep(peri.tensor(2, "f32"):pow(peri.arange(self.bits):to "f32"))
  end
  self.count = peri.keep(peri.zeros { self.seeds, self.states * self.choices })
  return setmetatable(self, Counts)
end
options.declare(M.Counts, {}, count_rules)

--- The number of each observation's state, from 0: itself, or its hash.
--- @param obs perilune.Tensor  (...) i64, or (..., numbers)
--- @return perilune.Tensor  (...) i64
function Counts:state_of(obs)
  if self.obs.n then return obs end
  return (obs:to("f32"):matmul(self._directions):ge(0):to "f32" * self._powers):sum(-1):to "i64"
end

--- Count the steps of a rollout with obs, action and final_obs, and say what each is worth: 1 / sqrt of how often its
--- learner has seen it by then, these steps included.
--- @param rollout perilune.Rollout
--- @return perilune.Tensor  (steps, rows)
function Counts:bonus(rollout)
  check_rollout("Counts:bonus", rollout, self.seeds)
  local _ <close> = peri.no_grad()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local at
  if self.action then at = self:state_of(rollout:get "obs") * self.choices + rollout:get "action"
  else at = self:state_of(rollout:get "final_obs") end
  local steps = at.shape[1]
  at = by_learner(at, self.seeds)
  self.count = peri.keep(self.count:scatter_add(at, peri.ones(at.shape), 2))
  return peri.keep(by_row(self.count:gather(at, 2):rsqrt(), steps):contiguous())
end

--- @return table tensors
--- @return table plain
function Counts:state_dict() return { count = self.count }, {} end

--- @param tensors table<string, perilune.Tensor>
--- @return self
function Counts:load_state_dict(tensors)
  local t = tensors.count
  if not peri.is_tensor(t) or options.shape(t) ~= options.shape(self.count) then
    options.raise(("Counts:load_state_dict: count is %s, expected %s"):format(peri.is_tensor(t) and options.shape(t)
      or type(t), options.shape(self.count)))
  end
  self.count = peri.keep(t:clone())
  return self
end

-- ---- random network distillation ----

local rnd_rules = {
  obs = options.value(options.required, "table", "the environment's obs_space: one of n, or a vector"),
  seeds = options.value({ 1 }, "table", "of the networks, one for each learner; rows of learners are apart"),
  hidden = options.value({ 64 }, "table", "widths of the hidden layers"),
  outputs = options.integer(32, "[1, inf)", "numbers that the fixed network gives"),
  lr = options.number(1e-3, "(0, inf)", "learning rate of Adam"),
  gamma = options.number(0.99, "[0, 1]", "discount of the running sum by whose deviation bonuses are divided"),
  clip = options.number(5, "(0, inf)", "largest absolute value of a normalised observation"),
  epochs = options.integer(1, "[1, inf)", "passes over a rollout"),
  batch = options.integer(256, "[1, inf)", "steps of each optimizer step and learner"),
}

local Distillation = {}
Distillation.__index, Distillation.__name = Distillation, "perilune.rl.RandomDistillation"

--- Random network distillation (Burda et al. 2018, 1810.12894): a network learns what a fixed one with random weights
--- says of observations that were seen; its squared error is the bonus of a step for what that led to. Observations are
--- normalised by running statistics and clipped, bonuses divided by the running deviation of their discounted sum
--- (section 2.4).
---
---     local novelty = rl.RandomDistillation { obs = env.obs_space, seeds = { 1, 2 } }
---     local bonus = novelty:bonus(rollout)             -- (steps, rows)
---     novelty:learn(rollout)
---
--- @param opts table
--- @return perilune.rl.RandomDistillation
function M.RandomDistillation(opts)
  local self = options.fill("rl.RandomDistillation", opts, rnd_rules)
  if not self.obs.n and #(self.obs.shape or {}) ~= 1 then
    options.raise(("rl.RandomDistillation: observations are %s, expected one of n or a vector"):format(
      tostring(self.obs)))
  elseif #self.seeds == 0 then options.raise "rl.RandomDistillation: seeds is empty: there are no learners" end
  local sizes = { self.obs.n or self.obs.shape[1], table.unpack(self.hidden) }
  sizes[#sizes + 1] = self.outputs
  local function nets(at)
    local seeds = {}
    for i, seed in ipairs(self.seeds) do seeds[i] = 2 * seed + at end
    return nn.Copies(#seeds, function () return nn.MLP(sizes, { activation = "relu" }) end, { seeds = seeds })
  end
  self.fixed, self.net = nets(0):freeze(), nets(1)
  self.optimizer = optim.Adam(self.net:parameters(), { lr = self.lr })
  local S, shape = #self.seeds, self.obs.n and {} or self.obs.shape
  self.stats = { obs_mean = peri.zeros(shape, "f64"), obs_var = peri.ones(shape, "f64"), sum = peri.zeros({ 1 }, "f64"),
    var = peri.ones({ S }, "f64"), mean = peri.zeros({ S }, "f64"), count = peri.zeros({ 2 }, "f64") }
  return setmetatable(self, Distillation)
end
options.declare(M.RandomDistillation, {}, rnd_rules)

-- Means and variances after n more values with these (Chan et al. 1979).
local function merged(mean, var, count, new_mean, new_var, n)
  local total = count + n
  local delta = new_mean - mean
  return mean + delta * (n / total), (var * count + new_var * n + delta:square() * (count * n / total)) / total
end

-- Observations as the networks see them. Numbered states are one-hot rows of the size that normalising would give
-- them where all are seen alike: unscaled, biases would be learned and states would not matter.
local function prepared(self, x)
  local n = self.obs.n
  if n then return x:one_hot(n):to "f32" * math.min(self.clip, math.sqrt(n)) end
  local s = self.stats
  return ((x:to "f64" - s.obs_mean) / (s.obs_var + 1e-8):sqrt()):clamp(-self.clip, self.clip):to "f32"
end

local function errors(self, x) return (self.net(x) - self.fixed(x)):square():mean(-1) end

-- Statistics with what a rollout shows.
local function observe(self, seen)
  if self.obs.n then return end
  local s, x = self.stats, seen:to("f64"):flatten(1, 2)
  local n, count = x.shape[1], s.count:tolist()
  local mean, var = merged(s.obs_mean, s.obs_var, count[1], x:mean(1), (x - x:mean(1)):square():mean(1), n)
  s.obs_mean, s.obs_var = peri.keep(mean, var)
  s.count = peri.keep(peri.tensor({ count[1] + n, count[2] }, "f64"))
end

-- Bonuses (steps, rows) divided by the deviation of their discounted sum, of each learner by itself.
local function scaled(self, bonus)
  local s, S = self.stats, #self.seeds
  local steps, rows = bonus.shape[1], bonus.shape[2]
  local b, sums = bonus:to "f64", {}
  local sum = s.sum.shape[1] == rows and s.sum or peri.zeros({ rows }, "f64")
  for t = 1, steps do
    sum = sum * self.gamma + b:select(1, t)
    sums[t] = sum
  end
  local of = by_learner(peri.stack(sums), S)
  local n, count = of.shape[2], s.count:tolist()
  local mean, var = merged(s.mean, s.var, count[2], of:mean(-1), (of - of:mean(-1, true)):square():mean(-1), n)
  s.sum, s.mean, s.var = peri.keep(sum:clone(), mean, var)
  s.count = peri.keep(peri.tensor({ count[1], count[2] + n }, "f64"))
  local each = (s.var + 1e-8):sqrt():repeat_interleave(rows // S, 1)
  return (b / each):to "f32"
end

--- What each step of a rollout with obs and final_obs is worth for where it led to; the statistics go on.
--- @param rollout perilune.Rollout
--- @return perilune.Tensor  (steps, rows)
function Distillation:bonus(rollout)
  check_rollout("RandomDistillation:bonus", rollout, #self.seeds)
  local _ <close> = peri.no_grad()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local seen = rollout:get "final_obs"
  observe(self, seen)
  local e = errors(self, prepared(self, by_learner(seen, #self.seeds)))
  return peri.keep(scaled(self, by_row(e, seen.shape[1])))
end

--- Passes over what the steps of a rollout led to, in batches of an order that is drawn.
--- @param rollout perilune.Rollout
--- @return number loss  the mean squared error of the last batch
function Distillation:learn(rollout)
  check_rollout("RandomDistillation:learn", rollout, #self.seeds)
  local S, loss = #self.seeds, nil
  local x = peri.no_grad(function () return prepared(self, by_learner(rollout:get "final_obs", S)) end)
  local n = x.shape[2]
  for _ = 1, self.epochs do
    local order = peri.randperm(n)
    for from = 1, n, self.batch do
      local scope <close> = peri.scope() -- luacheck: ignore 211
      local some = x:index_select(order:narrow(1, from, math.min(self.batch, n - from + 1)), 2)
      local each = errors(self, some):mean(-1)
      each:sum():backward()
      self.optimizer:step({ copies = S }):zero_grad()
      loss = each:mean():item()
    end
  end
  return loss
end

-- ---- checkpoints of objects that have networks, an optimizer and tensors of their own ----

local function joined(into, name, tensors)
  for key, t in pairs(tensors) do into[name .. "." .. key] = t end
end

local function of_name(tensors, name)
  local mine = {}
  for key, t in pairs(tensors) do
    if key:sub(1, #name + 1) == name .. "." then mine[key:sub(#name + 2)] = t end
  end
  return mine
end

--- @return table tensors
--- @return table plain
function Distillation:state_dict()
  local tensors, moments, plain = {}, self.optimizer:state_dict()
  joined(tensors, "net", (self.net:state_dict()))
  joined(tensors, "optimizer", moments)
  joined(tensors, "stats", self.stats)
  return tensors, plain
end

--- @param tensors table<string, perilune.Tensor>
--- @param plain table
--- @return self
function Distillation:load_state_dict(tensors, plain)
  local stats = of_name(tensors, "stats")
  for name, t in pairs(self.stats) do
    if not peri.is_tensor(stats[name]) or name ~= "sum" and options.shape(stats[name]) ~= options.shape(t) then
      options.raise(("RandomDistillation:load_state_dict: stats.%s does not fit"):format(name))
    end
  end
  self.optimizer:load_state_dict(of_name(tensors, "optimizer"), plain)
  self.net:load_state_dict(of_name(tensors, "net"))
  for name in pairs(self.stats) do self.stats[name] = peri.keep(stats[name]:clone()) end
  return self
end

-- ---- values of a bonus ----

local critic_rules = {
  obs = options.value(options.required, "table", "the environment's obs_space: one of n, or a vector"),
  seeds = options.value({ 1 }, "table", "of the initial weights, one for each learner"),
  hidden = options.value({ 64, 64 }, "table", "widths of the hidden layers"),
  lr = options.number(1e-3, "(0, inf)", "learning rate of Adam"),
  gamma = options.number(0.99, "[0, 1]", "discount of the bonus"),
  lam = options.number(0.95, "[0, 1]", "of the traces"),
  episodic = options.boolean(false, "the bonus ends with an episode that terminates; false: what comes after counts"),
  epochs = options.integer(4, "[1, inf)", "passes over a rollout"),
  minibatches = options.integer(4, "[1, inf)", "of each pass"),
}

local Critic = {}
Critic.__index, Critic.__name = Critic, "perilune.rl.BonusCritic"

--- A value of a bonus by itself, with its own discount, beside that of the rewards: their advantages are summed (Burda
--- et al. 2018, section 2.3). Where it is not episodic, what is new behind the end of an episode counts as well.
---
---     advantage = function (rollout, advantage)
---       return 2 * advantage + critic:advantage(rollout, novelty:bonus(rollout), agent.last)
---     end
---
--- @param opts table
--- @return perilune.rl.BonusCritic
function M.BonusCritic(opts)
  local self = options.fill("rl.BonusCritic", opts, critic_rules)
  local n = self.obs.n or (self.obs.shape or {})[1]
  if not n or not self.obs.n and #self.obs.shape ~= 1 then
    options.raise(("rl.BonusCritic: observations are %s, expected one of n or a vector"):format(tostring(self.obs)))
  end
  local sizes = { n, table.unpack(self.hidden) }
  sizes[#sizes + 1] = 1
  self.net = nn.Copies(#self.seeds, function () return nn.MLP(sizes, { activation = "tanh" }) end,
    { seeds = self.seeds })
  self.optimizer = optim.Adam(self.net:parameters(), { lr = self.lr })
  self.value = function (x)
    x = self.obs.n and x:one_hot(self.obs.n):to "f32" or x:to "f32"
    return self.net(x):squeeze(-1)
  end
  return setmetatable(self, Critic)
end
options.declare(M.BonusCritic, {}, critic_rules)

--- Advantages of a bonus over a rollout with obs, terminated and truncated (and final_obs where it is episodic), and
--- passes in which the values learn its returns.
--- @param rollout perilune.Rollout
--- @param bonus perilune.Tensor  (steps, rows)
--- @param last perilune.Tensor  (rows, ...) the observations behind the last step
--- @return perilune.Tensor  (steps, rows)
function Critic:advantage(rollout, bonus, last)
  local who, S = "BonusCritic:advantage", #self.seeds
  check_rollout(who, rollout, S)
  options.argument(who, "bonus", bonus, "tensor")
  options.argument(who, "last", last, "tensor")
  local obs = rollout:get "obs"
  local steps, rows = obs.shape[1], obs.shape[2]
  if options.shape(bonus) ~= options.shape { steps, rows } then
    options.raise(("%s: bonus has shape %s, expected %s"):format(who, options.shape(bonus),
      options.shape { steps, rows }))
  end
  local now = gae.values(who, obs, self.value, S)
  local behind = gae.values(who, last:unsqueeze(1), self.value, S)
  local after = steps > 1 and peri.cat({ now:narrow(1, 2, steps - 1), behind }, 1) or behind
  local terminated, truncated = peri.zeros({ steps, rows }, "bool"), peri.zeros({ steps, rows }, "bool")
  if self.episodic then
    terminated, truncated = rollout:get "terminated", rollout:get "truncated"
    after = peri.where(truncated, gae.values(who, rollout:get "final_obs", self.value, S), after)
  end
  local function turned(t) return t:transpose(1, 2) end
  local advantage, returns = peri.gae(turned(bonus), turned(now), turned(after), turned(terminated), turned(truncated),
    { gamma = self.gamma, lam = self.lam })
  local x, y = by_learner(obs, S), by_learner(turned(returns), S)
  local n = x.shape[2]
  local size = math.max(1, n // self.minibatches)
  for _ = 1, self.epochs do
    local order = peri.randperm(n)
    for i = 1, self.minibatches do
      local scope <close> = peri.scope() -- luacheck: ignore 211
      local at = order:narrow(1, (i - 1) * size + 1, size)
      local loss = (self.value(x:index_select(at, 2)) - y:index_select(at, 2)):square():mean(-1)
      loss:sum():backward()
      self.optimizer:step({ copies = S, clip = 0.5 }):zero_grad()
    end
  end
  return turned(advantage)
end

--- @return table tensors
--- @return table plain
function Critic:state_dict()
  local tensors, moments, plain = {}, self.optimizer:state_dict()
  joined(tensors, "net", (self.net:state_dict()))
  joined(tensors, "optimizer", moments)
  return tensors, plain
end

--- @param tensors table<string, perilune.Tensor>
--- @param plain table
--- @return self
function Critic:load_state_dict(tensors, plain)
  self.optimizer:load_state_dict(of_name(tensors, "optimizer"), plain)
  self.net:load_state_dict(of_name(tensors, "net"))
  return self
end

return M
