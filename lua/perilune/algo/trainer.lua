-- trainer.lua - what the steppers share. A stepper is made by new(opts) and has one interface: :step() -> metrics,
-- under TRL's names; :state() and :set_state(s) for checkpoints, plain tables; it can be tracked by a run. An algorithm
-- says what its rows are and what the loss of some of them is; the rest stands here, once:
--
--   local Stepper = trainer.class("dpo", { epochs = true })
--   local rules = trainer.rules { model = ..., beta = ... }      -- its own options, and those that all have
--   function M.new(opts)
--     local self = trainer.new(Stepper, opts, rules)              -- options filled; at, seen, idle are 0
--     self.units = ...                                            -- rows; take() draws from them, epoch by epoch
--     return self
--   end
--   function Stepper:step()
--     local scope <close> = peri.scope()
--     local turn <close> = self:begin()
--     self:try_heaviest(function () return pass(longest_slice) end) -- once, see below
--     local rows, metrics = self:take(self.batch_size), {}
--     self:learn(trainer.slices(rows, self.micro), pass, metrics) -- pass(slice) -> loss, stats: forward, no backward
--     return self:update(metrics)
--   end
--
-- Four rules hold for all of them.
-- * A loss is a sum over rows or tokens, divided by what the whole update has of them: pass() gets a slice and divides
--   by the denominators of the update, which are counted before the first pass. So losses, statistics and gradients of
--   micro-batches add up, and how an update is cut is a matter of memory alone.
-- * The probe: before the first update of a process the longest rows that there are go forward and backward, without
--   an update, with room for the optimizer's moments. What does not fit into memory fails at step 1 and not at step
--   120, and after a resume as well. No later number changes by a bit: gradients, the generator and the counters are
--   put back.
-- * A step() that raises was none: gradients, counters and what is drawn next are as before it.
-- * Nothing is swallowed: an update whose gradient is not finite is left out, counted by the optimizer and said in its
--   metrics (skipped); one that moved nothing, because there was no gradient or no learning rate, is counted and said
--   (no_op).
local peri = require "perilune"
local answers = require "perilune.algo.answers"
local derived = require "perilune.nn.derived"
local options = require "perilune.options"
local phases = require "perilune.phases"
local states = require "perilune.algo.state"

local M = {}

--- Options that every stepper takes.
M.common = {
  optimizer = options.value(options.required, "table", "over the parameters that learn"),
  schedule = options.value(options.none, "callable", "learning rate by step, from 1; default: the optimizer's"),
  clip_norm = options.number(1, "(0, inf)", "largest norm of the gradient"),
  probe = options.boolean(true, "before the first update the longest rows go forward and backward without one"),
}

--- Options of steppers whose updates are so many of self.units, for classes with { epochs = true }.
M.of_units = {
  batch_size = options.integer(8, "[1, inf)", "rows of an update"),
  micro = options.integer(options.none, "[1, inf)", "rows in one forward and backward pass; default: batch_size"),
  seed = options.integer(1, nil, "of the order of rows"),
  pad = options.integer(options.none, "[0, inf)", "id behind shorter rows; default: the tokenizer's"),
}

--- The options of a stepper: its own, and those that all have.
--- @param own table<string, any>
--- @return table<string, any>
function M.rules(own)
  local rules = {}
  for _, set in ipairs { M.common, own } do
    for name, rule in pairs(set) do rules[name] = rule end
  end
  return rules
end

--- An adapter whose base is to be the reference: one of perilune.peft, on this model.
--- @param who string
--- @param adapter any
--- @param model table
function M.want_adapter(who, adapter, model)
  if type(adapter) ~= "table" or not adapter.disabled then
    options.raise(who .. ": adapter is none of perilune.peft")
  elseif adapter.model ~= model then
    options.raise(("%s: the adapter is on another model than the one that is trained: without it that model would be "
      .. "the same, and no reference"):format(who))
  end
end

local rate_rule = options.number(options.required, "[0, inf)")

local Trainer = {}
Trainer.__index = Trainer

-- A field of a stepper that is new. Options may be set between steps: what is nearly the name of one would be left
-- aside.
function M.set_new(self, name, value)
  local near = type(name) == "string" and name:sub(1, 1) ~= "_" and not self._rules[name]
    and options.is_caller_outside() and options.nearest(name, options.names(self._rules))
  if near then options.raise(("%s: there is no option %q to set; did you mean %q?"):format(self.who, name, near)) end
  rawset(self, name, value)
end

--- A class of steppers. counters: fields of its state that are counts, beside at, seen and idle; parts: fields that are
--- objects with state() and set_state(), beside schedule; epochs: its rows are self.units, taken in epochs; dropout: it
--- learns with the dropout of its model, where that is on.
--- @param who string  named in messages
--- @param fields table?  counters, parts, epochs, dropout
--- @return table class
function M.class(who, fields)
  local class, given = setmetatable({ who = who, __newindex = M.set_new }, Trainer), fields or {}
  class.__index, class.in_epochs, class.drops = class, given.epochs, given.dropout
  class.counters, class.parts = { "at", "seen", "idle" }, { "schedule" }
  if given.epochs then table.move({ "epoch", "used" }, 1, 2, 4, class.counters) end
  for _, name in ipairs { "counters", "parts" } do
    table.move(given[name] or {}, 1, #(given[name] or {}), #class[name] + 1, class[name])
  end
  return class
end

--- A stepper with its options filled in. at: updates so far; seen: tokens so far; idle: updates that moved nothing.
--- @param class table  of trainer.class
--- @param given table
--- @param rules table  of trainer.rules
--- @return table
function M.new(class, given, rules)
  local self = options.fill(class.who, given, rules)
  self._rules = rules
  self.at, self.seen, self.idle = 0, 0, 0
  if class.in_epochs then self.epoch, self.used = 1, 0 end
  return setmetatable(self, class)
end

local Turn = {}
Turn.__index = Turn

--- A step() begins. Options may have been set since the last one: each is held to its rule again. Dropout is off in its
--- models until it ends, but for classes with { dropout = true }: so what was sampled is what is learned from, a policy
--- that has not moved is its reference, and how rows are cut changes nothing.
--- @return table turn  to-be-closed; an error puts back what the step() changed of the stepper
function Trainer:begin()
  for name, rule in pairs(self._rules) do
    local value = rawget(self, name)
    local problem = value ~= nil and options.problem(name, value, rule)
    if problem then options.raise(("%s: %s"):format(self.who, problem)) end
  end
  local before = {}
  for _, name in ipairs(self.counters) do before[name] = self[name] end
  local models = { self.model, self.reference, self.teacher, self.critic_optimizer and self.critic }
  for _, teacher in pairs(self.teachers or {}) do models[teacher] = teacher end
  return setmetatable({ of = self, before = before, rng = self.rng and self.rng:state(),
    quiet = not self.drops and answers.quiet(models) or nil }, Turn)
end

function Turn:__close(failed)
  local stepper = self.of
  if self.quiet then self.quiet:__close() end
  if failed == nil then return end
  for name, value in pairs(self.before) do stepper[name] = value end
  if self.rng then stepper.rng:set_state(self.rng) end
  for _, name in ipairs { "optimizer", "critic_optimizer" } do
    if stepper[name] then stepper[name]:zero_grad() end
  end
  stepper._norms, stepper._steps, stepper._still, stepper._lr, stepper._drawn = nil, nil, nil, nil, nil
end

-- What a name says of its values over passes: they add up, or the largest or smallest is kept.
local function combine(name, a, b)
  if a == nil then return b end
  if name:find "max$" then return math.max(a, b) end
  if name:find "min$" then return math.min(a, b) end
  return a + b
end

local function forward(pass, part)
  local phase <close> = phases.open "forward" -- luacheck: ignore 211
  local loss, stats = pass(part)
  return loss, stats
end

-- Forward and backward of one slice.
local function one_pass(part, pass, metrics)
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local loss, stats = forward(pass, part)
  loss:backward { chain = true }
  metrics.loss = metrics.loss + loss:item()
  for name, value in pairs(stats or {}) do
    metrics[name] = combine(name, metrics[name], peri.is_tensor(value) and value:item() or value)
  end
end

--- Forward and backward over the slices of an update. Each pass is a memory scope. Values add up over the passes; of
--- names that end with max or min the extreme is kept.
--- @param parts function  an iterator of slices: rl.parts, or trainer.slices
--- @param pass fun(part: any): perilune.Tensor, table?  loss (0-dim) of a slice, divided by the denominators of the
--- whole update, and statistics (name -> 0-dim tensor or number), likewise
--- @param metrics table  gets loss and the statistics
function M.learn(parts, pass, metrics)
  M.learn_by(function (each)
    for part in parts do each(part) end
  end, pass, metrics)
end

--- The same where slices come in a walk of their own, which calls each(part) for every one of them.
--- @param walk fun(each: fun(part: any))
--- @param pass fun(part: any): perilune.Tensor, table?
--- @param metrics table
function M.learn_by(walk, pass, metrics)
  metrics.loss = metrics.loss or 0
  local held <close> = derived.hold()
  walk(function (part) one_pass(part, pass, metrics) end)
  held:flow()
end

--- The same as a method of steppers.
function Trainer:learn(parts, pass, metrics) M.learn(parts, pass, metrics) end -- luacheck: ignore 212

--- for slice in trainer.slices(list, size) do: consecutive pieces of a list, of at most `size` entries; without a size
--- its entries themselves.
--- @param list any[]
--- @param size integer?
function M.slices(list, size)
  local at = 1
  return function ()
    if at > #list then return nil end
    local slice = size and table.move(list, at, math.min(at + size - 1, #list), 1, {}) or list[at]
    at = at + (size or 1)
    return slice
  end
end

--- The n longest of a list, the longest first.
--- @param list any[]
--- @param n integer
--- @param length fun(entry: any): integer
--- @return any[]
function M.longest(list, n, length)
  local order = {}
  for i, entry in ipairs(list) do order[i] = { length(entry), i } end
  table.sort(order, function (a, b)
    if a[1] ~= b[1] then return a[1] > b[1] end
    return a[2] < b[2]
  end)
  local first = {}
  for i = 1, math.min(n, #order) do first[i] = list[order[i][2]] end
  return first
end

--- The learning rate of the next update: the schedule's, or the optimizer's where there is none.
--- @param schedule function?
--- @param optimizer table
--- @param name string?  of the schedule, "schedule"
--- @return number
function Trainer:rate(schedule, optimizer, name)
  if not schedule then return optimizer.lr end
  local lr = schedule(self.at + 1)
  local problem = options.problem(("%s of step %d"):format(name or "schedule", self.at + 1), lr, rate_rule)
  if problem then options.raise(("%s: %s"):format(self.who, problem)) end
  return lr
end

--- The optimizer's step by the gradients that have come together: learning rate by the schedule, clip, and what became
--- of it. Several in one step() are one for the schedule and the counters: count = false for all but the last, or for
--- all, and then counted().
--- @param metrics table  gets learning_rate, grad_norm and, where it is so, skipped and no_op (such updates so far)
--- @param count boolean?  false: not the last of this step()
--- @return table metrics
function Trainer:update(metrics, count)
  local optimizer = self.optimizer
  local lr = self:rate(self.schedule, optimizer)
  optimizer:step { lr = lr, clip = self.clip_norm, copies = self.copies }:zero_grad()
  self._norms, self._steps, self._lr = (self._norms or 0) + optimizer.grad_norm, (self._steps or 0) + 1, lr
  self._still = self._still ~= false and not optimizer.was_skipped and (lr == 0 or optimizer.grad_norm == 0)
  if optimizer.was_skipped then metrics.skipped = optimizer.skipped end
  if count == false then return metrics end
  return self:counted(metrics)
end

--- One more update, after the optimizer's steps that it took.
--- @param metrics table
--- @return table metrics
function Trainer:counted(metrics)
  self.at = self.at + 1
  metrics.step, metrics.learning_rate, metrics.grad_norm = self.at, self._lr, self._norms / self._steps
  if self._still then self.idle = self.idle + 1 end
  metrics.no_op = self._still and self.idle or nil
  self._norms, self._steps, self._still, self._lr = nil, nil, nil, nil
  return metrics
end

--- Something beside the parameters of the optimizer moved in this step(): it is no no_op.
function Trainer:moved() self._still = false end

-- The gradients of a model's and an optimizer's parameters, taken away.
local function set_aside(self)
  local list, seen = {}, {}
  local objects = { self.optimizer, self.model }
  for _, name in ipairs { "critic", "critic_optimizer" } do objects[#objects + 1] = self[name] end
  for _, object in ipairs(objects) do
    for _, p in ipairs(object.parameters and object:parameters() or {}) do
      if not seen[p] then
        seen[p], list[#list + 1] = true, { p, p.grad }
        p.grad = nil
      end
    end
  end
  return list
end

-- The name of an optimizer that the gradient of a pass does not reach at all, such as one over another model.
local function unreached(self)
  for _, name in ipairs { "optimizer", "critic_optimizer" } do
    local list, reached = self[name] and self[name]:parameters() or {}, false
    for _, p in ipairs(list) do reached = reached or p.grad ~= nil end
    if #list > 0 and not reached then return name end
  end
end

local function refuse_idle(self, name)
  options.raise(("%s: no gradient reaches the parameters of %s: is it over the model, or the adapter, that learns?")
    :format(self.who, name))
end

--- Behind a backward pass: an optimizer without a parameter that the gradient reached is an error.
function Trainer:want_reached()
  local idle = unreached(self)
  if idle then refuse_idle(self, idle) end
end

--- Once, before the first update of this process: the heaviest pass of all that may come, forward and backward. The
--- gradients, the generator and the metrics are as if it had not been. An optimizer without a parameter that the
--- gradient reaches is an error.
--- @param heaviest fun(): perilune.Tensor?  builds the slice of the longest rows and returns its loss; nil: there is
--- nothing to try
function Trainer:try_heaviest(heaviest)
  if self._probed or not self.probe then return end
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local rng, gradients = peri.rng_state(), set_aside(self)
  local moments = {} -- room for those that the optimizer makes at its first step
  for _, optimizer in ipairs(self.at == 0 and { self.optimizer, self.critic_optimizer } or {}) do
    for _, p in ipairs(optimizer:parameters()) do
      if p.requires_grad then moments[#moments + 1] = { peri.zeros_like(p), peri.zeros_like(p) } end
    end
  end
  local idle
  local ok, message = pcall(function ()
    local loss = heaviest()
    if loss then loss:backward() end
    idle = loss and unreached(self)
  end)
  for _, pair in ipairs(gradients) do pair[1].grad = pair[2] end
  peri.set_rng_state(rng)
  self._probed = ok and idle == nil
  if idle then refuse_idle(self, idle)
  elseif not ok then
    options.raise(("%s: the probe, a pass over the longest rows before the first update, failed: %s"):format(self.who,
      (tostring(message):gsub("^[^%s:]+%.lua:%d+: ", ""))))
  end
end

--- What a checkpoint keeps besides model and optimizer, which are tracked on their own: the counters (the schedule goes
--- by at), and the states of the stepper's parts and of a schedule that has one.
--- @return table
function Trainer:state()
  local s = states.of(self, self.counters, self.parts)
  s.of = self.in_epochs and #self.units or nil
  return s
end

--- Go on from a state. One that does not fit raises, and then nothing changed.
--- @param s table  of state(), of a stepper made with the same options and rows
--- @return self
function Trainer:set_state(s)
  local n = self.in_epochs and type(s) == "table" and #self.units
  if n and s.of and s.of ~= n then
    options.raise(("%s: the state is of %s rows, there are %d"):format(self.who, tostring(s.of), n))
  elseif n and type(s.used) == "number" and s.used > n then
    options.raise(("%s: the state is of row %s, there are %d"):format(self.who, tostring(s.used), n))
  end
  states.take(self.who, self, s, self.counters, self.parts)
  return self
end

-- ---- rows in an order that is drawn anew each epoch ----

--- The next rows of self.units, at most `size` and none of two epochs, in an order that self.seed and the epoch draw;
--- for classes with { epochs = true }. A new epoch begins when none is left.
--- @param size integer
--- @return any[]
function Trainer:take(size)
  local units = self.units
  if self.used == #units then self.epoch, self.used = self.epoch + 1, 0 end
  if self._order_of ~= self.epoch then
    self._order, self._order_of = {}, self.epoch
    for i = 1, #units do self._order[i] = i end
    peri.rng(self.seed + self.epoch - 1):shuffle(self._order)
  end
  local list = {}
  for i = 1, math.min(size, #units - self.used) do list[i] = units[self._order[self.used + i]] end
  self.used = self.used + #list
  return list
end

--- What of_units leaves to others: the size of a pass, and the id behind shorter rows.
function Trainer:settle_units()
  self.micro = self.micro or self.batch_size
  self.pad = self.pad or self.tokenizer and (self.tokenizer.pad or self.tokenizer.eos) or 0
end

--- The longest units that one pass may have, for the probe.
--- @param length (fun(unit: any): integer)?  default: their field length
--- @return any[]
function Trainer:longest_units(length)
  return M.longest(self.units, math.min(self.micro, self.batch_size), length or function (u) return u.length end)
end

--- Epochs so far, with a fraction.
--- @return number
function Trainer:epochs() return self.epoch - 1 + self.used / #self.units end

return M
