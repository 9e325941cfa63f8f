-- batching.lua - continuous batching: requests of any length come and go, all that run take each step
-- together, and a row that is done is taken by the next request at once. Every sequence gets the
-- tokens that it would get alone, bit for bit where the model computes in f32. What can be wrong with a
-- request is checked when it is submitted; one that fails later leaves with its error, the others go on.
local peri = require "perilune"
local options = require "perilune.options"
local base = require "perilune.models.base"
local sampler = require "perilune.decode.sampler"
local prefix_cache = require "perilune.decode.prefix_cache"

local M = {}

local request_defaults = {
  max_new_tokens = options.integer(16, "[1, inf)", "of each sequence, the stop token included"),
  samples = options.integer(1, "[1, inf)", "completions of the prompt"),
  stop = options.value({}, "table", "ids that end a sequence"),
  on_token = options.value(options.none, "callable", "on_token(sequence, id, logprob, top): true ends the sequence"),
  remember = options.boolean(true, "keep what was read in the prefix cache"),
}
for name, value in pairs(sampler.defaults) do request_defaults[name] = value end

--- One completion being made. reason: nil while it runs, then "stop" (a stop token, on_token or the
--- end of a constraint), "length" (max_new_tokens or the model's context), "cancelled" or "error".
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
--- @field error any?  what it failed with
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
                        slots = {}, new = {}, taken = {}, stepping = false }, Scheduler)
end

-- Ids that the model has an embedding for; nil for models that do not say.
local function vocabulary(model) return (model.settings or {}).vocab or (model.config or {}).vocab_size end

local function check_ids(self, what, list, level)
  local most = vocabulary(self.model) or math.huge
  for i, id in ipairs(list) do
    if type(id) ~= "number" or not math.tointeger(id) then
      error(("submit: entry %d of %s is %s, expected the id of a token"):format(i, what, tostring(id)), level + 1)
    elseif id < 0 or id >= most then
      error(("submit: entry %d of %s is %d, the model has %s tokens"):format(i, what, id, tostring(most)), level + 1)
    end
  end
end

--- Ask for completions of a prompt. Nothing happens before step(); what is wrong with it raises here.
--- @param ids integer[]  the prompt, at least one token
--- @param opts table?  max_new_tokens (16), samples (1), stop, on_token, remember (true), and those of
--- perilune.decode.sampler
--- @return perilune.models.Request
function Scheduler:submit(ids, opts)
  local o = options.fill("submit", opts, request_defaults)
  local ok, message = pcall(sampler.check, o)
  if not ok then error("submit: " .. message, 2) end
  if #ids == 0 then error("submit: the prompt has no tokens", 2) end
  if #ids >= self.context then
    error(("submit: the prompt has %d tokens, the model's context is %d"):format(#ids, self.context), 2)
  end
  check_ids(self, "the prompt", ids, 2)
  check_ids(self, "stop", o.stop, 2)
  local biased = {}
  for id in pairs(o.logit_bias or {}) do biased[#biased + 1] = id end
  check_ids(self, "logit_bias", biased, 2)
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
  if s.ended then return end
  s.reason, s.ended = reason, true
  s.request.left = s.request.left - 1
  s.request.done = s.request.left == 0
end

-- A request fails with all its sequences.
local function fail(request, message)
  request.error = message == nil and "an error without a message: error(nil)" or message
  for _, s in ipairs(request.sequences) do finish(s, "error") end
end

-- fn(...), whose errors are those of one request; an interrupt is everyone's.
local function attempt(request, fn, ...)
  local ok, message = pcall(fn, ...)
  if ok then return true end
  if type(message) == "string" and message:find "interrupted$" then error(message, 0) end
  fail(request, message)
  return false
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

-- Draw and take the next token of sequences. logits (#list, V). Where a draw fails each row is drawn alone (the
-- same tokens: rows do not depend on each other), so that its error is its own.
local function advance(self, logits, list)
  local rows = {}
  for i, s in ipairs(list) do rows[i] = s.row end
  local ok, got, logp, top = pcall(sampler.draw, logits, rows)
  if not ok and type(got) == "string" and got:find "interrupted$" then error(got, 0) end
  for i, s in ipairs(list) do
    if ok then
      if not s.ended then attempt(s.request, take, self, s, got[i], logp[i], top[i]) end
    else
      attempt(s.request, function ()
        local id, p, t = sampler.draw(logits:narrow(1, i, 1), { s.row })
        if not s.ended then take(self, s, id[1], p[1], t[1]) end
      end)
    end
  end
end

--- End a request's sequences as they are. Their rows are freed with the next step.
--- @param request perilune.models.Request
function Scheduler:cancel(request) -- luacheck: ignore 212
  for _, s in ipairs(request.sequences) do finish(s, "cancelled") end
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

--- Raise while a step is running: a callback of a request can submit and cancel, and nothing that steps.
--- @param who string  named in the message
function Scheduler:need_rest(who)
  if not self.stepping then return end
  options.raise(who .. ": a step is running; a callback can submit and cancel requests, and cannot wait for answers "
    .. "of the same model")
end

--- Forget all requests and give the memory of the batch back; the prefix cache stays.
function Scheduler:reset()
  self:need_rest "reset"
  for i = self.first, self.last do
    finish(self.queue[i], "cancelled")
    let_go(self, self.queue[i].request)
  end
  for _, list in ipairs { self.slots, self.new } do
    for _, s in ipairs(list) do
      finish(s, "cancelled")
      let_go(self, s.request)
    end
  end
  self.queue, self.first, self.last, self.slots, self.new, self.running = {}, 1, 0, {}, {}, 0
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

-- Take sequences from the queue into self.new, read their prompts and draw their first tokens.
local function admit(self, free)
  while self.first <= self.last and #self.new < free do
    local s = self.queue[self.first]
    local request = s.request
    if not s.ended and not request.cache then attempt(request, prefill, self, request) end
    if not s.ended and attempt(request, function () advance(self, self.model:logits(request.last), { s }) end)
      and not s.ended then
      self.new[#self.new + 1] = s
    end
    self.queue[self.first] = nil
    self.first = self.first + 1
    request.waiting = request.waiting - 1
    if request.waiting == 0 then self.taken[#self.taken + 1] = request end
  end
end

-- How many more columns a batch may want, to make room for them at once.
local function ahead(sequences)
  local most = 1
  for _, s in ipairs(sequences) do most = math.max(most, s.request.opts.max_new_tokens - #s.tokens) end
  return math.min(most, 256)
end

-- Rows of sequences that ended are dropped, new ones come behind those that run.
local function arrange(self, new)
  local live, slots = {}, {}
  for row, s in ipairs(self.slots) do
    if not s.ended then live[#live + 1], slots[#slots + 1] = row, s end
  end
  self.running = #live + #new
  if self.running == 0 then
    if self.cache then self.cache:release() end
    self.cache, self.slots = nil, {}
    return
  end
  if not self.cache then
    local longest = 0
    for _, s in ipairs(new) do longest = math.max(longest, #s.request.ids) end
    self.cache = self.model:cache(#new, longest + ahead(new))
  end
  self.cache:select_rows(live)
  for _, s in ipairs(new) do
    self.cache:append_rows(s.request.cache, { 1 }, self.rows)
    slots[#slots + 1] = s
  end
  self.slots = slots
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
  local ids, live, places = {}, {}, {}
  for row, s in ipairs(self.slots) do
    ids[row] = { s.ended and 0 or s.tokens[#s.tokens] }
    if not s.ended then live[#live + 1], places[#places + 1] = s, row end
  end
  if #live == 0 then return end
  local cache = self.cache
  local hidden = self.model:forward(peri.tensor(ids, "i64"), { cache = cache, start = cache.start }):select(2, -1)
  local logits = self.model:logits(hidden)
  if #live < #self.slots then logits = logits:index_select(peri.tensor(places, "i64"):sub(1), 1) end
  advance(self, logits, live)
  for i, s in ipairs(live) do
    if s.ended and s.reason ~= "error" then remember(self, s, places[i]) end
  end
end

-- What all share has failed: nobody who runs can go on, those who wait can.
local function give_up(self, message)
  for _, list in ipairs { self.slots, self.new } do
    for _, s in ipairs(list) do fail(s.request, message) end
  end
  self.slots, self.new, self.running = {}, {}, 0
  if self.cache then self.cache:release() end
  self.cache = nil
end

local Running = { __close = function (self) self.scheduler.stepping = false end }

--- Read waiting prompts into free rows and let every running sequence make one token.
--- @return boolean more  whether there is anything left to do
function Scheduler:step()
  self:need_rest "step"
  self.stepping = true
  local running <close> = setmetatable({ scheduler = self }, Running) -- luacheck: ignore 211
  local _ <close> = peri.no_grad()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local live = 0
  for _, s in ipairs(self.slots) do if not s.ended then live = live + 1 end end
  admit(self, self.rows - live)
  local ok, message = pcall(function ()
    arrange(self, self.new)
    self.new = {}
    for _, request in ipairs(self.taken) do let_go(self, request) end
    self.taken = {}
    if self.running > 0 then decode(self) end
  end)
  if not ok then
    if type(message) == "string" and message:find "interrupted$" then error(message, 0) end
    give_up(self, message)
  end
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
