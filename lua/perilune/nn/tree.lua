-- tree.lua - modules by their paths: reading one, and putting another in its place.

local options = require "perilune.options"
local walk = require "perilune.nn.walk"

--- @class perilune.nn.Module
local Module = {}

-- Paths count from 0, as names in files do; what print(net) shows is Lua's way there: layers[1].ff is layers.0.ff.
local function normal(who, path)
  if type(path) ~= "string" then
    error(("%s: the path is a %s, expected a string such as \"layers.0\""):format(who, type(path)), 3)
  end
  local text = path:gsub("%[(%d+)%]", function (n)
    local i = math.tointeger(tonumber(n)) -- nil of more digits than an integer has
    return i and i > 0 and "." .. i - 1
  end)
  return (text:gsub("^%.", ""))
end

-- Path -> { module, owner, key } of every module, second paths of one among them; the paths in order.
local function modules_of(who, self)
  local known, order = {}, {}
  local function note(path, module, owner, key)
    if not walk.is_module(module) then return end
    local other = known[path]
    if other and not rawequal(other[1], module) then walk.collides(who, "modules", path) end
    known[path], order[#order + 1] = other or { module, owner, key }, not other and path or nil
  end
  walk.walk(self, { module = note, again = function(path, module, _, owner, key) note(path, module, owner, key) end })
  return known, order
end

local function unknown(who, what, path, names)
  table.remove(names, 1) -- the whole, whose path is ""
  local near = options.nearest(path, names)
  if not near then -- what there is beside it
    local above, list = path:match "^(.*)%.[^.]*$", {}
    for _, name in ipairs(names) do
      if name:match "^(.*)%.[^.]*$" == above then list[#list + 1] = name end
    end
    if #list == 0 then list = names end
    near = table.concat(list, ", ", 1, math.min(#list, 12)) .. (#list > 12 and ", ..." or "")
    options.raise(("%s: there is no %s %q; there are %s"):format(who, what, path, near))
  end
  options.raise(("%s: there is no %s %q; did you mean %q?"):format(who, what, path, near))
end

--- The module or tensor at a path, as named_modules and named_parameters give it ("layers.0.ff") or as print shows it
--- ("layers[1].ff"). Raises when there is none.
--- @param path string  "" is this module
--- @return perilune.nn.Module|perilune.Tensor
function Module:get(path)
  path = normal("get", path)
  local known, names = modules_of("get", self)
  if known[path] then return known[path][1] end
  for _, place in ipairs(walk.places(self)) do
    if place.path == path then return place.tensor end
    names[#names + 1] = place.path
  end
  return unknown("get", "module or tensor", path, names)
end

-- "takes 8 numbers and gives 16"
local function widths_text(takes, gives)
  local parts = {}
  if takes then parts[1] = ("takes %d numbers"):format(takes) end
  if gives then parts[#parts + 1] = ("gives %d"):format(gives) end
  return table.concat(parts, " and ")
end

-- Why a module cannot stand where another does, or nil. Classes know how many numbers they take and give (_widths), and
-- may have more to say (_refuses).
local function misfit(old, new)
  local takes, gives = nil, nil
  if old._widths then takes, gives = old:_widths() end
  local takes_new, gives_new = nil, nil
  if new._widths then takes_new, gives_new = new:_widths() end
  if takes and takes_new and takes ~= takes_new or gives and gives_new and gives ~= gives_new then
    return ("it %s, the new %s %s"):format(widths_text(takes, gives), getmetatable(new).__name,
      widths_text(takes_new, gives_new))
  end
  return old._refuses and old:_refuses(new)
end

-- Module -> path, of all that are reached from one; and the same as named_modules has it.
local function paths_of(self)
  local paths, list = {}, self:named_modules()
  for _, entry in ipairs(list) do paths[entry[2]] = entry[1] end
  return paths, list
end

-- What a replacement takes away from others: why that cannot be, or nil and the references that go over to the new
-- module, { module, key } of each. A module says what it must not be taken from (_held), a class of a reference that it
-- "follows" the tensor `weight` of what stands there.
local function loss(before, self, old, new)
  local was, now, list = {}, paths_of(self)
  for _, entry in ipairs(before) do
    local module = entry[2]
    if not now[module] then
      was[module] = true
      local problem = module._held and module:_held()
      if problem then return (module == old and "" or entry[1] .. " in it: ") .. problem end
    end
  end
  local following = {}
  for _, entry in ipairs(list) do
    for key, how in pairs(getmetatable(entry[2]).references) do
      local named = rawget(entry[2], key)
      if named ~= nil and was[named] then
        if how ~= "follows" or named ~= old or not walk.is_tensor(rawget(new, "weight")) then
          return ("%s, a %s, reads it as its %s"):format(entry[1], getmetatable(entry[2]).__name, key)
        end
        following[#following + 1] = { entry[2], key }
      end
    end
  end
  return nil, following
end

--- Put another module in the place of one, also inside of a published model: a linear layer by one with fewer bits or
--- an adapter of your own. It is called as the old one was (in a published model with x, and whether it decodes), takes
--- over its mode, and has to take and give as many numbers, where both say so. A head that is tied to a table of
--- embeddings follows when another table is put there, and an adapter on what goes has to come off before; neither is
--- touched by a module that holds the old one. Make the optimizer after this.
--- @param path string  as for get
--- @param module perilune.nn.Module
--- @return perilune.nn.Module old  what stood there
function Module:replace(path, module)
  path = normal("replace", path)
  if not walk.is_module(module) then
    error(("replace: %s is a %s, expected a module"):format(path, type(module)), 2)
  end
  local known, names = modules_of("replace", self)
  if path == "" then error("replace: a module cannot replace itself: give the path of one below", 2) end
  if not known[path] then unknown("replace", "module", path, names) end
  local old, owner, key = table.unpack(known[path], 1, 3)
  if rawequal(old, module) then return old end
  local before, problem, following = self:named_modules(), misfit(old, module), nil
  if not problem then
    module:train(old.training)
    rawset(owner, key, module)
    problem, following = loss(before, self, old, module)
    if problem then rawset(owner, key, old) end
  end
  if problem then
    options.raise(("replace: %s is a %s: %s"):format(path, getmetatable(old).__name, problem))
  end
  for _, reference in ipairs(following) do rawset(reference[1], reference[2], module) end
  return old
end

return Module
