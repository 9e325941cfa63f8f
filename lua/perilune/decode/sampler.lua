-- sampler.lua - the next token of each row of a batch: penalties, constraints and truncation, where
-- every row brings its own settings and its own stream of random numbers. What a row draws depends
-- on its logits, settings, seed and the number of tokens it has drawn, never on the rows beside it.
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

-- Seeds of the samples of one request are apart by the golden ratio of 2^64.
local STRIDE <const> = 0x9E3779B97F4A7C15

--- The state of one sequence.
--- @param o table  settings with the fields of M.defaults
--- @param prompt integer[]  ids that the repetition penalty counts
--- @param stop integer[]  ids that end the sequence
--- @param sample integer?  which of the samples of a request, from 1: each has a seed of its own
--- @return perilune.decode.sampler.Row
function M.row(o, prompt, stop, sample)
  local self = setmetatable({ o = o, drawn = 0, stop = {}, stop_list = stop, count = {} }, Row)
  local seed = o.seed or peri.randint(0, 1 << 62, {}):item()
  self.seed = seed + ((sample or 1) - 1) * STRIDE
  for _, id in ipairs(stop) do self.stop[id] = true end
  self.penalised = o.repetition_penalty ~= 1
  self.counted = o.frequency_penalty ~= 0 or o.presence_penalty ~= 0
  self.seen, self.seen_list = {}, {}
  if self.penalised then
    for _, id in ipairs(prompt) do self:see(id) end
  end
  if o.constraint then self.state = o.constraint:start() end
  if o.logit_bias and next(o.logit_bias) ~= nil then
    self.bias_ids, self.bias = {}, {}
    for id in pairs(o.logit_bias) do self.bias_ids[#self.bias_ids + 1] = id end
    table.sort(self.bias_ids)
    for k, id in ipairs(self.bias_ids) do self.bias[k] = o.logit_bias[id] end
  end
  self.plain = not (self.penalised or self.counted or self.state or self.bias or o.min_new_tokens > 0)
  self.how = { temperature = o.temperature, top_k = o.top_k, top_p = o.top_p, min_p = o.min_p,
               greedy = o.greedy or o.temperature == 0 }
  if self.how.greedy then self.how.temperature, self.how.top_k, self.how.top_p, self.how.min_p = 1, 0, 1, 0 end
  self.group = ("%.17g %d %.17g %.17g %s %s %d"):format(self.how.temperature, self.how.top_k, self.how.top_p,
    self.how.min_p, self.how.greedy, self.plain, o.top_logprobs)
  return self
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

-- Each seen logit divided by the penalty where it is positive, else multiplied.
local function repetition(x, rows)
  local lists, penalty, any = {}, {}, false
  for b, row in ipairs(rows) do
    lists[b], penalty[b] = row.seen_list, { row.penalised and row.o.repetition_penalty or 1 }
    any = any or (row.penalised and #row.seen_list > 0)
  end
  if not any then return x end
  local ids = matrix(lists, "i64", 0)
  local p = peri.tensor(penalty, "f32")
  local score = x:gather(ids, 2)
  return x:scatter(ids, peri.where(score:lt(0), score:mul(p), score:div(p)), 2)
end

-- logit - count * frequency_penalty - presence_penalty for what the completion holds.
local function frequency(x, rows)
  local lists, deltas, any = {}, {}, false
  for b, row in ipairs(rows) do
    local ids, delta = {}, {}
    for id in pairs(row.counted and row.count or {}) do ids[#ids + 1] = id end
    table.sort(ids)
    for k, id in ipairs(ids) do delta[k] = -(row.count[id] * row.o.frequency_penalty + row.o.presence_penalty) end
    ids[#ids + 1], delta[#delta + 1] = 0, 0 -- what padding repeats adds nothing
    lists[b], deltas[b], any = ids, delta, any or #ids > 1
  end
  if not any then return x end
  return x:scatter_add(matrix(lists, "i64", 0), matrix(deltas, "f32", 0), 2)
end

-- logit + logit_bias.
local function biased(x, rows)
  local lists, deltas, any = {}, {}, false
  for b, row in ipairs(rows) do
    lists[b], deltas[b] = { 0 }, { 0 } -- what padding repeats adds nothing
    for k, id in ipairs(row.bias_ids or {}) do
      table.insert(lists[b], k, id)
      table.insert(deltas[b], k, row.bias[k])
    end
    any = any or row.bias ~= nil
  end
  if not any then return x end
  return x:scatter_add(matrix(lists, "i64", 0), matrix(deltas, "f32", 0), 2)
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

-- Rows that share settings. -- (B, V) -> ids, logprobs, tops (lists)
local function draw_group(logits, rows)
  local first, x = rows[1], logits
  if not first.plain then x = M.process(x, rows) end
  local how, keys = {}, {}
  for k, v in pairs(first.how) do how[k] = v end
  if not how.greedy then
    for b, row in ipairs(rows) do keys[b] = { row.seed, row.drawn } end
    how.keys = peri.tensor(keys, "i64")
  end
  local ids, logp = x:sample(how)
  local scaled = (not first.plain or first.o.top_logprobs > 0) and logits:div(how.temperature)
  -- log-probabilities are the model's own, before penalties and constraints
  if not first.plain then logp = scaled:cross_entropy(ids, { reduction = "none" }):neg() end
  local tops
  if first.o.top_logprobs > 0 then
    local values, places = scaled:log_softmax(-1):topk(math.min(first.o.top_logprobs, scaled:size(2)))
    tops = {}
    for b, list in ipairs(places:tolist()) do
      tops[b] = {}
      for k, p in ipairs(values:select(1, b):tolist()) do tops[b][k] = { id = list[k], logprob = p } end
    end
  end
  return ids:tolist(), logp:tolist(), tops
end

--- Draw the next token of each row.
--- @param logits perilune.Tensor  (B, V)
--- @param rows perilune.decode.sampler.Row[]
--- @return integer[] ids
--- @return number[] logprobs  under softmax(logits / temperature), before penalties, constraints, truncation
--- @return table[] tops  of rows with top_logprobs: list of { id =, logprob = }, best first
function M.draw(logits, rows)
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local groups, order = {}, {}
  for b, row in ipairs(rows) do
    if not groups[row.group] then
      groups[row.group] = {}
      order[#order + 1] = row.group
    end
    table.insert(groups[row.group], b)
  end
  local ids, logprobs, tops = {}, {}, {}
  for _, name in ipairs(order) do
    local places, members = groups[name], {}
    for k, b in ipairs(places) do members[k] = rows[b] end
    local x = logits
    if #places < #rows then x = logits:index_select(peri.tensor(places, "i64"):sub(1), 1) end
    local got, logp, top = draw_group(x, members)
    for k, b in ipairs(places) do
      ids[b], logprobs[b] = got[k], logp[k]
      if top then tops[b] = top[k] end
    end
  end
  return ids, logprobs, tops
end

return M
