-- quest.lua - a text game: six rooms, a key in one of them, a chest in another. "hall :" is answered "east .", and the
-- game says "study key :"; "take ." "taken :" ... "open ." with the key at the chest wins. The rooms stand as they
-- always do, what is where is another matter in each game: a player looks around, remembers, and comes back.
local options = require "perilune.options"
local text = require "perilune.text"

local M = {}

M.name = "quest"
M.about = "a text game of six rooms, a key and a chest"

local WIDE <const>, HIGH <const> = 3, 2
local rooms = { "hall", "study", "attic", "garden", "kitchen", "cellar" } -- row by row
local moves = { north = { 0, -1 }, south = { 0, 1 }, west = { -1, 0 }, east = { 1, 0 } }
local commands = { "north", "south", "west", "east", "take", "open" }

--- A tokenizer of the game's words.
--- @return perilune.text.Units
function M.tokenizer()
  local words = { ".", ":", "key", "chest", "wall", "nothing", "taken", "locked", "what" }
  table.move(commands, 1, #commands, #words + 1, words)
  return text.words(table.move(rooms, 1, #rooms, #words + 1, words))
end

--- The config of a small model of these words, as a Llama of heads of 32.
--- @param layers integer
--- @param width integer  a multiple of 32
--- @return table  for models.llama.new
function M.config(layers, width)
  local tok = M.tokenizer()
  return { architectures = { "LlamaForCausalLM" }, model_type = "llama", vocab_size = tok.size, hidden_size = width,
    intermediate_size = width * 8 // 3 // 8 * 8, num_hidden_layers = layers, num_attention_heads = width // 32,
    num_key_value_heads = width // 32, rms_norm_eps = 1e-6, rope_theta = 10000, max_position_embeddings = 256,
    eos_token_id = tok.eos, pad_token_id = tok.pad }
end

-- ---- the game ----

local function beside(room, way)
  local x, y = (room - 1) % WIDE + moves[way][1], (room - 1) // WIDE + moves[way][2]
  return x >= 0 and x < WIDE and y >= 0 and y < HIGH and y * WIDE + x + 1 or nil
end

local function seen(game)
  return rooms[game.at] .. (not game.has and game.at == game.key and " key" or "")
    .. (game.at == game.chest and " chest" or "") .. " :"
end

-- What a command comes to: what the game says, or nil where it is won.
local function play(game, command)
  game.turns = game.turns + 1
  if moves[command] then
    local room = beside(game.at, command)
    game.at = room or game.at
    return room and seen(game) or "wall :"
  elseif command == "take" then
    if game.has or game.at ~= game.key then return "nothing :" end
    game.has = true
    return "taken :"
  elseif command == "open" then
    if game.at ~= game.chest then return "nothing :" end
    if not game.has then return "locked :" end
    game.won = true
    return nil
  end
  return "what :"
end

local function new_game(world) return { at = world.start, key = world.key, chest = world.chest, turns = 0 } end

-- Fewest commands from a room to another.
local function distance(a, b)
  return math.abs((a - 1) % WIDE - (b - 1) % WIDE) + math.abs((a - 1) // WIDE - (b - 1) // WIDE)
end

--- Every game: where the player, the key and the chest are; key and chest are in two rooms.
--- @param held_out boolean  the fourth of them that is only measured, or the others
--- @return table[] rows  prompt (what is seen at first), start, key, chest, shortest (turns of who knows where all is)
function M.worlds(held_out)
  local list, n = {}, 0
  for start = 1, #rooms do
    for key = 1, #rooms do
      for chest = 1, #rooms do
        if chest ~= key then
          n = n + 1
          local world = { start = start, key = key, chest = chest,
            shortest = distance(start, key) + 1 + distance(key, chest) + 1 }
          world.prompt = seen(new_game(world))
          if (n % 4 == 0) == held_out then list[#list + 1] = world end
        end
      end
    end
  end
  return list
end

local environment_rules = { price = options.number(0.03, "[0, 1]", "of each turn of a win") }

--- The environment: the game, won or not; a win is worth 1 less the price of its turns.
--- @param tok perilune.text.Units
--- @param opts table?
--- @return table environment  for rl.rollout
function M.environment(tok, opts)
  local o = options.fill("tasks.quest.environment", opts, environment_rules)
  local env = { stop = { tok.eos, tok:encode "."[1] } }
  function env.reply(_, talk)
    talk.game = talk.game or new_game(talk.row)
    if talk.ids[#talk.ids] == tok.eos then return nil end -- the player gives up
    return play(talk.game, talk.text:match "^(%a+) %.$")
  end
  function env.reward(_, _, _, talk)
    return talk.game and talk.game.won and math.max(0, 1 - o.price * talk.game.turns) or 0
  end
  return env
end
options.declare(M.environment, { "tok" }, environment_rules)

-- ---- a corpus ----

local corpus_rules = {
  turns = options.integer(12, "[1, inf)", "of a game at most"),
  hurry = options.number(0.5, "[0, 1]", "how often what can be taken or opened is; otherwise a command is drawn, three "
    .. "times in four a way to go"),
}

--- Games of somebody who plays without a plan, to learn a base model from.
--- @param rng table  of peri.rng
--- @param worlds table[]  of M.worlds
--- @param count integer
--- @param opts table?
--- @return table[] rows  prompt, said (texts, every second of which is the game's), won
function M.corpus(rng, worlds, count, opts)
  local o, rows = options.fill("tasks.quest.corpus", opts, corpus_rules), {}
  options.argument("tasks.quest.corpus", "count", count, "number")
  for i = 1, count do
    local world = rng:choice(worlds)
    local game, said = new_game(world), {}
    while game.turns < o.turns and not game.won do
      local command = commands[rng:uniform() < 0.75 and rng:int(1, 4) or rng:int(5, 6)]
      if rng:uniform() < o.hurry then
        if game.at == game.key and not game.has then command = "take"
        elseif game.at == game.chest and game.has then command = "open" end
      end
      said[#said + 1] = command .. " ."
      said[#said + 1] = play(game, command)
    end
    if not game.won then said[#said] = nil end -- the game has the last word to nobody
    rows[i] = { prompt = world.prompt, said = said, won = game.won or false }
  end
  return rows
end
options.declare(M.corpus, { "rng", "worlds", "count" }, corpus_rules)

--- Rows of a corpus as examples for algo.sft: what the game says is read and not learned.
--- @param tok perilune.text.Units
--- @param rows table[]  of corpus
--- @return table[] examples  { ids, mask }
function M.examples(tok, rows)
  local list = {}
  for i, row in ipairs(rows) do
    local ids, mask = tok:encode(row.prompt), {}
    for k = 1, #ids do mask[k] = 0 end
    for k, said in ipairs(row.said) do
      for _, id in ipairs(tok:encode(said)) do ids[#ids + 1], mask[#mask + 1] = id, k % 2 end
    end
    list[i] = { ids = ids, mask = mask }
  end
  return list
end

return require "perilune.names"(M, "perilune.tasks.quest")
