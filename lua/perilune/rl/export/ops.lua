-- ops.lua (of exported policies) - what each op of a program is as loops, for a row of a batch. An entry gets a writer
-- and the call: x, its inputs (false where one is left out), y, its results, attr. Values know their shapes, since the
-- program has run once; sums are of doubles, results are rounded to what they are.

local values = require "perilune.rl.export.values"
local writers = require "perilune.rl.export.writer"
local layers = require "perilune.rl.export.layers"

local float = writers.float
local whole, raw, read, write = values.whole, values.raw, values.read, values.write
local product, numbered, list, dim_of = values.product, values.numbered, values.list, values.dim_of
local unary = layers.unary

local M = {}
local ops = layers.ops -- name -> function (w, call)
M.ops = ops

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

for name, text in pairs(unary) do
  ops[name] = function (w, call)
    local of = name == "gelu" and call.attr.approximate == "tanh" and unary.gelu_tanh or text
    each(w, call, function (x) return of:format(x) end)
  end
end
ops.none = nil -- an activation that layers may have

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

for name, root in pairs { var = "%s", std = "sqrt(%s)" } do
  ops[name] = function (w, call)
    along(w, call, call.attr.dims, function (o, n, at)
      values.moments(w, call.x[1], n, at)
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

return M
