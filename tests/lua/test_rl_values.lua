-- Learning action values: exploration, targets, losses, target networks, noisy layers.
local lu = require "luaunit"
local peri = require "perilune"
local rl, nn = peri.rl, peri.nn

TestRlValues = {}

local function f32(t) return peri.tensor(t, "f32") end
local function flags(t) return peri.tensor(t):ne(0) end

-- How often each action is chosen in n calls, as shares; row of the batch.
local function shares(n, actions, row, choose)
  local count = {}
  for a = 1, actions do count[a] = 0 end
  for _ = 1, n do
    local a = choose():tolist()[row] + 1
    count[a] = count[a] + 1
  end
  for a = 1, actions do count[a] = count[a] / n end
  return count
end

-- ---- exploration ----

local q = f32 { { 1, 2, 3 }, { 5, 5, 3 } }
local mask = flags { { 1, 1, 0 }, { 0, 1, 1 } }

function TestRlValues.test_greedy_takes_the_first_of_the_best_legal_actions()
  lu.assertEquals(rl.greedy(q):tolist(), { 2, 0 })
  lu.assertEquals(rl.greedy(q, mask):tolist(), { 1, 1 })
end

function TestRlValues.test_epsilon_shares_out_among_legal_actions()
  peri.seed(3)
  local share = shares(4000, 3, 1, function () return rl.epsilon_greedy(q, 0.3) end)
  lu.assertAlmostEquals(share[3], 0.8, 0.03)
  lu.assertAlmostEquals(share[1], 0.1, 0.02)
  share = shares(4000, 3, 1, function () return rl.epsilon_greedy(q, 0.5, mask) end)
  lu.assertAlmostEquals(share[2], 0.75, 0.03)
  lu.assertEquals(share[3], 0)
  share = shares(2000, 3, 2, function () return rl.epsilon_greedy(q, f32 { 1, 0 }, mask) end)
  lu.assertEquals(share, { 0, 1, 0 })
end

function TestRlValues.test_boltzmann_draws_by_the_softmax_of_values()
  peri.seed(4)
  local share = shares(4000, 3, 1, function () return rl.boltzmann(q, 0.7) end)
  local p = q:div(0.7):softmax():tolist()[1]
  for a = 1, 3 do lu.assertAlmostEquals(share[a], p[a], 0.03) end
  lu.assertEquals(shares(500, 3, 1, function () return rl.boltzmann(q, 1, mask) end)[3], 0)
end

function TestRlValues.test_a_row_without_a_legal_action_is_named()
  local none = flags { { 1, 0, 0 }, { 0, 0, 0 } }
  for _, choose in ipairs { rl.greedy, function (x, m) return rl.epsilon_greedy(x, 0.1, m) end,
                            function (x, m) return rl.boltzmann(x, 1, m) end } do
    lu.assertErrorMsgContains("row 2 has no legal action", choose, q, none)
  end
  lu.assertErrorMsgContains("epsilon is 1.5", rl.epsilon_greedy, q, 1.5)
  lu.assertErrorMsgContains("temperature is 0", rl.boltzmann, q, 0)
end

-- ---- targets ----

function TestRlValues.test_only_termination_cuts_the_value_behind()
  local y = rl.q_target { reward = f32 { 1, 1 }, discount = f32 { 0.5, 0.25 }, terminated = flags { 0, 1 }, next_q = q }
  lu.assertEquals(y:tolist(), { 2.5, 1 })
  lu.assertEquals(rl.q_target { reward = f32 { 1, 1 }, discount = 0.5, terminated = flags { 0, 0 }, next_q = q,
                                mask = mask }:tolist(), { 2, 3.5 })
end

-- Two states, one action with noise: the maximum overestimates, the double target does not (van Hasselt 2010).
function TestRlValues.test_the_double_target_does_not_overestimate()
  peri.seed(5)
  local n = 20000
  local first, second = peri.randn { n, 4 }, peri.randn { n, 4 } -- of values that are all 0
  local args = { reward = peri.zeros { n }, discount = 1, terminated = peri.zeros { n }, next_q = first }
  lu.assertAlmostEquals(rl.q_target(args):mean():item(), 1.03, 0.05) -- the mean of the greatest of four
  args.online_next_q = second
  lu.assertAlmostEquals(rl.q_target(args):mean():item(), 0, 0.03)
end

function TestRlValues.test_no_gradient_reaches_a_target()
  local next_q, x = q:clone():requires_grad_(), q:clone():requires_grad_()
  local y = rl.q_target { reward = f32 { 1, 1 }, discount = 0.9, terminated = flags { 0, 0 }, next_q = next_q }
  lu.assertFalse(y.requires_grad)
  local loss, err = rl.q_loss(x, peri.tensor { 0, 2 }, next_q:max(-1))
  loss:backward()
  lu.assertNil(next_q.grad)
  lu.assertEquals(err:tolist(), { 2, 2 })
  lu.assertEquals(x.grad:tolist(), { { -0.5, 0, 0 }, { 0, 0, -0.5 } })
end

function TestRlValues.test_weights_and_the_form_of_the_loss()
  local action, y = peri.tensor { 0, 2 }, f32 { 3, 3.5 }
  lu.assertAlmostEquals(rl.q_loss(q, action, y):item(), (1.5 + 0.125) / 2, 1e-6)
  lu.assertAlmostEquals(rl.q_loss(q, action, y, { loss = "mse" }):item(), (4 + 0.25) / 2, 1e-6)
  lu.assertAlmostEquals(rl.q_loss(q, action, y, { weights = f32 { 0, 2 } }):item(), 0.125, 1e-6)
end

-- ---- distributions ----

function TestRlValues.test_projection_keeps_mass_and_within_the_bounds_the_mean()
  peri.seed(6)
  local p = peri.randn { 50, 7 }:softmax()
  local reward = peri.rand { 50 } - 0.5
  local args = { reward = reward, discount = 0.5, terminated = peri.zeros { 50 }, next_probs = p, low = -3, high = 3 }
  local y = rl.project(args)
  local atoms = peri.arange(7):to "f32" - 3
  lu.assertTrue((y:sum(-1) - 1):abs():max():item() < 1e-5)
  lu.assertTrue((y * atoms):sum(-1):sub(reward + 0.5 * (p * atoms):sum(-1)):abs():max():item() < 1e-5)
end

-- Bellemare et al. 2017, algorithm 1, atom by atom.
function TestRlValues.test_projection_is_algorithm_1()
  peri.seed(7)
  local low, high, atoms = -2, 2, 5
  local p = peri.randn { 20, atoms }:softmax():tolist()
  local reward, ends = (peri.randn { 20 } * 2):tolist(), peri.randint(0, 2, { 20 }):tolist()
  local y = rl.project { reward = f32(reward), discount = 0.9, terminated = peri.tensor(ends), next_probs = f32(p),
                         low = low, high = high }:tolist()
  for n = 1, 20 do
    local m = { 0, 0, 0, 0, 0 }
    for j = 0, atoms - 1 do
      local landed = math.max(low, math.min(high, reward[n] + (1 - ends[n]) * 0.9 * (low + j)))
      local b = landed - low
      local l, u = math.floor(b), math.ceil(b)
      if l == u then m[l + 1] = m[l + 1] + p[n][j + 1]
      else
        m[l + 1] = m[l + 1] + p[n][j + 1] * (u - b)
        m[u + 1] = m[u + 1] + p[n][j + 1] * (b - l)
      end
    end
    for j = 1, atoms do lu.assertAlmostEquals(y[n][j], m[j], 1e-5) end
  end
end

function TestRlValues.test_the_c51_loss_is_the_cross_entropy_of_the_chosen_action()
  peri.seed(8)
  local logits = peri.randn { 3, 2, 4 }:requires_grad_()
  local target = peri.randn { 3, 4 }:softmax()
  local loss, each = rl.c51_loss(logits, peri.tensor { 0, 1, 1 }, target, f32 { 1, 0, 2 })
  local logp = logits:log_softmax()
  local want = 0
  for n, a in ipairs { 1, 2, 2 } do
    local e = -(logp:select(1, n):select(1, a) * target:select(1, n)):sum():item()
    lu.assertAlmostEquals(each:tolist()[n], e, 1e-5)
    want = want + e * ({ 1, 0, 2 })[n] / 3
  end
  lu.assertAlmostEquals(loss:item(), want, 1e-5)
  lu.assertAlmostEquals(rl.expected_return(f32 { { 0, 0, 0 } }, -1, 3):item(), 1, 1e-6)
end

-- ---- target networks ----

local function weight(net) return net.weight:tolist()[1][1] end
local function set(net, v) peri.no_grad(function () net.weight:fill_(v) end) end

function TestRlValues.test_a_hard_update_comes_every_period_steps()
  local net = nn.Linear(1, 1, { bias = false })
  set(net, 1)
  local target = rl.target(net, { period = 3 })
  set(net, 2)
  local moved = {}
  for i = 1, 6 do moved[i] = target:update() end
  lu.assertEquals(moved, { false, false, true, false, false, true })
  lu.assertEquals(weight(target.networks[1]), 2)
  lu.assertFalse(target(f32 { { 1 } }).requires_grad)
end

function TestRlValues.test_a_soft_update_goes_tau_of_the_way()
  local net = nn.Linear(1, 1, { bias = false })
  set(net, 0)
  local target = rl.target(net, { tau = 0.25 })
  set(net, 1)
  target:update()
  target:update()
  lu.assertAlmostEquals(weight(target.networks[1]), 1 - 0.75 ^ 2, 1e-6)
end

function TestRlValues.test_several_targets_are_the_last_ones_and_speak_as_their_mean()
  local net = nn.Linear(1, 1, { bias = false })
  set(net, 0)
  local target = rl.target(net, { copies = 3 })
  for v = 1, 5 do
    set(net, v)
    target:update()
  end
  lu.assertAlmostEquals(target(f32 { { 1 } }):item(), 4, 1e-6) -- of 3, 4, 5
end

function TestRlValues.test_the_period_follows_the_error()
  local net = nn.Linear(1, 1)
  local target = rl.target(net, { period = 100, adapt = 0.5, period_min = 5 })
  local function period(rate) -- of an error that falls at a rate from 1
    for step = 1, 1000 do
      if target:update(math.exp(-rate * step)) then return step end
    end
  end
  local fast, slow = period(1), period(0.05)
  lu.assertTrue(fast >= 5 and fast < slow and slow < 60, ("%d, %d"):format(fast, slow))
  lu.assertEquals(period(0), 100)
  lu.assertErrorMsgContains("mean absolute error", target.update, target)
  lu.assertErrorMsgContains("error", target.update, target, 0 / 0)
  lu.assertErrorMsgContains("period_min 7 is above period 3", rl.target, net, { period = 3, period_min = 7 })
  lu.assertErrorMsgContains("hard", rl.target, net, { tau = 0.5, adapt = 0.5 })
end

function TestRlValues.test_a_target_goes_on_where_it_was_saved()
  peri.seed(9)
  local net = nn.Linear(2, 1)
  local opts = { period = 50, copies = 2, adapt = 0.3, period_min = 2 }
  local one = rl.target(net, opts)
  local function step(target, i)
    peri.no_grad(function () net.weight:fill_(i) end)
    return target:update(1 / (1 + i % 7))
  end
  for i = 1, 20 do step(one, i) end
  local two = rl.target(net, opts)
  two:load_state_dict(one:state_dict())
  for i = 21, 60 do
    local weights = net.weight:clone()
    local a = step(one, i)
    peri.no_grad(function () net.weight:copy_(weights) end)
    lu.assertEquals(step(two, i), a)
    lu.assertEquals(two(f32 { { 1, 1 } }):item(), one(f32 { { 1, 1 } }):item())
  end
  local tensors, plain = one:state_dict()
  lu.assertErrorMsgContains('unexpected "2.weight"', function ()
    rl.target(net, {}):load_state_dict({ ["1.weight"] = net.weight, ["2.weight"] = net.weight }, plain)
  end)
  tensors["1.weight"] = nil
  lu.assertErrorMsgContains("missing weight", two.load_state_dict, two, tensors, plain)
end

-- ---- noisy layers ----

function TestRlValues.test_a_noisy_layer_is_linear_on_average_and_in_evaluation()
  peri.seed(10)
  local layer = nn.NoisyLinear(3, 2)
  local x = f32 { { 1, -2, 0.5 }, { 0, 1, 3 } }
  local mean = x:linear(layer.weight, layer.bias)
  local sum, squares, n = peri.zeros { 2, 2 }, peri.zeros { 2, 2 }, 4000
  peri.no_grad(function ()
    for _ = 1, n do
      local y = layer(x) - mean
      sum, squares = sum + y, squares + y * y
    end
  end)
  lu.assertTrue((sum / n):abs():max():item() < 0.1)
  -- E f(e)^2 = E |e| = sqrt(2 / pi): a variance of sigma^2 (sum x^2 c^2 + c), and c is that
  local c, sigma = math.sqrt(2 / math.pi), 0.5 / math.sqrt(3)
  local want = sigma ^ 2 * (c ^ 2 * 5.25 + c)
  lu.assertAlmostEquals((squares / n):select(1, 1):mean():item(), want, 0.1 * want)
  layer:eval()
  lu.assertEquals(layer(x):tolist(), mean:tolist())
end

function TestRlValues.test_noise_is_one_for_all_rows_and_its_size_is_learned()
  peri.seed(11)
  local layer = nn.NoisyLinear(3, 2)
  local x = peri.ones { 4, 3 }
  local y = layer(x)
  lu.assertEquals(y:tolist()[1], y:tolist()[4])
  lu.assertNotEquals(layer(x):tolist()[1], y:tolist()[1])
  y:square():sum():backward()
  lu.assertTrue(layer.weight_sigma.grad:abs():sum():item() > 0)
  lu.assertTrue(layer.bias_sigma.grad:abs():sum():item() > 0)
end
