-- grpo.lua - the loop of recipes/r1_zero.lua as a stepper, for hosts that drive it one update at a
-- time. One on-policy epoch an update; everything it does is in perilune.rl.
local peri = require "perilune"
local rl = require "perilune.rl"

local Stepper = {}
Stepper.__index = Stepper

local M = {}

local defaults = {
  prompts = 32, group = 16, micro = 512, max_new_tokens = 16, temperature = 1,
  clip = 0.2, clip_high = 0.28, beta = 0, std = "sample", reduce = "token", level = "token",
  clip_norm = 1, seed = 1,
}
local required = { "model", "tokenizer", "rows", "reward", "optimizer" }

--- @param opts table  model, tokenizer, rows (list of { prompt = ... }), reward (see rl.score),
--- optimizer; schedule (function of the step), reference (model, needed when beta > 0), and the
--- defaults above
--- @return table stepper  :step() -> metrics
function M.new(opts)
  local self = setmetatable({ at = 0 }, Stepper)
  for k, v in pairs(defaults) do self[k] = v end
  for _, k in ipairs(required) do
    if opts[k] == nil then error(("grpo: %s is missing"):format(k), 2) end
  end
  local known = { schedule = true, reference = true }
  for _, k in ipairs(required) do known[k] = true end
  for k, v in pairs(opts) do
    if defaults[k] == nil and not known[k] then error(("grpo: unknown option %q"):format(tostring(k)), 2) end
    self[k] = v
  end
  if self.beta > 0 and not self.reference then error("grpo: beta > 0 needs a reference model", 2) end
  self.rng = peri.rng(self.seed)
  return self
end

-- Loss of completions at .. at+n-1 of the batch, backward included.
function Stepper:_micro(batch, advantage, weight, at, n, tokens, sums)
  local scope <close> = peri.scope()
  local _ = scope
  local function slice(t) return t and t:narrow(1, at, n) end
  local how = { temperature = self.temperature, start = slice(batch.start) }
  local ids, mask = slice(batch.ids), slice(weight)
  local ref
  if self.beta > 0 then
    ref = peri.no_grad(function () return (self.reference:token_logprobs(ids, batch.from, how)) end)
  end
  local logp, entropy = self.model:token_logprobs(ids, batch.from, how)
  local loss, stats = rl.clipped(logp, slice(batch.logprobs), slice(advantage), mask, {
    clip = self.clip, clip_high = self.clip_high, beta = self.beta, ref = ref, level = self.level,
    reduce = self.reduce, tokens = tokens, sequences = #batch.rows, max_length = self.max_new_tokens,
  })
  loss:backward()
  sums.loss = sums.loss + loss:item()
  sums.entropy = sums.entropy + entropy:detach():mul(mask):sum():item() / tokens
  sums.clip_ratio = sums.clip_ratio + stats.clip_fraction:item()
  if stats.kl then sums.kl = (sums.kl or 0) + stats.kl:item() / tokens end
end

--- One update: sample, score, credit, backward, optimizer step.
--- @return table metrics  step, reward, frac_reward_zero_std, loss, entropy, clip_ratio, kl,
--- grad_norm, learning_rate, ["completions/mean_length"], num_tokens
function Stepper:step()
  local scope <close> = peri.scope()
  local _ = scope
  self.at = self.at + 1
  local rows = {}
  for i = 1, self.prompts do rows[i] = self.rng:choice(self.rows) end
  local batch = rl.rollout(self.model, self.tokenizer, rows, self.reward, {
    group = self.group, max_new_tokens = self.max_new_tokens, temperature = self.temperature,
  })
  local advantage, weight = rl.advantages(batch, { std = self.std })
  local tokens = math.max(weight:sum():item(), 1)
  local sums = { loss = 0, entropy = 0, clip_ratio = 0 }
  for at = 1, #batch.rows, self.micro do
    self:_micro(batch, advantage, weight, at, math.min(self.micro, #batch.rows - at + 1), tokens, sums)
  end
  if self.schedule then self.optimizer.lr = self.schedule(self.at) end
  sums.grad_norm = self.optimizer:step { clip_norm = self.clip_norm }
  local seen = rl.summary(batch)
  sums.step, sums.reward, sums.frac_reward_zero_std = self.at, seen.reward, seen.frac_reward_zero_std
  sums.learning_rate, sums.num_tokens = self.optimizer.lr, batch.ids:numel()
  sums["completions/mean_length"] = batch.mask:sum():item() / #batch.rows
  self.batch = nil
  return sums
end

return M
