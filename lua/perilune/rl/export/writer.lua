-- writer.lua (of exported policies) - one text of loops and assignments, in C or in Lua. What is emitted is the same
-- for both: expressions are those that the two languages share (+ - * / < > <= >= ==, %, calls, hex floats), whatever
-- differs has a method here. Arrays begin at 0 in both.

local M = {}

--- @class perilune.rl.export.Writer
--- @field lua boolean
local Writer = {}
Writer.__index = Writer

function M.new(language)
  return setmetatable({ lua = language == "lua", out = {}, depth = 1, tables = {}, known = {}, names = 0 }, Writer)
end

function Writer:line(text, ...)
  if select("#", ...) > 0 then text = text:format(...) end
  self.out[#self.out + 1] = ("  "):rep(self.depth) .. text
end

-- A block: what fn writes, one deeper.
local function block(self, open, close, fn)
  self:line("%s", open)
  self.depth = self.depth + 1
  fn()
  self.depth = self.depth - 1
  self:line("%s", close)
end

--- for v = 0 .. n - 1; once, with v = 0, where n is 1. n may be an expression.
--- @param v string
--- @param n integer|string
--- @param fn function
--- @param from (integer|string)?  0
function Writer:loop(v, n, fn, from)
  if self.lua then block(self, ("for %s = %s, %s - 1 do"):format(v, from or 0, n), "end", fn)
  else block(self, ("for (int %s = %s; %s < %s; %s++) {"):format(v, from or 0, v, n, v), "}", fn) end
end

function Writer:when(condition, fn)
  if self.lua then block(self, ("if %s then"):format(condition), "end", fn)
  else block(self, ("if (%s) {"):format(condition), "}", fn) end
end

function Writer:scope(fn)
  if self.lua then block(self, "do", "end", fn) else block(self, "{", "}", fn) end
end

--- A double, or an integer, of the block.
function Writer:number(name, value, integer)
  if self.lua then self:line("local %s = %s", name, value)
  else self:line("%s %s = %s;", integer and "int64_t" or "double", name, value) end
end

--- A position within an array.
function Writer:place(name, value)
  self:line(self.lua and "local %s = %s" or "int %s = %s;", name, value)
end

function Writer:set(name, value) self:line(self.lua and "%s = %s" or "%s = %s;", name, value) end
function Writer:add(name, value)
  if self.lua then self:line("%s = %s + %s", name, name, value) else self:line("%s += %s;", name, value) end
end

--- End with a status unless an integer is one of n.
function Writer:within(value, n)
  if self.lua then self:line("if %s < 0 or %s >= %d then return RANGE end", value, value, n)
  else self:line("if (%s < 0 || %s >= %d) return RANGE;", value, value, n) end
end

function Writer:fdiv(a, b) return self.lua and ("%s // %d"):format(a, b) or ("%s / %d"):format(a, b) end
function Writer:both(a, b) return self.lua and ("%s and %s"):format(a, b) or ("%s && %s"):format(a, b) end
function Writer:int(a) return self.lua and a or "(int)" .. a end

-- ---- numbers and tables ----

--- A float as both languages read it, exactly.
function M.float(v)
  if v ~= v then return "NAN" end
  if v == math.huge or v == -math.huge then return v > 0 and "INFINITY" or "-INFINITY" end
  if v == 0 then return 1 / v < 0 and "-0.0" or "0.0" end
  if v == math.floor(v) and math.abs(v) < 1e6 then return ("%d.0"):format(v) end
  return ("%a"):format(v)
end
local float = M.float

local function integer(v)
  if v == math.mininteger then return "(-9223372036854775807 - 1)" end
  return ("%d"):format(v)
end

local function rows(list, width)
  local lines, line = {}, "  "
  for i, text in ipairs(list) do
    if #line + #text + 2 > width then
      lines[#lines + 1], line = line:gsub(" $", ""), "  "
    end
    line = line .. text .. (i < #list and ", " or "")
  end
  lines[#lines + 1] = line
  return table.concat(lines, "\n")
end

--- A constant array at the top of the file; one for each content.
--- @param kind string  float, double, int64_t or int
--- @param values number[]
--- @param note string?  beside it
--- @return string name
function Writer:constant(kind, values, note)
  local list = {}
  for i, v in ipairs(values) do
    if kind == "float" or kind == "double" then
      v = float(v + 0.0)
      list[i] = kind == "float" and not self.lua and not v:find "[AI]" and v .. "F" or v
    else list[i] = integer(math.tointeger(v)) end
  end
  local text = rows(list, 100)
  local key = kind .. text
  if self.known[key] then return self.known[key] end
  self.names = self.names + 1
  local name = (kind == "int" and "at" or "w") .. self.names
  local remark = note and (self.lua and "-- %s\n" or "/* %s */\n"):format(note) or ""
  if self.lua then
    self.tables[#self.tables + 1] = ("%sC.%s = { [0] =\n%s }\n"):format(remark, name, text)
    name = "C." .. name
  else
    self.tables[#self.tables + 1] = ("%sstatic const %s %s[%d] = {\n%s };\n"):format(remark, kind, name, #values, text)
  end
  self.known[key] = name
  return name
end

-- ---- places ----

-- a + b * v as text.
local function affine(a, b, v)
  if b == 0 then return ("%d"):format(a) end
  local term = b == 1 and v or ("%d * %s"):format(b, v)
  if b < 0 then return ("%d - %s"):format(a, b == -1 and v or ("%d * %s"):format(-b, v)) end
  return a == 0 and term or ("%d + %s"):format(a, term)
end
M.affine = affine

-- Is map[first..last] a line? Its begin and step.
local function line_of(map, first, last)
  local a, b = map[first], last > first and map[first + 1] - map[first] or 0
  for i = first, last do if map[i] ~= a + b * (i - first) then return nil end end
  return a, b
end

--- Where element v of something stands in an array, by the list of all places.
--- @param map integer[]
--- @param v string
--- @return string
function Writer:at(map, v)
  local n = #map
  local a, b = line_of(map, 1, n)
  if a then return affine(a, b, v) end
  local period = 2 -- as often as it begins anew
  while period <= n and map[period] ~= map[1] do period = period + 1 end
  period = period - 1
  if period > 1 and period < n and n % period == 0 then
    local again = true
    for i = period + 1, n do again = again and map[i] == map[i - period] end
    a, b = line_of(map, 1, period)
    if again and a then return affine(a, b, ("(%s %% %d)"):format(v, period)) end
  end
  local run = 1 -- as often as it stays
  while run < n and map[run + 1] == map[1] do run = run + 1 end
  if run > 1 and n % run == 0 then
    local step, same = map[run + 1] - map[1], true
    for i = 1, n do same = same and map[i] == map[1] + (i - 1) // run * step end
    if same then return affine(map[1], step, ("(%s)"):format(self:fdiv(v, run))) end
  end
  return ("%s[%s]"):format(self:constant("int", map), v)
end

--- The same of element o * width + r.
function Writer:at2(map, width, o, r)
  local n = #map // width
  local a, b = map[1], n > 1 and map[width + 1] - map[1] or 0
  local c, fits = width > 1 and map[2] - map[1] or 0, true
  for i = 0, n - 1 do
    for k = 0, width - 1 do fits = fits and map[i * width + k + 1] == a + b * i + c * k end
  end
  if not fits then return ("%s[%d * %s + %s]"):format(self:constant("int", map), width, o, r) end
  local text = affine(a, b, o)
  if c == 0 then return text end
  if text == "0" then return affine(0, c, r) end
  return ("%s %s %s"):format(text, c < 0 and "-" or "+", math.abs(c) == 1 and r or ("%d * %s"):format(math.abs(c), r))
end

return M
