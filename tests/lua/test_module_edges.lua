-- Modules at the edges of the protocol: tied and shared tensors, layers that go and what hangs on them, values that are
-- views of what they are loaded into, classes that hold tensors, scopes.
local lu = require "luaunit"
local peri = require "perilune"
local nn, models, peft = peri.nn, peri.models, peri.peft

local function config(tied)
  return { model_type = "llama", vocab_size = 40, hidden_size = 16, intermediate_size = 24, num_hidden_layers = 2,
    num_attention_heads = 2, tie_word_embeddings = tied }
end

local function largest(a, b) return a:sub(b):abs():max():item() end

local function scores(model, ids) return model:logits(model:forward(ids)):detach() end

local function stirred(module)
  peri.no_grad(function ()
    for _, p in ipairs(module:parameters()) do p:add_(peri.randn_like(p)) end
  end)
  return module
end

local Tied = nn.class("Tied", function (self)
  self.table = nn.Embedding(9, 4)
  self.out = nn.Linear(4, 9, { bias = false })
  self.out.weight = self.table.weight
end)
function Tied:forward(ids) return self.out(self.table(ids)) end

TestModuleEdges = {}

function TestModuleEdges:test_values_that_trade_places_are_read_before_they_are_written()
  local net = nn.ModuleDict { a = nn.Linear(3, 3), b = nn.Linear(3, 3) }
  local a, b = net.a.weight:tolist(), net.b.weight:tolist()
  local state = net:state_dict()
  state["a.weight"], state["b.weight"] = state["b.weight"], state["a.weight"]:transpose()
  net:load_state_dict(state)
  lu.assertEquals(net.a.weight:tolist(), b)
  lu.assertEquals(net.b.weight:transpose():tolist(), a)
  for _, name in ipairs { "llama", "gpt2", "qwen2" } do -- in parts, turned
    local model = assert(models.load("tests/data/hf_tiny/" .. name))
    local mine, want, first, second = model:state_dict(), {}, nil, nil
    for _, key in ipairs { "model.layers.%d.self_attn.q_proj.weight", "transformer.h.%d.attn.c_attn.weight" } do
      if mine[key:format(0)] then first, second = key:format(0), key:format(1) end
    end
    mine[first], mine[second] = mine[second], mine[first]
    for key, t in pairs(mine) do want[key] = t:clone():bytes() end
    model:load_state_dict(mine)
    for key, t in pairs(model:state_dict()) do lu.assertEquals(t:contiguous():bytes(), want[key], key) end
  end
end

function TestModuleEdges:test_a_tied_head_that_comes_with_values_of_its_own_is_refused()
  local model = models.llama.new(config(true))
  local state, before = model:state_dict(), model.embed.weight:bytes()
  state["lm_head.weight"] = state["model.embed_tokens.weight"]:clone()
  model:load_state_dict(state)
  state["lm_head.weight"]:mul_(2)
  for _, strict in ipairs { true, false } do
    lu.assertErrorMsgContains("one tensor here, with different values: lm_head.weight and model.embed_tokens.weight",
      model.load_state_dict, model, state, { strict = strict })
  end
  state["model.embed_tokens.weight"] = nil -- alone it is the one
  lu.assertEquals(model.embed.weight:bytes(), before)
  model:load_state_dict(state)
  lu.assertEquals(model.embed.weight:bytes(), state["lm_head.weight"]:bytes())
end

function TestModuleEdges:test_a_tied_head_follows_another_table()
  local ids, model = peri.randint(0, 40, { 2, 5 }), models.llama.new(config(true))
  local new = nn.Embedding(40, 16)
  lu.assertEquals(getmetatable(model:replace("embed", new)), nn.Embedding)
  local folder = os.tmpname()
  os.remove(folder)
  assert(model:save(folder))
  lu.assertEquals(largest(scores(assert(models.load(folder)), ids), scores(model, ids)), 0)
  peri.files.remove_tree(folder)
  -- what holds the old one leaves the tie as it is, what has no rows cannot stand there
  local Around = nn.class("Around", function (one, inner) one.inner = inner end)
  function Around:forward(x) return self.inner(x) end
  local want = scores(model, ids)
  model:replace("embed", Around(new))
  lu.assertEquals(largest(scores(model, ids), want), 0)
  model:replace("embed", new)
  lu.assertErrorMsgContains("replace: embed is a Embedding: head, a TiedHead, reads it as its embedding",
    model.replace, model, "embed", Around(nn.Linear(1, 1)))
  lu.assertTrue(rawequal(model:get "embed", new))
end

function TestModuleEdges:test_an_adapter_is_not_lost_with_a_block_that_goes()
  local model = models.llama.new(config(false))
  local adapter = stirred(peft.lora(model, { r = 2, targets = { "q_proj" } }))
  local old, ids = model:get "layers.1", peri.randint(0, 40, { 2, 5 })
  lu.assertErrorMsgContains("layers.1.attention.qkv in it: an adapter is on it: take that off before", model.replace,
    model, "layers.1", nn.Identity())
  lu.assertTrue(rawequal(model:get "layers.1", old))
  local want, Around = scores(model, ids), nn.class("Around", function (one, inner) one.inner = inner end)
  function Around:forward(x, ...) return self.inner:forward(x, ...) end
  model:replace("layers.1", Around(old)) -- it stays where it is
  lu.assertTrue(largest(scores(model, ids), want) < 1e-5)
  adapter:remove()
  model:replace("layers.1", nn.Identity())
end

function TestModuleEdges:test_no_adapter_is_merged_into_a_tensor_that_stands_elsewhere_too()
  local net, ids = Tied(), peri.randint(0, 9, { 2, 3 })
  local adapter = stirred(peft.lora(net, { r = 2, targets = { "out" } }))
  local want = net(ids):detach()
  lu.assertErrorMsgContains("cannot merge into out: its weight is one tensor in table.weight and out.weight",
    adapter.merge, adapter)
  lu.assertEquals(largest(net(ids), want), 0)
end

function TestModuleEdges:test_every_module_of_a_pass_is_hooked_in_every_architecture()
  local ids = peri.randint(1, 30, { 2, 6 })
  for _, name in ipairs(assert(peri.files.list "tests/data/hf_tiny")) do
    local folder = "tests/data/hf_tiny/" .. name
    if peri.files.exists(folder .. "/config.json") then
      local model, seen = assert(models.load(folder)), {}
      for _, entry in ipairs(model:named_modules()) do
        entry[2]:hook(function (module) seen[module] = true end)
      end
      if model.kind == "encoder-decoder" then model:logits(model:forward(ids, { labels = ids }))
      elseif model.kind == "causal" or model.transform then model:logits(model:forward(ids))
      else model:forward(ids) end
      for _, entry in ipairs(model:named_modules()) do
        local asleep = entry[1]:find "experts" or entry[1] == "pooler" -- by the tokens; of sentences
        lu.assertTrue(seen[entry[2]] or asleep ~= nil, name .. ": " .. entry[1])
      end
    end
  end
end

function TestModuleEdges:test_what_a_forward_under_a_hook_raises_points_at_the_caller()
  for _, name in ipairs { "llama", "t5", "bert" } do
    local model = assert(models.load("tests/data/hf_tiny/" .. name))
    model:hook(function () end)
    for _, bad in ipairs { { "text" }, { peri.randint(1, 30, { 2, 5 }), { maks = true } } } do
      local ok, message = pcall(function () model:forward(bad[1], bad[2]) end)
      lu.assertFalse(ok)
      lu.assertStrContains(message, "test_module_edges.lua")
    end
  end
  lu.assertErrorMsgContains("test_module_edges.lua", function ()
    assert(models.load "tests/data/hf_tiny/t5"):summary(peri.randint(1, 30, { 2, 5 }))
  end)
end

function TestModuleEdges:test_a_class_holds_neither_parameters_nor_modules()
  local Net = nn.class "Net"
  lu.assertErrorMsgContains("Net.w: the class cannot hold a parameter", function () Net.w = nn.parameter(peri.ones { 1 }) end)
  lu.assertErrorMsgContains("Net.fc: the class cannot hold a module", function () Net.fc = nn.Linear(1, 1) end)
  lu.assertNil(rawget(Net, "w"))
  Net.mean = peri.ones { 1 } -- a constant may
  lu.assertEquals(Net().mean:item(), 1)
end

function TestModuleEdges:test_tensors_in_objects_are_refused_however_deep()
  local Net = nn.class "Net"
  local net = Net()
  local ring = {}
  ring.ring = ring
  net.fine = setmetatable({ ring = ring, names = { "a" } }, {})
  for _, inner in ipairs { { a = { b = { peri.ones { 1 } } } }, { list = { { nn.Linear(1, 1) } } }, { ring, { w = peri.ones { 1 } } } } do
    lu.assertErrorMsgContains("x is an object of its own class", function () net.x = setmetatable(inner, {}) end)
  end
  net.x = setmetatable({ _private = { peri.ones { 1 } } }, {})
end

function TestModuleEdges:test_two_modules_of_one_path_are_named()
  local Net = nn.class "Net"
  local net = Net()
  net.t = { nn.Tanh(), ["0"] = nn.ReLU() } -- without a tensor
  for _, what in ipairs { "named_modules", "modules", "summary" } do
    lu.assertErrorMsgContains('two modules are called "t.0"', net[what], net)
  end
  lu.assertErrorMsgContains('get: two modules are called "t.0"', net.get, net, "t.0")
end

function TestModuleEdges:test_a_path_that_is_none_is_said_with_those_there_are()
  local net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
  lu.assertErrorMsgContains('there is no module or tensor "[0]"', net.get, net, "[0]")
  lu.assertErrorMsgContains("there is no module or tensor", net.get, net, "[99999999999999999999]")
  lu.assertErrorMsgContains('there is no module "0.weight"; there are', net.replace, net, "0.weight", nn.Linear(1, 1))
  lu.assertErrorMsgContains("apply: fn is missing, expected callable", net.apply, net)
end

function TestModuleEdges:test_what_is_made_in_a_scope_stays()
  local ids, x = peri.randint(0, 40, { 2, 5 }), peri.randn { 2, 3, 8 }
  local makers = {
    function () return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Block(8, 2, { rope = true, norm = "rms" })) end,
    function () return nn.Sequential(nn.Linear(8, 8)):copy() end,
    function ()
      local net = nn.Sequential(nn.Linear(8, 8))
      net:replace("0", nn.FeedForward(8, 4, { kind = "swiglu" }))
      return net
    end,
  }
  for _, make in ipairs(makers) do
    local net
    do
      local scope <close> = peri.scope() -- luacheck: ignore 211
      net = make()
    end
    net:unfreeze()
    net(x):sum():backward()
    for _, p in ipairs(net:parameters()) do lu.assertNotNil(p.grad) end
  end
  for _, make in ipairs { function () return models.llama.new(config(true)) end,
    function () return models.llama.new(config(true)):copy() end,
    function () return assert(models.load "tests/data/hf_tiny/llama") end,
    function () return assert(models.load("tests/data/hf_tiny/llama", { dtype = "q8_0" })):copy() end,
    function () return assert(models.load "tests/data/hf_tiny/gemma2"):to "bf16" end,
    function () return assert(models.load("tests/data/hf_tiny/deepseek_v3")) end } do
    local model
    do
      local scope <close> = peri.scope() -- luacheck: ignore 211
      model = make()
    end
    lu.assertEquals(scores(model, ids):size(1), 2)
  end
end

os.exit(lu.LuaUnit.run())
