-- Alarms: each goes off in the story that it is for, a run that goes well is silent, and a resumed one goes on.
local lu = require "luaunit"
local child = require "child"
local peri = require "perilune"
local rl = peri.rl

TestAlarms = {}

-- Names in the order they went off, with their steps; row(t) -> metrics.
local function fired(alarms, steps, row)
  local list = {}
  for t = 1, steps do
    for _, one in ipairs(alarms:look(row(t))) do
      list[#list + 1] = one.name
      lu.assertEquals(type(one.message), "string")
    end
  end
  return list
end

local function line(from, to, t, steps) return from + (to - from) * math.min((t - 1) / (steps - 1), 1) end

-- A run of n steps that goes well, but for what change(row, t) puts in.
local function story(n, change, opts)
  local alarms = rl.alarms(opts or { metric = "held_out" })
  return fired(alarms, n, function (t)
    local row = { step = t, reward = line(0.1, 0.6, t, n), entropy = line(2, 1, t, n), frac_reward_zero_std = 0.3, grad_norm = 1,
      kl = line(0, 0.1, t, n), ["completions/mean_length"] = line(100, 110, t, n), ["completions/clipped_ratio"] = 0.1 }
    if t == 1 or t % 10 == 0 then row.held_out = line(0.1, 0.5, t, n) end
    change(row, t)
    return row
  end), alarms
end

function TestAlarms.test_a_run_that_goes_well_is_silent()
  lu.assertEquals(story(200, function () end), {})
  lu.assertEquals(story(200, function () end, {}), {})
end

local function recorded(fn)
  local data = assert(peri.json.decode(assert(peri.files.read "tests/data/r1_zero_metrics.json")))
  for t, values in ipairs(data.rows) do
    local row = { step = t, held_out_exact = data.held_out_exact[tostring(t)], kl = data.kl[tostring(t)] }
    for k, key in ipairs(data.keys) do row[key] = values[k] end
    fn(row, t)
  end
end

-- r1_zero from random weights: entropy falls to nothing, answers become half as long, in the end most groups are all right
-- and gradients are 0. All of that is well.
function TestAlarms.test_a_recorded_run_that_goes_well_is_silent()
  for _, opts in ipairs { { metric = "held_out_exact" }, {} } do
    local alarms = rl.alarms(opts)
    recorded(function (row, t) lu.assertEquals(alarms:look(row), {}, "step " .. t) end)
    lu.assertEquals(alarms:total(), 0)
  end
end

-- A weak base that is trained on its own majority, and the same base with labels, as recipes/v4/self_vote.lua logged them:
-- both rewards rise, and only pass@16 of a hundred labelled problems tells which is which.
local function self_vote(stage, opts)
  local data = assert(peri.json.decode(assert(peri.files.read "tests/data/vote_metrics.json"))).stages[stage]
  local alarms, list, rewards = rl.alarms(opts), {}, {}
  for t, values in ipairs(data.rows) do
    local row = { step = t, labelled_pass_16 = data.labelled_pass_16[tostring(t)], reward = values[1], entropy = values[2],
      frac_reward_zero_std = values[3], ["completions/mean_length"] = values[4], ["completions/clipped_ratio"] = values[5],
      grad_norm = values[6] }
    rewards[t] = row.reward
    for _, one in ipairs(alarms:look(row)) do list[#list + 1] = { t, one.name, one.message } end
  end
  return list, rewards
end

function TestAlarms.test_a_recorded_collapse_by_votes_is_told_from_a_rise()
  local metric = { metric = "labelled_pass_16" }
  local list, rewards = self_vote("weak_vote", metric)
  lu.assertTrue(rewards[50] > 3 * rewards[1])
  lu.assertEquals({ list[1][1], list[1][2], #list }, { 20, "reward_hacking", 1 })
  lu.assertStrContains(list[1][3], "while labelled_pass_16 fell from 0.84 to 0.34")
  list, rewards = self_vote("weak_true", metric)
  lu.assertTrue(rewards[50] > 1.5 * rewards[1])
  lu.assertEquals(list, {})
  for _, one in ipairs((self_vote("weak_vote", {}))) do lu.assertNotEquals(one[2], "reward_hacking") end
end

-- The story of GSM8K with an easy format reward: it goes to 1 by a bare "#### n", answers shrink from 104 to 5 tokens, and
-- what is right falls from .06 to nothing.
function TestAlarms.test_the_hacked_format_is_told()
  local function hacked(t)
    local row = { step = t, reward = line(0.02, 0.5, t, 30), ["rewards/format/mean"] = line(0.05, 1, t, 30), entropy = line(2.4, 1, t, 40),
      ["completions/mean_length"] = t < 5 and 104 or math.max(5, 104 * 0.85 ^ (t - 4)), ["completions/clipped_ratio"] = 0.5 / t,
      frac_reward_zero_std = 0.6, grad_norm = 0.1 }
    if t == 1 or t % 10 == 0 then row.held_out_lenient = ({ [1] = 0.06, [10] = 0.05, [20] = 0.01, [30] = 0, [40] = 0 })[t] end
    return row
  end
  local alarms = rl.alarms { metric = "held_out_lenient" }
  local names = fired(alarms, 40, hacked)
  table.sort(names)
  lu.assertEquals(names, { "length_shrinks", "reward_hacking" })
  lu.assertEquals(fired(rl.alarms(), 40, hacked), { "length_shrinks" }) -- without a true metric, later
  local before = rl.alarms { metric = "held_out_lenient" } -- measured before the first step
  before:look { step = 0, held_out_lenient = 0.06 }
  names = fired(before, 40, function (t)
    local row = hacked(t)
    if t == 1 then row.held_out_lenient = nil end
    return row
  end)
  table.sort(names)
  lu.assertEquals(names, { "length_shrinks", "reward_hacking" })
end

-- A majority vote as the reward: it rises to .91 while accuracy peaks at .65 and falls to .24 (measured).
function TestAlarms.test_a_vote_that_agrees_with_itself_is_told()
  local vote, true_one = { 0.35, 0.81, 0.85, 0.92, 0.91 }, { 0.33, 0.65, 0.44, 0.35, 0.24 }
  local names = fired(rl.alarms { metric = "accuracy" }, 5, function (t) return { reward = vote[t], accuracy = true_one[t] } end)
  lu.assertEquals(names, { "reward_hacking" })
end

function TestAlarms.test_each_alarm_has_its_story()
  lu.assertEquals(story(60, function (row, t) if t > 20 then row.frac_reward_zero_std, row.reward = 1, 0.3 end end), { "equal_groups" })
  lu.assertEquals(story(60, function (row, t) row.agreement = t > 20 and 0.5 or 0.9 end), { "reward_parts" })
  lu.assertEquals(story(60, function (row) row.agreement = 0.7 end), {})
  lu.assertEquals(story(60, function (row, t) if t > 20 then row.grad_norm = 0 end end), { "no_update" })
  lu.assertEquals(story(60, function (row, t) if t > 20 then row.no_op = t - 20 end end), { "no_update" })
  lu.assertEquals(story(60, function (row, t) if t > 20 then row.update_norm = 0 end end), { "no_update" })
  lu.assertEquals(story(200, function (row, t)
    if t > 60 then row.entropy, row.reward = 0.02, 0.3 end
    if row.held_out then row.held_out = 0.2 end
  end), { "entropy_collapse" })
  lu.assertEquals(story(100, function (row, t)
    row["completions/mean_length"], row.reward = line(100, 900, t, 100), 0.1
    if row.held_out then row.held_out = 0.1 end
  end), { "length_runaway" })
  lu.assertEquals(story(100, function (row, t) -- pinned at its limit: format 1, the rest nothing
    row["completions/mean_length"], row["completions/clipped_ratio"] = line(100, 150, t, 20), line(0.1, 1, t, 40)
    if row.held_out then row.held_out = 0.1 end
  end), { "length_runaway" })
  lu.assertEquals(story(100, function (row, t)
    row["completions/mean_length"] = line(100, 20, t, 100)
    if row.held_out then row.held_out = 0.1 end
  end), { "length_shrinks" })
  lu.assertEquals(story(60, function (row, t) if t > 20 then row.kl = 27 end end), { "kl_blowup" })
  lu.assertEquals(story(60, function (row, t) if t > 20 then row.kl = 0.05 * 2.2 ^ (t - 20) end end), { "kl_blowup" })
  lu.assertEquals(story(60, function (row, t) if t == 20 then row.kl = 0 / 0 end end), { "kl_blowup" })
  lu.assertEquals(story(60, function (row, t) if t == 20 then row.kl = math.huge end end), { "kl_blowup" })
end

-- Twice as long and better, shorter and better, one bad value, a task that is solved: none is an alarm.
function TestAlarms.test_what_looks_alike_is_none()
  lu.assertEquals(story(100, function (row, t) row["completions/mean_length"] = line(100, 600, t, 100) end), {})
  lu.assertEquals(story(100, function (row, t) row["completions/mean_length"] = line(100, 30, t, 100) end), {})
  lu.assertEquals(story(100, function (row, t) if t % 7 == 0 then row.frac_reward_zero_std, row.grad_norm, row.kl = 1, 0, 9 end end), {})
  lu.assertEquals(story(100, function (row, t)
    row.reward = line(0.2, 0.98, t, 50)
    if t > 60 then row.frac_reward_zero_std, row.grad_norm, row.entropy = 1, 0, 0.001 end
  end), {})
  lu.assertEquals(story(100, function (row) if row.held_out then row.held_out = row.step % 20 == 0 and 0.5 or 0.42 end end), {})
end

-- A stage that answers in five words follows one of a hundred: nothing went wrong. The same within a stage did.
function TestAlarms.test_another_stage_begins_anew()
  local function row(t, stage)
    return { stage = stage, reward = 0.3, ["completions/mean_length"] = t <= 20 and 100 or 5, entropy = 1 }
  end
  lu.assertEquals(fired(rl.alarms(), 40, function (t) return row(t, t <= 20 and "a" or "b") end), {})
  lu.assertEquals(fired(rl.alarms(), 40, function (t) return row(t, "a") end), { "length_shrinks" })
  local alarms = rl.alarms()
  for t = 1, 20 do alarms:look(row(t, 1)) end
  local again = rl.alarms():set_state(assert(peri.json.decode(peri.json.encode(alarms:state()))))
  lu.assertEquals(fired(again, 40, function (t) return row(t + 20, 1) end), { "length_shrinks" })
end

function TestAlarms.test_an_alarm_goes_off_once_and_again_after_good_values()
  local bad = { [11] = true }
  for t = 21, 40 do bad[t] = true end
  for t = 61, 70 do bad[t] = true end
  local _, alarms = story(100, function (row, t) if bad[t] then row.grad_norm = 0 end end)
  lu.assertEquals({ alarms.count, alarms:total() }, { { no_update = 2 }, 2 })
  local eager = rl.alarms { patience = 1 }
  lu.assertEquals(#fired(eager, 6, function (t) return { grad_norm = t % 2 } end), 3)
end

function TestAlarms.test_options_and_states_are_checked()
  lu.assertErrorMsgContains('off: unknown alarm "kl_blow"; did you mean "kl_blowup"?', rl.alarms, { off = { "kl_blow" } })
  lu.assertErrorMsgContains('names: unknown metric "lenght"; did you mean "length"?', rl.alarms, { names = { lenght = "x" } })
  lu.assertErrorMsgContains("patience is 0", rl.alarms, { patience = 0 })
  lu.assertErrorMsgContains("alarms:look: metrics is 3", function () rl.alarms():look(3) end)
  lu.assertErrorMsgContains("the state is none of alarms: seen is missing", function () rl.alarms():set_state {} end)
  lu.assertEquals(story(60, function (row, t) if t > 20 then row.grad_norm = 0 end end, { off = { "no_update" } }), {})
  local named = rl.alarms { names = { grad = "actor/grad_norm" } }
  lu.assertEquals(fired(named, 5, function () return { ["actor/grad_norm"] = 0 } end), { "no_update" })
end

-- Cut at every step and gone on from its state as JSON: the same alarms at the same steps.
function TestAlarms.test_a_state_goes_on_where_it_was()
  local function row(t)
    return { reward = 0.3 + 0.01 * (t % 3), entropy = t < 20 and 2 or 0.01, grad_norm = t % 13 < 5 and 0 or 1, kl = t == 35 and 30 or 0.1,
      frac_reward_zero_std = t % 17 < 6 and 1 or 0.2, ["completions/mean_length"] = t < 20 and 100 or 10,
      held_out = t % 5 == 0 and 0.5 - 0.01 * t or nil, no_op = t % 13 == 6 and t or nil }
  end
  local function run(cut)
    local alarms, list = rl.alarms { metric = "held_out" }, {}
    for t = 1, 60 do
      for _, one in ipairs(alarms:look(row(t))) do list[#list + 1] = t .. one.name .. one.message end
      if t == cut then
        local state = assert(peri.json.decode(peri.json.encode(alarms:state())))
        alarms = rl.alarms({ metric = "held_out" }):set_state(state)
      end
    end
    return list
  end
  local whole = run(0)
  lu.assertTrue(#whole >= 5)
  for cut = 1, 59 do lu.assertEquals(run(cut), whole, "cut after " .. cut) end
end

-- ---- in a run ----

local SOURCE = [[
local peri = require "perilune"
local recipe = peri.recipe
local cfg = peri.flags(recipe.with_flags({ steps = { 12, "steps", budget = true }, twice = false }, "demo"))
local run = recipe.start { name = "demo", flags = cfg, total = cfg.steps, tensorboard = true }
run:alarms(peri.rl.alarms { patience = 2 })
for step in run:steps() do
  run:log(step, { reward = 0.1, grad_norm = (step < 3 or step > 8) and 1 or 0 })
  if cfg.twice then run:log(step, { kl = step > 5 and 100 or 0 }) end
end
run:finish()
]]

function TestAlarms.test_a_run_shows_them_and_goes_on()
  local demo <close> = setmetatable(child.recipe(SOURCE), { __close = function (d) d.remove() end })
  local status, text = demo.run "--run whole --save_every 1"
  lu.assertEquals(status, 0, text)
  lu.assertStrContains(text, "ALARM no_update: the norm of the gradient is 0")
  lu.assertStrContains(demo.read "runs/whole/log.txt", "step 4: ALARM no_update: the norm of the gradient is 0")
  local metrics = demo.read "runs/whole/metrics.jsonl"
  lu.assertStrContains(metrics, '{"step":3,"grad_norm":0,"reward":0.1}\n{"step":4,"alarms":1,')
  for _, name in ipairs(assert(peri.files.list(demo.folder .. "/runs/whole"))) do
    if name:find "tfevents" then lu.assertStrContains(demo.read("runs/whole/" .. name), "alarms/no_update") end
  end
  for cut = 2, 6 do
    demo.run(("--run cut%d --save_every 1 --steps %d"):format(cut, cut))
    demo.run(("--run cut%d --save_every 1 --steps 12 --resume"):format(cut))
    lu.assertEquals(demo.read(("runs/cut%d/metrics.jsonl"):format(cut)), metrics)
  end
  status, text = demo.run "--run twice --twice"
  lu.assertEquals(status, 0, text)
  lu.assertStrContains(demo.read "runs/twice/metrics.jsonl", '"step":12,"alarms":2')
end
