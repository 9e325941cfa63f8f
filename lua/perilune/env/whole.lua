-- whole.lua - environments that are written with tensor ops: between the functions of their author and the runner,
-- which gets tensors of the right size and dtype. The state S of a batch is one table; its tensors have a row for each
-- environment, so that rows can begin alone, be saved and be loaded.
local peri = require "perilune.core"
local options = require "perilune.options"

local M = {}

-- What may stand for a dtype, bit for bit or but rounded. ORDER dtype
local converts <const> = {
  f32 = { f64 = true, i64 = true, i32 = true, u8 = true },
  f64 = { f32 = true, i64 = true, i32 = true, u8 = true },
  i64 = { i32 = true, u8 = true },
}

local function result(who, name, t, shape, dtype)
  if not peri.is_tensor(t) then
    error(("%s returned %s as %s, expected a tensor %s of %s"):format(who, type(t), name, options.shape(shape), dtype),
      0)
  end
  local fits = t.ndim == #shape
  for i, n in ipairs(shape) do fits = fits and t.shape[i] == n end
  if not fits or (t.dtype ~= dtype and not (converts[dtype] and converts[dtype][t.dtype])) then
    error(("%s returned %s of %s as %s, expected %s of %s"):format(who, options.shape(t), t.dtype, name,
      options.shape(shape), dtype), 0)
  end
  return t.dtype == dtype and t or t:to(dtype)
end

-- A tensor whose rows are environments.
local function is_rows(v, n) return peri.is_tensor(v) and v.ndim > 0 and v.shape[1] == n end

-- Rows of a where mask says so, of b elsewhere.
local function choose(mask, a, b)
  if a.ndim == 1 then return peri.where(mask, a, b) end
  local shape = { mask.shape[1] }
  for i = 2, a.ndim do shape[i] = 1 end
  return peri.where(mask:reshape(shape), a, b)
end
M.choose = choose

-- A reset of some rows has made S of before: of new tensors only those rows count.
local function merge(S, before, mask)
  local n = mask.shape[1]
  for k, v in pairs(S) do
    local old = before[k]
    if not rawequal(v, old) then
      if is_rows(v, n) and peri.is_tensor(old) and options.shape(v) == options.shape(old) and v.dtype == old.dtype then
        S[k] = choose(mask, v, old)
      else
        error(("reset of some rows changed S.%s, which is no tensor of %d rows as before: the others would see it")
          :format(tostring(k), n), 0)
      end
    end
  end
end

-- What a function returned without the spec declaring it.
local function unwanted(who, name, v, field)
  if v ~= nil then error(("%s returned %s, but the environment has no %s"):format(who, name, field), 0) end
end

--- The functions that the runner calls, and the state.
--- @param spec table  checked
--- @param n integer
--- @return table  { S, step = function, reset = function }
function M.bind(spec, n)
  local S = {}
  local self = { S = S, n = n }
  local obs_shape, rows = { n, table.unpack(spec.obs.shape) }, { n }
  local legal = spec.mask and { n, spec.action.n }
  local named = spec.metrics and { n, #spec.metrics }
  local user_step, user_reset = spec.step, spec.reset

  function self.step(action, rng)
    local _ <close> = peri.no_grad()
    local obs, reward, terminated, truncated, mask, metrics, more = user_step(S, action, rng)
    if not legal then unwanted("step", "a mask", mask, "mask = true") end
    if not named then unwanted("step", "metrics", metrics, "metrics") end
    unwanted("step", "a seventh value", more, "more than metrics")
    obs = result("step", "obs", obs, obs_shape, spec.obs.dtype)
    reward = result("step", "reward", reward, rows, "f64")
    terminated = result("step", "terminated", terminated, rows, "bool")
    truncated = truncated ~= nil and result("step", "truncated", truncated, rows, "bool") or peri.zeros(rows, "bool")
    mask = legal and result("step", "mask", mask, legal, "bool") or false
    peri.keep(S)
    metrics = named and result("step", "metrics", metrics, named, "f32") or nil
    return { obs, mask, reward, terminated, truncated, metrics }
  end

  function self.reset(which, all, rng)
    local _ <close> = peri.no_grad()
    local before = {}
    for k, v in pairs(S) do before[k] = v end
    local obs, mask, more = user_reset(S, which, rng)
    if not legal then unwanted("reset", "a mask", mask, "mask = true") end
    unwanted("reset", "a third value", more, "more than a mask")
    obs = result("reset", "obs", obs, obs_shape, spec.obs.dtype)
    mask = legal and result("reset", "mask", mask, legal, "bool") or false
    if not all then merge(S, before, which) end
    peri.keep(S)
    return { obs, mask }
  end
  return self
end

-- ---- states ----

-- What S holds, by the author's save function where there is one: tensors by name, and all else.
local function parts(self, spec)
  local tensors, rest = {}, {}
  for k, v in pairs(spec.save and spec.save(self.S) or self.S) do
    if peri.is_tensor(v) then
      if type(k) ~= "string" then
        options.raise(("save: S[%s] is a tensor; its key must be a string"):format(tostring(k)))
      end
      tensors[k] = v
    else rest[k] = v end
  end
  return tensors, rest
end
M.parts = parts

--- Put tensors and plain values into S.
function M.take(self, spec, tensors, rest)
  local fresh = {}
  for k, v in pairs(rest) do fresh[k] = v end
  for k, v in pairs(tensors) do fresh[k] = v:clone() end
  if spec.load then
    fresh = spec.load(fresh)
    if type(fresh) ~= "table" then
      options.raise(("%s: load returned %s, expected the state, a table"):format(spec.id, type(fresh)))
    end
  end
  for k in pairs(self.S) do self.S[k] = nil end
  for k, v in pairs(fresh) do self.S[k] = v end
  peri.keep(self.S)
end

--- Row i alone: a table of tensors (1, ...). All of S must be rows.
function M.row(self, spec, i)
  local tensors, rest = parts(self, spec)
  local k = next(rest)
  for name, t in pairs(tensors) do
    if not is_rows(t, self.n) then k = name else tensors[name] = t:narrow(1, i, 1) end
  end
  if k ~= nil then
    options.raise(("save: %s: S.%s is no tensor of %d rows, so a row cannot be saved alone"):format(spec.id,
      tostring(k), self.n))
  end
  return tensors
end

--- Put what row gave into row i.
function M.put_row(self, spec, i, row)
  local tensors = M.row(self, spec, i)
  for name, t in pairs(tensors) do
    local new = row[name]
    if not new or options.shape(new) ~= options.shape(t) or new.dtype ~= t.dtype then
      options.raise(("load: %s: the state has no S.%s of %s %s"):format(spec.id, name, options.shape(t), t.dtype))
    end
  end
  for name in pairs(row) do
    if not tensors[name] then
      options.raise(("load: %s: the state has a S.%s, which is not known here"):format(spec.id, name))
    end
  end
  local which = peri.arange(1, self.n + 1):eq(i)
  local all, rest = parts(self, spec)
  local fresh = {}
  for name, t in pairs(all) do fresh[name] = choose(which, row[name]:expand(t.shape), t) end
  M.take(self, spec, fresh, rest)
end

return M
