-- merging.lua - products of low-rank adapters in the weights of a model, and out of them again. Copies of
-- the rows that are written to are kept, so that what comes back is the same bits; each layer has
-- a pile of what was merged into it, of which the last comes out first.
local peri = require "perilune"

local options = require "perilune.options"
local walk = require "perilune.nn.walk"

local M = {}

-- Tensor -> where it stands, of those that stand in two places of a net.
local function tied_in(net)
  local first, tied = {}, {}
  for _, place in ipairs(walk.places(net)) do
    local t = place.tensor
    if first[t] then tied[t] = ("%s and %s"):format(tied[t] or first[t], place.path) else first[t] = place.path end
  end
  return tied
end

-- Whether every weight can be written to, before any is.
local function check_weights(self, level)
  if #self.sites == 0 then error("lora: the adapter was taken off its model", level + 1) end
  local tied = tied_in(self.model)
  for _, site in ipairs(self.sites) do
    local p, name = site.projection, site._parts[1][1]
    if site._kind ~= "linear" then
      error(("lora: cannot merge into %s: only linear layers take an adapter into their weights"):format(name),
        level + 1)
    end
    if p.packed or not p.weight or p.weight.dtype ~= "f32" then
      error(("lora: cannot merge into %s, whose weight is %s: load the model with dtype f32 and without pack")
        :format(name, p.packed and "packed" or p.weight and p.weight.dtype or "of several dtypes"), level + 1)
    end
    if tied[p.weight] then
      error(("lora: cannot merge into %s: its weight is one tensor in %s, and all of them would change"):format(name,
        tied[p.weight]), level + 1)
    end
  end
end

-- fn(slot, rows) for every part of a layer that the adapter is on; rows are a view of the weight.
local function each_part(site, fn)
  local at = 1
  for i, part in ipairs(site._parts) do
    if site._slots[i] then fn(site._slots[i], site.projection.weight:detach():narrow(1, at, part[2]), i) end
    at = at + part[2]
  end
end

-- Copies of all rows that are written to, or of none when there is no memory for all.
local function copies_of(self)
  local kept = {}
  for s, site in ipairs(self.sites) do
    kept[s] = {}
    each_part(site, function(_, rows, i) kept[s][i] = peri.keep(rows:clone()) end)
  end
  return kept
end

-- Grows with every write to the adapter's matrices on one layer.
local function version_of(site)
  local version = 0
  for _, slot in ipairs(site._order) do version = version + slot:a():version() + slot:b():version() end
  return version
end

--- The matrices must be those that were merged: the model would go on, and be saved, with the old ones.
function M.check_unchanged(site)
  if version_of(site) == site._merged_version then return end
  options.raise("lora: the adapter was changed while it is merged, and the model still has the old one: "
    .. (site.owner.merged == "for good" and "it was merged for good (keep = false) and can only be removed"
      or "unmerge() and merge() it"))
end

-- Put rows back that were written to.
local function restore(site, kept)
  each_part(site, function(_, rows, i) rows:copy_(kept[i]) end)
end

--- W += s B A, for every part.
--- @param self perilune.peft.LoRA
--- @param keep boolean
--- @param level integer  of errors
function M.merge(self, keep, level)
  check_weights(self, level)
  local _ <close> = peri.no_grad()
  local kept = keep and copies_of(self)
  local function add(site)
    local scope <close> = peri.scope() -- luacheck: ignore 211
    each_part(site, function(slot, rows)
      rows:add_(slot:b():detach():matmul(slot:a():detach()):mul(slot.scale))
    end)
  end
  for s, site in ipairs(self.sites) do
    local ok, message = pcall(add, site)
    if not ok then -- no memory for a product: nothing is merged
      for k = 1, kept and s or 0 do restore(self.sites[k], kept[k]) end
      error(message, 0)
    end
  end
  for s, site in ipairs(self.sites) do
    local p = site.projection
    site._merged_version = version_of(site)
    p.merged = p.merged or {}
    table.insert(p.merged, { site = site, weight = p.weight, version = p.weight:version(), kept = kept and kept[s] })
  end
  self.merged = keep and true or "for good"
end

-- Why the weights cannot go back to what they were, or nil.
local function obstacle(site)
  local p, name = site.projection, site._parts[1][1]
  local last = p.merged and p.merged[#p.merged]
  if not last or last.site ~= site then
    return ("another adapter was merged into %s after this one: it has to come out first"):format(name)
  end
  if not last.kept then
    return "it was merged for good (keep = false), and no copy of the weights is left"
  end
  if not rawequal(last.weight, p.weight) or p.weight:version() ~= last.version then
    return ("the weight of %s was changed after the merge, and taking the adapter out would undo that"):format(name)
  end
end

--- The weights as they were before the merge.
--- @param self perilune.peft.LoRA
--- @param level integer  of errors
function M.unmerge(self, level)
  check_weights(self, level)
  for _, site in ipairs(self.sites) do
    local problem = obstacle(site)
    if problem then error("lora: " .. problem, level) end
  end
  local _ <close> = peri.no_grad()
  for _, site in ipairs(self.sites) do
    local p = site.projection
    local kept = table.remove(p.merged).kept
    restore(site, kept)
    for _, t in pairs(kept) do t:release() end
    local below = p.merged[#p.merged]
    if below then below.version = p.weight:version() end
  end
  self.merged = false
end

--- The adapter stays in the weights for good: what was kept of them is let go, and the adapter itself may change.
--- @param self perilune.peft.LoRA
function M.forget(self)
  for _, site in ipairs(self.sites) do
    for _, entry in ipairs(site.projection.merged or {}) do
      if entry.site == site then
        for _, t in pairs(entry.kept or {}) do t:release() end
        entry.kept, entry.gone = nil, true
      end
    end
  end
end

return M
