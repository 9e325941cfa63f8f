-- console.lua - a run for people: a table with a row for each step (or every n-th), a progress bar below
-- when that is a terminal. The table has as many columns as fit; what a run is judged by comes first,
-- and what does not fit is in the files.

local peri = require "perilune"
local options = require "perilune.options"
local terminal = require "perilune.terminal"
local numbers = require "perilune.run.log.numbers"
local Bar = require "perilune.run.log.bar"

local short_name = numbers.short_name

local HEADER_EVERY = 20 -- lines between two headers
local WIDEST_TEXT = 24  -- of a value that is text

local Console = {}
Console.__index = Console

--- @param o table  out, live, total, every, columns, width: as in log.new
function Console.new(o)
  local out = o.out or io.stdout
  local live = o.live
  if live == nil then live = out == io.stdout and terminal.live() end
  local width = o.width or live and terminal.width() or terminal.columns()
  return setmetatable({
    bar = Bar.new(out, live), live = live, total = o.total, every = o.every, width = width,
    fixed = not live or o.width ~= nil,
    color = live and not os.getenv "NO_COLOR", wanted = o.columns or {}, begin = peri.time(),
    seen = {}, names = {}, widths = {}, lines = HEADER_EVERY,
  }, Console)
end

-- ---- which columns ----

-- Names that runs are most often judged by; a smaller rank comes first.
local judged = {
  { "^reward$", "^return$", "^score$" }, { "^loss$" },
  { "^held_out", "^val", "^eval", "^test", "^dev" },
  { "accuracy", "^acc$", "exact", "perplexity", "^f1$" }, { "reward", "loss" },
}
local LIVE, OTHER = #judged + 1, #judged + 2

local function rank_of(name, live)
  local short = short_name(name)
  for rank, patterns in ipairs(judged) do
    for _, p in ipairs(patterns) do
      if (name:find(p) or short:find(p)) and not short:find "std" then return rank end
    end
  end
  return live and LIVE or OTHER
end

-- Note a metric at its first appearance; true when it is new.
function Console:note(name, live)
  if self.seen[name] then return false end
  local place = #self.wanted + 1
  for i, wanted in ipairs(self.wanted) do
    if wanted == name or wanted == short_name(name) then place = i break end
  end
  self.names[#self.names + 1] = name
  self.seen[name] = { place = place, rank = rank_of(name, live), at = #self.names }
  return true
end

-- A short name that two metrics share is not said of either.
local function labels_of(names)
  local count, labels = {}, {}
  for _, name in ipairs(names) do count[short_name(name)] = (count[short_name(name)] or 0) + 1 end
  for _, name in ipairs(names) do labels[name] = count[short_name(name)] == 1 and short_name(name) or name end
  return labels
end

-- The columns that fit, in their order. Those that a recipe names are there before their first value.
function Console:choose()
  local names = table.move(self.names, 1, #self.names, 1, {})
  local known = {}
  for _, name in ipairs(names) do known[name], known[short_name(name)] = true, true end
  for i, name in ipairs(self.wanted) do
    if not known[name] then
      names[#names + 1] = name
      known[name] = { place = i, rank = 0, at = 0 }
    end
  end
  local function key(name) return self.seen[name] or known[name] end
  table.sort(names, function(a, b)
    local x, y = key(a), key(b)
    if x.place ~= y.place then return x.place < y.place end
    if x.rank ~= y.rank then return x.rank < y.rank end
    return x.at < y.at
  end)
  local labels, left = labels_of(names), self.width - 1 - self:digits()
  self.columns = {}
  for _, name in ipairs(names) do
    local width = math.max(utf8.len(labels[name]), self.widths[name] or 7)
    if width + 2 <= left or #self.columns == 0 then
      self.columns[#self.columns + 1] = { name = name, label = labels[name], width = width }
      left = left - width - 2
    end
  end
end

-- ---- lines ----

function Console:digits() return math.max(self.total and #tostring(self.total) or 6, #"step") end

local function right(text, width) return (" "):rep(width - utf8.len(text)) .. text end

local function shown(v)
  local text = numbers.format(v)
  if type(v) ~= "string" then return text end
  text = numbers.repaired(text):gsub("%c", " ")
  local n = utf8.len(text)
  return n <= WIDEST_TEXT and text or text:sub(1, utf8.offset(text, WIDEST_TEXT) - 1) .. "…"
end

function Console:header()
  local parts = { right("step", self:digits()) }
  for i, c in ipairs(self.columns) do parts[i + 1] = right(c.label, c.width) end
  local text = table.concat(parts, "  ")
  return self.color and "\27[1m" .. text .. "\27[0m" or text
end

function Console:write(text)
  local _, breaks = text:gsub("\n", "")
  self.lines = self.lines + breaks + 1
  self.bar:line(text)
end

-- The texts of all values; notes whether the table is to be laid out anew.
function Console:texts(values, live)
  local texts = {}
  for i, t in ipairs { values, live } do
    for _, name in ipairs(options.names(t)) do
      self.changed = self:note(name, i == 2) or self.changed
      local text = shown(t[name])
      local n = utf8.len(text)
      texts[name] = text
      if n > (self.widths[name] or 7) then self.widths[name], self.changed = n, true end
    end
  end
  return texts
end

local function same(a, b)
  if not a or #a ~= #b then return false end
  for i, c in ipairs(a) do
    if c.label ~= b[i].label or c.width ~= b[i].width then return false end
  end
  return true
end

function Console:row(step, values, live, remark)
  local texts = self:texts(values, live)
  if self.lines >= HEADER_EVERY and not self.fixed then -- the window may have another size by now
    local width = terminal.width()
    self.width, self.changed = width, self.changed or width ~= self.width
  end
  if self.changed or not self.columns then
    local before = self.columns
    self:choose()
    self.changed = false
    if not same(before, self.columns) then self.lines = HEADER_EVERY end
  end
  if self.lines >= HEADER_EVERY then
    self.lines = 0
    self:write(self:header())
    self.lines = 0
  end
  local parts = { right(("%d"):format(step), self:digits()) }
  for i, c in ipairs(self.columns) do
    parts[i + 1] = right(texts[c.name] or "", c.width)
  end
  local line = table.concat(parts, "  ")
  if remark then
    local fits = utf8.len(line) + 2 + #remark < self.width
    line = line .. (fits and "  " or "\n" .. (" "):rep(self:digits() + 2)) .. remark
  end
  self:write((line:gsub(" +$", "")))
end

-- "[=====>    ] 120/1000 12% 0:10<1:15 11.8 step/s"
function Console:progress(step, remark)
  local seconds = peri.time() - self.begin
  local done = step - self.first + 1
  local rate = seconds > 0 and done / seconds or 0
  local tail
  if self.total then
    local left = rate > 0 and (self.total - step) / rate or 0
    tail = ("%d/%d %3d%% %s<%s %s step/s"):format(step, self.total, step * 100 // math.max(self.total, 1),
      numbers.duration(seconds), numbers.duration(left), numbers.format(rate))
  else
    tail = ("%d  %s  %s step/s"):format(step, numbers.duration(seconds), numbers.format(rate))
  end
  if remark then tail = tail .. "  " .. remark end
  local room = self.total and math.min(self.width - #tail - 4, 40) or 0
  if room < 5 then return tail:sub(1, self.width - 1) end
  local filled = math.min(step * room // math.max(self.total, 1), room)
  return ("[%s%s%s] %s"):format(("="):rep(math.max(filled - 1, 0)), filled > 0 and ">" or "",
    (" "):rep(room - filled), tail)
end

--- A step: its row when one is due, and the bar.
--- @param step integer
--- @param values table
--- @param live table
--- @param remark string?  what is to be said of this step; its row is due
--- @param standing string?  what the bar says from now on
function Console:step(step, values, live, remark, standing)
  self.first = self.first or step
  local last = step == self.total
  self.standing = standing or self.standing
  if self.live then self.bar.text = not last and self:progress(step, self.standing) or nil end
  if step % self.every == 0 or step == self.first or last or remark then
    self:row(step, values, live, remark)
  else
    self:texts(values, live)
  end
  self.bar:show(self.bar.text)
end

--- Names of the columns that were asked for and had no value in any row; none before the first.
--- @return string[]
function Console:unseen()
  local known, list = {}, {}
  for _, name in ipairs(self.names) do known[name], known[short_name(name)] = true, true end
  for _, name in ipairs(#self.names > 0 and self.wanted or {}) do
    if not known[name] then list[#list + 1] = name end
  end
  return list
end

function Console:close() self.bar:close() end

return Console
