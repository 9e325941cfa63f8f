-- tools - what a language model may call while it answers, and the environment in which it does: see docs/tools.md.
local M = {}

for file, list in pairs {
  tool = { "tool", "call" }, calculator = { "calculator" }, interpreter = { "interpreter" }, search = { "search" },
  environment = { "environment", "read" },
} do
  local module = require("perilune.tools." .. file)
  for _, name in ipairs(list) do M[name] = module[name] end
end

return require "perilune.names"(M, "perilune.tools")
