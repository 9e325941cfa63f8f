-- lora.lua - low-rank adaptation (Hu et al., 2106.09685, eq. 3): y = x W' + s (dropout(x) A') B' with
-- frozen W, A (r, in), B (out, r) that begins at 0, and s = alpha / r, or alpha / sqrt(r) with rsLoRA
-- (2312.03732). Sits on the linear layers and tables of embeddings of any net. Reads and writes PEFT's adapter
-- folders. The frozen weights may be of any dtype, also quantised (QLoRA, 2305.14314) or packed.
local peri = require "perilune"
local options = require "perilune.options"
local Module = require "perilune.nn.module"
local derived = require "perilune.nn.derived"
local adapter = require "perilune.peft.adapter"
local merging = require "perilune.peft.merging"
local peft_config = require "perilune.peft.config"
local targets = require "perilune.peft.targets"
local whole = require "perilune.peft.whole"

local M = {}

--- @class perilune.peft.LoRA
--- @field config table  r, alpha, dropout, targets, rslora, init, rank_pattern, alpha_pattern
--- @field model table  the model that it sits on
--- @field training boolean  dropout is on
--- @field scale number  of set_scale
local LoRA = adapter.class "lora"

-- The A and B of one part of a linear layer, or of a table of embeddings; called as PEFT calls them.
local Part = Module.class "lora layer"

function Part:a() return rawget(self, self._a) end -- (r, in)
function Part:b() return rawget(self, self._b) end -- (out, r)

-- What stands on one linear layer: a Part for each part of it that is a target. Their owner is the adapter.
local Site = Module.class "lora site"
Site.references = { owner = true, projection = true }

-- B's of several parts as one matrix (N, sum of ranks), zero where a rank does not belong to a part.
local function stacked(self)
  local rows, at = {}, 0
  for i, part in ipairs(self._parts) do
    local slot = self._slots[i]
    local before, rank = at, slot and slot.r or 0
    at = at + rank
    local row = {}
    if before > 0 then row[#row + 1] = peri.zeros { part[2], before } end
    if slot then row[#row + 1] = slot.scale == 1 and slot:b() or slot:b():mul(slot.scale) end
    if self.rank > at then row[#row + 1] = peri.zeros { part[2], self.rank - at } end
    rows[i] = #row == 1 and row[1] or peri.cat(row, 2)
  end
  return #rows == 1 and rows[1] or peri.cat(rows, 1)
end

-- A's of several parts as one matrix (sum of ranks, in).
local function heaped(self)
  local list = {}
  for _, slot in ipairs(self._order) do list[#list + 1] = slot:a() end
  return #list == 1 and list[1] or peri.cat(list, 1)
end

-- The two matrices of the whole layer. Without gradients they are made once and kept while the
-- parameters stay as they are: decoding asks for them at every token.
local function matrices(self)
  if peri.grad_enabled() then return derived.weight(self, "a", heaped), derived.weight(self, "b", stacked) end
  local version, scales = 0, 0
  for _, slot in ipairs(self._order) do
    version, scales = version + slot:a():version() + slot:b():version(), scales * 31 + slot.scale
  end
  if self._version ~= version or self._scales ~= scales or self._of ~= self._order[1]:a() then
    self._of = self._order[1]:a()
    if self._a then
      self._a:release()
      self._b:release()
    end
    self._a, self._b = peri.keep(heaped(self):clone(), stacked(self):clone())
    self._version, self._scales = version, scales
  end
  return self._a, self._b
end

Site.check_unchanged = merging.check_unchanged

--- Called by the layer with its input and output.
--- @param x perilune.Tensor  (..., in)
--- @param y perilune.Tensor  (..., out)
--- @return perilune.Tensor  (..., out)
function Site:forward(x, y)
  if self.owner._off then return y end
  if self.owner.merged then
    self:check_unchanged()
    return y
  end
  local a, b = matrices(self)
  if self.owner.training and self.owner.config.dropout > 0 then x = x:dropout(self.owner.config.dropout) end
  return y:add(x:linear(a):linear(b))
end

local function initial(config, r, columns)
  if config.init == "gaussian" then return peri.randn { r, columns }:mul_(1 / r) end -- N(0, 1/r^2)
  local bound = 1 / math.sqrt(columns) -- kaiming_uniform with a = sqrt(5)
  return peri.rand { r, columns }:mul_(2 * bound):sub_(bound)
end

local rules = {
  r = options.integer(8, "[1, inf)", "rank of the two matrices"),
  alpha = options.number(16, nil, "the product counts alpha / r times, alpha / sqrt(r) with rslora"),
  dropout = options.number(0, "[0, 1)", "of the adapter's input, while training"),
  targets = options.value("all-linear", "string or table", "\"all-linear\", or names of layers: { \"q_proj\", "
    .. "\"v_proj\" }, full ones, also lm_head and tables of embeddings, or Lua patterns that start with ^"),
  rslora = options.boolean(false, "scale by the root of the rank (2312.03732)"),
  init = options.choice("default", { "default", "gaussian" },
    "of the first matrix: uniform as PEFT's, or N(0, 1/r^2)"),
  rank_pattern = options.value({}, "table", "name of a layer -> its own r"),
  alpha_pattern = options.value({}, "table", "name of a layer -> its own alpha"),
}

-- Options cannot be changed afterwards: matrices and scales were made by them.
local function fixed(config)
  return setmetatable({}, { __index = config, __pairs = function() return pairs(config) end, __newindex = function(_, k)
    error(("lora: %s was fixed when the adapter was made; adapter:set_scale(factor) changes its strength")
      :format(tostring(k)), 2)
  end })
end

-- Values of the patterns, and that each of them means a layer that was chosen.
local function check_patterns(config, chosen)
  for _, key in ipairs { "rank_pattern", "alpha_pattern" } do
    local rule = key == "rank_pattern" and rules.r or rules.alpha
    for want, value in pairs(config[key]) do
      local what = ("%s[%q]"):format(key, tostring(want))
      local problem = options.problem(what, value, rule)
      if problem then error("lora: " .. problem, 3) end
      local means = false
      for name in pairs(chosen) do means = means or targets.matches(name, tostring(want)) end
      if not means then error(("lora: %s means none of the layers that are targets"):format(what), 3) end
    end
  end
end

-- What stands on a table of embeddings: the rows of A' of the ids, times B'. -- A (r, rows), B (columns, r)
local Lookup = Module.class("lora lookup", nil, Site)

--- Called by the table with ids and their rows.
--- @param ids perilune.Tensor  (...) i64
--- @param y perilune.Tensor  (..., D)
--- @return perilune.Tensor  (..., D)
function Lookup:forward(ids, y)
  if self.owner._off then return y end
  local slot = self._order[1]
  local rows = derived.weight(slot, "rows", function () return slot:a():transpose():contiguous() end)
  return y:add(rows:embedding(ids):linear(slot:b()):mul(slot.scale))
end

-- A and B of a slot, which begin at nothing. PEFT begins tables of embeddings the other way round.
local function matrices_for(config, kind, r, rows, columns)
  if kind ~= "embedding" then return initial(config, r, columns), peri.zeros { rows, r } end
  return peri.zeros { r, rows }, peri.randn { columns, r }
end

-- An adapter on the modules that `how` wants, at the ranks and alphas that it has for them.
local function build(model, places, config, how)
  local self, sites = Module.instance(LoRA), {}
  self.kind, self.model, self.config, self.merged, self.scale = "LORA", model, fixed(config), false, 1
  self._thaw = targets.freeze(model)
  for _, place in ipairs(places) do
    local kind = place.kind
    local site = Module.instance(kind == "embedding" and Lookup or Site)
    site.owner, site.projection, site.rank = self, place.layer, 0
    site._slots, site._order, site._parts, site._kind = {}, {}, place.parts, kind
    for i, part in ipairs(place.parts) do
      if how.wants(part[1], kind) then
        local r = how.rank(part[1]) or config.r
        local scale = (how.alpha(part[1]) or config.alpha) / (config.rslora and math.sqrt(r) or r)
        local a, b = matrices_for(config, kind, r, part[2], place.columns)
        local slot = Module.instance(Part)
        slot.name, slot.r, slot.scale, slot.trained_scale = part[1], r, scale, scale
        slot._a, slot._b = "lora_A.weight", "lora_B.weight"
        if kind == "embedding" then slot._a, slot._b = "lora_embedding_A", "lora_embedding_B" end
        slot[slot._a] = Module.parameter(a)
        slot[slot._b] = Module.parameter(b)
        self[part[1]] = slot -- so that its tensors are called by the layer that they are for
        site._slots[i], site.rank = slot, site.rank + r
        site._order[#site._order + 1] = slot
      end
    end
    if #site._order > 0 then
      targets.attach(place.layer, site)
      sites[#sites + 1] = site
    end
  end
  self.sites = sites
  return self
end

--- Put a low-rank adapter on a net: every weight of the net is frozen, what can be trained is adapter:parameters().
--- It sits on linear layers, also those inside of attention, on language-model heads and on tables of embeddings; a
--- layer is named by its path, in a published model by the name that it has in the files.
--- @param model table  a published model, or any module of nn
--- @param opts table?
--- @return perilune.peft.LoRA
function M.new(model, opts)
  local places = targets.need("lora", model)
  local config = options.fill("lora", opts, rules)
  local chosen = targets.choose(places, config.targets, "lora", true)
  if next(chosen) == nil then options.raise "lora: the model has no linear layer to put one on" end
  check_patterns(config, chosen)
  local self = build(model, places, config, {
    wants = function (name) return chosen[name] end,
    rank = function (name) return targets.pattern(config.rank_pattern, name) end,
    alpha = function (name) return targets.pattern(config.alpha_pattern, name) end,
  })
  return self
end
options.declare(M.new, { "model" }, rules)

--- Whether the adapter is part of the model's weights now.
--- @return boolean
function LoRA:is_merged() return self.merged ~= false end

local merge_rules = {
  keep = options.boolean(true, "hold copies of the weights, so that unmerge gives them back bit for bit; "
    .. "false: no memory for them, and no way back"),
}

--- Add the adapter to the weights, so that the model computes the same without it. The weights have to be
--- f32 and not packed: in f16 or bf16 most of a small change would be rounded away. What the adapter is
--- loaded with or scaled by while it is merged is merged anew.
--- @param opts table?
--- @return self
function LoRA:merge(opts)
  local o = options.fill("lora.merge", opts, merge_rules)
  if self.merged then error("lora: merged already", 2) end
  merging.merge(self, o.keep, 3)
  return self
end
options.declare(LoRA.merge, {}, merge_rules)

--- Take it out again: the weights are what they were before the merge, bit for bit, whatever the adapter
--- is by now. Raises when that would undo something else: another adapter that was merged later, a change
--- of the weights themselves.
--- @return self
function LoRA:unmerge()
  if not self.merged then error("lora: is not merged", 2) end
  merging.unmerge(self, 3)
  return self
end

-- fn while the adapter is not merged; then it is again.
local function apart(self, fn)
  if not self.merged then return fn() end
  merging.unmerge(self, 4)
  local ok, message = pcall(fn)
  merging.merge(self, true, 4)
  if not ok then error(message, 0) end
end

-- Values are about to be loaded: the weights of a model that it is merged into follow.
function LoRA:_loading()
  if not self.merged then return function () end end
  merging.unmerge(self, 4)
  return function () merging.merge(self, true, 4) end
end

-- A copy brings no tensors of a model that is another's.
function LoRA:_copied(from)
  if from.whole then self.whole = { tensors = from.whole.tensors, undo = {} } end
end

--- Make the adapter stronger or weaker: its product counts factor times as much as alpha says, also when it
--- is merged, saved or merged already. 1 is as it was made, 0 is off.
--- @param factor number
--- @return self
function LoRA:set_scale(factor)
  local problem = options.problem("factor", factor, options.number(options.required))
  if problem then error("lora.set_scale: " .. problem, 2) end
  apart(self, function()
    self.scale = factor
    for _, site in ipairs(self.sites) do
      for _, slot in ipairs(site._order) do slot.scale = slot.trained_scale * factor end
    end
  end)
  return self
end

--- Take the adapter off the model. The model's weights stay frozen, and merged for good when they are.
function LoRA:remove()
  for _, site in ipairs(self.sites) do targets.detach(site.projection, site) end
  if self.whole then whole.remove(self.whole) end
  self.whole = nil
  if self.merged then merging.forget(self) end
  self.sites = {}
end

-- ---- PEFT's folder ---------------------------------------------------------------------------

local PREFIX = "base_model.model."

-- Which layers have an adapter, as PEFT says that: the names that were given or the last parts of theirs, where these
-- mean no other layer; else whole names, or as a last resort a regular expression of them.
local function target_modules(self)
  local chosen, last, seen, full = {}, {}, {}, {}
  for _, site in ipairs(self.sites) do
    for _, slot in ipairs(site._order) do
      local name = slot.name:match "[^.]+$"
      if not seen[name] then seen[name], last[#last + 1] = true, name end
      chosen[slot.name], full[#full + 1] = true, slot.name
    end
  end
  table.sort(last)
  local given = self.config.targets
  local pattern = "(" .. table.concat(full, "|"):gsub("[.+*?^$()%[%]{}\\]", "\\%0") .. ")"
  for _, names in ipairs { type(given) == "table" and given or last, last, full, pattern } do
    local wants, exact = peft_config.chooser { target_modules = names }, true
    for _, place in ipairs(targets.places(self.model)) do
      for _, part in ipairs(place.parts) do
        exact = exact and wants(part[1], place.kind) == (chosen[part[1]] or false)
      end
    end
    if exact then return type(names) == "table" and peri.json.array(names) or names end
  end
  return peri.json.array(full)
end

--- Write adapter_config.json and adapter_model.safetensors as PEFT lays them out.
--- @param folder string
--- @param base string?  name or path of the base model, for the config; default the model's own path
--- @return boolean|nil ok
--- @return string? message
function LoRA:save(folder, base)
  local config, tensors = self.config, {}
  for name, t in pairs(self:state_dict()) do tensors[PREFIX .. name] = t end
  local alphas = {} -- with the factor of set_scale, which PEFT has no place for
  for name, alpha in pairs(config.alpha_pattern) do alphas[name] = alpha * self.scale end
  if self.scale == 1 then alphas = config.alpha_pattern end -- in the order of the file that it came from
  local transposed = self.sites[1] ~= nil and self.sites[1].projection.transposed == true
  local c = self.published or {} -- of an adapter of PEFT: which layers are meant, as it says that
  for name, t in pairs(self.whole and self.whole.tensors or {}) do tensors[self.whole_names[name]] = t end
  return targets.save(folder, tensors, {
    peft_type = "LORA", task_type = targets.task(self.model), r = config.r, lora_alpha = config.alpha * self.scale,
    lora_dropout = config.dropout, use_rslora = config.rslora, use_dora = false, fan_in_fan_out = transposed,
    init_lora_weights = config.init == "gaussian" and "gaussian" or true, bias = c.bias or "none",
    inference_mode = true, target_modules = c.target_modules or target_modules(self),
    exclude_modules = c.exclude_modules, layers_to_transform = c.layers_to_transform, layers_pattern = c.layers_pattern,
    rank_pattern = config.rank_pattern, alpha_pattern = alphas, modules_to_save = c.modules_to_save or peri.json.null,
    base_model_name_or_path = base or self.model.source_path or peri.json.null,
  })
end

-- Names of an adapter_model.safetensors without what PEFT puts in front and between: of A and B, and of tensors that
-- came whole, whose own names are kept for saving.
local function read_tensors(tensors)
  local pairs_of, full, names = {}, {}, {}
  for name, t in pairs(tensors) do
    local short = name:sub(1, #PREFIX) == PREFIX and name:sub(#PREFIX + 1) or name
    if short:find "%.lora_[%a_]+" then
      pairs_of[short:gsub("%.default%.weight$", ".weight"):gsub("%.default$", "")] = t
    else
      short = short:gsub("%.modules_to_save%.default%.", "."):gsub("%.modules_to_save%.", ".")
        :gsub("%.original_module%.", "."):gsub("%.base_layer%.", ".")
      full[short], names[short] = t, name
    end
  end
  return pairs_of, full, names
end

-- Tensors that come whole and may not, or that should and do not.
local function check_whole(c, full, modules)
  local embeddings = {}
  for _, module in ipairs(modules) do
    if module.kind ~= "linear" then embeddings[module.parts[1][1]] = true end
  end
  for _, name in ipairs(options.names(full)) do
    local module, last = name:match "^(.*)%.([^.]+)$"
    local fine = module and (peft_config.is_saved(c, module) or embeddings[module]
      or last == "bias" and c.bias ~= nil and c.bias ~= "none")
    if not fine then return name .. " is unexpected" end
  end
end

--- Put an adapter of PEFT on a model: what peft.load is for LoRA.
--- @param model table
--- @param c table  adapter_config.json, checked
--- @param tensors table<string, perilune.Tensor>
--- @return perilune.peft.LoRA|nil
--- @return string? message
function M.open(model, c, tensors)
  local config = { r = math.tointeger(c.r), alpha = c.lora_alpha or 8, dropout = c.lora_dropout or 0,
    targets = c.target_modules, rslora = c.use_rslora == true, init = "default",
    rank_pattern = c.rank_pattern or {}, alpha_pattern = c.alpha_pattern or {} }
  local low, full, names = read_tensors(tensors)
  local places = targets.places(model)
  local problem = check_whole(c, full, places)
  if problem then return nil, problem end
  local self = build(model, places, config, { wants = peft_config.chooser(c), rank = peft_config.lookup(c.rank_pattern),
    alpha = peft_config.lookup(c.alpha_pattern) })
  self.published, self.whole_names = c, names
  if #self.sites == 0 and next(full) == nil then
    self._thaw()
    return nil, ("target_modules %s means no layer of this model"):format(peri.json.encode(c.target_modules))
  end
  local ok, message = pcall(self.load_state_dict, self, low)
  if ok then
    self.whole, message = whole.place(model, full)
    if self.whole then return self end
  end
  self:remove()
  self._thaw()
  return nil, message
end

return M
