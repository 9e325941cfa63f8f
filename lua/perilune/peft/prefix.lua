-- prefix.lua - prefix tuning (Li and Liang, 2101.00190): learned keys and values that every position of
-- every layer sees before its own, without rotary positions. While training they may come out of a
-- small network (embedding, linear, tanh, linear), which stabilises it; only what comes out is saved.
local peri = require "perilune"
local options = require "perilune.options"
local Module = require "perilune.nn.module"
local linear = require "perilune.nn.linear"
local adapter = require "perilune.peft.adapter"
local targets = require "perilune.peft.targets"

local M = {}

--- @class perilune.peft.Prefix
--- @field tokens integer  learned positions
local Prefix = adapter.class "prefix"

-- (n, 2 * layers * heads * dim) as PEFT has it: key of layer 0, value of layer 0, key of layer 1 ...
local function values(self)
  local encoder = self.prompt_encoder
  local embeddings, transform = encoder.embedding.weight, encoder.transform
  if not transform then return embeddings end
  return transform[3]:forward(transform[1]:forward(embeddings))
end

-- What a forward pass takes as `prefix`: per layer (1, n, Hkv, D).
local function split(self)
  local s, k, v = self.model.settings, {}, {}
  local x = values(self):reshape { self.tokens, 2 * s.layers, s.kv_heads, s.head_dim }
  for i = 1, s.layers do
    k[i], v[i] = x:select(2, 2 * i - 1):unsqueeze(1), x:select(2, 2 * i):unsqueeze(1)
  end
  return { k = k, v = v }
end

local function put(self)
  self._put = function () return not self._off and split(self) or nil end
  self.model.prefix, self.model._prefix = self._put, self
end

local rules = {
  tokens = options.integer(16, "[1, inf)", "learned positions"),
  projection = options.boolean(false, "through a small network while training"),
  hidden = options.integer(options.none, "[1, inf)", "width of that network; default the model's"),
  std = options.number(0.02, "[0, inf)", "of the initial values"),
}

--- Put a learned prefix on a causal model, whose weights are frozen.
--- @param model table  of perilune.models with kv_heads and head_dim in its settings
--- @param opts table?
--- @return perilune.peft.Prefix
function M.new(model, opts)
  options.argument("prefix", "model", model, "table")
  local config = options.fill("prefix", opts, rules)
  local s = model.settings
  if not (model.kind == "causal" and s.kv_heads and s.head_dim) then
    error(("prefix: a model of class %s takes no prefix"):format(model.__name), 2)
  end
  if model.prefix then error("prefix: the model has a prefix already, which is the only one: remove() it before", 2) end
  local self = Module.instance(Prefix)
  self.kind, self.model, self.config, self.tokens = "PREFIX_TUNING", model, config, config.tokens
  self._thaw = targets.freeze(model)
  local width = 2 * s.layers * s.kv_heads * s.head_dim
  local function weight(shape) return Module.parameter(peri.randn(shape):mul_(config.std)) end
  local function begun(rows, columns, act)
    return linear.of_weights(weight { rows, columns }, peri.zeros { rows }, act)
  end
  if config.projection then -- named as PEFT names the network: transform.0 and transform.2, an activation between
    local hidden = config.hidden or s.dim
    self.prompt_encoder = { embedding = { weight = weight { config.tokens, s.dim } } }
    self.prompt_encoder.transform = { [1] = begun(hidden, s.dim, "tanh"), [3] = begun(width, hidden) }
  else
    self.prompt_encoder = { embedding = { weight = weight { config.tokens, width } } }
  end
  put(self)
  return self
end
options.declare(M.new, { "model" }, rules)

--- Keep what the network makes and drop the network: same function, fewer parameters.
--- @return self
function Prefix:materialise()
  if self.prompt_encoder.transform then
    local _ <close> = peri.no_grad()
    self.prompt_encoder = { embedding = { weight = Module.parameter(values(self):detach():clone()) } }
  end
  return self
end

-- A copy is on the model's copy, where that was made with it.
function Prefix:_copied(from, map)
  if map[from.model] and from.model.prefix == from._put then put(self) end
end

--- Take the prefix off the model.
function Prefix:remove()
  if self.model.prefix == self._put then self.model.prefix, self.model._prefix = nil, nil end
end

--- Write adapter_config.json and adapter_model.safetensors in PEFT's layout.
--- @param folder string
--- @return boolean|nil ok
--- @return string? message
function Prefix:save(folder)
  local s = self.model.settings
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local made = peri.no_grad(function () return values(self):detach():contiguous() end)
  return targets.save(folder, { prompt_embeddings = made }, {
    peft_type = "PREFIX_TUNING", task_type = targets.task(self.model), num_virtual_tokens = self.tokens,
    token_dim = s.kv_heads * s.head_dim, num_attention_heads = s.kv_heads, num_layers = s.layers,
    num_transformer_submodules = 1, encoder_hidden_size = s.dim, prefix_projection = false, inference_mode = true,
    base_model_name_or_path = self.model.source_path or peri.json.null,
  })
end

--- @param c table  adapter_config.json
--- @return table|nil options
--- @return string? message
function M.read_config(c)
  if c.prefix_projection == true then
    return nil, "prefix_projection is true; expected the prefix that comes out of it"
  end
  return { tokens = c.num_virtual_tokens }
end

function M.read_tensors(tensors)
  return { ["prompt_encoder.embedding.weight"] = tensors.prompt_embeddings }
end

return M
