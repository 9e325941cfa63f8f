-- tokens.lua - rewards, returns and advantages of the tokens of answers, (B, N) with a mask: what PPO and REINFORCE++
-- learn from. Tokens that the policy did not choose - padding, and what a tool wrote - have weight 0.
local peri = require "perilune"
local kl = require "perilune.loss.kl"
local masked = require "perilune.loss.masked"
local options = require "perilune.options"

local M = {}

local function behind(x) return x:flip(2):cumsum(2):flip(2) end -- sums from each column on

-- 1 at the last token of each answer, 0 elsewhere. -- (B, N)
function M.last(weight)
  local set = weight:ne(0):to(weight.dtype)
  return behind(set):eq(1):to(weight.dtype):mul(set)
end

-- Discounted sums from each token on, which go through the tokens of weight 0 as if these were not there; 0 at those.
function M.returns(rewards, weight, gamma)
  rewards = masked.counted(rewards, weight)
  if gamma == 1 then return behind(rewards) end
  -- with values 0 the advantage of gae is the discounted return
  local out = peri.gae(rewards, peri.zeros_like(rewards), nil, nil, nil, weight, gamma, 1)
  return out
end

local whiten_rules = {
  shift = options.boolean(true, "to the mean 0; otherwise the mean stays"),
  eps = options.number(1e-8, "[0, inf)", "added to the variance"),
}

--- Values scaled to variance 1 over the tokens that count, and shifted to mean 0: (x - mean) / sqrt(var + eps) with
--- the variance of a sample, as TRL and verl whiten. 0 at weight 0; tokens that are all equal, and one alone, have no
--- variance and are shifted only, to exactly 0.
--- @param x perilune.Tensor  (B, N)
--- @param weight perilune.Tensor  (B, N) 0 or 1
--- @param opts table?
--- @return perilune.Tensor  (B, N)
function M.whiten(x, weight, opts)
  options.argument("rl.whiten", "x", x, "tensor")
  options.argument("rl.whiten", "weight", weight, "tensor")
  local o = options.fill("rl.whiten", opts, whiten_rules)
  x = masked.counted(x, weight)
  local n, left_out = weight:sum():item(), weight:eq(0)
  local low, high = x:masked_fill(left_out, math.huge):min():item(), x:masked_fill(left_out, -math.huge):max():item()
  if low >= high then return o.shift and peri.zeros_like(x) or x end
  local mean = x:sum():div(n)
  local centred = masked.counted(x:sub(mean), weight)
  local out = centred:div(math.sqrt(centred:square():sum():item() / (n - 1) + o.eps))
  return o.shift and out or masked.counted(out:add(mean), weight)
end
options.declare(M.whiten, { "x", "weight" }, whiten_rules)

local reward_rules = {
  logp = options.value(options.none, "tensor", "(B, N) log-probabilities of the policy that sampled; needed with beta"),
  ref = options.value(options.none, "tensor", "(B, N) log-probabilities of the reference; needed with beta"),
  beta = options.number(0, "[0, inf)", "weight of the KL that each token pays"),
  kl = options.choice("k1", { "k1", "k2", "k3" }, "estimate of the KL, see loss.kl"),
  ended = options.value(options.none, "table", "boolean[]: answers that a stop token ended; needed with missing_eos"),
  missing_eos = options.number(0, "[0, inf)", "taken off the score of an answer that no stop token ended"),
}

--- Rewards of tokens from scores of answers, as PPO has them: each token pays for the KL to the reference, the last
--- one that counts gets the score: r_t = -beta KL_t + [t is the last] score  (Ziegler et al. 2019, eq. 2).
--- @param scores perilune.Tensor|number[]  (B)
--- @param weight perilune.Tensor  (B, N) 0 or 1; an answer without a token gets nothing
--- @param opts table?
--- @return perilune.Tensor  (B, N), 0 at weight 0
function M.token_rewards(scores, weight, opts)
  local who = "rl.token_rewards"
  options.argument(who, "scores", scores, "tensor or table")
  options.argument(who, "weight", weight, "tensor")
  local o = options.fill(who, opts, reward_rules)
  if o.beta > 0 and not (o.logp and o.ref) then
    error(("%s: beta is %g and there is no %s"):format(who, o.beta, o.logp and "ref" or "logp"), 2)
  end
  if o.missing_eos > 0 and not o.ended then
    error(("%s: missing_eos is %g and there is no ended"):format(who, o.missing_eos), 2)
  end
  if not peri.is_tensor(scores) then scores = peri.tensor(scores, weight.dtype) end
  if scores:numel() ~= weight:size(1) then
    error(("%s: %d scores for %d answers"):format(who, scores:numel(), weight:size(1)), 2)
  end
  scores = scores:reshape { -1, 1 }
  if o.missing_eos > 0 then
    local less = {}
    for i = 1, weight:size(1) do less[i] = o.ended[i] and 0 or o.missing_eos end
    scores = scores:sub(peri.tensor(less, scores.dtype):unsqueeze(2))
  end
  local last = M.last(weight)
  local rewards = masked.counted(scores:expand(weight.shape), last)
  if o.beta == 0 then return rewards end
  return masked.counted(rewards:sub(kl.kl(o.logp, o.ref, weight, { estimator = o.kl }):mul(o.beta)), weight)
end
options.declare(M.token_rewards, { "scores", "weight" }, reward_rules)

local gae_rules = {
  gamma = options.number(1, "[0, 1]", "discount"),
  lam = options.number(0.95, "[0, 1]", "of the traces"),
  skipped = options.choice("carry", { "carry", "zero" }, "tokens of weight 0, such as a tool's: stepped over, so that "
    .. "values and traces go from the token before to the one behind (verl); or steps of reward and value 0 (TRL)"),
}

--- Generalised advantages of tokens: delta_t = r_t + gamma V_t+1 - V_t, A_t = delta_t + gamma lam A_t+1, and returns
--- A + V (Schulman et al. 2016, eq. 16; 0 behind the last token). Nothing that stands at weight 0 counts, and it
--- gives 0. Whitening comes after the returns: rl.whiten(advantage, weight).
--- @param rewards perilune.Tensor  (B, N), of rl.token_rewards
--- @param values perilune.Tensor  (B, N) of the states that tokens were chosen in
--- @param weight perilune.Tensor  (B, N) 0 or 1
--- @param opts table?
--- @return perilune.Tensor advantage  (B, N)
--- @return perilune.Tensor returns  (B, N)
function M.token_gae(rewards, values, weight, opts)
  local who = "rl.token_gae"
  options.argument(who, "rewards", rewards, "tensor")
  options.argument(who, "values", values, "tensor")
  options.argument(who, "weight", weight, "tensor")
  local o = options.fill(who, opts, gae_rules)
  rewards, values = masked.counted(rewards, weight), masked.counted(values, weight)
  local mask = o.skipped == "carry" and weight or nil
  local advantage, returns = peri.gae(rewards, values, nil, nil, nil, mask, o.gamma, o.lam)
  return masked.counted(advantage, weight), masked.counted(returns, weight)
end
options.declare(M.token_gae, { "rewards", "values", "weight" }, gae_rules)

return M
