-- grpo.lua - policy gradients over groups of sampled answers as a stepper: GRPO and its kin. Each :step() samples,
-- scores,
-- credits and updates. What the variants differ in are options of rl.advantages and loss.policy, which are taken here
-- as they are; preset names a paper's.
--
-- Three numbers set the batch: an update learns from prompts x group answers, micro of them in one pass, which is a
-- matter of memory and speed alone. With mini_batches or iterations above 1 an update takes several optimizer steps,
-- all
-- but the first of them off-policy, with the log-probabilities of the policy that sampled.
local peri = require "perilune"
local options = require "perilune.options"
local loss = require "perilune.loss"
local optim = require "perilune.optim"
local estimator = require "perilune.rl.estimator"
local rl = require "perilune.rl"
local sampled = require "perilune.algo.sampled"
local trainer = require "perilune.algo.trainer"

local Stepper = trainer.class("grpo", { parts = { "rng", "curriculum", "entropy_control" } })

local M = {}

local own = {
  preset = options.choice(options.none, options.names(rl.presets), "a paper's options, which others go before"),
  reference = options.value(options.none, "table", "model that the KL is to; this or adapter is needed with beta or "
    .. "reward_beta above 0"),
  reference_every = options.integer(options.none, "[1, inf)", "updates after which the reference becomes the policy; "
    .. "it is then tracked like the model"),
  reference_mix = options.number(1, "(0, 1]", "how far it goes towards the policy then (TR-DPO)"),
  prompts = options.integer(32, "[1, inf)", "prompts of an update"),
  group = options.integer(16, "[1, inf)", "completions of each prompt"),
  micro = options.integer(512, "[1, inf)", "completions in one forward and backward pass; changes no gradient"),
  mini_batches = options.integer(1, "[1, inf)", "optimizer steps over parts of an update"),
  iterations = options.integer(1, "[1, inf)", "times that an update is gone over"),
  dynamic = options.boolean(false, "sample on until there are as many groups with a spread of rewards as prompts "
    .. "(DAPO); see rl.refill"),
  draws = options.integer(10, "[1, inf)", "dynamic: rollouts of an update at most"),
  clip_high = options.number(options.none, "(0, inf]", "see loss.policy; default: 0.28, of a preset the preset's"),
  entropy_target = options.number(options.none, "[0, inf)", "entropy_coef follows it: see rl.entropy_controller"),
  importance = options.value(options.none, "table", "options of loss.importance: truncated importance sampling, for "
    .. "batches of samplers; changes nothing where sampling and training agree to the bit"),
  routing_replay = options.boolean(false, "mixtures of experts: all passes of an update go to the experts that the "
    .. "policy chose when it began; changes nothing in the first"),
  shared_prompt = options.boolean(false, "read the prompt of a group once for its answers: for long prompts; the "
    .. "gradient then depends on micro in its last bits"),
}
for _, more in ipairs { sampled.rules, loss.policy_rules, rl.advantage_rules } do
  for name, rule in pairs(more) do own[name] = own[name] or rule end
end
local rules = trainer.rules(own)

-- ---- making ----

-- The options of a preset behind those that were given.
local function with_preset(opts)
  if type(opts) ~= "table" or type(opts.preset) ~= "string" or not rawget(rl.presets, opts.preset) then return opts end
  local out = rl.preset(opts.preset)
  for name, value in pairs(opts) do out[name] = value end
  return out
end

local function refuse(...) options.raise("grpo: " .. string.format(...)) end

--- Policy gradients over groups of answers as a stepper: GRPO (DeepSeekMath, 2402.03300) and its kin, by `preset` or
--- by the options of rl.advantages and loss.policy.
--- @param opts table
--- @return table stepper  :step() -> metrics; :state(), :set_state(s) for checkpoints
function M.new(opts)
  local self = trainer.new(Stepper, with_preset(opts), rules)
  sampled.open(self, { "beta", "reward_beta" })
  if self.reference_every and not self.reference then
    refuse(self.adapter and "reference_every: the base of an adapter stays as it is: give a reference"
      or "reference_every needs a reference model")
  end
  if not self.preset and (self.objective == "clip" or self.objective == "cispo") then
    self.clip_high = self.clip_high or 0.28
  end
  if self.samplers and (self.dynamic or self.estimator == "remax") then
    refuse("samplers make one batch an update: %s does not go with them", self.dynamic and "dynamic"
      or 'estimator "remax"')
  end
  if self.group == 1 and estimator.of_groups[self.estimator] then
    refuse("group is 1: estimator %q compares the answers of a group; reinforce, reinforce_plus_plus and remax do not",
      self.estimator)
  end
  if self.routing_replay and self.shared_prompt then refuse "routing_replay does not go with shared_prompt" end
  if self.mini_batches > self.prompts then
    refuse("mini_batches is %d, expected at most prompts, which is %d", self.mini_batches, self.prompts)
  end
  if self.entropy_target then
    self.entropy_control = rl.entropy_controller { target = self.entropy_target, coef = self.entropy_coef }
  end
  return self
end
options.declare(M.new, {}, rules)

-- ---- sampling ----

-- Answers to n prompts.
local function draw(self, n)
  local batch, how = sampled.draw(self, n)
  if self.estimator == "remax" then
    how.group, how.sampling = nil, nil
    batch.baseline = rl.greedy_rewards(batch, self.model, self.tokenizer, self.reward, how)
  end
  return batch
end

-- What an update learns from, and what is logged of it; of dynamic sampling that found nothing, the last draw.
local function sample(self)
  if not self.dynamic then
    local batch = draw(self, self.prompts)
    return batch, rl.summary(batch)
  end
  local last
  local batch, metrics = rl.refill(function (n)
    last = draw(self, n)
    return last
  end, self.prompts, { most = self.draws })
  for name, value in pairs(rl.summary(batch or last)) do metrics[name] = value end
  return batch or last, metrics
end

-- ---- learning ----

-- A part of the rows of an update: rl.with_signal of rows first to last, with their (B, N) tensors.
local function chosen(self, u, first, n)
  local function narrow(t) return t and t:narrow(1, first, n) end
  local batch = u.batch
  local some = { from = batch.from, sequences = batch.sequences:rows(first, n), logprobs = narrow(batch.logprobs),
    support = batch.support and batch.support:rows(first, n), routes = narrow(batch.routes), group = batch.group,
    mask = narrow(batch.mask) }
  some.ids, some.tokens = some.sequences.ids, table.move(batch.tokens, first, first + n - 1, 1, {})
  local advantage, weight = narrow(u.advantage), narrow(u.weight)
  local totals = loss.totals(weight, { entropy = narrow(u.entropy), top_entropy = self.top_entropy })
  totals.max_length = self.max_new_tokens
  local rows, more = rl.with_signal(some, advantage, weight, u.all), {}
  for _, name in ipairs { "ref", "old", "factor" } do
    more[name] = narrow(u[name])
    rows[name] = more[name] and more[name]:index_select(rows.index, 1)
  end
  local counted = rows.weight:sum():item()
  return { rows = rows, totals = totals, counted = counted, groups = self.shared_prompt and function ()
    return rl.groups(some, advantage, weight, u.all, more)
  end }
end

-- Rows of part k of an update: first and how many; dynamic sampling may have found fewer than there are parts for.
local function range(self, u, k)
  local each, count = self.prompts // self.mini_batches * self.group, #u.batch.rows
  local first = (k - 1) * each + 1
  return first, k == self.mini_batches and count - first + 1 or math.min(each, count - first + 1)
end

-- A pass over slices of a part that has these totals. counted: tokens of the slices, where no optimizer step was taken
-- since sampling.
local function pass_of(self, totals, counted, coefficient)
  local how = sampled.those(self, loss.policy_rules)
  for name, value in pairs(totals) do how[name] = value end
  how.entropy_coef = coefficient or self.entropy_coef
  local wants_entropy = how.entropy_coef ~= 0 or self.top_entropy < 1
  return function (part)
    local logp, entropy
    if part.prompt then
      local with = { temperature = self.temperature, support = part.support }
      logp, entropy = rl.completion_logprobs(self.model, part.prompt, part.completions, with)
    else logp, entropy = sampled.scored_by(self, self.model, part) end
    how.ref, how.sampled, how.factor = part.ref, part.logprobs, part.factor
    how.entropy = wants_entropy and entropy or nil
    local value, stats = loss.policy(logp, part.old or part.logprobs, part.advantage, part.weight, how)
    local metrics = loss.named(stats)
    if self.objective == "cispo" then metrics.cispo_clip_ratio = stats.clip_high end
    if how.entropy_coef ~= 0 and self.top_entropy == 1 then -- the loss without the bonus
      metrics.policy_loss = value:detach():add(stats.entropy:mul(how.entropy_coef))
    end
    metrics.mismatch_kl, metrics.entropy = nil, nil -- see agreement; rl.summary has one over all rows
    if counted then
      for name, v in pairs(sampled.agreement(logp, part, counted)) do metrics[name] = v end
    end
    return value, metrics
  end
end

-- The passes of one optimizer step.
local function learn_part(self, u, k, metrics)
  local first, n = range(self, u, k)
  if n < 1 then return end
  local c = chosen(self, u, first, n)
  local fresh = not u.moved and c.counted > 0
  u.moved = u.moved or fresh
  trainer.learn_by(function (each)
    if not c.groups then
      for part in rl.parts(c.rows, self.micro, { by_length = true }) do each(part) end
      return
    end
    for group in c.groups() do
      local prompt = rl.shared_prompt(self.model, group.prompt)
      for part in group:parts(self.micro) do
        part.prompt = prompt
        each(part)
      end
      prompt:backward { chain = true }
    end
  end, pass_of(self, c.totals, fresh and c.counted or nil, u.coefficient), metrics)
end

-- What an update knows: advantages, and what its loss needs of the policy before the first step; moved: a step was
-- taken that had a gradient.
local function prepared(self, batch)
  local u = { batch = batch }
  u.coefficient = self.entropy_control and self.entropy_control:value() or self.entropy_coef
  u.ref = (self.beta > 0 or self.reward_beta > 0) and sampled.referred(self, batch) or nil
  local how = sampled.those(self, rl.advantage_rules)
  how.ref = self.reward_beta > 0 and u.ref or nil
  u.advantage, u.weight = rl.advantages(batch, how)
  if self.beta == 0 then u.ref = nil end
  u.all = self.beta > 0 or u.coefficient ~= 0 -- rows without an advantage have a gradient as well
  if self.importance or self.top_entropy < 1 then
    u.old, u.entropy = sampled.survey(self, batch, function (part) return sampled.scored_by(self, self.model, part) end)
  end
  if self.importance then
    local stats
    u.factor, stats = loss.importance(u.old, batch.logprobs, u.weight, self.importance)
    u.importance = { ["importance/masked"] = stats.masked:item(), ["importance/held"] = stats.held:item() }
  else u.old = nil end
  if self.routing_replay then
    batch.routes = sampled.survey(self, batch, function (part) return self.model:routes(part.sequences) end)
  end
  return u
end

--- One update: sample, score, credit, and the passes and optimizer steps.
--- @return table metrics  TRL's names: step, loss, num_tokens (so far, without padding; of dynamic sampling all that
--- was drawn), those of rl.summary and, with dynamic, rl.refill; clip_ratio/low_mean, low_min, high_mean, high_max and
--- region_mean, cispo_clip_ratio (of that objective), ratio/min and max (see loss.named), kl (with beta), policy_loss
--- (with an entropy bonus: the loss without it), entropy_coef (with entropy_target); mismatch_kl,
--- sampling/sampling_logp_difference/mean and max, sampling/importance_sampling_ratio/min, mean and max (of the passes
--- before the first optimizer step: 0 and 1), with importance importance/masked and held; grad_norm, learning_rate;
--- with samplers staleness (updates that the batch's weights were old); skipped (updates left out so far) where the
--- gradient was not finite and this one was, and no_op (such updates so far) where it moved nothing
function Stepper:step()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local turn <close> = self:begin() -- luacheck: ignore 211
  self:try_heaviest(function ()
    local part, cache = sampled.heaviest(self) -- luacheck: ignore 211
    if self.beta > 0 then part.ref = part.logprobs end
    if self.importance then part.factor = part.weight end
    return (pass_of(self, { tokens = part.weight:numel(), sequences = part.n, max_length = self.max_new_tokens,
      entropy_floor = self.top_entropy < 1 and 0 or nil })(part))
  end)
  self._drawn = 0
  local batch, metrics = sample(self)
  local u, list = prepared(self, batch), {}
  local steps = self.iterations * self.mini_batches
  for i = 1, steps do
    local one = { ["clip_ratio/region_mean"] = 0, ["clip_ratio/low_mean"] = 0, ["clip_ratio/high_mean"] = 0,
                  ["clip_ratio/low_min"] = 0, ["clip_ratio/high_max"] = 0 }
    learn_part(self, u, (i - 1) % self.mini_batches + 1, one)
    list[i] = one
    self:update(metrics, i == steps)
  end
  sampled.averaged(list, metrics)
  for name, value in pairs(u.importance or {}) do metrics[name] = value end
  if self.entropy_control then
    metrics.entropy_coef = u.coefficient
    self.entropy_control:update(metrics.entropy)
  end
  if self.reference_every and self.at % self.reference_every == 0 then
    if self.reference_mix == 1 then self.reference:load_state_dict((self.model:state_dict())) -- to the bit
    else optim.ema_(self.reference, self.model, 1 - self.reference_mix) end
  end
  self.seen = self.seen + self._drawn
  metrics.num_tokens = self.seen
  sampled.learned(self, metrics)
  return metrics
end

return require "perilune.names"(M, "perilune.algo.grpo")
