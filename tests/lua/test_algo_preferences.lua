-- Steppers that learn from preferences, labels and steps: what the reference is, how an update is cut, which rows are read.
local lu = require "luaunit"
local peri = require "perilune"
local optim = require "perilune.optim"
local rows_of = require "perilune.data.rows"
local loss = require "perilune.loss"

local tok = peri.text.chars "abcdefg .\n"

local function policy(dtype)
  peri.seed(3)
  local model = peri.models.llama.new({ model_type = "llama", vocab_size = tok.size, hidden_size = 16,
    intermediate_size = 24, num_hidden_layers = 1, num_attention_heads = 2, max_position_embeddings = 64,
    eos_token_id = tok.eos, pad_token_id = tok.pad }, { std = 0.3 })
  return dtype and model:to(dtype) or model
end

local function scorer(dtype)
  local model = peri.models.scorer(policy(), { std = 0.5 })
  return dtype and model:to(dtype) or model
end

local PAIRS = {
  { prompt = "ab", chosen = "cd", rejected = "efg" }, { prompt = "abc", chosen = "a", rejected = "bb" },
  { prompt = "g", chosen = "gfedc", rejected = "a" }, { prompt = "dd", chosen = "ee", rejected = "ff" },
  { prompt = "fa", chosen = "bcd.", rejected = "b" },
}
local LABELS = {
  { prompt = "ab", completion = "cd", label = true }, { prompt = "abc", completion = "a", label = false },
  { prompt = "g", completion = "gfedc", label = true }, { prompt = "dd", completion = "ee", label = false },
  { prompt = "fa", completion = "bcd.", label = true },
}
local STEPS = {
  { prompt = "ab", completions = { "cd", "e" }, labels = { true, false } },
  { prompt = "abc", completions = { "a" }, labels = { false } },
  { prompt = "g", completions = { "gf", "ed", "c" }, labels = { true, true, false } },
  { prompt = "dd", completions = { "ee", "f" }, labels = { true, true } },
}

-- Every stepper with every kind of rows: name -> fn(options) -> stepper, over its own model of a dtype.
local makers = {}

local function maker(name, model_of, rows, fixed)
  makers[name] = function (o, dtype)
    local model = model_of(dtype)
    local how = { model = model, tokenizer = tok, rows = rows, optimizer = optim.SGD(model:parameters(), { lr = 0.1 }),
      batch_size = 4 }
    for _, t in ipairs { fixed or {}, o or {} } do for k, v in pairs(t) do how[k] = v end end
    return peri.algo[name:match "^[%l_]+"].new(how)
  end
end

for _, name in ipairs(loss.preference_names) do
  maker("dpo " .. name, policy, PAIRS, { loss = name, label_smoothing = name == "exo" and 0.1 or nil })
end
maker("dpo kto", policy, LABELS, { loss = "kto", desirable_weight = 1.2 })
maker("reward_model pairs", scorer, PAIRS, { center = 0.1 })
for _, level in ipairs { "answer", "token", "last" } do
  maker("reward_model " .. level, scorer, LABELS, { level = level })
end
maker("prm all", scorer, STEPS)
maker("prm last", scorer, STEPS, { last_only = true })

local function parameters(stepper)
  local out = {}
  for i, p in ipairs(stepper.model:parameters()) do out[i] = p:detach():clone() end
  return out
end

TestEveryStepper = {}

-- Gradients are the same bit for bit; what is logged is a sum in another order, equal but for its rounding.
function TestEveryStepper.test_how_an_update_is_cut_changes_no_gradient()
  for name, make in pairs(makers) do
    for dtype, tolerance in pairs { f32 = 1e-5, f64 = 1e-12 } do
      local want, metrics
      for _, micro in ipairs { 4, 1, 3 } do
        local stepper = make({ micro = micro }, dtype == "f64" and "f64" or nil)
        local row = { stepper:step(), stepper:step() }
        local got = parameters(stepper)
        if not want then want, metrics = got, row end
        for i, p in ipairs(got) do
          lu.assertEquals(p:bytes(), want[i]:bytes(), ("%s, %s, %d"):format(name, dtype, micro))
        end
        for k, v in pairs(metrics[2]) do lu.assertAlmostEquals(row[2][k], v, tolerance * 100, name .. " " .. k) end
      end
    end
  end
end

function TestEveryStepper.test_it_learns_its_rows()
  for name, make in pairs(makers) do
    local stepper = make { batch_size = 5 }
    local first = stepper:step()
    for _ = 1, 30 do stepper:step() end
    local last = stepper:step()
    lu.assertTrue(last.loss < first.loss, name)
    for k, v in pairs(last) do lu.assertTrue(v == v and math.abs(v) < math.huge, name .. " " .. k) end
    lu.assertEquals(last.step, 32, name)
    lu.assertTrue(last.num_tokens > first.num_tokens and last.epoch > first.epoch, name)
  end
end

function TestEveryStepper.test_resumed_it_goes_on_to_the_byte()
  for name, make in pairs(makers) do
    local whole = make {}
    for _ = 1, 2 do whole:step() end
    local kept, at = parameters(whole), whole:state()
    at = peri.json.decode(peri.json.encode(at))
    local a = { whole:step(), whole:step() }
    local other = make {}
    for i, p in ipairs(other.model:parameters()) do p:detach():copy_(kept[i]) end
    other:set_state(at)
    local b = { other:step(), other:step() }
    lu.assertEquals(b, a, name)
    for i, p in ipairs(parameters(other)) do
      lu.assertEquals(p:bytes(), whole.model:parameters()[i]:detach():bytes(), name)
    end
  end
end

function TestEveryStepper.test_the_probe_changes_no_bit_and_says_what_does_not_fit()
  for name, make in pairs(makers) do
    local a, b = make { probe = true }, make { probe = false }
    lu.assertEquals(a:step(), b:step(), name)
    lu.assertEquals(a:step(), b:step(), name)
    for i, p in ipairs(parameters(a)) do lu.assertEquals(p:bytes(), b.model:parameters()[i]:detach():bytes(), name) end
  end
end

function TestEveryStepper.test_rows_of_another_format_are_refused_by_name()
  for _, make in pairs(makers) do
    lu.assertErrorMsgContains("is of the format language_modeling", make, { rows = { { text = "ab" } } })
    lu.assertErrorMsgContains("row 1: a row with the keys x", make, { rows = { { x = 1 } } })
    lu.assertErrorMsgContains("no row has anything to learn", make, { rows = {} })
    lu.assertErrorMsgContains('unknown option "batchsize"; did you mean "batch_size"?', make, { batchsize = 1 })
    local _, message = pcall(make, { rows = { { x = 1 } }, bad = "skip" })
    lu.assertStrContains(message, "1 cannot be read (row 1: a row with the keys x")
  end
end

TestDpo = {}

local function lora_dpo(o)
  local model = policy()
  local adapter = peri.peft.lora(model, { r = 2 })
  local how = { model = model, adapter = adapter, tokenizer = tok, rows = PAIRS, batch_size = 3,
    optimizer = optim.SGD(adapter:parameters(), { lr = 0.5 }) }
  for k, v in pairs(o or {}) do how[k] = v end
  return peri.algo.dpo.new(how), adapter
end

function TestDpo.test_at_the_reference_the_loss_is_ln_2_and_every_reward_0()
  for _, stepper in ipairs { (lora_dpo()), makers["dpo dpo"] {} } do
    local row = stepper:step()
    lu.assertAlmostEquals(row.loss, math.log(2), 1e-6)
    lu.assertEquals({ row["rewards/chosen"], row["rewards/rejected"], row["rewards/margins"] }, { 0, 0, 0 })
    lu.assertTrue(stepper:step()["rewards/margins"] ~= 0)
  end
end

-- An adapter that is off, a copy of the model, and what the model said before its first update are one reference.
function TestDpo.test_the_three_references_are_one()
  local function run(o)
    local stepper = makers["dpo dpo"](o)
    return { stepper:step(), stepper:step(), stepper:step() }
  end
  lu.assertEquals(run { reference = policy() }, run {})
  local base = policy()
  local a, b = lora_dpo(), lora_dpo()
  b.adapter, b.reference = nil, base
  lu.assertEquals({ b:step(), b:step(), b:step() }, { a:step(), a:step(), a:step() })
end

function TestDpo.test_the_reference_is_asked_once_a_row()
  local stepper, adapter = lora_dpo()
  local count, real = 0, adapter.disabled
  function adapter.disabled(...)
    count = count + 1
    return real(...)
  end
  for _ = 1, 20 do stepper:step() end
  lu.assertTrue(count <= 4, tostring(count)) -- the probe, and at most one for each update of the first epoch
end

function TestDpo.test_a_state_without_what_the_reference_said_is_refused()
  local stepper = makers["dpo dpo"] {}
  stepper:step()
  local s = stepper:state()
  lu.assertEquals(#s.known.first, #PAIRS)
  s.known.first[2] = nil
  local other = makers["dpo dpo"] {}
  lu.assertErrorMsgContains("what the reference says", other.set_state, other, s)
  s = stepper:state()
  s.known.at[1] = 9
  lu.assertErrorMsgContains("is of row 9 of 5", other.set_state, other, s)
  s = stepper:state()
  s.known = { at = {}, first = {}, second = {} }
  other:set_state(s)
  lu.assertErrorMsgContains("the state lacks what the model said before its first update", other.step, other)
end

function TestDpo.test_settings_that_do_not_go_together_are_refused()
  local function fails(message, name, o) lu.assertErrorMsgContains(message, makers[name], o) end
  fails('loss "simpo" has no reference: leave out reference', "dpo simpo", { reference = policy() })
  fails('loss "dpo" knows no desirable_weight', "dpo dpo", { desirable_weight = 2 })
  fails('loss "kto" knows no label_smoothing', "dpo kto", { label_smoothing = 0.1 })
  fails('loss "hinge" knows no label_smoothing', "dpo hinge", { label_smoothing = 0.1 })
  fails("gives a number for each token", "dpo dpo", { model = scorer() })
  fails('loss "kto" needs rows of more than one prompt', "dpo kto", { rows = { LABELS[1], LABELS[1] } })
  fails('loss is "sigmoid"', "dpo dpo", { loss = "sigmoid" })
  fails("is of the format preference, dpo reads unpaired_preference", "dpo kto", { rows = PAIRS })
  fails("give an adapter or a reference, not both", "dpo dpo", { adapter = select(2, lora_dpo()), reference = policy() })
end

-- What loss.preference and token_logprobs say of each row by itself.
function TestDpo.test_it_is_the_loss_of_whole_answers()
  local model = policy()
  local reference = policy()
  for _, p in ipairs(reference:parameters()) do p:detach():mul_(0.9) end
  local sums = { chosen = {}, rejected = {}, ref_chosen = {}, ref_rejected = {} }
  for i, row in ipairs(PAIRS) do
    local e = rows_of.encode(tok, row)
    for _, name in ipairs { "chosen", "rejected" } do
      local ids = table.move(e.prompt, 1, #e.prompt, 1, {})
      table.move(e[name], 1, #e[name], #ids + 1, ids)
      local t = peri.tensor({ ids }, "i64")
      sums[name][i] = model:token_logprobs(t, #e.prompt + 1):sum():item()
      sums["ref_" .. name][i] = reference:token_logprobs(t, #e.prompt + 1):sum():item()
    end
  end
  local function f(t) return peri.tensor(t, "f32") end
  local want = loss.preference(f(sums.chosen), f(sums.rejected), f(sums.ref_chosen), f(sums.ref_rejected)):item()
  local row = makers["dpo dpo"] { reference = reference, batch_size = 5 }:step()
  lu.assertAlmostEquals(row.loss, want, 1e-5)
  local mean = 0
  for _, v in ipairs(sums.chosen) do mean = mean + v / 5 end
  lu.assertAlmostEquals(row["logps/chosen"], mean, 1e-4)
end

TestRows = {}

function TestRows.test_what_is_left_out_and_what_nobody_reads_is_counted()
  local list = table.move(PAIRS, 1, 5, 1, {})
  list[6] = { prompt = "a", chosen = "b", rejected = "b" }
  list[7] = { prompt = ("abc "):rep(10), chosen = "d", rejected = "e" }
  list[8] = { prompt = "a", chosen = ("g"):rep(30), rejected = "e", source = "web", score = 3 }
  list[9] = { prompt = "a", chosen = 3, rejected = "e" }
  local report = makers["dpo dpo"] { rows = list, max_length = 20, bad = "skip" }.report
  lu.assertEquals({ report.rows, report.kept, report.equal, report.empty, report.cut, report.unread, report.dropped },
    { 9, 6, 1, 1, 1, 1, 3 })
  lu.assertEquals(report.ignored, { source = 1, score = 1 })
  lu.assertStrContains(report.text, "6 of 9 rows are used; 1 have no answer within 20 tokens (the first is row 7); "
    .. "1 have two equal answers (the first is row 6); 1 cannot be read (row 9: ")
  lu.assertStrContains(report.text, "nobody reads the columns score (1), source (1)")
end

function TestRows.test_labels_and_margins_of_another_type_are_refused()
  local function fails(message, name, row) lu.assertErrorMsgContains(message, makers[name], { rows = { row } }) end
  fails("label is good, expected true or false", "dpo kto", { prompt = "a", completion = "b", label = "good" })
  fails("label 1 is 0.5, expected true or false", "prm all", { prompt = "a", completions = { "b" }, labels = { 0.5 } })
  fails("1 completions and 2 labels", "prm all", { prompt = "a", completions = { "b" }, labels = { true, false } })
  fails("margin is a string", "reward_model pairs", { prompt = "a", chosen = "b", rejected = "c", margin = "2" })
  lu.assertErrorMsgContains("row 2 is of the format unpaired_preference, the rows before are of preference",
    makers["reward_model pairs"], { rows = { PAIRS[1], LABELS[1] } })
end

-- ShareGPT's columns, as LLaMA-Factory has them: the conversation is the prompt, each answer one message.
function TestRows.test_a_conversation_with_two_answers_is_a_preference()
  local row = rows_of.normal { conversations = { { from = "human", value = "a?" } },
    chosen = { from = "gpt", value = "b" }, rejected = { from = "gpt", value = "c" } }
  lu.assertEquals({ row.prompt[1].role, row.prompt[1].content }, { "user", "a?" })
  lu.assertEquals({ #row.chosen, row.chosen[1].role, row.chosen[1].content }, { 1, "assistant", "b" })
  lu.assertEquals({ rows_of.kind(row) }, { "preference", true })
  lu.assertNil(row.conversations)
end

function TestRows.test_published_preferences_are_read()
  local folder = "../shared/data/preferences/"
  lu.skipIf(not peri.files.exists(folder), "there is no " .. folder)
  local chars = {}
  for i = 32, 126 do chars[#chars + 1] = string.char(i) end
  local all = assert(peri.json.decode(assert(peri.files.read(folder .. "dpo_en_demo.json"))))
  lu.assertEquals(#all, 300)
  for i, row in ipairs(all) do
    lu.assertEquals({ rows_of.kind(row) }, { "preference", true }, tostring(i))
    lu.assertEquals(rows_of.normal(row).chosen[1].role, "assistant")
  end
end

TestRewardModel = {}

function TestRewardModel.test_it_ranks_what_it_was_taught_and_evaluates_others()
  local model = scorer()
  local stepper = peri.algo.reward_model.new { model = model, tokenizer = tok, rows = PAIRS, batch_size = 5,
    optimizer = optim.AdamW(model:parameters(), { lr = 1e-2 }) }
  for _ = 1, 40 do stepper:step() end
  local row = stepper:evaluate(PAIRS)
  lu.assertEquals(row.accuracy, 1)
  lu.assertTrue(row.margin > 0 and row.min_reward < row.max_reward)
  lu.assertFalse(pcall(stepper.evaluate, stepper, LABELS))
  -- the same by hand
  local e = rows_of.encode(tok, PAIRS[1])
  local function reward(ids)
    local whole = table.move(ids, 1, #ids, #e.prompt + 1, table.move(e.prompt, 1, #e.prompt, 1, {}))
    return model:last(peri.tensor({ whole }, "i64")):item()
  end
  lu.assertAlmostEquals(stepper:evaluate({ PAIRS[1] }).margin, reward(e.chosen) - reward(e.rejected), 1e-5)
end

function TestRewardModel.test_settings_of_the_other_kind_of_rows_are_refused()
  lu.assertErrorMsgContains("rows of pairs know no level", makers["reward_model pairs"], { level = "last" })
  lu.assertErrorMsgContains("rows of labels know no center", makers["reward_model last"], { center = 1 })
  lu.assertErrorMsgContains("the model is no models.scorer", makers["reward_model pairs"], { model = policy() })
  lu.assertErrorMsgContains("the model is no models.scorer", makers["prm all"], { model = policy() })
end

TestPrm = {}

function TestPrm.test_labels_stand_at_the_last_token_of_each_step()
  local stepper = makers["prm all"] {}
  local u = stepper.units[3] -- g | gf \n ed \n c \n
  local first = #tok:encode "g"
  lu.assertEquals(u.ends, { first + 3, first + 6, first + 8 })
  lu.assertEquals(u.labels, { 1, 1, 0 })
  for _, at in ipairs(u.ends) do lu.assertEquals(tok:decode { u.ids[at] }, "\n") end
  lu.assertEquals(makers["prm last"] {}.units[3].labels, { 0 })
  lu.assertEquals(makers["prm all"] { separator = "" }.units[3].ends, { first + 2, first + 4, first + 5 })
  -- steps behind the end are not learned
  local cut = makers["prm all"] { max_length = first + 7 }
  lu.assertEquals(cut.units[3].ends, { first + 3, first + 6 })
  lu.assertEquals(cut.report.cut, 1)
end

function TestPrm.test_it_learns_steps_and_scores_others()
  local model = scorer()
  local stepper = peri.algo.prm.new { model = model, tokenizer = tok, rows = STEPS, batch_size = 4,
    optimizer = optim.AdamW(model:parameters(), { lr = 1e-2 }) }
  for _ = 1, 60 do stepper:step() end
  lu.assertEquals(stepper:step().accuracy, 1)
  local scores = peri.algo.prm.scores(model, tok, STEPS, { micro = 3 })
  for i, row in ipairs(STEPS) do
    lu.assertEquals(#scores[i], #row.completions)
    for k, p in ipairs(scores[i]) do lu.assertEquals(p > 0.5, row.labels[k]) end
  end
  lu.assertErrorMsgContains("row 1 has no prompt with completions", peri.algo.prm.scores, model, tok, { { prompt = "a" } })
end

os.exit(lu.LuaUnit.run())
