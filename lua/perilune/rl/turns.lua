-- turns.lua - advantages where agents act in turn: what others' moves bring belongs to the action before.

local peri = require "perilune"
local gae = require "perilune.rl.gae"
local options = require "perilune.options"

local M = {}

local rules = {}
for name, rule in pairs(gae.rules) do rules[name] = rule end
rules.live = options.value(options.required, "tensor", "(rows) bool, who acts behind the last step: env.live")

local needed = { "obs", "terminated", "truncated", "live" }

-- One row of (steps, rows) tensors.
local function at(field, t)
  local row = {}
  for name, x in pairs(field) do row[name] = x:select(1, t) end
  return row
end

--- Advantages as rl.gae gives them, of the actions of agents that do not act at every step: those who wait for others'
--- turns or are out. The rollout has also the field live, env.live as it was before each step. An action's reward is
--- the sum until its agent acts again or its episode ends, also of what others' moves brought it (PettingZoo's last()),
--- and what follows it is the agent's next own observation: with steps t and t' of two actions in turn, delta_t =
--- sum of r_t .. r_t'-1 + gamma V(obs_t') - V(obs_t), and A_t = delta_t + gamma lam A_t'. A discount is one for each
--- action. counts says which steps are actions whose outcome is known: not those that wait, nor an action at the end
--- of the rollout that others have yet to answer. Pass it as the mask of ppo_loss. With agents that all act at every
--- step it is rl.gae.
---
---     rollout:set(t, { obs = env.obs, live = env.live, action = action, logp = logp, mask = env.mask })
---     rollout:put(rl.turn_gae(rollout, { value = value, last = env.obs, live = env.live }))
---
--- @param rollout perilune.Rollout
--- @param opts table
--- @return table  advantage, returns, value and counts, each (steps, rows); 0 where counts is false
function M.turn_gae(rollout, opts)
  local who = "rl.turn_gae"
  options.argument(who, "rollout", rollout, "userdata")
  local o = options.fill(who, opts, rules)
  local _ <close> = peri.no_grad()
  local field = {}
  for _, name in ipairs(needed) do field[name] = rollout:get(name) end
  field.reward = o.reward or rollout:get "reward"
  if options.shape(field.reward) ~= options.shape(field.terminated) then
    options.raise(("%s: reward is %s, expected %s"):format(who, options.shape(field.reward),
      options.shape(field.terminated)))
  end
  options.finite(who, "reward", field.reward)
  local value = gae.values(who, field.obs, o.value, o.seeds)
  field.obs, field.value = nil, value
  local steps, rows = value.shape[1], value.shape[2]
  if options.shape(o.live) ~= options.shape { rows } or o.live.dtype ~= "bool" then
    options.raise(("%s: live is %s of %s, expected (%d) bool"):format(who, options.shape(o.live), o.live.dtype, rows))
  end
  if o.truncation == "ignore" then
    field.terminated, field.truncated = field.terminated:logical_or(field.truncated), nil
  elseif field.truncated:any():item() then
    field.cut = gae.values(who, rollout:get "final_obs", o.value, o.seeds)
      :masked_fill(field.truncated:logical_not(), 0)
  end
  -- Backwards, of each row: rewards since, the value and the advantage of its next action, whether that is known.
  local none = value:select(1, 1) * 0
  local known, sum, trace = o.live, none, none
  local after = gae.values(who, o.last:unsqueeze(1), o.value, o.seeds):squeeze(1)
  local advantage, counts = {}, {}
  for t = steps, 1, -1 do
    local now = at(field, t)
    local over = now.truncated and now.terminated:logical_or(now.truncated) or now.terminated
    sum = now.reward + sum:masked_fill(over, 0)
    after = after:masked_fill(over, 0)
    if now.cut then after = after + now.cut:masked_fill(now.terminated, 0) end
    trace, known = trace:masked_fill(over, 0), known:logical_or(over)
    counts[t] = now.live:logical_and(known)
    local a = (sum + after * o.gamma - now.value + trace * (o.gamma * o.lam)):masked_fill(counts[t]:logical_not(), 0)
    advantage[t] = a
    sum = sum:masked_fill(now.live, 0)
    after, trace = peri.where(now.live, now.value, after), peri.where(now.live, a, trace)
    known = known:logical_or(now.live)
  end
  local found = peri.stack(advantage, 1)
  counts = peri.stack(counts, 1)
  return { advantage = found, returns = (found + value):masked_fill(counts:logical_not(), 0), value = value,
    counts = counts }
end
options.declare(M.turn_gae, { "rollout" }, rules)

return M
