-- shaping.lua - potential-based reward shaping (Ng, Harada and Russell 1999): rewards of an environment with what a
-- potential gains from step to step, which leaves optimal policies what they are.
local peri = require "perilune"
local options = require "perilune.options"
local wrapper = require "perilune.env.wrapper"

local M = {}

local Shaped = wrapper.class "shape_reward"

local rules = {
  potential = options.value(options.required, "callable or table", "of observations (n, ...) -> (n) tensor, or of the "
    .. "states of an environment that numbers them: a table from 0 on, such as the values of env.optimal"),
  gamma = options.number(options.required, "[0, 1]", "the learner's discount: with another one it is no such shaping"),
}

-- A function of observations out of a table by state.
local function function_of(env, potential)
  if type(potential) == "function" or getmetatable(potential) then return potential end
  local n, list = env.obs_space.n, {}
  if not n then
    options.raise(("env.shape_reward: potential is a table, and observations are %s, expected numbered states"):format(
      tostring(env.obs_space)))
  end
  for s = 0, n - 1 do
    if type(potential[s]) ~= "number" or math.abs(potential[s]) >= math.huge or potential[s] ~= potential[s] then
      options.raise(("env.shape_reward: potential has no number for state %d of 0 to %d, expected finite ones"):format(
        s, n - 1))
    end
    list[s + 1] = potential[s]
  end
  local t = peri.keep(peri.tensor(list, "f64"))
  return function(states) return t:index_select(states:to "i64", 1) end
end

--- Rewards r + gamma Phi(s') - Phi(s), where s' is what the step led to (Ng, Harada and Russell 1999, eq. 2). The
--- potential of a terminated episode's last state counts as 0; that of a truncated one does not, for its learner goes
--- on with the value of that state. Every policy's value of a state changes by Phi(s) and optimal policies stay what
--- they are, which holds for no other function of states in general. A potential that changes while it is learned is
--- read when a state is reached (Devlin and Kudenko 2012, eq. 5). Statistics of episodes are of the rewards before, and
--- env:model() has the shaped ones.
---
---     local shaped = env.shape_reward(lake, { potential = values, gamma = 0.99 })
---
--- @param env perilune.env.Env
--- @param opts table
--- @return perilune.env.Env
function M.shape_reward(env, opts)
  wrapper.check_env("env.shape_reward", env)
  local o = options.fill("env.shape_reward", opts, rules)
  return wrapper.wrap(Shaped, env, { _potential = function_of(env, o.potential), _gamma = o.gamma })
end
options.declare(M.shape_reward, { "env" }, rules)

-- Potentials of observations as rows, f64.
local function potentials(self, obs)
  local _ <close> = peri.no_grad()
  local rows = type(obs) == "number" and peri.tensor({ obs }, "i64") or (self.n and obs or obs:unsqueeze(1))
  local phi = self._potential(rows)
  if not peri.is_tensor(phi) or phi.ndim ~= 1 or phi.shape[1] ~= rows.shape[1] then
    options.raise(("env.shape_reward: potential gave %s, expected a tensor (%d)"):format(peri.is_tensor(phi)
      and options.shape(phi) or type(phi), rows.shape[1]))
  end
  options.finite("env.shape_reward", "potential", phi)
  return phi:detach():to "f64"
end

local function as_rows(self, v, dtype)
  if self.n then return v:to(dtype) end
  return peri.tensor({ type(v) == "boolean" and (v and 1 or 0) or v }, dtype)
end

function Shaped:reset(opts)
  local obs = self._inner:reset(opts)
  local phi, mask = potentials(self, obs), opts and opts.mask and self._phi and opts.mask
  if mask and self.agents > 1 then mask = mask:repeat_interleave(self.agents, 1) end
  self._phi = peri.keep(mask and peri.where(mask, phi, self._phi) or phi)
  return obs
end

function Shaped:step(actions)
  local inner = self._inner
  local before = self._phi or potentials(self, inner.obs)
  local obs, reward, terminated, truncated = inner:step(actions)
  local now = potentials(self, obs)
  local ended = as_rows(self, terminated, "f64")
  local after = now
  if self.n and inner._autoreset == "same_step" and ended:maximum(truncated:to "f64"):any():item() then
    after = potentials(self, inner.final_obs)
  end
  local gain = peri.where(ended:ne(0), peri.zeros_like(after), after:mul(self._gamma)):sub(before)
  if self.n then gain = peri.where(inner.valid:ne(0), gain, peri.zeros_like(gain)) end -- rows that were reset instead
  self._phi = peri.keep(now)
  local out = as_rows(self, reward, "f64"):add(gain)
  self._last = self.n and peri.keep(out:to(reward.dtype)) or out:item()
  return obs, self._last, terminated, truncated
end

function Shaped.get.reward(self) return self._last or self._inner.reward end

function Shaped:model()
  local model = self._inner:model()
  local phi = potentials({ _potential = self._potential, n = model.states }, peri.arange(model.states)):tolist()
  local shaped = {}
  for k, v in pairs(model) do shaped[k] = v end
  shaped.transitions = {}
  for s = 0, model.states - 1 do
    shaped.transitions[s] = {}
    for a = 0, model.actions - 1 do
      local list = {}
      for i, x in ipairs(model.transitions[s][a]) do
        list[i] = { p = x.p, next = x.next, terminated = x.terminated,
          reward = x.reward + (x.terminated and 0 or self._gamma * phi[x.next + 1]) - phi[s + 1] }
      end
      shaped.transitions[s][a] = list
    end
  end
  return shaped
end

function Shaped:_state()
  return { potential = self._phi or peri.zeros({ self.rows }, "f64") }, { begun = self._phi ~= nil }
end

function Shaped:_set_state(tensors, values)
  self._phi, self._last = values.begun and peri.keep(tensors.potential:clone()) or nil, nil
end

return M
