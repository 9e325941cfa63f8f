-- scorer.lua - a causal model with one linear head to a number at every token: what reward models, process reward
-- models and critics are. It is the architecture's own class with another head, so that folders, adapters and
-- checkpointing are those of any model; Hugging Face calls it ...ForSequenceClassification, or with a bias
-- ...ForTokenClassification.
local peri = require "perilune"
local options = require "perilune.options"
local base = require "perilune.models.base"
local inputs = require "perilune.models.inputs"
local weights = require "perilune.models.weights"
local Module = require "perilune.nn.module"

local M = {}

local SEQUENCE, TOKEN = "ForSequenceClassification", "ForTokenClassification"

--- @class perilune.models.Scorer: perilune.models.Causal
--- @field score perilune.nn.Linear  (D) to a number
local methods = { kind = "scorer" }

local function kind_of(config)
  local name = type(config.architectures) == "table" and config.architectures[1]
  return type(name) == "string" and (name:match(SEQUENCE .. "$") or name:match(TOKEN .. "$")) or nil
end

--- Whether a config is a scorer's.
--- @param config table
--- @return boolean
function M.is_config(config) return kind_of(config) ~= nil end

--- Whether a value is a scorer.
--- @param model any
--- @return boolean
function M.is(model) return type(model) == "table" and model.kind == "scorer" end

--- Raise unless a value is a scorer.
--- @param who string  for messages
--- @param model any
function M.want(who, model)
  if not M.is(model) then options.raise(who .. ": the model is no models.scorer: models.scorer(model) makes one") end
end

--- Scores of every token, of the text up to it. Columns that are no tokens have scores without a meaning.
--- @param ids perilune.Tensor|perilune.Batch  (B, T) i64
--- @param opts table?  as for causal models
--- @return perilune.Tensor  (B, T) f32
function methods:forward(ids, opts)
  return self.score:forward(self._architecture.forward(self, ids, opts)):squeeze(-1)
end

--- Scores of whole rows: that of each row's last token.
--- @param ids perilune.Tensor|perilune.Batch  (B, T) i64
--- @param opts table?  mask, start, lengths, as for causal models
--- @return perilune.Tensor  (B) f32
function methods:last(ids, opts)
  local who = self.__name .. ": last"
  local all, o = inputs.read(who, ids, opts, inputs.causal)
  local rows, time = inputs.rows(who, all, o), all:size(2)
  inputs.need_tokens(who, rows)
  local at = rows.stop and rows.stop:sub(1) or peri.full({ all:size(1) }, time - 1, "i64")
  return self:forward(ids, opts):gather(at:unsqueeze(2), 2):squeeze(2)
end

for _, name in ipairs { "generate", "cache", "logits", "token_logprob", "token_logprobs", "vectors" } do
  methods[name] = function (self) error(("%s: %s"):format(name, base.no_causal(self)), 2) end
end

local classes = setmetatable({}, { __mode = "k" })

--- The class of scorers of an architecture.
--- @param architecture table  a class of causal models
--- @return table
function M.class(architecture)
  if classes[architecture] then return classes[architecture] end
  local class = Module.class(architecture.__name .. " scorer", nil, architecture)
  for name, method in pairs(methods) do class[name] = method end
  class._architecture, class.forward_name = architecture, class.__name .. ": forward"
  function class.read(config, has)
    local s = architecture.read(config, has)
    local bias = kind_of(config) == TOKEN
    s.tied, s.scores = false, { bias = bias, name = bias and architecture.token_head or "score" }
    return s
  end
  classes[architecture] = class
  return class
end

-- ---- from a model -------------------------------------------------------------------------------

local rules = {
  bias = options.boolean(false, "the head has one; a folder is then written as " .. TOKEN),
  std = options.number(options.none, "[0, inf)", "of the head's normal initial weights; default initializer_range "
    .. "or 0.02"),
  dtype = options.choice("f32", { "f32", "file" }, "f32: copies, which are trained; file: matrices as the model has "
    .. "them, shared and frozen, for an adapter"),
}

local function config_of(model, bias)
  local config = {}
  for k, v in pairs(model.config) do config[k] = v end
  local named = (config.architectures or {})[1] or config.model_type:gsub("^%l", string.upper)
  for _, ending in ipairs { "ForCausalLM", "LMHeadModel", SEQUENCE, TOKEN } do named = named:gsub(ending .. "$", "") end
  config.architectures = { named .. (bias and TOKEN or SEQUENCE) }
  config.id2label, config.label2id = { ["0"] = "LABEL_0" }, { LABEL_0 = 0 } -- one label, in transformers' words
  return config
end

--- A scorer of a causal model: a copy of it with a new head. See models.scorer.
--- @param model table
--- @param opts table?
--- @return perilune.models.Scorer
function M.of(model, opts)
  local o = options.fill("models.scorer", opts, rules)
  options.argument("models.scorer", "model", model, "module")
  if model.kind ~= "causal" or not model._layout then
    options.raise(("models.scorer: the model is a %s, expected a causal model of perilune.models")
      :format(model.__name or "module"))
  end
  local config, dim = config_of(model, o.bias), model.settings.dim
  local _ <close> = peri.no_grad()
  local state, names = {}, {}
  for name, t in pairs(model:state_dict()) do
    if not name:find "^lm_head%." then state[name] = t end
  end
  local head = o.bias and model.token_head or "score"
  state[head .. ".weight"] = peri.randn({ 1, dim }):mul_(o.std or config.initializer_range or 0.02)
  if o.bias then state[head .. ".bias"] = peri.zeros { 1 } end
  for name in pairs(state) do names[#names + 1] = name end
  local self = base.create(M.class(getmetatable(model)), config, names)
  local ok, message = weights.fill(self, names, function (name) return state[name] end, { dtype = o.dtype })
  if not ok then options.raise("models.scorer: " .. message) end
  if o.dtype == "file" then self:unfreeze "^score%." end
  return self
end

-- Two classes, as others train them for right and wrong, are one number: the difference of their scores is the
-- log odds of the second.
local function difference(source)
  return setmetatable({ get = function (_, name)
    local t, message = source:get(name)
    if not t or not (name:find "^score%." or name:find "^classifier%.") or t:size(1) ~= 2 then return t, message end
    return t:narrow(1, 2, 1):sub(t:narrow(1, 1, 1))
  end }, { __index = source })
end

--- A scorer from a source whose config is one's: see perilune.models.load. A head of two classes is read as the log
--- odds of the second.
--- @param architecture table  a class of causal models
--- @param source table
--- @param opts table?
--- @return perilune.models.Scorer|nil
--- @return string? message
function M.from_source(architecture, source, opts)
  local labels = source.config.id2label
  local n = 0
  for _ in pairs(type(labels) == "table" and labels or {}) do n = n + 1 end
  if n > 2 then
    return nil, ("%s: the head has %d classes; scorers have one, or two that are read as log odds of the second")
      :format(tostring(source.path), n)
  end
  local self, message = base.from_source(M.class(architecture), difference(source), opts)
  if not self then return nil, message end
  self.config = config_of(self, self.settings.scores.bias) -- of one class by now
  return self
end

M.rules = rules
return M
