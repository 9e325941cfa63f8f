-- decoder.lua - what the GGUF files of Llama's kin share: names of tensors, values of the config.
local rope = require "perilune.weights.gguf.rope"

local M = {}

M.layers = "num_hidden_layers"
M.needs = { "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
  "max_position_embeddings", "rms_norm_eps" }
M.embeddings = { "model.embed_tokens.weight", "lm_head.weight" }

M.tensors = {
  { "token_embd", "model.embed_tokens" }, { "output_norm", "model.norm" }, { "output", "lm_head" },
  { "blk.%d.attn_norm", "model.layers.%d.input_layernorm" },
  { "blk.%d.attn_q", "model.layers.%d.self_attn.q_proj" }, { "blk.%d.attn_k", "model.layers.%d.self_attn.k_proj" },
  { "blk.%d.attn_v", "model.layers.%d.self_attn.v_proj" },
  { "blk.%d.attn_output", "model.layers.%d.self_attn.o_proj" },
  { "blk.%d.ffn_norm", "model.layers.%d.post_attention_layernorm" },
  { "blk.%d.ffn_gate", "model.layers.%d.mlp.gate_proj" }, { "blk.%d.ffn_up", "model.layers.%d.mlp.up_proj" },
  { "blk.%d.ffn_down", "model.layers.%d.mlp.down_proj" },
}

--- These names with some entries replaced (by their GGUF name) or added.
--- @param changes table[]
--- @return table[]
function M.with(changes)
  local out, at = {}, {}
  for i, entry in ipairs(M.tensors) do out[i], at[entry[1]] = entry, i end
  for _, entry in ipairs(changes) do out[at[entry[1]] or #out + 1] = entry end
  return out
end

--- Put into a config what the file says of any decoder.
--- @return string? message
function M.read(c, get, extra, arch)
  c.num_hidden_layers, c.hidden_size = get(arch .. ".block_count"), get(arch .. ".embedding_length")
  c.intermediate_size = get(arch .. ".feed_forward_length")
  c.num_attention_heads = get(arch .. ".attention.head_count")
  c.num_key_value_heads = get(arch .. ".attention.head_count_kv") or c.num_attention_heads
  c.max_position_embeddings = get(arch .. ".context_length")
  c.rms_norm_eps = get(arch .. ".attention.layer_norm_rms_epsilon")
  c.rope_theta = get(arch .. ".rope.freq_base") or 10000.0
  local err
  c.rope_scaling, err = rope.read(get, arch, extra.rope_freqs, c.rope_theta, c.max_position_embeddings)
  if err then return err end
  if type(c.hidden_size) == "number" and type(c.num_attention_heads) == "number" then
    c.head_dim = get(arch .. ".attention.key_length") or c.hidden_size // c.num_attention_heads
  end
  c.sliding_window = get(arch .. ".attention.sliding_window")
  c.hidden_act = "silu"
end

--- Values that every decoder has.
--- @return string? message
function M.write_common(put, c)
  put("context_length", "u32", c.max_position_embeddings)
  put("embedding_length", "u32", c.hidden_size)
  put("block_count", "u32", c.num_hidden_layers)
  put("feed_forward_length", "u32", c.intermediate_size)
  put("attention.head_count", "u32", c.num_attention_heads)
  put("attention.layer_norm_rms_epsilon", "f32", c.rms_norm_eps or 1e-6)
  return rope.write(put, c)
end

--- Values of one whose heads are of head_dim channels.
--- @param sized boolean?  the size of a head stands in the file whatever the config says
--- @return string? message
function M.write(put, c, sized)
  local err = M.write_common(put, c)
  local head_dim = c.head_dim or c.hidden_size // c.num_attention_heads
  put("attention.head_count_kv", "u32", c.num_key_value_heads or c.num_attention_heads)
  put("rope.dimension_count", "u32", head_dim)
  if c.head_dim or sized then
    put("attention.key_length", "u32", head_dim)
    put("attention.value_length", "u32", head_dim)
  end
  if c.sliding_window and c.use_sliding_window ~= false then
    put("attention.sliding_window", "u32", c.sliding_window)
  end
  put("vocab_size", "u32", c.vocab_size)
  return err
end

return M
