-- agents.lua - several agents in one environment: whose turn it is, and one of them as an environment of its own while
-- others play the rest.
local peri = require "perilune"
local options = require "perilune.options"
local wrapper = require "perilune.env.wrapper"

local M = {}

-- ---- one agent at a time ----

--- One environment whose agents are asked one after the other, whether they act in turn or all at once: PettingZoo's
--- agent environment cycle.
--- @class perilune.env.Turns
--- @field env perilune.env.Env
--- @field agent integer  who is asked, from 1 on
local Turns = {}
Turns.__index = Turns
Turns.__name = "perilune.env.Turns"

--- Ask the agents of one environment for their actions one after the other: those who may act (env.live), in the order
--- of their numbers; when all have answered, the environment steps. Environments with turns and those whose agents move
--- at once are played by the same loop. An agent whose episode has ended is told so once, and does not act.
---
---     local game = peri.env.turns(peri.env.make("TicTacToe-v0", { seed = 1 }))
---     for agent, now in game:each() do
---       if not now.ended then game:act(game:sample()) end
---     end
---
--- @param env perilune.env.Env  a single environment (made without n)
--- @return perilune.env.Turns
function M.turns(env)
  wrapper.check_env("env.turns", env)
  if env.rows ~= env.agents or env._autoreset ~= "disabled" then
    options.raise(("env.turns: %s has %d environments and autoreset %s, expected a single one, made without n")
      :format(env.id, env.rows // env.agents, tostring(env._autoreset)))
  end
  return setmetatable({ env = env, _queue = {} }, Turns)
end
options.declare(M.turns, { "env" }, {})

local function list_of(x, of_one)
  if peri.is_tensor(x) then return x:tolist() end
  return { x == nil and of_one or x }
end

-- Who is to be asked now: agents that have ended since they were last asked, then those that act.
local function fill(self)
  local live = list_of(self.env.live, not self._over[1])
  self._actions, self._waiting = {}, 0
  for i = 1, self.env.agents do
    if self._over[i] and not self._told[i] then
      self._told[i] = true
      self._queue[#self._queue + 1] = i
    end
  end
  for i = 1, self.env.agents do
    if live[i] and not self._over[i] then
      self._queue[#self._queue + 1] = i
      self._waiting = self._waiting + 1
    end
  end
  if #self._queue == 0 then self._done = true end
end

local function row_of(self, x, i)
  if x == nil or not peri.is_tensor(x) or self.env.agents == 1 then return x end
  return x:select(1, i)
end

--- Begin an episode: for agent, now in game:each() do. now has what the agent sees and what came of its last action:
--- obs; mask, which actions are legal (nil: all); reward, the sum since it acted last, also what others' moves brought;
--- ended, terminated and truncated. Unless it has ended it must game:act.
--- @param opts table?  of env:reset
--- @return fun(): integer?, table?
function Turns:each(opts)
  local env = self.env
  env:reset(opts)
  self.agent, self._queue, self._done = nil, {}, false
  self._reward, self._over, self._told = {}, {}, {}
  self._terminated, self._truncated = {}, {}
  for i = 1, env.agents do self._reward[i] = 0 end
  fill(self)
  return function ()
    if self.agent and not self._over[self.agent] then
      options.raise(("env.turns: agent %d has not acted"):format(self.agent))
    end
    if self._done then self.agent = nil return nil end
    local i = table.remove(self._queue, 1)
    self.agent = i
    local now = { obs = row_of(self, env.obs, i), mask = row_of(self, env.mask, i), reward = self._reward[i],
      terminated = self._terminated[i] or false, truncated = self._truncated[i] or false }
    now.ended = now.terminated or now.truncated
    if self._over[i] and #self._queue == 0 and self._waiting == 0 then self._done = true end
    return i, now
  end
end

-- All have acted: a step, and what it brings to each.
local function step(self)
  local env, first = self.env, nil
  for i = 1, env.agents do first = first or self._actions[i] end
  for i = 1, env.agents do self._actions[i] = self._actions[i] or first end -- of those who wait it does not count
  local action = self._actions[1]
  if env.agents > 1 then
    action = peri.is_tensor(first) and peri.stack(self._actions) or peri.tensor(self._actions, "i64")
  end
  local _, reward, terminated, truncated = env:step(action)
  reward, terminated, truncated = list_of(reward), list_of(terminated), list_of(truncated)
  for i = 1, env.agents do
    if not self._over[i] then
      self._reward[i] = self._reward[i] + reward[i]
      self._terminated[i], self._truncated[i] = terminated[i], truncated[i]
      self._over[i] = terminated[i] or truncated[i]
    end
  end
  fill(self)
end

--- What the agent that is asked does.
--- @param action integer|perilune.Tensor  one of the action space
function Turns:act(action)
  local i = self.agent
  if not i then options.raise "env.turns: act: nobody is asked; loop over game:each()" end
  if self._over[i] then options.raise(("env.turns: act: the episode of agent %d has ended"):format(i)) end
  if self._actions[i] ~= nil then options.raise(("env.turns: act: agent %d has acted"):format(i)) end
  if not self.env.action_space:contains(action) then
    options.raise(("env.turns: act: %s of agent %d is not in %s"):format(tostring(action), i,
      tostring(self.env.action_space)))
  end
  self._actions[i], self._reward[i] = action, 0
  self._waiting = self._waiting - 1
  self.agent = nil
  if self._waiting == 0 then step(self) end
end

--- A random action of the agent that is asked, of those that are legal.
--- @param rng table?  of peri.env.rng
--- @return integer|perilune.Tensor
function Turns:sample(rng)
  local action = self.env.action_space:sample(rng or self.env:_sampler(), row_of(self, self.env.mask, self.agent))
  return action
end

-- ---- one agent against others ----

local Versus = wrapper.class "versus"

local versus_rules = {
  seat = options.integer(options.none, "[1, inf)", "which agent of each environment is the learner's; default: of "
    .. "environment i agent (i - 1) % agents + 1, so that it plays all sides"),
}

--- One agent of each environment as an environment of its own, while others play the rest: rows are environments, and
--- obs, reward, flags, mask and live are the learner's. env.live says in which rows it acts; where it does not, its
--- action does not count, and rl.turn_gae brings what others' moves mean to the actions before.
---
---     local games = peri.env.versus(env, function(obs, mask) return policy:act(obs, { mask = mask }) end)
---
--- @param env perilune.env.Env  with several agents, many environments
--- @param others function  others(obs, mask) of rows (n * (agents - 1), ...), environment by environment, gives their
--- actions
--- @param opts table?
--- @return perilune.env.Env
function M.versus(env, others, opts)
  wrapper.check_env("env.versus", env)
  options.argument("env.versus", "others", others, "callable")
  local o = options.fill("env.versus", opts, versus_rules)
  if env.agents < 2 then options.raise(("env.versus: %s has one agent, expected several"):format(env.id)) end
  if o.seat and o.seat > env.agents then
    options.raise(("env.versus: seat is %d, %s has %d agents"):format(o.seat, env.id, env.agents))
  end
  local n, mine, theirs, place = env.rows // env.agents, {}, {}, {}
  for i = 1, n do
    local seat = o.seat or (i - 1) % env.agents + 1
    for k = 1, env.agents do
      local row = (i - 1) * env.agents + k
      local list = k == seat and mine or theirs
      list[#list + 1] = row - 1
      place[row] = k == seat and i - 1 or n + #theirs - 1
    end
  end
  local function index(list) return peri.keep(peri.tensor(list, "i64")) end
  return wrapper.wrap(Versus, env, { agents = 1, n = n, rows = n, _others = others, _mine = index(mine),
    _theirs = index(theirs), _place = index(place) })
end
options.declare(M.versus, { "env", "others" }, versus_rules)

local function own(self, x) return x and x:index_select(self._mine, 1) end

for _, name in ipairs { "obs", "final_obs", "reward", "terminated", "truncated", "mask", "live", "valid", "metrics",
  "episode_return", "episode_length" } do
  Versus.get[name] = function (self) return own(self, self._inner[name]) end
end

function Versus:reset(opts) return own(self, self._inner:reset(opts)) end

function Versus:step(actions)
  local inner = self._inner
  local mask, rows = inner.mask, self._theirs.shape[1]
  local other = self._others(inner.obs:index_select(self._theirs, 1), mask and mask:index_select(self._theirs, 1))
  if not peri.is_tensor(actions) then actions = peri.tensor(actions, "i64") end
  if not peri.is_tensor(other) or other.ndim ~= actions.ndim or other.shape[1] ~= rows then
    options.raise(("env.versus: others gave %s, expected a tensor of %d actions, one for each row that it was shown")
      :format(peri.is_tensor(other) and options.shape(other) or "a " .. type(other), rows))
  end
  local obs, reward, terminated, truncated = inner:step(peri.cat({ actions, other }, 1):index_select(self._place, 1))
  return own(self, obs), own(self, reward), own(self, terminated), own(self, truncated)
end

function Versus:episodes()
  local all, seat = self._inner:episodes(), {}
  for i, row in ipairs(self._mine:tolist()) do seat[row + 1] = i end
  local out = { returns = {}, lengths = {}, rows = {}, dropped = all.dropped }
  for k, row in ipairs(all.rows) do
    if seat[row] then
      local i = #out.rows + 1
      out.returns[i], out.lengths[i], out.rows[i] = all.returns[k], all.lengths[k], seat[row]
    end
  end
  return out
end

-- ---- what all see ----

local Joint = wrapper.class "joint_obs"

--- Observations with what all agents of the environment see behind an agent's own: (rows, d) become (rows, d + agents *
--- d), the own one first. A critic that reads the whole is central while actors read the first d (MADDPG, Lowe et al.
--- 2017; MAPPO, Yu et al. 2022).
--- @param env perilune.env.Env  with vectors to observe
--- @return perilune.env.Env
function M.joint_obs(env)
  wrapper.check_env("env.joint_obs", env)
  local space = env.obs_space
  if space.kind ~= "box" or #space.shape ~= 1 or type(space.low) ~= "number" then
    options.raise(("env.joint_obs: observations are %s, expected vectors with the same bounds for every element")
      :format(tostring(space)))
  end
  local d = space.shape[1]
  return wrapper.wrap(Joint, env, { _d = d, obs_space = require("perilune.env.space").box(space.low, space.high,
    { shape = { d * (1 + env.agents) }, dtype = space.dtype }) })
end
options.declare(M.joint_obs, { "env" }, {})

local function joint(self, x)
  local all = self.agents * self._d
  local together = x:reshape({ self.rows // self.agents, 1, all }):expand { -1, self.agents, -1 }
  return peri.cat({ x, together:reshape { self.rows, all } }, 2)
end

function Joint.get.obs(self) return joint(self, self._inner.obs) end
function Joint.get.final_obs(self) return joint(self, self._inner.final_obs) end
function Joint:reset(opts) return joint(self, self._inner:reset(opts)) end
function Joint:step(actions)
  local obs, reward, terminated, truncated = self._inner:step(actions)
  return joint(self, obs), reward, terminated, truncated
end

return M
