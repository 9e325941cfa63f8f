-- adapter.lua - what every adapter is: a module that stands beside a model. Its tensors are called by the published
-- names of what they sit on, as in PEFT's files.
local Module = require "perilune.nn.module"
local options = require "perilune.options"

--- @class perilune.peft.Adapter: perilune.nn.Module
--- @field training boolean  dropout is on
--- @field model table  that it sits on, which is not part of it
local Adapter = Module.class "adapter"
Adapter.references = { model = true, config = true, published = true, whole = true, whole_names = true }

local M = {}

-- One line: what it is, how much of it is trained, on which model.
local function describe(self)
  local ok, n = pcall(self.num_parameters, self)
  local model = self.model
  return ("%s, %s parameters in %d tensors%s%s"):format(self.__name, ok and ("%d"):format(n) or "?",
    ok and #self:named_parameters() or 0, type(model) == "table" and model.__name and " on " .. model.__name or "",
    self.merged and ", merged" or "")
end

--- A class of adapters.
--- @param name string  for messages
function M.class(name)
  local class = Module.class(name, nil, Adapter)
  class.__tostring = describe
  return class
end

--- fn(...) while the model computes without the adapter, its own answers: those of the reference policy of a KL
--- penalty, without a copy of the model. The results of fn; what it raises is raised. Meanwhile the adapter is off for
--- whoever calls the model.
--- @param fn fun(...): any
--- @return any ...
function Adapter:disabled(fn, ...)
  options.argument("disabled", "fn", fn, "callable")
  if self:is_merged() then
    options.raise(("%s: disabled: the adapter is part of the weights: unmerge() it before"):format(self.__name))
  end
  self._off = (self._off or 0) + 1
  local results = table.pack(pcall(fn, ...))
  self._off = self._off > 1 and self._off - 1 or nil
  if not results[1] then error(results[2], 0) end
  return table.unpack(results, 2, results.n)
end

--- Whether the model computes with the adapter from now on: of several on one model, all but one may rest.
--- @param on boolean
--- @return self
function Adapter:enable(on)
  options.argument("enable", "on", on, "boolean")
  if on == not self._rests then return self end
  if self:is_merged() then
    options.raise(("%s: enable: the adapter is part of the weights: unmerge() it before"):format(self.__name))
  end
  local off = (self._off or 0) + (on and -1 or 1)
  self._rests, self._off = not on or nil, off > 0 and off or nil
  return self
end

--- Whether the model computes without the adapter now.
--- @return boolean
function Adapter:is_off() return self._off ~= nil end

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
