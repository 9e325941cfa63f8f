-- turns.lua - conversations: what a model says is answered, and it goes on behind the answer. All conversations that
-- run take each step of perilune.decode.engine together, each at its own turn; one that waits for its answer leaves the
-- batch and enters again with it. Ids stay ids: what was drawn is read again as it was drawn, and nothing is ever
-- decoded and encoded anew.
--
-- Token t that a conversation draws, counted over all its turns, comes from the same place of its stream wherever the
-- others are: a conversation that is never answered is what generate makes. Penalties, constraints and min_new_tokens
-- begin anew with each turn, behind all that was said before.
local peri = require "perilune"
local options = require "perilune.options"
local phases = require "perilune.phases"
local base = require "perilune.models.base"
local batches = require "perilune.text.batch"
local engines = require "perilune.decode.engine"
local generate = require "perilune.decode.generate"
local sampler = require "perilune.decode.sampler"
local supports = require "perilune.decode.support"

local M = {}

local rules = {
  max_new_tokens = options.integer(16, "[1, inf)", "of a conversation behind its prompt, with what it is answered"),
  max_turn_tokens = options.integer(options.none, "[1, inf)", "of one turn, the stop token included; default: as many "
    .. "as the conversation has left"),
  max_turns = options.integer(8, "[1, inf)", "turns of the model"),
}
for name, rule in pairs(generate.defaults) do rules[name] = rules[name] or rule end
rules.on_tokens = nil -- rows of conversations have no draw in common

--- Options of M.run and what they are when left out.
M.defaults = rules

local function read(model, given, level)
  local o = generate.read(model, given, level + 1, rules)
  for name, most in pairs { num_beams = 1, top_logprobs = 0 } do
    if o[name] > most then
      error(("generate: %s is %d, conversations have %d"):format(name, o[name], most), level + 1)
    end
  end
  return o
end

--- One conversation.
--- @class perilune.decode.Conversation
--- @field number integer  row of the output
--- @field prompt integer[]
--- @field tokens integer[]  all behind the prompt
--- @field drawn number[]  of each of them 1 where the model drew it, 0 where it was answered
--- @field logprobs number[]  of each of them, 0 where it was not drawn
--- @field turns integer[][]  { first, last } of the tokens of each turn of the model
--- @field over string?  why it is: "stop" (nobody answered), "length" (max_new_tokens, or the model's context),
--- "turns" (max_turns)

-- The tokens that a conversation may still get.
local function room(c, o, context)
  return math.min(o.max_new_tokens, context - #c.prompt) - #c.tokens
end

local function put(c, ids, flag, logprobs)
  for k, id in ipairs(ids) do
    local n = #c.tokens + 1
    c.tokens[n], c.drawn[n], c.logprobs[n] = id, flag, logprobs and logprobs[k] or 0
  end
end

-- What of the vocabulary was left to draw from, where log-probabilities are of that: of each draw the kept ids and
-- where they belong.
local function listen(engine, conversations, o, held)
  engine:listen(function (list, ids, logp, turns, kept)
    held.tensors[#held.tensors + 1], held.tensors[#held.tensors + 2] = ids, logp
    if not kept then return end
    local at = {}
    for i, s in ipairs(list) do
      at[i] = (s.number - 1) * o.max_new_tokens + #conversations[s.number].tokens + turns - s.entered - 1
    end
    local where = kept:nonzero() -- (n, 2), from 0
    local keys = peri.tensor(at, "i64"):index_select(where:select(2, 1), 1)
    held[#held + 1] = { keys = peri.keep(keys), ids = peri.keep(where:select(2, 2):contiguous()) }
  end)
end

local Held = {}
Held.__index = Held

-- A to-be-closed record lets go of its tensors.
function Held:__close()
  for _, t in ipairs(self.tensors) do t:release() end
  for _, draw in ipairs(self) do
    draw.keys:release()
    draw.ids:release()
  end
end

--- Have a model say its part of conversations.
---
--- reply(spoken) is called with the conversations that have just ended a turn, a list of { conversation, ids } with the
--- ids of the turn, and returns as many entries: the ids that each is answered with, or false where it is over.
--- @param model table
--- @param prompts perilune.Batch
--- @param opts table?
--- @param reply fun(spoken: table[]): table
--- @param level integer?  of errors
--- @return perilune.decode.Conversation[]  samples of each prompt, one behind the other
--- @return perilune.decode.Support?  what was drawn from, see generate
function M.run(model, prompts, opts, reply, level)
  level = (level or 1) + 1
  local phase <close> = phases.open "rollout" -- luacheck: ignore 211
  local o, context = read(model, opts, level), base.context_length(model)
  local list, count = {}, #prompts * o.samples
  for b, ids in ipairs(prompts:unpad()) do
    for k = 1, o.samples do
      local nth = (b - 1) * o.samples + k
      list[nth] = { number = nth, prompt = ids, tokens = {}, drawn = {}, logprobs = {}, turns = {}, said = 0 }
    end
    if #ids >= context then
      error(("generate: prompt %d has %d tokens, the model's context is %d"):format(b, #ids, context), level)
    end
  end
  local rows = o.rows or count
  local engine <close> = engines.new(model, { rows = rows, wait = math.max(1, rows // 4) })
  local held <close> = setmetatable({ tensors = {} }, Held)
  local facts = sampler.facts(o)
  if facts.renormalised and facts.cut then listen(engine, list, o, held) end
  local stream, used = generate.reserve(o, o.max_new_tokens)
  local running, waiting, gather = {}, {}, math.max(1, math.min(rows, count) // 4)

  local function enter(requests) -- each sequence with its own bound
    for _, request in ipairs(requests) do
      for _, s in ipairs(request.sequences) do
        local c = list[s.number]
        s.tokens, s.logprobs = {}, {}
        s.most = math.min(o.max_turn_tokens or math.huge, room(c, o, context))
        running[#running + 1] = s
      end
    end
  end

  local function collect() -- the turns that have ended
    local left = {}
    for _, s in ipairs(running) do
      if not s.ended then left[#left + 1] = s
      else
        local c = list[s.number]
        c.turns[#c.turns + 1] = { #c.tokens + 1, #c.tokens + #s.tokens }
        put(c, s.tokens, 1, s.logprobs)
        c.said = c.said + #s.tokens
        if s.reason == "stop" then waiting[#waiting + 1] = { conversation = c, ids = s.tokens }
        else c.over = "length" end
      end
    end
    running = left
  end

  local function answer()
    local ids, earlier = {}, {}
    table.sort(waiting, function (a, b) return a.conversation.number < b.conversation.number end)
    local spoken = waiting
    waiting = {}
    local replies = reply(spoken)
    for i, one in ipairs(spoken) do
      local c, said = one.conversation, replies[i]
      if not said then c.over = "stop"
      elseif #c.turns >= o.max_turns then c.over = "turns"
      elseif #said + 1 > room(c, o, context) then c.over = "length"
      else
        put(c, said, 0)
        local all = table.move(c.prompt, 1, #c.prompt, 1, {})
        ids[#ids + 1] = table.move(c.tokens, 1, #c.tokens, #all + 1, all)
        earlier[#earlier + 1] = { number = c.number, drawn = c.said }
      end
    end
    if #ids > 0 then
      enter(engine:submit_batch(batches.pad(ids, { side = "left", pad = o.pad }), o, stream, earlier))
    end
  end

  enter(engine:submit_batch(prompts:flush_right(), o, stream))
  while #running > 0 do
    engine:step()
    if engine.failed then error(engine.failed.error, 0) end
    collect()
    if #waiting >= gather or #running == 0 and #waiting > 0 then answer() end
  end

  local longest, tokens, turns, before = 1, {}, {}, {}
  for i, c in ipairs(list) do
    longest, tokens[i], turns[i], before[i] = math.max(longest, c.said), c.tokens, c.turns, c.prompt
  end
  used(longest)
  if not facts.renormalised then return list end
  local support = supports.new(o, #held > 0 and held or nil, before, tokens, o.max_new_tokens, o.stop, turns)
  return list, support
end
return M
