-- convert.lua - Hugging Face folders, GGUF files and llama2.c checkpoints as GGUF files or Hugging Face folders, with
-- quantisation; tensor by tensor, so that memory stays small. `perilune convert` is its face.
local dtypes = require "perilune.dtypes"
local peri = require "perilune"
local hf = require "perilune.weights.hf"
local architectures = require "perilune.weights.gguf.arch"
local configs = require "perilune.weights.gguf.config"
local export = require "perilune.weights.gguf.export"
local tokenizers = require "perilune.weights.gguf.tokenizer"
local tokenizer_json = require "perilune.weights.gguf.tokenizer_json"

local M = {}

local floats = dtypes.published
local integers = dtypes.integers

-- Run fn; what a source could not give comes back as nil and a message.
local function attempt(fn, ...)
  local result = table.pack(xpcall(fn, function(e)
    if type(e) == "table" and e.message then return e end
    return { raised = debug.traceback(e) }
  end, ...))
  if result[1] then return table.unpack(result, 2, result.n) end
  if result[2].raised then error(result[2].raised, 0) end
  return nil, result[2].message
end

-- What a conversion may not lose in silence: with losses it goes on only where that is allowed.
local function check_losses(losses, o, report)
  if #losses == 0 then return true end
  if not o.allow_loss then
    return nil, ("the tokenizer would not be what it is: %s (--allow-loss writes it all the same, "
      .. "--no-tokenizer writes none)"):format(table.concat(losses, "; "))
  end
  for _, what in ipairs(losses) do report.notes[#report.notes + 1] = "lost of the tokenizer: " .. what end
  return true
end

-- ---- tensors on their way ------------------------------------------------------------------------

-- Count entries {name, shape, dtype, wanted} into the report, and say how far they are as they are asked for.
local function watch(list, report, o)
  local total, done = 0, 0
  report.types, report.fallbacks = {}, {}
  for _, entry in ipairs(list) do
    local n = dtypes.numel(entry.shape)
    local bytes = export.bytes(entry.dtype, n)
    total, report.bytes = total + bytes, report.bytes + bytes
    report.tensors = report.tensors + 1
    if not integers[entry.dtype] then report.parameters = report.parameters + n end
    report.types[entry.dtype] = (report.types[entry.dtype] or 0) + 1
    if entry.wanted then
      local columns = entry.shape[#entry.shape]
      local key = ("%s %s %d"):format(entry.wanted, entry.dtype, columns)
      local f = report.fallbacks[key]
      if not f then
        f = { wanted = entry.wanted, dtype = entry.dtype, columns = columns, count = 0, first = entry.name }
        report.fallbacks[key] = f
        report.fallbacks[#report.fallbacks + 1] = f
      end
      f.count = f.count + 1
    end
    local get = entry.get
    entry.get = function()
      if o.progress then o.progress(done, total, entry.name) end
      done = done + bytes
      return get()
    end
  end
end

local function write_gguf(path, values, list)
  local writer <close>, err = peri.gguf.create(path, values, list)
  if not writer then return nil, err end
  for _, entry in ipairs(list) do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local ok, why = writer:write(export.cast(entry.get(), entry.dtype))
    if not ok then return nil, why end
  end
  return writer:commit()
end

-- The type that most elements have, for general.file_type.
local function main_type(list)
  local counts, best = {}, "f32"
  for _, entry in ipairs(list) do counts[entry.dtype] = (counts[entry.dtype] or 0) + dtypes.numel(entry.shape) end
  for dtype, n in pairs(counts) do if n > (counts[best] or 0) then best = dtype end end
  return best
end

local function choose_types(list, wanted, layers)
  local tied = true
  for _, entry in ipairs(list) do tied = tied and entry.name ~= "output.weight" end
  for _, entry in ipairs(list) do
    if entry.dtype ~= "i32" and entry.dtype ~= "i64" then
      local dtype = wanted or (entry.dtype == "f64" and "f32" or entry.dtype)
      entry.dtype, entry.wanted = export.dtype(entry.name, entry.shape, dtype, { layers = layers, tied = tied })
    end
  end
end

local function put_file_type(values, list, wanted)
  local dtype = wanted or main_type(list)
  values[#values + 1] = { key = "general.file_type", type = "u32", value = export.file_type(dtype) or 0 }
  if not floats[dtype] then values[#values + 1] = { key = "general.quantization_version", type = "u32", value = 2 } end
end

-- ---- to GGUF -------------------------------------------------------------------------------------

local function base_name(path) return (path:gsub("/+$", "")):match "([^/]+)$" or path end

-- Values of the tokenizer, or of the ids that the config names.
local function put_tokenizer(source, o, values, report)
  local c = source.config
  if source.format == "hf" and source.tokenizer_path and not o.no_tokenizer then
    local list, losses, notes = tokenizers.values(source.tokenizer_path, c, base_name(c._name_or_path or source.path))
    if not list then return nil, losses .. " (--no-tokenizer converts without)" end
    table.move(list, 1, #list, #values + 1, values)
    table.move(notes, 1, #notes, #report.notes + 1, report.notes)
    return check_losses(losses, o, report)
  end
  if not o.no_tokenizer then
    report.notes[#report.notes + 1] = "without a tokenizer: the source has none that GGUF can hold"
  end
  for _, key in ipairs { "bos", "eos" } do
    local id = c[key .. "_token_id"]
    if math.type(id) == "integer" then
      values[#values + 1] = { key = ("tokenizer.ggml.%s_token_id"):format(key), type = "u32", value = id }
    end
  end
  return true
end

local function to_gguf(source, o, report)
  local c, arch, err = source.config, architectures.of_config(source.config)
  if not arch then return nil, err end
  local values = { { key = "general.architecture", type = "text", value = arch.name },
    { key = "general.type", type = "text", value = "model" },
    { key = "general.name", type = "text", value = base_name(c._name_or_path or source.path) } }
  local model, why = configs.write(arch, c)
  if not model then return nil, why end
  table.move(model, 1, #model, #values + 1, values)
  local ok, message = put_tokenizer(source, o, values, report)
  if not ok then return nil, message end
  local list, dropped = export.tensors(source, arch)
  choose_types(list, o.type, c[arch.layers])
  put_file_type(values, list, o.type)
  if #dropped > 0 then
    report.notes[#report.notes + 1] = ("left out, GGUF has no place for them: %s%s"):format(dropped[1],
      #dropped > 1 and (" and %d more"):format(#dropped - 1) or "")
  end
  watch(list, report, o)
  return write_gguf(o.to, values, list)
end

-- The same values, tensors under the same names.
local function requantise(path, o, report)
  local file, err = peri.gguf.open(path, { map = true })
  if not file then return nil, err end
  local values, list = {}, {}
  local replaced = { ["general.alignment"] = true, ["general.file_type"] = true,
    ["general.quantization_version"] = true }
  for _, v in ipairs(file:keys()) do
    if v.type == "array" then return nil, ("%s: value %s: arrays of arrays are not written"):format(path, v.key) end
    if not replaced[v.key] then
      values[#values + 1] = { key = v.key, type = v.type, value = (file:get(v.key)) }
    end
  end
  for _, t in ipairs(file:tensors()) do
    if not t.dtype then
      return nil, ("%s: tensor %s has type %s, which is not supported"):format(path, t.name, t.type)
    end
    list[#list + 1] = { name = t.name, shape = t.shape, dtype = t.dtype, get = function()
      local x, message = file:tensor(t.name)
      if not x then error({ message = message }, 0) end
      return x
    end }
  end
  local layers = file:get(tostring(file:get "general.architecture") .. ".block_count")
  if o.type then choose_types(list, o.type, math.type(layers) == "integer" and layers or 0) end
  put_file_type(values, list, o.type)
  watch(list, report, o)
  return write_gguf(o.to, values, list)
end

-- ---- to a folder ---------------------------------------------------------------------------------

local published = dtypes.published

-- How the tokenizer comes into a folder: a function of the folder, made before anything is written.
local function tokenizer_writer(source, o, report)
  if o.no_tokenizer then return function() return true end end
  if not source.tokenizer_path then
    report.notes[#report.notes + 1] = "without a tokenizer: the source has none"
    return function() return true end
  end
  if source.format == "hf" then
    return function(folder) return hf.copy_tokenizer(source.tokenizer_path, folder) end
  end
  local why = source.format ~= "gguf" and "a llama2.c tokenizer has no form as tokenizer.json here"
  local text, config, losses
  if not why then
    text, config, losses = tokenizer_json.json(source.tokenizer_path)
    if not text then why = config end
  end
  if why then
    if not o.allow_loss then return nil, why .. " (--no-tokenizer converts without)" end
    report.notes[#report.notes + 1] = "without a tokenizer: " .. why
    return function() return true end
  end
  local ok, message = check_losses(losses, o, report)
  if not ok then return nil, message end
  return function(folder) return tokenizer_json.write(folder, text, config) end
end

local function to_folder(source, o, report)
  if o.type and not floats[o.type] then return nil, ("a folder cannot hold %s weights"):format(o.type) end
  local write_tokenizer, why = tokenizer_writer(source, o, report)
  if not write_tokenizer then return nil, why end
  local list, config, main, widened = {}, {}, "f32", {}
  for k, v in pairs(source.config) do config[k] = v end
  for _, name in ipairs(source.names) do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local t, err = source:get(name) -- mapped: its shape costs nothing, or one tensor at a time
    if not t then return nil, err end
    local dtype = integers[t.dtype] and t.dtype or o.type or (published[t.dtype] and t.dtype) or "f32"
    if t.ndim == 2 then main = dtype end
    local stored = source:info(name).dtype
    if stored and not published[stored] and not integers[stored] and stored ~= "f64" then
      widened[stored] = (widened[stored] or 0) + 1
    end
    list[#list + 1] = { name = name, dtype = dtype, shape = t.shape, get = function()
      local x, message = source:get(name)
      if not x then return nil, message end
      return export.cast(x, dtype)
    end }
  end
  config.dtype, config.torch_dtype = published[main], nil
  watch(list, report, o)
  for stored, n in pairs(widened) do
    report.notes[#report.notes + 1] = ("%d tensor%s of %s: %s in the folder"):format(n, n == 1 and "" or "s",
      stored, o.type or "f32")
  end
  if o.force then hf.remove_tokenizer(o.to) end
  local ok, err = hf.write(o.to, config, list,
    { generation_config = source.generation_config, shard_bytes = o.shard_bytes })
  if not ok then return nil, err end
  return write_tokenizer(o.to)
end

--- Convert.
--- @param o table  from, to; type, shard_bytes, no_tokenizer, allow_loss, force: as perilune convert has them;
---   progress: a function of bytes done, bytes in all and the tensor that comes next
--- @return table|nil report  tensors, parameters, bytes, types (counts by dtype), fallbacks { wanted, dtype, columns,
---   count, first }[], notes
--- @return string? message
function M.run(o)
  local report = { tensors = 0, parameters = 0, bytes = 0, notes = {} }
  local function convert()
    local gguf = o.to:find "%.gguf$" ~= nil
    if gguf and o.from:find "%.gguf$" then return requantise(o.from, o, report) end
    local source, err = peri.models.open(o.from)
    if not source then return nil, err end
    return (gguf and to_gguf or to_folder)(source, o, report)
  end
  local ok, message = attempt(convert)
  if not ok then return nil, message end
  return report
end

return M
