-- Scores of seeds: the statistics of rliable against SciPy's (tests/reference/scores.py), and what holds of intervals.
local lu = require "luaunit"
local peri = require "perilune"
local rl = peri.rl

local X = { { 1.5, 2.0, 9.0, 0.5, 3.0, 2.5, 4.0 }, { 0.1, 0.9, 0.4, 0.35, 0.7, 0.2, 0.8 } }
local Y = { { 1.0, 2.0, 3.5, 2.5, 1.25 }, { 0.2, 0.6, 0.5, 0.9, 0.1 } }

TestStatistics = {}

function TestStatistics.test_values_are_those_of_scipy()
  lu.assertAlmostEquals(rl.iqm(X[1]), 2.6, 1e-12)
  lu.assertAlmostEquals(rl.iqm(X), 1.1625, 1e-12)
  lu.assertAlmostEquals(rl.iqm(peri.tensor(X, "f64")), 1.1625, 1e-12)
  lu.assertAlmostEquals(rl.optimality_gap(X), 0.28928571428571437, 1e-12)
  lu.assertAlmostEquals((rl.interval(X, { statistic = "median" })), 1.8535714285714286, 1e-12)
  lu.assertAlmostEquals((rl.probability_of_improvement(X, Y)), 0.5785714285714285, 1e-12)
end

-- NumPy's bootstrap of 200,000 sets; ours of 20,000 has its ends within some hundredths.
function TestStatistics.test_intervals_are_those_of_a_long_bootstrap()
  local _, low, high = rl.interval(X, { statistic = "mean", samples = 20000 })
  lu.assertAlmostEquals(low, 1.057, 0.02)
  lu.assertAlmostEquals(high, 2.925, 0.04)
  _, low, high = rl.interval(X, { samples = 20000 })
  lu.assertAlmostEquals(low, 0.706, 0.02)
  lu.assertAlmostEquals(high, 1.8375, 0.04)
end

-- The mean of n normal scores has a deviation of 1/sqrt(n): 95 % of it is what the interval is about.
function TestStatistics.test_an_interval_is_as_wide_as_theory_says_and_holds_its_value()
  peri.seed(3)
  local scores = peri.randn({ 400 }, "f64")
  local value, low, high = rl.interval(scores, { statistic = "mean" })
  lu.assertTrue(low < value and value < high)
  lu.assertAlmostEquals(high - low, 2 * 1.96 / 20, 0.02)
  local _, narrow, wide = rl.interval(scores, { statistic = "mean", confidence = 0.5 })
  lu.assertTrue(narrow > low and wide < high)
end

function TestStatistics.test_the_same_seed_gives_the_same_interval_and_draws_from_no_other_generator()
  peri.seed(1)
  local state = peri.rng_state()
  local a, b = { rl.interval(X) }, { rl.interval(X) }
  lu.assertEquals(a, b)
  lu.assertEquals(peri.rng_state(), state)
  lu.assertNotEquals({ rl.interval(X, { seed = 2 }) }, a)
end

-- Scores are drawn within their task: tasks of other heights do not mix.
function TestStatistics.test_the_bootstrap_is_stratified()
  local _, low, high = rl.interval({ { 1, 1, 1 }, { 100, 100, 100 } }, { statistic = "mean" })
  lu.assertEquals({ low, high }, { 50.5, 50.5 })
end

function TestStatistics.test_a_score_shifted_or_scaled_shifts_and_scales_its_statistics()
  local moved = peri.tensor(X, "f64"):mul(3):add(5)
  local a, b = { rl.interval(X) }, { rl.interval(moved) }
  for k = 1, 3 do lu.assertAlmostEquals(b[k], 3 * a[k] + 5, 1e-9) end
  lu.assertAlmostEquals((rl.probability_of_improvement(X, X)), 0.5, 1e-12)
  local up, down = rl.probability_of_improvement(X, Y), rl.probability_of_improvement(Y, X)
  lu.assertAlmostEquals(up + down, 1, 1e-12)
end

function TestStatistics.test_a_report_is_one_line()
  local text, n = rl.report { 500, 500, 499, 488, 500, 497.5, 500, 500, 493, 500 }
  lu.assertStrMatches(text, "IQM 499%.4 %[%d+%.%d, %d+%.%d%] over 10 seeds")
  lu.assertEquals({ n.seeds, n.tasks }, { 10, 1 })
  lu.assertEquals((rl.report { 0.7442 }), "IQM 0.7442 over 1 seed")
  lu.assertEquals((rl.report { 0, 0 }), "IQM 0.0 [0.0, 0.0] over 2 seeds")
  lu.assertEquals((rl.report({ { 1, 1 }, { 1, 1, 1 } }, { digits = 0 })), "IQM 1 [1, 1] over 2 seeds of 2 tasks")
  lu.assertStrContains((rl.report { -200, -200 }), "IQM -200.0 [-200.0, -200.0]")
end

function TestStatistics.test_what_is_no_score_is_named()
  local function refuses(words, fn, ...) lu.assertErrorMsgContains(words, fn, ...) end
  refuses("number 2 of the scores is nan, expected a finite number", rl.iqm, { 1, 0 / 0 })
  refuses("number 1 of the scores of task 2 is inf", rl.report, { { 1 }, { math.huge } })
  refuses("there are no scores", rl.iqm, {})
  refuses("there are no scores of task 2", rl.iqm, { { 1 }, {} })
  refuses("scores is missing", rl.iqm)
  refuses("x has 2 tasks and y 1", rl.probability_of_improvement, X, Y[1])
  refuses("did you mean \"median\"", rl.interval, X, { statistic = "medain" })
  refuses("confidence is 1", rl.interval, X, { confidence = 1 })
end

TestExplainedVariance = {}

function TestExplainedVariance.test_it_is_one_of_perfect_and_zero_of_constant_predictions()
  local returns = peri.tensor({ 1, 2, 3, 6 }, "f32")
  lu.assertEquals(rl.explained_variance(returns, returns), 1)
  lu.assertAlmostEquals(rl.explained_variance(peri.full({ 4 }, 7), returns), 0, 1e-12)
  lu.assertEquals(rl.explained_variance(returns:neg(), returns), -3) -- 1 - 4 Var / Var
  local flat = rl.explained_variance(returns, peri.ones { 4 })
  lu.assertTrue(flat ~= flat)
end

function TestExplainedVariance.test_pairs_that_do_not_count_are_left_out()
  local values, returns = peri.tensor({ 1, 2, 0 / 0, 4 }, "f32"), peri.tensor({ 1, 3, 9, 4 }, "f32")
  local mask = peri.tensor { 1, 1, 0, 1 }
  lu.assertAlmostEquals(rl.explained_variance(values, returns, mask),
    rl.explained_variance(peri.tensor { 1.0, 2.0, 4.0 }, peri.tensor { 1.0, 3.0, 4.0 }), 1e-12)
  lu.assertErrorMsgContains("(4) and returns (2)", rl.explained_variance, values, peri.ones { 2 })
end

os.exit(lu.LuaUnit.run())
