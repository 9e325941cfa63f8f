-- draw.lua - one draw of all rows of perilune.decode.engine: the rows by policy and settings, each part in one call,
-- and row by row where a part fails, so that an error is one request's own. A policy offers parts(sequences, places) ->
-- parts with
--   places              which rows of the batch, in the order of its results
--   draw(self, logits)  -> ids, logprobs or nil, tops or nil, kept or nil; changes nothing
--   advance(self)       what was drawn counts; a sequence's `source` may name the one whose row it goes on from
--   units(self)         places that can be drawn apart from the rest
--   keep(self, from, index)  (not needed) some rows are left; without it the parts are made anew
--   release(self)       lets go of its tensors
-- and gives each sequence a `row` with accept(self, id) -> whether it has ended.
local peri = require "perilune"
local sequences = require "perilune.decode.sequence"

local M = {}

--- What is known of how rows are drawn: their parts by policy and settings; order: where the results of all parts, one
--- behind the other, belong; stop: the stop tokens of all, where sequences need nothing but to end; listed: a sequence
--- wants log-probabilities.
--- @param list perilune.decode.Sequence[]
--- @param turns integer  of the engine
--- @return table parts
function M.parts(list, turns)
  local by_policy, parts = {}, {}
  for i, s in ipairs(list) do
    local policy = s.request.policy
    s.row.drawn = s.entered and turns - s.entered or 0
    local one = by_policy[policy]
    if not one then
      one = { policy = policy, sequences = {}, places = {} }
      by_policy[policy], by_policy[#by_policy + 1] = one, one
    end
    one.sequences[#one.sequences + 1], one.places[#one.places + 1] = s, i
  end
  local order, n, sorted = {}, 0, true
  for _, one in ipairs(by_policy) do
    for _, part in ipairs(one.policy.parts(one.sequences, one.places)) do
      parts[#parts + 1] = part
      for _, place in ipairs(part.places) do
        n = n + 1
        order[place], sorted = n, sorted and place == n
      end
    end
  end
  if #parts > 1 or not sorted then
    for _, part in ipairs(parts) do part.index = peri.keep(peri.tensor(part.places, "i64"):sub(1)) end
  end
  if not sorted then parts.order = peri.keep(peri.tensor(order, "i64"):sub(1)) end
  parts.stop = list[1].row.stop
  for _, s in ipairs(list) do
    parts.listed = parts.listed or s.tokens ~= nil
    if not s.row.plain or s.tokens or s.top or s.row.stop ~= parts.stop then parts.stop = nil end
  end
  return parts
end

--- Let go of their tensors.
--- @param parts table?
function M.release(parts)
  for _, part in ipairs(parts or {}) do
    part:release()
    if part.index then part.index:release() end
  end
  if parts and parts.order then parts.order:release() end
end

-- What the parts of a draw kept, one below the other, or nil where nothing was cut; each of `of` has its rows in a
-- list,
-- or in its places.
local function joined(kepts, of, classes)
  local any, list = false, {}
  for k, kept in ipairs(kepts) do
    any = any or kept ~= false
    list[k] = kept or peri.ones({ #(of[k].places or of[k]), classes }, "bool")
  end
  return any and peri.cat(list, 1) or nil
end

-- Draw the rows of a part one by one, so that an error is one request's own: the same tokens, for rows do not depend on
-- each other. Returns what part:draw does; drawn gets the parts they were.
local function draw_apart(part, list, logits, turns, drawn)
  local ids, logps, tops, kepts, row = {}, {}, {}, {}, 0
  local units = part:units()
  for _, places in ipairs(units) do
    local members, own = {}, {}
    for k, place in ipairs(places) do
      local s = list[place]
      members[k], own[k] = s, k
      s.row.drawn = s.entered and turns - s.entered or 0
    end
    local request = members[1].request
    local x, n = logits:narrow(1, row + 1, #places), #places
    local got, logp, top, kept
    if not members[1].ended and sequences.attempt(request, function ()
      local one = request.policy.parts(members, own)[1]
      got, logp, top, kept = one:draw(x)
      drawn[#drawn + 1] = one
    end) then
      ids[#ids + 1], logps[#logps + 1] = got, logp or peri.zeros({ n }, logits.dtype)
      for k = 1, n do tops[row + k] = top and top[k] end
      kepts[#kepts + 1] = kept or false
    else ids[#ids + 1], logps[#logps + 1] = peri.zeros({ n }, "i64"), peri.zeros({ n }, logits.dtype)
      kepts[#kepts + 1] = false
    end
    row = row + n
  end
  return peri.cat(ids, 1), peri.cat(logps, 1), tops, joined(kepts, units, logits:size(2))
end

--- The next tokens of rows. Nothing has changed before the parts in drawn and apart move on.
--- @param parts table  of M.parts
--- @param list perilune.decode.Sequence[]
--- @param logits perilune.Tensor  (#list, V)
--- @param turns integer  of the engine
--- @return perilune.Tensor ids  (#list) i64
--- @return perilune.Tensor logprobs  (#list) f32
--- @return table? tops  of rows with top_logprobs
--- @return table drawn  the parts that were drawn: `parts` itself where all were
--- @return table? apart  those of rows that had to be drawn one by one
--- @return perilune.Tensor? kept  (#list, V) bool: what truncation left, where log-probabilities are of that
function M.draw(parts, list, logits, turns)
  if #parts == 1 and not parts.order then
    local part = parts[1]
    local ok, ids, logp, tops, kept = pcall(part.draw, part, logits)
    if ok then return ids, logp or peri.zeros({ #list }, logits.dtype), tops, parts, nil, kept end
  end
  local ids, logps, tops, drawn, apart, kepts = {}, {}, {}, {}, {}, {}
  for p, part in ipairs(parts) do
    local x = part.index and logits:index_select(part.index, 1) or logits
    local ok, got, logp, top, kept = pcall(part.draw, part, x)
    if ok then drawn[#drawn + 1] = part
    elseif sequences.is_interrupt(got) then error(got, 0)
    else got, logp, top, kept = draw_apart(part, list, x, turns, apart) end
    kepts[p] = kept or false
    ids[p], logps[p] = got, logp or peri.zeros({ #part.places }, logits.dtype)
    for k, place in ipairs(top and part.places or {}) do tops[place] = top[k] end
  end
  local all, all_logps, all_kept = peri.cat(ids, 1), peri.cat(logps, 1), joined(kepts, parts, logits:size(2))
  if parts.order then
    all, all_logps = all:index_select(parts.order, 1), all_logps:index_select(parts.order, 1)
    all_kept = all_kept and all_kept:index_select(parts.order, 1)
  end
  return all, all_logps, tops, drawn, apart, all_kept
end

return M
