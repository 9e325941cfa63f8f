-- gpt2.lua - GPT-2.
return {
  model_types = { "gpt2" }, class = "GPT2LMHeadModel", tied = true, layers = "n_layer",
  needs = { "n_layer", "n_embd", "n_head", "n_positions", "layer_norm_epsilon" },
  embeddings = { "transformer.wte.weight", "wte.weight", "lm_head.weight" },
  tensors = {
    { "token_embd", "transformer.wte" }, { "position_embd", "transformer.wpe" },
    { "output_norm", "transformer.ln_f" }, { "output", "lm_head" },
    { "blk.%d.attn_norm", "transformer.h.%d.ln_1" }, { "blk.%d.ffn_norm", "transformer.h.%d.ln_2" },
    { "blk.%d.attn_qkv", "transformer.h.%d.attn.c_attn", "transposed" },
    { "blk.%d.attn_output", "transformer.h.%d.attn.c_proj", "transposed" },
    { "blk.%d.ffn_up", "transformer.h.%d.mlp.c_fc", "transposed" },
    { "blk.%d.ffn_down", "transformer.h.%d.mlp.c_proj", "transposed" },
  },
  other_names = function (name) return { "transformer." .. name } end, -- of the model without its head
  read = function (c, get)
    c.n_layer, c.n_embd, c.n_head = get "gpt2.block_count", get "gpt2.embedding_length", get "gpt2.attention.head_count"
    c.n_positions, c.n_ctx = get "gpt2.context_length", get "gpt2.context_length"
    c.n_inner = get "gpt2.feed_forward_length"
    c.layer_norm_epsilon, c.activation_function = get "gpt2.attention.layer_norm_epsilon", "gelu_new"
  end,
  write = function (put, c)
    put("block_count", "u32", c.n_layer)
    put("context_length", "u32", c.n_positions or c.n_ctx)
    put("embedding_length", "u32", c.n_embd)
    put("feed_forward_length", "u32", c.n_inner or 4 * c.n_embd)
    put("attention.head_count", "u32", c.n_head)
    put("attention.layer_norm_epsilon", "f32", c.layer_norm_epsilon or 1e-5)
  end,
}
