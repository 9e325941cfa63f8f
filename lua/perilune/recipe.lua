-- recipe.lua - the folder of a run: runs/NAME/ with config.json, metrics.jsonl, samples.jsonl,
-- events for TensorBoard and checkpoints. A run that was stopped at any moment and is resumed ends
-- with the same bytes as one that was not: checkpoints hold model, optimizer, generator, data
-- position; metrics and samples after the checkpoint are dropped and made again.
--   local run = recipe.start { name = "demo", flags = flags, total = flags.steps }
--   run:track("model", net):track("optimizer", opt):track("data", rows)
--   for step in run:steps() do ...; run:log(step, { loss = loss }); end
--   run:finish()

local peri = require "perilune"
local log = require "perilune.log"
local options = require "perilune.options"
local plot = require "perilune.plot"

local M = {}

--- Flags that every recipe has; merge them into its own.
M.flags = {
  run = { "", "name of the run folder (default: the recipe's name)" },
  runs = { "runs", "folder of all runs" },
  resume = { false, "go on from the last checkpoint of the run" },
  save_every = { 100, "steps between checkpoints, 0 = only the last", range = "[0, inf)" },
  seed = { 1, "of everything random" },
}

--- A recipe's flags together with those of every recipe.
--- @param spec table
--- @return table
function M.with_flags(spec)
  local out = {}
  for k, v in pairs(M.flags) do out[k] = v end
  for k, v in pairs(spec) do out[k] = v end
  return out
end

--- A file or folder that a recipe needs: the path itself, or its place under data/ of the folder that
--- the environment variable PERILUNE_DATA names (default ../shared). Ends the recipe when there is none.
--- @param path string
--- @param what string  what it should be, for the message
--- @return string path
function M.find(path, what)
  local root = os.getenv "PERILUNE_DATA" or "../shared"
  for _, place in ipairs { path, ("%s/data/%s"):format(root, path) } do
    if peri.files.exists(place) then return place end
  end
  return error(("no %s, and none in %s/data (PERILUNE_DATA); the recipe needs %s"):format(path, root, what), 0)
end

-- May differ between a run and its continuation.
local free = { resume = true, run = true, runs = true, save_every = true }

--- @class perilune.recipe.Run
--- @field folder string
--- @field logger perilune.log.Logger
local Run = {}
Run.__index = Run

local function read_file(path)
  local file = io.open(path, "rb")
  if not file then return nil end
  local text = file:read "a"
  file:close()
  return text
end

local function must(value, message)
  if value == nil or value == false then error("recipe: " .. tostring(message), 0) end
  return value
end

-- What config.json says and the flags of now do not.
local function differences(before, now)
  local list = {}
  for _, name in ipairs(options.names(before)) do
    if not free[name] and before[name] ~= now[name] then
      list[#list + 1] = ("%s was %s, is %s"):format(name, tostring(before[name]), tostring(now[name]))
    end
  end
  return list
end

-- The first of NAME, NAME-2, NAME-3 ... that has no run in it.
local function fresh_folder(root, name)
  local folder, n = root .. "/" .. name, 1
  while read_file(folder .. "/config.json") do
    n = n + 1
    folder = ("%s/%s-%d"):format(root, name, n)
  end
  return folder
end

--- Open a run folder. Options: name, flags (values; run, runs, resume, save_every and seed are used
--- when there), total (steps), keep (2 checkpoints), console, live, every, csv, tensorboard (of the
--- logger: true or false).
--- @param given table
--- @return perilune.recipe.Run
function M.start(given)
  local o = options.fill("recipe.start", given, { name = options.required, flags = {}, total = options.none,
    keep = 2, console = true, live = options.none, every = 1, csv = false, tensorboard = true }, 3)
  local flags = o.flags
  local root = flags.runs or "runs"
  local name = flags.run and flags.run ~= "" and flags.run or o.name
  local folder = flags.resume and root .. "/" .. name or fresh_folder(root, name)
  must(peri.files.make_folder(folder))
  local config = read_file(folder .. "/config.json")
  if config then
    local changed = differences(must(peri.json.decode(config)), flags)
    if #changed > 0 then
      error(("recipe: %s was begun with other flags: %s"):format(folder, table.concat(changed, "; ")), 2)
    end
  else
    local saved = {}
    for k, v in pairs(flags) do if k ~= "resume" then saved[k] = v end end
    must(peri.files.write(folder .. "/config.json", peri.json.encode(saved, { indent = 2 }) .. "\n"))
  end
  if flags.seed then peri.seed(flags.seed) end
  local self = setmetatable({
    folder = folder, total = o.total, save_every = flags.save_every or 0, _keep = o.keep,
    _objects = {}, _order = {}, _options = o, step = 0,
  }, Run)
  return self
end

--- Put an object into the checkpoints: something with state_dict() and load_state_dict() (tensors,
--- or tensors and a plain table), or with state() and set_state() (a plain table).
--- @param name string
--- @param object table
--- @return self
function Run:track(name, object)
  if not (object.state_dict or object.state) then
    error(("track: %s has neither state_dict nor state"):format(name), 2)
  end
  self._objects[name] = object
  self._order[#self._order + 1] = name
  return self
end

local function checkpoints(self) return self.folder .. "/checkpoints" end

local function open_logger(self)
  local o = self._options
  log.truncate_jsonl(self.folder .. "/samples.jsonl", self.step)
  self.logger = log.new {
    total = self.total, console = o.console, live = o.live, every = o.every, resume = self.step,
    jsonl = self.folder .. "/metrics.jsonl", csv = o.csv and self.folder .. "/metrics.csv" or nil,
    tensorboard = o.tensorboard and self.folder or nil,
  }
  self.logger:text(self.step > 0 and "resuming %s after step %d" or "run folder %s", self.folder, self.step)
end

-- The logger, for who writes before the first step.
local function opened(self)
  if self.logger then return end
  if self._options.flags.resume then
    error("recipe: the run resumes: call restore() (or steps()) before anything is written", 3)
  end
  open_logger(self)
end

--- Load the newest checkpoint, if the run resumes and has one. Call it after every track; steps()
--- does when it was not.
--- @return integer step  0 when there is none
function Run:restore()
  if self.logger then return self.step end
  local path = self._options.flags.resume and peri.files.checkpoint.latest(checkpoints(self))
  if path and path ~= "" then
    local state = must(peri.json.decode(must(read_file(path .. "/state.json"), path .. ": no state.json")))
    for _, name in ipairs(self._order) do
      local object, plain = self._objects[name], state.objects[name]
      if object.state_dict then
        local tensors, err = peri.safetensors.load(("%s/%s.safetensors"):format(path, name))
        object:load_state_dict(must(tensors, err), plain)
      else
        object:set_state(plain)
      end
    end
    peri.set_rng_state(state.rng)
    self.step = state.step
  end
  open_logger(self)
  return self.step
end

--- Write a checkpoint of everything tracked.
--- @param step integer
--- @return self
function Run:save(step)
  local writer = must(peri.files.checkpoint.begin(checkpoints(self)))
  local state = { step = step, rng = peri.rng_state(), objects = {} }
  for _, name in ipairs(self._order) do
    local object = self._objects[name]
    if object.state_dict then
      local tensors, plain = object:state_dict()
      must(peri.safetensors.save(("%s/%s.safetensors"):format(writer.path, name), tensors))
      state.objects[name] = plain
    else
      state.objects[name] = object:state()
    end
  end
  must(peri.files.write(writer.path .. "/state.json", peri.json.encode(state)))
  must(writer:commit(("step-%08d"):format(step), self._keep))
  return self
end

--- The steps that are left, each a memory scope: for step in run:steps() do. Saves every save_every
--- steps and after the last, when the turn is over.
function Run:steps()
  local first = self:restore() + 1
  local next_step, state, control, closer = peri.steps(self.total or math.huge, { from = first })
  local last
  return function(s, c)
    if last and self:due(last) then self:save(last) end
    last = next_step(s, c)
    if last then self.step = last end
    return last, self.total
  end, state, control, closer
end

--- Is a checkpoint due after this step?
--- @param step integer
--- @return boolean
function Run:due(step)
  return step == self.total or (self.save_every > 0 and step % self.save_every == 0)
end

--- Metrics of a step to console and files; live: for people only (times, rates).
--- @param step integer
--- @param values table
--- @param live table?
--- @return self
function Run:log(step, values, live)
  opened(self)
  self.logger:step(step, values, live)
  return self
end

--- Something that the model made, to samples.jsonl; shown on the console when show is given.
--- @param step integer
--- @param sample table  text and numbers
--- @param show string?
--- @return self
function Run:sample(step, sample, show)
  opened(self)
  local file, err = io.open(self.folder .. "/samples.jsonl", "ab")
  must(file, err)
  file:write(log.json_line(step, sample))
  file:close()
  if show then self.logger:text("%s", show) end
  return self
end

--- A line of text on the console.
function Run:text(...)
  opened(self)
  self.logger:text(...)
  return self
end

--- The metrics so far as columns: { step = { 1, 2, ... }, loss = { ... }, ... }, NaN where missing.
--- @return table<string, number[]>
function Run:history()
  local rows, columns = {}, { step = {} }
  local file = io.open(self.folder .. "/metrics.jsonl", "rb")
  if not file then return columns end
  for line in file:lines() do
    local row = peri.json.decode(line)
    rows[#rows + 1] = row
    for name in pairs(row) do columns[name] = columns[name] or {} end
  end
  file:close()
  for name, column in pairs(columns) do
    for i, row in ipairs(rows) do
      local v = row[name]
      column[i] = type(v) == "number" and v or 0 / 0
    end
  end
  return columns
end

--- Curves of metrics against the step as one SVG in the run folder.
--- @param name string  file name
--- @param metrics string[]
--- @return string path
function Run:plot(name, metrics)
  local columns, charts = self:history(), {}
  for i, metric in ipairs(metrics) do
    local x, y = {}, {}
    for k, v in ipairs(columns[metric] or {}) do
      if v == v then x[#x + 1], y[#y + 1] = columns.step[k], v end
    end
    charts[i] = { title = metric, xlabel = "step",
      series = { { name = metric, x = x, y = y, smooth = #y > 200 and 0.9 or nil } } }
  end
  must(plot.save(self:path(name), charts))
  return self:path(name)
end

--- Path of a file in the run folder.
--- @param name string
--- @return string
function Run:path(name) return self.folder .. "/" .. name end

--- Close the files.
function Run:finish()
  if self.logger then self.logger:close() end
end

M.Run = Run
return M
