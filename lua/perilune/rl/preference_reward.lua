-- preference_reward.lua - rewards learned from preferences between segments of trajectories (Christiano et al. 2017,
-- "Deep reinforcement learning from human preferences", 1706.03741): an ensemble for each learner, the pairs that it
-- has been told of, and how well it foretells pairs that it has not learned from.

local peri = require "perilune"
local options = require "perilune.options"
local optim = require "perilune.optim"
local heads = require "perilune.rl.head"

local nn = peri.nn
local M = {}

local rules = {
  obs = options.value(options.required, "table", "the environment's obs_space: a vector, or one of n"),
  action = options.value(options.none, "table", "its action_space: one of n, or a vector; none: states have worth"),
  seeds = options.value({ 1 }, "table", "of the initial weights, one for each learner; rows of learners are apart"),
  members = options.integer(3, "[1, inf)", "networks of each learner's ensemble"),
  hidden = options.value({ 64, 64 }, "table", "widths of the hidden layers"),
  length = options.integer(25, "[1, inf)", "steps of a segment"),
  capacity = options.integer(1000, "[2, inf)", "pairs that each learner keeps, the newest"),
  held_out = options.number(0.2, "[0, 1)", "share of the pairs that is not learned from"),
  batch = options.integer(32, "[1, inf)", "pairs of an optimizer step, drawn for each network by itself"),
  lr = options.number(1e-3, "(0, inf)", "learning rate of Adam"),
  decay = options.number(0, "[0, inf)", "weight decay"),
  error = options.number(0, "[0, 1)", "share of labels that are taken to be drawn at random (section 2.2.3: 0.1)"),
  center = options.boolean(true, "rewards have mean 0 over the segments that were compared; false: only deviation 1. "
    .. "Where episodes may end it decides whether to go on is good"),
}

--- @class perilune.rl.PreferenceReward
--- @field net perilune.nn.Copies  all networks: learner 1's, then learner 2's ...
--- @field pairs integer  pairs of each learner so far
local Preference = {}
Preference.__index, Preference.__name = Preference, "perilune.rl.PreferenceReward"

-- ---- pairs that are kept: a ring for each learner, all equally full ----

local function ring(self, capacity)
  local S, L, F = #self.seeds, self.length, self.features
  return { capacity = capacity, at = 0, n = 0, x = peri.zeros { S, capacity, 2, L, F },
    weight = peri.zeros { S, capacity, 2, L }, label = peri.zeros { S, capacity } }
end

local kept <const> = { "x", "weight", "label" }

local function part_of(some, from, n)
  local part = {}
  for _, name in ipairs(kept) do part[name] = some[name]:narrow(2, from, n) end
  return part
end

local function put(r, some) -- some: x (S, P, 2, L, F), weight, label
  local p = some.label.shape[2]
  local at = 1
  while at <= p do
    local n = math.min(p - at + 1, r.capacity - r.at)
    for _, name in ipairs(kept) do r[name]:narrow(2, r.at + 1, n):copy_(some[name]:narrow(2, at, n)) end
    r.at, r.n, at = (r.at + n) % r.capacity, math.min(r.n + n, r.capacity), at + n
  end
end

--- Rewards learned from preferences: r(obs, action) of each learner is the mean of an ensemble of networks. The
--- probability that segment 1 is preferred is sigmoid(sum r over segment 1 - sum r over segment 2) (eq. 1), the loss
--- its cross-entropy with the label (eq. 2).
---
---     local model = rl.PreferenceReward { obs = env.obs_space, action = env.action_space, seeds = { 1, 2 } }
---     model:compare(agent.rollout, { pairs = 20, judge = "true_reward" })
---     model:learn(50)
---     local reward = model:reward(agent.rollout)               -- (steps, rows)
---
--- @param opts table
--- @return perilune.rl.PreferenceReward
function M.PreferenceReward(opts)
  local self = options.fill("rl.PreferenceReward", opts, rules)
  local obs, action = self.obs, self.action
  if not obs.n and #(obs.shape or {}) ~= 1 then
    options.raise(("rl.PreferenceReward: observations are %s, expected a vector or one of n"):format(tostring(obs)))
  elseif action and action.kind ~= "discrete" and (action.kind ~= "box" or #action.shape ~= 1) then
    options.raise(("rl.PreferenceReward: actions are %s, expected one of n or a vector"):format(tostring(action)))
  elseif #self.seeds == 0 then options.raise "rl.PreferenceReward: seeds is empty: there are no learners" end
  self.states, self.choices = obs.n, action and action.kind == "discrete" and action.n or nil
  self.head = action and heads.head(action)
  self.features = (obs.n or obs.shape[1]) + (action and (self.choices or action.shape[1]) or 0)
  local sizes, seeds, M_ = { self.features, table.unpack(self.hidden) }, {}, self.members
  sizes[#sizes + 1] = 1
  for _, seed in ipairs(self.seeds) do
    for m = 1, M_ do seeds[#seeds + 1] = seed * M_ + m end
  end
  self.net = nn.Copies(#seeds, function () return nn.MLP(sizes, { activation = "tanh" }) end, { seeds = seeds })
  self.optimizer = optim.AdamW(self.net:parameters(), { lr = self.lr, weight_decay = self.decay })
  local out = math.floor(self.capacity * self.held_out)
  self.learned, self.unseen = ring(self, self.capacity - out), out > 0 and ring(self, out) or nil
  self.pairs = 0
  self.mean, self.std = peri.zeros { #seeds, 1 }, peri.ones { #seeds, 1 }
  return setmetatable(self, Preference)
end
options.declare(M.PreferenceReward, {}, rules)

-- ---- what networks say ----

-- Observations (steps, rows, ...), and actions where they count, as (steps, rows, features).
local function features(self, obs, action)
  local x = self.states and obs:one_hot(self.states):to "f32" or obs:to "f32"
  if not self.head then return x end
  local a = self.choices and action:one_hot(self.choices):to "f32" or self.head:sent(action):to "f32"
  return peri.cat({ x, a }, -1)
end

-- (S, n, F) -> (S * members, n): every network of a learner sees its rows.
local function scores(self, x)
  local S, n, M_ = #self.seeds, x.shape[2], self.members
  local each = M_ == 1 and x or x:unsqueeze(2):expand({ S, M_, n, self.features }):reshape { S * M_, n, self.features }
  return self.net(each):squeeze(-1)
end

-- (S, n, F) -> (S, n): the mean of the ensemble, scaled.
local function scaled(self, x)
  local r = scores(self, x)
  r = self.center and (r - self.mean) / self.std or r / self.std
  return r:reshape({ #self.seeds, self.members, x.shape[2] }):mean(2)
end

-- Sums over both segments of pairs, (S, P, 2, L, F) -> (S * members, P, 2); x may be of every network by itself.
local function sums(self, x, weight, own)
  local shape = x.shape
  local P, L, n = shape[2], self.length, #self.seeds * self.members
  local flat = x:reshape { shape[1], P * 2 * L, self.features }
  local r = (own and self.net(flat):squeeze(-1) or scores(self, flat)):reshape { n, P, 2, L }
  if not own and self.members > 1 then
    weight = weight:unsqueeze(2):expand({ #self.seeds, self.members, P, 2, L }):reshape { n, P, 2, L }
  end
  return (r * weight):sum(-1)
end

local function difference(s) return s:select(3, 1) - s:select(3, 2) end

-- What the ensemble says of pairs, (S, P): the mean difference in units of each network's deviation.
local function said(self, some)
  local d = difference(sums(self, some.x, some.weight)) / self.std
  return d:reshape({ #self.seeds, self.members, d.shape[2] })
end

-- The share of pairs that it orders as their labels do, of all and of each learner; ties do not count.
local function agreement(self, some)
  local _ <close> = peri.no_grad()
  local d = said(self, some):mean(2)
  local clear = some.label:ne(0.5)
  local right = d:gt(0):eq(some.label:gt(0.5)):logical_and(clear):to "f32"
  local n = clear:to("f32"):sum(-1)
  local of_seed = {}
  for i, count in ipairs(n:tolist()) do of_seed[i] = count > 0 and right:select(1, i):sum():item() / count or 0 / 0 end
  local total = n:sum():item()
  return total > 0 and right:sum():item() / total or nil, of_seed
end

--- The learned reward of each step of a rollout with obs and action: the mean over the ensemble, each network scaled to
--- deviation 1 (and mean 0 with center) over the segments that were compared. No gradient passes.
--- @param rollout perilune.Rollout
--- @return perilune.Tensor  (steps, rows)
function Preference:reward(rollout)
  local _ <close> = peri.no_grad()
  local x = features(self, rollout:get "obs", self.head and rollout:get "action")
  local steps, rows, S = x.shape[1], x.shape[2], #self.seeds
  if rows % S ~= 0 then options.raise(("PreferenceReward: %d learners do not share %d rows"):format(S, rows)) end
  local n = steps * (rows // S)
  local apart = x:reshape({ steps, S, rows // S, self.features }):transpose(1, 2):reshape { S, n, self.features }
  local r = scaled(self, apart)
  return r:reshape({ S, steps, rows // S }):transpose(1, 2):reshape { steps, rows }
end

--- What states are worth, of a model without actions, for rl.shaping and env.shape_reward. No gradient passes.
--- @param obs perilune.Tensor  (seeds, n, ...)
--- @return perilune.Tensor  (seeds, n)
function Preference:potential(obs)
  if self.head then options.raise "PreferenceReward:potential: its worth depends on actions: make it without action" end
  local _ <close> = peri.no_grad()
  return scaled(self, features(self, obs))
end

-- ---- pairs of segments ----

local compare_rules = {
  pairs = options.integer(20, "[1, inf)", "for each learner"),
  judge = options.value("reward", "string or callable", "name of the field whose sum over a segment is preferred when "
    .. "it is larger; or judge(x, weight) of segments (seeds, pairs, 2, length, features) -> (seeds, pairs) labels: 1 "
    .. "the first, 0 the second, 0.5 both alike"),
  noise = options.number(0, "[0, 1]", "share of the labels that is drawn at random"),
  keep = options.boolean(true, "false: only say how well it does"),
  candidates = options.integer(1, "[1, inf)", "times as many pairs from which those are asked for that the ensemble "
    .. "agrees least on (section 2.2.4)"),
}

-- Segments of a rollout: indices (S, P, 2, L) into its (steps * rows), each within the learner's rows.
local function drawn(self, steps, rows, P)
  local S, L = #self.seeds, self.length
  local shape = { S, P, 2, 1 }
  local start = peri.randint(0, steps - L + 1, shape)
  local row = peri.randint(0, rows // S, shape) + peri.arange(S):reshape({ S, 1, 1, 1 }) * (rows // S)
  return ((start + peri.arange(L)) * rows + row):reshape { -1 }
end

-- Steps of a segment count until its episode ends: 1, ..., 1, 0, ..., by whether steps (S, P, 2, L) end one.
local function within(over)
  local d = over:to "f32"
  return (d:cumsum(-1) - d):eq(0):to "f32"
end

local function least_agreed(self, some, P)
  local p = said(self, some):sigmoid()                                             -- (S, M, candidates)
  local spread = (p - p:mean(2, true)):square():mean(2)
  local best = spread:argsort(-1, true):narrow(2, 1, P)                            -- (S, P)
  local S, n = #self.seeds, some.label.shape[2]
  local at = (best + peri.arange(S):reshape({ S, 1 }) * n):reshape { -1 }
  local out = {}
  for name, t in pairs(some) do
    local shape = t.shape
    local flat = t:reshape { S * n, table.unpack(shape, 3) }
    out[name] = flat:index_select(at, 1):reshape { S, P, table.unpack(shape, 3) }
  end
  return out
end

--- Draw pairs of segments of a rollout, ask the judge, and keep them. A segment ends with its episode. A share of them
--- is never learned from.
--- @param rollout perilune.Rollout  with obs, action, terminated, truncated and what the judge reads
--- @param opts table?
--- @return table  fresh: the share of these pairs that the model ordered rightly before it learned of them (nil: all
--- were ties); ties, a share; correlation of learned and judged sums of the segments (of judges that are fields)
function Preference:compare(rollout, opts)
  local who = "PreferenceReward:compare"
  options.argument(who, "rollout", rollout, "userdata")
  local o = options.fill(who, opts, compare_rules)
  local _ <close> = peri.no_grad()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local x = features(self, rollout:get "obs", self.head and rollout:get "action")
  local steps, rows, S, L = x.shape[1], x.shape[2], #self.seeds, self.length
  if rows % S ~= 0 then options.raise(("%s: %d learners do not share %d rows"):format(who, S, rows)) end
  if steps < L then options.raise(("%s: a rollout of %d steps has no segment of %d"):format(who, steps, L)) end
  local P = o.pairs * (self.pairs > 0 and o.candidates or 1)
  local at = drawn(self, steps, rows, P)
  local function of(t, ...) return t:reshape({ steps * rows, ... }):index_select(at, 1):reshape { S, P, 2, L, ... } end
  local some = { x = of(x, self.features), weight = within(of(rollout:get("terminated"):logical_or(
    rollout:get "truncated"))) }
  if type(o.judge) == "string" then
    some.sum = (of(rollout:get(o.judge)) * some.weight):sum(-1)
    local d = difference(some.sum)
    some.label = d:gt(0):to "f32" + d:eq(0):to "f32" * 0.5
  else
    some.label = o.judge(some.x, some.weight)
    if not peri.is_tensor(some.label) or options.shape(some.label) ~= options.shape { S, P } then
      options.raise(("%s: judge gave %s, expected a tensor %s"):format(who, peri.is_tensor(some.label)
        and options.shape(some.label) or type(some.label), options.shape { S, P }))
    end
  end
  if P > o.pairs then some = least_agreed(self, some, o.pairs) end
  local out = { ties = some.label:eq(0.5):to("f32"):mean():item() }
  out.fresh = agreement(self, some)
  if some.sum then
    local mine = sums(self, some.x, some.weight):reshape({ S, self.members, o.pairs, 2 })
    out.correlation = M.correlation(mine:mean(2), some.sum)
  end
  if not o.keep then return out end
  if o.noise > 0 then
    local random = peri.rand({ S, o.pairs }):lt(o.noise)
    some.label = peri.where(random, peri.rand({ S, o.pairs }):lt(0.5):to "f32", some.label)
  end
  local unseen = self.unseen and math.floor(o.pairs * self.held_out + 0.5) or 0
  if unseen > 0 then put(self.unseen, part_of(some, 1, unseen)) end
  if unseen < o.pairs then put(self.learned, part_of(some, unseen + 1, o.pairs - unseen)) end
  self.pairs = self.pairs + o.pairs
  return out
end
options.declare(Preference.compare, { "self", "rollout" }, compare_rules)

--- The correlation of two tensors of one shape, over all of their numbers; nil where one of them does not vary.
--- @param x perilune.Tensor
--- @param y perilune.Tensor
--- @return number?
function M.correlation(x, y)
  for name, t in pairs { x = x, y = y } do options.argument("rl.correlation", name, t, "tensor") end
  if options.shape(x) ~= options.shape(y) then
    options.raise(("rl.correlation: x has shape %s, y has %s"):format(options.shape(x), options.shape(y)))
  end
  local _ <close> = peri.no_grad()
  local a, b = x:to "f64", y:to "f64"
  a, b = a - a:mean(), b - b:mean()
  local scale = math.sqrt(a:square():sum():item() * b:square():sum():item())
  return scale > 0 and (a * b):sum():item() / scale or nil
end

-- ---- learning ----

local steps_rule = options.integer(options.required, "[0, inf)")

-- The cross-entropy of labels with what a network says, where a share e of the labels is random.
local function loss_of(d, label, e)
  if e == 0 then return d:softplus() - label * d end
  local p = d:sigmoid() * (1 - e) + e / 2
  return -(label * p:log() + (1 - label) * (1 - p):log())
end

-- Means and deviations of every network's rewards over the segments that are kept.
local function scale(self)
  local r = self.learned
  local x, w = r.x:narrow(2, 1, r.n), r.weight:narrow(2, 1, r.n)
  local n, S = #self.seeds * self.members, #self.seeds
  local count = r.n * 2 * self.length
  local y = scores(self, x:reshape { S, count, self.features })
  w = w:reshape({ S, 1, count }):expand({ S, self.members, count }):reshape { n, count }
  local total = w:sum(-1, true)
  local mean = (y * w):sum(-1, true) / total
  local var = ((y - mean):square() * w):sum(-1, true) / total
  self.mean, self.std = peri.keep(mean, (var + 1e-8):sqrt())
end

--- Steps of the optimizer over pairs that were compared; then rewards are scaled anew.
--- @param steps integer
--- @return table  loss (of the last step), trained and held_out: the share of pairs that it orders as their labels do,
--- of those that it learns from and of the others (nil: there are none), held_out_of_seed
function Preference:learn(steps)
  local who, r = "PreferenceReward:learn", self.learned
  local problem = options.problem("steps", steps, steps_rule)
  if problem then options.raise(who .. ": " .. problem) end
  if r.n == 0 then options.raise(who .. ": there are no pairs; compare comes before") end
  local S, n, B, loss = #self.seeds, #self.seeds * self.members, self.batch, nil
  local from = peri.arange(S):repeat_interleave(self.members, 1):reshape { n, 1 } * r.capacity
  local function batch(t, at, ...)
    return t:reshape({ S * r.capacity, ... }):index_select(at, 1):reshape { n, B, ... }
  end
  for _ = 1, steps do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local at = (peri.randint(0, r.n, { n, B }) + from):reshape { -1 }
    local d = difference(sums(self, batch(r.x, at, 2, self.length, self.features),
      batch(r.weight, at, 2, self.length), true))
    loss = loss_of(d, batch(r.label, at), self.error):mean(-1)
    loss:sum():backward()
    self.optimizer:step({ copies = n }):zero_grad()
    loss = loss:mean():item()
  end
  local _ <close> = peri.no_grad()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  scale(self)
  local out = { loss = loss, trained = agreement(self, part_of(r, 1, r.n)) }
  if self.unseen and self.unseen.n > 0 then
    out.held_out, out.held_out_of_seed = agreement(self, part_of(self.unseen, 1, self.unseen.n))
  end
  return out
end

-- ---- checkpoints ----

--- @return table tensors
--- @return table plain
function Preference:state_dict()
  local tensors, plain = { mean = self.mean, std = self.std }, { pairs = self.pairs, rings = {} }
  for name, t in pairs((self.net:state_dict())) do tensors["net." .. name] = t end
  local moments, more = self.optimizer:state_dict()
  for name, t in pairs(moments) do tensors["optimizer." .. name] = t end
  plain.optimizer = more
  for _, which in ipairs { "learned", "unseen" } do
    local r = self[which]
    if r then
      plain.rings[which] = { r.at, r.n }
      for _, name in ipairs(kept) do tensors[which .. "." .. name] = r[name] end
    end
  end
  return tensors, plain
end

-- The tensors of a state under a name, and the others.
local function of_name(tensors, name)
  local mine, others = {}, {}
  for key, t in pairs(tensors) do
    local short = key:sub(1, #name + 1) == name .. "." and key:sub(#name + 2)
    if short then mine[short] = t else others[key] = t end
  end
  return mine, others
end

--- Go on from what state_dict gave. What does not fit raises, and then nothing changed.
--- @param tensors table<string, perilune.Tensor>
--- @param plain table
--- @return self
function Preference:load_state_dict(tensors, plain)
  local who = "PreferenceReward:load_state_dict"
  options.argument(who, "tensors", tensors, "table")
  options.argument(who, "plain", plain, "table")
  local moments, rest = of_name(tensors, "optimizer")
  local own = select(2, of_name((self:state_dict()), "optimizer"))
  for name, t in pairs(own) do
    local given = rest[name]
    if not peri.is_tensor(given) or options.shape(given) ~= options.shape(t) or given.dtype ~= t.dtype then
      options.raise(("%s: %s is %s, expected %s of %s"):format(who, name, peri.is_tensor(given)
        and options.shape(given) .. " of " .. given.dtype or "missing", options.shape(t), t.dtype))
    end
  end
  for name in pairs(rest) do
    if not own[name] then options.raise(("%s: unexpected %s"):format(who, name)) end
  end
  for _, which in ipairs { "learned", "unseen" } do
    local place = type(plain.rings) == "table" and plain.rings[which]
    if (self[which] ~= nil) ~= (type(place) == "table") then
      options.raise(("%s: the state has %s pairs %s"):format(who, place and "" or "no", which))
    end
  end
  options.argument(who, "plain.pairs", plain.pairs, "number")
  self.optimizer:load_state_dict(moments, plain.optimizer)
  self.net:load_state_dict((of_name(rest, "net")))
  self.pairs, self.mean, self.std = math.tointeger(plain.pairs), peri.keep(rest.mean:clone(), rest.std:clone())
  for _, which in ipairs { "learned", "unseen" } do
    local r = self[which]
    if r then
      r.at, r.n = table.unpack(plain.rings[which])
      for _, name in ipairs(kept) do r[name]:copy_(rest[which .. "." .. name]) end
    end
  end
  return self
end

return M
