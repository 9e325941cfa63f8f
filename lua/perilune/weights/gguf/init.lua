-- gguf - GGUF files as they are: values under the file's keys, tensors under the file's names.
-- perilune.weights.gguf.source makes models of them.
local core = require "perilune.core"
local options = require "perilune.options"

local M = {}

--- @class perilune.gguf.File
--- @field get fun(self, key: string): any, string?, integer?  value, type, length of an array
--- @field keys fun(self): table[]  {key, type, count}
--- @field tensors fun(self): table[]  {name, type, dtype, shape, offset, bytes}
--- @field tensor fun(self, name: string): perilune.Tensor|nil, string?
--- @field version fun(self): integer, integer  version, alignment
--- @field close fun(self)

local open_rules = {
  map = options.boolean(false, "tensors share the file's pages: only for files that nobody truncates"),
}

--- Open a file and check its header.
--- @param path string
--- @param opts table?
--- @return perilune.gguf.File|nil
--- @return string? message
function M.open(path, opts) return core._gguf.open(path, options.fill("gguf.open", opts, open_rules)) end
options.declare(M.open, { "path" }, open_rules)

--- Begin a file whose tensors are then written one at a time, in the order of the list:
--- writer:write(tensor) for each, writer:commit().
--- @param path string
--- @param values table[]  {key, type, value}; a table as value makes an array
--- @param tensors table[]  {name, dtype, shape}
--- @return table|nil writer
--- @return string? message
function M.create(path, values, tensors) return core._gguf.create(path, values, tensors) end

local function type_of(v, key)
  if type(v) == "string" then return "text" end
  if type(v) == "boolean" then return "bool" end
  if math.type(v) == "float" then return "f32" end
  if math.type(v) == "integer" then
    return v >= 0 and v < 1 << 32 and "u32" or v >= -(1 << 31) and v < 0 and "i32" or "i64"
  end
  error(("gguf.save: value %q is a %s"):format(key, type(v)), 3)
end

-- One type for all elements.
local function type_of_list(list, key)
  local seen = {}
  for _, v in ipairs(list) do seen[type_of(v, key)] = true end
  if not next(seen) then return "u32" end
  if seen.f32 then return "f32" end
  if seen.i64 or (seen.u32 and seen.i32) then return seen.i64 and "i64" or "i32" end
  return (next(seen))
end

--- Values {key, type, value} of a table of values by key, general.architecture first, then by name.
--- Strings are texts, integers u32 (i32, i64 where they do not fit), floats f32, tables arrays.
--- @param metadata table<string, any>
--- @return table[]
function M.values(metadata)
  local keys, out = {}, {}
  for key in pairs(metadata) do keys[#keys + 1] = key end
  local function rank(k) return k == "general.architecture" and 0 or k:find "^general%." and 1 or 2 end
  table.sort(keys, function(a, b)
    if rank(a) ~= rank(b) then return rank(a) < rank(b) end
    return a < b
  end)
  for i, key in ipairs(keys) do
    local v = metadata[key]
    out[i] = { key = key, value = v, type = type(v) == "table" and type_of_list(v, key) or type_of(v, key) }
  end
  return out
end

--- Write a file in one step; the old one stays when it fails.
--- @param path string
--- @param metadata table  values by key, or a list of {key, type, value}
--- @param tensors table<string, perilune.Tensor>  written in the order of their names
--- @return boolean|nil ok
--- @return string? message
function M.save(path, metadata, tensors)
  local names, list = {}, {}
  for name in pairs(tensors) do names[#names + 1] = name end
  table.sort(names)
  for i, name in ipairs(names) do
    list[i] = { name = name, dtype = tensors[name].dtype, shape = tensors[name].shape }
  end
  local values = metadata[1] and metadata or M.values(metadata)
  local writer <close>, message = core._gguf.create(path, values, list)
  if not writer then return nil, message end
  for _, name in ipairs(names) do
    local ok, why = writer:write(tensors[name])
    if not ok then return nil, why end
  end
  return writer:commit()
end

return require "perilune.names"(M, "perilune.gguf")
