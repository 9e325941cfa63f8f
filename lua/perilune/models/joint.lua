-- joint.lua - an encoder that answers questions in two modes: what a supervised head says and what a policy head says,
-- over one output layer. The head reads the vector of the first token, [CLS], and gives scores of the next token of the
-- answer; question and answer so far are the pair that the encoder reads, so answers are of any length.
-- algo.joint trains it.
local peri = require "perilune"
local batches = require "perilune.text.batch"
local containers = require "perilune.nn.containers"
local layers = require "perilune.nn.layers"
local options = require "perilune.options"
local Module = require "perilune.nn.module"

local M = {}

--- The names of the heads.
M.modes = { "supervised", "rl" }

local rules = {
  stop = options.integer(options.required, "[0, inf)", "id that ends an answer: [SEP] of BERT's tokenizers"),
  pad = options.integer(0, "[0, inf)", "id behind shorter rows"),
  mask = options.integer(options.none, "[0, inf)", "id that stands where the next token of the answer will: what an "
    .. "encoder that has learned to guess hidden tokens asks for; default: nothing stands there"),
  vocab = options.integer(options.none, "[1, inf)", "tokens that an answer is made of; default: those of the encoder"),
  longest = options.integer(options.none, "[1, inf)", "tokens of a question, and of an answer; what is longer is cut; "
    .. "default: 32, or half of the places that the encoder has"),
}

local function head(dim)
  return containers.Sequential(layers.Linear(dim, dim), layers.ReLU(), layers.Linear(dim, dim))
end

--- @class perilune.models.Joint: perilune.nn.Module
--- @field encoder perilune.models.Model
--- @field heads table<string, perilune.nn.Module>  supervised and rl: Linear, ReLU, Linear, as wide as the encoder
--- @field output perilune.nn.Linear  of both heads, to the tokens
--- @field settings table  stop, pad, vocab, longest
local Joint = Module.class("joint", function (self, encoder, opts)
  local o = options.fill("models.joint", opts, rules)
  if not Module.is_module(encoder) or encoder.kind ~= "encoder" then
    options.raise(("models.joint: the encoder is a %s, expected an encoder of perilune.models")
      :format(Module.is_module(encoder) and encoder.__name or type(encoder)))
  end
  local s = encoder.settings
  local most = s.positions and (s.positions - 1) // 2 or math.huge -- one is the mask's
  o.vocab, o.longest = o.vocab or s.vocab, o.longest or math.tointeger(math.min(32, most))
  if o.longest > most or o.longest < 1 then
    options.raise(("models.joint: longest is %d; the encoder has %d places, for question and answer"):format(o.longest,
      s.positions))
  end
  for name, size in pairs { stop = o.vocab, pad = s.vocab, mask = s.vocab } do
    if o[name] and o[name] >= size then
      options.raise(("models.joint: %s is %d, there are %d tokens"):format(name, o[name], size))
    end
  end
  self.encoder, self.settings = encoder, o
  self.heads = { supervised = head(s.dim), rl = head(s.dim) }
  self.output = layers.Linear(s.dim, o.vocab)
end)
Joint.references = { settings = true }

--- An encoder with a supervised head, a policy head and one output layer, to answer in the mode "supervised" or "rl".
--- @param encoder perilune.models.Model  such as BERT, of perilune.models; it is part of the new module
--- @param opts table
--- @return perilune.models.Joint
M.new = options.declare(Joint, { "encoder" }, rules)

-- ---- one token ----------------------------------------------------------------------------------

--- Scores of the next token of each answer.
--- @param ids perilune.Tensor|perilune.Batch  (B, T): of :inputs, or what the encoder reads
--- @param mode string  "supervised" or "rl"
--- @return perilune.Tensor  (B, V)
function Joint:forward(ids, mode)
  if not self.heads[mode] then options.raise("joint: " .. options.unknown("mode", mode, M.modes)) end
  return self.output:forward(self.heads[mode]:forward(self.encoder:vectors(ids, { pooling = "cls" })))
end

--- Questions with their answers so far, as the encoder reads them: the tokens of the answer and the mask, where there
--- is one, stand behind the question and have token type 1, where the encoder has types.
--- @param questions integer[][]  of :questions
--- @param answers integer[][]?  ids, the stop not among them; default: no token yet
--- @return perilune.Batch
function Joint:inputs(questions, answers)
  local ids, types = {}, {}
  for i, question in ipairs(questions) do
    local row, kind, answer = table.move(question, 1, #question, 1, {}), {}, answers and answers[i] or {}
    table.move(answer, 1, #answer, #row + 1, row)
    row[#row + 1] = self.settings.mask
    for k = 1, #row do kind[k] = k > #question and 1 or 0 end
    ids[i], types[i] = row, kind
  end
  return batches.pad(ids, { pad = self.settings.pad, types = self.encoder.types and types or nil })
end

-- A tokenizer of more tokens than the model has is another one's.
local function want_known(who, ids, size)
  for _, id in ipairs(ids) do
    if id >= size then
      options.raise(("joint: %s has the token %d, there are %d: is the tokenizer another model's?"):format(who, id,
        size))
    end
  end
end

--- Questions as ids with the special tokens of the tokenizer around them; of long ones the first `longest` tokens.
--- @param tokenizer table
--- @param texts string[]
--- @return integer[][]
function Joint:questions(tokenizer, texts) -- luacheck: ignore 212
  local lists, most = tokenizer:encode_batch(texts), self.settings.longest
  for i, ids in ipairs(lists) do
    if #ids == 0 then options.raise(("joint: question %d has no tokens"):format(i)) end
    want_known("question " .. i, ids, self.encoder.settings.vocab)
    local last = ids[#ids]
    if #ids > most then -- the separator behind a question stays its last token
      for k = #ids, most + 1, -1 do ids[k] = nil end
      if last == self.settings.stop then ids[most] = last end
    end
  end
  return lists
end

--- Answers as ids without special tokens, and the stop behind each; of long ones the first `longest` - 1 tokens.
--- @param tokenizer table
--- @param texts string[]
--- @return integer[][]
function Joint:answers(tokenizer, texts)
  local lists = tokenizer:encode_batch(texts, { add_special = false })
  for i, ids in ipairs(lists) do
    want_known("answer " .. i, ids, self.settings.vocab)
    for k = #ids, self.settings.longest, -1 do ids[k] = nil end
    ids[#ids + 1] = self.settings.stop
  end
  return lists
end

-- ---- whole answers ------------------------------------------------------------------------------

local drawn = {
  temperature = options.number(1, "(0, inf)", "of sampling"),
  top_k = options.integer(50, "[0, inf)", "so many likeliest tokens may be drawn; 0: all"),
}
M.drawn = drawn

local generate_rules = {
  mode = options.choice("supervised", M.modes, "the head that answers"),
  max_new_tokens = options.integer(options.none, "[1, inf)", "longest answer; default: longest"),
  greedy = options.boolean(false, "the likeliest token in place of a draw"),
  seed = options.integer(options.none, nil, "row i draws from a stream of its own, whatever rows stand beside it; "
    .. "without it from the generator that peri.seed sets"),
}
for name, rule in pairs(drawn) do generate_rules[name] = rule end

--- Rows that are equal, once: what a pass over many samples of few questions has to read.
--- @param questions integer[][]
--- @param answers integer[][]
--- @return integer[] first  of each different pair the row where it first stands
--- @return integer[] place  of each row its place among them, from 1
function M.distinct(questions, answers)
  local first, place, seen = {}, {}, {}
  for i, question in ipairs(questions) do
    local key = table.concat(question, " ") .. "|" .. table.concat(answers[i], " ")
    if not seen[key] then
      first[#first + 1] = i
      seen[key] = #first
    end
    place[i] = seen[key]
  end
  return first, place
end

local function chosen(list, places)
  local out = {}
  for k, i in ipairs(places) do out[k] = list[i] end
  return out
end

-- Scores of the next token of some rows; equal rows are read once. -- (n, V)
local function scores(self, questions, answers, mode)
  local first, place = M.distinct(questions, answers)
  local logits = self:forward(self:inputs(chosen(questions, first), chosen(answers, first)), mode)
  if #first == #place then return logits end
  return logits:index_select(peri.tensor(place, "i64"):sub(1), 1)
end

--- Answers to questions, token by token until the stop. Dropout plays no part where the model is in eval mode.
--- @param questions integer[][]  of :questions
--- @param opts table?
--- @return table out  tokens (integer[][], the stop included), ended (boolean[]: by the stop, not by length), logprobs
--- (number[][], of what the tokens were drawn from before top_k cut it)
function Joint:generate(questions, opts)
  local o = options.fill("joint: generate", opts, generate_rules)
  options.argument("joint: generate", "questions", questions, "table")
  local _ <close> = peri.no_grad()
  local out, live, stop = { tokens = {}, ended = {}, logprobs = {} }, {}, self.settings.stop
  for i = 1, #questions do out.tokens[i], out.ended[i], out.logprobs[i], live[i] = {}, false, {}, i end
  for t = 1, o.max_new_tokens or self.settings.longest do
    if #live == 0 then break end
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local keys = {}
    for k, i in ipairs(live) do keys[k] = { o.seed, i << 20 | t } end
    local ids, logps = peri.sample(scores(self, chosen(questions, live), chosen(out.tokens, live), o.mode),
      o.seed and peri.tensor(keys, "i64") or nil, o.temperature, o.top_k, 1, 0, o.greedy)
    ids, logps = ids:tolist(), logps:tolist()
    local rest = {}
    for k, i in ipairs(live) do
      out.tokens[i][t], out.logprobs[i][t], out.ended[i] = ids[k], logps[k], ids[k] == stop
      if ids[k] ~= stop then rest[#rest + 1] = i end
    end
    live = rest
  end
  return out
end
options.declare(Joint.generate, { "questions" }, generate_rules)

--- Answers to questions as texts.
--- @param tokenizer table
--- @param texts string|string[]
--- @param opts table?  as of :generate
--- @return string|string[]  a text for a text, a list for a list
function Joint:reply(tokenizer, texts, opts)
  if type(texts) == "string" then return self:reply(tokenizer, { texts }, opts)[1] end
  local out = {}
  for i, ids in ipairs(self:generate(self:questions(tokenizer, texts), opts).tokens) do
    if ids[#ids] == self.settings.stop then ids[#ids] = nil end
    out[i] = tokenizer:decode(ids)
  end
  return out
end
options.declare(Joint.reply, { "tokenizer", "texts" }, generate_rules)

--- Give the policy head the weights of the supervised one: a policy whose answers are never right learns nothing from
--- its rewards.
--- @return self
function Joint:start_policy()
  local _ <close> = peri.no_grad()
  self.heads.rl:load_state_dict(self.heads.supervised:state_dict())
  return self
end

-- ---- folders ------------------------------------------------------------------------------------

local CONFIG <const>, HEADS <const> = "joint.json", "joint.safetensors"

-- The tensors of heads and output.
local function own(self)
  local list = {}
  for name, tensor in pairs(self:state_dict()) do
    if not name:find "^encoder%." then list[name] = tensor end
  end
  return list
end

--- Write a folder: the encoder as a Hugging Face folder, joint.safetensors with heads and output, joint.json with the
--- settings, and the files of a tokenizer.
--- @param folder string
--- @param tokenizer table?  with save(folder)
--- @return boolean|nil ok
--- @return string? message
function Joint:save(folder, tokenizer)
  local ok, message = self.encoder:save(folder)
  if not ok then return nil, message end
  ok, message = peri.safetensors.save(folder .. "/" .. HEADS, own(self))
  if not ok then return nil, message end
  ok, message = peri.files.write(folder .. "/" .. CONFIG, peri.json.encode(self.settings, { indent = 2 }) .. "\n")
  if not ok or not tokenizer then return ok, message end
  return tokenizer:save(folder)
end

--- The model of a folder that :save wrote, in eval mode.
--- @param folder string
--- @return perilune.models.Joint|nil
--- @return string? message
function M.load(folder)
  local text, message = peri.files.read(folder .. "/" .. CONFIG)
  if not text then return nil, message end
  local settings, encoder
  settings, message = peri.json.decode(text)
  if type(settings) ~= "table" then
    return nil, ("%s/%s: %s"):format(folder, CONFIG, message or "an object is expected")
  end
  encoder, message = require("perilune.models").load(folder)
  if not encoder then return nil, message end
  local tensors
  tensors, message = peri.safetensors.load(folder .. "/" .. HEADS)
  if not tensors then return nil, message end
  local ok, self = pcall(function ()
    local known = {}
    for name, value in pairs(settings) do known[name] = value end
    local joint = Joint(encoder, known)
    for name, tensor in pairs(encoder:state_dict()) do tensors["encoder." .. name] = tensor end
    return joint:load_state_dict(tensors)
  end)
  if not ok then return nil, ("%s: %s"):format(folder, self) end
  return self:eval()
end

M.Class = Joint

return require "perilune.names"(M, "perilune.models.joint")
