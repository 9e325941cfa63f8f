-- generate.lua - model:generate: a whole batch of prompts as requests to perilune.decode.engine, and what they drew as
-- tensors: tokens, log-probabilities, masks. Texts are perilune.lm.
local peri = require "perilune"
local options = require "perilune.options"
local phases = require "perilune.phases"
local inputs = require "perilune.models.inputs"
local sampler = require "perilune.decode.sampler"
local supports = require "perilune.decode.support"
local engines = require "perilune.decode.engine"

local M = {}

local defaults = {
  max_new_tokens = options.integer(16, "[1, inf)", "of each sequence, the stop token included"),
  samples = options.integer(1, "[1, inf)", "completions of each prompt"),
  stop = options.value(options.none, "table or number",
    "ids that end a sequence; default: eos_token_id of the model's generation_config or config; {}: none"),
  pad = options.integer(0, "[0, inf)", "id written after the end"),
  rows = options.integer(options.none, "[1, inf)",
    "sequences that run at once; others enter as these end; default: all"),
  on_tokens = options.value(options.none, "callable",
    "on_tokens(i, ids (R) i64, alive (R) bool) after draw i: the rows that drew are alive"),
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

local function check_beams(o, level)
  if o.samples ~= 1 then error("generate: beam search takes num_return_sequences, not samples", level + 1) end
  for name, plain in pairs { temperature = 1, top_k = 0, top_p = 1, min_p = 0, top_logprobs = 0, sampling = "full" } do
    if o[name] ~= plain then
      error(("generate: beam search draws nothing, so %s has no place"):format(name), level + 1)
    end
  end
  if o.num_return_sequences > o.num_beams then
    error(("generate: num_return_sequences is %d, expected at most num_beams = %d")
      :format(o.num_return_sequences, o.num_beams), level + 1)
  end
end

-- Options of generate, or of what goes on from it and has rules of its own, filled in and looked at.
local function read_options(model, given, level, rules)
  local o = options.fill("generate", given, rules or defaults, level + 1)
  if o.stop == nil then o.stop = own_stop(model)
  elseif type(o.stop) == "number" then o.stop = { o.stop } end
  for i, id in ipairs(o.stop) do
    if not math.tointeger(id) then
      error(("generate: stop has %s as its entry %d, expected ids of tokens"):format(tostring(id), i), level + 1)
    end
  end
  local ok, message = pcall(sampler.check, o)
  if not ok then error("generate: " .. message, level + 1) end
  if o.num_beams > 1 then check_beams(o, level + 1) end
  return o
end
M.read = read_options

-- ---- what was drawn, as tensors -----------------------------------------------------------------

-- Takes down each draw of an engine: ids and log-probabilities stay tensors. Draws by the same sequences, one behind
-- the other, are a run.
local Record = {}
Record.__index = Record

local function record(engine, o, rows)
  local self = setmetatable({ runs = {}, draws = 0, o = o, rows = rows, kept = {} }, Record)
  engine:listen(function (...) self:add(...) end)
  return self
end

-- Rows of the output that sequences are, from 0.
local function rows_of(list)
  local rows = {}
  for i, s in ipairs(list) do rows[i] = s.number - 1 end
  return peri.tensor(rows, "i64")
end

-- on_tokens hears of all rows: what has ended or waits is not alive.
local function tell(self, list, ids)
  local alive, n = peri.ones(ids.shape, "bool"), self.rows
  if #list < n then
    local rows = rows_of(list)
    ids = peri.full({ n }, self.o.pad, "i64"):scatter(rows, ids, 1)
    alive = peri.zeros({ n }, "bool"):scatter(rows, alive, 1)
  end
  self.o.on_tokens(self.draws, ids, alive)
end

-- What a draw kept, as keys of its tokens and ids.
local function kept_of(self, run, kept)
  local where = kept:nonzero() -- (n, 2), from 0
  local row, id = where:select(2, 1), where:select(2, 2)
  local places = rows_of(run.list):mul(self.o.max_new_tokens):add(peri.tensor(run.first, "i64")):add(#run.ids)
  self.kept[#self.kept + 1] = { keys = peri.keep(places:index_select(row, 1)), ids = peri.keep(id:contiguous()) }
end

function Record:add(list, ids, logp, turns, kept)
  local run = self.runs[#self.runs]
  if not run or run.list ~= list then
    run = { list = list, first = {}, ids = {}, logps = {} }
    for i, s in ipairs(list) do run.first[i] = turns - s.entered - 1 end
    self.runs[#self.runs + 1] = run
  end
  if kept then kept_of(self, run, kept) end
  run.ids[#run.ids + 1], run.logps[#run.logps + 1] = ids, logp
  self.draws = self.draws + 1
  if self.o.on_tokens then tell(self, list, ids) end
end

--- A to-be-closed record lets go of its tensors.
function Record:__close()
  for _, run in ipairs(self.runs) do
    for i, ids in ipairs(run.ids) do
      ids:release()
      run.logps[i]:release()
    end
  end
  for _, draw in ipairs(self.kept) do
    draw.keys:release()
    draw.ids:release()
  end
end

-- tokens and logprobs (rows, width).
function Record:tensors(width)
  local at, ids, logps = {}, {}, {}
  for r, run in ipairs(self.runs) do
    local first = rows_of(run.list):mul(width):add(peri.tensor(run.first, "i64"))
    at[r] = first:add(peri.arange(#run.ids):unsqueeze(2)):flatten() -- draw by draw
    ids[r], logps[r] = peri.cat(run.ids, 1), peri.cat(run.logps, 1)
  end
  local n, shape = self.rows * width, { self.rows, width }
  at = peri.cat(at, 1)
  local logp = peri.cat(logps, 1) -- of the model's own dtype
  return peri.full({ n }, self.o.pad, "i64"):scatter(at, peri.cat(ids, 1), 1):reshape(shape),
    peri.zeros({ n }, logp.dtype):scatter(at, logp, 1):reshape(shape)
end

-- ---- generate -----------------------------------------------------------------------------------

-- Step until all is done; the first error of a request is everyone's.
local function run(engine)
  while engine:step() and not engine.failed do end -- luacheck: ignore 542
  if engine.failed then error(engine.failed.error, 0) end
end

-- Random numbers for sequences of `n` tokens at most: what all draw from, as if each step were a draw of the generator
-- over all rows. used(longest) gives back what was not needed, where nobody else has drawn meanwhile.
local function reserve(o, n)
  local state = peri.rng_state()
  local stream = { seed = state.seed, offset = state.offset }
  if o.seed or o.greedy or o.temperature == 0 or o.num_beams > 1 then return stream, function () end end
  peri.set_rng_state { seed = state.seed, offset = state.offset + n }
  return stream, function (longest)
    local now = peri.rng_state()
    if now.seed == state.seed and now.offset == state.offset + n then
      peri.set_rng_state { seed = state.seed, offset = state.offset + longest }
    end
  end
end
M.reserve = reserve

local function of_beams(requests, o)
  local tokens, counts, scores, width = {}, {}, {}, 1
  for _, request in ipairs(requests) do
    for _, found in ipairs(request.sequences[1].row:best(o.num_return_sequences)) do
      tokens[#tokens + 1], scores[#scores + 1] = found.tokens, found.score
      width = math.max(width, #found.tokens)
    end
  end
  for r, list in ipairs(tokens) do
    counts[r], tokens[r] = #list, table.move(list, 1, #list, 1, {})
    for i = #list + 1, width do tokens[r][i] = o.pad end
  end
  return { tokens = peri.tensor(tokens, "i64"), scores = peri.tensor(scores, "f32") }, counts, o.num_return_sequences
end

-- What was drawn from, where that is not softmax(logits / temperature) and log-probabilities are of it.
local function support_of(batch, o, taken, tokens, counts)
  if not sampler.facts(o).renormalised then return nil end
  local prompts, before, lists = {}, sampler.facts(o).penalised and batch:unpad() or {}, tokens:tolist()
  for r, list in ipairs(lists) do
    for i = #list, counts[r] + 1, -1 do list[i] = nil end
    prompts[r] = before[(r - 1) // o.samples + 1]
  end
  return supports.new(o, #taken.kept > 0 and taken.kept or nil, prompts, lists, o.max_new_tokens, o.stop)
end

local function of_samples(requests, o, taken)
  local counts, reasons, tops, width = {}, {}, {}, 1
  for _, request in ipairs(requests) do
    for _, s in ipairs(request.sequences) do
      local r = s.number
      counts[r], reasons[r], tops[r], width = s.count, s.reason, s.top, math.max(width, s.count)
    end
  end
  local tokens, logprobs = taken:tensors(width)
  return { tokens = tokens, logprobs = logprobs, reasons = reasons, top = o.top_logprobs > 0 and tops or nil }, counts,
    o.samples, width
end

--- Continue prompts.
--- @param model table  offers :cache(batch, length), :forward(ids, {cache=, start=}) and :logits(hidden)
--- @param prompt perilune.Tensor|perilune.Batch  (B, P) i64 token ids, padded on the left or on the right
--- @param opts table?  mask (also attention_mask, prompt_mask), start or lengths of the prompt's rows; see the
--- defaults above and those of perilune.decode.sampler; with `seed` each sequence has a stream of its own, without
--- one all draw from the generator that peri.seed sets: row r of step t draws the same whatever else runs
--- @param level integer?  of errors, for those who call on behalf of others
--- @return table out  tokens (B*samples, N) i64, logprobs (B*samples, N) f32 under softmax(logits /
--- temperature) (0 after the end), mask (B*samples, N) bool true on generated tokens, stop included;
--- reasons (of each row "stop" or "length"); batch (perilune.Batch of prompts and what follows them); with sampling
--- "renormalised" log-probabilities of the distribution that was drawn from, and support where that is another, for
--- token_logprobs;
--- with top_logprobs `top`: top[row][i] = list of { id =, logprob = }, best first; with num_beams > 1
--- tokens, mask and batch are of B*num_return_sequences rows and scores (B*num_return_sequences) f32
function M.generate(model, prompt, opts, level)
  level = (level or 1) + 1
  local phase <close> = phases.open "rollout" -- luacheck: ignore 211
  local given, how_given = M.split(opts)
  local o = read_options(model, how_given, level)
  local _ <close> = peri.no_grad()
  local scope <close> = peri.scope()
  local ids, rows_given = inputs.read("generate", prompt, given, inputs.relative)
  local batch = inputs.prompts("generate", ids, rows_given)
  local each = o.num_beams > 1 and o.num_beams or o.samples
  local rows = o.rows or #batch * each
  local engine <close> = engines.new(model, { rows = rows, wait = math.max(1, rows // 4) })
  local taken <close> = o.num_beams == 1 and record(engine, o, #batch * each) or nil
  local stream, used = reserve(o, o.max_new_tokens)
  local requests = engine:submit_batch(batch, o, stream)
  run(engine)
  local out, counts, n, longest = (o.num_beams > 1 and of_beams or of_samples)(requests, o, taken)
  used(longest)
  out.mask = peri.arange(out.tokens:size(2)):lt(peri.tensor(counts, "i64"):unsqueeze(2)) -- (R, N)
  out.batch = batch:continued(out.tokens, counts, n)
  out.support = taken and support_of(batch, o, taken, out.tokens, counts)
  if out.support then scope:keep(table.unpack(out.support:tensors())) end
  scope:keep(out.tokens, out.mask, out.batch.ids, out.logprobs, out.scores)
  return out
end

options.declare(M.generate, { "model", "prompt" }, defaults)

return M
