-- head.lua - the language-model head: a linear layer of its own, or one that reads a table of embeddings which it is
-- tied to and does not own. Adapters stand on it as on any layer.
local Module = require "perilune.nn.module"
local derived = require "perilune.nn.derived"
local linear = require "perilune.nn.linear"

local M = {}

--- @class perilune.models.TiedHead: perilune.nn.Linear
--- @field embedding perilune.nn.Embedding  whose rows are the weight
local Tied = Module.class("TiedHead", nil, linear.Linear)
Tied.references = { embedding = "follows", adapter = "dropped", merged = "dropped", parts = true }

--- A head of the rows of a table.
--- @param embedding perilune.nn.Embedding
--- @return perilune.models.TiedHead
function M.tied(embedding)
  local self = Module.instance(Tied)
  self.embedding, self.parts = embedding, { { "lm_head", embedding.num } }
  self.out_features, self.in_features, self.is_head = embedding.num, embedding.dim, true
  return self
end

--- Whether a head is tied to a table of embeddings.
function M.is_tied(head) return getmetatable(head) == Tied end

--- Give a tied head a weight of its own, which is an adapter's and no tensor of the model.
--- @param head perilune.models.TiedHead
--- @param weight perilune.Tensor  (V, D)
--- @return fun() tie  the head is as it was
function M.untie(head, weight)
  local before = head._own
  head._own = weight
  return function () head._own = before end
end

--- Say of a linear layer that it is a head, which "all-linear" does not mean.
function M.mark(layer) layer.is_head = true end

local function table_of(self) return self.embedding.weight end

--- The weight, a tensor of the head's own or the table's. -- (V, D)
function Tied:matrix() return self._own or derived.weight(self, "matrix", table_of) end

function Tied:_widths() return self.in_features, self.out_features end

function Tied:extra() return ("%d, %d, the embedding's"):format(self.in_features, self.out_features) end

function Tied:forward(x)
  local y = x:linear(self:matrix())
  return self.adapter and self.adapter:forward(x, y, self) or y
end

return M
