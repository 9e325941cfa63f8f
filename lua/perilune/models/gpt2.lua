-- gpt2.lua - GPT-2 (Radford et al., 2019): learned positions, pre-norm blocks with LayerNorm, one fused
-- q, k, v product, GELU by tanh. Its matrices are published transposed.
local base = require "perilune.models.base"
local fields = require "perilune.models.fields"
local derived = require "perilune.nn.derived"
local inputs = require "perilune.models.inputs"

local Gpt2 = base.class "gpt2"
Gpt2.depth_key = "n_layer"
Gpt2.prefixes = { "transformer." }
Gpt2.token_head = "classifier" -- of GPT2ForTokenClassification

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
  d:embedding("embed", "wte", s.vocab, s.dim)
  d:embedding("places", "wpe", s.positions, s.dim)
  self:stack("layers", s.layers, nil, function (one, i, ours)
    d:at(one, ours, ("transformer.h.%d."):format(i - 1))
    d:layer_norm("norm1", "ln_1", s.dim, s.eps)
    d:attention("attention", { heads = s.heads, kv_heads = s.heads, head_dim = s.head_dim,
      scale = s.scale / (s.by_layer and i or 1), attention_dropout = s.attention_dropout, dropout = s.dropout }, {
      dim = s.dim, at = "attn.", qkv = "c_attn", out = "c_proj", bias = true, out_bias = true, transposed = true })
    d:layer_norm("norm2", "ln_2", s.dim, s.eps)
    d:feed_forward("ff", { act = s.act, dropout = s.dropout }, { dim = s.dim, hidden = s.ff, at = "mlp.", up = "c_fc",
      down = "c_proj", bias = true, transposed = true })
  end)
  d:at(self, "", "")
  d:layer_norm("norm", "transformer.ln_f", s.dim, s.eps)
  d:head(s.tied)
end

--- Old checkpoints hold the causal mask of every layer.
function Gpt2:ignored(name)
  return name:find "attn%.bias$" ~= nil or name:find "attn%.masked_bias$" ~= nil
    or name == "lm_head.weight" and self.settings.tied
end

-- Tokens and where they stand. -- (B, T, D)
function Gpt2:embedded(ids, c)
  local s, positions = self.settings, c.positions
  if c.placed or c.last > s.positions then
    positions = inputs.within(self.forward_name, positions, c.tokens, s.positions)
  end
  if derived.is_held() and positions.ndim == 1 then -- each row's own: their gradients add up row by row
    positions = positions:unsqueeze(1):expand(ids.shape)
  end
  return self:dropout(self.embed:forward(ids):add(self.places:forward(positions)), s.embed_dropout)
end

return base.module(Gpt2)
