-- Countdown: which problems there are, what is an attempt, what is right, what play without aim writes.
local lu = require "luaunit"
local peri = require "perilune"
local countdown = require "perilune.tasks.countdown"

TestCountdown = {}

-- All attempts on three numbers, as texts with their results, by trying every order: written apart from the task.
local function all_attempts(n)
  local list = {}
  local function steps(a, b)
    return { { a .. "+" .. b, a + b }, { a .. "-" .. b, a - b }, { a .. "*" .. b, a * b } }
  end
  for i = 1, 3 do
    for j = 1, 3 do
      for k = 1, 3 do
        if i ~= j and j ~= k and i ~= k then
          for _, x in ipairs(steps(n[i], n[j])) do
            for turn = 1, 2 do
              for _, y in ipairs(turn == 1 and steps(x[2], n[k]) or steps(n[k], x[2])) do
                if x[2] >= 0 and y[2] >= 0 then
                  list[("%s=%d,%s=%d"):format(x[1], x[2], y[1], y[2])] = y[2]
                end
              end
            end
          end
        end
      end
    end
  end
  return list
end

function TestCountdown.test_there_are_1864_problems_and_each_has_a_solution()
  local rows, seen, sets = countdown.problems(), {}, {}
  lu.assertEquals(#rows, 1864)
  for _, row in ipairs(rows) do
    lu.assertNil(seen[row.prompt])
    seen[row.prompt], sets[table.concat(row.numbers, ",")] = true, row.numbers
    lu.assertEquals(row.prompt, ("%s:%d"):format(table.concat(row.numbers, ","), row.target))
  end
  local count, reachable = 0, 0
  for _, numbers in pairs(sets) do
    count = count + 1
    local targets = {}
    for _, value in pairs(all_attempts(numbers)) do
      if value >= 1 and value <= 99 then targets[value] = true end
    end
    for target in pairs(targets) do
      reachable = reachable + 1
      lu.assertTrue(seen[("%s:%d"):format(table.concat(numbers, ","), target)])
    end
  end
  lu.assertEquals({ count, reachable }, { 165, 1864 }) -- every choice of three, and no problem beside these
end

function TestCountdown.test_of_every_attempt_on_every_problem_exactly_those_that_reach_the_target_are_right()
  local by_numbers, right = {}, 0
  for _, row in ipairs(countdown.problems()) do
    local key = table.concat(row.numbers, ",")
    by_numbers[key] = by_numbers[key] or all_attempts(row.numbers)
    local any = false
    for text, value in pairs(by_numbers[key]) do
      local is = countdown.is_right(row, text)
      if is ~= (value == row.target) then lu.fail(row.prompt .. " " .. text) end
      if countdown.reward(row, text .. "!") ~= (is and 1 or 0.1) then lu.fail(row.prompt .. " " .. text .. "!") end
      any, right = any or is, right + (is and 1 or 0)
    end
    lu.assertTrue(any, row.prompt)
  end
  lu.assertTrue(right > 8000)
end

-- One wrong number, sign or character of a right attempt: wrong, whatever it is.
function TestCountdown.test_no_change_of_one_character_of_a_right_attempt_is_right_but_another_right_attempt()
  local row = { prompt = "2,7,8:42", numbers = { 2, 7, 8 }, target = 42 }
  local known, tried = all_attempts(row.numbers), 0
  for text, value in pairs(known) do
    for at = 1, value == 42 and #text or 0 do
      for c in countdown.alphabet:gmatch "." do
        local other = text:sub(1, at - 1) .. c .. text:sub(at + 1)
        tried = tried + 1
        lu.assertEquals(countdown.is_right(row, other), known[other] == 42, other)
      end
    end
  end
  lu.assertTrue(tried > 200)
end

function TestCountdown.test_rewards_are_tinyzeros()
  local row = { prompt = "2,7,8:42", numbers = { 2, 7, 8 }, target = 42 }
  for text, want in pairs {
    ["8-2=6,7*6=42!"] = 1, ["8-2=6,6*7=42!"] = 1, ["2+7=9,9+8=17;8-2=6,7*6=42!"] = 1,
    ["!!;8-2=6,7*6=42!"] = 0, -- it ended before
    ["8-2=6,7*6=42;2+7=9,9+8=17!"] = 0.1, -- the last one counts
    ["8-2=6,7*6=43!"] = 0.1, ["8-2=5,7*6=42!"] = 0.1, ["8-2=6,7*7=42!"] = 0.1, ["7*6=42,42-0=42!"] = 0.1,
    ["6*7=42,42*1=42!"] = 0.1, ["8-2=6,7+35=42!"] = 0.1, ["99999999999999999999+1=2,2+3=5!"] = 0.1,
    ["garbage;8-2=6,7*6=42!"] = 1, [";8-2=6,7*6=42!"] = 1,
    ["8-2=6,7*6=42"] = 0, ["8-2=6,7*6=42;"] = 0, ["8-2=6,7*6=42;!"] = 0, ["!"] = 0, [""] = 0, ["8-2=6!"] = 0,
    ["8-2=6,7*6=42,42+0=42!"] = 0, ["8-2=6,7*6!"] = 0, ["8-2=6,7*6=42!!"] = 0, ["8-2=6,7*6=42!8"] = 0,
    ["08-2=6,7*6=42!"] = 0, ["8-2=06,7*6=42!"] = 0, ["8 - 2=6,7*6=42!"] = 0, ["8-2=6,7*6=42! "] = 0, ["2-8=-6,7*6=42!"] = 0,
    ["8-2=6;7*6=42!"] = 0, [("8"):rep(5000) .. "!"] = 0, [(";"):rep(5000) .. "!"] = 0, ["\0!"] = 0, ["\u{ff18}-2=6,7*6=42!"] = 0,
  } do
    lu.assertEquals({ text, countdown.reward(row, text) }, { text, want })
  end
end

function TestCountdown.test_numbers_that_occur_twice_are_used_twice()
  local row = { numbers = { 3, 3, 5 }, target = 14 }
  lu.assertTrue(countdown.is_right(row, "3*3=9,9+5=14"))
  lu.assertFalse(countdown.is_right(row, "9+5=14,14+0=14"))
  lu.assertFalse(countdown.is_right({ numbers = { 3, 4, 5 }, target = 14 }, "3*3=9,9+5=14"))
  local same = { numbers = { 2, 2, 4 }, target = 8 } -- the first result is also one of the numbers
  lu.assertTrue(countdown.is_right(same, "2+2=4,4+4=8"))
  lu.assertFalse(countdown.is_right(same, "2*4=8,4+4=8"))
  lu.assertTrue(countdown.is_right({ numbers = { 1, 2, 3 }, target = 9 }, "1+2=3,3*3=9"))
end

function TestCountdown.test_attempts_are_what_stands_between_semicolons()
  for text, want in pairs { ["a;b!"] = { { "a", "b" }, true }, ["a"] = { { "a" }, false }, [""] = { { "" }, false },
    ["!"] = { { "" }, true }, [";!"] = { { "", "" }, true }, ["a!b!"] = { { "a!b!" }, false } } do
    lu.assertEquals({ text, { countdown.attempts(text) } }, { text, want })
  end
end

function TestCountdown.test_play_without_aim_is_true_arithmetic_that_ends_at_a_hit()
  local rows, rng, hits, longest, attempts = countdown.problems(), peri.rng(3), 0, 0, 0
  for _ = 1, 5000 do
    local row = rng:choice(rows)
    local text, hit = countdown.aimless(row, rng)
    local list, ended = countdown.attempts(text)
    lu.assertTrue(ended)
    lu.assertEquals(countdown.reward(row, text), hit and 1 or 0.1)
    local known = all_attempts(row.numbers)
    for i, attempt in ipairs(list) do
      lu.assertNotNil(known[attempt], text)
      if i < #list then lu.assertNotEquals(known[attempt], row.target, text) end
    end
    hits, longest, attempts = hits + (hit and 1 or 0), math.max(longest, #list), attempts + #list
  end
  lu.assertEquals(longest, 9)
  lu.assertTrue(hits > 1000 and hits < 1400) -- 0.24 of them
  lu.assertTrue(attempts > 14500 and attempts < 16500) -- 3.1 each
  local one = countdown.aimless(rows[1], peri.rng(1), { most = 1 })
  lu.assertEquals(#countdown.attempts(one), 1)
  lu.assertEquals(countdown.aimless(rows[5], peri.rng(8)), (countdown.aimless(rows[5], peri.rng(8))))
  lu.assertErrorMsgContains("go_on is 2", countdown.aimless, rows[1], rng, { go_on = 2 })
end

function TestCountdown.test_answers_whose_problem_is_chosen_after_them_hit_at_their_end_and_not_before()
  local train, rng, known, lengths = countdown.split(), peri.rng(3), {}, {}
  for _, row in ipairs(train) do known[row] = true end
  for _ = 1, 500 do
    local row, text = countdown.told(train, rng)
    local list, ended = countdown.attempts(text)
    lu.assertTrue(known[row] and ended)
    for i, attempt in ipairs(list) do lu.assertEquals(countdown.is_right(row, attempt), i == #list) end
    lengths[#list] = true
  end
  lu.assertEquals(lengths, { true, true, true, true })
  local row, text = countdown.told({ train[7] }, rng, { most = 1 })
  lu.assertIs(row, train[7])
  lu.assertTrue(countdown.is_right(row, countdown.last(text)))
  lu.assertErrorMsgContains("most is 0", countdown.told, train, rng, { most = 0 })
  lu.assertTrue(known[(countdown.played(train, rng))])
end

function TestCountdown.test_a_split_has_every_problem_once_and_is_the_seeds()
  local train, held_out = countdown.split()
  lu.assertEquals({ #train, #held_out }, { 1564, 300 })
  local seen = {}
  for _, list in ipairs { train, held_out } do
    for _, row in ipairs(list) do
      lu.assertNil(seen[row.prompt])
      seen[row.prompt] = true
    end
  end
  local same, other = select(2, countdown.split()), select(2, countdown.split { seed = 1 })
  lu.assertEquals(same, held_out)
  lu.assertNotEquals(other, held_out)
  lu.assertEquals(#select(2, countdown.split { held_out = 5 }), 5)
  lu.assertErrorMsgContains("held_out is 1864", countdown.split, { held_out = 1864 })
end

function TestCountdown.test_the_alphabet_has_every_character_of_problems_and_answers()
  local tok = peri.text.chars(countdown.alphabet)
  for _, row in ipairs(countdown.problems()) do
    local text = row.prompt .. countdown.aimless(row, peri.rng(1))
    lu.assertEquals(tok:decode(tok:encode(text)), text)
  end
end

os.exit(lu.LuaUnit.run())
