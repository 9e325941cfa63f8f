-- optest.lua - inputs for any op, made from what its block says under TESTS(...): what the table-driven tests share.
-- A call is a list of entries separated by ";":
--   shape=2,3            of every tensor without one of its own (default 2,3)
--   x.shape=3,5          of the tensor x; xs2.shape of the second tensor of the list xs; () is 0-dim
--   xs.count=1           tensors of the list xs (default 2)
--   x=0.2..3             range of x's values (default -2..2); target=int:0..3 makes i64,
--   mask=bool / m=u8:0..1  names the dtype
--   y=i64[1,0]           these values; the shape is (2) where none is given
--   weight=packed        a packed weight;  y=number:0.5 a Lua number;  bias=none an optional tensor left out
--   attr groups=2        an attribute; lists are written 1,2
--   kinks=0,1            values that inputs stay 0.1 away from
local peri = require "perilune"

local M = {}

local function numbers(s)
  local t = {}
  if s == "()" then return t end
  for n in s:gmatch "[^,]+" do t[#t + 1] = tonumber(n) end
  return t
end

local function parse(domain)
  local d = { ranges = {}, shapes = {}, counts = {}, attrs = {}, kinks = {}, shape = { 2, 3 } }
  for entry in ((domain or "") .. ";"):gmatch "%s*(.-)%s*;" do
    local key, value = entry:match "^(.-)%s*=%s*(.*)$"
    if key == "shape" then d.shape = numbers(value)
    elseif key == "kinks" then d.kinks = numbers(value)
    elseif key and key:find "%.count$" then d.counts[key:match "^(.*)%.count$"] = tonumber(value)
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

-- Dtype (nil: the float dtype under test) and bounds of an entry such as "int:0..3".
local function parse_range(range)
  if not range then return nil, -2, 2 end
  if range == "bool" then return "bool", 0, 1 end
  local kind, a, b = range:match "^(%a+%d*):?%s*(%-?[%d.]-)%.%.(%-?[%d.]+)$"
  if not a then kind, a, b = "", range:match "^(%-?[%d.]-)%.%.(%-?[%d.]+)$" end
  return kind ~= "" and (kind == "int" and "i64" or kind) or nil, tonumber(a), tonumber(b)
end

local function values(shape, dtype, lo, hi, kinks, rand)
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
  return build(1)
end

local function numel(shape)
  local n = 1
  for _, s in ipairs(shape) do n = n * s end
  return n
end

-- Large tensors are drawn by the library: the numbers of its generator are tested by themselves.
local function draw(shape, kind, dtype, lo, hi, rand)
  peri.seed(math.floor(rand() * 2 ^ 24))
  if kind then return peri.randint(math.tointeger(lo), math.tointeger(hi) + 1, shape):to(kind) end
  return peri.rand(shape, "f64"):mul(hi - lo):add(lo):to(dtype)
end

-- The values of an entry such as "f32[nan,1]".
local function literal(range, shape)
  local dtype, list = range:match "^(%w+)%[(.*)%]$"
  local t = {}
  for word in list:gmatch "[^,]+" do
    if dtype == "bool" then t[#t + 1] = word == "1"
    elseif word == "nan" then t[#t + 1] = 0 / 0
    else t[#t + 1] = tonumber(word) end
  end
  local made = peri.tensor(t, dtype)
  return shape and made:reshape(shape) or made
end

local function attr(kind, text)
  if kind == "num" then return tonumber(text) end
  if kind == "int" or kind == "dim" or kind == "pos" then return math.tointeger(tonumber(text)) end
  if kind == "bool" then return text == "true" end
  if kind == "dims" or kind == "shape" or kind == "ints" then return numbers(text) end
  return text
end

--- Arguments for one call: a list with holes (n in .n), and which of them are float tensors that may take gradients.
--- @param op table  an entry of peri.ops()
--- @param dtype string  of float tensors
--- @param domain? string  instead of the descriptor's
function M.arguments(op, dtype, domain)
  local d, args, floats = parse(domain or op.domain), { n = #op.params }, {}
  local rand = lcg(seed_of(op.name))
  for i, p in ipairs(op.params) do
    local range = d.ranges[p.name]
    local function tensor(k)
      local given = d.shapes[p.name .. k] or d.shapes[p.name]
      local own = given or d.shape
      if range and range:find "^number:" then return tonumber(range:match ":(.*)$") end
      if range and range:find "%[" then return literal(range, given) end
      if range == "packed" then return peri.pack(peri.tensor(values(own, nil, -2, 2, d.kinks, rand), "f32")) end
      local kind, lo, hi = parse_range(range)
      local t = numel(own) > 4096 and draw(own, kind, dtype, lo, hi, rand)
        or peri.tensor(values(own, kind, lo, hi, d.kinks, rand), kind or dtype)
      if not kind and not p.target then floats[#floats + 1] = t end
      return t
    end
    if p.kind == "tensor" or (p.kind == "tensor?" and (range or d.shapes[p.name]) and range ~= "none") then
      args[i] = tensor ""
    elseif p.kind == "tensors" then
      args[i] = {}
      for k = 1, d.counts[p.name] or 2 do args[i][k] = tensor(k) end
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
  local out = { peri[op.name](table.unpack(args, 1, args.n)) }
  if op.name == "pack" then out[1] = out[1]:to(out[1].dtype) end -- back to elements that can be read
  return out
end

--- A domain with shapes at which threads share the work and rows span many vectors: the block's own, else 128 by 300.
function M.large(op)
  if op.large then return op.large end
  local domain = op.domain or ""
  if domain:find "shape=" then return domain end
  return domain .. "; shape=128,300"
end

--- The block's own domain with sizes that are not 1 times s: those of all dims, of the first or of the last.
--- @param op table
--- @param s integer
--- @param which "all"|"first"|"last"
function M.scaled(op, s, which)
  local function shape(list)
    local n, at = select(2, list:gsub("%d+", "")), 0
    return (list:gsub("%d+", function (size)
      at = at + 1
      local grows = which == "all" or at == (which == "first" and 1 or n)
      return size ~= "1" and grows and tostring(math.tointeger(size) * s) or size
    end))
  end
  local domain = (";" .. (op.domain or "")):gsub("(;%s*[%w_]*%.?shape%s*=%s*)([%d,]+)", function (head, list)
    return head .. shape(list)
  end)
  if not domain:find "[; ]shape" then domain = ";shape=" .. shape "2,3" .. domain end
  return domain:sub(2)
end

local function weights(n, k, dtype)
  if n > 4096 then return peri.arange(1, n + 1):add(k):to("f64"):sin():add(0.3):to(dtype) end
  local w = {}
  for i = 1, n do w[i] = math.sin(i + k) + 0.3 end
  return peri.tensor(w, dtype)
end

--- The sum of every float output times fixed weights: a scalar whose gradient reaches every element.
function M.scalar(outputs)
  local total
  for k, y in ipairs(outputs) do
    local n = y:numel()
    if (y.dtype == "f64" or y.dtype == "f32") and n > 0 then
      local s = y:reshape { n }:mul(weights(n, k, y.dtype)):sum()
      total = total and total:add(s) or s
    end
  end
  return total
end

return M
