-- credit.lua - which completions an update learns from: the rows with an advantage, and slices of them.
local peri = require "perilune"
local masked = require "perilune.loss.masked"
local options = require "perilune.options"

local M = {}

--- (B) bool: the completions with a gradient.
function M.teaching(advantage, weight, all)
  return (all and weight or masked.counted(advantage, weight)):ne(0):any(2)
end

--- The completions that can teach something: those with an advantage that is not 0. The gradient of
--- the others is exactly 0, so leaving them out changes nothing but the time of an update; divisors
--- of the loss must be counted before.
--- @param batch table  of rl.rollout
--- @param advantage perilune.Tensor  (B, N)
--- @param weight perilune.Tensor  (B, N)
--- @param all boolean?  keep every row with a weight: with a KL penalty each has a gradient
--- @return table  n, index (n) i64 (rows of the batch, from 0), sequences (perilune.Batch, where the batch has them),
--- ids (n, P + N), from, start, support and routes (where the batch has them), logprobs, advantage, weight (n, N)
function M.with_signal(batch, advantage, weight, all)
  options.argument("rl.with_signal", "batch", batch, "table")
  options.argument("rl.with_signal", "advantage", advantage, "tensor")
  options.argument("rl.with_signal", "weight", weight, "tensor")
  local rows = M.teaching(advantage, weight, all):nonzero():reshape { -1 } -- (n) i64
  local function pick(t) return t and t:index_select(rows, 1) end
  local sequences = batch.sequences and rows:numel() > 0 and batch.sequences:select(rows) or nil
  return { n = rows:numel(), from = batch.from, sequences = sequences, index = rows,
           ids = sequences and sequences.ids or pick(batch.ids), start = pick(batch.start),
           support = batch.support and batch.support:select(rows), routes = pick(batch.routes),
           logprobs = pick(batch.logprobs), advantage = pick(advantage), weight = pick(weight) }
end

local size_rule = options.integer(options.required, "[1, inf)", "rows of a slice")

--- The size of a slice, or an error at the caller.
function M.want_size(who, size)
  local problem = options.problem("size", size, size_rule)
  if problem then options.raise(("%s: %s"):format(who, problem)) end
  return math.tointeger(size)
end

local parts_rules = {
  by_length = options.boolean(false, "rows of like length together, the longest first, each slice as wide as its "
    .. "longest: where lengths differ much, most of what a slice holds is padding otherwise"),
}

-- Row numbers, those whose last token comes last first, and the column of each row's last token.
local function order_by_length(rows)
  if not rows.sequences then error("rl.parts: by_length needs the sequences of a rollout", 3) end
  local begins, counts = rows.sequences:bounds()
  local order, ends = {}, {}
  for i, first in ipairs(begins) do order[i], ends[i] = i, first + counts[i] end
  table.sort(order, function (a, b)
    if ends[a] ~= ends[b] then return ends[a] > ends[b] end
    return a < b
  end)
  return order, ends
end

--- for part in rl.parts(rows, size) do: slices of what with_signal returns, consecutive rows or by_length, each turn a
--- memory scope.
--- @param rows table
--- @param size integer  rows of a slice
--- @param opts table?
function M.parts(rows, size, opts)
  options.argument("rl.parts", "rows", rows, "table")
  size = M.want_size("rl.parts", size)
  local o = options.fill("rl.parts", opts, parts_rules)
  local order, ends
  if o.by_length and rows.n > 0 then order, ends = order_by_length(rows) end
  local advance, state, turn, closing = peri.steps(math.ceil(rows.n / size))
  return function ()
    turn = advance(state, turn)
    if not turn then return nil end
    local at = (turn - 1) * size + 1
    local part = { n = math.min(size, rows.n - at + 1), from = rows.from }
    local list = order and table.move(order, at, at + part.n - 1, 1, {})
    local last = list and math.max(ends[list[1]], part.from) -- a row without a token has one column all the same
    local index = list and peri.tensor(list, "i64"):sub(1)
    if rows.support then part.support = list and rows.support:select(list) or rows.support:rows(at, part.n) end
    if list then part.sequences = rows.sequences:select(list):columns(last)
    else part.sequences = rows.sequences and rows.sequences:rows(at, part.n) end
    for key, value in pairs(rows) do
      if type(value) == "userdata" then
        part[key] = index and value:index_select(index, 1) or value:narrow(1, at, part.n)
        if index and value.ndim > 1 then
          local whole = key == "ids" or key == "routes"
          part[key] = part[key]:narrow(2, 1, whole and last or last - part.from + 1)
        end
      end
    end
    return part
  end, nil, nil, closing
end
options.declare(M.parts, { "rows", "size" }, parts_rules)

return M
