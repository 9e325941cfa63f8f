-- A reward model as a reward function: the scores of the scorer itself, of what it is asked to judge, however they are
-- batched.
local lu = require "luaunit"
local peri = require "perilune"
local models, reward, rl, text = peri.models, peri.reward, peri.rl, peri.text

TestRewardModel = {}

local tok = text.words { "<think>", "</think>", "a", "b", "c", "=" }

local function scorer()
  peri.seed(3)
  return models.scorer(models.llama.new { architectures = { "LlamaForCausalLM" }, model_type = "llama",
    vocab_size = tok.size, hidden_size = 16, intermediate_size = 24, num_hidden_layers = 1, num_attention_heads = 2,
    max_position_embeddings = 32, rms_norm_eps = 1e-6, initializer_range = 0.3 }, { std = 0.3 })
end

local rows = { { prompt = "a b = ", kind = "help" }, { prompt = "c = ", kind = "harm" }, { prompt = "b b b = ", kind = "help" } }
local texts = { "<think> a a </think> b", "c", "<think> a" }

-- What the scorer says at the end of a text that the end token closes.
local function said(model, whole)
  local ids = tok:encode(whole)
  ids[#ids + 1] = tok.eos
  return model:last(peri.tensor({ ids }, "i64")):item()
end

function TestRewardModel.test_its_value_is_the_score_at_the_last_token()
  local model = scorer()
  local values = reward.model { model = model, tokenizer = tok }(rows, texts)
  for i, row in ipairs(rows) do lu.assertEquals(values[i], said(model, row.prompt .. texts[i])) end
  lu.assertTrue(values[1] ~= values[2] and values[2] ~= values[3])
end

function TestRewardModel.test_a_summary_is_what_follows_the_thought()
  local model = scorer()
  local values = reward.model { model = model, tokenizer = tok, part = "summary" }(rows, texts)
  lu.assertEquals(values[1], said(model, "a b = b"))
  lu.assertEquals(values[2], said(model, "c = c"))
  lu.assertEquals(values[3], said(model, "b b b =")) -- it never came to one
end

function TestRewardModel.test_batches_of_any_size_give_the_same_bits()
  local model = scorer()
  local whole = reward.model { model = model, tokenizer = tok }(rows, texts)
  for size = 1, 4 do
    lu.assertEquals(reward.model { model = model, tokenizer = tok, batch_size = size }(rows, texts), whole)
  end
end

function TestRewardModel.test_it_abstains_from_rows_that_are_not_its_own()
  local model = scorer()
  local judge = reward.model { model = model, tokenizer = tok, where = function (row) return row.kind == "harm" end }
  local values = judge(rows, texts)
  lu.assertEquals({ values[1], values[2], values[3], values.n }, { nil, said(model, "c = c"), nil, 3 })
  local scored = rl.score(rows, texts, { { 1 }, { 2 }, { 3 } }, { { "judge", judge, 2 } })
  lu.assertTrue(scored.total[1] ~= scored.total[1] and scored.total[2] == 2 * values[2])
  local none = reward.model { model = model, tokenizer = tok, where = function () return false end }
  lu.assertEquals(none(rows, texts), { n = 3 })
end

function TestRewardModel.test_it_leaves_no_gradient_and_no_memory()
  local model = scorer()
  local judge = reward.model { model = model, tokenizer = tok }
  judge(rows, texts)
  collectgarbage()
  local before = peri.memory().live
  judge(rows, texts)
  collectgarbage()
  lu.assertEquals(peri.memory().live, before)
  for _, p in ipairs(model:parameters()) do lu.assertNil(p.grad) end
end

function TestRewardModel.test_a_model_that_scores_nothing_is_refused()
  lu.assertErrorMsgContains("the model is no models.scorer", reward.model, { model = {}, tokenizer = tok })
  lu.assertErrorMsgContains("model is missing", reward.model, { tokenizer = tok })
end

os.exit(lu.LuaUnit.run())
