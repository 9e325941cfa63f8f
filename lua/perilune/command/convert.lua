-- convert.lua - perilune convert FROM TO: Hugging Face folders, GGUF files and llama2.c checkpoints as
-- GGUF files or Hugging Face folders, with quantisation; tensor by tensor, so that memory stays small.
local peri = require "perilune"
local hf = require "perilune.models.hf"
local configs = require "perilune.gguf.config"
local export = require "perilune.gguf.export"
local tokenizers = require "perilune.gguf.tokenizer"

local usage = [[
usage: perilune convert FROM TO [--type TYPE] [--shard-bytes N] [--no-tokenizer]
  FROM           a Hugging Face folder, a .gguf file or a llama2.c .bin file
  TO             a name that ends in .gguf, or a folder
  --type TYPE    f32 f16 bf16, and for GGUF q8_0 q4_0 q4_1 q5_0 q5_1 q4_K q5_K q6_K; as stored when left
                 out (a folder gets quantised weights as f32). Norms and vectors stay f32; some matrices of
                 q4_0 and the _K types get more bits, as in llama.cpp
  --shard-bytes  the most that one safetensors file holds (5000000000)
  --no-tokenizer leave the tokenizer out of a GGUF file
]]

local types = { f32 = true, f16 = true, bf16 = true, q8_0 = true, q4_0 = true, q4_1 = true, q5_0 = true,
  q5_1 = true, q4_K = true, q5_K = true, q6_K = true }
local floats = { f32 = true, f16 = true, bf16 = true }
local aliases = { q4_k = "q4_K", q5_k = "q5_K", q6_k = "q6_K", q4_k_m = "q4_K", q5_k_m = "q5_K" }

local function parse(args)
  local o, rest, i = { shard_bytes = nil }, {}, 1
  while i <= #args do
    local word = args[i]
    local name, value = word:match "^%-%-([%w-]+)=(.*)$"
    if not name then name = word:match "^%-%-([%w-]+)$" end
    if word == "--help" or word == "-h" then return nil, nil end
    if word == "--no-tokenizer" then o.no_tokenizer = true
    elseif name == "type" or name == "shard-bytes" then
      if not value then
        i = i + 1
        value = args[i]
      end
      if not value then return nil, word .. " needs a value" end
      if name == "type" then
        local lower = value:lower()
        o.type = types[lower] and lower or aliases[lower]
        if not o.type then return nil, ("--type %s is not known"):format(value) end
      else
        o.shard_bytes = math.tointeger(value)
        if not o.shard_bytes or o.shard_bytes < 1 then return nil, "--shard-bytes must be a whole number" end
      end
    elseif word:find "^%-%-" then return nil, ("there is no option %s"):format(word)
    else rest[#rest + 1] = word end
    i = i + 1
  end
  if #rest ~= 2 then return nil, "FROM and TO are needed" end
  o.from, o.to = rest[1], rest[2]
  return o
end

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

-- ---- to GGUF -------------------------------------------------------------------------------------

local function write_gguf(path, values, list)
  local writer <close>, err = peri.gguf.create(path, values, list)
  if not writer then return nil, err end
  for _, entry in ipairs(list) do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local t = entry.get()
    local ok, why = writer:write(export.cast(t, entry.dtype))
    if not ok then return nil, why end
  end
  return writer:commit()
end

-- The type that most bytes have, for general.file_type.
local function main_type(list)
  local bytes, best = {}, "f32"
  for _, entry in ipairs(list) do
    local n = 1
    for _, size in ipairs(entry.shape) do n = n * size end
    bytes[entry.dtype] = (bytes[entry.dtype] or 0) + n
  end
  for dtype, n in pairs(bytes) do if n > (bytes[best] or 0) then best = dtype end end
  return best
end

local function choose_types(list, wanted, layers)
  local tied = true
  for _, entry in ipairs(list) do tied = tied and entry.name ~= "output.weight" end
  for _, entry in ipairs(list) do
    local dtype = wanted or (entry.dtype == "f64" and "f32" or entry.dtype)
    entry.dtype = export.dtype(entry.name, entry.shape, dtype, { layers = layers, tied = tied })
  end
end

local function put_file_type(values, list, wanted)
  local dtype = wanted or main_type(list)
  values[#values + 1] = { key = "general.file_type", type = "u32", value = export.file_type(dtype) or 0 }
  if not floats[dtype] then values[#values + 1] = { key = "general.quantization_version", type = "u32", value = 2 } end
end

local function base_name(path) return (path:gsub("/+$", "")):match "([^/]+)$" or path end

local function to_gguf(source, o)
  local c, arch, err = source.config, configs.architecture(source.config)
  if not arch then return nil, err end
  local values = { { key = "general.architecture", type = "text", value = arch },
    { key = "general.type", type = "text", value = "model" },
    { key = "general.name", type = "text", value = base_name(c._name_or_path or source.path) } }
  local model, why = configs.write(arch, c)
  if not model then return nil, why end
  table.move(model, 1, #model, #values + 1, values)
  local notes = {}
  if source.format == "hf" and source.tokenizer_path and not o.no_tokenizer then
    local list, message = tokenizers.values(source.tokenizer_path, c)
    if not list then return nil, message .. " (--no-tokenizer converts without)" end
    table.move(list, 1, #list, #values + 1, values)
  else
    if not o.no_tokenizer then notes[1] = "without a tokenizer: the source has none that GGUF can hold" end
    for _, key in ipairs { "bos", "eos" } do
      local id = c[key .. "_token_id"]
      if math.type(id) == "integer" then
        values[#values + 1] = { key = ("tokenizer.ggml.%s_token_id"):format(key), type = "u32", value = id }
      end
    end
  end
  local list, dropped = export.tensors(source, arch)
  choose_types(list, o.type, c.num_hidden_layers or c.n_layer or c.num_layers)
  put_file_type(values, list, o.type)
  if #dropped > 0 then
    notes[#notes + 1] = ("left out, GGUF has no place for them: %s%s"):format(dropped[1],
      #dropped > 1 and (" and %d more"):format(#dropped - 1) or "")
  end
  local ok, message = write_gguf(o.to, values, list)
  return ok, message, notes
end

-- The same values, tensors under the same names.
local function requantise(path, o)
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
  if o.type then
    local integers = { i32 = true, i64 = true }
    local kept = {}
    for i, t in ipairs(list) do kept[i] = integers[t.dtype] and t.dtype or nil end
    choose_types(list, o.type, math.type(layers) == "integer" and layers or 0)
    for i, dtype in pairs(kept) do list[i].dtype = dtype end
  end
  put_file_type(values, list, o.type)
  return write_gguf(o.to, values, list)
end

-- ---- to a folder ---------------------------------------------------------------------------------

local published = { f32 = "float32", f16 = "float16", bf16 = "bfloat16" }

local function write_tokenizer(source, folder)
  local function json(name, value)
    return peri.files.write(folder .. "/" .. name, peri.json.encode(value, { indent = 2 }) .. "\n")
  end
  if not source.tokenizer_path then return nil, "the source has no tokenizer" end
  if source.format == "hf" then return hf.copy_tokenizer(source.tokenizer_path, folder) end
  if source.format ~= "gguf" then return nil, "its tokenizer is a llama2.c file, which is not converted" end
  local tok, config = tokenizers.json(source.file)
  if not tok then return nil, config end
  local ok, err = json("tokenizer.json", tok)
  if ok then ok, err = json("tokenizer_config.json", config) end
  return ok, err
end

local function to_folder(source, o)
  if o.type and not floats[o.type] then return nil, ("a folder cannot hold %s weights"):format(o.type) end
  local list, config, main = {}, {}, "f32"
  for k, v in pairs(source.config) do config[k] = v end
  for _, name in ipairs(source.names) do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local t, err = source:get(name) -- mapped: its shape costs nothing, or one tensor at a time
    if not t then return nil, err end
    local dtype = o.type or (published[t.dtype] and t.dtype) or "f32"
    if t.ndim == 2 then main = dtype end
    list[#list + 1] = { name = name, dtype = dtype, shape = t.shape, get = function()
      local x, message = source:get(name)
      if not x then return nil, message end
      return export.cast(x, dtype)
    end }
  end
  config.dtype, config.torch_dtype = published[main], nil
  local ok, err = hf.write(o.to, config, list,
    { generation_config = source.generation_config, shard_bytes = o.shard_bytes })
  if not ok then return nil, err end
  local notes = {}
  ok, err = write_tokenizer(source, o.to)
  if not ok then notes[1] = "without a tokenizer: " .. err end
  return true, nil, notes
end

-- ---- the command ---------------------------------------------------------------------------------

local function convert(o)
  local gguf = o.to:find "%.gguf$" ~= nil
  if gguf and o.from:find "%.gguf$" then return requantise(o.from, o) end
  local source, err = peri.models.open(o.from)
  if not source then return nil, err end
  return (gguf and to_gguf or to_folder)(source, o)
end

return function(args)
  local o, message = parse(args)
  if not o then
    local file = message and io.stderr or io.stdout
    if message then file:write("perilune convert: ", message, "\n") end
    file:write(usage)
    return message and 2 or 0
  end
  local _ <close> = peri.no_grad()
  local ok, err, notes = attempt(convert, o)
  if not ok then
    io.stderr:write("perilune convert: ", err, "\n")
    return 1
  end
  for _, note in ipairs(notes or {}) do io.stderr:write("perilune convert: ", note, "\n") end
  return 0
end
