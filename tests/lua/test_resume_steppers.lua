-- Every stepper can be tracked by a recipe: killed at random moments and resumed, it draws the same rows, goes on
-- with the schedule and ends with the same bytes.
local lu = require "luaunit"
local peri = require "perilune"
local killed = require "killed"

TestResumeSteppers = {}

for _, which in ipairs(require("steppers").names) do
  TestResumeSteppers["test_" .. which:gsub("%W", "_")] = function ()
    killed.assert_same("tests/lua/stepper_recipe.lua", "--which " .. which .. " --steps 14 --save_every 1 --seed 5",
      { "metrics.jsonl", "model.safetensors" }, 3)
  end
end

local function model_and(parameter_lr)
  local tok = require("perilune.text").chars("0123456789,:", { separator = true })
  peri.seed(1)
  local model = require("perilune.models.llama").new({ model_type = "llama", vocab_size = tok.size, hidden_size = 16,
    intermediate_size = 24, num_hidden_layers = 1, num_attention_heads = 2, max_position_embeddings = 32,
    rms_norm_eps = 1e-6 }, { std = 0.1 })
  return tok, model, require("perilune.optim").AdamW(model:parameters(), { lr = parameter_lr })
end

-- A schedule that watches a metric has a state of its own, which goes along.
function TestResumeSteppers.test_the_state_is_plain_and_holds_the_schedules()
  local tok, model, opt = model_and(1e-3)
  local sched = require "perilune.optim.sched"
  local function grpo()
    return require("perilune.algo.grpo").new { model = model, optimizer = opt, tokenizer = tok, reward = function () return 0 end,
      rows = { { prompt = "1:" }, { prompt = "2:" } }, prompts = 2, group = 2, schedule = sched.plateau { from = 1, patience = 0 } }
  end
  local function sft()
    return require("perilune.algo.sft").new { model = model, optimizer = opt, schedule = sched.plateau { from = 1, patience = 0 },
      examples = { { ids = { 4, 5 }, mask = { 0, 1 } }, { ids = { 5, 6 }, mask = { 0, 1 } } } }
  end
  for _, new in ipairs { grpo, sft } do
    local a, b = new(), new()
    a:step()
    a.schedule:observe(1)
    a.schedule:observe(2)
    b:set_state(peri.json.decode(peri.json.encode(a:state())))
    lu.assertEquals(b:state(), a:state())
    lu.assertEquals(b.schedule(), 0.1)
    lu.assertEquals(b.at, 1)
    local state, kept = a:state(), b:state()
    for message, change in pairs { ["at is"] = { at = "x" }, ["at is -1"] = { at = -1 }, ["seen is 0.5"] = { seen = 0.5 },
      ["seen is missing"] = { seen = "nil" }, ["not of a schedule, the stepper has one"] = { schedule = "nil" },
      ["of a curriculum, the stepper has none"] = { curriculum = { seen = { 1 } } },
      ["not the state of a plateau"] = { at = 5, schedule = { value = 1 } } } do
      local other = {}
      for k, v in pairs(state) do other[k] = v end
      for k, v in pairs(change) do other[k] = v ~= "nil" and v or nil end
      lu.assertErrorMsgContains(message, b.set_state, b, other)
      lu.assertEquals(b:state(), kept)
    end
    for _, none in ipairs { 3, "x", {} } do lu.assertErrorMsgContains("the state is", b.set_state, b, none) end
  end
  local other = require("perilune.algo.sft").new { model = model, optimizer = opt,
    examples = { { ids = { 4, 5 }, mask = { 0, 1 } } } }
  lu.assertErrorMsgContains("the state is of 2 rows, there are 1", other.set_state, other, sft():state())
  lu.assertErrorMsgContains("the state is of row 9, there are 1", other.set_state, other, { at = 1, epoch = 1, used = 9, seen = 1 })
end

function TestResumeSteppers.test_a_step_whose_reward_raises_is_no_step()
  local tok, model, opt = model_and(1e-3)
  local stepper = require("perilune.algo.grpo").new { model = model, optimizer = opt, tokenizer = tok, prompts = 1, group = 2,
    rows = { { prompt = "1:" } }, reward = function () error("no judge", 0) end }
  lu.assertErrorMsgContains("no judge", stepper.step, stepper)
  lu.assertEquals({ stepper.at, stepper.seen }, { 0, 0 })
end

-- A gradient that is not finite: the optimizer leaves the step out, and the row of metrics says so.
function TestResumeSteppers.test_a_skipped_step_is_said_in_the_row()
  local tok, model, opt = model_and(1e-3)
  local poisoned = false
  local real = model.token_logprob
  function model.token_logprob(...)
    local logp, entropy = real(...)
    return poisoned and logp:mul(0 / 0) or logp, entropy
  end
  local grpo = require("perilune.algo.grpo").new { model = model, optimizer = opt, tokenizer = tok,
    reward = function (_, text) return #text + (text:byte() or 0) end, rows = { { prompt = "1:" } }, prompts = 2, group = 4 }
  local sft = require("perilune.algo.sft").new { model = model, optimizer = opt,
    examples = { { ids = { 4, 5 }, mask = { 0, 1 } } } }
  local count = 0
  for _, stepper in ipairs { grpo, sft } do
    poisoned = false
    lu.assertNil(stepper:step().skipped)
    poisoned = true
    count = count + 1
    lu.assertEquals(stepper:step().skipped, count)
    poisoned = false
    lu.assertNil(stepper:step().skipped)
  end
end

os.exit(lu.LuaUnit.run())
