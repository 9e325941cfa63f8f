-- targets.lua - what the ways of fine-tuning few parameters share: which layers of a net they sit on, freezing
-- it, adapter folders.
local peri = require "perilune"
local options = require "perilune.options"
local layers = require "perilune.nn.layers"
local linear = require "perilune.nn.linear"
local walk = require "perilune.nn.walk"

local M = { attach = linear.attach, detach = linear.detach }

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

--- PEFT's task type of a model; JSON's null of a net that is no published model.
function M.task(model)
  if not model.config then return peri.json.null end
  if model.config.is_encoder_decoder or model.config.model_type == "t5" then return "SEQ_2_SEQ_LM" end
  return model.kind == "causal" and "CAUSAL_LM" or "FEATURE_EXTRACTION"
end

--- Whether a published name is meant: a layer's, the end of one behind a dot, or a Lua pattern with ^.
function M.matches(name, want)
  if want:sub(1, 1) == "^" then return name:find(want) ~= nil end
  return name == want or name:sub(-#want - 1) == "." .. want
end

--- @class perilune.peft.Place  where an adapter may sit
--- @field layer perilune.nn.Linear|perilune.nn.Embedding
--- @field kind string  "linear", "head" (of a language model) or "embedding"
--- @field parts table[]  { name, rows } of each part: published ones behind the path of the model in the net, or the
--- layer's path
--- @field columns integer

local function is_inside(path, at) return at == "" or path == at or path:sub(1, #at + 1) == at .. "." end

-- The longest of some paths that a path is in, or nil.
local function innermost(paths, path)
  local best
  for _, at in ipairs(paths) do
    if is_inside(path, at) and (not best or #at > #best) then best = at end
  end
  return best
end

--- The layers of a net that adapters may sit on, in order, each once; not those that adapters are made of.
--- @param net perilune.nn.Module
--- @return perilune.peft.Place[]
function M.places(net)
  local list, publishers, adapters = {}, {}, {}
  walk.walk(net, { module = function(path, module)
    if walk.method(module, "_publish") then publishers[#publishers + 1] = path end
    if walk.method(module, "is_merged") then adapters[#adapters + 1] = path end
    local class = getmetatable(module)
    local embedding = class == layers.Embedding
    if not embedding and class ~= layers.Linear and not module.is_head or innermost(adapters, path) then return end
    local rows = embedding and module.num or module.out_features
    local at, parts = innermost(publishers, path), {}
    for i, part in ipairs(at and module.parts or { { path == "" and "layer" or path, rows } }) do
      local inside = at and at ~= "" and module.parts
      parts[i] = { inside and at .. "." .. part[1] or part[1], part[2] }
    end
    list[#list + 1] = { layer = module, kind = embedding and "embedding" or module.is_head and "head" or "linear",
      parts = parts, columns = embedding and module.dim or module.in_features }
  end })
  return list
end

--- Names of the layers that are meant. A name is that of a layer, the end of one behind a dot, or a Lua pattern that
--- starts with ^.
--- @param places perilune.peft.Place[]
--- @param wanted string|string[]  "all-linear" or names
--- @param who string  for messages
--- @param others boolean?  heads and tables of embeddings may be named, too
--- @return table<string, boolean>
function M.choose(places, wanted, who, others)
  local chosen, all = {}, {}
  for _, place in ipairs(places) do
    for _, part in ipairs((place.kind == "linear" or others and wanted ~= "all-linear") and place.parts or {}) do
      all[#all + 1] = part[1]
    end
  end
  if wanted == "all-linear" then
    for _, name in ipairs(all) do chosen[name] = true end
    return chosen
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
      options.raise(("%s: no layer is called %q; there are %s"):format(who, tostring(want), table.concat(last, ", ")))
    end
  end
  return chosen
end

--- Raise for what is no module, or has no layer for an adapter.
--- @param who string
--- @param net any
--- @return perilune.peft.Place[]
function M.need(who, net)
  options.argument(who, "model", net, "table")
  if not walk.is_module(net) then
    options.raise(("%s: model is a table of its own, expected a published model or a module of nn"):format(who))
  end
  return M.places(net)
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
