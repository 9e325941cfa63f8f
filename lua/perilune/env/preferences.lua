-- preferences.lua - a wrapper for several objectives: each episode has weights of its own, which are observed and weigh
-- what the environment says of its objectives (linear scalarisation; Abels et al. 2019, 1809.07803, condition on them).
local peri = require "perilune"
local options = require "perilune.options"
local spaces = require "perilune.env.space"
local wrapper = require "perilune.env.wrapper"

local M = {}

local Preferences = wrapper.class "preferences"

local rules = {
  objectives = options.value(options.required, "table", 'names among the environment\'s metrics, with a minus before '
    .. 'those that are to be small: { "gain", "-time" }'),
  scales = options.value(options.none, "table", "a number above 0 for each, times which it counts; default: 1"),
  weights = options.value(options.none, "tensor", "(n, objectives), of each row in all of its episodes, as to "
    .. "evaluate; default: drawn for each episode, uniform over what is not negative and sums to 1"),
}

-- Uniform over the simplex: exponential numbers over their sum.
local function drawn(self)
  local x = peri.rand({ self.n, self._k }):clamp(1e-7, 1):log():neg()
  return x / x:sum(2, true)
end

-- New weights where an episode begins.
local function renewed(self, begun)
  if self._fixed or not begun:any():item() then return self._weights end
  return peri.where(begun:unsqueeze(2), drawn(self), self._weights)
end

-- What a row sees: its observation, numbered ones as zeros and a one, then its weights.
local function seen(self, obs, weights)
  local states = self._inner.obs_space.n
  local x = states and (obs - self._inner.obs_space.start):one_hot(states) or obs:reshape { self.n, -1 }
  return peri.cat({ x:to "f32", weights }, 2) -- (n, numbers + objectives)
end

--- An environment of several objectives with one reward, sum_k weight_k objective_k: its policy sees the weights and
--- learns the best of each mixture at once. Weights change where an episode begins. env.preference are those of a row,
--- env.objectives (n, objectives) what they weighed in the last step. Returns of env:episodes() are those of the
--- environment inside. Its policy is no file that runs without the wrapper.
---
---     local env = peri.env.preferences(peri.env.make("GridWorld-v0", { n = 8, map = map, treasures = "1,5" }),
---       { objectives = { "gain", "-time" } })
---
--- @param env perilune.env.Env  several rows of one agent, of vectors or numbered states, that reset within a step
--- @param opts table
--- @return perilune.env.Env
function M.preferences(env, opts)
  local who = "env.preferences"
  wrapper.check_env(who, env)
  local o = options.fill(who, opts, rules)
  local space, k = env.obs_space, #o.objectives
  if not env.n or env._autoreset ~= "same_step" or env.agents > 1 then
    options.raise(who .. ": expected rows of one agent that reset within a step (make it with n)")
  elseif k < 1 then options.raise(who .. ": objectives is empty")
  elseif space.kind ~= "discrete" and not (space.kind == "box" and #space.shape == 1) then
    options.raise(("%s: observations are %s, expected a vector or numbered states"):format(who, tostring(space)))
  end
  local column, sign = {}, {}
  for i, word in ipairs(o.objectives) do
    local name = tostring(word):gsub("^%-", "")
    for c, metric in ipairs(env.metric_names) do if metric == name then column[i] = c end end
    if not column[i] then
      options.raise(("%s: %s has no metric %q; it has %s"):format(who, env.id, name,
        #env.metric_names > 0 and table.concat(env.metric_names, ", ") or "none"))
    end
    local scale = o.scales == nil and 1 or o.scales[i]
    if type(scale) ~= "number" or not (scale > 0 and scale < math.huge) then
      options.raise(("%s: scale %d is %s, expected a number above 0"):format(who, i, tostring(scale)))
    end
    sign[i] = tostring(word):sub(1, 1) == "-" and -scale or scale
  end
  if o.weights and options.shape(o.weights) ~= options.shape { env.n, k } then
    options.raise(("%s: weights are %s, expected (%d, %d)"):format(who, options.shape(o.weights), env.n, k))
  end
  local width = space.n or space.shape[1]
  local self = wrapper.wrap(Preferences, env, { _k = k, _fixed = o.weights ~= nil,
    _column = peri.keep(peri.tensor(column, "i64") - 1), _sign = peri.keep(peri.tensor(sign, "f32")),
    obs_space = spaces.of { kind = "box", dtype = "f32", shape = { width + k }, low = -math.huge, high = math.huge } })
  self._weights = peri.keep(o.weights and o.weights:to "f32" or drawn(self))
  return self
end
options.declare(M.preferences, { "env" }, rules)

function Preferences:reset(opts)
  local obs, mask = self._inner:reset(opts), opts and opts.mask or peri.ones({ self.n }, "bool")
  self._weights = peri.keep(renewed(self, mask))
  self._last = peri.keep(seen(self, obs, self._weights))
  return self._last
end

function Preferences:step(actions)
  local obs, _, terminated, truncated = self._inner:step(actions)
  local objectives = self._inner.metrics:index_select(self._column, 2) * self._sign
  local reward = (objectives * self._weights):sum(2)
  local final = seen(self, self._inner.final_obs, self._weights)
  local weights = renewed(self, terminated:logical_or(truncated))
  local last = seen(self, obs, weights)
  self._weights, self._last, self._reward = peri.keep(weights, last, reward)
  self._final, self._objectives = peri.keep(final, objectives)
  return last, reward, terminated, truncated
end

function Preferences.get.preference(self) return self._weights end
function Preferences.get.objectives(self) return self._objectives end
function Preferences.get.reward(self) return self._reward end
function Preferences.get.final_obs(self) return self._final end
function Preferences.get.obs(self) return self._last or seen(self, self._inner.obs, self._weights) end

function Preferences:_state() return { weights = self._weights }, {} end

function Preferences:_set_state(tensors)
  self._weights = peri.keep(tensors.weights:clone())
  self._last, self._final, self._reward, self._objectives = nil, nil, nil, nil
end

return M
