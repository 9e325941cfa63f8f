-- rope.lua - frequencies of rotary position embeddings from a Hugging Face config: default, linear,
-- llama3 and YaRN scaling, and factors one by one. Pure numbers; the rotation itself is the op `rope`.
local M = {}

-- theta_i = base^(-2i/dim), i = 0 .. dim/2-1 (Su et al., RoFormer, 2104.09864, eq. 15).
local function plain(dim, base)
  local f = {}
  for i = 0, dim // 2 - 1 do f[i + 1] = base ^ (-2 * i / dim) end
  return f
end

local scale = {}

function scale.default(f) return f, 1 end

-- Position interpolation (Chen et al., 2306.15595): positions divided by factor.
function scale.linear(f, p)
  for i = 1, #f do f[i] = f[i] / p.factor end
  return f, 1
end

-- Llama 3.1: long wavelengths are interpolated, short ones kept, those between blended.
function scale.llama3(f, p)
  local old = p.original_max_position_embeddings
  local low, high = p.low_freq_factor, p.high_freq_factor
  for i = 1, #f do
    local wavelength = 2 * math.pi / f[i]
    if wavelength > old / low then
      f[i] = f[i] / p.factor
    elseif wavelength >= old / high then
      local smooth = (old / wavelength - low) / (high - low)
      f[i] = (1 - smooth) * f[i] / p.factor + smooth * f[i]
    end
  end
  return f, 1
end

-- YaRN (Peng et al., 2309.00071, section 3.2): a ramp between interpolated and plain frequencies over
-- the dims whose wavelength makes beta_slow .. beta_fast turns in the original context.
function scale.yarn(f, p, dim, base)
  local old = p.original_max_position_embeddings
  local function dim_of(turns)
    return dim * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(base))
  end
  local low, high = dim_of(p.beta_fast or 32), dim_of(p.beta_slow or 1)
  if p.truncate ~= false then low, high = math.floor(low), math.ceil(high) end
  low, high = math.max(low, 0), math.min(high, dim - 1)
  local span = high == low and 0.001 or high - low
  for i = 1, #f do
    local ramp = math.min(math.max((i - 1 - low) / span, 0), 1)
    f[i] = f[i] / p.factor * ramp + f[i] * (1 - ramp)
  end
  local factor = p.attention_factor
  if not factor and p.mscale and p.mscale_all_dim then -- DeepSeek
    factor = M.yarn_mscale(p.factor, p.mscale) / M.yarn_mscale(p.factor, p.mscale_all_dim)
  end
  return f, factor or M.yarn_mscale(p.factor, 1)
end

-- LongRoPE (Ding et al., 2402.13753): a factor for each frequency. The published form has one list for short texts
-- and one for long ones; models where they differ would change frequencies while a text grows.
function scale.longrope(f, p, _, _, most)
  local short, long = p.short_factor, p.long_factor
  if type(short) ~= "table" or type(long) ~= "table" or #short ~= #f or #long ~= #f then
    error(("rope type \"longrope\" needs short_factor and long_factor of %d numbers"):format(#f), 0)
  end
  for i = 1, #f do
    if short[i] ~= long[i] then
      error("rope type \"longrope\" with other factors for long texts than for short ones is not supported", 0)
    end
    f[i] = f[i] / short[i]
  end
  local old = p.original_max_position_embeddings
  local factor = p.factor or most and most / old or 1
  return f, p.attention_factor or (factor <= 1 and 1 or math.sqrt(1 + math.log(factor) / math.log(old)))
end

--- Attention temperature of YaRN: 0.1 m ln(factor) + 1 (2309.00071, eq. 22).
function M.yarn_mscale(factor, m)
  return factor <= 1 and 1 or 0.1 * m * math.log(factor) + 1
end

--- Inverse frequencies for `dim` rotated channels.
--- @param dim integer  rotated channels of a head, even
--- @param config table  a Hugging Face config; reads rope_parameters or rope_theta and rope_scaling
--- @return number[] inv_freq  dim/2 values
--- @return number scale  factor on cos and sin
function M.frequencies(dim, config)
  if dim > 65536 then error(("%d rotary channels, expected at most 65536"):format(dim), 0) end
  local p = config.rope_parameters or config.rope_scaling or {}
  if type(p) ~= "table" then
    error(("the setting rope_scaling = %s is not supported, expected a table"):format(tostring(p)), 0)
  end
  local base = p.rope_theta or config.rope_theta or 10000
  local kind = p.rope_type or p.type or "default"
  local f = scale[kind]
  if not f then
    error(("rope type %q of rope_scaling is not supported, expected default, linear, llama3, yarn or longrope")
      :format(tostring(kind)), 0)
  end
  if kind ~= "default" and kind ~= "longrope" and not p.factor then
    error(("rope type %q lacks its factor"):format(kind), 0)
  end
  if not p.original_max_position_embeddings then
    p = setmetatable({ original_max_position_embeddings = config.max_position_embeddings }, { __index = p })
  end
  return f(plain(dim, base), p, dim, base, config.max_position_embeddings)
end

return M
