-- arithmetic.lua - the value of an arithmetic expression: a parser of our own, for what a model writes is never run as
-- code. Numbers, + - * /, parentheses and signs; more where the caller allows it: powers, fractions and roots as LaTeX
-- and people write them. Whatever the text, it takes time linear in its length and bounded depth.
local number = require "perilune.tasks.numbers"

local M = {}

M.LONGEST = 4096 -- bytes of an expression; more is refused
local DEEPEST <const> = 100

local Parser = {}
Parser.__index = Parser

local function refuse(self, what) error({ refused = ("%s at byte %d"):format(what, self.at) }, 0) end

-- A value that still has all its digits: what overflowed, or fell below the smallest number, would equal others that
-- did.
function Parser:kept(value, is_zero)
  local size = math.abs(value)
  if value ~= value or size == math.huge or (size < 0x1p-1022 and not (size == 0 and is_zero)) then
    refuse(self, "a value out of range")
  end
  return value
end

-- a op b of whole numbers where that fits into them, else of floats: integers of Lua go around.
local function exact(whole, rounded)
  if math.type(whole) ~= "integer" or math.abs(rounded) < 0x1p62 then return whole end
  return rounded
end

function Parser:skip() self.at = self.text:match("^%s*()", self.at) end

-- Whether the text goes on with a plain string, which is then behind us.
function Parser:take(word)
  self:skip()
  if self.text:sub(self.at, self.at + #word - 1) ~= word then return false end
  self.at = self.at + #word
  return true
end

function Parser:deeper(fn, ...)
  self.depth = self.depth + 1
  if self.depth > DEEPEST then refuse(self, "too deep") end
  local value = fn(self, ...)
  self.depth = self.depth - 1
  return value
end

function Parser:number()
  if not self.rich then
    local digits, after = self.text:match("^(%d+)()", self.at)
    self.at = after
    local value = tonumber(digits)
    self.literals[#self.literals + 1] = math.tointeger(value) or value
    return value
  end
  local last, value = number.at(self.text, self.at)
  if not value then refuse(self, "a number out of range") end
  if value:sub(1, 1) == "-" then value = value:sub(2) end -- the sign before it is an operator here
  self.at = last + 1
  return self:kept(tonumber(value) + 0.0, not value:find "[1-9]")
end

local close_of = { ["("] = ")", ["{"] = "}", ["["] = "]" }

function Parser:group(open)
  local value = self:deeper(self.sum)
  if not self:take(close_of[open]) then refuse(self, ("%q expected"):format(close_of[open])) end
  return value
end

-- What \frac and \sqrt take: a group, or one digit.
function Parser:argument()
  if self:take "{" then return self:group "{" end
  local digit = self.text:match("^%d", self.at)
  if not digit then refuse(self, "an argument expected") end
  self.at = self.at + 1
  return tonumber(digit)
end

function Parser:over(above, below)
  if below == 0 then refuse(self, "division by zero") end
  return self:kept(above / below, above == 0)
end

function Parser:fraction()
  local above = self:argument()
  return self:over(above, self:argument())
end

function Parser:root()
  local degree = 2
  if self:take "[" then degree = self:group "[" end
  local of = self:argument()
  return self:kept(degree == 2 and of ^ 0.5 or of ^ (1 / degree), of == 0)
end

function Parser:primary()
  self:skip()
  local c = self.text:sub(self.at, self.at)
  if c:find "%d" or self.rich and self.text:find("^%.%d", self.at) then
    local value = self:number()
    if self.rich and self.text:find("^%s*\\frac", self.at) then -- a mixed number, 3\frac{1}{2}
      self:take "\\frac"
      return value + self:fraction()
    end
    return value
  elseif c == "(" or self.rich and close_of[c] then
    self.at = self.at + 1
    return self:group(c)
  elseif self.rich and self:take "\\frac" then return self:deeper(self.fraction)
  elseif self.rich and self:take "\\sqrt" then return self:deeper(self.root)
  elseif self.rich and self:take "\\pi" then return math.pi
  end
  return refuse(self, c == "" and "the end" or ("%q"):format(c))
end

function Parser:power()
  local value = self:primary()
  if self.rich and self:take "^" then return self:kept(value ^ self:deeper(self.signed), value == 0) end
  return value
end

function Parser:signed()
  if self:take "-" then return -self:deeper(self.signed) end
  if self:take "+" then return self:deeper(self.signed) end
  return self:power()
end

function Parser:product()
  local value = self:signed()
  local function times(by)
    value = self:kept(exact(value * by, value * 1.0 * by), value == 0 or by == 0)
  end
  while true do
    if self:take "*" then times(self:signed())
    elseif self:take "/" then value = self:over(value, self:signed())
    else
      self:skip()
      if not (self.rich and self.text:find("^[%(\\]", self.at)) then return value end
      times(self:power()) -- 2(3), 2\pi
    end
  end
end

function Parser:sum()
  local value = self:product()
  while true do
    if self:take "+" then
      local by = self:product()
      value = exact(value + by, value * 1.0 + by)
    elseif self:take "-" then
      local by = self:product()
      value = exact(value - by, value * 1.0 - by)
    else return value end
  end
end

-- The value of the whole text, or nil and why there is none.
local function evaluate(text, rich)
  if #text > M.LONGEST then return nil, ("longer than %d bytes"):format(M.LONGEST) end
  local self = setmetatable({ text = text, at = 1, depth = 0, rich = rich, literals = {} }, Parser)
  local ok, value = pcall(self.sum, self)
  if not ok then
    if type(value) ~= "table" or not value.refused then error(value, 0) end
    return nil, value.refused
  end
  self:skip()
  if self.at <= #text then return nil, ("%q at byte %d"):format(text:sub(self.at, self.at), self.at) end
  if value ~= value or math.abs(value) == math.huge then return nil, "not finite" end
  return value, self.literals
end

--- The value of an expression of whole numbers with + - * /, signs and parentheses. Nothing else is accepted: not **,
--- // nor decimals, which eval() would take.
--- @param text string
--- @return number? value
--- @return integer[]|string literals  the numbers in the order they stand; or why there is no value
function M.evaluate(text) return evaluate(text, false) end

local words = { ["\u{00D7}"] = "*", ["\u{00B7}"] = "*", ["\u{22C5}"] = "*", ["\u{2217}"] = "*", ["\u{00F7}"] = "/",
  ["\u{2215}"] = "/", ["\u{2044}"] = "/", ["\u{03C0}"] = "\\pi", ["\u{FF08}"] = "(", ["\u{FF09}"] = ")",
  ["\u{FF1D}"] = "=", ["\u{FF05}"] = "%", ["\u{221A}"] = "\\sqrt" }

local commands = { dfrac = "\\frac", tfrac = "\\frac", cfrac = "\\frac", times = "*", cdot = "*", div = "/", left = "",
  right = "", displaystyle = "", quad = " ", qquad = " ", mathbf = "", boldsymbol = "", mathrm = "\\text" }

-- LaTeX and Unicode as the parser reads them. Units go, but for letters that are numbers themselves.
local function plain(text)
  text = number.plain(text):gsub("[\xC2-\xEF][\x80-\xBF]+", words)
  text = text:gsub("(%d)\\[,!]%s*(%d%d%d)", "%1%2"):gsub("(%d)\\[,!]%s*(%d%d%d)", "%1%2") -- twice: 1\,000\,000
  text = text:gsub("\\mathrm%s*{%s*([eid])%s*}", " %1 "):gsub("\\text%s*{%s*([eid])%s*}", " %1 ")
  text = text:gsub("\\(%a+)", commands):gsub("\\([,;:!%s])", " "):gsub("\\([%$%%])", "%1"):gsub("{,}", ",")
  text = text:gsub("%$", ""):gsub("%*%*", "^"):gsub("\\[%(%)%[%]]", ""):gsub("%^%s*{?%s*\\circ%s*}?", "")
  return (text:gsub("\\text%s*%b{}", ""))
end

--- The value of what people and LaTeX write for a number: with decimals, powers, \frac, \sqrt, \pi, signs such as
--- \times, mixed numbers, a % at the end, "x =" in front. Of an equation both sides have to agree.
--- @param text string
--- @return number? value  nil: it is none
--- @return boolean|string percent  a % stood at its end, and the value is what is before it; or why there is no value
function M.value(text)
  if #text > M.LONGEST then return nil, ("longer than %d bytes"):format(M.LONGEST) end
  text = plain(text)
  local sides = {}
  for side in (text .. "="):gmatch "([^=]*)=" do sides[#sides + 1] = side end
  local last = sides[#sides]
  local before = last:match "^(.-)%s*%%%s*%.?%s*$"
  local value, why = evaluate((before or last):match "^(.-)%s*%.?%s*$", true)
  if not value then return nil, why end
  for i = 1, #sides - 1 do
    if not sides[i]:find "^%s*%a[%w_]*%s*$" then
      local other = evaluate(sides[i], true)
      if not other or not M.near(other, value) then return nil, "the sides of the equation differ" end
    end
  end
  return value, before ~= nil
end

local WHOLE <const> = 0x1p53 -- below it whole numbers are exact

--- Whether two values are the same: up to a tolerance, relative to the larger one where that is above 1; without one
--- whole numbers exactly and others to twelve digits.
--- @param a number  what was given
--- @param b number  what is right
--- @param tolerance number?
--- @return boolean
function M.near(a, b, tolerance)
  local off, size = math.abs(a - b), math.max(math.abs(a), math.abs(b))
  if tolerance and tolerance > 0 then return off <= tolerance * math.max(1, size) end
  if off == 0 then return true end
  if size < WHOLE and a % 1 == 0 and b % 1 == 0 and a ~= 0 and b ~= 0 then return false end
  return off <= 1e-12 * size or b == 0 and off < 1e-14 -- what rounding leaves of 0
end

return M
