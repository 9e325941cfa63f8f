-- gpt2.lua - GPT-2 (Radford et al., 2019): learned positions, pre-norm blocks with LayerNorm, one fused
-- q, k, v product, GELU by tanh. Its matrices are published transposed.
local options = require "perilune.options"
local base = require "perilune.models.base"
local fields = require "perilune.models.fields"
local inputs = require "perilune.models.inputs"
local activated = require("perilune.models.projection").activated

local Gpt2 = base.class "gpt2"
Gpt2.prefixes = { "transformer." }

function Gpt2.read(config, has)
  local need, number = fields.need, fields.number
  local dim, heads = need(config, "n_embd"), need(config, "n_head")
  return {
    vocab = need(config, "vocab_size"), dim = dim, ff = need(config, "n_inner", 4 * dim),
    layers = fields.need_layers(config, "n_layer", has),
    heads = heads, kv_heads = heads, head_dim = dim // heads, positions = need(config, "n_positions"),
    eps = number(config, "layer_norm_epsilon", 1e-5),
    act = fields.activation(config, "activation_function", "gelu_new"),
    scale = config.scale_attn_weights == false and 1 or (dim // heads) ^ -0.5,
    by_layer = config.scale_attn_by_inverse_layer_idx or false, tied = config.tie_word_embeddings ~= false,
    embed_dropout = number(config, "embd_pdrop", 0.1, 1), attention_dropout = number(config, "attn_pdrop", 0.1, 1),
    dropout = number(config, "resid_pdrop", 0.1, 1),
  }
end

function Gpt2:declare(d)
  local s = self.settings
  d:at(self, "", "transformer.")
  d:embedding("embed", "wte.weight", s.vocab, s.dim)
  d:embedding("places", "wpe.weight", s.positions, s.dim)
  for i, layer in ipairs(self:stack("layers", s.layers)) do
    d:at(layer, ("layers.%d."):format(i - 1), ("transformer.h.%d."):format(i - 1))
    d:layer_norm("norm1", "ln_1", s.dim)
    d:linear("qkv", s.dim, { { "attn.c_attn", 3 * s.dim } }, true, true)
    d:linear("out", s.dim, { { "attn.c_proj", s.dim } }, true, true)
    d:layer_norm("norm2", "ln_2", s.dim)
    d:linear("up", s.dim, { { "mlp.c_fc", s.ff } }, true, true)
    d:linear("down", s.ff, { { "mlp.c_proj", s.dim } }, true, true)
  end
  d:at(self, "", "transformer.")
  d:layer_norm("norm", "ln_f", s.dim)
  d:at(self, "", "")
  if not s.tied then d:embedding("head", "lm_head.weight", s.vocab, s.dim) end
end

function Gpt2:twins(name)
  return self.settings.tied and name == "transformer.wte.weight" and { "lm_head.weight" } or {}
end

--- Old checkpoints hold the causal mask of every layer.
function Gpt2:ignored(name)
  return name:find "attn%.bias$" ~= nil or name:find "attn%.masked_bias$" ~= nil
    or name == "lm_head.weight" and self.settings.tied
end

local function attention(self, i, y, c)
  local s, layer, batch, time = self.settings, self.layers[i], y:size(1), y:size(2)
  local scale = s.scale / (s.by_layer and i or 1)
  local qkv = layer.qkv:forward(y, c.decoding):reshape { batch, time, 3 * s.heads, s.head_dim }
  local a
  if c.fused then
    a = c.cache:step(i, qkv, nil, nil, c.start, false, 1, scale, 0)
  else
    local q, k, v = qkv:unpack_qkv(s.heads, s.heads) -- (B, T, H, D)
    a = c:attend(i, q, k, v, { scale = scale, dropout = self.training and s.attention_dropout or 0 })
  end
  return self:dropout(layer.out:forward(a:reshape { batch, time, s.dim }, c.decoding), s.dropout)
end

-- Block i: y is the normed residual stream x. Returns both for the next block. -- (B, T, D)
function Gpt2:block(i, y, x, c)
  local s, layer, after = self.settings, self.layers[i], self.layers[i + 1]
  y, x = attention(self, i, y, c):add_layer_norm(x, layer.norm2_w, layer.norm2_b, s.eps)
  local h = layer.down:forward(activated(layer.up, y, c.decoding, s.act), c.decoding)
  local w, b = self.norm_w, self.norm_b
  if after then w, b = after.norm1_w, after.norm1_b end
  return self:dropout(h, s.dropout):add_layer_norm(x, w, b, s.eps)
end

--- Hidden states after the last norm.
--- @param ids perilune.Tensor|perilune.Batch  (B, T) i64
--- @param opts table?  mask, start, lengths, positions, segments, cache, prefix, collect: see perilune.models.inputs
--- @return perilune.Tensor  (B, T, D) f32
function Gpt2:forward(ids, opts)
  local s, first, c = self.settings, self.layers[1]
  c, ids = self:context(ids, opts)
  local positions = c.positions
  if c.placed or c.last > s.positions then
    positions = inputs.within(self.forward_name, positions, c.tokens, s.positions, 2)
  end
  local x = self:embedded(self.embed, ids):add(self:embedded(self.places, positions)) -- (B, T, D)
  x = self:dropout(x, s.embed_dropout)
  return base.each_block(self, x:layer_norm(first.norm1_w, first.norm1_b, s.eps), x, c)
end
options.declare(Gpt2.forward, { "ids" }, inputs.causal)

return base.module(Gpt2)
