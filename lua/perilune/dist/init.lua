-- dist - probability distributions over batches: what a policy is, and what its loss needs of it.
--   local d = peri.dist.Categorical(net(obs), { mask = legal })
--   local action = d:sample()
--   local logp, entropy = d:evaluate(action)
-- Draws come from the context's generator (peri.seed). What a family has not in closed form it refuses by name.
local M = {}

for file, names in pairs {
  categorical = { "Categorical", "MultiCategorical", "Bernoulli" },
  normal = { "Normal", "SquashedNormal" },
  beta = { "Beta" },
  mixture = { "Mixture" },
  kl = { "kl" },
  distribution = { "Distribution" },
} do
  local module = require("perilune.dist." .. file)
  for _, name in ipairs(names) do M[name] = module[name] end
end

return require "perilune.names"(M, "perilune.dist")
