-- dqn.lua - DQN on CartPole from end to end with rl-zoo's settings, as recipes/classic/dqn.lua has them, beside
-- Stable-Baselines3: 128 gradient steps on 64 transitions behind every 256 steps, two layers of 256. Medians of
-- repetitions that take turns, by the clock, and by processor time for a machine that others use, too.
local peri = require "perilune"
local nn, rl = peri.nn, peri.rl
local EVERY <const>, GRADIENTS <const>, BATCH <const>, STARTS <const> = 256, 128, 64, 1000

-- A learner of its own; returns learn(rounds), which goes on from where it is.
local function learner()
  local env = peri.env.make("CartPole-v1", { n = 1, seed = 1 })
  local net = nn.Copies(1, function () return rl.QNetwork(4, 2) end)
  local target, opt = rl.target(net, { period = GRADIENTS }), peri.optim.Adam(net:parameters(), { lr = 2.3e-3 })
  local buffer = peri.replay { capacity = 100000, groups = 1, observed = { obs = { "f32", 4 } },
    fields = { action = "i64" } }
  local obs, t = peri.keep(env:reset()), 0
  local function step()
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local action
    do
      local _ <close> = peri.no_grad()
      local epsilon = math.max(0.04, 1 - 0.96 * t / 8000)
      action = t < STARTS and peri.randint(0, 2, { 1 }) or rl.epsilon_greedy(rl.together(net(rl.apart(obs, 1))), epsilon)
    end
    local after, reward, terminated, truncated = env:step(action)
    buffer:add { obs = obs, action = action, reward = reward, next_obs = env.final_obs, terminated = terminated,
      truncated = truncated }
    obs, t = peri.keep(after), t + 1
  end
  local function learn()
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local batch = buffer:sample(BATCH)
    local wanted = rl.q_target { reward = batch.reward, discount = batch.discount, terminated = batch.terminated,
      next_q = target(batch.next_obs) }
    local loss = rl.q_loss(net(batch.obs), batch.action, wanted)
    loss:backward()
    opt:step({ clip = 10, copies = 1 }):zero_grad()
    target:update()
    return loss:item()
  end
  return function (rounds)
    for _ = 1, rounds do
      for _ = 1, EVERY do step() end
      for _ = 1, t > STARTS and GRADIENTS or 0 do learn() end
    end
  end
end

return function (shared)
  local measure, opts = shared.measure, shared.opts
  local python = opts.peers .. "/bin/python"
  local sb3 = peri.files.exists(python) and measure.server(python .. " " .. shared.here .. "/peers/dqn_peer.py") or nil
  local version = sb3 and sb3:ask "version"
  if type(version) ~= "string" then sb3 = nil end
  print(("%d threads, Stable-Baselines3 %s"):format(peri.threads(), sb3 and version or "missing: --peers FOLDER"))
  local ROUNDS <const> = 20
  local steps, rows = ROUNDS * EVERY, { wall = {}, processor = {} }
  local learn, ours, theirs = learner(), { wall = {}, processor = {} }, { wall = {}, processor = {} }
  learn(8)
  for rep = 1, opts.reps do
    local wall, processor = peri.time(), os.clock()
    learn(ROUNDS)
    ours.wall[rep], ours.processor[rep] = steps / (peri.time() - wall), steps / (os.clock() - processor)
    local answer = sb3 and sb3:ask("learn", ROUNDS, peri.threads())
    if answer then
      local w, p = tostring(answer):match "^(%S+)/(%S+)$"
      theirs.wall[rep], theirs.processor[rep] = steps / tonumber(w), steps / tonumber(p)
      for kind in pairs(rows) do rows[kind][rep] = ours[kind][rep] / theirs[kind][rep] end
    end
  end
  print(("%-32s %14s %14s  %s"):format("median of " .. opts.reps, "steps/s", "SB3", "ratio"))
  for _, kind in ipairs { "wall", "processor" } do
    local r = measure.median(rows[kind])
    print(("%-32s %14.0f %14s  %s"):format("DQN CartPole, " .. kind .. " time", measure.median(ours[kind]),
      r and ("%.0f"):format(measure.median(theirs[kind])) or "-",
      r and ("%.2f%s"):format(r, kind == "wall" and "  >= 3 " .. (r >= 3 and "met" or "MISSED") or "") or "-"))
  end
end
