-- dpo.lua - learning from preferences as a stepper: DPO and its kin over pairs of answers (loss.preference), KTO over
-- answers with a label. The reference is the model without its adapter, another model, or the model as it was at the
-- first step; what it says of a row is computed once and goes through checkpoints.
local peri = require "perilune"
local options = require "perilune.options"
local base = require "perilune.models.base"
local answers = require "perilune.algo.answers"
local feedback = require "perilune.data.feedback"
local loss = require "perilune.loss"
local trainer = require "perilune.algo.trainer"

local Stepper = trainer.class("dpo", { epochs = true, parts = { "known" } })

local M = {}

local losses = table.move(loss.preference_names, 1, #loss.preference_names, 1, {})
losses[#losses + 1] = "kto"
table.sort(losses)

local own = {
  model = options.value(options.required, "table", "the policy that is trained, a causal model of perilune.models"),
  tokenizer = options.value(options.required, "table", "of perilune.tokenizer or perilune.text"),
  rows = options.value(options.required, "table", "{ prompt, chosen, rejected } each, of loss kto { prompt, "
    .. "completion, label }; see perilune.data.rows"),
  adapter = options.value(options.none, "table", "of perilune.peft on the model: the reference is the model without "
    .. "it"),
  reference = options.value(options.none, "table", "a model; default, without an adapter: the model before its first "
    .. "update"),
  loss = options.choice("dpo", losses, "see loss.preference and loss.kto"),
}
for _, more in ipairs { feedback.rules, trainer.of_units, loss.preference_rules } do
  for name, rule in pairs(more) do own[name] = own[name] or rule end
end
for _, name in ipairs { "desirable_weight", "undesirable_weight" } do
  local rule = loss.kto_rules[name]
  own[name] = options.number(options.none, "[0, inf)", "kto: " .. rule.doc .. "; default 1")
end
local rules = trainer.rules(own)

-- ---- what the reference says of rows -------------------------------------------------------------

-- Log-probabilities by the index of a unit: of its two answers. A part of the stepper with a state of its own.
local Known = {}
Known.__index = Known

function Known:state()
  local at = {}
  for i in pairs(self.first) do at[#at + 1] = i end
  table.sort(at)
  local s = { at = at, first = {}, second = {} }
  for k, i in ipairs(at) do s.first[k], s.second[k] = self.first[i], self.second[i] end
  return s
end

function Known:set_state(s)
  local lists = {}
  for _, name in ipairs { "at", "first", "second" } do
    lists[name] = type(s) == "table" and s[name]
    if type(lists[name]) ~= "table" or #lists[name] ~= #(lists.at or {}) then
      error(("the state of what the reference says has no list %s for each row"):format(name), 0)
    end
  end
  local first, second = {}, {}
  for k, i in ipairs(lists.at) do
    local at, a, b = math.tointeger(i), lists.first[k], lists.second[k]
    if not at or at < 1 or at > self.count or type(a) ~= "number" or type(b) ~= "number" then
      error(("the state of what the reference says is of row %s of %d"):format(tostring(i), self.count), 0)
    end
    first[at], second[at] = a, b
  end
  self.first, self.second = first, second
end

-- ---- making one ---------------------------------------------------------------------------------

local function refuse(...) options.raise("dpo: " .. string.format(...)) end

-- The settings of loss.preference or loss.kto, checked as that loss checks them.
local function settings(self, given)
  local kto, o = self.loss == "kto", {}
  for name in pairs(kto and loss.kto_rules or loss.preference_rules) do o[name] = self[name] end
  if not kto then
    for _, name in ipairs { "desirable_weight", "undesirable_weight" } do
      if self[name] then refuse("loss %q knows no %s", self.loss, name) end
    end
    return o, loss.preference_entry("dpo", o)
  end
  for name in pairs(given) do
    if loss.preference_rules[name] and name ~= "loss" and not loss.kto_rules[name] then
      refuse("loss \"kto\" knows no %s", name)
    end
  end
  return o, { reference = true, average = false, nll = 0 }
end

-- Of each answer with a label, that of the next row with another prompt: for the reference point of KTO.
local function mismatch(units)
  local function same(a, b)
    if #a ~= #b then return false end
    for i, id in ipairs(a) do if b[i] ~= id then return false end end
    return true
  end
  for i, unit in ipairs(units) do
    for k = 1, #units - 1 do
      local other = units[(i + k - 1) % #units + 1]
      if not same(unit.prompt, other.prompt) then
        unit.other = other.answer
        break
      end
    end
    if not unit.other then refuse "loss \"kto\" needs rows of more than one prompt, for its reference point" end
    unit.length = #unit.prompt + math.max(#unit.answer, #unit.other)
  end
end

--- Learning from preferences as a stepper (DPO, 2305.18290; KTO, 2402.01306): each :step() is one update over rows in
--- an order that is drawn anew each epoch.
--- @param opts table  model, optimizer, tokenizer, rows; and settings of loss.preference or loss.kto
--- @return table stepper  :step() -> metrics; :state(), :set_state(s) for checkpoints; units; report (of rows: what was
--- left out)
function M.new(opts)
  local self = trainer.new(Stepper, opts, rules)
  local why = base.no_causal(self.model)
  if why then refuse("%s", why) end
  self.how, self.entry = settings(self, opts)
  if not self.entry.reference and (self.adapter or self.reference) then
    refuse("loss %q has no reference: leave out %s", self.loss, self.adapter and "adapter" or "reference")
  elseif self.adapter and self.reference then
    refuse "give an adapter or a reference, not both"
  elseif self.adapter then
    trainer.want_adapter("dpo", self.adapter, self.model)
  end
  local kto = self.loss == "kto"
  self.units, self.report = feedback.read("dpo", { kto and "unpaired_preference" or "preference" }, self.tokenizer,
    self.rows, { max_length = self.max_length, bad = self.bad })
  if kto then mismatch(self.units) end
  self:settle_units()
  self.known = setmetatable({ first = {}, second = {}, count = #self.units }, Known)
  return self
end
options.declare(M.new, {}, rules)

-- ---- passes -------------------------------------------------------------------------------------

-- Log-probabilities and lengths of the first and the second answers of units. The two of a unit are neighbours, so that
-- gradients add up in the same order however units are cut into passes. -- (n) each
local function logps(self, model, list)
  local rows = {}
  for i, u in ipairs(list) do
    rows[2 * i - 1], rows[2 * i] = { u.prompt, u.chosen or u.answer }, { u.prompt, u.rejected or u.other }
  end
  local sum, length, entropy = answers.logps(model, rows, self.pad)
  sum, length = sum:reshape { #list, 2 }, length:reshape { #list, 2 }
  return sum:select(2, 1), sum:select(2, 2), length:select(2, 1), length:select(2, 2), entropy
end

-- What the reference says of units is computed, where it is not known yet.
local function recall(self, list)
  if not self.entry.reference then return end
  local missing = {}
  local function look(units)
    for _, unit in ipairs(units) do
      if not self.known.first[unit.index] then missing[#missing + 1] = unit end
    end
  end
  look(list)
  if #missing == 0 then return end
  if not (self.adapter or self.reference) then -- the model as it is now, and never again
    if self.at > 0 then refuse "the state lacks what the model said before its first update" end
    missing = {}
    look(self.units)
  end
  local _ <close> = peri.no_grad()
  local model = self.reference or self.model
  for some in trainer.slices(missing, self.micro) do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local function ask() return logps(self, model, some) end
    local first, second
    if self.adapter then first, second = self.adapter:disabled(ask)
    else first, second = ask() end
    first, second = first:tolist(), second:tolist()
    for i, unit in ipairs(some) do self.known.first[unit.index], self.known.second[unit.index] = first[i], second[i] end
  end
end

local function known(self, list, which, dtype)
  if not self.entry.reference then return nil end
  local out = {}
  for i, unit in ipairs(list) do out[i] = self.known[which][unit.index] end
  return peri.tensor(out, dtype)
end

local function merged(a, b)
  local out = {}
  for _, t in ipairs { a, b } do for k, v in pairs(t) do out[k] = v end end
  return out
end

-- A pass over pairs of an update that has so many and so many tokens.
local function pairs_pass(self, count)
  return function (list)
    local a, b, long, short, entropy = logps(self, self.model, list)
    local value, rewards = loss.preference(a, b, known(self, list, "first", a.dtype),
      known(self, list, "second", a.dtype), merged(self.how, { pairs = count.rows, tokens = count.chosen,
        chosen_length = long, rejected_length = short }))
    local function mean(t) return t:detach():sum():div(count.rows) end
    return value, { ["rewards/chosen"] = mean(rewards.chosen), ["rewards/rejected"] = mean(rewards.rejected),
      ["rewards/margins"] = mean(rewards.margin), ["rewards/accuracies"] = mean(rewards.correct),
      ["logps/chosen"] = mean(a), ["logps/rejected"] = mean(b), entropy = entropy:div(count.answers) }
  end
end

-- The reference point of an update: its rows with the answers of others.
local function kto_point(self, list)
  local _ <close> = peri.no_grad()
  local sum = 0
  for some in trainer.slices(list, self.micro) do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local rows = {}
    for i, u in ipairs(some) do rows[i] = { u.prompt, u.other } end
    local logp = answers.logps(self.model, rows, self.pad)
    for i, v in ipairs(logp:tolist()) do sum = sum + v - self.known.second[some[i].index] end
  end
  return math.max(sum / #list, 0)
end

local function kto_pass(self, count, z)
  return function (list)
    local rows, label = {}, {}
    for i, u in ipairs(list) do rows[i], label[i] = { u.prompt, u.answer }, u.label end
    local logp, _, entropy = answers.logps(self.model, rows, self.pad)
    label = peri.tensor(label, logp.dtype)
    local value, rewards = loss.kto(logp, known(self, list, "first", logp.dtype), label,
      merged(self.how, { z = z, answers = count.rows }))
    local stats = { entropy = entropy:div(count.answers) }
    for name, of in pairs { chosen = label, rejected = label:neg():add(1) } do
      if count[name] > 0 then
        stats["rewards/" .. name] = rewards:mul(of):sum():div(count[name])
        stats["logps/" .. name] = logp:detach():mul(of):sum():div(count[name])
      end
    end
    return value, stats
  end
end

-- The denominators of an update.
local function counts(self, list)
  local kto = self.loss == "kto"
  local c = { rows = #list, chosen = 0, rejected = 0, answers = 0, seen = 0 }
  for _, u in ipairs(list) do
    c.seen = c.seen + u.tokens
    if kto then
      c.answers = c.answers + #u.answer
      c[u.label == 1 and "chosen" or "rejected"] = c[u.label == 1 and "chosen" or "rejected"] + 1
    else
      c.chosen, c.answers = c.chosen + #u.chosen, c.answers + #u.chosen + #u.rejected
    end
  end
  return c
end

local function pass_of(self, list, z)
  local count = counts(self, list)
  return self.loss == "kto" and kto_pass(self, count, z) or pairs_pass(self, count), count
end

--- One update.
--- @return table metrics  TRL's names: step, loss, rewards/chosen, rewards/rejected, rewards/margins, of pairs
--- rewards/accuracies, of kto kl (its reference point), logps/chosen, logps/rejected, entropy (nats a token of an
--- answer), num_tokens (so far, without padding), learning_rate, grad_norm, epoch (fraction), skipped and no_op as in
--- algo.sft. TRL's logits/* and mean_token_accuracy are not there: logits are never held
function Stepper:step()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local turn <close> = self:begin() -- luacheck: ignore 211
  local kto = self.loss == "kto"
  self:try_heaviest(function ()
    local longest = self:longest_units()
    recall(self, longest)
    return (pass_of(self, longest, 0)(longest))
  end)
  local list = self:take(self.batch_size)
  recall(self, list)
  local z = kto and kto_point(self, list) or nil
  local pass, count = pass_of(self, list, z)
  local metrics = {}
  self:learn(trainer.slices(list, self.micro), pass, metrics)
  self.seen = self.seen + count.seen
  metrics.num_tokens, metrics.epoch, metrics.kl = self.seen, self:epochs(), z
  if kto and metrics["rewards/chosen"] and metrics["rewards/rejected"] then
    metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
  end
  return self:update(metrics)
end

return require "perilune.names"(M, "perilune.algo.dpo")
