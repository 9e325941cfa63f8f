-- hierarchical.lua - two policies in four rooms: the upper one says where to go, the lower one goes there.
--
-- Teaches: an upper policy picks a subgoal (a doorway or a corner), a lower one sees cell and subgoal and acts until it
-- is there or its steps run out; both learn by PPO. The lower one is paid for arriving (Kulkarni et al. 2016,
-- 1604.06057), the upper one by the environment, k steps later gamma^k (Sutton, Precup and Singh 1999, four rooms and
-- semi-Markov decisions; rl.smdp_gae). The only reward is in the last room, closed to those without the key.
-- Run:  ./perilune run recipes/meta/hierarchical.lua    ten pairs at once: half a minute of one core.
--       Without: --method flat (one policy, equal steps), --upper random, --intrinsic false
-- Departs from both: subgoals are given, not found; both levels learn from the beginning.
local peri = require "perilune"
local nn, optim, rl, recipe = peri.nn, peri.optim, peri.rl, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  method    = { "two", "levels of policies", choices = { "two", "flat" } },
  upper     = { "learned", "the upper policy", choices = { "learned", "random" } },
  intrinsic = { true, "the lower policy is paid for arriving; false: by the environment" },
  seeds     = { 10, "pairs that learn beside each other", range = "[1, inf)" },
  timesteps = { 102400, "environment steps of each", budget = true },
  envs      = { 8, "environments of each", range = "[1, inf)" },
  steps     = { 64, "steps of a rollout", range = "[1, inf)" },
  patience  = { 16, "steps after which a subgoal is given up", range = "[1, inf)" },
  limit     = { 80, "steps of an episode", range = "[1, inf)" },
  lr        = { 3e-3, "learning rate", range = "[0, inf)" },
  log_every = { 10, "updates between rows of metrics", range = "[1, inf)" },
  eval      = { 20, "episodes of the evaluation and seed", range = "[1, inf)" },
})
local S, rows, updates = cfg.seeds, cfg.seeds * cfg.envs, cfg.timesteps // (cfg.envs * cfg.steps)
local two = cfg.method == "two"
local run = recipe.start { name = "hierarchical", flags = cfg, total = updates, columns = { "return", "arrived" } }
local map = "#############/#S....#....a#/#.....#.....#/#...........#/#.....#.....#/#.....#.....#/##.####.....#/"
  .. "#.....###A###/#.....#.....#/#.....#.....#/#.....A.....#/#.....#....G#/#############"
local cells = peri.tensor({ 45, 80, 100, 136, 14, 24, 144, 154 }, "i64") -- doorways, then corners: row * 13 + column
local world = { seed = cfg.seed, n = rows, map = map, slip = 0, step_reward = 0, max_steps = cfg.limit }
local env = peri.env.make("GridWorld-v0", world)
local function cell(obs) return obs - obs:ge(169):to "i64" * 169 end -- states are cells, and again those with the key
local function place(at) return peri.stack({ at:div(13):floor(), at:to "f32" - at:div(13):floor() * 13 }, -1) / 12 end
local function seen(obs, goal) -- cell and key, and the way to the subgoal
  local list = { cell(obs):one_hot(169):to "f32", obs:ge(169):to("f32"):unsqueeze(-1) }
  list[3] = goal and place(cells:index_select(goal, 1)) - place(cell(obs))
  return peri.cat(list, -1)
end
-- A level: a policy and a value of each seed, their optimizer, what they saw and did.
local function level(name, width, action)
  local box = peri.env.box(0, 1, { shape = { width } })
  local function new() return rl.ActorCritic { obs = box, action = action, hidden = { 64 } } end
  local self, obs = { copies = nn.Copies(S, new, { seeds = peri.arange(S):add(cfg.seed):tolist() }) }, { "f32", width }
  self.net, self.opt = self.copies.net, optim.Adam(self.copies:parameters(), { lr = cfg.lr, eps = 1e-5 })
  self.rollout = peri.rollout { steps = cfg.steps, rows = rows, fields = { obs = obs, final_obs = obs,
    action = "i64", logp = "f32", reward = "f32", terminated = "bool", truncated = "bool", chosen = "bool",
    advantage = "f32", returns = "f32", value = "f32" } }
  function self.act(x) return rl.together(self.net:policy(rl.apart(x, S)):act()) end
  run:track(name, self.copies):track(name .. "_optimizer", self.opt)
  return self
end
local upper = level("upper", 170, two and peri.env.discrete(#cells) or env.action_space)
local lower = two and level("lower", 172, env.action_space) or nil
if cfg.upper == "random" then upper.act = function (x) return peri.randint(0, #cells, { #x }), peri.zeros { #x } end end
local function reached_by(obs, goal) return cell(obs):eq(cells:index_select(goal, 1)) end
local function subgoals(n) return rl.subgoals { rows = n, steps = cfg.patience, reached = reached_by } end
local sub = subgoals(rows)
run:track("env", env):track("subgoals", sub)
local function learn(self, gae, last)
  local function value(x) return self.net:value(x) end
  self.rollout:put(gae(self.rollout, { value = value, last = last, gamma = 0.98, lam = 0.95, seeds = S }))
  for epoch = 1, 4 do
    for _, b in self.rollout:minibatches(cfg.envs * cfg.steps, { groups = S }) do -- one, (S, envs * steps, ...)
      local d, v = self.net:both(b.obs)
      local logp, entropy = d:evaluate(b.action)
      if epoch == 1 then rl.checks.ratio(peri.where(b.chosen, logp, b.logp), b.logp) end
      local how = { mask = b.chosen, ent_coef = 0.02 }
      peri.ppo_loss(logp, b.logp, b.advantage, entropy, v, b.returns, b.value, how):sum():backward()
      self.opt:step({ clip = 0.5, copies = S }):zero_grad()
    end
  end
end
local function evaluate() -- mean returns of the seeds, in environments of their own
  world.n = S * cfg.eval
  local mine, test = subgoals(world.n), peri.env.make("GridWorld-v0", world)
  return rl.evaluate(test, function (obs, began)
    local goal, reached, out = upper.act(seen(obs)), mine:look(obs)
    mine:close(reached:logical_or(out):logical_or(began))
    mine:set(goal)
    return two and lower.act(seen(obs, mine.goal)) or goal
  end, { episodes = world.n, seeds = S, seed = 1000000 }).of_seed
end
-- Loop.
if run:restore() == 0 then env:reset() end
for update in run:steps() do
  local arrived, tried, all = 0, 0, peri.ones({ rows }, "bool")
  for t = 1, cfg.steps do
    local _ <close> = peri.no_grad()
    local now, goal, logp = seen(env.obs), upper.act(seen(env.obs))
    local action, chosen = goal, two and sub:set(goal) or all
    local low = two and { obs = seen(env.obs, sub.goal), chosen = all }
    if two then action, low.logp = lower.act(low.obs) end
    local reward, terminated, truncated = select(2, env:step(action))
    upper.rollout:set(t, { obs = now, chosen = chosen, action = goal, logp = logp, reward = reward,
      terminated = terminated, truncated = truncated, final_obs = seen(env.final_obs) })
    if two then
      local reached, out = sub:look(env.final_obs)
      low.action, low.reward = action, cfg.intrinsic and reached:to "f32" or reward
      low.terminated, low.truncated = reached:logical_or(terminated), out:logical_or(truncated)
      low.final_obs = seen(env.final_obs, sub.goal)
      lower.rollout:set(t, low)
      sub:close(low.terminated:logical_or(low.truncated))
      arrived, tried = arrived + reached:to("f32"):sum():item(), tried + chosen:to("f32"):sum():item()
    end
  end
  if cfg.upper == "learned" then learn(upper, rl.smdp_gae, seen(env.obs)) end
  if two then learn(lower, rl.gae, seen(env.obs, sub.goal)) end
  if update % cfg.log_every == 0 or update == updates then
    local ended = env:episodes().returns
    run:log(update, { ["return"] = #ended > 0 and peri.tensor(ended, "f64"):mean():item() or nil,
      arrived = two and arrived / math.max(tried, 1) or nil })
  end
end
assert(peri.safetensors.save(run:path "net.safetensors", upper.copies:state_dict()))
run:plot("curves.svg", { "return", two and "arrived" or nil })
run:text("%d steps of each: share of episodes that reach the goal %s", cfg.timesteps, (rl.report(evaluate())))
run:finish()
