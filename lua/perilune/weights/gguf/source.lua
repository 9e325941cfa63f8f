-- source.lua - GGUF files as model sources: a Hugging Face config, tensors under Hugging Face names and
-- in their row order. Quantised rows stay as they are where only whole rows move; what cannot be
-- expressed in blocks (transposed matrices, norms without their 1) comes as f32.
local peri = require "perilune"
local names = require "perilune.weights.gguf.names"
local configs = require "perilune.weights.gguf.config"

local M = {}

local plain = { f64 = true, f32 = true, f16 = true, bf16 = true }

local function as_float(t) return plain[t.dtype] and t or t:to "f32" end

-- Run fn on rows: those of quantised weights as bytes.
local function by_rows(t, fn)
  if plain[t.dtype] then return fn(t) end
  return fn(t:bitcast "u8"):contiguous():bitcast(t.dtype)
end

-- Heads whose channels are neighbours (0, 1), (2, 3), ... -> first halves, then second halves.
local function halves(t, heads)
  return by_rows(t, function(x)
    local rows, rest = x:size(1), x.ndim == 2 and x:size(2) or 1
    return x:reshape { heads, rows // heads // 2, 2, rest }:permute { 1, 3, 2, 4 }:reshape(x.shape)
  end)
end

-- ORDER how: gguf/names.lua. Each makes the Hugging Face tensor of the file's tensors.
local make = {}
function make.plain(t) return t end
function make.q(t, e) return halves(t, e.config.num_attention_heads) end
function make.k(t, e) return halves(t, e.config.num_key_value_heads) end
function make.transposed(t) return t.ndim == 2 and as_float(t):transpose():contiguous() or t end
function make.plus_one(t) return as_float(t):sub(1) end

function make.experts(t, e)
  return by_rows(t, function(x) return x:narrow(1, e.expert + 1, 1):reshape { x:size(2), x:size(3) } end)
end

-- k_b (H, rank, nope), v_b (H, v, rank) -> (H (nope + v), rank)
function make.kv_b(k, e, v)
  k, v = as_float(k):transpose(2, 3), as_float(v):to(as_float(k).dtype)
  return peri.cat({ k, v }, 2):reshape { e.config.num_attention_heads * (k:size(2) + v:size(2)), k:size(3) }
end

-- Hugging Face name -> { file's name(s), how, expert }
local function plan(arch, tensors)
  local entries, list, by_name = {}, {}, {}
  for _, t in ipairs(tensors) do by_name[t.name] = t end
  local gated = by_name["enc.blk.0.ffn_gate.weight"] ~= nil
  local function add(hf, entry)
    list[#list + 1] = hf
    entries[hf] = entry
  end
  for _, t in ipairs(tensors) do
    local hf, how = names.to_hf(arch, t.name, gated)
    if how == "experts" then
      for e = 0, t.shape[1] - 1 do
        add(hf:gsub("%*", tostring(e)), { t.name, how = how, expert = e, of = t })
      end
    elseif how == "k_b" then
      add(hf, { t.name, (t.name:gsub("attn_k_b", "attn_v_b")), how = "kv_b" })
    elseif hf and how ~= "v_b" then
      add(hf, { t.name, how = how or "plain", of = t })
    elseif not hf and how ~= "ignored" then
      return nil, ("tensor %q is not known in architecture %s"):format(t.name, arch)
    end
  end
  table.sort(list)
  return entries, list
end

-- Shapes that the transformations rely on.
local function fits(source, entry, t)
  local how, c = entry.how, source.config
  local heads = how == "q" and c.num_attention_heads or how == "k" and c.num_key_value_heads
  if heads and (t.ndim > 2 or heads < 1 or t:size(1) % (2 * heads) ~= 0) then
    return ("%d rows are no %d heads of pairs"):format(t:size(1), heads)
  end
  if how == "experts" and t.ndim ~= 3 then return "experts need 3 dims" end
end

local Source = {}
Source.__index = Source

--- A tensor under its Hugging Face name.
--- @param name string
--- @return perilune.Tensor|nil
--- @return string? message
function Source:get(name)
  local entry = self._entries[name]
  if not entry then return nil, ("%s: there is no tensor %q"):format(self.path, name) end
  local scope <close> = peri.scope()
  local parts = {}
  for i, file_name in ipairs(entry) do
    local t, message = self.file:tensor(file_name)
    if not t then return nil, message end
    parts[i] = t
  end
  local wrong = fits(self, entry, parts[1])
  if entry.how == "kv_b" then
    local k, v, c = parts[1], parts[2], self.config
    if k.ndim ~= 3 or v.ndim ~= 3 or k:size(1) ~= c.num_attention_heads or k:size(1) ~= v:size(1)
      or k:size(2) ~= v:size(3) then wrong = "attn_k_b and attn_v_b do not fit together" end
  end
  if wrong then return nil, ("%s: tensor %q: %s"):format(self.path, entry[1], wrong) end
  return scope:keep(make[entry.how](parts[1], { config = self.config, expert = entry.expert }, parts[2]))
end

--- dtype and shape of a tensor in the file, before any transformation; the name of the type where
--- there is no dtype for it.
--- @param name string
--- @return table  {name, type, dtype, shape, bytes}
function Source:info(name) return self._entries[name].of or self._by_name[self._entries[name][1]] end

local function read_config(source, file, by_name)
  local arch = file:get "general.architecture"
  if type(arch) ~= "string" then return nil, "general.architecture is missing" end
  if not names.known(arch) then
    return nil, ("architecture %q is not known; known are %s"):format(arch,
      table.concat(names.architectures(), ", "))
  end
  source.architecture = arch
  local shards = file:get "split.count"
  if math.type(shards) == "integer" and shards > 1 then
    return nil, ("is part of a model in %d files, which is not supported"):format(shards)
  end
  local extra = { rope_freqs = nil }
  function extra.has(name) return by_name[name] ~= nil end
  function extra.any(pattern)
    for name in pairs(by_name) do if name:find(pattern) then return true end end
    return false
  end
  function extra.rows(name) return by_name[name] and by_name[name].shape[1] end
  if by_name["rope_freqs.weight"] then
    local t, message = file:tensor "rope_freqs.weight"
    if not t then return nil, message end
    extra.rope_freqs = t:to("f32"):reshape({ -1 }):tolist()
  end
  local function get(key)
    local value, kind, count = file:get(key)
    if count then return nil end
    if kind == "f32" then return tonumber(("%.7g"):format(value)) end -- 1e-05 was meant, not 9.99999975e-06
    return value
  end
  local heads = file:get(arch .. ".attention.head_count_kv")
  if type(heads) == "table" then return nil, "layers with different numbers of heads are not supported" end
  local config, message = configs.read(arch, get, extra)
  if not config then return nil, message end
  return config, configs.generation(get, config)
end

--- Open a GGUF file as a model source.
--- @param path string
--- @param options table?  map (true): tensors share the file's pages
--- @return table|nil source  format, path, config, generation_config, names, get, file, architecture,
--- tokenizer_path
--- @return string? message
function M.open(path, options)
  local map = not options or options.map ~= false
  local file, message = peri.gguf.open(path, { map = map })
  if not file then return nil, message end
  local tensors, by_name = file:tensors(), {}
  for _, t in ipairs(tensors) do by_name[t.name] = t end
  local source = setmetatable({ format = "gguf", path = path, file = file, _by_name = by_name }, Source)
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local config, generation = read_config(source, file, by_name)
  if not config then return nil, path .. ": " .. generation end
  local entries, list = plan(source.architecture, tensors)
  if not entries then return nil, path .. ": " .. list end
  source.config, source.generation_config = config, generation
  source._entries, source.names = entries, list
  if file:get "tokenizer.ggml.model" then source.tokenizer_path = path end
  return source
end

return M
