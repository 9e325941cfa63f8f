-- rollout.lua - completions of prompts, sampled and scored: what an update learns from.
local peri = require "perilune"
local base = require "perilune.models.base"
local data = require "perilune.data"
local generate = require "perilune.decode.generate"
local options = require "perilune.options"
local rows_of = require "perilune.data.rows"
local rewards = require "perilune.rl.reward"

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
  local scored = rewards.score(each, texts, tokens, reward)
  local batch = {
    rows = each, texts = texts, tokens = tokens, ended = ended, group = o.group,
    total = scored.total, rewards = scored.rewards, names = scored.names,
    ids = peri.cat({ ids:repeat_interleave(o.group, 1), out.tokens }, 2), from = ids:size(2) + 1,
    logprobs = out.logprobs, mask = out.mask:to "f32",
  }
  local pads = prompt_mask and prompt_mask:logical_not():to("i64"):sum(2) or nil
  if pads and pads:max():item() > 0 then batch.start = pads:repeat_interleave(o.group, 1) end
  if scored.steps then batch.steps, batch.covered = rewards.step_tensors(scored.steps, out.tokens:size(2)) end
  return batch
end
options.declare(M.rollout, { "model", "tokenizer", "rows", "reward" }, rollout_rules)

return M
