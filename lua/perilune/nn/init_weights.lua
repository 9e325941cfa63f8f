-- init_weights.lua - initial weights. Each function overwrites a tensor in place from the context's
-- generator and returns it. Weights are (out, in) as nn.Linear keeps them.

local peri = require "perilune"
local acts = require "perilune.nn.activation"
local options = require "perilune.options"

local M = {}

-- Draws are made in f32 and cast by the copy, so that f16 weights get the same numbers.
local function write(t, values)
  local _ <close> = peri.no_grad()
  return t:copy_(values)
end

-- The tensor and the numbers behind it, checked; errors point at the user.
local function read(who, positional, rules, t, ...)
  if not peri.is_tensor(t) then options.raise(("init.%s: a %s, expected a tensor"):format(who, type(t))) end
  if not t.dtype:find "^b?f" then options.raise(("init.%s: a tensor of %s, expected floats"):format(who, t.dtype)) end
  local given = {}
  for i, name in ipairs(positional) do given[name] = (select(i, ...)) end
  local o = options.fill("init." .. who, given, rules, 4)
  return o
end

local function fans(who, t)
  if t.ndim < 2 then options.raise(("init.%s: %d dims, expected at least 2"):format(who, t.ndim)) end
  local field = t:numel() // (t:size(1) * t:size(2))
  return t:size(2) * field, t:size(1) * field -- in, out
end

--- Zeros.
--- @param t perilune.Tensor
--- @return perilune.Tensor t
function M.zeros_(t)
  read("zeros_", {}, {}, t)
  return write(t, peri.zeros_like(t))
end

--- Ones.
--- @param t perilune.Tensor
--- @return perilune.Tensor t
function M.ones_(t)
  read("ones_", {}, {}, t)
  return write(t, peri.ones_like(t))
end

local constant_rules = { value = options.number(options.required, "[-inf, inf]") }

--- One value everywhere.
--- @param t perilune.Tensor
--- @param value number
--- @return perilune.Tensor t
function M.constant_(t, value)
  local o = read("constant_", { "value" }, constant_rules, t, value)
  return write(t, peri.full_like(t, o.value))
end

local uniform_rules = { low = options.number(-1), high = options.number(1) }

local function uniform(t, low, high) return write(t, peri.rand(t.shape):mul(high - low):add(low)) end

--- Uniform in [low, high).
--- @param t perilune.Tensor
--- @param low number?  -1
--- @param high number?  1
--- @return perilune.Tensor t
function M.uniform_(t, low, high)
  local o = read("uniform_", { "low", "high" }, uniform_rules, t, low, high)
  if o.low > o.high then error(("init.uniform_: low is %g, above high, which is %g"):format(o.low, o.high), 2) end
  return uniform(t, o.low, o.high)
end

local function spread(doc) return options.number(1, "[0, inf)", doc) end

local normal_rules = { std = spread "standard deviation", mean = options.number(0) }

local function normal(t, std, mean) return write(t, peri.randn(t.shape):mul(std):add(mean or 0)) end

--- Normal.
--- @param t perilune.Tensor
--- @param std number?  1
--- @param mean number?  0
--- @return perilune.Tensor t
function M.normal_(t, std, mean)
  local o = read("normal_", { "std", "mean" }, normal_rules, t, std, mean)
  return normal(t, o.std, o.mean)
end

-- Below 0.01 hardly any draw would stay: the loop would not end in a life.
local trunc_rules = { std = normal_rules.std, mean = normal_rules.mean,
  limit = options.number(2, "[0.01, inf)", "in standard deviations") }

--- Normal, redrawn where it falls outside of mean +- limit * std.
--- @param t perilune.Tensor
--- @param std number?  1
--- @param mean number?  0
--- @param limit number?  2
--- @return perilune.Tensor t
function M.trunc_normal_(t, std, mean, limit)
  local o = read("trunc_normal_", { "std", "mean", "limit" }, trunc_rules, t, std, mean, limit)
  local x = peri.randn(t.shape)
  local outside = x:abs():gt(o.limit)
  while outside:any():item() do
    x = peri.where(outside, peri.randn(t.shape), x)
    outside = x:abs():gt(o.limit)
  end
  return write(t, x:mul(o.std):add(o.mean))
end

local gain_rules = { gain = spread "factor of the standard deviation" }

--- Uniform with variance gain^2 2 / (in + out) (Glorot and Bengio 2010).
--- @param t perilune.Tensor  (out, in, ...)
--- @param gain number?  1
--- @return perilune.Tensor t
function M.xavier_uniform_(t, gain)
  local o = read("xavier_uniform_", { "gain" }, gain_rules, t, gain)
  local fan_in, fan_out = fans("xavier_uniform_", t)
  local bound = o.gain * math.sqrt(6 / (fan_in + fan_out))
  return uniform(t, -bound, bound)
end

--- Normal with variance gain^2 2 / (in + out) (Glorot and Bengio 2010).
--- @param t perilune.Tensor  (out, in, ...)
--- @param gain number?  1
--- @return perilune.Tensor t
function M.xavier_normal_(t, gain)
  local o = read("xavier_normal_", { "gain" }, gain_rules, t, gain)
  local fan_in, fan_out = fans("xavier_normal_", t)
  return normal(t, o.gain * math.sqrt(2 / (fan_in + fan_out)))
end

local gains, gain_names = { linear = 1 }, { "linear", "leaky_relu" }
for _, a in ipairs(acts.list) do
  if a.gain then gains[a.name], gain_names[#gain_names + 1] = a.gain, a.name end
end

--- Factor that keeps the variance of activations: of "linear", "relu", "tanh" ... and "leaky_relu".
--- @param activation string
--- @param slope number?  of leaky_relu (0.01)
--- @return number
function M.gain(activation, slope)
  if slope ~= nil and (type(slope) ~= "number" or slope ~= slope) then
    error(("init.gain: slope is %s, expected a number"):format(tostring(slope)), 2)
  end
  if activation == "leaky_relu" then return math.sqrt(2 / (1 + (slope or 0.01) ^ 2)) end
  return gains[activation] or error(("init.gain: no gain for %q"):format(tostring(activation)), 2)
end

local kaiming_rules = {
  fan = options.choice("in", { "in", "out" }, "which side's variance is kept"),
  activation = options.choice("relu", gain_names, "that follows"),
  slope = options.number(0.01, "(-inf, inf)", "of leaky_relu"),
}

local function kaiming_std(who, t, opts)
  read(who, {}, {}, t)
  local o = options.fill("init." .. who, opts, kaiming_rules, 4)
  local fan_in, fan_out = fans(who, t)
  return M.gain(o.activation, o.slope) / math.sqrt(o.fan == "out" and fan_out or fan_in)
end

--- Uniform with variance gain^2 / fan (He et al. 2015).
--- @param t perilune.Tensor  (out, in, ...)
--- @param opts table?
--- @return perilune.Tensor t
function M.kaiming_uniform_(t, opts)
  local bound = math.sqrt(3) * kaiming_std("kaiming_uniform_", t, opts)
  return uniform(t, -bound, bound)
end
options.declare(M.kaiming_uniform_, { "t" }, kaiming_rules)

--- Normal with variance gain^2 / fan (He et al. 2015).
--- @param t perilune.Tensor  (out, in, ...)
--- @param opts table?
--- @return perilune.Tensor t
function M.kaiming_normal_(t, opts)
  local std = kaiming_std("kaiming_normal_", t, opts)
  return normal(t, std)
end
options.declare(M.kaiming_normal_, { "t" }, kaiming_rules)

--- A random matrix with orthonormal rows or columns (whichever are fewer), times gain. The polar
--- factor of a Gaussian matrix is uniformly distributed; it is reached by Newton-Schulz steps
--- X (15 I - 10 X'X + 3 (X'X)^2) / 8 (Bjorck and Bowie 1971), which need products only.
--- @param t perilune.Tensor  (out, ...)
--- @param gain number?  1
--- @return perilune.Tensor t
function M.orthogonal_(t, gain)
  local o = read("orthogonal_", { "gain" }, gain_rules, t, gain)
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
  return write(t, x:reshape(t.shape):mul(o.gain))
end

M.lsuv_ = require("perilune.nn.lsuv").lsuv_

return require "perilune.names"(M, "perilune.nn.init")
