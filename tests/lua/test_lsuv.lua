-- Initial weights whose scale is measured: the variance that each layer's output has behind them.
local lu = require "luaunit"
local peri = require "perilune"
local nn = peri.nn

TestLsuv = {}

function TestLsuv:setUp() peri.seed(7) end

local function deep(n, act)
  local net = nn.Sequential(nn.Linear(6, 20))
  for _ = 1, n do net:add(nn[act]()):add(nn.Linear(20, 20)) end
  return net
end

local image = { 16, 3, 8, 8 }
local function convolutions(residual, norm)
  return nn.Sequential(nn.Conv2d(3, 4, 3, { padding = 1 }), nn.ReLU(), nn.BasicBlock(4, 4, { residual = residual, norm = norm }),
    nn.BasicBlock(4, 6, 2, { residual = residual, norm = norm }), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
end

-- Nets of every kind with what goes in.
local nets = {
  ["30 layers of relu"] = { function () return deep(30, "ReLU") end, { 64, 6 } },
  ["30 layers of tanh"] = { function () return deep(30, "Tanh") end, { 64, 6 } },
  ["gelu"] = { function () return deep(5, "GELU") end, { 64, 6 } },
  ["one layer"] = { function () return nn.Linear(6, 3) end, { 64, 6 } },
  ["an activation in the layer"] = { function ()
    return nn.Sequential(nn.Linear(6, 20, { activation = "relu" }), nn.Linear(20, 3))
  end, { 64, 6 } },
  ["an MLP"] = { function () return nn.MLP { 6, 16, 16, 2 } end, { 64, 6 } },
  ["convolutions"] = { function () return convolutions(false, false) end, image },
  ["residual, norms"] = { function () return convolutions(true, true) end, image },
  ["rows"] = { function () return nn.Sequential(nn.Conv1d(3, 5, 3, 2), nn.ReLU(), nn.Conv1d(5, 2, 2)) end, { 8, 3, 12 } },
  ["a transformer's block"] = { function () return nn.Block(8, 2, { rope = true }) end, { 4, 6, 8 } },
}

-- { path -> standard deviation of the layer's output before its activation }, measured apart.
local function spreads(net, x)
  local list, hooks = {}, {}
  for _, entry in ipairs(net:named_modules()) do
    local layer = entry[2]
    local class = getmetatable(layer)
    if class == nn.Linear or class == nn.Conv1d or class == nn.Conv2d then
      hooks[#hooks + 1] = layer:hook(function (_, inputs)
        list[entry[1]] = class.forward(layer, inputs[1], nil, "none"):std { ddof = 0 }:item()
      end)
    end
  end
  peri.no_grad(function () net(x) end)
  for _, hook in ipairs(hooks) do hook:remove() end
  return list
end

function TestLsuv:test_every_layer_of_every_net_gets_the_variance_that_is_asked_for()
  for name, make in pairs(nets) do
    for _, how in ipairs { {}, { std = 0.5 }, { orthogonal = false, std = 2 } } do
      local net, x = make[1](), peri.randn(make[2]):mul(3):add(1)
      local back, layers = nn.init.lsuv_(net, x, how)
      lu.assertTrue(rawequal(back, net))
      local measured, count = spreads(net, x), 0
      for path, spread in pairs(measured) do
        count = count + 1
        lu.assertAlmostEquals(spread / (how.std or 1), 1, 1e-4, name .. " " .. path) -- sums of f32
      end
      lu.assertEquals(#layers, count)
      for _, entry in ipairs(layers) do lu.assertNotNil(measured[entry.path]) end
    end
  end
end

function TestLsuv:test_matrices_stay_orthogonal_up_to_a_factor_and_biases_are_0()
  local net = deep(4, "ReLU")
  nn.init.lsuv_(net, peri.randn { 64, 6 })
  for i = 3, 9, 2 do
    local w = net[i].weight:detach()
    local product = w:matmul(w:transpose())
    lu.assertTrue(product:sub(peri.eye(20):mul(product:at(1, 1))):abs():max():item() < 1e-3 * product:at(1, 1))
    lu.assertEquals(net[i].bias:abs():max():item(), 0)
  end
end

function TestLsuv:test_norms_running_statistics_and_the_mode_stay()
  local net = convolutions(true, true)
  local before = {}
  for name, t in pairs(net:state_dict()) do before[name] = t:clone() end
  nn.init.lsuv_(net, peri.randn(image))
  for name, t in pairs(net:state_dict()) do
    if name:find "bn" then lu.assertEquals(t:to("f64"):sub(before[name]:to "f64"):abs():sum():item(), 0, name) end
  end
  lu.assertTrue(net.training)
end

function TestLsuv:test_a_layer_that_is_used_twice_is_scaled_once()
  local layer = nn.Linear(5, 5)
  local x = peri.randn { 50, 5 }
  local _, layers = nn.init.lsuv_(nn.Sequential(layer, nn.Tanh(), layer), x)
  lu.assertEquals(#layers, 1)
  lu.assertAlmostEquals(layer(x):std({ ddof = 0 }):item(), 1, 1e-5)
end

function TestLsuv:test_a_function_runs_what_takes_more_than_one_argument()
  local cross, x, source = nn.CrossAttention(8, 2), peri.randn { 2, 5, 8 }, peri.randn { 2, 7, 8 }
  local _, layers = nn.init.lsuv_(cross, function (net) return net(x, source) end)
  lu.assertEquals(#layers, 3)
end

function TestLsuv:test_what_fails_leaves_every_weight_as_it_was_and_says_why()
  local x = peri.randn { 8, 6 }
  local function fails(want, net, batch)
    local before = {}
    for i, p in ipairs(net:parameters()) do before[i] = p:detach():clone() end
    local ok, err = pcall(nn.init.lsuv_, net, batch)
    lu.assertFalse(ok)
    lu.assertStrContains(tostring(err), want)
    lu.assertStrContains(tostring(err), "test_lsuv.lua")
    for i, p in ipairs(net:parameters()) do lu.assertEquals(p:detach():sub(before[i]):abs():sum():item(), 0) end
    for _, module in ipairs(net:modules()) do lu.assertNil(rawget(module, "_hooks")) end
  end
  fails("the batch does not reach 2", nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)),
    function (net) return net[1](x) end)
  fails("the output of 0 has standard deviation 0", deep(1, "Tanh"), peri.zeros { 8, 6 })
  fails("the output of 0 has standard deviation nan", deep(1, "Tanh"), peri.full({ 8, 6 }, 0 / 0))
  fails("inner sizes 5 and 6 differ", deep(1, "Tanh"), peri.randn { 8, 5 })
  fails("no Linear, Conv1d or Conv2d", nn.LayerNorm(6), x)
  fails("the module is of several networks", nn.Copies(2, function () return nn.MLP { 6, 2 } end), peri.randn { 2, 8, 6 })
  local a, b = nn.Linear(6, 6), nn.Linear(6, 6)
  b.weight = a.weight
  fails("1 shares the weight of 0", nn.Sequential(a, b), x)
  lu.assertErrorMsgContains("batch is 3, expected tensor or callable", nn.init.lsuv_, a, 3)
  lu.assertErrorMsgContains("module is 3, expected module", nn.init.lsuv_, 3, x)
  lu.assertErrorMsgContains("std is 0", nn.init.lsuv_, a, x, { std = 0 })
end

-- ---- the block of a residual network ----

function TestLsuv:test_a_block_is_the_sum_of_its_shortcut_and_two_convolutions()
  for _, sizes in ipairs { { 4, 4, 1 }, { 4, 6, 1 }, { 4, 4, 2 }, { 4, 8, 2 } } do
    for _, norm in ipairs { true, false } do
      local b, x = nn.BasicBlock(sizes[1], sizes[2], sizes[3], { norm = norm }), peri.randn { 3, 4, 7, 5 }
      b:eval()
      local plain = nn.BasicBlock(sizes[1], sizes[2], sizes[3], { norm = norm, residual = false }):eval()
      local report = plain:load_state_dict(b:state_dict(), { strict = false })
      lu.assertEquals(report.missing, {})
      local function f(y) -- before the last ReLU
        local h = plain.conv1(y)
        h = plain.conv2((norm and plain.bn1(h) or h):relu())
        return norm and plain.bn2(h) or h
      end
      local shortcut = b.downsample and b.downsample(x) or x
      lu.assertEquals(b.downsample ~= nil, sizes[1] ~= sizes[2] or sizes[3] ~= 1)
      local y = b(x)
      lu.assertEquals(y.shape, { 3, sizes[2], (7 + sizes[3] - 1) // sizes[3], (5 + sizes[3] - 1) // sizes[3] })
      lu.assertTrue(y:sub((f(x) + shortcut):relu()):abs():max():item() < 1e-5)
      lu.assertTrue(plain(x):sub(f(x):relu()):abs():max():item() < 1e-5)
    end
  end
end

function TestLsuv:test_a_block_that_begins_at_zero_is_its_shortcut()
  local b, x = nn.BasicBlock(4, 4, { zero = true }), peri.randn { 2, 4, 5, 5 }
  lu.assertEquals(b(x):sub(x:relu()):abs():max():item(), 0)
  for _, how in ipairs { { zero = true, norm = false }, { zero = true, residual = false } } do
    lu.assertErrorMsgContains("zero needs norm and residual", nn.BasicBlock, 4, 4, how)
  end
end

function TestLsuv:test_a_block_has_torchvisions_names()
  local names = {}
  for name in pairs(nn.BasicBlock(2, 4, 2):state_dict()) do names[#names + 1] = name:match "^(.*)%.[%w_]+$" end
  local seen = {}
  for _, name in ipairs(names) do seen[name] = true end
  lu.assertEquals(seen, { conv1 = true, bn1 = true, conv2 = true, bn2 = true, ["downsample.0"] = true,
    ["downsample.1"] = true })
end

os.exit(lu.LuaUnit.run())
