-- linear.lua - the linear layer of nn and of published models: y = x W' + b, where W may be several published matrices
-- one above the other (q, k, v; gate, up): fewer, fatter products. And the place where adapters stand: beside a
-- linear layer or a table of embeddings, seeing what goes in and adding to what comes out.

local peri = require "perilune"
local Module = require "perilune.nn.module"
local init = require "perilune.nn.init_weights"
local acts = require "perilune.nn.activation"
local options = require "perilune.options"

local required = options.required

local M = {}

local function size(doc) return options.integer(required, "[1, inf)", doc) end

local linear_rules = {
  in_features = size "of x's last dim",
  out_features = size "of y's last dim",
  bias = options.boolean(true, "add b"),
  activation = options.choice(options.none, acts.choices { "none" }, "applied in the same pass"),
}

--- @class perilune.nn.Linear
--- @field weight perilune.Tensor?  (out, in), any weight dtype, maybe packed; nil when the parts' dtypes differ
--- @field weights perilune.Tensor[]?  then the parts' own weights, in order
--- @field bias perilune.Tensor?  (out)
--- @field in_features integer
--- @field out_features integer
--- @field activation string?  applied in the same pass
--- @field parts table[]?  { published name without ".weight", rows } of each part, in order
--- @field transposed boolean?  published as (in, out)
--- @field packed boolean?  the weights are laid out by peri.pack
--- @field adapter table?  with :forward(x, y, layer) -> y, called with every input and output, before the
--- activation
local Linear

--- y = x W' + b. Weights and bias begin uniform in +- 1 / sqrt(in).
M.Linear = Module.class("Linear", function(self, ...)
  local o = options.read("Linear", { "in_features", "out_features" }, linear_rules, 4, ...)
  self.in_features, self.out_features, self.activation = o.in_features, o.out_features, o.activation
  local bound = 1 / math.sqrt(o.in_features)
  self.weight = Module.parameter(init.uniform_(peri.empty { o.out_features, o.in_features }, -bound, bound))
  if o.bias then self.bias = Module.parameter(init.uniform_(peri.empty { o.out_features }, -bound, bound)) end
end)
options.declare(M.Linear, { "in_features", "out_features" }, linear_rules)

Linear = M.Linear

-- Adapters stand beside a layer, and are put on it and taken off; the rest are no tensors.
Linear.references = { adapter = "dropped", merged = "dropped", parts = true }

--- A layer whose weights are put in later.
--- @param parts table[]  { published name, rows } of each part
--- @param columns integer
--- @param transposed boolean?
--- @return perilune.nn.Linear
function M.of_parts(parts, columns, transposed)
  local self, rows = Module.instance(Linear), 0
  for _, part in ipairs(parts) do rows = rows + part[2] end
  self.parts, self.out_features, self.in_features, self.transposed = parts, rows, columns, transposed or false
  return self
end

--- A layer that begins with these weights.
--- @param weight perilune.Tensor  (out, in)
--- @param bias perilune.Tensor?  (out)
--- @param activation string?
--- @return perilune.nn.Linear
function M.of_weights(weight, bias, activation)
  local self = Module.instance(Linear)
  self.out_features, self.in_features, self.activation = weight:size(1), weight:size(2), activation
  self.weight = Module.parameter(weight)
  if bias then self.bias = Module.parameter(bias) end
  return self
end

--- What is published of a weight with an adapter in it must have that adapter as it is.
function M.Linear:_leaving()
  for _, entry in ipairs(self.merged or {}) do
    if not entry.gone then entry.site:check_unchanged() end
  end
end

function M.Linear:_widths() return self.in_features, self.out_features end

-- What is lost with this layer: see replace.
function M.Linear:_held()
  if self.adapter or self.merged and #self.merged > 0 then return "an adapter is on it: take that off before" end
end

function M.Linear:extra()
  return ("%d, %d%s"):format(self.in_features, self.out_features, self.bias and "" or ", bias = false")
end

--- All weights: one, or one for each part.
--- @return perilune.Tensor[]
function M.Linear:tensors() return self.weights or { self.weight } end

--- The weight as one matrix. -- (out, in)
--- @return perilune.Tensor
function M.Linear:matrix() return self.weight or peri.cat(self.weights, 1) end

--- Whether what the layer does is the product with its matrix and no more.
--- @return boolean
function M.Linear:is_plain()
  return not (self.adapter or self.bias or self.activation or self.weights or rawget(self, "forward"))
end

-- Products with a small weight read it in order when it is stored column by column.
local SMALL <const> = 2 ^ 18

-- A small weight once more, column by column: a product with one or a few rows then reads it in
-- order (the same bits, up to twice as fast). Made anew when the weight was written since.
local function by_column(self)
  local w = self.weight
  if self._small == nil or self._of ~= w then
    self._small = w:numel() <= SMALL and w.dtype == "f32" and not self.packed
    self._of, self._version = w, nil
  end
  if not self._small then return w end
  local version = w:version()
  if self._version ~= version then
    self._columns, self._version = peri.keep(w:transpose():contiguous():transpose()), version
  end
  return self._columns
end

-- The product of each part by itself.
local function by_parts(self, x)
  local list, at = {}, 1
  for i, w in ipairs(self.weights) do
    list[i] = x:linear(w, self.bias and self.bias:narrow(1, at, self.parts[i][2]))
    at = at + self.parts[i][2]
  end
  return peri.cat(list, -1)
end

--- @param x perilune.Tensor  (..., in)
--- @param decoding boolean?  few rows at a time and no gradient wanted
--- @param act string?  activation in place of the layer's own
--- @return perilune.Tensor  (..., out)
function M.Linear:forward(x, decoding, act)
  local weight, adapter = self.weight, self.adapter
  act = act or self.activation
  if weight and decoding == true then weight = by_column(self) end
  if weight and not adapter then return x:linear(weight, self.bias, act) end
  local y = weight and x:linear(weight, self.bias) or by_parts(self, x)
  if adapter then y = adapter:forward(x, y, self) end
  return act and act ~= "none" and y[act](y) or y
end

--- What a Linear of several networks is (nn.Copies): weight (copies, out, in), bias (copies, out), and the rows of
--- each copy are its own.
M.LinearCopies = Module.class("LinearCopies", nil, Linear)

--- @param x perilune.Tensor  (copies, ..., in)
--- @param act string?  in place of the layer's own
--- @return perilune.Tensor  (copies, ..., out)
function M.LinearCopies:forward(x, _, act)
  if self.adapter then options.raise "Linear: no adapter goes onto copies" end
  local y = peri.mlp(x, { self.weight }, { self.bias }, "none")
  act = act or self.activation
  return act and act ~= "none" and y[act](y) or y
end

--- A product with an activation behind it, in one pass where a linear layer stands there, and by whatever module does.
--- @param module perilune.nn.Module
--- @param x perilune.Tensor  (..., in)
--- @param decoding boolean?
--- @param act string?  nil: none
--- @return perilune.Tensor  (..., out)
function M.activated(module, x, decoding, act)
  if not act then return module:forward(x, decoding) end
  if getmetatable(module) == Linear and not module.activation then return module:forward(x, decoding, act) end
  local y = module:forward(x, decoding)
  return y[act](y)
end

-- ---- adapters ----

-- Several adapters in one place, in the order in which they came.
local Chain = {}
Chain.__index = Chain

function Chain:forward(x, y, place)
  for _, adapter in ipairs(self) do y = adapter:forward(x, y, place) end
  return y
end

--- Let an adapter see the inputs and outputs of a layer.
--- @param place table  a Linear or an Embedding
--- @param adapter table
function M.attach(place, adapter)
  local old = place.adapter
  if not old then place.adapter = adapter
  elseif getmetatable(old) == Chain then table.insert(old, adapter)
  else place.adapter = setmetatable({ old, adapter }, Chain) end
end

--- Take an adapter off a layer that it is on.
--- @param place table
--- @param adapter table
function M.detach(place, adapter)
  local old = place.adapter
  if old == adapter then place.adapter = nil
  elseif getmetatable(old) == Chain then
    for i, a in ipairs(old) do
      if a == adapter then table.remove(old, i) break end
    end
    if #old == 1 then place.adapter = old[1] end
  end
end

--- The adapters on a layer, in the order in which they came.
--- @param place table
--- @return table[]
function M.adapters(place)
  local old = place.adapter
  return not old and {} or getmetatable(old) == Chain and table.move(old, 1, #old, 1, {}) or { old }
end

--- The adapters on this layer, which are no part of the net.
--- @return perilune.nn.Module[]
function M.Linear:_guests()
  local list = M.adapters(self)
  for i, adapter in ipairs(list) do list[i] = adapter.owner or adapter end
  return list
end

--- Put the copies of the adapters of one layer, those that were copied with it, on its own copy.
--- @param from table
--- @param map table  original -> copy
function M.Linear:_copied(from, map)
  for _, adapter in ipairs(M.adapters(from)) do
    local copy = map[adapter]
    if copy then
      copy.projection = self
      M.attach(self, copy)
    end
  end
end

return M
