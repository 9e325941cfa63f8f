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

-- Loss of some rows, backward included.
function Stepper:_part(part, tokens, sequences, sums)
  local how = { temperature = self.temperature, start = part.start }
  local ref
  if self.beta > 0 then
    ref = peri.no_grad(function () return (self.reference:token_logprobs(part.ids, part.from, how)) end)
  end
  local logp = self.model:token_logprobs(part.ids, part.from, how)
  local loss, stats = rl.clipped(logp, part.logprobs, part.advantage, part.weight, {
    clip = self.clip, clip_high = self.clip_high, beta = self.beta, ref = ref, level = self.level,
    reduce = self.reduce, tokens = tokens, sequences = sequences, max_length = self.max_new_tokens,
  })
  loss:backward()
  sums.loss = sums.loss + loss:item()
  sums.clip_ratio = sums.clip_ratio + stats.clip_fraction:item()
  if stats.kl then sums.kl = (sums.kl or 0) + stats.kl:item() / tokens end
end

--- One update: sample, score, credit, backward, optimizer step.
--- @return table metrics  step, loss, clip_ratio, kl (with beta > 0), grad_norm, learning_rate,
--- num_tokens, and those of rl.summary
function Stepper:step()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  self.at = self.at + 1
  local rows = {}
  for i = 1, self.prompts do rows[i] = self.rng:choice(self.rows) end
  local batch = rl.rollout(self.model, self.tokenizer, rows, self.reward, {
    group = self.group, max_new_tokens = self.max_new_tokens, temperature = self.temperature,
  })
  local advantage, weight = rl.advantages(batch, { std = self.std })
  local tokens = math.max(weight:sum():item(), 1)
  local metrics = rl.summary(batch)
  metrics.loss, metrics.clip_ratio = 0, 0
  for part in rl.parts(rl.with_signal(batch, advantage, weight, self.beta > 0), self.micro) do
    self:_part(part, tokens, #batch.rows, metrics)
  end
  local lr = self.schedule and self.schedule(self.at) or self.optimizer.lr
  self.optimizer:step { lr = lr, clip = self.clip_norm }:zero_grad()
  metrics.step, metrics.grad_norm, metrics.learning_rate = self.at, self.optimizer.grad_norm, lr
  metrics.num_tokens = batch.ids:numel()
  return metrics
end

return M
