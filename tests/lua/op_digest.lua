-- op_digest.lua - prints a digest of the bits of every op's results, of what it wrote and of its
-- gradients, on inputs large enough for threads to share: test_op_laws.lua compares thread counts.
local peri = require "perilune"
package.path = "tests/lua/?.lua;" .. package.path
local optest = require "optest"

-- A sum of the 8-byte words times odd numbers, modulo 2^64: integer arithmetic is the same everywhere.
local function digest(t)
  local bytes = t:bytes()
  bytes = bytes .. ("\0"):rep(-#bytes % 8)
  local n = #bytes // 8
  if n == 0 then return 0 end
  return peri.from_bytes(bytes, "i64", { n }):mul(peri.arange(1, 2 * n + 1, 2)):sum():item()
end

local function each(list, fn)
  for _, x in pairs(list) do
    if type(x) == "table" then each(x, fn) elseif type(x) == "userdata" then fn(x) end
  end
end

print("threads " .. peri.threads())
for _, op in ipairs(peri.ops()) do
  if op.name ~= "empty" and op.name ~= "empty_like" then -- memory as it was
    local _ <close> = peri.scope()
    local args, floats = optest.arguments(op, "f32", optest.large(op))
    if op.differentiable then for _, x in ipairs(floats) do x:requires_grad_() end end
    local outputs, line = optest.call(op, args), { op.name }
    each(outputs, function (y) line[#line + 1] = ("%x"):format(digest(y)) end)
    if op.flags.inplace then
      for i = 1, args.n do each({ args[i] }, function (x) line[#line + 1] = ("%x"):format(digest(x)) end) end
    elseif op.differentiable then
      local loss = optest.scalar(outputs)
      for _, g in pairs(loss and peri.grad(loss, floats) or {}) do line[#line + 1] = ("%x"):format(digest(g)) end
    end
    print(table.concat(line, " "))
  end
end
