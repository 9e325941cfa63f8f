-- The sandbox: what code gets and gives, limits, verdicts that it cannot forge, and code that means harm.
local lu = require "luaunit"
local peri = require "perilune"
local child = require "child"
local sandbox = peri.sandbox

TestSandbox = {}

local function run(source, opts)
  local result, message = sandbox.run(source, opts)
  return result or error(message)
end

local filtered = run("return 1").protected

-- ---- what it gets and gives ----

function TestSandbox.test_a_value_comes_back()
  for source, want in pairs { ["return 1 + 1"] = 2, ["return 'a\\0b'"] = "a\0b", ["return 0.5"] = 0.5, ["return true"] = true,
    ["return { 1, { x = 2.5 }, [7] = 'y' }"] = { 1, { x = 2.5 }, [7] = "y" }, ["return math.mininteger"] = math.mininteger,
    ["return ('x'):rep(1000)"] = ("x"):rep(1000), ["return 1, 2"] = 1, ["return setmetatable({ 1 }, { __index = error })"] = { 1 } } do
    local r = run(source)
    lu.assertEquals({ r.status, r.ok, r.value }, { "ok", true, want })
    lu.assertEquals(math.type(r.value), math.type(want))
  end
  for source, why in pairs { ["return print"] = "a function", ["local t = {} t.t = t return t"] = "too deep",
    ["return coroutine.create(print)"] = "a coroutine", ["return { [{}] = 1 }"] = "a key that is a table",
    ["return ('x'):rep(1 << 21)"] = "too large" } do
    local r = run(source)
    lu.assertEquals({ r.status, r.value }, { "ok" })
    lu.assertStrContains(r.note, why)
  end
  lu.assertEquals(run("return ('x'):rep(1 << 21)", { value = 1 << 22 }).value, ("x"):rep(1 << 21))
  lu.assertNil(run("local x = 1").value)
end

function TestSandbox.test_what_is_printed_comes_back()
  local r = run "print('a', 1, nil, true) print() print(setmetatable({}, { __tostring = function () return 'T' end })) return 1"
  lu.assertEquals(r.stdout, "a\t1\tnil\ttrue\n\nT\n")
  lu.assertEquals(run("print 'before' while true do end", { timeout = 0.05 }).stdout, "before\n")
end

function TestSandbox.test_errors_come_back_as_text()
  for source, want in pairs { ["error 'boo'"] = "code:1: boo", ["\nlocal x = nil + 1"] = "code:2: attempt to perform arithmetic",
    ["x = = 1"] = "code:1: unexpected symbol", ["error({})"] = "error object is a table value", ["error()"] = "error object is a nil",
    ["error(setmetatable({}, { __tostring = function () return 'pass' end }))"] = "error object is a table",
    ["coroutine.yield(1)"] = "outside a coroutine", ["return (nil)()"] = "attempt to call a nil" } do
    local r = run(source)
    lu.assertEquals({ r.status, r.ok }, { "error", false })
    lu.assertStrContains(r.err, want)
  end
end

function TestSandbox.test_the_library_is_what_computes()
  local r = run [[
    local found = {}
    for name in pairs(_G) do found[#found + 1] = name end
    table.sort(found)
    return table.concat(found, " ")]]
  lu.assertEquals(r.value, "_G _VERSION assert collectgarbage coroutine error getmetatable ipairs load math next os pairs pcall print "
    .. "rawequal rawget rawlen rawset select setmetatable string table tonumber tostring type utf8 xpcall")
  lu.assertEquals(run("local t = {} for k in pairs(os) do t[#t + 1] = k end table.sort(t) return table.concat(t, ' ')").value,
    "clock date difftime time")
  lu.assertEquals(run("return string.dump").value, nil)
  lu.assertEquals(run("return os.date('%Y', 0), os.time { year = 2000, month = 1, day = 1 }").value, "1970")
  lu.assertEquals(run("return getmetatable('')").value, false)
  lu.assertNil(run("return load('\\27LuaT', 'x', 'b')").value)
  lu.assertEquals(run("return load('return 1 + 1', 'x', 'b')()").value, 2)
  lu.assertEquals(run("x = 5 return load('return x')()").value, 5)
  lu.assertEquals(run("return load('return x', 'n', 't', { x = 6 })()").value, 6)
  lu.assertEquals(run("return math.random(1000)").value, run("return math.random(1000)").value)
  lu.assertNotEquals(run("return math.random(1 << 40)").value, run("return math.random(1 << 40)", { seed = 1 }).value)
  lu.assertEquals(run("function string.twice(s) return s .. s end return ('a'):twice()").value, "aa")
end

function TestSandbox.test_tests_say_what_passed()
  local r = run("function add(a, b) return a + b end", { tests = { "assert(add(1, 2) == 3)", "assert(add(1, 2) == 4, 'four')",
    { call = "add", args = { 1, 2 }, want = 3 }, { call = "add", args = { 1, 2 }, want = 4 }, { call = "sub", want = 1 }, "x = = 1" } })
  lu.assertEquals({ r.status, r.ok, r.passed, #r.tests }, { "ok", false, 2, 6 })
  lu.assertStrContains(r.tests[2].err, "four")
  lu.assertEquals({ r.tests[4].err, r.tests[5].err }, { "add gave 3, expected 4", "there is no function 'sub'" })
  lu.assertStrContains(r.tests[6].err, "test 6:1: unexpected symbol")
  local module = run("local M = {} function M.sort(t) table.sort(t) return t end return M",
    { tests = { { call = "sort", args = { { 3, 1, 2 } }, want = { 1, 2, 3 } } } })
  lu.assertTrue(module.ok)
  local plain = run("function f(...) return select('#', ...) end function g() return { a = { 0.1 + 0.2, x = 'y' } } end", { tests = {
    { call = "f", args = { n = 3 }, want = 3 }, { call = "f", want = 0 }, { call = "g", want = { a = { 0.3, x = "y" } } },
    { call = "g", want = { a = { 0.3 } } }, { call = "g", want = { a = { 0.3, x = "y", z = 1 } } }, { call = "f", want = 0.0 } } })
  lu.assertEquals(plain.passed, 4)
end

function TestSandbox.test_a_test_that_does_not_end_leaves_the_verdicts_before_it()
  local r = run("function f(x) while x do end return 1 end", { timeout = 0.1,
    tests = { { call = "f", want = 1 }, { call = "f", args = { true }, want = 1 }, { call = "f", want = 1 } } })
  lu.assertEquals({ r.status, r.passed, r.tests[1].ok, r.tests[2].ok, r.tests[3].ok }, { "timeout", 1, true, false, false })
end

-- ---- many, options, what is missing ----

function TestSandbox.test_many_keep_their_order()
  local list = {}
  for i = 1, 40 do list[i] = i % 5 == 0 and { source = "while true do end", timeout = 0.05 } or ("return %d"):format(i) end
  local results = assert(sandbox.run_many(list, { workers = 4 }))
  for i, r in ipairs(results) do
    if i % 5 == 0 then lu.assertEquals(r.status, "timeout") else lu.assertEquals(r.value, i) end
  end
  lu.assertEquals(sandbox.run_many {}, {})
end

function TestSandbox.test_with_few_descriptors_fewer_run_at_a_time()
  local status, text = child.shell("ulimit -n 22; " .. child.program .. [[ -e '
    local list = {}
    for i = 1, 9 do list[i] = ("return %d"):format(i) end
    for i, r in ipairs(assert(peri.sandbox.run_many(list, { workers = 9 }))) do assert(r.value == i, r.err) end']])
  lu.assertEquals({ status, text }, { 0, "" })
end

function TestSandbox.test_what_cannot_be_asked_for_is_named()
  local function refused(want, f, ...) lu.assertErrorMsgContains(want, f, ...) end
  refused("sandbox.run: source is 1, expected string", sandbox.run, 1)
  refused('unknown option "timeut"; did you mean "timeout"?', sandbox.run, "", { timeut = 1 })
  refused("timeout is 0", sandbox.run, "", { timeout = 0 })
  refused("memory is 1, expected an integer in", sandbox.run, "", { memory = 1 })
  refused("test 1 is no Lua text", sandbox.run, "", { tests = { 1 } })
  refused('test 2 has an unknown field "wnat"; did you mean "want"?', sandbox.run, "", { tests = { "", { call = "f", wnat = 1 } } })
  refused("test 1 holds a function, expected plain values", sandbox.run, "", { tests = { { call = "f", want = print } } })
  local deep = {}
  for _ = 1, 50 do deep = { deep } end
  refused("test 1 holds a table that is too deep", sandbox.run, "", { tests = { { call = "f", args = { deep } } } })
  refused("item 2 has no source", sandbox.run_many, { "return 1", {} })
  refused("item 1: unknown option", function () sandbox.run_many({ { source = "", x = 1 } }) end)
end

function TestSandbox.test_a_missing_program_is_named()
  local result, message = sandbox.run("return 1", { program = "/nonexistent/perilune-sandbox" })
  lu.assertNil(result)
  lu.assertStrContains(message, "/nonexistent/perilune-sandbox: cannot be started: No such file or directory")
  lu.assertEquals(select("#", sandbox.program()), 1)
  local other = run("return 1", { program = "/bin/true" }) -- a program that says nothing runs nothing
  lu.assertEquals({ other.status, other.ok }, { "unprotected", false })
  lu.assertStrContains(other.err, "the helper program said nothing")
end

-- A helper that lies about itself breaks nothing here: any bytes may come back.
function TestSandbox.test_any_reply_is_borne()
  local rng = peri.rng(3)
  local path = os.tmpname()
  for i = 1, 60 do
    local bytes = {}
    for k = 1, rng:int(0, 60) do bytes[k] = ("\\%03o"):format(rng:int(0, 255)) end
    local kind = ("LVEMTPX"):sub(1 + i % 7, 1 + i % 7)
    local head = i % 2 == 0 and "L\\002\\000\\000\\000\\000\\000\\000\\000\\001x" .. kind or kind
    local size = i % 3 == 0 and "\\005\\000\\000\\000\\000\\000\\000\\000" or i % 3 == 1 and "\\377\\377\\377\\377\\377\\377\\377\\377" or ""
    assert(peri.files.write(path, ("#!/bin/sh\nprintf '%s%s%s' >&3\n"):format(head, size, table.concat(bytes))))
    os.execute("chmod +x " .. path)
    local r = run("return 1", { program = path, tests = { "" } })
    lu.assertFalse(r.ok)
  end
  os.remove(path)
end

-- ---- code that means harm ----

local stopped = { timeout = true, memory = true, error = true, syscall = true, killed = true, output = true }

-- Each is tried as an answer to "write add": name, code. None may take longer than its limits, and none passes.
local hostile = {
  { "loop", "while true do end" }, { "goto loop", "::a:: goto a" }, { "for loop", "for i = 1, math.huge do end" },
  { "repeat loop", "repeat until false" }, { "tail calls", "local function f() return f() end f()" },
  { "a loop in C over nothing", "string.rep('', math.maxinteger)" }, { "table.move", "table.move({}, 1, math.maxinteger - 1, 2)" },
  { "table.insert with a length", "table.insert(setmetatable({}, { __len = function () return math.maxinteger - 1 end }), 1, 1)" },
  { "table.concat", "table.concat(setmetatable({}, { __index = function () return '' end }), '', 1, math.maxinteger)" },
  { "table.unpack", "table.unpack({}, 1, 1e9)" }, { "unpack wraps", "return table.unpack({}, math.mininteger, math.maxinteger)" },
  { "table.sort with an order that lies", "local t = {} for i = 1, 1e6 do t[i] = i end table.sort(t, function () return true end)" },
  { "pattern blow-up", "string.find(('a'):rep(30), ('a?'):rep(30) .. ('a'):rep(30)) string.find(('a'):rep(4000), ('.-'):rep(40) .. 'b')" },
  { "pattern of many", "(('x'):rep(200000)):find('.-.-.-b')" }, { "pattern recursion", "(('('):rep(300000)):match(('%b()'):rep(100)) "
    .. "(('x'):rep(1e6)):match(('(.-)'):rep(30) .. 'y')" },
  { "gsub that grows", "local s = 'x' while true do s = s:gsub('x', 'xx') end" },
  { "pcall that catches", "while true do pcall(function () while true do end end) end" },
  { "pcall that catches memory", "while true do pcall(function () local s = 'x' while true do s = s .. s end end) end" },
  { "xpcall whose handler loops", "xpcall(error, function () while true do end end)" },
  { "xpcall whose handler fails", "xpcall(error, function () error() end) while true do end" },
  { "coroutines without end", "local function f() coroutine.wrap(f)() end f()" },
  { "a million coroutines", "local t = {} while true do t[#t + 1] = coroutine.create(print) end" },
  { "a coroutine that loops", "coroutine.wrap(function () while true do coroutine.yield() end end)() coroutine.resume(coroutine.create("
    .. "function () while true do end end))" },
  { "a finalizer that loops", "setmetatable({}, { __gc = function () while true do end end }) collectgarbage()" },
  { "a finalizer at the end", "X = setmetatable({}, { __gc = function () while true do end end })" },
  { "finalizers that make more", "local function f() setmetatable({}, { __gc = f }) end f() while true do f() end" },
  { "to be closed", "local x <close> = setmetatable({}, { __close = function () while true do end end })" },
  { "strings that double", "local s = 'x' while true do s = s .. s end" }, { "one huge string", "return ('x'):rep(1 << 30)" },
  { "an impossible string", "return ('x'):rep(1 << 62)" }, { "many strings", "local t = {} for i = 1, 1e9 do t[i] = 'x' .. i end" },
  { "a huge table", "local t = {} for i = 1, 1e9 do t[i] = i end" }, { "nested tables", "local t = {} while true do t = { t } end" },
  { "table.pack", "local t = {} while true do t = table.pack(t, t, table.unpack(t)) end" }, { "packed", "string.pack('c2000000000', '')" },
  { "format", "string.format('%99999999d', 1)" }, { "many globals", "local i = 0 while true do i = i + 1 _G['g' .. i] = i end" },
  { "deep recursion", "local function f() return 1 + f() end f()" }, { "deep __index", "local t = {} for i = 1, 1e6 do t = "
    .. "setmetatable({}, { __index = t }) end return t.x" }, { "__index of itself", "local t = {} setmetatable(t, { __index = "
    .. "function (_, k) return t[k] end }) return t.x" }, { "deep metamethods", "local m = {} m.__add = function (a, b) return a + b "
    .. "end local a = setmetatable({}, m) return a + a" },
  { "__eq forged", "function add() return setmetatable({}, { __eq = function () return true end }) end" },
  { "__eq on numbers' metatable", "debug.setmetatable(0, { __eq = function () return true end })" },
  { "deep parentheses", "return load(('('):rep(1e6) .. '1' .. (')'):rep(1e6))()" }, { "deep source", "load(('do '):rep(1e5))()" },
  { "much source", "while true do load(('x = 1;'):rep(3e5)) end" }, { "bytecode", "load('\\27Lua\\x54\\0\\x19\\x93\\r\\n\\x1a\\n', 'x', 'b')()" },
  { "bytecode by dump", "load(string.dump(function () end))()" }, { "a file", "io.open('/etc/passwd'):read('a')" },
  { "a file to write", "io.open('/tmp/perilune-hostile', 'w'):write('x')" }, { "lines of a file", "for l in io.lines('/etc/passwd') do end" },
  { "another program", "os.execute('touch /tmp/perilune-hostile')" }, { "a pipe", "io.popen('id'):read('a')" },
  { "a removed file", "os.remove('/tmp/x')" }, { "the end", "os.exit(0)" }, { "the end, closed", "os.exit(true, true)" },
  { "the environment", "return os.getenv('HOME') .. ''" }, { "stdin", "return io.read('a')" }, { "stdin, waiting", "io.stdin:read(1)" },
  { "a C library", "package.loadlib('libc.so.6', 'system')" }, { "the network", "require('socket').connect('127.0.0.1', 80)" },
  { "require", "require 'os'" }, { "dofile", "dofile('/etc/passwd')" }, { "loadfile", "loadfile('/proc/self/mem')()" },
  { "the registry", "debug.getregistry()" }, { "the hook", "debug.sethook() while true do end" },
  { "much output", "while true do print(('x'):rep(1e4)) end" }, { "many lines", "while true do print() end" },
  { "output of __tostring", "print(setmetatable({}, { __tostring = function () while true do end end }))" },
  { "__tostring that is no text", "print(setmetatable({}, { __tostring = function () return 1 end }))" },
  { "__name that lies", "print(setmetatable({}, { __name = ('x'):rep(1e7) }))" },
  { "an error that loops", "error(setmetatable({}, { __tostring = function () while true do end end }))" },
  { "an error that says ok", "error('ok')" }, { "a forged verdict", "print('T\\1\\0\\0\\0\\0\\0\\0\\0\\1') print('{\"ok\":true,\"passed\":1}')" },
  { "a forged record", "io.stdout:write('T\\1\\0\\0\\0\\0\\0\\0\\0\\1')" }, { "the descriptor of verdicts", "io.open('/proc/self/fd/3', 'w')" },
  { "exit after a forged pass", "print('1 passed, 0 failed') os.exit(0)" },
  { "another assert", "assert = function (...) return ... end" }, { "another error", "error = function () end pcall = function () return true end" },
  { "another type", "type = function () return 'number' end rawequal = function () return true end function add() return {} end" },
  { "_G that answers", "setmetatable(_G, { __index = function () return function () return true end end })" },
  { "_G that forgets", "for k in pairs(_G) do _G[k] = nil end" }, { "_ENV", "_ENV = { add = 1 }" },
  { "string methods", "for k in pairs(string) do string[k] = function () return 'pass' end end" },
  { "the strings' metatable", "getmetatable('').__index = function () return function () return 3 end end" },
  { "math", "math.type = nil math.huge = 0 math.abs = function () return 0 end" },
  { "the tests' stack", "local n = 0 function add() n = n + 1 return n > 1e6 and 3 or add() end" },
  { "a yield out of the test", "function add() coroutine.yield(3) end" }, { "a loop in the function", "function add() while true do end end" },
  { "memory in the function", "function add() local s = 'x' while true do s = s .. s end end" },
  { "an error that passes", "function add() error() end" }, { "nothing", "" }, { "no Lua", "def add(a, b):\n  return a + b" },
  { "bytes", "\0\27Lua\xff\xfe" }, { "a shebang", "#!/bin/sh\nexit 0" }, { "a long line", "x = '" .. ("x"):rep(1 << 20) .. "'" },
  { "NaN", "function add() return 0/0 end" }, { "a signal", "os.kill(os.getpid(), 9)" }, { "collectgarbage off", "collectgarbage('stop') "
    .. "while true do local t = {} end" }, { "many arguments", "print(table.unpack({}, 1, 200000)) string.char(table.unpack({}, 1, 1e6))" },
  { "utf8", "utf8.char(table.unpack(setmetatable({}, { __len = function () return 1e8 end })))" },
}

local tests = { { call = "add", args = { 1, 2 }, want = 3 }, "assert(add(2, 3) == 5 and type(add(2, 3)) == 'number')",
  "local s = ('add'):upper() assert(s == 'ADD') assert(add(4, 4) == 8)" }

function TestSandbox.test_code_that_means_harm_is_stopped_within_its_limits()
  lu.assertTrue(#hostile >= 60)
  local list = {}
  for i, one in ipairs(hostile) do list[i] = { source = one[2], tests = tests } end
  list[#list + 1] = { source = "function add(a, b) return a + b end", tests = tests }
  local results = assert(sandbox.run_many(list, { timeout = 0.25, wall = 20, memory = 32 << 20, output = 1 << 16 }))
  for i, one in ipairs(hostile) do
    local r = results[i]
    lu.assertFalse(r.ok, one[1])
    lu.assertTrue(r.passed < #tests, one[1])
    lu.assertTrue(r.status == "ok" or stopped[r.status], one[1] .. ": " .. r.status)
    lu.assertTrue(r.cpu < 1, ("%s: %g s"):format(one[1], r.cpu))
    lu.assertTrue(#r.stdout <= 1 << 16, one[1])
    lu.assertTrue(r.memory < 160 << 20, one[1] .. ": " .. r.memory)
  end
  local good = results[#results]
  lu.assertEquals({ good.ok, good.passed }, { true, 3 })
  lu.assertFalse(peri.files.exists "/tmp/perilune-hostile")
end

-- The same as completions of a model: scored 0, one by one and all at once, and the run goes on.
function TestSandbox.test_code_that_means_harm_is_scored_0()
  local rows, texts, tokens = {}, {}, {}
  for i, one in ipairs(hostile) do
    rows[i], texts[i], tokens[i] = { prompt = "write add", tests = tests }, "Here:\n```lua\n" .. one[2] .. "\n```\n", { 1 }
  end
  local n = #rows + 1
  rows[n], texts[n], tokens[n] = rows[1], "```lua\nfunction add(a, b) return a + b end\n```", { 1 }
  local code = peri.reward.code { timeout = 0.1, memory = 32 << 20 }
  local scored = peri.rl.score(rows, texts, tokens, { { "code", code }, { "length", peri.reward.length() , 0 } })
  for i = 1, n - 1 do lu.assertEquals(scored.total[i], 0, hostile[i][1]) end
  lu.assertEquals(scored.total[n], 1)
  lu.assertEquals(code.results[1].status, "timeout")
end

function TestSandbox.test_the_last_block_is_the_code()
  local function value(text, opts, of)
    return peri.reward.code(opts)({ { tests = of or { call = "f", want = 1 } } }, { text })[1]
  end
  local good, bad = "```lua\nfunction f() return 1 end\n```", "```lua\nfunction f() return 2 end\n```"
  for text, want in pairs { [good] = 1, [bad] = 0, [bad .. good] = 1, [good .. bad] = 0, ["```\nfunction f() return 1 end\n```"] = 1,
    ["``` Lua \nfunction f() return 1 end\n```"] = 1, [good .. "```python\nx\n```"] = 1, ["function f() return 1 end"] = 0,
    ["```lua\nfunction f() return 1 end"] = 0, [""] = 0 } do lu.assertEquals(value(text), want, text) end
  lu.assertEquals(value("function f() return 1 end", { bare = true }), 1)
  local two = { { call = "f", want = 1 }, "assert(f() == 2)" }
  lu.assertEquals({ value(good, {}, two), value(good, { partial = true }, two), value(bad, { right = 3, wrong = -1, partial = true }, two) },
    { 0, 0.5, 1 })
  lu.assertErrorMsgContains("the row's tests is a table, expected a list of tests, one at least", value, good, {}, {})
  lu.assertErrorMsgContains("/nonexistent/x: cannot be started", value, good, { program = "/nonexistent/x" })
  lu.assertErrorMsgContains("reward code: the row's tests is missing", function ()
    peri.rl.score({ {} }, { good }, { { 1 } }, { { "code", peri.reward.code() } })
  end)
  lu.assertErrorMsgContains("unprotected = true runs it all the same", value, good, { program = "/bin/true" })
end

-- How each of some ends, as far as that is certain.
function TestSandbox.test_the_status_says_how_it_ended()
  local limits = { timeout = 0.1, memory = 16 << 20, output = 1000 }
  for source, want in pairs { ["while true do end"] = "timeout", ["string.rep('', math.maxinteger)"] = "timeout",
    ["return ('x'):rep(1 << 30)"] = "memory", ["local t = {} for i = 1, 1e9 do t[i] = i end"] = "memory",
    ["print(('x'):rep(2000))"] = "output", ["for i = 1, 1e9 do print(i) end"] = "output", ["io.read()"] = "error" } do
    lu.assertEquals(run(source, limits).status, want, source)
  end
end

-- ---- the filter alone: Lua's own libraries, all of them ----

function TestSandbox.test_without_the_list_the_filter_still_stops_it()
  if not filtered then lu.skip "the kernel has no filter of system calls" end
  local own = os.tmpname()
  for _, source in ipairs { "os.execute('touch " .. own .. ".x')", "io.popen('id')", "io.open('/etc/passwd')", "io.open('" .. own .. "', 'w')",
    "os.remove('" .. own .. "')", "os.rename('" .. own .. "', '/tmp/y')", "os.tmpname()", "io.read('a')", "dofile('/etc/passwd')",
    "require 'socket'", "package.loadlib('libperilune-none.so', 'x')", "io.open('/proc/self/fd/3', 'w')", "io.tmpfile()", "io.lines('/etc/passwd')",
    "io.stdout:setvbuf('no') io.stderr:write('x')" } do
    local r = run(source, { libraries = "all" })
    lu.assertEquals({ source, r.status, r.ok }, { source, "syscall", false })
  end
  local ended = run("os.exit(0)", { libraries = "all", tests = { "assert(true)" } })
  lu.assertEquals({ ended.status, ended.ok, ended.passed }, { "killed", false, 0 })
  lu.assertNil(run("return os.getenv('PATH') or os.getenv('HOME')", { libraries = "all" }).value)
  lu.assertEquals(run("debug.sethook() debug.setmetatable('', nil) return 1", { libraries = "all" }).value, 1)
  os.remove(own)
end

function TestSandbox.test_workers_have_their_own()
  local workers = {}
  for i = 1, 3 do
    workers[i] = peri.worker(function (n)
      local results = require "perilune".sandbox.run_many({ "return " .. n, "while true do end" }, { timeout = 0.05 })
      return results[1].value, results[2].status
    end, i)
  end
  for i, worker in ipairs(workers) do lu.assertEquals({ worker:result() }, { i, "timeout" }) end
end

function TestSandbox.test_a_start_takes_milliseconds()
  local began = peri.time()
  for _ = 1, 20 do run "return 1" end
  lu.assertTrue((peri.time() - began) / 20 < 0.1)
end
