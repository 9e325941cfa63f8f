-- mistral.lua - Mistral (Jiang et al., 2310.06825): Llama whose positions see a sliding window.
local base = require "perilune.models.base"
local fields = require "perilune.models.fields"
local llama = require "perilune.models.llama"

local Mistral = base.class("mistral", llama.Class)

function Mistral.read(config, has)
  local s = llama.Class.read(config, has)
  for i = 1, s.layers do s.windows[i] = fields.count(config, "sliding_window", 0) end
  return s
end

return base.module(Mistral)
