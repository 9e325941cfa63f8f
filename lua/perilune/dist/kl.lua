-- kl.lua - the Kullback-Leibler divergence between distributions of one family.
local options = require "perilune.options"

local M = {}

local function family(name, d)
  local meta = getmetatable(d)
  if type(meta) ~= "table" or meta.why == nil or not d.batch then
    options.raise(("dist.kl: %s, expected a distribution"):format(options.is(name, d)))
  end
  return d.name
end

--- KL(p || q) in nats, (batch): how many are lost where q is believed and p is so; refused for pairs without a closed
--- form. Gradients, and gradients of these, go into the parameters of both.
--- @param p perilune.dist.Distribution
--- @param q perilune.dist.Distribution  of the same family
--- @return perilune.Tensor
function M.kl(p, q)
  local a, b = family("p", p), family("q", q)
  local out, why
  if a ~= b then why = "they are of two families"
  elseif not p._kl then why = "there is none for this family"
  elseif options.shape(p.event) ~= options.shape(q.event) then why = "their events differ"
  else out, why = p:_kl(q) end
  if not out then
    options.raise(("dist.kl: no closed form for %s and %s: %s; the mean of p:log_prob(x) - q:log_prob(x) over draws "
      .. "of p estimates it"):format(a, b, why))
  end
  return out
end

return M
