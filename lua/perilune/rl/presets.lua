-- presets.lua - what papers call their algorithms, as options of rl.advantages and loss.policy: a stepper takes them
-- as they are (algo.grpo), a recipe reads them.
local options = require "perilune.options"

local M = {}

--- Options of each, by name, with what its paper is.
M.presets = {
  reinforce = { "Williams 1992", { estimator = "reinforce", objective = "reinforce", reduce = "sum" } },
  rloo = { "2402.14740", { estimator = "rloo", level = "whole", reduce = "sequence", clip = 0.2, reward_beta = 0.05 } },
  reinforce_plus_plus = { "2501.03262", { estimator = "reinforce_plus_plus", reduce = "token", clip = 0.2,
    reward_beta = 0.01 } },
  reinforce_plus_plus_baseline = { "2501.03262", { estimator = "reinforce_plus_plus_baseline", reduce = "token",
    clip = 0.2, beta = 0.001, kl = "k2" } },
  remax = { "2310.10505", { estimator = "remax", objective = "reinforce", reduce = "sum" } },
  opo = { "2505.23585", { estimator = "opo", objective = "reinforce", reduce = "sum" } },
  gdpo = { "2601.05242", { estimator = "gdpo", reduce = "sequence", clip = 0.2 } },
  grpo = { "2402.03300", { estimator = "grpo", reduce = "sequence", clip = 0.2, beta = 0.04 } },
  deepseek_v3 = { "2412.19437", { estimator = "grpo", level = "whole", reduce = "sequence", clip = 0.2, beta = 0.04 } },
  deepseek_v3_2 = { "2512.02556", { estimator = "dr_grpo", reduce = "sequence", clip = 0.2, beta = 0.001,
    unbiased_kl = true, off_policy = 0.5 } },
  r1_zero = { "2501.12948", { estimator = "grpo", reduce = "sequence", clip = 10, beta = 0.001 } },
  dr_grpo = { "2503.20783", { estimator = "dr_grpo", reduce = "constant", clip = 0.2 } },
  dapo = { "2503.14476", { estimator = "grpo", reduce = "token", clip = 0.2, clip_high = 0.28,
    mask_truncated = true } },
  bnpo = { "TRL", { estimator = "grpo", reduce = "token", clip = 0.2 } },
  gspo = { "2507.18071", { estimator = "grpo", level = "sequence", reduce = "sequence", clip = 3e-4,
    clip_high = 4e-4 } },
  luspo = { "2602.05261", { estimator = "grpo", level = "sequence", reduce = "sum", clip = 3e-4, clip_high = 4e-4 } },
  gmpo = { "2507.20673", { estimator = "grpo", objective = "gmpo", reduce = "sequence", clip = 0.4, clip_high = 0.4 } },
  cispo = { "2506.13585", { estimator = "grpo", objective = "cispo", reduce = "token", clip = 1, clip_high = 4 } },
  sapo = { "2511.20347", { estimator = "grpo", objective = "sapo", reduce = "sequence", tau = 1, tau_low = 1.05 } },
  dppo_tv = { "2602.04879", { estimator = "grpo", objective = "dppo_tv", reduce = "token", clip = 0.2, delta = 20 } },
  dual_clip = { "1912.09729", { estimator = "grpo", reduce = "token", clip = 0.2, delta = 3 } },
  high_entropy = { "2506.01939", { estimator = "grpo", reduce = "token", clip = 0.2, clip_high = 0.28,
    top_entropy = 0.2 } },
}

local name_rule = options.choice(options.required, options.names(M.presets), "a paper's name")

--- The options of an algorithm by its paper's name: of algo.grpo, or of rl.advantages and loss.policy.
---
---     local stepper = algo.grpo.new { model = model, ..., preset = "gspo" }
---
--- @param name string
--- @return table options  a new table, to change as one likes
function M.preset(name)
  local problem = options.problem("name", name, name_rule)
  if problem then options.raise("rl.preset: " .. problem) end
  local out = {}
  for key, value in pairs(M.presets[name][2]) do out[key] = value end
  return out
end

return M
