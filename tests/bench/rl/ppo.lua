-- ppo.lua - PPO on CartPole from end to end with CleanRL's settings, beside the same program as one jitted scan in
-- JAX: 4 and 64 environments of 128 steps, 4 epochs of 4 minibatches, an actor and a critic of two layers of 64. Medians
-- of repetitions that take turns. Then several seeds as one batched network: what 20 cost beside one.
local peri = require "perilune"
local nn = peri.nn
local STEPS <const>, EPOCHS <const>, PARTS <const> = 128, 4, 4

local Agent = nn.class("Agent", function (self)
  self.actor = nn.MLP { 4, 64, 64, 2, last_gain = 0.01 }
  self.critic = nn.MLP { 4, 64, 64, 1 }
end)

-- A learner of so many environments, or of so many for each of several seeds; returns update() -> returns of episodes.
local function learner(n, seeds)
  local copies = seeds and nn.Copies(#seeds, Agent, { seeds = seeds })
  local agent = copies and copies.net or Agent()
  local lead, rows = seeds and { #seeds } or {}, n * (seeds and #seeds or 1)
  local at = #lead + 1 -- the dim of environments, and of rows of a batch
  local function shape(...) return { lead[1], ... } end
  if not seeds then shape = function (...) return { ... } end end
  local opt = peri.optim.Adam(agent, { lr = 2.5e-4, eps = 1e-5 })
  local env = peri.env.make("CartPole-v1", { n = rows, seed = 1 })
  local obs = peri.keep(env:reset():reshape(shape(n, 4)))
  local step_options = { clip = 0.5, copies = seeds and #seeds }
  local batch = STEPS * n
  return function ()
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local O, A, L, R, D, C = {}, {}, {}, {}, {}, {}
    local all, values, advantages
    do
      local _ <close> = peri.no_grad()
      for t = 1, STEPS do
        O[t] = obs
        A[t], L[t] = agent.actor(obs):sample()
        obs, R[t], D[t], C[t] = env:step(seeds and A[t]:flatten() or A[t])
        if seeds then obs = obs:reshape(shape(n, 4)) end
      end
      O[STEPS + 1] = obs
      all = peri.stack(O, at) -- (STEPS + 1, n, 4) behind the seeds
      local v = agent.critic(all):squeeze(-1)
      values = v:narrow(at, 1, STEPS)
      local function by_row(list) return peri.stack(list, 2) end -- (rows, STEPS)
      local function in_time(x) return x:transpose(-2, -1):reshape { rows, STEPS } end
      local cut = by_row(D):logical_or(by_row(C)) -- as CleanRL: a truncated episode ends
      advantages = peri.gae(by_row(R), in_time(values), in_time(v:narrow(at, 2, STEPS)), cut, nil, nil, 0.99, 0.95)
      advantages = advantages:reshape(shape(n, STEPS)):transpose(-2, -1):reshape(shape(batch))
      values = values:reshape(shape(batch))
    end
    local function flat(list, ...) return peri.stack(list, at):reshape(shape(batch, ...)) end
    local x, actions, old = all:narrow(at, 1, STEPS):reshape(shape(batch, 4)), flat(A), flat(L)
    local returns = advantages:add(values)
    for _ = 1, EPOCHS do
      local order = peri.randperm(batch)
      for part = 1, PARTS do
        local inner <close> = peri.scope() -- luacheck: ignore 211
        local ids = order:narrow(1, (part - 1) * batch // PARTS + 1, batch // PARTS)
        local function of(t) return t:index_select(ids, at) end
        local some = of(x)
        local logp, entropy = agent.actor(some):categorical_logprob(of(actions))
        local loss = peri.ppo_loss(logp, of(old), of(advantages), entropy, agent.critic(some):squeeze(-1), of(returns),
          of(values), { clip = 0.2, clip_value = 0.2, vf_coef = 0.5, ent_coef = 0.01 })
        if seeds then loss = loss:sum() end
        loss:backward()
        opt:step(step_options):zero_grad()
      end
    end
    obs = peri.keep(obs:clone())
    return env:episodes().returns
  end
end

-- Seconds of so many updates.
local function timed(update, updates)
  local t = peri.time()
  for _ = 1, updates do update() end
  return peri.time() - t
end

return function (shared)
  local measure, opts = shared.measure, shared.opts
  local jax = measure.peers(shared.here, opts.peers, { "jax" }).jax
  print(("%d threads, peer %s"):format(peri.threads(), jax and jax.version or "missing: tests/bench/peers/install.sh"))
  print(("%-32s %14s %14s  %s"):format("median of " .. opts.reps, "steps/s", "JAX", "ratio"))
  for _, case in ipairs { { n = 4, updates = 100, must = 1.2 }, { n = 64, updates = 20, must = 1.5 } } do
    peri.seed(1)
    local update, ours, theirs, ratio = learner(case.n), {}, {}, {}
    timed(update, 5)
    local steps = case.n * STEPS * case.updates
    for rep = 1, opts.reps do
      ours[rep] = steps / timed(update, case.updates)
      local seconds = jax and jax:ask("ppo", case.n, case.updates)
      if seconds then theirs[rep], ratio[rep] = steps / seconds, ours[rep] * seconds / steps end
    end
    local r = measure.median(ratio)
    print(("%-32s %14.0f %14s  %s"):format(("PPO CartPole, %d environments"):format(case.n), measure.median(ours),
      r and ("%.0f"):format(measure.median(theirs)) or "-",
      r and ("%.2f  >= %.1f %s"):format(r, case.must, r >= case.must and "met" or "MISSED") or "-"))
  end
  local list = {}
  for i = 1, 20 do list[i] = i end
  local one, many = learner(4), learner(4, list)
  timed(one, 5)
  timed(many, 2)
  local ratio = {}
  for rep = 1, opts.reps do ratio[rep] = timed(many, 10) / timed(one, 10) end
  print(("%-32s %.1f times the time of one"):format("20 seeds at once, 4 environments", measure.median(ratio)))
end
