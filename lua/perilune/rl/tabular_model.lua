-- tabular_model.lua - a model of a small environment as counts: what actions led to, how often and how long ago.

local peri = require "perilune"
local options = require "perilune.options"

local M = {}

local rules = {
  seed = options.integer(options.none, "[0, inf)", "of its generator; none: from peri's"),
  kappa = options.number(0, "[0, inf)", "bonus kappa sqrt(steps since it was tried) of drawn rewards (Dyna-Q+)"),
  actions = options.integer(options.none, "[1, inf)", "of every state: until they are tried, those of a state that was "
    .. "seen are drawn, too, and lead back to it without reward (Dyna-Q+)"),
  last = options.boolean(false, "keep what an action led to the last time alone: worlds that change, without chance"),
}

--- @class perilune.rl.TabularModel
--- @field pairs table[]  every state and action that was seen, in that order: { s, a, outcomes, count, time }
--- @field time integer  steps that were observed
--- @field rng table  of peri.env.rng
local Model = {}
Model.__index = Model
Model.__name = "perilune.rl.TabularModel"

--- A model of numbered states and actions that is counted from steps: what Dyna plans with (Sutton 1990; Sutton and
--- Barto 2018, section 8.2).
---
---     local model = rl.tabular_model({ seed = 1 })
---     model:observe(s, a, reward, after, terminated)
---     local s, a, reward, after, terminated = model:draw()
---
--- @param opts table?
--- @return perilune.rl.TabularModel
function M.tabular_model(opts)
  local o = options.fill("rl.tabular_model", opts, rules)
  return setmetatable({ pairs = {}, time = 0, kappa = o.kappa, last = o.last, _actions = o.actions, _at = {},
    rng = peri.env.rng(o.seed or peri.randint(0, 1 << 31, { 1 }):item()) }, Model)
end
options.declare(M.tabular_model, {}, rules)

local function pair_of(self, s, a)
  local of_state = self._at[s]
  if not of_state then
    of_state = {}
    self._at[s] = of_state
    for b = 1, self._actions or 0 do
      local untried = { after = s, reward = 0, terminated = false, count = 1 }
      of_state[b] = { s = s, a = b, outcomes = { untried }, count = 1, time = 0 } -- time 0: never tried
      self.pairs[#self.pairs + 1] = of_state[b]
    end
  end
  local pair = of_state[a]
  if not pair then
    pair = { s = s, a = a, outcomes = {}, count = 0, time = 0 }
    of_state[a], self.pairs[#self.pairs + 1] = pair, pair
  end
  return pair
end

--- Count a step.
--- @param s integer  state
--- @param a integer  action
--- @param reward number
--- @param after integer  the state that it led to
--- @param terminated boolean
function Model:observe(s, a, reward, after, terminated)
  if reward - reward ~= 0 then
    options.raise(("tabular_model:observe: reward is %s, expected a finite number"):format(reward))
  end
  local pair = pair_of(self, s, a)
  self.time = self.time + 1
  if self.last or pair.time == 0 then pair.outcomes, pair.count = {}, 0 end
  pair.count, pair.time = pair.count + 1, self.time
  for _, o in ipairs(pair.outcomes) do
    if o.after == after and o.reward == reward and o.terminated == terminated then
      o.count = o.count + 1
      return
    end
  end
  pair.outcomes[#pair.outcomes + 1] = { after = after, reward = reward, terminated = terminated, count = 1 }
end

--- Draw one of the states and actions that were seen, all alike, and what it leads to, as often as it did.
--- @return integer s
--- @return integer a
--- @return number reward  with the bonus
--- @return integer after
--- @return boolean terminated
function Model:draw()
  if #self.pairs == 0 then options.raise "tabular_model:draw: nothing was observed yet" end
  local pair = self.pairs[self.rng:integer(#self.pairs) + 1]
  local left, outcome = pair.count > 1 and self.rng:integer(pair.count) or 0, pair.outcomes[1]
  for _, o in ipairs(pair.outcomes) do
    outcome, left = o, left - o.count
    if left < 0 then break end
  end
  local bonus = self.kappa > 0 and self.kappa * math.sqrt(self.time - pair.time) or 0
  return pair.s, pair.a, outcome.reward + bonus, outcome.after, outcome.terminated
end

--- Everything that a resumed run needs.
--- @return table tensors
function Model:state_dict()
  local rows, rng = {}, self.rng:state()
  for k, pair in ipairs(self.pairs) do
    for _, o in ipairs(pair.outcomes) do
      rows[#rows + 1] = { k, pair.s, pair.a, pair.time, o.after, o.reward, o.terminated and 1 or 0, o.count }
    end
  end
  return { outcomes = #rows > 0 and peri.tensor(rows, "f64") or peri.zeros({ 0, 8 }, "f64"),
    time = peri.tensor({ self.time }, "i64"), rng = peri.from_bytes(rng, "u8", { #rng }) }
end

--- @param tensors table  of state_dict
function Model:load_state_dict(tensors)
  for _, name in ipairs { "outcomes", "time", "rng" } do
    options.argument("tabular_model:load_state_dict", name, tensors[name], "tensor")
  end
  local rows = tensors.outcomes
  if rows.ndim ~= 2 or rows.shape[2] ~= 8 then
    options.raise(("tabular_model:load_state_dict: outcomes has shape %s, expected (n, 8)"):format(options.shape(rows)))
  end
  self.pairs, self._at = {}, {}
  for _, row in ipairs(rows.shape[1] > 0 and rows:tolist() or {}) do
    local pair = self.pairs[row[1]]
    if not pair then -- in the order in which they were seen
      pair = { s = math.tointeger(row[2]), a = math.tointeger(row[3]), outcomes = {}, count = 0 }
      self._at[pair.s] = self._at[pair.s] or {}
      self._at[pair.s][pair.a], self.pairs[#self.pairs + 1] = pair, pair
    end
    pair.time = math.tointeger(row[4])
    pair.count = pair.count + math.tointeger(row[8])
    pair.outcomes[#pair.outcomes + 1] = { after = math.tointeger(row[5]), reward = row[6], terminated = row[7] == 1,
      count = math.tointeger(row[8]) }
  end
  self.time = tensors.time:item()
  self.rng:set_state(tensors.rng:bytes())
end

return M
