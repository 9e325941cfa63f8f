-- losses.lua - the losses of the training service, as Tinker's documentation says them: sums over tokens, so that
-- the parts that a client cuts its batch into add up. Inputs are (B, T), 0 where a row has no token.
local loss = require "perilune.loss"
local options = require "perilune.options"

local M = {}

local function policy(logp, given, o)
  o.reduce, o.sequences = "sum", 1
  return (loss.policy(logp, given.logprobs, given.advantages, given.counted, o))
end

local clip = {
  clip_low_threshold = options.number(0.8, "[0, 1)", "the ratio is held above it"),
  clip_high_threshold = options.number(1.2, "(1, inf)", "and under it"),
}

local of_policy = { "target_tokens", "logprobs", "advantages" }

--- By name: inputs that a datum must have, those that it may have with their values, rules of the config, and
--- sum(logp, inputs, config) -> 0-dim loss.
M.list = {
  -- -sum of w log p
  cross_entropy = { inputs = { "target_tokens" }, may = { weights = 1 }, config = {},
    sum = function (logp, given) return logp:mul(given.weights):sum():neg() end },
  -- -sum of r A, r = p / q of the sampler
  importance_sampling = { inputs = of_policy, may = {}, config = {},
    sum = function (logp, given)
      return policy(logp, given, { objective = "clip", clip = math.huge, clip_high = math.huge })
    end },
  -- -sum of min(r A, clip(r) A)  (1707.06347 eq. 7)
  ppo = { inputs = of_policy, may = {}, config = clip,
    sum = function (logp, given, o)
      return policy(logp, given, { objective = "clip", clip = 1 - o.clip_low_threshold,
        clip_high = o.clip_high_threshold - 1 })
    end },
  -- -sum of sg[clip(r)] A log p  (2506.13585)
  cispo = { inputs = of_policy, may = {}, config = clip,
    sum = function (logp, given, o)
      return policy(logp, given, { objective = "cispo", clip = 1 - o.clip_low_threshold,
        clip_high = o.clip_high_threshold - 1 })
    end },
  -- -sum of A log p - beta / 2 (log p - log q)^2  (2405.19107)
  dro = { inputs = of_policy, may = {}, config = { beta = options.number(0.05, "[0, inf)", "weight of the square") },
    sum = function (logp, given, o)
      local square = logp:sub(given.logprobs):square():mul(o.beta / 2)
      return logp:mul(given.advantages):sub(square):mul(given.counted):sum():neg()
    end },
}

--- Log-probabilities of target tokens, in the places where they stand.
--- @param model perilune.models.Model
--- @param tokens perilune.Tensor  (B, T) i64, padded on the right
--- @param lengths perilune.Tensor  (B) i64
--- @param targets perilune.Tensor  (B, T) i64; -100: none
--- @return perilune.Tensor  (B, T)
function M.logprobs(model, tokens, lengths, targets)
  local hidden = model:forward(tokens, { lengths = lengths })
  return (model:token_logprob(hidden, targets))
end

--- One of their names, or a message with all.
--- @param name any
--- @return table|nil
--- @return string? message
function M.find(name)
  if M.list[name] then return M.list[name] end
  return nil, "loss_fn: " .. options.unknown("loss", name, options.names(M.list))
end

return M
