-- Scorers: causal models with a head of one number, against transformers' ...ForSequenceClassification and
-- ...ForTokenClassification (tests/reference/scorers.py), and what they promise of themselves.
local lu = require "luaunit"
local peri = require "perilune"
local models = require "perilune.models"
local scratch = require "scratch"
local tiny = require "tiny"

local stored = "tests/data/scorers/"
local function base_of(name) return (tiny.load(name)) end
local causal = { "llama", "llama31_rope", "qwen2", "qwen3", "mistral", "gpt2", "deepseek_v3", "gemma2" }

local function load(name)
  return assert(models.load(stored .. name)), assert(peri.safetensors.load(stored .. name .. "/io.safetensors"))
end

local function rows_of(io) return peri.batch.by_bounds(io.input_ids, nil, io.lengths:tolist()) end

TestScorer = {}

function TestScorer.test_last_is_the_logit_of_sequence_classification()
  for _, name in ipairs { "llama_sequence", "gpt2_sequence" } do
    local model, io = load(name)
    local got = model:last(rows_of(io))
    lu.assertTrue(tiny.relative(got, io.logits:squeeze(2)) < 1e-5, name) -- f32 sums in another order
    got:square():sum():backward()
    lu.assertTrue(tiny.relative(model.score.weight.grad, io["grad.score.weight"]) < 1e-5, name)
  end
end

function TestScorer.test_forward_is_the_logit_of_token_classification()
  for name, classes in pairs { llama_token = 2, gpt2_token = 1 } do
    local model, io = load(name)
    local want = io.logits:select(3, classes)
    if classes == 2 then want = want:sub(io.logits:select(3, 1)) end -- log odds of the second
    local seen = rows_of(io).mask
    local got = model:forward(rows_of(io)):mul(seen:to "f32")
    lu.assertTrue(tiny.relative(got, want:mul(seen:to "f32")) < 1e-5, name)
  end
end

function TestScorer.test_a_head_of_three_classes_is_refused()
  local folder = scratch.folder()
  local text = assert(peri.files.read(stored .. "gpt2_sequence/config.json"))
  local config = peri.json.decode(text)
  config.id2label = { ["0"] = "a", ["1"] = "b", ["2"] = "c" }
  assert(peri.files.write(folder .. "/config.json", peri.json.encode(config)))
  assert(peri.files.write(folder .. "/model.safetensors", assert(peri.files.read(stored
    .. "gpt2_sequence/model.safetensors"))))
  local model, message = models.load(folder)
  lu.assertNil(model)
  lu.assertStrContains(message, "the head has 3 classes")
  assert(peri.files.remove_tree(folder))
end

-- ---- laws over every architecture ----

function TestScorer.test_every_causal_architecture_makes_one_that_saves_and_loads()
  local ids = peri.tensor({ { 3, 4, 5, 6, 7 }, { 8, 9, 3, 4, 5 } }, "i64")
  for _, name in ipairs(causal) do
    for _, bias in ipairs { false, true } do
      local base = tiny.load(name)
      local before = base:state_dict()
      local scorer = models.scorer(base, { bias = bias })
      local again = tiny.reload(scorer)
      lu.assertEquals(again:forward(ids):bytes(), scorer:forward(ids):bytes(), name)
      lu.assertEquals(again.__name, scorer.__name)
      lu.assertStrContains(scorer.config.architectures[1], bias and "ForTokenClassification"
        or "ForSequenceClassification")
      -- the body has the model's bits and not its memory
      for key, t in pairs(scorer:state_dict()) do
        if before[key] then
          lu.assertEquals(t:bytes(), before[key]:bytes(), key)
          t:mul_(0)
          lu.assertNotEquals(before[key]:abs():sum():item(), 0, key)
        end
      end
    end
  end
end

function TestScorer.test_last_has_the_bits_of_forward_at_the_last_token()
  local ids = peri.tensor({ { 3, 4, 5, 6, 7 }, { 8, 9, 3, 4, 5 }, { 6, 6, 3, 4, 8 } }, "i64")
  for _, name in ipairs(causal) do
    local scorer = models.scorer(base_of(name), { std = 1 })
    for _, how in ipairs { { lengths = { 2, 5, 1 } }, { start = { 0, 2, 4 } }, {} } do
      local all, last = scorer:forward(ids, how):tolist(), scorer:last(ids, how):tolist()
      for b = 1, 3 do lu.assertEquals(last[b], all[b][how.lengths and how.lengths[b] or 5], name) end
    end
  end
end

function TestScorer.test_a_row_scores_what_it_scores_alone_on_either_side()
  local rows = { { 3, 4, 5, 6, 7 }, { 8, 9 }, { 6 } }
  for _, name in ipairs(causal) do
    local scorer = models.scorer(base_of(name), { std = 1 })
    for _, side in ipairs { "left", "right" } do
      local got = scorer:last(peri.batch.pad(rows, { pad = 0, side = side })):tolist()
      for b, row in ipairs(rows) do
        lu.assertAlmostEquals(got[b], scorer:last(peri.tensor({ row }, "i64")):item(), 1e-5, name .. side)
      end
    end
  end
end

function TestScorer.test_what_asks_for_logits_says_that_there_are_none()
  local scorer = models.scorer(base_of "llama")
  local ids = peri.tensor({ { 3, 4 } }, "i64")
  for _, name in ipairs { "generate", "cache", "logits", "token_logprob", "token_logprobs", "vectors" } do
    lu.assertErrorMsgContains(name .. ": llama scorer gives a number for each token", scorer[name], scorer, ids)
  end
  lu.assertErrorMsgContains("gives a number for each token", peri.algo.sft.new,
    { model = scorer, optimizer = {}, examples = { { ids = { 1, 2 }, mask = { 1, 1 } } } })
end

function TestScorer.test_what_is_no_causal_model_is_refused()
  lu.assertErrorMsgContains("the model is a bert, expected a causal model", models.scorer, base_of "bert")
  lu.assertErrorMsgContains("the model is a llama scorer", models.scorer, models.scorer(base_of "llama"))
  lu.assertErrorMsgContains("the model is a Linear", models.scorer, peri.nn.Linear(2, 2))
  lu.assertErrorMsgContains("model is 3, expected module", models.scorer, 3)
  lu.assertErrorMsgContains('unknown option "bais"; did you mean "bias"?', models.scorer, base_of "llama",
    { bais = true })
  lu.assertErrorMsgContains("row 2", function ()
    models.scorer(base_of "llama"):last(peri.tensor({ { 3, 4 }, { 1, 1 } }, "i64"), { lengths = { 2, 0 } })
  end)
end

function TestScorer.test_shared_matrices_are_frozen_and_an_adapter_trains_beside_them()
  local base = base_of "llama"
  local scorer = models.scorer(base, { dtype = "file" })
  for _, entry in ipairs(scorer:named_parameters()) do
    lu.assertEquals(entry[2].requires_grad, entry[1] == "score.weight", entry[1])
  end
  local adapter = peri.peft.lora(scorer, { r = 2 })
  scorer:last(peri.tensor({ { 3, 4, 5 } }, "i64")):sum():backward()
  local n = 0
  for _, p in ipairs(adapter:parameters()) do n = n + (p.grad and 1 or 0) end
  lu.assertTrue(n > 0)
end

os.exit(lu.LuaUnit.run())
