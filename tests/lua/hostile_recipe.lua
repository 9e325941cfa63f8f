-- hostile_recipe.lua - an environment that goes wrong in the way that the variable HOSTILE says, for a recipe of
-- recipes/classic that the variable RECIPE names; test_hostile_environments.lua runs it.
local peri = require "perilune"
local how, count = os.getenv "HOSTILE", 0
if how == "" then how = nil end

local wrong = {
  obs = function (_, obs) obs[2] = 0 / 0 end,
  reward = function () return math.huge end,
  error = function () error "the motor is off" end,
}

peri.env.register {
  id = "Hostile-v0", obs = peri.env.box { low = -1, high = 1, shape = { 3 } }, max_steps = 20,
  action = os.getenv "BOX" and peri.env.box { low = -1, high = 1, shape = { 1 } } or peri.env.discrete(2),
  reset = function (s, obs, rng) s.x = rng:double(); obs[1] = s.x end,
  step = function (s, _, obs)
    count = count + 1
    s.x = s.x / 2
    obs[1] = s.x
    local reward = 1
    if how and count > 300 then reward = wrong[how](s, obs) or 1 end
    return reward, false, false
  end,
}
dofile("recipes/classic/" .. os.getenv "RECIPE" .. ".lua")
