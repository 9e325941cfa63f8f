-- t5.lua - T5 (Raffel et al., 1910.10683) and T5 1.1 (gated feed-forward): an encoder and a decoder with
-- cross-attention, RMS norms, and one learned bias for each bucket of distances in place of positions.
local peri = require "perilune"
local options = require "perilune.options"
local base = require "perilune.models.base"
local fields = require "perilune.models.fields"
local attention = require "perilune.nn.attention"
local block = require "perilune.nn.block"
local context = require "perilune.nn.context"
local inputs = require "perilune.models.inputs"
local relative = require "perilune.models.relative"
local seq2seq = require "perilune.models.seq2seq"

local T5 = base.class("t5", seq2seq.Class)

function T5.read(config, has)
  local need, number = fields.need, fields.number
  local gated, act = tostring(config.feed_forward_proj or "relu"):match "^(gated%-)(.*)$"
  act = gated and act == "gelu" and "gelu_new" or act or config.feed_forward_proj or "relu"
  local layers, tied = fields.need_layers(config, "num_layers", has), config.tie_word_embeddings ~= false
  local scaled = config.scale_decoder_outputs
  if scaled == nil then scaled = tied end
  return {
    vocab = need(config, "vocab_size"), dim = need(config, "d_model"), ff = need(config, "d_ff"), layers = layers,
    decoder_layers = need(config, "num_decoder_layers", layers), heads = need(config, "num_heads"),
    head_dim = need(config, "d_kv"), eps = number(config, "layer_norm_epsilon", 1e-6), gated = gated ~= nil,
    act = fields.activation({ model_type = "t5", feed_forward_proj = act }, "feed_forward_proj"),
    buckets = need(config, "relative_attention_num_buckets", 32),
    far = need(config, "relative_attention_max_distance", 128),
    dropout = number(config, "dropout_rate", 0.1, 1), tied = tied, scaled = scaled,
    first = fields.count(config, "decoder_start_token_id", 0),
  }
end

-- One stack: self-attention, in a decoder cross-attention, feed-forward; each with a norm before it. Scores are not
-- scaled: the initial weights are.
local function declare_stack(self, d, n, decoder)
  local s, name = self.settings, decoder and "decoder" or "encoder"
  local inner = s.heads * s.head_dim
  self:stack(name, n, nil, function (one, i, ours)
    local function part(k) d:at(one, ours, ("%s.block.%d.layer.%d."):format(name, i - 1, k)) end
    part(0)
    d:attention("attention", { heads = s.heads, kv_heads = s.heads, head_dim = s.head_dim, scale = 1,
      causal = decoder, attention_dropout = s.dropout, dropout = s.dropout }, {
      dim = s.dim, at = "SelfAttention.", q = "q", k = "k", v = "v", out = "o" })
    if i == 1 then
      d:tensor("distance", "SelfAttention.relative_attention_bias.weight", { s.buckets, s.heads }, "normal")
    end
    d:rms_norm("norm1", "layer_norm", s.dim, s.eps)
    if decoder then
      local cross = attention._without_weights({ heads = s.heads, kv_heads = s.heads, head_dim = s.head_dim,
        scale = 1, attention_dropout = s.dropout, dropout = s.dropout }, attention.CrossAttention)
      one.cross = cross
      d:at(cross, ours .. "cross.", ("%s.block.%d.layer.1.EncDecAttention."):format(name, i - 1))
      d:linear("q", s.dim, { { "q", inner } })
      d:linear("kv", s.dim, { { "k", inner }, { "v", inner } })
      d:linear("out", inner, { { "o", s.dim } })
      part(1)
      d:rms_norm("cross_norm", "layer_norm", s.dim, s.eps)
    end
    part(decoder and 2 or 1)
    d:feed_forward("ff", { gate = s.gated and s.act or nil, act = not s.gated and s.act or nil, dropout = s.dropout,
      hidden_dropout = s.dropout }, { dim = s.dim, hidden = s.ff, at = "DenseReluDense.", gate = s.gated and "wi_0",
      up = s.gated and "wi_1" or "wi", down = "wo" })
    d:rms_norm("norm2", "layer_norm", s.dim, s.eps)
  end)
  d:at(self, "", "")
  d:rms_norm(name .. "_norm", name .. ".final_layer_norm", s.dim, s.eps)
end

function T5:declare(d)
  local s = self.settings
  d:at(self, "", "")
  d:embedding("embed", "shared", s.vocab, s.dim)
  declare_stack(self, d, s.layers, false)
  declare_stack(self, d, s.decoder_layers, true)
  d:head(s.tied)
end

--- The embedding is shared by both stacks, and by the head where that is tied.
function T5:twins(name)
  if name ~= "shared.weight" then return {} end
  local head = self.settings.tied and "lm_head.weight" or nil
  return { "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", head }
end

--- Copies of the shared embedding, and a bias that old checkpoints have and nobody reads.
function T5:ignored(name)
  return name:find "coder%.embed_tokens%.weight$" ~= nil or name == "lm_head.weight" and self.settings.tied
    or name:find "EncDecAttention%.relative_attention_bias" ~= nil
end

--- Hidden states of the encoder.
--- @param ids perilune.Tensor|perilune.Batch  (B, T) i64
--- @param opts table|perilune.Tensor|nil  mask, start, lengths: see perilune.models.inputs; or the mask (B, T) itself
--- @return perilune.Tensor  (B, T, D) f32
function T5:encode(ids, opts)
  local who, o = self.__name .. ": encode"
  if peri.is_tensor(opts) then opts = { mask = opts } end
  ids, o = inputs.read(who, ids, opts, inputs.relative)
  local s, batch, time, mask = self.settings, ids:size(1), ids:size(2), inputs.rows(who, ids, o).mask
  local c = context.of_encoder(batch, time, mask)
    :add_bias(relative.biases(self.encoder[1].distance, time, time, true, s.far))
  local x = self:dropout(self.embed:forward(ids), s.dropout)
  return self:dropout(block._run(self.encoder, x, c, self.encoder_norm), s.dropout)
end

options.declare(T5.encode, { "ids" }, inputs.relative)

--- Keys and values of a decoder layer's cross-attention: { k, v }. -- (B, Ts, H, D) each
function T5:crossed(i, encoded) return self.decoder[i].cross:keys(encoded) end

--- Hidden states of the decoder.
--- @param ids perilune.Tensor  (B, T) i64, beginning with the start token
--- @param encoded perilune.Tensor  (B, Ts, D) from encode
--- @param opts table?  mask (B, Ts) of the encoder's input; decoder_mask (B, T), or start (B); cache: as for causal
--- models; crossed: for each layer { k, v } of T5:crossed, when they were made before
--- @return perilune.Tensor  (B, T, D) f32
function T5:decode(ids, encoded, opts)
  local who, o = self.__name .. ": decode"
  ids, o = inputs.read(who, ids, opts, inputs.decoder)
  local given = { cache = o.cache, start = o.start, mask = o.decoder_mask, batch = o.batch }
  inputs.place(who, ids, given)
  local s, batch, time, source = self.settings, ids:size(1), ids:size(2), { hidden = encoded, keys = o.crossed }
  if o.mask then
    local seen = o.crossed and o.crossed[1][1]:size(2) or encoded:size(2)
    source.mask = inputs.check_mask(who, "mask", o.mask, batch, seen):reshape { batch, 1, 1, seen }
  end
  given.source = source
  local c = context.new(who, batch, time, given)
  c:add_bias(relative.biases(self.decoder[1].distance, time, c.past + time, false, s.far))
  local x = self:dropout(self.embed:forward(ids), s.dropout)
  local y = block._run(self.decoder, x, c, self.decoder_norm)
  c:finish()
  return self:dropout(y, s.dropout)
end

options.declare(T5.decode, { "ids", "encoded" }, inputs.decoder)

--- @param hidden perilune.Tensor  (..., D) from forward or decode
--- @return perilune.Tensor  (..., V)
function T5:logits(hidden)
  hidden = base.hidden(self, hidden)
  if self.settings.scaled then hidden = hidden:mul(self.settings.dim ^ -0.5) end
  return self.head:forward(hidden)
end

return base.module(T5)
