-- models - published models by their files: peri.models.load(path) picks the architecture by the
-- config and the format by the path. peri.models.llama and so on are the architectures themselves.
local hf = require "perilune.models.hf"
local base = require "perilune.models.base"
local options = require "perilune.options"
local weights = require "perilune.models.weights"
local peri = require "perilune"

local M = {}

-- model_type of the config -> module. Each is one file of this folder.
local architectures = {
  llama = "llama", mistral = "mistral", qwen2 = "qwen2", qwen3 = "qwen3", gemma2 = "gemma2", gpt2 = "gpt2",
  deepseek_v3 = "deepseek_v3", bert = "bert", distilbert = "distilbert", t5 = "t5",
}

local map_rule = options.boolean(true, "tensors share the file's pages; false reads them, for files that others may "
  .. "truncate or write")
local open_rules = { map = map_rule }

--- What a path holds, unread: a Hugging Face folder, a .gguf file, or a llama2.c .bin file.
--- @param path string
--- @param opts table?  map (true): tensors share the file's pages. If such a file is truncated or written in place
--- while its tensors live, touching the lost part kills the process (SIGBUS); false reads them instead
--- @return table|nil source
--- @return string? message
function M.open(path, opts)
  local o = options.fill("models.open", opts, open_rules)
  local kind = peri.files.exists(path)
  if not kind then return nil, path .. ": there is no such file or folder" end
  if kind == "folder" then return hf.open(path, o) end
  if path:find "%.gguf$" then return require("perilune.models.gguf").open(path, o) end
  if path:find "%.bin$" then return require("perilune.models.llama2c").open(path) end
  return nil, path .. ": neither a folder nor a .gguf or .bin file"
end

options.declare(M.open, { "path" }, open_rules)

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

local load_rules = {
  dtype = options.value("f32", "string", "of linear and embedding weights: f32, bf16, f16, a quantised one, or "
    .. "file: as stored"),
  pack = options.boolean(false, "weights are laid out for this processor, for inference"),
  map = map_rule,
}

--- Read a model.
--- @param path string  Hugging Face folder, .gguf file or llama2.c .bin file
--- @param opts table?  dtype of linear and embedding weights: "f32" (the default: everything is
--- trainable), "bf16", "f16", a block-quantised one (rows that its blocks do not divide become f16), or
--- "file": as stored, where possible the file's own memory, and not trained; norms and biases are f32.
--- pack (false): lay these weights out for this processor, for inference. map (true): as for models.open
--- @return table|nil model
--- @return string? message
function M.load(path, opts)
  local o = options.fill("models.load", opts, load_rules)
  if o.dtype ~= "file" and not weights.dtypes[o.dtype] then
    error(("models.load: dtype is %q, expected f32, f16, bf16, file or a quantised one"):format(o.dtype), 2)
  end
  local source, message = M.open(path, { map = o.map })
  if not source then return nil, message end
  return M.from_source(source, { dtype = o.dtype, pack = o.pack })
end
options.declare(M.load, { "path" }, load_rules)

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
