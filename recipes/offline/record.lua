-- record.lua - a data set of logged steps: what policies of mixed quality did, for learners that may not act.
--
-- Teaches: a log is of whoever was in charge. PPO learns (Schulman et al. 2017), and at shares of its way (--sources)
-- the policy of that moment is logged for as many steps as each other one, without learning from them; 0 is one that
-- acts at random. The file is a replay buffer (rl.save_dataset): steps that a log cuts off count as truncated, and
-- keep what they led to. Statistics of each source are printed and are in the file.
-- Run:  ./perilune run recipes/offline/record.lua --seeds 10    ten logs of CartPole-v1: half a minute. Then
--       ./perilune run recipes/offline/offline.lua --data runs/record/data.safetensors --method cql
-- Departs from D4RL (Fu et al. 2020) in that the log is cut into equal parts of few policies, not the learner's own
-- steps.
local peri = require "perilune"
local nn, optim, rl, recipe = peri.nn, peri.optim, peri.rl, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  env       = { "CartPole-v1", "id of an environment with a vector to observe and numbered actions" },
  seeds     = { 1, "learners side by side, from --seed on, a log of each", range = "[1, inf)" },
  timesteps = { 20000, "steps that each learns from", range = "[0, inf)", budget = true },
  sources   = { "0.25,1", "shares of the way at which the policy is logged" },
  steps     = { 5000, "steps of each log, all sources together", range = "[1, inf)" },
  noise     = { 0.0, "share of any action in the log", range = "[0, 1]" },
  envs      = { 4, "environments of each learner", range = "[1, inf)" },
  length    = { 128, "steps of a rollout", range = "[1, inf)" },
  lr        = { 2.5e-4, "learning rate", range = "[0, inf)" },
  gamma     = { 0.99, "discount", range = "[0, 1]" },
  hidden    = { 64, "width of both layers", range = "[1, inf)" },
})
local S, updates = cfg.seeds, cfg.timesteps // (cfg.envs * cfg.length)
local sources, at = {}, {}
for word in cfg.sources:gmatch "[^,%s]+" do
  local share = tonumber(word)
  assert(share and share >= 0 and share <= 1, "--sources: expected numbers from 0 to 1 with commas")
  sources[#sources + 1], at[#at + 1] = share, math.floor(share * updates + 0.5)
end
local each = cfg.steps // #sources
local run = recipe.start { name = "record", flags = cfg, total = updates, columns = { "return", "logged" } }
local env = peri.env.make(cfg.env, { n = S * cfg.envs, seed = cfg.seed })
local logged = peri.env.make(cfg.env, { n = S })
local net = nn.Copies(S, function ()
  return rl.ActorCritic { obs = env.obs_space, action = env.action_space, hidden = { cfg.hidden, cfg.hidden } }
end, { seeds = peri.arange(S):add(cfg.seed):tolist() })
local opt = optim.Adam(net, { lr = cfg.lr, eps = 1e-5 })
local agent = peri.algo.agent.new { env = env, net = net, optimizer = opt, steps = cfg.length, gamma = cfg.gamma,
  ent_coef = 0.01 }
local log = peri.replay { capacity = each * #sources, rows = S, fields = { action = "i64", source = "i64" },
  observed = { obs = { "f32", env.obs_space.shape[1] } } }
run:track("net", net):track("optimizer", opt):track("env", env):track("agent", agent):track("log", log)

-- The policy of now, for its part of the log.
local function record(k)
  local obs, source = logged:reset { seed = cfg.seed + 1000 * k }, peri.full({ S }, k, "i64")
  for t = 1, each do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local any = peri.randint(0, env.action_space.n, { S })
    local action = peri.where(peri.rand({ S }):lt(cfg.noise), any, agent:act(obs))
    local after, reward, terminated, truncated = logged:step(action)
    log:add { obs = obs, action = action, reward = reward, next_obs = logged.final_obs, source = source,
      terminated = terminated, truncated = t == each and terminated:logical_not() or truncated }
    obs = peri.keep(after)
  end
end

run:restore()
for update in run:steps() do
  for k, when in ipairs(at) do if when == 0 and update == 1 then record(k) end end
  local found = agent:step()
  for k, when in ipairs(at) do if when == update then record(k) end end
  run:log(update, { ["return"] = found["return"], logged = log:size() / S })
end

-- What is in it, by source: steps, episodes that ended, their returns.
local all, statistics = log:gather(peri.arange(log:size())), {}
local ended, sum = all.terminated:logical_or(all.truncated):reshape({ -1, S }), all.reward:reshape({ -1, S })
for k, share in ipairs(sources) do
  local first = (k - 1) * each + 1
  local function part(x) return x:narrow(1, first, each):sum():item() end
  statistics[k] = { source = share, steps = each * S, episodes = part(ended:to "f64"), reward = part(sum:to "f64") }
  local s = statistics[k]
  run:text("source %d, at %.2f of training: %d steps, %d episodes, %.1f an episode", k, share, s.steps, s.episodes,
    s.reward / s.episodes)
end
assert(rl.save_dataset(run:path "data.safetensors", log, { env = env, info = { seeds = S, sources = statistics } }))
run:finish()
