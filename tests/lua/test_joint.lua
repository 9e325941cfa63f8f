-- models.joint, an encoder that answers in two modes, and algo.joint, which trains both at once.
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"

local joint, algo, optim = peri.models.joint, peri.algo, peri.optim

TestJoint = {}

local WORDS <const> = { "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "of", "?", "a", "b", "c", "d" }

local function tokenizer()
  local folder = scratch.folder()
  assert(peri.files.write(folder .. "/vocab.txt", table.concat(WORDS, "\n") .. "\n"))
  local tok = assert(peri.tokenizer.load(folder .. "/vocab.txt"))
  return tok, folder
end
local tok, folder = tokenizer()

local function encoder(more)
  local config = { model_type = "bert", vocab_size = tok.size, hidden_size = 16, intermediate_size = 32,
    num_hidden_layers = 2, num_attention_heads = 2, max_position_embeddings = 48, type_vocab_size = 2 }
  for k, v in pairs(more or {}) do config[k] = v end
  return peri.models.bert.new(config, { std = 0.3 })
end

local function model(seed, more)
  peri.seed(seed or 1)
  return joint.new(encoder(more), { stop = tok.sep, pad = tok.pad, longest = 12 }):eval()
end

local function values(t) return t:reshape({ -1 }):tolist() end

local rows = { { prompt = "what is a ?", answer = "b" }, { prompt = "what is of b ?", answer = "c d" },
  { prompt = "what is c ?", answer = "d a b" }, { prompt = "a", answer = "a" } }

function TestJoint.tearDownClass() peri.files.remove_tree(folder) end

-- ---- the model ----

function TestJoint.test_the_structure_is_that_of_the_notes()
  local m = model()
  for _, mode in ipairs(joint.modes) do
    local names = {}
    for i, layer in ipairs(m.heads[mode]:children()) do names[i] = getmetatable(layer).__name end
    lu.assertEquals(names, { "Linear", "ReLU", "Linear" }, mode)
  end
  lu.assertEquals(m.output.weight.shape, { tok.size, 16 })
  local both = m:inputs(m:questions(tok, { "what is a ?" }))
  lu.assertNotEquals(values(m(both, "supervised")), values(m(both, "rl"))) -- heads of their own
  lu.assertErrorMsgContains('joint: unknown mode "other"; there are: supervised, rl', m.forward, m, both, "other")
  lu.assertErrorMsgContains('unknown mode', m.forward, m, both)
end

function TestJoint.test_a_score_is_that_of_the_head_on_the_first_token()
  local m = model()
  local questions, answers = m:questions(tok, { "what is a ?", "a" }), { { 9 }, { 10, 11 } }
  local batch = m:inputs(questions, answers)
  lu.assertEquals(batch.token_type_ids:tolist()[2], { 0, 0, 0, 1, 1, 0, 0 })
  local first = m.encoder:forward(batch):select(2, 1)
  local want = m.output(m.heads.rl(first))
  lu.assertEquals(values(m(batch, "rl")), values(want))
end

function TestJoint.test_what_is_no_encoder_is_refused()
  lu.assertErrorMsgContains("the encoder is a table", joint.new, {}, { stop = 3 })
  local causal = peri.models.llama.new { model_type = "llama", vocab_size = 9, hidden_size = 8, intermediate_size = 8,
    num_hidden_layers = 1, num_attention_heads = 1 }
  lu.assertErrorMsgContains("the encoder is a llama", joint.new, causal, { stop = 3 })
  lu.assertErrorMsgContains("stop is 99, there are 13 tokens", joint.new, encoder(), { stop = 99 })
  lu.assertErrorMsgContains("longest is 24; the encoder has 48 places", joint.new, encoder(), { stop = 3, longest = 24 })
  lu.assertEquals(joint.new(encoder(), { stop = 3 }).settings.longest, 23)
end

function TestJoint.test_questions_and_answers_are_cut_and_keep_their_ends()
  local m = model()
  local question = m:questions(tok, { ("a "):rep(40) })[1]
  lu.assertEquals(#question, 12)
  lu.assertEquals({ question[1], question[12] }, { tok.cls, tok.sep })
  local answer = m:answers(tok, { ("a "):rep(40), "b" })
  lu.assertEquals({ #answer[1], answer[1][12], answer[2][2] }, { 12, tok.sep, tok.sep })
end

-- With a mask the place that is asked for is there; the whole room can be used.
function TestJoint.test_the_mask_stands_where_the_next_token_will()
  peri.seed(1)
  local m = joint.new(encoder(), { stop = tok.sep, pad = tok.pad, mask = tok.mask }):eval()
  local batch = m:inputs(m:questions(tok, { "a" }), { { 10 } })
  lu.assertEquals(batch.ids:tolist(), { { tok.cls, 9, tok.sep, 10, tok.mask } })
  lu.assertEquals(batch.token_type_ids:tolist(), { { 0, 0, 0, 1, 1 } })
  local out = m:generate(m:questions(tok, { ("a "):rep(99) }), { seed = 1, top_k = 0 })
  lu.assertTrue(#out.tokens[1] <= 23)
end

-- Every answer is what it is when the question is asked alone, drawn or not.
function TestJoint.test_an_answer_does_not_depend_on_those_beside_it()
  local m = model(3)
  local questions = m:questions(tok, { "what is a ?", "b", "what is a ?", "c of d", "b" })
  for _, how in ipairs { { greedy = true }, { seed = 5, top_k = 3 }, { seed = 5, top_k = 0, temperature = 0.7 } } do
    for _, mode in ipairs(joint.modes) do
      how.mode, how.max_new_tokens = mode, 6
      local all, few = m:generate(questions, how), m:generate({ questions[1], questions[2] }, how)
      for i = 1, 2 do lu.assertEquals(all.tokens[i], few.tokens[i]) end
      if how.greedy then lu.assertEquals(all.tokens[1], all.tokens[3]) end
      for i, ids in ipairs(all.tokens) do
        lu.assertEquals(all.ended[i], ids[#ids] == tok.sep)
        lu.assertTrue(all.ended[i] or #ids == 6)
        lu.assertEquals(#all.logprobs[i], #ids)
      end
    end
  end
end

function TestJoint.test_a_text_is_answered_with_a_text()
  local m = model(3)
  local text = m:reply(tok, "what is a ?", { mode = "rl", greedy = true, max_new_tokens = 4 })
  lu.assertEquals(m:reply(tok, { "what is a ?" }, { mode = "rl", greedy = true, max_new_tokens = 4 }), { text })
  lu.assertErrorMsgContains('mode is "other", expected one of "supervised", "rl"', m.reply, m, tok, "a", { mode = "other" })
end

function TestJoint.test_a_folder_gives_back_the_same_answers()
  for _, more in ipairs { {}, { architectures = { "BertModel" } }, { architectures = { "BertForMaskedLM" } } } do
    local m, to = model(4, more), scratch.folder()
    assert(m:save(to, tok))
    local again, words = assert(joint.load(to)), assert(peri.tokenizer.load(to))
    local batch = again:inputs(again:questions(words, { "what is a ?" }))
    for _, mode in ipairs(joint.modes) do lu.assertEquals(values(again(batch, mode)), values(m(batch, mode))) end
    lu.assertEquals(again.settings, m.settings)
    lu.assertFalse(again.training)
    local path = to .. "/joint.json"
    assert(peri.files.write(path, '{"stop": 3, "wide": 4}'))
    local none, why = joint.load(to)
    lu.assertNil(none)
    lu.assertStrContains(why, "wide")
    peri.files.remove_tree(to)
  end
  local none, why = joint.load "/nowhere"
  lu.assertNil(none)
  lu.assertStrContains(why, "/nowhere/joint.json")
end

-- ---- the trainer ----

local function right(row, text) return text == row.answer and 1 or 0 end
-- A reward with something to tell apart where a model knows nothing.
local function letters(_, text) return select(2, text:gsub("[ab]", "")) / 4 end

local function stepper(m, more)
  local opts = { model = m, tokenizer = tok, rows = rows, reward = letters, optimizer = optim.AdamW(m, { lr = 3e-3 }),
    batch_size = 3, group = 4, top_k = 5, temperature = 0.8, max_new_tokens = 5 }
  for k, v in pairs(more or {}) do opts[k] = v end
  return algo.joint.new(opts)
end

-- The loss by hand, token by token, of the answers that the step samples.
local function by_hand(m, s, weight)
  local taken, first, policy, n, count = s:take(3), 0, 0, 0, 0
  local questions = {}
  for _, unit in ipairs(taken) do
    for t, id in ipairs(unit.answer) do
      local scores = m(m:inputs({ unit.question }, { table.move(unit.answer, 1, t - 1, 1, {}) }), "supervised")
      first, n = first - scores:log_softmax(-1):tolist()[1][id + 1], n + 1
    end
    for _ = 1, 4 do questions[#questions + 1] = unit.question end
  end
  local out = m:generate(questions, { mode = "rl", temperature = 0.8, top_k = 5, max_new_tokens = 5 })
  for g = 1, #questions, 4 do
    local rewards, mean, spread = {}, 0, 0
    for i = g, g + 3 do
      local ids = out.tokens[i]
      rewards[i] = letters(nil, tok:decode(out.ended[i] and table.move(ids, 1, #ids - 1, 1, {}) or ids))
      mean = mean + rewards[i] / 4
    end
    for i = g, g + 3 do spread = spread + (rewards[i] - mean) ^ 2 / 3 end
    for i = g, g + 3 do
      for t, id in ipairs(out.tokens[i]) do
        local scores = m(m:inputs({ questions[i] }, { table.move(out.tokens[i], 1, t - 1, 1, {}) }), "rl"):tolist()[1]
        local sorted, sum = table.move(scores, 1, #scores, 1, {}), 0
        table.sort(sorted, function (a, b) return a > b end)
        for k = 1, 5 do sum = sum + math.exp(sorted[k] / 0.8) end -- what top_k leaves
        policy = policy - (rewards[i] - mean) / (math.sqrt(spread) + 1e-4) * (scores[id + 1] / 0.8 - math.log(sum))
        count = count + 1
      end
    end
  end
  return first / n + weight * policy / count
end

function TestJoint.test_the_loss_is_cross_entropy_and_weighted_policy_gradient()
  for _, weight in ipairs { 0, 0.5, 2 } do
    local m = model(7)
    peri.seed(11)
    local want = by_hand(m, stepper(m, { weight = weight }), weight)
    peri.seed(11)
    local metrics = stepper(m, { weight = weight }):step()
    lu.assertAlmostEquals(metrics.loss, want, 2e-5)
    lu.assertAlmostEquals(metrics.loss, metrics.loss_supervised + weight * (metrics.loss_rl or 0), 1e-6)
    lu.assertEquals(metrics.reward ~= nil, weight > 0)
  end
end

-- A head learns by its own loss; encoder and output by both.
function TestJoint.test_a_weight_that_is_set_later_is_held_to_its_rule()
  local s = stepper(model())
  for _, bad in ipairs { 0 / 0, -1, "half", math.huge } do
    s.weight = bad
    lu.assertErrorMsgContains("joint: weight is ", s.step, s)
    lu.assertEquals(s.at, 0)
  end
  s.weight = 0.25
  s:step()
end

function TestJoint.test_rows_without_an_answer_move_the_policy_alone()
  local asked = { { prompt = "what is a ?" }, { prompt = "b" } }
  local m = model(7)
  local before = values(m.heads.supervised:parameters()[1]:clone())
  local policy = values(m.heads.rl:parameters()[1]:clone())
  stepper(m, { rows = asked, optimizer = optim.SGD(m, { lr = 0.1 }) }):step()
  lu.assertEquals(values(m.heads.supervised:parameters()[1]), before)
  lu.assertNotEquals(values(m.heads.rl:parameters()[1]), policy)
  lu.assertErrorMsgContains("there is nothing to learn", stepper, m, { rows = asked, weight = 0 })
end

function TestJoint.test_how_an_update_is_cut_is_a_matter_of_memory()
  local norms = {}
  for i, micro in ipairs { 1, 5, 256 } do
    local s = stepper(model(7), { micro = micro })
    peri.seed(2)
    norms[i] = s:step().grad_norm
  end
  lu.assertAlmostEquals(norms[1], norms[3], 1e-5)
  lu.assertAlmostEquals(norms[2], norms[3], 1e-5)
end

function TestJoint.test_a_state_goes_on_to_the_bit()
  local function run(cut)
    local m = model(7)
    local s = stepper(m)
    peri.seed(2)
    for i = 1, 5 do
      if i == cut then
        local tensors, moments = m:state_dict(), s.optimizer:state_dict()
        local plain, kept, draws = select(2, s.optimizer:state_dict()), s:state(), peri.rng_state()
        local m2 = model(9)
        local s2 = stepper(m2)
        m2:load_state_dict(tensors)
        s2.optimizer:load_state_dict(moments, plain)
        s2:set_state(kept)
        m, s = m2, s2
        peri.set_rng_state(draws)
      end
      s:step()
    end
    return values(m.output.weight)
  end
  lu.assertEquals(run(3), run(0))
end

function TestJoint.test_both_modes_learn_the_answers()
  local m = model(1)
  local function dense(row, text) -- of leading letters
    local n = 0
    while n < #row.answer and row.answer:byte(n + 1) == text:byte(n + 1) do n = n + 1 end
    return n / #row.answer / 2 + right(row, text) / 2
  end
  local s = stepper(m, { reward = dense, batch_size = 4, group = 16, top_k = 0, temperature = 1,
    optimizer = optim.AdamW(m, { lr = 4e-3, weight_decay = 0 }) })
  peri.seed(1)
  for _ = 1, 60 do s:step() end
  m:start_policy()
  lu.assertEquals(values(m.heads.rl:parameters()[1]), values(m.heads.supervised:parameters()[1]))
  for _ = 1, 60 do s:step() end
  for _, mode in ipairs(joint.modes) do
    for _, row in ipairs(rows) do
      lu.assertEquals(m:reply(tok, row.prompt, { mode = mode, greedy = true }), row.answer, mode)
    end
  end
end

function TestJoint.test_a_tokenizer_in_place_of_options_is_told_how_it_is_saved()
  for _, one in ipairs { tok, peri.text.chars "ab", peri.text.words { "a" } } do
    lu.assertErrorMsgContains("which is written by tok:save(folder)", encoder().save, encoder(), "/nowhere", one)
  end
end

function TestJoint.test_what_cannot_be_learned_from_is_refused()
  local m = model()
  lu.assertErrorMsgContains("the model is none of models.joint", stepper, encoder())
  lu.assertErrorMsgContains("there are no rows", stepper, m, { rows = {} })
  lu.assertErrorMsgContains("row 1 has no prompt", stepper, m, { rows = { { answer = "a" } } })
  lu.assertErrorMsgContains("row 1: the answer is a number", stepper, m, { rows = { { prompt = "a", answer = 3 } } })
  lu.assertErrorMsgContains("row 1 has a completion and no answer", stepper, m, { rows = { { prompt = "a",
    completion = "b" } } })
  lu.assertErrorMsgContains("row 2 has messages and no answer", stepper, m, { rows = { rows[1], { prompt = "a",
    messages = {} } } })
  local few = joint.new(encoder(), { stop = tok.sep, pad = tok.pad, vocab = 10 }):eval()
  lu.assertErrorMsgContains("joint: answer 1 has the token 10, there are 10", stepper, few)
  local small = joint.new(encoder { vocab_size = 8 }, { stop = tok.sep, pad = tok.pad })
  lu.assertErrorMsgContains("joint: question 1 has the token 8, there are 8", small.reply, small, tok, "what ?")
  lu.assertErrorMsgContains('unknown option "weigth"', stepper, m, { weigth = 1 })
  local s = stepper(m, { reward = function () return "good" end })
  local used = s.used
  lu.assertErrorMsgContains("expected a number", s.step, s)
  lu.assertEquals(s.used, used) -- the step was none
end

os.exit(lu.LuaUnit.run())
