-- The library of rewards and the contract of batches: published vectors, other inputs of each kind, hostile texts.
local lu = require "luaunit"
local arithmetic = require "perilune.reward.arithmetic"
local number = require "perilune.tasks.numbers"
local options = require "perilune.options"
local peri = require "perilune"
local scripts = require "perilune.reward.scripts"
local R, rl = peri.reward, peri.rl

-- cases: { text, want }
local function check(reward, row, cases)
  for _, case in ipairs(cases) do
    local ids = {}
    for i = 1, #case[1] do ids[i] = i end
    lu.assertEquals(reward(row, case[1], ids), case[2], case[1])
  end
end

-- ---- the contract ----

TestRewardContract = {}

local rows, texts, tokens = { { prompt = "p1" }, { prompt = "p2" }, { prompt = "p3" } }, { "a", "b", "c" }, { { 1 }, { 2 }, { 3 } }

local function score(reward) return function () return rl.score(rows, texts, tokens, reward) end end

local function shown(values)
  local list = {}
  for i, v in ipairs(values) do list[i] = v == v and v or "none" end
  return list
end

function TestRewardContract.test_a_batch_is_called_once_with_everything()
  local calls = 0
  local function both(r, t, ids)
    calls = calls + 1
    lu.assertTrue(rawequal(r, rows) and rawequal(t, texts) and rawequal(ids, tokens))
    return { 1, nil, 3 }
  end
  local scored = rl.score(rows, texts, tokens, { { "both", both, 2, batch = true }, { "one", function () return 10 end } })
  lu.assertEquals(calls, 1)
  lu.assertEquals(scored.total, { 12, 10, 16 })
  lu.assertEquals(shown(scored.rewards.both), { 1, "none", 3 })
  local object = setmetatable({ batch = true }, { __call = function (_, r, t, ids) return both(r, t, ids) end })
  lu.assertEquals(shown(rl.score(rows, texts, tokens, object).total), { 1, "none", 3 })
  lu.assertEquals(rl.score(rows, texts, tokens, { { "o", object, -1 } }).total[3], -3)
  lu.assertEquals(rl.score(rows, texts, tokens, { { "t", function () return peri.tensor { 1, 2, 3 } end, batch = true } }).total,
    { 1, 2, 3 })
end

function TestRewardContract.test_a_batch_may_give_step_rewards()
  local object = setmetatable({ batch = true }, { __call = function () return { 1, 2, 3 }, { { 1 }, {}, { 0.5 } } end })
  lu.assertEquals(rl.score(rows, texts, tokens, object).steps, { { 1 }, {}, { 0.5 } })
end

-- What a batch function returns, and what is said of it.
local wrong = {
  { "2 values, expected one a completion: 3 (one that abstains at its end says n = 3)", function () return { 1, 2 } end },
  { "4 values, expected one a completion: 3", function () return { 1, 2, 3, 4 } end },
  { "0 values, expected one a completion: 3", function () return {} end },
  { "2 values, expected", function () return { 1, 2, 3, n = 2 } end },
  { "2 values, expected", function () return peri.ones { 2 } end },
  { "shape (3, 1), expected (3)", function () return peri.ones { 3, 1 } end },
  { "the key first, expected 1 to 3", function () return { 1, 2, 3, first = 1 } end },
  { "the key 0, expected 1 to 3", function () return { [0] = 1, 2, 3, 4 } end },
  { 'is nan, expected a number, or nil to abstain (completion 2: prompt "p2", "b")', function () return { 1, 0 / 0, 3 } end },
  { 'is inf, expected a number, or nil to abstain (completion 3: prompt "p3", "c")', function () return { 1, 2, math.huge } end },
  { "is a string, expected a number", function () return { 1, "2", 3 } end },
  { "is 3, expected a list of numbers", function () return 3 end },
  { "expected a list of numbers", function () end },
  { "expected a list of numbers", function () return print end },
}

function TestRewardContract.test_what_a_batch_returns_is_checked_and_named()
  for _, case in ipairs(wrong) do
    lu.assertErrorMsgContains("reward mine: ", score { { "mine", case[2], batch = true } })
    lu.assertErrorMsgContains(case[1], score { { "mine", case[2], batch = true } })
  end
  lu.assertEquals(shown(score { { "mine", function () return { n = 3 } end, batch = true } }().total), { "none", "none", "none" })
end

function TestRewardContract.test_an_error_names_the_function_the_row_and_the_line()
  local here = debug.getinfo(1, "S").short_src
  local thrown = {
    { "attempt to index a nil value", function (row) return row.x.y end }, { "boo", function () error "boo" end },
    { "boo", function () error("boo", 0) end }, { "boo", function () error { message = "boo" } end },
    { "an error that is a table", function () error {} end }, { "an error that is a nil", function () error() end },
    { "an error that is a table", function () error(setmetatable({}, { __tostring = function () error "x" end })) end },
    { "boo", function () error(setmetatable({}, { __tostring = function () return "boo" end })) end },
  }
  for _, case in ipairs(thrown) do
    local line = debug.getinfo(case[2], "S").linedefined
    lu.assertErrorMsgMatches((("reward mine: %s:%d: %s.* %%(completion 1: prompt \"p1\", \"a\"%%)"):format(
      here:gsub("%p", "%%%0"), line, case[1])), score { { "mine", case[2] } })
    lu.assertErrorMsgMatches((("reward: %s:%d: %s.* %%(completion 1: prompt \"p1\", \"a\"%%)"):format(
      here:gsub("%p", "%%%0"), line, case[1])), score(case[2]))
    lu.assertErrorMsgMatches((("reward mine: %s:%d: %s.* %%(a batch of 3 completions%%)"):format(
      here:gsub("%p", "%%%0"), line, case[1])), score { { "mine", case[2], batch = true } })
  end
end

function TestRewardContract.test_an_entry_with_an_unknown_field_is_refused()
  local function one() return 1 end
  lu.assertErrorMsgContains('reward mine: unknown field "bacth"; did you mean "batch"?', score { { "mine", one, bacth = true } })
  lu.assertErrorMsgContains("batch is 1, expected true or false", score { { "mine", one, batch = 1 } })
end

function TestRewardContract.test_abstentions_are_counted()
  local batch = { total = { 1, 1 }, rewards = { a = { 1, 0 / 0 }, b = { 0, 0 } }, names = { "a", "b" }, group = 2, ended = {},
    tokens = { { 1 }, { 1 } }, logprobs = peri.zeros { 2, 1 }, mask = peri.ones { 2, 1 } }
  local summary = rl.summary(batch)
  lu.assertEquals(summary["rewards/a/abstained"], 0.5)
  lu.assertNil(summary["rewards/b/abstained"])
end

-- ---- answers ----

TestReward = {}

function TestReward.test_the_answer_is_found_where_it_was_asked_for()
  for _, case in ipairs {
    { "a \\boxed{\\frac{1}{2}} b", "boxed", "\\frac{1}{2}" }, { "\\boxed{1} \\boxed{2", "boxed", "1" }, { "\\boxed {x}}", "boxed", "x" },
    { "\\boxed{a\\}b}", "boxed", "a\\}b" }, { "{\\boxed{4}", "boxed", "4" }, { "boxed{4}", "boxed" }, { "\\boxed{}", "boxed", "" },
    { "x\n####  72 \ny", "hash", "72" }, { "####\n#### 3", "hash", "3" }, { "### 3", "hash" },
    { "<answer> 5 </answer>", "tag", " 5 " }, { "<answer>1</answer><answer>2</answer>", "tag", "2" }, { "<answer>1", "tag" },
    { "<answer>a<answer>b</answer>", "tag", "a<answer>b" }, { "</answer><answer>", "tag" },
    { "#### 1 \\boxed{2} <answer>\\boxed{3}</answer>", "marked", "3" }, { "\\boxed{2} #### 1", "marked", "1" }, { "7", "marked" },
    { " so 7 ", "any", "so 7" }, { " so -7.50 it", "last", "-7.5" }, { "", "text", "" },
  } do lu.assertEquals(R.extract(case[1], case[2]), case[3], case[1]) end
  lu.assertErrorMsgContains('from is "box", expected one of "any"', R.extract, "", "box")
end

function TestReward.test_exact_compares_letters()
  check(R.exact(), { answer = "A cat" }, { { "A  cat\n", 1 }, { "a cat", 0 }, { "\\boxed{A cat}", 1 }, { "A cat.", 0 }, { "", 0 } })
  check(R.exact { case = false, from = "tag", right = 2, wrong = -1 }, { answer = "B" },
    { { "<answer>b</answer>", 2 }, { "b", -1 } })
  check(R.exact { part = "summary" }, { answer = "B" }, { { "<think>A</think> B", 1 }, { "B", 0 }, { "<think>B", 0 } })
  check(R.exact { from = function (text) return text:match "is (%a+)" end, field = "gold" }, { gold = "B" },
    { { "it is B now", 1 }, { "no", 0 } })
end

function TestReward.test_numeric_compares_numbers()
  check(R.numeric(), { answer = "1,234.50" }, { { "it is $1234.5.", 1 }, { "1.2345e3", 1 }, { "1234", 0 }, { "none", 0 },
    { "#### 1234.5 (of 7)", 1 }, { "\\boxed{1{,}234.5}", 1 }, { "<answer>7</answer> 1234.5", 0 } })
  check(R.numeric(), { answer = -3 }, { { "\u{2212}3", 1 }, { "-3", 1 }, { "3", 0 }, { "\u{FF0D}\u{FF13}", 1 }, { "-3.0", 1 } })
  check(R.numeric(), { answer = 21.0 }, { { "17 + 4 = 21", 1 }, { "21/1", 0 }, { "21%", 1 } })
  check(R.numeric { tolerance = 0.01 }, { answer = "100" }, { { "100.9", 1 }, { "102", 0 } })
  check(R.numeric { from = "text" }, { answer = "5" }, { { " 5 ", 1 }, { "5.", 1 }, { "it is 5", 0 }, { "5 6", 0 } })
  local big = ("9"):rep(40)
  check(R.numeric(), { answer = big }, { { big, 1 }, { big:sub(1, 39) .. "8", 0 }, { "1e40", 0 } })
  check(R.numeric(), { answer = "1" }, { { "1e999", 0 }, { "1e5", 0 }, { "1e0", 1 }, { "10e-1", 1 }, { "100e-1", 0 } })
  check(R.numeric(), { answer = "so 48+24 = 72.\n#### 72" }, { { "72", 1 }, { "48", 0 } }) -- a row of GSM8K as it is
  check(R.numeric(), { answer = "forty" }, { { "40" } }) -- abstains
end

function TestReward.test_expressions_of_one_value_are_one()
  for gold, list in pairs {
    ["1/2"] = { "0.5", "\\frac{1}{2}", "\\dfrac12", "2^{-1}", "50\\%", "x = 1/2", "$\\frac{1}{2}$", "\\boxed{0.50}", "3/6", "1/2.",
      "\\left(\\frac{1}{2}\\right)", "1 - 0.5 = 0.5", "1 \u{00F7} 2", "\u{2212}1/\u{2212}2", "\\frac{1}{2}\\text{ m}" },
    ["14"] = { "2*(3+4)", "2(3+4)", "2 \\times 7", "2\\cdot7", "\\boxed{14}", "14.0", "1.4e1", "2\u{00D7}7", "--14", "+14", "y=14" },
    ["\\sqrt{2}"] = { "2^0.5", "2^{1/2}", "\\sqrt[4]{4}", "\\frac{2}{\\sqrt{2}}" },
    ["7/2"] = { "3\\frac{1}{2}", "3.5" }, ["50\\%"] = { "0.5", "50", "50%", "1/2" },
    ["2\\pi"] = { "2 \\pi", "2*\\pi", "\u{03C0} + \u{03C0}" }, ["-9"] = { "-3^2", "-(3^2)" }, ["512"] = { "2^3^2" },
  } do
    for _, text in ipairs(list) do lu.assertEquals(R.expression()({ answer = gold }, text), 1, gold .. " <- " .. text) end
  end
  for gold, list in pairs {
    ["72"] = { "71=72", "5 = 72", "7 2", "72 apples", "", "()", "2^", "1/0", "(0)^(-1)", "72)", "(72", "0/0", "os.exit()", "\\frac{72}",
      "72, 73", "2003^{2002^{2001}}", "--", "1e999", "math.huge", "72;return 1", "\\boxed{71}", "72 = 71" },
  } do
    for _, text in ipairs(list) do lu.assertEquals(R.expression()({ answer = gold }, text), 0, gold .. " <- " .. text) end
  end
  -- what other verifiers have taken for one: tiny and huge values, equations of which one side agrees, lists, units that are
  -- numbers, big whole numbers
  for gold, list in pairs {
    ["\\frac{1}{2^{99}}"] = { "\\frac{1}{2^{98}}", "0" }, ["10^9"] = { "10^9+1", "1000000001" }, ["2"] = { "2\\mathrm{e}", "2e", "2i" },
    ["73"] = { "73**", "n = 73, 74", "x=73 or x=3", "3x + 4y = 73" }, ["0"] = { "3x + 4y + 14 = 0", "10^{-9}" }, ["28%"] = { "0.0028" },
    ["1200"] = { "1, 200", "12:00" }, ["5"] = { "\\pm 5", "\\{5\\}", "[4, 5]", "5 6" },
  } do
    for _, text in ipairs(list) do lu.assertEquals(R.expression()({ answer = gold }, text), 0, gold .. " <- " .. text) end
  end
  for gold, list in pairs { ["28%"] = { "0.28", "28", "28\\%", "7/25" }, ["1000000"] = { "1\\,000\\,000", "10^6", "1{,}000{,}000" },
    ["90"] = { "90^\\circ", "90^{\\circ}", "90\\text{ degrees}", "\\mathbf{90}" }, ["\\frac{1}{2^{99}}"] = { "2^{-99}" }, ["0"] = { "\\sqrt{2}^2-2" },
  } do
    for _, text in ipairs(list) do lu.assertEquals(R.expression()({ answer = gold }, text), 1, gold .. " <- " .. text) end
  end
  for _, gold in ipairs { "\\frac{1}{2^{2005}}", "n=2, 3, 4", "D = (0, 1)", "\\pm 2021", "12:00", "1+\\mathrm{e}", "2004!", "x" } do
    lu.assertNil(R.expression()({ answer = gold }, "1"), gold) -- no arithmetic of its own: abstains
    lu.assertEquals(R.boxed()({ answer = gold }, "\\boxed{1}"), 0, gold)
    lu.assertEquals(R.boxed()({ answer = gold }, "\\boxed{" .. gold .. "}"), 1, gold)
  end
  lu.assertNil(R.expression()({ answer = "forty two" }, "42"))
  lu.assertEquals(R.expression { tolerance = 1e-3 }({ answer = "1/3" }, "0.3333"), 1)
end

function TestReward.test_boxed_and_hashed_answers_have_to_be_in_their_place()
  check(R.boxed(), { answer = "\\frac{63}{400}" }, { { "\\boxed{\\frac{63}{400}}", 1 }, { "\\boxed{63/400}", 1 }, { "\\frac{63}{400}", 0 },
    { "\\boxed{\\frac{64}{400}}", 0 }, { "\\boxed{1} then \\boxed{0.1575}", 1 } })
  check(R.boxed(), { answer = "(A)" }, { { "\\boxed{(A)}", 1 }, { "\\boxed{A}", 0 } })
  check(R.boxed { part = "summary" }, { answer = "42" }, { { "<think>\\boxed{42}</think> no", 0 }, { "</think>\\boxed{42}", 1 } })
  check(R.hash(), { answer = "so\n#### 1,000" }, { { "#### 1000", 1 }, { "1000", 0 }, { "####1000.", 1 }, { "#### $1,000", 1 }, { "#### 1,00", 0 } })
end

-- ---- form ----

function TestReward.test_the_format_is_that_of_TRL()
  check(R.format(), {}, {
    { "<think>This is my reasoning.</think>This is my answer.", 1 }, { "<think>\nThis is my reasoning.\n</think>\nThis is my answer.", 1 },
    { "<think>\nThis is\nmy reasoning.\n</think>\nThis is my answer.", 1 },
    { "<think>\nThis is <some tag> my reasoning.</think>\nThis is my answer.", 1 }, { "<think></think>\nThis is my answer.", 1 },
    { "<think>\nThis is my reasoning.\nThis is my answer.", 0 }, { "This is my reasoning. This is my answer.", 0 },
    { "This is my reasoning.</think>\nThis is my answer.", 0 }, { "This<think>is my reasoning.</think>\nThis is my answer.", 0 },
    { "<think>This is<think>my reasoning.</think></think>This is my answer.", 0 },
    { "<think>This is</think>\nmy\n<think>reasoning.</think>\nThis is my answer.", 0 }, { "", 0 }, { "<think>", 0 },
    { "<think>a</think>b</think>", 1 }, { "\n<think>a</think>b", 0 }, { "<think>a</think>", 1 }, -- as its expression says
  })
end

function TestReward.test_the_template_of_R1_asks_for_an_answer()
  check(R.format { answer = true }, {}, {
    { "<think> a </think> <answer> b </answer>", 1 }, { "<think>a</think>\n<answer>b</answer>\n", 1 }, { "<think>a</think>b", 0 },
    { "<think>a</think><answer>b", 0 }, { "<think>a</think><answer></answer>", 0 }, { "<think>a</think><answer> </answer>", 0 },
    { "<think>a</think> so <answer>b</answer>", 0 }, { "<think>a</think><answer>b</answer>.", 0 },
    { "<think>a</think><answer>b</answer><answer>c</answer>", 0 }, { "<answer>b</answer><think>a</think>", 0 },
    { "<think>a</think></think><answer>b</answer>", 0 }, { "<think><answer>b</answer></think>", 0 },
  })
  check(R.format { least = 5, right = 0.5, wrong = -1 }, {}, { { "<think> 1234 </think>", -1 }, { "<think> \u{4E00}2345 </think>", 0.5 } })
  check(R.format { opened = true }, {}, { { "a</think>b", 1 }, { "<think>a</think>b", 0 }, { "a", 0 } })
end

function TestReward.test_countdown_has_the_constants_of_TinyZero()
  check(R.countdown(), { target = 24, numbers = { 2, 3, 4 } }, {
    { "<answer>2*3*4</answer>", 1 }, { "<think>hm</think><answer> (2 * 3) * 4 </answer>", 1 }, { "<answer>4/2*3</answer>", 0.1 },
    { "2*3*4", 0 }, { "", 0 }, { "<answer></answer>", 0.1 }, { "<answer>2*3*4*1</answer>", 0.1 }, { "<answer>24</answer>", 0.1 },
    { "<answer>2*3*4=24</answer>", 0.1 }, { "<answer>2**3*4</answer>", 0.1 }, { "<answer>2*3*4//1</answer>", 0.1 },
    { "<answer>2*12</answer>", 0.1 }, { "<answer>os.exit(2,3,4)</answer>", 0.1 }, { "<answer>2/0*3*4</answer>", 0.1 },
    { "<answer>-(-2)*3*4</answer>", 1 }, { "<answer>1</answer> <answer>4*3*2</answer>", 1 }, { "<answer>2.0*3*4</answer>", 0.1 },
  })
  check(R.countdown(), { target = 24, numbers = { 3, 3, 8, 8 } }, { { "<answer>8/(3-8/3)</answer>", 1 },
    { "<answer>8/(3-8/3)+3-3</answer>", 0.1 }, { "<answer>(3+3)*8/8</answer>", 0.1 } })
  check(R.countdown { form = 0.2, none = -1, from = "last" }, { target = 5, numbers = { 5 } }, { { "5", 1 }, { "so 6", 0.2 }, { "x", -1 } })
  check(R.countdown(), { target = 1, numbers = { 3, 3 } }, { { "<answer>3/3</answer>", 1 }, { "<answer>3-2</answer>", 0.1 } })
  lu.assertErrorMsgContains("the row's target is missing, expected a number", R.countdown(), { numbers = {} }, "")
end

-- ---- length and repetition ----

local function of_length(n)
  local ids = {}
  for i = 1, n do ids[i] = i end
  return ids
end

function TestReward.test_overlong_and_repetition_are_those_of_TRL()
  local overlong = R.overlong { max_length = 100, cache = 20 }
  for n, want in pairs { [0] = 0, [50] = 0, [80] = 0, [81] = -0.05, [90] = -0.5, [100] = -1, [110] = -1 } do
    lu.assertAlmostEquals(overlong({}, "", of_length(n)), want, 1e-12)
  end
  local hard = R.overlong { max_length = 100, cache = 0 }
  lu.assertEquals({ hard({}, "", of_length(100)), hard({}, "", of_length(101)) }, { 0, -1 })
  local pairs_of = R.repetition { n = 2 }
  for _, case in ipairs { { { 1, 2, 3, 4 }, 0 }, { { 5, 5, 5, 5, 5 }, -0.75 }, { { 1, 2, 1, 2, 1, 2 }, -0.6 }, { { 1 }, 0 }, { {}, 0 },
    { { 1, 11, 11, 1, 111 }, 0 } } do
    lu.assertAlmostEquals(pairs_of({}, "", case[1]), case[2], 1e-12)
  end
  lu.assertAlmostEquals(R.repetition { n = 1, penalty = -2, unit = "words" }({}, "a b A b", {}), -1, 1e-12)
end

function TestReward.test_the_cosine_is_that_of_TRL()
  local cosine = R.cosine { correct = R.boxed(), max_length = 100 }
  local row = { answer = "1/3" }
  for n, want in pairs { [0] = { 1, -1 }, [25] = { 0.92678, -0.92678 }, [50] = { 0.75, -0.75 }, [75] = { 0.57322, -0.57322 },
    [100] = { 0.5, -0.5 }, [200] = { 0.5, -0.5 } } do
    lu.assertAlmostEquals(cosine(row, "\\boxed{\\frac{1}{3}}", of_length(n)), want[1], 1e-5)
    lu.assertAlmostEquals(cosine(row, "\\boxed{\\frac{1}{2}}", of_length(n)), want[2], 1e-5)
  end
  lu.assertNil(R.cosine { correct = R.expression(), max_length = 10 }({ answer = "forty two" }, "42", {}))
  lu.assertErrorMsgContains("correct gave a string", R.cosine { correct = function () return "x" end, max_length = 1 }, {}, "", {})
end

function TestReward.test_length_is_right_in_a_range()
  local reward = R.length { min = 2, max = 4, margin = 3, unit = "words" }
  check(reward, {}, { { "a b", 1 }, { "a b c d", 1 }, { "a", 0.75 }, { "a b c d e", 0.75 }, { "a b c d e f g", 0.25 },
    { "a b c d e f g h", 0 } })
  check(R.length { min = 3, unit = "characters", part = "thought" }, {}, { { "<think>日本語</think>", 1 }, { "<think>日本</think>xxx", 0 } })
  lu.assertErrorMsgContains("min is 5, above max, 2", R.length, { min = 5, max = 2 })
  lu.assertErrorMsgContains("tokens of the summary are not known", R.length, { part = "summary" })
end

-- ---- language ----

function TestReward.test_the_share_of_words_of_the_language()
  local mixed = "we compute 结果 now"
  for _, case in ipairs {
    { mixed, "en", 3 / 4 }, { mixed, "zh", 1 / 4 }, { mixed, "Latin", 3 / 4 }, { mixed, "ru", 0 },
    { mixed, "en", 3 / 5, "character" }, { mixed, "zh", 2 / 5, "character" },
    { "我们 compute 结果", "zh", 2 / 3 }, { "我们计算 now 结果。", "zh", 2 / 3 }, { "don't you’ll well-known", "en", 1 },
    { "3 + 4 = 7, so 结果 7!", "en", 1 / 2 }, { "<think>we 算 it</think> 结果", "en", 2 / 3 }, { "算</think> we", "en", 0 },
    { "run `结果` and ```结果 结果``` now", "en", 1 }, { "结果 \\frac{1}{2} \\(x + y\\) 结果", "zh", 1 },
    { "Привет, мир hello", "ru", 2 / 3 }, { "日本語テキストです text", "ja", 2 / 3 }, { "한국어 문장 text", "ko", 2 / 3 }, { "مرحبا بالعالم hi", "ar", 2 / 3 },
    { "नमस्ते दुनिया hi", "hi", 2 / 3 }, { "ελληνικά hi", "el", 1 / 2 }, { "שלום hi", "he", 1 / 2 }, { "สวัสดี hi", "th", 1 / 2 },
    { "naïve café Ünïcödé", "fr", 1 }, { "e\u{301}te\u{301}", "fr", 1 }, { "x2y", "en", 1 }, { "ⴰⴱⴳ hi", "en", 1 / 2 },
    { "\xff\xfewe\xc3 结果\xe4", "en", 1 / 2 }, { "we 😀 compute → ∑ “it”", "en", 1 }, { "<|im_end|> we", "en", 1 },
  } do
    lu.assertAlmostEquals(R.language { target = case[2], han = case[4] }({}, case[1]), case[3], 1e-12, case[1] .. " in " .. case[2])
  end
  for _, text in ipairs { "", "12 + 3 = 15.", "<think></think> we", "😀", "\xff\xff" } do lu.assertNil(R.language()({}, text), text) end
  lu.assertEquals(R.language { empty = 1 }({}, "12"), 1)
  lu.assertEquals(R.language { part = "summary" }({}, "<think>结果</think> we"), 1)
  lu.assertEquals(R.language { field = "language" }({ language = "zh" }, "结果"), 1)
  lu.assertErrorMsgContains("the row's language is missing", R.language { field = "language" }, {}, "x")
  lu.assertErrorMsgContains('unknown language or script "Latn"; did you mean "Latin"?', R.language, { target = "Latn" })
end

function TestReward.test_every_character_has_one_script_at_most()
  local seen = {}
  for code = 0, 0x2FFFF, 1 do
    if code < 0xD800 or code > 0xDFFF then
      local script = scripts.of(code)
      lu.assertTrue(script == false or script == "Other" or scripts.is(script))
      if script then seen[script] = true end
    end
  end
  for _, name in ipairs(scripts.names) do lu.assertTrue(seen[name], name) end
  for _, pair in ipairs { { "a", "Latin" }, { "ß", "Latin" }, { "я", "Cyrillic" }, { "結", "Han" }, { "ひ", "Kana" }, { "カ", "Kana" },
    { "한", "Hangul" }, { "ع", "Arabic" }, { "ह", "Devanagari" }, { "Ω", "Greek" } } do
    lu.assertEquals(scripts.of(utf8.codepoint(pair[1])), pair[2])
  end
end

-- ---- hostile texts ----

local function makers()
  return {
    exact = R.exact(), numeric = R.numeric(), expression = R.expression(), boxed = R.boxed(), hash = R.hash(), format = R.format(),
    template = R.format { answer = true, least = 3 }, countdown = R.countdown(), countdown_text = R.countdown { from = "text" },
    length = R.length { max = 9, unit = "words" }, cosine = R.cosine { correct = R.numeric(), max_length = 10, unit = "characters" },
    overlong = R.overlong { max_length = 10, cache = 5 }, repetition = R.repetition { unit = "words" }, language = R.language(),
    summary = R.exact { part = "summary" }, thought = R.boxed { part = "thought" },
  }
end

local big = 400000
local hostile = {
  "", "\0", ("\0"):rep(100), "\xff\xfe\xc3\x28\xed\xa0\x80\xf4\x90\x80\x80", ("("):rep(big), ("-"):rep(big), ("{"):rep(big),
  ("\\boxed{"):rep(big // 7), ("\\boxed{"):rep(big // 7) .. ("}"):rep(big // 7), "\\boxed" .. (" "):rep(big), ("#### "):rep(big // 5),
  ("####"):rep(big // 4), ("<think>"):rep(big // 7), ("</think>"):rep(big // 8), ("<answer>"):rep(big // 8),
  ("<answer></answer>"):rep(big // 17), ("</answer>"):rep(big // 9), ("1"):rep(big), ("1,"):rep(big // 2), ("1,000"):rep(big // 5),
  ("0"):rep(big) .. "1", "0." .. ("0"):rep(big) .. "1", "1e999", "1e-999", "1e" .. ("9"):rep(1000), "-" .. ("9"):rep(big), (" "):rep(big),
  ("\n"):rep(big), (" "):rep(big) .. "x", "x" .. (" "):rep(big) .. "x", ("`"):rep(big), ("``` "):rep(big // 4), ("$$"):rep(big // 2),
  ("\\("):rep(big // 2), ("<a"):rep(big // 2), "<" .. ("a"):rep(big), ("https://"):rep(big // 8), ("结"):rep(big // 3), ("a结"):rep(big // 4),
  ("\xe4"):rep(big), ("\u{301}"):rep(big // 2), "\\boxed{" .. ("("):rep(2000) .. "}", "<answer>" .. ("("):rep(big) .. "</answer>",
  "<answer>" .. ("-"):rep(big) .. "1</answer>", "\\boxed{" .. ("\\text{"):rep(600) .. "}", "2^" .. ("9^"):rep(50) .. "9",
  "\\boxed{" .. ("\\{\\text{"):rep(500) .. ("}"):rep(500) .. "}", ("="):rep(4000), ("1="):rep(2000) .. "1", ("\\frac"):rep(800),
  ("\\sqrt{"):rep(600), "'; os.execute('x') --", "%s%n%d", "]]" .. ("%b()"):rep(100), "\u{2212}", "nan", "inf", "0x1p9999", "-nan(ind)",
}

-- A reward is for any text a finite number or nothing, and takes no longer for a hostile one.
function TestReward.test_no_text_makes_a_reward_raise_or_wait()
  local row = { answer = "7", target = 7, numbers = { 3, 4 } }
  for name, reward in pairs(makers()) do
    for i, text in ipairs(hostile) do
      local began = os.clock()
      local ok, value = pcall(reward, row, text, { 1, 2 })
      lu.assertTrue(ok, ("%s, text %d: %s"):format(name, i, tostring(value):sub(1, 200)))
      lu.assertTrue(value == nil or type(value) == "number" and value == value and math.abs(value) < math.huge, name)
      local took = os.clock() - began
      lu.assertTrue(took < 1, ("%s took %.2f s for text %d"):format(name, took, i))
    end
  end
end

function TestReward.test_the_parser_of_arithmetic_gives_what_Lua_gives()
  local rng = peri.rng(7)
  local function expression(depth)
    if depth == 0 or rng:uniform() < 0.2 then return tostring(rng:int(0, 99)) end
    local kind, a, b = rng:int(1, 6), expression(depth - 1), expression(depth - 1)
    if kind == 5 then return "(" .. a .. ")" elseif kind == 6 then return "- " .. a end
    return a .. (" "):rep(rng:int(0, 1)) .. ("+-*/"):sub(kind, kind) .. " " .. b
  end
  local n = 0
  for _ = 1, 2000 do
    local text = expression(5)
    local want = load("return 1.0*(" .. text .. ")")()
    local value = arithmetic.evaluate(text)
    if want == want and math.abs(want) < math.huge and value then
      n = n + 1
      lu.assertTrue(arithmetic.near(value, want), text)
      lu.assertTrue(arithmetic.near(assert(arithmetic.value(text)), want), text)
    end
  end
  lu.assertTrue(n > 1500, n)
end

function TestReward.test_numbers_keep_all_their_digits()
  for text, want in pairs { ["1e3"] = "1000", ["1.50e1"] = "15", ["12e-1"] = "1.2", ["5e-3"] = "0.005", ["0e9"] = "0", ["-0.0"] = "0",
    ["1,000,000"] = "1000000", ["12345678901234567890.10"] = "12345678901234567890.1", ["007"] = "7", [".5"] = "0.5", ["5%"] = "5" } do
    lu.assertEquals(number.whole(text), want, text)
  end
  for _, text in ipairs { "1e999", "x", "", "1 2", "1e", "0x10", "1.2.3", "--1" } do lu.assertNil(number.whole(text), text) end
end

-- ---- options ----

function TestReward.test_every_maker_has_declared_options_and_refuses_others()
  local n = 0
  for name, maker in pairs(R) do
    local declared = options.declared(maker)
    if name ~= "extract" then
      n = n + 1
      lu.assertNotNil(declared, name)
      lu.assertErrorMsgContains(("reward.%s: unknown option"):format(name), maker, { qqqq = 1 })
      for _, option in ipairs(declared.options) do lu.assertTrue(#option.doc > 0, name .. "." .. option.name) end
    end
  end
  lu.assertTrue(n >= 11)
end

function TestReward.test_a_row_without_its_answer_is_an_error_that_names_it()
  for _, maker in ipairs { R.exact, R.numeric, R.expression, R.boxed, R.hash } do
    lu.assertErrorMsgContains("the row's answer is missing, expected the right answer", maker(), {}, "x")
    lu.assertErrorMsgContains("the row's gold is missing", maker { field = "gold" }, { answer = 1 }, "x")
  end
end
