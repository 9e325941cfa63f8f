-- wire.lua - bodies of the training service: what a request must hold, field by field, and how results are written, as
-- JSON or as Tinker's Protocol Buffers. What is wrong raises a message that names the field.
local peri = require "perilune"
local losses = require "perilune.serve.losses"
local messages = require "perilune.serve.messages"
local options = require "perilune.options"
local proto = require "perilune.serve.proto"

local M = {}

local shown = messages.shown

local function fail(format, ...) error(format:format(...), 0) end

local need = options.required
local function text(doc) return options.value(need, "string", doc) end
local function may(types, doc) return options.value(options.none, types, doc) end
local seq = options.integer(options.none, "[0, 2147483647]", "place of the request in its client's order")
local note = may("table", "of the user; not kept")
local kind = may("string", "as the client calls the request")
local ttl = may("number", "accepted; nothing is deleted here")

local lora_rules = {
  rank = options.integer(need, "[1, 1024]", "of the two matrices"),
  seed = options.integer(options.none, nil, "of the first matrices"),
  train_unembed = options.boolean(true, "the head"), train_mlp = options.boolean(true, "what is no attention"),
  train_attn = options.boolean(true, "attention"),
}
local adam_rules = {
  learning_rate = options.number(1e-4, "[0, inf)"), beta1 = options.number(0.9, "[0, 1)"),
  beta2 = options.number(0.95, "[0, 1)"), eps = options.number(1e-12, "[0, inf)"),
  weight_decay = options.number(0, "[0, inf)"), grad_clip_norm = options.number(0, "[0, inf)", "0: none"),
}
local sampling_rules = {
  max_tokens = options.integer(options.none, "[1, 1048576]"), seed = options.integer(options.none),
  stop = may("string or table", "texts or ids"), temperature = options.number(1, "[0, 1000]"),
  top_k = options.integer(-1, "[-1, inf)", "-1: all"), top_p = options.number(1, "(0, 1]"),
}

-- Fields of each body, by the last part of the path.
local bodies = {
  create_session = { tags = note, user_metadata = note, sdk_version = may "string", project_id = may "string",
    display_name = may "string" },
  session_heartbeat = { session_id = text() },
  create_model = { session_id = text(), model_seq_id = options.integer(need, "[0, inf)"), base_model = text(),
    user_metadata = note, lora_config = may "table", optimizer_config = may "table" },
  unload_model = { model_id = text() },
  get_info = { model_id = text() },
  forward_backward = { model_id = text(), seq_id = seq, forward_backward_input = options.value(need, "table"),
    forward_only = options.boolean(false) },
  optim_step = { model_id = text(), seq_id = seq, adam_params = options.value(need, "table") },
  save_weights = { model_id = text(), seq_id = seq, path = may "string", ttl_seconds = ttl, user_metadata = note,
    overwrite = options.boolean(false) },
  save_weights_for_sampler = { model_id = text(), seq_id = seq, path = may "string", ttl_seconds = ttl,
    user_metadata = note, sampling_session_seq_id = options.integer(options.none, "[0, inf)"),
    kind = options.choice("snapshot", { "snapshot" }) },
  load_weights = { model_id = may "string", seq_id = seq, session_id = may "string",
    model_seq_id = options.integer(options.none, "[0, inf)"), base_model = may "string", user_metadata = note,
    path = text(), optimizer = options.boolean(need), optimizer_config = may "table",
    weights_access_token = may "string" },
  create_sampling_session = { session_id = text(), sampling_session_seq_id = options.integer(need, "[0, inf)"),
    base_model = may "string", model_path = may "string" },
  asample = { num_samples = options.integer(1, "[1, 1024]"), prompt = options.value(need, "table"),
    sampling_params = options.value(need, "table"), base_model = may "string", model_path = may "string",
    sampling_session_id = may "string", seq_id = options.integer(options.none, "[0, inf)"),
    prompt_logprobs = options.boolean(false),
    topk_prompt_logprobs = options.integer(0, "[0, 0]", "is not given here"),
    topk_sample_logprobs = options.integer(0, "[0, 0]", "is not given here"),
    prompt_alt_tokens_k = options.integer(0, "[0, 0]", "is not given here"),
    record_stability_info = options.choice(false, { false }, "of stable_reinforce, which is not here") },
  retrieve_future = { request_id = text(), allow_metadata_only = options.boolean(false) },
  weights_info = { tinker_path = text() },
}
for _, rules in pairs(bodies) do rules.type = rules.type or kind end

-- Rules over a table: errors without the place in our sources.
local function filled(what, given, rules)
  local ok, out = pcall(options.fill, what, given, rules)
  if ok then return out end
  return fail("%s", (tostring(out):gsub("^[^%s:]+:%d+: ", "")))
end

-- ---- datums ----

local FLOAT <const>, INT64 <const>, INT32 <const> = 1, 2, 3 -- of Tinker's enum DType
local formats = { [FLOAT] = { "f", 4 }, [INT64] = { "i8", 8 }, [INT32] = { "i4", 4 } }

-- The numbers in a string of little-endian ones.
local function unpacked(what, bytes, format, size)
  if #bytes % size ~= 0 then fail("%s: %d bytes are no whole numbers of %d bytes", what, #bytes, size) end
  local list, at = {}, 1
  format = "<" .. format
  for i = 1, #bytes // size do list[i], at = string.unpack(format, bytes, at) end
  return list
end

local dtypes = options.choice(options.none, { "float32", "int64", "int32" })

local csr = { { "values", "bytes" }, { "crow_indices", "bytes" }, { "col_indices", "bytes" } }
local tensor = { { "dense", "bytes" }, { "sparse_csr", csr }, { "dtype", "int" }, { "shape", "int", "list" } }
local chunk = { { "encoded_text", { { "tokens", "bytes" } } }, { "image", "bytes" }, { "dmel", "bytes" } }
local datum = { { "model_input", chunk, "list" }, { "loss_fn_inputs", tensor, "map" } }
local setting = { { "number", "double" }, { "text", "bytes" } }
local request = { { "model_id", "bytes" }, { "seq_id", "int" }, { "data", datum, "list" }, { "loss_fn", "bytes" },
  { "loss_fn_config", "double", "map" }, { "forward_only", "bool" }, { "loss_fn_config_v2", setting, "map" } }

-- The proto's form of a request as the JSON's.
local function from_proto(bytes)
  local m = proto.read(bytes, request, "ForwardBackwardRequest")
  local data, config = {}, {}
  for i, d in ipairs(m.data or {}) do
    local chunks, inputs = {}, {}
    for k, c in ipairs(d.model_input or {}) do
      chunks[k] = { type = c.image and "image" or c.dmel and "dmel" or "encoded_text",
        tokens = c.encoded_text
          and unpacked(("data[%d].model_input"):format(i - 1), c.encoded_text.tokens or "", "i4", 4) }
    end
    for name, t in pairs(d.loss_fn_inputs or {}) do
      local what = ("data[%d].loss_fn_inputs.%s"):format(i - 1, name)
      local format = formats[t.dtype or 0] or fail("%s: dtype %d is not known", what, t.dtype or 0)
      inputs[name] = { dtype = t.dtype == FLOAT and "float32" or "int64", shape = t.shape,
        sparse_crow_indices = t.sparse_csr and {}, data = unpacked(what, t.dense or "", table.unpack(format)) }
    end
    data[i] = { model_input = { chunks = chunks }, loss_fn_inputs = inputs }
  end
  for name, v in pairs(m.loss_fn_config or {}) do config[name] = string.unpack("<d", v) end
  for name, v in pairs(m.loss_fn_config_v2 or {}) do config[name] = v.text or v.number end
  return { model_id = m.model_id, seq_id = m.seq_id ~= 0 and m.seq_id or nil, forward_only = m.forward_only or false,
    forward_backward_input = { data = data, loss_fn = m.loss_fn or "", loss_fn_config = config } }
end

local LIST <const> = getmetatable(peri.json.array {})

local function is_list(v)
  if type(v) ~= "table" or #v > 0 then return type(v) == "table" end
  local meta = getmetatable(v) -- of an empty object: its own
  return next(v) == nil and (meta == nil or meta == LIST)
end

-- Take the nulls out of objects, where an absent key means the same; in a list one has a place, and is refused there.
local function without_null(t)
  local list = getmetatable(t) == LIST
  for k, v in pairs(t) do
    if v == peri.json.null then t[k] = list and v or nil
    elseif type(v) == "table" then without_null(v) end
  end
  return t
end

-- An id of the vocabulary as an integer; nil: it is none.
local function id_in(base, v)
  local n = type(v) == "number" and math.tointeger(v)
  return n and n >= 0 and n < base.vocab and n or nil
end

-- The tokens of a ModelInput, ids of the vocabulary.
local function tokens_of(what, input, base, least)
  local m = filled(what, input, { chunks = options.value(need, "table") })
  local list = {}
  if next(m.chunks) ~= nil and not is_list(m.chunks) then
    fail("%s.chunks is %s, expected a list", what, shown(m.chunks))
  end
  for k, c in ipairs(m.chunks) do
    local name = ("%s.chunks[%d]"):format(what, k - 1)
    if type(c) ~= "table" then fail("%s is no object", name) end
    if c.type ~= nil and c.type ~= "encoded_text" then
      fail("%s is of type %s; only encoded_text is known here", name, shown(c.type))
    end
    if not is_list(c.tokens) then fail("%s.tokens is no list of ids", name) end
    for i, id in ipairs(c.tokens) do
      list[#list + 1] = id_in(base, id)
        or fail("%s.tokens[%d] is %s, expected an id in [0, %d)", name, i - 1, shown(id), base.vocab)
    end
  end
  if #list < least then fail("%s has %d tokens, expected at least %d", what, #list, least) end
  if base.context and #list > base.context then
    fail("%s has %d tokens, more than the %d that the model reads", what, #list, base.context)
  end
  return list
end

local LARGEST <const> = string.unpack("<f", "\xff\xff\x7f\x7f")
local ROUNDING <const> = 1e-4 -- of a logit less the logarithm of a sum

-- The numbers of a TensorData, as many as there are tokens.
local function numbers_of(what, t, count, base)
  if is_list(t) and type(t) == "table" and t.data == nil then t = { data = t } end
  local td = filled(what, t, { data = options.value(need, "table"), dtype = dtypes, shape = may "table",
    sparse_crow_indices = may "table", sparse_col_indices = may "table" })
  if td.sparse_crow_indices or td.shape and #td.shape > 1 then
    fail("%s has %d dimensions, expected one: a number for each token", what, td.shape and #td.shape or 2)
  end
  if not is_list(td.data) or #td.data ~= count or td.shape and td.shape[1] ~= count then
    fail("%s has shape (%s), expected (%d): a number for each token of model_input", what,
      td.shape and shown(td.shape[1]) or #td.data, count)
  end
  local ids, logs = what:find "target_tokens$", what:find "%.logprobs$"
  for i, v in ipairs(td.data) do
    local wanted = (type(v) ~= "number" or v ~= v or math.abs(v) > LARGEST) and "a finite number of 32 bits"
      or ids and not id_in(base, v) and ("an id in [0, %d)"):format(base.vocab)
      or logs and v > ROUNDING and "a log-probability, which is 0 at most"
    if wanted then fail("%s[%d] is %s, expected %s", what, i - 1, shown(v), wanted) end
  end
  return td.data
end

local function row_of(what, d, entry, base)
  d = filled(what, d, { model_input = options.value(need, "table"), loss_fn_inputs = options.value(need, "table") })
  local tokens = tokens_of(what .. ".model_input", d.model_input, base, 1)
  local known, inputs = {}, {}
  for _, name in ipairs(entry.inputs) do known[name] = need end
  for name in pairs(entry.may) do known[name] = options.none end
  for _, name in ipairs(options.names(d.loss_fn_inputs)) do
    if known[name] == nil then
      fail("%s.loss_fn_inputs: %s", what, options.unknown("input", name, options.names(known)))
    end
  end
  for name, wanted in pairs(known) do
    local t = d.loss_fn_inputs[name]
    if t == nil and wanted == need then fail("%s.loss_fn_inputs.%s is missing", what, name) end
    if t ~= nil then
      if type(t) ~= "table" then fail("%s.loss_fn_inputs.%s is no tensor", what, name) end
      inputs[name] = numbers_of(("%s.loss_fn_inputs.%s"):format(what, name), t, #tokens, base)
    end
  end
  return { tokens = tokens, inputs = inputs }
end

local refine = {}

function refine.forward_backward(b, base)
  local input = filled("forward_backward_input", b.forward_backward_input, { data = options.value(need, "table"),
    loss_fn = text(), loss_fn_config = may "table" })
  local entry, message = losses.find(input.loss_fn)
  if not entry then fail("%s", message) end
  if not is_list(input.data) or #input.data == 0 then fail "forward_backward_input.data is no list of datums" end
  b.entry, b.config, b.rows = entry, filled("loss_fn_config", input.loss_fn_config or {}, entry.config), {}
  for i, d in ipairs(input.data) do
    local what = ("data[%d]"):format(i - 1)
    if type(d) ~= "table" then fail("%s is no object", what) end
    b.rows[i] = row_of(what, d, entry, base)
  end
end

local function check_optimizer(b)
  if b.optimizer_config and (b.optimizer_config.type or "adamw") ~= "adamw" then
    fail("optimizer_config.type is %s; only adamw is known here", shown(b.optimizer_config.type))
  end
end

function refine.create_model(b)
  b.lora_config = filled("lora_config", b.lora_config or { rank = 32 }, lora_rules)
  local c = b.lora_config
  if not (c.train_attn or c.train_mlp or c.train_unembed) then
    fail "lora_config: train_attn, train_mlp and train_unembed are false, so nothing would be trained"
  end
  check_optimizer(b)
end

function refine.load_weights(b) check_optimizer(b) end

function refine.optim_step(b)
  b.adam_params.type = nil
  b.adam_params = filled("adam_params", b.adam_params, adam_rules)
end

function refine.asample(b, base)
  b.prompt = tokens_of("prompt", b.prompt, base, 1)
  local p = filled("sampling_params", b.sampling_params, sampling_rules)
  local left = (base.context or 1 << 20) - #b.prompt
  if left < 1 then fail("prompt has %d tokens and the model reads %d, so none can follow", #b.prompt, base.context) end
  p.max_tokens = math.min(p.max_tokens or left, left)
  if type(p.stop) == "string" then p.stop = { p.stop } end
  if p.stop and not is_list(p.stop) then
    fail("sampling_params.stop is %s, expected a text or a list of texts and ids", shown(p.stop))
  end
  for i, s in ipairs(p.stop or {}) do
    if not (type(s) == "string" and s ~= "" or id_in(base, s)) then
      fail("sampling_params.stop[%d] is %s, expected a text or an id in [0, %d)", i - 1, shown(s), base.vocab)
    end
  end
  b.sampling_params = p
end

--- The body of a request with what is left out filled in. Raises a message that names the field which is wrong.
--- @param name string  last part of the path
--- @param body string
--- @param content_type string
--- @param base perilune.serve.Base
--- @return table
function M.read(name, body, content_type, base)
  local given
  if content_type:find "x%-protobuf" then
    if name ~= "forward_backward" then fail("%s: expected JSON", name) end
    given = from_proto(body)
  else
    local value, message = peri.json.decode(body == "" and "{}" or body)
    if value == nil then fail("the body is no JSON: %s", (tostring(message):gsub("^json%.decode: ", ""))) end
    if type(value) ~= "table" or body:find "^%s*%[" then fail "the body is no object" end
    given = without_null(value)
  end
  local b = filled(name, given, bodies[name])
  if refine[name] then refine[name](b, base) end
  return b
end

--- What a body may be of: the last parts of paths.
--- @return string[]
function M.names() return options.names(bodies) end

--- The fields of a body.
--- @param name string
--- @return string[]
function M.fields(name) return options.names(bodies[name]) end

--- Whether a body is known under a name.
--- @param name string
--- @return boolean
function M.is_known(name) return bodies[name] ~= nil end

--- The client's place of a request that could not be read, so that what follows it need not wait: nil where not even
--- that can be.
--- @return string? model_id
--- @return integer? seq_id
function M.place(body, content_type)
  local ok, given = pcall(function ()
    if content_type:find "x%-protobuf" then
      return proto.read(body, { { "model_id", "bytes" }, { "seq_id", "int" }, { "data", "bytes", "list" },
        { "loss_fn", "bytes" }, { "config", "bytes", "list" }, { "forward_only", "bool" }, { "v2", "bytes", "list" } },
        "request")
    end
    return peri.json.decode(body)
  end)
  if not ok or type(given) ~= "table" then return nil end
  return type(given.model_id) == "string" and given.model_id or nil, math.tointeger(given.seq_id)
end

-- ---- results ----

local batched = { { "data", "bytes" }, { "offsets", "bytes" }, { "dtype", "int" } }
local record = { { "type_tag", "bytes" }, { "fields", batched, "map" }, { "num_datums", "int" } }
local output = { { "loss_fn_output_type", "bytes" }, { "loss_fn_outputs", record, "list" },
  { "metrics", "double", "map" } }
local sequence = { { "stop_reason", "int" }, { "tokens", "bytes" }, { "logprobs", "bytes" } }
local samples = { { "sequences", sequence, "list" }, { "prompt_logprobs", "bytes" } }

-- Numbers as a string of little-endian ones.
local function packed(list, format)
  local out = {}
  for i, v in ipairs(list) do out[i] = string.pack(format, v) end
  return table.concat(out)
end
local function floats(list) return packed(list, "<f") end

local writers = {}

function writers.forward_backward(result, as_proto)
  local metrics = { ["loss:sum"] = result.loss }
  if as_proto then
    local data, offsets, at = {}, { string.pack("<i8", 0) }, 0
    for i, list in ipairs(result.logprobs) do
      data[i], at = floats(list), at + 4 * #list
      offsets[i + 1] = string.pack("<i8", at)
    end
    local field = { data = table.concat(data), offsets = table.concat(offsets), dtype = FLOAT }
    return proto.write({ loss_fn_output_type = "ArrayRecord", metrics = metrics, loss_fn_outputs = { {
      type_tag = "ArrayRecord", fields = { logprobs = field }, num_datums = #result.logprobs } } }, output)
  end
  local outputs = peri.json.array {}
  for i, list in ipairs(result.logprobs) do
    outputs[i] = { logprobs = { data = peri.json.array(list), dtype = "float32", shape = { #list } } }
  end
  return { loss_fn_output_type = "ArrayRecord", loss_fn_outputs = outputs, metrics = metrics }
end

function writers.sample(result, as_proto)
  if as_proto then
    local list = {}
    for i, s in ipairs(result.sequences) do
      list[i] = { stop_reason = s.stop_reason == "length" and 1 or 0, tokens = packed(s.tokens, "<i4"),
        logprobs = floats(s.logprobs) }
    end
    local prompt
    if result.prompt_logprobs then prompt = string.pack("<f", 0 / 0) .. floats(result.prompt_logprobs) end
    return proto.write({ sequences = list, prompt_logprobs = prompt }, samples)
  end
  local list = peri.json.array {}
  for i, s in ipairs(result.sequences) do
    list[i] = { stop_reason = s.stop_reason, tokens = peri.json.array(s.tokens),
      logprobs = peri.json.array(s.logprobs) }
  end
  local prompt
  if result.prompt_logprobs then
    prompt = peri.json.array { peri.json.null }
    table.move(result.prompt_logprobs, 1, #result.prompt_logprobs, 2, prompt)
  end
  return { type = "sample", sequences = list, prompt_logprobs = prompt }
end

--- A result as a body.
--- @param what string?  "forward_backward" or "sample"; else the result is the body
--- @param result table
--- @param accept string  what the client takes
--- @return string content_type
--- @return string body
function M.write(what, result, accept)
  local writer, as_proto = writers[what], accept:find "x%-protobuf" ~= nil
  local body = writer and writer(result, as_proto) or result
  if type(body) == "string" then return "application/x-protobuf", body end
  return "application/json", peri.json.encode(body, { nan = "null" })
end

return M
