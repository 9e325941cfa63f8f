-- bounds.lua - distributions between two bounds are those between 0 and 1, scaled.
local peri = require "perilune"
local base = require "perilune.dist.distribution"
local options = require "perilune.options"

local M = {}

--- The rules of the two bounds.
--- @param low number
--- @param high number
function M.rules(low, high)
  return { low = options.value(low, "tensor or number", "the lower bound; broadcasts with the parameters"),
    high = options.value(high, "tensor or number", "the upper bound") }
end

--- Set d.low and d.high from checked options; numbers stay numbers.
--- @param who string
--- @param d perilune.dist.Distribution
--- @param o table
function M.set(who, d, o)
  local shape = base.joined(d.batch, d.event)
  for _, name in ipairs { "low", "high" } do
    local x = o[name]
    local both = peri.is_tensor(x) and base.broadcast(x.shape, shape)
    if peri.is_tensor(x) and (not both or options.shape(both) ~= options.shape(shape)) then
      options.raise(("%s: %s has shape %s, which does not broadcast to %s of the parameters"):format(who, name,
        options.shape(x), options.shape(shape)))
    end
    d[name] = x
  end
  if not (peri.is_tensor(o.low) or peri.is_tensor(o.high)) then
    d.range = o.high - o.low
    if not (d.range > 0 and d.range < math.huge) then
      options.raise(("%s: low is %g and high %g, expected low < high, both finite"):format(who, o.low, o.high))
    end
    return
  end
  d.range = peri.sub(o.high, o.low):to(d.dtype)
  local least, most = d.range:min():item(), d.range:max():item()
  if not (least > 0 and most < math.huge) then
    options.raise(("%s: high - low is %g somewhere, expected more than 0 and finite"):format(who,
      least > 0 and most or least))
  end
end

--- What lies in [0, 1] as values in [low, high].
--- @param d perilune.dist.Distribution
--- @param y perilune.Tensor
--- @return perilune.Tensor
function M.scaled(d, y)
  if d.range == 1 and d.low == 0 then return y end
  local x = y:mul(d.range):add(d.low)
  if type(d.range) == "number" then return x:clamp(d.low, d.high) end -- a rounding may lead past a bound
  return x:maximum(d.low):minimum(d.high)
end

-- Half of what the dtype tells apart below 1. ORDER dtype
local margin = { f64 = 2.0 ^ -53, f32 = 2.0 ^ -24, f16 = 2.0 ^ -11, bf16 = 2.0 ^ -8 }

--- Values in [low, high] as what lies in (0, 1): a value on a bound counts as one just inside, which keeps its density
--- finite. One outside is refused.
--- @param d perilune.dist.Distribution
--- @param x perilune.Tensor
--- @return perilune.Tensor
function M.unscaled(d, x)
  local y = x:sub(d.low):div(d.range)
  local least, most = 0, 1
  if y:numel() > 0 then least, most = y:min():item(), y:max():item() end
  if not (least >= -1e-6 and most <= 1 + 1e-6) then
    options.raise(("dist.%s: a value lies %g of the way from low to high, outside of them"):format(d.name,
      least >= -1e-6 and most or least))
  end
  local eps = margin[y.dtype]
  return y:clamp(eps, 1 - eps)
end

--- log(high - low), a number or a tensor.
--- @param d perilune.dist.Distribution
function M.log_range(d) return type(d.range) == "number" and math.log(d.range) or d.range:log() end

local function same(a, b)
  if a == b then return true end
  if not (peri.is_tensor(a) or peri.is_tensor(b)) then return false end
  return peri.eq(a, b):all():item()
end

--- Why the bounds of two distributions are not the same; nil when they are.
--- @param p perilune.dist.Distribution
--- @param q perilune.dist.Distribution
--- @return string?
function M.differ(p, q)
  if not (same(p.low, q.low) and same(p.high, q.high)) then return "their bounds differ" end
end

return M
