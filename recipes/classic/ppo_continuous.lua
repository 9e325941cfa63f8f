-- ppo_continuous.lua - proximal policy optimisation of continuous actions.
--
-- Teaches: PPO (Schulman et al. 2017, arXiv 1707.06347) with normal distributions whose deviation depends on no state.
-- The action that is sent is clipped, the one that is learned from is not; observations and rewards are scaled.
-- Run:  ./perilune run recipes/classic/ppo_continuous.lua    Pendulum as rl-zoo has it, 100,000 steps: some seconds.
--       MountainCarContinuous: --env MountainCarContinuous-v0 --normalize_obs --normalize_reward --gamma 0.99 --envs 16
--       --steps 256 --minibatches 8 --log_std 0.5 --timesteps 50000
-- Departs from rl-zoo: noise is drawn for each step, not from the state (gSDE). Seeds share running statistics.
local peri = require "perilune"
local nn, optim, rl, recipe = peri.nn, peri.optim, peri.rl, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  env         = { "Pendulum-v1", "environment with continuous actions" },
  seeds       = { 1, "networks that learn beside each other, in environments of their own", range = "[1, inf)" },
  timesteps   = { 100000, "environment steps of each network", budget = true },
  envs        = { 4, "environments of each network", range = "[1, inf)" },
  steps       = { 1024, "steps of a rollout", range = "[1, inf)" },
  epochs      = { 10, "passes over a rollout", range = "[1, inf)" },
  minibatches = { 64, "of each pass", range = "[1, inf)" },
  lr          = { 1e-3, "learning rate", range = "[0, inf)" },
  anneal_lr   = { false, "down to 0 along a line" },
  gamma       = { 0.9, "discount", range = "[0, 1]" },
  lam         = { 0.95, "of advantages", range = "[0, 1]" },
  clip        = { 0.2, "of the ratio", range = "(0, inf)" },
  vf_coef     = { 0.5, "of the value loss", range = "[0, inf)" },
  ent_coef    = { 0.0, "of the entropy bonus", range = "[0, inf)" },
  max_norm    = { 0.5, "of all gradients together", range = "(0, inf)" },
  log_std     = { 0.0, "logarithm of the deviation of actions at first" },
  clip_action = { true, "send actions within the bounds; false = the environment gets what was drawn" },
  normalize_obs    = { false, "observations by their running mean and deviation, within 10" },
  normalize_reward = { false, "rewards by the deviation of their running discounted sum, within 10" },
  hidden      = { 64, "width of both layers", range = "[1, inf)" },
  log_updates = { 1, "updates between two rows of metrics", range = "[1, inf)" },
  eval        = { 20, "episodes of each evaluation and network", range = "[1, inf)" },
})
local S, rows = cfg.seeds, cfg.seeds * cfg.envs
local updates, batch = cfg.timesteps // (cfg.envs * cfg.steps), cfg.envs * cfg.steps // cfg.minibatches
local run = recipe.start { name = "ppo_continuous", flags = cfg, total = updates, columns = { "eval", "std" } }
local env, test = peri.env.make(cfg.env, { n = rows, seed = cfg.seed }), peri.env.make(cfg.env, { n = S * cfg.eval })
if cfg.normalize_obs then env = peri.env.normalize_obs(env, { clip = 10 }) end
if cfg.normalize_reward then
  env = peri.env.clip_reward(peri.env.normalize_reward(env, { gamma = cfg.gamma }), -10, 10)
end
assert(env.action_space.kind == "box", cfg.env .. " has no continuous actions: see ppo.lua")

-- A policy and a value of each seed; rows (seeds * n, ...) of environments are (seeds, n, ...) to the networks.
local copies = nn.Copies(S, function ()
  return rl.ActorCritic { obs = env.obs_space, action = env.action_space, hidden = { cfg.hidden, cfg.hidden },
    log_std = cfg.log_std }
end, { seeds = peri.arange(S):add(cfg.seed):tolist() })
local net, opt = copies.net, optim.Adam(copies:parameters(), { lr = cfg.lr, eps = 1e-5 })
local head, obs_field = net.head, { env.obs_space.dtype, table.unpack(env.obs_space.shape) }
local rollout = peri.rollout { steps = cfg.steps, rows = rows, fields = { obs = obs_field, action = head.field,
  logp = "f32", reward = "f32", terminated = "bool", truncated = "bool", advantage = "f32", returns = "f32",
  value = "f32", final_obs = obs_field } }
run:track("net", copies):track("optimizer", opt):track("env", env):best("eval", { mode = "max", objects = { "net" } })

local function send(action) return cfg.clip_action and head:sent(action) or action end
local function choose(obs, greedy) -- for what the bare environment shows
  for _, n in ipairs(env:normalizers()) do
    obs = ((obs - n.mean) / (n.var + n.epsilon):sqrt()):clamp(-n.clip, n.clip):to "f32"
  end
  local d = net:policy(rl.apart(obs, S))
  return greedy and d:deterministic() or (d:act())
end
local function play(greedy) -- mean returns of the networks in environments of their own
  return rl.evaluate(test, function (obs) return send(rl.together(choose(obs, greedy))) end,
    { episodes = S * cfg.eval, seeds = S, seed = 1000000 }).of_seed
end
local function mean(list) return #list > 0 and peri.tensor(list, "f64"):mean():item() or nil end
local function value(obs) return net:value(obs) end
local gae = { value = value, gamma = cfg.gamma, lam = cfg.lam, seeds = S }

local how = { clip = cfg.clip, vf_coef = cfg.vf_coef, ent_coef = cfg.ent_coef }

-- Loop.
env:reset()
local random, first, began = play(false), run:restore(), peri.time() -- new networks hardly prefer an action
for update in run:steps() do
  local lr, obs, last = cfg.lr * (cfg.anneal_lr and 1 - (update - 1) / updates or 1), env.obs, nil
  for t = 1, cfg.steps do -- what is seen before a step, and what comes of it
    local _ <close> = peri.no_grad()
    local action, logp = rl.together(net:policy(rl.apart(obs, S)):act())
    local after, reward, terminated, truncated = env:step(send(action))
    rollout:set(t, { obs = obs, action = action, logp = logp, reward = reward, terminated = terminated,
      truncated = truncated, final_obs = env.final_obs })
    obs = after
  end
  gae.last = obs
  rollout:put(rl.gae(rollout, gae))
  rl.checks.bootstrap(rollout, { value = value, gamma = cfg.gamma, seeds = S })
  for epoch = 1, cfg.epochs do
    for i, b in rollout:minibatches(batch, { groups = S }) do
      local d, v = net:both(b.obs)
      local logp, entropy = d:evaluate(b.action)
      if epoch == 1 and i == 1 then rl.checks.ratio(logp, b.logp) end
      rl.checks.constant { old_logp = b.logp, advantage = b.advantage, returns = b.returns }
      local loss, of_policy, of_value = peri.ppo_loss(logp, b.logp, b.advantage, entropy, v, b.returns, b.value, how)
      loss:sum():backward()
      opt:step({ lr = lr, clip = cfg.max_norm, copies = S }):zero_grad()
      last = { policy = of_policy, value = of_value, logp = logp, old = b.logp }
    end
  end
  if update % cfg.log_updates == 0 or update == updates then
    local kl, clipped = peri.ppo_metrics(last.logp, last.old, { clip = how.clip })
    run:log(update, { ["return"] = mean(env:episodes().returns), eval = mean(play(true)), lr = lr,
      approx_kl = kl:mean(), clip_fraction = clipped:mean(), std = net.log_std:exp():mean(),
      policy_loss = last.policy:mean(), value_loss = last.value:mean(),
      explained_variance = rl.explained_variance(rollout:get "value", rollout:get "returns") },
      { steps_s = (update - first) * rows * cfg.steps / (peri.time() - began) })
  end
end

local scores, best = play(true), 1
for i, score in ipairs(scores) do best = score > scores[best] and i or best end
rl.policy.save(run:path "policy.safetensors", { net = copies:single(best), head = "gaussian", env = env })
run:plot("curves.svg", { run:last "return" and { "return", "eval" } or "eval", "std", "approx_kl" })
run:text("%s, %d steps: greedy %s; drawn %s; at first %s; best %.1f", cfg.env, cfg.timesteps,
  run:scores("greedy", scores), run:scores("drawn", play(false)), rl.report(random), select(2, run:load_best "eval"))
run:finish()
