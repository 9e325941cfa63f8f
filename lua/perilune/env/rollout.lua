-- rollout.lua - peri.rollout: the options of a rollout; runtime/env/rollout.c and bindings/rollout.c do it.
local peri = require "perilune.core"
local options = require "perilune.options"
local fields = require "perilune.env.fields"

local rules = {
  steps = options.integer(options.required, "[1, inf)", "steps of each row"),
  rows = options.integer(1, "[1, inf)", "environments that step together"),
  fields = options.value(options.required, "table",
    'what is kept of each step: { obs = { "f32", 4 }, action = "i64" }, dtype and sizes, or a space, which values must '
    .. "lie in"),
  starts = options.value(options.none, "table",
    "what is kept of the first step alone, (rows, ...): recurrent states"),
}

--- A rollout: some steps of several environments, learnt from a few times and then filled again, as actor-critic
--- methods do. A tensor (steps, rows, ...) for each field, zeros at first.
---
---     local rollout = peri.rollout { steps = 128, rows = 4, fields = { obs = { "f32", 4 }, action = "i64",
---                                    reward = "f32", advantage = "f32" } }
---     rollout:set(t, { obs = obs, action = action, reward = reward })
---     rollout:put { advantage = advantage }
---     for _, batch in rollout:minibatches(128) do learn(batch.obs, batch.action, batch.advantage) end
---
--- Raises when memory is short, with the bytes that it needs.
--- @param opts table
--- @return perilune.Rollout
local function rollout(opts)
  local o = options.fill("rollout", opts, rules)
  return peri._rollout(o.steps, o.rows, fields.list("rollout", o.fields, nil, o.starts))
end
options.declare(rollout, {}, rules)

return rollout
