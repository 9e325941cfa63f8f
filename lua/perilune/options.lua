-- options.lua - tables of named options: defaults filled in, unknown names refused with the nearest
-- known one. Every constructor of the library takes its options through here.

local M = {}

-- Edit distance with swaps of neighbours counted as one edit; stops caring above limit.
local function distance(a, b, limit)
  if math.abs(#a - #b) > limit then return limit + 1 end
  local before, last = {}, {}
  for j = 0, #b do last[j] = j end
  for i = 1, #a do
    local row = { [0] = i }
    for j = 1, #b do
      local cost = a:byte(i) == b:byte(j) and 0 or 1
      row[j] = math.min(last[j] + 1, row[j - 1] + 1, last[j - 1] + cost)
      if i > 1 and j > 1 and a:byte(i) == b:byte(j - 1) and a:byte(i - 1) == b:byte(j) then
        row[j] = math.min(row[j], before[j - 2] + 1)
      end
    end
    before, last = last, row
  end
  return last[#b]
end

--- The name of the list that is nearest to word, or nil when none is near.
--- @param word string
--- @param names string[]
--- @return string?
function M.nearest(word, names)
  local best, least = nil, math.max(1, #word // 3) + 1
  for _, name in ipairs(names) do
    local d = distance(word:lower(), name:lower(), least)
    if d < least then best, least = name, d end
  end
  return best
end

--- "unknown WHAT "word"", with the nearest name when there is one.
--- @param what string
--- @param word any
--- @param names string[]
--- @return string
function M.unknown(what, word, names)
  local near = type(word) == "string" and M.nearest(word, names)
  local hint = near and ("; did you mean %q?"):format(near) or ""
  return ("unknown %s %q%s"):format(what, tostring(word), hint)
end

--- The names of a table's string keys, sorted.
--- @param t table
--- @return string[]
function M.names(t)
  local list = {}
  for k in pairs(t) do if type(k) == "string" then list[#list + 1] = k end end
  table.sort(list)
  return list
end

--- A copy of defaults with the given values in it; raises for a name that defaults lacks. A default
--- of `M.none` means that there is none: the field stays nil.
--- @param who string  function named in the message
--- @param given table?
--- @param defaults table
--- @param level integer?  of the error; 3 = the caller of the caller
--- @return table
function M.fill(who, given, defaults, level)
  local out = {}
  for k, v in pairs(given or {}) do
    if defaults[k] == nil then
      error(who .. ": " .. M.unknown("option", k, M.names(defaults)), level or 3)
    end
    out[k] = v
  end
  for k, v in pairs(defaults) do
    if out[k] == nil and v ~= M.none then out[k] = v end
  end
  return out
end

M.none = setmetatable({}, { __name = "none" })

--- Options of a constructor that takes its first values by position, or everything in one table:
--- f(2, 3, { bias = false }) or f{ in_features = 2, out_features = 3, bias = false }.
--- @param who string
--- @param positional string[]
--- @param defaults table  also of the positional ones; `M.required` where there is none
--- @param level integer?
--- @return table
function M.read(who, positional, defaults, level, ...)
  level = level or 3
  local n, given = select("#", ...), {}
  local first = ...
  if n == 1 and type(first) == "table" and getmetatable(first) == nil then
    given = first
  else
    if n > #positional + 1 then
      error(("%s: %d arguments, expected at most %d and a table"):format(who, n, #positional), level)
    end
    local last = n > 0 and select(n, ...) or nil
    if type(last) == "table" and getmetatable(last) == nil then
      for k, v in pairs(last) do given[k] = v end
      n = n - 1
    end
    for i = 1, math.min(n, #positional) do given[positional[i]] = (select(i, ...)) end
  end
  local out = M.fill(who, given, defaults, level + 1)
  for _, name in ipairs(M.names(defaults)) do
    if out[name] == M.required then error(("%s: %s is missing"):format(who, name), level) end
  end
  return out
end

M.required = setmetatable({}, { __name = "required" })

return M
