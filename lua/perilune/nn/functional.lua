-- functional.lua - a module run with other tensors in the places of its own, for one call: what depends on weights as a
-- function does, such as a loss behind a step of training that is itself differentiated (optim.adapt). The tensors may
-- be results of operations, and gradients go on through them. Nothing is copied, and the module's own are back in their
-- places whatever happens.

local peri = require "perilune"
local derived = require "perilune.nn.derived"
local copies = require "perilune.nn.copies"
local options = require "perilune.options"
local walk = require "perilune.nn.walk"

local M = {}

-- Owners of tensors that have a leading dim over networks, of any size; nil where there are none.
local function leading_owners(who, module)
  local owners, any = {}, false
  for _, m in ipairs(module:modules()) do
    if rawget(m, "_checkpointing") and peri.grad_enabled() then
      options.raise(who .. ": checkpointing is on, and a block that is computed again behind the call finds the "
        .. "module's own tensors: model:checkpointing(false)")
    end
    if getmetatable(m) == copies.Copies then
      for _, below in ipairs(m:modules()) do owners[below], any = true, true end
    end
  end
  return any and owners or nil
end

-- What a module holds: list of { path, tensor, kind, places }, a tied tensor once; by path, every path of it.
local function held(module)
  local list, by_path, by_tensor = {}, {}, {}
  for _, place in ipairs(walk.places(module)) do
    local entry = by_tensor[place.tensor]
    if not entry then
      entry = { path = place.path, tensor = place.tensor, kind = place.kind, places = {} }
      by_tensor[place.tensor], list[#list + 1] = entry, entry
    end
    entry.places[#entry.places + 1] = place
    local other = by_path[place.path]
    if other and other ~= entry then walk.collides("functional_call", "tensors", place.path) end
    by_path[place.path] = entry
  end
  return list, by_path
end

local function check_fits(who, entry, t, owners)
  local old = entry.tensor
  options.argument(who, entry.path, t, "tensor")
  if old.packed or old.dtype:find "^q%d" then
    options.raise(("%s: %s is %s, and what is written in that form has no stand-in"):format(who, entry.path,
      old.packed and "packed" or old.dtype))
  end
  local want, have = old.shape, t.shape
  if owners and owners[entry.places[1].owner] and #have == #want then want[1] = have[1] end
  if t.dtype ~= old.dtype or options.shape(have) ~= options.shape(want) then
    options.raise(("%s: %s is %s %s, expected %s %s"):format(who, entry.path, t.dtype, options.shape(have), old.dtype,
      options.shape(want)))
  end
end

-- { { entry, tensor }, ... } of what a caller gave.
local function pairs_of(who, module, tensors)
  options.argument(who, "module", module, "module")
  options.argument(who, "tensors", tensors, "table")
  local list, by_path = held(module)
  local owners, out, of = leading_owners(who, module), {}, {}
  local function put(entry, t)
    check_fits(who, entry, t, owners)
    if of[entry] and not rawequal(of[entry], t) then
      options.raise(("%s: %s stands in several places, and is given two tensors"):format(who, entry.path))
    end
    if not of[entry] then out[#out + 1] = { entry, t } end
    of[entry] = t
  end
  if tensors[1] ~= nil then
    local n = 0
    for _, entry in ipairs(list) do
      if entry.kind == "parameter" then
        n = n + 1
        if tensors[n] ~= nil then put(entry, tensors[n]) end
      end
    end
    if n ~= #tensors then
      options.raise(("%s: %d tensors for %d parameters: a list has one for each of module:parameters()"):format(who,
        #tensors, n))
    end
  end
  for key, t in pairs(tensors) do
    if math.type(key) ~= "integer" or key < 1 or key > #tensors then
      local entry = by_path[key]
      if not entry then
        local names = {}
        for i, e in ipairs(list) do names[i] = e.path end
        options.raise(("%s: %s"):format(who, options.unknown("tensor", key, names)))
      end
      put(entry, t)
    end
  end
  return out
end

local Swap = {}
Swap.__index = Swap

function Swap:__close()
  for _, pair in ipairs(self) do
    for _, place in ipairs(pair[1].places) do rawset(place.owner, place.key, pair[1].tensor) end
  end
end

local function swapped(who, module, tensors)
  if derived.is_held() then
    options.raise(who .. ": an update of several passes is in progress, which holds weights made from the module's own")
  end
  local list = pairs_of(who, module, tensors)
  for _, pair in ipairs(list) do
    if pair[1].kind == "parameter" then walk.note_parameter(pair[2]) end
    for _, place in ipairs(pair[1].places) do rawset(place.owner, place.key, pair[2]) end
  end
  return setmetatable(list, Swap)
end

--- Call a module with other tensors in the places of its own, as torch.func.functional_call does.
---
---     local net = nn.MLP { 1, 40, 1 }
---     local loss = net(x):sub(y):square():mean()
---     local grads, fast = peri.grad(loss, net:parameters(), { create_graph = true }), {}
---     for i, p in ipairs(net:parameters()) do fast[i] = p - grads[i] * 0.01 end
---     nn.functional_call(net, fast, x):sub(y):square():mean():backward() -- through the step, into net's parameters
---
--- Tensors have the dtypes and shapes of those that they stand for; below nn.Copies the number of networks may be
--- another. A tied one stands in all places of its tensor. What is not named stays. Buffers that the call moves, as
--- running statistics do, are the given ones where they are named. A model under checkpointing() is refused: its blocks
--- run again later.
--- @param module perilune.nn.Module
--- @param tensors table  a list, one for each of module:parameters(), or by path, parameters and buffers
--- @param ... any  what the module takes
--- @return any ...  what the module gives
function M.functional_call(module, tensors, ...)
  local swap <close> = swapped("functional_call", module, tensors) -- luacheck: ignore 211
  return module(...)
end
options.declare(M.functional_call, { "module", "tensors" }, {})

--- Call any function while other tensors stand in a module: a loss that uses more of it than forward, such as
--- net:policy(obs). Inside, module:parameters() are those that stand there. See functional_call.
--- @param module perilune.nn.Module
--- @param tensors table  a list, one for each of module:parameters(), or by path, parameters and buffers
--- @param fn fun(...): any
--- @param ... any  arguments of fn
--- @return any ...  what fn gives
function M.with_tensors(module, tensors, fn, ...)
  options.argument("with_tensors", "fn", fn, "callable")
  local swap <close> = swapped("with_tensors", module, tensors) -- luacheck: ignore 211
  return fn(...)
end
options.declare(M.with_tensors, { "module", "tensors", "fn" }, {})

return M
