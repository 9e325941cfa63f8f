-- Convolutions, pooling and batch normalisation as layers: initial weights, shapes, buffers, refusals; and the op over
-- sizes that take each way through its kernels, in f32 against f64.
local lu = require "luaunit"
local peri = require "perilune"
local nn, optim = peri.nn, peri.optim

local function close(got, want, tolerance)
  lu.assertEquals(got.shape, want.shape)
  local off = (got:to "f64" - want:to "f64"):abs():max():item()
  lu.assertTrue(off <= (tolerance or 1e-6), ("off by %g"):format(off))
end

-- ---- the op ----

TestConvolutions = {}

-- x, weight, then stride, padding, dilation, groups: many and few channels, taps in one and several blocks, phases of
-- the stride that meet different taps or none, outputs that share vectors or not, long rows.
local sizes = {
  { { 5, 4, 36, 40 }, { 32, 4, 8, 8 }, 4 }, { { 3, 32, 20, 20 }, { 64, 32, 4, 4 }, 2 },
  { { 4, 64, 9, 9 }, { 64, 64, 3, 3 } }, { { 2, 100, 7, 7 }, { 13, 100, 3, 3 }, 1, 1 },
  { { 7, 3, 11, 12 }, { 8, 3, 3, 3 }, 2, 1 }, { { 3, 5, 9, 9 }, { 7, 5, 1, 1 }, 2 },
  { { 2, 6, 12, 33 }, { 6, 1, 3, 3 }, 1, 1, 1, 6 }, { { 2, 6, 12, 33 }, { 12, 1, 3, 5 }, 2, 1, 1, 6 },
  { { 1, 4, 17, 70 }, { 3, 4, 3, 3 }, { 1, 3 }, { 2, 1, 0, 5 }, { 2, 3 } }, { { 1, 2, 1, 5000 }, { 9, 2, 1, 7 } },
  { { 1, 1, 1, 3000 }, { 1, 1, 1, 9 }, { 1, 2 }, { 0, 4 } }, { { 2, 7, 5, 5 }, { 5, 7, 5, 5 } },
  { { 3, 1, 8, 8 }, { 40, 1, 3, 3 } }, { { 2, 8, 9, 9 }, { 8, 4, 2, 2 }, 5, 0, 1, 2 },
}

local function run(dtype, s, case)
  local x, w = s.x:to(dtype):requires_grad_(), s.w:to(dtype):requires_grad_()
  local b = s.b:to(dtype):requires_grad_()
  local y = x:conv2d(w, b, table.unpack(case, 3, 6))
  local weights = peri.arange(y:numel()):to("f64"):mul(0.7):sin():reshape(y.shape):to(dtype)
  local grads = peri.grad(y:mul(weights):sum(), { x, w, b })
  return { y, grads[1], grads[2], grads[3] }
end

-- Sums of up to some thousand products, as a share of 1 and the largest result: roundings of 6e-8 walk at random, and cancel.
function TestConvolutions.test_every_way_through_the_kernels_agrees_with_f64()
  peri.seed(2)
  for i, case in ipairs(sizes) do
    local s = { x = peri.randn(case[1], "f64"), w = peri.randn(case[2], "f64"), b = peri.randn({ case[2][1] }, "f64") }
    local got, want = run("f32", s, case), run("f64", s, case)
    for k, name in ipairs { "y", "dx", "dweight", "dbias" } do
      local off = (got[k]:to "f64" - want[k]):abs():max():item() / (1 + want[k]:abs():max():item())
      lu.assertTrue(off < 1e-5, ("sizes %d: %s is %g off"):format(i, name, off))
    end
  end
end

function TestConvolutions.test_an_image_does_not_depend_on_its_batch()
  local x, w = peri.randn { 9, 4, 20, 20 }, peri.randn { 16, 4, 3, 3 }
  local all = x:conv2d(w)
  for i = 1, 9, 4 do
    lu.assertEquals(x:narrow(1, i, 1):conv2d(w):bytes(), all:narrow(1, i, 1):contiguous():bytes())
    lu.assertEquals(x:select(1, i):conv2d(w):bytes(), all:select(1, i):contiguous():bytes())
  end
end

function TestConvolutions.test_no_column_of_a_window_is_stored_for_all_of_a_batch()
  local x, w = peri.randn { 16, 8, 64, 64 }, peri.randn { 8, 8, 5, 5 } -- 2 MB; all windows 25 times that
  local before = peri.memory().live
  peri.reset_peak()
  x:conv2d(w, nil, 1, 2)
  lu.assertTrue(peri.memory().peak - before < 16 * 2 ^ 20)
end

function TestConvolutions.test_pixels_are_read_as_numbers()
  local pixels = peri.randint(0, 256, { 2, 3, 6, 6 }):to "u8"
  local conv = nn.Conv2d(3, 4, 3)
  lu.assertEquals(conv(pixels):bytes(), conv(pixels:to "f32"):bytes())
  local bits = pixels:gt(100)
  lu.assertEquals(conv(bits):bytes(), conv(bits:to "f32"):bytes())
end

function TestConvolutions.test_a_stride_beyond_the_image_costs_nothing()
  local x, w, far = peri.randn { 2, 3, 6, 5 }, peri.randn { 4, 3, 3, 2 }, (1 << 31) - 1
  local function run_with(stride)
    local a, b = x:clone():requires_grad_(), w:clone():requires_grad_()
    local y = a:conv2d(b, nil, stride)
    local grads = peri.grad(y:square():sum(), { a, b })
    return y:bytes() .. grads[1]:bytes() .. grads[2]:bytes()
  end
  lu.assertEquals(run_with(far), run_with(6))
  lu.assertEquals(x:max_pool2d(2, far):bytes(), x:max_pool2d(2, 6):bytes())
  lu.assertErrorMsgContains("too large", x.conv2d, x, w, nil, 1, far)
end

-- ---- layers ----

function TestConvolutions.test_initial_weights_are_pytorchs()
  peri.seed(3)
  local conv = nn.Conv2d(8, 32, { 3, 5 }, { groups = 2 })
  local bound = 1 / math.sqrt(8 / 2 * 15)
  lu.assertEquals(conv.weight.shape, { 32, 4, 3, 5 })
  lu.assertEquals(conv.bias.shape, { 32 })
  for _, p in ipairs(conv:parameters()) do lu.assertTrue(p:abs():max():item() <= bound) end
  lu.assertAlmostEquals(conv.weight:std():item(), bound / math.sqrt(3), 0.05 * bound)
  lu.assertEquals(nn.Conv1d(2, 3, 5).weight.shape, { 3, 2, 5 })
  lu.assertNil(nn.Conv1d(2, 3, 5, { bias = false }).bias)
end

function TestConvolutions.test_same_keeps_the_size()
  local x = peri.randn { 2, 3, 7, 8 }
  for _, kernel in ipairs { 1, 2, 3, 4, { 2, 5 } } do
    for _, dilation in ipairs { 1, 2 } do
      local conv = nn.Conv2d(3, 4, kernel, { padding = "same", dilation = dilation })
      lu.assertEquals(conv(x).shape, { 2, 4, 7, 8 })
    end
  end
  local row = nn.Conv1d(1, 1, 4, { padding = "same", bias = false }) -- one before, two behind
  local y = row(peri.tensor({ 1, 0, 0, 0 }, "f32"):reshape { 1, 1, 4 })
  lu.assertEquals(y:flatten():tolist(), { row.weight:at(1, 1, 2), row.weight:at(1, 1, 1), 0, 0 })
  lu.assertEquals(nn.Conv2d(3, 4, 3, 2, "valid")(x).shape, { 2, 4, 3, 3 })
end

function TestConvolutions.test_a_net_for_pixels_learns()
  peri.seed(4)
  local net = nn.Sequential(nn.Conv2d(1, 8, 3, { padding = 1 }), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Linear(8 * 16, 2))
  local opt = optim.Adam(net, { lr = 0.01 })
  local x = peri.rand { 64, 1, 8, 8 }
  local left, right = x:narrow(4, 1, 4):sum({ 2, 3, 4 }), x:narrow(4, 5, 4):sum({ 2, 3, 4 })
  local label, first, last = left:gt(right):to "i64", nil, nil
  for _ in peri.steps(40) do
    local loss = net(x):cross_entropy(label)
    loss:backward()
    opt:step():zero_grad()
    last = loss:item()
    first = first or last
  end
  lu.assertTrue(last < 0.3 * first, ("%g to %g"):format(first, last))
end

function TestConvolutions.test_what_is_refused()
  local function refused(words, fn, ...)
    lu.assertErrorMsgContains(words, fn, ...)
  end
  refused("3 in_channels do not divide into 2 groups", nn.Conv2d, 3, 4, 3, { groups = 2 })
  refused("stride is 0", nn.Conv2d, 3, 4, 3, 0)
  refused("a list of 2", nn.Conv2d, 3, 4, { 3, 3, 3 })
  refused("\"same\" with stride 2", nn.Conv2d, 3, 4, 3, 2, "same")
  refused("\"valid\"", nn.Conv2d, 3, 4, 3, 1, "full")
  refused("padding_mode", nn.Conv2d, 3, 4, 3, { padding_mode = "reflect" })
  refused("kernel_size is missing", nn.MaxPool2d)
  refused("divisor_override", nn.AvgPool1d, 2, { divisor_override = 3 })
  refused("padding is 2", nn.MaxPool2d(3, 1, 2), peri.ones { 1, 1, 5, 5 })
  refused("momentum is 2", nn.BatchNorm1d, 3, { momentum = 2 })
  refused("expected (N, C, H, W)", nn.BatchNorm2d(3), peri.ones { 2, 3, 4 })
  refused("(1, 3)", nn.BatchNorm1d(3), peri.ones { 1, 3 })
end

-- ---- batch norm ----

function TestConvolutions.test_running_statistics_move_as_pytorchs()
  local bn = nn.BatchNorm1d(2)
  local x = peri.tensor({ 1, 2, 3, 5, 8, 11 }, "f32"):reshape { 3, 2 }
  bn(x) -- means 4 and 6, unbiased variances 13 and 21
  close(bn.running_mean, peri.tensor({ 0.4, 0.6 }, "f32"))
  close(bn.running_var, peri.tensor({ 0.9 + 1.3, 0.9 + 2.1 }, "f32"))
  lu.assertEquals(bn.num_batches_tracked:item(), 1)
  bn:eval()
  local y = bn(x)
  close(y, (x - bn.running_mean) / (bn.running_var + 1e-5):sqrt())
  lu.assertEquals(bn.num_batches_tracked:item(), 1)
  bn(x:narrow(1, 1, 1)) -- one value is enough now
  local mean = nn.BatchNorm1d(2, { momentum = false })
  mean(x)
  mean(x + 2)
  close(mean.running_mean, peri.tensor({ 5, 7 }, "f32"))
end

function TestConvolutions.test_running_statistics_are_buffers_of_the_state()
  local bn = nn.BatchNorm2d(3)
  bn(peri.randn { 4, 3, 5, 5 })
  local names = {}
  for i, entry in ipairs(bn:named_buffers()) do names[i] = entry[1] end
  lu.assertEquals(names, { "running_mean", "running_var", "num_batches_tracked" })
  lu.assertEquals(bn.num_batches_tracked.shape, {})
  lu.assertEquals(bn.num_batches_tracked.dtype, "i64")
  local again = nn.BatchNorm2d(3)
  again:load_state_dict(bn:state_dict())
  local x = peri.randn { 2, 3, 4, 4 }
  close(again:eval()(x), bn:eval()(x), 0)
  local bare = nn.BatchNorm2d(3, { affine = false, track_running_stats = false })
  lu.assertEquals(bare:state_dict(), {})
  close(bare:eval()(x), bare:train()(x), 0) -- the batch's own either way
end

function TestConvolutions.test_a_large_mean_does_not_cost_the_variance()
  local x = peri.randn({ 64, 2, 8, 8 }):add(4096)
  local y, _, var = x:batch_norm(nil, nil, nil, nil, true)
  lu.assertAlmostEquals(y:std():item(), 1, 1e-3)
  close(var, x:to("f64"):var({ 1, 3, 4 }), 1e-3)
end

os.exit(lu.LuaUnit.run())
