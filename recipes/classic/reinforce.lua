-- reinforce.lua - the policy gradient as it began: play whole episodes, make what was done in the good ones likelier.
--
-- Teaches: REINFORCE (Williams 1992; Sutton and Barto 2018, section 13.3): the gradient of log pi(a|s) times the return
-- that followed. A baseline that depends on the state alone leaves its mean as it is and takes most of its variance
-- (section 13.4): a value that is learned, the mean return of the other episodes at that moment, or none.
-- Run:  ./perilune run recipes/classic/reinforce.lua    CartPole, 100 updates of 16 episodes, ten seconds on two
--       cores; --baseline none and --baseline mean are the others; --seeds 10 learns ten networks at once
-- Departs from the book: episodes of an update are averaged, Adam in place of plain ascent, no factor gamma^t before
-- the gradient. An episode that was truncated goes on with the value of its last observation, where a value is learned.
local peri = require "perilune"
local nn, optim, rl, recipe = peri.nn, peri.optim, peri.rl, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  env        = { "CartPole-v1", "environment with discrete actions and a time limit" },
  seeds      = { 1, "networks that learn beside each other, each in environments of its own", range = "[1, inf)" },
  updates    = { 100, "optimizer steps", range = "[0, inf)", budget = true },
  episodes   = { 16, "whole episodes an update, of each seed", range = "[2, inf)" },
  baseline   = { "value", "what returns are compared with", choices = { "value", "mean", "none" } },
  lr         = { 3e-3, "learning rate", range = "[0, inf)" },
  gamma      = { 0.99, "discount", range = "[0, 1]" },
  vf_coef    = { 0.5, "of the value loss", range = "[0, inf)" },
  ent_coef   = { 0.0, "of the entropy bonus", range = "[0, inf)" },
  max_norm   = { 0.5, "of all gradients together", range = "(0, inf)" },
  hidden     = { 64, "width of both layers", range = "[1, inf)" },
  eval_every = { 20, "updates between evaluations", range = "[1, inf)" },
  eval       = { 10, "episodes of each evaluation and seed", range = "[1, inf)" },
})

local S, E, learned = cfg.seeds, cfg.episodes, cfg.baseline == "value"
local run = recipe.start { name = "reinforce", flags = cfg, total = cfg.updates, columns = { "return", "eval" } }
local env = peri.env.make(cfg.env, { n = S * E, seed = cfg.seed })
local test = peri.env.make(cfg.env, { n = S * cfg.eval, copy = false })
assert(env.max_steps, cfg.env .. " has no time limit: its episodes may never end")
local shape = { obs = env.obs_space, action = env.action_space, hidden = { cfg.hidden, cfg.hidden } }
local seeds = peri.arange(S):add(cfg.seed):tolist()
local copies = nn.Copies(S, function () return rl.ActorCritic(shape) end, { seeds = seeds })
local net = copies.net
local opt = optim.Adam(learned and copies:parameters() or net.actor:parameters(), { lr = cfg.lr })
local seen = { env.obs_space.dtype, table.unpack(env.obs_space.shape) }
local fields = { obs = seen, final_obs = seen, action = "i64", logp = "f32", reward = "f32", terminated = "bool",
  truncated = "bool", weight = "f32", advantage = "f32", returns = "f32", value = "f32" }
run:track("net", copies):track("optimizer", opt):track("env", env):best("eval", { mode = "max", objects = { "net" } })

local function value(x) return learned and net:value(x) or peri.zeros { S, x.shape[2] } end
local function mean(list) return peri.tensor(list, "f64"):mean():item() end
local function score(how) -- mean returns of each seed, in environments of their own
  return rl.evaluate(test, function (obs)
    local policy = net:policy(rl.apart(obs, S))
    local action = how == "greedy" and policy:deterministic() or policy:act()
    return how == "random" and peri.randint(0, env.action_space.n, { S * cfg.eval }) or rl.together(action)
  end, { episodes = S * cfg.eval, seeds = S, seed = 1000000 }).of_seed
end

-- An episode in each row from its start to its end; a row that is done plays on, and its steps have weight 0.
local function play()
  local list = {}
  for name in pairs(fields) do list[name] = {} end
  local obs, running, t = env:reset(), peri.ones({ S * E }, "bool"), 0
  env:episodes()
  repeat
    t = t + 1
    local action, logp = net:policy(rl.apart(obs, S)):act()
    local step = { obs = obs, action = rl.together(action), logp = rl.together(logp), weight = running:to "f32" }
    obs, step.reward, step.terminated, step.truncated = env:step(step.action)
    step.final_obs = env.final_obs:clone()
    for name, x in pairs(step) do list[name][t] = x end
    running = running:logical_and(step.terminated:logical_or(step.truncated):logical_not())
  until not running:any():item()
  local rollout = peri.rollout { steps = t, rows = S * E, fields = fields }
  for name, steps in pairs(list) do if #steps > 0 then rollout:put { [name] = peri.stack(steps) } end end
  return rollout, obs
end

-- Loop.
run:restore()
for update in run:steps() do
  local rollout, last = peri.no_grad(play)
  local T, how = rollout:get("reward").shape[1], { value = value, gamma = cfg.gamma, seeds = S }
  rollout:put(rl.gae(rollout, { value = value, last = last, gamma = cfg.gamma, lam = 1, seeds = S }))
  rl.checks.bootstrap(rollout, how)
  local weight = rollout:get "weight"
  if cfg.baseline == "mean" then -- of the other episodes of the seed, what is over being worth 0
    local g = (rollout:get "returns" * weight):reshape { T, S, E }
    rollout:put { advantage = ((g - (g:sum(3, true) - g) / (E - 1))):reshape { T, S * E } }
  end
  local policy_loss, value_loss, entropy
  for _, b in rollout:minibatches(T * E, { groups = S }) do -- one: all of it, (S, T * E, ...)
    local logp, spread = net:policy(b.obs):evaluate(b.action)
    rl.checks.ratio(logp, b.logp)
    rl.checks.constant { old_logp = b.logp, advantage = b.advantage, returns = b.returns }
    local steps = b.weight:sum(-1)
    policy_loss = -(logp * b.advantage * b.weight):sum(-1) / steps
    entropy = (spread * b.weight):sum(-1) / steps
    value_loss = learned and ((net:value(b.obs) - b.returns):square() * b.weight):sum(-1) / steps
    local loss = policy_loss - entropy * cfg.ent_coef
    if learned then loss = loss + value_loss * cfg.vf_coef end
    loss:sum():backward()
  end
  opt:step({ clip = cfg.max_norm, copies = S }):zero_grad()
  local signal = (rollout:get "advantage" * weight):square():sum() / weight:sum()
  run:log(update, { ["return"] = (rollout:get "reward" * weight):sum():item() / (S * E),
    steps = weight:sum():item() / S,
    eval = (update % cfg.eval_every == 0 or update == cfg.updates) and mean(score "greedy") or nil,
    entropy = entropy:mean():item(), policy_loss = policy_loss:mean():item(), advantage_rms = signal:item() ^ 0.5,
    value_loss = value_loss and value_loss:mean():item() or nil, explained_variance = learned and
      rl.explained_variance(rollout:get "value", rollout:get "returns", weight) or nil })
end

local scores, drawn, random = score "greedy", score "drawn", score "random"
local best = math.tointeger(peri.tensor(scores):argmax(1):item()) + 1
rl.policy.save(run:path "policy.safetensors", { net = copies:single(best), head = "categorical", env = env })
run:plot("curves.svg", { { "return", "eval" }, "entropy", "advantage_rms" })
run:text("%s, baseline %s, %d updates: greedy %s; drawn %s; at random %s; best of evaluations %.1f", cfg.env,
  cfg.baseline, cfg.updates, run:scores("greedy", scores), run:scores("drawn", drawn), run:scores("random", random),
  select(2, run:load_best "eval"))
run:finish()
