-- op_refusals.lua - calls that an op refuses, by what follows from the kinds of its parameters and by what its
-- block says ("call => words | words"), each with what the message must say.
local peri = require "perilune"
local optest = require "optest"

local M = {}

-- The arguments of a good call, attributes by name in a last table.
local function by_name(op)
  local args = optest.arguments(op, "f32")
  local tensors, named = {}, {}
  local n = 0
  for i, p in ipairs(op.params) do
    if p.kind:find "^tensor" then
      n = i
      tensors[i] = args[i]
    else named[p.name] = args[i] end
  end
  return tensors, n, named
end
M.by_name = by_name

-- ---- what the kinds of parameters say ----

-- By kind of an attribute: values that every op refuses, with what the message must say.
local out_of_range = {
  dim = { { 9, "9" }, { -9, "-9" }, { 0, "from 1" } },
  pos = { { 99, "99" }, { 0, "from 1" } },
  dims = { { { 9 }, "9" }, { { -9 }, "-9" }, { { 0 }, "from 1" }, { { 1, 1 }, "" } },
  str = { { "zzz", "zzz" } },
}
-- Of the shape of something made from nothing.
local sizes = { { { 3, -2 }, "-2" }, { { 1, 1, 1, 1, 1, 1, 1, 1, 1 }, "9" }, { { 1 << 40, 1 << 40 }, "overflows" } }

-- Calls that op refuses whatever its block says: { what, says, call } of each.
local function derived(op)
  local list, makes = {}, op.params[1] and not op.params[1].kind:find "^tensor"
  local function add(what, says, fn) list[#list + 1] = { what = what, says = says, call = fn } end
  local plain, lists = {}, {}
  for i, p in ipairs(op.params) do
    for _, case in ipairs(makes and p.kind == "shape" and sizes or out_of_range[p.kind] or {}) do
      local value, says = table.unpack(case)
      local shown = type(value) == "table" and table.concat(value, ",") or value
      add(("%s=%s"):format(p.name, shown), { says }, function ()
        local tensors, n, named = by_name(op)
        local good = named[p.name]
        if p.kind == "dims" and type(good) == "table" and #value == 1 then -- as many as the op wants
          value = table.move(good, 2, #good, 2, { value[1] })
        end
        named[p.name], tensors[n + 1] = value, named
        return peri[op.name](table.unpack(tensors, 1, n + 1))
      end)
    end
    if p.kind == "tensor" then plain[#plain + 1] = i end
    if p.kind == "tensors" then lists[#lists + 1] = i end
  end
  -- tensors of any one shape, and two that have none in common
  if #plain > 1 and not (op.domain or ""):find "shape" then
    add("shapes that do not fit", { "(2, 3)", "(4, 3)" }, function ()
      local domain = ("%s; %s.shape=4,3"):format(op.domain or "", op.params[plain[2]].name)
      return optest.call(op, (optest.arguments(op, "f32", domain)))
    end)
  end
  if #lists > 1 then
    add("lists of different lengths", { "1", "2" }, function ()
      local args = optest.arguments(op, "f32")
      args[lists[2]][2] = nil
      return optest.call(op, args)
    end)
  end
  return list
end

-- ---- what the blocks say: "call => words | words" ----

local function stated(op, list)
  for _, text in ipairs(op.refuses) do
    local call, words = text:match "^(.-) => (.*)$"
    local says = {}
    for word in (words .. " | "):gmatch "(.-) | " do says[#says + 1] = word end
    list[#list + 1] = { what = call, says = says, call = function ()
      return optest.call(op, (optest.arguments(op, "f32", call)))
    end }
  end
  return list
end

--- What op refuses: { what, says, call } of each.
function M.of(op) return stated(op, derived(op)) end

return M
