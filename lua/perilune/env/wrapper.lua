-- wrapper.lua - what wrappers of environments share: a class whose fields are those of the environment inside but for
-- its own, and states that nest.
local options = require "perilune.options"

local M = {}

local Wrapped = {}

-- A class of wrappers: methods in it, fields that are computed in get.
function M.class(kind)
  local C = { kind = kind, get = {} }
  function C.__index(self, key)
    local own = C[key]
    if own == nil then own = Wrapped[key] end
    if own ~= nil then return own end
    if C.get[key] then return C.get[key](self) end
    return rawget(self, "_inner")[key]
  end
  function C:__tostring() return ("%s(%s)"):format(kind, tostring(self._inner)) end
  C.__name = "perilune.env"
  return C
end

function M.wrap(C, env, fields)
  fields._inner, fields._frozen = env, false
  fields._name = ("%s.%d"):format(C.kind, (rawget(env, "_wraps") or 0) + 1)
  fields._wraps = (rawget(env, "_wraps") or 0) + 1
  return setmetatable(fields, C)
end

function M.check_env(who, env)
  if type(env) ~= "table" or type(env.step) ~= "function" then
    options.raise(("%s: %s, expected an environment"):format(who, options.is("env", env)))
  end
end

function Wrapped:reset(opts) return self._inner:reset(opts) end
function Wrapped:step(actions) return self._inner:step(actions) end
function Wrapped:normalizers() return self._inner:normalizers() end

function Wrapped:eval(on)
  self._inner:eval(on)
  self._frozen = on ~= false
  return self
end

-- Tensors and plain values of a wrapper alone; none by default.
function Wrapped:_state() return {}, {} end
function Wrapped:_set_state() end

function Wrapped:state_dict()
  local tensors, inner = self._inner:state_dict()
  local own, values = self:_state()
  for name, t in pairs(own) do tensors[self._name .. "." .. name] = t end
  return tensors, { wrapper = self._name, inner = inner, values = values }
end

function Wrapped:load_state_dict(tensors, state)
  options.argument("load_state_dict", "state", state, "table")
  if state.wrapper ~= self._name then
    options.raise(("load_state_dict: the state is of %s, expected %s around %s"):format(
      tostring(state.wrapper or state.id), self._name, self.id))
  end
  local own, rest, mine = {}, {}, self:_state()
  for name, t in pairs(tensors) do
    local short = name:sub(1, #self._name + 1) == self._name .. "." and name:sub(#self._name + 2)
    if short then own[short] = t else rest[name] = t end
  end
  for name, t in pairs(own) do
    if not mine[name] then options.raise("load_state_dict: unexpected " .. name) end
    if options.shape(t) ~= options.shape(mine[name]) or t.dtype ~= mine[name].dtype then
      options.raise(("load_state_dict: %s is %s of %s, expected %s of %s"):format(name, options.shape(t), t.dtype,
        options.shape(mine[name]), mine[name].dtype))
    end
  end
  for name in pairs(mine) do
    if not own[name] then options.raise("load_state_dict: missing " .. name) end
  end
  self._inner:load_state_dict(rest, state.inner)
  self:_set_state(own, state.values)
  return self
end

--- Named tensors of what the wrappers have learnt.
function Wrapped:statistics()
  local out = self._inner:statistics()
  for name, t in pairs((self:_state())) do out[self._name .. "." .. name] = t end
  return out
end

return M
