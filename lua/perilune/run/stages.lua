-- stages.lua - a run that does one thing after another: each stage takes a model that was made before, trains it by a
-- stepper of its own and leaves it with its scores in a folder, where the next one finds it. A checkpoint holds the
-- objects of the stage that the run is in, so that it goes on in the middle of one as if it had not stopped.
--   local stages = recipe.stages({
--     { "cold", from = "base", steps = 50,
--       begin = function (model, rng) return algo.sft.new { model = model, optimizer = ..., examples = ... } end },
--     { "rl", from = "cold", steps = 200, begin = ... },
--   }, { seed = 1, measure = function (model) return { accuracy = accuracy_of(model) } end })
--   local run = recipe.start { name = "demo", flags = cfg, total = stages.total }
--   run:track("stages", stages:place(run:path "models"))
--   stages:keep("base", base)
--   for step in run:steps() do run:log(step, stages:step()) end
--   run:text("%s", stages:table { "accuracy" })
local peri = require "perilune"
local models = require "perilune.models"
local options = require "perilune.options"
local folders = require "perilune.run.folder"

local must = folders.must

local Stages = {}
Stages.__index = Stages

local M = {}

local function fail(format, ...) options.raise("recipe.stages: " .. format:format(...)) end

-- How an object is saved, and the method that puts it back.
local function kept(object)
  local ok, save, load = pcall(function ()
    if object.state_dict then return "state_dict", object.load_state_dict end
    return object.state and "state", object.set_state
  end)
  return ok and save or nil, load
end

local fields = { [1] = "string", steps = "number", begin = "callable", from = "string or nil" }

local function check(stage, i, seen)
  local name = type(stage) == "table" and stage[1]
  if type(name) ~= "string" or not name:find "^[%w_-]+$" or seen[name] then
    fail("stage %d has no name of its own, letters, digits, _ and -", i)
  end
  seen[name] = true
  for key in pairs(stage) do
    if not fields[key] then fail("%s: %s", name, options.unknown("field", key, { "begin", "from", "steps" })) end
  end
  for key, kind in pairs(fields) do options.argument("recipe.stages: " .. name, tostring(key), stage[key], kind) end
  if math.type(stage.steps) ~= "integer" or stage.steps < 1 then
    fail("%s: %s, expected an integer from 1", name, options.is("steps", stage.steps))
  end
end

local rules = {
  seed = options.integer(1, nil, "each stage has its own generator by it and its place in the list"),
  measure = options.value(options.required, "callable", "measure(model, name, stepper) -> scores, a table of numbers, "
    .. "or nil; stepper: of a stage its own"),
  only = options.value("", "string", "name of the one stage that is done; empty: all"),
  watch = options.value(options.none, "callable", "watch(model, name) -> more metrics of a step: of the first and the "
    .. "last of a stage and of some between them"),
  every = options.integer(options.none, "[1, inf)", "steps of a stage between two of these; default: 10"),
}

--- Stages, one behind the other, as one object that a run tracks. A stage is { name, from = the name of one before,
--- steps = n, begin = function (model, rng) -> stepper, more? }. begin gets the model that `from` left and a generator,
--- and makes the stepper of the stage, as those of peri.algo are: with :step() -> metrics, model and optimizer; `more`
--- names other objects of it that have a state, as run:track asks for it. It is called again when a run goes on in the
--- middle of its stage, before the states are put back: what it reads must still be there. Behind the last step the
--- stepper's model is saved as FOLDER/NAME with its scores in scores.json. A stage alone (only) ends as it does among
--- all.
--- @param list table[]
--- @param opts table
--- @return table stages  total (steps of all of them); :place(folder), :step(), :keep(name, model), :at(name),
--- :table(columns); state_dict, load_state_dict
function M.stages(list, opts)
  local o = options.fill("recipe.stages", opts, rules)
  options.argument("recipe.stages", "list", list, "table")
  if o.every and not o.watch then fail("every is %d, and there is no watch", o.every) end
  local self = setmetatable({ list = {}, names = {}, measure = o.measure, watch = o.watch, every = o.every or 10,
    index = 1, done = 0, total = 0 }, Stages)
  local seen = {}
  for i, stage in ipairs(list) do
    check(stage, i, seen)
    self.names[i] = stage[1]
    if o.only == "" or o.only == stage[1] then
      self.list[#self.list + 1] = { name = stage[1], from = stage.from, steps = stage.steps, begin = stage.begin,
        seed = 1000 * o.seed + i }
      self.total = self.total + stage.steps
    end
  end
  if #self.list == 0 then fail("%s", options.unknown("stage", o.only, self.names)) end
  return self
end
options.declare(M.stages, { "list" }, rules)

--- Where the stages leave their models.
--- @param folder string
--- @return self
function Stages:place(folder)
  options.argument("stages:place", "folder", folder, "string")
  self.folder = folder
  return self
end

--- The folder of a stage's model.
--- @param name string
--- @return string
function Stages:at(name)
  if not self.folder then options.raise "stages: call place(folder) first" end
  return ("%s/%s"):format(self.folder, name)
end

--- Measure a model and save it with its scores, as a stage does at its end; what stages begin from.
--- @param name string
--- @param model table  with save(folder)
--- @param stepper table?  of the stage
function Stages:keep(name, model, stepper)
  local scores = self.measure(model, name, stepper) or {}
  must(model:save(self:at(name)))
  must(peri.files.write(self:at(name) .. "/scores.json", peri.json.encode(scores, { indent = 2 }) .. "\n"))
  for _, known in ipairs(self.names) do if known == name then return end end
  table.insert(self.names, 1, name)
end

-- The objects of the stage that the next step is of.
local function parts_of(self)
  if self.parts then return self.parts end
  local stage = self.list[self.index]
  peri.seed(stage.seed)
  local model = stage.from and must(models.load(self:at(stage.from)))
  local stepper, more = stage.begin(model, peri.rng(stage.seed))
  if type(stepper) ~= "table" or type(stepper.step) ~= "function" or not stepper.model or not stepper.optimizer then
    fail("%s: begin returned no stepper, something with :step(), model and optimizer", stage.name)
  end
  local parts = { model = stepper.model, optimizer = stepper.optimizer, stepper = stepper }
  for name, object in pairs(more or {}) do
    if parts[name] then fail("%s: the stepper has a %s, begin named another one", stage.name, name) end
    parts[name] = object
  end
  for _, name in ipairs(options.names(parts)) do
    local saves, loads = kept(parts[name])
    if name:find "%." or not saves or not loads then
      fail("%s: %s has no state: expected state_dict and load_state_dict, or state and set_state", stage.name, name)
    end
  end
  self.parts, self.optimizer = parts, parts.optimizer -- where a run looks for steps that were skipped
  return parts
end

--- One step of the stage that is going on; behind its last one the stage is finished and the next one comes.
--- @return table metrics  of the stepper but for its step; those of watch; and stage, its name
function Stages:step()
  local stage = self.list[self.index]
  if not stage then fail("all of the %d steps are done", self.total) end
  local parts = parts_of(self)
  local metrics = parts.stepper:step()
  metrics.step, metrics.stage = nil, stage.name -- the run has a count of its own
  self.done = self.done + 1
  if self.watch and (self.done == 1 or self.done % self.every == 0 or self.done == stage.steps) then
    for key, value in pairs(self.watch(parts.model, stage.name) or {}) do metrics[key] = value end
  end
  if self.done == stage.steps then
    self:keep(stage.name, parts.model, parts.stepper)
    self.index, self.done, self.parts, self.optimizer = self.index + 1, 0, nil, nil
  end
  return metrics
end

--- The scores of models side by side: of what was kept before the stages, then of the stages that there are.
--- @param columns string[]  of scores
--- @return string  a line for each
function Stages:table(columns)
  local first = #"stage"
  for _, name in ipairs(self.names) do first = math.max(first, #name) end
  local function line(name, cell)
    local cells = {}
    for k, column in ipairs(columns) do cells[k] = (" %" .. math.max(#column, 5) .. "s"):format(cell(column)) end
    return ("%-" .. first .. "s%s"):format(name, table.concat(cells))
  end
  local lines = { line("stage", function (column) return column end) }
  for _, name in ipairs(self.names) do
    local path = self:at(name) .. "/scores.json"
    if peri.files.exists(path) then
      local scores = must(peri.json.decode(must(peri.files.read(path))))
      lines[#lines + 1] = line(name, function (column)
        return scores[column] and ("%.3f"):format(scores[column]):sub(1, 5) or "-"
      end)
    end
  end
  return table.concat(lines, "\n")
end

--- Everything of the stage that is going on; nothing when its first step is yet to come.
--- @return table<string, perilune.Tensor> tensors
--- @return table plain
function Stages:state_dict()
  local tensors, plain = {}, { index = self.index, done = self.done, parts = {} }
  for name, object in pairs(self.parts or {}) do
    if kept(object) == "state" then plain.parts[name] = object:state()
    else
      local own, more = object:state_dict()
      for key, tensor in pairs(own) do tensors[name .. "." .. key] = tensor end
      plain.parts[name] = more
    end
  end
  return tensors, plain
end

--- Go on from state_dict() of the same stages.
--- @param tensors table<string, perilune.Tensor>
--- @param plain table
--- @return self
function Stages:load_state_dict(tensors, plain)
  local index, done = math.tointeger(plain.index), math.tointeger(plain.done)
  local stage = index and self.list[index]
  if not done or done < 0 or not (stage and done < stage.steps or index == #self.list + 1 and done == 0) then
    fail("the state is of step %s of stage %s, there are %d stages", tostring(plain.done), tostring(plain.index),
      #self.list)
  end
  self.index, self.done, self.parts = index, done, nil
  if done == 0 then return self end
  local own = {}
  for key, tensor in pairs(tensors) do
    local name, rest = key:match "^([^.]+)%.(.*)$"
    own[name] = own[name] or {}
    own[name][rest] = tensor
  end
  for name, object in pairs(parts_of(self)) do
    if kept(object) == "state" then object:set_state(plain.parts[name])
    else object:load_state_dict(own[name] or {}, plain.parts[name]) end
  end
  return self
end

return M
