-- Every recipe of recipes/worlds and recipes/offline, cut down, is killed at random moments and resumed: it ends with the
-- same bytes.
local lu = require "luaunit"
local peri = require "perilune"
local child = require "child"
local killed = require "killed"
local scratch = require "scratch"

TestResumeWorlds = {}

local record = "--seeds 2 --timesteps 1280 --envs 2 --length 16 --steps 120 --sources 0,0.5,1 --hidden 8"
local offline = "--steps 200 --round 20 --batch 8 --hidden 8 --eval 1 --last 1"

-- Name of a file, behind it what tells several lines of one apart; flags; files to compare.
local recipes = {
  ["offline/record"] = { record, { "data.safetensors" } },
  ["offline/offline"] = { offline .. " --method iql", {} },
  ["offline/offline cql"] = { offline .. " --method cql", {} },
  ["offline/offline bc"] = { offline .. " --method bc", {} },
  ["worlds/mpc"] = { "--seeds 2 --episodes 4 --horizon 3 --population 6 --elites 2 --iterations 2 --members 2 --hidden 8 "
    .. "--updates 5 --batch 4", {} },
  ["worlds/mpc probabilistic, shooting"] = { "--probabilistic --planner shooting --episodes 4 --horizon 2 --population 6 "
    .. "--iterations 1 --hidden 8 --updates 5 --batch 4", {} },
  ["worlds/muzero"] = { "--seeds 2 --steps 160 --envs 2 --round 10 --simulations 3 --unroll 2 --n_step 2 --batch 2 "
    .. "--hidden 8", {} },
  ["worlds/dyna"] = { "--seeds 2 --steps 1000 --planning 5", {} },
  ["worlds/dyna shortcut"] = { "--seeds 2 --steps 4000 --planning 2 --maze shortcut --kappa 0.001 --interval 200", {} },
}

local function command(recipe, flags)
  return ("%s run recipes/%s.lua %s >>%%s/log 2>&1"):format(child.program, recipe, flags)
end

for name, entry in pairs(recipes) do
  TestResumeWorlds["test_" .. name:gsub("%W+", "_")] = function ()
    local recipe, flags, folder = name:match "^%S+", entry[1], nil
    if recipe == "offline/offline" then -- it learns from what the other one recorded
      folder = scratch.folder()
      local line = command("offline/record", ("%s --runs %s --run data"):format(record, folder)):format(folder)
      lu.assertTrue(os.execute(line) == true, peri.files.read(folder .. "/log"))
      flags = ("%s --data %s/data/data.safetensors"):format(flags, folder)
    end
    killed.assert_same(("recipes/%s.lua"):format(recipe), flags .. " --save_every 1",
      { "metrics.jsonl", table.unpack(entry[2]) }, 3)
    if folder then peri.files.remove_tree(folder) end
  end
end

function TestResumeWorlds.test_no_recipe_is_left_out()
  for _, room in ipairs { "worlds", "offline" } do
    local names = {}
    for name in pairs(recipes) do
      local within = name:match("^" .. room .. "/(.*)")
      if within then names[within] = true end
    end
    killed.assert_all_named(room, names)
  end
end

os.exit(lu.LuaUnit.run())
