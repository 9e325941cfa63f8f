-- wrappers.lua - functions env -> env: normalised observations and rewards, stacked frames, clipped or scaled actions,
-- time limits, films. What they learn is in state_dict and, for policies that run without Lua, in normalizers. They
-- compose, and whatever they do not change is that of the environment inside.
local core = require("perilune.core")._env
local peri = require "perilune"
local options = require "perilune.options"
local spaces = require "perilune.env.space"
local wrapper = require "perilune.env.wrapper"

local M = {}

local class, wrap, check_env = wrapper.class, wrapper.wrap, wrapper.check_env

-- ---- running mean and variance: Chan's parallel formula, as Gymnasium's RunningMeanStd ----

local Running = {}
Running.__index = Running

local function running(shape)
  return setmetatable({ mean = peri.zeros(shape, "f64"), var = peri.ones(shape, "f64"), count = 1e-4 }, Running)
end

-- x (n, ...) f64; weight (n) f64 of zeros and ones, or nil: all count.
function Running:update(x, weight)
  local n = weight and weight:sum():item() or x.shape[1]
  if n == 0 then return end
  if weight then
    local shape = { x.shape[1] }
    for _ = 2, x.ndim do shape[#shape + 1] = 1 end
    weight = weight:reshape(shape)
  end
  local mean = weight and x:mul(weight):sum(1):div(n) or x:mean(1)
  local off = x:sub(mean)
  local square = off:mul(off)
  local var = weight and square:mul(weight):sum(1):div(n) or square:mean(1)
  local delta, total = mean:sub(self.mean), self.count + n
  var = self.var:mul(self.count):add(var:mul(n)):add(delta:mul(delta):mul(self.count * n / total)):div(total)
  self.var, self.mean = peri.keep(var, self.mean:add(delta:mul(n / total))) -- whatever scope the step is in
  self.count = total
end

local function state_of(r, tensors, name)
  tensors[name .. "mean"], tensors[name .. "var"] = r.mean, r.var
  tensors[name .. "count"] = peri.tensor({ r.count }, "f64")
end

local function take_state(r, tensors, name)
  r.mean, r.var = peri.keep(tensors[name .. "mean"]:clone(), tensors[name .. "var"]:clone())
  r.count = tensors[name .. "count"]:item()
end

local function rows_of(env, x) return env.n and x or x:unsqueeze(1) end

-- ---- observations ----

local NormalizeObs = class "normalize_obs"

local obs_rules = {
  epsilon = options.number(1e-8, "(0, inf)", "added to the variance"),
  clip = options.number(options.none, "(0, inf)", "largest absolute value that comes out; default: no limit"),
}

local function float_box(who, env)
  if env.obs_space.kind ~= "box" then
    options.raise(("%s: observations are %s, expected a Box"):format(who, tostring(env.obs_space)))
  end
end

local function normalized(self, x)
  local y = x:to("f64"):sub(self._r.mean):div(self._r.var:add(self._o.epsilon):sqrt())
  if self._o.clip then y = y:clamp(-self._o.clip, self._o.clip) end
  return y:to "f32"
end

-- Agents that are out have an old observation, or none.
local function weight_of(env)
  if env.agents > 1 then return env.valid:logical_or(env.live):to "f64" end
end

local function seen(self, x)
  if not self._frozen then self._r:update(rows_of(self, x:to "f64"), weight_of(self)) end
  self._last = peri.keep(normalized(self, x))
  return self._last
end

--- Observations with mean 0 and variance 1 by running statistics of all that were seen, reset and step alike, as
--- Gymnasium's NormalizeObservation: (obs - mean) / sqrt(var + epsilon), as f32. final_obs is normalised, too, and is
--- not counted. env:eval(true) keeps the statistics as they are.
--- @param env perilune.env.Env
--- @param opts table?
--- @return perilune.env.Env
function M.normalize_obs(env, opts)
  check_env("env.normalize_obs", env)
  float_box("env.normalize_obs", env)
  local o = options.fill("env.normalize_obs", opts, obs_rules)
  local bound = o.clip or math.huge
  return wrap(NormalizeObs, env, { _o = o, _r = running(env.obs_space.shape),
    obs_space = spaces.of { kind = "box", dtype = "f32", shape = env.obs_space.shape, low = -bound, high = bound } })
end
options.declare(M.normalize_obs, { "env" }, obs_rules)

function NormalizeObs:reset(opts) return seen(self, self._inner:reset(opts)) end

function NormalizeObs:step(actions)
  local obs, reward, terminated, truncated = self._inner:step(actions)
  return seen(self, obs), reward, terminated, truncated
end

function NormalizeObs.get.final_obs(self) return normalized(self, self._inner.final_obs) end
function NormalizeObs.get.obs(self) return self._last or normalized(self, self._inner.obs) end

function NormalizeObs:normalizers()
  local list = self._inner:normalizers()
  list[#list + 1] = { mean = self._r.mean:clone(), var = self._r.var:clone(), epsilon = self._o.epsilon,
    clip = self._o.clip }
  return list
end

function NormalizeObs:_state()
  local tensors = {}
  state_of(self._r, tensors, "")
  return tensors, {}
end

function NormalizeObs:_set_state(tensors)
  take_state(self._r, tensors, "")
  self._last = nil
end

local FrameStack = class "frame_stack"

local stack_rules = { k = options.integer(options.required, "[1, inf)", "observations") }

-- The last k as (rows, k, ...), every one the same.
local function repeated(self, rows) return rows:unsqueeze(2):expand(self._shape(rows.shape[1])):clone() end

local function out_of(self, stack) return self.n and stack or stack:squeeze(1) end

--- The last k observations as one, the newest last: (rows, k, ...). Where an episode begins its first observation is
--- repeated.
--- @param env perilune.env.Env
--- @param k integer
--- @return perilune.env.Env
function M.frame_stack(env, k)
  check_env("env.frame_stack", env)
  float_box("env.frame_stack", env)
  local problem = options.problem("k", k, stack_rules.k)
  if problem then options.raise("env.frame_stack: " .. problem) end
  local inner = env.obs_space
  local function bound(b)
    if type(b) ~= "table" then return b end
    local list = {}
    for _ = 1, k do table.move(b, 1, #b, #list + 1, list) end
    return list
  end
  return wrap(FrameStack, env, { _k = k,
    _shape = function (n) return { n, k, table.unpack(inner.shape) } end,
    obs_space = spaces.of { kind = "box", dtype = inner.dtype, shape = { k, table.unpack(inner.shape) },
      low = bound(inner.low), high = bound(inner.high) } })
end
options.declare(M.frame_stack, { "env", "k" }, stack_rules)

-- Rows of a where mask says so, of b elsewhere.
local function choose(mask, a, b)
  local shape = { mask.shape[1] }
  for _ = 2, a.ndim do shape[#shape + 1] = 1 end
  return peri.where(mask:reshape(shape), a, b)
end

local function shifted(self, rows) -- (rows, ...) appended
  if self._k == 1 then return rows:unsqueeze(2) end
  return peri.cat({ self._stack:narrow(2, 2, self._k - 1), rows:unsqueeze(2) }, 2)
end

-- Of several agents in each environment, the rows of those environments in which all agents have flag.
local function all_agents(self, flag)
  local agents = self.agents
  if agents == 1 then return flag end
  return flag:reshape({ -1, agents }):all(2):repeat_interleave(agents, 1)
end

function FrameStack:reset(opts)
  local rows = rows_of(self, self._inner:reset(opts))
  local fresh = repeated(self, rows)
  local mask = opts and opts.mask and self._stack and opts.mask
  if mask and self.agents > 1 then mask = mask:repeat_interleave(self.agents, 1) end
  self._stack = peri.keep(mask and choose(mask, fresh, self._stack) or fresh)
  self._over = mask and self._over and peri.keep(self._over:logical_and(mask:logical_not())) or nil
  self._final = nil
  return out_of(self, self._stack)
end

function FrameStack:step(actions)
  local inner = self._inner
  local obs, reward, terminated, truncated = inner:step(actions)
  local rows = rows_of(self, obs)
  if not self.n then
    self._stack = peri.keep(shifted(self, rows))
    return out_of(self, self._stack), reward, terminated, truncated
  end
  local begun = all_agents(self, inner.valid:logical_not()) -- next_step: rows that were reset in place of a step
  if inner._autoreset == "same_step" then
    self._final = peri.keep(shifted(self, inner.final_obs))
    begun = terminated:logical_or(truncated)
    if self.agents > 1 then -- they reset together, when the last of them is out
      local over = self._over and begun:logical_or(self._over) or begun
      begun = all_agents(self, over)
      self._over = peri.keep(over:logical_and(begun:logical_not()))
    end
  else self._final = nil end
  self._stack = peri.keep(choose(begun, repeated(self, rows), shifted(self, rows)))
  return self._stack, reward, terminated, truncated
end

function FrameStack.get.obs(self) return self._stack and out_of(self, self._stack) end
function FrameStack.get.final_obs(self) return self._final or out_of(self, self._stack) end

function FrameStack:_state()
  local rows = self._stack or peri.zeros(self._shape(self.rows), self.obs_space.dtype)
  local over = self.agents > 1 and (self._over or peri.zeros({ self.rows }, "bool")) or nil
  return { stack = rows, final = self._final or rows, over = over },
    { begun = self._stack ~= nil, final = self._final ~= nil }
end

function FrameStack:_set_state(tensors, values)
  self._stack = values.begun and peri.keep(tensors.stack:clone()) or nil
  self._final = values.final and peri.keep(tensors.final:clone()) or nil
  self._over = tensors.over and peri.keep(tensors.over:clone())
end

-- ---- actions ----

local function action_box(who, env)
  local space = env.action_space
  if space.kind ~= "box" then options.raise(("%s: actions are %s, expected a Box"):format(who, tostring(space))) end
  return space
end

-- Bounds of a space as tensors of a value's shape.
local function bound_tensor(space, b)
  if type(b) == "number" then return peri.full(space.shape, b, space.dtype) end
  return peri.tensor(b, space.dtype):reshape(space.shape)
end

-- Actions as a tensor: a list has the numbers of all rows.
local function tensor_of(env, actions)
  if peri.is_tensor(actions) then return actions end
  local space = env.action_space
  local shape = { table.unpack(space.shape) }
  if env.n then table.insert(shape, 1, env.rows) end
  options.argument("step", "actions", actions, "tensor or table")
  local n = env.rows * space:size()
  if #actions ~= n then
    options.raise(("step: the list of actions has %d numbers, expected %d"):format(#actions, n))
  end
  return peri.tensor(actions, space.dtype):reshape(shape)
end

local ClipAction = class "clip_action"

--- Actions are clipped to the bounds of the Box: a policy may give any number.
--- @param env perilune.env.Env
--- @return perilune.env.Env
function M.clip_action(env)
  check_env("env.clip_action", env)
  local space = action_box("env.clip_action", env)
  return wrap(ClipAction, env, { _low = bound_tensor(space, space.low), _high = bound_tensor(space, space.high),
    action_space = spaces.of { kind = "box", dtype = space.dtype, shape = space.shape, low = -math.huge,
      high = math.huge } })
end

function ClipAction:step(actions)
  return self._inner:step(tensor_of(self, actions):maximum(self._low):minimum(self._high))
end

local RescaleAction = class "rescale_action"

local finite = options.number(nil)
local scale_rules = {
  low = options.number(-1, nil, "what becomes the least action of the environment"),
  high = options.number(1, nil, "what becomes the greatest"),
}

--- Actions between low and high become those between the environment's own bounds, as Gymnasium's RescaleAction. What
--- is beyond low or high goes beyond those bounds, too: clip_action around it clips.
--- @param env perilune.env.Env
--- @param low number?
--- @param high number?
--- @return perilune.env.Env
function M.rescale_action(env, low, high)
  check_env("env.rescale_action", env)
  local space = action_box("env.rescale_action", env)
  low, high = low or -1, high or 1
  for name, v in pairs { low = low, high = high } do
    local problem = options.problem(name, v, finite)
    if problem then options.raise("env.rescale_action: " .. problem) end
  end
  if low >= high then options.raise(("env.rescale_action: low is %g, expected less than %g"):format(low, high)) end
  if space.dtype ~= "f32" and space.dtype ~= "f64" then
    options.raise(("env.rescale_action: the actions of %s are %s, expected f32 or f64"):format(env.id, space.dtype))
  end
  local from, to = bound_tensor(space, space.low), bound_tensor(space, space.high)
  if not (from:isfinite():all():item() and to:isfinite():all():item()) then
    options.raise(("env.rescale_action: the actions of %s have no finite bounds"):format(env.id))
  end
  local slope = to:sub(from):div(high - low)
  return wrap(RescaleAction, env, { _slope = slope, _shift = from:sub(slope:mul(low)), _low = from, _high = to,
    action_space = spaces.of { kind = "box", dtype = space.dtype, shape = space.shape, low = low, high = high } })
end
options.declare(M.rescale_action, { "env", "low", "high" }, scale_rules)

function RescaleAction:step(actions)
  local given, space = tensor_of(self, actions), self.action_space
  local scaled = given:mul(self._slope):add(self._shift)
  -- rounding leaves the bounds for no action that is between low and high
  local within = given:ge(space.low):logical_and(given:le(space.high))
  return self._inner:step(peri.where(within, scaled:maximum(self._low):minimum(self._high), scaled))
end

-- ---- rewards ----

local NormalizeReward = class "normalize_reward"

local reward_rules = {
  gamma = options.number(0.99, "[0, 1]", "discount of the running return"),
  epsilon = options.number(1e-8, "(0, inf)", "added to the variance"),
}

--- Rewards divided by the standard deviation of a running discounted return, as Gymnasium's NormalizeReward: the mean
--- is not taken away. env:eval(true) keeps the statistics as they are.
--- @param env perilune.env.Env
--- @param opts table?
--- @return perilune.env.Env
function M.normalize_reward(env, opts)
  check_env("env.normalize_reward", env)
  local o = options.fill("env.normalize_reward", opts, reward_rules)
  return wrap(NormalizeReward, env, { _o = o, _r = running {}, _sum = peri.zeros({ env.rows }, "f64") })
end
options.declare(M.normalize_reward, { "env" }, reward_rules)

function NormalizeReward:reset(opts)
  local obs = self._inner:reset(opts)
  local zeros = peri.zeros({ self.rows }, "f64")
  local mask = opts and opts.mask
  if mask and self.agents > 1 then mask = mask:repeat_interleave(self.agents) end
  self._sum = peri.keep(mask and peri.where(mask, zeros, self._sum) or zeros)
  return obs
end

local function as_rows(env, v, dtype)
  if env.n then return v:to(dtype) end
  return peri.tensor({ type(v) == "boolean" and (v and 1 or 0) or v }, dtype)
end

function NormalizeReward:step(actions)
  local inner = self._inner
  local obs, reward, terminated, truncated = inner:step(actions)
  local r, dead = as_rows(self, reward, "f64"), as_rows(self, terminated, "f64")
  local done = dead:maximum(as_rows(self, truncated, "f64"))
  local active = self.n and inner.valid:to "f64" or peri.ones({ 1 }, "f64")
  -- rows that were reset in place of a step begin anew
  self._sum = self._sum:mul(self._o.gamma):mul(dead:neg():add(1)):add(r):mul(active)
  if not self._frozen then self._r:update(self._sum, active) end
  if self._autoreset == "same_step" then self._sum = self._sum:mul(done:neg():add(1)) end
  peri.keep(self._sum) -- whatever scope the step is in
  local out = r:div(self._r.var:add(self._o.epsilon):sqrt())
  self._last = self.n and peri.keep(out:to(reward.dtype)) or out:item()
  return obs, self._last, terminated, truncated
end

function NormalizeReward.get.reward(self) return self._last or self._inner.reward end

function NormalizeReward:_state()
  local tensors = { sum = self._sum }
  state_of(self._r, tensors, "")
  return tensors, {}
end

function NormalizeReward:_set_state(tensors)
  take_state(self._r, tensors, "")
  self._sum, self._last = peri.keep(tensors.sum:clone()), nil
end

local ClipReward = class "clip_reward"

local clip_rules = {
  low = options.number(-1, nil, "least reward"),
  high = options.number(1, nil, "greatest reward"),
}

--- Rewards clipped to an interval. Statistics of episodes are of the rewards before.
--- @param env perilune.env.Env
--- @param low number?
--- @param high number?
--- @return perilune.env.Env
function M.clip_reward(env, low, high)
  check_env("env.clip_reward", env)
  low, high = low or -1, high or 1
  if type(low) ~= "number" or type(high) ~= "number" or low > high or low ~= low
    or high ~= high then
    options.raise(("env.clip_reward: %s and %s, expected numbers in order"):format(options.is("low", low),
      options.is("high", high)))
  end
  return wrap(ClipReward, env, { _low = low, _high = high })
end
options.declare(M.clip_reward, { "env", "low", "high" }, clip_rules)

local function clipped(self, r)
  if type(r) == "number" then return math.max(self._low, math.min(self._high, r)) end
  return r:clamp(self._low, self._high)
end

function ClipReward:step(actions)
  local obs, reward, terminated, truncated = self._inner:step(actions)
  return obs, clipped(self, reward), terminated, truncated
end

function ClipReward.get.reward(self) return clipped(self, self._inner.reward) end

-- ---- time, films ----

local limit_rules = { max_steps = options.integer(options.required, "[1, inf)", "of an episode") }

--- Episodes are truncated after max_steps steps, in place of the environment's own time limit. The limit is kept by the
--- environment itself, which is returned.
--- @param env perilune.env.Env
--- @param max_steps integer
--- @return perilune.env.Env
function M.time_limit(env, max_steps)
  check_env("env.time_limit", env)
  local problem = options.problem("max_steps", max_steps, limit_rules.max_steps)
  if problem then options.raise("env.time_limit: " .. problem) end
  core.set_max_steps(env._core, max_steps)
  local inside = env
  while rawget(inside, "_inner") do inside = rawget(inside, "_inner") end
  inside.max_steps = max_steps
  return env
end
options.declare(M.time_limit, { "env", "max_steps" }, limit_rules)

local Record = class "record"

local record_rules = {
  folder = options.value(options.required, "string", "where films go: episode-000001.gif ..."),
  every = options.integer(1, "[1, inf)", "episodes of the first environment between two films"),
  fps = options.number(30, "(0, 100]", "frames a second"),
  kind = options.choice("gif", { "gif", "svg" }, "of the films"),
}

--- Films of the episodes of the first environment, a file each. Where it resets within a step, the film's last picture
--- is that of the step before.
--- @param env perilune.env.Env
--- @param opts table
--- @return perilune.env.Env
function M.record(env, opts)
  check_env("env.record", env)
  local o = options.fill("env.record", opts, record_rules)
  return wrap(Record, env, { _o = o, _episode = 1 })
end
options.declare(M.record, { "env" }, record_rules)

local function must(value, message)
  if not value then options.raise("env.record: " .. message) end
  return value
end

local function open_film(self)
  if (self._episode - 1) % self._o.every ~= 0 then return end
  must(peri.files.make_folder(self._o.folder))
  local path = ("%s/episode-%06d.%s"):format(self._o.folder, self._episode, self._o.kind)
  self._film = must(peri.image.film(path, { fps = self._o.fps }))
  self._film:add(self:frame(1))
end

local function close_film(self)
  if self._film then must(self._film:save()) end
  self._film = nil
end

function Record:reset(opts)
  local first = not (opts and opts.mask) or opts.mask:tolist()[1]
  local obs = self._inner:reset(opts)
  if first then
    close_film(self)
    if self._begun then self._episode = self._episode + 1 end
    self._begun = true
    open_film(self)
  end
  return obs
end

local function first_of(v) return type(v) == "boolean" and v or type(v) ~= "boolean" and v:tolist()[1] end

function Record:step(actions)
  local obs, reward, terminated, truncated = self._inner:step(actions)
  local ended = first_of(terminated) or first_of(truncated)
  local within = ended and self._autoreset == "same_step"
  if self._film and not within then self._film:add(self:frame(1)) end
  if ended then
    close_film(self)
    if self._autoreset ~= "disabled" then
      self._episode = self._episode + 1
      if within then open_film(self) else self._waits = true end
    end
  elseif self._waits then
    self._waits = nil
    open_film(self)
  end
  return obs, reward, terminated, truncated
end

function Record:_state() return {}, { episode = self._episode, begun = self._begun or false } end
function Record:_set_state(_, values) self._episode, self._begun = values.episode, values.begun end

return M
