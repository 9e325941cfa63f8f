-- Every recipe of recipes/continual, cut down, is killed at random moments and resumed: it ends with the same bytes.
local lu = require "luaunit"
local killed = require "killed"

TestResumeContinual = {}

-- Name of a file, behind it what tells several lines of one apart; flags.
local recipes = {
  ["adversarial"] = "--train 60 --batch 20 --epochs 6 --width 2 --steps 2 --attack 2 --replays 2",
  ["adversarial_text"] = "--updates 8 --batch 4 --texts 40 --dim 4 --hidden 4 --every 1",
  ["continual"] = "--train 60 --batch 20 --epochs 3 --width 8 --memory 5 --rank 2",
  ["offline_completions"] = "--updates 6 --batch 8 --problems 40 --pretrain 60 --width 16",
  ["maml_language"] = "--updates 6 --tasks 1 --letters 30 --hidden 8 --tests 2 --log_every 1",
}

for name, flags in pairs(recipes) do
  TestResumeContinual["test_" .. name:gsub("%W+", "_")] = function ()
    killed.assert_same(("recipes/continual/%s.lua"):format(name:match "^%S+"), flags .. " --save_every 1",
      { "metrics.jsonl", "scores.jsonl" }, 2)
  end
end

function TestResumeContinual.test_no_recipe_is_left_out() killed.assert_all_named("continual", recipes) end

os.exit(lu.LuaUnit.run())
