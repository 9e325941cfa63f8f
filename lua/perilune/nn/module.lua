-- module.lua - what every layer is: a plain table. Tensors and modules in its fields, and in lists and
-- tables in its fields, belong to it: see walk.lua for what counts and in which order.

local peri = require "perilune"
local options = require "perilune.options"
local walk = require "perilune.nn.walk"

local is_tensor, is_module = walk.is_tensor, walk.is_module

--- @class perilune.nn.Module
--- @field training boolean
local Module = {}
Module.__index = Module
walk.methods = Module

--- A class of modules: local Net = nn.class("Net", function(self, ...) self.fc = nn.Linear(2, 3) end),
--- function Net:forward(x) return self.fc(x) end, local net = Net(...). Calling an instance runs forward.
--- Tensors, modules, and lists and tables of them in its fields are trained, saved and moved with it,
--- whenever they were put there; fields whose names begin with an underscore are private.
--- @param name string
--- @param init fun(self: table, ...)?
--- @return table
function Module.class(name, init)
  if type(name) ~= "string" then error(("class: the name is a %s, expected a string"):format(type(name)), 2) end
  if init ~= nil and type(init) ~= "function" then
    error(("class: what fills an instance is a %s, expected a function"):format(type(init)), 2)
  end
  local class = { __name = name, __newindex = walk.track, __tostring = Module.describe }
  class.__index = class
  class.__call = function(self, ...) return self:forward(...) end
  return setmetatable(class, {
    __index = Module,
    __name = name,
    __call = function(_, ...)
      local self = setmetatable({ _names = {}, _known = {}, training = true }, class)
      if init then init(self, ...) end
      return self
    end,
  })
end

--- A tensor that is trained: the same memory, as a leaf that collects gradients.
--- @param t perilune.Tensor  of floats
--- @return perilune.Tensor
function Module.parameter(t)
  if not is_tensor(t) then error(("parameter: a %s, expected a tensor"):format(type(t)), 2) end
  if not t.dtype:find "^b?f" then
    error(("parameter: a tensor of %s, expected f32 or f64: others collect no gradients"):format(t.dtype), 2)
  end
  return walk.note_parameter(t:detach():requires_grad_(true))
end

--- Whatever has no forward of its own says so.
function Module:forward()
  local name = getmetatable(self).__name
  error(("%s has no forward: define function %s:forward(x)"):format(name, name), 2)
end

--- Every module below and including this one, each once, parents first.
--- @return perilune.nn.Module[]
function Module:modules()
  local list = {}
  walk.walk(self, { module = function(_, module) list[#list + 1] = module end })
  return list
end

--- fn(module) for every module; for initial weights.
--- @param fn fun(module: perilune.nn.Module)
--- @return self
function Module:apply(fn)
  for _, module in ipairs(self:modules()) do fn(module) end
  return self
end

-- Two things whose names in a file are one: a field "a.b" and a field b of a.
local function collides(who, label)
  walk.raise(("%s: two tensors are called %q: names of fields and keys should have no dots, "
    .. "and a table not both 1 and \"0\""):format(who, label))
end

--- { { name, tensor }, ... } in a fixed order; a tensor that occurs twice is listed once.
--- @return table[]
function Module:named_parameters()
  local list, seen, names = {}, {}, {}
  local function add(label, tensor)
    if seen[tensor] then return end
    if names[label] then collides("named_parameters", label) end
    seen[tensor], names[label] = true, true
    list[#list + 1] = { label, tensor }
  end
  walk.walk(self, {
    tensor = function(label, tensor) if walk.kind_of(tensor, label) == "parameter" then add(label, tensor) end end,
    foreign = function(label, object)
      for _, pair in ipairs(object:named_parameters()) do add(label .. "." .. pair[1], pair[2]) end
    end,
  })
  return list
end

--- The tensors of named_parameters.
--- @return perilune.Tensor[]
function Module:parameters()
  local list = self:named_parameters()
  for i, pair in ipairs(list) do list[i] = pair[2] end
  return list
end

--- Elements of all parameters together; tied ones count once.
--- @return integer
function Module:num_parameters()
  local n = 0
  for _, p in ipairs(self:parameters()) do n = n + p:numel() end
  return n
end

local function refuse_twice(who, objects)
  local problem = walk.counted_twice(objects)
  if problem then walk.raise(("%s: %s"):format(who, problem)) end
end

--- Name -> tensor of all parameters and buffers, sharing their memory. A tensor that stands in two
--- fields has two names, a module that does has those of the first.
--- @return table<string, perilune.Tensor>
function Module:state_dict()
  local out, objects = {}, {}
  local function add(label, tensor)
    if out[label] then collides("state_dict", label) end
    out[label] = tensor:detach()
  end
  walk.walk(self, {
    tensor = function(label, tensor)
      walk.kind_of(tensor, label)
      add(label, tensor)
    end,
    foreign = function(label, object)
      objects[#objects + 1] = { label, object }
      for name, tensor in pairs((object:state_dict())) do add(label .. "." .. name, tensor) end
    end,
  })
  refuse_twice("state_dict", objects)
  return out
end

local shape_text = options.shape

-- What a module can load: name -> tensor, names in order, objects with tensors of their own by label,
-- and second names of modules as { from, to } prefixes.
local function targets_of(self)
  local t = { known = {}, names = {}, foreign = {}, aliases = {} }
  local function add(label, tensor, foreign)
    if t.known[label] then collides("load_state_dict", label) end
    t.names[#t.names + 1] = label
    t.known[label] = { tensor = tensor, foreign = foreign }
  end
  walk.walk(self, {
    tensor = function(label, tensor)
      walk.kind_of(tensor, label)
      add(label, tensor)
    end,
    foreign = function(label, object)
      t.foreign[#t.foreign + 1] = { label, object }
      local state = object:state_dict()
      for _, name in ipairs(options.names(state)) do add(label .. "." .. name, state[name], label) end
    end,
    again = function(label, object, first)
      if is_module(object) then t.aliases[#t.aliases + 1] = { label .. ".", first == "" and "" or first .. "." } end
    end,
  })
  refuse_twice("load_state_dict", t.foreign)
  return t
end

-- The name that a name of a file has here: itself, or through a module that has a second one.
local function resolve(targets, name)
  if targets.known[name] then return name end
  for _, alias in ipairs(targets.aliases) do
    if name:sub(1, #alias[1]) == alias[1] then
      local real = alias[2] .. name:sub(#alias[1] + 1)
      if targets.known[real] then return real end
    end
  end
end

local load_rules = { strict = options.boolean(true, "missing and unexpected names are errors") }

--- Copy values in by name. Nothing is written when anything does not fit, nor when a tensor that is tied here
--- comes with two values; the message names all.
--- @param state table<string, perilune.Tensor>
--- @param opts table?
--- @return self
function Module:load_state_dict(state, opts)
  if type(state) ~= "table" then -- a failed safetensors.load gives nil and a message
    error(("load_state_dict: the state is %s, expected a table of tensors%s")
      :format(state == nil and "nil" or "a " .. type(state), type(opts) == "string" and ": " .. opts or ""), 2)
  end
  for key in pairs(type(opts) == "table" and opts or {}) do
    if load_rules[key] == nil then
      options.raise("load_state_dict: " .. options.unknown("option", key, options.names(load_rules))
        .. " (the metadata of safetensors.load? parentheses around the call leave its first result)")
    end
  end
  local strict = options.fill("load_state_dict", opts, load_rules).strict
  local targets, given = targets_of(self), {}
  local missing, unexpected, wrong, torn, others = {}, {}, {}, {}, {}
  local first_of = {} -- tensor of ours -> the first name that it comes under
  for _, name in ipairs(options.names(state)) do
    local tensor, real = state[name], resolve(targets, name)
    local target = real and targets.known[real].tensor
    if real then given[real] = given[real] or false end
    if not real then unexpected[#unexpected + 1] = name
    elseif not is_tensor(tensor) then others[#others + 1] = ("%s is a %s, expected a tensor"):format(name, type(tensor))
    elseif tensor.shape ~= target.shape then
      wrong[#wrong + 1] = ("%s has %s, expected %s"):format(name, shape_text(tensor), shape_text(target))
    else
      local first = first_of[target]
      if first and not walk.same_values(state[first], tensor) then torn[#torn + 1] = first .. " and " .. name end
      first_of[target], given[real] = first or name, tensor
    end
  end
  for key in pairs(state) do if type(key) ~= "string" then unexpected[#unexpected + 1] = tostring(key) end end
  for _, name in ipairs(targets.names) do if given[name] == nil then missing[#missing + 1] = name end end
  local problems = {}
  local function report(on, what, list)
    if on and #list > 0 then problems[#problems + 1] = what .. " " .. table.concat(list, ", ") end
  end
  report(strict, "missing", missing)
  report(strict, "unexpected", unexpected)
  report(true, "wrong shape:", wrong)
  report(true, "wrong:", others)
  report(true, "one tensor here, with different values:", torn)
  if #problems > 0 then error("load_state_dict: " .. table.concat(problems, "; "), 2) end
  for _, f in ipairs(targets.foreign) do
    local label, object = f[1], f[2]
    local own, any = {}, false
    for _, name in ipairs(targets.names) do
      if targets.known[name].foreign == label then
        own[name:sub(#label + 2)] = given[name] or targets.known[name].tensor
        any = any or given[name] ~= nil
      end
    end
    if any then object:load_state_dict(own) end
  end
  local _ <close> = peri.no_grad()
  for _, name in ipairs(targets.names) do
    local target = targets.known[name]
    if given[name] and not target.foreign then target.tensor:copy_(given[name]) end
  end
  return self
end
options.declare(Module.load_state_dict, { "state" }, load_rules)

-- fn(object, method) for objects of other libraries below.
local function each_foreign(self, fn)
  walk.walk(self, { foreign = function(label, object) fn(label, object) end })
end

--- Training mode of this module and all below: dropout is on.
--- @param on boolean?
--- @return self
function Module:train(on)
  if on ~= nil and type(on) ~= "boolean" then
    error(("train: on is %s, expected true or false"):format(tostring(on)), 2)
  end
  on = on ~= false
  walk.walk(self, {
    module = function(_, module) rawset(module, "training", on) end,
    foreign = function(_, object) if walk.method(object, "train") then object:train(on) end end,
  })
  return self
end

--- Evaluation mode of this module and all below: dropout is off.
--- @return self
function Module:eval() return self:train(false) end

local function set_trained(self, who, pattern, on)
  if pattern ~= nil and type(pattern) ~= "string" then
    error(("%s: the pattern is a %s, expected a string"):format(who, type(pattern)), 3)
  end
  local list, hit = self:named_parameters(), false
  for _, pair in ipairs(list) do
    if not pattern or pair[1]:find(pattern) then
      pair[2]:requires_grad_(on)
      hit = true
    end
  end
  if pattern and not hit then
    local names = {}
    for i, pair in ipairs(list) do names[i] = pair[1] end
    error(("%s: no parameter's name matches %q; there are: %s"):format(who, pattern, table.concat(names, ", ")), 3)
  end
  return self
end

--- Stop training the parameters whose names match a Lua pattern; nil = all. They stay parameters.
--- @param pattern string?
--- @return self
function Module:freeze(pattern)
  set_trained(self, "freeze", pattern, false)
  return self
end

--- Train the parameters whose names match a Lua pattern; nil = all.
--- @param pattern string?
--- @return self
function Module:unfreeze(pattern)
  set_trained(self, "unfreeze", pattern, true)
  return self
end

local function name_of(object)
  local meta = getmetatable(object)
  return type(meta) == "table" and type(meta.__name) == "string" and meta.__name or "object"
end

local floats = { f16 = true, bf16 = true, f32 = true, f64 = true }

--- Floats of another dtype, in place of the old tensors: make the optimizer after this.
--- @param dtype string  "f32", "f64", "f16" or "bf16"
--- @return self
function Module:to(dtype)
  if not floats[dtype] then
    error(("to: the dtype is %s, expected f32, f64, f16 or bf16"):format(tostring(dtype)), 2)
  end
  local made, places = {}, {} -- tied tensors stay tied
  each_foreign(self, function(label, object)
    if not walk.method(object, "to") then
      walk.raise(("to: %s is a %s, whose dtype is chosen when it is loaded"):format(label, name_of(object)))
    end
  end)
  walk.walk(self, {
    tensor = function(label, tensor, owner, key)
      if not floats[tensor.dtype] or tensor.dtype == dtype then return end
      if not made[tensor] then
        made[tensor] = tensor:detach():to(dtype)
        if walk.kind_of(tensor, label) == "parameter" then
          walk.note_parameter(made[tensor]):requires_grad_(tensor.requires_grad)
        end
      end
      places[#places + 1] = { owner, key, made[tensor] }
    end,
    foreign = function(_, object) object:to(dtype) end,
  })
  for _, place in ipairs(places) do rawset(place[1], place[2], place[3]) end
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

-- "1,234 parameters, 200 of them frozen", or nothing.
local function count_text(self)
  local ok, list = pcall(self.parameters, self)
  if not ok or #list == 0 then return "" end
  local n, frozen = 0, 0
  for _, p in ipairs(list) do
    n = n + p:numel()
    if not p.requires_grad then frozen = frozen + p:numel() end
  end
  local function digits(v) return (tostring(v):reverse():gsub("(%d%d%d)", "%1,"):reverse():gsub("^,", "")) end
  return (", %s parameters%s"):format(digits(n), frozen > 0 and (", %s of them frozen"):format(digits(frozen)) or "")
end

--- The tree of modules as text, each as Lua reaches it: layers[1] is layers.0 in a state dict.
--- @return string
function Module.describe(self)
  local lines, depth_of = {}, { [""] = -1 }
  -- Files count from 0, Lua from 1: what is net[1] is shown as [1], what is net.layers[2] as layers[2].
  local function shown(label)
    return (("." .. label):gsub("%.(%d+)%f[.\0]", function (n) return ("[%d]"):format(n + 1) end):gsub("^%.", ""))
  end
  -- A label's depth is that of the module it stands in; its text is what follows that module's label.
  local function place(label)
    local parent = label
    repeat parent = parent:match "^(.*)%.[^%.]*$" or "" until depth_of[parent]
    depth_of[label] = depth_of[parent] + 1
    return ("  "):rep(depth_of[label] + 1) .. shown(parent == "" and label or label:sub(#parent + 2)) .. ": "
  end
  walk.walk(self, {
    module = function(label, module)
      local ok, extra = pcall(getmetatable(module).extra, module)
      local text = ("%s(%s)"):format(name_of(module), ok and tostring(extra) or "?")
      lines[#lines + 1] = (label == "" and "" or place(label)) .. text:gsub("\n", " ")
    end,
    foreign = function(label, object) lines[#lines + 1] = place(label) .. name_of(object) end,
    again = function(label, object, first)
      if not is_module(object) then return end
      local same = first == "" and ", the whole" or ", the same as " .. first
      lines[#lines + 1] = place(label) .. name_of(object) .. same
    end,
  })
  lines[1] = lines[1] .. count_text(self)
  return table.concat(lines, "\n")
end

Module.is_tensor, Module.is_module, Module.is_parameter = is_tensor, is_module, walk.is_parameter
return Module
