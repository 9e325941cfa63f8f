-- Laws over the op table: an interrupt is noticed wherever it is looked for, and it is looked for often
-- enough. The testing build counts the looks, so nothing here depends on time (tests/bench/interrupt.c measures that).
local lu = require "luaunit"
local optest = require "optest"
local peri = require "perilune"

if not peri._looks then return { test_skipped = function () lu.skip "not a testing build" end } end

local function looks_of(fn)
  local before = peri._looks()
  local out = table.pack(fn())
  return peri._looks() - before, out
end

local function elements(list, n)
  local sum = 0
  for i = 1, n or #list do
    local v = list[i]
    sum = sum + (peri.is_tensor(v) and v:numel() or type(v) == "table" and elements(v) or 0)
  end
  return sum
end

TestInterrupts = {}

function TestInterrupts:tearDown()
  peri._interrupt_at(-1)
  peri._looks()
end

-- At the first look, at the last and at some between: the op fails, and the next call of it does not.
function TestInterrupts:test_every_look_is_heeded()
  for _, op in ipairs(peri.ops()) do
    local args = optest.arguments(op, "f32", optest.large(op))
    local function call() return optest.call(op, args) end
    local n = looks_of(call)
    lu.assertTrue(n >= 1, op.name)
    local tried = {}
    for _, k in ipairs { 0, 1, n // 3, n // 2, n - 2, n - 1 } do
      if k >= 0 and k < n and not tried[k] then
        tried[k] = true
        peri._interrupt_at(k)
        local ok, err = pcall(call)
        local came = peri.interrupted() -- threads may share the work with fewer looks than before
        peri._interrupt_at(-1)
        peri._looks()
        lu.assertEquals(ok, not came, ("%s: interrupt at look %d of %d"):format(op.name, k + 1, n))
        if not ok then lu.assertStrContains(err, "interrupted", false, op.name) end
        call()
      end
    end
  end
end

-- Elements between two looks on the average: some milliseconds.
local ELEMENTS = 5 * 2 ^ 15

-- A row of these is done at one go, some tens of milliseconds for 2^24 numbers.
local by_rows = {
  softmax = true, log_softmax = true, layer_norm_backward = true, rms_norm_backward = true, gated_backward = true,
  gated_mul_backward = true, tril = true, triu = true, sample = true, categorical = true, move_rows_ = true,
}

-- What does nothing in its first example has another one here, or none. argmax looks every 2^24 numbers, which take
-- two milliseconds.
local instead = {
  dropout = "attr p=0.3", diag = "x.shape=8", empty = false, empty_like = false, argmax = false, argmin = false,
  grad_norm = false, -- of gradients, which the made parameters lack; global_norm does the same
}

-- The largest call with at most so many elements in and out.
local function large_call(op, which)
  local best
  local given = { name = op.name, params = op.params, domain = instead[op.name] or op.domain }
  local s = 1
  while true do
    local made, args = pcall(optest.arguments, op, "f32", optest.scaled(given, s, which))
    if not made then break end
    local ok, n, out = pcall(looks_of, function () return table.unpack(optest.call(op, args)) end)
    if not ok then break end
    local size = elements(args, args.n) + elements(out, out.n)
    if best and size <= best.size then break end
    best = { size = size, looks = n }
    if size > 2 ^ 19 then break end
    s = s * (size < 2 ^ 10 and 8 or 2)
  end
  return best
end

function TestInterrupts:test_looks_are_frequent()
  local few = {}
  for _, op in ipairs(peri.ops()) do
    if not op.flags.view and instead[op.name] ~= false then
      for _, which in ipairs(op.flags.elementwise and { "all" } or { "all", "first", not by_rows[op.name] and "last" or nil }) do
        local best = large_call(op, which)
        if best and best.size / best.looks > ELEMENTS then
          few[#few + 1] = ("%s (%s): %d looks at %.1fM elements"):format(op.name, which, best.looks, best.size / 2 ^ 20)
        end
        collectgarbage()
      end
    end
  end
  lu.assertEquals(few, {})
end

if arg and arg[0] and arg[0]:find "test_interrupts" then os.exit(lu.LuaUnit.run()) end
