-- optim.lua - optimizers over the fused list ops: one call of C moves every tensor of a group.
--   local opt = optim.AdamW(net:parameters(), { lr = 3e-4 })
--   loss:backward(); opt:step { lr = schedule(step), clip = 1 }:zero_grad()
-- Parameters are a list of tensors, a module, or a list of groups { params = ..., lr = ..., ... }
-- whose own options replace the common ones.

local peri = require "perilune"
local options = require "perilune.options"
local Module = require "perilune.nn.module"

local M = {}

-- What each optimizer is: options, the tensors that it keeps for each parameter, and one step over
-- lists of parameters that have all taken the same number of steps before.
local kinds = {
  SGD = {
    defaults = { lr = options.required, momentum = 0, dampening = 0, weight_decay = 0, nesterov = false },
    slots = function(o) return o.momentum ~= 0 and { "buf" } or {} end,
    run = function(o, l, lr, step, scale)
      peri.sgd_(l.params, l.grads, l.buf or {}, lr, { momentum = o.momentum, dampening = o.dampening,
        weight_decay = o.weight_decay, nesterov = o.nesterov, first = step == 1, grad_scale = scale })
    end,
  },
  RMSprop = {
    defaults = { lr = 1e-2, alpha = 0.99, eps = 1e-8, weight_decay = 0, momentum = 0 },
    slots = function(o) return o.momentum ~= 0 and { "sq", "buf" } or { "sq" } end,
    run = function(o, l, lr, _, scale)
      peri.rmsprop_(l.params, l.grads, l.sq, l.buf or {}, lr, { alpha = o.alpha, eps = o.eps,
        weight_decay = o.weight_decay, momentum = o.momentum, grad_scale = scale })
    end,
  },
  Muon = {
    defaults = { lr = 0.02, momentum = 0.95, nesterov = true, weight_decay = 0, steps = 5 },
    slots = function() return { "buf" } end,
    check = function(p)
      if p.ndim ~= 2 then return ("%d dims, expected a matrix: give the others to AdamW"):format(p.ndim) end
    end,
    run = function(o, l, lr, _, scale)
      peri.muon_(l.params, l.grads, l.buf, lr, { momentum = o.momentum, nesterov = o.nesterov,
        weight_decay = o.weight_decay, steps = o.steps, grad_scale = scale })
    end,
  },
}

local function adam(op, weight_decay, eps)
  return {
    defaults = { lr = 1e-3, betas = { 0.9, 0.999 }, eps = eps, weight_decay = weight_decay },
    slots = function() return { "m", "v" } end,
    run = function(o, l, lr, step, scale)
      peri[op](l.params, l.grads, l.m, l.v, lr, { beta1 = o.betas[1], beta2 = o.betas[2], eps = o.eps,
        weight_decay = o.weight_decay, step = step, grad_scale = scale })
    end,
  }
end
kinds.Adam, kinds.AdamW = adam("adam_", 0, 1e-8), adam("adamw_", 0.01, 1e-8)

-- LAMB clips by the norm of all gradients on its own (max_grad_norm), so it takes no scale.
kinds.Lamb = adam("lamb_", 0.01, 1e-6)
kinds.Lamb.defaults.max_grad_norm = 1
kinds.Lamb.run = function(o, l, lr, step, scale)
  if scale ~= 1 then error("Lamb: clips by its own max_grad_norm; step takes no clip or grad_scale", 4) end
  peri.lamb_(l.params, l.grads, l.m, l.v, lr, { beta1 = o.betas[1], beta2 = o.betas[2], eps = o.eps,
    weight_decay = o.weight_decay, step = step, max_grad_norm = o.max_grad_norm })
end

--- @class perilune.optim.Optimizer
--- @field lr number  of the last step
--- @field grad_norm number?  of the last step with clip, before clipping
--- @field skipped integer  steps left out because the norm was not finite
local Optimizer = {}
Optimizer.__index = Optimizer

local function open_group(kind, name, given, common, index)
  local own = {}
  for k, v in pairs(common) do own[k] = v end
  for k, v in pairs(given) do
    if k ~= "params" then
      if kind.defaults[k] == nil then
        error(("%s: group %d: %s"):format(name, index,
          options.unknown("option", k, options.names(kind.defaults))), 4)
      end
      own[k] = v
    end
  end
  local params = given.params
  if Module.is_module(params) then params = params:parameters() end
  if type(params) ~= "table" then
    error(("%s: parameters are a %s, expected a list of tensors or a module"):format(name, type(params)), 4)
  end
  local group = { options = own, params = {}, state = {}, steps = {}, slots = kind.slots(own) }
  for i, p in ipairs(params) do
    if not Module.is_tensor(p) then
      error(("%s: parameter %d is a %s, expected a tensor"):format(name, i, type(p)), 4)
    end
    local problem = kind.check and kind.check(p)
    if problem then error(("%s: parameter %d has %s"):format(name, i, problem), 4) end
    group.params[i], group.state[i], group.steps[i] = p, {}, 0
  end
  return group
end

local function new(name, params, given)
  local kind = kinds[name]
  local o = options.fill(name, given, kind.defaults, 4)
  local self = setmetatable({ name = name, lr = o.lr, skipped = 0, groups = {}, _kind = kind }, Optimizer)
  local list = params
  if Module.is_module(params) or type(params) ~= "table" or type(params[1]) ~= "table" then
    list = { { params = params } }
  end
  local n = 0
  for i, g in ipairs(list) do
    self.groups[i] = open_group(kind, name, g, o, i)
    self.groups[i].lr_factor = o.lr ~= 0 and self.groups[i].options.lr / o.lr or 1
    n = n + #self.groups[i].params
  end
  if n == 0 then error(name .. ": no parameters", 3) end
  return self
end

for name in pairs(kinds) do
  M[name] = function(params, given) return new(name, params, given) end
end

--- Every parameter of every group, in order.
--- @return perilune.Tensor[]
function Optimizer:parameters()
  local list = {}
  for _, g in ipairs(self.groups) do table.move(g.params, 1, #g.params, #list + 1, list) end
  return list
end

-- The moments of parameter i, made at its first step; they outlive every scope.
local function slots_of(group, i)
  local state = group.state[i]
  for _, slot in ipairs(group.slots) do
    if not state[slot] then state[slot] = peri.keep(peri.zeros_like(group.params[i])) end
  end
  return state
end

-- Lists for the fused op, one for each number of steps taken and dtype: usually just one.
local function batches(group)
  local list, by_key = {}, {}
  for i, p in ipairs(group.params) do
    local grad = p.grad
    if grad then
      local step = group.steps[i] + 1
      local key = step .. p.dtype
      local b = by_key[key]
      if not b then
        b = { step = step, params = {}, grads = {}, index = {} }
        for _, slot in ipairs(group.slots) do b[slot] = {} end
        by_key[key], list[#list + 1] = b, b
      end
      local at, state = #b.params + 1, slots_of(group, i)
      b.params[at], b.grads[at], b.index[at] = p, grad, i
      for _, slot in ipairs(group.slots) do b[slot][at] = state[slot] end
    end
  end
  return list
end

--- Euclidean norm of all gradients together; 0 when there are none.
--- @return number
function Optimizer:norm()
  local grads = {}
  for _, p in ipairs(self:parameters()) do grads[#grads + 1] = p.grad end
  if #grads == 0 then return 0 end
  local scope <close> = peri.scope() -- luacheck: ignore 211
  return peri.global_norm(grads):item()
end

--- Move every parameter that has a gradient. Options: lr (of the first group's options; groups with
--- a rate of their own keep the ratio), clip (largest norm of all gradients), grad_scale (1, on the
--- gradients, before clip). With clip, a norm that is not finite skips the step.
--- @param opts table?
--- @return self
function Optimizer:step(opts)
  local o = options.fill("step", opts, { lr = options.none, clip = options.none, grad_scale = 1 }, 3)
  local scale = o.grad_scale
  self.lr = o.lr or self.lr
  local _ <close> = peri.no_grad()
  if o.clip then
    self.grad_norm = self:norm() * math.abs(scale)
    if self.grad_norm ~= self.grad_norm or self.grad_norm == math.huge then
      self.skipped = self.skipped + 1
      return self
    end
    if self.grad_norm > o.clip then scale = scale * o.clip / (self.grad_norm + 1e-6) end
  end
  for _, group in ipairs(self.groups) do
    for _, b in ipairs(batches(group)) do
      self._kind.run(group.options, b, self.lr * group.lr_factor, b.step, scale)
      for _, i in ipairs(b.index) do group.steps[i] = b.step end
    end
  end
  return self
end

--- @return self
function Optimizer:zero_grad()
  for _, g in ipairs(self.groups) do
    for _, p in ipairs(g.params) do p:zero_grad() end
  end
  return self
end

--- What a checkpoint keeps: tensors by name ("0.m": parameters count from 0), and a plain table.
--- @return table<string, perilune.Tensor>
--- @return table
function Optimizer:state_dict()
  local tensors, steps, n = {}, {}, 0
  for _, g in ipairs(self.groups) do
    for i in ipairs(g.params) do
      for slot, t in pairs(g.state[i]) do tensors[n .. "." .. slot] = t end
      n = n + 1
      steps[n] = g.steps[i]
    end
  end
  return tensors, { name = self.name, lr = self.lr, steps = steps, skipped = self.skipped }
end

--- @param tensors table<string, perilune.Tensor>
--- @param plain table
--- @return self
function Optimizer:load_state_dict(tensors, plain)
  local count = #self:parameters()
  if plain.name ~= self.name or #plain.steps ~= count then
    error(("load_state_dict: state of %s for %d parameters, expected %s for %d"):format(
      tostring(plain.name), #plain.steps, self.name, count), 2)
  end
  local n, missing = 0, {}
  for _, g in ipairs(self.groups) do
    for _ = 1, #g.params do
      for _, slot in ipairs(plain.steps[n + 1] > 0 and g.slots or {}) do
        local key = n .. "." .. slot
        if not tensors[key] then missing[#missing + 1] = key end
      end
      n = n + 1
    end
  end
  if #missing > 0 then error("load_state_dict: missing " .. table.concat(missing, ", "), 2) end
  n = 0
  for _, g in ipairs(self.groups) do
    for i in ipairs(g.params) do
      n = n + 1
      g.steps[i] = plain.steps[n]
      if g.steps[i] > 0 then
        local state = slots_of(g, i)
        for _, slot in ipairs(g.slots) do state[slot]:copy_(tensors[(n - 1) .. "." .. slot]) end
      else
        g.state[i] = {}
      end
    end
  end
  self.lr, self.skipped = plain.lr, plain.skipped or 0
  return self
end

--- Groups of a module's parameters: decay for matrices, none for norms and biases.
--- @param module perilune.nn.Module
--- @param weight_decay number
--- @return table[]
function M.decay_groups(module, weight_decay)
  local decayed, plain = {}, {}
  for _, p in ipairs(module:parameters()) do
    local list = p.ndim >= 2 and decayed or plain
    list[#list + 1] = p
  end
  return { { params = decayed, weight_decay = weight_decay }, { params = plain, weight_decay = 0 } }
end

M.Optimizer = Optimizer
return M
