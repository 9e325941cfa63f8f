-- private.lua - a policy gradient that says little of any one user: differentially private policy optimisation.
--
-- Teaches: DP-SGD (Abadi et al. 2016) with the trajectory as the unit (Rio, Barlier and Colin 2025, 2501.19080). Of
-- many users each takes part in an update with probability --rate, on their own; the gradient of each trajectory is
-- clipped to --clip, noise of deviation --noise * --clip goes onto the sum, which is divided by the number that was
-- expected, never by that which came. An accountant (Mironov et al. 2019) says what that costs. Nothing looks across
-- trajectories: the baseline is a value that is learned from the same noisy gradients.
-- Run:  ./perilune run recipes/objectives/private.lua    two minutes for ten seeds; a wished price: --epsilon 3
--       controls: --noise 0 (clipping alone), --noise 0 --clip 0 (neither); levels: --noise 1, 2, 4
-- Departs from the papers: episodes of CartPole stand in for users; one step an update; the norms that are logged are
-- those of what users gave, which a service would keep to itself.
local peri = require "perilune"
local nn, optim, rl, recipe = peri.nn, peri.optim, peri.rl, peri.recipe

local cfg = peri.flags(recipe.with_flags {
  env        = { "CartPole-v1", "environment with discrete actions" },
  seeds      = { 10, "networks that learn beside each other, each from users of its own", range = "[1, inf)" },
  updates    = { 60, "steps of the optimizer", range = "[0, inf)", budget = true },
  users      = { 5000, "of each network, each one trajectory an update if they take part", range = "[1, inf)" },
  rate       = { 0.02, "probability with which each takes part in an update", range = "(0, 1]" },
  horizon    = { 200, "most steps of an episode", range = "[1, inf)" },
  clip       = { 1.0, "largest norm of a trajectory's gradient; 0 = any, without noise", range = "[0, inf)" },
  noise      = { 2.0, "deviation of the noise, times --clip; 0 = none", range = "[0, inf)" },
  epsilon    = { 0.0, "choose the noise for this price of all updates; 0 = by --noise", range = "[0, inf)" },
  delta      = { 1e-5, "probability with which the price may not hold", range = "(0, 1)" },
  lr         = { 0.01, "learning rate of Adam", range = "[0, inf)" },
  gamma      = { 0.99, "discount", range = "[0, 1]" },
  lam        = { 0.95, "of advantages", range = "[0, 1]" },
  vf_coef    = { 0.02, "of the value loss", range = "[0, inf)" },
  hidden     = { 16, "width of the one layer of policy and value", range = "[1, inf)" },
  eval_every = { 20, "updates between evaluations", range = "[1, inf)" },
  eval       = { 20, "episodes of an evaluation, of each seed", range = "[1, inf)" },
})
local S, expected = cfg.seeds, cfg.users * cfg.rate
local rooms = math.min(cfg.users, math.ceil(expected + 8 * expected ^ 0.5 + 8)) -- more come once in 10^12 updates
local run = recipe.start { name = "private", flags = cfg, total = cfg.updates, columns = { "eval", "epsilon" } }
local noise = cfg.noise
if cfg.epsilon > 0 then
  noise = rl.noise_for { epsilon = cfg.epsilon, delta = cfg.delta, rate = cfg.rate, steps = math.max(1, cfg.updates) }
end
assert(cfg.clip > 0 or noise == 0, "noise without a bound on what a trajectory gives: --clip above 0, or --noise 0")
local env = peri.env.make(cfg.env, { n = S * rooms, seed = cfg.seed, max_steps = cfg.horizon })
local test = peri.env.make(cfg.env, { n = S * cfg.eval, copy = false, max_steps = cfg.horizon })
local copies = nn.Copies(S, function ()
  return rl.ActorCritic { obs = env.obs_space, action = env.action_space, hidden = { cfg.hidden } }
end, { seeds = peri.arange(S):add(cfg.seed):tolist() })
local net, params, accountant = copies.net, copies:parameters(), rl.accountant()
local opt = optim.Adam(params, { lr = cfg.lr })
run:track("net", copies):track("optimizer", opt):track("env", env):track("accountant", accountant)

local function play() -- an episode in each room, (seeds * rooms, steps); what is behind its end has weight 0
  local _ <close> = peri.no_grad()
  local list = { obs = {}, action = {}, reward = {}, terminated = {}, truncated = {}, final = {}, weight = {} }
  local obs, running = env:reset(), peri.ones({ S * rooms }, "f32")
  repeat
    local action = rl.together((net:policy(rl.apart(obs, S)):act()))
    local after, reward, terminated, truncated = env:step(action)
    local step = { obs = obs, action = action, reward = reward, terminated = terminated, truncated = truncated,
      final = env.final_obs, weight = running }
    for name, x in pairs(step) do table.insert(list[name], x) end
    running, obs = running * terminated:logical_or(truncated):logical_not():to "f32", after
  until running:sum():item() == 0
  for name, x in pairs(list) do list[name] = peri.stack(x, 2) end
  return list
end

local function score()
  return rl.evaluate(test, function (obs) return rl.together(net:policy(rl.apart(obs, S)):deterministic()) end,
    { episodes = S * cfg.eval, seeds = S, seed = 1000000 }).of_seed
end

-- Loop.
run:restore()
local first = score()
for update in run:steps() do
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local came = peri.rand({ S, cfg.users }):lt(cfg.rate):to("f32"):sum(2) -- (S) who takes part
  local n = math.max(1, math.tointeger(came:max():item()))
  assert(n <= rooms, ("%d users came where %d have room"):format(n, rooms))
  local b = play()
  local T = b.obs.shape[2]
  local function taken(x) -- the first n rooms of each seed -> (S * n, steps, ...)
    local shape = { table.unpack(x.shape, 3) }
    return x:reshape({ S, rooms, T, table.unpack(shape) }):narrow(2, 1, n):reshape { S * n, T, table.unpack(shape) }
  end
  for name, x in pairs(b) do b[name] = taken(x) end
  local function value(x) return peri.no_grad(function () return rl.together(net:value(rl.apart(x, S))) end) end
  local v, after, how = value(b.obs), value(b.final), { gamma = cfg.gamma, lam = cfg.lam }
  local advantage, returns = peri.gae(b.reward, v, after, b.terminated, b.truncated, how)
  local present = peri.arange(n):reshape({ 1, n }):lt(came:unsqueeze(2)):to("f32"):reshape { S * n, 1 }
  local weight = b.weight * present / cfg.horizon -- who is not there gives nothing
  local grads, losses = rl.trajectory_gradients(copies, n, function (own)
    local d, values = own:both(b.obs)
    return ((values - returns):square() * cfg.vf_coef - d:log_prob(b.action) * advantage):mul(weight):sum(2)
  end)
  local noisy, norms = rl.privatise(grads, { clip = cfg.clip > 0 and cfg.clip or math.huge, noise = noise,
    expected = expected, seeds = S })
  for k, p in ipairs(params) do p.grad = noisy[k] end
  opt:step():zero_grad()
  accountant:step { noise = noise, rate = cfg.rate }
  local epsilon = accountant:epsilon(cfg.delta)
  run:log(update, { ["return"] = (b.reward * b.weight * present):sum():item() / came:sum():item(),
    epsilon = epsilon < math.huge and epsilon or nil, came = came:mean():item(), norm = norms:mean():item(),
    over_clip = cfg.clip > 0 and norms:gt(cfg.clip):to("f32"):mean():item() or nil, loss = losses:mean():item(),
    eval = (update % cfg.eval_every == 0 or update == cfg.updates) and peri.tensor(score()):mean():item() or nil })
end
local scores = score()
rl.policy.save(run:path "policy.safetensors", { net = copies:single(1), head = "categorical", env = env })
run:plot("curves.svg", { { "return", "eval" }, "norm", run:last "epsilon" and "epsilon" or nil })
run:text("%s, %d updates, clip %g, noise %.3f: greedy %s of at most %d; at first %s", cfg.env, cfg.updates, cfg.clip,
  noise, (rl.report(scores)), cfg.horizon, (rl.report(first)))
run:text("privacy of a trajectory: epsilon %.4f at delta %g (order %.1f)", accountant:epsilon(cfg.delta), cfg.delta,
  select(2, accountant:epsilon(cfg.delta)))
run:finish()
