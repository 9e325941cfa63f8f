-- fields.lua - what a replay buffer and a rollout keep of each step, as a user writes it.
local options = require "perilune.options"
local spaces = require "perilune.env.space"

local M = {}

local STEP, OBSERVED, START = 0, 1, 2 -- ORDER role: peri_field_role

-- "f32", or { "f32", 84, 84 }: dtype and sizes of a row; or a space, in which values must lie then.
local function entry(who, name, spec, role)
  if spaces.is_space(spec) then
    return { name, spec.dtype, role, space = spec, table.unpack(spec.shape) }
  end
  local given = type(spec) == "string" and { spec } or spec
  if type(given) ~= "table" or type(given[1]) ~= "string" then
    options.raise(('%s: %s, expected a dtype, a list such as { "f32", 4 } or a space'):format(who,
      options.is("field " .. tostring(name), spec)))
  end
  local out = { name, given[1], role }
  for key in pairs(given) do
    if math.type(key) ~= "integer" or key < 1 or key > #given then
      options.raise(("%s: field %s: %s"):format(who, name, options.unknown("entry", key, {})))
    end
  end
  for i = 2, #given do
    local size = type(given[i]) == "number" and math.tointeger(given[i])
    if not size or size < 0 then
      options.raise(("%s: field %s: %s, expected an integer from 0"):format(who, name,
        options.is("size " .. i - 1, given[i])))
    end
    out[i + 2] = size
  end
  return out
end

--- The list of fields that the bindings take, of tables { name = spec }; sorted by name.
--- @param who string  function named in messages
--- @param fields table?
--- @param observed table?
--- @param starts table?
--- @return table
function M.list(who, fields, observed, starts)
  local list, seen = {}, {}
  for role, group in pairs { [STEP] = fields or {}, [OBSERVED] = observed or {}, [START] = starts or {} } do
    for name, spec in pairs(group) do
      if type(name) ~= "string" then
        options.raise(("%s: %s, expected names of fields"):format(who, options.is("a key", name)))
      end
      if seen[name] then options.raise(("%s: field %s is given twice"):format(who, name)) end
      seen[name] = true
      list[#list + 1] = entry(who, name, spec, role)
    end
  end
  table.sort(list, function(a, b) return a[1] < b[1] end)
  return list
end

return M
