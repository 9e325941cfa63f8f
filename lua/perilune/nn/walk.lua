-- walk.lua - what a module holds, looked for whenever it is asked for, so that layers and tensors that
-- were put in, replaced or taken out at any time count as they are now. The order is fixed: fields in
-- the order in which they were first set, tables inside them by integers, then by sorted strings.
-- Every module and table is entered once, so that references back and to and fro end.
--   tensor                     a parameter when it takes gradients (or did: a frozen one stays one),
--                              else a buffer, which is saved and not trained
--   module                     entered
--   table without metatable    entered: lists, tables by name, nested
--   object of another class    not entered, and refused when tensors or modules stand in its fields,
--                              unless its class says that they come and go (__transient: caches, optimizers)
--   a name that begins with an underscore      private, whatever stands there
--   a name that the class has in `references`  used and not owned: an adapter's model, a model's config
--
-- A tensor's path is where it stands: "layers.0.ff.up.weight". It is published, which is to say saved and loaded,
-- under that path too, unless a module above it has a method _publish(path), path from that module on:
-- nil, or { kind = "parameter" or "buffer", parts = { { name, rows }, ... }, transposed, vector }, the published
-- tensors that it is made of, one above the other.

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
  for _ = 1, 16 do -- a class, its parents, Module
    local own = rawget(v, name)
    if own ~= nil then return own end
    local meta = getmetatable(v)
    v = type(meta) == "table" and rawget(meta, "__index")
    if type(v) ~= "table" then return nil end
  end
end
M.method = method

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
--- @param published table?  what _publish said of its place
--- @return string
function M.kind_of(t, label, published)
  if published then return published.kind end
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
      elseif is_tensor(v) or is_module(v) then
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

--- Two things have one path: a field "a.b" and a field b of a, the entries 1 and "0" of a table.
--- @param who string
--- @param what string  "tensors" or "modules"
--- @param path string
function M.collides(who, what, path)
  M.raise(("%s: two %s are called %q: names of fields and keys should have no dots, and a table not both 1 and \"0\"")
    :format(who, what, path))
end

-- ---- objects of other classes ----

local FEW <const> = 64 -- entries of a table in such an object that are looked at

-- Whether a value is a tensor or a module, or a plain table with one, however deep.
local function holds(value, seen)
  if is_tensor(value) or is_module(value) then return true end
  if type(value) ~= "table" or getmetatable(value) ~= nil or seen[value] then return false end
  seen[value] = true
  local n = 0
  for _, entry in next, value do
    if holds(entry, seen) then return true end
    n = n + 1
    if n == FEW then return false end
  end
  return false
end

-- The key under which an object of another class holds a tensor or a module, itself or in tables of it; or nil.
local function held_by(object)
  local meta, seen = getmetatable(object), {}
  if type(meta) == "table" and rawget(meta, "__transient") then return nil end
  for k, v in next, object do
    if not is_private(k) and holds(v, seen) then return k end
  end
  if type(method(object, "named_parameters")) == "function" then return "named_parameters" end
end

-- It is not looked into; that it has something to train or to save is said, not passed over.
local function check_object(label, object)
  local key = held_by(object)
  if key == nil then return end
  local meta = getmetatable(object)
  local class = type(meta) == "table" and type(meta.__name) == "string" and "a " .. meta.__name or "an object"
  M.raise(("%s is %s of its own class, and its %s would be neither trained nor saved: make the class with "
    .. "nn.class, or give the field a private name such as _%s"):format(label, class, tostring(key),
    label:match "[^%.]+$"))
end

--- Visit everything below a module, parents first. `on` has some of
---   module(label, module, owner, key, parent), tensor(label, tensor, owner, key, publisher, at) and
---   again(label, object, first, owner, key) for what was met before under another name;
--- publisher is the innermost module with _publish above a tensor, at the label of that module.
--- @param root perilune.nn.Module
--- @param on table
function M.walk(root, on)
  local on_tensor, seen = on.tensor, {}
  local parent -- the module that is being walked
  local enter_module

  local function hold(label, value, owner, key, publisher, at)
    if is_tensor(value) then
      if on_tensor then on_tensor(label, value, owner, key, publisher, at) end
    elseif type(value) == "table" then
      local first = seen[value]
      if first then
        if on.again then on.again(label, value, first, owner, key) end
      elseif is_module(value) then enter_module(label, value, owner, key, publisher, at)
      elseif getmetatable(value) == nil then
        seen[value] = label
        for _, k in ipairs(keys_of(value, label) or {}) do
          hold(join(label, k), value[k], value, k, publisher, at)
        end
      elseif on_tensor then check_object(label, value) end
    end
  end

  function enter_module(label, module, owner, key, publisher, at)
    seen[module] = label
    local class = getmetatable(module)
    local methods = rawget(class, "__index") == class and class or nil -- else a class that looks them up by itself
    local check = (methods or module)._check -- of containers, whose entries can be replaced at any time
    if check then check(module, label) end
    if type(rawget(module, "training")) ~= "boolean" then
      M.raise(("%s is a %s, expected true or false: the field is the mode, call what stands there otherwise")
        :format(join(label, "training"), type(module.training)))
    end
    if (methods or module)._publish then publisher, at = module, label end
    if on.module then on.module(label, module, owner, key, parent) end
    local above = parent
    parent = module
    for _, name in ipairs(rawget(module, "_names")) do
      local value = rawget(module, name)
      local kind = type(value)
      if kind == "userdata" or kind == "table" then hold(join(label, name), value, module, name, publisher, at) end
    end
    parent = above
  end

  enter_module("", root)
end

--- @class perilune.nn.Place  where a tensor stands and what it is called in files
--- @field path string
--- @field tensor perilune.Tensor
--- @field owner table  owner[key] is the tensor
--- @field key any
--- @field kind string  "parameter" or "buffer"
--- @field parts table[]  { published name, rows } of each, one above the other
--- @field transposed boolean?  published as (K, N)
--- @field vector boolean?  f32 beside matrices of f16 and bf16
--- @field publisher perilune.nn.Module?  who named it
--- @field at string?  label of the publisher

--- Every tensor below a module, one entry for each place.
--- @param root perilune.nn.Module
--- @return perilune.nn.Place[]
function M.places(root)
  local list = {}
  M.walk(root, { tensor = function(label, tensor, owner, key, publisher, at)
    local published = publisher and publisher:_publish(at == "" and label or label:sub(#at + 2), tensor)
    local kind, parts = M.kind_of(tensor, label, published), published and published.parts
    if not parts then parts = { { label } }
    elseif at ~= "" then
      local full = {}
      for i, part in ipairs(parts) do full[i] = { join(at, part[1]), part[2] } end
      parts = full
    end
    list[#list + 1] = { path = label, tensor = tensor, owner = owner, key = key, kind = kind, parts = parts,
      transposed = published and published.transposed, vector = published and published.vector, publisher = publisher,
      at = at }
  end })
  return list
end

-- Whether a name matches a Lua pattern, or one of a list of them.
local function matches(who, patterns, name)
  for i, pattern in ipairs(type(patterns) == "table" and patterns or { patterns }) do
    if type(pattern) ~= "string" then
      M.raise(("%s: entry %d of the patterns is a %s, expected a Lua pattern"):format(who, i, type(pattern)))
    end
    local ok, found = pcall(string.find, name, pattern)
    if not ok then M.raise(("%s: the pattern %q is malformed: %s"):format(who, pattern, found)) end
    if found then return true end
  end
  return false
end

--- Whether patterns mean a parameter, by its path or by the names that it is published under. Patterns that mean some
--- of the parts of one tensor cannot be followed, and raise.
--- @param who string
--- @param patterns string|string[]  Lua patterns, of which one has to match
--- @param path string
--- @param names string[]?  published
--- @return boolean
function M.means(who, patterns, path, names)
  if matches(who, patterns, path) then return true end
  local hit, miss
  for _, name in ipairs(names or {}) do
    if matches(who, patterns, name) then hit = hit or name else miss = miss or name end
  end
  if hit and miss then
    local shown = type(patterns) == "table" and table.concat(patterns, ", ") or patterns
    M.raise(("%s: %q means %s, which is one tensor with %s here (%s): name all of its parts or none")
      :format(who, shown, hit, miss, path))
  end
  return hit ~= nil
end

--- Whether two tensors hold the same numbers.
--- @return boolean
function M.same_values(a, b)
  if rawequal(a, b) then return true end
  local _ <close> = peri.no_grad()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  return a:to(b.dtype):eq(b):logical_or(a:ne(a):logical_and(b:ne(b))):all():item()
end

--- What is wrong with saving modules together, or nil: a model with an adapter in its weights, and the
--- adapter, which would be put on those weights once more.
--- @param objects table[]  { label, object }, not all of them modules
--- @return string?
function M.counted_twice(objects)
  local label_of, merged = {}, {}
  for _, entry in ipairs(objects) do
    if is_module(entry[2]) then
      M.walk(entry[2], { module = function(label, module)
        label_of[module] = label == "" and entry[1] or join(entry[1], label)
        local is_merged = method(module, "is_merged")
        if is_merged and is_merged(module) then merged[#merged + 1] = module end
      end })
    end
  end
  for _, adapter in ipairs(merged) do
    local model = label_of[adapter.model]
    if model then
      return ("%s is merged into %s, and what is loaded would have it twice: unmerge() it before, or save one of them")
        :format(label_of[adapter], model)
    end
  end
end

--- What is trained and sits on a module without being part of it or of the others: an adapter that nobody put into a
--- field. Its module and where it sits, as text; nil when there is none.
--- @param roots table[]  { label, module }, not all of them modules
--- @param held table<perilune.Tensor, boolean>?  tensors that are taken care of in another way
--- @return string?
function M.left_out(roots, held)
  local inside, guests = {}, {}
  for _, entry in ipairs(roots) do
    if is_module(entry[2]) then
      M.walk(entry[2], { module = function(label, module)
        inside[module] = true
        local ask = method(module, "_guests")
        for _, guest in ipairs(ask and ask(module) or {}) do
          local at = entry[1] == "" and label or label == "" and entry[1] or join(entry[1], label)
          guests[#guests + 1] = { guest, at == "" and "it" or at }
        end
      end })
    end
  end
  for _, entry in ipairs(guests) do
    local guest = entry[1]
    if not inside[guest] then
      for _, p in ipairs(guest:parameters()) do
        if p.requires_grad and not (held and held[p]) then
          return ("a %s sits on %s"):format(getmetatable(guest).__name, entry[2])
        end
      end
    end
  end
end

--- What leaves a module, saved or copied, must be whole: a linear layer with an adapter in its weights knows whether
--- that is so, and raises.
--- @param root perilune.nn.Module
function M.check_leaving(root)
  M.walk(root, { module = function(_, module)
    local check = method(module, "_leaving")
    if check then check(module) end
  end })
end

-- A field takes its place at the end of the order.
local function note(self, name)
  local names, known = rawget(self, "_names"), rawget(self, "_known")
  if known[name] then -- taken out before
    for i, n in ipairs(names) do
      if n == name then
        table.remove(names, i)
        break
      end
    end
  end
  known[name], names[#names + 1] = true, name
end

--- Give a field that is filled later its place in the order of the fields.
function M.reserve(self, name)
  note(self, name)
  rawget(self, "_known")[name] = "reserved"
end

--- Remember a field by name, in the order in which fields are first set. The names of a module's own methods
--- are for functions.
function M.track(self, name, value)
  local kind = type(value)
  local held = kind == "table" or kind == "userdata"
  if held and name ~= "extra" and type(M.methods[name]) == "function" then
    M.raise(("a field called %q would hide the method of all modules: give it another name"):format(name))
  end
  if value == nil or is_private(name) or getmetatable(self).references[name] then
    rawset(self, name, value)
    return
  end
  if type(name) ~= "string" and math.type(name) ~= "integer" then
    if is_tensor(value) or is_module(value) then
      M.raise(("a field whose name is a %s cannot hold a %s: use a string or an integer"):format(type(name),
        type(value)))
    end
    rawset(self, name, value)
    return
  end
  if kind == "table" and not is_module(value) and getmetatable(value) ~= nil then
    check_object(tostring(name), value)
  end
  rawset(self, name, value)
  local known = rawget(self, "_known")
  if known[name] == "reserved" then known[name] = true else note(self, name) end
  if is_tensor(value) and value.requires_grad and value.is_leaf then parameters[value] = true end
end

return M
