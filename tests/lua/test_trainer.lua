-- What all steppers share: the probe changes no number, updates that do nothing are said, states.
local lu = require "luaunit"
local peri = require "perilune"
local optim = require "perilune.optim"
local sched = require "perilune.optim.sched"
local steppers = require "steppers"

local function bytes(model)
  local list = {}
  for i, p in ipairs(model:parameters()) do list[i] = p:bytes() end
  return table.concat(list)
end

TestTrainer = {}

function TestTrainer.test_every_stepper_has_a_line_here()
  for name in pairs(peri._public.algo) do
    if steppers.elsewhere[name] then lu.assertTrue(peri.files.exists(steppers.elsewhere[name]) ~= nil, name)
    else lu.assertNotNil(steppers.all[name], name .. " in tests/lua/steppers.lua") end
  end
end

function TestTrainer.test_the_probe_changes_no_number()
  for _, name in ipairs(steppers.names) do
    local results = {}
    for i, on in ipairs { true, false } do
      local stepper, model = steppers.make(name, { probe = on, schedule = sched.warmup(3, sched.constant(1e-2)) })
      peri.seed(7)
      local rows = {}
      for n = 1, 4 do rows[n] = stepper:step() end
      results[i] = { rows = rows, weights = bytes(model), state = stepper:state(), rng = peri.rng_state() }
    end
    lu.assertEquals(results[1], results[2], name)
  end
end

-- Gradients of the first updates, and what became of the weights, whatever the size of a pass and the threads.
function TestTrainer.test_the_size_of_a_pass_changes_no_bit_of_a_gradient()
  if not arg[-2] then return lu.skip "needs the program's path" end
  for _, threads in ipairs { 1, 2 } do
    local pipe = assert(io.popen(("PERI_THREADS=%d '%s' run tests/lua/stepper_digest.lua"):format(threads, arg[-2])))
    local whole, lines = {}, 0
    for line in pipe:lines() do
      local name, micro, digest = line:match "^(%S+) (%d+) (%x+)$"
      whole[name], lines = whole[name] or digest, lines + 1
      lu.assertEquals(digest, whole[name], ("%s, %s rows a pass, %d threads"):format(name, micro, threads))
    end
    lu.assertTrue(pipe:close())
    lu.assertEquals(lines, 4 * #steppers.names)
    TestTrainer.digests = TestTrainer.digests or whole
    lu.assertEquals(whole, TestTrainer.digests)
  end
end

-- Of a stepper whose forward pass is watched: the first one is as long as any that follows.
function TestTrainer.test_the_probe_is_the_largest_pass()
  for _, name in ipairs(steppers.names) do
    local stepper, model = steppers.make(name)
    local passes, real = {}, model.forward
    function model.forward(self, ids, opts)
      if peri.grad_enabled() then
        local t = peri.is_tensor(ids) and ids or ids.ids
        passes[#passes + 1] = t:numel()
      end
      return real(self, ids, opts)
    end
    for _ = 1, 6 do stepper:step() end
    for i = 2, #passes do lu.assertTrue(passes[1] >= passes[i], ("%s: pass %d"):format(name, i)) end
    lu.assertTrue(#passes >= 7, name)
  end
end

function TestTrainer.test_what_fails_in_the_probe_is_no_step()
  for _, name in ipairs(steppers.names) do
    local stepper, model = steppers.make(name)
    local real, before = model.forward, peri.rng_state()
    model.forward = function () error("out of memory: 3 bytes", 0) end
    lu.assertErrorMsgContains(name:match "^[^-]+" .. ": the probe, a pass over the longest rows before the first update, failed: "
      .. "out of memory", stepper.step, stepper)
    lu.assertEquals(stepper:state().at, 0)
    lu.assertEquals(peri.rng_state(), before)
    for _, p in ipairs(model:parameters()) do lu.assertNil(p.grad) end
    model.forward = real
    lu.assertEquals(stepper:step().step, 1)
  end
end

function TestTrainer.test_an_optimizer_that_no_gradient_reaches_is_an_error()
  for _, name in ipairs(steppers.names) do
    local stepper = steppers.make(name)
    stepper.optimizer = optim.AdamW(steppers.model(4, name), { lr = 1e-2 })
    for _ = 1, 2 do
      lu.assertErrorMsgContains("no gradient reaches the parameters of optimizer", stepper.step, stepper)
    end
    lu.assertEquals(stepper.at, 0)
  end
end

-- A model with dropout, of its own and of an adapter on it.
local function dropping(name)
  peri.seed(3)
  local model = require("perilune.models.gpt2").new({ model_type = "gpt2", vocab_size = steppers.tokenizer.size, n_embd = 32,
    n_layer = 1, n_head = 2, n_positions = 64, embd_pdrop = 0.3, resid_pdrop = 0.3, attn_pdrop = 0.3 }, { std = 0.1 })
  if not name:find "head" then peri.peft.lora(model, { r = 2, dropout = 0.3 }) end
  model:unfreeze()
  peri.seed(4)
  return (name:find "^reward_model" or name:find "^prm") and peri.models.scorer(model, { std = 0.5 }):unfreeze() or model
end

-- With dropout the policy that samples, the one that learns and the reference would be three, and how rows are cut would
-- decide what is dropped. Supervised fine-tuning alone has it.
function TestTrainer.test_dropout_is_off_in_a_step_and_on_again_behind_it()
  for _, name in ipairs(steppers.names) do
    if not name:find "^sft" and not name:find "critic" then
      local results = {}
      for i, micro in ipairs { 1000, 1 } do
        local model = dropping(name):train()
        local stepper = steppers.make(name, { model = model, micro = micro, optimizer = not name:find "head"
          and require("perilune.optim").SGD(model:parameters(), { lr = 0.1 }) or nil, critic_warmup = name == "ppo" and 0 or nil })
        peri.seed(7)
        local row = stepper:step()
        lu.assertTrue(model.training, name)
        lu.assertEquals(row["sampling/sampling_logp_difference/max"] or 0, 0, name)
        if name == "ppo" then lu.assertEquals(row["objective/kl"], 0) end
        results[i] = bytes(model)
      end
      lu.assertTrue(results[1] == results[2], name)
    end
  end
end

-- Passes that went well before one that did not leave no gradient behind, and the rows are drawn again.
function TestTrainer.test_a_step_that_raises_was_none()
  for _, name in ipairs(steppers.names) do
    local results = {}
    for i, fails in ipairs { false, true } do
      local stepper, model = steppers.make(name, { micro = 1, mini_batches = name:find "^grpo" and 1 or nil,
        iterations = name:find "^grpo" and 1 or nil, critic_warmup = name == "ppo" and 0 or nil })
      local before = stepper:state()
      if fails then
        local real, passes = model.forward, 0
        function model.forward(...)
          if peri.grad_enabled() then passes = passes + 1 end
          if passes == 3 then error("no more", 0) end -- behind the probe
          return real(...)
        end
        peri.seed(7)
        local ok, message = pcall(stepper.step, stepper)
        lu.assertEquals({ ok, (tostring(message):match "no more") }, { false, "no more" }, name)
        model.forward = nil
        lu.assertEquals(stepper.at, 0)
        if not name:find "^dpo" and not name:find "curriculum" then lu.assertEquals(stepper:state(), before, name) end
        for _, p in ipairs(stepper.optimizer:parameters()) do lu.assertNil(p.grad) end
      end
      peri.seed(7)
      stepper:step()
      results[i] = bytes(model)
    end
    if not name:find "curriculum" then lu.assertTrue(results[1] == results[2], name) end
  end
end

function TestTrainer.test_an_update_that_moves_nothing_is_said()
  local flat = steppers.make("grpo", { reward = function () return 1 end })
  for i = 1, 3 do lu.assertEquals(flat:step().no_op, i) end
  lu.assertEquals(flat:state().idle, 3)
  local still = steppers.make("sft", { schedule = function (at) return at == 2 and 0 or 1e-3 end })
  lu.assertNil(still:step().no_op)
  lu.assertEquals(still:step().no_op, 1)
  lu.assertNil(still:step().no_op)
end

-- Of every stepper: options may be set between steps; a slip is no option, and is told so.
function TestTrainer.test_an_option_that_is_set_by_a_slip_of_its_name_is_refused()
  for _, name in ipairs(steppers.names) do
    local stepper, known = steppers.make(name), 0
    for option in pairs(stepper._rules) do
      for _, slip in ipairs { option .. option:sub(-1), option:sub(1, -3) .. option:sub(-1) .. option:sub(-2, -2) } do
        if #option > 4 and stepper._rules[slip] == nil and rawget(stepper, slip) == nil then
          local ok, why = pcall(function () stepper[slip] = 0.5 end)
          lu.assertFalse(ok, name .. ": " .. slip)
          lu.assertStrContains(why, ("test_trainer.lua:%d: "):format(debug.getinfo(1, "l").currentline - 2))
          lu.assertStrContains(why, ("there is no option %q to set; did you mean "):format(slip))
          known = known + 1
        end
      end
    end
    lu.assertTrue(known > 5, name)
    for option in pairs(stepper._rules) do stepper[option] = stepper[option] end -- also those that are not given
    stepper.clip_norm, stepper.notes_of_mine = 0.5, 1
    stepper:step()
  end
end

-- What new() refuses a step() refuses, and was none; the right value back, it goes on.
function TestTrainer.test_an_option_that_is_set_to_what_it_cannot_be_is_refused()
  for _, name in ipairs(steppers.names) do
    local stepper = steppers.make(name)
    local tried = 0
    for option, rule in pairs(stepper._rules) do
      local before = rawget(stepper, option)
      if type(before) == "number" then
        for _, bad in ipairs { 0 / 0, "many" } do
          stepper[option] = bad
          lu.assertErrorMsgContains(("%s: %s is "):format(stepper.who, option), stepper.step, stepper)
          lu.assertEquals(stepper.at, 0)
          tried = tried + 1
        end
        stepper[option] = before
        lu.assertNil(require("perilune.options").problem(option, before, rule), name)
      end
    end
    lu.assertTrue(tried > 2, name)
    stepper:step()
  end
end

function TestTrainer.test_a_schedule_gives_a_learning_rate_or_the_step_was_none()
  for _, name in ipairs(steppers.names) do
    for _, case in ipairs { { nil, "is nil" }, { 0 / 0, "is nan" }, { -1, "is -1" }, { "1", 'is "1"' }, { 1 / 0, "is inf" } } do
      local stepper = steppers.make(name, { schedule = function () return case[1] end })
      lu.assertErrorMsgContains(("schedule of step 1 %s, expected a number in [0, inf)"):format(case[2]), stepper.step, stepper)
      lu.assertEquals(stepper.at, 0)
    end
  end
  local ppo = steppers.make("ppo", { critic_schedule = function () end })
  lu.assertErrorMsgContains("critic_schedule of step 1 is nil", ppo.step, ppo)
end

function TestTrainer.test_every_stepper_trains_models_of_f64()
  for _, name in ipairs(steppers.names) do
    local more = { model = steppers.model(3, name):to "f64", critic_warmup = name == "ppo" and 0 or nil }
    if name == "ppo-head" then -- its head is the maker's
      more.critic = peri.nn.Linear(32, 1):to "f64"
      more.optimizer = peri.optim.AdamW({ more.model, more.critic }, { lr = 1e-2 })
    end
    local row = steppers.make(name, more):step()
    lu.assertTrue(row.grad_norm > 0 or row.no_op ~= nil, name)
  end
end

os.exit(lu.LuaUnit.run())
