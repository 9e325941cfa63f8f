-- adversarial.lua - attacks on what a loss sees: the point in a ball around an input where the loss is large, by steps
-- along its gradient; and the loss of what a distribution turns into under the worst small push. They are functions of
-- tensors: nothing gets a .grad, and dropout and batch statistics are those that the caller's network is in.
local peri = require "perilune"
local kl = require "perilune.loss.kl"
local options = require "perilune.options"

local M = {}

local ball = {
  eps = options.number(options.required, "[0, inf)", "radius of the ball, in units of x"),
  norm = options.choice("inf", { "inf", "2" }, "of the ball: the largest change of an element; the length of a row's "
    .. "change, over all dims but the first"),
  low = options.number(-math.huge, "[-inf, inf)", "least value that an input has"),
  high = options.number(math.huge, "(-inf, inf]", "largest value that an input has"),
}

local function with(more)
  local rules = {}
  for _, set in ipairs { ball, more } do
    for name, rule in pairs(set) do rules[name] = rule end
  end
  return rules
end

local step_rules = with { step = options.number(options.required, "[0, inf)", "length of the step, in units of x") }

-- The lengths of rows, (B, 1, ...), over all dims but the first.
local function lengths(x)
  local shape = { x:size(1) }
  for i = 2, x.ndim do shape[i] = 1 end
  return x:reshape({ x:size(1), -1 }):square():sum(2):sqrt():reshape(shape)
end

local function want_input(who, x, o)
  options.argument(who, "x", x, "tensor")
  if x.ndim < 1 or x.dtype ~= "f32" and x.dtype ~= "f64" then
    options.raise(("%s: x is %s of shape %s, expected rows of f32 or f64"):format(who, x.dtype, options.shape(x)))
  end
  if o.low > o.high then options.raise(("%s: low is %g, high is %g"):format(who, o.low, o.high)) end
  if x:numel() == 0 then return end
  options.finite(who, "x", x)
  local least, most = x:min():item(), x:max():item()
  if not (least >= o.low and most <= o.high) then
    options.raise(("%s: x goes from %g to %g, expected all of it in [%g, %g]"):format(who, least, most, o.low, o.high))
  end
end

-- A point of the ball and of the inputs' range near `to`: within the ball first, and since x is in range, clamping
-- comes nearer to x.
local function project(x, to, o)
  if o.norm == "inf" then to = to:maximum(x - o.eps):minimum(x + o.eps)
  else
    local d = to - x
    local over = (lengths(d) / math.max(o.eps, 2 ^ -100)):clamp { min = 1 }
    to = o.eps > 0 and x + d / over or x
  end
  return to:clamp(o.low, o.high)
end

-- The direction of steepest ascent in a norm, 0 where the gradient is.
local function direction(g, norm)
  if norm == "inf" then return g:sign() end
  local scale = g:abs():reshape({ g:size(1), -1 }):max(2):reshape(lengths(g).shape) -- squares of small numbers are 0
  g = g / scale:masked_fill(scale:eq(0), 1)
  return g / lengths(g):clamp { min = 2 ^ -100 }
end

local function ascend(x, from, gradient, o)
  return project(x, from + direction(gradient, o.norm) * o.step, o)
end

--- A step along a gradient that stays in a ball around x and in the range of inputs: by the sign of each element, or
--- with norm "2" along the gradient of each row scaled to length 1. FGSM is one such step from x, PGD several
--- (Goodfellow et al. 2015, 1412.6572; Madry et al. 2018, 1706.06083, section 2.1); free training takes it with the
--- gradient that the weights' own backward pass leaves (Shafahi et al. 2019, 1904.12843, algorithm 1).
--- @param x perilune.Tensor  (B, ...), the middle of the ball
--- @param from perilune.Tensor  (B, ...), where the step begins
--- @param gradient perilune.Tensor  (B, ...), of the loss there
--- @param opts table
--- @return perilune.Tensor  (B, ...), without a graph
function M.ascend(x, from, gradient, opts)
  local who = "loss.ascend"
  local o = options.fill(who, opts, step_rules)
  want_input(who, x, o)
  for name, t in pairs { from = from, gradient = gradient } do
    options.argument(who, name, t, "tensor")
    if options.shape(t) ~= options.shape(x) then
      options.raise(("%s: %s has shape %s, x has %s"):format(who, name, options.shape(t), options.shape(x)))
    end
    options.finite(who, name, t)
  end
  local _ <close> = peri.no_grad()
  return ascend(x, from, gradient, o)
end
options.declare(M.ascend, { "x", "from", "gradient" }, step_rules)

-- The gradient of the sum of the losses of rows at a point.
local function look(who, loss_of, at)
  local on <close> = peri.enable_grad() -- luacheck: ignore 211
  at = at:detach():requires_grad_()
  local losses = loss_of(at)
  if not peri.is_tensor(losses) or losses:numel() ~= at:size(1) then
    options.raise(("%s: the loss is %s, expected a tensor of %d elements, one for each row of x"):format(who,
      peri.is_tensor(losses) and "of shape " .. options.shape(losses) or "a " .. type(losses), at:size(1)))
  end
  if not losses.requires_grad then options.raise(who .. ": the loss does not depend on x") end
  options.finite(who, "the loss", losses)
  local gradient = peri.grad(losses:sum(), { at })[1]
  if not gradient then options.raise(who .. ": the loss does not depend on x") end
  options.finite(who, "the gradient of the loss", gradient)
  return gradient
end

--- The fast gradient sign method: one step of the whole radius (Goodfellow et al. 2015, 1412.6572, section 4:
--- x + eps sign(grad L)); with norm "2" of length eps along each row's gradient, as for embeddings (Miyato et al. 2017,
--- 1605.07725, equation 2). For a loss that is linear in x it is the worst point of the ball.
---
---     local attacked = loss.fgsm(function (x) return net(x):cross_entropy(y, { reduction = "none" }) end, x,
---       { eps = 0.1, low = 0, high = 1 })
---
--- @param loss_of fun(x: perilune.Tensor): perilune.Tensor  one loss for each row (B)
--- @param x perilune.Tensor  (B, ...), in the range of inputs
--- @param opts table
--- @return perilune.Tensor  (B, ...), without a graph
function M.fgsm(loss_of, x, opts)
  local who = "loss.fgsm"
  options.argument(who, "loss_of", loss_of, "callable")
  local o = options.fill(who, opts, ball)
  want_input(who, x, o)
  local gradient = look(who, loss_of, x)
  o.step = o.eps
  local _ <close> = peri.no_grad()
  return ascend(x:detach(), x:detach(), gradient, o)
end
options.declare(M.fgsm, { "loss_of", "x" }, ball)

local pgd_rules = with {
  steps = options.integer(10, "[0, inf)", "how many"),
  step = options.number(options.none, "[0, inf)", "length of each; default: 2.5 eps / steps, which reaches the edge "
    .. "from anywhere"),
  random = options.boolean(true, "begin at a point of the ball that is drawn, as the paper does; false: at x"),
  restarts = options.integer(1, "[1, inf)", "times that it begins; the end with the largest loss is kept, by row"),
}

-- A point of the ball, uniformly: a direction, and the radius of a uniform share of the volume.
local function drawn(x, o)
  if o.norm == "inf" then return project(x, x + (peri.rand(x.shape, x.dtype) * 2 - 1) * o.eps, o) end
  local share = peri.rand({ x:size(1) }, x.dtype):pow(1 / math.max(1, x:numel() // x:size(1)))
  local towards = direction(peri.randn(x.shape, x.dtype), "2")
  return project(x, x + towards * share:reshape(lengths(x).shape) * o.eps, o)
end

--- Projected gradient descent on the loss's negative: steps of fixed length along the gradient, each put back into the
--- ball and the range of inputs (Madry et al. 2018, 1706.06083, section 2.1). One step of eps from x itself is
--- loss.fgsm. The end of the last step is what is returned, as in the paper; of several restarts each row has the end
--- with the largest loss.
--- @param loss_of fun(x: perilune.Tensor): perilune.Tensor  one loss for each row (B), not of what the others are
--- @param x perilune.Tensor  (B, ...), in the range of inputs
--- @param opts table
--- @return perilune.Tensor  (B, ...), without a graph
function M.pgd(loss_of, x, opts)
  local who = "loss.pgd"
  options.argument(who, "loss_of", loss_of, "callable")
  local o = options.fill(who, opts, pgd_rules)
  want_input(who, x, o)
  o.step = o.step or 2.5 * o.eps / math.max(o.steps, 1)
  local _ <close> = peri.no_grad()
  x = x:detach()
  local best, most
  for _ = 1, o.restarts do
    local at = o.random and drawn(x, o) or x
    for _ = 1, o.steps do
      local gradient = look(who, loss_of, at)
      at = ascend(x, at, gradient, o)
    end
    if o.restarts == 1 then return at end
    local losses = loss_of(at):reshape { -1 }
    options.finite(who, "the loss", losses)
    local worse = most and losses:gt(most)
    best = most and peri.where(worse:reshape(lengths(x).shape), at, best) or at
    most = most and peri.where(worse, losses, most) or losses
  end
  return best
end
options.declare(M.pgd, { "loss_of", "x" }, pgd_rules)

local virtual_rules = {
  eps = options.number(options.required, "[0, inf)", "length of the push on a row, over all dims but the first"),
  xi = options.number(0.1, "(0, inf)", "length at which the direction is felt for: small beside x, and not so small "
    .. "that the divergence, about its square, is lost in rounding"),
  iterations = options.integer(1, "[1, inf)", "of the power method"),
}

--- Virtual adversarial training: how far the answers of a network move when its input is pushed by eps in the direction
--- that moves them most, KL(p(x) || p(x + r)) in nats a row, to be made small. It needs no label, so rows without one
--- are learned from, too (Miyato et al. 2017, 1605.07725, equations 3 and 4; the direction by the power method, Miyato
--- et al. 2018, 1704.03976, section 3.3). p(x) and r are constants; gradients pass through the pushed input into the
--- network, and into x where it is the result of an embedding.
---
---     local words = embed(ids)                              -- (B, T, D), scaled to variance 1
---     local total = net(words):cross_entropy(y) + loss.virtual_adversarial(net, words, { eps = 5 })
---
--- @param predict fun(x: perilune.Tensor): perilune.Tensor  logits (B, C)
--- @param x perilune.Tensor  (B, ...)
--- @param opts table
--- @return perilune.Tensor loss  (), the mean over rows
--- @return perilune.Tensor r  (B, ...), the push, without a graph
function M.virtual_adversarial(predict, x, opts)
  local who = "loss.virtual_adversarial"
  options.argument(who, "predict", predict, "callable")
  local o = options.fill(who, opts, virtual_rules)
  want_input(who, x, { low = -math.huge, high = math.huge })
  local fixed = x:detach()
  local p = peri.no_grad(predict, fixed):log_softmax(-1):detach()
  local function moved(at) return kl.between(p, predict(at):log_softmax(-1)) end
  local d = direction(peri.randn(x.shape, x.dtype), "2")
  for _ = 1, o.iterations do
    local gradient = look(who, moved, fixed + d * o.xi)
    d = direction(gradient, "2")
  end
  local r = (d * o.eps):detach()
  local value = moved(x + r)
  options.finite(who, "the divergence at the push", value)
  return value:mean(), r
end
options.declare(M.virtual_adversarial, { "predict", "x" }, virtual_rules)

return M
