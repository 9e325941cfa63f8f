-- dqn.lua - deep Q-networks: action values by a network, from a replay buffer, against a slower copy of itself.
--
-- Teaches: q(s, a) is drawn to r + gamma max_b q'(s', b), where q' is a target network (Mnih et al. 2015, algorithm 1),
-- and what each remedy does: --double (van Hasselt et al. 2016, eq. 4), --dueling (Wang et al. 2016, eq. 9),
-- --prioritised (Schaul 2016), --n_step 3 (Sutton 1988), --noisy (Fortunato et al. 2018); of targets --period 0 (none),
-- --tau 0.005 --period 1 (soft), --copies 5 (Anschel et al. 2017), --adapt 0.5 (a period that follows the TD error).
-- Run:  ./perilune run recipes/classic/dqn.lua    CartPole-v1 with rl-zoo's settings: 15 seconds on two cores;
--       --seeds 10 learns ten networks at once, and prints their interquartile mean.
-- Departs from the paper as Stable-Baselines3 does: Adam, smooth L1 loss, gradients clipped by norm. Its target updates
-- "every 10 steps" of the environment lie all between one round of 128 gradient steps and the next: --period 128.
local peri = require "perilune"
local nn, optim, rl, recipe, sched = peri.nn, peri.optim, peri.rl, require "perilune.recipe", require "perilune.sched"

local cfg = peri.flags(recipe.with_flags {
  env            = { "CartPole-v1", "id of an environment with a vector to observe and numbered actions" },
  seeds          = { 1, "seeds that learn at once, from --seed on", range = "[1, inf)" },
  steps          = { 50000, "steps of the environment", range = "[0, inf)", budget = true },
  lr             = { 2.3e-3, "learning rate", range = "(0, inf)" },
  batch          = { 64, "transitions of a gradient step", range = "[1, inf)" },
  buffer         = { 100000, "transitions kept", range = "[1, inf)" },
  starts         = { 1000, "steps of any action before the first gradient step", range = "[0, inf)" },
  train_every    = { 256, "steps between two rounds of gradient steps", range = "[1, inf)" },
  gradient_steps = { 128, "gradient steps of a round", range = "[1, inf)" },
  gamma          = { 0.99, "discount", range = "[0, 1]" },
  hidden         = { 256, "width of both layers", range = "[1, inf)" },
  clip           = { 10.0, "norm that gradients are clipped to", range = "(0, inf)" },
  fraction       = { 0.16, "share of the steps over which epsilon falls from 1", range = "(0, 1]" },
  epsilon        = { 0.04, "it falls to", range = "[0, 1]" },
  temperature    = { 0.0, "of Boltzmann exploration in place of epsilon; 0: epsilon", range = "[0, inf)" },
  period         = { 128, "gradient steps between updates of the target; 0: no target network", range = "[0, inf)" },
  tau            = { 1.0, "of the way at an update; below 1 it is soft: --tau 0.005 --period 1", range = "(0, 1]" },
  copies         = { 1, "target networks whose mean counts", range = "[1, 64]" },
  adapt          = { 0.0, "update when the TD error fell to this share, or after period; 0: off", range = "[0, 1)" },
  double         = { false, "the network chooses the next action, the target values it" },
  dueling        = { false, "values of states apart from those of actions" },
  noisy          = { false, "noisy layers in place of epsilon" },
  prioritised    = { false, "draw transitions by their TD error" },
  n_step         = { 1, "rewards that a target sums", range = "[1, inf)" },
  eval_every     = { 20, "rounds between evaluations", range = "[1, inf)" },
  eval           = { 10, "episodes of an evaluation, of each seed", range = "[1, inf)" },
})
local S, rounds = cfg.seeds, cfg.steps // cfg.train_every
assert(S == 1 or not cfg.prioritised, "--prioritised learns one seed at a time: --seeds 1")
-- Networks, environments and transitions of each seed: (seeds, n, ...).
local run = recipe.start { name = "dqn", flags = cfg, total = rounds, columns = { "return", "eval", "loss", "q" } }
local env = peri.env.make(cfg.env, { n = S, seed = cfg.seed })
local test = peri.env.make(cfg.env, { n = S * cfg.eval, copy = false })
local inputs, actions, W = env.obs_space, env.action_space, cfg.hidden
local net = nn.Copies(S, function ()
  return rl.QNetwork(inputs, actions, { hidden = { W, W }, dueling = cfg.dueling, noisy = cfg.noisy })
end, { seeds = peri.arange(S):add(cfg.seed):tolist() })
local adapt = cfg.adapt > 0 and cfg.adapt or nil
local target = rl.target(net, { period = math.max(1, cfg.period), tau = cfg.tau, copies = cfg.copies, adapt = adapt })
local opt = optim.Adam(net:parameters(), { lr = cfg.lr })
local buffer = peri.replay { capacity = cfg.buffer, rows = S, groups = not cfg.prioritised and S or nil,
  observed = { obs = { "f32", inputs.shape[1] } }, fields = { action = "i64" }, n_step = cfg.n_step, gamma = cfg.gamma,
  prioritised = cfg.prioritised, seed = cfg.seed }
run:track("net", net):track("target", target):track("optimizer", opt):track("env", env):track("replay", buffer)
run:best("eval", { mode = "max", objects = { "net" } })
local epsilon = sched.linear { from = 1, to = cfg.epsilon, steps = math.max(1, cfg.steps * cfg.fraction // 1) }
local function act(obs, t)
  if t <= cfg.starts then return peri.randint(0, actions.n, { S }) end
  local _ <close> = peri.no_grad()
  local q = rl.together(net(rl.apart(obs, S)))
  if cfg.noisy then return rl.greedy(q) end
  return cfg.temperature > 0 and rl.boltzmann(q, cfg.temperature) or rl.epsilon_greedy(q, epsilon(t))
end
local function ahead(x) return peri.no_grad(function () return net(x) end) end
local function learn(beta)
  local batch = buffer:sample(cfg.batch, cfg.prioritised and beta or nil)
  for name, t in pairs(cfg.prioritised and batch or {}) do batch[name] = rl.apart(t, 1) end
  local q, after = net(batch.obs), batch.next_obs
  local wanted, value = rl.q_target { reward = batch.reward, discount = batch.discount, terminated = batch.terminated,
    next_q = (cfg.period == 0 and ahead or target)(after), online_next_q = cfg.double and ahead(after) or nil }
  rl.checks.targets { batch = batch, target = wanted, value = value }
  local loss, err = rl.q_loss(q, batch.action, wanted, { weights = batch.weight })
  loss:mul(S):backward() -- a sum of the means of seeds: each learns as if alone
  opt:step({ clip = cfg.clip, copies = S }):zero_grad()
  if cfg.prioritised then buffer:prioritise(batch.index:flatten(), err:abs():flatten()) end
  target:update(adapt and err:abs():mean():item())
  return loss:item(), q:detach():mean():item()
end
local function play(choose, episodes, seed) -- mean returns of the networks in environments of their own
  net:eval()
  local score = rl.evaluate(test, choose, { episodes = S * episodes, seeds = S, seed = seed })
  net:train()
  return score.of_seed
end
local function greedy(obs) return rl.greedy(rl.together(net(rl.apart(obs, S)))) end
local function mean(list) return #list > 0 and peri.tensor(list, "f64"):mean():item() or nil end
-- Loop: some steps of the environment, then some gradient steps.
local obs = run:restore() == 0 and env:reset() or env.obs
for round in run:steps() do
  local row, n = { epsilon = epsilon(round * cfg.train_every), target_updates = target.updates }, cfg.gradient_steps
  for t = (round - 1) * cfg.train_every + 1, round * cfg.train_every do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local action = act(obs, t)
    local next_obs, reward, terminated, truncated = env:step(action)
    local led_to = env.final_obs
    rl.checks.step { next_obs = led_to, obs = next_obs, terminated = terminated, truncated = truncated }
    buffer:add { obs = obs, action = action, reward = reward, next_obs = led_to, terminated = terminated,
      truncated = truncated }
    obs = peri.keep(next_obs)
  end
  for _ = 1, round * cfg.train_every > cfg.starts and n or 0 do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local loss, q = learn(0.4 + 0.6 * round / rounds)
    row.loss, row.q = (row.loss or 0) + loss / n, (row.q or 0) + q / n
  end
  row["return"] = mean(env:episodes().returns)
  if round % cfg.eval_every == 0 or round == rounds then row.eval = mean(play(greedy, cfg.eval, 1000000)) end
  run:log(round, row)
end
-- The last networks and the best, over 100 episodes each, beside chance.
local last, random = play(greedy, 100, 2000000), play(function () return test:sample() end, 100, 2000000)
local at, best = run:load_best "eval", play(greedy, 100, 2000000)
rl.policy.save(run:path "policy.safetensors", { net = net:single(1), head = "greedy", env = env })
run:text("%s, %d steps: %s; best (round %d) %s; at random %s; rl-zoo: CartPole 500, Acrobot -76.6, MountainCar -100.8",
  cfg.env, cfg.steps, run:scores("greedy", last), at, run:scores("best", best), run:scores("random", random))
run:finish()
