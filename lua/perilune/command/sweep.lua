-- sweep.lua - perilune sweep RECIPE --FLAG VALUES [ARG ...]: many runs of a recipe, one table.
local peri = require "perilune"
local arguments = require "perilune.command.arguments"
local flags = require "perilune.run.flags"
local common = require "perilune.run.common"
local options = require "perilune.options"
local space = require "perilune.run.sweep_space"
local sweeps = require "perilune.run.sweep"

local about = [[
usage: perilune sweep RECIPE --FLAG VALUES ... [--FLAG VALUE ...]
Runs a recipe with other flags, each in a process of its own, and leaves one table and one plot. VALUES of a flag of
the recipe: a,b,c each of them; log:LOW,HIGH and linear:LOW,HIGH a number between; log:LOW,HIGH,N one of N points;
text:T is T with all its commas. One value is given to every run. What stands behind -- is the recipe's, whatever it is
called. The best stand first; a run that fails is a row. Killed, it goes on
with --resume, which tries what has failed again.]]

local spec = {
  method = { "random", "how settings are chosen: random ones; all of a grid; successive halving of random ones",
    choices = { "random", "grid", "halving" } },
  trials = { 16, "settings, but of a grid", range = "[1, inf)" },
  metric = { "", "what is judged: scores that a run stores, or a metric's last value (default: the first scores)" },
  mode = { "max", "which values are better", choices = { "max", "min" } },
  seeds = { 1, "seeds of each setting: as one batched network where the recipe has --seeds, else a run each",
    range = "[1, inf)" },
  seed = { 1, "of the settings, and the first of the runs", range = "[0, inf)" },
  workers = { 1, "runs at a time", range = "[1, 256]" },
  eta = { 3, "halving: one of so many goes on, with so many times the budget", range = "[2, inf)" },
  rungs = { 0, "halving: how often the budget grows, its first included; 0: as often as there are trials for",
    range = "[0, 20]" },
  run = { "", "name of the sweep's folder (default: sweep-RECIPE)" },
  runs = { "runs", "folder of all runs" },
  resume = { false, "go on with the newest sweep of that name" },
}

local function refuse(message, status)
  io.stderr:write("perilune sweep: ", message, "\n")
  return status or 2
end

-- The words of a command line: those of the sweep, and { name, text } of the recipe's.
local function separate(args)
  local own, others, i = {}, {}, 1
  local behind = false
  while i <= #args do
    local word = args[i]
    local name, value = word:match "^%-%-([%w_%-]+)=(.*)$"
    name = name or word:match "^%-%-([%w_%-]+)$"
    if word == "--" and not behind then behind = true
    elseif not name then return nil, ("%q is not a flag; flags look like --name value"):format(word)
    else
      name = name:gsub("%-", "_")
      local following = args[i + 1]
      local takes = not value and following and not following:find "^%-%-%a" and following ~= "--"
      if not behind and (spec[name] or name == "help") then
        own[#own + 1] = word
        if takes and name ~= "resume" then
          i = i + 1
          own[#own + 1] = following
        end
      else
        if takes then value, i = following, i + 1 end
        others[#others + 1] = { name, value }
      end
    end
    i = i + 1
  end
  return own, others
end

-- The recipe's own flags, by running it up to where it reads them.
local function spec_of(path)
  local chunk, message = loadfile(path, "t")
  if not chunk then return nil, message end
  local folder = path:match "^(.*)/"
  if folder then package.path = ("%s;%s/?.lua;%s/?/init.lua"):format(package.path, folder, folder) end
  local before = arg
  rawset(_G, "arg", { [0] = path })
  local found, why = flags.spec_of(chunk)
  rawset(_G, "arg", before)
  if not found then return nil, ("%s: %s"):format(path, why) end
  for _, name in ipairs { "run", "runs", "resume", "seed" } do
    if found[name] == nil then return nil, ("%s has no flag --%s, which recipe.with_flags gives"):format(path, name) end
  end
  return found
end

local function default_of(entry)
  if type(entry) == "table" then return entry[1] end
  return entry
end

-- Axes of the flags, each value tried against the recipe's flags.
local function axes_of(recipe_spec, given)
  local axes, seen = {}, {}
  for _, pair in ipairs(given) do
    local name, text = pair[1], pair[2]
    local positive = name:match "^no_(.+)$"
    if recipe_spec[name] == nil and positive and type(default_of(recipe_spec[positive])) == "boolean" and not text then
      name, text = positive, "false"
    end
    local default = default_of(recipe_spec[name])
    if default == nil then
      local problem = options.unknown("flag of the recipe", name, options.names(recipe_spec))
      return nil, ("%s; the sweep has: %s"):format(problem,
        table.concat(options.names(spec), ", "))
    end
    if name == "run" or name == "runs" or name == "resume" then return nil, ("--%s is the sweep's"):format(name) end
    if seen[name] then return nil, ("--%s is given twice"):format(name) end
    seen[name] = true
    if text == nil and type(default) == "boolean" then text = "true" end
    if text == nil then return nil, ("--%s needs values"):format(name) end
    local axis, message = space.axis(name, text, default)
    if not axis then return nil, message end
    for _, value in ipairs(space.samples(axis)) do
      local ok, why = flags.parse(recipe_spec, { ("--%s=%s"):format(name, value) })
      if not ok then return nil, why end
    end
    axes[#axes + 1] = axis
  end
  table.sort(axes, function (a, b) return a.name < b.name end)
  return axes
end

-- Budgets of the rungs: the last is the whole, each before it one of eta.
local function rungs_of(values, whole, trials)
  local most = math.floor(math.log(math.max(trials, 1)) / math.log(values.eta) + 1e-9) + 1
  local n = values.rungs > 0 and values.rungs or most
  local list = {}
  for k = 1, n do list[k] = math.max(1, math.ceil(whole / values.eta ^ (n - k))) end
  for k = 2, n do
    if list[k] <= list[k - 1] then return nil, ("a budget of %d is too small for %d rungs"):format(whole, n) end
  end
  return list
end

-- Flags of the sweep that say what is run: they stand once it has begun.
local planned = { "method", "trials", "seeds", "seed", "eta", "rungs" }

-- What is to be run, or nil and a message.
local function plan_of(path, values, given)
  local recipe_spec, message = spec_of(path)
  if not recipe_spec then return nil, message end
  local axes, wrong = axes_of(recipe_spec, given)
  if not axes then return nil, wrong end
  local plan = { recipe = path, metric = values.metric, mode = values.mode, seeds = values.seeds, seed = values.seed,
    eta = values.eta, axes = axes, apart = values.seeds > 1 and recipe_spec.seeds == nil, rungs = { 0 }, asked = {} }
  for _, name in ipairs(planned) do plan.asked[name] = values[name] end
  if values.seeds > 1 and not plan.apart then
    for _, axis in ipairs(axes) do if axis.name == "seeds" then return nil, "--seeds is given twice" end end
  end
  local list
  if values.method == "grid" then list, message = space.grid(axes)
  else list = space.random(axes, values.trials, peri.rng(values.seed)) end
  if not list then return nil, message end
  plan.settings = {}
  for i, setting in ipairs(list) do
    plan.settings[i] = {}
    for k, value in ipairs(setting) do plan.settings[i][k] = { axes[k].name, value } end
  end
  plan.all_axes = table.move(axes, 1, #axes, 1, {})
  if values.method ~= "halving" then return plan end
  plan.budget = options.names((common.kinds(recipe_spec)))[1]
  if not plan.budget then return nil, path .. " has no budget that could grow (steps, updates, epochs, episodes)" end
  local whole = default_of(recipe_spec[plan.budget])
  for i = #axes, 1, -1 do
    if axes[i].name == plan.budget then
      if space.varies(axes[i]) then
        return nil, ("--%s is the budget, which grows: give it one value"):format(plan.budget)
      end
      whole = tonumber(axes[i].values[1])
      table.remove(axes, i)
      for _, setting in ipairs(plan.settings) do table.remove(setting, i) end
    end
  end
  plan.rungs, message = rungs_of(values, whole, #plan.settings)
  if not plan.rungs then return nil, message end
  return plan
end

-- The plan of a sweep that goes on: what the command line says must be what it was begun with, but for what is
-- judged.
local function resumed(plan, folder, path, own, given, values)
  local function other(what)
    return nil, ("%s was begun with another %s; leave it out, or begin a new sweep without --resume")
      :format(folder, what)
  end
  if plan.recipe ~= path then return other "recipe" end
  local named = {}
  for _, word in ipairs(own) do named[(word:match "^%-%-([%w_%-]+)" or ""):gsub("%-", "_")] = true end
  for _, name in ipairs(planned) do
    if named[name] and plan.asked[name] ~= values[name] then return other("--" .. name) end
  end
  if #given > 0 then
    local recipe_spec, message = spec_of(path)
    local axes, wrong = nil, message
    if recipe_spec then axes, wrong = axes_of(recipe_spec, given) end
    if not axes then return nil, wrong end
    local text = peri.json.encode(axes)
    if text ~= peri.json.encode(plan.all_axes) then return other "choice of flags" end
  end
  for _, name in ipairs { "metric", "mode" } do if named[name] then plan[name] = values[name] end end
  return plan
end

local function run(path, own, given, values, place)
  local name = values.run ~= "" and values.run or "sweep-" .. (path:match "([^/]+)%.lua$" or "recipe")
  local folder, plan, message
  if values.resume then
    folder, plan = sweeps.newest(values.runs, name)
    if not folder then return nil, plan end
    plan, message = resumed(plan, folder, path, own, given, values)
  else plan, message = plan_of(path, values, given) end
  if not plan then return nil, message end
  local function say(...)
    io.stdout:write(string.format(...), "\n")
    io.stdout:flush()
  end
  local sweep, busy = sweeps.open { root = values.runs, name = name, folder = folder, plan = plan,
    workers = values.workers, program = place.program, named = values.run ~= "" and values.run or nil, say = say }
  if not sweep then return nil, busy end
  local _ <close> = setmetatable({}, { __close = function () sweep:close() end })
  local n = #plan.settings
  say("sweep folder %s: %d %s of %s%s", sweep.folder, n, n == 1 and "setting" or "settings", path,
    n < plan.asked.trials and plan.asked.method ~= "grid" and "; there are no more" or "")
  local rows, stopped = sweep:run()
  if not rows then return nil, stopped, 130 end
  io.write("\n", assert(peri.files.read(sweep.folder .. "/table.txt")))
  if not rows[1].judged.value then return nil, "no setting has a score; --resume tries those that failed again", 1 end
  return true
end

return function (args, place)
  local path = args[1]
  if path == "--help" or path == "-h" then
    print((select(2, flags.parse(spec, { "--help" }, about))))
    return 0
  elseif not path or path:find "^%-" then
    return refuse((path and path .. ": " or "") .. "the recipe stands first (perilune sweep --help)")
  end
  local own, given = separate({ table.unpack(args, 2) })
  if not own then return refuse(given) end
  local values, message, is_help = flags.parse(spec, own, about)
  if is_help then
    print(message)
    return 0
  elseif not values then return refuse(message) end
  local ran, ok, why, status = arguments.attempt("sweep", run, path, own, given, values, place)
  if not ran then return 1 end
  return ok and 0 or refuse(why, status)
end
