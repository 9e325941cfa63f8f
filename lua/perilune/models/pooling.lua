-- pooling.lua - one vector for each row of a batch out of its hidden states: what sentence-transformers
-- has in modules/Pooling.
local peri = require "perilune"
local options = require "perilune.options"

local M = {}

-- (B, T, 1) f32: 1 on tokens.
local function weights(batch, hidden) return batch.mask:to(hidden.dtype):unsqueeze(3) end

local function sum(hidden, w) return hidden:masked_fill(w:eq(0), 0):mul(w):sum(2) end

-- Hidden state of one column of each row, columns (B) i64. -- (B, D)
local function at(hidden, columns)
  local index = columns:reshape { hidden:size(1), 1, 1 }:expand { -1, 1, hidden:size(3) }
  return hidden:gather(index, 2):squeeze(2)
end

local kinds = {}

--- The mean over tokens.
function kinds.mean(hidden, batch)
  local w = weights(batch, hidden)
  return sum(hidden, w):div(w:sum(2):clamp(1e-9))
end

--- The first token, which encoders train for it.
function kinds.cls(hidden, batch) return at(hidden, batch.start) end

--- The last token, which has seen all others in a causal model.
function kinds.last(hidden, batch) return at(hidden, batch.start:add(batch.lengths):sub(1):clamp(0)) end

--- The largest value of each channel.
function kinds.max(hidden, batch)
  return (hidden:masked_fill(batch.mask:logical_not():unsqueeze(3), -math.huge):max(2))
end

--- The sum over tokens, divided by the square root of their number.
function kinds.mean_sqrt_len(hidden, batch)
  local w = weights(batch, hidden)
  return sum(hidden, w):div(w:sum(2):clamp(1e-9):sqrt())
end

--- The mean with weights 1, 2, 3, ... (SGPT, 2202.08904).
function kinds.weighted_mean(hidden, batch)
  local w = batch.positions:add(1):to(hidden.dtype):unsqueeze(3):mul(weights(batch, hidden))
  return sum(hidden, w):div(w:sum(2):clamp(1e-9))
end

--- Names of the ways to pool.
M.names = options.names(kinds)
for name, fn in pairs(kinds) do M[name] = fn end

--- One vector a row.
--- @param hidden perilune.Tensor  (B, T, D)
--- @param batch perilune.Batch
--- @param kind string|string[]  of M.names; of a list the vectors stand side by side
--- @return perilune.Tensor  (B, D), or (B, n D)
function M.pool(hidden, batch, kind)
  if type(kind) == "string" then return kinds[kind](hidden, batch) end
  local list = {}
  for i, name in ipairs(kind) do list[i] = kinds[name](hidden, batch) end
  return #list == 1 and list[1] or peri.cat(list, 2)
end

return M
