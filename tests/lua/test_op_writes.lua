-- Laws of every op that writes in place, and of every result that a backward pass reads: what would be
-- lost or come out wrong without a word is refused with a message.
local lu = require "luaunit"
local peri = require "perilune"
local optest = require "optest"

local function is_tensor(x) return type(x) == "userdata" end
local function float(x) return is_tensor(x) and (x.dtype == "f32" or x.dtype == "f64") end

-- Arguments of an op that writes, so that no two written ones are the same memory.
local function arguments(op) return (optest.arguments(op, "f32")) end

-- Call the in-place form of op.
local function write(op, args)
  if op.flags.elementwise then return args[1][op.name .. "_"](args[1], table.unpack(args, 2, args.n)) end
  return peri[op.name](table.unpack(args, 1, args.n))
end

-- Every tensor among the arguments: get(), put(t), the parameter, where it is.
local function places(op, args)
  local list = {}
  local function add(t, k, p, what)
    list[#list + 1] = { p = p, what = what, get = function () return t[k] end, put = function (x) t[k] = x end }
  end
  for i, p in ipairs(op.params) do
    if is_tensor(args[i]) then add(args, i, p, p.name)
    elseif p.kind == "tensors" and args[i] then
      for k = 1, #args[i] do add(args[i], k, p, ("%s %d"):format(p.name, k)) end
    end
  end
  return list
end

local function written(op, p) return p.written or (op.flags.elementwise and p == op.params[1]) end

local writers = {}
for _, op in ipairs(peri.ops()) do
  if op.flags.elementwise or op.flags.inplace then writers[#writers + 1] = op end
end

TestWrites = {}

function TestWrites.test_every_op_that_writes_says_what()
  lu.assertTrue(#writers > 45, "only " .. #writers)
  for _, op in ipairs(writers) do
    local any = false
    for _, p in ipairs(op.params) do any = any or written(op, p) end
    lu.assertTrue(any, op.name)
  end
end

for _, op in ipairs(writers) do
  local name = op.flags.elementwise and op.name .. "_" or op.name

  TestWrites[("test_%s counts what it wrote and nothing else"):format(name)] = function ()
    local args = arguments(op)
    local all, before, bytes = places(op, args), {}, {}
    for i, at in ipairs(all) do before[i], bytes[i] = at.get():version(), at.get():bytes() end
    write(op, args)
    for i, at in ipairs(all) do
      lu.assertEquals(at.get():version() > before[i], written(op, at.p) or false, at.what)
      if not written(op, at.p) then lu.assertEquals(at.get():bytes(), bytes[i], at.what) end
    end
  end

  TestWrites[("test_%s refuses a target whose elements share memory"):format(name)] = function ()
    for i = 1, #places(op, arguments(op)) do
      for _, touch in ipairs {
        function (x) return x.ndim > 0 and x:size(1) > 1 and x:narrow(1, 1, 1):clone():expand(x.shape) end,
        function (x) return x.ndim > 1 and x:size(-1) > 1 and x:narrow(-1, 1, 1):clone():expand(x.shape) end,
      } do
        local args = arguments(op)
        local at = places(op, args)[i]
        local view = touch(at.get())
        if view and written(op, at.p) then
          at.put(view)
          local before = view:bytes()
          local ok, message = pcall(write, op, args)
          lu.assertFalse(ok, name .. " of " .. at.what)
          lu.assertStrContains(message, name .. ": ")
          lu.assertStrContains(message, at.p.name)
          lu.assertStrContains(message, "broadcast")
          lu.assertEquals(view:bytes(), before)
        elseif view then -- a source may be expanded
          at.put(view)
          pcall(write, op, args)
          lu.assertEquals(view:bytes(), view:clone():bytes())
        end
      end
    end
  end

  TestWrites[("test_%s refuses a target that is shared read-only"):format(name)] = function ()
    for i = 1, #places(op, arguments(op)) do
      local args = arguments(op)
      local at = places(op, args)[i]
      local memory = at.get():clone():share()
      at.put(memory:detach()) -- every view of it is
      local before = memory:bytes()
      local ok, message = pcall(write, op, args)
      lu.assertEquals(ok, not written(op, at.p), name .. " of " .. at.what)
      if not ok then
        lu.assertStrContains(message, name .. ": ")
        lu.assertStrContains(message, at.p.name)
        lu.assertStrContains(message, "shared read-only")
      end
      lu.assertEquals(memory:bytes(), before)
      args = arguments(op)
      at = places(op, args)[i]
      at.put(at.get():clone():share "racing")
      lu.assertTrue(pcall(write, op, args), name .. " of racing " .. at.what)
    end
  end

  TestWrites[("test_%s of two targets that share memory is refused"):format(name)] = function ()
    local n = #places(op, arguments(op))
    for i = 1, n do
      for k = i + 1, n do
        local args = arguments(op)
        local all = places(op, args)
        local a, b = all[i], all[k]
        if written(op, a.p) and written(op, b.p) and table.concat(a.get().shape, ",") == table.concat(b.get().shape, ",") then
          b.put(a.get())
          local ok, message = pcall(write, op, args)
          lu.assertFalse(ok, ("%s: %s and %s"):format(name, a.what, b.what))
          lu.assertStrContains(message, "share memory")
        end
      end
    end
  end

  TestWrites[("test_%s never loses a gradient without a word"):format(name)] = function ()
    for i = 1, #places(op, arguments(op)) do
      local args = arguments(op)
      local at = places(op, args)[i]
      if float(at.get()) then
        local w = at.get():clone():requires_grad_()
        at.put(w:mul(1)) -- a tensor of a graph
        local bytes = at.get():bytes()
        local ok, message = pcall(write, op, args)
        if op.flags.inplace or op.differentiable or written(op, at.p) then
          lu.assertFalse(ok, name .. " of " .. at.what)
          lu.assertStrContains(message, name .. ": ")
          lu.assertStrContains(message, "no_grad")
          lu.assertStrContains(message, at.p.name)
        end
        lu.assertEquals(at.get():bytes(), bytes)
        lu.assertTrue(pcall(peri.no_grad, write, op, args)) -- what the message says works
      end
    end
  end
end

-- Views of what is written are targets and sources like any other.
function TestWrites.test_views_of_a_target_lose_no_gradient()
  local w = peri.tensor({ 1, 2 }, "f32"):requires_grad_()
  for what, view in pairs {
    narrow = function (b) return b:narrow(1, 2, 2) end, select = function (b) return b:reshape { 2, 2 }:select(1, 1) end,
    transpose = function (b) return b:reshape { 2, 2 }:transpose():select(1, 2) end,
    flip = function (b) return b:narrow(1, 1, 2):flip() end, detach = function (b) return b:narrow(1, 1, 2):detach() end,
  } do
    for _, op in ipairs { "copy_", "add_", "mul_", "lerp_", "maximum_", "atan2_" } do
      local buf = peri.ones { 4 }
      local t = view(buf)
      local ok, message = pcall(t[op], t, w * 3, op == "lerp_" and 0.5 or nil)
      lu.assertFalse(ok, op .. " into " .. what)
      lu.assertStrContains(message, "gradient would be lost")
      lu.assertEquals(buf:tolist(), { 1, 1, 1, 1 })
    end
  end
end

-- Interleaved views lie in one range of memory and share none of it.
function TestWrites.test_interleaved_targets_are_no_overlap()
  local both = peri.zeros { 1, 4, 2, 1, 2 }
  local k, v = both:select(3, 1), both:select(3, 2)
  local new = peri.ones { 1, 1, 1, 2 }
  peri.kv_append_(k, v, new, new * 2, 3)
  lu.assertEquals(both:sum():item(), 6)
  lu.assertErrorMsgContains("share memory", peri.kv_append_, k, both:narrow(2, 1, 4):select(3, 1), new, new, 3)
  local shifted = peri.zeros { 1, 6, 1, 2 }
  lu.assertErrorMsgContains("share memory", peri.kv_append_, shifted:narrow(2, 1, 4), shifted:narrow(2, 3, 4), new, new, 3)
end

-- Rows of a cache are moved through views of it: of some columns, of keys that are stored channel by channel.
function TestWrites.test_moved_rows_are_what_index_select_reads()
  local rng = peri.rng(1)
  for _, case in ipairs { { 0, 5, 4 }, { 3, 2, 7 }, { 1, 1, 2 } } do -- columns before, columns, rows
    local x = peri.randn { 9, 3, 4, 8 }
    local view = x:narrow(4, case[1] + 1, case[2]):permute { 1, 4, 2, 3 }
    local from, to, want = {}, {}, x:clone()
    for i = 1, case[3] do from[i], to[i] = rng:int(0, 8), i - 1 end
    local target = want:narrow(4, case[1] + 1, view:size(2)):permute { 1, 4, 2, 3 }
    target:narrow(1, 1, #to):copy_(view:index_select(peri.tensor(from, "i64"), 1))
    view:move_rows_(peri.tensor(from, "i64"), peri.tensor(to, "i64"))
    lu.assertEquals(x:bytes(), want:bytes())
  end
end

function TestWrites.test_sources_in_written_memory_are_read_first()
  local c = peri.arange(8):to("f32"):reshape { 1, 4, 1, 2 }
  local d = c:clone()
  local want = c:clone()
  want:narrow(2, 2, 3):copy_(c:narrow(2, 1, 3):clone())
  peri.kv_append_(c, d, c:narrow(2, 1, 3), d:narrow(2, 1, 3), 2)
  lu.assertEquals(c:tolist(), want:tolist())
  lu.assertEquals(d:tolist(), want:tolist())
  local line = peri.arange(40000):to "f32"
  want = line:narrow(1, 2, 39999):mul(0.5):add(line:narrow(1, 1, 39999):mul(0.5))
  peri.ema_({ line:narrow(1, 2, 39999) }, { line:narrow(1, 1, 39999) }, 0.5)
  lu.assertEquals(line:narrow(1, 2, 39999):bytes(), want:bytes())
end

-- Optimizers' steps are meant for leaves, but not for sources of a graph.
function TestWrites.test_steps_take_leaves_and_no_tracked_gradients()
  local w = peri.ones { 2 }:requires_grad_()
  peri.sgd_({ w }, { peri.ones { 2 } }, {}, 0.5)
  lu.assertEquals(w:tolist(), { 0.5, 0.5 })
  local g = peri.grad((w * w * w):sum(), w, { create_graph = true })
  lu.assertErrorMsgContains("grads takes part in a graph", peri.sgd_, { w }, { g }, {}, 0.5)
  lu.assertErrorMsgContains("(grads)", peri.clip_grad_norm_, { g }, 0.1)
  lu.assertErrorMsgContains("sources takes part", peri.ema_, { peri.zeros { 2 } }, { w }, 0.5)
  peri.no_grad(peri.ema_, { peri.zeros { 2 } }, { w }, 0.5)
end

-- Elements given as tensors: set and tensor make no graph.
function TestWrites.test_elements_of_a_graph_are_refused()
  local w = peri.tensor({ 1, 2 }, "f32"):requires_grad_()
  local t = peri.zeros { 2 }
  lu.assertErrorMsgContains("set: an element takes part in a graph", t.set, t, 1, w:sum())
  lu.assertErrorMsgContains("tensor: an element takes part in a graph", peri.tensor, { w:sum(), w:sum() })
  lu.assertEquals(t:tolist(), { 0, 0 })
  lu.assertEquals(t:set(1, w:sum():detach()):tolist(), { 3, 0 })
end

function TestWrites.test_set_of_a_shared_tensor_is_refused()
  local x = peri.zeros { 2 }:share()
  lu.assertEquals(x.shared, "read-only")
  lu.assertErrorMsgContains("set: x, which is written, is shared read-only", x.set, x, 1, 5)
  lu.assertEquals(x:clone():set(1, 5):tolist(), { 5, 0 })
  lu.assertEquals(peri.zeros({ 2 }):share "racing":set(1, 5):tolist(), { 5, 0 })
  lu.assertNil(peri.zeros({ 2 }).shared)
end

function TestWrites.test_set_of_an_expanded_tensor_is_refused()
  local one = peri.ones { 2, 1 }
  for _, view in ipairs { one:expand { 2, 3 }, one:narrow(1, 1, 1):expand { 2, 3 }, one:expand { 4, 2, 1 } } do
    local at = {}
    for i = 1, view.ndim do at[i] = 1 end
    at[#at + 1] = 5
    lu.assertErrorMsgContains("set: dim", view.set, view, table.unpack(at))
    lu.assertErrorMsgContains("is broadcast", view.set, view, table.unpack(at))
  end
  lu.assertEquals(one:tolist(), { { 1 }, { 1 } })
  lu.assertEquals(one:expand({ 2, 3 }):contiguous():set(1, 2, 5):at(1):tolist(), { 1, 5, 1 })
end

-- Floats that come from a graph and are not part of it: only where the derivative is 0, where the op is
-- a gradient itself or draws, and where no gradient is meant.
function TestWrites.test_ops_without_a_gradient_are_known()
  local known = {}
  for name in ([[sign floor ceil round floordiv zeros_like ones_like full_like empty_like rand_like randn_like one_hot
    bernoulli sample pack rand_gamma gae group_advantage n_step_returns lambda_returns vtrace
    ppo_metrics grad_norm]]):gmatch "%S+" do known[name] = true end
  for _, op in ipairs(peri.ops()) do
    if not op.differentiable and not op.flags.inplace and not op.name:find "_backward$" then
      local args = optest.arguments(op, "f32")
      local tracked = false
      for _, at in ipairs(places(op, args)) do
        if float(at.get()) then
          at.put(at.get():clone():requires_grad_())
          tracked = true
        end
      end
      for _, y in ipairs(tracked and optest.call(op, args) or {}) do
        lu.assertTrue(not float(y) or known[op.name], op.name .. " loses a gradient")
      end
    end
  end
end

function TestWrites.test_a_source_without_a_gradient_may_be_written()
  local w = peri.tensor({ 1.5, 2.5 }, "f32"):requires_grad_()
  lu.assertEquals(peri.zeros({ 2 }, "i64"):copy_(w):tolist(), { 1, 2 })
  lu.assertEquals(peri.ones({ 2 }):floordiv_(w):tolist(), { 0, 0 })
end

-- ---- results that the backward pass reads ----

-- Ops whose gradient needs their result. Any other one gives it whatever became of the result.
local saving = {}
for name in ([[exp expm1 sqrt rsqrt reciprocal tanh sigmoid elu div pow max min logsumexp norm cumprod cummax sort topk
  softmax log_softmax add_layer_norm add_rms_norm attention std linear global_norm lstm gru]]):gmatch "%S+" do saving[name] = true end

-- Gradients of every float output, straight from the op, after touch(outputs).
local function gradients(op, domain, touch)
  local args, floats = optest.arguments(op, "f64", domain)
  for _, x in ipairs(floats) do x:requires_grad_() end
  local out, list = optest.call(op, args), {}
  if touch then touch(out) end
  for k, y in ipairs(out) do
    local n = y:numel()
    if y.requires_grad and n > 0 then
      local seed = peri.arange(1, n + 1):to("f64"):sin():reshape(y.shape)
      for i, g in pairs(peri.grad(y, floats, { seed = seed })) do list[#list + 1] = ("%d %d %s"):format(k, i, g:bytes()) end
    end
  end
  table.sort(list)
  return list, #out
end

local junk = { function (y) y:fill_(y.dtype == "i64" and 0 or -0.75) end, function (y) y:fill_(0) end,
  function (y) y:fill_(y.dtype == "i64" and 0 or 0 / 0) end, function (y) y:reshape { -1 }:narrow(1, 1, 1):fill_(0) end }

local function check_overwritten(op, domain)
  local want, n = gradients(op, domain)
  for k = 1, n do
    for i, spoil in ipairs(junk) do
      for _, how in ipairs { function (y) peri.no_grad(spoil, y) end, function (y) spoil(y:detach()) end } do
        local ok, got = pcall(gradients, op, domain, function (out) pcall(how, out[k]) end) -- an expanded one refuses
        if ok then
          lu.assertEquals(got, want, ("%s: output %d, %d"):format(op.name, k, i))
        else
          -- of an op made of others the one that has made the result
          lu.assertStrMatches(got, (".*output %d of %s was changed in place after it was computed.*"):format(k,
            op.composed and "[%w_]+" or op.name))
          lu.assertTrue(op.composed or saving[op.name] == true, got)
        end
      end
    end
  end
end

for _, op in ipairs(peri.ops()) do
  if op.differentiable then
    TestWrites[("test_the gradient of %s when its result was overwritten"):format(op.name)] = function ()
      check_overwritten(op, op.domain or "")
      if op.name == "linear" then
        for _, a in ipairs(peri.activations()) do check_overwritten(op, op.domain .. "; attr act=" .. a.name) end
      elseif op.name == "norm" then
        for _, p in ipairs { "0", "0.5", "1", "3" } do check_overwritten(op, "attr p=" .. p) end
      end
    end
  end
end

-- An input overwritten before the pass: the right gradient, or a refusal that names it.
for _, op in ipairs(peri.ops()) do
  if op.differentiable then
    TestWrites[("test_the gradient of %s when an input was overwritten"):format(op.name)] = function ()
      local function run(spoiled)
        local args, floats = optest.arguments(op, "f64")
        for _, x in ipairs(floats) do x:requires_grad_() end
        local out, list, all = optest.call(op, args), {}, places(op, args)
        if spoiled then
          local x = all[spoiled].get()
          peri.no_grad(function () x:fill_(x.dtype == "f64" and -0.75 or 0) end)
        end
        for k, y in ipairs(out) do
          if y.requires_grad then
            local seed = peri.arange(1, y:numel() + 1):to("f64"):sin():reshape(y.shape)
            for i, g in pairs(peri.grad(y, floats, { seed = seed })) do list[#list + 1] = ("%d %d %s"):format(k, i, g:bytes()) end
          end
        end
        table.sort(list)
        return list, #all
      end
      local want, n = run()
      for i = 1, n do
        local ok, got = pcall(run, i)
        if ok then lu.assertEquals(got, want, "input " .. i)
        else lu.assertStrContains(got, "was changed in place after it was") end
      end
    end
  end
end

function TestWrites.test_inputs_that_no_gradient_reads_may_change()
  local w, b = peri.ones { 2, 3 }:requires_grad_(), peri.ones { 3 }:requires_grad_()
  local y = (w + b):sum()
  peri.no_grad(b.fill_, b, 7)
  y:backward()
  lu.assertEquals(b.grad:tolist(), { 2, 2, 2 })
end

function TestWrites.test_what_a_custom_function_keeps_must_not_change()
  local f = peri.custom(function (ctx, x)
    ctx.y = x:exp()
    return ctx.y
  end, function (ctx, g) return g * ctx.y end)
  local x = peri.tensor({ 1, 2 }, "f32"):requires_grad_()
  local y = f(x)
  y:detach():fill_(7)
  lu.assertErrorMsgContains("'y', which forward kept", function () y:sum():backward() end)
end

-- ---- memory of gradients ----

-- Writing into one tensor of the list changes no other one.
local function assert_apart(list, what)
  for i, x in ipairs(list) do peri.no_grad(x.fill_, x, i) end
  for i, x in ipairs(list) do
    for _, v in ipairs(x:reshape { -1 }:tolist()) do lu.assertEquals(v, i, ("%s: tensor %d"):format(what, i)) end
  end
end

for _, op in ipairs(peri.ops()) do
  if op.differentiable then
    TestWrites[("test_gradients of %s have memory of their own"):format(op.name)] = function ()
      for _, create_graph in ipairs { false, not op.flags.no_grad2 or nil } do
        local args, floats = optest.arguments(op, "f64")
        for _, x in ipairs(floats) do x:requires_grad_() end
        for k, y in ipairs(optest.call(op, args)) do
          if y.requires_grad and y:numel() > 0 then
            local seed = peri.ones(y.shape, "f64")
            local list = { seed }
            for _, g in pairs(peri.grad(y, floats, { seed = seed, create_graph = create_graph })) do list[#list + 1] = g end
            assert_apart(list, ("output %d"):format(k))
          end
        end
      end
      local args, floats = optest.arguments(op, "f64")
      for _, x in ipairs(floats) do x:requires_grad_() end
      local y = optest.call(op, args)[1]
      if y.requires_grad and y:numel() > 0 then
        local list = { peri.ones(y.shape, "f64"), table.unpack(floats) }
        y:backward(list[1], { retain_graph = true })
        y:backward(list[1])
        for _, x in ipairs(floats) do list[#list + 1] = x.grad end
        assert_apart(list, "backward")
      end
    end
  end
end

function TestWrites.test_gradients_of_one_tensor_and_of_the_root_are_apart()
  local x = peri.ones { 3 }:requires_grad_()
  local y = x * 1
  local seed = peri.ones { 3 }
  local g = peri.grad(y, { x, y, x, y }, { seed = seed })
  assert_apart({ seed, g[1], g[2], g[3], g[4] }, "grad")
end

function TestWrites.test_a_custom_vjp_may_keep_and_change_what_it_gets()
  local kept
  local f = peri.custom(function (_, x) return x * 1 end, function (_, g)
    kept = g
    g:mul_(10)
    return g
  end)
  local x, z = peri.ones { 2 }:requires_grad_(), peri.ones { 2 }:requires_grad_()
  local seed = peri.ones { 2 }
  local h = z * 1
  local y = f(x) + h
  local g = peri.grad(y, { x, z, h }, { seed = seed })
  lu.assertEquals({ g[1]:tolist(), g[2]:tolist(), g[3]:tolist(), seed:tolist() }, { { 10, 10 }, { 1, 1 }, { 1, 1 }, { 1, 1 } })
  assert_apart({ kept, g[1], g[2], g[3], seed }, "grad")
  local constant = peri.ones { 2 }
  local c = peri.custom(function (_, a) return a * 1 end, function () return constant end)
  c(x):backward(seed)
  c(x):backward(seed)
  lu.assertEquals(constant:tolist(), { 1, 1 })
  assert_apart({ constant, x.grad, seed }, "backward")
end

function TestWrites.test_grad_takes_only_what_fits_its_tensor()
  local x = peri.ones { 2 }:requires_grad_()
  lu.assertErrorMsgContains("dtype f64 for a tensor of dtype f32", function () x.grad = peri.ones({ 2 }, "f64") end)
  lu.assertErrorMsgContains("dtype i64", function () x.grad = peri.ones({ 2 }, "i64") end)
  lu.assertErrorMsgContains("shape (3)", function () x.grad = peri.ones { 3 } end)
  lu.assertNil(x.grad)
  local own = peri.ones { 2 }
  x.grad = own
  x:sum():backward()
  lu.assertEquals({ own:tolist(), x.grad:tolist() }, { { 1, 1 }, { 2, 2 } })
end

-- ---- targets: what no gradient may go to ----

function TestWrites.test_a_target_of_a_loss_takes_no_part_in_a_graph()
  local count = 0
  for _, op in ipairs(peri.ops()) do
    for i, p in ipairs(op.params) do
      if p.target then
        count = count + 1
        for _, domain in ipairs { op.domain or "", table.unpack(op.variants) } do
          local args = optest.arguments(op, "f32", domain)
          if is_tensor(args[i]) then
            args[i] = args[i]:clone():requires_grad_()
            local ok, message = pcall(optest.call, op, args)
            lu.assertFalse(ok, op.name .. ": " .. p.name)
            lu.assertStrContains(message, op.name .. ": " .. p.name .. " takes part in a graph")
            lu.assertTrue(pcall(peri.no_grad, optest.call, op, args))
            args[i] = args[i]:detach() -- what the message says works
            optest.call(op, args)
          end
        end
      end
    end
  end
  lu.assertTrue(count >= 4)
end

os.exit(lu.LuaUnit.run())
