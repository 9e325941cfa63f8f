-- reading.lua - prompts on their way into the batch of perilune.decode.engine: read once for all samples, the rows of a
-- batch in one pass, single ones with what the prefix cache knows.
local peri = require "perilune"
local prefix_cache = require "perilune.decode.prefix_cache"
local sequences = require "perilune.decode.sequence"

local M = {}

--- Prompts that were read: keys and values, and the scores of what comes next. Belongs to the requests whose sequences
--- have not all drawn their first token.
--- @class perilune.decode.Reading
--- @field cache perilune.models.Cache
--- @field logits perilune.Tensor  (rows of the cache, V)
--- @field users integer
--- @field shared boolean?  the cache is the prefix cache's, too

--- A request needs its reading no more.
--- @param request perilune.decode.Request
function M.let_go(request)
  local reading = request.reading
  request.reading = nil
  if not reading then return end
  reading.users = reading.users - 1
  if reading.users > 0 then return end
  reading.logits:release()
  local cache = reading.cache
  cache.pinned = nil
  if cache.orphan or not reading.shared then cache:release() end
end

-- Read a prompt. The prefix cache has it from now on, for the requests right behind this one.
local function read_alone(self, request)
  local shared = self.prefix_cache
  local cache, last, known = prefix_cache.read(shared, self.model, request.ids, self.chunk)
  local ok, logits = pcall(self.model.logits, self.model, last)
  if not ok then
    cache:release()
    error(logits, 0)
  end
  request.cached_tokens, request.at = known, 1
  request.reading = { cache = cache, logits = peri.keep(logits), users = 1 }
  if shared and request.opts.remember then
    request.reading.shared, cache.pinned = true, true
    shared:put(request.ids, cache)
  end
end

local CHUNKS <const> = 8 -- so many times the tokens of one prompt are read at once of a batch

-- Read rows of a batch, which they are in order, in one pass.
local function read_part(self, requests, batch)
  local n, places = #requests, {}
  for i, request in ipairs(requests) do places[i] = request.place end
  local cache = self.model:cache(n, batch.ids:size(2))
  local ok, logits = pcall(function ()
    if batch:padding() then cache:set_starts((batch:bounds())) end
    if self.model.tagged then cache.tags = places end
    return peri.keep(self.model:logits(self.model:forward(batch.ids, { cache = cache }):select(2, -1)))
  end)
  if not ok then
    cache:release()
    error(logits, 0)
  end
  local reading = { cache = cache, logits = logits, users = n }
  for i, request in ipairs(requests) do request.reading, request.at = reading, i end
end

-- Read rows of a batch, so many at a time that a pass has no more tokens than there is room for: what it works with
-- stays small however many rows there are. Rows do not depend on each other, so the numbers are those of one pass.
local function read_together(self, requests)
  local n, batch = #requests, requests[1].batch
  if n < #batch then
    local places = {}
    for i, request in ipairs(requests) do places[i] = request.place end
    batch = batch:select(places):flush_right()
  end
  local most = math.max(1, CHUNKS * self.chunk // batch.ids:size(2))
  if most >= n then return read_part(self, requests, batch) end
  for first = 1, n, most do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local part, places = {}, {}
    for i = first, math.min(first + most - 1, n) do part[#part + 1], places[#places + 1] = requests[i], i end
    read_part(self, part, batch:select(places))
  end
end

--- Read the prompts of requests that have not been read. Those of a batch are read together.
--- @param self perilune.decode.Engine
--- @param requests perilune.decode.Request[]
function M.read(self, requests)
  local batches, of = {}, {}
  for _, request in ipairs(requests) do
    if not (request.done or request.reading) then
      local batch = request.batch
      if not batch then sequences.attempt(request, read_alone, self, request)
      elseif of[batch] then table.insert(of[batch], request)
      else of[batch], batches[#batches + 1] = { request }, batch end
    end
  end
  for _, batch in ipairs(batches) do
    local ok, message = pcall(read_together, self, of[batch])
    if not ok then
      if sequences.is_interrupt(message) then error(message, 0) end
      for _, request in ipairs(of[batch]) do sequences.fail(request, message) end
    end
  end
end

return M
