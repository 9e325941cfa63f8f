-- Gradients that do not come from the ops of the table alone: functions with a vjp of their own,
-- segments that run again in the backward pass, gradients of each sample.
local lu = require "luaunit"
local peri = require "perilune"
local claims = require "claims"

local message, close = claims.message, claims.close

local function leaf(values) return peri.tensor(values, "f64"):requires_grad_() end

TestCustom = {}

function TestCustom.test_custom()
  local square = peri.custom(function(c, x, n)
    c.x, c.n = x, n
    return x ^ n, "aside"
  end, function(c, g) return g * c.n * c.x ^ (c.n - 1) end)
  local w = peri.tensor({ 2., 3. }, "f64"):requires_grad_()
  local y, aside = square(w, 3)
  lu.assertEquals(aside, "aside")
  y:sum():backward()
  lu.assertEquals(w.grad:tolist(), { 12, 27 })
  local g = peri.grad(square(w, 3):sum(), w, { create_graph = true }) -- a vjp of ops is differentiable
  lu.assertEquals(peri.grad(g:sum(), w):tolist(), { 12, 18 })
  local same = peri.custom(function(_, x) return x end, function(_, g1) return g1 * 5 end)
  lu.assertEquals(peri.grad(same(w):sum(), w):tolist(), { 5, 5 })
end

function TestCustom.test_custom_errors()
  local w = peri.ones { 2 }:requires_grad_()
  local broken = peri.custom(function(_, x) return x * 2 end, function() error "my own words" end)
  local err = message(function() broken(w):sum():backward() end)
  lu.assertStrContains(err, "my own words")
  lu.assertStrContains(err, "stack traceback")
  local wrong = peri.custom(function(_, x) return x * 2 end, function() return 3 end)
  lu.assertStrContains(message(function() wrong(w):sum():backward() end), "must be a tensor or nil, got number")
  lu.assertNil(w.grad)
  lu.assertStrContains(message(peri.custom, 1, 2), "forward")
end

-- What forward keeps for the vjp stands in its context, or in lists and tables there, however deep.
function TestCustom.test_what_was_kept_and_then_changed_is_refused()
  local ways = {
    ["'y'"] = { function (c, y) c.y = y end, function (c) return c.y end },
    ["'1'"] = { function (c, y) c[1] = y end, function (c) return c[1] end },
    ["'saved.1'"] = { function (c, y) c.saved = { y } end, function (c) return c.saved[1] end },
    ["'a.b.c'"] = { function (c, y) c.a = { b = { c = y } }; c.a.up = c.a end, function (c) return c.a.b.c end },
  }
  for name, way in pairs(ways) do
    local exp = peri.custom(function (c, x)
      local y = x:exp()
      way[1](c, y)
      return y
    end, function (c, g) return g * way[2](c) end)
    local x = leaf { 1 }
    lu.assertEquals(peri.grad(exp(x), x):tolist(), x:exp():tolist(), name)
    local y = exp(x)
    peri.no_grad(y.mul_, y, 3)
    local err = message(y.backward, y)
    lu.assertStrContains(err, name)
    lu.assertStrContains(err, "changed in place")
    lu.assertNil(x.grad)
  end
end

function TestCustom.test_buffers_of_kept_objects_may_change()
  local object = setmetatable({ calls = peri.zeros { 1 } }, {})
  local double = peri.custom(function (c, x) c.self = object; return x * 2 end, function (_, g) return g * 2 end)
  local x = leaf { 1 }
  local y = double(x)
  object.calls:add_(1)
  y:backward()
  lu.assertEquals(x.grad:tolist(), { 2 })
end

TestCheckpoint = {}

function TestCheckpoint.test_checkpoint_gives_the_same_gradients()
  local w = peri.randn { 4, 4 }:requires_grad_()
  local x, u = peri.randn { 3, 4 }:requires_grad_(), peri.randn { 4 }:requires_grad_()
  local function segment(h, v)
    h = (h:matmul(w):tanh() * peri.rand_like(h)) + v
    return h, h * 2
  end
  local function loss(run)
    peri.seed(11)
    local a, b = run((x * 2), u)
    return (a * b):sum() + w:sum()
  end
  local plain = peri.grad(loss(segment), { w, x, u })
  local function check(h, v) return peri.checkpoint(segment, h, v) end
  local again = peri.grad(loss(check), { w, x, u })
  for k = 1, 3 do close(again[k], plain[k], 1e-6) end
  loss(check):backward() -- the other way
  close(w.grad, plain[1], 1e-6)
  close(x.grad, plain[2], 1e-6)
  lu.assertEquals(peri.rng_state().offset, 1)
end

function TestCheckpoint.test_checkpoints_nest_and_save_memory()
  local w = peri.randn { 64, 64 }:requires_grad_()
  local function deep(h)
    for _ = 1, 20 do h = (h:matmul(w) * 0.1):tanh() end
    return h
  end
  local function peak(run)
    collectgarbage()
    peri.reset_peak()
    local before = peri.memory().live
    for _ in peri.steps(1) do
      local h = peri.ones { 64, 64 }
      for _ = 1, 4 do h = run(h) end
      w:zero_grad()
      h:sum():backward()
    end
    return peri.memory().peak - before
  end
  local full = peak(deep)
  local plain = w.grad:clone()
  local less = peak(function(h) return peri.checkpoint(deep, h) end)
  close(w.grad, plain, 1e-3)
  lu.assertTrue(less < full / 2, ("%d of %d bytes"):format(less, full))
  peak(function(h) return peri.checkpoint(function(x) return peri.checkpoint(deep, x) end, h) end)
  close(w.grad, plain, 1e-3)
  w:zero_grad()
end

function TestCheckpoint.test_checkpoint_errors()
  local w = peri.ones { 2 }:requires_grad_()
  local outside = w * 2
  lu.assertStrContains(message(peri.checkpoint, function(x) return x * outside end, w), "pass it as an argument")
  local runs = 0
  local y = peri.checkpoint(function(x)
    runs = runs + 1
    if runs == 2 then error "second run" end
    return x * 2
  end, w)
  lu.assertStrContains(message(function() y:sum():backward() end), "second run")
  lu.assertNil(w.grad)
  lu.assertTrue(peri.grad_enabled())
  local g = peri.checkpoint(function(x) return x * x end, w)
  lu.assertStrContains(message(peri.grad, g:sum(), w, { create_graph = true }), "no second derivative")
end

-- A result that fn passes through, or finds outside, is a result like any other.
function TestCheckpoint.test_results_that_fn_did_not_make()
  local w, u = leaf { 2 }, leaf { 5 }
  for _, fn in ipairs {
    function (x) return x end, function (x) return x, x * 0 end, function () return w end,
    function (x) return x:reshape { 1 } end, function (x) return x:detach() * 0 + x end,
  } do
    for _, y in ipairs { { peri.checkpoint(fn, w) }, { peri.checkpoint(peri.checkpoint, fn, w) } } do
      local sum = w * 3 -- another path, so that a lost gradient would go unnoticed
      for _, part in ipairs(y) do sum = sum + part end
      lu.assertEquals(peri.grad(sum, w):tolist(), { 4 })
    end
  end
  local a, b = peri.checkpoint(function (x, v) return v, x end, w, u)
  local g = peri.grad(a * 2 + b * 3, { w, u })
  lu.assertEquals({ g[1]:item(), g[2]:item() }, { 3, 2 })
  local h = w * w
  lu.assertStrContains(message(peri.checkpoint, function () return h end, w), "pass it as an argument")
end

-- The second run has to find what the first one did.
function TestCheckpoint.test_arguments_are_not_written_into()
  local w = leaf { 2 }
  local function times(x, s) return x * (peri.is_tensor(s) and s or s.deep[1]) end
  for name, arg in pairs { ["2"] = function (t) return t end, ["2.deep.1"] = function (t) return { deep = { t } } end } do
    local s = peri.ones({ 1 }, "f64")
    local y = peri.checkpoint(times, w, arg(s))
    s:fill_(9)
    local err = message(y.backward, y)
    lu.assertStrContains(err, ("argument %s was changed in place"):format(name))
    lu.assertNil(w.grad)
    lu.assertTrue(peri.grad_enabled())
    err = message(peri.checkpoint, function (x, t)
      s:add_(1)
      return times(x, t)
    end, w, arg(s))
    lu.assertStrContains(err, ("fn writes into its argument %s"):format(name))
    y = peri.checkpoint(times, w, arg(s))
    y:backward()
    lu.assertEquals(w.grad:tolist(), s:tolist())
    w:zero_grad()
  end
end

function TestCheckpoint.test_another_shape_in_the_second_run_is_refused()
  local runs, w = 0, leaf { 2 }
  local y = peri.checkpoint(function (x)
    runs = runs + 1
    return runs == 1 and x * 2 or peri.cat({ x, x }, 1)
  end, w)
  lu.assertStrContains(message(y.backward, y), "had shape (1) first and has (2) now")
  lu.assertNil(w.grad)
end

TestPerSample = {}

function TestPerSample.test_per_sample_gradients()
  local table_ = peri.randn { 10, 4 }:requires_grad_()
  local w, b = peri.randn { 5, 4 }:requires_grad_(), peri.randn { 5 }:requires_grad_()
  local scale = peri.randn { 5 }:requires_grad_()
  local params = { table_, w, b, scale, peri.ones { 2 }:requires_grad_() }
  local ids, y = peri.randint(0, 10, { 6, 3 }), peri.randn { 6 }
  local function losses(i, t)
    local h = peri.linear(peri.embedding(table_, i), w, b, "tanh") * scale -- (B, T, 5)
    return (h:mean { 2, 3 } - t):square()
  end
  local all = peri.per_sample_grad(losses, params, ids, y)
  for i = 1, 6 do
    local one = peri.grad(losses(ids:narrow(1, i, 1), y:narrow(1, i, 1)):sum(), params)
    for k = 1, 4 do close(all[k]:at(i), one[k], 1e-6) end
  end
  lu.assertEquals(all[5]:tolist(), peri.zeros { 6, 2 }:tolist())
  local net = peri.nn.Linear(2, 1)
  local x = peri.randn { 3, 2 }
  local function of_net() return net(x):reshape { 3 } end
  local by_module, by_list = peri.per_sample_grad(of_net, net, x), peri.per_sample_grad(of_net, net:parameters(), x)
  for k, g in ipairs(by_list) do lu.assertEquals(by_module[k]:tolist(), g:tolist()) end
  lu.assertStrContains(message(peri.per_sample_grad, 3, net, x), "loss_fn is 3")
  lu.assertStrContains(message(peri.per_sample_grad, of_net, 3, x), "parameters are a number")
  lu.assertStrContains(message(peri.per_sample_grad, function() return 1 end, net, x), "gave a number")
  lu.assertStrContains(message(peri.per_sample_grad, function() return peri.linear(x, net.weight, { bais = 1 }) end, net, x),
    'did you mean "bias"')
  lu.assertStrContains(message(peri.per_sample_grad, function() return y:narrow(1, 1, 2) * scale:sum() end, params, ids),
    "2 losses for 6 samples")
  lu.assertEquals(#peri.linear(peri.ones { 1, 4 }, w):tolist(), 1) -- nothing stays intercepted
end

-- Whatever linear and embedding are used for, the gradients are those of each sample alone.
function TestPerSample.test_rows_that_belong_to_no_sample_are_no_sample()
  peri.seed(5)
  local function param(...) return peri.randn({ ... }, "f64"):requires_grad_() end
  local places, w, b, words = param(4, 3), param(5, 3), param(5), param(7, 3)
  local params, rows = { places, w, b, words }, peri.randn({ 4, 3 }, "f64")
  local function at(x) return x + places:embedding(peri.arange(4)) end
  local ways = {
    ["positions that all share"] = function (x) return at(x):linear(w, b):tanh() end,
    ["positions and words"] = function (_, ids) return at(words:embedding(ids)):linear(w, b, "gelu"):square() end,
    ["time first"] = function (x) return x:transpose(1, 2):contiguous():linear(w, b):tanh():transpose(1, 2) end,
    ["one row after the other"] = function (x) return x:reshape { -1, 3 }:linear(w, b):tanh():reshape { #x, 4, 5 } end,
    ["tied"] = function (_, ids) return words:embedding(ids):linear(words):tanh() end,
    ["weights made of weights"] = function (x) return x:matmul(rows:linear(w):narrow(2, 1, 3):narrow(1, 1, 3)):tanh() end,
    ["both kinds of use"] = function (x) return at(x):linear(w, b):tanh():matmul(w) end,
  }
  for name, fn in pairs(ways) do
    for _, n in ipairs { 1, 2, 4, 20 } do -- with as many samples as positions, and multiples
      local x, ids, runs = peri.randn({ n, 4, 3 }, "f64"), peri.randint(0, 7, { n, 4 }), 0
      local function losses(...)
        runs = runs + 1
        return fn(...):mean { 2, 3 }
      end
      local all = peri.per_sample_grad(losses, params, x, ids)
      lu.assertTrue(runs == 1 or not name:find "^one row" and name ~= "tied", name .. " is vectorised")
      for i = 1, n do
        local one = peri.grad(losses(x:narrow(1, i, 1), ids:narrow(1, i, 1)):sum(), params)
        for k, p in ipairs(params) do close(all[k]:at(i), one[k] or peri.zeros_like(p), 1e-12) end
      end
    end
  end
  for _ = 1, 4 do collectgarbage() end -- a context holds what the one before it made
end

os.exit(lu.LuaUnit.run())
