-- her.lua - learning from failures: what was reached, taken for what was wanted.
--
-- Teaches: hindsight experience replay (Andrychowicz et al. 2017, 1707.01495) on its bit-flipping task: flip one of n
-- bits a step until they are the goal, -1 until then. Chance meets a goal once in 2^n states, so DQN alone learns
-- little from some ten bits on; with other goals put in when a batch is drawn (strategy "future") episodes have some.
-- Run:  ./perilune run recipes/objectives/her.lua     half a minute for ten seeds
--       control: --share 0, replay as it is; harder: --bits 15
-- Departs from the paper: smaller networks, and goals are drawn anew each time a transition is.
local peri = require "perilune"
local nn, optim, rl, recipe = peri.nn, peri.optim, peri.rl, peri.recipe

local cfg = peri.flags(recipe.with_flags {
  bits     = { 10, "that can be flipped", range = "[1, inf)" },
  share    = { 0.8, "of the transitions that get another goal; 0 = none", range = "[0, 1]" },
  seeds    = { 10, "networks that learn beside each other", range = "[1, inf)" },
  rounds   = { 250, "of an episode in every environment, then gradient steps", range = "[0, inf)", budget = true },
  envs     = { 4, "environments of each network", range = "[1, inf)" },
  gradient_steps = { 20, "of a round", range = "[1, inf)" },
  batch    = { 64, "transitions of a gradient step", range = "[1, inf)" },
  buffer   = { 5000, "steps of each environment that are kept", range = "[1, inf)" },
  lr       = { 1e-3, "learning rate", range = "[0, inf)" },
  gamma    = { 0.98, "discount", range = "[0, 1]" },
  epsilon  = { 0.2, "of the actions at random", range = "[0, 1]" },
  tau      = { 0.05, "of the way that the target goes at each gradient step", range = "(0, 1]" },
  hidden   = { 64, "width of the layer", range = "[1, inf)" },
  eval_every = { 10, "rounds between evaluations", range = "[1, inf)" },
  eval     = { 50, "episodes of an evaluation, of each seed", range = "[1, inf)" },
})
local S, bits, rows = cfg.seeds, cfg.bits, cfg.seeds * cfg.envs
local run = recipe.start { name = "her", flags = cfg, total = cfg.rounds, columns = { "success", "eval", "loss" } }

local function reached(at, goal) return at:eq(goal):all(-1) end
local flipping = { -- state and goal, of bits each
  id = "BitFlip-v0", batch = true, max_steps = bits,
  obs = peri.env.box(0, 1, { shape = { 2 * bits } }), action = peri.env.discrete(bits),
  reset = function (s, _, rng)
    s.state, s.goal = rng:uniform(0, 1, bits):gt(0.5):to "f32", rng:uniform(0, 1, bits):gt(0.5):to "f32"
    return peri.cat({ s.state, s.goal }, 2)
  end,
  step = function (s, action)
    s.state = (s.state - action:one_hot(bits):to "f32"):abs()
    local done = reached(s.state, s.goal)
    return peri.cat({ s.state, s.goal }, 2), done:to "f32" - 1, done
  end,
}
local env = peri.env.make(flipping, { n = rows, seed = cfg.seed })
local test = peri.env.make(flipping, { n = S * cfg.eval })
local net = nn.Copies(S, function () return nn.MLP({ 2 * bits, cfg.hidden, bits }, { activation = "relu" }) end,
  { seeds = peri.arange(S):add(cfg.seed):tolist() })
local target, opt = rl.target(net, { period = 1, tau = cfg.tau }), optim.Adam(net:parameters(), { lr = cfg.lr })
local buffer = peri.replay { capacity = cfg.buffer, rows = rows, groups = S, seed = cfg.seed,
  observed = { obs = { "f32", bits } }, fields = { action = "i64", goal = { "f32", bits } }, gamma = cfg.gamma }
run:track("net", net):track("target", target):track("optimizer", opt):track("env", env):track("replay", buffer)

local hindsight = { n = cfg.batch, length = bits, share = cfg.share, achieved = function (x) return x end,
  reward = function (at, goal) return reached(at, goal):to "f32" - 1 end, reached = reached }
local function learn()
  local b = rl.hindsight(buffer, hindsight) -- (seeds, batch, ...)
  local q = net(peri.cat({ b.obs, b.goal }, 3))
  local wanted = rl.q_target { reward = b.reward, discount = b.discount, terminated = b.terminated,
    next_q = target(peri.cat({ b.next_obs, b.goal }, 3)) }
  local loss = rl.q_loss(q, b.action, wanted:clamp(-1 / (1 - math.min(cfg.gamma, 0.999)), 0)) -- as the paper, 4.1
  loss:mul(S):backward()
  opt:step({ clip = 10, copies = S }):zero_grad()
  target:update()
  return loss:item()
end
local function values(obs) return peri.no_grad(function () return rl.together(net(rl.apart(obs, S))) end) end
local function success() -- share of the episodes that come to their goal, of each seed
  local score, of_seed = rl.evaluate(test, function (obs) return rl.greedy(values(obs)) end,
    { episodes = S * cfg.eval, seeds = S, seed = 1000000 }), {}
  for s = 1, S do
    local came = 0
    for i = (s - 1) * cfg.eval + 1, s * cfg.eval do came = came + (score.returns[i] > -bits and 1 or 0) end
    of_seed[s] = came / cfg.eval
  end
  return of_seed
end
local function mean(list) return peri.tensor(list, "f64"):mean():item() end

-- Loop.
local obs = run:restore() == 0 and env:reset() or env.obs
for round in run:steps() do
  for _ = 1, bits do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local action = rl.epsilon_greedy(values(obs), cfg.epsilon)
    local after, reward, terminated, truncated = env:step(action)
    buffer:add { obs = obs:narrow(2, 1, bits):contiguous(), goal = obs:narrow(2, bits + 1, bits):contiguous(),
      action = action, reward = reward, next_obs = env.final_obs:narrow(2, 1, bits):contiguous(),
      terminated = terminated, truncated = truncated }
    obs = peri.keep(after)
  end
  local loss = 0
  for _ = 1, cfg.gradient_steps do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    loss = loss + learn() / cfg.gradient_steps
  end
  local came, list = 0, env:episodes().returns
  for _, r in ipairs(list) do came = came + (r > -bits and 1 or 0) / #list end
  run:log(round, { success = #list > 0 and came or nil, loss = loss,
    eval = (round % cfg.eval_every == 0 or round == cfg.rounds) and mean(success()) or nil })
end
run:plot("curves.svg", { { "success", "eval" }, "loss" })
run:text("%d bits, %d rounds, %g of the goals in hindsight: greedy success %s", bits, cfg.rounds, cfg.share,
  rl.report(success()))
run:finish()
