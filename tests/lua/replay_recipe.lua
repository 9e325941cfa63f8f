-- replay_recipe.lua - Q-values of a walk on a line from a prioritised replay buffer of 3-step returns: for
-- test_replay.lua, which kills it. The buffer is full and wraps long before the last step.
local peri = require "perilune"
local recipe = peri.recipe

local cfg = peri.flags(recipe.with_flags { steps = { 60, "steps", range = "[0, inf)", budget = true } })
local run = recipe.start { name = "replay", flags = cfg, total = cfg.steps, columns = { "loss" } }
local net, rng = peri.nn.Linear(2, 2), peri.rng(cfg.seed)
local opt = peri.optim.Adam(net, { lr = 0.01 })
local buffer = peri.replay { capacity = 40, rows = 3, observed = { obs = { "f32", 2 } }, fields = { action = "i64" },
  n_step = 3, prioritised = true, seed = cfg.seed }
local obs = { step = peri.zeros { 3, 2 } } -- of the walk, which is saved too
function obs:state_dict() return { step = self.step } end
function obs:load_state_dict(s) self.step = s.step end
run:track("net", net):track("optimizer", opt):track("rng", rng):track("replay", buffer):track("walk", obs)

for step in run:steps() do
  local action = peri.randint(0, 2, { 3 })
  local next_obs = obs.step + action:to("f32"):unsqueeze(2) * peri.tensor({ 1, -1 }, "f32") - 0.25
  local over = next_obs:sum(2):abs():gt(2)
  buffer:add { obs = obs.step, action = action, next_obs = next_obs, reward = next_obs:sum(2), terminated = over,
    truncated = peri.tensor { step % 7 == 0, false, false } }
  obs.step = peri.keep(next_obs:mul(over:logical_not():to("f32"):unsqueeze(2)):contiguous())
  local batch = buffer:sample(16, 0.5)
  local chosen = net(batch.obs):gather(batch.action:unsqueeze(2), 2):squeeze(2)
  local best = peri.no_grad(function() return (net(batch.next_obs):max(2)) end)
  local delta = chosen - (batch.reward + batch.discount * (1 - batch.terminated) * best)
  local loss = (delta * delta * batch.weight):mean()
  loss:backward()
  opt:step():zero_grad()
  buffer:prioritise(batch.index, delta:detach():abs())
  run:log(step, { loss = loss:item() })
end
run:finish()
assert(peri.safetensors.save(run.folder .. "/net.safetensors", net:state_dict()))
assert(peri.safetensors.save(run.folder .. "/replay.safetensors", buffer:state_dict()))
