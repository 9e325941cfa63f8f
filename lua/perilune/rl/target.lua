-- target.lua - target networks: slow copies of a network from which it learns. Hard and soft updates, several of
-- them, and a period that follows the error.

local peri = require "perilune"
local options = require "perilune.options"
local optim = require "perilune.optim"

local M = {}

local rules = {
  tau = options.number(1, "(0, 1]", "of the way to the network at an update; 1 is a hard update"),
  period = options.integer(1, "[1, inf)", "gradient steps from update to update; with `adapt` the most of them"),
  copies = options.integer(1, "[1, 64]", "networks: each update goes to the oldest of them, and values are their mean"),
  adapt = options.number(options.none, "(0, 1)", "update as soon as the running mean of the error has fallen to "
    .. "this share of what it was behind the last update"),
  period_min = options.integer(1, "[1, inf)", "with `adapt`, the fewest steps between updates"),
}

--- @class perilune.rl.Target
--- @field networks perilune.nn.Module[]  the copies, frozen
--- @field updates integer  made so far
local Target = {}
Target.__index = Target
Target.__name = "perilune.rl.Target"

--- A target network, or several, that follow a network: `target(x)` is what they say without gradients.
--- A hard update every few thousand steps is DQN's (Mnih et al. 2015), tau below 1 the soft one of DDPG (Lillicrap et
--- al. 2016), several copies Averaged-DQN (Anschel et al. 2017, eq. 8). With `adapt` the period follows the temporal
--- difference error: an update moves the targets and the error jumps; once the network has caught up, nothing is gained
--- by waiting.
---
---     local target = rl.target(net, { period = 500 })
---     local q = target(next_obs)            -- (n, actions)
---     target:update()                       -- behind each optimizer step
---
--- @param net perilune.nn.Module
--- @param opts table?
--- @return perilune.rl.Target
function M.target(net, opts)
  local o = options.fill("rl.target", opts, rules)
  options.argument("rl.target", "net", net, "module")
  if o.period_min > o.period then
    options.raise(("rl.target: period_min %d is above period %d"):format(o.period_min, o.period))
  end
  if o.adapt and o.tau < 1 then options.raise "rl.target: adapt is for hard updates, tau is below 1" end
  local self = setmetatable({ net = net, networks = {}, updates = 0, _steps = 0, _options = o }, Target)
  for i = 1, o.copies do self.networks[i] = net:copy() end
  return self
end
options.declare(M.target, { "net" }, rules)

--- What the networks say, the mean of several. -- as the network
--- @param ... any
--- @return perilune.Tensor
function Target:__call(...)
  local _ <close> = peri.no_grad()
  local sum = self.networks[1](...)
  for i = 2, #self.networks do sum = sum + self.networks[i](...) end
  return #self.networks == 1 and sum or sum / #self.networks
end

-- Whether the running mean of the error has fallen far enough since the update.
local function has_settled(self, err)
  if type(err) ~= "number" or not (err >= 0 and err < math.huge) then
    options.raise(("target:update: with adapt it needs the mean absolute error of the step, a number from 0; it is %s")
      :format(tostring(err)), 2)
  end
  self._mean = self._mean and self._mean + 0.1 * (err - self._mean) or err
  if self._steps == 1 then self._mean, self._jump = err, err end
  self._jump = math.max(self._jump, self._mean)
  return self._steps >= self._options.period_min and self._mean <= self._options.adapt * self._jump
end

--- Count a step of the network, and follow it when it is time to.
--- @param err number?  mean absolute temporal difference error of the step; needed with `adapt`
--- @return boolean  whether the targets moved
function Target:update(err)
  local o = self._options
  self._steps = self._steps + 1
  local settled = o.adapt and has_settled(self, err)
  if not settled and self._steps < o.period then return false end
  local oldest = self.networks[self.updates % o.copies + 1]
  optim.ema_(oldest, self.net, 1 - o.tau)
  self.updates, self._steps = self.updates + 1, 0
  return true
end

--- Everything that a resumed run needs.
--- @return table tensors
--- @return table plain
function Target:state_dict()
  local state = {}
  for i, network in ipairs(self.networks) do
    for name, t in pairs(network:state_dict()) do state[("%d.%s"):format(i, name)] = t end
  end
  return state, { updates = self.updates, steps = self._steps, mean = self._mean, jump = self._jump }
end

--- @param state table  of state_dict
--- @param plain table  its second result
function Target:load_state_dict(state, plain)
  options.argument("target:load_state_dict", "state", state, "table")
  options.argument("target:load_state_dict", "plain", plain, "table")
  local parts = {}
  for i = 1, #self.networks do parts[i] = {} end
  for name, t in pairs(state) do
    local i, rest = name:match "^(%d+)%.(.+)$"
    local part = parts[tonumber(i)]
    if not part then
      options.raise(("target:load_state_dict: unexpected %q, there %s %d"):format(name, #parts == 1 and "is network"
        or "are networks 1 to", #parts))
    end
    part[rest] = t
  end
  for i, network in ipairs(self.networks) do network:load_state_dict(parts[i]) end
  self.updates, self._steps, self._mean, self._jump = plain.updates, plain.steps, plain.mean, plain.jump
end

return M
