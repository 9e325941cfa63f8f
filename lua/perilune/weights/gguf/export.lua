-- export.lua - a model source as what a GGUF file holds: values and tensors under the file's names,
-- made one at a time, and the rules by which llama.cpp chooses a type for each
-- (src/llama-quant.cpp, llama_tensor_get_type).
local dtypes = require "perilune.dtypes"
local peri = require "perilune"
local names = require "perilune.weights.gguf.names"
local rope = require "perilune.weights.gguf.rope"
local transforms = require "perilune.weights.gguf.transforms"

local M = {}

local floats, blocks = dtypes.is_float, dtypes.quantised

-- llama_ftype. ORDER dtype
local file_types = { f32 = 0, f16 = 1, q4_0 = 2, q4_1 = 3, q8_0 = 7, q5_0 = 8, q5_1 = 9, q4_K = 15, q5_K = 17,
  q6_K = 18, bf16 = 32 }

--- Bytes of n elements of a dtype.
M.bytes = dtypes.bytes

--- general.file_type of a dtype.
function M.file_type(dtype) return file_types[dtype] end

--- A tensor in a dtype.
function M.cast(t, dtype)
  if t.dtype == dtype then return t end
  if not floats[t.dtype] or (blocks[dtype] and t.dtype ~= "f32") then t = t:to "f32" end
  return t:to(dtype)
end

-- ---- types ---------------------------------------------------------------------------------------

-- What the rounding of weights would harm, and what is no matrix.
local function stays_float(name, shape)
  return #shape < 2 or name:find "norm" or name == "position_embd.weight" or name == "token_types.weight"
    or name:find "attn_rel_b" or name:find "ffn_gate_inp" or name:find "exp_probs_b"
end

-- The first and last eighth of the layers, and every third one.
local function more_bits(i, n) return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2 end

-- Where 256 does not divide a row. ORDER dtype
local smaller = { q4_K = "q5_0", q5_K = "q5_1", q6_K = "q8_0" }

--- The dtype that a tensor gets in a file of a type.
--- @param name string  of the file
--- @param shape integer[]
--- @param dtype string  of the file
--- @param model table  layers, tied
--- @return string
--- @return string? wanted  the type that its rows are too short for, or no multiple of its blocks
function M.dtype(name, shape, dtype, model)
  if stays_float(name, shape) then return "f32" end
  if not blocks[dtype] then return dtype end
  local layer, want = math.tointeger(name:match "blk%.(%d+)%."), dtype
  if dtype ~= "q8_0" then
    local output = name == "output.weight" or (model.tied and name == "token_embd.weight")
    local mixed = (dtype == "q4_K" or dtype == "q5_K") and layer and (name:find "attn_v%." or name:find "ffn_down")
    if output or (mixed and more_bits(layer, model.layers)) then want = "q6_K" end
  end
  local columns = shape[#shape]
  if columns % blocks[want] == 0 then return want end
  local other = smaller[want]
  return other and columns % blocks[other] == 0 and other or "f16", want
end

-- ---- tensors -------------------------------------------------------------------------------------

local function fetch(source, name)
  local t, err = source:get(name)
  if not t then error({ message = err }, 0) end
  return t
end

-- k_b and v_b of one layer.
local function add_kv_b(list, source, name, c)
  local layer = name:match "layers%.(%d+)%."
  local H, nope, v = c.num_attention_heads, c.qk_nope_head_dim, c.v_head_dim
  local rank, dtype = c.kv_lora_rank, source:info(name).dtype
  local function by_head() return fetch(source, name):reshape { H, nope + v, rank } end
  list[#list + 1] = { name = ("blk.%s.attn_k_b.weight"):format(layer), shape = { H, rank, nope }, dtype = dtype,
    get = function() return by_head():narrow(2, 1, nope):transpose(2, 3):contiguous() end }
  list[#list + 1] = { name = ("blk.%s.attn_v_b.weight"):format(layer), shape = { H, v, rank }, dtype = dtype,
    get = function() return by_head():narrow(2, nope + 1, v):contiguous() end }
end

-- Experts of one layer and matrix, by name of the file.
local function add_experts(list, source, experts)
  for name, parts in pairs(experts) do
    local info = source:info(parts[0])
    local n = 0
    while parts[n] do n = n + 1 end
    list[#list + 1] = { name = name, shape = { n, info.shape[1], info.shape[2] }, dtype = info.dtype,
      get = function()
        local stacked = {}
        for e = 0, n - 1 do stacked[e + 1] = fetch(source, parts[e]):reshape { 1, info.shape[1], info.shape[2] } end
        return peri.cat(stacked, 1)
      end }
  end
end

local function shape_of(info, how)
  local s = info.shape
  if how == "transposed" and #s == 2 then return { s[2], s[1] } end
  return s
end

-- The tensor that the embedding is, under whatever name of those tied to it.
local function embedding_of(source, arch)
  local there = {}
  for _, name in ipairs(source.names) do there[name] = true end
  for _, name in ipairs(arch.embeddings) do if there[name] then return name end end
end

-- Whether the embedding is the head: where the config does not say, what the architecture does.
local function is_tied(c, arch)
  if c.tie_word_embeddings == nil then return arch.tied end
  return c.tie_word_embeddings
end

--- Tensors {name, shape, dtype (as stored), get} of a source under the file's names, in the order of a
--- model's layers, and the names of those that GGUF has no place for.
--- @param source table
--- @param arch table  of perilune.weights.gguf.arch
--- @return table[] tensors
--- @return string[] dropped
function M.tensors(source, arch)
  local c, list, dropped, experts = source.config, {}, {}, {}
  local embedding, copies = embedding_of(source, arch), {}
  for _, name in ipairs(arch.embeddings) do copies[name] = name ~= embedding end
  local layers = c[arch.layers]
  for _, name in ipairs(source.names) do
    local gguf, how, numbers = names.to_gguf(arch, name)
    if name == embedding then gguf = "token_embd.weight" end
    local tied = is_tied(c, arch) and gguf == "output.weight"
    if not gguf or tied or (arch.drops_more_layers and numbers[1] and numbers[1] >= layers) then
      if not tied and not copies[name] then dropped[#dropped + 1] = name end
    elseif name:find "kv_b_proj%.weight$" then
      add_kv_b(list, source, name, c)
    elseif how == "experts" then
      experts[gguf] = experts[gguf] or {}
      experts[gguf][numbers[2]] = name
    else
      local info = source:info(name)
      list[#list + 1] = { name = gguf, shape = shape_of(info, how), dtype = info.dtype, get = function()
        local t = fetch(source, name)
        if not floats[t.dtype] then t = t:to "f32" end
        return how and transforms[how].write(t, c) or t
      end }
    end
  end
  add_experts(list, source, experts)
  local factors = rope.factors(c)
  if factors then
    list[#list + 1] = { name = "rope_freqs.weight", shape = { #factors }, dtype = "f32",
      get = function() return peri.tensor(factors, "f32") end }
  end
  local function rank(name) return math.tointeger(name:match "blk%.(%d+)%.") or (name:find "^token" and -1 or 1e9) end
  table.sort(list, function(a, b)
    local x, y = rank(a.name), rank(b.name)
    if x ~= y then return x < y end
    return a.name < b.name
  end)
  return list, dropped
end

return M
