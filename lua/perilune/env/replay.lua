-- replay.lua - peri.replay: the options of a replay buffer; runtime/env/ and bindings/replay.c do it.
local peri = require "perilune.core"
local options = require "perilune.options"
local fields = require "perilune.env.fields"

local rules = {
  capacity = options.integer(options.required, "[1, inf)", "steps that are kept of each row"),
  rows = options.integer(1, "[1, inf)", "environments that step together"),
  groups = options.integer(options.none, "[1, inf)",
    "learners that have rows / groups of the rows each: a sample is (groups, n, ...); not with priorities"),
  observed = options.value(options.none, "table",
    'fields that are seen before a step and after it: { obs = { "f32", 4 } }, dtype and sizes, or a space'),
  fields = options.value(options.none, "table",
    'fields of the step: { action = "i64" } or { action = env.action_space }'),
  starts = options.value(options.none, "table",
    "fields of which a sequence has its first step's alone: recurrent states"),
  n_step = options.integer(1, "[1, 65536]", "rewards that a sample sums"),
  gamma = options.number(0.99, "[0, 1]", "their discount"),
  prioritised = options.boolean(false, "draw by priority, not all alike"),
  alpha = options.number(0.6, "[0, 1]", "exponent of priorities"),
  epsilon = options.number(1e-6, "(0, 1e100]", "is added to each priority"),
  seed = options.integer(options.none, nil, "of a generator of its own; nil: that of random ops"),
}

--- A replay buffer: the last steps of environments, to learn from in another order than they came in. It is uniform,
--- prioritised (Schaul et al., 2016), of n-step returns and of sequences, by its options. What is observed is stored
--- once, what an episode ended with apart, so that a sample is what was added, bit for bit, also where an episode was
--- truncated. reward (f32), terminated and truncated are fields of every buffer; a reward that is not finite is
--- refused, and so is a value outside of the space of its field, where that is a space (bounds of a Box do not count,
--- as in env:step).
---
---     local buffer = peri.replay { capacity = 10000, rows = 8, observed = { obs = { "f32", 4 } },
---                                  fields = { action = "i64" } }
---     buffer:add { obs = obs, action = action, reward = reward, next_obs = env.final_obs,
---                  terminated = terminated, truncated = truncated }
---     local batch = buffer:sample(64)
---     local target = batch.reward + batch.discount * (1 - batch.terminated) * value(batch.next_obs)
---
--- Raises when memory is short, with the bytes that it needs.
--- @param opts table
--- @return perilune.Replay
local function replay(opts)
  local o = options.fill("replay", opts, rules)
  o.list = fields.list("replay", o.fields, o.observed, o.starts)
  return peri._replay(o)
end
options.declare(replay, {}, rules)

return replay
