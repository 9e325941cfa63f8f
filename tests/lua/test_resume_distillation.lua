-- Every recipe of recipes/distillation, cut down, is killed at random moments and resumed: it ends with the same bytes.
local lu = require "luaunit"
local killed = require "killed"

TestResumeDistillation = {}

-- Name of a file, behind it what tells several lines of one apart; flags; files to compare.
local recipes = {
  ["distill_classifier"] = { "--rows 60 --teacher 16 --student 8 --others 4 --epochs 3 --batch 16 --seeds 1",
    { "scores.jsonl" } },
  ["distill_classifier of pictures"] = { "--images digits --rows 60 --few 20 --teacher 16 --student 8 --others '' "
    .. "--epochs 3 --batch 16 --seeds 1", { "scores.jsonl" } },
}

for name, entry in pairs(recipes) do
  TestResumeDistillation["test_" .. name:gsub("%W+", "_")] = function ()
    killed.assert_same(("recipes/distillation/%s.lua"):format(name:match "^%S+"), entry[1] .. " --save_every 1",
      { "metrics.jsonl", table.unpack(entry[2]) }, 2)
  end
end

function TestResumeDistillation.test_no_recipe_is_left_out() killed.assert_all_named("distillation", recipes) end

os.exit(lu.LuaUnit.run())
