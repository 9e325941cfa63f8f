-- hindsight.lua - hindsight experience replay (Andrychowicz et al. 2017, 1707.01495): a step that did not come to its
-- goal came to something, and teaches how to come there. Goals are replaced when a batch is drawn, so the buffer holds
-- what happened and no more.

local peri = require "perilune"
local options = require "perilune.options"

local M = {}

local rules = {
  n = options.integer(options.required, "[1, inf)", "transitions, of each group of the buffer"),
  length = options.integer(options.required, "[1, inf)", "steps ahead within which a goal is looked for: the length of "
    .. "an episode, if it has one"),
  share = options.number(0.8, "[0, 1]", "of the transitions that get another goal: k / (k + 1) of the paper's k"),
  goal = options.value("goal", "string", "name of the field of goals, seen before and after a step alike"),
  achieved = options.value(options.required, "callable", "achieved(next_obs) -> goals (..., goal) that a step came "
    .. "to, of (..., numbers)"),
  reward = options.value(options.required, "callable", "reward(achieved, goal) -> rewards (...) of goals (..., goal)"),
  reached = options.value(options.none, "callable", "reached(achieved, goal) -> (...) bool, ends of episodes; none: an "
    .. "episode ends where it ended, whatever the goal"),
}

-- x (lead, length, ...) at index (lead) of its second dim but `lead` dims.
local function at(x, index)
  local rest = x.ndim - 2
  for _ = 1, rest + 1 do index = index:unsqueeze(-1) end
  local shape = { x.shape[1], 1, table.unpack(x.shape, 3) }
  return x:gather(index:expand(shape), 2):squeeze(2)
end

--- A sample of a replay buffer in which some transitions have a goal that was reached later in their episode, this step
--- included (the strategy "future"), with the reward and the end that this goal would have had. The others are as they
--- were added. Where the sample's field relabelled is true the goal was replaced.
---
---     local batch = rl.hindsight(buffer, { n = 128, length = 50, achieved = where, reward = function (at, goal)
---       return at:eq(goal):all(-1):to("f32") - 1 end })
---
--- @param buffer perilune.Replay  uniform, of single steps, with a field of goals among its fields (not observed)
--- @param opts table
--- @return table  as buffer:sample(n) gives it, (n, ...) or (groups, n, ...), with relabelled
function M.hindsight(buffer, opts)
  local who = "rl.hindsight"
  options.argument(who, "buffer", buffer, "userdata")
  local o = options.fill(who, opts, rules)
  local _ <close> = peri.no_grad()
  local seq = buffer:sequences(o.n, o.length)
  if not seq[o.goal] or not seq.next_obs then
    options.raise(("%s: the buffer has no field %s, or none that is observed as obs"):format(who, o.goal))
  end
  local lead = seq.mask.ndim == 3 and { seq.mask.shape[1], seq.mask.shape[2] } or { seq.mask.shape[1] }
  local count, from, flat = lead[1] * (lead[2] or 1), #lead + 1, {}
  for name, x in pairs(seq) do
    if x.ndim < from or x.shape[from] ~= o.length then
      options.raise(("%s: %s is no field of every step: the buffer is prioritised, or has fields of starts"):format(who,
        name))
    end
    flat[name] = x:reshape { count, table.unpack(x.shape, from) }
  end
  local out, first = {}, peri.zeros({ count }, "i64")
  for name, x in pairs(flat) do
    if name ~= "mask" then out[name] = at(x, first) end
  end
  local left = flat.mask:sum(2) -- (count) steps from this one to the end
  local ahead = (peri.rand { count } * left):floor():minimum(left - 1):to "i64"
  local new = peri.rand({ count }):lt(o.share)
  local came, goal = o.achieved(out.next_obs), o.achieved(at(flat.next_obs, ahead))
  local function chosen(a, b) -- a where the goal is new
    local where = new
    for _ = 2, a.ndim do where = where:unsqueeze(-1) end
    return peri.where(where, a:to(b.dtype), b)
  end
  local reward = o.reward(came, goal)
  options.finite(who, "what reward gave", reward)
  out.reward = chosen(reward, out.reward)
  if o.reached then out.terminated = peri.where(new, o.reached(came, goal), out.terminated) end
  out[o.goal], out.relabelled = chosen(goal, out[o.goal]), new
  if #lead == 2 then
    for name, x in pairs(out) do out[name] = x:reshape { lead[1], lead[2], table.unpack(x.shape, 2) } end
  end
  return out
end
options.declare(M.hindsight, { "buffer" }, rules)

return M
