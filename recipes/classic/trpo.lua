-- trpo.lua - the largest step that a policy may take when it must stay near the one that acted.
--
-- Teaches: TRPO (Schulman et al. 2015, 1502.05477, section 6 and appendix C). Conjugate gradients solve H s = g, H the
-- Fisher information of the policy, from products H v alone; the step is sqrt(2 delta / s'Hs) s, where the KL would be
-- delta if it were quadratic; a line search halts where the KL is below delta and the objective has improved, and
-- when it nowhere is, the policy stays what it was: rl.trust_region_.
-- Run:  ./perilune run recipes/classic/trpo.lua    CartPole with rl-zoo's settings, 100,000 steps, ten seconds on two
--       cores; --seeds 10 learns ten policies in turn; --line_search false takes the whole step
-- Departs from the paper: advantages by GAE, normalised, and a critic that Adam trains, as sb3-contrib's TRPO has,
-- whose constants these are; conjugate gradients begin at 0, where that begins at noise of 1e-4.
local peri = require "perilune"
local optim, rl, recipe = peri.optim, peri.rl, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  env           = { "CartPole-v1", "environment" },
  seeds         = { 1, "policies that learn in turn, each in environments of its own", range = "[1, inf)" },
  timesteps     = { 100000, "environment steps of each seed", budget = true },
  envs          = { 2, "environments of each seed", range = "[1, inf)" },
  steps         = { 512, "steps of a rollout", range = "[1, inf)" },
  gamma         = { 0.99, "discount", range = "[0, 1]" },
  lam           = { 0.98, "of advantages, which are normalised", range = "[0, 1]" },
  target_kl     = { 0.01, "delta: mean KL of the old policy to the new one, at most", range = "(0, inf)" },
  cg_iterations = { 15, "steps of conjugate gradients", range = "[1, inf)" },
  cg_damping    = { 1e-3, "times v is added to H v (sb3-contrib: 0.1)", range = "[0, inf)" },
  line_search   = { true, "false: the whole step, whatever becomes of KL and objective" },
  tries         = { 10, "of the line search, each step 0.8 times the one before", range = "[1, inf)" },
  lr            = { 1e-3, "of the critic", range = "[0, inf)" },
  critic_epochs = { 20, "passes of the critic over a rollout", range = "[1, inf)" },
  batch         = { 512, "steps in a minibatch of the critic", range = "[1, inf)" },
  hidden        = { 64, "width of both layers", range = "[1, inf)" },
  eval_every    = { 5, "updates between evaluations", range = "[1, inf)" },
  eval          = { 10, "episodes of each evaluation and seed", range = "[1, inf)" },
})

local S, N, T = cfg.seeds, cfg.envs, cfg.steps
local updates = cfg.timesteps // (N * T)
local run = recipe.start { name = "trpo", flags = cfg, total = updates, columns = { "return", "eval", "kl" } }
local test = peri.env.make(cfg.env, { n = cfg.eval, copy = false })
local seen, learners = { test.obs_space.dtype, table.unpack(test.obs_space.shape) }, {}
for i = 1, S do
  local env = peri.env.make(cfg.env, { n = N, seed = cfg.seed + (i - 1) * N, copy = false })
  peri.seed(cfg.seed + i - 1)
  local net = rl.ActorCritic { obs = env.obs_space, action = env.action_space, hidden = { cfg.hidden, cfg.hidden } }
  local opt = optim.Adam(net.critic, { lr = cfg.lr })
  local rollout = peri.rollout { steps = T, rows = N, fields = { obs = seen, final_obs = seen, action = net.head.field,
    logp = "f32", reward = "f32", terminated = "bool", truncated = "bool", advantage = "f32", returns = "f32",
    value = "f32" } }
  learners[i] = { env = env, net = net, opt = opt, rollout = rollout }
  run:track("net" .. i, net):track("optimizer" .. i, opt):track("env" .. i, env)
end
run:best("eval", { mode = "max" })

local function play(net, env, rollout)
  for t = 1, T do
    local action, logp = net:policy(env.obs):act()
    rollout:set(t, { obs = env.obs, action = action, logp = logp })
    local _, reward, terminated, truncated = env:step(net.head:sent(action))
    rollout:set(t, { reward = reward, terminated = terminated, truncated = truncated, final_obs = env.final_obs })
  end
end

local function learn(self, row)
  local function value(x) return self.net:value(x) end
  local rollout = self.rollout
  peri.no_grad(play, self.net, self.env, rollout)
  rollout:put(rl.gae(rollout, { value = value, last = self.env.obs, gamma = cfg.gamma, lam = cfg.lam }))
  rl.checks.bootstrap(rollout, { value = value, gamma = cfg.gamma })
  local b = rollout:flatten()
  local advantage = (b.advantage - b.advantage:mean()) / (b.advantage:std() + 1e-8)
  rl.checks.constant { old_logp = b.logp, advantage = b.advantage, returns = b.returns }
  rl.checks.ratio(self.net:policy(b.obs):log_prob(b.action), b.logp)
  local info = rl.trust_region_({ self.net.actor, self.net.log_std }, { target_kl = cfg.target_kl,
    iterations = cfg.cg_iterations, damping = cfg.cg_damping, line_search = cfg.line_search, tries = cfg.tries,
    policy = function () return self.net:policy(b.obs) end,
    objective = function (d) return ((d:log_prob(b.action) - b.logp):exp() * advantage):mean() end })
  local made = { kl = info.kl, improvement = info.improvement, accepted = info.accepted and 1 or 0, tries = info.tries,
    residual = info.residual, explained_variance = rl.explained_variance(rollout:get "value", rollout:get "returns") }
  for _ = 1, cfg.critic_epochs do
    for _, batch in rollout:minibatches(math.min(cfg.batch, N * T)) do
      local loss = (value(batch.obs) - batch.returns):square():mean()
      loss:backward()
      self.opt:step():zero_grad()
      made.value_loss = loss:item()
    end
  end
  local ended = self.env:episodes().returns
  made["return"] = #ended > 0 and peri.tensor(ended, "f64"):mean():item() or nil
  for name, v in pairs(made) do row[name] = (row[name] or 0) + v / S end -- means of the seeds
end

local function score(how) -- mean returns of each seed, in environments of their own
  local list = {}
  for i, self in ipairs(learners) do
    list[i] = rl.evaluate(test, function (obs)
      local head, policy = self.net.head, self.net:policy(obs)
      if how == "random" then policy = head:dist(peri.zeros { cfg.eval, head.size }, { log_std = self.net.log_std }) end
      return head:sent(how == "greedy" and policy:deterministic() or policy:act())
    end, { episodes = cfg.eval, seed = 1000000 }).mean
  end
  return list
end

-- Loop.
if run:restore() == 0 then for _, self in ipairs(learners) do self.env:reset() end end
for update in run:steps() do
  local row = {}
  for _, self in ipairs(learners) do learn(self, row) end
  if update % cfg.eval_every == 0 or update == updates then row.eval = peri.tensor(score "greedy"):mean():item() end
  run:log(update, row)
end

local scores, drawn, random = score "greedy", score "drawn", score "random"
local best = learners[math.tointeger(peri.tensor(scores):argmax(1):item()) + 1]
rl.policy.save(run:path "policy.safetensors", { net = best.net, head = best.net.log_std and "gaussian" or "categorical",
  log_std = best.net.log_std, env = best.env })
run:plot("curves.svg", { { "return", "eval" }, "kl", "improvement", "explained_variance" })
run:text("%s, %d steps: greedy %s; drawn %s; at random %s; best of evaluations %.1f; rl-zoo's TRPO on CartPole: 500",
  cfg.env, cfg.timesteps, run:scores("greedy", scores), run:scores("drawn", drawn), run:scores("random", random),
  select(2, run:load_best "eval"))
run:finish()
