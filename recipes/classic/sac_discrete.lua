-- sac_discrete.lua - soft actor-critic that chooses: what is an expectation over the actions needs no draw.
--
-- Teaches: discrete SAC (Christodoulou 2019, arXiv 1910.07207, algorithm 1). Critics give the values of all actions:
-- V(s) = sum_a pi(a|s) (min_i q_i(s, a) - alpha log pi(a|s)) (eq. 10), and the policy climbs it itself (eq. 12); alpha
-- keeps the entropy at a share of the most that there is. To see what each is for: --critics 1, --tau 1, --alpha 0.
-- Run:  ./perilune run recipes/classic/sac_discrete.lua    CartPole-v1, 20,000 steps: a minute on two cores; --seeds 5
--       learns five at once.
-- Departs from the paper: entropy at 0.5 of log(actions), not 0.98, with which draws among two actions stay a coin's.
local peri = require "perilune"
local optim, rl, nn, recipe = peri.optim, peri.rl, peri.nn, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  env        = { "CartPole-v1", "environment with numbered actions and a vector to observe" },
  seeds      = { 1, "learners side by side, from --seed on, an environment for each", range = "[1, inf)" },
  steps      = { 20000, "steps of each environment, in whole rounds", range = "[0, inf)", budget = true },
  round      = { 200, "steps from a row of metrics to the next", range = "[1, inf)" },
  starts     = { 500, "steps of any action before the first gradient step", range = "[0, inf)" },
  batch      = { 64, "transitions of a gradient step", range = "[1, inf)" },
  buffer     = { 100000, "steps kept", range = "[1, inf)" },
  lr         = { 1e-3, "learning rate of all three", range = "(0, inf)" },
  gamma      = { 0.99, "discount", range = "[0, 1]" },
  tau        = { 0.005, "of the way that target networks go at a step; 1 = they are the critics", range = "(0, 1]" },
  critics    = { 2, "whose least value counts", range = "[1, inf)" },
  alpha      = { -1.0, "temperature, fixed; -1 = learned, from 1 on", range = "[-1, inf)" },
  entropy    = { 0.5, "that the temperature keeps, of log(actions)", range = "[0, 1]" },
  hidden     = { 64, "width of both layers", range = "[1, inf)" },
  eval_every = { 10, "rounds between evaluations", range = "[1, inf)" },
  last       = { 100, "episodes of the last evaluation, of each learner", range = "[1, inf)" },
  episodes   = { 10, "of an evaluation, of each learner", range = "[1, inf)" },
})
local S, rounds, widths = cfg.seeds, (cfg.steps + cfg.round - 1) // cfg.round, { cfg.hidden, cfg.hidden }
local run = recipe.start { name = "sac_discrete", flags = cfg, total = rounds, columns = { "return", "eval" } }
local env = peri.env.make(cfg.env, { n = S, seed = cfg.seed })
local test = peri.env.make(cfg.env, { n = S * cfg.episodes, copy = false })
local inputs, actions = env.obs_space.shape[1], env.action_space.n
local seeds = peri.arange(S):add(cfg.seed):tolist()
assert(#env.obs_space.shape == 1 and actions, cfg.env .. " lacks a vector to observe or numbered actions")

-- Everything has a leading dim of learners: (S, rows, ...).
local actor = nn.Copies(S, function ()
  return nn.MLP { inputs, cfg.hidden, cfg.hidden, actions, activation = "relu", init = "uniform" }
end, { seeds = seeds })
local critics = rl.Critics { inputs = inputs, outputs = actions, critics = cfg.critics, seeds = seeds, hidden = widths }
local temperature = rl.Temperature { learners = S, target = cfg.entropy * math.log(actions),
  start = cfg.alpha < 0 and 1 or cfg.alpha, fixed = cfg.alpha >= 0 }
local target = rl.target(critics, { tau = cfg.tau })
local of_actor, of_critics = optim.Adam(actor, { lr = cfg.lr }), optim.Adam(critics, { lr = cfg.lr })
local of_alpha = not temperature.fixed and optim.Adam(temperature, { lr = cfg.lr }) or nil
local replay = peri.replay { capacity = cfg.buffer, rows = S, groups = S, seed = cfg.seed, gamma = cfg.gamma,
  observed = { obs = { "f32", inputs } }, fields = { action = "i64" } }
run:track("actor", actor):track("critics", critics):track("temperature", temperature):track("target", target)
  :track("actor_optimizer", of_actor):track("critic_optimizer", of_critics):track("env", env):track("replay", replay)
if of_alpha then run:track("alpha_optimizer", of_alpha) end
run:best("eval", { mode = "max", objects = { "actor" } })

local function wanted(batch, alpha) -- what comes of s and a
  local _ <close> = peri.no_grad()
  local value = rl.expected_value(target(batch.next_obs), actor(batch.next_obs):log_softmax(-1), alpha)
  local y = rl.backup(batch, value)
  rl.checks.targets { batch = batch, target = y, value = value }
  return y
end

local function learn(batch)
  local alpha, every = temperature(), critics(batch.obs)
  local action = batch.action:unsqueeze(1):unsqueeze(-1):expand { cfg.critics, S, cfg.batch, 1 }
  local q = every:gather(action, -1):squeeze(-1)
  local loss = (q - wanted(batch, alpha)):square():mean(-1):sum() * 0.5
  loss:backward()
  of_critics:step():zero_grad()
  local value, entropy = rl.expected_value(every:detach(), actor(batch.obs):log_softmax(-1), alpha)
  local policy_loss = value:neg():mean(-1):sum() -- the policy: the value of states is what it climbs
  policy_loss:backward()
  of_actor:step():zero_grad()
  if of_alpha then temperature:loss(entropy):backward(); of_alpha:step():zero_grad() end
  target:update()
  return { critic_loss = loss, policy_loss = policy_loss, entropy = entropy, q = q, alpha = alpha }
end

-- (S * rows, inputs) -> (S * rows) actions: the likeliest, a drawn one, any.
local function logits(obs) return rl.together(actor(rl.apart(obs, S))) end
local function best(obs) return logits(obs):argmax(-1) end
local function drawn(obs) return peri.dist.Categorical(logits(obs)):sample() end
local function any(obs) return peri.randint(0, actions, { obs:size(1) }) end

local function play(choose, episodes, seed) -- mean return of each learner, in environments of their own
  return rl.evaluate(test, choose, { episodes = S * episodes, seeds = S, seed = seed }).of_seed
end
local function mean(list) return #list > 0 and peri.tensor(list, "f64"):mean():item() or nil end

-- Loop: a step of the environment, a gradient step.
local obs = run:restore() == 0 and env:reset() or env.obs
local began, first = peri.time(), run.step
for round in run:steps() do
  local found
  for t = (round - 1) * cfg.round + 1, round * cfg.round do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local action = peri.no_grad(function () return (t <= cfg.starts and any or drawn)(obs) end)
    local next_obs, reward, terminated, truncated = env:step(action)
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
rl.policy.save(run:path "policy.safetensors", { net = actor:single(leader), head = "categorical", env = env })
run:plot("curves.svg", { { "return", "eval" }, "entropy", "alpha", "q", "critic_loss" })
run:text("%s, %d steps: %s; drawn %s; at random %s", cfg.env, rounds * cfg.round, run:scores("greedy", scores),
  run:scores("drawn", play(drawn, cfg.last, 40000)), run:scores("random", play(any, cfg.last, 50000)))
run:finish()
