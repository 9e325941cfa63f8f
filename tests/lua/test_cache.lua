-- What recipe.cached makes once: whole or not there, one folder for equal settings, one maker at a time.
local lu = require "luaunit"
local peri = require "perilune"
local child = require "child"
local scratch = require "scratch"
local recipe = require "perilune.recipe"

TestCache = {}
local root
scratch.each(TestCache, function (path) root = path end)

local function silent(fn, ...)
  local out = io.stdout
  local file = assert(io.open(root .. "/said", "w"))
  io.stdout = file -- luacheck: ignore 122
  local results = table.pack(pcall(fn, ...))
  io.stdout = out -- luacheck: ignore 122
  file:close()
  if not results[1] then error(results[2], 0) end
  return results[2], assert(peri.files.read(root .. "/said"))
end

local count
local function build(path)
  count = count + 1
  assert(peri.files.write(path .. "/text", "made"))
end

local function cached(settings, fn, name)
  return silent(recipe.cached, name or "base", settings, fn or build, root)
end

local function caches()
  local list = {}
  for _, name in ipairs(assert(peri.files.list(root .. "/cache"))) do
    if not name:find "%.lock$" then list[#list + 1] = name end
  end
  return list
end

function TestCache.test_what_is_made_once_is_read_ever_after_and_both_are_said()
  count = 0
  local path, said = cached { width = 3, seed = 1 }
  lu.assertEquals(path:sub(1, #root + 12), root .. "/cache/base-")
  lu.assertEquals(peri.files.read(path .. "/text"), "made")
  lu.assertStrContains(said, "cache: making " .. path)
  lu.assertStrContains(said, "cache: made " .. path)
  local again, second = cached { width = 3, seed = 1 }
  lu.assertEquals({ again, count }, { path, 1 })
  lu.assertEquals(second, ("cache: read %s\n"):format(path))
  lu.assertEquals(peri.json.decode(assert(peri.files.read(path .. "/settings.json"))), { width = 3, seed = 1 })
end

function TestCache.test_settings_that_say_the_same_are_one_folder_and_others_another()
  count = 0
  local path = cached { a = 1, b = { x = "t", y = { 1, 2 } }, c = 0.5 }
  for _, same in ipairs { { c = 0.5, b = { y = { 1, 2 }, x = "t" }, a = 1 }, { a = 1.0, b = { y = { 1, 2.0 }, x = "t" }, c = 5e-1 },
    assert(peri.json.decode '{"c":0.5,"b":{"y":[1,2],"x":"t"},"a":1.0}') } do
    lu.assertEquals((cached(same)), path)
  end
  lu.assertEquals(count, 1)
  local seen = { [path] = true }
  for _, other in ipairs { { a = 1, b = { x = "t", y = { 1, 2 } }, c = 0.25 }, { a = 1, b = { x = "t", y = { 2, 1 } }, c = 0.5 },
    { a = "1", b = { x = "t", y = { 1, 2 } }, c = 0.5 }, { a = 1, b = { x = "t", y = { 1, 2 } } }, {} } do
    local place = cached(other)
    lu.assertNil(seen[place])
    seen[place] = true
  end
  lu.assertNotEquals((cached({}, build, "other")), (cached {}))
end

function TestCache.test_a_run_draws_the_same_whether_it_was_read_or_made()
  local function drawing(path)
    peri.seed(5)
    local x = peri.randn { 4 }
    assert(peri.files.write(path .. "/text", tostring(x)))
  end
  peri.seed(3)
  local _, said = cached({}, drawing)
  local first = peri.randn({ 4 }):tolist()
  peri.seed(3)
  local _, again = cached({}, drawing)
  lu.assertStrContains(said, "made")
  lu.assertStrContains(again, "read")
  lu.assertEquals(peri.randn({ 4 }):tolist(), first)
end

function TestCache.test_a_build_that_fails_leaves_nothing_and_its_message()
  local function half(path)
    assert(peri.files.write(path .. "/half", "h"))
    error("no data", 0)
  end
  lu.assertErrorMsgContains("no data", cached, {}, half)
  lu.assertEquals(caches(), {})
  local function refused() return nil, "disk: full" end
  local ok, message = pcall(cached, {}, refused)
  lu.assertFalse(ok)
  lu.assertStrContains(tostring(message), "disk: full")
  lu.assertEquals(caches(), {})
  count = 0
  cached {}
  lu.assertEquals(count, 1)
end

function TestCache.test_a_damaged_folder_is_said_by_its_file_and_made_anew()
  local damages = {
    function (path) assert(peri.files.write(path .. "/text", "mode")) end,
    function (path) assert(peri.files.write(path .. "/text", "")) end,
    function (path) assert(peri.files.remove_tree(path .. "/text")) end,
    function (path) assert(peri.files.write(path .. "/settings.json", "{}")) end,
    function (path) assert(peri.files.write(path .. "/manifest.json", "{")) end,
    function (path) assert(peri.files.remove_tree(path .. "/manifest.json")) end,
  }
  for i, damage in ipairs(damages) do
    count = 0
    local path = cached { i = i }
    damage(path)
    local again, said = cached { i = i }
    lu.assertEquals({ again, count }, { path, 2 })
    lu.assertStrContains(said, i <= 3 and "/text" or i == 4 and "/settings.json" or "/manifest.json")
    lu.assertStrContains(said, "is made anew")
    lu.assertEquals(peri.files.read(path .. "/text"), "made")
    lu.assertTrue(peri.files.checkpoint.verify(path) ~= nil)
    cached { i = i }
    lu.assertEquals(count, 2)
  end
  lu.assertEquals(#caches(), #damages) -- nothing of the damaged ones is left
end

function TestCache.test_wrong_arguments_are_named_at_the_caller()
  local here = debug.getinfo(1, "S").short_src
  for _, case in ipairs {
    { "name is 3, expected string", 3, {}, build }, { "settings is 3, expected table", "a", 3, build },
    { "build is 3", "a", {}, 3 }, { "runs is 3, expected string", "a", {}, build, 3 },
    { 'name is "a/b"', "a/b", {}, build }, { 'name is ".a"', ".a", {}, build }, { 'name is ""', "", {}, build },
    { "settings: a function has no JSON form", "a", { f = print }, build },
    { "settings: JSON has no NaN", "a", { x = 0 / 0 }, build },
    { "both named and numbered", "a", { 1, x = 2 }, build },
  } do
    local ok, message = pcall(function () recipe.cached(table.unpack(case, 2, 5)) end)
    lu.assertFalse(ok)
    lu.assertStrContains(tostring(message), here)
    lu.assertStrContains(tostring(message), "recipe.cached")
    lu.assertStrContains(tostring(message), case[1])
  end
  lu.assertFalse(peri.files.exists "a")
end

-- Makes a cache of two files with a while between them.
local SLOW = [[
local peri = require "perilune"
local path = peri.recipe.cached("slow", { n = 1 }, function (to)
  assert(peri.files.write(to .. "/first", "1"))
  assert(peri.files.append("built", "x"))
  peri.channel():receive(tonumber(arg[1]))
  assert(peri.files.write(to .. "/second", "2"))
end)
assert(peri.files.read(path .. "/first") == "1" and peri.files.read(path .. "/second") == "2")
]]

function TestCache.test_a_kill_in_the_middle_leaves_no_half_cache()
  local demo = child.recipe(SLOW)
  os.execute(("( %s & while [ ! -f %s/built ]; do sleep 0.01; done; kill -KILL $(cat %s/runs/cache/slow-*.lock) ) >/dev/null 2>&1")
    :format(demo.command "60", demo.folder, demo.folder))
  for _, name in ipairs(assert(peri.files.list(demo.folder .. "/runs/cache"))) do
    lu.assertNotNil(name:find "%.lock$" or name:find "^%.tmp", name) -- nothing that counts as the cache
  end
  local status, text = demo.run "0"
  lu.assertEquals(status, 0, text)
  lu.assertStrContains(text, "cache: making runs/cache/slow-")
  lu.assertEquals(demo.read "built", "xx")
  local left = {}
  for _, name in ipairs(assert(peri.files.list(demo.folder .. "/runs/cache"))) do left[#left + 1] = name:match "^%.tmp" end
  lu.assertEquals(left, {}) -- what the killed one left is gone
  demo.remove()
end

function TestCache.test_of_two_processes_at_once_one_makes_it_and_the_other_waits()
  local demo = child.recipe(SLOW)
  local status, text = child.shell(("( %s ) >%s/one 2>&1 & while [ ! -f %s/built ]; do sleep 0.01; done; %s; wait")
    :format(demo.command "0.4", demo.folder, demo.folder, demo.command "0"))
  lu.assertEquals(status, 0, text)
  lu.assertEquals(demo.read "built", "x")
  lu.assertStrContains(text, "is making runs/cache/slow-")
  lu.assertStrContains(text, "cache: read runs/cache/slow-")
  lu.assertStrContains(demo.read "one", "cache: made runs/cache/slow-")
  demo.remove()
end

os.exit(lu.LuaUnit.run())
