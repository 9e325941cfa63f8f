-- algo.grpo: every preset, off-policy updates, dynamic sampling, references, replay; and the faults that users of other
-- systems report, each as something that cannot happen here.
local lu = require "luaunit"
local peri = require "perilune"
local models, optim, peft, rl = require "perilune.models", require "perilune.optim", require "perilune.peft",
  require "perilune.rl"
local grpo = require "perilune.algo.grpo"
local steppers = require "steppers"

local function bytes(model)
  local list = {}
  for i, p in ipairs(model:parameters()) do list[i] = p:bytes() end
  return table.concat(list)
end

local function agrees(metrics, what)
  lu.assertEquals(metrics["sampling/sampling_logp_difference/max"], 0, what)
  lu.assertEquals(metrics["sampling/sampling_logp_difference/mean"], 0, what)
  lu.assertEquals(metrics["sampling/importance_sampling_ratio/min"], 1, what)
  lu.assertEquals(metrics["sampling/importance_sampling_ratio/max"], 1, what)
  lu.assertEquals(metrics.mismatch_kl, 0, what)
end

-- Weights after n updates, and their metrics.
local function run(name, n, more)
  local stepper, model = steppers.make(name, more)
  peri.seed(7)
  local rows = {}
  for i = 1, n do rows[i] = stepper:step() end
  return bytes(model), rows, stepper, model
end

TestPresets = {}

function TestPresets.test_each_agrees_with_its_sampler_and_no_micro_batch_changes_a_bit()
  for name in pairs(rl.presets) do
    local whole, rows = run("preset-" .. name, 2)
    agrees(rows[1], name)
    agrees(rows[2], name)
    lu.assertTrue(rows[2].grad_norm > 0 and rows[2].grad_norm < math.huge, name)
    for _, micro in ipairs { 1, 3 } do
      lu.assertTrue(run("preset-" .. name, 2, { micro = micro }) == whole, name .. " " .. micro)
    end
  end
end

-- Two updates, a checkpoint of everything, and two more on objects made anew: as four in one go.
function TestPresets.test_each_goes_on_from_a_checkpoint_to_the_byte()
  for name in pairs(rl.presets) do
    local whole, rows = run("preset-" .. name, 4)
    local _, _, stepper, model = run("preset-" .. name, 2)
    local tensors, plain = stepper.optimizer:state_dict()
    local state, rng = peri.json.decode(peri.json.encode(stepper:state())), peri.rng_state()
    local kept, moments = {}, {}
    for k, t in pairs(model:state_dict()) do kept[k] = t:clone() end
    for k, t in pairs(tensors) do moments[k] = t:clone() end
    local other, again = steppers.make("preset-" .. name)
    again:load_state_dict(kept)
    other.optimizer:load_state_dict(moments, plain)
    other:set_state(state)
    peri.set_rng_state(rng)
    for i = 3, 4 do lu.assertEquals(other:step(), rows[i], name) end
    lu.assertTrue(bytes(again) == whole, name)
  end
end

function TestPresets.test_options_that_are_given_go_before()
  local stepper = steppers.make("preset-dapo", { clip_high = 0.5 })
  lu.assertEquals({ stepper.clip, stepper.clip_high, stepper.reduce, stepper.mask_truncated }, { 0.2, 0.5, "token", true })
  lu.assertEquals(steppers.make("grpo").clip_high, 0.28)
  lu.assertNil(steppers.make("preset-bnpo").clip_high) -- as high as low
  lu.assertErrorMsgContains('preset is "dopa"', steppers.make, "grpo", { preset = "dopa" })
end

TestOffPolicy = {}

function TestOffPolicy.test_later_steps_of_an_update_keep_what_was_sampled()
  local steps = 0
  local stepper, model = steppers.make("grpo", { mini_batches = 2, iterations = 3 })
  local optimizer = stepper.optimizer
  local step = optimizer.step
  function optimizer.step(...) steps = steps + 1 return step(...) end
  local row = stepper:step()
  agrees(row)
  lu.assertEquals({ steps, row.step, stepper.at }, { 6, 1, 1 })
  lu.assertTrue(row["ratio/max"] > 1 and row["ratio/min"] < 1) -- the later ones are off-policy
  local micro = select(2, steppers.make("grpo"))
  lu.assertFalse(bytes(model) == bytes(micro))
  lu.assertErrorMsgContains("mini_batches is 9, expected at most prompts, which is 4", steppers.make, "grpo",
    { mini_batches = 9 })
end

-- With one step an update it is the gradient of the plain loop.
function TestOffPolicy.test_micro_batches_change_nothing_there_either()
  local whole = run("grpo-everything", 2)
  for _, micro in ipairs { 1, 3 } do lu.assertTrue(run("grpo-everything", 2, { micro = micro }) == whole) end
end

TestDynamic = {}

function TestDynamic.test_it_samples_until_groups_have_a_spread()
  local calls = 0
  local function reward(_, text) -- half of the groups are alike
    calls = calls + 1
    return (calls - 1) // 4 % 2 == 0 and 1 or #text % 2
  end
  local _, rows = run("grpo", 1, { dynamic = true, reward = reward, prompts = 3 })
  lu.assertEquals(rows[1].frac_reward_zero_std, 0)
  lu.assertTrue(rows[1]["sampling/draws"] > 1)
  lu.assertTrue(rows[1]["sampling/kept_ratio"] < 1)
end

function TestDynamic.test_a_budget_that_finds_nothing_is_said()
  local _, rows, stepper = run("grpo", 2, { dynamic = true, draws = 3, reward = function () return 1 end })
  lu.assertEquals({ rows[2]["sampling/draws"], rows[2]["sampling/missing"], rows[2].no_op }, { 3, 4, 2 })
  lu.assertEquals({ rows[2].frac_reward_zero_std, rows[2].grad_norm }, { 1, 0 })
  lu.assertTrue(stepper.seen > 0)
end

TestReferences = {}

-- The base of an adapter is the reference that a second model would be, to the bit.
function TestReferences.test_the_base_of_an_adapter_needs_no_second_model()
  local results = {}
  for i, second in ipairs { false, true } do
    local model = steppers.model(3)
    local copy = model:copy()
    peri.seed(5)
    local adapter = peft.lora(model, { r = 2 })
    local stepper = steppers.make("grpo", { model = model, optimizer = optim.AdamW(adapter:parameters(), { lr = 1e-2 }),
      beta = 0.1, adapter = not second and adapter or nil, reference = second and copy or nil })
    peri.seed(7)
    local rows = { stepper:step(), stepper:step(), stepper:step() }
    lu.assertEquals(rows[1].kl, 0)
    lu.assertTrue(rows[3].kl > 0)
    results[i] = { rows, bytes(adapter) }
  end
  lu.assertEquals(results[1], results[2])
end

function TestReferences.test_a_reference_can_follow_the_policy()
  local _, rows = run("grpo", 6, { beta = 0.1, reference = "copy", reference_every = 2 })
  local zero = {}
  for i, row in ipairs(rows) do zero[i] = row.kl == 0 end
  lu.assertEquals(zero, { true, false, true, false, true, false })
  local refused = { { beta = 0.1 }, "needs a reference model", { reward_beta = 0.1 }, "reward_beta > 0 needs",
    { reference_every = 2 }, "reference_every needs a reference", { adapter = {} }, "none of perilune.peft",
    { adapter = peri.peft.lora(steppers.model(6), { r = 2 }) }, "the adapter is on another model",
    { group = 1 }, 'group is 1: estimator "grpo" compares', { group = 1, preset = "dr_grpo" }, 'estimator "dr_grpo"' }
  for i = 1, #refused, 2 do lu.assertErrorMsgContains(refused[i + 1], steppers.make, "grpo", refused[i]) end
end

TestSwitches = {}

function TestSwitches.test_truncated_importance_sampling_changes_nothing_on_policy()
  local plain = run("grpo", 3)
  for _, mode in ipairs { "token_truncate", "token_mask", "sequence_truncate", "sequence_mask" } do
    local with, rows = run("grpo", 3, { importance = { mode = mode } })
    lu.assertTrue(with == plain, mode)
    lu.assertEquals({ rows[1]["importance/masked"], rows[1]["importance/held"] }, { 0, 0 })
  end
end

-- A mixture of experts; places that its routers chose are counted.
local function mixture(more)
  local model = assert(models.load "tests/data/hf_tiny/deepseek_v3")
  local tok = { eos = 3, pad = 0, decode = function (_, ids) return table.concat(ids, " ") end,
    encode_batch = function (_, list)
      local out = {}
      for i, text in ipairs(list) do out[i] = { text:byte(1, -1) } end
      return out
    end }
  local opts = { model = model, tokenizer = tok, rows = { { prompt = "\5\9\17" }, { prompt = "\21\4" } },
    reward = function (_, _, tokens) return tokens[1] % 7 + #tokens end, prompts = 2, group = 3, max_new_tokens = 4,
    optimizer = optim.SGD(model:parameters(), { lr = 0.5 }) }
  for k, v in pairs(more) do opts[k] = v end
  local stepper = grpo.new(opts)
  peri.seed(7)
  local rows = { stepper:step(), stepper:step() }
  return bytes(model), rows
end

function TestSwitches.test_routing_replay_changes_nothing_on_policy()
  local plain, rows = mixture {}
  agrees(rows[1])
  local with = mixture { routing_replay = true }
  lu.assertTrue(with == plain)
  lu.assertTrue(mixture { routing_replay = true, micro = 2 } == plain)
end

function TestSwitches.test_routing_replay_holds_the_experts_off_policy()
  local free = mixture { iterations = 3, optimizer = nil }
  local held = mixture { iterations = 3, routing_replay = true }
  lu.assertFalse(free == held)
  lu.assertErrorMsgContains("does not go with shared_prompt", mixture, { routing_replay = true, shared_prompt = true })
end

function TestSwitches.test_the_prompt_read_once_gives_the_same_update()
  local _, plain = run("grpo", 1)
  for _, more in ipairs { {}, { beta = 0.1, reference = "copy", importance = {} } } do
    more.shared_prompt = true
    local _, rows = run("grpo", 1, more)
    agrees(rows[1])
    lu.assertAlmostEquals(rows[1].grad_norm, plain[1].grad_norm, 1e-5)
  end
end

function TestSwitches.test_truncated_answers_can_be_left_out()
  local _, rows, stepper = run("grpo", 1, { mask_truncated = true, max_new_tokens = 1, min_new_tokens = 1 })
  lu.assertEquals({ rows[1]["completions/clipped_ratio"], rows[1].grad_norm, rows[1].no_op }, { 1, 0, 1 })
  lu.assertEquals(stepper.at, 1)
end

function TestSwitches.test_entropy_coefficient_follows_its_target()
  local _, rows = run("grpo", 4, { entropy_target = 100, entropy_coef = 0.01 })
  lu.assertEquals(rows[1].entropy_coef, 0) -- no entropy was measured before
  lu.assertAlmostEquals(rows[2].entropy_coef, 0.015, 1e-9)
  lu.assertAlmostEquals(rows[4].entropy_coef, 0.025, 1e-9)
end

-- What users of other systems report, by their numbers.
TestComplaints = {}

-- Every name that TRL's GRPOTrainer logs of what there is here.
function TestComplaints.test_metrics_have_the_names_of_TRL()
  local _, rows = run("grpo", 2, { beta = 0.1, reference = "copy", entropy_coef = 0.01, entropy_target = 100,
    reward = { { "sevens", steppers.reward } } })
  for _, name in ipairs { "num_tokens", "completions/mean_length", "completions/min_length", "completions/max_length",
    "completions/clipped_ratio", "completions/mean_terminated_length", "completions/min_terminated_length",
    "completions/max_terminated_length", "rewards/sevens/mean", "rewards/sevens/std", "reward", "reward_std",
    "frac_reward_zero_std", "entropy", "entropy_coef", "policy_loss", "kl", "clip_ratio/low_mean", "clip_ratio/low_min",
    "clip_ratio/high_mean", "clip_ratio/high_max", "clip_ratio/region_mean", "sampling/sampling_logp_difference/mean",
    "sampling/sampling_logp_difference/max", "sampling/importance_sampling_ratio/min", "learning_rate", "grad_norm",
    "sampling/importance_sampling_ratio/mean", "sampling/importance_sampling_ratio/max" } do
    lu.assertEquals(type(rows[2][name]), "number", name)
  end
  lu.assertTrue(rows[2].policy_loss > rows[2].loss)
  _, rows = run("preset-cispo", 1)
  lu.assertEquals(rows[1].cispo_clip_ratio, 0)
end

-- trl#6789, #4159: truncation and temperature. The log-probabilities are of what was drawn from, in both passes.
function TestComplaints.test_truncation_and_temperature_leave_the_ratio_at_one()
  for _, how in ipairs { { top_k = 3 }, { top_p = 0.6 }, { min_p = 0.3 }, { temperature = 0.6 }, { top_p = 0.8,
    temperature = 1.5 }, { repetition_penalty = 1.4 }, { frequency_penalty = 0.7, presence_penalty = 0.2 } } do
    for _, of in ipairs { "renormalised", "full" } do
      how.sampling = of
      local _, rows = run("grpo", 2, how)
      agrees(rows[1])
      agrees(rows[2])
    end
  end
end

-- open-instruct#1473: the gap grows even with a learning rate of 0.
function TestComplaints.test_the_gap_does_not_grow_without_learning()
  local stepper = steppers.make("grpo", { schedule = function () return 0 end })
  for i = 1, 10 do
    local row = stepper:step()
    agrees(row, i)
    lu.assertEquals(row.no_op, i)
  end
end

-- verl#6280: two sizes of micro-batch, and the sampler's, give three log-probabilities.
function TestComplaints.test_sizes_of_passes_do_not_move_the_ratio()
  for _, micro in ipairs { 1, 2, 7, 16 } do
    local _, rows = run("grpo", 2, { micro = micro })
    agrees(rows[1], micro)
    lu.assertEquals(rows[1]["clip_ratio/region_mean"], 0)
  end
end

-- trl#2995, #3021: the loss divided twice, or by the wrong count, under accumulation; the norm of the gradient is the same.
function TestComplaints.test_the_loss_is_divided_once()
  for _, reduce in ipairs { "token", "sequence", "sum", "constant" } do
    local _, whole = run("grpo", 1, { reduce = reduce })
    for _, micro in ipairs { 1, 5 } do
      local _, rows = run("grpo", 1, { reduce = reduce, micro = micro })
      lu.assertEquals(rows[1].grad_norm, whole[1].grad_norm, reduce)
      lu.assertAlmostEquals(rows[1].loss, whole[1].loss, 1e-6, reduce)
    end
  end
end

-- posttrainarena#31: a run whose rewards were all alike was published as trained.
function TestComplaints.test_a_run_without_signal_says_so_at_every_update()
  local model = steppers.model(3)
  local adapter = peft.lora(model, { r = 2 })
  local before = bytes(adapter)
  local stepper = steppers.make("grpo", { model = model, optimizer = optim.AdamW(adapter:parameters(), { lr = 1e-2 }),
    reward = function () return 0.5 end })
  for i = 1, 3 do
    local row = stepper:step()
    lu.assertEquals({ row.no_op, row.frac_reward_zero_std, row.grad_norm }, { i, 1, 0 })
  end
  lu.assertEquals(bytes(adapter), before)
end

-- verl#721: a NaN in one reward or one pass; the update is left out and the weights stay finite.
function TestComplaints.test_what_is_not_finite_is_left_out()
  lu.assertErrorMsgContains("the value is nan", run, "grpo", 1, { reward = function () return 0 / 0 end })
  local stepper, model = steppers.make "grpo"
  stepper:step()
  local before, real = bytes(model), model.token_logprob
  function model.token_logprob(...)
    local logp, entropy = real(...)
    return logp:mul(0 / 0), entropy
  end
  lu.assertEquals(stepper:step().skipped, 1)
  lu.assertEquals(bytes(model), before)
end

-- trl#6533, #2737: rewards of the wrong number, and those that abstain.
function TestComplaints.test_abstaining_is_no_zero_and_nothing_is_broadcast()
  lu.assertErrorMsgContains("reward short", run, "grpo", 1, { reward = { { "short", function () return { 1 } end,
    batch = true } } })
  local _, rows = run("grpo", 1, { reward = function (_, text) return #text > 3 and 1 or nil end })
  lu.assertEquals(rows[1].reward, 1)
  lu.assertEquals(rows[1].grad_norm, 0)
end

-- A reward that cuts the stop token off the ids which it was given: they are its own.
function TestComplaints.test_what_a_reward_does_to_its_ids_is_not_learned()
  local plain = run("reject", 2, { reward = function (_, _, tokens) return #tokens end })
  for _, batch in ipairs { false, true } do
    local function one(_, _, tokens)
      local n = #tokens
      tokens[n], tokens[n + 1], tokens[n + 2] = nil, 3, 3
      return n
    end
    local fn = batch and function (rows, texts, tokens)
      local out = {}
      for i in ipairs(rows) do out[i] = one(rows[i], texts[i], tokens[i]) end
      return out
    end or one
    lu.assertTrue(run("reject", 2, { reward = { { "one", fn, batch = batch } } }) == plain)
  end
  lu.assertErrorMsgContains("reward gone: the value is a tensor that was released", run, "grpo", 1, { reward = { {
    "gone", function (rows)
      local scope <close> = peri.scope() -- luacheck: ignore 211
      return peri.zeros { #rows }
    end, batch = true } } })
end

-- verl#3960: what is trained on is the ids that were sampled, whatever the tokenizer makes of the text.
function TestComplaints.test_nothing_is_tokenised_again()
  local tok = setmetatable({ decode = function () return "?" end }, { __index = steppers.tokenizer })
  local _, rows = run("grpo", 2, { tokenizer = tok, reward = function (_, _, tokens) return #tokens end })
  agrees(rows[2])
end

os.exit(lu.LuaUnit.run())
