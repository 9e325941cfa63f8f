-- multitask_bert.lua - one BERT with a head for maths and one for code, beside a BERT for each.
--
-- Teaches: multi-task learning (Caruana 1997) as a table: a shared encoder whose heads both give scores over the
-- vocabulary, against two encoders of the same size with one head each, after the same updates of the same batches. A
-- sum is "what is 3 + 5 ? [MASK] [MASK]"; code is "y = 5 ; x = 3 ; print ( x + y ) [MASK] [MASK]", whose numbers stand
-- apart. Of the pairs of digits maths has all, code has --pairs: what it does with the others it was taught by maths.
-- Run:  ./perilune run recipes/transfer/multitask_bert.lua     a minute of one core
--       --model FOLDER begins with a BERT of Hugging Face; --control: code and maths disagree (maths is of differences)
-- Departs from the notes: generated tasks of a few tokens, random weights to begin with.
local peri = require "perilune"
local nn, optim, rl, recipe, models = peri.nn, peri.optim, peri.rl, peri.recipe, peri.models

local cfg = peri.flags(recipe.with_flags {
  model = { "", "folder of a BERT; empty: a small one" }, control = { false, "maths is of differences" },
  seeds     = { 3, "networks of each kind, one after the other in each step", range = "[1, inf)" },
  updates   = { 800, "optimizer steps", range = "[0, inf)", budget = true },
  batch     = { 32, "examples of each task in an update", range = "[1, inf)" },
  pairs     = { 50, "of the 100 pairs of digits that code learns from", range = "[1, 99]" },
  lr        = { 2e-3, "learning rate, falls to 0", range = "[0, inf)" },
  dim = { 32, "width of the small one, by 16", range = "[16, inf)" }, layers = { 2, "of it", range = "[1, inf)" },
  log_every = { 100, "updates between rows of metrics", range = "[1, inf)" },
})
local run = recipe.start { name = "multitask_bert", flags = cfg, total = cfg.updates, columns = { "new_shared",
  "new_separate", "code_shared", "code_separate", "maths_shared", "maths_separate" } }

-- Tasks.
local function text_of(task, a, b, swap)
  local form = task == "maths" and "what is %d + %d ?" or "x = %d ; y = %d ; print ( x + y )"
  if task == "maths" and cfg.control then form = "what is %d - %d ?" end
  if swap and task == "code" then form, a, b = "y = %d ; x = %d ; print ( x + y )", b, a end
  return form:format(a, b) .. " [MASK] [MASK]"
end
local tok = cfg.model == "" and peri.text.word_pieces { text_of("maths", 0, 0), text_of("code", 0, 0) }
  or assert(peri.tokenizer.load(cfg.model))
local order, digit = {}, {}
for pair = 1, 100 do order[pair] = pair - 1 end
peri.rng(1):shuffle(order) -- the same for all seeds and kinds
local known, new = table.move(order, 1, cfg.pairs, 1, {}), table.move(order, cfg.pairs + 1, 100, 1, {})
for d = 0, 9 do digit[d] = assert(tok:id(tostring(d)), "the vocabulary has no digits") end
local function examples(task, pairs, swapped) -- a batch with two masks before each last separator, (B, 2) digits
  local texts, labels = {}, {}
  for i, pair in ipairs(pairs) do
    local a, b = pair // 10, pair % 10
    local value = task == "maths" and cfg.control and math.abs(a - b) or a + b
    texts[i], labels[i] = text_of(task, a, b, swapped()), { digit[value // 10], digit[value % 10] }
  end
  return tok:batch(texts), peri.tensor(labels, "i64")
end
local function logits(net, task, batch) return net(task, batch):narrow(2, batch.ids:size(2) - 2, 2) end -- (B, 2, V)

-- Networks: { shared, maths, code } of each seed, and what trains them.
local function encoder()
  if cfg.model ~= "" then return assert(models.load(cfg.model)) end
  return models.bert.new({ model_type = "bert", vocab_size = tok.size, hidden_size = cfg.dim,
    intermediate_size = 2 * cfg.dim, num_hidden_layers = cfg.layers, num_attention_heads = cfg.dim // 16,
    max_position_embeddings = 32, hidden_dropout_prob = 0, attention_probs_dropout_prob = 0 })
end
local schedule = peri.sched.linear { from = cfg.lr, to = 0, steps = math.max(2, cfg.updates) }
local kinds <const>, learners = { { "shared", "maths", "code" }, { "maths", "maths" }, { "code", "code" } }, {}
for seed = 1, cfg.seeds do
  learners[seed] = {}
  for _, kind in ipairs(kinds) do
    peri.seed(1000 * cfg.seed + seed) -- encoders begin alike
    local body, heads, tasks = encoder(), {}, {}
    for i = 2, #kind do heads[kind[i]] = nn.Linear(body.settings.dim, tok.size) end
    local net, name = nn.MultiTask(body, heads), kind[1] .. seed
    local opt = optim.AdamW(net, { lr = cfg.lr, weight_decay = 0.01 })
    for i = 2, #kind do
      local task, rng = kind[i], peri.rng(1000 * cfg.seed + 10 * seed + #kind[i]) -- and see the same batches
      run:track(("rng_%s_%s"):format(name, task), rng)
      tasks[#tasks + 1] = { name = task, loss = function ()
        local pairs = {}
        for k = 1, cfg.batch do pairs[k] = rng:choice(task == "maths" and order or known) end
        local batch, labels = examples(task, pairs, function () return rng:uniform() < 0.5 end)
        return logits(net, task, batch):reshape({ -1, tok.size }):cross_entropy(labels:reshape { -1 })
      end }
    end
    local stepper = peri.algo.multi_task.new { tasks = tasks, shared = body, optimizer = opt, schedule = schedule }
    learners[seed][kind[1]] = { net = net, stepper = stepper }
    run:track("net_" .. name, net):track("optimizer_" .. name, opt):track("stepper_" .. name, stepper)
  end
end

-- What is judged: both digits right, code in both orders of its lines.
local judged = { maths = { "maths", order }, code = { "code", known }, new = { "code", new } }
local function scores(what, shared) -- of each seed
  local _ <close> = peri.no_grad()
  local task, pairs, list = judged[what][1], judged[what][2], {}
  for seed = 1, cfg.seeds do
    local net, right = learners[seed][shared and "shared" or task].net:eval(), 0
    for _, swap in ipairs { false, true } do
      local batch, labels = examples(task, pairs, function () return swap end)
      right = right + logits(net, task, batch):argmax(-1):eq(labels):all(2):to("f32"):mean():item() / 2
    end
    list[seed] = net:train() and right
  end
  return list
end

-- Loop.
for update in run:steps() do
  local row = {}
  for _, three in ipairs(learners) do
    for _, kind in ipairs(kinds) do row["loss_" .. kind[1]] = three[kind[1]].stepper:step().loss end
  end
  if update % cfg.log_every == 0 or update == cfg.updates then
    for what in pairs(judged) do
      row[what .. "_shared"] = peri.tensor(scores(what, true), "f64"):mean():item()
      row[what .. "_separate"] = peri.tensor(scores(what, false), "f64"):mean():item()
    end
    run:log(update, row)
  end
end
assert(peri.safetensors.save(run:path "net.safetensors", learners[1].shared.net:state_dict()))
run:plot("curves.svg", { { "maths_shared", "maths_separate" }, { "new_shared", "new_separate" } })
for _, shared in ipairs { true, false } do
  run:text("%-8s maths %s; code %s; code of new pairs %s", shared and "shared" or "separate",
    (rl.report(scores("maths", shared))), (rl.report(scores("code", shared))), (rl.report(scores("new", shared))))
end
run:finish()
