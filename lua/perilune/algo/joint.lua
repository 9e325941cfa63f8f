-- joint.lua - supervised and reinforcement learning in one update as a stepper, on a model of two modes (models.joint):
-- cross-entropy of the supervised head on the answers that rows have, plus `weight` times the policy gradient of the
-- other head on whole answers that it samples and a reward scores. The encoder and the output layer learn from both.
local peri = require "perilune"
local joint = require "perilune.models.joint"
local options = require "perilune.options"
local rewards = require "perilune.rl.reward"
local rl = require "perilune.rl"
local trainer = require "perilune.algo.trainer"

local Stepper = trainer.class("joint", { epochs = true })

local M = {}

local own = {
  model = options.value(options.required, "table", "of models.joint"),
  tokenizer = options.value(options.required, "table", "of perilune.tokenizer or perilune.text"),
  rows = options.value(options.required, "table", "{ prompt = text, answer = text } each; one without an answer is "
    .. "asked and not taught"),
  reward = options.value(options.required, "callable or table", "of sampled answers, see rl.score"),
  weight = options.number(0.5, "[0, inf)", "of the policy gradient; 0: nothing is sampled"),
  group = options.integer(8, "[1, inf)", "sampled answers to each question"),
  max_new_tokens = options.integer(options.none, "[1, inf)", "longest sampled answer; default: longest of the model"),
}
for _, set in ipairs { trainer.of_units, joint.drawn } do
  for name, rule in pairs(set) do own[name] = rule end
end
own.pad = nil
for _, name in ipairs { "estimator", "std", "eps" } do own[name] = rl.advantage_rules[name] end
local rules = trainer.rules(own)

local function refuse(...) options.raise("joint: " .. string.format(...)) end

--- Joint training as a stepper: each :step() takes batch_size rows, in an order that is drawn anew each epoch, teaches
--- their answers to the supervised head and lets the policy head answer each question `group` times. Advantages are
--- those of rl.advantages, by default within the group of a question; estimator = "reinforce" is cross-entropy weighted
--- by the reward itself. What top_k cuts off has no probability in the gradient either.
--- @param opts table
--- @return table stepper  :step() -> metrics; :state(), :set_state(s) for checkpoints
function M.new(opts)
  local self = trainer.new(Stepper, opts, rules)
  if getmetatable(self.model) ~= joint.Class then refuse "the model is none of models.joint" end
  if #self.rows == 0 then refuse "there are no rows" end
  local prompts, taught = {}, {}
  for i, row in ipairs(self.rows) do
    if type(row) ~= "table" or type(row.prompt) ~= "string" then refuse("row %d has no prompt, a text", i) end
    if row.answer ~= nil and type(row.answer) ~= "string" then
      refuse("row %d: the answer is a %s, expected a text", i, type(row.answer))
    end
    if row.answer == nil and (row.completion ~= nil or row.messages ~= nil) then
      refuse("row %d has %s and no answer: expected { prompt = text, answer = text }", i,
        row.completion ~= nil and "a completion" or "messages")
    end
    prompts[i] = row.prompt
    if row.answer then taught[#taught + 1] = row.answer end
  end
  if #taught == 0 and self.weight == 0 then refuse "no row has an answer and weight is 0: there is nothing to learn" end
  local questions, answers = self.model:questions(self.tokenizer, prompts), self.model:answers(self.tokenizer, taught)
  local n = 0
  self.units = {}
  for i, row in ipairs(self.rows) do
    if row.answer then n = n + 1 end
    self.units[i] = { row = row, question = questions[i], answer = row.answer and answers[n] }
  end
  self.micro = self.micro or 256
  return self
end
options.declare(M.new, {}, rules)

-- What an update learns: a list of { mode, question, answer so far, tokens to come, weights }, where equal beginnings
-- of answers in one mode are one entry.
local Lessons = {}
Lessons.__index = Lessons

local function lessons() return setmetatable({ list = {}, known = {} }, Lessons) end

function Lessons:add(mode, place, question, tokens, weight_of)
  local key = mode .. place
  for t, id in ipairs(tokens) do
    local one = self.known[key]
    if not one then
      one = { mode = mode, question = question, answer = table.move(tokens, 1, t - 1, 1, {}), ids = {}, weights = {} }
      self.known[key], self.list[#self.list + 1] = one, one
    end
    one.ids[#one.ids + 1], one.weights[#one.weights + 1] = id, weight_of(t)
    key = key .. " " .. id
  end
end

-- Log-probabilities of what comes next in some lessons of one mode: rows (N) says whose ids (N) are, from 0. What was
-- drawn could be drawn, though the last bit of a score may have moved over the edge of top_k since. -- (N)
local function logps(self, list, rows, ids)
  local questions, answers = {}, {}
  for i, one in ipairs(list) do questions[i], answers[i] = one.question, one.answer end
  local logits = self.model:forward(self.model:inputs(questions, answers), list[1].mode)
  local at, temperature = rows:mul(logits:size(2)):add(ids), 1
  if list[1].mode == "rl" then
    temperature = self.temperature
    if self.top_k > 0 and self.top_k < logits:size(2) then
      local drawn = peri.truncation_mask(logits:detach(), temperature, self.top_k):to("f32"):reshape { -1 }
      drawn = drawn:index_add(at, peri.ones(at.shape), 1):reshape(logits.shape)
      logits = logits:masked_fill(drawn:eq(0), -math.huge)
    end
  end
  return logits:div(temperature):log_softmax(-1):reshape({ -1 }):index_select(at, 1)
end

-- The loss of some lessons, and that of each mode.
local function pass_of(self)
  return function (list)
    local loss, stats = nil, {}
    for _, mode in ipairs(joint.modes) do
      local mine, rows, ids, weights = {}, {}, {}, {}
      for _, one in ipairs(list) do if one.mode == mode then mine[#mine + 1] = one end end
      for i, one in ipairs(mine) do
        for k, id in ipairs(one.ids) do
          rows[#rows + 1], ids[#ids + 1], weights[#weights + 1] = i - 1, id, one.weights[k]
        end
      end
      if #mine > 0 then
        local logp = logps(self, mine, peri.tensor(rows, "i64"), peri.tensor(ids, "i64"))
        local part = logp:mul(peri.tensor(weights, "f32")):sum():neg()
        stats["loss_" .. mode] = part:detach()
        part = mode == "rl" and part:mul(self.weight) or part
        loss = loss and loss:add(part) or part
      end
    end
    return loss, stats
  end
end

-- Sampled answers to some units as rl's functions take a batch.
local function sampled(self, units)
  local rows, questions, texts, given = {}, {}, {}, {}
  for _, unit in ipairs(units) do
    for _ = 1, self.group do rows[#rows + 1], questions[#questions + 1] = unit.row, unit.question end
  end
  local out = self.model:generate(questions, { mode = "rl", temperature = self.temperature, top_k = self.top_k,
    max_new_tokens = self.max_new_tokens })
  local width = 1
  for _, ids in ipairs(out.tokens) do width = math.max(width, #ids) end
  local mask, logprobs = {}, {}
  for i, ids in ipairs(out.tokens) do
    local n = #ids
    given[i] = table.move(ids, 1, n, 1, {})
    texts[i] = self.tokenizer:decode(out.ended[i] and table.move(ids, 1, n - 1, 1, {}) or ids)
    mask[i], logprobs[i] = {}, {}
    for t = 1, width do mask[i][t], logprobs[i][t] = t <= n and 1 or 0, out.logprobs[i][t] or 0 end
  end
  local scored = rewards.score(rows, texts, given, self.reward)
  local batch = { rows = rows, questions = questions, texts = texts, tokens = out.tokens, ended = out.ended,
    group = self.group, mask = peri.tensor(mask, "f32"), logprobs = peri.tensor(logprobs, "f32"), total = scored.total,
    rewards = scored.rewards, names = scored.names, weights = scored.weights }
  if scored.steps then batch.steps, batch.covered = rewards.step_tensors(scored.steps, width) end
  return batch
end

-- As long as lessons may be.
local function heaviest(self)
  local list, longest = {}, self.model.settings.longest
  local units = trainer.longest(self.units, self.batch_size, function (u) return #u.question end)
  for i = 1, self.micro do
    local unit, answer = units[(i - 1) % #units + 1], {}
    for t = 1, (self.max_new_tokens or longest) - 1 do answer[t] = self.model.settings.stop end
    list[i] = { mode = joint.modes[i % 2 + 1], question = unit.question, answer = answer,
      ids = { self.model.settings.stop }, weights = { 1 } }
  end
  return list
end

--- One update.
--- @return table metrics  step, loss, loss_supervised (nats a token), loss_rl (before its weight), epoch (fraction),
--- num_tokens (of answers so far), learning_rate, grad_norm, skipped and no_op as in algo.grpo, and where the policy is
--- asked those of rl.summary: reward, entropy, completions/...
function Stepper:step()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local turn <close> = self:begin() -- luacheck: ignore 211
  local pass = pass_of(self)
  self:try_heaviest(function () return (pass(heaviest(self))) end)
  local units, all, taught, metrics = self:take(self.batch_size), lessons(), 0, {}
  for _, unit in ipairs(units) do taught = taught + #(unit.answer or {}) end
  for i, unit in ipairs(units) do
    all:add("supervised", i, unit.question, unit.answer or {}, function () return 1 / taught end)
  end
  self.seen = self.seen + taught
  if self.weight > 0 then
    local batch = sampled(self, units)
    local advantage, weight = rl.advantages(batch, { estimator = self.estimator, std = self.std, eps = self.eps })
    local counted = math.max(weight:sum():item(), 1)
    local shares = advantage:mul(weight):div(counted):tolist()
    for i, ids in ipairs(batch.tokens) do
      all:add("rl", (i - 1) // self.group, batch.questions[i], ids, function (t) return shares[i][t] end)
      self.seen = self.seen + #ids
    end
    metrics = rl.summary(batch)
  end
  self:learn(trainer.slices(all.list, self.micro), pass, metrics)
  metrics.num_tokens, metrics.epoch = self.seen, self:epochs()
  return self:update(metrics)
end

return require "perilune.names"(M, "perilune.algo.joint")
