-- dtypes.lua - the runtime's dtypes (runtime/core/dtype.c) by what they are; no other file lists them.
local peri = require "perilune.core"

local M = {}

--- The table: { name, alias, kind, elements, bytes } of each.
M.list = peri.dtypes()

--- By name, and by the alias that NumPy and PyTorch have.
M.by_name = {}

--- Names of plain floats, in the table's order.
M.floats = {}

--- Of the floats that models come in: what config.json calls each.
M.published = {}

--- Those and the quantised ones, which is what weights are stored in; f32 first.
M.weights = { "f32" }

--- Set of plain floats.
M.is_float = {}

--- Sets by name: what is counted and not computed with; elements of a block of the quantised ones.
M.integers, M.quantised = {}, {}

for _, d in ipairs(M.list) do
  M.by_name[d.name] = d
  if d.alias then M.by_name[d.alias] = d end
  if d.kind == "float" then
    M.floats[#M.floats + 1], M.is_float[d.name] = d.name, true
    if d.bytes <= 4 then M.published[d.name] = d.alias end
  elseif d.kind == "quantised" then M.quantised[d.name] = d.elements
  else M.integers[d.name] = true end
  if d.name ~= "f32" and (M.published[d.name] or M.quantised[d.name]) then M.weights[#M.weights + 1] = d.name end
end

--- Elements of a shape, also of a tensor that was only told of.
--- @param shape integer[]
--- @return integer
function M.numel(shape)
  local n = 1
  for _, size in ipairs(shape) do n = n * size end
  return n
end

--- Bytes of n elements, which whole blocks hold; 0 for what is no dtype.
--- @param name string
--- @param n integer
--- @return integer
function M.bytes(name, n)
  local d = M.by_name[name]
  return d and n // d.elements * d.bytes or 0
end

return M
