-- perilune sweep: what is tried, that it is the same after kill -9, rows of runs that fail, and what is refused before
-- anything runs.
local lu = require "luaunit"
local peri = require "perilune"
local child = require "child"
local scratch = require "scratch"
local space = require "perilune.run.sweep_space"

TestSweep = {}

local folder
scratch.each(TestSweep, function (path)
  folder = path
  assert(peri.files.write(path .. "/fit.lua", [[
local peri = require "perilune"
local recipe = peri.recipe
local cfg = peri.flags(recipe.with_flags {
  steps = { 4, "optimizer steps", range = "[1, inf)" },
  lr = { 0.1, "learning rate", range = "(0, inf)" },
  rule = { "sgd", "which", choices = { "sgd", "adam" } },
  width = { 4, "a number" },
  label = { "", "a text" },
  more = { false, "a boolean" },
})
assert(cfg.width ~= 13, "13 brings no luck")
if cfg.label == "needs" then assert(io.open "there", "the disk is full"):close() end
local x = peri.linspace(-1, 1, 32):unsqueeze(2)
local net = peri.nn.Linear(1, 1)
local opt = (cfg.rule == "sgd" and peri.optim.SGD or peri.optim.Adam)(net:parameters(), { lr = cfg.lr })
local run = recipe.start { name = "fit", flags = cfg, total = cfg.steps, columns = { "loss" } }
run:track("net", net):track("optimizer", opt)
local function loss() return net(x):mse(x * 3 + 1) end
for step in run:steps() do
  if cfg.label == "slow" then os.execute "sleep 0.1" end
  local l = loss()
  l:backward()
  opt:step():zero_grad()
  run:log(step, { loss = l, odd = 0 / 0 })
end
if cfg.label ~= "silent" then run:scores("fit", -loss():item()) end
run:finish()
]]))
end)

local function command(flags) return ("cd %s && PERI_THREADS=1 %s sweep fit.lua %s"):format(folder, child.program, flags) end
local function run(flags) return child.shell(command(flags)) end
local function read(name) return assert(peri.files.read(("%s/runs/%s"):format(folder, name))) end
local function rows(name)
  local list = {}
  for line in read(name .. "/table.jsonl"):gmatch "[^\n]+" do list[#list + 1] = peri.json.decode(line) end
  return list
end

local tables = { "table.txt", "table.csv", "table.jsonl", "sweep.svg" }

-- Kill it some while after it has results, as often as it takes, and let it go on.
local function assert_same_when_killed(flags, whole, least)
  local status, text = run(flags .. " --run whole")
  lu.assertEquals(status, 0, text)
  lu.assertEquals(#rows "whole", whole)
  local kill = [[(%s) >>%s/log 2>&1 & p=$!
    until [ $(cat %s/runs/cut/results.jsonl 2>/dev/null | wc -l) -ge %d ] || ! kill -0 $p 2>/dev/null; do sleep 0.02; done
    sleep 0.0%d; kill -KILL $p 2>/dev/null && echo hit; wait $p 2>/dev/null]]
  local hits = 0
  for i, at in ipairs(least) do
    local words = i == 1 and flags .. " --run cut" or "--run cut --resume"
    local _, out = child.shell(kill:format("exec sh -c 'cd " .. folder .. " && PERI_THREADS=1 exec " .. child.program
      .. " sweep fit.lua " .. words .. " --workers 2'", folder, folder, at, i * 3))
    if out:find "hit" then hits = hits + 1 end
  end
  lu.assertTrue(hits >= 2, "it was over before it was killed")
  status, text = run "--run cut --resume"
  lu.assertEquals(status, 0, text .. (peri.files.read(folder .. "/log") or ""))
  for _, name in ipairs(tables) do lu.assertEquals(read("cut/" .. name), read("whole/" .. name), name) end
end

function TestSweep.test_sixteen_settings_killed_and_resumed_give_the_same_table()
  assert_same_when_killed("--lr log:0.01,1 --rule sgd,adam --width 4,13 --trials 16", 16, { 1, 6, 11 })
  local failed = 0
  for _, row in ipairs(rows "whole") do
    if row.flags.width == "13" then
      failed = failed + 1
      lu.assertStrContains(row.failed, "exit status 1: ")
      lu.assertStrContains(row.failed, "13 brings no luck")
      lu.assertNil(row.rank)
    else lu.assertNil(row.failed) end
  end
  lu.assertTrue(failed > 0)
end

function TestSweep.test_halving_killed_and_resumed_gives_the_same_table()
  assert_same_when_killed("--lr log:0.01,1 --method halving --trials 9 --steps 18", 9, { 2, 8 })
  local budgets, last = {}, math.huge
  for i, row in ipairs(rows "whole") do
    budgets[row.budget] = (budgets[row.budget] or 0) + 1
    lu.assertTrue(row.budget <= last and row.rank == i)
    last = row.budget
  end
  lu.assertEquals(budgets, { [18] = 1, [6] = 2, [2] = 6 })
end

function TestSweep.test_the_best_stand_first_by_the_mode_and_the_metric()
  lu.assertEquals((run "--lr 0.01,0.1,0.5 --method grid --run a"), 0)
  local found = {}
  for i, row in ipairs(rows "a") do found[i] = row.flags.lr end
  lu.assertEquals(found, { "0.5", "0.1", "0.01" })
  lu.assertEquals((run "--run a --resume --metric loss --mode max"), 0) -- judged anew, nothing is run
  for i, row in ipairs(rows "a") do found[i] = row.flags.lr end
  lu.assertEquals(found, { "0.01", "0.1", "0.5" })
  lu.assertEquals((run "--run a --resume --metric loss --mode min"), 0)
  lu.assertEquals(rows "a"[1].flags.lr, "0.5")
  local text = read "a/table.txt"
  lu.assertStrContains(text, "rank  trial  lr    score")
  lu.assertEquals(select(2, read "a/sweep.svg":gsub("<circle", "")), 3)
end

function TestSweep.test_seeds_are_runs_where_the_recipe_has_no_seeds()
  lu.assertEquals((run "--lr 0.1,0.5 --method grid --seeds 3 --seed 5 --run s"), 0)
  for _, row in ipairs(rows "s") do
    lu.assertEquals(row.seeds, 3)
    lu.assertTrue(row.low <= row.score and row.score <= row.high)
  end
  local config = peri.json.decode(read "s/runs/002-s3/config.json")
  lu.assertEquals({ config.seed, config.lr }, { 7, 0.5 })
end

function TestSweep.test_what_is_wrong_is_said_before_anything_runs()
  for flags, want in pairs {
    ["--lrr 1"] = 'unknown flag of the recipe "lrr"; did you mean "lr"?; the sweep has: eta, method, metric, mode, resume, run,',
    ["--lr 0,1"] = "--lr is 0.0, expected a number in (0, inf)",
    ["--lr log:0,1"] = "--lr log:0,1: expected 0 < LOW < HIGH",
    ["--lr linear:1,1"] = "expected LOW < HIGH",
    ["--lr log:1"] = "expected log:LOW,HIGH or log:LOW,HIGH,POINTS",
    ["--lr log:0.1,1,x"] = "expected log:LOW,HIGH or",
    ["--lr linear:-1,1"] = "--lr is -1.0, expected a number in (0, inf)",
    ["--rule sgd,adm"] = 'unknown choice "adm"; did you mean "adam"?',
    ["--rule log:1,2"] = "--rule has no range",
    ["--lr 1,1"] = '"1" is there twice',
    ["--lr 1 --lr 2"] = "--lr is given twice",
    ["--lr"] = "--lr needs values",
    ["--runs"] = "--runs needs a value",
    ["--lr 1,2 x"] = '"x" is not a flag',
    ["-- --runs x"] = "--runs is the sweep's",
    ["--method best"] = 'unknown choice "best"',
    ["--trials 0"] = "--trials is 0",
    ["--method grid --lr log:0.1,1"] = "a grid needs the number of points",
    ["--method halving --steps 2 --lr log:0.1,1 --trials 27"] = "a budget of 2 is too small for 4 rungs",
    ["--method halving --steps 2,3"] = "--steps is the budget, which grows",
    ["--resume"] = "there is no sweep runs/sweep-fit",
  } do
    local status, text = run(flags)
    lu.assertStrContains(text, want)
    lu.assertEquals(status, 2, flags)
    lu.assertFalse(peri.files.exists(folder .. "/runs"))
  end
  for words, want in pairs { ["none.lua --lr 1"] = "none.lua", ["--lr 1"] = "the recipe stands first",
    ["plain.lua --lr 1"] = "plain.lua: it reads no flags", ["bad.lua --lr 1"] = "no such luck" } do
    assert(peri.files.write(folder .. "/plain.lua", "local x = 1 return x"))
    assert(peri.files.write(folder .. "/bad.lua", "error 'no such luck'"))
    local status, text = child.shell(("cd %s && %s sweep %s"):format(folder, child.program, words))
    lu.assertStrContains(text, want)
    lu.assertEquals(status, 2)
  end
end

function TestSweep.test_a_sweep_that_goes_on_keeps_its_plan()
  lu.assertEquals((run "--lr 0.1,0.5 --trials 2 --run p"), 0)
  for flags, want in pairs {
    ["--trials 5"] = "begun with another --trials", ["--lr 0.1,0.6"] = "begun with another choice of flags",
    ["--seed 2"] = "begun with another --seed", ["--metric los"] = 'unknown metric "los"; did you mean "loss"?',
  } do
    local status, text = run("--run p --resume " .. flags)
    lu.assertStrContains(text, want)
    lu.assertNotEquals(status, 0)
  end
  lu.assertEquals((run "--run p --resume --lr 0.1,0.5 --trials 2 --metric fit"), 0)
  lu.assertEquals((run "--lr 0.1 --run p"), 0)
  lu.assertEquals(peri.files.exists(folder .. "/runs/p-2/table.txt"), "file")
end

function TestSweep.test_runs_without_scores_need_a_metric_and_the_first_says_so()
  local status, text = run "--lr 0.1,0.5,0.6 --method grid --label silent --run q"
  lu.assertEquals(status, 1)
  lu.assertStrContains(text, "it stored no scores (run:scores): name a --metric of loss")
  lu.assertFalse(peri.files.exists(folder .. "/runs/q/runs/002"))
  lu.assertEquals((run "--run q --resume --metric loss --mode min"), 0)
  lu.assertEquals(rows "q"[1].flags, { label = "silent", lr = "0.6" })
end

-- ---- runs that fail ----

function TestSweep.test_what_failed_is_tried_again_by_resume_and_nothing_else_is()
  local status, text = run "--width 1,2,13 --label needs --method grid --run f"
  lu.assertEquals(status, 1)
  lu.assertStrContains(text, "no setting has a score; --resume tries those that failed again")
  lu.assertStrContains(text, "trials 1, 2: exit status 1: ") -- each reason once, below the table
  lu.assertStrContains(text, "trial 3: exit status 1: ")
  for _, row in ipairs(rows "f") do lu.assertStrContains(row.failed, row.flags.width == "13" and "no luck" or "disk is full") end
  assert(peri.files.write(folder .. "/there", ""))
  status, text = run "--run f --resume"
  lu.assertEquals(status, 0, text)
  local good = 0
  for _, row in ipairs(rows "f") do if row.score then good = good + 1 else lu.assertEquals(row.flags.width, "13") end end
  lu.assertEquals(good, 2)
  status, text = run "--run f --resume"
  lu.assertEquals(status, 0)
  lu.assertStrContains(text, "003  width=13: exit status 1") -- the one that failed again
  lu.assertNotStrContains(text, "001  width=1: ")
end

function TestSweep.test_a_metric_without_a_finite_value_is_called_that_and_a_wrong_name_ends_with_the_first_run()
  local status, text = run "--lr 0.1,0.2 --method grid --metric odd --run n"
  lu.assertEquals(status, 1)
  lu.assertEquals(rows "n"[1].failed, "no value of odd is finite")
  lu.assertStrContains(text, "no value of odd is finite")
  status, text = run "--lr 0.1,0.2,0.3 --method grid --metric lss --run m"
  lu.assertEquals(status, 1)
  lu.assertStrContains(text, 'unknown metric "lss"; did you mean "loss"?')
  lu.assertFalse(peri.files.exists(folder .. "/runs/m/runs/002"))
end

-- The number that a run leaves is its own, whatever becomes of the sweep: no other process stands before it.
function TestSweep.test_a_run_that_lost_its_sweep_is_one_process_and_is_waited_for()
  local script = [[cd %s; PERI_THREADS=1 %s sweep fit.lua --lr 0.1 --label slow --steps 40 --run o >log 2>&1 & p=$!
    until [ -s runs/o/runs/001/metrics.jsonl ] || ! kill -0 $p 2>/dev/null; do sleep 0.02; done
    kill -KILL $p; wait $p 2>/dev/null; cat runs/o/trials/001.1.pid
    for f in /proc/[0-9]*; do # quotes within the words: this shell's own command line has them not
      [ "$(readlink $f/cwd)" = "$(pwd -P)" ] || continue
      { tr '\0' ' ' <$f/cmdline | grep -qF -e 'o/runs --run 00''1 '; } 2>/dev/null && echo ${f#/proc/}
    done]]
  local _, text = child.shell(script:format(folder, child.program))
  local pid, only = text:match "^(%d+)\n(%d+)\n$"
  lu.assertEquals(only, pid, text)
  local status, said = run "--run o --resume"
  lu.assertEquals(status, 0, said)
  lu.assertStrContains(said, "001 is still running as process " .. pid)
  lu.assertEquals(#rows "o", 1)
end

-- ---- spaces ----

function TestSweep.test_values_of_a_flag_are_read_by_its_type()
  local function values(text, default) return assert(space.axis("f", text, default)).values end
  lu.assertEquals(values("1,2,3", 1), { "1", "2", "3" })
  lu.assertEquals(values("text:a,b", ""), { "a,b" })
  lu.assertEquals(values("log:1,100,3", 1.0), { "1", "10", "100" })
  lu.assertEquals(values("linear:0,1,5", 1.0), { "0", "0.25", "0.5", "0.75", "1" })
  lu.assertEquals(values("linear:1,8,3", 1), { "1", "5", "8" })
  lu.assertNil(values("log:1,100", 1.0))
end

function TestSweep.test_random_settings_lie_in_their_ranges_differ_and_are_a_seed_s()
  local axes = { space.axis("a", "log:1e-4,1e-2", 1.0), space.axis("b", "16,32,64", 1), space.axis("c", "linear:2,9", 1) }
  local list = space.random(axes, 200, peri.rng(3))
  lu.assertEquals(list, space.random(axes, 200, peri.rng(3)))
  local seen, below = {}, 0
  for _, s in ipairs(list) do
    local a, c = tonumber(s[1]), math.tointeger(tonumber(s[3]))
    lu.assertTrue(a >= 1e-4 and a <= 1e-2 and c >= 2 and c <= 9)
    if a < 1e-3 then below = below + 1 end
    seen[table.concat(s, " ")] = true
  end
  local n = 0
  for _ in pairs(seen) do n = n + 1 end
  lu.assertEquals(n, 200)
  lu.assertTrue(below > 70 and below < 130, "half of a log range lies below its middle: " .. below)
  lu.assertEquals(#space.random({ (space.axis("b", "1,2", 1)) }, 50, peri.rng(1)), 2)
  lu.assertEquals(#space.grid { space.axis("b", "1,2", 1), space.axis("c", "x,y,z", "") }, 6)
end

os.exit(lu.LuaUnit.run())
