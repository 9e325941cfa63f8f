-- flat.lua - parameters as one vector: what line searches, conjugate gradients and evolution work on.

local peri = require "perilune"
local options = require "perilune.options"
local params = require "perilune.optim.params"

local M = {}

--- The parameters that take gradients, { tensor, path or nil } each, in the order of module:parameters() or of the
--- list; frozen ones are left out. They are of one dtype.
--- @param who string
--- @param given any
--- @return table[] entries
--- @return integer count  of their elements
function M.entries(who, given)
  local list, count = {}, 0
  for _, e in ipairs(params.named(who, given)) do
    if e[1].requires_grad then
      list[#list + 1], count = e, count + e[1]:numel()
      if e[1].dtype ~= list[1][1].dtype then
        options.raise(("%s: %s is of dtype %s, those before it %s"):format(who, M.name_of(e, #list), e[1].dtype,
          list[1][1].dtype))
      end
    end
  end
  if #list == 0 then options.raise(who .. ": no parameter takes gradients") end
  return list, count
end

--- What messages call the i-th of them.
function M.name_of(entry, i) return entry[2] and ("parameter %s"):format(entry[2]) or ("parameter %d"):format(i) end

-- Tensors, each as it is asked for, joined into one vector.
local function joined(entries, get)
  local rows = {}
  for i, e in ipairs(entries) do rows[i] = get(e[1], i):reshape { -1 } end
  return #rows == 1 and rows[1] or peri.cat(rows)
end
M.joined = joined

--- A vector of the parameters' elements, or one tensor for each parameter, as a vector. Its elements are checked to be
--- as many.
--- @param who string
--- @param name string
--- @param v any  (n), or a list
--- @param entries table[]
--- @param count integer
--- @return perilune.Tensor  (n)
function M.vector(who, name, v, entries, count)
  if type(v) == "table" then
    if #v ~= #entries then
      options.raise(("%s: %s has %d tensors, expected %d, one for each parameter that takes gradients"):format(who,
        name, #v, #entries))
    end
    for i, e in ipairs(entries) do
      local part = ("%s for %s"):format(name, M.name_of(e, i))
      options.argument(who, part, v[i], "tensor")
      if options.shape(v[i]) ~= options.shape(e[1]) then
        options.raise(("%s: %s has shape %s, expected %s"):format(who, part, options.shape(v[i]), options.shape(e[1])))
      end
    end
    return joined(entries, function(_, i) return v[i] end)
  end
  options.argument(who, name, v, "tensor")
  if v.ndim ~= 1 or v:numel() ~= count then
    options.raise(("%s: %s has shape %s, expected (%d), as many as the parameters have elements"):format(who, name,
      options.shape(v), count))
  end
  return v
end

-- Views of a vector in the shapes of the parameters.
local function views(v, entries)
  local list, at = {}, 1
  for i, e in ipairs(entries) do
    local n = e[1]:numel()
    list[i] = v:narrow(1, at, n):reshape(e[1].shape)
    at = at + n
  end
  return list
end
M.views = views

--- Parameters as one vector, a copy: one behind the other in the order of module:parameters() or of the list, each row
--- by row. Frozen parameters are left out, here and in the other functions of vectors.
---   local theta = optim.flatten(net)
---   optim.assign_(net, theta + step)
--- @param parameters any  a module, named parameters, or a list of these and of tensors; of one dtype
--- @return perilune.Tensor  (n)
function M.flatten(parameters)
  local entries = M.entries("flatten", parameters)
  local _ <close> = peri.no_grad()
  return joined(entries, function(p) return p end):clone()
end

--- The gradients of parameters as one vector, a copy in the order of flatten; 0 where there is none.
--- @param parameters any  a module, named parameters, or a list of these and of tensors; of one dtype
--- @return perilune.Tensor  (n)
function M.flatten_grads(parameters)
  local entries = M.entries("flatten_grads", parameters)
  local _ <close> = peri.no_grad()
  return joined(entries, function(p) return p.grad or peri.zeros_like(p) end):clone()
end

--- A vector as a list of views in the shapes of the parameters, in the order of flatten.
--- @param vector perilune.Tensor  (n)
--- @param parameters any  a module, named parameters, or a list of these and of tensors; of one dtype
--- @return perilune.Tensor[]
function M.unflatten(vector, parameters)
  local entries, count = M.entries("unflatten", parameters)
  return views(M.vector("unflatten", "vector", vector, entries, count), entries)
end

--- Write a vector, in the order of flatten, into the parameters.
--- @param parameters any  a module, named parameters, or a list of these and of tensors; of one dtype
--- @param vector perilune.Tensor  (n), or a list of one tensor for each
function M.assign_(parameters, vector)
  local entries, count = M.entries("assign_", parameters)
  vector = M.vector("assign_", "vector", vector, entries, count)
  local _ <close> = peri.no_grad()
  for i, part in ipairs(views(vector, entries)) do entries[i][1]:copy_(part) end
end

return M
