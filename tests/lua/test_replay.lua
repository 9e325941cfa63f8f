-- Replay buffers and rollouts as scripts use them; tests/c/test_replay.c compares them with a plain list of steps.
local lu = require "luaunit"
local peri = require "perilune"
local killed = require "killed"
local scratch = require "scratch"

TestReplay = {}

local function cartpole(more)
  local o = { capacity = 100, rows = 2, observed = { obs = { "f32", 4 } }, fields = { action = "i64" }, seed = 1 }
  for k, v in pairs(more or {}) do o[k] = v end
  return peri.replay(o)
end

-- Step t of two rows: the first is truncated at every fifth step, the second ends at every third.
local function step(t)
  local function at(i) return peri.full({ 2, 4 }, 1.0 * i) end
  local over, cut = peri.tensor { false, t % 3 == 0 }, peri.tensor { t % 5 == 0, false }
  return { obs = at(t), next_obs = at(t + 1), action = peri.tensor { t, -t }, reward = peri.tensor({ t, 10 * t }, "f32"),
    terminated = over, truncated = cut }
end

local function filled(n, more)
  local buffer = cartpole(more)
  for t = 1, n do buffer:add(step(t)) end
  return buffer
end

-- The trap of every layout that stores observations once: what comes after a truncated step is what it led to.
function TestReplay.test_what_follows_a_truncated_step_is_its_own_last_observation()
  local buffer = cartpole()
  local first = step(4)
  first.next_obs, first.truncated = peri.full({ 2, 4 }, 77.5), peri.tensor { true, true }
  buffer:add(first):add(step(9))
  local all = buffer:gather(peri.arange(4))
  lu.assertEquals(all.next_obs:tolist()[1][1], 77.5)
  lu.assertEquals(all.next_obs:tolist()[3][1], 10)
  lu.assertEquals(all.truncated:tolist(), { true, true, false, false })
  lu.assertEquals(buffer:breaks(), 0)
end

-- The exponent of the discount is the number of rewards that were summed; the tails of episodes are there.
function TestReplay.test_n_step_returns_stop_where_the_episode_does()
  local all = filled(10, { n_step = 4, gamma = 0.5 }):gather(peri.arange(20))
  local function line(t, row)
    local i = 2 * (t - 1) + row
    return { all.reward:tolist()[i], all.discount:tolist()[i], all.next_obs:tolist()[i][1],
      all.terminated:tolist()[i], all.truncated:tolist()[i] }
  end
  lu.assertEquals(line(1, 1), { 1 + 2 / 2 + 3 / 4 + 4 / 8, 1 / 16, 5, false, false })
  lu.assertEquals(line(2, 1), { 2 + 3 / 2 + 4 / 4 + 5 / 8, 1 / 16, 6, false, true })
  lu.assertEquals(line(4, 1), { 4 + 5 / 2, 1 / 4, 6, false, true })
  lu.assertEquals(line(5, 1), { 5, 1 / 2, 6, false, true })
  lu.assertEquals(line(2, 2), { 20 + 30 / 2, 1 / 4, 4, true, false })
  lu.assertEquals(line(9, 1), { 9 + 10 / 2, 1 / 4, 11, false, true })
  lu.assertEquals(line(10, 2), { 100, 1 / 2, 11, false, false }) -- the newest step: so far it has led to 11
end

function TestReplay.test_a_sample_is_of_the_seed_alone()
  local function draw(seed, global)
    peri.seed(global)
    return filled(30, { seed = seed }):sample(50).index:tolist()
  end
  lu.assertEquals(draw(3, 1), draw(3, 2))
  lu.assertNotEquals(draw(3, 1), draw(4, 1))
  local own = peri.replay { capacity = 100, rows = 2, observed = { obs = { "f32", 4 } }, fields = { action = "i64" } }
  for t = 1, 30 do own:add(step(t)) end
  peri.seed(5)
  local first, second = own:sample(50).index:tolist(), own:sample(50).index:tolist()
  lu.assertNotEquals(first, second)
  peri.seed(5)
  lu.assertEquals(own:sample(50).index:tolist(), first)
end

function TestReplay.test_an_earlier_sample_is_written_into()
  local buffer = filled(40)
  local batch = buffer:sample(8)
  local obs = batch.obs
  lu.assertTrue(rawequal(buffer:sample(8, nil, batch), batch))
  lu.assertTrue(rawequal(batch.obs, obs))
  local again = buffer:gather(batch.index)
  for name, t in pairs(again) do lu.assertEquals(t:tolist(), batch[name]:tolist(), name) end
  local net = peri.nn.Linear(4, 1)
  local y = net(batch.obs):square():sum()
  buffer:sample(8, nil, batch)
  lu.assertErrorMsgContains("changed", function() y:backward() end) -- a graph that needs the old one says so
  lu.assertErrorMsgContains("action is written into: it is i64 (8), i64 (9) is needed", buffer.sample, buffer, 9, nil, batch)
end

-- Groups are buffers of their own in one: each draws its own rows, all of them alike.
function TestReplay.test_groups_draw_from_their_own_rows()
  local function buffer(more)
    local o = { capacity = 7, rows = 6, groups = 3, fields = { id = "i64" }, observed = { obs = { "f32", 2 } }, seed = 4,
      starts = { hidden = { "f32", 5 } } }
    for k, v in pairs(more or {}) do o[k] = v end
    return peri.replay(o)
  end
  local function fill(b, valid)
    for t = 0, 9 do
      local at = peri.arange(6):add(10 * t)
      b:add { id = at, obs = at:unsqueeze(2):expand { 6, 2 }:to "f32", next_obs = at:unsqueeze(2):expand { 6, 2 }:add(10):to "f32",
        hidden = peri.zeros { 6, 5 }, reward = at:to "f32", terminated = at:eq(-1), truncated = at:eq(-1), valid = valid }
    end
    return b
  end
  local b = fill(buffer())
  local s = b:sample(400)
  lu.assertEquals(s.next_obs.shape, { 3, 400, 2 })
  lu.assertEquals(s.index.shape, { 3, 400 })
  for g = 1, 3 do
    local seen = {}
    for i, id in ipairs(s.id:select(1, g):tolist()) do
      seen[id] = true
      lu.assertEquals(id % 10 // 2, g - 1)
      lu.assertEquals(s.next_obs:select(1, g):at(i):tolist(), { id + 10, id + 10 })
    end
    local n = 0
    for _ in pairs(seen) do n = n + 1 end
    lu.assertEquals(n, 14) -- all of its 7 steps of 2 rows
  end
  local lines = b:sequences(5, 4, 2)
  lu.assertEquals(lines.obs.shape, { 3, 5, 6, 2 })
  lu.assertEquals(lines.hidden.shape, { 3, 5, 5 })
  lu.assertEquals(fill(buffer { groups = 1 }):sample(3).obs.shape, { 1, 3, 2 })
  local one = fill(buffer { groups = 1 })
  local whole = fill(peri.replay { capacity = 7, rows = 6, fields = { id = "i64" }, observed = { obs = { "f32", 2 } }, seed = 4,
    starts = { hidden = { "f32", 5 } } })
  lu.assertEquals(one:sample(9).id:at(1):tolist(), whole:sample(9).id:tolist())
  local idle = fill(buffer(), peri.tensor { true, true, false, false, true, false })
  lu.assertErrorMsgContains("group 2 of 3 has no valid step", idle.sample, idle, 3)
  local valid = fill(buffer(), peri.tensor { true, true, false, true, true, false }):sample(50).id:mod(10):tolist()
  for i = 1, 50 do lu.assertEquals({ valid[2][i], valid[3][i] }, { 3, 4 }) end
  lu.assertErrorMsgContains("a divisor of the 6 rows", buffer, { groups = 4 })
  lu.assertErrorMsgContains("3 groups and priorities", buffer, { prioritised = true })
  lu.assertErrorMsgContains("a sample of 0 is out of range", b.sample, b, 0)
  local again = buffer():load_state_dict(b:state_dict())
  lu.assertEquals(again:sample(20).id:tolist(), b:sample(20).id:tolist())
end

function TestReplay.test_one_row_takes_plain_values()
  local buffer = peri.replay { capacity = 4, observed = { obs = "i64" }, fields = { action = "i64", p = "f32" } }
  for t = 1, 6 do
    buffer:add { obs = t, action = t % 2, p = 0.5, reward = t / 2, next_obs = t + 1, terminated = t == 4, truncated = false }
  end
  local all = buffer:gather(peri.arange(4))
  lu.assertEquals(all.obs:tolist(), { 5, 6, 3, 4 })
  lu.assertEquals(all.next_obs:tolist(), { 6, 7, 4, 5 })
  lu.assertEquals(all.reward:tolist(), { 2.5, 3, 1.5, 2 })
  lu.assertEquals(#buffer, 4)
  lu.assertErrorMsgContains("add: action: ", buffer.add, buffer, { obs = 1, action = 0.5, p = 1, reward = 1, next_obs = 1,
    terminated = false, truncated = false })
end

function TestReplay.test_sequences_have_what_came_before_and_after()
  local buffer = peri.replay { capacity = 50, observed = { obs = { "f32", 4 } }, fields = { action = "i64" },
    starts = { hidden = { "f32", 3 } }, seed = 2 }
  for t = 1, 50 do
    buffer:add { obs = peri.full({ 4 }, 1.0 * t), next_obs = peri.full({ 4 }, 1.0 * t + 1), action = t, reward = t,
      hidden = peri.full({ 3 }, 1.0 * t), terminated = t % 10 == 0, truncated = false }
  end
  local s = buffer:sequences(32, 4, 2)
  lu.assertEquals(s.obs.shape, { 32, 6, 4 })
  lu.assertEquals(s.hidden.shape, { 32, 3 })
  local mask, action, hidden = s.mask:tolist(), s.action:tolist(), s.hidden:tolist()
  for i = 1, 32 do
    lu.assertEquals(hidden[i][1], action[i][1])
    local burnt = 0
    for k = 1, 6 do
      if mask[i][k] == 0 and k == burnt + 1 then burnt = k end
      if action[i][k] ~= 0 then lu.assertEquals(action[i][k], action[i][1] + k - 1) end
    end
    local drawn = action[i][burnt + 1]
    lu.assertEquals(burnt, math.min(2, (drawn - 1) % 10))
    lu.assertEquals(mask[i][burnt + 1], 1)
  end
end

function TestReplay.test_priorities_are_of_their_index()
  local buffer = filled(50, { prioritised = true, alpha = 1, epsilon = 1e-6 })
  local only = peri.tensor { 7, 42 }
  buffer:prioritise(peri.arange(100), peri.zeros { 100 }):prioritise(only, peri.tensor({ 1, 3 }, "f32"))
  local batch, counts = buffer:sample(4000, 1), {}
  for _, p in ipairs(batch.index:tolist()) do counts[p] = (counts[p] or 0) + 1 end
  lu.assertAlmostEquals(counts[7], 1000, 2)
  lu.assertAlmostEquals(counts[42], 3000, 2)
  lu.assertErrorMsgContains("prioritise: the priority at position 1 (index 42) is -1: give |delta|", buffer.prioritise,
    buffer, only, peri.tensor({ 1, -1 }, "f32"))
  lu.assertErrorMsgContains("is NaN", buffer.prioritise, buffer, only, peri.tensor({ 0 / 0, 1 }, "f32"))
  lu.assertErrorMsgContains("beta is of prioritised buffers", filled(3).sample, filled(3), 4, 0.5)
end

function TestReplay.test_mistakes_are_named()
  local function refused(text, more)
    local s = step(1)
    for k, v in pairs(more) do s[k] = v ~= "nil" and v or nil end
    lu.assertErrorMsgContains(text, function() cartpole():add(s) end)
  end
  refused("add: obs has shape (2, 3), the buffer's is (2, 4)", { obs = peri.zeros { 2, 3 } })
  refused("add: action is f32, the buffer's is i64", { action = peri.zeros { 2 } })
  refused("add: next_obs is missing", { next_obs = "nil" })
  refused("add: there is no rewards here; did you mean 'reward'?", { rewards = peri.zeros { 2 } })
  refused("add: terminated is f32, the buffer's is bool", { terminated = peri.zeros { 2 } })
  lu.assertErrorMsgContains("sample: the buffer is empty", function() cartpole():sample(2) end)
  lu.assertErrorMsgContains("sample: a sample of -3 is out of range: at least 1", function() cartpole():sample(-3) end)
  local function bad(text, o)
    lu.assertErrorMsgContains(text, function() peri.replay(o) end)
  end
  bad("replay: unknown option \"size\"", { size = 3 })
  bad("replay: capacity is missing", {})
  bad("replay: field obs: there is no dtype f33", { capacity = 1, fields = { obs = "f33" } })
  bad("replay: field obs: size 1 is -4, expected an integer from 0", { capacity = 1, fields = { obs = { "f32", -4 } } })
  bad("replay: field obs is 3, expected a dtype", { capacity = 1, fields = { obs = 3 } })
  bad("replay: field obs is given twice", { capacity = 1, fields = { obs = "f32" }, observed = { obs = "f32" } })
  bad("replay: field reward: the buffer has that name itself", { capacity = 1, fields = { reward = "f32" } })
  bad("1099511627776 steps of 64 rows need ", { capacity = 1 << 40, rows = 64, observed = { obs = { "u8", 84 } } })
  local buffer = filled(2)
  buffer:close()
  lu.assertErrorMsgContains("sample: it is closed", buffer.sample, buffer, 2)
  lu.assertEquals(tostring(buffer), "replay buffer, closed")
end

function TestReplay.test_a_reward_that_is_not_finite_is_refused_and_nothing_is_added()
  for _, dtype in ipairs { "f32", "f64" } do
    for _, v in ipairs { 0 / 0, 1 / 0, -1 / 0, dtype == "f64" and 1e300 or 1 / 0 } do
      for row = 1, 2 do
        local buffer, s, list = filled(3), step(4), { 1, 1 }
        list[row] = v
        s.reward = peri.tensor(list, dtype)
        lu.assertErrorMsgContains(("add: reward: row %d is "):format(row), buffer.add, buffer, s)
        lu.assertEquals(buffer:size(), 6)
        s.reward = peri.tensor({ 1, 1 }, dtype)
        buffer:add(s)
      end
    end
  end
end

local spaces = {
  { peri.env.discrete(3), { 0, 2 }, { 1, 3 }, 2, "is 3, expected an integer from 0 to 2", "i64" },
  { peri.env.discrete(2, -1), { -1, 0 }, { -2, 0 }, 1, "is -2, expected an integer from -1 to 0", "i64" },
  { peri.env.multi_discrete { 2, 3 }, { { 0, 2 }, { 1, 0 } }, { { 0, 2 }, { 2, 0 } }, 2, "[0] is 2, expected an integer from 0 to 1",
    "i64" },
  { peri.env.multi_binary(2), { { 0, 1 }, { 1, 1 } }, { { 0, 2 }, { 0, 0 } }, 1, "[1] is 2, expected an integer from 0 to 1", "u8" },
  { peri.env.box(-1, 1, { shape = { 1 } }), { { 5 }, { -1 } }, { { 0 }, { 0 / 0 } }, 2, "[0] is nan, expected a finite number",
    "f32" },
}

-- Both containers of steps take a space for a field, and then no value outside of it.
function TestReplay.test_values_outside_of_the_space_of_their_field_are_refused()
  for _, case in ipairs(spaces) do
    local space, good, bad, row, why, dtype = table.unpack(case)
    good, bad = peri.tensor(good, dtype), peri.tensor(bad, dtype)
    local want = ("row %d %s"):format(row, why)
    local buffer = cartpole { fields = { action = space } }
    local s = step(1)
    s.action = good
    buffer:add(s)
    s.action = bad
    lu.assertErrorMsgContains("add: action: " .. want, buffer.add, buffer, s)
    lu.assertEquals(buffer:size(), 2)
    lu.assertEquals(buffer:sample(1).action.dtype, dtype)
    local seen = peri.replay { capacity = 4, rows = 2, observed = { obs = space } }
    for _, name in ipairs { "obs", "next_obs" } do
      local t = { obs = good, next_obs = good, reward = peri.zeros { 2 }, terminated = peri.zeros({ 2 }, "bool"),
        truncated = peri.zeros({ 2 }, "bool") }
      seen:add(t)
      t[name] = bad
      lu.assertErrorMsgContains(("add: %s: %s"):format(name, want), seen.add, seen, t)
    end
    local rollout = peri.rollout { steps = 2, rows = 2, fields = { action = space } }
    rollout:set(1, { action = good })
    lu.assertErrorMsgContains("set: action: " .. want, rollout.set, rollout, 2, { action = bad })
    rollout:put { action = peri.stack { good, good } }
    lu.assertErrorMsgContains(("put: action: row %d "):format(row + 2), rollout.put, rollout, { action = peri.stack { good, bad } })
    lu.assertEquals(rollout:get("action"):tolist(), { good:tolist(), good:tolist() })
  end
  collectgarbage() -- what the spaces list is the buffers' own
end

function TestReplay.test_a_state_goes_through_a_file()
  local folder = scratch.folder()
  for _, n in ipairs { 0, 7, 130 } do
    local a, b = filled(n, { prioritised = true, n_step = 2 }), filled(31, { prioritised = true, n_step = 2 })
    assert(peri.safetensors.save(folder .. "/b.safetensors", a:state_dict()))
    b:load_state_dict(assert(peri.safetensors.load(folder .. "/b.safetensors")))
    for t = n + 1, n + 20 do
      a:add(step(t))
      b:add(step(t))
      local x, y = a:sample(20, 0.5), b:sample(20, 0.5)
      for name, v in pairs(x) do lu.assertEquals(y[name]:bytes(), v:bytes(), name) end
      a:prioritise(x.index, x.reward)
      b:prioritise(y.index, y.reward)
    end
  end
  peri.files.remove_tree(folder)
  local state = filled(5):state_dict()
  lu.assertErrorMsgContains("load_state_dict: the state is of 100 steps of 2 rows, the buffer has 50 of 2", function()
    cartpole { capacity = 50 }:load_state_dict(state)
  end)
  lu.assertErrorMsgContains("field.obs is f32 (5, 2, 4), the buffer's is f32 (5, 2, 3)", function()
    cartpole { observed = { obs = { "f32", 3 } } }:load_state_dict(state)
  end)
end

function TestReplay.test_a_state_has_what_is_filled_and_no_more()
  local before = peri.memory().live
  local buffer = filled(10, { capacity = 100000 })
  local held = peri.memory().live
  local state = buffer:state_dict()
  lu.assertEquals(state["field.obs"].shape, { 10, 2, 4 })
  lu.assertTrue(peri.memory().live - held < 4096) -- views of what is there
  lu.assertTrue(held - before > 100000 * 2 * 16)
end

function TestReplay.test_kills_change_no_byte()
  killed.assert_same("tests/lua/replay_recipe.lua", "--steps 60 --save_every 4 --seed 3",
    { "net.safetensors", "replay.safetensors", "metrics.jsonl" }, 3)
end

-- ---- rollouts ----

TestRollout = {}

local function rollout()
  local r = peri.rollout { steps = 5, rows = 4, fields = { x = "i64", obs = { "f32", 2 }, adv = "f32" },
    starts = { hidden = { "f32", 3 } } }
  for t = 1, 5 do
    r:set(t, { x = peri.arange(4) + 4 * (t - 1), obs = peri.full({ 4, 2 }, 1.0 * t) })
  end
  return r:set(1, { hidden = peri.arange(4):to("f32"):unsqueeze(2):expand { 4, 3 } }):put { adv = peri.ones { 5, 4 } }
end

function TestRollout.test_minibatches_visit_every_step_once()
  local r = rollout()
  for _, size in ipairs { 1, 3, 7, 20 } do
    local seen, n = {}, 0
    for i, batch in r:minibatches(size) do
      n = n + 1
      lu.assertEquals(i, n)
      lu.assertNil(batch.hidden)
      for k, x in ipairs(batch.x:tolist()) do
        lu.assertNil(seen[x])
        seen[x] = true
        lu.assertEquals(batch.obs:tolist()[k][1], x // 4 + 1)
      end
    end
    lu.assertEquals(#seen, 19) -- and 0
    lu.assertEquals(n, math.ceil(20 / size))
  end
  lu.assertEquals(r:dropped(), 0)
  local n = 0
  for _, batch in r:minibatches(7, { drop_last = true }) do n = n + #batch.x end
  lu.assertEquals(n, 14)
  lu.assertEquals(r:dropped(), 6)
end

-- Rows 0 1 are of the first learner, 2 3 of the second.
function TestRollout.test_learners_have_minibatches_of_their_own_steps()
  local r = rollout()
  for _, size in ipairs { 1, 3, 10 } do
    local seen, orders = {}, { {}, {} }
    for _, batch in r:minibatches(size, { groups = 2 }) do
      lu.assertEquals(batch.obs.shape[1], 2)
      lu.assertEquals(batch.obs.shape[3], 2)
      for g, list in ipairs(batch.x:tolist()) do
        for k, x in ipairs(list) do
          lu.assertNil(seen[x])
          seen[x] = true
          lu.assertEquals(x % 4 // 2 + 1, g)
          lu.assertEquals(batch.obs:tolist()[g][k][1], x // 4 + 1)
          table.insert(orders[g], x % 2 + x // 4 * 2)
        end
      end
    end
    lu.assertEquals(#seen, 19)
    lu.assertNotEquals(orders[1], orders[2]) -- each has an order of its own
  end
  local shapes = {}
  for _, batch in r:minibatches(1, { groups = 2, whole = true }) do
    shapes[#shapes + 1] = { batch.obs.shape, batch.hidden.shape }
    lu.assertEquals(batch.hidden:tolist()[2][1][1] // 2, 1)
  end
  lu.assertEquals(shapes, { { { 5, 2, 1, 2 }, { 2, 1, 3 } }, { { 5, 2, 1, 2 }, { 2, 1, 3 } } })
  lu.assertErrorMsgContains("groups is 3, expected a divisor of the 4 rows", r.minibatches, r, 1, { groups = 3 })
  lu.assertErrorMsgContains("size is 11, expected 1 to 10: there are as many steps of rows in each group", r.minibatches,
    r, 11, { groups = 2 })
end

function TestRollout.test_whole_rows_keep_their_order()
  local rows = {}
  for _, batch in rollout():minibatches(3, { whole = true }) do
    local x = batch.x:tolist()
    lu.assertEquals(batch.obs.shape, { 5, #x[1], 2 })
    for k, row in ipairs(x[1]) do
      rows[#rows + 1] = row
      lu.assertEquals(batch.hidden:tolist()[k][1], row)
      for t = 1, 5 do lu.assertEquals(x[t][k], row + 4 * (t - 1)) end
    end
  end
  table.sort(rows)
  lu.assertEquals(rows, { 0, 1, 2, 3 })
end

function TestRollout.test_fields_are_tensors()
  local r = rollout()
  lu.assertEquals(r:get("x"):tolist()[5], { 16, 17, 18, 19 })
  local flat = r:flatten()
  lu.assertEquals(flat.x:tolist(), peri.arange(20):tolist())
  lu.assertEquals(flat.obs.shape, { 20, 2 })
  lu.assertNil(flat.hidden)
  r:get("adv"):fill_(3)
  lu.assertEquals(flat.adv:sum():item(), 60)
end

function TestRollout.test_a_state_is_its_fields()
  local a, b = rollout(), peri.rollout { steps = 5, rows = 4, fields = { x = "i64", obs = { "f32", 2 }, adv = "f32" },
    starts = { hidden = { "f32", 3 } } }
  b:load_state_dict(a:state_dict())
  for name, t in pairs(a:state_dict()) do lu.assertEquals(b:get(name):bytes(), t:bytes(), name) end
  local part = a:state_dict()
  part.obs = nil
  lu.assertErrorMsgContains("load_state_dict: obs is missing", b.load_state_dict, b, part)
end

function TestRollout.test_the_order_is_of_the_seed()
  local r = rollout()
  local function order(seed)
    peri.seed(seed)
    local list = {}
    for _, batch in r:minibatches(20) do list = batch.x:tolist() end
    return list
  end
  lu.assertEquals(order(1), order(1))
  lu.assertNotEquals(order(1), order(2))
end

function TestRollout.test_mistakes_are_named()
  local r = rollout()
  lu.assertErrorMsgContains("set: step 6 is out of range: there are 5", r.set, r, 6, { x = peri.arange(4) })
  lu.assertErrorMsgContains("set: x has shape (3), the buffer's is (4)", r.set, r, 1, { x = peri.arange(3) })
  lu.assertErrorMsgContains("set: x is f32, the buffer's is i64", r.set, r, 1, { x = peri.zeros { 4 } })
  lu.assertErrorMsgContains("set: there is no ob here; did you mean 'obs'?", r.set, r, 1, { ob = peri.zeros { 4 } })
  lu.assertErrorMsgContains("put: adv is f32 (4), the rollout's is f32 (5, 4)", r.put, r, { adv = peri.zeros { 4 } })
  lu.assertErrorMsgContains("get: there is no field xs; did you mean 'x'?", r.get, r, "xs")
  lu.assertErrorMsgContains("minibatches: size is 21, expected 1 to 20: there are as many steps of rows", r.minibatches, r, 21)
  lu.assertErrorMsgContains("unknown option 'dropp_last', did you mean 'drop_last'?", r.minibatches, r, 2,
    { dropp_last = true })
  lu.assertErrorMsgContains("rollout: fields is missing", function() peri.rollout { steps = 1 } end)
  lu.assertErrorMsgContains("need ", function()
    peri.rollout { steps = 1 << 30, rows = 1 << 10, fields = { obs = { "u8", 84, 84 } } }
  end)
end

-- ---- env:collect ----

TestCollect = {}

local collected = { obs = { "f32", 4 }, action = "i64", logp = "f32", reward = "f32", terminated = "bool",
  truncated = "bool", final_obs = { "f32", 4 }, valid = "bool", advantage = "f32" }

local function all_of(r)
  local out = {}
  for name, x in pairs(r:state_dict()) do out[name] = x:bytes() end
  return out
end

-- A rollout by collect, with what makes the environment and what stands for the policy.
local function by(make, wrap, fields)
  peri.seed(3)
  local net = peri.nn.MLP { 4, 16, 8, 2 }
  local env = make()
  env:reset { seed = 5 }
  local r = peri.rollout { steps = 40, rows = 3, fields = fields or collected }
  local last = {}
  for k = 1, 2 do last[k] = env:collect(r, wrap(net)):bytes() end
  return r, all_of(r), last, env
end

local function itself(net) return net end
local function through_lua(net) return function(x) return net(x) end end

function TestCollect.test_a_network_gives_the_steps_that_a_loop_in_Lua_gives()
  for _, mode in ipairs { "same_step", "next_step" } do
    for _, copy in ipairs { true, false } do
      local function make()
        return peri.env.make("CartPole-v1", { n = 3, autoreset = mode, copy = copy, max_steps = 17 })
      end
      local _, fast, fast_last = by(make, itself)
      local _, slow, slow_last = by(make, through_lua)
      lu.assertEquals(fast, slow)
      lu.assertEquals(fast_last, slow_last)
      peri.seed(3) -- and that one which calls step gives
      local net, env = peri.nn.MLP { 4, 16, 8, 2 }, make()
      local obs = env:reset { seed = 5 }
      local r = peri.rollout { steps = 40, rows = 3, fields = collected }
      for _ = 1, 2 do
        for t = 1, 40 do
          local action, logp = net(obs):sample()
          r:set(t, { obs = obs, action = action:detach(), logp = logp:detach() })
          local reward, over, cut
          obs, reward, over, cut = env:step(action)
          r:set(t, { reward = reward, terminated = over, truncated = cut, final_obs = env.final_obs, valid = env.valid })
        end
      end
      lu.assertEquals(all_of(r), fast)
    end
  end
end

function TestCollect.test_environments_in_Lua_and_wrappers_take_part()
  local function in_lua()
    return peri.env.make({ obs = peri.env.box { low = -1e9, high = 1e9, shape = { 4 } }, action = peri.env.discrete(2),
      reset = function(s, obs) s.at = 0; for i = 1, 4 do obs[i] = i / 8 end end,
      step = function(s, a, obs)
        s.at = s.at + 1
        for i = 1, 4 do obs[i] = (s.at * i + a) / 8 end
        return a, s.at == 7, false
      end }, { n = 3 })
  end
  local _, fast = by(in_lua, itself)
  local _, slow = by(in_lua, through_lua)
  lu.assertEquals(fast, slow)
  local function wrapped()
    return peri.env.normalize_obs(peri.env.make("CartPole-v1", { n = 3 }))
  end
  local r, _, _, env = by(wrapped, itself) -- their own tensors outlive the scopes of the loop
  lu.assertNotNil(next(env:statistics()))
  lu.assertTrue(r:get("obs"):std():item() > 0.5) -- what the wrapper made of it
end

function TestCollect.test_every_wrapper_outlives_the_scopes_of_its_steps()
  local wraps = { normalize_obs = peri.env.normalize_obs, normalize_reward = peri.env.normalize_reward,
    frame_stack = function(env) return peri.env.frame_stack(env, 2) end }
  for name, wrap in pairs(wraps) do
    for _, mode in ipairs { "same_step", "next_step" } do
      local env = wrap(peri.env.make("CartPole-v1", { n = 3, autoreset = mode, seed = 1, max_steps = 5 }))
      for k in peri.steps(12) do
        if k % 6 == 1 then env:reset() end
        env:step(peri.ones({ 3 }, "i64"))
      end
      lu.assertEquals(env.obs.shape[1], 3, name)
      lu.assertEquals(env.final_obs.shape[1], 3, name)
      lu.assertEquals(env.reward.shape, { 3 }, name)
      env:state_dict()
    end
  end
end

function TestCollect.test_fields_that_are_not_there_are_left_out_and_versions_count()
  local r = by(function() return peri.env.make("CartPole-v1", { n = 3 }) end, itself, { action = "i64" })
  lu.assertTrue(r:get("action"):sum():item() > 0)
  local _ <close> = peri.enable_grad()
  local w = peri.ones { 40, 3 }:requires_grad_(true)
  local s = peri.rollout { steps = 40, rows = 3, fields = { reward = "f32" } }
  local y = w * s:get "reward"
  local env = peri.env.make("CartPole-v1", { n = 3, seed = 1 })
  env:reset()
  env:collect(s, peri.nn.MLP { 4, 2 })
  lu.assertErrorMsgContains("changed", function() y:sum():backward() end)
end

function TestCollect.test_mistakes_are_named()
  local env = peri.env.make("CartPole-v1", { n = 3, seed = 1 })
  local net = peri.nn.MLP { 4, 2 }
  local function roll(fields, rows) return peri.rollout { steps = 4, rows = rows or 3, fields = fields } end
  lu.assertErrorMsgContains("collect: CartPole-v1", env.collect, env, roll { action = "i64" }, net) -- no reset yet
  env:reset()
  lu.assertErrorMsgContains("obs of the rollout is (3, 5) of f32, the environment's is (3, 4) of f32", env.collect, env,
    roll { obs = { "f32", 5 } }, net)
  lu.assertErrorMsgContains("reward of the rollout is (2) of f32, the environment's is (3) of f32", env.collect, env,
    roll({ reward = "f32" }, 2), net)
  lu.assertErrorMsgContains("action of the rollout is not one i64 for each row", env.collect, env, roll { action = "u8" },
    net)
  lu.assertErrorMsgContains("rollout is a table", env.collect, env, {}, net)
  lu.assertErrorMsgContains("policy is", env.collect, env, roll { action = "i64" }, 7)
  lu.assertErrorMsgContains("(2, 5)", env.collect, env, roll { action = "i64" }, peri.nn.MLP { 5, 2 })
  lu.assertErrorMsgContains("action", env.collect, env, roll { action = "i64" }, peri.nn.MLP { 4, 60 })
  local box = peri.env.make("Pendulum-v1", { n = 3, seed = 1 })
  lu.assertErrorMsgContains("Pendulum-v1 has box actions", box.collect, box, roll { obs = { "f32", 3 } }, net)
  local one = peri.env.make "CartPole-v1"
  lu.assertErrorMsgContains("CartPole-v1 has no rows", one.collect, one, roll { obs = { "f32", 4 } }, net)
end

os.exit(lu.LuaUnit.run())
