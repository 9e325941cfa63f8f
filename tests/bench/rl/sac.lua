-- sac.lua - the recipes of SAC and TD3 with rl-zoo's settings on Pendulum, from end to end, beside Stable-Baselines3 on
-- as many threads: one step of the environment and one gradient step, seconds of a long run less those of a short one.
local peri = require "perilune"
local FEW <const>, MANY <const> = 200, 800

return function (bench)
  local folder = os.tmpname()
  os.remove(folder)
  local python = bench.opts.peers .. "/bin/python"
  local peer = peri.files.exists(python)
    and bench.measure.server(("%s %s/peers/sac_peer.py %d"):format(python, bench.here, peri.threads())) or nil
  local version = peer and peer:ask "version"
  if type(version) ~= "string" then peer = nil end
  local program = (os.getenv "PERILUNE_BUILD" or bench.here .. "/../../build") .. "/perilune"

  local function seconds(name, steps)
    local command = "PERI_THREADS=%d %s run %s/../../recipes/classic/%s.lua --steps %d --round %d --starts 100 "
      .. "--eval_every 1000 --episodes 1 --last 1 --runs %s >/dev/null"
    local began = peri.time()
    assert(os.execute(command:format(peri.threads(), program, bench.here, name, steps, FEW, folder)))
    return peri.time() - began
  end

  for _, name in ipairs { "sac", "td3" } do
    local ours, theirs = {}, {}
    for i = 1, bench.opts.reps do -- in turns
      ours[i] = (MANY - FEW) / (seconds(name, MANY) - seconds(name, FEW))
      theirs[i] = peer and (MANY - FEW) / assert(peer:ask(name, FEW, MANY)) or nil
    end
    local mine = bench.measure.median(ours)
    local line = ("%-4s Pendulum, %d threads: %.0f steps/s"):format(name, peri.threads(), mine)
    if peer then
      local other = bench.measure.median(theirs)
      line = ("%s; Stable-Baselines3 %s: %.0f, %.2f times"):format(line, version, other, mine / other)
    end
    print(line)
  end
  if peer then peer:close() else print("no Stable-Baselines3 in " .. bench.opts.peers) end
  if peri.files.exists(folder) then peri.files.remove_tree(folder) end
end
