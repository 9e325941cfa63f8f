-- distilbert.lua - DistilBERT (Sanh et al., 1910.01108): BERT of half the depth, without token types and
-- pooler, under names of its own.
local base = require "perilune.models.base"
local fields = require "perilune.models.fields"
local bert = require "perilune.models.bert"
local settings = require "perilune.models.settings"

local DistilBert = base.class("distilbert", bert.Class)
DistilBert.prefixes = { "distilbert." }
DistilBert.depth_key = "n_layers"

DistilBert.published = {
  layer = "transformer.layer.%d.", query = "attention.q_lin", key = "attention.k_lin", value = "attention.v_lin",
  out = "attention.out_lin", norm1 = "sa_layer_norm", up = "ffn.lin1", down = "ffn.lin2",
  norm2 = "output_layer_norm", transform = "vocab_transform", transform_norm = "vocab_layer_norm",
  head_bias = "vocab_projector.bias",
}

DistilBert.tied_names = { word_embeddings = "vocab_projector.weight" }

function DistilBert.read(config, has)
  local need, number = fields.need, fields.number
  local dim, heads = need(config, "dim"), need(config, "n_heads")
  local mlm
  if has then mlm = has["vocab_projector.bias"] or false
  else mlm = (config.architectures and config.architectures[1] or ""):find "MaskedLM" ~= nil end
  if mlm then settings.check_tied_head(config) end
  return {
    vocab = need(config, "vocab_size"), dim = dim, ff = need(config, "hidden_dim"),
    layers = fields.need_layers(config, "n_layers", has), heads = heads, head_dim = dim // heads,
    positions = need(config, "max_position_embeddings"), types = 0, eps = 1e-12,
    act = fields.activation(config, "activation", "gelu"), dropout = number(config, "dropout", 0.1, 1),
    attention_dropout = number(config, "attention_dropout", 0.1, 1), mlm = mlm, pooler = false,
    prefix = (has and has["embeddings.position_embeddings.weight"] or not (has or mlm)) and "" or "distilbert.",
  }
end

--- A copy of the tied weight.
function DistilBert:ignored(name) return name == "vocab_projector.weight" or name:find "position_ids$" ~= nil end

return base.module(DistilBert)
