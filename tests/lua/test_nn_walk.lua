-- What a module holds: wherever and whenever it was put there, it is trained, saved, printed and moved.
local lu = require "luaunit"
local peri = require "perilune"
local nn = require "perilune.nn"
local peft, models, optim = require "perilune.peft", require "perilune.models", require "perilune.optim"

local function names(module)
  local list = {}
  for i, pair in ipairs(module:named_parameters()) do list[i] = pair[1] end
  return list
end

local function keys(state)
  local list = {}
  for name in pairs(state) do list[#list + 1] = name end
  table.sort(list)
  return list
end

local function layer() return nn.Linear(2, 2, { bias = false }) end
local function param() return nn.parameter(peri.ones { 2 }) end

local Net = nn.class("Net")

-- How a module can be filled: function(net), and the names that the parameters then have.
local ways = {
  field = { function(net) net.a = layer() end, { "a.weight" } },
  field_later = { function(net) net.a = 1 net.a = layer() end, { "a.weight" } },
  field_again = { function(net) net.a = false net.b = param() net.a = param() end, { "a", "b" } },
  list = { function(net) net.l = { layer(), layer() } end, { "l.0.weight", "l.1.weight" } },
  list_later = { function(net)
    net.l = {}
    net.z = param()
    for i = 1, 2 do net.l[i] = layer() end
  end, { "l.0.weight", "l.1.weight", "z" } },
  list_mixed = { function(net) net.l = { 3, "x", layer(), false, param() } end, { "l.2.weight", "l.4" } },
  list_replaced = { function(net) net.l = {} net.l = { layer() } end, { "l.0.weight" } },
  list_of_tensors = { function(net) net.l = { param(), param() } end, { "l.0", "l.1" } },
  list_with_holes = { function(net) net.l = {} net.l[3] = param() net.l[1] = param() end, { "l.0", "l.2" } },
  named = { function(net) net.t = { zeta = layer(), alpha = param() } end, { "t.alpha", "t.zeta.weight" } },
  named_later = { function(net) net.t = {} net.t.b = layer() net.t.a = layer() end, { "t.a.weight", "t.b.weight" } },
  nested = { function(net) net.t = { { { layer() } }, x = { y = { param() } } } end, { "t.0.0.0.weight", "t.x.y.0" } },
  module_in_module = { function(net) net.m = Net() net.m.n = Net() net.m.n.p = param() end, { "m.n.p" } },
  numbered = { function(net) net[1] = layer() net[2] = param() end, { "0.weight", "1" } },
  inserted = { function(net) table.insert(net, layer()) table.insert(net, 1, param()) end, { "0", "1.weight" } },
  tensor_later = { function(net) net.w = 1 net.w = peri.ones({ 2 }):requires_grad_() end, { "w" } },
  tensor_turned = { function(net) net.w = peri.ones { 2 } net.w:requires_grad_() end, { "w" } },
  module_list = { function(net) net.l = nn.ModuleList() net.l:append(layer()):append(layer()) end,
    { "l.0.weight", "l.1.weight" } },
  module_dict = { function(net) net.d = nn.ModuleDict { b = layer(), a = layer() } net.d.c = layer() end,
    { "d.a.weight", "d.b.weight", "d.c.weight" } },
}

TestWalk = {}

function TestWalk:setUp() peri.seed(1) end

local function each(fn)
  local order = keys(ways)
  for _, what in ipairs(order) do
    local net = Net()
    ways[what][1](net)
    fn(what, net, ways[what][2])
  end
end

function TestWalk:test_parameters_have_these_names_in_this_order()
  each(function(what, net, want)
    lu.assertEquals(names(net), want, what)
    lu.assertEquals(names(net), want, what)
    lu.assertEquals(#net:parameters(), #want, what)
  end)
end

function TestWalk:test_every_one_is_trained()
  each(function(what, net)
    local before = {}
    for i, p in ipairs(net:parameters()) do
      before[i] = p:clone()
      p.grad = peri.ones_like(p)
    end
    optim.SGD(net, { lr = 0.5 }):step()
    for i, p in ipairs(net:parameters()) do
      lu.assertTrue(p:detach():sub(before[i]):add(0.5):abs():max():item() < 1e-6, what)
    end
    net:zero_grad()
    for _, p in ipairs(net:parameters()) do lu.assertNil(p.grad, what) end
  end)
end

function TestWalk:test_every_one_is_saved_and_loaded()
  each(function(what, net, want)
    local sorted = table.move(want, 1, #want, 1, {})
    table.sort(sorted)
    lu.assertEquals(keys(net:state_dict()), sorted, what)
    local other = Net()
    ways[what][1](other)
    for _, p in ipairs(net:parameters()) do p:detach():copy_(peri.randn_like(p)) end
    other:load_state_dict(net:state_dict())
    for i, p in ipairs(other:parameters()) do lu.assertEquals(p:tolist(), net:parameters()[i]:tolist(), what) end
    lu.assertErrorMsgContains("missing", other.load_state_dict, other, {})
  end)
end

function TestWalk:test_every_one_is_moved_frozen_and_turned()
  each(function(what, net, want)
    net:freeze()
    lu.assertEquals(names(net), want, what) -- a parameter for good
    for _, p in ipairs(net:parameters()) do lu.assertFalse(p.requires_grad, what) end
    net:to "f64"
    lu.assertEquals(names(net), want, what)
    net:unfreeze()
    for _, p in ipairs(net:parameters()) do
      lu.assertTrue(p.requires_grad, what)
      lu.assertEquals(p.dtype, "f64", what)
    end
    net:eval()
    local n = 0
    net:apply(function(m)
      n = n + 1
      lu.assertFalse(m.training, what)
    end)
    lu.assertEquals(n, #net:modules())
    local shown = tostring(net)
    for _, name in ipairs(want) do
      local place = name:match "^(.*)%.weight$"
      place = place and ("." .. place):gsub("%.(%d+)", function (i) return ("[%d]"):format(i + 1) end):gsub("^%.", "")
      if place and what ~= "module_list" and what ~= "module_dict" then lu.assertStrContains(shown, place .. ": Linear", false, what) end
    end
  end)
end

function TestWalk:test_what_was_taken_out_is_gone()
  local net = Net()
  net.l, net.a, net.d = { layer(), layer() }, layer(), nn.ModuleDict { x = layer() }
  net.l[2], net.a = nil, nil
  net.d:remove "x"
  lu.assertEquals(names(net), { "l.0.weight" })
  net.l[1] = param()
  lu.assertEquals(names(net), { "l.0" })
  net.a = param()
  net.l = nil
  net.l = { param() }
  lu.assertEquals(names(net), { "a", "l.0" }) -- what comes again comes last
end

function TestWalk:test_private_names_stay_private_at_every_depth()
  local net = Net()
  net._a, net.t, net._l = layer(), { _b = layer(), c = param() }, { layer() }
  lu.assertEquals(names(net), { "t.c" })
  lu.assertEquals(keys(net:state_dict()), { "t.c" })
  lu.assertEquals(#net:modules(), 1)
end

function TestWalk:test_buffers_are_saved_wherever_they_stand()
  local net = Net()
  net.t = { mean = peri.zeros { 2 }, list = { peri.ones { 1 } } }
  lu.assertEquals(names(net), {})
  lu.assertEquals(keys(net:state_dict()), { "t.list.0", "t.mean" })
  net:to "f64"
  lu.assertEquals(net.t.mean.dtype, "f64")
end

-- ---- references back, to and fro, twice ----

local function linked(n)
  local net = Net()
  net.l = {}
  for i = 1, n do net.l[i] = Net() net.l[i].w = param() end
  for i = 1, n do
    for k = 1, n do if k ~= i then net.l[i]["to" .. k] = net.l[k] end end
    net.l[i].parent, net.l[i].all = net, net.l
  end
  net.self, net.loop = net, {}
  net.loop[1], net.loop.back = net.loop, net.loop
  return net
end

function TestWalk:test_modules_that_refer_to_each_other_are_visited_once()
  local net = linked(9) -- paths without repetition: about a million
  lu.assertEquals(#net:parameters(), 9)
  lu.assertEquals(#net:modules(), 10)
  lu.assertEquals(#keys(net:state_dict()), 9)
  lu.assertEquals(net:num_parameters(), 18)
  net:train():eval():freeze():unfreeze():zero_grad()
  net:to "f64"
  lu.assertStrContains(tostring(net), "parent: Net, the whole")
  local visits = 0
  net:apply(function() visits = visits + 1 end)
  lu.assertEquals(visits, 10)
  net:load_state_dict(linked(9):state_dict())
  optim.SGD(net, { lr = 1 })
end

function TestWalk:test_a_child_can_name_its_parent()
  local net = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
  net[1].parent = net
  lu.assertEquals(names(net), { "0.weight", "0.bias" })
  lu.assertEquals(net(peri.ones { 1, 2 }).shape, { 1, 2 })
end

function TestWalk:test_a_shared_module_has_the_name_of_its_first_place_and_loads_by_both()
  local function make()
    local net = Net()
    net.a = layer()
    net.b = { net.a }
    return net
  end
  local net = make()
  lu.assertEquals(names(net), { "a.weight" })
  lu.assertEquals(keys(net:state_dict()), { "a.weight" })
  lu.assertStrContains(tostring(net), "b[1]: Linear, the same as a")
  local w = peri.full({ 2, 2 }, 7)
  net:load_state_dict { ["a.weight"] = w, ["b.0.weight"] = w:clone() } -- as others write it
  lu.assertEquals(net.a.weight:tolist(), w:tolist())
  lu.assertEquals(make():load_state_dict({ ["b.0.weight"] = w }).a.weight:tolist(), w:tolist())
  net:to "f64"
  lu.assertTrue(rawequal(net.a, net.b[1]))
end

-- The second of two values would be lost.
function TestWalk:test_a_tied_tensor_takes_one_value_alone()
  local function make()
    local net = Net()
    net.a, net.c = layer(), layer()
    net.b, net.d = { net.a }, net.c.weight
    return net
  end
  local w, other, nan = peri.full({ 2, 2 }, 7), peri.zeros { 2, 2 }, peri.full({ 2, 2 }, 0 / 0)
  for _, case in ipairs { { "a.weight", "b.0.weight", "c.weight", "d" }, { "c.weight", "d", "a.weight", "b.0.weight" } } do
    local net = make()
    local before = net:state_dict()[case[1]]:bytes()
    lu.assertErrorMsgContains(("one tensor here, with different values: %s and %s"):format(case[1], case[2]),
      net.load_state_dict, net, { [case[1]] = w, [case[2]] = other, [case[3]] = w, [case[4]] = w })
    lu.assertEquals(net:state_dict()[case[1]]:bytes(), before)
    net:load_state_dict { [case[1]] = nan, [case[2]] = nan:clone(), [case[3]] = w, [case[4]] = w:to "f64" }
  end
end

-- Assigning to an entry that is there calls nothing: what it holds is looked at whenever the modules are.
function TestWalk:test_containers_hold_modules_without_gaps_whatever_was_assigned()
  local function asked(net)
    return { net.parameters, net.state_dict, net.modules, function(n) n:load_state_dict {} end, net.train }
  end
  local function list() return nn.ModuleList { layer(), layer(), layer() } end
  local function sequential() return nn.Sequential(layer(), layer(), layer()) end
  for message, case in pairs {
    ["ModuleList: entry 2 is a number, expected a module"] = { list, function(n) n[2] = 5 end },
    ["ModuleList: entry 3 is missing, there is one at 4"] = { list, function(n) n[3], n[4] = nil, layer() end },
    ["ModuleList: entry 1 is missing, there is one at 3"] = { list, function(n) n[1] = nil end },
    ["Sequential: part 2 is missing, there is one at 3"] = { sequential, function(n) n[2] = nil end },
    ["Sequential: part 1 is a boolean, expected a module or a function"] = { sequential, function(n) n[1] = false end },
    ["ModuleDict: a is a number, expected a module"] = { function() return nn.ModuleDict { a = layer() } end,
      function(n) n.a = 1 end },
  } do
    local net = Net()
    net.held = case[1]()
    case[2](net.held)
    for _, call in ipairs(asked(net)) do lu.assertErrorMsgContains(message, call, net) end
    lu.assertErrorMsgContains(message, optim.SGD, net, { lr = 1 })
  end
  local gap = sequential()
  gap[2] = nil
  lu.assertErrorMsgContains("part 2 is missing", gap, peri.ones { 1, 2 })
  lu.assertErrorMsgContains('the key "a", expected a list of modules', nn.ModuleList, { a = layer() })
  for _, name in ipairs { "training", "forward", "keys", "_x", "a.b", "" } do
    lu.assertErrorMsgContains("ModuleDict: ", nn.ModuleDict, { [name] = layer() })
    lu.assertErrorMsgContains("ModuleDict: ", nn.ModuleDict().set, nn.ModuleDict(), name, layer())
  end
end

function TestWalk:test_names_that_modules_need_are_refused_for_what_they_hold()
  local net = Net()
  for _, name in ipairs { "forward", "parameters", "state_dict", "train", "to" } do
    lu.assertErrorMsgContains(("a field called %q would hide the method"):format(name), function() net[name] = layer() end)
  end
  net.training = layer()
  lu.assertErrorMsgContains("training is a table, expected true or false", net.parameters, net)
end

function TestWalk:test_a_tensor_in_two_tables_is_one_parameter()
  local net, p = Net(), param()
  net.a = { p }
  net.t = { x = p }
  lu.assertEquals(names(net), { "a.0" })
  lu.assertEquals(keys(net:state_dict()), { "a.0", "t.x" })
  net:to "f64"
  lu.assertTrue(rawequal(net.a[1], net.t.x))
end

-- ---- what cannot be held raises, and says how ----

function TestWalk:test_what_has_no_name_is_refused()
  local function refused(text, fill)
    local net = Net()
    local ok, message = pcall(function()
      fill(net)
      net:parameters()
      net:state_dict()
    end)
    lu.assertFalse(ok, text)
    lu.assertStrContains(message, text)
    lu.assertStrContains(message, "test_nn_walk.lua")
  end
  refused("h is the result of operations", function(net) net.h = param():mul(2) end)
  refused("t.0 is the result of operations", function(net) net.t = { param():mul(2) } end)
  refused("under a key that is a boolean", function(net) net.t = { [true] = layer() } end)
  refused("under a key that is a table", function(net) local l = layer() net.t = { [l] = param() } end)
  refused("whose name is a boolean", function(net) net[true] = layer() end)
  refused('called "t.a.b"', function(net) net.t = { ["a.b"] = param(), a = { b = param() } } end)
  refused('called "t.0"', function(net) net.t = { param(), ["0"] = param() } end)
  refused("x: the tensor was released by its scope", function(net) for _ in peri.steps(1) do net.x = peri.ones { 1 } end end)
  local Other = { __name = "Other" }
  refused("o is a Other of its own class, and its fc would be neither", function(net)
    net.o = setmetatable({ fc = layer() }, Other)
  end)
  refused("l.0 is a Other", function(net) net.l = { setmetatable({ w = param() }, Other) } end)
  refused("freeze: no parameter's name matches", function(net) net.a = layer() net:freeze "^b%." end)
  refused("the dtype is i64", function(net) net.a = layer() net:to "i64" end)
  refused("w is a number, expected a tensor", function(net) net.w = param() net:load_state_dict { w = 1 } end)
  refused('unknown option "strct"', function(net) net:load_state_dict({}, { strct = false }) end)
  refused("a tensor of i64, expected f32", function() nn.parameter(peri.zeros({ 1 }, "i64")) end)
  refused("Net has no forward", function(net) net(1) end)
end

function TestWalk:test_objects_with_metatables_of_their_own_are_not_looked_into()
  local net = Net()
  net.block = nn.Block(4, 2)
  net.cache = nn.KVCache(1, 4, 2, 2)
  net.caches = nn.caches(net, 1, 4)
  net.opt = optim.SGD(net, { lr = 1 })
  lu.assertEquals(#names(net), #net.block:parameters())
  lu.assertEquals(#keys(net:state_dict()), #net.block:parameters())
end

-- ---- published models and adapters inside of modules ----

function TestWalk:test_a_published_model_and_its_adapter_belong_to_the_module_that_holds_them()
  local function make()
    local net = Net()
    net.base = assert(models.load "tests/data/hf_tiny/llama")
    net.extra = { lora = peft.lora(net.base, { r = 2 }) }
    net.head = layer()
    return net
  end
  local net = make()
  lu.assertEquals(#names(net), #net.base:parameters() + #net.extra.lora:parameters() + 1)
  lu.assertEquals(#keys(net:state_dict()), #keys(net.base:state_dict()) + #net.extra.lora:parameters() + 1)
  for _, p in ipairs(net:parameters()) do p:detach():mul_(0.5) end
  local other = make():load_state_dict(net:state_dict())
  local state, again = net:state_dict(), other:state_dict()
  for name, t in pairs(state) do lu.assertEquals(t:sub(again[name]):abs():max():item(), 0, name) end
  lu.assertStrContains(tostring(net), "base: llama")
  net:eval()
  lu.assertFalse(net.base.training)
  lu.assertFalse(net.extra.lora.training)
  local packed = Net()
  packed.base = assert(models.load("tests/data/hf_tiny/llama", { pack = true }))
  lu.assertErrorMsgContains("base.embed.weight is packed, whose dtype is chosen when it is loaded", packed.to, packed, "f64")
  lu.assertErrorMsgContains("missing base.", other.load_state_dict, other, { ["head.weight"] = peri.zeros { 2, 2 } })
  other:load_state_dict({ ["base.model.norm.weight"] = peri.full({ net.base.settings.dim }, 3) }, { strict = false })
  lu.assertEquals(other:state_dict()["base.model.norm.weight"]:at(1), 3)
  lu.assertEquals(#optim.SGD(net, { lr = 1 }):parameters(), #net:parameters())
end

-- ---- containers ----

TestContainers = {}

function TestContainers:test_a_module_list_is_a_list()
  local a, b, c, d = layer(), layer(), layer(), layer()
  local list = nn.ModuleList { a, c }
  list:insert(2, b):extend { d }
  lu.assertEquals(#list, 4)
  lu.assertTrue(rawequal(list[2], b) and rawequal(list[3], c))
  local seen = {}
  for i, m in ipairs(list) do seen[i] = m end
  for i, m in list:iterate() do lu.assertTrue(rawequal(seen[i], m)) end
  lu.assertTrue(rawequal(list:remove(1), a))
  lu.assertTrue(rawequal(list:remove(), d))
  lu.assertEquals(#list, 2)
  lu.assertEquals(names(list), { "0.weight", "1.weight" })
  lu.assertTrue(rawequal(list[1], b))
  lu.assertEquals(#nn.ModuleList(a, b), 2)
  lu.assertEquals(#nn.ModuleList(), 0)
  lu.assertErrorMsgContains("for _, m in ipairs(list)", list, peri.ones { 1, 2 })
  for _, case in ipairs {
    { "entry 2 is a number", function() nn.ModuleList { a, 3 } end }, { "a number, expected a list", function() nn.ModuleList(3) end },
    { "append: entry 3 is a nil", function() list:append() end }, { "entry 1 is a string", function() list:extend { "x" } end },
    { "place 9, expected an integer from 1 to 3", function() list:insert(9, a) end },
    { "place 0, expected an integer from 1 to 2", function() list:remove(0) end },
  } do
    local ok, message = pcall(case[2])
    lu.assertFalse(ok)
    lu.assertStrContains(message, case[1])
    lu.assertStrContains(message, "test_nn_walk.lua")
  end
end

function TestContainers:test_a_module_dict_keeps_the_order_in_which_it_was_filled()
  local dict = nn.ModuleDict { b = layer(), a = layer() }
  dict.z = layer()
  dict:set("c", layer())
  lu.assertEquals(dict:keys(), { "a", "b", "z", "c" })
  lu.assertEquals(names(dict), { "a.weight", "b.weight", "z.weight", "c.weight" })
  local order = {}
  for name, m in pairs(dict) do
    order[#order + 1] = name
    lu.assertTrue(rawequal(m, dict[name]))
  end
  lu.assertEquals(order, dict:keys())
  lu.assertEquals(#dict, 4)
  dict:remove "a"
  dict.a = layer()
  lu.assertEquals(dict:keys(), { "b", "z", "c", "a" })
  for _, case in ipairs {
    { '"forward" is the name of a method', function() dict.forward = layer() end }, { "x is a number", function() dict.x = 3 end },
    { "expected a string", function() dict[1] = layer() end }, { "without dots", function() dict["a.b"] = layer() end },
    { "underscore", function() dict._x = layer() end }, { "the key 1 is a number", function() nn.ModuleDict { layer() } end },
    { 'unknown module "q"', function() dict:remove "q" end }, { "cannot be called", function() dict(1) end },
    { "b is a number", function() dict:set("b", 1) end },
  } do
    local ok, message = pcall(case[2])
    lu.assertFalse(ok, case[1])
    lu.assertStrContains(message, case[1])
    lu.assertStrContains(message, "test_nn_walk.lua")
  end
end

function TestContainers:test_every_option_of_every_layer_is_checked()
  for _, case in ipairs {
    { "in_features is 0", function() nn.Linear(0, 2) end }, { "out_features is -1", function() nn.Linear(2, -1) end },
    { "in_features is 2.5", function() nn.Linear(2.5, 2) end }, { "bias is 1", function() nn.Linear(2, 2, { bias = 1 }) end },
    { 'activation is "cube"', function() nn.Linear(2, 2, { activation = "cube" }) end },
    { "argument 3 is true", function() nn.Linear(2, 2, true) end }, { "std is -1", function() nn.Embedding(2, 2, { std = -1 }) end },
    { "eps is 0", function() nn.LayerNorm(2, { eps = 0 }) end }, { "eps is nan", function() nn.RMSNorm(2, { eps = 0 / 0 }) end },
    { "groups is 0", function() nn.GroupNorm(0, 4) end }, { "3 groups", function() nn.GroupNorm(3, 4) end },
    { "p is 1", function() nn.Dropout(1) end }, { "p is -0.1", function() nn.Dropout(-0.1) end },
    { "dim is 1.5", function() nn.Softmax(1.5) end }, { "beta is 0", function() nn.Softplus(0) end },
    { 'approximate is "erf"', function() nn.GELU "erf" end }, { "argument 1 is 3", function() nn.ReLU(3) end },
    { "heads is 0", function() nn.MultiHeadAttention(4, 0) end }, { "window is -1", function() nn.MultiHeadAttention(4, 2, { window = -1 }) end },
    { "theta is 0", function() nn.MultiHeadAttention(4, 2, { rope = { theta = 0 } }) end },
    { "rope is 3", function() nn.MultiHeadAttention(4, 2, { rope = 3 }) end },
    { "dim 5 does not divide", function() nn.MultiHeadAttention(5, 2) end },
    { 'kind is "cube"', function() nn.FeedForward(2, 2, { kind = "cube" }) end },
    { 'norm is "batch"', function() nn.Block(4, 2, { norm = "batch" }) end },
    { "dropout is 1", function() nn.Block(4, 2, { dropout = 1 }) end }, { "length is 0", function() nn.KVCache(1, 0, 1, 1) end },
    { 'did you mean "mask"', function() nn.MultiHeadAttention(4, 2)(peri.ones { 1, 2, 4 }, { maks = 1 }) end },
    { "part 2 is a nil", function() nn.Sequential(nn.Tanh(), nil) end }, { "part 1 is a number", function() nn.Sequential():add(1) end },
    { "the name is a nil", function() nn.class() end }, { "expected a function", function() nn.class("X", 3) end },
  } do
    local ok, message = pcall(case[2])
    lu.assertFalse(ok, case[1])
    lu.assertStrContains(message, case[1])
    lu.assertStrContains(message, "test_nn_walk.lua")
  end
end
