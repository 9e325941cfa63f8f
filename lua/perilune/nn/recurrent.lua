-- recurrent.lua - LSTM and GRU: layers over whole sequences, with states that go in and come out, and single cells.
-- Weights have PyTorch's names, shapes and order of gates. One layer in one direction is one op.

local peri = require "perilune"
local Module = require "perilune.nn.module"
local init = require "perilune.nn.init_weights"
local options = require "perilune.options"

local M = {}

-- What a kind of cell is: its op, gates, and the parts of its state in the op's order.
local LSTM <const> = { op = "lstm", gates = 4, parts = { "h", "c" } }
local GRU <const> = { op = "gru", gates = 3, parts = { "h" } }

local function size(doc) return options.integer(options.required, "[1, inf)", doc) end

-- ---- what layers and cells share ----

-- Weights and biases for `inputs` numbers, under their names with this suffix; uniform in +- 1 / sqrt(hidden_size).
local function add_weights(self, inputs, bias, suffix)
  local rows, bound = self._kind.gates * self.hidden_size, 1 / math.sqrt(self.hidden_size)
  local function put(name, shape)
    self[name .. suffix] = Module.parameter(init.uniform_(peri.empty(shape), -bound, bound))
  end
  put("weight_ih", { rows, inputs })
  put("weight_hh", { rows, self.hidden_size })
  if not bias then return end
  put("bias_ih", { rows })
  put("bias_hh", { rows })
end

-- The results of the op: y, h and, of an LSTM, c. parts?: of the state.
local function run(self, suffix, x, parts, ...)
  local wi, wh = self["weight_ih" .. suffix], self["weight_hh" .. suffix]
  local bi, bh = self["bias_ih" .. suffix], self["bias_hh" .. suffix]
  local h, c
  if parts then h, c = parts[1], parts[2] end
  if self._kind == LSTM then return peri.lstm(x, wi, wh, bi, bh, h, c, ...) end
  return peri.gru(x, wi, wh, bi, bh, h, ...)
end

local function check_input(self, x, sizes)
  local name = getmetatable(self).__name
  options.argument(name, "x", x, "tensor")
  if x.ndim ~= #sizes or x:size(-1) ~= self.input_size then
    options.raise(("%s: x has shape %s, expected %s"):format(name, options.shape(x), options.shape(sizes)))
  end
end

-- The tensors of a state, in order; nil where none is given. A GRU's is one tensor, an LSTM's { h, c }.
local function parts_of(self, state, sizes)
  if state == nil then return nil end
  local name, parts = getmetatable(self).__name, self._kind == GRU and { state } or state
  for i, part in ipairs(self._kind.parts) do
    local t = type(parts) == "table" and parts[i] or nil
    if not Module.is_tensor(t) then
      options.raise(("%s: %s, expected %s"):format(name, options.is("the state", state),
        self._kind == GRU and "a tensor h" or "{ h, c }, two tensors"))
    end
    local shape, want = options.shape(t), options.shape(sizes)
    if shape ~= want then
      options.raise(("%s: %s of the state has shape %s, expected %s"):format(name, part, shape, want))
    end
  end
  return parts
end

local function state_of(self, parts)
  if self._kind == GRU then return parts[1] end
  return { parts[1], parts[2] }
end

local function zeros(self, shape, dtype)
  return state_of(self, { peri.zeros(shape, dtype), self._kind == LSTM and peri.zeros(shape, dtype) or nil })
end

-- ---- layers over sequences ----

local layer_rules = {
  input_size = size "of x's last dim",
  hidden_size = size "of the state, and of y's last dim in each direction",
  layers = options.integer(1, "[1, inf)", "one above the other"),
  bidirectional = options.boolean(false, "beside each layer one that runs from the last step to the first"),
  bias = options.boolean(true, "add bias_ih and bias_hh"),
  batch_first = options.boolean(true, "x, y and starts are (B, T, ...); false, PyTorch's default: (T, B, ...)"),
  dropout = options.number(0, "[0, 1)", "of y between layers, while training"),
}

local forward_rules = {
  starts = options.value(options.none, "tensor", "(B, T) bool, true where an episode begins: the state is zeros there"),
  lengths = options.value(options.none, "tensor or table", "(B) i64, steps of each row; what is behind is padding"),
}

local function fill_layers(self, name, ...)
  local o = options.read(name, { "input_size", "hidden_size" }, layer_rules, 5, ...)
  if o.dropout > 0 and o.layers == 1 then
    options.raise(("%s: dropout %g goes between layers, and there is one layer"):format(name, o.dropout))
  end
  self.input_size, self.hidden_size, self.layers = o.input_size, o.hidden_size, o.layers
  self.bidirectional, self.batch_first, self.dropout = o.bidirectional, o.batch_first, o.dropout
  for layer = 0, o.layers - 1 do
    local inputs = layer == 0 and o.input_size or self:_directions() * o.hidden_size
    add_weights(self, inputs, o.bias, "_l" .. layer)
    if o.bidirectional then add_weights(self, inputs, o.bias, ("_l%d_reverse"):format(layer)) end
  end
end

--- Layers of long short-term memory over sequences (Hochreiter and Schmidhuber 1997). Weights are named and shaped as
--- PyTorch's: weight_ih_l0 (4 hidden_size, input_size), weight_hh_l0, bias_ih_l0, bias_hh_l0, their rows in the order
--- i, f, g, o; _l1 is the next layer, _l0_reverse the other direction. Unlike there batch_first is true, and there is
--- no proj_size.
M.LSTM = Module.class("LSTM", function(self, ...) fill_layers(self, "LSTM", ...) end)
M.LSTM._kind = LSTM
options.declare(M.LSTM, { "input_size", "hidden_size" }, layer_rules)

function M.LSTM:_directions() return self.bidirectional and 2 or 1 end
function M.LSTM:_widths() return self.input_size, self:_directions() * self.hidden_size end

function M.LSTM:extra()
  return ("%d, %d%s%s%s"):format(self.input_size, self.hidden_size,
    self.layers > 1 and ", layers = " .. self.layers or "", self.bidirectional and ", bidirectional = true" or "",
    self.batch_first and "" or ", batch_first = false")
end

--- y and the state behind the last step. A state is a tensor h (layers * directions, B, hidden_size) of a GRU, a table
--- { h, c } of an LSTM, zeros where none is given; what comes out goes in again. starts: episodes that begin inside a
--- row begin with zeros, and no gradient passes them. lengths: rows of unequal length, in any order; behind a row's
--- last step y is 0, x may hold anything, the state is that of its last step. The options stand in a table.
--- @param x perilune.Tensor  (B, T, input_size), or (T, B, input_size) without batch_first
--- @param state perilune.Tensor|table?
--- @param opts table?  starts, lengths
--- @return perilune.Tensor y  (B, T, directions * hidden_size), of the last layer
--- @return perilune.Tensor|table state
function M.LSTM:forward(x, state, opts)
  local starts, lengths
  if opts ~= nil then
    local o = options.fill(getmetatable(self).__name, opts, forward_rules)
    starts, lengths = o.starts, o.lengths
    if type(lengths) == "table" then lengths = peri.tensor(lengths, "i64") end
  end
  check_input(self, x, self.batch_first and { "B", "T", self.input_size } or { "T", "B", self.input_size })
  if not self.batch_first then
    x = x:transpose(1, 2)
    starts = starts and starts:transpose(1, 2)
  end
  local directions, count = self:_directions(), #self._kind.parts
  local parts = parts_of(self, state, { self.layers * directions, x:size(1), self.hidden_size })
  local last = { {}, {} } -- h and c of each layer and direction
  for layer = 0, self.layers - 1 do
    local ys = {}
    for d = 1, directions do
      local at, own = layer * directions + d, nil
      if parts then own = { parts[1]:select(1, at), parts[2] and parts[2]:select(1, at) } end
      local suffix = "_l" .. layer .. (d == 2 and "_reverse" or "")
      ys[d], last[1][at], last[2][at] = run(self, suffix, x, own, starts, lengths, d == 2)
    end
    x = ys[2] and peri.cat(ys, -1) or ys[1]
    if self.dropout > 0 and self.training and layer < self.layers - 1 then x = x:dropout(self.dropout) end
  end
  for i = 1, count do last[i] = #last[i] == 1 and last[i][1]:unsqueeze(1) or peri.stack(last[i], 1) end
  return self.batch_first and x or x:transpose(1, 2), state_of(self, last)
end
options.declare(M.LSTM.forward, { "x", "state" }, forward_rules)

--- The state that a sequence begins with, zeros.
--- @param batch integer  B
--- @return perilune.Tensor|table state
function M.LSTM:initial(batch)
  return zeros(self, { self.layers * self:_directions(), batch, self.hidden_size }, self.weight_hh_l0.dtype)
end

--- Layers of gated recurrent units over sequences (Cho et al. 2014), the reset gate behind the product with h, as
--- PyTorch has it, whose names the weights have: weight_ih_l0 (3 hidden_size, input_size), weight_hh_l0, bias_ih_l0,
--- bias_hh_l0, their rows in the order r, z, n. Unlike there batch_first is true. What it does else
--- is as nn.LSTM.
M.GRU = Module.class("GRU", function(self, ...) fill_layers(self, "GRU", ...) end, M.LSTM)
M.GRU._kind = GRU
options.declare(M.GRU, { "input_size", "hidden_size" }, layer_rules)

-- ---- single steps ----

local cell_rules = {
  input_size = layer_rules.input_size,
  hidden_size = size "of the state",
  bias = layer_rules.bias,
}

local function fill_cell(self, name, ...)
  local o = options.read(name, { "input_size", "hidden_size" }, cell_rules, 5, ...)
  self.input_size, self.hidden_size = o.input_size, o.hidden_size
  add_weights(self, o.input_size, o.bias, "")
end

--- One step of an LSTM; weight_ih, weight_hh, bias_ih, bias_hh as those of a layer of nn.LSTM.
M.LSTMCell = Module.class("LSTMCell", function(self, ...) fill_cell(self, "LSTMCell", ...) end)
M.LSTMCell._kind = LSTM
options.declare(M.LSTMCell, { "input_size", "hidden_size" }, cell_rules)

function M.LSTMCell:_widths() return self.input_size, self.hidden_size end
function M.LSTMCell:extra() return ("%d, %d"):format(self.input_size, self.hidden_size) end

--- h behind one step, and the state to go in with the next: h (B, hidden_size) of a GRU, { h, c } of an LSTM, zeros
--- where none is given.
--- @param x perilune.Tensor  (B, input_size)
--- @param state perilune.Tensor|table?
--- @return perilune.Tensor h  (B, hidden_size)
--- @return perilune.Tensor|table state
function M.LSTMCell:forward(x, state)
  check_input(self, x, { "B", self.input_size })
  local _, h, c = run(self, "", x:unsqueeze(2), parts_of(self, state, { x:size(1), self.hidden_size }))
  return h, state_of(self, { h, c })
end

--- The state that a sequence begins with, zeros.
--- @param batch integer  B
--- @return perilune.Tensor|table state
function M.LSTMCell:initial(batch)
  return zeros(self, { batch, self.hidden_size }, self.weight_hh.dtype)
end

--- One step of a GRU; weight_ih, weight_hh, bias_ih, bias_hh as those of a layer of nn.GRU. What it does else is as
--- nn.LSTMCell.
M.GRUCell = Module.class("GRUCell", function(self, ...) fill_cell(self, "GRUCell", ...) end, M.LSTMCell)
M.GRUCell._kind = GRU
options.declare(M.GRUCell, { "input_size", "hidden_size" }, cell_rules)

return M
