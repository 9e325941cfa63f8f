-- perilune compare: two runs or two groups of seeds side by side, as text, JSON and curves.
local lu = require "luaunit"
local peri = require "perilune"
local child = require "child"
local scratch = require "scratch"
local recipe = peri.recipe

TestCompare = {}

local root
scratch.each(TestCompare, function (folder) root = folder end)

-- A run with scores by name and a loss that falls from `from`.
local function make(name, flags, scores, from)
  flags.runs, flags.run = root, name
  local run = recipe.start { name = name, flags = flags, total = 3, console = false, columns = { "loss" } }
  for step in run:steps() do run:log(step, { loss = (from or 1) / step, other = step }) end
  for _, pair in ipairs(scores) do run:scores(pair[1], pair[2]) end
  run:finish()
  return root .. "/" .. name
end

local function compare(flags) return child.shell(("%s compare %s"):format(child.program, flags)) end
local function json(flags)
  local status, text = compare(flags .. " --json")
  lu.assertEquals(status, 0, text)
  return peri.json.decode(text)
end

function TestCompare.test_seeds_of_two_runs_are_compared_as_the_statistics_are()
  local x, y = { 480, 500, 499, 500, 320 }, { 100, 490, 200, 150, 300, 120 }
  make("a", { lr = 0.1, seed = 1, log_every = 5 }, { { "greedy", x }, { "drawn", { 1, 2, 3 } } }, 2)
  make("b", { lr = 0.2, seed = 1, log_every = 9 }, { { "greedy", y }, { "only", { 1 } } }, 1)
  local found = json(("%s/a %s/b"):format(root, root))
  lu.assertEquals(#found.scores, 1)
  local row = found.scores[1]
  local value, low, high = peri.rl.interval(x)
  lu.assertEquals(row.a, { value = value, low = low, high = high, seeds = 5 })
  value, low, high = peri.rl.interval(y)
  lu.assertEquals(row.b, { value = value, low = low, high = high, seeds = 6 })
  local chance, least, most = peri.rl.probability_of_improvement(y, x)
  lu.assertEquals({ row.name, row.chance, row.low, row.high }, { "greedy", chance, least, most })
  lu.assertEquals(found.flags, { { name = "lr", a = "0.1", b = "0.2" } })
  local names = {}
  for i, m in ipairs(found.metrics) do names[i] = { m.name, m.a.value, m.b.value } end
  lu.assertEquals(names, { { "loss", 2 / 3, 1 / 3 }, { "other", 3, 3 } })
  local _, text = compare(("%s/a %s/b"):format(root, root))
  lu.assertStrContains(text, "A is better")
  lu.assertStrContains(text, "--lr  0.1  0.2")
  lu.assertStrContains(text, "loss")
end

function TestCompare.test_runs_without_a_common_score_are_told_so()
  make("a", {}, { { "greedy", 1 } })
  make("b", {}, {})
  local status, text = compare(("%s/a %s/b"):format(root, root))
  lu.assertEquals(status, 0)
  lu.assertStrContains(text, "No score is in all runs, so neither side is called better (A: greedy; B: none). "
    .. "Name a metric of both with --metric.")
  lu.assertNotStrContains(select(2, compare(("%s/a %s/b --metric loss"):format(root, root))), "No score is in all")
end

function TestCompare.test_runs_of_a_side_are_its_seeds()
  for i = 1, 3 do
    make("a" .. i, { seed = i }, { { "s", i } }, i)
    make("b" .. i, { seed = i }, { { "s", { i + 10, i + 20 } } }, i + 3)
  end
  local sides = ("%s/a1 %s/a2 %s/a3 vs %s/b1 %s/b2 %s/b3"):format(root, root, root, root, root, root)
  local row = json(sides).scores[1]
  lu.assertEquals({ row.a.seeds, row.b.seeds, row.chance }, { 3, 6, 1 })
  row = json(sides .. " --metric loss").scores[1]
  lu.assertEquals({ row.name, row.a.seeds, row.chance }, { "loss", 3, 1 })
  lu.assertEquals(json(sides .. " --metric loss --mode min").scores[1].chance, 0)
  assert(peri.files.make_folder(root .. "/left"))
  os.execute(("cd %s && cp -r a1 a2 left"):format(root))
  lu.assertEquals(json(("%s/left %s/b1"):format(root, root)).scores[1].a.seeds, 2)
end

function TestCompare.test_tasks_stay_tasks()
  make("a", {}, { { "t", { { 1, 2 }, { 5, 6 } } } })
  make("b", {}, { { "t", { { 2, 3 }, { 4, 4 } } } })
  make("c", {}, { { "t", { 1, 2 } } })
  local row = json(("%s/a %s/b"):format(root, root)).scores[1]
  lu.assertEquals(row.chance, (peri.rl.probability_of_improvement({ { 2, 3 }, { 4, 4 } }, { { 1, 2 }, { 5, 6 } })))
  local status, text = compare(("%s/a %s/c"):format(root, root))
  lu.assertEquals(status, 1)
  lu.assertStrContains(text, "t is of 2 tasks in one and of 1 in the other")
end

function TestCompare.test_one_seed_has_no_interval_and_no_verdict()
  make("a", {}, { { "s", 1 } })
  make("b", {}, { { "s", 2 } })
  local row = json(("%s/a %s/b"):format(root, root)).scores[1]
  lu.assertEquals({ row.chance, row.low, row.a.low }, { 1 })
  local _, text = compare(("%s/a %s/b"):format(root, root))
  lu.assertStrContains(text, "one seed says nothing of this")
end

function TestCompare.test_curves_are_drawn_of_both()
  make("a", {}, {}, 4)
  make("b", {}, {}, 2)
  local status, text = compare(("%s/a %s/b --plot %s/c.svg"):format(root, root, root))
  lu.assertEquals(status, 0, text)
  lu.assertStrContains(text, "A  B")
  local svg = assert(peri.files.read(root .. "/c.svg"))
  lu.assertStrContains(svg, ">loss</text>")
  lu.assertEquals(select(2, svg:gsub('class="curve"', "")), 2)
  lu.assertNotStrContains(select(2, compare(("%s/a %s/b --no-curves"):format(root, root))), "└")
end

function TestCompare.test_what_is_wrong_is_named()
  make("a", {}, { { "s", 1 } })
  make("b", {}, { { "s", 2 } })
  for words, want in pairs {
    ["$/a"] = { 2, "expected RUN" }, ["$/a $/b $/a"] = { 2, "A1 A2 vs B1 B2" }, ["$/a vs $/b vs $/a"] = { 2, "vs stands once" },
    ["vs $/a $/b"] = { 2, "a side has no run" }, ["$/a $/none"] = { 1, "is no run folder and holds none" },
    ["$/a $/b --metric los"] = { 1, 'unknown metric "los"; did you mean "loss"?' }, ["$/a $/b --mode best"] = { 2, "best" },
  } do
    local status, text = compare((words:gsub("%$", root)))
    lu.assertStrContains(text, want[2])
    lu.assertEquals(status, want[1], words)
  end
  assert(peri.files.write(root .. "/a/scores.jsonl", "{"))
  local status, text = compare(("%s/a %s/b"):format(root, root))
  lu.assertEquals(status, 1)
  lu.assertStrContains(text, "scores.jsonl: line 1 is damaged")
end

os.exit(lu.LuaUnit.run())
