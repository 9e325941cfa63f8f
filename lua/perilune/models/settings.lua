-- settings.lua - settings of a config that change what a model computes and are not supported: refused by name, so
-- that no model runs with other mathematics than its config says. Sizes and what is supported are read by the
-- architectures themselves; what only concerns training or speed is nobody's business.
local M = {}

local function one_of(...)
  local values = { ... }
  return function(v)
    for _, w in ipairs(values) do if v == w then return true end end
    return false
  end
end
local function is_false(v) return v == false end
local function is_empty(v) return type(v) == "table" and next(v) == nil or v == false end
local full = one_of "full_attention"
local function kinds_of_layers(v)
  if type(v) ~= "table" then return false end
  for _, kind in ipairs(v) do
    if kind ~= "full_attention" and kind ~= "sliding_attention" then return false end
  end
  return true
end
local function all_full(v)
  if type(v) ~= "table" then return false end
  for _, kind in ipairs(v) do if not full(kind) then return false end end
  return true
end

-- Setting -> whether a value (never nil) is what the model does anyway, and what is expected in words.
local everywhere = {
  quantization_config = { is_empty, "weights that are not packed; save the model dequantised, or as GGUF" },
  pruned_heads = { is_empty, "none" },
  partial_rotary_factor = { one_of(1), "1" },
  add_cross_attention = { is_false, "false" },
  use_bidirectional_attention = { is_false, "false" },
  attention_chunk_size = { is_false, "none" },
}
local encoder = {
  position_embedding_type = { one_of "absolute", "absolute" },
  is_decoder = { is_false, "false" },
}
local decoder = { position_embedding_type = { one_of("rope", "rotary"), "rope" }, layer_types = { all_full,
  "full_attention in every layer" } }
local windows = { position_embedding_type = decoder.position_embedding_type, layer_types = { kinds_of_layers,
  "full_attention or sliding_attention for each layer" } }
local by_type = {
  bert = encoder, distilbert = encoder, llama = decoder, qwen2 = windows, qwen3 = windows, gemma2 = windows,
  mistral = { position_embedding_type = decoder.position_embedding_type, layer_types = { kinds_of_layers,
    "sliding_attention in every layer with a sliding_window, else full_attention" } },
  gpt2 = { position_embedding_type = encoder.position_embedding_type },
  t5 = { is_decoder = { is_false, "false" } },
  deepseek_v3 = {
    position_embedding_type = decoder.position_embedding_type, layer_types = decoder.layer_types,
    topk_method = { one_of "noaux_tc", "noaux_tc" }, scoring_func = { one_of "sigmoid", "sigmoid" },
    moe_layer_freq = { one_of(1), "1" },
  },
}

local function shown(v)
  if type(v) ~= "table" then return type(v) == "string" and ("%q"):format(v) or tostring(v) end
  if v.quant_method then return tostring(v.quant_method) end
  for _, kind in ipairs(v) do if not full(kind) then return ("a list with %q"):format(tostring(kind)) end end
  return "a table"
end

--- The rules of an architecture: setting -> { fits, expected }.
--- @param kind string  model_type
--- @return table
function M.rules(kind)
  local out = {}
  for key, rule in pairs(everywhere) do out[key] = rule end
  for key, rule in pairs(by_type[kind] or {}) do out[key] = rule end
  return out
end

--- Raise where a masked-language-model head is not the embedding.
--- @param config table
function M.check_tied_head(config)
  for _, key in ipairs { "tie_word_embeddings", "tie_weights_" } do
    if config[key] == false then
      error(("%s: the setting %s = false is not supported beside a masked-language-model head, expected true"):format(
        config.model_type, key), 0)
    end
  end
end

--- Raise for the first setting, by name, that is not supported.
--- @param config table
function M.check(config)
  local rules, keys = M.rules(config.model_type), {}
  for key in pairs(rules) do keys[#keys + 1] = key end
  table.sort(keys)
  for _, key in ipairs(keys) do
    local v = config[key]
    if v == nil and key == "partial_rotary_factor" and type(config.rope_parameters) == "table" then
      v = config.rope_parameters[key]
    end
    if v ~= nil and not rules[key][1](v) then
      error(("%s: the setting %s = %s is not supported, expected %s"):format(config.model_type, key, shown(v),
        rules[key][2]), 0)
    end
  end
  if config.model_type == "mistral" and type(config.layer_types) == "table" then
    local want = config.sliding_window and "sliding_attention" or "full_attention"
    for i, kind in ipairs(config.layer_types) do
      if kind ~= want then
        error(("mistral: the setting layer_types has %q for layer %d, expected %s (%s)"):format(kind, i - 1, want,
          rules.layer_types[2]), 0)
      end
    end
  end
end

return M
