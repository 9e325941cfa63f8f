-- metrics.lua - what is measured when a problem is answered several times, and when tasks are learned one after the
-- other.

local options = require "perilune.options"
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

local function want_row(name, row, n)
  local fits = type(row) == "table" and #row == n
  for i = 1, fits and n or 0 do fits = fits and type(row[i]) == "number" and row[i] == row[i] end
  if not fits then options.raise(("metrics.continual: %s is no list of %d numbers"):format(name, n)) end
end

--- What a learner makes of tasks that come one after the other, from R: R[i][j] is the accuracy on task j once task i
--- was learned (Lopez-Paz and Ranzato 2017, 1706.08840, equations 2 to 4).
--- @param R number[][]  as many rows as tasks, in the order of learning
--- @param untrained number[]?  accuracies before anything was learned, for forward
--- @return table measures  average: the mean of the last row. backward: the mean over all tasks but the last of
--- R[T][j] - R[j][j], below 0 where they were forgotten. forgetting: the mean over these of the best that they had
--- before the end, less R[T][j] (Chaudhry et al. 2018, 1801.10112, equation 3). forward: the mean over all tasks but
--- the first of R[j - 1][j] less what it was untrained. Of one task there is the average alone
function M.continual(R, untrained)
  options.argument("metrics.continual", "R", R, "table")
  local n, out = #R, { average = 0 }
  if n == 0 then options.raise "metrics.continual: R has no rows" end
  for i, row in ipairs(R) do want_row("row " .. i, row, n) end
  if untrained ~= nil then want_row("untrained", untrained, n) end
  for j = 1, n do out.average = out.average + R[n][j] / n end
  if n == 1 then return out end
  out.backward, out.forgetting, out.forward = 0, 0, untrained and 0
  for j = 1, n - 1 do
    local best = -math.huge
    for i = 1, n - 1 do best = math.max(best, R[i][j]) end
    out.backward = out.backward + (R[n][j] - R[j][j]) / (n - 1)
    out.forgetting = out.forgetting + (best - R[n][j]) / (n - 1)
    if untrained then out.forward = out.forward + (R[j][j + 1] - untrained[j + 1]) / (n - 1) end
  end
  return out
end
options.declare(M.continual, { "R", "untrained" }, {})

return require "perilune.names"(M, "perilune.tasks.metrics")
