-- log.lua - what a run says while it runs: a table on the console with a live progress bar when that is a
-- terminal, JSON Lines, CSV and TensorBoard events in files.
--   local logger = log.new { total = 1000, jsonl = "metrics.jsonl" }
--   logger:step(step, { loss = 1.2, reward = 0.4 }, { tok_s = 5000 })
-- The second table is for people: it goes to console and TensorBoard only, so that the files of two
-- runs with the same seed are equal byte for byte.

local peri = require "perilune"
local options = require "perilune.options"
local numbers = require "perilune.run.log.numbers"
local files = require "perilune.run.log.files"
local events = require "perilune.run.log.events"
local Console = require "perilune.run.log.console"

local M = {}

M.format, M.duration, M.short_name = numbers.format, numbers.duration, numbers.short_name
M.truncate_jsonl, M.json_line = files.truncate_jsonl, files.json_line

--- @class perilune.log.Logger
local Logger = {}
Logger.__index = Logger

local rules = {
  total = options.integer(options.none, "[0, inf)", "steps, for the bar"),
  console = options.boolean(true, "rows for people on standard output"),
  every = options.integer(1, "[1, inf)", "steps between two rows on the console"),
  columns = options.value(options.none, "table", "names of the metrics that come first in a row"),
  live = options.boolean(options.none, "with a progress bar; default: when standard output is a terminal"),
  width = options.integer(options.none, "[1, inf)", "of a row; default: COLUMNS, the terminal's, 80"),
  out = options.value(options.none, "any", "a file, or a table with write and flush, in place of io.stdout"),
  jsonl = options.value(options.none, "string", "path of a file with a JSON object a step"),
  csv = options.value(options.none, "string", "path of a table of all metrics"),
  text = options.value(options.none, "string", "path of a file with the lines of text and their times"),
  tensorboard = options.value(options.none, "string", "folder of an event file"),
  resume = options.integer(options.none, "[0, inf)", "a step: what the files say of later ones is dropped"),
}

--- A logger. Files that cannot be written are errors that name them, here and at every step.
--- @param given table?
--- @return perilune.log.Logger
function M.new(given)
  local o = options.fill("log.new", given, rules, 3)
  for _, name in pairs(o.columns or {}) do
    if type(name) ~= "string" then
      options.raise(("log.new: columns has a %s, expected names of metrics"):format(type(name)))
    end
  end
  local self = setmetatable({ sinks = {}, text_path = o.text }, Logger)
  if o.resume then
    if o.jsonl then files.truncate_jsonl(o.jsonl, o.resume) end
    if o.csv then files.truncate_csv(o.csv, o.resume) end
  end
  if o.jsonl then self.sinks[#self.sinks + 1] = files.jsonl(o.jsonl) end
  if o.csv then self.sinks[#self.sinks + 1] = files.csv(o.csv) end
  if o.tensorboard then self.events = events.open(o.tensorboard, o.resume) end
  if o.console then self.console = Console.new(o) end
  return self
end
options.declare(M.new, {}, rules)

local kinds = { number = true, string = true, boolean = true }

-- What is wrong with a metric; nil when nothing is. Names are heads of columns, keys of JSON, tags of TensorBoard.
local function problem(name, value)
  if type(name) ~= "string" then return ("%s is no name of a metric, expected text"):format(tostring(name)) end
  if name == "step" then return "step is the number of the row and here another one; give the metric another name" end
  if name == "" or #name > 1024 or name:find "%c" or not utf8.len(name) then
    return ("%q cannot name a metric: 1 to 1024 bytes of UTF-8 without control characters are expected"):format(name)
  end
  if peri.is_tensor(value) then
    if value:numel() == 1 then return nil end
    return ("%s is a tensor of shape %s, expected one element"):format(name, options.shape(value))
  end
  if kinds[type(value)] then return nil end
  return ("%s is a %s, expected a number, text, a boolean or a tensor of one element"):format(name, type(value))
end

--- Metrics as numbers, texts and booleans, or an error of the caller that names the one that is none; nothing was
--- written then.
--- @param values table<string, number|string|boolean|perilune.Tensor>
--- @param who string?  function named in the message; default "log"
--- @param step integer?  of the row: a metric `step` that says the same, as those of steppers do, is left out
--- @return table<string, number|string|boolean>
function M.plain(values, who, step)
  options.argument(who or "log", "the table of metrics", values, "table")
  local out = {}
  for k, v in pairs(values) do
    local wrong = not (k == "step" and step ~= nil and v == step) and problem(k, v)
    if wrong then options.raise(("%s: %s"):format(who or "log", wrong)) end
    if k ~= "step" then out[k] = peri.is_tensor(v) and v:item() or v end
  end
  return out
end

-- Steps come in order, and a metric has one value a step. Names of this step so far.
local function begin_step(self, step, values)
  if math.tointeger(step) == nil then options.raise("log: " .. options.is("step", step) .. ", expected an integer") end
  if self.at and step < self.at then
    options.raise(("log: step %d comes after step %d, which is logged already"):format(step, self.at))
  end
  local names = step == self.at and self.names or {}
  for _, name in ipairs(options.names(values)) do
    if names[name] then options.raise(("log: %s of step %d is logged already"):format(name, step)) end
  end
  for name in pairs(values) do names[name] = true end
  self.at, self.names = step, names
end

--- One step everywhere: a row on the console when one is due, a line in each file. Steps may not go back. What is
--- logged of a step in several calls is one line of the files; a metric has one value a step. A row of a stepper may
--- be given as it is.
--- @param step integer
--- @param values table<string, number|string|boolean|perilune.Tensor>
--- @param live table?  values for people only: times, rates
--- @param remark string?  of this step alone; its row is printed whatever `every` is
--- @param standing string?  what the bar says from now on
function Logger:step(step, values, live, remark, standing)
  values, live = M.plain(values, nil, step), M.plain(live or {})
  begin_step(self, step, values)
  for _, sink in ipairs(self.sinks) do sink.step(step, values) end
  if self.events then self.events:step(step, values, live) end
  if self.console then self.console:step(step, values, live, remark, standing) end
end

--- A line of text on the console, above the progress bar, and in the file of text.
--- @param format string  as string.format when more arguments follow
function Logger:text(format, ...)
  local line = select("#", ...) > 0 and format:format(...) or format
  line = line:gsub("%f[%-%w]%-nan%f[%W]", "nan") -- C shows the sign of a NaN, which means nothing
  self:note(line)
  if self.console then self.console:write(line) end
end

--- A line in the file of text only.
--- @param line string
function Logger:note(line)
  if self.text_path then
    files.must(peri.files.append(self.text_path, ("%s  %s\n"):format(os.date "%Y-%m-%d %H:%M:%S", line)))
  end
end

--- Text for TensorBoard's tab of that name.
--- @param step integer
--- @param tag string
--- @param text string  Markdown
function Logger:markdown(step, tag, text)
  if self.events then self.events:summary(step, events.text(tag, text)) end
end

--- The distribution of a tensor's values, for TensorBoard.
--- @param step integer
--- @param tag string
--- @param values perilune.Tensor|number[]
--- @return integer left_out  values that are not finite, which no bucket holds
function Logger:histogram(step, tag, values)
  if not peri.is_tensor(values) then
    local numbers_only = type(values) == "table"
    for _, v in ipairs(numbers_only and values or {}) do numbers_only = numbers_only and type(v) == "number" end
    if not numbers_only then
      options.raise(("histogram: %s, expected a tensor or a list of numbers"):format(options.is(tag, values)))
    end
  end
  if not self.events then return 0 end
  local x = peri.is_tensor(values) and values or peri.tensor(values, "f64")
  local h, left_out = events.count(x)
  if h then self.events:summary(step, events.histogram(tag, h)) end
  return left_out
end

--- Hyper-parameters for TensorBoard's tab of that name.
--- @param flags table<string, number|string|boolean>
--- @param metrics string[]  what runs are compared by; none: every scalar
function Logger:hparams(flags, metrics)
  if not self.events then return end
  for _, summary in ipairs(events.session(flags, metrics, os.time())) do self.events:summary(0, summary) end
  self.session = true
end

--- Take the progress bar away; the next step brings it back.
function Logger:pause()
  if self.console then self.console:close() end
end

--- Close the files.
--- @param ok boolean?  false: the run did not end as it should, for TensorBoard; default true
function Logger:close(ok)
  if self.events then
    if self.session then self.events:summary(0, events.session_end(ok ~= false, os.time())) end
    self.events:close()
  end
  self.events, self.sinks, self.session = nil, {}, nil
  self:pause()
end

M.Logger = Logger
return require "perilune.names"(M, "perilune.log")
