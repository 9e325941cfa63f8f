-- deepseek_v3.lua - DeepSeek V3 and R1 (2412.19437): multi-head latent attention, which compresses
-- keys and values to one narrow vector, and a mixture of experts with a shared one.
-- Equations are numbered as in that paper, section 2.1. Extra prediction layers are not read.
local peri = require "perilune"
local options = require "perilune.options"
local base = require "perilune.models.base"
local fields = require "perilune.models.fields"
local inputs = require "perilune.models.inputs"
local rope = require "perilune.nn.rope"
local moe = require "perilune.models.moe"
local Module = require "perilune.nn.module"

local DeepSeek = base.class "deepseek_v3"

function DeepSeek.read(config, has)
  local need, number = fields.need, fields.number
  if (config.hidden_act or "silu") ~= "silu" then
    error(("deepseek_v3: the setting hidden_act = %q is not supported, expected silu"):format(
      tostring(config.hidden_act)), 0)
  end
  local p = config.rope_parameters or config.rope_scaling
  p = type(p) == "table" and p or {} -- rope.lua refuses what is none
  local heads, nope, turned = need(config, "num_attention_heads"), need(config, "qk_nope_head_dim"),
    need(config, "qk_rope_head_dim")
  local experts, groups = need(config, "n_routed_experts"), need(config, "n_group", 1)
  if experts % groups ~= 0 then error(("deepseek_v3: %d experts in %d groups"):format(experts, groups), 0) end
  -- YaRN makes the softmax sharper: mscale of all channels, squared
  local mscale = (p.rope_type or p.type or "default") ~= "default" and p.mscale_all_dim
    and rope.yarn_mscale(p.factor, p.mscale_all_dim) or 1
  return {
    vocab = need(config, "vocab_size"), dim = need(config, "hidden_size"), ff = need(config, "intermediate_size"),
    layers = fields.need_layers(config, "num_hidden_layers", has), heads = heads, kv_heads = heads,
    head_dim = nope + turned, nope = nope, rope = turned, value_dim = need(config, "v_head_dim"),
    q_rank = config.q_lora_rank and need(config, "q_lora_rank"), kv_rank = need(config, "kv_lora_rank"),
    scale = (nope + turned) ^ -0.5 * mscale ^ 2,
    interleaved = config.rope_interleave ~= false, eps = number(config, "rms_norm_eps", 1e-6),
    bias = config.attention_bias or false, dropout = number(config, "attention_dropout", 0, 1),
    dense = fields.count(config, "first_k_dense_replace", 0), expert_ff = need(config, "moe_intermediate_size"),
    experts = experts, shared = fields.count(config, "n_shared_experts", 0),
    active = need(config, "num_experts_per_tok"), groups = groups, kept_groups = need(config, "topk_group", 1),
    normalised = config.norm_topk_prob ~= false, route_scale = number(config, "routed_scaling_factor", 1),
    tied = fields.tied(config, has, "model.embed_tokens.weight", "lm_head.weight", false),
  }
end

-- An expert: a SwiGLU feed-forward.
local Expert = Module.class "Expert"

function Expert:forward(x, few) return self.down:forward(self.gate_up:forward(x, few):swiglu(), few) end

local function feed_forward(d, owner, ours, published, dim, ff)
  d:at(owner, ours, published)
  d:linear("gate_up", dim, { { "gate_proj", ff }, { "up_proj", ff } })
  d:linear("down", ff, { { "down_proj", dim } })
  return owner
end

function DeepSeek:declare(d)
  local s = self.settings
  d:at(self, "", "model.")
  d:embedding("embed", "embed_tokens.weight", s.vocab, s.dim)
  for i, layer in ipairs(self:stack("layers", s.layers)) do
    local ours, published = ("layers.%d."):format(i - 1), ("model.layers.%d."):format(i - 1)
    d:at(layer, ours, published)
    d:tensor("norm1", "input_layernorm.weight", { s.dim })
    local queries = s.heads * s.head_dim
    if s.q_rank then
      d:linear("q_a", s.dim, { { "self_attn.q_a_proj", s.q_rank } }, s.bias)
      d:tensor("q_norm", "self_attn.q_a_layernorm.weight", { s.q_rank })
      d:linear("q_b", s.q_rank, { { "self_attn.q_b_proj", queries } })
    else
      d:linear("q_b", s.dim, { { "self_attn.q_proj", queries } })
    end
    d:linear("kv_a", s.dim, { { "self_attn.kv_a_proj_with_mqa", s.kv_rank + s.rope } }, s.bias)
    d:tensor("kv_norm", "self_attn.kv_a_layernorm.weight", { s.kv_rank })
    d:linear("kv_b", s.kv_rank, { { "self_attn.kv_b_proj", s.heads * (s.nope + s.value_dim) } })
    d:linear("out", s.heads * s.value_dim, { { "self_attn.o_proj", s.dim } }, s.bias)
    d:tensor("norm2", "post_attention_layernorm.weight", { s.dim })
    if i <= s.dense then
      feed_forward(d, layer, ours, published .. "mlp.", s.dim, s.ff)
    else
      d:at(layer, ours, published)
      d:tensor("gate", "mlp.gate.weight", { s.experts, s.dim }, "normal")
      d:tensor("gate_bias", "mlp.gate.e_score_correction_bias", { s.experts }, "zeros", "vector", "buffer")
      layer.experts = {}
      for e = 1, s.experts do
        local at = ("experts.%d."):format(e - 1)
        layer.experts[e] = feed_forward(d, Expert(), ours .. at, published .. "mlp." .. at, s.dim, s.expert_ff)
      end
      if s.shared > 0 then
        layer.shared = feed_forward(d, Expert(), ours .. "shared.", published .. "mlp.shared_experts.", s.dim,
          s.shared * s.expert_ff)
      end
    end
  end
  d:at(self, "", "")
  d:tensor("norm", "model.norm.weight", { s.dim })
  if not s.tied then d:embedding("head", "lm_head.weight", s.vocab, s.dim) end
  local freq, scale = rope.frequencies(s.rope, self.config)
  self.inv_freq, self.rope_scale = peri.tensor(freq, "f32"), scale
end

function DeepSeek:twins(name)
  return self.settings.tied and name == "model.embed_tokens.weight" and { "lm_head.weight" } or {}
end

--- The layers behind the last are for multi-token prediction.
function DeepSeek:ignored(name)
  local layer = name:match "^model%.layers%.(%d+)%."
  return layer ~= nil and tonumber(layer) >= self.settings.layers or name == "lm_head.weight" and self.settings.tied
    or base.Model.ignored(self, name)
end

-- Eq. 1-11. Values are padded to the keys' width, so that one kernel and one cache serve both.
local function attention(self, i, y, c)
  local s, layer, batch, time, few = self.settings, self.layers[i], y:size(1), y:size(2), c.decoding
  local function turn(x) return x:rope(c.positions, self.inv_freq, s.interleaved, self.rope_scale) end
  local cq = layer.q_a and layer.q_a:forward(y, few):rms_norm(layer.q_norm, 1e-6) or y
  local q = layer.q_b:forward(cq, few):reshape { batch, time, s.heads, s.head_dim }
  local compressed = layer.kv_a:forward(y, few) -- (B, T, kv_rank + rope)
  local latent = compressed:narrow(-1, 1, s.kv_rank):rms_norm(layer.kv_norm, 1e-6)
  local key_turned = turn(compressed:narrow(-1, s.kv_rank + 1, s.rope):unsqueeze(3)) -- one head for all
  local kv = layer.kv_b:forward(latent, few):reshape { batch, time, s.heads, s.nope + s.value_dim }
  q = peri.cat({ q:narrow(-1, 1, s.nope), turn(q:narrow(-1, s.nope + 1, s.rope)) }, 4)
  local k = peri.cat({ kv:narrow(-1, 1, s.nope), key_turned:expand { -1, -1, s.heads, -1 } }, 4)
  local v = kv:narrow(-1, s.nope + 1, s.value_dim):pad { 0, s.head_dim - s.value_dim }
  local a = c:attend(i, q, k, v, { scale = s.scale, dropout = self.training and s.dropout or 0 })
  a = a:narrow(-1, 1, s.value_dim):reshape { batch, time, s.heads * s.value_dim }
  return layer.out:forward(a, few)
end

-- Block i: y is the normed residual stream x. Returns both for the next block. -- (B, T, D)
function DeepSeek:block(i, y, x, c)
  local s, layer, after = self.settings, self.layers[i], self.layers[i + 1]
  y, x = attention(self, i, y, c):add_rms_norm(x, layer.norm2, s.eps)
  local h
  if layer.experts then
    local places, weights = moe.route(y:linear(layer.gate):sigmoid(), layer.gate_bias, s)
    h = moe.mix(y, places, weights, function (e, rows) return layer.experts[e]:forward(rows, c.decoding) end, s.experts)
    if layer.shared then h = h:add(layer.shared:forward(y, c.decoding)) end
  else
    h = layer.down:forward(layer.gate_up:forward(y, c.decoding):swiglu(), c.decoding)
  end
  return h:add_rms_norm(x, after and after.norm1 or self.norm, s.eps)
end

--- Hidden states after the last norm.
--- @param ids perilune.Tensor|perilune.Batch  (B, T) i64
--- @param opts table?  mask, start, lengths, positions, segments, cache, prefix, collect: see perilune.models.inputs
--- @return perilune.Tensor  (B, T, D) f32
function DeepSeek:forward(ids, opts)
  local c
  c, ids = self:context(ids, opts)
  return base.run_blocks(self, self:embedded(self.embed, ids), c)
end
options.declare(DeepSeek.forward, { "ids" }, inputs.causal)

return base.module(DeepSeek)
