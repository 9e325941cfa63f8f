-- ppo.lua - PPO with a critic on language models as a stepper (Ziegler et al. 2019, 1909.08593; Ouyang et al. 2022,
-- 2203.02155): each :step() samples answers, scores them by any reward function, lets each token pay for its distance
-- to a reference, estimates advantages by the critic's values (GAE) and goes over them for some epochs of mini-batches.
--
-- The critic is a model of its own, a models.scorer with an optimizer of its own, or one linear layer on the hidden
-- states of the policy, whose parameters are the policy's optimizer's.
local peri = require "perilune"
local options = require "perilune.options"
local loss = require "perilune.loss"
local rl = require "perilune.rl"
local sampled = require "perilune.algo.sampled"
local scorers = require "perilune.models.scorer"
local trainer = require "perilune.algo.trainer"

local Stepper = trainer.class("ppo", { parts = { "rng", "curriculum", "kl_control" } })

local M = {}

local own = {
  critic = options.value(options.required, "module", "values of what was said so far: a models.scorer, or an nn.Linear "
    .. "of one output on the policy's hidden states"),
  critic_optimizer = options.value(options.none, "table", "over the critic's parameters; needed with a models.scorer"),
  critic_schedule = options.value(options.none, "callable", "its learning rate by step; default: its own"),
  critic_warmup = options.integer(0, "[0, inf)", "updates at first in which the critic learns alone"),
  reference = options.value(options.none, "table", "model that the KL is to; this or adapter is needed with kl_coef "
    .. "above 0"),
  prompts = options.integer(32, "[1, inf)", "prompts of an update"),
  group = options.integer(1, "[1, inf)", "completions of each prompt"),
  micro = options.integer(512, "[1, inf)", "completions in one forward and backward pass; changes no gradient"),
  mini_batches = options.integer(1, "[1, inf)", "optimizer steps of an epoch"),
  epochs = options.integer(4, "[1, inf)", "times that an update is gone over, in a new order each"),
  clip = options.number(0.2, "(0, inf]", "of the policy's ratio"),
  value_clip = options.number(0.2, "(0, inf]", "values that moved further count as if they had stopped there; inf: "
    .. "no bound"),
  vf_coef = options.number(0.1, "[0, inf)", "weight of the critic's loss"),
  gamma = options.number(1, "[0, 1]", "discount"),
  lam = options.number(0.95, "[0, 1]", "of the traces of GAE"),
  whiten = options.boolean(true, "advantages are whitened over the update"),
  whiten_rewards = options.boolean(false, "rewards of tokens are scaled to variance 1, their mean stays"),
  kl_coef = options.number(0.05, "[0, inf)", "weight of the KL to the reference in each token's reward"),
  kl = options.choice("k1", { "k1", "k2", "k3" }, "estimate of that KL, see loss.kl"),
  kl_target = options.number(options.none, "(0, inf)", "kl_coef follows it: nats an answer, see rl.kl_controller"),
  kl_horizon = options.number(10000, "(0, inf)", "answers in which kl_coef may change by a fifth"),
  missing_eos = options.number(0, "[0, inf)", "taken off the score of an answer that no stop token ended"),
  entropy_coef = options.number(0, "(-inf, inf)", "weight of the mean entropy, which is made large"),
}
for name, rule in pairs(sampled.rules) do own[name] = own[name] or rule end
local rules = trainer.rules(own)

local function check_critic(self)
  local function refuse(...) options.raise("ppo: " .. string.format(...)) end
  if scorers.is(self.critic) then
    if not self.critic_optimizer then refuse "a critic of its own needs critic_optimizer" end
    return
  end
  if self.critic_optimizer then refuse "a head on the policy is trained by optimizer: leave critic_optimizer out" end
  if self.critic.out_features ~= 1 or not self.critic.in_features then
    refuse "critic is neither a models.scorer nor an nn.Linear of one output"
  end
end

--- PPO with a critic as a stepper.
--- @param opts table
--- @return table stepper  :step() -> metrics; :state(), :set_state(s) for checkpoints
function M.new(opts)
  local self = trainer.new(Stepper, opts, rules)
  sampled.open(self, { "kl_coef" })
  check_critic(self)
  local answers = self.prompts * self.group
  if self.mini_batches > answers then
    options.raise(("ppo: mini_batches is %d, expected at most prompts x group, which is %d"):format(self.mini_batches,
      answers))
  end
  if self.kl_target then
    if self.kl_coef == 0 then options.raise "ppo: kl_target needs a kl_coef above 0 to begin with" end
    self.kl_control = rl.kl_controller { beta = self.kl_coef, target = self.kl_target, horizon = self.kl_horizon }
  end
  return self
end
options.declare(M.new, {}, rules)

-- ---- values ----

-- Values of the states that the tokens of a slice were chosen in, by a critic of its own. -- (n, N)
local function valued(self, part)
  local columns = part.sequences.ids:size(2)
  local all = self.critic:forward(part.sequences:columns(columns - 1))
  return all:narrow(2, part.from - 1, columns - part.from + 1)
end

-- Log-probabilities, entropies and, where the critic is a head of the policy, values, of one forward pass. -- (n, N)
local function forward(self, part)
  local columns = part.sequences.ids:size(2)
  local n = columns - part.from + 1
  local hidden = self.model:forward(part.sequences:columns(columns - 1)):narrow(2, part.from - 1, n) -- (n, N, D)
  local targets = part.sequences.ids:narrow(2, part.from, n):masked_fill(part.weight:eq(0), -100)
  local logp, entropy = self.model:token_logprob(hidden, targets, self.temperature, part.support)
  return logp, entropy, self.critic:forward(hidden):squeeze(-1)
end

-- ---- an update ----

-- Rewards of tokens, values, advantages and returns of what was sampled, (B, N) each, and what is logged of them.
local function prepared(self, batch)
  local u, known = { batch = batch }, {}
  local beta = self.kl_control and self.kl_control.beta or self.kl_coef
  for i, v in ipairs(batch.total) do known[i] = v == v and 1 or 0 end -- abstained from: not learned
  u.weight = batch.mask:mul(peri.tensor(known, "f32"):unsqueeze(2))
  local scores = {}
  for i, v in ipairs(batch.total) do scores[i] = v == v and v or 0 end
  local ref = beta > 0 and sampled.referred(self, batch) or nil
  local rewards = rl.token_rewards(scores, u.weight, { logp = batch.logprobs, ref = ref, beta = beta, kl = self.kl,
    ended = batch.ended, missing_eos = self.missing_eos })
  if self.whiten_rewards then rewards = rl.whiten(rewards, u.weight, { shift = false }) end
  u.values = sampled.survey(self, batch, function (part)
    if self.critic_optimizer then return valued(self, part) end
    part.weight = peri.ones({ part.n, part.sequences.ids:size(2) - part.from + 1 })
    return (select(3, forward(self, part)))
  end)
  rewards = rewards:to(u.values.dtype)
  u.advantage, u.returns = rl.token_gae(rewards, u.values, u.weight, { gamma = self.gamma, lam = self.lam })
  if self.whiten then u.advantage = rl.whiten(u.advantage, u.weight) end
  local rows = math.max(peri.tensor(known, "f32"):sum():item(), 1)
  local function mean(x) return x:sum():item() / rows end -- of sums over answers
  local score, kl = mean(peri.tensor(scores, "f32")), 0
  if ref then kl = mean(loss.kl(batch.logprobs, ref, u.weight, { estimator = self.kl })) end
  u.kl = kl
  return u, { ["objective/scores"] = score, ["objective/kl"] = kl, ["objective/kl_coef"] = beta,
    ["objective/non_score_reward"] = -beta * kl, ["objective/rlhf_reward"] = score - beta * kl,
    ["objective/entropy"] = mean(loss.counted(batch.logprobs, u.weight)) * -1,
    ["val/explained_variance"] = rl.explained_variance(u.values, u.returns, u.weight) }
end

-- Some rows of an update, as rl.parts cuts them.
local function chosen(u, list)
  local batch, index = u.batch, peri.tensor(list, "i64"):sub(1)
  local function pick(t) return t:index_select(index, 1) end
  local sequences = batch.sequences:select(list)
  return { n = #list, from = batch.from, sequences = sequences, ids = sequences.ids, logprobs = pick(batch.logprobs),
    support = batch.support and batch.support:select(list), advantage = pick(u.advantage), weight = pick(u.weight),
    returns = pick(u.returns), values = pick(u.values) }
end

-- A pass over slices of rows that have so many tokens. policy: it learns as well; first: nothing moved since sampling.
local function pass_of(self, tokens, policy, first)
  return function (part)
    local logp, entropy, values, total
    local stats = {}
    if not self.critic_optimizer then logp, entropy, values = forward(self, part)
    else
      values = valued(self, part)
      if policy then logp, entropy = sampled.scored_by(self, self.model, part) end
    end
    local critic, of = loss.value(values, part.returns, part.weight, { clip = self.value_clip < math.huge
      and self.value_clip or nil, old = part.values, tokens = tokens })
    stats["loss/value_avg"], stats["val/clipfrac_avg"] = critic:detach(), of.clip_fraction
    total = critic:mul(self.vf_coef)
    if policy then
      local wants = self.entropy_coef ~= 0
      local actor, seen = loss.policy(logp, part.logprobs, part.advantage, part.weight, { clip = self.clip,
        tokens = tokens, entropy = entropy, entropy_coef = self.entropy_coef,
        entropy_tokens = wants and tokens or nil })
      total = total:add(actor)
      local ratio = logp:detach():sub(part.logprobs):clamp({ max = loss.log_ratio_max }):exp()
      local squares = loss.counted(ratio:sub(1), part.weight):square():sum():div(tokens)
      stats["loss/policy_avg"], stats["policy/clipfrac_avg"] = actor:detach(), seen.clip_fraction
      stats["policy/entropy_avg"] = seen.entropy
      stats["policy/approxkl_avg"] = loss.counted(logp:detach():sub(part.logprobs), part.weight):square():sum()
        :div(2 * tokens)
      stats["val/ratio"], stats["val/ratio_var"] = ratio:mul(part.weight):sum():div(tokens), squares
      stats["ratio/min"], stats["ratio/max"] = seen.ratio_min, seen.ratio_max
      if first then
        for name, v in pairs(sampled.agreement(logp:detach(), part, tokens)) do stats[name] = v end
      end
    end
    return total, stats
  end
end

-- The optimizer steps of an update. policy: it learns as well as the critic.
local function learn(self, u, policy, metrics)
  local list, order = {}, {}
  for i, alive in ipairs(u.weight:ne(0):any(2):tolist()) do if alive then order[#order + 1] = i end end
  local steps, critic_norm = 0, 0
  local count = math.min(self.mini_batches, math.max(#order, 1))
  for epoch = 1, self.epochs do
    self.rng:shuffle(order)
    for k = 1, count do
      local from, to = (k - 1) * #order // count + 1, k * #order // count
      local one = {}
      if to >= from then
        local rows = chosen(u, table.move(order, from, to, 1, {}))
        local tokens = rows.weight:sum():item()
        trainer.learn(rl.parts(rows, self.micro, { by_length = true }), pass_of(self, tokens, policy, steps == 0), one)
      end
      steps, list[steps + 1] = steps + 1, one
      if self.critic_optimizer then
        local optimizer = self.critic_optimizer
        optimizer:step({ lr = self:rate(self.critic_schedule, optimizer, "critic_schedule"),
          clip = self.clip_norm }):zero_grad()
        critic_norm = critic_norm + optimizer.grad_norm
        if optimizer.was_skipped then metrics["val/skipped"] = optimizer.skipped end
        if optimizer.grad_norm > 0 then self:moved() end
      end
      self:update(metrics, epoch == self.epochs and k == count)
    end
  end
  sampled.averaged(list, metrics)
  if self.critic_optimizer then metrics["val/grad_norm"] = critic_norm / steps end
  if metrics["val/ratio_var"] then -- around its own mean
    metrics["val/ratio_var"] = math.max(metrics["val/ratio_var"] - (metrics["val/ratio"] - 1) ^ 2, 0)
  end
end

--- One update: sample, score, and the epochs of optimizer steps of policy and critic.
--- @return table metrics  names of TRL's PPOTrainer: objective/kl (an answer), objective/entropy (of an answer, by what
--- was sampled), objective/non_score_reward, objective/rlhf_reward, objective/scores, policy/approxkl_avg,
--- policy/clipfrac_avg, policy/entropy_avg, loss/policy_avg, loss/value_avg, val/clipfrac_avg, val/ratio,
--- val/ratio_var, val/num_eos_tokens; objective/kl_coef, val/explained_variance, ratio/min and max; those of
--- rl.summary; mismatch_kl and sampling/... as algo.grpo; step, loss, num_tokens, grad_norm, learning_rate and, of a
--- critic of its own, val/grad_norm; skipped, val/skipped and no_op where it is so
function Stepper:step()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local turn <close> = self:begin() -- luacheck: ignore 211
  self:try_heaviest(function ()
    local part, cache = sampled.heaviest(self) -- luacheck: ignore 211
    part.returns, part.values = part.weight, part.weight
    return (pass_of(self, part.weight:numel(), true)(part))
  end)
  self._drawn = 0
  local batch = sampled.draw(self, self.prompts)
  local metrics, eos = rl.summary(batch), 0
  for _, ended in ipairs(batch.ended) do eos = eos + (ended and 1 or 0) end
  metrics["val/num_eos_tokens"] = eos
  local u, objective = prepared(self, batch)
  for name, value in pairs(objective) do metrics[name] = value end
  learn(self, u, self.at >= self.critic_warmup, metrics)
  if self.kl_control then self.kl_control:update(math.max(u.kl, 0), #batch.rows) end
  self.seen = self.seen + self._drawn
  metrics.num_tokens = self.seen
  sampled.learned(self, metrics)
  return metrics
end

return require "perilune.names"(M, "perilune.algo.ppo")
