-- What privacy costs and what it bounds: the accountant against published values, numerical integration and exact
-- mechanisms; clipping of trajectories as a law; and an audit that catches noise which is too small.
local lu = require "luaunit"
local peri = require "perilune"
local rl, nn = peri.rl, peri.nn

local exp, log, sqrt, pi = math.exp, math.log, math.sqrt, math.pi

-- ---- the accountant ----

TestAccountant = {}

local function epsilon(noise, rate, steps, delta)
  return (rl.accountant():step({ noise = noise, rate = rate, steps = steps }):epsilon(delta))
end

function TestAccountant.test_the_golden_epsilon_of_opacus()
  lu.assertAlmostEquals(epsilon(1.5, 0.04, 2250, 1e-5), 7.32911117143, 1e-9)
end

-- The moment that the divergence is the logarithm of, summed on a grid: it shares no formula with the series.
local function integrated(order, sigma, q)
  local sum, h = 0, sigma / 300
  for z = -14 * sigma, 14 * sigma + order + 1, h do
    local ratio = 1 - q + q * exp((2 * z - 1) / (2 * sigma * sigma))
    sum = sum + exp(order * log(ratio) - z * z / (2 * sigma * sigma))
  end
  return log(sum * h / (sigma * sqrt(2 * pi))) / (order - 1)
end

function TestAccountant.test_divergences_are_those_of_a_numerical_integral()
  local rng = peri.rng(1)
  local cases = { { 1.1, 1.5, 0.04 }, { 12, 1, 0.01 }, { 1.1, 0.5, 0.9 }, { 5, 0.6, 0.001 }, { 10.9, 3, 0.5 } }
  for _ = 1, 25 do
    local order = 1 + exp(rng:uniform(-2.3, 2.7))
    if rng:uniform() < 0.4 then order = math.ceil(order) + 1 end
    cases[#cases + 1] = { order, exp(rng:uniform(-0.6, 1.5)), exp(rng:uniform(-6, -0.05)) }
  end
  for _, c in ipairs(cases) do
    local got, want = rl.rdp(c[1], { noise = c[2], rate = c[3] }), integrated(c[1], c[2], c[3])
    lu.assertTrue(math.abs(got - want) <= 1e-9 * want + 1e-11, ("order %.17g, noise %.17g, rate %.17g: %.12g, integral %.12g")
      :format(c[1], c[2], c[3], got, want))
  end
end

function TestAccountant.test_fractional_and_integer_orders_are_one_curve()
  for order = 2, 20 do
    for _, rate in ipairs { 0.001, 0.1, 0.7 } do
      local at = rl.rdp(order, { noise = 1.2, rate = rate })
      local beside = rl.rdp(order + 1e-7, { noise = 1.2, rate = rate })
      lu.assertAlmostEquals(at, beside, 1e-5 * at)
    end
  end
end

-- Loss distributions of one step of the sampled mechanism on a grid, convolved with themselves: what epsilon a number of
-- steps has at most by an account that knows no orders. Both directions: a trajectory is added, or taken away.
local WIDTH <const> = 2 ^ -6

local function losses(noise, rate, added)
  local p, step = {}, noise / 400
  for z = -11 * noise, 11 * noise + 1, step do
    local zero = exp(-z * z / (2 * noise * noise)) / (noise * sqrt(2 * pi)) * step
    local one = exp(-(z - 1) ^ 2 / (2 * noise * noise)) / (noise * sqrt(2 * pi)) * step
    local mixed = (1 - rate) * zero + rate * one
    local loss = log(mixed / zero)
    local at = math.floor((added and loss or -loss) / WIDTH + 0.5)
    p[at] = (p[at] or 0) + (added and mixed or zero)
  end
  return p
end

local function convolved(a, b)
  local c = {}
  for i, x in pairs(a) do
    if x > 1e-16 then
      for k, y in pairs(b) do c[i + k] = (c[i + k] or 0) + x * y end
    end
  end
  return c
end

local function exceeded(p, eps)
  local delta = 0
  for at, x in pairs(p) do
    if at * WIDTH > eps then delta = delta + x * (1 - exp(eps - at * WIDTH)) end
  end
  return delta
end

function TestAccountant.test_epsilon_is_above_the_exact_one_of_a_privacy_loss_distribution()
  for _, c in ipairs { { 1, 0.1, 2 }, { 2, 0.5, 1 } } do
    local eps, delta = epsilon(c[1], c[2], 2 ^ c[3], 1e-3), 0
    for _, added in ipairs { true, false } do
      local p = losses(c[1], c[2], added)
      for _ = 1, c[3] do p = convolved(p, p) end
      delta = math.max(delta, exceeded(p, eps - 2 ^ c[3] * WIDTH / 2))
      lu.assertTrue(exceeded(p, eps + 2 ^ c[3] * WIDTH / 2) <= 1e-3)
    end
    lu.assertTrue(delta > 1e-6, "the bound says something") -- it is not loose by orders
  end
end

-- Without sampling k steps are one Gaussian mechanism, whose delta is an integral (Balle and Wang 2018, section 2).
function TestAccountant.test_epsilon_is_above_the_exact_one_of_the_gaussian_mechanism()
  for _, noise in ipairs { 1, 3, 10 } do
    for _, steps in ipairs { 1, 10, 100 } do
      local eps, mu, delta = epsilon(noise, 1, steps, 1e-5), sqrt(steps) / noise, 0
      for z = eps / mu + mu / 2, mu + 12, 1e-3 do -- where the loss mu z - mu^2 / 2 is above epsilon
        delta = delta + exp(-(z - mu) ^ 2 / 2) / sqrt(2 * pi) * (1 - exp(eps - mu * z + mu * mu / 2)) * 1e-3
      end
      lu.assertTrue(delta <= 1e-5 and delta > 1e-8, ("noise %g, %d steps: delta %g"):format(noise, steps, delta))
    end
  end
end

function TestAccountant.test_more_noise_costs_less_and_more_of_anything_else_costs_more()
  local rng = peri.rng(2)
  for _ = 1, 4 do
    local noise, rate, steps = rng:uniform(0.6, 4), rng:uniform(0.001, 0.9), 1 + math.floor(rng:uniform(0, 500))
    local at = epsilon(noise, rate, steps, 1e-5)
    lu.assertTrue(epsilon(noise * 1.2, rate, steps, 1e-5) < at)
    lu.assertTrue(epsilon(noise, math.min(1, rate * 1.1), steps, 1e-5) > at)
    lu.assertTrue(epsilon(noise, rate, steps + 50, 1e-5) > at)
    lu.assertTrue(epsilon(noise, rate, steps, 1e-6) > at)
  end
end

function TestAccountant.test_steps_of_several_kinds_add_up_and_their_order_does_not_count()
  local a = rl.accountant():step({ noise = 1, rate = 0.1, steps = 20 }):step { noise = 2, rate = 0.5, steps = 3 }
  local b = rl.accountant():step { noise = 2, rate = 0.5 }
  for _ = 1, 20 do b:step { noise = 1, rate = 0.1 } end
  b:step { noise = 2, rate = 0.5, steps = 2 }
  lu.assertAlmostEquals(a:epsilon(1e-5), b:epsilon(1e-5), 1e-12)
  lu.assertTrue(a:epsilon(1e-5) > epsilon(1, 0.1, 20, 1e-5))
  local c = rl.accountant():set_state(peri.json.decode(peri.json.encode(a:state())))
  lu.assertEquals(c:epsilon(1e-5), a:epsilon(1e-5))
end

function TestAccountant.test_edges()
  lu.assertEquals(rl.accountant():epsilon(1e-5), 0)
  lu.assertEquals(epsilon(1, 0, 1000, 1e-5), 0)
  lu.assertEquals(epsilon(1, 0.5, 0, 1e-5), 0)
  lu.assertEquals(epsilon(0, 0.5, 1, 1e-5), math.huge)
  lu.assertAlmostEquals(rl.rdp(3, { noise = 2 }), 3 / 8, 1e-15)
  for _, bad in ipairs { -1, 0, 1, 2, 0 / 0, "x" } do
    lu.assertErrorMsgContains("delta", function () return rl.accountant():epsilon(bad) end)
  end
  lu.assertErrorMsgContains("rate is 1.5", function () rl.accountant():step { noise = 1, rate = 1.5 } end)
  lu.assertErrorMsgContains("noise is -1", function () rl.accountant():step { noise = -1 } end)
  lu.assertErrorMsgContains('did you mean "rate"', function () rl.accountant():step { noise = 1, ratee = 1 } end)
end

-- ---- the noise for a wished price ----

function TestAccountant.test_noise_from_epsilon_never_overshoots_and_is_not_much_too_large()
  local rng = peri.rng(3)
  for _ = 1, 10 do
    local want, delta = exp(rng:uniform(log(0.2), log(20))), 10 ^ rng:uniform(-8, -3)
    local rate, steps = exp(rng:uniform(log(0.002), 0)), 1 + math.floor(exp(rng:uniform(0, 7)))
    local noise = rl.noise_for { epsilon = want, delta = delta, rate = rate, steps = steps }
    local got = epsilon(noise, rate, steps, delta)
    lu.assertTrue(got <= want, ("epsilon %.17g wished, %.17g with noise %.17g, delta %g, rate %.17g, %d steps")
      :format(want, got, noise, delta, rate, steps))
    lu.assertTrue(epsilon(noise * 0.999, rate, steps, delta) > want)
  end
  lu.assertErrorMsgContains("no noise", rl.noise_for, { epsilon = 1e-4, delta = 1e-10, rate = 1, steps = 10 })
end

-- ---- gradients ----

TestPrivate = {}

local space = peri.env.make("CartPole-v1", { n = 1 })
local function learners(s)
  return nn.Copies(s, function ()
    return rl.ActorCritic { obs = space.obs_space, action = space.action_space, hidden = { 8 } }
  end, { seeds = peri.arange(s):add(5):tolist() })
end

local function objective(net, obs, action)
  return net:policy(obs):log_prob(action):sum(-1) + net:value(obs):square():mean(-1)
end

function TestPrivate.test_gradients_of_trajectories_are_those_of_each_alone()
  peri.seed(1)
  local s, n, steps = 3, 4, 6
  local copies = learners(s)
  local before = copies:parameters()[1]
  local obs, action = peri.randn { s * n, steps, 4 }, peri.randint(0, 2, { s * n, steps })
  local grads, found = rl.trajectory_gradients(copies, n, function (net) return objective(net, obs, action) end)
  lu.assertTrue(rawequal(copies:parameters()[1], before)) -- the net is what it was
  lu.assertNil(before.grad)
  for i = 1, s do
    local one = copies:single(i)
    local want = peri.per_sample_grad(function (o, a) return objective(one, o, a) end, one,
      obs:narrow(1, (i - 1) * n + 1, n), action:narrow(1, (i - 1) * n + 1, n))
    for k, w in ipairs(want) do
      local g = grads[k]:narrow(1, (i - 1) * n + 1, n)
      lu.assertTrue((g - w:reshape(g.shape)):abs():max():item() <= 1e-5 * (1 + w:abs():max():item()))
    end
    local all = objective(one, obs:narrow(1, (i - 1) * n + 1, n), action:narrow(1, (i - 1) * n + 1, n))
    lu.assertTrue((found:narrow(1, (i - 1) * n + 1, n) - all):abs():max():item() < 1e-4)
  end
end

function TestPrivate.test_a_loss_that_raises_leaves_the_net_as_it_was()
  local copies = learners(2)
  local before = copies:parameters()
  lu.assertErrorMsgContains("oh", rl.trajectory_gradients, copies, 3, function () error "oh" end)
  lu.assertErrorMsgContains("loss gave ()", rl.trajectory_gradients, copies, 3,
    function (net) return net:value(peri.zeros { 6, 1, 4 }):sum() end)
  for k, p in ipairs(copies:parameters()) do lu.assertTrue(rawequal(p, before[k])) end
  lu.assertErrorMsgContains("expected nn.Copies", rl.trajectory_gradients, nn.Linear(2, 2), 3, function () end)
end

-- Whatever the sizes, scales and dtype of gradients: no clipped trajectory is longer than the clip, directions stay, and
-- what was short enough is untouched.
function TestPrivate.test_norms_of_clipped_trajectories_never_exceed_the_clip()
  peri.seed(2)
  local rng = peri.rng(4)
  for round = 1, 30 do
    local n, clip = 1 + round % 9, exp(rng:uniform(-12, 8))
    local grads = {}
    for k = 1, 1 + round % 4 do
      local scale = peri.rand({ n, 1, 1 }):sub(0.5):mul(40):exp() * clip
      grads[k] = (peri.randn { n, 1 + round % 7, 3 * k } * scale):to(round % 5 == 0 and "f64" or "f32")
    end
    if round % 6 == 0 then grads[1]:narrow(1, 1, 1):fill_(0) end
    local clipped, norms = rl.clip_trajectories(grads, { clip = clip })
    local after = rl.trajectory_norms(clipped)
    lu.assertTrue(after:le(clip):all():item(), ("round %d: %.17g over %.17g"):format(round, after:max():item(), clip))
    local kept = norms:le(clip)
    for k, g in ipairs(grads) do
      for i = 1, n do
        local a, b = g:select(1, i):to "f64", clipped[k]:select(1, i):to "f64"
        if kept:select(1, i):item() then lu.assertTrue(a:eq(b):all():item())
        else lu.assertTrue((a * (clip / norms:select(1, i):item()) - b):abs():max():item() <= 2e-6 * clip) end
      end
    end
  end
end

function TestPrivate.test_what_one_trajectory_adds_moves_the_sum_by_at_most_the_clip()
  peri.seed(3)
  local grads = { peri.randn { 9, 4 } * 3, peri.randn { 9, 2, 2 } * 3 }
  local function sum_of(n)
    local some = {}
    for k, g in ipairs(grads) do some[k] = g:narrow(1, 1, n) end
    local out = rl.privatise(some, { clip = 0.7, expected = 5 })
    return peri.cat({ out[1]:flatten(), out[2]:flatten() }, 1) * 5
  end
  for n = 2, 9 do lu.assertTrue((sum_of(n) - sum_of(n - 1)):norm():item() <= 0.7 + 1e-6) end
end

function TestPrivate.test_noise_has_its_deviation_whatever_came()
  peri.seed(4)
  for _, n in ipairs { 1, 10 } do -- what divides is what was expected
    local out, norms = rl.privatise({ peri.zeros { 2 * n, 20000 } }, { clip = 0.5, noise = 3, expected = 4, seeds = 2 })
    lu.assertEquals(out[1].shape, { 2, 20000 })
    lu.assertAlmostEquals(out[1]:std():item(), 3 * 0.5 / 4, 0.006)
    lu.assertTrue((out[1]:select(1, 1) - out[1]:select(1, 2)):abs():max():item() > 0)
    lu.assertEquals(norms.shape, { 2 * n })
  end
end

function TestPrivate.test_what_cannot_be_bounded_is_refused()
  local bad = peri.ones { 3, 2 }
  bad:select(1, 2):fill_(math.huge)
  lu.assertErrorMsgContains("trajectory 2 is not finite", rl.privatise, { bad }, { clip = 1, expected = 3 })
  lu.assertErrorMsgContains("noise and no clip", rl.privatise, { peri.ones { 3, 2 } },
    { clip = math.huge, noise = 1, expected = 3 })
  lu.assertErrorMsgContains("expected is missing", rl.privatise, { peri.ones { 3, 2 } }, { clip = 1 })
  lu.assertErrorMsgContains("2 learners do not share 3", rl.privatise, { peri.ones { 3, 2 } },
    { clip = 1, expected = 3, seeds = 2 })
end

-- An audit (as Tramer et al. 2022): releases with and without one trajectory that gives all it may, and how well the best
-- threshold tells them apart. The least epsilon that this leaves is under what is claimed; where noise is divided by what
-- it must not be, as a real library once did, it is far above.
local function least_epsilon(noise, sloppy)
  local rows, delta, least = 20000, 1e-5, 0
  local function release(g)
    return rl.privatise({ peri.full({ rows, 1 }, g) }, { clip = 1, noise = noise / sloppy, expected = 1, seeds = rows })[1]
  end
  local with, without = release(7), release(0)
  for threshold = -2, 5, 0.25 do
    local hit = with:gt(threshold):to("f64"):mean():item()
    local wrong = without:gt(threshold):to("f64"):mean():item()
    local sure = 3 * sqrt(0.25 / rows) -- three deviations, on the safe side of both
    if hit - sure - delta > 0 then least = math.max(least, log((hit - sure - delta) / (wrong + sure))) end
  end
  return least
end

function TestPrivate.test_an_audit_finds_no_more_than_is_claimed_and_finds_noise_that_is_too_small()
  peri.seed(5)
  local claim = epsilon(2, 1, 1, 1e-5)
  local found = least_epsilon(2, 1)
  lu.assertTrue(found > 0.3 and found <= claim, ("found %g, claimed %g"):format(found, claim))
  lu.assertTrue(least_epsilon(2, 8) > claim)
end

os.exit(lu.LuaUnit.run())
