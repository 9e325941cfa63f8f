-- state.lua - what a module saves and loads: its tensors under published names. A tensor that is published in parts
-- (q, k and v of one matrix) has a name for each; they are views of it, and are loaded into it.

local dtypes = require "perilune.dtypes"
local peri = require "perilune"
local options = require "perilune.options"
local walk = require "perilune.nn.walk"

--- @class perilune.nn.Module
local Module = {}

local quantised = dtypes.quantised

local function refuse_twice(who, self)
  local problem = walk.counted_twice { { "this module", self } }
  if problem then walk.raise(("%s: %s"):format(who, (problem:gsub("this module%.", "")))) end
end

-- ---- parts ----

-- Rows [at, at + n) of a matrix, those of blocks by their bytes.
local function rows_of(t, at, n)
  if at == 1 and n == t:size(1) then return t end
  if quantised[t.dtype] then return t:bitcast("u8"):narrow(1, at, n):bitcast(t.dtype) end
  return t:narrow(1, at, n)
end

-- fn(name, view) for every published part of every tensor of get(place). Blocks cannot be transposed: what is published
-- so is what they stand for.
local function each_part(places, who, get, fn)
  for _, place in ipairs(places) do
    local t, at = get(place), 1
    if t then
      local whole = #place.parts == 1 and not place.transposed
      if not whole and t.packed then
        walk.raise(("%s: %s is packed, and what is published of it cannot be taken out of it: load without pack")
          :format(who, place.path))
      end
      for _, part in ipairs(place.parts) do
        local view = t
        if not whole then
          view = rows_of(t, at, part[2] or t:size(1))
          at = at + (part[2] or 0)
          if place.transposed then view = (quantised[view.dtype] and view:to "f32" or view):transpose() end
        end
        fn(part[1], view)
      end
    end
  end
end

--- Name -> tensor of all parameters and buffers, sharing their memory. A tensor that stands in two
--- fields has two names, a module that does has those of the first. A published model's are those of its files, behind
--- the place that it has in this module: "policy.model.layers.0.mlp.up_proj.weight".
--- @return table<string, perilune.Tensor>
function Module:state_dict()
  refuse_twice("state_dict", self)
  walk.check_leaving(self)
  local out = {}
  each_part(walk.places(self), "state_dict", function(place) return place.tensor end, function(name, view)
    if out[name] then walk.collides("state_dict", "tensors", name) end
    out[name] = view:detach()
  end)
  return out
end

--- Name -> gradient of the parameters that have one, under the names of state_dict.
--- @return table<string, perilune.Tensor>
function Module:gradients()
  local out, seen = {}, {}
  each_part(walk.places(self), "gradients", function(place)
    if place.kind == "buffer" or seen[place.tensor] then return nil end
    seen[place.tensor] = true
    return place.tensor.grad
  end, function(name, view) out[name] = view end)
  return out
end

-- ---- loading ----

local shape_text = options.shape

-- What a module can load: published name -> { place, part, shape }, names in order, and second names of modules as
-- { from, to } prefixes.
local function targets_of(self)
  local t = { known = {}, names = {}, aliases = {}, places = walk.places(self) }
  for _, place in ipairs(t.places) do
    for i, part in ipairs(place.parts) do
      local name, shape = part[1], place.tensor.shape
      if t.known[name] then walk.collides("load_state_dict", "tensors", name) end
      if #place.parts > 1 then shape[1] = part[2] end
      if place.transposed then shape[1], shape[2] = shape[2], shape[1] end
      t.names[#t.names + 1] = name
      t.known[name] = { place = place, part = i, shape = shape_text(shape) }
    end
  end
  walk.walk(self, { again = function(label, object, first)
    if not walk.is_module(object) then return end
    t.aliases[#t.aliases + 1] = { label .. ".", first == "" and "" or first .. "." }
  end })
  return t
end

local function inside(prefix, name) return prefix == "" and name or prefix .. "." .. name end

-- Other names of a state that mean one of ours: published ones of other ages, and those of tensors that are tied.
local function other_names(targets, state)
  local real_of = {}
  for _, name in ipairs(targets.names) do
    local place = targets.known[name].place
    if place.publisher and place.publisher._also then
      for _, other in ipairs(place.publisher:_also(place.at == "" and name or name:sub(#place.at + 2))) do
        other = inside(place.at, other)
        if state[other] ~= nil and not targets.known[other] then real_of[other] = name end
      end
    end
  end
  return real_of
end

-- The name that a name of a file has here: itself, or through a module that has a second one.
local function resolve(targets, real_of, name)
  if targets.known[name] then return name end
  if real_of[name] then return real_of[name] end
  for _, alias in ipairs(targets.aliases) do
    if name:sub(1, #alias[1]) == alias[1] then
      local real = alias[2] .. name:sub(#alias[1] + 1)
      if targets.known[real] then return real end
    end
  end
end

-- Whether a module that publishes says of a name that nobody needs it.
local function needless(publishers, name)
  for module, at in pairs(publishers) do
    if module.ignored and (at == "" or name:sub(1, #at + 1) == at .. ".") then
      if module:ignored(at == "" and name or name:sub(#at + 2)) then return true end
    end
  end
  return false
end

-- Rows of matrices one above the other, those of blocks by their bytes.
local function stack(list, dtype)
  if #list == 1 then return list[1] end
  if not quantised[dtype] then return peri.cat(list, 1) end
  local bytes = {}
  for i, t in ipairs(list) do bytes[i] = t:bitcast("u8") end
  return peri.cat(bytes, 1):bitcast(dtype)
end

-- A tensor in place of one that nobody may write to, of blocks or laid out for a processor, with some parts given.
local function rebuilt(place, values)
  local old, rows, at = place.tensor, {}, 1
  for i, part in ipairs(place.parts) do
    local n, value = part[2] or old:size(1), values[i]
    if not value then rows[i] = rows_of(old, at, n)
    else
      if place.transposed then value = (quantised[value.dtype] and value:to "f32" or value):transpose():contiguous() end
      rows[i] = value.dtype == old.dtype and value or value:to(old.dtype)
    end
    at = at + n
  end
  local made = stack(rows, old.dtype)
  return old.packed and peri.pack(made) or made
end

local function address(t) return tonumber((("%p"):format(t:data_ptr()):gsub("^0x", "")), 16) end

-- Copies in place of the values that are views of tensors here, which may be written to before the values are read: two
-- tensors trade values, one is turned.
local function own_values(places, values)
  local ranges = {}
  for _, place in ipairs(places) do
    local t = place.tensor
    if values[place] and t:numel() > 0 and not quantised[t.dtype] and not t.packed then
      local from = address(t)
      ranges[#ranges + 1] = { from, from + dtypes.bytes(t.dtype, t:numel()) }
    end
  end
  table.sort(ranges, function (a, b) return a[1] < b[1] end)
  local function is_ours(at)
    local low, high = 0, #ranges
    while low < high do
      local middle = (low + high + 1) // 2
      if ranges[middle][1] <= at then low = middle else high = middle - 1 end
    end
    return low > 0 and at < ranges[low][2]
  end
  for _, list in pairs(values) do
    for i, value in pairs(list) do
      if not value.packed and value:numel() > 0 and is_ours(address(value)) then list[i] = value:clone() end
    end
  end
end

-- Values over a tensor's own, part by part.
local function overwrite(place, values)
  local at = 1
  for i, part in ipairs(place.parts) do
    local n, value = part[2] or 0, values[i]
    if value then
      local target = #place.parts == 1 and place.tensor or place.tensor:narrow(1, at, n)
      if quantised[value.dtype] then value = value:to "f32" end
      target:copy_(place.transposed and value:transpose() or value)
    end
    at = at + n
  end
end

local load_rules = {
  strict = options.boolean(true, "missing and unexpected names are errors; false: they are returned"),
}

local function check_arguments(state, opts)
  if type(state) ~= "table" then -- a failed safetensors.load gives nil and a message
    error(("load_state_dict: the state is %s, expected a table of tensors%s")
      :format(state == nil and "nil" or "a " .. type(state), type(opts) == "string" and ": " .. opts or ""), 3)
  end
  for key in pairs(type(opts) == "table" and opts or {}) do
    if load_rules[key] == nil then
      options.raise("load_state_dict: " .. options.unknown("option", key, options.names(load_rules))
        .. " (the metadata of safetensors.load? parentheses around the call leave its first result)")
    end
  end
  return options.fill("load_state_dict", opts, load_rules, 4).strict
end

-- What of a state goes where: place -> values by part; missing, unexpected and what is wrong with the others.
local function sort_out(targets, state)
  local given, values, first_of = {}, {}, {} -- first_of: the first name that a tensor of ours comes under
  local missing, unexpected, wrong, torn, others, publishers = {}, {}, {}, {}, {}, {}
  for _, place in ipairs(targets.places) do
    if place.publisher then publishers[place.publisher] = place.at end
  end
  local real_of = other_names(targets, state)
  for _, name in ipairs(options.names(state)) do
    local tensor, real = state[name], resolve(targets, real_of, name)
    local target = real and targets.known[real]
    if real then given[real] = true end
    if not real then
      if not needless(publishers, name) then unexpected[#unexpected + 1] = name end
    elseif not peri.is_tensor(tensor) then
      others[#others + 1] = ("%s is a %s, expected a tensor"):format(name, type(tensor))
    elseif shape_text(tensor) ~= target.shape then
      wrong[#wrong + 1] = ("%s has %s, expected %s"):format(name, shape_text(tensor), target.shape)
    else
      local place = target.place
      local one = #place.parts == 1 and place.tensor or target
      local first = first_of[one]
      if first and not walk.same_values(state[first], tensor) then torn[#torn + 1] = first .. " and " .. name end
      first_of[one] = first or name
      values[place] = values[place] or {}
      values[place][target.part] = tensor
    end
  end
  for key in pairs(state) do if type(key) ~= "string" then unexpected[#unexpected + 1] = tostring(key) end end
  for _, name in ipairs(targets.names) do if not given[name] then missing[#missing + 1] = name end end
  for place, list in pairs(values) do
    local count = 0
    for _ in pairs(list) do count = count + 1 end
    if place.tensor.packed and count < #place.parts then
      others[#others + 1] = ("%s is packed and takes all of its parts or none"):format(place.path)
    end
  end
  return values, { missing = missing, unexpected = unexpected }, wrong, others, torn
end

--- Copy values in by name, in the dtypes that the tensors here have. Nothing is written when anything does not fit,
--- nor when a tensor that is tied here comes with two values; the message names all. With strict = false what is
--- missing or unexpected is returned, { missing = names, unexpected = names }.
--- @param state table<string, perilune.Tensor>
--- @param opts table?
--- @return self|table
function Module:load_state_dict(state, opts)
  local strict = check_arguments(state, opts)
  refuse_twice("load_state_dict", self)
  local targets = targets_of(self)
  local values, report, wrong, others, torn = sort_out(targets, state)
  local problems = {}
  local function tell(on, what, list)
    if on and #list > 0 then problems[#problems + 1] = what .. " " .. table.concat(list, ", ") end
  end
  tell(strict, "missing", report.missing)
  tell(strict, "unexpected", report.unexpected)
  tell(true, "wrong shape:", wrong)
  tell(true, "wrong:", others)
  tell(true, "one tensor here, with different values:", torn)
  if #problems > 0 then error("load_state_dict: " .. table.concat(problems, "; "), 2) end
  local _ <close> = peri.no_grad()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  own_values(targets.places, values)
  local made, after = {}, {} -- made before anything is written: there may be no memory for one
  for place, list in pairs(values) do
    local t = place.tensor
    if quantised[t.dtype] or t.packed then made[place] = peri.keep(rebuilt(place, list)) end
  end
  walk.walk(self, { module = function(_, module)
    local before = walk.method(module, "_loading")
    if before then after[#after + 1] = before(module) end
  end })
  for _, place in ipairs(targets.places) do
    if made[place] then
      rawset(place.owner, place.key, made[place])
      if walk.is_parameter(place.tensor) then walk.note_parameter(made[place]) end
    elseif values[place] then overwrite(place, values[place]) end
  end
  for _, fn in ipairs(after) do fn() end
  if strict then return self end
  return report
end
options.declare(Module.load_state_dict, { "state" }, load_rules)

return Module
