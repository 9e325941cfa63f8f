-- names.lua - modules whose unknown fields raise and name the nearest one. rawget(module, name) asks without raising.
local options = require "perilune.options"

local function names_of(module, more)
  local seen, names = {}, {}
  for _, t in ipairs { module, more or {} } do
    for name in next, t do
      if type(name) == "string" and name:sub(1, 1) ~= "_" and not seen[name] then
        seen[name], names[#names + 1] = true, name
      end
    end
  end
  table.sort(names)
  return names
end

--- Reading a field that a module has not raises at the reader's line: "perilune.nn has no 'Liner'; did you mean
--- 'Linear'?". Names that begin with an underscore and keys that are no texts are nil as ever.
--- @param module table  returned
--- @param title string  what it is called in the message
--- @param more table?  names that it loads when they are read
--- @return table
return function (module, title, more)
  local meta = getmetatable(module) or {}
  local find = meta.__index
  function meta.__index(t, name)
    local value
    if type(find) == "function" then value = find(t, name) elseif find then value = find[name] end
    if value ~= nil or type(name) ~= "string" or name:sub(1, 1) == "_" then return value end
    local near = options.nearest(name, names_of(module, more))
    return error(("%s has no '%s'%s"):format(title, name,
      near and ("; did you mean '%s'?"):format(near) or ("; help(%s) lists what there is"):format(
        title == "perilune" and "" or (title:gsub("^perilune", "peri")))), 2)
  end
  return setmetatable(module, meta)
end
