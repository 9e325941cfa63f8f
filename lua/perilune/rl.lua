-- rl.lua - reinforcement learning of language models: rollouts, the reward contract, credit, the
-- clipped objective. Everything works on whole batches; the algorithm stays in the recipe.
-- Rewards: rl/score.lua; the objective: rl/loss.lua; which rows are drawn: rl/curriculum.lua; what is
-- logged: rl/summary.lua.
local peri = require "perilune"
local base = require "perilune.models.base"
local curriculum = require "perilune.rl.curriculum"
local data = require "perilune.data"
local generate = require "perilune.models.generate"
local loss = require "perilune.rl.loss"
local options = require "perilune.options"
local rows_of = require "perilune.post.rows"
local score = require "perilune.rl.score"
local summary = require "perilune.rl.summary"

local M = {}

-- Prompts as one tensor, padded on the left. A prompt is a text, or a list of messages for the chat
-- template of the tokenizer.
local function prompt_batch(tokenizer, rows)
  local prompts, chat = {}, false
  for i, row in ipairs(rows) do
    if type(row) ~= "table" or type(row.prompt) ~= "string" and type(row.prompt) ~= "table" then
      error(("rl.rollout: row %d has no prompt, a text or a list of messages"):format(i), 3)
    end
    prompts[i] = row.prompt
    chat = chat or type(row.prompt) == "table"
  end
  if not chat and not tokenizer.encode_batch then return tokenizer:batch(prompts) end
  if chat then
    for i, row in ipairs(rows) do prompts[i] = rows_of.prompt(tokenizer, row) end
  else
    prompts = tokenizer:encode_batch(prompts)
  end
  return data.pad(prompts, { side = "left", value = tokenizer.pad or tokenizer.eos or 0 })
end

local rollout_rules = { group = options.integer(1, "[1, inf)", "completions of each prompt") }
for name, entry in pairs(generate.defaults) do rollout_rules[name] = entry end
for _, name in ipairs { "samples", "prompt_mask", "num_beams", "num_return_sequences" } do rollout_rules[name] = nil end

--- Sample completions of prompts and score them.
--- @param model table  see perilune.models.llama
--- @param tokenizer table  see perilune.text
--- @param rows table[]  each with .prompt: a text, or messages for the tokenizer's chat template
--- @param reward function|table  see rl.score
--- @param opts table?  group, and options of generate
--- @return table batch  rows, texts, tokens, ended (boolean[]: by a stop token, not by length), ids (B, P + N)
--- i64, from (P + 1), start (B) or nil, logprobs (B, N), mask (B, N) f32 of generated tokens, total (number[]),
--- of a list of rewards rewards (name -> number[]) and names, and with step rewards steps (B, N) f32 and covered
--- (B, N) f32
function M.rollout(model, tokenizer, rows, reward, opts)
  options.argument("rl.rollout", "model", model, "table")
  options.argument("rl.rollout", "tokenizer", tokenizer, "table")
  options.argument("rl.rollout", "rows", rows, "table")
  local o = options.fill("rl.rollout", opts, rollout_rules)
  if #rows == 0 then error("rl.rollout: there are no rows", 2) end
  local why = base.no_causal(model)
  if why then error("rl.rollout: " .. why, 2) end
  local ids, prompt_mask = prompt_batch(tokenizer, rows)
  local how = { samples = o.group, stop = tokenizer.eos_ids or tokenizer.eos, pad = tokenizer.pad or tokenizer.eos,
                prompt_mask = prompt_mask }
  for k, v in pairs(opts or {}) do if k ~= "group" then how[k] = v end end
  local out = model:generate(ids, how)
  local lists, lengths = out.tokens:tolist(), out.mask:to("i64"):sum(2):tolist()
  local each, texts, tokens, ended, stops = {}, {}, {}, {}, {}
  for _, id in ipairs(type(how.stop) == "table" and how.stop or { how.stop }) do stops[id] = true end
  for i, list in ipairs(lists) do
    local kept = table.move(list, 1, lengths[i], 1, {})
    ended[i] = lengths[i] < o.max_new_tokens or stops[kept[#kept]] == true
    tokens[i], texts[i], each[i] = kept, tokenizer:decode(kept), rows[(i - 1) // o.group + 1]
  end
  local scored = M.score(each, texts, tokens, reward)
  local batch = {
    rows = each, texts = texts, tokens = tokens, ended = ended, group = o.group,
    total = scored.total, rewards = scored.rewards, names = scored.names,
    ids = peri.cat({ ids:repeat_interleave(o.group, 1), out.tokens }, 2), from = ids:size(2) + 1,
    logprobs = out.logprobs, mask = out.mask:to "f32",
  }
  local pads = prompt_mask and prompt_mask:logical_not():to("i64"):sum(2) or nil
  if pads and pads:max():item() > 0 then batch.start = pads:repeat_interleave(o.group, 1) end
  if scored.steps then batch.steps, batch.covered = score.step_tensors(scored.steps, out.tokens:size(2)) end
  return batch
end
options.declare(M.rollout, { "model", "tokenizer", "rows", "reward" }, rollout_rules)

local advantage_rules = {
  std = options.choice("sample", { "sample", "population", "none" }, "the deviation that rewards are divided by"),
  eps = options.number(1e-4, "[0, inf)", "added to the deviation"),
}

--- Advantages and the weights of tokens in the objective.
--- Whole answers (outcome supervision, DeepSeekMath 2402.03300 eq. 4.1.2): the reward, centred and
--- scaled within its group, on every token. With step rewards (process supervision, 4.1.3): the
--- return from each token on, centred and scaled over those samples of the group whose prefix has
--- been right so far; the tokens after that are masked out.
--- @param batch table  of rl.rollout
--- @param opts table?
--- @return perilune.Tensor advantage  (B, N) f32
--- @return perilune.Tensor weight  (B, N) f32, 0 or 1
function M.advantages(batch, opts)
  local o = options.fill("rl.advantages", opts, advantage_rules)
  options.argument("rl.advantages", "batch", batch, "table")
  if batch.steps then
    local steps = loss.counted(batch.steps, batch.covered)
    local returns = steps:flip(2):cumsum(2):flip(2) -- (B, N)
    return peri.group_advantage(returns, batch.covered, batch.group, o.std, o.eps), batch.covered
  end
  local total, scored = {}, {}
  for i, r in ipairs(batch.total) do
    total[i], scored[i] = r == r and r or 0, r == r and 1 or 0
  end
  local known = peri.tensor(scored, "f32"):unsqueeze(2) -- (B, 1)
  local a = peri.group_advantage(peri.tensor(total, "f32"):unsqueeze(2), known, batch.group, o.std, o.eps)
  return a:mul(batch.mask), batch.mask:mul(known)
end
options.declare(M.advantages, { "batch" }, advantage_rules)

-- (B) bool: the completions with a gradient.
local function teaching(advantage, weight, all)
  return (all and weight or loss.counted(advantage, weight)):ne(0):any(2)
end

--- The completions that can teach something: those with an advantage that is not 0. The gradient of
--- the others is exactly 0, so leaving them out changes nothing but the time of an update; divisors
--- of the loss must be counted before.
--- @param batch table  of rl.rollout
--- @param advantage perilune.Tensor  (B, N)
--- @param weight perilune.Tensor  (B, N)
--- @param all boolean?  keep every row with a weight: with a KL penalty each has a gradient
--- @return table  n, ids (n, P + N), from, start, logprobs, advantage, weight (n, N)
function M.with_signal(batch, advantage, weight, all)
  options.argument("rl.with_signal", "batch", batch, "table")
  options.argument("rl.with_signal", "advantage", advantage, "tensor")
  options.argument("rl.with_signal", "weight", weight, "tensor")
  local rows = teaching(advantage, weight, all):nonzero():reshape { -1 } -- (n) i64
  local function pick(t) return t and t:index_select(rows, 1) end
  return { n = rows:numel(), from = batch.from, ids = pick(batch.ids), start = pick(batch.start),
           logprobs = pick(batch.logprobs), advantage = pick(advantage), weight = pick(weight) }
end

local size_rule = options.integer(options.required, "[1, inf)", "rows of a slice")

-- The size of a slice, or an error at the caller.
local function want_size(who, size)
  local problem = options.problem("size", size, size_rule)
  if problem then options.raise(("%s: %s"):format(who, problem)) end
  return math.tointeger(size)
end

--- for part in rl.parts(rows, size) do: consecutive slices of what with_signal returns, each turn a
--- memory scope.
--- @param rows table
--- @param size integer  rows of a slice
function M.parts(rows, size)
  options.argument("rl.parts", "rows", rows, "table")
  size = want_size("rl.parts", size)
  local advance, state, turn, closing = peri.steps(math.ceil(rows.n / size))
  return function ()
    turn = advance(state, turn)
    if not turn then return nil end
    local at = (turn - 1) * size + 1
    local part = { n = math.min(size, rows.n - at + 1), from = rows.from }
    for key, value in pairs(rows) do
      if type(value) == "userdata" then part[key] = value:narrow(1, at, part.n) end
    end
    return part
  end, nil, nil, closing
end

local Shared = {}
Shared.__index = Shared

--- A prompt read once for any number of completions, in any number of forward and backward passes: their
--- gradients with respect to what they saw of it add up, until :backward() takes them through it.
--- @param model table  causal model of perilune.models
--- @param prompt perilune.Tensor  (1, P) i64
--- @return table shared  for completion_logprobs; :backward() once, after those of all completions
function M.shared_prompt(model, prompt)
  options.argument("rl.shared_prompt", "model", model, "table")
  options.argument("rl.shared_prompt", "prompt", prompt, "tensor")
  local why = base.no_causal(model)
  if why then error("rl.shared_prompt: " .. why, 2) end
  local self = setmetatable({ length = prompt:size(2), k = {}, v = {}, _pairs = {} }, Shared)
  local seen = { k = {}, v = {} }
  local function leaf(t) -- the graph of what follows ends here
    if not t.requires_grad then return t end
    local own = t:detach():requires_grad_()
    table.insert(self._pairs, { t, own })
    return own
  end
  self.hidden = leaf(model:forward(prompt, { collect = seen }):narrow(2, self.length, 1)) -- (1, 1, D)
  for i, k in ipairs(seen.k) do self.k[i], self.v[i] = leaf(k), leaf(seen.v[i]) end -- (1, P, Hkv, D)
  return self
end

--- The gradients that have come together, through the prompt.
function Shared:backward()
  local sum
  for _, pair in ipairs(self._pairs) do
    local grad = pair[2].grad
    if grad then
      local product = pair[1]:mul(grad):sum()
      sum = sum and sum:add(product) or product
    end
  end
  if sum then sum:backward() end
  self._pairs = {}
end

local logprob_rules = { temperature = options.number(options.none, "(0, inf)", "of the softmax; default: 1") }

--- Log-probabilities and entropies of completions of one prompt, which is read once for all of them and
--- gets its gradient once: the same numbers as model:token_logprobs of every whole sequence.
--- @param model table  causal model of perilune.models
--- @param shared table  of rl.shared_prompt
--- @param completions perilune.Tensor  (B, N) i64; -100 where there is none
--- @param opts table?
--- @return perilune.Tensor logp  (B, N) f32, 0 at -100
--- @return perilune.Tensor entropy  (B, N) f32, nats
function M.completion_logprobs(model, shared, completions, opts)
  local o = options.fill("rl.completion_logprobs", opts, logprob_rules)
  options.argument("rl.completion_logprobs", "model", model, "table")
  options.argument("rl.completion_logprobs", "shared", shared, "table")
  options.argument("rl.completion_logprobs", "completions", completions, "tensor")
  local batch, count, length = completions:size(1), completions:size(2), shared.length
  local hidden = shared.hidden:expand { batch, -1, -1 } -- (B, 1, D)
  if count > 1 then
    local ids = completions:narrow(2, 1, count - 1):clamp(0) -- what is behind the end is never looked at
    local positions = peri.arange(length, length + count - 1)
    hidden = peri.cat({ hidden, model:forward(ids, { prefix = shared, positions = positions }) }, 2) -- (B, N, D)
  end
  return model:token_logprob(hidden, completions, o.temperature)
end
options.declare(M.completion_logprobs, { "model", "shared", "completions" }, logprob_rules)

local Group = {}
Group.__index = Group

--- for group in rl.groups(batch, advantage, weight) do: prompts with the completions of each that can teach
--- something; group.prompt (1, P) i64, and for part in group:parts(size) do. Each turn is a memory scope.
--- @param batch table  of rl.rollout
--- @param advantage perilune.Tensor  (B, N)
--- @param weight perilune.Tensor  (B, N)
--- @param all boolean?  also those whose advantage is 0
function M.groups(batch, advantage, weight, all)
  options.argument("rl.groups", "batch", batch, "table")
  options.argument("rl.groups", "advantage", advantage, "tensor")
  options.argument("rl.groups", "weight", weight, "tensor")
  local signal = teaching(advantage, weight, all):tolist()
  local lists = {}
  for first = 1, #signal, batch.group do
    local list = {}
    for i = first, first + batch.group - 1 do
      if signal[i] then list[#list + 1] = i end
    end
    if #list > 0 then lists[#lists + 1] = list end
  end
  local starts = batch.start and batch.start:tolist()
  local advance, state, turn, closing = peri.steps(#lists)
  return function ()
    turn = advance(state, turn)
    if not turn then return nil end
    local list = lists[turn]
    local pads = starts and starts[list[1]] or 0
    local prompt = batch.ids:narrow(1, list[1], 1):narrow(2, pads + 1, batch.from - 1 - pads)
    return setmetatable({ prompt = prompt, rows = list, batch = batch, advantage = advantage, weight = weight }, Group)
  end, nil, nil, closing
end

--- for part in group:parts(size) do: at most `size` of its completions at a time; completions (n, N) i64 (-100
--- behind the end), logprobs, advantage, weight (n, N), n. Each turn is a memory scope.
--- @param size integer
function Group:parts(size)
  local batch = self.batch
  size = want_size("group:parts", size)
  local advance, state, turn, closing = peri.steps(math.ceil(#self.rows / size))
  return function ()
    turn = advance(state, turn)
    if not turn then return nil end
    local list, longest = table.move(self.rows, (turn - 1) * size + 1, math.min(turn * size, #self.rows), 1, {}), 0
    for _, i in ipairs(list) do longest = math.max(longest, #batch.tokens[i]) end
    local rows = peri.tensor(list, "i64"):sub(1)
    local function pick(t) return t:index_select(rows, 1):narrow(2, 1, longest) end
    local ids = batch.ids:narrow(2, batch.from, batch.ids:size(2) - batch.from + 1)
    return { n = #list, completions = pick(ids):masked_fill(pick(batch.mask):eq(0), -100),
             logprobs = pick(batch.logprobs), advantage = pick(self.advantage), weight = pick(self.weight) }
  end, nil, nil, closing
end

M.log_ratio_max, M.kl, M.kl_to, M.clipped = loss.log_ratio_max, loss.kl, loss.kl_to, loss.clipped
M.score, M.summary, M.curriculum = score.score, summary.summary, curriculum.curriculum

return require "perilune.names"(M, "perilune.rl")
