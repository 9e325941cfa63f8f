-- beam.lua - beam search as transformers 5 does it: of the continuations of the running beams the
-- best are kept, finished sequences are scored by their log-probability over a power of their length.
-- Prompts do not influence each other. A policy of perilune.decode.engine: the beams of a prompt are rows of the batch,
-- and a beam that goes on from another one asks the engine for its row.
local peri = require "perilune"
local sampler = require "perilune.decode.sampler"

local M = {}

local NEVER <const> = -1e9

--- The state of one prompt.
--- @class perilune.decode.Search
--- @field beams table[]  running ones, best first: tokens, score, row (settings), from (the beam it goes on from)
--- @field finished table[]  tokens and score of finished sequences, best first
--- @field open boolean  whether better ones may be found
--- @field slots table[]  the engine's sequences that are its beams
local Search = {}
Search.__index = Search

--- @param o table  complete options: num_beams, max_new_tokens, length_penalty (score = log-probability / length ^
--- length_penalty, so more than 0 favours long ones), early_stopping (true: done with num_beams finished ones; false:
--- also when by a heuristic no better one is likely; "never": only when none is possible)
--- @param prompt integer[]  ids that the repetition penalty counts
--- @return perilune.decode.Search
function M.search(o, prompt)
  local beams, unused = {}, { seed = 0, offset = 0 }
  for b = 1, o.num_beams do
    beams[b] = { tokens = {}, score = b == 1 and 0 or NEVER, row = sampler.row(o, prompt, o.stop, 1, unused) }
  end
  return setmetatable({ o = o, beams = beams, finished = {}, open = true, length = 0, slots = {} }, Search)
end

--- Whether a beam of it has ended with the token that it drew: all do together.
function Search:accept() return not self.open end

--- The best finished sequences.
--- @param n integer
--- @return table[]  tokens and score; where there are fewer, no tokens
function Search:best(n)
  local list = {}
  for k = 1, n do list[k] = self.finished[k] or { tokens = {}, score = NEVER } end
  return list
end

local function by_score(a, b) return a.score > b.score end

-- A row's settings with the tokens of a beam accepted: constraints and penalties follow the beam.
local function follow(row, id)
  local copy = setmetatable({}, getmetatable(row))
  for k, v in pairs(row) do copy[k] = v end
  if row.penalised then
    copy.seen, copy.seen_list = {}, {}
    for _, seen in ipairs(row.seen_list) do copy:see(seen) end
  end
  if row.counted then
    copy.count = {}
    for k, v in pairs(row.count) do copy.count[k] = v end
  end
  return copy, copy:accept(id)
end

-- What a search is after a step: beams, finished and open. candidates: { score, beam, id } of the best
-- continuations, best first; length: tokens of each.
local function next_of(s, candidates, length)
  local o, running, finished = s.o, {}, table.move(s.finished, 1, #s.finished, 1, {})
  local full = #finished >= o.num_beams and o.early_stopping == true
  for place, c in ipairs(candidates) do
    if c.score < 2 * NEVER then break end -- what a constraint forbids
    local beam = s.beams[c.beam]
    local row, stopped = follow(beam.row, c.id)
    local tokens = table.move(beam.tokens, 1, #beam.tokens, 1, {})
    tokens[#tokens + 1] = c.id
    if stopped or length == o.max_new_tokens then
      -- what lies behind the first num_beams only stands by to keep enough beams running
      if place <= o.num_beams and c.score > NEVER / 2 and not full then
        finished[#finished + 1] = { tokens = tokens, score = c.score / length ^ o.length_penalty }
      end
    elseif #running < o.num_beams then
      running[#running + 1] = { tokens = tokens, score = c.score, row = row, from = c.beam }
    end
  end
  if not full then
    table.sort(finished, by_score)
    for k = #finished, o.num_beams + 1, -1 do finished[k] = nil end
  end
  local first = running[1]
  for k = #running + 1, first and o.num_beams or 0 do -- stands in where too few can go on
    running[k] = { tokens = first.tokens, score = NEVER, row = first.row, from = first.from }
  end
  local open = false
  if first then
    -- can the best running beam still beat the worst finished one? For early_stopping false a heuristic
    local far = o.early_stopping == "never" and o.length_penalty > 0
    local best = first.score / (far and o.max_new_tokens or length) ^ o.length_penalty
    full = #finished >= o.num_beams
    open = best > (full and finished[o.num_beams].score or NEVER) and not (full and o.early_stopping == true)
  end
  return { beams = running, finished = finished, open = open }
end

-- ---- parts of a batch ---------------------------------------------------------------------------

--- Searches with the same options, all their beams.
--- @class perilune.decode.beam.Part
--- @field places integer[]  which rows of the batch: beam by beam
--- @field searches perilune.decode.Search[]
local Part = { reorders = true }
Part.__index = Part

--- @param sequences table[]  row: perilune.decode.Search; all beams of each
--- @param places integer[]  of each in the batch
--- @return perilune.decode.beam.Part[]
function M.parts(sequences, places)
  local by_options, list, at = {}, {}, {}
  for i, s in ipairs(sequences) do
    local search = s.row
    local part = by_options[search.o]
    if not part then
      part = setmetatable({ places = {}, searches = {}, o = search.o }, Part)
      by_options[search.o], list[#list + 1] = part, part
    end
    if not at[search] then
      part.searches[#part.searches + 1], at[search] = search, {}
    end
    at[search][s.index] = places[i]
  end
  for _, part in ipairs(list) do
    for _, search in ipairs(part.searches) do
      table.move(at[search], 1, part.o.num_beams, #part.places + 1, part.places)
    end
  end
  return list
end

function Part:release() end -- luacheck: ignore 212

--- What can be advanced apart from the rest: the beams of each search.
function Part:units()
  local list, n = {}, self.o.num_beams
  for i = 1, #self.searches do list[i] = table.move(self.places, (i - 1) * n + 1, i * n, 1, {}) end
  return list
end

-- The continuations of all beams, best first, for each search. logits (#searches * num_beams, V)
local function best_continuations(logits, searches, o)
  local rows, scores = {}, {}
  for _, s in ipairs(searches) do
    for _, beam in ipairs(s.beams) do rows[#rows + 1], scores[#scores + 1] = beam.row, { beam.score } end
  end
  local x = sampler.process(logits:log_softmax(-1), rows)
  local classes = x:size(2)
  local keep = math.min(math.max(2, 1 + #o.stop) * o.num_beams, o.num_beams * classes)
  x = x:add(peri.tensor(scores, "f32")):reshape { #searches, o.num_beams * classes }
  local values, places = x:topk(keep)
  local list, where = values:tolist(), places:tolist()
  for k in ipairs(searches) do
    for i, score in ipairs(list[k]) do
      local at = where[k][i]
      list[k][i] = { score = score, beam = at // classes + 1, id = at % classes }
    end
  end
  return list
end

--- The next token of each beam. Nothing has changed until advance().
--- @param logits perilune.Tensor  (#searches * num_beams, V)
--- @return perilune.Tensor ids  (#searches * num_beams) i64
function Part:draw(logits)
  local ids = {}
  self.next = {}
  for k, candidates in ipairs(best_continuations(logits, self.searches, self.o)) do
    local s = self.searches[k]
    local after = next_of(s, candidates, s.length + 1)
    self.next[k] = after
    for b = 1, self.o.num_beams do
      local beam = after.beams[b]
      ids[#ids + 1] = beam and beam.tokens[#beam.tokens] or 0
    end
  end
  return peri.tensor(ids, "i64")
end

--- The searches are what draw() made of them, and their rows go on from those of other beams.
function Part:advance()
  for k, s in ipairs(self.searches) do
    local after = self.next[k]
    s.beams, s.finished, s.open, s.length = after.beams, after.finished, after.open, s.length + 1
    for b, beam in ipairs(s.beams) do s.slots[b].source = s.slots[beam.from] end
  end
  self.next = nil
end

return M
