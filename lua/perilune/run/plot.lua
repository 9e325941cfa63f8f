-- plot.lua - curves for the terminal (braille dots) and as SVG with axes, grid and legend.
--   print(plot.terminal { title = "loss", series = { { name = "train", y = losses } } })
--   plot.save("loss.svg", { chart, chart, ... })
-- A chart is { title, xlabel, ylabel, xscale, yscale = "linear" or "log", ymin, ymax, series = { { name, x, y, smooth,
-- line }, ... } }. x defaults to 1..n; values that are not finite leave gaps. Curves are drawn as they are; smooth =
-- "auto" draws a smoothed curve over a noisy one, a number in [0, 1) over any.

local peri = require "perilune"
local options = require "perilune.options"
local data = require "perilune.run.plot.data"
local svg = require "perilune.run.plot.svg"

local M = {}

M.smooth, M.noisy, M.ticks = data.smooth, data.noisy, data.ticks
local finite = data.finite

-- ---- terminal --------------------------------------------------------------------------------

local colors = { 36, 33, 35, 32, 34, 31 } -- ANSI foregrounds

local function paint(text, i) return ("\27[%dm%s\27[0m"):format(colors[(i - 1) % #colors + 1], text) end

-- Bit of dot (column 0..1, row 0..3) in a braille character (Unicode 2800).
local dots = { [0] = { [0] = 0x01, 0x02, 0x04, 0x40 }, { [0] = 0x08, 0x10, 0x20, 0x80 } }

local function line_dots(x0, y0, x1, y1, set)
  local n = math.max(math.abs(x1 - x0), math.abs(y1 - y0), 1)
  for k = 0, n do
    set(math.floor(x0 + (x1 - x0) * k / n + 0.5), math.floor(y0 + (y1 - y0) * k / n + 0.5))
  end
end

local terminal_rules = {
  width = options.integer(72, "[16, inf)", "in characters"),
  height = options.integer(12, "[3, inf)", "in lines"),
  color = options.boolean(false, "with escapes"),
}

--- Curves as lines of text.
--- @param chart table
--- @param opts table?
--- @return string
function M.terminal(chart, opts)
  local o = options.fill("plot.terminal", opts, terminal_rules, 3)
  local height = o.height
  local curves, r = data.prepare(chart)
  local ticks = data.axis(r.ymin, r.ymax, height // 3, r.log)
  local margin = 0
  for _, t in ipairs(ticks) do margin = math.max(margin, #t[2]) end
  local width = math.max(o.width - margin - 2, 8)
  local cells, owner = {}, {}
  for i, c in ipairs(curves) do
    local last
    for k = 1, #c.y do
      if finite(c.y[k]) and finite(c.x[k]) then
        local px = math.floor((c.x[k] - r.xmin) / (r.xmax - r.xmin) * (width * 2 - 1) + 0.5)
        local py = math.floor((r.ymax - c.y[k]) / (r.ymax - r.ymin) * (height * 4 - 1) + 0.5)
        last = c.line and last or { px, py }
        line_dots(last[1], last[2], px, py, function(x, y)
          if x < 0 or y < 0 or x >= width * 2 or y >= height * 4 then return end
          local at = (y // 4) * width + x // 2
          cells[at] = (cells[at] or 0) | dots[x % 2][y % 4]
          owner[at] = i
        end)
        last = { px, py }
      else
        last = nil
      end
    end
  end
  local at_row = {}
  for _, t in ipairs(ticks) do
    at_row[math.floor((r.ymax - t[1]) / (r.ymax - r.ymin) * (height - 1) + 0.5)] = t[2]
  end
  local out = {}
  if chart.title then out[1] = (" "):rep(margin + 2) .. chart.title end
  for row = 0, height - 1 do
    local parts = { ("%" .. margin .. "s %s"):format(at_row[row] or "", at_row[row] and "┤" or "│") }
    for col = 0, width - 1 do
      local at = row * width + col
      local bits = cells[at]
      local char = bits and utf8.char(0x2800 + bits) or " "
      if bits and o.color then char = paint(char, owner[at]) end
      parts[#parts + 1] = char
    end
    out[#out + 1] = (table.concat(parts):gsub(" +$", ""))
  end
  local function at(x) return ("%.6g"):format(r.xlog and 10.0 ^ x or x) end
  local first, last = at(r.xmin), at(r.xmax)
  out[#out + 1] = (" "):rep(margin + 1) .. "└" .. ("─"):rep(width)
  out[#out + 1] = (" "):rep(margin + 2) .. first .. (" "):rep(math.max(width - #first - #last, 1)) .. last
  if #curves > 1 then
    local names = {}
    for i, c in ipairs(curves) do
      names[i] = o.color and paint(c.name, i) or c.name
    end
    out[#out + 1] = (" "):rep(margin + 2) .. table.concat(names, "  ")
  end
  return table.concat(out, "\n")
end
options.declare(M.terminal, { "chart" }, terminal_rules)

-- ---- SVG -------------------------------------------------------------------------------------

local function list_of(who, charts)
  options.argument(who, "charts", charts, "table")
  if charts.series then return { charts } end
  if #charts == 0 then options.raise(who .. ": there is no chart, expected one or a list") end
  return charts
end

local svg_rules = {
  width = options.integer(480, "[100, inf)", "of a chart, in pixels"),
  height = options.integer(300, "[80, inf)", "of a chart, in pixels"),
  columns = options.integer(options.none, "[1, inf)", "charts beside each other; default 1 for one chart, else 2"),
}

--- Charts as one SVG document.
--- @param charts table  a chart or a list of charts
--- @param opts table?
--- @return string
function M.svg(charts, opts)
  local o = options.fill("plot.svg", opts, svg_rules, 3)
  local text = svg.document(list_of("plot.svg", charts), o)
  return text
end
options.declare(M.svg, { "charts" }, svg_rules)

--- Write charts to an SVG file.
--- @param path string
--- @param charts table
--- @param opts table?  as plot.svg
--- @return boolean|nil
--- @return string? message
function M.save(path, charts, opts)
  local o = options.fill("plot.save", opts, svg_rules, 3)
  local text = svg.document(list_of("plot.save", charts), o)
  local ok, message = peri.files.write(path, text)
  if not ok then return nil, ("%s: %s"):format(path, message) end
  return true
end
options.declare(M.save, { "path", "charts" }, svg_rules)

return require "perilune.names"(M, "perilune.plot")
