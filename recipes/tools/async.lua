-- async.lua - sampling and learning at once: workers sample with weights that are a little old.
--
-- Teaches: asynchronous reinforcement (AReaL, 2505.24298; IMPALA, 1802.01561) that can be made again: of each batch one
-- number is recorded, the weights that it was sampled with, and with that list a run is the same to the byte. No batch
-- is older than --max_staleness updates; truncated importance sampling makes up for their age. The task is tool_use's.
-- Judged by: updates a minute beside the synchronous loop on as many cores, and hard, the share of held-out problems.
-- Run:  PERI_THREADS=1 ./perilune run recipes/tools/async.lua     eight minutes on two cores, of which one samples and
--       one learns; four of them are to pre-train, once
--       ... --schedule runs/async/schedule.json     the same run again
-- Arms: --max_staleness 0: the learner waits for each batch. --order fixed: always the oldest, without a list the same
--       run each time. --importance 0: without the correction; ratio and clip are still to the policy that sampled.
-- Departs from the papers: one batch an update, sampled by one worker; a worker ends its batch with the weights that
--       it began with.
local peri = require "perilune"
local models, rl, recipe, sft, products = peri.models, peri.rl, peri.recipe, peri.algo.sft, peri.tasks.products

local cfg = peri.flags(recipe.with_flags {
  samplers      = { 1, "workers", range = "[1, 64]" },
  max_staleness = { 1, "updates that weights may be old", range = "[0, inf)" },
  order         = { "newest", "of the weights that are there", choices = { "newest", "fixed" } },
  schedule      = { "", "file of an earlier run's list" },
  importance    = { 2.0, "largest factor of importance sampling; 0: none", range = "[0, inf)" },
  updates       = { 40, "optimizer steps", range = "[0, inf)", budget = true },
  timed         = { 6, "updates of the synchronous loop beside it; 0: none", range = "[0, inf)" },
  prompts       = { 64, "problems an update", range = "[1, inf)" },
  group         = { 8, "answers to each", range = "[2, inf)" },
  micro         = { 64, "answers in one forward and backward pass", range = "[1, inf)" },
  lr            = { 2e-4, "learning rate after 10 updates", range = "[0, inf)" },
  pretrain      = { 600, "batches of 128 rows", range = "[0, inf)" },
  width         = { 128, "of the four layers, a multiple of 32", range = "[32, inf)" },
  held_out      = { 300, "hard problems that are only measured", range = "[1, inf)" },
})

-- Task and model.
local tok, shape, TP <const>, LONGEST <const> = products.tokenizer(), products.config(4, cfg.width), 0.1, 48
local held_out = products.problems(peri.rng(0), cfg.held_out, { easy = 0, held_out = true })
local settings = { batches = cfg.pretrain, tp = TP, lr = 1e-3, std = 0.08, seed = cfg.seed, shape = shape }
local base = recipe.cached("products", settings, function (path)
  peri.seed(settings.seed)
  local model, rng = models.llama.new(shape, { std = settings.std }), peri.rng(settings.seed)
  local opt = peri.optim.AdamW(model:parameters(), { betas = { 0.9, 0.95 }, weight_decay = 0 })
  for i in peri.steps(cfg.pretrain) do
    local rows = products.examples(tok, products.corpus(rng, 128, { calls = TP }))
    sft.update(model, opt, rows, { lr = settings.lr * math.min(i / 50, 1 - 0.9 * i / cfg.pretrain), pad = tok.pad })
  end
  return model:save(path)
end, cfg.runs)

-- What a worker is made of: it knows the path, and asks for the rest.
local function make()
  local perilune = require "perilune"
  local task = perilune.tasks.products
  local words = task.tokenizer()
  return { model = assert(perilune.models.load(base)), tokenizer = words, environment = task.environment(words) }
end
local size = { prompts = cfg.prompts, group = cfg.group, micro = cfg.micro, seed = cfg.seed, lr = cfg.lr }
local function learner(path, o, more) -- from a path and plain values: it is made in a worker, too
  local perilune = require "perilune"
  local task, model = perilune.tasks.products, assert(perilune.models.load(path))
  local how = { model = model, tokenizer = task.tokenizer(), rows = task.problems(perilune.rng(o.seed), 20000),
    optimizer = perilune.optim.AdamW(model:parameters(), { betas = { 0.9, 0.95 }, weight_decay = 0 }), seed = o.seed,
    prompts = o.prompts, group = o.group, micro = o.micro, max_new_tokens = LONGEST, max_turns = 2,
    schedule = perilune.sched.warmup(10, perilune.sched.constant(o.lr)) }
  for name, value in pairs(more) do how[name] = value end
  return perilune.algo.grpo.new(how), model
end
local function synchronous(path, o, n) -- updates a minute, without the first, which starts everything
  local perilune = require "perilune"
  local task = perilune.tasks.products
  local stepper = learner(path, o, { environment = task.environment(task.tokenizer()) })
  stepper:step()
  local began = perilune.time()
  for _ = 2, n do stepper:step() end
  return (n - 1) * 60 / (perilune.time() - began)
end

local run = recipe.start { name = "async", flags = cfg, total = cfg.updates,
  columns = { "reward", "staleness", "sampling/importance_sampling_ratio/max", "hard" } }
local beside -- the other loop, on as many cores
if cfg.timed > 1 and not cfg.resume then
  local cores = peri.threads() + cfg.samplers
  beside = peri.worker({ run = synchronous, threads = cores }, base, size, cfg.timed):result()
  run:text("synchronous, %d threads: %.2f updates a minute", cores, beside)
end
local schedule = cfg.schedule ~= "" and assert(peri.json.decode(assert(peri.files.read(cfg.schedule)))) or nil
local samplers <close> = rl.samplers { make = make, n = cfg.samplers, max_staleness = cfg.max_staleness,
  order = cfg.order, schedule = schedule }
local stepper, model = learner(base, size, { samplers = samplers,
  importance = cfg.importance > 0 and { mode = "token_truncate", max = cfg.importance } or nil })
run:track("model", model):track("optimizer", stepper.optimizer):track("grpo", stepper):track("samplers", samplers)

-- Loop.
local began, from, staleness = nil, 0, 0
for step in run:steps() do
  local row = stepper:step()
  staleness = staleness + row.staleness
  if step == cfg.updates then
    local how = { environment = products.environment(tok), max_turns = 2, max_new_tokens = LONGEST }
    row.hard = rl.summary(rl.rollout(model, tok, held_out, nil, how)).reward
  end
  run:log(step, row, { waited = samplers.waited })
  if not began then began, from = peri.time(), step end
end
assert(model:save(run:path "model"))
assert(peri.files.write(run:path "schedule.json", peri.json.encode(samplers.schedule)))
local done = cfg.updates - from
if began and done > 0 then
  run:text("asynchronous, %d threads and %d workers: %.2f updates a minute (synchronous %s), batches %.2f updates old",
    peri.threads(), cfg.samplers, done * 60 / (peri.time() - began), beside and ("%.2f"):format(beside) or "not timed",
    staleness / (done + 1))
end
run:text("held-out hard %.3f; the list of weights is %s", run:last "hard" or 0, run:path "schedule.json")
run:finish()
