-- Every differentiable op of the table against central differences in f64, first and, where
-- claimed, second derivatives. A new op is tested the day its descriptor is added.
local lu = require "luaunit"
local peri = require "perilune"
local optest = require "optest"

-- Central differences with step h err by h^2 f'''/6 + 1e-16/h: 1e-10 and 1e-11 at h = 1e-5.
local H, RTOL, ATOL = 1e-5, 1e-6, 1e-7

local function close(got, want) return math.abs(got - want) <= ATOL + RTOL * math.max(math.abs(got), math.abs(want)) end

local function flat(t) return t:reshape { t:numel() }:tolist() end

-- d f() / d x element by element; f reads x.
local function numeric(f, x)
  local view, grad = x:detach():reshape { x:numel() }, {}
  for i = 1, x:numel() do
    local v = view:at(i)
    view:set(i, v + H)
    local up = f()
    view:set(i, v - H)
    local down = f()
    view:set(i, v)
    grad[i] = (up - down) / (2 * H)
  end
  return grad
end

local function compare(name, what, got, want)
  for i = 1, #want do
    lu.assertTrue(close(got[i], want[i]),
      ("%s: %s [%d] is %.10g, finite difference %.10g"):format(name, what, i, got[i], want[i]))
  end
end

local function check_first(op)
  local args, floats = optest.arguments(op, "f64")
  lu.assertTrue(#floats > 0, op.name .. ": its domain has no float input")
  for _, x in ipairs(floats) do x:requires_grad_() end
  local loss = optest.scalar(optest.call(op, args))
  lu.assertNotNil(loss, op.name .. ": no float output")
  local grads = peri.grad(loss, floats)
  local function f()
    return peri.no_grad(function () return optest.scalar(optest.call(op, args)):item() end)
  end
  for k, x in ipairs(floats) do
    local want = numeric(f, x)
    local got = grads[k] and flat(grads[k])
    if not got then got = {} for i = 1, #want do got[i] = 0 end end
    compare(op.name, ("gradient of float input %d"):format(k), got, want)
  end
end

-- Second derivatives: the gradient of (first gradient . u) against differences of that product.
local function check_second(op)
  local args, floats = optest.arguments(op, "f64")
  for _, x in ipairs(floats) do x:requires_grad_() end
  local function product(create)
    local grads = peri.grad(optest.scalar(optest.call(op, args)), floats, { create_graph = create })
    local list = {}
    for _, g in pairs(grads) do list[#list + 1] = g end
    return #list > 0 and optest.scalar(list) or nil
  end
  local dot = product(true)
  if not dot or not dot.requires_grad then return end -- linear in every input
  local seconds = peri.grad(dot, floats)
  for k, x in ipairs(floats) do
    local want = numeric(function () return product(false):item() end, x)
    local got = seconds[k] and flat(seconds[k])
    if not got then got = {} for i = 1, #want do got[i] = 0 end end
    compare(op.name, ("second derivative of float input %d"):format(k), got, want)
  end
end

TestGradients = {}
local count = 0
for _, op in ipairs(peri.ops()) do
  if op.differentiable then
    count = count + 1
    TestGradients["test_" .. op.name] = function () check_first(op) end
    if op.second then TestGradients["test_second_" .. op.name] = function () check_second(op) end end
  end
end

function TestGradients.test_the_table_is_not_empty() lu.assertTrue(count > 60, "only " .. count .. " ops") end

os.exit(lu.LuaUnit.run())
