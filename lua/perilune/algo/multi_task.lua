-- multi_task.lua - several tasks on one network as a stepper: a batch of each task in every update, weights of their
-- losses that are fixed or follow, and gradients that may be kept out of each other's way.
local peri = require "perilune"
local options = require "perilune.options"
local optim = require "perilune.optim"
local params = require "perilune.optim.params"
local trainer = require "perilune.algo.trainer"

local Stepper = trainer.class("multi_task", { parts = { "balance", "rng" } })

local M = {}

local rules = {
  tasks = options.value(options.required, "table", "a list of { name = , loss = function () -> loss of a batch of "
    .. "its own, weight = 1 }"),
  shared = options.value(options.required, "any", "the parameters that all tasks use: a module, or a list"),
  optimizer = trainer.common.optimizer, schedule = trainer.common.schedule, clip_norm = trainer.common.clip_norm,
  weighting = options.choice("fixed", { "fixed", "uncertainty", "gradnorm" }, "of the losses, see optim.task_weights"),
  weight_lr = options.number(0.025, "(0, inf)", "step size of weights that follow"),
  alpha = options.number(1.5, "[0, inf)", "of gradnorm"),
  surgery = options.boolean(false, "gradients lose what is against those of other tasks (optim.pcgrad)"),
  seed = options.integer(1, nil, "of the order of surgery"),
}

local function refuse(...) options.raise("multi_task: " .. string.format(...)) end

local task_rules = {
  name = options.value(options.required, "string"), loss = options.value(options.required, "callable"),
  weight = options.number(1, "[0, inf)"),
}

local function read_tasks(given)
  local tasks, weights, seen = {}, {}, {}
  for i, task in ipairs(given) do
    tasks[i] = options.fill("multi_task: task " .. i, task, task_rules)
    if seen[task.name] then refuse("two tasks are called %q", task.name) end
    seen[task.name], weights[i] = true, tasks[i].weight
  end
  if #tasks == 0 then refuse "there are no tasks" end
  return tasks, weights
end

--- Several tasks on shared parameters as a stepper: each :step() takes a batch of every task, weighs the losses and
--- updates once. With one task it is plain training.
---
---     local stepper = algo.multi_task.new { shared = net.encoder, optimizer = opt, tasks = {
---       { name = "sums", loss = function () return loss_of("sums") end },
---       { name = "code", loss = function () return loss_of("code") end } } }
---
--- @param opts table
--- @return table stepper  :step() -> metrics; :state(), :set_state(s) for checkpoints
function M.new(opts)
  local self = trainer.new(Stepper, opts, rules)
  local weights
  self.tasks, weights = read_tasks(self.tasks)
  self.balance = optim.task_weights { tasks = #self.tasks, rule = self.weighting, weights = weights,
    lr = self.weight_lr, alpha = self.alpha }
  self.rng = peri.rng(self.seed)
  local mine, any = {}, false
  for _, p in ipairs(self.optimizer:parameters()) do mine[p] = true end
  self._shared = {}
  for i, p in ipairs(params.list("multi_task: shared", self.shared)) do
    if p.requires_grad and not mine[p] then
      refuse("shared parameter %d takes gradients and is not the optimizer's", i)
    end
    self._shared[p], any = true, any or p.requires_grad
  end
  if not any and (self.weighting == "gradnorm" or self.surgery) then
    refuse("no shared parameter takes gradients, and %s needs theirs", self.surgery and "surgery" or "gradnorm")
  end
  return self
end
options.declare(M.new, {}, rules)

local function loss_of(task)
  local loss = task.loss()
  if not peri.is_tensor(loss) or loss:numel() ~= 1 or not loss.requires_grad then
    refuse("the loss of %q is %s, expected a tensor of one element that takes part in a graph", task.name,
      peri.is_tensor(loss) and "of shape " .. options.shape(loss) or "a " .. type(loss))
  end
  return loss:reshape {}
end

-- A gradient of shared parameters as a vector, 0 where there is none.
local function vector(list, grads)
  local rows = {}
  for i, p in ipairs(list) do rows[i] = (grads[p] or peri.zeros_like(p)):reshape { -1 } end
  return #rows > 0 and peri.cat(rows) or nil
end

-- Mean cosine between the tasks' gradients; nil of one task, or where one is 0.
local function cosine(vectors, norms)
  local sum, n = 0, 0
  for i = 1, #vectors do
    for j = i + 1, #vectors do
      if norms[i] > 0 and norms[j] > 0 then
        sum, n = sum + vectors[i]:mul(vectors[j]):sum():item() / (norms[i] * norms[j]), n + 1
      end
    end
  end
  return n > 0 and sum / n or nil
end

--- @return table metrics  step, loss (weighted), learning_rate, grad_norm, cosine (mean, between gradients of the
--- shared parameters: below 0 tasks are in each other's way), and of each task loss_NAME, weight_NAME
function Stepper:step()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local turn <close> = self:begin() -- luacheck: ignore 211
  local list, shared = {}, {}
  for _, p in ipairs(self.optimizer:parameters()) do
    if p.requires_grad then
      list[#list + 1] = p
      if self._shared[p] then shared[#shared + 1] = p end
    end
  end
  local w, metrics, losses, norms, vectors, sums = self.balance.weights, { loss = 0 }, {}, {}, {}, {}
  for i, task in ipairs(self.tasks) do
    local loss, grads = loss_of(task), {}
    for k, g in pairs(peri.grad(loss, list)) do grads[list[k]] = g end
    losses[i], vectors[i] = loss:item(), vector(shared, grads)
    norms[i] = vectors[i] and vectors[i]:square():sum():sqrt():item() or 0
    for p, g in pairs(grads) do
      local part = g * w[i]
      sums[p] = sums[p] and sums[p] + part or part
    end
    metrics.loss = metrics.loss + w[i] * losses[i]
    metrics["loss_" .. task.name], metrics["weight_" .. task.name] = losses[i], w[i]
  end
  metrics.cosine = cosine(vectors, norms)
  if self.surgery then
    local scaled = {}
    for i, v in ipairs(vectors) do scaled[i] = v * w[i] end
    local total, at = optim.pcgrad(scaled, self.rng), 1
    for _, p in ipairs(shared) do
      sums[p] = total:narrow(1, at, p:numel()):reshape(p.shape):contiguous()
      at = at + p:numel()
    end
  end
  for p, g in pairs(sums) do p.grad = g end
  self:update(metrics)
  self.balance:update(losses, norms)
  return metrics
end

return require "perilune.names"(M, "perilune.algo.multi_task")
