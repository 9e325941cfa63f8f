-- Environments that run in Python processes. The packages are fakes in tests/data/python, which need nothing but Python.
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"

local PYTHON <const>, FOLDER <const> = "python3", "tests/data/python"
local there = os.execute(PYTHON .. " -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null")

TestEnvPython = {}

function TestEnvPython:setUp()
  if not there then
    print "skipped: there is no python3 of 3.8 or later"
    lu.skip "no Python"
  end
end

local function make(name, opts)
  local o = { python = PYTHON, path = FOLDER }
  for k, v in pairs(opts or {}) do o[k] = v end
  return peri.env.python(name:find ":" and name or "gymnasium:" .. name, o)
end

local function fails(part, f, ...)
  local ok, message = pcall(f, ...)
  lu.assertFalse(ok, part)
  lu.assertStrContains(message, part)
  lu.assertStrContains(message, "test_env_python.lua")
  return message
end

function TestEnvPython:test_rows_are_seeded_step_and_reset_as_gymnasiums()
  for workers = 1, 3 do
    local e = make("Counter-v0", { n = 5, seed = 7, workers = workers, options = { most = 2 } })
    local first = function(i) return workers >= i and 2 or 1 end -- of each process: it was reset to look at it
    lu.assertEquals(e:reset():tolist(), { { 7, 2, 0 }, { 8, first(2), 0 }, { 9, first(3), 0 }, { 10, 1, 0 }, { 11, 1, 0 } })
    local obs, reward, over, cut = e:step { 0, 1, 2, 1, 0 }
    lu.assertEquals({ obs:tolist()[3][3], reward:tolist(), over:any():item(), cut:any():item() },
      { 1, { 0, 0.5, 1, 0.5, 0 }, false, false })
    obs, reward, over = e:step { 2, 2, 2, 2, 2 }
    lu.assertTrue(over:all():item())
    lu.assertEquals(reward:tolist(), { 1, 1, 1, 1, 1 })
    lu.assertEquals(obs:tolist()[4], { -1, 2, 0 }) -- begun anew without a seed
    lu.assertEquals(e.final_obs:tolist()[4], { 10, 1, 2 })
    lu.assertEquals(e:episodes().returns, { 1, 1.5, 2, 1.5, 1 })
    lu.assertEquals(e:reset { seed = 100 }:tolist()[2][1], 101)
  end
end

function TestEnvPython:test_autoreset_is_the_runtimes()
  local e = make("Counter-v0", { n = 1, autoreset = "next_step", options = { most = 1 } })
  e:reset { seed = 1 }
  local obs, _, over = e:step { 0 }
  lu.assertEquals({ obs:tolist()[1][3], over:item(), e.valid:item() }, { 1, true, true })
  obs, _, over = e:step { 0 }
  lu.assertEquals({ obs:tolist()[1][3], over:item(), e.valid:item() }, { 0, false, false })
  e = make("Counter-v0", { options = { most = 1 } }) -- a single one
  local first = e:reset { seed = 4 }
  lu.assertEquals(first:tolist(), { 4, 2, 0 })
  local _, reward, terminated, truncated = e:step(1)
  lu.assertEquals({ reward, terminated, truncated }, { 0.5, true, false })
  fails("has ended", e.step, e, 1)
end

function TestEnvPython:test_the_time_limit_is_the_runtimes()
  local e = make("TimeLimit-v0", { n = 2 })
  lu.assertEquals(e.max_steps, 4)
  e:reset()
  for i = 1, 4 do
    local _, _, over, cut = e:step { 0, 0 }
    lu.assertEquals({ over:any():item(), cut:all():item() }, { false, i == 4 })
  end
  e = make("TimeLimit-v0", { n = 2, max_steps = 2 })
  e:reset()
  e:step { 0, 0 }
  local _, _, _, cut = e:step { 0, 0 }
  lu.assertTrue(cut:all():item())
end

function TestEnvPython:test_spaces_are_translated()
  local e = make("Mixed-v0", { n = 2 })
  lu.assertEquals({ e.obs_space.kind, e.obs_space.shape[1], e.action_space.kind }, { "box", 5, "multi_discrete" })
  local fields = {}
  for i, f in ipairs(e.obs_space.fields) do fields[i] = { f.name, f.kind, f.from, f.size } end
  lu.assertEquals(fields, { { "card", "discrete", 1, 3 }, { "where", "box", 4, 2 } })
  e:reset()
  local obs, reward = e:step(peri.tensor({ { 2, 1 }, { 0, 1 } }, "i64"))
  lu.assertEquals(obs:tolist(), { { 0, 1, 0, 2, 1 }, { 0, 1, 0, 0, 1 } })
  lu.assertEquals(reward:tolist(), { 1.5, 0.5 })
  fails("observations of Text", make, "Texts-v0")
  local masked = make("Masked-v0", { n = 1 })
  masked:reset()
  lu.assertEquals(masked.mask:tolist(), { { true, false, false } })
  masked:step { 0 }
  lu.assertEquals(masked.mask:tolist(), { { false, true, false } })
end

function TestEnvPython:test_agents_are_rows()
  local e = make("pettingzoo:race", { n = 2, workers = 2 })
  lu.assertEquals({ e.agents, e.rows }, { 2, 4 })
  e:reset()
  e:step { 1, 1, 1, 0 }
  local obs, _, over = e:step { 1, 1, 1, 1 } -- both first agents are out
  lu.assertEquals(obs:tolist(), { { 2 }, { 2 }, { 2 }, { 1 } })
  lu.assertEquals(over:tolist(), { true, false, true, false })
  lu.assertEquals(e.live:tolist(), { false, true, false, true })
  local later, reward = e:step { 1, 1, 1, 1 } -- their actions count no more
  lu.assertEquals(reward:tolist(), { 0, 1, 0, 1 })
  lu.assertEquals(later:tolist(), { { 2 }, { 3 }, { 2 }, { 2 } })
  e:step { 0, 1, 0, 1 }
  lu.assertEquals(e.obs:tolist(), { { 0 }, { 0 }, { 2 }, { 3 } }) -- the first environment began anew
end

function TestEnvPython:test_files_have_environments()
  local e = make("file:" .. FOLDER .. "/own.py:make", { options = { most = 3 } })
  e:reset()
  for _ = 1, 2 do lu.assertFalse((select(3, e:step(0)))) end
  lu.assertTrue((select(3, e:step(0))))
  fails("ZeroDivisionError: integer division or modulo by zero (own.py:10)", make, "file:" .. FOLDER .. "/own.py:broken")
  fails("no attribute 'none'", make, "file:" .. FOLDER .. "/own.py:none")
  fails("No such file", make, "file:" .. FOLDER .. "/none.py:make")
end

function TestEnvPython:test_names_and_options_are_checked()
  fails("KeyError", make, "None-v0")
  fails("unexpected keyword argument", make, "Counter-v0", { options = { size = 3 } })
  fails("expected gymnasium:ID, pettingzoo:MODULE or file:PATH:FUNCTION", make, "gym:Counter-v0")
  fails("expected gymnasium:ID", make, "file:own.py")
  fails("No module named 'pettingzoo.none'", make, "pettingzoo:none")
  fails("no_such_python: cannot be started", make, "Counter-v0", { python = "no_such_python" })
  fails("workers is 0", make, "Counter-v0", { workers = 0 })
  fails("unknown option", make, "Counter-v0", { worker = 1 })
  fails("has ended with status", make, "Counter-v0", { python = "false" })
  fails("it speaks another protocol", function () -- a program that is no Python
    local path = scratch.path()
    assert(peri.files.write(path, "#!/bin/sh\nexec head -c 100000 /dev/zero >&3\n"))
    os.execute("chmod +x " .. path)
    local ok, message = pcall(make, "Counter-v0", { python = path })
    os.remove(path)
    error((message:gsub("its process speaks", "it speaks")), 0)
    return ok
  end)
end

-- Every fault ends the step with a message that names environment, row, step and what happened; what was trained beside it
-- goes on.
local faults = {
  raise = "ValueError: no such move",
  exit = "its process has ended with status 3; it said: about to exit",
  kill = "its process was killed by signal 9; it said: about to kill",
  hang = "its process gave no answer within 1",
  nan = "its observation",
  inf = "its reward is inf",
  shape = "the observation has shape (2,), the space (3,)",
}

function TestEnvPython:test_faults_are_named()
  for fault, text in pairs(faults) do
    for workers = 1, 2 do
      local e = make("Faulty-v0", { n = 3, workers = workers, timeout = 1, options = { fault = fault } })
      e:reset()
      e:step { 0, 0, 0 }
      e:step { 0, 0, 0 }
      local message = fails(text, e.step, e, { 0, 0, 0 })
      lu.assertStrContains(message, "gymnasium:Faulty-v0: row 1, step 3 of its episode")
      fails("reset all rows", e.step, e, { 0, 0, 0 })
      if fault == "raise" or fault == "nan" or fault == "inf" or fault == "shape" then
        e:reset { seed = 1 } -- the process is there
        e:step { 0, 0, 0 }
      else
        fails(workers == 1 and "its process" or "process", e.reset, e)
      end
    end
  end
end

function TestEnvPython:test_what_it_prints_disturbs_nobody()
  local e = make("Faulty-v0", { n = 2, options = { fault = "junk", when = 1 } })
  for _ = 1, 3 do
    e:reset()
    local obs = e:step { 0, 1 }
    lu.assertEquals(obs:tolist()[2][3], 1)
  end
end

function TestEnvPython:test_pictures_come_from_python()
  local e = make("Counter-v0", { n = 3, workers = 2, render = true })
  e:reset()
  e:step { 0, 0, 0 }
  lu.assertEquals(e:render(3):tolist(),
    { { { 1, 0, 0 }, { 1, 10, 0 }, { 1, 20, 0 } }, { { 1, 0, 20 }, { 1, 10, 20 }, { 1, 20, 20 } } })
  fails("cannot be saved", e.save, e, 1)
  fails("cannot be saved", e.state_dict, e)
end

-- Descriptors, children, signals: as before.
local function read(path)
  local f <close> = assert(io.open(path))
  return f:read "a"
end
local pid = there and read "/proc/self/stat":match "%d+"

local function open_files()
  local pipe, n = io.popen("ls /proc/" .. pid .. "/fd"), 0
  for _ in pipe:lines() do n = n + 1 end
  pipe:close()
  return n
end
local function children() return read("/proc/self/task/" .. pid .. "/children") end
local function signals() return read "/proc/self/status":match "SigPnd.-SigCgt:%s*%x+" end

function TestEnvPython:test_nothing_is_left()
  collectgarbage()
  collectgarbage() -- what the first one called finalizers of
  local before, sig = open_files(), signals()
  for _, fault in ipairs { "none", "exit", "hang", "raise" } do
    local e = make("Faulty-v0", { n = 2, workers = 2, timeout = 0.5, options = { fault = fault } })
    e:reset()
    for _ = 1, 3 do pcall(e.step, e, { 0, 0 }) end
    e = nil -- luacheck: ignore 311
    collectgarbage()
    collectgarbage()
  end
  pcall(make, "None-v0")
  collectgarbage()
  local after = open_files() -- fewer, where the collector has closed somebody else's
  lu.assertTrue(after <= before, ("%d files open, before %d"):format(after, before))
  lu.assertEquals(signals(), sig)
  lu.assertEquals(children(), "")
end
