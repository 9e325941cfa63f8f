-- reward_model.lua - a reward model from preferences as a stepper: the Bradley-Terry loss over pairs of answers, or, of
-- answers with a label, binary cross-entropy (an outcome reward model). The model is a models.scorer; what it says at
-- an answer's last token is its reward.
local peri = require "perilune"
local batches = require "perilune.text.batch"
local options = require "perilune.options"
local answers = require "perilune.algo.answers"
local feedback = require "perilune.data.feedback"
local loss = require "perilune.loss"
local scorers = require "perilune.models.scorer"
local trainer = require "perilune.algo.trainer"

local Stepper = trainer.class("reward_model", { epochs = true })

local M = {}

local own = {
  model = options.value(options.required, "table", "a models.scorer"),
  tokenizer = options.value(options.required, "table", "of perilune.tokenizer or perilune.text"),
  rows = options.value(options.required, "table", "{ prompt, chosen, rejected, margin } each, or { prompt, "
    .. "completion, label } for an outcome reward model; see perilune.data.rows"),
  center = options.number(options.none, "[0, inf)", "of pairs: see loss.bradley_terry; default 0"),
  level = options.choice(options.none, { "answer", "token", "last" }, "of labels: see loss.outcome; default answer"),
}
for _, more in ipairs { feedback.rules, trainer.of_units } do
  for name, rule in pairs(more) do own[name] = rule end
end
local rules = trainer.rules(own)

--- A reward model as a stepper (2203.02155; of labels 2110.14168): each :step() is one update over rows in an order
--- that is drawn anew each epoch.
--- @param opts table  model, optimizer, tokenizer, rows
--- @return table stepper  :step() -> metrics; :state(), :set_state(s) for checkpoints; :evaluate(rows); units; report
--- (of rows: what was left out)
function M.new(opts)
  local self = trainer.new(Stepper, opts, rules)
  scorers.want("reward_model", self.model)
  self.units, self.report = feedback.read("reward_model", { "preference", "unpaired_preference" }, self.tokenizer,
    self.rows, { max_length = self.max_length, bad = self.bad })
  self.paired = self.report.kind == "preference"
  local foreign = self.paired and "level" or "center"
  if self[foreign] then
    options.raise(("reward_model: rows of %s know no %s"):format(self.paired and "pairs" or "labels", foreign))
  end
  self:settle_units()
  return self
end
options.declare(M.new, {}, rules)

-- Rows of ids of units: their answers, of pairs the rejected one behind the chosen.
local function batch_of(self, list)
  local out = {}
  for _, u in ipairs(list) do
    for _, name in ipairs(self.paired and { "chosen", "rejected" } or { "answer" }) do
      local ids = table.move(u.prompt, 1, #u.prompt, 1, {})
      out[#out + 1] = table.move(u[name], 1, #u[name], #ids + 1, ids)
    end
  end
  return batches.pad(out, { side = "right", pad = self.pad })
end

local function pass_of(self, list, seen)
  local rows, tokens = #list, 0
  for _, u in ipairs(list) do tokens = tokens + #(u.answer or {}) end
  local function note(rewards) -- TRL's are over both answers
    for _, v in ipairs(rewards:detach():tolist()) do seen[#seen + 1] = v end
  end
  if self.paired then
    return function (some)
      local rewards, margin = self.model:last(batch_of(self, some)):reshape { #some, 2 }, {}
      note(rewards:reshape { -1 })
      for i, u in ipairs(some) do margin[i] = u.margin or 0 end
      local value, stats = loss.bradley_terry(rewards:select(2, 1), rewards:select(2, 2),
        { margin = peri.tensor(margin, rewards.dtype), center = self.center or 0, pairs = rows })
      return value, { accuracy = stats.correct:sum():div(rows), margin = stats.margin:sum():div(rows) }
    end
  end
  return function (some)
    local scores, weight, label = self.model:forward(batch_of(self, some)), {}, {}
    local width = scores:size(2)
    for i, u in ipairs(some) do
      label[i], weight[i] = u.label, {}
      for k = 1, width do weight[i][k] = k > #u.prompt and k <= #u.prompt + #u.answer and 1 or 0 end
    end
    label = peri.tensor(label, scores.dtype)
    local value, score = loss.outcome(scores, label, peri.tensor(weight, scores.dtype),
      { level = self.level or "answer", answers = rows, tokens = tokens })
    note(score)
    return value, { accuracy = score:gt(0):eq(label:gt(0)):to(scores.dtype):sum():div(rows) }
  end
end

-- min_reward, mean_reward and max_reward of what was seen.
local function moments(metrics, seen)
  local low, high, sum = math.huge, -math.huge, 0
  for _, v in ipairs(seen) do low, high, sum = math.min(low, v), math.max(high, v), sum + v end
  metrics.min_reward, metrics.max_reward, metrics.mean_reward = low, high, sum / #seen
end

--- One update.
--- @return table metrics  TRL's names: step, loss, accuracy (share of the pairs whose chosen answer has the larger
--- reward; of labels, of those that a log odds of 0 tells), of pairs margin, min_reward, mean_reward, max_reward,
--- num_tokens (so far, without padding), learning_rate, grad_norm, epoch (fraction), skipped and no_op as in algo.sft
function Stepper:step()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local turn <close> = self:begin() -- luacheck: ignore 211
  self:try_heaviest(function ()
    local longest = self:longest_units()
    return (pass_of(self, longest, {})(longest))
  end)
  local list, seen, metrics = self:take(self.batch_size), {}, {}
  self:learn(trainer.slices(list, self.micro), pass_of(self, list, seen), metrics)
  for _, u in ipairs(list) do self.seen = self.seen + u.tokens end
  moments(metrics, seen)
  metrics.num_tokens, metrics.epoch = self.seen, self:epochs()
  return self:update(metrics)
end

--- Loss and metrics of other rows of the same format, without gradients and dropout.
--- @param rows table
--- @return table metrics  loss, accuracy, margin, min_reward, mean_reward, max_reward
function Stepper:evaluate(rows)
  options.argument("reward_model", "rows", rows, "table")
  local units = feedback.read("reward_model", { self.report.kind }, self.tokenizer, rows,
    { max_length = self.max_length, bad = self.bad })
  local _ <close> = peri.no_grad()
  local seen, metrics = {}, { loss = 0 }
  local pass = pass_of(self, units, seen)
  local quiet <close> = answers.quiet { self.model } -- luacheck: ignore 211
  for some in trainer.slices(units, self.micro) do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local value, stats = pass(some)
    metrics.loss = metrics.loss + value:item()
    for name, t in pairs(stats) do metrics[name] = (metrics[name] or 0) + t:item() end
  end
  moments(metrics, seen)
  return metrics
end

return require "perilune.names"(M, "perilune.algo.reward_model")
