-- adapter.lua - what every adapter is to optimizers and checkpoints: tensors by name in a fixed order.
local targets = require "perilune.peft.targets"

--- @class perilune.peft.Adapter
--- @field training boolean  dropout is on
local Adapter = {}
Adapter.__index = Adapter

-- One line: what it is, how much of it is trained, on which model.
function Adapter:describe()
  local ok, n = pcall(self.num_parameters, self)
  local model = self.model
  return ("%s, %s parameters in %d tensors%s%s"):format(self.__name, ok and ("%d"):format(n) or "?",
    ok and #self:named_parameters() or 0, type(model) == "table" and model.__name and " on " .. model.__name or "",
    self.merged and ", merged" or "")
end

local M = {}

--- A class of adapters. Its objects list their tensors in _named or offer named_parameters().
--- @param name string  for messages
function M.class(name)
  local class = { __name = name, __tostring = Adapter.describe }
  class.__index = class
  return setmetatable(class, Adapter)
end

--- { { name, tensor }, ... } in a fixed order.
function Adapter:named_parameters() return self._named end

--- The trained tensors in that order.
--- @return perilune.Tensor[]
function Adapter:parameters()
  local list = {}
  for i, pair in ipairs(self:named_parameters()) do list[i] = pair[2] end
  return list
end

--- @return integer
function Adapter:num_parameters()
  local n = 0
  for _, pair in ipairs(self:named_parameters()) do n = n + pair[2]:numel() end
  return n
end

--- Tensors by name, for checkpoints.
--- @return table<string, perilune.Tensor>
function Adapter:state_dict()
  local out = {}
  for _, pair in ipairs(self:named_parameters()) do out[pair[1]] = pair[2]:detach() end
  return out
end

--- @param state table<string, perilune.Tensor>
--- @return self
function Adapter:load_state_dict(state)
  targets.load(self:named_parameters(), state, self.__name)
  return self
end

--- @param on boolean?  true
--- @return self
function Adapter:train(on)
  self.training = on ~= false
  return self
end

--- @return self
function Adapter:eval() return self:train(false) end

-- Only what is a product beside a product can be added to the weights.
local function refuse_merge(self)
  error(("%s: adapters of this kind cannot be merged into the weights: only LoRA is a product like theirs")
    :format(getmetatable(self).__name), 3)
end

--- Raises, except for LoRA.
function Adapter:merge() refuse_merge(self) end

--- Raises, except for LoRA.
function Adapter:unmerge() refuse_merge(self) end

--- Whether the adapter is part of the model's weights now.
--- @return boolean
function Adapter:is_merged() return false end -- luacheck: ignore 212

return M
