-- algo.ppo: PPO with a critic on language models, its pieces put together and its options.
local lu = require "luaunit"
local peri = require "perilune"
local optim, peft = require "perilune.optim", require "perilune.peft"
local steppers = require "steppers"

local function bytes(module)
  local list = {}
  for i, p in ipairs(module:parameters()) do list[i] = p:bytes() end
  return table.concat(list)
end

local function run(name, n, more)
  local stepper, model = steppers.make(name, more)
  peri.seed(7)
  local rows = {}
  for i = 1, n do rows[i] = stepper:step() end
  return rows, stepper, model
end

TestPpo = {}

function TestPpo.test_the_first_pass_is_on_policy()
  for _, name in ipairs { "ppo", "ppo-head" } do
    local rows = run(name, 2, { epochs = 1, mini_batches = 1, critic_warmup = 0 })
    for _, row in ipairs(rows) do
      lu.assertEquals(row["sampling/sampling_logp_difference/max"], 0)
      lu.assertEquals({ row["val/ratio"], row["val/ratio_var"], row.mismatch_kl }, { 1, 0, 0 })
      lu.assertEquals({ row["policy/approxkl_avg"], row["policy/clipfrac_avg"] }, { 0, 0 })
    end
    rows = run(name, 2, { epochs = 4, critic_warmup = 0 })
    lu.assertTrue(rows[1]["policy/approxkl_avg"] > 0)
    lu.assertEquals(rows[1]["sampling/sampling_logp_difference/max"], 0) -- of the first of many steps
  end
end

function TestPpo.test_names_are_TRLs_and_their_sums_right()
  local row = run("ppo", 3)[3]
  for _, name in ipairs { "objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward",
    "objective/scores", "policy/approxkl_avg", "policy/clipfrac_avg", "policy/entropy_avg", "loss/policy_avg",
    "loss/value_avg", "val/clipfrac_avg", "val/ratio", "val/ratio_var", "val/num_eos_tokens" } do
    lu.assertEquals(type(row[name]), "number", name)
  end
  lu.assertAlmostEquals(row["objective/non_score_reward"], -row["objective/kl_coef"] * row["objective/kl"], 1e-9)
  lu.assertAlmostEquals(row["objective/rlhf_reward"], row["objective/scores"] + row["objective/non_score_reward"], 1e-9)
  lu.assertAlmostEquals(row["objective/scores"], row.reward, 1e-6)
  lu.assertTrue(row["objective/kl"] ~= 0)
end

-- A reward for the first token only: the policy learns it, and the critic to tell what is coming.
function TestPpo.test_policy_and_critic_learn()
  for _, name in ipairs { "ppo", "ppo-head" } do
    local rows = run(name, 25, { kl_coef = name == "ppo" and 1e-9 or 0, missing_eos = 0, prompts = 10, group = 4, epochs = 2,
      mini_batches = 2, critic_warmup = 0, max_new_tokens = 4, top_k = 0 })
    local first, last = (rows[1].reward + rows[2].reward) / 2, (rows[24].reward + rows[25].reward) / 2
    lu.assertTrue(last > first + 0.5, ("%s: %.2f to %.2f"):format(name, first, last))
    lu.assertTrue(rows[25]["loss/value_avg"] < rows[1]["loss/value_avg"], name)
  end
end

function TestPpo.test_the_critic_can_learn_first()
  local stepper, model = steppers.make("ppo", { critic_warmup = 2 })
  local policy, critic = bytes(model), bytes(stepper.critic)
  for i = 1, 3 do
    local row = stepper:step()
    lu.assertNil(row.no_op)
    lu.assertEquals(bytes(model) == policy, i <= 2)
    lu.assertFalse(bytes(stepper.critic) == critic)
    critic = bytes(stepper.critic)
  end
end

function TestPpo.test_the_coefficient_follows_its_target()
  local rows = run("ppo", 3, { kl_coef = 0.1, kl_target = 1e-4, kl_horizon = 100, critic_warmup = 0 })
  lu.assertEquals(rows[1]["objective/kl_coef"], 0.1)
  lu.assertAlmostEquals(rows[2]["objective/kl_coef"], 0.1 * (1 - 0.2 * 16 / 100), 1e-9) -- the KL was 0 at first
  lu.assertAlmostEquals(rows[3]["objective/kl_coef"] / rows[2]["objective/kl_coef"], 1 + 0.2 * 16 / 100, 1e-9)
end

function TestPpo.test_answers_without_an_end_pay()
  local with, without = run("ppo", 1, { missing_eos = 1, max_new_tokens = 1 }), run("ppo", 1, { missing_eos = 0,
    max_new_tokens = 1 })
  lu.assertEquals(with[1].reward, without[1].reward) -- the score is what it was
  lu.assertFalse(with[1]["loss/value_avg"] == without[1]["loss/value_avg"])
  lu.assertEquals(with[1]["completions/clipped_ratio"], 1 - with[1]["val/num_eos_tokens"] / 16)
end

function TestPpo.test_any_reward_goes_and_one_that_abstains_is_left_out()
  local rows, _, model = run("ppo", 2, { reward = function () return nil end, critic_warmup = 0 })
  lu.assertEquals({ rows[2].no_op, rows[2].grad_norm, rows[2]["objective/scores"] }, { 2, 0, 0 })
  local fresh = select(2, steppers.make "ppo")
  lu.assertEquals(bytes(model), bytes(fresh))
  rows = run("ppo", 1, { reward = { { "a", function () return 1 end }, { "b", function (_, text) return #text end, 2 } } })
  lu.assertEquals(rows[1]["rewards/a/mean"], 1)
end

-- Policy and critic as two adapters on shared frozen weights; the reference is the base.
function TestPpo.test_adapters_share_the_frozen_weights()
  local model = steppers.model(3)
  local critic = peri.models.scorer(model, { dtype = "file" })
  local adapter = peft.lora(model, { r = 2 })
  local own = peft.lora(critic, { r = 2 })
  critic.score:unfreeze()
  local stepper = require("perilune.algo.ppo").new { model = model, adapter = adapter, critic = critic,
    optimizer = optim.AdamW(adapter, { lr = 1e-2 }), critic_optimizer = optim.AdamW({ own, critic.score }, { lr = 1e-2 }),
    tokenizer = steppers.tokenizer, rows = steppers.prompts, reward = steppers.reward, prompts = 4, group = 4,
    critic_warmup = 1 }
  local rows = { stepper:step(), stepper:step(), stepper:step() }
  lu.assertEquals(rows[2]["objective/kl"], 0) -- the critic learned alone
  lu.assertTrue(rows[3].grad_norm > 0 and rows[3]["val/grad_norm"] > 0)
end

function TestPpo.test_what_does_not_fit_is_refused_by_name()
  for message, more in pairs { ["needs critic_optimizer"] = { critic_optimizer = false, critic = "scorer" },
    ["kl_coef > 0 needs a reference"] = { reference = false }, ["mini_batches is 17, expected at most prompts x group"] =
    { mini_batches = 17 }, ["kl_target needs a kl_coef above 0"] = { kl_coef = 0, kl_target = 1 },
    ["neither a models.scorer nor an nn.Linear of one output"] = { critic = peri.nn.Linear(32, 2), critic_optimizer = false },
    ['unknown option "vf_coeff"; did you mean "vf_coef"'] = { vf_coeff = 1 } } do
    local stepper, model = steppers.make "ppo"
    local opts = { model = model, optimizer = stepper.optimizer, critic = stepper.critic, tokenizer = steppers.tokenizer,
      critic_optimizer = stepper.critic_optimizer, reference = model, rows = steppers.prompts, reward = steppers.reward,
      prompts = 4, group = 4 }
    for k, v in pairs(more) do
      if v == false then opts[k] = nil elseif v ~= "scorer" then opts[k] = v end
    end
    lu.assertErrorMsgContains(message, require("perilune.algo.ppo").new, opts)
  end
end

os.exit(lu.LuaUnit.run())
