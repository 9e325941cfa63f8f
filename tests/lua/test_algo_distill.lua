-- Distillation and rejection sampling as steppers: what the student is taught by, stored teachers, controls.
local lu = require "luaunit"
local peri = require "perilune"
local loss = require "perilune.loss"
local optim = require "perilune.optim"
local rl = require "perilune.rl"
local scratch = require "scratch"
local steppers = require "steppers"

local tok = steppers.tokenizer

local function distill(o)
  local student = o.model or steppers.model(3)
  local how = { model = student, optimizer = optim.AdamW(student:parameters(), { lr = 5e-3 }), batch_size = 9,
    examples = not (o.rows) and steppers.examples or nil, teacher = not (o.stored or o.teachers) and steppers.model(5) or nil }
  for k, v in pairs(o) do how[k] = v end
  return peri.algo.distill.new(how), student
end

-- KL of the teacher to the student over the learned tokens of the examples.
local function divergence(student, teacher)
  local _ <close> = peri.no_grad()
  local batch = peri.algo.sft.batch({ { steppers.examples[2] }, { steppers.examples[3] } }, 0)
  local ids = batch.ids:narrow(2, 1, batch.ids:size(2) - 1)
  return loss.distill(student:logits(student:forward(ids)), teacher:logits(teacher:forward(ids)),
    batch.targets:ne(-100)):item()
end

TestDistill = {}

function TestDistill.test_the_student_comes_nearer_to_its_teacher_by_every_way()
  local teacher = steppers.model(5)
  for name, o in pairs {
    forward = {}, reverse = { divergence = "reverse" }, jsd = { divergence = "jsd", beta = 0.2 },
    warm = { temperature = 3 }, both = { hard = 0.2 },
    own = { on_policy = 1, rows = steppers.prompts, tokenizer = tok, max_new_tokens = 6, divergence = "reverse" },
    sequence = { sequence = true, rows = steppers.prompts, tokenizer = tok, max_new_tokens = 6 },
  } do
    local stepper, student = distill(o)
    local before = divergence(student, teacher)
    for _ = 1, 60 do stepper:step() end
    local after = divergence(student, teacher)
    lu.assertTrue(after < 0.8 * before, ("%s: %g, %g"):format(name, before, after))
  end
end

function TestDistill.test_a_step_has_the_loss_and_the_gradient_of_loss_distill()
  for _, o in ipairs { {}, { divergence = "jsd", temperature = 2 }, { hard = 0.4 } } do
    local how = { optimizer = false }
    for k, v in pairs(o) do how[k] = v end
    local student = steppers.model(3)
    how.model, how.optimizer = student, optim.SGD(student:parameters(), { lr = 1 })
    local grads
    local step = how.optimizer.step
    function how.optimizer.step(...)
      grads = student:gradients()
      for k, g in pairs(grads) do grads[k] = peri.keep(g:clone()) end
      return step(...)
    end
    local stepper = distill(how)
    local got = stepper:step().loss
    student = steppers.model(3)
    local rows = {}
    for i, e in ipairs(steppers.examples) do rows[i] = { e } end
    local batch = peri.algo.sft.batch(rows, 0)
    local ids = batch.ids:narrow(2, 1, batch.ids:size(2) - 1)
    local teacher = peri.no_grad(function ()
      local model = steppers.model(5)
      return model:logits(model:forward(ids))
    end)
    if o.hard then o.labels = batch.targets end
    local want = loss.distill(student:logits(student:forward(ids)), teacher, batch.targets:ne(-100), o)
    want:backward()
    lu.assertAlmostEquals(got, want:item(), 1e-5)
    for name, g in pairs(student:gradients()) do
      lu.assertTrue(grads[name]:sub(g):abs():max():item() < 1e-5, name)
    end
  end
end

function TestDistill.test_logits_of_all_tokens_are_never_there_together()
  local config = { model_type = "llama", vocab_size = 4000, hidden_size = 16, intermediate_size = 16,
    num_hidden_layers = 1, num_attention_heads = 2, num_key_value_heads = 2 }
  local function peak(n)
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local student, e = peri.models.llama.new(config), { ids = {}, mask = {} }
    for i = 1, n + 1 do e.ids[i], e.mask[i] = i % 9, 1 end
    local stepper = peri.algo.distill.new { model = student, teacher = peri.models.llama.new(config), examples = { e },
      optimizer = optim.SGD(student:parameters(), { lr = 0.1 }), probe = false }
    stepper:step()
    local before = peri.memory().live
    peri.reset_peak()
    stepper:step()
    return peri.memory().peak - before
  end
  local few, many = peak(64), peak(512)
  lu.assertTrue(many < 2 * few, ("%d, %d"):format(few, many)) -- 512 rows of logits alone would be 8 times as much
end

function TestDistill.test_settings_that_do_not_go_together_are_refused()
  local function fails(message, o) lu.assertErrorMsgContains(message, distill, o) end
  local teacher = steppers.model(5)
  fails("give a teacher or what one said (stored)", { stored = { rows = 9 }, teacher = teacher })
  fails("needs on_policy = 1", { signal = "sampled" })
  fails('signal = "sampled" knows no hard', { signal = "sampled", on_policy = 1, hard = 0.5 })
  fails("no answers but the student's own", { on_policy = 1, hard = 0.5 })
  fails("with on_policy = 1 the teacher writes no answers", { on_policy = 1, sequence = true })
  fails('beta is 0.3, and only divergence = "jsd" has one, not "forward"', { beta = 0.3 })
  fails("beta is 0.3, and hard = 1 leaves no divergence", { beta = 0.3, divergence = "jsd", hard = 1 })
  fails("on_policy and sequence need a teacher", { stored = { rows = 9 }, on_policy = 0.5 })
  fails("example 1 has no ids", { examples = { { 1 } } })
  fails("give rows or examples", { rows = steppers.prompts, examples = steppers.examples, tokenizer = tok })
  fails("they need one vocabulary", { teacher = peri.models.llama.new { model_type = "llama", vocab_size = 40,
    hidden_size = 16, intermediate_size = 16, num_hidden_layers = 1, num_attention_heads = 2 } })
  fails("gives a number for each token", { teacher = peri.models.scorer(teacher) })
  fails("row 1: ", { rows = { { text = "1" } }, tokenizer = tok, on_policy = 1 })
  fails("rows need a tokenizer", { rows = steppers.prompts })
  lu.assertErrorMsgContains("is of the format prompt_only", distill, { rows = { { prompt = "1" } }, tokenizer = tok })
end

TestTeachers = {}

-- The loss and the gradients of the first step over some examples.
local function first_step(o)
  local student = steppers.model(3)
  local optimizer, grads = optim.SGD(student:parameters(), { lr = 1 }), nil
  local step = optimizer.step
  function optimizer.step(...)
    grads = student:gradients()
    for k, g in pairs(grads) do grads[k] = peri.keep(g:clone()) end
    return step(...)
  end
  local how = { model = student, optimizer = optimizer, batch_size = #o.examples, clip_norm = 1e9 }
  for k, v in pairs(o) do how[k] = v end
  local metrics = peri.algo.distill.new(how):step()
  return metrics, grads
end

local function tokens_of(list)
  local n = 0
  for _, e in ipairs(list) do for k = 2, #e.ids do n = n + (e.mask[k] ~= 0 and 1 or 0) end end
  return n
end

-- Each row is taught by its own teacher: what all learn together is what each teacher's rows learn alone, weighted by their
-- tokens.
function TestTeachers.test_several_teachers_teach_as_each_does_alone()
  local rows = steppers.shared_out(steppers.examples)
  local teachers, own = { a = steppers.model(5), b = steppers.model(6) }, { a = {}, b = {} }
  for _, e in ipairs(rows) do table.insert(own[e.domain], e) end
  for _, o in ipairs { { divergence = "reverse" }, { divergence = "jsd", temperature = 2 }, { hard = 0.4 } } do
    for _, micro in ipairs { 1, 2, 9 } do
      local function step(more)
        more.micro = micro
        for k, v in pairs(o) do more[k] = v end
        return first_step(more)
      end
      local got, grads = step { teachers = teachers, examples = rows }
      local want, sum = 0, {}
      for _, name in ipairs { "a", "b" } do
        local share = tokens_of(own[name]) / tokens_of(rows)
        local alone, some = step { teacher = teachers[name], examples = own[name] }
        want = want + share * alone.loss
        lu.assertAlmostEquals(got["divergence/" .. name], alone.divergence, 1e-5)
        for key, g in pairs(some) do sum[key] = g:mul(share):add(sum[key] or 0) end
      end
      lu.assertAlmostEquals(got.loss, want, 1e-5)
      for key, g in pairs(sum) do lu.assertTrue(grads[key]:sub(g):abs():max():item() < 1e-5, key) end
    end
  end
end

-- And of each row: the divergence from its teacher, token by token.
function TestTeachers.test_the_divergence_of_a_row_is_that_of_its_teacher()
  local rows = steppers.shared_out(steppers.examples)
  local teachers = { a = steppers.model(5), b = steppers.model(6) }
  for _, e in ipairs(rows) do
    local other = { domain = e.domain == "a" and "b" or "a", ids = { 1, 2 }, mask = { 0, 1 } }
    local one = first_step { teacher = teachers[e.domain], examples = { e }, divergence = "reverse" }
    local both = first_step { teachers = teachers, examples = { e, other }, divergence = "reverse" }
    lu.assertAlmostEquals(both["divergence/" .. e.domain], one.divergence, 1e-6)
  end
end

-- One model under two names is one teacher.
function TestTeachers.test_two_names_of_one_model_are_one_teacher()
  local teacher, rows = steppers.model(5), steppers.shared_out(steppers.examples)
  local one, grads = first_step { teacher = teacher, examples = rows }
  local two, more = first_step { teachers = { a = teacher, b = teacher }, examples = rows }
  lu.assertAlmostEquals(one.loss, two.loss, 1e-6)
  for key, g in pairs(grads) do lu.assertTrue(g:sub(more[key]):abs():max():item() < 1e-6, key) end
end

function TestTeachers.test_the_student_becomes_what_each_teacher_is_at_home()
  local teachers, rows = { a = steppers.model(5), b = steppers.model(6) }, {}
  for i, row in ipairs(steppers.prompts) do rows[i] = { prompt = row.prompt, by = i <= 5 and "a" or "b" } end
  for _, signal in ipairs { "distribution", "sampled" } do
    local stepper = distill { teachers = teachers, by = "by", rows = rows, tokenizer = tok, on_policy = 1, batch_size = 10,
      signal = signal, divergence = signal == "distribution" and "reverse" or nil, max_new_tokens = 6 }
    local metrics = stepper:step()
    local before = { metrics["divergence/a"], metrics["divergence/b"] }
    for _ = 1, 120 do metrics = stepper:step() end
    lu.assertTrue(metrics["divergence/a"] < 0.8 * before[1], signal)
    lu.assertTrue(metrics["divergence/b"] < 0.8 * before[2], signal)
  end
end

function TestTeachers.test_rows_without_a_teacher_and_teachers_without_a_row_are_refused()
  local rows = steppers.shared_out(steppers.examples)
  local a, b = steppers.model(5), steppers.model(6)
  local function fails(message, o)
    o.model, o.examples = steppers.model(3), o.examples or not o.rows and rows or nil
    o.optimizer = optim.SGD(o.model:parameters(), { lr = 1 })
    lu.assertErrorMsgContains(message, peri.algo.distill.new, o)
  end
  fails("example 1: it has no domain, the name of its teacher", { teachers = { a = a }, examples = steppers.examples })
  fails("example 2: unknown domain \"b\"", { teachers = { a = a } })
  fails("teachers.c: no row has it as its domain", { teachers = { a = a, b = b, c = a } })
  fails("example 1: it has no kind", { teachers = { a = a, b = b }, by = "kind" })
  fails("teachers is empty", { teachers = {} })
  fails("batch_size is 1, an update is of rows of all 2 teachers", { teachers = { a = a, b = b }, batch_size = 1 })
  fails("teachers: the key 1, expected names of teachers", { teachers = { a } })
  fails("teachers.b: it is a number, expected a model", { teachers = { a = a, b = 3 } })
  fails("teachers.b: ", { teachers = { a = a, b = peri.models.scorer(b) } })
  fails('by is "domain", and there are no teachers', { teacher = a, by = "domain" })
  fails("one of the three", { teacher = a, teachers = { a = a, b = b } })
  fails("they need one vocabulary", { teachers = { a = a, b = peri.models.llama.new { model_type = "llama",
    vocab_size = 40, hidden_size = 16, intermediate_size = 16, num_hidden_layers = 1, num_attention_heads = 2 } } })
  fails("row 2: unknown domain \"c\"", { teachers = { a = a }, tokenizer = tok, on_policy = 1,
    rows = { { prompt = "1", domain = "a" }, { prompt = "2", domain = "c" } } })
  -- rows that are left out do not shift what the others are called
  local student = steppers.model(3)
  local stepper = peri.algo.distill.new { model = student, optimizer = optim.SGD(student:parameters(), { lr = 1 }),
    teachers = { a = a, b = b }, tokenizer = tok, bad = "skip", rows = { { prompt = "1", domain = "b" },
      { prompt = "1", completion = "2", domain = "a" }, { prompt = "3", completion = "4", domain = "b" } } }
  lu.assertEquals({ stepper.units[1].by, stepper.units[2].by }, { "a", "b" })
end

TestStored = {}

scratch.each(TestStored, function (path) TestStored.path = path .. "/teacher.safetensors" end)

function TestStored.test_of_all_tokens_it_teaches_as_the_teacher_does()
  local teacher = steppers.model(5)
  assert(rl.store_teacher(TestStored.path, teacher, steppers.examples, { k = tok.size, temperature = 2 }))
  local stored = assert(rl.open_teacher(TestStored.path))
  lu.assertEquals({ stored.k, stored.temperature, stored.vocabulary, stored.rows }, { tok.size, 2, tok.size, 9 })
  local a, b = distill { temperature = 2 }, distill { stored = stored, temperature = 2 }
  for _ = 1, 5 do lu.assertAlmostEquals(a:step().loss, b:step().loss, 1e-4) end
end

function TestStored.test_few_tokens_teach_and_are_read_back_row_by_row()
  local teacher = steppers.model(5)
  for _, dtype in ipairs { "f32", "f16" } do
    assert(rl.store_teacher(TestStored.path, teacher, steppers.examples, { k = 4, dtype = dtype }))
    local stored = assert(rl.open_teacher(TestStored.path))
    for i, e in ipairs(steppers.examples) do
      local got, n = stored:get(i, e), 0
      for k = 2, #e.ids do n = n + e.mask[k] end
      lu.assertEquals({ got.ids:size(1), got.ids:size(2) }, { n, 4 })
      local logits = teacher:logits(teacher:forward(peri.tensor({ e.ids }, "i64"))):squeeze(1):log_softmax(-1)
      local at = n
      for k = #e.ids, 2, -1 do
        if e.mask[k] ~= 0 then
          local value, ids = logits:select(1, k - 1):topk(4)
          lu.assertEquals(got.ids:select(1, at):tolist(), ids:tolist())
          lu.assertTrue(got.logprobs:select(1, at):sub(value):abs():max():item() < (dtype == "f16" and 5e-3 or 1e-6))
          at = at - 1
        end
      end
    end
    local stepper, student = distill { stored = stored }
    local before = divergence(student, teacher)
    for _ = 1, 60 do stepper:step() end
    lu.assertTrue(divergence(student, teacher) < 0.8 * before)
  end
end

function TestStored.test_of_other_rows_or_another_temperature_it_is_refused()
  assert(rl.store_teacher(TestStored.path, steppers.model(5), steppers.examples, { k = 4 }))
  local stored = assert(rl.open_teacher(TestStored.path))
  local list = table.move(steppers.examples, 1, 9, 1, {})
  list[4], list[5] = list[5], list[4]
  local stepper = distill { stored = stored, examples = list }
  lu.assertErrorMsgContains("row 5 is of another text", function () for _ = 1, 3 do stepper:step() end end)
  lu.assertErrorMsgContains("temperature is 2, what is stored is of 1", distill, { stored = stored, temperature = 2 })
  lu.assertErrorMsgContains("there are 1 rows, stored are 9", distill, { stored = stored, examples = { list[1] } })
  lu.assertErrorMsgContains("row 10 of 9", stored.get, stored, 10)
end

function TestStored.test_a_file_of_something_else_is_no_teacher()
  assert(peri.safetensors.save(TestStored.path, { x = peri.ones { 2 } }))
  local got, message = rl.open_teacher(TestStored.path)
  lu.assertNil(got)
  lu.assertStrContains(message, "it has no settings and temperature")
  assert(peri.safetensors.save(TestStored.path, { settings = peri.tensor({ 1, 4, 16, 2 }, "i64"),
    temperature = peri.ones { 1 } }))
  got, message = rl.open_teacher(TestStored.path)
  lu.assertNil(got)
  lu.assertStrContains(message, "row 1 is not whole")
  lu.assertNil((rl.open_teacher(TestStored.path .. ".none")))
  lu.assertErrorMsgContains("k is 99", rl.store_teacher, TestStored.path, steppers.model(5), steppers.examples, { k = 99 })
  lu.assertErrorMsgContains("example 1 has no token to learn", rl.store_teacher, TestStored.path, steppers.model(5),
    { { ids = { 1, 2 }, mask = { 1, 0 } } }, { k = 2 })
end

TestReject = {}

local function reject(o)
  local model = steppers.model(3)
  local how = { model = model, tokenizer = tok, rows = steppers.prompts, reward = steppers.reward, prompts = 8, group = 8,
    max_new_tokens = 5, optimizer = optim.AdamW(model:parameters(), { lr = 5e-3 }) }
  for k, v in pairs(o or {}) do how[k] = v end
  return peri.algo.reject.new(how)
end

local function after(o, n)
  peri.seed(1)
  local stepper = reject(o)
  local row
  for _ = 1, n do row = stepper:step() end
  return row
end

function TestReject.test_what_is_kept_by_reward_raises_it_and_its_control_does_not()
  local best, control = after({}, 25), after({ by = "random_prompt" }, 25)
  lu.assertTrue(best.reward > control.reward + 0.3, ("%g, %g"):format(best.reward, control.reward))
  lu.assertEquals({ best.kept, control.kept }, { 8, 8 })
  lu.assertTrue(best.kept_reward >= best.reward)
end

function TestReject.test_nothing_above_the_least_reward_is_an_update_that_moves_nothing()
  local row = after({ least = 99 }, 2)
  lu.assertEquals({ row.kept, row.no_op, row.kept_reward }, { 0, 2, nil })
  lu.assertErrorMsgContains("there are no rows", reject, { rows = {} })
  lu.assertErrorMsgContains('by is "best"', reject, { by = "best" })
end

os.exit(lu.LuaUnit.run())
