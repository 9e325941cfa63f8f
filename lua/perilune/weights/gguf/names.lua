-- names.lua - how the tensors of GGUF files are called in Hugging Face checkpoints (gguf-py/gguf/tensor_mapping.py and
-- the conversion scripts of llama.cpp), by the tables of arch/. Only names: no file is touched here.
local M = {}

-- Tensors that a config or nothing is made of.
local ignored = { ["rope_freqs.weight"] = true, ["blk.%d.attn_rot_embd.weight"] = true }

-- Pattern -> entry, in one direction.
local indexed = {}
local function index(arch, column)
  local key = arch.name .. column
  if not indexed[key] then
    local map = {}
    for _, entry in ipairs(arch.tensors) do map[entry[column]] = map[entry[column]] or entry end
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

--- The Hugging Face name of a tensor; with how "experts" it has a * where the expert's number goes.
--- @param arch table  of perilune.weights.gguf.arch
--- @param name string
--- @param has fun(name: string): boolean  whether the file has a tensor
--- @return string|nil hf  nil: it is ignored (how is "ignored") or not known
--- @return string? how
function M.to_hf(arch, name, has)
  local entry, suffix, numbers, pattern = find(index(arch, 1), name)
  if not entry then return nil, ignored[pattern] and "ignored" or nil end
  if entry[3] == "experts" then numbers[2] = "*" end
  local hf = fill(entry[2], numbers) .. suffix
  if arch.published then hf = arch.published(hf, has) end
  return hf, entry[3]
end

--- The GGUF name of a Hugging Face tensor.
--- @param arch table  of perilune.weights.gguf.arch
--- @param name string
--- @return string|nil gguf
--- @return string? how
--- @return integer[]? numbers  layer, expert
function M.to_gguf(arch, name)
  local map = index(arch, 2)
  local entry, suffix, numbers = find(map, name)
  for _, other in ipairs(not entry and arch.other_names and arch.other_names(name) or {}) do
    if not entry then entry, suffix, numbers = find(map, other) end
  end
  if not entry then return nil end
  return fill(entry[1], numbers) .. suffix, entry[3], numbers
end

return M
