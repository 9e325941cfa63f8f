-- peft - fine-tuning few parameters of a frozen model: low-rank adapters (LoRA, and QLoRA over
-- quantised weights), bottleneck adapters, prefix tuning. Adapters are trained with
--   local adapter = peri.peft.lora(model, { r = 16, alpha = 32 })
--   local opt = optim.AdamW(adapter:parameters(), { lr = 2e-4 })
-- and saved as adapter_config.json and adapter_model.safetensors. An adapter stands beside the model's own
-- weights: model:save(), model:state_dict() and model:parameters() are those weights, without an adapter that
-- is not merged, and model:copy() is the model without adapters, which a KL penalty takes as its reference.
local peri = require "perilune"
local foreign = require "perilune.foreign"
local lora = require "perilune.peft.lora"
local bottleneck = require "perilune.peft.bottleneck"
local prefix = require "perilune.peft.prefix"
local peft_config = require "perilune.peft.config"

local M = { lora = lora.new, bottleneck = bottleneck.new, prefix = prefix.new }

local kinds = { LORA = lora, BOTTLENECK = bottleneck, PREFIX_TUNING = prefix }

-- A raised message without the place in our own source.
local function plain(message) return (tostring(message):gsub("^[^%s:]+%.lua:%d+: ", "")) end

--- Put an adapter that was saved (by PEFT or here) on a model.
--- @param model table
--- @param folder string  with adapter_config.json and adapter_model.safetensors
--- @return table|nil adapter  of the kind that the config names
--- @return string? message
function M.load(model, folder)
  local path = folder .. "/adapter_config.json"
  local config, message = foreign.read(path)
  if not config then return nil, message end
  foreign.without_null(config)
  local kind = kinds[config.peft_type]
  if not kind then
    return nil, ("%s: peft_type %s; LORA, PREFIX_TUNING and BOTTLENECK are supported"):format(path,
      config.peft_type == nil and "is missing" or ("%q is not supported"):format(tostring(config.peft_type)))
  end
  message = peft_config.problem(config)
  if message then return nil, ("%s: %s"):format(path, message) end
  local tensors
  tensors, message = peri.safetensors.load(folder .. "/adapter_model.safetensors")
  if not tensors then return nil, message end
  local ok, adapter
  if kind.open then -- LoRA has more in its folder than options
    ok, adapter, message = pcall(kind.open, model, config, tensors)
    if not ok then return nil, ("%s: %s"):format(path, plain(adapter)) end
    if not adapter then return nil, ("%s: %s"):format(folder, plain(message)) end
    return adapter
  end
  local opts
  opts, message = kind.read_config(config)
  if not opts then return nil, ("%s: %s"):format(path, message) end
  ok, adapter = pcall(kind.new, model, opts)
  if not ok then return nil, ("%s: %s"):format(path, plain(adapter)) end
  ok, message = pcall(adapter.load_state_dict, adapter, kind.read_tensors(tensors))
  if not ok then
    adapter:remove()
    adapter._thaw()
    return nil, ("%s: %s"):format(folder, plain(message))
  end
  return adapter
end

return require "perilune.names"(M, "perilune.peft")
