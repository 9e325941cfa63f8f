-- pareto.lua - one policy for every trade between two objectives: it is told the weights, and traces a Pareto front.
--
-- Teaches: preference-conditioned policies (Abels et al. 2019, 1809.07803): each episode draws weights, the policy sees
-- them, the reward is their sum of the objectives (linear scalarisation). The world is Deep Sea Treasure (Vamplew et
-- al. 2011) with the convex values of Yang, Sun and Narasimhan (2019): treasure and time. Its front is known: the most
-- treasure within so many steps, by dynamic programming.
-- Run:  ./perilune run recipes/objectives/pareto.lua     two minutes for ten seeds
--       control: --weight 0.5, one mixture for all episodes, as ordinary PPO has it
-- Departs from the papers: PPO in the place of Q-learning; what is judged is the share of the front's hypervolume.
local peri = require "perilune"
local nn, optim, rl, recipe = peri.nn, peri.optim, peri.rl, peri.recipe

local cfg = peri.flags(recipe.with_flags {
  weight   = { -1.0, "of treasure in every episode; below 0: drawn for each", range = "(-inf, 1]" },
  seeds    = { 10, "networks that learn beside each other", range = "[1, inf)" },
  updates  = { 200, "rollouts", range = "[0, inf)", budget = true },
  envs     = { 32, "environments of each network", range = "[1, inf)" },
  steps    = { 32, "steps of a rollout", range = "[1, inf)" },
  lr       = { 3e-3, "learning rate, down to 0 along a line", range = "[0, inf)" },
  gamma    = { 1.0, "discount", range = "[0, 1]" },
  lam      = { 0.95, "of advantages", range = "[0, 1]" },
  ent_coef = { 0.3, "of the entropy bonus, down to 0 along a line", range = "[0, inf)" },
  hidden   = { 64, "width of both layers", range = "[1, inf)" },
  points   = { 41, "weights at which policies are judged", range = "[2, inf)" },
  eval_every = { 25, "updates between evaluations", range = "[1, inf)" },
})
local S, P = cfg.seeds, cfg.points
local LIMIT <const>, REFERENCE <const> = 40, { 0, -25 }
local run = recipe.start { name = "pareto", flags = cfg, total = cfg.updates, columns = { "volume", "entropy" } }
local map = { "S.........", "0.........", "#1........", "##2.......", "###345....", "######....", "######....",
  "######67..", "########..", "########8.", "#########9" }
local function sea(n, seed)
  return peri.env.make("GridWorld-v0", { map = map, treasures = "0.7,8.2,11.5,14,15.1,16.1,19.6,20.3,22.4,23.7", n = n,
    seed = seed, slip = 0, step_reward = 0, max_steps = LIMIT })
end
local function front() -- the most treasure in so many steps, where more steps get more
  local world, list, most = sea(), {}, 0
  for steps = 1, LIMIT do
    local v = peri.env.optimal(world, { steps = steps })
    if v > most + 1e-9 then list[#list + 1], most = { v, -steps }, v end
  end
  return list
end
local known = front()
local whole = rl.hypervolume(known, REFERENCE)

-- Weights of a few rows each, (rows, 2).
local function mixtures(list, times)
  local rows = {}
  for i, w in ipairs(list) do rows[i] = { w, 1 - w } end
  return peri.tensor(rows, "f32"):repeat_interleave(times, 1)
end
local how = { objectives = { "gain", "-time" } }
local fixed = cfg.weight >= 0 and mixtures({ cfg.weight }, S * cfg.envs) or nil
local env = peri.env.preferences(sea(S * cfg.envs, cfg.seed), { objectives = how.objectives, weights = fixed })
local grid = {}
for i = 1, P do grid[i] = (i - 1) / (P - 1) end
local tests = peri.env.preferences(sea(S * P, 1), { objectives = how.objectives,
  weights = mixtures(grid, 1):unsqueeze(1):expand({ S, P, 2 }):reshape { S * P, 2 } })
local net = nn.Copies(S, function ()
  return rl.ActorCritic { obs = env.obs_space, action = env.action_space, hidden = { cfg.hidden, cfg.hidden } }
end, { seeds = peri.arange(S):add(cfg.seed):tolist() })
local opt = optim.Adam(net:parameters(), { lr = cfg.lr, eps = 1e-5 })
local agent = peri.algo.agent.new { env = env, net = net, optimizer = opt, steps = cfg.steps, gamma = cfg.gamma,
  lam = cfg.lam, reward = function (rollout) return rollout:get "reward" / 10 end,
  schedule = peri.sched.linear { from = cfg.lr, to = 0, steps = math.max(1, cfg.updates) } }
run:track("net", net):track("optimizer", opt):track("env", env):track("agent", agent)

local function judge() -- of each seed: the points of its policies, and the share of the front's volume that they cover
  local score = rl.evaluate(tests, function (obs) return agent:act(obs, { greedy = true }) end,
    { episodes = S * P, seeds = S })
  local share, all = {}, {}
  for s = 1, S do
    local points = {}
    for i = 1, P do
      local at = (s - 1) * P + i
      points[i] = { score.returns[at], -score.lengths[at] }
    end
    all[s], share[s] = rl.pareto(points), rl.hypervolume(points, REFERENCE) / whole
  end
  return share, all
end

-- Loop.
run:restore()
for update in run:steps() do
  agent.ent_coef = cfg.ent_coef * (1 - (update - 1) / cfg.updates)
  local m = agent:step()
  if update % cfg.eval_every == 0 or update == cfg.updates then
    m.volume = peri.tensor((judge()), "f64"):mean():item()
  end
  run:log(update, m)
end
local share, all = judge()
local found = {}
for s, points in ipairs(all) do
  found[s] = 0
  for _, p in ipairs(points) do
    for _, q in ipairs(known) do found[s] = found[s] + (math.abs(p[1] - q[1]) < 1e-4 and p[2] == q[2] and 1 or 0) end
  end
end
run:plot("curves.svg", { run:last "volume" and "volume" or "entropy", "entropy", "reward" })
run:text("share of the front's hypervolume %s; of its %d points %s", rl.report(share), #known, rl.report(found))
local words = {}
for i, p in ipairs(all[1]) do words[i] = ("%.1f in %d"):format(p[1], -p[2]) end
run:text("seed 1: treasure %s steps", table.concat(words, ", "))
run:finish()
