-- bert.lua - BERT (Devlin et al., 1810.04805): an encoder of post-norm blocks with learned positions and
-- token types; pooler and masked-language-model head where the checkpoint has them.
local peri = require "perilune"
local options = require "perilune.options"
local base = require "perilune.models.base"
local fields = require "perilune.models.fields"
local block = require "perilune.nn.block"
local context = require "perilune.nn.context"
local activated = require("perilune.nn.linear").activated
local inputs = require "perilune.models.inputs"
local pooling = require "perilune.models.pooling"
local settings = require "perilune.models.settings"

local Bert = base.class("bert", base.Model)
Bert.prefixes = { "bert." }

-- Published names, which other encoders of the same shape override.
Bert.published = {
  layer = "encoder.layer.%d.", query = "attention.self.query", key = "attention.self.key",
  value = "attention.self.value", out = "attention.output.dense", norm1 = "attention.output.LayerNorm",
  up = "intermediate.dense", down = "output.dense", norm2 = "output.LayerNorm",
  transform = "cls.predictions.transform.dense", transform_norm = "cls.predictions.transform.LayerNorm",
  head_bias = "cls.predictions.bias",
}
-- Names of tensors that are tied to others, which may be there in their place.
Bert.tied_names = { word_embeddings = "cls.predictions.decoder.weight", head_bias = "cls.predictions.decoder.bias" }

-- Whether the checkpoint, or the class named in a config without one, has a part.
local function has_part(config, has, name, class)
  if has then return has[name] or has[Bert.prefixes[1] .. name] or false end
  return (config.architectures and config.architectures[1] or ""):find(class) ~= nil
end

function Bert.read(config, has)
  local need, number = fields.need, fields.number
  local dim, heads = need(config, "hidden_size"), need(config, "num_attention_heads")
  local mlm = has_part(config, has, Bert.published.head_bias, "MaskedLM")
    or has and has[Bert.tied_names.head_bias] or false
  if mlm then settings.check_tied_head(config) end
  return {
    vocab = need(config, "vocab_size"), dim = dim, ff = need(config, "intermediate_size"),
    layers = fields.need_layers(config, "num_hidden_layers", has), heads = heads, head_dim = dim // heads,
    positions = need(config, "max_position_embeddings"), types = need(config, "type_vocab_size", 2),
    eps = number(config, "layer_norm_eps", 1e-12), act = fields.activation(config, "hidden_act", "gelu"),
    dropout = number(config, "hidden_dropout_prob", 0.1, 1),
    attention_dropout = number(config, "attention_probs_dropout_prob", 0.1, 1),
    mlm = mlm, pooler = has_part(config, has, "pooler.dense.weight", "BertModel"),
    prefix = (has and has["embeddings.position_embeddings.weight"] or not (has or mlm)) and "" or "bert.",
  }
end

function Bert:declare(d)
  local s, n = self.settings, self.published
  d:at(self, "", s.prefix)
  d:embedding("embed", "embeddings.word_embeddings", s.vocab, s.dim)
  d:embedding("places", "embeddings.position_embeddings", s.positions, s.dim)
  if s.types > 0 then d:embedding("types", "embeddings.token_type_embeddings", s.types, s.dim) end
  d:layer_norm("norm", "embeddings.LayerNorm", s.dim, s.eps)
  self:stack("layers", s.layers, { norm_first = false }, function (one, i, ours)
    d:at(one, ours, s.prefix .. n.layer:format(i - 1))
    d:attention("attention", { heads = s.heads, kv_heads = s.heads, head_dim = s.head_dim,
      scale = s.head_dim ^ -0.5, causal = false, attention_dropout = s.attention_dropout, dropout = s.dropout }, {
      dim = s.dim, at = "", q = n.query, k = n.key, v = n.value, out = n.out, bias = true, out_bias = true })
    d:layer_norm("norm1", n.norm1, s.dim, s.eps)
    d:feed_forward("ff", { act = s.act, dropout = s.dropout }, { dim = s.dim, hidden = s.ff, at = "", up = n.up,
      down = n.down, bias = true })
    d:layer_norm("norm2", n.norm2, s.dim, s.eps)
  end)
  d:at(self, "", s.prefix)
  if s.pooler then d:linear("pooler", s.dim, { { "pooler.dense", s.dim } }, { bias = true }) end
  d:at(self, "", "")
  if s.mlm then
    d:linear("transform", s.dim, { { n.transform, s.dim } }, { bias = true })
    d:layer_norm("transform_norm", n.transform_norm, s.dim, s.eps)
    d:tensor("head_bias", n.head_bias, { s.vocab }, "zeros")
  end
end

function Bert:twins(name)
  if name == self.settings.prefix .. "embeddings.word_embeddings.weight" then
    return { self.tied_names.word_embeddings }
  end
  return name == self.published.head_bias and { self.tied_names.head_bias } or {}
end

--- Copies of tied weights, position numbers, and the next-sentence head.
function Bert:ignored(name)
  return name:find "position_ids$" ~= nil or name:find "^cls%.predictions%.decoder" ~= nil
    or name:find "^cls%.seq_relationship" ~= nil
end

-- Token types for the embedding; nil for models without one, which a batch of pairs does not mind.
local function token_types(self, who, o, batch, time)
  local given = o.token_types
  if not self.types then
    if given and not (o.batch and rawequal(given, o.batch.token_type_ids)) then
      error(("%s: %s has no token types"):format(who, self.__name), 3)
    end
    return nil
  end
  if given then context.check_per_token(who, "token_types", given, batch, time) end
  return given or peri.zeros({ 1, time }, "i64")
end

-- Places of tokens, which the model has to have.
local function place_tokens(self, who, o, rows, batch, time)
  local most = self.settings.positions
  if o.positions then context.check_per_token(who, "positions", o.positions, batch, time)
  elseif time <= most then return inputs.positions(rows, time) end
  return inputs.within(who, o.positions or inputs.positions(rows, time), rows.mask, most)
end

--- Hidden states of the last block.
--- @param ids perilune.Tensor|perilune.Batch  (B, T) i64
--- @param opts table?  mask, start, lengths, positions (each token's place in its row, on whichever side the
--- row is padded), token_types (0): see perilune.models.inputs
--- @return perilune.Tensor  (B, T, D) f32
function Bert:forward(ids, opts)
  local who, o = self.__name .. ": forward"
  ids, o = inputs.read(who, ids, opts, inputs.encoder)
  local s, batch, time, rows = self.settings, ids:size(1), ids:size(2), inputs.rows(who, ids, o)
  local types, positions = token_types(self, who, o, batch, time), place_tokens(self, who, o, rows, batch, time)
  local x = self.embed:forward(ids):add(self.places:forward(positions))
  if types then x = x:add(self.types:forward(types)) end
  x = self:dropout(self.norm:forward(x), s.dropout)
  return block._run(self.layers, x, context.of_encoder(batch, time, rows.mask))
end
options.declare(Bert.forward, { "ids" }, inputs.encoder)

--- What the pooler makes of the first token: tanh(W h + b).
--- @param hidden perilune.Tensor  (B, T, D)
--- @param batch perilune.Batch?  what forward was given, where rows are padded on the left
--- @return perilune.Tensor  (B, D)
function Bert:pool(hidden, batch)
  if not self.pooler then error(self.__name .. ": this checkpoint has no pooler", 2) end
  return activated(self.pooler, batch and pooling.cls(hidden, batch) or hidden:select(2, 1), false, "tanh")
end

--- Masked-language-model scores.
--- @param hidden perilune.Tensor  (..., D)
--- @return perilune.Tensor  (..., V)
function Bert:logits(hidden)
  if not self.transform then error(self.__name .. ": this checkpoint has no masked-language-model head", 2) end
  local h = activated(self.transform, base.hidden(self, hidden), false, self.settings.act)
  return self.transform_norm:forward(h):linear(self.embed.weight, self.head_bias)
end

return base.module(Bert)
