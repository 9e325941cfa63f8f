-- config.lua - values of GGUF files as a Hugging Face config and back, by architecture
-- (gguf-py/gguf/constants.py and the conversion scripts of llama.cpp). Values that a file lacks get the
-- defaults of llama.cpp.
local M = {}

-- ---- rotary embeddings ---------------------------------------------------------------------------

-- Llama 3 scaling divides each frequency by a factor that the file keeps in rope_freqs.weight. With
-- low_freq_factor 1 the others follow: 1/factor = (1 - s)/F + s, where s is linear in the frequency.
local function llama3_of(factors, base, trained)
  local n, largest = #factors, 0
  for _, f in ipairs(factors) do largest = math.max(largest, f) end
  local sx, sy, sxx, sxy, count = 0, 0, 0, 0, 0
  for i, f in ipairs(factors) do
    if f > 1 + 1e-4 and f < largest * (1 - 1e-4) then
      local x = base ^ (-(i - 1) / n) / (2 * math.pi) -- 1 / wavelength
      local s = (1 / f - 1 / largest) / (1 - 1 / largest)
      sx, sy, sxx, sxy, count = sx + x, sy + s, sxx + x * x, sxy + x * s, count + 1
    end
  end
  local scaling = { rope_type = "llama3", type = "llama3", factor = largest, low_freq_factor = 1.0 }
  if count >= 2 then
    local slope = (count * sxy - sx * sy) / (count * sxx - sx * sx)
    local intercept = -(sy - slope * sx) / count -- low / (high - low)
    scaling.high_freq_factor = 1 + 1 / intercept
    scaling.original_max_position_embeddings = slope / intercept
    for _, key in ipairs { "high_freq_factor", "original_max_position_embeddings" } do
      local v, whole = scaling[key], math.floor(scaling[key] + 0.5)
      if math.abs(v - whole) < 2e-3 * whole then scaling[key] = whole end
    end
  else -- too little between the ends to tell the two apart: 4, as all published models have
    scaling.high_freq_factor = 4
    scaling.original_max_position_embeddings = count == 1 and math.floor((3 * sy + 1) / sx + 0.5)
      or math.min(8192, trained)
  end
  scaling.high_freq_factor = scaling.high_freq_factor + 0.0
  return scaling
end

-- Factors as they stand: what has a name in Hugging Face's configs only where the name gives the same numbers.
local function scaling_of(factors, base, trained)
  local named = llama3_of(factors, base, trained)
  local dim = 2 * #factors
  local config = { rope_theta = base, max_position_embeddings = trained, rope_scaling = named }
  local ok, freq = pcall(require("perilune.nn.rope").frequencies, dim, config)
  for i, f in ipairs(factors) do
    local want = base ^ (-2 * (i - 1) / dim) / f
    ok = ok and math.abs(freq[i] - want) <= 2e-7 * want -- 2^-22: rounding of f32
  end
  if ok then return named end
  return { rope_type = "longrope", type = "longrope", short_factor = factors, long_factor = factors, factor = 1.0,
    attention_factor = 1.0, original_max_position_embeddings = trained }
end

local function rope_scaling(get, arch, rope_freqs, base, trained)
  local p = arch .. ".rope.scaling."
  local kind = get(p .. "type")
  if rope_freqs then
    if kind and kind ~= "none" then
      return nil, ("rope scaling %q beside rope_freqs.weight is not supported"):format(kind)
    end
    for _, f in ipairs(rope_freqs) do
      if not (f > 0 and f < math.huge) then return nil, ("rope_freqs.weight has the factor %g"):format(f) end
    end
    return scaling_of(rope_freqs, base, trained)
  end
  if not kind or kind == "none" then return nil end
  local s = { rope_type = kind, type = kind, factor = get(p .. "factor") or get(arch .. ".rope.scale_linear") }
  if kind == "linear" then return s end
  if kind ~= "yarn" then return nil, ("rope scaling %q is not supported"):format(kind) end
  s.original_max_position_embeddings = get(p .. "original_context_length")
  s.attention_factor = get(p .. "yarn_attn_factor")
  s.beta_fast, s.beta_slow = get(p .. "yarn_beta_fast"), get(p .. "yarn_beta_slow")
  if arch == "deepseek2" then
    local m = get(p .. "yarn_log_multiplier") -- 0.1 mscale_all_dim
    if m then s.mscale_all_dim, s.mscale = m * 10, m * 10 end
  end
  return s
end

-- ---- reading -------------------------------------------------------------------------------------

local function decoder(c, get, arch, extra)
  c.num_hidden_layers, c.hidden_size = get(arch .. ".block_count"), get(arch .. ".embedding_length")
  c.intermediate_size = get(arch .. ".feed_forward_length")
  c.num_attention_heads = get(arch .. ".attention.head_count")
  c.num_key_value_heads = get(arch .. ".attention.head_count_kv") or c.num_attention_heads
  c.max_position_embeddings = get(arch .. ".context_length")
  c.rms_norm_eps = get(arch .. ".attention.layer_norm_rms_epsilon")
  c.rope_theta = get(arch .. ".rope.freq_base") or 10000.0
  local err
  c.rope_scaling, err = rope_scaling(get, arch, extra.rope_freqs, c.rope_theta, c.max_position_embeddings)
  if err then return err end
  if type(c.hidden_size) == "number" and type(c.num_attention_heads) == "number" then
    c.head_dim = get(arch .. ".attention.key_length") or c.hidden_size // c.num_attention_heads
  end
  c.sliding_window = get(arch .. ".attention.sliding_window")
  c.hidden_act = "silu"
end

local read = {}

function read.llama(c, get, extra)
  local err = decoder(c, get, "llama", extra)
  if get "llama.expert_count" then return "mixtures of experts of Llama's architecture are not supported" end
  c.attention_bias, c.mlp_bias = extra.has "blk.0.attn_q.bias", extra.has "blk.0.ffn_up.bias"
  if c.sliding_window then c.model_type, c.architectures = "mistral", { "MistralForCausalLM" } end
  return err
end

function read.qwen2(c, get, extra)
  local err = decoder(c, get, "qwen2", extra)
  c.use_sliding_window = c.sliding_window ~= nil
  return err
end

function read.qwen3(c, get, extra)
  local err = decoder(c, get, "qwen3", extra)
  c.use_sliding_window, c.attention_bias = c.sliding_window ~= nil, extra.has "blk.0.attn_q.bias"
  return err
end

function read.gemma2(c, get, extra)
  local err = decoder(c, get, "gemma2", extra)
  c.hidden_activation, c.hidden_act = "gelu_pytorch_tanh", "gelu_pytorch_tanh"
  c.attn_logit_softcapping = get "gemma2.attn_logit_softcapping" or 50.0
  c.final_logit_softcapping = get "gemma2.final_logit_softcapping" or 30.0
  c.sliding_window = c.sliding_window or 4096
  -- not in the file: 27B is the one model whose queries are scaled by another size than head_dim
  c.query_pre_attn_scalar = c.num_hidden_layers == 46 and c.hidden_size // c.num_attention_heads or c.head_dim
  return err
end

function read.gpt2(c, get)
  c.n_layer, c.n_embd, c.n_head = get "gpt2.block_count", get "gpt2.embedding_length", get "gpt2.attention.head_count"
  c.n_positions, c.n_ctx = get "gpt2.context_length", get "gpt2.context_length"
  c.n_inner = get "gpt2.feed_forward_length"
  c.layer_norm_epsilon, c.activation_function = get "gpt2.attention.layer_norm_epsilon", "gelu_new"
end

function read.deepseek2(c, get, extra)
  local err = decoder(c, get, "deepseek2", extra)
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
end

function read.bert(c, get, extra)
  c.num_hidden_layers, c.hidden_size = get "bert.block_count", get "bert.embedding_length"
  c.intermediate_size, c.num_attention_heads = get "bert.feed_forward_length", get "bert.attention.head_count"
  c.max_position_embeddings = extra.rows "position_embd.weight" or get "bert.context_length"
  c.layer_norm_eps, c.hidden_act = get "bert.attention.layer_norm_epsilon", "gelu"
  c.type_vocab_size = extra.rows "token_types.weight" or get "tokenizer.ggml.token_type_count"
end

function read.t5(c, get, extra)
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
end

local classes = {
  llama = { "llama", "LlamaForCausalLM" }, qwen2 = { "qwen2", "Qwen2ForCausalLM" },
  qwen3 = { "qwen3", "Qwen3ForCausalLM" }, gemma2 = { "gemma2", "Gemma2ForCausalLM" },
  gpt2 = { "gpt2", "GPT2LMHeadModel" }, deepseek2 = { "deepseek_v3", "DeepseekV3ForCausalLM" },
  bert = { "bert", "BertModel" }, t5 = { "t5", "T5ForConditionalGeneration" },
}

-- Integers that the models count with, for messages about files that lack them.
local needed = {
  gpt2 = { "n_layer", "n_embd", "n_head", "n_positions", "layer_norm_epsilon" },
  bert = { "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "layer_norm_eps" },
  t5 = { "num_layers", "d_model", "d_ff", "num_heads", "d_kv", "layer_norm_epsilon" },
}
local needed_decoder = { "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads",
  "num_key_value_heads", "max_position_embeddings", "rms_norm_eps" }

-- Values that change what a model computes and that no config here holds, with the value that changes nothing.
local neutral = {
  ["attention.clamp_kqv"] = 0, ["attention.max_alibi_bias"] = 0, ["logit_scale"] = 1, ["residual_scale"] = 1,
  ["embedding_scale"] = 1, ["attention.scale"] = 0, ["use_parallel_residual"] = false, ["rope.scaling.attn_factor"] = 1,
  ["attn_logit_softcapping"] = 0, ["final_logit_softcapping"] = 0, ["attention.temperature_scale"] = 1,
}
local own = { gemma2 = { attn_logit_softcapping = true, final_logit_softcapping = true } }
local rotated = { llama = true, qwen2 = true, qwen3 = true, gemma2 = true }

-- The first value of a file that is not supported, as a message.
local function foreign(arch, get, c)
  local keys = {}
  for key in pairs(neutral) do keys[#keys + 1] = key end
  table.sort(keys)
  for _, key in ipairs(keys) do
    local v = get(arch .. "." .. key)
    if v ~= nil and v ~= neutral[key] and not (own[arch] and own[arch][key]) then
      return ("the value %s.%s = %s is not supported"):format(arch, key, tostring(v))
    end
  end
  local causal = get(arch .. ".attention.causal")
  if causal ~= nil and arch ~= "t5" and causal ~= (arch ~= "bert") then
    return ("the value %s.attention.causal = %s is not supported"):format(arch, tostring(causal))
  end
  local turned = rotated[arch] and get(arch .. ".rope.dimension_count")
  if turned and turned ~= c.head_dim then
    return ("the value %s.rope.dimension_count = %s is not supported: heads have %s channels"):format(arch,
      tostring(turned), tostring(c.head_dim))
  end
end

--- A Hugging Face config.
--- @param arch string  general.architecture
--- @param get fun(key: string): any  a value of the file or nil
--- @param extra table  has(tensor), any(pattern) -> boolean, rows(tensor) -> integer|nil, rope_freqs: number[] or nil
--- @return table|nil config
--- @return string? message
function M.read(arch, get, extra)
  local class = classes[arch]
  local c = { model_type = class[1], architectures = { class[2] } }
  local err = read[arch](c, get, extra)
  for _, key in ipairs(needed[arch] or needed_decoder) do
    if not err and type(c[key]) ~= "number" then
      err = ("the file has no number for %s (architecture %s)"):format(key, arch)
    end
  end
  err = err or foreign(arch, get, c)
  if err then return nil, err end
  c.vocab_size = extra.rows "token_embd.weight" or get(arch .. ".vocab_size")
  c.tie_word_embeddings = not extra.has "output.weight"
  c.bos_token_id, c.eos_token_id = get "tokenizer.ggml.bos_token_id", get "tokenizer.ggml.eos_token_id"
  c.pad_token_id = get "tokenizer.ggml.padding_token_id"
  return c
end

--- generation_config.json from the tokens that begin, end and pad.
function M.generation(get, config)
  local g = { bos_token_id = config.bos_token_id, eos_token_id = config.eos_token_id,
              pad_token_id = config.pad_token_id, decoder_start_token_id = config.decoder_start_token_id }
  local eot = get "tokenizer.ggml.eot_token_id"
  if eot and eot ~= g.eos_token_id then g.eos_token_id = { g.eos_token_id, eot } end
  return g
end

-- ---- writing -------------------------------------------------------------------------------------

local write = {}

local function decoder_values(put, c)
  put("context_length", "u32", c.max_position_embeddings)
  put("embedding_length", "u32", c.hidden_size)
  put("block_count", "u32", c.num_hidden_layers)
  put("feed_forward_length", "u32", c.intermediate_size)
  put("attention.head_count", "u32", c.num_attention_heads)
  put("attention.layer_norm_rms_epsilon", "f32", c.rms_norm_eps or 1e-6)
  local p = c.rope_parameters or c.rope_scaling or {}
  put("rope.freq_base", "f32", p.rope_theta or c.rope_theta or 10000.0)
  local kind = p.rope_type or p.type
  if kind == "linear" or kind == "yarn" then
    put("rope.scaling.type", "text", kind)
    put("rope.scaling.factor", "f32", p.factor)
  end
  if kind == "yarn" then
    put("rope.scaling.original_context_length", "u32", p.original_max_position_embeddings or c.max_position_embeddings)
    put("rope.scaling.yarn_attn_factor", "f32", p.attention_factor)
    put("rope.scaling.yarn_beta_fast", "f32", p.beta_fast)
    put("rope.scaling.yarn_beta_slow", "f32", p.beta_slow)
    if c.model_type == "deepseek_v3" and p.mscale_all_dim then
      put("rope.scaling.yarn_log_multiplier", "f32", 0.1 * p.mscale_all_dim)
    end
  end
  local factors = kind == "llama3" or kind == "longrope" and (p.attention_factor or p.factor) == 1
  if kind and kind ~= "default" and kind ~= "linear" and kind ~= "yarn" and not factors then
    return ("rope type %q has no place in GGUF here"):format(kind)
  end
end

local function plain_decoder(put, c)
  local err = decoder_values(put, c)
  local head_dim = c.head_dim or c.hidden_size // c.num_attention_heads
  put("attention.head_count_kv", "u32", c.num_key_value_heads or c.num_attention_heads)
  put("rope.dimension_count", "u32", head_dim)
  if c.head_dim or c.model_type == "qwen3" or c.model_type == "gemma2" then
    put("attention.key_length", "u32", head_dim)
    put("attention.value_length", "u32", head_dim)
  end
  if c.sliding_window and c.use_sliding_window ~= false then
    put("attention.sliding_window", "u32", c.sliding_window)
  end
  put("vocab_size", "u32", c.vocab_size)
  return err
end

write.llama, write.qwen2, write.qwen3 = plain_decoder, plain_decoder, plain_decoder

function write.gemma2(put, c)
  local err = plain_decoder(put, c)
  put("attn_logit_softcapping", "f32", c.attn_logit_softcapping)
  put("final_logit_softcapping", "f32", c.final_logit_softcapping)
  return err
end

function write.gpt2(put, c)
  put("block_count", "u32", c.n_layer)
  put("context_length", "u32", c.n_positions or c.n_ctx)
  put("embedding_length", "u32", c.n_embd)
  put("feed_forward_length", "u32", c.n_inner or 4 * c.n_embd)
  put("attention.head_count", "u32", c.n_head)
  put("attention.layer_norm_epsilon", "f32", c.layer_norm_epsilon or 1e-5)
end

function write.deepseek2(put, c)
  local err = decoder_values(put, c)
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
end

function write.bert(put, c)
  put("block_count", "u32", c.num_hidden_layers)
  put("context_length", "u32", c.max_position_embeddings)
  put("embedding_length", "u32", c.hidden_size)
  put("feed_forward_length", "u32", c.intermediate_size)
  put("attention.head_count", "u32", c.num_attention_heads)
  put("attention.layer_norm_epsilon", "f32", c.layer_norm_eps or 1e-12)
  put("attention.causal", "bool", false)
end

function write.t5(put, c)
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
end

local by_type = { llama = "llama", mistral = "llama", qwen2 = "qwen2", qwen3 = "qwen3", gemma2 = "gemma2",
  gpt2 = "gpt2", deepseek_v3 = "deepseek2", bert = "bert", t5 = "t5" }

--- Architecture of GGUF for a Hugging Face config.
--- @param config table
--- @return string|nil
--- @return string? message
function M.architecture(config)
  local arch = by_type[config.model_type]
  if arch then return arch end
  return nil, ("model_type %q cannot be written as GGUF"):format(tostring(config.model_type))
end

--- The values of a config.
--- @param arch string
--- @param config table
--- @return table[]|nil values  {key, type, value}, without general.architecture
--- @return string? message
function M.write(arch, config)
  local values = {}
  local err = write[arch](function(key, kind, value)
    if value == nil then return end
    values[#values + 1] = { key = arch .. "." .. key, type = kind, value = value }
  end, config)
  if err then return nil, err end
  return values
end

--- Divisors of the rotary frequencies of Llama 3 scaling and of factors one by one, or nil.
--- @param config table
--- @return number[]|nil  head_dim/2
function M.rope_freqs(config)
  local p = config.rope_parameters or config.rope_scaling or {}
  local kind = p.rope_type or p.type
  if kind ~= "llama3" and kind ~= "longrope" then return nil end
  local plain, scaled = {}, {}
  for k, v in pairs(config) do plain[k], scaled[k] = v, v end
  local dim = config.head_dim or config.hidden_size // config.num_attention_heads
  plain.rope_scaling, plain.rope_parameters = nil, nil
  plain.rope_theta = p.rope_theta or config.rope_theta
  local rope = require "perilune.nn.rope"
  local base, freq, out = rope.frequencies(dim, plain), rope.frequencies(dim, scaled), {}
  for i = 1, #base do out[i] = base[i] / freq[i] end
  return out
end

return M
