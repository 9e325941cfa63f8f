-- Probability distributions: laws that hold of every family, and torch's and Stable-Baselines3's numbers
-- (tests/reference/distributions.py).
local lu = require "luaunit"
local peri = require "perilune"
local dist = peri.dist

local function leaf(list) return peri.tensor(list, "f64"):requires_grad_() end

-- n midpoints of equal pieces between two bounds, (n, 1), and the size of a piece.
local function grid(low, high, n)
  local piece = (high - low) / n
  return peri.arange(n):to("f64"):add(0.5):mul(piece):add(low):unsqueeze(2), piece
end
local function ids(list) return peri.tensor(list, "i64") end

-- A family: its parameters, the distribution that they make (batch (2) unless a row is one value), all its values (n, 1)
-- or a fine grid of them with the weight of each.
local families = {
  Categorical = {
    params = function() return { leaf { { 0.3, -1.2, 0.9 }, { 2, 0.1, -0.4 } } } end,
    make = function(logits) return dist.Categorical(logits) end,
    values = function() return ids { { 0 }, { 1 }, { 2 } }, 1 end, numbers = false,
  },
  ["Categorical masked"] = {
    params = function() return { leaf { { 0.3, -1.2, 0.9, 5 }, { 2, 0.1, -0.4, 1 } } } end,
    make = function(logits)
      return dist.Categorical(logits, { mask = peri.tensor { { 1, 1, 1, 0 }, { 0, 1, 0, 1 } } })
    end,
    values = function() return ids { { 0 }, { 1 }, { 2 }, { 3 } }, 1 end, numbers = false,
  },
  MultiCategorical = {
    params = function() return { leaf { { 0.3, -1.2, 0.9, 0.2, 0 }, { 2, 0.1, -0.4, -1, 0.5 } } } end,
    make = function(logits) return dist.MultiCategorical(logits, { 2, 3 }) end,
    values = function()
      return ids { { { 0, 0 } }, { { 0, 1 } }, { { 0, 2 } }, { { 1, 0 } }, { { 1, 1 } }, { { 1, 2 } } }, 1
    end, numbers = false,
  },
  Bernoulli = {
    params = function() return { leaf { 0.7, -2 } } end,
    make = function(logits) return dist.Bernoulli(logits) end,
    values = function() return peri.tensor({ { 0 }, { 1 } }, "f64"), 1 end,
  },
  Normal = {
    params = function() return { leaf { 0.5, -1 }, leaf { 0.8, 1.3 } } end,
    make = function(mean, std) return dist.Normal(mean, std) end,
    values = function() return grid(-14, 13, 4000) end, rsample = true,
  },
  ["Normal of one log_std"] = {
    params = function() return { leaf { 0.5, -1 }, leaf(-0.4) } end,
    make = function(mean, log_std) return dist.Normal(mean, { log_std = log_std }) end,
    values = function() return grid(-14, 13, 4000) end, rsample = true,
  },
  SquashedNormal = {
    params = function() return { leaf { 0.3, -0.2 }, leaf { -0.7, -1 } } end,
    make = function(mean, log_std) return dist.SquashedNormal(mean, { log_std = log_std }) end,
    values = function() return grid(-1, 1, 40000) end, rsample = true,
  },
  ["SquashedNormal between bounds"] = {
    params = function() return { leaf { 0.3, -0.2 }, leaf { 0.5, 0.4 } } end,
    make = function(mean, std)
      return dist.SquashedNormal(mean, std, { low = -3, high = peri.tensor({ 0.5, 0.5 }, "f64") })
    end,
    values = function() return grid(-3, 0.5, 40000) end, rsample = true,
  },
  Beta = {
    params = function() return { leaf { 2.5, 3 }, leaf { 4, 2.25 } } end,
    make = function(alpha, beta) return dist.Beta(alpha, beta) end,
    values = function() return grid(0, 1, 20000) end,
  },
  ["Beta between bounds"] = {
    params = function() return { leaf { 2.5, 3 }, leaf(3) } end,
    make = function(alpha, beta) return dist.Beta(alpha, beta, { low = -2, high = 2 }) end,
    values = function() return grid(-2, 2, 20000) end,
  },
  Mixture = {
    params = function()
      return { leaf { { 0.2, -0.5 }, { 1, 0.3 } }, leaf { { -1, 2 }, { 0.5, 0 } }, leaf { { 0, -0.3 }, { -0.5, 0.2 } } }
    end,
    make = function(logits, mean, log_std) return dist.Mixture(logits, dist.Normal(mean, { log_std = log_std })) end,
    values = function() return grid(-12, 12, 4000) end,
  },
  ["Mixture of choices"] = {
    params = function() return { leaf { { 0.2, -0.5 }, { 1, 0.3 } }, leaf { { { 1, 0, 2 }, { 0, 0, 1 } }, { { 3, 1, 0 }, { 0, 1, 0 } } } } end,
    make = function(logits, heads) return dist.Mixture(logits, dist.Categorical(heads)) end,
    values = function() return ids { { 0 }, { 1 }, { 2 } }, 1 end, numbers = false,
  },
}

local function made(family, moved)
  local params = family.params()
  if moved then
    for i, p in ipairs(params) do params[i] = p:detach():mul(0.6):add(0.33):requires_grad_() end
  end
  return family.make(table.unpack(params)), params
end

local function near(got, want, tolerance, what)
  lu.assertEquals(got.shape, want.shape, what)
  got, want = got:to "f64", want:to "f64"
  local off = peri.where(got:eq(want), 0, got:sub(want)):abs():max():item() -- -inf is -inf
  lu.assertTrue(off <= tolerance, ("%s: %g off"):format(what, off))
end

-- Has the family this method? One that it has not is refused by its name, with a reason.
local function has(d, name, what)
  local ok, out = pcall(d[name], d)
  if ok then return true end
  lu.assertTrue(out:find("dist%.%a+ has no " .. name .. ": .") ~= nil, what .. ": " .. out)
  return false
end

local H = 1e-5
-- Central differences of a sum against the gradient of every parameter.
local function check_gradient(params, f, what)
  local grads = peri.grad(f(), params)
  for k, p in ipairs(params) do
    local view = p:detach():reshape { p:numel() }
    local got = grads[k] and grads[k]:reshape { p:numel() }:tolist() or {}
    for i = 1, p:numel() do
      local v = view:at(i)
      view:set(i, v + H)
      local up = f():item()
      view:set(i, v - H)
      local down = f():item()
      view:set(i, v)
      local want = (up - down) / (2 * H)
      lu.assertTrue(math.abs((got[i] or 0) - want) <= 1e-7 + 1e-6 * math.abs(want),
        ("%s: parameter %d [%d] is %s, finite difference %.10g"):format(what, k, i, tostring(got[i]), want))
    end
  end
end

TestDist = {}
for name, family in pairs(families) do
  local function law(text, fn) TestDist[("test_%s: %s"):format(name, text)] = function() fn() end end

  law("probabilities add up to one", function()
    local d = made(family)
    local x, weight = family.values()
    near(d:log_prob(x):exp():sum(1):mul(weight), peri.ones({ 2 }, "f64"), 2e-7, "sum")
  end)

  law("the entropy is the mean of -log p", function()
    local d = made(family)
    if not has(d, "entropy", name) then return end
    local x, weight = family.values()
    local logp = d:log_prob(x)
    local p = logp:exp()
    near(d:entropy(), peri.where(p:gt(0), p:mul(logp), 0):sum(1):mul(-weight), 2e-6, "entropy")
    local one = x:select(1, 1)
    local both, entropy = d:evaluate(one)
    near(both, d:log_prob(one), 0, "log_prob of evaluate")
    near(entropy, d:entropy(), 1e-15, "entropy of evaluate")
    local _, again = d:evaluate(x)
    near(again, d:entropy(), 1e-15, "entropy of evaluate of many values")
  end)

  law("mean and mode are those of the probabilities", function()
    local d = made(family)
    local x, weight = family.values()
    local p = d:log_prob(x):exp()
    if has(d, "mean", name) then near(d:mean(), p:mul(x):sum(1):mul(weight), 1e-5, "mean") end
    if has(d, "mode", name) then
      local best = d:log_prob(d:mode())
      near(best:maximum(d:log_prob(x):max(1)), best, 1e-6, "mode")
    end
    lu.assertEquals(d:deterministic().shape, d:sample().shape)
    lu.assertTrue(d:log_prob(d:deterministic()):isfinite():all():item())
  end)

  law("gradients are those of finite differences", function()
    local d, params = made(family)
    peri.seed(4)
    local x = d:sample(3)
    local w = peri.tensor({ { 0.3, -1 }, { 0.7, 2 }, { -0.2, 1.1 } }, "f64")
    check_gradient(params, function() return family.make(table.unpack(params)):log_prob(x):mul(w):sum() end, "log_prob")
    if has(d, "entropy", name) then
      check_gradient(params, function()
        return family.make(table.unpack(params)):entropy():mul(w:select(1, 2)):sum()
      end, "entropy")
      check_gradient(params, function()
        local logp, entropy = family.make(table.unpack(params)):evaluate(x:select(1, 1))
        return logp:mul(w:select(1, 1)):add(entropy:mul(w:select(1, 2))):sum()
      end, "evaluate")
    end
    if family.numbers ~= false and name ~= "Bernoulli" then
      local at = x:clone():requires_grad_()
      check_gradient({ at }, function() return d:log_prob(at):mul(w):sum() end, "value")
    end
  end)

  law("draws come of the generator alone, have no gradient and the moments of the probabilities", function()
    local d = made(family)
    peri.seed(9)
    local first, second = d:sample(), d:sample()
    peri.seed(9)
    lu.assertEquals(d:sample():tolist(), first:tolist())
    lu.assertEquals(d:sample():tolist(), second:tolist())
    lu.assertFalse(first.requires_grad)
    local n = 40000
    local draws = d:sample(n)
    local x, weight = family.values()
    local p = d:log_prob(x):exp():mul(weight)
    lu.assertTrue(d:log_prob(draws):isfinite():all():item())
    if family.numbers == false then
      for i = 1, x:size(1) do
        local share = draws:eq(x:select(1, i))
        if share.ndim == 3 then share = share:all(-1) end
        near(share:to("f64"):mean(1), p:select(1, i), 5 * 0.5 / 200, "share of value " .. i)
      end
      return
    end
    for power = 1, 2 do
      local mean = p:mul(x:pow(power)):sum(1)
      local spread = p:mul(x:pow(2 * power)):sum(1):sub(mean:square()):sqrt():max():item()
      near(draws:pow(power):mean(1), mean, 5 * spread / 200, "moment " .. power)
    end
  end)

  law("an act is a draw with the bits of its log-probability", function()
    for _, dtype in ipairs { "f64", "f32" } do
      local params = family.params()
      for k, p in ipairs(params) do params[k] = p:detach():to(dtype) end
      if name == "SquashedNormal between bounds" and dtype == "f32" then return end -- a bound is of f64
      local d = family.make(table.unpack(params))
      peri.seed(6)
      local x, logp, before = d:act()
      peri.seed(6)
      lu.assertEquals(d:sample():bytes(), x:bytes())
      lu.assertEquals(d:log_prob(x, before):bytes(), logp:bytes())
      lu.assertFalse(logp.requires_grad)
    end
  end)

  law("reparametrised draws are the draws, with the gradient of how they move", function()
    local d, params = made(family)
    if not family.rsample then
      lu.assertErrorMsgContains(d.name .. " has no rsample: ", d.rsample, d)
      return
    end
    peri.seed(2)
    local plain = d:sample(4)
    peri.seed(2)
    near(d:rsample(4), plain, 0, "the same draws")
    check_gradient(params, function()
      peri.seed(2)
      return family.make(table.unpack(params)):rsample(4):sin():sum()
    end, "rsample")
    if d._squashes then -- SAC's loss: log-probabilities of draws, through the draws
      check_gradient(params, function()
        peri.seed(2)
        local e = family.make(table.unpack(params))
        return e:log_prob(e:rsample(4)):sum()
      end, "log_prob of rsample")
    end
  end)

  law("the divergence is the mean of log p - log q, and 0 of the same", function()
    local p, q = made(family), made(family, true)
    if not p._kl then
      lu.assertErrorMsgContains("dist.kl: no closed form for Mixture and Mixture", dist.kl, p, q)
      return
    end
    local x, weight = family.values()
    local logp, logq = p:log_prob(x), q:log_prob(x)
    local each = peri.where(logp:gt(-math.huge), logp:exp():mul(logp:sub(logq)), 0)
    near(dist.kl(p, q), each:sum(1):mul(weight), 2e-6, "kl")
    near(dist.kl(p, p), peri.zeros({ 2 }, "f64"), 1e-12, "kl(p, p)")
    lu.assertTrue(dist.kl(p, q):gt(0):all():item())
  end)

  law("the divergence has gradients and second derivatives", function()
    local p, ps = made(family)
    if not p._kl then return end
    local q, qs = made(family, true)
    check_gradient(ps, function() return dist.kl(family.make(table.unpack(ps)), q):sum() end, "of p")
    check_gradient(qs, function() return dist.kl(p, family.make(table.unpack(qs))):sum() end, "of q")
    check_gradient(qs, function()
      local grads = peri.grad(dist.kl(p, family.make(table.unpack(qs))):sum(), qs, { create_graph = true })
      local sum
      for _, g in ipairs(grads) do
        local one = g:mul(peri.arange(g:numel()):to("f64"):add(1):sin():reshape(g.shape)):sum()
        sum = sum and sum:add(one) or one
      end
      return sum
    end, "second")
  end)

  law("a batch is its rows", function()
    local d, params = made(family)
    local x = d:sample(3)
    lu.assertEquals(d:log_prob(x).shape, { 3, 2 })
    local whole = d:log_prob(x)
    for i = 1, 3 do near(d:log_prob(x:select(1, i)), whole:select(1, i), 1e-15, "draw " .. i) end
    -- each parameter once more in front: (3, 2)
    local wide = {}
    for k, p in ipairs(params) do
      local shape = p.shape
      table.insert(shape, 1, 3)
      wide[k] = p.ndim == 0 and p or p:expand(shape):contiguous()
    end
    if name:find "masked" then return end -- its mask has two rows
    local big = family.make(table.unpack(wide))
    lu.assertEquals(big.batch, { 3, 2 })
    near(big:log_prob(x), whole, 1e-14, "batch of batches")
    lu.assertEquals(big:sample().shape, x.shape)
    if has(big, "entropy", name) then near(big:entropy():select(1, 2), d:entropy(), 1e-14, "entropy") end
  end)
end

function TestDist.test_every_family_has_its_laws()
  for name, make in pairs(dist) do
    if type(make) == "function" and name:find "^%u" then
      lu.assertNotNil(families[name], name)
      lu.assertEquals(made(families[name]).name, name)
    end
  end
end

-- Families of numbers: a row as one value has the sum of what its elements have.
function TestDist.test_a_row_as_one_value_has_the_sums()
  local m, s, l = leaf { { 0.5, 1, 2 }, { -1, 0, 0.3 } }, leaf { 0.2, -0.4, 0.1 }, leaf { { 1.5, 2, 3 }, { 4, 0.5, 1 } }
  local rows = {
    function(o) return dist.Bernoulli(m, o) end,
    function(o) return dist.Normal(m, { log_std = s, event = o.event }) end,
    function(o) return dist.SquashedNormal(m, { log_std = s, event = o.event }) end,
    function(o) return dist.Beta(l, 2, o) end,
  }
  for _, make in ipairs(rows) do
    local each, row = make {}, make { event = 1 }
    lu.assertEquals({ row.batch, row.event, each.batch }, { { 2 }, { 3 }, { 2, 3 } })
    local x, before = row:sample(5)
    near(row:log_prob(x, before), each:log_prob(x, before):sum(-1), 1e-14, row.name)
    if each._entropy then near(row:entropy(), each:entropy():sum(-1), 1e-14, row.name .. " entropy") end
    lu.assertEquals(row:deterministic().shape, { 2, 3 })
    near(dist.kl(row, make { event = 1 }), peri.zeros({ 2 }, "f64"), 1e-12, row.name .. " kl")
    lu.assertErrorMsgContains("event is 3, but the parameters have shape (2, 3)", make, { event = 3 })
    lu.assertErrorMsgContains("value of log_prob has shape (2, 2)", row.log_prob, row, peri.ones({ 2, 2 }, "f64"))
    lu.assertErrorMsgContains("value of log_prob has shape ()", row.log_prob, row, peri.ones({}, "f64"))
  end
end

-- ---- masks ----

function TestDist.test_masked_actions_have_no_probability_no_gradient_and_no_entropy()
  for _, dtype in ipairs { "f32", "f64" } do
    local logits = peri.tensor({ { 1, 50, 2 }, { 0, -3, 1 } }, dtype):requires_grad_()
    local mask = peri.tensor { { true, false, true }, { false, true, false } }
    local d = dist.Categorical(logits, { mask = mask })
    lu.assertEquals(d:log_prob(ids { 1, 0 }):exp():tolist(), { 0, 0 })
    local logp, entropy = d:evaluate(ids { 0, 1 })
    lu.assertEquals(logp:tolist()[2], 0)
    lu.assertEquals(entropy:tolist()[2], 0) -- one legal action: nothing is left to choose
    local grad = peri.grad(logp:sum():add(entropy:sum()), logits):tolist()
    lu.assertEquals({ grad[1][2], grad[2] }, { 0, { 0, 0, 0 } })
    lu.assertNotEquals(grad[1][1], 0)
    local draws = d:sample(2000)
    lu.assertFalse(draws:select(2, 1):eq(1):any():item())
    lu.assertTrue(draws:select(2, 2):eq(1):all():item())
    lu.assertEquals(d:mode():tolist(), { 2, 1 })
    local q = dist.Categorical(logits:detach():mul(2), { mask = mask })
    local kl = dist.kl(d, q)
    lu.assertTrue(kl:isfinite():all():item())
    lu.assertFalse(peri.grad(kl:sum(), logits):isnan():any():item())
    lu.assertEquals(dist.kl(dist.Categorical(logits), q):tolist(), { math.huge, math.huge })
    -- a masked row is the smaller distribution, bit for bit
    local small = dist.Categorical(peri.tensor({ { 1, 2 } }, dtype))
    near(entropy:narrow(1, 1, 1), small:entropy(), 1e-7, "entropy")
  end
end

function TestDist.test_a_row_without_a_legal_action_is_named()
  local logits = peri.zeros { 2, 2, 3 }
  local mask = peri.ones({ 2, 2, 3 }, "bool")
  mask:narrow(1, 2, 1):narrow(2, 1, 1):fill_(0)
  lu.assertErrorMsgContains("row 2 (from 0) of the mask has no legal action", dist.Categorical, logits, { mask = mask })
  lu.assertErrorMsgContains("of the mask, choice 2, has no legal action", dist.MultiCategorical, peri.zeros { 1, 4 }, { 2, 2 },
    { mask = peri.tensor { 1, 1, 0, 0 } })
  lu.assertErrorMsgContains("mask has shape (2), which does not broadcast to (2, 2, 3)", dist.Categorical, logits,
    { mask = peri.ones { 2 } })
  lu.assertErrorMsgContains("row 1 (from 0) of the logits holds NaN", function()
    dist.Categorical(peri.tensor { { 1.0, 2.0 }, { 0 / 0, 1.0 } }):log_prob(ids { 0, 0 })
  end)
end

function TestDist.test_masks_of_several_choices_reach_each()
  local d = dist.MultiCategorical(peri.zeros { 3, 5 }, { 2, 3 }, { mask = peri.tensor { 0, 1, 1, 0, 0 } })
  lu.assertEquals(d:sample(50):reshape({ -1, 2 }):tolist(), peri.tensor({ 1, 0 }, "i64"):expand({ 150, 2 }):tolist())
  lu.assertEquals(d:entropy():tolist(), { 0, 0, 0 })
end

-- ---- bounds ----

function TestDist.test_a_squashed_normal_is_stable_at_its_bounds()
  local mean = peri.tensor({ 30, -40, 0 }, "f32"):requires_grad_()
  local d = dist.SquashedNormal(mean, 0.5)
  local x, before = d:rsample()
  lu.assertEquals(x:narrow(1, 1, 2):tolist(), { 1, -1 }) -- f32 knows no other
  local logp = d:log_prob(x, before)
  lu.assertTrue(logp:isfinite():all():item())
  lu.assertTrue(peri.grad(logp:sum(), mean):isfinite():all():item())
  -- log N(u) - log(1 - tanh(u)^2) is about log N(u) + 2 |u| - 2 log 2 out there
  local normal = dist.Normal(mean, 0.5):log_prob(before)
  near(logp:narrow(1, 1, 2), normal:add(before:abs():mul(2)):sub(2 * math.log(2)):narrow(1, 1, 2), 1e-4, "far out")
  local alone = dist.SquashedNormal(peri.zeros { 2 }, 1)
  lu.assertTrue(alone:log_prob(peri.tensor { 1.0, -1.0 }):isfinite():all():item())
  lu.assertErrorMsgContains("outside of them", alone.log_prob, alone, peri.tensor { 1.5, 0 })
  lu.assertErrorMsgContains("outside of them", alone.log_prob, alone, peri.tensor { 0 / 0, 0 })
end

function TestDist.test_values_never_leave_their_bounds()
  peri.seed(3)
  for _, bounds in ipairs { { 0.1, 0.3 }, { -2, 2 }, { 1e-3, 1e6 } } do
    local o = { low = bounds[1], high = bounds[2] }
    local low, high = peri.tensor(bounds[1], "f32"):item(), peri.tensor(bounds[2], "f32"):item()
    for _, d in ipairs { dist.Beta(peri.full({ 500 }, 0.02), 0.02, o), dist.SquashedNormal(peri.zeros { 500 }, 20, o) } do
      local x, before = d:sample()
      lu.assertTrue(x:min():item() >= low and x:max():item() <= high, d.name)
      lu.assertTrue(d:log_prob(x):isfinite():all():item(), d.name)
      if before then lu.assertTrue(d:log_prob(x, before):isfinite():all():item()) end
    end
  end
end

-- ---- what is refused ----

function TestDist.test_wrong_parameters_are_named()
  local ones = peri.ones { 2 }
  for words, fn in pairs {
    ["expected one of std and log_std, got none"] = function() dist.Normal(ones) end,
    ["expected one of std and log_std, got both"] = function() dist.Normal(ones, 1, { log_std = 0 }) end,
    ["dist.Normal: std holds -1, expected more than 0"] = function() dist.Normal(ones, -1) end,
    ["dist.Normal: std has shape (3), which does not broadcast with (2)"] = function() dist.Normal(ones, peri.ones { 3 }) end,
    ["std is of dtype f64, the other parameters f32"] = function() dist.Normal(ones, peri.ones({ 2 }, "f64")) end,
    ["mean is of dtype i64, expected a float dtype"] = function() dist.Normal(peri.ones({ 2 }, "i64"), 1) end,
    ["dist.Beta: beta holds 0, expected more than 0"] = function() dist.Beta(ones, peri.tensor { 1.0, 0.0 }) end,
    ["low is 1 and high 1"] = function() dist.Beta(ones, ones, { low = 1 }) end,
    ["did you mean \"event\""] = function() dist.Bernoulli(ones, { evnt = 1 }) end,
    ["sizes add up to 3, logits have shape (2)"] = function() dist.MultiCategorical(ones, { 1, 2 }) end,
    ["size 2 is 0"] = function() dist.MultiCategorical(ones, { 2, 0 }) end,
    ["logits have shape (2), expected that of the components' batch (2, 1)"] = function()
      dist.Mixture(ones, dist.Normal(peri.ones { 2, 1 }, 1))
    end,
    ["expected a distribution"] = function() dist.Mixture(ones, ones) end,
    ["dist.kl: q is missing, expected a distribution"] = function() dist.kl(dist.Normal(0, 1)) end,
    ["no closed form for Normal and Beta: they are of two families"] = function()
      dist.kl(dist.Normal(0, 1), dist.Beta(1, 1))
    end,
    ["no closed form for Beta and Beta: their bounds differ"] = function()
      dist.kl(dist.Beta(1, 1), dist.Beta(1, 1, { high = 2 }))
    end,
    ["sample of -1, expected a number of draws"] = function() dist.Normal(0, 1):sample(-1) end,
    ["a value is neither 0 nor 1"] = function() dist.Bernoulli(ones):log_prob(peri.tensor { 1, 0.5 }) end,
    ["log_prob takes no second value"] = function() dist.Normal(ones, 1):log_prob(ones, ones) end,
    ["expected 0 to 1"] = function() dist.Categorical(ones):log_prob(peri.tensor(2, "i64")) end,
  } do
    lu.assertErrorMsgContains(words, fn)
  end
end

-- ---- torch and Stable-Baselines3 ----

local function read(path)
  local f = assert(io.open(path, "rb"))
  local text = f:read "a"
  f:close()
  return assert(peri.json.decode(text))
end

function TestDist.test_numbers_are_those_of_torch_and_sb3()
  local cases = read "tests/data/distributions.json"
  local function of(t, dtype) return peri.tensor(t.values, dtype or "f64"):reshape(t.shape) end
  local make = {
    Categorical = function(g) return dist.Categorical(g.logits), dist.Categorical(g.other) end,
    MultiCategorical = function(g)
      return dist.MultiCategorical(g.logits, { 2, 4, 1 }), dist.MultiCategorical(g.other, { 2, 4, 1 })
    end,
    Bernoulli = function(g) return dist.Bernoulli(g.logits, { event = 1 }), dist.Bernoulli(g.other, { event = 1 }) end,
    Normal = function(g)
      return dist.Normal(g.mean, { log_std = g.log_std, event = 1 }),
        dist.Normal(g.other_mean, { log_std = g.other_log_std, event = 1 })
    end,
    SquashedNormal = function(g) return dist.SquashedNormal(g.mean, { log_std = g.log_std, event = 1 }) end,
    ["SquashedNormal wide"] = function(g)
      return dist.SquashedNormal(g.mean, { log_std = g.log_std, event = 1, low = -1, high = 2 })
    end,
    Beta = function(g) return dist.Beta(g.alpha, g.beta, { event = 1 }), dist.Beta(g.other_alpha, g.other_beta, { event = 1 }) end,
    Mixture = function(g) return dist.Mixture(g.logits, dist.Normal(g.mean, { log_std = g.log_std, event = 1 })) end,
  }
  for name, case in pairs(cases) do
    for _, dtype in ipairs { "f64", "f32" } do
      local g = {}
      for key, t in pairs(case.given) do
        g[key] = of(t, key == "value" and name:find "Categorical" and "i64" or dtype)
      end
      local p, q = make[name](g)
      for what, t in pairs(case.want) do
        local got
        if what == "log_prob" then got = p:log_prob(g.value, g.before)
        elseif what == "kl" then got = dist.kl(p, q)
        else got = p[what](p) end
        near(got, of(t), dtype == "f64" and 1e-9 or 3e-5, ("%s %s %s"):format(name, what, dtype))
      end
      if g.before and dtype == "f64" then near(p:log_prob(g.value), of(case.want.log_prob), 1e-9, name .. " from the action") end
    end
  end
end

-- Few classes go side by side in vectors; a mask that leaves nothing out takes them row by row.
function TestDist.test_a_row_has_the_same_bits_with_and_without_a_full_mask_and_as_sample()
  peri.seed(1)
  for classes = 1, 6 do
    for _, rows in ipairs { 1, 3, 16, 17, 64, 65, 130, 500 } do
      for _, spread in ipairs { 0.01, 1, 60 } do
        local x = peri.randn { rows, classes } * spread
        if classes > 2 then x:select(1, rows):select(1, 2):fill_(-math.huge) end
        local action, drawn = x:sample()
        local other = peri.randint(0, classes, { rows })
        local g, h = peri.randn { rows }, peri.randn { rows }
        local function both(chosen, mask)
          local logp, entropy = x:categorical_logprob(chosen, mask)
          local dx = peri.categorical_logprob_backward(x, chosen, mask, g, h)
          return logp:bytes() .. entropy:bytes() .. dx:bytes(), logp:bytes()
        end
        local mask = peri.ones({ rows, classes }, "bool")
        local _, logp = both(action)
        lu.assertEquals(logp, drawn:bytes())
        lu.assertTrue(both(action) == both(action, mask))
        lu.assertTrue(both(other) == both(other, mask))
      end
    end
  end
end

os.exit(lu.LuaUnit.run())
