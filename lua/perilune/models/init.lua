-- models - published models by their files: peri.models.load(path) picks the architecture by the
-- config and the format by the path. peri.models.llama and so on are the architectures themselves.
local base = require "perilune.models.base"
local options = require "perilune.options"
local scorers = require "perilune.models.scorer"
local weights = require "perilune.models.weights"
local sources = require "perilune.weights"

local M = {}

-- model_type of the config -> module. Each is one file of this folder.
local architectures = {
  llama = "llama", mistral = "mistral", qwen2 = "qwen2", qwen3 = "qwen3", gemma2 = "gemma2", gpt2 = "gpt2",
  deepseek_v3 = "deepseek_v3", bert = "bert", distilbert = "distilbert", t5 = "t5",
}

M.open = sources.open

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

local load_rules = {
  dtype = options.value("f32", "string", "of linear and embedding weights: f32, bf16, f16, a quantised one, or "
    .. "file: as stored"),
  pack = options.boolean(false, "weights are laid out for this processor, for inference"),
  map = sources.map_rule,
}

local source_rules = { dtype = load_rules.dtype, pack = load_rules.pack }

--- A model from an open source.
--- @param source table  path, config, generation_config, names, get(self, name)
--- @param opts table?
--- @return table|nil model
--- @return string? message
function M.from_source(source, opts)
  local o = options.fill("models.from_source", opts, source_rules)
  local module, message = M.architecture(source.config)
  if not module then return nil, ("%s: %s"):format(source.path, message) end
  if module.Class.kind == "causal" and scorers.is_config(source.config) then
    return scorers.from_source(module.Class, source, o)
  end
  return base.from_source(module.Class, source, o)
end
options.declare(M.from_source, { "source" }, source_rules)

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

--- A scorer: a copy of a causal model with one linear head in place of the language model's, a number for each
--- token. Reward models, process reward models and critics are scorers. scorer:forward(ids) is (B, T), scorer:last(ids)
--- (B), the number at each row's last token; saved and loaded as any model, under the names of transformers'
--- ...ForSequenceClassification.
--- @param model table  a causal model of perilune.models, which stays as it is
--- @param opts table?  bias (false), std of the head (initializer_range or 0.02), dtype ("f32"; "file" shares frozen
--- matrices)
--- @return perilune.models.Scorer
function M.scorer(model, opts)
  local scorer = scorers.of(model, opts)
  return scorer
end
options.declare(M.scorer, { "model" }, scorers.rules)

M.with_layers = require("perilune.models.depth").with_layers

-- Files of this folder: peri.models.llama is perilune.models.llama. The formats stand in the room weights.
local files = { hf = "weights.hf", gguf = "weights.gguf.source", llama2c = "weights.llama2c", joint = "models.joint" }
for _, name in pairs(architectures) do files[name] = "models." .. name end

return require "perilune.names"(setmetatable(M, {
  __index = function (t, key)
    if not files[key] then return nil end
    local module = require("perilune." .. files[key])
    rawset(t, key, module)
    return module
  end,
}), "perilune.models", files)
