-- conversation.lua - environments that language models talk to, and rollouts of whole conversations: ids in, ids out.
-- An environment is a table:
--   reply(env, talk) -> text | ids | nil   what a turn is answered with; nothing: the conversation is over
--   open(env, talk) -> prompt | nil        (not needed) how it begins, where the row's own prompt does not say it
--   reward                                 (not needed) what a conversation is worth, as rl.score takes it
--   stop                                   (not needed) ids that end a turn; default: those that end a text
--   tokenizer                              (not needed) that its ids are of: a rollout with another one is an error
--   marks                                  (not needed) texts whose ids are compared where that is another object
--   batch = true                           reply gets a list of talks and returns as many replies (false: over): for
--                                          what can be done side by side, such as calls in processes
-- A talk is one conversation: row; turn (turns of the model so far), ids and text (of its last turn), tokens (all
-- behind the prompt); last (no turn is left, and a reply ends it as "turns"); over (why it is: "stop", "length" or
-- "turns", see perilune.decode.turns). Other fields are the environment's own; calls and failed, where it counts them,
-- are logged.
local options = require "perilune.options"
local turns = require "perilune.decode.turns"

local M = {}

local known = { reply = "function", open = "function", reward = "function or table", stop = "table", batch = "boolean",
  tokenizer = "table", marks = "table" }

local function callable(v)
  return type(v) == "function" or type(v) == "table" and (getmetatable(v) or {}).__call ~= nil
end

--- Why a value is no environment of conversations, or nil.
--- @param env any
--- @return string?
function M.problem(env)
  if type(env) ~= "table" then return "environment is a " .. type(env) .. ", expected a table with reply" end
  if not callable(env.reply) then return "environment has no reply, a function of a conversation" end
  for name, kind in pairs(known) do
    local v = env[name]
    local fits = v == nil or kind:find(type(v), 1, true) or kind:find "function" and callable(v)
    if not fits then return ("environment has a %s that is a %s, expected a %s"):format(name, type(v), kind) end
  end
  if not env.stop then return end
  local count = 0
  for key, id in pairs(env.stop) do
    count = count + 1
    if math.type(key) ~= "integer" or key < 1 or key > #env.stop then
      return ("the environment's stop has the field %s, expected a list of ids"):format(tostring(key))
    elseif math.type(id) ~= "integer" or id < 0 then
      return ("the environment's stop has %s as its entry %d, expected an id"):format(tostring(id), key)
    end
  end
  if count == 0 then return "the environment's stop is empty, expected ids that end a turn (nil: those of a text)" end
end

-- How many ids a model or a tokenizer has, or nil.
local function vocabulary(model, tokenizer)
  local size = type(model.config) == "table" and model.config.vocab_size or tokenizer.size
  return math.type(size) == "integer" and size or nil
end

-- Why the tokenizer of an environment is another than that of a rollout; nil where it has none or they are the same in
-- all that can be compared.
local function differs(env, tokenizer)
  local own = env.tokenizer
  if own == nil or own == tokenizer then return end
  if math.type(own.size) == "integer" and math.type(tokenizer.size) == "integer" and own.size ~= tokenizer.size then
    return ("%d tokens and %d"):format(own.size, tokenizer.size)
  end
  if not own.encode_batch or not tokenizer.encode_batch then return end
  local a = own:encode_batch(env.marks or {}, { add_special = false })
  local b = tokenizer:encode_batch(env.marks or {}, { add_special = false })
  for i, mark in ipairs(env.marks or {}) do
    if table.concat(a[i], " ") ~= table.concat(b[i], " ") then return ("other ids of %q"):format(mark) end
  end
end

local function quoted(row)
  local prompt = type(row) == "table" and row.prompt
  if type(prompt) ~= "string" then return "" end
  return (" of the prompt %q"):format(#prompt > 80 and prompt:sub(1, 77) .. "..." or prompt)
end

local function fail(talk, what, fmt, ...)
  error(("rl.rollout: the environment's %s in turn %d%s: %s"):format(what, talk.turn, quoted(talk.row),
    fmt:format(...)), 0)
end

-- The ids of what an environment said.
local function ids_of(tokenizer, talk, said, most)
  if type(said) == "string" then
    local ids = tokenizer:encode_batch({ said }, { add_special = false })[1]
    if #ids == 0 then fail(talk, "reply", "a text without tokens; false ends a conversation") end
    return ids
  end
  if type(said) ~= "table" or #said == 0 then
    fail(talk, "reply", "%s, expected a text or a list of ids, or false where it is over",
      type(said) == "table" and "an empty list" or "a " .. type(said))
  end
  for i, id in ipairs(said) do
    if math.type(id) ~= "integer" or id < 0 or id >= (most or math.huge) then
      fail(talk, "reply", "entry %d is %s, expected an id%s", i, tostring(id),
        most and (" from 0 to %d"):format(most - 1) or "")
    end
  end
  return said
end

--- The talks of rows, each row `group` times, and the rows with the prompts that they begin with.
--- @param env table
--- @param rows table[]
--- @param group integer
--- @return table[] talks
--- @return table[] rows
function M.open(env, rows, group)
  local talks, opened = {}, {}
  for i, row in ipairs(rows) do
    local first
    for k = 1, group do
      local talk = { row = row, turn = 0, tokens = {}, ids = {}, text = "" }
      local prompt = env.open and env:open(talk)
      if k == 1 then first = prompt
      elseif prompt ~= first then
        error(("rl.rollout: the environment opens two conversations of row %d with different prompts: a group has one "
          .. "(what is drawn at random belongs into the row)"):format(i), 0)
      end
      talks[#talks + 1] = talk
    end
    opened[i] = row
    if first ~= nil then
      if type(first) ~= "string" then
        error(("rl.rollout: the environment opens row %d with a %s, expected a text or nil"):format(i, type(first)), 0)
      end
      opened[i] = setmetatable({ prompt = first }, { __index = row })
    end
  end
  return talks, opened
end

--- Conversations of prompts with an environment.
--- @param model table
--- @param tokenizer table
--- @param prompts perilune.Batch
--- @param env table
--- @param talks table[]  of M.open; they get what was said
--- @param how table  options of perilune.decode.turns
--- @return perilune.decode.Conversation[]
--- @return perilune.decode.Support?
function M.run(model, tokenizer, prompts, env, talks, how)
  local most = vocabulary(model, tokenizer)
  local function hear(one)
    local c = one.conversation
    local talk = talks[c.number]
    talk.turn, talk.ids, talk.tokens, talk.text = talk.turn + 1, one.ids, c.tokens, tokenizer:decode(one.ids)
    talk.last = talk.turn >= (how.max_turns or turns.defaults.max_turns.default)
    return talk
  end
  local function reply(spoken)
    local heard, said = {}, {}
    for i, one in ipairs(spoken) do heard[i] = hear(one) end
    if env.batch then
      said = env:reply(heard)
      if type(said) ~= "table" then
        error(("rl.rollout: the environment's reply is a %s, expected a list with one for each of %d conversations")
          :format(type(said), #heard), 0)
      end
      for key in pairs(said) do
        if math.type(key) ~= "integer" or key < 1 or key > #heard then
          error(("rl.rollout: the environment's reply has an entry %s, expected one for each of %d conversations")
            :format(tostring(key), #heard), 0)
        end
      end
      for i, talk in ipairs(heard) do
        if said[i] == nil then fail(talk, "reply", "the list has none for conversation %d of %d", i, #heard) end
      end
    else
      for i, talk in ipairs(heard) do said[i] = env:reply(talk) or false end
    end
    for i, talk in ipairs(heard) do said[i] = said[i] and ids_of(tokenizer, talk, said[i], most) end
    return said
  end
  local list, support = turns.run(model, prompts, how, reply)
  for i, c in ipairs(list) do
    local talk, last = talks[i], c.turns[#c.turns]
    talk.tokens, talk.over, talk.turn = table.move(c.tokens, 1, #c.tokens, 1, {}), c.over, #c.turns
    if c.over == "length" then talk.ids = table.move(c.tokens, last[1], last[2], 1, {}) end -- a turn that was cut
  end
  return list, support
end

--- What is logged of conversations: conversations/turns (mean), conversations/cut_ratio (share that max_turns ended),
--- and under TRL's names, of environments that count calls, tools/call_frequency (calls a conversation) and
--- tools/failure_frequency (share of the calls that failed).
--- @param talks table[]
--- @return table
function M.metrics(talks)
  local said, cut, calls, failed, counts = 0, 0, 0, 0, false
  for _, talk in ipairs(talks) do
    said, cut = said + talk.turn, cut + (talk.over == "turns" and 1 or 0)
    if talk.calls then counts, calls, failed = true, calls + talk.calls, failed + (talk.failed or 0) end
  end
  return { ["conversations/turns"] = said / #talks, ["conversations/cut_ratio"] = cut / #talks,
    ["tools/call_frequency"] = counts and calls / #talks or nil,
    ["tools/failure_frequency"] = counts and failed / math.max(calls, 1) or nil }
end

--- The rules of rl.rollout's options of conversations.
M.rules = {
  environment = options.value(options.none, "table", "that the model talks to, see docs/tools.md; its reward is the "
    .. "default of reward"),
  max_turns = options.integer(options.none, "[1, inf)", "of the model in a conversation (8); needs environment"),
  max_turn_tokens = options.integer(options.none, "[1, inf)", "of one turn; default: as many as the conversation has "
    .. "left of max_new_tokens; needs environment"),
}

--- Raise where options of conversations are given without an environment, with one that is none, or with one that is
--- of other ids than the model and the tokenizer.
--- @param who string
--- @param o table
--- @param level integer
--- @param model table
--- @param tokenizer table
function M.want(who, o, level, model, tokenizer)
  local env = o.environment
  if env ~= nil then
    local why = M.problem(env)
    if why then error(who .. ": " .. why, level + 1) end
    local most = vocabulary(model, tokenizer)
    for i, id in ipairs(most and env.stop or {}) do
      if id >= most then
        error(("%s: the environment's stop has %d as its entry %d, expected an id from 0 to %d"):format(who, id, i,
          most - 1), level + 1)
      end
    end
    why = differs(env, tokenizer)
    if why then
      error(("%s: the environment's tokenizer is another than the rollout's: %s"):format(who, why), level + 1)
    end
    return
  end
  for _, name in ipairs { "max_turns", "max_turn_tokens" } do
    if o[name] then error(("%s: %s is %d and there is no environment"):format(who, name, o[name]), level + 1) end
  end
end

return M
