-- environments.lua - steps a second of one thread's processor time: the C API beside hand-written C loops, and from
-- Lua. Medians of repetitions, each of which asks every row once, so that a noisy minute hits all of them.
local peri = require "perilune"

-- CartPole's size, without its sine and cosine: one row at a time, and all of them with tensor ops.
local box, two = peri.env.box(-99, 99, { shape = { 4 } }), peri.env.discrete(2)
local by_rows = { id = "Rows-v0", obs = box, action = two, max_steps = 500,
  reset = function (s, obs) s.x, s.v = 0, 0; for i = 1, 4 do obs[i] = 0 end end,
  step = function (s, action, obs)
    local v = s.v + (action == 1 and 0.01 or -0.01)
    local x = s.x + v
    s.x, s.v = x, v
    obs[1], obs[2], obs[3], obs[4] = x, v, x * x, v * v
    return 1, x > 2.4 or x < -2.4
  end }
local by_tensors = { id = "Tensors-v0", obs = box, action = two, max_steps = 500, batch = true,
  reset = function (S, rows)
    S.x, S.v = peri.zeros(rows.shape), peri.zeros(rows.shape)
    return peri.zeros { rows.shape[1], 4 }
  end,
  step = function (S, action)
    S.v = S.v + (action:to "f32" * 0.02 - 0.01)
    S.x = S.x + S.v
    return peri.stack({ S.x, S.v, S.x * S.x, S.v * S.v }, 2), peri.ones(S.x.shape), S.x:abs():gt(2.4)
  end }

-- Steps a second of a loop in Lua over a batch.
local function from_lua(id, n, opts)
  local given = { n = n, seed = 1, copy = false }
  for k, v in pairs(opts or {}) do given[k] = v end
  local env = peri.env.make(id, given)
  local sets, rng = {}, peri.env.rng(2)
  for i = 1, 16 do
    local list = {}
    for k = 1, n or 1 do list[k] = rng:integer(env.action_space.n) end
    sets[i] = n and peri.tensor(list, "i64") or list[1]
  end
  env:reset()
  return function (seconds)
    local steps, t = 0, os.clock()
    local step = env.step
    repeat
      for _ = 1, n and math.max(1, 4096 // n) or 1 do
        for i = 1, 16 do step(env, sets[i]) end
        steps = steps + 16
      end
      if n then env:episodes() end
    until os.clock() - t > seconds
    return steps * (n or 1) / (os.clock() - t)
  end
end

-- A single environment: the caller resets.
local function single(id)
  local env = peri.env.make(id, { seed = 1, copy = false })
  local rng, actions = peri.env.rng(2), {}
  for i = 1, 1024 do actions[i] = rng:integer(env.action_space.n) end
  env:reset()
  return function (seconds)
    local steps, t, step = 0, os.clock(), env.step
    repeat
      for i = 1, #actions do
        local _, _, terminated, truncated = step(env, actions[i])
        if terminated or truncated then env:reset() end
      end
      steps = steps + #actions
    until os.clock() - t > seconds
    return steps / (os.clock() - t)
  end
end

return function (shared)
  local measure, opts = shared.measure, shared.opts
  local build = os.getenv "PERILUNE_BUILD" or shared.here .. "/../../build"
  local probe = measure.server(build .. "/tests/bench/env_probe")
  local rows = {}
  local function row(name, fn, target) rows[#rows + 1] = { name = name, fn = fn, target = target, got = {} } end
  local function ask(...)
    local line = { ... }
    return function () return probe:ask(table.unpack(line)) end
  end
  row("hand-written C loop, f32", ask("hand32", 1024))
  row("hand-written C loop, f64", ask("hand64", 1024))
  row("user's C environment, the same step", ask("user", 1024), 35e6)
  row("CartPole-v1, 1024 rows", ask("batch", "CartPole-v1", 1024), 175e6)
  for _, id in ipairs { "MountainCar-v0", "Pendulum-v1", "Acrobot-v1", "FrozenLake-v1", "Taxi-v4", "Blackjack-v1",
    "MinBreakout-v0" } do row(id .. ", 1024 rows", ask("batch", id, 1024)) end
  local function lua(name, run, target)
    row(name, function () return run(0.1) end, target)
  end
  lua("from Lua: CartPole-v1, 1024 rows", from_lua("CartPole-v1", 1024))
  lua("from Lua: CartPole-v1, 8 rows", from_lua("CartPole-v1", 8), 8e6)
  lua("from Lua: CartPole-v1, single", single "CartPole-v1", 8e6)
  lua("from Lua: FrozenLake-v1, single", single "FrozenLake-v1")
  lua("written in Lua, row by row, 256 rows", from_lua(by_rows, 256), 2e6)
  lua("written in Lua, tensor ops, 1024 rows", from_lua(by_tensors, 1024))
  for _ = 1, opts.reps do
    for _, r in ipairs(rows) do
      local v, why = r.fn()
      if v then r.got[#r.got + 1] = v else r.why = why end
    end
  end
  print(("%-42s %12s %12s"):format("one thread, by processor time", "M steps/s", "target"))
  for _, r in ipairs(rows) do
    local m = measure.median(r.got)
    print(("%-42s %12s %12s"):format(r.name, m and ("%.1f"):format(m / 1e6) or r.why or "none",
      r.target and ("%.0f"):format(r.target / 1e6) or ""))
  end
  probe:close()
end
