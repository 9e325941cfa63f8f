-- sweep_report.lua - what a sweep says: a line for each run, the table (text, CSV, JSON Lines), the plot, and how much
-- each flag has to do with the score.

local peri = require "perilune"
local plot = require "perilune.run.plot"
local folders = require "perilune.run.folder"
local space = require "perilune.run.sweep_space"

local M = {}

local function shown(v) return v and ("%.6g"):format(v) or "" end

-- Axes that have more than one value, with their places in a setting.
local function varied(plan)
  local list = {}
  for i, axis in ipairs(plan.axes) do if space.varies(axis) then list[#list + 1] = { axis = axis, at = i } end end
  return list
end

--- The line of a run that has ended.
--- @param sweep table
--- @param job table
--- @param result table
--- @return string
function M.progress(sweep, job, result)
  local words = {}
  for _, v in ipairs(varied(sweep.plan)) do
    words[#words + 1] = ("%s=%s"):format(v.axis.name, sweep.plan.settings[job.trial][v.at][2])
  end
  local said = result.failed
  if not said then
    local list = sweep:judge_result(result)
    said = list.failed or ("%s over %d"):format(shown(peri.rl.iqm(list)), #list)
  end
  if #sweep.plan.rungs > 1 then table.insert(words, 1, ("rung %d"):format(job.rung)) end
  return ("%s  %s: %s"):format(job.name, table.concat(words, " "), said)
end

-- Heads and cells; whole: with the reasons of those that failed.
local function cells_of(sweep, rows, whole)
  local plan, axes = sweep.plan, varied(sweep.plan)
  local heads = { "rank", "trial" }
  for _, v in ipairs(axes) do heads[#heads + 1] = v.axis.name end
  heads[#heads + 1] = plan.budget
  for _, name in ipairs { "score", "low", "high", "seeds", "status" } do heads[#heads + 1] = name end
  local cells = {}
  for i, row in ipairs(rows) do
    local j = row.judged
    local line = { j.value and tostring(i) or "", tostring(row.trial) }
    for _, v in ipairs(axes) do line[#line + 1] = plan.settings[row.trial][v.at][2] end
    if plan.budget then line[#line + 1] = ("%d"):format(plan.rungs[row.rung]) end
    local status = j.failed and (whole and j.failed or "failed") or "ok"
    for _, text in ipairs { shown(j.value), shown(j.low), shown(j.high), j.seeds or "", status } do
      line[#line + 1] = tostring(text)
    end
    cells[i] = line
  end
  return heads, cells
end

local function aligned(heads, cells)
  local widths, lines = {}, {}
  for _, line in ipairs { heads, table.unpack(cells) } do
    for k, text in ipairs(line) do widths[k] = math.max(widths[k] or 0, utf8.len(text) or #text) end
  end
  for i, line in ipairs { heads, table.unpack(cells) } do
    local parts = {}
    for k, text in ipairs(line) do parts[k] = text .. (" "):rep(widths[k] - (utf8.len(text) or #text)) end
    lines[i] = table.concat(parts, "  "):gsub("%s+$", "")
  end
  return table.concat(lines, "\n") .. "\n"
end

-- A line for each reason, with the trials that failed by it.
local function reasons(rows)
  local list, trials = {}, {}
  for _, row in ipairs(rows) do
    local why = row.judged.failed
    if why and not trials[why] then list[#list + 1], trials[why] = why, {} end
    if why then table.insert(trials[why], tostring(row.trial)) end
  end
  for i, why in ipairs(list) do
    list[i] = ("trial%s %s: %s\n"):format(#trials[why] > 1 and "s" or "", table.concat(trials[why], ", "), why)
  end
  return table.concat(list)
end

local function csv(heads, cells)
  local lines = {}
  for i, line in ipairs { heads, table.unpack(cells) } do
    local parts = {}
    for k, text in ipairs(line) do
      parts[k] = text:find '[,"]' and '"' .. text:gsub('"', '""') .. '"' or text
    end
    lines[i] = table.concat(parts, ",")
  end
  return table.concat(lines, "\n") .. "\n"
end

local function jsonl(sweep, rows)
  local lines = {}
  for i, row in ipairs(rows) do
    local flags, j = {}, row.judged
    for _, pair in ipairs(sweep.plan.settings[row.trial]) do flags[pair[1]] = pair[2] end
    lines[i] = peri.json.encode { rank = j.value and i or nil, trial = row.trial, flags = flags, score = j.value,
      low = j.low, high = j.high, seeds = j.seeds, failed = j.failed,
      budget = sweep.plan.budget and sweep.plan.rungs[row.rung] or nil } .. "\n"
  end
  return table.concat(lines)
end

-- ---- which flag matters ----

-- The share of the variance of scores that lies between groups of one flag (eta squared): its values, or quarters of
-- its range where there are many.
local function share(axis, at, plan, judged)
  local list = {}
  for trial, j in pairs(judged) do
    list[#list + 1] = { (space.position(axis, plan.settings[trial][at][2])), j.value, trial }
  end
  table.sort(list, function (a, b)
    if a[1] ~= b[1] then return a[1] < b[1] end
    return a[3] < b[3]
  end)
  local groups, distinct, last, mean = {}, 0, nil, 0
  for _, e in ipairs(list) do
    mean = mean + e[2] / #list
    if e[1] ~= last then distinct, last = distinct + 1, e[1] end
  end
  local index, seen = 0, nil
  for i, e in ipairs(list) do
    if e[1] ~= seen then index, seen = index + 1, e[1] end
    local g = distinct <= 4 and index or (i - 1) * 4 // #list + 1
    groups[g] = groups[g] or {}
    table.insert(groups[g], e[2])
  end
  local between, whole = 0, 0
  for _, e in ipairs(list) do whole = whole + (e[2] - mean) ^ 2 end
  for _, g in ipairs(groups) do
    local m = 0
    for _, v in ipairs(g) do m = m + v / #g end
    between = between + #g * (m - mean) ^ 2
  end
  return whole > 0 and between / whole or 0
end

-- At the first rung, where all have been.
local function shares(sweep)
  local judged, n = {}, 0
  for trial = 1, #sweep.plan.settings do
    local j = sweep:judge(trial, 1)
    if j and j.value then judged[trial], n = j, n + 1 end
  end
  local out, axes = {}, varied(sweep.plan)
  if n < 4 or #axes == 0 then return out, judged end
  for i, v in ipairs(axes) do out[i] = { v.axis.name, share(v.axis, v.at, sweep.plan, judged) } end
  table.sort(out, function (a, b)
    if a[2] ~= b[2] then return a[2] > b[2] end
    return a[1] < b[1]
  end)
  return out, judged
end

-- ---- the plot ----

-- A chart for each flag: the scores over its values, of the last rung that each trial came to.
local function charts(sweep, rows)
  local list, plan = {}, sweep.plan
  for _, v in ipairs(varied(plan)) do
    local x, y, places = {}, {}, false
    for _, row in ipairs(rows) do
      if row.judged.value then
        local at, is_place = space.position(v.axis, plan.settings[row.trial][v.at][2])
        x[#x + 1], y[#y + 1], places = at, row.judged.value, is_place
      end
    end
    local label = v.axis.name
    if places then
      local names = {}
      for i, value in ipairs(v.axis.values) do names[i] = ("%d %s"):format(i, value == "" and '""' or value) end
      label = ("%s (%s)"):format(label, table.concat(names, ", "))
    end
    list[#list + 1] = { title = v.axis.name, xlabel = label, ylabel = plan.metric ~= "" and plan.metric or "score",
      xscale = v.axis.kind == "log" and "log" or "linear",
      series = { { name = "trials", x = x, y = y, line = false } } }
  end
  return list
end

--- Write table.txt, table.csv, table.jsonl and sweep.svg into the folder of a sweep, and say the table.
--- @param sweep table
--- @param rows table[]  { trial, rung, judged }
function M.write(sweep, rows)
  local heads, cells = cells_of(sweep, rows)
  local text = aligned(heads, cells) .. reasons(rows)
  local said = {}
  for _, entry in ipairs((shares(sweep))) do said[#said + 1] = ("%s %.2f"):format(entry[1], entry[2]) end
  if #said > 0 then text = text .. "variance between values of one flag: " .. table.concat(said, ", ") .. "\n" end
  for ending, content in pairs { txt = text, csv = csv(cells_of(sweep, rows, true)), jsonl = jsonl(sweep, rows) } do
    folders.must(peri.files.write(("%s/table.%s"):format(sweep.folder, ending), content))
  end
  local list = charts(sweep, rows)
  if #list > 0 then folders.must(plot.save(sweep.folder .. "/sweep.svg", list)) end
  return text
end

return M
