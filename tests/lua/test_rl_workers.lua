-- Workers of a learner (rl.crew): answers by number, not by arrival; failures told with their own message; and the
-- recipes that are made of them: the same numbers whoever was faster, and a run that outlives an environment's error.
local lu = require "luaunit"
local peri = require "perilune"
local child = require "child"
local scratch = require "scratch"

local rl = peri.rl

TestCrew = {}

function TestCrew.test_answers_are_in_the_order_of_the_workers_whoever_comes_first()
  local crew <close> = rl.crew({ n = 3, run = function (i, orders, answers)
    for _, order in orders:each() do
      require("perilune").channel(1):receive(0.02 * (4 - i)) -- the last one is first
      answers:send { i, order[1] * i }
    end
  end })
  for k = 1, 3 do
    crew:send(k)
    lu.assertEquals(crew:gather(), { k, 2 * k, 3 * k })
  end
end

function TestCrew.test_a_worker_that_fails_is_told_by_number_also_while_others_answer()
  local crew <close> = rl.crew({ n = 2, run = function (i, _, answers)
    if i == 2 then error "the cart fell off" end
    while answers:send { i, 0 } do end
  end })
  local ok, why = pcall(function () while true do crew:receive() end end)
  lu.assertFalse(ok)
  lu.assertStrContains(why, "worker 2 of 2 failed")
  lu.assertStrContains(why, "the cart fell off")
  for _, worker in ipairs(crew.workers) do lu.assertNotEquals(worker:status(), "running") end
end

function TestCrew.test_workers_that_ended_without_an_answer_end_the_wait()
  local crew <close> = rl.crew({ n = 2, run = function () end })
  lu.assertErrorMsgContains("every worker has ended", crew.receive, crew)
end

function TestCrew.test_places_go_through_a_state_to_the_next_order()
  local function run(i, orders, answers)
    local p = require "perilune"
    local env = p.env.make("CartPole-v1", { n = 2, seed = i })
    env:reset()
    for _, order in orders:each() do
      p.rl.take_place(env, order[2])
      for _ = 1, order[1] do env:step(p.randint(0, 2, { 2 })) end
      answers:send { i, env.obs:clone(), p.rl.place(env) }
    end
  end
  local function rows(list) return list[1]:bytes() .. list[2]:bytes() end
  peri.seed(3)
  local whole <close> = rl.crew({ n = 2, run = run })
  whole:send(40)
  whole:gather()
  local tensors, plain = whole:state_dict()
  whole:send(25)
  local after = rows(whole:gather())
  peri.seed(4)
  local resumed <close> = rl.crew({ n = 2, run = run })
  resumed:load_state_dict(tensors, plain)
  resumed:send(25)
  lu.assertEquals(rows(resumed:gather()), after)
  local three <close> = rl.crew({ n = 3, run = run })
  lu.assertErrorMsgContains("of 2 workers, expected 3", three.load_state_dict, three, tensors, plain)
end

-- ---- recipes ----

local function recipe(name, flags, folder)
  local command = ("%s run recipes/classic/%s.lua %s --runs %s --run r >>%s/log 2>&1")
    :format(child.program, name, flags, folder, folder)
  return os.execute(command) == true, peri.files.read(folder .. "/log")
end

TestWorkerRecipes = {}

function TestWorkerRecipes.test_distributed_ppo_does_not_depend_on_who_was_faster()
  local bytes = {}
  for k = 1, 2 do
    local folder = scratch.folder()
    local ok, log = recipe("distributed_ppo", "--workers 3 --timesteps 960 --envs 2 --steps 16 --hidden 8 --eval 2", folder)
    lu.assertTrue(ok, log)
    bytes[k] = peri.files.read(folder .. "/r/policy.safetensors") .. peri.files.read(folder .. "/r/metrics.jsonl")
    peri.files.remove_tree(folder)
  end
  lu.assertEquals(bytes[1] == bytes[2], true)
end

-- An environment in Lua that raises after some steps, once there is a file that says so.
local BROKEN = [[
local peri = require "perilune"
local steps = 0
return {
  id = "Walk", obs = peri.env.box { low = -8, high = 8, shape = { 1 } }, action = peri.env.discrete(2), max_steps = 8,
  reset = function (s, obs) s.at = 0; obs[1] = 0 end,
  step = function (s, action, obs)
    steps = steps + 1
    if steps > %d and peri.files.exists "%s" then error "the floor is gone" end
    s.at = s.at + (action == 1 and 1 or -1)
    obs[1] = s.at
    return s.at, s.at >= 4
  end,
}
]]

for _, case in ipairs {
  { "distributed_ppo", "--timesteps 1280 --envs 2 --steps 16 --hidden 8 --eval 2 --save_every 1", 200 },
  { "a3c", "--timesteps 6000 --every 300 --envs 2 --hidden 8 --eval 2 --save_every 1", 1200 },
} do
  TestWorkerRecipes["test_" .. case[1] .. "_survives_an_environment_that_raises"] = function ()
    local folder = scratch.folder()
    assert(peri.files.write(folder .. "/walk.lua", BROKEN:format(case[3], folder .. "/break")))
    assert(peri.files.write(folder .. "/break", "yes"))
    local flags = ("%s --env %s/walk.lua"):format(case[2], folder)
    local ok, log = recipe(case[1], flags, folder)
    lu.assertFalse(ok, log)
    lu.assertStrContains(log, "of 2 failed")
    lu.assertStrContains(log, "the floor is gone")
    os.remove(folder .. "/break")
    ok, log = recipe(case[1], flags .. " --resume", folder)
    lu.assertTrue(ok, log)
    lu.assertStrContains(log, "resuming ")
    peri.files.remove_tree(folder)
  end
end

os.exit(lu.LuaUnit.run())
