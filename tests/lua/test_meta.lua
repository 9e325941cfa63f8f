-- Modules with other tensors in the places of their own, and steps of training that are differentiated.
local lu = require "luaunit"
local peri = require "perilune"
local nn, optim = peri.nn, peri.optim

local function near(got, want, tolerance, what)
  lu.assertEquals(got.shape, want.shape, what)
  local off = got:sub(want):abs():max():item()
  lu.assertTrue(off <= tolerance, ("%s: %g off"):format(what or "", off))
end

local function bytes(module)
  local out = {}
  for _, p in ipairs(module:parameters()) do out[#out + 1] = p:bytes() end
  return out
end

local function square_error(net, x, y) return net(x):sub(y):square():mean() end

-- ---- functional_call ----

TestFunctionalCall = {}

function TestFunctionalCall.test_a_list_and_names_say_the_same_and_the_module_is_as_it_was()
  local net, x = nn.MLP { 3, 5, 2 }, peri.randn { 4, 3 }
  local other = nn.MLP { 3, 5, 2 }
  local before, list, names = bytes(net), other:parameters(), {}
  for _, e in ipairs(other:named_parameters()) do names[e[1]] = e[2] end
  lu.assertEquals(nn.functional_call(net, list, x):bytes(), other(x):bytes())
  lu.assertEquals(nn.functional_call(net, names, x):bytes(), other(x):bytes())
  lu.assertEquals(nn.functional_call(net, {}, x):bytes(), net(x):bytes())
  lu.assertEquals(bytes(net), before)
  local bias = peri.randn { 2 } -- one of them
  near(nn.functional_call(net, { ["layers.1.bias"] = bias }, x), net(x) - net.layers[2].bias + bias, 1e-6)
end

function TestFunctionalCall.test_an_error_inside_leaves_the_module_as_it_was()
  local net = nn.Linear(2, 2)
  local weight = net.weight
  lu.assertErrorMsgContains("stop here", nn.with_tensors, net, { weight = peri.zeros { 2, 2 } }, function ()
    lu.assertEquals(net.weight:sum():item(), 0)
    error "stop here"
  end)
  lu.assertTrue(rawequal(net.weight, weight))
  lu.assertErrorMsgContains("linear", nn.functional_call, net, { weight = peri.zeros { 2, 2 } }, peri.ones { 2, 3 })
  lu.assertTrue(rawequal(net.weight, weight))
end

function TestFunctionalCall.test_gradients_go_on_through_results_of_operations()
  local net, x = nn.MLP { 3, 5, 2 }, peri.randn { 4, 3 }
  local scaled = {}
  for i, p in ipairs(net:parameters()) do scaled[i] = p * 2 end
  nn.functional_call(net, scaled, x):square():sum():backward()
  local twice = nn.MLP { 3, 5, 2 }
  optim.assign_(twice, optim.flatten(net) * 2)
  twice(x):square():sum():backward()
  near(optim.flatten_grads(net), optim.flatten_grads(twice) * 2, 1e-4)
end

function TestFunctionalCall.test_inside_the_parameters_are_those_that_stand_there_and_calls_nest()
  local net = nn.Linear(2, 1)
  local fast = { net.weight * 2, net.bias * 2 }
  nn.with_tensors(net, fast, function ()
    lu.assertTrue(rawequal(net:parameters()[1], fast[1]))
    nn.with_tensors(net, { weight = peri.zeros { 1, 2 } }, function ()
      lu.assertEquals(net.weight:sum():item(), 0)
      lu.assertTrue(rawequal(net.bias, fast[2]))
    end)
    lu.assertTrue(rawequal(net.weight, fast[1]))
  end)
  lu.assertEquals(select("#", nn.with_tensors(net, {}, function (...) return ... end, 1, nil, nil)), 3)
end

function TestFunctionalCall.test_tied_tensors_move_together()
  local net = nn.ModuleList { nn.Linear(3, 3, { bias = false }), nn.Linear(3, 3, { bias = false }) }
  net[2].weight = net[1].weight
  local w = peri.randn { 3, 3 }
  nn.with_tensors(net, { ["0.weight"] = w }, function () lu.assertTrue(rawequal(net[2].weight, w)) end)
  lu.assertTrue(rawequal(net[2].weight, net[1].weight))
  nn.with_tensors(net, { ["1.weight"] = w }, function () lu.assertTrue(rawequal(net[1].weight, w)) end)
  lu.assertErrorMsgContains("stands in several places, and is given two tensors", nn.with_tensors, net,
    { ["0.weight"] = w, ["1.weight"] = w + 1 }, print)
end

function TestFunctionalCall.test_buffers_that_are_named_are_the_ones_that_move()
  local net, x = nn.BatchNorm1d(3), peri.randn { 8, 3 }
  local mean, own = peri.zeros { 3 }, net.running_mean:bytes()
  nn.functional_call(net, { running_mean = mean }, x)
  lu.assertEquals(net.running_mean:bytes(), own)
  near(mean, x:mean(1) * 0.1, 1e-6)
end

function TestFunctionalCall.test_networks_side_by_side_may_be_more_than_they_were()
  local net = nn.Copies(2, function () return nn.MLP { 3, 4, 1 } end)
  local tasks, x = 3, peri.randn { 6, 5, 3 }
  local spread = {}
  for i, p in ipairs(net:parameters()) do
    local shape = p.shape
    spread[i] = p:unsqueeze(2):expand({ 2, tasks, table.unpack(shape, 2) }):reshape { 6, table.unpack(shape, 2) }
  end
  local y = nn.functional_call(net, spread, x)
  for i = 1, 6 do near(y:select(1, i), net:single((i - 1) // tasks + 1)(x:select(1, i)), 1e-6) end
end

function TestFunctionalCall.test_what_does_not_fit_is_named()
  local net, x = nn.MLP { 3, 5, 2 }, peri.randn { 4, 3 }
  local function message(words, tensors, module)
    lu.assertErrorMsgContains(words, nn.functional_call, module or net, tensors, x)
  end
  message('unknown tensor "layers.0.wieght"; did you mean "layers.0.weight"?', { ["layers.0.wieght"] = peri.ones { 5, 3 } })
  message("layers.0.weight is f32 (3, 5), expected f32 (5, 3)", { ["layers.0.weight"] = peri.ones { 3, 5 } })
  message("layers.0.weight is f64 (5, 3), expected f32 (5, 3)", { ["layers.0.weight"] = peri.ones({ 5, 3 }, "f64") })
  message("layers.0.bias is 3, expected tensor", { ["layers.0.bias"] = 3 })
  message("1 tensors for 4 parameters", { peri.ones { 5, 3 } })
  message("module is a table, expected module", {}, {})
  message("tensors is missing", nil)
  lu.assertErrorMsgContains("fn is missing", nn.with_tensors, net, {})
  local model = peri.models.load("tests/data/hf_tiny/llama", { dtype = "q8_0" })
  local path
  for _, e in ipairs(model:named_parameters()) do path = path or e[2].dtype == "q8_0" and e[1] end
  message("is q8_0, and what is written in that form has no stand-in", { [path] = peri.ones { 2, 2 } }, model)
  local block = nn.Block(4, 2)
  block:checkpointing()
  message("checkpointing is on", {}, block)
end

-- ---- adapt ----

TestAdapt = {}

function TestAdapt.test_gradients_through_steps_are_those_of_torch()
  local cases = peri.json.decode(assert(peri.files.read "tests/data/meta.json"))
  for _, c in ipairs(cases) do
    local sizes = c.sizes
    local net = nn.MLP(sizes, { activation = c.act }):to "f64"
    local function at(list, shape) return peri.tensor(list, "f64"):reshape(shape) end
    for i, p in ipairs(net:parameters()) do peri.no_grad(p.copy_, p, at(c.weights[i], p.shape)) end
    local n, m = sizes[1], sizes[#sizes]
    local x, y, x2, y2 = at(c.x, { 5, n }), at(c.y, { 5, m }), at(c.x2, { 5, n }), at(c.y2, { 5, m })
    for order = 1, 2 do
      local fast, losses = optim.adapt(net, function () return square_error(net, x, y) end,
        { lr = c.lr, steps = c.steps, order = order })
      lu.assertEquals(#losses, c.steps)
      local loss = nn.with_tensors(net, fast, square_error, net, x2, y2)
      lu.assertAlmostEquals(loss:item(), c["loss" .. order], 1e-9)
      for i, g in ipairs(peri.grad(loss, net:parameters())) do
        near(g, at(c["grads" .. order][i], g.shape), 2e-9, ("order %d, tensor %d"):format(order, i))
      end
    end
  end
end

-- The derivative of the loss behind the steps along a direction, by differences.
local function slope(net, after, direction)
  local theta, h = optim.flatten(net), 1e-5
  optim.assign_(net, theta + direction * h)
  local up = after():item()
  optim.assign_(net, theta - direction * h)
  local down = after():item()
  optim.assign_(net, theta)
  return (up - down) / (2 * h)
end

function TestAdapt.test_gradients_through_steps_are_differences_of_losses()
  peri.seed(5)
  for _, act in ipairs { "tanh", "gelu", "silu", "sigmoid" } do
    for steps = 1, 4 do
      local net = nn.MLP { 2, 6, 6, 2, activation = act }:to "f64"
      local x, y = peri.randn({ 7, 2 }, "f64"), peri.randn({ 7, 2 }, "f64")
      local function after(order)
        local fast = optim.adapt(net, function () return square_error(net, x, y) end,
          { lr = 0.2, steps = steps, order = order or 2 })
        return nn.with_tensors(net, fast, square_error, net, y, x)
      end
      net:zero_grad()
      after():backward()
      local direction = peri.randn({ net:num_parameters() }, "f64")
      local g = optim.flatten_grads(net)
      lu.assertAlmostEquals(g:mul(direction):sum():item(), slope(net, after, direction), 1e-6, act .. steps)
      net:zero_grad()
      after(1):backward() -- is another direction
      lu.assertTrue(optim.flatten_grads(net):sub(g):abs():max():item() > 1e-4, act)
    end
  end
end

function TestAdapt.test_step_sizes_that_take_gradients_get_theirs()
  local net = nn.MLP { 2, 4, 1 }:to "f64"
  local x, y, rates = peri.randn({ 5, 2 }, "f64"), peri.randn({ 5, 1 }, "f64"), {}
  for i, p in ipairs(net:parameters()) do rates[i] = peri.full_like(p:detach(), 0.1):requires_grad_() end
  local function after()
    local fast = optim.adapt(net, function () return square_error(net, x, y) end, { lr = rates, steps = 2 })
    return nn.with_tensors(net, fast, square_error, net, x, y)
  end
  after():backward()
  for _, rate in ipairs(rates) do
    local flat, h = rate:detach():reshape { -1 }, 1e-5
    flat:narrow(1, 1, 1):add_(h)
    local up = after():item()
    flat:narrow(1, 1, 1):sub_(2 * h)
    local down = after():item()
    flat:narrow(1, 1, 1):add_(h)
    lu.assertAlmostEquals(rate.grad:reshape({ -1 }):tolist()[1], (up - down) / (2 * h), 1e-7)
  end
end

function TestAdapt.test_the_order_says_how_much_of_the_steps_is_differentiated()
  local net, x = nn.Linear(2, 1):to "f64", peri.randn({ 5, 2 }, "f64")
  local function loss() return net(x):square():mean() end
  local plain = {} -- the same numbers whatever the order, and the module does not move
  local own = bytes(net)
  for order = 0, 2 do
    local fast = optim.adapt(net, loss, { lr = 0.1, steps = 3, order = order })
    plain[order] = fast[1]:bytes()
    lu.assertEquals(peri.grad(fast[1]:sum(), net.weight) == nil, order == 0)
    lu.assertEquals(fast[1].is_leaf, order == 0)
  end
  lu.assertEquals(plain[0], plain[1])
  lu.assertEquals(plain[1], plain[2])
  lu.assertEquals(bytes(net), own)
  near(peri.grad(optim.adapt(net, loss, { lr = 0.1, order = 1 })[1]:sum(), net.weight), peri.ones({ 1, 2 }, "f64"), 0)
  local opt = optim.SGD(net, { lr = 0.1 }) -- and they are steps of SGD
  for _ = 1, 3 do
    loss():backward()
    opt:step():zero_grad()
  end
  near(peri.tensor(net.weight:tolist(), "f64"), optim.adapt(net, loss, { lr = 0, steps = 0 })[1]:detach(), 0)
  lu.assertEquals(peri.no_grad(function ()
    return optim.adapt(net, loss, { lr = 0.1, order = 0 })[1].requires_grad -- also where nothing is recorded
  end), true)
end

function TestAdapt.test_frozen_parameters_stay_and_other_beginnings_are_taken()
  local net, x = nn.MLP { 2, 3, 1 }, peri.randn { 4, 2 }
  net.layers[1]:freeze()
  local function loss() return net(x):square():mean() end
  local fast = optim.adapt(net, loss, { lr = 0.1 })
  lu.assertTrue(rawequal(fast[1], net.layers[1].weight))
  lu.assertNotEquals(fast[3]:bytes(), net.layers[2].weight:bytes())
  local on = optim.adapt(net, loss, { lr = 0.1, from = fast })
  local both = optim.adapt(net, loss, { lr = 0.1, steps = 2 })
  for i = 1, 4 do lu.assertEquals(on[i]:bytes(), both[i]:bytes()) end
end

function TestAdapt.test_what_cannot_be_followed_is_said()
  local net, x = nn.Linear(2, 1), peri.randn { 4, 2 }
  local function loss() return net(x):square():mean() end
  local function message(words, ...) lu.assertErrorMsgContains(words, optim.adapt, ...) end
  message("lr is missing", net, loss, {})
  message('unknown option "step"; did you mean "steps"?', net, loss, { lr = 1, step = 2 })
  message("lr is -1", net, loss, { lr = -1 })
  message("lr has 1 entries for 2 parameters", net, loss, { lr = { 0.1 } })
  message('lr 2 is "x", expected', net, loss, { lr = { 0.1, "x" } })
  message("order is 3, expected one of 2, 1, 0", net, loss, { lr = 1, order = 3 })
  message("from has 1 tensors for 2 parameters", net, loss, { lr = 1, from = { net.weight } })
  message("loss of step 1 is of shape (4, 1), expected a tensor of one element", net, function () return net(x) end, { lr = 1 })
  message("loss of step 1 is a number", net, function () return 1 end, { lr = 1 })
  message("depends on no parameter that takes gradients", net, function () return x:sum() end, { lr = 1 })
  net:freeze()
  message("no parameter takes gradients", net, loss, { lr = 1 })
end

os.exit(lu.LuaUnit.run())
