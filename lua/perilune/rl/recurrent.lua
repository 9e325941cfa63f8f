-- recurrent.lua - an actor and a critic that remember: one LSTM or GRU under both, unrolled over whole rollouts or
-- asked step by step.

local peri = require "perilune"
local options = require "perilune.options"
local head = require "perilune.rl.head"

local nn = peri.nn
local M = {}

local rules = {
  obs = options.value(options.required, "table", "the environment's obs_space, a vector"),
  action = options.value(options.required, "table", "its action_space"),
  memory = options.choice("lstm", { "lstm", "gru", "none" }, "none: a layer of that width in its place"),
  hidden = options.integer(64, "[1, inf)", "width"),
  columns = options.value(options.none, "table", "numbers of the observation that it sees, from 1; default: all"),
}

local parts = { lstm = 2, gru = 1, none = 1 } -- of a state

local function columns_of(o)
  local n, list = o.obs.shape[1], {}
  for i, c in ipairs(o.columns) do
    if math.type(c) ~= "integer" or c < 1 or c > n then
      options.raise(("rl.RecurrentActorCritic: column %s, expected 1 to %d"):format(tostring(c), n), 5)
    end
    list[i] = c - 1
  end
  return peri.keep(peri.tensor(list, "i64"))
end

--- An actor and a critic on one memory: rl.RecurrentActorCritic { obs = env.obs_space, action = env.action_space }. A
--- tanh layer, the memory, a layer for each; weights orthogonal, biases 0, the actor's small.
--- @class perilune.rl.RecurrentActorCritic
--- @field head perilune.rl.Head
--- @field log_std perilune.Tensor?  (1, actions) of continuous actions
M.RecurrentActorCritic = nn.class("RecurrentActorCritic", function(self, opts)
  local o = options.fill("rl.RecurrentActorCritic", opts, rules, 4)
  if #(o.obs.shape or {}) ~= 1 then
    options.raise(("rl.RecurrentActorCritic: observations are %s, expected a vector"):format(tostring(o.obs)))
  end
  local h = o.hidden
  self.kind, self.hidden, self.head = o.memory, h, head.head(o.action)
  self._columns = o.columns and columns_of(o) or nil
  self.encoder = nn.Linear(o.columns and #o.columns or o.obs.shape[1], h, { activation = "tanh" })
  self.memory = o.memory == "lstm" and nn.LSTM(h, h) or o.memory == "gru" and nn.GRU(h, h)
    or nn.Linear(h, h, { activation = "tanh" })
  self.actor, self.critic = nn.Linear(h, self.head.size), nn.Linear(h, 1)
  local state = self:state_dict()
  for _, name in ipairs(options.names(state)) do -- in order: each draws
    local p = state[name]
    if name:find "bias" then nn.init.zeros_(p)
    else nn.init.orthogonal_(p, name:find "^actor" and 0.01 or name:find "^encoder" and math.sqrt(2) or 1) end
  end
  if self.head.kind == "box" then self.log_std = nn.parameter(peri.zeros { 1, self.head.size }) end
end)
options.declare(M.RecurrentActorCritic, {}, rules)

--- The size of a row's state, for peri.rollout { starts = { state = { "f32", table.unpack(net:state_shape()) } } }.
--- @return integer[]
function M.RecurrentActorCritic:state_shape() return { parts[self.kind], self.hidden } end

--- The states that episodes begin with, zeros.
--- @param rows integer
--- @return perilune.Tensor  (rows, parts, hidden)
function M.RecurrentActorCritic:initial(rows) return peri.zeros { rows, parts[self.kind], self.hidden } end

--- Rows of steps in order: what the distributions of actions are of, values, and the states behind the last step.
--- @param obs perilune.Tensor  (rows, steps, numbers)
--- @param state perilune.Tensor  (rows, parts, hidden), before the first step
--- @param starts perilune.Tensor?  (rows, steps) bool, steps with which an episode begins: from a state of zeros
--- @return perilune.Tensor  (rows, steps, head.size)
--- @return perilune.Tensor  (rows, steps)
--- @return perilune.Tensor  (rows, parts, hidden)
function M.RecurrentActorCritic:unroll(obs, state, starts)
  local x = self.encoder(self._columns and obs:index_select(self._columns, -1) or obs)
  if self.kind == "none" then x = self.memory(x)
  else
    local h = state:select(2, 1):unsqueeze(1)
    if self.kind == "lstm" then h = { h, state:select(2, 2):unsqueeze(1) } end
    x, h = self.memory(x, h, { starts = starts })
    state = self.kind == "lstm" and peri.cat(h, 1):transpose(1, 2) or h:transpose(1, 2)
  end
  return self.actor(x), self.critic(x):squeeze(-1), state
end

--- One step of each row.
--- @param obs perilune.Tensor  (rows, numbers)
--- @param state perilune.Tensor  (rows, parts, hidden)
--- @param starts perilune.Tensor?  (rows) bool
--- @return perilune.dist.Distribution
--- @return perilune.Tensor value  (rows)
--- @return perilune.Tensor state
function M.RecurrentActorCritic:step(obs, state, starts)
  local x, value, after = self:unroll(obs:unsqueeze(2), state, starts and starts:unsqueeze(2))
  return self:dist(x:squeeze(2)), value:squeeze(2), after
end

--- The distribution that numbers of the actor are of.
--- @param x perilune.Tensor  (..., head.size)
--- @return perilune.dist.Distribution
function M.RecurrentActorCritic:dist(x) return self.head:dist(x, self.log_std and { log_std = self.log_std }) end

--- Observations with which episodes begin.
--- @param obs perilune.Tensor  (rows, numbers)
--- @return perilune.Tensor  (rows, head.size)
--- @return perilune.Tensor  (rows)
function M.RecurrentActorCritic:forward(obs)
  local x, value = self:unroll(obs:unsqueeze(2), self:initial(obs:size(1)))
  return x:squeeze(2), value:squeeze(2)
end

--- What the file of the policy says; a row's state is remembered from call to call.
--- @param build perilune.rl.Program
--- @param x string
--- @return string
--- @return string?
function M.RecurrentActorCritic:program(build, x)
  if self._columns then x = build:op("index_select", { x, self._columns }, { dim = -1 }) end
  x = build:module(self.encoder, x)
  if self.kind == "none" then x = build:module(self.memory, x)
  else
    local m, state, n = self.memory, {}, parts[self.kind]
    for i = 1, n do state[i] = build:remember { self.hidden } end
    local y = { build:op(self.kind, { build:op("unsqueeze", { x }, { dim = 1 }), m.weight_ih_l0, m.weight_hh_l0,
      m.bias_ih_l0, m.bias_hh_l0, table.unpack(state) }, nil, 1 + n) }
    for i = 1, n do build:keep(state[i], y[1 + i]) end
    x = build:op("squeeze", { y[1] }, { dim = 1 })
  end
  x = build:module(self.actor, x)
  if self.log_std then return x, build:op("clone", { self.log_std }) end
  return x
end

return M
