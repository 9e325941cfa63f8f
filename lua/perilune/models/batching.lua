-- batching.lua - continuous batching: requests of any length come and go, all that run take each step
-- together, and a row that is done is taken by the next request at once. Every sequence gets the
-- tokens that it would get alone, bit for bit where the model computes in f32.
local peri = require "perilune"
local options = require "perilune.options"
local base = require "perilune.models.base"
local sampler = require "perilune.models.sampler"
local prefix_cache = require "perilune.models.prefix_cache"

local M = {}

local request_defaults = {
  max_new_tokens = 16, samples = 1,
  stop = {},                -- ids that end a sequence
  on_token = options.none,  -- on_token(sequence, id, logprob, top): true ends the sequence
  remember = true,          -- keep what was read in the prefix cache
}
for name, value in pairs(sampler.defaults) do request_defaults[name] = value end

--- One completion being made. reason: nil while it runs, then "stop" (a stop token, on_token or the
--- end of a constraint), "length" (max_new_tokens or the model's context) or "cancelled".
--- @class perilune.models.Sequence
--- @field request perilune.models.Request
--- @field index integer  which sample of the request
--- @field tokens integer[]  the stop token included
--- @field logprobs number[]
--- @field top table[]?  with top_logprobs: of each token a list of { id =, logprob = }
--- @field reason string?

--- @class perilune.models.Request
--- @field ids integer[]  the prompt
--- @field sequences perilune.models.Sequence[]
--- @field done boolean
--- @field cached_tokens integer?  prompt tokens that the prefix cache had; nil before it was read

--- @class perilune.models.Scheduler
--- @field model table
--- @field rows integer  most sequences that run at once
--- @field running integer  sequences that run
local Scheduler = {}
Scheduler.__index = Scheduler

-- The most positions of a sequence.
local function context_length(config)
  return config.max_position_embeddings or config.n_positions or config.n_ctx or math.huge
end

--- @param model table  a causal model
--- @param opts table?  rows (8), prefix_cache (none), prefill_chunk (512): most prompt tokens read at once
--- @return perilune.models.Scheduler
function M.new(model, opts)
  local o = options.fill("batching", opts, { rows = 8, prefix_cache = options.none, prefill_chunk = 512 })
  local why = base.no_causal(model)
  if why then error("batching: " .. why, 2) end
  return setmetatable({ model = model, rows = o.rows, prefix_cache = o.prefix_cache, chunk = o.prefill_chunk,
                        context = context_length(model.config or {}), queue = {}, first = 1, last = 0, running = 0,
                        slots = {} }, Scheduler)
end

--- Ask for completions of a prompt. Nothing happens before step().
--- @param ids integer[]  the prompt, at least one token
--- @param opts table?  max_new_tokens (16), samples (1), stop, on_token, remember (true), and those of
--- perilune.models.sampler
--- @return perilune.models.Request
function Scheduler:submit(ids, opts)
  local o = options.fill("submit", opts, request_defaults)
  local ok, message = pcall(sampler.check, o)
  if not ok then error("submit: " .. message, 2) end
  if #ids == 0 then error("submit: the prompt has no tokens", 2) end
  if #ids >= self.context then
    error(("submit: the prompt has %d tokens, the model's context is %d"):format(#ids, self.context), 2)
  end
  for _, name in ipairs { "max_new_tokens", "samples" } do
    if not math.tointeger(o[name]) or o[name] < 1 then
      error(("submit: %s is %s, expected an integer of at least 1"):format(name, tostring(o[name])), 2)
    end
  end
  local request = { ids = ids, opts = o, sequences = {}, done = false, left = o.samples, waiting = o.samples }
  for k = 1, o.samples do
    local s = { request = request, index = k, tokens = {}, logprobs = {}, top = o.top_logprobs > 0 and {} or nil }
    s.row = sampler.row(o, ids, o.stop, k)
    request.sequences[k] = s
    self.last = self.last + 1
    self.queue[self.last] = s
  end
  return request
end

-- ---- the life of a sequence ---------------------------------------------------------------------

local function finish(s, reason)
  s.reason, s.ended = reason, true
  s.request.left = s.request.left - 1
  s.request.done = s.request.left == 0
end

-- A token was drawn. Ends the sequence where it has to.
local function take(self, s, id, logp, top)
  s.tokens[#s.tokens + 1], s.logprobs[#s.logprobs + 1] = id, logp
  if s.top then s.top[#s.top + 1] = top end
  local ended, o = s.row:accept(id), s.request.opts
  local stopped = o.on_token and o.on_token(s, id, logp, top)
  if s.ended then return end -- cancelled by on_token
  if ended or stopped then finish(s, "stop")
  elseif #s.tokens >= o.max_new_tokens or #s.request.ids + #s.tokens >= self.context then finish(s, "length") end
end

--- End a request's sequences as they are. Their rows are freed with the next step.
--- @param request perilune.models.Request
function Scheduler:cancel(request)
  for _, s in ipairs(request.sequences) do
    if not s.ended then finish(s, "cancelled") end
  end
end

-- The prompt's keys and values are no longer needed here.
local function let_go(self, request)
  local cache = request.cache
  request.cache = nil
  if not cache then return end
  request.last:release()
  request.last = nil
  cache.pinned = nil
  if cache.orphan or not (self.prefix_cache and request.opts.remember) then cache:release() end
end

-- Read a prompt. The prefix cache has it from now on, for the requests right behind this one.
local function prefill(self, request)
  local shared = self.prefix_cache
  local cache, last, known = prefix_cache.read(shared, self.model, request.ids, self.chunk)
  request.cache, request.last, request.cached_tokens = cache, peri.keep(last), known
  cache.pinned = true
  if shared and request.opts.remember then shared:put(request.ids, cache) end
end

--- Forget all requests and give the memory of the batch back; the prefix cache stays.
function Scheduler:reset()
  for i = self.first, self.last do
    local s = self.queue[i]
    if not s.ended then finish(s, "cancelled") end
    let_go(self, s.request)
  end
  for _, s in ipairs(self.slots) do
    if not s.ended then finish(s, "cancelled") end
    let_go(self, s.request)
  end
  self.queue, self.first, self.last, self.slots, self.running = {}, 1, 0, {}, 0
  if self.cache then self.cache:release() end
  self.cache = nil
end


-- Keep what a sequence has read beyond its prompt for what may continue it.
local function remember(self, s, row)
  local request = s.request
  if not (self.prefix_cache and request.opts.remember and request.opts.samples == 1) then return end
  local n = self.cache:row_length(row) -- all but the token drawn last
  local ids = table.move(request.ids, 1, #request.ids, 1, {})
  table.move(s.tokens, 1, n - #request.ids, #request.ids + 1, ids)
  self.prefix_cache:put(ids, self.cache:copy_row(row, n))
end

-- ---- rows ---------------------------------------------------------------------------------------

-- Take sequences from the queue, read their prompts and draw their first tokens. Returns those that
-- go on and the requests whose last sequence was taken.
local function admit(self, free)
  local new, taken = {}, {}
  while self.first <= self.last and #new < free do
    local s = self.queue[self.first]
    local request = s.request
    if not s.ended then
      if not request.cache then prefill(self, request) end
      local ids, logp, top = sampler.draw(self.model:logits(request.last), { s.row })
      take(self, s, ids[1], logp[1], top[1])
      if not s.ended then new[#new + 1] = s end
    end
    self.queue[self.first] = nil
    self.first = self.first + 1
    request.waiting = request.waiting - 1
    if request.waiting == 0 then taken[#taken + 1] = request end
  end
  return new, taken
end

-- How many more columns a batch may want, to make room for them at once.
local function ahead(sequences)
  local most = 1
  for _, s in ipairs(sequences) do most = math.max(most, s.request.opts.max_new_tokens - #s.tokens) end
  return math.min(most, 256)
end

-- Rows of sequences that ended go to new ones; the batch gets the size that is needed, or nearly.
local function arrange(self, new)
  local live, dead = {}, {}
  for row, s in ipairs(self.slots) do
    if s.ended then dead[#dead + 1] = row else live[#live + 1] = row end
  end
  self.running = #live + #new
  if #live == 0 then -- a fresh batch
    if self.cache then self.cache:release() end
    self.cache, self.slots = nil, new
    if #new == 0 then return end
    local longest = 0
    for _, s in ipairs(new) do longest = math.max(longest, #s.request.ids) end
    self.cache = self.model:cache(#new, longest + ahead(new))
    for row, s in ipairs(new) do self.cache:insert(row, s.request.cache, 1) end
    return
  end
  local cache, spare = self.cache, #dead - #new
  if spare < 0 or spare * 4 >= #self.slots then -- other rows: all are copied
    local list, slots = {}, {}
    for i, row in ipairs(live) do list[i], slots[i] = row, self.slots[row] end
    dead = {}
    for i = 1, #new do
      dead[i], list[#live + i] = #live + i, live[1]
    end
    cache:select_rows(list)
    self.slots = slots
  end
  local starts = cache:starts()
  for _, row in ipairs(dead) do starts[row] = cache.length end
  cache:set_starts(starts)
  for i, s in ipairs(new) do
    local row = dead[i]
    cache:insert(row, s.request.cache, 1)
    self.slots[row] = s
  end
end

-- Room for one more column.
local function make_room(self)
  local cache, live = self.cache, {}
  if cache.length < cache.room then return end
  local starts, unused = cache:starts(), cache.length
  for row, s in ipairs(self.slots) do
    if not s.ended then live[#live + 1], unused = s, math.min(unused, starts[row]) end
  end
  if unused * 4 >= cache.room then
    for row, s in ipairs(self.slots) do if s.ended then starts[row] = cache.length end end
    cache:set_starts(starts)
    cache:compact()
  else
    cache:reserve(cache.length + math.max(ahead(live), 1))
  end
end

-- All rows read the token drawn last and draw the next.
local function decode(self)
  make_room(self)
  local ids, rows, places = {}, {}, {}
  for row, s in ipairs(self.slots) do
    ids[row] = { s.ended and 0 or s.tokens[#s.tokens] }
    if not s.ended then rows[#rows + 1], places[#places + 1] = s.row, row end
  end
  local cache = self.cache
  local hidden = self.model:forward(peri.tensor(ids, "i64"), { cache = cache, start = cache.start }):select(2, -1)
  local logits = self.model:logits(hidden)
  if #rows < #self.slots then logits = logits:index_select(peri.tensor(places, "i64"):sub(1), 1) end
  local got, logp, top = sampler.draw(logits, rows)
  for i, row in ipairs(places) do
    local s = self.slots[row]
    take(self, s, got[i], logp[i], top[i])
    if s.ended then remember(self, s, row) end
  end
end

--- Read waiting prompts into free rows and let every running sequence make one token.
--- @return boolean more  whether there is anything left to do
function Scheduler:step()
  local _ <close> = peri.no_grad()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local live = 0
  for _, s in ipairs(self.slots) do if not s.ended then live = live + 1 end end
  local new, taken = admit(self, self.rows - live)
  arrange(self, new)
  for _, request in ipairs(taken) do let_go(self, request) end
  if self.running > 0 then decode(self) end
  local ended = true
  for _, s in ipairs(self.slots) do ended = ended and s.ended end
  if ended and self.cache then arrange(self, {}) end
  return not ended or self.first <= self.last
end

--- Step until everything is done.
function Scheduler:run()
  while self:step() do end -- luacheck: ignore 542
end

return M
