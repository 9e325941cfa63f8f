-- globals.lua - what every template may call: range, dict, namespace, cycler, joiner,
-- raise_exception, strftime_now. The clock is the caller's.

local methods = require "perilune.text.template.methods"
local params = require "perilune.text.template.params"
local text = require "perilune.text.template.text"
local values = require "perilune.text.template.values"

--- The callables by name.
local M = { names = {} }
local names_of = M.names

local raise, charge = values.raise, values.charge

local RANGE_MAX = 100000

local function func(name, spec, fn, raw)
  local bound = params.bind(name, spec, function(_, ...) return fn(...) end, raw)
  names_of[name] = values.func(name, function(args, names) return bound(nil, args, names) end)
end

func("range", "start! stop step", function(start, stop, step)
  start = values.int(values.defined(start), "range: a bound")
  if stop == nil then start, stop = 0, start else stop = values.int(values.defined(stop), "range: a bound") end
  step = step == nil and 1 or values.int(values.defined(step), "range: the step")
  if step == 0 then raise "range() arg 3 must not be zero" end
  local span = step > 0 and (stop + 0.0) - start or (start + 0.0) - stop
  if span / math.abs(step + 0.0) > RANGE_MAX then raise("range too big: more than %d numbers", RANGE_MAX) end
  local out, n = { t = "range", start = start, stop = stop, step = step }, 0
  if span > 0 then
    for i = start, step > 0 and stop - 1 or stop + 1, step do
      n = n + 1
      out[n] = i
    end
  end
  charge(n)
  out.n = n
  return out
end)

-- dict(mapping or pairs, name=value...).
local function make_dict(who, args, names)
  if args.n > 1 then raise("%s expected at most 1 argument, got %d", who, args.n) end
  charge(8)
  local out = values.dict()
  local from = args[1]
  if args.n == 1 then
    if values.type(from) == "dict" then
      out = methods.copy(from)
    elseif values.type(from) == "ns" then
      out = methods.copy(from.dict)
    else
      local items, n = values.iterate(values.defined(from))
      charge(4 * n)
      for i = 1, n do
        local pair, m = values.iterate(items[i])
        if m ~= 2 then raise("%s: element %d has length %d; 2 is required", who, i - 1, m) end
        values.put(out, pair[1], pair[2])
      end
    end
  end
  if names then
    charge(4 * names.n)
    for i = 1, names.n do values.put(out, values.pair(names, i)) end
  end
  return out
end

names_of.dict = values.func("dict", function(args, names) return make_dict("dict", args, names) end)

--- Refuses names that the sandbox keeps for itself.
function M.namespace_name(name)
  if type(name) == "string" and name:sub(1, 1) == "_" then
    raise("a namespace cannot have attribute '%s': it starts with an underscore", name)
  end
end

names_of.namespace = values.func("namespace", function(args, names)
  local dict = make_dict("namespace", args, names)
  for i = 1, dict.n do M.namespace_name(dict.keys[i]) end
  return { t = "ns", dict = dict }
end)

names_of.cycler = values.func("cycler", function(args)
  if args.n == 0 then raise "at least one item has to be provided" end
  return { t = "cycler", items = values.copy(args, args.n), at = 0 }
end)

local cycler = methods.add "cycler"
function cycler.next(v)
  local item = v.items[v.at + 1]
  v.at = (v.at + 1) % v.items.n
  return item
end
function cycler.reset(v)
  v.at = 0
  return values.None
end

func("joiner", "sep", function(sep) return { t = "joiner", sep = sep == nil and ", " or sep, used = false } end, "all")

func("raise_exception", "message", function(message)
  raise("%s", message == nil and "raise_exception" or text.str(message))
end)

names_of.lipsum = values.func("lipsum", function() raise "lipsum is not supported" end)

-- ---- the clock ----

local months = { "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
  "November", "December" }
local days = { "Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday" }

local conversions

local function strftime(form, d)
  return (form:gsub("%%(-?)(.)", function(minus, c)
    local convert = conversions[c]
    if not convert then return nil end
    local s = convert(d)
    return minus == "-" and (s:gsub("^[0 ]+(.)", "%1")) or s
  end))
end

local function numbered(width, get) return function(d) return ("%0" .. width .. "d"):format(get(d)) end end

local function weeks(d, first) return (d.yday - 1 + 7 - (d.wday - 1 - first) % 7) // 7 end

-- Weekday names and numbers as the C locale has them, whatever the process's locale.
conversions = {
  Y = function(d) return tostring(d.year) end,
  y = numbered(2, function(d) return d.year % 100 end),
  C = numbered(2, function(d) return d.year // 100 end),
  m = numbered(2, function(d) return d.month end),
  d = numbered(2, function(d) return d.day end),
  e = function(d) return ("%2d"):format(d.day) end,
  H = numbered(2, function(d) return d.hour end),
  I = numbered(2, function(d) return (d.hour - 1) % 12 + 1 end),
  M = numbered(2, function(d) return d.min end),
  S = numbered(2, function(d) return d.sec end),
  f = function() return "000000" end,
  j = numbered(3, function(d) return d.yday end),
  p = function(d) return d.hour < 12 and "AM" or "PM" end,
  B = function(d) return months[d.month] end,
  b = function(d) return months[d.month]:sub(1, 3) end,
  h = function(d) return months[d.month]:sub(1, 3) end,
  A = function(d) return days[d.wday] end,
  a = function(d) return days[d.wday]:sub(1, 3) end,
  w = function(d) return tostring(d.wday - 1) end,
  u = function(d) return tostring((d.wday + 5) % 7 + 1) end,
  U = numbered(2, function(d) return weeks(d, 0) end),
  W = numbered(2, function(d) return weeks(d, 1) end),
  Z = function() return "" end,
  z = function() return "" end,
  n = function() return "\n" end,
  t = function() return "\t" end,
  ["%"] = function() return "%" end,
  F = function(d) return strftime("%Y-%m-%d", d) end,
  T = function(d) return strftime("%H:%M:%S", d) end,
  X = function(d) return strftime("%H:%M:%S", d) end,
  R = function(d) return strftime("%H:%M", d) end,
  D = function(d) return strftime("%m/%d/%y", d) end,
  x = function(d) return strftime("%m/%d/%y", d) end,
  r = function(d) return strftime("%I:%M:%S %p", d) end,
  c = function(d) return strftime("%a %b %e %H:%M:%S %Y", d) end,
}

--- strftime_now under a clock: now() gives the fields of os.date "*t".
--- @param now function
function M.clock(now)
  return values.func("strftime_now", function(args, names)
    local form = values.plain(args[1])
    if names or args.n ~= 1 or type(form) ~= "string" then raise "strftime_now takes one format text" end
    charge(8 + #form * 4)
    return strftime(form, now())
  end)
end

return M
