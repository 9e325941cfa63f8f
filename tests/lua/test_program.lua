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

-- Files of lua/perilune/command/; the other three are what commands are made with.
function TestProgram:test_every_command_has_help_and_is_in_the_list()
  local list, commands = run "--help", {}
  for _, file in ipairs(assert(peri.files.list "lua/perilune/command")) do
    local name = file:match "^(.+)%.lua$"
    if name ~= "init" and name ~= "arguments" and name ~= "environment" then commands[#commands + 1] = name:gsub("_", "-") end
  end
  for line in list:gmatch "[^\n]+" do lu.assertTrue(#line <= 80, line) end
  for _, name in ipairs(commands) do
    lu.assertStrMatches(list, ".*\n  " .. name:gsub("%-", "%%-") .. "%f[%s].*")
    for _, flag in ipairs { "--help", "-h" } do
      local out, status = run(name .. " " .. flag)
      lu.assertEquals(status, 0, name)
      lu.assertEquals(out:match "^usage: perilune ([%a-]+)", name)
    end
  end
end

function TestProgram:test_what_is_not_known_is_named_with_the_nearest()
  for command, want in pairs {
    ["chta"] = "no command is called 'chta'; did you mean 'chat'?",
    ["--verison"] = "no command is called '--verison'",
    ["test nosuch"] = 'no test has "nosuch" in its name; there are: ',
    ["test data nosuch"] = 'no test has "nosuch"',
    ["bench nosuch"] = 'no benchmark is called "nosuch". There are: ',
    ["run"] = "run needs a file",
    ["info a b"] = '"b" is one word too many',
    ["run --fast x.lua"] = "run has no option --fast",
    ["repl x"] = "repl takes no arguments, got x",
    ["recipes a b"] = '"b" is one word too many',
    ["recipes/r1_zero.lua"] = "did you mean 'run recipes/r1_zero.lua'?",
  } do
    local out, status = run(command)
    lu.assertStrContains(out, want)
    lu.assertEquals(status, 2, command)
  end
end

function TestProgram:test_code_of_the_command_line()
  local path = script "print(x, arg[0], ...)"
  for command, want in pairs {
    ["-e 'print(peri.ones{2}:sum():item())'"] = "2.0\n",
    ["-e 'x = 1' -e 'x = x + 1' " .. path .. " a b"] = "2\t" .. path .. "\ta\tb\n",
    ["-e 'x = 3' run " .. path .. " -e"] = "3\t" .. path .. "\t-e\n",
  } do
    lu.assertEquals({ run(command) }, { want, 0 }, command)
  end
  lu.assertEquals({ shell [[echo x | "$P" -e 'x = 7' repl]] }, { "7\n", 0 })
  os.remove(path)
  local out, status = run "-e 'error \"oops\"'"
  lu.assertStrContains(out, "perilune: (command line):1: oops")
  lu.assertEquals(status, 1)
  out, status = run "-e 'x = = 1'"
  lu.assertStrContains(out, "(command line):1: unexpected symbol")
  lu.assertEquals(status, 1)
  lu.assertEquals({ run "-e" }, { "perilune: -e needs Lua code\n", 2 })
end

function TestProgram:test_the_number_of_threads_is_a_flag_and_a_variable()
  local path = script "print(peri.threads(), ...)"
  local ask = "-e 'print(peri.threads())'"
  for _, command in ipairs { "--threads 3 " .. ask, "--threads=3 " .. ask, ask .. " --threads 3" } do
    lu.assertEquals({ run(command) }, { "3\n", 0 }, command)
  end
  lu.assertEquals({ run(ask, "PERI_THREADS=3") }, { "3\n", 0 })
  lu.assertEquals({ run("--threads 2 " .. ask, "PERI_THREADS=3") }, { "2\n", 0 })
  lu.assertStrContains(run "info --threads 5", "threads    5\n")
  lu.assertEquals({ run(("-e '' run --threads 4 %s --threads 9"):format(path)) }, { "4\t--threads\t9\n", 0 })
  os.remove(path)
  for _, value in ipairs { "1025", "-1", "two", "1.5", "''" } do
    local out, status = run("--threads " .. value .. " info")
    lu.assertStrContains(out, "a number from 0 to 1024")
    lu.assertEquals(status, 2)
  end
  local _, status = run "info --threads"
  lu.assertEquals(status, 2)
end

function TestProgram:test_recipes_are_listed_with_their_first_line()
  local folder = os.tmpname()
  os.remove(folder)
  assert(peri.files.make_folder(folder))
  assert(peri.files.write(folder .. "/a.lua", "-- a.lua - learns to count.\n-- More.\n"))
  assert(peri.files.write(folder .. "/b.lua", "#!/usr/bin/env perilune\n-- Without its name.\n"))
  assert(peri.files.write(folder .. "/c.lua", "print 1\n"))
  assert(peri.files.write(folder .. "/notes.txt", "no recipe"))
  assert(peri.files.make_folder(folder .. "/b/deep"))
  assert(peri.files.write(folder .. "/b/deep/d.lua", "-- d.lua - in folders of a folder.\n"))
  local out, status = run("recipes " .. folder)
  peri.files.remove_tree(folder)
  lu.assertEquals(status, 0)
  lu.assertStrContains(out, folder .. "/a.lua         learns to count.\n")
  lu.assertStrContains(out, folder .. "/b.lua         Without its name.\n")
  lu.assertStrContains(out, folder .. "/c.lua")
  lu.assertStrContains(out, folder .. "/b/deep/d.lua  in folders of a folder.\n")
  lu.assertTrue(out:find("/c.lua", 1, true) < out:find("/b/deep", 1, true))
  lu.assertNotStrContains(out, "notes")
  lu.assertEquals(select(2, run "recipes /nonexistent"), 1)
  out, status = run "recipes"
  lu.assertEquals(status, 0)
  lu.assertStrContains(out, "recipes/r1_zero.lua ")
  lu.assertStrContains(out, "recipes/classic/ppo.lua ")
end

-- A flag out of its range is a line, not a traceback, and leaves no run folder behind.
function TestProgram:test_a_recipe_refuses_before_it_makes_its_folder()
  local paths = io.popen "find recipes -name '*.lua' | sort"
  for path in paths:lines() do
    local folder = os.tmpname()
    os.remove(folder)
    local text = assert(peri.files.read(path))
    local flag = text:match "\n%s*([%w_]+)%s*=%s*{[^\n]*budget = true"
      or text:match "\n  (updates) " or text:match "\n  (epochs) " or "steps"
    local out, status = run(("run %s --runs %s --%s -3"):format(path, folder, flag))
    local least = out:match "%[(%d+), inf%)" -- some need a step or two
    lu.assertEquals({ out, status }, { ("--%s is -3, expected an integer in [%s, inf)\n"):format(flag, least), 2 })
    lu.assertFalse(peri.files.exists(folder))
  end
  paths:close()
end

function TestProgram:test_a_script_finds_modules_beside_it()
  local folder = os.tmpname()
  os.remove(folder)
  assert(peri.files.make_folder(folder))
  assert(peri.files.write(folder .. "/beside.lua", "return 42"))
  assert(peri.files.write(folder .. "/main.lua", "print(require 'beside')"))
  lu.assertStrContains(run("run " .. folder .. "/main.lua"), "42")
  peri.files.remove_tree(folder)
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
    sleep 10 >/dev/null 2>&1 & watch=$!
    for i in %s; do sleep 0.1; kill -INT $p; done
    while kill -0 $p 2>/dev/null && kill -0 $watch 2>/dev/null; do sleep 0.02; done
    kill -KILL $p $watch 2>/dev/null
    wait $p; s=$?
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
    ["a handler that does not end"] = "while true do xpcall(function() while true do end end, function() while true do end end) end",
    ["a finalizer"] = "setmetatable({}, { __gc = function() while true do end end }) collectgarbage() while true do end",
    ["__close of a coroutine"] = [[
      coroutine.wrap(function()
        local _ <close> = setmetatable({}, { __close = function() while true do end end })
        while true do end
      end)()]],
    ["hooks of the script"] = "while true do pcall(debug.sethook) end",
    ["the library"] = "local t = {} for i = 1, 2000 do t[i] = { i } end while true do peri.show(t) end",
    ["short C functions"] = "while true do local _ = ('x'):rep(100000) end",
  } do
    local out, status = interrupted(text)
    lu.assertEquals(status, 130, name .. "\n" .. out)
    lu.assertStrContains(out, "perilune: interrupted at ", false, name)
    lu.assertNotStrContains(out, "/perilune/", false, name) -- the place is the script's
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
