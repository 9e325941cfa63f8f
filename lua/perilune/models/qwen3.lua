-- qwen3.lua - Qwen 3 (2505.09388): Llama with an RMSNorm of every head's queries and keys.
local base = require "perilune.models.base"
local llama = require "perilune.models.llama"
local qwen2 = require "perilune.models.qwen2"

local Qwen3 = base.class("qwen3", llama.Class)

function Qwen3.read(config, has)
  local s = llama.Class.read(config, has)
  s.qk_norm = true
  qwen2.Class.windows(config, s)
  return s
end

return base.module(Qwen3)
