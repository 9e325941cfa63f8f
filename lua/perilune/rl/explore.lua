-- explore.lua - choosing actions from action values: the best one, and ways to try others.

local peri = require "perilune"
local options = require "perilune.options"

local M = {}

-- Values with illegal actions at -inf; a row without a legal one is an error that names it.
local function legal(who, q, mask)
  options.argument(who, "q", q, "tensor")
  if not mask then return q end
  options.argument(who, "mask", mask, "tensor")
  local none = mask:any(-1):logical_not()
  if none:any():item() then
    options.raise(("%s: row %d has no legal action"):format(who, none:reshape { -1 }:argmax():item() + 1), 2)
  end
  return q:masked_fill(mask:logical_not(), -math.huge)
end

--- The action of the greatest value, the first of equal ones.
--- @param q perilune.Tensor  (..., actions)
--- @param mask perilune.Tensor?  bool, broadcasts with q: which actions are legal
--- @return perilune.Tensor  (...) i64
function M.greedy(q, mask) return legal("rl.greedy", q, mask):argmax(-1) end

local function want_share(who, name, x)
  if type(x) == "userdata" then return x end
  if type(x) ~= "number" or not (x >= 0 and x <= 1) then
    options.raise(("%s: %s is %s, expected 0 to 1, or a tensor of such"):format(who, name, tostring(x)), 2)
  end
  return x
end

--- The greedy action, or with probability epsilon any legal one, all equally likely (Sutton and Barto, section 2.2).
--- @param q perilune.Tensor  (..., actions)
--- @param epsilon number|perilune.Tensor  in [0, 1]; a tensor broadcasts with (...): one for each seed or actor
--- @param mask perilune.Tensor?  bool, broadcasts with q: which actions are legal
--- @return perilune.Tensor  (...) i64
function M.epsilon_greedy(q, epsilon, mask)
  epsilon = want_share("rl.epsilon_greedy", "epsilon", epsilon)
  q = legal("rl.epsilon_greedy", q, mask)
  local best = q:argmax(-1)
  if epsilon == 0 then return best end
  local any = (mask and q:eq(-math.huge):to(q.dtype):mul(-1e30) or q:mul(0)):categorical():squeeze(-1)
  return peri.where(peri.rand(best.shape):lt(epsilon), any, best)
end

--- An action drawn with probability proportional to e^(q / temperature) (Boltzmann exploration; Sutton and Barto,
--- section 2.8).
--- @param q perilune.Tensor  (..., actions)
--- @param temperature number  above 0: near 0 it is greedy
--- @param mask perilune.Tensor?  bool, broadcasts with q: which actions are legal
--- @return perilune.Tensor  (...) i64
function M.boltzmann(q, temperature, mask)
  if type(temperature) ~= "number" or not (temperature > 0 and temperature < math.huge) then
    options.raise(("rl.boltzmann: the temperature is %s, expected a number above 0"):format(tostring(temperature)))
  end
  return legal("rl.boltzmann", q, mask):div(temperature):categorical():squeeze(-1)
end

--- Actions in [-1, 1] with noise N(0, std^2): how TD3 explores, and with `clip` how it smooths its targets, so that a
--- critic cannot gain from a narrow peak (Fujimoto et al. 2018, eq. 14).
--- @param action perilune.Tensor
--- @param std number  from 0
--- @param clip number?  bound of the noise
--- @return perilune.Tensor  in [-1, 1]
function M.gaussian_noise(action, std, clip)
  options.argument("rl.gaussian_noise", "action", action, "tensor")
  for name, value in pairs { std = std or false, clip = clip or 0 } do
    if type(value) ~= "number" or not (value >= 0 and value < math.huge) then
      options.raise(("rl.gaussian_noise: %s, expected a number from 0"):format(options.is(name, value)))
    end
  end
  local noise = peri.randn(action.shape, action.dtype) * std
  if clip then noise = noise:clamp(-clip, clip) end
  return (action + noise):clamp(-1, 1)
end

return M
