-- Every recipe of recipes/objectives, cut down, is killed at random moments and resumed: it ends with the same bytes.
local lu = require "luaunit"
local killed = require "killed"

TestResumeObjectives = {}

-- Name of a file, behind it what tells several lines of one apart; flags; files to compare.
local recipes = {
  ["private"] = { "--seeds 2 --updates 6 --users 40 --rate 0.1 --horizon 20 --hidden 4 --eval 1 --eval_every 3",
    { "policy.safetensors" } },
  ["constrained_ppo"] = { "--seeds 2 --updates 12 --envs 4 --steps 16 --hidden 8 --eval_every 4", {} },
  ["constrained_ppo group"] = { "--seeds 2 --updates 12 --envs 4 --steps 16 --hidden 8 --price lagrange --advantage group",
    {} },
  ["pareto"] = { "--seeds 2 --updates 10 --envs 4 --steps 16 --hidden 8 --points 3 --eval_every 4", {} },
  ["her"] = { "--bits 4 --seeds 2 --rounds 16 --envs 2 --gradient_steps 2 --batch 8 --buffer 30 --hidden 8 --eval 4", {} },
  ["ars"] = { "--seeds 2 --updates 12 --directions 3 --top 2 --eval_every 5 --eval 2", { "policy.safetensors" } },
}

for name, entry in pairs(recipes) do
  TestResumeObjectives["test_" .. name:gsub("%W+", "_")] = function ()
    local files = { "metrics.jsonl", table.unpack(entry[2]) }
    killed.assert_same(("recipes/objectives/%s.lua"):format(name:match "^%S+"), entry[1] .. " --save_every 1", files, 2)
  end
end

function TestResumeObjectives.test_no_recipe_is_left_out() killed.assert_all_named("objectives", recipes) end

os.exit(lu.LuaUnit.run())
