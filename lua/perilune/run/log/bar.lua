-- bar.lua - one line at the bottom of a terminal that nothing sticks to. While it stands there, print,
-- io.write and the standard files wipe it first and draw it again below; warnings and messages of the
-- program, which no Lua code writes, know of it by peri._bar.

local peri = require "perilune"
local refusal = require "perilune.refusal"

local WIPE = "\r\27[K"

--- @class perilune.log.Bar
local Bar = {}
Bar.__index = Bar

local guarded -- the bar on the real standard output, when there is one

-- Run a writer of somebody else's text with the bar out of the way. `ends`: does the text end its line?
local function aside(ends, fn, ...)
  local bar = guarded
  if not bar then return fn(...) end
  bar:wipe()
  bar.partial = not ends
  local results = table.pack(fn(...))
  if ends and bar.text then bar:draw() end
  return table.unpack(results, 1, results.n)
end

local function ends_line(...)
  for i = select("#", ...), 1, -1 do
    local text = tostring((select(i, ...)))
    if text ~= "" then return text:sub(-1) == "\n" end
  end
  return not guarded.partial
end

-- The functions that write on the terminal or leave it, as they were.
local methods = getmetatable(io.stdout).__index
local plain

local function guard_write(file, ...)
  if not guarded or file ~= io.stdout and file ~= io.stderr then return plain.write(file, ...) end
  return aside(ends_line(...), plain.write, file, ...)
end

--- Put print, io.write, os.execute, os.exit and the write of files in charge of the bar. The program does it
--- at its start on a terminal, before a script takes copies of them; else the first bar does.
function Bar.install()
  if plain then return end
  plain = { print = print, io_write = io.write, write = methods.write, execute = os.execute, exit = os.exit }
  methods.write = guard_write
  function print(...) return aside(true, plain.print, ...) end -- luacheck: ignore 121
  function io.write(...) -- luacheck: ignore 122
    local file = guarded and io.output()
    if not file or file ~= io.stdout and file ~= io.stderr then return plain.io_write(...) end
    return aside(ends_line(...), plain.io_write, ...)
  end
  function os.execute(...) return aside(true, plain.execute, ...) end -- luacheck: ignore 122
  function os.exit(...) -- luacheck: ignore 122
    if guarded then guarded:close() end
    return plain.exit(...)
  end
end

--- @param out file*  or a table with write and flush
--- @param live boolean  draw bars; without it only lines are written
--- @return perilune.log.Bar
function Bar.new(out, live) return setmetatable({ out = out, live = live, partial = false }, Bar) end

-- Standard output on a full disk is an error as any other file is.
function Bar:put(...)
  local ok, message
  if self.out == io.stdout and plain then ok, message = plain.write(self.out, ...)
  else ok, message = self.out:write(...) end
  if not ok and message then refusal.raise("log: standard output: " .. message) end
end

function Bar:draw()
  self:put(self.partial and "\n" or "", WIPE, self.text)
  self.partial, self.shown = false, true
  if self.out == io.stdout then peri._bar(true) end
  self.out:flush()
end

--- Take the bar away until the next line or bar.
function Bar:wipe()
  if not self.shown then return end
  self.shown = false
  self:put(WIPE)
  self.out:flush()
  if self.out == io.stdout then peri._bar(false) end
end

--- Put a bar in place of the one that stands there; nil = none.
--- @param text string?
function Bar:show(text)
  if not self.live then return end
  self.text = text
  if not text then return self:wipe() end
  if self.out == io.stdout then
    Bar.install()
    guarded = self
  end
  self:draw()
end

--- Whole lines above the bar.
--- @param text string
function Bar:line(text)
  self:wipe()
  if self.partial then self:put "\n" end
  self.partial = false
  self:put(text, "\n")
  if self.live and self.text then return self:draw() end
  local ok, message = self.out:flush()
  if not ok and message then refusal.raise("log: standard output: " .. message) end
end

--- No bar any more.
function Bar:close()
  self:wipe()
  self.text = nil
  if guarded == self then guarded = nil end
  self.out:flush()
end

return Bar
