-- Scopes and modes belong to the coroutine that opened them, in whatever order coroutines are resumed,
-- abandoned, closed and killed.
local lu = require "luaunit"
local peri = require "perilune"

local wrap, yield = coroutine.wrap, coroutine.yield

local function recording()
  local w = peri.ones { 1 }:requires_grad_()
  local on = (w * 2).requires_grad
  lu.assertEquals(peri.grad_enabled(), on) -- what is said is what is done
  return on
end

local function settled()
  collectgarbage()
  collectgarbage()
  return peri.memory().live
end

TestModes = {}

function TestModes:tearDown() lu.assertTrue(recording()) end

function TestModes:test_a_mode_ends_at_a_yield_and_goes_on_behind_it()
  local step = wrap(function()
    yield(recording())
    peri.no_grad(function()
      yield(recording())
      yield(peri.enable_grad(recording))
      do
        local _ <close> = peri.enable_grad()
        yield(recording())
      end
      yield(recording())
    end)
    return recording()
  end)
  for i, want in ipairs { true, false, true, true, false, true } do
    lu.assertEquals(step(), want, i)
    lu.assertTrue(recording())
  end
end

function TestModes:test_coroutines_do_not_disturb_each_other()
  local function task(on)
    return wrap(function()
      local _ <close> = on and peri.enable_grad() or peri.no_grad()
      while true do yield(recording()) end
    end)
  end
  local tasks = {}
  for i = 1, 20 do tasks[i] = task(i % 3 == 0) end
  local rng = peri.rng(1)
  for _ = 1, 400 do
    local i = rng:int(1, #tasks)
    lu.assertEquals(tasks[i](), i % 3 == 0)
    if rng:int(1, 5) == 1 then lu.assertTrue(recording()) end
    if rng:int(1, 20) == 1 then tasks[i] = task(i % 3 == 0) end -- the old one is abandoned
    if rng:int(1, 40) == 1 then collectgarbage() end
  end
end

function TestModes:test_a_coroutine_that_set_nothing_is_in_the_mode_of_whoever_resumes_it()
  local seen = wrap(function() while true do yield(recording()) end end)
  lu.assertTrue(seen())
  lu.assertFalse(peri.no_grad(seen))
  lu.assertTrue(seen())
  local inner = wrap(function()
    local _ <close> = peri.no_grad()
    while true do yield(seen()) end
  end)
  lu.assertFalse(inner())
  lu.assertTrue(seen()) -- no call of the library lies between the next two
  lu.assertFalse(inner())
  lu.assertTrue(seen())
  lu.assertFalse(peri.enable_grad(inner))
  peri.no_grad(function()
    lu.assertFalse(seen())
    lu.assertTrue(wrap(function() return peri.enable_grad(function() return wrap(function() return seen() end)() end) end)())
    lu.assertFalse(seen())
  end)
end

function TestModes:test_ops_of_every_kind_obey()
  local w, rows = peri.ones { 2, 2 }:requires_grad_(), peri.tensor({ 0 }, "i64")
  local off = wrap(function()
    local _ <close> = peri.no_grad()
    while true do yield() end
  end)
  local on = wrap(function()
    local _ <close> = peri.enable_grad()
    while true do yield() end
  end)
  local ops = {
    function() return w:exp() end, -- the short ways of bindings/call.c and the long one
    function() return w + w end,
    function() return w * 2 end,
    function() return -w end,
    function() return w:sum(1) end,
    function() return w.T end,
    function() return w:at(1) end,
    function() return peri.linear(w, w) end,
    function() return peri.embedding(w, rows) end,
    function() return peri.custom(function(_, x) return x * 2 end, function(_, g) return g * 2 end)(w) end,
    function() return peri.checkpoint(function(x) return x * 2 end, w) end,
  }
  for i, op in ipairs(ops) do
    off()
    lu.assertTrue(op().requires_grad, i)
    on()
    lu.assertFalse(peri.no_grad(function()
      on()
      return op().requires_grad
    end), i)
  end
  for _, write in ipairs {
    function() w:add_(1) end,
    function() w:mul_(w) end,
    function() w:clamp_(0, 1) end,
    function() w:set(1, 1, 5) end,
    function() w:copy_(w) end,
  } do
    off()
    lu.assertFalse(pcall(write)) -- a leaf, while its ops are recorded
    on()
    peri.no_grad(function()
      on()
      write()
    end)
  end
end

function TestModes:test_whatever_ends_a_coroutine_ends_its_mode()
  local function open() return coroutine.create(function(how)
    local _ <close> = peri.no_grad()
    if how == "error" then error "out" end
    yield(recording())
  end) end
  local co = open()
  lu.assertEquals({ coroutine.resume(co) }, { true, false })
  lu.assertTrue(recording())
  lu.assertTrue(coroutine.close(co))
  lu.assertTrue(recording())
  co = open()
  lu.assertFalse(coroutine.resume(co, "error"))
  lu.assertTrue(recording())
  lu.assertFalse(coroutine.close(co))
  lu.assertTrue(recording())
  lu.assertFalse(pcall(wrap(function() peri.no_grad(error, "out") end)))
  lu.assertTrue(recording())
  for _ = 1, 50 do -- addresses of collected coroutines come again
    coroutine.resume(open())
    co = nil -- luacheck: ignore 311
    collectgarbage()
    lu.assertTrue(wrap(recording)())
  end
end

function TestModes:test_guards_close_in_any_order_and_from_anywhere()
  local a, b = peri.no_grad(), peri.enable_grad()
  local guard
  local co = wrap(function()
    guard = peri.no_grad()
    while true do yield(recording()) end
  end)
  lu.assertFalse(co())
  a:close()
  lu.assertTrue(recording())
  lu.assertFalse(co())
  guard:close()
  guard:close()
  lu.assertTrue(co())
  b:close()
  lu.assertTrue(recording())
end

function TestModes:test_a_guard_that_nobody_closes_lasts_like_its_coroutine()
  local co = wrap(function()
    peri.no_grad() -- luacheck: ignore
    collectgarbage()
    collectgarbage()
    yield(recording())
    return recording()
  end)
  lu.assertFalse(co())
  lu.assertTrue(recording())
  collectgarbage()
  lu.assertFalse(co())
end

function TestModes:test_backward_passes_and_coroutines()
  local w = peri.tensor({ 3. }):requires_grad_()
  local other = wrap(function()
    local _ <close> = peri.enable_grad()
    while true do yield(recording()) end
  end)
  other()
  local seen = {}
  local double = peri.custom(function(_, x)
    other()
    seen.forward = peri.grad_enabled()
    return x * 2
  end, function(_, g)
    other()
    seen.vjp = peri.grad_enabled()
    seen.generator = wrap(function() return (g * w).requires_grad end)()
    seen.own = wrap(function() return peri.enable_grad(function() return (g * w).requires_grad end) end)()
    seen.again = peri.grad_enabled()
    return g * 2
  end)
  double(w):backward()
  lu.assertEquals(w.grad:item(), 2)
  lu.assertEquals(seen, { forward = false, vjp = false, generator = false, own = true, again = false })
  lu.assertTrue(recording())
  local g = wrap(function() return (peri.grad(double(w):square(), w, { create_graph = true })) end)()
  lu.assertTrue(seen.vjp)
  lu.assertTrue(seen.generator)
  lu.assertEquals(g:item(), 24)
  w:zero_grad()
  local y = peri.checkpoint(function(x)
    other()
    local z = wrap(function() return x * x end)() -- a coroutine within
    other()
    return z * x
  end, w)
  wrap(function()
    local _ <close> = peri.no_grad()
    other()
    y:backward() -- the second run records in spite of it
  end)()
  lu.assertEquals(w.grad:item(), 27)
  lu.assertTrue(recording())
end

function TestModes:test_anomaly_mode_is_the_coroutines_own()
  local bad = peri.tensor { -1. }
  local function fails() return not pcall(bad.log, bad) end
  local co = wrap(function()
    peri.anomaly(true)
    while true do yield(fails()) end
  end)
  lu.assertTrue(co())
  lu.assertFalse(fails())
  lu.assertTrue(co())
  lu.assertFalse(wrap(fails)())
  peri.anomaly(true)
  local within, here = wrap(fails)(), fails() -- set by the main program it holds in every coroutine
  local off = wrap(function()
    peri.anomaly(false)
    return fails()
  end)()
  local after = fails()
  peri.anomaly(false)
  lu.assertEquals({ within, here, off, after }, { true, true, false, true })
  lu.assertTrue(co())
  lu.assertFalse(fails())
end

function TestModes:test_per_sample_gradients_take_the_linear_of_their_own_coroutine()
  local net, x = peri.nn.Linear(2, 1), peri.ones { 3, 2 }
  local seen
  local co = wrap(function()
    return peri.per_sample_grad(function(batch)
      local y = net(batch)
      yield()
      return y:square():sum(2)
    end, net, x)
  end)
  co()
  local y = peri.linear(x, net.weight):sum()
  seen = peri.grad(y, net.weight):tolist()
  local grads = co()
  lu.assertEquals(seen, { { 3, 3 } })
  local want = peri.per_sample_grad(function(batch) return net(batch):square():sum(2) end, net, x)
  for i = 1, #want do lu.assertEquals(grads[i]:tolist(), want[i]:tolist()) end
end

TestScopes = {}

function TestScopes:test_a_loader_within_scopes_keeps_its_tensors()
  local before = settled()
  local function loader(n)
    local ahead
    for i = 1, n + 1 do
      local batch = peri.full({ 4 }, i) -- made one turn ahead, within a scope of the loop
      if ahead then yield(ahead) end
      ahead = batch
    end
  end
  local sum = 0
  local batches = wrap(function() loader(5) end)
  for step in peri.steps(5) do
    local batch = batches()
    lu.assertEquals(batch:sum():item(), 4 * step)
    sum = sum + batch:sum():item()
  end
  lu.assertEquals(sum, 60)
  batches = nil -- luacheck: ignore 311
  lu.assertEquals(settled(), before)
end

function TestScopes:test_a_scope_frees_what_its_coroutine_made_and_nothing_else()
  local before = settled()
  local ours, theirs
  local co = wrap(function()
    for _ in peri.steps(2) do
      theirs = peri.ones { 10 }
      yield()
    end
  end)
  local scope = peri.scope()
  co()
  ours = peri.ones { 10 }
  local first = theirs
  co() -- ends the coroutine's first scope
  lu.assertEquals(ours:sum():item(), 10)
  lu.assertFalse(pcall(first.sum, first))
  scope:close()
  lu.assertFalse(pcall(ours.sum, ours))
  lu.assertEquals(theirs:sum():item(), 10)
  co()
  lu.assertFalse(pcall(theirs.sum, theirs))
  lu.assertEquals(settled(), before)
end

function TestScopes:test_coroutines_that_open_scopes_in_any_order()
  local before = settled()
  local function task()
    return coroutine.create(function()
      for _ in peri.steps() do
        local x = peri.ones { 10 }
        do
          local inner <close> = peri.scope()
          local y = inner:keep(x + 1)
          yield()
          lu.assertEquals(y:sum():item(), 20)
        end
        yield()
        lu.assertEquals(x:sum():item(), 10)
      end
    end)
  end
  local rng, tasks = peri.rng(3), {}
  for i = 1, 12 do tasks[i] = task() end
  for _ in peri.steps(300) do
    local mine = peri.full({ 3 }, 2)
    local i = rng:int(1, #tasks)
    assert(coroutine.resume(tasks[i]))
    lu.assertEquals(mine:sum():item(), 6)
    local end_it = rng:int(1, 30)
    if end_it == 1 then assert(coroutine.close(tasks[i])) end
    if end_it <= 2 then tasks[i] = task() end
    if end_it == 3 then collectgarbage() end
  end
  for i = 1, 6 do assert(coroutine.close(tasks[i])) end
  tasks = nil -- luacheck: ignore 311
  lu.assertEquals(settled(), before)
end

function TestScopes:test_a_scope_outlives_its_coroutine_and_closes_from_anywhere()
  local before = settled()
  local scope, x, kept
  local co = coroutine.create(function()
    local outer = peri.scope()
    scope = peri.scope()
    x, kept = peri.ones { 10 }, scope:keep(peri.ones { 10 }) -- kept is outer's now
    yield(outer)
  end)
  coroutine.resume(co)
  co = nil -- luacheck: ignore 311
  collectgarbage()
  collectgarbage()
  lu.assertEquals(x:sum():item() + kept:sum():item(), 20)
  scope:close()
  lu.assertFalse(pcall(x.sum, x))
  lu.assertEquals(kept:sum():item(), 10) -- its scope went with the coroutine and left it to the collector
  kept = nil -- luacheck: ignore 311
  scope = nil -- luacheck: ignore 311
  lu.assertEquals(settled(), before)
end

function TestScopes:test_steps_that_another_coroutine_advances()
  local before = settled()
  local next_step, state, control = peri.steps(3)
  control = next_step(state, control)
  local x = peri.ones { 10 }
  wrap(function()
    next_step(state, control) -- ends the turn, whoever began it, and opens the next one here
    yield(peri.ones { 10 })
  end)()
  lu.assertFalse(pcall(x.sum, x))
  local mine = peri.ones { 10 } -- in no scope
  lu.assertEquals(next_step(state, control), 3)
  lu.assertNil(next_step(state, control))
  lu.assertEquals(mine:sum():item(), 10)
  mine:release()
  lu.assertEquals(settled(), before)
end

function TestScopes:test_finalizers_that_compute_disturb_nobody()
  local w = peri.ones { 1 }:requires_grad_()
  local off = wrap(function()
    local _ <close> = peri.no_grad()
    local _ <close> = peri.scope()
    while true do yield(peri.ones { 2 } + 1) end
  end)
  local ran = 0
  for i = 1, 2000 do
    setmetatable({}, { __gc = function()
      off()
      ran = ran + 1
    end })
    local _ <close> = peri.scope()
    local y = w * i
    lu.assertTrue(y.requires_grad)
    lu.assertEquals(y:item(), i)
  end
  collectgarbage()
  lu.assertTrue(ran > 0)
end

TestStock = {}

-- Lua's own interpreter, whose coroutine library is not ours, runs the same tests.
function TestStock:test_the_stock_interpreter()
  if arg[-1] == "lua5.4" then return end -- this is it
  local file = io.open "build/module/perilune/core.so"
  if not file then lu.skip "no build/module/perilune/core.so" end
  file:close()
  local run = io.popen("LUA_PATH='lua/?.lua;lua/?/init.lua;tests/lua/?.lua;;' LUA_CPATH='build/module/?.so;;' PERI_THREADS=1 "
    .. "lua5.4 tests/lua/test_coroutines.lua 2>&1; echo status $?")
  local out = run:read "a"
  run:close()
  if out:find "not found" then lu.skip "no lua5.4" end
  lu.assertStrContains(out, "status 0", false, out)
end

if arg and arg[0] and arg[0]:find "test_coroutines" then os.exit(lu.LuaUnit.run()) end
