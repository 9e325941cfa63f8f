-- Schedules.
local lu = require "luaunit"
local sched = require "perilune.optim.sched"

local function at(s, ...)
  local out = {}
  for i, step in ipairs { ... } do out[i] = math.floor(s(step) * 1e6 + 0.5) / 1e6 end
  return out
end

TestSched = {}

function TestSched:test_constant_linear_cosine()
  lu.assertEquals(at(sched.constant(2), 1, 100), { 2, 2 })
  lu.assertEquals(at(sched.linear { from = 1, steps = 5 }, 1, 2, 3, 5, 9), { 1, 0.75, 0.5, 0, 0 })
  lu.assertEquals(at(sched.cosine { from = 1, to = 0.5, steps = 5 }, 1, 3, 5, 9), { 1, 0.75, 0.5, 0.5 })
end

function TestSched:test_step_and_exponential()
  lu.assertEquals(at(sched.step { from = 1, every = 2 }, 1, 2, 3, 5), { 1, 1, 0.1, 0.01 })
  lu.assertEquals(at(sched.step { from = 1, factor = 0.5, at = { 2, 3 } }, 2, 3, 4), { 1, 0.5, 0.25 })
  lu.assertEquals(at(sched.exponential { from = 1, factor = 0.5, to = 0.2 }, 1, 2, 5), { 1, 0.5, 0.2 })
  lu.assertErrorMsgContains("either every or at", sched.step, { from = 1 })
end

function TestSched:test_warmup_chain_scale()
  local s = sched.warmup(4, sched.linear { from = 1, steps = 3 })
  lu.assertEquals(at(s, 1, 2, 4, 5, 6, 7), { 0.25, 0.5, 1, 1, 0.5, 0 })
  local c = sched.chain { { 2, sched.constant(5) }, { sched.linear { from = 1, steps = 3 } } }
  lu.assertEquals(at(c, 1, 2, 3, 4), { 5, 5, 1, 0.5 })
  lu.assertEquals(at(sched.scale(c, 2), 1, 4), { 10, 1 })
end

function TestSched:test_plateau_waits_then_drops_and_resumes()
  local p = sched.plateau { from = 1, factor = 0.5, patience = 1 }
  for _, m in ipairs { 3, 2, 2, 2 } do p:observe(m) end
  lu.assertEquals(p(), 0.5)
  local q = sched.plateau { from = 1, factor = 0.5, patience = 1 }
  q:set_state(p:state())
  p:observe(2)
  q:observe(2)
  lu.assertEquals(q(), p())
  lu.assertEquals(q:observe(2), p:observe(2))
end

function TestSched:test_unknown_names()
  lu.assertErrorMsgContains('did you mean "steps"', sched.cosine, { from = 1, step = 3 })
  lu.assertErrorMsgContains("from is missing", sched.linear, { steps = 3 })
end
