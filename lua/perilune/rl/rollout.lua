-- rollout.lua - completions of prompts, sampled and scored: what an update learns from.
local base = require "perilune.models.base"
local batches = require "perilune.text.batch"
local generate = require "perilune.decode.generate"
local options = require "perilune.options"
local rows_of = require "perilune.data.rows"
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

--- Sample completions of prompts and score them.
--- @param model table  see perilune.models.llama
--- @param tokenizer table  see perilune.text
--- @param rows table[]  each with .prompt: a text, or messages for the tokenizer's chat template
--- @param reward function|table  see rl.score
--- @param opts table?  group, and options of generate
--- @return table batch  rows, texts, tokens, ended (boolean[]: by a stop token, not by length), sequences
--- (perilune.Batch of prompts with their completions), from (P + 1: the column of the first completed token),
--- logprobs (B, N), support (with sampling "renormalised", see generate), mask (B, N) f32 of generated tokens, total
--- (number[]), of a list of rewards rewards (name -> number[]), names and weights, and with step rewards steps (B, N)
--- f32 and covered (B, N) f32; also ids (B, P + N) i64 and start (B) or nil, as sequences has them
function M.rollout(model, tokenizer, rows, reward, opts)
  options.argument("rl.rollout", "model", model, "table")
  options.argument("rl.rollout", "tokenizer", tokenizer, "table")
  options.argument("rl.rollout", "rows", rows, "table")
  local o = options.fill("rl.rollout", opts, rollout_rules)
  if #rows == 0 then error("rl.rollout: there are no rows", 2) end
  local why = base.no_causal(model)
  if why then error("rl.rollout: " .. why, 2) end
  local prompts = M.prompts(tokenizer, rows)
  local how = { samples = o.group, stop = tokenizer.eos_ids or tokenizer.eos, pad = tokenizer.pad or tokenizer.eos }
  for k, v in pairs(opts or {}) do if k ~= "group" then how[k] = v end end
  local out = model:generate(prompts, how)
  local _, lengths = out.batch:bounds()
  local _, before = prompts:bounds()
  local each, texts, ended, tokens, given = {}, {}, {}, out.tokens:tolist(), {} -- the one time that ids become lists
  for i, list in ipairs(tokens) do
    local nth = (i - 1) // o.group + 1
    for k = #list, lengths[i] - before[nth] + 1, -1 do list[k] = nil end
    ended[i] = out.reasons[i] == "stop"
    texts[i], each[i] = tokenizer:decode(list), rows[nth]
    given[i] = table.move(list, 1, #list, 1, {}) -- a reward may cut them: what is learned stays what was sampled
  end
  local scored = rewards.score(each, texts, given, reward)
  local batch = {
    rows = each, texts = texts, tokens = tokens, ended = ended, group = o.group,
    total = scored.total, rewards = scored.rewards, names = scored.names, weights = scored.weights,
    sequences = out.batch, ids = out.batch.ids, from = out.batch.ids:size(2) - out.tokens:size(2) + 1,
    logprobs = out.logprobs, support = out.support,
    mask = out.mask:to "f32", start = out.batch:padding() and out.batch.start or nil,
  }
  if scored.steps then batch.steps, batch.covered = rewards.step_tensors(scored.steps, out.tokens:size(2)) end
  return batch
end
options.declare(M.rollout, { "model", "tokenizer", "rows", "reward" }, rollout_rules)

return M
