-- Misuse of every op: a wrong type for each parameter, too few and too many arguments, unknown names; what follows
-- from the kinds of its parameters; then what its block says it refuses. Each error names the op and what was given,
-- and leaves nothing behind.
local lu = require "luaunit"
local peri = require "perilune"
local optest = require "optest"
local refusals = require "op_refusals"

local by_name = refusals.by_name

local function live()
  collectgarbage()
  collectgarbage()
  return peri.memory().live
end

-- fn must raise a message that begins with the op's name, once, behind the place in the script, and holds
-- every one of the texts.
local function refused(name, what, texts, fn, ...)
  local ok, message = pcall(fn, ...)
  lu.assertFalse(ok, ("%s: %s is accepted"):format(name, what))
  message = tostring(message)
  lu.assertNotStrContains(message, ",)") -- shapes have one form: (3), (2, 3), ()
  lu.assertNotStrContains(message, "-nan")
  local said = message:gsub("^[^:]+:%d+: ", "")
  lu.assertEquals(said:sub(1, #name + 2), name .. ": ", what)
  lu.assertNotEquals(said:sub(#name + 3, 2 * #name + 4), name .. ": ", what)
  for _, text in ipairs(texts) do
    lu.assertStrContains(message, text, false, false, ("%s: %s"):format(name, what))
  end
end

-- Of no kind that the parameter takes; a table in the last place would give names.
local function wrong_value(kind) return (kind == "str" or kind == "dtype") and true or "wrong" end

local function wrong_types(op)
  for i, p in ipairs(op.params) do
    local tensors, n, named = by_name(op)
    local value = wrong_value(p.kind)
    local texts = { p.name, type(value) }
    if i <= n then
      tensors[i] = value
    else named[p.name] = value end
    tensors[n + 1] = next(named) and named
    refused(op.name, ("a %s for %s"):format(type(value), p.name), texts, peri[op.name],
      table.unpack(tensors, 1, next(named) and n + 1 or n))
    if p.kind == "dtype" then
      tensors, n, named = by_name(op)
      named[p.name] = "f99"
      tensors[n + 1] = named
      refused(op.name, "no dtype", { p.name, "f99", "bf16" }, peri[op.name], table.unpack(tensors, 1, n + 1))
    elseif p.kind == "int" or p.kind == "dim" or p.kind == "pos" or p.kind == "dims" or p.kind == "shape" then
      tensors, n, named = by_name(op)
      named[p.name] = 1.5
      tensors[n + 1] = named
      refused(op.name, "a fraction", { p.name, "1.5" }, peri[op.name], table.unpack(tensors, 1, n + 1))
    end
  end
end

local function too_few(op)
  local args = optest.arguments(op, "f32")
  for i, p in ipairs(op.params) do
    if not p.optional then
      refused(op.name, i - 1 .. " arguments", { p.name }, peri[op.name], table.unpack(args, 1, i - 1))
    end
  end
end

local function too_many(op)
  local args = optest.arguments(op, "f32")
  args[#op.params + 1] = 1
  refused(op.name, "one argument more", { tostring(#op.params + 1) }, peri[op.name],
    table.unpack(args, 1, #op.params + 1))
end

local function unknown_names(op)
  local tensors, n, named = by_name(op)
  local near
  for i, p in ipairs(op.params) do if i > n and not near then near = p.name end end
  near = near or op.params[1].name
  local slip = near .. "q"
  named[slip] = 1
  tensors[n + 1] = named
  refused(op.name, "an unknown name", { "'" .. slip .. "'", "'" .. near .. "'" }, peri[op.name],
    table.unpack(tensors, 1, n + 1))
end

local function released(op)
  local tensors, n, named = by_name(op)
  for i = 1, n do
    if type(tensors[i]) == "userdata" then
      local mine = { table.unpack(tensors, 1, n) }
      mine[i] = mine[i]:clone()
      mine[i]:release()
      mine[n + 1] = named
      refused(op.name, "a released tensor", { op.params[i].name, "released" }, peri[op.name],
        table.unpack(mine, 1, n + 1))
    end
  end
end

-- An attribute may be NaN or not; a message about it has no sign, whatever bit the NaN has.
local function nan_has_no_sign(op)
  for _, p in ipairs(op.params) do
    if p.kind == "num" then
      for _, value in ipairs { 0 / 0, -(0 / 0) } do
        local tensors, n, named = by_name(op)
        named[p.name] = value
        tensors[n + 1] = named
        local ok, message = pcall(peri[op.name], table.unpack(tensors, 1, n + 1))
        if not ok then lu.assertNotStrContains(message, "-nan") end
      end
    end
  end
end

TestErrors = {}
for _, op in ipairs(peri.ops()) do
  for what, check in pairs { nans = nan_has_no_sign, types = wrong_types, few = too_few, many = too_many,
    names = unknown_names, released = released } do
    TestErrors[("test_%s_%s"):format(op.name, what)] = function ()
      local before = live()
      check(op)
      lu.assertEquals(live(), before, op.name .. ": bytes are left")
    end
  end
end

-- ---- what the kinds of parameters and the blocks say ----

-- An op of one tensor that refuses nothing takes everything.
local function takes_all(op)
  for _, dtype in ipairs { "bool", "u8", "i32", "i64", "f16", "bf16", "f32", "f64" } do
    for _, shape in ipairs { {}, { 0 }, { 3 }, { 2, 3 }, { 2, 0, 3 }, { 1, 2, 1, 2, 1, 2, 1, 2 } } do
      local ok, message = pcall(peri[op.name], peri.ones(shape, dtype))
      lu.assertTrue(ok, ("%s refuses %s %s, and its block does not say so: %s"):format(op.name, dtype,
        "(" .. table.concat(shape, ", ") .. ")", message))
    end
  end
end

for _, op in ipairs(peri.ops()) do
  local any = false
  for _, r in ipairs(refusals.of(op)) do
    any = true
    TestErrors[("test_%s refuses [%s]"):format(op.name, r.what)] = function ()
      local before = live()
      refused(op.name, r.what, r.says, r.call)
      lu.assertEquals(live(), before, op.name .. ": bytes are left")
    end
  end
  if not any then TestErrors[("test_%s takes everything"):format(op.name)] = function () takes_all(op) end end
end

function TestErrors.test_nan_has_no_sign_where_elements_are_read_or_refused()
  for _, nan in ipairs { 0 / 0, -(0 / 0) } do
    for _, dtype in ipairs { "f16", "bf16", "f32", "f64" } do
      local x = peri.full({ 1 }, nan, dtype)
      lu.assertEquals({ tostring(x:item()), tostring(x:at(1)), tostring(x:tolist()[1]) }, { "nan", "nan", "nan" })
      lu.assertNotStrContains(tostring(x), "-nan")
    end
    for _, dtype in ipairs { "u8", "i32", "i64" } do
      for _, make in ipairs { function () peri.tensor({ nan }, dtype) end, function () peri.full({ 2 }, nan, dtype) end,
        function () peri.zeros({ 2 }, dtype):fill_(nan) end, function () peri.zeros({ 2 }, dtype):set(1, nan) end,
        function () peri.zeros({ 2 }, dtype):add_(nan) end } do
        lu.assertNotStrContains(select(2, pcall(make)) or "", "-nan")
      end
    end
  end
end

os.exit(lu.LuaUnit.run())
