-- prefix_cache.lua - keys and values of texts that a model has read, kept for those that begin alike:
-- the next turn of a chat, further questions behind one system prompt. An entry is a row of its own;
-- a look-up finds the one with the longest common beginning. The least recently used go first.
local peri = require "perilune"
local options = require "perilune.options"

local M = {}

--- @class perilune.models.PrefixCache
--- @field hits integer  prompt tokens that were found
--- @field misses integer  prompt tokens that had to be read
--- @field bytes integer  of all entries
--- @field limit integer  bytes that entries may take together
local PrefixCache = {}
PrefixCache.__index = PrefixCache

--- @param opts table?  bytes (256 MiB), entries (64): the most there may be
--- @return perilune.models.PrefixCache
function M.new(opts)
  local o = options.fill("prefix_cache", opts, { bytes = 256 << 20, entries = 64 })
  return setmetatable({ hits = 0, misses = 0, bytes = 0, limit = o.bytes, most = o.entries, list = {} }, PrefixCache)
end

local function common(a, b, most)
  local n = 0
  while n < most and a[n + 1] == b[n + 1] do n = n + 1 end
  return n
end

-- Versions of the tensors in a table and in its tables.
local function versions(t, depth)
  local sum = 0
  for _, value in pairs(t) do
    if peri.is_tensor(value) then sum = sum + value:version()
    elseif type(value) == "table" and depth > 0 then sum = sum + versions(value, depth - 1) end
  end
  return sum
end

-- Versions of the tensors of an adapter, or of several in one place; `known` has those that were summed already.
local function adapter_versions(adapter, known)
  local whole = adapter.owner or adapter
  if not whole.parameters then
    local sum = 0
    for _, one in ipairs(adapter) do sum = sum + adapter_versions(one, known) end
    return sum
  end
  known[whole] = known[whole] or versions(whole:parameters(), 0) + (whole:is_off() and 0.5 or 0) -- others, when off
  return known[whole]
end

-- What keys and values depend on, as a text that differs when a weight was written or an adapter was
-- written, put on or taken off; and the adapters, which have to live as long as their addresses count.
local function stamp(model)
  local held, sum, known = {}, versions(model:parameters(), 0), {}
  local parts = { sum }
  for _, module in ipairs(model.modules and model:modules() or {}) do
    local adapter = rawget(module, "adapter")
    if adapter and not module.is_head then
      held[#held + 1] = adapter
      parts[#parts + 1] = ("%p:%s"):format(adapter, adapter_versions(adapter, known))
    end
  end
  local prefix = model.prefix
  if type(prefix) == "function" then parts[#parts + 1] = ("%p"):format(held) -- made anew each time: never the same
  elseif prefix then parts[#parts + 1] = ("%p:%d"):format(prefix, versions(prefix, 2)) end
  held[#held + 1] = prefix
  return table.concat(parts, " "), held
end

-- Who still reads a cache has set its `pinned`; it is then theirs to release once `orphan` is set.
local function let_go(cache)
  if cache.pinned then cache.orphan = true
  else cache:release() end
end

local function drop(self, place)
  local entry = table.remove(self.list, place)
  self.bytes = self.bytes - entry.size
  let_go(entry.cache)
end

--- Forget everything.
function PrefixCache:clear()
  while #self.list > 0 do drop(self, #self.list) end
end

--- The longest beginning of a prompt that is known, one token less than the prompt at most.
--- @param model table
--- @param ids integer[]
--- @return integer n  tokens, 0 when there are none
--- @return perilune.nn.Cache? cache  of one row, whose first n positions are meant
function PrefixCache:find(model, ids)
  local now, held = stamp(model)
  if self.model ~= model or self.stamp ~= now then self:clear() end
  self.model, self.stamp, self.held = model, now, held
  local best, place = 0, nil
  for i, entry in ipairs(self.list) do
    local n = common(entry.ids, ids, math.min(#ids - 1, #entry.ids))
    if n > best then best, place = n, i end
  end
  self.hits, self.misses = self.hits + best, self.misses + #ids - best
  if not place then return 0, nil end
  local entry = table.remove(self.list, place)
  table.insert(self.list, 1, entry) -- most recently used first
  return best, entry.cache
end

--- Keep a text. Entries that it continues are given up for it; one that continues it makes it needless.
--- @param ids integer[]  of the positions in the cache
--- @param cache perilune.nn.Cache  of one row with no columns before it; belongs to this from now on
function PrefixCache:put(ids, cache)
  local size = cache:bytes()
  for i = #self.list, 1, -1 do
    local known = self.list[i].ids
    local n = common(known, ids, math.min(#known, #ids))
    if n == #ids then
      let_go(cache)
      return
    elseif n == #known then
      drop(self, i)
    end
  end
  if size > self.limit then
    let_go(cache)
    return
  end
  table.insert(self.list, 1, { ids = ids, cache = cache, size = size })
  self.bytes = self.bytes + size
  while self.bytes > self.limit or #self.list > self.most do drop(self, #self.list) end
end

--- Read a prompt as one row, what is known of it from here.
--- @param model table
--- @param ids integer[]
--- @param chunk integer  most tokens read at once
--- @param self perilune.models.PrefixCache?  without one everything is read
--- @return perilune.nn.Cache cache  one row of #ids positions
--- @return perilune.Tensor last  (1, D) hidden state of the last
--- @return integer known  tokens that did not have to be read
function M.read(self, model, ids, chunk)
  local cache = model:cache(1, #ids)
  local scope <close> = peri.scope()
  local n, from = 0, nil
  local ok, last = pcall(function ()
    if self then n, from = self:find(model, ids) end
    if n > 0 then cache:copy_from(from, 1, n) end
    local last
    for at = n + 1, #ids, chunk do
      local step <close> = peri.scope()
      local part = peri.tensor({ table.move(ids, at, math.min(at + chunk - 1, #ids), 1, {}) }, "i64") -- (1, T)
      last = step:keep(model:forward(part, { cache = cache }):select(2, -1))
    end
    return last:clone()
  end)
  if not ok then
    cache:release()
    error(last, 0)
  end
  return cache, scope:keep(last), n
end

return M
