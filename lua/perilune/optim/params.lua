-- params.lua - what an optimizer is given, checked: groups, and in them tensors that can get a gradient,
-- each once. Messages name a tensor by its group, place and, where it is known, its name. Groups are lists
-- of parameters, or are chosen among all of them by name and by what they are.

local peri = require "perilune"
local options = require "perilune.options"
local Module = require "perilune.nn.module"
local choice = require "perilune.optim.choice"
local walk = require "perilune.nn.walk"

local M = {}

-- ---- lists of tensors ----

local is_object = Module.is_module

-- An entry of named_parameters(): { path, tensor, published names }.
local function is_named(v)
  return type(v) == "table" and getmetatable(v) == nil and type(v[1]) == "string" and peri.is_tensor(v[2])
    and (v[3] == nil or type(v[3]) == "table")
end

local function prefixed(prefix, names)
  if prefix == "" or not names then return names end
  local list = {}
  for i, name in ipairs(names) do list[i] = prefix .. name end
  return list
end

-- { { tensor, path?, of an object, published names? }, ... } of a module, or a list of modules, tensors and entries of
-- named_parameters(); and the modules { object, prefix of names }.
local function flatten(who, given)
  local list, objects = {}, {}
  local function add_object(object, prefix)
    objects[#objects + 1] = { object, prefix }
    for _, entry in ipairs(object:named_parameters()) do
      list[#list + 1] = { entry[2], prefix .. entry[1], true, prefixed(prefix, entry[3]) }
    end
  end
  if is_object(given) then
    add_object(given, "")
    return list, objects
  end
  if type(given) ~= "table" then
    walk.raise(("%s: parameters are a %s, expected a list of tensors or a module"):format(who,
      peri.is_tensor(given) and "tensor" or type(given)))
  end
  for i, v in ipairs(given) do
    if is_object(v) then add_object(v, i - 1 .. ".")
    elseif is_named(v) then list[#list + 1] = { v[2], v[1], true, v[3] }
    elseif peri.is_tensor(v) then list[#list + 1] = { v }
    else walk.raise(("%s: parameter %d is a %s, expected a tensor"):format(who, i, type(v))) end
  end
  for k in pairs(given) do
    if math.type(k) ~= "integer" or k < 1 or k > #given then
      walk.raise(("%s: the list of parameters has the key %q: it should have the numbers from 1 to %d")
        :format(who, tostring(k), #given))
    end
  end
  return list, objects
end

local function dtype_of(t) return t.dtype end

-- Why a tensor can never get a gradient, or nil.
local function refusal(t, of_object)
  if not pcall(dtype_of, t) then return "was released by its scope: peri.keep(x) lets it stay" end
  if t.dtype ~= "f32" and t.dtype ~= "f64" then
    local hint = t.dtype:find "^b?f" and "load or make it in f32" or "train an adapter beside it (peri.peft.lora)"
    return ("is %s, and only f32 and f64 are moved: %s"):format(t.dtype, hint)
  end
  if t.packed then return "is packed, which takes no gradient" end
  if t.requires_grad then
    if not t.is_leaf then
      return "is the result of operations, which never gets a gradient: give the tensors that it was made from"
    end
  elseif not of_object and not Module.is_parameter(t) then
    return "takes no gradients: make it nn.parameter(x), or x:requires_grad_()"
  end
end

local function can_move(t) return (t.dtype == "f32" or t.dtype == "f64") and not t.packed end

-- Entries without the weights of frozen modules that nothing could move anyway, such as those of a quantised model
-- under an adapter, and how many these are. A model of which anything is trained is taken whole, so that what is not
-- trained of it is said.
local function movable(entries, objects)
  local any = false
  for _, e in ipairs(entries) do
    local ok, moves = pcall(can_move, e[1]) -- a released one is refused later
    any = any or e[3] and ok and not moves
  end
  if not any then return entries, 0 end
  local owner_of, live = {}, {}
  for _, object in ipairs(objects) do
    for _, place in ipairs(walk.places(object[1])) do
      if place.kind == "parameter" then
        owner_of[place.tensor] = place.publisher or false
        if place.publisher and place.tensor.requires_grad then live[place.publisher] = true end
      end
    end
  end
  local list, left = {}, 0
  for _, e in ipairs(entries) do
    local owner = owner_of[e[1]]
    if owner ~= nil and not can_move(e[1]) and not e[1].requires_grad and not live[owner] then left = left + 1
    else list[#list + 1] = e end
  end
  return #list > 0 and list or entries, left
end

-- ---- each once ----

local size_of = { f32 = 4, f64 = 8 }

local function address(t) return tonumber((("%p"):format(t:data_ptr()):gsub("^0x", "")), 16) end

-- Raises for two parameters that are one tensor, or that have memory in common.
local function check_once(who, all)
  local first, by_place = {}, {}
  for _, e in ipairs(all) do
    if first[e.tensor] then
      walk.raise(("%s: %s is %s once more: it would be moved twice"):format(who, e.label, first[e.tensor].label))
    end
    first[e.tensor] = e
    local n = e.tensor:numel()
    if n > 0 then
      local from = address(e.tensor)
      by_place[#by_place + 1] = { from = from, to = from + n * size_of[e.tensor.dtype], label = e.label }
    end
  end
  table.sort(by_place, function(a, b) return a.from < b.from end)
  for i = 2, #by_place do
    local a, b = by_place[i - 1], by_place[i]
    if b.from < a.to then
      walk.raise(("%s: %s and %s share memory: it would be moved twice"):format(who, a.label, b.label))
    end
    b.to = math.max(a.to, b.to)
  end
end

-- ---- groups ----

local scale_rule = options.number(1, "[0, inf)", "times the common rate, in place of lr")

local function check_options(kind, who, o)
  local problem = kind.check and kind.check(o)
  if problem then walk.raise(("%s: %s"):format(who, problem)) end
end

-- A group's own options over the common ones. `others` has the rules of what stands in a group besides them.
local function own_options(kind, who, given, common, others)
  local own = {}
  for k, v in pairs(common) do own[k] = v end
  for k, v in pairs(given) do
    if not others[k] then
      local rule = k == "lr_scale" and scale_rule or kind.rules[k]
      if not rule then
        local names = options.names(kind.rules)
        table.move({ "lr_scale", table.unpack(options.names(others)) }, 1, 3, #names + 1, names)
        walk.raise(("%s: %s"):format(who, options.unknown("option", k, names)))
      end
      local problem = options.problem(k, v, rule)
      if problem then walk.raise(("%s: %s"):format(who, problem)) end
      own[k] = v
    end
  end
  if given.lr and given.lr_scale then walk.raise(who .. ": give either lr or lr_scale") end
  check_options(kind, who, own)
  return own
end

-- How a group's rate follows from the common one: rate = common * factor, or its own in any case.
local function rate_of(given, common)
  if given.lr_scale then return { factor = given.lr_scale } end
  if given.lr == nil then return { factor = 1 } end
  if common == 0 then return { own = given.lr } end
  return { factor = given.lr / common }
end

local function groups_of(who, params)
  if is_object(params) or type(params) ~= "table" then return { { params = params } }, false end
  local first = params[1]
  if type(first) ~= "table" or is_object(first) or is_named(first) then return { { params = params } }, false end
  for i, g in ipairs(params) do
    if type(g) ~= "table" or is_object(g) or g.params == nil then
      walk.raise(("%s: group %d is a %s%s, expected { params = ..., its own options }"):format(who, i,
        peri.is_tensor(g) and "tensor" or type(g), type(g) == "table" and " without params" or ""))
    end
  end
  return params, true
end

-- What a user gave as { given, own options, entries }, one for each group; the objects; whether there are several.
local function listed(kind, who, params, common)
  local groups, objects, list, several = {}, {}, groups_of(who, params)
  for i, given in ipairs(list) do
    local name = several and ("%s: group %d"):format(who, i) or who
    local own = own_options(kind, name, given, common, { params = true })
    local entries, from = flatten(name, given.params)
    table.move(from, 1, #from, #objects + 1, objects)
    groups[i] = { given = given, own = own }
    groups[i].entries, groups[i].left = movable(entries, from)
  end
  return groups, objects, several
end

-- The same where groups are chosen by name.
local function chosen(kind, who, params, common, choices)
  local function name(g) return ("%s: group %d"):format(who, g) end
  for key in pairs(choices) do
    if math.type(key) ~= "integer" or key < 1 or key > #choices then
      walk.raise(("%s: groups has the key %q, expected a list"):format(who, tostring(key)))
    end
  end
  if select(2, groups_of(who, params)) then
    walk.raise(who .. ": the parameters are groups already, and groups would divide them once more: give one of them")
  end
  local groups = {}
  for g, given in ipairs(choices) do
    if type(given) ~= "table" or is_object(given) then
      walk.raise(("%s is a %s, expected { pattern = ..., its own options }"):format(name(g), type(given)))
    end
    groups[g] = { given = given, own = own_options(kind, name(g), given, common, choice.rules) }
    choice.check(name(g), given)
  end
  local entries, objects = flatten(who, params)
  local left
  entries, left = movable(entries, objects)
  local parts = choice.divide(name, entries, choices)
  for g in ipairs(choices) do groups[g].entries = parts[g] end
  if #parts[#parts] > 0 then
    groups[#groups + 1] = { given = {}, own = own_options(kind, who, {}, common, {}), entries = parts[#parts] }
  end
  groups[#groups].left = left
  return groups, objects, #groups > 1
end

--- Groups { options, rate, params, names, state, steps, slots, left: frozen ones that are none } of what a user gave.
--- @param kind table  rules, slots(options), check(options), check_tensor(t)
--- @param who string
--- @param params any
--- @param common table  checked options
--- @param choices table?  the option groups
--- @return table[] groups
--- @return table[] objects  { object, prefix of names } that parameters came from
function M.open(kind, who, params, common, choices)
  check_options(kind, who, common)
  local groups, all, live = {}, {}, false
  local list, objects, several
  if choices then list, objects, several = chosen(kind, who, params, common, choices)
  else list, objects, several = listed(kind, who, params, common) end
  for i, part in ipairs(list) do
    local group = { options = part.own, rate = rate_of(part.given, common.lr), params = {}, names = {}, state = {},
      steps = {}, slots = kind.slots(part.own), left = part.left or 0 }
    for k, entry in ipairs(part.entries) do
      local t, label = entry[1], ("parameter %d"):format(k)
      if several then label = label .. (" of group %d"):format(i) end
      if entry[2] then label = ("%s (%s)"):format(label, entry[2]) end
      local problem = refusal(t, entry[3]) or kind.check_tensor and kind.check_tensor(t)
      if problem then walk.raise(("%s: %s %s"):format(who, label, problem)) end
      all[#all + 1] = { tensor = t, label = label }
      live = live or t.requires_grad
      group.params[k], group.names[k], group.state[k], group.steps[k] = t, entry[2] or false, {}, 0
    end
    groups[i] = group
  end
  if #all == 0 then walk.raise(who .. ": no parameters") end
  if not live then
    walk.raise(("%s: none of the %d parameters takes gradients, all are frozen; those of an adapter are "
      .. "adapter:parameters()"):format(who, #all))
  end
  check_once(who, all)
  local held, roots = {}, {}
  for _, e in ipairs(all) do held[e.tensor] = true end
  for i, entry in ipairs(objects) do roots[i] = { entry[2]:gsub("%.$", ""), entry[1] } end
  local left = walk.left_out(roots, held)
  if left then
    walk.raise(("%s: %s, and its parameters are none of these: put it into a field of the module, or give lists of "
      .. "parameters"):format(who, left))
  end
  return groups, objects
end

--- Named parameters that a choice means, and the others.
--- @param who string
--- @param given any
--- @param how table  pattern, where
--- @return table[] meant  { { path, tensor, published names }, ... }
--- @return table[] others
function M.split(who, given, how)
  choice.check(who, how)
  local parts = choice.divide(function () return who end, (flatten(who, given)), { how })
  for _, part in ipairs(parts) do
    for i, entry in ipairs(part) do part[i] = entry[2] and { entry[2], entry[1], entry[4] } or entry[1] end
  end
  return parts[1], parts[2]
end

--- The name of a parameter that an object has now, with a gradient, and that is not held; or nil.
--- @param objects table[]  of M.open
--- @param held table<perilune.Tensor, boolean>
--- @return string?
function M.stranger(objects, held)
  for _, entry in ipairs(objects) do
    for _, e in ipairs((flatten("step", entry[1]))) do
      if not held[e[1]] and e[1].grad then return entry[2] .. (e[2] or "a parameter") end
    end
  end
end

--- What is wrong with the options of a group, which a user may have changed since, or nil.
--- @param kind table
--- @param o table
--- @return string?
function M.problem(kind, o)
  for name, rule in pairs(kind.rules) do
    local problem = options.problem(name, o[name], rule)
    if problem then return problem end
  end
  return kind.check and kind.check(o)
end

--- { tensor, path?, ... } of everything that a module or a list has.
--- @param who string
--- @param given any
--- @return table[]
function M.named(who, given) return (flatten(who, given)) end

--- All tensors of a module, a model, an adapter or a list, as a list; frozen ones among them.
--- @param who string
--- @param given any
--- @return perilune.Tensor[]
function M.list(who, given)
  local list = flatten(who, given)
  for i, entry in ipairs(list) do
    if entry[3] and entry[1].dtype:find "^b?f" then walk.note_parameter(entry[1]) end
    list[i] = entry[1]
  end
  return list
end

return M
