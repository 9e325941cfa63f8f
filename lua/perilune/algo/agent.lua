-- agent.lua - PPO on environments as a stepper (Schulman et al. 2017, 1707.06347): each :step() plays a rollout,
-- estimates advantages (GAE) and goes over it for some epochs of minibatches. recipes/classic/ppo.lua shows the same
-- loop in full; here it is once for whatever builds on it. What rewards are, and what becomes of advantages, are hooks.
local peri = require "perilune"
local options = require "perilune.options"
local phases = require "perilune.phases"
local rl = require "perilune.rl"
local trainer = require "perilune.algo.trainer"

local Stepper = trainer.class "agent"

local M = {}

local rules = {
  env = options.value(options.required, "table", "environments (peri.env.make with n) whose episodes reset within a "
    .. "step; rows of a learner one behind the other. Track it, net and optimizer with the run"),
  net = options.value(options.required, "module", "rl.ActorCritic, or nn.Copies of one for several learners; a module "
    .. "of your own has head, policy, value and both as that has"),
  seeds = options.integer(options.none, "[1, inf)", "learners; default: as many as nn.Copies has, else 1"),
  optimizer = trainer.common.optimizer, schedule = trainer.common.schedule,
  clip_norm = options.number(0.5, "(0, inf]", "largest norm of the gradient of each learner; math.huge: any"),
  steps = options.integer(128, "[1, inf)", "of a rollout, in every environment"),
  epochs = options.integer(4, "[1, inf)", "passes over a rollout"),
  minibatches = options.integer(4, "[1, inf)", "of each pass"),
  gamma = options.number(0.99, "[0, 1]", "discount"),
  lam = options.number(0.95, "[0, 1]", "of advantages: 1 is all rewards, 0 the next value"),
  truncation = options.choice("bootstrap", { "bootstrap", "ignore" }, "what follows a cut episode: the value of where "
    .. "it was, or nothing"),
  normalize = options.boolean(true, "advantages, in each minibatch"),
  clip = options.number(0.2, "(0, inf]", "of the ratio; math.huge: none"),
  clip_value = options.number(options.none, "(0, inf)", "range around old values; default: any value"),
  vf_coef = options.number(0.5, "[0, inf)", "of the value loss"),
  ent_coef = options.number(0, "[0, inf)", "of the entropy bonus"),
  target_kl = options.number(options.none, "(0, inf)", "of one learner: no further pass behind one with more"),
  reward = options.value(options.none, "callable", "reward(rollout) -> (steps, rows) f32: what is learned from in the "
    .. "place of the environment's rewards, before advantages; the rollout keeps those as true_reward then. It may "
    .. "learn something of its own"),
  advantage = options.value(options.none, "callable", "advantage(rollout, advantage, returns) -> advantage, and "
    .. "returns that the values learn where they change, (steps, rows) each"),
}

local function refuse(...) options.raise("agent: " .. string.format(...)) end

local function check(self, copies)
  local env = self.env
  if not env.n or type(env.step) ~= "function" then
    refuse "env is no batch of environments: make it with n"
  elseif env._autoreset ~= "same_step" then
    refuse("%s: autoreset is %s, expected \"same_step\": other rows would be learned from that are no steps", env.id,
      tostring(env._autoreset))
  end
  local known = copies and self.net.n or 1
  if self.seeds and self.seeds ~= known then refuse("seeds is %d, the net has %d learners", self.seeds, known) end
  self.seeds = known
  if env.n % known ~= 0 then -- agents of one environment belong to one learner, or learners are not independent
    refuse("%d learners do not share %d environments: make n a multiple of %d", known, env.n, known)
  end
  if self.target_kl and known > 1 then refuse "target_kl ends the passes of one learner, and there are several" end
  local each = env.rows // known * self.steps
  if self.minibatches > each then refuse("minibatches is %d, a rollout has %d steps", self.minibatches, each) end
  return each // self.minibatches
end

--- PPO on environments as a stepper: recipes/classic/ppo.lua's loop, of one network or of several that learn beside
--- each other, with the same numbers to the last digit. Fields named as the number options may be set between steps.
---
---     local agent = peri.algo.agent.new { env = env, net = copies, optimizer = opt, ent_coef = 0.01 }
---     for update in run:steps() do run:log(update, agent:step()) end
---
--- The rollout, agent.rollout, has (steps, rows, ...) of obs, action, logp, reward, terminated, truncated, advantage,
--- returns, value, final_obs (but with truncation "ignore"), true_reward (with reward), mask and metrics (where the
--- environment has them; docs/environments.md); agent.last is what is seen behind its last step. With several agents
--- (env.live) it has live, who acted, and counts, which steps are learned from: rl.turn_gae.
--- @param opts table
--- @return table stepper  :step() -> metrics; :act, :play; :state(), :set_state(s) for checkpoints
function M.new(opts)
  local self = trainer.new(Stepper, opts, rules)
  local copies = self.net.n ~= nil and self.net.net ~= nil
  self.batch = check(self, copies)
  self.model = copies and self.net.net or self.net -- the name that trainers know
  self.copies = copies and self.seeds or nil
  local env, head, model = self.env, self.model.head, self.model
  if not (head and model.policy and model.value and model.both) then
    refuse "net has none of head, policy, value and both: expected rl.ActorCritic, or nn.Copies of it"
  end
  local obs = { env.obs_space.dtype, table.unpack(env.obs_space.shape) }
  self.rollout = peri.rollout { steps = self.steps, rows = env.rows, fields = { obs = obs, action = head.field,
    logp = "f32", reward = "f32", terminated = "bool", truncated = "bool", advantage = "f32", returns = "f32",
    value = "f32", final_obs = self.truncation == "bootstrap" and obs or nil,
    true_reward = self.reward and "f32" or nil, mask = env.mask and { "bool", head.size } or nil,
    metrics = env.metrics and { "f32", #env.metric_names } or nil, live = env.live and "bool" or nil,
    counts = env.live and "bool" or nil } }
  self.value = function (x) return model:value(x) end
  -- The same steps without Lua values, where a network is a plain one.
  self.quick = not (copies or env.mask or env.metrics or env.live or env.obs_space.n or model.trunk)
    and getmetatable(model) == rl.ActorCritic and head.kind == "discrete" and head.start == 0
  self.ended = { returns = {}, lengths = {}, rows = {}, dropped = 0 }
  return self
end
options.declare(M.new, {}, rules)

-- The policy of what every row sees, (seeds, rows of each, ...).
local function policy(self, obs, mask)
  return self.model:policy(rl.apart(obs, self.seeds), rl.apart(mask, self.seeds))
end

local act_rules = {
  mask = options.value(options.none, "tensor", "(rows, choices) bool, which actions are legal"),
  greedy = options.boolean(false, "the likeliest action, or the mean, in the place of one that is drawn"),
}

--- Actions of every learner in rows of its own, as an environment takes them; nothing is recorded for gradients.
--- @param obs perilune.Tensor  (rows, ...) as the networks see them, rows of a learner one behind the other
--- @param opts table?
--- @return perilune.Tensor
function Stepper:act(obs, opts)
  local o = options.fill("agent:act", opts, act_rules)
  local _ <close> = peri.no_grad()
  local d = policy(self, obs, o.mask)
  return self.model.head:sent(rl.together(o.greedy and d:deterministic() or (d:act())))
end
options.declare(Stepper.act, { "self", "obs" }, act_rules)

local play_rules = {
  episodes = options.integer(20, "[1, inf)", "of each learner"),
  greedy = options.boolean(true, act_rules.greedy.doc),
  seed = options.integer(options.none, "[0, inf)", "of row 1 of the environment, the next one has seed + 1"),
}

--- Whole episodes of every learner in environments of their own: rl.evaluate. Where wrappers of the environment that
--- is learned in scale observations by their statistics (env:normalizers), so are those of the bare one here.
--- @param env perilune.env.Env  with so many rows that the learners share them
--- @param opts table?
--- @return table  of rl.evaluate: of_seed has the mean return of each learner
function Stepper:play(env, opts)
  local o = options.fill("agent:play", opts, play_rules)
  local scales = self.env:normalizers()
  return rl.evaluate(env, function (obs)
    for _, n in ipairs(scales) do
      obs = (obs - n.mean) / (n.var + n.epsilon):sqrt()
      obs = (n.clip and obs:clamp(-n.clip, n.clip) or obs):to "f32"
    end
    return self:act(obs, { mask = env.mask, greedy = o.greedy })
  end, { episodes = o.episodes * self.seeds, seeds = self.seeds, seed = o.seed })
end
options.declare(Stepper.play, { "self", "env" }, play_rules)

-- A rollout: what is seen before each step, and what comes of it.
local function collect(self)
  local env, rollout, head = self.env, self.rollout, self.model.head
  if self.quick then return env:collect(rollout, self.model.actor) end
  local phase <close> = phases.open "rollout" -- luacheck: ignore 211
  local obs, cut = env.obs, self.truncation == "bootstrap"
  for t = 1, self.steps do
    local _ <close> = peri.no_grad()
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local mask = env.mask
    local action, logp = rl.together(policy(self, obs, mask):act())
    rollout:set(t, { obs = obs, action = action, logp = logp, mask = mask, live = env.live })
    local after, reward, terminated, truncated = env:step(head:sent(action))
    rollout:set(t, { reward = reward, terminated = terminated, truncated = truncated,
      final_obs = cut and env.final_obs or nil, metrics = env.metrics })
    obs = peri.keep(after)
  end
  return obs
end

-- What a hook gave, if it is what was asked of it.
local function checked(self, name, x)
  if not peri.is_tensor(x) or x.ndim ~= 2 or x.shape[1] ~= self.steps or x.shape[2] ~= self.env.rows then
    refuse("%s gave %s, expected a tensor (%d, %d), steps and rows", name,
      peri.is_tensor(x) and options.shape(x) or type(x), self.steps, self.env.rows)
  end
  if not x:isfinite():all():item() then refuse("%s gave a number that is not finite", name) end
  return x:detach():to "f32"
end

-- Rewards that are learned from, and what they say of each step; metrics get what they were.
local function credit(self, metrics)
  local rollout = self.rollout
  if self.reward then
    rollout:put { true_reward = rollout:get "reward" }
    rollout:put { reward = checked(self, "reward", (self.reward(rollout))) }
    metrics.true_reward = rollout:get("true_reward"):mean():item()
  end
  metrics.reward = rollout:get("reward"):mean():item()
  local how = { value = self.value, last = self.last, gamma = self.gamma, lam = self.lam, seeds = self.seeds,
    truncation = self.truncation, live = self.env.live }
  local found = how.live and rl.turn_gae(rollout, how) or rl.gae(rollout, how)
  rollout:put(found)
  if self.truncation == "bootstrap" and not how.live then
    rl.checks.bootstrap(rollout, { value = self.value, gamma = self.gamma, seeds = self.seeds })
  end
  if self.advantage then
    local advantage, returns = self.advantage(rollout, found.advantage, found.returns)
    rollout:put { advantage = checked(self, "advantage", advantage),
      returns = returns and checked(self, "advantage, of returns,", returns) or nil }
  end
  metrics.explained_variance = rl.explained_variance(rollout:get "value", rollout:get "returns", found.counts)
end

-- A step by one minibatch; what is said of it.
local function learn(self, b, first, how)
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local d, v = self.model:both(b.obs, b.mask)
  local logp, entropy = d:evaluate(b.action)
  if first then rl.checks.ratio(logp, b.logp) end
  rl.checks.constant { old_logp = b.logp, advantage = b.advantage, returns = b.returns }
  how.mask = b.counts
  local loss, of_policy, of_value, of_entropy = peri.ppo_loss(logp, b.logp, b.advantage, entropy, v, b.returns,
    b.value, how)
  loss:sum():backward()
  if first then self:want_reached() end
  if b.counts then entropy = of_entropy end
  return { logp = peri.keep(logp:detach()), old = b.logp, counts = b.counts, entropy = peri.keep(entropy:detach()),
    policy = peri.keep(of_policy:detach()), value = peri.keep(of_value:detach()), loss = peri.keep(loss:detach()) }
end

--- One update: a rollout, advantages, and the passes over it.
--- @return table metrics  return (mean of the episodes that ended, as the environment rewards them; nil: none did) and
--- episodes, how many; reward (mean of a step, of what is learned from), true_reward (with the hook reward);
--- explained_variance; of the last minibatch loss, policy_loss, value_loss, entropy, approx_kl, clip_fraction; step,
--- env_steps (of each learner so far), passes, grad_norm, learning_rate; skipped and no_op where it is so. agent.ended
--- has the episodes by row, as env:episodes
function Stepper:step()
  local turn <close> = self:begin() -- luacheck: ignore 211
  if self.at == 0 then self.env:reset() end
  local metrics, last, passes = {}, nil, 0
  self.last = collect(self)
  credit(self, metrics)
  local how = { clip = math.min(self.clip, 1e30), clip_value = self.clip_value, vf_coef = self.vf_coef,
    ent_coef = self.ent_coef, normalize = self.normalize }
  for epoch = 1, self.epochs do
    passes = epoch
    for i, b in self.rollout:minibatches(self.batch, { groups = self.seeds }) do
      last = learn(self, b, epoch == 1 and i == 1, how)
      self:update(metrics, false)
    end
    local kl = self.target_kl and peri.ppo_metrics(last.logp, last.old, { mask = last.counts }):item()
    if kl and kl > self.target_kl then break end
  end
  self:counted(metrics)
  self.seen = self.seen + self.env.rows // self.seeds * self.steps
  self.ended = self.env:episodes()
  local returns = self.ended.returns
  local kl, clipped = peri.ppo_metrics(last.logp, last.old, { mask = last.counts, clip = how.clip })
  metrics["return"] = #returns > 0 and peri.tensor(returns, "f64"):mean():item() or nil
  metrics.episodes, metrics.env_steps, metrics.passes = #returns, self.seen, passes
  metrics.approx_kl, metrics.clip_fraction = kl:mean():item(), clipped:mean():item()
  metrics.entropy, metrics.loss = last.entropy:mean():item(), last.loss:mean():item()
  metrics.policy_loss, metrics.value_loss = last.policy:mean():item(), last.value:mean():item()
  return metrics
end

return require "perilune.names"(M, "perilune.algo.agent")
