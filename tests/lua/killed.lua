-- killed.lua - runs a recipe in a child process twice: left alone, and killed at random moments and
-- resumed. Both must end with the same bytes.
local lu = require "luaunit"
local peri = require "perilune"
local child = require "child"
local scratch = require "scratch"

local M = {}

--- @param recipe string  path
--- @param flags string  of the recipe; it runs as run "r"
--- @param files string[]  what must be equal, in the run folder
--- @param kills integer  how often it is killed
function M.assert_same(recipe, flags, files, kills)
  local whole, cut = scratch.folder()
  local function command(folder, extra)
    return ("%s run %s %s --runs %s --run r %s >>%s/log 2>&1")
      :format(child.program, recipe, flags, folder, extra, folder)
  end
  local function log_of(folder) return peri.files.read(folder .. "/log") or "no log" end
  lu.assertTrue(os.execute(command(whole, "")) == true, "the recipe failed: " .. log_of(whole))
  local _, lines = assert(peri.files.read(whole .. "/r/metrics.jsonl")):gsub("\n", "")
  local rng = peri.rng(os.time())
  local seed, tries, hit = rng:state().seed, 0
  -- By its progress, not by time, which a busy machine stretches: some while after a line of its metrics and
  -- its first checkpoint, without which there is nothing to go on from.
  local KILL = "%s & p=$!; cd %s/r 2>/dev/null; while kill -0 $p 2>/dev/null && { ! ls -d checkpoints/step-* "
    .. ">/dev/null 2>&1 || [ $(cat metrics.jsonl 2>/dev/null | wc -l) -lt %d ]; }; do cd %s/r 2>/dev/null; "
    .. "sleep 0.005; done; sleep %.3f; kill -KILL $p 2>/dev/null; wait $p 2>/dev/null"
  repeat -- a run that was over before its kills proves nothing: from the start, then
    if cut then peri.files.remove_tree(cut) end
    cut, hit, tries = scratch.folder(), 0, tries + 1
    for attempt = 1, kills do
      local line = math.floor(lines * (attempt - rng:uniform()) / (kills + 1)) + 1
      local killing = KILL:format(command(cut, attempt > 1 and "--resume" or ""), cut, line, cut, rng:uniform(0, 0.02))
      if os.execute(killing) ~= true then hit = hit + 1 end
    end
  until 2 * hit > kills or tries == 20
  lu.assertTrue(os.execute(command(cut, "--resume")) == true, log_of(cut))
  lu.assertTrue(2 * hit > kills, ("only %d of %d kills hit"):format(hit, kills))
  lu.assertStrContains(log_of(cut), "resuming ") -- else it began anew each time, which proves nothing
  for _, name in ipairs(files) do
    local a, b = peri.files.read(("%s/r/%s"):format(whole, name)), peri.files.read(("%s/r/%s"):format(cut, name))
    lu.assertTrue(a ~= nil and a == b, ("%s differs after kills seeded with %d"):format(name, seed))
  end
  peri.files.remove_tree(whole)
  peri.files.remove_tree(cut)
end

--- What recipes of several stages are compared by: their curves, and the model and scores that these stages left.
--- @param ... string  stages
--- @return string[] files
function M.of_stages(...)
  local list = { "metrics.jsonl" }
  for _, stage in ipairs { ... } do
    list[#list + 1] = ("models/%s/model.safetensors"):format(stage)
    list[#list + 1] = ("models/%s/scores.json"):format(stage)
  end
  return list
end

--- Fails unless a table has a line for every recipe of a folder.
--- @param room string  folder of recipes/
--- @param names table<string, any>  keys begin with the name of a recipe; a blank and what tells several apart may follow
function M.assert_all_named(room, names)
  local named, missing = {}, {}
  for name in pairs(names) do named[name:match "^%S+"] = true end
  for _, file in ipairs(assert(peri.files.list("recipes/" .. room))) do
    local name = file:match "^(.*)%.lua$"
    if name and not named[name] then missing[#missing + 1] = name end
  end
  lu.assertEquals(missing, {})
end

return M
