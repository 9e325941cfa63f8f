-- copy.lua - a module once more, with tensors of its own. What the walk reaches is copied; fields that are used and not
-- owned are shared, or name the copy of what they named where that is copied, too. Hooks stay where they are.

local peri = require "perilune"
local options = require "perilune.options"
local walk = require "perilune.nn.walk"

--- @class perilune.nn.Module
local Module = {}

local function is_private(name) return type(name) == "string" and name:byte(1) == 95 end

-- A tensor's copy; nil when whoever made it has let go of it, as with what a private field remembers. Nothing writes to
-- quantised and packed ones.
local function clone(t)
  local ok, made = pcall(function ()
    return (t.packed or t.dtype:find "^q%d") and t or peri.keep(t:detach():clone())
  end)
  return ok and made or nil
end

local fill

-- The copy of a value in a field. Modules that a private field names stay who they are, unless they are copied anyway.
local function copied(job, value, private)
  local kind = type(value)
  if kind ~= "table" and not walk.is_tensor(value) then return value end
  local made = job.made[value]
  if made then return made end
  if kind == "userdata" then
    made = clone(value)
    if not made then return nil end
    if walk.is_parameter(value) or job.parameters[value] then
      if not rawequal(made, value) then walk.note_parameter(made) end
      if job.trained then made:requires_grad_(value.requires_grad) end
    end
    job.made[value] = made
    return made
  end
  local module = walk.is_module(value)
  if module and private and not job.owned[value] or not module and getmetatable(value) ~= nil then return value end
  made = setmetatable({}, getmetatable(value))
  job.made[value] = made
  fill(job, value, made, private)
  return made
end

function fill(job, from, to, private)
  local module = walk.is_module(from)
  local references, hooks = module and getmetatable(from).references, module and rawget(from, "_hooks")
  for key, value in next, from do
    local reference = references and references[key]
    if hooks and key == "forward" then value = hooks.own
    elseif reference == "dropped" or key == "_hooks" and module then value = nil
    elseif reference then job.later[#job.later + 1] = { to, key, value }
    else value = copied(job, value, not module and private or is_private(key)) end
    if value ~= nil then rawset(to, key, value) end
  end
end

local copy_rules = { trained = options.boolean(false,
  "in the mode of this one, and with the same parameters taking gradients; false: in evaluation mode, frozen") }

--- The same module with tensors of its own: a reference policy, a target network. Tied tensors are tied in the
--- copy; quantised and packed ones, which nothing writes to, are shared, as are objects of other classes in its
--- fields (caches, tokenizers). A published model is copied without the adapters that were put on it, unless they
--- stand in the module that is copied. Hooks are not copied. A copy made inside of a scope stays. It collects no
--- gradients, unless trained is set: unfreeze() lets it.
--- @param opts table?
--- @return self
function Module:copy(opts)
  local o = options.fill("copy", opts, copy_rules)
  local problem = walk.counted_twice { { "this module", self } }
  if problem then options.raise("copy: " .. problem:gsub("this module%.", "")) end
  walk.check_leaving(self)
  local _ <close> = peri.no_grad()
  local job = { made = {}, owned = {}, later = {}, parameters = {}, trained = o.trained }
  for _, module in ipairs(self:modules()) do job.owned[module] = true end
  for _, p in ipairs(self:parameters()) do job.parameters[p] = true end
  local made = copied(job, self, false)
  for _, entry in ipairs(job.later) do rawset(entry[1], entry[2], job.made[entry[3]] or entry[3]) end
  for from in pairs(job.owned) do
    local after = walk.method(from, "_copied")
    if after then after(job.made[from], from, job.made) end
  end
  if not o.trained then made:eval() end
  return made
end
options.declare(Module.copy, {}, copy_rules)

return Module
