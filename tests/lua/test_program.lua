-- The program as a child: its commands and their help, what scripts get, how errors and Ctrl-C end.
local lu = require "luaunit"
local peri = require "perilune"

local program = arg[-2] or "build/perilune"

local function quote(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

-- Output of both streams and the exit status of a shell command line; $P is the program.
local function shell(command)
  local pipe = io.popen(("P=%s; { %s\n} 2>&1; echo \"exit $?\""):format(quote(program), command))
  local out = pipe:read "a"
  pipe:close()
  local text, status = out:match "^(.*)exit (%d+)\n$"
  return text, tonumber(status)
end

local function run(arguments, env) return shell((env or "") .. ' "$P" ' .. arguments) end

local function script(text)
  local path = os.tmpname()
  local file = assert(io.open(path, "w"))
  file:write(text)
  file:close()
  return path
end

TestProgram = {}

function TestProgram:test_exit_codes()
  lu.assertStrContains(run "--version", "perilune " .. peri.info().version)
  lu.assertStrContains(run "--help", "usage: perilune")
  lu.assertEquals(select(2, run ""), 2)
  lu.assertStrContains(run "dance", "no command is called 'dance'")
  lu.assertEquals(select(2, run "run"), 2)
  lu.assertEquals(select(2, run "run /nonexistent.lua"), 1)
  lu.assertStrContains(run "info", "simd")
end

function TestProgram:test_scripts_get_arg()
  local path = script "print(arg[0] == ..., arg[1], arg[2], select('#', ...), type(help)) error('end of ' .. arg[1])"
  local out, status = run(("run %s one '--two=2'"):format(path))
  os.remove(path)
  lu.assertStrContains(out, "one\t--two=2\t2\tfunction")
  lu.assertStrContains(out, "end of one")
  lu.assertStrContains(out, "stack traceback")
  lu.assertEquals(status, 1)
end

function TestProgram:test_error_objects_keep_what_they_say()
  for value, want in pairs {
    ["{ code = 5 }"] = "perilune: error object is a table value (code = 5)\n",
    ["{ message = 'no room', code = 5, file = 'x' }"] = "perilune: no room (code = 5, file = 'x')\n",
    ["{ 1, {} }"] = "perilune: error object is a table value\n",
    ["setmetatable({}, { __tostring = function() return 'I say so' end })"] = "perilune: I say so\n",
    ["true"] = "perilune: error object is a boolean value\n",
  } do
    local path = script("error(" .. value .. ")")
    local out, status = run("run " .. path)
    os.remove(path)
    lu.assertEquals(out:sub(1, #want), want)
    lu.assertEquals(status, 1)
  end
end

TestInterrupt = {}

-- Run a script that prints "ready" and gets so many Ctrl-C; one that does not end is killed.
local function interrupted(text, times)
  local path = script(("print 'ready' io.stdout:flush() local peri = require 'perilune'\n%s"):format(text))
  local out, status = shell(([[
    out=$(mktemp)
    "$P" run %s >$out 2>&1 & p=$!
    until grep -q ready $out; do sleep 0.02; done
    (sleep 10; kill -KILL $p) >/dev/null 2>&1 & watch=$!
    for i in %s; do sleep 0.1; kill -INT $p; done
    wait $p; s=$?
    kill $watch 2>/dev/null
    cat $out; rm -f $out; exit $s]]):format(path, times or "1"):gsub("exit %$s$", "(exit $s)"))
  os.remove(path)
  return out, status
end

function TestInterrupt:test_one_interrupt_ends_whatever_runs()
  for name, text in pairs {
    ["a loop"] = "while true do end",
    ["a coroutine"] = "coroutine.wrap(function() while true do end end)()",
    ["a resumed coroutine"] = "while true do coroutine.resume(coroutine.create(function() while true do end end)) end",
    ["coroutines in each other"] = [[
      local function f(n) coroutine.wrap(function() if n > 0 then f(n - 1) else while true do end end end)() end
      f(50)]],
    ["one that slept"] = [[
      local co = coroutine.wrap(function() while true do coroutine.yield() end end)
      while true do pcall(co) end]],
    ["ops under pcall"] = "local a = peri.ones{2} while true do pcall(function() a = a + 1 end) end",
    ["Lua under pcall"] = "while true do pcall(function() for _ = 1, 1000 do end end) end",
    ["pcall under pcall"] = "local function f() while true do pcall(f) end end f()",
    ["a handler"] = "while true do xpcall(function() while true do end end, function(m) return m .. '' end) end",
    ["a variable to close"] = [[
      while true do local _ <close> = setmetatable({}, { __close = function() while true do end end }) end]],
    ["closing a coroutine"] = [[
      local co = coroutine.create(function()
        local _ <close> = setmetatable({}, { __close = function() while true do end end })
        coroutine.yield()
      end)
      coroutine.resume(co)
      print(coroutine.close(co))
      while true do end]],
    ["short C functions"] = "while true do local _ = ('x'):rep(100000) end",
  } do
    local out, status = interrupted(text)
    lu.assertEquals(status, 130, name .. "\n" .. out)
    lu.assertStrContains(out, "perilune: interrupted at ", false, name)
    lu.assertNotStrContains(out, "traceback")
  end
end

function TestInterrupt:test_cleaning_up_has_time()
  local out, status = interrupted [[
    local _ <close> = setmetatable({}, { __close = function()
      local n = 0
      for i = 1, 5000 do n = n + i end
      print("closed", n)
    end })
    while true do end]]
  lu.assertStrContains(out, "closed\t12502500\n")
  lu.assertEquals(status, 130)
end

function TestInterrupt:test_a_script_may_defer_the_first()
  local loop = [[
    print(peri.interrupted(), peri.on_interrupt(true))
    while not peri.interrupted() do peri.ones{8}:sum() end
    print("asked", peri.interrupted(), (peri.ones{2} + 1):sum():item())]]
  local out, status = interrupted(loop .. " print(peri.on_interrupt(false), peri.interrupted())")
  lu.assertStrContains(out, "false\tfalse\nasked\ttrue\t4.0\ntrue\tfalse\n")
  lu.assertEquals(status, 130) -- it ended early, whatever it made of it
  out, status = interrupted(loop .. " while true do end", "1 2")
  lu.assertStrContains(out, "asked")
  lu.assertStrContains(out, "perilune: interrupted at ")
  lu.assertEquals(status, 130)
end

function TestInterrupt:test_coroutines_are_those_of_lua()
  local co = coroutine.create(function(a)
    local b, c = coroutine.yield(a + 1)
    error({ b, c })
  end)
  lu.assertEquals({ coroutine.resume(co, 1) }, { true, 2 })
  lu.assertEquals({ coroutine.resume(co, 3, 4) }, { false, { 3, 4 } })
  lu.assertEquals({ coroutine.resume(co) }, { false, "cannot resume dead coroutine" })
  lu.assertErrorMsgContains("coroutine expected", coroutine.resume, 1)
  lu.assertErrorMsgContains("cannot resume dead coroutine", function()
    local f = coroutine.wrap(function() end)
    f()
    f()
  end)
  local closed
  local f = coroutine.wrap(function()
    local _ <close> = setmetatable({}, { __close = function() closed = true end })
    error "oops"
  end)
  lu.assertErrorMsgContains("oops", f)
  lu.assertTrue(closed)
  co = coroutine.create(function()
    local _ <close> = setmetatable({}, { __close = function() error("in close", 0) end })
    coroutine.yield()
  end)
  coroutine.resume(co)
  lu.assertEquals({ coroutine.close(co) }, { false, "in close" })
  lu.assertEquals(coroutine.status(co), "dead")
  lu.assertEquals({ coroutine.close(coroutine.create(print)) }, { true })
  lu.assertErrorMsgContains("cannot close a running coroutine", function() coroutine.close(coroutine.running()) end)
  local function nest(n) if n == 0 then return "deep" end return coroutine.wrap(nest)(n - 1) end
  lu.assertEquals(nest(150), "deep")
end

if arg and arg[0] and arg[0]:find "test_program" then os.exit(lu.LuaUnit.run()) end
