-- A recipe killed at random moments and resumed ends with the same bytes as one left alone.
local lu = require "luaunit"
local peri = require "perilune"

local RECIPE = "recipes/r1_zero.lua"
local FLAGS = "--updates 14 --terms 2 --prompts 4 --group 4 --eval_every 5 --save_every 2 --warmup 4 --seed 7"

local function output(command)
  local pipe = assert(io.popen(command))
  local text = pipe:read "a"
  pipe:close()
  return (text:gsub("%s+$", ""))
end

-- The program that runs this test, for children of the same build.
local program = output "readlink /proc/$PPID/exe"

local function run(folder, extra)
  return os.execute(("%s %s run %s %s --runs %s --run r %s >%s/log 2>&1"):format(
    extra.limit or "", program, RECIPE, FLAGS, folder, extra.flags or "", folder))
end

local function fresh_folder()
  local path = os.tmpname()
  os.remove(path)
  assert(peri.files.make_folder(path))
  return path
end

local function bytes(folder, name)
  return assert(peri.files.read(folder .. "/r/" .. name))
end

TestResume = {}

function TestResume.test_five_kills_change_no_byte()
  local whole, cut = fresh_folder(), fresh_folder()
  local began = peri.time()
  lu.assertTrue(run(whole, {}) == true, "the recipe failed: " .. (peri.files.read(whole .. "/log") or ""))
  local seconds = peri.time() - began
  local rng = peri.rng(os.time())
  local state = rng:state()
  local kills = 0
  for attempt = 1, 5 do
    local limit = ("timeout -s KILL %.3f"):format(math.max(0.02, rng:uniform(0.05, 0.5) * seconds))
    if run(cut, { limit = limit, flags = attempt > 1 and "--resume" or "" }) ~= true then kills = kills + 1 end
  end
  lu.assertTrue(run(cut, { flags = "--resume" }) == true, peri.files.read(cut .. "/log"))
  lu.assertTrue(kills >= 3, "only " .. kills .. " kills hit")
  for _, name in ipairs { "model/model.safetensors", "metrics.jsonl", "samples.jsonl" } do
    lu.assertTrue(bytes(cut, name) == bytes(whole, name),
      ("%s differs after kills seeded with %d"):format(name, state.seed))
  end
  peri.files.remove_tree(whole)
  peri.files.remove_tree(cut)
end

os.exit(lu.LuaUnit.run())
