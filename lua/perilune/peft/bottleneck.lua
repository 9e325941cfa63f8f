-- bottleneck.lua - adapters of Houlsby et al. (1902.00751, section 2.1): after the output projections of
-- attention and of the feed-forward, y <- y + U f(D y + d) + u with a narrow middle; U begins at 0, so
-- that nothing changes at first. With where = "pfeiffer" (2005.00052) after the feed-forward only.
local peri = require "perilune"
local options = require "perilune.options"
local Module = require "perilune.nn.module"
local linear = require "perilune.nn.linear"
local activation = require "perilune.nn.activation"
local adapter = require "perilune.peft.adapter"
local targets = require "perilune.peft.targets"

local M = {}

-- Last names of the layers that end a sub-layer: Llama and its kin, GPT-2, BERT, DistilBERT, T5, blocks of nn.
local attention_outputs = { "o_proj", "attn.c_proj", "attention.output.dense", "attention.out_lin", "SelfAttention.o",
                            "EncDecAttention.o", "attention.out" }
local feed_forward_outputs = { "down_proj", "mlp.c_proj", "output.dense", "ffn.lin2", "DenseReluDense.wo", "ff.down" }

--- @class perilune.peft.Bottleneck
local Bottleneck = adapter.class "bottleneck"

-- What stands behind one linear layer.
local Site = Module.class "bottleneck layer"
Site.references = { owner = true, projection = true }

--- @param y perilune.Tensor  (..., N)
--- @return perilune.Tensor  (..., N)
function Site:forward(_, y)
  if self.owner._off then return y end
  return y:add(self.adapter_up:forward(self.adapter_down:forward(y)))
end

-- A layer that begins with these weights and no bias. -- (out, in)
local function begun(weight, act) return linear.of_weights(weight, peri.zeros { weight:size(1) }, act) end

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

--- Put bottleneck adapters on a net, whose own weights are frozen.
--- @param model table  a published model, or any module of nn
--- @param opts table?
--- @return perilune.peft.Bottleneck
function M.new(model, opts)
  local places = targets.need("bottleneck", model)
  local config = options.fill("bottleneck", opts, rules)
  local act = activation.published(config.act).name
  local self = Module.instance(Bottleneck)
  self.kind, self.model, self.config, self._sites = "BOTTLENECK", model, config, {}
  local chosen = config.targets and targets.choose(places, config.targets, "bottleneck")
  for _, place in ipairs(places) do
    local name = place.parts[1][1]
    local on
    if chosen then on = chosen[name]
    elseif place.kind == "linear" then
      local attention = ends_with(name, attention_outputs)
      on = attention and config.where == "houlsby" or not attention and ends_with(name, feed_forward_outputs)
    end
    if on then
      local rows = place.layer.out_features
      local middle = math.max(rows // config.reduction, 1)
      local site = Module.instance(Site)
      site.owner, site.projection = self, place.layer
      site.adapter_down = begun(peri.randn({ middle, rows }):mul_(config.std), act)
      site.adapter_up = begun(peri.zeros { rows, middle })
      self[name] = site -- its tensors are name .. ".adapter_down.weight" and so on
      targets.attach(place.layer, site)
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
