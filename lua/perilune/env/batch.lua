-- batch.lua - environments that run: many rows at once, or a single one.
local core = require("perilune.core")._env
local options = require "perilune.options"
local spaces = require "perilune.env.space"

--- @class perilune.env.Env
--- @field id string
--- @field n integer?  environments; nil: a single one
--- @field rows integer  environments times agents: the first size of every tensor
--- @field agents integer
--- @field obs_space perilune.env.Space
--- @field action_space perilune.env.Space
--- @field max_steps integer?  the time limit
--- @field reward_threshold number?
--- @field obs perilune.Tensor  what the last step or reset gave
--- @field final_obs perilune.Tensor  what the last step led to: differs from obs where an episode ended and reset
--- @field reward perilune.Tensor
--- @field terminated perilune.Tensor
--- @field truncated perilune.Tensor
--- @field mask perilune.Tensor?  (rows, n) which actions are legal next
--- @field valid perilune.Tensor  (rows) false where the last action was ignored
--- @field live perilune.Tensor?  (rows) which agents act next
--- @field metrics perilune.Tensor?  (rows, metrics) named numbers of the last step
--- @field episode_return perilune.Tensor  (rows) of the last episode that ended
--- @field episode_length perilune.Tensor
local Env = { __name = "perilune.env" }

local buffers = {}
for name in ("obs final_obs reward terminated truncated mask valid live metrics episode_return episode_length")
  :gmatch "%S+" do buffers[name] = true end

local function one_of(env, t)
  if env.n or not t then return t end
  if #t.shape == 1 then return t:item() end
  local shape = t.shape
  return t:reshape { table.unpack(shape, 2) }
end

function Env.__index(env, name)
  local method = Env[name]
  if method ~= nil then return method end
  if buffers[name] then return one_of(env, core.buffer(env._core, name, env._copy)) end
  if type(name) ~= "string" or name:sub(1, 1) == "_" then return nil end
  if name == "n" or name == "max_steps" or name == "reward_threshold" then return nil end
  local names = options.names(Env)
  for field in pairs(buffers) do names[#names + 1] = field end
  return options.raise(("environment %s has no '%s'%s"):format(env.id, name,
    (function (near) return near and ("; did you mean '%s'?"):format(near) or "" end)(options.nearest(name, names))), 2)
end

function Env:__tostring()
  return ("%s {%sobs=%s, actions=%s}"):format(self.id, self.n and ("n=%d, "):format(self.n) or "",
    tostring(self.obs_space), tostring(self.action_space))
end

local reset_rules = {
  seed = options.integer(options.none, "[0, inf)", "of environment 1, the next one has seed + 1, and so on"),
  mask = options.value(options.none, "tensor", "(n) bool, the environments to reset; the others go on"),
}

--- Begin episodes: of all environments, or of those that a mask names. Without a seed their generators go on; the first
--- reset takes the seed of make, or one of peri's own generator (peri.seed).
--- @param opts table?
--- @return perilune.Tensor|integer obs  (rows, ...), a single environment's without rows
function Env:reset(opts)
  local o = options.fill("reset", opts, reset_rules)
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

--- Episodes that ended since the last call, oldest first. dropped counts those that nobody asked for in time: the
--- newest 65,536 are kept.
--- @return table  { returns = {...}, lengths = {...}, rows = {...}, dropped = 0 }
function Env:episodes()
  local returns, lengths, rows, dropped = core.episodes(self._core)
  return { returns = returns, lengths = lengths, rows = rows, dropped = dropped }
end

--- What wrappers do to observations by statistics of theirs, in order: { mean, var, epsilon, clip } of each. Policy
--- files carry it.
--- @return table[]
function Env:normalizers() return {} end -- luacheck: ignore 212

--- A picture of an environment in characters.
--- @param row integer?  the first
--- @return string
function Env:text(row) return core.text(self._core, row or 1) end

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

--- A batch of a registered environment. o: filled by rules; args: the environment's own options. of: what makes it of
--- the settings in place of the registry.
function M.make(id, o, args, of)
  local single = o.n == nil
  local settings = { n = o.n or 1, seed = o.seed, threads = o.threads, max_steps = o.max_steps,
    autoreset = modes[o.autoreset or single and "disabled" or "same_step"], f64 = single or o.reward_dtype == "f64",
    args = args }
  local made
  if of then made = of(settings) else made = core.make(id, settings) end
  local spec = core.spec(made)
  local env = { id = id, n = o.n, rows = spec.rows, agents = spec.agents, max_steps = spec.max_steps,
    reward_threshold = spec.reward_threshold, metric_names = spec.metrics, doc = spec.doc, _core = made, _copy = o.copy,
    obs_space = spaces.of(spec.obs), action_space = spaces.of(spec.action) }
  env.step, env._obs = core.stepper(made, single, o.copy)
  return setmetatable(env, Env)
end

return M
