-- tabular.lua - action values of small environments as plain Lua numbers: one for each state and action.

local peri = require "perilune"
local options = require "perilune.options"

local M = {}

local rules = {
  initial = options.number(0, "(-inf, inf)", "value of every action; above what can be earned it makes all be tried"),
  seed = options.integer(options.none, "[0, inf)", "of its generator; none: from peri's"),
}

--- @class perilune.rl.Tabular
--- @field states integer
--- @field actions integer
--- @field q table<integer, number[]>  q[state][action], both from 1 on
--- @field visits table<integer, integer[]>  updates of each
--- @field rng table  of peri.env.rng: it decides what is tried
local Tabular = {}
Tabular.__index = Tabular
Tabular.__name = "perilune.rl.Tabular"

-- How many states there are, and the sizes of a multi-discrete observation.
local function states_of(space)
  if space.kind == "discrete" then return space.n end
  if space.kind ~= "multi_discrete" then
    options.raise(("rl.tabular: observations are a %s, expected Discrete or MultiDiscrete"):format(tostring(space)))
  end
  local n = 1
  for _, k in ipairs(space.nvec) do n = n * k end
  return n, space.nvec
end

--- A table of action values for an environment with numbered observations and actions.
---
---     local values = rl.tabular(env, { seed = 1 })
---     local s = values:state(env:reset())
---     local a = values:epsilon_greedy(s, 0.1)            -- from 1 on; the environment takes a - 1
---     local next_obs, reward, terminated = env:step(a - 1)
---
--- @param env perilune.env.Env  a single one
--- @param opts table?
--- @return perilune.rl.Tabular
function M.tabular(env, opts)
  local o = options.fill("rl.tabular", opts, rules)
  options.argument("rl.tabular", "env", env, "table")
  if env.n then options.raise "rl.tabular: the environment has rows; make it without n" end
  if env.action_space.kind ~= "discrete" then
    options.raise(("rl.tabular: actions are a %s, expected Discrete"):format(tostring(env.action_space)))
  end
  local n, nvec = states_of(env.obs_space)
  local rng = peri.env.rng(o.seed or peri.randint(0, 1 << 31, { 1 }):item())
  local self = setmetatable({ states = n, actions = env.action_space.n, q = {}, visits = {}, rng = rng, _nvec = nvec,
    _start = env.obs_space.start or 0 }, Tabular)
  for s = 1, n do
    local q, visits = {}, {}
    for a = 1, self.actions do q[a], visits[a] = o.initial, 0 end
    self.q[s], self.visits[s] = q, visits
  end
  return self
end
options.declare(M.tabular, { "env" }, rules)

--- The number of the state that an observation is, from 1 on.
--- @param obs integer|perilune.Tensor
--- @return integer
function Tabular:state(obs)
  if not self._nvec then return obs - self._start + 1 end
  local s = 0
  for i, v in ipairs(obs:tolist()) do s = s * self._nvec[i] + v end
  return s + 1
end

-- The greatest value of a list.
local function most(q)
  local best = q[1]
  for a = 2, #q do
    if q[a] > best then best = q[a] end
  end
  return best
end

--- The value of the best action of a state.
--- @param s integer
--- @return number
function Tabular:max(s) return most(self.q[s]) end

--- The best action of a state, the first of equal ones.
--- @param s integer
--- @return integer  from 1 on
function Tabular:greedy(s)
  local q = self.q[s]
  local best = 1
  for a = 2, #q do
    if q[a] > q[best] then best = a end
  end
  return best
end

--- The best action, any of equal ones, or with probability epsilon any action.
--- @param s integer
--- @param epsilon number  in [0, 1]
--- @return integer  from 1 on
function Tabular:epsilon_greedy(s, epsilon)
  local q, rng = self.q[s], self.rng
  if rng:double() < epsilon then return rng:integer(#q) + 1 end
  local best, ties = 1, 1
  for a = 2, #q do
    if q[a] > q[best] then best, ties = a, 1
    elseif q[a] == q[best] then
      ties = ties + 1
      if rng:integer(ties) == 0 then best = a end
    end
  end
  return best
end

--- An action drawn with probability proportional to e^(q / temperature).
--- @param s integer
--- @param temperature number  above 0
--- @return integer  from 1 on
function Tabular:boltzmann(s, temperature)
  local q, weights, sum = self.q[s], {}, 0
  local top = most(q)
  for a = 1, #q do
    weights[a] = math.exp((q[a] - top) / temperature)
    sum = sum + weights[a]
  end
  local left = self.rng:double() * sum
  for a = 1, #q - 1 do
    left = left - weights[a]
    if left < 0 then return a end
  end
  return #q
end

--- The mean value of what epsilon_greedy does: what Expected SARSA learns from (van Seijen et al. 2009, eq. 5).
--- @param s integer
--- @param epsilon number  in [0, 1]
--- @return number
function Tabular:expected(s, epsilon)
  local q, sum = self.q[s], 0
  for a = 1, #q do sum = sum + q[a] end
  return (1 - epsilon) * most(q) + epsilon * sum / #q
end

--- Draw the value of an action a step towards a target: by alpha / n^omega of the way, where n counts its updates.
--- omega 0 is a constant rate, 1 the mean of all targets; in between values converge, and old ones are forgotten
--- (Even-Dar and Mansour 2003).
--- @param s integer
--- @param a integer
--- @param target number
--- @param alpha number
--- @param omega number
--- @return number err  target - value, before
function Tabular:update(s, a, target, alpha, omega)
  if target - target ~= 0 then
    options.raise(("tabular:update: target is %s, expected a finite number"):format(target))
  end
  local q, visits = self.q[s], self.visits[s]
  local n, err = visits[a] + 1, target - q[a]
  visits[a] = n
  q[a] = q[a] + (omega == 0 and alpha or alpha * n ^ -omega) * err
  return err
end

--- The greedy policy as peri.env.evaluate takes it: states and actions from 0 on. Where a model tells states apart that
--- look alike (a natural in Blackjack), they follow behind the ones that are seen.
--- @return fun(state: integer): integer
function Tabular:policy()
  return function (state) return self:greedy(state % self.states + 1) - 1 end
end

-- The table as a module, for policy files.
local Lookup = peri.nn.class("Lookup", function (self, table_)
  self.weight = peri.tensor(table_.q, "f32")
  if table_._nvec then
    local strides = { 1 }
    for i = #table_._nvec, 2, -1 do table.insert(strides, 1, strides[1] * table_._nvec[i]) end
    self.strides = peri.tensor(strides, "i64")
  end
  self.start = table_._start
end)
function Lookup:forward(obs)
  return peri.embedding(self.weight, self.strides and (obs * self.strides):sum(-1) or obs - self.start)
end
function Lookup:program(build, obs)
  local state = obs
  if self.strides then
    state = build:op("sum", { build:op("mul", { obs, self.strides }) }, { dims = { -1 } })
  elseif self.start ~= 0 then state = build:op("sub", { obs, peri.tensor(self.start, "i64") }) end
  return build:op("embedding", { self.weight, state })
end

--- The values as a module from observations (n, ...) to (n, actions), for peri.rl.policy.save.
--- @return perilune.nn.Module
function Tabular:network() return Lookup(self) end

--- Everything that a resumed run needs.
--- @return table tensors
function Tabular:state_dict()
  local rng = self.rng:state()
  return { q = peri.tensor(self.q, "f64"), visits = peri.tensor(self.visits, "i64"),
           rng = peri.from_bytes(rng, "u8", { #rng }) }
end

--- @param tensors table  of state_dict
function Tabular:load_state_dict(tensors)
  for _, name in ipairs { "q", "visits", "rng" } do
    local t = tensors[name]
    options.argument("tabular:load_state_dict", name, t, "tensor")
    if name ~= "rng" and (t.ndim ~= 2 or t.shape[1] ~= self.states or t.shape[2] ~= self.actions) then
      options.raise(("tabular:load_state_dict: %s has shape %s, expected (%d, %d)"):format(name, options.shape(t),
        self.states, self.actions))
    end
  end
  self.rng:set_state(tensors.rng:bytes())
  self.q, self.visits = tensors.q:tolist(), tensors.visits:tolist()
end

return M
