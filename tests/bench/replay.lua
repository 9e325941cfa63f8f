-- replay.lua - `perilune bench replay`: replay buffers of CartPole's transitions beside those of Stable-Baselines3 and of
-- plain NumPy arrays, interleaved in one run: microseconds of one call, the least of the repetitions.
--   --reps N (5)  --peers FOLDER (a virtual environment with stable-baselines3; tests/bench/peers/install.sh)
-- "into" writes into an earlier sample, as a loop without garbage does.
local peri = require "perilune"
local here = arg[0]:match "^(.*)/" or "."
local measure = dofile(here .. "/peers/measure.lua")

local opts = measure.flags(arg, { reps = 5, peers = measure.home })
local python = opts.peers .. "/bin/python"
local peer = peri.files.exists(python)
  and measure.server(("%s %s/peers/replay_peer.py"):format(python, here)) or nil
local version = peer and peer:ask "version"
if type(version) ~= "string" then peer = nil end

local function buffer(rows, more)
  local o = { capacity = 100000 // rows, rows = rows, observed = { obs = { "f32", 4 } }, fields = { action = "i64" } }
  for k, v in pairs(more or {}) do o[k] = v end
  return peri.replay(o)
end

local function step(rows)
  local no, same = peri.zeros({ rows }, "bool"), peri.ones { rows, 4 }
  return { obs = same, next_obs = same, action = peri.zeros({ rows }, "i64"), reward = peri.ones { rows },
    terminated = no, truncated = no }
end

local function filled(more)
  local b, s = buffer(1, more), step(1)
  for _ = 1, 50000 do b:add(s) end
  return b
end

local rows = {}
local function row(name, fn, ask) rows[#rows + 1] = { name = name, fn = fn, ask = ask, least = {} } end

for _, n in ipairs { 1, 8, 64 } do
  local b, s = buffer(n), step(n)
  row(("add a step of %d rows"):format(n), function() b:add(s) end, ("add %d"):format(n))
end
local plain, ranked, far = filled(), filled { prioritised = true }, filled { n_step = 3 }
for _, n in ipairs { 64, 128, 256 } do
  row(("sample %d"):format(n), function() plain:sample(n) end, ("sample %d"):format(n))
  local into = plain:sample(n)
  row(("sample %d into"):format(n), function() plain:sample(n, nil, into) end)
  local more = far:sample(n)
  row(("3-step %d into"):format(n), function() far:sample(n, nil, more) end)
  local some = ranked:sample(n)
  row(("prioritised %d into"):format(n), function() ranked:sample(n, 0.4, some) end)
  local priority = peri.rand { n }
  row(("new priorities of %d"):format(n), function() ranked:prioritise(some.index, priority) end)
end

local function note(r, who, seconds) r.least[who] = math.min(r.least[who] or math.huge, seconds) end
for _ = 1, opts.reps do
  for _, r in ipairs(rows) do
    note(r, "perilune", measure.loop(r.fn))
    for _, who in ipairs(peer and r.ask and { "sb3", "numpy" } or {}) do note(r, who, assert(peer:ask(who, r.ask))) end
  end
end
if peer then peer:close() else print("no peers in " .. opts.peers) end
print(("%-28s %10s %10s %10s"):format("us a call", "perilune", "SB3", "NumPy"), version or "")
for _, r in ipairs(rows) do
  local function us(who) return r.least[who] and ("%10.2f"):format(r.least[who] * 1e6) or (" "):rep(10) end
  print(("%-28s %s %s %s"):format(r.name, us "perilune", us "sb3", us "numpy"))
end
