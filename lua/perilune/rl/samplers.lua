-- samplers.lua - rollouts made elsewhere while the learner learns: workers (docs/threads.md), each with a model of its
-- own, that sample with weights which may be some updates old. What a batch is depends on its number and on the weights
-- that it was sampled with, on nothing else: which worker made it, when, and beside what does not matter. So the list
-- of those weights, one number a batch, is all there is to record, and a run with that list is the same run to the
-- byte.
--
-- Batch k is what update k learns from (from 1); weights v are those after update v (0: the first). Batch k is asked
-- for as soon as weights k - 1 - max_staleness are there, and so is never older than max_staleness updates.
local peri = require "perilune"
local crews = require "perilune.rl.crew"
local options = require "perilune.options"
local batches = require "perilune.text.batch"
local supports = require "perilune.decode.support"

local M = {}

local rules = {
  make = options.value(options.required, "function", "in a worker: () -> { model =, tokenizer =, reward =, environment "
    .. "=, adapter = }, of which model, tokenizer and a reward or an environment are needed"),
  n = options.integer(1, "[1, inf)", "workers"),
  max_staleness = options.integer(1, "[0, inf)", "updates that the weights of a batch may be old; 0: none, and the "
    .. "learner waits for each batch"),
  order = options.choice("newest", { "newest", "fixed" }, "which weights: the newest that are there when a batch is "
    .. "begun; or always the oldest that may be, the same in each run"),
  schedule = options.value(options.none, "table", "of an earlier run: samplers.schedule, to make it again; behind its "
    .. "end order holds"),
}

--- @class perilune.rl.Samplers
--- @field schedule integer[]  the weights that each batch so far was sampled with
--- @field taken integer  batches that were learned from
--- @field waited number  seconds that the learner waited for them
local Samplers = {}
Samplers.__index, Samplers.__name = Samplers, "perilune.rl.Samplers"

-- ---- in a worker ----

-- A batch as what a channel takes: rows stay with the learner, batches and supports are taken apart.
local function packed(batch)
  local begins, counts = batch.sequences:bounds()
  local out = { begins = begins, counts = counts, support = batch.support and batch.support:packed() }
  for name, value in pairs(batch) do
    if out[name] == nil and name ~= "sequences" and name ~= "rows" and name ~= "start" and name ~= "support" then
      out[name] = value
    end
  end
  for _, talk in ipairs(batch.conversations or {}) do talk.row = nil end
  return out
end

local parts = { "adapter", "environment", "model", "reward", "tokenizer" }

-- Raise unless make gave what a rollout needs.
local function want_made(made, level)
  local expected = ", expected { model =, tokenizer =, reward = or environment = }"
  if type(made) ~= "table" then
    error("rl.samplers: make gave " .. (made == nil and "nil" or "a " .. type(made)) .. expected, level + 1)
  end
  for key in pairs(made) do
    local known = false
    for _, name in ipairs(parts) do known = known or name == key end
    if not known then error("rl.samplers: make gave an " .. options.unknown("field", key, parts), level + 1) end
  end
  local lacks = type(made.model) ~= "table" and "model" or type(made.tokenizer) ~= "table" and "tokenizer"
    or made.reward == nil and made.environment == nil and "reward or environment"
  if lacks then error(("rl.samplers: make gave no %s%s"):format(lacks, expected), level + 1) end
end
M._want_made = want_made -- in a worker, which finds it by name

-- Orders are { weights = v, tensors } and { batch = k, rows, how, version }.
local function work(i, orders, answers, make)
  local perilune = require "perilune"
  local rollout = require("perilune.rl.rollout").rollout
  local made = make()
  require("perilune.rl.samplers")._want_made(made, 0)
  local learned = made.adapter or made.model
  local known, newest, jobs, loaded = {}, nil, {}, nil
  local function take(order)
    order = order[1]
    if order.weights then
      known[order.weights], newest = order.tensors, math.max(newest or order.weights, order.weights)
    else jobs[#jobs + 1] = order end
  end
  local function wait()
    local order, why = orders:receive()
    if order then take(order) end
    return why ~= "closed"
  end
  while true do
    while #orders > 0 do if not wait() then return end end -- all that came meanwhile
    local job = table.remove(jobs, 1)
    if not job then
      if not wait() then return end
    else
      while not (job.version and known[job.version] or not job.version and newest) do
        if not wait() then return end
      end
      local version = job.version or newest
      for v in pairs(known) do if v < job.oldest then known[v] = nil end end
      if loaded ~= version then
        learned:load_state_dict(known[version])
        loaded = version
      end
      job.how.environment = made.environment
      local scope <close> = perilune.scope() -- luacheck: ignore 211
      local batch = packed(rollout(made.model, made.tokenizer, job.rows, made.reward, job.how))
      batch.batch, batch.version = job.batch, version
      answers:send { i, batch }
    end
  end
end

-- ---- the learner's ----

--- Workers that sample for algo.grpo and algo.ppo (option samplers) while these learn. make runs in each of them and
--- gives it a model, a tokenizer and a reward, or an environment that has one; the weights come from the learner. Each
--- batch says in `version` which it was sampled with, its log-probabilities are the sampler's, and ratios and
--- loss.importance correct for the difference.
---
---     local samplers <close> = rl.samplers { n = 2, max_staleness = 2, make = function ()
---       local peri = require "perilune"
---       return { model = peri.models.load(path), tokenizer = tok(), reward = reward }
---     end }
---     algo.grpo.new { model = model, tokenizer = tok, rows = rows, samplers = samplers, optimizer = opt }
---
--- Tracked by a run it keeps the schedule and the weights that batches on their way may need.
--- @param opts table
--- @return perilune.rl.Samplers  `<close>` ends it
function M.samplers(opts)
  local o = options.fill("rl.samplers", opts, rules)
  for k, v in ipairs(o.schedule or {}) do
    if math.type(v) ~= "integer" or v < 0 or v > k - 1 or v < k - 1 - o.max_staleness then
      options.raise(("rl.samplers: schedule[%d] is %s, expected the number of weights from %d to %d"):format(k,
        tostring(v), math.max(0, k - 1 - o.max_staleness), k - 1))
    end
  end
  local self = setmetatable({ max_staleness = o.max_staleness, order = o.order, replayed = o.schedule or {},
    schedule = {}, taken = 0, asked = 0, waited = 0, ready = {}, rows = {}, weights = {}, oldest = 0 }, Samplers)
  self.crew = crews.crew({ n = o.n, run = work, ahead = 2 * o.max_staleness + 8 }, o.make)
  return self
end
options.declare(M.samplers, {}, rules)

--- Whether a value is one.
function M.is(value) return type(value) == "table" and getmetatable(value) == Samplers end

--- End the workers.
function Samplers:close() self.crew:close() end
Samplers.__close = Samplers.close

local function tell(self, version)
  self.crew:send { weights = version, tensors = self.weights[version] }
end

--- Weights after an update, for all batches that are begun from now on.
--- @param object table  a model or an adapter: state_dict
--- @param version integer
function Samplers:publish(object, version)
  if self.weights[version] then return end
  local _ <close> = peri.no_grad()
  local copy = {}
  for name, t in pairs((object:state_dict())) do copy[name] = peri.keep(t:clone()) end
  self.weights[version] = copy
  for v in pairs(self.weights) do if v < version - self.max_staleness then self.weights[v] = nil end end
  tell(self, version)
end

--- Ask for all batches that may be begun.
--- @param draw fun(k: integer): table[], table  rows of batch k, and the options of its rollout
function Samplers:ask(draw)
  while self.asked < self.taken + 1 + self.max_staleness do
    local k = self.asked + 1
    local oldest = math.max(0, k - 1 - self.max_staleness)
    local rows, how = draw(k)
    self.rows[k] = rows
    self.crew:give((k - 1) % self.crew.n + 1, { batch = k, rows = rows, how = how, oldest = oldest,
      version = self.replayed[k] or self.order == "fixed" and oldest or nil })
    self.asked = k
  end
end

-- Tensors of a value stay, whatever scope it came in.
local function keep(value)
  if peri.is_tensor(value) then peri.keep(value)
  elseif type(value) == "table" then
    for _, v in next, value do keep(v) end
  end
end

-- A batch as rl.rollout gives it.
local function unpacked(batch, rows)
  for name, value in pairs(batch) do
    if name ~= "tokens" and name ~= "conversations" then keep(value) end
  end
  batch.sequences = batches.by_bounds(batch.ids, batch.begins, batch.counts)
  batch.support = batch.support and supports.unpacked(batch.support)
  batch.start = batch.sequences:padding() and batch.sequences.start or nil
  batch.begins, batch.counts, batch.rows = nil, nil, {}
  for i = 1, #batch.tokens do batch.rows[i] = rows[(i - 1) // batch.group + 1] end
  for i, talk in ipairs(batch.conversations or {}) do talk.row = batch.rows[i] end
  return batch
end

--- The batch of the next update; the same one again until done().
--- @return table batch  of rl.rollout, with version
function Samplers:next()
  local k, began = self.taken + 1, peri.time()
  if k > self.asked then
    options.raise(("samplers:next: batch %d was not asked for: samplers:ask and publish come first"):format(k))
  end
  while not self.ready[k] do
    local batch = self.crew:receive()
    self.ready[batch.batch] = unpacked(batch, self.rows[batch.batch])
  end
  self.waited = self.waited + peri.time() - began
  return self.ready[k]
end

--- The update has learned from its batch.
function Samplers:done()
  local k = self.taken + 1
  if not self.ready[k] then options.raise(("samplers:done: batch %d was not taken by samplers:next"):format(k)) end
  self.schedule[k] = self.ready[k].version
  self.ready[k], self.rows[k], self.taken = nil, nil, k
end

--- What a checkpoint keeps: the schedule so far, and the weights that batches on their way may be sampled with.
--- @return table tensors
--- @return table plain
function Samplers:state_dict()
  local tensors, plain = {}, { schedule = self.schedule, taken = self.taken, weights = {} }
  for version, weights in pairs(self.weights) do
    plain.weights[#plain.weights + 1] = version
    for name, t in pairs(weights) do tensors[("%d.%s"):format(version, name)] = t end
  end
  table.sort(plain.weights)
  return tensors, plain
end

--- Go on from there: batches on their way are sampled anew.
--- @param tensors table
--- @param plain table
function Samplers:load_state_dict(tensors, plain)
  if type(plain) ~= "table" or math.type(plain.taken) ~= "integer" or type(plain.schedule) ~= "table"
    or type(plain.weights) ~= "table" then
    options.raise "load_state_dict: the state is none of rl.samplers"
  end
  if self.asked > 0 then options.raise "load_state_dict: batches were asked for already" end
  self.taken, self.asked, self.schedule = plain.taken, plain.taken, plain.schedule
  for k, version in ipairs(plain.schedule) do
    if self.replayed[k] and self.replayed[k] ~= version then
      options.raise(("load_state_dict: batch %d was sampled with weights %d, the schedule says %d"):format(k, version,
        self.replayed[k]))
    end
  end
  for _, version in ipairs(plain.weights) do
    local own, prefix = {}, ("%d."):format(version)
    for key, t in pairs(tensors) do
      if key:sub(1, #prefix) == prefix then own[key:sub(#prefix + 1)] = peri.keep(t) end
    end
    self.weights[version] = own
    tell(self, version)
  end
end

return M
