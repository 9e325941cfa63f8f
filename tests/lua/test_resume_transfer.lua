-- The recipes of transfer/, cut down, are killed in the middle and resumed: the same bytes in curves and weights.
local lu = require "luaunit"
local killed = require "killed"

TestResumeTransfer = {}

local cases = {
  sft_rl_joint = { "--base 5 --dim 16 --layers 1 --largest 9 --questions 20 --held_out 10 --read 20 --updates 8 "
    .. "--warm 3 --eval_every 4 --group 3 --save_every 1", { "metrics.jsonl", "model/model.safetensors",
    "model/joint.safetensors", "model/joint.json" } },
  transfer = { "--before 5 --updates 12 --every 2 --sets 2 --width 8 --log_every 1 --save_every 1",
    { "metrics.jsonl", "net.safetensors" } },
  multitask_bert = { "--updates 12 --seeds 2 --dim 16 --layers 1 --batch 4 --log_every 4 --save_every 1",
    { "metrics.jsonl", "net.safetensors" } },
  rejection_sft = { "--rounds 4 --nmax 2 --batches 250 --rows 32 --problems 32 --group 4 --prompts 8 "
    .. "--held_out 6 --save_every 1", { "metrics.jsonl", "model/model.safetensors" } },
}

function TestResumeTransfer.test_no_recipe_is_left_out() killed.assert_all_named("transfer", cases) end

for name, case in pairs(cases) do
  TestResumeTransfer["test_" .. name:gsub("%W", "_")] = function ()
    killed.assert_same(("recipes/transfer/%s.lua"):format(name:match "^%S+"), case[1], case[2], 2)
  end
end

os.exit(lu.LuaUnit.run())
