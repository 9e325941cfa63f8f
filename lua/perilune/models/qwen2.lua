-- qwen2.lua - Qwen 2 and 2.5 (2407.10671): Llama with biases on q, k and v, and optionally a sliding
-- window in the upper layers.
local base = require "perilune.models.base"
local fields = require "perilune.models.fields"
local llama = require "perilune.models.llama"

local Qwen2 = base.class("qwen2", llama.Class)

--- Which layers have a sliding window: layer_types names them, older configs those from
--- max_window_layers on.
function Qwen2.windows(config, s)
  local window = config.use_sliding_window and fields.count(config, "sliding_window", 0) or 0
  local kinds, first = config.layer_types, fields.count(config, "max_window_layers", s.layers)
  for i = 1, s.layers do
    local sliding = i > first
    if kinds then sliding = kinds[i] == "sliding_attention" end
    s.windows[i] = sliding and window or 0
  end
end

function Qwen2.read(config, has)
  local s = llama.Class.read(config, has)
  s.qkv_bias, s.out_bias = true, false
  Qwen2.windows(config, s)
  return s
end

return base.module(Qwen2)
