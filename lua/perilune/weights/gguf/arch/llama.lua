-- llama.lua - Llama and Mistral, which GGUF calls llama, too.
local decoder = require "perilune.weights.gguf.arch.decoder"

return {
  model_types = { "llama", "mistral" }, class = "LlamaForCausalLM", turned = true,
  tensors = decoder.with {
    { "blk.%d.attn_q", "model.layers.%d.self_attn.q_proj", "q" },
    { "blk.%d.attn_k", "model.layers.%d.self_attn.k_proj", "k" },
  },
  read = function (c, get, extra)
    local err = decoder.read(c, get, extra, "llama")
    if get "llama.expert_count" then return "mixtures of experts of Llama's architecture are not supported" end
    c.attention_bias, c.mlp_bias = extra.has "blk.0.attn_q.bias", extra.has "blk.0.ffn_up.bias"
    if c.sliding_window then c.model_type, c.architectures = "mistral", { "MistralForCausalLM" } end
    return err
  end,
  write = function (put, c) return decoder.write(put, c) end,
}
