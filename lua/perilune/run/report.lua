-- report.lua - a run folder as one HTML file: what is in the folder, read here; the page is made in report_page.lua.
-- Whatever the folder holds is data: text of a model, names, logs of a run that was cut anywhere.

local peri = require "perilune"
local options = require "perilune.options"
local refusal = require "perilune.refusal"
local folders = require "perilune.run.folder"
local common = require "perilune.run.common"
local curves = require "perilune.run.curves"
local page = require "perilune.run.report_page"
local scores = require "perilune.run.scores"
local sessions = require "perilune.run.sessions"

local M = {}

local must = folders.must

local PICTURES <const>, PICTURE <const> = 12, 512 * 1024 -- of the folder that stand in the page, and bytes of one
local LOG <const> = 60                                   -- lines of log.txt from its end
local LISTED <const> = 200                               -- alarms, warnings

local function lines_of(path)
  if peri.files.exists(path) ~= "file" then return function () end end
  return must(peri.files.lines(path))
end

local function object(path)
  local text = peri.files.exists(path) == "file" and peri.files.read(path)
  local value = text and peri.json.decode(text)
  return type(value) == "table" and value or {}
end

-- ---- what state it is in ----

-- Who writes it now: a process id, nil where nobody does.
local function writer(folder)
  if peri.files.exists(folder .. "/.lock") ~= "file" then return nil end
  local lock, message = folders.lock(folder)
  if lock then lock:drop()
  else return message:match "process %((%d+)%) is writing" end
end

-- Steps that the flags ask for, where no session says.
local function total_of(run)
  for i = #run.sessions, 1, -1 do
    local s = run.sessions[i]
    if s.event ~= "end" then return math.tointeger(s.total) end
  end
  for _, name in ipairs { "steps", "updates", "epochs", "episodes" } do
    local v = run.config[name]
    if v ~= nil then return math.tointeger(v) end
  end
end

-- finished, running, stopped, cut or unknown; and a sentence.
local function state_of(run)
  local last, of = run.sessions[#run.sessions], run.total and (" of %d"):format(run.total) or ""
  local here = ("step %d%s"):format(run.step, of)
  if run.writer then return "running", ("process %s is at work on it, after %s"):format(run.writer, here) end
  if last and last.event == "end" then
    if last.ok == false then return "cut", ("it ended after %s: %s"):format(here, last.why or "no reason is noted") end
    if type(last.why) == "string" then return "stopped", ("after %s: %s"):format(here, last.why) end
    return "finished", here
  end
  if last then return "cut", ("its process is gone after %s and did not say why"):format(here) end
  if run.total and run.step >= run.total then return "finished", here end
  return "unknown", ("%s; the folder does not say how it ended"):format(here)
end

-- ---- parts ----

-- The lines of log.txt that matter: alarms and warnings, each once, and its end.
local function read_log(path)
  local alarms, warnings, tail, seen, left = {}, {}, {}, {}, 0
  local function add(list, row, key)
    if seen[key] then return end
    seen[key] = true
    if #list < LISTED then list[#list + 1] = row else left = left + 1 end
  end
  local n = 0
  for line in lines_of(path) do
    n = n + 1
    tail[n % LOG] = line
    local said = line:match "^%d+%-%d+%-%d+ %d+:%d+:%d+  (.*)$" or line
    local step, rest = said:match "^step (%d+): (.*)$"
    for part in (rest or ""):gsub("; ALARM ", "\0ALARM "):gmatch "[^%z]+" do
      local name, message = part:match "^ALARM ([^:]+): (.*)$"
      if name then add(alarms, { step = step, name = name, message = message }, step .. name) end
    end
    local warning = said:match "^warning: (.*)$"
    if warning then add(warnings, warning, warning) end
  end
  local ends = {}
  for i = math.max(n - LOG + 1, 1), n do ends[#ends + 1] = tail[i % LOG] end
  return alarms, warnings, ends, n, left
end

-- `most` of the rows of samples.jsonl, evenly over the run, its first and last among them.
local function read_samples(path, most)
  local count = 0
  for _ in lines_of(path) do count = count + 1 end
  local chosen, list, at, shown = {}, {}, 0, math.min(most, count)
  for i = 1, shown do chosen[shown == 1 and count or 1 + (i - 1) * (count - 1) // (shown - 1)] = true end
  for line in lines_of(path) do
    at = at + 1
    if chosen[at] then
      local row = peri.json.decode(line, { allow_nan = true })
      list[#list + 1] = type(row) == "table" and row or { damaged = line }
    end
  end
  return list, count
end

local function finite(v) return v == v and v > -math.huge and v < math.huge end

-- What a column of numbers comes to.
local function summary(name, column, steps)
  local s = { name = name, count = 0, strange = 0 }
  for i, v in ipairs(column) do
    if finite(v) then
      local step = steps[i]
      s.count = s.count + 1
      s.first = s.first or v
      s.last, s.last_step = v, step
      if not s.low or v < s.low then s.low, s.low_step = v, step end
      if not s.high or v > s.high then s.high, s.high_step = v, step end
    end
  end
  return s
end

-- Metrics that are numbers, those that the recipe is judged by first.
local function metrics_of(run)
  local list, is, first = {}, {}, {}
  for _, name in ipairs(run.judged) do
    if run.columns[name] and not first[name] then first[name], list[#list + 1] = true, name end
  end
  for _, name in ipairs(options.names(run.columns)) do
    if name ~= "step" and not first[name] then list[#list + 1] = name end
  end
  local out = {}
  for _, name in ipairs(list) do
    local s = summary(name, run.columns[name], run.columns.step)
    s.judged = first[name] or false
    if s.count > 0 then out[#out + 1], is[name] = s, true end
  end
  return out, is
end

local types = { svg = "image/svg+xml", png = "image/png", gif = "image/gif" }

-- Pictures that the recipe left, and the sizes of all files.
local function read_files(folder)
  local pictures, files = {}, {}
  for _, name in ipairs(must(peri.files.list(folder))) do
    local path = folder .. "/" .. name
    if peri.files.exists(path) == "file" and not name:find "^%." then
      files[#files + 1] = name
      local type_of = types[name:match "%.(%a+)$"]
      if type_of and #pictures < PICTURES then
        local bytes = peri.files.read(path)
        if bytes and #bytes <= PICTURE then
          pictures[#pictures + 1] = { name = name, type = type_of, bytes = bytes }
        end
      end
    end
  end
  return pictures, files
end

local function best_of(folder)
  local root, list = folder .. "/best", {}
  if peri.files.exists(root) ~= "folder" then return list end
  local Best = require "perilune.run.best"
  for _, name in ipairs(must(peri.files.list(root))) do
    local found = Best.find(folder, name)
    if found then list[#list + 1] = found end
  end
  return list
end

-- ---- the whole ----

--- What is known of a run folder; raises a refusal where it is none.
--- @param folder string
--- @param samples integer  most that are read
--- @return table
function M.read(folder, samples)
  if peri.files.exists(folders.config_path(folder)) ~= "file" then
    local there = peri.files.exists(folder) == "folder" and folders.list(folder) or {}
    refusal.raise(("%s: is no run folder: it has no config.json%s"):format(folder, #there > 0
      and "; runs in it: " .. table.concat(there, ", ", 1, math.min(#there, 12)) or ""), true)
  end
  local origin = object(folder .. "/run.json")
  local run = { folder = folder, name = folder:match "([^/]+)$" or folder, config = must(folders.load_config(folder)),
    recipe = type(origin.recipe) == "string" and origin.recipe or nil, script = origin.script, judged = {},
    sessions = sessions.read(folder), writer = writer(folder) }
  for _, name in ipairs(type(origin.judged) == "table" and origin.judged or {}) do
    if type(name) == "string" then run.judged[#run.judged + 1] = name end
  end
  local damaged, first
  run.columns, run.texts, damaged, first = curves.columns(folder .. "/metrics.jsonl", true)
  run.rows = #run.columns.step
  run.notes = { damaged > 0 and ("damaged: %s; %s left out"):format(first, damaged == 1 and "it was"
    or ("%d such lines were"):format(damaged)) or nil }
  run.step = math.tointeger(run.columns.step[run.rows] or 0) or 0
  local last = run.sessions[#run.sessions]
  if last and math.tointeger(last.step) then run.step = math.max(run.step, math.tointeger(last.step)) end
  run.total = total_of(run)
  run.state, run.state_text = state_of(run)
  run.metrics, run.is_metric = metrics_of(run)
  run.scores = {}
  for i, row in ipairs(must(scores.read(folder))) do
    run.scores[i] = { name = row.name, step = row.step, text = peri.rl.report(row.scores) }
  end
  run.best = best_of(folder)
  run.alarms, run.warnings, run.log, run.log_lines, run.unlisted = read_log(folder .. "/log.txt")
  run.samples, run.sample_count = read_samples(folder .. "/samples.jsonl", samples)
  run.pictures, run.files = read_files(folder)
  run.free = {}
  for name, entry in pairs(common.common) do run.free[name] = type(entry) == "table" and entry.free or nil end
  return run
end

local rules = {
  path = options.value(options.none, "string", "of the file; default: report.html in the folder"),
  samples = options.integer(12, "[0, 1000]", "rows of samples.jsonl, evenly over the run"),
  charts = options.integer(24, "[0, 1000]", "most curves; what the recipe is judged by comes first"),
}
M.rules = rules

--- Write a run folder as one HTML file that needs nothing else, neither a network nor scripts: state, scores, curves,
--- alarms, samples, metrics, flags, and what it ran on. A run that is not finished may be given; what changes
--- later is in the next report.
--- @param folder string  of the run
--- @param opts table?
--- @return string? path  nil and a message where the folder holds no run or the file cannot be written
--- @return string? message
function M.report(folder, opts)
  options.argument("recipe.report", "folder", folder, "string")
  local o = options.fill("recipe.report", opts, rules, 3)
  folder = folders.trimmed(folder)
  local path = o.path or folder .. "/report.html"
  local ok, text = pcall(function () return page.html(M.read(folder, o.samples), o) end)
  if not ok then
    if type(text) == "table" and getmetatable(text).__name == "perilune.refusal" then
      return nil, (tostring(text.message):gsub("^recipe: ", ""))
    end
    error(text, 0)
  end
  local written, message = peri.files.write(path, text)
  if not written then return nil, ("%s: %s"):format(path, refusal.bare(message)) end
  return path
end
options.declare(M.report, { "folder" }, rules)

return M
