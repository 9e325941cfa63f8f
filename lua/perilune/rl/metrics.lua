-- metrics.lua - what is logged of a batch of completions.
local peri = require "perilune"
local conversation = require "perilune.rl.conversation"
local credit = require "perilune.rl.credit"
local kl = require "perilune.loss.kl"
local masked = require "perilune.loss.masked"
local options = require "perilune.options"

local M = {}

local ROWS <const> = 64 -- that the reference reads at once: an evaluation has thousands

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
--- spread), rewards/NAME/mean and std of each function of a list and abstained, the share that it gave no reward, where
--- there is one; completions/mean_length, min_length,
--- max_length, clipped_ratio (share that no stop token ended) and mean_, min_, max_terminated_length (of the
--- others, 0 without any); of conversations these count what the model said, without its answers, and
--- conversations/turns, conversations/cut_ratio, tools/call_frequency and tools/failure_frequency say more of them
--- (docs/tools.md). entropy, in nats a token, is estimated by the mean of -log p of what was sampled.
--- @param batch table  of rl.rollout
--- @return table
function M.summary(batch)
  options.argument("rl.summary", "batch", batch, "table")
  local count, flat, spread = #batch.total, 0, 0
  if count == 0 then error("rl.summary: the batch has no completions", 2) end
  for first = 1, count, batch.group do
    local _, deviation, _, lo, hi = moments(table.move(batch.total, first, first + batch.group - 1, 1, {}))
    spread = spread + deviation
    if lo >= hi then flat = flat + 1 end
  end
  local lengths, terminated = {}, {}
  local said = batch.conversations and batch.mask:sum(2):tolist()
  for i, list in ipairs(batch.tokens) do
    lengths[i] = said and said[i] or #list
    if batch.ended[i] then terminated[#terminated + 1] = lengths[i] end
  end
  local groups = count / batch.group
  local out = { reward = (moments(batch.total)), reward_std = spread / groups, frac_reward_zero_std = flat / groups,
    ["completions/clipped_ratio"] = 1 - #terminated / count,
    entropy = -masked.counted(batch.logprobs, batch.mask):sum():item() / math.max(batch.mask:sum():item(), 1) }
  for infix, list in pairs { [""] = lengths, terminated_ = #terminated > 0 and terminated or { 0 } } do
    local mean, _, _, lo, hi = moments(list)
    out[("completions/mean_%slength"):format(infix)] = mean
    out[("completions/min_%slength"):format(infix)] = lo
    out[("completions/max_%slength"):format(infix)] = hi
  end
  for name, value in pairs(batch.conversations and conversation.metrics(batch.conversations) or {}) do
    out[name] = value
  end
  for _, name in ipairs(batch.names or {}) do
    local mean, deviation, n = moments(batch.rewards[name])
    out[("rewards/%s/mean"):format(name)], out[("rewards/%s/std"):format(name)] = mean, deviation
    if n < count then out[("rewards/%s/abstained"):format(name)] = 1 - n / count end
  end
  return out
end

--- Mean KL of the policy that sampled a batch to a reference model, in nats a token; 0 of a batch
--- without tokens.
--- @param reference table  model
--- @param batch table  of rl.rollout
--- @param temperature number?
--- @return number
function M.kl_to(reference, batch, temperature)
  options.argument("rl.kl_to", "reference", reference, "table")
  options.argument("rl.kl_to", "batch", batch, "table")
  local _ <close> = peri.no_grad()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local tokens = batch.mask:sum():item()
  if tokens == 0 then return 0 end
  local rows = { n = batch.mask.shape[1], from = batch.from, sequences = batch.sequences, ids = batch.ids }
  local ref, done = peri.zeros(batch.logprobs.shape, batch.logprobs.dtype), 0
  for part in credit.parts(rows, ROWS) do
    local whole = part.sequences or { ids = part.ids, start = batch.start and batch.start:narrow(1, done + 1, part.n) }
    local logp = reference:token_logprobs(whole, part.from, { temperature = temperature })
    ref:narrow(1, done + 1, part.n):copy_(logp)
    done = done + part.n
  end
  return kl.kl(batch.logprobs, ref, batch.mask):mul(batch.mask):sum():item() / tokens
end

return M
