-- lm - a language model for texts: a model, its tokenizer and chat template, stop tokens and
-- strings, streaming. Requests of any number share one batch (perilune.decode.engine).
--   local lm = assert(peri.lm.load "SmolLM2-135M-Instruct.gguf")
--   print(lm:chat { { role = "user", content = "What is the capital of France?" } }.text)
--   for piece in lm:stream("Once upon a time", { max_new_tokens = 50 }) do io.write(piece) end
local peri = require "perilune"
local options = require "perilune.options"
local base = require "perilune.models.base"
local engines = require "perilune.decode.engine"
local constraint = require "perilune.decode.constraint"
local prefix_cache = require "perilune.decode.prefix_cache"
local prompts = require "perilune.lm.prompt"
local sampler = require "perilune.decode.sampler"
local stop_texts = require "perilune.decode.stops"
local streams = require "perilune.lm.streams"
local weights = require "perilune.lm.weights"

local M = {}

--- @class perilune.lm.Model
--- @field model table
--- @field tok table  tokenizer
--- @field scheduler perilune.decode.Engine
--- @field prefix_cache perilune.models.PrefixCache?
--- @field stop_ids integer[]  tokens that end an answer
--- @field widened string?  dtype that the file has, where lm.load took "auto" and made f32 of it
local LM = {}
LM.__index = LM

function LM:__tostring()
  local head = tostring(self.model):match "^[^\n]*"
  return ("lm of %s; %s; %d sequences at once"):format(head, tostring(self.tok), self.scheduler.rows)
end

-- Settings of a request; those of perilune.decode.sampler come on top.
local request_defaults = {
  max_new_tokens = options.integer(512, "[1, inf)", "most tokens of an answer"),
  samples = options.integer(1, "[1, inf)", "answers to make"),
  stop = options.value({}, "string or table or number",
    "texts that end the answer and are no part of it, also special tokens; ids, too"),
  regex = options.value(options.none, "string", "the answer matches this pattern: see perilune.decode.regex"),
  choices = options.value(options.none, "table", "the answer is one of these texts"),
  ignore_stop = options.boolean(false, "go on behind stop tokens"),
  on_text = options.value(options.none, "callable", "on_text(piece, result), whole characters, as they come"),
  remember = options.boolean(true, "keep what was read for prompts that begin alike"),
}
for name, rule in pairs(prompts.rules) do request_defaults[name] = rule end
for name, value in pairs(sampler.defaults) do
  if name ~= "constraint" then request_defaults[name] = value end
end
-- What is left out comes from the model's generation_config where that samples.
for _, name in ipairs { "temperature", "top_k", "top_p", "min_p", "greedy", "repetition_penalty" } do
  request_defaults[name] = options.none
end

local function add_ids(list, have, value)
  if type(value) == "number" then value = { value } end
  for _, id in ipairs(value or {}) do
    id = math.tointeger(id)
    if id and not have[id] then
      have[id] = true
      list[#list + 1] = id
    end
  end
end

local new_rules = {
  rows = options.integer(8, "[1, inf)", "sequences that run at once"),
  prefix_cache_bytes = options.integer(256 << 20, "[0, inf)", "for what was read before; 0: nothing is kept"),
  prefill_chunk = options.integer(512, "[1, inf)", "most tokens of a prompt that are read at once"),
}

--- A model and a tokenizer that are at hand.
--- @param model table  a causal model
--- @param tok table  perilune.tokenizer or perilune.text
--- @param opts table?  rows (8): sequences that run at once; prefix_cache_bytes (256 MiB; 0: none);
--- prefill_chunk (512)
--- @return perilune.lm.Model
function M.new(model, tok, opts)
  local o = options.fill("lm.new", opts, new_rules)
  options.argument("lm.new", "model", model, "table")
  options.argument("lm.new", "tok", tok, "table")
  local why = base.no_causal(model)
  if why then error("lm.new: " .. why, 2) end
  local self = setmetatable({ model = model, tok = tok, stop_ids = {}, live = {} }, LM)
  if o.prefix_cache_bytes > 0 then self.prefix_cache = prefix_cache.new { bytes = o.prefix_cache_bytes } end
  self.scheduler = engines.new(model,
    { rows = o.rows, prefix_cache = self.prefix_cache, prefill_chunk = o.prefill_chunk })
  local have, generation = {}, model.generation_config or {}
  add_ids(self.stop_ids, have, generation.eos_token_id)
  if not generation.eos_token_id then add_ids(self.stop_ids, have, (model.config or {}).eos_token_id) end
  add_ids(self.stop_ids, have, tok.eos)
  add_ids(self.stop_ids, have, tok.eos_ids)
  if model.eval then model:eval() end
  return self
end
options.declare(M.new, { "model", "tok" }, new_rules)

local load_rules = {
  dtype = options.value("auto", "string", "of the weights, as for models.load; auto: f32 up to 2^28, else as stored"),
  pack = options.boolean(true, "weights are laid out for this processor; false where they are to be trained"),
  tokenizer = options.value(options.none, "string", "path, where it lies elsewhere"),
  map = options.boolean(true, "weights may share the file's pages; false reads them, as for models.load"),
}
for name, rule in pairs(new_rules) do load_rules[name] = rule end

--- Read a model with its tokenizer.
--- @param path string  Hugging Face folder, .gguf or llama2.c .bin file
--- @param opts table?  dtype of the weights as for models.load, or "auto" (the default): "f32" up to 2^28
--- parameters, else "file", as stored; pack (true): weights are laid out for this processor; false where
--- they are to be trained; tokenizer (path, where it lies elsewhere), map as for models.open, and those of
--- lm.new
--- @return perilune.lm.Model|nil
--- @return string? message
function M.load(path, opts)
  local o = options.fill("lm.load", opts, load_rules)
  local models = require "perilune.models"
  local tok, model, stored
  local source, message = models.open(path, { map = o.map })
  if not source then return nil, message end
  local why = models.architecture(source.config)
  why = why and base.no_causal(why.Class)
  if why then return nil, ("%s: %s"):format(path, why) end
  tok, message = peri.tokenizer.load(o.tokenizer or source.tokenizer_path or path)
  if not tok then return nil, message end
  model, message, stored = weights.load(path, o)
  if not model then return nil, message end
  local self = M.new(model, tok,
    { rows = o.rows, prefix_cache_bytes = o.prefix_cache_bytes, prefill_chunk = o.prefill_chunk })
  self.widened = stored
  return self
end
options.declare(M.load, { "path" }, load_rules)

-- ---- prompts ------------------------------------------------------------------------------------

--- The ids that a prompt is for the model.
--- @param prompt string|table  text, list of messages { role =, content = }, or list of ids
--- @param opts table?
--- @return integer[]
function LM:ids(prompt, opts) return prompts.ids(self.tok, prompt, options.fill("lm:ids", opts, prompts.rules)) end
options.declare(LM.ids, { "prompt" }, prompts.rules)

--- The text that the chat template makes of messages.
--- @param messages table[]
--- @param opts table?
--- @return string
function LM:render(messages, opts)
  return prompts.render(self.tok, messages, options.fill("lm:render", opts, prompts.render_rules))
end
options.declare(LM.render, { "messages" }, prompts.render_rules)

-- ---- texts as they grow -------------------------------------------------------------------------

local function emit(result, text)
  if text == "" then return end
  result._parts[#result._parts + 1] = text
  if result._on_text then result._on_text(text, result) end
end

--- One completion. reason as in perilune.decode.engine, and "stop" also at a stop text; "error" where a request of
--- batch failed, with what it failed as error.
--- @class perilune.lm.Result
--- @field text string
--- @field tokens integer[]
--- @field logprobs number[]
--- @field top table[]?
--- @field reason string
--- @field error any?
--- @field prompt_tokens integer
--- @field cached_tokens integer  prompt tokens that had been read before
--- @field message table?  of a chat: { role = "assistant", content =, reasoning_content = }
--- @field samples perilune.lm.Result[]?  with samples > 1 all of them; the first has the list
local Result = {}
Result.__index = Result
function Result.__tostring(self) return self.text or table.concat(self._parts) end

--- What a text says and what it thought before, in <think> tags.
--- @param text string
--- @param inside boolean?  the prompt opened the tag
--- @return string content
--- @return string? reasoning
function M.split_reasoning(text, inside)
  local before, thought, after = text:match "^(%s*)<think>(.-)</think>%s*(.*)$"
  if before then return after, (thought:gsub("^%s+", ""):gsub("%s+$", "")) end
  if inside then
    thought, after = text:match "^(.-)</think>%s*(.*)$"
    if thought then return after, (thought:gsub("^%s+", ""):gsub("%s+$", "")) end
  end
  return text, nil
end

-- ---- requests -----------------------------------------------------------------------------------

local sampling = { "temperature", "top_k", "top_p", "min_p" }

-- The sampler's settings: given ones, else the model's own. Greedy unless something asks for chance.
local function sampler_options(self, o)
  local generation, out = self.model.generation_config or {}, {}
  for name in pairs(sampler.defaults) do out[name] = o[name] end
  local chance = generation.do_sample
  for _, name in ipairs(sampling) do chance = chance or o[name] ~= nil end
  if generation.do_sample then
    for _, name in ipairs(sampling) do if out[name] == nil then out[name] = generation[name] end end
  end
  if out.repetition_penalty == nil then out.repetition_penalty = generation.repetition_penalty end
  if out.greedy == nil then out.greedy = not chance end
  return out
end

--- Whether a request with these options takes the likeliest token each time, so that samples are equal.
--- @param opts table?
--- @return boolean
function LM:is_greedy(opts)
  local o = sampler_options(self, options.fill("lm", opts, request_defaults))
  return o.greedy or o.temperature == 0
end

local Generation = {}
Generation.__index = Generation

-- Stop texts and ids of a request. Ids that the model lacks, of a tokenizer with more tokens, cannot come.
local function stops_of(self, o, level)
  local ids, texts, have, own = {}, {}, {}, {}
  if not o.ignore_stop then
    add_ids(own, {}, self.stop_ids)
    local most = (self.model.settings or {}).vocab or math.huge
    for _, id in ipairs(own) do if id < most then add_ids(ids, have, id) end end
  end
  for _, stop in ipairs(type(o.stop) == "table" and o.stop or { o.stop }) do
    if type(stop) == "string" and stop ~= "" then texts[#texts + 1] = stop
    elseif math.type(stop) and math.tointeger(stop) then add_ids(ids, have, stop)
    else error(("lm: %s is no stop text or id"):format(stop == "" and "an empty text" or tostring(stop)), level + 1) end
  end
  return ids, texts, have
end

-- Our own messages of submission without the place in our sources, raised where the user called.
local function raise(message, level)
  if type(message) == "string" then message = message:gsub("^[^%s:]+%.lua:%d+: ", "") end
  error(message, level + 1)
end

-- A token of a result came: its text goes out up to a stop text. True ends the result.
local function hear(self, result, id, have)
  result.tokens[#result.tokens + 1] = id
  if have[id] then return false end
  local tok, stream = self.tok, result._stream
  local special = tok.is_special and tok:is_special(id) and tok:token(id) or nil
  local text, ended = result._stops:push(stream:push(id), special)
  result._cut = ended
  emit(result, text)
  return ended
end

local function submit(self, prompt, opts, level)
  local o = options.fill("lm", opts, request_defaults, level + 2)
  local stop_ids, stops, have = stops_of(self, o, level + 1)
  local request = sampler_options(self, o)
  local made, ids = pcall(function ()
    request.constraint = constraint.from(o, self.tok)
    return prompts.ids(self.tok, prompt, o)
  end)
  if not made then raise(ids, level + 1) end
  request.max_new_tokens, request.samples, request.stop, request.remember =
    o.max_new_tokens, o.samples, stop_ids, o.remember
  local chat, by_sequence = prompts.is_messages(prompt), {}
  local generation = setmetatable({ lm = self, results = {}, done = false, chat = chat, prompt_ids = ids }, Generation)
  function request.on_token(sequence, id) return hear(self, by_sequence[sequence.index], id, have) end
  local ok, message = pcall(self.scheduler.submit, self.scheduler, ids, request)
  if not ok then raise(message, level + 1) end
  generation.request = message
  local last = ids[#ids]
  local special = self.tok.is_special and self.tok:is_special(last)
  local within = not chat and not special and streams.neutral(self.tok) or {}
  for k, sequence in ipairs(generation.request.sequences) do
    local result = setmetatable({ tokens = {}, logprobs = sequence.logprobs, top = sequence.top, index = k,
      prompt_tokens = #ids, _stops = stop_texts.new(stops, self.tok), _parts = {}, _on_text = o.on_text,
      _stream = streams.open(self.tok), _sequence = sequence }, Result)
    -- a space that a word begins with stands there unless the word is the text's first
    for _, id in ipairs(within) do result._stream:push(id) end
    by_sequence[k], generation.results[k] = result, result
  end
  if chat then
    local tail = self.tok:decode(table.move(ids, math.max(1, #ids - 7), #ids, 1, {}), { skip_special = false })
    generation.thinking = tail:find "<think>%s*$" ~= nil
  end
  self.live[#self.live + 1] = generation
  return generation
end

--- Ask for completions of a prompt; step() or wait() makes them. What is wrong with the request raises here.
--- @param prompt string|table  text, list of messages, or list of ids
--- @param opts table?  see the top of this file
--- @return table generation  results (a list), done, error
function LM:submit(prompt, opts)
  local generation = submit(self, prompt, opts, 2)
  return generation
end
options.declare(LM.submit, { "prompt" }, request_defaults)

-- A sequence has ended: what was held back is text after all.
local function complete(generation, result)
  local sequence = result._sequence
  result._sequence = nil
  if not result._cut and sequence.reason ~= "error" then
    local ok, message = pcall(function () emit(result, (result._stops:finish(result._stream:finish()))) end)
    if not ok then
      if type(message) == "string" and message:find "interrupted$" then error(message, 0) end
      if message == nil then message = "an error without a message: error(nil)" end
      result.reason, result.error, generation.error = "error", message, message
    end
  end
  result.text, result.reason = table.concat(result._parts), result.reason or sequence.reason
  result.cached_tokens = sequence.request.cached_tokens or 0
  if sequence.reason == "error" then result.error, generation.error = sequence.request.error, sequence.request.error end
  if generation.chat then
    local content, reasoning = M.split_reasoning(result.text, generation.thinking)
    result.message = { role = "assistant", content = content, reasoning_content = reasoning }
  end
  for _, name in ipairs { "_stops", "_parts", "_on_text", "_stream", "_cut" } do result[name] = nil end
end

--- Let every running sequence make one token.
--- @return boolean more  whether there is anything left to do
function LM:step()
  local more = self.scheduler:step()
  for _, generation in ipairs(table.move(self.live, 1, #self.live, 1, {})) do -- callbacks may submit more
    local open = 0
    for _, result in ipairs(generation.results) do
      if result._sequence then
        if result._sequence.reason then complete(generation, result) else open = open + 1 end
      end
    end
    generation.done = generation.done or open == 0
  end
  local live = {}
  for _, generation in ipairs(self.live) do if not generation.done then live[#live + 1] = generation end end
  self.live = live
  return more
end

--- Step until a generation is done, or all are.
--- @param generation table?
function LM:wait(generation)
  self.scheduler:need_rest "wait"
  while not (generation and generation.done) and #self.live > 0 do self:step() end
end

--- Raise what a generation failed with, as it was raised.
--- @return self
function Generation:check()
  if self.error ~= nil then error(self.error, 0) end
  return self
end

--- End a generation with what it has; its results have reason "cancelled".
function Generation:cancel()
  local self_lm = self.lm
  self_lm.scheduler:cancel(self.request)
  for _, result in ipairs(self.results) do
    if result._sequence then complete(self, result) end
  end
  self.done = true
  for i, other in ipairs(self_lm.live) do
    if other == self then
      table.remove(self_lm.live, i)
      break
    end
  end
end

--- Forget whatever runs, as after an interrupt; raises in a callback.
function LM:reset()
  self.scheduler:reset()
  while #self.live > 0 do self.live[1]:cancel() end
end

local function first_of(generation)
  local first = generation.results[1]
  if #generation.results > 1 then first.samples = generation.results end
  return first
end

-- Run a request of our own to its end; what else runs goes on meanwhile.
local function finish(self, prompt, opts, level)
  self.scheduler:need_rest "complete" -- before anything is submitted
  local generation = submit(self, prompt, opts, level + 1)
  self:wait(generation)
  return first_of(generation:check())
end

--- Continue a text.
--- @param prompt string|integer[]
--- @param opts table?  max_new_tokens (512), samples, stop, suffix, regex, choices, seed, temperature,
--- top_k, top_p, min_p, repetition_penalty, frequency_penalty, presence_penalty, min_new_tokens,
--- top_logprobs, on_text, ...
--- @return perilune.lm.Result
function LM:complete(prompt, opts)
  if prompts.is_messages(prompt) then error("complete: takes a text or ids; messages are for chat", 2) end
  local result = finish(self, prompt, opts, 2)
  return result
end
options.declare(LM.complete, { "prompt" }, request_defaults)

--- Answer a conversation.
--- @param messages table[]  { role =, content = } each
--- @param opts table?  as for complete, and tools, template (further variables), add_generation_prompt
--- @return perilune.lm.Result  with .message
function LM:chat(messages, opts)
  if not prompts.is_messages(messages) then error("chat: takes a list of messages { role =, content = }", 2) end
  local result = finish(self, messages, opts, 2)
  return result
end
options.declare(LM.chat, { "messages" }, request_defaults)

--- Complete or answer many prompts in one batch. A prompt that is refused raises before any is read; one that fails
--- later has a result with reason "error" and what it failed with as error, and the others go on.
--- @param list table  of texts, of lists of messages or of lists of ids
--- @param opts table?
--- @return perilune.lm.Result[]
function LM:batch(list, opts)
  options.argument("batch", "list", list, "table")
  self.scheduler:need_rest "batch"
  local generations, out = {}, {}
  for i = 1, #list do -- a hole in the list is a prompt that is missing
    local ok, generation = pcall(submit, self, list[i], opts, 1)
    if not ok then
      for _, other in ipairs(generations) do other:cancel() end
      raise(type(generation) == "string" and ("prompt %d: %s"):format(i, generation) or generation, 2)
    end
    generations[i] = generation
  end
  for i, generation in ipairs(generations) do
    self:wait(generation)
    out[i] = first_of(generation)
  end
  return out
end

--- for piece in lm:stream(prompt, opts) do: the text as it comes. Leaving the loop ends the request, and so does the
--- collector where the iterator is given up half-way, as in a coroutine that nobody resumes.
--- The iterator is an object: called after the loop, stream.result is what complete or chat return.
--- @param prompt string|table
--- @param opts table?
--- @return function iterator
function LM:stream(prompt, opts)
  local o = {}
  for k, v in pairs(opts or {}) do o[k] = v end
  if (o.samples or 1) ~= 1 then error(("stream: samples is %s, a stream is of one"):format(tostring(o.samples)), 2) end
  local pieces, stream = {}, {}
  local given = o.on_text
  local problem = given ~= nil and options.problem("on_text", given, request_defaults.on_text)
  if problem then error("stream: " .. problem, 2) end
  function o.on_text(piece, result)
    pieces[#pieces + 1] = piece
    if given then given(piece, result) end
  end
  local generation = submit(self, prompt, o, 2)
  stream.result, stream.generation = generation.results[1], generation
  local function stop()
    if not generation.done then generation:cancel() end
  end
  -- Nobody iterates any more, as where a coroutine was given up: the row is free, and nobody is told.
  local function abandoned()
    if generation.done then return end
    generation.results[1]._on_text = nil
    self.scheduler:cancel(generation.request)
  end
  local meta = { __close = stop, __gc = abandoned, __call = function ()
    while #pieces == 0 and not generation.done do self:step() end
    if #pieces == 0 then
      generation:check()
      return nil
    end
    local text = table.concat(pieces)
    pieces = {}
    return text
  end }
  stream.stop = stop
  setmetatable(stream, meta)
  return stream, nil, nil, stream
end

return require "perilune.names"(M, "perilune.lm")
