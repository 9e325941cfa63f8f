-- test_checkout.lua - perilune test and perilune bench as the program itself runs them, in a checkout of its own
-- making: which files they find, choose and run, what they hand on, how they end.
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"
local child = require "child"

local T, dir = {}, nil

scratch.each(T, function(path) dir = path end)

local function write(name, text)
  assert(peri.files.make_folder((dir .. "/" .. name):match "^(.*)/"))
  assert(peri.files.write(dir .. "/" .. name, text))
end

-- The program with a library that stands in the scratch folder, so that this is its checkout.
local function program(words)
  local library = os.getenv "PERILUNE_LUA" or "lua"
  if not peri.files.exists(dir .. "/lua") then
    assert(os.execute(("cp -RL %s %s/lua"):format(library, dir)))
  end
  return child.shell(("PERILUNE_LUA=%s/lua %s %s"):format(dir, child.program, words))
end

-- The runner of this checkout, a test that passes and one that fails.
local function checkout()
  write("tests/lua/run.lua", assert(peri.files.read "tests/lua/run.lua"))
  write("tests/lua/test_good.lua", "return { test_it = function() print 'the good one ran' end }")
  write("tests/lua/test_bad.lua", "return { test_it = function() error 'broken' end }")
  write("tests/lua/helper.lua", "error 'no test'")
  write("tests/bench/core.lua", "print('core', arg[0], arg[-1], ...)")
  write("tests/bench/other.lua", "print('other', #arg, ...)")
end

function T.test_the_tests_that_words_choose_run_and_give_the_status()
  checkout()
  local status, out = program "test good"
  lu.assertEquals(status, 0, out)
  lu.assertStrContains(out, "the good one ran")
  lu.assertStrContains(out, "1 passed, 0 failed")
  status, out = program "test"
  lu.assertEquals(status, 1)
  lu.assertStrContains(out, "1 passed, 1 failed")
  lu.assertStrContains(out, "broken")
  status, out = program "test bad good"
  lu.assertEquals(status, 1)
  lu.assertStrContains(out, "1 passed, 1 failed")
  status, out = program "test nosuch"
  lu.assertEquals(status, 2)
  lu.assertStrContains(out, 'no test has "nosuch" in its name; there are: bad good')
  lu.assertStrContains(select(2, program "test --help"), "There are: bad good")
end

function T.test_a_benchmark_gets_its_words()
  checkout()
  local status, out = program "bench"
  lu.assertEquals(status, 0, out)
  lu.assertStrContains(out, "core\ttests/bench/core.lua\trun\n")
  status, out = program "bench other a 'b c'"
  lu.assertEquals(status, 0, out)
  lu.assertStrContains(out, "other\t2\ta\tb c\n")
  for _, name in ipairs { "nosuch", "../lua/run" } do
    status, out = program("bench " .. name)
    lu.assertEquals(status, 2)
    lu.assertStrContains(out, "no benchmark is called")
    lu.assertStrContains(out, "There are: core other")
  end
end

function T.test_outside_of_a_checkout_they_say_what_they_need()
  for _, command in ipairs { "test", "bench" } do
    local status, out = program(command)
    lu.assertEquals(status, 1)
    lu.assertStrContains(out, ("perilune %s: this needs a source checkout"):format(command))
    status, out = program(command .. " --help")
    lu.assertEquals(status, 0)
    lu.assertStrContains(out, "There is none here.")
  end
end

function T.test_recipes_stand_beside_the_library_or_nowhere()
  local status, out = program "recipes"
  lu.assertEquals(status, 1, out)
  lu.assertStrContains(out, "no recipes came with this program")
  checkout()
  write("recipes/mine.lua", "#!/usr/bin/env perilune\n-- mine.lua - a recipe of my own.\n")
  write("recipes/silent.lua", "return 1\n")
  write("recipes/notes.txt", "-- no recipe\n")
  status, out = program "recipes"
  lu.assertEquals(status, 0, out)
  lu.assertStrContains(out, "recipes/mine.lua    a recipe of my own.\n")
  lu.assertStrContains(out, "recipes/silent.lua  \n")
  lu.assertNil(out:find "notes")
  status, out = program("recipes " .. dir .. "/tests/bench")
  lu.assertEquals(status, 0)
  lu.assertStrContains(out, "/tests/bench/core.lua ")
end

return T
