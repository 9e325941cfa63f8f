-- rl.lua - reinforcement learning of language models: rollouts, the reward contract, credit, the
-- clipped objective. Everything works on whole batches; the algorithm stays in the recipe.
local peri = require "perilune"
local data = require "perilune.data"

local M = {}

local function describe(row, text)
  return ("prompt %q, completion %q"):format(tostring(row.prompt), text)
end

local function check_number(v, what, row, text)
  if type(v) ~= "number" then
    error(("reward: %s is a %s, expected a number (%s)"):format(what, type(v), describe(row, text)), 0)
  elseif v ~= v or v == math.huge or v == -math.huge then
    error(("reward: %s is %s (%s)"):format(what, v, describe(row, text)), 0)
  end
  return v
end

-- Rewards of several functions: their weighted sum, and each under its name.
local function score_each(rows, texts, tokens, list)
  local total, by_name, names = {}, {}, {}
  for k, one in ipairs(list) do
    local name, fn, factor = one[1], one[2], one[3] or 1
    local values = {}
    for i, row in ipairs(rows) do
      local value = fn(row, texts[i], tokens[i])
      values[i] = value == nil and 0 / 0 or check_number(value, name, row, texts[i])
      if value ~= nil then total[i] = (total[i] or 0) + factor * value end
    end
    names[k], by_name[name] = name, values
  end
  for i = 1, #rows do total[i] = total[i] or 0 / 0 end
  return { total = total, rewards = by_name, names = names }
end

--- Score completions. The reward function is called once a completion as reward(row, text, tokens)
--- and returns a number, or nil to abstain, and optionally a list of rewards, one for each leading
--- token that deserves credit or blame; tokens after the list are left out of the objective. Or it is a
--- list of { name, function, weight (1) }, whose functions return a number or nil: their weighted sum is the
--- reward.
--- @param rows table[]  one row a completion
--- @param texts string[]
--- @param tokens integer[][]  token ids of each completion, stop token included
--- @param reward function|table
--- @return table scored  total (number[], NaN where abstained), steps (number[][] or nil); of a list rewards
--- (name -> number[]) and names
function M.score(rows, texts, tokens, reward)
  if type(reward) == "table" then return score_each(rows, texts, tokens, reward) end
  local total, steps = {}, nil
  for i, row in ipairs(rows) do
    local value, list = reward(row, texts[i], tokens[i])
    total[i] = value == nil and 0 / 0 or check_number(value, "the value", row, texts[i])
    if list then
      steps = steps or {}
      if #list > #tokens[i] then
        error(("reward: %d step rewards for %d tokens (%s)"):format(#list, #tokens[i],
          describe(row, texts[i])), 0)
      end
      for k, v in ipairs(list) do check_number(v, "step " .. k, row, texts[i]) end
      steps[i] = list
    elseif steps then
      error("reward: some completions have step rewards and some have none", 0)
    end
  end
  return { total = total, steps = steps }
end

-- (B, N) f32 tensors of step rewards and of the positions that they cover.
local function step_tensors(steps, width)
  local r, covered = {}, {}
  for i, list in ipairs(steps) do
    local a, b = {}, {}
    for t = 1, width do a[t], b[t] = list[t] or 0, list[t] and 1 or 0 end
    r[i], covered[i] = a, b
  end
  return peri.tensor(r, "f32"), peri.tensor(covered, "f32")
end

-- Prompts as one tensor, padded on the left. A prompt is a text, or a list of messages for the chat
-- template of the tokenizer.
local function prompt_batch(tokenizer, rows)
  local prompts, chat = {}, false
  for i, row in ipairs(rows) do
    prompts[i] = row.prompt
    chat = chat or type(row.prompt) == "table"
  end
  if not chat then return tokenizer:batch(prompts) end
  for i, prompt in ipairs(prompts) do
    prompts[i] = tokenizer:encode_chat(prompt,
      { add_generation_prompt = true, tools = rows[i].tools, return_mask = false })
  end
  return data.pad(prompts, { side = "left", value = tokenizer.pad or tokenizer.eos })
end

--- Sample completions of prompts and score them.
--- @param model table  see perilune.models.llama
--- @param tokenizer table  see perilune.text
--- @param rows table[]  each with .prompt: a text, or messages for the tokenizer's chat template
--- @param reward function|table  see M.score
--- @param opts table  group (completions of each prompt), and options of generate
--- @return table batch  rows, texts, tokens, ended (boolean[]: by a stop token, not by length), ids (B, P + N)
--- i64, from (P + 1), start (B) or nil, logprobs (B, N), mask (B, N) f32 of generated tokens, total (number[]),
--- of a list of rewards rewards (name -> number[]) and names, and with step rewards steps (B, N) f32 and covered
--- (B, N) f32
function M.rollout(model, tokenizer, rows, reward, opts)
  local group = opts.group
  local ids, prompt_mask = prompt_batch(tokenizer, rows)
  local how = { samples = group, stop = tokenizer.eos_ids or tokenizer.eos, pad = tokenizer.pad or tokenizer.eos,
                prompt_mask = prompt_mask }
  for k, v in pairs(opts) do if k ~= "group" then how[k] = v end end
  local out = model:generate(ids, how)
  local lists, lengths = out.tokens:tolist(), out.mask:to("i64"):sum(2):tolist()
  local each, texts, tokens, ended, stops = {}, {}, {}, {}, {}
  for _, id in ipairs(type(how.stop) == "table" and how.stop or { how.stop }) do stops[id] = true end
  for i, list in ipairs(lists) do
    local kept = table.move(list, 1, lengths[i], 1, {})
    ended[i] = lengths[i] < (how.max_new_tokens or 0) or stops[kept[#kept]] == true
    tokens[i], texts[i], each[i] = kept, tokenizer:decode(kept), rows[(i - 1) // group + 1]
  end
  local scored = M.score(each, texts, tokens, reward)
  local batch = {
    rows = each, texts = texts, tokens = tokens, ended = ended, group = group,
    total = scored.total, rewards = scored.rewards, names = scored.names,
    ids = peri.cat({ ids:repeat_interleave(group, 1), out.tokens }, 2), from = ids:size(2) + 1,
    logprobs = out.logprobs, mask = out.mask:to "f32",
  }
  local pads = prompt_mask and prompt_mask:logical_not():to("i64"):sum(2) or nil
  if pads and pads:max():item() > 0 then batch.start = pads:repeat_interleave(group, 1) end
  if scored.steps then batch.steps, batch.covered = step_tensors(scored.steps, out.tokens:size(2)) end
  return batch
end

--- Advantages and the weights of tokens in the objective.
--- Whole answers (outcome supervision, DeepSeekMath 2402.03300 eq. 4.1.2): the reward, centred and
--- scaled within its group, on every token. With step rewards (process supervision, 4.1.3): the
--- return from each token on, centred and scaled over those samples of the group whose prefix has
--- been right so far; the tokens after that are masked out.
--- @param batch table  of M.rollout
--- @param opts table?  std "sample" | "population" | "none", eps
--- @return perilune.Tensor advantage  (B, N) f32
--- @return perilune.Tensor weight  (B, N) f32, 0 or 1
function M.advantages(batch, opts)
  local std, eps = opts and opts.std or "sample", opts and opts.eps or 1e-4
  if batch.steps then
    local returns = batch.steps:flip(2):cumsum(2):flip(2) -- (B, N)
    return peri.group_advantage(returns, batch.covered, batch.group, std, eps), batch.covered
  end
  local total, scored = {}, {}
  for i, r in ipairs(batch.total) do
    total[i], scored[i] = r == r and r or 0, r == r and 1 or 0
  end
  local known = peri.tensor(scored, "f32"):unsqueeze(2) -- (B, 1)
  local a = peri.group_advantage(peri.tensor(total, "f32"):unsqueeze(2), known, batch.group, std, eps)
  return a:mul(batch.mask), batch.mask:mul(known)
end

--- The completions that can teach something: those with an advantage that is not 0. The gradient of
--- the others is exactly 0, so leaving them out changes nothing but the time of an update; divisors
--- of the loss must be counted before.
--- @param batch table  of M.rollout
--- @param advantage perilune.Tensor  (B, N)
--- @param weight perilune.Tensor  (B, N)
--- @param all boolean?  keep every row with a weight: with a KL penalty each has a gradient
--- @return table  n, ids (n, P + N), from, start, logprobs, advantage, weight (n, N)
function M.with_signal(batch, advantage, weight, all)
  local rows = (all and weight or advantage:mul(weight)):abs():max(2):gt(0):nonzero():reshape { -1 } -- (n) i64
  local function pick(t) return t and t:index_select(rows, 1) end
  return { n = rows:numel(), from = batch.from, ids = pick(batch.ids), start = pick(batch.start),
           logprobs = pick(batch.logprobs), advantage = pick(advantage), weight = pick(weight) }
end

--- for part in rl.parts(rows, size) do: consecutive slices of what with_signal returns, each turn a
--- memory scope.
--- @param rows table
--- @param size integer  rows of a slice
function M.parts(rows, size)
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

--- Log-probabilities and entropies of completions of one prompt, which is read once for all of them and
--- gets its gradient once: the same numbers as model:token_logprobs of every whole sequence.
--- @param model table  causal model of perilune.models
--- @param shared table  of M.shared_prompt
--- @param completions perilune.Tensor  (B, N) i64; -100 where there is none
--- @param opts table?  temperature (1)
--- @return perilune.Tensor logp  (B, N) f32, 0 at -100
--- @return perilune.Tensor entropy  (B, N) f32, nats
function M.completion_logprobs(model, shared, completions, opts)
  local batch, count, length = completions:size(1), completions:size(2), shared.length
  local hidden = shared.hidden:expand { batch, -1, -1 } -- (B, 1, D)
  if count > 1 then
    local ids = completions:narrow(2, 1, count - 1):clamp(0) -- what is behind the end is never looked at
    local positions = peri.arange(length, length + count - 1)
    hidden = peri.cat({ hidden, model:forward(ids, { prefix = shared, positions = positions }) }, 2) -- (B, N, D)
  end
  return model:token_logprob(hidden, completions, opts and opts.temperature)
end

local Group = {}
Group.__index = Group

--- for group in rl.groups(batch, advantage, weight) do: prompts with the completions of each that can teach
--- something; group.prompt (1, P) i64, and for part in group:parts(size) do. Each turn is a memory scope.
--- @param batch table  of M.rollout
--- @param advantage perilune.Tensor  (B, N)
--- @param weight perilune.Tensor  (B, N)
--- @param all boolean?  also those whose advantage is 0
function M.groups(batch, advantage, weight, all)
  local signal = (all and weight or advantage:mul(weight)):abs():max(2):gt(0):tolist()
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

local reductions = {}

-- Every token counts the same (DAPO, 2503.14476 eq. 12).
function reductions.token(per_token, weight, o)
  return per_token:mul(weight):sum():div(o.tokens)
end

-- Every sequence counts the same (DeepSeekMath eq. 3).
function reductions.sequence(per_token, weight, o)
  local length = weight:sum(2):clamp(1)
  return per_token:mul(weight):sum(2):div(length):sum():div(o.sequences)
end

-- A constant divisor, so that length has no influence (Dr. GRPO, 2503.20783).
function reductions.constant(per_token, weight, o)
  return per_token:mul(weight):sum():div(o.sequences * o.max_length)
end

--- KL of the policy to a reference by the k3 estimator exp(-d) + d - 1, d = logp - ref, with expm1
--- because the plain form cancels near 0 (Schulman, "Approximating KL divergence", 2020).
--- @return perilune.Tensor  shape of logp
function M.kl(logp, ref)
  local d = ref:sub(logp)
  return d:expm1():sub(d)
end

--- Mean KL of the policy that sampled a batch to a reference model, in nats a token.
--- @param reference table  model
--- @param batch table  of M.rollout
--- @param temperature number?
--- @return number
function M.kl_to(reference, batch, temperature)
  local _ <close> = peri.no_grad()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local ref = reference:token_logprobs(batch.ids, batch.from, { temperature = temperature, start = batch.start })
  return M.kl(batch.logprobs, ref):mul(batch.mask):sum():item() / batch.mask:sum():item()
end

--- The clipped surrogate of PPO and GRPO as a loss to minimise:
--- -min(ratio * A, clip(ratio, 1 - clip, 1 + clip_high) * A) + beta * k3(logp, ref).
--- @param logp perilune.Tensor  (B, N) of the policy being trained
--- @param old perilune.Tensor  (B, N) of the policy that sampled
--- @param advantage perilune.Tensor  (B, N)
--- @param weight perilune.Tensor  (B, N) 0 or 1
--- @param opts table?  clip (0.2), clip_high (clip), beta (0), ref (B, N), level "token" | "sequence"
--- (GSPO, 2507.18071), reduce "token" | "sequence" | "constant", tokens, sequences, max_length:
--- divisors of the whole update, so that micro-batches add up to the same gradient
--- @return perilune.Tensor loss  0-dim
--- @return table stats  0-dim tensors: clip_fraction, ratio_max, kl (with ref)
function M.clipped(logp, old, advantage, weight, opts)
  local o = opts or {}
  local clip = o.clip or 0.2
  local delta = logp:sub(old)
  if o.level == "sequence" then
    local mean = delta:mul(weight):sum(2, true):div(weight:sum(2, true):clamp(1))
    delta = logp:sub(logp:detach()):add(mean) -- gradient of each token, value of the sequence
  end
  local ratio = delta:exp()
  local bounded = ratio:clamp(1 - clip, 1 + (o.clip_high or clip))
  local gain = peri.minimum(ratio:mul(advantage), bounded:mul(advantage))
  local per_token, stats = gain:neg(), {}
  if o.ref then
    local kl = M.kl(logp, o.ref)
    stats.kl = kl:detach():mul(weight):sum()
    if (o.beta or 0) ~= 0 then per_token = per_token:add(kl:mul(o.beta)) end
  end
  local reduce = reductions[o.reduce or "token"]
  if not reduce then error(("rl.clipped: reduce %q is not known"):format(tostring(o.reduce)), 2) end
  local divisors = {
    tokens = o.tokens or math.max(weight:sum():item(), 1),
    sequences = o.sequences or logp:size(1), max_length = o.max_length or logp:size(2),
  }
  local fixed = ratio:detach()
  stats.clip_fraction = fixed:ne(bounded:detach()):to("f32"):mul(weight):sum():div(divisors.tokens)
  stats.ratio_max = fixed:sub(1):abs():mul(weight):max():add(1)
  return reduce(per_token, weight, divisors), stats
end

local Curriculum = {}
Curriculum.__index = Curriculum

--- Draws rows the more often the less reward they had of late: groups that are all right teach
--- nothing (DAPO, 2503.14476, section 3.2, filters them after sampling; this asks for fewer of them).
--- A row is drawn with a chance proportional to 1 + floor - its average reward.
--- @param rows table[]
--- @param opts table?  floor (0.1): chance of a solved row beside an unsolved one; decay (0.95) of the
--- average, a completion; best (1): the reward of a solved row
--- @return table curriculum  :draw(rng), :update(batch), :state(), :set_state(s)
function M.curriculum(rows, opts)
  local self = setmetatable({ rows = rows, seen = {}, index = {}, floor = 0.1, decay = 0.95, best = 1 }, Curriculum)
  for k, v in pairs(opts or {}) do self[k] = v end
  for i, row in ipairs(rows) do self.seen[i], self.index[row] = 0, i end
  return self
end

--- @param rng table  of peri.rng
--- @return table row
function Curriculum:draw(rng)
  while true do
    local i = rng:int(1, #self.rows)
    if rng:uniform() * (1 + self.floor) < 1 + self.floor - self.seen[i] / self.best then return self.rows[i] end
  end
end

--- Learn from the rewards of a batch whose rows this drew.
function Curriculum:update(batch)
  for k, row in ipairs(batch.rows) do
    local i, r = self.index[row], batch.total[k]
    if r == r then self.seen[i] = self.decay * self.seen[i] + (1 - self.decay) * r end
  end
end

function Curriculum:state() return { seen = self.seen } end
function Curriculum:set_state(s) self.seen = s.seen end

-- Mean and deviation (of a sample) of those that are numbers, how many, and the extremes.
local function moments(values)
  local n, sum, squares, lo, hi = 0, 0, 0, math.huge, -math.huge
  for _, v in ipairs(values) do
    if v == v then n, sum, lo, hi = n + 1, sum + v, math.min(lo, v), math.max(hi, v) end
  end
  local mean = n > 0 and sum / n or 0 / 0
  for _, v in ipairs(values) do
    if v == v then squares = squares + (v - mean) ^ 2 end
  end
  return mean, n > 1 and math.sqrt(squares / (n - 1)) or 0, n, lo, hi
end

--- What TRL's GRPOTrainer logs of a batch, under its names: reward (mean of those that are no abstentions),
--- reward_std (mean over the groups of the deviation), frac_reward_zero_std (share of groups without any
--- spread), rewards/NAME/mean and std of each function of a list, completions/mean_length, min_length,
--- max_length, clipped_ratio (share that no stop token ended) and mean_, min_, max_terminated_length (of the
--- others, 0 without any). entropy, in nats a token, is estimated by the mean of -log p of what was sampled.
--- @param batch table  of M.rollout
--- @return table
function M.summary(batch)
  local count, flat, spread = #batch.total, 0, 0
  for first = 1, count, batch.group do
    local _, deviation, _, lo, hi = moments(table.move(batch.total, first, first + batch.group - 1, 1, {}))
    spread = spread + deviation
    if lo >= hi then flat = flat + 1 end
  end
  local lengths, terminated = {}, {}
  for i, list in ipairs(batch.tokens) do
    lengths[i] = #list
    if batch.ended[i] then terminated[#terminated + 1] = #list end
  end
  local groups = count / batch.group
  local out = { reward = (moments(batch.total)), reward_std = spread / groups, frac_reward_zero_std = flat / groups,
    ["completions/clipped_ratio"] = 1 - #terminated / count,
    entropy = -batch.logprobs:mul(batch.mask):sum():item() / math.max(batch.mask:sum():item(), 1) }
  for infix, list in pairs { [""] = lengths, terminated_ = #terminated > 0 and terminated or { 0 } } do
    local mean, _, _, lo, hi = moments(list)
    out[("completions/mean_%slength"):format(infix)] = mean
    out[("completions/min_%slength"):format(infix)] = lo
    out[("completions/max_%slength"):format(infix)] = hi
  end
  for _, name in ipairs(batch.names or {}) do
    local mean, deviation = moments(batch.rewards[name])
    out[("rewards/%s/mean"):format(name)], out[("rewards/%s/std"):format(name)] = mean, deviation
  end
  return out
end

return M
