-- bert.lua - BERT without a head.
return {
  model_types = { "bert" }, class = "BertModel", tied = true, causal = false, layers = "num_hidden_layers",
  needs = { "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "layer_norm_eps" },
  embeddings = { "bert.embeddings.word_embeddings.weight", "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.weight" },
  tensors = {
    { "token_embd", "embeddings.word_embeddings" }, { "token_types", "embeddings.token_type_embeddings" },
    { "position_embd", "embeddings.position_embeddings" }, { "token_embd_norm", "embeddings.LayerNorm" },
    { "blk.%d.attn_q", "encoder.layer.%d.attention.self.query" },
    { "blk.%d.attn_k", "encoder.layer.%d.attention.self.key" },
    { "blk.%d.attn_v", "encoder.layer.%d.attention.self.value" },
    { "blk.%d.attn_output", "encoder.layer.%d.attention.output.dense" },
    { "blk.%d.attn_output_norm", "encoder.layer.%d.attention.output.LayerNorm" },
    { "blk.%d.ffn_up", "encoder.layer.%d.intermediate.dense" },
    { "blk.%d.ffn_down", "encoder.layer.%d.output.dense" },
    { "blk.%d.layer_output_norm", "encoder.layer.%d.output.LayerNorm" },
  },
  other_names = function (name) -- with a head, and as TensorFlow's checkpoints call norms
    local bare = name:gsub("^bert%.", "")
    return { bare, (bare:gsub("%.gamma$", ".weight"):gsub("%.beta$", ".bias")) }
  end,
  read = function (c, get, extra)
    c.num_hidden_layers, c.hidden_size = get "bert.block_count", get "bert.embedding_length"
    c.intermediate_size, c.num_attention_heads = get "bert.feed_forward_length", get "bert.attention.head_count"
    c.max_position_embeddings = extra.rows "position_embd.weight" or get "bert.context_length"
    c.layer_norm_eps, c.hidden_act = get "bert.attention.layer_norm_epsilon", "gelu"
    c.type_vocab_size = extra.rows "token_types.weight" or get "tokenizer.ggml.token_type_count"
  end,
  write = function (put, c)
    put("block_count", "u32", c.num_hidden_layers)
    put("context_length", "u32", c.max_position_embeddings)
    put("embedding_length", "u32", c.hidden_size)
    put("feed_forward_length", "u32", c.intermediate_size)
    put("attention.head_count", "u32", c.num_attention_heads)
    put("attention.layer_norm_epsilon", "f32", c.layer_norm_eps or 1e-12)
    put("attention.causal", "bool", false)
  end,
}
