-- projection.lua - a linear layer of a published model: y = x W' + b, where W may be several
-- published matrices one above the other (q, k, v; gate, up): fewer, fatter products.
local peri = require "perilune"
local Module = require "perilune.nn.module"

--- @class perilune.models.Projection: perilune.nn.Module
--- @field weight perilune.Tensor?  (N, K), any weight dtype, maybe packed; nil when the parts' dtypes differ
--- @field weights perilune.Tensor[]?  then the parts' own weights, in order
--- @field bias perilune.Tensor?  (N) f32
--- @field parts table[]  { published name without ".weight", rows } of each part, in order
--- @field rows integer  N
--- @field columns integer  K
--- @field transposed boolean  published as (K, N)
--- @field packed boolean?  the weights are laid out by peri.pack
--- @field adapter table?  with :forward(x, y, projection) -> y, called with every input and output; see attach
local Projection = Module.class "Projection"
-- Adapters stand beside a model, and are put on it and taken off; the rest are no tensors.
Projection.references = { adapter = "dropped", merged = "dropped", parts = true }

-- Products with a small weight read it in order when it is stored column by column.
local SMALL = 2 ^ 18

--- @param parts table[]  { published name, rows } of each part
--- @param columns integer
--- @param transposed boolean?
--- @return perilune.models.Projection
function Projection.new(parts, columns, transposed)
  local self, rows = Module.instance(Projection), 0
  for _, part in ipairs(parts) do rows = rows + part[2] end
  self.parts, self.rows, self.columns, self.transposed = parts, rows, columns, transposed or false
  return self
end

--- What is published of a weight with an adapter in it must have that adapter as it is.
function Projection:_leaving()
  for _, entry in ipairs(self.merged or {}) do
    if not entry.gone then entry.site:check_unchanged() end
  end
end

function Projection:_widths() return self.columns, self.rows end

-- An adapter would be lost with what it sits on.
function Projection:_refuses()
  if self.adapter or self.merged and #self.merged > 0 then return "an adapter is on it: take that off before" end
end

function Projection:extra()
  return ("%d, %d%s"):format(self.columns, self.rows, self.bias and "" or ", bias = false")
end

--- All weights: one, or one for each part.
--- @return perilune.Tensor[]
function Projection:tensors() return self.weights or { self.weight } end

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

--- @param x perilune.Tensor  (..., K)
--- @param decoding boolean?  few rows at a time and no gradient wanted
--- @param act string?  activation of the op `linear`; not with an adapter
--- @return perilune.Tensor  (..., N)
function Projection:forward(x, decoding, act)
  local y
  if self.weight then
    y = x:linear(decoding and by_column(self) or self.weight, self.bias, not self.adapter and act or nil)
  else
    local list, at = {}, 1
    for i, w in ipairs(self.weights) do
      list[i] = x:linear(w, self.bias and self.bias:narrow(1, at, self.parts[i][2]))
      at = at + self.parts[i][2]
    end
    y = peri.cat(list, -1)
  end
  if self.adapter then y = self.adapter:forward(x, y, self) end
  if act and (self.adapter or not self.weight) then
    y = y[act](y)
  end
  return y
end

--- A product with an activation behind it, by whatever module stands at a projection's place.
--- @param module perilune.nn.Module
--- @param x perilune.Tensor  (..., K)
--- @param decoding boolean?
--- @param act string  activation of the op `linear`
--- @return perilune.Tensor  (..., N)
function Projection.activated(module, x, decoding, act)
  if getmetatable(module) == Projection then return module:forward(x, decoding, act) end
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

--- Let an adapter see the inputs and outputs of a place, a projection or what Model:_site gives.
--- @param place table
--- @param adapter table
function Projection.attach(place, adapter)
  local old = place.adapter
  if not old then place.adapter = adapter
  elseif getmetatable(old) == Chain then table.insert(old, adapter)
  else place.adapter = setmetatable({ old, adapter }, Chain) end
end

--- Take an adapter off a place that it is on.
--- @param place table
--- @param adapter table
function Projection.detach(place, adapter)
  local old = place.adapter
  if old == adapter then place.adapter = nil
  elseif getmetatable(old) == Chain then
    for i, a in ipairs(old) do
      if a == adapter then table.remove(old, i) break end
    end
    if #old == 1 then place.adapter = old[1] end
  end
end

--- Put the copies of the adapters of one place, those that were copied with it, on another.
--- @param place table
--- @param from table
--- @param map table  original -> copy
function Projection.take_adapters(place, from, map)
  local old = from.adapter
  for _, adapter in ipairs(getmetatable(old) == Chain and old or { old }) do
    local copy = map[adapter]
    if copy then
      copy.projection = place
      Projection.attach(place, copy)
    end
  end
end

Projection._copied = Projection.take_adapters

--- The adapters in a place, which are no part of the model.
--- @param place table
--- @return perilune.nn.Module[]
function Projection.guests(place)
  local old, list = place.adapter, {}
  for i, adapter in ipairs(getmetatable(old) == Chain and old or { old }) do list[i] = adapter.owner or adapter end
  return list
end

Projection._guests = Projection.guests

return Projection
