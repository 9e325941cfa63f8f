-- repl.lua - perilune repl: interactive prompt.
local usage = [[
usage: perilune repl
An interactive prompt: the values of expressions print, input may span lines, Tab completes, help(x)
explains x, Ctrl-C returns to the prompt, Ctrl-D leaves. peri and help are globals; LUA_INIT runs before.
]]

-- LUA_INIT as lua.c reads it.
local function run_init()
  local init = os.getenv "LUA_INIT_5_4" or os.getenv "LUA_INIT"
  if not init then return end
  local chunk, message
  if init:sub(1, 1) == "@" then chunk, message = loadfile(init:sub(2), "t")
  else chunk, message = load(init, "=LUA_INIT", "t") end
  if not chunk then error(message, 0) end
  chunk()
end

return function(args)
  if args[1] == "--help" or args[1] == "-h" then
    io.write(usage)
    return 0
  elseif args[1] then
    io.stderr:write(("perilune: repl takes no arguments, got %s\n"):format(args[1]), usage)
    return 2
  end
  run_init()
  local repl = require "perilune.repl"
  return function () repl() end
end
