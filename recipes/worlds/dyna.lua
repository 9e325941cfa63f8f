-- dyna.lua - Dyna-Q: every step is learned from many times, for it is remembered as a model.
--
-- Teaches: acting, learning, counting a model and planning in it are one loop (Sutton 1990; Sutton and Barto 2018,
-- section 8.2): behind each step of the environment, --planning more updates are made of steps that the model draws. 0
-- is Q-learning. In a world that changes (--maze shortcut: a shorter way opens at step 3000) a model that is believed
-- for good keeps to what it knows; with --kappa it pays for what was long not tried (Dyna-Q+, section 8.3).
-- Run:  ./perilune run recipes/worlds/dyna.lua    ten seeds of the book's maze: some seconds. Beside the exact
--       optimum, by dynamic programming, stand the steps of the environment until the greedy policy is optimal.
local peri = require "perilune"
local rl, recipe = peri.rl, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  maze     = { "maze", "of figure 8.2, or of 8.5", choices = { "maze", "shortcut" } },
  seeds    = { 10, "seeds, from --seed on", range = "[1, inf)" },
  steps    = { 3000, "steps of the environment, of each seed; 6000 of shortcut show the change", range = "[0, inf)",
    budget = true },
  interval = { 50, "steps between two lines and evaluations", range = "[1, inf)" },
  planning = { 50, "updates from the model behind each step", range = "[0, inf)" },
  kappa    = { 0.0, "bonus for what was long not tried", range = "[0, inf)" },
  gamma    = { 0.95, "discount", range = "[0, 1]" },
  alpha    = { 0.1, "step size", range = "(0, inf)" },
  epsilon  = { 0.1, "share of any action", range = "[0, 1]" },
})
local mazes = {
  maze = { ".......#G/..#....#./S.#....#./..#....../.....#.../........." },
  shortcut = { "........G/........./........./.########/........./...S.....",
    "........G/........./........./.#######./........./...S....." },
}
local maps, opens, intervals = mazes[cfg.maze], 3000, cfg.steps // cfg.interval
local run = recipe.start { name = "dyna", flags = cfg, total = intervals, columns = { "value", "optimum", "goals" } }
local function make(map, seed)
  return peri.env.make("GridWorld-v0", { map = map, slip = 0, step_reward = 0, goal_reward = 1, seed = seed })
end
local function map_at(t) return #maps > 1 and t > opens and 2 or 1 end

-- Each learner: its worlds, action values, a model. They go on from state to state, whatever an episode is.
local learners, optimum = {}, {}
local how = { steps = 60, discount = cfg.gamma }
for i, map in ipairs(maps) do optimum[i] = peri.env.optimal(make(map, 0), how) end
for i = 1, cfg.seeds do
  local l = { envs = {}, facts = peri.zeros({ 3 }, "i64") } -- goals reached, step at which it was optimal, state
  for k, map in ipairs(maps) do
    l.envs[k] = make(map, cfg.seed + i - 1)
    run:track(("env%d_%d"):format(i, k), l.envs[k])
  end
  l.values = rl.tabular(l.envs[1], { seed = cfg.seed + i - 1 })
  l.model = rl.tabular_model { seed = cfg.seed + i - 1, kappa = cfg.kappa, last = true,
    actions = cfg.kappa > 0 and l.values.actions or nil }
  learners[i] = l
  run:track("values" .. i, l.values):track("model" .. i, l.model):track("facts" .. i, {
    state_dict = function () return { facts = l.facts } end,
    load_state_dict = function (_, t) l.facts:copy_(t.facts) end })
end

local function update(l, s, a, reward, after, terminated)
  l.values:update(s, a, reward + (terminated and 0 or cfg.gamma * l.values:max(after)), cfg.alpha, 0)
end
local function learn(l, first, last)
  local goals, found, s = table.unpack(l.facts:tolist())
  for t = first, last do
    local env = l.envs[map_at(t)]
    if s == 0 or map_at(t) ~= map_at(t - 1) then s = l.values:state(env:reset()) end
    local a = l.values:epsilon_greedy(s, cfg.epsilon)
    local obs, reward, terminated, truncated = env:step(a - 1)
    local after = l.values:state(obs)
    update(l, s, a, reward, after, terminated)
    l.model:observe(s, a, reward, after, terminated)
    for _ = 1, cfg.planning do update(l, l.model:draw()) end
    goals = goals + (terminated and 1 or 0)
    s = (terminated or truncated) and l.values:state(env:reset()) or after
  end
  local which = map_at(last)
  local value = peri.env.evaluate(l.envs[which], l.values:policy(), how)
  if found == 0 and value > optimum[which] - 1e-9 then found = last end
  l.facts:copy_(peri.tensor({ goals, found, s }, "i64"))
  return value, goals, found
end

local values, goals, found, worth = {}, {}, {}, {}
run:restore()
for step in run:steps() do
  local last = step * cfg.interval
  for i, l in ipairs(learners) do values[i], goals[i], found[i] = learn(l, last - cfg.interval + 1, last) end
  run:log(step, { value = rl.iqm(values), optimum = optimum[map_at(last)], goals = rl.iqm(goals) })
end
for i, l in ipairs(learners) do
  local facts = l.facts:tolist()
  goals[i], found[i] = facts[1], facts[2] > 0 and facts[2] or math.huge
  worth[i] = peri.env.evaluate(l.envs[map_at(cfg.steps)], l.values:policy(), how)
end
local when = {}
for i, t in ipairs(found) do when[i] = t < math.huge and tostring(t) or "never" end
run:text("%s, %d updates from the model a step: goals in %d steps %s; greedy policies are worth %s of %.4f and were "
  .. "first optimal at step %s", cfg.maze, cfg.planning, cfg.steps, run:scores("goals", goals),
  run:scores("worth", worth, 4), optimum[#maps], table.concat(when, ", "))
run:plot("curves.svg", { { "value", "optimum" }, "goals" })
run:finish()
