-- hf.lua - Hugging Face model folders: config.json, generation_config.json, model.safetensors.
-- Reading returns nil and a message when something is missing or malformed.
local peri = require "perilune"

local M = {}

local function read_json(path)
  local text, err = peri.files.read(path)
  if not text then return nil, err end
  local value, message = peri.json.decode(text)
  if value == nil then return nil, path .. ": " .. message end
  return value
end

-- JSON null reads as absent.
local function without_null(t)
  for k, v in pairs(t) do
    if v == peri.json.null then t[k] = nil
    elseif type(v) == "table" then without_null(v) end
  end
  return t
end

--- config.json of a model folder, nulls removed.
--- @param folder string
--- @return table|nil config
--- @return string? message
function M.config(folder)
  local c, err = read_json(folder .. "/config.json")
  if not c then return nil, err end
  return without_null(c)
end

--- generation_config.json, or an empty table when the folder has none.
function M.generation_config(folder)
  if not peri.files.exists(folder .. "/generation_config.json") then return {} end
  local c, err = read_json(folder .. "/generation_config.json")
  if not c then return nil, err end
  return without_null(c)
end

--- Every tensor of a model folder.
--- @param folder string
--- @return table<string, perilune.Tensor>|nil tensors
--- @return string|table message or metadata
function M.tensors(folder)
  return peri.safetensors.load(folder .. "/model.safetensors")
end

--- Write a folder that Hugging Face loads: config.json, generation_config.json, model.safetensors.
--- @param folder string
--- @param config table
--- @param tensors table<string, perilune.Tensor>
--- @param generation table?  generation_config.json
--- @return boolean|nil ok
--- @return string? message
function M.save(folder, config, tensors, generation)
  local ok, err = peri.files.make_folder(folder)
  if not ok then return nil, err end
  ok, err = peri.safetensors.save(folder .. "/model.safetensors", tensors, { format = "pt" })
  if not ok then return nil, err end
  ok, err = peri.files.write(folder .. "/config.json", peri.json.encode(config, { indent = 2 }) .. "\n")
  if not ok then return nil, err end
  if not generation then return true end
  return peri.files.write(folder .. "/generation_config.json",
    peri.json.encode(generation, { indent = 2 }) .. "\n")
end

return M
