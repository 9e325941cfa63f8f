-- ops.lua (of exported policies) - what each op of a program is as loops, for a row of a batch. An entry gets a writer
-- and the call: x, its inputs (false where one is left out), y, its results, attr. Values know their shapes, since the
-- program has run once; sums are of doubles, results are rounded to what they are.

local peri = require "perilune"
local writers = require "perilune.rl.export.writer"

local float = writers.float
local M = {}
local ops = {} -- name -> function (w, call)
M.ops = ops

local function whole(v) return v.kind == "int64_t" end

-- Element `at` of a value, as a double, or as it is.
local function raw(v, at)
  if v.offset == 0 then return ("%s[%s]"):format(v.var, at) end
  return at == "0" and ("%s[%d]"):format(v.var, v.offset) or ("%s[%d + %s]"):format(v.var, v.offset, at)
end

local function read(w, v, at)
  if w.lua or v.kind == "double" then return raw(v, at) end
  return "(double)" .. raw(v, at)
end

local function write(w, y, at, text)
  if not w.lua and y.kind == "float" then text = "(float)(" .. text .. ")" end
  w:set(raw(y, at), text)
end

local function product(shape, from, to)
  local n = 1
  for i = from or 1, to or #shape do n = n * shape[i] end
  return n
end
M.product = product

local function numbered(shape) -- places of a value, by its shape
  return peri.arange(product(shape)):reshape(shape)
end

local function list(t) return t:contiguous():reshape({ t:numel() }):tolist() end

-- A dim of the op, from 0, or from the end, as 1 .. ndim.
local function dim_of(d, ndim) return d < 0 and d + ndim + 1 or d + 1 end

-- ---- element by element ----

-- The elements of v that a result of a shape reads, in its order.
local function spread(w, v, shape, i) return w:at(list(numbered(v.shape):expand(shape)), i) end

-- A loop over the result: fn is given the texts of its inputs.
local function each(w, call, fn, as_integers)
  local y = call.y[1]
  w:loop("i", y.numel, function ()
    local texts = {}
    for k, x in ipairs(call.x) do
      local at = spread(w, x, y.shape, "i")
      texts[k] = as_integers and raw(x, at) or read(w, x, at)
    end
    write(w, y, "i", fn(table.unpack(texts)))
  end)
end

-- Expressions of one number. NaN stays NaN: comparisons are such that it falls through.
local unary = {
  neg = "-%s", abs = "fabs(%s)", sign = "sign(%s)", exp = "exp(%s)", expm1 = "expm1(%s)", log = "log(%s)",
  log1p = "log1p(%s)", log2 = "log2(%s)", sqrt = "sqrt(%s)", rsqrt = "1.0 / sqrt(%s)", square = "square(%s)",
  reciprocal = "1.0 / %s", sin = "sin(%s)", cos = "cos(%s)", erf = "erf(%s)", floor = "floor(%s)", ceil = "ceil(%s)",
  round = "rint(%s)", relu = "relu(%s)", relu_squared = "square(relu(%s))", tanh = "tanh(%s)",
  sigmoid = "sigmoid(%s)", silu = "silu(%s)", gelu = "gelu(%s)", gelu_tanh = "gelu_tanh(%s)",
  quick_gelu = "quick_gelu(%s)", mish = "mish(%s)", isnan = "isnan_(%s)", isinf = "isinf_(%s)",
  isfinite = "isfinite_(%s)", logical_not = "pick(%s == 0.0, 1, 0)", none = "%s",
}
for name, text in pairs(unary) do
  ops[name] = function (w, call)
    local of = name == "gelu" and call.attr.approximate == "tanh" and unary.gelu_tanh or text
    each(w, call, function (x) return of:format(x) end)
  end
end
ops.none = nil

function ops.leaky_relu(w, call)
  local slope = float(call.attr.slope or 0.01)
  each(w, call, function (x) return ("leaky_relu(%s, %s)"):format(x, slope) end)
end
function ops.elu(w, call)
  each(w, call, function (x) return ("elu(%s, %s)"):format(x, float(call.attr.alpha or 1)) end)
end
function ops.softplus(w, call)
  each(w, call, function (x)
    return ("softplus(%s, %s, %s)"):format(x, float(call.attr.beta or 1), float(call.attr.threshold or 20))
  end)
end
function ops.clamp(w, call)
  each(w, call, function (x)
    if call.attr.min then x = ("atleast(%s, %s)"):format(x, float(call.attr.min)) end
    if call.attr.max then x = ("atmost(%s, %s)"):format(x, float(call.attr.max)) end
    return x
  end)
end

-- Of two. Integers are added in the two's complement, as the op does.
local binary = {
  add = "%s + %s", sub = "%s - %s", mul = "%s * %s", div = "%s / %s", pow = "pow(%s, %s)", atan2 = "atan2(%s, %s)",
  maximum = "atleast(%s, %s)", minimum = "atmost(%s, %s)", floordiv = "floor(%s / %s)", mod = "modulo(%s, %s)",
  logical_and = "both(%s, %s)", logical_or = "either(%s, %s)", logical_xor = "differ(%s, %s)",
}
local compared = { eq = "==", lt = "<", le = "<=", gt = ">", ge = ">=" }

for name, text in pairs(binary) do
  ops[name] = function (w, call)
    local y = call.y[1]
    local sum = name == "add" or name == "sub" or name == "mul"
    if whole(y) and not sum and not name:find "^logical" then return "of integers" end
    local of = text
    if whole(y) and sum and not w.lua then of = "(int64_t)(" .. text:gsub("%%s", "(uint64_t)%%s") .. ")" end
    each(w, call, function (a, b) return of:format(a, b) end, whole(y) and sum)
  end
end
for name, sign in pairs(compared) do
  ops[name] = function (w, call)
    each(w, call, function (a, b) return ("pick(%s %s %s, 1, 0)"):format(a, sign, b) end,
      whole(call.x[1]) and whole(call.x[2]))
  end
end
function ops.ne(w, call)
  each(w, call, function (a, b) return ("pick(%s == %s, 0, 1)"):format(a, b) end, whole(call.x[1]) and whole(call.x[2]))
end
function ops.where(w, call)
  each(w, call, function (c, a, b) return ("pick(%s == 0, %s, %s)"):format(c, b, a) end, whole(call.y[1]))
end
function ops.masked_fill(w, call)
  local integers = whole(call.y[1])
  local value = integers and ("%d"):format(math.tointeger(call.attr.value)) or float(call.attr.value + 0.0)
  each(w, call, function (x, m) return ("pick(%s == 0, %s, %s)"):format(m, x, value) end, integers)
end
function ops.lerp(w, call)
  each(w, call, function (a, b, t) return ("%s + %s * (%s - %s)"):format(a, t, b, a) end)
end

-- To another dtype: truncated to whole numbers.
ops["to"] = function (w, call)
  local x, y, dtype = call.x[1], call.y[1], call.attr.dtype
  if x.kind == y.kind and dtype ~= "bool" then return ops.clone(w, call) end
  if dtype == "bool" then return each(w, call, function (v) return ("pick(%s == 0, 0, 1)"):format(v) end) end
  if whole(y) then
    if dtype ~= "i64" and not whole(x) then return "to " .. dtype end
    return each(w, call, function (v) return ("whole(%s)"):format(v) end)
  end
  each(w, call, function (v) return v end)
end

-- ---- elements in another order ----

-- Ops that move elements; each is run on the places of its inputs, from 1 on: 0 is what it fills with.
local movers = { "contiguous", "clone", "reshape", "flatten", "transpose", "permute", "narrow", "select", "expand",
  "squeeze", "unsqueeze", "flip", "diagonal", "cat", "stack", "pad", "tile", "repeat_interleave", "roll", "tril",
  "triu", "diag_embed" }

-- Elements of a result by its map: y[i] = the map[i]-th of all elements of xs, or fill where that is 0.
local function move(w, xs, y, map, fill)
  local last, sources, filled = 0, {}, false
  for k, x in ipairs(xs) do
    sources[k] = { x = x, first = last + 1, from = {}, to = {} }
    last = last + x.numel
  end
  for i, place in ipairs(map) do
    filled = filled or place == 0
    for _, s in ipairs(sources) do
      if place >= s.first and place < s.first + s.x.numel then
        s.from[#s.from + 1], s.to[#s.to + 1] = place - s.first, i - 1
      end
    end
  end
  for _, s in ipairs(sources) do -- one input, in its own order: the same place
    local straight = #s.from == #map
    for i, place in ipairs(s.from) do straight = straight and place == s.from[1] + i - 1 end
    if straight then
      y.same, y.same_offset = s.x, s.from[1]
      return
    end
  end
  if filled then w:loop("i", y.numel, function () w:set(raw(y, "i"), fill) end) end
  for _, s in ipairs(sources) do
    if #s.from > 0 then
      w:loop("i", #s.from, function () w:set(raw(y, w:at(s.to, "i")), raw(s.x, w:at(s.from, "i"))) end)
    end
  end
end

for _, name in ipairs(movers) do
  ops[name] = function (w, call)
    local places, last = {}, 0
    for k, x in ipairs(call.x) do
      places[k] = (numbered(x.shape) + (last + 1)):to "f64"
      last = last + x.numel
    end
    local attr, y = {}, call.y[1]
    for key, v in pairs(call.attr) do attr[key] = v end
    local value = attr.value or 0
    if attr.value then attr.value = 0 end
    local map = list(call.apply(places, attr):to "i64")
    return move(w, call.x, y, map, whole(y) and ("%d"):format(math.tointeger(value)) or float(value + 0.0))
  end
end

-- By an index that the program has computed.
local function by_constant(w, call, index)
  local x = call.x[1]
  local map = list(call.apply({ (numbered(x.shape) + 1):to "f64", index }, call.attr):to "i64")
  return move(w, { x }, call.y[1], map, "0")
end

function ops.index_select(w, call)
  local x, index, y = call.x[1], call.x[2], call.y[1]
  if index.constant then return by_constant(w, call, index.constant) end
  local d = dim_of(call.attr.dim, #x.shape)
  local inner, n, count = product(x.shape, d + 1), x.shape[d], index.numel
  w:loop("o", product(x.shape, 1, d - 1), function ()
    w:loop("k", count, function ()
      w:within(raw(index, "k"), n)
      w:place("from", w:int(("(o * %d + %s) * %d"):format(n, raw(index, "k"), inner)))
      w:loop("i", inner, function ()
        w:set(raw(y, ("(o * %d + k) * %d + i"):format(count, inner)), raw(x, "from + i"))
      end)
    end)
  end)
end

function ops.gather(w, call)
  local x, index, y = call.x[1], call.x[2], call.y[1]
  if index.constant then return by_constant(w, call, index.constant) end
  local d = dim_of(call.attr.dim, #x.shape)
  local first = numbered(x.shape):narrow(d, 1, 1)
  for k, size in ipairs(index.shape) do if k ~= d then first = first:narrow(k, 1, size) end end
  local base = list(first:expand(index.shape))
  w:loop("i", y.numel, function ()
    w:within(raw(index, "i"), x.shape[d])
    w:set(raw(y, "i"), raw(x, ("%s + %s * %d"):format(w:at(base, "i"), w:int(raw(index, "i")),
      product(x.shape, d + 1))))
  end)
end

function ops.embedding(w, call)
  local weight, ids, y = call.x[1], call.x[2], call.y[1]
  local width = weight.shape[2]
  w:loop("k", ids.numel, function ()
    w:within(raw(ids, "k"), weight.shape[1])
    w:loop("i", width, function ()
      w:set(raw(y, ("k * %d + i"):format(width)), raw(weight, ("%s * %d + i"):format(w:int(raw(ids, "k")), width)))
    end)
  end)
end

function ops.one_hot(w, call)
  local x, y, classes = call.x[1], call.y[1], call.attr.classes
  w:loop("i", y.numel, function () w:set(raw(y, "i"), "0") end)
  w:loop("k", x.numel, function ()
    w:within(raw(x, "k"), classes)
    w:set(raw(y, ("k * %d + %s"):format(classes, w:int(raw(x, "k")))), "1")
  end)
end

-- ---- along dims ----

-- Loops of a reduction: fn(o, n, at) for each element o of the result, at(r) the place of the r-th of n.
local function along(w, call, dims, fn)
  local x = call.x[1]
  local ndim, reduced, order = #x.shape, {}, {}
  if dims == nil then for d = 1, ndim do reduced[d] = true end end
  for _, d in ipairs(type(dims) == "table" and dims or { dims }) do reduced[dim_of(d, ndim)] = true end
  for d = 1, ndim do if not reduced[d] then order[#order + 1] = d end end
  local outer = 1
  for _, d in ipairs(order) do outer = outer * x.shape[d] end
  for d = 1, ndim do if reduced[d] then order[#order + 1] = d end end
  local map = ndim > 0 and list(numbered(x.shape):permute(order)) or { 0 }
  local n = x.numel // outer
  w:loop("o", outer, function () fn("o", n, function (r) return w:at2(map, n, "o", r) end) end)
end

-- Reductions: begin, what an element does to it, end.
local folds = {
  sum = { "0.0", "acc + %s" }, mean = { "0.0", "acc + %s", "acc / %d.0" }, prod = { "1.0", "acc * %s" },
  max = { "-INFINITY", "atleast(acc, %s)" }, min = { "INFINITY", "atmost(acc, %s)" },
  all = { "1.0", "both(acc, %s)" }, any = { "0.0", "either(acc, %s)" },
  count_nonzero = { "0.0", "acc + pick(%s == 0.0, 0, 1)" },
}
for name, f in pairs(folds) do
  ops[name] = function (w, call)
    local x, y = call.x[1], call.y[1]
    local integers = whole(x) and whole(y) and name == "sum"
    if whole(x) and whole(y) and (name == "prod" or name == "max" or name == "min") then return "of integers" end
    along(w, call, call.attr.dims, function (o, n, at)
      w:number("acc", integers and "0" or f[1], integers)
      w:loop("r", n, function ()
        local element = integers and raw(x, at "r") or read(w, x, at "r")
        w:set("acc", f[2]:format(element))
      end)
      local text = f[3] and f[3]:format(n) or "acc"
      if whole(y) and not integers then text = ("whole(%s)"):format(text) end
      write(w, y, o, text)
    end)
  end
end

for name, better in pairs { argmax = ">", argmin = "<" } do
  ops[name] = function (w, call)
    local x, y = call.x[1], call.y[1]
    along(w, call, call.attr.dim, function (o, n, at)
      w:place("best", "0")
      w:number("top", read(w, x, at "0"))
      w:loop("r", n, function ()
        w:when(("%s %s top"):format(read(w, x, at "r"), better), function ()
          w:set("top", read(w, x, at "r"))
          w:set("best", "r")
        end)
      end, 1)
      w:set(raw(y, o), "best")
    end)
  end
end

local function mean_and_variance(w, x, n, at)
  w:number("mean", "0.0")
  w:loop("r", n, function () w:add("mean", read(w, x, at "r")) end)
  w:set("mean", ("mean / %d.0"):format(n))
  w:number("var", "0.0")
  w:loop("r", n, function () w:add("var", ("square(%s - mean)"):format(read(w, x, at "r"))) end)
end

for name, root in pairs { var = "%s", std = "sqrt(%s)" } do
  ops[name] = function (w, call)
    along(w, call, call.attr.dims, function (o, n, at)
      mean_and_variance(w, call.x[1], n, at)
      write(w, call.y[1], o, root:format(("var / %d.0"):format(n - (call.attr.ddof or 1))))
    end)
  end
end

function ops.norm(w, call)
  local p = call.attr.p or 2
  if p ~= 2 and p ~= 1 then return ("with p %g"):format(p) end
  along(w, call, call.attr.dims, function (o, n, at)
    w:number("acc", "0.0")
    w:loop("r", n, function ()
      w:add("acc", (p == 2 and "square(%s)" or "fabs(%s)"):format(read(w, call.x[1], at "r")))
    end)
    write(w, call.y[1], o, p == 2 and "sqrt(acc)" or "acc")
  end)
end

local function log_sum(w, x, n, at)
  w:number("top", "-INFINITY")
  w:loop("r", n, function () w:set("top", ("atleast(top, %s)"):format(read(w, x, at "r"))) end)
  w:number("acc", "0.0")
  w:loop("r", n, function () w:add("acc", ("exp(%s - top)"):format(read(w, x, at "r"))) end)
end

function ops.logsumexp(w, call)
  along(w, call, call.attr.dims, function (o, n, at)
    log_sum(w, call.x[1], n, at)
    write(w, call.y[1], o, "top + log(acc)")
  end)
end
for name, text in pairs { softmax = "exp(%s - top) / acc", log_softmax = "%s - top - log(acc)" } do
  ops[name] = function (w, call)
    along(w, call, call.attr.dim or -1, function (_, n, at)
      log_sum(w, call.x[1], n, at)
      w:loop("r", n, function () write(w, call.y[1], at "r", text:format(read(w, call.x[1], at "r"))) end)
    end)
  end
end
for name, f in pairs { cumsum = { "0.0", "acc + %s" }, cumprod = { "1.0", "acc * %s" } } do
  ops[name] = function (w, call)
    if whole(call.y[1]) then return "of integers" end
    along(w, call, call.attr.dim or -1, function (_, n, at)
      w:number("acc", f[1])
      w:loop("r", n, function ()
        w:set("acc", f[2]:format(read(w, call.x[1], at "r")))
        write(w, call.y[1], at "r", "acc")
      end)
    end)
  end
end

-- ---- products ----

-- The sum of n products of neighbours.
local function dot(w, a, at, b, to, n)
  if w.lua then
    return ("dot(%s, %s, %s, %s, %d)"):format(a.var, a.offset == 0 and at or ("%d + %s"):format(a.offset, at), b.var,
      b.offset == 0 and to or ("%d + %s"):format(b.offset, to), n)
  end
  return ("dot(&%s, &%s, %d)"):format(raw(a, at), raw(b, to), n)
end

local function floats(...)
  for _, v in ipairs { ... } do if v and v.kind ~= "float" then return false end end
  return true
end

local function activated(act, text)
  local of = unary[act or "none"]
  return of and of:format(text)
end

function ops.linear(w, call)
  local x, weight, bias = call.x[1], call.x[2], call.x[3]
  if not floats(x, weight, bias) then return "of numbers other than f32" end
  if not unary[call.attr.act or "none"] then return "with the activation " .. tostring(call.attr.act) end
  local n, k = weight.shape[1], weight.shape[2]
  w:loop("m", x.numel // k, function ()
    w:loop("o", n, function ()
      local sum = dot(w, weight, ("o * %d"):format(k), x, ("m * %d"):format(k), k)
      if bias then sum = ("%s + %s"):format(sum, read(w, bias, "o")) end
      write(w, call.y[1], ("m * %d + o"):format(n), activated(call.attr.act, sum))
    end)
  end)
end

function ops.matmul(w, call)
  local a, b, y = call.x[1], call.x[2], call.y[1]
  local m, k = #a.shape > 1 and a.shape[#a.shape - 1] or 1, a.shape[#a.shape]
  local n = #b.shape > 1 and b.shape[#b.shape] or 1
  local batch = { table.unpack(y.shape, 1, math.max(#a.shape, #b.shape, 2) - 2) }
  local function places(v, size) -- where the matrices of a batch begin
    local lead = { table.unpack(v.shape, 1, math.max(#v.shape - 2, 0)) }
    return w:at(list((numbered(lead) * size):expand(batch)), "s")
  end
  w:loop("s", product(batch), function ()
    w:place("from", places(a, m * k))
    w:place("by", places(b, k * n))
    w:loop("m", m, function ()
      w:loop("o", n, function ()
        w:number("acc", "0.0")
        w:loop("r", k, function ()
          w:add("acc", ("%s * %s"):format(read(w, a, ("from + m * %d + r"):format(k)),
            read(w, b, ("by + r * %d + o"):format(n))))
        end)
        write(w, y, ("(s * %d + m) * %d + o"):format(m, n), "acc")
      end)
    end)
  end)
end

-- ---- windows ----

local function pair(v, default, dims)
  if v == nil then return default, default end
  if type(v) ~= "table" then v = { v } end
  if dims == 1 then return default == 0 and 0 or 1, v[1] end
  return v[1], v[2] or v[1]
end

-- fn within the loops over a window, where it lies inside: iy, ix are the places, p, q those of the window.
local function window(w, h, wd, kh, kw, sy, sx, py, px, dy, dx, fn)
  local function inside(name, n, body) w:when(w:both(name .. " >= 0", ("%s < %d"):format(name, n)), body) end
  w:loop("p", kh, function ()
    w:place("iy", ("oy * %d - %d + p * %d"):format(sy, py, dy))
    inside("iy", h, function ()
      w:loop("q", kw, function ()
        w:place("ix", ("ox * %d - %d + q * %d"):format(sx, px, dx))
        inside("ix", wd, fn)
      end)
    end)
  end)
end

for dims = 1, 2 do
  ops["conv" .. dims .. "d"] = function (w, call)
    local x, weight, bias, y, attr = call.x[1], call.x[2], call.x[3], call.y[1], call.attr
    if not floats(x, weight, bias) then return "of numbers other than f32" end
    local groups = attr.groups or 1
    local sy, sx = pair(attr.stride, 1, dims)
    local py, px = pair(attr.padding, 0, dims)
    local dy, dx = pair(attr.dilation, 1, dims)
    local c, h, wd = x.shape[2], dims == 2 and x.shape[3] or 1, x.shape[#x.shape]
    local o, kh, kw = weight.shape[1], dims == 2 and weight.shape[3] or 1, weight.shape[#weight.shape]
    local oh, ow = dims == 2 and y.shape[3] or 1, y.shape[#y.shape]
    local per, filters = c // groups, o // groups
    w:loop("o", o, function ()
      w:place("group", groups == 1 and "0" or ("%s * %d"):format("(" .. w:fdiv("o", filters) .. ")", per))
      w:loop("oy", oh, function ()
        w:loop("ox", ow, function ()
          w:number("acc", bias and read(w, bias, "o") or "0.0")
          w:loop("c", per, function ()
            window(w, h, wd, kh, kw, sy, sx, py, px, dy, dx, function ()
              w:add("acc", ("%s * %s"):format(read(w, weight, ("((o * %d + c) * %d + p) * %d + q"):format(per, kh, kw)),
                read(w, x, ("((group + c) * %d + iy) * %d + ix"):format(h, wd))))
            end)
          end)
          write(w, y, ("(o * %d + oy) * %d + ox"):format(oh, ow), "acc")
        end)
      end)
    end)
  end
  for _, kind in ipairs { "max", "avg" } do
    ops[("%s_pool%dd"):format(kind, dims)] = function (w, call)
      local x, y, attr = call.x[1], call.y[1], call.attr
      if attr.ceil_mode then return "with ceil_mode" end
      if attr.divisor_override then return "with divisor_override" end
      local kh, kw = pair(attr.kernel_size, 1, dims)
      local sy, sx = pair(attr.stride or attr.kernel_size, 1, dims)
      local py, px = pair(attr.padding, 0, dims)
      local dy, dx = pair(attr.dilation, 1, dims)
      local h, wd = dims == 2 and x.shape[#x.shape - 1] or 1, x.shape[#x.shape]
      local oh, ow = dims == 2 and y.shape[#y.shape - 1] or 1, y.shape[#y.shape]
      w:loop("c", x.numel // (h * wd), function ()
        w:loop("oy", oh, function ()
          w:loop("ox", ow, function ()
            w:number("acc", kind == "max" and "-INFINITY" or "0.0")
            local counted = kind == "avg" and attr.count_include_pad == false
            if counted then w:place("count", "0") end
            window(w, h, wd, kh, kw, sy, sx, py, px, dy, dx, function ()
              local element = read(w, x, ("(c * %d + iy) * %d + ix"):format(h, wd))
              if kind == "max" then w:set("acc", ("atleast(acc, %s)"):format(element))
              else
                w:add("acc", element)
                if counted then w:add("count", "1") end
              end
            end)
            local by = counted and "count" or ("%d"):format(kh * kw)
            write(w, y, ("(c * %d + oy) * %d + ox"):format(oh, ow), kind == "max" and "acc" or "acc / " .. by)
          end)
        end)
      end)
    end
  end
end

-- ---- normalisation ----

local function scaled(w, weight, bias, text, i)
  if weight then text = ("(%s) * %s"):format(text, read(w, weight, i)) end
  if bias then text = ("%s + %s"):format(text, read(w, bias, i)) end
  return text
end

-- Rows of x, each brought to mean 0 and variance 1, or to mean square 1.
local function normalise(w, x, weight, bias, y, eps, centred)
  local n = x.shape[#x.shape]
  w:loop("o", x.numel // n, function ()
    local function at(r) return ("o * %d + %s"):format(n, r) end
    if centred then mean_and_variance(w, x, n, at)
    else
      w:number("var", "0.0")
      w:loop("r", n, function () w:add("var", ("square(%s)"):format(read(w, x, at "r"))) end)
    end
    w:number("scale", ("1.0 / sqrt(var / %d.0 + %s)"):format(n, float(eps)))
    w:loop("r", n, function ()
      local text = (centred and "(%s - mean) * scale" or "%s * scale"):format(read(w, x, at "r"))
      write(w, y, at "r", scaled(w, weight, bias, text, "r"))
    end)
  end)
end

function ops.layer_norm(w, call)
  normalise(w, call.x[1], call.x[2], call.x[3], call.y[1], call.attr.eps or 1e-5, true)
end
function ops.rms_norm(w, call)
  normalise(w, call.x[1], call.x[2], nil, call.y[1], call.attr.eps or 1e-6, false)
end

function ops.group_norm(w, call)
  local x, weight, bias, y = call.x[1], call.x[2], call.x[3], call.y[1]
  local groups, c = call.attr.groups, x.shape[2]
  local area, n = x.numel // c, x.numel // groups
  w:loop("o", groups, function ()
    local function at(r) return ("o * %d + %s"):format(n, r) end
    mean_and_variance(w, x, n, at)
    w:number("scale", ("1.0 / sqrt(var / %d.0 + %s)"):format(n, float(call.attr.eps or 1e-5)))
    w:loop("r", n, function ()
      w:place("c", ("o * %d + %s"):format(c // groups, w:fdiv("r", area)))
      write(w, y, at "r", scaled(w, weight, bias, ("(%s - mean) * scale"):format(read(w, x, at "r")), "c"))
    end)
  end)
end

function ops.batch_norm(w, call)
  local x, mean, var, weight, bias, y = call.x[1], call.x[2], call.x[3], call.x[4], call.x[5], call.y[1]
  if call.attr.training or not (mean and var) then return "in training" end
  local area = product(x.shape, 3)
  w:loop("c", x.shape[2], function ()
    w:number("scale", ("1.0 / sqrt(%s + %s)"):format(read(w, var, "c"), float(call.attr.eps or 1e-5)))
    w:loop("r", area, function ()
      local at = ("c * %d + r"):format(area)
      local text = ("(%s - %s) * scale"):format(read(w, x, at), read(w, mean, "c"))
      write(w, y, at, scaled(w, weight, bias, text, "c"))
    end)
  end)
end

-- ---- gates and memory ----

local function gated(act)
  return function (w, call)
    local gate, up, y = call.x[1], call.x[2], call.y[1]
    local n = y.shape[#y.shape]
    local name = act or call.attr.act
    if not unary[name or ""] then return "with the activation " .. tostring(name) end
    w:loop("o", y.numel // n, function ()
      w:loop("r", n, function ()
        local a, b
        if up then a, b = read(w, gate, ("o * %d + r"):format(n)), read(w, up, ("o * %d + r"):format(n))
        else
          a, b = read(w, gate, ("o * %d + r"):format(2 * n)), read(w, gate, ("o * %d + %d + r"):format(2 * n, n))
        end
        write(w, y, ("o * %d + r"):format(n), ("%s * %s"):format(activated(name, a), b))
      end)
    end)
  end
end
ops.silu_mul, ops.gated_mul, ops.swiglu, ops.gated = gated "silu", gated(), gated "silu", gated()

function ops.dropout(w, call)
  if call.attr.training ~= false then return "in training" end
  return ops.clone(w, call)
end

-- Gates of one step of an LSTM or GRU, torch's order: sums of x and h, then fn for each unit.
local function recurrent(gates, step)
  return function (w, call)
    local x, attr = call.x[1], call.attr
    local wih, whh, bih, bhh = table.unpack(call.x, 2, 5)
    if attr.reverse then return "in reverse" end
    for i = gates == 4 and 8 or 7, gates == 4 and 9 or 8 do if call.x[i] then return "with starts or lengths" end end
    if not floats(x, wih, whh, bih, bhh) then return "of numbers other than f32" end
    if not call.y[gates == 4 and 3 or 2] then return "without its last state as a result" end
    local h0, c0 = call.x[6], gates == 4 and call.x[7]
    local n, size, length = x.shape[3], whh.shape[2], x.shape[2]
    local y, h, c = call.y[1], call.y[2], call.y[3]
    local now = call.scratch("float", size)
    for k, from in ipairs { { h, h0 }, { c, c0 } } do
      if from[1] then
        w:loop("i", size, function ()
          w:set(raw(from[1], "i"), from[2] and raw(from[2], "i") or w.lua and "0.0" or "0")
        end)
      end
      if k == gates - 2 then break end
    end
    local function sum(input, weight, bias, gate, at, width)
      local text = dot(w, weight, ("(%d + u) * %d"):format(gate * size, width), input, at, width)
      return bias and ("%s + %s"):format(text, read(w, bias, ("%d + u"):format(gate * size))) or text
    end
    w:loop("t", length, function ()
      w:loop("u", size, function ()
        local function from_x(g) return sum(x, wih, bih, g, ("t * %d"):format(n), n) end
        local function from_h(g) return sum(h, whh, bhh, g, "0", size) end
        step(w, from_x, from_h, h, c, now)
      end)
      w:loop("u", size, function ()
        w:set(raw(h, "u"), raw(now, "u"))
        w:set(raw(y, ("t * %d + u"):format(size)), raw(now, "u"))
      end)
    end)
  end
end

ops.lstm = recurrent(4, function (w, from_x, from_h, _, c, now)
  for g, name in ipairs { "in_", "forget", "new", "out" } do
    w:number(name, ("%s(%s + %s)"):format(g == 3 and "tanh" or "sigmoid", from_x(g - 1), from_h(g - 1)))
  end
  write(w, c, "u", ("forget * %s + in_ * new"):format(read(w, c, "u")))
  write(w, now, "u", ("out * tanh(%s)"):format(read(w, c, "u")))
end)

ops.gru = recurrent(3, function (w, from_x, from_h, h, _, now)
  w:number("reset", ("sigmoid(%s + %s)"):format(from_x(0), from_h(0)))
  w:number("update", ("sigmoid(%s + %s)"):format(from_x(1), from_h(1)))
  w:number("new", ("tanh(%s + reset * (%s))"):format(from_x(2), from_h(2)))
  write(w, now, "u", ("(1.0 - update) * new + update * %s"):format(read(w, h, "u")))
end)

return M
