-- base.lua - what all models share: loading, saving, parameters and gradients under published names;
-- and what all causal models share.
local peri = require "perilune"
local options = require "perilune.options"
local hf = require "perilune.weights.hf"
local caches = require "perilune.nn.cache"
local context = require "perilune.models.context"
local generate = require "perilune.decode.generate"
local settings = require "perilune.models.settings"
local inputs = require "perilune.models.inputs"
local weights = require "perilune.models.weights"
local describe = require "perilune.models.describe"

local M = {}

-- ---- all models ----------------------------------------------------------------------------------

--- @class perilune.models.Model
--- @field config table  as in config.json
--- @field generation_config table
--- @field settings table  sizes under our names
--- @field training boolean  dropout is on
--- @field source_path string?  what it was read from
local Model = {}
Model.__index = Model
Model.kind = "encoder" -- or "causal", "encoder-decoder"
Model.prefixes = { "" } -- of published names: a checkpoint may lack the first or have another

--- A class of models. It offers read(config, has) -> settings (has: the published names that there
--- are, when they are known), declare(self, d) and forward.
--- @param name string
--- @param parent table?  M.Causal
function M.class(name, parent)
  local class = { __name = name, __tostring = describe, forward_name = name .. ": forward" }
  class.__index = class
  return setmetatable(class, { __index = parent or M.Causal })
end

--- A model without weights.
--- @param class table
--- @param config table  Hugging Face config
--- @param names string[]?  the published tensors there are, for classes that differ by them
function M.create(class, config, names)
  local self = setmetatable({ config = config, generation_config = {}, training = false, layers = {}, _layout = {},
                              _projections = {} }, class)
  local has = {}
  for _, name in ipairs(names or {}) do has[name] = true end
  settings.check(config)
  self.settings = class.read(config, names and has)
  for i = 1, self.settings.layers do self.layers[i] = {} end
  self:declare(weights.declaration(self, names and #names))
  return self
end

--- A model with random weights: normal with standard deviation `std`, norms at their neutral value.
--- @param class table
--- @param config table  Hugging Face config
--- @param opts table?  std (default config.initializer_range or 0.02)
function M.new(class, config, opts)
  local self = M.create(class, config)
  local std = opts and opts.std or config.initializer_range or 0.02
  for _, p in ipairs(self._layout) do
    local t = p.init == "normal" and peri.randn(p.shape):mul_(std) or peri[p.init](p.shape)
    p.owner[p.key] = t:detach():requires_grad_(p.kind ~= "buffer")
  end
  return self:train()
end

--- Other published names of a tensor: of those that are tied to it, a checkpoint may hold any one.
--- @param name string
--- @return string[]
function Model:twins(name) -- luacheck: ignore 212
  return {}
end

--- Whether a published tensor is known and not needed.
function Model:ignored(name) return name:find "rotary_emb%.inv_freq$" ~= nil end

--- Replace every weight by tensors under published names, cast to f32.
--- @param tensors table<string, perilune.Tensor>
--- @return self
function Model:load_state_dict(tensors)
  local names = {}
  for name in pairs(tensors) do names[#names + 1] = name end
  local ok, message = weights.fill(self, names, function (name) return tensors[name] end,
    { dtype = "f32", check = true })
  if not ok then error(message, 2) end
  return self
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

--- Weights under published names; views where rows of a float matrix are meant, not copies.
--- @return table<string, perilune.Tensor>
function Model:state_dict()
  weights.check_adapters(self)
  return weights.split(self, function (p)
    local t = p.owner[p.key]
    return t and t:detach() or p.owner.weights
  end)
end

--- Gradients under published names, of the parameters that have one.
--- @return table<string, perilune.Tensor>
function Model:gradients()
  return weights.split(self, function (p) return p.owner[p.key] and p.owner[p.key].grad end)
end

--- Write a Hugging Face folder: the weights in the dtypes they have (quantised ones as f32), config,
--- generation config.
--- @param folder string
--- @param opts table?  shard_bytes; tokenizer_from: a folder or file whose tokenizer is copied
--- @return boolean|nil ok
--- @return string? message
function Model:save(folder, opts)
  if self._packed then error(self.__name .. ": packed weights cannot be saved; load without pack", 2) end
  local config, list, main = {}, {}, "float32"
  local long = { f16 = "float16", bf16 = "bfloat16" }
  for k, v in pairs(self.config) do config[k] = v end
  for name, t in pairs(self:state_dict()) do
    local dtype = weights.quantised[t.dtype] and "f32" or t.dtype
    if t.ndim == 2 and long[dtype] then main = long[dtype] end
    list[#list + 1] = { name = name, dtype = dtype, shape = t.shape, get = function () return t:to(dtype) end }
  end
  local key = config.torch_dtype and "torch_dtype" or "dtype"
  config.torch_dtype, config.dtype = nil, nil
  config[key] = main
  return hf.write(folder, config, list, { generation_config = self.generation_config,
    shard_bytes = opts and opts.shard_bytes, tokenizer_from = opts and opts.tokenizer_from })
end

--- What is trained, in a fixed order.
--- @return perilune.Tensor[]
function Model:parameters()
  local list = {}
  for i, pair in ipairs(self:named_parameters()) do list[i] = pair[2] end
  return list
end

--- { { name, tensor }, ... } in the order of parameters().
function Model:named_parameters()
  local list = {}
  for _, p in ipairs(self._layout) do
    local t = p.owner[p.key]
    if t and p.kind ~= "buffer" then list[#list + 1] = { p.name, t } end
    for i, w in ipairs(not t and p.owner.weights or {}) do
      list[#list + 1] = { ("%s.%d"):format(p.name, i - 1), w }
    end
  end
  return list
end

--- Linear layers in order.
--- @return perilune.models.Projection[]
function Model:projections() return self._projections end

function Model:num_parameters()
  local n = 0
  for _, p in ipairs(self._layout) do
    if p.kind ~= "buffer" then n = n + p.shape[1] * (p.shape[2] or 1) end
  end
  return n
end

--- A copy that collects no gradients: a reference model. Float weights are its own, quantised and
--- packed ones, which nothing writes to, are shared.
function Model:copy()
  weights.check_adapters(self)
  local names = {}
  for _, p in ipairs(self._layout) do
    for _, part in ipairs(p.parts) do names[#names + 1] = part[1] end
  end
  local other = M.create(getmetatable(self), self.config, names)
  for i, p in ipairs(other._layout) do
    local from = self._layout[i].owner
    local t = from[p.key]
    local packed = self._packed and weights.is_product(p)
    if t and not packed and not weights.quantised[t.dtype] then t = t:detach():clone() end
    p.owner[p.key] = t
    if not t then p.owner.weights = from.weights end
  end
  other.generation_config, other.source_path, other._packed = self.generation_config, self.source_path, self._packed
  return other
end

--- Training mode: dropout is on where the config has one.
--- @param on boolean?
--- @return self
function Model:train(on)
  self.training = on ~= false
  return self
end

--- @return self
function Model:eval() return self:train(false) end

--- Compute each block again in the backward pass instead of keeping what is inside of it.
--- @param on boolean?  true
--- @return self
function Model:checkpointing(on)
  self._checkpointing = on ~= false
  return self
end

-- fn(...), under peri.checkpoint when that is on and gradients are recorded.
function Model:_block(fn, ...)
  if self._checkpointing and peri.grad_enabled() then return peri.checkpoint(fn, ...) end
  return fn(...)
end

--- act(gate) up of a product (..., 2 F) that has both one after the other (2002.05202). -- (..., F)
function M.gated(x, act)
  local n = x:size(-1) // 2
  local gate, up = x:narrow(-1, 1, n), x:narrow(-1, n + 1, n)
  gate = act == "gelu_tanh" and gate:gelu "tanh" or gate[act](gate)
  return gate:mul(up)
end

--- Rows of a table of embeddings of any dtype, in f32, and what an adapter on it adds. -- (..., D)
function Model:embedded(table, ids)
  local x = table:embedding(ids)
  if x.dtype ~= "f32" then x = x:to("f32") end
  for key, module in pairs(self._modules or {}) do
    if module.adapter and key ~= "head" and rawequal(self[key], table) then x = module.adapter:apply(ids, x, module) end
  end
  return x
end

--- What adapters sit on besides projections: "head" for the language-model head, else the key of a table of
--- embeddings. It has the fields of a projection that adapters read, and no weight of its own.
--- @param key string
--- @param name string  published
--- @param rows integer
--- @param columns integer
--- @return table module
function Model:module(key, name, rows, columns)
  self._modules = self._modules or {}
  self._modules[key] = self._modules[key] or { parts = { { name, rows } }, rows = rows, columns = columns,
    transposed = false, key = key }
  return self._modules[key]
end

--- Scores of hidden states by the head, with what an adapter on it adds. -- (..., V)
function M.scores(self, hidden)
  local y = hidden:linear(self.head or self.embed)
  local module = self._modules and self._modules.head
  return module and module.adapter and module.adapter:apply(hidden, y, module) or y
end

--- Log-probabilities and entropies by scores(hidden), of a few positions at a time.
--- @param scores fun(hidden: perilune.Tensor): perilune.Tensor
function M.token_logprob_by(scores, hidden, targets, temperature)
  local rows, ids, logps, entropies, step = hidden:reshape { -1, hidden:size(-1) }, targets:reshape { -1 }, {}, {}, 64
  local function part(h, id)
    local seen = id:ge(0)
    h = h:masked_fill(seen:logical_not():unsqueeze(2), 0) -- a product with 0 would keep NaN and infinities
    local logp = scores(h):div(temperature or 1):log_softmax(-1)
    return logp:gather(id:clamp(0):unsqueeze(2), 2):squeeze(2):mul(seen),
      logp:exp():mul(logp):sum(-1):neg():mul(seen)
  end
  for at = 1, ids:size(1), step do
    local n = math.min(step, ids:size(1) - at + 1)
    local run = peri.grad_enabled() and peri.checkpoint or function (fn, ...) return fn(...) end
    logps[#logps + 1], entropies[#entropies + 1] = run(part, rows:narrow(1, at, n), ids:narrow(1, at, n))
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
local Causal = setmetatable({}, { __index = Model })
Causal.__index = Causal
Causal.kind = "causal"

-- Whether a call is what decoding asks for at every token, which needs no more checks.
local function is_step(ids, given)
  local cache = type(given) == "table" and rawget(given, "cache")
  if type(cache) ~= "table" or (cache.length or 0) == 0 then return false end
  if not peri.is_tensor(ids) or ids.ndim ~= 2 then return false end
  for key in next, given do if key ~= "cache" and key ~= "start" then return false end end
  return true
end

--- What a forward pass knows, and its ids: see perilune.models.context. `prefix` of the model is the default.
--- @param ids perilune.Tensor|perilune.Batch
--- @param given table?
--- @return perilune.models.Context
--- @return perilune.Tensor ids  (B, T)
function Causal:context(ids, given)
  local who, o = self.forward_name
  if is_step(ids, given) then o = { cache = given.cache, start = given.start }
  else ids, o = inputs.read(who, ids, given, inputs.causal, 3) end
  if self.prefix and not o.prefix then
    o.prefix = type(self.prefix) == "function" and self.prefix() or self.prefix
  end
  return context.new(who, ids, o, 3), ids
end

--- Weight of the language-model head. -- (V, D)
function Causal:head_weight() return self.head or self.embed end

--- @param hidden perilune.Tensor  (..., D)
--- @return perilune.Tensor  (..., V)
function Causal:logits(hidden) return M.scores(self, M.hidden(self, hidden)) end

--- Log-probabilities and entropies of given tokens, without their logits ever being held together.
--- @param hidden perilune.Tensor  (..., D): what forward returned for the positions before
--- @param targets perilune.Tensor  (...) i64; -100 gives 0
--- @param temperature number?  1
--- @return perilune.Tensor logp  (...) f32
--- @return perilune.Tensor entropy  (...) f32, nats
function Causal:token_logprob(hidden, targets, temperature)
  if self._modules and self._modules.head and self._modules.head.adapter then
    return M.token_logprob_by(function (h) return M.scores(self, h) end, hidden, targets, temperature)
  end
  return hidden:token_logprob(self:head_weight(), targets, nil, temperature or 1)
end

-- What forward takes, and the temperature.
local scored = { temperature = options.number(1, "(0, inf)", "logits are divided by it") }
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
  local who, o = self.__name .. ": token_logprobs"
  ids, o = inputs.read(who, ids, opts, scored, 2)
  local time, rows = ids:size(2), inputs.rows(who, ids, o, 2)
  if math.type(from) ~= "integer" or from < 2 or from > time then
    error(("%s: from is %s, expected an integer from 2 to %d"):format(who, tostring(from), time), 2)
  end
  local hidden = self:forward(ids:narrow(2, 1, time - 1), {
    start = rows.start and rows.start:clamp(0, time - 1),
    mask = rows.holes and first_columns(rows.mask, time - 1) or nil,
    positions = first_columns(o.positions, time - 1), segments = first_columns(o.segments, time - 1),
    prefix = o.prefix, collect = o.collect })
  local targets = ids:narrow(2, from, time - from + 1)
  if rows.mask then
    local known = rows.mask:narrow(2, from, time - from + 1) -- (B, N)
    if rows.start then known = known:logical_and(peri.arange(from - 1, time):gt(rows.start:unsqueeze(2))) end
    targets = targets:masked_fill(known:logical_not(), -100)
  end
  return self:token_logprob(hidden:narrow(2, from - 1, time - from + 1), targets, o.temperature or 1)
end
options.declare(Causal.token_logprobs, { "ids", "from" }, scored)

--- Room for `length` positions of `batch` sequences.
--- @return perilune.models.Cache
function Causal:cache(batch, length)
  local s = self.settings
  return caches.new { batch = batch, length = length, layers = s.layers, kv_heads = s.kv_heads, head_dim = s.head_dim }
end

--- See perilune.decode.generate.
function Causal:generate(prompt, opts)
  local out = generate.generate(self, prompt, opts, 2) -- no tail call: levels of errors count frames
  return out
end

--- The blocks of a causal model on x (B, T, D) and y, its first norm: hidden states after the last norm.
--- Each block gives the norm of the residual stream and the stream to the next one.
function M.each_block(self, y, x, c)
  for i = 1, #self.layers do
    y, x = self:_block(function (a, b) return self:block(i, a, b, c) end, y, x)
  end
  if c.cache then c.cache.length = c.past + c.time end
  return y
end

--- The same with RMS norms, on embeddings x.
--- @param norm perilune.Tensor?  the first block's norm
function M.run_blocks(self, x, c, norm)
  return M.each_block(self, x:rms_norm(norm or self.layers[1].norm1, self.settings.eps), x, c)
end

--- What the file of an architecture returns: new(config, opts), load(path, opts), Class.
function M.module(class)
  return {
    Class = class,
    new = function (config, opts) return M.new(class, config, opts) end,
    load = function (path, opts)
      local model, message = require("perilune.models").load(path, opts)
      if not model or getmetatable(model) == class then return model, message end
      return nil, ("%s: holds a model of class %s, not %s"):format(path, model.__name, class.__name)
    end,
  }
end

M.Model, M.Causal = Model, Causal
return M
