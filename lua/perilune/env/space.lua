-- space.lua - what observations and actions may be, as tables: kind, dtype, shape and bounds.
local options = require "perilune.options"

--- @class perilune.env.Space
--- @field kind string  "box", "discrete", "multi_discrete", "multi_binary"
--- @field dtype string
--- @field shape integer[]  of a value; () for a discrete one
--- @field low number|number[]?  of a box: of every element, or a list of them
--- @field high number|number[]?
--- @field n integer?  of a discrete one: how many values; of a multi_binary one: how many flags
--- @field start integer?  of a discrete one: the least value
--- @field nvec integer[]?  of a multi_discrete one
--- @field fields table?  of a dict that was flattened: { name, kind, from, size } of each slice
local Space = {}
Space.__index = Space
Space.__name = "perilune.env.Space"

local function bounds(v) return type(v) == "number" and ("%g"):format(v) or "..." end

function Space:__tostring()
  if self.kind == "discrete" then
    return self.start == 0 and ("Discrete(%d)"):format(self.n) or ("Discrete(%d, %d)"):format(self.n, self.start)
  elseif self.kind == "multi_discrete" then return ("MultiDiscrete(%s)"):format(table.concat(self.nvec, ", "))
  elseif self.kind == "multi_binary" then return ("MultiBinary(%d)"):format(self.n) end
  return ("Box(%s, %s, %s, %s)"):format(bounds(self.low), bounds(self.high), options.shape(self.shape),
    self.dtype)
end

local M = { Space = Space }

--- A space of what the bindings say of it.
function M.of(fields) return setmetatable(fields, Space) end

--- How many numbers a value has.
--- @return integer
function Space:size()
  local n = 1
  for _, k in ipairs(self.shape) do n = n * k end
  return n
end

return M
