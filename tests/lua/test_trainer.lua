-- What all steppers share: the probe changes no number, updates that do nothing are said, states.
local lu = require "luaunit"
local peri = require "perilune"
local optim, sched = require "perilune.optim", require "perilune.optim.sched"
local text = require "perilune.text"

local tok = text.chars("0123456789,:", { separator = true })

local function model_of(seed)
  peri.seed(seed or 3)
  return require("perilune.models.llama").new({ model_type = "llama", vocab_size = tok.size, hidden_size = 32,
    intermediate_size = 48, num_hidden_layers = 2, num_attention_heads = 2, max_position_embeddings = 64,
    rms_norm_eps = 1e-6 }, { std = 0.1 })
end

local function sevens(_, completion) return select(2, completion:gsub("7", "")) / 4 end

local prompts, examples = {}, {}
for i = 0, 9 do prompts[i + 1] = { prompt = ("%d:%d"):format(i, 9 - i):sub(1, 1 + i % 3) } end
for i = 1, 9 do
  local e = { ids = {}, mask = {} }
  for k = 1, 4 + i * 5 % 7 do e.ids[k], e.mask[k] = (i * 7 + k * 3) % 12, k > 2 and 1 or 0 end
  examples[i] = e
end

-- A line for each stepper: options beside model, optimizer and micro-batches.
local steppers = {
  grpo = { tokenizer = tok, rows = prompts, reward = sevens, prompts = 4, group = 4, max_new_tokens = 5 },
  sft = { examples = examples, batch_size = 8 },
}

local function stepper_of(name, more)
  local model = model_of()
  local opts = { model = model, optimizer = optim.AdamW(model:parameters(), { lr = 1e-2 }) }
  for _, set in ipairs { steppers[name], more or {} } do
    for k, v in pairs(set) do opts[k] = v end
  end
  return require("perilune.algo." .. name).new(opts), model
end

local function bytes(model)
  local list = {}
  for i, p in ipairs(model:parameters()) do list[i] = p:bytes() end
  return table.concat(list)
end

TestTrainer = {}

function TestTrainer.test_every_stepper_has_a_line_here()
  for name in pairs(peri._public.algo) do lu.assertNotNil(steppers[name], name) end
end

function TestTrainer.test_the_probe_changes_no_number()
  for name in pairs(steppers) do
    local results = {}
    for i, on in ipairs { true, false } do
      local stepper, model = stepper_of(name, { probe = on, schedule = sched.warmup(3, sched.constant(1e-2)) })
      peri.seed(7)
      local rows = {}
      for n = 1, 4 do rows[n] = stepper:step() end
      results[i] = { rows = rows, weights = bytes(model), state = stepper:state(), rng = peri.rng_state() }
    end
    lu.assertEquals(results[1], results[2], name)
  end
end

-- Of a stepper whose forward pass is watched: the first one is as long as any that follows.
function TestTrainer.test_the_probe_is_the_largest_pass()
  for name in pairs(steppers) do
    local stepper, model = stepper_of(name)
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
  for name in pairs(steppers) do
    local stepper, model = stepper_of(name)
    local real, before = model.token_logprob, peri.rng_state()
    model.token_logprob = function () error("out of memory: 3 bytes", 0) end
    lu.assertErrorMsgContains(name .. ": the probe, a pass over the longest rows before the first update, failed: "
      .. "out of memory", stepper.step, stepper)
    lu.assertEquals(stepper:state().at, 0)
    lu.assertEquals(peri.rng_state(), before)
    for _, p in ipairs(model:parameters()) do lu.assertNil(p.grad) end
    model.token_logprob = real
    lu.assertEquals(stepper:step().step, 1)
  end
end

function TestTrainer.test_an_update_that_moves_nothing_is_said()
  local flat = stepper_of("grpo", { reward = function () return 1 end })
  for i = 1, 3 do lu.assertEquals(flat:step().no_op, i) end
  lu.assertEquals(flat:state().idle, 3)
  local still = stepper_of("sft", { schedule = function (at) return at == 2 and 0 or 1e-3 end })
  lu.assertNil(still:step().no_op)
  lu.assertEquals(still:step().no_op, 1)
  lu.assertNil(still:step().no_op)
end

os.exit(lu.LuaUnit.run())
