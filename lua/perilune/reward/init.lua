-- reward - functions that score completions: makers, each giving a function with the contract of rl.score. They read
-- text as it comes from a model, so none runs it outside of the sandbox, none raises for what is in it, and each takes
-- time linear in it.
local M = {}

for file, names in pairs {
  answers = { "extract" },
  match = { "exact", "numeric", "expression", "boxed", "hash" },
  format = { "format" },
  countdown = { "countdown" },
  length = { "length", "cosine", "overlong", "repetition" },
  language = { "language" },
  code = { "code" },
  model = { "model", "helpfulness", "harmlessness" },
  judge = { "judge", "agreement" },
  vote = { "vote" },
} do
  local module = require("perilune.reward." .. file)
  for _, name in ipairs(names) do M[name] = module[name] end
end

return require "perilune.names"(M, "perilune.reward")
