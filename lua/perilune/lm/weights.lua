-- weights.lua - which dtype the weights of a language model get when nobody says.
local M = {}

-- Models of so many parameters fit into a GiB as f32.
local SMALL <const> = 1 << 28

-- The dtype of most weights of a model as it is stored.
local function stored_dtype(model)
  local count, best = {}, nil
  for _, p in ipairs(model:projections()) do
    for _, w in ipairs(p:tensors()) do
      count[w.dtype] = (count[w.dtype] or 0) + w:numel()
      if not best or count[w.dtype] > count[best] then best = w.dtype end
    end
  end
  return best
end

--- A model under a dtype as for models.load, or "auto": a small model is not worth the rounding of quantised products.
--- @param path string
--- @param o table  dtype, pack, map
--- @return perilune.models.Model|nil
--- @return string? message
--- @return string? stored  the dtype of the file, where that has fewer bits than the model now
function M.load(path, o)
  local models = require "perilune.models"
  local dtype, pack, map = o.dtype, o.pack, o.map
  if dtype ~= "auto" then return models.load(path, { dtype = dtype, pack = pack, map = map }) end
  local model, message = models.load(path, { dtype = "file", map = map })
  if not model then return nil, message end
  dtype = model:num_parameters() <= SMALL and "f32" or "file"
  if dtype == "file" and not pack then return model end
  local stored = dtype == "f32" and stored_dtype(model) or nil
  model, message = models.load(path, { dtype = dtype, pack = pack, map = map })
  return model, message, stored ~= "f32" and stored or nil
end

return M
