-- mlp.lua - linear layers with an activation between them: small policies and values, in one op where the layers are
-- as they were made.

local peri = require "perilune"
local Module = require "perilune.nn.module"
local acts = require "perilune.nn.activation"
local init = require "perilune.nn.init_weights"
local linear = require "perilune.nn.linear"
local dtypes = require "perilune.dtypes"
local options = require "perilune.options"

local M = {}

local rules = {
  sizes = options.value(options.required, "table", "of x's last dim, of each hidden layer, of y's last dim"),
  activation = options.choice("tanh", acts.choices { "none" }, "between the layers"),
  bias = options.boolean(true, "of every layer"),
  init = options.choice("orthogonal", { "orthogonal", "uniform" },
    "initial weights: orthogonal with biases of 0, or those of Linear"),
  gain = options.number(math.sqrt(2), "[0, inf)", "of the orthogonal weights of hidden layers"),
  last_gain = options.number(1, "[0, inf)", "and of the last layer: 0.01 makes a policy begin near uniform"),
}

-- Sizes may be the list part of the table that has the options, or a table before it.
local function split(first, ...)
  if type(first) ~= "table" or getmetatable(first) ~= nil or first[1] == nil or first.sizes then return first, ... end
  local sizes, given = table.move(first, 1, #first, 1, {}), {}
  for k, v in pairs(first) do
    if math.type(k) ~= "integer" or k < 1 or k > #first then given[k] = v end
  end
  if select("#", ...) > 0 then return sizes, ... end
  given.sizes = sizes
  return given
end

local function check_sizes(sizes)
  for i, n in ipairs(sizes) do
    if math.type(n) ~= "integer" or n < 1 then
      options.raise(("MLP: size %d is %s, expected an integer in [1, inf)"):format(i, tostring(n)))
    end
  end
  if #sizes < 2 then options.raise(("MLP: %d sizes, expected at least 2"):format(#sizes)) end
end

--- A network of linear layers with an activation between them: nn.MLP{ 4, 64, 64, 2, activation = "tanh" }. Its
--- layers are Linear, called layers.0, layers.1 ...; they run as one op, and one by one while an adapter or a
--- hook is on one of them, or a weight is quantised. Initial weights are those that CleanRL's PPO has.
--- @class perilune.nn.MLP
--- @field layers perilune.nn.Linear[]
--- @field activation string
M.MLP = Module.class("MLP", function(self, ...)
  local o = options.read("MLP", { "sizes" }, rules, 4, split(...))
  check_sizes(o.sizes)
  self.activation, self.layers = o.activation, {}
  for l = 1, #o.sizes - 1 do
    local layer = linear.Linear(o.sizes[l], o.sizes[l + 1], { bias = o.bias })
    if o.init == "orthogonal" then
      init.orthogonal_(layer.weight, l < #o.sizes - 1 and o.gain or o.last_gain)
      if layer.bias then init.zeros_(layer.bias) end
    end
    self.layers[l] = layer
  end
end)
options.declare(M.MLP, { "sizes" }, rules)

function M.MLP:_widths() return self.layers[1].in_features, self.layers[#self.layers].out_features end

function M.MLP:extra()
  local sizes = { tostring(self.layers[1].in_features) }
  for i, layer in ipairs(self.layers) do sizes[i + 1] = tostring(layer.out_features) end
  return ("%s, activation = %s"):format(table.concat(sizes, ", "), self.activation)
end

local plain = dtypes.is_float

local weak = { __mode = "v" }

-- The lists that the op takes, remembered while the layers' tensors are the same and alive; nil where the layers have
-- to run one by one.
function M.MLP:_lists()
  if rawget(self, "forward") then return nil end
  local layers, w, b = self.layers, self._weights, self._biases
  local same = w ~= nil and #w == #layers
  for i = 1, #layers do
    local layer = layers[i]
    local class = getmetatable(layer)
    if class ~= linear.Linear and class ~= linear.LinearCopies or layer.adapter or layer.activation
      or rawget(layer, "forward") then
      return nil
    end
    same = same and rawequal(w[i], layer.weight) and rawequal(b[i], layer.bias)
  end
  if same then return w, b end
  w, b = setmetatable({}, weak), setmetatable({}, weak)
  for i, layer in ipairs(layers) do
    local weight = layer.weight
    if not weight or weight.packed or not plain[weight.dtype] or (layer.bias == nil) ~= (layers[1].bias == nil) then
      return nil
    end
    w[i], b[i] = weight, layer.bias
  end
  self._weights, self._biases = w, b
  return w, b
end

--- @param x perilune.Tensor  (..., in)
--- @return perilune.Tensor  (..., out)
function M.MLP:forward(x)
  local w, b = self:_lists()
  if w then return peri.mlp(x, w, b, self.activation) end
  local n, act = #self.layers, self.activation ~= "none" and self.activation or nil
  for i, layer in ipairs(self.layers) do x = linear.activated(layer, x, false, i < n and act or nil) end
  return x
end

return M
