-- Channels: what goes through, what does not and where it is named, order, waiting, closing, several at once. The other
-- end is the same state where order is all that matters, and workers where waiting is.
local lu = require "luaunit"
local peri = require "perilune"

-- What comes out when value is sent.
local function through(value)
  local c = peri.channel(1)
  lu.assertTrue(c:send(value))
  lu.assertEquals(#c, 1)
  return c:receive()
end

TestChannels = {}

function TestChannels.test_plain_values_arrive_as_they_are()
  local long = ("x"):rep(100000) .. "\0y"
  for _, value in ipairs { true, false, 0, -1, math.maxinteger, math.mininteger, 0.5, -0.0, math.huge, "", "a\0b", long } do
    local got = through(value)
    lu.assertEquals(got, value)
    lu.assertEquals(math.type(got), math.type(value))
  end
  lu.assertEquals(1 / through(-0.0), -math.huge)
  local nan = through(0 / 0)
  lu.assertTrue(nan ~= nan)
  local c = peri.channel()
  c:send(nil)
  lu.assertEquals(table.pack(c:receive()), { n = 1 }) -- one nil, not a nil with a reason
end

function TestChannels.test_tables_arrive_with_their_keys()
  local t = { 1, "two", { 3, { 4.5 } }, [10] = true, [-1] = "m", [2.5] = 1, [true] = "t", [false] = "f", s = { a = {} }, [""] = 0 }
  lu.assertEquals(through(t), t)
  lu.assertEquals(through({}), {})
  local with_holes = through { nil, 2, nil, 4 }
  lu.assertEquals({ with_holes[1], with_holes[2], with_holes[3], with_holes[4] }, { nil, 2, nil, 4 })
end

function TestChannels.test_what_is_twice_in_a_message_is_one_thing_there()
  local inner, x = { 1 }, peri.ones { 2 }
  local t = { a = inner, b = inner, x = x, y = x }
  t.me, t.list = t, { t }
  local got = through(t)
  lu.assertTrue(rawequal(got.a, got.b))
  lu.assertTrue(rawequal(got.x, got.y))
  lu.assertTrue(rawequal(got.me, got))
  lu.assertTrue(rawequal(got.list[1], got))
  lu.assertFalse(rawequal(got.a, inner))
end

function TestChannels.test_shapes_and_json_keep_what_they_are()
  local shape = through(peri.ones({ 2, 3 }).shape)
  lu.assertEquals(tostring(shape), "(2, 3)")
  lu.assertTrue(shape == peri.ones({ 2, 3 }).shape)
  local text = '{"z":1,"a":[],"m":{"k":null,"b":[{},[1,2.5,"x"]]}}'
  lu.assertEquals(peri.json.encode(through(peri.json.decode(text))), text)
  lu.assertTrue(through(peri.json.null) == peri.json.null)
end

function TestChannels.test_tensors_are_the_same_memory()
  local x = peri.arange(12):reshape { 3, 4 }
  local view = x:transpose()
  local got = through { x = x, view = view }
  lu.assertEquals(got.x:data_ptr(), x:data_ptr())
  lu.assertEquals(got.view:tolist(), view:tolist())
  lu.assertEquals({ x.shared, got.view.shared }, { "read-only", "read-only" })
  lu.assertErrorMsgContains("shared read-only", x.add_, x, 1)
  local w = peri.randn { 16, 32 }
  for _, t in ipairs { w:pack(), w:to "q8_0", w:to "f16", peri.tensor({ true, false }), peri.zeros { 0, 3 } } do
    local back = through(t)
    lu.assertEquals({ back.dtype, back.packed, tostring(back.shape) }, { t.dtype, t.packed, tostring(t.shape) })
    if not t.packed then lu.assertEquals(back:bytes(), t:bytes()) end
  end
  local y = peri.ones { 2 }:share "racing"
  through(y):add_(1)
  lu.assertEquals(y:tolist(), { 2, 2 })
end

function TestChannels.test_channels_go_through_channels()
  local reply = peri.channel(1)
  local got = through { reply = reply }
  lu.assertTrue(got.reply == reply)
  got.reply:send "here"
  lu.assertEquals(reply:receive(), "here")
end

function TestChannels.test_what_cannot_go_is_named_with_its_place()
  local c = peri.channel()
  local x = peri.ones({ 2 }):requires_grad_()
  local released = peri.ones { 2 }
  released:release()
  for _, case in ipairs {
    { print, "the value is a function" },
    { { a = { b = { print } } }, "the value.a.b[1] is a function" },
    { { ["two words"] = { [3] = coroutine.create(print) } }, 'the value["two words"][3] is a coroutine' },
    { { io.stdout }, "the value[1] is a userdata (FILE*)" },
    { { [2.5] = x * 2 }, "the value[2.5]: " },
    { { g = x * 2 }, "detach it" },
    { released, "the value is a tensor that was released" },
    { { [{}] = 1 }, "the value is a table with a key that is a table" },
    { { x = { [peri.ones { 1 }] = 1 } }, "the value.x is a table with a key that is a userdata" },
    { peri.nn.Linear(2, 3), "state_dict()" },
    { setmetatable({}, { __name = "Thing" }), "a metatable 'Thing'" },
    { { n = c }, "the value.n is the channel that it would go through" },
    { peri.ones({ 1 }):data_ptr(), "light userdata" },
  } do
    lu.assertErrorMsgContains(case[2], c.send, c, case[1])
    lu.assertErrorMsgContains("send: ", c.send, c, case[1])
    lu.assertErrorMsgContains("try_send: ", c.try_send, c, case[1])
  end
  lu.assertEquals(#c, 0)
  local deep = {}
  local at = deep
  for _ = 1, 250 do
    at[1] = {}
    at = at[1]
  end
  lu.assertErrorMsgContains("nested more than 200 deep", c.send, c, deep)
  lu.assertErrorMsgContains("argument 2 (value) is missing", c.send, c)
end

function TestChannels.test_what_was_not_sent_is_not_shared()
  local c, x = peri.channel(1), peri.ones { 2 }
  pcall(c.send, c, { x, x, print })
  lu.assertNil(x.shared)
  c:send(1)
  lu.assertEquals({ c:send({ x, x:narrow(1, 1, 1) }, 0.001) }, { false, "timeout" })
  lu.assertNil(x.shared)
  c:close()
  lu.assertEquals({ c:send { x } }, { false, "closed" })
  x:add_(1)
  lu.assertEquals(x:tolist(), { 2, 2 })
end

function TestChannels.test_order_room_and_closing()
  local c = peri.channel(2)
  lu.assertEquals({ c:capacity(), #c, c:closed() }, { 2, 0, false })
  lu.assertEquals({ c:try_receive() }, { nil, "timeout" })
  lu.assertTrue(c:send "a")
  lu.assertTrue(c:try_send "b")
  lu.assertEquals({ c:try_send "c" }, { false, "timeout" })
  lu.assertEquals(tostring(c), "channel: 2 of 2")
  c:close()
  c:close()
  lu.assertTrue(c:closed())
  lu.assertEquals({ c:try_send "d" }, { false, "closed" })
  lu.assertEquals({ c:receive(), c:receive() }, { "a", "b" })
  lu.assertEquals({ c:receive() }, { nil, "closed" })
  lu.assertEquals({ c:receive(5) }, { nil, "closed" })
  local list = peri.channel()
  for i = 1, 3 do list:send(i ~= 2 and i or nil) end
  list:close()
  local seen = {}
  for i, v in list:each() do seen[i] = v or "nil" end
  lu.assertEquals(seen, { 1, "nil", 3 })
  do
    local closing <close> = list
    lu.assertEquals(#closing, 0)
  end
end

function TestChannels.test_waits_end_in_time()
  local c = peri.channel(1)
  local t0 = peri.time()
  lu.assertEquals({ c:receive(0.03) }, { nil, "timeout" })
  c:send(1)
  lu.assertEquals({ c:send(2, 0.03) }, { false, "timeout" })
  local took = peri.time() - t0
  lu.assertTrue(took >= 0.06 and took < 10, tostring(took))
end

function TestChannels.test_receive_takes_the_first_that_has_something()
  local a, b = peri.channel(), peri.channel()
  lu.assertEquals({ peri.receive({ a, b }, 0) }, { nil, "timeout" })
  b:send "late"
  lu.assertEquals({ peri.receive { a, b } }, { 2, "late" })
  a:send(nil)
  b:send "second"
  local got = table.pack(peri.receive { a, b })
  lu.assertEquals({ got.n, got[1], got[2] }, { 2, 1, nil })
  a:close()
  lu.assertEquals({ peri.receive({ a, b }, 1) }, { 2, "second" })
  lu.assertEquals({ peri.receive({ a, b }, 0.01) }, { nil, "timeout" })
  b:close()
  lu.assertEquals({ peri.receive { a, b, a } }, { nil, "closed" })
  lu.assertErrorMsgContains("0 channels given", peri.receive, {})
  lu.assertErrorMsgContains("entry 2 of channels is a number", peri.receive, { a, 3 })
  local many = {}
  for i = 1, 65 do many[i] = a end
  lu.assertErrorMsgContains("65 channels given; from 1 to 64", peri.receive, many)
end

function TestChannels.test_arguments_are_checked()
  for _, bad in ipairs { 0, -1, 1.5, "3", {}, math.huge } do
    lu.assertErrorMsgContains("channel: argument 1 (capacity) must be an integer in [1, 2^30]", peri.channel, bad)
  end
  local c = peri.channel()
  lu.assertEquals(c:capacity(), 64)
  for _, bad in ipairs { -1, "1", {}, 0 / 0 } do
    lu.assertErrorMsgContains("timeout", c.receive, c, bad)
    lu.assertErrorMsgContains("timeout", c.send, c, 1, bad)
    lu.assertErrorMsgContains("timeout", peri.poll, bad)
  end
  lu.assertErrorMsgContains("must be a channel", c.receive, io.stdout)
  lu.assertErrorMsgContains("must be a channel", c.send, peri.ones { 1 }, 1)
  lu.assertEquals(peri.poll(), 0)
  lu.assertEquals(peri.poll(0.001), 0)
end

-- What lies in a channel that nobody has any more goes with it, however many channels lie in one another.
function TestChannels.test_channels_are_collected_with_what_is_in_them()
  collectgarbage()
  local before = peri.memory().live
  do
    local outer = peri.channel()
    for _ = 1, 20000 do
      local c = peri.channel(1)
      c:send(outer)
      outer = c
    end
    local c = peri.channel()
    for _ = 1, 10 do c:send(peri.zeros { 1000 }) end
  end
  collectgarbage()
  collectgarbage()
  lu.assertEquals(peri.memory().live, before)
end

function TestChannels.test_a_loop_that_drops_what_it_gets_does_not_grow()
  collectgarbage()
  local c, before, most = peri.channel(1), peri.memory().live, 0
  for _ = 1, 2000 do
    c:send(peri.zeros { 25000 })
    c:receive()
    most = math.max(most, peri.memory().live - before)
  end
  lu.assertTrue(most < 100e6, ("%d bytes"):format(most))
end

-- A finalizer that sends in the midst of a message does not spoil it.
function TestChannels.test_finalizers_may_send()
  local c, late, sent = peri.channel(4), peri.channel(100000), 0
  local meta = { __gc = function()
    sent = sent + 1
    late:send { sent, peri.ones { 1 } }
  end }
  for i = 1, 200 do
    local message = {}
    for k = 1, 50 do
      message[k] = { k, { tostring(k) }, peri.full({ 2 }, k) }
      setmetatable({}, meta)
    end
    c:send(message)
    local got = c:receive()
    lu.assertEquals(#got, 50, i)
    for k = 1, 50 do lu.assertEquals({ got[k][1], got[k][2][1], got[k][3]:tolist() }, { k, tostring(k), { k, k } }) end
  end
  collectgarbage()
  lu.assertTrue(sent > 9000)
  for k = 1, sent do lu.assertEquals(late:receive()[1], k) end
end

-- A message that there was no memory for is still there.
function TestChannels.test_what_could_not_be_read_is_not_lost()
  local c = peri.channel(2)
  c:send { peri.ones { 2 }, peri.zeros { 3 } }
  c:send "second"
  local failures = 0
  for n = 0, 20 do
    peri._fail_after(n, true)
    local ok, got = pcall(c.receive, c)
    peri._fail_after(-1)
    if ok then
      lu.assertEquals(got[2]:tolist(), { 0, 0, 0 })
      break
    end
    failures = failures + 1
    lu.assertStrContains(got, "out of memory")
    lu.assertEquals(#c, 2)
  end
  lu.assertTrue(failures > 0)
  lu.assertEquals(c:receive(), "second")
end

function TestChannels.test_no_function_hides_an_op()
  for _, op in ipairs(peri.ops()) do lu.assertEquals(peri.describe(peri[op.name]).doc, op.doc, op.name) end
end

os.exit(lu.LuaUnit.run())
