-- hierarchy.lua - two policies, one above the other: the upper one picks a subgoal, the lower one acts towards it until
-- it is reached or its steps run out. Who is after what in a batch of environments, and the credit of the upper one,
-- whose decisions take several steps (a semi-Markov decision process; Sutton, Precup and Singh 1999).

local peri = require "perilune"
local gae = require "perilune.rl.gae"
local options = require "perilune.options"

local M = {}

-- ---- subgoals of a batch ----

local rules = {
  rows = options.integer(options.required, "[1, inf)", "of the environment"),
  steps = options.integer(options.required, "[1, inf)", "after which a subgoal is given up"),
  reached = options.value(options.required, "callable", "reached(obs, goal) -> (rows) bool: observations show that the "
    .. "subgoals (rows) i64 are reached"),
}

--- @class perilune.rl.Subgoals
--- @field goal perilune.Tensor  (rows) i64, what each row is after
--- @field age perilune.Tensor  (rows) i64, its steps so far
--- @field open perilune.Tensor  (rows) bool, rows that need a new one
local Subgoals = {}
Subgoals.__index = Subgoals
Subgoals.__name = "perilune.rl.Subgoals"
Subgoals.__transient = true

--- Subgoals of the rows of an environment. Before a step: set; behind it: look, then close.
---
---     local function reached(obs, goal) return obs:eq(cells:index_select(goal, 1)) end
---     local sub = rl.subgoals { rows = env.rows, steps = 10, reached = reached }
---     local chosen = sub:set(upper:sample())            -- counts where sub.open
---     env:step(lower(obs, sub.goal))
---     local reached, out = sub:look(env.final_obs)      -- what the lower one's episodes end by
---     sub:close(reached:logical_or(out):logical_or(terminated):logical_or(truncated))
---
--- A run tracks it.
--- @param opts table
--- @return perilune.rl.Subgoals
function M.subgoals(opts)
  local o = options.fill("rl.subgoals", opts, rules)
  local self = setmetatable({ rows = o.rows, steps = o.steps, reached = o.reached }, Subgoals)
  self.goal, self.age = peri.keep(peri.zeros({ o.rows }, "i64")), peri.keep(peri.zeros({ o.rows }, "i64"))
  self.open = peri.keep(peri.ones({ o.rows }, "bool"))
  return self
end
options.declare(M.subgoals, {}, rules)

local function want_rows(who, name, x, rows)
  options.argument(who, name, x, "tensor")
  if x.ndim ~= 1 or #x ~= rows then
    options.raise(("%s: %s has shape %s, expected (%d)"):format(who, name, options.shape(x), rows))
  end
end

--- Take subgoals where rows need one; others go on with theirs.
--- @param goal perilune.Tensor  (rows) i64
--- @return perilune.Tensor chosen  (rows) bool, where they were taken
function Subgoals:set(goal)
  want_rows("subgoals:set", "goal", goal, self.rows)
  local _ <close> = peri.no_grad()
  local chosen = self.open:clone()
  self.goal:copy_(peri.where(chosen, goal, self.goal))
  self.age:copy_(peri.where(chosen, peri.zeros_like(self.age), self.age))
  self.open:fill_(0)
  return chosen
end

--- What a step came to: where the subgoal is reached, and where it is not and its steps have run out.
--- @param obs perilune.Tensor  (rows, ...) what the step led to: env.final_obs
--- @return perilune.Tensor reached  (rows) bool
--- @return perilune.Tensor out  (rows) bool
function Subgoals:look(obs)
  local _ <close> = peri.no_grad()
  local reached = self.reached(obs, self.goal)
  want_rows("subgoals:look", "what reached gave", reached, self.rows)
  reached = reached:ne(0)
  return reached, self.age:ge(self.steps - 1):logical_and(reached:logical_not())
end

--- A step is over; rows where something ended need a new subgoal.
--- @param ended perilune.Tensor  (rows) bool
function Subgoals:close(ended)
  want_rows("subgoals:close", "ended", ended, self.rows)
  self.age:add_(1)
  self.open:copy_(ended:ne(0))
end

--- Give up all subgoals: every row needs a new one, as after env:reset().
function Subgoals:drop() self.open:fill_(1) end

--- Where it stands, for a run.
--- @return table
function Subgoals:state()
  return { goal = self.goal:tolist(), age = self.age:tolist(), open = self.open:to("u8"):tolist() }
end

--- @param s table  of state()
function Subgoals:set_state(s)
  if type(s) ~= "table" or #(s.goal or {}) ~= self.rows then
    options.raise(("subgoals:set_state: the state is of %s rows, these are %d"):format(
      type(s) == "table" and #(s.goal or {}) or "no", self.rows))
  end
  self.goal:copy_(peri.tensor(s.goal, "i64"))
  self.age:copy_(peri.tensor(s.age, "i64"))
  self.open:copy_(peri.tensor(s.open, "u8"):ne(0))
end

-- ---- credit ----

local smdp_rules = { chosen = options.value(options.none, "tensor", "(steps, rows) bool, where a decision was made, in "
  .. "place of the rollout's field chosen") }
for name, rule in pairs(gae.rules) do smdp_rules[name] = rule end

-- A step behind the end of an episode without a decision would get its credit from another episode.
local function check_begun(who, chosen, ended)
  local steps = #chosen
  if steps < 2 then return end
  local lost = ended:narrow(1, 1, steps - 1):logical_and(chosen:narrow(1, 2, steps - 1):logical_not())
  if not lost:any():item() then return end
  local at = math.tointeger(lost:to("u8"):reshape({ -1 }):argmax(1):item())
  local rows = chosen.shape[2]
  options.raise(("%s: the episode of row %d ended at step %d, and none was chosen at the next"):format(who,
    at % rows + 1, at // rows + 1))
end

--- Advantages of decisions that last: of a rollout with the field chosen (bool), where a decision was made that holds
--- until the next one, the end of the episode or of the rollout. A decision of k steps has delta = r_1 + gamma r_2 +
--- ... + gamma^(k-1) r_k + gamma^k V(where the next one is made) - V(where this one was), and A = delta + gamma^k lam A
--- of the next one (Sutton, Precup and Singh 1999, section 3; lam per decision). An episode that terminates is worth 0
--- from there on; one that is truncated, also in the middle of a decision, gamma^k V(final_obs); where the rollout ends
--- gamma^k V(last). Steps before the first decision of a row belong to none. With a decision at every step it is
--- rl.gae.
--- @param rollout perilune.Rollout  with chosen, obs, reward, terminated, truncated, and final_obs unless truncation is
--- "ignore"
--- @param opts table
--- @return table  advantage, returns (advantage + value) and value, each (steps, rows), 0 where nothing was chosen
function M.smdp_gae(rollout, opts)
  local who = "rl.smdp_gae"
  options.argument(who, "rollout", rollout, "userdata")
  local o = options.fill(who, opts, smdp_rules)
  local _ <close> = peri.no_grad()
  local reward, obs = rollout:get "reward", rollout:get "obs"
  local chosen = (o.chosen or rollout:get "chosen"):ne(0)
  local terminated, truncated = rollout:get("terminated"):ne(0), rollout:get("truncated"):ne(0)
  local steps, rows = table.unpack(reward.shape)
  if options.shape(chosen) ~= options.shape(reward) then
    options.raise(("%s: chosen has shape %s, expected (%d, %d)"):format(who, options.shape(chosen), steps, rows))
  end
  if o.seeds and rows % o.seeds ~= 0 then
    options.raise(("%s: seeds is %d, which does not divide the %d rows"):format(who, o.seeds, rows))
  end
  options.finite(who, "reward", reward)
  local ended = terminated:logical_or(truncated)
  check_begun(who, chosen, ended)
  local value = gae.values(who, obs, o.value, o.seeds)
  local last = gae.values(who, o.last:unsqueeze(1), o.value, o.seeds):select(1, 1)
  local cut -- what a truncated episode would still be worth
  if o.truncation == "bootstrap" and truncated:any():item() then
    cut = gae.values(who, rollout:get "final_obs", o.value, o.seeds)
  end
  local zero, gamma = peri.zeros({ rows }, reward.dtype), o.gamma
  local left, trace = last, zero -- gamma times these are what follows a step: rewards and value, the next advantage
  local advantage = {}
  for t = steps, 1, -1 do
    if cut then left = peri.where(truncated:select(1, t), cut:select(1, t), left) end
    left = reward:select(1, t) + peri.where(terminated:select(1, t), zero, left) * gamma
    if o.truncation == "ignore" then
      left = peri.where(truncated:select(1, t), reward:select(1, t), left)
    end
    trace = peri.where(ended:select(1, t), zero, trace) * gamma
    local here, v = chosen:select(1, t), value:select(1, t)
    local a = left - v + trace
    advantage[t] = peri.where(here, a, zero)
    left, trace = peri.where(here, v, left), peri.where(here, a * o.lam, trace)
  end
  local a, made = peri.stack(advantage), chosen:to(reward.dtype)
  return { advantage = a, returns = (a + value) * made, value = value * made }
end
options.declare(M.smdp_gae, { "rollout" }, smdp_rules)

return M
