-- What perilune eval counts: answers found in texts, pass@k, majorities, and the command as a whole.
local lu = require "luaunit"
local peri = require "perilune"
local gsm8k = require "perilune.tasks.gsm8k"
local lms = require "perilune.lm"
local metrics = require "perilune.tasks.metrics"
local models = require "perilune.models"
local shared = require "shared"
local text = require "perilune.text"

TestTask = {}

local strict = {
  { "so\n#### 72", "72" }, { "#### $1,234.50", "1234.5" }, { "#### -5", "-5" }, { "#### 72 clips", "72" }, { "####10", "10" },
  { "#### 1\nno:\n#### 2", "1" }, { "#### 0.50", "0.5" }, { "#### .5", "0.5" }, { "#### 007.", "7" },
  { '#### 15\n\nThe answer is "#### "', "15" }, { "#### 18\n#### \n#### ", "18" }, { 'End with "#### " and it.\n#### 4', "4" },
  { "####\n#### 3\n#### 5", "3" }, { "#### x #### 6", "6" }, { "##### 8", "8" }, { "#### 5,000.", "5000" },
  { "#### $5,000.", "5000" }, { "#### 1/2" }, { "#### 1 / 2\n#### 7", "7" }, { "#### 50%", "50" }, { "#### 12 .", "12" },
  { "#### 1/2 \\boxed{3}", "3" }, { "\\boxed{42}", "42" }, { "\\boxed{\\$1{,}000}", "1000" }, { "\\boxed{1} or \\boxed{18\\text{ apples}}", "18" },
  { "\\boxed{-3.0}", "-3" },
  { "the answer is 5" }, { "#### The answer is 7" }, { "\\boxed{" }, { "" }, { "####" },
}

local lenient = {
  { "He has 5 - 3 = 2 apples.", "2" }, { "so -3", "-3" }, { "It is 5-3", "3" }, { "$-5.", "-5" }, { "-$5.", "-5" },
  { "1,234,567.", "1234567" }, { "3,4", "4" }, { "1,2345", "2345" }, { "half is .25", "0.25" }, { "x 12.", "12" },
  { "#### 9 and 10", "9" }, { "20% of 5.0", "5" }, { "-0", "0" }, { "(-4)", "-4" }, { "no number" }, { "" },
}

function TestTask.test_answers_are_found_in_the_form_asked_for()
  for _, case in ipairs(strict) do lu.assertEquals(gsm8k.strict(case[1]), case[2], case[1]) end
end

function TestTask.test_or_else_the_last_number_counts()
  for _, case in ipairs(lenient) do lu.assertEquals(gsm8k.lenient(case[1]), case[2], case[1]) end
end

function TestTask.test_every_published_solution_has_its_answer()
  local rows = assert(gsm8k.rows(shared.need "data/gsm8k/train.jsonl"))
  lu.assertEquals(#rows, 7473)
  for _, row in ipairs(rows) do
    local solution = gsm8k.solution(row)
    lu.assertEquals(gsm8k.strict(solution), row.gold)
    lu.assertEquals(gsm8k.lenient((solution:gsub("####", ""))), row.gold)
    lu.assertNotStrContains(solution, "<<")
  end
end

-- A number behind worked steps: different words count, so that neither a bare number nor filler is worth much.
function TestTask.test_a_worked_answer_has_words_in_front_of_its_number()
  local steps = "Natalia sold 48 / 2 = 24 clips in May.\nSo she sold 48 + 24 = 72 of them altogether."
  local long = steps .. " That is what April and May had when both months are counted once, no more and no less."
  for answer, share in pairs {
    ["#### 72"] = 0, ["\n#### 72\n" .. long] = 0, [long] = 0, [long .. "\n####"] = 0, [long .. "\n#### x"] = 0,
    [long .. "\n#### 72"] = 1, ["one two three four five\n#### 72"] = 0.2, ["clips clips clips clips\n#### 72"] = 0.04,
    [("a b c d e "):rep(100) .. "#### 1"] = 0.2, ["a b c d e #### 1 f g h i j"] = 0.2, ["a b #### x c d e #### 5"] = 0.28,
    [long .. " \\boxed{72}"] = 0, [""] = 0,
  } do
    lu.assertAlmostEquals(gsm8k.worked(answer), share, 1e-9, answer)
  end
  lu.assertAlmostEquals(gsm8k.worked("one two\n#### 3", 4), 0.5, 1e-9)
end

function TestTask.test_rows_say_how_many_calculations_their_answers_have()
  local rows = assert(gsm8k.rows(shared.need "data/gsm8k/train.jsonl", 3))
  lu.assertEquals({ rows[1].steps, rows[2].steps, rows[3].steps }, { 2, 2, 3 })
end

local function with_file(content, fn)
  local path = os.tmpname()
  assert(peri.files.write(path, content))
  local results = table.pack(pcall(fn, path))
  os.remove(path)
  assert(table.unpack(results, 1, results.n))
end

function TestTask.test_rows_that_are_none_are_named()
  for content, want in pairs { ["{}\n"] = "line 1", ['{"question":"a","answer":"#### 1"}\n\n[1'] = "line 3",
    ['{"question":"a","answer":"no"}'] = "#### number", ["\n"] = "no rows" } do
    with_file(content, function (path)
      local rows, message = gsm8k.rows(path)
      lu.assertNil(rows)
      lu.assertStrContains(message, want)
    end)
  end
  lu.assertStrContains(select(2, gsm8k.rows "/no/such/file"), "/no/such/file")
end

function TestTask.test_prompts_show_solved_examples()
  local shot = { question = "1+1?", answer = "<<1+1=2>>2\n#### 2" }
  lu.assertEquals(gsm8k.prompt({ question = "2+2?" }, false, { shot }),
    "Question: 1+1?\nAnswer: 2\n#### 2\n\nQuestion: 2+2?\nAnswer:")
  local messages = gsm8k.prompt({ question = "2+2?" }, true, { shot })
  lu.assertEquals(#messages, 3)
  lu.assertEquals(messages[2], { role = "assistant", content = "2\n#### 2" })
end

TestMetrics = {}

-- The share of all subsets of k of n answers that hold one of the c right ones, by counting them.
local function counted(n, c, k)
  local hit, all = 0, 0
  for subset = 0, (1 << n) - 1 do
    local size, right = 0, false
    for i = 0, n - 1 do
      if subset >> i & 1 == 1 then size, right = size + 1, right or i < c end
    end
    if size == k then all, hit = all + 1, hit + (right and 1 or 0) end
  end
  return hit / all
end

function TestMetrics.test_pass_at_k_is_the_share_of_subsets()
  for n = 1, 8 do
    for c = 0, n do
      for k = 1, n do lu.assertAlmostEquals(metrics.pass_at_k(n, c, k), counted(n, c, k), 1e-12) end
    end
  end
  lu.assertErrorMsgContains("k 3", metrics.pass_at_k, 2, 1, 3)
end

function TestMetrics.test_the_majority_and_the_first_of_equals()
  lu.assertEquals({ metrics.majority({ "2", nil, "1", "1" }, 4) }, { "1", 2 })
  lu.assertEquals(metrics.majority({ "2", "1" }, 2), "2")
  lu.assertNil((metrics.majority({}, 3)))
end

function TestMetrics.test_mean_and_standard_error()
  local mean, err = metrics.mean { 1, 0, 0, 1 }
  lu.assertEquals(mean, 0.5)
  lu.assertAlmostEquals(err, (1 / 3 / 4) ^ 0.5, 1e-12)
end

TestCommand = {}

-- Output and status of the command with a model of digits for an answer.
local function evaluate(...)
  package.preload["perilune.line"] = package.preload["perilune.line"] or function () return {} end
  local line = require "perilune.line"
  local command = require "perilune.command.eval"
  local load_model, interactive, err = peri.lm.load, line.interactive, io.stderr
  local lines, real_print = {}, print
  local messages = { write = function (_, ...) lines[#lines + 1] = table.concat { ... } end }
  function peri.lm.load(_, o) -- luacheck: ignore 122
    local tokenizer = assert(peri.json.decode(assert(peri.files.read "tests/data/tiny_llama_digits/tokenizer_config.json")))
    return lms.new(assert(models.load "tests/data/tiny_llama_digits"), text.from_codes(tokenizer.char_ords),
      { rows = o.rows, prefix_cache_bytes = 0 })
  end
  function line.interactive() return false, false, false end
  io.stderr = messages -- luacheck: ignore 122
  print = function (s) lines[#lines + 1] = s .. "\n" end -- luacheck: ignore 121
  local ok, status = pcall(command, { ... })
  peri.lm.load, line.interactive, io.stderr, print = load_model, interactive, err, real_print -- luacheck: ignore 121 122
  assert(ok, status)
  return table.concat(lines), status
end

local data = {}
for i = 1, 30 do data[i] = ('{"question": "%d,%d:9,4", "answer": "#### %d"}'):format(i, i + 2, i % 10) end
data = table.concat(data, "\n") .. "\n"

function TestCommand.test_the_table_says_what_the_rows_say()
  with_file(data, function (path)
    local out = os.tmpname()
    local function run()
      return evaluate("model", "--data", path, "--n", "24", "--samples", "4", "--k", "1,3", "--out", out, "--max-tokens", "2",
        "--temperature", "1", "--seed", "3", "--batch", "7")
    end
    local printed, status = run()
    lu.assertEquals(status, 0)
    local rows, right, answered = {}, 0, 0
    for row in io.lines(out) do rows[#rows + 1] = peri.json.decode(row) end
    lu.assertEquals(#rows, 24)
    table.sort(rows, function (a, b) return a.index < b.index end)
    for _, row in ipairs(rows) do
      lu.assertEquals(#row.samples, 4)
      for _, s in ipairs(row.samples) do
        lu.assertEquals(s.lenient, gsm8k.lenient(s.text))
        lu.assertNil(s.strict)
        if s.lenient then answered = answered + 1 end
        if s.lenient == row.gold then right = right + 1 end
      end
    end
    lu.assertStrContains(printed, "24 problems, 4 samples each")
    lu.assertTrue(right > 0)
    lu.assertStrMatches(printed, (".*pass@1 +[%%d.]+ %%%% [^\n]- +%.1f %%%%.*"):format(100 * right / 96))
    lu.assertStrMatches(printed, (".*answered +[%%d.]+ %%%% [^\n]- +%.1f %%%%.*"):format(100 * answered / 96))
    lu.assertStrContains(printed, "pass@3")
    lu.assertStrContains(printed, "majority@4")
    local again = run()
    for row in io.lines(out) do
      row = peri.json.decode(row)
      for k, s in ipairs(row.samples) do lu.assertEquals(s.text, rows[row.index].samples[k].text) end
    end
    lu.assertEquals(again:gsub("in %d+ s %(%d+ tokens/s%)", ""):match "24 problems.*", printed:gsub("in %d+ s %(%d+ tokens/s%)", "")
      :match "24 problems.*")
    os.remove(out)
  end)
end

function TestCommand.test_what_is_wrong_is_said_in_a_line()
  for want, args in pairs {
    ["--data FILE"] = { "m" }, ["did you mean \"gsm8k\""] = { "m", "--task", "gsm8" }, ["MODEL"] = {},
    ["/no/file"] = { "m", "--data", "/no/file" }, ["5 is more than"] = { "m", "--k", "1,5", "--samples", "4" },
    ["no list of numbers"] = { "m", "--k", "x" }, ["did you mean \"samples\""] = { "m", "--sample", "3" },
  } do
    local printed, status = evaluate(table.unpack(args))
    lu.assertStrContains(printed, want)
    lu.assertTrue(status == 1 or status == 2)
  end
  local printed, status = evaluate "--help"
  lu.assertEquals(status, 0)
  lu.assertStrContains(printed, "--samples")
end

os.exit(lu.LuaUnit.run())
