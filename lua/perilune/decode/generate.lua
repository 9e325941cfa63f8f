-- generate.lua - sampling from a causal language model with a KV cache: batched, left-padded, n
-- samples a prompt from one prefill, stop tokens, log-probabilities of what was drawn. Whole batches
-- of tensors: requests that come and go are perilune.decode.batching, texts are perilune.lm.
local peri = require "perilune"
local options = require "perilune.options"
local inputs = require "perilune.models.inputs"
local sampler = require "perilune.decode.sampler"

local M = {}

local defaults = {
  max_new_tokens = options.integer(16, "[1, inf)", "of each sequence, the stop token included"),
  samples = options.integer(1, "[1, inf)", "completions of each prompt"),
  stop = options.value(options.none, "table or number",
    "ids that end a sequence; default: eos_token_id of the model's generation_config or config; {}: none"),
  pad = options.integer(0, "[0, inf)", "id written after the end"),
  on_tokens = options.value(options.none, "callable", "on_tokens(i, ids (R) i64, alive (R) bool) after step i"),
  num_beams = options.integer(1, "[1, inf)", "more than 1: beam search; see perilune.decode.beam"),
  length_penalty = options.number(1, nil, "beams: scores are divided by length to this power"),
  early_stopping = options.choice(false, { true, false, "never" }, "beams: when the search ends"),
  num_return_sequences = options.integer(1, "[1, inf)", "beams: how many of each prompt are returned"),
}
for name, value in pairs(sampler.defaults) do defaults[name] = value end

--- Options and what they are when left out.
M.defaults = defaults

-- Where the prompt's tokens are, under every name that this has.
local of_prompt = { mask = true, attention_mask = true, prompt_mask = true, start = true, lengths = true }

--- Options taken apart: those of the prompt's rows, and how to go on from it.
--- @param given table?
--- @return table rows
--- @return table how
function M.split(given)
  local rows, how = {}, {}
  for key, value in pairs(type(given) == "table" and given or {}) do
    if not of_prompt[key] then how[key] = value
    elseif value then rows[key] = value end -- prompt_mask = false: nothing is padded
  end
  return rows, type(given) == "table" and how or given
end

-- What ends a text by the model's own files.
local function own_stop(model)
  local id = (model.generation_config or {}).eos_token_id
  if id == nil then id = (model.config or {}).eos_token_id end
  local list = {}
  for _, v in ipairs(type(id) == "table" and id or { id }) do
    list[#list + 1] = math.tointeger(tonumber(v))
  end
  return list
end

local function read_options(model, given, level)
  local o = options.fill("generate", given, defaults, level + 1)
  if o.stop == nil then o.stop = own_stop(model)
  elseif type(o.stop) == "number" then o.stop = { o.stop } end
  for i, id in ipairs(o.stop) do
    if not math.tointeger(id) then
      error(("generate: stop has %s as its entry %d, expected ids of tokens"):format(tostring(id), i), level + 1)
    end
  end
  local ok, message = pcall(sampler.check, o)
  if not ok then error("generate: " .. message, level + 1) end
  return o
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
    and o.min_new_tokens == 0 and not o.seed and not o.constraint and not o.logit_bias and o.top_logprobs == 0
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
--- @param prompt perilune.Tensor|perilune.Batch  (B, P) i64 token ids, padded on the left or on the right
--- @param opts table?  mask (also attention_mask, prompt_mask), start or lengths of the prompt's rows; see the
--- defaults above and those of perilune.decode.sampler; with `seed` each sequence has a stream of its own, without
--- one all draw from the generator that peri.seed sets
--- @param level integer?  of errors, for those who call on behalf of others
--- @return table out  tokens (B*samples, N) i64, logprobs (B*samples, N) f32 under softmax(logits /
--- temperature) (0 after the end), mask (B*samples, N) bool true on generated tokens, stop included;
--- with top_logprobs `top`: top[row][i] = list of { id =, logprob = }, best first; with num_beams > 1
--- tokens and mask are of B*num_return_sequences rows and scores (B*num_return_sequences) f32
function M.generate(model, prompt, opts, level)
  level = (level or 1) + 1
  local given, how_given = M.split(opts)
  local o = read_options(model, how_given, level)
  local rows_given
  prompt, rows_given = inputs.read("generate", prompt, given, inputs.relative, level)
  local _ <close> = peri.no_grad()
  local scope <close> = peri.scope()
  local start
  prompt, start = inputs.flush_right("generate", prompt, inputs.rows("generate", prompt, rows_given, level), level)
  if o.num_beams > 1 then
    local found = require("perilune.decode.beam").search(model, prompt, o, start, level)
    scope:keep(found.tokens, found.mask, found.scores)
    return found
  end
  local batch, n = prompt:size(1), o.samples
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

options.declare(M.generate, { "model", "prompt" }, defaults)

return M
