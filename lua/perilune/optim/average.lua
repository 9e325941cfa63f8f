-- average.lua - a running average of parameters: target networks, weights to evaluate with.

local peri = require "perilune"
local options = require "perilune.options"
local params = require "perilune.optim.params"
local walk = require "perilune.nn.walk"

local M = {}

-- Tensors of both in pairs: by path where both have one, else by place.
local function pairs_of(target, source)
  local mine, theirs = params.named("ema_", target), params.named("ema_", source)
  if #mine ~= #theirs then
    walk.raise(("ema_: the target has %d parameters, the source %d"):format(#mine, #theirs))
  end
  local by_path = {}
  for _, entry in ipairs(theirs) do if entry[2] then by_path[entry[2]] = entry[1] end end
  local targets, sources = {}, {}
  for i, entry in ipairs(mine) do
    local other = entry[2] and theirs[i][2] and by_path[entry[2]] or not (entry[2] and theirs[i][2]) and theirs[i][1]
    local name = entry[2] or ("parameter %d"):format(i)
    if not other then walk.raise(("ema_: the source has no parameter %s"):format(name)) end
    if options.shape(other) ~= options.shape(entry[1]) or other.dtype ~= entry[1].dtype then
      walk.raise(("ema_: %s is %s of shape %s in the target, %s of %s in the source"):format(name, entry[1].dtype,
        options.shape(entry[1]), other.dtype, options.shape(other)))
    end
    targets[i], sources[i] = entry[1]:detach(), other:detach()
  end
  return targets, sources
end

local decay_rule = options.number(options.required, "[0, 1]")

--- Move the parameters of a target towards those of a source: target = decay target + (1 - decay) source (Polyak and
--- Juditsky 1992); in place, without gradients. Parameters find each other by their paths, those of lists by place.
---   local average = net:copy()
---   opt:step()
---   optim.ema_(average, net, 0.999)
--- @param target any  a module, named parameters, or a list of these and of tensors
--- @param source any  as target
--- @param decay number  in [0, 1]
function M.ema_(target, source, decay)
  local problem = options.problem("decay", decay, decay_rule)
  if problem then error("ema_: " .. problem, 2) end
  local targets, sources = pairs_of(target, source)
  local _ <close> = peri.no_grad()
  local by_dtype = {}
  for i, t in ipairs(targets) do
    local lists = by_dtype[t.dtype] or { {}, {} }
    by_dtype[t.dtype] = lists
    lists[1][#lists[1] + 1], lists[2][#lists[2] + 1] = t, sources[i]
  end
  for _, lists in pairs(by_dtype) do peri.ema_(lists[1], lists[2], decay) end
end

return M
