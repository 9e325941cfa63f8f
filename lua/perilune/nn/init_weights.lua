-- init_weights.lua - initial weights. Each function overwrites a tensor in place from the context's
-- generator and returns it. Weights are (out, in) as nn.Linear keeps them.

local peri = require "perilune"

local M = {}

-- Draws are made in f32 and cast by the copy, so that f16 weights get the same numbers.
local function write(t, values)
  local _ <close> = peri.no_grad()
  return t:copy_(values)
end

local function fans(t)
  if t.ndim < 2 then error(("init: %d dims, expected at least 2"):format(t.ndim), 3) end
  local field = t:numel() // (t:size(1) * t:size(2))
  return t:size(2) * field, t:size(1) * field -- in, out
end

--- @param t perilune.Tensor
function M.zeros_(t) return write(t, peri.zeros_like(t)) end

--- @param t perilune.Tensor
function M.ones_(t) return write(t, peri.ones_like(t)) end

--- @param t perilune.Tensor
--- @param value number
function M.constant_(t, value) return write(t, peri.full_like(t, value)) end

--- @param t perilune.Tensor
--- @param low number?  -1
--- @param high number?  1
function M.uniform_(t, low, high)
  low, high = low or -1, high or 1
  return write(t, peri.rand(t.shape):mul(high - low):add(low))
end

--- @param t perilune.Tensor
--- @param std number?  1
--- @param mean number?  0
function M.normal_(t, std, mean)
  return write(t, peri.randn(t.shape):mul(std or 1):add(mean or 0))
end

--- Normal, redrawn where it falls outside of mean +- limit * std.
--- @param t perilune.Tensor
--- @param std number?  1
--- @param mean number?  0
--- @param limit number?  2
function M.trunc_normal_(t, std, mean, limit)
  limit = limit or 2
  local x = peri.randn(t.shape)
  local outside = x:abs():gt(limit)
  while outside:any():item() do
    x = peri.where(outside, peri.randn(t.shape), x)
    outside = x:abs():gt(limit)
  end
  return write(t, x:mul(std or 1):add(mean or 0))
end

--- Glorot and Bengio 2010: variance 2 / (in + out).
--- @param t perilune.Tensor
--- @param gain number?  1
function M.xavier_uniform_(t, gain)
  local fan_in, fan_out = fans(t)
  local bound = (gain or 1) * math.sqrt(6 / (fan_in + fan_out))
  return M.uniform_(t, -bound, bound)
end

--- @param t perilune.Tensor
--- @param gain number?  1
function M.xavier_normal_(t, gain)
  local fan_in, fan_out = fans(t)
  return M.normal_(t, (gain or 1) * math.sqrt(2 / (fan_in + fan_out)))
end

local gains = {
  linear = 1, sigmoid = 1, tanh = 5 / 3, relu = math.sqrt(2), silu = math.sqrt(2), gelu = math.sqrt(2),
}

--- Factor that keeps the variance of activations: of "linear", "relu", "tanh" ... and "leaky_relu".
--- @param activation string
--- @param slope number?  of leaky_relu (0.01)
--- @return number
function M.gain(activation, slope)
  if activation == "leaky_relu" then return math.sqrt(2 / (1 + (slope or 0.01) ^ 2)) end
  return gains[activation] or error(("init.gain: no gain for %q"):format(tostring(activation)), 2)
end

local function kaiming_std(t, opts)
  local o = opts or {}
  local fan_in, fan_out = fans(t)
  local gain = M.gain(o.activation or "relu", o.slope)
  return gain / math.sqrt(o.fan == "out" and fan_out or fan_in)
end

--- He et al. 2015: variance gain^2 / fan.
--- @param t perilune.Tensor
--- @param opts table?  fan "in" | "out", activation ("relu"), slope
function M.kaiming_uniform_(t, opts)
  local bound = math.sqrt(3) * kaiming_std(t, opts)
  return M.uniform_(t, -bound, bound)
end

--- @param t perilune.Tensor
--- @param opts table?  fan "in" | "out", activation ("relu"), slope
function M.kaiming_normal_(t, opts) return M.normal_(t, kaiming_std(t, opts)) end

--- A random matrix with orthonormal rows or columns (whichever are fewer), times gain. The polar
--- factor of a Gaussian matrix is uniformly distributed; it is reached by Newton-Schulz steps
--- X (15 I - 10 X'X + 3 (X'X)^2) / 8 (Bjorck and Bowie 1971), which need products only.
--- @param t perilune.Tensor  (out, ...)
--- @param gain number?  1
function M.orthogonal_(t, gain)
  if t.ndim < 2 then error(("init.orthogonal_: %d dims, expected at least 2"):format(t.ndim), 2) end
  local _ <close> = peri.no_grad()
  local rows, cols = t:size(1), t:numel() // t:size(1)
  local tall = rows >= cols
  local n = math.min(rows, cols)
  local x = peri.randn({ math.max(rows, cols), n }, t.dtype == "f64" and "f64" or "f32")
  x = x:div(x:square():sum():sqrt():item()) -- all singular values at most 1
  local eye = peri.eye(n, n, x.dtype)
  local tolerance = x.dtype == "f64" and 1e-12 or 1e-5
  for _ = 1, 100 do
    local a = x:transpose(1, 2):matmul(x) -- (n, n)
    if a:sub(eye):abs():max():item() < tolerance then break end
    x = x:matmul(eye:mul(15):sub(a:mul(10)):add(a:matmul(a):mul(3)):div(8))
  end
  if not tall then x = x:transpose(1, 2) end
  return write(t, x:reshape(t.shape):mul(gain or 1))
end

return M
