-- terminal.lua - what is known of the terminal. One answer for the prompt, help and the rows of a run.

local M = {}

--- Is standard output a terminal that understands control sequences?
--- @return boolean
function M.live()
  local term = os.getenv "TERM"
  if not term or term == "" or term == "dumb" then return false end
  return os.execute "test -t 1" == true
end

--- Columns of the terminal: COLUMNS, else what the terminal says, else 80.
--- @return integer
function M.width()
  local columns = math.tointeger(tonumber(os.getenv "COLUMNS"))
  if columns and columns > 20 then return columns end
  local pipe = io.popen("{ stty size </dev/tty; } 2>/dev/null", "r")
  local width = pipe and math.tointeger(tonumber((pipe:read "a" or ""):match "%d+%s+(%d+)"))
  if pipe then pipe:close() end
  return width and width > 20 and width or 80
end

return M
