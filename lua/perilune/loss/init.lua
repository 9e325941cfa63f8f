-- loss - the objectives of post-training as plain functions of tensors, each with its equation. One idea a file; here
-- is what each offers.
local M = {}

for file, names in pairs {
  masked = { "log_ratio_max", "counted" },
  kl = { "kl", "exact_kl" },
  preference = { "preference", "preference_rules", "preference_names", "preference_entry", "kto", "kto_rules",
    "kto_point", "answers" },
  reward_model = { "bradley_terry", "bradley_terry_rules", "outcome", "outcome_rules", "process", "step_scores",
    "aggregations", "aggregate" },
  distill = { "distill", "distill_rules", "distill_check", "teacher_advantage", "token_kl" },
  features = { "feature", "attention_map", "attention_transfer", "Hints" },
  importance = { "importance", "importance_rules" },
  value = { "value", "value_rules" },
  elastic = { "fisher_diagonal", "fisher_of_classes", "elastic" },
  adversarial = { "ascend", "fgsm", "pgd", "virtual_adversarial" },
  policy = { "policy", "policy_rules", "totals", "entropy_floor", "named" },
} do
  local module = require("perilune.loss." .. file)
  for _, name in ipairs(names) do M[name] = module[name] end
end

return require "perilune.names"(M, "perilune.loss")
