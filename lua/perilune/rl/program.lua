-- program.lua - a module as a list of ops over named values, which is what a policy file holds: the same arithmetic
-- without Lua. A module says its own part in a method `program(build, x)`, or is one of those below.

local peri = require "perilune"
local options = require "perilune.options"

local nn = peri.nn
local M = {}

--- @class perilune.rl.Program
--- @field steps table[]  { op, in, out, attr } of each op, in order
--- @field tensors table<string, perilune.Tensor>  those that the steps read, by name
--- @field state table[]  { name, shape } of what a row remembers from call to call
local Program = {}
Program.__index = Program

-- The name of a tensor: of the parameter or buffer that it is, else a new one.
local function tensor_name(self, t)
  local name = self._names[t]
  if not name then
    self._constants = self._constants + 1
    name = "constant." .. self._constants
    self._names[t] = name
  end
  self.tensors[name] = t
  return name
end

--- Add an op and get the name of its result, or names of several.
--- @param name string  of an op
--- @param inputs table  names of values, tensors, or false for an optional input that is left out
--- @param attr table?  attributes by name
--- @param outputs integer?  how many results; default 1
--- @return string ...
function Program:op(name, inputs, attr, outputs)
  local given, out = {}, {}
  for i, input in ipairs(inputs) do
    given[i] = input == false and peri.json.null or type(input) == "string" and input or tensor_name(self, input)
  end
  for i = 1, outputs or 1 do
    self._values = self._values + 1
    out[i] = "value." .. self._values
  end
  self.steps[#self.steps + 1] = { op = name, ["in"] = given, out = out, attr = attr }
  return table.unpack(out)
end

--- A value that each row remembers, 0 when an episode begins; give it its next value with `keep`.
--- @param shape integer[]  of a row
--- @return string
function Program:remember(shape)
  local name = "state." .. #self.state + 1
  self.state[#self.state + 1] = { name = name, shape = shape }
  return name
end

--- What a remembered value is from the next call on.
--- @param state string
--- @param value string
function Program:keep(state, value)
  self.steps[#self.steps + 1] = { op = "clone", ["in"] = { value }, out = { state } }
end

local params = {} -- of each op
for _, op in ipairs(peri.ops()) do params[op.name] = op.params end

local by_forward = {} -- the forward of a class -> what it does, as a program

local function refuse(path, module, why)
  options.raise(("policy: %s (%s) %s"):format(path, getmetatable(module).__name, why), 2)
end

--- What a module does to a value.
--- @param module perilune.nn.Module
--- @param x string
--- @return string
function Program:module(module, x)
  local path = self._paths[module] or "a module of it"
  if module.program then return module:program(self, x) end
  local known = rawget(module, "forward") == nil and by_forward[module.forward]
  if not known then
    refuse(path, module, "cannot be put into a policy file; give its class a method program(build, x) that does what"
      .. " forward does with build:op(name, inputs, attributes) and build:module(part, x)")
  end
  if module.adapter then refuse(path, module, "has an adapter on it: merge that before") end
  return known(self, x, module)
end

local function activation(name)
  return function(self, x, module)
    local args, attr = rawget(module, "_args"), nil
    if args and args.n > 0 then
      attr = {}
      for i = 1, args.n do attr[params[name][i + 1].name] = args[i] end
    end
    return self:op(name, { x }, attr)
  end
end

for _, a in ipairs(peri.activations()) do
  if nn[a.layer] then by_forward[nn[a.layer].forward] = activation(a.name) end
end
by_forward[nn.LeakyReLU.forward], by_forward[nn.ELU.forward] = activation "leaky_relu", activation "elu"
by_forward[nn.GELU.forward], by_forward[nn.Softplus.forward] = activation "gelu", activation "softplus"

by_forward[nn.Linear.forward] = function(self, x, module)
  if not module.weight then refuse(self._paths[module], module, "has several parts, which no file can hold") end
  return self:op("linear", { x, module.weight, module.bias }, { act = module.activation })
end
by_forward[nn.MLP.forward] = function(self, x, module)
  for i, layer in ipairs(module.layers) do
    x = self:module(layer, x)
    if i < #module.layers and module.activation ~= "none" then x = self:op(module.activation, { x }) end
  end
  return x
end
by_forward[nn.Sequential.forward] = function(self, x, module)
  for i = 1, #module do
    if type(module[i]) == "function" then
      refuse(self._paths[module], module, ("has a function as part %d, which no file can hold"):format(i))
    end
    x = self:module(module[i], x)
  end
  return x
end
for dims = 1, 2 do -- attributes as the op has them
  local name = ("conv%dd"):format(dims)
  by_forward[nn["Conv" .. dims .. "d"].forward] = function(self, x, module)
    local function each(v) return type(v) == "table" and v or { v } end
    return self:op(name, { x, module.weight, module.bias or false }, { stride = each(module._stride),
      padding = each(module._padding), dilation = each(module._dilation), groups = module.groups })
  end
end
by_forward[nn.Identity.forward] = function(_, x) return x end
by_forward[nn.Dropout.forward] = function(_, x) return x end -- a policy that acts is in eval mode
by_forward[nn.Flatten.forward] = function(self, x) return self:op("flatten", { x }, { first = 1 }) end
by_forward[nn.LayerNorm.forward] = function(self, x, module)
  return self:op("layer_norm", { x, module.weight, module.bias or false }, { eps = module.eps })
end
by_forward[nn.RMSNorm.forward] = function(self, x, module)
  return self:op("rms_norm", { x, module:scale() }, { eps = module.eps })
end
by_forward[nn.Embedding.forward] = function(self, x, module) return self:op("embedding", { module.weight, x }) end

--- A program without steps; parts of the network are added by :module and :op.
--- @param networks table<string, perilune.nn.Module>  whose tensors it may use, each under a name
--- @return perilune.rl.Program
function M.new(networks)
  local self = setmetatable({ steps = {}, tensors = {}, state = {}, _names = {}, _paths = {}, _constants = 0,
                              _values = 0 }, Program)
  for name, network in pairs(networks) do
    for key, t in pairs(network:state_dict()) do self._names[t] = name .. "." .. key end
    for _, entry in ipairs(network:named_modules()) do
      self._paths[entry[2]] = entry[1] == "" and name or name .. "." .. entry[1]
    end
  end
  return self
end

return M
