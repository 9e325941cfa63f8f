-- engine.lua - the one scheduler of all generation: rollouts, model:generate, chat. Requests of any length come and go,
-- all sequences that run take each step together as rows of one batch; a row that has ended leaves, and a waiting one
-- enters, between two steps. Every sequence gets the tokens that it would get alone, bit for bit where the model
-- computes in f32. How a token is chosen is a policy's matter: perilune.decode.sampler, perilune.decode.beam.
-- What can be wrong with a request is checked when it is submitted; one that fails later leaves with its error, the
-- others go on. docs/design/engine.md has the reasons.
local peri = require "perilune"
local options = require "perilune.options"
local sampler = require "perilune.decode.sampler"
local beam = require "perilune.decode.beam"
local draws = require "perilune.decode.draw"
local readings = require "perilune.decode.reading"
local sequences = require "perilune.decode.sequence"

local attempt, fail, finish, is_interrupt = sequences.attempt, sequences.fail, sequences.finish, sequences.is_interrupt

local M = {}

local request_defaults = {
  max_new_tokens = options.integer(16, "[1, inf)", "of each sequence, the stop token included"),
  samples = options.integer(1, "[1, inf)", "completions of the prompt"),
  stop = options.value({}, "table", "ids that end a sequence"),
  on_token = options.value(options.none, "callable", "on_token(sequence, id, logprob, top): true ends the sequence"),
  remember = options.boolean(true, "keep what was read in the prefix cache"),
}
for name, value in pairs(sampler.defaults) do request_defaults[name] = value end

--- @class perilune.decode.Engine
--- @field model table
--- @field rows integer  most sequences that run at once
--- @field running integer  sequences that run
--- @field turns integer  draws of all that ran
--- @field deadline integer  the turn in which a sequence is as long as it may be
--- @field cache perilune.models.Cache?  row r belongs to slots[r]
--- @field slots perilune.decode.Sequence[]
--- @field ids perilune.Tensor?  (#slots) i64: the token that each drew last, which the model has not read yet
--- @field undrawn integer  how many of the last slots have not drawn a token yet
--- @field parts table?  how the slots are drawn, while none comes
--- @field failed perilune.decode.Request?  the first that failed in the last step
local Engine = {}
Engine.__index = Engine

-- What is to be closed at the end of a step.
local Running = { __close = function (self) self.engine.stepping = false end }

local engine_rules = {
  rows = options.integer(8, "[1, inf)", "sequences that run at once"),
  prefix_cache = options.value(options.none, "table", "of perilune.decode.prefix_cache"),
  prefill_chunk = options.integer(512, "[1, inf)", "most tokens of a prompt that are read at once"),
  wait = options.integer(1, "[1, inf)", "rows that are free before waiting prompts enter beside running ones"),
}

--- @param model table  a causal model, or what offers cache, forward and logits as one
--- @param opts table?
--- @return perilune.decode.Engine
function M.new(model, opts)
  local o = options.fill("engine", opts, engine_rules)
  local base = require "perilune.models.base" -- models have a method that needs the engine
  local why = base.no_causal(model)
  if why then error("engine: " .. why, 2) end
  local self = setmetatable({ model = model, rows = o.rows, prefix_cache = o.prefix_cache, chunk = o.prefill_chunk,
    wait = o.wait, context = base.context_length(model), queue = {}, first = 1, last = 0, running = 0,
    slots = {}, entered = {}, undrawn = 0, turns = 0, deadline = math.huge, changed = false, unfinished = false,
    stepping = false }, Engine)
  self.guard = setmetatable({ engine = self }, Running)
  return self
end
options.declare(M.new, { "model" }, engine_rules)

--- Have each draw told, before the sequences take their tokens: fn(sequences, ids (R) i64, logprobs (R) f32, turns,
--- kept (R, V) bool or nil), where sequence s is given its token turns - s.entered. The tensors are the listener's, who
--- releases them once the
--- engine takes no more steps.
--- @param fn function
function Engine:listen(fn) self.record = fn end

--- A to-be-closed engine forgets its requests.
function Engine:__close()
  self.stepping = false
  self:reset()
end

-- ---- asking -------------------------------------------------------------------------------------

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

-- Put a request of n sequences that a policy chooses tokens for into the queue. most: tokens of each; together: they
-- enter as one.
local function enqueue(self, request, n, policy, most, together)
  request.sequences, request.done, request.left, request.waiting = {}, false, n, n
  request.engine, request.policy, request.together = self, policy, together
  for k = 1, n do
    request.sequences[k] = { request = request, index = k, most = most, ended = false }
  end
  self.last = self.last + 1
  self.queue[self.last] = request
  return request
end

--- Ask for completions of a prompt. Nothing happens before step(); what is wrong with it raises here.
--- @param ids integer[]  the prompt, at least one token
--- @param opts table?  max_new_tokens (16), samples (1), stop, on_token, remember (true), and those of
--- perilune.decode.sampler
--- @return perilune.decode.Request
function Engine:submit(ids, opts)
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
  local request = enqueue(self, { ids = ids, opts = o }, o.samples, sampler,
    math.min(o.max_new_tokens, self.context - #ids))
  for k, s in ipairs(request.sequences) do
    s.row, s.tokens, s.logprobs = sampler.row(o, ids, o.stop, k), {}, {}
    s.top = o.top_logprobs > 0 and {} or nil
  end
  return request
end

--- Ask for completions of the prompts of a batch, whose options were checked.
--- @param batch perilune.Batch  rows that end together
--- @param o table  complete options of perilune.decode.generate; all prompts share them
--- @param stream table?  { seed =, offset = }: where o has no seed, row r of all (from 0) draws from block r of it
--- @param earlier table[]?  of each row what it goes on from, { number = row of all, drawn = tokens that it has drawn
--- }: its stream goes on behind these, and it is one sequence
--- @return perilune.decode.Request[]  one for each row of the batch
function Engine:submit_batch(batch, o, stream, earlier)
  local beams, requests = o.num_beams > 1, {}
  local prompts = (o.repetition_penalty ~= 1) and batch:unpad() or {}
  for b = 1, #batch do
    local prompt = prompts[b] or {}
    local before = earlier and earlier[b]
    local n = beams and o.num_beams or before and 1 or o.samples
    local request = enqueue(self, { batch = batch, place = b, opts = o }, n, beams and beam or sampler,
      o.max_new_tokens, beams)
    requests[b] = request
    local search = beams and beam.search(o, prompt) or nil
    for k, s in ipairs(request.sequences) do
      local nth = before and before.number or (b - 1) * n + k
      s.number = nth
      if search then s.row, search.slots[k] = search, s
      else
        s.row = sampler.row(o, prompt, o.stop, nth, stream)
        if before then s.row.offset = s.row.offset + before.drawn end
        s.top = o.top_logprobs > 0 and {} or nil
      end
    end
  end
  return requests
end

-- ---- the life of a sequence ---------------------------------------------------------------------

-- The n-th token was drawn. Ends the sequence where it has to.
local function take(s, n, id, logp, top)
  if s.tokens then s.tokens[n], s.logprobs[n] = id, logp end
  if s.top then s.top[n] = top end
  local on_token = s.request.opts.on_token
  local ended = s.row:accept(id)
  local stopped = on_token and on_token(s, id, logp, top)
  if s.ended then return end -- cancelled by on_token
  if ended or stopped then finish(s, "stop") end
end

-- ---- rows ---------------------------------------------------------------------------------------

local function forget_parts(self)
  draws.release(self.parts)
  self.parts = nil
end

-- The tokens that the rows drew last; heard: the tensor is a listener's.
local function set_ids(self, ids, heard)
  if self.ids and not self.heard then self.ids:release() end
  self.ids, self.heard = ids and (heard and ids or peri.keep(ids)), heard
end

-- No rows at all.
local function clear(self)
  forget_parts(self)
  set_ids(self, nil)
  if self.cache then self.cache:release() end
  self.slots, self.cache, self.running, self.undrawn = {}, nil, 0, 0
  self.settling, self.before, self.committing = nil, nil, nil
end

-- Some rows are left: from[r] is the one that becomes row r.
local function keep(self, from)
  local slots, index = {}, peri.tensor(from, "i64"):sub(1)
  for r, old in ipairs(from) do slots[r] = self.slots[old] end
  self.slots, self.running = slots, #slots
  set_ids(self, self.ids:index_select(index, 1))
  local parts = self.parts
  if parts and #parts == 1 and not parts.order and parts[1].keep then parts[1]:keep(from, index)
  else forget_parts(self) end
end

-- Rows that ended leave: the last rows take their places. Rows that go on from others get what these have read.
local function leave(self)
  if not self.changed then return end
  self.changed = false
  local slots, live, row_of = self.slots, 0, nil
  for _, s in ipairs(slots) do
    if not s.ended then live = live + 1 end
    if s.source then row_of = row_of or {} end
  end
  if live == 0 then return self.cache and clear(self) end
  if live == #slots and not row_of then return end
  for r, s in ipairs(row_of and slots or {}) do row_of[s] = r end
  local from, rows, tail = {}, {}, #slots
  for r = 1, live do
    from[r] = r
    if slots[r].ended then
      while slots[tail].ended do tail = tail - 1 end
      from[r], tail = tail, tail - 1
    end
    local s = slots[from[r]]
    rows[r] = s.source and row_of[s.source] or from[r]
    s.source = nil
  end
  self.cache:select_rows(rows)
  if live < #slots then keep(self, from) end
end

-- How many more columns a batch may want, to make room for them at once.
local function ahead(self, list, length)
  local most = 1
  for _, s in ipairs(list) do most = math.max(most, s.most - (s.entered and self.turns - s.entered or 0)) end
  return math.min(most, math.max(256, length))
end

-- The requests at the head of the queue of which sequences enter now, and how many.
local function choose(self)
  local list, counts, free = {}, {}, math.max(0, self.rows - #self.slots)
  for i = self.first, self.last do
    local request = self.queue[i]
    local n = request.done and 0 or request.together and request.waiting or math.min(request.waiting, free)
    local alone = request.together and #self.slots == 0 and #list == 0 -- more beams than rows
    if not request.done and request.waiting > 0 and (n == 0 or n > free) and not alone then break end
    list[#list + 1], counts[#counts + 1], free = request, n, math.max(0, free - n)
  end
  return list, counts
end

-- Whether as many rows are free as waiting prompts are to wait for.
local function may_enter(self)
  if self.first > self.last then return false end
  if #self.slots == 0 then return true end
  local free, waiting = self.rows - #self.slots, 0
  for i = self.first, self.last do
    waiting = waiting + self.queue[i].waiting
    if waiting >= self.wait then break end
  end
  return free > 0 and free >= math.min(self.wait, waiting)
end

-- Sequences of requests that were read together become rows behind those that run.
local function append(self, requests, counts)
  if #requests == 0 then return end
  local rows, slots = {}, table.move(self.slots, 1, #self.slots, 1, {})
  for i, request in ipairs(requests) do
    local first = #request.sequences - request.waiting
    for k = 1, counts[i] do rows[#rows + 1], slots[#slots + 1] = request.at, request.sequences[first + k] end
  end
  local reading, cache = requests[1].reading, self.cache
  local columns = reading.cache.length
  local room = columns + ahead(self, requests[1].sequences, columns)
  if not cache then
    cache = self.model:cache(#rows, room)
    self.cache = cache
    cache:select_rows {}
  elseif columns >= cache.room then cache:reserve(room) end
  cache:append_rows(reading.cache, rows, math.min(self.rows, 2 * cache.capacity))
  self.undrawn, self.slots, self.running = self.undrawn + #rows, slots, #slots
  for i, request in ipairs(requests) do request.waiting = request.waiting - counts[i] end
  forget_parts(self)
end

-- Waiting prompts are read and become rows.
local function enter(self)
  local list, counts = choose(self)
  readings.read(self, list)
  local i = 1
  while i <= #list do
    local requests, numbers, reading = {}, {}, list[i].reading
    while i <= #list and list[i].reading == reading do
      if reading and not list[i].done then
        requests[#requests + 1], numbers[#numbers + 1] = list[i], counts[i]
      end
      i = i + 1
    end
    local ok, message = pcall(append, self, requests, numbers)
    if not ok then
      if is_interrupt(message) then error(message, 0) end
      for _, request in ipairs(requests) do fail(request, message) end
      if self.cache and self.cache.torn then error(message, 0) end
    end
  end
  while self.first <= self.last and (self.queue[self.first].done or self.queue[self.first].waiting == 0) do
    local request = self.queue[self.first]
    if request.done then readings.let_go(request) else self.entered[#self.entered + 1] = request end
    self.queue[self.first] = nil
    self.first = self.first + 1
  end
end

-- ---- a draw -------------------------------------------------------------------------------------

-- The sequences take what was drawn. Where this was interrupted, it goes on behind the sequence it had come to.
local function settle(self)
  local t, turns = self.settling, self.turns
  local list, ids, stop = t.list, t.ids, t.stop
  if not stop then
    for i = t.at + 1, #list do
      local s = list[i]
      t.at, t.busy = i, true
      if not s.ended then
        attempt(s.request, take, s, turns - s.entered, ids[i], t.logps and t.logps[i], t.tops and t.tops[i])
      end
      t.busy = false
    end
  elseif next(stop) ~= nil then
    for i = 1, #list do
      if stop[ids[i]] then finish(list[i], "stop") end
    end
  end
  if turns >= self.deadline then
    self.deadline = math.huge
    for _, s in ipairs(self.slots) do
      if turns - s.entered >= s.most then finish(s, "length") end
      if not s.ended then self.deadline = math.min(self.deadline, s.entered + s.most) end
    end
  end
  self.settling = nil
end

-- The streams of parts move on, and rows go on from others.
local function advance(self, parts)
  for _, part in ipairs(parts) do
    part:advance()
    self.changed = self.changed or part.reorders
  end
end

-- Draw the next token of the rows from `first` on.
local function draw(self, first, logits)
  local list = first == 1 and self.slots or table.move(self.slots, first, #self.slots, 1, {})
  local parts = first == 1 and self.parts or draws.parts(list, self.turns)
  if first == 1 then self.parts = parts end
  local ids, logp, tops, drawn, apart, kept = draws.draw(parts, list, logits, self.turns)
  local t = { list = list, at = 0, tops = tops, stop = parts.stop, logps = parts.listed and logp:tolist() or nil }
  if not t.stop or next(t.stop) ~= nil then t.ids = ids:tolist() end -- else nobody looks at them here
  if self.record then peri.keep(ids, logp) end
  self.committing = true -- from here on what was drawn counts
  advance(self, drawn)
  if apart then advance(self, apart) end
  set_ids(self, first == 1 and ids or peri.cat({ self.ids, ids }, 1), first == 1 and self.record ~= nil)
  if self.undrawn > 0 then
    for _, s in ipairs(list) do
      s.entered = self.turns - 1
      self.deadline = math.min(self.deadline, s.entered + s.most)
    end
  else self.turns = self.turns + 1 end
  self.undrawn, self.before, self.settling, self.committing = 0, nil, t, nil
  draws.release(apart)
  if first > 1 then draws.release(parts)
  elseif apart then forget_parts(self) end
  if self.record then self.record(list, ids, logp, self.turns, kept) end
  settle(self)
end

-- The first token of rows that have just entered, by the scores that reading their prompts gave.
local function draw_first(self)
  local first, pieces = #self.slots - self.undrawn + 1, {}
  local i = first
  while i <= #self.slots do
    local reading, rows = self.slots[i].request.reading, {}
    while i <= #self.slots and self.slots[i].request.reading == reading do
      rows[#rows + 1] = self.slots[i].request.at - 1
      i = i + 1
    end
    local same = #rows == reading.logits:size(1)
    for r, row in ipairs(rows) do same = same and row == r - 1 end
    pieces[#pieces + 1] = same and reading.logits or reading.logits:index_select(peri.tensor(rows, "i64"), 1)
  end
  draw(self, first, #pieces == 1 and pieces[1] or peri.cat(pieces, 1))
  for _, request in ipairs(self.entered) do readings.let_go(request) end
  self.entered = {}
end

-- Keep what a sequence has read beyond its prompt for what may continue it.
local function remember(self, s, row)
  local request = s.request
  local n = self.cache:row_length(row) -- all but the token drawn last
  local ids = table.move(request.ids, 1, #request.ids, 1, {})
  table.move(s.tokens, 1, n - #request.ids, #request.ids + 1, ids)
  self.prefix_cache:put(ids, self.cache:copy_row(row, n))
end

-- Room for one more column.
local function make_room(self)
  local cache = self.cache
  if cache.length < cache.room then return end
  local unused = cache.length
  for _, start in ipairs(cache:starts()) do unused = math.min(unused, start) end
  if unused * 4 >= cache.room then cache:compact()
  else cache:reserve(cache.length + ahead(self, self.slots, cache.length)) end
end

-- All rows read the token drawn last and draw the next.
local function decode(self)
  make_room(self)
  local cache, slots = self.cache, self.slots
  self.before = cache.length
  local hidden = self.model:forward(self.ids:unsqueeze(2), { cache = cache, start = cache.start }):select(2, -1)
  draw(self, 1, self.model:logits(hidden))
  for row, s in ipairs(self.prefix_cache and slots or {}) do
    local o = s.request.opts
    if s.ended and s.reason ~= "error" and o.remember and o.samples == 1 then
      attempt(s.request, remember, self, s, row)
    end
  end
end

-- ---- steps --------------------------------------------------------------------------------------

-- What all share has failed: nobody who runs can go on, those who wait can.
local function give_up(self, message)
  for _, s in ipairs(self.slots) do
    fail(s.request, message)
    readings.let_go(s.request)
  end
  self.entered = {}
  clear(self)
end

-- The last step was interrupted: begin from what it had settled.
local function recover(self)
  local t, cache = self.settling, self.cache
  if t then
    if t.busy then fail(t.list[t.at].request, "interrupted while its token was taken in") end
    settle(self)
  end
  forget_parts(self)
  if self.committing or cache and (cache.torn or cache.batch ~= #self.slots) then
    give_up(self, "interrupted while its row was moved")
  elseif self.before then cache:truncate(self.before) end
  self.before = nil
end

local function turn(self)
  if self.unfinished then recover(self) end
  self.unfinished = true
  if self.undrawn > 0 then draw_first(self) end
  leave(self)
  if may_enter(self) then enter(self) end
  if self.undrawn > 0 then
    draw_first(self)
    leave(self)
  end
  if #self.slots > 0 then decode(self) end
  self.unfinished = false
end

--- Raise while a step is running: a callback of a request can submit and cancel, and nothing that steps.
--- @param who string  named in the message
function Engine:need_rest(who)
  if not self.stepping then return end
  options.raise(who .. ": a step is running; a callback can submit and cancel requests, and cannot wait for answers "
    .. "of the same model")
end

local function none_runs(self)
  if not self.changed then return #self.slots == 0 end
  for _, s in ipairs(self.slots) do if not s.ended then return false end end
  return true
end

--- Read waiting prompts into free rows and let every running sequence make one token; the first one comes with the
--- reading of the prompt.
--- @return boolean more  whether there is anything left to do
function Engine:step()
  self:need_rest "step"
  self.stepping, self.failed = true, nil
  local running <close> = self.guard -- luacheck: ignore 211
  local _ <close> = peri.no_grad()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local ok, message = pcall(turn, self)
  if not ok then
    if is_interrupt(message) then error(message, 0) end
    give_up(self, message)
    self.unfinished = false
  end
  local idle = none_runs(self)
  if idle then clear(self) end
  return not idle or self.first <= self.last
end

--- Step until everything is done.
function Engine:run()
  while self:step() do end -- luacheck: ignore 542
end

--- End a request's sequences as they are. Their rows are free with the next step, and the memory of the batch at once
--- where nothing else runs.
--- @param request perilune.decode.Request
function Engine:cancel(request)
  for _, s in ipairs(request.sequences) do finish(s, "cancelled") end
  if self.stepping then return end
  if request.waiting > 0 and self.undrawn == 0 then readings.let_go(request) end
  if none_runs(self) then clear(self) end
end

--- Forget all requests and give the memory of the batch back; the prefix cache stays.
function Engine:reset()
  self:need_rest "reset"
  local requests = {}
  for i = self.first, self.last do requests[self.queue[i]] = true end
  for _, s in ipairs(self.slots) do requests[s.request] = true end
  for _, request in ipairs(self.entered) do requests[request] = true end
  for request in pairs(requests) do
    for _, s in ipairs(request.sequences) do finish(s, "cancelled") end
    readings.let_go(request)
  end
  self.queue, self.first, self.last, self.entered, self.unfinished = {}, 1, 0, {}, false
  clear(self)
end

return M
