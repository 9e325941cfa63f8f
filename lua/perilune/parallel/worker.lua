-- worker.lua - peri.worker: the options of a worker; bindings/worker.c does it.

local peri = require "perilune.core"
local options = require "perilune.options"

local rules = {
  run = options.value(options.required, "function or string", "what it runs, or the path of a Lua file"),
  threads = options.integer(1, "[1, 256]", "threads of its context, its own included"),
  seed = options.integer(options.none, "[0, 9223372036854775807]",
    "of its generator; nil: made of this state's seed and the worker's number"),
  max_bytes = options.integer(options.none, "[0, inf)", "limit on its tensors' bytes, 0 is none; nil: as here"),
  memory = options.integer(0, "[0, inf)", "limit on the bytes of its Lua values, 0 is none"),
  instructions = options.integer(0, "[0, inf)", "limit on the instructions of Lua that it runs, 0 is none"),
}

--- Run a function, or a Lua file, in a Lua state of its own on a thread of its own, with the rest as arguments. The
--- function takes its upvalues along: modules by their names, functions, and copies of plain values; tensors are
--- shared, not copied, and read-only from then on unless `x:share "racing"` came before.
---
---     local w = peri.worker(function(n) return peri.randn({ n, n }):matmul(peri.randn { n, n }):sum():item() end, 100)
---     print(w:result())
---     peri.worker({ run = "actor.lua", threads = 2 }, parameters, channel)
---
--- @param run function|string|table  function, path of a Lua file, or options with it as `run`
--- @param ... any  plain values, tables of them, tensors, channels, functions, modules
--- @return perilune.Worker
local function worker(run, ...)
  local given = type(run) == "table" and run or { run = run }
  local o = options.fill("worker", given, rules)
  local fn = o.run
  if type(fn) == "string" then
    local message
    fn, message = loadfile(fn, "t")
    if not fn then options.raise("worker: " .. message) end
  end
  return peri._worker(fn, o, ...)
end
options.declare(worker, { "run" }, rules)

return worker
