-- checks.lua - what must hold in every policy gradient with old log-probabilities, looked at while it learns. Each of
-- these mistakes lets a loop run, and learn less. They cost microseconds an update.

local peri = require "perilune"
local options = require "perilune.options"
local gae = require "perilune.rl.gae"

local M = {}

local ratio_rules = {
  tolerance = options.number(1e-3, "(0, inf)", "how far from 1 the arithmetic may bring it"),
}

--- Before the first step of an update the policy is the one that acted: every ratio exp(logp - old_logp) is 1. Raises
--- where one is not: the log-probabilities are of other actions, another mask, other observations or another network
--- than those that acted (dropout, statistics that moved). Call it on the first minibatch of each update.
--- @param logp perilune.Tensor
--- @param old_logp perilune.Tensor  in the same shape
--- @param opts table?
function M.ratio(logp, old_logp, opts)
  local who = "rl.checks.ratio"
  local o = options.fill(who, opts, ratio_rules)
  options.argument(who, "logp", logp, "tensor")
  options.argument(who, "old_logp", old_logp, "tensor")
  if options.shape(logp) ~= options.shape(old_logp) then
    options.raise(("%s: logp has shape %s, old_logp %s"):format(who, options.shape(logp), options.shape(old_logp)))
  end
  local _ <close> = peri.no_grad()
  local apart = (logp:detach() - old_logp:detach()):abs()
  local worst = apart:max():item()
  if worst <= o.tolerance then return end
  local i = math.tointeger((worst == worst and apart or apart:ne(apart):to "f32"):reshape({ -1 }):argmax(1):item())
  options.raise(("%s: in the first minibatch of an update the ratio of entry %d (from 0) is %g, expected 1: logp is "
    .. "%g and was %g when it acted. The policy has changed between, or sees something else than it did then"):format(
    who, i, (logp:detach() - old_logp:detach()):reshape({ -1 }):select(1, i + 1):exp():item(),
    logp:detach():reshape({ -1 }):select(1, i + 1):item(), old_logp:detach():reshape({ -1 }):select(1, i + 1):item()))
end
options.declare(M.ratio, { "logp", "old_logp" }, ratio_rules)

local bootstrap_rules = {
  value = options.value(options.none, "callable", gae.rules.value.doc),
  after = options.value(options.none, "tensor", "(steps, rows) in its place, for a policy that remembers: values of "
    .. "final_obs, which count where a step was truncated; the rollout has the field value then"),
  gamma = gae.rules.gamma, seeds = gae.rules.seeds,
  tolerance = options.number(1e-3, "(0, inf)", "relative to the sizes of reward and values"),
}

--- Where a step was truncated, its episode would have gone on: its advantage is reward + gamma V(final_obs) - V(obs),
--- and nothing of the episode that follows. Raises where that does not hold of the first such step of a rollout that
--- has obs, final_obs, reward, terminated, truncated, advantage; false where no step of it was truncated.
--- @param rollout perilune.Rollout
--- @param opts table
--- @return boolean checked
function M.bootstrap(rollout, opts)
  local who = "rl.checks.bootstrap"
  options.argument(who, "rollout", rollout, "userdata")
  local o = options.fill(who, opts, bootstrap_rules)
  if (o.value == nil) == (o.after == nil) then options.raise(who .. ": expected one of value and after") end
  local _ <close> = peri.no_grad()
  local cut = rollout:get("truncated"):ne(0):logical_and(rollout:get("terminated"):eq(0))
  if not cut:any():item() then return false end
  local rows = cut.shape[2]
  local at = math.tointeger(cut:to("u8"):reshape({ -1 }):argmax(1):item())
  local t, row = at // rows + 1, at % rows + 1
  local function at_step(x) return x:select(1, t):select(1, row):item() end
  local function value(name) -- with those of all rows of that step, as the function wants them
    return gae.values(who, rollout:get(name):narrow(1, t, 1), o.value, o.seeds):select(1, 1):select(1, row):item()
  end
  local reward, found = at_step(rollout:get "reward"), at_step(rollout:get "advantage")
  local final = o.after and at_step(o.after) or value "final_obs"
  local here = o.after and at_step(rollout:get "value") or value "obs"
  local expected = reward + o.gamma * final - here
  local size = 1 + math.abs(reward) + math.abs(final) + math.abs(here)
  if math.abs(found - expected) <= o.tolerance * size then return true end
  return options.raise(("%s: step %d of row %d was truncated, and its advantage is %g, expected %g: reward %g + %g * "
    .. "%g, the value of final_obs, - %g, that of obs. A truncated episode is no terminated one, and what follows it "
    .. "begins another"):format(who, t, row, found, expected, reward, o.gamma, final, here))
end
options.declare(M.bootstrap, { "rollout" }, bootstrap_rules)

--- What a loss takes as given has no gradient: old log-probabilities, advantages, returns. Raises with the name of one
--- that has.
---
---     rl.checks.constant { old_logp = batch.logp, advantage = batch.advantage }
---
--- @param tensors table<string, perilune.Tensor>
function M.constant(tensors)
  local who = "rl.checks.constant"
  options.argument(who, "tensors", tensors, "table")
  for _, name in ipairs(options.names(tensors)) do
    options.argument(who, name, tensors[name], "tensor")
    if tensors[name].requires_grad then
      options.raise(("%s: a gradient would reach %s, which is what was when the policy acted: compute it under "
        .. "peri.no_grad, or detach it"):format(who, name))
    end
  end
end

for name, check in pairs(require "perilune.rl.checks_replay") do M[name] = check end

return require "perilune.names"(M, "perilune.rl.checks")
