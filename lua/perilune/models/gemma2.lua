-- gemma2.lua - Gemma 2 (2408.00118): norms before and after attention and feed-forward with weights
-- 1 + w, every other layer a sliding window, soft caps on attention scores and on logits, embeddings
-- times sqrt(dim), GeGLU.
local peri = require "perilune"
local base = require "perilune.models.base"
local fields = require "perilune.models.fields"
local derived = require "perilune.nn.derived"
local layers = require "perilune.nn.layers"
local Module = require "perilune.nn.module"
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

-- A norm whose weight is stored less 1.
local Norm = Module.class("RMSNorm", nil, layers.RMSNorm)

local function one_more(self) return self.weight:add(1) end

-- 1 + w; remembered while no gradients are wanted.
function Norm:scale()
  local w = self.weight
  if peri.grad_enabled() then return derived.weight(self, "scale", one_more) end
  if self._of ~= w or self._version ~= w:version() then
    self._of, self._version, self._scale = w, w:version(), peri.keep(w:add(1))
  end
  return self._scale
end

function Gemma2:declare(d)
  local s = self.settings
  local freq, scale = rope.frequencies(s.head_dim, self.config)
  local inv_freq = peri.tensor(freq, "f32")
  self.inv_freq, self.rope_scale = inv_freq, scale
  local function norm(key, published) d:rms_norm(key, published, s.dim, s.eps, Norm, "zeros") end
  d:at(self, "", "model.")
  d:embedding("embed", "embed_tokens", s.vocab, s.dim)
  self:stack("layers", s.layers, nil, function (one, i, ours)
    d:at(one, ours, ("model.layers.%d."):format(i - 1))
    norm("norm1", "input_layernorm")
    d:attention("attention", { heads = s.heads, kv_heads = s.kv_heads, head_dim = s.head_dim,
      scale = s.scale, window = s.windows[i], softcap = s.cap, attention_dropout = s.dropout }, {
      dim = s.dim, at = "self_attn.", q = "q_proj", k = "k_proj", v = "v_proj", out = "o_proj", bias = s.bias,
      out_bias = s.bias }):rotate(inv_freq, scale)
    norm("attention_norm", "post_attention_layernorm")
    norm("norm2", "pre_feedforward_layernorm")
    d:feed_forward("ff", { gate = s.act }, { dim = s.dim, hidden = s.ff, at = "mlp.", gate = "gate_proj",
      up = "up_proj", down = "down_proj" })
    norm("ff_norm", "post_feedforward_layernorm")
  end)
  d:at(self, "", "")
  norm("norm", "model.norm")
  d:head(s.tied)
end

-- Embeddings times the root of their width. -- (B, T, D)
function Gemma2:embedded(ids) return self.embed:forward(ids):mul(math.sqrt(self.settings.dim)) end

local function capped(self, hidden)
  local logits, cap = self.head:forward(hidden), self.settings.logit_cap
  return cap > 0 and logits:div(cap):tanh():mul(cap) or logits
end

--- @param hidden perilune.Tensor  (..., D)
--- @return perilune.Tensor  (..., V)
function Gemma2:logits(hidden) return capped(self, base.hidden(self, hidden)) end

--- See perilune.models.base: of capped logits.
function Gemma2:token_logprob(hidden, targets, temperature, support)
  if self.settings.logit_cap == 0 then
    return base.Causal.token_logprob(self, hidden, targets, temperature, support)
  end
  return base.token_logprob_by(function (h) return capped(self, h) end, hidden, targets, temperature, support)
end

return base.module(Gemma2)
