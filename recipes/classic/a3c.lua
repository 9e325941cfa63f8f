-- a3c.lua - asynchronous actor-critic: workers learn for themselves and write into one policy without waiting.
--
-- Teaches: A3C (Mnih et al. 2016, 1602.01783, algorithm S3), with steps as in Hogwild (Recht et al. 2011, 1106.5730).
-- Each worker is a Lua state on a thread of its own with environments of its own: it copies the shared parameters,
-- plays a few steps, and moves the shared parameters by its gradient, with RMSprop's mean squares shared as well.
-- Nobody takes a lock: x:share "racing". A read may see half of a write; with small steps that is a little noise.
-- Run:  ./perilune run recipes/classic/a3c.lua    CartPole, 500,000 steps, half a minute on two cores; --workers 1 is
--       A2C; --env FILE.lua plays an environment in Lua
-- Resuming is not byte-equal: threads race, so no two runs are alike. A checkpoint has parameters and mean squares;
-- workers begin new episodes from there.
-- Departs from the paper: a batch of environments in each worker; gradients are clipped; networks as in a2c.lua.
local peri = require "perilune"
local optim, rl, recipe = peri.optim, peri.rl, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  env       = { "CartPole-v1", "environment, or a Lua file that returns one" },
  workers   = { 2, "Lua states that learn", range = "[1, inf)" },
  timesteps = { 500000, "environment steps of all workers", budget = true },
  envs      = { 4, "environments of each worker", range = "[1, inf)" },
  steps     = { 5, "steps of each environment before an update", range = "[1, inf)" },
  lr        = { 7e-4, "learning rate", range = "[0, inf)" },
  gamma     = { 0.99, "discount", range = "[0, 1]" },
  vf_coef   = { 0.5, "of the value loss", range = "[0, inf)" },
  ent_coef  = { 0.0, "of the entropy bonus", range = "[0, inf)" },
  max_norm  = { 0.5, "of a worker's gradients together", range = "(0, inf)" },
  hidden    = { 64, "width of both layers", range = "[1, inf)" },
  every     = { 25000, "environment steps between two rows, of all workers", range = "[1, inf)" },
  eval      = { 20, "episodes of each evaluation", range = "[1, inf)" },
})

local settings = { n = cfg.envs, hidden = { cfg.hidden, cfg.hidden } }
for _, k in ipairs { "env", "steps", "lr", "gamma", "vf_coef", "ent_coef", "max_norm" } do settings[k] = cfg[k] end

-- What both sides have: environments and a network.
local function setup(o, n, seed)
  local env = peri.env.make(o.env:find "%.lua$" and dofile(o.env) or o.env, { n = n, seed = seed, copy = false })
  return env, rl.ActorCritic { obs = env.obs_space, action = env.action_space, hidden = o.hidden }
end

-- A worker: theta, the parameters, and square, RMSprop's means, are everybody's.
local function learn(i, _, answers, o, theta, square, seed)
  local env, net = setup(o, o.n, seed + 1000 * i)
  local seen = { env.obs_space.dtype, table.unpack(env.obs_space.shape) }
  local rollout = peri.rollout { steps = o.steps, rows = o.n, fields = { obs = seen, final_obs = seen,
    action = net.head.field, logp = "f32", reward = "f32", terminated = "bool", truncated = "bool", advantage = "f32",
    returns = "f32", value = "f32" } }
  local function value(x) return net:value(x) end
  env:reset()
  repeat
    optim.assign_(net, theta:clone()) -- what others write meanwhile is for the next time
    for t = 1, o.steps do
      local _ <close> = peri.no_grad()
      local action, logp = net:policy(env.obs):act()
      rollout:set(t, { obs = env.obs, action = action, logp = logp })
      local _, reward, terminated, truncated = env:step(net.head:sent(action))
      rollout:set(t, { reward = reward, terminated = terminated, truncated = truncated, final_obs = env.final_obs })
    end
    rollout:put(rl.gae(rollout, { value = value, last = env.obs, gamma = o.gamma, lam = 1 }))
    rl.checks.bootstrap(rollout, { value = value, gamma = o.gamma })
    local b = rollout:flatten()
    local policy, v = net:both(b.obs)
    local logp, entropy = policy:evaluate(b.action)
    rl.checks.ratio(logp, b.logp)
    rl.checks.constant { old_logp = b.logp, advantage = b.advantage, returns = b.returns }
    local policy_loss, value_loss = -(logp * b.advantage):mean(), (v - b.returns):square():mean()
    policy_loss:add(value_loss * o.vf_coef):sub(entropy:mean() * o.ent_coef):backward()
    peri.no_grad(function ()
      local g = optim.flatten_grads(net)
      g = g * math.min(1, o.max_norm / (g:square():sum():item() ^ 0.5 + 1e-6))
      square:mul_(0.99):add_(g * g * 0.01) -- by all workers at once
      theta:sub_(g * o.lr / (square:sqrt() + 1e-5))
    end)
    net:zero_grad()
    local report = { ended = env:episodes().returns, steps = o.steps * o.n, policy_loss = policy_loss:item(),
               value_loss = value_loss:item(), entropy = entropy:mean():item() }
  until not answers:send { i, report } -- it is closed when all is learned
end

-- The learner: it counts, evaluates and keeps.
local run = recipe.start { name = "a3c", flags = cfg, total = cfg.timesteps // cfg.every, columns = { "eval" } }
local test, net = setup(settings, cfg.eval, 0)
local theta, square = optim.flatten(net), peri.zeros_like(optim.flatten(net))
local shared = { state_dict = function () return { theta = theta:clone(), square = square:clone() } end }
function shared.load_state_dict(_, t) peri.no_grad(function () theta:copy_(t.theta) square:copy_(t.square) end) end
run:track("net", net):track("shared", shared):best("eval", { mode = "max", objects = { "net" } })

local function score(how)
  return rl.evaluate(test, function (obs)
    local head, policy = net.head, net:policy(obs)
    if how == "random" then policy = head:dist(peri.zeros { cfg.eval, head.size }, { log_std = net.log_std }) end
    return head:sent(how == "greedy" and policy:deterministic() or policy:act())
  end, { episodes = cfg.eval, seed = 1000000 }).mean
end

local first = run:restore()
theta:share "racing"
square:share "racing"
local seed = cfg.seed + 100000 * first -- other episodes than those before the checkpoint
local crew <close> = rl.crew({ n = cfg.workers, run = learn, ahead = 50 }, settings, theta, square, seed)
for step in run:steps() do
  local row, ended, taken, n = { policy_loss = 0, value_loss = 0, entropy = 0 }, {}, 0, 0
  while taken < cfg.every do
    local report = crew:receive()
    for name in pairs(row) do row[name] = row[name] + report[name] end
    table.move(report.ended, 1, #report.ended, #ended + 1, ended)
    taken, n = taken + report.steps, n + 1
  end
  for name, sum in pairs(row) do row[name] = sum / n end
  optim.assign_(net, theta:clone())
  row["return"] = #ended > 0 and peri.tensor(ended, "f64"):mean():item() or nil
  row.eval = score "greedy"
  run:log(step, row)
end
crew:close()
rl.policy.save(run:path "policy.safetensors", { net = net, head = net.log_std and "gaussian" or "categorical",
  log_std = net.log_std, env = test })
run:plot("curves.svg", { { "return", "eval" }, "entropy", "value_loss" })
run:text("%s, %d workers, %d steps: greedy %s; drawn %.1f; random %.1f; best %.1f; zoo: 500", cfg.env, cfg.workers,
  cfg.timesteps, run:scores("greedy", score "greedy"), score "drawn", score "random", select(2, run:load_best "eval"))
run:finish()
