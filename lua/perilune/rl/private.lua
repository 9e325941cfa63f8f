-- private.lua - gradients that say little of any one trajectory: one gradient for each trajectory, clipped by its
-- own norm, and noise on their sum (DP-SGD, Abadi et al. 2016, algorithm 1, with the trajectory as the unit, as Rio,
-- Barlier and Colin 2025, 2501.19080, do for policies). What that costs is said by rl.accountant.

local peri = require "perilune"
local options = require "perilune.options"

local M = {}

local gradient_rules = {
  net = options.value(options.required, "module", "nn.Copies of a network: of one for a single learner"),
  n = options.integer(options.required, "[1, inf)", "trajectories of each learner"),
  loss = options.value(options.required, "callable", "loss(net) -> (learners * n), one of each trajectory, of "
    .. "nothing but that trajectory and the parameters; net takes observations (learners * n, steps, ...)"),
}

--- The gradient of each trajectory's loss, by each parameter: rl.trajectory_gradients(copies, n, loss). Every one
--- meets a copy of the parameters of its own, so one backward pass gives them all. loss must not look across
--- trajectories: a baseline, a mean or a deviation of the batch would let one trajectory move the gradients of others,
--- which no clipping bounds.
---
---     local grads = rl.trajectory_gradients(copies, n, function (net) return net:value(obs):square():sum(-1) end)
---
--- @param net perilune.nn.Copies
--- @param n integer
--- @param loss fun(net: perilune.nn.Module): perilune.Tensor
--- @return perilune.Tensor[]  (learners * n, shape of the parameter of one), in the order of net:parameters()
--- @return perilune.Tensor losses  (learners * n)
function M.trajectory_gradients(...)
  local who = "rl.trajectory_gradients"
  local o = options.read(who, { "net", "n", "loss" }, gradient_rules, 3, ...)
  if not (o.net.n and o.net.net) then
    options.raise(("%s: net is a %s, expected nn.Copies of a network"):format(who, o.net._class or "module"))
  end
  local own, list = {}, {}
  for _, entry in ipairs(o.net:named_parameters()) do
    local t = entry[2]:detach():repeat_interleave(o.n, 1):requires_grad_()
    own[entry[1]], list[#list + 1] = t, t
  end
  for _, entry in ipairs(o.net:named_buffers()) do own[entry[1]] = entry[2]:repeat_interleave(o.n, 1) end
  local losses = peri.nn.with_tensors(o.net, own, o.loss, o.net.net)
  local rows = o.net.n * o.n
  if not peri.is_tensor(losses) or losses.ndim ~= 1 or losses.shape[1] ~= rows then
    options.raise(("%s: loss gave %s, expected a tensor (%d), one number of each trajectory"):format(who,
      peri.is_tensor(losses) and options.shape(losses) or type(losses), rows))
  end
  local grads = peri.grad(losses:sum(), list)
  for k, p in ipairs(list) do grads[k] = grads[k] or peri.zeros_like(p) end
  return grads, losses:detach()
end
options.declare(M.trajectory_gradients, { "net", "n", "loss" }, gradient_rules)

local rules = {
  clip = options.number(options.required, "(0, inf]", "largest norm of what one trajectory gives, over all parameters "
    .. "together; math.huge: any, and then there can be no noise"),
  noise = options.number(0, "[0, inf)", "deviation of the noise on the sum, as a multiple of clip: what rl.accountant "
    .. "is told"),
  expected = options.number(options.required, "(0, inf)", "what the noisy sum is divided by: the number of "
    .. "trajectories that was expected, rate times how many there are; not the number that came, which is private"),
  seeds = options.integer(1, "[1, inf)", "learners that share the trajectories, one behind the other"),
}

-- A little less than 1: what rounding to f32 adds to a norm, it may not add to the bound.
local INSIDE <const> = 1 - 2 ^ -20

--- Norms of the gradients of trajectories, over all parameters together: (trajectories) f64.
--- @param grads perilune.Tensor[]  (trajectories, ...)
--- @return perilune.Tensor
function M.trajectory_norms(grads)
  options.argument("rl.trajectory_norms", "grads", grads, "table")
  local sum
  for _, g in ipairs(grads) do
    local square = g:to("f64"):reshape({ g.shape[1], -1 }):square():sum(2)
    sum = sum and sum + square or square
  end
  if not sum then options.raise "rl.trajectory_norms: no gradients" end
  return sum:sqrt()
end

local clip_rules = { clip = rules.clip }

--- Gradients of trajectories, each scaled down to a norm of at most clip: rl.clip_trajectories(grads, { clip = 1 }).
--- A gradient that is not finite is refused: no scale makes it small.
--- @param grads perilune.Tensor[]  (trajectories, ...)
--- @param opts table
--- @return perilune.Tensor[]
--- @return perilune.Tensor norms  (trajectories) f64, before
function M.clip_trajectories(grads, opts)
  local who = "rl.clip_trajectories"
  local o = options.fill(who, opts, clip_rules)
  local norms = M.trajectory_norms(grads)
  local good = norms:isfinite()
  if not good:all():item() then
    options.raise(("%s: the gradient of trajectory %d is not finite"):format(who, good:to("f32"):argmin(1):item() + 1))
  end
  if o.clip == math.huge then return grads, norms end
  local scale = (o.clip * INSIDE / norms:clamp(1e-300)):clamp(0, 1)
  scale = peri.where(norms:le(o.clip), peri.ones_like(scale), scale)
  local out = {}
  for k, g in ipairs(grads) do
    local shape = { g.shape[1] }
    for _ = 2, g.ndim do shape[#shape + 1] = 1 end
    out[k] = (g:to "f64" * scale:reshape(shape)):to(g.dtype)
  end
  return out, norms
end
options.declare(M.clip_trajectories, { "grads" }, clip_rules)

--- A gradient of many trajectories that says little of any one: each clipped to a norm of clip, their sum, normal noise
--- of deviation noise * clip on every number, all divided by how many were expected (Abadi et al. 2016, algorithm 1).
--- Give the result to an optimizer in place of gradients; whatever it does with them costs no more privacy. Noise is
--- drawn from peri's generator, which is not a cryptographic one: keep its seed to yourself.
---
---     local grads = rl.trajectory_gradients(net, n, loss)
---     local noisy, norms = rl.privatise(grads, { clip = 1, noise = 1.5, expected = 40 })
---
--- @param grads perilune.Tensor[]  (seeds * n, ...) of trajectory_gradients, or (n, ...) of peri.per_sample_grad
--- @param opts table
--- @return perilune.Tensor[]  (seeds, ...) each, as the parameters of nn.Copies are
--- @return perilune.Tensor norms  (seeds * n) f64, before clipping: they are private themselves
function M.privatise(grads, opts)
  local who = "rl.privatise"
  local o = options.fill(who, opts, rules)
  options.argument(who, "grads", grads, "table")
  if o.clip == math.huge and o.noise > 0 then
    options.raise(who .. ": there is noise and no clip: its deviation is a multiple of clip")
  end
  local _ <close> = peri.no_grad()
  local clipped, norms = M.clip_trajectories(grads, { clip = o.clip })
  local rows, out = norms.shape[1], {}
  if rows % o.seeds ~= 0 then
    options.raise(("%s: %d learners do not share %d trajectories"):format(who, o.seeds, rows))
  end
  for k, g in ipairs(clipped) do
    local sum = g:reshape({ o.seeds, rows // o.seeds, table.unpack(g.shape, 2) }):sum(2)
    if o.noise > 0 then sum = sum + peri.randn(sum.shape, sum.dtype) * (o.noise * o.clip) end
    out[k] = sum / o.expected
  end
  return out, norms
end
options.declare(M.privatise, { "grads" }, rules)

return M
