-- source.lua - GGUF files as model sources: a Hugging Face config, tensors under Hugging Face names and
-- in their row order (transforms.lua).
local options = require "perilune.options"
local peri = require "perilune"
local names = require "perilune.weights.gguf.names"
local architectures = require "perilune.weights.gguf.arch"
local configs = require "perilune.weights.gguf.config"
local transforms = require "perilune.weights.gguf.transforms"

local M = {}

-- Hugging Face name -> { file's name(s), how, expert }
local function plan(arch, tensors)
  local entries, list, by_name = {}, {}, {}
  for _, t in ipairs(tensors) do by_name[t.name] = t end
  local function has(name) return by_name[name] ~= nil end
  local function add(hf, entry)
    list[#list + 1] = hf
    entries[hf] = entry
  end
  for _, t in ipairs(tensors) do
    local hf, how = names.to_hf(arch, t.name, has)
    if how == "experts" then
      for e = 0, t.shape[1] - 1 do
        add(hf:gsub("%*", tostring(e)), { t.name, how = how, expert = e, of = t })
      end
    elseif how == "k_b" then
      add(hf, { t.name, (t.name:gsub("attn_k_b", "attn_v_b")), how = "kv_b" })
    elseif hf and how ~= "v_b" then
      add(hf, { t.name, how = how, of = t })
    elseif not hf and how ~= "ignored" then
      return nil, ("tensor %q is not known in architecture %s"):format(t.name, arch.name)
    end
  end
  table.sort(list)
  return entries, list
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
  local how = transforms[entry.how]
  local wrong = how and how.problem and how.problem(parts[1], self.config, parts[2])
  if wrong then return nil, ("%s: tensor %q: %s"):format(self.path, entry[1], wrong) end
  return scope:keep(how and how.read(parts[1], self.config, entry.expert, parts[2]) or parts[1])
end

--- dtype and shape of a tensor in the file, before any transformation; the name of the type where
--- there is no dtype for it.
--- @param name string
--- @return table  {name, type, dtype, shape, bytes}
function Source:info(name) return self._entries[name].of or self._by_name[self._entries[name][1]] end

local function read_config(source, file, by_name)
  local name = file:get "general.architecture"
  if type(name) ~= "string" then return nil, "general.architecture is missing" end
  local arch, unknown = architectures.find(name)
  if not arch then return nil, unknown end
  source.architecture, source._arch = name, arch
  local shards = file:get "split.count"
  if math.type(shards) == "integer" and shards > 1 then
    return nil, ("is part of a model in %d files, which is not supported"):format(shards)
  end
  local extra = { rope_freqs = nil }
  function extra.has(tensor) return by_name[tensor] ~= nil end
  function extra.any(pattern)
    for tensor in pairs(by_name) do if tensor:find(pattern) then return true end end
    return false
  end
  function extra.rows(tensor) return by_name[tensor] and by_name[tensor].shape[1] end
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
  local heads = file:get(name .. ".attention.head_count_kv")
  if type(heads) == "table" then return nil, "layers with different numbers of heads are not supported" end
  local config, message = configs.read(arch, get, extra)
  if not config then return nil, message end
  return config, configs.generation(get, config)
end

local open_rules = { map = options.boolean(true, "tensors share the file's pages") }

--- Open a GGUF file as a model source.
--- @param path string
--- @param opts table?
--- @return table|nil source  format, path, config, generation_config, names, get, file, architecture,
--- tokenizer_path
--- @return string? message
function M.open(path, opts)
  local o = options.fill("models.gguf.open", opts, open_rules)
  local file, message = peri.gguf.open(path, { map = o.map })
  if not file then return nil, message end
  local tensors, by_name = file:tensors(), {}
  for _, t in ipairs(tensors) do by_name[t.name] = t end
  local source = setmetatable({ format = "gguf", path = path, file = file, _by_name = by_name }, Source)
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local config, generation = read_config(source, file, by_name)
  if not config then return nil, path .. ": " .. generation end
  local entries, list = plan(source._arch, tensors)
  if not entries then return nil, path .. ": " .. list end
  source.config, source.generation_config = config, generation
  source._entries, source.names = entries, list
  if file:get "tokenizer.ggml.model" then source.tokenizer_path = path end
  return source
end
options.declare(M.open, { "path" }, open_rules)

return M
