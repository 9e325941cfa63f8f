-- Functions of tensors that return lists of views.
local lu = require "luaunit"
local peri = require "perilune"

TestCompose = {}

function TestCompose.test_split_by_size_and_by_sizes()
  local x = peri.arange(7)
  local parts = x:split(3)
  lu.assertEquals(#parts, 3)
  lu.assertEquals(parts[3]:tolist(), { 6 })
  parts = peri.split(x, { 2, 5 })
  lu.assertEquals(parts[2]:tolist(), { 2, 3, 4, 5, 6 })
  lu.assertErrorMsgContains("does not fit", peri.split, x, { 4, 4 })
  lu.assertErrorMsgContains("dim 2", peri.split, x, 2, 2)
end

function TestCompose.test_chunk_is_nearly_even()
  local sizes = {}
  for i, part in ipairs(peri.zeros({ 2, 10 }):chunk(4, 2)) do sizes[i] = part:size(2) end
  lu.assertEquals(sizes, { 3, 3, 3, 1 })
end

function TestCompose.test_unbind_drops_the_dim()
  local rows = peri.tensor({ { 1, 2 }, { 3, 4 } }):unbind(2)
  lu.assertEquals(rows[2]:tolist(), { 2, 4 })
end

function TestCompose.test_gradients_flow_through_the_views()
  local x = peri.ones({ 4 }):requires_grad_()
  local a, b = table.unpack(x:split(2))
  peri.add(a * 2, b * 3):sum():backward()
  lu.assertEquals(x.grad:tolist(), { 2, 2, 3, 3 })
end

function TestCompose.test_meshgrid_lays_vectors_along_dims()
  local g = peri.meshgrid { peri.arange(2), peri.arange(3) }
  lu.assertEquals(g[1]:tolist(), { { 0, 0, 0 }, { 1, 1, 1 } })
  lu.assertEquals(g[2]:tolist(), { { 0, 1, 2 }, { 0, 1, 2 } })
end

function TestCompose.test_arguments_are_checked()
  local x = peri.zeros { 2, 3 }
  for _, case in ipairs {
    { 'dim is "1", expected an integer', peri.split, x, 2, "1" }, { "dim is 1.5", peri.unbind, x, 1.5 },
    { "dim is nan", peri.chunk, x, 2, 0 / 0 }, { "x is 3, expected tensor", peri.unbind, 3 },
    { "sizes is 0, expected an integer in [1, inf)", peri.split, x, 0 }, { "sizes is nil", peri.split, x },
    { "size x at position 1", peri.split, x, { "x" } }, { "n is -1", peri.chunk, x, -1 }, { "xs is 3", peri.meshgrid, 3 },
    { "xs[1] is 3, expected tensor", peri.meshgrid, { 3 } }, { "dim 0 of a tensor", peri.unbind, x, 0 },
  } do
    local ok, message = pcall(function() case[2](table.unpack(case, 3, 5)) end)
    lu.assertFalse(ok, case[1])
    lu.assertStrContains(message, case[1])
    lu.assertStrContains(message, "test_compose.lua")
  end
end

os.exit(lu.LuaUnit.run())
