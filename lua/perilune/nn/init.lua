-- nn - layers, containers and initial weights:
--   local net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
--   for _, p in ipairs(net:parameters()) do ... end
-- A module of your own is a class: nn.class("Net", function(self) self.fc = nn.Linear(2, 1) end).

local Module = require "perilune.nn.module"

local M = {
  init = require "perilune.nn.init_weights",
  class = Module.class,
  parameter = Module.parameter,
  is_module = Module.is_module,
}
for _, part in ipairs {
  "layers", "convolution", "batch_norm", "mlp", "copies", "noisy", "attention", "block", "recurrent", "containers",
  "functional", "multi_task", "residual",
} do
  for name, value in pairs(require("perilune.nn." .. part)) do M[name] = value end
end

return require "perilune.names"(M, "perilune.nn")
