-- gemma2.lua - Gemma 2 (2408.00118): norms before and after attention and feed-forward with weights
-- 1 + w, every other layer a sliding window, soft caps on attention scores and on logits, embeddings
-- times sqrt(dim), GeGLU.
local peri = require "perilune"
local options = require "perilune.options"
local base = require "perilune.models.base"
local fields = require "perilune.models.fields"
local inputs = require "perilune.models.inputs"
local rope = require "perilune.nn.rope"

local Gemma2 = base.class "gemma2"

function Gemma2.read(config, has)
  local need, number = fields.need, fields.number
  local heads, dim = need(config, "num_attention_heads"), need(config, "hidden_size")
  local head_dim = need(config, "head_dim", dim // heads)
  local s = {
    vocab = need(config, "vocab_size"), dim = dim, ff = need(config, "intermediate_size"),
    layers = fields.need_layers(config, "num_hidden_layers", has), heads = heads,
    kv_heads = need(config, "num_key_value_heads", heads),
    head_dim = head_dim, eps = number(config, "rms_norm_eps", 1e-6), bias = config.attention_bias or false,
    act = fields.activation(config, config.hidden_activation and "hidden_activation" or "hidden_act", "gelu_new"),
    scale = number(config, "query_pre_attn_scalar", head_dim) ^ -0.5,
    cap = number(config, "attn_logit_softcapping", 0),
    tied = fields.tied(config, has, "model.embed_tokens.weight", "lm_head.weight", true),
    logit_cap = number(config, "final_logit_softcapping", 0), dropout = number(config, "attention_dropout", 0, 1),
    windows = {},
  }
  for i = 1, s.layers do
    local sliding = i % 2 == 1
    if config.layer_types then sliding = config.layer_types[i] == "sliding_attention" end
    s.windows[i] = sliding and fields.count(config, "sliding_window", 0) or 0
  end
  return s
end

function Gemma2:declare(d)
  local s = self.settings
  local q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
  d:at(self, "", "model.")
  d:embedding("embed", "embed_tokens.weight", s.vocab, s.dim)
  for i, layer in ipairs(self:stack("layers", s.layers)) do
    d:at(layer, ("layers.%d."):format(i - 1), ("model.layers.%d."):format(i - 1))
    d:tensor("norm1", "input_layernorm.weight", { s.dim }, "zeros")
    d:linear("qkv", s.dim,
      { { "self_attn.q_proj", q }, { "self_attn.k_proj", kv }, { "self_attn.v_proj", kv } }, s.bias)
    d:linear("out", q, { { "self_attn.o_proj", s.dim } }, s.bias)
    d:tensor("norm2", "post_attention_layernorm.weight", { s.dim }, "zeros")
    d:tensor("norm3", "pre_feedforward_layernorm.weight", { s.dim }, "zeros")
    d:linear("gate_up", s.dim, { { "mlp.gate_proj", s.ff }, { "mlp.up_proj", s.ff } })
    d:linear("down", s.ff, { { "mlp.down_proj", s.dim } })
    d:tensor("norm4", "post_feedforward_layernorm.weight", { s.dim }, "zeros")
  end
  d:at(self, "", "model.")
  d:tensor("norm", "norm.weight", { s.dim }, "zeros")
  d:at(self, "", "")
  if not s.tied then d:embedding("head", "lm_head.weight", s.vocab, s.dim) end
  local freq, scale = rope.frequencies(s.head_dim, self.config)
  self.inv_freq, self.rope_scale = peri.tensor(freq, "f32"), scale
end

function Gemma2:twins(name)
  return self.settings.tied and name == "model.embed_tokens.weight" and { "lm_head.weight" } or {}
end

--- A checkpoint with tied embeddings may hold the head all the same.
function Gemma2:ignored(name)
  return name == "lm_head.weight" and self.settings.tied or base.Model.ignored(self, name)
end

-- 1 + w of a norm; remembered while no gradients are wanted.
local function shifted(owner, key)
  local w = owner[key]
  if peri.grad_enabled() then return w:add(1) end
  local old = owner["_" .. key]
  if not old or old.of ~= w or old.version ~= w:version() then
    old = { of = w, version = w:version(), value = peri.keep(w:add(1)) }
    owner["_" .. key] = old
  end
  return old.value
end

local function attention(self, i, y, c)
  local s, layer, batch, time = self.settings, self.layers[i], y:size(1), y:size(2)
  local qkv = layer.qkv:forward(y, c.decoding):reshape { batch, time, s.heads + 2 * s.kv_heads, s.head_dim }
  local a
  if c.fused then -- the same bits, one op
    a = c.cache:step(i, qkv, c.positions, self.inv_freq, c.start, false, self.rope_scale, s.scale,
      s.windows[i], s.cap)
  else
    local q, k, v = qkv:rope_qkv(c.positions, self.inv_freq, s.heads, s.kv_heads, false, self.rope_scale)
    a = c:attend(i, q, k, v, { scale = s.scale, window = s.windows[i], softcap = s.cap,
      dropout = self.training and s.dropout or 0 })
  end
  return layer.out:forward(a:reshape { batch, time, s.heads * s.head_dim }, c.decoding)
end

-- Block i: y is the normed residual stream x. Returns both for the next block. -- (B, T, D)
function Gemma2:block(i, y, x, c)
  local s, layer, after = self.settings, self.layers[i], self.layers[i + 1]
  local a = attention(self, i, y, c):rms_norm(shifted(layer, "norm2"), s.eps)
  y, x = a:add_rms_norm(x, shifted(layer, "norm3"), s.eps)
  local h = layer.gate_up:forward(y, c.decoding):gated(s.act)
  h = layer.down:forward(h, c.decoding):rms_norm(shifted(layer, "norm4"), s.eps)
  return h:add_rms_norm(x, after and shifted(after, "norm1") or shifted(self, "norm"), s.eps)
end

--- Hidden states after the last norm.
--- @param ids perilune.Tensor|perilune.Batch  (B, T) i64
--- @param opts table?  mask, start, lengths, positions, segments, cache, prefix, collect: see perilune.models.inputs
--- @return perilune.Tensor  (B, T, D) f32
function Gemma2:forward(ids, opts)
  local c
  c, ids = self:context(ids, opts)
  local x = self:embedded(self.embed, ids):mul(math.sqrt(self.settings.dim)) -- (B, T, D)
  return base.run_blocks(self, x, c, shifted(self.layers[1], "norm1"))
end
options.declare(Gemma2.forward, { "ids" }, inputs.causal)

local function capped(self, hidden)
  local logits, cap = base.scores(self, hidden), self.settings.logit_cap
  return cap > 0 and logits:div(cap):tanh():mul(cap) or logits
end

--- @param hidden perilune.Tensor  (..., D)
--- @return perilune.Tensor  (..., V)
function Gemma2:logits(hidden) return capped(self, base.hidden(self, hidden)) end

--- See perilune.models.base: of capped logits.
function Gemma2:token_logprob(hidden, targets, temperature)
  if self.settings.logit_cap == 0 then return base.Causal.token_logprob(self, hidden, targets, temperature) end
  return base.token_logprob_by(function (h) return capped(self, h) end, hidden, targets, temperature)
end

return base.module(Gemma2)
