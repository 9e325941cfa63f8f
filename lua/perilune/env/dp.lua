-- dp.lua - dynamic programming on environments that have a transition model: the exact yardsticks of learners.
local options = require "perilune.options"

local M = {}

local rules = {
  steps = options.integer(options.none, "[0, inf)",
    "horizon; 0: none. By default the environment's time limit"),
  discount = options.number(1, "[0, 1]", "of the next step's value"),
  tolerance = options.number(1e-12, "(0, inf)", "without a horizon: sweeps end when no value changes by more"),
  sweeps = options.integer(100000, "[1, inf)", "without a horizon: the most sweeps, more is an error"),
}

local function read (what, env, opts)
  local o = options.fill(what, opts, rules)
  o.steps = o.steps or env.max_steps or 0
  return env:model(), o
end

-- What the outcomes of an action are worth where states of the next step are worth `values`.
local function worth (outcomes, values, discount)
  local sum = 0
  for i = 1, #outcomes do
    local o = outcomes[i]
    local v = o.reward
    if not o.terminated then v = v + discount * values[o.next] end
    sum = sum + o.p * v
  end
  return sum
end

-- Sweeps of value[s] <- better(transitions of s, values of the next step) up to the horizon, or until they rest.
local function sweep (what, model, o, better)
  local values = {}
  for s = 0, model.states - 1 do values[s] = 0 end
  local n = 0
  while true do
    local new, change = {}, 0
    for s = 0, model.states - 1 do
      local v = better(s, model.transitions[s], values)
      change = math.max(change, math.abs(v - values[s]))
      new[s] = v
    end
    values, n = new, n + 1
    if o.steps > 0 and n == o.steps or o.steps == 0 and change <= o.tolerance then break end
    if o.steps == 0 and n == o.sweeps then
      options.raise(("%s: values still change by %g after %d sweeps; give a horizon 'steps' or a 'discount' below 1")
        :format(what, change, n), 3)
    end
  end
  local value = 0
  for _, first in ipairs(model.first) do value = value + first.p * values[first.next] end
  return value, values
end

--- The greatest expected return of an environment with a model, from its first states, and the actions that reach it.
--- Value iteration; with a horizon (the environment's time limit by default) the optimum over policies that know the
--- steps left, and the policy is that of the first step.
--- @param env perilune.env.Env
--- @param opts table?
--- @return number value  the mean over the first states
--- @return table policy  action of each state, from 0 on
--- @return table values  of each state, from 0 on
function M.optimal (env, opts)
  local model, o = read("env.optimal", env, opts)
  local policy = {}
  local function best (s, actions, values)
    local most = -math.huge
    for a = 0, model.actions - 1 do
      local v = worth(actions[a], values, o.discount)
      if v > most then most, policy[s] = v, a end
    end
    return most
  end
  local value, values = sweep("env.optimal", model, o, best)
  return value, policy, values
end
options.declare(M.optimal, { "env" }, rules)

--- The expected return of a policy in an environment with a model, from its first states.
--- @param env perilune.env.Env
--- @param policy table|fun(state: integer): integer|table  of each state, from 0 on, the action, or a list of the
--- probabilities of actions
--- @param opts table?
--- @return number value  the mean over the first states
--- @return table values  of each state, from 0 on
function M.evaluate (env, policy, opts)
  local model, o = read("env.evaluate", env, opts)
  local chosen = {}
  for s = 0, model.states - 1 do
    local what
    if type(policy) == "table" then what = policy[s] else what = policy(s) end
    if type(what) == "table" then
      if #what ~= model.actions then
        options.raise(("env.evaluate: state %d has %d probabilities, expected %d"):format(s, #what, model.actions))
      end
    elseif math.type(what) ~= "integer" or what < 0 or what >= model.actions then
      options.raise(("env.evaluate: state %d has action %s, expected an integer from 0 to %d"):format(s,
        tostring(what), model.actions - 1))
    end
    chosen[s] = what
  end
  return sweep("env.evaluate", model, o, function (s, actions, values)
    local what = chosen[s]
    if type(what) ~= "table" then return worth(actions[what], values, o.discount) end
    local sum = 0
    for a = 0, model.actions - 1 do
      if what[a + 1] ~= 0 then sum = sum + what[a + 1] * worth(actions[a], values, o.discount) end
    end
    return sum
  end)
end
options.declare(M.evaluate, { "env", "policy" }, rules)

return M
