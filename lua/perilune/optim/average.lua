-- average.lua - averages of parameters: a running one (target networks, weights to evaluate with), and that of several
-- models.

local peri = require "perilune"
local options = require "perilune.options"
local params = require "perilune.optim.params"
local walk = require "perilune.nn.walk"

local M = {}

-- Tensors of both in pairs: by path where both have one, else by place.
local function pairs_of(who, target, source, called)
  local mine, theirs = params.named(who, target), params.named(who, source)
  if #mine ~= #theirs then
    walk.raise(("%s: the target has %d parameters, %s %d"):format(who, #mine, called, #theirs))
  end
  local by_path = {}
  for _, entry in ipairs(theirs) do if entry[2] then by_path[entry[2]] = entry[1] end end
  local targets, sources = {}, {}
  for i, entry in ipairs(mine) do
    local other = entry[2] and theirs[i][2] and by_path[entry[2]] or not (entry[2] and theirs[i][2]) and theirs[i][1]
    local name = entry[2] or ("parameter %d"):format(i)
    if not other then walk.raise(("%s: %s has no parameter %s"):format(who, called, name)) end
    if options.shape(other) ~= options.shape(entry[1]) or other.dtype ~= entry[1].dtype then
      walk.raise(("%s: %s is %s of shape %s in the target, %s of %s in %s"):format(who, name, entry[1].dtype,
        options.shape(entry[1]), other.dtype, options.shape(other), called))
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
  local targets, sources = pairs_of("ema_", target, source, "the source")
  local _ <close> = peri.no_grad()
  local by_dtype = {}
  for i, t in ipairs(targets) do
    local lists = by_dtype[t.dtype] or { {}, {} }
    by_dtype[t.dtype] = lists
    lists[1][#lists[1] + 1], lists[2][#lists[2] + 1] = t, sources[i]
  end
  for _, lists in pairs(by_dtype) do peri.ema_(lists[1], lists[2], decay) end
end

-- Shares of a list of sources, from their weights; equal ones without.
local function shares(weights, n)
  local out, sum = {}, 0
  if weights == nil then
    for i = 1, n do out[i] = 1 / n end
    return out
  end
  options.argument("average_", "weights", weights, "table")
  if #weights ~= n then error(("average_: %d weights for %d sources"):format(#weights, n), 3) end
  for i, w in ipairs(weights) do
    if type(w) ~= "number" or not (w >= 0 and w < math.huge) then
      error(("average_: weight %d is %s, expected a finite number from 0"):format(i, tostring(w)), 3)
    end
    sum = sum + w
  end
  if sum == 0 then error("average_: all weights are 0", 3) end
  for i, w in ipairs(weights) do out[i] = w / sum end
  return out
end

--- Set the parameters of a target to the mean of those of several sources, such as models that were trained from one
--- base (model soups, 2203.05482); in place, without gradients, summed in double precision. Parameters find each other
--- as in ema_. The target may be one of the sources; what is no parameter stays the target's.
---   optim.average_(model, { english, chinese, lists })
--- @param target any  a module, named parameters, or a list of these and of tensors
--- @param sources any[]  each as target
--- @param weights number[]?  of the sources, from 0, divided by their sum; default: equal
--- @return any target
function M.average_(target, sources, weights)
  options.argument("average_", "sources", sources, "table")
  if #sources == 0 then error("average_: there are no sources, expected a list of them", 2) end
  local share, targets, lists = shares(weights, #sources), nil, {}
  for i, source in ipairs(sources) do
    targets, lists[i] = pairs_of("average_", target, source, ("source %d"):format(i))
  end
  local _ <close> = peri.no_grad()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local means = {}
  for k in ipairs(targets) do
    local mean
    for i, list in ipairs(lists) do
      if share[i] > 0 then -- what is left out may be anything
        local part = list[k]:to("f64"):mul(share[i])
        mean = mean and mean:add(part) or part
      end
    end
    means[k] = mean
  end
  for k, t in ipairs(targets) do t:copy_(means[k]:to(t.dtype)) end
  return target
end

return M
