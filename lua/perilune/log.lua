-- log.lua - what a run says while it runs: one aligned line a step on the console with a live
-- progress bar when that is a terminal, JSON Lines, CSV and TensorBoard events in files.
--   local logger = log.new { total = 1000, jsonl = "metrics.jsonl" }
--   logger:step(step, { loss = 1.2, reward = 0.4 }, { tok_s = 5000 })
-- The second table is for people: it goes to console and TensorBoard only, so that the files of two
-- runs with the same seed are equal byte for byte.

local peri = require "perilune"
local terminal = require "perilune.terminal"
local options = require "perilune.options"

local M = {}

local function finite(v) return v == v and v > -math.huge and v < math.huge end

-- ---- console ---------------------------------------------------------------------------------

--- Four significant digits, at most eight characters.
--- @param v any
--- @return string
function M.format(v)
  if type(v) ~= "number" then return tostring(v) end
  if v ~= v then return "nan" end
  if not finite(v) then return v > 0 and "inf" or "-inf" end
  if math.type(v) == "integer" or (v == math.floor(v) and math.abs(v) < 1e6 and math.abs(v) >= 1e4) then
    return ("%d"):format(v)
  end
  local a = math.abs(v)
  if a ~= 0 and (a < 1e-3 or a >= 1e6) then return (("%.2e"):format(v):gsub("e%+?(%-?)0?", "e%1")) end
  local digits = a >= 1000 and 0 or a >= 100 and 1 or a >= 10 and 2 or a >= 1 and 3 or 4
  return ("%." .. digits .. "f"):format(v)
end

--- "1:02:03", "4:05".
--- @param seconds number
--- @return string
function M.duration(seconds)
  local s = math.floor(seconds + 0.5)
  if s >= 3600 then return ("%d:%02d:%02d"):format(s // 3600, s // 60 % 60, s % 60) end
  return ("%d:%02d"):format(s // 60, s % 60)
end

local Console = {}
Console.__index = Console

local function console(o)
  local live = o.live
  if live == nil then live = terminal.live() end
  return setmetatable({
    out = o.out or io.stdout, live = live, total = o.total, every = o.every,
    color = live and not os.getenv "NO_COLOR", width = live and terminal.width() or 0,
    widths = {}, order = {}, begin = peri.time(), first = nil,
  }, Console)
end

-- The end of a metric's name, which says enough on the console: "rewards/accuracy/mean" is accuracy/mean.
local statistics = { mean = true, std = true, min = true, max = true }
local function short_name(name)
  local last = name:match "[^/]*$"
  return statistics[last] and name:match "[^/]*/[^/]*$" or last
end

-- Columns keep the order of their first appearance and the widest width seen; a row leaves out those
-- that it has no value for, and shows "completions/mean_length" as mean_length.
function Console:row(step, tables)
  local text = {}
  for _, t in ipairs(tables) do
    for _, name in ipairs(options.names(t)) do
      if not self.widths[name] then
        self.order[#self.order + 1], self.widths[name] = name, 0
      end
      text[name] = M.format(t[name])
      self.widths[name] = math.max(self.widths[name], #text[name])
    end
  end
  local digits = self.total and #tostring(self.total) or 6
  local parts = { ("%" .. digits .. "d"):format(step) }
  for _, name in ipairs(self.order) do
    if text[name] then
      local value, short = (" "):rep(self.widths[name] - #text[name]) .. text[name], short_name(name)
      parts[#parts + 1] = self.color and ("\27[2m%s\27[0m %s"):format(short, value) or short .. " " .. value
    end
  end
  return table.concat(parts, "  ")
end

-- "[=====>    ] 120/1000 12% 0:10<1:15 11.8 step/s"
function Console:bar(step)
  local seconds = peri.time() - self.begin
  local done = step - self.first + 1
  local rate = seconds > 0 and done / seconds or 0
  if not self.total then return ("%d  %s  %s step/s"):format(step, M.duration(seconds), M.format(rate)) end
  local left = rate > 0 and (self.total - step) / rate or 0
  local tail = ("%d/%d %3d%% %s<%s %s step/s"):format(step, self.total, step * 100 // self.total,
    M.duration(seconds), M.duration(left), M.format(rate))
  local room = math.min(self.width - #tail - 4, 40)
  if room < 5 then return tail end
  local filled = math.min(step * room // self.total, room)
  return ("[%s%s%s] %s"):format(("="):rep(math.max(filled - 1, 0)), filled > 0 and ">" or "",
    (" "):rep(room - filled), tail)
end

function Console:write(line)
  if self.live then self.out:write("\r\27[K") end
  self.out:write(line, "\n")
  if self.live and self.last_bar then self.out:write(self.last_bar) end
  self.out:flush()
end

function Console:step(step, tables)
  self.first = self.first or step
  local row = self:row(step, tables)
  local last = step == self.total
  if self.live then self.last_bar = not last and self:bar(step) or nil end
  if step % self.every == 0 or step == self.first or last then self:write(row)
  elseif self.live then
    self.out:write("\r\27[K", self.last_bar or "")
    self.out:flush()
  end
end

function Console:close()
  if self.live and self.last_bar then self.out:write("\r\27[K") end
  self.last_bar = nil
  self.out:flush()
end

-- ---- files -----------------------------------------------------------------------------------

local function read_all(path)
  local file = io.open(path, "rb")
  if not file then return nil end
  local text = file:read "a"
  file:close()
  return text
end

-- Replace a file: the new text appears whole or not at all.
local function replace(path, text)
  local file, err = io.open(path .. ".new", "wb")
  if not file then error("log: " .. err, 0) end
  file:write(text)
  file:close()
  assert(os.rename(path .. ".new", path))
end

-- Complete lines for which keep(line) is true.
local function filter_lines(path, keep)
  local text = read_all(path)
  if not text then return end
  local out = {}
  for line in text:gmatch "([^\n]*)\n" do if keep(line, #out) then out[#out + 1] = line .. "\n" end end
  local new = table.concat(out)
  if new ~= text then replace(path, new) end
end

--- Drop the lines of a JSON Lines file after a step, and a half-written last line.
--- @param path string
--- @param step integer
function M.truncate_jsonl(path, step)
  filter_lines(path, function(line)
    local at = math.tointeger(tonumber(line:match '^{"step":(%d+)'))
    return at ~= nil and at <= step
  end)
end

-- JSON has no NaN: such values are written as text.
local function json_value(v)
  if type(v) == "number" and not finite(v) then
    return v ~= v and '"NaN"' or v > 0 and '"Infinity"' or '"-Infinity"'
  end
  return peri.json.encode(v)
end

--- One object as a line, "step" first, the other names sorted.
--- @param step integer
--- @param values table
--- @return string
function M.json_line(step, values)
  local parts = { ('{"step":%d'):format(step) }
  for _, name in ipairs(options.names(values)) do
    parts[#parts + 1] = (',%s:%s'):format(peri.json.encode(name), json_value(values[name]))
  end
  parts[#parts + 1] = "}\n"
  return table.concat(parts)
end

local function open_append(path)
  local file, err = io.open(path, "ab")
  if not file then error("log: " .. err, 4) end
  return file
end

local function jsonl_sink(path)
  local file = open_append(path)
  return {
    step = function(step, values)
      file:write(M.json_line(step, values))
      file:flush()
    end,
    close = function() file:close() end,
  }
end

local function csv_value(v)
  if v == nil then return "" end
  local s = type(v) == "number" and (math.type(v) == "integer" and ("%d"):format(v) or ("%.9g"):format(v))
    or tostring(v)
  if s:find '[,"\n]' then s = '"' .. s:gsub('"', '""') .. '"' end
  return s
end

-- A new column is added at the right: the file is written anew with a longer head.
local function csv_sink(path)
  local columns, known = {}, {}
  local head = (read_all(path) or ""):match "^step([^\n]*)\n"
  for name in (head or ""):gmatch ",([^,]+)" do
    columns[#columns + 1], known[name] = name, true
  end
  local file = open_append(path)
  local function extend(names)
    for _, name in ipairs(names) do columns[#columns + 1], known[name] = name, true end
    local old = read_all(path) or ""
    local rows = old:match "^[^\n]*\n(.*)$" or ""
    file:close()
    replace(path, "step" .. (#columns > 0 and "," or "") .. table.concat(columns, ",") .. "\n"
      .. rows:gsub("\n", (","):rep(#names) .. "\n"))
    file = open_append(path)
  end
  return {
    step = function(step, values)
      local new = {}
      for _, name in ipairs(options.names(values)) do
        if not known[name] then new[#new + 1] = name end
      end
      if #new > 0 then extend(new) end
      local row = { ("%d"):format(step) }
      for i, name in ipairs(columns) do row[i + 1] = csv_value(values[name]) end
      file:write(table.concat(row, ","), "\n")
      file:flush()
    end,
    close = function() file:close() end,
  }
end

local function tensorboard_sink(folder)
  local path = ("%s/events.out.tfevents.%d.perilune"):format(folder, os.time())
  local events, err = peri.files.tfevents(path)
  if not events then error("log: " .. err, 4) end
  return {
    step = function(step, values, live)
      local now = os.time()
      for _, t in ipairs { values, live } do
        for _, name in ipairs(options.names(t)) do
          if type(t[name]) == "number" then events:scalar(name, step, t[name], now) end
        end
      end
    end,
    close = function() events:close() end,
  }
end

-- ---- logger ----------------------------------------------------------------------------------

--- @class perilune.log.Logger
local Logger = {}
Logger.__index = Logger

--- Options: total (steps), console (true), every (1: console lines), live (nil = when a terminal),
--- out (io.stdout), jsonl, csv (paths), tensorboard (folder), resume (a step: drop later lines).
--- @param given table?
--- @return perilune.log.Logger
function M.new(given)
  local none = options.none
  local o = options.fill("log.new", given, { total = none, console = true, every = 1, live = none,
    out = none, jsonl = none, csv = none, tensorboard = none, resume = none }, 3)
  local self = setmetatable({ sinks = {} }, Logger)
  if o.resume then
    if o.jsonl then M.truncate_jsonl(o.jsonl, o.resume) end
    if o.csv then
      filter_lines(o.csv, function(line, n)
        return n == 0 or (tonumber(line:match "^%d+") or math.huge) <= o.resume
      end)
    end
  end
  if o.console then self.console = console(o) end
  if o.jsonl then self.sinks[#self.sinks + 1] = jsonl_sink(o.jsonl) end
  if o.csv then self.sinks[#self.sinks + 1] = csv_sink(o.csv) end
  if o.tensorboard then self.sinks[#self.sinks + 1] = tensorboard_sink(o.tensorboard) end
  return self
end

-- Tensors of one element count as numbers.
local function plain(values)
  local out = {}
  for k, v in pairs(values or {}) do out[k] = type(v) == "userdata" and v:item() or v end
  return out
end

--- One line everywhere.
--- @param step integer
--- @param values table<string, number|string|boolean|perilune.Tensor>
--- @param live table?  values for people only: times, rates
function Logger:step(step, values, live)
  values, live = plain(values), plain(live)
  for _, sink in ipairs(self.sinks) do sink.step(step, values, live) end
  if self.console then self.console:step(step, { values, live }) end
end

--- A line of text on the console, above the progress bar.
--- @param format string
function Logger:text(format, ...)
  if self.console then self.console:write(select("#", ...) > 0 and format:format(...) or format) end
end

function Logger:close()
  for _, sink in ipairs(self.sinks) do sink.close() end
  self.sinks = {}
  if self.console then self.console:close() end
end

return M
