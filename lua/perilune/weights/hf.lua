-- hf.lua - Hugging Face model folders as sources: config.json, generation_config.json,
-- model.safetensors or its shards; and folders written. Reading returns nil and a message when
-- something is missing or malformed.
local dtypes = require "perilune.dtypes"
local peri = require "perilune"
local foreign = require "perilune.foreign"
local options = require "perilune.options"

local M = {}

local WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

-- ---- JSON files ----------------------------------------------------------------------------------

local function write_json(path, value)
  return peri.files.write(path, peri.json.encode(value, { indent = 2 }) .. "\n")
end

--- config.json of a model folder, nulls removed.
--- @param folder string
--- @return table|nil config
--- @return string? message
function M.config(folder)
  local c, err = foreign.read(folder .. "/config.json")
  if not c then return nil, err end
  return foreign.without_null(c)
end

--- generation_config.json, or an empty table when the folder has none.
--- @param folder string
--- @return table|nil
--- @return string? message
function M.generation_config(folder)
  if not peri.files.exists(folder .. "/generation_config.json") then return {} end
  local c, err = foreign.read(folder .. "/generation_config.json")
  if not c then return nil, err end
  return foreign.without_null(c)
end

--- The dtype that a config says its weights have ("float32", ...), under either spelling.
--- @param config table
--- @return string|nil
function M.dtype(config) return config.dtype or config.torch_dtype end

-- ---- weights -------------------------------------------------------------------------------------

-- A file in the folder itself, and no other.
local function is_file_name(name)
  return type(name) == "string" and name:find "^[%w_%-][%w%._%-]*%.safetensors$" ~= nil
end

-- Tensors by name, {name, dtype, shape, bytes, file}, of the shards of an index.
local function read_index(folder)
  local path = folder .. "/" .. INDEX
  local index, err = foreign.read(path)
  if not index then return nil, err end
  local map = index.weight_map
  if type(map) ~= "table" then return nil, path .. ": weight_map is missing" end
  local files, entries, total = {}, {}, 0
  for name, file in pairs(map) do
    if type(name) ~= "string" or not is_file_name(file) then
      return nil, ("%s: weight_map: tensor %q is in %q, which is no name of a safetensors file"):format(path,
        tostring(name), tostring(file))
    end
    files[file] = files[file] or {}
    table.insert(files[file], name)
  end
  for file, names in pairs(files) do
    local info, message = peri.safetensors.info(folder .. "/" .. file)
    if not info then return nil, message end
    local there = {}
    for _, t in ipairs(info.tensors) do there[t.name] = t end
    for _, name in ipairs(names) do
      local t = there[name]
      if not t then return nil, ("%s: weight_map: %s has no tensor %q"):format(path, file, name) end
      t.file, entries[name], total = file, t, total + t.bytes
    end
  end
  local said = type(index.metadata) == "table" and index.metadata.total_size
  if math.type(said) == "integer" and said > total then
    return nil, ("%s: total_size is %d bytes, the tensors of weight_map have %d"):format(path, said, total)
  end
  return entries
end

local function read_entries(folder)
  if peri.files.exists(folder .. "/" .. WEIGHTS) then
    local info, err = peri.safetensors.info(folder .. "/" .. WEIGHTS)
    if not info then return nil, err end
    local entries = {}
    for _, t in ipairs(info.tensors) do t.file, entries[t.name] = WEIGHTS, t end
    return entries
  end
  if peri.files.exists(folder .. "/" .. INDEX) then return read_index(folder) end
  for _, name in ipairs(peri.files.list(folder) or {}) do
    if name:find "^pytorch_model.*%.bin$" then
      return nil, ("%s: only has %s; pickled weights are not read, convert them to safetensors"):format(folder, name)
    end
  end
  return nil, ("%s: there is neither %s nor %s"):format(folder, WEIGHTS, INDEX)
end

local Source = {}
Source.__index = Source

--- A tensor in the file's dtype, mapped unless the source was opened without. Its shard is opened when the
--- first of its tensors is asked for and stays open with the source.
--- @param name string
--- @return perilune.Tensor|nil
--- @return string? message
function Source:get(name)
  local entry = self._entries[name]
  if not entry then return nil, ("%s: there is no tensor %q"):format(self.path, name) end
  if not self._shards[entry.file] then
    local tensors, message = peri.safetensors.load(self.path .. "/" .. entry.file, { map = self._map })
    if not tensors then return nil, message end
    for _, t in pairs(tensors) do peri.keep(t) end
    self._shards[entry.file] = tensors
  end
  local t = self._shards[entry.file][name]
  if not t then return nil, ("%s/%s: tensor %q has gone"):format(self.path, entry.file, name) end
  return t:detach() -- a view of its own: the caller's scope may free it
end

--- What the header says of a tensor.
--- @param name string
--- @return table  {name, dtype, shape, bytes, file}
function Source:info(name) return self._entries[name] end

local tokenizer_files = { "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
  "chat_template.jinja", "chat_template.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model",
  "spiece.model", "encoder.json", "vocab.bpe" }
local vocabularies = { "tokenizer.json", "vocab.json", "vocab.txt", "encoder.json", "tokenizer.model", "spiece.model" }

local open_rules = { map = options.boolean(true, "tensors share the file's pages") }

--- Open a model folder as a source; no tensor is read.
--- @param folder string
--- @param opts table?
--- @return table|nil source  format, path, config, generation_config, names, get, tokenizer_path
--- @return string? message
function M.open(folder, opts)
  local o = options.fill("hf.open", opts, open_rules)
  local config, err = M.config(folder)
  if not config then return nil, err end
  local generation, why = M.generation_config(folder)
  if not generation then return nil, why end
  local entries, message = read_entries(folder)
  if not entries then return nil, message end
  local names = {}
  for name in pairs(entries) do names[#names + 1] = name end
  table.sort(names)
  local source = setmetatable({ format = "hf", path = folder, config = config, generation_config = generation,
    names = names, _entries = entries, _shards = {},
    _map = o.map }, Source)
  for _, name in ipairs(vocabularies) do
    if peri.files.exists(folder .. "/" .. name) then source.tokenizer_path = folder end
  end
  return source
end
options.declare(M.open, { "folder" }, open_rules)

--- Every tensor of a model folder, mapped.
--- @param folder string
--- @return table<string, perilune.Tensor>|nil tensors
--- @return string? message
function M.tensors(folder)
  local entries, err = read_entries(folder)
  if not entries then return nil, err end
  local source = setmetatable({ path = folder, _entries = entries, _shards = {}, _map = true }, Source)
  local out = {}
  for name in pairs(entries) do
    local t, message = source:get(name)
    if not t then return nil, message end
    out[name] = t
  end
  return out
end

-- ---- writing -------------------------------------------------------------------------------------

local function bytes_of(entry)
  local d = dtypes.by_name[entry.dtype]
  if not d or d.kind == "quantised" then
    error(("hf.save: %s is %s, which safetensors does not have"):format(entry.name, entry.dtype), 4)
  end
  return dtypes.numel(entry.shape) * d.bytes
end

-- Lists of entries of at most `most` bytes, in order; a larger tensor is alone.
local function split(list, most)
  local shards, bytes, total = { {} }, 0, 0
  for _, entry in ipairs(list) do
    local n = bytes_of(entry)
    if bytes > 0 and bytes + n > most then shards[#shards + 1], bytes = {}, 0 end
    table.insert(shards[#shards], entry)
    bytes, total = bytes + n, total + n
  end
  return shards, total
end

-- Tensors made one at a time, so that never more than one is in memory.
local function write_shard(path, list)
  local writer <close>, err = peri.safetensors.create(path, list)
  if not writer then return nil, err end
  local i = writer:next()
  while i do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local t, message = list[i].get()
    if not t then return nil, message end
    local ok, why = writer:write(t)
    if not ok then return nil, why end
    i = writer:next()
  end
  return writer:commit()
end

local function copy_file(from, to)
  local text, err = peri.files.read(from)
  if not text then return nil, err end
  return peri.files.write(to, text)
end

--- Copy the files of a tokenizer from one folder to another; of a GGUF file, write them.
--- @param from string
--- @param folder string
--- @return boolean|nil ok
--- @return string? message
function M.copy_tokenizer(from, folder)
  if peri.files.exists(from) ~= "folder" then
    local tok, err = require("perilune.text.tokenizer").load(from)
    if not tok then return nil, err end
    return tok:save(folder)
  end
  for _, name in ipairs(tokenizer_files) do
    local path = from .. "/" .. name
    if from ~= folder and peri.files.exists(path) == "file" then
      local ok, err = copy_file(path, folder .. "/" .. name)
      if not ok then return nil, err end
    end
  end
  return true
end

--- Take the files of a tokenizer out of a folder: what an earlier one left would be read with the next one's.
--- @param folder string
function M.remove_tokenizer(folder)
  for _, name in ipairs(tokenizer_files) do
    if peri.files.exists(folder .. "/" .. name) == "file" then peri.files.remove_tree(folder .. "/" .. name) end
  end
end

-- Weights of an earlier save that readers would take for these.
local function remove_stale(folder, written)
  for _, name in ipairs(peri.files.list(folder) or {}) do
    local ours = name == WEIGHTS or name == INDEX or name:find "^model%-%d+%-of%-%d+%.safetensors$"
    if ours and not written[name] then
      local ok, err = peri.files.remove_tree(folder .. "/" .. name)
      if not ok then return nil, err end
    end
  end
  return true
end

M.save_rules = {
  generation_config = options.value(options.none, "table", "of generation_config.json"),
  shard_bytes = options.integer(5000000000, "[1, inf)", "the most that one file holds, as save_pretrained has it"),
  tokenizer_from = options.value(options.none, "string", "folder or GGUF file whose tokenizer is carried along"),
}

--- Write a model folder tensor by tensor.
--- @param folder string
--- @param config table
--- @param list table[]  { name, dtype, shape, get: fun(): perilune.Tensor|nil, string? }
--- @param opts table?
--- @return boolean|nil ok
--- @return string? message
function M.write(folder, config, list, opts)
  local o = options.fill("hf.save", opts, M.save_rules)
  local ok, err = peri.files.make_folder(folder)
  if not ok then return nil, err end
  table.sort(list, function(a, b) return a.name < b.name end)
  local shards, total = split(list, o.shard_bytes)
  local written, map = {}, {}
  for i, shard in ipairs(shards) do
    local name = #shards == 1 and WEIGHTS or ("model-%05d-of-%05d.safetensors"):format(i, #shards)
    ok, err = write_shard(folder .. "/" .. name, shard)
    if not ok then return nil, err end
    written[name] = true
    for _, entry in ipairs(shard) do map[entry.name] = name end
  end
  if #shards > 1 then
    ok, err = write_json(folder .. "/" .. INDEX, { metadata = { total_size = total }, weight_map = map })
    if not ok then return nil, err end
    written[INDEX] = true
  end
  ok, err = write_json(folder .. "/config.json", config)
  if ok and o.generation_config and next(o.generation_config) then
    ok, err = write_json(folder .. "/generation_config.json", o.generation_config)
  end
  if ok and o.tokenizer_from then ok, err = M.copy_tokenizer(o.tokenizer_from, folder) end
  if ok then ok, err = remove_stale(folder, written) end
  if not ok then return nil, err end
  return true
end
options.declare(M.write, { "folder", "config", "list" }, M.save_rules)

--- Write a folder that Hugging Face loads: config.json, generation_config.json, model.safetensors or
--- shards with their index.
--- @param folder string
--- @param config table
--- @param tensors table<string, perilune.Tensor>
--- @param opts table?
--- @return boolean|nil ok
--- @return string? message
function M.save(folder, config, tensors, opts)
  options.fill("hf.save", opts, M.save_rules)
  local list = {}
  for name, t in pairs(tensors) do
    list[#list + 1] = { name = name, dtype = t.dtype, shape = t.shape, get = function() return t end }
  end
  return M.write(folder, config, list, opts)
end
options.declare(M.save, { "folder", "config", "tensors" }, M.save_rules)

return M
