-- export.lua - perilune export POLICY FILE: a trained policy as one C file that needs libc alone, or one Lua file.
local peri = require "perilune"
local arguments = require "perilune.command.arguments"

local about = [[
POLICY is a policy file (recipes leave policy.safetensors in their run folder) or a run folder that has one. FILE.c gets
weights and functions to act, C99 without malloc, and FILE.h beside it the declarations; FILE.lua is plain Lua 5.4. Both
choose the actions that the policy chooses.]]

local spec = {
  name = { "", "that what a C file defines begins with (default: the file's name)" },
  force = { false, "write over files that are there (--overwrite is the same)" },
}

local function refuse(message)
  io.stderr:write("perilune export: ", message, "\n")
  return 1
end

return function (args)
  local values, words = arguments.read("export", "POLICY FILE", 2, 2, spec, args, about)
  if not values then return words end
  local from, to = words[1], words[2]
  if peri.files.exists(from) == "folder" then from = from:gsub("/+$", "") .. "/policy.safetensors" end
  for _, path in ipairs { to, (to:gsub("%.c$", ".h")) } do
    if not values.force and peri.files.exists(path) then
      return refuse(path .. ": is there already (--force writes over it)")
    end
  end
  local ran, said, message = arguments.attempt("export", peri.rl.policy.export, from, to,
    { name = values.name ~= "" and values.name or nil })
  if not ran then return 1 end
  if not said then return refuse(message) end
  print(("%s: %s"):format(to, said))
  return 0
end
