-- activation.lua - the runtime's registry of activations (runtime/op/activation.c) by their names: what the op
-- `linear`, the gated ops and layers call them, and what configs of published models do.
local peri = require "perilune.core"
local options = require "perilune.options"

local M = {}

--- The registry: { name, layer, published, gain, doc } of each.
M.list = peri.activations()

--- The names that linear takes, without "none".
M.names = {}

local by_name, by_layer, known = {}, {}, {}
for i, a in ipairs(M.list) do
  M.names[i], by_layer[a.layer] = a.name, a
  for _, name in ipairs { a.name, table.unpack(a.published) } do
    by_name[name], known[#known + 1] = a, name
  end
end

--- The names that configs have, the runtime's own among them.
M.known = known

--- The entry of a name that a config has, such as "gelu_new"; else nil and a message that tells the nearest.
--- @param name any
--- @return table? entry
--- @return string? message
function M.published(name)
  if by_name[name] then return by_name[name] end
  return nil, options.unknown("activation", name, known)
end

--- The same for the class of a layer, such as "ReLU".
--- @param layer any
--- @return table? entry
--- @return string? message
function M.layer(layer)
  if by_layer[layer] then return by_layer[layer] end
  return nil, options.unknown("activation", layer, options.names(by_layer))
end

--- "relu", "gelu" ... in front of more choices, for options.choice.
--- @param before string[]?
--- @param after string[]?
--- @return string[]
function M.choices(before, after)
  local list = table.move(before or {}, 1, #(before or {}), 1, {})
  table.move(M.names, 1, #M.names, #list + 1, list)
  return table.move(after or {}, 1, #(after or {}), #list + 1, list)
end

return M
