-- The law of sharing: every op, applied in two states on two threads at once to the same shared inputs, gives the
-- bytes that it gives alone; so do its gradients. What an op writes is a copy of its own in each.
local lu = require "luaunit"
local peri = require "perilune"
local optest = require "optest"

-- Bytes of all results of one call, of what it wrote and of its gradients, as one string.
local function outcome(op, args)
  local list, floats = {}, {}
  local function note(x) list[#list + 1] = tostring(x.dtype) .. tostring(x.shape) .. (x.packed and "packed" or x:bytes()) end
  local function mine(x, written)
    if type(x) == "table" then
      local t = {}
      for i, one in ipairs(x) do t[i] = mine(one, written) end
      return t
    elseif not peri.is_tensor(x) then
      return x
    elseif written then
      return x:clone()
    elseif op.differentiable and (x.dtype == "f32" or x.dtype == "f64") and not x.packed then
      floats[#floats + 1] = x:detach():requires_grad_()
      return floats[#floats]
    end
    return x
  end
  local own = { n = args.n }
  for i, p in ipairs(op.params) do
    if p.target then own[i] = args[i] -- which takes no gradient
    else own[i] = mine(args[i], op.flags.inplace and p.written) end
  end
  peri.seed(7) -- for those that draw
  local outputs = optest.call(op, own)
  for _, y in ipairs(outputs) do note(y) end
  if op.flags.inplace then
    for i, p in ipairs(op.params) do
      for _, x in ipairs(p.written and (peri.is_tensor(own[i]) and { own[i] } or own[i]) or {}) do note(x) end
    end
  elseif op.differentiable and #floats > 0 then
    local loss = optest.scalar(outputs)
    for _, g in pairs(loss and peri.grad(loss, floats) or {}) do note(g) end
  end
  return table.concat(list, "|")
end

TestWorkerOps = {}

local sizes = { small = function() end, large = optest.large }
if os.getenv "PERI_TEST_TSAN" then sizes.large = nil end -- the same code, fifty times as long

for size, domain in pairs(sizes) do
  TestWorkerOps["test_every_op_gives_on_two_threads_what_it_gives_alone_" .. size] = function()
    local ops, given, alone = {}, {}, {}
    for _, op in ipairs(peri.ops()) do
      if not op.name:find "^empty" then -- memory as it was
        local _ <close> = peri.scope()
        local args = optest.arguments(op, "f32", domain(op))
        args.n = args.n or #args
        ops[#ops + 1], given[#given + 1] = op.name, peri.keep(args)
        alone[op.name] = outcome(op, args)
      end
    end
    lu.assertTrue(#ops > 150, #ops)
    local all = {}
    for i = 1, 2 do
      all[i] = peri.worker(function(names, args)
        local test, by_name, found = require "optest", {}, {}
        for _, op in ipairs(peri.ops()) do by_name[op.name] = op end
        assert(test == optest)
        for k, name in ipairs(names) do
          local _ <close> = peri.scope()
          found[name] = outcome(by_name[name], args[k])
        end
        return found
      end, ops, given)
    end
    for _, w in ipairs(all) do
      local found = w:result()
      for _, name in ipairs(ops) do lu.assertTrue(found[name] == alone[name], name) end
    end
  end
end

os.exit(lu.LuaUnit.run())
