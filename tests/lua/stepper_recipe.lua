-- stepper_recipe.lua - the steppers of peri.algo as recipes, for test_resume_steppers.lua: everything that they draw, and
-- where they are, goes through the checkpoints of the run.
local peri = require "perilune"
package.path = "tests/lua/?.lua;" .. package.path
local recipe, sched = require "perilune.run.recipe", require "perilune.optim.sched"
local steppers = require "steppers"

local cfg = peri.flags(recipe.with_flags {
  which = { "grpo", "name of a line of steppers.lua" },
  steps = { 12, "updates" },
})

local run = recipe.start { name = "steppers", flags = cfg, total = cfg.steps, console = true, tensorboard = false }
local stepper, model, others = steppers.make(cfg.which, { model = steppers.model(nil, cfg.which), seed = cfg.seed,
  schedule = sched.warmup(3, sched.cosine { from = 1e-2, steps = cfg.steps }) })
run:track("model", model):track("optimizer", stepper.optimizer):track("stepper", stepper)
for name, object in pairs(others) do run:track(name, object) end

for step in run:steps() do
  local row = stepper:step()
  run:log(step, row)
end
assert(peri.safetensors.save(run:path "model.safetensors", (model:state_dict())))
run:finish()
