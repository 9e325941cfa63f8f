-- child.lua - runs a recipe, given as text, in a child process of the same program.
local peri = require "perilune"
local scratch = require "scratch"

local M = {}

local function output(command)
  local pipe = assert(io.popen(command))
  local text = pipe:read "a"
  pipe:close()
  return (text:gsub("%s+$", ""))
end

--- Path of the program that runs this test.
M.program = output "readlink /proc/$PPID/exe"

--- Run a shell command: its exit status and what it wrote on both streams.
--- @param command string
--- @return integer status
--- @return string text
function M.shell(command)
  command = "sh -c '" .. command:gsub("'", "'\\''") .. "'"
  local pipe = assert(io.popen("( timeout -k 1 120 " .. command .. "\n) 2>&1; s=$?; echo; echo $s"))
  local text = pipe:read "a"
  pipe:close()
  local out, status = text:match "^(.*)\n(%d+)\n$"
  return math.tointeger(tonumber(status)), out
end

--- A folder with the recipe in it; command(flags) is a command line that runs it there.
--- @param source string
--- @return table  folder, command(flags), run(flags) -> status, text; read(name) -> text or nil
function M.recipe(source)
  local folder = scratch.folder()
  assert(peri.files.write(folder .. "/demo.lua", source))
  local self = { folder = folder }
  function self.command(flags)
    return ("cd %s && COLUMNS=100 PERILUNE_COMMAND=./perilune %s run demo.lua %s"):format(folder, M.program, flags or "")
  end
  function self.run(flags) return M.shell(self.command(flags)) end
  function self.read(name) return (peri.files.read(folder .. "/" .. name)) end
  function self.remove() assert(peri.files.remove_tree(folder)) end
  return self
end

return M
