-- What each seed of a run scored: run:scores and scores.jsonl.
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"
local recipe = peri.recipe
local scores = require "perilune.run.scores"

TestScores = {}

local root
scratch.each(TestScores, function (folder) root = folder end)

local function start() return recipe.start { name = "demo", flags = { runs = root }, total = 1, console = false } end

function TestScores.test_scores_are_stored_by_name_in_the_order_of_the_first_call()
  local run = start()
  for _ = 1, 2 do
    lu.assertEquals(run:scores("greedy", { 1, 2.5, 0.1 }), "IQM 1.200 [0.100, 2.500] over 3 seeds")
    run:scores("drawn", peri.tensor({ 3, 4 }, "f64"))
  end
  lu.assertEquals(run:scores("one", 7, 0), "IQM 7 over 1 seed")
  run:scores("tasks", { { 1, 2 }, { 3, 4 } })
  run:scores("greedy", { 9 })
  local list = assert(scores.read(run.folder))
  local names, values = {}, {}
  for i, row in ipairs(list) do names[i], values[i] = row.name, row.scores end
  lu.assertEquals(names, { "greedy", "drawn", "one", "tasks" })
  lu.assertEquals(peri.json.encode(values), "[[9],[3.0,4.0],[7],[[1,2],[3,4]]]")
  run:finish()
  lu.assertErrorMsgContains("the run is closed", run.scores, run, "greedy", { 1 })
end

function TestScores.test_what_is_no_list_of_finite_numbers_is_named_and_nothing_is_written()
  local run = start()
  for want, list in pairs {
    ["the scores x: expected a number for each seed"] = {},
    ["number 2 of the scores x is nan"] = { 1, 0 / 0 },
    ["number 1 of the scores x of task 2 is inf"] = { { 1 }, { math.huge } },
    ['number 1 of the scores x is "1"'] = { "1" },
    ["scores x of task 2"] = { { 1 }, 2 },
  } do
    lu.assertErrorMsgContains(want, run.scores, run, "x", list)
  end
  lu.assertErrorMsgContains("cannot name scores", run.scores, run, "a\nb", { 1 })
  lu.assertErrorMsgContains("name", run.scores, run, nil, { 1 })
  lu.assertEquals(scores.read(run.folder), {})
  run:finish()
end

function TestScores.test_a_damaged_file_is_an_error_that_names_the_line()
  local run = start()
  run:scores("a", { 1 })
  for _, line in ipairs { "{", "[]", '{"name":"b"}', '{"name":"b","scores":[]}', '{"name":"b","scores":["x"]}' } do
    local text = '{"name":"a","step":0,"scores":[1]}\n' .. line .. "\n"
    assert(peri.files.write(run.folder .. "/scores.jsonl", text))
    local list, message = scores.read(run.folder)
    lu.assertNil(list)
    lu.assertStrContains(message, "scores.jsonl: line 2 is damaged")
  end
  run:finish()
end

os.exit(lu.LuaUnit.run())
