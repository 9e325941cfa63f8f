-- LSTM and GRU layers against PyTorch (tests/data/nn_ref.json; op by op in test_op_reference.lua), and what holds of them
-- whoever computed it: chunks, packed rows, resets, cells, threads. Comparisons are of bits unless a test says otherwise.
local lu = require "luaunit"
local peri = require "perilune"
local nn = peri.nn

local ref = assert(peri.json.decode(assert(peri.files.read "tests/data/nn_ref.json")))

-- The file's own rule: value = ((x >> 8) / 2^24 - 0.5) * scale, x0 = FNV1a32(name), an LCG.
local function lcg(name, shape, scale)
  local x, n, list = 2166136261, 1, {}
  for i = 1, #name do x = ((x ~ name:byte(i)) * 16777619) & 0xffffffff end
  for _, d in ipairs(shape) do n = n * d end
  for i = 1, n do
    x = (x * 1664525 + 1013904223) & 0xffffffff
    list[i] = ((x >> 8) / (1 << 24) - 0.5) * scale
  end
  return peri.tensor(list, "f64"):reshape(shape)
end

local function near(got, want, what)
  local d = got:sub(peri.tensor(want, "f64")):abs():max():item()
  lu.assertTrue(d < 2e-9, ("%s differs by %g"):format(what, d)) -- the file has nine decimals
end

local function filled(module, prefix)
  local weights = {}
  for _, entry in ipairs(module:to("f64"):named_parameters()) do
    weights[entry[1]] = lcg(prefix .. entry[1], entry[2].shape, 1)
  end
  module:load_state_dict(weights)
  return module
end

local function same(got, want, what)
  lu.assertEquals(got.shape, want.shape, what)
  if got:contiguous():bytes() ~= want:contiguous():bytes() then
    lu.fail(("%s differs by %g"):format(what, got:sub(want):abs():max():item()))
  end
end

-- A GRU's state is a tensor, an LSTM's a table of two.
local function parts(state) return type(state) == "table" and state or { state } end
local function same_state(got, want, what)
  for i, t in ipairs(parts(want)) do same(parts(got)[i], t, what .. ": state") end
end
local function mapped(state, fn)
  if type(state) ~= "table" then return fn(state) end
  return { fn(state[1]), fn(state[2]) }
end

local kinds = { "LSTM", "GRU" }
local function each(fn) for _, kind in ipairs(kinds) do fn(kind, nn[kind]) end end

TestRecurrent = {}

function TestRecurrent:setUp() peri.seed(1) end

function TestRecurrent.test_two_layers_are_those_of_pytorch()
  local v, net, x = ref.lstm, filled(nn.LSTM(3, 4, { layers = 2 }), "lstm."), lcg("lstm.x", { 2, 5, 3 }, 2):detach()
  x:requires_grad_()
  local y, state = net(x)
  near(y, v.y, "y")
  near(state[1], v.h_n, "h")
  near(state[2], v.c_n, "c")
  local loss = y:mul(lcg("lstm.dy", { 2, 5, 4 }, 1)):sum()
  loss:backward()
  lu.assertAlmostEquals(loss:item(), v.loss, 2e-9)
  near(x.grad, v.grad_x, "gradient of x")
  near(net.weight_hh_l0.grad:select(1, 1), v.grad_weight_hh_l0_row0, "gradient of weight_hh_l0")
  near(net.bias_ih_l1.grad, v.grad_bias_ih_l1, "gradient of bias_ih_l1")
end

function TestRecurrent.test_both_directions_are_those_of_pytorch()
  local y, state = filled(nn.LSTM(3, 4, { bidirectional = true }), "bilstm.")(lcg("lstm.x", { 2, 5, 3 }, 2))
  near(y, ref.bilstm.y, "y")
  near(state[1], ref.bilstm.h_n, "h")
end

function TestRecurrent.test_weights_have_pytorchs_names_and_shapes()
  each(function (kind, class)
    local gates, names = kind == "LSTM" and 4 or 3, {}
    for _, entry in ipairs(class(3, 5, { layers = 2, bidirectional = true }):named_parameters()) do
      names[#names + 1] = entry[1] .. " " .. table.concat(entry[2].shape, ",")
    end
    local want = {}
    for layer = 0, 1 do
      for _, suffix in ipairs { "", "_reverse" } do
        want[#want + 1] = ("weight_ih_l%d%s %d,%d"):format(layer, suffix, gates * 5, layer == 0 and 3 or 10)
        want[#want + 1] = ("weight_hh_l%d%s %d,5"):format(layer, suffix, gates * 5)
        want[#want + 1] = ("bias_ih_l%d%s %d"):format(layer, suffix, gates * 5)
        want[#want + 1] = ("bias_hh_l%d%s %d"):format(layer, suffix, gates * 5)
      end
    end
    lu.assertItemsEquals(names, want)
    lu.assertEquals(class(3, 5, { bias = false }):num_parameters(), gates * 5 * (3 + 5))
  end)
end

-- Sizes at which one thread does all, rows are shared, and units are shared (W_hh is beyond a core's cache).
local sizes = { { 2, 5, 3, 4 }, { 13, 9, 6, 40 }, { 26, 6, 5, 200 }, { 3, 4, 5, 300 } }

function TestRecurrent.test_chunks_are_the_whole_sequence()
  each(function (kind, class)
    for _, s in ipairs(sizes) do
      local B, T, I, H = table.unpack(s)
      local net, x = class(I, H, { layers = 2 }), peri.randn { B, T, I }
      local starts = peri.rand({ B, T }):lt(0.2)
      local y, last = net(x, nil, { starts = starts })
      local cut, state, ys = { 1, 2, T - 3 }, nil, {} -- a chunk of one step goes another way than longer ones
      for at, n in ipairs(cut) do
        local from = ({ 1, 2, 4 })[at]
        ys[at], state = net(x:narrow(2, from, n), state, { starts = starts:narrow(2, from, n) })
      end
      same(peri.cat(ys, 2), y, kind)
      same_state(state, last, kind)
    end
  end)
end

function TestRecurrent.test_a_row_does_not_depend_on_its_batch()
  each(function (kind, class)
    for _, s in ipairs(sizes) do
      local B, T, I, H = table.unpack(s)
      local net, x = class(I, H), peri.randn { B, T, I }
      local y, state = net(x)
      local y1, state1 = net(x:narrow(1, B, 1))
      same(y1, y:narrow(1, B, 1), kind)
      same_state(state1, mapped(state, function (t) return t:narrow(2, B, 1) end), kind)
    end
  end)
end

-- y, state and the gradients of x and of the weights, of a sum over y and, unless alone, over the state.
local function passed(net, x, state, opts, alone)
  x = x:detach():requires_grad_()
  net:zero_grad()
  local y, last = net(x, state, opts)
  local loss = y:mul(y:detach():add(0.3)):sum()
  for _, t in ipairs(alone and {} or parts(last)) do loss = loss:add(t:mul(1.7):sum()) end
  loss:backward()
  local grads = {}
  for _, entry in ipairs(net:named_parameters()) do grads[entry[1]] = entry[2].grad:clone() end
  return y:detach(), mapped(last, function (t) return t:detach() end), x.grad, grads
end

local function same_gradients(got, want, what) -- sums over rows are taken in another order
  for name, g in pairs(want) do
    local off = got[name]:sub(g):abs():max():item()
    lu.assertTrue(off <= 1e-12, ("%s: gradient of %s differs by %g"):format(what, name, off))
  end
end

local function added(into, grads)
  for name, g in pairs(grads) do into[name] = into[name] and into[name]:add(g) or g end
end

function TestRecurrent.test_packed_rows_are_each_row_alone()
  each(function (kind, class)
    for _, both in ipairs { false, true } do
      local net = class(3, 6, { layers = 2, bidirectional = both }):to "f64"
      local lengths, T, n = { 4, 7, 0, 1, 7, 3 }, 7, both and 4 or 2
      local x = peri.randn({ 6, T, 3 }, "f64")
      local first = mapped(net:initial(6), function (t) return peri.randn(t.shape, "f64") end)
      for b, len in ipairs(lengths) do -- padding may hold anything
        if len < T then x:select(1, b):narrow(1, len + 1, T - len):fill_(0 / 0) end
      end
      local y, state, gx, grads = passed(net, x, first, { lengths = lengths })
      local sums = {}
      for b, len in ipairs(lengths) do
        local what = ("%s, row of %d steps"):format(kind, len)
        local own = mapped(first, function (t) return t:narrow(2, b, 1):contiguous() end)
        local row, last = y:narrow(1, b, 1), mapped(state, function (t) return t:narrow(2, b, 1) end)
        lu.assertEquals(row:narrow(2, len + 1, T - len):count_nonzero():item(), 0)
        lu.assertEquals(gx:select(1, b):narrow(1, len + 1, T - len):count_nonzero():item(), 0)
        if len == 0 then
          same_state(last, own, what)
        else
          local y1, state1, gx1, grads1 = passed(net, x:narrow(1, b, 1):narrow(2, 1, len), own)
          same(row:narrow(2, 1, len), y1, what)
          same_state(last, state1, what)
          same_gradients({ x = gx:narrow(1, b, 1):narrow(2, 1, len) }, { x = gx1 }, what)
          added(sums, grads1)
        end
      end
      same_gradients(grads, sums, kind)
      lu.assertEquals(parts(state)[1].shape, { n, 6, 6 })
    end
  end)
end

function TestRecurrent.test_a_reset_makes_two_sequences_of_one()
  each(function (kind, class)
    for _, both in ipairs { false, true } do
      local net, T, at = class(3, 6, { bidirectional = both }):to "f64", 8, 4 -- step 4 begins an episode
      local x = peri.randn({ 2, T, 3 }, "f64")
      local starts = peri.arange(1, T + 1):eq(at):unsqueeze(1):expand { 2, T }
      local y, state, gx, grads = passed(net, x, nil, { starts = starts }, true)
      local ya, sa, ga, sums = passed(net, x:narrow(2, 1, at - 1), nil, nil, true)
      local yb, sb, gb, more = passed(net, x:narrow(2, at, T - at + 1), nil, nil, true)
      added(sums, more)
      same(y, peri.cat({ ya, yb }, 2), kind)
      for i, t in ipairs(parts(state)) do -- each direction's last state is that of where it ends
        same(t:narrow(1, 1, 1), parts(sb)[i]:narrow(1, 1, 1), kind .. ": state")
        if both then same(t:narrow(1, 2, 1), parts(sa)[i]:narrow(1, 2, 1), kind .. ": state, reverse") end
      end
      same_gradients({ x = gx }, { x = peri.cat({ ga, gb }, 2) }, kind)
      same_gradients(grads, sums, kind)
    end
  end)
end

function TestRecurrent.test_no_gradient_passes_a_reset()
  each(function (kind, class)
    local net, x = class(3, 4), peri.randn({ 1, 6, 3 }):requires_grad_()
    local state = mapped(net:initial(1), function (t) return t:detach():add(0.5):detach():requires_grad_() end)
    local y = net(x, state, { starts = peri.tensor({ { 0, 0, 0, 1, 0, 0 } }):eq(1) })
    y:narrow(2, 4, 3):sum():backward()
    lu.assertEquals(x.grad:narrow(2, 1, 3):abs():max():item(), 0, kind)
    lu.assertTrue(x.grad:narrow(2, 4, 3):abs():min():item() > 0)
    for _, t in ipairs(parts(state)) do lu.assertEquals(t.grad:abs():max():item(), 0) end
  end)
end

function TestRecurrent.test_a_cell_is_one_step_of_a_layer()
  each(function (kind, class)
    local cell, net, x = nn[kind .. "Cell"](3, 5), class(3, 5), peri.randn { 4, 6, 3 }
    for _, entry in ipairs(cell:named_parameters()) do net[entry[1] .. "_l0"]:detach():copy_(entry[2]:detach()) end
    local y, last = net(x)
    local state, ys = cell:initial(4), {}
    for t = 1, 6 do ys[t], state = cell(x:select(2, t), state) end
    same(peri.stack(ys, 2), y, kind)
    same_state(mapped(state, function (t) return t:unsqueeze(1) end), last, kind)
    same(cell(x:select(2, 1)), y:select(2, 1), kind .. " without a state")
  end)
end

function TestRecurrent.test_time_may_come_first()
  each(function (kind, class)
    local a, b = class(3, 5, { layers = 2 }), class(3, 5, { layers = 2, batch_first = false })
    b:load_state_dict(a:state_dict())
    local x, starts = peri.randn { 4, 6, 3 }, peri.rand({ 4, 6 }):lt(0.3)
    local y, state = a(x, nil, { starts = starts, lengths = { 6, 2, 5, 1 } })
    local z, other = b(x:transpose(1, 2), nil, { starts = starts:transpose(1, 2), lengths = { 6, 2, 5, 1 } })
    same(z:transpose(1, 2), y, kind)
    same_state(other, state, kind)
  end)
end

function TestRecurrent.test_gradients_in_f32_are_those_in_f64()
  local function rand(shape) return peri.randn(shape, "f64"):mul(0.3) end
  for _, s in ipairs(sizes) do
    for _, T in ipairs { 1, s[2] } do
      local B, H = s[1], s[4]
      for op, kind in pairs { lstm_backward = { 4, 5 }, gru_backward = { 3, 4 } } do
        local function run(dtype, given) -- no initial state is given, and its gradient wanted
          local w, y, saved, gy, starts, lengths = table.unpack(given)
          w, y, saved, gy = w:to(dtype), y:to(dtype), saved:to(dtype), gy:to(dtype)
          if op == "lstm_backward" then return { peri[op](w, y, saved, nil, nil, starts, lengths, gy) } end
          return { peri[op](w, y, saved, nil, starts, lengths, gy) }
        end
        local given = { rand { kind[1] * H, H }, rand { B, T, H }, peri.rand({ B, T, kind[2], H }, "f64"), rand { B, T, H },
          peri.rand({ B, T }):lt(0.2), peri.randint(0, T + 1, { B }) }
        local want = run("f64", given)
        for k, got in ipairs(run("f32", given)) do
          local off = got:to("f64"):sub(want[k]):abs():max():item() / (1 + want[k]:abs():max():item())
          lu.assertTrue(off < 1e-5, ("%s, result %d, T = %d, H = %d: %g off"):format(op, k, T, H, off))
        end
      end
    end
  end
end

local function digest_of(threads)
  local program = arg[-2]
  local pipe = assert(io.popen(("PERI_THREADS=%d '%s' run tests/lua/recurrent_digest.lua"):format(threads, program)))
  local text = pipe:read "a"
  lu.assertTrue(pipe:close())
  return text
end

function TestRecurrent.test_one_and_more_threads_give_the_same_bits()
  if not arg[-2] then return lu.skip "needs the program's path" end
  local one = digest_of(1)
  lu.assertTrue(select(2, one:gsub("\n", "")) > 40)
  for _, n in ipairs { 2, 3 } do lu.assertEquals(digest_of(n), one) end
end

function TestRecurrent.test_dropout_is_between_layers_and_only_in_training()
  each(function (kind, class)
    local one = class(3, 8, { layers = 2, dropout = 0.5 })
    local x = peri.randn { 2, 4, 3 }
    lu.assertTrue(one(x):bytes() ~= one(x):bytes(), kind)
    one:eval()
    same(one(x), one(x), kind)
    lu.assertErrorMsgContains("dropout 0.5 goes between layers", class, 3, 8, { dropout = 0.5 })
  end)
end

function TestRecurrent.test_a_second_derivative_is_refused_by_name()
  each(function (kind, class)
    local net, x = class(3, 4), peri.randn({ 1, 3, 3 }):requires_grad_()
    lu.assertErrorMsgContains(kind:lower(), peri.grad, net(x):sum(), { x }, { create_graph = true })
  end)
end

function TestRecurrent.test_misuse_is_told_what_was_expected()
  local net, gru, x = nn.LSTM(3, 4), nn.GRU(3, 4), peri.randn { 2, 5, 3 }
  local function refused(words, ...) lu.assertErrorMsgContains(words, ...) end
  refused("LSTM: x has shape (2, 5, 4), expected (B, T, 3)", net, peri.randn { 2, 5, 4 })
  refused("LSTM: x has shape (5, 3), expected (B, T, 3)", net, peri.randn { 5, 3 })
  refused("GRUCell: x has shape (2, 5, 3), expected (B, 3)", nn.GRUCell(3, 4), x)
  refused("LSTM: x is 3, expected tensor", net, 3)
  refused("expected { h, c }, two tensors", net, x, peri.zeros { 1, 2, 4 })
  refused("GRU: the state is a table, expected a tensor h", gru, x, { peri.zeros { 1, 2, 4 } })
  refused("c of the state has shape (1, 2, 5), expected (1, 2, 4)", net, x, { peri.zeros { 1, 2, 4 }, peri.zeros { 1, 2, 5 } })
  refused('did you mean "lengths"', net, x, nil, { length = { 5, 5 } })
  refused("length 6 of row 1 (from 0) is not 0 to 5", net, x, nil, { lengths = { 5, 6 } })
  refused("lengths has shape (3), expected (2)", net, x, nil, { lengths = { 5, 5, 5 } })
  refused("starts is f32, expected bool", gru, x, nil, { starts = peri.zeros { 2, 5 } })
  refused("starts has shape (5, 2), expected (2, 5)", gru, x, nil, { starts = peri.zeros({ 5, 2 }, "bool") })
  refused('unknown option "proj_size"', nn.LSTM, 3, 4, { proj_size = 2 })
  refused('did you mean "layers"', nn.GRU, 3, 4, { num_layers = 2 })
  refused("hidden_size is 0", nn.GRUCell, 3, 0)
end

function TestRecurrent.test_empty_batches_and_sequences()
  each(function (kind, class)
    local net = class(3, 4, { layers = 2 })
    local y, state = net(peri.zeros { 0, 5, 3 })
    lu.assertEquals(y.shape, { 0, 5, 4 }, kind)
    lu.assertEquals(parts(state)[1].shape, { 2, 0, 4 })
    local first = mapped(net:initial(2), function (t) return peri.randn(t.shape) end)
    y, state = net(peri.zeros { 2, 0, 3 }, first)
    lu.assertEquals(y.shape, { 2, 0, 4 })
    same_state(state, first, kind)
  end)
end

function TestRecurrent.test_a_step_of_a_policy_leaves_nothing_behind()
  local net, x = nn.LSTM(4, 8), peri.randn { 2, 1, 4 }
  local _ <close> = peri.no_grad()
  local state = net:initial(2)
  local function step()
    local scope <close> = peri.scope()
    local _, after = net(x, state)
    state = { scope:keep(after[1]), scope:keep(after[2]) }
  end
  step()
  collectgarbage()
  local before = peri.memory().live
  for _ = 1, 100 do step() end
  collectgarbage()
  lu.assertEquals(peri.memory().live, before)
end

os.exit(lu.LuaUnit.run())
