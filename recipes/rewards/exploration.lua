-- exploration.lua - a reward that drawn actions do not find, and ways to find it.
--
-- Teaches: in a deep sea of size N one of 2^N sequences of actions pays, and every step of it costs. What helps is
-- looked at side by side: advantages of all rewards (nstep: lam = 1), an entropy bonus, a bonus for pairs of state and
-- action that were seldom seen (count: Strehl and Littman 2008), one for observations that a network cannot foretell
-- yet (rnd: Burda et al. 2018, with a value of its own that does not end with an episode; rnd_episodic: with one that
-- does), and potential-based shaping by the way to go (shaped: Ng et al. 1999, which must know it). none: PPO alone.
-- Run:  ./perilune run recipes/rewards/exploration.lua --method count --seeds 10    seconds on one core
-- Departs from the papers: PPO learns from the bonus, no model of the environment does.
local peri = require "perilune"
local nn, optim, rl, algo, recipe = peri.nn, peri.optim, peri.rl, peri.algo, require "perilune.recipe"

local methods = { "none", "nstep", "entropy", "count", "rnd", "rnd_episodic", "shaped" }
local cfg = peri.flags(recipe.with_flags {
  method    = { "count", "of exploring", choices = methods },
  size      = { 10, "of the sea", range = "[2, 100]" },
  seeds     = { 1, "learners beside each other, in seas of their own", range = "[1, inf)" },
  timesteps = { 40000, "environment steps of each learner", budget = true },
  envs      = { 8, "environments of each learner", range = "[1, inf)" },
  episodes  = { 5, "of each environment in a rollout", range = "[1, inf)" },
  lr        = { 2e-3, "learning rate", range = "[0, inf)" },
  gamma     = { 0.99, "discount", range = "[0, 1]" },
  lam       = { -1.0, "of advantages; below 0: 0.95, of nstep 1, of shaped 0.3", range = "[-1, 1]" },
  ent_coef  = { 0.0, "of the entropy bonus, with entropy 0.1 unless another is said", range = "[0, inf)" },
  bonus     = { 0.3, "weight of what is new", range = "[0, inf)" },
  novelty_lr = { 1e-3, "learning rate of random network distillation", range = "(0, inf)" },
  hidden    = { 32, "width of both layers", range = "[1, inf)" },
  log_updates = { 5, "updates between two rows of metrics", range = "[1, inf)" },
})
local S, N, how, steps = cfg.seeds, cfg.size, cfg.method, cfg.size * cfg.episodes
local updates = cfg.timesteps // (cfg.envs * steps)
local run = recipe.start { name = "exploration", flags = cfg, total = updates, columns = { "eval", "return", "found" } }
local env = peri.env.make("DeepSea-v0", { n = S * cfg.envs, seed = cfg.seed, size = N, map_seed = cfg.seed })
local sea = peri.env.make("DeepSea-v0", { size = N, map_seed = cfg.seed })
local seeds = peri.arange(S):add(cfg.seed):tolist()
local net = nn.Copies(S, function ()
  return rl.ActorCritic { obs = env.obs_space, action = env.action_space, hidden = { cfg.hidden, cfg.hidden } }
end, { seeds = seeds })
local opt = optim.Adam(net:parameters(), { lr = cfg.lr, eps = 1e-5 })
run:track("net", net):track("optimizer", opt):track("env", env)

-- What each method adds: to rewards, or to advantages.
local agent, reward, advantage
if how == "count" then
  local counts = rl.Counts { obs = env.obs_space, action = env.action_space, seeds = S }
  run:track("counts", counts)
  function reward(rollout) return rollout:get "reward" + cfg.bonus * counts:bonus(rollout) end
elseif how:find "^rnd" then
  local novelty = rl.RandomDistillation { obs = env.obs_space, seeds = seeds, hidden = { 64 }, batch = 100,
    lr = cfg.novelty_lr }
  local critic = rl.BonusCritic { obs = env.obs_space, seeds = seeds, hidden = { cfg.hidden }, lr = cfg.lr,
    episodic = how == "rnd_episodic" }
  run:track("novelty", novelty):track("critic", critic)
  function advantage(rollout, of_rewards)
    local bonus = novelty:bonus(rollout)
    novelty:learn(rollout)
    return of_rewards + cfg.bonus * critic:advantage(rollout, bonus, agent.last)
  end
elseif how == "shaped" then -- a share of the treasure for each row on the diagonal
  local on = (peri.arange(N * N + 1) % (N + 1)):eq(0):to "f32" * (peri.arange(N * N + 1) // N):to "f32" / N
  local function phi(states) return on:index_select(states:reshape { -1 }, 1):reshape(states.shape) end
  function reward(rollout)
    return rollout:get "reward" + rl.shaping(rollout, { potential = phi, gamma = cfg.gamma, seeds = S })
  end
end
agent = algo.agent.new { env = env, net = net, optimizer = opt, steps = steps, gamma = cfg.gamma, reward = reward,
  advantage = advantage, lam = cfg.lam >= 0 and cfg.lam or ({ nstep = 1, shaped = 0.3 })[how] or 0.95,
  ent_coef = how == "entropy" and cfg.ent_coef == 0 and 0.1 or cfg.ent_coef }
run:track("agent", agent):best("eval", { mode = "max", objects = { "net" } })

-- The exact value of what the likeliest actions of each learner earn.
local function values()
  local states = peri.arange(N * N + 1):reshape({ 1, -1 }):expand({ S, N * N + 1 }):contiguous()
  local all = peri.no_grad(function () return net.net:policy(states):deterministic() end):tolist()
  local list = {}
  for s = 1, S do
    list[s] = peri.env.evaluate(sea, function (state) return all[s][state + 1] end)
  end
  return list
end
local random = values()
for update in run:steps() do
  local row = agent:step()
  row.found = 0 -- episodes of this rollout that got the treasure
  for _, r in ipairs(agent.ended.returns) do row.found = row.found + (r > 0.5 and 1 or 0) end
  if update % cfg.log_updates == 0 or update == updates then
    row.eval = peri.tensor(values(), "f64"):mean():item()
    run:log(update, row)
  end
end
local scores, solved = values(), 0
for _, v in ipairs(scores) do solved = solved + (v > 0.5 and 1 or 0) end
run:plot("curves.svg", { "eval", "return", "entropy" })
run:text("%s, size %d, %d steps: %d of %d learners go to the treasure; value %s; at first %s; optimum %.2f", how, N,
  cfg.timesteps, solved, S, run:scores("value", scores), rl.report(random), (peri.env.optimal(sea)))
run:finish()
