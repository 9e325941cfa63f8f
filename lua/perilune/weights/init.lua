-- weights - where models come from and go to: Hugging Face folders, GGUF files, llama2.c checkpoints. A file is a
-- source before it is a model: { format, path, config, generation_config, names, get(self, name), tokenizer_path },
-- its config and the names of its tensors those of Hugging Face. perilune.models makes models of sources.
local options = require "perilune.options"
local peri = require "perilune"

local M = {}

M.map_rule = options.boolean(true, "tensors share the file's pages; false reads them, for files that others may "
  .. "truncate or write")
local open_rules = { map = M.map_rule }

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
  if kind == "folder" then return require("perilune.weights.hf").open(path, o) end
  if path:find "%.gguf$" then return require("perilune.weights.gguf.source").open(path, o) end
  if path:find "%.bin$" then return require("perilune.weights.llama2c").open(path) end
  return nil, path .. ": neither a folder nor a .gguf or .bin file"
end

options.declare(M.open, { "path" }, open_rules)

return M
