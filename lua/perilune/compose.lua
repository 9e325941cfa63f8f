-- compose.lua - tensor functions that return lists of views, written with ops alone. Each entry is
-- { fn =, sig =, doc = }, so that the library registers them beside the ops of the table: as
-- perilune.NAME, as methods, and in help.

local options = require "perilune.options"

local M = {}

local tensor_rule = options.value(options.required, "tensor")
local dim_rule = options.integer(options.required, "(-inf, inf)")
local positive_rule = options.integer(options.required, "[1, inf)")
local list_rule = options.value(options.required, "table")

-- A value that its rule takes; level is that of the user.
local function check(name, value, rule, level)
  local problem = options.problem(name, value, rule)
  if problem then error(problem, level + 1) end
end

-- Size of dim (1..ndim or -1..-ndim) of x and that dim as 1..ndim; level is that of the user.
local function place(x, dim, level)
  check("x", x, tensor_rule, level + 1)
  check("dim", dim, dim_rule, level + 1)
  local d = math.tointeger(dim < 0 and dim + x.ndim + 1 or dim)
  if d < 1 or d > x.ndim then error(("dim %s of a tensor with %d dims"):format(dim, x.ndim), level + 1) end
  return x:size(d), d
end

--- Cut x along dim into views: of size positions each, the last one smaller where it does not come
--- out even, or of the sizes of a list, which must add up to the dim's.
---@param x perilune.Tensor
---@param sizes integer|integer[]
---@param dim? integer  default 1
---@return perilune.Tensor[]
local function split(x, sizes, dim)
  local n, d = place(x, dim or 1, 2)
  local parts, at = {}, 0
  if type(sizes) == "table" then
    for i, size in ipairs(sizes) do
      if math.type(size) ~= "integer" or size < 0 or size > n - at then
        error(("size %s at position %d does not fit: %d of %d are left"):format(tostring(size), i, n - at, n), 2)
      end
      parts[i] = x:narrow(d, at + 1, size)
      at = at + size
    end
    if at ~= n then error(("sizes add up to %d; dim %d has %d"):format(at, d, n), 2) end
    return parts
  end
  check("sizes", sizes, positive_rule, 2)
  while at < n or #parts == 0 do
    local size = math.min(sizes, n - at)
    parts[#parts + 1] = x:narrow(d, at + 1, size)
    at = at + size
  end
  return parts
end

--- Cut x along dim into n views of equal size, the last one smaller where it does not come out even
--- (fewer than n then may do).
---@param x perilune.Tensor
---@param n integer
---@param dim? integer  default 1
---@return perilune.Tensor[]
local function chunk(x, n, dim)
  local size, d = place(x, dim or 1, 2)
  check("n", n, positive_rule, 2)
  return split(x, math.max(1, (size + n - 1) // n), d)
end

--- The positions of dim as a list of views without that dim.
---@param x perilune.Tensor
---@param dim? integer  default 1
---@return perilune.Tensor[]
local function unbind(x, dim)
  local n, d = place(x, dim or 1, 2)
  local parts = {}
  for i = 1, n do parts[i] = x:select(d, i) end
  return parts
end

--- Coordinates of the grid that n vectors span: n views of shape (size 1, ..., size n); view i holds
--- vector i along dim i.
---@param xs perilune.Tensor[]  each (size i) or a 0-dim tensor
---@return perilune.Tensor[]
local function meshgrid(xs)
  check("xs", xs, list_rule, 2)
  local shape, grids = {}, {}
  for i, x in ipairs(xs) do
    check(("xs[%d]"):format(i), x, tensor_rule, 2)
    if x.ndim > 1 then error(("tensor %d has %d dims; wanted vectors"):format(i, x.ndim), 2) end
    shape[i] = x:numel()
  end
  for i, x in ipairs(xs) do
    local own = {}
    for k = 1, #shape do own[k] = k == i and shape[i] or 1 end
    grids[i] = x:reshape(own):expand(shape)
  end
  return grids
end

M.split = {
  fn = split,
  sig = "x, sizes, dim=1",
  doc = "A list of views of x cut along dim: of sizes positions each, or of the sizes of a list.",
}
M.chunk = {
  fn = chunk,
  sig = "x, n, dim=1",
  doc = "A list of at most n views of x cut along dim, equal but for the last.",
}
M.unbind = {
  fn = unbind,
  sig = "x, dim=1",
  doc = "A list of views of x, one for each position of dim, which is dropped.",
}
M.meshgrid = {
  fn = meshgrid,
  sig = "xs",
  doc = "A list of views (size 1, ..., size n), vector i of the list laid along dim i.",
}

return M
