-- preference_reward.lua - how many comparisons teach a reward, and what a policy makes of it.
--
-- Teaches: a reward model from preferences between segments of trajectories (Christiano et al. 2017, 1706.03741, eq. 1:
-- Bradley and Terry 1952 over sums of segments). Segments come from an untrained policy; a judge says which has the
-- larger true sum, now and then at random (--noise). After each round of labels: how many held-out pairs the model
-- orders as the judge does, and how its rewards go with the true ones, step by step. Then PPO learns from it alone, and
-- is judged by the true reward. --model 1 is no ensemble, --candidates 10 asks where the ensemble disagrees.
-- Run:  ./perilune run recipes/rewards/preference_reward.lua --seeds 10    Pendulum, a minute on one core
-- Departs from the paper: the judge compares true sums; all labels come before the policy learns.
local peri = require "perilune"
local nn, optim, rl, algo, recipe = peri.nn, peri.optim, peri.rl, peri.algo, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  env       = { "Pendulum-v1", "environment whose reward is to be learned" },
  seeds     = { 1, "learners beside each other, each with a reward of its own", range = "[1, inf)" },
  rounds    = { 10, "of labels", range = "[1, inf)" },
  pairs     = { 40, "labels of a round and learner", range = "[1, inf)" },
  length    = { 20, "steps of a segment", range = "[1, inf)" },
  model     = { 3, "networks of a reward", range = "[1, inf)" },
  noise     = { 0.0, "share of the labels that is random", range = "[0, 1]" },
  error     = { 0.0, "share that the model takes to be random", range = "[0, 1)" },
  candidates = { 1, "times as many pairs, of which the ensemble agrees least on those asked for", range = "[1, inf)" },
  fit       = { 150, "optimizer steps of the reward a round", range = "[1, inf)" },
  updates   = { 29, "of the policy behind the rounds", range = "[0, inf)", budget = true },
  envs      = { 4, "environments of each learner", range = "[1, inf)" },
  steps     = { 512, "steps of a rollout", range = "[1, inf)" },
  epochs    = { 10, "passes over a rollout", range = "[1, inf)" },
  minibatches = { 32, "of each pass", range = "[1, inf)" },
  gamma     = { 0.9, "discount", range = "[0, 1]" },
  lr        = { 1e-3, "learning rate of the policy", range = "[0, inf)" },
  eval      = { 20, "episodes of each evaluation and learner", range = "[1, inf)" },
})
local S, R = cfg.seeds, cfg.rounds
local run = recipe.start { name = "preference_reward", flags = cfg, total = R + cfg.updates,
  columns = { "labels", "held_out", "correlation", "eval" } }
local env = peri.env.make(cfg.env, { n = S * cfg.envs, seed = cfg.seed })
local test = peri.env.make(cfg.env, { n = S * cfg.eval })
local seeds = peri.arange(S):add(cfg.seed):tolist()
local net = nn.Copies(S, function ()
  return rl.ActorCritic { obs = env.obs_space, action = env.action_space }
end, { seeds = seeds })
local opt = optim.Adam(net:parameters(), { lr = cfg.lr, eps = 1e-5 })
local model = rl.PreferenceReward { obs = env.obs_space, action = env.action_space, seeds = seeds, hidden = { 64, 64 },
  members = cfg.model, length = cfg.length, capacity = math.max(2, R * cfg.pairs), error = cfg.error }

-- In the rounds the policy stands still: its rollouts are what is compared.
local said, last = nil, nil
local function learned(rollout)
  if said then
    model:compare(rollout, { pairs = cfg.pairs, judge = "true_reward", noise = cfg.noise, candidates = cfg.candidates })
    said = model:learn(cfg.fit)
  end
  last = rl.correlation(model:reward(rollout), rollout:get "true_reward")
  return model:reward(rollout)
end
local agent = algo.agent.new { env = env, net = net, optimizer = opt, steps = cfg.steps, epochs = cfg.epochs,
  minibatches = cfg.minibatches, gamma = cfg.gamma, reward = learned,
  schedule = function (update) return update > R and cfg.lr or 0 end }
run:track("net", net):track("optimizer", opt):track("env", env):track("agent", agent):track("reward", model)
if cfg.updates > 0 then run:best("eval", { mode = "max", objects = { "net" } }) end

local function play() return agent:play(test, { episodes = cfg.eval, seed = 1000000 }).of_seed end
local random = play()
for step in run:steps() do
  said, agent.epochs = step <= R and {} or nil, step <= R and 1 or cfg.epochs
  local row = agent:step()
  row.labels, row.correlation, row.held_out = model.pairs, last, said and said.held_out
  if step > R and (step % 5 == 0 or step == R + cfg.updates) then
    row.eval = peri.tensor(play(), "f64"):mean():item()
  end
  run:log(step, row)
end
run:plot("labels.svg", { "held_out", "correlation" })
run:text("%s, %d labels each, noise %g: agreement with held-out ones %.3f; policy %s; at first %s", cfg.env,
  model.pairs, cfg.noise, model:learn(0).held_out or 0 / 0, run:scores("greedy", play()), rl.report(random))
run:finish()
