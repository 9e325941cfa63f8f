-- test_packed.lua - pack and the ops that take weights which are no plain arrays: packed f32 weights give the bits of
-- plain ones, narrower ones the numbers of their widened values, and no gradient but that of x.
local peri = require "perilune"
local lu = require "luaunit"

TestPacked = {}

local N, K = 70, 96
local plain = { "f32", "f16", "bf16" }

local function inputs()
  peri.seed(3)
  return peri.randn { N, K }:mul(0.3), peri.randn { 3, 5, K }, peri.randn { N }
end

local function largest(a, b) return (a:to "f32" - b:to "f32"):abs():max():item() end

local function assert_same(a, b, what)
  lu.assertEquals(a.dtype, b.dtype, what)
  lu.assertEquals(a.shape, b.shape, what)
  lu.assertTrue(a:bytes() == b:bytes(), what)
end

function TestPacked.test_a_packed_weight_keeps_its_shape_dtype_and_numbers()
  local w = inputs()
  for _, d in ipairs(plain) do
    local x = w:to(d)
    local p = x:pack()
    lu.assertTrue(p.packed)
    lu.assertFalse(x.packed)
    lu.assertEquals(p.dtype, d)
    lu.assertEquals(p.shape, { N, K })
    assert_same(p:to(d), x, d)
    assert_same(p:to "f32", x:to "f32", d)
    lu.assertTrue(peri.pack(p).packed)
    lu.assertEquals(peri.pack(p):data_ptr(), p:data_ptr())
    lu.assertStrContains(tostring(p), d .. " cpu packed")
  end
end

function TestPacked.test_packing_takes_the_memory_of_the_weight_once()
  local w = peri.randn { 64, 128 }
  local before = peri.memory().live
  local p = w:pack()
  local used = peri.memory().live - before
  lu.assertTrue(used >= 64 * 128 * 4 and used < 64 * 128 * 4 + 1024, used)
  local again = p:pack()
  lu.assertTrue(peri.memory().live - before < used + 1024)
  p:release()
  again:release()
  lu.assertEquals(peri.memory().live, before)
end

function TestPacked.test_linear_with_a_packed_f32_weight_has_the_bits_of_the_plain_one()
  local w, x, b = inputs()
  local p = w:pack()
  for _, act in ipairs { "none", "relu", "tanh", "sigmoid", "silu", "gelu", "gelu_tanh" } do
    for _, bias in ipairs { b, false } do
      assert_same(peri.linear(x, p, bias or nil, act), peri.linear(x, w, bias or nil, act), act)
    end
  end
  for rows = 1, 40, 3 do
    local many = peri.randn { rows, K }
    assert_same(peri.linear(many, p), peri.linear(many, w), rows .. " rows")
  end
  local one = x:select(1, 1):select(1, 1)
  assert_same(peri.linear(one, p), peri.linear(one, w), "a vector")
  local turned = x:transpose(1, 2)
  assert_same(peri.linear(turned, p), peri.linear(turned, w), "turned rows")
  local columns = peri.randn { K, 6 }.T
  assert_same(peri.linear(columns, p), peri.linear(columns, w), "columns")
  lu.assertEquals(peri.linear(peri.zeros { 0, K }, p).shape, { 0, N })
end

function TestPacked.test_linear_with_narrow_weights_is_near_the_widened_one()
  local w, x, b = inputs()
  for _, d in ipairs { "f16", "bf16" } do
    local narrow = w:to(d)
    local want = peri.linear(x, narrow:to "f32", b)
    -- processors that multiply pairs of bf16 round x to 8 bits
    local size = peri.linear(x:abs(), narrow:to "f32":abs()):max():item()
    lu.assertTrue(largest(peri.linear(x, narrow:pack(), b), want) < size * (d == "bf16" and 2 ^ -8 or 2 ^ -20), d)
  end
end

function TestPacked.test_narrow_inputs_give_narrow_results()
  local w, x, b = inputs()
  local p = w:pack()
  for _, d in ipairs { "f16", "bf16" } do
    local narrow = x:to(d)
    assert_same(peri.linear(narrow, p, b), peri.linear(narrow:to "f32", w, b):to(d), d)
  end
end

function TestPacked.test_gradients_reach_x_and_bias()
  local w, x, b = inputs()
  local function gradients(weight, act)
    local xs, bias = x:clone():requires_grad_(), b:clone():requires_grad_()
    return peri.grad(peri.linear(xs, weight, bias, act):square():sum(), { xs, bias })
  end
  for _, act in ipairs { "none", "relu", "silu", "gelu" } do
    local want, got = gradients(w, act), gradients(w:pack(), act)
    assert_same(got[1], want[1], act)
    assert_same(got[2], want[2], act)
    for _, d in ipairs { "f16", "q8_0" } do
      local narrow = w:to(d)
      want = gradients(narrow:to "f32", act)
      for _, weight in ipairs { narrow:pack(), narrow } do
        if d == "f16" or not weight.packed then
          lu.assertTrue(largest(gradients(weight, act)[1], want[1]) < 1e-4 * want[1]:abs():max():item(), act)
        end
      end
    end
  end
end

function TestPacked.test_a_second_derivative_goes_through()
  local w, x = inputs()
  local function second(weight)
    local xs = x:clone():requires_grad_()
    local g = peri.grad(peri.linear(xs, weight, nil, "tanh"):square():sum(), { xs }, { create_graph = true })[1]
    return peri.grad(g:square():sum(), { xs })[1]
  end
  assert_same(second(w:pack()), second(w), "second derivative")
end

function TestPacked.test_a_packed_weight_has_no_gradient()
  local w, x = inputs()
  lu.assertErrorMsgContains("packed", function () w:pack():requires_grad_() end)
  local leaf = w:clone():requires_grad_()
  local p = leaf:pack()
  lu.assertFalse(p.requires_grad)
  lu.assertFalse(peri.linear(x, p).requires_grad)
end

function TestPacked.test_matmul_with_a_weight_on_the_right()
  local w = inputs()
  local x = peri.randn { 2, 7, N }
  assert_same(peri.matmul(x, w:pack()), peri.matmul(x, w), "f32")
  local q = w:to "q8_0"
  assert_same(peri.matmul(x, q), peri.matmul(x, q:to "f32"), "q8_0")
  local xs, want = x:clone():requires_grad_(), x:clone():requires_grad_()
  assert_same(peri.grad(peri.matmul(xs, w:pack()):square():sum(), { xs })[1],
    peri.grad(peri.matmul(want, w):square():sum(), { want })[1], "gradient")
  lu.assertErrorMsgContains("inner sizes", peri.matmul, peri.randn { 2, K }, w:pack())
end

function TestPacked.test_embedding_reads_rows_of_any_weight()
  local w = inputs()
  local ids = peri.tensor({ { 0, 69, 3 }, { 31, 32, 0 } }, "i64")
  for _, d in ipairs(plain) do
    assert_same(peri.embedding(w:to(d):pack(), ids), peri.embedding(w:to(d):to "f32", ids), d)
  end
  local q = w:to "q8_0"
  local want = peri.embedding(q:to "f32", ids)
  assert_same(peri.embedding(q, ids), want, "q8_0")
  assert_same(peri.embedding(q:pack(), ids), want, "packed q8_0")
  lu.assertErrorMsgContains("70", peri.embedding, q, peri.tensor({ 70 }, "i64"))
end

function TestPacked.test_token_logprob_with_a_packed_head()
  local w, x, b = inputs()
  local target = peri.tensor({ { 0, 69, -100, 5, 6 }, { 7, 8, 9, -100, 1 }, { 2, 2, 2, 2, 2 } }, "i64")
  local function run(weight)
    local xs = x:clone():requires_grad_()
    local logp, entropy = peri.token_logprob(xs, weight, target, b, 0.7)
    local g = peri.grad(logp:sum() + entropy:square():sum(), { xs })[1]
    return logp, entropy, g
  end
  local want, got = { run(w) }, { run(w:pack()) }
  for i = 1, 3 do assert_same(got[i], want[i], "result " .. i) end
  local q = w:to "q8_0"
  want, got = { run(q:to "f32") }, { run(q) }
  for i = 1, 3 do assert_same(got[i], want[i], "q8_0, result " .. i) end
end

function TestPacked.test_other_ops_refuse_them_by_name()
  local p = inputs():pack()
  lu.assertErrorMsgContains("packed f32", peri.add, p, 1)
  lu.assertErrorMsgContains("packed f32", peri.reshape, p, { -1 })
  lu.assertErrorMsgContains("packed", function () return p:item() end)
  lu.assertErrorMsgContains("packed", function () return p:tolist() end)
  lu.assertErrorMsgContains("packed", function () return p:bytes() end)
end

os.exit(lu.LuaUnit.run())
