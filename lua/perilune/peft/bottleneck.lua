-- bottleneck.lua - adapters of Houlsby et al. (1902.00751, section 2.1): after the output projections of
-- attention and of the feed-forward, y <- y + U f(D y + d) + u with a narrow middle; U begins at 0, so
-- that nothing changes at first. With where = "pfeiffer" (2005.00052) after the feed-forward only.
local peri = require "perilune"
local activation = require "perilune.nn.activation"
local options = require "perilune.options"
local Module = require "perilune.nn.module"
local layers = require "perilune.nn.layers"
local adapter = require "perilune.peft.adapter"
local targets = require "perilune.peft.targets"

local M = {}

-- Last names of the projections that end a sub-layer: Llama and its kin, GPT-2, BERT, DistilBERT, T5.
local attention_outputs = { "o_proj", "attn.c_proj", "attention.output.dense", "attention.out_lin", "SelfAttention.o",
                            "EncDecAttention.o" }
local feed_forward_outputs = { "down_proj", "mlp.c_proj", "output.dense", "ffn.lin2", "DenseReluDense.wo" }

--- @class perilune.peft.Bottleneck
local Bottleneck = adapter.class "bottleneck"

-- What stands behind one projection.
local Site = Module.class "bottleneck layer"
Site.references = { projection = true }

--- @param y perilune.Tensor  (..., N)
--- @return perilune.Tensor  (..., N)
function Site:forward(_, y) return y:add(self.adapter_up:forward(self.adapter_down:forward(y))) end

-- A layer that begins with these weights. -- (out, in)
local function linear(weight, act)
  local self = Module.instance(layers.Linear)
  self.out_features, self.in_features, self.activation = weight:size(1), weight:size(2), act
  self.weight = Module.parameter(weight)
  self.bias = Module.parameter(peri.zeros { weight:size(1) })
  return self
end

local function ends_with(name, list)
  for _, want in ipairs(list) do
    if targets.matches(name, want) then return true end
  end
  return false
end

local rules = {
  reduction = options.integer(16, "[1, inf)", "the middle has dim / reduction, at least 1"),
  act = options.choice("relu", activation.known, "between down and up"),
  where = options.choice("houlsby", { "houlsby", "pfeiffer" }, "after attention and feed-forward, or the latter alone"),
  targets = options.value(options.none, "string or table", "names of layers in place of where"),
  std = options.number(0.02, "[0, inf)", "of the initial weights on the way down"),
}

--- Put bottleneck adapters on a model, whose own weights are frozen.
--- @param model table  of perilune.models
--- @param opts table?
--- @return perilune.peft.Bottleneck
function M.new(model, opts)
  options.argument("bottleneck", "model", model, "table")
  local config = options.fill("bottleneck", opts, rules)
  local act = activation.published(config.act).name
  local self = Module.instance(Bottleneck)
  self.kind, self.model, self.config, self._sites = "BOTTLENECK", model, config, {}
  local chosen = config.targets and targets.choose(model, config.targets, "bottleneck")
  for _, p in ipairs(model:projections()) do
    local name = p.parts[1][1]
    local on
    if chosen then on = chosen[name]
    else
      local attention = ends_with(name, attention_outputs)
      on = attention and config.where == "houlsby" or not attention and ends_with(name, feed_forward_outputs)
    end
    if on then
      local middle = math.max(p.rows // config.reduction, 1)
      local site = Module.instance(Site)
      site.projection = p
      site.adapter_down = linear(peri.randn({ middle, p.rows }):mul_(config.std), act)
      site.adapter_up = linear(peri.zeros { p.rows, middle })
      self[name] = site -- its tensors are name .. ".adapter_down.weight" and so on
      targets.attach(p, site)
      self._sites[#self._sites + 1] = site
    end
  end
  if #self._sites == 0 then error("bottleneck: the model has no layer to put one on: name them with targets", 2) end
  self._thaw = targets.freeze(model)
  return self
end
options.declare(M.new, { "model" }, rules)

--- Take the adapters off the model.
function Bottleneck:remove()
  for _, site in ipairs(self._sites) do targets.detach(site.projection, site) end
  self._sites = {}
end

--- Write adapter_config.json and adapter_model.safetensors, which peft.load reads; PEFT itself has no
--- adapters of this kind.
--- @param folder string
--- @return boolean|nil ok
--- @return string? message
function Bottleneck:save(folder)
  local c = self.config
  return targets.save(folder, self:state_dict(), { peft_type = "BOTTLENECK", task_type = targets.task(self.model),
    reduction = c.reduction, act = c.act, where = c.where, target_modules = c.targets or peri.json.null,
    base_model_name_or_path = self.model.source_path or peri.json.null })
end

--- @param c table  adapter_config.json
--- @return table options
function M.read_config(c)
  local names = c.target_modules
  if names == peri.json.null then names = nil end
  return { reduction = c.reduction, act = c.act, where = c.where, targets = names }
end

function M.read_tensors(tensors) return tensors end

return M
