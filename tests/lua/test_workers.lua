-- Workers: functions and files on threads of their own; what goes along, errors, interrupts, seeds, many at once.
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"

local function result(...) return peri.worker(...):result() end

TestWorkers = {}

function TestWorkers.test_arguments_go_in_and_results_come_out()
  lu.assertEquals({ result(function(...) return select("#", ...), ... end, 1, nil, "x", { a = { 2 } }) },
    { 4, 1, nil, "x", { a = { 2 } } })
  lu.assertEquals(select("#", result(function() end)), 0)
  lu.assertEquals(select("#", result(function() return nil, nil end)), 2)
  local w = peri.worker(function() return { 1 } end)
  lu.assertEquals({ w:result(), w:result() }, { { 1 }, { 1 } }) -- as often as it is asked
end

function TestWorkers.test_tensors_are_shared_both_ways()
  local x = peri.arange(6)
  local y, pointer = result(function(t) return t * 2, t:data_ptr() == t:detach():data_ptr() and t end, x)
  lu.assertEquals(y:tolist(), { 0, 2, 4, 6, 8, 10 })
  lu.assertEquals(pointer:data_ptr(), x:data_ptr())
  lu.assertEquals(y.shared, "read-only") -- its context is closed, its memory is there
  lu.assertTrue(peri.memory().shared >= y:numel() * 8)
  lu.assertEquals((y + x):tolist(), { 0, 3, 6, 9, 12, 15 })
end

function TestWorkers.test_upvalues_are_copied_and_modules_required()
  local nn, floor, count, names = peri.nn, math.floor, 3, { "a", { "b" } }
  local text = require "perilune.text"
  local function helper(n) return n <= 0 and 0 or 1 + helper(n - 1) end -- luacheck: ignore 113
  local function fact(n) return n <= 1 and 1 or n * fact(n - 1) end
  local shared = 0
  local function up() shared = shared + 1 end
  local function read() return shared end
  lu.assertEquals({ result(function()
    count = count + 1
    up()
    up()
    assert(nn == require "perilune.nn" and peri == require "perilune" and text == peri.text and type(helper) == "function")
    return count, names[2][1], fact(5), floor(2.5), read()
  end) }, { 4, "b", 120, 2, 2 })
  lu.assertEquals({ count, shared }, { 3, 0 })
end

-- Globals of a worker are its own: the libraries and peri.
function TestWorkers.test_globals_are_the_workers_own()
  local env = setmetatable({}, { __index = _G })
  local fn = assert(load("local a = ...; here = a; return here, peri ~= nil, string ~= nil, lu == nil", "chunk", "t", env))
  _G.lu_global_of_test = 1
  lu.assertEquals({ result(fn, 7) }, { 7, true, true, true })
  lu.assertNil(env.here)
  lu.assertTrue(result(function() return lu_global_of_test == nil end)) -- luacheck: ignore 113
  _G.lu_global_of_test = nil
end

function TestWorkers.test_what_cannot_go_along_is_named()
  local w = peri.worker(function() end)
  local co = coroutine.create(print)
  local step = function() return co end
  local ones = peri.ones
  for _, case in ipairs {
    { "upvalue 'w' of the function is a userdata (perilune.worker)", function() return w end },
    { "upvalue 'co' of upvalue 'step' of the function is a coroutine", function() return step() end },
    { "upvalue 'ones' of the function is a C function of this state", function() return ones { 1 } end },
    { "argument 2.x[1] is a coroutine", function() end, 1, { x = { co } } },
    { "argument 1: ", function() end, peri.ones({ 1 }):requires_grad_() * 2 },
  } do
    lu.assertErrorMsgContains("worker: " .. case[1], peri.worker, table.unpack(case, 2))
  end
  for _, bad in ipairs { 3, true } do lu.assertErrorMsgContains("worker: run is", peri.worker, bad) end
  lu.assertErrorMsgContains("worker: run is missing", peri.worker)
  lu.assertErrorMsgContains('unknown option "thread"; did you mean "threads"', peri.worker, { run = step, thread = 1 })
  lu.assertErrorMsgContains("threads is 0, expected an integer in [1, 256]", peri.worker, { run = step, threads = 0 })
  lu.assertErrorMsgContains("nofile.lua", peri.worker, "nofile.lua")
  local failed = peri.worker(function() return { 1, { f = print } } end)
  lu.assertErrorMsgContains("result 1[2].f is a function", failed.result, failed)
end

function TestWorkers.test_files_run_as_functions_do()
  local folder = scratch.path()
  assert(peri.files.make_folder(folder))
  local path = folder .. "/actor.lua"
  local function write(text) assert(peri.files.write(path, text)) end
  write "local peri = require 'perilune'\nlocal a, b = ...\nreturn peri.ones{2}:sum():item() + a, b"
  lu.assertEquals({ result(path, 1, "b") }, { 3, "b" })
  write "error 'from a file'"
  local w = peri.worker(path)
  lu.assertErrorMsgContains("actor.lua:1: from a file", w.result, w)
  write "return +"
  lu.assertErrorMsgContains("actor.lua:1: ", peri.worker, path)
  write "\27Lua"
  lu.assertErrorMsgContains("binary", peri.worker, path)
  assert(peri.files.remove_tree(folder))
end

function TestWorkers.test_require_finds_what_it_finds_here()
  local old = package.path
  local folder = scratch.path()
  assert(peri.files.make_folder(folder))
  assert(peri.files.write(folder .. "/peritestmodule.lua", "return { answer = 42, name = ... }"))
  package.path = folder .. "/?.lua;" .. package.path
  local answer = 43
  package.preload.peritestpreload = function(name) return { name, answer } end
  local co = coroutine.create(print)
  package.preload.peritestbad = function() return co end
  lu.assertEquals({ result(function()
    local ok, message = pcall(require, "peritestbad")
    return require "peritestmodule".answer, require "peritestpreload", ok, tostring(message):match "upvalue 'co'"
  end) }, { 42, { "peritestpreload", 43 }, false, "upvalue 'co'" })
  package.path = old
  package.preload.peritestpreload, package.preload.peritestbad = nil, nil
  assert(peri.files.remove_tree(folder))
end

-- ---- errors ----

function TestWorkers.test_errors_arrive_with_the_workers_traceback()
  local w = peri.worker(function()
    local function inner() error "deep inside" end
    inner()
  end)
  local ok, message = pcall(w.result, w)
  lu.assertFalse(ok)
  lu.assertStrContains(message, "deep inside\nstack traceback:")
  lu.assertStrContains(message, "in local 'inner'")
  lu.assertEquals({ w:status(), w:join() }, { "failed", true })
  w = peri.worker(function() error { code = 5 } end)
  lu.assertErrorMsgContains("code = 5", w.result, w)
  w = peri.worker(function() return peri.ones { 2 } + peri.ones { 3 } end)
  lu.assertErrorMsgContains("add: ", w.result, w)
  w = peri.worker(function() error() end)
  lu.assertErrorMsgContains("failed", w.result, w)
end

function TestWorkers.test_a_failure_that_nobody_asks_for_is_a_warning()
  peri.warnings()
  warn "@off"
  peri.worker(function() error "nobody listens" end):join()
  local quiet = peri.worker(function()
    warn("@off")
    warn("careful", ", ", "please")
  end)
  quiet:join()
  collectgarbage()
  collectgarbage()
  warn "@on"
  local told = table.concat(peri.warnings(), "\n")
  lu.assertStrContains(told, "nobody listens")
  lu.assertStrContains(told, "nobody asked for its result")
  lu.assertStrContains(told, "careful, please")
end

-- ---- stopping ----

local function stopped(fn, ...)
  local w = peri.worker(fn, ...)
  lu.assertEquals({ w:join(0.05) }, { false, "timeout" })
  lu.assertEquals(w:status(), "running")
  lu.assertErrorMsgContains("has not ended", w.result, w, 0)
  local t0 = peri.time()
  lu.assertEquals({ w:interrupt():join(20) }, { true })
  lu.assertTrue(peri.time() - t0 < 10)
  lu.assertEquals(w:status(), "interrupted")
  lu.assertErrorMsgContains("was interrupted", w.result, w)
  return w
end

function TestWorkers.test_workers_that_hang_are_stopped()
  local full = peri.channel(1)
  full:send(1)
  stopped(function() while true do end end)
  stopped(function() while true do pcall(function() while true do end end) end end)
  stopped(function() while true do pcall(peri.ones, { 2 }) end end)
  stopped(function() coroutine.wrap(function() while true do end end)() end)
  stopped(function(c) c:receive() end, peri.channel())
  stopped(function(c) c:send(2) end, full)
  stopped(function(a, b) peri.receive { a, b } end, peri.channel(), peri.channel())
  stopped(function() peri.poll(math.huge) end)
  stopped(function() peri.worker(function() while true do end end):result() end)
  stopped(function() local x = peri.randn { 1 << 20 } while true do x = x:sort() end end)
end

function TestWorkers.test_what_is_to_be_closed_is_closed()
  local log = peri.channel()
  stopped(function(c)
    local _ <close> = setmetatable({}, { __close = function() c:try_send "closed" end })
    while true do end
  end, log)
  lu.assertEquals(log:receive(5), "closed")
end

function TestWorkers.test_a_worker_is_closed_with_its_block()
  local w
  do
    local inner <close> = peri.worker(function() while true do end end)
    w = inner
  end
  lu.assertEquals(w:status(), "interrupted")
  do
    local done <close> = peri.worker(function() return 1 end)
    lu.assertEquals(done:result(), 1)
    w = done
  end
  lu.assertEquals({ w:status(), w:result() }, { "done", 1 })
end

function TestWorkers.test_one_without_its_object_runs_on()
  local c = peri.channel(1)
  peri.worker(function(out) out:send(out:capacity()) end, c)
  collectgarbage()
  collectgarbage()
  lu.assertEquals(c:receive(20), 1)
end

function TestWorkers.test_limits_of_a_worker()
  local w = peri.worker { run = function() while true do end end, instructions = 100000 }
  lu.assertErrorMsgContains("the limit of 100000 instructions", w.result, w)
  w = peri.worker { run = function() local t = {} for i = 1, 1e9 do t[i] = ("x"):rep(1000) .. i end return t end, memory = 20 << 20 }
  lu.assertErrorMsgContains("not enough memory", w.result, w)
  w = peri.worker { run = function() return peri.ones { 1 << 20 } end, max_bytes = 1 << 20 }
  lu.assertErrorMsgContains("of the limit of 1048576", w.result, w)
  lu.assertEquals(result { run = function() return peri.threads() end }, 1)
  lu.assertEquals(result { run = function() return peri.threads() end, threads = 2 }, 2)
  lu.assertEquals(result(function() return peri.memory().limit end), peri.memory().limit)
  lu.assertEquals(result(function() return peri.info().simd end), peri.info().simd)
end

-- ---- seeds ----

function TestWorkers.test_seeds_come_from_the_states_and_the_number()
  local function draw() return peri.rand({ 1 }):item() end
  local function three()
    peri.seed(5)
    return { result(draw), result(draw), result(draw) }
  end
  local a, state = three(), peri.rng_state()
  lu.assertEquals(three(), a)
  lu.assertTrue(a[1] ~= a[2] and a[2] ~= a[3] and a[1] ~= a[3])
  lu.assertEquals(peri.rng_state(), state) -- nothing is drawn from the state's own
  peri.seed(6)
  lu.assertTrue(result(draw) ~= a[1])
  lu.assertEquals(result { run = draw, seed = 9 }, result { run = draw, seed = 9 })
  peri.seed(9)
  local here = draw()
  lu.assertEquals(result { run = draw, seed = 9 }, here)
  peri.seed(5)
  local w = peri.worker(draw)
  lu.assertEquals({ w:index(), peri.worker(draw):index() }, { 1, 2 })
end

-- ---- many ----

function TestWorkers.test_eight_workers_share_work_and_weights()
  local tasks, answers, w = peri.channel(4), peri.channel(4), peri.randn { 64, 64 }
  local all = {}
  for i = 1, 8 do
    all[i] = peri.worker(function(from, to, weight)
      local n = 0
      for _, x in from:each() do
        to:send { id = x.id, y = x.x:matmul(weight):tanh() }
        n = n + 1
      end
      return n
    end, tasks, answers, w)
  end
  local feeder = peri.worker(function(to, n)
    for i = 1, n do to:send { id = i, x = peri.full({ 2, 64 }, i) } end
    to:close()
  end, tasks, 200)
  local seen, sum = {}, 0
  for _ in peri.steps(200) do
    local a = answers:receive(60)
    seen[a.id] = (seen[a.id] or 0) + 1
    lu.assertEquals(a.y:bytes(), peri.full({ 2, 64 }, a.id):matmul(w):tanh():bytes())
  end
  for i = 1, 200 do lu.assertEquals(seen[i], 1) end
  for _, one in ipairs(all) do sum = sum + one:result() end
  lu.assertEquals(sum, 200)
  feeder:result()
  lu.assertEquals({ answers:try_receive() }, { nil, "timeout" })
end

-- Asynchronous training of one set of parameters without a lock (Hogwild): every worker writes as it likes.
function TestWorkers.test_racing_parameters_learn()
  if os.getenv "PERI_TEST_TSAN" then lu.skip "a race that was asked for" end
  local w = peri.zeros({ 4 }):share "racing"
  local target = peri.tensor({ 1, -2, 3, 0.5 }, "f32")
  local all = {}
  for i = 1, 4 do
    all[i] = peri.worker(function(p, y)
      p:requires_grad_()
      for _ in peri.steps(100) do
        local x = peri.randn { 8, 4 }
        local loss = (x:matmul(p) - x:matmul(y)):square():mean()
        loss:backward()
        peri.no_grad(function() p:sub_(p.grad * 0.05) end)
        p:zero_grad()
      end
    end, w, target)
  end
  for _, one in ipairs(all) do one:result() end
  lu.assertTrue((w - target):abs():max():item() < 0.05)
end

function TestWorkers.test_workers_start_workers()
  local function tree(depth)
    if depth == 0 then return 1 end
    local a, b = peri.worker(tree, depth - 1), peri.worker(tree, depth - 1)
    return a:result() + b:result()
  end
  lu.assertEquals(tree(3), 8)
end

-- A program that ends while workers run, or wait for it, ends.
function TestWorkers.test_a_state_that_closes_stops_its_workers()
  local program = require "child".program
  local path = scratch.path() .. ".lua"
  assert(peri.files.write(path, [[
    local peri = require "perilune"
    local c = peri.channel(1)
    peri.worker(function() while true do end end)
    peri.worker(function(ch) ch:receive() end, c)
    peri.worker(function() local _ <close> = peri.worker(function() while true do end end) while true do end end)
    started = peri.worker(function(ch) ch:send(peri.ones { 1000 }) ch:send(1) while true do pcall(peri.ones, { 2 }) end end, c)
    c:receive()
    print "main is over" ]]))
  local pipe = assert(io.popen(("timeout 60 '%s' run '%s' 2>&1"):format(program, path)))
  local text = pipe:read "a"
  local ok = pipe:close()
  os.remove(path)
  lu.assertEquals(text, "main is over\n")
  lu.assertTrue(ok)
end

os.exit(lu.LuaUnit.run())
