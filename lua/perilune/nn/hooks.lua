-- hooks.lua - functions that see what goes into a module and what comes out of it, and may change it: features for
-- distillation, fake quantisation, calibration. A module with hooks has a forward of its own that runs them around the
-- class's, so that one without pays nothing, whichever way it is called.

local options = require "perilune.options"

--- @class perilune.nn.Module
local Module = {}

-- Put what a hook returned in place of the first values of a list; nil leaves one as it is.
local function take(list, ...)
  for i = 1, select("#", ...) do
    local value = select(i, ...)
    if value ~= nil then
      list[i] = value
      if i > list.n then list.n = i end
    end
  end
end

-- forward of a module that has hooks.
local function hooked(self, ...)
  local hooks, inputs = rawget(self, "_hooks"), table.pack(...)
  for _, hook in ipairs(hooks.before) do take(inputs, hook.fn(self, table.unpack(inputs, 1, inputs.n))) end
  local forward = hooks.own or getmetatable(self).forward
  local outputs = table.pack(forward(self, table.unpack(inputs, 1, inputs.n)))
  for _, hook in ipairs(hooks.after) do take(outputs, hook.fn(self, inputs, table.unpack(outputs, 1, outputs.n))) end
  return table.unpack(outputs, 1, outputs.n)
end

-- The hooks of a module, whose own forward, where a script gave it one, is remembered.
local function hooks_of(self)
  local hooks = rawget(self, "_hooks")
  if not hooks then
    hooks = { before = {}, after = {} }
    rawset(self, "_hooks", hooks)
  end
  local forward = rawget(self, "forward")
  if forward ~= hooked then hooks.own = forward end
  rawset(self, "forward", hooked)
  return hooks
end

--- What hook and hook_before return: handle:remove() takes the hook off again, as does leaving the block of a
--- local handle <close>.
--- @class perilune.nn.Hook
local Hook = { __name = "hook" }
Hook.__index = Hook

--- Take the hook off; a second time does nothing.
function Hook:remove()
  local module = self._module
  if not module then return end
  self._module = nil
  local hooks, left = hooks_of(module), {}
  for _, hook in ipairs(hooks[self._when]) do -- a list that is being run stays as it is
    if hook ~= self then left[#left + 1] = hook end
  end
  hooks[self._when] = left
  if #hooks.before + #hooks.after == 0 then
    rawset(module, "forward", hooks.own)
    rawset(module, "_hooks", nil)
  end
end

Hook.__close = Hook.remove

function Hook:__tostring()
  return ("hook %s %s%s"):format(self._when, self._name, self._module and "" or ", removed")
end

local function add(self, who, when, fn)
  options.argument(who, "fn", fn, "callable")
  local hooks = hooks_of(self)
  local hook = setmetatable({ fn = fn, _module = self, _when = when, _name = getmetatable(self).__name }, Hook)
  local list = table.move(hooks[when], 1, #hooks[when], 1, {})
  list[#list + 1] = hook
  hooks[when] = list
  return hook
end

--- Call fn(module, inputs, ...) behind every forward of this module, net(x) or net:forward(x): inputs is a list of what
--- forward was given, with its length n, the rest is what it returned. What fn returns takes the place of the first
--- results; nothing, or nil, leaves them. Hooks run in the order in which they came. Under checkpointing a published
--- model's blocks are hooked once; what is inside of one runs, hooks and all, once more in the backward pass, and what
--- such a hook caught the first time has no gradient.
--- @param fn fun(module: perilune.nn.Module, inputs: table, ...: any): any
--- @return perilune.nn.Hook handle  handle:remove() takes it off
function Module:hook(fn) return add(self, "hook", "after", fn) end

--- Call fn(module, ...) before every forward of this module, with what it is given. What fn returns takes the place of
--- the first arguments; nothing, or nil, leaves them.
--- @param fn fun(module: perilune.nn.Module, ...: any): any
--- @return perilune.nn.Hook handle  handle:remove() takes it off
function Module:hook_before(fn) return add(self, "hook_before", "before", fn) end

-- ---- what modules gave -----------------------------------------------------------------------------

--- What record returns: record.outputs[path] is the first result of the latest forward of the module there.
--- @class perilune.nn.Record
--- @field outputs table<string, any>
local Record = { __name = "record" }
Record.__index = Record

--- Forget what was recorded.
--- @return self
function Record:clear()
  for path in pairs(self.outputs) do self.outputs[path] = nil end
  return self
end

--- Take the hooks off and forget what was recorded; a second time does nothing.
function Record:remove()
  for _, hook in ipairs(self._hooks) do hook:remove() end
  self:clear()
end

Record.__close = Record.remove

--- Keep what modules below give, by hooks: features for distillation, probes. record.outputs[path] is the first result
--- of the latest forward of the module at the path (see get), as part of its graph; record:clear() forgets it,
--- record:remove() takes the hooks off, as does leaving the block of a local record <close>.
---   local record <close> = net:record { "0", "2" }
---   net(x)
---   local hidden = record.outputs["0"]
--- @param paths string[]  as named_modules has them
--- @return perilune.nn.Record
function Module:record(paths)
  options.argument("record", "paths", paths, "table")
  local modules, record = {}, setmetatable({ outputs = {}, _hooks = {} }, Record)
  for i, path in ipairs(paths) do
    options.argument("record", ("path %d"):format(i), path, "string")
    modules[i] = self:get(path)
    if type(modules[i]) ~= "table" then options.raise(("record: %s is a tensor, expected a module"):format(path)) end
  end
  if #modules == 0 then options.raise "record: there are no paths" end
  for i, path in ipairs(paths) do
    record._hooks[i] = modules[i]:hook(function (_, _, output) record.outputs[path] = output end)
  end
  return record
end

return Module
