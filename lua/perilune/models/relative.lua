-- relative.lua - T5's relative positions (1910.10683, section 2.1): what attention adds to the score of a
-- query and a key depends on their distance alone, by buckets that widen with it.
local peri = require "perilune"

local M = {}

-- Bucket of a key's place less the query's: half of the buckets are exact, the rest grow as logarithms.
local function bucket(relative, both_ways, n, far)
  local at = 0
  if both_ways then
    n = n // 2
    if relative > 0 then at = n end
    relative = math.abs(relative)
  else
    relative = math.max(-relative, 0)
  end
  local exact = n // 2
  if relative < exact then return at + relative end
  local log = math.log(relative / exact) / math.log(far / exact) * (n - exact)
  return at + math.min(exact + math.floor(log), n - 1)
end

--- Biases of `keys` keys for the last `queries` of them.
--- @param weight perilune.Tensor  (buckets, H)
--- @param both_ways boolean  keys behind the query have buckets of their own
--- @param far integer  distance from which on all share a bucket
--- @return perilune.Tensor  (1, H, queries, keys)
function M.biases(weight, queries, keys, both_ways, far)
  local list = {}
  for relative = -(keys - 1), keys - 1 do list[#list + 1] = bucket(relative, both_ways, weight:size(1), far) end
  local of_distance = weight:embedding(peri.tensor(list, "i64")) -- (2 keys - 1, H)
  local i = peri.arange(keys - queries, keys):unsqueeze(2)
  return of_distance:embedding(peri.arange(keys):sub(i):add(keys - 1)):permute({ 3, 1, 2 }):unsqueeze(1)
end

return M
