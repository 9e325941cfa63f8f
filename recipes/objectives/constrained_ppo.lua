-- constrained_ppo.lua - as good as can be at a cost that stays under a limit.
--
-- Teaches: PPO with a Lagrange multiplier (Tessler, Mankowitz and Mannor 2019, 1805.11074): a second critic values the
-- cost, and its price rises while the mean cost of an episode is over the limit; with --price pid its gains damp that
-- (Stooke et al. 2020, 2007.03964). The world has hazards on the short way, so the answer is known: the constrained
-- optimum by its dual, min over prices of (best return - price cost) + price limit, each by dynamic programming.
-- Run:  ./perilune run recipes/objectives/constrained_ppo.lua     a minute for ten seeds; controls:
--       --price none (no constraint), --price fixed --first 0.2; --advantage group --most 5: GRPO's, an objective each
-- Departs from the papers: policies are judged exactly, by the model of the world.
local peri = require "perilune"
local nn, optim, rl, recipe = peri.nn, peri.optim, peri.rl, peri.recipe

local cfg = peri.flags(recipe.with_flags {
  map       = { "SHHHG/..H../.....", "of GridWorld-v0: S start, G goal, H hazards" },
  slip      = { 0.1, "probability that a move goes to a side", range = "[0, 1]" },
  limit     = { 0.5, "steps in hazards that an episode may take in the mean", range = "[0, inf)" },
  margin    = { 0.1, "by which it is to stay under the limit", range = "[0, inf)" },
  price     = { "pid", "what sets the multiplier", choices = { "lagrange", "pid", "fixed", "none" } },
  advantage = { "gae", "of both; group = among the steps of a learner, no critics", choices = { "gae", "group" } },
  seeds     = { 10, "networks that learn beside each other", range = "[1, inf)" },
  updates   = { 200, "rollouts", range = "[0, inf)", budget = true },
  envs      = { 16, "environments of each network", range = "[1, inf)" },
  steps     = { 64, "steps of a rollout", range = "[1, inf)" },
  rate      = { 0.05, "of the multiplier's integral", range = "[0, inf)" },
  gain      = { 0.1, "of --price pid, proportional", range = "[0, inf)" },
  most      = { 0.5, "largest multiplier: first policies cost much", range = "(0, inf)" },
  first     = { 0.0, "multiplier at first", range = "[0, inf)" },
  lr        = { 3e-3, "learning rate, down to 0 along a line", range = "[0, inf)" },
  gamma     = { 0.99, "discount", range = "[0, 1]" },
  lam       = { 0.95, "of advantages", range = "[0, 1]" },
  ent_coef  = { 0.01, "of the entropy bonus", range = "[0, inf)" },
  hidden    = { 32, "width of the layer of each network", range = "[1, inf)" },
  eval_every = { 25, "updates between exact evaluations", range = "[1, inf)" },
})
local S, HAZARD <const> = cfg.seeds, 3 -- among the metrics of the world
local run = recipe.start { name = "constrained_ppo", flags = cfg, total = cfg.updates, columns = { "cost" } }
local function world(more)
  local o = { map = cfg.map, slip = cfg.slip, step_reward = -0.05, max_steps = 60 }
  for name, v in pairs(more or {}) do o[name] = v end
  return peri.env.make("GridWorld-v0", o)
end
local rewards, costs = world(), world { step_reward = 0, goal_reward = 0, pit_reward = 0, hazard_reward = 1 }

-- The best return of all policies whose cost is at most the limit, by ternary search on the (convex) dual.
local function optimum(limit)
  local function dual(price) return (peri.env.optimal(world { hazard_reward = -price })) + price * limit end
  local low, high = 0, 4
  for _ = 1, 30 do
    local a, b = low + (high - low) / 3, high - (high - low) / 3
    if dual(a) < dual(b) then high = b else low = a end
  end
  return dual((low + high) / 2)
end

local env, states = world { n = S * cfg.envs, seed = cfg.seed }, rewards.obs_space.n
local function copies(make) return nn.Copies(S, make, { seeds = peri.arange(S):add(cfg.seed):tolist() }) end
local net = copies(function ()
  return rl.ActorCritic { obs = env.obs_space, action = env.action_space, hidden = { cfg.hidden } }
end)
local critic = copies(function () return nn.MLP({ states, cfg.hidden, 1 }, { activation = "tanh" }) end)
local opt, critic_opt = optim.Adam(net, { lr = cfg.lr, eps = 1e-5 }), optim.Adam(critic, { lr = cfg.lr })
local price = rl.lagrange { limit = cfg.limit - cfg.margin, seeds = S, rate = cfg.rate, first = cfg.first,
  most = cfg.most, proportional = cfg.price == "pid" and cfg.gain or 0 }
local function cost_value(obs) return critic(obs:one_hot(states)):squeeze(-1) end

local agent, measured -- (seeds) mean cost of an episode
local function advantages(rollout, advantage) -- of the reward, under the price of the cost
  local cost = rollout:get("metrics"):select(3, HAZARD)
  local over = rollout:get("terminated"):logical_or(rollout:get "truncated")
  local function total(x) return x:to("f32"):reshape({ cfg.steps, S, cfg.envs }):sum { 1, 3 } end
  measured = total(cost) / total(over):clamp(1)
  if cfg.price == "lagrange" or cfg.price == "pid" then price:update(measured) end
  if cfg.advantage == "group" then
    return price:advantage(rl.group_advantage(rollout:get "reward", over, { seeds = S }),
      rl.group_advantage(cost, over, { seeds = S }))
  end
  local found = rl.gae(rollout, { reward = cost, value = cost_value, last = agent.last, gamma = cfg.gamma,
    lam = cfg.lam, seeds = S })
  local function arranged(x) return x:reshape({ cfg.steps, S, cfg.envs }):transpose(1, 2):reshape { S, -1 } end
  local obs, wanted = arranged(rollout:get "obs"), arranged(found.returns)
  for _ = 1, 4 do
    peri.enable_grad(function () (cost_value(obs) - wanted):square():mean(2):sum():backward() end)
    critic_opt:step():zero_grad()
  end
  return price:advantage(advantage, found.advantage)
end
agent = peri.algo.agent.new { env = env, net = net, optimizer = opt, steps = cfg.steps, gamma = cfg.gamma,
  lam = cfg.lam, ent_coef = cfg.ent_coef, advantage = advantages,
  schedule = peri.sched.linear { from = cfg.lr, to = 0, steps = math.max(1, cfg.updates) } }
run:track("net", net):track("optimizer", opt):track("env", env):track("agent", agent):track("price", price)
run:track("critic", critic):track("critic_optimizer", critic_opt)

local function exact() -- return and cost of each seed's policy, as it draws actions
  local obs = peri.arange(states):to("i64"):unsqueeze(1):expand { S, states }
  local probs = peri.no_grad(function () return net.net:policy(obs).logits:softmax(-1):tolist() end)
  local r, c = {}, {}
  for s = 1, S do
    local function policy(state) return probs[s][state + 1] end
    r[s], c[s] = peri.env.evaluate(rewards, policy), peri.env.evaluate(costs, policy)
  end
  return r, c
end
-- Loop.
run:restore()
for update in run:steps() do
  local m = agent:step()
  m.cost, m.multiplier = measured:mean():item(), price.value:mean():item()
  if update % cfg.eval_every == 0 or update == cfg.updates then
    local r, c = exact()
    m.exact_return, m.exact_cost = peri.tensor(r, "f64"):mean():item(), peri.tensor(c, "f64"):mean():item()
  end
  run:log(update, m)
end
local r, c = exact()
run:plot("curves.svg", { run:last "exact_cost" and { "cost", "exact_cost" } or "cost", "multiplier", "reward" })
run:text("%s, limit %g: return %s, constrained optimum %.4f, without a limit %.4f", cfg.price, cfg.limit,
  rl.report(r), optimum(cfg.limit), (peri.env.optimal(rewards)))
run:text("cost %s, within the limit in %d of %d seeds", rl.report(c),
  peri.tensor(c, "f64"):le(cfg.limit):to("i64"):sum():item(), S)
run:finish()
