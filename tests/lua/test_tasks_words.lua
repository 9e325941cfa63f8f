-- test_tasks_words.lua - word lists, and the three domains that small specialists are of.
local lu = require "luaunit"
local peri = require "perilune"
local chain, domains, words = peri.tasks.chain, peri.tasks.domains, peri.tasks.words

TestTasksWords = {}

function TestTasksWords.test_a_problem_asks_for_its_answer()
  local rng, asked, lengths = peri.rng(1), { reverse = 0, sort = 0 }, {}
  for _ = 1, 2000 do
    local row = words.problem(rng)
    local what, list = row.prompt:match "^(%a+) (.-) = $"
    local said, seen = {}, {}
    for word in list:gmatch "%a+" do
      lu.assertNil(seen[word])
      seen[word] = true
      table.insert(said, what == "reverse" and 1 or #said + 1, word)
    end
    if what == "sort" then table.sort(said) end
    asked[what], lengths[#said] = asked[what] + 1, true
    lu.assertEquals(row.answer, table.concat(said, " "))
    lu.assertEquals({ words.accuracy(row, row.answer), words.plain(row, row.answer) }, { 1, 1 })
  end
  lu.assertEquals(lengths, { [3] = true, [4] = true, [5] = true, [6] = true })
  lu.assertTrue(asked.sort > 900 and asked.reverse > 900)
  for _ = 1, 200 do lu.assertEquals(#words.problem(rng, { least = 2, most = 2 }).words, 2) end
  lu.assertErrorMsgContains("least is 7, expected at most most, which is 6", words.problem, rng, { least = 7 })
  lu.assertErrorMsgContains("most is 21", words.corpus, rng, { most = 21 })
end

function TestTasksWords.test_answers_are_scored_by_what_they_say()
  local row = { kind = "list", answer = "cat elk wolf" }
  for text, want in pairs {
    ["cat elk wolf"] = { 1, 1 }, ["<think> cat elk wolf </think>"] = { 1, 0 }, ["cat elk"] = { 0, 1 },
    ["cat elk wolf wolf"] = { 0, 1 }, ["elk cat wolf"] = { 0, 1 }, [""] = { 0, 1 }, ["<think> cat elk wolf"] = { 1, 0 },
    [" cat  elk wolf "] = { 1, 1 },
  } do lu.assertEquals({ words.accuracy(row, text), words.plain(row, text) }, want, text) end
  lu.assertNil(words.accuracy({ kind = "sum" }, "cat"))
  lu.assertNil(words.plain({ kind = "sum" }, "cat"))
end

function TestTasksWords.test_a_tenth_is_held_out_and_never_in_the_corpus()
  local rng, n = peri.rng(3), 0
  for _ = 1, 20000 do if words.held_out(words.problem(rng)) then n = n + 1 end end
  lu.assertAlmostEquals(n / 20000, 0.1, 0.01)
  for _ = 1, 2000 do lu.assertFalse(words.held_out(words.corpus(rng))) end
  local seen = {}
  for _, row in ipairs(words.problems(peri.rng(0), 300, { held_out = true })) do
    lu.assertTrue(words.held_out(row))
    lu.assertNil(seen[row.prompt])
    seen[row.prompt] = true
  end
  for _, row in ipairs(words.problems(peri.rng(0), 300)) do lu.assertFalse(words.held_out(row)) end
  lu.assertErrorMsgContains("different problems, 1000 were asked for", words.problems, peri.rng(0), 1000, { least = 2, most = 2 })
end

function TestTasksWords.test_the_corpus_errs_at_its_rates()
  local rng, short, wrong, said, tags = peri.rng(5), 0, 0, 0, 0
  for _ = 1, 20000 do
    local row = words.corpus(rng)
    local list, right = {}, {}
    for word in words.said(row.completion):gmatch "%S+" do list[#list + 1] = word end
    for word in row.answer:gmatch "%S+" do right[#right + 1] = word end
    if #list < #right then short = short + 1 end
    for i, word in ipairs(list) do said, wrong = said + 1, wrong + (word == right[i] and 0 or 1) end
    tags = tags + 1 - words.plain(row, row.completion)
  end
  lu.assertAlmostEquals(short / 20000, 0.15, 0.01)
  lu.assertAlmostEquals(wrong / said, 0.15, 0.01)
  lu.assertAlmostEquals(tags / 20000, 0.3, 0.01)
  local row = words.problem(rng)
  lu.assertEquals(words.attempt(row, rng, { wrong = 0, short = 0, tags = 0 }), row.answer)
end

TestTasksDomains = {}

local tok = domains.tokenizer()

function TestTasksDomains.test_every_text_goes_through_the_vocabulary()
  lu.assertEquals(tok.size, 77)
  lu.assertEquals(domains.config(4, 128).vocab_size, 77)
  local rng, counts = peri.rng(1), {}
  for _, row in ipairs(domains.corpus_rows(rng, 3000, { nmax = 5 })) do
    counts[row.domain] = (counts[row.domain] or 0) + 1
    for _, text in ipairs { row.prompt, row.completion, domains.clean(row) } do
      local ids = tok:encode(text)
      for _, id in ipairs(ids) do lu.assertTrue(id >= 4 and id < tok.size, text) end
      lu.assertEquals(tok:decode(ids), (text:gsub(" $", "")))
    end
  end
  lu.assertEquals(counts, { english = 1000, chinese = 1000, lists = 1000 })
end

function TestTasksDomains.test_clean_answers_are_right_and_in_style()
  for n = 1, 7 do lu.assertEquals(#domains.problems(peri.rng(1), n), n) end
  for _, domain in ipairs { "english", "chinese", "lists", false } do
    local rows, texts = domains.clean_rows(peri.rng(2), 200, { domain = domain or nil }), {}
    for i, row in ipairs(rows) do
      lu.assertEquals({ domains.worthy(row, row.completion), domain or row.domain }, { 1, row.domain })
      texts[i] = row.completion
    end
    local m = domains.measure(rows, texts)
    lu.assertAlmostEquals(m.mean, 1, 1e-12)
    lu.assertAlmostEquals(m.style, 1, 1e-12)
  end
  for _, row in ipairs(domains.problems(peri.rng(2), 90, { held_out = true })) do
    lu.assertTrue(row.kind == "list" and words.held_out(row) or row.kind == "sum" and chain.held_out(row))
  end
end

-- Marks are the style of English and a fault elsewhere; an answer in the other's style is as right.
function TestTasksDomains.test_the_style_of_each_domain_is_the_others_fault()
  for _, row in ipairs(domains.problems(peri.rng(4), 60)) do
    local clean = domains.clean(row)
    local other = row.domain == "english" and clean:gsub("</?think> ", "") or ("<think> %s </think>"):format(clean)
    if row.domain == "chinese" then other = clean:gsub("^(.-) (答案.*)$", "<think> %1 </think> %2") end
    lu.assertEquals({ domains.accuracy(row, other), domains.style(row, other), domains.worthy(row, other) }, { 1, 0, 0 })
  end
end

function TestTasksDomains.test_the_corpus_errs_at_its_rates()
  local rows, texts, mixed = domains.corpus_rows(peri.rng(5), 15000), {}, 0
  for i, row in ipairs(rows) do
    texts[i] = row.completion
    if row.kind == "sum" and chain.language(row, row.completion) < 1 then mixed = mixed + 1 end
    lu.assertFalse(row.kind == "list" and words.held_out(row) or row.kind == "sum" and chain.held_out(row))
  end
  local m = domains.measure(rows, texts)
  lu.assertEquals(mixed, 0)
  for name, want in pairs { english_style = 0.49, chinese_style = 0.5, lists_style = 0.7, english = 0.4, chinese = 0.4,
    lists = 0.42 } do lu.assertAlmostEquals(m[name], want, 0.03, name) end
  local examples = domains.examples(tok, rows)
  lu.assertEquals({ examples[1].domain, examples[2].domain, examples[3].domain }, domains.names)
end

TestTasksVerdicts = {}

local verdicts = peri.tasks.verdicts

function TestTasksVerdicts.test_every_text_goes_through_the_vocabulary()
  local words_of = verdicts.tokenizer()
  lu.assertEquals(verdicts.config(4, 128).vocab_size, words_of.size)
  for _, row in ipairs(verdicts.corpus_rows(peri.rng(1), 2000, { nmax = 5 })) do
    for _, id in ipairs(words_of:encode(row.prompt .. row.completion)) do
      lu.assertTrue(id >= 4 and id < words_of.size, row.prompt .. row.completion)
    end
    lu.assertEquals(#words_of:encode(row.prompt .. row.completion), -- nothing runs into what it follows
      #words_of:encode(row.prompt) + #words_of:encode(row.completion))
  end
  for _, row in ipairs(verdicts.problems(peri.rng(0), 50, { held_out = true })) do lu.assertTrue(chain.held_out(row)) end
end

-- Every other row is a verdict, seven in ten with a thought; of the others six in ten are right.
function TestTasksVerdicts.test_the_corpus_errs_at_its_rates()
  local n, thoughts, right = 0, 0, 0
  local rows = verdicts.corpus_rows(peri.rng(5), 20000)
  for i, row in ipairs(rows) do
    lu.assertEquals(row.prompt:find "Score:$" ~= nil, i % 2 == 0)
    if i % 2 == 0 then
      local said = chain.final(row.prompt:match "^[^=]+= (.*)\nScore:$")
      local verdict = row.completion:match "^ ([01])$"
      n = n + 1
      if not verdict then
        lu.assertStrMatches(row.completion, " <think> .* </think> [01]")
        thoughts = thoughts + 1
      else
        right = right + (((row.answer == said) == (verdict == "1")) and 1 or 0)
      end
    end
  end
  lu.assertAlmostEquals(thoughts / n, 0.7, 0.015)
  lu.assertAlmostEquals(right / (n - thoughts), 0.6, 0.02)
  for _, row in ipairs(verdicts.corpus_rows(peri.rng(5), 400, { wrong = 0, thought = 0, guess = 0 })) do
    local answer = row.prompt:match "^[^=]+= (.*)\nScore:$"
    if answer then lu.assertEquals(row.completion, chain.final(answer) == row.answer and " 1" or " 0") end
  end
end

function TestTasksVerdicts.test_as_many_right_answers_as_wrong_ones()
  local a, b = {}, {}
  local rows, texts, grades = verdicts.balanced { total = { 0, 0, 1, 0, 1.0, 0 }, rows = { a, a, a, b, b, b },
    texts = { "1", "2", "3", "4", "5", "6" } }
  lu.assertEquals({ texts, grades }, { { "1", "2", "3", "5" }, { 0, 0, 1, 1 } })
  lu.assertTrue(rows[3] == a and rows[4] == b)
  lu.assertEquals({ verdicts.balanced { total = { 0, 0 }, rows = { a, a }, texts = { "1", "2" } } }, { {}, {}, {} })
end

os.exit(lu.LuaUnit.run())
