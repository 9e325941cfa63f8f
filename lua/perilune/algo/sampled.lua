-- sampled.lua - what the steppers share that learn from answers which their policy samples (algo.grpo, algo.ppo): where
-- the answers come from, what is measured of them before an update begins, and what is logged of it.
local peri = require "perilune"
local base = require "perilune.models.base"
local batches = require "perilune.text.batch"
local conversation = require "perilune.rl.conversation"
local samplers = require "perilune.rl.samplers"
local loss = require "perilune.loss"
local options = require "perilune.options"
local rl = require "perilune.rl"
local trainer = require "perilune.algo.trainer"

local M = {}

--- Options that are handed on to the sampler.
M.sampling = {
  top_k = options.integer(0, "[0, inf)", "of the sampler: so many likeliest tokens may be drawn; 0: all"),
  top_p = options.number(1, "(0, 1]", "of the sampler: the likeliest tokens of this share"),
  min_p = options.number(0, "[0, 1]", "of the sampler: tokens at least this likely beside the likeliest"),
  repetition_penalty = options.number(1, "(0, inf)", "of the sampler"),
  frequency_penalty = options.number(0, "[-100, 100]", "of the sampler"),
  presence_penalty = options.number(0, "[-100, 100]", "of the sampler"),
  min_new_tokens = options.integer(0, "[0, inf)", "stop tokens cannot be drawn before"),
  logit_bias = options.value(options.none, "table", "id -> number added to its logit"),
  constraint = options.value(options.none, "table", "of perilune.decode.constraint"),
  stop = options.value(options.none, "table or number", "ids that end an answer; default: the tokenizer's"),
  sampling = options.choice("renormalised", { "renormalised", "full" }, "what log-probabilities are of: the "
    .. "distribution that was drawn from, or the model's whole one, whose ratios are off by the mass that was cut"),
}

--- Options of a policy that samples, without those of the sampler and the size of an update.
M.rules = {
  model = options.value(options.required, "table", "the policy that is trained, a causal model of perilune.models"),
  tokenizer = options.value(options.required, "table", "of perilune.tokenizer or perilune.text"),
  rows = options.value(options.required, "table", "{ prompt = ... } each: a list, a stream, or an rl.curriculum"),
  reward = options.value(options.none, "callable or table", "see rl.score; a list of several with weights; needed "
    .. "without an environment that has one"),
  samplers = options.value(options.none, "table", "of rl.samplers: batches are sampled by workers, which have the "
    .. "reward and the environment, while this learns; see docs/tools.md"),
  adapter = options.value(options.none, "table", "of perilune.peft on the model: the reference is the model "
    .. "without it"),
  max_new_tokens = options.integer(16, "[1, inf)", "longest completion"),
  temperature = options.number(1, "(0, inf)", "of sampling and of the loss"),
  seed = options.integer(1, nil, "of which prompts are drawn"),
}
for _, more in ipairs { M.sampling, conversation.rules } do
  for name, rule in pairs(more) do M.rules[name] = rule end
end

--- Look at the options that make a stepper, and put its rows where it draws from.
--- @param self table  a stepper, of M.rules and those of the size of an update
--- @param coefficients string[]  options that need a reference where they are above 0
function M.open(self, coefficients)
  local function refuse(...) options.raise(self.who .. ": " .. string.format(...)) end
  local why = base.no_causal(self.model)
  if why then refuse("%s", why) end
  if self.samplers then
    if not samplers.is(self.samplers) then refuse "samplers is none of rl.samplers" end
    for _, name in ipairs { "reward", "environment" } do
      if self[name] then refuse("samplers have a %s of their own, which make gives them: leave it out here", name) end
    end
  end
  for _, name in ipairs { "max_turns", "max_turn_tokens" } do
    if self[name] and not (self.environment or self.samplers) then
      refuse("%s is %d and there is no environment", name, self[name])
    end
  end
  local problem = self.environment and conversation.problem(self.environment)
  if problem then refuse("%s", problem) end
  if not self.reward and not self.samplers and not (self.environment and self.environment.reward) then
    refuse("there is no reward%s", self.environment and ", and the environment has none" or "")
  end
  if self.adapter and self.reference then refuse("give adapter or reference, not both") end
  if self.adapter then trainer.want_adapter(self.who, self.adapter, self.model) end
  for _, name in ipairs(coefficients) do
    if self[name] > 0 and not (self.adapter or self.reference) then
      refuse("%s > 0 needs a reference model, or the adapter whose base is one", name)
    end
  end
  if type(self.rows.collect) == "function" then self.rows = self.rows:collect() end -- a stream of perilune.data
  if self.rows.draw then
    self.curriculum = self.rows
  elseif #self.rows == 0 then
    refuse("there are no rows")
  end
  self.rng = peri.rng(self.seed)
end

--- Options that another function takes, as it takes them.
--- @param self table  a stepper
--- @param of table  names
--- @return table
function M.those(self, of)
  local out = {}
  for name in pairs(of) do out[name] = self[name] end
  return out
end

-- Tokens of prompts and completions, padding left out.
local function tokens_of(batch)
  local _, counts = batch.sequences:bounds()
  local n = 0
  for _, count in ipairs(counts) do n = n + count end
  return n
end

-- Rows of a rollout.
local function drawn(self, n, rng)
  local rows = {}
  for i = 1, n do rows[i] = self.curriculum and self.curriculum:draw(rng) or rng:choice(self.rows) end
  return rows
end

-- Options of a rollout.
local function asked(self)
  local how = M.those(self, M.sampling)
  for name in pairs(conversation.rules) do how[name] = self[name] end
  how.group, how.max_new_tokens, how.temperature = self.group, self.max_new_tokens, self.temperature
  return how
end

-- Have workers sample: batch k has rows and streams of its own, whatever else is drawn.
local function ask(self)
  self.samplers:ask(function (k)
    local how, seed = asked(self), self.seed * 0x1000000 + k
    how.seed = seed
    return drawn(self, self.prompts, peri.rng(seed)), how
  end)
end

--- An update is done: workers get its weights, and the next batches to sample.
--- @param self table  a stepper
--- @param metrics table  gets staleness
function M.learned(self, metrics)
  if not self.samplers then return end
  metrics.staleness = self.at - 1 - self.samplers:next().version
  self.samplers:done()
  self.samplers:publish(self.adapter or self.model, self.at)
  ask(self)
end

--- Answers to n prompts.
--- @param self table  a stepper
--- @param n integer
--- @return table batch  of rl.rollout
--- @return table how  the options that it was made with
function M.draw(self, n)
  local how = asked(self)
  local batch
  if self.samplers then
    if self.samplers.taken ~= self.at then
      options.raise(("%s: its samplers have given %d batches and it has made %d updates: track both, and restore both")
        :format(self.who, self.samplers.taken, self.at))
    end
    self.samplers:publish(self.adapter or self.model, self.at)
    ask(self)
    batch = self.samplers:next()
  else batch = rl.rollout(self.model, self.tokenizer, drawn(self, n, self.rng), self.reward, how) end
  if self.curriculum then self.curriculum:update(batch) end
  self._drawn = (self._drawn or 0) + tokens_of(batch)
  return batch, how
end

--- (B, N) tensors that fn makes of slices of all rows, without gradients.
--- @param self table  a stepper: micro
--- @param batch table  of rl.rollout
--- @param fn fun(part: table): ...  tensors (n, ...)
--- @return perilune.Tensor ...
function M.survey(self, batch, fn)
  local _ <close> = peri.no_grad()
  local lists, out = {}, {}
  local all = { n = #batch.rows, from = batch.from, sequences = batch.sequences, support = batch.support }
  for part in rl.parts(all, self.micro) do
    for k, t in ipairs { fn(part) } do
      lists[k] = lists[k] or {}
      table.insert(lists[k], peri.keep(t))
    end
  end
  for k, list in ipairs(lists) do
    out[k] = peri.cat(list, 1)
    for _, t in ipairs(list) do t:release() end
  end
  return table.unpack(out)
end

--- Log-probabilities and entropies of the answers of a slice, as they were sampled.
--- @param self table  a stepper: temperature
--- @param model table
--- @param part table  of rl.parts
--- @return perilune.Tensor logp  (n, N)
--- @return perilune.Tensor entropy  (n, N)
function M.scored_by(self, model, part)
  return model:token_logprobs(part.sequences, part.from, { temperature = self.temperature, support = part.support,
    routes = part.routes })
end

--- Log-probabilities of the reference: another model, or the policy without its adapter. -- (B, N)
function M.referred(self, batch)
  local ref = M.survey(self, batch, function (part)
    if self.adapter then return (self.adapter:disabled(M.scored_by, self, self.model, part)) end
    return (M.scored_by(self, self.reference, part))
  end)
  return ref
end

--- How far the training pass is from what the sampler said, under TRL's names.
--- @param logp perilune.Tensor  (n, N) of the training pass
--- @param part table  of rl.parts
--- @param counted number  tokens of all slices
--- @return table<string, perilune.Tensor>
function M.agreement(logp, part, counted)
  local _ <close> = peri.no_grad()
  local left_out = part.weight:eq(0)
  local d = logp:sub(part.logprobs):masked_fill(left_out, 0)
  local ratio = d:exp()
  local function mean(x) return x:mul(part.weight):sum():div(counted) end
  return { ["sampling/sampling_logp_difference/mean"] = mean(d:abs()),
    ["sampling/sampling_logp_difference/max"] = d:abs():max(),
    ["sampling/importance_sampling_ratio/mean"] = mean(ratio),
    ["sampling/importance_sampling_ratio/min"] = ratio:masked_fill(left_out, math.huge):min(),
    ["sampling/importance_sampling_ratio/max"] = ratio:masked_fill(left_out, -math.huge):max(),
    mismatch_kl = mean(loss.kl(part.logprobs, logp, part.weight)) }
end

-- Bytes of a row's prompt: what is long in tokens is among what is long in bytes.
local function bytes_of(row)
  if type(row.prompt) == "string" then return #row.prompt end
  local n = 0
  for _, message in ipairs(type(row.prompt) == "table" and row.prompt or {}) do
    n = n + #tostring(message.content or message.value or "")
  end
  return n
end

--- A slice as an update may have it: the longest prompts, with completions as long as they may be; with room for the
--- keys and values of a whole rollout of such.
--- @param self table  a stepper
--- @return table part  as of rl.parts, with advantages of 1
--- @return table cache  to hold meanwhile
function M.heaviest(self)
  local rows = self.curriculum and self.curriculum.rows or self.rows
  if self.environment then
    local _
    _, rows = conversation.open(self.environment, rows, 1) -- luacheck: ignore 311
  end
  local prompts = rl.prompts(self.tokenizer, trainer.longest(rows, 4 * self.prompts, bytes_of)):unpad()
  local list, sequences = trainer.longest(prompts, self.prompts, function (ids) return #ids end), {}
  local context = base.context_length(self.model)
  local longest = math.max(1, math.min(self.max_new_tokens, context - #list[1]))
  for i = 1, math.min(self.micro, #list * self.group) do
    local ids = list[(i - 1) // self.group + 1]
    sequences[i] = table.move(ids, 1, #ids, 1, {})
    for k = 1, longest do sequences[i][#ids + k] = ids[#ids] end
  end
  local shape = { #sequences, longest }
  local part = { n = #sequences, sequences = batches.pad(sequences, { side = "left", pad = 0 }), from = #list[1] + 1,
    logprobs = peri.zeros(shape), advantage = peri.ones(shape), weight = peri.ones(shape) }
  return part, self.model:cache(self.prompts * self.group, part.sequences.ids:size(2))
end

--- Means of the values of several optimizer steps into metrics; of extremes the extreme.
--- @param list table<string, number>[]
--- @param metrics table<string, number>
function M.averaged(list, metrics)
  for _, one in ipairs(list) do
    for name, v in pairs(one) do
      local before = metrics[name]
      if name:find "max$" then metrics[name] = math.max(before or v, v)
      elseif name:find "min$" then metrics[name] = math.min(before or v, v)
      elseif name:find "^sampling/" or name == "mismatch_kl" then metrics[name] = v -- of the first step alone
      else metrics[name] = (before or 0) + v / #list end
    end
  end
end

return M
