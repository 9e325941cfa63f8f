-- Laws that hold of every op of the table: strides, narrow floats, empty tensors, threads, writing in
-- place, batches, chance. Comparisons are of bits unless a test says otherwise.
local lu = require "luaunit"
local peri = require "perilune"
local optest = require "optest"

local ops = peri.ops()

local function is_tensor(x) return type(x) == "userdata" end

-- args with fn(tensor, position) applied to every tensor, lists included.
local function mapped(args, fn)
  local out = { n = args.n }
  for i = 1, args.n do
    if is_tensor(args[i]) then out[i] = fn(args[i], i)
    elseif type(args[i]) == "table" and is_tensor(args[i][1]) then
      out[i] = {}
      for k, x in ipairs(args[i]) do out[i][k] = fn(x, i) end
    else out[i] = args[i] end
  end
  return out
end

local function assert_same_bits(got, want, what)
  lu.assertEquals(#got, #want, what)
  for k, y in ipairs(want) do
    lu.assertEquals(got[k].shape, y.shape, what .. ": shape")
    lu.assertEquals(got[k].dtype, y.dtype, what .. ": dtype")
    if got[k]:bytes() ~= y:bytes() then
      local a, b = got[k]:reshape { y:numel() }, y:reshape { y:numel() }
      for i = 1, y:numel() do
        lu.assertEquals(a:at(i), b:at(i), ("%s: output %d at %d"):format(what, k, i))
      end
      lu.fail(what .. ": bits of zeros or NaNs differ")
    end
  end
end

TestLaws = {}

-- ---- strides: the same values laid out otherwise ----

local layouts = {
  transposed = function (x) return x.ndim < 2 and x or x:transpose():contiguous():transpose() end,
  reversed = function (x)
    if x.ndim < 2 then return x end
    local dims = {}
    for i = 1, x.ndim do dims[i] = x.ndim + 1 - i end
    return x:permute(dims):contiguous():permute(dims)
  end,
  narrowed = function (x)
    if x.ndim == 0 then return x end
    return x:pad { 3, 2 }:narrow(-1, 4, x:size(-1))
  end,
  stepped = function (x) -- every other element of a wider tensor
    if x.ndim == 0 then return x end
    return peri.stack({ x, x }, -1):select(-1, 1)
  end,
  flipped = function (x) return x:flip():contiguous():flip() end,
  expanded = function (x) -- the first slice, repeated
    if x.ndim == 0 or x:size(1) == 0 then return x end
    return x:narrow(1, 1, 1):expand(x.shape)
  end,
  offset = function (x) return peri.cat { x:flatten():narrow(1, 1, 1), x:flatten() }:narrow(1, 2, x:numel())
    :reshape(x.shape) end,
}

local function gradients(op, args, floats)
  local loss = optest.scalar(optest.call(op, args))
  local list = {}
  for k, g in pairs(loss and loss.requires_grad and peri.grad(loss, floats) or {}) do list[k] = g end
  return list
end

local function check_layout(op, domain, layout)
  local args = optest.arguments(op, "f32", domain)
  local strided = mapped(args, layouts[layout])
  local dense = mapped(strided, function (x) return x:clone() end)
  assert_same_bits(optest.call(op, strided), optest.call(op, dense), op.name .. " of " .. layout .. " tensors")
  if not op.differentiable then return end
  local function leaves(list)
    local floats = {}
    local with = mapped(list, function (x, i)
      if x.dtype ~= "f32" or op.params[i].target then return x end
      floats[#floats + 1] = x:detach():requires_grad_()
      return floats[#floats]
    end)
    return with, floats
  end
  local a, b = gradients(op, leaves(strided)), gradients(op, leaves(dense))
  for k, want in pairs(b) do
    assert_same_bits({ a[k] }, { want }, ("%s: gradient %d of %s tensors"):format(op.name, k, layout))
  end
end

for _, op in ipairs(ops) do
  if not op.flags.inplace and op.name ~= "empty_like" and op.params[1].kind:find "^tensor" then
    for layout in pairs(layouts) do
      TestLaws[("test_%s of %s tensors"):format(op.name, layout)] = function ()
        check_layout(op, op.domain, layout)
        check_layout(op, optest.large(op), layout)
      end
    end
  end
end

-- ---- f16 and bf16: the f32 result rounded once ----

for _, op in ipairs(ops) do
  if (op.flags.elementwise or op.flags.upcast) and not op.flags.random and not op.flags.inplace then
    for _, half in ipairs { "f16", "bf16" } do
      TestLaws[("test_%s of %s is the f32 result rounded"):format(op.name, half)] = function ()
        local args, floats = optest.arguments(op, half)
        if #floats == 0 then return end
        local wide = mapped(args, function (x) return x.dtype == half and x:to "f32" or x end)
        local want = optest.call(op, wide)
        for k, y in ipairs(want) do if y.dtype == "f32" then want[k] = y:to(half) end end
        assert_same_bits(optest.call(op, args), want, op.name .. " of " .. half)
      end
    end
  end
end

-- ---- empty tensors: a result or an error, no crash and nothing left behind ----

local function live()
  collectgarbage()
  collectgarbage()
  return peri.memory().live
end

for _, op in ipairs(ops) do
  for _, where in ipairs { "first", "last" } do
    TestLaws[("test_%s of tensors whose %s size is 0"):format(op.name, where)] = function ()
      local before = live()
      do
        local args = mapped(optest.arguments(op, "f32"), function (x)
          if x.ndim == 0 then return x end
          return x:narrow(where == "first" and 1 or -1, 1, 0):contiguous()
        end)
        local ok, message = pcall(optest.call, op, args)
        if not ok then lu.assertStrContains(message, op.name .. ": ") end
      end
      lu.assertEquals(live(), before)
    end
  end
end

-- ---- threads ----

function TestLaws.test_one_and_more_threads_give_the_same_bits()
  local program = arg[-2]
  if not program then return lu.skip "needs the program's path" end
  local function run(threads)
    local pipe = io.popen(("PERI_THREADS=%d '%s' run tests/lua/op_digest.lua"):format(threads, program))
    local head, rest = pipe:read "l", pipe:read "a"
    lu.assertTrue(pipe:close())
    lu.assertEquals(head, "threads " .. threads)
    return rest
  end
  local one = run(1)
  lu.assertTrue(select(2, one:gsub("\n", "")) > 150)
  for _, n in ipairs { 2, 3 } do
    local other = run(n)
    if other ~= one then
      local lines = one:gmatch "[^\n]+"
      for line in other:gmatch "[^\n]+" do lu.assertEquals(line, lines(), n .. " threads") end
    end
  end
end

-- ---- in place ----

for _, op in ipairs(ops) do
  if op.flags.elementwise then
    TestLaws[("test_%s_ equals %s"):format(op.name, op.name)] = function ()
      local function check(dtype, domain)
        for _, layout in ipairs { "transposed", "stepped", "flipped" } do
          local args = optest.arguments(op, dtype, domain)
          local want = optest.call(op, args)[1]:clone()
          local x = args[1]:clone()
          x[op.name .. "_"](x, table.unpack(args, 2, args.n))
          assert_same_bits({ x }, { want }, op.name .. "_")
          x = layouts[layout](args[1])
          x[op.name .. "_"](x, table.unpack(args, 2, args.n))
          assert_same_bits({ x }, { want }, op.name .. "_ of a " .. layout .. " tensor")
        end
      end
      for _, dtype in ipairs { "f32", "f64", "f16", "bf16" } do check(dtype, op.domain) end
      check("f32", optest.large(op))
    end
  end
end

function TestLaws.test_in_place_ops_read_what_they_overwrite_first()
  local x = peri.arange(12):to("f32"):reshape { 3, 4 }
  local want = x:narrow(1, 1, 2):add(x:narrow(1, 2, 2))
  x:narrow(1, 2, 2):add_(x:narrow(1, 1, 2))
  assert_same_bits({ x:narrow(1, 2, 2) }, { want }, "add_ of overlapping rows")
  local y = peri.arange(9):to("f32"):reshape { 3, 3 }
  want = y:add(y.T)
  y:add_(y.T)
  assert_same_bits({ y }, { want }, "add_ of the own transpose")
end

-- ---- batches: a row's bits depend on the row alone ----

-- fn(batch) gets rows of the inputs and returns tensors whose first dim is the row.
local function check_rows(what, n, fn)
  local all = fn(1, n)
  for _, cut in ipairs { { 1, 1 }, { 2, 1 }, { n, 1 }, { 2, 3 }, { 3, n - 3 }, { 1, n - 1 } } do
    local part = fn(cut[1], cut[2])
    for k, y in ipairs(all) do
      assert_same_bits({ part[k] }, { y:narrow(1, cut[1], cut[2]):contiguous() },
        ("%s: rows %d to %d of %d"):format(what, cut[1], cut[1] + cut[2] - 1, n))
    end
  end
end

local function rows(x) return function (from, count) return x:narrow(1, from, count) end end

for _, width in ipairs { 5, 64, 131 } do
  local function make(n, ...)
    peri.seed(n + width)
    return peri.randn { n, ... }
  end
  local n = 37

  TestLaws[("test_linear by rows, width %d"):format(width)] = function ()
    local x, w, b = rows(make(n, width)), peri.randn { 70, width }, peri.randn { 70 }
    for _, act in ipairs { "none", "gelu", "silu" } do
      check_rows("linear " .. act, n, function (i, k) return { peri.linear(x(i, k), w, b, act) } end)
    end
    check_rows("linear without bias", n, function (i, k) return { peri.linear(x(i, k), w) } end)
    check_rows("matmul", n, function (i, k) return { peri.matmul(x(i, k), w.T) } end)
    check_rows("matmul of a dense right side", n, function (i, k) return { x(i, k):matmul(w.T:contiguous()) } end)
    for _, m in ipairs { 1, 7 } do -- few columns
      local v = peri.randn { m, width }
      check_rows("linear to " .. m, n, function (i, k) return { peri.linear(x(i, k), v) } end)
    end
  end

  TestLaws[("test_batched matmul by batches, width %d"):format(width)] = function ()
    local x, y = rows(make(n, 6, width)), rows(peri.randn { n, width, 9 })
    check_rows("matmul", n, function (i, k) return { peri.matmul(x(i, k), y(i, k)) } end)
  end

  TestLaws[("test_rows of softmax and norms, width %d"):format(width)] = function ()
    local x, r, w, b = rows(make(n, width)), rows(peri.randn { n, width }), peri.randn { width }, peri.randn { width }
    for _, op in ipairs { "softmax", "log_softmax", "layer_norm", "rms_norm", "logsumexp", "sum", "mean", "var", "max",
      "argmax", "cumsum", "sort" } do
      local dim = (op == "layer_norm" or op == "rms_norm") and {} or { -1 }
      check_rows(op, n, function (i, k) return { peri[op](x(i, k), table.unpack(dim)) } end)
    end
    check_rows("layer_norm", n, function (i, k) return { peri.layer_norm(x(i, k), w, b) } end)
    check_rows("add_layer_norm", n, function (i, k) return { peri.add_layer_norm(x(i, k), r(i, k), w, b) } end)
    check_rows("add_rms_norm", n, function (i, k) return { peri.add_rms_norm(x(i, k), r(i, k), w) } end)
    check_rows("group_norm", n, function (i, k)
      return { peri.group_norm(x(i, k):unsqueeze(2):expand { -1, 4, -1 }, nil, nil, 2) }
    end)
    check_rows("silu_mul", n, function (i, k) return { peri.silu_mul(x(i, k), r(i, k)) } end)
  end

  TestLaws[("test_rows of losses, width %d"):format(width)] = function ()
    local x, t = rows(make(n, 24)), rows(peri.randint(0, width, { n }))
    local w, b = peri.randn { width, 24 }, peri.randn { width }
    check_rows("token_logprob", n, function (i, k) return { peri.token_logprob(x(i, k), w, t(i, k), b) } end)
    check_rows("cross_entropy", n, function (i, k)
      return { peri.cross_entropy(peri.linear(x(i, k), w, b), t(i, k), { reduction = "none" }) }
    end)
  end

  TestLaws[("test_attention by sequences, %d keys"):format(width)] = function ()
    local m = 7
    local q, k, v = rows(make(m, width, 4, 16)), rows(peri.randn { m, width, 2, 16 }), rows(peri.randn { m, width, 2, 16 })
    local start = rows(peri.randint(0, 4, { m }))
    check_rows("attention", m, function (i, c)
      return { peri.attention(q(i, c), k(i, c), v(i, c), nil, start(i, c), { causal = true }) }
    end)
    check_rows("attention, window", m, function (i, c)
      return { peri.attention(q(i, c), k(i, c), v(i, c), { causal = true, window = 3 }) }
    end)
  end

  -- A query's place in its block must not matter either: what was computed for one token at a time, with
  -- the keys in a cache, must be what the whole sequence gave.
  TestLaws[("test_attention token by token, %d keys"):format(width)] = function ()
    local q, k, v = make(2, width, 4, 16), peri.randn { 2, width, 2, 16 }, peri.randn { 2, width, 2, 16 }
    local whole = peri.attention(q, k, v, { causal = true })
    for t = 1, width, 3 do
      local one = peri.attention(q:narrow(2, t, 1), k:narrow(2, 1, t), v:narrow(2, 1, t), { causal = true })
      assert_same_bits({ one }, { whole:narrow(2, t, 1):contiguous() }, "token " .. t)
    end
  end
end

-- Sizes beyond the blocks that products are cut into.
function TestLaws.test_linear_by_rows_of_many_blocks()
  peri.seed(3)
  local x, w, b = rows(peri.randn { 300, 700 }), peri.randn { 530, 700 }, peri.randn { 530 }
  local all = peri.linear(x(1, 300), w, b)
  for _, cut in ipairs { { 1, 1 }, { 300, 1 }, { 97, 5 }, { 100, 150 }, { 1, 299 } } do
    assert_same_bits({ peri.linear(x(cut[1], cut[2]), w, b) }, { all:narrow(1, cut[1], cut[2]):contiguous() },
      ("rows %d to %d"):format(cut[1], cut[1] + cut[2] - 1))
  end
end

function TestLaws.test_attention_step_equals_its_parts()
  peri.seed(4)
  local freq = peri.tensor { 1, 0.5, 0.25, 0.125 }
  for _, window in ipairs { 0, 5 } do
    local ck, cv = peri.zeros { 2, 40, 2, 16 }, peri.zeros { 2, 40, 2, 16 }
    local dk, dv = ck:clone(), cv:clone()
    local pos = 1
    for _, n in ipairs { 9, 1, 1, 6, 1 } do
      local x = peri.randn { 2, n, 8, 16 }
      local positions = peri.arange(pos - 1, pos - 1 + n)
      local got = peri.attention_step_(ck, cv, x, positions, freq, nil, pos, { window = window })
      local q, k, v = peri.unpack_qkv(x, 4, 2)
      peri.kv_append_(dk, dv, peri.rope(k, positions, freq), v, pos)
      pos = pos + n
      local want = peri.attention(peri.rope(q, positions, freq), dk:narrow(2, 1, pos - 1), dv:narrow(2, 1, pos - 1),
        { causal = true, window = window })
      assert_same_bits({ got, ck, cv }, { want, dk, dv }, "step at " .. pos)
    end
  end
end

-- ---- chance ----

function TestLaws.test_a_seed_repeats_and_draws_go_on()
  for _, draw in ipairs { function () return peri.rand { 50 } end, function () return peri.randn { 50 } end,
    function () return peri.randint(0, 1000, { 50 }) end, function () return peri.randperm(50) end,
    function () return peri.rand_like(peri.zeros { 50 }) end, function () return peri.randn_like(peri.zeros { 50 }) end,
    function () return peri.bernoulli(peri.full({ 50 }, 0.5)) end, function () return peri.dropout(peri.ones { 50 }) end,
    function () return peri.categorical(peri.zeros { 9 }, 50) end,
    function () return peri.rand_gamma(peri.full({ 50 }, 0.5)) end } do
    peri.seed(5)
    local first, second = draw(), draw()
    peri.seed(5)
    assert_same_bits({ draw() }, { first }, "the same seed")
    lu.assertNotEquals(second:bytes(), first:bytes())
  end
end

-- 40,000 draws: the mean of a variable of variance s^2 errs by s / 200; five of these happen once in
-- 1.7 million seeds, and the seed is fixed.
function TestLaws.test_distributions()
  peri.seed(11)
  local n = 40000
  local u = peri.rand { n }
  lu.assertTrue(u:min():item() >= 0 and u:max():item() < 1)
  lu.assertAlmostEquals(u:mean():item(), 0.5, 5 * 0.2887 / 200)
  lu.assertAlmostEquals(u:var():item(), 1 / 12, 5 * 0.0745 / 200)
  local g = peri.randn { n }
  lu.assertAlmostEquals(g:mean():item(), 0, 5 / 200)
  lu.assertAlmostEquals(g:var():item(), 1, 5 * 1.4142 / 200)
  lu.assertAlmostEquals(g:pow(4):mean():item(), 3, 5 * 9.8 / 200)
  local i = peri.randint(-2, 3, { n })
  lu.assertEquals({ i:min():item(), i:max():item() }, { -2, 2 })
  lu.assertAlmostEquals(i:mean():item(), 0, 5 * 1.4142 / 200)
  lu.assertEquals(peri.randperm(1000):sort():tolist(), peri.arange(1000):tolist())
  lu.assertAlmostEquals(peri.bernoulli(peri.full({ n }, 0.3)):mean():item(), 0.3, 5 * 0.4583 / 200)
  for _, alpha in ipairs { 0.05, 0.7, 1, 3.5, 200 } do
    local x = peri.rand_gamma(peri.full({ n }, alpha, "f64"))
    lu.assertTrue(x:min():item() >= 0)
    lu.assertAlmostEquals(x:mean():item(), alpha, 5 * math.sqrt(alpha) / 200)
    lu.assertAlmostEquals(x:var():item(), alpha, 5 * math.sqrt(2 * alpha ^ 2 + 6 * alpha) / 200) -- 4th moment: 3 a^2 + 6 a
    local logs = peri.rand_gamma(peri.full({ n }, alpha), true) -- their mean is digamma, their variance trigamma
    local spread = peri.polygamma(peri.tensor(alpha, "f64")):item()
    lu.assertAlmostEquals(logs:mean():item(), peri.digamma(peri.tensor(alpha, "f64")):item(), 5 * math.sqrt(spread) / 200)
  end
  local d = peri.dropout(peri.ones { n }, 0.25)
  lu.assertAlmostEquals(d:mean():item(), 1, 5 * 0.5774 / 200)
  lu.assertAlmostEquals(d:max():item(), 1 / 0.75, 1e-6)
  local c = peri.categorical(peri.tensor { 0.5, 0.3, 0.2 }:log(), n)
  for k, p in ipairs { 0.5, 0.3, 0.2 } do
    lu.assertAlmostEquals(c:eq(k - 1):to("f32"):mean():item(), p, 5 * math.sqrt(p * (1 - p)) / 200)
  end
  local id = peri.sample(peri.tensor { 0.5, 0.3, 0.2 }:log():expand { n, 3 })
  for k, p in ipairs { 0.5, 0.3, 0.2 } do
    lu.assertAlmostEquals(id:eq(k - 1):to("f32"):mean():item(), p, 5 * math.sqrt(p * (1 - p)) / 200)
  end
end

-- A row that moved to another place, into another batch and to a later call still draws what it would have drawn.
function TestLaws.test_keys_of_three_numbers_draw_what_the_row_draws_without()
  local logits = peri.randn { 12, 50 }
  for _, how in ipairs { {}, { temperature = 0.7, top_k = 9 }, { top_p = 0.8, min_p = 0.01 } } do
    local state = peri.rng_state()
    local ids, logp = logits:sample(how)
    lu.assertEquals(peri.rng_state().offset, state.offset + 1)
    local places, keys = { 7, 0, 11, 7 }, {}
    for i, r in ipairs(places) do keys[i] = { state.seed, state.offset, r } end
    local at = peri.tensor(places, "i64")
    how.keys = peri.tensor(keys, "i64")
    local got, logp2 = logits:index_select(at, 1):sample(how)
    lu.assertEquals(got:tolist(), ids:index_select(at, 1):tolist())
    lu.assertEquals(logp2:bytes(), logp:index_select(at, 1):bytes())
    lu.assertEquals(peri.rng_state().offset, state.offset + 1)
  end
end

os.exit(lu.LuaUnit.run())
