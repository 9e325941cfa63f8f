-- data.lua (of plots) - what a chart shows: curves with their ranges, whether one is noisy, its smoothed
-- form, round ticks and their texts. No drawing.

local options = require "perilune.options"

local M = {}

-- A number that can be drawn: the difference of two is one, too. Less than LEAST between them is nothing.
local HIGHEST <const>, LEAST <const> = 1e300, 1e-300

local function finite(v) return type(v) == "number" and v >= -HIGHEST and v <= HIGHEST end
M.finite = finite

--- Average with weights that fall off to both sides as weight ^ distance: no lag, a peak stays where it is.
--- Gaps (values that are not finite) stay gaps.
--- @param y number[]
--- @param weight number  in [0, 1)
--- @return number[]
function M.smooth(y, weight)
  local out, sum, norm = {}, 0, 0
  for i = 1, #y do -- what stands before, i included
    sum, norm = sum * weight, norm * weight
    if finite(y[i]) then sum, norm = sum + y[i], norm + 1 end
    out[i] = { sum, norm }
  end
  sum, norm = 0, 0
  for i = #y, 1, -1 do -- and what comes after
    local before = out[i]
    out[i] = finite(y[i]) and (before[1] + sum) / (before[2] + norm) or 0 / 0
    if finite(y[i]) then sum, norm = sum + y[i], norm + 1 end
    sum, norm = sum * weight, norm * weight
  end
  return out
end

local FEW = 40        -- points: too few to need it
local TURNS = 0.25    -- of all points are turns; white noise has 2/3, a schedule nearly none
local ROUGH = 0.005   -- of the range is a usual step; less is no noise that one sees

--- Does a curve go up and down so much that a smoothed one helps? Schedules and steps do not.
--- @param y number[]
--- @return boolean
function M.noisy(y)
  local values = {}
  for i = 1, #y do if finite(y[i]) then values[#values + 1] = y[i] end end
  if #values < FEW then return false end
  local low, high, turns, last, steps = math.huge, -math.huge, 0, 0, {}
  for i, v in ipairs(values) do
    low, high = math.min(low, v), math.max(high, v)
    local d = i > 1 and v - values[i - 1] or 0
    if i > 1 then steps[i - 1] = math.abs(d) end
    if d * last < 0 then turns = turns + 1 end
    if d ~= 0 then last = d end
  end
  table.sort(steps)
  return turns > TURNS * (#values - 2) and steps[(#steps + 1) // 2] > ROUGH * (high - low)
end

-- Of a noisy curve: about a fortieth of it counts together.
local function usual_weight(n) return 1 - 1 / math.max(n / 40, 2) end

--- Round numbers that cover [low, high]: about n of them.
--- @return number[] ticks
--- @return integer digits  after the point
function M.ticks(low, high, n)
  if high <= low or high - low < LEAST then
    local pad = math.abs(low) < LEAST and 1 or math.abs(low) * 0.5
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

-- Values whose logarithms lie in [low, high]: powers of ten, with 2 and 5 where there are few.
local function log_ticks(low, high)
  local list = {}
  local factors = high - low < 2.5 and { 1, 2, 5 } or { 1 }
  local skip = math.max(1, math.ceil((high - low) / 8))
  for k = math.floor(low), math.ceil(high) do
    for _, f in ipairs(k % skip == 0 and factors or {}) do
      local at = k + math.log(f, 10)
      if at >= low - 1e-9 and at <= high + 1e-9 then list[#list + 1] = { at, f * 10.0 ^ k } end
    end
  end
  return list
end

local units = { { 1e9, "G" }, { 1e6, "M" }, { 1e3, "k" } }

-- 0.25, 1500, 20k, 1.5M, 1e-06.
local function label(v, digits)
  local a = math.abs(v)
  if a >= 1e12 or digits > 4 then return (("%.3g"):format(v):gsub("e([+-])0+", "e%1")) end
  if a >= 1e4 then
    for _, u in ipairs(units) do
      if a >= u[1] then return (("%.4g"):format(v / u[1])) .. u[2] end
    end
  end
  return ("%." .. digits .. "f"):format(v + 0.0)
end

--- Ticks of an axis of a prepared chart: { at, text }, `at` on the axis' own scale.
--- @param low number
--- @param high number
--- @param n integer  about how many
--- @param log boolean?
--- @return table[]
function M.axis(low, high, n, log)
  local out = {}
  if log then
    for i, t in ipairs(log_ticks(low, high)) do
      out[i] = { t[1], (("%.4g"):format(t[2]):gsub("e([+-])0+", "e%1")) }
    end
    if #out >= 2 then return out end
    out = {}
    for i, t in ipairs((M.ticks(low, high, n))) do out[i] = { t, ("%.3g"):format(10.0 ^ t) } end
    return out
  end
  local ticks, digits = M.ticks(low, high, n)
  for i, t in ipairs(ticks) do out[i] = { t, label(t, digits) } end
  return out
end

local chart_rules = {
  title = options.value(options.none, "string", "above the chart"),
  xlabel = options.value(options.none, "string", "below the x axis"),
  ylabel = options.value(options.none, "string", "beside the y axis: what is measured, and its unit"),
  xscale = options.choice("linear", { "linear", "log" }, "log leaves out what is not above 0"),
  yscale = options.choice("linear", { "linear", "log" }, "log leaves out what is not above 0"),
  ymin = options.number(options.none, "[-1e300, 1e300]", "end of the y axis"),
  ymax = options.number(options.none, "[-1e300, 1e300]", "end of the y axis"),
  series = options.value(options.required, "table", "list of curves"),
}

local series_rules = {
  name = options.value("", "string", "for the legend"),
  x = options.value(options.none, "table", "default 1, 2, 3 ..."),
  y = options.value(options.required, "table", "values; those that are not finite leave gaps"),
  line = options.boolean(true, "from value to value; false: dots alone"),
  smooth = options.value(options.none, "number or string",
    'weight in [0, 1) of a smoothed curve over the raw one, "auto": when it is noisy; default: none'),
}

local function weight_of(s)
  if s.smooth == nil or s.smooth == 0 then return nil end
  if s.smooth == "auto" then return M.noisy(s.y) and usual_weight(#s.y) or nil end
  if type(s.smooth) == "number" and s.smooth > 0 and s.smooth < 1 then return s.smooth end
  options.raise(('plot: smooth is %s, expected a number in [0, 1) or "auto"'):format(tostring(s.smooth)))
end

-- What is no number is a slip, and so is an x for another count of values.
local function check_numbers(s)
  local name = s.name ~= "" and (" of %q"):format(s.name) or ""
  for _, axis in ipairs { "x", "y" } do
    for i, v in ipairs(s[axis] or {}) do
      if type(v) ~= "number" then
        options.raise(("plot: %s[%d]%s is a %s, expected a number"):format(axis, i, name, type(v)))
      end
    end
  end
  if s.x and #s.x ~= #s.y then
    options.raise(("plot: x%s has %d values, y has %d"):format(name, #s.x, #s.y))
  end
end

-- Ends of an axis with room between them; values that differ by less than a double tells apart are one.
local function widen(low, high, pad)
  local least = math.max(math.abs(low), math.abs(high)) * 1e-12
  if high - low > math.max(least, LEAST) then return low, high end
  return low - pad, high + pad
end

--- A chart with its rules checked: its curves { name, x, y, smooth } on the scale of the axes, and the range
--- of both axes { xmin, xmax, ymin, ymax, log, xlog, empty }.
--- @param chart table
--- @return table curves
--- @return table range
--- @return table chart
function M.prepare(chart)
  local c = options.fill("plot", chart, chart_rules, 4)
  local log = c.yscale == "log"
  local curves = {}
  local r = { xmin = math.huge, xmax = -math.huge, ymin = math.huge, ymax = -math.huge, log = log,
              xlog = c.xscale == "log" }
  local function logarithm(v) return finite(v) and v > 0 and math.log(v, 10) or 0 / 0 end
  local function scale(v) return log and logarithm(v) or not log and v end
  for i, given in ipairs(c.series) do
    local s = options.fill("plot", given, series_rules, 4)
    check_numbers(s)
    local x, y = s.x, {}
    if not x then
      x = {}
      for k = 1, #s.y do x[k] = k end
    end
    if r.xlog then
      local places = x
      x = {}
      for k, v in ipairs(places) do x[k] = logarithm(v) end
    end
    local weight, count = weight_of(s), 0
    for k = 1, #s.y do
      y[k] = scale(s.y[k])
      if finite(y[k]) and finite(x[k]) then
        r.xmin, r.xmax = math.min(r.xmin, x[k]), math.max(r.xmax, x[k])
        r.ymin, r.ymax = math.min(r.ymin, y[k]), math.max(r.ymax, y[k])
        count = count + 1
      end
    end
    curves[i] = { name = s.name, x = x, y = y, line = s.line, smooth = weight and M.smooth(y, weight),
                  count = count }
  end
  r.empty = r.xmin > r.xmax
  if r.empty then r.xmin, r.xmax, r.ymin, r.ymax = 0, 1, 0, 1 end
  r.xmin, r.xmax = widen(r.xmin, r.xmax, math.max(0.5, math.abs(r.xmin) * 1e-6))
  r.ymin, r.ymax = widen(r.ymin, r.ymax, (log or math.abs(r.ymin) < LEAST) and 1 or math.abs(r.ymin) * 0.1)
  local low, high = scale(c.ymin), scale(c.ymax)
  if finite(low) then r.ymin = low end
  if finite(high) then r.ymax = high end
  if r.ymin >= r.ymax then options.raise(("plot: ymin %g is not below ymax %g"):format(r.ymin, r.ymax)) end
  return curves, r, c
end

M.chart_rules, M.series_rules = chart_rules, series_rules
return M
