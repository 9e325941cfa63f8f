-- regex.lua - regular expressions as automata over bytes, for texts that are made byte by byte: which
-- bytes may come next, and whether the text may end here. Built lazily: a state exists once reached.
-- Syntax: literals, . (no newline), [classes], \d \w \s \D \W \S, \n \r \t \f \v \0 \xHH \uHHHH, escaped
-- punctuation, (groups), (?:groups), |, * + ? {m} {m,} {m,n}, ^ and $ at the ends. The whole text is
-- matched; greedy or lazy makes no difference. Characters are those of UTF-8.

local M = {}

local MAX_NODES <const> = 100000  -- of the automaton before determinisation
local MAX_STATES <const> = 20000
local MAX_DEPTH <const> = 200     -- of groups
local MAX_REPEAT <const> = 1000
local LAST <const> = 0x10FFFF

-- ---- sets of characters: sorted lists of { first, last } -----------------------------------------

local function normal(ranges)
  table.sort(ranges, function (a, b) return a[1] < b[1] end)
  local out = {}
  for _, r in ipairs(ranges) do
    local last = out[#out]
    if last and r[1] <= last[2] + 1 then last[2] = math.max(last[2], r[2])
    else out[#out + 1] = { r[1], r[2] } end
  end
  return out
end

local function complement(ranges)
  local out, at = {}, 0
  for _, r in ipairs(normal(ranges)) do
    if r[1] > at then out[#out + 1] = { at, r[1] - 1 } end
    at = r[2] + 1
  end
  if at <= LAST then out[#out + 1] = { at, LAST } end
  return out
end

local digit = { { 48, 57 } }
local word = { { 48, 57 }, { 65, 90 }, { 95, 95 }, { 97, 122 } }
local space = { { 9, 13 }, { 32, 32 } }
local classes = { d = digit, w = word, s = space, D = complement(digit), W = complement(word), S = complement(space) }
local controls = { n = 10, r = 13, t = 9, f = 12, v = 11, ["0"] = 0 }

-- ---- parser: pattern -> tree ---------------------------------------------------------------------

local Parser = {}
Parser.__index = Parser

function Parser:fail(message)
  error(("regex: %s at character %d of %q"):format(message, self.at, self.pattern), 0)
end

function Parser:peek() return self.chars[self.at] end

function Parser:take()
  local c = self.chars[self.at]
  self.at = self.at + 1
  return c
end

function Parser:hex(n)
  local text = {}
  for k = 1, n do text[k] = utf8.char(self:take() or self:fail "the pattern ends within an escape") end
  return tonumber(table.concat(text):match "^%x+$" or self:fail "not hexadecimal", 16)
end

-- After a backslash: a set, or one character.
function Parser:escape()
  local c = self:take()
  if not c then self:fail "the pattern ends with a backslash" end
  local name = utf8.char(c)
  if classes[name] then return classes[name] end
  if controls[name] then return nil, controls[name] end
  if name == "x" then return nil, self:hex(2) end
  if name == "u" then return nil, self:hex(4) end
  if name:find "^[%w]$" then self:fail(("\\%s is not known"):format(name)) end
  return nil, c
end

function Parser:class()
  local negated = self:peek() == 94 -- ^
  if negated then self.at = self.at + 1 end
  local ranges, first = {}, true
  while true do
    local c = self:take()
    if not c then self:fail "a class without its ]" end
    if c == 93 and not first then break end
    first = false
    local set
    if c == 92 then set, c = self:escape() end
    if set then
      table.move(set, 1, #set, #ranges + 1, ranges)
    else
      local last = c
      if self:peek() == 45 and self.chars[self.at + 1] ~= 93 and self.chars[self.at + 1] then
        self.at = self.at + 1
        last = self:take()
        if last == 92 then
          set, last = self:escape()
          if set then self:fail "a class cannot end a range" end
        end
        if last < c then self:fail "a range whose end comes before its begin" end
      end
      ranges[#ranges + 1] = { c, last }
    end
  end
  ranges = negated and complement(ranges) or normal(ranges)
  if #ranges == 0 then self:fail "a class that no character is in" end
  return { kind = "set", ranges = ranges }
end

function Parser:atom(depth)
  local c = self:take()
  local name = utf8.char(c)
  if name == "(" then
    if self:peek() == 63 then -- ?
      self.at = self.at + 1
      if self:take() ~= 58 then self:fail "of (?...) only (?:...) is known" end
    end
    local inner = self:either(depth + 1)
    if self:take() ~= 41 then self:fail "a group without its )" end
    return inner
  elseif name == "[" then
    return self:class()
  elseif name == "." then
    return { kind = "set", ranges = complement { { 10, 10 } } }
  elseif name == "\\" then
    local set, one = self:escape()
    return { kind = "set", ranges = set or { { one, one } } }
  elseif name:find "^[*+?{]$" then
    self:fail "nothing to repeat"
  elseif name == "^" or name == "$" then
    self:fail(name .. " is known only at the ends of the pattern")
  end
  return { kind = "set", ranges = { { c, c } } }
end

-- {m}, {m,}, {m,n} behind the brace; nothing where it is no such thing.
function Parser:bounds()
  local text, at = {}, self.at
  while self.chars[at] and self.chars[at] ~= 125 and #text < 16 do
    text[#text + 1] = utf8.char(self.chars[at])
    at = at + 1
  end
  if self.chars[at] ~= 125 then return nil end
  local low, comma, high = table.concat(text):match "^(%d+)(,?)(%d*)$"
  if not low then return nil end
  self.at = at + 1
  low, high = tonumber(low), high ~= "" and tonumber(high) or comma == "" and tonumber(low) or nil
  if low > MAX_REPEAT or (high or 0) > MAX_REPEAT then self:fail(("a count over %d"):format(MAX_REPEAT)) end
  if high and high < low then self:fail "a repetition whose maximum is below its minimum" end
  return low, high
end

function Parser:sequence(depth)
  local items = {}
  while true do
    local c = self:peek()
    if not c or c == 124 or c == 41 then break end -- | )
    if c == 36 and self.at == #self.chars then -- $ at the end
      self.at = self.at + 1
      break
    end
    local item = self:atom(depth)
    while true do
      c = self:peek()
      local low, high
      if c == 42 then low = 0 elseif c == 43 then low = 1 elseif c == 63 then low, high = 0, 1 end
      if low then self.at = self.at + 1
      elseif c == 123 then
        self.at = self.at + 1
        low, high = self:bounds()
        if not low then self:fail "{ begins no repetition; a brace itself is \\{" end
      else break end
      if self:peek() == 63 then self.at = self.at + 1 end -- lazy: the same texts
      item = { kind = "repeat", item = item, low = low, high = high }
    end
    items[#items + 1] = item
  end
  return { kind = "sequence", items = items }
end

function Parser:either(depth)
  if depth > MAX_DEPTH then self:fail "groups too deep" end
  local items = { self:sequence(depth) }
  while self:peek() == 124 do
    self.at = self.at + 1
    items[#items + 1] = self:sequence(depth)
  end
  return #items == 1 and items[1] or { kind = "either", items = items }
end

local function parse(pattern)
  local self = setmetatable({ pattern = pattern, chars = {}, at = 1 }, Parser)
  local n = utf8.len(pattern)
  if not n then error(("regex: the pattern is not UTF-8: %q"):format(pattern), 0) end
  for _, c in utf8.codes(pattern) do self.chars[#self.chars + 1] = c end
  if self:peek() == 94 then self.at = 2 end
  local tree = self:either(1)
  if self.at <= #self.chars then self:fail "a ) too many" end
  return tree
end

-- ---- nondeterministic automaton ------------------------------------------------------------------

-- Node: { moves = { { first byte, last byte, node }, ... }, free = { node, ... } }.
local Builder = {}
Builder.__index = Builder

function Builder:node()
  self.n = self.n + 1
  if self.n > MAX_NODES then error("regex: the pattern makes too large an automaton", 0) end
  return { id = self.n, moves = {}, free = {} }
end

-- Code points that encode to n bytes, cut until each byte runs over a range of its own.
local function cut(first, last, out)
  for i = 1, 3 do
    local low = (1 << (6 * i)) - 1
    if first >= 0x80 and first & ~low ~= last & ~low then
      if first & low ~= 0 then
        cut(first, first | low, out)
        return cut((first | low) + 1, last, out)
      elseif last & low ~= low then
        cut(first, (last & ~low) - 1, out)
        return cut(last & ~low, last, out)
      end
    end
  end
  out[#out + 1] = { utf8.char(first), utf8.char(last) }
end

local lengths = { { 0, 0x7F }, { 0x80, 0x7FF }, { 0x800, 0xFFFF }, { 0x10000, LAST } }

local function byte_sequences(ranges)
  local out = {}
  for _, r in ipairs(ranges) do
    for _, span in ipairs(lengths) do
      local first, last = math.max(r[1], span[1]), math.min(r[2], span[2])
      if first <= last then cut(first, last, out) end
    end
  end
  return out
end

function Builder:add_bytes(from, to, first, last)
  for k = 1, #first do
    local next_node = k == #first and to or self:node()
    from.moves[#from.moves + 1] = { first:byte(k), last:byte(k), next_node }
    from = next_node
  end
end

-- From node `from` through the tree to node `to`.
function Builder:add(tree, from, to)
  if tree.kind == "set" then
    for _, s in ipairs(byte_sequences(tree.ranges)) do self:add_bytes(from, to, s[1], s[2]) end
  elseif tree.kind == "bytes" then
    if tree.text == "" then from.free[#from.free + 1] = to end
    self:add_bytes(from, to, tree.text, tree.text)
  elseif tree.kind == "sequence" then
    for _, item in ipairs(tree.items) do
      local middle = self:node()
      self:add(item, from, middle)
      from = middle
    end
    from.free[#from.free + 1] = to
  elseif tree.kind == "either" then
    for _, item in ipairs(tree.items) do self:add(item, from, to) end
  else -- repeat
    for _ = 1, tree.low do
      local middle = self:node()
      self:add(tree.item, from, middle)
      from = middle
    end
    if tree.high then
      for _ = tree.low + 1, tree.high do
        local middle = self:node()
        from.free[#from.free + 1] = to
        self:add(tree.item, from, middle)
        from = middle
      end
    else
      local loop = self:node()
      from.free[#from.free + 1] = loop
      local back = self:node()
      self:add(tree.item, loop, back)
      back.free[#back.free + 1] = loop
      from = loop
    end
    from.free[#from.free + 1] = to
  end
end

-- ---- deterministic automaton, made as it is walked -------------------------------------------------

--- @class perilune.decode.regex.Automaton
local Automaton = {}
Automaton.__index = Automaton

-- The state of a set of nodes with all that can be reached freely.
local function state_of(self, nodes)
  local seen, list, stack = {}, {}, nodes
  while #stack > 0 do
    local node = table.remove(stack)
    if not seen[node.id] then
      seen[node.id] = true
      if #node.moves > 0 or node == self.accept then list[#list + 1] = node end
      for _, other in ipairs(node.free) do stack[#stack + 1] = other end
    end
  end
  if #list == 0 then return false end
  table.sort(list, function (a, b) return a.id < b.id end)
  local ids = {}
  for i, node in ipairs(list) do ids[i] = node.id end
  local key = table.concat(ids, ",")
  local state = self.states[key]
  if state then return state end
  self.count = self.count + 1
  if self.count > MAX_STATES then error("regex: the pattern needs too many states", 0) end
  state = { nodes = list, accepting = false, final = true, next = {} }
  for _, node in ipairs(list) do
    if node == self.accept then state.accepting = true end
    if #node.moves > 0 then state.final = false end
  end
  self.states[key] = state
  return state
end

local function automaton(tree)
  local builder = setmetatable({ n = 0 }, Builder)
  local self = setmetatable({ states = {}, count = 0 }, Automaton)
  local first = builder:node()
  self.accept = builder:node()
  builder:add(tree, first, self.accept)
  self.first = state_of(self, { first })
  return self
end

--- The state after a byte, or false when no text goes on like that.
--- @param state table
--- @param byte integer
--- @return table|false
function Automaton:step(state, byte)
  local after = state.next[byte]
  if after ~= nil then return after end
  local nodes = {}
  for _, node in ipairs(state.nodes) do
    for _, move in ipairs(node.moves) do
      if byte >= move[1] and byte <= move[2] then nodes[#nodes + 1] = move[3] end
    end
  end
  after = #nodes > 0 and state_of(self, nodes)
  state.next[byte] = after
  return after
end

--- The state after a text.
--- @return table|false
function Automaton:walk(state, text)
  for i = 1, #text do
    state = self:step(state, text:byte(i))
    if not state then return false end
  end
  return state
end

--- Whether the whole text matches.
--- @param text string
--- @return boolean
function Automaton:matches(text)
  local state = self:walk(self.first, text)
  return state and state.accepting or false
end

--- The automaton of a pattern; raises with the place of what is wrong or unknown.
--- @param pattern string
--- @return perilune.decode.regex.Automaton
function M.compile(pattern)
  local ok, result = pcall(function () return automaton(parse(pattern)) end)
  if not ok then error(result, 2) end
  return result
end

--- The automaton of a list of texts.
--- @param list string[]
--- @return perilune.decode.regex.Automaton
function M.list(list)
  local items = {}
  for i, text in ipairs(list) do items[i] = { kind = "bytes", text = text } end
  local ok, result = pcall(automaton, { kind = "either", items = items })
  if not ok then error(result, 2) end
  return result
end

return M
