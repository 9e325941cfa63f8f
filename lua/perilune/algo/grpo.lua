-- grpo.lua - the loop of recipes/r1_zero.lua as a stepper, for hosts that drive it one update at a
-- time. One on-policy epoch an update; everything it does is in perilune.rl.
local peri = require "perilune"
local options = require "perilune.options"
local base = require "perilune.models.base"
local rl = require "perilune.rl"
local states = require "perilune.algo.state"

local Stepper = {}
Stepper.__index = Stepper

local M = {}

local rules = {
  model = options.value(options.required, "table", "the policy that is trained, a causal model of perilune.models"),
  tokenizer = options.value(options.required, "table", "of perilune.tokenizer or perilune.text"),
  rows = options.value(options.required, "table", "{ prompt = ... } each: a list, a stream, or an rl.curriculum"),
  reward = options.value(options.required, "callable or table", "see rl.score"),
  optimizer = options.value(options.required, "table", "over the parameters that learn"),
  schedule = options.value(options.none, "callable", "learning rate by step, from 1; default: the optimizer's"),
  reference = options.value(options.none, "table", "model that the KL penalty is to; needed when beta > 0"),
  prompts = options.integer(32, "[1, inf)", "prompts of an update"),
  group = options.integer(16, "[1, inf)", "completions of each prompt"),
  micro = options.integer(512, "[1, inf)", "completions in one forward and backward pass"),
  max_new_tokens = options.integer(16, "[1, inf)", "longest completion"),
  temperature = options.number(1, "(0, inf)", "of sampling and of the loss"),
  clip = options.number(0.2, "(0, inf]", "see rl.clipped"),
  clip_high = options.number(0.28, "(0, inf]", "see rl.clipped"),
  beta = options.number(0, "[0, inf)", "weight of the KL to the reference"),
  std = options.choice("sample", { "sample", "population", "none" }, "see rl.advantages"),
  reduce = options.choice("token", { "token", "sequence", "constant" }, "see rl.clipped"),
  level = options.choice("token", { "token", "sequence" }, "see rl.clipped"),
  clip_norm = options.number(1, "(0, inf)", "largest norm of the gradient"),
  seed = options.integer(1, nil, "of which prompts are drawn"),
}

--- GRPO (DeepSeekMath, 2402.03300) as a stepper: each :step() samples, scores, credits and updates.
--- @param opts table
--- @return table stepper  :step() -> metrics; :state(), :set_state(s) for checkpoints
function M.new(opts)
  local self = options.fill("grpo", opts, rules)
  local why = base.no_causal(self.model)
  if why then error("grpo: " .. why, 2) end
  if self.beta > 0 and not self.reference then error("grpo: beta > 0 needs a reference model", 2) end
  if type(self.rows.collect) == "function" then self.rows = self.rows:collect() end -- a stream of perilune.data
  if self.rows.draw then
    self.curriculum = self.rows
  elseif #self.rows == 0 then
    error("grpo: there are no rows", 2)
  end
  self.at, self.seen, self.rng = 0, 0, peri.rng(self.seed)
  return setmetatable(self, Stepper)
end
options.declare(M.new, {}, rules)

-- Loss of some rows, backward included.
function Stepper:_part(part, tokens, sequences, sums)
  local how = { temperature = self.temperature }
  local ref
  if self.beta > 0 then
    ref = peri.no_grad(function () return (self.reference:token_logprobs(part.sequences, part.from, how)) end)
  end
  local logp = self.model:token_logprobs(part.sequences, part.from, how)
  local loss, stats = rl.clipped(logp, part.logprobs, part.advantage, part.weight, {
    clip = self.clip, clip_high = self.clip_high, beta = self.beta, ref = ref, level = self.level,
    reduce = self.reduce, tokens = tokens, sequences = sequences, max_length = self.max_new_tokens,
  })
  loss:backward()
  local function add(name, value) sums[name] = (sums[name] or 0) + value:item() end
  add("loss", loss)
  add("clip_ratio/low_mean", stats.clip_low)
  add("clip_ratio/high_mean", stats.clip_high)
  add("clip_ratio/region_mean", stats.clip_fraction)
  if stats.kl then add("kl", stats.kl) end
end

-- Tokens of prompts and completions, padding left out.
local function tokens_of(batch)
  local _, counts = batch.sequences:bounds()
  local n = 0
  for _, count in ipairs(counts) do n = n + count end
  return n
end

--- One update: sample, score, credit, backward, optimizer step.
--- @return table metrics  step, loss, clip_ratio/low_mean, high_mean and region_mean (see rl.clipped), kl (with
--- beta > 0), grad_norm, learning_rate, num_tokens (so far, without padding), those of rl.summary,
--- and skipped (updates left out so far) where the gradient was not finite and this one was
function Stepper:step()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local at, rows = self.at + 1, {}
  for i = 1, self.prompts do
    rows[i] = self.curriculum and self.curriculum:draw(self.rng) or self.rng:choice(self.rows)
  end
  local batch = rl.rollout(self.model, self.tokenizer, rows, self.reward, {
    group = self.group, max_new_tokens = self.max_new_tokens, temperature = self.temperature,
  })
  if self.curriculum then self.curriculum:update(batch) end
  local advantage, weight = rl.advantages(batch, { std = self.std })
  local tokens = math.max(weight:sum():item(), 1)
  local metrics = rl.summary(batch)
  metrics.loss, metrics["clip_ratio/region_mean"] = 0, 0
  metrics["clip_ratio/low_mean"], metrics["clip_ratio/high_mean"] = 0, 0
  for part in rl.parts(rl.with_signal(batch, advantage, weight, self.beta > 0), self.micro) do
    self:_part(part, tokens, #batch.rows, metrics)
  end
  local optimizer = self.optimizer
  local lr = self.schedule and self.schedule(at) or optimizer.lr
  optimizer:step { lr = lr, clip = self.clip_norm }:zero_grad()
  metrics.step, metrics.grad_norm, metrics.learning_rate = at, optimizer.grad_norm, lr
  self.at, self.seen = at, self.seen + tokens_of(batch)
  metrics.num_tokens = self.seen
  if optimizer.was_skipped then metrics.skipped = optimizer.skipped end
  return metrics
end

--- What a checkpoint keeps besides model and optimizer, which are tracked on their own: the step, which
--- the schedule goes by, the generator of prompts, the averages of a curriculum and the state of a schedule
--- that has one.
--- @return table
function Stepper:state()
  return { at = self.at, seen = self.seen, rng = self.rng:state(),
           curriculum = self.curriculum and self.curriculum:state(),
           schedule = states.of_schedule(self.schedule) }
end

--- Go on from a state. One that does not fit raises, and then nothing changed.
--- @param s table  of state(), of a stepper made with the same options
--- @return self
function Stepper:set_state(s)
  states.take("grpo", self, s, { "at", "seen" }, { rng = self.rng, curriculum = self.curriculum,
    schedule = self.schedule })
  return self
end

return require "perilune.names"(M, "perilune.algo.grpo")
