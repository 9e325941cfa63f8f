-- shaping.lua - potentials, given and learned, and what shapes no policy and what does.
--
-- Teaches: rewards r + gamma Phi(s') - Phi(s) leave optimal policies as they are (Ng, Harada and Russell 1999), for any
-- potential. A key, a door and a goal that alone pays: --potential distance is a guess that knows no walls, optimal the
-- best there is (section 5: the optimal value), preferences is learned from a judge who says now and then which of two
-- states is better, value is learned in an easier stage, where episodes begin anywhere, and kept for the hard one.
-- wrong points away from the goal: learning is slower, the optimum the same. bonus pays the optimal value at each
-- step, which is no such shaping: what is worth most is then to stay near the goal.
-- Run:  ./perilune run recipes/rewards/shaping.lua --seeds 10    seconds on one core
-- Departs from the paper: PPO; small lam, for in a sum over all that follows every potential cancels out.
local peri = require "perilune"
local nn, optim, rl, algo, recipe = peri.nn, peri.optim, peri.rl, peri.algo, require "perilune.recipe"

local kinds = { "none", "distance", "optimal", "preferences", "value", "wrong", "bonus" }
local cfg = peri.flags(recipe.with_flags {
  potential = { "preferences", "what shapes the rewards", choices = kinds },
  seeds     = { 1, "learners beside each other", range = "[1, inf)" },
  updates   = { 60, "of the policy", range = "[1, inf)", budget = true },
  stage     = { 20, "updates before them in the easier stage, with value", range = "[1, inf)" },
  envs      = { 8, "environments of each learner", range = "[1, inf)" },
  steps     = { 60, "steps of a rollout and of an episode at most", range = "[1, inf)" },
  gamma     = { 0.95, "discount", range = "[0, 1)" },
  lam       = { 0.5, "of advantages", range = "[0, 1]" },
  lr        = { 3e-3, "learning rate", range = "[0, inf)" },
  pairs     = { 20, "labels an update and learner, with preferences", range = "[1, inf)" },
  noise     = { 0.1, "share of them that is random", range = "[0, 1]" },
  hidden    = { 32, "width of both layers", range = "[1, inf)" },
  log_updates = { 5, "updates between two rows of metrics", range = "[1, inf)" },
})
local S, kind = cfg.seeds, cfg.potential
local stage = kind == "value" and cfg.stage or 0
local run = recipe.start { name = "shaping", flags = cfg, total = stage + cfg.updates, columns = { "eval", "return" } }
local room = { "S..#...", "...#.#.", "...A.#G", "...#.#.", "a..#..." }
local easy = {}
for i, row in ipairs(room) do easy[i] = row:gsub("%.", "S") end
local seeds = peri.arange(S):add(cfg.seed):tolist()
local function world(map, n)
  return peri.env.make("GridWorld-v0", { map = map, slip = 0, step_reward = 0, n = n, seed = cfg.seed,
    max_steps = cfg.steps })
end
local exact, how = world(room), { discount = cfg.gamma, steps = 0 }
local best, _, optimal = peri.env.optimal(exact, how)
local n = exact.obs_space.n

local function learner(name, map, reward)
  local env = world(map, S * cfg.envs)
  local net = nn.Copies(S, function ()
    return rl.ActorCritic { obs = env.obs_space, action = env.action_space, hidden = { cfg.hidden, cfg.hidden } }
  end, { seeds = seeds })
  local opt = optim.Adam(net:parameters(), { lr = cfg.lr, eps = 1e-5 })
  local agent = algo.agent.new { env = env, net = net, optimizer = opt, steps = cfg.steps, gamma = cfg.gamma,
    lam = cfg.lam, ent_coef = 0.01, reward = reward }
  run:track(name, net):track(name .. "-optimizer", opt):track(name .. "-env", env):track(name .. "-agent", agent)
  return agent
end

-- Potentials: of every state, by a table; or what is learned.
local function of_table(value)
  local list = {}
  for s = 0, n - 1 do list[s + 1] = value(s) end
  local t = peri.tensor(list, "f32")
  return function (obs) return t:index_select(obs:reshape { -1 }, 1):reshape(obs.shape) end
end
local best_of, width, cells = of_table(function (s) return optimal[s] end), #room[1], #room * #room[1]
local potentials = {
  distance = of_table(function (s) -- the goal is the last cell of row 3
    local cell = s % cells
    return 1 - (width - 1 - cell % width + math.abs(2 - cell // width)) / 8
  end),
  optimal = best_of, wrong = function (obs) return -best_of(obs) end,
}
local judged = rl.PreferenceReward { obs = exact.obs_space, seeds = seeds, length = 1, hidden = { 32 },
  error = cfg.noise, lr = 3e-3, center = false }
local teacher = stage > 0 and learner("teacher", easy) or nil
potentials.value = teacher and teacher.value
function potentials.preferences(obs) return judged:potential(obs) / 2 end

local function reward(rollout)
  local r, phi = rollout:get "reward", potentials[kind]
  if kind == "bonus" then return r + best_of(rollout:get "final_obs") end
  if kind == "preferences" then -- states of a pair are one-hot rows: (S, pairs, 2, 1, n)
    local worth = best_of(peri.arange(n))
    judged:compare(rollout, { pairs = cfg.pairs, noise = cfg.noise, judge = function (x)
      local v = x:matmul(worth:unsqueeze(2)):squeeze(-1):squeeze(-1)
      return (v:select(3, 1):gt(v:select(3, 2)):to "f32" + v:select(3, 1):ge(v:select(3, 2)):to "f32") / 2
    end })
    judged:learn(20)
  end
  return r + rl.shaping(rollout, { potential = phi, gamma = cfg.gamma, seeds = S })
end
local agent = learner("net", room, kind ~= "none" and reward or nil)
run:track("judged", judged):best("eval", { mode = "max", objects = { "net" } })

local function values() -- exact, of the likeliest actions of each learner
  local states, list = peri.arange(n):reshape({ 1, n }):expand({ S, n }):contiguous(), {}
  local all = peri.no_grad(function () return agent.model:policy(states):deterministic() end):tolist()
  for s = 1, S do list[s] = peri.env.evaluate(exact, function (state) return all[s][state + 1] end, how) end
  return list
end
local random = values()
for update in run:steps() do
  local row = (update <= stage and teacher or agent):step()
  row.step = nil -- of the run's
  if (update - stage) % cfg.log_updates == 0 then row.eval = peri.tensor(values(), "f64"):mean():item() end
  if row.eval then run:log(update, row) end
end
run:plot("curves.svg", { "eval", "return" })
run:text("%s, %d updates: value %s of %.4f; at first %s", kind, cfg.updates, run:scores("value", values()), best,
  rl.report(random))
run:finish()
