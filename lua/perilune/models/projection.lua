-- projection.lua - a linear layer of a published model: y = x W' + b, where W may be several
-- published matrices one above the other (q, k, v; gate, up): fewer, fatter products.
local peri = require "perilune"

--- @class perilune.models.Projection
--- @field weight perilune.Tensor?  (N, K), any weight dtype, maybe packed; nil when the parts' dtypes differ
--- @field weights perilune.Tensor[]?  then the parts' own weights, in order
--- @field bias perilune.Tensor?  (N) f32
--- @field parts table[]  { published name without ".weight", rows } of each part, in order
--- @field rows integer  N
--- @field columns integer  K
--- @field transposed boolean  published as (K, N)
--- @field packed boolean?  the weights are laid out by peri.pack
--- @field adapter table?  with :apply(x, y, projection) -> y, called with every input and output
local Projection = {}
Projection.__index = Projection

-- Products with a small weight read it in order when it is stored column by column.
local SMALL = 2 ^ 18

--- @param parts table[]  { published name, rows } of each part
--- @param columns integer
--- @param transposed boolean?
--- @return perilune.models.Projection
function Projection.new(parts, columns, transposed)
  local rows = 0
  for _, part in ipairs(parts) do rows = rows + part[2] end
  return setmetatable({ parts = parts, rows = rows, columns = columns, transposed = transposed or false }, Projection)
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
  if self.adapter then y = self.adapter:apply(x, y, self) end
  if act and (self.adapter or not self.weight) then
    y = act == "gelu_tanh" and y:gelu("tanh") or y[act](y)
  end
  return y
end

return Projection
