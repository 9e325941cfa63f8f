-- td.lua - temporal differences: what values are learned from, and how far they are from it.

local peri = require "perilune"
local options = require "perilune.options"

local M = {}

-- Values of chosen actions: q (..., A), action (...) -> (...)
local function taken(q, action) return q:gather(action:unsqueeze(-1), -1):squeeze(-1) end

local function want_tensors(who, list)
  for name, t in pairs(list) do options.argument(who, name, t, "tensor") end
end

local target_rules = {
  reward = options.value(options.required, "tensor", "(...), of n steps already discounted"),
  discount = options.value(options.required, "number or tensor", "of the value behind them: gamma, or (...) gamma^n"),
  terminated = options.value(options.required, "tensor", "(...), where nothing comes behind; not where truncated"),
  next_q = options.value(options.required, "tensor", "(..., actions), of the target network, at the observation "
    .. "that the step led to"),
  online_next_q = options.value(options.none, "tensor", "(..., actions), of the network: it chooses (Double DQN)"),
  mask = options.value(options.none, "tensor", "(..., actions), which of them are legal there"),
}

--- What the value of an action should be: reward + discount * max_a next_q(a), or reward alone where the episode
--- terminated (Watkins 1989; Mnih et al. 2015). With `online_next_q` the network chooses the action and the target
--- network values it: Double DQN (van Hasselt et al. 2016, eq. 4). No gradient passes.
--- @param opts table
--- @return perilune.Tensor target  (...)
--- @return perilune.Tensor value  (...), of what the step led to
function M.q_target(opts)
  local o = options.fill("rl.q_target", opts, target_rules)
  local _ <close> = peri.no_grad()
  local choose = o.online_next_q or o.next_q
  if o.mask then choose = choose:masked_fill(o.mask:logical_not(), -math.huge) end
  local value = o.online_next_q and taken(o.next_q, choose:argmax(-1)) or choose:max(-1)
  return o.reward + o.discount * value:masked_fill(o.terminated:ne(0), 0), value
end
options.declare(M.q_target, {}, target_rules)

local loss_rules = {
  loss = options.choice("huber", { "huber", "mse" }, "of a difference"),
  delta = options.number(1, "(0, inf)", "above which huber is linear"),
  weights = options.value(options.none, "tensor", "(...), of each row: a prioritised buffer's"),
}

--- How far the values of the actions that were taken are from what they should be.
--- @param q perilune.Tensor  (..., actions)
--- @param action perilune.Tensor  (...) i64
--- @param target perilune.Tensor  (...)
--- @param opts table?
--- @return perilune.Tensor loss  ()
--- @return perilune.Tensor err  (...) target - q, without a gradient: its sizes are a prioritised buffer's priorities
function M.q_loss(q, action, target, opts)
  local o = options.fill("rl.q_loss", opts, loss_rules)
  want_tensors("rl.q_loss", { q = q, action = action, target = target })
  local value = taken(q, action)
  target = target:detach()
  local each = o.loss == "mse" and (value - target):square() or value:huber(target, o.delta, "none")
  if o.weights then each = each * o.weights end
  return each:mean(), target - value:detach()
end
options.declare(M.q_loss, { "q", "action", "target" }, loss_rules)

local projection_rules = {
  reward = target_rules.reward, discount = target_rules.discount, terminated = target_rules.terminated,
  next_probs = options.value(options.required, "tensor", "(..., atoms), of the action that is taken there"),
  low = options.number(options.required, "(-inf, inf)", "return of the first atom"),
  high = options.number(options.required, "(-inf, inf)", "return of the last one"),
}

--- The distribution of reward + discount * return over the same atoms: each atom's probability goes to the two
--- next to where it lands (Bellemare et al. 2017, algorithm 1). No gradient passes.
--- @param opts table
--- @return perilune.Tensor  (..., atoms)
function M.project(opts)
  local o = options.fill("rl.project", opts, projection_rules)
  if o.low >= o.high then options.raise(("rl.project: low %g is not below high %g"):format(o.low, o.high)) end
  local _ <close> = peri.no_grad()
  local atoms = o.next_probs:size(-1)
  if atoms < 2 then options.raise(("rl.project: %d atoms, expected 2 or more"):format(atoms)) end
  local gap = (o.high - o.low) / (atoms - 1)
  local place = peri.arange(atoms):to(o.next_probs.dtype)
  local discount = type(o.discount) == "number" and o.discount or o.discount:unsqueeze(-1)
  local goes_on = o.terminated:eq(0):to(o.next_probs.dtype):unsqueeze(-1)
  local landed = (o.reward:unsqueeze(-1) + goes_on * discount * (place * gap + o.low)):clamp(o.low, o.high)
  local share = 1 - ((landed - o.low) / gap):unsqueeze(-2):sub(place:unsqueeze(-1)):abs() -- (..., to, from)
  return share:clamp { min = 0 }:matmul(o.next_probs:unsqueeze(-1)):squeeze(-1)
end
options.declare(M.project, {}, projection_rules)

--- Expected returns of categorical distributions (C51).
--- @param logits perilune.Tensor  (..., atoms)
--- @param low number  return of the first atom
--- @param high number  return of the last one
--- @return perilune.Tensor  (...)
function M.expected_return(logits, low, high)
  options.argument("rl.expected_return", "logits", logits, "tensor")
  local atoms = logits:size(-1)
  return logits:softmax(-1):mul(peri.arange(atoms):to(logits.dtype) * ((high - low) / (atoms - 1)) + low):sum(-1)
end

--- Cross-entropy of the distributions of the actions that were taken to what they should be, which is the loss of C51
--- (Bellemare et al. 2017, section 4).
--- @param logits perilune.Tensor  (..., actions, atoms)
--- @param action perilune.Tensor  (...) i64
--- @param target perilune.Tensor  (..., atoms), of rl.project
--- @param weights perilune.Tensor?  (...), of each row
--- @return perilune.Tensor loss  ()
--- @return perilune.Tensor each  (...) without a gradient: the next priorities of a prioritised buffer
function M.c51_loss(logits, action, target, weights)
  want_tensors("rl.c51_loss", { logits = logits, action = action, target = target })
  local index = action:unsqueeze(-1):unsqueeze(-1)
  local shape = { table.unpack(logits.shape) }
  shape[#shape - 1] = 1
  local chosen = logits:gather(index:expand(shape), -2):squeeze(-2)
  local each = -(chosen:log_softmax(-1) * target:detach()):sum(-1)
  return (weights and each * weights or each):mean(), each:detach()
end

return M
