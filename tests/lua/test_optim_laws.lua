-- Laws over every optimizer and schedule: what is out of range is refused where it is given, what can
-- never be trained too, and nothing is changed by what is refused.
local lu = require "luaunit"
local bounds = require "bounds"
local peri = require "perilune"
local models, nn, optim, options = require "perilune.models", require "perilune.nn", require "perilune.optim", require "perilune.options"
local peft, sched = require "perilune.peft", require "perilune.optim.sched"

local kinds = { "SGD", "Adam", "AdamW", "RMSprop", "Lamb", "Muon" }

local function param(v) return nn.parameter(peri.full({ 1, 1 }, v or 1)) end
local function required(name) return name == "SGD" and { lr = 0.1 } or {} end

local function refused(text, fn, file)
  local ok, message = pcall(fn)
  lu.assertFalse(ok, text)
  lu.assertStrContains(message, text)
  lu.assertStrContains(message, file or "test_optim_laws.lua") -- blames the caller
end

TestOptimLaws = {}

function TestOptimLaws:test_every_option_out_of_range_is_refused_in_the_constructor_and_in_a_group()
  local n = 0
  for _, name in ipairs(kinds) do
    local known = options.declared(optim[name])
    lu.assertTrue(#known.options >= 4, name)
    for _, o in ipairs(known.options) do
      lu.assertNotEquals(o.doc, "", name .. "." .. o.name)
      for _, bad in ipairs(bounds.bad(o.kind)) do
        n = n + 1
        local text = ("%s is"):format(o.name)
        local given = required(name)
        given[o.name] = bad
        refused(text, function() optim[name]({ param() }, given) end)
        refused("group 2: " .. text, function()
          optim[name]({ { params = { param() } }, { params = { param() }, [o.name] = bad } }, required(name))
        end)
      end
      local good = bounds.good(o.kind)
      if good ~= nil then
        local given = required(name)
        given[o.name] = good
        optim[name]({ param() }, given)
      end
    end
    refused("unknown option", function() optim[name]({ param() }, { lr = 1, foo = 2 }) end)
    refused("group 1: unknown option", function() optim[name]({ { params = { param() }, foo = 2 } }, required(name)) end)
    refused("options are 3", function() optim[name]({ param() }, 3) end)
  end
  lu.assertTrue(n > 150)
  refused("nesterov needs momentum", function() optim.SGD({ param() }, { lr = 1, nesterov = true }) end)
  refused("group 1: nesterov needs", function()
    optim.SGD({ { params = { param() }, momentum = 0 } }, { lr = 1, momentum = 0.9, nesterov = true })
  end)
end

function TestOptimLaws:test_every_option_of_a_step_out_of_range_is_refused_and_moves_nothing()
  for _, name in ipairs(kinds) do
    local p = param()
    local opt = optim[name]({ p }, required(name))
    p.grad = peri.full({ 1, 1 }, 5)
    local _, plain = opt:state_dict()
    for _, o in ipairs(options.declared(opt.step).options) do
      for _, bad in ipairs(bounds.bad(o.kind)) do refused(o.name .. " is", function() opt:step { [o.name] = bad } end) end
    end
    refused("unknown option", function() opt:step { lrr = 1 } end)
    refused("options are 0.1", function() opt:step(0.1) end)
    lu.assertEquals(p:item(), 1)
    lu.assertEquals(select(2, opt:state_dict()), plain)
  end
  local p = param()
  local lamb = optim.Lamb({ p })
  refused("takes no clip", function() lamb:step { clip = 1 } end)
end

-- A clip may only shorten: the direction stays that of descent.
function TestOptimLaws:test_a_clip_never_turns_the_gradient_round()
  for _, clip in ipairs { 1e-8, 0.5, 5, 1e8, math.huge } do
    local p = param()
    p.grad = peri.full({ 1, 1 }, 5)
    optim.SGD({ p }, { lr = 0.1 }):step { clip = clip }
    lu.assertTrue(p:item() <= 1 and p:item() >= 0.5 - 1e-6, tostring(clip))
  end
end

-- ---- each once ----

function TestOptimLaws:test_a_parameter_given_twice_is_refused_in_every_way()
  for _, name in ipairs(kinds) do
    local function new(list) return function() optim[name](list, required(name)) end end
    local p, q = param(), param()
    refused("parameter 3 is parameter 1 once more", new { p, q, p })
    refused("parameter 1 of group 2 is parameter 2 of group 1 once more", new { { params = { q, p } }, { params = { p } } })
    refused("share memory", new { p, nn.parameter(p:detach()) })
  end
  local w = nn.parameter(peri.zeros { 4, 2 })
  local rows = nn.parameter(w:detach():narrow(1, 2, 2))
  refused("parameter 1 and parameter 2 share memory", function() optim.AdamW { w, rows } end)
  local top, bottom = nn.parameter(w:detach():narrow(1, 1, 2)), nn.parameter(w:detach():narrow(1, 3, 2))
  optim.AdamW { top, bottom } -- side by side is not the same
  local net = nn.Linear(2, 2)
  refused("parameter 1 of group 2 (weight) is parameter 1 of group 1 once more", function()
    optim.AdamW { { params = { net.weight } }, { params = net } }
  end)
end

function TestOptimLaws:test_tied_weights_of_a_module_are_one()
  local net = nn.class("Tied", function(tied)
    tied.a = nn.Linear(2, 2)
    tied.b = tied.a.weight
  end)()
  lu.assertEquals(#optim.AdamW(net):parameters(), 2)
end

-- ---- what can never get a gradient ----

function TestOptimLaws:test_tensors_that_can_never_get_a_gradient_are_refused_by_place_and_name()
  local p = param()
  local q4 = peri.ones({ 2, 32 }):to "q8_0"
  for _, case in ipairs {
    { "parameter 2 takes no gradients", { p, peri.ones { 1, 1 } } },
    { "parameter 2 is the result of operations", { p, p:mul(2) } },
    { "parameter 1 is the result of operations", { p:transpose(1, 2) } },
    { "parameter 2 is i64", { p, peri.ones({ 1, 1 }, "i64") } },
    { "parameter 2 is bool", { p, peri.ones({ 1, 1 }, "bool") } },
    { "parameter 2 is q8_0", { p, q4 } },
    { "parameter 2 is f16", { p, peri.ones({ 1, 1 }, "f16"):requires_grad_() } },
    { "parameter 2 is bf16", { p, nn.parameter(peri.ones({ 1, 1 }, "bf16")) } },
    { "parameter 1 of group 2 takes no gradients", { { params = { p } }, { params = { peri.ones { 1, 1 } } } } },
    { "parameter 2 is a number", { p, 3 } }, { "parameters are a tensor", p }, { "parameters are a nil", nil },
    { "parameters are a string", "x" }, { "has the key \"w\"", { p, w = p } }, { "no parameters", {} },
    { "group 2 is a tensor", { { params = { p } }, p } }, { "group 1 is a table without params", { { p } } },
    { "no parameters", { { params = {} } } }, { "group 1: parameters are a number", { { params = 3 } } },
  } do
    refused(case[1], function() optim.SGD(case[2], { lr = 1 }) end)
  end
  refused("expected a matrix", function() optim.Muon { nn.parameter(peri.ones { 3 }) } end)
  refused("parameter 2 (bias) has 1 dims, expected a matrix", function() optim.Muon(nn.Linear(2, 2)) end)
  refused("parameter 1 (weight) is f16", function() optim.SGD(nn.Linear(2, 2):to "f16", { lr = 1 }) end)
end

function TestOptimLaws:test_frozen_parameters_wait_and_all_frozen_are_refused()
  local net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
  net:freeze "^0%."
  local lists = { function() return net end, function() return net:parameters() end,
    function() return optim.decay_groups(net, 0.1) end }
  for _, list in ipairs(lists) do lu.assertEquals(#optim.AdamW(list()):parameters(), 4) end
  local opt = optim.SGD(net, { lr = 1 })
  local before = net[1].weight:tolist()
  local function step() net(peri.ones { 1, 2 }):sum():backward() opt:step():zero_grad() end
  step()
  lu.assertEquals(net[1].weight:tolist(), before)
  net:unfreeze()
  step()
  lu.assertNotEquals(net[1].weight:tolist(), before)
  net:freeze()
  for _, list in ipairs(lists) do refused("all are frozen", function() optim.AdamW(list()) end) end
end

function TestOptimLaws:test_everything_with_parameters_is_taken()
  local model = assert(models.load "tests/data/hf_tiny/llama")
  lu.assertEquals(#optim.AdamW(model):parameters(), #model:parameters())
  lu.assertEquals(#optim.AdamW(optim.decay_groups(model, 0.1)):parameters(), #model:parameters())
  for _, kind in ipairs { "lora", "bottleneck", "prefix" } do
    local adapter = peft[kind](model)
    local head = nn.Linear(2, 2)
    lu.assertEquals(#optim.AdamW(adapter):parameters(), #adapter:parameters(), kind)
    lu.assertEquals(#optim.AdamW({ adapter, head }):parameters(), #adapter:parameters() + 2)
    lu.assertEquals(#optim.AdamW({ { params = adapter }, { params = head, lr = 1 } }):parameters(), #adapter:parameters() + 2)
    refused("those of an adapter are adapter:parameters()", function() optim.AdamW(model) end)
    if adapter.remove then adapter:remove() end
  end
  local quantised = assert(models.load("tests/data/hf_tiny/llama", { dtype = "f16" }))
  refused("is f16", function() optim.AdamW(quantised) end)
  refused("parameter 1 (embed.weight)", function() optim.AdamW(quantised) end)
end

-- A model that nobody trains may be of any dtype beside what is trained: an adapter over quantised weights.
function TestOptimLaws:test_weights_that_nothing_could_move_are_left_out_where_their_model_is_frozen()
  local Policy = nn.class("Policy", function(policy, opts)
    policy.base = assert(models.load("tests/data/hf_tiny/llama", opts))
    policy.lora = peft.lora(policy.base, { r = 2 })
    policy.value = nn.Linear(policy.base.settings.dim, 1)
  end)
  for text, opts in pairs { f16 = { dtype = "f16" }, q8_0 = { dtype = "q8_0" }, packed = { dtype = "q8_0", pack = true } } do
    local policy = Policy(opts)
    local opt = optim.SGD(policy, { lr = 1, groups = { { pattern = "^value", lr = 2 } } })
    local idle = 0
    for _, p in ipairs(policy:parameters()) do if p.packed or p.dtype ~= "f32" then idle = idle + 1 end end
    lu.assertTrue(idle > 10, text)
    lu.assertEquals(#opt:parameters(), #policy:parameters() - idle)
    lu.assertStrContains(tostring(opt), ("%d frozen ones left out"):format(idle))
    policy.value(policy.base:forward(peri.arange(6):reshape { 1, 6 })):sum():backward()
    local before = policy.value.bias:item()
    opt:step()
    lu.assertAlmostEquals(policy.value.bias:item(), before - 12, 1e-5) -- lr 2 times the 6 positions
    refused("all are frozen", function() optim.SGD(policy.base, { lr = 1 }) end)
    for _, p in ipairs(policy.base:parameters()) do if p.dtype == "f32" and not p.packed then p:requires_grad_() end end
    refused("(base.embed.weight) is", function() optim.SGD(policy, { lr = 1 }) end) -- half of it trained is no frozen one
  end
end

-- ---- rates ----

function TestOptimLaws:test_groups_keep_their_ratio_or_with_a_common_rate_of_0_their_rate()
  local function go(groups, common, ...)
    local a, b = param(), param()
    groups[1].params, groups[2].params = { a }, { b }
    local opt = optim.SGD(groups, { lr = common })
    local out = {}
    for _, lr in ipairs { ... } do
      local x, y = a:item(), b:item()
      a.grad, b.grad = peri.ones { 1, 1 }, peri.ones { 1, 1 }
      opt:step { lr = lr ~= "own" and lr or nil }:zero_grad()
      out[#out + 1] = math.floor((x - a:item()) * 1e5 + 0.5) / 1e5
      out[#out + 1] = math.floor((y - b:item()) * 1e5 + 0.5) / 1e5
    end
    return out
  end
  lu.assertEquals(go({ { lr = 1 }, {} }, 0.1, "own", 0.05, 0, 0.1), { 1, 0.1, 0.5, 0.05, 0, 0, 1, 0.1 })
  lu.assertEquals(go({ { lr = 1 }, {} }, 0, "own", 0.1, 0), { 1, 0, 1, 0.1, 1, 0 })
  lu.assertEquals(go({ { lr_scale = 10 }, {} }, 0, "own", 0.1, 0.02), { 0, 0, 1, 0.1, 0.2, 0.02 })
  lu.assertEquals(go({ { lr = 0 }, {} }, 0.1, "own", 1), { 0, 0.1, 0, 1 })
  refused("either lr or lr_scale", function() go({ { lr = 1, lr_scale = 2 }, {} }, 1) end)
  refused("lr_scale is -1", function() go({ { lr_scale = -1 }, {} }, 1) end)
end

-- ---- gradients that are not finite ----

function TestOptimLaws:test_a_step_that_is_not_finite_moves_nothing_and_is_counted()
  for _, name in ipairs(kinds) do
    for _, bad in ipairs { 0 / 0, math.huge, -math.huge } do
      local p, q = param(), param()
      local opt = optim[name]({ { params = { p } }, { params = { q } } }, required(name))
      local function step(g, o)
        p.grad, q.grad = peri.ones { 1, 1 }, peri.full({ 1, 1 }, g)
        opt:step(o):zero_grad()
      end
      step(bad)
      lu.assertEquals({ p:item(), q:item(), opt.skipped, opt.was_skipped }, { 1, 1, 1, true }, name)
      lu.assertTrue(opt.grad_norm ~= opt.grad_norm or opt.grad_norm == math.huge)
      refused("the norm of the gradients is", function() step(bad, { nonfinite = "error" }) end)
      if name ~= "Lamb" then step(bad, { clip = 1 }) else step(bad) end
      lu.assertEquals({ p:item(), q:item(), opt.skipped }, { 1, 1, 2 }, name)
      step(1)
      lu.assertEquals({ opt.skipped, opt.was_skipped }, { 2, false }, name)
      lu.assertAlmostEquals(opt.grad_norm, math.sqrt(2), 1e-6)
      lu.assertTrue(p:item() < 1, name)
      step(bad, { nonfinite = "apply" })
      lu.assertEquals(opt.skipped, 2)
    end
  end
end

function TestOptimLaws:test_dtypes_of_parameters_may_differ_and_gradients_follow_them()
  local p, q = param(), nn.parameter(peri.ones({ 1, 1 }, "f64"))
  local opt = optim.SGD({ p, q }, { lr = 1 })
  p.grad, q.grad = peri.full({ 1, 1 }, 3), peri.full({ 1, 1 }, 4, "f64")
  lu.assertAlmostEquals(opt:norm(), 5, 1e-6)
  opt:step { clip = 1 }
  lu.assertAlmostEquals(p:item(), 0.4, 1e-5)
  lu.assertAlmostEquals(q:item(), 0.2, 1e-5)
  if pcall(function() p.grad = peri.ones({ 1, 1 }, "f64") end) then
    refused("the gradient of parameter 1 is f64, the parameter f32", function() opt:step() end)
  end
end

-- ---- states ----

function TestOptimLaws:test_a_state_that_does_not_fit_is_refused_by_name_and_changes_nothing()
  local function make(groups)
    local opt = optim.AdamW(groups)
    for _, p in ipairs(opt:parameters()) do p.grad = peri.ones_like(p) end
    return opt:step()
  end
  local a, b = nn.parameter(peri.ones { 2 }), nn.parameter(peri.ones { 3 })
  local opt = make { { params = { a } }, { params = { b } } }
  local tensors, plain = opt:state_dict()
  local kept = { tensors["0.m"]:tolist(), plain.steps }
  local function but(t, changes)
    local out = {}
    for k, v in pairs(t) do out[k] = v end
    for k, v in pairs(changes) do out[k] = v ~= "nil" and v or nil end
    return out
  end
  for _, case in ipairs {
    { "missing 1.v of parameter 1 of group 2", but(tensors, { ["1.v"] = "nil" }), plain },
    { "unexpected 7.m", but(tensors, { ["7.m"] = peri.ones { 1 } }), plain },
    { "0.m has (3) f32, parameter 1 of group 1 has (2) f32", but(tensors, { ["0.m"] = peri.ones { 3 } }), plain },
    { "0.m has (2) f64", but(tensors, { ["0.m"] = peri.ones({ 2 }, "f64") }), plain },
    { "0.m is a number", but(tensors, { ["0.m"] = 3 }), plain },
    { "expected AdamW for 2", tensors, but(plain, { name = "SGD" }) }, { "for 1 parameters", tensors, but(plain, { steps = { 1 } }) },
    { "steps of parameter 2 are -1", tensors, but(plain, { steps = { 1, -1 } }) }, { "lr is -1", tensors, but(plain, { lr = -1 }) },
    { "group 1 had 2 parameters, has 1", tensors, but(plain, { groups = { 2 } }) }, { "second argument is a nil", tensors, nil },
    { "the tensors are a nil", nil, plain }, { "names are a number, expected a list", tensors, but(plain, { names = 5 }) },
    { "groups are a string", tensors, but(plain, { groups = "2" }) }, { "skipped is x", tensors, but(plain, { skipped = "x" }) },
  } do
    refused(case[1], function() opt:load_state_dict(case[2], case[3]) end)
    lu.assertEquals({ (opt:state_dict())["0.m"]:tolist(), select(2, opt:state_dict()).steps }, kept)
  end
  local function named(...)
    local names = { ... }
    return nn.class("N", function(s) for _, name in ipairs(names) do s[name] = param() end end)()
  end
  local t, s = make(named("a", "b")):state_dict()
  refused("parameter 1 (c) was a", function() optim.AdamW(named("c", "b")):load_state_dict(t, s) end)
  refused("parameter 2 (c) was b", function() optim.AdamW(named("a", "c")):load_state_dict(t, s) end)
  refused("parameter 2 (a) would take the state of parameter 1", function()
    optim.AdamW({ param(), { "a", param() } }):load_state_dict(t, s)
  end)
end

-- A state finds its parameters by name, whatever their order and groups; so did states of before by place.
function TestOptimLaws:test_a_state_survives_another_order_and_other_groups()
  for _, kind in ipairs(kinds) do
    local names = { "a", "b", "c", "d" }
    local net = nn.class("N", function(n) for i, name in ipairs(names) do n[name] = param(i) end end)()
    local function run(opt, steps)
      for k = 1, steps do
        for i, name in ipairs(names) do net[name].grad = peri.full({ 1, 1 }, i * 0.3 + k) end
        opt:step():zero_grad()
      end
      local out = {}
      for i, name in ipairs(names) do out[i] = net[name]:item() end
      return out
    end
    local opt = optim[kind](net, { lr = 0.1 })
    local start = run(opt, 2)
    local tensors, plain = opt:state_dict()
    local kept = {}
    for key, t in pairs(tensors) do
      lu.assertTrue(key:find "^[abcd]%." ~= nil, key)
      kept[key] = t:clone()
    end
    local want = run(opt, 2)
    local old = {}
    for i, name in ipairs(names) do
      for key, t in pairs(kept) do
        if key:sub(1, 2) == name .. "." then old[i - 1 .. key:sub(2)] = t end
      end
    end
    local function go(made, state)
      for i, name in ipairs(names) do net[name]:detach():fill_(start[i]) end
      made:load_state_dict(state, peri.json.decode(peri.json.encode(plain)))
      lu.assertEquals(run(made, 2), want, kind)
    end
    local backwards, list = {}, net:named_parameters()
    for i, pair in ipairs(list) do backwards[#list + 1 - i] = pair end
    go(optim[kind](net, { lr = 0.1 }), old)
    for _, state in ipairs { kept, old } do
      go(optim[kind](backwards, { lr = 0.1 }), state)
      if kind ~= "Lamb" then go(optim[kind](net, { lr = 0.1, groups = { { pattern = "[bd]" }, { pattern = "a" } } }), state) end
    end
  end
end

-- ---- what parameters may come as ----

local function rows(net) return net:named_parameters() end

function TestOptimLaws:test_a_module_its_parameters_and_any_list_of_them_are_trained_alike()
  for _, kind in ipairs(kinds) do
    local function trained(as, given)
      peri.seed(1)
      local bias = kind ~= "Muon"
      local net = nn.Sequential(nn.Linear(3, 4, { bias = bias }), nn.Tanh(), nn.Linear(4, 2, { bias = bias }))
      local opt = optim[kind](as(net), given or { lr = 0.05 })
      local held = {}
      for _, p in ipairs(opt:parameters()) do held[p] = (held[p] or 0) + 1 end
      for _, p in ipairs(net:parameters()) do lu.assertEquals(held[p], 1) end
      lu.assertEquals(#opt:parameters(), #net:parameters())
      for i = 1, 3 do
        net(peri.full({ 2, 3 }, i)):square():sum():backward()
        opt:step():zero_grad()
      end
      local out = {}
      for i, p in ipairs(net:parameters()) do out[i] = p:bytes() end
      return out
    end
    local want = trained(function(net) return net end)
    for _, as in ipairs { function(net) return net:parameters() end, rows, function(net) return { net } end,
      function(net) return { net[1], net[3] } end, function(net) return { { params = net } } end,
      function(net) return { { params = { net[1] } }, { params = net[3]:parameters() } } end,
      function(net) return { net[3], table.unpack(rows(net[1])) } end, function(net) -- a parameter of each kind
        local first, rest = optim.split(net, { pattern = "^0" })
        return { { params = first }, { params = rest } }
      end } do
      local got = trained(as)
      if kind ~= "Lamb" then lu.assertEquals(got, want, kind) end -- whose norm is that of a group
    end
    local by_name = trained(function(net) return net end, { lr = 0.05, groups = { { pattern = "^2%.", lr = 0.1 } } })
    local by_hand = trained(function(net) return { { params = net[3], lr = 0.1 }, { params = net[1] } } end)
    lu.assertEquals(by_name, by_hand, kind)
    lu.assertNotEquals(by_name, want)
  end
end

-- Groups drawn at random: the first choice that means a parameter has it, and none has two or no group.
function TestOptimLaws:test_every_parameter_is_in_exactly_one_group_the_first_that_means_it()
  peri.seed(3)
  local model = assert(models.load "tests/data/hf_tiny/llama")
  local net = nn.class("Both", function(both)
    both.policy, both.value = model, nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 1))
  end)()
  local choices = { { pattern = "norm" }, { pattern = "%.bias$" }, { pattern = "^value" }, { pattern = { "embed", "head" } },
    { pattern = "." }, { where = function(_, p) return p.ndim < 2 end }, { where = function(name) return #name % 2 == 0 end },
    { pattern = "^policy", where = function(_, p) return p.ndim == 2 end } }
  local function means(how, name, p)
    local found = how.pattern == nil
    for _, one in ipairs(type(how.pattern) == "table" and how.pattern or { how.pattern }) do
      found = found or name:find(one) ~= nil
    end
    return found and (how.where == nil or how.where(name, p))
  end
  local made = 0
  for _ = 1, 60 do
    local list = {}
    for i = 1, 1 + math.floor(peri.rand({ 1 }):item() * 4) do
      list[i] = { weight_decay = i / 100 }
      for k, v in pairs(choices[1 + math.floor(peri.rand({ 1 }):item() * #choices)]) do list[i][k] = v end
    end
    local want, counts = {}, {}
    for _, pair in ipairs(net:named_parameters()) do
      local at = #list + 1
      for i = #list, 1, -1 do if means(list[i], pair[1], pair[2]) then at = i end end
      want[pair[2]], counts[at] = at, (counts[at] or 0) + 1
    end
    local empty
    for i = #list, 1, -1 do if not counts[i] then empty = i end end
    if empty then refused(("AdamW: group %d: "):format(empty), function() optim.AdamW(net, { groups = list }) end)
    else
      made = made + 1
      local opt, seen = optim.AdamW(net, { groups = list, weight_decay = 1 }), 0
      for g, group in ipairs(opt.groups) do
        for _, p in ipairs(group.params) do
          seen = seen + 1
          lu.assertEquals(want[p], g)
          lu.assertEquals(group.options.weight_decay, g > #list and 1 or g / 100)
        end
      end
      lu.assertEquals(seen, #net:named_parameters())
    end
  end
  lu.assertTrue(made > 20)
end

function TestOptimLaws:test_a_pattern_means_paths_and_the_names_that_models_publish()
  local model = assert(models.load "tests/data/hf_tiny/llama")
  local function sizes(pattern, net)
    local list = {}
    for g, group in ipairs(optim.AdamW(net or model, { groups = { { pattern = pattern } } }).groups) do list[g] = #group.params end
    return list[1]
  end
  local layers = #model.layers
  lu.assertEquals(sizes "input_layernorm", layers)
  lu.assertEquals(sizes "o_proj", layers)
  lu.assertEquals(sizes { "q_proj", "k_proj", "v_proj" }, layers)
  lu.assertEquals(sizes("^policy%.model%.layers%.0%.mlp%.down_proj", nn.class("N", function(n) n.policy = model end)()), 1)
  refused("which is one tensor with model.layers.0.self_attn.k_proj.weight here", function() sizes "q_proj" end)
end

function TestOptimLaws:test_choices_that_mean_nothing_or_are_none_are_refused()
  local net = nn.Linear(2, 2)
  for _, name in ipairs(kinds) do
    local function new(groups, params)
      local given = required(name)
      given.groups = groups
      return function() optim[name](params or { { "weight", param() }, { "bias", param() } }, given) end
    end
    for text, groups in pairs {
      ['group 1: pattern "nrm" means none of the parameters; there are: weight, bias'] = { { pattern = "nrm" } },
      ['group 2: every parameter that pattern "bias" means is in a group before it'] = { { pattern = "bias" }, { pattern = "bias" } },
      ['group 1: unknown option "patern"; did you mean "pattern"?'] = { { patern = "bias" } },
      ["group 2 has neither pattern nor where"] = { { pattern = "bias" }, { lr = 1 } },
      ['group 1: unknown option "params"'] = { { pattern = "bias", params = {} } },
      ["group 1: where means none"] = { { where = function() return false end } },
      ["group 1: pattern is 3"] = { { pattern = 3 } }, ["group 1: where is true"] = { { where = true } },
      ["entry 2 of the patterns is a number"] = { { pattern = { "x", 3 } } }, ["is malformed"] = { { pattern = "[" } },
      ['groups has the key "pattern"'] = { pattern = "bias" }, ["group 1 is a number"] = { 3 }, ["groups is 3"] = 3,
      ["group 1 is a table, expected"] = { net }, ["group 1: lr is -1"] = { { pattern = "bias", lr = -1 } },
    } do refused(text, new(groups)) end
    refused("none of them has a name", new({ { pattern = "bias" } }, { param() }))
    refused("the parameters are groups already", new({ { pattern = "bias" } }, { { params = { param() } } }))
  end
  refused("split has neither pattern nor where", function() optim.split(net, {}) end)
  refused('split: pattern "x" means none', function() optim.split(net, { pattern = "x" }) end)
  local weights, biases = optim.split({ net, nn.parameter(peri.ones { 2 }) }, { where = function(_, p) return p.ndim == 2 end })
  lu.assertEquals({ #weights, #biases, weights[1][1], biases[1][1] }, { 1, 2, "0.weight", "0.bias" })
  local opt = optim.AdamW(net:freeze "bias")
  lu.assertStrContains(tostring(opt), "2 tensors (1 frozen)")
end

-- ---- fields, and modules that change ----

function TestOptimLaws:test_fields_set_by_hand_are_checked_before_anything_moves()
  for _, name in ipairs { "SGD", "Adam", "AdamW", "Lamb", "RMSprop", "Muon" } do
    local a, b = nn.parameter(peri.ones { 2, 2 }), nn.parameter(peri.ones { 2, 2 })
    local opt = optim[name]({ { params = { a } }, { params = { b } } }, { lr = 0.1 })
    local function refuses(what, set, reset)
      a.grad, b.grad = peri.ones { 2, 2 }, peri.ones { 2, 2 }
      set()
      refused(what, function() opt:step() end)
      lu.assertEquals({ a:sum():item(), b:sum():item() }, { 4, 4 }, name)
      reset()
    end
    for _, bad in ipairs { -1, 0 / 0, math.huge, "1" } do
      refuses("step: lr is ", function() opt.lr = bad end, function() opt.lr = 0.1 end)
      for key, was in pairs(opt.groups[2].options) do
        if type(was) == "number" and key ~= "lr" and not (key == "steps" and bad == "1") then
          refuses(("step: %s is "):format(key), function() opt.groups[2].options[key] = bad end,
            function() opt.groups[2].options[key] = was end)
        end
      end
    end
    opt:step()
    lu.assertNotEquals(a:sum():item(), 4)
  end
end

-- The ops that hosts call have the same bounds: a negative rate turns the step round.
function TestOptimLaws:test_the_fused_ops_refuse_what_turns_a_step_round()
  local calls = {
    sgd_ = { "momentum", "dampening", "weight_decay", "grad_scale" }, adam_ = { "weight_decay", "grad_scale" },
    adamw_ = { "weight_decay", "grad_scale" }, rmsprop_ = { "momentum", "weight_decay", "grad_scale" },
    lamb_ = { "weight_decay" }, muon_ = { "weight_decay", "grad_scale" },
  }
  local lists = { sgd_ = 3, adam_ = 4, adamw_ = 4, rmsprop_ = 4, lamb_ = 4, muon_ = 3 }
  for op, keys in pairs(calls) do
    local function call(lr, o)
      local args = {}
      for i = 1, lists[op] do args[i] = { peri.ones { 2, 2 } } end
      args[#args + 1], args[#args + 2] = lr, o
      peri[op](table.unpack(args))
    end
    for _, bad in ipairs { -1, 0 / 0, math.huge } do
      refused("lr is ", function() call(bad, {}) end)
      for _, key in ipairs(keys) do refused(key .. " is ", function() call(0.1, { [key] = bad }) end) end
    end
    call(0, {})
  end
end

function TestOptimLaws:test_a_parameter_that_came_after_the_optimizer_is_named_and_nothing_moves()
  local function net() return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) end
  local function backward(n, dtype) n(peri.ones({ 1, 2 }, dtype or "f32")):sum():backward() end
  for _, change in ipairs {
    { "0.weight", function(n) n[1] = nn.Linear(2, 2) end }, { "2.weight", function(n) n:add(nn.Linear(2, 2)) end },
    { "1.bias", function(n) n[2].bias = nn.parameter(peri.ones { 2 }) end },
    { "0.weight", function(n) n:to "f64" end, "f64" },
  } do
    for _, steps in ipairs { 0, 1 } do
      local n = net()
      local opt = optim.SGD({ { params = n } }, { lr = 0.1 })
      for _ = 1, steps do
        backward(n)
        opt:step():zero_grad()
      end
      local before = n[2].weight:bytes()
      change[2](n)
      if change[3] then before = n[2].weight:bytes() end
      backward(n, change[3])
      if steps == 0 or change[1] ~= "2.weight" then -- what is added later, to parameters that all go on, is not looked for
        refused(("step: %s has a gradient and is none of the optimizer's parameters"):format(change[1]),
          function() opt:step() end)
        lu.assertEquals(n[2].weight:bytes(), before)
      end
    end
  end
  local n = net() -- parts of a module, frozen ones and those without a gradient are as they were
  n[1]:freeze()
  local opt = optim.SGD(n[2], { lr = 0.1 })
  n[1]:unfreeze()
  backward(n)
  opt:step()
  local whole = optim.SGD(n, { lr = 0.1 })
  n[1]:zero_grad()
  whole:step()
end

-- ---- clipping by hand ----

function TestOptimLaws:test_clipping_by_hand_takes_modules_and_checks_its_limit()
  local net = nn.Linear(2, 1)
  local function fill()
    net.weight.grad, net.bias.grad = peri.tensor { { 3.0, 0.0 } }, peri.tensor { -4.0 }
  end
  fill()
  lu.assertAlmostEquals(optim.clip_grad_norm_(net, 1), 5, 1e-6)
  lu.assertAlmostEquals(net.weight.grad:at(1, 1), 0.6, 1e-5)
  fill()
  optim.clip_grad_value_(net:parameters(), 0.5)
  lu.assertEquals({ net.weight.grad:at(1, 1), net.weight.grad:at(1, 2), net.bias.grad:at(1) }, { 0.5, 0, -0.5 })
  local g = peri.tensor { -3.0, 0 / 0, 0.5 }
  peri.clip_grad_value_({ g }, 2)
  lu.assertEquals({ g:at(1), g:at(3) }, { -2, 0.5 })
  lu.assertTrue(g:at(2) ~= g:at(2))
  for _, f in ipairs { optim.clip_grad_norm_, optim.clip_grad_value_, peri.clip_grad_value_ } do
    for _, bad in ipairs { -1, 0, 0 / 0, "1" } do
      refused(" is ", function() f({}, bad) end)
    end
    refused("3", function() f({ 3 }, "3") end)
  end
  refused("it is a parameter", function() peri.clip_grad_value_({ net.weight }, 1) end)
  refused("grads 2 takes gradients itself: it is a parameter", function()
    peri.clip_grad_norm_({ peri.ones { 1 }, net.weight }, 1)
  end)
  refused("argument 1 (grads) must be a list of tensors, got a table with names; a module's are net:parameters()",
    function() peri.clip_grad_norm_(net, 1) end)
  refused("parameter 1 is a number", function() optim.clip_grad_norm_({ 3 }, 1) end)
  lu.assertEquals(optim.clip_grad_norm_({}, 1), 0)
end

-- ---- averages ----

function TestOptimLaws:test_an_average_follows_its_source_by_path()
  local function net() return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)) end
  local a, b = net(), net()
  local function want(decay)
    local out = {}
    for i, p in ipairs(a:parameters()) do out[i] = p:detach():mul(decay):add(b:parameters()[i]:detach():mul(1 - decay)) end
    return out
  end
  local function check(expected)
    for i, p in ipairs(a:parameters()) do lu.assertTrue(p:detach():sub(expected[i]):abs():max():item() < 1e-6) end
  end
  for _, as in ipairs { function(n) return n end, function(n) return n:parameters() end, rows,
    function(n) return { n[3], n[1] } end } do
    local expected = want(0.9)
    optim.ema_(as(a), as(b), 0.9)
    check(expected)
  end
  local backwards = {}
  for i, entry in ipairs(b:named_parameters()) do backwards[5 - i] = entry end
  local expected = want(0.5)
  optim.ema_(a, backwards, 0.5)
  check(expected)
  optim.ema_(a, b, 0)
  lu.assertEquals(a[1].weight:tolist(), b[1].weight:tolist())
  local mixed = nn.class("Mixed", function(m) m.a, m.b = nn.Linear(2, 2), nn.Linear(2, 2):to "f64" end)
  local x, y = mixed(), mixed()
  optim.ema_(x, y, 0)
  lu.assertEquals(x.b.weight:tolist(), y.b.weight:tolist())
  local model = assert(models.load "tests/data/hf_tiny/llama")
  local average = model:copy()
  optim.ema_(average, model, 0.999)
  lu.assertTrue(average.embed.weight:sub(model.embed.weight:detach()):abs():max():item() < 1e-6)
  lu.assertFalse(average.embed.weight.requires_grad)
  for _, bad in ipairs { -0.1, 1.1, 0 / 0, "1" } do refused("decay is", function() optim.ema_(a, b, bad) end) end
  refused("the target has 4 parameters, the source 2", function() optim.ema_(a, b[1], 0.5) end)
  refused("ema_: the source has no parameter 0.weight", function() optim.ema_(nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2), 0.5) end)
  refused("weight is f32 of shape (2, 2) in the target, f32 of (3, 2) in the source", function()
    optim.ema_(nn.Linear(2, 2), nn.Linear(2, 3), 0.5)
  end)
end

-- The mean of several: whatever they are given as, weighted or not, the target among them or not.
function TestOptimLaws:test_an_average_of_several_is_their_mean()
  local function net(dtype) return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)):to(dtype or "f32") end
  for _, dtype in ipairs { "f32", "f64", "bf16" } do
    for _, weights in ipairs { false, { 1, 2, 5 }, { 0, 3, 0 } } do
      local list, target, share = { net(dtype), net(dtype), net(dtype) }, net(dtype), weights or { 1, 1, 1 }
      local sum = share[1] + share[2] + share[3]
      optim.average_(target, list, weights or nil)
      for i, p in ipairs(target:parameters()) do
        local want = peri.zeros(p.shape, "f64")
        for k, one in ipairs(list) do want = want:add(one:parameters()[i]:detach():to("f64"):mul(share[k] / sum)) end
        lu.assertTrue(p:detach():to("f64"):sub(want):abs():max():item() < (dtype == "bf16" and 1e-2 or 1e-6))
      end
      local values = {}
      for i, p in ipairs(target:parameters()) do values[i] = p:tolist() end
      optim.average_(list[1], list, weights or nil) -- in place of one of them
      for i, p in ipairs(list[1]:parameters()) do lu.assertEquals(p:tolist(), values[i]) end
    end
  end
  local one = assert(models.load "tests/data/hf_tiny/llama")
  local copy = one:copy()
  optim.average_(copy, { one, one, one }) -- of equals: to the bit
  for i, p in ipairs(copy:parameters()) do lu.assertEquals(p:sub(one:parameters()[i]:detach()):abs():max():item(), 0) end
  local a, b = net(), net()
  local spoiled = net()
  spoiled[1].weight:detach():fill_(0 / 0)
  optim.average_(a, { b, spoiled }, { 1, 0 })
  lu.assertEquals(a[1].weight:tolist(), b[1].weight:tolist())
  refused("there are no sources", function() optim.average_(a, {}) end)
  refused("1 weights for 2 sources", function() optim.average_(a, { a, b }, { 1 }) end)
  refused("weight 2 is -1, expected a finite number from 0", function() optim.average_(a, { a, b }, { 1, -1 }) end)
  refused("all weights are 0", function() optim.average_(a, { a, b }, { 0, 0 }) end)
  refused("average_: the target has 4 parameters, source 2 2", function() optim.average_(a, { b, b[1] }) end)
end

-- ---- schedules ----

TestSchedLaws = {}

-- Each schedule with options that hold, and the positional names of those that take them so.
local schedules = {
  constant = { value = 1 }, linear = { from = 1, steps = 5 }, cosine = { from = 1, steps = 5 },
  polynomial = { from = 1, steps = 5 }, step = { from = 1, every = 2 }, exponential = { from = 1, factor = 0.5 },
  one_cycle = { peak = 1, steps = 10 }, plateau = { from = 1 }, warmup = { n = 3, after = sched.constant(1) },
  scale = { schedule = sched.constant(1), by = 2 }, wsd = { peak = 1, steps = 8, warmup = 2 },
}

local function make(name, given)
  local known = options.declared(sched[name])
  local args = { given }
  for i, key in ipairs(known.positional) do args[i] = given[key] end
  local s = sched[name](table.unpack(args, 1, math.max(#known.positional, 1)))
  return s
end

local function with(given, key, value)
  local out = {}
  for k, v in pairs(given) do out[k] = v end
  out[key] = value
  return out
end

function TestSchedLaws:test_every_option_out_of_range_is_refused()
  local n = 0
  for name, given in pairs(schedules) do
    for _, o in ipairs(options.declared(sched[name]).options) do
      lu.assertNotEquals(o.doc, "", name .. "." .. o.name)
      for _, bad in ipairs(bounds.bad(o.kind)) do
        n = n + 1
        if type(bad) ~= "table" then
          refused(("sched.%s: %s is"):format(name, o.name), function() make(name, with(given, o.name, bad)) end)
        end
      end
      local good = bounds.good(o.kind)
      if good ~= nil and o.name ~= "every" then make(name, with(given, o.name, good)) end
    end
  end
  lu.assertTrue(n > 100)
  refused("after is 3", function() sched.warmup(3, 3) end)
  refused("by is nan", function() sched.scale(sched.constant(1), 0 / 0) end)
  refused("at[2] is 3, expected an integer above 3", function() sched.step { from = 1, at = { 3, 3 } } end)
  refused("at has the key \"a\"", function() sched.step { from = 1, at = { 5, a = 9 } } end)
  refused("at has no steps", function() sched.step { from = 1, at = {} } end)
  refused("the steps of part 1 are a string", function() sched.chain { { "2", sched.constant(1) }, { sched.constant(1) } } end)
  refused("at[1] is a string", function() sched.step { from = 1, at = { "x" } } end)
  for _, parts in ipairs { { 3 }, { { 3 } }, { { sched.constant(1) }, { sched.constant(1) } }, { { 0, sched.constant(1) }, { sched.constant(1) } },
    { { 2.5, sched.constant(1) }, { sched.constant(1) } }, {} } do
    refused("sched.chain: ", function() sched.chain(parts) end)
  end
end

function TestSchedLaws:test_every_schedule_refuses_steps_that_are_none_and_is_finite_at_all_others()
  local all = { chain = sched.chain { { 2, sched.constant(1) }, { sched.linear { from = 1, steps = 3 } } } }
  for name, given in pairs(schedules) do if name ~= "plateau" then all[name] = make(name, given) end end
  all.late_warmup = sched.warmup(0, sched.one_cycle { peak = 1, steps = 4 })
  for name, s in pairs(all) do
    for _, bad in ipairs { 0, -1, 1.5, 0 / 0, math.huge, -math.huge, "1", {}, true } do
      refused("the step is", function() s(bad) end)
    end
    refused("the step is a nil", function() s() end)
    for _, step in ipairs { 1, 2, 3.0, 5, 6, 10, 11, 1000, 1 << 40 } do
      local v = s(step)
      lu.assertTrue(v == v and math.abs(v) < math.huge, name)
    end
  end
  refused("the value at step 400 is inf", function() sched.exponential({ from = 1e300, factor = 1e300 })(400) end)
  refused("the value at step 1 is nan", function() sched.warmup(2, function() return 0 / 0 end)(1) end)
  refused("the value at step 1 is a nil", function() sched.chain({ { function() end } })(1) end)
end

function TestSchedLaws:test_a_metric_that_is_not_finite_is_never_better()
  for _, mode in ipairs { "min", "max" } do
    for _, bad in ipairs { 0 / 0, math.huge, -math.huge } do
      local p = sched.plateau { from = 1, factor = 0.5, patience = 1, mode = mode }
      p:observe(bad)
      lu.assertNil(p.best)
      p:observe(2)
      lu.assertEquals(p.best, 2)
      p:observe(bad)
      lu.assertEquals({ p.best, p(), p.nonfinite }, { 2, 1, 2 })
      p:observe(peri.tensor(bad, "f32"))
      lu.assertEquals(p(), 0.5) -- two observations without a better one
      p:observe(mode == "min" and 1 or 3)
      lu.assertEquals(p.best, mode == "min" and 1 or 3)
      local q = sched.plateau({ from = 1, factor = 0.5, patience = 1, mode = mode })
      q:set_state(peri.json.decode(peri.json.encode(p:state())))
      lu.assertEquals(q:state(), p:state())
    end
  end
  local p = sched.plateau { from = 1 }
  lu.assertEquals(p:observe(peri.tensor { 0.5 }), 1)
  lu.assertEquals(p.best, 0.5)
  refused("a tensor of several elements", function() p:observe(peri.ones { 2 }) end)
  refused("the metric is a nil", function() p:observe() end)
  refused("the metric is a string", function() p:observe "1" end)
  for _, s in ipairs { {}, { value = 0 / 0, bad = 0, wait = 0 }, { value = 1, bad = -1, wait = 0 },
    { value = 1, bad = 0, wait = 0, best = 0 / 0 } } do
    refused("not the state of a plateau", function() p:set_state(s) end)
  end
end

function TestSchedLaws:test_wsd_rises_stays_and_falls_and_a_longer_run_is_the_same_before_it()
  local s = sched.wsd { peak = 8, steps = 16, warmup = 4, decay = 0.5 }
  local seen = {}
  for step = 1, 18 do seen[step] = s(step) end
  lu.assertEquals(seen, { 2, 4, 6, 8, 8, 8, 8, 8, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0 })
  local longer = sched.wsd { peak = 8, steps = 100, warmup = 4, decay = 0.5 }
  for step = 1, 9 do lu.assertEquals(longer(step), s(step)) end
  lu.assertEquals(sched.wsd { peak = 3, steps = 5, decay = 0 }(5), 3)
  lu.assertEquals(sched.wsd { peak = 3, steps = 1, warmup = 8, decay = 1 }(1), 0.375)
  lu.assertEquals(sched.wsd { peak = 3, to = 1, steps = 4, decay = 1 }(3), 2)
end

-- Figures by the formula of torch.optim.lr_scheduler.OneCycleLR(max_lr = 1, total_steps = 10).
function TestSchedLaws:test_one_cycle_and_polynomial()
  local s = sched.one_cycle { peak = 1, steps = 10 }
  lu.assertAlmostEquals(s(1), 0.04, 1e-9)
  lu.assertAlmostEquals(s(2), 0.52, 1e-9)
  lu.assertAlmostEquals(s(3), 1, 1e-9)
  lu.assertAlmostEquals(s(4), 0.950484, 1e-6)
  lu.assertAlmostEquals(s(10), 4e-6, 1e-9)
  lu.assertAlmostEquals(s(99), 4e-6, 1e-9)
  local p = sched.polynomial { from = 1, to = 0, steps = 5, power = 2 }
  lu.assertEquals({ p(1), p(3), p(5), p(9) }, { 1, 0.25, 0, 0 })
end
