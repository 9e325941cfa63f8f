-- generate.lua - sampling from a causal language model with a KV cache: batched, left-padded, n
-- samples a prompt from one prefill, stop tokens, log-probabilities of what was drawn. Whole batches
-- of tensors: requests that come and go are perilune.models.batching, texts are perilune.lm.
local peri = require "perilune"
local options = require "perilune.options"
local sampler = require "perilune.models.sampler"

local M = {}

local defaults = {
  max_new_tokens = 16,        -- per sequence, the stop token included
  samples = 1,                -- completions of each prompt
  stop = {},                  -- token ids that end a sequence, or one id
  pad = 0,                    -- id written after the end
  prompt_mask = false,        -- (B, P) bool, false on left padding; false: nothing is padded
  on_tokens = options.none,   -- called as on_tokens(i, ids (R) i64, alive (R) bool) after step i
  num_beams = 1,              -- more than 1: beam search; see perilune.models.beam
  length_penalty = 1, early_stopping = false, num_return_sequences = 1,
}
for name, value in pairs(sampler.defaults) do defaults[name] = value end

--- Options and what they are when left out.
M.defaults = defaults

local function read_options(given)
  local o = options.fill("generate", given, defaults, 4)
  if type(o.stop) == "number" then o.stop = { o.stop } end
  local ok, message = pcall(sampler.check, o)
  if ok then
    for _, name in ipairs { "max_new_tokens", "samples", "num_beams", "num_return_sequences" } do
      if not (math.tointeger(o[name]) and o[name] >= 1) then
        ok, message = false, ("%s is %s, expected an integer of at least 1"):format(name, tostring(o[name]))
        break
      end
    end
  end
  if not ok then error("generate: " .. message, 4) end
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

-- Whether every row draws the same way from the generator of peri.seed, so that ids need not leave
-- their tensor.
local function is_uniform(o)
  return o.repetition_penalty == 1 and o.frequency_penalty == 0 and o.presence_penalty == 0
    and o.min_new_tokens == 0 and not o.seed and not o.constraint and o.top_logprobs == 0
end

-- One state for each output row.
local function sampler_rows(prompt, start, o)
  local pads, rows = start and start:tolist() or {}, {}
  for b, ids in ipairs(prompt:tolist()) do
    ids = table.move(ids, (pads[b] or 0) + 1, #ids, 1, {})
    for k = 1, o.samples do
      rows[#rows + 1] = sampler.row(o, ids, o.stop, (b - 1) * o.samples + k)
    end
  end
  return rows
end

-- Next tokens by the rows' own settings. Rows that have ended draw nothing.
local function draw_rows(logits, rows, ended, pad)
  local live, places = {}, {}
  for r, row in ipairs(rows) do
    if not ended[r] then live[#live + 1], places[#places + 1] = row, r end
  end
  if #live < #rows then logits = logits:index_select(peri.tensor(places, "i64"):sub(1), 1) end
  local got, logp, top = sampler.draw(logits, live)
  local ids, logprobs, alive, tops = {}, {}, {}, {}
  for r = 1, #rows do ids[r], logprobs[r], alive[r] = pad, 0, false end
  for k, r in ipairs(places) do
    ids[r], logprobs[r], alive[r], tops[r] = got[k], logp[k], true, top[k]
    ended[r] = rows[r]:accept(got[k])
  end
  return peri.tensor(ids, "i64"), peri.tensor(logprobs, "f32"), peri.tensor(alive, "bool"), tops
end

local function all(list, n)
  for i = 1, n do if not list[i] then return false end end
  return true
end

--- The state that decoding starts from: the prompts are read once.
--- @param model table
--- @param prompt perilune.Tensor  (B, P) i64
--- @param start perilune.Tensor?  (B) i64
--- @param room integer  new tokens that will be forwarded
--- @return table cache
--- @return perilune.Tensor last  (B, D) hidden states of the last position
--- @return table context  for model:forward
function M.prefill(model, prompt, start, room)
  local cache = model:cache(prompt:size(1), prompt:size(2) + room)
  local context = { cache = cache, start = start }
  local hidden = model:forward(prompt, context) -- (B, P, D)
  return cache, hidden:select(2, -1), context
end

--- Continue prompts.
--- @param model table  offers :cache(batch, length), :forward(ids, {cache=, start=}) and :logits(hidden)
--- @param prompt perilune.Tensor  (B, P) i64 token ids, padded on the left
--- @param opts table?  see the defaults above and those of perilune.models.sampler; with `seed` each
--- sequence has a stream of its own, without one all draw from the generator that peri.seed sets
--- @return table out  tokens (B*samples, N) i64, logprobs (B*samples, N) f32 under softmax(logits /
--- temperature) (0 after the end), mask (B*samples, N) bool true on generated tokens, stop included;
--- with top_logprobs `top`: top[row][i] = list of { id =, logprob = }, best first; with num_beams > 1
--- tokens and mask are of B*num_return_sequences rows and scores (B*num_return_sequences) f32
function M.generate(model, prompt, opts)
  local o = read_options(opts)
  if o.num_beams > 1 then
    return require("perilune.models.beam").search(model, prompt, o, left_padding(o.prompt_mask))
  end
  local _ <close> = peri.no_grad()
  local scope <close> = peri.scope()
  local batch, n = prompt:size(1), o.samples
  local start = left_padding(o.prompt_mask)
  local rows = not is_uniform(o) and sampler_rows(prompt, start, o) or nil
  local cache <close>, last, context = M.prefill(model, prompt, start, o.max_new_tokens)
  if n > 1 then
    cache:repeat_rows(n)
    last = last:repeat_interleave(n, 1)
    if start then context.start = start:repeat_interleave(n, 1) end
  end
  local how = { temperature = o.temperature, top_k = o.top_k, top_p = o.top_p, min_p = o.min_p,
                greedy = o.greedy }
  local tokens, logprobs, mask, ends, tops = {}, {}, {}, {}, {}
  local alive = peri.ones({ batch * n }, "bool")
  for i = 1, o.max_new_tokens do
    local step <close> = peri.scope()
    local logits, done = model:logits(last), i == o.max_new_tokens
    local ids, logp
    if rows then
      ids, logp, alive, tops[i] = draw_rows(logits, rows, ends, o.pad)
      tokens[i], logprobs[i], mask[i] = ids, logp, alive
      done = done or all(ends, #rows)
    else
      ids, logp = logits:sample(how)
      if #o.stop > 0 and i > 1 then
        ids = peri.where(alive, ids, o.pad)
        logp = logp:mul(alive)
      end
      tokens[i], logprobs[i], mask[i] = ids, logp, alive
      local ended = is_stop(ids, o.stop)
      if ended then alive = alive:logical_and(ended:logical_not()) end
      done = done or (ended and not alive:any():item())
    end
    if o.on_tokens then o.on_tokens(i, ids, mask[i]) end
    if not done then last = model:forward(ids:unsqueeze(2), context):select(2, -1) end
    step:keep(ids, logp, mask[i], alive, last)
    if done then break end
  end
  local out = { tokens = peri.stack(tokens, 2), logprobs = peri.stack(logprobs, 2),
                mask = peri.stack(mask, 2) }
  scope:keep(out.tokens, out.logprobs, out.mask)
  if o.top_logprobs > 0 then
    out.top = {}
    for r = 1, batch * n do
      out.top[r] = {}
      for i in ipairs(tokens) do out.top[r][i] = tops[i][r] end
    end
  end
  return out
end

return M
