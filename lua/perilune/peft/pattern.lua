-- pattern.lua - Python's regular expressions over names of layers, as far as adapters of PEFT use them. A
-- backtracking matcher made of closures; names are short, and the steps of one match are bounded.
-- Syntax: literals, ., classes, \d \w \s \D \W \S \b \B \A \Z, escaped punctuation, groups ( ), (?: ), (?P<name> ),
-- lookahead (?= ), (?! ), |, * + ? {m} {m,} {m,n} and their lazy forms, ^ and $. Flags, look-behind and
-- back-references are refused by name.

local M = {}

local STEPS <const> = 200000 -- of one match
local DEPTH <const> = 100    -- of groups
local MOST <const> = 1000    -- repetitions

local Parser = {}
Parser.__index = Parser

function Parser:fail(message)
  error(("regular expression %q: %s at character %d"):format(self.text, message, self.at), 0)
end

function Parser:peek(n) return self.text:sub(self.at, self.at + (n or 1) - 1) end

-- Comments are nothing, also between a part and its repetition.
function Parser:skip_comments()
  while self:take "(?#" do
    self.at = 1 + (self.text:find(")", self.at, true) or self:fail "a comment without its end")
  end
end

function Parser:take(text)
  if self.text:sub(self.at, self.at + #text - 1) ~= text then return false end
  self.at = self.at + #text
  return true
end

-- ---- sets of characters: a table byte -> true -----------------------------------------------------

local function set_of(pattern)
  local set = {}
  for byte = 0, 255 do set[byte] = string.char(byte):find(pattern) ~= nil or nil end
  return set
end

local function complement(set)
  local out = {}
  for byte = 0, 255 do out[byte] = not set[byte] or nil end
  return out
end

local digit, word, space = set_of "%d", set_of "[%w_]", set_of "%s"
local classes = { d = digit, w = word, s = space, D = complement(digit), W = complement(word), S = complement(space) }
local controls = { n = "\n", t = "\t", r = "\r", f = "\f", v = "\v" }

-- ---- matchers: m(s, i, state, k) tries at i and calls k(i') for what it takes ---------------------------

local function step(state)
  state.steps = state.steps + 1
  if state.steps > STEPS then
    error(("regular expression %q: takes too long on %q"):format(state.text, state.subject), 0)
  end
end

local function one_of(set)
  return function (s, i, state, k)
    step(state)
    local byte = s:byte(i)
    return byte ~= nil and set[byte] == true and k(i + 1)
  end
end

local function sequence(list)
  if #list == 1 then return list[1] end
  return function (s, i, state, k)
    local function from(n, at)
      if n > #list then return k(at) end
      return list[n](s, at, state, function (after) return from(n + 1, after) end)
    end
    return from(1, i)
  end
end

local function alternatives(list)
  if #list == 1 then return list[1] end
  return function (s, i, state, k)
    for _, m in ipairs(list) do if m(s, i, state, k) then return true end end
    return false
  end
end

local function repeated(m, least, most, lazy)
  return function (s, i, state, k)
    local function more(n, at)
      step(state)
      local function again()
        if n >= most then return false end
        return m(s, at, state, function (after)
          if after == at and n >= least then return false end -- an empty turn leads nowhere new
          return more(n + 1, after)
        end)
      end
      if n < least then return again() end
      if lazy then return k(at) or again() end
      return again() or k(at)
    end
    return more(0, i)
  end
end

local function at_word(s, i)
  local before, after = word[s:byte(i - 1) or -1], word[s:byte(i) or -1]
  return (before or false) ~= (after or false)
end

local function assertion(test) return function (s, i, _, k) return test(s, i) and k(i) end end

local begins = assertion(function (_, i) return i == 1 end)
local ends = assertion(function (s, i) return i == #s + 1 end)
local last = assertion(function (s, i) return i == #s + 1 or i == #s and s:sub(i) == "\n" end)

-- ---- parser ------------------------------------------------------------------------------------------

local function class_char(self)
  local c = self:peek()
  if c == "" then self:fail "a class without its end" end
  self.at = self.at + 1
  if c ~= "\\" then return c end
  local e = self:peek()
  self.at = self.at + 1
  if classes[e] then return nil, classes[e] end
  if controls[e] then return controls[e] end
  if e:find "%w" or e == "" then self:fail(("the escape \\%s is not known in a class,"):format(e)) end
  return e
end

local function class(self)
  local set, negated, first = {}, self:take "^", true
  while first or not self:take "]" do
    first = false
    local c, whole = class_char(self)
    if whole then
      for byte in pairs(whole) do set[byte] = true end
      if self:peek() == "-" and self:peek(2) ~= "-]" then self:fail "a range from a class," end
    elseif self:peek() == "-" and self:peek(2) ~= "-]" and self:peek(2) ~= "-" then
      self.at = self.at + 1
      local to = class_char(self)
      if not to or to < c then self:fail "a range that ends before it begins," end
      for byte = c:byte(), to:byte() do set[byte] = true end
    else
      set[c:byte()] = true
    end
  end
  return one_of(negated and complement(set) or set)
end

-- A matcher, and whether it may be repeated.
local function escape(self)
  local c = self:peek()
  self.at = self.at + 1
  if classes[c] then return one_of(classes[c]), true end
  if c == "b" then return assertion(at_word) end
  if c == "B" then return assertion(function (s, i) return not at_word(s, i) end) end
  if c == "A" then return begins end
  if c == "Z" then return ends end
  if controls[c] then return one_of { [controls[c]:byte()] = true }, true end
  if c:find "%d" then self:fail "a back-reference, which is not supported," end
  if c == "" or c:find "%a" then self:fail(("the escape \\%s is not known,"):format(c)) end
  return one_of { [c:byte()] = true }, true
end

local function quantifier(self)
  if self:take "*" then return 0, math.huge end
  if self:take "+" then return 1, math.huge end
  if self:take "?" then return 0, 1 end
  local low, comma, high, after = self.text:match("^{(%d*)(,?)(%d*)}()", self.at)
  if not low or low == "" and comma == "" then return nil end -- a brace like any other character
  self.at = after
  local from = tonumber(low) or 0
  local to = comma == "" and from or tonumber(high) or math.huge
  if from > MOST or to < from or to ~= math.huge and to > MOST then self:fail "a number of repetitions out of range" end
  return from, to
end

local either

local function group(self)
  self.depth = self.depth + 1
  if self.depth > DEPTH then self:fail "groups are nested too deep" end
  local ahead
  if self:take "?" then
    if self:take ":" then ahead = nil
    elseif self:take "=" then ahead = true
    elseif self:take "!" then ahead = false
    elseif self:take "P<" then
      local name = self.text:match("^([%a_][%w_]*)>", self.at)
      if not name then self:fail "a group without its name" end
      self.at = self.at + #name + 1
    else
      self:fail(("(?%s is not supported"):format(self:peek(2)))
    end
  end
  local m = either(self)
  if not self:take ")" then self:fail "a group without its end" end
  self.depth = self.depth - 1
  if ahead == nil then return m end
  return function (s, i, state, k)
    local found = m(s, i, state, function () return true end)
    return (found and true or false) == ahead and k(i)
  end
end

local function atom(self)
  if quantifier(self) then self:fail "there is nothing to repeat" end
  local c = self:peek()
  self.at = self.at + 1
  if c == "(" then return group(self), true end
  if c == "[" then return class(self), true end
  if c == "\\" then return escape(self) end
  if c == "^" then return begins end
  if c == "$" then return last end
  if c == "." then return one_of(complement { [10] = true }), true end
  return one_of { [c:byte()] = true }, true
end

function either(self)
  local list = {}
  repeat
    local parts = {}
    self:skip_comments()
    while self.at <= #self.text and self:peek() ~= "|" and self:peek() ~= ")" do
      local m, counts = atom(self)
      self:skip_comments()
      local least, most = quantifier(self)
      if least then
        if not counts then self:fail "there is nothing to repeat" end
        local lazy = self:take "?"
        if not lazy and self:take "+" then self:fail "a possessive repetition, which is not supported," end
        m = repeated(m, least, most, lazy)
        self:skip_comments()
        if quantifier(self) then self:fail "a repetition of a repetition" end
      end
      parts[#parts + 1] = m
    end
    list[#list + 1] = #parts > 0 and sequence(parts) or function (_, i, _, k) return k(i) end
  until not self:take "|"
  return alternatives(list)
end

--- @class perilune.peft.Pattern
--- @field text string
local Pattern = {}
Pattern.__index = Pattern

--- A regular expression; raises, without a place in our sources, where it is none or needs what is not done.
--- @param text string
--- @return perilune.peft.Pattern
function M.compile(text)
  local p = setmetatable({ text = text, at = 1, depth = 0 }, Parser)
  local m = either(p)
  if p.at <= #text then p:fail "a parenthesis that was not opened" end
  return setmetatable({ text = text, _match = m }, Pattern)
end

local function run(self, name, from, done)
  local state = { steps = 0, text = self.text, subject = name }
  return self._match(name, from, state, done) and true or false
end

--- Whether it matches the whole of a name, as re.fullmatch.
--- @param name string
--- @return boolean
function Pattern:fullmatch(name)
  return run(self, name, 1, function (i) return i == #name + 1 end)
end

--- Whether PEFT's rule for keys of alpha_pattern and rank_pattern holds: re.match(r"(.*\.)?(KEY)$", name).
--- @param name string
--- @return boolean
function Pattern:ends(name)
  local from = 1
  while from do
    if run(self, name, from, function (i) return i == #name + 1 end) then return true end
    local dot = name:find(".", from, true)
    from = dot and dot + 1
  end
  return false
end

return M
