-- t5.lua - T5 and T5 1.1, whose feed-forward layer has a gate.
local tensors = { { "token_embd", "shared" }, { "output", "lm_head" },
  { "enc.output_norm", "encoder.final_layer_norm" }, { "dec.output_norm", "decoder.final_layer_norm" } }
for _, side in ipairs { { "enc", "encoder", 1 }, { "dec", "decoder", 2 } } do
  local function add(gguf, layer, hf)
    tensors[#tensors + 1] = { side[1] .. ".blk.%d." .. gguf, ("%s.block.%%d.layer.%d.%s"):format(side[2], layer, hf) }
  end
  for _, part in ipairs { "q", "k", "v", "o" } do
    add("attn_" .. part, 0, "SelfAttention." .. part)
    if side[3] == 2 then add("cross_attn_" .. part, 1, "EncDecAttention." .. part) end
  end
  add("attn_rel_b", 0, "SelfAttention.relative_attention_bias")
  add("attn_norm", 0, "layer_norm")
  if side[3] == 2 then add("cross_attn_norm", 1, "layer_norm") end
  add("ffn_norm", side[3], "layer_norm")
  add("ffn_down", side[3], "DenseReluDense.wo")
  add("ffn_gate", side[3], "DenseReluDense.wi_0")
  add("ffn_up", side[3], "DenseReluDense.wi_1") -- DenseReluDense.wi without a gate
end

return {
  model_types = { "t5" }, class = "T5ForConditionalGeneration", tied = true, causal = "either", layers = "num_layers",
  needs = { "num_layers", "d_model", "d_ff", "num_heads", "d_kv", "layer_norm_epsilon" },
  embeddings = { "shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight" },
  tensors = tensors,
  other_names = function (name) return { (name:gsub("DenseReluDense%.wi%.", "DenseReluDense.wi_1.")) } end,
  published = function (name, has)
    return has "enc.blk.0.ffn_gate.weight" and name or (name:gsub("wi_1(%.%a+)$", "wi%1"))
  end,
  read = function (c, get, extra)
    c.num_layers, c.num_decoder_layers = get "t5.block_count", get "t5.decoder_block_count" or get "t5.block_count"
    c.d_model, c.d_ff = get "t5.embedding_length", get "t5.feed_forward_length"
    c.num_heads = get "t5.attention.head_count"
    c.d_kv, c.n_positions = get "t5.attention.key_length", get "t5.context_length"
    c.layer_norm_epsilon = get "t5.attention.layer_norm_rms_epsilon" or get "t5.attention.layer_norm_epsilon"
    c.relative_attention_num_buckets = get "t5.attention.relative_buckets_count" or 32
    c.relative_attention_max_distance = 128
    c.decoder_start_token_id, c.is_encoder_decoder = get "t5.decoder_start_token_id" or 0, true
    c.is_gated_act = extra.has "enc.blk.0.ffn_gate.weight"
    c.feed_forward_proj = c.is_gated_act and "gated-gelu" or "relu"
    c.dense_act_fn = c.is_gated_act and "gelu_new" or "relu"
  end,
  write = function (put, c)
    put("context_length", "u32", c.n_positions or 512)
    put("embedding_length", "u32", c.d_model)
    put("feed_forward_length", "u32", c.d_ff)
    put("block_count", "u32", c.num_layers)
    put("decoder_block_count", "u32", c.num_decoder_layers or c.num_layers)
    put("attention.head_count", "u32", c.num_heads)
    put("attention.key_length", "u32", c.d_kv)
    put("attention.value_length", "u32", c.d_kv)
    put("attention.layer_norm_epsilon", "f32", c.layer_norm_epsilon or 1e-6)
    put("attention.layer_norm_rms_epsilon", "f32", c.layer_norm_epsilon or 1e-6)
    put("attention.relative_buckets_count", "u32", c.relative_attention_num_buckets or 32)
    put("decoder_start_token_id", "u32", c.decoder_start_token_id or 0)
  end,
}
