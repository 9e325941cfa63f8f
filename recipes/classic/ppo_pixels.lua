-- ppo_pixels.lua - proximal policy optimisation from pictures.
--
-- Teaches: PPO (Schulman et al. 2017, arXiv 1707.06347) with a convolution under policy and value, on a small Breakout
-- (MinBreakout-v0, the rules of MinAtar's, Young and Tian 2019): planes of paddle, ball, trail and bricks. Pictures
-- stay bytes in the rollout, a quarter of what numbers would take.
-- Run:  ./perilune run recipes/classic/ppo_pixels.lua    500,000 steps, minutes on two cores. Ablation: --body mlp,
--       layers of the same width over the same numbers, which do not know what is beside what.
-- Departs from the Atari settings: pictures are small and whole, so nothing is stacked, skipped or made grey.
local peri = require "perilune"
local nn, optim, rl, recipe = peri.nn, peri.optim, peri.rl, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  env         = { "MinBreakout-v0", "environment whose observations are (planes, height, width)" },
  body        = { "conv", "under policy and value", choices = { "conv", "mlp" } },
  timesteps   = { 500000, "environment steps", budget = true },
  envs        = { 32, "environments", range = "[1, inf)" },
  steps       = { 64, "steps of a rollout", range = "[1, inf)" },
  epochs      = { 4, "passes over a rollout", range = "[1, inf)" },
  minibatches = { 8, "of each pass", range = "[1, inf)" },
  lr          = { 1e-3, "learning rate", range = "[0, inf)" },
  anneal_lr   = { true, "down to 0 along a line" },
  gamma       = { 0.99, "discount", range = "[0, 1]" },
  lam         = { 0.95, "of advantages", range = "[0, 1]" },
  clip        = { 0.2, "of the ratio", range = "(0, inf)" },
  vf_coef     = { 0.5, "of the value loss", range = "[0, inf)" },
  ent_coef    = { 0.01, "of the entropy bonus", range = "[0, inf)" },
  max_norm    = { 0.5, "of all gradients together", range = "(0, inf)" },
  channels    = { 16, "of the convolution", range = "[1, inf)" },
  width       = { 128, "of what policy and value read", range = "[1, inf)" },
  log_updates = { 10, "updates between two rows of metrics", range = "[1, inf)" },
  eval        = { 32, "episodes of each evaluation", range = "[1, inf)" },
})
local rows, updates = cfg.envs, cfg.timesteps // (cfg.envs * cfg.steps)
local run = recipe.start { name = "ppo_pixels", flags = cfg, total = updates, columns = { "return", "eval" } }
local env, test = peri.env.make(cfg.env, { n = rows, seed = cfg.seed }), peri.env.make(cfg.env, { n = cfg.eval })
local picture = env.obs_space.shape
assert(#picture == 3, cfg.env .. " shows no pictures (planes, height, width)")

-- (n, planes, height, width) bytes -> (n, width).
local planes, height, width = table.unpack(picture)
local body = cfg.body == "conv"
  and nn.Sequential(nn.Conv2d(planes, cfg.channels, 3), nn.ReLU(), nn.Flatten(),
    nn.Linear(cfg.channels * (height - 2) * (width - 2), cfg.width), nn.ReLU())
  or nn.Sequential(nn.Flatten(), nn.Linear(planes * height * width, cfg.width), nn.ReLU(),
    nn.Linear(cfg.width, cfg.width), nn.ReLU())
for _, layer in ipairs(body:modules()) do
  if layer.weight then
    nn.init.orthogonal_(layer.weight, 2 ^ 0.5)
    nn.init.zeros_(layer.bias)
  end
end

local net = rl.ActorCritic { obs = env.obs_space, action = env.action_space, body = body, width = cfg.width }
local head, opt = net.head, optim.Adam(net:parameters(), { lr = cfg.lr, eps = 1e-5 })
local bytes = { env.obs_space.dtype, table.unpack(picture) }
local rollout = peri.rollout { steps = cfg.steps, rows = rows, fields = { obs = bytes, final_obs = bytes,
  action = head.field, logp = "f32", reward = "f32", terminated = "bool", truncated = "bool", advantage = "f32",
  returns = "f32", value = "f32" } }
run:track("net", net):track("optimizer", opt):track("env", env):best("eval", { mode = "max", objects = { "net" } })

local function play(greedy) -- the mean return in environments of their own
  return rl.evaluate(test, function (obs)
    local d = net:policy(obs)
    return head:sent(greedy and d:deterministic() or (d:act()))
  end, { episodes = cfg.eval, seed = 1000000 }).mean
end
local function value(obs) return net:value(obs) end

-- Loop.
env:reset()
local random, first, began = play(false), run:restore(), peri.time()
for update in run:steps() do
  local lr, obs, last = cfg.lr * (cfg.anneal_lr and 1 - (update - 1) / updates or 1), env.obs, nil
  for t = 1, cfg.steps do -- what is seen before a step, and what comes of it
    local _ <close> = peri.no_grad()
    local action, logp = net:policy(obs):act()
    local after, reward, terminated, truncated = env:step(head:sent(action))
    rollout:set(t, { obs = obs, action = action, logp = logp, reward = reward, terminated = terminated,
      truncated = truncated, final_obs = env.final_obs })
    obs = after
  end
  rollout:put(rl.gae(rollout, { value = value, last = obs, gamma = cfg.gamma, lam = cfg.lam }))
  rl.checks.bootstrap(rollout, { value = value, gamma = cfg.gamma })
  for epoch = 1, cfg.epochs do
    for i, b in rollout:minibatches(rows * cfg.steps // cfg.minibatches) do
      local d, v = net:both(b.obs)
      local logp, entropy = d:evaluate(b.action)
      if epoch == 1 and i == 1 then rl.checks.ratio(logp, b.logp) end
      rl.checks.constant { old_logp = b.logp, advantage = b.advantage, returns = b.returns }
      local loss = peri.ppo_loss(logp, b.logp, b.advantage, entropy, v, b.returns,
        { clip = cfg.clip, vf_coef = cfg.vf_coef, ent_coef = cfg.ent_coef })
      loss:backward()
      opt:step({ lr = lr, clip = cfg.max_norm }):zero_grad()
      last = { entropy = entropy, logp = logp, old = b.logp }
    end
  end
  if update % cfg.log_updates == 0 or update == updates then
    local ended = env:episodes().returns
    run:log(update, { ["return"] = #ended > 0 and peri.tensor(ended, "f64"):mean() or nil, eval = play(true), lr = lr,
      approx_kl = peri.ppo_metrics(last.logp, last.old), entropy = last.entropy:mean(),
      explained_variance = rl.explained_variance(rollout:get "value", rollout:get "returns") },
      { steps_s = (update - first) * rows * cfg.steps / (peri.time() - began) })
  end
end

rl.policy.save(run:path "policy.safetensors", { net = net, head = "categorical", env = env })
run:plot("curves.svg", { run:last "return" and { "return", "eval" } or "eval", "entropy", "approx_kl" })
run:text("%s, %d steps, %s: greedy %s; drawn %s; at first %.1f; best evaluation %.1f", cfg.env, cfg.timesteps,
  cfg.body, run:scores("greedy", play(true)), run:scores("drawn", play(false)), random, select(2, run:load_best "eval"))
run:finish()
