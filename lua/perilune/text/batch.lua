-- batch.lua - texts or lists of ids as one rectangle for a model: the ids, which of them are tokens,
-- where each row begins and how long it is. A tokenizer makes one, a model takes it whole:
--   local hidden = model:forward(tok:batch { "a text", "another one" })
-- A row gives what it would give alone, on whichever side it is padded.
local peri = require "perilune"
local options = require "perilune.options"

local M = {}

--- Ids and token types can be set to others of the same shape, as to mask some; the rest belongs together.
--- @class perilune.Batch
--- @field ids perilune.Tensor  (B, T) i64; also input_ids
--- @field mask perilune.Tensor  (B, T) bool, true on tokens; also attention_mask
--- @field lengths perilune.Tensor  (B) i64, tokens of each row
--- @field start perilune.Tensor  (B) i64, columns of padding before each row
--- @field positions perilune.Tensor  (B, T) i64, each token's place in its row; also position_ids
--- @field token_type_ids perilune.Tensor?  (B, T) i64, of a batch of pairs
--- @field side "left"|"right"  where the padding is
--- @field truncated integer  texts that were cut
local Batch = { __name = "batch" }

-- Under these keys: the fields, so that setting one is seen; and where rows begin and how long they are, as lists,
-- which most batches are made from: whoever decides by them reads no tensor. What follows from them is made when it
-- is first asked for.
local FIELDS, BEGINS, COUNTS = {}, {}, {}

local function new(ids, begins, counts, side, more)
  local own = { ids = ids, side = side, truncated = 0 }
  for k, v in pairs(more or {}) do own[k] = v end
  return setmetatable({ [FIELDS] = own, [BEGINS] = begins, [COUNTS] = counts }, Batch)
end

local other_names = { input_ids = "ids", attention_mask = "mask", position_ids = "positions",
                      token_types = "token_type_ids" }
local fields = { "ids", "mask", "lengths", "start", "positions", "token_type_ids", "side", "truncated", "input_ids",
                 "attention_mask", "position_ids" }
local methods, derived = {}, {}

function derived.start(self) return peri.tensor((self:bounds()), "i64") end

function derived.lengths(self)
  local _, counts = self:bounds()
  return peri.tensor(counts, "i64")
end

function derived.mask(self)
  local _ <close> = peri.no_grad()
  local columns, left, right = peri.arange(self.ids:size(2)), self:padding()
  local begun = (left or not right) and columns:ge(self.start:unsqueeze(2)) or nil -- (B, T)
  local going = right and columns:lt(self.start:add(self.lengths):unsqueeze(2)) or nil
  return begun and going and begun:logical_and(going) or begun or going
end

function Batch:__index(key)
  if methods[key] then return methods[key] end
  local name, own = other_names[key] or key, rawget(self, FIELDS)
  if own[name] ~= nil then return own[name] end
  if derived[name] then
    own[name] = peri.keep(derived[name](self)) -- whatever scope it is first asked for in
    return own[name]
  elseif name == "positions" then
    return peri.arange(self.ids:size(2)):sub(self.start:unsqueeze(2)):clamp(0):mul(self.mask) -- (B, T)
  end
  if name == "token_type_ids" or type(key) ~= "string" or key:find "^_" then return nil end
  error("batch: " .. options.unknown("field", key, fields), 2)
end

function Batch:__newindex(key, value)
  local name, own = other_names[key] or key, rawget(self, FIELDS)
  if name ~= "ids" and name ~= "token_type_ids" then
    error(("batch: %s cannot be set: ids, mask, lengths and start belong together; batch.new(ids, mask) makes another")
      :format(tostring(key)), 2)
  end
  if not peri.is_tensor(value) or options.shape(value) ~= options.shape(own.ids) then
    error(("batch: %s is %s, expected a tensor of shape %s"):format(key, peri.is_tensor(value)
      and "of shape " .. options.shape(value) or "a " .. type(value), options.shape(own.ids)), 2)
  end
  own[name] = value
end

function Batch:__pairs()
  for name in pairs(derived) do local _ = self[name] end
  return next, rawget(self, FIELDS)
end

--- Rows.
function Batch:__len() return self.ids:size(1) end

function Batch:__tostring()
  return ("batch of %d rows, %d columns, padded on the %s"):format(self.ids:size(1), self.ids:size(2), self.side)
end

--- Whether a value is a batch.
--- @param value any
--- @return boolean
function M.is(value) return type(value) == "table" and getmetatable(value) == Batch end

--- Where the rows begin and how many tokens they have; the lists are not to be changed.
--- @return integer[] begins  columns of padding before each row
--- @return integer[] counts  tokens of each row
function methods:bounds()
  local own = rawget(self, FIELDS)
  local begins, counts = rawget(self, BEGINS), rawget(self, COUNTS)
  if not begins then
    begins, counts = own.start:tolist(), own.lengths:tolist()
    rawset(self, BEGINS, begins)
    rawset(self, COUNTS, counts)
  end
  return begins, counts
end

--- On which sides a row has padding.
--- @return boolean left
--- @return boolean right
function methods:padding()
  local begins, counts = self:bounds()
  local time, left, right = self.ids:size(2), false, false
  for b, first in ipairs(begins) do
    left, right = left or first > 0, right or first + counts[b] < time
  end
  return left, right
end

--- The ids of each row without its padding.
--- @return integer[][]
function methods:unpad()
  local begins, counts = self:bounds()
  local out = {}
  for b, row in ipairs(self.ids:tolist()) do
    out[b] = table.move(row, begins[b] + 1, begins[b] + counts[b], 1, {})
  end
  return out
end

-- A batch of other ids with the token types that fn makes of these.
local function like(self, ids, begins, counts, fn)
  local types = rawget(self, FIELDS).token_type_ids
  return new(ids, begins, counts, self.side, { token_type_ids = types and fn(types) })
end

--- Some of the rows as a batch of their own; the tensors are views.
--- @param from integer  the first, from 1
--- @param n integer
--- @return perilune.Batch
function methods:rows(from, n)
  local begins, counts = self:bounds()
  local function part(t) return t:narrow(1, from, n) end
  return like(self, part(self.ids), table.move(begins, from, from + n - 1, 1, {}),
    table.move(counts, from, from + n - 1, 1, {}), part)
end

--- Some rows in any order; a row may occur more than once.
--- @param rows integer[]|perilune.Tensor  a list that counts from 1, or (n) i64 that counts from 0
--- @return perilune.Batch
function methods:select(rows)
  local begins, counts = self:bounds()
  local at, b, c = rows, {}, {}
  if not peri.is_tensor(rows) then at = peri.tensor(rows, "i64"):sub(1)
  else
    rows = rows:tolist()
    for r, row in ipairs(rows) do rows[r] = row + 1 end
  end
  for r, row in ipairs(rows) do b[r], c[r] = begins[row], counts[row] end
  local function part(t) return t:index_select(at, 1) end
  return like(self, part(self.ids), b, c, part)
end

--- The first columns: rows end there at the latest. The tensors are views.
--- @param n integer
--- @return perilune.Batch
function methods:columns(n)
  local begins, counts = self:bounds()
  local b, c = {}, {}
  for r, first in ipairs(begins) do
    b[r] = math.min(first, n)
    c[r] = math.min(first + counts[r], n) - b[r]
  end
  local function part(t) return t:narrow(2, 1, n) end
  return like(self, part(self.ids), b, c, part)
end

--- The same rows, all of which end with the last column, and one begins with the first.
--- @return perilune.Batch
function methods:flush_right()
  local begins, counts = self:bounds()
  local time, least, right, b = self.ids:size(2), math.huge, false, {}
  for r, n in ipairs(counts) do
    b[r] = time - n
    least, right = math.min(least, b[r]), right or begins[r] ~= b[r]
  end
  if not right and least == 0 then return self end
  local shift = right and peri.tensor(b, "i64"):sub(self.start):unsqueeze(2) -- (B, 1)
  local function part(t)
    if shift then t = t:gather(peri.arange(time):sub(shift):clamp(0), 2) end
    return t:narrow(2, least + 1, time - least):contiguous()
  end
  for r, first in ipairs(b) do b[r] = first - least end
  local out = like(self, part(self.ids), b, counts, part)
  rawget(out, FIELDS).side = "left"
  return out
end

--- Rows that go on with more tokens: each row `n` times, and behind its last column what comes then.
--- @param tokens perilune.Tensor  (B * n, N) i64
--- @param counts integer[]  how many of the N are tokens
--- @param n integer
--- @return perilune.Batch  (B * n, T + N)
function methods:continued(tokens, counts, n)
  local begins, before = self:bounds()
  local ids, b, c = self.ids, {}, {}
  for r, more in ipairs(counts) do
    local from = (r - 1) // n + 1
    b[r], c[r] = begins[from], before[from] + more
  end
  if n > 1 then ids = ids:repeat_interleave(n, 1) end
  return new(peri.cat({ ids, tokens }, 2), b, c, self.side)
end

local pad_rules = {
  side = options.choice("right", { "left", "right" }, "where the padding goes"),
  pad = options.integer(0, "[0, inf)", "id that fills rows up"),
  length = options.integer(options.none, "[1, inf)", "columns; default: of the longest row"),
  multiple_of = options.integer(1, "[1, inf)", "columns are a multiple of this"),
  types = options.value(options.none, "table", "token types, shaped as the lists"),
  truncated = options.integer(0, "[0, inf)", "how many of the lists were cut before"),
}

-- Lists as rows of one width, each from its column on. -- (B, T) i64
local function rectangle(lists, begins, width, pad)
  local rows = {}
  for r, list in ipairs(lists) do
    local row = {}
    for t = 1, begins[r] do row[t] = pad end
    table.move(list, 1, #list, begins[r] + 1, row)
    for t = begins[r] + #list + 1, width do row[t] = pad end
    rows[r] = row
  end
  return peri.tensor(rows, "i64")
end

--- Lists of ids of any lengths as one batch.
--- @param lists integer[][]  at least one
--- @param opts table?  side ("right" or "left"), pad (0), length, multiple_of (1), types (lists of token types),
--- truncated (0)
--- @return perilune.Batch
function M.pad(lists, opts)
  local o = options.fill("batch.pad", opts, pad_rules)
  if type(lists) ~= "table" or #lists == 0 then error("batch.pad: there are no rows", 2) end
  local width, lengths, start = o.length or 1, {}, {}
  for i = 1, #lists do -- a hole in the list is a row that is missing
    local list = lists[i]
    if type(list) ~= "table" then
      error(("batch.pad: row %d is a %s, expected a list of ids"):format(i, type(list)), 2)
    end
    lengths[i] = #list
    if o.length and #list > o.length then
      error(("batch.pad: row %d has %d ids, length is %d"):format(i, #list, o.length), 2)
    end
    width = math.max(width, #list)
  end
  width = (width + o.multiple_of - 1) // o.multiple_of * o.multiple_of
  for i, n in ipairs(lengths) do start[i] = o.side == "left" and width - n or 0 end
  return new(rectangle(lists, start, width, o.pad), start, lengths, o.side,
    { truncated = o.truncated, token_type_ids = o.types and rectangle(o.types, start, width, 0) })
end
options.declare(M.pad, { "lists" }, pad_rules)

--- A batch of ids that are padded already.
--- @param ids perilune.Tensor  (B, T) i64
--- @param mask perilune.Tensor?  (B, T) bool, true on tokens, which are one run in each row; default all
--- @return perilune.Batch
function M.new(ids, mask)
  if not (peri.is_tensor(ids) and ids.ndim == 2) then error("batch.new: ids are no tensor (B, T)", 2) end
  local rows, time = ids:size(1), ids:size(2)
  mask = (mask or peri.ones(ids.shape, "bool")):to("bool")
  if mask.ndim ~= 2 or mask:size(1) ~= rows or mask:size(2) ~= time then
    error(("batch.new: mask has shape %s, expected (%d, %d)"):format(options.shape(mask), rows, time), 2)
  end
  local count = mask:to("i64"):cumsum(2)
  local lengths, start = count:select(2, time):contiguous(), count:eq(0):to("i64"):sum(2)
  local run = peri.arange(time):ge(start:unsqueeze(2))
    :logical_and(peri.arange(time):lt(start:add(lengths):unsqueeze(2)))
  if not run:eq(mask):all():item() then error("batch.new: the mask has gaps between tokens", 2) end
  local side = start:any():item() and "left" or "right"
  return new(ids, nil, nil, side, { mask = mask, lengths = lengths, start = start })
end

--- A batch of ids that are padded already, by numbers.
--- @param ids perilune.Tensor  (B, T) i64
--- @param begins integer[]?  columns of padding before each row; default none
--- @param counts integer[]?  tokens of each row; default up to the last column
--- @return perilune.Batch
function M.by_bounds(ids, begins, counts)
  local rows, time, left = ids:size(1), ids:size(2), false
  local b, c = {}, {}
  for r = 1, rows do
    b[r] = begins and begins[r] or 0
    c[r], left = counts and counts[r] or time - b[r], left or b[r] > 0
  end
  return new(ids, b, c, left and "left" or "right")
end

-- ---- texts ------------------------------------------------------------------------------------

local text_rules = {
  padding = options.choice(true, { true, false, "longest", "max_length", "do_not_pad" },
    "true and longest: to the longest row; max_length: to max_length; false: rows have to be of one length"),
  truncation = options.choice(false, { true, false, "longest_first", "only_first", "only_second", "do_not_truncate" },
    "cut texts to max_length tokens; of a pair the longer one, the first or the second"),
  max_length = options.integer(options.none, "[1, inf)", "tokens of a row; default: the tokenizer's model_max_length"),
  padding_side = options.choice(options.none, { "left", "right" }, "default: the tokenizer's"),
  truncation_side = options.choice(options.none, { "left", "right" }, "which end is cut; default: the tokenizer's"),
  pad_to_multiple_of = options.integer(options.none, "[1, inf)", "columns are a multiple of this"),
  add_special_tokens = options.boolean(options.none, "the special tokens that the model expects around a text (true)"),
  add_special = options.boolean(options.none, "the same under the name that encode has for it"),
  parse_special = options.boolean(true, "special tokens written in a text are ids"),
  text_pair = options.value(options.none, "table", "second texts, one for each of the first"),
}
M.text_rules = text_rules

-- A tokenizer that ends each text with a token is an encoder's; what generates goes on from the end.
local function side_of(tok)
  if tok.padding_side then return tok.padding_side end
  if not tok.parts then return "left" end
  local parts, ids = tok:parts(), tok:encode "a"
  local last = ids[#ids]
  local ends = parts and parts[#parts].ids or last ~= nil and (last == tok.sep or last == tok.eos)
  return ends and "right" or "left"
end

-- First and second texts of every row; seconds is nil when there are none.
local function split_pairs(texts, pairs_given)
  if type(texts) ~= "table" then
    error(("tokenizer:batch: texts is a %s, expected a list of texts"):format(type(texts)), 4)
  end
  if #texts == 0 then error("tokenizer:batch: there are no texts", 4) end
  local firsts, seconds = {}, {}
  for i = 1, #texts do -- a hole in the list is a text that is missing
    local text = texts[i]
    local a, b = text, pairs_given and pairs_given[i]
    if type(text) == "table" and not pairs_given and #text == 2 then a, b = text[1], text[2] end
    if type(a) ~= "string" or b ~= nil and type(b) ~= "string" then
      error(("tokenizer:batch: text %d is a %s, expected a text or a pair of texts"):format(i,
        type(type(a) ~= "string" and a or b)), 4)
    end
    firsts[i], seconds[i] = a, b
  end
  if pairs_given and #pairs_given ~= #texts then
    error(("tokenizer:batch: text_pair has %d texts for %d"):format(#pairs_given, #texts), 4)
  end
  if next(seconds) == nil then return firsts, nil end
  for i = 1, #firsts do
    if not seconds[i] then error(("tokenizer:batch: text %d is no pair, others are"):format(i), 4) end
  end
  return firsts, seconds
end

-- Special tokens around a text as parts { ids =, type = } and { text = 1, type = }, found by encoding
-- with and without them: that knows of everything that a tokenizer's files say.
local function around(whole, content)
  for at = 0, #whole - #content do
    local same = true
    for k = 1, #content do
      if whole[at + k] ~= content[k] then
        same = false
        break
      end
    end
    if same then
      return table.move(whole, 1, at, 1, {}), table.move(whole, at + #content + 1, #whole, 1, {})
    end
  end
end

-- The parts of a pair: those of the tokenizer's file, else each text as it would stand alone.
local function pair_parts(tok, special, before, behind)
  local parts = special and tok.parts and tok:parts(true)
  if parts then return parts end
  return { { ids = before, type = 0 }, { text = 1, type = 0 }, { ids = behind, type = 0 },
           { ids = before, type = 1 }, { text = 2, type = 1 }, { ids = behind, type = 1 } }
end

-- Tokens that each text of a row may keep under the strategy, as Hugging Face's tokenizers count.
local function shares(n1, n2, room, strategy)
  local over = n1 + (n2 or 0) - room
  if over <= 0 then return n1, n2 end
  if not n2 then
    if strategy == "only_second" then return nil, "only_second: the texts are no pairs" end
    return room
  elseif strategy == "only_first" then
    if n1 <= over then return nil, ("only_first: the second text alone has %d tokens"):format(n2) end
    return n1 - over, n2
  elseif strategy == "only_second" then
    if n2 <= over then return nil, ("only_second: the first text alone has %d tokens"):format(n1) end
    return n1, n2 - over
  end
  local small = math.min(n1, n2)
  local large = small > room and small or math.max(small, room - small)
  if small + large > room then small, large = room // 2, room // 2 + room % 2 end
  if n1 > n2 then return large, small end
  return small, large
end

local function cut(ids, n, side)
  if #ids <= n then return ids end
  return table.move(ids, side == "left" and #ids - n + 1 or 1, side == "left" and #ids or n, 1, {})
end

-- What the options say of lengths: the most tokens of a row (nil: any), whether that is also the width.
local function limits(tok, o, level)
  local truncates = o.truncation and o.truncation ~= "do_not_truncate"
  local full = o.padding == "max_length"
  local most = o.max_length
  if most and not truncates and not full then
    error(("tokenizer:batch: max_length is %d, but neither truncation nor padding = \"max_length\" asks for it")
      :format(most), level + 1)
  end
  if not most and (truncates or full) then
    most = math.tointeger(tok.model_max_length)
    if not most or most > 1 << 24 then
      error("tokenizer:batch: max_length is missing, and the tokenizer's files name no model_max_length", level + 1)
    end
  end
  if o.pad_to_multiple_of and (o.padding == false or o.padding == "do_not_pad") then
    error(("tokenizer:batch: pad_to_multiple_of is %d, but padding is off"):format(o.pad_to_multiple_of), level + 1)
  end
  if full and most % (o.pad_to_multiple_of or 1) ~= 0 then
    error(("tokenizer:batch: max_length is %d, no multiple of pad_to_multiple_of, %d"):format(most,
      o.pad_to_multiple_of), level + 1)
  end
  return most, truncates, full
end

-- Rows of ids, their token types (of pairs), and how many were cut.
local function rows_of(tok, texts, o, most, truncates)
  local special = o.add_special_tokens
  if special == nil then special = o.add_special ~= false end
  local firsts, seconds = split_pairs(texts, o.text_pair)
  local plain = { add_special = false, parse_special = o.parse_special }
  local a = tok:encode_batch(firsts, plain)
  local b = seconds and tok:encode_batch(seconds, plain)
  local whole = special and tok:encode_batch(firsts, { add_special = true, parse_special = o.parse_special }) or a
  local side = o.truncation_side or tok.truncation_side or "right"
  local strategy = o.truncation == true and "longest_first" or o.truncation
  local rows, types, truncated = {}, seconds and {} or nil, 0
  for i, content in ipairs(a) do
    local before, behind = around(whole[i], content)
    if not before then -- a tokenizer whose special tokens change the text: as it stands
      before, content, behind = {}, whole[i], {}
    end
    local parts = seconds and pair_parts(tok, special, before, behind)
      or { { ids = before, type = 0 }, { text = 1, type = 0 }, { ids = behind, type = 0 } }
    local fixed = 0
    for _, part in ipairs(parts) do fixed = fixed + (part.ids and #part.ids or 0) end
    local list = { content, b and b[i] }
    if truncates and #content + (b and #b[i] or 0) + fixed > most then
      if most < fixed then
        error(("tokenizer:batch: max_length is %d, the special tokens alone are %d"):format(most, fixed), 4)
      end
      local n1, n2 = shares(#content, b and #b[i], most - fixed, strategy)
      if not n1 then error(("tokenizer:batch: text %d cannot be cut by %s"):format(i, n2), 4) end
      list, truncated = { cut(content, n1, side), b and cut(b[i], n2, side) }, truncated + 1
    end
    local row, type_row = {}, {}
    for _, part in ipairs(parts) do
      for _, id in ipairs(part.ids or list[part.text]) do
        row[#row + 1], type_row[#type_row + 1] = id, part.type
      end
    end
    rows[i] = row
    if types then types[i] = type_row end
  end
  return rows, types, truncated
end

--- Texts as a batch: what Tokenizer:batch is.
--- @param tok table  a tokenizer: encode, encode_batch
--- @param texts table  texts, or pairs { first, second }
--- @param opts table?
--- @return perilune.Batch
function M.texts(tok, texts, opts)
  local o = options.fill("tokenizer:batch", opts, text_rules, 4)
  if o.add_special ~= nil and o.add_special_tokens ~= nil then
    error("tokenizer:batch: add_special and add_special_tokens are two names of one option", 3)
  end
  local most, truncates, full = limits(tok, o, 3)
  local rows, types, truncated = rows_of(tok, texts, o, most, truncates)
  local longest, over, least = 0, 0, math.huge
  for _, row in ipairs(rows) do
    longest, least = math.max(longest, #row), math.min(least, #row)
    if full and #row > most then over = over + 1 end
  end
  if over > 0 then
    error(("tokenizer:batch: %d of %d texts have more than %d tokens (the longest %d); truncation = true cuts them")
      :format(over, #rows, most, longest), 3)
  end
  if (o.padding == false or o.padding == "do_not_pad") and least ~= longest then
    error(("tokenizer:batch: padding is off and the texts have %d to %d tokens; encode_batch gives lists")
      :format(least, longest), 3)
  end
  return M.pad(rows, { side = o.padding_side or side_of(tok), pad = tok.pad or tok.eos or 0,
    length = full and most or nil, multiple_of = o.pad_to_multiple_of, types = types, truncated = truncated })
end
options.declare(M.texts, { "tok", "texts" }, text_rules)

return require "perilune.names"(M, "perilune.batch")
