-- tinker.lua - training as a service: the surface that the public `tinker` client speaks, over a base model and its
-- tenants. Requests are checked at once and done one after the other, each client's in its order; what takes long is a
-- future that the client asks for. Nothing here knows of sockets: handle(request) answers, work() does a piece of work.
local peri = require "perilune"
local drawing = require "perilune.serve.drawing"
local lm = require "perilune.lm"
local messages = require "perilune.serve.messages"
local options = require "perilune.options"
local queues = require "perilune.serve.queue"
local tenants = require "perilune.serve.tenant"
local wire = require "perilune.serve.wire"

--- @class perilune.serve.Service
local Service = {}
Service.__index = Service

local M = {}

local refuse = messages.refuse

local rules = {
  name = options.value(options.required, "string", "of the base model, as clients call it"),
  folder = options.value(options.required, "string", "where saved weights go"),
  tenants = options.integer(16, "[1, inf)", "most training clients at a time"),
  queued = options.integer(4096, "[1, inf)", "most requests that wait to be done"),
  kept = options.integer(4096, "[1, inf)", "most results that are kept for clients to fetch"),
  snapshots = options.integer(64, "[1, inf)", "most sets of sampling weights in memory"),
  rows = options.integer(32, "[1, inf)", "sequences that are drawn at once"),
  idle = options.number(600, "[0, inf)", "seconds after which a silent session's clients give way to new ones"),
  key = options.value(options.none, "string", "that clients must give as their API key; default: any will do"),
}

local function fresh_id()
  local file <close> = assert(io.open("/dev/urandom", "rb"))
  return (file:read(12):gsub(".", function (c) return ("%02x"):format(c:byte()) end))
end

--- A service over a model. Several training clients share its weights, which nothing changes.
--- @param model perilune.models.Model  causal, f32, not packed
--- @param tok table  its tokenizer
--- @param opts table
--- @return perilune.serve.Service
function M.new(model, tok, opts)
  local o = options.fill("serve.new", opts, rules, 3)
  options.argument("serve.new", "model", model, "table")
  options.argument("serve.new", "tok", tok, "table")
  if o.name == "" then options.raise 'serve.new: name is "", expected what clients call the model' end
  local base_vocab = (model.settings or {}).vocab
  if base_vocab and (tok.size or 0) > base_vocab + base_vocab // 100 then -- a few that a model lacks are usual
    options.raise(("serve.new: tok has %d tokens and the model %d: it is another model's"):format(tok.size, base_vocab))
  end
  local base = tenants.base(model, tok, o.name)
  local self = setmetatable({ base = base, options = o, sessions = {}, models = {}, samplers = {},
    snapshots = {}, queue = queues.new(o.queued, o.kept) }, Service)
  self.lm = lm.new(model, tok, { rows = o.rows, prefix_cache_bytes = 0 })
  return self
end
options.declare(M.new, { "model", "tok" }, rules)

--- Do a piece of the work that waits: a pass of a training step, a token of what is drawn.
--- @return boolean  whether there was any
function Service:work() return self.queue:work() end

-- ---- what is there ----

local function session_of(self, id)
  local session = self.sessions[id] or refuse(404, "session_id: there is no session %q", id)
  session.seen = os.time()
  return session
end

local function model_of(self, id)
  local model = self.models[id] or refuse(404, "model_id: there is no model %q", id)
  model.session.seen = os.time()
  return model
end

-- Let go of a model behind what it has to do.
local function unload(self, model)
  return self.queue:add { model = model, step = function ()
    if model.tenant then model.tenant:close() end
    model.tenant, self.models[model.id] = nil, nil
    return { type = "unload_model", model_id = model.id }
  end }
end

-- Clients of sessions that have been silent give way, where there are as many as may be.
local function make_room(self)
  local n, oldest = 0, nil
  for _, model in pairs(self.models) do
    n = n + 1
    if not oldest or model.session.seen < oldest.session.seen then oldest = model end
  end
  if n < self.options.tenants then return end
  if os.time() - oldest.session.seen < self.options.idle then
    refuse(429, "%d training clients are here already, the most that this server takes", n)
  end
  self.models[oldest.id] = nil
  unload(self, oldest)
end

local function check_base(self, name)
  if name and name ~= self.base.name then
    refuse(404, "base_model: %q is not here, %q is", name, self.base.name)
  end
end

local segments = { weights = true, sampler_weights = true }

-- The folder that a tinker:// path means.
local function folder_of(self, path, field, usual)
  local id, kind, name = path:match "^tinker://([%w:_-]+)/([%w_]+)/([%w._-]+)$"
  if not id or not segments[kind] or name:find "^%." then
    refuse(400, "%s: %q is no tinker://MODEL/%s/NAME", field or "path", path, usual or "weights")
  end
  return ("%s/%s/%s"):format(self.options.folder, id:gsub(":", "_"), kind) .. "/" .. name, kind
end

-- What is saved at a path, which a field of a request says.
local function saved_at(self, path, field, usual)
  local folder, kind = folder_of(self, path, field, usual)
  if peri.files.exists(folder) ~= "folder" then refuse(404, "%s: there is no %s", field, path) end
  local saved, message = tenants.saved(folder)
  if not saved then refuse(404, "%s: %s: %s", field, path, message) end
  if saved.base ~= self.base.name then
    refuse(400, "%s: %s is of the base model %q, here is %q", field, path, tostring(saved.base), self.base.name)
  end
  return folder, saved, kind
end

local function name_of(name, counter)
  if name == nil then return ("%06d"):format(counter) end
  if not name:find "^[%w_-][%w._-]*$" or #name > 100 then
    refuse(400, "path: %q is no name: letters, digits, -, _ and dots are expected", name)
  end
  return name
end

local function add_model(self, session, seq_id, config)
  local id = ("%s:train:%d"):format(session.id, seq_id)
  if self.models[id] then refuse(409, "model_seq_id: %d was used before", seq_id) end
  make_room(self)
  local model = { id = id, session = session, config = config, order = queues.order(), saves = 0 }
  self.models[id] = model
  return model
end

local function tenant_of(model)
  return model.tenant or refuse(404, "model_id: the model was not made: %s", model.failed or "it was unloaded")
end

-- ---- requests ----

local does = {}

function does.client_config() return { parallel_fwdbwd_chunks = true } end
function does.client_dynamic_config() return {} end
function does.healthz() return { status = "ok" } end
function does.telemetry() return { status = "accepted" } end

function does.get_server_capabilities(self)
  return { supported_models = peri.json.array { { model_name = self.base.name, max_context_length = self.base.context,
    trainable = true, sampleable = true } } }
end

function does.create_session(self)
  local session = { id = fresh_id(), models = {}, seen = os.time() }
  self.sessions[session.id] = session
  return { type = "create_session", session_id = session.id }
end

function does.session_heartbeat(self, b)
  session_of(self, b.session_id)
  return { type = "session_heartbeat" }
end

-- A model is made as a job, at the place 0 of its client.
local function make_model(self, b, config, path, whole)
  local session = session_of(self, b.session_id)
  check_base(self, b.base_model)
  local asked = session.models[b.model_seq_id] -- the same request, sent once more
  if asked then return asked end
  config.seed = config.seed or string.unpack("<I4", fresh_id())
  local model = add_model(self, session, b.model_seq_id, config)
  local future = self.queue:add { model = model, step = function ()
    local ok, made = pcall(tenants.new, self.base, config)
    if ok and path then
      local loaded, message = pcall(made.load, made, path, whole)
      if not loaded then
        made:close()
        ok, made = false, message
      end
    end
    if not ok then
      self.models[model.id], model.failed = nil, messages.plain(made)
      error(made, 0)
    end
    model.tenant = made
    return { type = path and "load_weights" or "create_model", model_id = model.id, path = path and b.path or nil }
  end }
  session.models[b.model_seq_id] = future
  return future
end

function does.create_model(self, b) return make_model(self, b, b.lora_config) end

function does.unload_model(self, b)
  local model = model_of(self, b.model_id)
  return unload(self, model)
end

function does.get_info(self, b)
  local model = model_of(self, b.model_id)
  return { type = "get_info", model_id = model.id, is_lora = true, lora_rank = model.config.rank,
    model_name = self.base.name, model_data = { arch = self.base.model.config.model_type, model_name = self.base.name,
      tokenizer_id = self.base.name } }
end

function does.forward_backward(self, b)
  local model = model_of(self, b.model_id)
  return self.queue:add_at(model, b.seq_id, function ()
    local step
    return { what = "forward_backward", step = function ()
      step = step or tenant_of(model):forward_backward(b.rows, b.entry, b.config, not b.forward_only)
      return step()
    end }
  end)
end

function does.optim_step(self, b)
  local model = model_of(self, b.model_id)
  return self.queue:add_at(model, b.seq_id, function ()
    return { step = function () return { metrics = tenant_of(model):optim_step(b.adam_params) } end }
  end)
end

local function save(self, b, kind)
  local model = model_of(self, b.model_id)
  model.saves = model.saves + 1
  local path = ("tinker://%s/%s/%s"):format(model.id, kind, name_of(b.path, model.saves))
  local folder = folder_of(self, path)
  if peri.files.exists(folder) and not b.overwrite and kind == "weights" then
    refuse(409, "path: %s is there already; overwrite replaces it", path)
  end
  return model, path, folder
end

function does.save_weights(self, b)
  local again = b.seq_id and self.models[b.model_id] and self.models[b.model_id].order.asked[b.seq_id]
  if again then return again end
  local model, path, folder = save(self, b, "weights")
  return self.queue:add_at(model, b.seq_id, function ()
    return { step = function ()
      tenant_of(model):save(folder:match "^(.*)/[^/]*$", folder:match "[^/]*$", true)
      return { type = "save_weights", path = path }
    end }
  end)
end

-- Keep a set of sampling weights; of many the oldest goes.
local function keep_snapshot(self, sampler)
  table.insert(self.snapshots, sampler)
  while #self.snapshots > self.options.snapshots do
    local old = table.remove(self.snapshots, 1)
    for _, t in pairs(old.weights) do t:release() end
    old.weights = nil
    if old.id then self.samplers[old.id] = nil end
  end
end

function does.save_weights_for_sampler(self, b)
  local again = b.seq_id and self.models[b.model_id] and self.models[b.model_id].order.asked[b.seq_id]
  if again then return again end
  local model, path, folder = save(self, b, "sampler_weights")
  return self.queue:add_at(model, b.seq_id, function ()
    return { step = function ()
      local tenant = tenant_of(model)
      if b.path then
        tenant:save(folder:match "^(.*)/[^/]*$", folder:match "[^/]*$", false)
        return { type = "save_weights_for_sampler", path = path }
      end
      local sampler = { id = ("%s:sample:%s"):format(model.session.id, fresh_id()), config = model.config,
        weights = tenant:snapshot() }
      self.samplers[sampler.id] = sampler
      keep_snapshot(self, sampler)
      return { type = "save_weights_for_sampler", sampling_session_id = sampler.id }
    end }
  end)
end

function does.load_weights(self, b)
  local folder, saved = saved_at(self, b.path, "path")
  if b.session_id then
    if not b.model_seq_id then refuse(400, "model_seq_id is missing: it goes with session_id") end
    return make_model(self, b, saved.config, folder, b.optimizer)
  end
  if not b.model_id then refuse(400, "model_id is missing, and so is session_id") end
  local model = model_of(self, b.model_id)
  for _, name in ipairs { "rank", "train_attn", "train_mlp", "train_unembed" } do
    local here, there = model.config[name], saved.config[name]
    if here ~= there then
      refuse(400, "path: its %s is %s, that of %s is %s", name, tostring(there), model.id, tostring(here))
    end
  end
  return self.queue:add_at(model, b.seq_id, function ()
    return { step = function ()
      tenant_of(model):load(folder, b.optimizer)
      return { type = "load_weights", path = b.path, model_id = model.id }
    end }
  end)
end

function does.weights_info(self, b)
  local _, saved = saved_at(self, b.tinker_path, "tinker_path")
  local c = saved.config
  return { base_model = saved.base, is_lora = true, lora_rank = c.rank, train_unembed = c.train_unembed,
    train_mlp = c.train_mlp, train_attn = c.train_attn }
end

-- The adapter that a sampler draws with, nil of the base model.
local function adapter_of(self, sampler)
  if sampler.base then return nil end
  if not sampler.weights then refuse(410, "sampling_session_id: these weights are no longer kept") end
  return self.base:drawing(sampler.config, sampler.weights)
end

-- A sampler of saved weights, or of the base model (path nil).
local function open_sampler(self, path)
  if not path then return { base = true } end
  local folder, saved = saved_at(self, path, "model_path", "sampler_weights")
  local weights, message = tenants.weights(folder)
  if not weights then refuse(404, "model_path: %s: %s", path, message) end
  local sampler = { weights = weights, config = saved.config, path = path }
  keep_snapshot(self, sampler)
  return sampler
end

function does.create_sampling_session(self, b)
  local session = session_of(self, b.session_id)
  local id = ("%s:sample:%d"):format(session.id, b.sampling_session_seq_id)
  if not b.model_path and not b.base_model then refuse(400, "base_model and model_path are missing: one is needed") end
  check_base(self, b.base_model)
  if not self.samplers[id] then
    local sampler = open_sampler(self, b.model_path)
    sampler.id = id
    self.samplers[id] = sampler
  end
  return { type = "create_sampling_session", sampling_session_id = id }
end

function does.asample(self, b)
  local sampler
  if b.sampling_session_id then
    sampler = self.samplers[b.sampling_session_id]
      or refuse(404, "sampling_session_id: there is no %q; weights of the last %d are kept", b.sampling_session_id,
        self.options.snapshots)
    local again = b.seq_id and sampler.asked and sampler.asked[b.seq_id]
    if again and self.queue:is_future(again) then return again end
  else
    if not (b.model_path or b.base_model) then
      refuse(400, "sampling_session_id, model_path and base_model are missing: one is needed")
    end
    check_base(self, b.base_model)
    sampler = open_sampler(self, b.model_path)
  end
  local job, step = { what = "sample", sampler = sampler, body = b }, nil
  function job.step()
    step = step or drawing.steps(self.base, self.lm, self.queue, job, adapter_of(self, sampler))
    return step()
  end
  local future = self.queue:add(job)
  future.sequences = peri.json.array {}
  for i = 1, b.num_samples do future.sequences[i] = ("%s:%d"):format(future.id, i) end
  if b.sampling_session_id and b.seq_id then
    sampler.asked = sampler.asked or {}
    sampler.asked[b.seq_id] = future
  end
  return future
end

-- ---- answering ----

local plain = { ["client/config"] = "client_config", ["client/dynamic_config"] = "client_dynamic_config",
  healthz = "healthz", telemetry = "telemetry", get_server_capabilities = "get_server_capabilities" }
local gets = { healthz = true, get_server_capabilities = true }

local function json(status, value)
  return { status = status, type = "application/json", body = peri.json.encode(value) }
end

--- An error as clients read it.
--- @param status integer
--- @param message string
--- @return table response
function M.error(status, message)
  message = messages.plain(message)
  return json(status, { error = message, detail = message })
end

-- Whether a future has something to say: its response, else nil.
local function answer_of(future, accept)
  if not future.done then return nil end
  local kind, body = wire.write(future.what, future.result, accept)
  return { status = 200, type = kind, body = body }
end

local function retrieve(self, b, accept)
  local future = self.queue:find(b.request_id)
  local function look() return answer_of(future, accept) end
  return look() or { wait = look, otherwise = json(408, { type = "try_again", request_id = future.id,
    queue_state = "active" }) }
end

-- A session is over: its clients are, behind what they have to do.
local function finish(self, id)
  local session = session_of(self, id)
  self.sessions[id] = nil
  for _, model in pairs(self.models) do
    if model.session == session then unload(self, model) end
  end
  return { status = "ok" }
end

local known = table.concat(options.names(plain), ", ") .. ", " .. table.concat(wire.names(), ", ")
  .. ", sessions/SESSION/finish"

local function nothing_at(path)
  refuse(404, "there is nothing at %s; behind /api/v1/ there are: %s", messages.shown(path), known)
end

local function route(self, request)
  local name = tostring(request.path):match "^/api/v1/([%w_/]+)$" or nothing_at(request.path)
  local own = plain[name]
  local method = gets[name] and "GET" or "POST"
  local finished = name:match "^sessions/(%w+)/finish$"
  if not own and not finished and not wire.is_known(name) then nothing_at(request.path) end
  if request.method ~= method then refuse(405, "%s is for %s", request.path, method) end
  local accept = request.headers.accept or ""
  if own then return json(200, does[own](self)) end
  if finished then return json(200, finish(self, finished)) end
  local kind = request.headers["content-type"] or ""
  local ok, b = pcall(wire.read, name, request.body, kind, self.base)
  if not ok then
    local model_id, seq_id = wire.place(request.body, kind)
    local model = model_id and self.models[model_id]
    if model and seq_id and not model.order.asked[seq_id] then queues.pass_over(model.order, seq_id) end
    refuse(422, "%s", messages.plain(b))
  end
  if name == "retrieve_future" then return retrieve(self, b, accept) end
  local result = does[name](self, b)
  if self.queue:is_future(result) then
    return json(200, { request_id = result.id, model_id = result.model_id, sample_sequence_ids = result.sequences })
  end
  return json(200, result)
end

-- Who may ask: no page of a browser, and who has the key where there is one.
local function check_caller(self, request)
  local h = request.headers
  if h.origin then refuse(403, "requests of web pages are not answered") end
  local host = (h.host or ""):gsub(":%d+$", "")
  if self.hosts and not self.hosts[host] then refuse(403, "host %q is not this server's", h.host or "") end
  if self.options.key and h["x-api-key"] ~= self.options.key and h.authorization ~= "Bearer " .. self.options.key then
    refuse(401, "the API key is missing or another")
  end
end

--- Answer a request { method, path, headers (names in lower case), body }: a response { status, type, body }, or one
--- that is not yet to be had: { wait = function that gives it when it can, otherwise = what to say after a while }.
--- @param request table
--- @return table
function Service:handle(request)
  request = { method = request.method, path = request.path, headers = request.headers or {}, body = request.body or "" }
  local ok, response = pcall(function ()
    check_caller(self, request)
    return route(self, request)
  end)
  if ok then return response end
  if messages.is_refusal(response) then return M.error(response.status, response.message) end
  if peri.interrupted() then error(response, 0) end
  return M.error(500, messages.plain(response))
end

return require "perilune.names"(M, "perilune.serve")
