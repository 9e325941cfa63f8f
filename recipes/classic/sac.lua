-- sac.lua - soft actor-critic: a policy that is paid for entropy, and learns from every step it ever made.
--
-- Teaches: SAC (Haarnoja et al. 2018, arXiv 1801.01290 and 1812.05905, algorithm 1): critics are drawn to
-- r + gamma (min_i q'_i(s', a') - alpha log pi(a'|s')) with a' ~ pi, slow copies q' and the less of two; the policy
-- climbs min_i q_i(s, a) - alpha log pi(a|s) through the action; alpha keeps the entropy at minus the action's numbers.
-- What each is for: --critics 1, --tau 1 (no slow copies), --alpha 0 (no entropy) or --alpha 0.2 (its price fixed).
-- Run:  ./perilune run recipes/classic/sac.lua    Pendulum-v1 with rl-zoo's settings, 20,000 steps: some minutes on two
--       cores. --seeds 5 learns five at once.
-- Departs from the paper: no reward scale, the temperature is learned; as Stable-Baselines3 has it.
local peri = require "perilune"
local optim, rl, nn, recipe = peri.optim, peri.rl, peri.nn, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  env        = { "Pendulum-v1", "environment whose actions are a box of numbers" },
  seeds      = { 1, "learners side by side, from --seed on, an environment for each", range = "[1, inf)" },
  steps      = { 20000, "steps of each environment, in whole rounds", range = "[0, inf)", budget = true },
  round      = { 200, "steps from a row of metrics to the next", range = "[1, inf)" },
  starts     = { 100, "steps of any action before the first gradient step", range = "[0, inf)" },
  batch      = { 256, "transitions of a gradient step", range = "[1, inf)" },
  buffer     = { 1000000, "steps kept", range = "[1, inf)" },
  lr         = { 1e-3, "learning rate of all three", range = "(0, inf)" },
  gamma      = { 0.99, "discount", range = "[0, 1]" },
  tau        = { 0.005, "of the way that target networks go at a step; 1 = they are the critics", range = "(0, 1]" },
  critics    = { 2, "whose least value counts", range = "[1, inf)" },
  alpha      = { -1.0, "temperature, fixed; -1 = learned, from 1 on", range = "[-1, inf)" },
  entropy    = { 0.0, "that the temperature keeps; 0 = minus the numbers of an action" },
  hidden     = { 256, "width of both layers", range = "[1, inf)" },
  eval_every = { 10, "rounds between evaluations", range = "[1, inf)" },
  last       = { 100, "episodes of the last evaluation, of each learner", range = "[1, inf)" },
  episodes   = { 10, "of an evaluation, of each learner", range = "[1, inf)" },
})
local S, rounds, widths = cfg.seeds, (cfg.steps + cfg.round - 1) // cfg.round, { cfg.hidden, cfg.hidden }
local run = recipe.start { name = "sac", flags = cfg, total = rounds, columns = { "return", "eval", "entropy", "q" } }
local env = peri.env.make(cfg.env, { n = S, seed = cfg.seed })
local test = peri.env.make(cfg.env, { n = S * cfg.episodes, copy = false })
local space, inputs = env.action_space, env.obs_space.shape[1]
assert(#env.obs_space.shape == 1 and space.kind == "box", cfg.env .. " lacks a vector to observe or a box of actions")
local actions, seeds = space.shape[1], peri.arange(S):add(cfg.seed):tolist()

-- Everything has a leading dim of learners: (S, rows, ...).
local function new() return rl.GaussianActor(inputs, actions, { hidden = widths }) end
local policies = nn.Copies(S, new, { seeds = seeds })
local actor = policies.net
local critics = rl.Critics { inputs = inputs + actions, critics = cfg.critics, seeds = seeds, hidden = widths }
local temperature = rl.Temperature { learners = S, target = cfg.entropy ~= 0 and cfg.entropy or -actions,
  start = cfg.alpha < 0 and 1 or cfg.alpha, fixed = cfg.alpha >= 0 }
local target = rl.target(critics, { tau = cfg.tau })
local of_actor, of_critics = optim.Adam(policies, { lr = cfg.lr }), optim.Adam(critics, { lr = cfg.lr })
local of_alpha = not temperature.fixed and optim.Adam(temperature, { lr = cfg.lr }) or nil
local replay = peri.replay { capacity = cfg.buffer, rows = S, groups = S, seed = cfg.seed, gamma = cfg.gamma,
  observed = { obs = { "f32", inputs } }, fields = { action = { "f32", actions } } }
run:track("actor", policies):track("critics", critics):track("temperature", temperature):track("target", target)
  :track("actor_optimizer", of_actor):track("critic_optimizer", of_critics):track("env", env):track("replay", replay)
if of_alpha then run:track("alpha_optimizer", of_alpha) end
run:best("eval", { mode = "max", objects = { "actor" } })

local function wanted(batch, alpha) -- what comes of s and a
  local _ <close> = peri.no_grad()
  local action, logp = actor:act(batch.next_obs)
  local value = rl.least_value(target(batch.next_obs, action), logp, alpha)
  local y = rl.backup(batch, value)
  rl.checks.targets { batch = batch, target = y, value = value }
  return y
end

local function learn(batch)
  local alpha, q = temperature(), critics(batch.obs, batch.action)
  local loss = (q - wanted(batch, alpha)):square():mean(-1):sum() * 0.5
  loss:backward()
  of_critics:step():zero_grad()
  critics:freeze() -- the policy: its actions move to where the critics, which stay, say more
  local action, logp = actor:act(batch.obs)
  local policy_loss = rl.least_value(critics(batch.obs, action), logp, alpha):neg():mean(-1):sum()
  policy_loss:backward()
  of_actor:step():zero_grad()
  critics:unfreeze()
  local entropy = logp:detach():neg()
  if of_alpha then temperature:loss(entropy):backward(); of_alpha:step():zero_grad() end
  target:update()
  return { critic_loss = loss, policy_loss = policy_loss, entropy = entropy, q = q, alpha = alpha }
end
-- Actions in [-1, 1], (S, n, inputs) -> (S, n, actions): the mean, a drawn one, any.
local function best(obs) return actor:best(obs) end
local function drawn(obs) return actor:act(obs) end
local function any(obs) return peri.rand({ S, obs:size(2), actions }) * 2 - 1 end
local function play(choose, episodes, seed) -- mean return of each learner, in environments of their own
  return rl.evaluate(test, function (obs) return rl.stretched(rl.together((choose(rl.apart(obs, S)))), space) end,
    { episodes = S * episodes, seeds = S, seed = seed }).of_seed
end
local function mean(list) return #list > 0 and peri.tensor(list, "f64"):mean():item() or nil end

-- Loop: a step of the environment, a gradient step.
local obs = run:restore() == 0 and env:reset() or env.obs
local began, first, found = peri.time(), run.step, nil
for round in run:steps() do
  for t = (round - 1) * cfg.round + 1, round * cfg.round do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local action = peri.no_grad(function () return rl.together((t > cfg.starts and drawn or any)(rl.apart(obs, S))) end)
    local next_obs, reward, terminated, truncated = env:step(rl.stretched(action, space))
    replay:add { obs = obs, action = action, reward = reward, next_obs = env.final_obs, terminated = terminated,
      truncated = truncated }
    obs = peri.keep(next_obs)
    rl.checks.step { next_obs = env.final_obs, obs = obs, terminated = terminated, truncated = truncated }
    found = t > cfg.starts and learn(replay:sample(cfg.batch)) or {}
    if t == round * cfg.round then for name, x in pairs(found) do found[name] = x:mean():item() end end
  end
  found["return"] = mean(env:episodes().returns)
  if round % cfg.eval_every == 0 or round == rounds then found.eval = mean(play(best, cfg.episodes, 10000)) end
  run:log(round, found, { steps_s = (round - first) * cfg.round * S / (peri.time() - began) })
end

-- The last policies, beside chance.
local scores, leader = play(best, cfg.last, 30000), 1
for i, score in ipairs(scores) do leader = score > scores[leader] and i or leader end
rl.policy.save(run:path "policy.safetensors", { net = policies:single(leader), head = "squashed", env = env })
run:plot("curves.svg", { { "return", "eval" }, "entropy", "alpha", "q", "critic_loss" })
run:text("%s, %d steps: %s; drawn %s; at random %s; rl-zoo: Pendulum-v1 -157, MountainCarContinuous-v0 94.7", cfg.env,
  rounds * cfg.round, run:scores("greedy", scores), run:scores("drawn", play(drawn, cfg.last, 40000)),
  run:scores("random", play(any, cfg.last, 50000)))
run:finish()
