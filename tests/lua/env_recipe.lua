-- env_recipe.lua - a random walk of wrapped environments, as a recipe for test_env_resume.lua, which kills it: one in C
-- with threads, one written in Lua row by row, one with tensor ops. A digest of each step is a line of the metrics.
local peri = require "perilune"
local env, recipe = peri.env, peri.recipe

local cfg = peri.flags(recipe.with_flags { steps = { 60, "steps", range = "[0, inf)", budget = true } })
local run = recipe.start { name = "env", flags = cfg, total = cfg.steps, columns = { "digest" } }

local rows = { id = "Rows-v0", obs = env.box(-99, 99, { shape = { 2 } }), action = env.discrete(2), max_steps = 9,
  reset = function (s, obs, rng) s.at, s.path = rng:normal(), {} obs[1], obs[2] = s.at, 0 end,
  step = function (s, action, obs, rng)
    s.at = s.at + action - 0.5 + rng:uniform(-1, 1)
    s.path[#s.path + 1] = s.at
    obs[1], obs[2] = s.at, #s.path
    return s.at, s.at > 2
  end }
local whole = { id = "Whole-v0", obs = env.box(-99, 99, { shape = { 2 } }), action = env.discrete(2), max_steps = 9,
  batch = true,
  reset = function (S, _, rng) S.at = rng:normal(2):to "f32" return S.at end,
  step = function (S, action, rng)
    S.at = S.at + (action:to "f32" - 0.5):unsqueeze(2) + rng:uniform(-1, 1, 2):to "f32"
    return S.at, S.at:sum(2), S.at:max(2):gt(2)
  end }

local function wrapped(e) return env.frame_stack(env.normalize_reward(env.normalize_obs(e)), 3) end
local all = {
  cart = wrapped(env.make("CartPole-v1", { n = 300, seed = cfg.seed, threads = 2 })),
  lake = env.make("FrozenLake-v1", { n = 9, seed = cfg.seed, autoreset = "next_step" }),
  rows = wrapped(env.make(rows, { n = 5, seed = cfg.seed, autoreset = "next_step" })),
  whole = wrapped(env.make(whole, { n = 5, seed = cfg.seed })),
}
local names = { "cart", "lake", "rows", "whole" }
for _, name in ipairs(names) do all[name]:reset() end
local rng = env.rng(cfg.seed)
local draws = {} -- of the actions, tracked like the environments
function draws:state_dict() return {}, { state = peri.json.encode { rng:state():byte(1, -1) } } end -- luacheck: ignore 212
function draws:load_state_dict(_, plain) -- luacheck: ignore 212
  rng:set_state(string.char(table.unpack(peri.json.decode(plain.state))))
end
run:track("draws", draws)
for _, name in ipairs(names) do run:track(name, all[name]) end

for step in run:steps() do
  local digest = 0
  for _, name in ipairs(names) do
    local e = all[name]
    local obs, reward = e:step(name == "whole" and e:sample(rng) or e:sample()) -- its own generator goes on, too
    digest = digest + obs:to("f64"):sum():item() + reward:to("f64"):sum():item() * 0.5
      + e.final_obs:to("f64"):sum():item() * 0.25 + #e:episodes().returns
  end
  run:log(step, { digest = digest })
end
run:finish()
for _, name in ipairs(names) do
  assert(peri.safetensors.save(("%s/%s.safetensors"):format(run.folder, name), (all[name]:state_dict())))
end
