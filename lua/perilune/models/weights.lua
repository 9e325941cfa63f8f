-- weights.lua - the weights of a model: declared once as what we hold (q, k, v in one matrix) and what is
-- published (one matrix each); filling them from a source, cast, and taking them apart again.
local peri = require "perilune"
local options = require "perilune.options"
local Projection = require "perilune.models.projection"

local M = {}

-- ---- declarations -------------------------------------------------------------------------------

-- An entry of a layout is a tensor that we hold: { name (ours), owner, key, shape, init ("normal",
-- "ones", "zeros"), kind ("linear", "embedding", "vector", "buffer": not trained), transposed, parts },
-- where parts are the published tensors that it is made of, { name, rows } each, one above the other.

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

local function add(self, owner, key, name, entry)
  entry.name, entry.owner, entry.key = self.ours .. name, owner, key
  local layout = self.model._layout
  if self.most and #layout >= self.most + 1000 then -- some may be missing: fill() names them
    error(("the config asks for more than the %d tensors there are"):format(self.most), 0)
  end
  table.insert(layout, entry)
end

--- A tensor. init is "ones" (default), "zeros" or "normal"; kind "vector" (default), "embedding", "buffer".
function Declaration:tensor(key, published, shape, init, kind)
  add(self, self.owner, key, key, { shape = shape, init = init or "ones", kind = kind or "vector",
    parts = { { self.published .. published, shape[1] } } })
end

--- A LayerNorm: key .. "_w" and key .. "_b".
function Declaration:layer_norm(key, published, dim)
  self:tensor(key .. "_w", published .. ".weight", { dim })
  self:tensor(key .. "_b", published .. ".bias", { dim }, "zeros")
end

--- A table of embeddings.
function Declaration:embedding(key, published, rows, columns)
  self:tensor(key, published, { rows, columns }, "normal", "embedding")
end

--- A linear layer of one or more published matrices { name, rows }.
function Declaration:linear(key, columns, parts, bias, transposed)
  local named, weights, biases = {}, {}, {}
  for i, part in ipairs(parts) do
    named[i] = { self.published .. part[1], part[2] }
    weights[i], biases[i] = { named[i][1] .. ".weight", part[2] }, { named[i][1] .. ".bias", part[2] }
  end
  local p = Projection.new(named, columns, transposed)
  self.owner[key] = p
  table.insert(self.model._projections, p)
  add(self, p, "weight", key, { shape = { p.rows, columns }, init = "normal", kind = "linear", parts = weights,
    transposed = transposed or false })
  if bias then
    add(self, p, "bias", key .. "_bias", { shape = { p.rows }, init = "zeros", kind = "vector", parts = biases })
  end
end

-- ---- filling -------------------------------------------------------------------------------------

-- Names under which checkpoints of other ages have the same tensor.
local function candidates(self, name)
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

local quantised = { q8_0 = 32, q4_0 = 32, q4_1 = 32, q5_0 = 32, q5_1 = 32, q4_K = 256, q5_K = 256, q6_K = 256 }

--- Whether an entry may be in other dtypes than f32, and packed.
function M.is_product(p) return p.kind == "linear" or p.kind == "embedding" end

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

-- Tensors of one entry, cast: one, or a list where the parts' dtypes differ. With `into` they are
-- written over it. One part is in memory at a time besides what is kept.
local function gather(p, parts, wanted, into)
  local dtypes, same = {}, true
  for i, t in ipairs(parts) do
    dtypes[i] = kept(p, t.dtype, wanted)
    same = same and dtypes[i] == dtypes[1]
  end
  local function plain(i)
    local t = parts[i]
    if p.transposed then t = (quantised[t.dtype] and t:to("f32") or t):transpose():contiguous() end
    return t.dtype == dtypes[i] and t or t:to(dtypes[i])
  end
  if not into and same and #parts == 1 then
    local t = plain(1)
    if t == parts[1] and wanted ~= "file" and not quantised[t.dtype] then return t:clone() end
    return t
  elseif into or same and not quantised[dtypes[1]] then
    local t, at = into or peri.empty(p.shape, dtypes[1]), 1
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
local function place(p, made, opts)
  local owner, pack = p.owner, opts.pack
  if p.kind == "linear" then owner.packed = pack end
  if type(made) == "table" then
    if pack then for i, t in ipairs(made) do made[i] = peri.pack(t) end end
    owner.weights, owner.weight = made, nil
    return table.unpack(made)
  end
  if pack and M.is_product(p) then made = peri.pack(made)
  elseif made.dtype == "f32" then made = made:detach():requires_grad_(p.kind ~= "buffer" and opts.dtype ~= "file") end
  owner[p.key] = made
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
--- @param opts table  dtype; pack; check: nothing is written unless everything fits
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
      if not found[part[1]] then problems[#problems + 1] = part[1] .. " is missing"
      elseif opts.check then problems[#problems + 1] = misfit(p, part, get(found[part[1]])) end
    end
  end
  for _, name in ipairs(names) do
    if not used[name] and not model:ignored(name) then problems[#problems + 1] = name .. " is unexpected" end
  end
  local _ <close> = peri.no_grad()
  for _, p in ipairs(#problems == 0 and model._layout or {}) do
    local scope <close> = peri.scope()
    local parts = {}
    for i, part in ipairs(p.parts) do
      local t, message = get(found[part[1]])
      problems[#problems + 1] = not t and message or t and misfit(p, part, t) or nil
      parts[i] = t
    end
    if #problems > 0 then break end
    local old = p.owner[p.key]
    if old and old.dtype == "f32" then gather(p, parts, "f32", old)
    else scope:keep(place(p, gather(p, parts, opts.dtype), opts)) end
  end
  if #problems == 0 then return true end
  table.sort(problems)
  return nil, ("%s: the weights do not fit the config: %s"):format(model.__name, table.concat(problems, "; "))
end

-- ---- taking apart --------------------------------------------------------------------------------

-- Rows [at, at + n) of a weight of any dtype.
local function rows_of(t, at, n)
  if at == 1 and n == t:size(1) then return t end
  if quantised[t.dtype] then return t:bitcast("u8"):narrow(1, at, n):bitcast(t.dtype) end
  return t:narrow(1, at, n)
end

--- Published name -> the rows of get(entry) (a parameter, or something of its shape) that it names.
--- @param model table
--- @param get fun(entry: table): perilune.Tensor|table|nil
--- @return table<string, perilune.Tensor>
function M.split(model, get)
  local out = {}
  for _, p in ipairs(model._layout) do
    local t, at = get(p), 1
    for i, part in ipairs(t and p.parts or {}) do
      local rows = type(t) == "table" and t[i] or rows_of(t, at, part[2])
      out[part[1]] = p.transposed and rows:transpose() or rows
      at = at + part[2]
    end
  end
  return out
end

M.quantised = quantised

--- Dtypes that a weight can be cast to.
M.dtypes = { f32 = true, f16 = true, bf16 = true }
for name in pairs(quantised) do M.dtypes[name] = true end

--- What leaves the model with an adapter in its weights must have that adapter as it is.
--- @param model perilune.models.Model
function M.check_adapters(model)
  for _, p in ipairs(model:projections()) do
    for _, entry in ipairs(p.merged or {}) do
      if not entry.gone then entry.site:check_unchanged() end
    end
  end
end

return M
