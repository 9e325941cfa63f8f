-- optim - optimizers over the fused list ops: one call of C moves every tensor of a group.
--   local opt = optim.AdamW(net, { lr = 3e-4 })
--   loss:backward(); opt:step { lr = schedule(step), clip = 1 }:zero_grad()
-- Parameters are a module, a published model, an adapter, named_parameters() of one, a list of tensors or
-- of any of these. Some of them have options of their own by name, or by what they are:
--   optim.AdamW(net, { lr = 3e-4, weight_decay = 0.1, groups = {
--     { pattern = { "norm", "%.bias$" }, weight_decay = 0 }, { pattern = "^critic", lr_scale = 10 } } })
-- or as a list of groups { params = ..., lr = ..., ... }. A group's lr keeps its ratio to the common one when
-- a schedule moves that; lr_scale = 10 says the ratio itself.
-- A tensor that can never get a gradient, and one that is given twice, are refused. A frozen parameter waits.

local peri = require "perilune"
local options = require "perilune.options"
local average = require "perilune.optim.average"
local optimizer = require "perilune.optim.optimizer"
local choice = require "perilune.optim.choice"
local clip = require "perilune.optim.clip"
local params = require "perilune.optim.params"
local flat = require "perilune.optim.flat"
local curvature = require "perilune.optim.curvature"
local tasks = require "perilune.optim.tasks"

local M = { flatten = flat.flatten, flatten_grads = flat.flatten_grads, unflatten = flat.unflatten,
  assign_ = flat.assign_, curvature = curvature.curvature, conjugate_gradient = curvature.conjugate_gradient,
  Optimizer = optimizer.Optimizer, clip_grad_norm_ = clip.clip_grad_norm_,
  clip_grad_value_ = clip.clip_grad_value_, ema_ = average.ema_, average_ = average.average_,
  adapt = require("perilune.optim.adapt").adapt, pcgrad = tasks.pcgrad, task_weights = tasks.task_weights }

-- ---- rules that several share ----

local function rate(default) return options.number(default, "[0, inf)", "learning rate") end
local function share(default, doc) return options.number(default, "[0, 1)", doc) end
local function decay(default, doc) return options.number(default, "[0, inf)", doc) end
local function epsilon(default) return options.number(default, "[0, inf)", "added to the root of the second moment") end

local function declare(fn, kind) return options.declare(fn, { "params" }, optimizer.rules(kind)) end

-- ---- SGD ----

local sgd = {
  name = "SGD",
  takes_scale = true,
  rules = {
    lr = rate(options.required),
    momentum = share(0, "of the step before that goes on"),
    dampening = options.number(0, "[0, 1]", "share of a new gradient that is left out of the momentum"),
    weight_decay = decay(0, "times the parameter, added to its gradient"),
    nesterov = options.boolean(false, "look ahead along the momentum"),
  },
  slots = function(o) return o.momentum ~= 0 and { "buf" } or {} end,
  check = function(o)
    if o.nesterov and (o.momentum == 0 or o.dampening ~= 0) then
      return ("nesterov needs momentum above 0 and dampening 0, given %g and %g"):format(o.momentum, o.dampening)
    end
  end,
  run = function(o, l, lr, step, scale)
    peri.sgd_(l.params, l.grads, l.buf or {}, lr, { momentum = o.momentum, dampening = o.dampening,
      weight_decay = o.weight_decay, nesterov = o.nesterov, first = step == 1, grad_scale = scale })
  end,
}

--- Gradient descent with momentum (Polyak 1964; Nesterov's as in Sutskever et al. 2013), as torch.optim.SGD.
--- g += weight_decay p; b = momentum b + (1 - dampening) g, b = g at first; p -= lr b, with nesterov
--- p -= lr (g + momentum b).
--- @param params any  a module, named parameters, a list of these and of tensors, or groups
--- @param given table
--- @return perilune.optim.Optimizer
function M.SGD(params, given) -- luacheck: ignore 431
  local opt = optimizer.new(sgd, params, given)
  return opt
end
declare(M.SGD, sgd)

-- ---- Adam, AdamW, LAMB ----

local function adam(name, op, weight_decay, decay_doc, eps)
  return {
    name = name,
    takes_scale = true,
    rules = {
      lr = rate(1e-3),
      betas = options.numbers({ 0.9, 0.999 }, 2, "[0, 1)", "of the running means of g and g^2"),
      eps = epsilon(eps),
      weight_decay = decay(weight_decay, decay_doc),
    },
    slots = function() return { "m", "v" } end,
    run = function(o, l, lr, step, scale)
      peri[op](l.params, l.grads, l.m, l.v, lr, o.betas[1], o.betas[2], o.eps, o.weight_decay, step, scale)
    end,
  }
end

local plain_adam = adam("Adam", "adam_", 0, "times the parameter, added to its gradient", 1e-8)

--- Adam (Kingma and Ba 2015), as torch.optim.Adam. g += weight_decay p; m and v are running means of g and
--- g^2; p -= lr m' / (sqrt(v') + eps), where m' = m / (1 - beta1^t) and v' = v / (1 - beta2^t).
--- @param params any  a module, named parameters, a list of these and of tensors, or groups
--- @param given table?
--- @return perilune.optim.Optimizer
function M.Adam(params, given) -- luacheck: ignore 431
  local opt = optimizer.new(plain_adam, params, given)
  return opt
end
declare(M.Adam, plain_adam)

local adamw = adam("AdamW", "adamw_", 0.01, "times lr, the share that a parameter loses at each step", 1e-8)

--- Adam with decoupled weight decay (Loshchilov and Hutter 2019), as torch.optim.AdamW.
--- p *= 1 - lr weight_decay, then Adam's step without decay.
--- @param params any  a module, named parameters, a list of these and of tensors, or groups
--- @param given table?
--- @return perilune.optim.Optimizer
function M.AdamW(params, given) -- luacheck: ignore 431
  local opt = optimizer.new(adamw, params, given)
  return opt
end
declare(M.AdamW, adamw)

local lamb = adam("Lamb", "lamb_", 0.01, "times the parameter, added to its direction", 1e-6)
lamb.takes_scale = false -- it clips by the norm of all gradients on its own
lamb.rules.max_grad_norm = options.number(1, "[0, inf)", "of a group's gradients together; 0 = no limit")
lamb.run = function(o, l, lr, step)
  peri.lamb_(l.params, l.grads, l.m, l.v, lr, { beta1 = o.betas[1], beta2 = o.betas[2], eps = o.eps,
    weight_decay = o.weight_decay, step = step, max_grad_norm = o.max_grad_norm })
end

--- LAMB, for large batches (You et al. 2020), as apex's reference. u = m' / (sqrt(v') + eps) + weight_decay p
--- with Adam's m' and v'; p -= lr |p| / |u| u, norms by tensor. It clips on its own: step takes no clip.
--- @param params any  a module, named parameters, a list of these and of tensors, or groups
--- @param given table?
--- @return perilune.optim.Optimizer
function M.Lamb(params, given) -- luacheck: ignore 431
  local opt = optimizer.new(lamb, params, given)
  return opt
end
declare(M.Lamb, lamb)

-- ---- RMSprop ----

local rmsprop = {
  name = "RMSprop",
  takes_scale = true,
  rules = {
    lr = rate(1e-2),
    alpha = share(0.99, "of the running mean of g^2"),
    eps = epsilon(1e-8),
    weight_decay = decay(0, "times the parameter, added to its gradient"),
    momentum = share(0, "of the step before that goes on"),
  },
  slots = function(o) return o.momentum ~= 0 and { "sq", "buf" } or { "sq" } end,
  run = function(o, l, lr, _, scale)
    peri.rmsprop_(l.params, l.grads, l.sq, l.buf or {}, lr, { alpha = o.alpha, eps = o.eps,
      weight_decay = o.weight_decay, momentum = o.momentum, grad_scale = scale })
  end,
}

--- RMSprop (Tieleman and Hinton 2012), as torch.optim.RMSprop. g += weight_decay p; s is a running mean of
--- g^2; u = g / (sqrt(s) + eps); b = momentum b + u; p -= lr b.
--- @param params any  a module, named parameters, a list of these and of tensors, or groups
--- @param given table?
--- @return perilune.optim.Optimizer
function M.RMSprop(params, given) -- luacheck: ignore 431
  local opt = optimizer.new(rmsprop, params, given)
  return opt
end
declare(M.RMSprop, rmsprop)

-- ---- Muon ----

local muon = {
  name = "Muon",
  takes_scale = true,
  rules = {
    lr = rate(0.02),
    momentum = share(0.95, "of the step before that goes on"),
    nesterov = options.boolean(true, "look ahead along the momentum"),
    weight_decay = decay(0, "times lr, the share that a parameter loses at each step"),
    steps = options.integer(5, "[1, 100]", "of Newton and Schulz"),
  },
  slots = function() return { "buf" } end,
  check_tensor = function(p)
    if p.ndim ~= 2 then return ("has %d dims, expected a matrix: give the others to AdamW"):format(p.ndim) end
  end,
  run = function(o, l, lr, _, scale)
    peri.muon_(l.params, l.grads, l.buf, lr, { momentum = o.momentum, nesterov = o.nesterov,
      weight_decay = o.weight_decay, steps = o.steps, grad_scale = scale })
  end,
}

--- Muon, for the matrices of hidden layers (Jordan et al. 2024). Momentum, then each matrix's direction is
--- made near-orthogonal by Newton-Schulz steps. Embeddings, norms and biases belong to AdamW.
--- @param params any  a module, named parameters, a list of these and of tensors, or groups; matrices alone
--- @param given table?
--- @return perilune.optim.Optimizer
function M.Muon(params, given) -- luacheck: ignore 431
  local opt = optimizer.new(muon, params, given)
  return opt
end
declare(M.Muon, muon)

-- ---- groups ----

local groups_rules = { weight_decay = options.number(options.required, "[0, inf)", "of matrices") }

--- Groups for an optimizer: decay for matrices, none for norms and biases (tensors of fewer than two dims).
--- @param params any  a module, named parameters, or a list of these and of tensors
--- @param weight_decay number
--- @return table[]
function M.decay_groups(params_of, weight_decay)
  local o = options.read("decay_groups", { "weight_decay" }, groups_rules, 3, weight_decay)
  local decayed, plain = {}, {}
  for _, p in ipairs(params.list("decay_groups", params_of)) do
    local list = p.ndim >= 2 and decayed or plain
    list[#list + 1] = p
  end
  return { { params = decayed, weight_decay = o.weight_decay }, { params = plain, weight_decay = 0 } }
end
options.declare(M.decay_groups, { "params", "weight_decay" }, groups_rules)

local split_rules = choice.rules

--- Parameters of two kinds, for an optimizer each: those that a pattern, a function or both of them mean, and the
--- others, as lists { { name, tensor }, ... } that every optimizer takes.
---   local hidden, rest = optim.split(net, { pattern = "^layers", where = function(_, p) return p.ndim == 2 end })
---   local muon, adam = optim.Muon(hidden), optim.AdamW(rest)
--- @param params any  a module, named parameters, or a list of these and of tensors
--- @param how table
--- @return table[] meant
--- @return table[] others
function M.split(params_of, how)
  local o = options.fill("split", how, split_rules)
  local meant, others = params.split("split", params_of, o)
  return meant, others
end
options.declare(M.split, { "params" }, split_rules)

return require "perilune.names"(M, "perilune.optim")
