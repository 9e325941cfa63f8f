-- llama.lua - the decoder of Llama (Touvron et al., 2302.13971; 2407.21783): pre-norm blocks of
-- grouped-query attention with rotary positions and a SwiGLU feed-forward. Mistral, Qwen 2 and Qwen 3
-- differ from it in a few settings. q, k, v are one weight, and so are gate and up.
local peri = require "perilune"
local options = require "perilune.options"
local base = require "perilune.models.base"
local fields = require "perilune.models.fields"
local inputs = require "perilune.models.inputs"
local rope = require "perilune.nn.rope"

local Llama = base.class "llama"

--- What the layers ask for, from a Hugging Face config of any age.
function Llama.read(config, has)
  local need, number = fields.need, fields.number
  if (config.hidden_act or "silu") ~= "silu" then
    error(("%s: the setting hidden_act = %q is not supported, expected silu"):format(config.model_type or "llama",
      tostring(config.hidden_act)), 0)
  end
  local heads, dim = need(config, "num_attention_heads"), need(config, "hidden_size")
  local kv_heads = need(config, "num_key_value_heads", heads)
  if heads % kv_heads ~= 0 then error(("llama: %d heads do not divide into %d"):format(heads, kv_heads), 0) end
  local s = {
    vocab = need(config, "vocab_size"), dim = dim, ff = need(config, "intermediate_size"),
    layers = fields.need_layers(config, "num_hidden_layers", has), heads = heads, kv_heads = kv_heads,
    head_dim = need(config, "head_dim", dim // heads), eps = number(config, "rms_norm_eps", 1e-6),
    qkv_bias = config.attention_bias or false, out_bias = config.attention_bias or false,
    mlp_bias = config.mlp_bias or false, qk_norm = false,
    tied = fields.tied(config, has, "model.embed_tokens.weight", "lm_head.weight", false),
    dropout = number(config, "attention_dropout", 0, 1),
    windows = {}, -- of each layer: how many positions it sees, 0 = all
  }
  for i = 1, s.layers do s.windows[i] = 0 end
  return s
end

function Llama:declare(d)
  local s = self.settings
  local q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
  d:at(self, "", "model.")
  d:embedding("embed", "embed_tokens.weight", s.vocab, s.dim)
  for i, layer in ipairs(self:stack("layers", s.layers)) do
    d:at(layer, ("layers.%d."):format(i - 1), ("model.layers.%d."):format(i - 1))
    d:tensor("norm1", "input_layernorm.weight", { s.dim })
    d:linear("qkv", s.dim,
      { { "self_attn.q_proj", q }, { "self_attn.k_proj", kv }, { "self_attn.v_proj", kv } }, s.qkv_bias)
    d:linear("out", q, { { "self_attn.o_proj", s.dim } }, s.out_bias)
    if s.qk_norm then
      d:tensor("q_norm", "self_attn.q_norm.weight", { s.head_dim })
      d:tensor("k_norm", "self_attn.k_norm.weight", { s.head_dim })
    end
    d:tensor("norm2", "post_attention_layernorm.weight", { s.dim })
    d:linear("gate_up", s.dim, { { "mlp.gate_proj", s.ff }, { "mlp.up_proj", s.ff } }, s.mlp_bias)
    d:linear("down", s.ff, { { "mlp.down_proj", s.dim } }, s.mlp_bias)
  end
  d:at(self, "", "")
  d:tensor("norm", "model.norm.weight", { s.dim })
  if not s.tied then d:embedding("head", "lm_head.weight", s.vocab, s.dim) end
  local freq, scale = rope.frequencies(s.head_dim, self.config)
  self.inv_freq, self.rope_scale = peri.tensor(freq, "f32"), scale
end

function Llama:twins(name)
  return self.settings.tied and name == "model.embed_tokens.weight" and { "lm_head.weight" } or {}
end

--- A checkpoint with tied embeddings may hold the head all the same.
function Llama:ignored(name)
  return name == "lm_head.weight" and self.settings.tied or base.Model.ignored(self, name)
end

local function attention(self, i, y, c)
  local s, layer, batch, time = self.settings, self.layers[i], y:size(1), y:size(2)
  local scale, window = s.head_dim ^ -0.5, s.windows[i]
  local qkv = layer.qkv:forward(y, c.decoding):reshape { batch, time, s.heads + 2 * s.kv_heads, s.head_dim }
  local a
  if c.fused and not s.qk_norm then -- the same bits, one op
    a = c.cache:step(i, qkv, c.positions, self.inv_freq, c.start, false, self.rope_scale, scale, window)
  else
    local q, k, v
    if s.qk_norm then
      q, k, v = qkv:unpack_qkv(s.heads, s.kv_heads) -- (B, T, H, D)
      q = q:rms_norm(layer.q_norm, s.eps):rope(c.positions, self.inv_freq, false, self.rope_scale)
      k = k:rms_norm(layer.k_norm, s.eps):rope(c.positions, self.inv_freq, false, self.rope_scale)
    else
      q, k, v = qkv:rope_qkv(c.positions, self.inv_freq, s.heads, s.kv_heads, false, self.rope_scale)
    end
    a = c:attend(i, q, k, v, { scale = scale, window = window, dropout = self.training and s.dropout or 0 })
  end
  return layer.out:forward(a:reshape { batch, time, s.heads * s.head_dim }, c.decoding)
end

-- Block i: y is the normed residual stream x. Returns both for the next block. -- (B, T, D)
function Llama:block(i, y, x, c)
  local s, layer, after = self.settings, self.layers[i], self.layers[i + 1]
  y, x = attention(self, i, y, c):add_rms_norm(x, layer.norm2, s.eps)
  local h = layer.down:forward(layer.gate_up:forward(y, c.decoding):swiglu(), c.decoding)
  return h:add_rms_norm(x, after and after.norm1 or self.norm, s.eps)
end

--- Hidden states after the last norm.
--- @param ids perilune.Tensor|perilune.Batch  (B, T) i64
--- @param opts table?  mask, start, lengths, positions, segments, cache, prefix, collect: see perilune.models.inputs
--- @return perilune.Tensor  (B, T, D) f32
function Llama:forward(ids, opts)
  local c
  c, ids = self:context(ids, opts)
  return base.run_blocks(self, self:embedded(self.embed, ids), c)
end
options.declare(Llama.forward, { "ids" }, inputs.causal)

return base.module(Llama)
