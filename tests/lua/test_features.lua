-- What a student learns of a teacher beside its outputs: losses of features against brute force, and Hints by hooks.
local lu = require "luaunit"
local peri = require "perilune"

local loss, nn = peri.loss, peri.nn

TestFeatures = {}

local function numbers(shape, seed)
  local state = peri.rng_state()
  peri.seed(seed)
  local t = peri.randn(shape, "f64")
  peri.set_rng_state(state)
  return t
end

-- The vectors of features: lists of lists of numbers, a list a place.
local function vectors(x)
  local list, n = x:tolist(), {}
  if x.ndim == 2 then return list end
  for _, one in ipairs(list) do
    if x.ndim == 3 then for _, v in ipairs(one) do n[#n + 1] = v end
    else
      for h = 1, #one[1] do
        for w = 1, #one[1][1] do
          local v = {}
          for c = 1, #one do v[c] = one[c][h][w] end
          n[#n + 1] = v
        end
      end
    end
  end
  return n
end

local function dot(a, b)
  local sum = 0
  for i in ipairs(a) do sum = sum + a[i] * b[i] end
  return sum
end

local brute = {
  mse = function (a, b)
    local sum = 0
    for i in ipairs(a) do sum = sum + (a[i] - b[i]) ^ 2 end
    return sum / #a
  end,
  cosine = function (a, b) return 1 - dot(a, b) / math.sqrt(dot(a, a) * dot(b, b)) end,
}

local shapes = { { 5, 3 }, { 2, 4, 3 }, { 2, 3, 2, 4 } }

local function places_of(shape)
  if #shape == 4 then return { shape[1], shape[3], shape[4] } end
  return table.move(shape, 1, #shape - 1, 1, {})
end

function TestFeatures.test_every_kind_is_its_formula_over_the_places_that_count()
  for i, shape in ipairs(shapes) do
    local a, b = numbers(shape, i), numbers(shape, 10 + i)
    local weight = numbers(places_of(shape), 20 + i):gt(0):to "f64"
    for kind, fn in pairs(brute) do
      for _, w in ipairs { weight, peri.ones_like(weight) } do
        local counts, sum, n = w:flatten():tolist(), 0, 0
        local va, vb = vectors(a), vectors(b)
        for k, c in ipairs(counts) do
          if c == 1 then sum, n = sum + fn(va[k], vb[k]), n + 1 end
        end
        lu.assertAlmostEquals(loss.feature(a, b, w, { kind = kind }):item(), sum / n, 1e-12)
      end
      lu.assertAlmostEquals(loss.feature(a, a, { kind = kind }):item(), 0, 1e-12)
    end
  end
end

function TestFeatures.test_attention_transfer_is_equation_2_of_the_paper()
  local a, b = numbers({ 2, 3, 2, 4 }, 1), numbers({ 2, 5, 2, 4 }, 2) -- channels may differ
  for _, p in ipairs { 1, 2, 4 } do
    local function maps(x)
      local q, list = {}, vectors(x)
      for k, v in ipairs(list) do
        local row = (k - 1) // 8 + 1
        q[row] = q[row] or {}
        local sum = 0
        for _, one in ipairs(v) do sum = sum + math.abs(one) ^ p end
        table.insert(q[row], sum)
      end
      for _, row in ipairs(q) do
        local length = math.sqrt(dot(row, row))
        for k in ipairs(row) do row[k] = row[k] / length end
      end
      return q
    end
    local qa, qb, square, norm = maps(a), maps(b), 0, 0
    for row in ipairs(qa) do
      local sum = brute.mse(qa[row], qb[row]) * 8
      square, norm = square + sum / 16, norm + math.sqrt(sum) / 2
    end
    lu.assertAlmostEquals(loss.attention_transfer(a, b, { power = p }):item(), square, 1e-12)
    lu.assertAlmostEquals(loss.attention_transfer(a, b, { power = p, norm = true }):item(), norm, 1e-12)
    lu.assertTrue(loss.attention_map(a, p):sub(peri.tensor(qa, "f64")):abs():max():item() < 1e-12)
  end
end

-- Each loss as a function of the student's features and a weight.
local losses = {
  mse = function (s, t, w) return loss.feature(s, t, w) end,
  cosine = function (s, t, w) return loss.feature(s, t, w, { kind = "cosine" }) end,
  attention = function (s, t, w) return loss.attention_transfer(s, t, w) end,
  norm = function (s, t, w) return loss.attention_transfer(s, t, w, { norm = true, power = 1 }) end,
}

function TestFeatures.test_what_stands_at_weight_0_changes_nothing_and_has_no_gradient()
  local weight = peri.tensor { { 1, 0, 1 }, { 1, 1, 0 } }
  for name, fn in pairs(losses) do
    local out = {}
    for k, bad in ipairs { 3, 0 / 0, math.huge } do
      local s, t = numbers({ 2, 3, 4 }, 1):contiguous(), numbers({ 2, 3, 4 }, 2):contiguous()
      s = s:masked_fill(weight:eq(0):unsqueeze(3), bad):detach():requires_grad_()
      t = t:masked_fill(weight:eq(0):unsqueeze(3), bad)
      local value = fn(s, t, weight)
      value:backward()
      out[k] = { value:item(), s.grad:tolist() }
      lu.assertEquals(s.grad:masked_fill(weight:ne(0):unsqueeze(3), 0):abs():sum():item(), 0, name)
    end
    lu.assertEquals(out[2], out[1], name)
    lu.assertEquals(out[3], out[1], name)
  end
end

function TestFeatures.test_gradients_are_differences_and_stay_finite_where_features_are_zero()
  for name, fn in pairs(losses) do
    local t = numbers({ 2, 3, 4 }, 2):requires_grad_()
    local s = numbers({ 2, 3, 4 }, 1):requires_grad_()
    fn(s, t):backward()
    lu.assertNil(t.grad, name)
    for i = 1, 24, 5 do
      local step = peri.zeros({ 24 }, "f64")
      step:narrow(1, i, 1):fill_(1e-6)
      step = step:reshape { 2, 3, 4 }
      local slope = (fn(s:detach() + step, t) - fn(s:detach() - step, t)):item() / 2e-6
      lu.assertAlmostEquals(s.grad:flatten():tolist()[i], slope, 1e-6, name)
    end
    for _, same in ipairs { peri.zeros({ 2, 3, 4 }, "f64"), t:detach():clone() } do
      local x = same:requires_grad_()
      fn(x, t:detach()):backward()
      lu.assertTrue(x.grad:isfinite():all():item() ~= 0 and x.grad:isfinite():all():item() ~= false, name)
    end
  end
end

function TestFeatures.test_shapes_that_do_not_fit_are_said()
  local x = peri.ones { 2, 3, 4 }
  lu.assertErrorMsgContains("loss.feature: teacher has shape (2, 3, 5), expected (2, 3, 4), the student's", loss.feature, x,
    peri.ones { 2, 3, 5 })
  lu.assertErrorMsgContains("weight has shape (2, 4), expected (2, 3)", loss.feature, x, x, peri.ones { 2, 4 })
  lu.assertErrorMsgContains("features of shape (2, 3), expected (N, C, H, W) or (N, T, D)", loss.attention_map, peri.ones { 2, 3 })
  lu.assertErrorMsgContains("expected (2, 3), the student's", loss.attention_transfer, x, peri.ones { 2, 4, 4 })
  lu.assertErrorMsgContains("power is 0.5", loss.attention_map, x, 0.5)
end

-- ---- Hints ----

local function nets()
  peri.seed(3)
  return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)),
    nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 2))
end

function TestFeatures.test_hints_are_the_losses_of_what_the_networks_gave()
  local student, teacher = nets()
  local x = peri.randn { 6, 4 }
  local hints = loss.Hints(student, teacher, { example = x,
    pairs = { { "1", "1" }, { "1", "3", kind = "cosine", weight = 3 }, { "0", "2", project = "always" } } })
  lu.assertEquals(#hints:parameters(), 4) -- two projections, each with a bias
  local teachers = {}
  for i, p in ipairs(teacher:parameters()) do teachers[i] = p end
  peri.no_grad(teacher, x)
  local out = student(x)
  local value, parts = hints:loss()
  local s1, t1 = student[2](student[1](x)), teacher[2](teacher[1](x))
  local t3 = teacher[4](teacher[3](t1))
  local want = { loss.feature(hints.projections["1"](s1), t1), loss.feature(s1, t3, { kind = "cosine" }),
    loss.feature(hints.projections["3"](student[1](x)), teacher[3](t1)) }
  for i, w in ipairs(want) do lu.assertAlmostEquals(parts[i]:item(), w:item(), 1e-6) end
  lu.assertAlmostEquals(value:item(), want[1]:item() + 3 * want[2]:item() + want[3]:item(), 1e-5)
  value:add(out:square():mean()):backward()
  for _, p in ipairs(teachers) do lu.assertNil(p.grad) end
  for _, p in ipairs(hints:parameters()) do lu.assertNotNil(p.grad) end
  peri.no_grad(teacher, x)
  student(x)
  hints:loss()
  lu.assertErrorMsgContains("pair 1: 1 of the student has not run since the last loss", hints.loss, hints)
  student(x)
  lu.assertErrorMsgContains("pair 1: 1 of the teacher has not run since the last loss", hints.loss, hints)
  hints:remove()
  lu.assertNil(rawget(student[2], "_hooks"))
  lu.assertNil(rawget(teacher[2], "_hooks"))
end

-- A step along the gradient of the hints brings the features nearer, whatever the kind, of pictures as well.
function TestFeatures.test_hints_of_pictures_come_nearer_by_every_kind()
  for _, kind in ipairs { "mse", "cosine", "attention" } do
    peri.seed(5)
    local x = peri.randn { 4, 1, 6, 6 }
    local student = nn.Sequential(nn.Conv2d(1, 3, 3, { padding = 1 }), nn.ReLU())
    local teacher = nn.Sequential(nn.Conv2d(1, 8, 3, { padding = 1 }), nn.ReLU())
    local hints = loss.Hints(student, teacher, { pairs = { { "1", "1" } }, example = x, kind = kind })
    lu.assertEquals(#hints:parameters(), kind == "attention" and 0 or 2)
    local all = student:parameters()
    for _, p in ipairs(hints:parameters()) do all[#all + 1] = p end
    local opt, first, last = peri.optim.SGD(all, { lr = 0.05 }), nil, nil
    for _ = 1, 15 do
      peri.no_grad(teacher, x)
      student(x)
      local value = hints:loss()
      first, last = first or value:item(), value:item()
      value:backward()
      opt:step():zero_grad()
    end
    lu.assertTrue(last < first, kind)
  end
end

-- Networks of two modalities read different things.
function TestFeatures.test_a_teacher_may_take_an_example_of_its_own()
  local student, teacher = nn.Sequential(nn.Embedding(9, 4), nn.Tanh()), nn.Sequential(nn.Linear(3, 7))
  local ids, x = peri.randint(0, 9, { 5 }), peri.randn { 5, 3 }
  local hints <close> = loss.Hints(student, teacher, { pairs = { { "1", "0" } }, example = ids, teacher_example = x })
  student(ids)
  teacher(x)
  lu.assertTrue(hints:loss():item() > 0)
end

function TestFeatures.test_hints_refuse_what_does_not_fit_and_leave_no_hook()
  local student, teacher = nets()
  local x = peri.randn { 6, 4 }
  local function fails(message, pairs_, more)
    local o = { pairs = pairs_, example = x }
    for k, v in pairs(more or {}) do o[k] = v end
    lu.assertErrorMsgContains(message, loss.Hints, student, teacher, o)
    for _, net in ipairs { student, teacher } do
      for _, m in ipairs(net:modules()) do lu.assertNil(rawget(m, "_hooks"), message) end
    end
  end
  fails("pairs is empty", {})
  fails("pair 2 is not { path in the student, path in the teacher }", { { "1", "1" }, { "1" } })
  fails("pair 1: the teacher: there is no module or tensor \"7\"", { { "1", "7" } })
  fails("pair 2: the student: there is no module or tensor \"8\"", { { "1", "1" }, { "8", "7" } })
  for _, kind in ipairs { "mse", "cosine" } do
    fails("pair 1: power is of kind \"attention\", this pair's is \"" .. kind, { { "1", "1", kind = kind, power = 2 } })
    fails("power is of kind \"attention\", and no pair is", { { "1", "1", kind = kind } }, { power = 3 })
  end
  for _, weight in ipairs { 0 / 0, -1, math.huge } do fails("pair 1: weight is ", { { "1", "1", weight = weight } }) end
  lu.assertErrorMsgContains("the student is the teacher", loss.Hints, student, student, { pairs = { { "1", "1" } },
    example = x })
  fails("unknown option \"kid\"; did you mean \"kind\"?", { { "1", "1", kid = "mse" } })
  fails("pair 1: kind is \"mean\"", { { "1", "1", kind = "mean" } })
  fails("pair 1 (1, 1): teacher has shape (6, 8), expected (6, 5)", { { "1", "1" } }, { project = "never" })
  fails("expected (N, C, H, W) or (N, T, D)", { { "1", "1" } }, { kind = "attention" })
  fails("inner sizes 3 and 4 differ", { { "1", "1" } }, { example = peri.randn { 6, 3 } })
end

function TestFeatures.test_hints_without_hooks_say_so()
  local student, teacher = nets()
  local x = peri.randn { 6, 4 }
  local hints = loss.Hints(student, teacher, { pairs = { { "1", "1" } }, example = x })
  lu.assertErrorMsgContains("has not run since the last loss", hints.loss, hints)
  hints:remove()
  student(x)
  teacher(x)
  lu.assertErrorMsgContains("the hooks are off: remove() took them", hints.loss, hints)
end

function TestFeatures.test_a_weight_of_places_is_from_0_to_1()
  local x = peri.rand { 2, 3, 4 }
  for _, bad in ipairs { 0 / 0, -1, 2, math.huge } do
    local w = peri.ones { 2, 3 }
    w:select(1, 2):select(1, 1):fill_(bad)
    lu.assertErrorMsgContains("loss.feature: weight ", loss.feature, x, x, w)
    lu.assertErrorMsgContains("loss.attention_transfer: weight ", loss.attention_transfer, x, x, w)
  end
end

-- ---- record ----

function TestFeatures.test_a_record_has_the_latest_output_of_each_module()
  local net = nets()
  do
    local record <close> = net:record { "0", "1" }
    lu.assertNil(record.outputs["0"])
    for _ = 1, 2 do
      local x = peri.randn { 2, 4 }
      net(x)
      lu.assertEquals(record.outputs["0"]:tolist(), net[1]:forward(x):tolist())
      lu.assertEquals(record.outputs["1"]:tolist(), record.outputs["0"]:tanh():tolist())
    end
    lu.assertEquals(record:clear().outputs, {})
  end
  lu.assertNil(rawget(net[1], "_hooks"))
  lu.assertErrorMsgContains("record: 0.weight is a tensor, expected a module", net.record, net, { "0", "0.weight" })
  lu.assertErrorMsgContains("there are no paths", net.record, net, {})
  lu.assertNil(rawget(net[1], "_hooks"))
end

os.exit(lu.LuaUnit.run())
