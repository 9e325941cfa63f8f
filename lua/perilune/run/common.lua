-- common.lua - the flags that every recipe has, and what --resume makes of all of them: a run
-- goes on with the flags in its config.json. Flags of the command line may agree with them or prolong the
-- run; any other is refused by name, before anything is loaded or written.

local peri = require "perilune"
local options = require "perilune.options"
local refusal = require "perilune.refusal"
local folders = require "perilune.run.folder"

local M = {}

--- Flags that every recipe has. `free` ones may differ when a run is resumed, `budget` ones say how long
--- it is and may be prolonged.
M.common = {
  run = { "", "name of the run folder (default: the recipe's name)", free = true },
  runs = { "runs", "folder of all runs", free = true },
  resume = { false, "go on from the last checkpoint of the newest run of that name, with its flags", free = true },
  save_every = { 100, "steps between checkpoints, 0 = only the last", free = true, range = "[0, inf)" },
  log_every = { 1, "steps between rows on the console", free = true, range = "[1, inf)" },
  columns = { "", "metrics that come first in a row, with commas between (default: the recipe's choice)", free = true },
  profile = { false, "at the end: where the time went", free = true },
  seed = { 1, "of all random ops, from the flags on" },
}

-- What is the budget where a recipe says nothing: the first of these that it has. PPO has updates, and its
-- epochs are something else.
local usual_budget = { "steps", "updates", "epochs", "episodes" }

-- What is known of a table of flags that came from a command line; by the table itself, which stays plain.
local known = setmetatable({}, { __mode = "k" })

--- { folder, config, budget, free, checkpoint } of flags that with_flags made; nil for a plain table.
--- @param flags table
--- @return table?
function M.info(flags) return known[flags] end

--- The names that are a budget and those that are free, from a table of flags as peri.flags takes it.
--- @param spec table
--- @return table budget
--- @return table free  the budget among them
function M.kinds(spec)
  local budget, free = {}, {}
  for name, entry in pairs(spec) do
    if type(entry) == "table" and entry.budget then budget[name] = true end
  end
  if next(budget) == nil then
    for _, name in ipairs(usual_budget) do
      if spec[name] ~= nil then
        budget[name] = true
        break
      end
    end
  end
  for name, entry in pairs(spec) do
    if budget[name] or type(entry) == "table" and entry.free then free[name] = true end
  end
  return budget, free
end
local kinds = M.kinds

--- The same for a plain table of values.
function M.plain_kinds(flags, budget)
  local spec = {}
  for name in pairs(flags) do spec[name] = {} end
  for name, entry in pairs(M.common) do spec[name] = { free = entry.free } end
  for _, name in ipairs(budget or {}) do spec[name] = { budget = true } end
  return kinds(spec)
end

local function listed(set)
  local names = options.names(set)
  for i, name in ipairs(names) do names[i] = "--" .. name end
  return table.concat(names, ", ")
end

--- What is whole among a run's checkpoints: its path, or nil and why there is none.
--- @param folder string
--- @return string?
--- @return string?
function M.checkpoint(folder)
  local dir = folder .. "/checkpoints"
  local names = peri.files.exists(dir) == "folder" and peri.files.list(dir) or {}
  local path, message = peri.files.checkpoint.latest(dir)
  if path and path ~= "" then return path end
  local damaged = {}
  for _, name in ipairs(names) do if name:sub(1, 1) ~= "." then damaged[#damaged + 1] = name end end
  local why = message and refusal.bare(message)
    or #damaged > 0 and ("%d damaged: %s"):format(#damaged, table.concat(damaged, ", "))
    or "it was stopped before the first was due"
  return nil, ("%s has no whole checkpoint to go on from (%s); nothing was changed. "
    .. "Without --resume a new run begins beside it"):format(folder, why)
end

-- Flags from config.json where the command line says nothing; nil and a message when they do not agree.
local function merge(values, given, problem_of, config, spec, folder, free, budget)
  local wrong = {}
  local path = folders.config_path(folder)
  for _, name in ipairs(options.names(config)) do
    local entry = spec[name]
    local default = values[name]
    if type(entry) == "table" then default = entry[1] elseif entry ~= nil then default = entry end
    if default == nil then
      if not M.common[name] then
        return nil, ("%s has %s, which is no flag of this recipe any more: begin a new run without --resume")
          :format(path, name)
      end
    elseif not (name == "run" or name == "runs" or name == "resume") then
      local value, expected = peri.flags.from_json(config[name], default)
      if value == nil then
        return nil, ("%s: %s is %s, expected %s"):format(path, name, peri.flags.shown(config[name]), expected)
      end
      local problem = problem_of(name, value)
      if not given[name] then
        if problem then return nil, ("%s: %s"):format(path, problem) end
        values[name] = value
      elseif not free[name] and not folders.same(value, values[name]) then
        wrong[#wrong + 1] = ("--%s is %s, was %s"):format(name, tostring(values[name]), tostring(value))
      end
    end
  end
  if #wrong > 0 then
    return nil, ("%s was begun with other flags: %s. Leave them out, or begin a new run without --resume%s")
      :format(folder, table.concat(wrong, "; "),
        next(budget) and (" (%s may be prolonged)"):format(listed(budget)) or "")
  end
  return values
end

-- Name of the script that runs; nil when there is none.
local function script_name()
  return type(arg) == "table" and type(arg[0]) == "string" and arg[0]:match "([^/]+)$" or nil
end
M.script_name = script_name

local function no_run(root, wanted)
  local names = folders.list(root)
  local there = #names == 0 and "no runs are there" or #names > 8 and ("%d others are there"):format(#names)
    or "there are: " .. table.concat(names, ", ")
  return ("--resume: there is no run %s/%s; %s (--run NAME, --runs FOLDER)"):format(root, wanted, there)
end

-- The values of a command line, and of config.json where a run resumes; nil and a message when they do
-- not agree.
local function resolve(values, given, problem_of, spec, name)
  local budget, free = kinds(spec)
  local info = { budget = budget, free = free }
  known[values] = info
  if values.resume ~= true or type(values.run) ~= "string" or type(values.runs) ~= "string" then return values end
  values.run, values.runs = folders.trimmed(values.run), folders.trimmed(values.runs)
  local script = script_name()
  local own = name or script and folders.recipe_of(values.runs, script) or script and script:gsub("%.lua$", "")
  local wanted = values.run ~= "" and values.run or own
  if not wanted then return values end
  info.name = own
  local folder, count = folders.newest(values.runs, wanted)
  if not folder then return nil, no_run(values.runs, wanted) end
  local config, message = folders.load_config(folder)
  if not config then return nil, "--resume: " .. message end
  local merged, why = merge(values, given, problem_of, config, spec, folder, free, budget)
  if not merged then return nil, "--resume: " .. why end
  local lock, busy = folders.lock(folder) -- taken for good by recipe.start; said before anything is loaded
  if not lock then return nil, "--resume: " .. busy end
  local checkpoint, none = M.checkpoint(folder)
  lock:drop()
  if not checkpoint then return nil, "--resume: " .. none end
  info.folder, info.count, info.config, info.checkpoint = folder, count, config, checkpoint
  return values
end

-- The last word on the values of a command line; called by perilune.flags. Random numbers are seeded here,
-- so that weights made before recipe.start are the seed's, too.
local function finish(values, given, problem_of, spec, name)
  local resolved, message = resolve(values, given, problem_of, spec, name)
  if resolved and math.tointeger(resolved.seed) then peri.seed(math.tointeger(resolved.seed)) end
  return resolved, message
end

--- A recipe's flags together with those of every recipe: run, runs, resume, save_every, log_every,
--- columns, profile, seed. Give them to peri.flags.
--- A flag { default, "help", budget = true } says how long the run is: `--resume` may prolong it. Without any
--- it is the first of steps, updates, epochs and episodes. One with free = true may change when a run is resumed;
--- every other keeps the value that it was begun with.
--- @param spec table  as peri.flags takes it; its own entries replace the common ones
--- @param name string?  of the recipe, where --resume looks for its runs; default: what the script's runs are
--- called
--- @return table
function M.with_flags(spec, name)
  local out = {}
  for k, v in pairs(M.common) do out[k] = v end
  for k, v in pairs(spec) do out[k] = v end
  for k in pairs((kinds(out))) do -- no run has less than no steps
    local entry, copy = out[k], {}
    for field, v in pairs(type(entry) == "table" and entry or { entry }) do copy[field] = v end
    if type(copy[1]) == "number" then copy.range = copy.range or "[0, inf)" end
    out[k] = copy
  end
  return setmetatable(out, {
    finish = function(values, given, problem_of) return finish(values, given, problem_of, out, name) end,
  })
end

return M
