-- recipe.lua - the folder of a run: runs/NAME/ with config.json (its flags), metrics.jsonl, samples.jsonl,
-- log.txt, sessions.jsonl, events for TensorBoard and checkpoints, and what resumes it.
--   local cfg = peri.flags(recipe.with_flags { steps = { 1000, "optimizer steps", budget = true }, lr = 1e-3 })
--   local run = recipe.start { name = "demo", flags = cfg, total = cfg.steps, columns = { "loss", "val_loss" } }
--   run:track("model", net):track("optimizer", opt):track("data", rows)
--   for step in run:steps() do ...; run:log(step, { loss = loss }); end
--   run:finish()
-- The second run of a name gets NAME-2; `--resume` goes on with the newest. A folder has one writer.

local peri = require "perilune"
local options = require "perilune.options"
local folders = require "perilune.run.folder"
local flags_of = require "perilune.run.common"
local Best = require "perilune.run.best"
local cache = require "perilune.run.cache"
local Run = require "perilune.run.run"
local report = require "perilune.run.report"

local M = {}

M.flags, M.with_flags = flags_of.common, flags_of.with_flags
M.cached, M.stages = cache.cached, require("perilune.run.stages").stages
M.report = report.report

-- The folders data/ that came with the script: beside it, and one above.
local function own_data()
  local script = type(arg) == "table" and type(arg[0]) == "string" and arg[0] or nil
  if not script then return {} end
  local folder = script:match "^(.*)/[^/]*$" or "."
  return { folder .. "/data/", folder .. "/../data/" }
end

--- A file or folder that a recipe needs: the path itself, its place under data/ beside the script or in the folder
--- above, or under data/ of the folder that the environment variable PERILUNE_DATA names (default ../shared). Ends the
--- recipe when there is none.
--- @param path string
--- @param what string  what it should be, for the message
--- @return string path
function M.find(path, what)
  local root, places = os.getenv "PERILUNE_DATA" or "../shared", { path }
  for _, folder in ipairs(own_data()) do places[#places + 1] = folder .. path end
  places[#places + 1] = ("%s/data/%s"):format(root, path)
  for _, place in ipairs(places) do
    if peri.files.exists(place) then return place end
  end
  return folders.refuse("no %s, and none in %s/data (PERILUNE_DATA); it needs %s", path, root, what)
end

--- Where a run folder keeps the weights of the best measurement of a metric, for another script: the files
--- NAME.safetensors of the path are the tracked objects, and peri.safetensors.load reads one:
---   local path, step, value = assert(recipe.best("runs/fit", "val_loss"))
---   net:load_state_dict((assert(peri.safetensors.load(path .. "/net.safetensors"))))
--- @param folder string  of the run
--- @param metric string?  that run:best watched; needed when there were several
--- @return string? path  nil and a message when there is none
--- @return integer|string step  of the measurement
--- @return number? value
function M.best(folder, metric)
  options.argument("recipe.best", "folder", folder, "string")
  if metric ~= nil then options.argument("recipe.best", "metric", metric, "string") end
  local found, message = Best.find(folder, metric)
  if not found then return nil, message end
  return found.path, found.step, found.value
end

local rules = {
  name = options.value(options.required, "string", "of the run folder, unless --run says another"),
  flags = options.value({}, "table",
    "values; run, runs, resume, save_every, log_every, columns and seed are used when there"),
  total = options.integer(options.none, "[0, inf)", "steps; default: no end"),
  budget = options.value(options.none, "table",
    "names of the flags that say how long the run is; default: those that with_flags knows, or the first of steps, "
    .. "updates, epochs, episodes"),
  columns = options.value(options.none, "table", "names of the metrics that come first in a row, the judged ones"),
  keep = options.integer(2, "[1, inf)", "checkpoints"),
  console = options.boolean(true, "rows on standard output"),
  live = options.boolean(options.none, "with a progress bar; default: on a terminal"),
  every = options.integer(options.none, "[1, inf)", "steps between rows; default: the flag log_every, or 1"),
  width = options.integer(options.none, "[1, inf)", "of a row; default: the terminal's"),
  csv = options.boolean(false, "metrics.csv besides"),
  tensorboard = options.boolean(true, "an event file"),
}

-- The folder of the run to go on with, and what is in it.
local function resumed(o, root, name, info)
  local flags = o.flags
  if info and info.name and (flags.run or "") == "" and info.name ~= o.name then
    folders.refuse("--resume took the flags of %s, but the recipe is called %q: say --run NAME, or "
      .. "recipe.with_flags(spec, %q)", info.folder, o.name, o.name)
  end
  local folder, count, config = info and info.folder, info and info.count, info and info.config
  if folder then return folder, count, config, info.checkpoint end
  folder, count = folders.newest(root, name)
  if not folder then folders.refuse("there is no run %s/%s to resume", root, name) end
  config = folders.must(folders.load_config(folder))
  return folder, count, config
end

-- The first flag of the budget, for messages: the one that the recipe has.
local function budget_flag(budget) return options.names(budget)[1] end

--- Open a run folder: a new one, or with flags.resume the newest of that name. Ends the recipe with a
--- message, and leaves every file as it is, when the run to resume has no whole checkpoint, was begun with
--- other flags, or is being written by another process.
--- @param given table
--- @return perilune.recipe.Run
function M.start(given)
  local o = options.fill("recipe.start", given, rules, 3)
  local flags = o.flags
  local root, name = folders.trimmed(flags.runs or "runs"), folders.trimmed(flags.run or "")
  if name == "" then name = o.name end
  if root == "" or name == "/" then
    folders.refuse("--runs %q --run %q: expected names of folders", root, name)
  end
  local info = flags_of.info(flags)
  local budget, free
  if info and not o.budget then budget, free = info.budget, info.free
  else budget, free = flags_of.plain_kinds(flags, o.budget) end
  local judged = o.columns or {} -- by the recipe, whatever the flag shows first
  if type(flags.columns) == "string" and flags.columns ~= "" then
    o.columns = {}
    for metric in flags.columns:gmatch "[^,%s]+" do o.columns[#o.columns + 1] = metric end
  end
  if not o.every then o.every = math.tointeger(flags.log_every) or 1 end
  local self = setmetatable({ flags = flags, total = o.total, save_every = flags.save_every or 0, step = 0,
    _objects = {}, _order = {}, _bests = {}, _live = {}, _unplotted = {}, _options = o, _count = 1, _skipped = 0,
    _judged = judged, _budget = budget_flag(budget), _unlearnt = free }, Run)
  if flags.resume then
    local folder, count, config, checkpoint = resumed(o, root, name, info)
    local changed = info and info.config and {} or folders.differences(config, flags, free)
    if #changed > 0 then folders.refuse("%s was begun with other flags: %s", folder, table.concat(changed, "; ")) end
    self.folder, self._count, self._resumed = folder, count, true
    self._lock = folders.must(folders.lock(folder))
    if not (checkpoint and peri.files.checkpoint.verify(checkpoint)) then
      checkpoint = folders.must(flags_of.checkpoint(folder))
    end
    self._checkpoint = checkpoint
    local done = math.tointeger(tonumber(checkpoint:match "step%-(%d+)$"))
    if done and o.total and done > o.total then
      self._lock:drop()
      local flag = self._budget or "steps"
      folders.refuse("%s has done %d steps, --%s %s makes %d of them; nothing was changed", folder, done, flag,
        tostring(flags[flag]), o.total)
    end
    for flag in pairs(budget) do
      if config[flag] ~= nil and not folders.same(config[flag], flags[flag]) then self._prolonged = true end
    end
    if #folders.differences(config, flags, { run = true, runs = true, resume = true }) > 0 then
      self._config_name = config.run ~= "" and config.run or name
    end
  else
    self.folder, self._lock = folders.fresh(root, name)
    folders.save_origin(self.folder, o.name, flags_of.script_name(), judged)
    folders.save_config(self.folder, flags, name)
  end
  if flags.seed and not info then peri.seed(flags.seed) end -- flags of a command line have seeded already
  return self
end
options.declare(M.start, {}, rules)

M.Run = Run
return require "perilune.names"(M, "perilune.recipe")
