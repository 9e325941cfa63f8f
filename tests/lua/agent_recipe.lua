-- agent_recipe.lua - algo.agent in a run, with both hooks, for test_agent.lua.
local peri = require "perilune"
local nn, optim, rl, algo, recipe = peri.nn, peri.optim, peri.rl, peri.algo, peri.recipe

local cfg = peri.flags(recipe.with_flags { env = { "CartPole-v1", "environment" }, updates = { 10, "updates" },
  scaled = { false, "observations and rewards by running statistics" } })
local run = recipe.start { name = "agent", flags = cfg, total = cfg.updates, console = true, tensorboard = false }
local env = peri.env.make(cfg.env, { n = 4, seed = cfg.seed })
if cfg.scaled then env = peri.env.normalize_reward(peri.env.normalize_obs(env, { clip = 10 })) end
local net = nn.Copies(2, function ()
  return rl.ActorCritic { obs = env.obs_space, action = env.action_space, hidden = { 8 } }
end, { seeds = { cfg.seed, cfg.seed + 1 } })
local opt = optim.Adam(net:parameters(), { lr = 1e-2 })
local agent = algo.agent.new { env = env, net = net, optimizer = opt, steps = 16, epochs = 2, ent_coef = 0.01,
  schedule = function (update) return 1e-2 / update end,
  reward = function (rollout) return rollout:get("reward") - rollout:get("logp") end,
  advantage = function (_, advantage) return advantage:add(1) end }
run:track("net", net):track("optimizer", opt):track("env", env):track("agent", agent)
for update in run:steps() do run:log(update, agent:step()) end
assert(peri.safetensors.save(run:path "net.safetensors", (net:state_dict())))
run:finish()
