-- walk.lua - what a module holds, looked for whenever it is asked for, so that layers and tensors that
-- were put in, replaced or taken out at any time count as they are now. The order is fixed: fields in
-- the order in which they were first set, tables inside them by integers, then by sorted strings.
-- Every module and table is entered once, so that references back and to and fro end.
--   tensor                     a parameter when it takes gradients (or did: a frozen one stays one),
--                              else a buffer, which is saved and not trained
--   module                     entered
--   object with named_parameters, state_dict and load_state_dict (a published model, an adapter)
--                              asked for its tensors
--   table without metatable    entered: lists, tables by name, nested
--   object of another class    not entered, and refused when modules or parameters stand in its fields
--   a name that begins with an underscore      private, whatever stands there

local peri = require "perilune"
local options = require "perilune.options"

local M = {}

local tensor_type = getmetatable(peri.zeros { 1 })

--- Whether a value is a tensor.
--- @return boolean
function M.is_tensor(v) return type(v) == "userdata" and getmetatable(v) == tensor_type end
local is_tensor = M.is_tensor

--- Whether a value is an instance of a class of nn.class.
--- @return boolean
function M.is_module(v) return type(v) == "table" and rawget(v, "_names") ~= nil end
local is_module = M.is_module

-- A method without running into an __index that raises.
local function method(v, name)
  for _ = 1, 4 do
    local own = rawget(v, name)
    if own ~= nil then return own end
    local meta = getmetatable(v)
    v = type(meta) == "table" and rawget(meta, "__index")
    if type(v) ~= "table" then return nil end
  end
end
M.method = method

--- Whether something that is no module has tensors that a module can take as its own.
--- @return boolean
function M.is_foreign(v)
  return type(v) == "table" and not is_module(v) and type(method(v, "named_parameters")) == "function"
    and type(method(v, "state_dict")) == "function" and type(method(v, "load_state_dict")) == "function"
end
local is_foreign = M.is_foreign

M.raise = options.raise -- errors point at whoever called into the library, however deep the walk is

-- ---- parameters ----

local parameters = setmetatable({}, { __mode = "k" }) -- tensors that took gradients once

M.methods = {} -- of every module: module.lua puts its class here

--- A tensor that is a parameter for good, also while it is frozen.
function M.note_parameter(t)
  parameters[t] = true
  return t
end

--- Whether a tensor was seen as a parameter of nn: it may be frozen now.
--- @return boolean
function M.is_parameter(t) return parameters[t] == true end

local function takes_gradients(t) return t.requires_grad and t.is_leaf, t.requires_grad end

--- "parameter" or "buffer".
--- @param t perilune.Tensor
--- @param label string
--- @return string
function M.kind_of(t, label)
  if parameters[t] then return "parameter" end
  local ok, leaf, on = pcall(takes_gradients, t)
  if not ok then
    M.raise(("%s: the tensor was released by its scope; peri.keep(x) lets it stay, "
      .. "a name with an underscore keeps it private"):format(label))
  end
  if not on then return "buffer" end
  if not leaf then
    M.raise(("%s is the result of operations, which is neither trained nor saved: make it nn.parameter(x), "
      .. "or give it a private name such as _%s"):format(label, label:match "[^%.]+$"))
  end
  parameters[t] = true
  return "parameter"
end

-- ---- the walk ----

local function is_private(name) return type(name) == "string" and name:byte(1) == 95 end

local function join(prefix, key) -- names in files count from 0
  local label = type(key) == "number" and tostring(key - 1) or key
  return prefix == "" and label or prefix .. "." .. label
end

-- Integer and string keys of a table under which something may be held, in order; nil when there are none.
local function keys_of(t, label)
  local ints, names
  for k, v in next, t do
    local kind = type(v)
    if kind == "table" or kind == "userdata" then
      if type(k) == "string" then
        if not is_private(k) then
          names = names or {}
          names[#names + 1] = k
        end
      elseif math.type(k) == "integer" then
        ints = ints or {}
        ints[#ints + 1] = k
      elseif is_tensor(v) or is_module(v) or is_foreign(v) then
        M.raise(("%s: what is held under a key that is a %s has no name to be saved by: use a string or an integer, "
          .. "or a private field"):format(label, type(k)))
      end
    end
  end
  if ints then table.sort(ints) end
  if names then table.sort(names) end
  if ints and names then return table.move(names, 1, #names, #ints + 1, ints) end
  return ints or names
end

-- An object of another class is not looked into; that it has something to train is said, not passed over.
local function check_object(label, object)
  for k, v in next, object do
    local held = is_module(v) or parameters[v] or is_foreign(v)
    if held and not is_private(k) then
      local meta = getmetatable(object)
      local class = type(meta) == "table" and type(meta.__name) == "string" and meta.__name or "object"
      M.raise(("%s is a %s of its own class, and its %s would be neither trained nor saved: make the class with "
        .. "nn.class, or give the field a private name such as _%s"):format(label, class, tostring(k),
        label:match "[^%.]+$"))
    end
  end
end

--- Visit everything below a module, parents first. `on` has some of
---   module(label, module), tensor(label, tensor, owner, key), foreign(label, object) and
---   again(label, object, first) for what was met before under another name.
--- @param root perilune.nn.Module
--- @param on table
function M.walk(root, on)
  local on_tensor, seen = on.tensor, {}
  local enter_module

  local function hold(label, value, owner, key)
    if is_tensor(value) then
      if on_tensor then on_tensor(label, value, owner, key) end
    elseif type(value) == "table" then
      local first = seen[value]
      if first then
        if on.again then on.again(label, value, first) end
      elseif is_module(value) then enter_module(label, value)
      elseif getmetatable(value) == nil and not is_foreign(value) then
        seen[value] = label
        for _, k in ipairs(keys_of(value, label) or {}) do hold(join(label, k), value[k], value, k) end
      elseif is_foreign(value) then
        seen[value] = label
        if on.foreign then on.foreign(label, value) end
      elseif on_tensor then check_object(label, value) end
    end
  end

  function enter_module(label, module)
    seen[module] = label
    local check = method(module, "_check") -- of containers, whose entries can be replaced at any time
    if check then check(module, label) end
    if type(rawget(module, "training")) ~= "boolean" then
      M.raise(("%s is a %s, expected true or false: the field is the mode, call what stands there otherwise")
        :format(join(label, "training"), type(module.training)))
    end
    if on.module then on.module(label, module) end
    for _, name in ipairs(rawget(module, "_names")) do
      local value = rawget(module, name)
      local kind = type(value)
      if kind == "userdata" or kind == "table" then hold(join(label, name), value, module, name) end
    end
  end

  enter_module("", root)
end

--- Whether two tensors hold the same numbers.
--- @return boolean
function M.same_values(a, b)
  if rawequal(a, b) then return true end
  local _ <close> = peri.no_grad()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  return a:to(b.dtype):eq(b):logical_or(a:ne(a):logical_and(b:ne(b))):all():item()
end

--- What is wrong with saving objects together, or nil: a model with an adapter in its weights, and the
--- adapter, which would be put on those weights once more.
--- @param objects table[]  { label, object }
--- @return string?
function M.counted_twice(objects)
  local label_of = {}
  for _, entry in ipairs(objects) do label_of[entry[2]] = entry[1] end
  for _, entry in ipairs(objects) do
    local object = entry[2]
    local is_merged = type(object) == "table" and method(object, "is_merged")
    if is_merged and is_merged(object) and label_of[object.model] then
      return ("%s is merged into %s, and what is loaded would have it twice: unmerge() it before, or save one of them")
        :format(entry[1], label_of[object.model])
    end
  end
end

--- Remember a field by name, in the order in which fields are first set. The names of a module's own methods
--- are for functions.
function M.track(self, name, value)
  local kind = type(value)
  if (kind == "table" or kind == "userdata") and name ~= "extra" and type(M.methods[name]) == "function" then
    M.raise(("a field called %q would hide the method of all modules: give it another name"):format(name))
  end
  rawset(self, name, value)
  if value == nil or is_private(name) then return end
  local names, known = rawget(self, "_names"), rawget(self, "_known")
  if known[name] then -- taken out before: at its new place
    for i, n in ipairs(names) do
      if n == name then
        table.remove(names, i)
        break
      end
    end
  end
  if type(name) ~= "string" and math.type(name) ~= "integer" then
    if not (is_tensor(value) or is_module(value) or is_foreign(value)) then return end
    rawset(self, name, nil)
    M.raise(("a field whose name is a %s cannot hold a %s: use a string or an integer"):format(type(name), type(value)))
  end
  known[name], names[#names + 1] = true, name
  if is_tensor(value) and value.requires_grad and value.is_leaf then parameters[value] = true end
end

return M
