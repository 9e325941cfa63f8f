-- reject.lua - rejection sampling as a stepper: sample answers, keep some by their rewards, learn those
-- (STaR, 2203.14465; RAFT, 2304.06767; 2308.01825). With by = "random_prompt" or "random_flat" it is its own control:
-- as many answers, drawn without a look at the rewards.
local peri = require "perilune"
local options = require "perilune.options"
local base = require "perilune.models.base"
local rl = require "perilune.rl"
local sft = require "perilune.algo.sft"
local trainer = require "perilune.algo.trainer"

local Stepper = trainer.class("reject", { parts = { "rng" } })

local M = {}

local own = {
  model = options.value(options.required, "table", "that samples and learns, a causal model of perilune.models"),
  tokenizer = options.value(options.required, "table", "of perilune.tokenizer or perilune.text"),
  rows = options.value(options.required, "table", "{ prompt = ... } each: a list or a stream"),
  reward = options.value(options.required, "callable or table", "see rl.score"),
  prompts = options.integer(32, "[1, inf)", "prompts of an update"),
  group = options.integer(16, "[1, inf)", "completions of each prompt"),
  micro = options.integer(64, "[1, inf)", "completions in one forward and backward pass"),
  max_new_tokens = options.integer(16, "[1, inf)", "longest completion"),
  temperature = options.number(1, "(0, inf)", "of sampling"),
  seed = options.integer(1, nil, "of which prompts and which controls are drawn"),
}
local select = require "perilune.rl.select"
for name, rule in pairs(select.rules) do own[name] = rule end
local rules = trainer.rules(own)

--- Rejection sampling as a stepper: each :step() samples, keeps by reward (see rl.select), and learns what is kept: one
--- update of the mean negative log-likelihood a token.
--- @param opts table
--- @return table stepper  :step() -> metrics; :state(), :set_state(s) for checkpoints
function M.new(opts)
  local self = trainer.new(Stepper, opts, rules)
  local why = base.no_causal(self.model)
  if why then options.raise("reject: " .. why) end
  if type(self.rows.collect) == "function" then self.rows = self.rows:collect() end
  if #self.rows == 0 then options.raise "reject: there are no rows" end
  self.rng = peri.rng(self.seed)
  return self
end
options.declare(M.new, {}, rules)

-- A pass over examples of an update that has so many tokens.
local function pass_of(self, tokens)
  return function (list)
    local rows = {}
    for i, e in ipairs(list) do rows[i] = { e } end
    local value, entropy = sft.loss(self.model, sft.batch(rows, self.tokenizer.pad or self.tokenizer.eos or 0))
    return value:div(tokens), { entropy = entropy:div(tokens) }
  end
end

local function learned(list)
  local n = 0
  for _, e in ipairs(list) do n = n + e.learned end
  return math.max(n, 1)
end

-- As long as an update may have them: the longest prompts of all rows with answers as long as they may be.
local function heaviest(self)
  local all = rl.prompts(self.tokenizer, self.rows):unpad()
  local prompts = trainer.longest(all, self.prompts, function (ids) return #ids end)
  local context, list = base.context_length(self.model), {}
  local kept = self.by:find "flat" and self.keep or self.prompts * self.keep
  for i = 1, math.min(self.micro, kept, self.prompts * self.group) do
    local prompt = prompts[(i - 1) // self.group + 1] or prompts[#prompts]
    local ids, mask = table.move(prompt, 1, #prompt, 1, {}), {}
    for k = #ids + 1, math.max(#ids + 1, math.min(#ids + self.max_new_tokens, context)) do ids[k] = ids[#prompt] end
    for k = 1, #ids do mask[k] = k > #prompt and 1 or 0 end
    list[i] = { ids = ids, mask = mask, learned = #ids - #prompt }
  end
  return list
end

-- The completions at some places of a batch as examples. Answers without a token have nothing to learn.
local function examples_of(batch, places)
  local list, whole = {}, batch.sequences:unpad()
  for _, i in ipairs(places) do
    local ids, n, mask = whole[i], #batch.tokens[i], {}
    for k = 1, #ids do mask[k] = k > #ids - n and 1 or 0 end
    if n > 0 then list[#list + 1] = { ids = ids, mask = mask, learned = n } end
  end
  return list
end

--- One update. Where nothing is kept it moves nothing, which is counted: no_op.
--- @return table metrics  step, loss (nats a token that is learned), entropy, kept (completions), kept_reward (their
--- mean reward), those of rl.summary over all completions, num_tokens (so far, without padding), learning_rate,
--- grad_norm, skipped and no_op as in algo.grpo
function Stepper:step()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local turn <close> = self:begin() -- luacheck: ignore 211
  self:try_heaviest(function ()
    local list = heaviest(self)
    return (pass_of(self, learned(list))(list))
  end)
  local rows = {}
  for i = 1, self.prompts do rows[i] = self.rng:choice(self.rows) end
  local batch = rl.rollout(self.model, self.tokenizer, rows, self.reward, { group = self.group,
    max_new_tokens = self.max_new_tokens, temperature = self.temperature })
  local random = self.by:find "^random" ~= nil
  local places = rl.select(batch.total, { by = self.by, keep = self.keep, least = self.least, group = self.group,
    rng = random and self.rng or nil })
  local list, metrics, sum = examples_of(batch, places), rl.summary(batch), 0
  for _, i in ipairs(places) do sum = sum + batch.total[i] end
  metrics.entropy = 0 -- of what is learned, as in algo.sft
  self:learn(trainer.slices(list, self.micro), pass_of(self, learned(list)), metrics)
  local _, counts = batch.sequences:bounds()
  for _, n in ipairs(counts) do self.seen = self.seen + n end
  metrics.kept, metrics.kept_reward, metrics.num_tokens = #places, #places > 0 and sum / #places or nil, self.seen
  return self:update(metrics)
end

return require "perilune.names"(M, "perilune.algo.reject")
