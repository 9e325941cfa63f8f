-- Gradients where formulas have no derivative: norms at 0, choices among NaNs, rows of nothing.
local lu = require "luaunit"
local peri = require "perilune"

local inf, nan = math.huge, 0 / 0

local function grad(x, fn, create)
  x = x:clone():requires_grad_()
  local y = fn(x)
  local seed = peri.arange(1, y:numel() + 1):to(y.dtype):reshape(y.shape)
  local g = peri.grad(y, x, { seed = seed, create_graph = create })
  return g, x, y
end

TestEdges = {}

-- ---- a gradient at 0 of every norm ----

local points = {
  zeros = function (dtype) return peri.zeros({ 2, 4 }, dtype) end,
  ["a row of zeros"] = function (dtype) return peri.tensor({ { 0, 0, 0, 0 }, { 1, -2, 0, 3 } }, dtype) end,
  ["equal elements"] = function (dtype) return peri.full({ 2, 4 }, 1.5, dtype) end,
  ["one element"] = function (dtype) return peri.tensor({ { 0, 0, -3, 0 }, { 0, 2, 0, 0 } }, dtype) end,
}

local norms = {
  rms_norm = function (x) return peri.rms_norm(x) end, layer_norm = function (x) return peri.layer_norm(x) end,
  add_rms_norm = function (x) return (peri.add_rms_norm(x, x * 0)) end,
  add_layer_norm = function (x) return (peri.add_layer_norm(x, x * 0)) end,
  group_norm = function (x) return peri.group_norm(x, nil, nil, 2) end,
  std = function (x) return x:std(2) end, ["std of all"] = function (x) return x:std() end, var = function (x) return x:var(2) end,
  ["std, ddof 0"] = function (x) return x:std { dims = 1, ddof = 0 } end,
  abs = function (x) return x:abs() end, atan2 = function (x) return peri.atan2(x, x) end,
  logsumexp = function (x) return x:logsumexp(2) end, prod = function (x) return x:prod(2) end,
  cumprod = function (x) return x:cumprod(2) end,
}
for _, p in ipairs { 0, 0.25, 0.5, 0.999, 1, 1.5, 2, 3, inf } do
  norms["norm, p " .. p] = function (x) return x:norm(p) end
  norms["norm of rows, p " .. p] = function (x) return x:norm(p, 2, true) end
end

for name, fn in pairs(norms) do
  TestEdges["test_the gradient at 0 of " .. name] = function ()
    for _, dtype in ipairs { "f32", "f64", "f16" } do
      for where, point in pairs(points) do
        local g = grad(point(dtype), fn)
        lu.assertNotNil(g, where)
        lu.assertTrue(g:isfinite():all():item(), ("%s, %s: %s"):format(where, dtype, g))
      end
    end
  end
end

function TestEdges.test_second_gradients_of_norms_at_0_are_finite()
  for _, p in ipairs { 0.5, 1, 1.5, 2, 3 } do
    for where, point in pairs(points) do
      local g, x = grad(point "f64", function (x) return x:norm(p, 2) end, true)
      if g.requires_grad then
        local h = peri.grad(g:sum(), x)
        lu.assertTrue(h == nil or h:isfinite():all():item(), ("p %s, %s: %s"):format(p, where, h))
      end
    end
  end
end

function TestEdges.test_norms_beside_their_zeros()
  local g = grad(peri.tensor({ 0, 4, 0 }, "f64"), function (x) return x:norm(0.5) end)
  lu.assertEquals(g:tolist(), { 0, 1, 0 })
  g = grad(peri.tensor({ 0, 1, 4 }, "f64"), function (x) return x:norm(0.5) end)
  lu.assertEquals(g:tolist(), { 0, 3, 1.5 }) -- (sum sqrt)^2: sum sqrt / sqrt x
  g = grad(peri.tensor({ 3, 0, -4 }, "f64"), function (x) return x:norm() end)
  for i, want in ipairs { 0.6, 0, -0.8 } do lu.assertAlmostEquals(g:at(i), want, 1e-15) end
end

-- The gradient of a norm is the same for x and for any multiple of it, large or small.
function TestEdges.test_norms_of_any_scale()
  for _, p in ipairs { 0.5, 1, 1.5, 2, 3, 7, inf } do
    local function norm(x) return x:norm(p) end
    local want = grad(peri.tensor({ 3, 0, -4, 0.5 }, "f32"), norm)
    for _, scale in ipairs { 2.0 ^ -120, 2.0 ^ -90, 2.0 ^ 90, 2.0 ^ 120 } do
      local g = grad(peri.tensor({ 3, 0, -4, 0.5 }, "f32") * scale, norm)
      lu.assertTrue((g - want):abs():max():item() <= 1e-6, ("p %s, times %g: %s"):format(p, scale, g))
    end
  end
end

function TestEdges.test_global_norm_is_the_norm_of_all()
  for _, dtype in ipairs { "f32", "f64" } do
    local x, y = peri.tensor({ 1, 2 }, dtype):requires_grad_(), peri.tensor({ { 2, 4 } }, dtype):requires_grad_()
    local g = peri.grad(peri.global_norm { x, y }, { x, y })
    lu.assertAlmostEquals((g[1] * 5 - x):abs():sum():item() + (g[2] * 5 - y):abs():sum():item(), 0, 1e-6)
    local penalty = peri.global_norm(peri.grad((x ^ 3):sum() + y:sum(), { x, y }, { create_graph = true })) -- 9x^4 + 2
    lu.assertAlmostEquals(peri.grad(penalty, x):at(1), 18 / 155 ^ 0.5, 1e-6)
    local zero = peri.zeros({ 2 }, dtype):requires_grad_()
    lu.assertEquals(peri.grad(peri.global_norm { zero }, zero):tolist(), { 0, 0 })
  end
end

-- ---- what was chosen among NaNs has the gradient ----

local choices = {
  max = function (x) return x:max(1) end, min = function (x) return x:min(1) end,
  ["max of all"] = function (x) return x:max() end, ["min, kept"] = function (x) return x:min(1, true) end,
  sort = function (x) return x:sort(1):narrow(1, 3, 1) end, topk = function (x) return (x:topk(1, 1)) end,
  ["sort, descending"] = function (x) return x:sort(1, true):narrow(1, 1, 1) end,
  cummax = function (x) return x:cummax(1):narrow(1, 3, 1) end,
  ["norm, p inf"] = function (x) return x:norm(inf) end,
}
for name, fn in pairs(choices) do
  TestEdges["test_a NaN chosen by " .. name] = function ()
    for _, dtype in ipairs { "f32", "f64", "bf16" } do
      for at = 1, 3 do
        local x = peri.tensor({ 3, 2, 1 }, dtype)
        x:set(at, nan)
        local g, _, y = grad(x, fn)
        lu.assertTrue(y:isnan():all():item())
        for i = 1, 3 do
          if i ~= at then lu.assertEquals(g:at(i), 0, ("%s, NaN at %d"):format(dtype, at))
          else lu.assertTrue(g:at(i) == 1 or (name == "norm, p inf" and g:at(i) ~= g:at(i)), tostring(g)) end
        end
      end
    end
  end
end

function TestEdges.test_relu_passes_the_gradient_of_a_NaN()
  for _, dtype in ipairs { "f32", "f64", "f16" } do
    local g = grad(peri.tensor({ nan, -1, 0, 2, nan }, dtype), function (x) return x:relu() end)
    local w = grad(peri.tensor({ nan, -1, 0, 2, nan }, dtype):reshape { 5, 1 }, function (x)
      return peri.linear(x, peri.ones({ 1, 1 }, dtype), nil, "relu")
    end)
    lu.assertEquals(g:gt(0):tolist(), { true, false, false, true, true }, dtype)
    lu.assertEquals(w:reshape({ 5 }):gt(0):tolist(), { true, false, false, true, true }, dtype)
  end
end

function TestEdges.test_several_NaNs_share()
  local g = grad(peri.tensor({ { nan, 1, nan }, { 4, 5, 6 } }, "f32"), function (x) return x:max(2) end)
  lu.assertEquals(g:tolist(), { { 0.5, 0, 0.5 }, { 0, 0, 2 } })
end

function TestEdges.test_maximum_and_minimum_of_NaNs()
  for _, op in ipairs { "maximum", "minimum" } do
    local x, y = peri.tensor({ nan, 1, nan, 2 }, "f32"):requires_grad_(), peri.tensor({ 1, nan, nan, 2 }, "f32"):requires_grad_()
    local g = peri.grad(peri[op](x, y), { x, y }, { seed = peri.ones { 4 } })
    lu.assertEquals(g[1]:tolist(), { 1, 0, 1, 0.5 }, op)
    lu.assertEquals(g[2]:tolist(), { 0, 1, 0, 0.5 }, op)
  end
end

function TestEdges.test_logsumexp_of_nothing_seen()
  local g, _, y = grad(peri.tensor({ { -inf, -inf }, { -inf, 0 } }, "f32"), function (x) return x:logsumexp(2) end)
  lu.assertEquals(y:tolist(), { -inf, 0 })
  lu.assertEquals(g:tolist(), { { 0, 0 }, { 0, 2 } })
end

-- ---- tensors without dims are rows of one ----

function TestEdges.test_softmax_of_a_tensor_without_dims()
  for _, dtype in ipairs { "f32", "f64", "f16" } do
    for _, dim in ipairs { -1, 1 } do
      lu.assertEquals(peri.full({}, 3, dtype):softmax(dim):item(), 1)
      lu.assertEquals(peri.full({}, 3, dtype):log_softmax(dim):item(), 0)
    end
    for _, op in ipairs { "softmax", "log_softmax" } do
      local g, x = grad(peri.full({}, 3, dtype), function (x) return x[op](x) end, true)
      lu.assertEquals(g:item(), 0)
      lu.assertEquals(peri.grad(g, x):item(), 0)
    end
  end
  lu.assertErrorMsgContains("dim 2", peri.softmax, peri.full({}, 3), 2)
  lu.assertErrorMsgContains("dim -2", peri.log_softmax, peri.full({}, 3), -2)
end

-- ---- a letter twice ----

function TestEdges.test_einsum_takes_diagonals()
  local m = peri.arange(9):to("f64"):reshape { 3, 3 }
  local b = peri.arange(16):to("f64"):reshape { 2, 2, 2, 2 }
  lu.assertEquals(peri.einsum({ m }, "ii"):item(), 12)
  lu.assertEquals(peri.einsum({ m }, "ii->i"):tolist(), { 0, 4, 8 })
  lu.assertEquals(peri.einsum({ b }, "ijij->ij"):tolist(), { { 0, 5 }, { 10, 15 } })
  lu.assertEquals(peri.einsum({ b }, "iiij->j"):tolist(), { 14, 16 })
  lu.assertEquals(peri.einsum({ m, m }, "ii,ij->j"):tolist(), m:transpose():matmul(m:diagonal()):tolist())
  lu.assertErrorMsgContains("i is 2 and, in tensor 1, 3", peri.einsum, { peri.ones { 2, 3 } }, "ii")
end

function TestEdges.test_messages_have_nan_without_a_sign()
  for _, fn in ipairs { function () peri.full({ 1 }, 0 / 0, "i64") end, function () peri.full({ 1 }, -(0 / 0), "u8") end,
    function () peri.ones({ 1 }, "i64"):set(1, 0 / 0) end, function () peri.tensor({ 0 / 0 }, "i32") end,
    function () peri.softplus(peri.ones { 1 }, 0 / 0) end, function () peri.ones({ 1 }):norm(0 / 0) end,
    function () peri.sgd_({ peri.ones { 1 } }, { peri.ones { 1 } }, {}, 0 / 0) end,
    function () peri.ema_({ peri.ones { 1 } }, { peri.ones { 1 } }, 0 / 0) end } do
    local ok, message = pcall(fn)
    lu.assertFalse(ok)
    lu.assertStrContains(message, "nan")
    lu.assertNil(message:find("-nan", 1, true), message)
  end
end

os.exit(lu.LuaUnit.run())
