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
      local kind, lo, hi = parse_range(range)
      local t = numel(own) > 4096 and draw(own, kind, dtype, lo, hi, rand)
        or peri.tensor(values(own, kind, lo, hi, d.kinks, rand), kind or dtype)
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
  local out = { peri[op.name](table.unpack(args, 1, args.n)) }
  if op.name == "pack" then out[1] = out[1]:to(out[1].dtype) end -- back to elements that can be read
  return out
end

-- Shapes at which threads share the work and rows span many vectors, for ops whose domain has shapes
-- of its own. The other ones take 128 by 300.
local large = {
  rand = "attr shape=200,300", randn = "attr shape=200,300", randint = "attr shape=200,300; attr low=-3; attr high=9",
  randperm = "attr n=50000", reshape = "shape=128,300; attr shape=3,-1",
  expand = "shape=128,1; attr shape=3,128,300", flatten = "shape=20,30,40", permute = "shape=20,30,40; attr dims=3,1,2",
  squeeze = "shape=128,1,300", diag_embed = "shape=300", diag = "shape=300",
  gather = "x.shape=128,300; index.shape=120,300; index=int:0..127; attr dim=1",
  index_select = "x.shape=200,300; index.shape=150; index=int:0..199; attr dim=1",
  embedding = "weight.shape=50,300; ids.shape=20,10; ids=int:0..49", masked_scatter = "shape=128,300; mask=bool; src.shape=38400",
  scatter = "x.shape=128,300; index.shape=120,300; src.shape=120,300; index=int:0..127; attr dim=1",
  scatter_add = "x.shape=128,300; index.shape=120,300; src.shape=120,300; index=int:0..127; attr dim=1",
  index_add = "x.shape=200,300; index.shape=150; src.shape=150,300; index=int:0..199; attr dim=1",
  embedding_backward = "g.shape=20,10,300; ids.shape=20,10; ids=int:0..49; attr rows=50",
  matmul = "a.shape=3,65,130; b.shape=130,70", linear = "x.shape=130,200; weight.shape=150,200; bias.shape=150",
  outer = "a.shape=200; b.shape=210", einsum = "shape=100,100; attr equation=ij,jk->ik",
  unpack_qkv = "shape=64,50,4,8; attr heads=2; attr kv_heads=1", softmax_backward = "y=0.1..0.9; shape=128,300",
  log_softmax_backward = "y=-3..0; shape=128,300",
  layer_norm_backward = "shape=128,300; weight.shape=300; add.shape=128,300",
  rms_norm_backward = "shape=128,300; weight.shape=300; add.shape=128,300",
  layer_norm = "x.shape=128,300; weight.shape=300; bias.shape=300", rms_norm = "x.shape=128,300; weight.shape=300",
  add_layer_norm = "shape=128,300; weight.shape=300; bias.shape=300", add_rms_norm = "shape=128,300; weight.shape=300",
  group_norm = "x.shape=16,8,40,10; weight.shape=8; bias.shape=8; attr groups=2", swiglu = "x.shape=128,300",
  swiglu_backward = "x.shape=128,300; g.shape=128,150",
  rope = "x.shape=4,40,4,64; positions=int:0..50; positions.shape=40; inv_freq=f32:0..2; inv_freq.shape=32",
  rope_qkv = "x.shape=4,40,8,64; positions=int:0..50; positions.shape=40; inv_freq=f32:0..2; inv_freq.shape=32; "
    .. "attr heads=4; attr kv_heads=2",
  rope_qkv_backward = "gq.shape=4,40,4,64; gk.shape=4,40,2,64; gv.shape=4,40,2,64; positions=int:0..50; positions.shape=40; "
    .. "inv_freq=f32:0..2; inv_freq.shape=32",
  move_rows_ = "x.shape=200,300; from.shape=90; to.shape=90; from=int:0..199; to=int:0..199",
  kv_append_ = "shape=4,40,4,32; cache_k.shape=4,100,4,32; cache_v.shape=4,100,4,32; attr pos=30",
  attention_step_ = "cache_k.shape=4,60,2,32; cache_v.shape=4,60,2,32; qkv.shape=4,9,8,32; attr pos=50",
  attention = "shape=2,80,4,32; attr causal=true", attention_backward = "shape=2,80,4,32; lse.shape=2,4,80; lse=4..5; "
    .. "attr causal=true",
  cross_entropy = "shape=128,300; target.shape=128; target=int:0..299; attr label_smoothing=0.1",
  cross_entropy_backward = "g.shape=(); logits.shape=128,300; target.shape=128; target=int:0..299; stats.shape=128,2; "
    .. "stats=1..2",
  token_logprob = "hidden.shape=100,64; weight.shape=300,64; target.shape=100; target=int:0..299; bias.shape=300",
  token_logprob_backward = "g_logp.shape=100; g_entropy.shape=100; hidden.shape=100,64; weight.shape=300,64; "
    .. "target.shape=100; target=int:0..299; bias.shape=300; stats.shape=100,2; stats=5..6",
}

--- A domain with large shapes.
function M.large(op)
  if large[op.name] then return large[op.name] end
  local domain = op.domain or ""
  if domain:find "shape=" then return domain end
  return domain .. "; shape=128,300"
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
