-- pareto.lua - several objectives at once, all to be large: which points no other one beats, and how much they cover.

local options = require "perilune.options"

local M = {}

local function check(who, points)
  options.argument(who, "points", points, "table")
  local k = points[1] and #points[1] or 0
  for i, p in ipairs(points) do
    if type(p) ~= "table" or #p ~= k or k == 0 then
      options.raise(("%s: point %d has %s numbers, the first has %d"):format(who, i, type(p) == "table" and #p or "no",
        k))
    end
    for _, v in ipairs(p) do
      if type(v) ~= "number" or v ~= v or math.abs(v) == math.huge then
        options.raise(("%s: point %d has %s, expected finite numbers"):format(who, i, tostring(v)))
      end
    end
  end
  return k
end

-- Whether a is as good as b everywhere and better somewhere.
local function beats(a, b)
  local better = false
  for i = 1, #a do
    if a[i] < b[i] then return false end
    better = better or a[i] > b[i]
  end
  return better
end

--- The points that no other one beats, each once, in the order in which they came: larger is better in every number.
--- @param points number[][]
--- @return number[][]
function M.pareto(points)
  check("rl.pareto", points)
  local out = {}
  for i, p in ipairs(points) do
    local keep = true
    for k, q in ipairs(points) do
      local same = k < i
      for d = 1, #p do same = same and p[d] == q[d] end
      if same or beats(q, p) then
        keep = false
        break
      end
    end
    if keep then out[#out + 1] = p end
  end
  return out
end

-- Slices along the last number: between two of its values the volume is that of the points above, one dimension less.
local function volume(points, reference, d)
  if d == 1 then
    local most = reference[1]
    for _, p in ipairs(points) do most = math.max(most, p[1]) end
    return most - reference[1]
  end
  table.sort(points, function (a, b) return a[d] > b[d] end)
  local sum, above = 0, {}
  for i, p in ipairs(points) do
    above[i] = p
    local under = points[i + 1] and math.max(points[i + 1][d], reference[d]) or reference[d]
    local height = p[d] - under
    if height > 0 then sum = sum + height * volume(table.move(above, 1, i, 1, {}), reference, d - 1) end
  end
  return sum
end

--- The volume that points cover above a reference: of everything that is no better than one of them (Zitzler and Thiele
--- 1998). Points that are not above the reference in every number add nothing.
--- @param points number[][]
--- @param reference number[]
--- @return number
function M.hypervolume(points, reference)
  local k = check("rl.hypervolume", points)
  options.argument("rl.hypervolume", "reference", reference, "table")
  if #points == 0 then return 0 end
  if #reference ~= k then
    options.raise(("rl.hypervolume: the reference has %d numbers, points have %d"):format(#reference, k))
  end
  local inside = {}
  for _, p in ipairs(points) do
    local good = true
    for d = 1, k do good = good and p[d] > reference[d] end
    if good then inside[#inside + 1] = p end
  end
  return volume(inside, reference, k)
end

return M
