-- Every recipe of recipes/agents, cut down, is killed at random moments and resumed: it ends with the same bytes.
local lu = require "luaunit"
local killed = require "killed"

TestResumeAgents = {}

-- Name of a file, behind it what tells several lines of one apart; flags; files to compare.
local recipes = {
  ["self_play"] = { "--seeds 2 --updates 12 --games 8 --tables 2 --steps 8 --hidden 8 --every 3 --capacity 3 "
    .. "--choose hard --duels 2 --log_every 4", { "policy.safetensors" } },
  ["self_play connect four"] = { "--env ConnectFour-v0 --rows 4 --columns 4 --updates 12 --games 4 --tables 1 --steps 8 "
    .. "--hidden 8 --every 4 --duels 2 --log_every 6", { "policy.safetensors" } },
  ["cooperation"] = { "--seeds 2 --updates 12 --fields 2 --steps 6 --agents 3 --hidden 8 --eval 1 --log_every 4", {} },
  ["cooperation difference"] = { "--credit difference --critic shared --updates 12 --fields 2 --steps 6 --agents 3 "
    .. "--hidden 8 --eval 1 --log_every 4", {} },
  ["cooperation counterfactual"] = { "--credit counterfactual --seeds 2 --updates 12 --fields 2 --steps 6 --agents 3 "
    .. "--hidden 8 --eval 1 --log_every 4", {} },
}

for name, entry in pairs(recipes) do
  TestResumeAgents["test_" .. name:gsub("%W+", "_")] = function ()
    killed.assert_same(("recipes/agents/%s.lua"):format(name:match "^%S+"), entry[1] .. " --save_every 1",
      { "metrics.jsonl", table.unpack(entry[2]) }, 3)
  end
end

function TestResumeAgents.test_no_recipe_is_left_out() killed.assert_all_named("agents", recipes) end

os.exit(lu.LuaUnit.run())
