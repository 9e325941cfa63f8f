-- tinker.lua - training as a service: the surface that the public `tinker` client speaks, over a base model and its
-- tenants. Requests are checked at once and done one after the other, each client's in its order; what takes long is a
-- future that the client asks for. Nothing here knows of sockets: handle(request) answers, work() does a piece of work.
local peri = require "perilune"
local messages = require "perilune.serve.messages"
local lm = require "perilune.lm"
local options = require "perilune.options"
local tenants = require "perilune.serve.tenant"
local wire = require "perilune.serve.wire"

--- @class perilune.serve.Service
local Service = {}
Service.__index = Service

local M = {}

local rules = {
  name = options.value(options.required, "string", "of the base model, as clients call it"),
  folder = options.value(options.required, "string", "where saved weights go"),
  tenants = options.integer(16, "[1, inf)", "most training clients at a time"),
  queued = options.integer(4096, "[1, inf)", "most requests that wait to be done"),
  kept = options.integer(4096, "[1, inf)", "most results that are kept for clients to fetch"),
  snapshots = options.integer(64, "[1, inf)", "most sets of sampling weights in memory"),
  rows = options.integer(32, "[1, inf)", "sequences that are drawn at once"),
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
  local base = tenants.base(model, tok, o.name)
  local self = setmetatable({ base = base, options = o, sessions = {}, models = {}, samplers = {}, futures = {},
    order = {}, jobs = {}, count = 0, oldest = 1, snapshots = {} }, Service)
  self.lm = lm.new(model, tok, { rows = o.rows, prefix_cache_bytes = 0 })
  return self
end
options.declare(M.new, { "model", "tok" }, rules)

-- A refusal that the client gets as a status.
local Refused = {}
local function refuse(status, format, ...)
  error(setmetatable({ status = status, message = format:format(...) }, Refused), 0)
end

-- ---- futures ----

local function future_of(self, model_id)
  self.count = self.count + 1
  local future = { id = ("%d"):format(self.count), model_id = model_id }
  self.futures[future.id] = future
  self.order[self.count] = future
  while self.count - self.oldest >= self.options.kept + #self.jobs and self.order[self.oldest].done do
    self.futures[self.order[self.oldest].id] = nil
    self.order[self.oldest] = nil
    self.oldest = self.oldest + 1
  end
  return future
end

local function settle(future, what, result)
  future.done, future.what, future.result = true, what, result
end

local function settle_error(future, message, user)
  settle(future, nil, { error = message, category = user and "user" or "server" })
end

-- ---- jobs: what is done one after the other ----

-- A job { future, step() -> result or nil } behind those that wait; a model's own wait for their turn.
local function queue(self, job)
  if #self.jobs >= self.options.queued then refuse(429, "%d requests wait already: try later", #self.jobs) end
  job.future = job.future or future_of(self, job.model and job.model.id)
  self.jobs[#self.jobs + 1] = job
  return job.future
end

-- Of a training client: seq_ids are done in their order, whatever order they come in, and each once.
local function queue_of(self, model, seq_id, make)
  local again = seq_id and model.asked[seq_id]
  if again then return again end
  if seq_id and seq_id < model.next_seq then refuse(409, "seq_id %d was done before", seq_id) end
  local job = make()
  job.model, job.seq_id = model, seq_id
  local future = queue(self, job)
  if seq_id then model.asked[seq_id] = future end
  return future
end

-- A request of a place that cannot be done: those behind it need not wait for it.
local function pass_over(model, seq_id)
  model.passed[seq_id] = true
  while model.passed[model.next_seq] do
    model.passed[model.next_seq] = nil
    model.next_seq = model.next_seq + 1
  end
end

local function turn_is(job)
  return not job.seq_id or job.seq_id == job.model.next_seq
end

local function job_over(job)
  if not job.seq_id then return end
  job.model.asked[job.seq_id - 256] = nil -- a client repeats what it sent last, not what is long done
  pass_over(job.model, job.seq_id)
end

-- The first job whose turn it is, taken off the queue.
local function take(self)
  for i, job in ipairs(self.jobs) do
    if not job.model or turn_is(job) then return table.remove(self.jobs, i) end
  end
end

--- Do a piece of the work that waits: a pass of a training step, a token of what is drawn.
--- @return boolean  whether there was any
function Service:work()
  local job = self.current
  if not job then
    job = take(self)
    if not job then return false end
    self.current = job
  end
  local ok, result = pcall(job.step)
  if ok and result == nil then return true end
  self.current = nil
  job_over(job)
  if ok then settle(job.future, job.what, result)
  elseif peri.interrupted() then error(result, 0)
  else settle_error(job.future, messages.plain(result), false) end
  return true
end

-- ---- what is there ----

local function session_of(self, id)
  return self.sessions[id] or refuse(404, "session_id: there is no session %q", id)
end

local function model_of(self, id)
  return self.models[id] or refuse(404, "model_id: there is no model %q", id)
end

local function check_base(self, name)
  if name and name ~= self.base.name then
    refuse(404, "base_model: %q is not here, %q is", name, self.base.name)
  end
end

local segments = { weights = true, sampler_weights = true }

-- The folder that a tinker:// path means.
local function folder_of(self, path)
  local id, kind, name = path:match "^tinker://([%w:_-]+)/([%w_]+)/([%w._-]+)$"
  if not id or not segments[kind] or name:find "^%." then
    refuse(400, "path: %q is no tinker://MODEL/weights/NAME", path)
  end
  return ("%s/%s/%s"):format(self.options.folder, id:gsub(":", "_"), kind) .. "/" .. name, kind
end

local function saved_at(self, path)
  local folder, kind = folder_of(self, path)
  if peri.files.exists(folder) ~= "folder" then refuse(404, "path: there is no %s", path) end
  local saved, message = tenants.saved(folder)
  if not saved then refuse(404, "path: %s: %s", path, message) end
  if saved.base ~= self.base.name then
    refuse(400, "path: %s is of the base model %q, here is %q", path, tostring(saved.base), self.base.name)
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
  local n = 0
  for _ in pairs(self.models) do n = n + 1 end
  if n >= self.options.tenants then
    refuse(429, "%d training clients are here already, the most that this server takes", n)
  end
  local model = { id = id, session = session, config = config, next_seq = 1, asked = {}, passed = {}, saves = 0 }
  self.models[id] = model
  return model
end

local function tenant_of(model)
  return model.tenant or error("the model was not made: " .. (model.failed or "it was unloaded"), 0)
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
  local session = { id = fresh_id(), models = {} }
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
  local future = queue(self, { step = function ()
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
  end }, model)
  future.model_id, session.models[b.model_seq_id] = model.id, future
  return future
end

function does.create_model(self, b) return make_model(self, b, b.lora_config) end

function does.unload_model(self, b)
  local model = model_of(self, b.model_id)
  return queue(self, { step = function ()
    if model.tenant then model.tenant:close() end
    model.tenant, self.models[model.id] = nil, nil
    return { type = "unload_model", model_id = model.id }
  end })
end

function does.get_info(self, b)
  local model = model_of(self, b.model_id)
  return { type = "get_info", model_id = model.id, is_lora = true, lora_rank = model.config.rank,
    model_name = self.base.name, model_data = { arch = self.base.model.config.model_type, model_name = self.base.name,
      tokenizer_id = self.base.name } }
end

function does.forward_backward(self, b)
  local model = model_of(self, b.model_id)
  return queue_of(self, model, b.seq_id, function ()
    local step
    return { what = "forward_backward", step = function ()
      step = step or tenant_of(model):forward_backward(b.rows, b.entry, b.config, not b.forward_only)
      return step()
    end }
  end)
end

function does.optim_step(self, b)
  local model = model_of(self, b.model_id)
  return queue_of(self, model, b.seq_id, function ()
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
  local again = b.seq_id and self.models[b.model_id] and self.models[b.model_id].asked[b.seq_id]
  if again then return again end
  local model, path, folder = save(self, b, "weights")
  return queue_of(self, model, b.seq_id, function ()
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
    for _, t in pairs(old.weights or {}) do t:release() end
    old.weights = nil
  end
end

function does.save_weights_for_sampler(self, b)
  local again = b.seq_id and self.models[b.model_id] and self.models[b.model_id].asked[b.seq_id]
  if again then return again end
  local model, path, folder = save(self, b, "sampler_weights")
  return queue_of(self, model, b.seq_id, function ()
    return { step = function ()
      local tenant = tenant_of(model)
      if b.path then
        tenant:save(folder:match "^(.*)/[^/]*$", folder:match "[^/]*$", false)
        return { type = "save_weights_for_sampler", path = path }
      end
      local sampler = { id = ("%s:sample:%s"):format(model.session.id, fresh_id()), model = model,
        weights = tenant:snapshot(), path = path }
      self.samplers[sampler.id] = sampler
      keep_snapshot(self, sampler)
      return { type = "save_weights_for_sampler", sampling_session_id = sampler.id }
    end }
  end)
end

function does.load_weights(self, b)
  local folder, saved = saved_at(self, b.path)
  if b.session_id then
    if not b.model_seq_id then refuse(400, "model_seq_id is missing: it goes with session_id") end
    return make_model(self, b, saved.config, folder, b.optimizer)
  end
  if not b.model_id then refuse(400, "model_id is missing, and so is session_id") end
  local model = model_of(self, b.model_id)
  return queue_of(self, model, b.seq_id, function ()
    return { step = function ()
      tenant_of(model):load(folder, b.optimizer)
      return { type = "load_weights", path = b.path, model_id = model.id }
    end }
  end)
end

function does.weights_info(self, b)
  local _, saved = saved_at(self, b.tinker_path)
  local c = saved.config
  return { base_model = saved.base, is_lora = true, lora_rank = c.rank, train_unembed = c.train_unembed,
    train_mlp = c.train_mlp, train_attn = c.train_attn }
end

-- A sampler of saved weights, or of the base model (path nil).
local function open_sampler(self, path)
  if not path then return { base = true } end
  local folder, saved = saved_at(self, path)
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

-- ---- drawing ----

-- The adapter that a sampler draws with, nil of the base model.
local function adapter_of(self, sampler)
  if sampler.base then return nil end
  if not sampler.weights then
    error(("these weights are no longer in memory: the last %d are"):format(self.options.snapshots), 0)
  end
  if sampler.model then return tenant_of(sampler.model):sampler_of(sampler.weights) end
  self.loaded = self.loaded or {}
  local key = peri.json.encode(sampler.config)
  local tenant = self.loaded[key] or tenants.new(self.base, sampler.config)
  self.loaded[key] = tenant
  return tenant:sampler_of(sampler.weights)
end

local function prompt_logprobs(self, prompt)
  if #prompt < 2 then return {} end
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local guard <close> = peri.no_grad() -- luacheck: ignore 211
  return self.base.model:token_logprobs(peri.tensor({ prompt }, "i64"), 2):tolist()[1]
end

local function submit(self, job)
  local b = job.body
  local p = b.sampling_params
  local stop = p.stop
  local none = type(stop) == "table" and #stop == 0
  job.generation = self.lm:submit(b.prompt, { max_new_tokens = p.max_tokens, samples = b.num_samples,
    temperature = p.temperature, top_k = math.max(p.top_k, 0), top_p = p.top_p, seed = p.seed, min_p = 0,
    repetition_penalty = 1, greedy = p.temperature == 0, ignore_stop = stop ~= nil, stop = not none and stop or nil,
    remember = false })
  if b.prompt_logprobs then job.scores = prompt_logprobs(self, b.prompt) end
end

local function drawn(job)
  job.generation:check()
  local result = { sequences = {}, prompt_logprobs = job.scores }
  for i, r in ipairs(job.generation.results) do
    result.sequences[i] = { tokens = r.tokens, logprobs = r.logprobs, stop_reason = r.reason == "length" and "length"
      or "stop" }
  end
  return result
end

-- All requests that wait for one sampler draw together: each step makes a token of each.
local function draw(self, first)
  local batch = { first }
  local adapter = adapter_of(self, first.sampler)
  local function begin(job)
    local ok, message = pcall(submit, self, job)
    if not ok then settle_error(job.future, messages.plain(message), true) end
    return ok
  end
  return function ()
    return self.base:with(adapter, function ()
      for i = #self.jobs, 1, -1 do
        local job = self.jobs[i]
        if job.sampler == first.sampler then
          table.remove(self.jobs, i)
          table.insert(batch, 2, job)
        end
      end
      for i = #batch, 1, -1 do
        local job = batch[i]
        local fresh = not job.generation and not job.future.done
        if fresh and not begin(job) and job ~= first then table.remove(batch, i) end
      end
      self.lm:step()
      for i = #batch, 2, -1 do
        local job = batch[i]
        if job.generation.done then
          local ok, result = pcall(drawn, job)
          if ok then settle(job.future, "sample", result) else settle_error(job.future, messages.plain(result)) end
          table.remove(batch, i)
        end
      end
      if #batch > 1 then return nil end
      if first.future.done then return first.future.result end -- it was refused as it began
      return first.generation.done and drawn(first) or nil
    end)
  end
end

function does.asample(self, b)
  local sampler
  if b.sampling_session_id then
    sampler = self.samplers[b.sampling_session_id]
      or refuse(404, "sampling_session_id: there is none called %q", b.sampling_session_id)
    local again = b.seq_id and sampler.asked and sampler.asked[b.seq_id]
    if again and not (again.done and not self.futures[again.id]) then return again end
  else
    if not (b.model_path or b.base_model) then
      refuse(400, "sampling_session_id, model_path and base_model are missing: one is needed")
    end
    check_base(self, b.base_model)
    sampler = open_sampler(self, b.model_path)
  end
  local job, step = { what = "sample", sampler = sampler, body = b }, nil
  function job.step()
    step = step or draw(self, job)
    return step()
  end
  local future = queue(self, job)
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
  local future = self.futures[b.request_id]
  if not future then
    local n = math.tointeger(tonumber(b.request_id))
    if n and n >= 1 and n <= self.count then
      refuse(410, "request_id: the result of %s is no longer kept", b.request_id)
    end
    refuse(404, "request_id: there is no request %q", b.request_id)
  end
  local function look() return answer_of(future, accept) end
  return look() or { wait = look, otherwise = json(408, { type = "try_again", request_id = future.id,
    queue_state = "active" }) }
end

local function route(self, request)
  local name = request.path:match "^/api/v1/([%w_/]+)$" or refuse(404, "there is nothing at %s", request.path)
  local own = plain[name]
  local method = gets[name] and "GET" or "POST"
  if name:find "^sessions/%w+/finish$" then own = "healthz" end
  if not own and not wire.is_known(name) then refuse(404, "there is nothing at %s", request.path) end
  if request.method ~= method then refuse(405, "%s is for %s", request.path, method) end
  local accept = request.headers.accept or ""
  if own then return json(200, does[own](self)) end
  local kind = request.headers["content-type"] or ""
  local ok, b = pcall(wire.read, name, request.body, kind, self.base)
  if not ok then
    local model_id, seq_id = wire.place(request.body, kind)
    local model = model_id and self.models[model_id]
    if model and seq_id and seq_id >= model.next_seq and not model.asked[seq_id] then pass_over(model, seq_id) end
    refuse(422, "%s", messages.plain(b))
  end
  if name == "retrieve_future" then return retrieve(self, b, accept) end
  local result = does[name](self, b)
  if result.id and self.futures[result.id] == result then
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
  local ok, response = pcall(function ()
    check_caller(self, request)
    return route(self, request)
  end)
  if ok then return response end
  if getmetatable(response) == Refused then return M.error(response.status, response.message) end
  if peri.interrupted() then error(response, 0) end
  return M.error(500, messages.plain(response))
end

return require "perilune.names"(M, "perilune.serve")
