-- embed.lua - vectors of texts: hidden states of a model, pooled over the tokens of each text, as
-- sentence-transformers makes them; its folders (modules.json) say how.
--   local encoder = assert(peri.embed.load "all-MiniLM-L6-v2")
--   local vectors = encoder:encode { "A man is eating food.", "A man eats." } -- (2, 384)
--   print(encoder:similarity(vectors, vectors))
local peri = require "perilune"
local foreign = require "perilune.foreign"
local activation = require "perilune.nn.activation"
local options = require "perilune.options"
local pooling = require "perilune.models.pooling"
local strings = require "perilune.text.template.strings"

local M = {}

--- @class perilune.embed.Encoder
--- @field model perilune.models.Model
--- @field tok perilune.Tokenizer
--- @field pooling string[]  one or more of perilune.models.pooling.names
--- @field normalize boolean  vectors have length 1
--- @field max_length integer  tokens of a text
--- @field prompts table<string, string>  texts to put before, by name
local Encoder = {}
Encoder.__index = Encoder

function Encoder:__tostring()
  return ("encoder of texts up to %d tokens, pooled by %s%s: %s"):format(self.max_length,
    table.concat(self.pooling, ", "), self.normalize and ", of length 1" or "", tostring(self.model):match "^[^\n]*")
end

-- ---- hidden states ----------------------------------------------------------------------------------

local function pooling_list(who, given, level)
  local list = type(given) == "string" and { given } or given
  if type(list) ~= "table" or #list == 0 then
    given = type(given) == "table" and "an empty list" or tostring(given)
    error(("%s: pooling is %s, expected one of %s, or a list of them"):format(who, tostring(given),
      table.concat(pooling.names, ", ")), level + 1)
  end
  for _, name in ipairs(list) do
    if type(pooling[name]) ~= "function" or name == "pool" then
      error(("%s: %s"):format(who, options.unknown("pooling", name, pooling.names)), level + 1)
    end
  end
  return list
end

-- Vectors of length 1; one of length 0 stays.
local function normalized(x) return x:div(x:norm(2, -1, true):clamp(1e-12)) end

-- The columns of rows that pooling goes by, for ids that came without a batch.
local function columns(inputs, ids, rows)
  local batch, time = ids:size(1), ids:size(2)
  local start = rows.start or peri.zeros({ batch }, "i64")
  return { mask = rows.mask or peri.ones({ batch, time }, "bool"), start = start,
    lengths = (rows.stop or peri.full({ batch }, time, "i64")):sub(start),
    positions = inputs.positions({ start = start }, time) }
end

--- What model:vectors is.
--- @param model perilune.models.Model
--- @param ids perilune.Tensor|perilune.Batch
--- @param given table?
--- @param level integer
--- @return perilune.Tensor  (B, D)
function M.rows(model, ids, given, level)
  local inputs = require "perilune.models.inputs"
  local who, o = model.__name .. ": vectors", {}
  for k, v in pairs(given or {}) do o[k] = v end
  local kind, unit = pooling_list(who, o.pooling or "mean", level + 1), o.normalize or false
  o.pooling, o.normalize = nil, nil
  local rules = model.kind == "causal" and inputs.causal or model.kind == "encoder" and inputs.encoder
    or inputs.relative
  local known
  ids, known = inputs.read(who, ids, o, rules)
  local rows = inputs.rows(who, ids, known)
  inputs.need_tokens(who, rows)
  local batch = known.batch or columns(inputs, ids, rows)
  known.batch = nil
  if batch.ids then known.mask, known.start, known.lengths = nil, batch.start, batch.lengths end
  if known.token_types and not model.types then known.token_types = nil end
  local hidden = model.kind == "encoder-decoder" and model:encode(ids, known) or model:forward(ids, known)
  local out = pooling.pool(hidden, batch, kind)
  return unit and normalized(out) or out
end

-- ---- texts --------------------------------------------------------------------------------------

local new_rules = {
  pooling = options.value("mean", "string or table", "mean, cls, last, max, mean_sqrt_len, weighted_mean, or a list"),
  normalize = options.boolean(false, "vectors of length 1"),
  max_length = options.integer(options.none, "[1, inf)", "tokens of a text; default: what model and tokenizer take"),
  prompts = options.value({}, "table", "texts to put before a text, by name"),
  prompt_name = options.value(options.none, "string", "which of them is put there unless encode says otherwise"),
  dense = options.value({}, "table", "layers behind pooling: { weight =, bias =, act = }"),
  lower = options.boolean(false, "texts in lower case"),
}

-- The most tokens of a text that model and tokenizer take.
local function most_tokens(model, tok)
  local c, s = model.config or {}, model.settings or {}
  local most = s.positions or c.max_position_embeddings or c.n_positions
  if model.kind == "encoder-decoder" then most = nil end -- distances have no limit
  local own = tok.model_max_length
  if own and own < 1 << 24 then most = math.min(most or own, own) end
  return math.tointeger(most or 512)
end

-- Raises for more tokens than a table of positions has rows.
local function check_most(who, model, most, level)
  local positions = (model.settings or {}).positions
  if most and positions and most > positions then
    error(("%s: max_length is %d, the model has %d positions"):format(who, most, positions), level + 1)
  end
end

--- An encoder of texts from a model and a tokenizer that are at hand.
--- @param model table  an encoder, a causal model, or an encoder-decoder, whose encoder it is then
--- @param tok table
--- @param opts table?  pooling ("mean"), normalize (false), max_length, prompts, prompt_name
--- @return perilune.embed.Encoder
function M.new(model, tok, opts)
  local o = options.fill("embed.new", opts, new_rules)
  options.argument("embed.new", "model", model, "table")
  options.argument("embed.new", "tok", tok, "table")
  local self = setmetatable({ model = model, tok = tok, normalize = o.normalize, prompts = o.prompts,
    prompt_name = o.prompt_name, dense = o.dense, lower = o.lower }, Encoder)
  self.pooling = pooling_list("embed.new", o.pooling, 2)
  check_most("embed.new", model, o.max_length, 2)
  self.max_length = o.max_length or most_tokens(model, tok)
  if self.prompt_name and not self.prompts[self.prompt_name] then
    error("embed.new: " .. options.unknown("prompt", self.prompt_name, options.names(self.prompts)), 2)
  end
  if model.eval then model:eval() end
  return self
end
options.declare(M.new, { "model", "tok" }, new_rules)

local encode_rules = {
  batch_size = options.integer(32, "[1, inf)", "texts that are read at once"),
  pooling = options.value(options.none, "string or table", "instead of the encoder's own"),
  normalize = options.boolean(options.none, "instead of the encoder's own"),
  max_length = options.integer(options.none, "[1, inf)", "tokens of a text"),
  truncation = options.boolean(true, "cut longer texts; false: they are an error"),
  prompt = options.value(options.none, "string", "text to put before each"),
  prompt_name = options.value(options.none, "string", "the same by the name that the folder has for it"),
}

-- What is read: the texts with their prompt.
local function prepared(self, texts, o, level)
  local name = o.prompt_name or not o.prompt and self.prompt_name or nil
  local before = o.prompt or ""
  if name then
    before = self.prompts[name]
      or error("embed: " .. options.unknown("prompt", name, options.names(self.prompts)), level + 1)
  end
  local list = {}
  for i = 1, #texts do -- a hole in the list is a text that is missing
    local text = texts[i]
    if type(text) ~= "string" then
      error(("embed: text %d is a %s, expected a text"):format(i, type(text)), level + 1)
    end
    list[i] = before .. text
    if self.lower then list[i] = strings.lower(list[i]) end
  end
  return list
end

-- Places of texts, the longest first, so that a batch has little padding.
local function by_length(self, list)
  local lengths, order, tokens = {}, {}, 0
  for i, ids in ipairs(self.tok:encode_batch(list)) do lengths[i], order[i], tokens = #ids, i, tokens + #ids end
  table.sort(order, function (a, b)
    if lengths[a] ~= lengths[b] then return lengths[a] > lengths[b] end
    return a < b
  end)
  return order, lengths, tokens
end

local function check_lengths(lengths, most, truncation, level)
  local over, longest = 0, 0
  for i, n in ipairs(lengths) do
    if n == 0 then error(("embed: text %d has no tokens"):format(i), level + 1) end
    longest = math.max(longest, n)
    if n > most then over = over + 1 end
  end
  if over > 0 and not truncation then
    error(("embed: %d of %d texts have more than %d tokens (the longest %d); truncation = true cuts them")
      :format(over, #lengths, most, longest), level + 1)
  end
  return over
end

local function densed(self, x)
  for _, layer in ipairs(self.dense) do x = x:linear(layer.weight, layer.bias, layer.act) end
  return x
end

--- Vectors of texts, in their order.
--- @param texts string|string[]
--- @param opts table?  batch_size (32), pooling, normalize, max_length, truncation (true: longer texts are cut, and
--- counted; false: an error), prompt, prompt_name
--- @return perilune.Tensor  (N, D) f32; of one text (D)
--- @return table report  tokens: read in all; truncated: texts that were cut
function Encoder:encode(texts, opts)
  local o = options.fill("embed", opts, encode_rules)
  local single = type(texts) == "string"
  if single then texts = { texts } end
  if type(texts) ~= "table" or #texts == 0 then error("embed: expected a text or a list of texts", 2) end
  local kind = o.pooling and pooling_list("embed", o.pooling, 2) or self.pooling
  local unit = o.normalize
  if unit == nil then unit = self.normalize end
  check_most("embed", self.model, o.max_length, 2)
  local most, special = o.max_length or self.max_length, #self.tok:encode ""
  if most < special then
    error(("embed: max_length is %d, the special tokens alone are %d"):format(most, special), 2)
  end
  local list = prepared(self, texts, o, 2)
  local order, lengths, tokens = by_length(self, list)
  local over = check_lengths(lengths, most, o.truncation, 2)
  local _ <close> = peri.no_grad()
  local scope <close> = peri.scope()
  local parts, places = {}, {}
  for at = 1, #order, o.batch_size do
    local step <close> = peri.scope()
    local some = {}
    for k = at, math.min(at + o.batch_size - 1, #order) do
      some[#some + 1], places[order[k]] = list[order[k]], k - 1
    end
    local batch = self.tok:batch(some, { truncation = true, max_length = most })
    local x = densed(self, M.rows(self.model, batch, { pooling = kind }, 2))
    parts[#parts + 1] = step:keep(unit and normalized(x) or x)
  end
  local all = #parts == 1 and parts[1] or peri.cat(parts, 1)
  all = all:index_select(peri.tensor(places, "i64"), 1)
  if single then all = all:select(1, 1) end
  return scope:keep(all), { tokens = tokens, truncated = over }
end
options.declare(Encoder.encode, { "texts" }, encode_rules)

--- Cosines of all pairs.
--- @param a perilune.Tensor  (N, D)
--- @param b perilune.Tensor  (M, D)
--- @return perilune.Tensor  (N, M)
function Encoder:similarity(a, b) -- luacheck: ignore 212
  options.argument("similarity", "a", a, "tensor")
  options.argument("similarity", "b", b, "tensor")
  local function rows(x) return normalized(x.ndim == 1 and x:unsqueeze(1) or x) end
  return rows(a):matmul(rows(b).T)
end

-- ---- folders of sentence-transformers --------------------------------------------------------------

-- A file that may be absent: nil then. Raises for one that cannot be read.
local function read_json(path)
  if not peri.files.exists(path) then return nil end
  local value, message = foreign.read(path)
  return value or error(message, 0)
end

-- Names of pooling in 1_Pooling/config.json, in the order in which they stand side by side.
local modes = { { "pooling_mode_cls_token", "cls" }, { "pooling_mode_max_tokens", "max" },
  { "pooling_mode_mean_tokens", "mean" }, { "pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len" },
  { "pooling_mode_weightedmean_tokens", "weighted_mean" }, { "pooling_mode_lasttoken", "last" } }
local one_mode = { cls = "cls", max = "max", mean = "mean", mean_sqrt_len_tokens = "mean_sqrt_len",
  weightedmean = "weighted_mean", lasttoken = "last" }

local function read_pooling(path)
  local c = read_json(path) or error(path .. ": there is no such file", 0)
  if c.include_prompt == false then error(path .. ": include_prompt is false, which is not supported", 0) end
  local list = {}
  for _, name in ipairs(type(c.pooling_mode) == "string" and { c.pooling_mode } or c.pooling_mode or {}) do
    list[#list + 1] = one_mode[name] or error(("%s: %s"):format(path, options.unknown("pooling_mode", name,
      options.names(one_mode))), 0)
  end
  if #list == 0 then
    local known = {}
    for _, mode in ipairs(modes) do
      known[mode[1]] = true
      if c[mode[1]] == true then list[#list + 1] = mode[2] end
    end
    for key, value in pairs(c) do
      if key:find "^pooling_mode_" and value == true and not known[key] then
        error(("%s: %s is not supported"):format(path, key), 0)
      end
    end
  end
  if #list == 0 then error(path .. ": names no pooling", 0) end
  return list
end

local function read_dense(folder)
  local c = read_json(folder .. "/config.json") or error(folder .. "/config.json: there is no such file", 0)
  local name = tostring(c.activation_function or "torch.nn.modules.activation.Tanh"):match "[^.]+$"
  local act, unknown
  if name ~= "Identity" then act, unknown = activation.layer(name) end
  if unknown then error(("%s: activation_function %s is not supported: %s"):format(folder, name, unknown), 0) end
  local tensors, message = peri.safetensors.load(folder .. "/model.safetensors")
  if not tensors then error(message, 0) end
  local w = tensors["linear.weight"] or error(folder .. ": there is no linear.weight", 0)
  return { weight = w:to("f32"), bias = tensors["linear.bias"] and tensors["linear.bias"]:to("f32"),
    act = act and act.name }
end

local sentence_configs = { "sentence_bert_config.json", "sentence_roberta_config.json",
  "sentence_distilbert_config.json", "sentence_xlm-roberta_config.json", "sentence_mpnet_config.json",
  "sentence_albert_config.json", "sentence_xlnet_config.json", "sentence_camembert_config.json" }

-- What a folder says besides its model. Returns the model's own folder and options of M.new.
local function read_folder(folder)
  local o, place = { dense = {} }, folder
  local list = read_json(folder .. "/modules.json")
  for _, entry in ipairs(list or {}) do
    local kind, path = tostring(entry.type):match "[^.]+$", folder
    if entry.path and entry.path ~= "" then path = folder .. "/" .. entry.path end
    if kind == "Transformer" then place = path
    elseif kind == "Pooling" then o.pooling = read_pooling(path .. "/config.json")
    elseif kind == "Normalize" then o.normalize = true
    elseif kind == "Dense" then o.dense[#o.dense + 1] = read_dense(path)
    elseif kind ~= "Dropout" then error(("%s/modules.json: a module of type %s is not supported"):format(folder,
      tostring(entry.type)), 0) end
  end
  for _, name in ipairs(sentence_configs) do
    local c = read_json(place .. "/" .. name)
    if c then
      o.max_length, o.lower = math.tointeger(c.max_seq_length), c.do_lower_case == true
      break
    end
  end
  local c = read_json(folder .. "/config_sentence_transformers.json") or {}
  o.prompts = {}
  for name, text in pairs(type(c.prompts) == "table" and c.prompts or {}) do
    if type(text) == "string" then o.prompts[name] = text end
  end
  if type(c.default_prompt_name) == "string" then o.prompt_name = c.default_prompt_name end
  return place, o
end

-- llama.cpp's pooling_type of a GGUF file.
local gguf_pooling = { [1] = "mean", [2] = "cls", [3] = "last" }

local function read_gguf(path)
  local file = peri.gguf.open(path)
  local kind = file and file:get(tostring(file:get "general.architecture") .. ".pooling_type")
  return { pooling = gguf_pooling[kind] }
end

local load_rules = {
  dtype = options.value("f32", "string", "of the weights, as for models.load"),
  pack = options.boolean(true, "weights are laid out for this processor; false where they are to be trained"),
  tokenizer = options.value(options.none, "string", "path, where it lies elsewhere"),
  pooling = options.value(options.none, "string or table", "instead of what the folder says, or mean"),
  normalize = options.boolean(options.none, "instead of what the folder says, or false"),
  max_length = options.integer(options.none, "[1, inf)", "tokens of a text"),
  map = options.boolean(true, "weights may share the file's pages; false reads them, as for models.load"),
}

--- Read an encoder of texts. A folder of sentence-transformers says in modules.json and 1_Pooling/config.json how
--- texts become vectors; of any other model it is the mean over the tokens, as sentence-transformers does.
--- @param path string  Hugging Face folder or .gguf file
--- @param opts table?  dtype ("f32"), pack (true), tokenizer, pooling, normalize, max_length, map (true)
--- @return perilune.embed.Encoder|nil
--- @return string? message
function M.load(path, opts)
  local o = options.fill("embed.load", opts, load_rules)
  local place, found = path, {}
  local kind = peri.files.exists(path)
  if kind == "folder" then
    local ok, a, b = pcall(read_folder, path)
    if not ok then return nil, a end
    place, found = a, b
  elseif kind and path:find "%.gguf$" then
    found = read_gguf(path)
  end
  local models = require "perilune.models"
  local source, message = models.open(place, { map = o.map })
  if not source then return nil, message end
  local tok, model
  tok, message = peri.tokenizer.load(o.tokenizer or source.tokenizer_path or place)
  if not tok then return nil, message end
  model, message = models.load(place, { dtype = o.dtype, pack = o.pack, map = o.map })
  if not model then return nil, message end
  for _, name in ipairs { "pooling", "normalize", "max_length" } do
    if o[name] ~= nil then found[name] = o[name] end
  end
  if found.max_length then found.max_length = math.min(found.max_length, most_tokens(model, tok)) end
  return M.new(model, tok, found)
end
options.declare(M.load, { "path" }, load_rules)

return require "perilune.names"(M, "perilune.embed")
