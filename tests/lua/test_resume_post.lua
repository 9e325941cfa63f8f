-- Every recipe of post-training, cut down, is killed at random moments and resumed: it ends with the same bytes. And no
-- recipe is left out of the tests that do so.
local lu = require "luaunit"
local peri = require "perilune"
local killed = require "killed"

TestResumePost = {}

-- Name of a file, behind it what tells several lines of one apart; flags; files to compare beside metrics.jsonl.
local COUNTDOWN = "--updates 8 --pretrain 4 --prompts 4 --group 4 --samples 4 --held_out 6 --eval_every 3 --longest 20 "
local recipes = {
  ["r1_zero_countdown"] = { COUNTDOWN, { "samples.jsonl", "model/model.safetensors" } },
  ["r1_zero_countdown text"] = { COUNTDOWN .. "--method text", { "model/model.safetensors" } },
}

for name, entry in pairs(recipes) do
  TestResumePost["test_" .. name:gsub("%W+", "_")] = function ()
    local path = ("recipes/%s.lua"):format(name:match "^%S+")
    killed.assert_same(path, entry[1] .. " --save_every 1", { "metrics.jsonl", table.unpack(entry[2]) }, 3)
  end
end

function TestResumePost.test_every_recipe_is_killed_and_resumed_in_one_of_the_tests()
  local tested, missing = {}, {}
  for name in pairs(recipes) do tested[name:match "^%S+"] = true end
  for _, file in ipairs(assert(peri.files.list "tests/lua")) do
    local text = file:find "^test_resume" and assert(peri.files.read("tests/lua/" .. file)) or ""
    for name in text:gmatch 'assert_same%("recipes/([%w_]+)%.lua"' do tested[name] = true end
  end
  for _, file in ipairs(assert(peri.files.list "recipes")) do
    local name = file:match "^(.*)%.lua$"
    if name and not tested[name] then missing[#missing + 1] = name end
  end
  lu.assertEquals(missing, {}) -- test_resume_classic looks after recipes/classic
end

os.exit(lu.LuaUnit.run())
