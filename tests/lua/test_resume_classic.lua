-- Every recipe of recipes/classic, cut down, is killed at random moments and resumed: it ends with the same bytes.
local lu = require "luaunit"
local peri = require "perilune"
local child = require "child"
local killed = require "killed"
local scratch = require "scratch"

TestResumeClassic = {}

-- Name of a file, behind it what tells several lines of one apart; flags; files to compare.
local recipes = {
  ["sac"] = { "--steps 160 --round 8 --starts 40 --batch 8 --buffer 250 --hidden 8 --seeds 2 --episodes 1 --last 1 "
    .. "--eval_every 5", { "policy.safetensors" } },
  ["sac fixed temperature"] = { "--steps 240 --round 12 --starts 40 --batch 8 --buffer 150 --hidden 8 --episodes 1 --last 1 "
    .. "--critics 1 --alpha 0.2 --eval_every 5", { "policy.safetensors" } },
  ["sac_discrete"] = { "--steps 240 --round 12 --starts 40 --batch 8 --buffer 400 --hidden 8 --seeds 2 --episodes 1 --last 1 "
    .. "--eval_every 5", { "policy.safetensors" } },
  ["td3"] = { "--steps 240 --round 12 --starts 40 --batch 8 --buffer 400 --hidden 8 --hidden2 8 --seeds 2 --episodes 1 "
    .. "--last 1 --eval_every 5", { "policy.safetensors" } },
  ["ppo"] = { "--timesteps 1280 --envs 2 --steps 16 --seeds 2 --hidden 8 --eval 2", { "policy.safetensors" } },
  ["ppo masked, one trunk"] = { "--env Taxi-v4 --timesteps 640 --envs 2 --steps 16 --shared --hidden 8 --eval 1 "
    .. "--anneal_clip --target_kl 0.01", { "policy.safetensors" } },
  ["ppo_continuous"] = { "--timesteps 1280 --envs 2 --steps 16 --seeds 2 --hidden 8 --eval 2 --minibatches 2 --epochs 2",
    { "policy.safetensors" } },
  ["ppo_continuous scaled"] = { "--env MountainCarContinuous-v0 --normalize_obs --normalize_reward --timesteps 640 --envs 2 "
    .. "--steps 16 --hidden 8 --eval 1 --minibatches 2 --epochs 2", { "policy.safetensors" } },
  ["ppo_pixels"] = { "--timesteps 640 --envs 4 --steps 8 --channels 2 --width 8 --eval 1 --minibatches 2",
    { "policy.safetensors" } },
  ["ppo_recurrent"] = { "--timesteps 640 --envs 4 --steps 8 --hidden 8 --eval 2 --minibatches 2", { "policy.safetensors" } },
  ["a2c"] = { "--timesteps 80 --envs 2 --seeds 2 --hidden 8 --eval 2 --log_updates 1", { "policy.safetensors" } },
  ["reinforce"] = { "--updates 12 --episodes 4 --seeds 2 --hidden 8 --eval_every 4 --eval 2", { "policy.safetensors" } },
  ["trpo"] = { "--timesteps 1536 --steps 64 --seeds 2 --critic_epochs 2 --hidden 8 --eval 2", { "policy.safetensors" } },
  ["distributed_ppo"] = { "--timesteps 1280 --envs 2 --steps 16 --hidden 8 --eval_every 5 --eval 2",
    { "policy.safetensors" } },
  ["ppo_recurrent gru"] = { "--memory gru --timesteps 640 --envs 4 --steps 8 --hidden 8 --eval 2 --minibatches 2", {} },
  ["q_learning"] = { "--seeds 2 --steps 20000 --interval 1000", { "policy.safetensors" } },
  ["q_learning double"] = { "--rule double --env Taxi-v4 --seeds 1 --steps 20000 --interval 1000", {} },
  ["dqn"] = { "--seeds 2 --steps 1600 --train_every 64 --gradient_steps 4 --starts 100 --hidden 16 --eval 2 "
    .. "--eval_every 4 --buffer 3000", { "policy.safetensors" } }, -- a buffer that is never full
  ["dqn with everything"] = { "--prioritised --noisy --dueling --double --n_step 3 --copies 2 --adapt 0.9 --steps 1600 "
    .. "--train_every 64 --gradient_steps 4 --starts 100 --hidden 16 --eval 2 --eval_every 4 --buffer 500", {} },
  ["rainbow"] = { "--envs 2 --steps 2000 --every 50 --starts 100 --train_every 8 --hidden 16 --eval 2 --buffer 600",
    { "policy.safetensors" } },
}

for name, entry in pairs(recipes) do
  TestResumeClassic["test_" .. name:gsub("%W+", "_")] = function ()
    local files = { "metrics.jsonl", table.unpack(entry[2]) }
    killed.assert_same(("recipes/classic/%s.lua"):format(name:match "^%S+"),
      entry[1] .. (name:find "^ppo" and " --log_updates 1" or "") .. " --save_every 1", files, 3)
  end
end

-- What a run of it becomes depends on which worker was faster.
local races = { a3c = true }

function TestResumeClassic.test_every_recipe_of_workers_that_race_says_so_and_goes_on_from_its_checkpoint()
  for name in pairs(races) do
    local text = assert(peri.files.read(("recipes/classic/%s.lua"):format(name)))
    lu.assertStrContains(text, "not byte-equal")
    local folder = scratch.folder()
    local command = ("%s run recipes/classic/%s.lua --hidden 8 --eval 2 --every 400 --save_every 1 --runs %s --run r "
      .. "%%s >>%s/log 2>&1"):format(child.program, name, folder, folder)
    lu.assertTrue(os.execute(command:format "--timesteps 1200") == true, peri.files.read(folder .. "/log"))
    lu.assertTrue(os.execute(command:format "--timesteps 2000 --resume") == true, peri.files.read(folder .. "/log"))
    local steps = {}
    for line in assert(peri.files.read(folder .. "/r/metrics.jsonl")):gmatch "[^\n]+" do
      steps[#steps + 1] = peri.json.decode(line).step
    end
    lu.assertEquals(steps, { 1, 2, 3, 4, 5 })
    peri.files.remove_tree(folder)
  end
end

function TestResumeClassic.test_no_recipe_is_left_out()
  local names = {}
  for _, list in ipairs { recipes, races } do
    for name in pairs(list) do names[name] = true end
  end
  killed.assert_all_named("classic", names)
end

os.exit(lu.LuaUnit.run())
