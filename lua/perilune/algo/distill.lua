-- distill.lua - distillation as a stepper: a student learns from what a teacher says of every token, over the whole
-- vocabulary or over the teacher's stored top k; of texts that are given, that the teacher writes (sequence-level), or
-- that the student writes itself (on-policy, GKD). Several teachers may share the rows, each for those of its domain.
-- Logits of a few tokens are there at a time.
local peri = require "perilune"
local options = require "perilune.options"
local base = require "perilune.models.base"
local batches = require "perilune.text.batch"
local loss = require "perilune.loss"
local rows_of = require "perilune.data.rows"
local sft = require "perilune.algo.sft"
local trainer = require "perilune.algo.trainer"

local Stepper = trainer.class("distill", { epochs = true, parts = { "rng" } })

local M = {}

local CHUNK <const> = 64 -- tokens whose logits are held at once

local own = {
  model = options.value(options.required, "table", "the student, a causal model of perilune.models"),
  teacher = options.value(options.none, "table", "a causal model with the same vocabulary"),
  stored = options.value(options.none, "table", "in its place: of rl.open_teacher, for the same examples"),
  teachers = options.value(options.none, "table", "in its place: several, name -> model; a row names its own"),
  by = options.value(options.none, "string", "with teachers: the field of a row or example with the name of its "
    .. "teacher; default: domain"),
  tokenizer = options.value(options.none, "table", "of perilune.tokenizer or perilune.text; needed with rows"),
  rows = options.value(options.none, "table", "training rows, see perilune.data.rows"),
  examples = options.value(options.none, "table", "in place of rows: list of { ids, mask (1 = learned) }"),
  max_length = options.integer(1024, "[2, inf)", "tokens of a row; longer ones are cut"),
  bad = options.choice("error", { "error", "skip" }, "of rows that cannot be read: raise, or leave out and count"),
  on_policy = options.number(0, "[0, 1]", "share of the updates whose answers the student writes"),
  sequence = options.boolean(false, "the other answers are the teacher's, sampled, not those of the rows (1606.07947)"),
  signal = options.choice("distribution", { "distribution", "sampled" }, "what of the teacher: all it says, or of the "
    .. "student's own tokens how likely they are, as an advantage (loss.teacher_advantage); on_policy = 1"),
  max_new_tokens = options.integer(128, "[1, inf)", "longest answer that is written"),
  sample_temperature = options.number(1, "(0, inf)", "of the answers that are written"),
  seed = options.integer(1, nil, "of the order of rows, and of which updates are on-policy"),
}
for _, more in ipairs { trainer.of_units, loss.distill_rules } do
  for name, rule in pairs(more) do own[name] = own[name] or rule end
end
local rules = trainer.rules(own)

local function refuse(...) options.raise("distill: " .. string.format(...)) end

-- Settings that only make sense together.
local function check(self)
  local who, names = { teacher = self.teacher, model = self.model }, { "model", self.teacher and "teacher" or nil }
  for name in pairs(self.teachers or {}) do
    if type(name) ~= "string" then refuse("teachers: the key %s, expected names of teachers", tostring(name)) end
  end
  for _, name in ipairs(options.names(self.teachers or {})) do
    names[#names + 1] = "teachers." .. name
    who[names[#names]] = self.teachers[name]
  end
  for _, name in ipairs(names) do
    local why = type(who[name]) == "table" and base.no_causal(who[name])
      or type(who[name]) ~= "table" and ("it is a %s, expected a model"):format(type(who[name]))
    if why then refuse("%s: %s", name, why) end
  end
  local writes = self.on_policy > 0 or self.sequence
  if self.teachers and #names == 1 then refuse "teachers is empty: expected name -> model" end
  if self.teachers and #names > 2 and self.batch_size == 1 then
    refuse("batch_size is 1, an update is of rows of all %d teachers", #names - 1)
  end
  if self.by and not self.teachers then refuse("by is %q, and there are no teachers", self.by) end
  local sources = 0
  for _, name in ipairs { "teacher", "teachers", "stored" } do sources = sources + (self[name] and 1 or 0) end
  if sources ~= 1 then refuse "give a teacher or what one said (stored) or several teachers: one of the three" end
  if self.stored and writes then refuse "what is stored is of given answers: on_policy and sequence need a teacher" end
  if self.hard > 0 and self.on_policy == 1 and self.signal == "distribution" then
    refuse("hard is %g, with on_policy = 1 there are no answers but the student's own, which it should not repeat",
      self.hard)
  end
  if self.sequence and self.on_policy == 1 then
    refuse "with on_policy = 1 the teacher writes no answers for sequence"
  end
  if self.stored and self.stored.temperature ~= self.temperature then
    refuse("temperature is %g, what is stored is of %g", self.temperature, self.stored.temperature)
  end
  local own_size = self.model.settings.vocab
  for i = 2, math.max(#names, 2) do
    local other = self.stored and self.stored.vocabulary or who[names[i]].settings.vocab
    if own_size ~= other then
      refuse("the student has %d tokens, %s %d: they need one vocabulary", own_size,
        self.teachers and names[i] or "the teacher", other)
    end
  end
  loss.distill_check("distill", self)
  if self.signal == "sampled" then
    if self.on_policy ~= 1 then refuse "signal = \"sampled\" is of the student's own tokens: it needs on_policy = 1" end
    for _, name in ipairs { "hard", "temperature", "divergence", "squared" } do
      if self[name] ~= loss.distill_rules[name].default then refuse("signal = \"sampled\" knows no %s", name) end
    end
  end
  if (self.rows ~= nil) == (self.examples ~= nil) then refuse "give rows or examples" end
  if self.rows and not self.tokenizer then refuse "rows need a tokenizer" end
  return writes
end

-- Which teacher each unit has, by the row or example that it is of.
local function assign(self)
  if not self.teachers then return end
  self.by = self.by or "domain"
  local names, taught = options.names(self.teachers), {}
  for i, u in ipairs(self.units) do
    local at = u.row or i
    local name = (self.rows or self.examples)[at][self.by]
    if name == nil or self.teachers[name] == nil then
      refuse("%s %d: %s", self.rows and "row" or "example", at, name == nil
        and ("it has no %s, the name of its teacher"):format(self.by) or options.unknown(self.by, name, names))
    end
    u.by, taught[name] = name, true
  end
  for _, name in ipairs(names) do
    if not taught[name] then refuse("teachers.%s: no row has it as its %s", name, self.by) end
  end
end

-- The teacher of a slice, which is of one.
local function teacher_for(self, list) return self.teachers and self.teachers[list[1].by] or self.teacher end

-- Units of each teacher together, in the order of their names.
local function by_teacher(self, list)
  if not self.teachers then return { list } end
  local groups, out = {}, {}
  for _, u in ipairs(list) do
    groups[u.by] = groups[u.by] or {}
    table.insert(groups[u.by], u)
  end
  for i, name in ipairs(options.names(groups)) do out[i] = groups[name] end
  return out
end

-- The slices of an update: at most micro units, of one teacher.
local function slices(self, list)
  local parts = {}
  for _, group in ipairs(by_teacher(self, list)) do
    for part in trainer.slices(group, self.micro) do parts[#parts + 1] = part end
  end
  return trainer.slices(parts)
end

-- What is before the first token that is learned.
local function prompt_of(e)
  local n = 1
  while n < #e.ids and e.mask[n + 1] == 0 do n = n + 1 end
  return table.move(e.ids, 1, n, 1, {})
end

--- Distillation as a stepper (1503.02531; GKD, 2306.13649): each :step() is one update over rows in an order that is
--- drawn anew each epoch. With teachers each row is taught by the one that it names: several specialists become one
--- student, with on_policy = 1 and divergence = "reverse" as DeepSeek-V4 merges them. An update then has rows of all, a
--- pass those of one.
--- @param opts table  model, teacher, teachers or stored, optimizer, and tokenizer with rows, or examples
--- @return table stepper  :step() -> metrics; :state(), :set_state(s) for checkpoints; units; report (of rows: what was
--- left out)
function M.new(opts)
  local self = trainer.new(Stepper, opts, rules)
  local writes = check(self)
  local only_prompts = self.on_policy == 1 or self.sequence -- no answer of a row is read
  if self.rows and type(self.rows.collect) == "function" then self.rows = self.rows:collect() end
  if self.rows and only_prompts then
    self.units = {}
    for i, row in ipairs(self.rows) do
      local ok, ids = pcall(rows_of.prompt, self.tokenizer, row)
      if not ok then refuse("row %d: %s", i, (tostring(ids):gsub("^[^%s:]+%.lua:%d+: ", ""))) end
      self.units[i] = { prompt = ids, ids = ids, mask = {}, row = i }
    end
  elseif self.rows then
    self.units, self.report = rows_of.examples(self.tokenizer, self.rows,
      { max_length = self.max_length, bad = self.bad })
  else
    sft.check_examples("distill", self.examples)
    self.units = {}
    for i, e in ipairs(self.examples) do self.units[i] = { ids = e.ids, mask = e.mask } end
  end
  if #self.units == 0 then refuse("no row has anything to learn%s", self.report and "; " .. self.report.text or "") end
  assign(self)
  for i, e in ipairs(self.units) do
    e.index = i
    if writes then e.prompt = e.prompt or prompt_of(e) end
    if e.prompt and #e.prompt == 0 then refuse("row %d has an empty prompt", i) end
  end
  if self.stored and self.stored.rows ~= #self.units then
    refuse("there are %d rows, stored are %d", #self.units, self.stored.rows)
  end
  self:settle_units()
  self.rng = peri.rng(self.seed)
  self.how = {}
  for name in pairs(loss.distill_rules) do self.how[name] = self[name] end
  return self
end
options.declare(M.new, {}, rules)

-- ---- answers that are written -------------------------------------------------------------------

-- Units with answers of a model behind their prompts; it is the student, or else the teacher of each.
local function written(self, model, units)
  if not model then
    local out = {}
    for _, group in ipairs(by_teacher(self, units)) do
      local some = written(self, teacher_for(self, group), group)
      table.move(some, 1, #some, #out + 1, out)
    end
    return out
  end
  local prompts, out = {}, {}
  for i, u in ipairs(units) do prompts[i] = u.prompt end
  local tok = self.tokenizer or {}
  local stop = tok.eos_ids or tok.eos
  local batch = model:generate(batches.pad(prompts, { side = "left", pad = self.pad }), { stop = stop, pad = self.pad,
    max_new_tokens = self.max_new_tokens, temperature = self.sample_temperature }).batch
  for i, ids in ipairs(batch:unpad()) do
    local mask = {}
    for k = 1, #ids do mask[k] = k > #prompts[i] and 1 or 0 end
    out[i] = { ids = ids, mask = mask, index = units[i].index, by = units[i].by }
  end
  return out
end

-- ---- passes -------------------------------------------------------------------------------------

-- Hidden states before the tokens that are learned, and these. -- (n, D), (n)
local function learned_rows(model, batch, at)
  local hidden = model:forward(batch.ids:narrow(2, 1, batch.ids:size(2) - 1))
  return hidden:reshape { -1, hidden:size(3) }:index_select(at, 1)
end

-- What the teacher says at the tokens of some units, and fn(from, n) -> that of n of them.
local function teacher_of(self, batch, list, at)
  if self.stored then
    local ids, logprobs = {}, {}
    for i, e in ipairs(list) do
      local one = self.stored:get(e.index, e)
      ids[i], logprobs[i] = one.ids, one.logprobs
    end
    local all, values = peri.cat(ids, 1), peri.cat(logprobs, 1)
    return function (from, n)
      return { ids = all:narrow(1, from, n), logprobs = values:narrow(1, from, n),
               temperature = self.stored.temperature }
    end
  end
  local model = teacher_for(self, list)
  local hidden = peri.no_grad(function () return learned_rows(model, batch, at) end)
  return function (from, n)
    return peri.no_grad(function () return model:logits(hidden:narrow(1, from, n)) end)
  end
end

-- The divergence, a few tokens at a time: each goes backward to the hidden states at once, so that its logits are let
-- go and gradients of the head add up token by token, however an update is cut. What is returned has its value, and
-- passes these gradients on.
local function distribution(self, batch, list, at, targets, tokens, how)
  local hidden = learned_rows(self.model, batch, at)
  local leaf = hidden:detach():requires_grad_()
  local teacher = teacher_of(self, batch, list, at)
  local value, stats = 0, {}
  for from = 1, leaf:size(1), CHUNK do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local n = math.min(CHUNK, leaf:size(1) - from + 1)
    local o = { tokens = tokens, labels = how.hard > 0 and targets:narrow(1, from, n) or nil }
    for k, v in pairs(how) do o[k] = v end
    local one, more = loss.distill(self.model:logits(leaf:narrow(1, from, n)), teacher(from, n), o)
    one:backward { chain = true }
    value = value + one:item()
    for name, t in pairs(more) do stats[name] = (stats[name] or 0) + t:item() end
  end
  local through = hidden:mul(leaf.grad):sum()
  return through:sub(through:detach()):add(value), stats
end

-- How likely the student's own tokens are to the teacher, as an advantage.
local function sampled(self, batch, list, at, targets, tokens)
  local logp = self.model:token_logprob(learned_rows(self.model, batch, at), targets):unsqueeze(2) -- (n, 1)
  local model = teacher_for(self, list)
  local teacher = peri.no_grad(function ()
    return (model:token_logprob(learned_rows(model, batch, at), targets))
  end):unsqueeze(2)
  local advantage = loss.teacher_advantage(logp, teacher)
  local value = loss.policy(logp, logp:detach(), advantage, peri.ones_like(advantage),
    { objective = "reinforce", reduce = "token", tokens = tokens })
  return value, { divergence = advantage:sum():div(-tokens) } -- k1
end

local signals = { distribution = distribution, sampled = sampled }

-- own: the student wrote the answers, which are then no labels: of them it learns what the teacher says alone.
local function pass_of(self, list, own_answers)
  local tokens, each, how = 0, {}, self.how
  if own_answers then
    how = {}
    for name, value in pairs(self.how) do how[name] = value end
    how.hard = 0
  end
  for _, e in ipairs(list) do
    local n = 0
    for i = 2, #e.ids do n = n + (e.mask[i] ~= 0 and 1 or 0) end
    tokens = tokens + n
    if e.by then each[e.by] = (each[e.by] or 0) + n end
  end
  tokens = math.max(tokens, 1)
  return function (some)
    local rows = {}
    for i, e in ipairs(some) do rows[i] = { e } end
    local batch = sft.batch(rows, self.pad)
    local flat = batch.targets:reshape { -1 }
    local at = flat:ne(-100):nonzero():reshape { -1 }
    local value, stats = signals[self.signal](self, batch, some, at, flat:index_select(at, 1), tokens, how)
    local by = some[1].by
    if by then -- of the tokens that this teacher taught
      local one = stats.divergence
      one = peri.is_tensor(one) and one:item() or one
      stats["divergence/" .. by] = one * tokens / math.max(each[by], 1)
    end
    return value, stats
  end
end

-- Rows as long as any may be, as many as one pass may have; of several teachers those of the one with most to read.
local function heaviest(self)
  local most = self.on_policy > 0 or self.sequence
  local function length(e) return most and #e.prompt or #e.ids end
  local list, size = nil, 0
  for _, group in ipairs(by_teacher(self, self.units)) do
    local longest = trainer.longest(group, math.min(self.micro, self.batch_size), length)
    if #longest * length(longest[1]) > size then list, size = longest, #longest * length(longest[1]) end
  end
  if not most then return list end
  local out, context = {}, base.context_length(self.model)
  for i, e in ipairs(list) do
    local ids, mask = table.move(e.prompt, 1, #e.prompt, 1, {}), {}
    for k = #ids + 1, math.min(#ids + self.max_new_tokens, context) do ids[k] = ids[#e.prompt] end
    for k = 1, #ids do mask[k] = k > #e.prompt and 1 or 0 end
    out[i] = { ids = ids, mask = mask, index = e.index, by = e.by }
  end
  return out
end

--- One update.
--- @return table metrics  step, loss, divergence (of a token, in nats, not times temperature^2; of signal sampled the
--- mean of log student - log teacher), with teachers divergence/NAME (of the tokens that it taught), cross_entropy
--- (with hard, not of the student's own answers), on_policy (1 where the student wrote the answers),
--- completion_length (mean, of answers that were written), num_tokens (so far, without padding), learning_rate,
--- grad_norm, epoch (fraction), skipped and no_op as in algo.sft
function Stepper:step()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local turn <close> = self:begin() -- luacheck: ignore 211
  self:try_heaviest(function ()
    local list = heaviest(self)
    return (pass_of(self, list)(list))
  end)
  local list, metrics = self:take(self.batch_size), {}
  local own_answers = self.on_policy > 0 and self.rng:uniform() < self.on_policy
  if own_answers or self.sequence then
    list = written(self, own_answers and self.model or nil, list)
    local sum = 0
    for _, e in ipairs(list) do for _, m in ipairs(e.mask) do sum = sum + m end end
    metrics.completion_length = sum / #list
  end
  self:learn(slices(self, list), pass_of(self, list, own_answers), metrics)
  for _, e in ipairs(list) do self.seen = self.seen + #e.ids end
  metrics.num_tokens, metrics.epoch = self.seen, self:epochs()
  metrics.on_policy = self.on_policy > 0 and (own_answers and 1 or 0) or nil
  return self:update(metrics)
end

return require "perilune.names"(M, "perilune.algo.distill")
