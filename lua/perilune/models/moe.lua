-- moe.lua - mixture of experts: which experts a token goes to, and the sum of what they make of it.
-- A token's result depends on nothing but the token: each expert's rows are one product, and a
-- token's terms are added in the order of the experts.
local peri = require "perilune"

local M = {}

--- Choice of experts of DeepSeek V3 (2412.19437, eq. 12-16): a bias helps in choosing only; experts
--- outside of the best groups, by the sum of their two best, are out of the question.
--- @param scores perilune.Tensor  (..., E) affinities
--- @param bias perilune.Tensor?  (E), added to choose
--- @param how table  experts, active, groups, kept_groups, normalised, route_scale
--- @param given perilune.Tensor?  (..., active) i64: the choice, made before; the weights are of these scores all the
--- same
--- @return perilune.Tensor places  (N, active) i64, experts counted from 0
--- @return perilune.Tensor weights  (N, active)
function M.route(scores, bias, how, given)
  scores = scores:reshape { -1, how.experts } -- (N, E)
  local places = given and given:reshape { -1, how.active } or M.choose(scores, bias, how)
  local weights = scores:gather(places, 2)
  if how.normalised then weights = weights:div(weights:sum(-1, true):add(1e-20)) end
  return places, weights:mul(how.route_scale)
end

-- The experts of each token: (N, E) -> (N, active).
function M.choose(scores, bias, how)
  local choice = scores:detach()
  if bias then choice = choice:add(bias) end
  if how.groups > 1 then
    local each = how.experts // how.groups
    local grouped = choice:reshape { -1, how.groups, each }
    local best = grouped:topk(math.min(2, each), -1):sum(-1) -- (N, groups)
    local _, kept = best:topk(how.kept_groups, -1)
    local open = kept:one_hot(how.groups, "bool"):any(2) -- (N, groups)
    choice = grouped:masked_fill(open:logical_not():unsqueeze(3), -math.huge):reshape { -1, how.experts }
  end
  local _, places = choice:topk(how.active, -1)
  return places
end

--- The weighted sum of what a token's experts make of it. While gradients are recorded an expert that no token chose
--- has one of zeros: whether it has any must not hang on what stands in the padding, or on how rows are cut.
--- @param x perilune.Tensor  (..., D)
--- @param places perilune.Tensor  (N, K) i64
--- @param weights perilune.Tensor  (N, K)
--- @param expert fun(e: integer, rows: perilune.Tensor): perilune.Tensor  e from 1, rows (n, D) -> (n, D)
--- @param experts integer
--- @return perilune.Tensor  (..., D)
function M.mix(x, places, weights, expert, experts)
  local rows, k = x:reshape { -1, x:size(-1) }, places:size(2)
  local tokens, slots = {}, {} -- of each expert, from 0
  for e = 1, experts do tokens[e], slots[e] = {}, {} end
  for n, list in ipairs(places:tolist()) do
    for j, e in ipairs(list) do
      table.insert(tokens[e + 1], n - 1)
      table.insert(slots[e + 1], (n - 1) * k + j - 1)
    end
  end
  local recording = peri.grad_enabled()
  local parts, order, places_of = {}, {}, {} -- rows by expert, whose they are, where their weights are
  for e = 1, experts do
    if #tokens[e] > 0 or recording then
      parts[#parts + 1] = expert(e, rows:index_select(peri.tensor(tokens[e], "i64"), 1))
      table.move(tokens[e], 1, #tokens[e], #order + 1, order)
      table.move(slots[e], 1, #slots[e], #places_of + 1, places_of)
    end
  end
  local scaled = peri.cat(parts, 1):mul(weights:reshape({ -1, 1 }):index_select(peri.tensor(places_of, "i64"), 1))
  return peri.zeros_like(rows):index_add(peri.tensor(order, "i64"), scaled, 1):reshape(x.shape)
end

return M
