-- Every op against independent results: outputs, their shapes and dtypes, gradients; at f64 and at f32. They come from
-- tests/data/op_vectors.json (made by torch in binary64 with tests/reference/make_op_vectors.py), from the formula
-- that an op's block says, or from the ops that it is composed of, in f64.
local lu = require "luaunit"
local peri = require "perilune"

local function read(path)
  local f = assert(io.open(path, "rb"))
  local text = f:read "a"
  f:close()
  return assert(peri.json.decode(text))
end

local cases = read("tests/data/op_vectors.json").cases
local ops = {}
for _, op in ipairs(peri.ops()) do ops[op.name] = op end

-- Unit roundoff of the dtype a result was computed in.
local unit = { f64 = 2.0 ^ -53, f32 = 2.0 ^ -24 }

local special = { nan = 0 / 0, inf = math.huge, ["-inf"] = -math.huge }
local function number(v) return special[v] or v end

-- The generator that make_op_vectors.py has too.
local function generate(n, seed, lo, hi)
  local x, t = seed, {}
  for i = 1, n do
    x = (x * 1664525 + 1013904223) & 0xffffffff
    t[i] = (lo + (x >> 8) % (hi - lo + 1)) / 1024
  end
  return t
end

local function numel(shape)
  local n = 1
  for _, s in ipairs(shape) do n = n * s end
  return n
end

local function tensor(t, float)
  local dtype = t.d == "f" and float or t.d
  local n = numel(t.s)
  if n == 0 then return peri.zeros(t.s, dtype) end
  local values = t.g and generate(n, table.unpack(t.g)) or {}
  for i, v in ipairs(t.v or {}) do
    if dtype == "bool" then values[i] = v == true or v == 1
    elseif dtype == "f64" or dtype == "f32" then values[i] = number(v) * 1.0 -- keeps -0.0
    else values[i] = v end
  end
  return peri.tensor(values, dtype):reshape(t.s)
end

-- Arguments of a case in the order of the signature; the float inputs that may have a gradient.
local function arguments(case, float)
  local op, args, floats, all = ops[case.op], {}, {}, {}
  local at = 0
  local function take(x)
    if x == peri.json.null or type(x) == "number" then return x ~= peri.json.null and x or nil end
    if not x.d then
      local list = {}
      for i, e in ipairs(x) do list[i] = take(e) end
      return list
    end
    local t = tensor(x, float)
    all[#all + 1] = t
    if x.d == "f" then floats[#floats + 1] = t end
    return t
  end
  for i, p in ipairs(op.params) do
    if p.kind == "tensor" or p.kind == "tensor?" or p.kind == "tensors" then
      at = at + 1
      local x = case["in"][at]
      if x ~= nil then args[i] = take(x) end
    elseif case.attr and case.attr[p.name] ~= nil then
      local v = case.attr[p.name]
      args[i] = p.kind == "num" and number(v) or v
    end
  end
  lu.assertTrue(at >= #case["in"], "more inputs than parameters")
  args.n = #op.params
  return op, args, floats, all
end

-- How far a result may lie from the reference: u is the unit roundoff.
--   exact: not at all;
--   each: elementwise formulas of a few operations that each err by an ULP or so: 8 ULP (16 u) of the
--   element. Functions of the C library and ours err by up to 4 ULP, and the reference by as much;
--   with n, that of a product of n factors;
--   sum: the rounding errors of n terms no larger than scale add up like a random walk, sqrt(n) u scale,
--   times 16 for the formulas around the sum.
local function allowed(case, want, u, largest)
  if case.tol == "exact" then return 0 end
  if case.tol == "each" then return 16 * u * math.sqrt(case.n or 1) * math.max(math.abs(want), largest) end
  return 16 * u * (math.abs(want) + math.sqrt(case.n) * case.scale)
end

local largest_f32, smallest_f32 = (2 - 2.0 ^ -23) * 2.0 ^ 127, 2.0 ^ -126

local function same(got, want, tolerance, dtype)
  if dtype == "f32" and math.abs(want) > largest_f32 then want = want > 0 and math.huge or -math.huge end
  if dtype == "f32" and math.abs(want) < smallest_f32 then tolerance = math.max(tolerance, smallest_f32) end
  if got ~= got or want ~= want then return got ~= got and want ~= want end
  return got == want or math.abs(got - want) <= tolerance
end

local function zero_sign(v) return v == 0 and 1 / v < 0 end

local function flat(t) return t:numel() > 0 and t:reshape { t:numel() }:tolist() or {} end

local function label(case, what, i)
  return ("%s %s: %s [%d]"):format(case.op, peri.json.encode(case.attr or {}), what, i)
end

local function check_output(case, k, got, float, dtype)
  local want = case.out[k]
  dtype = dtype or (want.d == "f" and float or want.d)
  local text = label(case, "output " .. k, 0) .. (case.note and " (" .. case.note .. ")" or "")
  lu.assertEquals(got.shape, want.s, text .. " shape")
  lu.assertEquals(got.dtype, dtype, text .. " dtype")
  local u = unit[dtype] and math.max(unit[dtype], unit[float] or 0)
  for i, v in ipairs(flat(got)) do
    local w = want.v[i]
    if type(v) == "boolean" then
      lu.assertEquals(v, w == true or w == 1, text .. i)
    elseif math.type(v) == "integer" then
      lu.assertEquals(v, w, label(case, "output " .. k, i))
    else
      w = number(w)
      if not same(v, w, u and allowed(case, w, u, 0) or 0, dtype) then
        lu.fail(("%s is %.17g, expected %.17g%s"):format(label(case, "output " .. k, i), v, w,
          case.note and " (" .. case.note .. ")" or ""))
      end
      if case.note == "special" and w == 0 and zero_sign(v) ~= zero_sign(w) then
        lu.fail(label(case, "sign of zero in output " .. k, i))
      end
    end
  end
end

-- The loss of make_op_vectors.py.
local function loss(outputs)
  local total
  for k, y in ipairs(outputs) do
    if y.requires_grad and y:numel() > 0 and unit[y.dtype] then
      local w, n = {}, y:numel()
      for i = 1, n do w[i] = ((7 * (i - 1) + 3 * (k - 1)) % 13 - 6.5) / 8 end
      local s = y:reshape { n }:mul(peri.tensor(w, y.dtype)):sum()
      total = total and total:add(s) or s
    end
  end
  return total
end

local function check_gradients(case, outputs, floats, float)
  local total = loss(outputs)
  if not total then return end
  local grads, u = peri.grad(total, floats), unit[float]
  local largest = 0
  for _, list in ipairs(case.grad) do
    for _, w in ipairs(list) do
      local size = math.abs(number(w))
      if size < math.huge then largest = math.max(largest, size) end
    end
  end
  for k, want in ipairs(case.grad) do
    local got = grads[k] and flat(grads[k])
    if grads[k] then
      lu.assertEquals(grads[k].dtype, floats[k].dtype, label(case, "gradient " .. k, 0) .. " dtype")
      lu.assertEquals(grads[k].shape, floats[k].shape, label(case, "gradient " .. k, 0) .. " shape")
    end
    for i, w in ipairs(want) do
      w = number(w)
      local v = got and got[i] or 0
      -- a gradient is a sum over broadcast and repeated elements: measured by its largest entry
      local tolerance = case.tol == "sum" and allowed(case, w, u, 0) or 16 * u * math.max(largest, 1)
      if not same(v, w, tolerance) then
        lu.fail(("%s is %.17g, expected %.17g"):format(label(case, "gradient " .. k, i), v, w))
      end
    end
  end
end

local function check(case, float)
  local op, args, floats, all = arguments(case, float)
  local before = {}
  for i, t in ipairs(all) do before[i] = t.dtype end
  if case.grad then for _, x in ipairs(floats) do x:requires_grad_() end end
  local outputs = { peri[case.op](table.unpack(args, 1, args.n)) }
  local dtypes = {}
  if op.flags.inplace then -- what was written counts as output too
    outputs = op.outputs > 0 and outputs or {}
    for i, t in ipairs(all) do
      outputs[#outputs + 1] = t
      dtypes[#outputs] = before[i]
    end
  end
  -- attention_backward's gradient of the mask is empty where there is no mask
  if #outputs > #case.out and outputs[#outputs]:numel() == 0 then outputs[#outputs] = nil end
  lu.assertEquals(#outputs, #case.out, case.op .. ": outputs")
  for k, y in ipairs(outputs) do check_output(case, k, y, float, dtypes[k]) end
  if case.grad then check_gradients(case, outputs, floats, float) end
end

local by_op = {}
for _, case in ipairs(cases) do
  by_op[case.op] = by_op[case.op] or {}
  table.insert(by_op[case.op], case)
end

TestReference = {}
for name, list in pairs(by_op) do
  for _, float in ipairs { "f64", "f32" } do
    TestReference[("test_%s_%s"):format(name, float)] = function ()
      for _, case in ipairs(list) do check(case, float) end
    end
  end
end

-- ---- references that stand in a block, or follow from it ----

local optest = require "optest"

-- The formula's names: the parameters (false: left out, without a default), then the library's functions.
local function evaluate(op, args)
  local names = { peri = peri, math = math }
  for i, p in ipairs(op.params) do
    names[p.name] = args[i]
    if args[i] == nil then names[p.name] = p.default or false end
  end
  local chunk = assert(load("return " .. op.reference, "=" .. op.name, "t", setmetatable(names, { __index = peri })))
  return { chunk() }
end

-- Inputs in f64 with the same values.
local function widened(args)
  local out = { n = args.n }
  local function wide(x) return type(x) == "userdata" and x.dtype == "f32" and x:to "f64" or x end
  for i = 1, args.n do
    out[i] = wide(args[i])
    if type(args[i]) == "table" then
      out[i] = {}
      for k, x in ipairs(args[i]) do out[i][k] = wide(x) end
    end
  end
  return out
end

-- What op has written, in the order of its parameters: the formula of an op that writes gives these.
local function written(op, args)
  local list = {}
  for i, p in ipairs(op.params) do
    if p.written and type(args[i]) == "table" then table.move(args[i], 1, #args[i], #list + 1, list)
    elseif p.written then list[#list + 1] = args[i] end
  end
  return list
end

-- A formula of some ten operations errs by some ten units of its terms, which may cancel, and a sum of n terms by
-- sqrt(n) more: 64 u sqrt(n) (1 + |y|), n being the largest size of a dim.
local function check_reference(op, float, domain)
  local args, floats = optest.arguments(op, float, domain)
  local n = 1
  for _, x in ipairs(floats) do n = math.max(n, table.unpack(x.shape)) end
  local want = op.reference and evaluate(op, widened(args)) or optest.call(op, widened(args))
  local got = optest.call(op, args)
  if op.flags.inplace then got = written(op, args) end
  lu.assertEquals(#got, #want, op.name .. ": results")
  for k, y in ipairs(got) do
    lu.assertEquals(y.shape, want[k].shape, ("%s [%s]: shape of output %d"):format(op.name, domain, k))
    if y:numel() > 0 then
      local w = want[k]:to "f64"
      local off = (y:to "f64" - w):abs():div(w:abs():add(1)):max():item()
      lu.assertTrue(off <= 64 * math.sqrt(n) * unit[float], ("%s [%s]: output %d is %g off"):format(op.name, domain, k, off))
    end
  end
end

for name, op in pairs(ops) do
  if op.reference or op.composed then
    for _, float in ipairs { "f64", "f32" } do
      TestReference[("test_%s by its formula, %s"):format(name, float)] = function ()
        check_reference(op, float, op.domain or "")
        for _, domain in ipairs(op.variants) do check_reference(op, float, domain) end
        check_reference(op, float, optest.large(op))
      end
    end
  end
end

-- What these ops return is memory as it was, or random: test_op_laws.lua has what holds of them. Elements of what pack
-- makes cannot be read: test_packed.lua.
local without = { empty = true, empty_like = true, rand = true, randn = true, rand_like = true, randn_like = true, rand_gamma = true,
  randint = true, randperm = true, pack = true }

function TestReference.test_every_op_has_vectors_or_a_formula()
  local missing = {}
  for name in pairs(ops) do
    if not by_op[name] and not ops[name].reference and not without[name] then missing[#missing + 1] = name end
  end
  lu.assertEquals(missing, {})
end

os.exit(lu.LuaUnit.run())
