-- layers.lua (of exported policies) - ops that are whole layers, as loops for a row: products, windows, normalisation,
-- gates and memory. See ops.lua for the others.

local values = require "perilune.rl.export.values"
local writers = require "perilune.rl.export.writer"

local float = writers.float
local raw, read, write = values.raw, values.read, values.write
local product, numbered, list = values.product, values.numbered, values.list

local M = {}
local ops = {}
M.ops = ops

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
M.unary = unary

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
    if centred then values.moments(w, x, n, at)
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
    values.moments(w, x, n, at)
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
