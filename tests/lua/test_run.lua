-- A run as its user meets it, in a process of its own: Ctrl-C, kills, full disks, two writers, errors, what
-- stands on the terminal.
local lu = require "luaunit"
local peri = require "perilune"
local child = require "child"

-- Steps take --pace seconds, and end, fail and speak where the flags say.
local SOURCE = [[
local print = print -- a copy from before anything was loaded
local peri = require "perilune"
local recipe, nn, optim = require "perilune.run.recipe", require "perilune.nn", require "perilune.optim"
local cfg = peri.flags(recipe.with_flags({ steps = { 9, "steps", budget = true }, lr = 0.5, pace = 0.0,
  crash = 0, leave = 0, exit = 0, talk = false, events = true, catch = false }, "demo"))
local run = recipe.start { name = "demo", flags = cfg, total = cfg.steps, columns = { "loss" }, tensorboard = cfg.events }
local w = nn.parameter(peri.ones { 2 })
local opt = optim.SGD({ w }, { lr = 0.01 })
run:track("optimizer", opt):track("rng", peri.rng(1))
local function loop()
  for step in run:steps() do
    local loss = w:square():sum()
    if cfg.talk and step == 4 then loss = loss * (1 / 0) end
    loss:backward()
    opt:step { lr = 0.01, clip = 1 }:zero_grad()
    local until_time = peri.time() + cfg.pace
    while peri.time() < until_time do local _ = w + 1 end
    if cfg.talk then print("printed " .. step) io.write("written ", step, "\n") io.stderr:write("error line ", step, "\n") end
    if cfg.talk then os.execute("echo echoed " .. step) end
    if cfg.talk and step == 2 then io.write("half a line") warn("careful") end
    if step == cfg.crash then error("a bug at step " .. step) end
    run:log(step, { loss = loss, step_twice = 2 * step }, { tok_s = 100.0 })
    run:sample(step, { text = "sample" })
    if step == cfg.leave then break end
    if step == cfg.exit then os.exit(3) end
  end
end
if cfg.catch then print(pcall(loop)) else loop() end
run:plot("curves.svg", { "loss" })
run:text("done, loss %.3f", run:last "loss")
run:finish()
]]

TestRun = {}
local demo
function TestRun:setUp() demo = child.recipe(SOURCE) end -- luacheck: ignore 212
function TestRun:tearDown() demo.remove() end            -- luacheck: ignore 212

local function lines(name)
  local _, n = (demo.read(name) or ""):gsub("\n", "")
  return n
end

function TestRun:test_rows_and_text_without_a_terminal()
  local status, text = demo.run "--steps 3"
  lu.assertEquals(status, 0)
  lu.assertEquals(text:gsub("%S+ *\n", "%0"), text)
  lu.assertStrContains(text, "run folder runs/demo\nstep     loss    tok_s  step_twice\n   1    2.000    100.0           2\n")
  lu.assertStrContains(text, "done, loss ")
  lu.assertNil(text:find "\27")
end

function TestRun:test_log_every_and_columns()
  local _, text = demo.run "--steps 25 --log_every 10 --columns step_twice"
  local steps = {}
  for step in text:gmatch "\n *(%d+) " do steps[#steps + 1] = step end
  lu.assertEquals(steps, { "1", "10", "20", "25" })
  lu.assertStrContains(text, "step  step_twice     loss")
  lu.assertEquals(lines "runs/demo/metrics.jsonl", 25) -- the files have every step
end

-- SIGINT at a moment of the run.
local function interrupt(flags)
  return child.shell(("%s & p=$!; while [ $(cat %s/runs/demo/metrics.jsonl 2>/dev/null | wc -l) -lt 3 ]; do sleep 0.01; done; "
    .. "kill -INT $p; wait $p"):format("exec 3>&1; sh -c '" .. demo.command(flags)
    :gsub("COLUMNS=100 ", "exec env COLUMNS=100 "):gsub("'", "'\\''") .. "'", demo.folder))
end

function TestRun:test_ctrl_c_stops_after_the_step_and_says_how_to_go_on()
  local status, text = interrupt "--steps 500 --pace 0.02 --save_every 100"
  lu.assertEquals(status, 130)
  lu.assertNil(text:find "traceback")
  local step, saved = text:match("perilune: stopped after step (%d+) of 500; checkpoint (%d+) is saved; "
    .. "go on with: %S*/perilune[%w-]* run demo%.lua %-%-resume\n")
  lu.assertNotNil(step, text)
  lu.assertEquals(step, saved)
  lu.assertEquals(lines "runs/demo/metrics.jsonl", math.tointeger(tonumber(step)))
  lu.assertEquals(lines "runs/demo/samples.jsonl", math.tointeger(tonumber(step)))
  status, text = demo.run(("--resume --steps %d"):format(step + 2))
  lu.assertEquals(status, 0)
  lu.assertStrContains(text, ("resuming runs/demo after step %s of %d\n"):format(step, step + 2))
  lu.assertEquals(lines "runs/demo/metrics.jsonl", step + 2)
end

-- The first while a step works, the second in the same step, or while its checkpoint is being written. Each is
-- sent once the one before it has arrived: two that wait are one.
function TestRun:test_a_second_ctrl_c_stops_at_once()
  demo.remove()
  demo = child.recipe [[
    local peri, recipe = require "perilune", require "perilune.run.recipe"
    local cfg = peri.flags(recipe.with_flags { steps = 9, at = { "step", "", choices = { "step", "save" } } })
    local run = recipe.start { name = "demo", flags = cfg, total = cfg.steps }
    local function work(name, over) -- for a minute, or until over
      local began = peri.time()
      io.open(name, "w"):close()
      repeat local _ = peri.ones { 10 } + 1 until over() or peri.time() > began + 60
    end
    run:track("slow", { set_state = print, state = function ()
      if run.step == 3 then work("saving", function () return false end) end
      return { 1 }
    end })
    for step in run:steps() do
      run:log(step, { a = 1 })
      if step == 3 then work("working", cfg.at == "save" and peri.interrupted or function () return false end) end
    end
  ]]
  for _, at in ipairs { "step", "save" } do
    local status, text = child.shell(([[
      cd %s; rm -f working saving; %s run demo.lua --save_every 2 --at %s & p=$!
      until [ -e working ]; do sleep 0.01; done; kill -INT $p
      while grep -q '^S[hi][dg]*Pnd:.*[2367abef]$' /proc/$p/status; do sleep 0.01; done
      [ %s = step ] || until [ -e saving ]; do sleep 0.01; done
      kill -INT $p; wait $p]]):format(demo.folder, child.program, at, at))
    lu.assertEquals(status, 130, text)
    lu.assertNil(text:find "traceback")
    lu.assertStrContains(text, "stopped in step 3 of 9 before its end; the last checkpoint is of step 2; go on with: ")
  end
end

function TestRun:test_a_run_that_is_alive_without_a_checkpoint_is_being_written()
  local status, text = child.shell(([[
    sh -c '%s' >/dev/null 2>&1 & p=$!
    until grep -q '"step":1' %s/runs/demo/metrics.jsonl 2>/dev/null; do sleep 0.01; done
    %s; echo status $?; kill -9 $p; wait $p 2>/dev/null]]):format(
    demo.command "--steps 1000 --pace 0.05 --save_every 0":gsub("COLUMNS=100 ", "exec env COLUMNS=100 "), demo.folder,
    demo.command "--resume"))
  lu.assertEquals(status, 137)
  lu.assertStrMatches(text, ".*%-%-resume: runs/demo: another process %(%d+%) is writing this run.*status 2\n.*")
end

function TestRun:test_an_error_says_its_place_first_and_where_to_go_on()
  local status, text = demo.run "--crash 7 --save_every 3"
  lu.assertEquals(status, 1)
  lu.assertStrContains(text, "perilune: demo.lua:21: a bug at step 7\nthe last checkpoint is of step 6; go on with: "
    .. "./perilune run demo.lua --resume\nstack traceback:\n")
  status, text = demo.run "--crash 1 --save_every 3"
  lu.assertEquals(status, 1)
  lu.assertStrContains(text, "there is no checkpoint yet")
  text = select(2, demo.run "--crash 2 --catch") -- who catches it gets it as it was
  lu.assertStrContains(text, "false\tdemo.lua:21: a bug at step 2\n")
  lu.assertNil(text:find "last checkpoint")
  status, text = demo.run "--resume --run demo-2"
  lu.assertEquals(status, 2)
  lu.assertStrContains(text, "--resume: runs/demo-2 has no whole checkpoint to go on from (it was stopped before the first was due)")
end

function TestRun:test_break_leaves_a_checkpoint()
  lu.assertEquals(demo.run "--leave 4 --save_every 0", 0)
  local status, text = demo.run "--resume --leave 0"
  lu.assertEquals(status, 2)
  lu.assertStrContains(text, "--leave is 0, was 4")
  lu.assertEquals(peri.files.list(demo.folder .. "/runs/demo/checkpoints"), { "step-00000004" })
end

function TestRun:test_a_finished_run_says_so()
  demo.run "--steps 3"
  local status, text = demo.run "--resume"
  lu.assertEquals(status, 0)
  lu.assertStrContains(text, "runs/demo is finished; prolong it, beyond 3 steps, with: ./perilune run demo.lua --resume --steps N\n")
  lu.assertStrContains(text, "done, loss ")
  lu.assertNil(text:find "nan")
end

function TestRun:test_a_damaged_checkpoint_is_warned_of_on_the_console()
  demo.run "--steps 6 --save_every 2"
  assert(peri.files.append(demo.folder .. "/runs/demo/checkpoints/step-00000006/state.json", " "))
  local status, text = demo.run "--resume"
  lu.assertEquals(status, 0)
  lu.assertStrContains(text, "perilune: warning: checkpoint passed over: ")
  local _, warnings = text:gsub("passed over", "")
  lu.assertEquals(warnings, 1)
  lu.assertStrContains(text, "resuming runs/demo after step 4 of 6")
  lu.assertEquals(lines "runs/demo/metrics.jsonl", 6)
end

function TestRun:test_a_second_writer_is_refused_with_the_first_ones_number_and_a_killed_one_is_no_obstacle()
  demo.run "--steps 4 --save_every 2"
  local status, text = child.shell(([[
    sh -c '%s' >/dev/null 2>&1 & p=$!
    until grep -q resuming %s/runs/demo/log.txt; do sleep 0.01; done
    %s; echo status $?; echo number $p; kill -9 $p; wait $p 2>/dev/null
    %s]]):format(demo.command "--resume --steps 100000":gsub("COLUMNS=100 ", "exec env COLUMNS=100 "), demo.folder,
    demo.command "--resume --steps 6", "timeout 2 sh -c '" .. demo.command "--resume" .. " | head -1'"))
  lu.assertEquals(status, 0)
  local number = text:match "number (%d+)"
  lu.assertStrContains(text, ("--resume: runs/demo: another process (%s) is writing this run"):format(number))
  lu.assertStrContains(text, "status 2\n")
  lu.assertNil(text:find "traceback")
  lu.assertStrContains(text, "resuming runs/demo after step ") -- once it is killed
end

-- Every file of a run on a disk that is full from some size on: an error that names the file, no signal.
function TestRun:test_a_full_disk_is_an_error_whatever_file_meets_it()
  lu.skipIf(os.getenv "PERILUNE_HITS" ~= nil, "counters of coverage are files as well")
  local named = {}
  for blocks = 0, 15 do
    local status, text = child.shell(("ulimit -f %d; %s"):format(blocks // 2,
      demo.command(("--steps 400 --save_every 0 --log_every 1000 --runs runs%d --events=%s"):format(blocks, blocks % 2 == 0))))
    if status ~= 0 then
      lu.assertEquals(status, 1, text)
      lu.assertStrContains(text, "File too large")
      lu.assertNil(text:find "traceback")
      if text:find "step " then lu.assertStrContains(text, "\nthere is no checkpoint yet: begin a new run") end
      named[text:match "/([%w._]+): cannot write" or "?"] = true
      lu.assertNil(text:find "done, loss")
    end
  end
  lu.assertNil(named["?"])
  for _, name in ipairs { ".lock", "metrics.jsonl", "events.out.tfevents" } do
    local found = false
    for seen in pairs(named) do found = found or seen:find(name, 1, true) ~= nil end
    lu.assertTrue(found, name .. " was never the one")
  end
end

function TestRun:test_a_script_need_not_be_called_as_its_recipe()
  demo.remove()
  demo = child.recipe [[
    local peri, recipe = require "perilune", require "perilune.run.recipe"
    local cfg = peri.flags(recipe.with_flags { steps = { 3, "steps" }, lr = 0.5 })
    local run = recipe.start { name = "classifier", flags = cfg, total = cfg.steps }
    for step in run:steps() do run:log(step, { lr = cfg.lr }) end
    run:finish()
  ]]
  local status, text = demo.run "--resume"
  lu.assertEquals(status, 2)
  lu.assertStrContains(text, "there is no run runs/demo; no runs are there")
  lu.assertEquals(demo.run "--lr 0.25", 0)
  status, text = demo.run "--resume --steps 4"
  lu.assertEquals(status, 0)
  lu.assertStrContains(text, "resuming runs/classifier after step 3 of 4\n")
  lu.assertStrContains(text, "0.2500")
  status, text = demo.run "--resume --run nobody"
  lu.assertEquals(status, 2)
  lu.assertStrContains(text, "there is no run runs/nobody; there are: classifier")
end

-- ---- a terminal ----

-- What a terminal of 100 columns shows in the end, line by line; only what the bar and rows use is understood.
local function screen(bytes)
  local rows, row, col = { {} }, 1, 1
  local i = 1
  while i <= #bytes do
    local escape, after = bytes:match("^\27%[([%d;]*%a)()", i)
    if escape then
      if escape == "K" then for c = col, #rows[row] do rows[row][c] = nil end end
      i = after
    else
      local char = bytes:match("^" .. utf8.charpattern, i)
      if char == "\r" then col = 1
      elseif char == "\n" then row = row + 1 rows[row] = rows[row] or {}
      else
        while #rows[row] < col - 1 do rows[row][#rows[row] + 1] = " " end
        rows[row][col], col = char, col + 1
      end
      i = i + #char
    end
  end
  local out = {}
  for r, cells in ipairs(rows) do out[r] = table.concat(cells) end
  return table.concat(out, "\n")
end

local function on_terminal(flags)
  local command = demo.command(flags):gsub("'", "'\\''")
  local status, bytes = child.shell(("TERM=xterm script -qec '%s' /dev/null </dev/null"):format(command))
  return status, bytes, screen(bytes:gsub("\r\n", "\n"):gsub("\n", "\r\n"))
end

function TestRun:test_nothing_sticks_to_the_bar()
  if child.shell "script -qec true /dev/null </dev/null" ~= 0 then lu.skip "no script(1), or no terminals here" end
  local status, bytes, text = on_terminal "--steps 6 --talk --pace 0.02"
  lu.assertEquals(status, 0)
  lu.assertStrContains(bytes, "step/s")
  for line in text:gmatch "[^\n]+" do
    if line:find "step/s" then lu.fail("a bar stayed: " .. line) end
  end
  for step = 1, 6 do
    for _, want in ipairs { "printed ", "written ", "error line ", "echoed " } do
      lu.assertStrContains("\n" .. text .. "\n", "\n" .. want .. step .. "\n")
    end
  end
  lu.assertStrContains(text, "half a line")
  lu.assertStrContains(text, "perilune: warning: careful")
  lu.assertStrContains(bytes, "1 skipped")
  lu.assertStrContains(text, "step skipped: gradients not finite")
  local _
  status, _, text = on_terminal "--crash 4 --pace 0.02"
  lu.assertEquals(status, 1)
  lu.assertStrContains(text, "\nperilune: demo.lua:21: a bug at step 4\n")
  status, _, text = on_terminal "--exit 4 --pace 0.02"
  lu.assertEquals(status, 3)
  lu.assertNil(text:find "step/s")
end

os.exit(lu.LuaUnit.run())
