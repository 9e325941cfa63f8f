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
  local agent, count = copies and copies.net or Agent(), seeds and #seeds or 1
  local opt = peri.optim.Adam(agent, { lr = 2.5e-4, eps = 1e-5 })
  local rows, batch = n * count, STEPS * n
  local env = peri.env.make("CartPole-v1", { n = rows, seed = 1 })
  env:reset()
  local rollout = peri.rollout { steps = STEPS, rows = rows, fields = { obs = { "f32", 4 }, action = "i64", logp = "f32",
    reward = "f32", terminated = "bool", truncated = "bool", value = "f32", advantage = "f32", returns = "f32" } }
  local step_options = { clip = 0.5, copies = seeds and count }
  local loss_options = { clip = 0.2, clip_value = 0.2, vf_coef = 0.5, ent_coef = 0.01 }

  -- (time, rows, ...) <-> (seeds, time * n, ...)
  local function by_seed(x)
    local shape = { table.unpack(x.shape, 3) }
    return x:reshape { x.shape[1], count, n, table.unpack(shape) }:transpose(1, 2)
      :reshape { count, x.shape[1] * n, table.unpack(shape) }
  end
  local function by_row(x, steps) return x:reshape { count, steps, n }:transpose(1, 2):reshape { steps, rows } end

  local function policy(obs) return agent.actor(obs:reshape { count, n, 4 }):reshape { rows, 2 } end
  local function value(obs) -- (time, rows, 4) -> (time, rows)
    if not seeds then return agent.critic(obs):squeeze(-1) end
    return by_row(agent.critic(by_seed(obs)):squeeze(-1), obs.shape[1])
  end
  local function minibatches()
    if not seeds then return rollout:minibatches(batch // PARTS) end
    local all, order, part = {}, peri.randperm(batch), 0
    for name, x in pairs(rollout:state_dict()) do all[name] = by_seed(x) end
    return function ()
      if part == PARTS then return nil end
      local ids, some = order:narrow(1, part * batch // PARTS + 1, batch // PARTS), {}
      for name, x in pairs(all) do some[name] = x:index_select(ids, 2) end
      part = part + 1
      return part, some
    end
  end

  return function ()
    local scope <close> = peri.scope() -- luacheck: ignore 211
    do
      local _ <close> = peri.no_grad()
      local obs = env:collect(rollout, seeds and policy or agent.actor)
      local values = value(rollout:get "obs")
      local next_values = peri.cat({ values:narrow(1, 2, STEPS - 1), value(obs:unsqueeze(1)) }, 1)
      local cut = rollout:get("terminated"):logical_or(rollout:get "truncated") -- as CleanRL: a truncated episode ends
      local advantages = peri.gae(rollout:get("reward"):transpose(), values:transpose(), next_values:transpose(),
        cut:transpose(), nil, nil, 0.99, 0.95):transpose()
      rollout:put { value = values, advantage = advantages, returns = advantages:add(values) }
    end
    for _ = 1, EPOCHS do
      for _, b in minibatches() do
        local inner <close> = peri.scope() -- luacheck: ignore 211
        local logp, entropy = agent.actor(b.obs):categorical_logprob(b.action)
        local loss = peri.ppo_loss(logp, b.logp, b.advantage, entropy, agent.critic(b.obs):squeeze(-1), b.returns, b.value,
          loss_options)
        if seeds then loss = loss:sum() end
        loss:backward()
        opt:step(step_options):zero_grad()
      end
    end
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
