-- rollout.lua - completions of prompts, sampled and scored: what an update learns from.
local peri = require "perilune"
local base = require "perilune.models.base"
local batches = require "perilune.text.batch"
local generate = require "perilune.decode.generate"
local options = require "perilune.options"
local rows_of = require "perilune.data.rows"
local conversation = require "perilune.rl.conversation"
local rewards = require "perilune.rl.reward"

local M = {}

--- Prompts of rows as one batch, padded on the left. A prompt is a text, or a list of messages for the chat template of
--- the tokenizer.
--- @param tokenizer table  see perilune.text
--- @param rows table[]  each with .prompt
--- @return perilune.Batch
function M.prompts(tokenizer, rows)
  local prompts, chat = {}, false
  for i, row in ipairs(rows) do
    if type(row) ~= "table" or type(row.prompt) ~= "string" and type(row.prompt) ~= "table" then
      options.raise(("rl.rollout: row %d has no prompt, a text or a list of messages"):format(i))
    end
    prompts[i] = row.prompt
    chat = chat or type(row.prompt) == "table"
    if type(row.prompt) == "table" and not tokenizer.encode_chat then
      options.raise(("rl.rollout: the prompt of row %d is a list of messages, and the tokenizer has no chat template")
        :format(i))
    end
  end
  if not chat and not tokenizer.encode_batch then -- somebody's own: a batch, or ids and their mask
    local ids, mask = tokenizer:batch(prompts)
    return batches.is(ids) and ids or batches.new(ids, mask)
  end
  if chat then
    for i, row in ipairs(rows) do prompts[i] = rows_of.prompt(tokenizer, row) end
  else
    prompts = tokenizer:encode_batch(prompts)
  end
  for i, ids in ipairs(prompts) do
    if #ids == 0 then options.raise(("rl.rollout: the prompt of row %d has no tokens"):format(i)) end
  end
  return batches.pad(prompts, { side = "left", pad = tokenizer.pad or tokenizer.eos or 0 })
end

local rollout_rules = { group = options.integer(1, "[1, inf)", "completions of each prompt") }
for name, entry in pairs(generate.defaults) do rollout_rules[name] = entry end
for _, name in ipairs { "samples", "prompt_mask", "num_beams", "num_return_sequences" } do rollout_rules[name] = nil end
for name, entry in pairs(conversation.rules) do rollout_rules[name] = entry end

-- Completions of prompts: what a batch has of them, and which of the tokens were sampled.
local function completions(model, prompts, how)
  local out = model:generate(prompts, how)
  local _, lengths = out.batch:bounds()
  local _, before = prompts:bounds()
  local ended, tokens = {}, out.tokens:tolist() -- the one time that ids become lists
  for i, list in ipairs(tokens) do
    for k = #list, lengths[i] - before[(i - 1) // how.samples + 1] + 1, -1 do list[k] = nil end
    ended[i] = out.reasons[i] == "stop"
  end
  return { tokens = tokens, ended = ended, sequences = out.batch, logprobs = out.logprobs, support = out.support,
    mask = out.mask:to "f32" }
end

-- The same of conversations with an environment.
local function conversations(model, tokenizer, prompts, how, env, talks)
  local list, support = conversation.run(model, tokenizer, prompts, env, talks, how)
  local ended, tokens, counts, width = {}, {}, {}, 1
  for i, c in ipairs(list) do
    tokens[i], counts[i], ended[i], width = c.tokens, #c.tokens, c.over == "stop", math.max(width, #c.tokens)
  end
  local function matrix(field, dtype, none)
    local rows = {}
    for i, c in ipairs(list) do
      local row = table.move(c[field], 1, #c[field], 1, {})
      for k = #row + 1, width do row[k] = none end
      rows[i] = row
    end
    return peri.tensor(rows, dtype)
  end
  return { tokens = tokens, ended = ended, support = support, conversations = talks,
    sequences = prompts:flush_right():continued(matrix("tokens", "i64", how.pad), counts, how.samples),
    logprobs = matrix("logprobs", "f32", 0), mask = matrix("drawn", "f32", 0) }
end

--- Sample completions of prompts and score them. With an environment a completion is a whole conversation: its tokens
--- are what the model said and what it was answered, mask is 1 on the model's own alone, and log-probabilities of the
--- others are 0.
--- @param model table  see perilune.models.llama
--- @param tokenizer table  see perilune.text
--- @param rows table[]  each with .prompt: a text, or messages for the tokenizer's chat template
--- @param reward function|table|nil  see rl.score; nil: that of the environment
--- @param opts table?  group, environment, max_turns, max_turn_tokens, and options of generate
--- @return table batch  rows, texts, tokens, ended (boolean[]: by a stop token, not by length), sequences
--- (perilune.Batch of prompts with their completions), from (P + 1: the column of the first completed token),
--- logprobs (B, N), support (with sampling "renormalised", see generate), mask (B, N) f32 of generated tokens, total
--- (number[]), of a list of rewards rewards (name -> number[]), names and weights, and with step rewards steps (B, N)
--- f32 and covered (B, N) f32; with an environment conversations, its talks; also ids (B, P + N) i64 and start (B) or
--- nil, as sequences has them
function M.rollout(model, tokenizer, rows, reward, opts)
  options.argument("rl.rollout", "model", model, "table")
  options.argument("rl.rollout", "tokenizer", tokenizer, "table")
  options.argument("rl.rollout", "rows", rows, "table")
  local o = options.fill("rl.rollout", opts, rollout_rules)
  if #rows == 0 then error("rl.rollout: there are no rows", 2) end
  conversation.want("rl.rollout", o, 2, model, tokenizer)
  local env, talks, opened = o.environment, nil, rows
  if reward == nil and env then reward = env.reward end
  if reward == nil then
    error("rl.rollout: there is no reward" .. (env and ", and the environment has none" or ""), 2)
  end
  local why = base.no_causal(model)
  if why then error("rl.rollout: " .. why, 2) end
  if env then talks, opened = conversation.open(env, rows, o.group) end
  local prompts = M.prompts(tokenizer, opened)
  local how = { samples = o.group, stop = env and env.stop or tokenizer.eos_ids or tokenizer.eos,
    pad = tokenizer.pad or tokenizer.eos }
  for k, v in pairs(opts or {}) do if k ~= "group" and k ~= "environment" then how[k] = v end end
  local batch = env and conversations(model, tokenizer, prompts, how, env, talks) or completions(model, prompts, how)
  local each, texts, given = {}, {}, {}
  for i, list in ipairs(batch.tokens) do
    texts[i], each[i] = tokenizer:decode(list), rows[(i - 1) // o.group + 1]
    given[i] = table.move(list, 1, #list, 1, {}) -- a reward may cut them: what is learned stays what was sampled
  end
  local scored = rewards.score(each, texts, given, reward, talks)
  batch.rows, batch.texts, batch.group = each, texts, o.group
  for name, value in pairs(scored) do batch[name] = value end
  batch.ids = batch.sequences.ids
  batch.from = batch.ids:size(2) - batch.mask:size(2) + 1
  batch.start = batch.sequences:padding() and batch.sequences.start or nil
  if batch.steps then
    local covered
    batch.steps, covered = rewards.step_tensors(batch.steps, batch.mask:size(2))
    batch.covered = env and covered:mul(batch.mask) or covered
  end
  return batch
end
options.declare(M.rollout, { "model", "tokenizer", "rows", "reward" }, rollout_rules)

return M
