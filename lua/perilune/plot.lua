-- plot.lua - curves for the terminal (braille dots) and as SVG with axes, grid and legend.
--   print(plot.terminal { title = "loss", series = { { name = "train", y = losses } } })
--   plot.save("loss.svg", { chart, chart, ... })
-- A chart is { title, xlabel, ylabel, series = { { name, x, y, smooth }, ... } }. x defaults to
-- 1..n; smooth in [0, 1) draws an exponential average over the faint raw curve; values that are not
-- finite leave gaps.

local M = {}

local function finite(v) return type(v) == "number" and v == v and v > -math.huge and v < math.huge end

--- Exponential average, corrected for its start (Kingma and Ba 2015); gaps stay gaps.
--- @param y number[]
--- @param weight number  in [0, 1)
--- @return number[]
function M.smooth(y, weight)
  local out, mean, norm = {}, 0, 0
  for i = 1, #y do
    if finite(y[i]) then
      mean = weight * mean + (1 - weight) * y[i]
      norm = weight * norm + (1 - weight)
      out[i] = mean / norm
    else
      out[i] = 0 / 0
    end
  end
  return out
end

--- Round numbers that cover [low, high]: about n of them.
--- @return number[] ticks
--- @return integer digits  after the point
function M.ticks(low, high, n)
  if high <= low then
    local pad = low == 0 and 1 or math.abs(low) * 0.5
    low, high = low - pad, high + pad
  end
  local raw = (high - low) / math.max(n, 1)
  local power = 10.0 ^ math.floor(math.log(raw, 10))
  local step = power
  for _, f in ipairs { 1, 2, 5, 10 } do
    step = f * power
    if step >= raw * 0.999 then break end
  end
  local list = {}
  for k = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) do list[#list + 1] = k * step end
  return list, math.max(0, -math.floor(math.log(step, 10) + 1e-9))
end

local function label(v, digits)
  local a = math.abs(v)
  if a >= 1e5 or (a > 0 and digits > 4) then return (("%.2g"):format(v):gsub("e([+-])0+", "e%1")) end
  return ("%." .. digits .. "f"):format(v + 0.0)
end

-- The curves of a chart with their ranges: { name, x, y, raw }.
local function prepare(chart)
  local curves = {}
  local r = { xmin = math.huge, xmax = -math.huge, ymin = math.huge, ymax = -math.huge }
  for i, s in ipairs(chart.series) do
    local x = s.x
    if not x then
      x = {}
      for k = 1, #s.y do x[k] = k end
    end
    local smooth = s.smooth and s.smooth > 0
    local c = { name = s.name or "", x = x, raw = smooth and s.y or nil,
                y = smooth and M.smooth(s.y, s.smooth) or s.y }
    curves[i] = c
    for k = 1, #s.y do
      if finite(s.y[k]) and finite(x[k]) then
        r.xmin, r.xmax = math.min(r.xmin, x[k]), math.max(r.xmax, x[k])
        r.ymin, r.ymax = math.min(r.ymin, s.y[k]), math.max(r.ymax, s.y[k])
      end
    end
  end
  if r.xmin > r.xmax then r.xmin, r.xmax, r.ymin, r.ymax = 0, 1, 0, 1 end
  if r.xmin == r.xmax then r.xmin, r.xmax = r.xmin - 0.5, r.xmax + 0.5 end
  if r.ymin == r.ymax then
    local pad = r.ymin == 0 and 1 or math.abs(r.ymin) * 0.1
    r.ymin, r.ymax = r.ymin - pad, r.ymax + pad
  end
  if finite(chart.ymin) then r.ymin = chart.ymin end
  if finite(chart.ymax) then r.ymax = chart.ymax end
  return curves, r
end

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

--- Curves as lines of text.
--- @param chart table
--- @param opts table?  width (72), height (12) in characters, color (false)
--- @return string
function M.terminal(chart, opts)
  local o = opts or {}
  local height = o.height or 12
  local curves, r = prepare(chart)
  local ticks, digits = M.ticks(r.ymin, r.ymax, height // 3)
  local margin = 0
  for _, t in ipairs(ticks) do margin = math.max(margin, #label(t, digits)) end
  local width = math.max((o.width or 72) - margin - 2, 8)
  local cells, owner = {}, {}
  for i, c in ipairs(curves) do
    local last
    for k = 1, #c.y do
      if finite(c.y[k]) and finite(c.x[k]) then
        local px = math.floor((c.x[k] - r.xmin) / (r.xmax - r.xmin) * (width * 2 - 1) + 0.5)
        local py = math.floor((r.ymax - c.y[k]) / (r.ymax - r.ymin) * (height * 4 - 1) + 0.5)
        last = last or { px, py }
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
    at_row[math.floor((r.ymax - t) / (r.ymax - r.ymin) * (height - 1) + 0.5)] = label(t, digits)
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
  local first, last = label(r.xmin, 0), label(r.xmax, 0)
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

-- ---- SVG -------------------------------------------------------------------------------------

-- Okabe and Ito's colours: told apart by colour-blind readers too.
local palette = { "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9" }

local function escape(s)
  return (tostring(s):gsub("[&<>\"]", { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;" }))
end

-- Path data of a curve; at most one point a half pixel, the extremes of each kept.
local function path(c, y, px, py, columns)
  local points, last, lo, hi = {}, nil, nil, nil
  local d, pen = {}, "M"
  local function flush()
    if last then
      points[#points + 1] = { last, lo }
      if hi ~= lo then points[#points + 1] = { last, hi } end
    end
    last, lo, hi = nil, nil, nil
  end
  local function stroke()
    flush()
    for _, p in ipairs(points) do
      d[#d + 1] = ("%s%.1f %.1f"):format(pen, p[1], p[2])
      pen = "L"
    end
    points, pen = {}, "M"
  end
  for k = 1, #y do
    if finite(y[k]) and finite(c.x[k]) then
      local x, v = math.floor(px(c.x[k]) * columns + 0.5) / columns, py(y[k])
      if x ~= last then
        flush()
        last, lo, hi = x, v, v
      else
        lo, hi = math.min(lo, v), math.max(hi, v)
      end
    else
      stroke()
    end
  end
  stroke()
  return table.concat(d)
end

local function draw(out, chart, left, top, w, h)
  local function add(...) out[#out + 1] = (...):format(select(2, ...)) end
  local curves, r = prepare(chart)
  local x0, y0, x1, y1 = left + 62, top + 34, left + w - 16, top + h - 46
  local function px(x) return x0 + (x - r.xmin) / (r.xmax - r.xmin) * (x1 - x0) end
  local function py(y)
    y = math.min(math.max(y, r.ymin), r.ymax)
    return y1 - (y - r.ymin) / (r.ymax - r.ymin) * (y1 - y0)
  end
  local yticks, ydigits = M.ticks(r.ymin, r.ymax, math.max((y1 - y0) // 40, 2))
  local xticks, xdigits = M.ticks(r.xmin, r.xmax, math.max((x1 - x0) // 80, 2))
  for _, t in ipairs(yticks) do
    add('<path class="grid" d="M%.1f %.1fH%.1f"/><text class="y" x="%.1f" y="%.1f">%s</text>',
      x0, py(t), x1, x0 - 6, py(t) + 4, label(t, ydigits))
  end
  for _, t in ipairs(xticks) do
    add('<path class="grid" d="M%.1f %.1fV%.1f"/><text class="x" x="%.1f" y="%.1f">%s</text>',
      px(t), y0, y1, px(t), y1 + 16, label(t, xdigits))
  end
  add('<path class="axis" d="M%.1f %.1fV%.1fH%.1f"/>', x0, y0, y1, x1)
  for i, c in ipairs(curves) do
    local color = palette[(i - 1) % #palette + 1]
    if c.raw then
      add('<path class="raw" stroke="%s" d="%s"/>', color, path(c, c.raw, px, py, 2))
    end
    add('<path class="curve" stroke="%s" d="%s"/>', color, path(c, c.y, px, py, 2))
  end
  if chart.title then
    add('<text class="title" x="%.1f" y="%.1f">%s</text>', (x0 + x1) / 2, top + 20, escape(chart.title))
  end
  if chart.xlabel then
    add('<text class="x" x="%.1f" y="%.1f">%s</text>', (x0 + x1) / 2, y1 + 36, escape(chart.xlabel))
  end
  if chart.ylabel then
    local x, y = left + 14, (y0 + y1) / 2
    add('<text class="x" transform="translate(%.1f %.1f) rotate(-90)">%s</text>', x, y, escape(chart.ylabel))
  end
  if #curves > 1 then
    for i, c in ipairs(curves) do
      local y = y0 + 4 + i * 15
      add('<path stroke="%s" stroke-width="3" d="M%.1f %.1fh16"/><text x="%.1f" y="%.1f">%s</text>',
        palette[(i - 1) % #palette + 1], x0 + 10, y - 4, x0 + 32, y, escape(c.name))
    end
  end
end

local style = [[<style>
text { font: 12px sans-serif; fill: #333 } .title { font-size: 14px; font-weight: bold; text-anchor: middle }
.x { text-anchor: middle } .y { text-anchor: end }
path { fill: none } .grid { stroke: #e4e4e4 } .axis { stroke: #333 }
.curve { stroke-width: 1.6; stroke-linejoin: round } .raw { stroke-width: 1; opacity: .3 }
</style>]]

--- Charts as one SVG document.
--- @param charts table  a chart or a list of charts
--- @param opts table?  width (480), height (300) of a chart, columns (1 for one chart, else 2)
--- @return string
function M.svg(charts, opts)
  if charts.series then charts = { charts } end
  local o = opts or {}
  local w, h = o.width or 480, o.height or 300
  local columns = o.columns or math.min(#charts, 2)
  local rows = (#charts + columns - 1) // columns
  local out = {
    ('<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d">')
      :format(w * columns, h * rows, w * columns, h * rows),
    style, '<rect width="100%" height="100%" fill="#fff"/>',
  }
  for i, chart in ipairs(charts) do
    draw(out, chart, (i - 1) % columns * w, (i - 1) // columns * h, w, h)
  end
  out[#out + 1] = "</svg>\n"
  return table.concat(out, "\n")
end

--- Write charts to an SVG file.
--- @param path_ string
--- @param charts table
--- @param opts table?
--- @return boolean|nil
--- @return string? message
function M.save(path_, charts, opts)
  local file, err = io.open(path_, "wb")
  if not file then return nil, err end
  local ok, message = file:write(M.svg(charts, opts))
  file:close()
  if not ok then return nil, message end
  return true
end

return M
