-- multi_task.lua - one encoder for sums and for code: what two tasks teach each other.
--
-- Teaches: multi-task learning (Caruana 1997): a small BERT that both tasks share, a head for each that gives scores
-- over the vocabulary, losses weighed by hand, by uncertainty (Kendall et al. 2018) or by GradNorm (Chen et al. 2018),
-- gradients with or without surgery (PCGrad; Yu et al. 2020). A sum is 3+5=08; code is x=3y=5x+y=08, whose numbers have
-- to be looked up first. Code has some of the pairs of digits in its training set, sums have all: what code does with
-- the others shows what the tasks teach each other.
-- Run:  ./perilune run recipes/meta/multi_task.lua    one network: a minute of one core. --train math and --train code
--       are the same network with one task and as many updates; --weighting uncertainty, --surgery
-- Departs from the papers: generated tasks of a few tokens.
local peri = require "perilune"
local nn, optim, rl, recipe = peri.nn, peri.optim, peri.rl, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  train     = { "both", "tasks", choices = { "both", "math", "code" } },
  weighting = { "fixed", "of the losses", choices = { "fixed", "uncertainty", "gradnorm" } },
  surgery   = { false, "gradients lose what is against the other task's" },
  seeds     = { 1, "networks, one after the other in each step", range = "[1, inf)" },
  updates   = { 1000, "optimizer steps", range = "[0, inf)", budget = true },
  batch     = { 32, "examples of each task in an update", range = "[1, inf)" },
  pairs     = { 60, "of the 100 pairs of digits that the code to learn from has", range = "[1, 99]" },
  lr        = { 2e-3, "learning rate", range = "[0, inf)" },
  dim       = { 32, "width of the encoder", range = "[2, inf)" },
  layers    = { 2, "of the encoder", range = "[1, inf)" },
  log_every = { 100, "updates between rows of metrics", range = "[1, inf)" },
})
local run = recipe.start { name = "multi_task", flags = cfg, total = cfg.updates,
  columns = { "loss", "math", "code", "code_new" } }

-- Tokens: ten digits, then these.
local X <const>, Y <const>, PLUS <const>, EQUALS <const>, MASK <const>, VOCAB <const> = 10, 11, 12, 13, 14, 15
local write = {
  math = function (a, b) return { a, PLUS, b, EQUALS, MASK, MASK } end,
  code = function (a, b, swap)
    local first, second = swap and Y or X, swap and X or Y
    return { first, EQUALS, swap and b or a, second, EQUALS, swap and a or b, X, PLUS, Y, EQUALS, MASK, MASK }
  end,
}
local function example(task, pair, swap) -- ids, and the two digits behind the last sign of equality
  local a, b = pair // 10, pair % 10
  return write[task](a, b, swap), { (a + b) // 10, (a + b) % 10 }
end

local order = {}
for pair = 1, 100 do order[pair] = pair - 1 end
peri.rng(1):shuffle(order) -- the same for all seeds and arms
local known, new = table.move(order, 1, cfg.pairs, 1, {}), table.move(order, cfg.pairs + 1, 100, 1, {})
local train = { math = order, code = known }

local function examples(task, pairs, swapped)
  local ids, labels = {}, {}
  for i, pair in ipairs(pairs) do ids[i], labels[i] = example(task, pair, swapped(i)) end
  return peri.tensor(ids, "i64"), peri.tensor(labels, "i64")
end

-- Networks, and their steppers.
local function logits(net, task, ids) -- (B, 2, VOCAB) at the two masks
  return (net(task, ids):narrow(2, ids.shape[2] - 1, 2))
end
local learners, schedule = {}, peri.sched.cosine { from = cfg.lr, to = 0, steps = math.max(1, cfg.updates) }
for i = 1, cfg.seeds do
  peri.seed(cfg.seed + i - 1)
  local bert = peri.models.bert.new { model_type = "bert", vocab_size = VOCAB, hidden_size = cfg.dim,
    intermediate_size = 2 * cfg.dim, num_hidden_layers = cfg.layers, num_attention_heads = 2,
    max_position_embeddings = 12, type_vocab_size = 1, hidden_dropout_prob = 0, attention_probs_dropout_prob = 0 }
  local net = nn.MultiTask(bert, { math = nn.Linear(cfg.dim, VOCAB), code = nn.Linear(cfg.dim, VOCAB) })
  local rng, opt, tasks = peri.rng(cfg.seed + i - 1), optim.AdamW(net, { lr = cfg.lr, weight_decay = 0.01 }), {}
  for _, task in ipairs { "math", "code" } do
    if cfg.train == "both" or cfg.train == task then
      tasks[#tasks + 1] = { name = task, loss = function ()
        local pairs = {}
        for k = 1, cfg.batch do pairs[k] = rng:choice(train[task]) end
        local ids, labels = examples(task, pairs, function () return rng:uniform() < 0.5 end)
        return logits(net, task, ids):reshape({ -1, VOCAB }):cross_entropy(labels:reshape { -1 })
      end }
    end
  end
  learners[i] = { net = net, stepper = peri.algo.multi_task.new { tasks = tasks, shared = bert, optimizer = opt,
    weighting = cfg.weighting, surgery = cfg.surgery, schedule = schedule } }
  run:track("net" .. i, net):track("optimizer" .. i, opt):track("stepper" .. i, learners[i].stepper)
  run:track("rng" .. i, rng)
end

local function score(net, task, pairs) -- share of sums of which both digits are right, code in both orders
  local _ <close> = peri.no_grad()
  local right = 0
  for _, swap in ipairs { false, true } do
    local ids, labels = examples(task, pairs, function () return swap end)
    right = right + logits(net:eval(), task, ids):argmax(-1):eq(labels):all(2):to("f32"):mean():item() / 2
  end
  net:train()
  return right
end
local function scores(task, pairs)
  local list = {}
  for i, learner in ipairs(learners) do list[i] = score(learner.net, task, pairs) end
  return list
end
local function mean(list) return peri.tensor(list, "f64"):mean():item() end

-- Loop.
run:restore()
for update in run:steps() do
  local metrics
  for _, learner in ipairs(learners) do metrics = learner.stepper:step() end
  if update % cfg.log_every == 0 or update == cfg.updates then
    metrics.math, metrics.code = mean(scores("math", order)), mean(scores("code", known))
    metrics.code_new = mean(scores("code", new))
    run:log(update, metrics)
  end
end
assert(peri.safetensors.save(run:path "net.safetensors", learners[1].net:state_dict()))
run:plot("curves.svg", { { "math", "code", "code_new" }, "loss" })
run:text("right: sums %s; code of known pairs %s; code of %d new pairs %s", (rl.report(scores("math", order))),
  (rl.report(scores("code", known))), #new, (rl.report(scores("code", new))))
run:finish()
