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
  local text = path:gsub("%[(%d+)%]", function (n) return ("." .. math.tointeger(n) - 1) end)
  return (text:gsub("^%.", ""))
end

-- Path -> { module, owner, key } of every module, second paths of one among them; the paths in order.
local function modules_of(self)
  local known, order = {}, {}
  local function note(path, module, owner, key)
    if not walk.is_module(module) or known[path] then return end
    known[path], order[#order + 1] = { module, owner, key }, path
  end
  walk.walk(self, { module = note, again = function(path, module, _, owner, key) note(path, module, owner, key) end })
  return known, order
end

local function unknown(who, what, path, names)
  local near = options.nearest(path, names)
  if not near then -- what there is beside it
    local above, list = path:match "^(.*)%.[^.]*$", {}
    for _, name in ipairs(names) do
      if name ~= "" and name:match "^(.*)%.[^.]*$" == above then list[#list + 1] = name end
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
  local known, names = modules_of(self)
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

--- Put another module in the place of one, also inside of a published model: a linear layer by one with fewer bits or
--- an adapter of your own. It is called as the old one was (in a published model with x, and whether it decodes), takes
--- over its mode, and has to take and give as many numbers, where both say so. Make the optimizer after this.
--- @param path string  as for get
--- @param module perilune.nn.Module
--- @return perilune.nn.Module old  what stood there
function Module:replace(path, module)
  path = normal("replace", path)
  if not walk.is_module(module) then
    error(("replace: %s is a %s, expected a module"):format(path, type(module)), 2)
  end
  local known, names = modules_of(self)
  if path == "" then error("replace: a module cannot replace itself: give the path of one below", 2) end
  if not known[path] then unknown("replace", "module", path, names) end
  local old, owner, key = table.unpack(known[path], 1, 3)
  local problem = not rawequal(old, module) and misfit(old, module)
  if problem then
    options.raise(("replace: %s is a %s: %s"):format(path, getmetatable(old).__name, problem))
  end
  module:train(old.training)
  rawset(owner, key, module)
  return old
end

return Module
