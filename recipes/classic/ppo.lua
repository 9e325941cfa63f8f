-- ppo.lua - proximal policy optimisation: steps that keep a policy near the one that acted.
--
-- Teaches: PPO (Schulman et al. 2017, arXiv 1707.06347, eq. 7 and 9) with what the paper leaves out ("The 37
-- implementation details of PPO", ICLR blog track 2022), each behind a flag. Masks of legal actions.
-- Run:  ./perilune run recipes/classic/ppo.lua    CartPole as CleanRL has it, 500,000 steps: seconds on two cores;
--       --seeds 10 learns ten networks at once. rl-zoo's: --timesteps 100000 --envs 8 --steps 32 --minibatches 1
--       --epochs 20 --gamma 0.98 --lam 0.8 --ent_coef 0 --lr 1e-3 --anneal_clip --clip_value 0
-- Departs from the paper by those details; from CleanRL: an episode that is cut bootstraps (--truncation ignore: not).
local peri = require "perilune"
local nn, optim, rl, recipe = peri.nn, peri.optim, peri.rl, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  env         = { "CartPole-v1", "environment with discrete actions" },
  seeds       = { 1, "networks that learn beside each other, in environments of their own", range = "[1, inf)" },
  timesteps   = { 500000, "environment steps of each network", budget = true },
  envs        = { 4, "environments of each network", range = "[1, inf)" },
  steps       = { 128, "steps of a rollout", range = "[1, inf)" },
  epochs      = { 4, "passes over a rollout", range = "[1, inf)" },
  minibatches = { 4, "of each pass", range = "[1, inf)" },
  lr          = { 2.5e-4, "learning rate", range = "[0, inf)" },
  anneal_lr   = { true, "down to 0 along a line" },
  adam_eps    = { 1e-5, "of Adam (PyTorch's default is 1e-8)", range = "(0, inf)" },
  gamma       = { 0.99, "discount", range = "[0, 1]" },
  lam         = { 0.95, "of advantages: 1 is all rewards, 0 the next value", range = "[0, 1]" },
  truncation  = { "bootstrap", "what follows a cut; ignore = nothing", choices = { "bootstrap", "ignore" } },
  normalize   = { true, "advantages, in each minibatch" },
  clip        = { 0.2, "of the ratio; 0 = none", range = "[0, inf)" },
  anneal_clip = { false, "down to 0 along a line" },
  clip_value  = { 0.2, "range around old values; 0 = none", range = "[0, inf)" },
  vf_coef     = { 0.5, "of the value loss", range = "[0, inf)" },
  ent_coef    = { 0.01, "of the entropy bonus", range = "[0, inf)" },
  max_norm    = { 0.5, "of all gradients together; 0 = any", range = "[0, inf)" },
  target_kl   = { 0.0, "no further pass behind one with more; 0 = any", range = "[0, inf)" },
  hidden      = { 64, "width of both layers", range = "[1, inf)" },
  shared      = { false, "one trunk for policy and value" },
  orthogonal  = { true, "initial weights; false = PyTorch's" },
  log_updates = { 50, "updates between two rows of metrics", range = "[1, inf)" },
  eval        = { 20, "episodes of each evaluation and network", range = "[1, inf)" },
})
assert(cfg.target_kl == 0 or cfg.seeds == 1, "--target_kl stops the updates of one network: --seeds 1")
local S, rows, ignore = cfg.seeds, cfg.seeds * cfg.envs, cfg.truncation == "ignore"
local updates, batch = cfg.timesteps // (cfg.envs * cfg.steps), cfg.envs * cfg.steps // cfg.minibatches
local run = recipe.start { name = "ppo", flags = cfg, total = updates, columns = { "return", "eval", "entropy" } }
local env = peri.env.make(cfg.env, { n = rows, seed = cfg.seed, copy = false })
local test = peri.env.make(cfg.env, { n = S * cfg.eval, copy = false })
assert(env.action_space.kind ~= "box", cfg.env .. " has continuous actions: see ppo_continuous.lua")

-- A policy and a value of each seed; rows (seeds * n, ...) of environments are (seeds, n, ...) to the networks.
local shape = { obs = env.obs_space, action = env.action_space, hidden = { cfg.hidden, cfg.hidden },
  shared = cfg.shared, init = cfg.orthogonal and "orthogonal" or "uniform" }
local function new() return rl.ActorCritic(shape) end
local copies = S > 1 and nn.Copies(S, new, { seeds = peri.arange(S):add(cfg.seed):tolist() })
local net = copies and copies.net or new()
local opt, head = optim.Adam(net:parameters(), { lr = cfg.lr, eps = cfg.adam_eps }), net.head
local obs_field = { env.obs_space.dtype, table.unpack(env.obs_space.shape) }
local rollout = peri.rollout { steps = cfg.steps, rows = rows, fields = { obs = obs_field, action = head.field,
  logp = "f32", reward = "f32", terminated = "bool", truncated = "bool", advantage = "f32", returns = "f32",
  value = "f32", final_obs = not ignore and obs_field or nil, mask = env.mask and { "bool", head.size } or nil } }
run:track("net", copies or net):track("optimizer", opt):track("env", env)
run:best("eval", { mode = "max", objects = { "net" } })

local quick = not (copies or env.mask or env.obs_space.n or net.trunk) and env.action_space.start == 0
local function policy(e) return net:policy(rl.apart(e.obs, S), rl.apart(e.mask, S)) end
local function play(greedy) -- mean returns of the networks in environments of their own
  return rl.evaluate(test, function ()
    return head:sent(rl.together(greedy and policy(test):deterministic() or (policy(test):act())))
  end, { episodes = S * cfg.eval, seeds = S, seed = 1000000 }).of_seed
end
local function mean(list) return #list > 0 and peri.tensor(list, "f64"):mean():item() or nil end
local function value(obs) return net:value(obs) end
local gae = { value = value, gamma = cfg.gamma, lam = cfg.lam, seeds = S, truncation = cfg.truncation }
-- Loop.
env:reset()
local random, first, began = play(false), run:restore(), peri.time() -- new networks hardly prefer an action
for update in run:steps() do
  local left, last = 1 - (update - 1) / updates, nil
  local clip, lr = cfg.clip * (cfg.anneal_clip and left or 1), cfg.lr * (cfg.anneal_lr and left or 1)
  local how = { clip = clip > 0 and clip or 1e30, clip_value = cfg.clip_value > 0 and cfg.clip_value or nil,
    vf_coef = cfg.vf_coef, ent_coef = cfg.ent_coef, normalize = cfg.normalize }
  if quick then env:collect(rollout, net.actor) end -- the same steps without Lua values
  for t = 1, quick and 0 or cfg.steps do -- what is seen before a step, and what comes of it
    local _ <close> = peri.no_grad()
    local action, logp = rl.together(policy(env):act())
    rollout:set(t, { obs = env.obs, action = action, logp = logp, mask = env.mask })
    local _, reward, terminated, truncated = env:step(head:sent(action))
    rollout:set(t, { reward = reward, terminated = terminated, truncated = truncated,
      final_obs = not ignore and env.final_obs or nil })
  end
  gae.last = env.obs
  rollout:put(rl.gae(rollout, gae))
  if not ignore then rl.checks.bootstrap(rollout, { value = value, gamma = cfg.gamma, seeds = S }) end
  for epoch = 1, cfg.epochs do
    for i, b in rollout:minibatches(batch, { groups = S }) do
      local d, v = net:both(b.obs, b.mask)
      local logp, entropy = d:evaluate(b.action)
      if epoch == 1 and i == 1 then rl.checks.ratio(logp, b.logp) end
      rl.checks.constant { old_logp = b.logp, advantage = b.advantage, returns = b.returns }
      local loss, _, of_value = peri.ppo_loss(logp, b.logp, b.advantage, entropy, v, b.returns, b.value, how)
      loss:sum():backward()
      opt:step({ lr = lr, clip = cfg.max_norm > 0 and cfg.max_norm or nil, copies = copies and S or nil }):zero_grad()
      last = { value = of_value, entropy = entropy, logp = logp, old = b.logp }
    end
    if cfg.target_kl > 0 and peri.ppo_metrics(last.logp, last.old):item() > cfg.target_kl then break end
  end
  if update % cfg.log_updates == 0 or update == updates then
    local kl, clipped = peri.ppo_metrics(last.logp, last.old, { clip = how.clip })
    run:log(update, { ["return"] = mean(env:episodes().returns), eval = mean(play(true)), approx_kl = kl:mean(),
      clip_fraction = clipped:mean(), entropy = last.entropy:mean(), value_loss = last.value:mean(), lr = lr,
      explained_variance = rl.explained_variance(rollout:get "value", rollout:get "returns") },
      { steps_s = (update - first) * rows * cfg.steps / (peri.time() - began) })
  end
end
local scores, best = play(true), 1
for i, score in ipairs(scores) do best = score > scores[best] and i or best end
local one = copies and copies:single(best) or net
rl.policy.save(run:path "policy.safetensors", { net = one, head = "categorical", env = env })
run:plot("curves.svg", { run:last "return" and { "return", "eval" } or "eval", "entropy", "approx_kl" })
run:text("%s, %d steps: greedy %s; drawn %s; at first %s; best %.1f", cfg.env, cfg.timesteps,
  run:scores("greedy", scores), run:scores("drawn", play(false)), rl.report(random), select(2, run:load_best "eval"))
run:finish()
