-- qwen3.lua - Qwen 3: norms of queries and keys.
local decoder = require "perilune.weights.gguf.arch.decoder"

return {
  model_types = { "qwen3" }, class = "Qwen3ForCausalLM", turned = true,
  tensors = decoder.with {
    { "blk.%d.attn_q_norm", "model.layers.%d.self_attn.q_norm" },
    { "blk.%d.attn_k_norm", "model.layers.%d.self_attn.k_norm" },
  },
  read = function (c, get, extra)
    local err = decoder.read(c, get, extra, "qwen3")
    c.use_sliding_window, c.attention_bias = c.sliding_window ~= nil, extra.has "blk.0.attn_q.bias"
    return err
  end,
  write = function (put, c) return decoder.write(put, c, true) end,
}
