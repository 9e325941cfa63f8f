-- deepseek2.lua - DeepSeek V3 and R1, which GGUF calls deepseek2: the key and value parts of kv_b_proj stand apart,
-- experts together.
local decoder = require "perilune.weights.gguf.arch.decoder"

local tensors = decoder.with {
  { "blk.%d.attn_q_a", "model.layers.%d.self_attn.q_a_proj" },
  { "blk.%d.attn_q_a_norm", "model.layers.%d.self_attn.q_a_layernorm" },
  { "blk.%d.attn_q_b", "model.layers.%d.self_attn.q_b_proj" },
  { "blk.%d.attn_kv_a_mqa", "model.layers.%d.self_attn.kv_a_proj_with_mqa" },
  { "blk.%d.attn_kv_a_norm", "model.layers.%d.self_attn.kv_a_layernorm" },
  { "blk.%d.attn_kv_b", "model.layers.%d.self_attn.kv_b_proj" }, -- of older files
  { "blk.%d.attn_k_b", "model.layers.%d.self_attn.kv_b_proj", "k_b" },
  { "blk.%d.attn_v_b", "model.layers.%d.self_attn.kv_b_proj", "v_b" },
  { "blk.%d.ffn_gate_inp", "model.layers.%d.mlp.gate" },
  { "blk.%d.exp_probs_b.bias", "model.layers.%d.mlp.gate.e_score_correction_bias" },
}
for _, part in ipairs { "gate", "up", "down" } do
  tensors[#tensors + 1] = { ("blk.%%d.ffn_%s_exps"):format(part),
    ("model.layers.%%d.mlp.experts.*.%s_proj"):format(part), "experts" }
  tensors[#tensors + 1] = { ("blk.%%d.ffn_%s_shexp"):format(part),
    ("model.layers.%%d.mlp.shared_experts.%s_proj"):format(part) }
end

return {
  model_types = { "deepseek_v3" }, class = "DeepseekV3ForCausalLM",
  drops_more_layers = true, -- those behind num_hidden_layers predict further tokens (MTP): GGUF has no place for them
  tensors = tensors,
  read = function (c, get, extra)
    local err = decoder.read(c, get, extra, "deepseek2")
    local m = get "deepseek2.rope.scaling.yarn_log_multiplier" -- 0.1 mscale_all_dim
    local s = c.rope_scaling
    if m and s and s.type == "yarn" then s.mscale_all_dim, s.mscale = m * 10, m * 10 end
    local a = "deepseek2.attention."
    c.kv_lora_rank, c.q_lora_rank = get(a .. "kv_lora_rank"), get(a .. "q_lora_rank")
    c.qk_rope_head_dim = get "deepseek2.rope.dimension_count"
    local key, value = get(a .. "key_length_mla"), get(a .. "value_length_mla")
    if not key then key, value = get(a .. "key_length"), get(a .. "value_length") end -- older files
    if not (key and value and c.qk_rope_head_dim) then return "deepseek2.attention.key_length_mla is missing" end
    c.qk_nope_head_dim, c.v_head_dim = key - c.qk_rope_head_dim, value
    c.head_dim, c.qk_head_dim, c.num_key_value_heads = c.qk_rope_head_dim, key, c.num_attention_heads
    c.first_k_dense_replace = get "deepseek2.leading_dense_block_count" or 0
    c.moe_intermediate_size = get "deepseek2.expert_feed_forward_length"
    c.n_routed_experts, c.n_shared_experts = get "deepseek2.expert_count", get "deepseek2.expert_shared_count"
    c.num_experts_per_tok = get "deepseek2.expert_used_count"
    c.routed_scaling_factor = get "deepseek2.expert_weights_scale" or 1.0
    c.norm_topk_prob = get "deepseek2.expert_weights_norm" or false
    c.n_group, c.topk_group = get "deepseek2.expert_group_count" or 1, get "deepseek2.expert_group_used_count" or 1
    c.rope_interleave, c.attention_bias = true, false
    local gating = get "deepseek2.expert_gating_func"
    if gating == 1 or (not gating and not extra.any "exp_probs_b%.bias$") then
      return "softmax gating (DeepSeek V2) is not supported, only V3's"
    end
    return err
  end,
  write = function (put, c)
    local err = decoder.write_common(put, c)
    local p = c.rope_parameters or c.rope_scaling or {}
    if (p.rope_type or p.type) == "yarn" and p.mscale_all_dim then
      put("rope.scaling.yarn_log_multiplier", "f32", 0.1 * p.mscale_all_dim)
    end
    put("attention.head_count_kv", "u32", 1) -- attention is computed on the compressed keys
    put("leading_dense_block_count", "u32", c.first_k_dense_replace)
    put("vocab_size", "u32", c.vocab_size)
    put("attention.q_lora_rank", "u32", c.q_lora_rank)
    put("attention.kv_lora_rank", "u32", c.kv_lora_rank)
    put("attention.key_length", "u32", c.kv_lora_rank + c.qk_rope_head_dim)
    put("attention.value_length", "u32", c.kv_lora_rank)
    put("attention.key_length_mla", "u32", c.qk_nope_head_dim + c.qk_rope_head_dim)
    put("attention.value_length_mla", "u32", c.v_head_dim)
    put("expert_feed_forward_length", "u32", c.moe_intermediate_size)
    put("expert_count", "u32", c.n_routed_experts)
    put("expert_used_count", "u32", c.num_experts_per_tok)
    put("expert_shared_count", "u32", c.n_shared_experts)
    put("expert_weights_scale", "f32", c.routed_scaling_factor)
    put("expert_weights_norm", "bool", c.norm_topk_prob)
    put("expert_group_count", "u32", c.n_group)
    put("expert_group_used_count", "u32", c.topk_group)
    put("expert_gating_func", "u32", 2) -- sigmoid
    put("rope.dimension_count", "u32", c.qk_rope_head_dim)
    return err
  end,
}
