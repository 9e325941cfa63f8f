-- Every recipe of recipes/rewards, cut down, is killed at random moments and resumed: it ends with the same bytes.
local lu = require "luaunit"
local killed = require "killed"

TestResumeRewards = {}

-- Name of a file, behind it what tells several lines of one apart; flags.
local small = "--seeds 2 --envs 2 --log_updates 1 "
local recipes = {
  ["adaptive_reward"] = small .. "--timesteps 1600 --hidden 8 --pairs 60 --rounds 5 --fit 3 --eval 2 --candidates 2",
  ["adaptive_reward fixed"] = small .. "--timesteps 1600 --hidden 8 --reward fixed --pairs 20 --fit 3 --eval 2",
  ["adaptive_reward true"] = small .. "--timesteps 1600 --hidden 8 --reward true --eval 2",
  ["preference_reward"] = "--seeds 2 --envs 2 --rounds 4 --updates 6 --pairs 8 --fit 3 --steps 32 --epochs 2 --minibatches 2 "
    .. "--eval 2 --noise 0.1 --error 0.1",
  ["exploration"] = small .. "--size 4 --timesteps 400 --hidden 8",
  ["exploration rnd"] = small .. "--size 4 --timesteps 400 --hidden 8 --method rnd",
  ["exploration shaped"] = small .. "--size 4 --timesteps 400 --hidden 8 --method shaped",
  ["shaping"] = small .. "--updates 10 --steps 20 --hidden 8 --pairs 3",
  ["shaping value"] = small .. "--updates 6 --stage 4 --steps 20 --hidden 8 --potential value",
}

for name, flags in pairs(recipes) do
  TestResumeRewards["test_" .. name:gsub("%W+", "_")] = function ()
    killed.assert_same(("recipes/rewards/%s.lua"):format(name:match "^%S+"), flags .. " --save_every 1",
      { "metrics.jsonl" }, 3)
  end
end

function TestResumeRewards.test_no_recipe_is_left_out() killed.assert_all_named("rewards", recipes) end

os.exit(lu.LuaUnit.run())
