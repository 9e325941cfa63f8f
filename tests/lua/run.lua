-- Runs LuaUnit files: perilune run tests/lua/run.lua FILE...
-- A file defines global Test tables, or returns one table of test functions. After the tests of a
-- file the runtime must hold no more live bytes than after loading it. The last line printed is
-- "N passed, N failed", the one before it "N skipped" when there are such.

local lu = require "luaunit"
local peri = require "perilune"

package.path = "tests/lua/?.lua;" .. package.path

local function live_bytes()
  collectgarbage()
  collectgarbage()
  return peri.memory().live
end

-- A file may run itself when started alone: not while it is loaded here.
local function load_file(path)
  local exit, run = os.exit, lu.LuaUnit.run
  os.exit = function() end -- luacheck: ignore 122
  lu.LuaUnit.run = function() return 0 end
  local ok, result = xpcall(dofile, debug.traceback, path)
  os.exit, lu.LuaUnit.run = exit, run -- luacheck: ignore 122
  return ok, result
end

local function tests_of(path)
  local before = {}
  for name in pairs(_G) do before[name] = true end
  local ok, result = load_file(path)
  if not ok then return nil, result end
  local suites = {}
  for name, value in pairs(_G) do
    if not before[name] and type(name) == "string" and name:lower():find("^test") then
      suites[#suites + 1] = { name, value }
    end
  end
  if type(result) == "table" then
    suites[#suites + 1] = { "Test_" .. path:match("([^/]+)%.lua$"), result }
  end
  table.sort(suites, function(a, b) return a[1] < b[1] end)
  return suites
end

local passed, failed, skipped = 0, 0, 0
for _, path in ipairs(arg) do
  local suites, message = tests_of(path)
  if suites then
    local before = live_bytes()
    local runner = lu.LuaUnit.new()
    runner:setOutputType("text")
    runner:runSuiteByInstances(suites)
    passed = passed + runner.result.successCount
    failed = failed + runner.result.failureCount + runner.result.errorCount
    skipped = skipped + runner.result.skippedCount
    if runner.result.runCount + runner.result.skippedCount == 0 then
      failed = failed + 1
      print(path .. ": no tests")
    end
    runner = nil -- luacheck: ignore 311
    local after = live_bytes()
    if after > before then
      failed = failed + 1
      print(("%s: leaves %d live bytes behind"):format(path, after - before))
    end
  else
    failed = failed + 1
    print(path .. ": " .. message)
  end
end
if skipped > 0 then print(skipped .. " skipped") end
print(("%d passed, %d failed"):format(passed, failed))
os.exit(failed == 0)
