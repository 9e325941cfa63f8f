-- One task after the other: springs against closed forms, measures of forgetting by hand.
local lu = require "luaunit"
local peri = require "perilune"
local nn, loss, metrics = peri.nn, peri.loss, peri.tasks.metrics

TestElastic = {}

local function near(got, want, margin)
  lu.assertEquals(got.shape, want.shape)
  lu.assertTrue((got - want):abs():max():item() <= (margin or 1e-9))
end

-- Logistic regression: -log p(y|x) has the gradient (p - y) x, sample by sample.
function TestElastic.test_the_diagonal_is_the_mean_of_squares_of_each_samples_gradient()
  peri.seed(1)
  local w, b = peri.randn({ 3 }, "f64"):requires_grad_(), peri.randn({ 1 }, "f64"):requires_grad_()
  local x, y = peri.randn({ 10, 3 }, "f64"), peri.rand({ 10 }, "f64"):gt(0.5):to "f64"
  local function each(at, want)
    local z = at:matmul(w) + b
    return z:exp():add(1):log() - z * want
  end
  local F = loss.fisher_diagonal(each, { w, b }, { { x, y } })
  local g = (x:matmul(w:detach()) + b:detach()):sigmoid() - y -- (10)
  near(F[1], (g:unsqueeze(2) * x):square():mean(1))
  near(F[2], g:square():mean(1):reshape { 1 })
  local cut = loss.fisher_diagonal(each, { w, b }, { { x:narrow(1, 1, 7), y:narrow(1, 1, 7) },
    { x:narrow(1, 8, 3), y:narrow(1, 8, 3) } })
  for k = 1, 2 do near(cut[k], F[k]) end -- however it is cut
  lu.assertNil(w.grad)
  lu.assertTrue((F[1] - (g:unsqueeze(2) * x):mean(1):square()):abs():max():item() > 1e-2) -- not that of a batch
end

-- Of softmax(x W + b) it is E[p (1 - p) x^2].
function TestElastic.test_of_classes_it_is_the_fisher_information()
  peri.seed(2)
  for _, inputs in ipairs { { 4 }, { 1, 3 }, { 2, 2 } } do
    local net, x = nn.Linear(2, 3), peri.randn { 4, 2 }
    local p, batches, at = net(x):softmax(-1):detach(), {}, 1
    for i, n in ipairs(inputs) do
      batches[i], at = x:narrow(1, at, n), at + n
    end
    local F = loss.fisher_of_classes(net, net, batches)
    near(F[2], (p * (1 - p)):mean(1), 1e-6)
    near(F[1], (p * (1 - p)):transpose():matmul(x:square()) / 4, 1e-6)
  end
end

-- And what is drawn from the net comes to it.
function TestElastic.test_answers_that_the_net_draws_come_to_the_fisher_information()
  peri.seed(5)
  local net, x = nn.MLP { 2, 4, 3 }, peri.randn { 8, 2 }
  local function own(at)
    local logits = net(at)
    return logits:cross_entropy(logits:detach():categorical():squeeze(-1), { reduction = "none" })
  end
  local many = {}
  for i = 1, 400 do many[i] = { x } end
  local F = loss.fisher_of_classes(net, net, { x })
  for k, f in ipairs(loss.fisher_diagonal(own, net, many)) do
    lu.assertTrue((f - F[k]):abs():max():item() < 0.06 * F[k]:max():item())
  end
end

local nets = {
  mlp = function () return nn.MLP { 3, 5, 2 } end,
  norm = function () return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)) end,
  recurrent = function ()
    local net = nn.class("Net", function (self) self.cell, self.out = nn.GRU(3, 4), nn.Linear(4, 2) end)
    function net:forward(x) return self.out((self.cell(x:unsqueeze(2):expand { #x, 2, 3 })):mean(2)) end
    return net()
  end,
}

function TestElastic.test_of_every_kind_of_layer_it_is_what_a_loop_over_samples_gives()
  for name, make in pairs(nets) do
    peri.seed(3)
    local net, x, y = make(), peri.randn { 5, 3 }, peri.randint(0, 2, { 5 })
    local function each(at, want) return net(at):cross_entropy(want, { reduction = "none" }) end
    local F, sums = loss.fisher_diagonal(each, net, { { x, y } }), {}
    for i = 1, 5 do
      local grads = peri.grad(each(x:narrow(1, i, 1), y:narrow(1, i, 1)):sum(), net:parameters())
      for k, g in ipairs(grads) do sums[k] = (sums[k] or 0) + g:square() / 5 end
    end
    for k, f in ipairs(F) do lu.assertTrue((f - sums[k]):abs():max():item() < 1e-6, name) end
  end
end

function TestElastic.test_the_pull_is_that_of_springs()
  for name, make in pairs(nets) do
    peri.seed(4)
    local net = make()
    local anchors, want = {}, {}
    lu.assertEquals(loss.elastic(net, anchors):item(), 0)
    for i = 1, 3 do
      local fisher = {}
      for k, p in ipairs(net:parameters()) do fisher[k] = peri.rand(p.shape) end
      anchors[i] = { values = net:copy(), fisher = fisher }
      lu.assertTrue(i > 1 or loss.elastic(net, anchors):item() == 0) -- at rest where it was
      peri.no_grad(function () for _, p in ipairs(net:parameters()) do p:add_(peri.randn(p.shape)) end end)
    end
    local value, total = loss.elastic(net, anchors, { weight = 3 }), 0
    value:backward()
    for k, p in ipairs(net:parameters()) do
      for _, anchor in ipairs(anchors) do
        local d = (p - anchor.values:parameters()[k]):detach()
        want[k] = (want[k] or 0) + anchor.fisher[k] * d * 3
        total = total + (anchor.fisher[k] * d:square()):sum():item() * 1.5
      end
      lu.assertTrue((p.grad - want[k]):abs():max():item() < 1e-4, name)
    end
    lu.assertAlmostEquals(value:item() / total, 1, 1e-5)
    for _, anchor in ipairs(anchors) do for _, p in ipairs(anchor.values:parameters()) do lu.assertNil(p.grad) end end
  end
end

-- Of two quadratic tasks in one weight the point of rest is the mean, weighed by their curvatures: here F is exact.
function TestElastic.test_two_quadratic_tasks_settle_between_them()
  local w = peri.tensor({ 2 }, "f64"):requires_grad_()
  local anchors = { { values = { peri.tensor({ 2 }, "f64") }, fisher = { peri.tensor({ 3 }, "f64") } } }
  local opt = peri.optim.SGD({ w }, { lr = 0.1 })
  for _ = 1, 300 do
    ((w - 5):square():sum() * 0.5 + loss.elastic({ w }, anchors)):backward()
    opt:step():zero_grad()
  end
  lu.assertAlmostEquals(w:detach():item(), (3 * 2 + 1 * 5) / 4, 1e-9)
end

function TestElastic.test_frozen_weights_have_nothing_and_misuse_is_named()
  local net, x = nn.MLP { 2, 3, 2 }, peri.randn { 4, 2 }
  local function each(at) return net(at):square():sum(2) end
  net.layers[1].weight.requires_grad = false
  local F = loss.fisher_diagonal(each, net, { { x } })
  lu.assertEquals(F[1]:abs():max():item(), 0)
  lu.assertTrue(F[#F]:max():item() > 0)
  local function raises(message, fn, ...) lu.assertErrorMsgContains(message, fn, ...) end
  raises("loss.fisher_diagonal: there are no batches", loss.fisher_diagonal, each, net, {})
  raises("batch 1 is a", loss.fisher_diagonal, each, net, { x })
  raises("expected a tensor of 4 losses", loss.fisher_diagonal, function () return 1 end, net, { { x } })
  raises("loss.fisher_of_classes: there are no inputs", loss.fisher_of_classes, net, net, {})
  raises("predict gave shape (1), expected logits (B, C)", loss.fisher_of_classes, each, net, { x })
  raises("anchor 1 has no fisher", loss.elastic, net, { { values = net } })
  raises("anchor 1 has 1 fisher for 4 parameters", loss.elastic, net, { { values = net, fisher = { x } } })
  raises("values 1 has shape (1, 2), the parameter (3, 2)", loss.elastic, net,
    { { values = nn.MLP { 2, 1, 2 }, fisher = F } })
  raises("weight is -1", loss.elastic, net, {}, { weight = -1 })
end

-- What is no anchor of this net is said, wherever it stands among others; never is it 0 springs.
function TestElastic.test_what_is_no_anchor_is_refused_and_never_silent()
  local net, other = nn.MLP { 2, 3, 2 }, nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
  local function fisher(value)
    local out = {}
    for k, p in ipairs(net:parameters()) do out[k] = peri.full(p.shape, k == 2 and value or 1) end
    return out
  end
  local good = { values = net:copy(), fisher = fisher(1) }
  lu.assertErrorMsgContains('the key "', loss.elastic, net, good)
  lu.assertErrorMsgContains("expected a list", loss.elastic, net, { good, values = net:copy() })
  lu.assertErrorMsgContains("expected a list", loss.elastic, net, { [2] = good })
  for message, bad in pairs {
    ["values 1 is the parameter itself"] = { values = net, fisher = fisher(1) },
    ["values 1 is the parameter itself, expected"] = { values = net:parameters(), fisher = fisher(1) },
    ["fisher 2 is nan at"] = { values = net:copy(), fisher = fisher(0 / 0) },
    ["fisher 2 is inf at"] = { values = net:copy(), fisher = fisher(math.huge) },
    ["fisher 2 has -1"] = { values = net:copy(), fisher = fisher(-1) },
    ["values 1 is of 0.weight, the parameter is layers.0.weight"] = { values = other:copy(), fisher = fisher(1) },
    ["fisher 1 is of 0.weight"] = { values = net:copy(), fisher = other },
    ['unknown field "fishr"'] = { values = net:copy(), fisher = fisher(1), fishr = 1 },
    ["has no values"] = { fisher = fisher(1) },
  } do
    lu.assertErrorMsgContains(message, loss.elastic, net, { bad })
    lu.assertErrorMsgContains("anchor 2: ", loss.elastic, net, { good, message:find "has no" and { values = net,
      fisher = fisher(1) } or bad })
  end
  local F = fisher(1)
  local changed = { { values = net:copy(), fisher = F } }
  loss.elastic(net, changed)
  F[2]:fill_(-2) -- looked at anew when it changes
  lu.assertErrorMsgContains("fisher 2 has -2", loss.elastic, net, changed)
end

function TestElastic.test_of_no_rows_there_is_no_fisher_information_and_who_says_so_is_who_was_called()
  local net = nn.Linear(2, 2)
  lu.assertErrorMsgContains("loss.fisher_of_classes: input 2 has no rows", loss.fisher_of_classes, net, net,
    { peri.zeros { 1, 2 }, peri.zeros { 0, 2 } })
  lu.assertErrorMsgContains("loss.fisher_diagonal: batch 1 has no rows", loss.fisher_diagonal,
    function (x) return net(x):sum(2) end, net, { { peri.zeros { 0, 2 } } })
  lu.assertErrorMsgContains("loss.fisher_of_classes: no parameter takes gradients", loss.fisher_of_classes, net,
    { peri.zeros { 2 } }, { peri.zeros { 1, 2 } })
end

-- ---- measures ----

TestContinual = {}

function TestContinual.test_by_hand()
  local R = { { 0.9, 0.2, 0.1 }, { 0.6, 0.8, 0.3 }, { 0.3, 0.7, 1.0 } }
  local got = metrics.continual(R, { 0.1, 0.1, 0.2 })
  lu.assertAlmostEquals(got.average, (0.3 + 0.7 + 1) / 3, 1e-12)
  lu.assertAlmostEquals(got.backward, (-0.6 - 0.1) / 2, 1e-12)
  lu.assertAlmostEquals(got.forgetting, (0.6 + 0.1) / 2, 1e-12)
  lu.assertAlmostEquals(got.forward, (0.1 + 0.1) / 2, 1e-12)
  R[2][1] = 0.95 -- learned later, and forgotten all the same
  lu.assertAlmostEquals(metrics.continual(R).forgetting, (0.65 + 0.1) / 2, 1e-12)
  lu.assertNil(metrics.continual(R).forward)
  lu.assertEquals(metrics.continual { { 0.5 } }, { average = 0.5 })
end

-- Nothing forgotten is 0 both ways, whatever the numbers; forgetting is never less than -backward.
function TestContinual.test_laws()
  local rng = peri.rng(1)
  for n = 2, 6 do
    local R, same = {}, {}
    for i = 1, n do
      R[i], same[i] = {}, {}
      for j = 1, n do R[i][j], same[i][j] = rng:uniform(), j / 10 end
    end
    local a, b = metrics.continual(R), metrics.continual(same)
    lu.assertTrue(a.forgetting >= -a.backward - 1e-12)
    lu.assertAlmostEquals(b.backward, 0, 1e-12)
    lu.assertAlmostEquals(b.forgetting, 0, 1e-12)
  end
end

function TestContinual.test_misuse_is_named()
  lu.assertErrorMsgContains("R has no rows", metrics.continual, {})
  lu.assertErrorMsgContains("row 2 is no list of 2 numbers", metrics.continual, { { 1, 2 }, { 1 } })
  lu.assertErrorMsgContains("untrained is no list of 1 numbers", metrics.continual, { { 1 } }, { "x" })
end

os.exit(lu.LuaUnit.run())
