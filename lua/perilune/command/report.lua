-- report.lua - perilune report RUN: one HTML file of a run: curves, samples, alarms, flags, what it ran on.
local arguments = require "perilune.command.arguments"
local report = require "perilune.run.report"

local about = [[
RUN is a run folder; the run may be unfinished or at work. The file opens in any browser, without a network, and can be
sent to others: all that it shows is in it.]]

local spec = {
  out = { "", "the file (default: report.html in the run folder)" },
  samples = { report.rules.samples.default, "most samples, evenly over the run", range = "[0, 1000]" },
  charts = { report.rules.charts.default, "most curves, the metrics first that the recipe is judged by",
    range = "[0, 1000]" },
}

return function (args)
  local values, words = arguments.read("report", "RUN", 1, 1, spec, args, about)
  if not values then return words end
  local ran, path, message = arguments.attempt("report", report.report, words[1],
    { path = values.out ~= "" and values.out or nil, samples = values.samples, charts = values.charts })
  if not ran then return 1 end
  if not path then
    io.stderr:write("perilune report: ", message, "\n")
    return 1
  end
  print(path)
  return 0
end
