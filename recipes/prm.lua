-- prm.lua - a process reward model beside an outcome reward model, and what best of n is worth with each.
--
-- Teaches: reward models for reasoning (of outcomes 2110.14168, of steps 2305.20050). A problem is a chain of sums on a
-- clock of ten, "8+4+3=", an answer its partial results, "2,5,". The base model has learned from texts with careless
-- errors and with one that is a habit: 5 is mostly taken for 1. So most answers to a problem with a 5 are wrong in the
-- same way, and a vote cannot help. Two scorers with the base's weights learn from the same answers: one is told
-- whether the last result is right, the other of each step whether it is. Judged on held-out problems: the answer that
-- each likes best of n, beside the majority, the majority weighted by the process model, and a random answer. Best of
-- 16, seed 1: random .29, majority .48, outcome .38, process .90, weighted .92. A scorer that knows nothing picks among
-- different answers and does worse than a random one, since what is right is said more often.
-- Run:  ./perilune run recipes/prm.lua     half a minute on two cores
--       --updates 300: before either has learned to check a sum, when a vote is better than both
-- Departs from the papers: steps are labelled by a rule, not by people; a model of 0.1M parameters.
local peri = require "perilune"
local algo, loss, models, optim, rl, recipe = peri.algo, peri.loss, peri.models, peri.optim, peri.rl, peri.recipe
local clock = peri.tasks.clock

local cfg = peri.flags(recipe.with_flags {
  answers     = { 8000, "answers of the base that are learned from", range = "[4, inf)" },
  updates     = { 800, "of each scorer", range = "[0, inf)", budget = true },
  batch       = { 128, "answers an update", range = "[1, inf)" },
  lr          = { 2e-3, "peak learning rate", range = "[0, inf)" },
  problems    = { 200, "held out", range = "[1, inf)" },
  n           = { 16, "answers to each of them", range = "[4, inf)" },
  steps       = { 4, "sums in a chain", range = "[1, 9]" },
  careless    = { 0.2, "share of the steps that are wrong by accident", range = "[0, 1]" },
  habit       = { 0.7, "how often 5 is taken for 1", range = "[0, 1]" },
  pretraining = { 400, "batches of the base", range = "[0, inf)" },
  width       = { 64, "of the model", range = "[16, inf)" },
})

-- Base.
local tok = peri.text.chars(clock.alphabet)
local run = recipe.start { name = "prm", flags = cfg, total = cfg.updates, columns = { "prm/accuracy" } }
local errors = { steps = cfg.steps, careless = cfg.careless, habit = cfg.habit }
local settings = { width = cfg.width, batches = cfg.pretraining, seed = cfg.seed, errors = errors }
local path = recipe.cached("prm-base", settings, function (to)
  local model = models.llama.new({ architectures = { "LlamaForCausalLM" }, model_type = "llama", vocab_size = tok.size,
    hidden_size = cfg.width, intermediate_size = 2 * cfg.width, num_hidden_layers = 2,
    num_attention_heads = cfg.width // 16, max_position_embeddings = 48, eos_token_id = tok.eos,
    pad_token_id = tok.pad }, { std = 0.1 })
  local learner = algo.sft.new { model = model, tokenizer = tok, batch_size = 64, optimizer = optim.AdamW(model, {
    lr = 2e-3 }), schedule = peri.sched.warmup(50, peri.sched.cosine { from = 2e-3, steps = cfg.pretraining }),
    rows = clock.corpus(peri.rng(cfg.seed), math.max(64 * cfg.pretraining, 1), errors) }
  for _ = 1, cfg.pretraining do learner:step() end
  return model:save(to)
end, cfg.runs)
local base = assert(models.load(path))
peri.seed(cfg.seed)
local rng = peri.rng(cfg.seed + 1)
local function sample(count, group)
  local problems = {}
  for i = 1, count do problems[i] = clock.problem(rng, { steps = cfg.steps }) end
  return rl.rollout(base, tok, problems, clock.reward, { group = group, max_new_tokens = 2 * cfg.steps + 1 })
end

-- Two scorers of the same answers. Of those without a step nothing can be said.
local batch, rows = sample(cfg.answers // 4, 4), { prm = {}, orm = {} }
for i, text in ipairs(batch.texts) do
  local prompt, steps, labels = batch.rows[i].prompt, clock.judge(batch.rows[i], text)
  if #steps > 0 then
    table.insert(rows.prm, { prompt = prompt, completions = steps, labels = labels })
    table.insert(rows.orm, { prompt = prompt, completion = text, label = batch.total[i] == 1 })
  end
end
local total = math.max(cfg.updates, 1)
local schedule = peri.sched.warmup(20, peri.sched.cosine { from = cfg.lr, to = cfg.lr / 10, steps = total })
local scorers, own = {}, { prm = { separator = "," }, orm = { level = "last" } }
for _, name in ipairs { "prm", "orm" } do
  local model, o = models.scorer(base), own[name]
  o.model, o.tokenizer, o.rows, o.batch_size, o.seed = model, tok, rows[name], cfg.batch, cfg.seed
  o.optimizer, o.schedule = optim.AdamW(model, { lr = cfg.lr, weight_decay = 0 }), schedule
  scorers[name] = { model = model, stepper = algo[name == "prm" and "prm" or "reward_model"].new(o) }
  run:track(name, model):track(name .. "_optimizer", o.optimizer):track(name .. "_stepper", scorers[name].stepper)
end
for step in run:steps() do
  local row = {}
  for name, scorer in pairs(scorers) do
    for key, value in pairs(scorer.stepper:step()) do row[("%s/%s"):format(name, key)] = value end
  end
  run:log(step, row)
end

-- Best of n.
peri.seed(cfg.seed)
local held, asked, last, whole, labels = sample(cfg.problems, cfg.n), {}, {}, {}, {}
for i, text in ipairs(held.texts) do
  local steps
  steps, labels[i], last[i] = clock.judge(held.rows[i], text)
  asked[i] = { prompt = held.rows[i].prompt, completions = #steps > 0 and steps or { "" } }
  whole[i] = tok:encode(held.rows[i].prompt .. text)
  table.insert(whole[i], tok.eos)
end
local of_steps, process = algo.prm.scores(scorers.prm.model, tok, asked, { separator = "," }), {}
local outcome = peri.no_grad(function ()
  return scorers.orm.model:last(peri.batch.pad(whole, { pad = tok.pad, side = "right" })):tolist()
end)
for i, list in ipairs(of_steps) do process[i] = loss.aggregate(list, "min") end
run:text("n   random majority weighted  outcome  process")
for _, n in ipairs { 1, 4, cfg.n } do
  local hits = { 0, 0, 0, 0, 0 }
  for first = 1, #held.texts, cfg.n do
    local function some(list) return table.move(list, first, first + n - 1, 1, {}) end
    local answers, right = some(last), some(held.total)
    local truth = held.rows[first].answer
    local function add(k, share) hits[k] = hits[k] + share / cfg.problems end
    for _, one in ipairs(right) do add(1, one / n) end
    add(2, rl.majority(answers, n) == truth and 1 or 0)
    add(3, rl.majority(answers, n, some(process)) == truth and 1 or 0)
    add(4, right[rl.best_of_n(some(outcome), n)[1]])
    add(5, right[rl.best_of_n(some(process), n)[1]])
  end
  run:text("%-2d %8.3f %8.3f %8.3f %8.3f %8.3f", n, table.unpack(hits))
end
for i = 1, math.min(3, #held.texts) do
  local sample_of = { problem = held.rows[i].prompt, answer = held.texts[i], labels = labels[i], steps = of_steps[i] }
  run:sample(cfg.updates, sample_of, ("  %s %s %.2f"):format(sample_of.problem, sample_of.answer, process[i]))
end
run:plot("curves.svg", { { "prm/accuracy", "orm/accuracy", title = "accuracy" } })
run:finish()
