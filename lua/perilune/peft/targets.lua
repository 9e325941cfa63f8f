-- targets.lua - what the ways of fine-tuning few parameters share: which layers they sit on, freezing
-- the model, several adapters on one projection, adapter folders.
local peri = require "perilune"
local options = require "perilune.options"
local Projection = require "perilune.models.projection"

local M = { attach = Projection.attach, detach = Projection.detach }

--- No weight of the model is trained any more.
--- @return fun() thaw  trains again what was
function M.freeze(model)
  local trained = {}
  for _, p in ipairs(model:parameters()) do
    if p.requires_grad then trained[#trained + 1] = p:requires_grad_(false) end
  end
  return function()
    for _, p in ipairs(trained) do p:requires_grad_(true) end
  end
end

--- PEFT's task type of a model.
function M.task(model)
  if model.config.is_encoder_decoder or model.config.model_type == "t5" then return "SEQ_2_SEQ_LM" end
  return model.kind == "causal" and "CAUSAL_LM" or "FEATURE_EXTRACTION"
end

--- Whether a published name is meant: a layer's, the end of one behind a dot, or a Lua pattern with ^.
function M.matches(name, want)
  if want:sub(1, 1) == "^" then return name:find(want) ~= nil end
  return name == want or name:sub(-#want - 1) == "." .. want
end

--- What low-rank adapters may sit on: projections, the language-model head, tables of embeddings.
--- @param model table
--- @return table[]  { projection =, kind = "linear", "head" or "embedding" }
function M.modules(model)
  local list = {}
  for i, p in ipairs(model:projections()) do list[i] = { projection = p, kind = "linear" } end
  local vocabulary, columns
  for _, p in ipairs(model._layout) do
    local name = p.parts[1][1]:match "^(.*)%.weight$"
    if p.form == "embedding" and p.path == "head" then
      list[#list + 1] = { projection = model:_site("head", name, p.shape[1], p.shape[2]), kind = "head" }
      vocabulary = nil
    elseif p.form == "embedding" then
      list[#list + 1] = { projection = model:_site(p.path, name, p.shape[1], p.shape[2]), kind = "embedding" }
      if p.path == "embed" and not model.head then vocabulary, columns = p.shape[1], p.shape[2] end
    end
  end
  if vocabulary and model.kind ~= "encoder" then -- a head that is tied to the embedding
    list[#list + 1] = { projection = model:_site("head", "lm_head", vocabulary, columns), kind = "head" }
  end
  return list
end

--- Published names of the layers that are meant. A name is that of a layer, the end of one behind a dot, or a
--- Lua pattern that starts with ^.
--- @param model table
--- @param wanted string|string[]  "all-linear" or names
--- @param who string  for messages
--- @param modules table[]?  of M.modules; default: linear layers
--- @return table<string, boolean>
function M.choose(model, wanted, who, modules)
  local chosen, all = {}, {}
  for _, p in ipairs(model:projections()) do
    for _, part in ipairs(p.parts) do all[#all + 1] = part[1] end
  end
  if wanted == "all-linear" then
    for _, name in ipairs(all) do chosen[name] = true end
    return chosen
  end
  for _, module in ipairs(modules or {}) do
    if module.kind ~= "linear" then all[#all + 1] = module.projection.parts[1][1] end
  end
  for _, want in ipairs(type(wanted) == "table" and wanted or { wanted }) do
    local any = false
    for _, name in ipairs(all) do
      if M.matches(name, want) then chosen[name], any = true, true end
    end
    if not any then
      local last, seen = {}, {}
      for _, name in ipairs(all) do
        local short = name:match "[^.]+$"
        if not seen[short] then seen[short], last[#last + 1] = true, short end
      end
      error(("%s: no layer is called %q; there are %s"):format(who, tostring(want), table.concat(last, ", ")), 3)
    end
  end
  return chosen
end

--- The value of the first entry, by name, of a pattern table that means a layer, or nil.
function M.pattern(patterns, name)
  for _, want in ipairs(options.names(patterns)) do
    if M.matches(name, want) then return patterns[want] end
  end
end

--- Write an adapter folder.
--- @return boolean|nil ok
--- @return string? message
function M.save(folder, tensors, config)
  local ok, message = peri.files.make_folder(folder)
  if not ok then return nil, message end
  ok, message = peri.safetensors.save(folder .. "/adapter_model.safetensors", tensors, { format = "pt" })
  if not ok then return nil, message end
  return peri.files.write(folder .. "/adapter_config.json", peri.json.encode(config, { indent = 2 }) .. "\n")
end

return M
