-- curves.lua - metrics of a run as columns and as charts.

local peri = require "perilune"
local options = require "perilune.options"
local plot = require "perilune.run.plot"
local refusal = require "perilune.refusal"
local folders = require "perilune.run.folder"

local M = {}

--- The rows of a file of metrics as columns: { step = { 1, 2, ... }, loss = { ... } }, NaN where missing.
--- @param path string
--- @return table<string, number[]>
function M.columns(path)
  local rows, columns = {}, { step = {} }
  if not peri.files.exists(path) then return columns end
  for line, number in folders.must(peri.files.lines(path)) do
    local row, why = peri.json.decode(line)
    if type(row) ~= "table" then
      folders.refuse("%s: line %d: %s", path, number, why and refusal.bare(why) or "is not an object")
    end
    rows[#rows + 1] = row
    for name in pairs(row) do columns[name] = columns[name] or {} end
  end
  for name, column in pairs(columns) do
    for i, row in ipairs(rows) do
      local v = row[name]
      column[i] = type(v) == "number" and v or 0 / 0
    end
  end
  return columns
end

local function series(columns, name, y)
  local x, values = {}, {}
  for k, v in ipairs(y) do
    if v == v then x[#x + 1], values[#values + 1] = columns.step[k], v end
  end
  return { name = name, x = x, y = values, smooth = "auto" }
end

local chart_rules = require("perilune.run.plot.data").chart_rules
local group_rules = { -- of a list of metrics that share axes
  title = options.value(options.none, "string", "above the chart; default: the metrics"),
  xlabel = options.value("step", "string", "below the x axis"),
  ylabel = options.value(options.none, "string", "beside the y axis; default: the metric when it is one"),
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
--- @return table[]
function M.charts(columns, entries, declared)
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
  local charts = {}
  for i, entry in ipairs(list) do
    local group, keys = { entry }, {}
    local who = ("plot: chart %d"):format(i)
    if type(entry) == "table" then group, keys = list_and_keys(who, entry, '{ "loss", "val_loss" }') end
    local o = options.fill(who, keys, group_rules)
    for _, name in ipairs(group) do
      if not (empty and type(name) == "string") then check_metric(name, known, names) end
    end
    local chart = { title = o.title or table.concat(group, ", "), xlabel = o.xlabel,
      ylabel = o.ylabel or #group == 1 and group[1] or nil, yscale = o.yscale, ymin = o.ymin, ymax = o.ymax,
      series = {} }
    for k, name in ipairs(group) do chart.series[k] = series(columns, name, columns[name] or {}) end
    charts[i] = chart
  end
  return charts
end

--- @param path string
--- @param columns table<string, number[]>
--- @param entries (string|table)[]
--- @param declared string[]
function M.save(path, columns, entries, declared)
  folders.must(plot.save(path, M.charts(columns, entries, declared)))
end

return M
