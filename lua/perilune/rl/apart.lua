-- apart.lua - several learners whose environments step as one: rows of a batch (seeds * n, ...), those of a learner
-- behind those of the one before, and what their networks take (nn.Copies), (seeds, n, ...).

local options = require "perilune.options"

local M = {}

--- Rows of a batch as several learners have them, (seeds * n, ...) -> (seeds, n, ...); nil stays nil.
--- @param x perilune.Tensor?
--- @param seeds integer
--- @return perilune.Tensor?
function M.apart(x, seeds)
  if x == nil then return nil end
  if seeds == 1 then return x:unsqueeze(1) end
  local shape = x.shape
  if math.type(seeds) ~= "integer" or seeds < 1 or not shape[1] or shape[1] % seeds ~= 0 then
    options.raise(("rl.apart: %s seeds do not share the rows of %s"):format(tostring(seeds), options.shape(shape)))
  end
  return x:reshape { seeds, shape[1] // seeds, table.unpack(shape, 2) }
end

local function joined(x)
  if x == nil then return nil end
  if type(x) ~= "userdata" then options.argument("rl.together", "x", x, "tensor") end
  if x.ndim < 2 then
    options.raise(("rl.together: x has shape %s, expected (seeds, n, ...)"):format(options.shape(x)))
  end
  return x:flatten(1, 2)
end

--- Back: (seeds, n, ...) -> (seeds * n, ...), of each of a few arguments; nil stays nil.
--- @param x perilune.Tensor?
--- @param y perilune.Tensor?
--- @param z perilune.Tensor?
--- @return perilune.Tensor? ...
function M.together(x, y, z)
  local a, b, c = joined(x), joined(y), joined(z)
  return a, b, c
end

return M
