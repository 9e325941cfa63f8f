-- Where the time of a run goes: marks of the library, and --profile of a recipe.
local lu = require "luaunit"
local peri = require "perilune"
local child = require "child"
local phases = require "perilune.phases"
local scratch = require "scratch"

TestPhases = {}

local function busy() return peri.randn { 64, 64 }:matmul(peri.randn { 64, 64 }) end

local function by_name(rows)
  local out = {}
  for _, row in ipairs(rows) do out[row.name] = row end
  return out
end

function TestPhases.test_nothing_is_measured_that_nobody_asked_for()
  lu.assertNil(phases.open "rollout")
  local x = peri.tensor({ 1 }, "f32"):requires_grad_()
  x:mul(2):sum():backward()
  lu.assertEquals(x.grad:item(), 2)
end

function TestPhases.test_the_outermost_mark_counts_and_all_adds_up()
  phases.start()
  for _ = 1, 3 do
    local outer <close> = phases.open "evaluate" -- luacheck: ignore 211
    local inner <close> = phases.open "rollout"
    lu.assertNil(inner)
    busy()
  end
  local w = peri.randn { 8, 8 }:requires_grad_()
  for _ = 1, 2 do w:matmul(w):sum():backward() end
  do
    local own <close> = phases.open "between" -- luacheck: ignore 211
    busy()
  end
  local rows, all = phases.stop()
  local names, share, seconds = {}, 0, 0
  for i, row in ipairs(rows) do
    names[i], share, seconds = row.name, share + row.share, seconds + row.seconds
    lu.assertTrue(row.seconds >= 0)
  end
  lu.assertEquals(names, { "backward", "evaluate", "between", "other" })
  lu.assertAlmostEquals(share, 1, 1e-9)
  lu.assertAlmostEquals(seconds, all, 1e-9)
  lu.assertEquals(by_name(rows).evaluate.calls, 3)
  lu.assertEquals(by_name(rows).backward.calls, 2)
end

function TestPhases.test_an_error_ends_a_phase()
  phases.start()
  pcall(function ()
    local phase <close> = phases.open "score" -- luacheck: ignore 211
    error "no"
  end)
  lu.assertNotNil(phases.open "rollout")
  phases.stop()
  lu.assertNil(phases.open "rollout")
end

-- A wrapped backward says what the plain one says, at the same place.
function TestPhases.test_errors_of_backward_are_the_same()
  local function wrong() peri.tensor { 1, 2 }:backward() end
  local _, plain = pcall(wrong)
  phases.start()
  local _, wrapped = pcall(wrong)
  phases.stop()
  lu.assertEquals(wrapped, plain)
  local _, after = pcall(wrong)
  lu.assertEquals(after, plain)
end

function TestPhases.test_a_recipe_says_where_its_time_went_and_changes_no_byte()
  local folder = scratch.folder()
  local command = "%s run recipes/r1_zero.lua --updates 2 --terms 1 --prompts 8 --group 8 --runs %s --run %s %s >%s/%s.txt 2>&1"
  for run, flag in pairs { plain = "", timed = "--profile" } do
    lu.assertTrue(os.execute(command:format(child.program, folder, run, flag, folder, run)) == true)
  end
  local text = assert(peri.files.read(folder .. "/timed.txt"))
  for _, name in ipairs { "rollout", "score", "forward", "backward", "optimizer", "other", "all" } do
    lu.assertStrMatches(text, ".*\n" .. name .. " +[%d ]+%.%d.*")
  end
  lu.assertNotStrContains(assert(peri.files.read(folder .. "/plain.txt")), "backward")
  for _, file in ipairs { "metrics.jsonl", "samples.jsonl", "model/model.safetensors" } do
    lu.assertEquals(peri.files.read(folder .. "/timed/" .. file), peri.files.read(folder .. "/plain/" .. file), file)
  end
  peri.files.remove_tree(folder)
end

os.exit(lu.LuaUnit.run())
