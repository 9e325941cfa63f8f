-- generate.lua - sampling from a causal language model with a KV cache: batched, left-padded, n
-- samples a prompt from one prefill, stop tokens, log-probabilities of what was drawn.
local peri = require "perilune"

local M = {}

local defaults = {
  max_new_tokens = 16, -- per sequence, the stop token included
  samples = 1,         -- completions of each prompt
  temperature = 1, top_k = 0, top_p = 1, min_p = 0,
  greedy = false,
  stop = {},           -- token ids that end a sequence
  pad = 0,             -- id written after the end
  prompt_mask = false, -- (B, P) bool, false on left padding
}

local function options(given)
  local o = {}
  for k, v in pairs(defaults) do o[k] = v end
  for k, v in pairs(given or {}) do
    if o[k] == nil then error(("generate: unknown option %q"):format(tostring(k)), 3) end
    o[k] = v
  end
  if type(o.stop) == "number" then o.stop = { o.stop } end
  if o.max_new_tokens < 1 then
    error(("generate: max_new_tokens is %d, expected at least 1"):format(o.max_new_tokens), 3)
  end
  return o
end

-- Number of left-pad positions of each row, or nil when nothing is padded. -- (B)
local function left_padding(mask)
  if not mask then return nil end
  local pads = mask:logical_not():to("i64"):sum(2) -- (B)
  if pads:max():item() == 0 then return nil end
  local flips = mask:narrow(2, 2, mask:size(2) - 1):lt(mask:narrow(2, 1, mask:size(2) - 1))
  if flips:any():item() then error("generate: prompt_mask must pad on the left only", 3) end
  return pads
end

local function is_stop(ids, stop)
  local hit
  for _, id in ipairs(stop) do
    local eq = ids:eq(id)
    hit = hit and hit:logical_or(eq) or eq
  end
  return hit
end

--- Continue prompts.
--- @param model table  offers :cache(batch, length), :forward(ids, {cache=, start=}) and :logits(hidden)
--- @param prompt perilune.Tensor  (B, P) i64 token ids, padded on the left
--- @param opts table?  see the defaults above
--- @return table out  tokens (B*samples, N) i64, logprobs (B*samples, N) f32 under the sampling
--- temperature (0 after the end), mask (B*samples, N) bool true on generated tokens, stop included
function M.generate(model, prompt, opts)
  local o = options(opts)
  local _ <close> = peri.no_grad()
  local scope <close> = peri.scope()
  local batch, length, n = prompt:size(1), prompt:size(2), o.samples
  local start = left_padding(o.prompt_mask)
  local cache = model:cache(batch, length + o.max_new_tokens)
  local hidden = model:forward(prompt, { cache = cache, start = start }) -- (B, P, D)
  local last = hidden:select(2, -1)                                      -- (B, D)
  if n > 1 then
    cache:repeat_rows(n)
    last = last:repeat_interleave(n, 1)
    if start then start = start:repeat_interleave(n, 1) end
  end
  local how = { temperature = o.temperature, top_k = o.top_k, top_p = o.top_p, min_p = o.min_p,
                greedy = o.greedy }
  local tokens, logprobs, mask = {}, {}, {}
  local alive = peri.ones({ batch * n }, "bool")
  for i = 1, o.max_new_tokens do
    local step <close> = peri.scope()
    local ids, logp = model:logits(last):sample(how)
    if #o.stop > 0 and i > 1 then
      ids = peri.where(alive, ids, o.pad)
      logp = logp:mul(alive)
    end
    tokens[i], logprobs[i], mask[i] = ids, logp, alive
    local ended = is_stop(ids, o.stop)
    if ended then alive = alive:logical_and(ended:logical_not()) end
    local done = i == o.max_new_tokens or (ended and not alive:any():item())
    if not done then
      last = model:forward(ids:unsqueeze(2), { cache = cache, start = start }):select(2, -1)
    end
    step:keep(ids, logp, alive, last)
    if done then break end
  end
  local out = { tokens = peri.stack(tokens, 2), logprobs = peri.stack(logprobs, 2),
                mask = peri.stack(mask, 2) }
  scope:keep(out.tokens, out.logprobs, out.mask)
  return out
end

return M
