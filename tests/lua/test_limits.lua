-- The program's limit on memory: its default, the variable, the option, and what a script sees of it.
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"

local program = arg and arg[-2]

-- Output and success of the program with code as its script, after words (options, assignments).
local function run(before, options, code)
  local path = scratch.path()
  local file = assert(io.open(path, "w"))
  file:write(code)
  file:close()
  local pipe = io.popen(("%s '%s' %s run %s 2>&1"):format(before, program, options, path))
  local text, ok = pipe:read "a", pipe:close()
  os.remove(path)
  return text, ok == true
end

TestLimits = {}

function TestLimits.setUp() lu.skipIf(not program, "needs the program's path") end

function TestLimits.test_no_size_takes_more_than_the_machine_has()
  for _, size in ipairs { "{1000000, 1000000}", "{1 << 40, 8}", "{1 << 20, 1 << 20, 1 << 10}" } do
    for _, op in ipairs { "zeros", "empty", "rand", "ones" } do
      local text, ok = run("", "", ("local peri = require 'perilune' peri.%s%s"):format(op, size))
      lu.assertFalse(ok)
      lu.assertStrContains(text, op .. ": out of memory: ")
      lu.assertStrContains(text, " in use")
    end
  end
end

function TestLimits.test_many_small_tensors_reach_the_limit_too()
  for _, size in ipairs { "{1000, 100}", "{10}", "{}" } do
    local text, ok = run("", "--max_bytes 20M", ([[
      local peri = require "perilune"
      local all = {}
      local ok, message = pcall(function() for i = 1, math.huge do all[i] = peri.ones%s end end)
      print(ok, message, #all)
      all = nil
      print(peri.ones{1 << 20}:sum():item(), peri.memory().limit)]]):format(size))
    lu.assertTrue(ok, text)
    lu.assertStrContains(text, "ones: out of memory: ")
    lu.assertStrContains(text, "1048576.0\t20971520")
  end
end

function TestLimits.test_variable_and_option_set_the_limit()
  local show = "print(require('perilune').info().max_bytes)"
  for text, bytes in pairs {
    ["4G"] = 4 << 30, ["512M"] = 512 << 20, ["512m"] = 512 << 20, ["64MiB"] = 64 << 20, ["3GB"] = 3 << 30,
    ["100000K"] = 100000 << 10, ["20000000"] = 20000000, ["1T"] = 1 << 40, ["0"] = 0, none = 0,
  } do
    lu.assertEquals(run("PERI_MAX_BYTES=" .. text, "", show), bytes .. "\n")
    lu.assertEquals(run("PERI_MAX_BYTES=1G", "--max_bytes " .. text, show), bytes .. "\n")
    lu.assertEquals(run("", "--max_bytes=" .. text, show), bytes .. "\n")
  end
  local default = tonumber((run("", "", show)))
  lu.assertTrue(default > 1 << 24)
  lu.assertEquals(run("PERI_MAX_BYTES=", "", show), ("%d\n"):format(default))
end

function TestLimits.test_sizes_that_are_none_are_refused()
  for _, text in ipairs { "much", "-1", "4X", "4GG", "1.5G", "99999999999999999999", "9000000000G", "G", "4 G", "0x10" } do
    local message, ok = run(("PERI_MAX_BYTES='%s'"):format(text), "", "print(require('perilune').info())")
    lu.assertFalse(ok, text)
    lu.assertStrContains(message, ("PERI_MAX_BYTES=%s: bytes such as 4G"):format(text))
  end
  local message, ok = run("", "--max_bytes=", "")
  lu.assertFalse(ok)
  lu.assertStrContains(message, "--max_bytes needs a size")
end

function TestLimits.test_info_shows_the_limit()
  local pipe = io.popen(("'%s' --max_bytes 3G info"):format(program))
  lu.assertStrContains(pipe:read "a", "memory     3 GiB for tensors")
  pipe:close()
  lu.assertEquals(peri.info().max_bytes, peri.memory().limit or 0)
end

-- ---- many sizes, no elements ----

function TestLimits.test_nothing_of_a_huge_shape_takes_no_time()
  local x = peri.zeros { 1 << 40, 0, 1 << 20 }
  local text = tostring(x)
  lu.assertStrContains(text, "(1099511627776, 0, 1048576)")
  lu.assertTrue(#text < 1000)
  lu.assertErrorMsgContains("tolist: more than", x.tolist, x)
  lu.assertEquals(peri.zeros({ 3, 0 }):flip():tolist(), { {}, {}, {} })
  lu.assertEquals(peri.zeros({ 0, 1 << 40 }):tolist(), {})
  lu.assertEquals((x + 1):sum():item(), 0)
  lu.assertEquals(#x:bytes(), 0)
  lu.assertEquals(x:reshape({ 0, 5 }).shape, { 0, 5 })
  for _, shape in ipairs { { 1 << 62, 1 << 62 }, { 1 << 62, 6, 0 }, { math.maxinteger, 2 } } do
    lu.assertErrorMsgContains("reshape: ", x.reshape, x, shape)
  end
end

function TestLimits.test_bytes_that_are_no_bools_are_refused()
  lu.assertEquals(peri.from_bytes("\0\1", "bool", { 2 }):tolist(), { false, true })
  lu.assertErrorMsgContains("byte 2 is 7, no bool", peri.from_bytes, "\1\7", "bool", { 2 })
  lu.assertErrorMsgContains("are no bools", peri.ones({ 2 }, "i64").bitcast, peri.ones({ 2 }, "i64"), "bool")
  lu.assertEquals(peri.empty({ 1000 }, "bool"):sum():item(), 0)
end

function TestLimits.test_views_beyond_their_memory_are_refused()
  local x = peri.rand { 2, 10, 8 }
  for _, heads in ipairs { { math.maxinteger - 5, (1 << 62) + 8 }, { math.mininteger, math.maxinteger }, { 12, -1 },
      { 8, 1 << 62 }, { 0, 5 } } do
    lu.assertErrorMsgContains("heads", x.unpack_qkv, x, heads[1], heads[2])
  end
  local q, k, v = x:unpack_qkv(6, 2)
  lu.assertEquals({ q.shape[2], k.shape[2], v.shape[2] }, { 6, 2, 2 })
end
