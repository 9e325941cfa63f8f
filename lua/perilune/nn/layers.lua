-- layers.lua - linear, embedding, norms, dropout, activations, containers. Each constructor takes
-- its sizes by position and the rest in a last table, or everything in one table.

local peri = require "perilune"
local Module = require "perilune.nn.module"
local init = require "perilune.nn.init_weights"
local options = require "perilune.options"

local class, parameter = Module.class, Module.parameter
local required = options.required

local M = {}

--- y = x W' + b. Weights begin uniform in +- 1 / sqrt(in).
--- Options: bias (true), activation (fused: "relu", "gelu", "gelu_tanh", "silu" ...).
M.Linear = class("Linear", function(self, ...)
  local o = options.read("Linear", { "in_features", "out_features" },
    { in_features = required, out_features = required, bias = true, activation = options.none }, 4, ...)
  self.in_features, self.out_features, self.activation = o.in_features, o.out_features, o.activation
  local bound = 1 / math.sqrt(o.in_features)
  self.weight = parameter(init.uniform_(peri.empty { o.out_features, o.in_features }, -bound, bound))
  if o.bias then self.bias = parameter(init.uniform_(peri.empty { o.out_features }, -bound, bound)) end
end)

--- @param x perilune.Tensor  (..., in)
--- @return perilune.Tensor  (..., out)
function M.Linear:forward(x) return x:linear(self.weight, self.bias, self.activation) end

function M.Linear:extra()
  return ("%d, %d%s"):format(self.in_features, self.out_features, self.bias and "" or ", bias = false")
end

--- Rows of a table by id. Options: std (1) of the initial weights.
M.Embedding = class("Embedding", function(self, ...)
  local o = options.read("Embedding", { "num", "dim" },
    { num = required, dim = required, std = 1 }, 4, ...)
  self.num, self.dim = o.num, o.dim
  self.weight = parameter(init.normal_(peri.empty { o.num, o.dim }, o.std))
end)

--- @param ids perilune.Tensor  (...) integers, counted from 0
--- @return perilune.Tensor  (..., dim)
function M.Embedding:forward(ids) return self.weight:embedding(ids) end

--- Scores of every row: the tied output layer of a language model.
--- @param x perilune.Tensor  (..., dim)
--- @return perilune.Tensor  (..., num)
function M.Embedding:logits(x) return x:linear(self.weight) end

function M.Embedding:extra() return ("%d, %d"):format(self.num, self.dim) end

--- Over the last dim (Ba et al. 2016). Options: eps (1e-5), bias (true).
M.LayerNorm = class("LayerNorm", function(self, ...)
  local o = options.read("LayerNorm", { "dim" }, { dim = required, eps = 1e-5, bias = true }, 4, ...)
  self.dim, self.eps = o.dim, o.eps
  self.weight = parameter(peri.ones { o.dim })
  if o.bias then self.bias = parameter(peri.zeros { o.dim }) end
end)

function M.LayerNorm:forward(x) return x:layer_norm(self.weight, self.bias, self.eps) end
function M.LayerNorm:extra() return tostring(self.dim) end

--- Over the last dim, without mean and bias (Zhang and Sennrich 2019). Options: eps (1e-6).
M.RMSNorm = class("RMSNorm", function(self, ...)
  local o = options.read("RMSNorm", { "dim" }, { dim = required, eps = 1e-6 }, 4, ...)
  self.dim, self.eps = o.dim, o.eps
  self.weight = parameter(peri.ones { o.dim })
end)

function M.RMSNorm:forward(x) return x:rms_norm(self.weight, self.eps) end
function M.RMSNorm:extra() return tostring(self.dim) end

--- Over groups of channels, x is (N, C, ...) (Wu and He 2018). Options: eps (1e-5).
M.GroupNorm = class("GroupNorm", function(self, ...)
  local o = options.read("GroupNorm", { "groups", "channels" },
    { groups = required, channels = required, eps = 1e-5 }, 4, ...)
  if o.channels % o.groups ~= 0 then
    error(("GroupNorm: %d channels do not divide into %d groups"):format(o.channels, o.groups), 3)
  end
  self.groups, self.channels, self.eps = o.groups, o.channels, o.eps
  self.weight = parameter(peri.ones { o.channels })
  self.bias = parameter(peri.zeros { o.channels })
end)

function M.GroupNorm:forward(x) return x:group_norm(self.weight, self.bias, self.groups, self.eps) end
function M.GroupNorm:extra() return ("%d, %d"):format(self.groups, self.channels) end

--- Zeroes elements with probability p while training, and scales the rest by 1 / (1 - p).
M.Dropout = class("Dropout", function(self, p)
  p = p or 0.5
  if type(p) ~= "number" or p < 0 or p >= 1 then
    error(("Dropout: p is %s, expected a number in [0, 1)"):format(tostring(p)), 3)
  end
  self.p = p
end)

function M.Dropout:forward(x)
  if not self.training or self.p == 0 then return x end
  return x:dropout(self.p)
end
function M.Dropout:extra() return tostring(self.p) end

-- Activations without weights: constructor name -> the op, with the constructor's own arguments.
local activations = {
  ReLU = "relu", LeakyReLU = "leaky_relu", ELU = "elu", GELU = "gelu", SiLU = "silu", Tanh = "tanh",
  Sigmoid = "sigmoid", Softplus = "softplus", Softmax = "softmax", LogSoftmax = "log_softmax",
  SwiGLU = "swiglu",
}
for name, op in pairs(activations) do
  M[name] = class(name, function(self, ...) self._args = table.pack(...) end)
  M[name].forward = function(self, x)
    return x[op](x, table.unpack(self._args, 1, self._args.n))
  end
end

M.Identity = class("Identity", function() end)
function M.Identity:forward(x) return x end -- luacheck: ignore 212

--- Merge the dims after the first.
M.Flatten = class("Flatten", function() end)
function M.Flatten:forward(x) return x:reshape { x:size(1), -1 } end -- luacheck: ignore 212

--- One after the other; plain functions may stand between modules. #s counts, s[i] is a part.
M.Sequential = class("Sequential", function(self, ...)
  for i = 1, select("#", ...) do self:add((select(i, ...))) end
end)

--- @param part perilune.nn.Module|function
--- @return self
function M.Sequential:add(part)
  if type(part) ~= "function" and not Module.is_module(part) then
    error(("Sequential: part %d is a %s, expected a module or a function"):format(#self + 1, type(part)), 2)
  end
  self[#self + 1] = part
  return self
end

function M.Sequential:forward(x, ...)
  for i = 1, #self do x = self[i](x, ...) end
  return x
end

return M
