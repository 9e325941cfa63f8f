-- curves.lua - metrics of a run as columns and as charts.

local peri = require "perilune"
local options = require "perilune.options"
local plot = require "perilune.run.plot"
local refusal = require "perilune.refusal"
local folders = require "perilune.run.folder"

local M = {}

local LIST <const> = getmetatable(peri.json.array {})

-- What is wrong within a line of a file, which has its own number there.
local function bare_of_line(why) return (refusal.bare(why):gsub("line 1, ", "")) end

--- The rows of a file of metrics as columns: { step = { 1, 2, ... }, loss = { ... } }, NaN where missing.
--- @param path string
--- @param lenient boolean?  leave out lines that are no rows, as a full disk or a hand leaves them, and count them
--- @return table<string, number[]>
--- @return table<string, table<integer, string>> texts  of metrics that are texts: by the place of the row
--- @return integer damaged  lines that were left out
--- @return string? first  what is wrong with the first of them
function M.columns(path, lenient)
  local rows, columns, texts = {}, { step = {} }, {}
  if not peri.files.exists(path) then return columns, texts, 0 end
  local damaged, first = 0, nil
  for line, number in folders.must(peri.files.lines(path)) do
    local row, why = peri.json.decode(line)
    if type(row) == "table" and getmetatable(row) ~= LIST then
      rows[#rows + 1] = row
      for name in pairs(row) do columns[name] = columns[name] or {} end
    else
      damaged = damaged + 1
      first = first or ("%s: line %d: %s"):format(path, number, why and bare_of_line(why) or "is not an object")
      if not lenient then folders.refuse("%s", first) end
    end
  end
  for name, column in pairs(columns) do
    for i, row in ipairs(rows) do
      local v = row[name]
      column[i] = type(v) == "number" and v or 0 / 0
      if type(v) == "string" then
        texts[name] = texts[name] or {}
        texts[name][i] = v
      end
    end
  end
  return columns, texts, damaged, first
end

-- The curve of a metric; with labels, of the rows with one of them.
local function series(columns, name, title, labels, label)
  local x, values = {}, {}
  for k, v in ipairs(columns[name] or {}) do
    if v == v and (not labels or labels[k] == label) then x[#x + 1], values[#values + 1] = columns.step[k], v end
  end
  return { name = title, x = x, y = values, smooth = "auto" }
end

-- The curves of a metric, one for each text of a column in the order in which they came.
local function parted(list, columns, name, texts, alone)
  local seen = {}
  for k, v in ipairs(columns[name] or {}) do
    local label = texts[k]
    if v == v and label and not seen[label] then
      seen[label] = true
      list[#list + 1] = series(columns, name, alone and label or ("%s, %s"):format(name, label), texts, label)
    end
  end
end

local chart_rules = require("perilune.run.plot.data").chart_rules
local group_rules = { -- of a list of metrics that share axes
  title = options.value(options.none, "string", "above the chart; default: the metrics"),
  xlabel = options.value("step", "string", "below the x axis"),
  ylabel = options.value(options.none, "string", "beside the y axis; default: the metric when it is one"),
  by = options.value(options.none, "string", "a metric that is a text, as the stage of a run: a curve for each"),
  yscale = chart_rules.yscale, ymin = chart_rules.ymin, ymax = chart_rules.ymax,
}
M.group_rules = group_rules

-- The texts of a list and its other keys apart; every one must be there, and a text.
local function list_and_keys(who, list, example)
  local names, keys, count = {}, {}, 0
  for k, v in pairs(list) do
    if math.type(k) == "integer" then count = count + 1 else keys[k] = v end
  end
  for i = 1, count do
    if list[i] == nil then options.raise(("%s: entry %d is missing"):format(who, i)) end
    names[i] = list[i]
  end
  if count == 0 then options.raise(("%s: no metric is named, expected a list such as %s"):format(who, example)) end
  return names, keys
end

local function check_metric(name, known, names)
  if type(name) ~= "string" then
    options.raise(("plot: %s, expected the name of a metric"):format(options.is("a metric", name)))
  end
  if not known[name] then options.raise("plot: " .. options.unknown("metric", name, names)) end
end

--- Charts for plot.svg: one for each entry, which is a metric or a list of metrics that share axes.
--- @param columns table<string, number[]>
--- @param entries (string|table)[]
--- @param declared string[]  metrics that may have no value yet
--- @param texts table<string, table<integer, string>>  of M.columns
--- @return table[]
--- @return string[] missing  those that have no value yet, where others have some
function M.charts(columns, entries, declared, texts)
  local example = '{ "loss", { "loss", "val_loss", title = "both" } }'
  if type(entries) ~= "table" then
    options.raise(("plot: %s, expected a list such as %s"):format(options.is("metrics", entries), example))
  end
  local list, stray = list_and_keys("plot", entries, example)
  local key = next(stray)
  if key ~= nil then
    options.raise(("plot: %s is a key of the list of charts, expected in the list of one: %s"):format(tostring(key),
      example))
  end
  local known = {}
  for name in pairs(columns) do known[name] = name ~= "step" or nil end
  local empty = next(known) == nil -- a run without steps has charts without curves
  local names = options.names(known)
  for _, name in ipairs(declared) do known[name] = true end
  local charts, missing = {}, {}
  for i, entry in ipairs(list) do
    local group, keys = { entry }, {}
    local who = ("plot: chart %d"):format(i)
    if type(entry) == "table" then group, keys = list_and_keys(who, entry, '{ "loss", "val_loss" }') end
    local o = options.fill(who, keys, group_rules)
    for _, name in ipairs(group) do
      if not (empty and type(name) == "string") then check_metric(name, known, names) end
      if not empty and not columns[name] then missing[#missing + 1] = name end
    end
    local chart = { title = o.title or table.concat(group, ", "), xlabel = o.xlabel,
      ylabel = o.ylabel or #group == 1 and group[1] or nil, yscale = o.yscale, ymin = o.ymin, ymax = o.ymax,
      series = {} }
    if o.by and not texts[o.by] and not empty then
      options.raise(("%s: by: %s"):format(who, options.unknown("metric of texts", o.by, options.names(texts))))
    end
    for k, name in ipairs(group) do
      if o.by then parted(chart.series, columns, name, texts[o.by] or {}, #group == 1)
      else chart.series[k] = series(columns, name, name) end
    end
    charts[i] = chart
  end
  return charts, missing
end

--- @param path string
--- @param charts table[]  of M.charts
function M.save(path, charts) folders.must(plot.save(path, charts)) end

return M
