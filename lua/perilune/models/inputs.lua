-- inputs.lua - what a model is given: ids with options by name, or a whole perilune.Batch. Names are
-- checked here, and masks, starts and lengths become one thing: which columns of each row are tokens.
local peri = require "perilune"
local batches = require "perilune.text.batch"
local options = require "perilune.options"

local raise = options.raise

local M = {}

local mask = options.value(options.none, "tensor", "(B, T) bool, or 0 and 1: true where a token is")
local start = options.value(options.none, "tensor or table", "(B) i64: columns before each row")
local lengths = options.value(options.none, "tensor or table", "(B) i64: tokens of each row, from its start on")
local positions = options.value(options.none, "tensor", "(T) or (B, T) i64; default: each token's place in its row")

--- Options of the forward pass of causal models.
M.causal = {
  mask = mask, start = start, lengths = lengths, positions = positions,
  cache = options.value(options.none, "table", "keys and values of what was read before: model:cache()"),
  segments = options.value(options.none, "tensor", "(B, T) i64: runs of equal numbers that do not see each other"),
  prefix = options.value(options.none, "table", "{ k =, v = } of each layer, which every position sees"),
  collect = options.value(options.none, "table", "{ k = {}, v = {} }: gets the keys and values of each layer"),
  routes = options.value(options.none, "tensor", "(B, T, layers, K) i64: the experts of each token, of model:routes"),
}

--- Options of the forward pass of encoders.
M.encoder = {
  mask = mask, start = start, lengths = lengths, positions = positions,
  token_types = options.value(options.none, "tensor", "(T) or (B, T) i64; default 0"),
}

--- Options of an encoder that has neither positions nor token types.
M.relative = { mask = mask, start = start, lengths = lengths }

--- Options of the forward pass of encoder-decoders; labels or decoder_ids there must be.
M.seq2seq = {
  mask = mask, start = start, lengths = lengths,
  labels = options.value(options.none, "tensor", "(B, T) i64: read by the decoder one place to the right"),
  decoder_ids = options.value(options.none, "tensor", "(B, T) i64: what the decoder reads, as it is"),
  decoder_mask = options.value(options.none, "tensor", "(B, T): where decoder_ids has a token"),
}

--- Options of a decoder behind an encoder.
M.decoder = {
  mask = options.value(options.none, "tensor", "(B, Ts): where the encoder's input has a token"),
  decoder_mask = options.value(options.none, "tensor", "(B, T): where ids has a token"),
  start = start, cache = M.causal.cache,
  crossed = options.value(options.none, "table", "keys and values of the cross-attention of each layer"),
}

-- Names that transformers has.
local aliases = { attention_mask = "mask", position_ids = "positions", token_type_ids = "token_types",
                  decoder_input_ids = "decoder_ids", decoder_attention_mask = "decoder_mask", input_ids = "ids",
                  prompt_mask = "mask" }

local function known(rules)
  local list = options.names(rules)
  for alias, name in pairs(aliases) do
    if rules[name] and alias ~= "prompt_mask" then list[#list + 1] = alias end
  end
  table.sort(list)
  return list
end

local shape_of = options.shape

--- Options by their own names; raises for one that the rules lack.
--- @param who string
--- @param given table?
--- @param rules table
--- @return table
function M.options(who, given, rules)
  local o = {}
  if given == nil then return o end
  if type(given) ~= "table" then
    raise(("%s: options are a %s, expected a table"):format(who, peri.is_tensor(given) and "tensor" or type(given)))
  end
  for key, value in pairs(given) do
    local name = rules[key] and key or aliases[key] or key
    local rule = rules[name]
    if rule == nil then raise(who .. ": " .. options.unknown("option", key, known(rules))) end
    if o[name] ~= nil then raise(("%s: %s is given under two names"):format(who, name)) end
    local problem = options.problem(key, value, rule)
    if problem then raise(who .. ": " .. problem) end
    o[name] = value
  end
  return o
end

-- What a plain table with ids says, as if those fields were options.
local function unpack_table(who, t, given)
  local ids, merged = nil, {}
  for key, value in pairs(t) do
    if aliases[key] == "ids" or key == "ids" then ids = value else merged[key] = value end
  end
  if ids == nil then
    raise(("%s: a table without ids; expected a tensor (B, T) i64, a batch, or a table with ids and options")
      :format(who))
  end
  for key, value in pairs(given or {}) do merged[key] = value end
  return ids, merged
end

--- Ids and options of a call. Of a batch the options get mask, start and lengths, and positions or token
--- types where the rules know them.
--- @param who string  for messages
--- @param ids perilune.Tensor|perilune.Batch|table
--- @param given table?
--- @param rules table
--- @return perilune.Tensor ids  (B, T)
--- @return table o  under our own names
function M.read(who, ids, given, rules)
  local batch = batches.is(ids) and ids or nil
  if batch then ids = batch.ids
  elseif type(ids) == "table" and not peri.is_tensor(ids) then
    ids, given = unpack_table(who, ids, given)
  end
  if not peri.is_tensor(ids) then
    raise(("%s: ids is a %s, expected a tensor (B, T) i64 or a batch"):format(who, type(ids)))
  end
  if ids.ndim ~= 2 or ids:size(2) == 0 then
    raise(("%s: ids has shape %s, expected (B, T)"):format(who, shape_of(ids)))
  end
  local o = M.options(who, given, rules)
  if batch then
    for _, name in ipairs { "mask", "start", "lengths" } do
      if o[name] then raise(("%s: %s is given twice: the batch has its own"):format(who, name)) end
    end
    o.batch = batch
    if rules.token_types then o.token_types = o.token_types or batch.token_type_ids end
  end
  return ids, o
end

-- ---- which columns are tokens ---------------------------------------------------------------------

--- @class perilune.models.Rows
--- @field start perilune.Tensor?  (B) i64: columns before the first token; nil: none in any row
--- @field stop perilune.Tensor?  (B) i64: columns up to the last token; nil: all in every row
--- @field mask perilune.Tensor?  (B, T) bool; nil when every column is a token
--- @field holes boolean  a row has gaps between its first and last token
--- @field batch perilune.Batch?  what the rows are of, where that was given

-- Numbers of a (B) option, checked.
local function numbers(who, name, value, batch, most)
  local list = peri.is_tensor(value) and value:tolist() or value
  if type(list) ~= "table" or #list ~= batch or type(list[1]) ~= "number" then
    raise(("%s: %s has shape %s, expected (%d)"):format(who, name,
      peri.is_tensor(value) and shape_of(value) or ("(%d)"):format(type(list) == "table" and #list or 0), batch))
  end
  local out = {}
  for b, v in ipairs(list) do
    out[b] = math.tointeger(v)
    if not out[b] or v < 0 or v > most then
      raise(("%s: %s of row %d is %s, expected an integer from 0 to %d"):format(who, name, b, tostring(v), most))
    end
  end
  return out
end

local function same(a, b)
  for i = 1, #a do if a[i] ~= b[i] then return false end end
  return true
end

--- A mask (B, T) as bool; raises for another shape and for other values than 0 and 1.
function M.check_mask(who, name, t, batch, time)
  if t.ndim ~= 2 or t:size(1) ~= batch or t:size(2) ~= time then
    raise(("%s: %s has shape %s, expected (%d, %d)"):format(who, name, shape_of(t), batch, time))
  end
  if t.dtype == "bool" then return t end
  if not t:eq(0):logical_or(t:eq(1)):all():item() then
    raise(("%s: %s holds other values than 0 and 1"):format(who, name))
  end
  return t:ne(0)
end

-- From a mask.
local function by_mask(who, name, t, batch, time)
  t = M.check_mask(who, name, t, batch, time)
  if t:all():item() then return { holes = false } end
  local count = t:to("i64"):cumsum(2) -- (B, T)
  local total = count:narrow(2, time, 1) -- (B, 1)
  local before = count:eq(0):to("i64"):sum(2) -- (B)
  local stop = count:lt(total):to("i64"):sum(2):add(total:squeeze(2):gt(0):to("i64")) -- (B)
  stop = stop:maximum(before)
  local rows = { mask = t, holes = not stop:sub(before):eq(total:squeeze(2)):all():item() }
  if before:max():item() > 0 then rows.start = before end
  if stop:min():item() < time then rows.stop = stop end
  return rows
end

-- From a batch.
local function by_batch(batch)
  local rows, left, right = { holes = false, batch = batch }, batch:padding()
  if left then rows.start = batch.start end
  if right then rows.stop = batch.start:add(batch.lengths) end
  if left or right then rows.mask = batch.mask end
  return rows
end

--- Which columns of each row are tokens, from mask, start, lengths or the batch.
--- @param who string
--- @param ids perilune.Tensor  (B, T)
--- @param o table  of M.read
--- @return perilune.models.Rows
function M.rows(who, ids, o)
  local batch, time = ids:size(1), ids:size(2)
  if o.batch then return by_batch(o.batch) end
  if not (o.mask or o.start or o.lengths) then return { holes = false } end
  local starts = o.start and numbers(who, "start", o.start, batch, time)
  local counts = o.lengths and numbers(who, "lengths", o.lengths, batch, time)
  for b = 1, counts and batch or 0 do
    if (starts and starts[b] or 0) + counts[b] > time then
      raise(("%s: row %d begins at %d and has %d tokens, of %d columns"):format(who, b, starts and starts[b] or 0,
        counts[b], time))
    end
  end
  if not o.mask then return by_batch(batches.by_bounds(ids, starts, counts)) end
  local rows = by_mask(who, "mask", o.mask, batch, time)
  if starts or counts then -- both are lists by now
    local firsts = rows.start and rows.start:tolist() or {}
    local lasts = rows.stop and rows.stop:tolist() or {}
    local have, want = {}, {}
    for b = 1, batch do
      firsts[b] = firsts[b] or 0
      have[b], want[b] = (lasts[b] or time) - firsts[b], counts and counts[b] or (lasts[b] or time) - firsts[b]
    end
    if starts and not same(firsts, starts) then raise(who .. ": mask and start do not agree") end
    if not same(have, want) then raise(who .. ": mask and lengths do not agree") end
  end
  return rows
end

--- Where rows begin, which columns are tokens, and a mask where there are gaps, as a context of perilune.nn takes
--- them: o.start, o.tokens, o.mask. Rows of a cache end together, and it remembers where they begin.
--- @param who string
--- @param ids perilune.Tensor  (B, T)
--- @param o table  of M.read; changed
function M.place(who, ids, o)
  local cache, batch, time = o.cache, ids:size(1), ids:size(2)
  if not cache then
    local rows = M.rows(who, ids, o)
    o.start, o.tokens = rows.start, rows.mask
    o.mask = rows.holes and rows.mask:reshape { batch, 1, 1, time } or nil
    return
  end
  local past, begun = cache.length or 0, o.start
  if past == 0 and not (begun and not o.mask and not o.lengths) or o.mask then
    local columns = o.mask and past > 0 and peri.empty({ batch, past + time }, "bool") or ids
    local rows = M.rows(who, columns, o)
    if rows.stop or rows.holes then
      raise(who .. ": with a cache rows end together: padding goes on the left")
    end
    begun = rows.start
  elseif o.batch or o.lengths then
    raise(who .. ": lengths are of whole rows, and the cache has their begin; give start, or a mask of all columns")
  end
  if past == 0 and begun and not cache.start and cache.batch == batch then cache:set_starts(begun) end
  o.start, o.mask = begun or cache.start, nil
end

--- Places of the tokens in their rows: (T), or (B, T) where rows begin later; before a row 0.
--- @param rows perilune.models.Rows
--- @param time integer
--- @return perilune.Tensor
function M.positions(rows, time)
  local at = peri.arange(time)
  if rows.start then at = at:sub(rows.start:unsqueeze(2)):clamp(0) end
  return at
end

--- Positions as rows of a table of `most`: those of padding are brought into it; raises for a token's outside of it.
--- @param who string
--- @param places perilune.Tensor  (T) or (B, T) i64
--- @param tokens perilune.Tensor?  (B, T) bool: where tokens are; nil: everywhere
--- @param most integer
--- @return perilune.Tensor  as places
function M.within(who, places, tokens, most)
  local real = tokens and places:mul(tokens) or places
  local low, high = real:min():item(), real:max():item()
  if low < 0 or high >= most then
    raise(("%s: a token has position %d, the model has %d positions, from 0"):format(who, low < 0 and low or high,
      most))
  end
  return tokens and places:clamp(0, most - 1) or places
end

--- Raises where a row holds no token at all.
function M.need_tokens(who, rows)
  if not rows.mask then return end
  for b, n in ipairs(rows.mask:to("i64"):sum(2):tolist()) do
    if n == 0 then raise(("%s: row %d has no token"):format(who, b)) end
  end
end

--- Prompts as a batch of rows that end together.
--- @param who string
--- @param ids perilune.Tensor  (B, T)
--- @param o table  of M.read
--- @return perilune.Batch
function M.prompts(who, ids, o)
  local rows = M.rows(who, ids, o)
  if rows.holes then
    raise(who .. ": the mask has gaps between tokens; a prompt takes padding on its left or right only")
  end
  local batch = rows.batch
  if not batch then
    local begins, ends, counts = rows.start and rows.start:tolist(), rows.stop and rows.stop:tolist(), nil
    if ends then
      counts = {}
      for b, last in ipairs(ends) do counts[b] = last - (begins and begins[b] or 0) end
    end
    batch = batches.by_bounds(ids, begins, counts)
  end
  local _, counts = batch:bounds()
  for b, n in ipairs(counts) do
    if n == 0 then raise(("%s: row %d has no token"):format(who, b)) end
  end
  return batch:flush_right()
end

return M
