-- names.lua - how the tensors of GGUF files are called in Hugging Face checkpoints, by architecture
-- (gguf-py/gguf/tensor_mapping.py and the conversion scripts of llama.cpp), and what is done to
-- them on the way. Only names: no file is touched here.
local M = {}

-- { GGUF, Hugging Face, how? }: %d is the layer, * the expert. Names that end in neither .weight nor
-- .bias here stand for both. ORDER how: reader in models/gguf.lua, writer in gguf/export.lua
--   q, k: rows of heads are rotated in pairs of neighbours in GGUF and of halves in Hugging Face
--   transposed: Conv1D of GPT-2 keeps (in, out)   plus_one: norms of Gemma without their 1
--   experts: (E, N, K) is E matrices   k_b, v_b: parts of kv_b_proj by head, k_b transposed
local decoder = {
  { "token_embd", "model.embed_tokens" }, { "output_norm", "model.norm" }, { "output", "lm_head" },
  { "blk.%d.attn_norm", "model.layers.%d.input_layernorm" },
  { "blk.%d.attn_q", "model.layers.%d.self_attn.q_proj" }, { "blk.%d.attn_k", "model.layers.%d.self_attn.k_proj" },
  { "blk.%d.attn_v", "model.layers.%d.self_attn.v_proj" },
  { "blk.%d.attn_output", "model.layers.%d.self_attn.o_proj" },
  { "blk.%d.ffn_norm", "model.layers.%d.post_attention_layernorm" },
  { "blk.%d.ffn_gate", "model.layers.%d.mlp.gate_proj" }, { "blk.%d.ffn_up", "model.layers.%d.mlp.up_proj" },
  { "blk.%d.ffn_down", "model.layers.%d.mlp.down_proj" },
}

-- A list with some entries replaced (by their GGUF name) or added.
local function with(list, changes)
  local out, at = {}, {}
  for i, entry in ipairs(list) do out[i], at[entry[1]] = entry, i end
  for _, entry in ipairs(changes) do out[at[entry[1]] or #out + 1] = entry end
  return out
end

local gemma2 = with(decoder, {
  { "blk.%d.post_attention_norm", "model.layers.%d.post_attention_layernorm" },
  { "blk.%d.ffn_norm", "model.layers.%d.pre_feedforward_layernorm" },
  { "blk.%d.post_ffw_norm", "model.layers.%d.post_feedforward_layernorm" },
})
for i, entry in ipairs(gemma2) do
  if entry[1]:find "norm" then gemma2[i] = { entry[1], entry[2], "plus_one" } end
end

local deepseek2 = with(decoder, {
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
})
for _, part in ipairs { "gate", "up", "down" } do
  deepseek2[#deepseek2 + 1] = { ("blk.%%d.ffn_%s_exps"):format(part),
    ("model.layers.%%d.mlp.experts.*.%s_proj"):format(part), "experts" }
  deepseek2[#deepseek2 + 1] = { ("blk.%%d.ffn_%s_shexp"):format(part),
    ("model.layers.%%d.mlp.shared_experts.%s_proj"):format(part) }
end

local t5 = { { "token_embd", "shared" }, { "output", "lm_head" }, { "enc.output_norm", "encoder.final_layer_norm" },
  { "dec.output_norm", "decoder.final_layer_norm" } }
for _, side in ipairs { { "enc", "encoder", 1 }, { "dec", "decoder", 2 } } do
  local function add(gguf, layer, hf)
    t5[#t5 + 1] = { side[1] .. ".blk.%d." .. gguf, ("%s.block.%%d.layer.%d.%s"):format(side[2], layer, hf) }
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

local tables = {
  llama = with(decoder, {
    { "blk.%d.attn_q", "model.layers.%d.self_attn.q_proj", "q" },
    { "blk.%d.attn_k", "model.layers.%d.self_attn.k_proj", "k" },
  }),
  qwen2 = decoder,
  qwen3 = with(decoder, {
    { "blk.%d.attn_q_norm", "model.layers.%d.self_attn.q_norm" },
    { "blk.%d.attn_k_norm", "model.layers.%d.self_attn.k_norm" },
  }),
  gemma2 = gemma2,
  gpt2 = {
    { "token_embd", "transformer.wte" }, { "position_embd", "transformer.wpe" },
    { "output_norm", "transformer.ln_f" }, { "output", "lm_head" },
    { "blk.%d.attn_norm", "transformer.h.%d.ln_1" }, { "blk.%d.ffn_norm", "transformer.h.%d.ln_2" },
    { "blk.%d.attn_qkv", "transformer.h.%d.attn.c_attn", "transposed" },
    { "blk.%d.attn_output", "transformer.h.%d.attn.c_proj", "transposed" },
    { "blk.%d.ffn_up", "transformer.h.%d.mlp.c_fc", "transposed" },
    { "blk.%d.ffn_down", "transformer.h.%d.mlp.c_proj", "transposed" },
  },
  deepseek2 = deepseek2,
  bert = {
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
  t5 = t5,
}

-- Names under which a checkpoint may hold the embedding when it is tied to others, in the order of choice.
local twins = {
  t5 = { "shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight" },
  bert = { "bert.embeddings.word_embeddings.weight", "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.weight" },
  gpt2 = { "transformer.wte.weight", "wte.weight", "lm_head.weight" },
}
local twins_of_decoders = { "model.embed_tokens.weight", "lm_head.weight" }

--- Hugging Face names of the embedding and of what may be there in its place.
--- @param arch string
--- @return string[]
function M.embeddings(arch) return twins[arch] or twins_of_decoders end

-- Tensors that a config or nothing is made of.
local ignored = { ["rope_freqs.weight"] = true, ["blk.%d.attn_rot_embd.weight"] = true }

-- Pattern -> entry, in one direction.
local indexed = {}
local function index(arch, column)
  local key = arch .. column
  if not indexed[key] then
    local map = {}
    for _, entry in ipairs(tables[arch]) do map[entry[column]] = map[entry[column]] or entry end
    indexed[key] = map
  end
  return indexed[key]
end

-- The entry that a name fits, its suffix and its numbers. T5 has a number of its own behind the layer's.
local function find(map, name)
  local numbers = {}
  for n in name:gmatch "%.(%d+)%f[.]" do numbers[#numbers + 1] = math.tointeger(n) end
  local one = name:gsub("%.%d+%.", ".%%d.", 1)
  local all = one:gsub("%.%d+%.", ".*.")
  for _, pattern in ipairs { one, all } do
    if map[pattern] then return map[pattern], "", numbers end
    local stem, suffix = pattern:match "^(.*)(%.weight)$"
    if not stem then stem, suffix = pattern:match "^(.*)(%.bias)$" end
    if stem and map[stem] then return map[stem], suffix, numbers end
  end
  return nil, nil, numbers, one
end

-- Put numbers into a pattern.
local function fill(pattern, numbers)
  local name = pattern:gsub("%%d", tostring(numbers[1]))
  return (name:gsub("%*", tostring(numbers[2])))
end

--- Whether an architecture of GGUF is known.
function M.known(arch) return tables[arch] ~= nil end

--- Names of the architectures, sorted.
function M.architectures()
  local list = {}
  for name in pairs(tables) do list[#list + 1] = name end
  table.sort(list)
  return list
end

--- The Hugging Face name of a tensor; with how "experts" it has a * where the expert's number goes.
--- @param arch string
--- @param name string
--- @param gated boolean  T5: there is a gate beside the first matrix of the feed-forward layer
--- @return string|nil hf  nil: it is ignored (how is "ignored") or not known
--- @return string? how
function M.to_hf(arch, name, gated)
  local entry, suffix, numbers, pattern = find(index(arch, 1), name)
  if not entry then return nil, ignored[pattern] and "ignored" or nil end
  local hf = entry[2]
  if arch == "t5" and not gated then hf = hf:gsub("wi_1$", "wi") end
  if entry[3] == "experts" then numbers[2] = "*" end
  return fill(hf, numbers) .. suffix, entry[3]
end

--- The GGUF name of a Hugging Face tensor.
--- @param arch string
--- @param name string
--- @return string|nil gguf
--- @return string? how
--- @return integer[]? numbers  layer, expert
function M.to_gguf(arch, name)
  if arch == "t5" then name = name:gsub("DenseReluDense%.wi%.", "DenseReluDense.wi_1.") end
  local map = index(arch, 2)
  local entry, suffix, numbers = find(map, name)
  if not entry and arch == "gpt2" then entry, suffix, numbers = find(map, "transformer." .. name) end
  if not entry and arch == "bert" then entry, suffix, numbers = find(map, (name:gsub("^bert%.", ""))) end
  if not entry and arch == "bert" then
    local old = name:gsub("^bert%.", ""):gsub("%.gamma$", ".weight"):gsub("%.beta$", ".bias")
    entry, suffix, numbers = find(map, old)
  end
  if not entry then return nil end
  return fill(entry[1], numbers) .. suffix, entry[3], numbers
end

return M
