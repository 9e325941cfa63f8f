-- distributed_ppo.lua - PPO over workers: they play, and one learner merges what they saw and updates.
--
-- Teaches: synchronous distributed PPO (Heess et al. 2017, 1707.02286, with the experience gathered in place of the
-- gradients). Each worker is a Lua state on a thread of its own with environments of its own. The learner sends its
-- parameters; a worker sends back a rollout and the state of its environments and generator, which is what the
-- checkpoint keeps. What came is merged by the number of the worker, not by when it came: two runs are equal.
-- Run:  ./perilune run recipes/classic/distributed_ppo.lua    CartPole, 500,000 steps, under a minute on two cores;
--       --env FILE.lua plays an environment written in Lua: a file that returns the table peri.env.make takes
-- Departs from the paper: loss and details of ppo.lua; no adaptive KL penalty.
local peri = require "perilune"
local optim, rl, recipe = peri.optim, peri.rl, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  env         = { "CartPole-v1", "environment, or a Lua file that returns one" },
  workers     = { 2, "Lua states that play", range = "[1, inf)" },
  timesteps   = { 500000, "environment steps of all workers", budget = true },
  envs        = { 2, "environments of each worker", range = "[1, inf)" },
  steps       = { 128, "steps of a rollout", range = "[1, inf)" },
  epochs      = { 4, "passes over what was gathered", range = "[1, inf)" },
  minibatches = { 4, "of each pass", range = "[1, inf)" },
  lr          = { 2.5e-4, "learning rate, down to 0 along a line", range = "[0, inf)" },
  gamma       = { 0.99, "discount", range = "[0, 1]" },
  lam         = { 0.95, "of advantages", range = "[0, 1]" },
  clip        = { 0.2, "of the ratio", range = "(0, inf)" },
  vf_coef     = { 0.5, "of the value loss", range = "[0, inf)" },
  ent_coef    = { 0.01, "of the entropy bonus", range = "[0, inf)" },
  max_norm    = { 0.5, "of all gradients together", range = "(0, inf)" },
  hidden      = { 64, "width of both layers", range = "[1, inf)" },
  eval_every  = { 50, "updates between evaluations", range = "[1, inf)" },
  eval        = { 20, "episodes of each evaluation", range = "[1, inf)" },
})

local W, N, T = cfg.workers, cfg.envs, cfg.steps
local updates, batch = cfg.timesteps // (W * N * T), W * N * T // cfg.minibatches
local settings = { env = cfg.env, n = N, steps = T, seed = cfg.seed, hidden = { cfg.hidden, cfg.hidden } }
-- What both sides have: environments, a network, a buffer.
local function setup(o, n, seed, rows)
  local env = peri.env.make(o.env:find "%.lua$" and dofile(o.env) or o.env, { n = n, seed = seed, copy = false })
  local net = rl.ActorCritic { obs = env.obs_space, action = env.action_space, hidden = o.hidden }
  local seen = { env.obs_space.dtype, table.unpack(env.obs_space.shape) }
  return env, net, peri.rollout { steps = o.steps, rows = rows, fields = { obs = seen, final_obs = seen,
    action = net.head.field, logp = "f32", reward = "f32", terminated = "bool", truncated = "bool", advantage = "f32",
    returns = "f32", value = "f32" } }
end

-- A worker: a rollout for each order, which is the parameters.
local sent = { "obs", "final_obs", "action", "logp", "reward", "terminated", "truncated" }
local function play(i, orders, answers, o)
  local env, net, rollout = setup(o, o.n, o.seed + (i - 1) * o.n, o.n)
  env:reset()
  local guard <close> = peri.no_grad() -- luacheck: ignore 211
  for _, order in orders:each() do
    rl.take_place(env, order[2]) -- of a run that was resumed
    optim.assign_(net, order[1])
    for t = 1, o.steps do
      local action, logp = net:policy(env.obs):act()
      rollout:set(t, { obs = env.obs, action = action, logp = logp })
      local _, reward, terminated, truncated = env:step(net.head:sent(action))
      rollout:set(t, { reward = reward, terminated = terminated, truncated = truncated, final_obs = env.final_obs })
    end
    local answer = { last = env.obs:clone(), ended = env:episodes().returns }
    for _, name in ipairs(sent) do answer[name] = rollout:get(name):clone() end -- sent, they are read-only for good
    answers:send { i, answer, rl.place(env) }
  end
end

-- The learner.
local run = recipe.start { name = "distributed_ppo", flags = cfg, total = updates, columns = { "return", "eval" } }
local test, net, rollout = setup(settings, cfg.eval, 0, W * N)
local opt = optim.Adam(net, { lr = cfg.lr, eps = 1e-5 })
local crew <close> = rl.crew({ n = W, run = play }, settings)
run:track("net", net):track("optimizer", opt):track("workers", crew):best("eval", { mode = "max", objects = { "net" } })

local function value(x) return net:value(x) end
local function score(how)
  return rl.evaluate(test, function (obs)
    local head, policy = net.head, net:policy(obs)
    if how == "random" then policy = head:dist(peri.zeros { cfg.eval, head.size }, { log_std = net.log_std }) end
    return head:sent(how == "greedy" and policy:deterministic() or policy:act())
  end, { episodes = cfg.eval, seed = 1000000 }).mean
end

for update in run:steps() do
  crew:send(optim.flatten(net))
  local parts, ended = crew:gather(), {}
  local function merged(name, dim) -- by the number of the worker
    local list = {}
    for i, part in ipairs(parts) do list[i] = part[name] end
    return peri.cat(list, dim)
  end
  for _, name in ipairs(sent) do rollout:put { [name] = merged(name, 2) } end
  for _, part in ipairs(parts) do table.move(part.ended, 1, #part.ended, #ended + 1, ended) end
  rollout:put(rl.gae(rollout, { value = value, last = merged("last", 1), gamma = cfg.gamma, lam = cfg.lam }))
  rl.checks.bootstrap(rollout, { value = value, gamma = cfg.gamma })
  local row, how = {}, { clip = cfg.clip, vf_coef = cfg.vf_coef, ent_coef = cfg.ent_coef, normalize = true }
  for epoch = 1, cfg.epochs do
    for i, b in rollout:minibatches(batch) do
      local policy, v = net:both(b.obs)
      local logp, entropy = policy:evaluate(b.action)
      if epoch == 1 and i == 1 then rl.checks.ratio(logp, b.logp) end
      rl.checks.constant { old_logp = b.logp, advantage = b.advantage, returns = b.returns }
      local loss, of_policy, of_value = peri.ppo_loss(logp, b.logp, b.advantage, entropy, v, b.returns, b.value, how)
      loss:backward()
      opt:step({ lr = cfg.lr * (1 - (update - 1) / updates), clip = cfg.max_norm }):zero_grad()
      row.approx_kl, row.clip_fraction = peri.ppo_metrics(logp, b.logp, { clip = cfg.clip })
      row.policy_loss, row.value_loss, row.entropy = of_policy, of_value, entropy:mean()
    end
  end
  row["return"] = #ended > 0 and peri.tensor(ended, "f64"):mean():item() or nil
  row.explained_variance = rl.explained_variance(rollout:get "value", rollout:get "returns")
  row.eval = (update % cfg.eval_every == 0 or update == updates) and score "greedy" or nil
  run:log(update, row)
end

rl.policy.save(run:path "policy.safetensors", { net = net, head = net.log_std and "gaussian" or "categorical",
  log_std = net.log_std, env = test })
run:plot("curves.svg", { { "return", "eval" }, "entropy", "approx_kl", "explained_variance" })
run:text("%s, %d workers, %d steps: greedy %s; drawn %.1f; at random %.1f; best %.1f; CleanRL's PPO: 490", cfg.env, W,
  cfg.timesteps, run:scores("greedy", score "greedy"), score "drawn", score "random", select(2, run:load_best "eval"))
run:finish()
