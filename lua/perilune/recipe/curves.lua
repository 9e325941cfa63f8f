-- curves.lua - metrics of a run as columns and as charts.

local peri = require "perilune"
local plot = require "perilune.plot"
local refusal = require "perilune.refusal"
local folders = require "perilune.recipe.folder"

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

--- Charts for plot.svg: one for each entry, which is a metric or a list of metrics that share axes.
--- @param columns table<string, number[]>
--- @param entries (string|table)[]
--- @return table[]
function M.charts(columns, entries)
  local charts = {}
  for i, entry in ipairs(entries) do
    local group = type(entry) == "table" and entry or { entry }
    local chart = { title = group.title or table.concat(group, ", "), xlabel = group.xlabel or "step",
      ylabel = group.ylabel or #group == 1 and group[1] or nil, yscale = group.yscale,
      ymin = group.ymin, ymax = group.ymax, series = {} }
    for k, name in ipairs(group) do chart.series[k] = series(columns, name, columns[name] or {}) end
    charts[i] = chart
  end
  return charts
end

--- @param path string
--- @param columns table<string, number[]>
--- @param entries (string|table)[]
function M.save(path, columns, entries) folders.must(plot.save(path, M.charts(columns, entries))) end

return M
