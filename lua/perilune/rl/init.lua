-- rl - reinforcement learning. Of language models: rollouts, the reward contract, credit, the clipped objective; of
-- agents: exploration, temporal differences, target networks, statistics of what was learned.
-- Everything works on whole batches; the algorithm stays in the recipe. One idea a file; here is what each offers.
local M = {}

for file, names in pairs {
  rollout = { "rollout", "prompts" },
  reward = { "score" },
  estimator = { "advantages", "advantage_rules" },
  baseline = { "greedy_rewards" },
  tokens = { "whiten", "token_rewards", "token_gae" },
  credit = { "with_signal", "parts" },
  refill = { "refill", "informative", "pick", "join" },
  control = { "kl_controller", "entropy_controller" },
  presets = { "preset", "presets" },
  shared = { "shared_prompt", "completion_logprobs", "groups" },
  curriculum = { "curriculum" },
  teacher = { "store_teacher", "open_teacher" },
  alarms = { "alarms" },
  select = { "select", "best_of_n", "majority", "pass_at_k", "pass" },
  metrics = { "summary", "kl_to" },
  fisher = { "fisher" },
  offline = { "cloning_loss", "conservative_loss", "expectile_loss", "advantage_weights" },
  dataset = { "save_dataset", "load_dataset" },
  planning = { "shooting", "cem", "look_ahead" },
  dynamics = { "Dynamics" },
  search = { "search" },
  tabular_model = { "tabular_model" },
  trust_region = { "trust_region_" },
  crew = { "crew", "place", "take_place" },
  samplers = { "samplers" },
  evaluate = { "evaluate" },
  gae = { "gae" },
  turns = { "turn_gae" },
  solver = { "solver" },
  elo = { "elo" },
  league = { "league" },
  head = { "head" },
  hierarchy = { "subgoals", "smdp_gae" },
  actor_critic = { "ActorCritic" },
  recurrent = { "RecurrentActorCritic" },
  apart = { "apart", "together" },
  explore = { "greedy", "epsilon_greedy", "boltzmann", "gaussian_noise" },
  actor = { "GaussianActor", "TanhActor", "stretched" },
  critics = { "Critics" },
  novelty = { "Counts", "RandomDistillation", "BonusCritic" },
  shaping = { "shaping" },
  soft = { "backup", "least_value", "expected_value", "Temperature" },
  target = { "target" },
  preference_reward = { "PreferenceReward", "correlation" },
  q_network = { "QNetwork" },
  tabular = { "tabular" },
  td = { "q_target", "q_loss", "project", "expected_return", "c51_loss" },
  accountant = { "accountant", "rdp", "noise_for" },
  lagrange = { "lagrange", "group_advantage" },
  pareto = { "pareto", "hypervolume" },
  hindsight = { "hindsight" },
  random_search = { "random_search" },
  private = { "trajectory_gradients", "trajectory_norms", "clip_trajectories", "privatise" },
  statistics = { "iqm", "optimality_gap", "interval", "probability_of_improvement", "report", "explained_variance" },
} do
  local module = require("perilune.rl." .. file)
  for _, name in ipairs(names) do M[name] = module[name] end
end

local loss = require "perilune.loss"
M.clipped, M.kl, M.log_ratio_max = loss.policy, loss.kl, loss.log_ratio_max -- the names they had in this room

M.policy, M.checks = require "perilune.rl.policy", require "perilune.rl.checks"

return require "perilune.names"(M, "perilune.rl")
