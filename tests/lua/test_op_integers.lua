-- Integers are exact: every attribute and every plain number that reaches an integer tensor arrives as it
-- is, or is refused with a message that has the value and the dtype.
local lu = require "luaunit"
local peri = require "perilune"
local optest = require "optest"

local BIG = (1 << 53) + 1 -- the first integer that no double holds
local range = { u8 = { 0, 255 }, i32 = { -(1 << 31), (1 << 31) - 1 }, i64 = { math.mininteger, math.maxinteger } }
local values = { BIG, -BIG, math.maxinteger, math.mininteger, math.maxinteger - 1, 1 << 40, 300, -1, 255, 256, 2147483647,
  2147483648, -2147483648, -2147483649, 0.5, -1.5, 2.0 ^ 53, 2.0 ^ 62, 2.0 ^ 63, -2.0 ^ 63, 1e300, math.huge, -math.huge,
  0 / 0 }

local function fits(v, dtype)
  local i = math.tointeger(v)
  return i ~= nil and i >= range[dtype][1] and i <= range[dtype][2]
end

-- Every element of t is 1 or v.
local function assert_elements(t, v, what)
  local seen = false
  for i, x in ipairs(t:reshape { -1 }:tolist()) do
    seen = seen or x == v
    lu.assertTrue(x == 1 or x == v, ("%s: element %d is %s, wanted %s"):format(what, i, x, v))
    lu.assertEquals(math.type(x), "integer")
  end
  return seen
end

TestIntegers = {}

-- Every op with a number among its attributes, called on integers. What it accepts, it writes exactly.
local taken = {}
for _, op in ipairs(peri.ops()) do
  for at, p in ipairs(op.params) do
    if p.kind == "num" then
      TestIntegers[("test_%s of %s"):format(p.name, op.name)] = function ()
        for dtype in pairs(range) do
          for _, v in ipairs(values) do
            local args = optest.arguments(op, "f32")
            for i = 1, args.n do
              if type(args[i]) == "userdata" then args[i] = op.params[i].name == "mask" and args[i] or peri.ones(args[i].shape, dtype) end
              if op.params[i].kind == "dtype" then args[i] = dtype end
            end
            if op.name == "clamp" then args[2], args[3] = nil, nil end
            args[at] = v
            local sequence, i = op.name == "arange" or op.name == "linspace", math.tointeger(v)
            if sequence and at == 1 then args[2] = i and i < math.maxinteger and i + 1 or v end
            if sequence and at == 2 then args[1] = i and i > math.mininteger and i - 1 or v end
            if op.name == "linspace" then args[3] = 2 end
            local what = ("%s(%s = %s) into %s"):format(op.name, p.name, v, dtype)
            local ok, got = pcall(function ()
              return { peri[op.name](table.unpack(args, 1, args.n)) }
            end)
            if ok and got[1] and range[got[1].dtype] and got[1]:numel() > 0 and p.name ~= "step" then
              taken[op.name] = true
              if sequence then
                lu.assertTrue(i ~= nil or op.name == "linspace", what)
                local list = got[1]:tolist()
                if i then lu.assertEquals(list[at == 1 and 1 or #list], i - (op.name == "arange" and at == 2 and 1 or 0), what) end
              elseif op.name == "clamp" then
                for _, x in ipairs(got[1]:reshape { -1 }:tolist()) do
                  local want = 1
                  if p.name == "min" and v > 1 then want = math.ceil(v) end
                  if p.name == "max" and v < 1 then want = math.floor(v) end
                  lu.assertEquals(x, want, what)
                end
              else
                lu.assertTrue(fits(v, dtype), what .. " was taken")
                lu.assertTrue(assert_elements(got[1], math.tointeger(v), what), what)
              end
            elseif not ok then
              lu.assertStrContains(got, op.name .. ": ")
              if p.name == "value" then
                lu.assertFalse(fits(v, dtype), what .. ": " .. got)
                lu.assertStrContains(got, dtype)
              end
              lu.assertNil(got:find("-nan", 1, true), got)
            end
          end
        end
      end
    end
  end
end

-- The law has to have found something to look at.
function TestIntegers.test_the_ops_that_take_numbers_into_integers()
  for _, name in ipairs { "full", "full_like", "fill_", "masked_fill", "pad", "clamp", "arange", "linspace" } do
    lu.assertTrue(taken[name], name)
  end
end
TestIntegers["test_~last"], TestIntegers.test_the_ops_that_take_numbers_into_integers =
  TestIntegers.test_the_ops_that_take_numbers_into_integers, nil

-- Plain numbers beside integer tensors, in both forms of the op.
local beside = {
  add = function (x, v) return x + v end, sub = function (x, v) return x - v end, mul = function (x, v) return x * v end,
  maximum = math.max, minimum = math.min, floordiv = function (x, v) return x // v end, mod = function (x, v) return x % v end,
}
for name, formula in pairs(beside) do
  TestIntegers["test_a number beside integers: " .. name] = function ()
    for dtype in pairs(range) do
      for _, v in ipairs(values) do
        if math.type(v) == "integer" and v ~= 0 then
          local x = peri.full({ 2 }, 7, dtype)
          local ok, y = pcall(peri[name], x, v)
          local done, z = pcall(x[name .. "_"], peri.full({ 2 }, 7, dtype), v)
          if fits(v, dtype) then
            local want = formula(7, v) & (dtype == "u8" and 255 or dtype == "i32" and 0xffffffff or -1)
            if dtype == "i32" and want > range.i32[2] then want = want - (1 << 32) end
            lu.assertEquals(y:tolist(), { want, want }, ("%s %s %d"):format(dtype, name, v))
            lu.assertEquals(z:tolist(), { want, want })
          else
            lu.assertFalse(ok or done, ("%s %s %d"):format(dtype, name, v))
            lu.assertStrContains(y, ("%d does not fit into %s"):format(v, dtype))
            lu.assertStrContains(z, ("%d does not fit into %s"):format(v, dtype))
          end
        end
      end
    end
  end
end

function TestIntegers.test_numbers_as_sources()
  local yes, at = peri.tensor { true, true }, peri.tensor { 0, 1 }
  for dtype in pairs(range) do
    for _, v in ipairs(values) do
      local function x() return peri.ones({ 2 }, dtype) end
      for what, fn in pairs {
        scatter = function () return x():scatter(at, v, 1) end, scatter_add = function () return peri.zeros({ 2 }, dtype):scatter_add(at, v, 1) end,
        copy_ = function () return x():copy_(v) end,
        set = function () return x():set(1, v):set(2, v) end,
        masked_scatter = function () return x():masked_scatter(peri.tensor { true, false }, v) end,
        where = function () return math.type(v) == "integer" and peri.where(yes, v, x()) or error "a float" end,
        full = function () return peri.full({ 2 }, v, dtype) end, tensor = function () return peri.tensor({ v, v }, dtype) end,
      } do
        local ok, got = pcall(fn)
        lu.assertEquals(ok, fits(v, dtype) and (what ~= "where" or math.type(v) == "integer"), ("%s: %s into %s"):format(what, v, dtype))
        if ok then lu.assertEquals(got:at(1), math.tointeger(v), what) end
      end
    end
  end
end

function TestIntegers.test_comparisons_are_exact()
  local x = peri.tensor({ BIG - 1, BIG, BIG + 1, math.maxinteger, math.mininteger }, "i64")
  for name, formula in pairs { eq = function (a, b) return a == b end, ne = function (a, b) return a ~= b end,
    lt = function (a, b) return a < b end, le = function (a, b) return a <= b end, gt = function (a, b) return a > b end,
    ge = function (a, b) return a >= b end } do
    for _, v in ipairs(values) do
      local want, turned = {}, {}
      for i, e in ipairs(x:tolist()) do want[i], turned[i] = formula(e, v), formula(v, e) end
      lu.assertEquals(peri[name](x, v):tolist(), want, name .. " " .. v)
      lu.assertEquals(peri[name](v, x):tolist(), turned, name .. " " .. v)
    end
  end
  lu.assertEquals(peri.tensor({ 44 }, "u8"):eq(300):tolist(), { false })
end

function TestIntegers.test_sequences_of_integers()
  lu.assertEquals(peri.arange(BIG - 1, BIG + 3):tolist(), { BIG - 1, BIG, BIG + 1, BIG + 2 })
  lu.assertEquals(peri.arange(math.maxinteger - 5, math.maxinteger, 3):tolist(), { math.maxinteger - 5, math.maxinteger - 2 })
  lu.assertEquals(peri.arange(math.mininteger, math.maxinteger, math.maxinteger):tolist(), { math.mininteger, -1, math.maxinteger - 1 })
  lu.assertEquals(peri.arange(5, -6, -5):tolist(), { 5, 0, -5 })
  lu.assertEquals(peri.arange(math.maxinteger, math.mininteger, math.mininteger):tolist(), { math.maxinteger, -1 })
  lu.assertEquals(peri.arange(250, 256, 1, "u8"):tolist(), { 250, 251, 252, 253, 254, 255 })
  lu.assertErrorMsgContains("256 does not fit into u8", peri.arange, 250, 257, 1, "u8")
  lu.assertErrorMsgContains("not all whole", peri.arange, 0, 2, 0.5, "i64")
  lu.assertErrorMsgContains("elements", peri.arange, math.mininteger, math.maxinteger)
  lu.assertEquals(peri.linspace(BIG, BIG + 4, 5, "i64"):tolist(), { BIG, BIG + 1, BIG + 2, BIG + 3, BIG + 4 })
  lu.assertEquals(peri.linspace(math.mininteger, math.maxinteger, 2, "i64"):tolist(), { math.mininteger, math.maxinteger })
  lu.assertEquals(peri.linspace(math.maxinteger, math.mininteger, 3, "i64"):tolist(), { math.maxinteger, 0, math.mininteger })
  lu.assertEquals(peri.linspace(-1, 1, 4, "i64"):tolist(), { -1, 0, 0, 1 }) -- cut toward 0, as `to` does
  lu.assertEquals(peri.linspace(1, -1, 4, "i64"):tolist(), { 1, 0, 0, -1 })
  lu.assertEquals(peri.linspace(0, 10, 4, "i64"):tolist(), { 0, 3, 6, 10 })
  lu.assertEquals(peri.linspace(BIG, BIG, 1, "i64"):tolist(), { BIG })
end

function TestIntegers.test_other_integers_that_arrive()
  lu.assertEquals(peri.randint(math.maxinteger - 1, math.maxinteger, { 3 }):tolist(),
    { math.maxinteger - 1, math.maxinteger - 1, math.maxinteger - 1 })
  lu.assertErrorMsgContains("300 does not fit into u8", peri.randint, 0, 301, { 1 }, "u8")
  local x = peri.full({ 1 }, BIG, "i64")
  lu.assertEquals(x:reshape {}:item(), BIG)
  lu.assertEquals(peri.clamp(peri.tensor({ 1, 5 }, "i64"), 2.5, math.huge):tolist(), { 3, 5 })
  lu.assertEquals(peri.clamp(peri.tensor({ 1, 255 }, "u8"), -5, 300):tolist(), { 1, 255 })
  lu.assertErrorMsgContains("no i64 lies between min 0.2 and max 0.8", peri.clamp, x, 0.2, 0.8)
  lu.assertErrorMsgContains("min 300 and max none", peri.clamp, peri.ones({ 1 }, "u8"), 300)
  lu.assertErrorMsgContains("padding_idx 9007199254740993", peri.embedding, peri.ones { 3, 1 }, peri.tensor { 1 }, BIG)
end

-- A result that is no integer has no place in integers: the twin is refused, and nothing is written.
function TestIntegers.test_what_computes_in_floats_does_not_write_into_integers()
  local found = 0
  for _, op in ipairs(peri.ops()) do
    local x = peri.tensor({ 1, 2 }, "i64")
    if op.flags.elementwise and op.params[2] == nil or op.name == "polygamma" then
      local ok, y = pcall(peri[op.name], x)
      if ok and y.dtype:find "^f" then
        found = found + 1
        lu.assertFalse(pcall(x[op.name .. "_"], x), op.name .. "_")
        lu.assertEquals(x:tolist(), { 1, 2 }, op.name)
      end
    end
  end
  lu.assertTrue(found > 15, "only " .. found)
end

os.exit(lu.LuaUnit.run())
