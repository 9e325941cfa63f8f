-- q_learning.lua - tabular temporal differences: a number for each state and action, learned one step at a time.
--
-- Teaches: Q-learning (Watkins 1989; Sutton and Barto 2018, eq. 6.8), SARSA (6.7), Expected SARSA (6.9) and Double
-- Q-learning (6.10; van Hasselt 2010), which differ in one line, the value of the next state; epsilon-greedy with a
-- schedule and Boltzmann exploration. What was learned stands beside the exact optimum, by dynamic programming.
-- Run:  ./perilune run recipes/classic/q_learning.lua    FrozenLake-v1, ten seeds: some seconds.
--       --env Taxi-v4, CliffWalking-v1, Blackjack-v1, FrozenLake8x8-v1, GridWorld-v0; --options '{"is_slippery":false}'
--       On CliffWalking-v1, --rule sarsa --final 0.1 learns to keep away from the cliff, --rule q to walk along it:
--       look at return, which is of episodes that explore, beside value, which is of the greedy policy.
-- Departs from the book: the step size falls as n(s, a)^-omega (Even-Dar and Mansour 2003), so that values converge.
local peri = require "perilune"
local rl, recipe, sched = peri.rl, require "perilune.recipe", require "perilune.sched"

local cfg = peri.flags(recipe.with_flags {
  env         = { "FrozenLake-v1", "id of a tabular environment" },
  options     = { "{}", "its own options, as JSON" },
  rule        = { "q", "the value of the next state", choices = { "q", "sarsa", "expected_sarsa", "double" } },
  seeds       = { 10, "seeds, from --seed on", range = "[1, inf)" },
  steps       = { 1000000, "steps of the environment, of each seed", range = "[0, inf)", budget = true },
  interval    = { 20000, "steps between two lines and evaluations", range = "[1, inf)" },
  gamma       = { 0.995, "discount", range = "[0, 1]" },
  alpha       = { 1.0, "step size of the first update of a value", range = "(0, inf)" },
  omega       = { 0.6, "exponent by which it falls; 0: it stays", range = "[0, 1]" },
  initial     = { 0.0, "value of every action at first; high ones make all be tried" },
  explore     = { "epsilon", "how actions are tried", choices = { "epsilon", "boltzmann" } },
  epsilon     = { 1.0, "at first", range = "[0, 1]" },
  final       = { 0.1, "epsilon from half of the steps on", range = "[0, 1]" },
  temperature = { 0.1, "of boltzmann", range = "(0, inf)" },
  horizon     = { 200, "steps of an evaluation where the environment has no time limit", range = "[1, inf)" },
})
local intervals = cfg.steps // cfg.interval
local epsilon = sched.linear { from = cfg.epsilon, to = cfg.final, steps = math.max(1, cfg.steps // 2) }

local run = recipe.start { name = "q_learning", flags = cfg, total = intervals, columns = { "value", "return" } }
local options, learners = assert(peri.json.decode(cfg.options)), {}
local function make(seed)
  local o = { seed = seed, copy = false }
  for k, v in pairs(options) do o[k] = v end
  return peri.env.make(cfg.env, o)
end
for i = 1, cfg.seeds do
  local env = make(cfg.seed + i - 1)
  local values = rl.tabular(env, { seed = cfg.seed + i - 1, initial = cfg.initial })
  local other = cfg.rule == "double" and rl.tabular(env, { seed = 1, initial = cfg.initial }) or nil
  learners[i] = { env = env, values = values, other = other }
  run:track("env" .. i, env):track("values" .. i, values)
  if other then run:track("other" .. i, other) end
end

local function act(values, s, eps)
  if cfg.explore == "boltzmann" then return values:boltzmann(s, cfg.temperature) end
  return values:epsilon_greedy(s, eps)
end

-- The rules: what the next state is worth.
local worth = {
  q = function (l, s) return l.values:max(s) end,
  sarsa = function (l, s, a) return l.values.q[s][a] end,
  expected_sarsa = function (l, s, _, eps) return l.values:expected(s, eps) end,
  double = function (l, s) return l.other.q[s][l.values:greedy(s)] end, -- one chooses, the other values
}
worth = worth[cfg.rule]

-- Steps from first to last of one learner; the state that it is in is that of its environment.
local function learn(l, first, last)
  local env = l.env
  local s = l.values:state(first == 1 and env:reset() or env.obs)
  local a = act(l.values, s, epsilon(first))
  for t = first, last do
    local eps = epsilon(t)
    local obs, reward, terminated, truncated = env:step(a - 1)
    local after = l.values:state(obs) -- what the step led to, where truncated, too
    if l.other and l.values.rng:double() < 0.5 then l.values.q, l.other.q = l.other.q, l.values.q end
    local next_action = cfg.rule == "sarsa" and act(l.values, after, eps)
    local target = reward + (terminated and 0 or cfg.gamma * worth(l, after, next_action, eps))
    l.values:update(s, a, target, cfg.alpha, cfg.omega)
    if terminated or truncated then
      s, next_action = l.values:state(env:reset()), nil
    else s = after end
    a = next_action or act(l.values, s, eps)
  end
end

local optimum = peri.env.optimal(make(0), { steps = make(0).max_steps or cfg.horizon })
local function value_of(l)
  return (peri.env.evaluate(l.env, l.values:policy(), { steps = l.env.max_steps or cfg.horizon }))
end

local values = {}
for step in run:steps() do
  local row, returns = { epsilon = epsilon(step * cfg.interval) }, {}
  for i, l in ipairs(learners) do
    learn(l, (step - 1) * cfg.interval + 1, step * cfg.interval)
    for _, r in ipairs(l.env:episodes().returns) do returns[#returns + 1] = r end
    values[i] = value_of(l)
  end
  if #returns > 0 then row["return"] = peri.tensor(returns):mean():item() end
  row.value, row.optimum = rl.iqm(values), optimum
  run:log(step, row)
end
for i, l in ipairs(learners) do values[i] = value_of(l) end
run:text("%s: exact value of greedy policies: %s; optimum %.4f", cfg.env, run:scores("value", values, 4), optimum)
local first = learners[1]
rl.policy.save(run:path "policy.safetensors", { net = first.values:network(), head = "greedy", env = first.env })
run:finish()
