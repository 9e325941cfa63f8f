-- The registry of activations: what an entry of it is at once, everywhere.
local lu = require "luaunit"
local peri = require "perilune"
local nn = peri.nn
local activation = require "perilune.nn.activation"
local fields = require "perilune.models.fields"

local list = peri.activations()

local function same(a, b, what)
  lu.assertEquals(a.shape, b.shape, what)
  lu.assertTrue((a - b):abs():max():item() <= 1e-6, what)
end

local function help(x)
  local out, real = {}, print
  print = function(text) out[#out + 1] = text end -- luacheck: ignore 121
  local ok, message = pcall(peri.help, x)
  print = real -- luacheck: ignore 121
  assert(ok, message)
  return table.concat(out, "\n")
end

TestActivations = {}

function TestActivations.test_names_are_of_one_activation_each()
  local seen = {}
  for _, a in ipairs(list) do
    for _, name in ipairs { a.name, a.layer, table.unpack(a.published) } do
      lu.assertNil(seen[name], name)
      seen[name] = true
    end
  end
  lu.assertTrue(#list >= 9)
end

for _, a in ipairs(list) do
  TestActivations[("test_%s is an op, a mode of linear and of gates, a layer, a kind"):format(a.name)] = function ()
    peri.seed(3)
    local x, w, b = peri.randn { 5, 6 }, peri.randn { 8, 6 }, peri.randn { 8 }
    local pre = x:linear(w, b)
    local y = pre[a.name](pre)
    same(x:linear(w, b, a.name), y, "linear")
    same(nn[a.layer]()(pre), y, "layer")
    lu.assertStrContains(tostring(nn[a.layer]()), a.layer)
    local gate, up = pre:narrow(-1, 1, 4), pre:narrow(-1, 5, 4)
    same(pre:gated(a.name), gate[a.name](gate):mul(up), "gated")
    same(peri.gated_mul(gate, up, a.name), gate[a.name](gate):mul(up), "gated_mul")
    local net = nn.FeedForward(6, 7, { kind = a.name, gated = true })
    lu.assertEquals(net.up.weight.shape, { 14, 6 })
    same(net(x), net.down(net.up(x):gated(a.name)), "FeedForward")
    local layer = nn.Linear(6, 8, { activation = a.name })
    same(layer(x), x:linear(layer.weight, layer.bias, a.name), "Linear")
    if a.gain then
      lu.assertEquals(nn.init.gain(a.name), a.gain)
      nn.init.kaiming_normal_(w, { activation = a.name })
    end
    for _, name in ipairs { a.name, table.unpack(a.published) } do
      lu.assertEquals(fields.activation({ act = name }, "act"), a.name)
      lu.assertEquals(activation.published(name).name, a.name)
    end
    lu.assertEquals(activation.layer(a.layer).name, a.name)
    lu.assertStrContains(help(nn[a.layer]), "nn." .. a.layer)
    lu.assertNotStrContains(help(nn[a.layer]), "no comment")
  end

  TestActivations[("test_%s by sample"):format(a.name)] = function ()
    peri.seed(4)
    local x, w = peri.randn { 3, 6 }, peri.randn({ 8, 6 }):requires_grad_()
    local function loss(rows) return rows:linear(w, nil, a.name):sum(2) end
    local grads = peri.per_sample_grad(loss, { w }, x)
    for i = 1, 3 do
      local one = peri.grad(loss(x:narrow(1, i, 1)):sum(), { w })[1]
      same(grads[1]:select(1, i), one, "sample " .. i)
    end
  end
end

-- Names of transformers' ACT2FN that mean an activation of ours.
function TestActivations.test_names_of_published_configs()
  for name, want in pairs {
    gelu = "gelu", gelu_python = "gelu", gelu_new = "gelu_tanh", gelu_fast = "gelu_tanh", gelu_pytorch_tanh = "gelu_tanh",
    gelu_accurate = "gelu_tanh", quick_gelu = "quick_gelu", relu = "relu", relu2 = "relu_squared", sigmoid = "sigmoid",
    silu = "silu", swish = "silu", tanh = "tanh", mish = "mish",
  } do lu.assertEquals(fields.activation({ hidden_act = name }, "hidden_act"), want) end
end

function TestActivations.test_unknown_names_are_told_the_nearest()
  local function refused(fn, ...)
    local ok, message = pcall(fn)
    lu.assertFalse(ok)
    for _, text in ipairs { ... } do lu.assertStrContains(message, text) end
  end
  refused(function () fields.activation({ model_type = "x", hidden_act = "gelu_neu" }, "hidden_act") end,
    "hidden_act", "gelu_neu", "gelu_new")
  refused(function () fields.activation({ hidden_act = 3 }, "hidden_act") end, "hidden_act")
  refused(function () fields.activation({}, "hidden_act", "sillu") end, "silu")
  refused(function () peri.ones({ 2 }):linear(peri.ones { 2, 2 }, nil, "swish") end, "swish", "silu")
  refused(function () peri.ones({ 2 }):gated "relu7" end, "relu7", "relu", "mish")
  refused(function () peri.ones({ 2 }):gated "none" end, "none")
  refused(function () nn.Linear(2, 2, { activation = "gelu_tan" }) end, "gelu_tanh")
  refused(function () nn.init.gain "softplu" end, "softplu")
end

os.exit(lu.LuaUnit.run())
