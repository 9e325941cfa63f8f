-- checks_replay.lua - what must hold in every learner with a replay buffer, looked at while it learns. Each of these
-- mistakes lets a loop run, and learn less. They cost some microseconds a step.

local peri = require "perilune"
local options = require "perilune.options"

local M = {}

local step_rules = {
  next_obs = options.value(options.required, "tensor", "(rows, ...), what is stored as what the step led to"),
  obs = options.value(options.required, "tensor", "(rows, ...), what the next step begins with"),
  terminated = options.value(options.required, "tensor", "(rows)"),
  truncated = options.value(options.required, "tensor", "(rows)"),
}

local function first(rows) return math.tointeger(rows:reshape({ -1 }):to("u8"):argmax(1):item()) + 1 end

--- What a step led to is what the next one begins with, but where an episode ended: there it is the last observation of
--- that episode, env.final_obs, and the next one begins another. Raises with the row where that does not hold, of
--- observations that are numbers with fractions, which two episodes do not share.
---
---     rl.checks.step { next_obs = env.final_obs, obs = next_obs, terminated = terminated, truncated = truncated }
---
--- @param opts table
function M.step(opts)
  local o = options.fill("rl.checks.step", opts, step_rules)
  if not o.obs.dtype:find "^f" then return end
  local rows = o.obs:size(1)
  local same = o.next_obs:eq(o.obs):reshape({ rows, -1 }):all(-1)
  local wrong = same:eq(o.terminated:logical_or(o.truncated))
  if not wrong:any():item() then return end
  local row = first(wrong)
  options.raise(same:select(1, row):item()
    and ("rl.checks.step: the episode of row %d ended, and what its last step led to is what the next episode begins "
      .. "with: store env.final_obs"):format(row)
    or ("rl.checks.step: the episode of row %d goes on from something else than what its last step led to"):format(row))
end
options.declare(M.step, {}, step_rules)

local target_rules = {
  batch = options.value(options.required, "table", "of a replay buffer: reward, discount, terminated, truncated"),
  target = options.value(options.required, "tensor", "(...), what values are drawn to"),
  value = options.value(options.required, "tensor", "(...), of next_obs"),
  tolerance = options.number(1e-4, "(0, inf)", "relative to the sizes of reward and value"),
}

--- Targets are reward where the episode terminated and reward + discount * value everywhere else, also where it was
--- truncated, and no gradient reaches them. Raises with the first entry where that does not hold.
--- @param opts table
function M.targets(opts)
  local o = options.fill("rl.checks.targets", opts, target_rules)
  if o.target.requires_grad then
    options.raise "rl.checks.targets: a gradient would reach the targets: compute them under peri.no_grad"
  end
  local _ <close> = peri.no_grad()
  local b, value = o.batch, o.value:masked_fill(o.batch.terminated:ne(0), 0)
  local off = (o.target - b.reward - b.discount * value):abs() - o.tolerance * (1 + b.reward:abs() + value:abs())
  local wrong = off:le(0):logical_not() -- NaN, too
  if not wrong:any():item() then return end
  local i = first(wrong)
  local function at(t) return t:reshape({ -1 }):select(1, i):to("f64"):item() end
  local cut = at(b.truncated) ~= 0 and at(b.terminated) == 0
  local text = "rl.checks.targets: the target of entry %d is %g, expected %g: reward %g + discount %g * value %g%s"
  options.raise(text:format(i, at(o.target), at(b.reward) + at(b.discount) * at(value), at(b.reward), at(b.discount),
    at(value), cut and "; its episode was truncated, which is no end: it has a value behind it"
    or at(b.terminated) ~= 0 and "; its episode terminated, and nothing is behind it" or ""))
end
options.declare(M.targets, {}, target_rules)

return M
