-- module.lua - what every layer is: a plain table. Tensors and modules in its fields, and in lists and
-- tables in its fields, belong to it: see walk.lua for what counts and in which order.

local dtypes = require "perilune.dtypes"
local options = require "perilune.options"
local peri = require "perilune"
local walk = require "perilune.nn.walk"
local describe = require("perilune.nn.describe").describe

local is_tensor, is_module = walk.is_tensor, walk.is_module

--- @class perilune.nn.Module
--- @field training boolean
local Module = {}
Module.__index = Module
walk.methods = Module

-- Names of fields that are used and not owned, of instances of a class: they are neither walked nor saved. A copy has
-- what they name, or its copy; where it says "dropped", nothing.
Module.references = {}

-- A class inherits the metamethods of its parent as well, which Lua looks for in the class itself.
local function inherit(class, parent)
  for key, value in pairs(parent) do
    if type(key) == "string" and key:sub(1, 2) == "__" and class[key] == nil then class[key] = value end
  end
end

-- A field of a class is one of all its instances, and none of them would train, save or move it.
local function define(class, key, value)
  if is_module(value) or is_tensor(value) and value.requires_grad then
    options.raise(("%s.%s: the class cannot hold a %s, which no instance would train or save: make it in the function "
      .. "that fills an instance, as self.%s"):format(class.__name, tostring(key), is_module(value) and "module"
      or "parameter", tostring(key)))
  end
  rawset(class, key, value)
end

-- An instance of a class without what its init does.
function Module.instance(class) return setmetatable({ _names = {}, _known = {}, training = true }, class) end

--- A class of modules: local Net = nn.class("Net", function(self, ...) self.fc = nn.Linear(2, 3) end),
--- function Net:forward(x) return self.fc(x) end, local net = Net(...). Calling an instance runs forward.
--- Tensors, modules, and lists and tables of them in its fields are trained, saved and moved with it,
--- whenever they were put there; fields whose names begin with an underscore are private.
--- @param name string
--- @param init fun(self: table, ...)?
--- @param parent table?  a class, whose methods this one has, too; its init is not called
--- @return table
function Module.class(name, init, parent)
  if type(name) ~= "string" then error(("class: the name is a %s, expected a string"):format(type(name)), 2) end
  if init ~= nil and type(init) ~= "function" then
    error(("class: what fills an instance is a %s, expected a function"):format(type(init)), 2)
  end
  if parent ~= nil and (type(parent) ~= "table" or rawget(parent, "__newindex") == nil) then
    error(("class: the parent is a %s, expected a class of nn.class"):format(type(parent)), 2)
  end
  local class = { __name = name }
  class.__index = class
  class.__call = function(self, ...) return self:forward(...) end
  if parent then inherit(class, parent) end
  class.__newindex, class.__tostring = class.__newindex or walk.track, class.__tostring or describe
  return setmetatable(class, {
    __index = parent or Module,
    __newindex = define,
    __name = name,
    __call = function(_, ...)
      local self = Module.instance(class)
      if init then init(self, ...) end
      return self
    end,
  })
end

--- A tensor that is trained: the same memory, as a leaf that collects gradients. It stays when the scope ends in which
--- it was made, so that layers may be made in any.
--- @param t perilune.Tensor  of floats
--- @return perilune.Tensor
function Module.parameter(t)
  if not is_tensor(t) then error(("parameter: a %s, expected a tensor"):format(type(t)), 2) end
  if not t.dtype:find "^b?f" then
    error(("parameter: a tensor of %s, expected f32 or f64: others collect no gradients"):format(t.dtype), 2)
  end
  return walk.note_parameter(peri.keep(t:detach():requires_grad_(true)))
end

--- Whatever has no forward of its own says so.
function Module:forward()
  local name = getmetatable(self).__name
  options.raise(("%s has no forward: define function %s:forward(x)"):format(name, name))
end

local function seconds(list)
  for i, pair in ipairs(list) do list[i] = pair[2] end
  return list
end

--- { { path, module }, ... } of every module below and including this one, whose path is "": each once, parents
--- first.
--- @return table[]
function Module:named_modules()
  local list, paths = {}, {}
  walk.walk(self, { module = function(path, module)
    if paths[path] then walk.collides("named_modules", "modules", path) end
    paths[path], list[#list + 1] = true, { path, module }
  end })
  return list
end

--- The modules of named_modules.
--- @return perilune.nn.Module[]
function Module:modules() return seconds(self:named_modules()) end

--- The modules that stand in this one's own fields and in tables in them, in order.
--- @return perilune.nn.Module[]
function Module:children()
  local list = {}
  walk.walk(self, { module = function(_, module, _, _, parent)
    if parent == self then list[#list + 1] = module end
  end })
  return list
end

--- fn(module) for every module; for initial weights.
--- @param fn fun(module: perilune.nn.Module)
--- @return self
function Module:apply(fn)
  options.argument("apply", "fn", fn, "callable")
  for _, module in ipairs(self:modules()) do fn(module) end
  return self
end

-- { { path, tensor, published names }, ... } of one kind; a tensor that occurs twice is listed once.
local function listed(self, who, kind)
  local list, seen, paths = {}, {}, {}
  for _, place in ipairs(walk.places(self)) do
    if place.kind == kind and not seen[place.tensor] then
      if paths[place.path] then walk.collides(who, "tensors", place.path) end
      seen[place.tensor], paths[place.path] = true, true
      local names = {}
      for i, part in ipairs(place.parts) do names[i] = part[1] end
      list[#list + 1] = { place.path, place.tensor, names }
    end
  end
  return list
end

--- { { path, tensor, names }, ... } in a fixed order; a tensor that occurs twice is listed once. The path is
--- where it stands, "layers.0.weight" in net.layers[1]; names are those that it has in state_dict, the path itself but
--- in published models.
--- @return table[]
function Module:named_parameters() return listed(self, "named_parameters", "parameter") end

--- The tensors of named_parameters.
--- @return perilune.Tensor[]
function Module:parameters() return seconds(self:named_parameters()) end

--- As named_parameters, of the tensors that are saved and not trained.
--- @return table[]
function Module:named_buffers() return listed(self, "named_buffers", "buffer") end

--- The tensors of named_buffers.
--- @return perilune.Tensor[]
function Module:buffers() return seconds(self:named_buffers()) end

--- Elements of all parameters together; tied ones count once.
--- @return integer
function Module:num_parameters()
  local n = 0
  for _, p in ipairs(self:parameters()) do n = n + p:numel() end
  return n
end

--- Training mode of this module and all below: dropout is on.
--- @param on boolean?
--- @return self
function Module:train(on)
  if on ~= nil and type(on) ~= "boolean" then
    error(("train: on is %s, expected true or false"):format(tostring(on)), 2)
  end
  on = on ~= false
  walk.walk(self, { module = function(_, module) rawset(module, "training", on) end })
  return self
end

--- Evaluation mode of this module and all below: dropout is off.
--- @return self
function Module:eval() return self:train(false) end

-- Why a tensor cannot collect gradients, or nil.
local function untrainable(t)
  if t.packed then return "packed" end
  if not t.dtype:find "^b?f%d" then return t.dtype end
end

local function set_trained(self, who, pattern, on)
  if pattern ~= nil and type(pattern) ~= "string" then
    error(("%s: the pattern is a %s, expected a string"):format(who, type(pattern)), 3)
  end
  local list, chosen = self:named_parameters(), {}
  for _, entry in ipairs(list) do
    if not pattern or walk.means(who, pattern, entry[1], entry[3]) then chosen[#chosen + 1] = entry end
  end
  if pattern and #chosen == 0 then
    local names = {}
    for i, pair in ipairs(list) do names[i] = pair[1] end
    error(("%s: no parameter's name matches %q; there are: %s"):format(who, pattern, table.concat(names, ", ")), 3)
  end
  local live = {}
  for _, entry in ipairs(chosen) do
    if not (on and untrainable(entry[2])) then live[#live + 1] = entry[2] end
  end
  if #chosen > 0 and #live == 0 then
    error(("%s: %s is %s, which takes no gradients: train an adapter beside it (peri.peft.lora)"):format(who,
      chosen[1][1], untrainable(chosen[1][2])), 3)
  end
  for _, t in ipairs(live) do t:requires_grad_(on) end
  return self
end

--- Stop training the parameters whose names match a Lua pattern; nil = all. They stay parameters. Names are paths and,
--- in published models, those of their files.
--- @param pattern string?
--- @return self
function Module:freeze(pattern)
  set_trained(self, "freeze", pattern, false)
  return self
end

--- Train the parameters whose names match a Lua pattern; nil = all. Quantised and packed ones stay as they are.
--- @param pattern string?
--- @return self
function Module:unfreeze(pattern)
  set_trained(self, "unfreeze", pattern, true)
  return self
end

local floats = dtypes.is_float

--- Floats of another dtype, in place of the old tensors: make the optimizer after this. Norms and biases of a
--- published model stay f32 beside matrices of f16 and bf16, as when it is loaded so. Quantised and packed weights
--- raise.
--- @param dtype string  "f32", "f64", "f16" or "bf16"
--- @return self
function Module:to(dtype)
  if not floats[dtype] then
    error(("to: the dtype is %s, expected f32, f64, f16 or bf16"):format(tostring(dtype)), 2)
  end
  local places, made = walk.places(self), {} -- tied tensors stay tied
  for _, place in ipairs(places) do
    local t = place.tensor
    if t.packed or t.dtype:find "^q%d" then
      walk.raise(("to: %s is %s, whose dtype is chosen when it is loaded"):format(place.path,
        t.packed and "packed" or t.dtype))
    end
  end
  for _, place in ipairs(places) do
    local t = place.tensor
    local want = place.vector and dtype ~= "f64" and "f32" or dtype
    if floats[t.dtype] and t.dtype ~= want and not made[t] then
      made[t] = peri.keep(t:detach():to(want))
      if place.kind == "parameter" then walk.note_parameter(made[t]):requires_grad_(t.requires_grad) end
    end
  end
  for _, place in ipairs(places) do
    if made[place.tensor] then rawset(place.owner, place.key, made[place.tensor]) end
  end
  return self
end

--- Forget the gradients of all parameters.
--- @return self
function Module:zero_grad()
  for _, p in ipairs(self:parameters()) do p:zero_grad() end
  return self
end

--- What a layer says of itself in print(); classes override it.
function Module:extra() return "" end -- luacheck: ignore 212

--- The tree of modules as text, each as Lua reaches it: layers[1] is layers.0 in a state dict.
--- @return string
function Module:describe() return describe(self) end

for _, part in ipairs { "state", "copy", "tree", "hooks", "summary" } do
  for name, method in pairs(require("perilune.nn." .. part)) do Module[name] = method end
end
Module.is_tensor, Module.is_module, Module.is_parameter = is_tensor, is_module, walk.is_parameter
return Module
