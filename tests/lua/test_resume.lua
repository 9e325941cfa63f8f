-- A recipe killed at random moments and resumed ends with the same bytes as one left alone.
local lu = require "luaunit"
local killed = require "killed"

TestResume = {}

function TestResume.test_five_kills_change_no_byte()
  killed.assert_same("recipes/r1_zero.lua",
    "--updates 14 --terms 2 --prompts 4 --group 4 --eval_every 5 --save_every 2 --warmup 4 --seed 7",
    { "model/model.safetensors", "metrics.jsonl", "samples.jsonl" }, 5)
end

os.exit(lu.LuaUnit.run())
