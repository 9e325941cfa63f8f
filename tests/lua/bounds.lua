-- bounds.lua - values for laws over declared options: what a rule must refuse and take, made from what
-- it says of itself ("number in [0, 1)").
local M = {}

local function ends(kind)
  local open, low, high, close = kind:match "([%[%(])%s*([^,%s]+)%s*,%s*([^,%s]+)%s*([%]%)])$"
  if not open then return nil end
  local function bound(word) return word == "inf" and math.huge or word == "-inf" and -math.huge or tonumber(word) end
  return open == "[", bound(low), bound(high), close == "]"
end

--- Values that a rule of this kind must refuse.
--- @param kind string
--- @return any[]
function M.bad(kind)
  if kind:find "^one of" then return { "no such choice", true, {} } end
  if kind == "true or false" then return { 1, 0, "yes", {} } end
  if kind == "finite number" then return { math.huge, -math.huge, 0 / 0, "1", true, {} } end
  local list = { 0 / 0, "1", true }
  local from_closed, low, high, to_closed = ends(kind)
  if kind:find "^list" then
    list = { 3, {}, { 0.5 }, { 0.5, 0.5, 0.5 }, { 0.5, "x" }, { 0.5, 0 / 0 }, { 0.5, 0.5, x = 1 } }
    if low > -math.huge then list[#list + 1] = { low - 1, 0.5 } end
    if high < math.huge then list[#list + 1] = { 0.5, high + (to_closed and 1 or 0) } end
    return list
  end
  if not low then return { } end
  list[#list + 1] = {}
  if low > -math.huge then
    list[#list + 1], list[#list + 2] = low - 1, -math.huge
    if not from_closed then list[#list + 1] = low end
  end
  if high < math.huge then list[#list + 1] = high + 1 end
  if not to_closed then list[#list + 1] = high end
  if kind:find "^integer" then list[#list + 1] = math.max(low, 0) + 0.5 end
  return list
end

--- A value at a closed end, which must be taken, or nil.
--- @param kind string
--- @return any
function M.good(kind)
  local from_closed, low = ends(kind)
  if kind:find "^list" then return { low, low } end
  if from_closed then return low end
end

return M
