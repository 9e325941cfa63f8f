-- lm.lua - a language model for texts: a model, its tokenizer and chat template, stop tokens and
-- strings, streaming. Requests of any number share one batch (perilune.models.batching).
--   local lm = assert(peri.lm.load "SmolLM2-135M-Instruct.gguf")
--   print(lm:chat { { role = "user", content = "What is the capital of France?" } }.text)
--   for piece in lm:stream("Once upon a time", { max_new_tokens = 50 }) do io.write(piece) end
local peri = require "perilune"
local options = require "perilune.options"
local base = require "perilune.models.base"
local batching = require "perilune.models.batching"
local constraint = require "perilune.models.constraint"
local prefix_cache = require "perilune.models.prefix_cache"
local sampler = require "perilune.models.sampler"

local M = {}

--- @class perilune.lm.Model
--- @field model table
--- @field tok table  tokenizer
--- @field scheduler perilune.models.Scheduler
--- @field prefix_cache perilune.models.PrefixCache?
--- @field stop_ids integer[]  tokens that end an answer
--- @field widened string?  dtype that the file has, where lm.load took "auto" and made f32 of it
local LM = {}
LM.__index = LM

-- Settings of a request; those of perilune.models.sampler come on top.
local request_defaults = {
  max_new_tokens = 512, samples = 1,
  stop = {},                   -- texts that end the completion and are no part of it (or one); ids, too
  suffix = options.none,       -- fill-in-the-middle: the text behind the gap
  regex = options.none,        -- the completion matches this pattern: see perilune.models.regex
  choices = options.none,      -- the completion is one of these texts
  template = {},               -- further variables of the chat template
  tools = options.none,        -- of the chat template
  add_generation_prompt = true,
  ignore_stop = false,         -- go on behind stop tokens
  on_text = options.none,      -- on_text(piece, result), whole characters, as they come
  remember = true,
}
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
  local why = base.no_causal(model)
  if why then error("lm.new: " .. why, 2) end
  local self = setmetatable({ model = model, tok = tok, stop_ids = {}, live = {} }, LM)
  if o.prefix_cache_bytes > 0 then self.prefix_cache = prefix_cache.new { bytes = o.prefix_cache_bytes } end
  self.scheduler = batching.new(model,
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

-- Models of so many parameters fit into a GiB as f32.
local SMALL <const> = 1 << 28

-- The dtype of most weights of a model as it is stored.
local function stored_dtype(model)
  local count, best = {}, nil
  for _, p in ipairs(model:projections()) do
    for _, w in ipairs(p:tensors()) do
      count[w.dtype] = (count[w.dtype] or 0) + w:numel()
      if not best or count[w.dtype] > count[best] then best = w.dtype end
    end
  end
  return best
end

-- A small model is not worth the rounding of quantised products. The third result is what was stored in fewer bits
-- than it has now.
local function load_model(path, dtype, pack)
  local models = require "perilune.models"
  if dtype ~= "auto" then return models.load(path, { dtype = dtype, pack = pack }) end
  local model, message = models.load(path, { dtype = "file" })
  if not model then return nil, message end
  dtype = model:num_parameters() <= SMALL and "f32" or "file"
  if dtype == "file" and not pack then return model end
  local stored = dtype == "f32" and stored_dtype(model) or nil
  model, message = models.load(path, { dtype = dtype, pack = pack })
  return model, message, stored ~= "f32" and stored or nil
end

local load_rules = {
  dtype = options.value("auto", "string", "of the weights, as for models.load; auto: f32 up to 2^28, else as stored"),
  pack = options.boolean(true, "weights are laid out for this processor; false where they are to be trained"),
  tokenizer = options.value(options.none, "string", "path, where it lies elsewhere"),
}
for name, rule in pairs(new_rules) do load_rules[name] = rule end

--- Read a model with its tokenizer.
--- @param path string  Hugging Face folder, .gguf or llama2.c .bin file
--- @param opts table?  dtype of the weights as for models.load, or "auto" (the default): "f32" up to 2^28
--- parameters, else "file", as stored; pack (true): weights are laid out for this processor; false where
--- they are to be trained; tokenizer (path, where it lies elsewhere), and those of lm.new
--- @return perilune.lm.Model|nil
--- @return string? message
function M.load(path, opts)
  local o = options.fill("lm.load", opts, load_rules)
  local models = require "perilune.models"
  local tok, model, stored
  local source, message = models.open(path)
  if not source then return nil, message end
  local why = models.architecture(source.config)
  why = why and base.no_causal(why.Class)
  if why then return nil, ("%s: %s"):format(path, why) end
  tok, message = peri.tokenizer.load(o.tokenizer or source.tokenizer_path or path)
  if not tok then return nil, message end
  model, message, stored = load_model(path, o.dtype, o.pack)
  if not model then return nil, message end
  local self = M.new(model, tok,
    { rows = o.rows, prefix_cache_bytes = o.prefix_cache_bytes, prefill_chunk = o.prefill_chunk })
  self.widened = stored
  return self
end
options.declare(M.load, { "path" }, load_rules)

-- ---- prompts ------------------------------------------------------------------------------------

local function is_messages(prompt)
  return type(prompt) == "table" and type(prompt[1]) == "table"
end

-- Ids of a text none of which is one of the given tokens, even where the text spells one.
local function ids_without(tok, text, tokens)
  local plain, ids, at = { add_special = false, parse_special = false }, {}, 1
  while at <= #text do
    local cut = #text
    for _, id in pairs(tokens) do -- a token that is spelled is cut behind its first character
      local name = tok:token(id)
      local from = name and text:find(name, at, true)
      if from then cut = math.min(cut, utf8.offset(text, 2, from) - 1) end
    end
    for _, id in ipairs(tok:encode(text:sub(at, cut), plain)) do ids[#ids + 1] = id end
    at = cut + 1
  end
  return ids
end

-- Fill-in-the-middle: prefix, suffix, then the model writes the middle (arXiv:2207.14255, PSM).
local function fill_in(self, prefix, suffix)
  local tok, fim = self.tok, self.tok.fim
  if not (fim and fim.prefix and fim.suffix and fim.middle) then
    error("complete: this tokenizer has no tokens for fill-in-the-middle, so a suffix cannot be taken in", 0)
  end
  local ids = {}
  local empty = tok:encode("", { add_special = true })
  if empty[1] and empty[1] == tok.bos then ids[1] = tok.bos end
  ids[#ids + 1] = fim.prefix
  for _, id in ipairs(ids_without(tok, prefix, fim)) do ids[#ids + 1] = id end
  ids[#ids + 1] = fim.suffix
  for _, id in ipairs(ids_without(tok, suffix, fim)) do ids[#ids + 1] = id end
  ids[#ids + 1] = fim.middle
  return ids
end

--- The ids that a prompt is for the model.
--- @param prompt string|table  text, list of messages { role =, content = }, or list of ids
--- @param opts table?  suffix, tools, template, add_generation_prompt
--- @return integer[]
function LM:ids(prompt, opts)
  local o = opts or {}
  if type(prompt) == "string" then
    if o.suffix then return fill_in(self, prompt, o.suffix) end
    return self.tok:encode(prompt, { add_special = true, parse_special = true })
  elseif is_messages(prompt) then
    local text = self:render(prompt, o)
    return self.tok:encode(text, { add_special = false, parse_special = true })
  elseif type(prompt) == "table" then
    return table.move(prompt, 1, #prompt, 1, {})
  end
  error(("lm: a prompt is a text, a list of messages or a list of ids, not a %s"):format(type(prompt)), 2)
end

--- The text that the chat template makes of messages.
--- @param messages table[]
--- @param opts table?  tools, template, add_generation_prompt (true)
--- @return string
function LM:render(messages, opts)
  local o, vars = opts or {}, {}
  if not self.tok.chat_template then
    error("chat: this model has no chat template; use complete", 0)
  end
  for k, v in pairs(o.template or {}) do vars[k] = v end
  vars.tools, vars.add_generation_prompt = o.tools, o.add_generation_prompt ~= false
  return self.tok:chat(messages, vars)
end

-- ---- texts as they grow -------------------------------------------------------------------------

-- How many bytes at the end of a text may be the begin of a stop string.
local function held_back(text, stops)
  local most = 0
  for _, stop in ipairs(stops) do
    for n = math.min(#stop - 1, #text), most + 1, -1 do
      if text:sub(-n) == stop:sub(1, n) then
        most = n
        break
      end
    end
  end
  return most
end

-- Text that became certain with a piece, and whether a stop string ended it.
local function grow(result, piece)
  local text = result._held .. piece
  local cut
  for _, stop in ipairs(result._stops) do
    local at = text:find(stop, 1, true)
    if at and (not cut or at < cut) then cut = at end
  end
  if cut then
    result._held = ""
    return text:sub(1, cut - 1), true
  end
  local keep = held_back(text, result._stops)
  result._held = keep > 0 and text:sub(-keep) or ""
  return text:sub(1, #text - keep), false
end

local function emit(result, text)
  if text == "" then return end
  result._parts[#result._parts + 1] = text
  if result._on_text then result._on_text(text, result) end
end

-- The tokenizer's stream, or one for tokenizers whose tokens are whole characters.
local function open_stream(tok)
  if tok.stream then return tok:stream { skip_special = true } end
  return { push = function (_, id) return tok:decode { id } end, finish = function () return "" end }
end

--- One completion. reason as in perilune.models.batching, and "stop" also at a stop string.
--- @class perilune.lm.Result
--- @field text string
--- @field tokens integer[]
--- @field logprobs number[]
--- @field top table[]?
--- @field reason string
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

local Generation = {}
Generation.__index = Generation

--- Ask for completions of a prompt; step() or wait() makes them.
--- @param prompt string|table  text, list of messages, or list of ids
--- @param opts table?  see the top of this file
--- @return table generation  results (a list), done
function LM:submit(prompt, opts)
  local o = options.fill("lm", opts, request_defaults, 4)
  local stop_ids, stops, have = {}, {}, {}
  if not o.ignore_stop then add_ids(stop_ids, have, self.stop_ids) end
  for _, stop in ipairs(type(o.stop) == "table" and o.stop or { o.stop }) do
    if type(stop) == "string" and stop ~= "" then stops[#stops + 1] = stop
    elseif math.tointeger(stop) then add_ids(stop_ids, have, stop)
    else error(("lm: %s is no stop text or id"):format(tostring(stop)), 3) end
  end
  local request = sampler_options(self, o)
  request.constraint = constraint.from(o, self.tok)
  request.max_new_tokens, request.samples, request.stop, request.remember =
    o.max_new_tokens, o.samples, stop_ids, o.remember
  local ids = self:ids(prompt, o)
  local chat, by_sequence = is_messages(prompt), {}
  local generation = setmetatable({ lm = self, results = {}, done = false, chat = chat, prompt_ids = ids }, Generation)
  function request.on_token(sequence, id)
    local result = by_sequence[sequence.index]
    result.tokens[#result.tokens + 1] = id
    if have[id] then return false end
    local text, ended = grow(result, result._stream:push(id))
    emit(result, text)
    result._cut = ended
    return ended
  end
  generation.request = self.scheduler:submit(ids, request)
  for k, sequence in ipairs(generation.request.sequences) do
    local result = setmetatable({ tokens = {}, logprobs = sequence.logprobs, top = sequence.top, index = k,
      prompt_tokens = #ids, _held = "", _stops = stops, _parts = {}, _on_text = o.on_text,
      _stream = open_stream(self.tok), _sequence = sequence }, Result)
    -- a space that a word begins with stands there unless the word is the text's first
    if not chat then result._stream:push(ids[#ids]) end
    by_sequence[k], generation.results[k] = result, result
  end
  if chat then
    local tail = self.tok:decode(table.move(ids, math.max(1, #ids - 7), #ids, 1, {}), { skip_special = false })
    generation.thinking = tail:find "<think>%s*$" ~= nil
  end
  self.live[#self.live + 1] = generation
  return generation
end

-- A sequence has ended: what was held back is text after all.
local function complete(generation, result)
  local sequence = result._sequence
  if not result._cut then
    local text, ended = grow(result, result._stream:finish())
    emit(result, ended and text or text .. result._held)
  end
  result.text, result.reason = table.concat(result._parts), sequence.reason
  result.cached_tokens = sequence.request.cached_tokens or 0
  if generation.chat then
    local content, reasoning = M.split_reasoning(result.text, generation.thinking)
    result.message = { role = "assistant", content = content, reasoning_content = reasoning }
  end
  for _, name in ipairs { "_held", "_stops", "_parts", "_on_text", "_stream", "_sequence", "_cut" } do
    result[name] = nil
  end
end

--- Let every running sequence make one token.
--- @return boolean more  whether there is anything left to do
function LM:step()
  local more = self.scheduler:step()
  local live = {}
  for _, generation in ipairs(self.live) do
    local open = 0
    for _, result in ipairs(generation.results) do
      if result._sequence then
        if result._sequence.reason then complete(generation, result) else open = open + 1 end
      end
    end
    generation.done = open == 0
    if open > 0 then live[#live + 1] = generation end
  end
  self.live = live
  return more
end

--- Step until a generation is done, or all are.
--- @param generation table?
function LM:wait(generation)
  while not (generation and generation.done) and #self.live > 0 do self:step() end
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

--- Forget whatever runs, as after an error in the middle of a step.
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
local function finish(self, prompt, opts)
  local generation = self:submit(prompt, opts)
  self:wait(generation)
  return first_of(generation)
end

--- Continue a text.
--- @param prompt string|integer[]
--- @param opts table?  max_new_tokens (512), samples, stop, suffix, regex, choices, seed, temperature,
--- top_k, top_p, min_p, repetition_penalty, frequency_penalty, presence_penalty, min_new_tokens,
--- top_logprobs, on_text, ...
--- @return perilune.lm.Result
function LM:complete(prompt, opts)
  if is_messages(prompt) then error("complete: takes a text or ids; messages are for chat", 2) end
  return finish(self, prompt, opts)
end

--- Answer a conversation.
--- @param messages table[]  { role =, content = } each
--- @param opts table?  as for complete, and tools, template (further variables), add_generation_prompt
--- @return perilune.lm.Result  with .message
function LM:chat(messages, opts)
  if not is_messages(messages) then error("chat: takes a list of messages { role =, content = }", 2) end
  return finish(self, messages, opts)
end

--- Complete or answer many prompts in one batch.
--- @param prompts table  list of texts, of lists of messages or of lists of ids
--- @param opts table?
--- @return perilune.lm.Result[]
function LM:batch(prompts, opts)
  local generations, out = {}, {}
  for i, prompt in ipairs(prompts) do generations[i] = self:submit(prompt, opts) end
  for i, generation in ipairs(generations) do
    self:wait(generation)
    out[i] = first_of(generation)
  end
  return out
end

--- for piece in lm:stream(prompt, opts) do: the text as it comes. Leaving the loop ends the request.
--- The iterator is an object: called after the loop, stream.result is what complete or chat return.
--- @param prompt string|table
--- @param opts table?
--- @return function iterator
function LM:stream(prompt, opts)
  local o = {}
  for k, v in pairs(opts or {}) do o[k] = v end
  if (o.samples or 1) ~= 1 then error("stream: takes one sample", 2) end
  local pieces, stream = {}, {}
  local given = o.on_text
  function o.on_text(piece, result)
    pieces[#pieces + 1] = piece
    if given then given(piece, result) end
  end
  local generation = self:submit(prompt, o)
  stream.result, stream.generation = generation.results[1], generation
  local function stop()
    if not generation.done then generation:cancel() end
  end
  local meta = { __close = stop, __call = function ()
    while #pieces == 0 and not generation.done do self:step() end
    if #pieces == 0 then return nil end
    local text = table.concat(pieces)
    pieces = {}
    return text
  end }
  stream.stop = stop
  setmetatable(stream, meta)
  return stream, nil, nil, stream
end

return M
