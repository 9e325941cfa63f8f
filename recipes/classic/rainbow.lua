-- rainbow.lua - all remedies of DQN together, and the distribution of returns in place of their mean.
--
-- Teaches: Rainbow (Hessel et al. 2018): C51 (Bellemare et al. 2017, algorithm 1) with Double choice of actions,
-- a dueling network, noisy layers instead of epsilon, prioritised transitions by the loss, returns of three steps.
-- Run:  ./perilune run recipes/classic/rainbow.lua    CartPole-v1: half a minute on two cores.
--       Each part can be left out: --no-double, --no-dueling, --no-noisy (epsilon 0.05), --no-prioritised, --n_step 1.
-- Departs from the paper: small dense layers, those behind the first are noisy; 51 atoms from 0 to 100, which is
-- what CartPole can return at a discount of 0.99; gradients clipped by norm.
local peri = require "perilune"
local optim, rl, recipe = peri.optim, peri.rl, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  env         = { "CartPole-v1", "id of an environment with a vector to observe and numbered actions" },
  steps       = { 50000, "steps of the environment", range = "[0, inf)", budget = true },
  envs        = { 1, "environments that step together", range = "[1, inf)" },
  lr          = { 1e-3, "learning rate", range = "(0, inf)" },
  batch       = { 64, "transitions of a gradient step", range = "[1, inf)" },
  buffer      = { 50000, "transitions kept", range = "[1, inf)" },
  starts      = { 1000, "steps before the first gradient step", range = "[0, inf)" },
  train_every = { 4, "steps of all environments to a gradient step", range = "[1, inf)" },
  period      = { 250, "gradient steps between updates of the target", range = "[1, inf)" },
  gamma       = { 0.99, "discount", range = "[0, 1]" },
  n_step      = { 3, "rewards that a target sums", range = "[1, inf)" },
  hidden      = { 128, "width of both layers", range = "[1, inf)" },
  atoms       = { 51, "of a distribution", range = "[2, inf)" },
  low         = { 0.0, "return of the first atom" },
  high        = { 100.0, "return of the last one" },
  alpha       = { 0.5, "exponent of priorities", range = "[0, 1]" },
  beta        = { 0.4, "of what corrects them, at first; 1 at last", range = "[0, 1]" },
  clip        = { 10.0, "norm that gradients are clipped to", range = "(0, inf)" },
  double      = { true, "the network chooses the next action, the target values it" },
  dueling     = { true, "values of states apart from those of actions" },
  noisy       = { true, "noisy layers; without them epsilon is 0.05" },
  prioritised = { true, "draw transitions by their loss" },
  every       = { 1000, "steps of an environment between two rows", range = "[1, inf)" },
  eval        = { 10, "episodes of an evaluation", range = "[1, inf)" },
})
local rounds = cfg.steps // (cfg.every * cfg.envs)
local run = recipe.start { name = "rainbow", flags = cfg, total = rounds, columns = { "return", "eval", "loss", "q" } }
local env = peri.env.make(cfg.env, { n = cfg.envs, seed = cfg.seed })
local test = peri.env.make(cfg.env, { n = cfg.eval, copy = false })
local net = rl.QNetwork(env.obs_space, env.action_space, { hidden = { cfg.hidden, cfg.hidden }, dueling = cfg.dueling,
  noisy = cfg.noisy, atoms = cfg.atoms, low = cfg.low, high = cfg.high })
local target = rl.target(net, { period = cfg.period })
local opt = optim.Adam(net:parameters(), { lr = cfg.lr, eps = 1.5e-4 })
local buffer = peri.replay { capacity = math.max(1, cfg.buffer // cfg.envs), rows = cfg.envs, n_step = cfg.n_step,
  gamma = cfg.gamma, observed = { obs = { "f32", env.obs_space.shape[1] } }, fields = { action = "i64" },
  prioritised = cfg.prioritised, alpha = cfg.alpha, seed = cfg.seed }
run:track("net", net):track("target", target):track("optimizer", opt):track("env", env):track("replay", buffer)
run:best("eval", { mode = "max", objects = { "net" } })

local function means(logits) return rl.expected_return(logits, cfg.low, cfg.high) end
local function greedy(obs) return rl.greedy(means(net(obs))) end
local function act(obs)
  local _ <close> = peri.no_grad()
  return cfg.noisy and greedy(obs) or rl.epsilon_greedy(means(net(obs)), 0.05)
end

-- The distribution of r + gamma^n z over the atoms, of the action that is best there.
local function wanted(batch)
  local _ <close> = peri.no_grad()
  local there = target(batch.next_obs)                                       -- (n, actions, atoms)
  local best = rl.greedy(means(cfg.double and net(batch.next_obs) or there)) -- (n)
  local index = best:reshape({ cfg.batch, 1, 1 }):expand { cfg.batch, 1, cfg.atoms }
  return rl.project { next_probs = there:gather(index, 2):squeeze(2):softmax(-1), reward = batch.reward,
    discount = batch.discount, terminated = batch.terminated, low = cfg.low, high = cfg.high }
end

local function learn(beta)
  local batch = buffer:sample(cfg.batch, cfg.prioritised and beta or nil)
  local goal, logits = wanted(batch), net(batch.obs)
  local loss, each = rl.c51_loss(logits, batch.action, goal, batch.weight)
  loss:backward()
  opt:step({ clip = cfg.clip }):zero_grad()
  if cfg.prioritised then buffer:prioritise(batch.index, each) end
  target:update()
  return loss:item(), means(logits:detach()):mean():item()
end

local function play(choose, episodes, seed) -- in environments of its own, without noise
  net:eval()
  local score = rl.evaluate(test, choose, { episodes = episodes, seed = seed })
  net:train()
  return score
end

-- Loop.
local obs = run:restore() == 0 and env:reset() or env.obs
for round in run:steps() do
  local row, n = {}, 0
  for t = (round - 1) * cfg.every + 1, round * cfg.every do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local action = act(obs)
    local next_obs, reward, terminated, truncated = env:step(action)
    rl.checks.step { next_obs = env.final_obs, obs = next_obs, terminated = terminated, truncated = truncated }
    buffer:add { obs = obs, action = action, next_obs = env.final_obs, reward = reward, terminated = terminated,
      truncated = truncated }
    obs = peri.keep(next_obs)
    if t * cfg.envs > cfg.starts and t % cfg.train_every == 0 then
      local loss, q = learn(cfg.beta + (1 - cfg.beta) * t * cfg.envs / cfg.steps)
      n, row.loss, row.q = n + 1, (row.loss or 0) + loss, (row.q or 0) + q
    end
  end
  if n > 0 then row.loss, row.q, row.grad_norm = row.loss / n, row.q / n, opt.grad_norm end
  local ended = env:episodes().returns
  if #ended > 0 then row["return"] = peri.tensor(ended, "f64"):mean():item() end
  if round % 5 == 0 or round == rounds then row.eval = play(greedy, cfg.eval, 1000000).mean end
  run:log(round, row)
end

local last, chance = play(greedy, 100, 2000000), play(function () return test:sample() end, 100, 2000000)
local at = run:load_best "eval"
rl.policy.save(run:path "policy.safetensors", { net = net:means(), head = "greedy", env = env })
run:text("%s, %d steps: %s of 100 episodes; best (row %d) %.1f; at random %.1f; zoo: CartPole 500", cfg.env,
  cfg.steps, run:scores("greedy", last.mean), at, play(greedy, 100, 2000000).mean, chance.mean)
run:finish()
