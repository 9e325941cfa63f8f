-- tenant.lua - several LoRA adapters over one base model, each with its gradients, optimizer and snapshots: what a
-- training client of the service owns. Only one is on while anything is computed, so none sees another's weights.
local peri = require "perilune"
local losses = require "perilune.serve.losses"
local messages = require "perilune.serve.messages"
local lora = require "perilune.peft.lora"
local optim = require "perilune.optim"
local targets = require "perilune.peft.targets"

local ALPHA <const> = 32 -- as in Tinker's service, whatever the rank

-- ---- the base ----

--- @class perilune.serve.Base  a model that adapters stand on
local Base = {}
Base.__index = Base

local M = {}

--- @param model perilune.models.Model  f32, not packed
--- @param tok table
--- @param name string  as clients call it
--- @return perilune.serve.Base
function M.base(model, tok, name)
  targets.freeze(model)
  return setmetatable({ model = model, tok = tok, name = name, drawn = {}, vocab = (model.settings or {}).vocab,
    context = require("perilune.models.base").context_length(model) }, Base)
end

--- fn(...) while one adapter is on, or none (nil).
--- @param adapter table?
--- @param fn function
function Base:with(adapter, fn, ...)
  if adapter then adapter:enable(true) end
  local results = table.pack(pcall(fn, ...))
  if adapter then adapter:enable(false) end
  if not results[1] then error(results[2], 0) end
  return table.unpack(results, 2, results.n)
end

-- Which layers an adapter is for: of attention, of the rest of a block, the head.
local function wanted(model, config)
  local names = {}
  for _, place in ipairs(targets.places(model)) do
    for _, part in ipairs(place.parts) do
      local attention = part[1]:find "attn" or part[1]:find "attention"
      local want = config.train_mlp
      if place.kind == "head" then want = config.train_unembed
      elseif attention then want = config.train_attn end
      if place.kind ~= "embedding" and want then names[#names + 1] = part[1] end
    end
  end
  return names
end

-- A new adapter that rests, its first matrices drawn from a seed and from nothing else.
local function adapter_of(base, config)
  local names = wanted(base.model, config)
  if #names == 0 then messages.refuse(422, "lora_config: no layer of this model is to be trained") end
  local before = peri.rng_state()
  peri.seed(config.seed)
  local ok, made = pcall(lora.new, base.model, { r = config.rank, alpha = ALPHA, targets = names })
  peri.set_rng_state(before)
  if not ok then error(made, 0) end
  return made:enable(false)
end

--- An adapter with the weights of a snapshot, to draw with. There is one for each shape that adapters have.
--- @param config table
--- @param snapshot table
--- @return table adapter
function Base:drawing(config, snapshot)
  local key = ("%d %s %s %s"):format(config.rank, config.train_attn, config.train_mlp, config.train_unembed)
  local own = self.drawn[key] or { adapter = adapter_of(self, config) }
  self.drawn[key] = own
  if own.snapshot ~= snapshot then
    own.snapshot = nil
    own.adapter:load_state_dict(snapshot)
    own.snapshot = snapshot
  end
  return own.adapter
end

-- ---- a tenant ----

--- @class perilune.serve.Tenant
local Tenant = {}
Tenant.__index = Tenant

--- @param base perilune.serve.Base
--- @param config table  rank, seed, train_attn, train_mlp, train_unembed
--- @return perilune.serve.Tenant
function M.new(base, config)
  local self = setmetatable({ base = base, config = config, adapter = adapter_of(base, config), steps = 0 }, Tenant)
  self.optimizer = optim.AdamW(self.adapter, { lr = 1e-4, betas = { 0.9, 0.95 }, eps = 1e-12, weight_decay = 0 })
  return self
end

--- Let go of its memory.
function Tenant:close()
  self.adapter:remove()
  self.adapter, self.optimizer = nil, nil
end

local PASS <const> = 1024 -- tokens with padding that go through the model at once

local function is_finite(v) return v == v and v ~= math.huge and v ~= -math.huge end

-- Rows as one batch: ids, lengths, and what the loss reads, (B, T) each.
local function batch_of(rows, entry)
  local width, n = 1, #rows
  for _, row in ipairs(rows) do width = math.max(width, #row.tokens) end
  local function rectangle(fill, dtype, of)
    local flat = {}
    for r, row in ipairs(rows) do
      local list, at = of(row), (r - 1) * width
      for t = 1, width do flat[at + t] = list and list[t] or t <= #row.tokens and not list and 1 or fill end
    end
    return peri.tensor(flat, dtype):reshape { n, width }
  end
  local given, lengths = {}, {}
  for r, row in ipairs(rows) do lengths[r] = #row.tokens end
  given.counted = rectangle(0, "f32", function () end)
  local targets_of = rectangle(-100, "i64", function (row) return row.inputs.target_tokens end)
  for name in pairs(entry.may) do given[name] = rectangle(0, "f32", function (row) return row.inputs[name] end) end
  for _, name in ipairs(entry.inputs) do
    if name ~= "target_tokens" then given[name] = rectangle(0, "f32", function (row) return row.inputs[name] end) end
  end
  return rectangle(0, "i64", function (row) return row.tokens end), peri.tensor(lengths, "i64"), targets_of, given
end

-- Rows in passes: neighbours, as many as fit.
local function passes_of(rows)
  local list, pass, width = {}, nil, 0
  for _, row in ipairs(rows) do
    width = math.max(width, #row.tokens)
    if not pass or width * (#pass + 1) > PASS then pass, width = {}, #row.tokens end
    if #pass == 0 then list[#list + 1] = pass end
    pass[#pass + 1] = row
  end
  return list
end

--- Gradients of a loss, added to those that are there: a job that :step() does a pass of. Where a pass fails, the
--- gradients are what they were before the job.
--- @param rows table[]  { tokens, inputs } each
--- @param entry table  of losses
--- @param config table  of the loss
--- @param backward boolean
--- @return fun(): table|nil  the result when all is done: logprobs of each row, loss
function Tenant:forward_backward(rows, entry, config, backward)
  local passes, at, logprobs, total, before = passes_of(rows), 0, {}, 0, {}
  local params = self.adapter:parameters()
  for i, p in ipairs(params) do before[i] = backward and p.grad and peri.keep(p.grad:clone()) or false end
  local function pass()
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local guard <close> = not backward and peri.no_grad() or nil -- luacheck: ignore 211
    local ids, lengths, targets_of, given = batch_of(passes[at], entry)
    local logp = losses.logprobs(self.base.model, ids, lengths, targets_of)
    local loss = entry.sum(logp, given, config)
    total = total + loss:item()
    if not is_finite(total) then
      messages.refuse(422, "forward_backward: the loss is %s: weights or numbers of the datums are too large", total)
    end
    if backward then loss:backward() end
    for r, list in ipairs(logp:detach():tolist()) do
      logprobs[#logprobs + 1] = table.move(list, 1, #passes[at][r].tokens, 1, {})
    end
  end
  return function ()
    at = at + 1
    local ok, message = pcall(self.base.with, self.base, self.adapter, pass)
    if not ok then
      for i, p in ipairs(params) do
        if backward then p.grad = before[i] or nil end
      end
      error(message, 0)
    end
    if at < #passes then return nil end
    for _, g in ipairs(before) do if g then g:release() end end
    return { logprobs = logprobs, loss = total }
  end
end

-- Whether weights and moments are numbers.
local function are_finite(self)
  local scope <close> = peri.scope() -- luacheck: ignore 211
  for _, p in ipairs(self.adapter:parameters()) do if not p:isfinite():all():item() then return false end end
  for _, t in pairs((self.optimizer:state_dict())) do if not t:isfinite():all():item() then return false end end
  return true
end

-- Weights and optimizer as they are: a function that brings them back. The copies live as long as the scope.
local function remembered(self)
  local weights, moments = {}, {}
  for name, t in pairs(self.adapter:state_dict()) do weights[name] = t:detach():clone() end
  local tensors, plain = self.optimizer:state_dict()
  for name, t in pairs(tensors) do moments[name] = t:clone() end
  return function ()
    self.adapter:load_state_dict(weights)
    self.optimizer:load_state_dict(moments, plain)
  end
end

--- One step of AdamW with the gradients so far, which are 0 then. One that would leave weights or moments which are
--- not finite moves nothing.
--- @param o table  learning_rate, beta1, beta2, eps, weight_decay, grad_clip_norm
--- @return table metrics
function Tenant:optim_step(o)
  local opt = self.optimizer
  for _, group in ipairs(opt.groups) do
    group.options.betas, group.options.eps = { o.beta1, o.beta2 }, o.eps
    group.options.weight_decay = o.weight_decay
  end
  local any = false
  for _, p in ipairs(opt:parameters()) do any = any or p.grad ~= nil end
  if not any then messages.refuse(422, "optim_step: there are no gradients: forward_backward comes before it") end
  local back = remembered(self)
  opt:step { lr = o.learning_rate, clip = o.grad_clip_norm > 0 and o.grad_clip_norm or math.huge }:zero_grad()
  if opt.was_skipped then
    messages.refuse(422, "optim_step: the gradients are not finite; the weights are as they were")
  end
  if not are_finite(self) then
    back()
    messages.refuse(422, "optim_step: with learning_rate %g the weights would not be finite; they are as they were",
      o.learning_rate)
  end
  self.steps = self.steps + 1
  return { ["grad_norm:mean"] = opt.grad_norm, ["steps:sum"] = self.steps }
end

--- A copy of the weights as they are: what samples are drawn from.
--- @return table<string, perilune.Tensor>
function Tenant:snapshot()
  local copy = {}
  for name, t in pairs(self.adapter:state_dict()) do copy[name] = peri.keep(t:detach():clone()) end
  return copy
end

-- ---- on the disk ----

--- Write weights, as PEFT lays an adapter out, and with `whole` the optimizer's state. The folder is there at once.
--- @param folder string  of checkpoints
--- @param name string
--- @param whole boolean
function Tenant:save(folder, name, whole)
  local writer <close> = assert(peri.files.checkpoint.begin(folder))
  assert(self.adapter:save(writer.path, self.base.name))
  local plain
  if whole then
    local tensors
    tensors, plain = self.optimizer:state_dict()
    assert(peri.safetensors.save(writer.path .. "/optimizer.safetensors", tensors))
  end
  assert(peri.files.write(writer.path .. "/tenant.json", peri.json.encode({ base = self.base.name,
    config = self.config, steps = self.steps, optimizer = plain }, { nan = "literal" })))
  assert(writer:commit(name))
end

local function read_json(path)
  local text, message = peri.files.read(path)
  if not text then return nil, message end
  return peri.json.decode(text, { allow_nan = true })
end

--- What a folder says of the tenant that wrote it; nil and a message where it holds none.
--- @param folder string
--- @return table?
--- @return string?
function M.saved(folder)
  local saved, message = read_json(folder .. "/tenant.json")
  if type(saved) ~= "table" or type(saved.config) ~= "table" then return nil, message or "it is damaged" end
  return saved
end

--- Weights of a folder as a snapshot.
--- @param folder string
--- @return table|nil
--- @return string? message
function M.weights(folder)
  local tensors, message = peri.safetensors.load(folder .. "/adapter_model.safetensors")
  if not tensors then return nil, message end
  local out = {}
  for name, t in pairs(tensors) do out[name:gsub("^base_model%.model%.", "")] = peri.keep(t) end
  return out
end

--- Take weights from a folder, with `whole` the optimizer's state. Nothing has changed where it fails.
--- @param folder string
--- @param whole boolean
function Tenant:load(folder, whole)
  local saved, weights = assert(M.saved(folder)), assert(M.weights(folder))
  local tensors
  if whole then
    if not saved.optimizer then messages.refuse(422, "load_weights: it was saved without the optimizer's state") end
    tensors = assert(peri.safetensors.load(folder .. "/optimizer.safetensors"))
  end
  self.adapter:load_state_dict(weights)
  if whole then self.optimizer:load_state_dict(tensors, saved.optimizer)
  else
    self.optimizer = optim.AdamW(self.adapter, { lr = 1e-4, betas = { 0.9, 0.95 }, eps = 1e-12, weight_decay = 0 })
  end
  self.optimizer:zero_grad()
  self.steps = whole and saved.steps or 0
end

return M
