-- tiny.lua - what the tests of architectures share: the tiny models of tests/data/hf_tiny and what
-- transformers stored of them.
local lu = require "luaunit"
local peri = require "perilune"
local models = require "perilune.models"
local scratch = require "scratch"

local M = { folder = "tests/data/hf_tiny/" }

--- A model and the tensors stored with it.
--- @param name string
--- @return perilune.models.Model model
--- @return table<string, perilune.Tensor> io
function M.load(name)
  return assert(models.load(M.folder .. name)), assert(peri.safetensors.load(M.folder .. name .. "/io.safetensors"))
end

--- Largest difference over the largest stored magnitude.
--- @param got perilune.Tensor
--- @param want perilune.Tensor
--- @return number
function M.relative(got, want)
  return (got:sub(want):abs():max():item()) / math.max(want:abs():max():item(), 1e-12)
end

--- Save a model, load it again and fail unless every tensor has its bits and dtype.
--- @param model perilune.models.Model
--- @param opts table?  of the loading
--- @return perilune.models.Model again
function M.reload(model, opts)
  local path = scratch.path()
  assert(model:save(path))
  local again = assert(models.load(path, opts))
  local a, b = model:state_dict(), again:state_dict()
  for key, t in pairs(a) do
    lu.assertEquals(b[key].dtype, t.dtype)
    lu.assertEquals(b[key]:bytes(), t:bytes(), key)
  end
  lu.assertEquals(again.config.model_type, model.config.model_type)
  assert(peri.files.remove_tree(path))
  return again
end

return M
