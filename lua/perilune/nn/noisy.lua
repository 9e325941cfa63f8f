-- noisy.lua - a linear layer whose weights are drawn anew at every pass, so that a policy explores by itself.

local peri = require "perilune"
local Module = require "perilune.nn.module"
local init = require "perilune.nn.init_weights"
local options = require "perilune.options"

local M = {}

local function size(doc) return options.integer(options.required, "[1, inf)", doc) end

local rules = {
  in_features = size "of x's last dim",
  out_features = size "of y's last dim",
  sigma = options.number(0.5, "(0, inf)", "the deviations begin as sigma / sqrt(in)"),
}

--- y = x (W + V e)' + b + v e', with learned means W, b and deviations V, v and noise e that is factorised,
--- f(e_out) f(e_in)', f(e) = sign(e) sqrt(|e|) (Fortunato et al. 2018, eq. 10 and 11). In training each call draws it
--- anew, for all rows alike; in evaluation there is none.
--- @class perilune.nn.NoisyLinear
M.NoisyLinear = Module.class("NoisyLinear", function(self, ...)
  local o = options.read("NoisyLinear", { "in_features", "out_features" }, rules, 4, ...)
  self.in_features, self.out_features = o.in_features, o.out_features
  local bound, deviation = 1 / math.sqrt(o.in_features), o.sigma / math.sqrt(o.in_features)
  self.weight = Module.parameter(init.uniform_(peri.empty { o.out_features, o.in_features }, -bound, bound))
  self.bias = Module.parameter(init.uniform_(peri.empty { o.out_features }, -bound, bound))
  self.weight_sigma = Module.parameter(peri.full({ o.out_features, o.in_features }, deviation))
  self.bias_sigma = Module.parameter(peri.full({ o.out_features }, deviation))
end)
options.declare(M.NoisyLinear, { "in_features", "out_features" }, rules)

-- Factorised noise for n features, (n); of copies their own, (copies, 1, ..., n) beside an x of so many dims.
local function scaled_noise(n, copies, dims)
  local shape = {}
  if copies then
    shape[1] = copies
    for i = 2, dims - 1 do shape[i] = 1 end
  end
  shape[#shape + 1] = n
  local e = peri.randn(shape)
  return e:sign():mul(e:abs():sqrt())
end

local function product(x, weight, bias)
  if weight.ndim == 2 then return x:linear(weight, bias) end
  return peri.mlp(x, { weight }, { bias }, "none")
end

--- @param x perilune.Tensor  (..., in), of nn.Copies (copies, ..., in)
--- @return perilune.Tensor  (..., out)
function M.NoisyLinear:forward(x)
  local y = product(x, self.weight, self.bias)
  if not self.training then return y end
  local copies = self.weight.ndim == 3 and self.weight.shape[1] or nil
  local from, to = scaled_noise(self.in_features, copies, x.ndim), scaled_noise(self.out_features, copies, x.ndim)
  local bias = self.bias_sigma
  if copies then
    local shape = to.shape
    bias = bias:reshape(shape)
  end
  -- x diag(from) V' diag(to) = x (V * to from')'
  return y + (product(x * from, self.weight_sigma) + bias) * to
end

-- What a policy file holds of it: see perilune.rl.program.
function M.NoisyLinear:program(build, x) return build:op("linear", { x, self.weight, self.bias }) end

function M.NoisyLinear:_widths() return self.in_features, self.out_features end
function M.NoisyLinear:extra() return ("%d, %d"):format(self.in_features, self.out_features) end

return M
