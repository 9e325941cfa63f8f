-- optimizer.lua - what all optimizers share: groups, one step over the fused list ops, their state. One
-- call of C moves every tensor of a group that has taken as many steps as the others.

local peri = require "perilune"
local core = require "perilune.core"
local options = require "perilune.options"
local phases = require "perilune.phases"
local params = require "perilune.optim.params"

--- @class perilune.optim.Optimizer
--- @field lr number  the common rate of the last step
--- @field grad_norm number?  of the last step's gradients together, before clipping; NaN or inf where they were
--- @field grad_norms number[]?  of each network, where the last step was of several: { copies = n }
--- @field skipped integer  steps left out because their gradients were not finite
--- @field was_skipped boolean  whether the last step was one of them
local Optimizer = { __name = "optimizer", __transient = true } -- a module may hold one, and does not own it
Optimizer.__index = Optimizer

local M = { Optimizer = Optimizer }

local groups_rule = options.value(options.none, "table", "parameters with options of their own: a list of "
  .. "{ pattern = Lua pattern over names, or where = function(name, tensor), lr =, ... }; the first that means a "
  .. "parameter has it, what none means has the common options")

local all_rules = setmetatable({}, { __mode = "k" })

--- The rules of a kind's options, with those that all kinds have.
--- @param kind table
--- @return table
function M.rules(kind)
  if not all_rules[kind] then
    local rules = { groups = groups_rule }
    for name, rule in pairs(kind.rules) do rules[name] = rule end
    all_rules[kind] = rules
  end
  return all_rules[kind]
end

--- An optimizer of a kind { name, rules, slots, run, check, check_tensor }; errors point at the caller's
--- caller.
--- @param kind table
--- @param given_params any
--- @param given table?
--- @return perilune.optim.Optimizer
function M.new(kind, given_params, given)
  local o = options.fill(kind.name, given, M.rules(kind), 4)
  local choices = o.groups
  o.groups = nil
  local groups, objects = params.open(kind, kind.name, given_params, o, choices)
  local self = setmetatable({ name = kind.name, lr = o.lr, skipped = 0, was_skipped = false, groups = groups,
    _kind = kind, _objects = objects, _held = {}, _looked = false }, Optimizer)
  self._params = self:parameters()
  for _, p in ipairs(self._params) do self._held[p] = true end
  return self
end

local function counted(n, what) return ("%d %s%s"):format(n, what, n == 1 and "" or "s") end

--- What it is and has done: kind, parameters, options of each group, steps.
function Optimizer:__tostring()
  local tensors, numbers, steps, frozen, left, lines = 0, 0, 0, 0, 0, {}
  for g, group in ipairs(self.groups) do
    local here = 0
    left = left + group.left
    for i, p in ipairs(group.params) do
      local ok, n, trained = pcall(function() return p:numel(), p.requires_grad end) -- a released one counts nothing
      here, steps = here + (ok and n or 0), math.max(steps, group.steps[i])
      if ok and not trained then frozen = frozen + 1 end
    end
    tensors, numbers = tensors + #group.params, numbers + here
    local own = {}
    for _, name in ipairs(options.names(group.options)) do
      own[#own + 1] = name .. " = " .. peri.show(group.options[name])
    end
    local title = #self.groups > 1 and ("group %d, %s: "):format(g, counted(#group.params, "tensor")) or ""
    lines[g] = "\n  " .. title .. table.concat(own, ", ")
  end
  return ("%s, %s in %s%s, %s%s, last lr %s%s"):format(self.name, counted(numbers, "parameter"),
    counted(tensors, "tensor"), (frozen > 0 and (" (%d frozen)"):format(frozen) or "")
      .. (left > 0 and (", %d frozen ones left out"):format(left) or ""), counted(steps, "step"),
    self.skipped > 0 and (" (%d skipped)"):format(self.skipped) or "", peri.show(self.lr), table.concat(lines))
end

--- Every parameter of every group, in order.
--- @return perilune.Tensor[]
function Optimizer:parameters()
  local list = {}
  for _, g in ipairs(self.groups) do table.move(g.params, 1, #g.params, #list + 1, list) end
  return list
end

-- The moments of parameter i, made at its first step; they outlive every scope.
local function slots_of(group, i)
  local state = group.state[i]
  for _, slot in ipairs(group.slots) do
    if not state[slot] then state[slot] = peri.keep(peri.zeros_like(group.params[i])) end
  end
  return state
end

-- The lists of a group all of whose parameters have a gradient of one dtype and have taken as many steps, which stay
-- the same from step to step: the op reads the gradients off the parameters. nil where they have not.
local function whole(group)
  local taken, b = group.steps[1], group._whole
  for i = 2, #group.params do if group.steps[i] ~= taken then return nil end end
  if not b then
    b = { params = group.params, grads = {}, index = {} }
    for _, slot in ipairs(group.slots) do b[slot] = {} end
    for i in ipairs(group.params) do
      local state = slots_of(group, i)
      b.index[i] = i
      for _, slot in ipairs(group.slots) do b[slot][i] = state[slot] end
    end
    group._whole = b
  end
  b.step = taken + 1
  return b
end

-- Lists for the fused op, one for each number of steps taken and dtype: usually just one.
local function batches(group)
  local list, by_key = {}, {}
  for i, p in ipairs(group.params) do
    local grad = p.grad
    if grad then
      local step = group.steps[i] + 1
      local key = step .. p.dtype
      local b = by_key[key]
      if not b then
        b = { step = step, params = {}, grads = {}, index = {} }
        for _, slot in ipairs(group.slots) do b[slot] = {} end
        by_key[key], list[#list + 1] = b, b
      end
      local at, state = #b.params + 1, slots_of(group, i)
      b.params[at], b.grads[at], b.index[at] = p, grad, i
      for _, slot in ipairs(group.slots) do b[slot][at] = state[slot] end
    end
  end
  return list
end

-- "parameter 3 of group 2 (head.weight)".
local function label(self, g, i)
  local text = ("parameter %d"):format(i)
  if #self.groups > 1 then text = text .. (" of group %d"):format(g) end
  local name = self.groups[g].names[i]
  return name and ("%s (%s)"):format(text, name) or text
end

-- Gradients by dtype, and whether every parameter has one; raises for one that does not fit its parameter.
local function gradients(self, who)
  local by_dtype, all = {}, true
  for g, group in ipairs(self.groups) do
    for i, p in ipairs(group.params) do
      local grad = p.grad
      if grad then
        if grad.dtype ~= p.dtype then
          error(("%s: the gradient of %s is %s, the parameter %s"):format(who, label(self, g, i), grad.dtype,
            p.dtype), 3)
        end
        local list = by_dtype[p.dtype] or {}
        by_dtype[p.dtype], list[#list + 1] = list, grad
      else
        all = false
      end
    end
  end
  return by_dtype, all
end

-- A parameter that was put into a module after the optimizer was made would not be moved. Walking the module takes
-- time: once, and when gradients of those that are held are missing.
local function check_held(self, all)
  if all and self._looked then return end
  local name = params.stranger(self._objects, self._held)
  if name then
    options.raise(("step: %s has a gradient and is none of the optimizer's parameters: it came after the optimizer "
      .. "(a layer put in or replaced, net:to(dtype)), which has to be made again"):format(name))
  end
  self._looked = true
end

-- The rates and options are fields that anyone can set.
local function check_fields(self)
  local problem = options.problem("lr", self.lr, self._kind.rules.lr)
  for g, group in ipairs(self.groups) do
    problem = problem or params.problem(self._kind, group.options)
    if problem then
      options.raise(("step: %s%s"):format(problem, #self.groups > 1 and (" (group %d)"):format(g) or ""))
    end
  end
end

local function norm_of(by_dtype)
  local scope <close> = peri.scope() -- luacheck: ignore 211
  if not (by_dtype.f32 and by_dtype.f64) then
    local list = by_dtype.f32 or by_dtype.f64
    return list and peri.global_norm(list):item() or 0
  end
  return math.sqrt(peri.global_norm(by_dtype.f32):item() ^ 2 + peri.global_norm(by_dtype.f64):item() ^ 2)
end

--- Euclidean norm of all gradients together; 0 when there are none.
--- @return number
function Optimizer:norm()
  local by_dtype = gradients(self, "norm")
  return norm_of(by_dtype)
end

local step_rules = {
  lr = options.number(options.none, "[0, inf)", "common rate from now on; left out: the last one"),
  clip = options.number(options.none, "(0, inf]", "largest norm of all gradients together"),
  grad_scale = options.number(1, "(0, inf)", "factor of the gradients, before clip"),
  copies = options.integer(options.none, "[1, inf)", "the parameters are those of so many networks (nn.Copies): clip "
    .. "and nonfinite = \"skip\" hold for each by itself, and grad_norms are theirs"),
  nonfinite = options.choice("skip", { "skip", "error", "apply" },
    "what becomes of a step whose gradients hold NaN or inf: left out and counted, an error, or taken"),
}

-- Clip the gradients of several networks, each by its own norm; one whose gradients are not finite gets none.
local function clip_copies(self, o)
  if o.grad_scale ~= 1 or o.nonfinite ~= "skip" then
    options.raise("step: copies go with neither grad_scale nor another nonfinite than \"skip\"")
  end
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local grads = {}
  for i, p in ipairs(self._params) do
    grads[i] = p.grad
    if not grads[i] then options.raise(("step: parameter %d has no gradient, and there are copies"):format(i)) end
  end
  self.grad_norms = peri.clip_grad_norm_(grads, o.clip or math.huge, o.copies):tolist()
  for _, v in ipairs(self.grad_norms) do
    if v ~= v or v == math.huge then self.skipped = self.skipped + 1 end
  end
  o.clip = nil
end

local function is_finite(v) return v == v and v < math.huge end

--- Move every parameter that has a gradient. A group with a rate of its own keeps its ratio to the common
--- one; where the common rate was 0 when the optimizer was made, there is no ratio and the group keeps its
--- rate. A step whose gradients hold NaN or inf moves nothing unless nonfinite = "apply": it is counted in
--- `skipped`, and `was_skipped` is true until the next one; with or without clip, `grad_norm` tells. A parameter
--- with a gradient that was put into the module after the optimizer was made is an error.
--- @param opts table?
--- @return self
function Optimizer:step(opts)
  local phase <close> = phases.open "optimizer" -- luacheck: ignore 211
  local o = options.fill("step", opts, step_rules)
  local scale = o.grad_scale
  if not self._kind.takes_scale and (o.clip or scale ~= 1) then
    error(("step: %s clips by its own max_grad_norm and takes no clip or grad_scale"):format(self.name), 2)
  end
  local _, even = core._graded(self._params) -- every parameter has a gradient, all of one dtype
  local by_dtype, all
  if not even then by_dtype, all = gradients(self, "step") end
  check_held(self, even or all)
  check_fields(self)
  local scope <close> = not even and peri.scope() or nil -- luacheck: ignore 211
  local guard <close> = peri.no_grad() -- luacheck: ignore 211
  if o.copies then clip_copies(self, o) end
  local norm = (even and core._grad_norm(self._params) or norm_of(by_dtype)) * scale
  local finite = is_finite(norm)
  if not finite and o.nonfinite == "error" then
    error(("step: the norm of the gradients is %s"):format(norm ~= norm and "nan" or "inf"), 2)
  end
  self.lr, self.grad_norm = o.lr or self.lr, norm
  self.was_skipped = not finite and o.nonfinite == "skip"
  if self.was_skipped then
    self.skipped = self.skipped + 1
    return self
  end
  if o.clip and norm > o.clip then scale = scale * o.clip / (norm + 1e-6) end
  for _, group in ipairs(self.groups) do
    local rate, one = group.rate.own or self.lr * group.rate.factor, even and whole(group)
    for _, b in ipairs(one and { one } or batches(group)) do
      self._kind.run(group.options, b, rate, b.step, scale)
      for _, i in ipairs(b.index) do group.steps[i] = b.step end
    end
  end
  return self
end
options.declare(Optimizer.step, {}, step_rules)

--- Forget the gradients of all parameters.
--- @return self
function Optimizer:zero_grad()
  core._drop_gradients(self._params)
  return self
end

-- ---- state ----

-- { group, i, label, name } of every parameter in order; name is nil where another has it too, or it could be a number.
local function entries_of(self)
  local list, count = {}, {}
  for g, group in ipairs(self.groups) do
    for i in ipairs(group.params) do
      local name = group.names[i] or nil
      if name and name:find "^%d+$" then name = nil end
      list[#list + 1] = { group = group, i = i, label = label(self, g, i), name = name }
      if name then count[name] = (count[name] or 0) + 1 end
    end
  end
  for _, e in ipairs(list) do if e.name and count[e.name] > 1 then e.name = nil end end
  return list
end

--- What a checkpoint keeps: tensors by the parameter's name and theirs ("layers.0.weight.m"; "0.m", the place counted
--- from 0, for what has no name of its own), and a plain table.
--- @return table<string, perilune.Tensor>
--- @return table
function Optimizer:state_dict()
  local tensors, steps, sizes, names = {}, {}, {}, {}
  for g, group in ipairs(self.groups) do sizes[g] = #group.params end
  for n, e in ipairs(entries_of(self)) do
    for slot, t in pairs(e.group.state[e.i]) do tensors[(e.name or n - 1) .. "." .. slot] = t end
    steps[n], names[n] = e.group.steps[e.i], e.group.names[e.i] or ""
  end
  return tensors, { name = self.name, lr = self.lr, skipped = self.skipped, groups = sizes, names = names,
    steps = steps }
end

local function is_count(v) return type(v) == "number" and math.tointeger(v) ~= nil and v >= 0 end

-- What does not fit, of the plain table alone.
local function plain_problem(self, plain, count)
  if type(plain) ~= "table" then
    return ("the second argument is a %s, expected the plain table of state_dict()"):format(type(plain))
  end
  local steps = type(plain.steps) == "table" and plain.steps or {}
  if plain.name ~= self.name or #steps ~= count then
    return ("state of %s for %d parameters, expected %s for %d"):format(tostring(plain.name), #steps, self.name, count)
  end
  for n, v in ipairs(steps) do
    if not is_count(v) then return ("the steps of parameter %d are %s"):format(n, tostring(v)) end
  end
  if type(plain.lr) ~= "number" or not (plain.lr >= 0 and plain.lr < math.huge) then
    return ("lr is %s, expected a number in [0, inf)"):format(tostring(plain.lr))
  end
  for _, name in ipairs { "groups", "names" } do -- older states may lack them
    if plain[name] ~= nil and type(plain[name]) ~= "table" then
      return ("%s are a %s, expected a list"):format(name, type(plain[name]))
    end
  end
  if plain.skipped ~= nil and not is_count(plain.skipped) then
    return ("skipped is %s, expected an integer from 0"):format(tostring(plain.skipped))
  end
end

-- The place in a state of each entry: by its name, else its own. Returns nil and why not where there is none.
local function places_in(self, entries, plain)
  local names, place_of, places, used = plain.names or {}, {}, {}, {}
  for n, name in ipairs(names) do
    if name ~= "" then place_of[name] = place_of[name] == nil and n end -- false: of several
  end
  local by_name = true
  for n, e in ipairs(entries) do
    local at = e.name and place_of[e.name] or nil
    by_name = by_name and at ~= nil
    if not at then
      local was, is = names[n] or "", e.group.names[e.i] or ""
      if was ~= is and was ~= "" and is ~= "" then return nil, ("%s was %s"):format(e.label, was) end
      at = n
    end
    if used[at] then return nil, ("%s would take the state of %s"):format(e.label, used[at]) end
    places[n], used[at] = at, e.label
  end
  for g, n in ipairs(not by_name and plain.groups or {}) do
    local here = self.groups[g] and #self.groups[g].params or 0
    if n ~= here then return nil, ("group %d had %s parameters, has %d"):format(g, tostring(n), here) end
  end
  return places
end

-- The key of a moment: by name, or in older states by place.
local function key_in(tensors, e, place, slot)
  local key = e.name and e.name .. "." .. slot
  return key and tensors[key] ~= nil and key or place - 1 .. "." .. slot
end

--- Take the state of an optimizer of the same kind and parameters, which find theirs by name, in whatever order and
--- groups; those without a name by place. What does not fit is named, and then nothing changed.
--- @param tensors table<string, perilune.Tensor>
--- @param plain table
--- @return self
function Optimizer:load_state_dict(tensors, plain)
  if type(tensors) ~= "table" then
    error(("load_state_dict: the tensors are a %s, expected a table"):format(type(tensors)), 2)
  end
  local entries, places = entries_of(self), nil
  local problem = plain_problem(self, plain, #entries)
  if not problem then places, problem = places_in(self, entries, plain) end
  if not places then error("load_state_dict: " .. problem, 2) end
  local problems, known = {}, {}
  local function report(...) problems[#problems + 1] = (...):format(select(2, ...)) end
  for n, e in ipairs(entries) do
    for _, slot in ipairs(plain.steps[places[n]] > 0 and e.group.slots or {}) do
      local key, p = key_in(tensors, e, places[n], slot), e.group.params[e.i]
      local t = tensors[key]
      known[key] = true
      if t == nil then report("missing %s of %s", e.name and e.name .. "." .. slot or key, e.label)
      elseif not peri.is_tensor(t) then report("%s is a %s, expected a tensor", key, type(t))
      elseif table.concat(t.shape, ", ") ~= table.concat(p.shape, ", ") or t.dtype ~= p.dtype then
        report("%s has (%s) %s, %s has (%s) %s", key, table.concat(t.shape, ", "), t.dtype, e.label,
          table.concat(p.shape, ", "), p.dtype)
      end
    end
  end
  for key in pairs(tensors) do if not known[key] then report("unexpected %s", tostring(key)) end end
  if #problems > 0 then
    table.sort(problems)
    error("load_state_dict: " .. table.concat(problems, "; "), 2)
  end
  for n, e in ipairs(entries) do
    local group, i = e.group, e.i
    group.steps[i], group._whole = math.tointeger(plain.steps[places[n]]), nil
    if group.steps[i] == 0 then group.state[i] = {}
    else
      local state = slots_of(group, i)
      for _, slot in ipairs(group.slots) do state[slot]:copy_(tensors[key_in(tensors, e, places[n], slot)]) end
    end
  end
  self.lr, self.skipped, self.was_skipped = plain.lr, math.tointeger(plain.skipped or 0), false
  return self
end

return M
