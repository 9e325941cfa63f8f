-- llama.lua - the decoder of Llama (Touvron et al., 2302.13971; 2407.21783): pre-norm blocks of
-- grouped-query attention with rotary positions and a SwiGLU feed-forward. Mistral, Qwen 2 and Qwen 3
-- differ from it in a few settings. q, k, v are one weight, and so are gate and up.
local peri = require "perilune"
local base = require "perilune.models.base"
local fields = require "perilune.models.fields"
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
  local freq, scale = rope.frequencies(s.head_dim, self.config)
  local inv_freq = peri.tensor(freq, "f32")
  self.inv_freq, self.rope_scale = inv_freq, scale
  d:at(self, "", "model.")
  d:embedding("embed", "embed_tokens", s.vocab, s.dim)
  self:stack("layers", s.layers, nil, function (one, i, ours)
    local published = ("model.layers.%d."):format(i - 1)
    d:at(one, ours, published)
    d:rms_norm("norm1", "input_layernorm", s.dim, s.eps)
    d:attention("attention", { heads = s.heads, kv_heads = s.kv_heads, head_dim = s.head_dim,
      scale = s.head_dim ^ -0.5, window = s.windows[i], attention_dropout = s.dropout }, {
      dim = s.dim, at = "self_attn.", q = "q_proj", k = "k_proj", v = "v_proj", out = "o_proj", bias = s.qkv_bias,
      out_bias = s.out_bias, q_norm = s.qk_norm and "q_norm", k_norm = s.qk_norm and "k_norm", eps = s.eps })
      :rotate(inv_freq, scale)
    d:rms_norm("norm2", "post_attention_layernorm", s.dim, s.eps)
    d:feed_forward("ff", { gate = "silu" }, { dim = s.dim, hidden = s.ff, at = "mlp.", gate = "gate_proj",
      up = "up_proj", down = "down_proj", bias = s.mlp_bias })
  end)
  d:at(self, "", "")
  d:rms_norm("norm", "model.norm", s.dim, s.eps)
  d:head(s.tied)
end

return base.module(Llama)
