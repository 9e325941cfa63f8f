-- td3.lua - twin delayed deep deterministic policy gradients: three remedies for critics that promise too much.
--
-- Teaches: TD3 (Fujimoto et al. 2018, arXiv 1802.09477, algorithm 1). Critics are drawn to r + gamma min_i q'_i(s', a')
-- with a' = pi'(s') + clipped noise: the less of two (--critics 1: one, as DDPG), smoothed actions (--smooth 0: not);
-- the policy moved only at every second step (--delay 1: at each), uphill on q_1(s, pi(s)). --tau 1: no slow copies.
-- Run:  ./perilune run recipes/classic/td3.lua    Pendulum-v1 with rl-zoo's settings, 20,000 steps: some minutes on two
--       cores. --seeds 5 learns five at once.
-- Departs from the paper: batches of 256 and one gradient step to a step, as Stable-Baselines3 has them.
local peri = require "perilune"
local optim, rl, nn, recipe = peri.optim, peri.rl, peri.nn, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  env        = { "Pendulum-v1", "environment whose actions are a box of numbers" },
  seeds      = { 1, "learners side by side, from --seed on, an environment for each", range = "[1, inf)" },
  steps      = { 20000, "steps of each environment, in whole rounds", range = "[0, inf)", budget = true },
  round      = { 200, "steps from a row of metrics to the next", range = "[1, inf)" },
  starts     = { 10000, "steps of any action before the first gradient step", range = "[0, inf)" },
  batch      = { 256, "transitions of a gradient step", range = "[1, inf)" },
  buffer     = { 200000, "steps kept", range = "[1, inf)" },
  lr         = { 1e-3, "learning rate", range = "(0, inf)" },
  gamma      = { 0.98, "discount", range = "[0, 1]" },
  tau        = { 0.005, "of the way that target networks go at an update; 1 = no slow copies", range = "(0, 1]" },
  critics    = { 2, "whose least value counts", range = "[1, inf)" },
  noise      = { 0.1, "deviation of the actions that are tried, in half ranges", range = "[0, inf)" },
  smooth     = { 0.2, "deviation of the noise of actions in targets", range = "[0, inf)" },
  clip       = { 0.5, "bound of the noise in targets", range = "[0, inf)" },
  delay      = { 2, "gradient steps of the critics to one of the policy", range = "[1, inf)" },
  hidden     = { 400, "width of the first layer", range = "[1, inf)" },
  hidden2    = { 300, "width of the second layer", range = "[1, inf)" },
  eval_every = { 10, "rounds between evaluations", range = "[1, inf)" },
  last       = { 100, "episodes of the last evaluation, of each learner", range = "[1, inf)" },
  episodes   = { 10, "of an evaluation, of each learner", range = "[1, inf)" },
})
local S, rounds, widths = cfg.seeds, (cfg.steps + cfg.round - 1) // cfg.round, { cfg.hidden, cfg.hidden2 }
local run = recipe.start { name = "td3", flags = cfg, total = rounds, columns = { "return", "eval", "q" } }
local env = peri.env.make(cfg.env, { n = S, seed = cfg.seed })
local test = peri.env.make(cfg.env, { n = S * cfg.episodes, copy = false })
local space, inputs = env.action_space, env.obs_space.shape[1]
assert(#env.obs_space.shape == 1 and space.kind == "box", cfg.env .. " lacks a vector to observe or a box of actions")
local actions, seeds = space.shape[1], peri.arange(S):add(cfg.seed):tolist()

-- Everything has a leading dim of learners: (S, rows, ...).
local actor = nn.Copies(S, function () return rl.TanhActor(inputs, actions, { hidden = widths }) end, { seeds = seeds })
local critics = rl.Critics { inputs = inputs + actions, critics = cfg.critics, seeds = seeds, hidden = widths }
local slow_actor, slow_critics = rl.target(actor, { tau = cfg.tau }), rl.target(critics, { tau = cfg.tau })
local of_actor, of_critics = optim.Adam(actor, { lr = cfg.lr }), optim.Adam(critics, { lr = cfg.lr })
local replay = peri.replay { capacity = cfg.buffer, rows = S, groups = S, seed = cfg.seed, gamma = cfg.gamma,
  observed = { obs = { "f32", inputs } }, fields = { action = { "f32", actions } } }
run:track("actor", actor):track("critics", critics):track("slow_actor", slow_actor):track("slow_critics", slow_critics)
  :track("actor_optimizer", of_actor):track("critic_optimizer", of_critics):track("env", env):track("replay", replay)
run:best("eval", { mode = "max", objects = { "actor" } })

local function learn(batch, t)
  local wanted
  do
    local _ <close> = peri.no_grad()
    local action = rl.gaussian_noise(slow_actor(batch.next_obs), cfg.smooth, cfg.clip)
    local value = rl.least_value(slow_critics(batch.next_obs, action))
    wanted = rl.backup(batch, value)
    rl.checks.targets { batch = batch, target = wanted, value = value }
  end
  local q = critics(batch.obs, batch.action)
  local loss = (q - wanted):square():mean(-1):sum()
  loss:backward()
  of_critics:step():zero_grad()
  local found = { critic_loss = loss, q = q }
  if t % cfg.delay ~= 0 then return found end
  critics:freeze() -- the policy moves to where the first critic, which stays, says more
  found.policy_loss = critics(batch.obs, actor(batch.obs)):select(1, 1):neg():mean(-1):sum()
  found.policy_loss:backward()
  of_actor:step():zero_grad()
  critics:unfreeze()
  slow_actor:update()
  slow_critics:update()
  return found
end

-- Actions in [-1, 1], (S, n, inputs) -> (S, n, actions): the policy's, with noise, any.
local function best(obs) return actor(obs) end
local function tried(obs) return rl.gaussian_noise(actor(obs), cfg.noise) end
local function any(obs) return peri.rand({ S, obs:size(2), actions }) * 2 - 1 end
local function play(choose, episodes, seed) -- mean return of each learner, in environments of their own
  return rl.evaluate(test, function (obs) return rl.stretched(rl.together((choose(rl.apart(obs, S)))), space) end,
    { episodes = S * episodes, seeds = S, seed = seed }).of_seed
end
local function mean(list) return #list > 0 and peri.tensor(list, "f64"):mean():item() or nil end

-- Loop: a step of the environment, a gradient step.
local obs = run:restore() == 0 and env:reset() or env.obs
local began, first = peri.time(), run.step
for round in run:steps() do
  local row = {}
  for t = (round - 1) * cfg.round + 1, round * cfg.round do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local action = peri.no_grad(function () return rl.together((t > cfg.starts and tried or any)(rl.apart(obs, S))) end)
    local next_obs, reward, terminated, truncated = env:step(rl.stretched(action, space))
    replay:add { obs = obs, action = action, reward = reward, next_obs = env.final_obs, terminated = terminated,
      truncated = truncated }
    obs = peri.keep(next_obs)
    rl.checks.step { next_obs = env.final_obs, obs = obs, terminated = terminated, truncated = truncated }
    local found = t > cfg.starts and learn(replay:sample(cfg.batch), t) or {}
    if t > round * cfg.round - cfg.delay then for name, x in pairs(found) do row[name] = x:mean():item() end end
  end
  row["return"] = mean(env:episodes().returns)
  if round % cfg.eval_every == 0 or round == rounds then row.eval = mean(play(best, cfg.episodes, 10000)) end
  run:log(round, row, { steps_s = (round - first) * cfg.round * S / (peri.time() - began) })
end

-- The last policies, beside chance.
local scores, leader = play(best, cfg.last, 30000), 1
for i, score in ipairs(scores) do leader = score > scores[leader] and i or leader end
rl.policy.save(run:path "policy.safetensors", { net = actor:single(leader), head = "tanh", env = env })
run:plot("curves.svg", { { "return", "eval" }, "q", "critic_loss" })
run:text("%s, %d steps: %s; at random %s; rl-zoo's TD3: Pendulum-v1 -152, MountainCarContinuous-v0 93.5", cfg.env,
  rounds * cfg.round, run:scores("greedy", scores), run:scores("random", play(any, cfg.last, 50000)))
run:finish()
