-- muzero.lua - search in a model that was learned for nothing else: MuZero, small.
--
-- Teaches: representation s = h(obs), dynamics s', r = g(s, a) and prediction p, v = f(s) are unrolled along what was
-- played and learn rewards, n-step values and the shares of visits of their own search (Schrittwieser et al. 2020, eq.
-- 1), never an observation. The search (rl.search, appendix B) acts; at the end it stands beside the prior alone,
-- which needs no model. --simulations 1: the search only tries what priors draw; --unroll 1: a model of one step is
-- asked for many.
-- Run:  ./perilune run recipes/worlds/muzero.lua --seeds 10    CartPole-v1: a minute or two.
-- Departs from the paper: small layers; numbers, no categories; an n-step value ends in a slow copy's value of the
-- observation, so that a truncated episode goes on from its last one.
local peri = require "perilune"
local nn, optim, rl, recipe = peri.nn, peri.optim, peri.rl, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  env         = { "CartPole-v1", "environment with a vector to observe and numbered actions" },
  seeds       = { 1, "learners side by side, from --seed on", range = "[1, inf)" },
  steps       = { 10000, "steps of each learner", range = "[0, inf)", budget = true },
  envs        = { 4, "environments of each", range = "[1, inf)" },
  round       = { 100, "steps of its environments from a row of metrics to the next", range = "[1, inf)" },
  simulations = { 16, "of each search", range = "[1, inf)" },
  unroll      = { 5, "steps that the model is unrolled", range = "[1, inf)" },
  n_step      = { 10, "rewards of a value", range = "[1, inf)" },
  batch       = { 32, "sequences of a gradient step", range = "[1, inf)" },
  lr          = { 2e-3, "learning rate", range = "(0, inf)" },
  gamma       = { 0.99, "discount", range = "[0, 1]" },
  hidden      = { 64, "width of the layers", range = "[1, inf)" },
})
local S, rows, K = cfg.seeds, cfg.seeds * cfg.envs, cfg.unroll
local steps, rounds = cfg.steps // cfg.envs, (cfg.steps // cfg.envs + cfg.round - 1) // cfg.round
local run = recipe.start { name = "muzero", flags = cfg, total = rounds, columns = { "return", "value", "loss" } }
local env, test = peri.env.make(cfg.env, { n = rows, seed = cfg.seed }), peri.env.make(cfg.env, { n = rows })
local inputs, A, W, H = env.obs_space.shape[1], env.action_space.n, cfg.hidden, 16 -- H numbers of a state

-- The three networks of a learner; with nn.Copies of all of them: x (S, n, ...).
local function mlp(...) return nn.MLP({ ... }, { activation = "relu", init = "uniform" }) end
local World = nn.class("World", function (self)
  self.h, self.g, self.f = mlp(inputs, W, H), mlp(H + A, W, H + 1), mlp(H, W, A + 1)
end)
local function scaled(s) -- to [0, 1], appendix G
  local low = s:min(-1, true)
  return (s - low) / (s:max(-1, true) - low + 1e-5)
end
local function squashed(x) return x:sign() * ((x:abs() + 1):sqrt() - 1) + 0.001 * x end -- appendix F, and back:
local function spread(y) return y:sign() * ((((1 + 0.004 * (y:abs() + 1.001)):sqrt() - 1) / 0.002):square() - 1) end
function World:represent(obs) return scaled(self.h(obs)) end
function World:advance(s, action)
  local y = self.g(peri.cat({ s, action:one_hot(A) }, -1))
  return scaled(y:narrow(-1, 1, H)), y:select(-1, H + 1)
end
function World:predict(s)
  local y = self.f(s)
  return y:narrow(-1, 1, A), y:select(-1, A + 1)
end
function World:forward(obs) return (select(2, self:predict(self:represent(obs)))) end
local copies = nn.Copies(S, World, { seeds = peri.arange(S):add(cfg.seed):tolist() })
local net, target, opt = copies.net, rl.target(copies, { tau = 0.02 }), optim.Adam(copies, { lr = cfg.lr })
local replay = peri.replay { capacity = math.max(1, rounds * cfg.round), rows = rows, groups = S,
  observed = { obs = { "f32", inputs } }, fields = { action = "i64", policy = { "f32", A } } }
run:track("net", copies):track("target", target):track("optimizer", opt):track("env", env):track("replay", replay)
local function ahead(state, action)
  local s, reward = net:advance(rl.apart(state, S), rl.apart(action, S))
  local logits, value = net:predict(s)
  return rl.together(s), rl.together(spread(reward)), rl.together(logits), rl.together(spread(value))
end
local function search(obs, noise)
  local s = net:represent(rl.apart(obs, S))
  return rl.search({ state = rl.together(s), logits = rl.together((net:predict(s))) }, ahead,
    { simulations = cfg.simulations, gamma = cfg.gamma, noise = noise })
end
local returns = { n = cfg.n_step, gamma = cfg.gamma }
local function learn()
  local b = replay:sequences(cfg.batch, K + cfg.n_step) -- (S, n, K + n_step, ...)
  local behind = peri.no_grad(function () -- values of what each step led to
    return spread(target(b.next_obs:flatten(2, 3))):reshape(b.reward.shape)
  end)
  local value = peri.n_step_returns(b.reward, behind, b.terminated, b.truncated, b.mask, returns)
  -- Behind an end of its own all is 0; behind a cut nothing is known.
  local known = b.mask + (1 - b.mask) * b.terminated:ne(0):any(-1, true):to "f32"
  local wanted, reward = squashed(value * b.mask), squashed(b.reward * b.mask)
  local s, loss = net:represent(b.obs:select(3, 1)), 0
  for k = 1, K + 1 do
    local logits, v = net:predict(s)
    local of_policy = -(b.policy:select(3, k) * logits:log_softmax(-1)):sum(-1) * b.mask:select(3, k)
    local of_value = (v - wanted:select(3, k)):square() * known:select(3, k) * 0.25
    loss = loss + (of_policy + of_value):mean(-1):sum() / (k == 1 and 1 or K)
    if k <= K then
      s, v = net:advance(s * 0.5 + s:detach() * 0.5, b.action:select(3, k)) -- half the gradient, appendix G
      loss = loss + ((v - reward:select(3, k)):square() * known:select(3, k)):mean(-1):sum() / K
    end
  end
  loss:backward()
  opt:step({ clip = 5, copies = S }):zero_grad()
  target:update()
  return loss:item() / S
end
local obs = run:restore() == 0 and env:reset() or env.obs
for round in run:steps() do
  local loss, sum, n = 0, 0, 0
  for t = (round - 1) * cfg.round + 1, round * cfg.round do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local found, sharper = search(obs, 0.25), 1 + 2 * math.min(1, t / steps) -- less and less by chance
    local action = found.visits:log():mul(sharper):categorical():squeeze(-1)
    local after, reward, terminated, truncated = env:step(action)
    replay:add { obs = obs, action = action, policy = found.policy, reward = reward, next_obs = env.final_obs,
      terminated = terminated, truncated = truncated }
    obs, sum = peri.keep(after), sum + found.value:mean():item() / cfg.round
    if t > 20 then loss, n = loss + learn(), n + 1 end
  end
  local ended = env:episodes().returns
  local mean = #ended > 0 and peri.tensor(ended):mean():item() or nil
  run:log(round, { ["return"] = mean, value = sum, loss = loss / math.max(1, n) })
end
local how = { episodes = S * 8, seeds = S, seed = 10000 }
local function play(name, act) return run:scores(name, rl.evaluate(test, act, how).of_seed) end
run:text("%s, %d steps: search %s; prior alone %s; at random %s", cfg.env, cfg.steps,
  play("search", function (o) return search(o, 0).visits:argmax(-1) end),
  play("prior", function (o) return rl.together((net:predict(net:represent(rl.apart(o, S))))):argmax(-1) end),
  play("random", function () return test:sample() end))
run:plot("curves.svg", { "return", "value", "loss" })
run:finish()
