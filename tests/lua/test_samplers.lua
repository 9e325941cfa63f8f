-- Batches that workers sample while the learner learns: what they are, how old they may be, and that a recorded schedule
-- makes the same run again.
local lu = require "luaunit"
local peri = require "perilune"
local steppers = require "steppers"
local rl = peri.rl

local function bytes(model)
  local list = {}
  for i, p in ipairs(model:parameters()) do list[i] = p:bytes() end
  return table.concat(list)
end

-- What a worker makes: the tiny model of steppers.lua. Workers have the learner's package.path.
local function plain_make()
  local s = require "steppers"
  return { model = s.model(3), tokenizer = s.tokenizer, reward = s.reward }
end

local function talking()
  local s = require "steppers"
  local env = { stop = s.environment.stop, reply = s.environment.reply, reward = s.reward }
  return { model = s.model(3), tokenizer = s.tokenizer, environment = env }
end

-- n updates with samplers: weights, rows of metrics, the schedule.
local function run(n, how, more)
  how = how or {}
  local samplers <close> = rl.samplers { make = how.make or plain_make, n = how.n, max_staleness = how.max_staleness,
    order = how.order, schedule = how.schedule }
  local o = { samplers = samplers }
  for k, v in pairs(more or {}) do o[k] = v end
  local stepper, model, others = steppers.make(how.stepper or "grpo-samplers", o)
  local rows = {}
  for i = 1, n do rows[i] = stepper:step() end
  return bytes(model), rows, table.move(samplers.schedule, 1, n, 1, {}), { stepper, model, others, samplers }
end

TestSamplers = {}

-- Without staleness it is on-policy: nothing differs from what the learner would say, whoever samples.
function TestSamplers.test_without_staleness_sampler_and_learner_agree()
  local whole, rows, schedule = run(3, { max_staleness = 0 })
  lu.assertEquals(schedule, { 0, 1, 2 })
  for _, row in ipairs(rows) do
    lu.assertEquals({ row.staleness, row["sampling/sampling_logp_difference/max"] }, { 0, 0 })
    lu.assertTrue(row.grad_norm > 0)
  end
  lu.assertTrue(run(3, { max_staleness = 0, n = 3 }) == whole)
end

-- Always the oldest weights that may be: the same run each time, with any number of workers.
function TestSamplers.test_a_fixed_order_is_the_same_run_each_time()
  for _, make in ipairs { plain_make, talking } do
    local more = make == talking and { max_turns = 3, max_new_tokens = 10 } or nil
    local how = { order = "fixed", max_staleness = 2, make = make }
    local whole, rows, schedule = run(6, how, more)
    lu.assertEquals(schedule, { 0, 0, 0, 1, 2, 3 })
    for k, row in ipairs(rows) do lu.assertEquals(row.staleness, k - 1 - schedule[k]) end
    lu.assertTrue(rows[6]["sampling/sampling_logp_difference/max"] > 0)
    for n = 1, 3 do
      how.n = n
      local again, same = run(6, how, more)
      lu.assertTrue(again == whole)
      lu.assertEquals(same, rows)
    end
  end
end

-- Whatever the newest weights were, their list makes the same run again, to the byte, with other workers, too.
function TestSamplers.test_a_recorded_schedule_replays()
  for _, n in ipairs { 1, 3 } do
    local whole, rows, schedule = run(8, { n = n, max_staleness = 3 })
    for k, v in ipairs(schedule) do lu.assertTrue(v <= k - 1 and v >= k - 1 - 3 and v >= 0) end
    for _, workers in ipairs { 1, 2 } do
      local again, same, list = run(8, { n = workers, max_staleness = 3, schedule = schedule })
      lu.assertEquals(list, schedule)
      lu.assertTrue(again == whole)
      lu.assertEquals(same, rows)
    end
  end
  -- any list that keeps the bound can be asked for
  for _, schedule in ipairs { { 0, 1, 0, 3, 2 }, { 0, 0, 2, 1, 4 } } do
    local _, rows, list = run(5, { n = 2, max_staleness = 2, schedule = schedule })
    lu.assertEquals(list, schedule)
    for k, row in ipairs(rows) do lu.assertEquals(row.staleness, k - 1 - schedule[k]) end
  end
end

-- Batches, and truncation, penalties and importance on the way: weights of the same age give the same log-probabilities.
function TestSamplers.test_what_was_drawn_from_goes_along()
  for _, more in ipairs { { top_k = 4 }, { top_p = 0.8, repetition_penalty = 1.3 }, { temperature = 1.4 } } do
    local _, rows = run(2, { max_staleness = 0 }, more)
    for _, row in ipairs(rows) do lu.assertEquals(row["sampling/sampling_logp_difference/max"], 0) end
  end
  local _, rows = run(4, { order = "fixed", max_staleness = 2 }, { importance = { max = 1.05 } })
  lu.assertEquals(rows[1]["importance/held"], 0)
  lu.assertTrue(rows[4]["importance/held"] > 0)
  _, rows = run(3, { order = "fixed", max_staleness = 1, stepper = "ppo-samplers" })
  lu.assertEquals(rows[3].staleness, 1)
end

-- Stopped and resumed in the middle: the same bytes, with batches on their way.
function TestSamplers.test_it_goes_on_from_a_checkpoint()
  for _, how in ipairs { { order = "fixed", max_staleness = 2 }, { schedule = { 0, 0, 1, 1, 2, 5 }, max_staleness = 2 } } do
    how.n = 2
    local whole = run(6, how)
    local _, _, _, parts = run(3, how)
    local stepper, model, _, samplers = table.unpack(parts)
    local tensors, plain = samplers:state_dict()
    plain = peri.json.decode(peri.json.encode(plain))
    local moments, numbers = stepper.optimizer:state_dict()
    local again <close> = rl.samplers { make = plain_make, n = 2, max_staleness = 2, order = how.order,
      schedule = how.schedule }
    again:load_state_dict(tensors, plain)
    local other, copy = steppers.make("grpo-samplers", { samplers = again })
    copy:load_state_dict((model:state_dict()))
    other.optimizer:load_state_dict(moments, numbers)
    other:set_state(peri.json.decode(peri.json.encode(stepper:state())))
    for _ = 4, 6 do other:step() end
    lu.assertTrue(bytes(copy) == whole)
  end
end

-- A step that raises was none: the next one learns from the same batch.
function TestSamplers.test_a_step_that_fails_takes_no_batch()
  local how = { order = "fixed", max_staleness = 1 }
  local whole = run(3, how)
  local samplers <close> = rl.samplers { make = plain_make, max_staleness = 1, order = "fixed" }
  local stepper, model = steppers.make("grpo-samplers", { samplers = samplers })
  for i = 1, 3 do
    local step = stepper.optimizer.step
    stepper.optimizer.step = function () error "no memory" end
    lu.assertErrorMsgContains("no memory", stepper.step, stepper)
    stepper.optimizer.step = step
    stepper:step()
    lu.assertEquals(samplers.taken, i)
  end
  lu.assertTrue(bytes(model) == whole)
end

function TestSamplers.test_errors_say_where()
  local function bad(message, how, more) lu.assertErrorMsgContains(message, run, 2, how, more) end
  bad("rl.crew: worker 1 of 1 failed", { make = function () error "no model here" end })
  bad("no model here", { make = function () error "no model here" end })
  bad("reward: ", { make = function ()
    local s = require "steppers"
    return { model = s.model(3), tokenizer = s.tokenizer, reward = function () error "no score" end }
  end })
  bad("schedule[3] is 0, expected the number of weights from 1 to 2", { schedule = { 0, 0, 0 }, max_staleness = 1 })
  bad("schedule[2] is 2, expected the number of weights from 0 to 1", { schedule = { 0, 2 } })
  bad("dynamic does not go with them", nil, { dynamic = true })
  bad("estimator \"remax\" does not go with them", nil, { estimator = "remax" })
  bad("samplers have a reward of their own", nil, { reward = steppers.reward })
  lu.assertErrorMsgContains("samplers is none of rl.samplers", steppers.make, "grpo-samplers", { samplers = {} })
  local samplers <close> = rl.samplers { make = plain_make }
  local stepper = steppers.make("grpo-samplers", { samplers = samplers })
  stepper.at = 3
  lu.assertErrorMsgContains("have given 0 batches and it has made 3 updates", stepper.step, stepper)
  lu.assertErrorMsgContains("the state is none of rl.samplers", samplers.load_state_dict, samplers, {}, {})
end

-- What make must give is said by what it lacks; a batch that nobody asked for is not waited for.
function TestSamplers.test_what_is_wrong_with_make_is_said()
  local makes = {
    ["make gave nil, expected { model =, tokenizer =, reward = or environment = }"] = function () end,
    ["make gave a number, expected"] = function () return 3 end,
    ["make gave no model"] = function () return { tokenizer = {}, reward = print } end,
    ["make gave no tokenizer"] = function () return { model = {}, reward = print } end,
    ["make gave no reward or environment"] = function () return { model = {}, tokenizer = {} } end,
    ['make gave an unknown field "rewards"'] = function () return { model = {}, tokenizer = {}, rewards = print } end,
  }
  for message, make in pairs(makes) do lu.assertErrorMsgContains(message, run, 1, { make = make }) end
  local samplers <close> = rl.samplers { make = plain_make }
  lu.assertErrorMsgContains("samplers:next: batch 1 was not asked for", samplers.next, samplers)
  lu.assertErrorMsgContains("samplers:done: batch 1 was not taken", samplers.done, samplers)
end

os.exit(lu.LuaUnit.run())
