-- info.lua - perilune info [FILE]: a model file; without one the version, processor, SIMD level, threads. What a model,
-- a checkpoint or an array file holds: architecture, sizes, tensors, tokenizer, chat template.
local dtypes = require "perilune.dtypes"
local peri = require "perilune"
local arguments = require "perilune.command.arguments"
local foreign = require "perilune.foreign"
local hf = require "perilune.weights.hf"

local about = [[
FILE is a Hugging Face folder, a .gguf, .safetensors, llama2.c .bin, .npy, .npz or IDX file. Without one: the version,
processor, SIMD level, threads and memory of this machine.]]

local spec = { all = { false, "every tensor and value, not the first ones" } }

local function row(name, value) print(("%-14s %s"):format(name, value)) end

local function grouped(n)
  local s, k = tostring(n), 1
  while k > 0 do s, k = s:gsub("^(%d+)(%d%d%d)", "%1,%2") end
  return s
end

local function size(bytes)
  if bytes < 1e3 then return ("%d bytes"):format(bytes) end
  for _, unit in ipairs { "kB", "MB", "GB", "TB" } do
    bytes = bytes / 1e3
    if bytes < 999.95 then return ("%.1f %s"):format(bytes, unit) end
  end
  return ("%.1f TB"):format(bytes)
end

-- One line of text without characters that steer a terminal.
local function clean(text, most)
  local short = #text > most and text:sub(1, most) .. "..." or text
  return (short:gsub("[%c\127]", function(c) return c == "\n" and "\\n" or "?" end))
end

-- Of tensors that are no weights: positions, masks, tables.
-- Types of files that are no weights, two of which no tensor here has.
local integers = setmetatable({ i8 = true, i16 = true }, { __index = dtypes.integers })

-- The type that most weights have.
local function main_type(tensors)
  local counts, best = {}, nil
  for _, t in ipairs(tensors) do
    if not integers[t.type] then
      counts[t.type] = (counts[t.type] or 0) + dtypes.numel(t.shape)
      if not best or counts[t.type] > counts[best] then best = t.type end
    end
  end
  return best
end

-- tensors: { name, type, shape, bytes } each. What: "parameters", of which integers are none, or "elements".
local function show_tensors(tensors, all, what)
  local count, total, weights, by_type, types = 0, 0, 0, {}, {}
  for _, t in ipairs(tensors) do
    total = total + t.bytes
    if what or not integers[t.type] then count, weights = count + dtypes.numel(t.shape), weights + t.bytes end
    if not by_type[t.type] then
      by_type[t.type] = { 0, 0 }
      types[#types + 1] = t.type
    end
    by_type[t.type] = { by_type[t.type][1] + 1, by_type[t.type][2] + t.bytes }
  end
  table.sort(types)
  row(what or "parameters", grouped(count))
  local bits = count > 0 and not what and (", %.2f bits a parameter"):format(8 * weights / count) or ""
  row("size", ("%s in %d tensors%s"):format(size(total), #tensors, bits))
  for i, kind in ipairs(types) do
    types[i] = ("%s %d (%s)"):format(kind, by_type[kind][1], size(by_type[kind][2]))
  end
  row("types", table.concat(types, ", "))
  local most = all and #tensors or 20
  print "tensors"
  for i = 1, math.min(most, #tensors) do
    local t = tensors[i]
    print(("  %-48s %-8s (%s)"):format(clean(t.name, 80), t.type, table.concat(t.shape, ", ")))
  end
  if #tensors > most then print(("  and %d more (--all shows them)"):format(#tensors - most)) end
end

local sizes = { { "layers", "num_hidden_layers", "n_layer", "num_layers", "n_layers" },
  { "hidden", "hidden_size", "n_embd", "d_model", "dim" },
  { "feed-forward", "intermediate_size", "n_inner", "d_ff", "hidden_dim" },
  { "heads", "num_attention_heads", "n_head", "num_heads", "n_heads" },
  { "key heads", "num_key_value_heads" }, { "head size", "head_dim", "d_kv" }, { "vocabulary", "vocab_size" },
  { "context", "max_position_embeddings", "n_positions" }, { "experts", "n_routed_experts" } }

local function show_config(c)
  row("architecture", ("%s (%s)"):format(c.model_type or "?", (c.architectures or {})[1] or "?"))
  for _, entry in ipairs(sizes) do
    for i = 2, #entry do
      if c[entry[i]] ~= nil then
        row(entry[1], tostring(c[entry[i]]))
        break
      end
    end
  end
  local p = c.rope_parameters or c.rope_scaling or {}
  local theta, kind = p.rope_theta or c.rope_theta, p.rope_type or p.type
  if theta then row("rope", ("theta %g%s"):format(theta, kind and kind ~= "default" and ", " .. kind or "")) end
  if c.tie_word_embeddings ~= nil then row("tied", c.tie_word_embeddings and "yes" or "no") end
end

local function show_template(text)
  if type(text) ~= "string" then
    row("chat template", "none")
    return
  end
  local lines = {}
  for line in (text .. "\n"):gmatch "(.-)\n" do
    if #lines < 3 and line:find "%S" then lines[#lines + 1] = "  " .. clean(line, 100) end
  end
  row("chat template", ("%d bytes"):format(#text))
  print(table.concat(lines, "\n"))
end

-- ---- formats -------------------------------------------------------------------------------------

local function show_gguf(path, all)
  local file, err = peri.gguf.open(path)
  if not file then return nil, err end
  local version, alignment = file:version()
  row("format", ("GGUF %d, alignment %d"):format(version, alignment))
  local name = file:get "general.name"
  if type(name) == "string" then row("name", clean(name, 100)) end
  local tensors = file:tensors()
  local source, why
  if #tensors > 0 then source, why = require("perilune.weights.gguf.source").open(path) end
  if source then show_config(source.config)
  else
    row("architecture", clean(tostring(file:get "general.architecture"), 60))
    if why then row("model", "cannot be loaded here: " .. clean(why, 200)) end
  end
  local model, _, count = file:get "tokenizer.ggml.model", nil, select(3, file:get "tokenizer.ggml.tokens")
  if model then
    local pre = file:get "tokenizer.ggml.pre"
    row("tokenizer", ("%s%s, %s tokens"):format(clean(tostring(model), 40),
      type(pre) == "string" and ", pre-tokenizer " .. clean(pre, 40) or "", count and grouped(count) or "?"))
    local special, tokens = {}, file:get "tokenizer.ggml.tokens"
    for _, key in ipairs { "bos", "eos", "eot", "unknown", "padding" } do
      local id = file:get(("tokenizer.ggml.%s_token_id"):format(key))
      if math.type(id) == "integer" and type(tokens) == "table" then
        special[#special + 1] = ("%s %d %s"):format(key, id, clean(tostring(tokens[id + 1]), 40))
      end
    end
    row("special", table.concat(special, ", "))
    show_template(file:get "tokenizer.chat_template")
  else
    row("tokenizer", "none")
  end
  show_tensors(tensors, all)
  if not all then return true end
  print "values"
  for _, v in ipairs(file:keys()) do
    local value = file:get(v.key)
    local shown = v.count and ("%d of %s"):format(v.count, v.type) or clean(tostring(value), 80)
    print(("  %-48s %s"):format(clean(v.key, 80), shown))
  end
  return true
end

local function show_hf_tokenizer(folder)
  local path = folder .. "/tokenizer.json"
  local tok, message = foreign.read(path)
  if not tok then
    row("tokenizer", peri.files.exists(path) and clean(message, 200) or "no tokenizer.json")
  elseif type(tok.model) ~= "table" then
    row("tokenizer", path .. ": model is missing")
  else
    local n = 0
    for _ in pairs(type(tok.model.vocab) == "table" and tok.model.vocab or {}) do n = n + 1 end
    row("tokenizer", ("%s, %s tokens, %d added"):format(tok.model.type or "BPE", grouped(n), #(tok.added_tokens or {})))
    local special = {}
    for _, t in ipairs(tok.added_tokens or {}) do
      if t.special and #special < 8 then special[#special + 1] = ("%d %s"):format(t.id, clean(t.content, 40)) end
    end
    row("special", #special > 0 and table.concat(special, ", ") or "none")
  end
  local settings = foreign.without_null(foreign.read(folder .. "/tokenizer_config.json") or {})
  local template = peri.files.read(folder .. "/chat_template.jinja") or settings.chat_template
  show_template(type(template) == "table" and template[1] and template[1].template or template)
end

local function show_source(source, all)
  row("format", source.format == "hf" and "Hugging Face folder" or "llama2.c checkpoint")
  show_config(source.config)
  if source.format == "hf" then
    show_hf_tokenizer(source.path)
  else
    row("tokenizer", source.tokenizer_path or "none beside it")
  end
  local tensors = {}
  for i, name in ipairs(source.names) do
    local t = source:info(name)
    tensors[i] = { name = name, type = t.dtype, shape = t.shape, bytes = t.bytes }
  end
  local said, stored = hf.dtype(source.config), main_type(tensors)
  local same = said and stored == (dtypes.by_name[said] or {}).name
  row("dtype", not (said or stored) and "none" or not said and stored or same and said
    or ("%s, stored as %s"):format(said, stored or "none"))
  show_tensors(tensors, all)
  return true
end

local function show_safetensors(path, all)
  local info, err = peri.safetensors.info(path)
  if not info then return nil, err end
  row("format", "safetensors")
  for key, value in pairs(info.metadata) do row("metadata", clean(key, 40) .. " = " .. clean(value, 60)) end
  for _, t in ipairs(info.tensors) do t.type = t.dtype end
  show_tensors(info.tensors, all)
  return true
end

local function show_arrays(format, arrays, all)
  row("format", format)
  local tensors = {}
  for name, t in pairs(arrays) do
    tensors[#tensors + 1] = { name = name, type = t.dtype, shape = t.shape, bytes = #t:contiguous():bytes() }
  end
  table.sort(tensors, function(a, b) return a.name < b.name end)
  show_tensors(tensors, all, "elements")
  return true
end

local function show(path, all)
  local kind = peri.files.exists(path)
  if not kind then return nil, path .. ": there is no such file or folder" end
  local source, err
  if kind == "folder" then source, err = hf.open(path)
  elseif path:find "%.gguf$" then return show_gguf(path, all)
  elseif path:find "%.safetensors$" then return show_safetensors(path, all)
  elseif path:find "%.npy$" or path:find "%.npy%.gz$" then
    source, err = peri.npy.load(path)
    return source and show_arrays("NumPy .npy", { array = source }, all), err
  elseif path:find "%.npz$" then
    source, err = peri.npz.load(path)
    if not source then return nil, err end
    local strange = {}
    for name, why in pairs(err or {}) do strange[#strange + 1] = { name, why } end
    table.sort(strange, function(a, b) return a[1] < b[1] end)
    show_arrays("NumPy .npz", source, all)
    for _, entry in ipairs(strange) do row("not read", clean(entry[1], 40) .. ": " .. clean(entry[2], 160)) end
    return true
  elseif path:find "%.bin$" then source, err = require("perilune.weights.llama2c").open(path)
  elseif path:find "ubyte" or path:find "idx" then
    source, err = peri.idx.load(path)
    return source and show_arrays("IDX", { array = source }, all), err
  else return nil, path .. ": the name tells no format that is known here" end
  if not source then return nil, err end
  return show_source(source, all)
end

local function show_machine()
  local i = peri.info()
  print(("perilune %s, %s, Lua %s"):format(i.version, i.device, (i.lua:gsub("^Lua ", ""))))
  print("processor  " .. i.processor)
  print("simd       " .. i.simd)
  print("threads    " .. i.threads)
  print("memory     " .. (i.max_bytes > 0 and ("%.4g GiB for tensors"):format(i.max_bytes / 2 ^ 30) or "no limit"))
  print("ops        " .. i.ops)
end

return function(args)
  local values, words = arguments.read("info", "[FILE]", 0, 1, spec, args, about)
  if not values then return words end
  if not words[1] then
    show_machine()
    return 0
  end
  local ok, err = show(words[1], values.all)
  if ok then return 0 end
  io.stderr:write("perilune info: ", err, "\n")
  return 1
end
