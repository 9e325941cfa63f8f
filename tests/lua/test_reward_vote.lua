-- The majority as a reward: ties, abstentions, nothing at all; and what it is not.
local lu = require "luaunit"
local peri = require "perilune"
local reward, rl = peri.reward, peri.rl

TestVote = {}

local function number(text) return tonumber(text) end

-- Rewards of the answers to one prompt; "-" where the reward abstains.
local function votes(answers, o)
  local row, rows = { prompt = "?" }, {}
  for i = 1, #answers do rows[i] = row end
  local how = { answer = number }
  for k, v in pairs(o or {}) do how[k] = v end
  local fn = reward.vote(how)
  local values, out = fn(rows, answers), {}
  lu.assertEquals(values.n, #answers)
  for i = 1, #answers do out[i] = values[i] == nil and "-" or ("%d"):format(values[i]) end
  return table.concat(out), fn
end

function TestVote.test_the_majority_is_right()
  lu.assertEquals(votes { "1", "2", "2", "3", "2" }, "01101")
  lu.assertEquals(votes { "7", "7" }, "11")
  lu.assertEquals(votes { "2", "2.0", "3" }, "110")                -- one number
  lu.assertEquals(votes({ "a b", "c", "a b" }, { answer = function (text) return text end }), "101")
end

function TestVote.test_ties_go_to_the_first_or_to_none()
  lu.assertEquals(votes { "2", "1", "1", "2" }, "1001")
  lu.assertEquals(votes({ "2", "1", "1", "2" }, { ties = "none" }), "----")
  lu.assertEquals(votes({ "1", "2", "3" }, { ties = "none" }), "---")
  lu.assertEquals(votes({ "1", "2", "3" }), "100")
  lu.assertEquals(votes({ "1", "2", "2", "1", "1" }, { ties = "none" }), "10011")
  lu.assertEquals(votes({ "1", "x", "y", "z" }, { ties = "none" }), "1000") -- what is no answer has no vote
end

function TestVote.test_no_answer_is_no_vote_and_no_reward()
  lu.assertEquals(votes { "x", "2", "y", "2", "3" }, "01010")
  lu.assertEquals(votes { "x", "x", "x" }, "---")                  -- nobody answers: the reward says nothing
  lu.assertEquals(votes { "x", "4", "x" }, "010")
end

function TestVote.test_a_majority_may_have_to_be_large()
  lu.assertEquals(votes({ "1", "1", "2", "3" }, { least = 0.5 }), "1100")
  lu.assertEquals(votes({ "1", "1", "2", "3", "x" }, { least = 0.5 }), "-----") -- a share of all, not of those that answer
  lu.assertEquals(votes({ "1", "1", "1" }, { least = 1 }), "111")
  lu.assertEquals(votes({ "1", "1", "2" }, { least = 1 }), "---")
end

function TestVote.test_of_nothing_it_is_nothing()
  local fn = reward.vote { answer = number }
  lu.assertEquals(fn({}, {}), { n = 0 })
  lu.assertEquals({ fn.share, fn.undecided }, { 0, 0 })
end

function TestVote.test_rows_vote_apart_and_one_row_votes_together()
  local a, b = { prompt = "1+1=" }, { prompt = "1+1=" }            -- alike, yet two rows
  local fn = reward.vote { answer = number }
  lu.assertEquals(fn({ a, a, b, b, b, a }, { "1", "2", "2", "3", "3", "2" }), { 0, 1, 0, 1, 1, 1, n = 6 })
  lu.assertAlmostEquals(fn.share, 2 / 3, 1e-12)
  fn({ a, a, b, b }, { "x", "y", "1", "1" })
  lu.assertEquals({ fn.share, fn.undecided }, { 0.5, 0.5 })
end

-- Any answers: the reward is 1 for exactly those that say what rl.majority of them is.
function TestVote.test_it_is_what_the_majority_says()
  local rng = peri.rng(3)
  for _ = 1, 300 do
    local texts, answers, n = {}, {}, rng:int(2, 9)
    for i = 1, n do
      texts[i] = rng:uniform() < 0.2 and "x" or tostring(rng:int(1, 3))
      answers[i] = tonumber(texts[i])
    end
    local most, count = rl.majority(answers, n)
    local got, fn = votes(texts)
    for i = 1, n do
      lu.assertEquals(got:sub(i, i), most == nil and "-" or answers[i] == most and "1" or "0")
    end
    lu.assertAlmostEquals(fn.share, count / n, 1e-12)
  end
end

function TestVote.test_it_is_a_reward_of_rollouts()
  local row = { prompt = "1+1=" }
  local scored = rl.score({ row, row, row }, { "2", "2", "x" }, { { 1 }, { 1 }, { 1 } }, reward.vote { answer = number })
  lu.assertEquals(scored.total, { 1, 1, 0 })
  local list = rl.score({ row, row, row }, { "x", "x", "x" }, { { 1 }, { 1 }, { 1 } },
    { { "vote", reward.vote { answer = number } }, { "length", function () return 1 end, 0.1 } })
  lu.assertEquals(list.total, { 0.1, 0.1, 0.1 })                   -- abstained, the other counts
  lu.assertTrue(list.rewards.vote[1] ~= list.rewards.vote[1])
end

function TestVote.test_what_cannot_be_voted_on_is_refused()
  local function fails(message, answer, n)
    local rows, texts, tokens = {}, {}, {}
    for i = 1, n or 2 do rows[i], texts[i], tokens[i] = n and { prompt = "?" } or rows[1] or { prompt = "?" }, "1", { 1 } end
    lu.assertErrorMsgContains(message, rl.score, rows, texts, tokens, reward.vote { answer = answer })
  end
  fails("every prompt has one completion: a vote needs several of each (group)", number, 3)
  fails("answer gave a table, expected a text, number or boolean, or nil", function () return {} end)
  fails("answer gave nan", function () return 0 / 0 end)
  fails("no such luck", function () error "no such luck" end)
  lu.assertErrorMsgContains("answer", reward.vote, {})
  lu.assertErrorMsgContains("ties is \"last\"", reward.vote, { answer = number, ties = "last" })
  lu.assertErrorMsgContains("least is 2", reward.vote, { answer = number, least = 2 })
end

function TestVote.test_what_is_no_batch_is_said_in_its_own_words()
  local row, vote = { prompt = "?" }, reward.vote { answer = number }
  for _, case in ipairs {
    { row, "1", 'rows has the key "prompt", expected a list of rows' }, { { row }, "1", 'texts is "1", expected a list' },
    { { row, row }, { "1" }, "there are 1 texts for 2 rows" }, { { row }, { "1", "2" }, "there are 2 texts for 1 rows" },
    { nil, { "1" }, "rows is missing" }, { { row }, nil, "texts is missing" },
    { { row, nil, row }, { "1", "1", "1" }, "rows" }, { { [2] = row }, { "1" }, 'rows has the key "2"' },
    { { row, "x" }, { "1", "2" }, 'rows 2 is "x"' }, { { row }, { 1 }, "texts 1 is 1" },
  } do lu.assertErrorMsgContains("reward.vote: " .. case[3], vote, case[1], case[2]) end
end

os.exit(lu.LuaUnit.run())
