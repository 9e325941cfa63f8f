-- arch - the architectures that GGUF files are read and written for, one file each. Such a file returns:
--   model_types   of Hugging Face configs; a file's config gets the first of them
--   class         the entry of `architectures`
--   tensors       { GGUF, Hugging Face, how? }: %d is the layer, * the expert. Names that end in neither .weight nor
--                 .bias stand for both. how: see ../transforms.lua
--   other_names   (name) -> other names that a tensor of a checkpoint may have, in the order of choice
--   published     (name, has) -> the Hugging Face name of a tensor of this file; by default the one in tensors
--   read          (config, get, extra) -> message?: values of a file, into a config
--   write         (put, config) -> message?: values of a config, put(key, type, value) without the architecture
-- and where it is no decoder of Llama's kin, or has more:
--   layers        the key of a config that counts layers          needs   numbers that a config must have
--   embeddings    names of the embedding and of what is tied to it, in the order of choice
--   tied          whether these are one where the config does not say     causal  false, or "either"; else true
--   turned        every channel of a head is rotated               holds   values that others must leave neutral
--   drops_more_layers   layers behind those that the config counts have no place in the file
local decoder = require "perilune.weights.gguf.arch.decoder"

local M = {}

-- general.architecture of every file of this folder.
M.names = { "bert", "deepseek2", "gemma2", "gpt2", "llama", "qwen2", "qwen3", "t5" }

local made, by_type = {}, nil
local defaults = { layers = decoder.layers, needs = decoder.needs, embeddings = decoder.embeddings, tied = false,
  causal = true, holds = {} }

--- The facts of an architecture, with defaults.
--- @param name string  general.architecture
--- @return table|nil
--- @return string? message
function M.find(name)
  if made[name] then return made[name] end
  for _, known in ipairs(M.names) do
    if known == name then
      local facts = { name = name }
      for key, value in pairs(defaults) do facts[key] = value end
      for key, value in pairs(require("perilune.weights.gguf.arch." .. name)) do facts[key] = value end
      made[name] = facts
      return facts
    end
  end
  return nil, ("architecture %q is not known; known are %s"):format(tostring(name), table.concat(M.names, ", "))
end

--- The architecture that a Hugging Face config is written as.
--- @param config table
--- @return table|nil
--- @return string? message
function M.of_config(config)
  if not by_type then
    by_type = {}
    for _, name in ipairs(M.names) do
      for _, kind in ipairs(M.find(name).model_types) do by_type[kind] = name end
    end
  end
  local name = by_type[config.model_type]
  if name then return M.find(name) end
  return nil, ("model_type %q cannot be written as GGUF"):format(tostring(config.model_type))
end

return M
