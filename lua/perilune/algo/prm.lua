-- prm.lua - a process reward model as a stepper: binary cross-entropy at the end of each step of an answer. The model
-- is a models.scorer; and what such a model says of the steps of other answers.
local peri = require "perilune"
local batches = require "perilune.text.batch"
local options = require "perilune.options"
local answers = require "perilune.algo.answers"
local feedback = require "perilune.data.feedback"
local loss = require "perilune.loss"
local scorers = require "perilune.models.scorer"
local trainer = require "perilune.algo.trainer"

local Stepper = trainer.class("prm", { epochs = true })

local M = {}

local separator = options.value("\n", "string", "text that ends each step, the last one, too; \"\": none")

local own = {
  model = options.value(options.required, "table", "a models.scorer"),
  tokenizer = options.value(options.required, "table", "of perilune.tokenizer or perilune.text"),
  rows = options.value(options.required, "table", "{ prompt, completions, labels } each: the steps and whether each "
    .. "is right"),
  separator = separator,
  last_only = options.boolean(false, "only the last step of each row is learned"),
}
for _, more in ipairs { feedback.rules, trainer.of_units } do
  for name, rule in pairs(more) do own[name] = rule end
end
local rules = trainer.rules(own)

--- A process reward model as a stepper (2305.20050; 2211.14275): each :step() is one update over rows in an order that
--- is drawn anew each epoch.
--- @param opts table  model, optimizer, tokenizer, rows
--- @return table stepper  :step() -> metrics; :state(), :set_state(s) for checkpoints; units; report (of rows: what was
--- left out)
function M.new(opts)
  local self = trainer.new(Stepper, opts, rules)
  scorers.want("prm", self.model)
  self.units, self.report = feedback.read("prm", { "stepwise_supervision" }, self.tokenizer, self.rows,
    { max_length = self.max_length, bad = self.bad, last_only = self.last_only,
      separator = self.separator == "" and {} or self.tokenizer:encode(self.separator, { add_special = false }) })
  self:settle_units()
  return self
end
options.declare(M.new, {}, rules)

-- Rows of ids, and where their steps end with which labels. -- (B, T)
local function tensors(list, pad)
  local ids, label, weight, width = {}, {}, {}, 0
  for i, u in ipairs(list) do ids[i], width = u.ids, math.max(width, #u.ids) end
  for b, u in ipairs(list) do
    label[b], weight[b] = {}, {}
    for i = 1, width do label[b][i], weight[b][i] = 0, 0 end
    for k, at in ipairs(u.ends) do
      label[b][at], weight[b][at] = u.labels and u.labels[k] or 0, 1
    end
  end
  return batches.pad(ids, { side = "right", pad = pad }), peri.tensor(label, "f32"), peri.tensor(weight, "f32")
end

local function pass_of(self, list)
  local steps = 0
  for _, u in ipairs(list) do steps = steps + #u.ends end
  return function (some)
    local batch, label, weight = tensors(some, self.pad)
    return loss.process(self.model:forward(batch), label, weight, { steps = steps })
  end
end

--- One update.
--- @return table metrics  step, loss, accuracy (share of the steps that a log odds of 0 tells), num_tokens (so far,
--- without padding), learning_rate, grad_norm, epoch (fraction), skipped and no_op as in algo.sft
function Stepper:step()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local turn <close> = self:begin() -- luacheck: ignore 211
  self:try_heaviest(function ()
    local longest = self:longest_units()
    return (pass_of(self, longest)(longest))
  end)
  local list, metrics = self:take(self.batch_size), {}
  self:learn(trainer.slices(list, self.micro), pass_of(self, list), metrics)
  for _, u in ipairs(list) do self.seen = self.seen + u.tokens end
  metrics.num_tokens, metrics.epoch = self.seen, self:epochs()
  return self:update(metrics)
end

-- ---- judging ------------------------------------------------------------------------------------

local score_rules = {
  separator = separator,
  micro = options.integer(64, "[1, inf)", "answers in one forward pass"),
  pad = own.pad,
}

--- What a process reward model says of the steps of answers: probabilities that each is right, for loss.aggregate.
--- @param model perilune.models.Scorer
--- @param tokenizer table
--- @param list table[]  { prompt = text, completions = the steps as texts } each
--- @param opts table?
--- @return number[][]  for each answer, in the order of its steps
function M.scores(model, tokenizer, list, opts)
  local o = options.fill("prm.scores", opts, score_rules)
  scorers.want("prm.scores", model)
  options.argument("prm.scores", "list", list, "table")
  local ending = o.separator == "" and {} or tokenizer:encode(o.separator, { add_special = false })
  local units, out = {}, {}
  for i, row in ipairs(list) do
    if type(row) ~= "table" or type(row.prompt) ~= "string" or type(row.completions) ~= "table"
      or #row.completions == 0 then
      options.raise(("prm.scores: row %d has no prompt with completions, the steps as texts"):format(i))
    end
    local u = { ids = tokenizer:encode(row.prompt), ends = {} }
    for k, step in ipairs(row.completions) do
      local ids = tokenizer:encode(step, { add_special = false })
      table.move(ids, 1, #ids, #u.ids + 1, u.ids)
      table.move(ending, 1, #ending, #u.ids + 1, u.ids)
      u.ends[k] = #u.ids
    end
    units[i] = u
  end
  local _ <close> = peri.no_grad()
  local quiet <close> = answers.quiet { model } -- luacheck: ignore 211
  for some in trainer.slices(units, o.micro) do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local batch, _, weight = tensors(some, o.pad or tokenizer.pad or tokenizer.eos or 0)
    for _, p in ipairs(loss.step_scores(model:forward(batch), weight)) do out[#out + 1] = p end
  end
  return out
end
options.declare(M.scores, { "model", "tokenizer", "list" }, score_rules)

return require "perilune.names"(M, "perilune.algo.prm")
