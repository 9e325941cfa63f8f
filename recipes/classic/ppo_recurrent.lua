-- ppo_recurrent.lua - proximal policy optimisation of a policy that remembers.
--
-- Teaches: PPO (Schulman et al. 2017, arXiv 1707.06347) with an LSTM, by the five details of "The 37 implementation
-- details": orthogonal weights, a state of zeros where an episode begins, resets inside of sequences, minibatches of
-- whole environments, states that are computed anew from the one that a rollout began with.
-- Run:  ./perilune run recipes/classic/ppo_recurrent.lua    CartPole that shows place and angle but no speeds: about a
--       minute on two cores. Its ablation: --memory none. With speeds: --columns_seen 1,2,3,4
-- Departs from CleanRL: policy and value share one LSTM; an episode that is cut has the value of its last observation
-- behind it.
local peri = require "perilune"
local optim, rl, recipe = peri.optim, peri.rl, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  env         = { "CartPole-v1", "environment with vectors as observations and discrete actions" },
  columns_seen = { "1,3", "numbers of the observation that are shown; empty = all" },
  memory      = { "lstm", "of the policy; none = layers of the same width", choices = { "lstm", "gru", "none" } },
  timesteps   = { 500000, "environment steps", budget = true },
  envs        = { 8, "environments", range = "[1, inf)" },
  steps       = { 128, "steps of a rollout", range = "[1, inf)" },
  epochs      = { 8, "passes over a rollout", range = "[1, inf)" },
  minibatches = { 4, "of each pass: as many parts of the environments", range = "[1, inf)" },
  lr          = { 3e-3, "learning rate", range = "[0, inf)" },
  anneal_lr   = { true, "down to 0 along a line" },
  gamma       = { 0.99, "discount", range = "[0, 1]" },
  lam         = { 0.95, "of advantages", range = "[0, 1]" },
  clip        = { 0.2, "of the ratio", range = "(0, inf)" },
  vf_coef     = { 0.5, "of the value loss", range = "[0, inf)" },
  ent_coef    = { 0.01, "of the entropy bonus", range = "[0, inf)" },
  max_norm    = { 0.5, "of all gradients together", range = "(0, inf)" },
  hidden      = { 64, "width", range = "[1, inf)" },
  log_updates = { 5, "updates between two rows of metrics", range = "[1, inf)" },
  eval        = { 20, "episodes of each evaluation", range = "[1, inf)" },
})
assert(cfg.envs % cfg.minibatches == 0, "--minibatches does not divide --envs")
local updates, rows = cfg.timesteps // (cfg.envs * cfg.steps), cfg.envs
local run = recipe.start { name = "ppo_recurrent", flags = cfg, total = updates, columns = { "return", "eval" } }
local env = peri.env.make(cfg.env, { n = rows, seed = cfg.seed })
local test = peri.env.make(cfg.env, { n = cfg.eval })
local columns = {}
for c in cfg.columns_seen:gmatch "%d+" do columns[#columns + 1] = math.tointeger(c) end

local net = rl.RecurrentActorCritic { obs = env.obs_space, action = env.action_space, memory = cfg.memory,
  hidden = cfg.hidden, columns = #columns > 0 and columns or nil }
local head, opt = net.head, optim.Adam(net:parameters(), { lr = cfg.lr, eps = 1e-5 })
local rollout = peri.rollout { steps = cfg.steps, rows = rows, fields = { obs = { "f32", env.obs_space.shape[1] },
  action = head.field, logp = "f32", reward = "f32", terminated = "bool", truncated = "bool", starts = "bool",
  value = "f32", after = "f32", advantage = "f32", returns = "f32" },
  starts = { state = { "f32", table.unpack(net:state_shape()) } } }
local now = { state = net:initial(rows), starts = peri.ones({ rows }, "bool") } -- of the environments
function now:state_dict() return { state = self.state, starts = self.starts } end
function now:load_state_dict(t) self.state, self.starts = t.state, t.starts end
run:track("net", net):track("optimizer", opt):track("env", env):track("now", now)
run:best("eval", { mode = "max", objects = { "net" } })

local function play(greedy) -- the mean return in environments of their own
  local state = net:initial(cfg.eval)
  return rl.evaluate(test, function (obs, began)
    local d, _, after = net:step(obs, state, began)
    state = peri.keep(after)
    return head:sent(greedy and d:deterministic() or (d:act()))
  end, { episodes = cfg.eval, seed = 1000000 }).mean
end

-- Loop.
env:reset()
local random, first, began = play(false), run:restore(), peri.time()
for update in run:steps() do
  local lr, obs, last = cfg.lr * (cfg.anneal_lr and 1 - (update - 1) / updates or 1), env.obs, nil
  peri.no_grad(function ()
    rollout:set(1, { state = now.state })
    for t = 1, cfg.steps do
      local d, value, state = net:step(obs, now.state, now.starts)
      local action, logp = d:act()
      local after, reward, terminated, truncated = env:step(head:sent(action))
      local cut = peri.zeros { rows } -- values of what is behind episodes that are cut
      if truncated:any():item() then cut = select(2, net:step(env.final_obs, state)) end
      rollout:set(t, { obs = obs, action = action, logp = logp, reward = reward, terminated = terminated,
        truncated = truncated, starts = now.starts, value = value, after = cut })
      obs, now.state, now.starts = after, state, terminated:logical_or(truncated)
    end
  end)
  peri.keep(now.state, now.starts)
  local field = {}
  for _, name in ipairs { "reward", "value", "after", "terminated", "truncated" } do
    field[name] = rollout:get(name):transpose(1, 2)
  end
  local behind = select(2, peri.no_grad(net.step, net, obs, now.state, now.starts)):unsqueeze(2)
  local after = peri.cat({ field.value:narrow(2, 2, cfg.steps - 1), behind }, 2)
  after = peri.where(field.truncated, field.after, after)
  local advantage, returns = peri.gae(field.reward, field.value, after, field.terminated, field.truncated,
    { gamma = cfg.gamma, lam = cfg.lam })
  rollout:put { advantage = advantage:transpose(1, 2), returns = returns:transpose(1, 2) }
  rl.checks.bootstrap(rollout, { gamma = cfg.gamma, after = rollout:get "after" })
  for epoch = 1, cfg.epochs do
    for i, b in rollout:minibatches(rows // cfg.minibatches, { whole = true }) do -- (steps, some rows, ...)
      local function flat(x) return x:transpose(1, 2):flatten(1, 2) end -- row by row
      local x, value = net:unroll(b.obs:transpose(1, 2), b.state, b.starts:transpose(1, 2))
      local logp, entropy = net:dist(x:flatten(1, 2)):evaluate(flat(b.action))
      if epoch == 1 and i == 1 then rl.checks.ratio(logp, flat(b.logp)) end
      local loss = peri.ppo_loss(logp, flat(b.logp), flat(b.advantage), entropy, value:flatten(), flat(b.returns),
        { clip = cfg.clip, vf_coef = cfg.vf_coef, ent_coef = cfg.ent_coef })
      loss:backward()
      opt:step({ lr = lr, clip = cfg.max_norm }):zero_grad()
      last = { entropy = entropy, logp = logp, old = flat(b.logp) }
    end
  end
  if update % cfg.log_updates == 0 or update == updates then
    local ended = env:episodes().returns
    run:log(update, { ["return"] = #ended > 0 and peri.tensor(ended, "f64"):mean() or nil, eval = play(true), lr = lr,
      approx_kl = peri.ppo_metrics(last.logp, last.old), entropy = last.entropy:mean(),
      explained_variance = rl.explained_variance(rollout:get "value", rollout:get "returns") },
      { steps_s = (update - first) * rows * cfg.steps / (peri.time() - began) })
  end
end

rl.policy.save(run:path "policy.safetensors", { net = net, head = "categorical", env = env })
run:plot("curves.svg", { run:last "return" and { "return", "eval" } or "eval", "entropy", "approx_kl" })
run:text("%s, %d steps, memory %s: greedy %s; drawn %s; at first %.1f; best %.1f", cfg.env, cfg.timesteps, cfg.memory,
  run:scores("greedy", play(true)), run:scores("drawn", play(false)), random, select(2, run:load_best "eval"))
run:finish()
