-- terminal.lua - what is known of the terminal. One answer for the prompt, help and the rows of a run.

local M = {}

--- Is standard output a terminal that understands control sequences?
--- @return boolean
function M.live()
  local term = os.getenv "TERM"
  if not term or term == "" or term == "dumb" then return false end
  return os.execute "test -t 1" == true
end

local LEAST <const>, USUAL <const> = 20, 80 -- columns

local function columns_of(text)
  local n = math.tointeger(tonumber(text))
  return n and n > 0 and math.max(n, LEAST) or nil
end

--- Columns of a line that goes to a file or a pipe: COLUMNS, else 80; 20 at least.
--- @return integer
function M.columns() return columns_of(os.getenv "COLUMNS") or USUAL end

--- Columns and rows of the terminal: what it says, else 80 and 24.
--- @return integer columns
--- @return integer rows
function M.size()
  local pipe = io.popen("{ stty size </dev/tty; } 2>/dev/null", "r")
  local rows, columns = (pipe and pipe:read "a" or ""):match "(%d+)%s+(%d+)"
  if pipe then pipe:close() end
  rows = math.tointeger(tonumber(rows or 0))
  return columns_of(columns) or M.columns(), rows and rows > 0 and rows or 24
end

--- Columns of the terminal: COLUMNS, else what the terminal says, else 80; 20 at least.
--- @return integer
function M.width()
  if columns_of(os.getenv "COLUMNS") then return M.columns() end
  local pipe = io.popen("{ stty size </dev/tty; } 2>/dev/null", "r")
  local width = pipe and columns_of((pipe:read "a" or ""):match "%d+%s+(%d+)")
  if pipe then pipe:close() end
  return width or USUAL
end

return M
