-- rope.lua - how GGUF files say that rotary frequencies are scaled, and Hugging Face's rope_scaling of it.
local M = {}

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

--- rope_scaling of a Hugging Face config.
--- @param get fun(key: string): any  a value of the file or nil
--- @param arch string
--- @param rope_freqs number[]?  of the tensor rope_freqs.weight
--- @param base number  rope_theta
--- @param trained integer  positions
--- @return table|nil
--- @return string? message  when the file's is not supported
function M.read(get, arch, rope_freqs, base, trained)
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
  return s
end

--- Put what a config says of its rotary positions.
--- @param put fun(key: string, type: string, value: any)
--- @param c table
--- @return string? message  when GGUF has no place for it
function M.write(put, c)
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
  end
  local factors = kind == "llama3" or kind == "longrope" and (p.attention_factor or p.factor) == 1
  if kind and kind ~= "default" and kind ~= "linear" and kind ~= "yarn" and not factors then
    return ("rope type %q has no place in GGUF here"):format(kind)
  end
end

--- Divisors of the rotary frequencies of Llama 3 scaling and of factors one by one, or nil.
--- @param config table
--- @return number[]|nil  head_dim/2
function M.factors(config)
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
