-- base.lua - what all models share: modules whose tensors have published names, loading and saving of folders; and
-- what all causal models share.
local peri = require "perilune"
local options = require "perilune.options"
local phases = require "perilune.phases"
local hf = require "perilune.weights.hf"
local block = require "perilune.nn.block"
local caches = require "perilune.nn.cache"
local context = require "perilune.nn.context"
local layers = require "perilune.nn.layers"
local generate = require "perilune.decode.generate"
local settings = require "perilune.models.settings"
local inputs = require "perilune.models.inputs"
local weights = require "perilune.models.weights"
local Module = require "perilune.nn.module"
local grouped = require("perilune.nn.describe").grouped

local M = {}

-- ---- all models ----------------------------------------------------------------------------------

--- @class perilune.models.Model: perilune.nn.Module
--- @field config table  as in config.json
--- @field generation_config table
--- @field settings table  sizes under our names
--- @field training boolean  dropout is on
--- @field source_path string?  what it was read from
local Model = Module.class "model"
Model.kind = "encoder" -- or "causal", "encoder-decoder", "scorer"
Model.depth_key = "num_hidden_layers" -- of the config: how many layers
Model.prefixes = { "" } -- of published names: a checkpoint may lack the first or have another
-- What is no tensor of its own, or follows from the config; "dropped": what adapters put on it, which a copy has not.
Model.references = { config = true, generation_config = true, inv_freq = true, _layout = true, _places = true,
  prefix = "dropped", _prefix = "dropped" }

-- ---- as text ----

local sizes = { "vocab", "dim", "layers", "decoder_layers", "heads", "kv_heads", "head_dim", "ff", "experts",
  "positions", "tied" }

--- What stands above the tree of tensors in print(model): class, parameters, dtypes, sizes.
--- @return string
function Model:heading()
  local dtypes, seen, said = {}, {}, {}
  for _, p in ipairs(self:parameters()) do
    local dtype = p.dtype
    if not seen[dtype] then seen[dtype], dtypes[#dtypes + 1] = true, dtype end
  end
  for _, name in ipairs(sizes) do
    local value = self.settings and self.settings[name]
    if type(value) == "number" or value == true then said[#said + 1] = ("%s %s"):format(name, value) end
  end
  return ("%s, %s parameters, %s\n  %s"):format(self.__name, grouped(self:num_parameters()),
    table.concat(dtypes, " and "), table.concat(said, ", "))
end

-- ---- making ----

local function build(self, config, names)
  self.config, self.generation_config, self._layout, self._places = config, {}, {}, {}
  local has = {}
  for _, name in ipairs(names or {}) do has[name] = true end
  settings.check(config)
  self.settings = self.read(config, names and has)
  self:declare(weights.declaration(self, names and #names))
  return self:eval()
end

--- A model without weights.
--- @param class table
--- @param config table  Hugging Face config
--- @param names string[]?  the published tensors there are, for classes that differ by them
function M.create(class, config, names) return build(Module.instance(class), config, names) end

local new_rules = {
  std = options.number(options.none, "[0, inf)", "of the normal initial weights; default initializer_range or 0.02"),
}

--- A class of models. It offers read(config, has) -> settings (has: the published names that there
--- are, when they are known), declare(self, d) and forward. Class(config, opts) is a model with random weights:
--- normal with standard deviation `std`, norms at their neutral value.
--- @param name string
--- @param parent table?  M.Causal
function M.class(name, parent)
  local class = Module.class(name, function (self, config, opts)
    options.argument(name, "config", config, "table")
    local std = options.fill(name, opts, new_rules).std or config.initializer_range or 0.02
    build(self, config)
    for _, p in ipairs(self._layout) do
      local owner, key = weights.at(self, p)
      local t = p.init == "normal" and peri.randn(p.shape):mul_(std) or peri[p.init](p.shape)
      owner[key] = peri.keep(t:detach():requires_grad_(p.kind == "parameter"))
    end
    self:train()
  end, parent or M.Causal)
  class.forward_name = name .. ": forward"
  return options.declare(class, { "config" }, new_rules)
end

--- Other published names of a tensor: of those that are tied to it, a checkpoint may hold any one.
--- @param name string
--- @return string[]
function Model:twins(name) -- luacheck: ignore 212
  return {}
end

--- Whether a published tensor is known and not needed.
function Model:ignored(name) return name:find "rotary_emb%.inv_freq$" ~= nil end

-- What the walk of nn asks: see perilune.nn.walk.
Model._publish = weights.published

-- Other names under which files have a published tensor.
function Model:_also(name)
  local list = weights.candidates(self, name)
  table.remove(list, 1)
  return list
end

--- A model from a source: see perilune.models.load.
--- @param class table
--- @param source table  config, generation_config, names, get(self, name)
--- @param opts table?  dtype, pack
--- @return table|nil model
--- @return string? message
function M.from_source(class, source, opts)
  opts = opts or {}
  local ok, self = pcall(M.create, class, source.config, source.names)
  if not ok then return nil, tostring(source.path) .. ": " .. self end
  local message
  ok, message = weights.fill(self, source.names, function (name) return source:get(name) end,
    { dtype = opts.dtype or "f32", pack = opts.pack })
  if not ok then return nil, tostring(source.path) .. ": " .. message end
  self.generation_config, self.source_path = source.generation_config or {}, source.path
  self._packed = opts.pack or false
  return self
end

-- A folder has the tensors that the architecture declares, no others.
local function check_whole(self, state)
  local known = {}
  for _, p in ipairs(self._layout) do
    for _, part in ipairs(p.parts) do
      known[part[1]] = true
      if not state[part[1]] then
        options.raise(("%s: save: there is no %s: what was at %s was replaced; safetensors.save(path, "
          .. "model:state_dict()) writes what there is"):format(self.__name, part[1], p.path))
      end
    end
  end
  for _, name in ipairs(options.names(state)) do
    if not known[name] then
      options.raise(("%s: save: %s is no tensor of a published %s; safetensors.save(path, model:state_dict()) writes "
        .. "it"):format(self.__name, name, self.__name))
    end
  end
end

local save_rules = { shard_bytes = hf.save_rules.shard_bytes, tokenizer_from = hf.save_rules.tokenizer_from }

--- Write a Hugging Face folder: the weights in the dtypes they have (quantised ones as f32), config,
--- generation config.
--- @param folder string
--- @param opts table?
--- @return boolean|nil ok
--- @return string? message
function Model:save(folder, opts)
  local ok, encode = pcall(function () return type(opts) == "table" and opts.encode end)
  if ok and encode then
    options.raise(self.__name .. ": save: the options are a tokenizer, which is written by tok:save(folder)")
  end
  local o = options.fill(self.__name .. ": save", opts, save_rules)
  if self._packed then error(self.__name .. ": packed weights cannot be saved; load without pack", 2) end
  local config, list, main = {}, {}, "float32"
  local long = { f16 = "float16", bf16 = "bfloat16" }
  for k, v in pairs(self.config) do config[k] = v end
  local state = self:state_dict()
  check_whole(self, state)
  for name, t in pairs(state) do
    local dtype = weights.quantised[t.dtype] and "f32" or t.dtype
    if t.ndim == 2 and long[dtype] then main = long[dtype] end
    list[#list + 1] = { name = name, dtype = dtype, shape = t.shape, get = function () return t:to(dtype) end }
  end
  local key = config.torch_dtype and "torch_dtype" or "dtype"
  config.torch_dtype, config.dtype = nil, nil
  config[key] = main
  return hf.write(folder, config, list, { generation_config = self.generation_config,
    shard_bytes = o.shard_bytes, tokenizer_from = o.tokenizer_from })
end
options.declare(Model.save, { "folder" }, save_rules)

--- Linear layers in order, without the language-model head.
--- @return perilune.nn.Linear[]
function Model:projections()
  local list = {}
  for _, module in ipairs(self:modules()) do
    if getmetatable(module) == layers.Linear and not module.is_head then list[#list + 1] = module end
  end
  return list
end

--- Compute each block again in the backward pass instead of keeping what is inside of it.
--- @param on boolean?  true
--- @return self
function Model:checkpointing(on)
  for _, module in ipairs(self:modules()) do
    if getmetatable(module) == block.Block then module:checkpointing(on) end
  end
  return self
end

-- The dtype of hidden states: f64 after model:to "f64", else f32.
function Model:_computes() return self.embed.weight.dtype == "f64" and "f64" or "f32" end

-- A cache for a stack of blocks, of what each keeps.
function Model:_cache(blocks, batch, length)
  local kept = {}
  for i, one in ipairs(blocks) do kept[i] = one.attention and one.attention.keeps and one.attention:keeps() or {} end
  return caches.new { batch = batch, length = length, layers = kept, dtype = self:_computes() }
end

-- Adapters that are on the model itself.
function Model:_guests()
  local prefix = self._prefix
  return { prefix and rawequal(self.prefix, prefix._put) and prefix or nil }
end

--- Log-probabilities and entropies by scores(hidden), of a few positions at a time. A log-probability has the bits that
--- the op sample gives for the token.
--- @param scores fun(hidden: perilune.Tensor): perilune.Tensor
--- @param hidden perilune.Tensor  (..., D)
--- @param targets perilune.Tensor  (...) i64
--- @param temperature number?
--- @param support perilune.decode.Support?  what the tokens (B, N) were drawn from
function M.token_logprob_by(scores, hidden, targets, temperature, support)
  local rows, ids, logps, entropies = hidden:reshape { -1, hidden:size(-1) }, targets:reshape { -1 }, {}, {}
  local function part(h, id, at)
    local unseen = id:lt(0)
    h = h:masked_fill(unseen:unsqueeze(2), 0) -- a product with 0 would keep NaN and infinities
    local x = scores(h)
    if support then x = support:restrict(x, at, targets:size(-1)) end
    local loss = x:cross_entropy(id:masked_fill(unseen, -100), { reduction = "none", temperature = temperature or 1 })
    local logp = x:div(temperature or 1):log_softmax(-1)
    local term = logp:exp():mul(support and logp:masked_fill(logp:isinf(), 0) or logp)
    return loss:neg():masked_fill(unseen, 0), term:sum(-1):neg():masked_fill(unseen, 0)
  end
  -- From the last to the first, so that the backward pass meets them in order; none of two rows, so that what the rows
  -- beside it are changes no sum over one.
  local pieces, width = {}, targets.ndim > 1 and targets:size(-1) or ids:size(1)
  for first = 1, ids:size(1), width do
    for at = first, first + width - 1, 64 do pieces[#pieces + 1] = { at, math.min(64, first + width - at) } end
  end
  local run = peri.grad_enabled() and peri.checkpoint or function (fn, ...) return fn(...) end
  for k = #pieces, 1, -1 do
    local at, n = pieces[k][1], pieces[k][2]
    logps[k], entropies[k] = run(part, rows:narrow(1, at, n), ids:narrow(1, at, n), at)
  end
  return peri.cat(logps, 1):reshape(targets.shape), peri.cat(entropies, 1):reshape(targets.shape)
end

--- Hidden states as forward returned them; raises for what logits cannot be made of.
--- @param hidden any
--- @return perilune.Tensor  (..., D)
function M.hidden(self, hidden)
  if peri.is_tensor(hidden) and hidden.dtype ~= "i64" then return hidden end
  error(("%s: logits takes hidden states (..., %d), as model:logits(model:forward(ids)), not %s"):format(self.__name,
    self.settings.dim, peri.is_tensor(hidden) and "ids" or "a " .. type(hidden)), 3)
end

--- x, or x after dropout while training.
function Model:dropout(x, p)
  if not self.training or p == 0 then return x end
  return x:dropout(p)
end

--- The most positions of a sequence, by a model's config: inf where it says none.
--- @param model table
--- @return number
function M.context_length(model)
  local config = model.config or {}
  return config.max_position_embeddings or config.n_positions or config.n_ctx or math.huge
end

--- Why a model is not one that goes on from a text, or nil when it is.
--- @param model table  a model of this library or anything that offers the same
--- @return string?
function M.no_causal(model)
  local kind = type(model) == "table" and model.kind
  if kind == "encoder" then
    return ("%s is an encoder: it cannot generate; perilune embed and perilune.embed make vectors of texts")
      :format(model.__name)
  elseif kind == "encoder-decoder" then
    return ("%s is an encoder-decoder: it answers an input, with model:generate, and does not go on from a text")
      :format(model.__name)
  elseif kind == "scorer" then
    return ("%s gives a number for each token: it has no logits and does not go on from a text"):format(model.__name)
  end
end

for _, name in ipairs { "generate", "cache", "token_logprob", "token_logprobs" } do
  Model[name] = function (self) error(("%s: %s"):format(name, M.no_causal(self)), 2) end
end

--- One vector a row: hidden states of its tokens, pooled. See perilune.embed for whole texts.
--- @param ids perilune.Tensor|perilune.Batch  (B, T) i64
--- @param opts table?  pooling ("mean"; or a list of them, side by side), normalize (false), and what forward takes
--- @return perilune.Tensor  (B, D) f32
function Model:vectors(ids, opts)
  local out = require("perilune.lm.embed").rows(self, ids, opts, 2)
  return out
end

-- ---- causal models ------------------------------------------------------------------------------

--- @class perilune.models.Causal: perilune.models.Model
local Causal = Module.class("causal model", nil, Model)
Causal.kind = "causal"

-- Whether a call is what decoding asks for at every token, which needs no more checks.
local function is_step(ids, given)
  local cache = type(given) == "table" and rawget(given, "cache")
  if type(cache) ~= "table" or (cache.length or 0) == 0 then return false end
  if not peri.is_tensor(ids) or ids.ndim ~= 2 then return false end
  for key in next, given do if key ~= "cache" and key ~= "start" then return false end end
  return true
end

local function check_routes(who, s, routes, ids)
  if not s.experts or s.dense >= s.layers then
    options.raise(who .. ": routes are given and the model has no experts")
  end
  local want = { ids:size(1), ids:size(2), s.layers - s.dense, s.active }
  if routes.dtype ~= "i64" or options.shape(routes) ~= options.shape(want) then
    options.raise(("%s: routes is %s of shape %s, expected i64 of %s"):format(who, routes.dtype, options.shape(routes),
      options.shape(want)))
  end
end

--- What a forward pass knows, and its ids: see perilune.nn.context. `prefix` of the model is the default.
--- @param ids perilune.Tensor|perilune.Batch
--- @param given table?
--- @return perilune.nn.Context
--- @return perilune.Tensor ids  (B, T)
function Causal:context(ids, given)
  local who, o = self.forward_name
  if is_step(ids, given) then o = { cache = given.cache, start = given.start }
  else ids, o = inputs.read(who, ids, given, inputs.causal) end
  if self.prefix and not o.prefix then
    o.prefix = self.prefix
    if type(o.prefix) == "function" then o.prefix = o.prefix() end -- nil: off
  end
  inputs.place(who, ids, o)
  if o.routes then check_routes(who, self.settings, o.routes, ids) end
  return context.new(who, ids:size(1), ids:size(2), o), ids
end

--- Weight of the language-model head. -- (V, D)
function Causal:head_weight() return self.head:matrix() end

--- @param hidden perilune.Tensor  (..., D)
--- @return perilune.Tensor  (..., V)
function Causal:logits(hidden) return self.head:forward(M.hidden(self, hidden)) end

--- Log-probabilities and entropies of given tokens, without their logits ever being held together.
--- @param hidden perilune.Tensor  (..., D): what forward returned for the positions before
--- @param targets perilune.Tensor  (...) i64; -100 gives 0
--- @param temperature number?  1
--- @param support perilune.decode.Support?  of targets (B, N): the log-probabilities are those of what they were drawn
--- from, as generate gave it with sampling "renormalised"
--- @return perilune.Tensor logp  (...) f32
--- @return perilune.Tensor entropy  (...) f32, nats
function Causal:token_logprob(hidden, targets, temperature, support)
  if support or not self.head:is_plain() then
    return M.token_logprob_by(function (h) return self.head:forward(h) end, hidden, targets, temperature, support)
  end
  return hidden:token_logprob(self:head_weight(), targets, nil, temperature or 1)
end

-- What forward takes, and the temperature.
local scored = { temperature = options.number(1, "(0, inf)", "logits are divided by it"),
  support = options.value(options.none, "table", "of generate: what the tokens from `from` on were drawn from") }
for name, rule in pairs(inputs.causal) do scored[name] = rule end
scored.cache = nil

local function first_columns(t, n) return t and t:narrow(-1, 1, n) end

--- Log-probabilities and entropies of a sequence's own tokens. What is no token, or has none before it in its row,
--- gets 0 for both.
--- @param ids perilune.Tensor|perilune.Batch  (B, T) i64: prompt and completion
--- @param from integer  first position (counted from 1) whose token is wanted
--- @param opts table?  temperature (1), and what forward takes, for all T columns
--- @return perilune.Tensor logp  (B, T - from + 1) f32
--- @return perilune.Tensor entropy  same shape, nats
function Causal:token_logprobs(ids, from, opts)
  local phase <close> = phases.open "forward" -- luacheck: ignore 211
  local who, o = self.__name .. ": token_logprobs"
  ids, o = inputs.read(who, ids, opts, scored)
  local time, rows = ids:size(2), inputs.rows(who, ids, o)
  if math.type(from) ~= "integer" or from < 2 or from > time then
    options.raise(("%s: from is %s, expected an integer from 2 to %d"):format(who, tostring(from), time))
  end
  local batch = rows.batch and rows.batch:columns(time - 1)
  local hidden = self:forward(batch or ids:narrow(2, 1, time - 1), {
    start = not batch and rows.start and rows.start:clamp(0, time - 1) or nil,
    mask = rows.holes and first_columns(rows.mask, time - 1) or nil,
    positions = first_columns(o.positions, time - 1), segments = first_columns(o.segments, time - 1),
    prefix = o.prefix, collect = o.collect, routes = o.routes and o.routes:narrow(2, 1, time - 1) })
  local targets = ids:narrow(2, from, time - from + 1)
  if rows.mask then
    local known = rows.mask:narrow(2, from, time - from + 1) -- (B, N)
    if rows.start then known = known:logical_and(peri.arange(from - 1, time):gt(rows.start:unsqueeze(2))) end
    targets = targets:masked_fill(known:logical_not(), -100)
  end
  return self:token_logprob(hidden:narrow(2, from - 1, time - from + 1), targets, o.temperature or 1, o.support)
end
options.declare(Causal.token_logprobs, { "ids", "from" }, scored)

--- Room for `length` positions of `batch` sequences: for what each layer keeps of them.
--- @return perilune.nn.Cache
function Causal:cache(batch, length) return self:_cache(self.layers, batch, length) end

--- See perilune.decode.generate.
function Causal:generate(prompt, opts)
  local out = generate.generate(self, prompt, opts, 2) -- no tail call: levels of errors count frames
  return out
end

--- What the first block reads of ids; architectures override it. -- (B, T, D)
--- @param ids perilune.Tensor  (B, T)
--- @param c perilune.nn.Context
function Causal:embedded(ids, c) -- luacheck: ignore 212
  return self.embed:forward(ids)
end

--- Hidden states after the last norm.
--- @param ids perilune.Tensor|perilune.Batch  (B, T) i64
--- @param opts table?  mask, start, lengths, positions, segments, cache, prefix, collect: see perilune.models.inputs
--- @return perilune.Tensor  (B, T, D) f32
function Causal:forward(ids, opts)
  local c
  c, ids = self:context(ids, opts)
  local y = block._run(self.layers, self:embedded(ids, c), c, self.norm)
  c:finish()
  return y
end
options.declare(Causal.forward, { "ids" }, inputs.causal)

-- The tied head is the table of embeddings under another name.
function Causal:twins(name)
  return self.settings.tied and name == self.embed.parts[1][1] .. ".weight" and { "lm_head.weight" } or {}
end

--- A checkpoint with tied embeddings may hold the head all the same.
function Causal:ignored(name)
  return name == "lm_head.weight" and self.settings.tied or Model.ignored(self, name)
end

-- ---- parts that architectures share ----

--- A stack of n blocks in a field of the model, whose parts `fill` declares.
--- @param name string
--- @param n integer
--- @param fields table?  of every block
--- @param fill fun(one: perilune.nn.Block, i: integer, ours: string)  ours: the path of block i with a dot behind
function Model:stack(name, n, fields, fill)
  local list = {}
  for i = 1, n do list[i] = block._without_parts(fields) end
  self[name] = list
  for i, one in ipairs(list) do fill(one, i, ("%s.%d."):format(name, i - 1)) end
end

--- What the file of an architecture returns: new(config, opts), load(path, opts), Class.
function M.module(class)
  return {
    Class = class,
    new = class,
    load = function (path, opts)
      local model, message = require("perilune.models").load(path, opts)
      if not model or getmetatable(model) == class then return model, message end
      return nil, ("%s: holds a model of class %s, not %s"):format(path, model.__name, class.__name)
    end,
  }
end

M.Model, M.Causal = Model, Causal
return M
