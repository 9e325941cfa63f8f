-- llama.lua - decoder-only transformers of Llama's layout: Llama, Mistral (sliding window), Qwen 2
-- (biases on q, k, v) and Qwen 3 (norms on q and k). Reads and writes Hugging Face folders.
-- q, k, v are one weight, and so are gate and up: fewer, fatter products. state_dict() splits them.
local peri = require "perilune"
local hf = require "perilune.models.hf"
local rope = require "perilune.models.rope"
local generate = require "perilune.models.generate"

local Llama = {}
Llama.__index = Llama

local Cache = {}
Cache.__index = Cache

local M = {}

local families = {
  llama = {}, mistral = {},
  qwen2 = { qkv_bias = true },
  qwen3 = { qk_norm = true },
}

local function need(config, key)
  return config[key] or error(("llama: the config lacks %q"):format(key), 4)
end

-- What the layers ask for, from a Hugging Face config of any age.
local function settings(config)
  local kind = config.model_type or "llama"
  local family = families[kind]
  if not family then error(("llama: model_type %q is not of Llama's layout"):format(kind), 3) end
  if (config.hidden_act or "silu") ~= "silu" then
    error(("llama: hidden_act %q, only silu is known"):format(config.hidden_act), 3)
  end
  local heads, dim = need(config, "num_attention_heads"), need(config, "hidden_size")
  local windowed = config.sliding_window and config.use_sliding_window ~= false
  return {
    vocab = need(config, "vocab_size"), dim = dim, ff = need(config, "intermediate_size"),
    layers = need(config, "num_hidden_layers"), heads = heads,
    kv_heads = config.num_key_value_heads or heads,
    head_dim = config.head_dim or dim // heads, eps = config.rms_norm_eps or 1e-6,
    window = windowed and config.sliding_window or 0,
    qkv_bias = family.qkv_bias or config.attention_bias or false, out_bias = config.attention_bias or false,
    mlp_bias = config.mlp_bias or false, qk_norm = family.qk_norm or false,
    tied = config.tie_word_embeddings or false,
  }
end

-- The layout of one layer: our fused parameter -> its shape and the published rows it is made of.
local function layer_layout(s)
  local q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
  local qkv = { { "self_attn.q_proj", q }, { "self_attn.k_proj", kv }, { "self_attn.v_proj", kv } }
  local gate_up = { { "mlp.gate_proj", s.ff }, { "mlp.up_proj", s.ff } }
  local list = {
    { "norm1", { s.dim }, { { "input_layernorm", s.dim } }, "weight" },
    { "qkv", { q + 2 * kv, s.dim }, qkv, "weight" },
    { "out", { s.dim, q }, { { "self_attn.o_proj", s.dim } }, "weight" },
    { "norm2", { s.dim }, { { "post_attention_layernorm", s.dim } }, "weight" },
    { "gate_up", { 2 * s.ff, s.dim }, gate_up, "weight" },
    { "down", { s.dim, s.ff }, { { "mlp.down_proj", s.dim } }, "weight" },
  }
  local function add(on, ...) if on then list[#list + 1] = { ... } end end
  add(s.qkv_bias, "qkv_bias", { q + 2 * kv }, qkv, "bias")
  add(s.out_bias, "out_bias", { s.dim }, { { "self_attn.o_proj", s.dim } }, "bias")
  add(s.mlp_bias, "gate_up_bias", { 2 * s.ff }, gate_up, "bias")
  add(s.mlp_bias, "down_bias", { s.dim }, { { "mlp.down_proj", s.dim } }, "bias")
  add(s.qk_norm, "q_norm", { s.head_dim }, { { "self_attn.q_norm", s.head_dim } }, "weight")
  add(s.qk_norm, "k_norm", { s.head_dim }, { { "self_attn.k_norm", s.head_dim } }, "weight")
  return list
end

-- Every parameter in order: { name, owner, key, shape, parts = { { published name, rows }, ... } }.
local function layout(self)
  local s, list = self.settings, {}
  local function add(name, owner, key, shape, parts)
    list[#list + 1] = { name = name, owner = owner, key = key, shape = shape, parts = parts }
  end
  add("embed", self, "embed", { s.vocab, s.dim }, { { "model.embed_tokens.weight", s.vocab } })
  for i, layer in ipairs(self.layers) do
    for _, p in ipairs(layer_layout(s)) do
      local parts = {}
      for k, part in ipairs(p[3]) do
        parts[k] = { ("model.layers.%d.%s.%s"):format(i - 1, part[1], p[4]), part[2] }
      end
      add(("layers.%d.%s"):format(i - 1, p[1]), layer, p[1], p[2], parts)
    end
  end
  add("norm", self, "norm", { s.dim }, { { "model.norm.weight", s.dim } })
  if not s.tied then add("head", self, "head", { s.vocab, s.dim }, { { "lm_head.weight", s.vocab } }) end
  return list
end

local function empty_model(config)
  local s = settings(config)
  local self = setmetatable({ config = config, settings = s, layers = {} }, Llama)
  for i = 1, s.layers do self.layers[i] = {} end
  local freq, scale = rope.frequencies(s.head_dim, config)
  self.inv_freq, self.rope_scale = peri.tensor(freq, "f32"), scale
  return self
end

--- A model with random weights: normal with standard deviation `std`, norms 1, biases 0.
--- @param config table  Hugging Face config
--- @param opts table?  std (default config.initializer_range or 0.02)
function M.new(config, opts)
  local self = empty_model(config)
  local std = opts and opts.std or config.initializer_range or 0.02
  for _, p in ipairs(layout(self)) do
    local t
    if #p.shape == 2 then t = peri.randn(p.shape):mul_(std)
    elseif p.key:find "bias" then t = peri.zeros(p.shape)
    else t = peri.ones(p.shape) end
    p.owner[p.key] = t:detach():requires_grad_()
  end
  return self
end

--- Replace every weight by tensors under Hugging Face names, cast to f32.
--- @param tensors table<string, perilune.Tensor>
--- @return self
function Llama:load_state_dict(tensors)
  local problems, used = {}, {}
  local function take(name, rows, shape)
    local t = tensors[name]
    used[name] = true
    if not t then
      problems[#problems + 1] = name .. " is missing"
    elseif t.ndim ~= #shape or t:size(1) ~= rows or (shape[2] and t:size(2) ~= shape[2]) then
      problems[#problems + 1] = ("%s has shape (%s), expected (%s)"):format(name,
        table.concat(t.shape, ", "), table.concat({ rows, shape[2] }, ", "))
    else
      return t:to("f32")
    end
  end
  local _ <close> = peri.no_grad()
  local made = {}
  local list = layout(self)
  for i, p in ipairs(list) do
    local rows = {}
    for _, part in ipairs(p.parts) do rows[#rows + 1] = take(part[1], part[2], p.shape) end
    if #rows == #p.parts then made[i] = #rows == 1 and rows[1]:clone() or peri.cat(rows, 1) end
  end
  if self.settings.tied then used["lm_head.weight"] = true end
  for name in pairs(tensors) do
    if not used[name] and not name:find "rotary_emb.inv_freq" then
      problems[#problems + 1] = name .. " is unexpected"
    end
  end
  if #problems > 0 then
    table.sort(problems)
    error("llama: the weights do not fit the config: " .. table.concat(problems, "; "), 2)
  end
  for i, p in ipairs(list) do
    local t = p.owner[p.key]
    if t then t:copy_(made[i]) else p.owner[p.key] = made[i]:detach():requires_grad_() end
  end
  return self
end

--- Read a Hugging Face folder.
--- @param folder string
--- @return table|nil model
--- @return string? message
function M.load(folder)
  local config, err = hf.config(folder)
  if not config then return nil, err end
  local tensors
  tensors, err = hf.tensors(folder)
  if not tensors then return nil, err end
  local model = empty_model(config):load_state_dict(tensors)
  model.generation_config = hf.generation_config(folder)
  return model
end

-- Published name -> the rows of t (a parameter, or something of its shape) that it names.
local function split(list, get)
  local out = {}
  for _, p in ipairs(list) do
    local t, at = get(p), 1
    for _, part in ipairs(t and p.parts or {}) do
      out[part[1]] = #p.parts == 1 and t or t:narrow(1, at, part[2])
      at = at + part[2]
    end
  end
  return out
end

--- Weights under Hugging Face names; views, not copies.
--- @return table<string, perilune.Tensor>
function Llama:state_dict()
  return split(layout(self), function (p) return p.owner[p.key]:detach() end)
end

--- Gradients under Hugging Face names, of the parameters that have one.
--- @return table<string, perilune.Tensor>
function Llama:gradients()
  return split(layout(self), function (p) return p.owner[p.key].grad end)
end

--- Write a Hugging Face folder: f32 weights, config, generation config.
--- @param folder string
--- @return boolean|nil ok
--- @return string? message
function Llama:save(folder)
  local config = {}
  for k, v in pairs(self.config) do config[k] = v end
  config.torch_dtype, config.dtype = "float32", nil
  return hf.save(folder, config, self:state_dict(), self.generation_config)
end

--- Parameters in a fixed order.
--- @return perilune.Tensor[]
function Llama:parameters()
  local list = {}
  for i, p in ipairs(layout(self)) do list[i] = p.owner[p.key] end
  return list
end

--- { { name, tensor }, ... } in the order of parameters().
function Llama:named_parameters()
  local list = {}
  for i, p in ipairs(layout(self)) do list[i] = { p.name, p.owner[p.key] } end
  return list
end

--- A copy with its own weights that collects no gradients: a reference model.
function Llama:copy()
  local other = empty_model(self.config)
  for i, p in ipairs(layout(other)) do
    p.owner[p.key] = layout(self)[i].owner[p.key]:detach():clone()
  end
  return other
end

function Llama:num_parameters()
  local n = 0
  for _, p in ipairs(self:parameters()) do n = n + p:numel() end
  return n
end

-- ---- forward ---------------------------------------------------------------------------------

local function attention(self, layer, y, positions, ctx, index)
  local s, batch, time = self.settings, y:size(1), y:size(2)
  local scale = s.head_dim ^ -0.5
  local w = ctx.cache and ctx.cache.weights[index] or layer
  local qkv = y:linear(w.qkv, layer.qkv_bias):reshape { batch, time, s.heads + 2 * s.kv_heads, s.head_dim }
  local a
  if ctx.cache and not s.qk_norm and not peri.grad_enabled() then -- the same bits, one op
    a = ctx.cache:step(index, qkv, positions, self.inv_freq, ctx.start, self.rope_scale, scale, s.window)
  else
    local q, k, v
    if s.qk_norm then
      q, k, v = qkv:unpack_qkv(s.heads, s.kv_heads) -- (B, T, H, D)
      q = q:rms_norm(layer.q_norm, s.eps):rope(positions, self.inv_freq, false, self.rope_scale)
      k = k:rms_norm(layer.k_norm, s.eps):rope(positions, self.inv_freq, false, self.rope_scale)
    else
      q, k, v = qkv:rope_qkv(positions, self.inv_freq, s.heads, s.kv_heads, false, self.rope_scale)
    end
    if ctx.cache then k, v = ctx.cache:append(index, k, v) end
    a = peri.attention(q, k, v, nil, ctx.start, true, scale, s.window)
  end
  return a:reshape { batch, time, s.heads * s.head_dim }:linear(w.out, layer.out_bias)
end

--- Hidden states after the last norm.
--- @param ids perilune.Tensor  (B, T) i64
--- @param ctx table?  cache: from :cache(); start: (B) i64, left-pad positions of each row
--- @return perilune.Tensor  (B, T, D) f32
function Llama:forward(ids, ctx)
  ctx = ctx or {}
  local s, past = self.settings, ctx.cache and ctx.cache.length or 0
  local positions = peri.arange(past, past + ids:size(2)) -- (T)
  if ctx.start then positions = positions:sub(ctx.start:unsqueeze(2)):clamp(0) end -- (B, T)
  local x = self.embed:embedding(ids) -- (B, T, D)
  local y = x:rms_norm(self.layers[1].norm1, s.eps)
  for i, layer in ipairs(self.layers) do
    local a = attention(self, layer, y, positions, ctx, i)
    y, x = a:add_rms_norm(x, layer.norm2, s.eps)
    local w = ctx.cache and ctx.cache.weights[i] or layer
    local h = y:linear(w.gate_up, layer.gate_up_bias):swiglu():linear(w.down, layer.down_bias)
    local after = self.layers[i + 1]
    y, x = h:add_rms_norm(x, after and after.norm1 or self.norm, s.eps)
  end
  if ctx.cache then ctx.cache.length = past + ids:size(2) end
  return y
end

--- Weight of the language-model head. -- (V, D)
function Llama:head_weight() return self.settings.tied and self.embed or self.head end

--- @param hidden perilune.Tensor  (..., D)
--- @return perilune.Tensor  (..., V)
function Llama:logits(hidden) return hidden:linear(self:head_weight()) end

--- Log-probabilities and entropies of given tokens, without the (B, T, V) tensor.
--- @param ids perilune.Tensor  (B, T) i64: prompt and completion
--- @param from integer  first position (counted from 1) whose token is wanted
--- @param opts table?  temperature (1), start (B) i64
--- @return perilune.Tensor logp  (B, T - from + 1) f32
--- @return perilune.Tensor entropy  same shape, nats
function Llama:token_logprobs(ids, from, opts)
  opts = opts or {}
  local time = ids:size(2)
  local hidden = self:forward(ids:narrow(2, 1, time - 1), { start = opts.start })
  local targets = ids:narrow(2, from, time - from + 1)
  return hidden:narrow(2, from - 1, time - from + 1)
    :token_logprob(self:head_weight(), targets, nil, opts.temperature or 1)
end

--- See perilune.models.generate.
function Llama:generate(prompt, opts) return generate.generate(self, prompt, opts) end

-- ---- KV cache --------------------------------------------------------------------------------

-- Small weights once more, column by column: a product with one or a few rows then reads them in
-- order (the same bits, up to twice as fast). Made anew when a weight was written since.
local SMALL = 2 ^ 18
function Llama:_decoding_weights()
  if peri.grad_enabled() then return {} end
  local old = self._decoding or {}
  local new = {}
  for i, layer in ipairs(self.layers) do
    new[i] = {}
    for _, key in ipairs { "qkv", "out", "gate_up", "down" } do
      local w, last = layer[key], old[i] and old[i][key]
      if w:numel() > SMALL then new[i][key] = w
      elseif last and old[i].version[key] == w:version() then new[i][key] = last
      else new[i][key] = peri.keep(w:transpose():contiguous():transpose()) end
    end
    local v = {}
    for key in pairs(new[i]) do v[key] = layer[key]:version() end
    new[i].version = v
  end
  self._decoding = new
  return new
end

-- Keys are stored channel by channel, as scores read them: (B, Hkv, D, Tmax), seen as (B, Tmax, Hkv, D).
local function by_channel(k) return k:permute { 1, 4, 2, 3 } end

--- Room for `length` positions of `batch` sequences.
function Llama:cache(batch, length)
  local s = self.settings
  local c = setmetatable({ length = 0, k = {}, v = {}, weights = self:_decoding_weights() }, Cache)
  for i = 1, s.layers do
    c.k[i] = by_channel(peri.empty { batch, s.kv_heads, s.head_dim, length })
    c.v[i] = peri.empty { batch, length, s.kv_heads, s.head_dim }
  end
  return c
end

-- Keys and values of layer i so far, the new ones included. -- (B, length, Hkv, D)
function Cache:append(i, k, v)
  local time = k:size(2)
  peri.kv_append_(self.k[i], self.v[i], k, v, self.length + 1)
  return self.k[i]:narrow(2, 1, self.length + time), self.v[i]:narrow(2, 1, self.length + time)
end

-- Rotate, append and attend for layer i. qkv (B, T, Hq + 2 Hkv, D) -> (B, T, Hq, D)
function Cache:step(i, qkv, positions, inv_freq, start, rope_scale, scale, window)
  return peri.attention_step_(self.k[i], self.v[i], qkv, positions, inv_freq, start, self.length + 1, false,
    rope_scale, scale, window)
end

--- Repeat every sequence n times: prompts are prefilled once, then sampled n times.
function Cache:repeat_rows(n)
  for i = 1, #self.k do
    self.k[i] = by_channel(self.k[i]:permute { 1, 3, 4, 2 }:repeat_interleave(n, 1))
    self.v[i] = self.v[i]:repeat_interleave(n, 1)
  end
end

M.Llama = Llama
return M
