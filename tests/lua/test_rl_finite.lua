-- What takes rewards, potentials or steps refuses numbers that are not finite, says which and where, and changes nothing.
local lu = require "luaunit"
local peri = require "perilune"
local claims = require "claims"

local rl, env = peri.rl, peri.env

TestRlFinite = {}

local STEPS <const>, ROWS <const> = 3, 2

-- A rollout that is good but for one number of a field.
local function rollout(name, v)
  local r = peri.rollout { steps = STEPS, rows = ROWS, fields = { obs = { "f32", 1 }, final_obs = { "f32", 1 }, reward = "f32",
    terminated = "bool", truncated = "bool", live = "bool", chosen = "bool" } }
  r:put { live = peri.ones({ STEPS, ROWS }, "bool"), chosen = peri.ones({ STEPS, ROWS }, "bool") }
  local shape = (name == "reward") and { STEPS, ROWS } or { STEPS, ROWS, 1 }
  local list = {}
  for i = 1, STEPS * ROWS do list[i] = i == 4 and v or i end -- step 2, row 2
  if name then r:put { [name] = peri.tensor(list, "f32"):reshape(shape) } end
  return r
end

local function values(x) return x:squeeze(-1) end
local how = { value = values, last = peri.zeros { ROWS, 1 } }
local in_turn = { value = values, last = peri.zeros { ROWS, 1 }, live = peri.ones({ ROWS }, "bool") }

local function dynamics(name, v)
  local model = rl.Dynamics { inputs = 2, actions = 1, members = 2, hidden = { 4 } }
  local b = { obs = peri.rand { 1, 5, 2 }, action = peri.rand { 1, 5, 1 }, next_obs = peri.rand { 1, 5, 2 }, reward = peri.rand { 1, 5 } }
  if v then b[name] = peri.full(b[name].shape, v) end
  local before = model.mean:tolist()
  local ok, why = pcall(model.fit_scale, model, b)
  if not ok then lu.assertEquals(model.mean:tolist(), before) end
  if not ok then error(why, 0) end
end

local function shaped(potential)
  local e = env.shape_reward(env.make("FrozenLake-v1", { n = 3, seed = 1 }), { potential = potential, gamma = 0.9 })
  e:reset()
  e:step(peri.zeros({ 3 }, "i64"))
end

local function table_of(v)
  local t = {}
  for s = 0, 15 do t[s] = s == 7 and v or s end
  return t
end

local function her(v)
  local buffer = peri.replay { capacity = 8, rows = 1, observed = { obs = { "f32", 1 } }, fields = { goal = { "f32", 1 } }, seed = 1 }
  for t = 1, 8 do
    buffer:add { obs = peri.full({ 1, 1 }, t), next_obs = peri.full({ 1, 1 }, t + 1), goal = peri.zeros { 1, 1 }, reward = 0,
      terminated = false, truncated = t == 8 }
  end
  return rl.hindsight(buffer, { n = 4, length = 8, achieved = function (x) return x end,
    reward = function (at) return at:squeeze(-1) * 0 + v end })
end

local lake = env.make("FrozenLake-v1", { seed = 1 })

-- name -> what is called with a number, and words of the message
local takers = {
  ["rl.gae"] = { function (v) return rl.gae(rollout("reward", v), how) end, "reward is ", "at (2, 2)" },
  ["rl.gae of another reward"] = { function (v)
    return rl.gae(rollout(), { value = values, last = how.last, reward = peri.full({ STEPS, ROWS }, v) })
  end, "reward is ", "at (1, 1)" },
  ["rl.turn_gae"] = { function (v) return rl.turn_gae(rollout("reward", v), in_turn) end, "reward is ", "at (2, 2)" },
  ["rl.smdp_gae"] = { function (v) return rl.smdp_gae(rollout("reward", v), how) end, "reward is ", "at (2, 2)" },
  ["rl.group_advantage"] = { function (v)
    return rl.group_advantage(rollout("reward", v):get "reward", peri.ones({ STEPS, ROWS }, "bool"))
  end, "reward is ", "at (2, 2)" },
  ["rl.shaping, before"] = { function (v)
    return rl.shaping(rollout("obs", v), { potential = values, gamma = 0.9 })
  end, "potential of obs is ", "at (2, 2)" },
  ["rl.shaping, after"] = { function (v)
    return rl.shaping(rollout("final_obs", v), { potential = values, gamma = 0.9 })
  end, "potential of final_obs is ", "at (2, 2)" },
  ["env.shape_reward by a function"] = { function (v)
    shaped(function (s) return s:to("f32") * 0 + v end)
  end, "env.shape_reward: potential is ", "at (1)" },
  ["env.shape_reward by a table"] = { function (v) shaped(table_of(v)) end, "potential has no number for state 7 of 0 to 15" },
  ["rl.hindsight"] = { her, "what reward gave is ", "at (1)" },
  ["tabular:update"] = { function (v) rl.tabular(lake):update(1, 1, v, 0.5, 0) end, "target is " },
  ["tabular_model:observe"] = { function (v) rl.tabular_model {}:observe(1, 1, v, 2, false) end, "reward is " },
  ["replay:add"] = { function (v)
    peri.replay { capacity = 2 }:add { reward = v, terminated = false, truncated = false }
  end, "reward: row 1 is " },
}
for _, name in ipairs { "obs", "action", "next_obs", "reward" } do
  takers["Dynamics:fit_scale, " .. name] = { function (v) dynamics(name, v) end, ("Dynamics:fit_scale: %s is "):format(name),
    name == "reward" and "at (1, 1)" or "at (1, 1, 1)" }
end

for name, taker in pairs(takers) do
  TestRlFinite["test_" .. name:gsub("%W+", "_")] = function ()
    taker[1](0.5)
    for _, v in ipairs { 0 / 0, 1 / 0, -1 / 0 } do
      local said = claims.message(taker[1], v)
      for i = 2, #taker do lu.assertStrContains(said, taker[i]) end
      if said:find " is " then lu.assertStrContains(said, v == v and "inf" or "nan") end
    end
  end
end

os.exit(lu.LuaUnit.run())
