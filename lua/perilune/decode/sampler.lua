-- sampler.lua - the next token of each row of a batch: penalties, constraints and truncation, where
-- every row brings its own settings and its own stream of random numbers. What a row draws depends
-- on its logits, settings, stream and the number of tokens it has drawn, never on the rows beside it. A policy of
-- perilune.decode.engine.
local peri = require "perilune"
local options = require "perilune.options"

local M = {}

--- Settings of a row and what they are when left out.
M.defaults = {
  temperature = 1,         -- 0: the likeliest token
  top_k = 0, top_p = 1, min_p = 0,
  greedy = false,
  -- over prompt and completion: positive logits are divided by it, negative multiplied (arXiv:1909.05858)
  repetition_penalty = 1,
  frequency_penalty = 0,   -- taken off a token's logit for each time it occurs in the completion
  presence_penalty = 0,    -- taken off the logit of every token that occurs in the completion
  min_new_tokens = 0,      -- stop tokens cannot be drawn before
  seed = options.none,     -- integer; without one it is drawn from the generator that peri.seed sets
  logit_bias = options.none, -- id -> number added to its logit
  constraint = options.none, -- of perilune.decode.constraint
  -- what log-probabilities are of: "full": softmax(logits / temperature), whatever penalties, constraints and
  -- truncation
  -- made of it; "renormalised": the distribution that was drawn from
  sampling = options.choice("full", { "full", "renormalised" }),
  top_logprobs = 0,        -- how many of the likeliest tokens are reported with each token
}

local function want(ok, name, value, expected)
  if not ok then error(("%s is %s, expected %s"):format(name, tostring(value), expected), 0) end
end

--- Check the settings in a table that has all of M.defaults; raises a message without position.
--- @param o table
function M.check(o)
  local function number(name, low, high, expected)
    local v = o[name]
    want(type(v) == "number" and v >= low and v <= high, name, v, expected)
  end
  number("temperature", 0, 1e30, "0 (greedy) or more")
  number("top_p", 0, 1, "more than 0 and at most 1")
  want(o.top_p > 0, "top_p", o.top_p, "more than 0 and at most 1")
  number("min_p", 0, 1, "0 to 1")
  want(math.tointeger(o.top_k) and o.top_k >= 0, "top_k", o.top_k, "an integer, 0 (off) or more")
  number("repetition_penalty", 1e-6, 1e6, "more than 0")
  number("frequency_penalty", -100, 100, "-100 to 100")
  number("presence_penalty", -100, 100, "-100 to 100")
  want(math.tointeger(o.min_new_tokens) and o.min_new_tokens >= 0, "min_new_tokens", o.min_new_tokens,
    "an integer, 0 or more")
  want(math.tointeger(o.top_logprobs) and o.top_logprobs >= 0 and o.top_logprobs <= 1000, "top_logprobs",
    o.top_logprobs, "an integer from 0 to 1000")
  want(o.sampling ~= "renormalised" or not (o.greedy or o.temperature == 0), "sampling", o.sampling,
    '"full" with greedy or temperature 0, which draw nothing')
  want(o.seed == nil or math.tointeger(o.seed), "seed", o.seed, "an integer")
  want(o.logit_bias == nil or type(o.logit_bias) == "table", "logit_bias", o.logit_bias, "a table of ids and numbers")
  for id, bias in pairs(o.logit_bias or {}) do
    want(math.tointeger(id) and id >= 0, "an id of logit_bias", id, "an id of a token")
    want(type(bias) == "number" and bias == bias and bias >= -1e4 and bias <= 1e4, "logit_bias of " .. id, bias,
      "a number from -10000 to 10000")
  end
  want(o.constraint == nil or type(o.constraint) == "table" and o.constraint.start, "constraint", o.constraint,
    "a constraint of perilune.decode.constraint")
end

--- @class perilune.decode.sampler.Row
--- @field drawn integer  tokens so far
--- @field seed integer
--- @field stop table<integer, boolean>
local Row = {}
Row.__index = Row
M.Row = Row

-- Seeds of the samples of one request are apart by the golden ratio of 2^64. Rows with a seed of their own draw from a
-- half of its streams' blocks that ops which draw whole tensors never reach.
local STRIDE <const> = 0x9E3779B97F4A7C15
local OWN <const> = 1 << 63

-- What rows with the same settings share, by these; and sets of stop tokens by their lists.
local shared_by, sets = setmetatable({}, { __mode = "k" }), setmetatable({}, { __mode = "k" })

local function set_of(stop)
  local set = sets[stop]
  if not set then
    set = {}
    for _, id in ipairs(stop) do set[id] = true end
    sets[stop] = set
  end
  return set
end

local function shared_of(o)
  local s = shared_by[o]
  if s then return s end
  s = { penalised = o.repetition_penalty ~= 1, counted = o.frequency_penalty ~= 0 or o.presence_penalty ~= 0,
        how = { temperature = o.temperature, top_k = o.top_k, top_p = o.top_p, min_p = o.min_p,
                greedy = o.greedy or o.temperature == 0 } }
  if o.logit_bias and next(o.logit_bias) ~= nil then
    s.bias_ids, s.bias = {}, {}
    for id in pairs(o.logit_bias) do s.bias_ids[#s.bias_ids + 1] = id end
    table.sort(s.bias_ids)
    for k, id in ipairs(s.bias_ids) do s.bias[k] = o.logit_bias[id] end
  end
  s.plain = not (s.penalised or s.counted or o.constraint or s.bias or o.min_new_tokens > 0)
  local how = s.how
  s.cut = not how.greedy and (how.top_k > 0 or how.top_p < 1 or how.min_p > 0)
  s.truncation = { temperature = how.temperature, top_k = how.top_k, top_p = how.top_p, min_p = how.min_p }
  s.renormalised = o.sampling == "renormalised" and (s.cut or not s.plain)
  if how.greedy then how.temperature, how.top_k, how.top_p, how.min_p = 1, 0, 1, 0 end
  s.group = ("%.17g %d %.17g %.17g %s %s %s %d"):format(how.temperature, how.top_k, how.top_p, how.min_p, how.greedy,
    s.plain, s.renormalised, o.top_logprobs)
  shared_by[o] = s
  return s
end

--- What settings amount to: plain: nothing changes the logits before they are scaled; cut: some classes may be left
--- out;
--- renormalised: log-probabilities are of another distribution than softmax(logits / temperature).
--- @param o table  settings with the fields of M.defaults
--- @return table
function M.facts(o) return shared_of(o) end

-- What the rows of a request share, as what their own fields stand before.
local function prototype(o, stop, stream)
  local s = shared_of(o)
  local proto = s.proto
  if proto and proto.stop_list == stop and proto.stream == stream then return proto end
  proto = setmetatable({ o = o, stop = set_of(stop), stop_list = stop, stream = stream, plain = s.plain, how = s.how,
    group = s.group, cut = s.cut, renormalised = s.renormalised, bias_ids = s.bias_ids, bias = s.bias,
    truncation = s.truncation, penalised = s.penalised, counted = s.counted, drawn = 0 }, Row)
  if stream then proto.seed, proto.offset = stream.seed, stream.offset end
  proto.__index, s.proto = proto, proto
  return proto
end

--- The state of one sequence. Token t of it (from 0) is drawn by block `block` of the Philox stream (seed, offset + t).
--- @param o table  settings with the fields of M.defaults
--- @param prompt integer[]  ids that the repetition penalty counts
--- @param stop integer[]  ids that end the sequence
--- @param sample integer?  which of the samples of a request, from 1: each has a seed of its own
--- @param stream table?  { seed =, offset = } where o has no seed: sample k draws from block k - 1 of it; default: a
--- seed from the generator
--- @return perilune.decode.sampler.Row
function M.row(o, prompt, stop, sample, stream)
  local nth = (sample or 1) - 1
  if o.seed then stream = nil end
  local self = setmetatable({}, prototype(o, stop, stream))
  if stream then self.block = nth
  else
    self.seed, self.offset, self.block = (o.seed or peri.randint(0, 1 << 62, {}):item()) + nth * STRIDE, 0, OWN
  end
  if self.penalised then
    self.seen, self.seen_list = {}, {}
    for _, id in ipairs(prompt) do self:see(id) end
  end
  if self.counted then self.count = {} end
  if o.constraint then self.state = o.constraint:start() end
  return self
end

--- The row as it is now, for what is to be made of it later.
--- @return perilune.decode.sampler.Row
function Row:snapshot()
  local copy = setmetatable({}, getmetatable(self))
  for k, v in pairs(self) do copy[k] = v end
  if self.seen_list then copy.seen_list = table.move(self.seen_list, 1, #self.seen_list, 1, {}) end
  if self.count then
    copy.count = {}
    for id, n in pairs(self.count) do copy.count[id] = n end
  end
  return copy
end

function Row:see(id)
  if not self.seen[id] then
    self.seen[id] = true
    self.seen_list[#self.seen_list + 1] = id
  end
end

--- Take note of the token that was drawn.
--- @param id integer
--- @return boolean ended  it is a stop token, or the constraint allows nothing behind it
function Row:accept(id)
  self.drawn = self.drawn + 1
  if self.stop[id] then return true end
  if self.penalised then self:see(id) end
  if self.counted then self.count[id] = (self.count[id] or 0) + 1 end
  if self.state then
    self.state = self.o.constraint:advance(self.state, id)
    return self.o.constraint:complete(self.state)
  end
  return false
end

-- ---- what changes logits, for rows that share it -----------------------------------------------

-- Lists of different lengths as (B, K): the last entry is repeated, an empty list is all `none`.
local function matrix(lists, dtype, none)
  local width = 1
  for _, list in ipairs(lists) do width = math.max(width, #list) end
  local rows = {}
  for b, list in ipairs(lists) do
    local row = table.move(list, 1, #list, 1, {})
    for k = #list + 1, width do row[k] = list[#list] or none end
    rows[b] = row
  end
  return peri.tensor(rows, dtype)
end

local NONE <const> = {}

-- Each seen logit divided by the penalty where it is positive, else multiplied.
local function repetition(x, rows)
  local lists, penalty, any = {}, {}, false
  for b, row in ipairs(rows) do
    lists[b], penalty[b] = row.seen_list or NONE, { row.penalised and row.o.repetition_penalty or 1 }
    any = any or (row.penalised and #row.seen_list > 0)
  end
  if not any then return x end
  local ids = matrix(lists, "i64", 0)
  local p = peri.tensor(penalty, x.dtype)
  local score = x:gather(ids, 2)
  return x:scatter(ids, peri.where(score:lt(0), score:mul(p), score:div(p)), 2)
end

-- logit - count * frequency_penalty - presence_penalty for what the completion holds.
local function frequency(x, rows)
  local lists, deltas, any = {}, {}, false
  for b, row in ipairs(rows) do
    local ids, delta = {}, {}
    for id in pairs(row.count or NONE) do ids[#ids + 1] = id end
    table.sort(ids)
    for k, id in ipairs(ids) do delta[k] = -(row.count[id] * row.o.frequency_penalty + row.o.presence_penalty) end
    ids[#ids + 1], delta[#delta + 1] = 0, 0 -- what padding repeats adds nothing
    lists[b], deltas[b], any = ids, delta, any or #ids > 1
  end
  if not any then return x end
  return x:scatter_add(matrix(lists, "i64", 0), matrix(deltas, x.dtype, 0), 2)
end

-- logit + logit_bias.
local function biased(x, rows)
  local lists, deltas, any = {}, {}, false
  for b, row in ipairs(rows) do
    lists[b], deltas[b] = { 0 }, { 0 } -- what padding repeats adds nothing
    for k, id in ipairs(row.bias_ids or NONE) do
      table.insert(lists[b], k, id)
      table.insert(deltas[b], k, row.bias[k])
    end
    any = any or row.bias ~= nil
  end
  if not any then return x end
  return x:scatter_add(matrix(lists, "i64", 0), matrix(deltas, x.dtype, 0), 2)
end

-- Stop tokens are out of reach for a while.
local function minimum_length(x, rows)
  local lists, any = {}, false
  for b, row in ipairs(rows) do
    local early = row.drawn < row.o.min_new_tokens and #row.stop_list > 0
    lists[b], any = early and row.stop_list or {}, any or early
  end
  if not any then return x end
  local masks = {}
  local never = peri.zeros({ x:size(2) }, "bool")
  for b, list in ipairs(lists) do
    masks[b] = #list == 0 and never or
      never:scatter(peri.tensor(list, "i64"), peri.ones({ #list }, "bool"), 1)
  end
  return x:masked_fill(peri.stack(masks, 1), -math.huge)
end

local function constrain(x, rows)
  local masks, any, classes = {}, false, x:size(2)
  for b, row in ipairs(rows) do
    if row.state then
      masks[b], any = row.o.constraint:forbidden(row.state, classes, row.stop_list), true
    end
  end
  if not any then return x end
  local never = peri.zeros({ classes }, "bool")
  for b = 1, #rows do masks[b] = masks[b] or never end
  return x:masked_fill(peri.stack(masks, 1), -math.huge)
end

--- Logits under the rows' penalties, minimum lengths and constraints.
--- @param logits perilune.Tensor  (B, V), or log-probabilities
--- @param rows perilune.decode.sampler.Row[]
--- @return perilune.Tensor  (B, V)
function M.process(logits, rows)
  return constrain(minimum_length(biased(frequency(repetition(logits, rows), rows), rows), rows), rows)
end

-- ---- parts of a batch ---------------------------------------------------------------------------

--- Rows that share settings and are drawn by one call. What it knows of them between two draws is in tensors: as long
--- as no row comes, a draw costs no list.
--- @class perilune.decode.sampler.Part
--- @field places integer[]  which rows of the batch
--- @field rows perilune.decode.sampler.Row[]
local Part = {}
Part.__index = Part

--- The rows of a batch by their settings.
--- @param sequences table[]  row: perilune.decode.sampler.Row
--- @param places integer[]  of each in the batch
--- @return perilune.decode.sampler.Part[]
function M.parts(sequences, places)
  local by_name, list = {}, {}
  for b, s in ipairs(sequences) do
    local row = s.row
    local part = by_name[row.group]
    if not part then
      part = setmetatable({ rows = {}, places = {}, how = {} }, Part)
      by_name[row.group], list[#list + 1] = part, part
      for k, v in pairs(row.how) do part.how[k] = v end
    end
    part.rows[#part.rows + 1], part.places[#part.places + 1] = row, places[b]
  end
  for _, part in ipairs(list) do
    if not part.how.greedy then
      local keys, n = {}, 0
      for _, row in ipairs(part.rows) do
        keys[n + 1], keys[n + 2], keys[n + 3], n = row.seed, row.offset + row.drawn, row.block, n + 3
      end
      part.how.keys = peri.keep(peri.tensor(keys, "i64"):reshape { #part.rows, 3 })
      part.next = peri.keep(peri.tensor({ 0, 1, 0 }, "i64")) -- what a draw adds to a key { seed, offset, block }
    end
  end
  return list
end

--- Let go of its tensors.
function Part:release()
  if not self.next then return end
  self.how.keys:release()
  self.next:release()
  self.how.keys, self.next = nil, nil
end

--- Only some of its rows are left, at places 1 to #from.
--- @param from integer[]  which
--- @param index perilune.Tensor  the same, from 0
function Part:keep(from, index)
  local rows, places = {}, {}
  for r, old in ipairs(from) do rows[r], places[r] = self.rows[old], r end
  self.rows, self.places = rows, places
  if not self.next then return end
  local keys = peri.keep(self.how.keys:index_select(index, 1))
  self.how.keys:release()
  self.how.keys = keys
end

--- What can be drawn apart from the rest, where that fails together: each row.
--- @return integer[][]  places
function Part:units()
  local list = {}
  for i, place in ipairs(self.places) do list[i] = { place } end
  return list
end

-- The likeliest tokens of each row: lists of { id =, logprob = }, best first.
local function likeliest(scaled, n)
  local values, places = scaled:log_softmax(-1):topk(math.min(n, scaled:size(2)))
  local tops, logprobs = {}, values:tolist()
  for b, list in ipairs(places:tolist()) do
    tops[b] = {}
    for k, p in ipairs(logprobs[b]) do tops[b][k] = { id = list[k], logprob = p } end
  end
  return tops
end

--- Draw the next token of each row. Nothing has changed until advance().
--- @param logits perilune.Tensor  (#rows, V)
--- @return perilune.Tensor ids  (#rows) i64
--- @return perilune.Tensor logprobs  (#rows) f32, under softmax(logits / temperature), before penalties,
--- constraints, truncation; with sampling "renormalised" of the distribution drawn from
--- @return table[]? tops  with top_logprobs: of each row a list of { id =, logprob = }, best first
--- @return perilune.Tensor? kept  (#rows, V) bool: what truncation left, where the log-probabilities are of that
function Part:draw(logits)
  local first, x = self.rows[1], logits
  if not first.plain then x = M.process(x, self.rows) end
  local temperature, n, cut = self.how.temperature, first.o.top_logprobs, nil
  local ids, logp = x:sample(self.how)
  if first.renormalised then
    if first.cut then
      cut = x:truncation_mask(first.truncation)
      x = x:masked_fill(cut:logical_not(), -math.huge)
    end
    logp = x:cross_entropy(ids, { reduction = "none", temperature = temperature }):neg()
  elseif not first.plain then -- the model's own, before penalties and constraints
    logp = logits:cross_entropy(ids, { reduction = "none", temperature = temperature }):neg()
  end
  return ids, logp, n > 0 and likeliest(logits:div(temperature), n) or nil, cut
end

--- The rows' streams move on: what was drawn counts.
function Part:advance()
  if self.next then self.how.keys:add_(self.next) end
end

return M
