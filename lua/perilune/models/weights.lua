-- weights.lua - the weights of a model: declared once as what we hold (q, k, v in one matrix) and what is
-- published (one matrix each); filling them from a source, cast. The walk of nn asks for the names of each.
local dtypes = require "perilune.dtypes"
local peri = require "perilune"
local options = require "perilune.options"
local walk = require "perilune.nn.walk"
local Module = require "perilune.nn.module"
local attention = require "perilune.nn.attention"
local blocks = require "perilune.nn.block"
local layers = require "perilune.nn.layers"
local linear = require "perilune.nn.linear"
local heads = require "perilune.models.head"

local M = {}

-- ---- declarations -------------------------------------------------------------------------------

-- An entry of a layout is a tensor that we hold: { path (from the model on), shape, init ("normal", "ones",
-- "zeros"), form ("matrix", "vector"), kind ("parameter", "buffer": not trained), vector (f32 beside
-- matrices of f16), transposed, parts }, where parts are the published tensors that it is made of, { name, rows }
-- each, one above the other: what walk.lua asks _publish for.

--- @class perilune.models.Declaration
local Declaration = {}
Declaration.__index = Declaration

--- What declare(self, d) of a model is given.
--- @param most integer?  published tensors that there are: more cannot be declared
function M.declaration(model, most) return setmetatable({ model = model, most = most }, Declaration) end

--- Say where the next weights are.
--- @param owner table  what holds them
--- @param ours string  prefix of their names
--- @param published string  prefix of their published names
function Declaration:at(owner, ours, published)
  self.owner, self.ours, self.published = owner, ours, published
end

local function add(self, owner, key, path, entry)
  entry.path, entry.kind, entry.vector = self.ours .. path, entry.kind or "parameter", entry.form == "vector"
  local layout = self.model._layout
  if self.most and #layout >= self.most + 1000 then -- some may be missing: fill() names them
    error(("the config asks for more than the %d tensors there are"):format(self.most), 0)
  end
  table.insert(layout, entry)
  self.model._places[entry.path] = entry
  walk.reserve(owner, key)
end

--- A tensor. init is "ones" (default), "zeros" or "normal"; kind "parameter" (default), "buffer".
function Declaration:tensor(key, published, shape, init, kind)
  add(self, self.owner, key, key, { shape = shape, init = init or "ones", form = "vector", kind = kind,
    parts = { { self.published .. published, shape[1] } } })
end

-- A tensor of a module in a field.
local function of_module(self, key, module, name, published, shape, init)
  add(self, module, name, key .. "." .. name, { shape = shape, init = init, form = "vector",
    parts = { { self.published .. published .. "." .. name, shape[1] } } })
end

--- A LayerNorm.
function Declaration:layer_norm(key, published, dim, eps)
  local norm = Module.instance(layers.LayerNorm)
  norm.dim, norm.eps = dim, eps
  self.owner[key] = norm
  of_module(self, key, norm, "weight", published, { dim }, "ones")
  of_module(self, key, norm, "bias", published, { dim }, "zeros")
end

--- An RMSNorm, or a norm of a class of its kind, whose weight begins at init, "ones" by default.
function Declaration:rms_norm(key, published, dim, eps, class, init)
  local norm = Module.instance(class or layers.RMSNorm)
  norm.dim, norm.eps = dim, eps
  self.owner[key] = norm
  of_module(self, key, norm, "weight", published, { dim }, init or "ones")
end

--- A table of embeddings.
function Declaration:embedding(key, published, rows, columns)
  local module = layers._embedding_of_parts({ { self.published .. published, rows } }, columns)
  self.owner[key] = module
  add(self, module, "weight", key .. ".weight", { shape = { rows, columns }, init = "normal", form = "matrix",
    parts = { { self.published .. published .. ".weight", rows } } })
end

--- A linear layer of one or more published matrices { name, rows }. o has bias, transposed.
function Declaration:linear(key, columns, parts, o)
  local named, weights, biases = {}, {}, {}
  for i, part in ipairs(parts) do
    named[i] = { self.published .. part[1], part[2] }
    weights[i], biases[i] = { named[i][1] .. ".weight", part[2] }, { named[i][1] .. ".bias", part[2] }
  end
  local p = linear.of_parts(named, columns, o and o.transposed)
  self.owner[key] = p
  add(self, p, "weight", key .. ".weight", { shape = { p.out_features, columns }, init = "normal", form = "matrix",
    parts = weights, transposed = p.transposed })
  if o and o.bias then
    add(self, p, "bias", key .. ".bias", { shape = { p.out_features }, init = "zeros", form = "vector",
      parts = biases })
  end
  return p
end

--- The attention of a block: fields of the module, and { dim, at (prefix of the names), qkv or q, k and v, out:
--- published names; bias, out_bias, transposed, q_norm, k_norm: names of norms of heads, eps }.
--- @return perilune.nn.MultiHeadAttention
function Declaration:attention(key, fields, o)
  local module = attention._without_weights(fields)
  local owner, ours, published = self.owner, self.ours, self.published
  local q, kv = module.heads * module.head_dim, module.kv_heads * module.head_dim
  owner[key] = module
  self:at(module, ours .. key .. ".", published .. o.at)
  self:linear("qkv", o.dim, o.qkv and { { o.qkv, q + 2 * kv } } or { { o.q, q }, { o.k, kv }, { o.v, kv } },
    { bias = o.bias, transposed = o.transposed })
  self:linear("out", q, { { o.out, o.dim } }, { bias = o.out_bias, transposed = o.transposed })
  if o.q_norm then
    self:rms_norm("q_norm", o.q_norm, module.head_dim, o.eps)
    self:rms_norm("k_norm", o.k_norm, module.head_dim, o.eps)
  end
  self:at(owner, ours, published)
  return module
end

--- The feed-forward of a block: fields of the module (act, gate ...), and { dim, hidden, at (prefix of the names),
--- gate, up, down: published names; bias, transposed }.
--- @return perilune.nn.FeedForward
function Declaration:feed_forward(key, fields, o)
  local module = blocks._feed_forward_without_weights(fields)
  local owner, ours, published = self.owner, self.ours, self.published
  owner[key] = module
  self:at(module, ours .. (type(key) == "number" and key - 1 or key) .. ".", published .. o.at)
  local how = { bias = o.bias, transposed = o.transposed }
  self:linear("up", o.dim, o.gate and { { o.gate, o.hidden }, { o.up, o.hidden } } or { { o.up, o.hidden } }, how)
  self:linear("down", o.hidden, { { o.down, o.dim } }, how)
  self:at(owner, ours, published)
  return module
end

--- The head: a scorer's, a number for each token; else the language model's, "lm_head", a linear layer or
--- one that reads the table that it is tied to.
--- @param tied boolean
function Declaration:head(tied)
  local embed, scores = self.model.embed, self.model.settings.scores
  if scores then heads.mark(self:linear("score", embed.dim, { { scores.name, 1 } }, { bias = scores.bias }))
  elseif tied then self.model.head = heads.tied(embed)
  else heads.mark(self:linear("head", embed.dim, { { "lm_head", embed.num } })) end
end

--- Where an entry's tensor stands now: owner and key, owner[key]. Whoever replaced what was there is asked.
--- @param model table
--- @param entry table
--- @return table|nil owner  nil when nothing of the kind is there any more
--- @return any key
function M.at(model, entry)
  local owner, key = model, nil
  for word in entry.path:gmatch "[^.]+" do
    if key ~= nil then owner = rawget(owner, key) end
    if type(owner) ~= "table" then return nil end
    local place = math.tointeger(tonumber(word))
    key = place and place + 1 or word -- names in files count from 0
  end
  return owner, key
end

--- What the walk is told of a tensor of a model: the entry of its place, or the one part that it is where the parts
--- of a matrix stay apart ("layers.0.ff.up.weights.1"). Nil for what was never declared, or has another shape there.
--- @param model table
--- @param path string
--- @param tensor perilune.Tensor
--- @return table|nil
function M.published(model, path, tensor)
  local entry = model._places[path]
  if not entry then
    local of, place = path:match "^(.*)%.weights%.(%d+)$"
    entry = of and model._places[of .. ".weight"]
    local part = entry and entry.parts[tonumber(place) + 1]
    if not part then return nil end
    return { kind = entry.kind, parts = { part }, transposed = entry.transposed, vector = entry.vector }
  end
  local rows, columns = entry.shape[1], entry.shape[2]
  if tensor:size(1) == rows and tensor.ndim == #entry.shape and (not columns or tensor:size(2) == columns) then
    return entry
  end
end

-- ---- filling -------------------------------------------------------------------------------------

--- Names under which checkpoints of other ages have the same tensor, its own first.
function M.candidates(self, name)
  local list = { name }
  local first = self.prefixes[1]
  if #first > 0 and name:sub(1, #first) == first then list[2] = name:sub(#first + 1) end
  for _, twin in ipairs(self:twins(name)) do list[#list + 1] = twin end
  local n = #list
  for i = 1, n do
    local old = list[i]:gsub("LayerNorm%.weight$", "LayerNorm.gamma"):gsub("LayerNorm%.bias$", "LayerNorm.beta")
    if old ~= list[i] then list[#list + 1] = old end
  end
  return list
end

local candidates = M.candidates

local quantised = dtypes.quantised -- elements of a block

--- Whether an entry may be in other dtypes than f32, and packed.
function M.is_product(p) return p.form == "matrix" end

-- The dtype that a weight of this entry is kept in.
local function kept(p, stored, wanted)
  if not M.is_product(p) then return "f32" end
  if wanted == "file" then
    if p.transposed and quantised[stored] then return "f32" end
    return stored
  end
  local block = quantised[wanted]
  if block and p.shape[2] % block ~= 0 then return "f16" end -- rows that blocks do not divide
  return wanted
end

-- Rows of matrices one above the other, as one matrix.
local function stack(list)
  if #list == 1 then return list[1] end
  if not quantised[list[1].dtype] then return peri.cat(list, 1) end
  local bytes = {}
  for i, t in ipairs(list) do bytes[i] = t:bitcast("u8") end
  return peri.cat(bytes, 1):bitcast(list[1].dtype)
end

-- Tensors of one entry, cast: one, or a list where the parts' dtypes differ. One part is in memory at a time besides
-- what is kept.
local function gather(p, parts, wanted)
  local kinds, same = {}, true
  for i, t in ipairs(parts) do
    kinds[i] = kept(p, t.dtype, wanted)
    same = same and kinds[i] == kinds[1]
  end
  local function plain(i)
    local t = parts[i]
    if p.transposed then t = (quantised[t.dtype] and t:to("f32") or t):transpose():contiguous() end
    return t.dtype == kinds[i] and t or t:to(kinds[i])
  end
  if same and #parts == 1 then
    local t = plain(1)
    if t == parts[1] and wanted ~= "file" and not quantised[t.dtype] then return t:clone() end
    return t
  elseif same and not quantised[kinds[1]] then
    local t, at = peri.empty(p.shape, kinds[1]), 1
    for i, part in ipairs(parts) do
      local one <close> = peri.scope() -- luacheck: ignore 211
      if quantised[part.dtype] then part = part:to(t.dtype) end
      t:narrow(1, at, p.parts[i][2]):copy_(p.transposed and part:transpose() or part)
      at = at + p.parts[i][2]
    end
    return t
  end
  local list = {}
  for i = 1, #parts do list[i] = plain(i) end
  return same and stack(list) or list
end

-- A weight takes its place; those in f32 are trained, unless they are the file's own memory.
local function place(model, p, made, opts)
  local owner, key = M.at(model, p)
  local pack = opts.pack
  if p.form == "matrix" then owner.packed = pack end
  if type(made) == "table" then
    if pack then for i, t in ipairs(made) do made[i] = peri.pack(t) end end
    owner.weights, owner.weight = made, nil
    return table.unpack(made)
  end
  if pack and M.is_product(p) then made = peri.pack(made)
  elseif made.dtype == "f32" then
    made = made:detach():requires_grad_(p.kind == "parameter" and opts.dtype ~= "file")
  end
  owner[key] = made
  return made
end

-- What a published tensor has to be like. Returns what is wrong with it, or nil.
local function misfit(p, part, t)
  local want = { part[2], p.shape[2] }
  if p.transposed then want = { p.shape[2], part[2] } end
  local same = t.ndim == #p.shape
  for i = 1, #p.shape do same = same and t:size(i) == want[i] end
  if same then return nil end
  return ("%s has shape %s, expected %s"):format(part[1], options.shape(t), options.shape(want))
end

--- Fill every weight.
--- @param model table
--- @param names string[]  what there is
--- @param get fun(name: string): perilune.Tensor|nil, string?
--- @param opts table  dtype; pack
--- @return boolean|nil ok
--- @return string? message
function M.fill(model, names, get, opts)
  local have, used, found, problems = {}, {}, {}, {}
  for _, name in ipairs(names) do have[name] = true end
  for _, p in ipairs(model._layout) do
    for _, part in ipairs(p.parts) do
      for _, name in ipairs(candidates(model, part[1])) do
        if have[name] and not found[part[1]] then found[part[1]], used[name] = name, true end
      end
      if not found[part[1]] then problems[#problems + 1] = part[1] .. " is missing" end
    end
  end
  for _, name in ipairs(names) do
    if not used[name] and not model:ignored(name) then problems[#problems + 1] = name .. " is unexpected" end
  end
  local _ <close> = peri.no_grad()
  for _, p in ipairs(#problems == 0 and model._layout or {}) do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local parts = {}
    for i, part in ipairs(p.parts) do
      local t, message = get(found[part[1]])
      problems[#problems + 1] = not t and message or t and misfit(p, part, t) or nil
      parts[i] = t
    end
    if #problems > 0 then break end
    peri.keep(place(model, p, gather(p, parts, opts.dtype), opts))
  end
  if #problems == 0 then return true end
  table.sort(problems)
  return nil, ("%s: the weights do not fit the config: %s"):format(model.__name, table.concat(problems, "; "))
end

M.quantised = quantised

--- Dtypes that a weight can be cast to.
M.dtypes = {}
for _, name in ipairs(dtypes.weights) do M.dtypes[name] = true end

return M
