-- Every recipe of recipes/meta, cut down, is killed at random moments and resumed: it ends with the same bytes.
local lu = require "luaunit"
local killed = require "killed"

TestResumeMeta = {}

-- Name of a file, behind it what tells several lines of one apart; flags.
local recipes = {
  ["maml"] = "--seeds 2 --tasks 2 --tests 2 --hidden 8 --updates 12",
  ["maml reptile"] = "--method reptile --inner 2 --seeds 1 --tasks 2 --tests 2 --hidden 8 --updates 12",
  ["maml meta_sgd"] = "--method meta_sgd --seeds 2 --tasks 2 --tests 2 --hidden 8 --updates 12",
  ["maml_policy"] = "--seeds 2 --goals 2 --episodes 3 --horizon 4 --tests 2 --hidden 8 --updates 12",
  ["multi_task"] = "--batch 4 --dim 8 --layers 1 --updates 12",
  ["multi_task with everything"] = "--weighting gradnorm --surgery --seeds 2 --batch 4 --dim 8 --layers 1 --updates 12",
  ["hierarchical"] = "--seeds 2 --envs 2 --steps 8 --timesteps 192 --limit 12 --patience 4 --eval 1",
  ["hierarchical flat"] = "--method flat --seeds 2 --envs 2 --steps 8 --timesteps 192 --limit 12 --eval 1",
}

for name, flags in pairs(recipes) do
  TestResumeMeta["test_" .. name:gsub("%W+", "_")] = function ()
    killed.assert_same(("recipes/meta/%s.lua"):format(name:match "^%S+"), flags .. " --log_every 1 --save_every 1",
      { "metrics.jsonl", "net.safetensors" }, 2)
  end
end

function TestResumeMeta.test_no_recipe_is_left_out() killed.assert_all_named("meta", recipes) end

os.exit(lu.LuaUnit.run())
