-- tasks.lua - losses of several tasks that share parameters: what each counts for, and gradients that are in each
-- other's way.

local peri = require "perilune"
local options = require "perilune.options"

local M = {}

local rules = {
  tasks = options.integer(options.required, "[1, inf)", "how many"),
  rule = options.choice("fixed", { "fixed", "uncertainty", "gradnorm" }, "how weights follow the losses"),
  weights = options.value(options.none, "table", "a number for each task to begin with; default: 1"),
  lr = options.number(0.025, "(0, inf)", "step size of weights that follow"),
  alpha = options.number(1.5, "[0, inf)", "of gradnorm: how much more a task counts that lags behind"),
}

--- Weights of the losses of several tasks.
--- @class perilune.optim.TaskWeights
--- @field weights number[]
local TaskWeights = {}
TaskWeights.__index = TaskWeights
TaskWeights.__name = "perilune.optim.TaskWeights"

--- Weights for the losses of several tasks on shared parameters: sum_i w_i L_i.
--- - fixed: they stay.
--- - uncertainty: w_i = exp(-s_i), and s_i descends exp(-s_i) L_i + s_i / 2, the logarithm of a task's variance learned
---   with the rest (Kendall, Gal and Cipolla 2018, section 3.2, equation 10). They settle at 1 / (2 L_i).
--- - gradnorm: w_i moves so that w_i |grad L_i| comes to the mean of all, times (its share of progress left)^alpha
---   (Chen et al. 2018, equations 1 and 2, in units of the mean norm); they add up to what they began with.
---
---     local balance = optim.task_weights { tasks = 2, rule = "gradnorm" }
---     balance:update({ loss_a, loss_b }, { norm_a, norm_b })    -- numbers; norms of the shared parameters' gradients
---     local w = balance.weights
---
--- @param opts table
--- @return perilune.optim.TaskWeights
function M.task_weights(opts)
  local o = options.fill("task_weights", opts, rules)
  local self = setmetatable({ n = o.tasks, rule = o.rule, lr = o.lr, alpha = o.alpha }, TaskWeights)
  self.weights, self.total = {}, 0
  if o.weights and #o.weights ~= o.tasks then
    options.raise(("task_weights: %d weights for %d tasks"):format(#o.weights, o.tasks))
  end
  for i = 1, o.tasks do
    local w = o.weights and o.weights[i] or 1
    local range = o.rule == "fixed" and "[0, inf)" or "(0, inf)"
    local problem = options.problem("weight " .. i, w, options.number(1, range))
    if problem then options.raise("task_weights: " .. problem) end
    self.weights[i], self.total = w, self.total + w
  end
  return self
end
options.declare(M.task_weights, {}, rules)

local function want(self, name, list)
  if type(list) ~= "table" or #list ~= self.n then
    options.raise(("task_weights:update: %s has %s entries, expected %d"):format(name,
      type(list) == "table" and #list or "no", self.n))
  end
  for i = 1, self.n do
    local x = list[i]
    if type(x) ~= "number" or x ~= x or x < 0 and name == "norms" or math.abs(x) == math.huge then
      options.raise(("task_weights:update: %s %d is %s, expected a finite number"):format(name, i, tostring(x)))
    end
  end
end

--- What the losses were, and the norms of their gradients without weights, which gradnorm needs: the weights follow.
--- @param losses number[]
--- @param norms number[]?
--- @return number[] weights
function TaskWeights:update(losses, norms)
  want(self, "losses", losses)
  local w = self.weights
  if self.rule == "uncertainty" then
    for i = 1, self.n do -- s = -log w; d/ds of exp(-s) L + s / 2
      w[i] = w[i] * math.exp(self.lr * (0.5 - w[i] * losses[i]))
    end
  elseif self.rule == "gradnorm" then
    want(self, "norms", norms)
    self.first = self.first or table.move(losses, 1, self.n, 1, {})
    local mean, left, sum = 0, 0, 0
    for i = 1, self.n do
      mean, left = mean + w[i] * norms[i] / self.n, left + losses[i] / math.max(self.first[i], 1e-12) / self.n
    end
    if mean > 0 and left > 0 then
      for i = 1, self.n do
        local target = mean * (losses[i] / math.max(self.first[i], 1e-12) / left) ^ self.alpha
        local over = w[i] * norms[i] - target
        local sign = over > 0 and 1 or over < 0 and -1 or 0
        w[i] = math.max(w[i] - self.lr * sign * norms[i] / mean, 1e-3)
        sum = sum + w[i]
      end
      for i = 1, self.n do w[i] = w[i] * self.total / sum end
    end
  end
  return w
end

--- Where they stand, for a run.
--- @return table
function TaskWeights:state()
  return { weights = table.move(self.weights, 1, self.n, 1, {}),
    first = self.first and table.move(self.first, 1, self.n, 1, {}) }
end

--- @param s table  of state()
function TaskWeights:set_state(s)
  if type(s) ~= "table" or type(s.weights) ~= "table" or #s.weights ~= self.n then
    options.raise(("task_weights:set_state: the state is of %s tasks, these are %d"):format(
      type(s) == "table" and type(s.weights) == "table" and #s.weights or "no", self.n))
  end
  self.weights = table.move(s.weights, 1, self.n, 1, {})
  self.first = s.first and table.move(s.first, 1, self.n, 1, {})
end

--- Gradients of several tasks as one, without what they do to each other: each loses its part along every other one
--- that it has a negative product with, in an order that is drawn, and what is left is added up (PCGrad; Yu et al.
--- 2020, algorithm 1). Two that do not conflict are added.
--- @param gradients perilune.Tensor[]  vectors (n), one for each task
--- @param rng perilune.Rng?  of the order, where there are more than two; default: as listed
--- @return perilune.Tensor  (n)
function M.pcgrad(gradients, rng)
  options.argument("pcgrad", "gradients", gradients, "table")
  local n = #gradients
  if n == 0 then options.raise "pcgrad: no gradients" end
  for i, g in ipairs(gradients) do
    options.argument("pcgrad", "gradient " .. i, g, "tensor")
    if options.shape(g) ~= options.shape(gradients[1]) then
      options.raise(("pcgrad: gradient %d has shape %s, the first %s"):format(i, options.shape(g),
        options.shape(gradients[1])))
    end
  end
  local _ <close> = peri.no_grad()
  local total
  for i, g in ipairs(gradients) do
    local order = {}
    for j = 1, n do if j ~= i then order[#order + 1] = j end end
    if rng and n > 2 then rng:shuffle(order) end
    for _, j in ipairs(order) do
      local other = gradients[j]
      local product = g:mul(other):sum():item()
      if product < 0 then g = g - other * (product / other:square():sum():item()) end
    end
    total = total and total + g or g
  end
  return total
end
options.declare(M.pcgrad, { "gradients", "rng" }, {})

return M
