-- The recipes of preferences and reward models, cut down, are killed at random moments and resumed: the same bytes.
local lu = require "luaunit"
local killed = require "killed"

TestResumePreferences = {}

function TestResumePreferences.test_dpo()
  killed.assert_same("recipes/dpo.lua", "--pretraining 5 --width 16 --pairs 40 --updates 10 --batch 8 --samples 4 "
    .. "--save_every 1", { "metrics.jsonl", "samples.jsonl" }, 3)
end

function TestResumePreferences.test_prm()
  killed.assert_same("recipes/prm.lua", "--pretraining 5 --width 16 --answers 40 --updates 10 --batch 8 --problems 4 "
    .. "--n 4 --save_every 1", { "metrics.jsonl", "samples.jsonl" }, 3)
end

os.exit(lu.LuaUnit.run())
