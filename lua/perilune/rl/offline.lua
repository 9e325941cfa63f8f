-- offline.lua - losses of learners that get a data set and no environment: cloning, conservative values, expectiles.

local peri = require "perilune"
local options = require "perilune.options"

local M = {}

--- How unlikely the actions of a data set are to a policy, the mean of -log pi(a|s): behaviour cloning. With weights
--- e^(beta advantage) of rl.advantage_weights it is how IQL takes its policy out of its values (Kostrikov et al. 2021,
--- eq. 7).
--- @param logits perilune.Tensor  (..., actions)
--- @param action perilune.Tensor  (...) i64
--- @param weights perilune.Tensor?  (...), constants
--- @return perilune.Tensor loss  ()
--- @return perilune.Tensor each  (...), before the weights, without a gradient
function M.cloning_loss(logits, action, weights)
  options.argument("rl.cloning_loss", "logits", logits, "tensor")
  options.argument("rl.cloning_loss", "action", action, "tensor")
  local each = logits:cross_entropy(action, { reduction = "none" })
  if weights then
    options.argument("rl.cloning_loss", "weights", weights, "tensor")
    return (each * weights:detach()):mean(), each:detach()
  end
  return each:mean(), each:detach()
end

--- How far the values of all actions are above that of the action in the data: the mean of log sum_b e^q(s, b) - q(s,
--- a), the penalty of CQL(H) for numbered actions (Kumar et al. 2020, eq. 4). Times alpha beside the loss of rl.q_loss
--- it holds down the values of actions that the data do not show; it is 0 at least, and log(actions) where values are
--- alike.
--- @param q perilune.Tensor  (..., actions)
--- @param action perilune.Tensor  (...) i64
--- @return perilune.Tensor penalty  ()
--- @return perilune.Tensor each  (...) without a gradient
function M.conservative_loss(q, action)
  options.argument("rl.conservative_loss", "q", q, "tensor")
  options.argument("rl.conservative_loss", "action", action, "tensor")
  local each = q:logsumexp(-1) - q:gather(action:unsqueeze(-1), -1):squeeze(-1)
  return each:mean(), each:detach()
end

local function want_share(who, tau)
  if type(tau) ~= "number" or not (tau > 0 and tau < 1) then
    options.raise(("%s: tau is %s, expected a number in (0, 1)"):format(who, tostring(tau)), 2)
  end
end

--- The mean of |tau - (u < 0)| u^2, whose least point over v, with u = x - v, is the tau-expectile of x (Kostrikov et
--- al. 2021, eq. 5; Newey and Powell 1987): 0.5 is half the mean square, and its point the mean; towards 1 it is the
--- largest x. With u = q(s, a) - v(s) over a data set, v is a maximum over the actions that are in the data.
--- @param u perilune.Tensor  (...)
--- @param tau number  in (0, 1)
--- @return perilune.Tensor loss  ()
--- @return perilune.Tensor each  (...) without a gradient
function M.expectile_loss(u, tau)
  options.argument("rl.expectile_loss", "u", u, "tensor")
  want_share("rl.expectile_loss", tau)
  local each = u:square() * (u:detach():lt(0):to(u.dtype) * (1 - 2 * tau) + tau)
  return each:mean(), each:detach()
end

--- What advantages weigh in a policy that is taken from them: e^(beta advantage), most at most (Kostrikov et al. 2021,
--- eq. 7 and appendix B). beta 0 is behaviour cloning, a large one the best action of the data. No gradient passes.
--- @param advantage perilune.Tensor  (...): q(s, a) - v(s)
--- @param beta number  from 0
--- @param most number?  default 100
--- @return perilune.Tensor  (...)
function M.advantage_weights(advantage, beta, most)
  options.argument("rl.advantage_weights", "advantage", advantage, "tensor")
  most = most or 100
  if type(beta) ~= "number" or not (beta >= 0 and beta < math.huge) then
    options.raise(("rl.advantage_weights: beta is %s, expected a number from 0"):format(tostring(beta)))
  end
  if type(most) ~= "number" or not (most > 0 and most < math.huge) then
    options.raise(("rl.advantage_weights: most is %s, expected a number above 0"):format(tostring(most)))
  end
  local _ <close> = peri.no_grad()
  return (advantage * beta):clamp({ max = math.log(most) }):exp()
end

return M
