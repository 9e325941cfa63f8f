-- depth.lua - a model of some of the layers of another: how DistilBERT begins (Sanh et al., 1910.01108, section 3:
-- "taking one layer out of two"). It is a whole model of the library, with a config that says so.
local peri = require "perilune"
local options = require "perilune.options"
local base = require "perilune.models.base"
local weights = require "perilune.models.weights"

local M = {}

local who = "models.with_layers"

local rules = {
  layers = options.value(options.none, "table", "numbers of those that stay, from 1, each larger than the last; "
    .. "default: every second, from the first"),
  as = options.choice(options.none, { "distilbert" }, "of a BERT: the model is a DistilBERT, which has no pooler "
    .. "and one type of tokens, the first"),
}

local function plain(t)
  local out = {}
  for k, v in pairs(t) do out[k] = v end
  return out
end

local function check_layers(list, most)
  local before = 0
  for key in pairs(list) do
    if math.type(key) ~= "integer" or key < 1 or key > #list then
      options.raise(("%s: layers has a key %s, expected a list of numbers"):format(who, tostring(key)))
    end
  end
  for i, n in ipairs(list) do
    if math.type(n) ~= "integer" or n <= before or n > most then
      options.raise(("%s: layers[%d] is %s, expected an integer from %d to %d"):format(who, i, tostring(n), before + 1,
        most))
    end
    before = n
  end
  if #list == 0 then options.raise(who .. ": layers is empty") end
end

-- The config of a model of some layers.
local function config_of(model, layers)
  local config, s, kinds, mixed = plain(model.config), model.settings, {}, false
  config[model.depth_key] = #layers
  for i, n in ipairs(layers) do
    local window = s.windows and s.windows[n] or 0
    kinds[i] = window > 0 and "sliding_attention" or "full_attention"
    mixed = mixed or window ~= (s.windows and s.windows[1] or 0)
  end
  for _, window in ipairs(s.windows or {}) do mixed = mixed or window ~= s.windows[1] end
  if mixed or config.layer_types then config.layer_types = kinds end
  if s.dense then
    config.first_k_dense_replace = 0
    for _, n in ipairs(layers) do
      if n <= s.dense then config.first_k_dense_replace = config.first_k_dense_replace + 1 end
    end
  end
  return config
end

local function distilbert_config(model, layers)
  local s, c = model.settings, model.config
  if model.__name ~= "bert" then
    options.raise(("%s: as = \"distilbert\" is of a BERT, the model is %s"):format(who, model.__name))
  end
  if s.eps ~= 1e-12 then
    options.raise(("%s: layer_norm_eps is %g, a DistilBERT has 1e-12"):format(who, s.eps))
  end
  return { model_type = "distilbert", architectures = { s.mlm and "DistilBertForMaskedLM" or "DistilBertModel" },
    vocab_size = s.vocab, dim = s.dim, hidden_dim = s.ff, n_layers = #layers, n_heads = s.heads,
    max_position_embeddings = s.positions, activation = c.hidden_act or "gelu", dropout = s.dropout,
    attention_dropout = s.attention_dropout, initializer_range = c.initializer_range, pad_token_id = c.pad_token_id,
    sinusoidal_pos_embds = false }
end

-- A tensor's copy, as much of a parameter as it is.
local function clone(t)
  if t.packed or t.dtype:find "^q%d" then return t end
  return peri.keep(t:detach():clone()):requires_grad_(t.requires_grad)
end

--- A model of some of another's layers, which stay as they are: DistilBERT's beginning, from which a student of half
--- the depth learns (1910.01108). Weights are copies, frozen where they were, but for those that nothing writes to;
--- adapters are not copied.
---
---     local student = models.with_layers(teacher)                       -- layers 1, 3, 5 ...
---     local other = models.with_layers(teacher, { layers = { 1, 2, 6 } })
---
--- @param model table  of perilune.models, with one stack of layers
--- @param opts table?
--- @return table model
function M.with_layers(model, opts)
  local o = options.fill(who, opts, rules)
  options.argument(who, "model", model, "module")
  if not (model.settings and model.settings.layers and model._layout) or model.kind == "encoder-decoder" then
    options.raise(("%s: %s has no single stack of layers"):format(who, model.__name or "the model"))
  end
  local layers = o.layers
  if not layers then
    layers = {}
    for n = 1, model.settings.layers, 2 do layers[#layers + 1] = n end
  end
  check_layers(layers, model.settings.layers)
  local made
  if o.as then
    made = base.create(require("perilune.models.distilbert").Class, distilbert_config(model, layers))
  else
    local names = {}
    for _, p in ipairs(model._layout) do
      for _, part in ipairs(p.parts) do names[#names + 1] = part[1] end
    end
    made = base.create(getmetatable(model), config_of(model, layers), names)
  end
  local _ <close> = peri.no_grad()
  for _, p in ipairs(made._layout) do
    local path = p.path:gsub("^layers%.(%d+)%.", function (n)
      return ("layers.%d."):format(layers[tonumber(n) + 1] - 1)
    end)
    local entry = model._places[path]
    local owner, key = nil, nil
    if entry then owner, key = weights.at(model, entry) end
    local to, name = weights.at(made, p)
    local list, t = owner and key == "weight" and rawget(owner, "weights"), owner and rawget(owner, key)
    if list then
      to.weights, to.weight = {}, nil
      for i, part in ipairs(list) do to.weights[i] = clone(part) end
    elseif peri.is_tensor(t) and (t.packed or weights.published(model, path, t)) then
      to[name] = clone(t)
    else
      options.raise(("%s: there is no %s: what was there was replaced"):format(who, path))
    end
    if owner.packed ~= nil then to.packed = owner.packed end
  end
  if o.as and model.types then
    made.places.weight = peri.keep(made.places.weight:add(model.types.weight:narrow(1, 1, 1)):detach())
      :requires_grad_(model.places.weight.requires_grad)
  end
  made.generation_config, made._packed = plain(model.generation_config), model._packed
  return model.training and made:train() or made
end
options.declare(M.with_layers, { "model" }, rules)

return M
