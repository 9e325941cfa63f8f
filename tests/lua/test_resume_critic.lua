-- A critic on a published model: a module that holds a policy with an adapter and a critic, two groups of one
-- optimizer, killed at random moments and resumed, ends with the same bytes as one left alone; and it learns.
local lu = require "luaunit"
local peri = require "perilune"
local child = require "child"
local killed = require "killed"
local scratch = require "scratch"

local RECIPE = "tests/lua/critic_recipe.lua"

TestResumeCritic = {}

function TestResumeCritic.test_four_kills_change_no_byte()
  killed.assert_same(RECIPE, "--steps 16 --save_every 2 --seed 3", { "net.safetensors", "metrics.jsonl" }, 4)
end

function TestResumeCritic.test_it_learns_and_only_what_it_should()
  local folder = scratch.folder()
  lu.assertTrue(os.execute(("%s run %s --steps 60 --seed 1 --runs %s --run r >%s/log 2>&1")
    :format(child.program, RECIPE, folder, folder)) == true, peri.files.read(folder .. "/log"))
  local history = {}
  for line in assert(peri.files.read(folder .. "/r/metrics.jsonl")):gmatch "[^\n]+" do
    history[#history + 1] = peri.json.decode(line).reward
  end
  local function mean(from, to)
    local sum = 0
    for i = from, to do sum = sum + history[i] end
    return sum / (to - from + 1)
  end
  lu.assertEquals(#history, 60)
  lu.assertTrue(mean(51, 60) > mean(1, 10) + 1, ("%g, then %g of 6"):format(mean(1, 10), mean(51, 60)))
  local state = assert(peri.safetensors.load(folder .. "/r/net.safetensors"))
  local base = require("perilune.models").load("tests/data/hf_tiny/llama"):state_dict()
  local moved = 0
  for name, t in pairs(base) do
    lu.assertEquals(state["policy." .. name]:bytes(), t:contiguous():bytes(), name) -- the adapter learns
    local same = state["critic.base." .. name]:bytes() == t:contiguous():bytes()
    lu.assertEquals(same, name:find "embed_tokens" ~= nil or name == "lm_head.weight", name) -- frozen, or of no use to it
    moved = moved + (same and 0 or 1)
  end
  lu.assertTrue(moved > 20)
  lu.assertNotNil(state["critic.value.weight"])
  lu.assertNotNil(state["lora.model.layers.0.self_attn.q_proj.lora_A.weight"])
  peri.files.remove_tree(folder)
end

os.exit(lu.LuaUnit.run())
