-- grpo.lua - the loop of recipes/r1_zero.lua as a stepper, for hosts that drive it one update at a
-- time. One on-policy epoch an update; everything it does is in perilune.rl.
local peri = require "perilune"
local options = require "perilune.options"
local base = require "perilune.models.base"
local batches = require "perilune.text.batch"
local rl = require "perilune.rl"
local trainer = require "perilune.algo.trainer"

local Stepper = trainer.class("grpo", { parts = { "rng", "curriculum" } })

local M = {}

local rules = trainer.rules {
  model = options.value(options.required, "table", "the policy that is trained, a causal model of perilune.models"),
  tokenizer = options.value(options.required, "table", "of perilune.tokenizer or perilune.text"),
  rows = options.value(options.required, "table", "{ prompt = ... } each: a list, a stream, or an rl.curriculum"),
  reward = options.value(options.required, "callable or table", "see rl.score"),
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
  seed = options.integer(1, nil, "of which prompts are drawn"),
}

--- GRPO (DeepSeekMath, 2402.03300) as a stepper: each :step() samples, scores, credits and updates.
--- @param opts table
--- @return table stepper  :step() -> metrics; :state(), :set_state(s) for checkpoints
function M.new(opts)
  local self = trainer.new(Stepper, opts, rules)
  local why = base.no_causal(self.model)
  if why then error("grpo: " .. why, 2) end
  if self.beta > 0 and not self.reference then error("grpo: beta > 0 needs a reference model", 2) end
  if type(self.rows.collect) == "function" then self.rows = self.rows:collect() end -- a stream of perilune.data
  if self.rows.draw then
    self.curriculum = self.rows
  elseif #self.rows == 0 then
    error("grpo: there are no rows", 2)
  end
  self.rng = peri.rng(self.seed)
  return self
end
options.declare(M.new, {}, rules)

-- A pass over slices of an update that has so many tokens and sequences.
local function pass_of(self, tokens, sequences)
  local how = { temperature = self.temperature }
  return function (part)
    local ref
    if self.beta > 0 then
      ref = peri.no_grad(function () return (self.reference:token_logprobs(part.sequences, part.from, how)) end)
    end
    local logp = self.model:token_logprobs(part.sequences, part.from, how)
    local loss, stats = rl.clipped(logp, part.logprobs, part.advantage, part.weight, {
      clip = self.clip, clip_high = self.clip_high, beta = self.beta, ref = ref, level = self.level,
      reduce = self.reduce, tokens = tokens, sequences = sequences, max_length = self.max_new_tokens,
    })
    return loss, { ["clip_ratio/low_mean"] = stats.clip_low, ["clip_ratio/high_mean"] = stats.clip_high,
      ["clip_ratio/region_mean"] = stats.clip_fraction, kl = stats.kl }
  end
end

-- Bytes of a row's prompt: what is long in tokens is among what is long in bytes.
local function bytes_of(row)
  if type(row.prompt) == "string" then return #row.prompt end
  local n = 0
  for _, message in ipairs(type(row.prompt) == "table" and row.prompt or {}) do
    n = n + #tostring(message.content or message.value or "")
  end
  return n
end

-- A slice as an update may have it: the longest prompts, with completions as long as they may be. And how many
-- sequences an update has.
local function heaviest(self)
  local rows = self.curriculum and self.curriculum.rows or self.rows
  local prompts = rl.prompts(self.tokenizer, trainer.longest(rows, 4 * self.prompts, bytes_of)):unpad()
  local list, sequences = trainer.longest(prompts, self.prompts, function (ids) return #ids end), {}
  local config = self.model.config or {}
  local context = config.max_position_embeddings or config.n_positions or math.huge
  local longest = math.max(1, math.min(self.max_new_tokens, context - #list[1]))
  for i = 1, math.min(self.micro, #list * self.group) do
    local ids = list[(i - 1) // self.group + 1]
    sequences[i] = table.move(ids, 1, #ids, 1, {})
    for k = 1, longest do sequences[i][#ids + k] = ids[#ids] end
  end
  local shape = { #sequences, longest }
  return { n = #sequences, sequences = batches.pad(sequences, { side = "left", pad = 0 }), from = #list[1] + 1,
           logprobs = peri.zeros(shape), advantage = peri.ones(shape), weight = peri.ones(shape) },
    self.prompts * self.group
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
--- skipped (updates left out so far) where the gradient was not finite and this one was, and no_op (such updates so
--- far) where it moved nothing
function Stepper:step()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  self:probe(function ()
    local part, sequences = heaviest(self)
    local cache = self.model:cache(sequences, part.sequences.ids:size(2)) -- luacheck: ignore 211
    return (pass_of(self, part.weight:numel(), part.n)(part))
  end)
  local rows = {}
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
  metrics["clip_ratio/region_mean"] = 0
  metrics["clip_ratio/low_mean"], metrics["clip_ratio/high_mean"] = 0, 0
  self:learn(rl.parts(rl.with_signal(batch, advantage, weight, self.beta > 0), self.micro, { by_length = true }),
    pass_of(self, tokens, #batch.rows), metrics)
  self.seen = self.seen + tokens_of(batch)
  metrics.num_tokens = self.seen
  return self:update(metrics)
end

return require "perilune.names"(M, "perilune.algo.grpo")
