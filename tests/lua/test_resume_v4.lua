-- The recipes of recipes/v4, cut down, are killed at random moments and resumed: the same bytes in the curves and in what
-- their stages left.
local lu = require "luaunit"
local killed = require "killed"

TestResumeV4 = {}

-- The base is as good as it must be for some answers of the specialists to be right.
local recipes = {
  opd = { "--batches 300 --width 64 --nmax 2 --cold 12 --updates 2 --prompts 3 --merge 2 --batch 16 --traces 96 --held_out 4",
    { "english", "student", "sampled", "verified", "mixed", "average" }, 3 },
  self_vote = { "--batches 60 --weak 51 --width 32 --nmax 2 --updates 4 --prompts 2 --labelled 4 --held_out 6 --every 2",
    { "vote", "fixed", "true", "weak_vote" }, 2 },
  grm = { "--batches 250 --width 64 --nmax 2 --graded 64 --judging 2 --updates 2 --prompts 2 --held_out 10",
    { "scalar", "grm", "by_truth", "by_scalar", "by_grm" }, 3 },
}

function TestResumeV4.test_all()
  killed.assert_all_named("v4", recipes)
  for name, entry in pairs(recipes) do
    killed.assert_same(("recipes/v4/%s.lua"):format(name), entry[1] .. " --save_every 1",
      killed.of_stages(table.unpack(entry[2])), entry[3])
  end
end

os.exit(lu.LuaUnit.run())
