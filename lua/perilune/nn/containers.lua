-- containers.lua - modules that hold others: one after the other, as a list, by name.

local options = require "perilune.options"
local Module = require "perilune.nn.module"
local walk = require "perilune.nn.walk"

local class, declare = Module.class, options.declare

local M = {}

-- check(entry, i) for the entries 1 .. #list, of which none may be left out: assigning to list[i] calls nothing, so
-- that they are looked at whenever the modules are.
local function check_entries(list, what, check)
  local most = 0
  for _, name in ipairs(rawget(list, "_names")) do
    if math.type(name) == "integer" and rawget(list, name) ~= nil then most = math.max(most, name) end
  end
  for i = 1, most do
    if rawget(list, i) == nil then
      walk.raise(("%s: %s %d is missing, there is one at %d"):format(getmetatable(list).__name, what, i, most))
    end
    check(list[i], i)
  end
  return most
end

-- ---- Sequential ----

local function check_part(part, i, level)
  if type(part) ~= "function" and not Module.is_module(part) then
    options.raise(("Sequential: part %d is a %s, expected a module or a function"):format(i, type(part)),
      (level or 1) + 1)
  end
end

--- One after the other; plain functions may stand between modules. #s counts, s[i] is a part. The first
--- part gets all arguments, each other one the result before it and the arguments after the first.
M.Sequential = class("Sequential", function(self, ...)
  for i = 1, select("#", ...) do
    local part = select(i, ...)
    check_part(part, i, 3)
    self[i] = part
  end
end)
declare(M.Sequential, { "..." }, {})

--- Put a part at the end.
--- @param part perilune.nn.Module|function
--- @return self
function M.Sequential:add(part)
  check_part(part, #self + 1, 2)
  self[#self + 1] = part
  return self
end

function M.Sequential:_check()
  return check_entries(self, "part", check_part)
end

function M.Sequential:forward(x, ...)
  for i = 1, self:_check() do
    x = self[i](x, ...)
  end
  return x
end

-- ---- ModuleList ----

local function check_module(who, v, level)
  if not Module.is_module(v) then
    options.raise(("%s is a %s, expected a module"):format(who, type(v)), level + 1)
  end
end

--- A list of modules, which its owner calls as it likes: list[i], #list, for i, m in ipairs(list).
--- A plain table in a field is looked into as well; this one checks what it is given.
---   self.layers = nn.ModuleList()
---   for _ = 1, n do self.layers:append(nn.Linear(8, 8)) end
--- @param modules perilune.nn.Module[]?
M.ModuleList = class("ModuleList", function(self, modules, ...)
  if modules == nil then return end
  local list = modules
  if Module.is_module(modules) or select("#", ...) > 0 then list = { modules, ... } end
  if type(list) ~= "table" then error(("ModuleList: a %s, expected a list of modules"):format(type(list)), 3) end
  for key in pairs(list) do
    if math.type(key) ~= "integer" then
      error(("ModuleList: the key %q, expected a list of modules; nn.ModuleDict has them by name")
        :format(tostring(key)), 3)
    end
  end
  for i = 1, #list do
    check_module(("ModuleList: entry %d"):format(i), list[i], 3)
    self[i] = list[i]
  end
end)
declare(M.ModuleList, { "modules" }, {})

function M.ModuleList:_check()
  check_entries(self, "entry", function(v, i) check_module(("ModuleList: entry %d"):format(i), v, 2) end)
end

--- Put a module at the end.
--- @param module perilune.nn.Module
--- @return self
function M.ModuleList:append(module)
  check_module(("append: entry %d"):format(#self + 1), module, 2)
  self[#self + 1] = module
  return self
end

--- Put all modules of a list at the end.
--- @param modules perilune.nn.Module[]
--- @return self
function M.ModuleList:extend(modules)
  if type(modules) ~= "table" then error(("extend: a %s, expected a list of modules"):format(type(modules)), 2) end
  for i = 1, #modules do check_module(("extend: entry %d"):format(i), modules[i], 2) end
  for i = 1, #modules do self[#self + 1] = modules[i] end
  return self
end

local function check_place(who, i, most, level)
  if math.type(i) ~= "integer" or i < 1 or i > most then
    error(("%s: place %s, expected an integer from 1 to %d"):format(who, tostring(i), most), level + 1)
  end
end

--- Put a module before entry i; #list + 1 is the end.
--- @param i integer
--- @param module perilune.nn.Module
--- @return self
function M.ModuleList:insert(i, module)
  check_place("insert", i, #self + 1, 2)
  check_module("insert: the entry", module, 2)
  for k = #self, i, -1 do self[k + 1] = self[k] end
  self[i] = module
  return self
end

--- Take entry i out; the last one without i.
--- @param i integer?
--- @return perilune.nn.Module
function M.ModuleList:remove(i)
  if i == nil then i = #self end
  check_place("remove", i, #self, 2)
  local module, n = self[i], #self
  for k = i, n - 1 do self[k] = self[k + 1] end
  self[n] = nil
  return module
end

--- for i, module in list:iterate() do: as ipairs.
function M.ModuleList:iterate() return ipairs(self) end

function M.ModuleList:forward() -- luacheck: ignore 212
  options.raise("a ModuleList has no order of its own to be called in: for _, m in ipairs(list) do x = m(x) end, "
    .. "or nn.Sequential")
end

-- ---- ModuleDict ----

--- Modules by name: dict.name, dict[name] = module, for name, m in dict:items() in the order in which
--- they were put in.
---   self.heads = nn.ModuleDict { policy = nn.Linear(8, 4), value = nn.Linear(8, 1) }
--- @param modules table<string, perilune.nn.Module>?  in the order of their names
M.ModuleDict = class("ModuleDict", function(self, modules)
  if modules == nil then return end
  if type(modules) ~= "table" or getmetatable(modules) ~= nil then
    error(("ModuleDict: a %s, expected a table of modules by name"):format(type(modules)), 3)
  end
  local names = {}
  for name in pairs(modules) do
    if type(name) ~= "string" then
      error(("ModuleDict: the key %s is a %s, expected a string"):format(tostring(name), type(name)), 3)
    end
    names[#names + 1] = name
  end
  table.sort(names)
  for _, name in ipairs(names) do self:set(name, modules[name]) end
end)

local Dict = declare(M.ModuleDict, { "modules" }, {})

-- What is wrong with a name for a module, or nil.
local function problem_of(name)
  if type(name) ~= "string" or name == "" or name:find "^_" or name:find(".", 1, true) then
    return ("the key is %s, expected a string without dots that does not begin with an underscore")
      :format(tostring(name))
  end
  if Dict[name] ~= nil or name == "training" then return ("%q is the name of a method or a field"):format(name) end
end

function Dict:_check()
  for name, v in self:items() do check_module("ModuleDict: " .. name, v, 2) end
end

Dict.__newindex = function(self, name, module)
  local problem = problem_of(name)
  if problem then walk.raise("ModuleDict: " .. problem) end
  if module ~= nil then check_module("ModuleDict: " .. name, module, 2) end
  walk.track(self, name, module)
end

--- Put a module under a name, in place of the one that is there.
--- @param name string
--- @param module perilune.nn.Module
--- @return self
function Dict:set(name, module)
  local problem = problem_of(name)
  if problem then walk.raise("ModuleDict: " .. problem) end
  check_module("ModuleDict: " .. name, module, 2)
  self[name] = module
  return self
end

--- Take a module out.
--- @param name string
--- @return perilune.nn.Module
function Dict:remove(name)
  local module = rawget(self, name)
  if module == nil or not rawget(self, "_known")[name] then
    error("ModuleDict: " .. options.unknown("module", name, self:keys()), 2)
  end
  rawset(self, name, nil)
  return module
end

--- Names in the order in which they were put in.
--- @return string[]
function Dict:keys()
  local list = {}
  for _, name in ipairs(rawget(self, "_names")) do
    if rawget(self, name) ~= nil then list[#list + 1] = name end
  end
  return list
end

--- for name, module in dict:items() do; pairs(dict) does the same.
function Dict:items()
  local keys, i = self:keys(), 0
  return function()
    i = i + 1
    if keys[i] ~= nil then return keys[i], rawget(self, keys[i]) end
  end
end

Dict.__pairs = function(self) return self:items() end
Dict.__len = function(self) return #self:keys() end

function Dict:forward() -- luacheck: ignore 212
  options.raise "a ModuleDict cannot be called: call one of its modules, dict.name(x)"
end

return M
