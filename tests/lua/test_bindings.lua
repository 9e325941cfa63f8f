-- What Lua sees of the runtime: arguments, tensors, gradients, scopes, printing.
local lu = require "luaunit"
local peri = require "perilune"
local claims = require "claims"

local message, close = claims.message, claims.close

TestArguments = {}

function TestArguments:test_attributes_by_position_and_by_name()
  local x = peri.randn { 3, 4 }
  close(x:softmax(1), x:softmax { dim = 1 })
  close(peri.softmax(x, 1), peri.softmax { x = x, dim = 1 })
  lu.assertEquals(x:sum { 1, 2 }.shape, {})
  lu.assertEquals(x:sum(1).shape, { 4 })
  lu.assertEquals(x:sum({ 1 }, true).shape, { 1, 4 })
  lu.assertEquals(x:sum { dims = { 1 }, keep = true }.shape, { 1, 4 })
  lu.assertEquals(peri.zeros { 2, 3, dtype = "f64" }.dtype, "f64")
  lu.assertEquals(peri.zeros({ 2 }, "i32").dtype, "i32")
  lu.assertEquals(peri.zeros(3).shape, { 3 })
  lu.assertEquals(x:sum(nil, nil).shape, {})
end

function TestArguments:test_errors_say_what_was_expected()
  local x = peri.zeros { 4, 8 }
  lu.assertStrContains(message(peri.matmul, x, "s"), "matmul: argument 2 (b) must be a tensor, got string")
  lu.assertStrContains(message(peri.matmul, x), "argument 2 (b) is missing")
  lu.assertStrContains(message(peri.matmul, x, peri.zeros { 7, 16 }),
    "matmul: (4, 8) x (7, 16): inner sizes 8 and 7 differ")
  lu.assertStrContains(message(x.softmax, x, { dimm = 1 }), "nearest is 'dim'")
  lu.assertStrContains(message(x.softmax, x, 1, { dim = 1 }), "given twice")
  lu.assertStrContains(message(x.softmax, x, 0), "count from 1")
  lu.assertStrContains(message(x.softmax, x, 1.5), "not an integer")
  lu.assertStrContains(message(x.softmax, x, "1"), "must be an integer, got string")
  lu.assertStrContains(message(peri.exp, x, 1), "takes at most 1 argument, got 2")
  lu.assertStrContains(message(peri.zeros, { 2 }, "f33"), "no dtype is called 'f33'")
  lu.assertStrContains(message(peri.cat, { x, 3 }), "must hold tensors, it has a number")
  lu.assertStrContains(message(peri.add, io.stdout, x), "must be a tensor, got FILE*")
  lu.assertStrContains(message(function() return x.shap end), "nearest is 'shape'")
  lu.assertStrContains(message(function() return x:sofmax() end), "nearest is 'softmax'")
  lu.assertStrContains(message(function() return x[1] end), "x:at")
  lu.assertStrContains(message(function() x.data = 1 end), "only grad and requires_grad")
end

function TestArguments:test_errors_name_the_line_of_the_caller()
  local chunk = load("local x = ...\nreturn x:matmul(x)", "=script")
  lu.assertStrContains(message(chunk, peri.zeros { 2, 3 }), "script:2: matmul: ")
end

function TestArguments:test_numbers_join_by_category()
  local i, f = peri.tensor { 1, 2 }, peri.tensor { 1.5, 2 }
  lu.assertEquals((i + 1).dtype, "i64")
  lu.assertEquals((i + 1.5).dtype, "f32")
  lu.assertEquals((f + 1).dtype, "f32")
  lu.assertEquals((f:to "f16" * 2.5).dtype, "f16")
  lu.assertEquals((2 - i):tolist(), { 1, 0 })
  lu.assertEquals((1 / f:to "f64").dtype, "f64")
  lu.assertEquals((f * 2 ^ 40):tolist(), { 1.5 * 2 ^ 40, 2 ^ 41 })
end

function TestArguments:test_numbers_in_a_graph_keep_their_value()
  local w, ys = peri.tensor({ 3 }, "f64"):requires_grad_(), {}
  for k = 1, 100 do ys[k] = w * (k * 0.5) end -- more numbers than are cached
  for k = 1, 100 do
    w:zero_grad()
    ys[k]:sum():backward()
    lu.assertEquals(w.grad:item(), k * 0.5)
  end
end

function TestArguments:test_operators()
  local x = peri.tensor { 7., -7. }
  lu.assertEquals((x // 2):tolist(), { 3, -4 })
  lu.assertEquals((x % 4):tolist(), { 3, 1 })
  lu.assertEquals((x ^ 2):tolist(), { 49, 49 })
  lu.assertEquals((-x):tolist(), { -7, 7 })
  lu.assertEquals((x / 2):tolist(), { 3.5, -3.5 })
  lu.assertEquals(#x, 2)
  lu.assertStrContains(message(function() return #peri.tensor(1) end), "0 dims")
end

function TestArguments:test_long_lists()
  local list, dims = {}, {}
  for k = 1, 300 do list[k] = peri.full({ 1 }, k) end
  lu.assertEquals(peri.cat(list, 1):sum():item(), 45150)
  for k = 1, 9 do dims[k] = 1 end
  lu.assertStrContains(message(peri.zeros, dims), "at most 8")
end

function TestArguments:test_several_results()
  local values, index = peri.tensor { 3, 1, 2 }:sort()
  lu.assertEquals(values:tolist(), { 1, 2, 3 })
  lu.assertEquals(index:tolist(), { 1, 2, 0 })
end

function TestArguments:test_in_place_returns_its_tensor()
  local x = peri.ones { 2 }
  lu.assertTrue(rawequal(x:add_(1), x))
  lu.assertTrue(rawequal(x:mul_(peri.tensor { 2., 3. }):neg_(), x))
  lu.assertEquals(x:tolist(), { -4, -6 })
  lu.assertTrue(rawequal(x:fill_(5), x))
  lu.assertStrContains(message(x.add_, x, peri.ones { 3 }), "add_: ")
  local w = peri.ones { 2 }:requires_grad_()
  lu.assertStrContains(message(w.add_, w, 1), "no_grad")
end

function TestArguments:test_lists_that_were_given_one_by_one_are_asked_for_as_a_table()
  local x = peri.zeros { 6 }
  for _, f in ipairs {
    function() peri.randn(2, 3) end, function() x:reshape(3, 2) end, function() peri.zeros { 2, 2 }:permute(2, 1) end,
  } do lu.assertErrorMsgContains("several numbers go into one table: {2, 3}", f) end
  lu.assertErrorMsgContains("several tensors go into one table: {a, b}", function() peri.cat(x, x) end)
  lu.assertErrorMsgContains("no parameter is called 'axis'; there are x, dims, keep",
    function() x:mean { axis = 1 } end)
end

function TestArguments:test_help_and_the_op_table()
  for _, op in ipairs(peri.ops()) do
    lu.assertNotNil(op.params, op.name .. ": the signature does not parse")
    lu.assertTrue(#op.doc > 0, op.name)
    lu.assertEquals(peri.describe(peri[op.name]).name, op.name)
  end
  lu.assertEquals(peri.describe(peri.steps).name, "steps")
  lu.assertNil(peri.describe(print))
  lu.assertNil(peri.describe(function() end))
end

TestTensors = {}

function TestTensors:test_from_tables_and_back()
  for _, value in ipairs { { 1, 2, 3 }, { { 1.5, 2 }, { 3, -4 } }, { { { 1 } }, { { 2 } } } } do
    lu.assertEquals(peri.tensor(value):tolist(), value)
  end
  lu.assertEquals(peri.tensor { true, false }:tolist(), { true, false })
  lu.assertEquals(peri.tensor { 1, 2 }.dtype, "i64")
  lu.assertEquals(peri.tensor { 1, 2.5 }.dtype, "f32")
  lu.assertEquals(peri.tensor(3.5):item(), 3.5)
  lu.assertEquals(peri.tensor {}.shape, { 0 })
  lu.assertEquals(peri.tensor({ 1, 2 }, "f16").dtype, "f16")
  lu.assertEquals(peri.tensor { peri.tensor(2), peri.tensor(3) }:tolist(), { 2, 3 })
  lu.assertEquals(peri.tensor { math.mininteger, math.maxinteger }:tolist(), { math.mininteger, math.maxinteger })
end

function TestTensors:test_ragged_tables_name_the_position()
  lu.assertStrContains(message(peri.tensor, { { 1, 2 }, { 3 } }), "value[2] has 1 elements")
  lu.assertStrContains(message(peri.tensor, { { 1, 2 }, 3 }), "value[2] is a number")
  lu.assertStrContains(message(peri.tensor, { 1, { 2 } }), "value[2] is a table")
  lu.assertStrContains(message(peri.tensor, { { 1, "a" } }), "value[1][2] is a string")
  lu.assertStrContains(message(peri.tensor, { 1, true }), "mixed")
  lu.assertStrContains(message(peri.tensor, { 256 }, "u8"), "does not fit into u8")
  lu.assertStrContains(message(peri.tensor, { 1.5 }, "i64"), "does not fit into i64")
  lu.assertStrContains(message(peri.tensor), "missing")
end

function TestTensors:test_halves_are_rounded_to_nearest_even()
  local values = { 1 / 3, 65504, 1e-7, 2 ^ -24, 2 ^ -25, 2049, 2051, -0.1, 1e6 }
  local wide = peri.tensor(values, "f32")
  for _, d in ipairs { "f16", "bf16" } do
    lu.assertEquals(peri.tensor(values, d):tolist(), wide:to(d):tolist())
  end
end

function TestTensors:test_fields_and_sizes()
  local x = peri.zeros { 2, 3, 4 }
  lu.assertEquals({ x.shape, x.ndim, x.dtype, x.device, #x }, { { 2, 3, 4 }, 3, "f32", "cpu", 2 })
  lu.assertEquals({ x:numel(), x:size(-1), x:size(2), x:size() }, { 24, 4, 3, { 2, 3, 4 } })
  lu.assertEquals(x.T.shape, { 4, 3, 2 })
  lu.assertNil(x.grad)
  lu.assertTrue(x.is_leaf)
  lu.assertTrue(peri.is_tensor(x))
  lu.assertFalse(peri.is_tensor {})
  lu.assertEquals(getmetatable(x), "perilune.tensor")
end

function TestTensors:test_elements_count_from_one()
  local x = peri.tensor { { 1., 2., 3. }, { 4., 5., 6. } }
  lu.assertEquals({ x:at(1, 1), x:at(2, 3), x:at(-1, -3) }, { 1, 6, 4 })
  lu.assertEquals(x:at(2):tolist(), { 4, 5, 6 })
  lu.assertEquals(x.T:at(3, 1), 3)
  x:set(1, 2, 9)
  lu.assertEquals(x:at(1):tolist(), { 1, 9, 3 })
  lu.assertStrContains(message(x.at, x, 3, 1), "position 3 in dim 1 of size 2")
  lu.assertStrContains(message(x.at, x, 0), "position 0")
  lu.assertStrContains(message(x.item, x), "(2, 3) has 6 elements")
  local w = peri.ones { 2, 2 }:requires_grad_()
  w:at(2):sum():backward()
  lu.assertEquals(w.grad:tolist(), { { 0, 0 }, { 1, 1 } })
end

function TestTensors:test_bytes()
  local x = peri.tensor({ { 1, 2 }, { 3, 4 } }, "i32")
  lu.assertEquals(x.T:bytes(), string.pack("=i4i4i4i4", 1, 3, 2, 4))
  lu.assertEquals(peri.from_bytes(x:bytes(), "i32", { 4 }):tolist(), { 1, 2, 3, 4 })
  lu.assertStrContains(message(peri.from_bytes, "abc", "i32", { 1 }), "3 bytes given, the shape takes 4")
end

function TestTensors:test_printing()
  lu.assertEquals(tostring(peri.tensor(3)), "tensor () i64 cpu 3")
  lu.assertEquals(tostring(peri.zeros { 0, 2 }), "tensor (0, 2) f32 cpu []")
  lu.assertEquals(tostring(peri.tensor { 1, -10 }), "tensor (2) i64 cpu\n[  1, -10]")
  lu.assertEquals(tostring(peri.tensor { true, false }), "tensor (2) bool cpu\n[ true, false]")
  lu.assertEquals(tostring(peri.tensor { { 1., 2. }, { 3., 4.5 } }),
    "tensor (2, 2) f32 cpu\n[[1.0000, 2.0000],\n [3.0000, 4.5000]]")
  lu.assertEquals(tostring(peri.tensor { 1., 0 / 0, 1 / 0, -1 / 0 }), "tensor (4) f32 cpu\n[  1.,  "
    .. "nan,  inf, -inf]")
  lu.assertEquals(tostring(peri.tensor { 1e-9, 2.5e10 }), "tensor (2) f32 cpu\n[1.0000e-09, 2.5000e+10]")
  lu.assertStrContains(tostring(peri.ones { 2 }:requires_grad_()), "f32 cpu grad")
  local long = tostring(peri.arange(2000))
  lu.assertStrContains(long, "[   0,    1,    2, ..., 1997, 1998, 1999]")
  lu.assertTrue(#tostring(peri.zeros { 50, 50, 50 }) < 2500)
  for line in tostring(peri.rand { 1000 }):gmatch "[^\n]+" do lu.assertTrue(#line <= 80) end
  local x = peri.ones { 2 }
  x:release()
  lu.assertEquals(tostring(x), "tensor (released)")
end

function TestTensors:test_release_is_final_and_repeatable()
  local x = peri.ones { 2 }
  local view = x:reshape { 2, 1 }
  x:release()
  x:release()
  lu.assertStrContains(message(function() return x + 1 end), "released by its scope")
  lu.assertStrContains(message(function() return x.shape end), "released by its scope")
  lu.assertEquals(view:sum():item(), 2)
end

TestGradients = {}

function TestGradients:test_backward_accumulates()
  local w = peri.tensor { 1., 2. }:requires_grad_()
  for _ = 1, 2 do (w * w):sum():backward() end
  lu.assertEquals(w.grad:tolist(), { 4, 8 })
  w:zero_grad()
  lu.assertNil(w.grad)
  w.grad = peri.ones { 2 }
  lu.assertEquals(w.grad:tolist(), { 1, 1 })
  w.grad = nil
  lu.assertNil(w.grad)
  local y = w * 3
  lu.assertStrContains(message(y.backward, y), "seed")
  y:backward(peri.tensor { 1., 10. }, { retain_graph = true })
  y:backward(peri.tensor { 1., 10. })
  lu.assertEquals(w.grad:tolist(), { 6, 60 })
  lu.assertStrContains(message(y.backward, y, nil, { retain = true }), "no option is called 'retain'")
end

function TestGradients:test_grad_of_grad()
  local w = peri.tensor({ 2., 3. }, "f64"):requires_grad_()
  local g = peri.grad((w ^ 3):sum(), w, { create_graph = true })
  lu.assertEquals(g:tolist(), { 12, 27 })
  lu.assertEquals(peri.grad(g:sum(), { w })[1]:tolist(), { 12, 18 })
  lu.assertNil(w.grad)
  local other = peri.ones { 1 }:requires_grad_()
  lu.assertNil(peri.grad((w * 2):sum(), { w, other })[2])
end

function TestGradients:test_no_grad()
  local w = peri.ones { 2 }:requires_grad_()
  lu.assertFalse(peri.no_grad(function(x) return (x * 2).requires_grad end, w))
  lu.assertFalse(pcall(peri.no_grad, function() error "x" end))
  lu.assertTrue(peri.grad_enabled())
  do
    local _ <close> = peri.no_grad()
    lu.assertFalse(peri.grad_enabled())
    lu.assertTrue(peri.enable_grad(peri.grad_enabled))
  end
  lu.assertTrue(peri.grad_enabled())
  lu.assertFalse((w * 2):detach().requires_grad)
  local co = coroutine.wrap(function() return peri.no_grad(function() return coroutine.yield(1) end) end)
  lu.assertEquals({ co(), co(5) }, { 1, 5 })
  lu.assertTrue(peri.grad_enabled())
end

function TestGradients:test_anomaly_names_the_op()
  peri.anomaly(true)
  local err = message(function() return peri.tensor { -1. }:log() end)
  peri.anomaly(false)
  lu.assertStrContains(err, "log")
end

TestMemory = {}

local function live() return peri.memory().live end

function TestMemory:test_scopes_free_what_was_made_in_them()
  collectgarbage()
  local before = live()
  local kept, lifted
  do
    local outer <close> = peri.scope()
    do
      local inner <close> = peri.scope()
      local x = peri.ones { 100 }
      kept = inner:keep(x + 1)
      lifted = peri.keep { x * 2, { x * 3 } }
    end
    lu.assertEquals(live() - before, 3 * 400)
    lu.assertEquals(kept:sum():item(), 200)
    outer:close()
    outer:close()
  end
  lu.assertStrContains(message(function() return kept + 1 end), "released by its scope")
  lu.assertEquals(lifted[2][1]:at(1), 3)
  lifted[1]:release()
  lifted[2][1]:release()
  lu.assertEquals(live(), before)
end

function TestMemory:test_steps()
  collectgarbage()
  local before, seen, x = live(), {}, nil
  for step, total in peri.steps(3) do
    seen[#seen + 1] = step .. "/" .. total
    x = peri.ones { 10 }
    lu.assertEquals(live(), before + 40)
  end
  lu.assertEquals(table.concat(seen, " "), "1/3 2/3 3/3")
  lu.assertStrContains(message(function() return x + 1 end), "released")
  for step in peri.steps(5, { from = 4 }) do seen[#seen + 1] = step end
  lu.assertEquals({ seen[4], seen[5], seen[6] }, { 4, 5, nil })
  for _ in peri.steps(9) do
    x = peri.ones { 10 }
    break
  end
  lu.assertFalse(pcall(function()
    for _ in peri.steps(9) do
      x = peri.ones { 10 }
      error "out"
    end
  end))
  local n = 0
  for step, total in peri.steps() do
    n = step
    lu.assertNil(total)
    if step == 4 then break end
  end
  lu.assertEquals(n, 4)
  lu.assertEquals(live(), before)
  lu.assertStrContains(message(peri.steps, 2, { form = 3 }), "'from'")
  lu.assertStrContains(message(peri.steps, "2"), "integer")
end

function TestMemory:test_coroutines_may_close_scopes_in_any_order()
  collectgarbage()
  collectgarbage()
  local before = live()
  local function worker()
    for _ in peri.steps(2) do
      local x = peri.ones { 10 }
      coroutine.yield(x:numel())
    end
  end
  local a, b = coroutine.wrap(worker), coroutine.wrap(worker)
  for _ = 1, 3 do
    a()
    b()
  end
  lu.assertEquals(live(), before)
  local dropped = coroutine.wrap(worker)
  dropped()
  dropped = nil -- luacheck: ignore
  collectgarbage()
  collectgarbage()
  lu.assertEquals(live(), before)
end

function TestMemory:test_the_collector_keeps_up_without_scopes()
  collectgarbage()
  peri.reset_peak()
  local before = live()
  for _ = 1, 300 do local _ = peri.ones { 1000, 1000 } end -- 1.2 GB in all
  lu.assertTrue(peri.memory().peak - before < 200e6)
  collectgarbage()
  collectgarbage()
  lu.assertEquals(live(), before)
end

function TestMemory:test_a_limit_is_met_by_collecting_first()
  local m = peri.memory()
  lu.assertTrue(m.peak >= m.live and m.reserved >= m.live and m.tensors >= 0)
end

TestRandom = {}

function TestRandom:test_generator_objects()
  local a, b = peri.rng(5), peri.rng(5)
  local seen = {}
  for _ = 1, 200 do
    local v = a:int(-1, 2)
    lu.assertEquals(math.type(v), "integer")
    seen[v] = true
    lu.assertEquals(b:int(-1, 2), v)
    local u = a:uniform(2, 3)
    lu.assertTrue(u >= 2 and u < 3)
    b:uniform()
  end
  lu.assertEquals({ seen[-1], seen[0], seen[1], seen[2], seen[3], seen[-2] }, { true, true, true, true, nil, nil })
  local state = a:state()
  local next_values = { a:uniform(), a:normal(), a:choice { "x", "y", "z" } }
  a:set_state(state)
  lu.assertEquals({ a:uniform(), a:normal(), a:choice { "x", "y", "z" } }, next_values)
  local t = a:shuffle { 1, 2, 3, 4, 5, 6, 7, 8 }
  table.sort(t)
  lu.assertEquals(t, { 1, 2, 3, 4, 5, 6, 7, 8 })
  local sum, square = 0, 0
  for _ = 1, 4000 do
    local v = a:normal(1, 2)
    sum, square = sum + v, square + v * v
  end
  lu.assertAlmostEquals(sum / 4000, 1, 0.15)
  lu.assertAlmostEquals(square / 4000 - 1, 4, 0.4)
  lu.assertEquals(math.type(a:int(math.mininteger, math.maxinteger)), "integer")
  lu.assertStrContains(message(a.int, a, 2, 1), "no integer lies between 2 and 1")
end

function TestRandom:test_the_state_of_the_ops_generator()
  peri.seed(3)
  local state = peri.rng_state()
  local x = peri.randn { 4 }
  peri.set_rng_state(state)
  close(peri.randn { 4 }, x)
  lu.assertEquals(state, { seed = 3, offset = 0 })
end

TestInfo = {}

function TestInfo:test_profile()
  local x = peri.randn { 64, 64 }
  local p, result = peri.profile(function(y)
    for _ = 1, 3 do y = y:matmul(x) end
    return y:sum():item()
  end, x)
  lu.assertEquals(math.type(result), "float")
  lu.assertEquals(p[1].op == "matmul" and p[1].count or p[2].count, 3)
  lu.assertStrContains(tostring(p), "GFLOP/s")
  lu.assertStrContains(tostring(p), "matmul")
  lu.assertFalse(pcall(peri.profile, function() error "x" end))
end

function TestInfo:test_info()
  local info = peri.info()
  lu.assertEquals(info.version:match "^%d+%.%d+%.%d+$", info.version)
  lu.assertEquals(info.threads, peri.threads())
  lu.assertStrContains("portable avx2 avx512", info.simd)
  lu.assertTrue(peri.time() > 0)
end

function TestInfo:test_shapes_print_and_compare_by_their_sizes()
  local x = peri.zeros { 2, 3 }
  lu.assertEquals(tostring(x.shape), "(2, 3)")
  lu.assertTrue(x.shape == peri.ones { 2, 3 }.shape)
  lu.assertTrue(x.shape == { 2, 3 })
  lu.assertFalse(x.shape == { 2 })
  lu.assertFalse(x.shape == x.T.shape)
  lu.assertEquals(table.concat(peri.zeros(x.shape).shape, " "), "2 3")
end

function TestInfo:test_backward_says_when_recording_is_off()
  local x = peri.ones { 2 }:requires_grad_()
  local _ <close> = peri.no_grad()
  lu.assertErrorMsgContains("recording is off here (no_grad)", function() (x * 2):sum():backward() end)
end

function TestInfo:test_help_of_everything()
  local text = {}
  local real = print
  print = function(s) text[#text + 1] = s end -- luacheck: ignore 121
  peri.help()
  peri.help "softmax"
  peri.help(peri.softmax)
  peri.help(peri.steps)
  peri.help "item"
  peri.help(peri.ones { 2 })
  peri.help(peri.per_sample_grad)
  peri.help "no_such_thing_at_all"
  peri.help(peri.nn)
  peri.help(nil)
  print = real -- luacheck: ignore 121
  lu.assertStrContains(text[1], "softmax")
  lu.assertEquals(text[2], text[3])
  lu.assertStrContains(text[3], "default -1")
  lu.assertStrContains(text[4], "each turn is a scope")
  lu.assertStrContains(text[5], "The only element")
  lu.assertStrContains(text[6], "fields: shape")
  lu.assertStrContains(text[7], "without mixing samples")
  lu.assertStrContains(text[8], "nothing is called")
  lu.assertStrContains(text[9], "Linear")
end

function TestInfo:test_the_stock_interpreter_loads_the_module()
  local module = "build/module/perilune/core.so"
  local file = io.open(module)
  if not file then lu.skip("no " .. module) end
  file:close()
  local run = io.popen("LUA_PATH='lua/?.lua;lua/?/init.lua' LUA_CPATH=build/module/?.so PERI_THREADS=1 lua5.4 -e '"
    .. "local peri = require [[perilune]] print(peri.threads(), peri.ones{2}:sum():item())' 2>&1")
  local out = run:read "a"
  run:close()
  lu.assertEquals(out, "1\t2.0\n")
end

if arg and arg[0] and arg[0]:find "test_bindings" then os.exit(lu.LuaUnit.run()) end
