-- config.lua - values of GGUF files as a Hugging Face config and back (gguf-py/gguf/constants.py and the conversion
-- scripts of llama.cpp). Values that a file lacks get the defaults of llama.cpp. What an architecture has is in arch/.
local M = {}

-- Values that change what a model computes and that no config here holds, with the value that changes nothing.
local neutral = {
  ["attention.clamp_kqv"] = 0, ["attention.max_alibi_bias"] = 0, ["logit_scale"] = 1, ["residual_scale"] = 1,
  ["embedding_scale"] = 1, ["attention.scale"] = 0, ["use_parallel_residual"] = false, ["rope.scaling.attn_factor"] = 1,
  ["attn_logit_softcapping"] = 0, ["final_logit_softcapping"] = 0, ["attention.temperature_scale"] = 1,
}

-- The first value of a file that is not supported, as a message.
local function foreign(arch, get, c)
  local keys = {}
  for key in pairs(neutral) do keys[#keys + 1] = key end
  table.sort(keys)
  for _, key in ipairs(keys) do
    local v = get(arch.name .. "." .. key)
    if v ~= nil and v ~= neutral[key] and not arch.holds[key] then
      return ("the value %s.%s = %s is not supported"):format(arch.name, key, tostring(v))
    end
  end
  local causal = get(arch.name .. ".attention.causal")
  if causal ~= nil and arch.causal ~= "either" and causal ~= arch.causal then
    return ("the value %s.attention.causal = %s is not supported"):format(arch.name, tostring(causal))
  end
  local turned = arch.turned and get(arch.name .. ".rope.dimension_count")
  if turned and turned ~= c.head_dim then
    return ("the value %s.rope.dimension_count = %s is not supported: heads have %s channels"):format(arch.name,
      tostring(turned), tostring(c.head_dim))
  end
end

--- A Hugging Face config.
--- @param arch table  of perilune.weights.gguf.arch
--- @param get fun(key: string): any  a value of the file or nil
--- @param extra table  has(tensor), any(pattern) -> boolean, rows(tensor) -> integer|nil, rope_freqs: number[] or nil
--- @return table|nil config
--- @return string? message
function M.read(arch, get, extra)
  local c = { model_type = arch.model_types[1], architectures = { arch.class } }
  local err = arch.read(c, get, extra)
  for _, key in ipairs(arch.needs) do
    if not err and type(c[key]) ~= "number" then
      err = ("the file has no number for %s (architecture %s)"):format(key, arch.name)
    end
  end
  err = err or foreign(arch, get, c)
  if err then return nil, err end
  c.vocab_size = extra.rows "token_embd.weight" or get(arch.name .. ".vocab_size")
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

--- The values of a config.
--- @param arch table  of perilune.weights.gguf.arch
--- @param config table
--- @return table[]|nil values  {key, type, value}, without general.architecture
--- @return string? message
function M.write(arch, config)
  local values = {}
  local err = arch.write(function(key, kind, value)
    if value == nil then return end
    values[#values + 1] = { key = arch.name .. "." .. key, type = kind, value = value }
  end, config)
  if err then return nil, err end
  return values
end

return M
