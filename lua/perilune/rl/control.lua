-- control.lua - coefficients that follow what they are to hold: of a KL penalty, of an entropy bonus. Each has a
-- state, so that a run which is resumed goes on with the same coefficient.
local options = require "perilune.options"

local M = {}

-- Takes the numbers of a state, all or none.
local function take(who, self, s, names)
  for _, name in ipairs(names) do
    local v = type(s) == "table" and s[name] or nil
    if type(v) ~= "number" or v ~= v or math.abs(v) == math.huge then
      options.raise(("%s: the state has no finite number %s"):format(who, name))
    end
  end
  for _, name in ipairs(names) do self[name] = s[name] end
  return self
end

local function want(who, name, v)
  if type(v) ~= "number" or v ~= v or math.abs(v) == math.huge then
    options.raise(("%s: %s, expected a finite number"):format(who, options.is(name, v)))
  end
end

local Kl = {}
Kl.__index = Kl

local kl_rules = {
  beta = options.number(options.required, "(0, inf)", "coefficient at first"),
  target = options.number(options.required, "(0, inf)", "KL to hold, in the unit that update() is given"),
  horizon = options.number(10000, "(0, inf)", "samples in which the coefficient may change by a fifth"),
}

--- A KL coefficient that holds the KL near a target: after each update beta <- beta (1 + clip(KL / target - 1, -0.2,
--- 0.2) n / horizon)  (Ziegler et al. 2019, 1909.08593 section 2.2).
---
---     local control = rl.kl_controller { beta = 0.05, target = 6 }
---     control:update(kl, n) -- the KL that was measured over n samples; control.beta is the next coefficient
---
--- @param opts table
--- @return table controller  .beta; :update(kl, n) -> beta; :state(), :set_state(s)
function M.kl_controller(opts)
  return setmetatable(options.fill("rl.kl_controller", opts, kl_rules), Kl)
end
options.declare(M.kl_controller, {}, kl_rules)

--- The coefficient after an update.
--- @param kl number  that was measured
--- @param n number  samples of the update
--- @return number beta
function Kl:update(kl, n)
  want("kl_controller:update", "kl", kl)
  want("kl_controller:update", "n", n)
  local off = math.max(-0.2, math.min(0.2, kl / self.target - 1))
  self.beta = self.beta * (1 + off * n / self.horizon)
  return self.beta
end

--- What a checkpoint keeps.
--- @return table
function Kl:state() return { beta = self.beta } end

--- Go on from a state.
--- @param s table
--- @return self
function Kl:set_state(s) return take("kl_controller", self, s, { "beta" }) end

local Entropy = {}
Entropy.__index = Entropy

local entropy_rules = {
  target = options.number(0.2, "[0, inf)", "entropy to keep, in nats a token"),
  coef = options.number(0, "[0, inf)", "coefficient at first"),
  delta = options.number(0.005, "[0, inf)", "step of the coefficient"),
  min = options.number(0, "[0, inf)", "least coefficient"),
  max = options.number(1, "[0, inf)", "largest coefficient"),
}

--- A coefficient of the entropy bonus that keeps the entropy from falling under a target: after each update it grows
--- by delta where the entropy was at most the target, and shrinks by delta where it was above; above it, it is not
--- applied (Skywork-OR1, 2505.22312; TRL's use_adaptive_entropy).
--- @param opts table?
--- @return table controller  .coef; :value() what to apply now; :update(entropy) -> value; :state(), :set_state(s)
function M.entropy_controller(opts)
  local o = options.fill("rl.entropy_controller", opts, entropy_rules)
  if o.min > o.max then
    error(("rl.entropy_controller: min is %g, expected at most max, which is %g"):format(o.min, o.max), 2)
  end
  o.entropy = math.huge -- of the last update: none yet, so nothing is applied
  return setmetatable(o, Entropy)
end
options.declare(M.entropy_controller, {}, entropy_rules)

--- The coefficient to apply: 0 while the entropy is above the target.
--- @return number
function Entropy:value() return self.entropy <= self.target and self.coef or 0 end

--- The coefficient after an update.
--- @param entropy number  mean of the update, in nats a token
--- @return number value
function Entropy:update(entropy)
  want("entropy_controller:update", "entropy", entropy)
  self.entropy = entropy
  local step = entropy <= self.target and self.delta or -self.delta
  self.coef = math.max(self.min, math.min(self.max, self.coef + step))
  return self:value()
end

--- What a checkpoint keeps.
--- @return table
function Entropy:state() return { coef = self.coef, entropy = self.entropy < math.huge and self.entropy or nil } end

--- Go on from a state.
--- @param s table
--- @return self
function Entropy:set_state(s)
  local fresh = type(s) == "table" and s.entropy == nil
  take("entropy_controller", self, s, fresh and { "coef" } or { "coef", "entropy" })
  if fresh then self.entropy = math.huge end
  return self
end

return M
