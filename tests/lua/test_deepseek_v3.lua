-- deepseek_v3 against DeepSeek's own inference code (tests/data/dsv3_tiny.json): logits, attention,
-- choice of experts and what the experts make of a token, plain and with YaRN; and choosing by groups.
local lu = require "luaunit"
local peri = require "perilune"
local models = require "perilune.models"
local moe = require "perilune.models.moe"

local vectors = assert(peri.json.decode(assert(peri.files.read "tests/data/dsv3_tiny.json")))

-- Portable weights: FNV-1a of the name seeds a linear congruential generator; exact in f32.
local function portable(name, shape)
  local x = 2166136261
  for i = 1, #name do x = ((x ~ name:byte(i)) * 16777619) & 0xffffffff end
  local n, values = 1, {}
  for _, size in ipairs(shape) do n = n * size end
  local scale, shift = 0.5, 0
  if name:find "norm%.weight$" then scale, shift = 0.125, 1
  elseif name:find "gate%.bias$" then scale = 0.25 end
  for i = 1, n do
    x = (x * 1664525 + 1013904223) & 0xffffffff
    values[i] = shift + scale * ((x >> 8) / 2 ^ 24 - 0.5)
  end
  return peri.tensor(values, "f32"):reshape(shape)
end

-- Published name in transformers -> that in DeepSeek's inference/model.py.
local function original(name)
  if name == "lm_head.weight" then return "head.weight" end
  name = name:gsub("^model%.", "")
  local renames = {
    { "embed_tokens", "embed" }, { "input_layernorm", "attn_norm" }, { "post_attention_layernorm", "ffn_norm" },
    { "self_attn%.q_a_proj", "attn.wq_a" }, { "self_attn%.q_a_layernorm", "attn.q_norm" }, { "self_attn%.q_b_proj", "attn.wq_b" },
    { "self_attn%.kv_a_proj_with_mqa", "attn.wkv_a" }, { "self_attn%.kv_a_layernorm", "attn.kv_norm" },
    { "self_attn%.kv_b_proj", "attn.wkv_b" }, { "self_attn%.o_proj", "attn.wo" }, { "mlp%.", "ffn." }, { "gate_proj", "w1" },
    { "down_proj", "w2" }, { "up_proj", "w3" }, { "e_score_correction_bias", "bias" },
  }
  for _, r in ipairs(renames) do name = name:gsub(r[1], r[2]) end
  return name
end

local function model_of(c)
  local rope = { rope_type = "default", rope_theta = c.rope_theta or 10000 }
  if c.max_seq_len > c.original_seq_len then
    rope = { rope_type = "yarn", rope_theta = c.rope_theta or 10000, factor = c.rope_factor, mscale = 1, mscale_all_dim = 1,
      beta_fast = c.beta_fast, beta_slow = c.beta_slow, original_max_position_embeddings = c.original_seq_len }
  end
  local model = models.deepseek_v3.new { model_type = "deepseek_v3", vocab_size = c.vocab_size, hidden_size = c.dim,
    intermediate_size = c.inter_dim, moe_intermediate_size = c.moe_inter_dim, num_hidden_layers = c.n_layers,
    first_k_dense_replace = c.n_dense_layers, num_attention_heads = c.n_heads, n_routed_experts = c.n_routed_experts,
    n_shared_experts = c.n_shared_experts, num_experts_per_tok = c.n_activated_experts, n_group = c.n_expert_groups,
    topk_group = c.n_limited_groups, routed_scaling_factor = c.route_scale, q_lora_rank = c.q_lora_rank,
    kv_lora_rank = c.kv_lora_rank, qk_nope_head_dim = c.qk_nope_head_dim, qk_rope_head_dim = c.qk_rope_head_dim,
    v_head_dim = c.v_head_dim, rope_parameters = rope }
  local state = {}
  for name, t in pairs(model:state_dict()) do state[name] = portable(original(name), t.shape) end
  return model:load_state_dict(state)
end

local function near(got, want, what)
  want = peri.tensor(want, "f32")
  lu.assertTrue(got:sub(want):abs():max():item() < 2e-5, what)
end

TestDeepSeek = {}

for _, case in ipairs(vectors.cases) do
  TestDeepSeek["test_forward_" .. case.tag] = function ()
    local _ <close> = peri.no_grad()
    local model, ids = model_of(case.config), peri.tensor(vectors.tokens, "i64")
    lu.assertAlmostEquals(model.settings.scale, case.softmax_scale, 1e-9)
    for i, want in ipairs(case.inv_freq) do lu.assertAlmostEquals(model.inv_freq:at(i), want, 1e-7) end
    near(model:logits(model:forward(ids)), case.logits, "logits")
    -- the choice of the first layer with experts, from that layer's own input
    local c = model:context(ids)
    local x, y = model.layers[1](model.embed(ids), c, nil, model.layers[2].norm1)
    local seen
    local route = moe.route
    moe.route = function (...) seen = { route(...) } return table.unpack(seen) end
    model.layers[2](x, c, y)
    moe.route = route
    local places, weights = seen[1]:tolist(), seen[2]:tolist()
    for n, want in ipairs(case.l1_gate_idx_sorted) do
      local pairs_of = {}
      for k, e in ipairs(places[n]) do pairs_of[k] = { e, weights[n][k] } end
      table.sort(pairs_of, function (a, b) return a[1] < b[1] end)
      for k, e in ipairs(want) do
        lu.assertEquals(pairs_of[k][1], e)
        lu.assertAlmostEquals(pairs_of[k][2], case.l1_gate_w_sorted[n][k], 2e-5)
      end
    end
  end
end

-- With negative biases an expert of a closed group must not be chosen: groups are closed with -inf.
function TestDeepSeek.test_closed_groups_stay_closed()
  local scores = peri.tensor { { 0.9, 0.8, 0.1, 0.2, 0.3, 0.4, 0.7, 0.6 } }
  local bias = peri.full({ 8 }, -2)
  local how = { experts = 8, active = 4, groups = 4, kept_groups = 2, normalised = false, route_scale = 2 }
  local places, weights = moe.route(scores, bias, how)
  lu.assertEquals(places:tolist(), { { 0, 1, 6, 7 } })
  lu.assertAlmostEquals(weights:at(1, 1), 1.8, 1e-6)
end

-- A token's result is its own: alone, in a batch, anywhere.
function TestDeepSeek.test_experts_give_a_token_the_same_bits_in_every_batch()
  local _ <close> = peri.no_grad()
  local model = model_of(vectors.cases[1].config)
  local ids = peri.tensor(vectors.tokens, "i64")
  local both = model:forward(ids)
  for b = 1, 2 do lu.assertEquals(model:forward(ids:narrow(1, b, 1)):bytes(), both:narrow(1, b, 1):bytes()) end
end

-- Extra prediction layers of a checkpoint are left out.
function TestDeepSeek.test_prediction_layers_are_ignored()
  local source = assert(models.open "tests/data/hf_tiny/deepseek_v3")
  source.config.num_hidden_layers = 2 -- its third layer is now one of them
  local model = assert(models.from_source(source))
  lu.assertEquals(#model.layers, 2)
end

os.exit(lu.LuaUnit.run())
