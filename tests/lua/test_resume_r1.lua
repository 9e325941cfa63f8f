-- The recipes of several stages, cut down, are killed in the middle of any of them and resumed: the same bytes in the
-- curves, and in what the last stages left.
local lu = require "luaunit"
local killed = require "killed"

TestResumeR1 = {}

function TestResumeR1.test_r1()
  killed.assert_same("recipes/r1.lua", "--batches 51 --width 32 --updates 3 --prompts 4 --group 4 --cold 12 --samples 40 "
    .. "--save_every 1", killed.of_stages("zero", "reject", "harmless", "all", "language"), 3)
end

-- The base is as good as it must be for the teacher to have an answer that is worth a trace.
function TestResumeR1.test_distill_r1()
  killed.assert_same("recipes/distill_r1.lua", "--nmax 2 --layers 2 --width 64 --updates 2 --student 2 --after 2 "
    .. "--prompts 4 --group 4 --epochs 1 --held_out 10 --batches 250 --little 51 --rows 32 --samples 1200 --save_every 1",
    killed.of_stages("teacher", "sft", "rl", "sft_rl", "control", "kl"), 2)
end

os.exit(lu.LuaUnit.run())
