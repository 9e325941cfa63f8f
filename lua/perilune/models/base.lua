-- base.lua - what all models share: a declaration of their weights, once, from which loading, saving,
-- parameters and gradients under published names follow; and what all causal models share.
local peri = require "perilune"
local hf = require "perilune.models.hf"
local caches = require "perilune.models.cache"
local context = require "perilune.models.context"
local generate = require "perilune.models.generate"
local Projection = require "perilune.models.projection"

local M = {}

-- ---- declarations -------------------------------------------------------------------------------

-- An entry of a layout is a tensor that we hold: { name (ours), owner, key, shape, init ("normal",
-- "ones", "zeros"), kind ("linear", "embedding", "vector", "buffer": not trained), transposed, parts },
-- where parts are the published tensors that it is made of, { name, rows } each, one above the other.

--- @class perilune.models.Declaration
local Declaration = {}
Declaration.__index = Declaration

--- Say where the next weights are.
--- @param owner table  what holds them
--- @param ours string  prefix of their names
--- @param published string  prefix of their published names
function Declaration:at(owner, ours, published)
  self.owner, self.ours, self.published = owner, ours, published
end

local function add(self, owner, key, name, entry)
  entry.name, entry.owner, entry.key = self.ours .. name, owner, key
  table.insert(self.model._layout, entry)
end

--- A tensor. init is "ones" (default), "zeros" or "normal"; kind "vector" (default), "embedding", "buffer".
function Declaration:tensor(key, published, shape, init, kind)
  add(self, self.owner, key, key, { shape = shape, init = init or "ones", kind = kind or "vector",
    parts = { { self.published .. published, shape[1] } } })
end

--- A LayerNorm: key .. "_w" and key .. "_b".
function Declaration:layer_norm(key, published, dim)
  self:tensor(key .. "_w", published .. ".weight", { dim })
  self:tensor(key .. "_b", published .. ".bias", { dim }, "zeros")
end

--- A table of embeddings.
function Declaration:embedding(key, published, rows, columns)
  self:tensor(key, published, { rows, columns }, "normal", "embedding")
end

--- A linear layer of one or more published matrices { name, rows }.
function Declaration:linear(key, columns, parts, bias, transposed)
  local named, weights, biases = {}, {}, {}
  for i, part in ipairs(parts) do
    named[i] = { self.published .. part[1], part[2] }
    weights[i], biases[i] = { named[i][1] .. ".weight", part[2] }, { named[i][1] .. ".bias", part[2] }
  end
  local p = Projection.new(named, columns, transposed)
  self.owner[key] = p
  table.insert(self.model._projections, p)
  add(self, p, "weight", key, { shape = { p.rows, columns }, init = "normal", kind = "linear", parts = weights,
    transposed = transposed or false })
  if bias then
    add(self, p, "bias", key .. "_bias", { shape = { p.rows }, init = "zeros", kind = "vector", parts = biases })
  end
end

-- ---- all models ----------------------------------------------------------------------------------

--- @class perilune.models.Model
--- @field config table  as in config.json
--- @field generation_config table
--- @field settings table  sizes under our names
--- @field training boolean  dropout is on
--- @field source_path string?  what it was read from
local Model = {}
Model.__index = Model
Model.prefixes = { "" } -- of published names: a checkpoint may lack the first or have another

--- A class of models. It offers read(config, has) -> settings (has: the published names that there
--- are, when they are known), declare(self, d) and forward.
--- @param name string
--- @param parent table?  M.Causal
function M.class(name, parent)
  local class = { __name = name }
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
  self.settings = class.read(config, names and has)
  for i = 1, self.settings.layers do self.layers[i] = {} end
  self:declare(setmetatable({ model = self }, Declaration))
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

--- A required entry of a config; says which model misses it.
function M.need(config, key)
  return config[key] or error(("%s: the config lacks %q"):format(config.model_type or "model", key), 0)
end

-- Names under which checkpoints of other ages have the same tensor.
local function candidates(self, name)
  local list = { name }
  local first = self.prefixes[1]
  if #first > 0 and name:sub(1, #first) == first then list[2] = name:sub(#first + 1) end
  local n = #list
  for i = 1, n do
    local old = list[i]:gsub("LayerNorm%.weight$", "LayerNorm.gamma"):gsub("LayerNorm%.bias$", "LayerNorm.beta")
    if old ~= list[i] then list[#list + 1] = old end
  end
  return list
end

local quantised = { q8_0 = 32, q4_0 = 32, q4_1 = 32, q5_0 = 32, q5_1 = 32, q4_K = 256, q5_K = 256, q6_K = 256 }

-- The dtype that a weight of this entry is kept in.
local function kept(p, stored, wanted)
  if p.kind == "vector" or p.kind == "buffer" then return "f32" end
  if wanted == "file" then
    if p.transposed and quantised[stored] then return "f32" end
    return stored
  end
  local block = quantised[wanted]
  if block and p.shape[2] % block ~= 0 then return "f16" end -- rows that blocks do not divide
  return wanted
end

-- Rows of matrices one above the other, as one matrix.
local function stack(list)
  if #list == 1 then return list[1] end
  if not quantised[list[1].dtype] then return peri.cat(list, 1) end
  local bytes = {}
  for i, t in ipairs(list) do bytes[i] = t:bitcast("u8") end
  return peri.cat(bytes, 1):bitcast(list[1].dtype)
end

-- Tensors of one entry, cast: one, or a list where the parts' dtypes differ. With `into` they are
-- written over it.
local function gather(p, parts, wanted, into)
  local scope <close> = peri.scope()
  local dtypes, same = {}, true
  for i, t in ipairs(parts) do
    dtypes[i] = kept(p, t.dtype, wanted)
    same = same and dtypes[i] == dtypes[1]
  end
  if into or (same and not quantised[dtypes[1]] and not (wanted == "file" and #parts == 1)) then
    local t, at = into or peri.empty(p.shape, dtypes[1]), 1
    for i, part in ipairs(parts) do -- one at a time: the peak is what is kept and one part
      local one <close> = peri.scope() -- luacheck: ignore 211
      if quantised[part.dtype] then part = part:to(t.dtype) end
      t:narrow(1, at, p.parts[i][2]):copy_(p.transposed and part:transpose() or part)
      at = at + p.parts[i][2]
    end
    return scope:keep(t)
  end
  for i, part in ipairs(parts) do
    if part.dtype ~= dtypes[i] then parts[i] = part:to(dtypes[i]) end
    if p.transposed then parts[i] = parts[i]:transpose():contiguous() end
  end
  if same then return scope:keep(stack(parts)) end
  scope:keep(table.unpack(parts))
  return parts
end

-- A weight takes its place; those in f32 are trained.
local function place(p, made, pack)
  local owner = p.owner
  if p.kind == "linear" then owner.packed = pack end
  if type(made) == "table" then
    if pack then for i, t in ipairs(made) do made[i] = peri.pack(t) end end
    owner.weights, owner.weight = made, nil
    return
  end
  if pack and #p.shape == 2 and p.kind ~= "vector" then made = peri.pack(made)
  elseif made.dtype == "f32" then made = made:detach():requires_grad_(p.kind ~= "buffer") end
  owner[p.key] = made
end

-- What a published tensor has to be like. Returns what is wrong with it, or nil.
local function misfit(p, part, t)
  local want = { part[2], p.shape[2] }
  if p.transposed then want = { p.shape[2], part[2] } end
  local same = t.ndim == #p.shape
  for i = 1, #p.shape do same = same and t:size(i) == want[i] end
  if same then return nil end
  return ("%s has shape (%s), expected (%s)"):format(part[1], table.concat(t.shape, ", "), table.concat(want, ", "))
end

-- Fill every weight from get(name). `whole`: nothing is written unless everything fits.
local function fill(self, names, get, opts, whole)
  local have, used, found, problems = {}, {}, {}, {}
  for _, name in ipairs(names) do have[name] = true end
  for _, p in ipairs(self._layout) do
    for _, part in ipairs(p.parts) do
      for _, name in ipairs(candidates(self, part[1])) do
        if have[name] and not found[part[1]] then found[part[1]], used[name] = name, true end
      end
      if not found[part[1]] then problems[#problems + 1] = part[1] .. " is missing"
      elseif whole then problems[#problems + 1] = misfit(p, part, get(found[part[1]])) end
    end
  end
  for _, name in ipairs(names) do
    if not used[name] and not self:ignored(name) then problems[#problems + 1] = name .. " is unexpected" end
  end
  local _ <close> = peri.no_grad()
  for _, p in ipairs(#problems == 0 and self._layout or {}) do
    local parts = {}
    for i, part in ipairs(p.parts) do
      local t, message = get(found[part[1]])
      problems[#problems + 1] = not t and message or t and misfit(p, part, t) or nil
      parts[i] = t
    end
    if #problems > 0 then break end
    local old = p.owner[p.key]
    if old and old.dtype == "f32" then gather(p, parts, "f32", old)
    else place(p, gather(p, parts, opts.dtype), opts.pack) end
  end
  if #problems == 0 then return self end
  table.sort(problems)
  return nil, ("%s: the weights do not fit the config: %s"):format(self.__name, table.concat(problems, "; "))
end

--- Whether a published tensor is known and not needed.
function Model:ignored(name) return name:find "rotary_emb%.inv_freq$" ~= nil end

--- Replace every weight by tensors under published names, cast to f32.
--- @param tensors table<string, perilune.Tensor>
--- @return self
function Model:load_state_dict(tensors)
  local names = {}
  for name in pairs(tensors) do names[#names + 1] = name end
  local ok, message = fill(self, names, function (name) return tensors[name] end, { dtype = "f32" }, true)
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
  ok, message = fill(self, source.names, function (name) return source:get(name) end,
    { dtype = opts.dtype or "f32", pack = opts.pack })
  if not ok then return nil, tostring(source.path) .. ": " .. message end
  self.generation_config, self.source_path = source.generation_config or {}, source.path
  self._packed = opts.pack or false
  return self
end

-- Rows [at, at + n) of a weight of any dtype.
local function rows_of(t, at, n)
  if at == 1 and n == t:size(1) then return t end
  if quantised[t.dtype] then return t:bitcast("u8"):narrow(1, at, n):bitcast(t.dtype) end
  return t:narrow(1, at, n)
end

-- Published name -> the rows of get(entry) (a parameter, or something of its shape) that it names.
local function split(self, get)
  local out = {}
  for _, p in ipairs(self._layout) do
    local t, at = get(p), 1
    for i, part in ipairs(t and p.parts or {}) do
      local rows = type(t) == "table" and t[i] or rows_of(t, at, part[2])
      out[part[1]] = p.transposed and rows:transpose() or rows
      at = at + part[2]
    end
  end
  return out
end

--- Weights under published names; views where rows of a float matrix are meant, not copies.
--- @return table<string, perilune.Tensor>
function Model:state_dict()
  return split(self, function (p)
    local t = p.owner[p.key]
    return t and t:detach() or p.owner.weights
  end)
end

--- Gradients under published names, of the parameters that have one.
--- @return table<string, perilune.Tensor>
function Model:gradients()
  return split(self, function (p) return p.owner[p.key] and p.owner[p.key].grad end)
end

--- Write a Hugging Face folder: the weights in the dtypes they have (quantised ones as f32), config,
--- generation config.
--- @param folder string
--- @return boolean|nil ok
--- @return string? message
function Model:save(folder)
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local config, tensors, main = {}, self:state_dict(), "float32"
  local names = { f32 = "float32", f16 = "float16", bf16 = "bfloat16" }
  for k, v in pairs(self.config) do config[k] = v end
  for name, t in pairs(tensors) do
    if quantised[t.dtype] then tensors[name] = t:to("f32")
    elseif t.ndim == 2 and names[t.dtype] then main = names[t.dtype] end
  end
  local key = config.torch_dtype and "torch_dtype" or "dtype"
  config.torch_dtype, config.dtype = nil, nil
  config[key] = main
  return hf.save(folder, config, tensors, { generation_config = self.generation_config })
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
    if t and p.kind ~= "buffer" then list[#list + 1] = { p.name, t }
    elseif not t then for i, w in ipairs(p.owner.weights) do list[#list + 1] = { ("%s.%d"):format(p.name, i - 1), w } end end
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
  local names = {}
  for name in pairs(self:state_dict()) do names[#names + 1] = name end
  local other = M.create(getmetatable(self), self.config, names)
  for i, p in ipairs(other._layout) do
    local from = self._layout[i].owner
    local t = from[p.key]
    if t and not quantised[t.dtype] and not from.packed and not (p.kind == "embedding" and self._packed) then
      t = t:detach():clone()
    end
    p.owner[p.key] = t
    if not t then p.owner.weights = from.weights end
  end
  other.generation_config, other.source_path = self.generation_config, self.source_path
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

-- Published names of activations -> those of the op `linear`.
local activations = {
  gelu = "gelu", gelu_new = "gelu_tanh", gelu_pytorch_tanh = "gelu_tanh", gelu_fast = "gelu_tanh", relu = "relu",
  silu = "silu", swish = "silu", tanh = "tanh",
}

--- An activation of a config under the name that the op `linear` has for it.
function M.activation(config, key, default)
  local name = config[key] or default
  return activations[name] or error(("%s: %s %q is not known"):format(config.model_type or "model", key, name), 0)
end

--- x, or x after dropout while training.
function Model:dropout(x, p)
  if not self.training or p == 0 then return x end
  return x:dropout(p)
end

-- ---- causal models ------------------------------------------------------------------------------

--- @class perilune.models.Causal: perilune.models.Model
local Causal = setmetatable({}, { __index = Model })
Causal.__index = Causal

--- What a forward pass knows: see perilune.models.context. `prefix` of the model is the default.
function Causal:context(ids, given)
  if self.prefix and not (given and given.prefix) then
    given = setmetatable({ prefix = type(self.prefix) == "function" and self.prefix() or self.prefix },
      { __index = given })
  end
  return context.new(ids, given)
end

--- Weight of the language-model head. -- (V, D)
function Causal:head_weight() return self.head or self.embed end

--- @param hidden perilune.Tensor  (..., D)
--- @return perilune.Tensor  (..., V)
function Causal:logits(hidden) return hidden:linear(self:head_weight()) end

--- Log-probabilities and entropies of given tokens, without their logits ever being held together.
--- @param hidden perilune.Tensor  (..., D): what forward returned for the positions before
--- @param targets perilune.Tensor  (...) i64; -100 gives 0
--- @param temperature number?  1
--- @return perilune.Tensor logp  (...) f32
--- @return perilune.Tensor entropy  (...) f32, nats
function Causal:token_logprob(hidden, targets, temperature)
  return hidden:token_logprob(self:head_weight(), targets, nil, temperature or 1)
end

--- Log-probabilities and entropies of a sequence's own tokens.
--- @param ids perilune.Tensor  (B, T) i64: prompt and completion
--- @param from integer  first position (counted from 1) whose token is wanted
--- @param opts table?  temperature (1), and what forward takes
--- @return perilune.Tensor logp  (B, T - from + 1) f32
--- @return perilune.Tensor entropy  same shape, nats
function Causal:token_logprobs(ids, from, opts)
  opts = opts or {}
  local time = ids:size(2)
  local hidden = self:forward(ids:narrow(2, 1, time - 1), opts)
  return self:token_logprob(hidden:narrow(2, from - 1, time - from + 1), ids:narrow(2, from, time - from + 1),
    opts.temperature)
end

--- Room for `length` positions of `batch` sequences.
--- @return perilune.models.Cache
function Causal:cache(batch, length)
  local s = self.settings
  return caches.new { batch = batch, length = length, layers = s.layers, kv_heads = s.kv_heads, head_dim = s.head_dim }
end

--- See perilune.models.generate.
function Causal:generate(prompt, opts) return generate.generate(self, prompt, opts) end

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
