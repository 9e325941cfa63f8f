-- statements.lua - a copy of a tree of Lua files in which every statement notes that it ran.
--   lua5.4 tests/coverage/statements.lua FROM TO <list of files
-- Writes TO/<file> for each file of the list (paths below FROM), TO/hits.lua, which those require,
-- and TO/statements.txt: "number file line" a statement. What runs is appended, a number a line, to
-- the file that PERILUNE_HITS names, at its first run in a Lua state; processes that are killed and
-- states on several threads lose nothing. Lines stay where they are. Hooks are left to the code under
-- test, which has some of its own. Lines that make a function (local function f, return function) are left
-- as they are and not counted: help reads them.

-- ---- tokens: { what, first byte, line }; what is the text, or "name", "value" ----

local keywords = {}
for word in ([[and break do else elseif end false for function goto if in local nil not or repeat
  return then true until while]]):gmatch "%a+" do keywords[word] = true end
for _, word in ipairs { "nil", "true", "false" } do keywords[word] = "value" end

local function tokens(text, file)
  local out, at, line = {}, text:match "^#[^\n]*()" or 1, 1
  local function skip(to) -- lines end inside long strings and comments as well
    for _ in text:sub(at, to - 1):gmatch "\n" do line = line + 1 end
    at = to
  end
  while true do
    skip(text:match("^%s*()", at))
    if at > #text then break end
    local comment = text:match("^%-%-()", at)
    local level = text:match("^%[(=*)%[", comment or at)
    local what, stop
    if level then
      what, stop = "value", select(2, text:find("]" .. level .. "]", at, true)) + 1
    elseif comment then
      stop = text:match("^[^\n]*()", at)
    elseif text:find("^[\"']", at) then
      local quote = text:sub(at, at)
      stop = at + 1
      while text:sub(stop, stop) ~= quote do -- \z and an escaped line's end are passed over as any pair
        stop = stop + (text:sub(stop, stop) == "\\" and 2 or 1)
        assert(stop <= #text, file .. ": a string without end")
      end
      what, stop = "value", stop + 1
    elseif text:find("^%.?%d", at) then
      what, stop = "value", text:match("^0[xX][%x.]*()", at)
      stop = stop and text:match("^[pP][+-]?%d+()", stop) or stop or text:match("^[%d.]*()", at)
      stop = text:match("^[eE][+-]?%d+()", stop) or stop
    elseif text:find("^[%a_]", at) then
      local word
      word, stop = text:match("^([%w_]+)()", at)
      what = keywords[word] == "value" and "value" or keywords[word] and word or "name"
    else
      for n = 3, 1, -1 do
        what, stop = text:sub(at, at + n - 1), at + n
        if n == 1 or what == "..." or n == 2 and (what:find "^[=~<>]=$" or what:find "^([.:/<>])%1$") then break end
      end
      if what == "..." then what = "value" end
    end
    if not comment then out[#out + 1] = { what, at, line } end
    skip(stop)
  end
  out[#out + 1] = { "<eof>", #text + 1, line }
  return out
end

-- ---- where statements begin: the grammar of section 9 of the manual ----

local binary, unary, closes = {}, { ["not"] = true, ["-"] = true, ["#"] = true, ["~"] = true }, {}
for op in ("+ - * / // ^ % & ~ | >> << .. < <= > >= == ~= and or"):gmatch "%S+" do binary[op] = true end
for word in ("end else elseif until <eof>"):gmatch "%S+" do closes[word] = true end

local function statements(text, file) -- the tokens that begin one
  local list, n, out = tokens(text, file), 1, {}
  local block, expression
  local function is(what) return list[n][1] == what end
  local function take(what)
    if not is(what) then return false end
    n = n + 1
    return true
  end
  local function need(what)
    if not take(what) then error(("%s:%d: %s expected near %s"):format(file, list[n][3], what, list[n][1])) end
  end
  local function expressions()
    repeat expression() until not take ","
  end
  local function body()
    need "("
    while not take ")" do n = n + 1 end
    block()
    need "end"
  end
  local function constructor()
    need "{"
    while not take "}" do
      if take "[" then
        expression()
        need "]"
        need "="
      elseif is "name" and list[n + 1][1] == "=" then
        n = n + 2
      end
      expression()
      if not take "," then take ";" end
    end
  end
  local function suffixed()
    if take "(" then
      expression()
      need ")"
    else
      need "name"
    end
    while true do
      if take "." or take ":" then
        need "name"
      elseif take "[" then
        expression()
        need "]"
      elseif take "(" then
        if not is ")" then expressions() end
        need ")"
      elseif is "{" then
        constructor()
      elseif not (list[n][2] and text:find("^[\"'%[]", list[n][2]) and take "value") then
        return
      end
    end
  end
  function expression()
    repeat
      while unary[list[n][1]] do n = n + 1 end
      if take "function" then
        body()
      elseif is "{" then
        constructor()
      elseif not take "value" then
        suffixed()
      end
      local more = binary[list[n][1]]
      if more then n = n + 1 end
    until not more
  end
  local function statement()
    if take ";" then return end
    local first = list[n]
    local declares = is "function" or (is "local" or is "return") and list[n + 1][1] == "function"
    local counted = not declares and not is "::"
    if counted then out[#out + 1] = first end
    if take "if" then
      repeat
        expression()
        need "then"
        block()
      until not take "elseif"
      if take "else" then block() end
      need "end"
    elseif take "while" then
      expression()
      need "do"
      block()
      need "end"
    elseif take "do" then
      block()
      need "end"
    elseif take "for" then
      while not (take "=" or take "in") do n = n + 1 end
      expressions()
      need "do"
      block()
      need "end"
    elseif take "repeat" then
      block()
      need "until"
      expression()
    elseif take "function" then
      while not is "(" do n = n + 1 end
      body()
    elseif take "local" then
      if take "function" then
        need "name"
        return body()
      end
      repeat
        need "name"
        if take "<" then n = n + 2 end
      until not take ","
      if take "=" then expressions() end
    elseif take "return" then
      if not (closes[list[n][1]] or is ";") then expressions() end
    elseif take "goto" then
      need "name"
    elseif take "::" then
      n = n + 2
    elseif not take "break" then
      repeat suffixed() until not take ","
      if take "=" then expressions() end
    end
  end
  function block()
    while not closes[list[n][1]] do statement() end
  end
  block()
  need "<eof>"
  return out
end

-- ---- the copy ----

local hits = [[
local file = assert(io.open(os.getenv "PERILUNE_HITS", "a"))
file:setvbuf "no"
return setmetatable({}, { __newindex = function(t, n, one)
  rawset(t, n, one)
  file:write(n .. "\n")
end })
]]

local function write(path, text)
  local file = assert(io.open(path, "w"))
  assert(file:write(text))
  assert(file:close())
end

local from, to = arg[1], arg[2]
local number, index = 0, {}
for name in io.lines() do
  local file = assert(io.open(from .. "/" .. name))
  local text = file:read "a"
  file:close()
  local first = tokens(text, name)[1][2] -- behind the comment that a file opens with: listings read that
  local pieces, last = { text:sub(1, first - 1), 'local _H=require"hits";' }, first
  for _, token in ipairs(statements(text, name)) do
    number = number + 1
    pieces[#pieces + 1] = ("%s_H[%d]=1;"):format(text:sub(last, token[2] - 1), number)
    last = token[2]
    index[number] = ("%d %s %d"):format(number, name, token[3])
  end
  pieces[#pieces + 1] = text:sub(last)
  local counted = table.concat(pieces)
  assert(load(counted, "@" .. name, "t"))
  write(to .. "/" .. name, counted)
end
write(to .. "/hits.lua", hits)
write(to .. "/statements.txt", table.concat(index, "\n") .. "\n")
