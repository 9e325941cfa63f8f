-- models - published models by their files: peri.models.load(path) picks the architecture by the
-- config and the format by the path. peri.models.llama and so on are the architectures themselves.
local hf = require "perilune.models.hf"
local base = require "perilune.models.base"
local weights = require "perilune.models.weights"
local peri = require "perilune"

local M = {}

-- model_type of the config -> module. Each is one file of this folder.
local architectures = {
  llama = "llama", mistral = "mistral", qwen2 = "qwen2", qwen3 = "qwen3", gemma2 = "gemma2", gpt2 = "gpt2",
  deepseek_v3 = "deepseek_v3", bert = "bert", distilbert = "distilbert", t5 = "t5",
}

--- What a path holds, unread: a Hugging Face folder, a .gguf file, or a llama2.c .bin file.
--- @param path string
--- @return table|nil source
--- @return string? message
function M.open(path)
  local kind = peri.files.exists(path)
  if not kind then return nil, path .. ": there is no such file or folder" end
  if kind == "folder" then return hf.open(path) end
  if path:find "%.gguf$" then return require("perilune.models.gguf").open(path) end
  if path:find "%.bin$" then return require("perilune.models.llama2c").open(path) end
  return nil, path .. ": neither a folder nor a .gguf or .bin file"
end

--- The module of an architecture by a config's model_type.
--- @param config table
--- @return table|nil module
--- @return string? message
function M.architecture(config)
  local kind = config.model_type
  local file = architectures[kind]
  if file then return require("perilune.models." .. file) end
  local known = {}
  for name in pairs(architectures) do known[#known + 1] = name end
  table.sort(known)
  return nil, ("model_type %q is not known; known are %s"):format(tostring(kind), table.concat(known, ", "))
end

--- A model from an open source.
--- @param source table  path, config, generation_config, names, get(self, name)
--- @param opts table?  as for load
--- @return table|nil model
--- @return string? message
function M.from_source(source, opts)
  local module, message = M.architecture(source.config)
  if not module then return nil, ("%s: %s"):format(source.path, message) end
  return base.from_source(module.Class, source, opts)
end

--- Read a model.
--- @param path string  Hugging Face folder, .gguf file or llama2.c .bin file
--- @param opts table?  dtype of linear and embedding weights: "f32" (the default: everything is
--- trainable), "bf16", "f16", a block-quantised one (rows that its blocks do not divide become f16), or
--- "file": as stored, where possible the file's own memory, and not trained; norms and biases are f32.
--- pack (false): lay these weights out for this processor, for inference.
--- @return table|nil model
--- @return string? message
function M.load(path, opts)
  opts = opts or {}
  for key in pairs(opts) do
    if key ~= "dtype" and key ~= "pack" then error(("models.load: unknown option %q"):format(tostring(key)), 2) end
  end
  local dtype = opts.dtype or "f32"
  if dtype ~= "file" and not weights.dtypes[dtype] then
    error(("models.load: dtype is %q, expected f32, f16, bf16, file or a quantised one"):format(tostring(dtype)), 2)
  end
  local source, message = M.open(path)
  if not source then return nil, message end
  return M.from_source(source, opts)
end

-- Files of this folder: peri.models.llama is perilune.models.llama.
local files = {}
for _, name in pairs(architectures) do files[name] = true end
for name in ([[base batching beam cache constraint context generate gguf hf inputs llama2c moe pooling prefix_cache
    projection regex relative rope sampler seq2seq weights]]):gmatch "%S+" do
  files[name] = true
end

return require "perilune.names"(setmetatable(M, {
  __index = function (t, key)
    if not files[key] then return nil end
    local module = require("perilune.models." .. key)
    rawset(t, key, module)
    return module
  end,
}), "perilune.models", files)
