-- compare.lua - perilune compare RUN RUN: which of two runs, or groups of runs, is better.
local peri = require "perilune"
local arguments = require "perilune.command.arguments"
local compare = require "perilune.run.compare"
local plot = require "perilune.run.plot"

local about = [[
RUN is a run folder, or a folder of run folders: all of them are seeds of one side. perilune compare A1 A2 vs B1 B2
names several. Scores that the recipes stored (run:scores) have a value for each seed; a --metric of runs that stored
none is judged by its last value, one a run.]]

local spec = {
  metric = { "", "what is judged (default: all scores that both have)" },
  mode = { "max", "which values of a metric are better", choices = { "max", "min" } },
  plot = { "", "an SVG file for the curves of both" },
  curves = { true, "curves of the first metric in the terminal" },
  json = { false, "what was found as JSON, and nothing else" },
}

local function refuse(message)
  io.stderr:write("perilune compare: ", message, "\n")
  return nil
end

-- Paths before and behind the word vs.
local function sides(words)
  local at
  for i, word in ipairs(words) do
    if word == "vs" then
      if at then return refuse "vs stands once, between the two sides" end
      at = i
    end
  end
  if not at and #words ~= 2 then return refuse "of more than two runs, say which are one side: A1 A2 vs B1 B2" end
  local a = { table.unpack(words, 1, (at or 2) - 1) }
  local b = { table.unpack(words, at and at + 1 or 2) }
  if #a == 0 or #b == 0 then return refuse "a side has no run" end
  return a, b
end

local function run(values, first, second)
  local a, b = compare.side(first), compare.side(second)
  local found = compare.compare(a, b, values.metric, values.mode)
  if values.json then
    print(peri.json.encode(found, { indent = 2 }))
    return true
  end
  print(compare.text(found, a, b))
  local charts = compare.charts(a, b, { "A", "B" }, compare.drawn(a, found, values.metric))
  if values.curves and charts[1] then print("\n" .. plot.terminal(charts[1])) end
  if values.plot ~= "" then
    if #charts == 0 then error("the runs have no metric in common, so there is no curve for --plot", 0) end
    assert(plot.save(values.plot, charts))
  end
  return true
end

return function (args)
  local values, words = arguments.read("compare", "RUN [RUN ...] [vs] RUN [RUN ...]", 2, 1000, spec, args, about)
  if not values then return words end
  local first, second = sides(words)
  if not first then return 2 end
  return arguments.attempt("compare", run, values, first, second) and 0 or 1
end
