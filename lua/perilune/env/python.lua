-- python.lua - environments of Gymnasium, PettingZoo or a Python file, in Python processes.
local batch = require "perilune.env.batch"
local core = require("perilune.core")._env
local json = require("perilune.core").json
local options = require "perilune.options"

local own = {
  python = options.value("python3", "string", "the program, looked for in PATH"),
  path = options.value("", "string", "a folder where Python looks for modules first"),
  options = options.value({}, "table", "for the environment's constructor, by name"),
  workers = options.integer(1, "[1, 64]", "processes that share the environments"),
  timeout = options.number(60, "(0, inf)", "seconds that a reset or a step may take; starting has a minute at least"),
  render = options.boolean(false, "make them with render_mode=\"rgb_array\", for render, frame and films"),
}
local rules = {}
for _, list in ipairs { batch.rules, own } do
  for name, rule in pairs(list) do rules[name] = rule end
end

--- Environments that run in Python, as any other: "gymnasium:CartPole-v1", "pettingzoo:mpe.simple_spread_v3" (its
--- parallel form; agents are rows) or "file:PATH:FUNCTION" (what the function returns). The slow way: a step costs what
--- it costs in Python and the way there. The state is elsewhere, so that it can be neither saved nor loaded. A process
--- that dies, raises or does not answer in time is an error that names the environment, the step and what it said.
--- @param name string
--- @param opts table?
--- @return perilune.env.Env
local function python(name, opts)
  options.argument("env.python", "name", name, "string")
  local o = options.fill("env.python", opts, rules)
  local text = json.encode(o.options)
  local made = {}
  for k in pairs(own) do made[k] = o[k] end
  made.options = text == "[]" and "{}" or text
  local env = batch.make(name, o, nil, function (settings) return core.python(name, made, settings) end)
  return env
end

return options.declare(python, { "name" }, rules)
