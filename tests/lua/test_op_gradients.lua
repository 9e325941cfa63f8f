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

-- What peri.grad gave for one input, zeros where it gave nothing.
local function list_of(grad, n)
  if grad then return flat(grad) end
  local zeros = {}
  for i = 1, n do zeros[i] = 0 end
  return zeros
end

local function check_first(op, domain)
  local args, floats = optest.arguments(op, "f64", domain)
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
    compare(op.name, ("gradient of float input %d"):format(k), list_of(grads[k], #want), want)
  end
end

-- Second derivatives: the gradient of (first gradient . u) against differences of that product.
-- An op that claims none must refuse instead of giving a wrong one.
local function check_second(op, domain)
  local args, floats = optest.arguments(op, "f64", domain)
  for _, x in ipairs(floats) do x:requires_grad_() end
  local function product(create)
    local grads = peri.grad(optest.scalar(optest.call(op, args)), floats, { create_graph = create })
    local list = {}
    for k = 1, #floats do list[#list + 1] = grads[k] end
    return optest.scalar(list)
  end
  if op.flags.no_grad2 then
    local ok = pcall(function () peri.grad(product(true), floats) end)
    lu.assertFalse(ok, op.name .. ": a second derivative, though its descriptor claims none")
    return
  end
  local dot = product(true)
  collectgarbage() -- results of op that nobody holds any more are part of the graph all the same
  local seconds = dot.requires_grad and peri.grad(dot, floats) or {} -- else linear in every input
  for k, x in ipairs(floats) do
    local want = numeric(function () return product(false):item() end, x)
    compare(op.name, ("second derivative of float input %d"):format(k), list_of(seconds[k], #want), want)
  end
end

TestGradients = {}
local count = 0
for _, op in ipairs(peri.ops()) do
  if op.differentiable then
    count = count + 1
    local domains = { op.domain or "", table.unpack(op.variants) }
    for _, p in ipairs(op.params) do
      for _, a in ipairs(p.name == "act" and peri.activations() or {}) do
        domains[#domains + 1] = ("%s; attr act=%s"):format(op.domain, a.name)
      end
    end
    for i, domain in ipairs(domains) do
      local name = i == 1 and op.name or ("%s [%s]"):format(op.name, domain)
      TestGradients["test_" .. name] = function () check_first(op, domain) end
      TestGradients["test_second_" .. name] = function () check_second(op, domain) end
    end
  end
end

function TestGradients.test_the_table_is_not_empty() lu.assertTrue(count > 60, "only " .. count .. " ops") end

os.exit(lu.LuaUnit.run())
