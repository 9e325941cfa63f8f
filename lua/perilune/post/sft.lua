-- sft.lua - supervised fine-tuning as a stepper: examples packed or padded into rows, micro-batches
-- whose losses have one divisor (the learned tokens of the whole update), so that how an update is cut
-- changes nothing. The loss is cross-entropy over the learned tokens, in nats a token.
local peri = require "perilune"
local options = require "perilune.options"
local rows = require "perilune.post.rows"

local M = {}

local IGNORED = -100 -- target of what is not learned, as in PyTorch

--- Best-fit decreasing packing: which examples share a row of at most `length` tokens.
--- @param examples table[]  each with ids
--- @param length integer
--- @return integer[][] bins  indices of examples
function M.pack(examples, length)
  local order, bins, room = {}, {}, {}
  for i = 1, #examples do order[i] = i end
  table.sort(order, function (a, b)
    local x, y = #examples[a].ids, #examples[b].ids
    if x ~= y then return x > y end
    return a < b
  end)
  local by_room = {} -- room left -> list of bins
  for _, i in ipairs(order) do
    local need, bin = #examples[i].ids, nil
    if need > length then
      error(("sft.pack: example %d has %d tokens, rows have %d"):format(i, need, length), 2)
    end
    for left = need, length do
      local list = by_room[left]
      if list and #list > 0 then bin = table.remove(list) break end
    end
    if not bin then
      bin = #bins + 1
      bins[bin], room[bin] = {}, length
    end
    table.insert(bins[bin], i)
    room[bin] = room[bin] - need
    by_room[room[bin]] = by_room[room[bin]] or {}
    table.insert(by_room[room[bin]], bin)
  end
  return bins
end

--- Rows of tokens as tensors. Positions of one row that belong to different examples do not see each
--- other, and the first token of an example is no target of the one before.
--- @param list table[][]  for each row the examples in it
--- @param pad integer  id behind the last example
--- @return table batch  ids (B, T) i64, targets (B, T - 1) i64 (-100: not learned), segments (B, T) i64 or
--- nil when every row has one example, learned (count)
function M.batch(list, pad)
  local width, packed = 0, false
  for _, row in ipairs(list) do
    local n = 0
    for _, e in ipairs(row) do n = n + #e.ids end
    width, packed = math.max(width, n), packed or #row > 1
  end
  local ids, targets, segments, learned = {}, {}, {}, 0
  for b, row in ipairs(list) do
    local x, y, s, at = {}, {}, {}, 0
    for k, e in ipairs(row) do
      for i, id in ipairs(e.ids) do
        x[at + i], s[at + i] = id, k
        if at + i > 1 then
          local on = i > 1 and e.mask[i] ~= 0
          y[at + i - 1] = on and id or IGNORED
          if on then learned = learned + 1 end
        end
      end
      at = at + #e.ids
    end
    for i = at + 1, width do x[i], s[i], y[math.max(i - 1, 1)] = pad, #row + 1, IGNORED end
    ids[b], targets[b], segments[b] = x, y, s
  end
  return { ids = peri.tensor(ids, "i64"), targets = peri.tensor(targets, "i64"), learned = learned,
           segments = packed and peri.tensor(segments, "i64") or nil }
end

--- Sum of the cross-entropy over the learned tokens of a batch, in nats.
--- @param model table  causal model of perilune.models
--- @param batch table  of M.batch
--- @return perilune.Tensor sum  0-dim
--- @return perilune.Tensor entropy  0-dim: sum of the entropies at the learned tokens, detached
function M.loss(model, batch)
  local time = batch.ids:size(2) - 1
  local hidden = model:forward(batch.ids:narrow(2, 1, time),
    { segments = batch.segments and batch.segments:narrow(2, 1, time) })
  local logp, entropy = model:token_logprob(hidden, batch.targets)
  return logp:sum():neg(), entropy:detach():sum()
end

--- Mean loss over examples, without gradients.
--- @param model table
--- @param examples table[]
--- @param opts table?  batch_size (8), pad (0)
--- @return number loss  nats a learned token
function M.evaluate(model, examples, opts)
  local o = options.fill("sft.evaluate", opts, { batch_size = 8, pad = 0 })
  local _ <close> = peri.no_grad()
  local sum, tokens = 0, 0
  for at = 1, #examples, o.batch_size do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local list = {}
    for i = at, math.min(at + o.batch_size - 1, #examples) do list[#list + 1] = { examples[i] } end
    local batch = M.batch(list, o.pad)
    sum, tokens = sum + M.loss(model, batch):item(), tokens + batch.learned
  end
  return sum / tokens
end

local Stepper = {}
Stepper.__index = Stepper

--- @param opts table  model, optimizer, and tokenizer with rows (see perilune.post.rows) or examples;
--- batch_size (8: rows of a micro-batch), accumulate (1: micro-batches of an update), max_length (1024),
--- packing (false), assistant_only (true), completion_only (true), clip_norm (1), schedule (function of the
--- step), seed (1: of the order), pad (0)
--- @return table stepper  :step() -> metrics; :state(), :set_state(s) for checkpoints; examples
function M.new(opts)
  local self = options.fill("sft", opts, { model = options.required, optimizer = options.required,
    tokenizer = options.none, rows = options.none, examples = options.none, batch_size = 8, accumulate = 1,
    max_length = 1024, packing = false, assistant_only = true, completion_only = true, clip_norm = 1,
    schedule = options.none, seed = 1, pad = options.none })
  for _, key in ipairs { "model", "optimizer" } do
    if self[key] == options.required then error(("sft: %s is missing"):format(key), 2) end
  end
  if not self.examples then
    if not (self.tokenizer and self.rows) then error("sft: give tokenizer and rows, or examples", 2) end
    self.examples = rows.examples(self.tokenizer, self.rows, { max_length = self.max_length,
      assistant_only = self.assistant_only, completion_only = self.completion_only })
  end
  if #self.examples == 0 then error("sft: no row has anything to learn", 2) end
  self.pad = self.pad or self.tokenizer and (self.tokenizer.pad or self.tokenizer.eos) or 0
  self.units = {}
  if self.packing then
    for i, bin in ipairs(M.pack(self.examples, self.max_length)) do
      self.units[i] = {}
      for k, index in ipairs(bin) do self.units[i][k] = self.examples[index] end
    end
  else
    for i, e in ipairs(self.examples) do self.units[i] = { e } end
  end
  self.at, self.epoch, self.used, self.seen = 0, 1, 0, 0
  return setmetatable(self, Stepper)
end

-- Rows in the order of an epoch.
local function order_of(self)
  if self._order_epoch ~= self.epoch then
    local order = {}
    for i = 1, #self.units do order[i] = i end
    peri.rng(self.seed + self.epoch - 1):shuffle(order)
    self._order, self._order_epoch = order, self.epoch
  end
  return self._order
end

-- The rows of the next micro-batch; a new epoch begins when none is left.
local function next_rows(self)
  local list = {}
  while #list < self.batch_size do
    if self.used == #self.units then
      if #list > 0 then break end
      self.epoch, self.used = self.epoch + 1, 0
    end
    self.used = self.used + 1
    list[#list + 1] = self.units[order_of(self)[self.used]]
  end
  return list
end

--- One update.
--- @return table metrics  step, loss, entropy (nats a learned token), num_tokens (so far), learning_rate,
--- grad_norm, epoch (fraction). Names are those of TRL's SFTTrainer; its mean_token_accuracy is not there:
--- the op token_logprob, which never holds the logits, does not say which token was best
function Stepper:step()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local batches, tokens, sum, entropy = {}, 0, 0, 0
  for i = 1, self.accumulate do
    batches[i] = M.batch(next_rows(self), self.pad)
    tokens = tokens + batches[i].learned
    self.seen = self.seen + batches[i].ids:numel()
  end
  for _, batch in ipairs(batches) do
    local micro <close> = peri.scope() -- luacheck: ignore 211
    local loss, h = M.loss(self.model, batch)
    loss:div(tokens):backward()
    sum, entropy = sum + loss:item(), entropy + h:item()
  end
  self.at = self.at + 1
  local lr = self.schedule and self.schedule(self.at) or self.optimizer.lr
  self.optimizer:step { lr = lr, clip = self.clip_norm }:zero_grad()
  return { step = self.at, loss = sum / tokens, entropy = entropy / tokens, num_tokens = self.seen,
           learning_rate = lr, grad_norm = self.optimizer.grad_norm,
           epoch = self.epoch - 1 + self.used / #self.units }
end

function Stepper:state() return { at = self.at, epoch = self.epoch, used = self.used, seen = self.seen } end

function Stepper:set_state(s)
  self.at, self.epoch, self.used, self.seen = s.at, s.epoch, s.used, s.seen
  return self
end

return M
