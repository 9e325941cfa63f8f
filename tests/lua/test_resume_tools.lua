-- The recipes of tools/, cut down, are killed in the middle and resumed: the same bytes in the curves and the model.
local lu = require "luaunit"
local killed = require "killed"

TestResumeTools = {}

local recipes = {
  -- which weights a batch gets is a matter of time, unless the order is fixed
  async = { "--pretrain 60 --updates 8 --prompts 8 --group 8 --width 32 --held_out 4 --timed 0 --order fixed "
    .. "--max_staleness 2 --samplers 2 --save_every 1", { "metrics.jsonl", "model/model.safetensors", "schedule.json" } },
  text_game = { "--pretrain 20 --updates 6 --prompts 4 --group 4 --width 32 --turns 6 --eval_every 2 --save_every 1",
    { "metrics.jsonl", "model/model.safetensors" } },
  tool_use = { "--pretrain 3 --updates 6 --prompts 4 --group 4 --width 32 --held_out 4 --eval_every 2 --save_every 1",
    { "metrics.jsonl", "model/model.safetensors" } },
}

for name, one in pairs(recipes) do
  TestResumeTools["test_" .. name] = function ()
    killed.assert_same(("recipes/tools/%s.lua"):format(name), one[1], one[2], 2)
  end
end

function TestResumeTools.test_no_recipe_is_left_out() killed.assert_all_named("tools", recipes) end

os.exit(lu.LuaUnit.run())
