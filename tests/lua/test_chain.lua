-- backward { chain = true }: rows that are cut into passes in any way have the same gradient, bit for bit; and what every
-- stepper makes of it: the size of a micro-batch changes no gradient.
local lu = require "luaunit"
local peri = require "perilune"
local derived, models, optim, peft = require "perilune.nn.derived", require "perilune.models", require "perilune.optim",
  require "perilune.peft"
local sft = require "perilune.algo.sft"

local TINY = "tests/data/hf_tiny/"

-- Gradients of leaves after passes over rows cut at the given sizes.
local function cut(leaves, rows, size, pass)
  for _, p in ipairs(leaves) do p.grad = nil end
  for at = 1, rows, size do pass(at, math.min(size, rows - at + 1)):backward { chain = true } end
  local list = {}
  for i, p in ipairs(leaves) do list[i] = p.grad:bytes() end
  return list
end

TestChain = {}

-- Sums over rows in each kind of op that has weights.
function TestChain.test_ops_with_weights_go_on_row_by_row()
  for _, dtype in ipairs { "f32", "f64" } do
    peri.seed(1)
    local function leaf(shape) return peri.randn(shape):to(dtype):requires_grad_() end
    local x, ids = peri.randn({ 37, 12 }):to(dtype), peri.randint(0, 9, { 37 })
    local w, b, scale, shift, rows, head = leaf { 9, 12 }, leaf { 9 }, leaf { 12 }, leaf { 12 }, leaf { 9, 12 },
      leaf { 9, 12 }
    local cases = {
      { { w, b }, function (y) return y:linear(w, b, "gelu"):square():sum() end },
      { { w }, function (y) return y:linear(w):tanh():sum() end },
      { { scale, shift }, function (y) return y:layer_norm(scale, shift):square():sum() end },
      { { scale }, function (y) return y:rms_norm(scale):tanh():sum() end },
      { { scale }, function (y) return select(1, y:add_rms_norm(y, scale)):tanh():sum() end },
      { { rows }, function (y, id) return rows:embedding(id):mul(y):sum() end },
      { { rows }, function (y, id) return rows:embedding(id, 3):mul(y):sum() end },
      { { head }, function (y, id) return select(1, y:token_logprob(head, id:masked_fill(id:eq(2), -100))):sum() end },
    }
    for n, case in ipairs(cases) do
      local function pass(at, k) return case[2](x:narrow(1, at, k), ids:narrow(1, at, k)) end
      local whole = cut(case[1], 37, 37, pass)
      for _, size in ipairs { 1, 3, 5, 16 } do
        lu.assertEquals(cut(case[1], 37, size, pass), whole, ("case %d of %s, %d rows"):format(n, dtype, size))
      end
      for i, p in ipairs(case[1]) do -- and it is the gradient
        p.grad = nil
        pass(1, 37):backward()
        local plain = p.grad
        p.grad = nil
        pass(1, 37):backward { chain = true }
        lu.assertTrue(plain:sub(p.grad):abs():max():item() <= 1e-5 * plain:abs():max():item(), n .. " " .. i)
      end
    end
  end
end

-- What is no chain adds up all the same: a leaf used twice, one behind an op, a half-precision one.
function TestChain.test_other_leaves_add_up()
  local w, x = peri.randn({ 4, 4 }):requires_grad_(), peri.randn { 6, 4 }
  local function twice() return x:linear(w):tanh():linear(w):sum() end
  local function behind() return x:linear(w:mul(2)):square():sum() end
  for _, fn in ipairs { twice, behind } do
    w.grad = nil
    fn():backward()
    fn():backward()
    local want = w.grad
    w.grad = nil
    fn():backward { chain = true }
    fn():backward { chain = true }
    lu.assertTrue(want:sub(w.grad):abs():max():item() <= 1e-5 * want:abs():max():item())
  end
end

function TestChain.test_a_pass_that_fails_changes_no_gradient()
  local w, x = peri.ones({ 2, 3 }):requires_grad_(), peri.ones { 4, 3 }
  x:linear(w):sum():backward { chain = true }
  local before, buffer = w.grad:bytes(), peri.ones({ 4, 2 })
  local y = x:linear(w):mul(buffer)
  local z = y:mul(y):sum()
  buffer:add_(1)
  lu.assertErrorMsgContains("changed in place", z.backward, z, { chain = true })
  lu.assertEquals(w.grad:bytes(), before)
  lu.assertErrorMsgContains("no option is called 'chained'", z.backward, z, { chained = true })
end

local function examples(n)
  local list = {}
  for i = 1, n do
    local e = { ids = {}, mask = {} }
    for k = 1, 4 + i * 5 % 7 do e.ids[k], e.mask[k] = (i * 7 + k * 3) % 50, k > 2 and 1 or 0 end
    list[i] = e
  end
  return list
end

-- Gradients of one update by name.
local function gradients(folder, lora, micro, packing, checkpointing)
  local model = assert(models.load(folder)):checkpointing(checkpointing == true)
  local owner = model
  if lora then
    peri.seed(3)
    owner = peft.lora(model, { r = 3, alpha = 5, targets = lora })
    peri.no_grad(function () for _, p in ipairs(owner:parameters()) do p:copy_(peri.randn(p.shape):mul_(0.1)) end end)
  end
  local optimizer, grads = optim.SGD(owner:parameters(), { lr = 0 }), {}
  local step = optimizer.step
  function optimizer.step(...)
    for _, e in ipairs(owner:named_parameters()) do grads[e[1]] = e[2].grad and e[2].grad:bytes() or "none" end
    return step(...)
  end
  sft.new({ model = model, optimizer = optimizer, examples = examples(8), batch_size = 8, micro = micro,
    packing = packing, max_length = 16 }):step()
  return grads
end

-- Every architecture that goes on from a text, whole and under LoRA on linear layers and on the table of embeddings.
function TestChain.test_micro_batches_change_no_bit_of_any_architecture()
  local seen = 0
  for _, name in ipairs(assert(peri.files.list(TINY))) do
    local model = models.load(TINY .. name)
    if model and model.kind == "causal" then
      seen = seen + 1
      for _, lora in ipairs { false, "all-linear", { model.embed.parts[1][1] } } do
        local whole = gradients(TINY .. name, lora, 8, false)
        for _, micro in ipairs { 1, 3, 5 } do
          local part = gradients(TINY .. name, lora, micro, false)
          for key, bytes in pairs(whole) do lu.assertEquals(part[key] == bytes, true, ("%s %s"):format(name, key)) end
        end
      end
    end
  end
  lu.assertTrue(seen >= 7, seen)
  local whole = gradients(TINY .. "llama", false, 8, true)
  for _, micro in ipairs { 1, 3 } do lu.assertEquals(gradients(TINY .. "llama", false, micro, true), whole) end
end

-- Blocks that are computed again in the backward pass are no exception: their chains go through.
function TestChain.test_checkpointed_blocks_have_the_same_gradients()
  for _, name in ipairs { "llama", "gpt2", "gemma2", "deepseek_v3" } do
    for _, lora in ipairs { false, "all-linear" } do
      local whole = gradients(TINY .. name, lora, 8, false, true)
      for _, micro in ipairs { 1, 3 } do
        for key, bytes in pairs(gradients(TINY .. name, lora, micro, false, true)) do
          lu.assertEquals(whole[key] == bytes, true, ("%s %s"):format(name, key))
        end
      end
      if name ~= "deepseek_v3" then -- whose blocks are one segment with several uses of what routes
        lu.assertEquals(gradients(TINY .. name, lora, 3, false, false), whole, name)
      end
    end
  end
end

-- A leaf in several segments of a pass, one of them within another, and beside them.
function TestChain.test_segments_go_on_from_one_another()
  peri.seed(4)
  local x, w = peri.randn { 12, 5 }, peri.randn { 3, 5 }
  local function run(size, segments)
    w.grad = nil
    w:requires_grad_()
    local function line(a) return a:linear(w):tanh() end
    local function nested(a) return peri.checkpoint(line, a) end
    for at = 1, 12, size do
      local sum
      for row = at + size - 1, at, -1 do -- met in the order of the rows
        local a = x:narrow(1, row, 1)
        local y = (segments and peri.checkpoint(row % 3 == 0 and nested or line, a) or line(a)):sum()
        sum = sum and sum:add(y) or y
      end
      sum:backward { chain = true }
    end
    return w.grad:bytes()
  end
  local one = run(1, true)
  for _, size in ipairs { 2, 3, 4, 12 } do lu.assertEquals(run(size, true) == one, true, size) end
  lu.assertEquals(run(1, false) == one, true)
  -- what stands pending on the leaf when a segment fails is kept, and a failed pass changes nothing
  local before, calls = w.grad:bytes(), 0
  local y = peri.checkpoint(function (a)
    calls = calls + 1
    if calls > 1 then error("out of luck", 0) end
    return a:linear(w)
  end, x)
  lu.assertErrorMsgContains("out of luck", y.backward, y:sum():add(x:linear(w):sum()), { chain = true })
  lu.assertEquals(w.grad:bytes() == before, true)
end

-- An expert that no token went to: what padding chose is none of the model's business.
function TestChain.test_an_expert_without_tokens_has_a_gradient_of_zeros()
  local moe = require "perilune.models.moe"
  local weights = {}
  for e = 1, 3 do weights[e] = peri.randn({ 4, 4 }):requires_grad_() end
  local x, places = peri.randn { 2, 4 }, peri.tensor({ { 0, 2 }, { 2, 0 } }, "i64")
  local function expert(e, rows) return rows:linear(weights[e]) end
  moe.mix(x, places, peri.ones { 2, 2 }, expert, 3):sum():backward { chain = true }
  lu.assertEquals(weights[2].grad:abs():sum():item(), 0)
  lu.assertTrue(weights[1].grad:abs():sum():item() > 0)
  local called = 0
  peri.no_grad(moe.mix, x, places, peri.ones { 2, 2 }, function (e, rows)
    called = called + 1
    return expert(e, rows)
  end, 3)
  lu.assertEquals(called, 2)
end

function TestChain.test_derived_weights_are_made_once_an_update()
  local w, made = peri.ones({ 3 }):requires_grad_(), 0
  local owner = {}
  local function make() made = made + 1 return w:add(1) end
  lu.assertFalse(derived.is_held())
  do
    local held <close> = derived.hold()
    for _ = 1, 3 do derived.weight(owner, "x", make):sum():backward { chain = true } end
    peri.no_grad(function () lu.assertEquals(derived.weight(owner, "x", make):sum():item(), 6) end)
    lu.assertErrorMsgContains("in progress", derived.hold)
    held:flow()
  end
  lu.assertEquals({ made, w.grad:tolist() }, { 2, { 3, 3, 3 } })
  derived.weight(owner, "x", make)
  lu.assertEquals(made, 3)
  local frozen = peri.ones { 3 }
  local held <close> = derived.hold() -- luacheck: ignore 211
  lu.assertTrue(rawequal(derived.weight(owner, "y", function () return frozen end), frozen))
end

os.exit(lu.LuaUnit.run())
