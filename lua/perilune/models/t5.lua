-- t5.lua - T5 (Raffel et al., 1910.10683) and T5 1.1 (gated feed-forward): an encoder and a decoder with
-- cross-attention, RMS norms, and one learned bias for each bucket of distances in place of positions.
local peri = require "perilune"
local options = require "perilune.options"
local base = require "perilune.models.base"
local fields = require "perilune.models.fields"
local context = require "perilune.models.context"
local inputs = require "perilune.models.inputs"
local relative = require "perilune.models.relative"
local seq2seq = require "perilune.models.seq2seq"
local activated = require("perilune.models.projection").activated

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

-- One stack: self-attention, in a decoder cross-attention, feed-forward; each with a norm before it.
local function declare_stack(self, d, n, decoder)
  local s, name = self.settings, decoder and "decoder" or "encoder"
  local inner, stack = s.heads * s.head_dim, self:stack(name, n, name .. "_block")
  for i = 1, n do
    local function part(k)
      d:at(stack[i], ("%s.%d."):format(name, i - 1), ("%s.block.%d.layer.%d."):format(name, i - 1, k))
    end
    part(0)
    d:linear("qkv", s.dim, { { "SelfAttention.q", inner }, { "SelfAttention.k", inner }, { "SelfAttention.v", inner } })
    d:linear("out", inner, { { "SelfAttention.o", s.dim } })
    local table_of_biases = i == 1 and "SelfAttention.relative_attention_bias.weight"
    if table_of_biases then d:tensor("distance", table_of_biases, { s.buckets, s.heads }, "normal") end
    d:tensor("norm1", "layer_norm.weight", { s.dim })
    if decoder then
      part(1)
      d:linear("cross_q", s.dim, { { "EncDecAttention.q", inner } })
      d:linear("cross_kv", s.dim, { { "EncDecAttention.k", inner }, { "EncDecAttention.v", inner } })
      d:linear("cross_out", inner, { { "EncDecAttention.o", s.dim } })
      d:tensor("norm2", "layer_norm.weight", { s.dim })
    end
    part(decoder and 2 or 1)
    d:linear("up", s.dim, s.gated and { { "DenseReluDense.wi_0", s.ff }, { "DenseReluDense.wi_1", s.ff } }
      or { { "DenseReluDense.wi", s.ff } })
    d:linear("down", s.ff, { { "DenseReluDense.wo", s.dim } })
    d:tensor("norm3", "layer_norm.weight", { s.dim })
  end
  d:at(self, "", "")
  d:tensor(name .. "_norm", name .. ".final_layer_norm.weight", { s.dim })
end

function T5:declare(d)
  local s = self.settings
  d:at(self, "", "")
  d:embedding("embed", "shared.weight", s.vocab, s.dim)
  declare_stack(self, d, s.layers, false)
  declare_stack(self, d, s.decoder_layers, true)
  if not s.tied then d:embedding("head", "lm_head.weight", s.vocab, s.dim) end
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

local function feed_forward(self, layer, x)
  local s, y = self.settings, x:rms_norm(layer.norm3, self.settings.eps)
  local h = s.gated and layer.up:forward(y):gated(s.act) or activated(layer.up, y, false, s.act)
  return x:add(self:dropout(layer.down:forward(self:dropout(h, s.dropout)), s.dropout))
end

-- Scores are not scaled: the initial weights are. -- (B, T, D)
local function attend(self, out, q, k, v, mask, start, causal)
  local s = self.settings
  local a = context.attention(q, k, v, mask, start,
    { scale = 1, causal = causal, dropout = self.training and s.dropout or 0 })
  return self:dropout(out:forward(a:reshape { q:size(1), q:size(2), s.heads * s.head_dim }), s.dropout)
end

-- A product taken apart into its n of q, k, v. -- (B, T, H, D) each
local function heads(self, y, n)
  local s = self.settings
  return table.unpack(y:reshape({ y:size(1), y:size(2), n * s.heads, s.head_dim }):chunk(n, 3))
end

-- Block i of the encoder on its residual stream. -- (B, T, D)
function T5:encoder_block(i, x, bias)
  local layer = self.encoder[i]
  local q, k, v = heads(self, layer.qkv:forward(x:rms_norm(layer.norm1, self.settings.eps)), 3)
  return feed_forward(self, layer, x:add(attend(self, layer.out, q, k, v, bias, nil, false)))
end

-- Block i of the decoder; pass has cache, start, mask of the encoder's input and crossed, as decode was given them.
function T5:decoder_block(i, x, encoded, bias, pass)
  local layer, eps = self.decoder[i], self.settings.eps
  local q, k, v = heads(self, layer.qkv:forward(x:rms_norm(layer.norm1, eps)), 3)
  if pass.cache then k, v = pass.cache:append(i, k, v) end
  x = x:add(attend(self, layer.out, q, k, v, bias, pass.start, true))
  q = heads(self, layer.cross_q:forward(x:rms_norm(layer.norm2, eps)), 1)
  if pass.crossed then k, v = pass.crossed[i][1], pass.crossed[i][2] else k, v = self:crossed(i, encoded) end
  return feed_forward(self, layer, x:add(attend(self, layer.cross_out, q, k, v, pass.mask, nil, false)))
end

--- Hidden states of the encoder.
--- @param ids perilune.Tensor|perilune.Batch  (B, T) i64
--- @param opts table|perilune.Tensor|nil  mask, start, lengths: see perilune.models.inputs; or the mask (B, T) itself
--- @return perilune.Tensor  (B, T, D) f32
function T5:encode(ids, opts)
  local who, o = self.__name .. ": encode"
  if peri.is_tensor(opts) then opts = { mask = opts } end
  ids, o = inputs.read(who, ids, opts, inputs.relative, 2)
  local s, time, mask = self.settings, ids:size(2), inputs.rows(who, ids, o, 2).mask
  local bias = relative.biases(self.encoder[1].distance, time, time, true, s.far)
  if mask then bias = bias:add(relative.hidden(mask)) end
  local x = self:dropout(self:embedded(self.embed, ids), s.dropout)
  for _, layer in ipairs(self.encoder) do x = layer:forward(x, bias) end
  return self:dropout(x:rms_norm(self.encoder_norm, s.eps), s.dropout)
end

options.declare(T5.encode, { "ids" }, inputs.relative)

--- Keys and values of a decoder layer's cross-attention. -- (B, Ts, H, D) each
function T5:crossed(i, encoded) return heads(self, self.decoder[i].cross_kv:forward(encoded), 2) end

--- Hidden states of the decoder.
--- @param ids perilune.Tensor  (B, T) i64, beginning with the start token
--- @param encoded perilune.Tensor  (B, Ts, D) from encode
--- @param opts table?  mask (B, Ts) of the encoder's input; decoder_mask (B, T), or start (B); cache: as for causal
--- models; crossed: for each layer { k, v } of T5:crossed, when they were made before
--- @return perilune.Tensor  (B, T, D) f32
function T5:decode(ids, encoded, opts)
  local who, o = self.__name .. ": decode"
  ids, o = inputs.read(who, ids, opts, inputs.decoder, 2)
  local c = context.new(who, ids, { cache = o.cache, start = o.start, mask = o.decoder_mask, batch = o.batch }, 2)
  local s, cache, time, past = self.settings, o.cache, ids:size(2), c.past
  local bias = relative.biases(self.decoder[1].distance, time, past + time, false, s.far)
  if c.mask then bias = bias:add(relative.hidden(c.mask:squeeze { 2, 3 })) end
  local mask
  if o.mask then
    local seen = o.crossed and o.crossed[1][1]:size(2) or encoded:size(2)
    mask = relative.hidden(inputs.check_mask(who, "mask", o.mask, ids:size(1), seen, 2))
  end
  local x = self:dropout(self:embedded(self.embed, ids), s.dropout)
  local pass = { cache = cache, start = c.start, mask = mask, crossed = o.crossed }
  for _, layer in ipairs(self.decoder) do x = layer:forward(x, encoded, bias, pass) end
  if cache then cache.length = past + time end
  return self:dropout(x:rms_norm(self.decoder_norm, s.eps), s.dropout)
end

options.declare(T5.decode, { "ids", "encoded" }, inputs.decoder)

--- @param hidden perilune.Tensor  (..., D) from forward or decode
--- @return perilune.Tensor  (..., V)
function T5:logits(hidden)
  hidden = base.hidden(self, hidden)
  if self.settings.scaled then hidden = hidden:mul(self.settings.dim ^ -0.5) end
  return base.scores(self, hidden)
end

return base.module(T5)
