-- report_page.lua - what report.lua read, as HTML. Nothing is fetched and nothing runs: a policy in the head forbids
-- both, and every text passes through `shown`, whatever a model wrote into it.

local base64 = require "perilune.base64"
local numbers = require "perilune.run.log.numbers"
local options = require "perilune.options"
local peri = require "perilune"
local plot = require "perilune.run.plot"
local svg = require "perilune.run.plot.svg"

local M = {}

local FIELD <const> = 4000  -- bytes of a text of a sample
local ROWS <const> = 400    -- of a table of metrics

-- ---- text ----

local entities = { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;", ["'"] = "&#39;" }

-- Characters that would hide or turn what stands beside them, by what stands for them.
local hidden = {}
for c = 0x80, 0x9f do hidden[utf8.char(c)] = ("\u{27e8}%02X\u{27e9}"):format(c) end
for _, range in ipairs { { 0x200e, 0x200f }, { 0x2028, 0x202e }, { 0x2066, 0x2069 } } do
  for c = range[1], range[2] do hidden[utf8.char(c)] = ("\u{27e8}%04X\u{27e9}"):format(c) end
end

local function visible(c)
  local b = c:byte()
  return utf8.char(b == 127 and 0x2421 or 0x2400 + b)
end

-- A text as UTF-8 in which all is seen: control characters are pictures of themselves.
local function plain(text)
  text = numbers.repaired(tostring(text)):gsub("[%z\1-\8\11-\31\127]", visible)
  return (text:gsub("\xc2[\x80-\x9f]", hidden):gsub("\xe2\x80[\x8e-\xae]", hidden):gsub("\xe2\x81[\xa6-\xa9]", hidden))
end

-- The first bytes of a long text, to the end of a character, and how many are left out.
local function short(text, most)
  if #text <= most then return text, 0 end
  local stop = most
  while stop > most - 4 and (text:byte(stop + 1) or 0) & 0xC0 == 0x80 do stop = stop - 1 end
  return text:sub(1, stop), #text - stop
end

-- A text as the content of an element or an attribute; of a long one the beginning.
local function shown(text, most)
  local first, more = short(tostring(text), most or FIELD)
  first = plain(first):gsub("[&<>\"']", entities)
  return more > 0 and ("%s ... %d more bytes"):format(first, more) or first
end

local function number(v) return numbers.format(math.tointeger(v) or v) end

-- ---- the page's own look ----

-- Colours of curves on a dark ground, in the order of the plot's.
local bright = { "#4aa8e8", "#ff8f3f", "#2fd0a0", "#ef9fcb", "#ffc14a", "#8fd3f8" }

local style = [[
:root { color-scheme: light dark; --ground: #fff; --text: #1d1d1f; --soft: #636368; --line: #d9d9de; --card: #f6f6f8;
  --good: #0a7d4b; --bad: #b3261e; --note: #8a5a00 }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.2rem; max-width: 72rem; background: var(--ground); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem }
p { margin: .4rem 0 } .soft { color: var(--soft) }
.state { display: inline-block; padding: .1rem .6rem; border-radius: 1rem; border: 1px solid; font-weight: 600 }
.finished { color: var(--good) } .cut { color: var(--bad) } .running, .stopped, .unknown { color: var(--note) }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
th { color: var(--soft); font-weight: 500 } .n { text-align: right; font-variant-numeric: tabular-nums }
th, .n { white-space: nowrap } td:first-child:not(.n) { min-width: 8rem }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: .8rem }
.charts figure, .sample { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: .5rem }
.charts .whole { grid-column: 1 / -1 }
.charts svg, .charts img { display: block; width: 100%; height: auto; border-radius: .5rem }
figcaption { padding: .2rem .7rem; font-size: .85rem; color: var(--soft) }
.sample { padding: .6rem .8rem; margin-bottom: .8rem }
.sample b { font-size: .85rem; color: var(--soft) } .sample p { margin: 0 0 .2rem }
pre { margin: .1rem 0 .6rem; white-space: pre-wrap; font: .85rem/1.45 ui-monospace, monospace; unicode-bidi: isolate }
.sample pre:last-child { margin-bottom: 0 } .pairs { font-size: .9rem }
details { margin: .6rem 0 } summary { cursor: pointer }
@media print { body { max-width: none; padding: 0 } figure, .sample { break-inside: avoid } }
]]

-- The plot's colours on a dark ground: its own are for white.
local function dark()
  local out = { "@media (prefers-color-scheme: dark) {",
    ":root { --ground: #161618; --text: #e8e8ea; --soft: #a0a0a8; --line: #3a3a40; --card: #1f1f23;",
    "  --good: #4fd08f; --bad: #ff8a80; --note: #f0c060 }",
    'svg rect { fill: #1f1f23 } svg text { fill: #d4d4d8 } svg .grid { stroke: #34343a } svg .axis { stroke: #a0a0a8 }',
    'svg [stroke="#333"] { stroke: #d4d4d8 }' }
  for i, color in ipairs(svg.palette) do
    out[#out + 1] = ('svg [stroke="%s"] { stroke: %s } svg circle[fill="%s"] { fill: %s }'):format(color, bright[i],
      color, bright[i])
    out[#out + 1] = ('svg [stroke="%s"] { stroke: #fff }'):format(svg.darker[i])
  end
  out[#out + 1] = "}\n"
  return table.concat(out, "\n")
end

-- ---- pieces ----

local function table_of(add, heads, rows, numeric)
  add '<div class="wide"><table><thead><tr>'
  for k, head in ipairs(heads) do add('<th%s>%s</th>', numeric[k] and ' class="n"' or "", shown(head)) end
  add "</tr></thead><tbody>\n"
  for _, row in ipairs(rows) do
    add "<tr>"
    for k = 1, #heads do add("<td%s>%s</td>", numeric[k] and ' class="n"' or "", shown(row[k] or "")) end
    add "</tr>\n"
  end
  add "</tbody></table></div>\n"
end

local function head(add, run)
  local what = run.recipe and "recipe " .. run.recipe or "a run"
  if run.script then what = ("%s, %s"):format(what, tostring(run.script)) end
  add('<h1>%s</h1>\n<p class="soft">%s</p>\n', shown(run.name), shown(what))
  add('<p><span class="state %s">%s</span> %s</p>\n', run.state, run.state, shown(run.state_text))
  local resumed = {}
  for _, s in ipairs(run.sessions) do
    if s.event == "resume" then resumed[#resumed + 1] = tostring(math.tointeger(s.step) or "?") end
  end
  if #resumed > 0 then
    add('<p>Resumed %s after step %s.</p>\n', #resumed == 1 and "once" or #resumed .. " times",
      shown(table.concat(resumed, ", ", 1, math.min(#resumed, 20)) .. (#resumed > 20 and " ..." or "")))
  end
  if run.state == "cut" or run.state == "running" then
    add "<p>The numbers below are of what was done until this report was written.</p>\n"
  end
  for _, note in ipairs(run.notes) do add('<p class="cut">%s</p>\n', shown(note)) end
end

local function results(add, run)
  local rows = {}
  for _, s in ipairs(run.scores) do rows[#rows + 1] = { s.name, s.text, ("step %d"):format(s.step or 0) } end
  for _, m in ipairs(run.metrics) do
    if m.judged then
      rows[#rows + 1] = { m.name, number(m.last),
        ("step %d; from %s to %s"):format(m.last_step, number(m.low), number(m.high)) }
    end
  end
  for _, b in ipairs(run.best) do
    rows[#rows + 1] = { "best " .. tostring(b.metric), number(b.value), ("step %d; weights are kept"):format(b.step) }
  end
  if #rows == 0 then return end
  add "<h2>Results</h2>\n"
  table_of(add, { "", "value", "" }, rows, {})
end

local function pictures(add, run)
  if #run.pictures == 0 then return end
  add '<h2>Pictures of the recipe</h2>\n<div class="charts">\n'
  for _, p in ipairs(run.pictures) do
    add('<figure class="whole"><img alt="%s" src="data:%s;base64,%s">', shown(p.name), p.type, base64.encode(p.bytes))
    add('<figcaption>%s</figcaption></figure>\n', shown(p.name))
  end
  add "</div>\n"
end

local function curve(run, name)
  local x, y = {}, {}
  for i, v in ipairs(run.columns[name]) do
    if v == v then x[#x + 1], y[#y + 1] = run.columns.step[i], v end
  end
  local title = plain((short(name, 60)))
  return { title = title, xlabel = "step", series = { { name = title, x = x, y = y, smooth = "auto" } } }
end

local function charts(add, run, most)
  if #run.metrics == 0 then
    add "<h2>Curves</h2>\n<p>No step was logged yet.</p>\n"
    return
  end
  add '<h2>Curves</h2>\n<div class="charts">\n'
  local left, flat, drawn = {}, {}, 0
  for _, m in ipairs(run.metrics) do
    if m.low == m.high and m.count > 1 then flat[#flat + 1] = ("%s %s"):format(m.name, number(m.low))
    elseif drawn == most then left[#left + 1] = m.name
    else
      drawn = drawn + 1
      local text = plot.svg(curve(run, m.name), { width = 420, height = 260 }):gsub("<style>.-</style>", "")
      add('<figure>%s</figure>\n', text)
    end
  end
  add "</div>\n"
  if #flat > 0 then
    add('<p class="soft">The same at every step: %s.</p>\n', shown(table.concat(flat, ", ")))
  end
  if #left > 0 then
    add('<p class="soft">Not drawn: %s.</p>\n', shown(table.concat(left, ", ")))
  end
end

local function alarms(add, run)
  add "<h2>Alarms and warnings</h2>\n"
  if #run.alarms == 0 and #run.warnings == 0 then
    add "<p>None went off.</p>\n"
    return
  end
  local rows = {}
  for i, a in ipairs(run.alarms) do rows[i] = { a.step, a.name, a.message } end
  if #rows > 0 then table_of(add, { "step", "alarm", "what it saw" }, rows, { true }) end
  for _, w in ipairs(run.warnings) do add('<p class="running">warning: %s</p>\n', shown(w)) end
  if run.unlisted > 0 then add('<p class="soft">%d more are in log.txt.</p>\n', run.unlisted) end
end

local function samples(add, run)
  if run.sample_count == 0 then return end
  local few = #run.samples < run.sample_count
  add("<h2>Samples</h2>\n<p class=\"soft\">%s</p>\n", few and ("%d of %d, evenly over the run."):format(#run.samples,
    run.sample_count) or ("All %d."):format(run.sample_count))
  for _, row in ipairs(run.samples) do
    local long, pairs_of = {}, {}
    for _, name in ipairs(options.names(row)) do
      local v = row[name]
      if type(v) == "table" then v = peri.json.encode(v, { nan = "literal" }) end
      if name ~= "step" then
        if type(v) == "string" then long[#long + 1] = { name, v }
        else pairs_of[#pairs_of + 1] = ("%s %s"):format(name, type(v) == "number" and number(v) or tostring(v)) end
      end
    end
    local step = type(row.step) == "number" and "step " .. number(row.step) or "no step"
    add('<div class="sample"><p><b>%s</b> <span class="pairs">%s</span></p>', step,
      shown(table.concat(pairs_of, "   ")))
    for _, entry in ipairs(long) do
      add('<b>%s</b><pre dir="auto">%s</pre>', shown(entry[1], 200), shown(entry[2]))
    end
    add "</div>\n"
  end
end

local function metrics(add, run)
  if #run.metrics == 0 then return end
  add("<h2>Metrics</h2>\n<p class=\"soft\">%d rows of metrics.jsonl; values that are finite.</p>\n", run.rows)
  local rows = {}
  for i, m in ipairs(run.metrics) do
    if i > ROWS then break end
    rows[i] = { m.name }
    local values = { m.first, m.last, m.low, m.low_step, m.high, m.high_step, m.count }
    for k, v in ipairs(values) do rows[i][k + 1] = number(v) end
  end
  table_of(add, { "metric", "first", "last", "lowest", "at step", "highest", "at step", "values" }, rows,
    { false, true, true, true, true, true, true, true })
  if #run.metrics > ROWS then add('<p class="soft">%d more are not listed.</p>\n', #run.metrics - ROWS) end
end

local function configuration(add, run)
  add "<h2>Configuration</h2>\n"
  local own, others = {}, {}
  for _, name in ipairs(options.names(run.config)) do
    local v = run.config[name]
    local text = type(v) == "table" and peri.json.encode(v) or tostring(v)
    table.insert(run.free[name] and others or own, { "--" .. name, text })
  end
  table_of(add, { "flag", "value" }, own, {})
  if #others > 0 then
    add "<details><summary>Flags of every recipe</summary>\n"
    table_of(add, { "flag", "value" }, others, {})
    add "</details>\n"
  end
end

local function environment(add, run)
  add "<h2>Environment</h2>\n"
  if #run.sessions == 0 then
    add "<p>The folder does not say: its run was made by a version that did not note it.</p>\n"
    return
  end
  local rows = {}
  for _, s in ipairs(run.sessions) do
    local what = s.event == "begin" and "began" or s.event == "resume" and "resumed" or "ended"
    if s.ok == false then what = "ended: " .. tostring(s.why or "no reason is noted")
    elseif s.why then what = "stopped: " .. tostring(s.why) end
    local commit = s.commit and tostring(s.commit):sub(1, 12) or ""
    rows[#rows + 1] = { s.time or "", what, number(math.tointeger(s.step) or 0), s.perilune or "", commit, s.lua or "",
      s.processor or "", s.simd or "", s.threads and number(s.threads) or "" }
  end
  table_of(add, { "time", "", "step", "perilune", "commit", "Lua", "processor", "SIMD", "threads" }, rows,
    { [3] = true, [9] = true })
end

local function log(add, run)
  if run.log_lines == 0 then return end
  add("<details><summary>The end of log.txt: %d of %d lines</summary><pre>", #run.log, run.log_lines)
  for _, line in ipairs(run.log) do add("%s\n", shown(line, 500)) end
  add "</pre></details>\n"
end

--- @param run table  of report.read
--- @param o table  charts: most curves
--- @return string
function M.html(run, o)
  local out = {}
  local function add(format, ...) out[#out + 1] = select("#", ...) > 0 and format:format(...) or format end
  add '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
  add '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
  add "<meta http-equiv=\"Content-Security-Policy\" "
  add "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
  add('<title>%s</title>\n<style>\n%s%s%s</style>\n</head>\n<body>\n', shown(run.name), svg.rules, style, dark())
  head(add, run)
  results(add, run)
  pictures(add, run)
  charts(add, run, o.charts)
  alarms(add, run)
  samples(add, run)
  metrics(add, run)
  configuration(add, run)
  environment(add, run)
  log(add, run)
  add('<p class="soft">Written by perilune %s, %s.</p>\n</body>\n</html>\n', shown(peri.info().version),
    os.date "%Y-%m-%d %H:%M:%S")
  return table.concat(out)
end

return M
