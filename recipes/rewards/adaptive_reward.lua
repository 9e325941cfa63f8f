-- adaptive_reward.lua - a reward that is learned while a policy learns from it, and what happens when it stops.
--
-- Teaches: PPO that never sees the reward (Christiano et al. 2017, 1706.03741). A judge says of pairs of segments which
-- is better; an ensemble learns a reward from that; the policy learns from the ensemble. Where the policy goes to
-- places that no pair came from, the learned reward is a guess: the adaptive one asks about what the policy does now, a
-- fixed one (--reward fixed) was asked about the first policy alone. Here that guess is bad: a hill is higher the
-- farther one walks, as far as the first policy gets, and behind it is a pit. The true return is logged beside the
-- learned reward, and alarms go off when they part. --reward true is the yardstick: the same PPO on the true reward.
-- Run:  ./perilune run recipes/rewards/adaptive_reward.lua --seeds 10    half a minute on one core; --env Pendulum-v1
-- Departs from the paper: PPO in place of A2C and TRPO, a judge that compares true sums (--noise: some at random).
local peri = require "perilune"
local nn, optim, rl, algo, recipe = peri.nn, peri.optim, peri.rl, peri.algo, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  env       = { "hill", "environment whose reward is to be learned; hill is below" },
  reward    = { "adaptive", "what the policy learns from", choices = { "adaptive", "fixed", "true" } },
  seeds     = { 1, "learners beside each other, each with a reward of its own", range = "[1, inf)" },
  timesteps = { 32000, "environment steps of each learner", budget = true },
  envs      = { 8, "environments of each learner", range = "[1, inf)" },
  steps     = { 80, "steps of a rollout", range = "[1, inf)" },
  epochs    = { 4, "passes over a rollout", range = "[1, inf)" },
  minibatches = { 4, "of each pass", range = "[1, inf)" },
  lr        = { 2e-3, "learning rate of the policy", range = "[0, inf)" },
  gamma     = { 0.95, "discount", range = "[0, 1]" },
  hidden    = { 32, "width of both layers", range = "[1, inf)" },
  pairs     = { 600, "labels of a learner in all; a fixed reward has them at once", range = "[1, inf)" },
  rounds    = { 20, "updates at whose rollouts an adaptive reward asks, spread evenly", range = "[1, inf)" },
  length    = { 10, "steps of a segment", range = "[1, inf)" },
  members   = { 3, "networks of a reward", range = "[1, inf)" },
  noise     = { 0.0, "share of the labels that is random", range = "[0, 1]" },
  candidates = { 1, "times as many pairs, of which the ensemble agrees least on those asked for", range = "[1, inf)" },
  fit       = { 50, "optimizer steps of the reward a round", range = "[1, inf)" },
  log_updates = { 5, "updates between two rows of metrics", range = "[1, inf)" },
  eval      = { 20, "episodes of each evaluation and learner", range = "[1, inf)" },
})
local S, rows, adaptive = cfg.seeds, cfg.seeds * cfg.envs, cfg.reward == "adaptive"
local updates = cfg.timesteps // (cfg.envs * cfg.steps)
local run = recipe.start { name = "adaptive_reward", flags = cfg, total = updates,
  columns = { "eval", "return", "reward", "agreement" } }

-- A walk on a plane: a hill at (2, 2), a pit behind it.
local moves = peri.tensor({ { 0.3, 0 }, { -0.3, 0 }, { 0, 0.3 }, { 0, -0.3 }, { 0, 0 } }, "f32")
local function bump(p, at, width) return ((p - at):square():sum(-1) * (-0.5 / width ^ 2)):exp() end
local hill = { id = "Hill", batch = true, max_steps = 40, obs = peri.env.box { low = -5, high = 5, shape = { 2 } },
  action = peri.env.discrete(5),
  reset = function (s, walkers)
    s.p = peri.zeros { walkers:size(1), 2 }
    return s.p
  end,
  step = function (s, action)
    s.p = (s.p + moves:index_select(action, 1)):clamp(-5, 5)
    return s.p, bump(s.p, 2, 1) - bump(s.p, 5, 2), peri.zeros({ s.p:size(1) }, "bool")
  end }
local id = cfg.env == "hill" and hill or cfg.env
local env, test = peri.env.make(id, { n = rows, seed = cfg.seed }), peri.env.make(id, { n = S * cfg.eval })
local seeds = peri.arange(S):add(cfg.seed):tolist()
local net = nn.Copies(S, function ()
  return rl.ActorCritic { obs = env.obs_space, action = env.action_space, hidden = { cfg.hidden, cfg.hidden } }
end, { seeds = seeds })
local opt = optim.Adam(net:parameters(), { lr = cfg.lr, eps = 1e-5 })
local model = rl.PreferenceReward { obs = env.obs_space, action = env.action_space, seeds = seeds, hidden = { 32, 32 },
  members = cfg.members, length = cfg.length, capacity = math.max(2, cfg.pairs) }

-- What the policy learns from: the judge sees sums of true rewards, the model which of two it found larger.
local every, fit, agent = math.max(1, updates // cfg.rounds), {}, nil
local function learned(rollout)
  local update = agent.at + 1
  local ask = model.pairs < cfg.pairs and (adaptive and (update - 1) % every == 0 or model.pairs == 0)
  local n = ask and (adaptive and cfg.pairs // cfg.rounds or cfg.pairs) or 20
  local said = model:compare(rollout, { pairs = n, judge = "true_reward", noise = cfg.noise, keep = ask,
    candidates = ask and cfg.candidates or 1 })
  fit = {}
  if ask then fit = model:learn(adaptive and cfg.fit or cfg.fit * cfg.rounds) end
  fit.agreement, fit.correlation = said.fresh, said.correlation
  return model:reward(rollout)
end
agent = algo.agent.new { env = env, net = net, optimizer = opt, steps = cfg.steps, epochs = cfg.epochs,
  minibatches = cfg.minibatches, gamma = cfg.gamma, reward = cfg.reward ~= "true" and learned or nil }
run:track("net", net):track("optimizer", opt):track("env", env):track("agent", agent):track("reward", model)
run:alarms(rl.alarms { metric = "eval", off = { "entropy_collapse" } })
run:best("eval", { mode = "max", objects = { "net" } })

local function play(greedy)
  return agent:play(test, { episodes = cfg.eval, seed = 1000000, greedy = greedy }).of_seed
end
local random = play(false) -- new networks hardly prefer an action
for update in run:steps() do
  local row = agent:step()
  row.agreement, row.correlation, row.held_out = fit.agreement, fit.correlation, fit.held_out
  if update % cfg.log_updates == 0 or update == updates then
    row.eval = peri.tensor(play(true), "f64"):mean():item()
    run:log(update, row)
  end
end
local scores = play(true)
run:plot("curves.svg", { "eval", "reward", cfg.reward ~= "true" and "agreement" or nil })
local out = model.pairs > 0 and model:learn(0).held_out
run:text("%s, %s reward, %d steps: greedy %s; drawn %s; at first %s; %d labels each%s", cfg.env, cfg.reward,
  cfg.timesteps, run:scores("greedy", scores), run:scores("drawn", play(false)), rl.report(random), model.pairs,
  out and (", agreement with held-out ones %.3f"):format(out) or "")
run:finish()
