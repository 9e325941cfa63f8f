-- support.lua - the distributions that tokens were drawn from, where these are not softmax(logits / temperature): which
-- classes top-k, top-p and min-p left, and the penalties, biases and constraints before that. A rollout records it, and
-- the training pass restricts its logits to it, so that both compute the log-probability of the same distribution; a
-- ratio that leaves the support out is off by its mass (trl#6789).
--
-- Kept classes are one list of ids for all tokens, row by row, and where each token's begin. What depends on the tokens
-- before (penalties, constraints) is made again from these by perilune.decode.sampler.
local peri = require "perilune"
local sampler = require "perilune.decode.sampler"

local M = {}

--- What was recorded of one call of generate.
--- @class perilune.decode.support.Record
--- @field o table  the settings of perilune.decode.sampler that all rows share
--- @field plain boolean  nothing changed the logits but truncation
--- @field prompts integer[][]  of each row, for the repetition penalty
--- @field tokens integer[][]  of each row, what was drawn
--- @field stop integer[]  ids that end a sequence
--- @field width integer  most columns of a row
--- @field ids perilune.Tensor?  (kept of all tokens) i64: nil where nothing was cut
--- @field offsets integer[]?  of each token, row by row, and the end
--- @field turns integer[][][]?  of each row which tokens were drawn, as { first, last } of each turn; default: all

--- Rows of records.
--- @class perilune.decode.Support
--- @field of perilune.decode.support.Record[]  of each row here
--- @field at integer[]  and which row of it
local Support = {}
Support.__index = Support

--- Whether a value is a support.
function M.is(value) return type(value) == "table" and getmetatable(value) == Support end

-- Kept classes as one list in the order of the tokens.
local function sorted(draws, rows, width)
  local keys, ids = {}, {}
  for i, draw in ipairs(draws) do keys[i], ids[i] = draw.keys, draw.ids end
  local all = peri.cat(keys, 1)
  local counts = peri.zeros({ rows * width }, "i64"):index_add(all, peri.ones_like(all), 1)
  local ends, offsets = counts:cumsum(1):tolist(), { 0 }
  table.move(ends, 1, #ends, 2, offsets)
  return peri.cat(ids, 1):index_select(all:argsort(1), 1), offsets
end

--- What a record of draws is the support of.
--- @param o table  the settings of perilune.decode.sampler that all rows share
--- @param draws table[]?  { keys (n) i64: row * width + column, from 0; ids (n) i64 } of kept classes, draw by draw
--- @param prompts integer[][]  of each row, for the repetition penalty
--- @param tokens integer[][]  of each row, what was drawn
--- @param width integer
--- @param stop integer[]  ids that end a sequence
--- @param turns integer[][][]?  of each row { first, last } of the tokens that a turn drew; default: all were drawn
--- @return perilune.decode.Support
function M.new(o, draws, prompts, tokens, width, stop, turns)
  local record = { o = o, prompts = prompts, tokens = tokens, width = width, stop = stop, turns = turns,
    plain = sampler.facts(o).plain }
  if draws then record.ids, record.offsets = sorted(draws, #tokens, width) end
  local self = setmetatable({ of = {}, at = {} }, Support)
  for i = 1, #tokens do self.of[i], self.at[i] = record, i end
  return self
end

--- Supports below one another.
--- @param list perilune.decode.Support[]
--- @return perilune.decode.Support
function M.join(list)
  local self = setmetatable({ of = {}, at = {} }, Support)
  for _, one in ipairs(list) do
    table.move(one.of, 1, #one.of, #self.of + 1, self.of)
    table.move(one.at, 1, #one.at, #self.at + 1, self.at)
  end
  return self
end

--- A support as plain values and tensors, for a channel.
--- @return table
function Support:packed()
  local records, number, of = {}, {}, {}
  for i, record in ipairs(self.of) do
    if not number[record] then
      records[#records + 1] = record
      number[record] = #records
    end
    of[i] = number[record]
  end
  return { records = records, of = of, at = self.at }
end

--- The support that was packed.
--- @param packed table
--- @return perilune.decode.Support
function M.unpacked(packed)
  local self = setmetatable({ of = {}, at = packed.at }, Support)
  for i, n in ipairs(packed.of) do self.of[i] = packed.records[n] end
  return self
end

--- The tensors that it holds.
--- @return perilune.Tensor[]
function Support:tensors()
  local list, seen = {}, {}
  for _, record in ipairs(self.of) do
    if record.ids and not seen[record] then seen[record], list[#list + 1] = true, record.ids end
  end
  return list
end

--- Some rows, from 1.
--- @param rows integer[]|perilune.Tensor  a tensor's count from 0
--- @return perilune.decode.Support
function Support:select(rows)
  local other, shift = setmetatable({ of = {}, at = {} }, Support), 0
  if peri.is_tensor(rows) then rows, shift = rows:tolist(), 1 end
  for k, i in ipairs(rows) do other.of[k], other.at[k] = self.of[i + shift], self.at[i + shift] end
  return other
end

--- Consecutive rows.
--- @param first integer
--- @param n integer
--- @return perilune.decode.Support
function Support:rows(first, n)
  return setmetatable({ of = table.move(self.of, first, first + n - 1, 1, {}),
    at = table.move(self.at, first, first + n - 1, 1, {}) }, Support)
end

-- The sampler's row as it was before each token of a row of the record. Each turn begins anew, behind all before it.
local function states_of(record, row)
  local tokens, states = record.tokens[row], {}
  local read = table.move(record.prompts[row] or {}, 1, #(record.prompts[row] or {}), 1, {})
  local before = #read
  for _, turn in ipairs(record.turns and record.turns[row] or { { 1, #tokens } }) do
    table.move(tokens, #read - before + 1, turn[1] - 1, #read + 1, read)
    local live = sampler.row(record.o, read, record.stop, 1, { seed = 0, offset = 0 })
    for t = turn[1], turn[2] do
      states[t] = live:snapshot()
      live:accept(tokens[t])
    end
  end
  return states
end

-- Which classes flat rows keep, (n, V) bool; a token that was not drawn keeps all. tokens[k] = { record, place }
local function kept(tokens, classes)
  local flat, all = {}, {}
  for k, token in ipairs(tokens) do
    local record, place = token[1], token[2]
    local from = record.ids and record.offsets[place]
    local count = from and record.offsets[place + 1] - from or 0
    if count > 0 then flat[#flat + 1] = record.ids:narrow(1, from + 1, count):add((k - 1) * classes)
    else all[#all + 1] = k - 1 end
  end
  local mask = peri.zeros({ #tokens * classes }, "bool")
  if #flat > 0 then
    local at = peri.cat(flat, 1)
    mask = mask:scatter(at, peri.ones({ at:numel() }, "bool"), 1)
  end
  mask = mask:reshape { #tokens, classes }
  if #all == 0 then return mask end
  local free = peri.zeros({ #tokens }, "bool"):scatter(peri.tensor(all, "i64"), peri.ones({ #all }, "bool"), 1)
  return mask:logical_or(free:unsqueeze(2))
end

--- Logits of some tokens as they were when these were drawn: penalties and constraints applied, what was cut at -inf.
--- @param x perilune.Tensor  (n, V) logits of flat rows first .. first + n - 1 over (rows here, columns)
--- @param first integer
--- @param columns integer  that a row has here
--- @return perilune.Tensor  (n, V)
function Support:restrict(x, first, columns)
  local tokens, cut, plain = {}, false, true
  for k = 1, x:size(1) do
    local b, t = (first + k - 2) // columns + 1, (first + k - 2) % columns + 1
    local record = self.of[b]
    tokens[k] = { record, (self.at[b] - 1) * record.width + t, b, t }
    cut, plain = cut or record.ids ~= nil, plain and record.plain
  end
  if not plain then
    local states, known = {}, {}
    for k, token in ipairs(tokens) do
      local b = token[3]
      known[b] = known[b] or states_of(token[1], self.at[b])
      states[k] = known[b][token[4]] or known[b][1] -- behind the end, and at what was not drawn, nobody looks
    end
    x = sampler.process(x, states)
  end
  return cut and x:masked_fill(kept(tokens, x:size(2)):logical_not(), -math.huge) or x
end

return M
