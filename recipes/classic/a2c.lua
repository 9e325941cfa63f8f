-- a2c.lua - advantage actor-critic: the policy gradient with a critic, after every few steps of many environments.
--
-- Teaches: A2C, the synchronous form of A3C (Mnih et al. 2016, 1602.01783, section 4 and algorithm S3). The gradient is
-- that of log pi(a|s) A, with A the rewards of n steps and the value behind them, less the value expected; the entropy
-- of the policy is a bonus. It is PPO with one epoch of one minibatch, lambda 1 (Huang et al. 2022, 2205.09123).
-- Run:  ./perilune run recipes/classic/a2c.lua    CartPole with rl-zoo's settings, 500,000 steps, half a minute on two
--       cores; --seeds 10 learns ten networks at once in about four times that
-- Departs from the paper: no worker waits for another, as all environments are one batch; RMSprop has PyTorch's place
-- of epsilon; gradients are clipped. A truncated episode bootstraps from the value of its last observation.
local peri = require "perilune"
local nn, optim, rl, recipe = peri.nn, peri.optim, peri.rl, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  env         = { "CartPole-v1", "environment with discrete actions" },
  seeds       = { 1, "networks that learn beside each other, each in environments of its own", range = "[1, inf)" },
  timesteps   = { 500000, "environment steps of each seed", budget = true },
  envs        = { 8, "environments of each seed", range = "[1, inf)" },
  steps       = { 5, "steps of each environment before an update", range = "[1, inf)" },
  lr          = { 7e-4, "learning rate", range = "[0, inf)" },
  anneal_lr   = { false, "down to 0 along a line" },
  gamma       = { 0.99, "discount", range = "[0, 1]" },
  lam         = { 1.0, "of advantages: 1 is all rewards of the steps, 0 one of them", range = "[0, 1]" },
  normalize   = { false, "advantages" },
  baseline    = { true, "advantages are less the value of the state; false: returns alone" },
  vf_coef     = { 0.5, "of the value loss", range = "[0, inf)" },
  ent_coef    = { 0.0, "of the entropy bonus", range = "[0, inf)" },
  max_norm    = { 0.5, "of all gradients together", range = "(0, inf)" },
  hidden      = { 64, "width of both layers", range = "[1, inf)" },
  log_updates = { 500, "updates between two rows of metrics", range = "[1, inf)" },
  eval        = { 10, "episodes of each evaluation and seed", range = "[1, inf)" },
})

local S, N, T = cfg.seeds, cfg.envs, cfg.steps
local updates = cfg.timesteps // (N * T)
local run = recipe.start { name = "a2c", flags = cfg, total = updates, columns = { "return", "eval" } }
local env = peri.env.make(cfg.env, { n = S * N, seed = cfg.seed, copy = false })
local test = peri.env.make(cfg.env, { n = S * cfg.eval, copy = false })
local shape = { obs = env.obs_space, action = env.action_space, hidden = { cfg.hidden, cfg.hidden } }
local seeds = peri.arange(S):add(cfg.seed):tolist()
local copies = nn.Copies(S, function () return rl.ActorCritic(shape) end, { seeds = seeds })
local net, opt = copies.net, optim.RMSprop(copies:parameters(), { lr = cfg.lr, alpha = 0.99, eps = 1e-5 })
local seen = { env.obs_space.dtype, table.unpack(env.obs_space.shape) }
local rollout = peri.rollout { steps = T, rows = S * N, fields = { obs = seen, final_obs = seen,
  action = net.head.field, logp = "f32", reward = "f32", terminated = "bool", truncated = "bool", advantage = "f32",
  returns = "f32", value = "f32" } }
run:track("net", copies):track("optimizer", opt):track("env", env):best("eval", { mode = "max", objects = { "net" } })

local function value(x) return net:value(x) end
local function play(how) -- mean returns of each seed, in environments of their own
  return rl.evaluate(test, function (obs)
    local policy = net:policy(rl.apart(obs, S))
    if how == "random" then policy = net.head:dist(net.actor(rl.apart(obs, S)) * 0, { log_std = net.log_std }) end
    return net.head:sent(rl.together(how == "greedy" and policy:deterministic() or policy:act()))
  end, { episodes = S * cfg.eval, seeds = S, seed = 1000000 }).of_seed
end
local function mean(list) return peri.tensor(list, "f64"):mean():item() end

-- Loop.
if run:restore() == 0 then env:reset() end
local began = peri.time()
for update in run:steps() do
  for t = 1, T do -- what is seen before a step, and what comes of it
    local _ <close> = peri.no_grad()
    local action, logp = net:policy(rl.apart(env.obs, S)):act()
    action, logp = rl.together(action), rl.together(logp)
    rollout:set(t, { obs = env.obs, action = action, logp = logp })
    local _, reward, terminated, truncated = env:step(net.head:sent(action))
    rollout:set(t, { reward = reward, terminated = terminated, truncated = truncated, final_obs = env.final_obs })
  end
  rollout:put(rl.gae(rollout, { value = value, last = env.obs, gamma = cfg.gamma, lam = cfg.lam, seeds = S }))
  rl.checks.bootstrap(rollout, { value = value, gamma = cfg.gamma, seeds = S })
  local policy_loss, value_loss, entropy
  for _, b in rollout:minibatches(T * N, { groups = S }) do -- one: all of it, (S, T * N, ...)
    local logp, spread = net:policy(b.obs):evaluate(b.action)
    rl.checks.ratio(logp, b.logp)
    rl.checks.constant { old_logp = b.logp, advantage = b.advantage, returns = b.returns }
    local advantage = cfg.baseline and b.advantage or b.returns
    if cfg.normalize then advantage = (advantage - advantage:mean(-1, true)) / (advantage:std(-1, true) + 1e-8) end
    policy_loss = -(logp * advantage):mean(-1)
    value_loss, entropy = (net:value(b.obs) - b.returns):square():mean(-1), spread:mean(-1)
    local loss = policy_loss + value_loss * cfg.vf_coef - entropy * cfg.ent_coef
    loss:sum():backward() -- the seeds share no parameters
  end
  local lr = cfg.lr * (cfg.anneal_lr and 1 - (update - 1) / updates or 1)
  opt:step({ lr = lr, clip = cfg.max_norm, copies = S }):zero_grad()
  if update % cfg.log_updates == 0 or update == updates then
    local ended = env:episodes().returns
    run:log(update, { ["return"] = #ended > 0 and mean(ended) or nil, episodes = #ended, eval = mean(play "greedy"),
      lr = lr, entropy = entropy:mean(), policy_loss = policy_loss:mean(), value_loss = value_loss:mean(),
      explained_variance = rl.explained_variance(rollout:get "value", rollout:get "returns") },
      { steps_s = update * N * T * S / (peri.time() - began) })
  end
end

local scores, drawn, random = play "greedy", play "drawn", play "random"
local best = math.tointeger(peri.tensor(scores):argmax(1):item()) + 1
rl.policy.save(run:path "policy.safetensors", { net = copies:single(best), head = "categorical", env = env })
run:plot("curves.svg", { { "return", "eval" }, "entropy", "value_loss", "explained_variance" })
run:text("%s, %d steps: greedy %s; drawn %s; at random %s; best of evaluations %.1f; rl-zoo's A2C on CartPole: 500",
  cfg.env, cfg.timesteps, run:scores("greedy", scores), run:scores("drawn", drawn), run:scores("random", random),
  select(2, run:load_best "eval"))
run:finish()
