-- perilune.repl: the prompt of the program. Reads a chunk, runs it, prints its values (those of its last
-- expression) as perilune.show writes them; the editing of a line is perilune.line (C). Behaves as lua does:
-- _PROMPT, _PROMPT2, results through print.
local peri = require "perilune"
local line = require "perilune.line"
local show = require "perilune.show"
local terminal = require "perilune.terminal"

local keywords = {
  "and", "break", "do", "else", "elseif", "end", "false", "for", "function", "goto", "if", "in",
  "local", "nil", "not", "or", "repeat", "return", "then", "true", "until", "while",
}

-- ---- completion ----

local fields = { "shape", "ndim", "dtype", "device", "grad", "requires_grad", "is_leaf", "packed", "T" }

-- Value of a path of names such as "peri.nn", without calling anything but lazy loading.
local function resolve(path)
  local value = _G
  for name in path:gmatch "[%a_][%w_]*" do
    if type(value) ~= "table" then return nil end
    local ok, next_value = pcall(function() return value[name] end)
    if not ok then return nil end
    value = next_value
  end
  return value
end

local lazy = { "per_sample_grad", "help", "show" }
for name in pairs(peri._public) do lazy[#lazy + 1] = name end

local function names_of(value)
  local names = {}
  if peri.is_tensor(value) then
    for name in pairs(peri.methods()) do names[name] = true end
    for _, name in ipairs(fields) do names[name] = true end
    return names
  end
  if type(value) == "string" then value = string end
  for _ = 1, 8 do -- a table, then what its __index adds
    if type(value) ~= "table" then break end
    for name in next, value do
      if type(name) == "string" then names[name] = true end
    end
    if value == peri then
      for _, name in ipairs(lazy) do names[name] = true end
    end
    local meta = getmetatable(value)
    value = type(meta) == "table" and rawget(meta, "__index") or nil
    if type(value) == "function" then break end
  end
  return names
end

local function common_prefix(list)
  local prefix = list[1]
  for _, word in ipairs(list) do
    while word:sub(1, #prefix) ~= prefix do prefix = prefix:sub(1, -2) end
  end
  return prefix
end

local function columns(list)
  local width, out = 0, {}
  for _, word in ipairs(list) do width = math.max(width, #word + 2) end
  local per = math.max(1, 80 // width)
  for i, word in ipairs(list) do
    out[#out + 1] = word .. ((i % per == 0 or i == #list) and "\n" or (" "):rep(width - #word))
  end
  return (table.concat(out):gsub("\n$", ""))
end

-- What Tab does after text: the characters to insert, or a list to show.
local function complete(text)
  local path, last = text:match "([%w_%.:]-)([%w_]*)$"
  local owner, words = path:match "^(.*)[%.:]$", {}
  if path ~= "" and not owner then return nil end
  local value = _G
  if owner then value = resolve(owner) end
  for name in pairs(names_of(value)) do words[#words + 1] = name end
  if not owner then
    if last == "" then return "  " end
    for _, word in ipairs(keywords) do words[#words + 1] = word end
  end
  local found = {}
  for _, word in ipairs(words) do
    local private = word:sub(1, 1) == "_" and last == ""
    if not private and word:find "^[%a_][%w_]*$" and word:sub(1, #last) == last then
      found[#found + 1] = word
    end
  end
  table.sort(found)
  if #found == 0 then return nil end
  local insert = common_prefix(found):sub(#last + 1)
  if insert ~= "" then return insert end
  return nil, #found > 1 and columns(found) or nil
end

-- ---- history ----

-- The history file; its folder is made when missing.
local function history_path()
  local state = os.getenv "XDG_STATE_HOME"
  local home = os.getenv "HOME"
  if not state or state == "" then
    if not home or home == "" then return nil end
    state = home .. "/.local/state"
  end
  return state .. "/perilune/history", state .. "/perilune"
end

-- ---- chunks ----

local function incomplete(message)
  return message and message:sub(-5) == "<eof>"
end

local function prompt(first)
  local name = first and "_PROMPT" or "_PROMPT2"
  local text = _G[name]
  return text ~= nil and tostring(text) or first and "> " or ">> "
end

-- Places where a statement may end: behind a semicolon or at the end of a line, outside texts and comments; the
-- last few of them, from the end.
local function ends_of(text)
  local places, at = {}, 1
  while at <= #text do
    local from, to = text:find("^%-%-%[(=*)%[.-%]%1%]", at)
    if not from then from, to = text:find("^%[(=*)%[.-%]%1%]", at) end
    if not from then from, to = text:find("^%-%-[^\n]*", at) end
    if from then at = to + 1
    else
      local c = text:sub(at, at)
      if c == '"' or c == "'" then
        local stop = at + 1
        while stop <= #text and text:sub(stop, stop) ~= c do
          stop = stop + (text:sub(stop, stop) == "\\" and 2 or 1)
        end
        at = stop
      elseif c == ";" or c == "\n" then table.insert(places, 1, at) end
      at = at + 1
    end
  end
  return table.move(places, 1, 8, 1, {})
end

-- An expression, its values collected by the function that the chunk gets: called so, nothing in it is a tail
-- call, and an error can name this line.
local function expression(before, text, skip)
  if not load(skip .. "return " .. text, "=stdin", "t") then return nil end
  return load(("%s return (...)(%s)"):format(before, text), "=stdin", "t")
    or load(("%s return (...)(%s\n)"):format(before, text), "=stdin", "t") -- one that ends with a comment
    or load(before .. " return " .. text, "=stdin", "t") -- one that ends with a semicolon
end

-- The chunk that a text is: an expression, statements with one at their end ("x = f(); x"), or statements.
local function compile(text)
  text = text:gsub("^=", "return ") -- as lua reads it
  local chunk = expression("", text, "")
  if chunk then return chunk end
  for _, at in ipairs(ends_of(text)) do
    local before, last = text:sub(1, at), text:sub(at + 1)
    if last:find "%S" and load(before, "=stdin", "t") then
      local _, lines = before:gsub("\n", "")
      chunk = expression(before, last, ("\n"):rep(lines))
      if chunk then return chunk end
    end
  end
  return load(text, "=stdin", "t")
end

-- A whole chunk, of more lines until it is complete. Returns the function, or nil and a message; false at Ctrl-C;
-- nothing at the end of input.
local function read_chunk()
  local text = line.read(prompt(true))
  if not text then return text end
  if text:find "%S" then line.remember(text) end
  while true do
    local chunk, message = compile(text)
    if chunk then return chunk end
    if not incomplete(message) then return nil, message end
    local more = line.read(prompt(false))
    if more == nil then return nil, message end
    if more == false then return false end
    if more:find "%S" then line.remember(more) end
    text = text .. "\n" .. more
  end
end

local function handler(message)
  if type(message) ~= "string" then
    local meta = getmetatable(message)
    if type(meta) == "table" and meta.__tostring then return tostring(message) end
    message = line.error_text(message)
  end
  if message:find("\nstack traceback:\n", 1, true) then return message end
  local trace = debug.traceback(message, 2)
  return (trace:gsub("\n%s*%[C%]: in function 'perilune%.line%.call'.*$", ""))
end

local function report(message)
  io.stdout:flush()
  io.stderr:write(message, "\n")
end

-- What the values of a chunk print as: in a line where they are short, else below each other.
local function print_values(look, ...)
  local n, texts, long = select("#", ...), {}, false
  if n == 0 then return end
  _G._ = (...)
  for i = 1, n do
    texts[i] = show((select(i, ...)), look)
    long = long or texts[i]:find "\n" ~= nil
  end
  if long then for i = 1, n do print(texts[i]) end else print(table.unpack(texts, 1, n)) end
end

local function answer(look, ok, ...)
  if not ok then return report((...)) end
  local good, message = pcall(print_values, look, ...)
  if not good then report("error calling 'print' (" .. tostring(message) .. ")") end
end

-- exit and quit say how to leave, with and without parentheses.
local leave = setmetatable({}, {
  __tostring = function() return "Ctrl-D leaves." end,
  __call = function(self) print(tostring(self)) end,
})

local function collect(...) return ... end

-- Run the prompt until the end of input.
local function run()
  _G.peri, _G.help = peri, peri.help
  for _, name in ipairs { "exit", "quit" } do
    if _G[name] == nil then _G[name] = leave end
  end
  local interactive, screen = line.interactive()
  local no_colour, term = os.getenv "NO_COLOR", os.getenv "TERM"
  local look = { colour = screen and (not no_colour or no_colour == "") and term ~= nil and term ~= "dumb" }
  local path, folder = history_path()
  if interactive then
    local info = peri.info()
    print(("Perilune %s, %s, %s, %d threads. help() explains, Ctrl-D leaves.")
      :format(info.version, info.lua, info.simd, info.threads))
    line.completer(complete)
    if path then line.load(path) end
  end
  while true do
    local chunk, message = read_chunk()
    if chunk then
      look.width = math.max(20, screen and terminal.width() or 80)
      answer(look, line.call(chunk, handler, collect)) -- a Ctrl-C ends here
    elseif message then report(message)
    elseif chunk == nil then break end
    io.stdout:flush()
  end
  if interactive and path then
    line.make_folder(folder)
    line.save(path)
  end
  line.close()
end

return setmetatable({ complete = complete }, { __call = run })
