-- metrics.lua - what is measured when a problem is answered several times.

local select = require "perilune.rl.select"

-- Names that stood here first.
local M = { pass_at_k = select.pass_at_k, majority = select.majority }

--- Mean and its standard error.
--- @param list number[]
--- @return number mean
--- @return number error
function M.mean(list)
  local n, sum, square = #list, 0, 0
  for _, x in ipairs(list) do sum = sum + x end
  local mean = n > 0 and sum / n or 0 / 0
  for _, x in ipairs(list) do square = square + (x - mean) ^ 2 end
  return mean, n > 1 and (square / (n - 1) / n) ^ 0.5 or 0 / 0
end

return require "perilune.names"(M, "perilune.tasks.metrics")
