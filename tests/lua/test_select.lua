-- Best of n, rejection sampling and its controls, votes.
local lu = require "luaunit"
local peri = require "perilune"
local rl = require "perilune.rl"

local nan = 0 / 0

-- The worked example of the RLHF book, chapter 9: 5 prompts, 4 completions.
local BOOK = { 0.7, 0.3, 0.5, 0.2, 0.4, 0.8, 0.6, 0.5, 0.9, 0.3, 0.4, 0.7, 0.2, 0.5, 0.8, 0.6, 0.5, 0.4, 0.3, 0.6 }

TestSelect = {}

function TestSelect.test_the_worked_example_has_its_answers()
  local kept = rl.select(BOOK, { group = 4 })
  for prompt, place in ipairs(kept) do kept[prompt] = place - 4 * (prompt - 1) end
  lu.assertEquals(kept, { 1, 2, 1, 3, 4 })
  lu.assertEquals(rl.best_of_n(BOOK, 4), rl.select(BOOK, { group = 4 }))
  local flat = rl.select(BOOK, { by = "flat", keep = 5 })
  for i, place in ipairs(flat) do flat[i] = place - 1 end -- the book counts from 0
  lu.assertEquals(flat, { 8, 5, 14, 0, 11 })
end

function TestSelect.test_controls_have_the_size_of_what_they_control_and_one_seed_one_draw()
  for keep = 1, 6 do
    for top, control in pairs { prompt = "random_prompt", flat = "random_flat" } do
      local chosen = rl.select(BOOK, { by = top, keep = keep, group = 4, least = 0.45 })
      local function draw(seed)
        return rl.select(BOOK, { by = control, group = 4, like = chosen, rng = peri.rng(seed) })
      end
      local drawn = draw(3)
      lu.assertEquals(#drawn, #chosen)
      lu.assertEquals(draw(3), drawn)
      local seen, of, wanted = {}, {}, {}
      for _, i in ipairs(drawn) do
        lu.assertNil(seen[i])
        seen[i] = true
        of[(i - 1) // 4] = (of[(i - 1) // 4] or 0) + 1
      end
      for _, i in ipairs(chosen) do wanted[(i - 1) // 4] = (wanted[(i - 1) // 4] or 0) + 1 end
      if top == "prompt" then lu.assertEquals(of, wanted) end
    end
  end
  -- and every completion can be drawn, whatever its score
  local ever, rng = {}, peri.rng(1)
  for _ = 1, 200 do
    for _, i in ipairs(rl.select(BOOK, { by = "random_prompt", group = 4, rng = rng })) do ever[i] = true end
  end
  lu.assertEquals(#ever, 20)
end

function TestSelect.test_abstentions_are_not_kept_and_of_equal_ones_the_first_is()
  lu.assertEquals(rl.select({ nan, 1, 1, nan, nan, nan }, { group = 3, keep = 3 }), { 2, 3 })
  lu.assertEquals(rl.best_of_n({ nan, 1, 1, nan, nan, nan }, 3), { 2, false })
  lu.assertEquals(rl.select({ 3, nan, -1, 3 }, { by = "flat", keep = 9, least = 0 }), { 1, 4 })
  lu.assertEquals(rl.select({ -math.huge, nan }, { group = 2 }), { 1 })
end

function TestSelect.test_what_does_not_fit_is_an_error()
  local function fails(message, ...) lu.assertErrorMsgContains(message, rl.select, ...) end
  fails("there are no scores", {})
  fails('by = "prompt" needs group', { 1 })
  fails("3 scores are no whole groups of 2", { 1, 2, 3 }, { group = 2 })
  fails('by = "random_flat" needs rng', { 1 }, { by = "random_flat" })
  fails('by = "flat" takes no like', { 1 }, { by = "flat", like = { 1 } })
  fails("score 2 is a boolean", { 1, false }, { group = 2 })
  fails('by is "top"', { 1 }, { by = "top" })
  lu.assertErrorMsgContains("n is 2", rl.best_of_n, { 1, 2, 3 }, 2)
end

function TestSelect.test_a_vote_by_weights_may_have_another_winner()
  local answers = { "7", "8", nil, "8", "7", "8" }
  lu.assertEquals({ rl.majority(answers, 6) }, { "8", 3 })
  local answer, votes = rl.majority(answers, 6, { 0.9, 0.1, 5, 0.2, 0.8, nan })
  lu.assertEquals(answer, "7")
  lu.assertAlmostEquals(votes, 1.7, 1e-12)
  lu.assertEquals((rl.majority({ "a", "b" }, 2, { -2, -1 })), "b") -- log probabilities weigh, too
  lu.assertNil((rl.majority({}, 3)))
  lu.assertErrorMsgContains("weight 2 is a nil", rl.majority, { 1, 2 }, 2, { 1 })
  lu.assertTrue(rawequal(peri.tasks.metrics.majority, rl.majority))
end

function TestSelect.test_shares_of_right_answers_are_counted_by_prompt()
  local batch = { group = 4, total = { 1, 0.1, 1, 0, 0, 0.1, nan, 1, 0, 0, 0, 0 },
    texts = { "a", "b", "a", "c", "x", "x", "y", "z", "p", "q", "r", "s" }, rows = {} }
  for i = 1, 12 do batch.rows[i] = {} end
  local got = rl.pass(batch, { k = { 1, 2, 4 }, answer = function (text) return text ~= "c" and text or nil end })
  lu.assertAlmostEquals(got.pass_1, (2 + 1 + 0) / 12, 1e-12)
  lu.assertAlmostEquals(got.pass_2, (1 - 1 / 6 + 1 / 2 + 0) / 3, 1e-12)
  lu.assertAlmostEquals(got.pass_4, 2 / 3, 1e-12)
  lu.assertAlmostEquals(got.majority, 1 / 3, 1e-12) -- "a" is right; "x" is not; of four alike frequent the first, "p", is not
  lu.assertEquals(rl.pass(batch), { pass_1 = got.pass_1 })
  lu.assertAlmostEquals(rl.pass(batch, { right = 0.1 }).pass_1, 5 / 12, 1e-12)
  lu.assertEquals(rl.pass(batch, { answer = function () end }).majority, 0)
  lu.assertErrorMsgContains("k 2 is 5, expected an integer from 1 to the group, 4", rl.pass, batch, { k = { 1, 5 } })
  lu.assertErrorMsgContains("k 1 is 1.5", rl.pass, batch, { k = { 1.5 } })
  lu.assertErrorMsgContains("no completions", rl.pass, { total = {}, group = 2 })
end

os.exit(lu.LuaUnit.run())
