-- Every recipe of recipes/nets, cut down, is killed at random moments and resumed: it ends with the same bytes.
local lu = require "luaunit"
local killed = require "killed"

TestResumeNets = {}

local digits = "--train 300 --width 2 --blocks 1 --epochs 8 "

-- Name of a file, behind it what tells several lines of one apart; flags; files to compare.
local recipes = {
  ["digits_resnet"] = { digits .. "--dropout 0.3", { "gradients.svg" } },
  ["digits_resnet by validation, measured scales"] = { digits .. "--decay plateau --init lsuv --no-norm --lr 0.01",
    {} },
  ["char_lstm"] = { "--characters 30000 --hidden 16 --embed 4 --length 16 --batch 8 --steps 40 --dropout 0.2 "
    .. "--eval 1000 --eval_every 10 --order 3 --sample 20", { "samples.jsonl" } },
  ["char_lstm gru of two layers"] = { "--characters 30000 --cell gru --layers 2 --hidden 8 --embed 4 --length 200 "
    .. "--batch 8 --steps 30 --eval 1000 --eval_every 10 --order 2 --sample 0", {} }, -- the text is read more than once
  ["seq2seq"] = { "--longest 4 --steps 30 --batch 8 --dim 8 --heads 2 --dropout 0.1 --eval 10 --eval_every 10", {} },
  ["optimizers"] = { "--train 200 --batches 50,100 --factors 0.3,1 --seeds 2 --epochs 2 --hidden 8",
    { "updates.svg" } },
}

for name, entry in pairs(recipes) do
  TestResumeNets["test_" .. name:gsub("%W+", "_")] = function ()
    killed.assert_same(("recipes/nets/%s.lua"):format(name:match "^%S+"), entry[1] .. " --save_every 1",
      { "metrics.jsonl", table.unpack(entry[2]) }, 3)
  end
end

function TestResumeNets.test_no_recipe_is_left_out() killed.assert_all_named("nets", recipes) end

os.exit(lu.LuaUnit.run())
