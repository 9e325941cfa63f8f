-- stepper_recipe.lua - the steppers of peri.algo as recipes, for test_resume_steppers.lua: everything that they draw, and
-- where they are, goes through the checkpoints of the run.
local peri = require "perilune"
package.path = "tests/lua/?.lua;" .. package.path
local optim, recipe, sched = require "perilune.optim", require "perilune.run.recipe", require "perilune.optim.sched"
local steppers = require "steppers"

local cfg = peri.flags(recipe.with_flags {
  which = { "grpo", "name of a line of steppers.lua" },
  steps = { 12, "updates" },
})

local run = recipe.start { name = "steppers", flags = cfg, total = cfg.steps, console = true, tensorboard = false }
local model = steppers.model(nil, cfg.which)
local opt = optim.AdamW(model:parameters(), { lr = 1e-2 })
local stepper = steppers.make(cfg.which, { model = model, optimizer = opt, seed = cfg.seed,
  schedule = sched.warmup(3, sched.cosine { from = 1e-2, steps = cfg.steps }) })
run:track("model", model):track("optimizer", opt):track("stepper", stepper)

for step in run:steps() do
  local row = stepper:step()
  row.step = nil
  run:log(step, row)
end
assert(peri.safetensors.save(run:path "model.safetensors", (model:state_dict())))
run:finish()
