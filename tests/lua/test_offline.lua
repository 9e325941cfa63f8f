-- Learning from logs: losses against closed forms, data sets against what was added.
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"
local rl = peri.rl

TestOffline = {}

local function assert_close(a, b, margin)
  lu.assertEquals(a.shape, b.shape)
  lu.assertTrue((a - b):abs():max():item() <= (margin or 1e-9))
end

-- ---- losses ----

function TestOffline.test_the_penalty_is_what_all_values_say_beyond_that_of_the_data()
  peri.seed(1)
  for _, shape in ipairs { { 5 }, { 3, 7 }, { 2, 3, 4 } } do
    local n = #shape
    local q = peri.randn(shape, "f64"):mul(3):requires_grad_()
    local lead = { table.unpack(shape, 1, n - 1) }
    local action = peri.randint(0, shape[n], lead)
    local loss, each = rl.conservative_loss(q, action)
    local p = q:detach():softmax(-1)
    local hit = action:one_hot(shape[n], "f64")
    local want = (p * hit):sum(-1):log():neg() -- log sum e^q - q(a) is -log softmax(q)(a)
    assert_close(each, want)
    lu.assertTrue(each:ge(0):all():item())
    lu.assertAlmostEquals(loss:item(), want:mean():item(), 1e-12)
    loss:backward() -- raises the data's action, lowers all by their softmax
    assert_close(q.grad, (p - hit) / each:numel())
  end
  lu.assertAlmostEquals((rl.conservative_loss(peri.full({ 4, 3 }, 1e4, "f64"), peri.zeros({ 4 }, "i64"))):item(),
    math.log(3), 1e-9) -- and does not overflow
end

function TestOffline.test_cloning_is_the_cross_entropy_of_the_log_and_weights_weigh_its_steps()
  peri.seed(2)
  local logits, action = peri.randn({ 6, 4 }, "f64"):requires_grad_(), peri.randint(0, 4, { 6 })
  local loss, each = rl.cloning_loss(logits, action)
  local logp = logits:detach():log_softmax(-1):gather(action:unsqueeze(-1), -1):squeeze(-1)
  assert_close(each, -logp)
  lu.assertAlmostEquals(loss:item(), -logp:mean():item(), 1e-12)
  local weights = peri.rand({ 6 }, "f64"):requires_grad_()
  local weighted = rl.cloning_loss(logits, action, weights)
  lu.assertAlmostEquals(weighted:item(), -(logp * weights:detach()):mean():item(), 1e-12)
  weighted:backward()
  lu.assertNil(weights.grad)
end

-- The point v of tau E[(x - v)+] = (1 - tau) E[(v - x)+], which is what an expectile is (Newey and Powell 1987, eq. 2.5).
function TestOffline.test_the_least_point_of_the_expectile_loss_is_the_expectile()
  peri.seed(3)
  local x, last = peri.randn({ 40 }, "f64"), -math.huge
  for _, tau in ipairs { 0.01, 0.1, 0.5, 0.7, 0.9, 0.999 } do
    local v = peri.zeros({}, "f64"):requires_grad_()
    for _ = 1, 200 do -- Newton: the loss is a square on either side
      v:zero_grad()
      local loss = rl.expectile_loss(x - v, tau)
      loss:backward()
      local curve = (x:lt(v:detach()):to "f64" * (1 - 2 * tau) + tau):mean() * 2
      local _ <close> = peri.no_grad()
      v:sub_(v.grad / curve)
    end
    local at = v:detach()
    local above, below = (x - at):clamp({ min = 0 }):mean():item(), (at - x):clamp({ min = 0 }):mean():item()
    lu.assertAlmostEquals(tau * above, (1 - tau) * below, 1e-9)
    if tau == 0.5 then lu.assertAlmostEquals(at:item(), x:mean():item(), 1e-9) end
    lu.assertTrue(at:item() > last and at:item() < x:max():item()) -- it grows with tau, up to the largest
    last = at:item()
  end
  lu.assertAlmostEquals(last, x:max():item(), 0.15)
end

function TestOffline.test_half_the_square_is_the_expectile_loss_of_a_half()
  local u = peri.tensor({ -2, -0.5, 0, 3 }, "f64")
  lu.assertEquals(select(2, rl.expectile_loss(u, 0.5)):tolist(), { 2, 0.125, 0, 4.5 })
  lu.assertEquals(select(2, rl.expectile_loss(u, 0.75)):tolist(), { 1, 0.0625, 0, 6.75 })
end

function TestOffline.test_weights_of_advantages_are_powers_up_to_a_bound()
  local a = peri.tensor({ -1, 0, 0.5, 100 }, "f64"):requires_grad_()
  local w = rl.advantage_weights(a, 3):tolist()
  for i, want in ipairs { math.exp(-3), 1, math.exp(1.5), 100 } do lu.assertAlmostEquals(w[i], want, 1e-9) end
  lu.assertEquals(rl.advantage_weights(a, 0):tolist(), { 1, 1, 1, 1 }) -- cloning
  lu.assertAlmostEquals(rl.advantage_weights(a, 1, 7):tolist()[4], 7, 1e-9)
  lu.assertFalse(rl.advantage_weights(a, 1).requires_grad)
end

function TestOffline.test_numbers_out_of_range_are_refused_by_name()
  local x = peri.zeros { 3 }
  for _, tau in ipairs { 0, 1, -0.1, 0 / 0, "x" } do
    lu.assertErrorMsgContains("rl.expectile_loss: tau is ", rl.expectile_loss, x, tau)
  end
  lu.assertErrorMsgContains("rl.advantage_weights: beta is -1", rl.advantage_weights, x, -1)
  lu.assertErrorMsgContains("rl.advantage_weights: most is 0", rl.advantage_weights, x, 1, 0)
  lu.assertErrorMsgContains("action is missing", rl.conservative_loss, x)
  lu.assertErrorMsgContains("logits is", rl.cloning_loss, 3, x)
end

-- A state, three actions, of which the log has two: rewards 1 and 0, half each. Values of a table, learned from the log.
local function table_of(alpha, start)
  local q = peri.nn.parameter(peri.tensor({ { 0, 0, start } }, "f64"))
  local opt = peri.optim.SGD({ q }, { lr = 0.5 })
  local action, reward = peri.tensor({ 0, 1 }, "i64"), peri.tensor({ 1, 0 }, "f64")
  for _ = 1, 4000 do
    local rows = q:expand { 2, 3 }
    local loss = rl.q_loss(rows, action, reward, { loss = "mse" }) + alpha * rl.conservative_loss(rows, action)
    loss:backward()
    opt:step():zero_grad()
  end
  return q:detach():flatten():tolist(), q:detach():softmax(-1):flatten():tolist()
end

function TestOffline.test_what_the_log_does_not_show_stays_as_it_was_without_the_penalty_and_falls_with_it()
  for _, start in ipairs { -1, 0, 5 } do
    local plain = table_of(0, start)
    lu.assertAlmostEquals(plain[1], 1, 1e-6)
    lu.assertAlmostEquals(plain[3], start, 1e-12)     -- 5: the best action, says who never tried it
    local held, p = table_of(0.2, start)
    lu.assertTrue(held[3] < held[2] and held[2] < held[1])
    for a = 1, 2 do -- where the gradient of both is 0: the data's half * 2 (q - r) + alpha (softmax - half)
      lu.assertAlmostEquals(held[a] - (2 - a) + 0.2 * (p[a] - 0.5), 0, 1e-6)
    end
  end
end

-- ---- data sets ----

-- Steps of rows, some ends of either kind; what was added, by row and step.
local function filled(rows, steps, capacity, opts)
  local how = { capacity = capacity, rows = rows, observed = { obs = { "f32", 2, 3 }, seen = "u8" },
    fields = { action = "i64", logits = { "f64", 4 } } }
  for k, v in pairs(opts or {}) do how[k] = v end
  local buffer, added = peri.replay(how), {}
  local obs, seen = peri.randn { rows, 2, 3 }, peri.randint(0, 255, { rows }):to "u8"
  for t = 1, steps do
    local led, sees = peri.randn { rows, 2, 3 }, peri.randint(0, 255, { rows }):to "u8"
    local over, cut = peri.rand({ rows }):lt(0.2), peri.rand({ rows }):lt(0.2)
    local step = { obs = obs, seen = seen, next_obs = led, next_seen = sees, action = peri.randint(0, 9, { rows }),
      logits = peri.randn({ rows, 4 }, "f64"), reward = peri.randn { rows }, terminated = over, truncated = cut }
    buffer:add(step)
    added[t] = step
    local ended = over:logical_or(cut)
    obs = peri.where(ended:reshape { rows, 1, 1 }, peri.randn { rows, 2, 3 }, led)
    seen = peri.where(ended, peri.randint(0, 255, { rows }):to "u8", sees)
  end
  return buffer, added
end

local function same(a, b)
  for name, t in pairs(a) do lu.assertTrue(t:eq(b[name]):all():item(), name) end
  for name in pairs(b) do lu.assertNotNil(a[name], name) end
end

function TestOffline.test_a_data_set_is_the_buffer_step_for_step_whatever_its_fields()
  peri.seed(4)
  local folder = scratch.folder()
  for i, case in ipairs { { 1, 5, 9 }, { 3, 20, 20 }, { 2, 50, 13 }, { 4, 7, 7, { groups = 2 } }, { 1, 9, 4, { seed = 5 } },
      { 1, 12, 12, { prioritised = true } } } do
    local rows, steps, capacity, opts = table.unpack(case)
    local buffer = filled(rows, steps, capacity, opts)
    local path = ("%s/%d.safetensors"):format(folder, i)
    lu.assertTrue(rl.save_dataset(path, buffer, { info = { source = "noise", list = { 1, 2 } } }))
    local back, about = rl.load_dataset(path)
    lu.assertEquals({ about.rows, about.steps, back:size() }, { rows, math.min(steps, capacity), buffer:size() })
    lu.assertEquals(about.info.source, "noise")
    local all = peri.arange(buffer:size())
    same(buffer:gather(all), back:gather(all))
  end
  peri.files.remove_tree(folder)
end

function TestOffline.test_a_truncated_step_of_a_data_set_leads_to_what_its_episode_ended_with()
  peri.seed(5)
  local folder = scratch.folder()
  local path = folder .. "/log.safetensors"
  local rows, steps = 3, 40
  local buffer, added = filled(rows, steps, steps)
  lu.assertTrue(rl.save_dataset(path, buffer))
  local all, cuts = assert(rl.load_dataset(path)):gather(peri.arange(rows * steps)), 0
  for t = 1, steps do
    for row = 1, rows do
      local at, step = (t - 1) * rows + row, added[t]
      lu.assertTrue(all.next_obs:select(1, at):eq(step.next_obs:select(1, row)):all():item())
      if step.truncated:at(row) ~= 0 and step.truncated:at(row) ~= false then cuts = cuts + 1 end
    end
  end
  lu.assertTrue(cuts > 5)
  -- and a target goes on from there: of a value that is the sum of what is seen
  local target = rl.backup(all, all.next_obs:sum { 2, 3 })
  local want = all.reward + 0.99 * all.next_obs:sum { 2, 3 } * all.terminated:eq(0):to "f32"
  assert_close(target, want, 1e-5)
  peri.files.remove_tree(folder)
end

function TestOffline.test_draws_of_a_data_set_follow_the_generator_of_the_random_ops_and_are_of_each_learners_rows()
  peri.seed(6)
  local folder = scratch.folder()
  local path = folder .. "/log.safetensors"
  local buffer = peri.replay { capacity = 30, rows = 4, fields = { row = "i64" }, seed = 3 }
  for _ = 1, 30 do
    buffer:add { row = peri.arange(4), reward = peri.ones { 4 }, terminated = peri.zeros({ 4 }, "bool"),
      truncated = peri.zeros({ 4 }, "bool") }
  end
  lu.assertTrue(rl.save_dataset(path, buffer))
  local function draw(seed)
    peri.seed(seed)
    return (assert(rl.load_dataset(path, { groups = 2 }))):sample(50)
  end
  local a, b = draw(1), draw(1)
  same(a, b)
  lu.assertFalse(a.index:eq(draw(2).index):all():item())
  lu.assertTrue(a.row:select(1, 1):lt(2):all():item() and a.row:select(1, 2):ge(2):all():item())
  local far = assert(rl.load_dataset(path, { n_step = 3, gamma = 0.5 })):gather(peri.tensor({ 0 }, "i64"))
  lu.assertEquals(far.reward:tolist(), { 1.75 })
  peri.files.remove_tree(folder)
end

function TestOffline.test_files_that_are_no_data_sets_are_named_and_what_is_asked_wrongly_raises()
  local folder = scratch.folder()
  local function refused(path, part)
    local buffer, message = rl.load_dataset(path)
    lu.assertNil(buffer)
    lu.assertStrContains(message, part)
  end
  refused(folder .. "/none.safetensors", "none.safetensors")
  local path = folder .. "/other.safetensors"
  assert(peri.safetensors.save(path, { weight = peri.ones { 2 } }))
  refused(path, "is no data set")
  assert(peri.safetensors.save(path, { weight = peri.ones { 2 } }, { ["perilune.dataset"] = '{"version":1}' }))
  refused(path, "is no data set")
  local buffer = filled(3, 4, 4)
  assert(peri.safetensors.save(path, buffer:state_dict(), { ["perilune.dataset"] = '{"version":2}' }))
  refused(path, "version 2")
  assert(rl.save_dataset(path, buffer))
  lu.assertErrorMsgContains("groups is 2, which does not share out 3 rows", rl.load_dataset, path, { groups = 2 })
  lu.assertErrorMsgContains("the buffer is empty", rl.save_dataset, path, peri.replay { capacity = 2, rows = 1 })
  peri.files.remove_tree(folder)
end

-- ---- evaluation ----

-- An environment whose rewards are 1, 2, 3 ...: what an episode of n steps is worth has a closed form.
function TestOffline.test_evaluate_discounts_each_episode_from_its_beginning()
  local count = { id = "Count-v0", obs = peri.env.box(0, 9, { shape = { 1 } }), action = peri.env.discrete(2),
    reset = function (s, obs, rng) s.t, s.n, obs[1] = 0, 1 + rng:integer(4), 0 end,
    step = function (s, _, obs)
      s.t, obs[1] = s.t + 1, s.t
      return s.t, s.t == s.n
    end }
  for _, mode in ipairs { "same_step", "next_step" } do
    local env = peri.env.make(count, { n = 3, seed = 1, autoreset = mode })
    local score = rl.evaluate(env, function () return peri.zeros({ 3 }, "i64") end, { episodes = 30, gamma = 0.5 })
    lu.assertEquals(#score.discounted, 30)
    for i, n in ipairs(score.lengths) do
      local want = 0
      for t = 1, n do want = want + 0.5 ^ (t - 1) * t end
      lu.assertAlmostEquals(score.discounted[i], want, 1e-9, mode)
    end
    lu.assertNil(rl.evaluate(env, function () return peri.zeros({ 3 }, "i64") end, { episodes = 3 }).discounted)
  end
end

os.exit(lu.LuaUnit.run())
