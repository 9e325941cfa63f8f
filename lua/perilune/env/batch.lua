-- batch.lua - environments that run: many rows at once, or a single one.
local core = require("perilune.core")._env
local peri = require "perilune.core"
local options = require "perilune.options"
local phases = require "perilune.phases"
local plain = require "perilune.env.plain"
local spaces = require "perilune.env.space"
local whole = require "perilune.env.whole"

--- @class perilune.env.Env
--- @field id string
--- @field doc string
--- @field n integer?  environments; nil: a single one
--- @field rows integer  environments times agents: the first size of every tensor
--- @field agents integer
--- @field obs_space perilune.env.Space
--- @field action_space perilune.env.Space
--- @field max_steps integer?  the time limit
--- @field reward_threshold number?
--- @field metric_names string[]
--- @field has_frame boolean  it draws itself: frame and render
--- @field has_text boolean  it has a picture in characters: text
--- @field obs perilune.Tensor  what the last step or reset gave
--- @field final_obs perilune.Tensor  what the last step led to: differs from obs where an episode ended and reset
--- @field reward perilune.Tensor
--- @field terminated perilune.Tensor
--- @field truncated perilune.Tensor
--- @field mask perilune.Tensor?  (rows, n) which actions are legal next
--- @field valid perilune.Tensor  (rows) false where the last action was ignored
--- @field live perilune.Tensor?  (rows) which agents act next
--- @field metrics perilune.Tensor?  (rows, metrics) named numbers of the last step
--- @field episode_return perilune.Tensor  (rows) of the last episode that ended; nan: none has
--- @field episode_length perilune.Tensor
local Env = { __name = "perilune.env" }

local buffers = {}
for name in ("obs final_obs reward terminated truncated mask valid live metrics episode_return episode_length")
  :gmatch "%S+" do buffers[name] = true end
local optional = { n = true, max_steps = true, reward_threshold = true }

local function one_of(env, t)
  if env.n or not t then return t end
  if #t.shape == 1 then return t:item() end
  return t:reshape { table.unpack(t.shape, 2) }
end

function Env.__index(env, name)
  local method = Env[name]
  if method ~= nil then return method end
  if buffers[name] then return one_of(env, core.buffer(env._core, name, env._copy)) end
  if type(name) ~= "string" or name:sub(1, 1) == "_" or optional[name] then return nil end
  local names = options.names(Env)
  for field in pairs(buffers) do names[#names + 1] = field end
  local near = options.nearest(name, names)
  return options.raise(("environment %s has no '%s'%s"):format(env.id, name,
    near and ("; did you mean '%s'?"):format(near) or ""), 2)
end

function Env:__tostring()
  return ("%s {%sobs=%s, actions=%s}"):format(self.id, self.n and ("n=%d, "):format(self.n) or "",
    tostring(self.obs_space), tostring(self.action_space))
end

local none <const> = {}
local reset_rules = {
  seed = options.integer(options.none, "[0, inf)", "of environment 1, the next one has seed + 1, and so on"),
  mask = options.value(options.none, "tensor", "(n) bool, the environments to reset; the others go on"),
}

--- Begin episodes: of all environments, or of those that a mask names. Without a seed their generators go on; the first
--- reset takes the seed of make, or one of peri's own generator (peri.seed).
--- @param opts table?
--- @return perilune.Tensor|integer obs  (rows, ...), a single environment's without rows
function Env:reset(opts)
  local o = opts ~= nil and options.fill("reset", opts, reset_rules) or none
  core.reset(self._core, o.seed, o.mask)
  if self._obs then return self._obs end
  return self.n and core.buffer(self._core, "obs", true) or core.first(self._core)
end
options.declare(Env.reset, { "self" }, reset_rules)

--- One step of every environment. Episodes that end reset as autoreset says; final_obs has what the step led to. Of a
--- single environment the observation has no rows (an integer where it is discrete), the reward is a number and
--- the flags are booleans.
--- @param actions perilune.Tensor|integer|number[]  (rows, ...) i64 or i32 for discrete spaces, the dtype of a Box
--- @return perilune.Tensor|integer obs  (rows, ...)
--- @return perilune.Tensor|number reward  (rows) f32
--- @return perilune.Tensor|boolean terminated  (rows) the episode came to an end of its own
--- @return perilune.Tensor|boolean truncated  (rows) it was cut, as by the time limit
function Env:step(actions) return self._step(self, actions) end

-- The generator of samples that nobody gave one, of the environment inside all wrappers; checkpoints have it. The first
-- sample seeds it by peri's own.
function Env:_sampler()
  local env = self
  while rawget(env, "_inner") do env = rawget(env, "_inner") end
  local rng = rawget(env, "_rng")
  if not rng then
    rng = spaces.fresh_rng()
    rawset(env, "_rng", rng)
  end
  return rng
end

--- Random actions for every row, of those that are legal.
--- @param rng table?  of peri.env.rng; default: the environment's own, which peri.seed decides and checkpoints have
--- @return perilune.Tensor|integer actions  as step takes them
function Env:sample(rng)
  local mask = self.mask
  rng = rng or self:_sampler()
  if not self.n then return self.action_space:sample(rng, mask) end
  local list = {}
  for row = 1, self.rows do
    local a = self.action_space:sample(rng, mask and mask:select(1, row))
    list[row] = a
  end
  if self.action_space.kind == "discrete" then return peri.tensor(list, "i64") end
  return peri.stack(list, 1)
end

--- Episodes that ended since the last call, oldest first. dropped counts those that nobody asked for in time: the
--- newest 65,536 are kept.
--- @return table  { returns = {...}, lengths = {...}, rows = {...}, dropped = 0 }
function Env:episodes()
  local returns, lengths, rows, dropped = core.episodes(self._core)
  return { returns = returns, lengths = lengths, rows = rows, dropped = dropped }
end

-- ---- many steps ----

local step_fields = { "reward", "terminated", "truncated", "final_obs", "valid" }

local function check_collect(env, rollout, policy)
  if getmetatable(rollout) ~= "perilune.rollout" then
    options.raise("collect: " .. options.is("rollout", rollout) .. ", expected a rollout (peri.rollout)", 2)
  end
  local mt = getmetatable(policy)
  if type(policy) ~= "function" and not (type(mt) == "table" and mt.__call) then
    options.raise("collect: " .. options.is("policy", policy) .. ", expected a module or function of obs", 2)
  end
  local kind = env.action_space.kind
  if kind ~= "discrete" or not env.n or env.mask then
    options.raise(("collect: %s has %s, expected rows of environments with discrete actions that are all legal"):format(
      env.id, not env.n and "no rows" or env.mask and "a mask" or kind .. " actions"), 2)
  end
end

--- Steps of every environment with a policy's actions, as many as the rollout has: of each, what the rollout has fields
--- for of obs (before the step), action, logp, reward, terminated, truncated, final_obs and valid. Actions are drawn as
--- policy(obs):sample() does; nothing is recorded for gradients. Where the policy is nn.MLP and no wrapper is around
--- the environment, the loop runs without Lua; the numbers are the same.
--- @param rollout perilune.Rollout
--- @param policy function|perilune.nn.Module  obs (rows, ...) -> logits (rows, actions)
--- @return perilune.Tensor obs  after the last step
function Env:collect(rollout, policy)
  check_collect(self, rollout, policy)
  local phase <close> = phases.open "rollout" -- luacheck: ignore 211
  local _ <close> = peri.no_grad()
  local bare, w, b = rawget(self, "_core") ~= nil, nil, nil
  if bare and type(policy) == "table" and policy._lists then w, b = policy:_lists() end
  if w then
    core.collect(self._core, rollout, w, b, policy.activation)
    return self.obs
  end
  local fields = rollout:state_dict()
  local _, any = next(fields)
  for t = 1, any.shape[1] do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local obs, step = self.obs, {}
    local action, logp = policy(obs):sample()
    rollout:set(t, { obs = fields.obs and obs, action = fields.action and action, logp = fields.logp and logp })
    self:step(action)
    for _, name in ipairs(step_fields) do step[name] = fields[name] and self[name] end
    rollout:set(t, step)
  end
  return self.obs
end

-- ---- states ----

-- What runs in another process has its state there.
local function check_here(env, who)
  if env._elsewhere then
    options.raise(("%s: %s runs in a process of its own and cannot be saved"):format(who, env.id))
  end
end

-- The state of row i of an environment written in Lua, as a text: of the whole batch its tensors' rows, as bytes.
local function encoded(env, i)
  if env._whole then
    local list = {}
    for name, t in pairs(whole.row(env._whole, env._spec, i)) do
      list[name] = { t:contiguous():bytes(), t.dtype, { table.unpack(t.shape) } }
    end
    return plain.encode(list, "state")
  end
  local states, spec = core.states(env._core), env._spec
  if not states then return "" end
  local state = states[i]
  if spec.save then state = spec.save(state) end
  return plain.encode(state, ("state of row %d"):format(i))
end

local function decoded(env, text)
  local state = plain.decode(text)
  if env._spec.load then state = env._spec.load(state) end
  if type(state) ~= "table" then
    options.raise(("%s: load returned %s, expected the state, a table"):format(env.id, type(state)))
  end
  return state
end

local function check_row(env, who, row)
  local n = env.rows // env.agents
  if math.type(row) ~= "integer" or row < 1 or row > n then
    options.raise(("%s: %s, expected an integer from 1 to %d"):format(who, options.is("row", row), n))
  end
  return row
end

--- One environment as a string: its state, generator, time and observation. Loaded into any row of an environment of
--- the same id and options, it goes on as this one would.
--- @param row integer?  the first
--- @return string
function Env:save(row)
  check_here(self, "save")
  row = check_row(self, "save", row or 1)
  return ("<s8"):pack(core.save(self._core, row)) .. encoded(self, row)
end

--- Put what save gave into a row.
--- @param row integer|string  left out: the first
--- @param state string?
--- @return self
function Env:load(row, state)
  check_here(self, "load")
  if state == nil then row, state = 1, row end
  row = check_row(self, "load", row)
  options.argument("load", "state", state, "string")
  local ok, bytes, at = pcall(string.unpack, "<s8", state)
  if not ok then options.raise(("load: %s: the string is no saved state"):format(self.id)) end
  local states = core.states(self._core)
  local fresh = states and decoded(self, state:sub(at))
  if self._whole then
    fresh = {}
    for name, t in pairs(plain.decode(state:sub(at))) do fresh[name] = peri.from_bytes(t[1], t[2], t[3]) end
    whole.put_row(self._whole, self._spec, row, fresh)
  end
  core.load(self._core, row, bytes)
  if states then states[row] = fresh end
  return self
end

--- Everything that a checkpoint needs: states, generators, time, statistics, buffers. For run:track.
--- @return table tensors
--- @return table plain
function Env:state_dict()
  check_here(self, "state_dict")
  local begun, tensors = core.begun(self._core), {}
  local rng = rawget(self, "_rng") and rawget(self, "_rng"):state()
  if rng then tensors.sampler = peri.from_bytes(rng, "u8", { #rng }) end
  local out = { id = self.id, n = self.rows // self.agents, begun = begun }
  local e = self:episodes()
  out.episodes = e
  core.put_episodes(self._core, e.returns, e.lengths, e.rows, e.dropped)
  if not begun then return tensors, out end
  local all = core.save(self._core)
  tensors.rows = peri.from_bytes(all, "u8", { out.n, #all // out.n })
  if self._whole then
    local own, rest = whole.parts(self._whole, self._spec)
    for name, t in pairs(own) do tensors["S." .. name] = t end
    out.rest = plain.encode(rest, "S")
  elseif core.states(self._core) then
    local texts, lengths = {}, {}
    for i = 1, out.n do texts[i] = encoded(self, i); lengths[i] = #texts[i] end
    local joined = table.concat(texts)
    tensors.states, tensors.lengths = peri.from_bytes(joined, "u8", { #joined }), peri.tensor(lengths, "i64")
  end
  return tensors, out
end

local function split(env, tensors, n)
  local joined, at, states = tensors.states:bytes(), 1, {}
  for i, length in ipairs(tensors.lengths:tolist()) do
    states[i] = decoded(env, joined:sub(at, at + length - 1))
    at = at + length
  end
  if #states ~= n then options.raise(("load_state_dict: %s: %d states, expected %d"):format(env.id, #states, n)) end
  return states
end

--- Go on from what state_dict gave. What does not fit raises, and then nothing changed.
--- @param tensors table
--- @param state table
--- @return self
function Env:load_state_dict(tensors, state)
  local n = self.rows // self.agents
  options.argument("load_state_dict", "state", state, "table")
  if state.id ~= self.id or state.n ~= n then
    options.raise(("load_state_dict: the state is of %s with n = %s, expected %s with n = %d"):format(
      tostring(state.id), tostring(state.n), self.id, n))
  end
  local lua, of_whole = state.begun and self._spec ~= nil and not self._whole, {}
  local known = { rows = state.begun, states = lua, lengths = lua, sampler = tensors.sampler ~= nil }
  for name in pairs(tensors) do
    if self._whole and state.begun and tostring(name):sub(1, 2) == "S." then of_whole[name:sub(3)] = tensors[name]
    elseif not known[name] then options.raise("load_state_dict: unexpected " .. tostring(name)) end
  end
  for name, needed in pairs(known) do
    if needed and not peri.is_tensor(tensors[name]) then options.raise("load_state_dict: missing " .. name) end
  end
  local sampler
  if tensors.sampler then sampler = spaces.fresh_rng(0):set_state(tensors.sampler:bytes()) end
  if state.begun then
    local states = lua and split(self, tensors, n)
    local rest
    if self._whole then
      options.argument("load_state_dict", "state.rest", state.rest, "string")
      rest = plain.decode(state.rest)
    end
    core.load(self._core, 0, tensors.rows:bytes())
    if self._whole then whole.take(self._whole, self._spec, of_whole, rest) end
    local own = core.states(self._core)
    for i = 1, states and n or 0 do own[i] = states[i] end
  end
  rawset(self, "_rng", sampler)
  local e = state.episodes
  core.put_episodes(self._core, e.returns, e.lengths, e.rows, e.dropped)
  return self
end

-- ---- pictures ----

--- A picture of an environment in characters.
--- @param row integer?  the first
--- @return string
function Env:text(row)
  row = check_row(self, "text", row or 1)
  local spec = self._spec
  if not spec then return core.text(self._core, row) end
  if not spec.text then options.raise(("text: %s has no text function"):format(self.id)) end
  if self._whole then return spec.text(self._whole.S, row) end
  return spec.text(core.states(self._core)[row])
end

--- An environment drawn into a new frame of shapes (peri.frame).
--- @param row integer?  the first
--- @return table
function Env:frame(row)
  row = check_row(self, "frame", row or 1)
  local spec = self._spec
  if not spec then return core.frame(self._core, row) end
  if not spec.render then options.raise(("frame: %s has no render function"):format(self.id)) end
  local frame = peri.frame(400, 300)
  if self._whole then spec.render(self._whole.S, frame, row) else spec.render(core.states(self._core)[row], frame) end
  return frame
end

--- A picture of an environment as pixels.
--- @param row integer?  the first
--- @param height integer?  of the picture, its width in proportion; default: the frame's own
--- @return perilune.Tensor  (height, width, 3) u8
function Env:render(row, height)
  local frame = self:frame(row)
  if not height then return frame:tensor() end
  options.argument("render", "height", height, "number")
  return frame:tensor(height, math.max(1, math.floor(height * frame.width / frame.height + 0.5)))
end

--- What wrappers do to observations by statistics of theirs, in order: { mean, var, epsilon, clip } of each. Policy
--- files carry it.
--- @return table[]
function Env:normalizers() return {} end

--- Named tensors of what wrappers have learnt.
--- @return table<string, perilune.Tensor>
function Env:statistics() return {} end -- luacheck: ignore 212

--- Statistics of wrappers stay as they are, for evaluation; false: they go on.
--- @param _ boolean?
--- @return self
function Env:eval(_) return self end

-- ---- making ----

--- The transition model of an environment that has one, such as FrozenLake: { states, actions, first,
--- transitions }. transitions[state][action] is a list of outcomes { p, next, reward, terminated }, first one of the
--- states that a reset gives. States and actions count from 0, as observations and actions do.
--- @return table
function Env:model() return core.model(self._core) end

local modes = { same_step = 0, next_step = 1, disabled = 2 }

local M = { Env = Env }

M.rules = {
  n = options.integer(options.none, "[1, inf)", "environments that run at once; none: a single one, without rows"),
  seed = options.integer(options.none, "[0, inf)", "environment i has seed + i - 1; none: from peri's generator"),
  autoreset = options.choice(options.none, { "same_step", "next_step", "disabled" },
    "what follows the end of an episode; same_step, for a single environment disabled"),
  threads = options.integer(1, "[0, inf)", "that step rows, 0: all of peri's; results do not depend on it"),
  max_steps = options.integer(options.none, "[0, inf)", "time limit in place of the environment's own; 0: none"),
  copy = options.boolean(true,
    "what step returns is new; false: the same tensors each time, overwritten by each step"),
  reward_dtype = options.choice("f32", { "f32", "f64" }, "of the tensors of rewards"),
}

-- A batch. how: an id, or the checked table of an environment that is written in Lua. o: filled by rules; args: the
-- environment's own options. of: what makes it of the settings in place of the registry.
function M.make(how, o, args, of)
  local single = o.n == nil
  local given = { n = o.n or 1, seed = o.seed, threads = o.threads, max_steps = o.max_steps,
    autoreset = modes[o.autoreset or single and "disabled" or "same_step"], f64 = single or o.reward_dtype == "f64",
    args = args }
  local made, bound
  if of then made = of(given)
  elseif type(how) == "table" and how.batch then
    bound = whole.bind(how, given.n)
    local spec = {}
    for k, v in pairs(how) do spec[k] = v end
    spec.step, spec.reset = bound.step, bound.reset
    made = core.make_lua(given, spec)
  elseif type(how) == "table" then made = core.make_lua(given, how)
  else made = core.make(how, given) end
  local spec = core.spec(made)
  if single and spec.agents > 1 then single = false end -- agents are rows
  local env = { id = type(how) == "table" and how.id or how, n = o.n or spec.agents > 1 and 1 or nil,
    rows = spec.rows, agents = spec.agents,
    max_steps = spec.max_steps,
    reward_threshold = spec.reward_threshold, metric_names = spec.metrics, doc = spec.doc,
    has_frame = spec.has_frame, has_text = spec.has_text, _core = made, _copy = o.copy,
    obs_space = spaces.of(spec.obs), action_space = spaces.of(spec.action),
    _spec = type(how) == "table" and how or nil, _whole = bound, _elsewhere = of ~= nil,
    _autoreset = o.autoreset or (o.n and "same_step" or "disabled") }
  if env._spec then
    env.obs_space, env.action_space = how.obs, how.action
    env.has_frame, env.has_text = how.render ~= nil, how.text ~= nil
  end
  env.step, env._obs = core.stepper(made, single, o.copy)
  return setmetatable(env, Env)
end

return M
