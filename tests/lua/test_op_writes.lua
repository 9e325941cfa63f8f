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

function TestWrites.test_a_source_without_a_gradient_may_be_written()
  local w = peri.tensor({ 1.5, 2.5 }, "f32"):requires_grad_()
  lu.assertEquals(peri.zeros({ 2 }, "i64"):copy_(w):tolist(), { 1, 2 })
  lu.assertEquals(peri.ones({ 2 }):floordiv_(w):tolist(), { 0, 0 })
end

os.exit(lu.LuaUnit.run())
