-- Environments that a run tracks go on after kill -9 as if nothing had been: states, generators, wrappers, statistics.
local lu = require "luaunit"
local killed = require "killed"

TestEnvResume = {}

function TestEnvResume.test_kills_change_no_byte()
  killed.assert_same("tests/lua/env_recipe.lua", "--steps 60 --save_every 4 --seed 3", { "cart.safetensors",
    "lake.safetensors", "rows.safetensors", "whole.safetensors", "metrics.jsonl" }, 3)
end

os.exit(lu.LuaUnit.run())
