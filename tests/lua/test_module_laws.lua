-- What holds of every module, whoever wrote it: every class of nn, every architecture of models, every adapter, and a
-- module that holds several.
local lu = require "luaunit"
local peri = require "perilune"
local nn, models, peft, optim = peri.nn, peri.models, peri.peft, peri.optim

-- ---- the modules ----

local dim = 8
local function x() return peri.randn { 2, 5, dim } end
local function image() return peri.randn { 2, 4, 6, 7 } end

-- Class -> how to make one, and what it takes.
local layers = {
  Linear = { function () return nn.Linear(dim, 3) end, x },
  Embedding = { function () return nn.Embedding(7, dim) end, function () return peri.randint(0, 7, { 2, 5 }) end },
  LayerNorm = { function () return nn.LayerNorm(dim) end, x },
  RMSNorm = { function () return nn.RMSNorm(dim) end, x },
  GroupNorm = { function () return nn.GroupNorm(2, dim) end, function () return peri.randn { 2, dim, 3 } end },
  Conv1d = { function () return nn.Conv1d(3, 4, 3, 2) end, function () return peri.randn { 2, 3, dim } end },
  Conv2d = { function () return nn.Conv2d(4, 6, 3, { padding = "same", groups = 2 }) end, image },
  MaxPool1d = { function () return nn.MaxPool1d(2) end, x },
  MaxPool2d = { function () return nn.MaxPool2d({ 2, 1 }, 1) end, image },
  AvgPool1d = { function () return nn.AvgPool1d(2) end, x },
  AvgPool2d = { function () return nn.AvgPool2d(2) end, image },
  AdaptiveAvgPool1d = { function () return nn.AdaptiveAvgPool1d(3) end, x },
  AdaptiveAvgPool2d = { function () return nn.AdaptiveAvgPool2d { 2, 3 } end, image },
  BatchNorm1d = { function () return nn.BatchNorm1d(5) end, x },
  BatchNorm2d = { function () return nn.BatchNorm2d(4) end, image },
  BasicBlock = { function () return nn.BasicBlock(4, 6, 2) end, image },
  Dropout = { function () return nn.Dropout(0.5) end, x },
  MultiHeadAttention = { function () return nn.MultiHeadAttention(dim, 2, { rope = true, qk_norm = true, bias = true }) end, x },
  CrossAttention = { function () return nn.CrossAttention(dim, 2, { bias = true }) end, x,
    function (m, input) return m(input, input:mul(0.5)) end }, -- of a source
  FeedForward = { function () return nn.FeedForward(dim, 6) end, x },
  NoisyLinear = { function () return nn.NoisyLinear(dim, 3) end, x },
  MLP = { function () return nn.MLP { dim, 6, 3 } end, x },
  MultiTask = { function () return nn.MultiTask(nn.Linear(dim, 4), { a = nn.Linear(4, 2) }) end, x,
    function (m, input) return m("a", input) end, function (input) return "a", input end },
  Copies = { function () return nn.Copies(2, function () return nn.MLP { dim, 6, 3 } end) end, x },
  Block = { function () return nn.Block(dim, 2) end, x },
  LSTM = { function () return nn.LSTM(dim, 6, { layers = 2, bidirectional = true }) end, x },
  GRU = { function () return nn.GRU(dim, 6, { layers = 2 }) end, x },
  LSTMCell = { function () return nn.LSTMCell(dim, 6) end, function () return peri.randn { 4, dim } end },
  GRUCell = { function () return nn.GRUCell(dim, 6) end, function () return peri.randn { 4, dim } end },
  Sequential = { function () return nn.Sequential(nn.Linear(dim, 4), nn.Tanh(), nn.Linear(4, 2)) end, x },
  ModuleList = { function () return nn.ModuleList { nn.Linear(dim, 2), nn.LayerNorm(dim) } end },
  ModuleDict = { function () return nn.ModuleDict { b = nn.Linear(dim, 2), a = nn.LayerNorm(dim) } end },
  Flatten = { function () return nn.Flatten() end, x },
  Softmax = { function () return nn.Softmax() end, x },
  SwiGLU = { function () return nn.SwiGLU() end, x },
}

local subjects = {} -- name -> { make = function, input = function?, run = function(module, input) }

local function is_class(v)
  local meta = getmetatable(v)
  return type(v) == "table" and type(meta) == "table" and meta.__call ~= nil and rawget(v, "__newindex") ~= nil
end

for name, class in pairs(nn) do
  if is_class(class) then
    local row = layers[name] or { class, x } -- an activation takes nothing
    subjects["nn." .. name] = { make = row[1], input = row[2],
      run = row[3] or row[2] and function (m, input) return m(input) end,
      takes = row[4] or row[3] and function (input) return input, x() end or function (input) return input end }
  end
end

local folder = "tests/data/hf_tiny/"

local function run_model(model, ids)
  if model.kind == "encoder-decoder" then return model:logits(model:forward(ids, { labels = ids })) end
  local hidden = model:forward(ids)
  return (model.kind == "causal" or model.transform) and model:logits(hidden) or hidden
end

local function ids_of() return peri.randint(1, 50, { 2, 6 }) end

local loaded = { f32 = {}, bf16 = { dtype = "bf16" }, q8_0 = { dtype = "q8_0" }, packed = { pack = true } }

for _, name in ipairs(assert(peri.files.list(folder))) do
  if peri.files.exists(folder .. name .. "/config.json") then
    for kind, opts in pairs(loaded) do
      subjects[("models.%s %s"):format(name, kind)] = { make = function ()
        local model = assert(models.load(folder .. name, opts))
        if kind == "packed" then for _, p in ipairs(model:parameters()) do p:requires_grad_(false) end end
        return model
      end, input = ids_of, run = run_model, kind = kind }
    end
  end
end

local Policy = nn.class("Policy", function (self, base, adapter)
  self.model = base
  self.adapter = adapter
  self.value = nn.Linear(base.settings.dim, 1)
end)

function Policy:forward(ids)
  local hidden = self.model:forward(ids)
  return peri.cat({ self.model:logits(hidden), self.value(hidden) }, -1)
end

local adapters = {
  lora = function (model) return peft.lora(model, { r = 2 }) end,
  lora_everywhere = function (model) return peft.lora(model, { r = 2, targets = { "q_proj", "lm_head", "embed_tokens" } }) end,
  bottleneck = function (model) return peft.bottleneck(model, { reduction = 8 }) end,
  prefix = function (model) return peft.prefix(model, { tokens = 2 }) end,
  prefix_projected = function (model) return peft.prefix(model, { tokens = 2, projection = true, hidden = 4 }) end,
}
for name, make in pairs(adapters) do
  subjects["peft." .. name] = { make = function () return make(assert(models.load(folder .. "llama"))) end,
    input = ids_of, run = function (adapter, ids) return run_model(adapter.model, ids) end, kind = "adapter" }
  subjects["policy with " .. name] = { make = function ()
    local base = assert(models.load(folder .. "llama"))
    return Policy(base, make(base))
  end, input = ids_of, run = function (policy, ids) return policy(ids) end }
end
subjects["policy"] = { make = function () return Policy(assert(models.load(folder .. "gpt2"))) end, input = ids_of,
  run = function (policy, ids) return policy(ids) end }

local names = {}
for name in pairs(subjects) do names[#names + 1] = name end
table.sort(names)

-- ---- what laws need ----

local function bytes(module)
  local out = {}
  for name, t in pairs(module:state_dict()) do
    out[name] = (t.dtype:find "^q" and t:bitcast "u8" or t:contiguous()):bytes()
  end
  return out
end

local function is_float(t) return t.dtype == "f32" or t.dtype == "f64" end

-- Every parameter moved, so that nothing is a zero that hides what is behind it.
local function stirred(module)
  local _ <close> = peri.no_grad()
  for _, p in ipairs(module:parameters()) do
    if is_float(p) and not p.packed then p:add_(peri.randn_like(p):mul(0.1)) end
  end
  return module
end

local function output(subject, module, input)
  local _ <close> = peri.no_grad()
  module:eval()
  return subject.run(module, input):bytes()
end

local function each(fn)
  for _, name in ipairs(names) do
    peri.seed(3)
    local ok, message = xpcall(fn, debug.traceback, name, subjects[name])
    if not ok then lu.fail(("%s: %s"):format(name, type(message) == "table" and message.msg or tostring(message))) end
  end
end

-- A state that can be taken apart: packed ones cannot.
local function has_state(subject) return subject.kind ~= "packed" end

TestModuleLaws = {}

function TestModuleLaws:test_every_architecture_is_here()
  local _, message = models.architecture { model_type = "none" }
  local here = {}
  for _, subject in pairs(subjects) do
    if subject.kind == "f32" then here[subject.make().config.model_type] = true end
  end
  for name in message:match "known are (.*)$":gmatch "[%w_]+" do lu.assertTrue(here[name], name) end
end

function TestModuleLaws:test_the_parameters_are_what_training_changes()
  each(function (name, subject)
    local module = stirred(subject.make())
    if not subject.run or ({ bf16 = true, q8_0 = true, packed = true })[subject.kind] then return end
    local named, trainable = {}, false
    for _, entry in ipairs(module:named_parameters()) do
      named[entry[1]] = entry[2]
      trainable = trainable or entry[2].requires_grad
    end
    if not trainable then return end
    local y, before = subject.run(module:train(), subject.input()), {} -- which moves running statistics
    for path in pairs(named) do before[path] = module:get(path):bytes() end
    for _, entry in ipairs(module:named_buffers()) do before[entry[1]] = entry[2]:bytes() end
    local opt = optim.SGD(module, { lr = 0.1 })
    y:square():sum():backward()
    opt:step()
    local moved = 0
    for path, old in pairs(before) do
      local t = module:get(path)
      local changed = t:bytes() ~= old
      lu.assertEquals(changed, named[path] ~= nil and t.grad ~= nil and t.grad:abs():max():item() > 0, path)
      moved = moved + (changed and 1 or 0)
    end
    lu.assertTrue(moved > 0, name)
  end)
end

function TestModuleLaws:test_a_state_goes_into_a_fresh_one_bit_for_bit()
  each(function (_, subject)
    if not has_state(subject) then return end
    local a, b = stirred(subject.make()), subject.make()
    local state = a:state_dict()
    lu.assertTrue(rawequal(b:load_state_dict(state), b))
    lu.assertEquals(bytes(b), bytes(a))
    if subject.run then
      local input = subject.input()
      lu.assertEquals(output(subject, b, input), output(subject, a, input))
    end
    -- a name too many and one too few: nothing is written, and both are said
    local first = next(state)
    if not first then return end
    local c = subject.make()
    local kept, torn = bytes(c), {}
    for key, t in pairs(state) do torn[key] = t end
    torn[first], torn["no such name"] = nil, peri.ones { 1 }
    local ok, message = pcall(c.load_state_dict, c, torn)
    lu.assertFalse(ok)
    lu.assertStrContains(message, "unexpected no such name")
    lu.assertStrContains(message, "missing " .. first)
    lu.assertEquals(bytes(c), kept)
    lu.assertEquals(c:load_state_dict(torn, { strict = false }), { missing = { first }, unexpected = { "no such name" } })
  end)
end

-- nn.with_tensors, nn.functional_call: the values count, the gradients go to them, and the module is as it was.
function TestModuleLaws:test_other_tensors_stand_for_its_own()
  each(function (name, subject)
    if not subject.run or ({ bf16 = true, q8_0 = true, packed = true })[subject.kind] then return end
    local module, other = stirred(subject.make()):eval(), stirred(subject.make()):eval()
    for i, p in ipairs(other:parameters()) do p:requires_grad_(module:parameters()[i].requires_grad) end
    local input, before = subject.input(), bytes(module)
    local base, host = subject.kind == "adapter" and module.model, subject.kind == "adapter" and other.model
    if base then base:load_state_dict(host:state_dict()) end
    local own, given = output(subject, module, input), {}
    for i, p in ipairs(other:parameters()) do given[i] = p * 1 end -- results of operations
    local y = nn.with_tensors(module, given, subject.run, module, input)
    local want = subject.run(other, input)
    lu.assertEquals(y:bytes(), want:bytes(), name)
    if y.requires_grad then
      y:square():sum():backward()
      local grads = {}
      for i, p in ipairs(other:parameters()) do
        grads[i] = p.grad and p.grad:clone()
        p:zero_grad()
      end
      want:square():sum():backward()
      for i, p in ipairs(other:parameters()) do
        lu.assertEquals(grads[i] == nil, p.grad == nil, name)
        if p.grad then
          lu.assertTrue(grads[i]:sub(p.grad):abs():max():item() <= 1e-4 * (1e-3 + p.grad:abs():max():item()), name)
        end
      end
      for _, p in ipairs(module:parameters()) do lu.assertNil(p.grad, name) end
    end
    lu.assertEquals(bytes(module), before, name)
    lu.assertEquals(output(subject, module, input), own, name)
  end)
end

-- What is differentiated twice goes through steps of training; an op that cannot is named.
function TestModuleLaws:test_steps_of_training_are_differentiated_or_the_op_is_named()
  local refused = {}
  each(function (name, subject)
    if not name:find "^nn%." or not subject.run or not subject.input then return end
    local module = stirred(subject.make():to "f64"):train()
    if #module:parameters() == 0 then return end
    local a, b = subject.input(), subject.input()
    if a.dtype == "f32" then a, b = a:to "f64", b:to "f64" end
    local weigh = {}
    local function loss(input)
      peri.seed(9) -- of dropout and noise
      local y = subject.run(module, input)
      weigh[1] = weigh[1] or peri.randn_like(y:detach())
      return y:mul(weigh[1]):sum():square():add(y:square():sum()):mul(1 / y:numel())
    end
    local function after(order)
      return nn.with_tensors(module, optim.adapt(module, function () return loss(a) end, { lr = 0.05, order = order }), loss, b)
    end
    local ok, result = pcall(after, 2)
    if not ok then
      refused[#refused + 1] = ("%s: %s"):format(name:sub(4), tostring(result):match "([%w_]+) has no second derivative")
      lu.assertStrContains(result, "has no second derivative", name)
      lu.assertTrue(after(1).requires_grad, name) -- the first order goes
      return
    end
    result:backward()
    local theta, h, dot = optim.flatten(module), 1e-6, optim.flatten_grads(module)
    local direction = peri.randn_like(theta)
    optim.assign_(module, theta + direction * h)
    local up = after(0):item()
    optim.assign_(module, theta - direction * h)
    local slope = (up - after(0):item()) / (2 * h)
    lu.assertTrue(math.abs(dot:mul(direction):sum():item() - slope) <= 1e-4 * (1 + math.abs(slope)), name .. slope)
  end)
  table.sort(refused)
  lu.assertEquals(refused, { "Block: attention", "CrossAttention: attention", "GRU: gru", "GRUCell: gru", "LSTM: lstm",
    "LSTMCell: lstm", "MultiHeadAttention: attention" })
end

function TestModuleLaws:test_a_copy_is_equal_and_its_own()
  each(function (name, subject)
    local module = stirred(subject.make())
    local copy = module:copy()
    lu.assertEquals(getmetatable(copy), getmetatable(module))
    lu.assertEquals(#copy:modules(), #module:modules())
    local seen = {}
    for _, m in ipairs(module:modules()) do seen[m] = true end
    for _, m in ipairs(copy:modules()) do
      lu.assertNil(seen[m], name)
      lu.assertFalse(m.training)
    end
    local shared = {}
    for i, entry in ipairs(copy:named_parameters()) do
      local mine = module:named_parameters()[i]
      lu.assertEquals(entry[1], mine[1])
      lu.assertFalse(entry[2].requires_grad)
      if is_float(mine[2]) and not mine[2].packed then lu.assertFalse(rawequal(entry[2], mine[2]), entry[1])
      elseif mine[2].packed or mine[2].dtype:find "^q" then shared[#shared + 1] = rawequal(entry[2], mine[2]) end
    end
    for _, same in ipairs(shared) do lu.assertTrue(same) end
    if not subject.run or subject.kind == "adapter" then return end -- an adapter alone is on no model
    local input = subject.input()
    local before = output(subject, module, input)
    lu.assertEquals(output(subject, copy, input), before)
    stirred(module)
    lu.assertEquals(output(subject, copy, input), before)
    local trained = module:train():copy { trained = true }
    lu.assertTrue(trained.training)
    for i, p in ipairs(trained:parameters()) do lu.assertEquals(p.requires_grad, module:parameters()[i].requires_grad) end
  end)
end

function TestModuleLaws:test_a_pattern_freezes_what_it_names()
  local function escaped(text) return "^" .. text:gsub("%p", "%%%0") .. "$" end
  each(function (_, subject)
    local module = subject.make()
    local list = module:named_parameters()
    for i, entry in ipairs(list) do
      if i > 6 then break end
      if not is_float(entry[2]) or entry[2].packed then goto continue end
      module:unfreeze()
      module:freeze(escaped(entry[1]))
      for k, other in ipairs(list) do
        if is_float(other[2]) and not other[2].packed then lu.assertEquals(other[2].requires_grad, k ~= i, other[1]) end
      end
      module:freeze():unfreeze(escaped(entry[1]))
      for k, other in ipairs(list) do lu.assertEquals(other[2].requires_grad, k == i, other[1]) end
      if #entry[3] == 1 then -- by the name in files as well
        module:freeze():unfreeze(escaped(entry[3][1]))
        lu.assertTrue(entry[2].requires_grad)
      else
        lu.assertErrorMsgContains("name all of its parts or none", module.freeze, module, escaped(entry[3][1]))
      end
      ::continue::
    end
    lu.assertErrorMsgContains("no parameter's name matches", module.freeze, module, "^no such name$")
  end)
end

function TestModuleLaws:test_every_module_has_one_path_and_is_found_by_it()
  each(function (_, subject)
    local module = subject.make()
    local paths, seen, count = {}, {}, 0
    for i, entry in ipairs(module:named_modules()) do
      lu.assertNil(paths[entry[1]])
      lu.assertNil(seen[entry[2]])
      paths[entry[1]], seen[entry[2]], count = true, true, i
      lu.assertTrue(rawequal(module:get(entry[1]), entry[2]), entry[1])
      lu.assertTrue(rawequal(module:modules()[i], entry[2]))
    end
    local below = 1
    for _, child in ipairs(module:children()) do below = below + #child:modules() end
    lu.assertEquals(below, count)
    for _, entry in ipairs(module:named_parameters()) do lu.assertTrue(rawequal(module:get(entry[1]), entry[2])) end
    for _, entry in ipairs(module:named_buffers()) do lu.assertTrue(rawequal(module:get(entry[1]), entry[2])) end
    if has_state(subject) then
      local state, n = module:state_dict(), 0
      for _, list in ipairs { module:named_parameters(), module:named_buffers() } do
        for _, entry in ipairs(list) do
          for _, name in ipairs(entry[3]) do
            lu.assertNotNil(state[name], name)
            n = n + 1
          end
        end
      end
      for _ in pairs(state) do n = n - 1 end
      lu.assertEquals(n, 0)
    end
    lu.assertErrorMsgContains("there is no", module.get, module, "no.such.path")
  end)
end

function TestModuleLaws:test_hooks_see_what_forward_saw_and_change_nothing()
  each(function (_, subject)
    if not subject.run then return end
    local module, input, calls = stirred(subject.make()), subject.input(), 0
    local root = subject.kind == "adapter" and module.model or module
    local want, handles, given, made = output(subject, module, input), {}, {}, {}
    for _, entry in ipairs(root:named_modules()) do
      local m = entry[2]
      handles[#handles + 1] = m:hook_before(function (whose, ...)
        lu.assertTrue(rawequal(whose, m))
        given[m] = table.pack(...)
      end)
      handles[#handles + 1] = m:hook(function (whose, inputs, ...)
        lu.assertTrue(rawequal(whose, m))
        lu.assertEquals(inputs.n, given[m].n)
        for i = 1, inputs.n do lu.assertTrue(rawequal(inputs[i], given[m][i])) end
        made[m] = table.pack(...)
        lu.assertTrue(made[m].n >= 1)
        calls = calls + 1
      end)
    end
    lu.assertEquals(output(subject, module, input), want)
    lu.assertTrue(calls >= 1)
    for _, m in ipairs(root:copy():modules()) do lu.assertNil(rawget(m, "_hooks")) lu.assertNil(rawget(m, "forward")) end
    for _, handle in ipairs(handles) do handle:remove() end
    for _, m in ipairs(root:modules()) do lu.assertNil(rawget(m, "_hooks")) lu.assertNil(rawget(m, "forward")) end
    calls = 0
    lu.assertEquals(output(subject, module, input), want)
    lu.assertEquals(calls, 0)
    -- each module that forward came by can be changed by one
    for m, results in pairs((subject.kind or "f32") == "f32" and made or {}) do
      if peri.is_tensor(results[1]) and is_float(results[1]) and results[1]:std():item() > 0 then
        local handle <close> = m:hook(function (_, _, y) return y:add(peri.randn_like(y)) end) -- luacheck: ignore 211
        lu.assertNotEquals(output(subject, module, input), want, m.__name)
      end
    end
    lu.assertEquals(output(subject, module, input), want)
  end)
end

function TestModuleLaws:test_a_module_is_moved_to_a_dtype_and_back()
  each(function (name, subject)
    local module = stirred(subject.make())
    if subject.kind == "packed" or subject.kind == "q8_0" then
      lu.assertErrorMsgContains("whose dtype is chosen when it is loaded", module.to, module, "f64")
      return
    end
    if subject.kind == "bf16" then module:to "f32" end
    local whole = subject.kind == "adapter" and Policy(module.model, module) or module
    local before = bytes(module)
    local input = subject.input and subject.input()
    local want = input and peri.no_grad(function () return subject.run(module:eval(), input) end)
    whole:to "f64"
    for _, entry in ipairs(whole:named_parameters()) do lu.assertEquals(entry[2].dtype, "f64", entry[1]) end
    if input then
      local double = input.dtype == "f32" and input:to "f64" or input
      local got = peri.no_grad(function () return subject.run(module, double) end)
      lu.assertEquals(got.dtype, "f64", name)
      lu.assertTrue(got:sub(want):abs():max():item() < 1e-4 * math.max(1, want:abs():max():item()), name)
    end
    if name:find "^models" and module.kind ~= "encoder" then
      module:generate(input, { max_new_tokens = 2, greedy = true })
    end
    whole:to "f32"
    lu.assertEquals(bytes(module), before)
    if name:find "^models" then
      module:to "bf16"
      lu.assertTrue(run_model(module, input):isfinite():all():item())
    end
  end)
end

function TestModuleLaws:test_every_module_below_can_be_replaced_by_one_that_fits()
  each(function (name, subject)
    local module = stirred(subject.make())
    if subject.kind and subject.kind ~= "f32" or #module:modules() == 1 or name:find "policy with" then return end
    local input = subject.input and subject.input()
    local want = subject.run and output(subject, module, input)
    for _, entry in ipairs(module:named_modules()) do
      local path = entry[1]
      if path ~= "" then
        local old = module:get(path)
        local new = old:copy()
        lu.assertTrue(rawequal(module:replace(path, new), old), path)
        lu.assertTrue(rawequal(module:get(path), new), path)
        if want then lu.assertEquals(output(subject, module, input), want, path) end
        if old._widths then
          local takes, gives = old:_widths()
          if takes then lu.assertErrorMsgContains("takes", module.replace, module, path, nn.Linear(takes + 1, gives or 1)) end
        end
        for _, wrong in ipairs { 3, "x", peri.ones { 1 }, function () end } do
          lu.assertErrorMsgContains("expected a module", module.replace, module, path, wrong)
        end
        lu.assertTrue(rawequal(module:get(path), new), path)
      end
    end
    lu.assertErrorMsgContains("there is no module", module.replace, module, "no.such", nn.Identity())
    lu.assertErrorMsgContains("cannot replace itself", module.replace, module, "", nn.Identity())
  end)
end

-- A module with two of them, one of them under two names, itself, and a tensor of one tied to a field of its own.
local Holder = nn.class("Holder")

local function held(subject)
  local net = Holder()
  net.a = subject.make()
  net.list = { subject.make() }
  net.again = net.a
  net.me, net.list.back = net, net
  local first = net.a:parameters()[1]
  if first and is_float(first) and not first.packed then net.tied = first end
  return net, net.tied
end

function TestModuleLaws:test_a_module_that_holds_two_of_them_has_all_of_both_once()
  each(function (_, subject)
    local net, tied = held(subject)
    local n = #net.a:parameters()
    lu.assertEquals(#net:parameters(), 2 * n)
    lu.assertEquals(net:num_parameters(), net.a:num_parameters() + net.list[1]:num_parameters())
    lu.assertEquals(#net:modules(), 1 + 2 * #net.a:modules())
    for i, entry in ipairs(net:named_parameters()) do
      lu.assertEquals(entry[1], (i <= n and "a." or "list.0.") .. net.a:named_parameters()[(i - 1) % n + 1][1])
    end
    net:train():eval()
    for _, m in ipairs(net:modules()) do lu.assertFalse(m.training) end
    lu.assertStrContains(tostring(net), "me: Holder, the whole")
    if not has_state(subject) then return end
    local other = held(subject)
    stirred(net)
    other:load_state_dict(net:state_dict())
    lu.assertEquals(bytes(other), bytes(net))
    if subject.kind ~= "q8_0" then -- which the format does not have
      local file = os.tmpname()
      assert(peri.safetensors.save(file, net:state_dict()))
      held(subject):load_state_dict((assert(peri.safetensors.load(file))))
      os.remove(file)
    end
    local copy = net:copy()
    lu.assertEquals(bytes(copy), bytes(net))
    lu.assertTrue(rawequal(copy.again, copy.a) and rawequal(copy.me, copy) and rawequal(copy.list.back, copy))
    if not tied then return end
    lu.assertTrue(rawequal(copy.tied, copy.a:parameters()[1]))
    local state = net:state_dict()
    state.tied = state.tied:add(1)
    lu.assertErrorMsgContains("one tensor here, with different values", net.load_state_dict, net, state)
  end)
end

function TestModuleLaws:test_a_summary_costs_nothing_but_time()
  each(function (name, subject)
    local module = subject.make():train()
    if not subject.run or subject.kind == "adapter" or module.kind == "encoder-decoder" then return end
    local input = subject.input()
    local takes = subject.takes and table.pack(subject.takes(input)) or { input }
    local rng = peri.rng_state()
    local s = module:summary(table.unpack(takes))
    lu.assertEquals(peri.rng_state(), rng)
    lu.assertTrue(module.training)
    lu.assertEquals(#s, #module:modules())
    lu.assertEquals({ s.parameters, s[1].path, s[1].parameters }, { module:num_parameters(), "", module:num_parameters() })
    if module:num_parameters() > 0 and not name:find "Embedding" then lu.assertTrue(s.flops > 0, name) end
    local below = 0
    for _, row in ipairs(s) do
      if row.path ~= "" then
        lu.assertTrue((row.flops or 0) <= s.flops)
        below = below + (row.flops or 0)
      end
    end
    for line in (tostring(s) .. "\n"):gmatch "(.-)\n" do lu.assertTrue(#line <= 80, line) end
    for _, m in ipairs(module:modules()) do lu.assertNil(rawget(m, "forward")) end
  end)
end

-- ---- published models among modules ----

TestModelsAsModules = {}

local function llama(opts) return assert(models.load(folder .. "llama", opts)) end

local narrow = { model_type = "llama", vocab_size = 64, hidden_size = 16, intermediate_size = 24, num_hidden_layers = 1,
  num_attention_heads = 2, num_key_value_heads = 1, rms_norm_eps = 1e-6 }

-- A policy with a value head and an adapter, saved in the middle of its training, goes on as one that was not.
function TestModelsAsModules:test_a_policy_is_saved_and_goes_on_byte_for_byte()
  for _, name in ipairs { "lora", "bottleneck", "prefix", "none" } do
    peri.seed(4)
    local function make()
      peri.seed(5)
      local base = llama()
      return Policy(base, adapters[name] and adapters[name](base)):train()
    end
    local ids = ids_of()
    local function steps(net, opt, n)
      for _ = 1, n do
        net(ids):square():mean():backward()
        opt:step():zero_grad()
      end
    end
    local straight = make()
    local opt = optim.AdamW(straight, { lr = 0.01 })
    steps(straight, opt, 2)
    local file, moments = os.tmpname(), os.tmpname()
    assert(peri.safetensors.save(file, straight:state_dict()))
    local tensors, plain = opt:state_dict()
    assert(peri.safetensors.save(moments, tensors))
    steps(straight, opt, 2)
    local resumed = make()
    local again = optim.AdamW(resumed, { lr = 0.01 })
    resumed:load_state_dict((assert(peri.safetensors.load(file))))
    again:load_state_dict((assert(peri.safetensors.load(moments))), plain)
    os.remove(file)
    os.remove(moments)
    steps(resumed, again, 2)
    lu.assertEquals(bytes(resumed), bytes(straight), name)
    lu.assertNotNil(bytes(resumed)["model.model.layers.0.self_attn.q_proj.weight"])
    if name == "lora" then
      lu.assertNotNil(bytes(resumed)["adapter.model.layers.0.self_attn.q_proj.lora_A.weight"])
    end
  end
end

function TestModelsAsModules:test_a_copied_policy_has_its_adapters_on_its_own_model_in_their_order()
  local base = llama()
  local net = Policy(base)
  net.one = peft.bottleneck(base, { reduction = 8 })
  net.two = peft.lora(base, { r = 2, targets = { "o_proj", "lm_head" } })
  stirred(net)
  local ids = ids_of()
  local want = output(subjects.policy, net, ids)
  local copy = net:copy()
  lu.assertEquals(output(subjects.policy, copy, ids), want)
  lu.assertTrue(rawequal(copy.two.model, copy.model))
  stirred(net)
  lu.assertEquals(output(subjects.policy, copy, ids), want)
  copy.two:remove()
  lu.assertNotEquals(output(subjects.policy, copy, ids), want)
  lu.assertNotNil(net.model:get("layers.0.attention.out").adapter)
  local bare = net.model:copy() -- without what was put on it
  for _, p in ipairs(bare:projections()) do lu.assertNil(p.adapter) end
  local alone = net.two:copy() -- on no model, and puts nothing on one
  lu.assertTrue(rawequal(alone.model, net.model))
  local before = output(subjects.policy, net, ids)
  stirred(alone)
  alone:remove()
  lu.assertEquals(output(subjects.policy, net, ids), before)
  net.two:remove()
  net.two = nil
  net.three = peft.lora(base, { r = 2 })
  net.three:merge()
  lu.assertErrorMsgContains("copy: three is merged into model", net.copy, net)
end

function TestModelsAsModules:test_a_pattern_that_means_a_part_of_a_tensor_is_refused_and_others_are_followed()
  local net = Policy(llama())
  lu.assertErrorMsgContains("name all of its parts or none", net.freeze, net, "q_proj")
  lu.assertErrorMsgContains("model.model.layers.0.self_attn.q_proj.weight", net.freeze, net, "q_proj")
  for _, p in ipairs(net:parameters()) do lu.assertTrue(p.requires_grad) end
  net:freeze "self_attn"
  lu.assertFalse(net:get("model.layers[1].attention.qkv.weight").requires_grad)
  lu.assertTrue(net:get("model.layers[1].ff.down.weight").requires_grad)
  net:unfreeze():freeze "^model%.layers%.1%." -- a path of the module
  lu.assertFalse(net.model.layers[2].norm1.weight.requires_grad)
  lu.assertTrue(net.model.layers[1].norm1.weight.requires_grad)
  local bf16 = llama { dtype = "q8_0" }
  lu.assertErrorMsgContains("q8_0, which takes no gradients", bf16.unfreeze, bf16, "layers%.0%.attention%.qkv%.weight")
end

-- An adapter that nobody put into a field would be neither trained nor saved with the module.
function TestModelsAsModules:test_an_adapter_that_is_left_out_is_named_before_anything_is_lost()
  for _, name in ipairs { "lora", "lora_everywhere", "bottleneck", "prefix" } do
    local base = llama()
    local net, adapter = Policy(base), adapters[name](base)
    local kind = getmetatable(adapter).__name
    local function refused(text, call) lu.assertErrorMsgContains(text, call) end
    refused("AdamW: a " .. kind .. " sits on model",
      function () optim.AdamW(net, { lr = 1 }) end)
    optim.AdamW(net:parameters(), { lr = 1 })
    optim.AdamW({ net, adapter }, { lr = 1 })
    local path = require("scratch").path()
    local run = peri.recipe.start { name = "left", flags = { runs = path }, total = 1, console = false }
    run:track("net", net)
    refused("and would not be saved: track it", function () run:steps() end)
    run:finish(false)
    run = peri.recipe.start { name = "both", flags = { runs = path }, total = 1, console = false }
    run:track("net", net):track("adapter", adapter)
    for _ in run:steps() do end -- luacheck: ignore 542
    run:finish()
    peri.files.remove_tree(path)
    adapter:remove()
    optim.AdamW(net, { lr = 1 })
    net.model = llama { dtype = "q8_0" }
    run = peri.recipe.start { name = "blocks", flags = { runs = path }, total = 1, console = false }
    run:track("net", net)
    refused("is q8_0, which the format does not have", function () run:steps() end)
    run:finish(false)
    peri.files.remove_tree(path)
  end
end

-- A layer that somebody else wrote, in a published model: it computes, trains, is saved, and the folder says what it lacks.
function TestModelsAsModules:test_a_layer_of_ones_own_stands_in_a_published_model()
  local Low = nn.class("Low", function (low, old, r)
    low.old = old
    low.a, low.b = nn.Linear(old.in_features, r, { bias = false }), nn.Linear(r, old.out_features, { bias = false })
    low.b.weight:detach():fill_(0)
  end)
  function Low:forward(h, decoding) return self.old:forward(h, decoding):add(self.b(self.a(h))) end
  for _, name in ipairs { "llama", "gpt2", "bert", "t5" } do
    local model, ids = assert(models.load(folder .. name)), ids_of()
    local want, path = output({ run = run_model }, model, ids), nil
    for _, entry in ipairs(model:named_modules()) do
      if entry[2].in_features and entry[1]:find "up$" then path = entry[1] end
    end
    local old = model:get(path)
    model:replace(path, Low(old, 2))
    model:freeze():unfreeze "%.[ab]%.weight$"
    lu.assertEquals(output({ run = run_model }, model, ids), want, name) -- with the activation behind it
    local opt = optim.SGD(model, { lr = 1 })
    run_model(model, ids):square():sum():backward()
    opt:step()
    lu.assertNotEquals(output({ run = run_model }, model, ids), want, name)
    local state = model:state_dict()
    lu.assertNotNil(state[path .. ".a.weight"])
    lu.assertErrorMsgContains("was replaced", model.save, model, "/nonexistent")
    local again = assert(models.load(folder .. name))
    again:replace(path, Low(again:get(path), 2))
    again:load_state_dict(state)
    lu.assertEquals(output({ run = run_model }, again, ids), output({ run = run_model }, model, ids))
    model:replace(path, old)
    lu.assertEquals(output({ run = run_model }, model, ids), want)
  end
end

function TestModelsAsModules:test_what_cannot_stand_in_a_place_is_refused_and_nothing_changes()
  local model = llama()
  local path = "layers.0.attention.qkv"
  local qkv, other = model:get(path), models.llama.new(narrow)
  for text, call in pairs {
    ["takes 32 numbers and gives 64, the new Linear takes 32 numbers and gives 32"] = { path, nn.Linear(32, 32) },
    ["is a Block: it takes 32 numbers and gives 32, the new Linear takes 32 numbers and gives 8"] = { "layers.0", nn.Linear(32, 8) },
    ["the new Block takes 16 numbers and gives 16"] = { "layers[1]", other.layers[1] },
    ["is a FeedForward: it takes 32 numbers and gives 32, the new FeedForward takes 16"] = { "layers.1.ff", nn.FeedForward(16, 8) },
    ["is a RMSNorm: it takes 32 numbers and gives 32, the new LayerNorm takes 8"] = { "layers.0.norm2", nn.LayerNorm(8) },
  } do
    lu.assertErrorMsgContains(text, model.replace, model, call[1], call[2])
    local _, message = pcall(function () model:replace(call[1], call[2]) end)
    lu.assertStrContains(message, "test_module_laws.lua")
  end
  local adapter = peft.lora(model, { r = 2 })
  lu.assertErrorMsgContains("an adapter is on it", model.replace, model, path, nn.Linear(32, 64, { bias = false }))
  adapter:remove()
  lu.assertTrue(rawequal(model:get(path), qkv))
  model:replace(path, nn.Linear(32, 64, { bias = false }))
end

-- What goes from (B, T, dim) to the same stands in a stack, wherever it comes from: decoding is as reading.
function TestModelsAsModules:test_blocks_of_other_kinds_stand_in_a_published_model()
  local ids = ids_of()
  for name, made in pairs {
    ["a block of nn"] = function () return nn.Block(32, 4, { rope = true, kind = "swiglu" }) end,
    ["a post-norm block"] = function () return nn.Block(32, 4, { norm_first = false }) end,
    ["a block of another model, from another place"] = function () return assert(models.load(folder .. "qwen3")).layers[1] end,
    ["a module without memory"] = function () return nn.Sequential(nn.Linear(32, 32), nn.Tanh()) end,
    ["nothing"] = function () return nn.Identity() end,
  } do
    for _, place in ipairs { "layers.0", "layers.1", "layers.2" } do
      local model = llama()
      model:replace(place, made())
      local _ <close> = peri.no_grad()
      local want, cache = model:forward(ids), model:cache(2, 6)
      lu.assertTrue(want:isfinite():all():item())
      local parts = { model:forward(ids:narrow(2, 1, 3), { cache = cache }) }
      for t = 4, 6 do parts[#parts + 1] = model:forward(ids:narrow(2, t, 1), { cache = cache }) end
      lu.assertTrue(peri.cat(parts, 2):sub(want):abs():max():item() < 1e-5, name .. " at " .. place)
      cache:release()
    end
  end
end

-- The block is computed twice and hooked once; what is inside of it runs twice. No gradient changes.
function TestModelsAsModules:test_hooks_under_checkpointing()
  local ids, seen = ids_of(), {}
  local function gradients(model)
    run_model(model, ids):square():mean():backward()
    local out = {}
    for name, g in pairs(model:gradients()) do out[name] = g:contiguous():bytes() end
    return out
  end
  local function hook(model)
    local calls = { block = 0, inside = 0 }
    model:get("layers.1"):hook(function (_, _, y)
      calls.block = calls.block + 1
      seen[#seen + 1] = y.requires_grad
      return y:mul(2)
    end)
    model:get("layers.1.ff.down"):hook(function () calls.inside = calls.inside + 1 end)
    return calls
  end
  local plain, checkpointed = llama(), llama():checkpointing(true)
  local a, b = hook(plain), hook(checkpointed)
  lu.assertEquals(gradients(checkpointed), gradients(plain))
  lu.assertEquals({ a.block, a.inside, b.block, b.inside }, { 1, 1, 1, 2 })
  lu.assertEquals(seen, { true, true }) -- a feature that a loss can pull at
end

function TestModelsAsModules:test_hooks_come_and_go_in_order()
  local net, log = nn.Linear(2, 2), {}
  local function note(text) return function () log[#log + 1] = text end end
  local first, second = net:hook(note "a"), net:hook(note "b")
  local handle = net:hook_before(function (_, input) log[#log + 1] = "before" return input:mul(0) end)
  local out = net(peri.ones { 1, 2 })
  lu.assertEquals(out:tolist()[1], net.bias:tolist())
  lu.assertEquals(log, { "before", "a", "b" })
  first:remove()
  first:remove()
  handle:remove()
  log = {}
  do local own <close> = net:hook(note "closed") net:forward(peri.ones { 1, 2 }) end -- luacheck: ignore 211
  net(peri.ones { 1, 2 })
  lu.assertEquals(log, { "b", "closed", "b" })
  second:remove()
  net.forward = function (_, input) return input end -- an instance's own, with hooks around it and without
  local around = net:hook(function (_, _, y) return y:add(1) end)
  lu.assertEquals(net(peri.ones { 1, 2 }):tolist(), { { 2, 2 } })
  around:remove()
  lu.assertEquals(net(peri.ones { 1, 2 }):tolist(), { { 1, 1 } })
  lu.assertErrorMsgContains("hook: fn is 3, expected callable", net.hook, net, 3)
  local failing = nn.Linear(2, 2)
  failing:hook(function () error("mine", 0) end)
  lu.assertErrorMsgContains("mine", failing, peri.ones { 1, 2 })
end

-- ---- what is no module ----

function TestModelsAsModules:test_objects_with_tensors_that_are_no_modules_are_refused_where_they_are_put()
  local Other = { __name = "Normaliser" }
  local function object(fields) return setmetatable(fields, Other) end
  for what, value in pairs {
    mean = object { mean = peri.ones { 1 } }, layer = object { layer = nn.Linear(1, 1) }, list = object { list = { peri.ones { 1 } } },
    named_parameters = setmetatable({}, { __index = { named_parameters = function () return {} end }, __name = "Normaliser" }),
  } do
    local net = Holder()
    lu.assertErrorMsgContains(("norm is a Normaliser of its own class, and its %s would be neither trained nor saved: make "
      .. "the class with nn.class, or give the field a private name such as _norm"):format(what),
      function () net.norm = value end)
    lu.assertNil(rawget(net, "norm"))
    net._norm = value
    net.list = { value } -- later, by the walk
    lu.assertErrorMsgContains("list.0 is a Normaliser", net.parameters, net)
  end
  local net = Holder()
  net.plain, net.cache = object { 1, "x", f = print }, nn.KVCache(1, 4, 2, 2)
  net.config, net.opt = peri.json.decode '{"a": [1]}', optim.SGD(nn.Linear(1, 1), { lr = 1 })
  lu.assertEquals(#net:parameters(), 0)
end

if arg and arg[0] and arg[0]:find "test_module_laws" then os.exit(lu.LuaUnit.run()) end
