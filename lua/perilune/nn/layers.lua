-- layers.lua - embedding, norms, dropout, activations; and the linear layer, which stands in linear.lua. Each
-- constructor takes its sizes by position and the rest in a last table, or everything in one table.

local peri = require "perilune"
local Module = require "perilune.nn.module"
local init = require "perilune.nn.init_weights"
local acts = require "perilune.nn.activation"
local linear = require "perilune.nn.linear"
local options = require "perilune.options"

local class, parameter = Module.class, Module.parameter
local required = options.required

local M = {}

-- Put a class of layers there, with what it takes for help() and the checks.
local function layer(name, positional, rules, init_layer)
  local made = class(name, function(self, ...)
    local o = options.read(name, positional, rules, 4, ...)
    init_layer(self, o)
  end)
  return options.declare(made, positional, rules)
end
M._layer = layer

local function size(doc) return options.integer(required, "[1, inf)", doc) end
local function epsilon(default) return options.number(default, "(0, inf)", "added to the variance") end

M.Linear = linear.Linear

local embedding_rules = {
  num = size "rows of the table: ids go from 0 to num - 1",
  dim = size "of a row",
  std = options.number(1, "[0, inf)", "of the normal initial weights"),
}

--- Rows of a table by id.
M.Embedding = layer("Embedding", { "num", "dim" }, embedding_rules, function(self, o)
  self.num, self.dim = o.num, o.dim
  self.weight = parameter(init.normal_(peri.empty { o.num, o.dim }, o.std))
end)

M.Embedding._copied, M.Embedding._guests = linear.Linear._copied, linear.Linear._guests
M.Embedding.references = { adapter = "dropped", parts = true }

--- @param ids perilune.Tensor  (...) integers, counted from 0
--- @return perilune.Tensor  (..., dim)
function M.Embedding:forward(ids)
  local x, adapter = self.weight:embedding(ids), self.adapter
  if self._widens and x.dtype ~= "f32" and x.dtype ~= "f64" then x = x:to "f32" end
  return adapter and adapter:forward(ids, x, self) or x
end

--- Scores of every row: the tied output layer of a language model.
--- @param x perilune.Tensor  (..., dim)
--- @return perilune.Tensor  (..., num)
function M.Embedding:logits(x) return x:linear(self.weight) end

function M.Embedding:_widths() return nil, self.dim end

M.Embedding._held = linear.Linear._held

function M.Embedding:_refuses(new)
  if new.num and new.num ~= self.num then return ("it has %d rows, the new one %d"):format(self.num, new.num) end
end

function M.Embedding:extra() return ("%d, %d"):format(self.num, self.dim) end

-- A table whose rows are put in later, of any dtype; what is looked up is f32. parts: { { published name, rows } }.
function M._embedding_of_parts(parts, dim)
  local self = Module.instance(M.Embedding)
  self.num, self.dim, self.parts, self._widens = parts[1][2], dim, parts, true
  return self
end

local layer_norm_rules = {
  dim = size "of x's last dim", eps = epsilon(1e-5), bias = options.boolean(true, "add a learned shift"),
}

--- Mean 0 and variance 1 over the last dim, then a learned scale and shift (Ba et al. 2016).
M.LayerNorm = layer("LayerNorm", { "dim" }, layer_norm_rules, function(self, o)
  self.dim, self.eps = o.dim, o.eps
  self.weight = parameter(peri.ones { o.dim })
  if o.bias then self.bias = parameter(peri.zeros { o.dim }) end
end)

function M.LayerNorm:forward(x) return x:layer_norm(self.weight, self.bias, self.eps) end

--- The norm of a residual stream x and what a layer adds to it, and their sum, in one pass.
--- @param h perilune.Tensor  (..., dim)
--- @param x perilune.Tensor  (..., dim)
--- @return perilune.Tensor y  norm(x + h)
--- @return perilune.Tensor x  x + h
function M.LayerNorm:add(h, x) return h:add_layer_norm(x, self.weight, self.bias, self.eps) end
function M.LayerNorm:_widths() return self.dim, self.dim end
function M.LayerNorm:extra() return tostring(self.dim) end

local rms_norm_rules = { dim = size "of x's last dim", eps = epsilon(1e-6) }

--- Mean square 1 over the last dim, then a learned scale: no mean, no shift (Zhang and Sennrich 2019).
M.RMSNorm = layer("RMSNorm", { "dim" }, rms_norm_rules, function(self, o)
  self.dim, self.eps = o.dim, o.eps
  self.weight = parameter(peri.ones { o.dim })
end)

function M.RMSNorm:forward(x) return x:rms_norm(self:scale(), self.eps) end

--- What the norm is multiplied by. -- (dim)
--- @return perilune.Tensor
function M.RMSNorm:scale() return self.weight end

--- The norm of a residual stream x and what a layer adds to it, and their sum, in one pass.
--- @param h perilune.Tensor  (..., dim)
--- @param x perilune.Tensor  (..., dim)
--- @return perilune.Tensor y  norm(x + h)
--- @return perilune.Tensor x  x + h
function M.RMSNorm:add(h, x) return h:add_rms_norm(x, self:scale(), self.eps) end
function M.RMSNorm:_widths() return self.dim, self.dim end
function M.RMSNorm:extra() return tostring(self.dim) end

local group_norm_rules = {
  groups = size "that the channels divide into", channels = size "C of x (N, C, ...)", eps = epsilon(1e-5),
}

--- Mean 0 and variance 1 over groups of channels, x is (N, C, ...) (Wu and He 2018).
M.GroupNorm = layer("GroupNorm", { "groups", "channels" }, group_norm_rules, function(self, o)
  if o.channels % o.groups ~= 0 then
    error(("GroupNorm: %d channels do not divide into %d groups"):format(o.channels, o.groups), 4)
  end
  self.groups, self.channels, self.eps = o.groups, o.channels, o.eps
  self.weight = parameter(peri.ones { o.channels })
  self.bias = parameter(peri.zeros { o.channels })
end)

function M.GroupNorm:forward(x) return x:group_norm(self.weight, self.bias, self.groups, self.eps) end
function M.GroupNorm:extra() return ("%d, %d"):format(self.groups, self.channels) end

local dropout_rules = { p = options.number(0.5, "[0, 1)", "probability that an element becomes 0") }

--- Zeroes elements with probability p while training, and scales the rest by 1 / (1 - p).
M.Dropout = layer("Dropout", { "p" }, dropout_rules, function(self, o) self.p = o.p end)

function M.Dropout:forward(x)
  if not self.training or self.p == 0 then return x end
  return x:dropout(self.p)
end
function M.Dropout:extra() return tostring(self.p) end

-- ---- activations without weights ----

-- The op and, in its order, the arguments that the constructor takes. The text stands in for a comment where the
-- class has no line of its own.
local function activation(name, op, positional, rules, text)
  local made = layer(name, positional, rules, function(self, o)
    self._args = { n = #positional }
    for i, key in ipairs(positional) do self._args[i] = o[key] end
  end)
  made.forward = function(self, x) return x[op](x, table.unpack(self._args, 1, self._args.n)) end
  made.extra = function(self)
    local shown = {}
    for i = 1, self._args.n do shown[i] = tostring(self._args[i]) end
    return table.concat(shown, ", ")
  end
  return options.declare(made, positional, rules, text)
end

local function last_dim() return { dim = options.integer(-1, "(-inf, inf)", "that sums to 1; -1 is the last") } end

--- x, or slope x where x is below 0.
M.LeakyReLU = activation("LeakyReLU", "leaky_relu", { "slope" },
  { slope = options.number(0.01, "(-inf, inf)", "below 0") })

--- x, or alpha (e^x - 1) where x is below 0.
M.ELU = activation("ELU", "elu", { "alpha" }, { alpha = options.number(1, "(-inf, inf)", "minus the limit at -inf") })

--- x times the normal distribution function of x (Hendrycks and Gimpel 2016).
M.GELU = activation("GELU", "gelu", { "approximate" },
  { approximate = options.choice("none", { "none", "tanh" }, "by erf, or the approximation by tanh") })

-- The others of the runtime's registry, which take nothing.
for _, a in ipairs(acts.list) do
  if not M[a.layer] then M[a.layer] = activation(a.layer, a.name, {}, {}, a.doc) end
end

--- ln(1 + e^(beta x)) / beta, x itself where beta x is above the threshold.
M.Softplus = activation("Softplus", "softplus", { "beta", "threshold" },
  { beta = options.number(1, "(0, inf)", "sharpness"), threshold = options.number(20, "(-inf, inf)", "of beta x") })

--- e^x, scaled to the sum 1 along a dim.
M.Softmax = activation("Softmax", "softmax", { "dim" }, last_dim())

--- The logarithm of softmax.
M.LogSoftmax = activation("LogSoftmax", "log_softmax", { "dim" }, last_dim())

--- silu(gate) up, where gate is the first half of the last dim and up the second (Shazeer 2020).
M.SwiGLU = activation("SwiGLU", "swiglu", {}, {})

--- x as it is.
M.Identity = layer("Identity", {}, {}, function() end)
function M.Identity:forward(x) return x end -- luacheck: ignore 212

--- Merge the dims after the first.
M.Flatten = layer("Flatten", {}, {}, function() end)
function M.Flatten:forward(x) return x:reshape { x:size(1), -1 } end -- luacheck: ignore 212

return M
