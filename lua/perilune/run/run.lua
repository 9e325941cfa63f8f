-- run.lua - one run and its folder: what is tracked, metrics and samples, the best weights; checkpoint.lua has what
-- checkpoints are. A run that was stopped at any moment and is resumed ends with the same bytes as one that was not:
-- checkpoints hold model, optimizer, generator and data position; metrics and samples after the
-- checkpoint are dropped and made again.

local peri = require "perilune"
local log = require "perilune.run.log"
local options = require "perilune.options"
local phases = require "perilune.phases"
local files = require "perilune.run.log.files"
local folders = require "perilune.run.folder"
local curves = require "perilune.run.curves"
local checkpoint = require "perilune.run.checkpoint"
local loops = require "perilune.run.loop"
local Best = require "perilune.run.best"
local scores = require "perilune.run.scores"
local sessions = require "perilune.run.sessions"

local must = folders.must

--- A run, as recipe.start gives it.
--- @class perilune.recipe.Run
--- @field folder string
--- @field flags table
--- @field total integer?  steps
--- @field step integer  the last one begun; 0 before the first
--- @field saved integer?  step of the newest checkpoint
--- @field stopped string?  why the loop ended before its last step: run:stop's reason, that of early stopping, or
--- that the loop was left by break or return
--- @field logger perilune.log.Logger
local Run = {}
Run.__index = Run

function Run:__tostring()
  return ("run %s, step %d%s"):format(self.folder, self.step, self.total and (" of %d"):format(self.total) or "")
end

-- Of whoever must call before the first step, or before a restore.
local function before_restore(self, what)
  if self.logger then error(("%s: call it before restore(), steps() and the first line of the run"):format(what), 3) end
end

--- Mark the rest of a block as a phase of --profile, beside those that the library marks (rollout, score, forward,
--- backward, optimizer): local phase <close> = run:phase "evaluate". What is marked within it counts for it.
--- @param name string
--- @return table?
function Run:phase(name) -- luacheck: ignore 212
  options.argument("phase", "name", name, "string")
  return phases.open(name)
end

--- Put an object into the checkpoints: something with state_dict() and load_state_dict() (tensors,
--- or tensors and a plain table), or with state() and set_state() (a plain table). Call it before
--- restore() and steps().
--- @param name string  of its file
--- @param object table
--- @return self
function Run:track(name, object)
  before_restore(self, "track")
  if type(name) ~= "string" or not name:find "^[%w_-]+$" then
    error(("track: %s cannot name a file: letters, digits, _ and - are expected"):format(tostring(name)), 2)
  end
  if self._objects[name] ~= nil then error(("track: there is a %q already"):format(name), 2) end
  local ok, fits, back = pcall(function()
    if object.state_dict then return "state_dict", object.load_state_dict end
    return object.state and "state", object.set_state
  end)
  if not (ok and fits) then error(("track: %s has neither state_dict nor state"):format(name), 2) end
  if not back then
    error(("track: %s has %s, but no %s"):format(name, fits, fits == "state" and "set_state" or "load_state_dict"), 2)
  end
  self._objects[name] = object
  self._order[#self._order + 1] = name
  return self
end

--- Keep the weights of the best measurement of a logged metric; load_best() brings them back. They are files
--- best/METRIC/step-STEP/OBJECT.safetensors of the run folder (best/val_loss/step-00000005/net.safetensors), which
--- recipe.best finds from another script. With `patience` the loop ends when that many measurements in a row were no
--- better:
---   run:best("val_loss", { patience = 5, min_delta = 1e-3 })
--- Call it before restore() and steps(). What is not finite is never better. What is kept and when the loop
--- ends are part of the checkpoints; when a run is resumed with a larger budget, patience starts anew. A metric that
--- the loop never logged is warned of at its end.
--- @param metric string  as it is logged
--- @param opts table?
--- @return self
function Run:best(metric, opts)
  before_restore(self, "best")
  local o = options.fill("best", opts, Best.rules, 3)
  if type(metric) ~= "string" then error("best: the metric is a " .. type(metric) .. ", expected its name", 2) end
  for _, other in ipairs(self._bests) do
    if other.metric == metric then error(("best: %q is watched already"):format(metric), 2) end
  end
  self._bests[#self._bests + 1] = Best.new(metric, o, self.folder)
  return self
end
options.declare(Run.best, { "metric" }, Best.rules)

local function best_of(self, metric, level)
  if metric == nil and #self._bests == 1 then return self._bests[1] end
  for _, best in ipairs(self._bests) do if best.metric == metric then return best end end
  local names = {}
  for i, best in ipairs(self._bests) do names[i] = best.metric end
  error(("load_best: %s"):format(#names == 0 and "run:best() was not called" or metric == nil
    and "which of " .. table.concat(names, ", ") .. "?" or options.unknown("metric", metric, names)), level)
end

-- Metrics that were logged, by this process or one before it, sorted.
local function logged(self)
  local columns = self:history()
  columns.step = nil
  return options.names(columns)
end

--- Put the best weights so far into the tracked objects, after the loop or in it. Raises when the metric was never
--- logged or never finite.
--- @param metric string?  needed when several are watched
--- @return integer step  of the measurement
--- @return number value
function Run:load_best(metric)
  local best = best_of(self, metric, 3)
  local missing = best:missing(not best.step and logged(self) or {}, self._live)
  if missing then error("load_best: " .. missing, 2) end
  best:load(self)
  return best.step, best.value
end

--- End the loop after this step, with a checkpoint; what follows the loop goes on. A resumed run stays
--- stopped unless its budget is prolonged.
--- @param reason string?  default "asked to"
--- @return self
function Run:stop(reason)
  self.stopped, self._left = reason or "asked to", nil
  return self
end

--- Have what is logged looked at by alarms: peri.rl.alarms, or anything with look(metrics) -> { { name, message } },
--- total(), state() and set_state(). One that goes off is said in the row, in log.txt and in TensorBoard, and
--- metrics.jsonl has `alarms`, how many there were so far. They are part of the checkpoints. Call it before restore()
--- and steps().
--- @param alarms table
--- @return self
function Run:alarms(alarms)
  before_restore(self, "alarms")
  if self._alarms then error("alarms: there are alarms already", 2) end
  local ok, fits = pcall(function () return alarms.look and alarms.total and true end)
  if not (ok and fits) then error("alarms: expected peri.rl.alarms or an object with look and total", 2) end
  self:track("alarms", alarms)
  self._alarms = alarms
  return self
end

-- Warnings of the library, which the terminal has seen, into the run's log.
local function note_warnings(self)
  for _, line in ipairs(peri.warnings()) do self.logger:note("warning: " .. line) end
end

-- A warning to both.
local function warning(self, line)
  warn(line)
  self.logger:note("warning: " .. line)
end

-- Watched metrics that nobody logged, once.
function Run:_warn_unmeasured()
  if self._warned or self.step == 0 then return end
  self._warned = true
  for _, best in ipairs(self._bests) do
    local missing = not best.step and best:missing(logged(self), self._live)
    if missing then warning(self, "best: " .. missing) end
  end
end

local function announce(self)
  local of = self.total and (" of %d"):format(self.total) or ""
  if not self._resumed then return self.logger:text("run folder %s", self.folder) end
  local which = self._count > 1 and (" (the newest of %d runs of that name)"):format(self._count) or ""
  self.logger:text("resuming %s after step %d%s%s", self.folder, self.step, of, which)
  local longer = self._budget and ("%s --%s N"):format(loops.command(self), self._budget)
    or loops.command(self) .. " with a larger total"
  if self.total and self.step >= self.total then
    self.logger:text("%s is finished; prolong it, beyond %d steps, with: %s", self.folder, self.step, longer)
  elseif self.stopped then
    self.logger:text("%s is finished: it stopped after step %d: %s; prolong it with: %s", self.folder, self.step,
      self.stopped, longer)
  end
end

-- Flags that say what is learnt, for TensorBoard.
local function hparams(self)
  local out = {}
  for name, v in pairs(self.flags) do if not self._unlearnt[name] then out[name] = v end end
  return out
end

local function open_logger(self)
  local o = self._options
  if self._early then self._early:close() end
  self._early = nil
  files.truncate_jsonl(self.folder .. "/samples.jsonl", self.step)
  self.logger = log.new {
    total = self.total, console = o.console, live = o.live, every = o.every, width = o.width, columns = o.columns,
    resume = self.step, jsonl = self.folder .. "/metrics.jsonl", csv = o.csv and self.folder .. "/metrics.csv" or nil,
    tensorboard = o.tensorboard and self.folder or nil, text = self.folder .. "/log.txt",
  }
  note_warnings(self)
  sessions.begin(self.folder, self.step, self.total, self._resumed == true)
  announce(self)
  self.logger:hparams(hparams(self), o.columns or {})
  self._skipped = self:skipped()
  if self.flags.profile then
    phases.start()
    self._profiled = true
  end
end

local step_rule = options.integer(nil, "[0, inf)")

-- Whether something of a step is to be written, of which a run is told; raises where it cannot be. What stands between
-- restore() and the loop is in the files of a resumed run already, when it is of a step that the run has behind it.
local function takes(self, who, step)
  local problem = options.problem("step", step, step_rule)
  if problem then options.raise(("%s: %s"):format(who, problem)) end
  if not self.logger then
    options.raise(who .. ": the files of the run are not open yet: call it in the loop of run:steps(), or after "
      .. "run:restore()")
  end
  if not self._lock then options.raise(who .. ": the run is closed: call it before run:finish()") end
  if self._turn and step ~= self._turn then
    options.raise(("%s: step is %d, but the loop is at step %d"):format(who, step, self._turn))
  end
  return not (self._resumed and not self._begun and step <= self.step)
end

--- Load the newest checkpoint, if the run resumes. Call it after every track() and best(); steps()
--- does when it was not.
--- @return integer step  0 when the run is new
function Run:restore()
  if self.logger then return self.step end
  if self._resumed then
    checkpoint.load(self)
    if self._config_name then folders.save_config(self.folder, self.flags, self._config_name) end
  end
  open_logger(self)
  return self.step
end

--- Write a checkpoint of everything tracked.
--- @param step integer
--- @return self
function Run:save(step)
  checkpoint.save(self, step)
  return self
end

--- The steps that are left, each a memory scope: for step, total in run:steps() do.
--- A checkpoint is written every save_every steps, after the last, after Ctrl-C (which waits for the end of
--- the step; a second one does not), after break and return (the turn counts: break at its end), and after
--- run:stop() and early stopping. An error writes none and says which is the last.
function Run:steps() return loops.steps(self) end

--- Is a checkpoint due after this step?
--- @param step integer
--- @return boolean
function Run:due(step)
  return step == self.total or (self.save_every > 0 and step % self.save_every == 0)
end

-- A field of a tracked object; nil of one that refuses names that it does not know.
local function field(object, name)
  local ok, v = pcall(function() return object[name] end)
  return ok and v or nil
end

--- Steps that the tracked optimizers have left out because the gradients' norm was not finite.
--- @return integer
function Run:skipped()
  local count, counted = 0, {}
  for _, object in pairs(self._objects) do
    local opt = type(object) == "table" and (type(field(object, "skipped")) == "number" and object
      or field(object, "optimizer"))
    local skipped = type(opt) == "table" and field(opt, "skipped")
    if type(skipped) == "number" and not counted[opt] then counted[opt], count = true, count + skipped end
  end
  return count
end

--- Metrics of a step to console and files, such as those that a stepper returns; live: for people only (times,
--- rates). A step that an optimizer skipped is said in the row, in the bar, and as `skipped` (how many so far) in
--- the files. In the loop the step is the loop's; elsewhere it may not go back. Several calls of one step make one
--- line of the files, each metric with one value. Before restore() and steps() it raises; between restore() and
--- steps() a resumed run, which has logged a step already, does not log it again.
--- @param step integer
--- @param values table<string, number|string|boolean|perilune.Tensor>
--- @param live table?
--- @return self
function Run:log(step, values, live)
  local row = log.plain(values, nil, step)
  live = log.plain(live or {})
  if not takes(self, "log", step) then return self end
  for name in pairs(live) do self._live[name] = true end
  local skipped, remark, standing = self:skipped(), nil, nil
  local more = skipped - self._skipped
  if skipped > 0 then standing = ("%d skipped"):format(skipped) end
  if more > 0 then
    row.skipped = skipped
    remark = more == 1 and "step skipped: gradients not finite"
      or ("%d steps skipped: gradients not finite"):format(more)
  end
  self._skipped = skipped
  local fired = self._alarms and self._alarms:look(row) or {}
  local total = self._alarms and self._alarms:total() or 0
  for _, alarm in ipairs(fired) do
    local text = ("ALARM %s: %s"):format(alarm.name, alarm.message)
    remark = remark and remark .. "; " .. text or text
  end
  if total > 0 then
    if self._counted ~= step then row.alarms = total end -- once a step, however many calls
    self._counted = step
    standing = (standing and standing .. ", " or "") .. ("%d alarm%s"):format(total, total == 1 and "" or "s")
  end
  self.logger:step(step, row, live, remark, standing)
  if remark then self.logger:note(("step %d: %s"):format(step, remark)) end
  for _, alarm in ipairs(fired) do
    self.logger:markdown(step, "alarms/" .. alarm.name, alarm.message)
  end
  for _, best in ipairs(self._bests) do
    if row[best.metric] ~= nil then
      local reason = best:observe(self, step, row[best.metric])
      if reason then self:stop(reason) end
    end
  end
  note_warnings(self)
  return self
end

local function markdown(sample)
  local lines = {}
  for _, name in ipairs(options.names(sample)) do
    local v = sample[name]
    local text = type(v) == "table" and peri.json.encode(v) or tostring(v)
    lines[#lines + 1] = ("**%s**\n\n    %s\n"):format(name, (text:gsub("\n", "\n    ")))
  end
  return table.concat(lines, "\n")
end

--- Something that the model made, to samples.jsonl and TensorBoard's text; shown on the console when show is
--- given. When it may be called is as for log, but a step may have several.
--- @param step integer
--- @param sample table  text and numbers, or lists of them
--- @param show string?
--- @return self
function Run:sample(step, sample, show)
  options.argument("sample", "sample", sample, "table")
  local plain, lists = {}, {}
  for name, v in pairs(sample) do (type(v) == "table" and lists or plain)[name] = v end
  plain = log.plain(plain, "sample")
  for name, v in pairs(lists) do
    local ok, text, why = pcall(peri.json.encode, v)
    if not ok or not text or type(name) ~= "string" or name == "step" then
      options.raise(("sample: %s cannot be written: %s"):format(tostring(name),
        checkpoint.message_of(not ok and text or why or "it has no name")))
    end
    plain[name] = v
  end
  sample = plain
  if not takes(self, "sample", step) then return self end
  must(peri.files.append(self.folder .. "/samples.jsonl", log.json_line(step, sample)))
  self.logger:markdown(step, "samples", markdown(sample))
  if show then self.logger:text("%s", show) end
  return self
end

--- Distributions for TensorBoard: run:histogram(step, { ["grad/fc1"] = net[1].weight.grad }). Values that are
--- not finite are counted in a warning. When it may be called is as for log.
--- @param step integer
--- @param tensors table<string, perilune.Tensor|number[]>
--- @return self
function Run:histogram(step, tensors)
  options.argument("histogram", "the table of tensors", tensors, "table")
  for name in pairs(tensors) do
    if type(name) ~= "string" then
      options.raise(("histogram: one is called %s, expected a string: { name = tensor }"):format(tostring(name)))
    end
  end
  if not takes(self, "histogram", step) then return self end
  for _, name in ipairs(options.names(tensors)) do
    local left_out = self.logger:histogram(step, name, tensors[name])
    if left_out > 0 then
      warning(self, ("histogram %s, step %d: %d values are not finite and in no bucket"):format(name, step, left_out))
    end
  end
  return self
end

--- A line of text on the console and in log.txt, at any time.
--- @param format string  as string.format when more arguments follow
--- @return self
function Run:text(format, ...)
  options.argument("text", "format", format, "string")
  if not self.logger and not self._early then
    local o = self._options
    self._early = log.new { console = o.console, live = o.live, width = o.width, text = self.folder .. "/log.txt" }
  end
  local logger = self.logger or self._early
  logger:text(format, ...)
  return self
end

--- Store what each seed scored, more being better, under a name: a line of scores.jsonl in the run folder, in place
--- of an earlier one of that name; and get the line that says it. perilune sweep and perilune compare judge a run by
--- the first name that it stored.
---   run:text("greedy %s", run:scores("greedy", play())) -- greedy IQM 498.3 [490.1, 500.0] over 10 seeds
--- Call it before finish().
--- @param name string
--- @param list number|number[]|number[][]|perilune.Tensor  of one seed, (seeds), or (tasks, seeds)
--- @param digits integer?  behind the point; default: four significant ones
--- @return string text  of rl.report
function Run:scores(name, list, digits)
  list = scores.plain("scores", name, list)
  if not self._lock then options.raise "scores: the run is closed: call it before run:finish()" end
  local text = peri.rl.report(list, { digits = digits })
  scores.write(self.folder, name, list, self.step)
  return text
end

--- The metrics so far as columns: { step = { 1, 2, ... }, loss = { ... }, ... }, NaN where missing.
--- @return table<string, number[]>
function Run:history() return (curves.columns(self:path "metrics.jsonl")) end

--- The last logged value of a metric, whether this process or one before it logged it.
--- @param metric string
--- @return number? value  nil when there is none
--- @return integer? step
function Run:last(metric)
  local columns = self:history()
  for i = #columns.step, 1, -1 do
    local v = columns[metric] and columns[metric][i]
    if v == v and v ~= nil then return v, math.tointeger(columns.step[i]) end
  end
end

--- Curves of metrics against the step as one SVG in the run folder. Each entry is a chart: a metric, or a
--- list of metrics that share axes, such as { "loss", "val_loss", ylabel = "nats a token" }, with title,
--- xlabel ("step"), ylabel, yscale ("linear" or "log"), ymin, ymax and by (a metric that is a text, as "stage": a curve
--- for each of its values). Noisy curves have a smoothed one drawn over them. A metric that was never logged raises,
--- unless `columns` of recipe.start names it: it may come later, and the log says that its chart has no curve.
---   run:plot("curves.svg", { { "loss", "val_loss" }, "lr" })
--- @param name string  file name
--- @param metrics (string|table)[]
--- @return string path
function Run:plot(name, metrics)
  options.argument("plot", "name", name, "string")
  local may_come = table.move(self._judged, 1, #self._judged, 2, { "skipped" })
  local columns, texts = curves.columns(self:path "metrics.jsonl")
  local charts, missing = curves.charts(columns, metrics, may_come, texts)
  for _, metric in ipairs(missing) do
    if metric ~= "skipped" and not self._unplotted[metric] then
      self:text("%s: %q was never logged, so it has no curve", name, metric)
      self._unplotted[metric] = true
    end
  end
  curves.save(self:path(name), charts)
  return self:path(name)
end

--- Path of a file in the run folder.
--- @param name string
--- @return string
function Run:path(name) return self.folder .. "/" .. name end

-- Columns that the command line asked for and no row had.
local function say_unseen(self)
  local console = self.logger.console
  if not console or (self.flags.columns or "") == "" then return end
  for _, name in ipairs(console:unseen()) do
    self.logger:text("--columns: no row had %q; there were: %s", name, table.concat(console.names, ", "))
  end
end

--- Close the files and let others write the run.
--- @param ok boolean?  false: it did not end as it should, for TensorBoard and reports; default true
--- @param why string?  it did not
function Run:finish(ok, why)
  if self._early then self._early:close() end
  self._early = nil
  if self.logger then
    if ok ~= false and self._lock then self:_warn_unmeasured() end
    if self._profiled then self.logger:text("%s", phases.report()) end
    self._profiled = nil
    note_warnings(self)
    say_unseen(self)
    if self._lock then sessions.finish(self.folder, self.step, ok ~= false, why or self.stopped) end
    self.logger:close(ok)
  end
  if self._lock then self._lock:drop() end
  self._lock = nil
end

return Run
