-- sft.lua - supervised fine-tuning as a stepper: examples packed or padded into rows, micro-batches
-- whose losses have one divisor (the learned tokens of the whole update), so that how an update is cut
-- changes nothing. The loss is cross-entropy over the learned tokens, in nats a token.
local peri = require "perilune"
local options = require "perilune.options"
local phases = require "perilune.phases"
local base = require "perilune.models.base"
local rows = require "perilune.data.rows"
local trainer = require "perilune.algo.trainer"

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
--- nil when every row has one example, learned and tokens (counts, padding left out)
function M.batch(list, pad)
  local width, packed = 0, false
  for _, row in ipairs(list) do
    local n = 0
    for _, e in ipairs(row) do n = n + #e.ids end
    width, packed = math.max(width, n), packed or #row > 1
  end
  local ids, targets, segments, learned, tokens = {}, {}, {}, 0, 0
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
    ids[b], targets[b], segments[b] = x, y, s
    tokens = tokens + at
    for i = at + 1, width do x[i], s[i], y[math.max(i - 1, 1)] = pad, #row + 1, IGNORED end
  end
  return { tokens = tokens, ids = peri.tensor(ids, "i64"), targets = peri.tensor(targets, "i64"), learned = learned,
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

local evaluate_rules = {
  batch_size = options.integer(8, "[1, inf)", "examples of a forward pass"),
  pad = options.integer(0, "[0, inf)", "id behind shorter examples"),
}

--- Mean loss over examples, without gradients.
--- @param model table
--- @param examples table[]  at least one
--- @param opts table?
--- @return number loss  nats a learned token
function M.evaluate(model, examples, opts)
  local phase <close> = phases.open "evaluate" -- luacheck: ignore 211
  local o = options.fill("sft.evaluate", opts, evaluate_rules)
  options.argument("sft.evaluate", "examples", examples, "table")
  if #examples == 0 then error("sft.evaluate: there are no examples", 2) end
  local _ <close> = peri.no_grad()
  local sum, tokens = 0, 0
  for at = 1, #examples, o.batch_size do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local list = {}
    for i = at, math.min(at + o.batch_size - 1, #examples) do list[#list + 1] = { examples[i] } end
    local batch = M.batch(list, o.pad)
    sum, tokens = sum + M.loss(model, batch):item(), tokens + batch.learned
  end
  if tokens == 0 then error("sft.evaluate: none of the examples has a token to learn", 2) end
  return sum / tokens
end
options.declare(M.evaluate, { "model", "examples" }, evaluate_rules)

--- Raise unless each of a list is an example with something to learn.
--- @param who string  for messages
--- @param list table[]
function M.check_examples(who, list)
  for i, e in ipairs(list) do
    if type(e) ~= "table" or type(e.ids) ~= "table" or type(e.mask) ~= "table" or #e.mask < #e.ids then
      options.raise(("%s: example %d has no ids with a mask for each"):format(who, i))
    end
    local learned = false
    for k = 2, #e.ids do learned = learned or e.mask[k] ~= 0 end
    if not learned then options.raise(("%s: example %d has no token to learn behind its first"):format(who, i)) end
  end
end

--- A prompt and its answer as an example of which the answer is learned.
--- @param prompt integer[]
--- @param answer integer[]
--- @return table example  { ids, mask }
function M.example(prompt, answer)
  options.argument("sft.example", "prompt", prompt, "table")
  options.argument("sft.example", "answer", answer, "table")
  local ids, mask = table.move(prompt, 1, #prompt, 1, {}), {}
  for i = 1, #prompt do mask[i] = 0 end
  for _, id in ipairs(answer) do ids[#ids + 1], mask[#mask + 1] = id, 1 end
  return { ids = ids, mask = mask }
end

-- Examples in rows of at most so many tokens, as pack puts them.
local function packed(examples, length)
  local rows_of = M.pack(examples, length)
  for _, bin in ipairs(rows_of) do
    for k, index in ipairs(bin) do bin[k] = examples[index] end
  end
  return rows_of
end

local update_rules = {
  length = options.integer(256, "[2, inf)", "tokens of a row, in which several examples stand"),
  micro = options.integer(16, "[1, inf)", "rows in one forward and backward pass"),
  lr = options.number(options.none, "[0, inf)", "learning rate; default: the optimizer's"),
  clip_norm = options.number(1, "(0, inf)", "largest norm of the gradient"),
  pad = options.integer(0, "[0, inf)", "id behind the last example of a row"),
}

--- One update on just these examples, packed into rows: for a loop that draws or samples what it learns.
--- @param model table  causal model of perilune.models
--- @param optimizer table  over the parameters that learn
--- @param examples table[]  { ids, mask (1 = learned) } each, at least one
--- @param opts table?
--- @return table metrics  loss, entropy (nats a learned token), tokens (learned), grad_norm
function M.update(model, optimizer, examples, opts)
  local o = options.fill("sft.update", opts, update_rules)
  options.argument("sft.update", "examples", examples, "table")
  M.check_examples("sft.update", examples)
  if #examples == 0 then error("sft.update: there are no examples", 2) end
  local batches, metrics = {}, { tokens = 0, entropy = 0 }
  for list in trainer.slices(packed(examples, o.length), o.micro) do
    batches[#batches + 1] = M.batch(list, o.pad)
    metrics.tokens = metrics.tokens + batches[#batches].learned
  end
  trainer.learn(trainer.slices(batches), function (batch)
    local loss, entropy = M.loss(model, batch)
    return loss:div(metrics.tokens), { entropy = entropy:div(metrics.tokens) }
  end, metrics)
  optimizer:step { lr = o.lr, clip = o.clip_norm }:zero_grad()
  metrics.grad_norm = optimizer.grad_norm
  return metrics
end
options.declare(M.update, { "model", "optimizer", "examples" }, update_rules)

local Stepper = trainer.class("sft", { epochs = true, dropout = true })

local rules = trainer.rules {
  model = options.value(options.required, "table", "causal model of perilune.models"),
  tokenizer = options.value(options.none, "table", "of perilune.tokenizer; needed with rows"),
  rows = options.value(options.none, "table", "training rows, see perilune.data.rows"),
  examples = options.value(options.none, "table", "in place of rows: list of { ids, mask (1 = learned) }"),
  batch_size = options.integer(8, "[1, inf)", "rows of a batch"),
  accumulate = options.integer(1, "[1, inf)", "batches of an update"),
  micro = options.integer(options.none, "[1, inf)", "rows in one forward and backward pass; default: batch_size"),
  max_length = options.integer(1024, "[2, inf)", "tokens of a row; longer ones are cut"),
  packing = options.boolean(false, "several examples to a row of max_length"),
  assistant_only = options.boolean(true, "of messages only what the assistant says is learned"),
  completion_only = options.boolean(true, "of a prompt and a completion only the completion is learned"),
  bad = options.choice("error", { "error", "skip" }, "of rows that cannot be read: raise, or leave out and count"),
  seed = options.integer(1, nil, "of the order of rows"),
  pad = options.integer(options.none, "[0, inf)", "id behind the last example; default: the tokenizer's"),
}

--- Supervised fine-tuning as a stepper: each :step() is one update over micro-batches of rows, in an order
--- that is drawn anew each epoch.
--- @param opts table  model, optimizer, and tokenizer with rows, or examples
--- @return table stepper  :step() -> metrics; :state(), :set_state(s) for checkpoints; examples; report (of
--- rows: what was left out, see rows.examples)
function M.new(opts)
  local self = trainer.new(Stepper, opts, rules)
  local why = base.no_causal(self.model)
  if why then error("sft: " .. why, 2) end
  if self.examples then
    if self.rows then error("sft: give rows or examples, not both", 2) end
    M.check_examples("sft", self.examples)
  else
    if not (self.tokenizer and self.rows) then error("sft: give tokenizer and rows, or examples", 2) end
    self.examples, self.report = rows.examples(self.tokenizer, self.rows, { max_length = self.max_length,
      assistant_only = self.assistant_only, completion_only = self.completion_only, bad = self.bad })
  end
  if #self.examples == 0 then
    error("sft: no row has anything to learn" .. (self.report and "; " .. self.report.text or ""), 2)
  end
  self:settle_units()
  self.units = {}
  if self.packing then
    self.units = packed(self.examples, self.max_length)
  else
    for i, e in ipairs(self.examples) do self.units[i] = { e } end
  end
  return self
end
options.declare(M.new, {}, rules)

local function length_of(row)
  local n = 0
  for _, e in ipairs(row) do n = n + #e.ids end
  return n
end

--- One update.
--- @return table metrics  step, loss, entropy (nats a learned token), num_tokens (so far, without padding),
--- learning_rate, grad_norm, epoch (fraction), skipped (updates left out so far) where the gradient was not finite and
--- this one was, and no_op (such updates so far) where it moved nothing. Names are those of TRL's SFTTrainer; its
--- mean_token_accuracy is not there: the op token_logprob, which never holds the logits, does not say which token was
--- best
function Stepper:step()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local turn <close> = self:begin() -- luacheck: ignore 211
  local batches, tokens, metrics = {}, 0, { entropy = 0 }
  local function pass(batch)
    local loss, entropy = M.loss(self.model, batch)
    return loss:div(tokens), { entropy = entropy:div(tokens) }
  end
  self:try_heaviest(function ()
    local batch = M.batch(trainer.longest(self.units, math.min(self.micro, self.batch_size), length_of), self.pad)
    tokens = batch.learned
    return (pass(batch))
  end)
  tokens = 0
  for _ = 1, self.accumulate do
    for list in trainer.slices(self:take(self.batch_size), self.micro) do
      local batch = M.batch(list, self.pad)
      batches[#batches + 1] = batch
      tokens, self.seen = tokens + batch.learned, self.seen + batch.tokens
    end
  end
  self:learn(trainer.slices(batches), pass, metrics)
  metrics.num_tokens, metrics.epoch = self.seen, self:epochs()
  return self:update(metrics)
end

return require "perilune.names"(M, "perilune.algo.sft")
