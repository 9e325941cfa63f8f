-- Curves on the terminal and as SVG.
local lu = require "luaunit"
local plot = require "perilune.plot"

TestPlot = {}

function TestPlot:test_smoothing_starts_at_the_first_value_and_keeps_gaps()
  local s = plot.smooth({ 2, 2, 0 / 0, 4 }, 0.5)
  lu.assertAlmostEquals(s[1], 2, 1e-12)
  lu.assertTrue(s[3] ~= s[3])
  lu.assertTrue(s[4] > 2 and s[4] < 4)
end

function TestPlot:test_ticks_are_round_and_inside()
  for i, t in ipairs((plot.ticks(0, 1, 5))) do lu.assertAlmostEquals(t, (i - 1) / 5, 1e-12) end
  local ticks, digits = plot.ticks(-3, 7, 5)
  lu.assertEquals(ticks, { -2.0, 0.0, 2.0, 4.0, 6.0 })
  lu.assertEquals(digits, 0)
  lu.assertTrue(#plot.ticks(5, 5, 5) > 1)
end

function TestPlot:test_terminal_lines_fit_the_width()
  local y = {}
  for i = 1, 100 do y[i] = math.sin(i / 10) end
  local text = plot.terminal({ title = "sine", series = { { name = "a", y = y }, { name = "b", y = { 0, 1 } } } },
    { width = 60, height = 8 })
  local lines = 0
  for line in text:gmatch "[^\n]+" do
    lines = lines + 1
    lu.assertTrue(utf8.len(line) <= 60)
  end
  lu.assertEquals(lines, 8 + 4)
  lu.assertStrContains(text, "sine")
end

function TestPlot:test_empty_and_constant_series_plot()
  for _, y in ipairs { {}, { 3 }, { 0, 0 }, { 0 / 0, 1, math.huge } } do
    lu.assertIsString(plot.terminal { series = { { y = y } } })
    local svg = plot.svg { series = { { y = y, smooth = 0.9 } } }
    lu.assertNil(svg:find "nan")
    lu.assertNil(svg:find "inf")
  end
end

function TestPlot:test_svg_escapes_and_lays_out_charts()
  local chart = { title = "a < b & c", series = { { name = "x", y = { 1, 2 } }, { name = "y", y = { 2, 1 } } } }
  local svg = plot.svg({ chart, chart, chart }, { width = 100, height = 80 })
  lu.assertStrContains(svg, "a &lt; b &amp; c")
  lu.assertStrContains(svg, 'width="200" height="160"')
end

function TestPlot:test_long_curves_stay_small()
  local y = {}
  for i = 1, 100000 do y[i] = math.sin(i * 0.37) end
  lu.assertTrue(#plot.svg { series = { { y = y } } } < 60000)
end

function TestPlot:test_save_says_why_it_failed()
  local ok, message = plot.save("/nowhere/x.svg", { series = { { y = { 1 } } } })
  lu.assertNil(ok)
  lu.assertStrContains(message, "/nowhere/x.svg")
end
