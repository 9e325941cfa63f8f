-- Tasks whose answers a rule can check.
local lu = require "luaunit"
local peri = require "perilune"
local sums = require "perilune.tasks.sums"

TestSums = {}

function TestSums.test_every_sum_is_there_once_and_its_answer_is_right()
  for _, case in ipairs { { nil, 1, 20 }, { { largest = 50 }, 1, 50 }, { { smallest = 0, largest = 3 }, 0, 3 },
                          { { smallest = 7, largest = 7 }, 7, 7 } } do
    local rows, seen = sums.rows(case[1]), {}
    lu.assertEquals(#rows, (case[3] - case[2] + 1) ^ 2 // 1)
    for _, row in ipairs(rows) do
      local a, b = row.question:match "^Calculate (%d+) %+ (%d+) = %?$"
      lu.assertEquals(row.answer, tonumber(a) + tonumber(b))
      lu.assertTrue(tonumber(a) >= case[2] and tonumber(a) <= case[3])
      lu.assertEquals(row.prompt, { { role = "user", content = row.question } })
      lu.assertNil(seen[row.question])
      seen[row.question] = true
    end
  end
end

-- The last number of an answer counts, in whatever form it is written.
function TestSums.test_the_last_number_is_the_answer()
  local row = { answer = 21 }
  for text, reward in pairs {
    ["21"] = 1, ["17 + 4 = 21."] = 1, ["The answer is **21**!"] = 1, ["= 21.0"] = 1, ["021"] = 1, ["$21"] = 1,
    ["\\boxed{21}"] = 1, ["It is 20, no, 21"] = 1, ["21 = 17 + 4"] = 0, ["17 + 4 = 22"] = 0, ["-21"] = 0, ["21.5"] = 0,
    ["2 1"] = 0, ["twenty one"] = 0, [""] = 0, ["1,021"] = 0, ["17 + 4 = 21. I am 100 % sure"] = 0,
  } do
    lu.assertEquals(sums.reward(row, text), reward, text)
  end
  lu.assertEquals(sums.reward({ answer = 1234 }, "in all 1,234"), 1)
end

function TestSums.test_options_are_named_when_they_are_wrong()
  lu.assertErrorMsgContains("sums.rows: largest is 3 and smallest 5", sums.rows, { smallest = 5, largest = 3 })
  lu.assertErrorMsgContains("did you mean \"largest\"", sums.rows, { larges = 3 })
  lu.assertErrorMsgContains("largest", sums.rows, { largest = 2.5 })
  lu.assertErrorMsgContains("smallest", sums.rows, { smallest = -1 })
end

function TestSums.test_public_names()
  lu.assertEquals(peri.tasks.sums, sums)
end

os.exit(lu.LuaUnit.run())
