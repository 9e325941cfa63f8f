-- dynamics.lua - models of an environment that are learned from its steps: what an action changes, and what it earns.

local peri = require "perilune"
local options = require "perilune.options"

local nn = peri.nn
local M = {}

local rules = {
  inputs = options.integer(options.required, "[1, inf)", "numbers of an observation"),
  actions = options.integer(options.required, "[1, inf)", "numbers of an action"),
  members = options.integer(5, "[1, inf)", "networks of the ensemble"),
  seeds = options.value(options.none, "table", "of the initial weights, one for each learner; none: one learner"),
  hidden = options.value({ 64, 64 }, "table", "widths of the hidden layers"),
  activation = options.choice("silu", { "relu", "tanh", "gelu", "silu", "elu" }, "between the layers"),
  probabilistic = options.boolean(true, "each member gives means and variances, not means alone"),
}

--- A model of an environment, an ensemble of networks of one learner or several: the change of the observation and the
--- reward, both scaled to mean 0 and deviation 1, from the scaled observation and action (Chua et al. 2018, section
--- 4). A Gaussian each, whose log-variance stays between two learned bounds (appendix A.1). Statistics are those of
--- `fit_scale`.
---   local model = rl.Dynamics { inputs = 3, actions = 1, seeds = { 1, 2 } }
---   model:fit_scale(batch)                                     -- of all that is known
---   model:loss(batch):backward()                               -- obs (members, seeds, n, 3) ...
---   local led, reward = model:predict(obs, action)             -- of one member for each row
--- @class perilune.rl.Dynamics
--- @field net perilune.nn.Copies  member 1 of every learner, then member 2 ...
--- @field mean perilune.Tensor  (learners, 1, inputs + actions), of the inputs; spread is their deviation
M.Dynamics = nn.class("Dynamics", function (self, ...)
  local o = options.read("rl.Dynamics", {}, rules, 4, ...)
  local learners, outputs = o.seeds and #o.seeds or 1, o.inputs + 1
  local sizes, seeds = { o.inputs + o.actions, table.unpack(o.hidden) }, o.seeds and {}
  sizes[#sizes + 1] = outputs * (o.probabilistic and 2 or 1)
  for m = 1, seeds and o.members or 0 do
    for _, seed in ipairs(o.seeds) do seeds[#seeds + 1] = seed * o.members + m end -- all of them different
  end
  self.members, self.learners, self.inputs, self.actions = o.members, learners, o.inputs, o.actions
  self.outputs, self.probabilistic = outputs, o.probabilistic
  self.net = nn.Copies(o.members * learners, function ()
    return nn.MLP(sizes, { activation = o.activation, init = "uniform" })
  end, { seeds = seeds })
  local function statistic(n, value) return peri.full({ learners, 1, n }, value) end
  self.mean, self.spread = statistic(o.inputs + o.actions, 0), statistic(o.inputs + o.actions, 1)
  self.shift, self.scale = statistic(outputs, 0), statistic(outputs, 1)
  if o.probabilistic then
    self.most = nn.parameter(statistic(outputs, 0.5)) -- of the log-variances
    self.least = nn.parameter(statistic(outputs, -10))
  end
end)
options.declare(M.Dynamics, {}, rules)

function M.Dynamics:extra() return ("%d members, %d learners"):format(self.members, self.learners) end

local function check(self, who, x, lead)
  local shape = x.shape
  if #shape ~= lead + 2 or shape[lead] ~= self.learners then
    options.raise(("%s: observations have shape %s, expected (%s%d, n, %d)"):format(who, options.shape(x),
      lead == 2 and self.members .. ", " or "", self.learners, self.inputs), 2)
  end
end

local fields = { "obs", "action", "next_obs", "reward" }
local function check_batch(who, b)
  options.argument(who, "batch", b, "table")
  for _, name in ipairs(fields) do
    if not peri.is_tensor(b[name]) then options.raise(("%s: the batch has no %s"):format(who, name), 2) end
  end
end

local function targets(b) return peri.cat({ b.next_obs - b.obs, b.reward:unsqueeze(-1) }, -1) end

--- Take means and deviations of what is scaled from steps: those that are known, all of them.
--- @param batch table  obs, action, next_obs (learners, n, ...), reward (learners, n)
function M.Dynamics:fit_scale(batch)
  check_batch("Dynamics:fit_scale", batch)
  check(self, "Dynamics:fit_scale", batch.obs, 1)
  for _, name in ipairs(fields) do options.finite("Dynamics:fit_scale", name, batch[name]) end
  local _ <close> = peri.no_grad()
  local function fit(mean, spread, x)
    local centre = x:mean(2, true)
    mean:copy_(centre)
    spread:copy_((x - centre):square():mean(2, true):sqrt():clamp { min = 1e-6 })
  end
  fit(self.mean, self.spread, peri.cat({ batch.obs, batch.action }, -1))
  fit(self.shift, self.scale, targets(batch))
end

-- Scaled inputs (members, learners, n, ...) -> means and log-variances (or nil) of the scaled outputs.
local function forward(self, obs, action)
  local x = (peri.cat({ obs, action }, -1) - self.mean) / self.spread
  local m, s, n, d = table.unpack(x.shape)
  local y = self.net(x:reshape { m * s, n, d }):reshape { m, s, n, -1 }
  if not self.probabilistic then return y end
  local log_var = y:narrow(-1, self.outputs + 1, self.outputs)
  log_var = self.most - (self.most - log_var):softplus()
  return y:narrow(-1, 1, self.outputs), self.least + (log_var - self.least):softplus()
end

--- What is learned from: the Gaussian likelihood of each member's own steps, with a hundredth of the width between the
--- bounds of the variances (Chua et al. 2018, eq. 1 and appendix A.1), or squares; a sum over members and learners of
--- means over steps, so that each learns as if alone.
--- @param batch table  obs, action, next_obs (members, learners, n, ...), reward (members, learners, n)
--- @return perilune.Tensor loss  ()
--- @return perilune.Tensor mse  () mean square of the scaled error, without a gradient
function M.Dynamics:loss(batch)
  check_batch("Dynamics:loss", batch)
  check(self, "Dynamics:loss", batch.obs, 2)
  local mean, log_var = forward(self, batch.obs, batch.action)
  local err = (mean - (targets(batch) - self.shift) / self.scale):square()
  local mse = err:detach():mean()
  if not log_var then return err:mean({ -1, -2 }):sum(), mse end
  local loss = (err * log_var:neg():exp() + log_var):mean({ -1, -2 }):sum()
  return loss + (self.most - self.least):sum() * 0.01, mse
end

--- What the steps lead to and earn, by members of the ensemble: row i asks member i % members, so that rows of a
--- population differ by what the members do not agree upon (particles of Chua et al. 2018, section 5, one a row).
--- @param obs perilune.Tensor  (learners, n, inputs), n a multiple of the members
--- @param action perilune.Tensor  (learners, n, actions)
--- @param draw boolean?  from the Gaussians, not their means
--- @return perilune.Tensor next_obs  (learners, n, inputs)
--- @return perilune.Tensor reward  (learners, n)
function M.Dynamics:predict(obs, action, draw)
  options.argument("Dynamics:predict", "obs", obs, "tensor")
  options.argument("Dynamics:predict", "action", action, "tensor")
  check(self, "Dynamics:predict", obs, 1)
  local s, n = obs.shape[1], obs.shape[2]
  if n % self.members ~= 0 then
    options.raise(("Dynamics:predict: %d rows are not shared out by %d members"):format(n, self.members))
  end
  local _ <close> = peri.no_grad()
  local function apart(x) -- (learners, n, d) -> (members, learners, n / members, d)
    return x:reshape({ s, n // self.members, self.members, x.shape[3] }):permute { 3, 1, 2, 4 }
  end
  local mean, log_var = forward(self, apart(obs), apart(action))
  if draw and log_var then mean = mean + (log_var * 0.5):exp() * peri.randn(mean.shape) end
  local y = (mean * self.scale + self.shift):permute({ 2, 3, 1, 4 }):reshape { s, n, self.outputs }
  return obs + y:narrow(-1, 1, self.inputs), y:select(-1, self.outputs)
end

return M
