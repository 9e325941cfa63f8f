-- stepper_digest.lua - for test_trainer.lua: a line for each stepper and size of its passes, of all gradients and weights of
-- three updates, so that runs with other numbers of threads can be compared.
local peri = require "perilune"
package.path = "tests/lua/?.lua;" .. package.path
local steppers = require "steppers"

local function sum(h, bytes) -- FNV-1a over words
  for i = 1, #bytes - 3, 4 do h = (h ~ string.unpack("<I4", bytes, i)) * 1099511628211 end
  return h
end

for _, name in ipairs(steppers.names) do
  for _, micro in ipairs { 1000, 1, 3, 5 } do
    local stepper, model = steppers.make(name, { micro = micro })
    local h, optimizer = 0xcbf29ce484222325, stepper.optimizer
    local step, passes = optimizer.step, 0
    function optimizer.step(...)
      for _, p in ipairs(optimizer:parameters()) do h = sum(h, p.grad and p.grad:bytes() or "none") end
      passes = passes + 1
      return step(...)
    end
    peri.seed(7)
    for _ = 1, 3 do stepper:step() end
    assert(passes >= 3)
    for _, p in ipairs(model:parameters()) do h = sum(h, p:bytes()) end
    for _, p in ipairs(stepper.critic and stepper.critic:parameters() or {}) do h = sum(h, p:bytes()) end
    print(("%s %d %016x"):format(name, micro, h))
  end
end
