-- gae.lua - advantages of a rollout: what the values of its observations are, what comes behind its last steps, and
-- what an episode that was cut would still have been worth.

local peri = require "perilune"
local options = require "perilune.options"

local M = {}

M.rules = {
  value = options.value(options.required, "callable", "value(obs) of observations (n, ...) -> (n), with seeds "
    .. "(seeds, n, ...) -> (seeds, n)"),
  last = options.value(options.required, "tensor", "(rows, ...) the observations behind the last step"),
  reward = options.value(options.none, "tensor", "(steps, rows) in the place of the rollout's own: a cost, say, "
    .. "of which value is then the value"),
  gamma = options.number(0.99, "[0, 1]", "discount"),
  lam = options.number(0.95, "[0, 1]", "of the traces: 1 is all rewards, 0 the next value"),
  truncation = options.choice("bootstrap", { "bootstrap", "ignore" },
    "a truncated episode goes on with the value of final_obs; or, as CleanRL has it, counts as terminated"),
  seeds = options.integer(options.none, "[1, inf)", "learners that share the rows, one behind the other"),
}

local needed = { "obs", "terminated", "truncated" }

-- (steps, rows, ...) as the value function takes it: (seeds, steps * rows of each, ...) or (steps * rows, ...).
local function arranged(x, seeds)
  local shape = x.shape
  local steps, rows, rest = shape[1], shape[2], { table.unpack(shape, 3) }
  if not seeds then return x:reshape { steps * rows, table.unpack(rest) } end
  if seeds > 1 then x = x:reshape({ steps, seeds, rows // seeds, table.unpack(rest) }):transpose(1, 2) end
  return x:reshape { seeds, steps * (rows // seeds), table.unpack(rest) }
end

-- Values of observations (steps, rows, ...) -> (rows, steps).
local function values_of(who, o, x)
  local steps, rows, n = x.shape[1], x.shape[2], o.seeds or 1
  local v = o.value(arranged(x, o.seeds))
  local want = o.seeds and { n, steps * (rows // n) } or { steps * rows }
  if not peri.is_tensor(v) or options.shape(v) ~= options.shape(want) then
    options.raise(("%s: value gave %s, expected a tensor %s"):format(who,
      peri.is_tensor(v) and options.shape(v) or type(v), options.shape(want)))
  end
  return v:reshape({ n, steps, rows // n }):transpose(2, 3):reshape { rows, steps }
end

--- Values of observations (steps, rows, ...), as (steps, rows); no gradient.
--- @param who string  for messages
--- @param obs perilune.Tensor
--- @param value fun(obs: perilune.Tensor): perilune.Tensor
--- @param seeds integer?
--- @return perilune.Tensor
function M.values(who, obs, value, seeds)
  local _ <close> = peri.no_grad()
  return values_of(who, { value = value, seeds = seeds }, obs):transpose(1, 2)
end

--- Advantages of a rollout by generalised advantage estimation (Schulman et al. 2016, eq. 16), what the values should
--- be, and what they are. The rollout has the fields obs, reward, terminated and truncated, and final_obs, what each
--- step led to, unless truncation is "ignore". delta_t = r_t + gamma V(what t led to) (1 - terminated_t) - V(obs_t),
--- and A_t = delta_t + gamma lam A_t+1 within an episode. No gradient passes.
---
---     rollout:put(rl.gae(rollout, { value = value, last = env.obs }))
---
--- @param rollout perilune.Rollout
--- @param opts table
--- @return table  advantage, returns (advantage + value) and value, each (steps, rows)
function M.gae(rollout, opts)
  local who = "rl.gae"
  options.argument(who, "rollout", rollout, "userdata")
  local o = options.fill(who, opts, M.rules)
  local _ <close> = peri.no_grad()
  local field = {}
  for _, name in ipairs(needed) do field[name] = rollout:get(name) end
  field.reward = o.reward or rollout:get "reward"
  local rows = field.obs.shape[2]
  if options.shape(field.reward) ~= options.shape(field.terminated) then
    options.raise(("%s: reward is %s, expected %s"):format(who, options.shape(field.reward),
      options.shape(field.terminated)))
  end
  options.finite(who, "reward", field.reward)
  if o.seeds and rows % o.seeds ~= 0 then
    options.raise(("%s: seeds is %d, which does not divide the %d rows"):format(who, o.seeds, rows))
  end
  local value = values_of(who, o, field.obs)
  local steps = value.shape[2]
  local behind = values_of(who, o, o.last:unsqueeze(1))
  local after = steps > 1 and peri.cat({ value:narrow(2, 2, steps - 1), behind }, 2) or behind
  local reward, terminated = field.reward:transpose(1, 2), field.terminated:transpose(1, 2)
  local truncated = field.truncated:transpose(1, 2)
  if o.truncation == "ignore" then terminated, truncated = terminated:logical_or(truncated), nil
  elseif truncated:any():item() then
    after = peri.where(truncated, values_of(who, o, rollout:get "final_obs"), after)
  end
  local advantage, returns = peri.gae(reward, value, after, terminated, truncated, { gamma = o.gamma, lam = o.lam })
  return { advantage = advantage:transpose(1, 2), returns = returns:transpose(1, 2), value = value:transpose(1, 2) }
end
options.declare(M.gae, { "rollout" }, M.rules)

return M
