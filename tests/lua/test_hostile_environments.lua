-- An environment that goes wrong ends a trainer with a line that names environment, row, step and value; what was saved
-- is whole, and with the environment mended the run goes on.
local lu = require "luaunit"
local peri = require "perilune"
local child = require "child"
local scratch = require "scratch"

TestHostile = {}

local recipes = {
  sac = { flags = "--steps 600 --round 10 --starts 40 --batch 8 --hidden 8 --eval_every 100 --last 1 --episodes 1 --env Hostile-v0",
    box = true },
  sac_discrete = { flags = "--steps 600 --round 10 --starts 40 --batch 8 --hidden 8 --eval_every 100 --last 1 --episodes 1 "
    .. "--env Hostile-v0" },
  td3 = { flags = "--steps 600 --round 10 --starts 40 --batch 8 --hidden 8 --hidden2 8 --eval_every 100 --last 1 "
    .. "--episodes 1 --env Hostile-v0", box = true },
  ppo = { flags = "--timesteps 800 --envs 2 --steps 10 --log_updates 100 --eval 1 --hidden 8 --env Hostile-v0" },
  ppo_continuous = { flags = "--timesteps 800 --envs 2 --steps 10 --minibatches 2 --log_updates 100 --eval 1 --hidden 8 "
    .. "--env Hostile-v0", box = true },
  ppo_recurrent = { flags = "--timesteps 800 --envs 2 --steps 10 --minibatches 2 --log_updates 100 --eval 1 --hidden 8 "
    .. "--columns_seen 1,2,3 --env Hostile-v0" },
}

local expected = {
  obs = { "Hostile-v0", "row ", "step ", "nan" },
  reward = { "Hostile-v0", "row ", "step ", "inf" },
  error = { "the motor is off" },
}

for name, recipe in pairs(recipes) do
  for how, words in pairs(expected) do
    TestHostile[("test_%s_%s"):format(name, how)] = function ()
      local folder = scratch.folder()
      local function run(hostile, extra)
        local out = folder .. "/out"
        local ok = os.execute(("%s RECIPE=%s %s HOSTILE=%s %s run tests/lua/hostile_recipe.lua %s --save_every 3 "
          .. "--runs %s --run r %s >%s 2>&1"):format("env", name, recipe.box and "BOX=1" or "", hostile, child.program,
          recipe.flags, folder, extra, out))
        return ok == true, assert(peri.files.read(out))
      end
      local ok, text = run(how, "")
      lu.assertFalse(ok)
      for _, word in ipairs(words) do lu.assertStrContains(text:lower(), word:lower()) end
      lu.assertStrContains(text, "the last checkpoint is of step ")
      ok, text = run("", "--resume")
      lu.assertTrue(ok, text)
      lu.assertNotNil(peri.files.exists(folder .. "/r/policy.safetensors"))
      peri.files.remove_tree(folder)
    end
  end
end

os.exit(lu.LuaUnit.run())
