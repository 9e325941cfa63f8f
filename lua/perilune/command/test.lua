-- test.lua - perilune test [WORD ...]: run the tests of a source checkout. Those in Lua, all or those that words
-- choose; the script ./perilune of the checkout builds and runs the C tests as well (tests/run.sh).
local peri = require "perilune"

local usage = [[
usage: perilune test [WORD ...]
Runs the Lua tests of a source checkout: all, or those whose name contains one of the words.
]]

local function matches(path, words)
  if #words == 0 then return true end
  for _, word in ipairs(words) do
    if path:match("[^/]+$"):find(word, 1, true) then return true end
  end
  return false
end

return function(words, place)
  local files, names = {}, {}
  for _, name in ipairs(place.root and peri.files.list(place.root .. "/tests/lua") or {}) do
    local short = name:match "^test_(.+)%.lua$"
    if short then files[#files + 1], names[#names + 1] = "tests/lua/" .. name, short end
  end
  for _, word in ipairs(words) do
    if word == "--help" or word == "-h" then
      io.write(usage, #names > 0 and "There are: " .. table.concat(names, " ") .. "\n"
        or "There is none here.\n")
      return 0
    end
  end
  if not place.root then
    io.stderr:write "perilune test: this needs a source checkout; run ./perilune test there\n"
    return 1
  end
  for _, word in ipairs(words) do
    local known = false
    for _, path in ipairs(files) do known = known or matches(path, { word }) end
    if not known then
      io.stderr:write(("perilune test: no test has %q in its name; there are: "):format(word),
        table.concat(names, " "), "\n")
      return 2
    end
  end
  local chosen = { [-2] = place.program, [-1] = "run", [0] = "tests/lua/run.lua" }
  for _, path in ipairs(files) do
    if matches(path, words) then chosen[#chosen + 1] = path end
  end
  assert(place.enter(place.root))
  rawset(_G, "arg", chosen)
  return assert(loadfile "tests/lua/run.lua")(table.unpack(chosen))
end
