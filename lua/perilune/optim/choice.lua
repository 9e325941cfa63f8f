-- choice.lua - which parameters are meant, by name and by what they are: { pattern = "norm" }, { pattern =
-- { "norm", "%.bias$" } }, { where = function(name, tensor) return tensor.ndim < 2 end }, or both of them.

local peri = require "perilune"
local options = require "perilune.options"
local walk = require "perilune.nn.walk"

local M = {}

--- What says which parameters are meant.
M.rules = {
  pattern = options.value(options.none, "string or table", "Lua pattern over paths and published names, or a list"),
  where = options.value(options.none, "callable",
    "where(name, tensor): whether it is meant; name is \"\" without one"),
}

-- Whether an entry is meant by { pattern, where }: by both, when both are there.
local function is_meant(who, how, entry)
  if how.pattern ~= nil and not (entry[2] and walk.means(who, how.pattern, entry[2], entry[4])) then return false end
  return how.where == nil or (how.where(entry[2] or "", entry[1]) and true or false)
end

--- Raise unless a table says which parameters it means.
--- @param who string
--- @param how table
function M.check(who, how)
  for name, rule in pairs(M.rules) do
    local problem = how[name] ~= nil and options.problem(name, how[name], rule)
    if problem then walk.raise(("%s: %s"):format(who, problem)) end
  end
  if how.pattern == nil and how.where == nil then
    walk.raise(("%s has neither pattern nor where, which say whose group it is"):format(who))
  end
end

-- "pattern "norm"" as messages say it.
local function choice_text(how)
  local words = {}
  if type(how.pattern) == "string" then words[1] = ("pattern %q"):format(how.pattern)
  elseif how.pattern then words[1] = "patterns " .. peri.show(how.pattern) end
  if how.where ~= nil then words[#words + 1] = "where" end
  return table.concat(words, " and ")
end

-- Raises for a choice that nothing is left for.
local function nothing_meant(who, how, entries, taken)
  local names, any = {}, false
  for i, entry in ipairs(entries) do
    any = any or taken[i] and is_meant(who, how, entry)
    if entry[2] then names[#names + 1] = entry[2] end
  end
  if any then
    walk.raise(("%s: every parameter that %s means is in a group before it"):format(who, choice_text(how)))
  end
  walk.raise(("%s: %s means none of the parameters; %s"):format(who, choice_text(how), #names == 0
    and "none of them has a name: give the module instead of a list of tensors"
    or "there are: " .. table.concat(names, ", ")))
end

--- Parts of a list of entries { tensor, name?, _, published names? }, by choices of which the first that means an
--- entry has it; the last part has the others. Raises for a choice that gets none.
--- @param who fun(choice: integer): string
--- @param entries table[]
--- @param choices table[]  checked
--- @return table[]
function M.divide(who, entries, choices)
  local parts, taken = {}, {}
  for g, how in ipairs(choices) do
    parts[g] = {}
    local name = who(g)
    for i, entry in ipairs(entries) do
      if not taken[i] and is_meant(name, how, entry) then
        taken[i] = true
        table.insert(parts[g], entry)
      end
    end
    if #parts[g] == 0 then nothing_meant(name, how, entries, taken) end
  end
  local rest = {}
  for i, entry in ipairs(entries) do if not taken[i] then rest[#rest + 1] = entry end end
  parts[#parts + 1] = rest
  return parts
end

return M
