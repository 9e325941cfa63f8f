-- optest.lua - inputs for any op, made from its descriptor: what the table-driven tests share.
-- The descriptor's domain is a list of entries separated by ";":
--   shape=2,3            of every tensor without one of its own (default 2,3)
--   x.shape=3,5          of the tensor x; xs2.shape of the second tensor of the list xs; () is 0-dim
--   x=0.2..3             range of x's values (default -2..2); target=int:0..3 makes i64,
--   mask=bool / m=u8:0..1  names the dtype
--   attr groups=2        an attribute; lists are written 1,2
--   kinks=0,1            values that inputs stay 0.1 away from
--   x=none               the optional tensor is left out
local peri = require "perilune"

local M = {}

local function numbers(s)
  local t = {}
  if s == "()" then return t end
  for n in s:gmatch "[^,]+" do t[#t + 1] = tonumber(n) end
  return t
end

local function parse(domain)
  local d = { ranges = {}, shapes = {}, attrs = {}, kinks = {}, shape = { 2, 3 } }
  for entry in ((domain or "") .. ";"):gmatch "%s*(.-)%s*;" do
    local key, value = entry:match "^(.-)%s*=%s*(.*)$"
    if key == "shape" then d.shape = numbers(value)
    elseif key == "kinks" then d.kinks = numbers(value)
    elseif key and key:find "%.shape$" then d.shapes[key:match "^(.*)%.shape$"] = numbers(value)
    elseif key and key:find "^attr " then d.attrs[key:match "^attr%s+(.*)$"] = value
    elseif key then d.ranges[key] = value end
  end
  return d
end

-- A small generator of its own, so that inputs do not depend on the library under test.
local function lcg(seed)
  local x = seed & 0xffffffff
  return function ()
    x = (x * 1664525 + 1013904223) & 0xffffffff
    return (x >> 8) / (1 << 24)
  end
end

local function seed_of(name)
  local h = 2166136261
  for i = 1, #name do h = ((h ~ name:byte(i)) * 16777619) & 0xffffffff end
  return h
end

local function values(shape, range, kinks, rand)
  local dtype, lo, hi = nil, -2, 2
  if range == "bool" then dtype, lo, hi = "bool", 0, 1
  elseif range then
    local kind, a, b = range:match "^(%a+%d*):?%s*(%-?[%d.]-)%.%.(%-?[%d.]+)$"
    if not a then kind, a, b = "", range:match "^(%-?[%d.]-)%.%.(%-?[%d.]+)$" end
    dtype = kind ~= "" and (kind == "int" and "i64" or kind) or nil
    lo, hi = tonumber(a), tonumber(b)
  end
  local function one()
    if dtype then
      local n = lo + math.floor(rand() * (hi - lo + 1))
      if dtype == "bool" then return n == 1 end
      return math.tointeger(n)
    end
    while true do
      local v = lo + rand() * (hi - lo)
      local far = true
      for _, k in ipairs(kinks) do far = far and math.abs(v - k) > 0.1 end
      if far then return v end
    end
  end
  local function build(dim)
    if dim > #shape then return one() end
    local t = {}
    for i = 1, shape[dim] do t[i] = build(dim + 1) end
    return t
  end
  return build(1), dtype
end

local function attr(kind, text)
  if kind == "num" then return tonumber(text) end
  if kind == "int" or kind == "dim" or kind == "pos" then return math.tointeger(tonumber(text)) end
  if kind == "bool" then return text == "true" end
  if kind == "dims" or kind == "shape" or kind == "ints" then return numbers(text) end
  return text
end

--- Arguments for one call: a list with holes (n in .n), and which of them are float tensors.
--- @param op table  an entry of peri.ops()
--- @param dtype string  of float tensors
--- @param domain? string  instead of the descriptor's
function M.arguments(op, dtype, domain)
  local d, args, floats = parse(domain or op.domain), { n = #op.params }, {}
  local rand = lcg(seed_of(op.name))
  for i, p in ipairs(op.params) do
    local range = d.ranges[p.name]
    local shape = d.shapes[p.name] or d.shape
    local function tensor(k)
      local own = d.shapes[p.name .. k] or shape
      local v, kind = values(own, range, d.kinks, rand)
      local t = peri.tensor(v, kind or dtype)
      if not kind then floats[#floats + 1] = t end
      return t
    end
    if p.kind == "tensor" or (p.kind == "tensor?" and (range or d.shapes[p.name]) and range ~= "none") then
      args[i] = tensor ""
    elseif p.kind == "tensors" then
      args[i] = { tensor(1), tensor(2) }
    elseif d.attrs[p.name] then
      args[i] = attr(p.kind, d.attrs[p.name])
    elseif p.kind == "dtype" and not p.optional then
      args[i] = dtype
    end
  end
  return args, floats
end

--- Call op on arguments of M.arguments; every returned tensor in a list. Random ops draw the same
--- numbers each time.
function M.call(op, args)
  if op.flags.random then peri.seed(7) end
  return { peri[op.name](table.unpack(args, 1, args.n)) }
end

--- The sum of every float output times fixed weights: a scalar whose gradient reaches every element.
function M.scalar(outputs)
  local total
  for k, y in ipairs(outputs) do
    if (y.dtype == "f64" or y.dtype == "f32") and y:numel() > 0 then
      local w, n = {}, y:numel()
      for i = 1, n do w[i] = math.sin(i + k) + 0.3 end
      local s = y:reshape { n }:mul(peri.tensor(w, y.dtype)):sum()
      total = total and total:add(s) or s
    end
  end
  return total
end

return M
