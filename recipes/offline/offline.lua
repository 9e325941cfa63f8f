-- offline.lua - learning from a log alone: nobody acts, so what the log does not show is never put right.
--
-- Teaches, on a data set of record.lua: behaviour cloning (bc) repeats the log; Q-learning (dqn) believes in actions
-- that the log never tried, for a maximum picks what is too high and no step refutes it; CQL (Kumar et al. 2020, eq.
-- 4) holds down actions that are not in the log; IQL (Kostrikov et al. 2021, eq. 5-7) never asks for one: a value is
-- an expectile over the log's actions, and the policy is cloned with weights e^(beta advantage). --alpha 0 makes CQL
-- dqn, --expectile 0.5 IQL's value that of the log, --beta 0 its policy bc. value beside truth: what the first state
-- is thought to be worth and what the greedy policy then earns, discounted.
-- Run:  ./perilune run recipes/offline/offline.lua --method iql    of runs/record/data.safetensors: half a minute of
--       two cores for ten seeds, each with a log of its own.
-- Departs from the papers: small layers, learning rates that fall; CQL is double DQN with the penalty.
local peri = require "perilune"
local nn, optim, rl, recipe = peri.nn, peri.optim, peri.rl, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  data      = { "runs/record/data.safetensors", "of record.lua" },
  method    = { "cql", "how it learns", choices = { "bc", "dqn", "cql", "iql" } },
  steps     = { 5000, "gradient steps", range = "[0, inf)", budget = true },
  round     = { 500, "steps from a row of metrics to the next", range = "[1, inf)" },
  batch     = { 64, "transitions of a gradient step", range = "[1, inf)" },
  lr        = { 1e-3, "learning rate", range = "(0, inf)" },
  gamma     = { 0.95, "discount", range = "[0, 1]" },
  hidden    = { 64, "width of both layers", range = "[1, inf)" },
  tau       = { 0.02, "of the way that target networks go at a step", range = "(0, 1]" },
  alpha     = { 0.1, "weight of CQL's penalty", range = "[0, inf)" },
  expectile = { 0.7, "of IQL's value over the actions of the log", range = "(0, 1)" },
  beta      = { 3.0, "of IQL's weights e^(beta advantage)", range = "[0, inf)" },
  eval      = { 10, "episodes of an evaluation, of each seed", range = "[1, inf)" },
  last      = { 50, "episodes of the last one", range = "[1, inf)" },
})
local probe, about = assert(rl.load_dataset(cfg.data))
local S, rounds = about.rows, (cfg.steps + cfg.round - 1) // cfg.round
probe:close()
local data = assert(rl.load_dataset(cfg.data, { groups = S, gamma = cfg.gamma }))
local env = peri.env.make(about.environment, { n = S * cfg.eval, seed = 1, copy = false })
local run = recipe.start { name = "offline", flags = cfg, total = rounds, columns = { "eval", "value", "truth" } }
-- Networks of each seed: (seeds, n, ...). IQL has two critics, whose least counts.
local inputs, actions, seeds = env.obs_space.shape[1], env.action_space.n, peri.arange(S):add(cfg.seed):tolist()
local function mlp(outputs)
  return nn.Copies(S, function ()
    return nn.MLP({ inputs, cfg.hidden, cfg.hidden, outputs }, { activation = "relu", init = "uniform" })
  end, { seeds = seeds })
end
local critics = rl.Critics { inputs = inputs, outputs = actions, critics = cfg.method == "iql" and 2 or 1,
  seeds = seeds, hidden = { cfg.hidden, cfg.hidden } }
local nets = { q = critics, policy = mlp(actions), value = mlp(1) }
local target = rl.target(critics, { tau = cfg.tau })
local opt, left = {}, 1 -- left: of the steps, along which the learning rate falls
for name, net in pairs(nets) do
  opt[name] = optim.Adam(net, { lr = cfg.lr })
  run:track(name, net):track(name .. "_optimizer", opt[name])
end
run:track("target", target)

local function learn(name, loss) -- a sum of the means of seeds: each learns as if alone
  loss = loss * S
  loss:backward()
  opt[name]:step({ lr = cfg.lr * left }):zero_grad()
  return loss:item() / S
end
local function to_critics(x) return x:unsqueeze(1):expand { critics.critics, table.unpack(x.shape) } end
local function chosen(q, action) return q:gather(to_critics(action):unsqueeze(-1), -1):squeeze(-1):min(1) end

local methods = {}
function methods.bc(b) return learn("policy", (rl.cloning_loss(nets.policy(b.obs), b.action))) end
function methods.cql(b)
  local q = critics(b.obs)
  local wanted, value = rl.q_target { reward = b.reward, discount = b.discount, terminated = b.terminated,
    next_q = target(b.next_obs):squeeze(1), online_next_q = peri.no_grad(critics, b.next_obs):squeeze(1) }
  rl.checks.targets { batch = b, target = wanted, value = value }
  local loss = rl.q_loss(q:squeeze(1), b.action, wanted)
  if cfg.method == "cql" then loss = loss + cfg.alpha * rl.conservative_loss(q:squeeze(1), b.action) end
  loss = learn("q", loss)
  target:update()
  return loss
end
methods.dqn = methods.cql
function methods.iql(b)
  local q, v = chosen(target(b.obs), b.action), nets.value(b.obs):squeeze(-1)
  learn("value", (rl.expectile_loss(q - v, cfg.expectile)))
  learn("policy", (rl.cloning_loss(nets.policy(b.obs), b.action, rl.advantage_weights(q - v, cfg.beta))))
  local wanted = rl.backup(b, peri.no_grad(nets.value, b.next_obs):squeeze(-1))
  local loss = learn("q", (rl.q_loss(critics(b.obs), to_critics(b.action), to_critics(wanted))) * critics.critics)
  target:update()
  return loss
end

-- Greedy actions, and what a state is thought to be worth.
local by_policy = cfg.method == "bc" or cfg.method == "iql"
local function act(obs)
  obs = rl.apart(obs, S)
  return rl.greedy(rl.together(by_policy and nets.policy(obs) or critics(obs):squeeze(1)))
end
local function worth(obs)
  if cfg.method == "iql" then return nets.value(obs):squeeze(-1) end
  return cfg.method ~= "bc" and critics(obs):squeeze(1):max(-1) or nil
end
local function play(episodes, seed)
  local score = rl.evaluate(env, act, { episodes = S * episodes, seeds = S, seed = seed, gamma = cfg.gamma })
  local value = peri.no_grad(worth, rl.apart(env:reset { seed = seed }, S))
  return score.of_seed, value and value:mean():item(), peri.tensor(score.discounted):mean():item()
end

run:restore()
for round in run:steps() do
  local loss = 0
  for i = 1, cfg.round do
    left = 1 - ((round - 1) * cfg.round + i - 1) / (rounds * cfg.round)
    local scope <close> = peri.scope() -- luacheck: ignore 211
    loss = loss + methods[cfg.method](data:sample(cfg.batch)) / cfg.round
  end
  local scores, value, truth = play(cfg.eval, 10000)
  run:log(round, { eval = rl.iqm(scores), value = value, truth = truth, loss = loss })
end
local scores, value, truth = play(cfg.last, 20000)
run:text("%s, %s, %d steps: %s; value %s, truth %.1f", about.environment, cfg.method, rounds * cfg.round,
  run:scores("greedy", scores), value and ("%.1f"):format(value) or "none", truth)
for i, s in ipairs(about.info and about.info.sources or {}) do run:text("source %d: %.1f", i, s.reward / s.episodes) end
run:plot("curves.svg", cfg.method == "bc" and { "eval", "loss" } or { "eval", { "value", "truth" }, "loss" })
run:finish()
