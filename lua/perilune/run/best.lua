-- best.lua - the best measurement of a metric so far: its weights are kept in the run folder, and a loop
-- that has seen no better one for a while may end. All of it is in the checkpoints, so a resumed run
-- keeps and stops as an unbroken one does.

local peri = require "perilune"
local options = require "perilune.options"
local optim = require "perilune.optim"
local must = require("perilune.run.folder").must

local Best = {}
Best.__index = Best

Best.rules = {
  mode = options.choice("min", { "min", "max" }, "which values are better"),
  min_delta = options.number(0, "[0, inf)", "a better value is better by more than this"),
  patience = options.integer(options.none, "[1, inf)",
    "measurements in a row without a better one after which the loop ends; default: it goes on"),
  objects = options.value(options.none, "table",
    "names of the tracked objects to keep; default: all with weights but optimizers"),
}

-- Where the weights of a metric's best measurements are kept.
local function folder_of(folder, metric) return ("%s/best/%s"):format(folder, metric:gsub("[^%w._-]", "_")) end

--- @param metric string
--- @param o table  options
--- @param folder string  of the run
function Best.new(metric, o, folder)
  return setmetatable({ metric = metric, options = o, dir = folder_of(folder, metric), bad = 0 }, Best)
end

--- Where a run folder keeps the best weights of a metric: { path, step, value, metric }, or nil and a message.
--- @param folder string
--- @param metric string?
--- @return table?
--- @return string?
function Best.find(folder, metric)
  local root = folder .. "/best"
  local names = peri.files.exists(root) == "folder" and must(peri.files.list(root)) or {}
  if #names == 0 then return nil, folder .. ": no best weights are kept there" end
  if metric == nil and #names > 1 then
    return nil, ("%s: which of %s?"):format(root, table.concat(names, ", "))
  end
  local dir = metric and folder_of(folder, metric) or ("%s/%s"):format(root, names[1])
  if peri.files.exists(dir) ~= "folder" then
    return nil, ("%s: %s"):format(root, options.unknown("metric", metric, names))
  end
  local path, message = peri.files.checkpoint.latest(dir)
  if not path or path == "" then return nil, message or dir .. ": nothing whole is kept there" end
  local text, why = peri.files.read(path .. "/best.json")
  if not text then return nil, why end
  local found = peri.json.decode(text)
  if type(found) ~= "table" then return nil, path .. "/best.json: is damaged" end
  return { path = path, step = found.step, value = found.value, metric = found.metric }
end

function Best:state() return { value = self.value, step = self.step, bad = self.bad, since = self.since } end

function Best:set_state(s) self.value, self.step, self.bad, self.since = s.value, s.step, s.bad, s.since end

--- The run is prolonged after a step: patience starts anew there.
--- @param step integer
function Best:prolong(step)
  if self.bad > 0 then self.bad, self.since = 0, step end
end

--- Why no weights are kept; nil when some are.
--- @param logged string[]  names of metrics
--- @param live table<string, boolean>  names of those that are for people only
--- @return string?
function Best:missing(logged, live)
  if self.step then return nil end
  local name = ("%q"):format(self.metric)
  for _, other in ipairs(logged) do
    if other == self.metric then return name .. " was never finite, so no weights are kept" end
  end
  if live[self.metric] then
    return name .. " was logged among the values for people only, so no weights are kept: log it among the metrics"
  end
  local near = options.nearest(self.metric, logged)
  return ("%s was never logged, so no weights are kept; logged: %s%s"):format(name,
    #logged > 0 and table.concat(logged, ", ") or "nothing", near and ("; did you mean %q?"):format(near) or "")
end

local function path_of(self, step) return ("%s/step-%08d"):format(self.dir, step) end

-- Steps of the kept weights, sorted.
local function kept(self)
  local list = {}
  for _, name in ipairs(peri.files.exists(self.dir) == "folder" and must(peri.files.list(self.dir)) or {}) do
    local step = name:match "^step%-(%d+)$"
    if step then list[#list + 1] = math.tointeger(tonumber(step)) end
  end
  return list
end

-- Tracked objects whose weights are kept.
local function chosen(self, run)
  local names = self.options.objects or run._order
  local list = {}
  for _, name in ipairs(names) do
    local object = run._objects[name]
    if object == nil then error(("best: %q is not tracked"):format(name), 0) end
    local weights = object.state_dict and getmetatable(object) ~= optim.Optimizer
    if weights then list[#list + 1] = { name, object }
    elseif self.options.objects then error(("best: %q has no state_dict of weights"):format(name), 0) end
  end
  return list
end

local function save(self, run)
  local writer <close> = must(peri.files.checkpoint.begin(self.dir))
  for _, entry in ipairs(chosen(self, run)) do
    local tensors = entry[2]:state_dict()
    must(peri.safetensors.save(("%s/%s.safetensors"):format(writer.path, entry[1]), tensors))
  end
  must(peri.files.write(writer.path .. "/best.json", peri.json.encode {
    metric = self.metric, step = self.step, value = self.value }))
  must(writer:commit(("step-%08d"):format(self.step)))
end

--- Look at a logged value; true when the loop has waited long enough.
--- @param run perilune.recipe.Run
--- @param step integer
--- @param value number
--- @return string? reason  why the loop ends
function Best:observe(run, step, value)
  if type(value) ~= "number" then
    error(("best: %s is a %s, expected a number"):format(self.metric, type(value)), 0)
  end
  local o, best = self.options, self.value
  local finite = value == value and math.abs(value) < math.huge
  local better = finite and (best == nil or o.mode == "min" and value < best - o.min_delta
    or o.mode == "max" and value > best + o.min_delta)
  if better then
    self.value, self.step, self.bad, self.since = value, step, 0, nil
    save(self, run)
    return nil
  end
  self.bad = self.bad + 1
  if not o.patience or self.bad < o.patience then return nil end
  local so_far = self.value and ("best %.6g at step %d"):format(self.value, self.step) or "it was never finite"
  local since = self.since and (" since the run was prolonged after step %d"):format(self.since) or ""
  return ("%s has not improved in %d measurements%s (%s)"):format(self.metric, self.bad, since, so_far)
end

--- A checkpoint is written: weights that no checkpoint needs any more go. Those of the last two stay,
--- since a damaged one is passed over.
function Best:prune()
  local needed = self.before or self.step
  self.before = self.step
  for _, step in ipairs(needed and kept(self) or {}) do
    if step < needed then must(peri.files.remove_tree(path_of(self, step))) end
  end
end

--- The run goes on from a checkpoint: weights from a later time, which it will see again, go.
function Best:rewind(step)
  self.before = self.step
  for _, at in ipairs(kept(self)) do
    if at > step then must(peri.files.remove_tree(path_of(self, at))) end
  end
end

--- Put the kept weights into the tracked objects.
--- @param run perilune.recipe.Run
function Best:load(run)
  local path = path_of(self, self.step)
  must(peri.files.checkpoint.verify(path))
  for _, entry in ipairs(chosen(self, run)) do
    local tensors = must(peri.safetensors.load(("%s/%s.safetensors"):format(path, entry[1])))
    local _, plain = entry[2]:state_dict()
    entry[2]:load_state_dict(tensors, plain)
  end
end

return Best
