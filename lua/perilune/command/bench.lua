-- bench.lua - perilune bench [NAME [ARG ...]]: run a benchmark of a source checkout (default: core). It is one that
-- is written in Lua; the script ./perilune of the checkout builds and runs those in C as well.
local peri = require "perilune"

return function(args, place)
  local names = {}
  for _, file in ipairs(place.root and peri.files.list(place.root .. "/tests/bench") or {}) do
    names[#names + 1] = file:match "^(.+)%.lua$"
  end
  local there = #names > 0 and "There are: " .. table.concat(names, " ") .. "\n" or "There is none here.\n"
  local name = args[1] or "core"
  if name == "--help" or name == "-h" then
    io.write("usage: perilune bench [NAME [ARG ...]]\nRuns a benchmark of a source checkout, by default core. ", there)
    return 0
  end
  if not place.root then
    io.stderr:write "perilune bench: this needs a source checkout; run ./perilune bench there\n"
    return 1
  end
  local path = ("tests/bench/%s.lua"):format(name)
  if name:find "/" or not peri.files.exists(place.root .. "/" .. path) then
    io.stderr:write(("perilune bench: no benchmark is called %q. %s"):format(name, there))
    return 2
  end
  assert(place.enter(place.root))
  local given = table.move(args, 2, #args, 1, { [-2] = place.program, [-1] = "run", [0] = path })
  rawset(_G, "arg", given)
  assert(loadfile(path))(table.unpack(given))
  return 0
end
