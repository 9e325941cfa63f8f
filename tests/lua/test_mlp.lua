-- Small networks as one op: the bits of linear and the activation one by one, forward and backward, and several
-- networks at once.
local lu = require "luaunit"
local peri = require "perilune"

TestMlp = {}

local function network(sizes, bias, lead)
  local w, b = {}, {}
  local function leaf(...)
    local shape = { ... }
    if lead then table.insert(shape, 1, lead) end
    return peri.randn(shape):mul(0.4):requires_grad_()
  end
  for l = 1, #sizes - 1 do
    w[l] = leaf(sizes[l + 1], sizes[l])
    if bias then b[l] = leaf(sizes[l + 1]) end
  end
  return w, b
end

local function layer_by_layer(x, w, b, act)
  for l = 1, #w do x = x:linear(w[l], b[l], l < #w and act or "none") end
  return x
end

local function leaves(x, w, b)
  local list = { x }
  table.move(w, 1, #w, 2, list)
  return table.move(b, 1, #b, #list + 1, list)
end

local shapes = { { 4, 64, 64, 2 }, { 4, 64, 1 }, { 3, 5 }, { 17, 130, 7, 33, 6 }, { 1, 1, 1 }, { 200, 150, 40 } }

local function check(sizes, rows, act, bias)
  local what = ("%s, %d rows, %s"):format(table.concat(sizes, "-"), rows, act)
  local w, b = network(sizes, bias)
  local x = peri.randn { rows, sizes[1] }:requires_grad_()
  local g = peri.randn { rows, sizes[#sizes] }
  local y, want = peri.mlp(x, w, b, act), layer_by_layer(x, w, b, act)
  lu.assertEquals(y:bytes(), want:bytes(), what)
  local list = leaves(x, w, b)
  local got, expected = peri.grad(y, list, { seed = g }), peri.grad(want, list, { seed = g })
  for i in ipairs(list) do
    local off = got[i]:sub(expected[i]):abs():max():item()
    lu.assertTrue(off <= 1e-6 * rows * (1 + expected[i]:abs():max():item()), ("%s: gradient %d is %g off"):format(what, i, off))
  end
end

for _, sizes in ipairs(shapes) do
  TestMlp[("test_%s has the bits of its layers"):format(table.concat(sizes, "_"))] = function ()
    peri.seed(5)
    for _, rows in ipairs { 1, 4, 5, 37, 128, 300 } do
      check(sizes, rows, "tanh", true)
      check(sizes, rows, "silu", false)
    end
    for _, a in ipairs(peri.activations()) do check(sizes, 9, a.name, true) end
  end
end

function TestMlp.test_a_row_does_not_depend_on_the_others()
  peri.seed(6)
  local w, b = network({ 6, 64, 64, 3 }, true)
  local x = peri.randn { 300, 6 }
  local all = peri.mlp(x, w, b, "tanh")
  for _, cut in ipairs { { 1, 1 }, { 7, 4 }, { 100, 64 }, { 3, 290 } } do
    lu.assertEquals(peri.mlp(x:narrow(1, cut[1], cut[2]), w, b, "tanh"):bytes(),
      all:narrow(1, cut[1], cut[2]):contiguous():bytes())
  end
end

function TestMlp.test_several_networks_at_once_are_each_by_itself()
  peri.seed(7)
  for _, rows in ipairs { 1, 4, 33 } do
    for _, copies in ipairs { 1, 3, 20 } do
      local w, b = network({ 5, 32, 2 }, true, copies)
      local x = peri.randn { copies, rows, 5 }:requires_grad_()
      local y = peri.mlp(x, w, b, "tanh")
      local list = leaves(x, w, b)
      local g = peri.randn(y.shape)
      local grads = peri.grad(y, list, { seed = g })
      for i = 1, copies do
        local own_w, own_b = {}, {}
        for l = 1, #w do
          own_w[l] = w[l]:select(1, i):detach():requires_grad_()
          own_b[l] = b[l]:select(1, i):detach():requires_grad_()
        end
        local own_x = x:select(1, i):detach():requires_grad_()
        local one = peri.mlp(own_x, own_w, own_b, "tanh")
        lu.assertEquals(one:bytes(), y:select(1, i):contiguous():bytes())
        for k, grad in pairs(peri.grad(one, leaves(own_x, own_w, own_b), { seed = g:select(1, i) })) do
          lu.assertEquals(grad:bytes(), grads[k]:select(1, i):contiguous():bytes())
        end
      end
    end
  end
end

function TestMlp.test_only_the_gradients_that_are_wanted_are_made()
  peri.seed(8)
  local w, b = network({ 4, 16, 2 }, true)
  local x = peri.randn { 8, 4 }
  w[1], b[2] = w[1]:detach(), b[2]:detach()
  local y = peri.mlp(x, w, b, "tanh")
  local want = peri.grad(layer_by_layer(x, w, b, "tanh"):sum(), { w[2], b[1] })
  local got = peri.grad(y:sum(), { w[2], b[1] })
  for i = 1, 2 do lu.assertAlmostEquals(got[i]:sub(want[i]):abs():max():item(), 0, 1e-5) end
  y:sum():backward()
  lu.assertNil(w[1].grad)
  lu.assertNotNil(w[2].grad)
end

-- H v by two backward passes, as TRPO has it.
function TestMlp.test_hessian_vector_products_go_through()
  peri.seed(9)
  for _, lead in ipairs { false, 3 } do
    local w, b = network({ 4, 8, 8, 2 }, true, lead or nil)
    local x = lead and peri.randn { 3, 5, 4 } or peri.randn { 5, 4 }
    local list = leaves(w[1], { w[2], w[3] }, b)
    local function product(f)
      local grads, dot = peri.grad(f(), list, { create_graph = true }), nil
      for _, g in ipairs(grads) do
        local s = g:mul(peri.full_like(g, 0.3)):sum()
        dot = dot and dot:add(s) or s
      end
      return peri.grad(dot, list)
    end
    local got = product(function () return peri.mlp(x, w, b, "tanh"):square():sum() end)
    local want = product(function ()
      local h = x
      for l = 1, 3 do
        h = h:matmul(w[l]:transpose()):add(lead and b[l]:unsqueeze(2) or b[l])
        if l < 3 then h = h:tanh() end
      end
      return h:square():sum()
    end)
    for i in ipairs(list) do
      lu.assertTrue(got[i]:sub(want[i]):abs():max():item() <= 1e-4 * (1 + want[i]:abs():max():item()))
    end
  end
end

function TestMlp.test_weights_stored_by_columns_give_the_same_bits()
  peri.seed(10)
  local w, b = network({ 4, 64, 64, 2 }, true)
  local turned = {}
  for l = 1, 3 do turned[l] = w[l]:transpose():contiguous():transpose() end
  for _, rows in ipairs { 1, 4, 8, 50 } do
    local x = peri.randn { rows, 4 }
    lu.assertEquals(peri.mlp(x, turned, b, "tanh"):bytes(), peri.mlp(x, w, b, "tanh"):bytes())
  end
end

-- ---- the module ----

local nn = peri.nn

function TestMlp.test_the_module_is_its_layers()
  peri.seed(11)
  local net = nn.MLP { 4, 64, 64, 2, activation = "tanh", last_gain = 0.01 }
  local names = {}
  for i, p in ipairs(net:named_parameters()) do names[i] = p[1] end
  lu.assertEquals(names, { "layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias", "layers.2.weight",
    "layers.2.bias" })
  local x = peri.randn { 5, 4 }
  local function chain() return net.layers[3](net.layers[2](net.layers[1](x):tanh()):tanh()) end
  lu.assertEquals(net(x):bytes(), chain():bytes())
  local w = net.layers[2].weight -- orthogonal, times sqrt(2)
  lu.assertTrue(w:matmul(w.T):sub(peri.eye(64):mul(2)):abs():max():item() < 1e-3)
  lu.assertTrue(net.layers[3].weight:abs():max():item() < 0.011)
  net.layers[2].weight = nn.parameter(peri.randn { 64, 64 }) -- what stands there now counts
  lu.assertEquals(net(x):bytes(), chain():bytes())
  local seen = 0
  local hook <close> = net.layers[2]:hook(function () seen = seen + 1 end) -- luacheck: ignore 211
  local y = net(x)
  lu.assertEquals({ seen, y:bytes() }, { 1, chain():bytes() })
end

function TestMlp.test_sizes_and_options_are_checked()
  for message, fn in pairs {
    ["MLP: size 2 is 0"] = function () nn.MLP { 4, 0, 2 } end,
    ["MLP: 1 sizes"] = function () nn.MLP { 4 } end,
    ["MLP: sizes is missing"] = function () nn.MLP {} end,
    ['MLP: unknown option "activaton"'] = function () nn.MLP { 4, 2, activaton = "relu" } end,
    ["MLP: activation"] = function () nn.MLP({ 4, 2 }, { activation = "cube" }) end,
  } do
    lu.assertErrorMsgContains(message, fn)
  end
  lu.assertEquals(nn.MLP({ 3, 2 }, { bias = false }):num_parameters(), 6)
  lu.assertEquals(nn.MLP { sizes = { 3, 5, 2 }, init = "uniform" }(peri.zeros { 3 }).shape, { 2 })
end

-- ---- several networks ----

local Policy = nn.class("Policy", function (self)
  self.body, self.head = nn.MLP { 3, 16, 8 }, nn.Linear(8, 2, { activation = "tanh" })
  self.log_std = nn.parameter(peri.zeros { 1, 2 })
end)
function Policy:forward(x) return self.head(self.body(x):tanh()):mul(self.log_std:exp()) end

-- Steps of every copy are those of a run with its seed alone, bit by bit.
function TestMlp.test_copies_learn_as_each_alone()
  local seeds, rows = { 4, 9, 2 }, 7
  peri.seed(1)
  local x, goal = peri.randn { #seeds, rows, 3 }, peri.randn { #seeds, rows, 2 }
  x = peri.cat({ x:narrow(1, 1, 2), x:narrow(1, 3, 1):mul(50) }, 1) -- the third clips
  local before = peri.rng_state()
  local all = nn.Copies(#seeds, Policy, { seeds = seeds })
  lu.assertEquals(peri.rng_state(), before)
  local opt = peri.optim.Adam(all, { lr = 0.01 })
  local function loss(net, input, target) return net(input):sub(target):square():mean({ -1, -2 }) end
  for _ = 1, 5 do
    loss(all, x, goal):sum():backward()
    opt:step({ copies = #seeds, clip = 0.1 }):zero_grad()
  end
  for i, seed in ipairs(seeds) do
    peri.seed(seed)
    local net = Policy()
    local own = peri.optim.Adam(net, { lr = 0.01 })
    for _ = 1, 5 do
      loss(net, x:select(1, i), goal:select(1, i)):backward()
      own:step({ clip = 0.1 }):zero_grad()
    end
    local one = all:single(i)
    local want = one:state_dict()
    for name, t in pairs(net:state_dict()) do lu.assertEquals(t:bytes(), want[name]:bytes(), name) end
    lu.assertEquals(one(x:select(1, i)):bytes(), all(x):select(1, i):contiguous():bytes())
    lu.assertAlmostEquals(opt.grad_norms[i], own.grad_norm, 1e-6 * own.grad_norm)
  end
end

function TestMlp.test_a_copy_that_fails_does_not_stop_the_others()
  peri.seed(3)
  local all = nn.Copies(2, function () return nn.MLP { 2, 4, 1 } end)
  local opt = peri.optim.Adam(all, { lr = 0.1 })
  local before = { all:single(1).layers[1].weight:bytes(), all:single(2).layers[1].weight:bytes() }
  all(peri.tensor { { { 1., 2. } }, { { 0 / 0, 1. } } }):sum():backward()
  opt:step { copies = 2, clip = 1 }
  lu.assertNotEquals(all:single(1).layers[1].weight:bytes(), before[1])
  lu.assertEquals(all:single(2).layers[1].weight:bytes(), before[2])
  lu.assertEquals(opt.skipped, 1)
end

function TestMlp.test_what_cannot_be_copied_is_named()
  for message, fn in pairs {
    ["Copies: the network is a LayerNorm"] = function () nn.Copies(2, function () return nn.LayerNorm(3) end) end,
    ["Copies: 1 is a GroupNorm"] = function ()
      nn.Copies(2, function () return nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(2, 4)) end)
    end,
    ["network 2 has layers.0.weight (5, 3) f32, network 1 has layers.0.weight (4, 3) f32"] = function ()
      nn.Copies(2, function (i) return nn.MLP { 3, 3 + i, 1 } end)
    end,
    ["Copies: 1 seeds for 2"] = function () nn.Copies(2, Policy, { seeds = { 1 } }) end,
    ["make(1) gave a nil"] = function () nn.Copies(2, function () end) end,
    ["single: i is 3"] = function () nn.Copies(2, Policy):single(3) end,
  } do lu.assertErrorMsgContains(message, fn) end
end

os.exit(lu.LuaUnit.run())
