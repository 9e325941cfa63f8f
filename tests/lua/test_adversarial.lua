-- Attacks never leave their ball nor the range of inputs, and do what their closed forms say.
local lu = require "luaunit"
local peri = require "perilune"
local nn, loss = peri.nn, peri.loss

TestAdversarial = {}

local function size(d, norm)
  if norm == "inf" then return d:abs():max():item() end
  return d:reshape({ d:size(1), -1 }):square():sum(2):sqrt():max():item()
end

local function linear(w) return function (x) return x:reshape({ x:size(1), -1 }):matmul(w) end end

-- fn(x, norm, attack's options, dtype) for shapes, norms, radii, ranges.
local function each(fn)
  for _, shape in ipairs { { 5 }, { 4, 3 }, { 2, 1, 3, 3 }, { 3, 4, 5 } } do
    for _, norm in ipairs { "inf", "2" } do
      for _, dtype in ipairs { "f32", "f64" } do
        for _, eps in ipairs { 0, 0.05, 0.7 } do
          local x = peri.rand(shape, dtype)
          fn(x, { eps = eps, norm = norm, low = 0, high = 1 })
          fn(x, { eps = eps, norm = norm })
        end
      end
    end
  end
end

local function more(o, add)
  local all = {}
  for _, set in ipairs { o, add } do for k, v in pairs(set) do all[k] = v end end
  return all
end

local function attacks(x, o, loss_of)
  return {
    fgsm = loss.fgsm(loss_of, x, o), pgd = loss.pgd(loss_of, x, o),
    still = loss.pgd(loss_of, x, more(o, { random = false, steps = 3 })),
    several = loss.pgd(loss_of, x, more(o, { steps = 2, restarts = 3, step = 2 * o.eps })),
    start = loss.pgd(loss_of, x, more(o, { steps = 0 })),
    step = loss.ascend(x, x + o.eps * 3, peri.randn(x.shape, x.dtype), more(o, { step = o.eps })),
  }
end

function TestAdversarial.test_nothing_leaves_the_ball_nor_the_range()
  peri.seed(1)
  each(function (x, o)
    local w = peri.randn({ x:numel() // x:size(1) }, x.dtype)
    local function bent(at) return linear(w)(at * 3):sin() end
    for name, moved in pairs(attacks(x, o, bent)) do
      lu.assertEquals(moved.shape, x.shape)
      lu.assertFalse(moved.requires_grad, name)
      lu.assertTrue(size(moved - x, o.norm) <= o.eps * (1 + 1e-5) + 1e-6, name) -- x + d is rounded
      lu.assertTrue(moved:isfinite():all():item(), name)
      if o.low then lu.assertTrue(moved:min():item() >= 0 and moved:max():item() <= 1, name) end
    end
  end)
end

-- Holder: the largest rise of w.x in a ball is eps times the dual norm of w.
function TestAdversarial.test_a_linear_loss_rises_by_the_dual_norm_and_never_falls()
  peri.seed(2)
  each(function (x, o)
    local w = peri.randn({ x:numel() // x:size(1) }, x.dtype)
    local rise = o.eps * (o.norm == "inf" and w:abs():sum():item() or w:square():sum():sqrt():item())
    local before = linear(w)(x)
    for _, name in ipairs { "fgsm", "pgd", "still", "several" } do
      local d = linear(w)(attacks(x, o, linear(w))[name]) - before
      local drawn, margin = name == "pgd" or name == "several", 1e-4 * (1 + rise)
      if not drawn or not o.low then lu.assertTrue(d:min():item() >= -1e-5, name) end -- a start near the range's edge
      if not o.low and not (drawn and o.norm == "2") then lu.assertTrue((d - rise):abs():max():item() <= margin, name) end
      if not o.low then lu.assertTrue(d:min():item() >= 0.8 * rise - margin, name) end -- nor far from it, from anywhere
    end
  end)
end

function TestAdversarial.test_pgd_of_one_step_is_fgsm_whatever_the_loss()
  peri.seed(3)
  each(function (x, o)
    local net = peri.randn({ x:numel() // x:size(1), 4 }, x.dtype)
    local function bent(at) return at:reshape({ at:size(1), -1 }):matmul(net):tanh():sum(2) end
    local one = loss.pgd(bent, x, more(o, { steps = 1, step = o.eps, random = false }))
    lu.assertEquals(one:tolist(), loss.fgsm(bent, x, o):tolist())
    local ones = loss.pgd(bent, x, more(o, { steps = 1, step = o.eps, random = false, restarts = 2 }))
    lu.assertEquals(ones:tolist(), one:tolist())
  end)
end

-- By hand, one row of two dims.
function TestAdversarial.test_numbers_by_hand()
  local x, w = peri.tensor({ { 0.5, 0.95 } }, "f64"), peri.tensor({ 3, 4 }, "f64")
  local function got(o) return loss.fgsm(linear(w), x, o):tolist()[1] end
  lu.assertAlmostEquals(got({ eps = 0.1 })[2], 1.05, 1e-12)
  lu.assertEquals(got({ eps = 0.1, high = 1 })[2], 1)
  local two = got { eps = 0.1, norm = "2" }
  lu.assertAlmostEquals(two[1], 0.56, 1e-12)
  lu.assertAlmostEquals(two[2], 1.03, 1e-12)
end

-- Restarts take the worst of several ends, by row: on a loss with a valley between two hills.
function TestAdversarial.test_restarts_only_find_larger_losses()
  peri.seed(4)
  local x = peri.zeros({ 20, 1 }, "f64")
  local function hills(at) return (at:square() + at * 0.3):sum(2) end -- the right one is higher
  local how = { eps = 1, steps = 5 }
  local once = hills(loss.pgd(hills, x, how))
  local often = hills(loss.pgd(hills, x, more(how, { restarts = 10 })))
  lu.assertTrue(once:min():item() < 1.29)
  lu.assertAlmostEquals(often:min():item(), 1.3, 1e-9)
end

function TestAdversarial.test_weights_get_no_gradient_and_rows_do_not_mix()
  peri.seed(5)
  local net, x, y = nn.MLP { 3, 8, 4 }, peri.rand { 6, 3 }, peri.randint(0, 4, { 6 })
  local function of(ys) return function (at) return net(at):cross_entropy(ys, { reduction = "none" }) end end
  local how = { eps = 0.2, random = false, low = 0, high = 1, steps = 4 }
  local all = loss.pgd(of(y), x, how)
  for i = 1, 6 do
    local one = loss.pgd(of(y:narrow(1, i, 1)), x:narrow(1, i, 1), how)
    lu.assertTrue((one - all:narrow(1, i, 1)):abs():max():item() < 1e-6)
  end
  peri.no_grad(loss.pgd, of(y), x, how) -- and goes inside no_grad
  for _, p in ipairs(net:parameters()) do lu.assertNil(p.grad) end
  lu.assertTrue(net(all):cross_entropy(y):item() > net(x):cross_entropy(y):item())
end

function TestAdversarial.test_a_row_without_a_gradient_stays()
  local x = peri.rand { 2, 3 }
  local first = peri.tensor({ { 1 }, { 0 } }, "f32")
  for _, norm in ipairs { "inf", "2" } do
    local moved = loss.fgsm(function (at) return (at * first):sum(2) end, x, { eps = 0.1, norm = norm })
    lu.assertEquals(moved:tolist()[2], x:tolist()[2])
    lu.assertNotEquals(moved:tolist()[1], x:tolist()[1])
    local tiny = loss.fgsm(function (at) return (at * 1e-30):sum(2) end, x, { eps = 0.1, norm = norm }) -- squares are 0
    lu.assertTrue(math.abs(size(tiny - x, norm) - 0.1) < 1e-6, norm)
  end
end

-- ---- virtual ----

-- Of softmax(x W) the second derivatives by x are W (diag p - p p^T) W^T: the push is its first eigenvector.
function TestAdversarial.test_the_push_is_the_first_eigenvector_of_the_fisher_information()
  peri.seed(6)
  for _ = 1, 4 do
    local w, x = peri.randn({ 4, 3 }, "f64"), peri.randn({ 1, 4 }, "f64")
    local function predict(at) return at:matmul(w) end
    local p = predict(x):softmax(-1):reshape { 3, 1 }
    local F = w:matmul(p:reshape({ 3 }):diag() - p:matmul(p:transpose())):matmul(w:transpose())
    local v = peri.randn({ 4, 1 }, "f64")
    for _ = 1, 2000 do
      v = F:matmul(v)
      v = v / v:square():sum():sqrt()
    end
    local _, r = loss.virtual_adversarial(predict, x, { eps = 2, xi = 1e-4, iterations = 2000 })
    lu.assertAlmostEquals(r:square():sum():sqrt():item(), 2, 1e-9)
    lu.assertAlmostEquals(math.abs(r:matmul(v):item()), 2, 1e-3)
    local small, s = loss.virtual_adversarial(predict, x, { eps = 1e-3, xi = 1e-4, iterations = 50 })
    lu.assertAlmostEquals(small:item() / (s:matmul(F):matmul(s:transpose()):item() / 2), 1, 1e-2)
  end
end

function TestAdversarial.test_the_virtual_loss_is_the_divergence_at_its_push_and_teaches_weights_and_embeddings()
  peri.seed(7)
  local embed, net = nn.Embedding(9, 5), nn.Linear(10, 4)
  local ids = peri.randint(0, 9, { 6, 2 })
  local words = embed(ids)
  local function predict(at) return net(at:flatten(2)) end
  local value, r = loss.virtual_adversarial(predict, words, { eps = 1 })
  local p, q = predict(words):log_softmax(-1), predict(words + r):log_softmax(-1)
  lu.assertAlmostEquals(value:item(), (p:exp() * (p - q)):sum(-1):mean():item(), 1e-6)
  lu.assertTrue(value:item() > 0)
  lu.assertAlmostEquals(size(r, "2"), 1, 1e-5)
  for _, p_ in ipairs { embed.weight, net.weight } do lu.assertNil(p_.grad) end
  value:backward()
  local held = peri.grad(loss.exact_kl(predict(words):detach(), predict(embed(ids) + r)):mean(),
    { embed.weight, net.weight })
  lu.assertTrue((embed.weight.grad - held[1]):abs():max():item() < 1e-6)
  lu.assertTrue((net.weight.grad - held[2]):abs():max():item() < 1e-6)
  lu.assertEquals((loss.virtual_adversarial(predict, words, { eps = 0 })):item(), 0)
end

-- ---- misuse ----

-- A loss or gradient that is no number has no direction: every attack says so, and gives no inputs that are none.
function TestAdversarial.test_what_is_not_finite_is_named_and_no_input_comes_of_it()
  local x = peri.rand { 3, 2 }
  local row = peri.tensor({ 0, 1, 0 }, "f32")
  for _, bad in ipairs { 0 / 0, math.huge, -math.huge } do
    local function of(at) return at:sum(2) + row * 0 + peri.full({ 3 }, bad) end
    local function steep(at) return (at * 0):sqrt():sum(2) end -- 0, and its gradient is 0 times 1 / 0
    for name, attack in pairs {
      fgsm = function (fn) return loss.fgsm(fn, x, { eps = 0.1 }) end,
      pgd = function (fn) return loss.pgd(fn, x, { eps = 0.1, restarts = 1 }) end,
      several = function (fn) return loss.pgd(fn, x, { eps = 0.1, steps = 0, restarts = 2 }) end,
      two = function (fn) return loss.pgd(fn, x, { eps = 0.1, norm = "2" }) end,
    } do
      local who = name == "fgsm" and "loss.fgsm: " or "loss.pgd: "
      lu.assertErrorMsgContains(who .. "the loss is ", attack, of)
      if name ~= "several" then lu.assertErrorMsgContains(who .. "the gradient of the loss is nan", attack, steep) end
    end
    for _, name in ipairs { "x", "from", "gradient" } do
      local given = { x = x, from = x, gradient = x }
      given[name] = peri.full({ 3, 2 }, bad)
      lu.assertErrorMsgContains("loss.ascend: " .. name .. " is ", loss.ascend, given.x, given.from, given.gradient,
        { eps = 1, step = 1 })
    end
    local function predict(at) return at + peri.tensor({ { 0, bad == bad and -bad or bad } }, "f32") end
    for _, iterations in ipairs { 1, 2 } do
      if bad ~= math.huge then -- a class of probability 0 is one
        lu.assertErrorMsgContains("loss.virtual_adversarial: the ", loss.virtual_adversarial, predict, x,
          { eps = 1, iterations = iterations })
      end
    end
  end
end

function TestAdversarial.test_misuse_says_what_was_expected()
  local x = peri.rand { 2, 3 }
  local function of(at) return at:sum(2) end
  local function raises(message, fn, ...) lu.assertErrorMsgContains(message, fn, ...) end
  raises("loss.fgsm: eps is missing", loss.fgsm, of, x, {})
  raises("x goes from", loss.fgsm, of, x + 1, { eps = 0.1, low = 0, high = 1 })
  raises("loss.fgsm: low is 2, high is 1", loss.fgsm, of, x, { eps = 0.1, low = 2, high = 1 })
  raises("norm is \"1\"", loss.pgd, of, x, { eps = 0.1, norm = "1" })
  raises("did you mean \"steps\"?", loss.pgd, of, x, { eps = 0.1, stpes = 3 })
  raises("the loss is of shape (), expected a tensor of 2 elements", loss.pgd, function (at) return at:sum() end, x,
    { eps = 0.1 })
  raises("the loss does not depend on x", loss.fgsm, function () return peri.zeros { 2 } end, x, { eps = 0.1 })
  raises("gradient has shape (2), x has (2, 3)", loss.ascend, x, x, peri.zeros { 2 }, { eps = 1, step = 1 })
  raises("expected rows of f32 or f64", loss.fgsm, of, peri.zeros({ 2, 2 }, "i64"), { eps = 1 })
  raises("loss.virtual_adversarial: predict is missing", loss.virtual_adversarial, nil, x, { eps = 1 })
end

os.exit(lu.LuaUnit.run())
