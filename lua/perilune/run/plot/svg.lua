-- svg.lua - charts as an SVG document: axes with ticks and names, grid, legend. Curves are drawn as they
-- are; a noisy one has its smoothed form over it.

local data = require "perilune.run.plot.data"
local finite = data.finite

local M = {}

-- Okabe and Ito's colours, told apart by colour-blind readers too, and darker ones of the same hue.
local palette = { "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9" }
local darker = { "#003a5c", "#7a3600", "#00523c", "#7d3f63", "#8a5f00", "#2a6d94" }

local DOTS = 40 -- points: a curve with fewer shows each

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

-- What the legend says, in rows of at most `room` pixels: { text, color, width, x, row }.
local function legend(curves, room)
  local entries = {}
  if #curves > 1 then
    for i, c in ipairs(curves) do
      entries[i] = { c.count > 0 and c.name or c.name .. " (no values)", palette[(i - 1) % #palette + 1], 2.4 }
    end
  end
  for i, c in ipairs(curves) do
    if c.smooth then
      entries[#entries + 1] = { #curves > 1 and "smoothed" or "smoothed " .. c.name,
        #curves > 1 and "#333" or darker[(i - 1) % #darker + 1], 1.2 }
      break
    end
  end
  local x, row = 0, 0
  for _, e in ipairs(entries) do
    local width = 24 + 6.6 * (utf8.len(e[1]) or #e[1]) + 12
    if x > 0 and x + width > room then x, row = 0, row + 1 end
    e.x, e.row = x, row
    x = x + width
  end
  return entries, #entries > 0 and row + 1 or 0
end

local function draw(out, chart, left, top, w, h)
  local function add(format, ...) out[#out + 1] = format:format(...) end
  local curves, r, c = data.prepare(chart)
  local x0, x1 = left + (c.ylabel and 72 or 58), left + w - 16
  local entries, rows = legend(curves, x1 - x0)
  local y0, y1 = top + 34 + rows * 16, top + h - 46
  local function px(x) return x0 + (x - r.xmin) / (r.xmax - r.xmin) * (x1 - x0) end
  local function py(y)
    y = math.min(math.max(y, r.ymin), r.ymax)
    return y1 - (y - r.ymin) / (r.ymax - r.ymin) * (y1 - y0)
  end
  for _, t in ipairs(data.axis(r.ymin, r.ymax, math.max((y1 - y0) // 40, 2), r.log)) do
    add('<path class="grid" d="M%.1f %.1fH%.1f"/><text class="y" x="%.1f" y="%.1f">%s</text>',
      x0, py(t[1]), x1, x0 - 6, py(t[1]) + 4, t[2])
  end
  for _, t in ipairs(data.axis(r.xmin, r.xmax, math.max((x1 - x0) // 80, 2), r.xlog)) do
    add('<path class="grid" d="M%.1f %.1fV%.1f"/><text class="x" x="%.1f" y="%.1f">%s</text>',
      px(t[1]), y0, y1, px(t[1]), y1 + 16, t[2])
  end
  add('<path class="axis" d="M%.1f %.1fV%.1fH%.1f"/>', x0, y0, y1, x1)
  for i, curve in ipairs(curves) do
    local color = palette[(i - 1) % #palette + 1]
    if curve.line then
      add('<path class="%s" stroke="%s" d="%s"/>', curve.smooth and "raw" or "curve", color,
        path(curve, curve.y, px, py, 2))
    end
    if curve.count <= DOTS or not curve.line then
      for k = 1, #curve.y do
        if finite(curve.y[k]) and finite(curve.x[k]) then
          add('<circle cx="%.1f" cy="%.1f" r="2.6" fill="%s"/>', px(curve.x[k]), py(curve.y[k]), color)
        end
      end
    end
  end
  for i, curve in ipairs(curves) do
    if curve.smooth then
      add('<path class="smooth" stroke="%s" d="%s"/>', darker[(i - 1) % #darker + 1],
        path(curve, curve.smooth, px, py, 2))
    end
  end
  if r.empty then add('<text class="x" x="%.1f" y="%.1f">no values</text>', (x0 + x1) / 2, (y0 + y1) / 2) end
  if c.title then
    add('<text class="title" x="%.1f" y="%.1f">%s</text>', (x0 + x1) / 2, top + 20, escape(c.title))
  end
  if c.xlabel then
    add('<text class="x" x="%.1f" y="%.1f">%s</text>', (x0 + x1) / 2, y1 + 36, escape(c.xlabel))
  end
  if c.ylabel then
    add('<text class="x" transform="translate(%.1f %.1f) rotate(-90)">%s</text>', left + 16, (y0 + y1) / 2,
      escape(c.ylabel))
  end
  for _, e in ipairs(entries) do
    local x, y = x0 + e.x, top + 44 + e.row * 16
    add('<path stroke="%s" stroke-width="%.1f" d="M%.1f %.1fh18"/><text x="%.1f" y="%.1f">%s</text>',
      e[2], e[3], x, y - 4, x + 24, y, escape(e[1]))
  end
end

M.palette, M.darker = palette, darker

M.rules = [[
text { font: 12px sans-serif; fill: #333 } .title { font-size: 14px; font-weight: bold; text-anchor: middle }
.x { text-anchor: middle } .y { text-anchor: end }
path { fill: none } .grid { stroke: #e4e4e4 } .axis { stroke: #333 }
.curve { stroke-width: 1.8; stroke-linejoin: round } .raw { stroke-width: 1.4; stroke-linejoin: round; opacity: .55 }
.smooth { stroke-width: 1.2; stroke-linejoin: round }
]]

--- Charts as one SVG document.
--- @param charts table[]
--- @param o table  width, height of a chart, columns
--- @return string
function M.document(charts, o)
  local columns = o.columns or math.max(math.min(#charts, 2), 1)
  local rows = (#charts + columns - 1) // columns
  local out = {
    ('<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d">')
      :format(o.width * columns, o.height * rows, o.width * columns, o.height * rows),
    ("<style>\n%s</style>"):format(M.rules), '<rect width="100%" height="100%" fill="#fff"/>',
  }
  for i, chart in ipairs(charts) do
    draw(out, chart, (i - 1) % columns * o.width, (i - 1) // columns * o.height, o.width, o.height)
  end
  out[#out + 1] = "</svg>\n"
  return table.concat(out, "\n")
end

return M
