-- Rewards by models: a reward model that judges the summary or the whole, a judge whose reply is read strictly.
local lu = require "luaunit"
local judge = require "perilune.reward.judge"
local peri = require "perilune"
local R = peri.reward

TestRewardJudge = {}

local words = peri.text.words { "<think>", "</think>", "yes", "no", "Score:", "7", "?" }

local function shape(more)
  local config = { architectures = { "LlamaForCausalLM" }, model_type = "llama", vocab_size = words.size, hidden_size = 16,
    intermediate_size = 24, num_hidden_layers = 1, num_attention_heads = 2, max_position_embeddings = 512, rms_norm_eps = 1e-6,
    eos_token_id = words.eos, pad_token_id = words.pad }
  for k, v in pairs(more or {}) do config[k] = v end
  return config
end

function TestRewardJudge.test_helpfulness_sees_the_summary_and_harmlessness_all()
  peri.seed(3)
  local scorer = peri.models.scorer(peri.models.llama.new(shape()), { std = 1 })
  local row = { prompt = "yes ? " }
  local function of(maker, text) return maker { model = scorer, tokenizer = words }({ row }, { text })[1] end
  local a, b, c = "<think> no </think> yes", "<think> yes yes </think> yes", "yes"
  lu.assertAlmostEquals(of(R.helpfulness, a), of(R.helpfulness, b), 1e-6)
  lu.assertNotAlmostEquals(of(R.harmlessness, a), of(R.harmlessness, b), 1e-6)
  lu.assertAlmostEquals(of(R.helpfulness, c), of(R.harmlessness, c), 1e-6)
  lu.assertAlmostEquals(of(R.harmlessness, a), of(R.model, a), 0)
  local scored = peri.rl.score({ row, row }, { a, c }, { { 1 }, { 1 } }, { { "help", R.helpfulness { model = scorer,
    tokenizer = words }, 0.5 }, { "harm", R.harmlessness { model = scorer, tokenizer = words, batch_size = 1 } } })
  lu.assertAlmostEquals(scored.total[2], 1.5 * of(R.model, c), 1e-5)
  lu.assertErrorMsgContains("reward.helpfulness: the model is no models.scorer", R.helpfulness,
    { model = peri.models.llama.new(shape()), tokenizer = words })
end

function TestRewardJudge.test_a_score_is_read_strictly()
  for reply, want in pairs { ["Score: 7"] = 7, [" 7 "] = 7, ["7."] = 7, ["7/10"] = 7, ["7.5 / 10"] = 7.5, ["Score: 7/10"] = 7,
    ["It is fine.\n**Score: 3**\n"] = 3, ["score: 0"] = 0, ["Score: 10"] = 10, ["<think>Score: 2</think>Score: 9"] = 9,
    ["Score: 4\nScore: 4"] = 4, ["Score:7"] = 7 } do lu.assertEquals(judge._read_score(reply, 0, 10), want, reply) end
  for _, reply in ipairs { "", "ten", "Score:", "Score: ten", "Score: 11", "Score: -1", "Score: 1e9", "7 of 10", "7/5", "Score: 7/5",
    "Score: 3\nScore: 4", "I give it 7", "7 8", "Score: 7, for it is good", "nan", "Score: nan", "Score: inf", "Score: 1e999", "%d",
    ("9"):rep(10000), "Score: " .. ("("):rep(1000), "\xff\xfe", "Score: 0x7" } do
    lu.assertNil(judge._read_score(reply, 0, 10), reply:sub(1, 40))
  end
end

-- A tokenizer whose decode says what a judge would have replied, and whose encode notes what it was asked.
local function speaking(replies, more)
  local asked = {}
  local tok = setmetatable(more or {}, { __index = words })
  tok.encode_batch = function (_, texts)
    local list = {}
    for i, text in ipairs(texts) do asked[#asked + 1], list[i] = text, { 3 } end
    return list
  end
  tok.decode = function () return table.remove(replies, 1) end
  return tok, asked
end

function TestRewardJudge.test_a_judge_that_is_not_understood_abstains_and_is_counted()
  local model = peri.models.llama.new(shape())
  local tok, asked = speaking({ "Score: 5", "no idea", "10", "Score: 3 or 4" }, { special_tokens = { eos_token = "<eos>" } })
  local reward = R.judge { model = model, tokenizer = tok, max_new_tokens = 2, field = "answer" }
  local row = { prompt = "17 + 4?", answer = 21 }
  local texts = { "<think>hm</think>21", "20<eos>Score: 10<|im_end|>", "{prompt} %1", "21" }
  local scored = peri.rl.score({ row, row, row, row }, texts, { { 1 }, { 1 }, { 1 }, { 1 } }, { { "judge", reward } })
  lu.assertEquals({ scored.total[1], scored.total[3] }, { 0.5, 1 })
  lu.assertTrue(scored.total[2] ~= scored.total[2] and scored.total[4] ~= scored.total[4])
  lu.assertEquals({ reward.asked, reward.unread, reward.replies[2] }, { 4, 2, "no idea" })
  lu.assertStrContains(asked[1], "Answer:\n21\n\nA right answer:\n21\n")
  lu.assertNotStrContains(asked[1], "hm") -- the summary alone
  lu.assertStrContains(asked[2], "20< eos>Score: 10< |im_end| >") -- marks of a chat are broken up
  lu.assertStrContains(asked[3], "{prompt} %1")
  lu.assertStrContains(asked[1], "from 0 to 10")
  lu.assertErrorMsgContains("the row's answer is missing", reward, { { prompt = "x" } }, { "y" })
  lu.assertErrorMsgContains("the row has no prompt", R.judge { model = model, tokenizer = tok }, { {} }, { "y" })
end

function TestRewardJudge.test_a_judge_generates()
  peri.seed(1)
  local all = {}
  for c = 32, 126 do all[#all + 1] = string.char(c) end
  local tok = peri.text.chars(table.concat(all) .. "\n")
  local model = peri.models.llama.new(shape { vocab_size = tok.size, eos_token_id = tok.eos, pad_token_id = tok.pad,
    max_position_embeddings = 1024 })
  local reward = R.judge { model = model, tokenizer = tok, max_new_tokens = 3, batch_size = 2 }
  local list = { { prompt = "yes" }, { prompt = { { role = "user", content = "no" } } }, { prompt = "?" } }
  local values = reward(list, { "no", "yes", "\\boxed{1}" })
  lu.assertEquals({ values.n, #reward.replies, reward.asked }, { 3, 3, 3 })
  for i = 1, 3 do lu.assertTrue(values[i] == nil or values[i] >= 0 and values[i] <= 1) end
  lu.assertEquals(reward({}, {}), { n = 0 })
end

function TestRewardJudge.test_what_a_judge_cannot_be_is_named()
  local model = peri.models.llama.new(shape())
  local function refused(want, more)
    local o = { model = model, tokenizer = words }
    for k, v in pairs(more) do o[k] = v end
    lu.assertErrorMsgContains(want, R.judge, o)
  end
  refused("lowest is 5, expected less than highest, 5", { lowest = 5, highest = 5 })
  refused("the rubric has no {answer}", { rubric = "{prompt}" })
  refused('the rubric: unknown field "answr"; did you mean "answer"?', { rubric = "{prompt} {answer} {answr}" })
  lu.assertErrorMsgContains("reward.judge: model is missing", R.judge, { tokenizer = words })
end

-- What a judge is trained on is what it is asked with.
function TestRewardJudge.test_a_judge_is_asked_what_it_was_trained_on()
  local asked, tok = {}, setmetatable({}, { __index = words })
  function tok.encode_batch(_, texts)
    for _, text in ipairs(texts) do asked[#asked + 1] = text end
    return words:encode_batch(texts)
  end
  peri.seed(3)
  local fn = R.judge { model = peri.models.llama.new(shape()), tokenizer = tok, rubric = "{prompt}{answer}\n", part = "whole",
    lowest = 0, highest = 1, max_new_tokens = 2 }
  local rows, texts = { { prompt = "yes ? " }, { prompt = "no " } }, { "<think> no </think> yes", "<|x|> Score: 7" }
  local given = fn:ask(rows, texts)
  fn(rows, texts)
  lu.assertEquals({ given[1].prompt, given[2].prompt }, asked)
  lu.assertEquals(asked, { "yes ? <think> no </think> yes\nScore:", "no < |x| > Score: 7\nScore:" })
  lu.assertEquals(fn:ask({}, {}), {})
  lu.assertErrorMsgContains("judge:ask: 2 rows, 1 texts", fn.ask, fn, rows, { "yes" })
  lu.assertErrorMsgContains("judge:ask: row 1: the row has no prompt", fn.ask, fn, { {} }, { "yes" })
end

function TestRewardJudge.test_a_reply_is_worth_how_near_it_comes_to_the_rubric()
  local ten, one = R.agreement(), R.agreement { field = "grade", lowest = -1, highest = 1 }
  for reply, want in pairs { ["7"] = 1, ["Score: 7"] = 1, ["Score: 2"] = 0.5, ["<think> 1 </think> 9"] = 0.8, ["12"] = 0,
    [""] = 0, ["good"] = 0, ["7 8"] = 0 } do lu.assertAlmostEquals(ten({ score = 7 }, reply), want, 1e-12, reply) end
  lu.assertEquals({ one({ grade = 1 }, "1"), one({ grade = 1 }, "0"), one({ grade = 1 }, "-1") }, { 1, 0.5, 0 })
  for _, row in ipairs { {}, { score = "7" }, { score = 11 }, { score = 0 / 0 } } do
    lu.assertErrorMsgContains("expected the rubric's score: a number from 0 to 10", peri.rl.score, { row }, { "7" }, { { 1 } }, ten)
  end
  lu.assertErrorMsgContains("lowest is 3, expected less than highest, 2", R.agreement, { lowest = 3, highest = 2 })
end
