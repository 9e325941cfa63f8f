-- baseline.lua - what ReMax compares a sampled answer to: the answer that the policy thinks best.
local options = require "perilune.options"
local rollout = require "perilune.rl.rollout"

local M = {}

--- The rewards of the greedy answers to the prompts of a rollout, beside each of its answers: what estimator "remax" of
--- rl.advantages reads from batch.baseline (ReMax, 2310.10505). One more answer a prompt is decoded.
---
---     batch.baseline = rl.greedy_rewards(batch, model, tok, reward, { max_new_tokens = 16 })
---
--- @param batch table  of rl.rollout
--- @param model table
--- @param tokenizer table
--- @param reward function|table  see rl.score
--- @param opts table?  of rl.rollout, but for group and greedy
--- @return number[] rewards  as many as the batch has answers; NaN where the reward abstained
function M.greedy_rewards(batch, model, tokenizer, reward, opts)
  options.argument("rl.greedy_rewards", "batch", batch, "table")
  local how, rows = {}, {}
  for name, value in pairs(opts or {}) do how[name] = value end
  how.group, how.greedy = 1, true
  for first = 1, #batch.rows, batch.group do rows[#rows + 1] = batch.rows[first] end
  local best, out = rollout.rollout(model, tokenizer, rows, reward, how).total, {}
  for i = 1, #batch.rows do out[i] = best[(i - 1) // batch.group + 1] end
  return out
end

return M
