-- run.lua - perilune run FILE [ARG ...]: run a Lua file; - is the standard input.
local usage = [[
usage: perilune run FILE [ARG ...]
Runs a Lua file; - is the standard input. What stands behind FILE is the script's: in ..., and in the
global arg. A recipe lists its flags with perilune run FILE --help; perilune recipes lists recipes.
Ctrl-C stops a recipe after its step and anything else at once.
]]

return function(args, place)
  local path = args[1]
  if path == "--help" or path == "-h" then
    io.write(usage)
    return 0
  elseif not path then
    io.stderr:write("perilune: run needs a file\n", usage)
    return 2
  elseif path:find "^%-." then
    io.stderr:write(("perilune: run has no option %s; those of a script stand behind its file\n"):format(path), usage)
    return 2
  end
  place.script()
  local chunk, message = loadfile(path ~= "-" and path or nil, "t")
  if not chunk then
    io.stderr:write("perilune: ", message, "\n")
    return 1
  end
  -- A script's own modules: its folder, behind all others. The current one is there already.
  local folder = path:match "^(.*)/"
  if folder then package.path = ("%s;%s/?.lua;%s/?/init.lua"):format(package.path, folder, folder) end
  return chunk, table.unpack(args, 2)
end
