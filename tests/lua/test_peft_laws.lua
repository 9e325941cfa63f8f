-- Laws of adapters over every net that one can sit on: every layer of nn with a product or a table in it, every
-- architecture, and a model inside of a module.
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"
local models, nn, optim, peft = require "perilune.models", require "perilune.nn", require "perilune.optim", require "perilune.peft"

local dim = 8
local function vectors() return peri.randn { 2, 5, dim } end
local function ids() return peri.randint(0, 7, { 2, 5 }) end

-- Name -> how to make a net, its input, how it is run, what the adapter is to sit on.
local subjects = {}

local function layer(name, make, input, run, targets)
  subjects["nn " .. name] = { make = make, input = input or vectors, run = run or function(net, x) return net(x) end,
    targets = targets }
end

layer("Linear", function() return nn.Linear(dim, 3) end)
layer("Linear with an activation", function() return nn.Linear(dim, 3, { bias = false, activation = "gelu_tanh" }) end)
layer("Embedding", function() return nn.Embedding(7, dim) end, ids, nil, { "layer" })
layer("MultiHeadAttention", function() return nn.MultiHeadAttention(dim, 4, { kv_heads = 2, rope = true, qk_norm = true, bias = true }) end)
layer("CrossAttention", function() return nn.CrossAttention(dim, 2) end, nil, function(net, x) return net(x, x:mul(0.5)) end)
for _, kind in ipairs { "relu", "swiglu" } do layer("FeedForward " .. kind, function() return nn.FeedForward(dim, 6, { kind = kind }) end) end
layer("Block", function() return nn.Block(dim, 2) end)
layer("post-norm Block", function() return nn.Block(dim, 2, { norm_first = false }):checkpointing() end)
layer("Sequential", function() return nn.Sequential(nn.Linear(dim, 4), nn.Tanh(), nn.Linear(4, 2)) end)
layer("one of two", function() return nn.Sequential(nn.Linear(dim, 4), nn.Tanh(), nn.Linear(4, 2)) end, nil, nil, { "2" })
layer("shared", function()
  local one = nn.Linear(dim, dim)
  return nn.Sequential(one, nn.Tanh(), one)
end)
layer("table and products", function() return nn.Sequential(nn.Embedding(7, dim), nn.Block(dim, 2), nn.Linear(dim, 7)) end, ids, nil,
  { "0", "attention.qkv", "^2$" })

local folder = "tests/data/hf_tiny/"

local function run_model(model, input)
  if model.kind == "encoder-decoder" then return model:logits(model:forward(input, { labels = input })) end
  local hidden = model:forward(input)
  return (model.kind == "causal" or model.transform) and model:logits(hidden) or hidden
end

for _, name in ipairs(assert(peri.files.list(folder))) do
  if peri.files.exists(folder .. name .. "/config.json") then
    local subject = { make = function() return assert(models.load(folder .. name)) end, run = run_model,
      input = function() return peri.randint(1, 50, { 2, 6 }) end }
    subjects[name] = subject
    subjects[name .. " in a module"] = { input = subject.input, make = function()
      return nn.class("Outer", function(outer) outer.policy, outer.head = subject.make(), nn.Linear(4, 4) end)()
    end, run = function(outer, input) return run_model(outer.policy, input) end }
  end
end

local names = {}
for name in pairs(subjects) do names[#names + 1] = name end
table.sort(names)

-- Every element that something could be behind.
local function stirred(module, by)
  local _ <close> = peri.no_grad()
  for _, p in ipairs(module:parameters()) do p:add_(peri.randn_like(p):mul(by or 0.1)) end
  return module
end

local function output(subject, net, input)
  local _ <close> = peri.no_grad()
  return subject.run(net:eval(), input)
end

local function each(fn)
  for _, name in ipairs(names) do
    peri.seed(3)
    local ok, message = xpcall(fn, debug.traceback, subjects[name], name)
    if not ok then lu.fail(("%s: %s"):format(name, type(message) == "table" and message.msg or tostring(message))) end
  end
end

local function difference(a, b) return a:sub(b):abs():max():item() end

local function lora(subject, net, opts)
  local given = { r = 2, alpha = 6, targets = subject.targets }
  for key, value in pairs(opts or {}) do given[key] = value end
  return peft.lora(net, given)
end

TestPeftLaws = {}

function TestPeftLaws.test_an_adapter_changes_nothing_at_first_and_nothing_behind_it()
  each(function(subject)
    local net, input = stirred(subject.make()), subject.input()
    local want = output(subject, net, input):bytes()
    local adapter = lora(subject, net)
    lu.assertTrue(adapter:num_parameters() > 0)
    lu.assertEquals(output(subject, net, input):bytes(), want)
    stirred(adapter)
    lu.assertNotEquals(output(subject, net, input):bytes(), want)
    lu.assertEquals(adapter:disabled(output, subject, net, input):bytes(), want)
    lu.assertNotEquals(output(subject, net, input):bytes(), want)
    adapter:set_scale(0)
    lu.assertTrue(difference(output(subject, net, input), adapter:disabled(output, subject, net, input)) < 1e-6)
    adapter:remove()
    lu.assertEquals(output(subject, net, input):bytes(), want)
  end)
end

function TestPeftLaws.test_only_the_adapter_gets_gradients_and_learns()
  each(function(subject, name)
    local net, input = stirred(subject.make()), subject.input()
    local adapter = stirred(lora(subject, net))
    local before = {}
    for i, p in ipairs(net:parameters()) do before[i] = p:bytes() end
    local opt = optim.SGD(adapter, { lr = 1e-2 })
    subject.run(net:train(), input):square():mean():backward()
    local without = 0
    for _, entry in ipairs(adapter:named_parameters()) do
      local idle = entry[1]:find "experts%.%d" or entry[1]:find "pooler" or entry[1]:find "^head%." -- not on the way
      if not idle then lu.assertNotNil(entry[2].grad, entry[1]) end
      without = without + (entry[2].grad and 0 or 1)
    end
    lu.assertTrue(without < #adapter:parameters(), name)
    opt:step()
    for i, p in ipairs(net:parameters()) do
      lu.assertNil(p.grad)
      lu.assertEquals(p:bytes(), before[i])
    end
  end)
end

-- 1e-6 of the largest output of a layer or a block: one product more, rounded once. Models amplify that layer by layer.
function TestPeftLaws.test_merged_computes_the_same_and_comes_out_bit_for_bit()
  each(function(subject, name)
    local net, input = stirred(subject.make()), subject.input()
    local adapter = stirred(lora(subject, net))
    if subject.targets and (subject.targets[1] == "layer" or subject.targets[1] == "0") then -- a table of embeddings
      lu.assertErrorMsgContains("only linear layers take an adapter into their weights", adapter.merge, adapter)
      return
    end
    local state = {}
    for key, t in pairs(net:state_dict()) do state[key] = t:contiguous():bytes() end
    local apart = output(subject, net, input)
    adapter:merge()
    local off = difference(output(subject, net, input), apart) / math.max(1, apart:abs():max():item())
    lu.assertTrue(off <= (name:find "^nn " and 1e-6 or 2e-5), off)
    lu.assertErrorMsgContains("the adapter is part of the weights", adapter.disabled, adapter, print)
    adapter:unmerge()
    for key, t in pairs(net:state_dict()) do lu.assertEquals(t:contiguous():bytes(), state[key], key) end
    lu.assertEquals(output(subject, net, input):bytes(), apart:bytes())
  end)
end

function TestPeftLaws.test_a_saved_adapter_is_the_same_on_another_net_with_the_same_weights()
  each(function(subject)
    local net, input = stirred(subject.make()), subject.input()
    local adapter = stirred(lora(subject, net, { rslora = true }))
    local want = output(subject, net, input):bytes()
    local path = scratch.path()
    assert(adapter:save(path))
    local other = subject.make():load_state_dict(net:copy():state_dict())
    local again = assert(peft.load(other, path))
    lu.assertEquals(output(subject, other, input):bytes(), want)
    local mine, theirs = adapter:state_dict(), again:state_dict()
    for key, t in pairs(mine) do lu.assertEquals(theirs[key]:bytes(), t:bytes(), key) end
    lu.assertEquals(#again:parameters(), #adapter:parameters())
    peri.files.remove_tree(path)
    local copy = nn.class("Both", function(both) both.net, both.adapter = net, adapter end)():copy()
    lu.assertEquals(output(subject, copy.net, input):bytes(), want)
    stirred(copy.adapter)
    lu.assertNotEquals(output(subject, copy.net, input):bytes(), want)
    lu.assertEquals(output(subject, net, input):bytes(), want)
  end)
end

-- Bottleneck adapters sit behind the products that end a sub-layer, in blocks of nn as in published ones.
function TestPeftLaws.test_bottlenecks_sit_on_blocks_and_on_layers_by_name()
  for name, opts in pairs { ["nn Block"] = {}, ["nn post-norm Block"] = { where = "pfeiffer" }, ["nn Sequential"] = { targets = "0" },
    ["nn CrossAttention"] = { targets = { "out" } }, ["llama in a module"] = {}, ["t5"] = {} } do
    peri.seed(5)
    local subject = subjects[name]
    local net, input = stirred(subject.make()), subject.input()
    local want = output(subject, net, input):bytes()
    local adapter = peft.bottleneck(net, opts)
    lu.assertEquals(output(subject, net, input):bytes(), want, name)
    stirred(adapter)
    lu.assertNotEquals(output(subject, net, input):bytes(), want, name)
    lu.assertEquals(adapter:disabled(output, subject, net, input):bytes(), want)
    subject.run(net:train(), input):sum():backward()
    for _, p in ipairs(net:parameters()) do lu.assertNil(p.grad) end
    for _, entry in ipairs(adapter:named_parameters()) do lu.assertNotNil(entry[2].grad, entry[1]) end
    adapter:remove()
    lu.assertEquals(output(subject, net, input):bytes(), want)
  end
  lu.assertErrorMsgContains("no layer to put one on: name them with targets", peft.bottleneck, nn.Linear(2, 2))
end

function TestPeftLaws.test_a_prefix_is_off_within_disabled_and_learns_under_checkpointing()
  local model = assert(models.load(folder .. "llama"))
  local input = peri.randint(1, 50, { 2, 6 })
  local want = run_model(model, input):detach():bytes()
  local adapter = peft.prefix(model, { tokens = 3, projection = true, hidden = 4 })
  lu.assertNotEquals(run_model(model, input):detach():bytes(), want)
  lu.assertEquals(adapter:disabled(run_model, model, input):detach():bytes(), want)
  local function gradients(on)
    model:checkpointing(on)
    run_model(model, input):square():mean():backward()
    local out = {}
    for i, p in ipairs(adapter:parameters()) do out[i] = p.grad:bytes() end
    for _, p in ipairs(adapter:parameters()) do p:zero_grad() end
    return out
  end
  lu.assertEquals(gradients(true), gradients(false))
end

function TestPeftLaws.test_an_adapter_in_a_field_is_no_place_for_another()
  local net = nn.class("Both", function(both)
    both.block = nn.Block(dim, 2)
    both.first = peft.bottleneck(both.block)
  end)()
  for _, entry in ipairs(peft.lora(net):named_parameters()) do lu.assertNotNil(entry[1]:find "^block%.") end
end

function TestPeftLaws.test_what_has_no_place_for_an_adapter_is_refused()
  for text, call in pairs {
    ["lora: model is 3, expected table"] = function() peft.lora(3) end,
    ["lora: model is a table of its own, expected a published model or a module of nn"] = function() peft.lora {} end,
    ["lora: the model has no linear layer to put one on"] = function() peft.lora(nn.LayerNorm(4)) end,
    ['lora: no layer is called "qvk"; there are qkv, out, up, down'] = function() peft.lora(nn.Block(4, 2), { targets = "qvk" }) end,
    ["disabled: fn is 3, expected callable"] = function() peft.lora(nn.Linear(2, 2)):disabled(3) end,
    ["mine"] = function() peft.lora(nn.Linear(2, 2)):disabled(function() error("mine", 0) end) end,
  } do
    local ok, message = pcall(call)
    lu.assertFalse(ok, text)
    lu.assertStrContains(message, text)
    if text ~= "mine" then lu.assertStrContains(message, "test_peft_laws.lua") end
  end
  local net = nn.Linear(2, 2)
  local adapter = stirred(peft.lora(net))
  local x = peri.ones { 1, 2 }
  local on = net(x):tolist()
  pcall(adapter.disabled, adapter, error)
  lu.assertEquals(net(x):tolist(), on) -- whatever happened in there, it is on again
  lu.assertFalse(adapter:is_off())
  adapter:disabled(function()
    lu.assertTrue(adapter:is_off())
    adapter:disabled(print)
    lu.assertTrue(adapter:is_off())
  end)
end

os.exit(lu.LuaUnit.run())
