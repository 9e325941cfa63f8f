-- module.lua - what every layer is: a plain table that remembers the order in which tensors and
-- modules were put into it, so that walks over parameters have one fixed order.

local peri = require "perilune"

local tensor_type = getmetatable(peri.zeros { 1 })
local function is_tensor(v) return type(v) == "userdata" and getmetatable(v) == tensor_type end

--- @class perilune.nn.Module
--- @field training boolean
local Module = {}
Module.__index = Module

local function is_module(v) return type(v) == "table" and rawget(v, "_names") ~= nil end

-- A new field: tensors, modules and lists of modules are remembered. A tensor that requires a
-- gradient is a parameter for good, any other a buffer (saved, not trained). Names that begin with
-- an underscore are private: neither.
local function track(self, name, value)
  local kind
  if type(name) == "string" and name:sub(1, 1) == "_" then kind = nil
  elseif is_tensor(value) then kind = value.requires_grad and "parameter" or "buffer"
  elseif is_module(value) then kind = "module"
  elseif type(value) == "table" and is_module(value[1]) then kind = "list" end
  if kind and not self._kinds[name] then
    self._names[#self._names + 1] = name
    self._kinds[name] = kind
  end
  rawset(self, name, value)
end

--- A class of modules: local Net = nn.class("Net", function(self, ...) self.fc = nn.Linear(2, 3) end),
--- function Net:forward(x) return self.fc(x) end, local net = Net(...). Calling an instance runs forward.
--- @param name string
--- @param init fun(self: table, ...)
--- @return table
function Module.class(name, init)
  local class = { __name = name, __newindex = track, __tostring = Module.describe }
  class.__index = class
  class.__call = function(self, ...) return self:forward(...) end
  return setmetatable(class, {
    __index = Module,
    __name = name,
    __call = function(_, ...)
      local self = setmetatable({ _names = {}, _kinds = {}, training = true }, class)
      init(self, ...)
      return self
    end,
  })
end

--- Mark a tensor as trained.
--- @param t perilune.Tensor
--- @return perilune.Tensor
function Module.parameter(t) return t:detach():requires_grad_(true) end

-- visit(name, tensor, kind, owner, key) for every tensor, in order. Names in files count from 0.
local function walk(self, prefix, visit)
  for _, name in ipairs(self._names) do
    local value, kind = rawget(self, name), self._kinds[name]
    local label = prefix .. (type(name) == "number" and tostring(name - 1) or name)
    if value ~= nil then
      if kind == "module" then walk(value, label .. ".", visit)
      elseif kind == "list" then
        for i, child in ipairs(value) do walk(child, ("%s.%d."):format(label, i - 1), visit) end
      else visit(label, value, kind, self, name) end
    end
  end
end

--- Every module below and including this one, parents first.
--- @return perilune.nn.Module[]
function Module:modules()
  local list = { self }
  for _, name in ipairs(self._names) do
    local value, kind = rawget(self, name), self._kinds[name]
    local children = kind == "module" and { value } or kind == "list" and value or {}
    for _, child in ipairs(children) do
      table.move(child:modules(), 1, #child:modules(), #list + 1, list)
    end
  end
  return list
end

--- fn(module) for every module; for initial weights.
--- @param fn fun(module: perilune.nn.Module)
--- @return self
function Module:apply(fn)
  for _, module in ipairs(self:modules()) do fn(module) end
  return self
end

--- { { name, tensor }, ... } in a fixed order; a tensor that occurs twice is listed once.
--- @return table[]
function Module:named_parameters()
  local list, seen = {}, {}
  walk(self, "", function(name, tensor, kind)
    if kind == "parameter" and not seen[tensor] then
      seen[tensor] = true
      list[#list + 1] = { name, tensor }
    end
  end)
  return list
end

--- @return perilune.Tensor[]
function Module:parameters()
  local list = self:named_parameters()
  for i, pair in ipairs(list) do list[i] = pair[2] end
  return list
end

--- @return integer
function Module:num_parameters()
  local n = 0
  for _, p in ipairs(self:parameters()) do n = n + p:numel() end
  return n
end

--- Name -> tensor of all parameters and buffers, sharing their memory.
--- @return table<string, perilune.Tensor>
function Module:state_dict()
  local out = {}
  walk(self, "", function(name, tensor) out[name] = tensor:detach() end)
  return out
end

local function shape_text(t) return "(" .. table.concat(t.shape, ", ") .. ")" end

local function same_shape(a, b)
  if a.ndim ~= b.ndim then return false end
  for i = 1, a.ndim do if a:size(i) ~= b:size(i) then return false end end
  return true
end

--- Copy values in by name. Nothing is written when anything does not fit; the message names all.
--- @param state table<string, perilune.Tensor>
--- @param opts table?  strict (true): missing and unexpected names are errors
--- @return self
function Module:load_state_dict(state, opts)
  local strict = not (opts and opts.strict == false)
  local missing, unexpected, wrong, known, plan = {}, {}, {}, {}, {}
  walk(self, "", function(name, tensor)
    known[name] = true
    local given = state[name]
    if not given then missing[#missing + 1] = name
    elseif not same_shape(given, tensor) then
      wrong[#wrong + 1] = ("%s has %s, expected %s"):format(name, shape_text(given), shape_text(tensor))
    else plan[#plan + 1] = { tensor, given } end
  end)
  for name in pairs(state) do if not known[name] then unexpected[#unexpected + 1] = name end end
  table.sort(unexpected)
  local problems = {}
  local function report(on, what, list)
    if on and #list > 0 then problems[#problems + 1] = what .. " " .. table.concat(list, ", ") end
  end
  report(strict, "missing", missing)
  report(strict, "unexpected", unexpected)
  report(true, "wrong shape:", wrong)
  if #problems > 0 then error("load_state_dict: " .. table.concat(problems, "; "), 2) end
  local _ <close> = peri.no_grad()
  for _, pair in ipairs(plan) do pair[1]:copy_(pair[2]) end
  return self
end

--- Training mode of this module and all below: dropout is on.
--- @param on boolean?
--- @return self
function Module:train(on)
  for _, module in ipairs(self:modules()) do rawset(module, "training", on ~= false) end
  return self
end

--- @return self
function Module:eval() return self:train(false) end

local function set_trained(self, pattern, on)
  walk(self, "", function(name, tensor, kind)
    if kind == "parameter" and (not pattern or name:find(pattern)) then tensor:requires_grad_(on) end
  end)
  return self
end

--- Stop training the parameters whose names match a Lua pattern; nil = all.
--- @param pattern string?
--- @return self
function Module:freeze(pattern) return set_trained(self, pattern, false) end

--- @param pattern string?
--- @return self
function Module:unfreeze(pattern) return set_trained(self, pattern, true) end

--- Floats of another dtype, in place of the old tensors: make the optimizer after this.
--- @param dtype string
--- @return self
function Module:to(dtype)
  local made = {} -- tied tensors stay tied
  walk(self, "", function(_, tensor, kind, owner, key)
    if tensor.dtype:find "^b?f" and tensor.dtype ~= dtype then
      made[tensor] = made[tensor] or tensor:detach():to(dtype)
      if kind == "parameter" then made[tensor]:requires_grad_(tensor.requires_grad) end
      rawset(owner, key, made[tensor])
    end
  end)
  return self
end

--- @return self
function Module:zero_grad()
  for _, p in ipairs(self:parameters()) do p:zero_grad() end
  return self
end

--- What a layer says of itself in print(); classes override it.
function Module:extra() return "" end -- luacheck: ignore 212

function Module.describe(self)
  local lines = { ("%s(%s)"):format(getmetatable(self).__name, self:extra()) }
  local function add(name, child)
    lines[#lines + 1] = ("  %s: %s"):format(name, tostring(child):gsub("\n", "\n  "))
  end
  for _, name in ipairs(self._names) do
    local value, kind = rawget(self, name), self._kinds[name]
    local label = type(name) == "number" and tostring(name - 1) or name
    if kind == "module" and value then add(label, value)
    elseif kind == "list" then for i, c in ipairs(value) do add(("%s.%d"):format(label, i - 1), c) end end
  end
  return table.concat(lines, "\n")
end

Module.is_tensor, Module.is_module = is_tensor, is_module
return Module
