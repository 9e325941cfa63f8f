-- beam.lua - beam search as transformers 5 does it: of the continuations of the running beams the
-- best are kept, finished sequences are scored by their log-probability over a power of their length.
-- Prompts do not influence each other.
local peri = require "perilune"
local generate = require "perilune.decode.generate"
local sampler = require "perilune.decode.sampler"

local M = {}

local NEVER <const> = -1e9

-- The state of one prompt: running beams and finished sequences, best first.
local function new_search(o, prompt)
  local beams = {}
  for b = 1, o.num_beams do
    beams[b] = { tokens = {}, score = b == 1 and 0 or NEVER, row = sampler.row(o, prompt, o.stop) }
  end
  return { beams = beams, finished = {}, open = true, idle = beams[1].row } -- idle: where no beam is left
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

-- One step of one prompt. candidates: { score, beam, id } of the best continuations, best first.
local function advance(s, o, candidates, length)
  local running, ended = {}, {}
  for place, c in ipairs(candidates) do
    if c.score < 2 * NEVER then break end -- what a constraint forbids
    local beam = s.beams[c.beam]
    local row, stopped = follow(beam.row, c.id)
    local tokens = table.move(beam.tokens, 1, #beam.tokens, 1, {})
    tokens[#tokens + 1] = c.id
    if stopped or length == o.max_new_tokens then
      -- what lies behind the first num_beams only stands by to keep enough beams running
      if place <= o.num_beams and c.score > NEVER / 2 then
        ended[#ended + 1] = { tokens = tokens, score = c.score / length ^ o.length_penalty }
      end
    elseif #running < o.num_beams then
      running[#running + 1] = { tokens = tokens, score = c.score, row = row, from = c.beam }
    end
  end
  if not (#s.finished >= o.num_beams and o.early_stopping == true) then
    for _, e in ipairs(ended) do table.insert(s.finished, e) end
    table.sort(s.finished, by_score)
    for k = #s.finished, o.num_beams + 1, -1 do s.finished[k] = nil end
  end
  local first = running[1]
  for k = #running + 1, first and o.num_beams or 0 do -- stands in where too few can go on
    running[k] = { tokens = first.tokens, score = NEVER, row = first.row, from = first.from }
  end
  s.beams = running
  if not first then
    s.open = false
    return
  end
  -- can the best running beam still beat the worst finished one? For early_stopping false a heuristic
  local far = o.early_stopping == "never" and o.length_penalty > 0
  local best = first.score / (far and o.max_new_tokens or length) ^ o.length_penalty
  local full = #s.finished >= o.num_beams
  s.open = best > (full and s.finished[o.num_beams].score or NEVER) and not (full and o.early_stopping == true)
end

-- The continuations of all beams, best first, for each prompt. logits (B * num_beams, V)
local function best_continuations(logits, searches, o)
  local rows, scores = {}, {}
  for _, s in ipairs(searches) do
    for k = 1, o.num_beams do
      local beam = s.beams[k]
      rows[#rows + 1], scores[#scores + 1] = beam and beam.row or s.idle, { beam and beam.score or NEVER }
    end
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

local function output(searches, o)
  local tokens, mask, scores, width = {}, {}, {}, 1
  for _, s in ipairs(searches) do
    for k = 1, o.num_return_sequences do
      local f = s.finished[k] or { tokens = {}, score = NEVER }
      tokens[#tokens + 1], scores[#scores + 1], width = f.tokens, f.score, math.max(width, #f.tokens)
    end
  end
  for r, list in ipairs(tokens) do
    mask[r] = {}
    for i = 1, width do
      mask[r][i] = i <= #list
      list[i] = list[i] or o.pad
    end
  end
  return { tokens = peri.tensor(tokens, "i64"), mask = peri.tensor(mask, "bool"), scores = peri.tensor(scores, "f32") }
end

--- Called by perilune.decode.generate for num_beams > 1.
--- @param model table
--- @param prompt perilune.Tensor  (B, P) i64
--- @param o table  complete options: num_beams, num_return_sequences (at most num_beams), length_penalty
--- (score = log-probability / length ^ length_penalty, so more than 0 favours long ones), early_stopping
--- (true: done with num_beams finished ones; false: also when by a heuristic no better one is likely;
--- "never": only when none is possible)
--- @param start perilune.Tensor?  (B) i64
--- @return table out  tokens and mask (B * num_return_sequences, N), scores (B * num_return_sequences)
--- @param level integer  of errors
function M.search(model, prompt, o, start, level)
  if o.samples ~= 1 then error("generate: beam search takes num_return_sequences, not samples", level + 1) end
  for name, plain in pairs { temperature = 1, top_k = 0, top_p = 1, min_p = 0, top_logprobs = 0 } do
    if o[name] ~= plain then
      error(("generate: beam search draws nothing, so %s has no place"):format(name), level + 1)
    end
  end
  if o.num_return_sequences > o.num_beams then
    error(("generate: num_return_sequences is %d, expected at most num_beams = %d")
      :format(o.num_return_sequences, o.num_beams), level + 1)
  end
  local _ <close> = peri.no_grad()
  local scope <close> = peri.scope()
  local searches, pads = {}, start and start:tolist() or {}
  for b, ids in ipairs(prompt:tolist()) do
    searches[b] = new_search(o, table.move(ids, (pads[b] or 0) + 1, #ids, 1, {}))
  end
  local cache <close>, last, context = generate.prefill(model, prompt, start, o.max_new_tokens)
  cache:repeat_rows(o.num_beams)
  last = last:repeat_interleave(o.num_beams, 1)
  if start then context.start = start:repeat_interleave(o.num_beams, 1) end
  for length = 1, o.max_new_tokens do
    local step <close> = peri.scope()
    local candidates = best_continuations(model:logits(last), searches, o)
    local open, rows, ids = false, {}, {}
    for b, s in ipairs(searches) do
      local first = (b - 1) * o.num_beams
      if s.open then advance(s, o, candidates[b], length)
      else for k, beam in ipairs(s.beams) do beam.from = k end end -- stays as it is: rows keep their prompts
      open = open or s.open
      for k = 1, o.num_beams do
        local beam = s.beams[k] or { from = k, tokens = { 0 } }
        rows[first + k], ids[first + k] = first + beam.from, { beam.tokens[#beam.tokens] }
      end
    end
    if not open then break end
    cache:select_rows(rows)
    last = step:keep(model:forward(peri.tensor(ids, "i64"), context):select(2, -1))
  end
  local out = output(searches, o)
  scope:keep(out.tokens, out.mask, out.scores)
  return out
end

return M
