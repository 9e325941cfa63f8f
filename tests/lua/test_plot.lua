-- Curves on the terminal and as SVG.
local lu = require "luaunit"
local plot = require "perilune.run.plot"

TestPlot = {}

function TestPlot:test_smoothing_has_no_lag_and_keeps_gaps()
  local s = plot.smooth({ 2, 2, 0 / 0, 2 }, 0.5)
  lu.assertAlmostEquals(s[1], 2, 1e-12)
  lu.assertTrue(s[3] ~= s[3])
  lu.assertAlmostEquals(s[4], 2, 1e-12)
  local peak = {}
  for i = 1, 41 do peak[i] = -math.abs(i - 21) end
  s = plot.smooth(peak, 0.8)
  for i = 1, 20 do lu.assertAlmostEquals(s[i], s[42 - i], 1e-12) end -- what is symmetric stays so
  lu.assertTrue(s[21] > s[20] and s[21] > s[22])
end

-- Deterministic curves are drawn as they are, whatever their form; noise gets a smoothed one.
function TestPlot:test_only_noise_is_smoothed()
  local rng = require("perilune").rng(1)
  local forms = {
    constant = function() return 3 end,
    line = function(i) return i end,
    warmup_cosine = function(i) return math.min(i / 20, 1) * 0.5 * (1 + math.cos(math.pi * i / 400)) end,
    steps = function(i) return 0.5 ^ (i // 50) end,
    restarts = function(i) return 0.5 * (1 + math.cos(math.pi * (i % 80) / 80)) end,
    decay = function(i) return math.exp(-i / 60) end,
    rounding = function(i) return math.exp(-i / 60) + (i % 2) * 1e-9 end,
    sine = function(i) return math.sin(i / 10) end,
  }
  for name, form in pairs(forms) do
    local y = {}
    for i = 1, 400 do y[i] = form(i) end
    lu.assertFalse(plot.noisy(y), name)
    for i = 1, 400 do y[i] = form(i) + 0.2 * rng:normal() * (name == "line" and 100 or 1) end
    lu.assertTrue(plot.noisy(y), name .. " with noise")
  end
  lu.assertFalse(plot.noisy { 1, 2, 1, 2, 1 })
  local y = {}
  for i = 1, 100 do y[i] = rng:uniform() end
  local noisy = plot.svg { series = { { name = "a", y = y, smooth = "auto" } } }
  lu.assertStrContains(noisy, 'class="smooth"')
  local smooth = plot.svg { series = { { name = "a", y = { 1, 2, 3 }, smooth = "auto" } } }
  lu.assertNil(smooth:find 'class="smooth"')
  lu.assertStrContains(smooth, 'class="curve"')
end

function TestPlot:test_a_chart_has_a_legend_axes_and_points_where_they_are_few()
  local dense, x = {}, {}
  for i = 1, 200 do dense[i], x[i] = i, i * 100 end
  local svg = plot.svg { title = "t", xlabel = "step", ylabel = "nats a token",
    series = { { name = "loss", x = x, y = dense }, { name = "val_loss", x = { 5000, 10000 }, y = { 3, 2 } } } }
  for _, want in ipairs { ">t<", ">step<", ">nats a token<", ">loss<", ">val_loss<", ">10k<" } do
    lu.assertStrContains(svg, want)
  end
  lu.assertEquals(select(2, svg:gsub("<circle", "")), 2)
  lu.assertStrContains(plot.svg { series = { { y = {} } } }, "no values")
end

function TestPlot:test_a_logarithmic_axis_leaves_out_what_has_no_logarithm()
  local svg = plot.svg { yscale = "log", series = { { y = { 1000, 0, -1, 0.01 } } } }
  for _, want in ipairs { ">1000<", ">1<", ">0.01<" } do lu.assertStrContains(svg, want) end
  lu.assertNil(svg:find "nan")
  lu.assertEquals(select(2, svg:gsub("<circle", "")), 2)
end

function TestPlot:test_charts_and_series_refuse_what_they_do_not_know()
  lu.assertErrorMsgContains('did you mean "title"', plot.svg, { titel = "x", series = {} })
  lu.assertErrorMsgContains("unknown option", plot.svg, { series = { { y = {}, z = 1 } } })
  lu.assertErrorMsgContains("expected a number in [0, 1)", plot.svg, { series = { { y = { 1 }, smooth = 2 } } })
  lu.assertErrorMsgContains("one of", plot.svg, { yscale = "cube", series = {} })
  lu.assertErrorMsgContains('y[2] of "a" is a string', plot.svg, { series = { { name = "a", y = { 1, "2" } } } })
  lu.assertErrorMsgContains("x has 1 values, y has 2", plot.terminal, { series = { { x = { 1 }, y = { 1, 2 } } } })
  lu.assertErrorMsgContains("there is no chart", plot.svg, {})
  lu.assertErrorMsgContains("charts is missing", plot.save, "x.svg")
  lu.assertErrorMsgContains("not below", plot.svg, { ymin = 2, ymax = 1, series = {} })
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

function TestPlot:test_values_of_any_size_plot_on_either_axis()
  math.randomseed(1)
  local function value(least, most) return (math.random() - 0.5) * 10.0 ^ (least + (most - least) * math.random()) end
  local sets = { { -1.7e308, 1.7e308 }, { -1e300, 1e300 }, { 5e-324, 1e-323 }, { 0, 1e-305 }, { 1, 1 + 2.3e-16 },
    { 1e15, 1e15 + 1 }, { -2e-236, -3e-313 }, { -2e-112, 0, 2e-307 }, { 1e300 } }
  for i = 1, 100 do sets[#sets + 1] = { value(-320, 308), value(-320, 308), i % 2 == 0 and value(-5, 5) or nil } end
  for _, y in ipairs(sets) do
    local x = {}
    for i in ipairs(y) do x[i] = value(-20, 20) end
    for i, yscale in ipairs { "linear", "log", "linear", "log" } do
      local chart = { yscale = yscale, xscale = i > 2 and "log" or "linear", series = { { x = x, y = y, line = i % 2 == 0 } } }
      lu.assertIsString(plot.terminal(chart))
      local svg = plot.svg(chart)
      lu.assertNil(svg:find "nan")
      lu.assertNil(svg:find "inf")
    end
  end
end

function TestPlot:test_a_series_without_a_line_is_dots_and_a_log_axis_has_powers_of_ten()
  local x, y = {}, {}
  for i = 1, 200 do x[i], y[i] = 10.0 ^ (i / 50 - 2), i end
  local svg = plot.svg { xscale = "log", series = { { x = x, y = y, line = false } } }
  lu.assertEquals(select(2, svg:gsub("<circle", "")), 200)
  lu.assertNil(svg:find('class="curve"', 1, true))
  for _, tick in ipairs { "0.1", "1", "10", "100" } do lu.assertStrContains(svg, ">" .. tick .. "</text>") end
  local straight = plot.svg { xscale = "log", series = { { x = { 0.01, 1, 100, 0, -1 }, y = { 1, 2, 3, 9, 9 } } } }
  local points = {}
  for px in straight:match 'class="curve"[^>]*d="([^"]*)"':gmatch "[ML]([%d.]+)" do points[#points + 1] = tonumber(px) end
  lu.assertEquals(#points, 3) -- what is not above 0 has no place
  lu.assertAlmostEquals(points[2] - points[1], points[3] - points[2], 1)
  lu.assertStrContains(plot.terminal { xscale = "log", series = { { x = { 1, 1000 }, y = { 1, 2 } } } }, "1000")
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
