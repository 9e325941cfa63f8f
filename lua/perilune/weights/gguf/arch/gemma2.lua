-- gemma2.lua - Gemma 2: norms on both sides, soft caps, and weights of norms that GGUF keeps with their 1.
local decoder = require "perilune.weights.gguf.arch.decoder"

local tensors = decoder.with {
  { "blk.%d.post_attention_norm", "model.layers.%d.post_attention_layernorm" },
  { "blk.%d.ffn_norm", "model.layers.%d.pre_feedforward_layernorm" },
  { "blk.%d.post_ffw_norm", "model.layers.%d.post_feedforward_layernorm" },
}
for i, entry in ipairs(tensors) do
  if entry[1]:find "norm" then tensors[i] = { entry[1], entry[2], "plus_one" } end
end

return {
  model_types = { "gemma2" }, class = "Gemma2ForCausalLM", turned = true, tied = true,
  holds = { attn_logit_softcapping = true, final_logit_softcapping = true },
  tensors = tensors,
  read = function (c, get, extra)
    local err = decoder.read(c, get, extra, "gemma2")
    c.hidden_activation, c.hidden_act = "gelu_pytorch_tanh", "gelu_pytorch_tanh"
    c.attn_logit_softcapping = get "gemma2.attn_logit_softcapping" or 50.0
    c.final_logit_softcapping = get "gemma2.final_logit_softcapping" or 30.0
    c.sliding_window = c.sliding_window or 4096
    -- not in the file: 27B is the one model whose queries are scaled by another size than head_dim
    c.query_pre_attn_scalar = c.num_hidden_layers == 46 and c.hidden_size // c.num_attention_heads or c.head_dim
    return err
  end,
  write = function (put, c)
    local err = decoder.write(put, c, true)
    put("attn_logit_softcapping", "f32", c.attn_logit_softcapping)
    put("final_logit_softcapping", "f32", c.final_logit_softcapping)
    return err
  end,
}
