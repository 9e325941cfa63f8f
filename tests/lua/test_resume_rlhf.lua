-- recipes/rlhf_ppo.lua, cut down, is killed at random moments and resumed: the same bytes. Policy, critic, both optimizers
-- and the stepper of every arm go through its checkpoints.
local killed = require "killed"
local lu = require "luaunit"

TestResumeRlhf = {}

function TestResumeRlhf.test_rlhf_ppo()
  killed.assert_same("recipes/rlhf_ppo.lua", "--pairs 20 --pretraining 4 --updates 6 --eval_every 2 --save_every 1",
    { "metrics.jsonl" }, 3)
end

os.exit(lu.LuaUnit.run())
