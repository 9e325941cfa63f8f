-- deepseek_v3.lua - DeepSeek V3 and R1 (2412.19437): multi-head latent attention, which compresses
-- keys and values to one narrow vector, and a mixture of experts with a shared one.
-- Equations are numbered as in that paper, section 2.1. Extra prediction layers are not read.
local peri = require "perilune"
local base = require "perilune.models.base"
local fields = require "perilune.models.fields"
local attention = require "perilune.nn.attention"
local options = require "perilune.options"
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

-- ---- latent attention ----

--- Eq. 1-11: keys and values come from one narrow vector; a part of the keys, which is turned, is one for all heads.
local Latent = Module.class("LatentAttention", nil, attention.MultiHeadAttention)

--- Heads of queries, keys and values. Values are padded to the keys' width: one kernel and one cache serve both.
function Latent:heads_of(x, c)
  local few, batch, time, heads, nope, turned = c.decoding, c.batch, c.time, self.heads, self.nope, self.turned
  local function turn(t) return t:rope(c.positions, self._inv_freq, self._interleaved, self._rope_scale) end
  local cq = self.q_a and self.q_norm:forward(self.q_a:forward(x, few)) or x
  local q = self.q_b:forward(cq, few):reshape { batch, time, heads, self.head_dim }
  local compressed = self.kv_a:forward(x, few) -- (B, T, kv_rank + turned)
  local latent = self.kv_norm:forward(compressed:narrow(-1, 1, self.kv_rank))
  local key_turned = turn(compressed:narrow(-1, self.kv_rank + 1, turned):unsqueeze(3)) -- one head for all
  local kv = self.kv_b:forward(latent, few):reshape { batch, time, heads, nope + self.value_dim }
  q = peri.cat({ q:narrow(-1, 1, nope), turn(q:narrow(-1, nope + 1, turned)) }, 4)
  local k = peri.cat({ kv:narrow(-1, 1, nope), key_turned:expand { -1, -1, heads, -1 } }, 4)
  return q, k, kv:narrow(-1, nope + 1, self.value_dim):pad { 0, self.head_dim - self.value_dim }
end

function Latent:_widths() return attention._widths_of(self.q_a or self.q_b, self.out) end

function Latent:attend(x, c)
  local q, k, v = self:heads_of(x, c)
  local a = c:attend(q, k, v, { causal = true, scale = self.scale,
    dropout = self.training and self.attention_dropout or 0 })
  return a:narrow(-1, 1, self.value_dim)
end

local function latent_attention(d, one, ours, published, s)
  local self = attention._without_weights({ heads = s.heads, kv_heads = s.heads, head_dim = s.head_dim,
    scale = s.scale, nope = s.nope, turned = s.rope, value_dim = s.value_dim, kv_rank = s.kv_rank,
    attention_dropout = s.dropout }, Latent)
  one.attention = self
  d:at(self, ours .. "attention.", published .. "self_attn.")
  local queries = s.heads * s.head_dim
  if s.q_rank then
    d:linear("q_a", s.dim, { { "q_a_proj", s.q_rank } }, { bias = s.bias })
    d:rms_norm("q_norm", "q_a_layernorm", s.q_rank, 1e-6)
    d:linear("q_b", s.q_rank, { { "q_b_proj", queries } })
  else
    d:linear("q_b", s.dim, { { "q_proj", queries } })
  end
  d:linear("kv_a", s.dim, { { "kv_a_proj_with_mqa", s.kv_rank + s.rope } }, { bias = s.bias })
  d:rms_norm("kv_norm", "kv_a_layernorm", s.kv_rank, 1e-6)
  d:linear("kv_b", s.kv_rank, { { "kv_b_proj", s.heads * (s.nope + s.value_dim) } })
  d:linear("out", s.heads * s.value_dim, { { "o_proj", s.dim } }, { bias = s.bias })
  return self
end

-- ---- experts ----

--- A mixture of experts: each token goes to a few of them, and to a shared one.
local Experts = Module.class "Experts"
function Experts:forward(x, c)
  local layer = c.place - self._how.dense -- of those that have experts
  local given = c.routes and c.routes:select(3, layer)
  local places, weights = moe.route(x:linear(self.gate):sigmoid(), self.gate_bias, self._how, given)
  local collected = c.collect and c.collect.routes
  if collected then collected[layer] = places:reshape { c.batch, c.time, places:size(2) } end
  local h = moe.mix(x, places, weights, function (e, rows) return self.experts[e]:forward(rows, c) end, #self.experts)
  return self.shared and h:add(self.shared:forward(x, c)) or h
end

local function mixture(d, one, ours, published, s)
  local self = Module.instance(Experts)
  self._how, one.ff = s, self
  local function feed_forward(owner, key, at, name, hidden)
    d:at(owner, ours .. at, published .. "mlp.")
    d:feed_forward(key, { gate = "silu" }, { dim = s.dim, hidden = hidden, at = name, gate = "gate_proj",
      up = "up_proj", down = "down_proj" })
  end
  d:at(self, ours .. "ff.", published .. "mlp.")
  d:tensor("gate", "gate.weight", { s.experts, s.dim }, "normal")
  d:tensor("gate_bias", "gate.e_score_correction_bias", { s.experts }, "zeros", "buffer")
  self.experts = {}
  for e = 1, s.experts do
    feed_forward(self.experts, e, "ff.experts.", ("experts.%d."):format(e - 1), s.expert_ff)
  end
  if s.shared > 0 then feed_forward(self, "shared", "ff.", "shared_experts.", s.shared * s.expert_ff) end
end

-- ---- the model ----

function DeepSeek:declare(d)
  local s = self.settings
  local freq, scale = rope.frequencies(s.rope, self.config)
  local inv_freq = peri.tensor(freq, "f32")
  self.inv_freq, self.rope_scale = inv_freq, scale
  d:at(self, "", "model.")
  d:embedding("embed", "embed_tokens", s.vocab, s.dim)
  self:stack("layers", s.layers, nil, function (one, i, ours)
    local published = ("model.layers.%d."):format(i - 1)
    d:at(one, ours, published)
    d:rms_norm("norm1", "input_layernorm", s.dim, s.eps)
    latent_attention(d, one, ours, published, s):rotate(inv_freq, scale, s.interleaved)
    d:at(one, ours, published)
    d:rms_norm("norm2", "post_attention_layernorm", s.dim, s.eps)
    if i <= s.dense then
      d:feed_forward("ff", { gate = "silu" }, { dim = s.dim, hidden = s.ff, at = "mlp.", gate = "gate_proj",
        up = "up_proj", down = "down_proj" })
    else
      mixture(d, one, ours, published, s)
    end
  end)
  d:at(self, "", "")
  d:rms_norm("norm", "model.norm", s.dim, s.eps)
  d:head(s.tied)
end

--- Which experts each token goes to. A later pass that is given them (routes, an option of forward and of
--- token_logprobs) sends tokens there again, whatever its own affinities would choose: routing replay, which keeps
--- the policy that is trained the one that sampled while it moves (2507.18071 section 5.3; DeepSeek-V3.2). Weights of
--- experts are of the present affinities, and have a gradient. Where nothing has moved no bit changes.
---
---     batch.routes = model:routes(batch.sequences)  -- rl.parts has them as part.routes
---     model:token_logprobs(part.sequences, part.from, { routes = part.routes })
---
--- @param ids perilune.Tensor|perilune.Batch  (B, T) i64
--- @param opts table?  of forward
--- @return perilune.Tensor routes  (B, T, layers, K) i64, of the layers that have experts
function DeepSeek:routes(ids, opts)
  local list, how = {}, {}
  for name, value in pairs(opts or {}) do how[name] = value end
  how.collect = { routes = list }
  if self.settings.dense >= self.settings.layers then
    options.raise(self.__name .. ": routes: no layer has experts")
  end
  peri.no_grad(self.forward, self, ids, how)
  return peri.stack(list, 3)
end

--- The layers behind the last are for multi-token prediction.
function DeepSeek:ignored(name)
  local layer = name:match "^model%.layers%.(%d+)%."
  return layer ~= nil and tonumber(layer) >= self.settings.layers or base.Causal.ignored(self, name)
end

return base.module(DeepSeek)
