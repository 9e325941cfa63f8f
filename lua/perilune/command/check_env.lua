-- check_env.lua - perilune check-env ENV: is an environment what it says? A line for each check, exit status 1 when one
-- fails.
local peri = require "perilune"
local arguments = require "perilune.command.arguments"
local environment = require "perilune.command.environment"

local about = [[
ENV is a Lua file that returns an environment's table or id or registers one, an id, or gymnasium:ID. Each check plays
some steps; what is wrong is said with the step, the row and the value.]]

local spec = {
  seed = { 1, "of the episodes", range = "[0, inf)" },
  steps = { 200, "that each check plays", range = "[10, inf)" },
  option = { "", "options of the environment, name=value,name=value" },
}

local function run(values, words)
  local make, name = environment.maker(words[1])
  local given = environment.options(values.option)
  local function with_options(o)
    if environment.is_python(words[1]) then o.options = given
    else for k, v in pairs(given) do o[k] = v end end
    return make(o)
  end
  local list, ok = peri.env.check(with_options, { seed = values.seed, steps = values.steps })
  print(name)
  for _, entry in ipairs(list) do
    local mark = entry.ok == true and "ok" or entry.ok and "look" or "WRONG"
    print(("%-6s %s%s"):format(mark, entry.name, entry.message and ": " .. entry.message or ""))
  end
  return ok
end

return function (args)
  local values, words = arguments.read("check-env", "ENV", 1, 1, spec, args, about)
  if not values then return words end
  local ran, ok = arguments.attempt("check-env", run, values, words)
  return ran and ok and 0 or 1
end
