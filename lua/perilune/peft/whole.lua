-- whole.lua - tensors of a model that an adapter brings whole: modules_to_save and biases of PEFT. They
-- take the place of the model's own while the adapter is on it, are not trained here, and are saved with
-- the adapter as they are.
local peri = require "perilune"
local options = require "perilune.options"

local heads = require "perilune.models.head"
local weights = require "perilune.models.weights"

local M = {}

-- The entry of the layout that a published tensor is part of, and which rows.
local function find(model, name)
  for _, p in ipairs(model._layout or {}) do
    local at = 1
    for _, part in ipairs(p.parts) do
      if part[1] == name then return p, at, part[2] end
      at = at + part[2]
    end
  end
end

-- A tensor as we hold it, of the shape that its entry wants; nil and what is wrong.
local function fitting(p, rows, name, t)
  local want = { rows, p.shape[2] }
  if p.transposed then want = { p.shape[2], rows } end
  local same = t.ndim == #want
  for i = 1, #want do same = same and t:size(i) == want[i] end
  if not same then
    return nil, ("%s has shape %s, expected %s"):format(name, options.shape(t), options.shape(want))
  end
  if t.dtype ~= "f32" then t = t:to "f32" end
  return p.transposed and t:transpose():contiguous() or t
end

-- Put one tensor in its place. Returns how to take it out again, or nil and why not.
local function put(model, name, t)
  local p, at, rows = find(model, name)
  if not p then
    local head = rawget(model, "head")
    if name == "lm_head.weight" and heads.is_tied(head) then
      local ok, message = fitting({ shape = { head.out_features, head.in_features } }, head.out_features, name, t)
      if not ok then return nil, message end
      return heads.untie(head, ok)
    end
    return nil, name .. " is unexpected"
  end
  local made, message = fitting(p, rows, name, t)
  if not made then return nil, message end
  local owner, key = weights.at(model, p)
  local old, is_product = owner[key], weights.is_product(p)
  if #p.parts > 1 then
    if not old or old.dtype ~= "f32" or is_product and model._packed then
      local kind = model._packed and "packed" or old and old.dtype or "of several dtypes"
      return nil, ("%s comes whole with the adapter, and is part of a weight that is %s here: load the model with "
        .. "dtype f32 and without pack"):format(name, kind)
    end
    local whole = old:detach():clone()
    whole:narrow(1, at, rows):copy_(made)
    made = whole
  elseif is_product and model._packed then
    made = peri.pack(made)
  end
  local head, tie = rawget(model, "head"), nil
  if heads.is_tied(head) and owner == head.embedding then tie = heads.untie(head, old) end -- goes on with the old one
  owner[key] = made
  return function ()
    owner[key] = old
    if tie then tie() end
  end
end

--- Put tensors in their places; nothing is changed when one does not fit.
--- @param model table
--- @param tensors table<string, perilune.Tensor>  by published name
--- @return table|nil whole  :remove() puts the model's own back
--- @return string? message
function M.place(model, tensors)
  local _ <close> = peri.no_grad()
  local self = { tensors = tensors, undo = {} }
  for _, name in ipairs(options.names(tensors)) do
    local back, message = put(model, name, tensors[name])
    if not back then
      M.remove(self)
      return nil, message
    end
    self.undo[#self.undo + 1] = back
  end
  return self
end

--- The model's own tensors again.
function M.remove(self)
  for i = #self.undo, 1, -1 do self.undo[i]() end
  self.undo = {}
end

return M
