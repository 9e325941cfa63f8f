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
  ["distill_features"] = { "--train 60 --few 20 --teacher 3 --student 2 --epochs 2 --batch 20 --seeds 1",
    { "scores.jsonl" } },
  ["cross_modal"] = { "--labelled 40 --pairs 1700 --dim 16 --updates 4 --batch 4 --eval_every 1", { "scores.jsonl" } },
  ["distilbert"] = { "--layers 2 --width 16 --base_steps 3 --steps 6 --batch 2 --length 8 --held_out 4 --eval_every 1",
    { "scores.jsonl", "student/model.safetensors" } },
  ["gkd"] = { "--layers 1 --width 32 --batches 12 --little 12 --updates 4 --rows 4 --round 3 --samples 8 --held_out 10",
    { "models/gkd/model.safetensors", "models/stored/model.safetensors", "models/stored/scores.json" } },
}

for name, entry in pairs(recipes) do
  TestResumeDistillation["test_" .. name:gsub("%W+", "_")] = function ()
    killed.assert_same(("recipes/distillation/%s.lua"):format(name:match "^%S+"), entry[1] .. " --save_every 1",
      { "metrics.jsonl", table.unpack(entry[2]) }, 2)
  end
end

function TestResumeDistillation.test_no_recipe_is_left_out() killed.assert_all_named("distillation", recipes) end

os.exit(lu.LuaUnit.run())
