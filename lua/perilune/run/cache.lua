-- cache.lua - what a recipe makes once and every later run of it reads: a pre-trained model, a prepared corpus. The
-- folder's name is the hash of the settings that it was made with, so that other settings are another folder.
-- It is a checkpoint (files with a sealed manifest, written aside, renamed as one): whole, or not there.
local peri = require "perilune"
local options = require "perilune.options"
local refusal = require "perilune.refusal"
local flags_of = require "perilune.run.common"
local folders = require "perilune.run.folder"

local M = {}

local WAIT <const> = 0.25 -- seconds between two looks at a lock

-- Settings without what JSON text would show and no value says: the order that a decoded object carries, 1.0 for 1.
local function plain(value)
  if type(value) == "number" then return math.tointeger(value) or value end
  if type(value) ~= "table" then return value end
  local out = {}
  for k, v in pairs(value) do out[k] = plain(v) end
  return out
end

-- FNV-1a of 64 bits; the product wraps, as the definition asks.
local function hash(text)
  local h = 0xcbf29ce484222325
  for i = 1, #text do h = (h ~ text:byte(i)) * 0x100000001b3 end
  return ("%016x"):format(h)
end

local function say(format, ...)
  io.stdout:write(format:format(...), "\n")
  io.stdout:flush()
end

-- The lock of a folder of the cache; waits for the process that has it, which is making what is wanted.
local function locked(path)
  local told
  while true do
    local lock, message = peri.files.lock(path .. ".lock")
    if lock then return lock end
    local pid = message:match "process (%d+) has locked"
    if not pid then folders.refuse("%s", refusal.bare(message)) end
    if not told then say("cache: process %s is making %s, waiting for it", pid, path) end
    told = true
    peri.channel():receive(WAIT)
  end
end

-- Whether the folder is there and whole, made with these settings. A damaged one is said, with the file.
local function is_whole(path, text)
  if not peri.files.exists(path) then return false end
  local generation, message = peri.files.checkpoint.verify(path)
  if not generation then
    say("cache: %s; %s is made anew", refusal.bare(message), path)
    return false
  end
  if peri.files.read(path .. "/settings.json") ~= text then
    folders.refuse("%s is of other settings, which have the same hash: delete it, or change a setting", path)
  end
  return true
end

--- The folder RUNS/cache/NAME-HASH of what is made once and then read, such as a pre-trained model. Where it is not
--- there, build(path) writes its files into the new folder of that path, which becomes the cache in one step when
--- build returns: one that is killed or raises leaves nothing. HASH is of the settings alone, as JSON with sorted
--- keys; they have to name all that the result depends on, the seed too, and stand in settings.json beside the files.
--- The generator of random ops is afterwards as it was before, so that a run is the same whether it was read or made.
--- A damaged folder is made anew; a process that finds another one making it waits for that. Says on the console
--- whether it was read or made. Example:
---   local path = recipe.cached("base", { width = 64, seed = 1 }, function (to) assert(pretrain():save(to)) end)
---   local model = assert(peri.models.load(path))
--- @param name string  letters, digits, . _ -
--- @param settings table  what JSON can hold
--- @param build fun(path: string): any  nil and a message ends the recipe with the message
--- @param runs string?  folder of all runs, a recipe's flag --runs; default "runs"
--- @return string folder
function M.cached(name, settings, build, runs)
  options.argument("recipe.cached", "name", name, "string")
  options.argument("recipe.cached", "settings", settings, "table")
  options.argument("recipe.cached", "build", build, "callable")
  if runs ~= nil then options.argument("recipe.cached", "runs", runs, "string") end
  if not name:find "^[%w_][%w_.%-]*$" or #name > 100 then
    error(("recipe.cached: name is %q, expected at most 100 letters, digits, . _ -"):format(name), 2)
  end
  local ok, text = pcall(function () return peri.json.encode(plain(settings)) end)
  if not ok then
    error("recipe.cached: settings: " .. refusal.bare((tostring(text):gsub("^[^:]+:%d+: ", ""))), 2)
  end
  local root = folders.trimmed(runs or flags_of.common.runs[1]) .. "/cache"
  local leaf = ("%s-%s"):format(name, hash(text))
  local path = ("%s/%s"):format(root, leaf)
  folders.must(peri.files.make_folder(root))
  local lock <close> = locked(path) -- luacheck: ignore 211
  if is_whole(path, text) then
    say("cache: read %s", path)
    return path
  end
  say("cache: making %s", path)
  local began = peri.time()
  local writer <close> = folders.must(peri.files.checkpoint.begin(root))
  local random = peri.rng_state()
  local made, message = build(writer.path)
  peri.set_rng_state(random)
  if not made and message ~= nil then folders.refuse("%s: %s", path, tostring(message)) end
  folders.must(peri.files.write(writer.path .. "/settings.json", text))
  folders.must(writer:commit(leaf))
  say("cache: made %s in %.0f s", path, peri.time() - began)
  return path
end

return M
