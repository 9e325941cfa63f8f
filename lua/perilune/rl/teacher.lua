-- teacher.lua - what a teacher says of rows, on disk: its k most likely tokens at each token that is learned, and their
-- log-probabilities. A safetensors file that others can read:
--   settings      (4) i64   version 1, k, vocabulary, rows
--   temperature   (1) f32   that the log-probabilities are of
--   rows.N.tokens     (T) i32    ids of row N, from 1, six digits: what the rest is about
--   rows.N.places     (L) i32    columns of the tokens that are learned, from 0
--   rows.N.ids        (L, k) i32 the teacher's most likely tokens in the place of each, the likeliest first
--   rows.N.logprobs   (L, k) f32 or f16
-- It is written and read row by row.
local peri = require "perilune"
local base = require "perilune.models.base"
local options = require "perilune.options"

local M = {}

local VERSION <const>, CHUNK <const> = 1, 64 -- positions whose logits are held at once

local function name(i, what) return ("rows.%06d.%s"):format(i, what) end

-- Columns of the tokens that are learned, from 1; the first has nothing before it.
local function learned(e)
  local at = {}
  for i = 2, #e.ids do if e.mask[i] ~= 0 then at[#at + 1] = i end end
  return at
end

-- The k most likely tokens at places of a row. -- (L, k) each
local function top(model, ids, places, k, temperature)
  local hidden = model:forward(peri.tensor({ ids }, "i64")):squeeze(1) -- (T, D)
  local before = peri.tensor(places, "i64"):sub(2)
  local rows, tokens, logps = hidden:index_select(before, 1), {}, {}
  for at = 1, #places, CHUNK do
    local some = rows:narrow(1, at, math.min(CHUNK, #places - at + 1))
    local value, id = model:logits(some):div(temperature):log_softmax(-1):topk(k)
    tokens[#tokens + 1], logps[#logps + 1] = id, value
  end
  return peri.cat(tokens, 1), peri.cat(logps, 1)
end

local store_rules = {
  k = options.integer(32, "[1, inf)", "tokens at each place; the others count as one"),
  temperature = options.number(1, "(0, inf)", "that the student will be taught at"),
  dtype = options.choice("f32", { "f32", "f16" }, "of the log-probabilities"),
}

--- Write what a teacher says of examples: its k most likely tokens at each token that is learned, with their
--- log-probabilities. See rl/teacher.lua for the format.
--- @param path string  a .safetensors file
--- @param model table  causal model of perilune.models
--- @param examples table[]  { ids, mask } each, as algo.sft has them
--- @param opts table?
--- @return boolean|nil ok
--- @return string? message
function M.store_teacher(path, model, examples, opts)
  local who = "rl.store_teacher"
  local o = options.fill(who, opts, store_rules)
  options.argument(who, "path", path, "string")
  options.argument(who, "model", model, "table")
  options.argument(who, "examples", examples, "table")
  local why = base.no_causal(model)
  if why then options.raise(("%s: %s"):format(who, why)) end
  local vocabulary = model.settings.vocab
  if o.k > vocabulary then
    options.raise(("%s: k is %d, the vocabulary has %d tokens"):format(who, o.k, vocabulary))
  end
  local list = { { name = "settings", dtype = "i64", shape = { 4 } },
    { name = "temperature", dtype = "f32", shape = { 1 } } }
  local places = {}
  for i, e in ipairs(examples) do
    local at = type(e) == "table" and type(e.ids) == "table" and type(e.mask) == "table" and learned(e) or {}
    if #at == 0 then options.raise(("%s: example %d has no token to learn behind its first"):format(who, i)) end
    places[i] = at
    for what, shape in pairs { tokens = { #e.ids }, places = { #at }, ids = { #at, o.k }, logprobs = { #at, o.k } } do
      list[#list + 1] = { name = name(i, what), dtype = what == "logprobs" and o.dtype or "i32", shape = shape, row = i,
        what = what }
    end
  end
  table.sort(list, function (a, b) return a.name < b.name end)
  local writer <close>, message = peri.safetensors.create(path, list)
  if not writer then return nil, message end
  local _ <close> = peri.no_grad()
  local current, row = nil, {}
  local function of(entry)
    if entry.name == "settings" then return peri.tensor({ VERSION, o.k, vocabulary, #examples }, "i64") end
    if entry.name == "temperature" then return peri.tensor({ o.temperature }, "f32") end
    local e, at = examples[entry.row], places[entry.row]
    if current ~= entry.row then
      current = entry.row
      local ids, logps = top(model, e.ids, at, o.k, o.temperature)
      row = { ids = ids:to "i32", logprobs = logps:to(o.dtype), tokens = peri.tensor(e.ids, "i32"),
        places = peri.tensor(at, "i32"):sub(1) }
    end
    return row[entry.what]
  end
  local scope = peri.scope()
  local i = writer:next()
  while i do
    if list[i].row ~= current then -- what the row before had is let go
      scope:close()
      scope = peri.scope()
    end
    local ok, problem = writer:write(of(list[i]))
    if not ok then
      scope:close()
      return nil, problem
    end
    i = writer:next()
  end
  scope:close()
  return writer:commit()
end
options.declare(M.store_teacher, { "path", "model", "examples" }, store_rules)

--- @class perilune.rl.Teacher
--- @field k integer
--- @field temperature number
--- @field vocabulary integer
--- @field rows integer
local Teacher = {}
Teacher.__index = Teacher

--- What was stored of a row.
--- @param i integer  from 1
--- @param e table?  { ids, mask }: raises unless the row is this one
--- @return table  ids (L, k) i64, logprobs (L, k) f32, temperature: a teacher of loss.distill, at the L tokens that are
--- learned
function Teacher:get(i, e)
  if math.type(i) ~= "integer" or i < 1 or i > self.rows then
    options.raise(("rl.teacher: row %s of %d"):format(tostring(i), self.rows))
  end
  local function read(what) return self._tensors[name(i, what)] end
  if e then
    local tokens, at, mine = read "tokens":tolist(), read "places":tolist(), learned(e)
    local same = #tokens == #e.ids and #at == #mine
    for k, id in ipairs(tokens) do same = same and id == e.ids[k] end
    for k, place in ipairs(at) do same = same and place + 1 == mine[k] end
    if not same then
      options.raise(("%s: row %d is of another text, or of other tokens of it: store what the teacher says of these "
        .. "examples"):format(self.path, i))
    end
  end
  return { ids = read "ids":to "i64", logprobs = read "logprobs":to "f32", temperature = self.temperature }
end

--- Open what rl.store_teacher wrote; rows are read when they are asked for.
--- @param path string
--- @return perilune.rl.Teacher|nil teacher  k, temperature, vocabulary, rows; :get(i)
--- @return string? message
function M.open_teacher(path)
  options.argument("rl.open_teacher", "path", path, "string")
  local tensors, message = peri.safetensors.load(path, { map = true })
  if not tensors then return nil, message end
  local settings, temperature = tensors.settings, tensors.temperature
  if not (settings and temperature) or settings.dtype ~= "i64" or settings:numel() ~= 4 or temperature:numel() ~= 1 then
    return nil, path .. ": it has no settings and temperature of rl.store_teacher"
  end
  local version, k, vocabulary, rows = table.unpack(settings:tolist())
  if version ~= VERSION then return nil, ("%s: version %d, expected %d"):format(path, version, VERSION) end
  for i = 1, rows do
    local function shape(what) return tensors[name(i, what)] and tensors[name(i, what)].shape or {} end
    local places = shape "places"
    for _, what in ipairs { "ids", "logprobs" } do
      local s = shape(what)
      if #places ~= 1 or #s ~= 2 or s[1] ~= places[1] or s[2] ~= k or #shape "tokens" ~= 1 then
        return nil, ("%s: row %d is not whole, or not of k = %d"):format(path, i, k)
      end
    end
  end
  for _, t in pairs(tensors) do peri.keep(t) end
  return setmetatable({ path = path, k = k, vocabulary = vocabulary, rows = rows, temperature = temperature:item(),
    _tensors = tensors }, Teacher)
end

return M
