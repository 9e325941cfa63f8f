-- compare.lua - two runs, or two groups of runs, side by side: what their seeds scored, with intervals and the chance
-- that one is better; last values of metrics; flags that differ; curves.

local peri = require "perilune"
local options = require "perilune.options"
local refusal = require "perilune.refusal"
local folders = require "perilune.run.folder"
local common = require "perilune.run.common"
local curves = require "perilune.run.curves"
local scores = require "perilune.run.scores"

local M = {}

local must = folders.must

local function fail(message, ...) refusal.raise(message:format(...), true) end

-- ---- reading ----

local function read_run(folder)
  local config = must(folders.load_config(folder))
  local columns = curves.columns(folder .. "/metrics.jsonl")
  local origin = peri.files.exists(folder .. "/run.json") and peri.json.decode((peri.files.read(folder .. "/run.json")))
  return { folder = folder, config = config, columns = columns, scores = must(scores.read(folder)),
    judged = type(origin) == "table" and origin.judged or {} }
end

--- The runs of one side: run folders, and folders of run folders, which stand for all in them.
--- @param paths string[]
--- @return table[] runs
function M.side(paths)
  local runs = {}
  for _, path in ipairs(paths) do
    path = folders.trimmed(path)
    if peri.files.exists(folders.config_path(path)) then runs[#runs + 1] = read_run(path)
    else
      local list = peri.files.exists(path) == "folder" and folders.list(path) or {}
      if #list == 0 then fail("%s: is no run folder and holds none (config.json)", path) end
      for _, name in ipairs(list) do runs[#runs + 1] = read_run(path .. "/" .. name) end
    end
  end
  return runs
end

-- The scores of a name over the runs of a side, as lists of tasks; nil where a run has none.
local function scores_of(runs, name)
  local tasks, many
  for _, run in ipairs(runs) do
    local found
    for _, row in ipairs(run.scores) do if row.name == name then found = row.scores end end
    if not found then return nil end
    local lists = type(found[1]) == "table" and found or { found }
    if many and many ~= #lists then
      fail("%s: %s is of %d tasks, in another run of %d", run.folder, name, #lists, many)
    end
    many, tasks = #lists, tasks or {}
    for t, list in ipairs(lists) do
      tasks[t] = tasks[t] or {}
      table.move(list, 1, #list, #tasks[t] + 1, tasks[t])
    end
  end
  return tasks
end

local function last_of(run, metric)
  local column = run.columns[metric] or {}
  for i = #column, 1, -1 do
    if column[i] == column[i] and math.abs(column[i]) < math.huge then return column[i] end
  end
end

-- The last values of a metric, one a run; nil where a run has none.
local function values_of(runs, metric)
  local list = {}
  for i, run in ipairs(runs) do
    list[i] = last_of(run, metric)
    if list[i] == nil then return nil end
  end
  return { list }
end

-- ---- comparing ----

local function summary(tasks)
  local value, low, high = peri.rl.interval(tasks)
  local n = math.huge
  for _, list in ipairs(tasks) do n = math.min(n, #list) end
  return { value = value, low = n > 1 and low or nil, high = n > 1 and high or nil, seeds = n }
end

local function judged(name, a, b, mode)
  if #a ~= #b then fail("%s is of %d tasks in one and of %d in the other", name, #a, #b) end
  local x, y = b, a -- is the second better than the first?
  if mode == "min" then x, y = a, b end
  local row = { name = name, a = summary(a), b = summary(b) }
  row.chance, row.low, row.high = peri.rl.probability_of_improvement(x, y)
  if row.a.seeds == 1 or row.b.seeds == 1 then row.low, row.high = nil, nil end
  return row
end

-- Names of scores, those that all runs have, in the order of the first.
local function shared_scores(a, b)
  local list = {}
  for _, row in ipairs(a[1].scores) do
    if scores_of(a, row.name) and scores_of(b, row.name) then list[#list + 1] = row.name end
  end
  return list
end

local function shared_metrics(a, b)
  local list = {}
  for _, name in ipairs(options.names(a[1].columns)) do
    if name ~= "step" and values_of(a, name) and values_of(b, name) then list[#list + 1] = name end
  end
  return list
end

-- Values of a flag on one side, each once.
local function flag_values(runs, name)
  local seen, list = {}, {}
  for _, run in ipairs(runs) do
    local v = run.config[name]
    local text = v == nil and "-" or tostring(v)
    if not seen[text] then seen[text], list[#list + 1] = true, text end
  end
  table.sort(list)
  return table.concat(list, ", ")
end

local function differences(a, b)
  local all, list = {}, {}
  for _, runs in ipairs { a, b } do
    for _, run in ipairs(runs) do for name in pairs(run.config) do all[name] = true end end
  end
  for _, name in ipairs(options.names(all)) do
    local free = common.common[name] and common.common[name].free
    local x, y = flag_values(a, name), flag_values(b, name)
    if not free and x ~= y then list[#list + 1] = { name = name, a = x, b = y } end
  end
  return list
end

--- Two sides against each other.
--- @param a table[]  runs of M.side
--- @param b table[]
--- @param metric string  "": all scores; else a score or a metric, which is judged by its last values
--- @param mode string  max or min: of a metric; scores are better when they are higher
--- @return table  scores, metrics: { name, a, b, chance, low, high }; flags: { name, a, b }
function M.compare(a, b, metric, mode)
  local out = { scores = {}, metrics = {}, flags = differences(a, b) }
  local names = shared_scores(a, b)
  local known = {}
  for _, name in ipairs(names) do
    known[name] = true
    if metric == "" or metric == name then
      out.scores[#out.scores + 1] = judged(name, scores_of(a, name), scores_of(b, name), "max")
    end
  end
  local metrics = shared_metrics(a, b)
  for _, name in ipairs(metrics) do
    local x, y = values_of(a, name), values_of(b, name)
    if name == metric and not known[name] then out.scores[#out.scores + 1] = judged(name, x, y, mode) end
    out.metrics[#out.metrics + 1] = { name = name, a = summary(x), b = summary(y) }
  end
  if metric ~= "" and #out.scores == 0 then
    table.move(metrics, 1, #metrics, #names + 1, names)
    fail("%s", options.unknown("metric", metric, names))
  end
  return out
end

-- ---- curves ----

-- The mean of a metric over the runs of a side, at steps that all of them have.
local function mean_curve(runs, metric)
  local sums, counts = {}, {}
  for _, run in ipairs(runs) do
    for i, v in ipairs(run.columns[metric] or {}) do
      local step = run.columns.step[i]
      if v == v and math.abs(v) < math.huge then
        sums[step], counts[step] = (sums[step] or 0) + v, (counts[step] or 0) + 1
      end
    end
  end
  local x, y = {}, {}
  for step, n in pairs(counts) do if n == #runs then x[#x + 1] = step end end
  table.sort(x)
  for i, step in ipairs(x) do y[i] = sums[step] / #runs end
  return x, y
end

--- A chart for each metric: a curve for each side, the mean of its runs.
--- @param a table[]
--- @param b table[]
--- @param names string[]  of the sides
--- @param metrics string[]
--- @return table[]
function M.charts(a, b, names, metrics)
  local list = {}
  for _, metric in ipairs(metrics) do
    local chart = { title = metric, xlabel = "step", ylabel = metric, series = {} }
    for i, runs in ipairs { a, b } do
      local x, y = mean_curve(runs, metric)
      chart.series[i] = { name = names[i], x = x, y = y }
    end
    list[#list + 1] = chart
  end
  return list
end

--- The metrics that are drawn: those that the recipe is judged by, else all.
--- @param a table[]
--- @param found table  of M.compare
--- @param metric string
--- @return string[]
function M.drawn(a, found, metric)
  local all, list, is = {}, {}, {}
  for i, row in ipairs(found.metrics) do all[i], is[row.name] = row.name, true end
  if is[metric] then return { metric } end
  for _, name in ipairs(a[1].judged) do if is[name] then list[#list + 1] = name end end
  return #list > 0 and list or all
end

-- ---- text ----

local function number(v) return ("%.5g"):format(v) end

local function measured(s)
  if not s.low then return number(s.value) end
  return ("%s [%s, %s]"):format(number(s.value), number(s.low), number(s.high))
end

local function aligned(rows)
  local widths, lines = {}, {}
  for _, row in ipairs(rows) do
    for k, text in ipairs(row) do widths[k] = math.max(widths[k] or 0, utf8.len(text) or #text) end
  end
  for i, row in ipairs(rows) do
    local parts = {}
    for k, text in ipairs(row) do parts[k] = text .. (" "):rep(widths[k] - (utf8.len(text) or #text)) end
    lines[i] = table.concat(parts, "  "):gsub("%s+$", "")
  end
  return table.concat(lines, "\n")
end

local function verdict(row)
  if not row.low then return "one seed says nothing of this" end
  if row.low > 0.5 then return "B is better" elseif row.high < 0.5 then return "A is better" end
  return "neither is better"
end

-- Names of the scores that the runs of a side have stored.
local function stored(runs)
  local all = {}
  for _, run in ipairs(runs) do for _, row in ipairs(run.scores) do all[row.name] = true end end
  local names = options.names(all)
  return #names > 0 and table.concat(names, ", ") or "none"
end

--- What was found, as text.
--- @param found table
--- @param a table[]
--- @param b table[]
--- @return string
function M.text(found, a, b)
  local out = {}
  for name, runs in pairs { A = a, B = b } do
    local list = {}
    for i, run in ipairs(runs) do list[i] = run.folder end
    out[name == "A" and 1 or 2] = ("%s  %s"):format(name, table.concat(list, " "))
  end
  local function add(title, rows)
    out[#out + 1] = ""
    out[#out + 1] = title
    out[#out + 1] = aligned(rows)
  end
  if #found.flags > 0 then
    local rows = { { "", "A", "B" } }
    for _, f in ipairs(found.flags) do rows[#rows + 1] = { "--" .. f.name, f.a, f.b } end
    add("Flags that differ", rows)
  end
  if #found.scores > 0 then
    local rows = { { "", "A", "B", "seeds", "P(B above A)", "" } }
    for _, r in ipairs(found.scores) do
      rows[#rows + 1] = { r.name, measured(r.a), measured(r.b), ("%d, %d"):format(r.a.seeds, r.b.seeds),
        r.low and ("%.2f [%.2f, %.2f]"):format(r.chance, r.low, r.high) or ("%.2f"):format(r.chance), verdict(r) }
    end
    add("Scores: interquartile means with 95 % bootstrap intervals", rows)
  end
  if #found.scores == 0 then
    out[#out + 1] = ""
    out[#out + 1] = ("No score is in all runs, so neither side is called better (A: %s; B: %s). %s"):format(
      stored(a), stored(b), #found.metrics > 0 and "Name a metric of both with --metric."
      or "They have no metric in common either.")
  end
  if #found.metrics > 0 then
    local rows = { { "", "A", "B" } }
    for _, r in ipairs(found.metrics) do rows[#rows + 1] = { r.name, measured(r.a), measured(r.b) } end
    add("Metrics, their last values", rows)
  end
  return table.concat(out, "\n")
end

return M
