-- Chains of sums on a clock: problems, their corpus with its errors, and the judge of steps.
local lu = require "luaunit"
local peri = require "perilune"
local clock = peri.tasks.clock

TestClock = {}

function TestClock.test_a_problem_has_the_results_that_its_prompt_says()
  local rng = peri.rng(3)
  for steps = 1, 9 do
    local row = clock.problem(rng, { steps = steps, largest = 9 })
    local sum, n, at = 0, 0, nil
    for digit in row.prompt:gmatch "%d" do
      sum = sum + tonumber(digit)
      if n > 0 then lu.assertEquals(row.results[n], sum % 10) end
      n, at = n + 1, sum % 10
    end
    lu.assertEquals({ #row.results, #row.terms, row.answer }, { steps, steps, at })
  end
end

function TestClock.test_a_step_is_judged_by_what_was_written_before_it()
  local row = { first = 3, terms = { 9, 4, 8 }, results = { 2, 6, 4 }, answer = 4 }
  local steps, labels, last = clock.judge(row, "2,6,4,")
  lu.assertEquals({ steps, labels, last }, { { "2", "6", "4" }, { true, true, true }, 4 })
  steps, labels, last = clock.judge(row, "5,9,7,") -- one error, taken along
  lu.assertEquals({ steps, labels, last }, { { "5", "9", "7" }, { false, true, true }, 7 })
  steps, labels, last = clock.judge(row, "2,6,")
  lu.assertEquals({ #steps, labels, last }, { 2, { true, true }, nil })
  steps, labels, last = clock.judge(row, "2,6,4,4,")
  lu.assertEquals({ #steps, labels[4], last }, { 4, false, nil })
  lu.assertEquals({ clock.judge(row, "") }, { {}, {}, nil })
  lu.assertEquals({ clock.reward(row, "2,6,4,"), clock.reward(row, "5,9,7,"), clock.reward(row, "2,6,4") }, { 1, 0, 0 })
end

function TestClock.test_the_corpus_errs_at_the_rates_that_it_says()
  local function share(o)
    local wrong, all, fives, taken = 0, 0, 0, 0
    for _, row in ipairs(clock.corpus(peri.rng(1), 2000, o)) do
      local problem = { first = tonumber(row.prompt:sub(1, 1)), terms = {} }
      for term in row.prompt:gmatch "%+(%d)" do table.insert(problem.terms, tonumber(term)) end
      local _, labels = clock.judge(problem, row.completion)
      lu.assertEquals(#labels, o.steps or 4)
      for i, ok in ipairs(labels) do
        if problem.terms[i] == 5 then
          fives, taken = fives + 1, taken + (ok and 0 or 1)
        else
          all, wrong = all + 1, wrong + (ok and 0 or 1)
        end
      end
    end
    return wrong / all, taken / fives
  end
  local wrong, taken = share { careless = 0.2, habit = 0 }
  lu.assertAlmostEquals(wrong, 0.18, 0.02) -- one in ten that is drawn is right
  lu.assertAlmostEquals(taken, 0.18, 0.04)
  wrong, taken = share { careless = 0, habit = 0.7, steps = 6 }
  lu.assertEquals(wrong, 0)
  lu.assertAlmostEquals(taken, 0.7, 0.05)
  lu.assertErrorMsgContains("largest is 1", clock.problem, peri.rng(1), { largest = 1 })
  lu.assertErrorMsgContains("habit is 2", clock.corpus, peri.rng(1), 1, { habit = 2 })
end

os.exit(lu.LuaUnit.run())
