-- mpc.lua - control by a model: learn what actions lead to, then look ahead before each one.
--
-- Teaches: model-predictive control with learned dynamics (PETS, Chua et al. 2018, algorithm 1): an ensemble predicts
-- the change of the observation and the reward; before each step sequences of actions are drawn, rolled ahead in every
-- member, and drawn again around the best (the cross-entropy method); the first action is done, the rest is where the
-- next plan begins. After each episode the model learns from all steps. What each part is for: --model true (the
-- equations themselves, how good planning could be), --planner shooting, --members 1, --probabilistic.
-- Run:  ./perilune run recipes/worlds/mpc.lua --seeds 10    Pendulum-v1, ten learners at once: some minutes.
-- Departs from the paper: small networks that give means (--probabilistic: Gaussians), whose draws are not used;
-- the reward is learned, too.
local peri = require "perilune"
local optim, rl, recipe = peri.optim, peri.rl, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  seeds         = { 1, "learners side by side, from --seed on", range = "[1, inf)" },
  episodes      = { 6, "of 200 steps each; the first is of any actions", range = "[1, inf)", budget = true },
  model         = { "learned", "what looks ahead", choices = { "learned", "true" } },
  planner       = { "cem", "how sequences are found", choices = { "cem", "shooting" } },
  horizon       = { 15, "steps ahead", range = "[1, inf)" },
  population    = { 60, "sequences drawn each time", range = "[1, inf)" },
  elites        = { 8, "of them, around which the next are drawn", range = "[2, inf)" },
  iterations    = { 4, "times; shooting draws as many at once", range = "[1, inf)" },
  members       = { 3, "networks of a model", range = "[1, inf)" },
  probabilistic = { false, "they give variances, too, and learn by likelihood" },
  hidden        = { 64, "width of both layers", range = "[1, inf)" },
  lr            = { 2e-3, "learning rate", range = "(0, inf)" },
  updates       = { 400, "gradient steps after each episode", range = "[0, inf)" },
  batch         = { 64, "steps of each, for each member", range = "[1, inf)" },
  gamma         = { 0.99, "discount of what is ahead", range = "[0, 1]" },
})
local S, M, H = cfg.seeds, cfg.members, cfg.horizon
local run = recipe.start { name = "mpc", flags = cfg, total = cfg.episodes, columns = { "return", "mse" } }
local env = peri.env.make("Pendulum-v1", { n = S, seed = cfg.seed })
local dynamics = rl.Dynamics { inputs = 3, actions = 1, members = M, seeds = peri.arange(S):add(cfg.seed):tolist(),
  hidden = { cfg.hidden, cfg.hidden }, probabilistic = cfg.probabilistic }
local opt = optim.Adam(dynamics, { lr = cfg.lr })
local known = peri.replay { capacity = 200 * cfg.episodes, rows = S, groups = S, observed = { obs = { "f32", 3 } },
  fields = { action = { "f32", 1 } } }
run:track("dynamics", dynamics):track("optimizer", opt):track("env", env):track("known", known)

-- The equations of Pendulum-v1: observations (..., 3), actions (..., 1).
local function equations(obs, action)
  local angle, speed = peri.atan2(obs:select(-1, 2), obs:select(-1, 1)), obs:select(-1, 3)
  local u = action:squeeze(-1):clamp(-2, 2)
  local reward = -(angle:square() + 0.1 * speed:square() + 0.001 * u:square())
  speed = (speed + (15 * angle:sin() + 3 * u) * 0.05):clamp(-8, 8)
  angle = angle + speed * 0.05
  return peri.stack({ angle:cos(), angle:sin(), speed }, -1), reward
end
local function learned(obs, action) return dynamics:predict(obs, action) end

-- What sequences (S, population, H, 1) earn: of a learned model the mean of its members.
local function returns(obs, actions)
  if cfg.model == "true" then return rl.look_ahead(equations, obs, actions, { gamma = cfg.gamma }) end
  local n = actions:size(2)
  local each = actions:unsqueeze(3):expand({ S, n, M, H, 1 }):reshape { S, n * M, H, 1 }
  return rl.look_ahead(learned, obs, each, { gamma = cfg.gamma }):reshape({ S, n, M }):mean(-1)
end
local plan
local function act(obs)
  local how = { shape = { H, 1 }, rows = S, low = -2, high = 2, population = cfg.population }
  local function objective(x) return returns(obs, x) end
  if cfg.planner == "shooting" then
    how.population = cfg.population * cfg.iterations
    return (rl.shooting(objective, how)):select(2, 1)
  end
  how.elites, how.iterations = cfg.elites, cfg.iterations
  how.mean = plan and peri.cat({ plan:narrow(2, 2, H - 1), peri.zeros { S, 1, 1 } }, 2) or nil
  local mean, best = rl.cem(objective, how)
  plan = peri.keep(mean)
  return best:select(2, 1)
end

-- Steps of each learner, some for each member: (M, S, n, ...).
local function shaped(batch, arrange)
  local out = {}
  for _, name in ipairs { "obs", "action", "next_obs", "reward" } do
    local x = batch[name]
    out[name] = arrange(x, table.unpack(x.shape, x.ndim - (name == "reward" and 0 or 1) + 1))
  end
  return out
end
local function steps(first, n) -- from one on, (S, n, ...)
  local function apart(x, ...) return x:reshape({ n, S, ... }):transpose(1, 2) end
  return shaped(known:gather(peri.arange(n * S):add(first * S)), apart)
end
local function learn(episode)
  local function all(x, ...) return x:unsqueeze(1):expand { M, S, 200, ... } end
  local mse = select(2, dynamics:loss(shaped(steps(200 * (episode - 1), 200), all))):item() -- of what is new to it
  dynamics:fit_scale(steps(0, 200 * episode))
  for _ = 1, cfg.updates do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local function own(x, ...) return x:reshape({ S, M, cfg.batch, ... }):transpose(1, 2) end
    dynamics:loss(shaped(known:sample(cfg.batch * M), own)):backward()
    opt:step():zero_grad()
  end
  return mse
end

local scores
run:restore()
for episode in run:steps() do
  local obs, sum, random = env:reset(), peri.zeros { S }, cfg.model == "learned" and episode == 1
  plan = nil
  for _ = 1, 200 do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local action = random and env:sample() or act(obs)
    local after, reward, terminated, truncated = env:step(action)
    known:add { obs = obs, action = action, reward = reward, next_obs = env.final_obs, terminated = terminated,
      truncated = truncated }
    obs, sum = peri.keep(after), peri.keep(sum + reward)
  end
  scores = sum:tolist()
  run:log(episode, { ["return"] = rl.iqm(scores), mse = cfg.model == "learned" and learn(episode) or nil })
end
run:text("Pendulum-v1, %s model, %s, episode %d: %s; any actions some -1200, SAC -149 after 40 episodes", cfg.model,
  cfg.planner, cfg.episodes, scores and run:scores("return", scores) or "was before")
run:plot("curves.svg", { "return" })
run:finish()
