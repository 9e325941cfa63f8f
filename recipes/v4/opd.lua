-- opd.lua - three specialists become one student by on-policy distillation, as DeepSeek-V4 merges its own.
--
-- Teaches: English sums, Chinese sums and word lists, with a style each (tasks.domains). A specialist is the base after
-- a cold start on few clean rows and GRPO on its domain alone; it forgets the others, their style first. The student is
-- the base again: it answers problems of all domains itself and learns from what the specialist of each says of every
-- token (reverse KL, whole vocabulary), without a verifier. Beside it:
--   small     the same with a quarter of the answers   sampled     so, with the teachers' word on sampled tokens alone
--   verified  SFT on the specialists' right answers     unfiltered  SFT on all that they answered
--   mixed     cold start and GRPO on all domains, for the compute of the merger; average: the mean of their weights
-- Judged by held-out problems of each domain, sampled at temperature 1, and by the answers' style.
-- Run:  ./perilune run recipes/v4/opd.lua     five minutes on two cores, one of them for the base, which is cached
-- Departs from the paper: three domains, one small model, plain GRPO.
local peri = require "perilune"
local models, optim, sched, rl, algo = peri.models, peri.optim, peri.sched, peri.rl, peri.algo
local recipe, domains = peri.recipe, peri.tasks.domains
local cfg = peri.flags(recipe.with_flags {
  batches  = { 2400, "of pre-training, 64 rows each", range = "[51, inf)" },
  width    = { 128, "of the four layers, a multiple of 32", range = "[32, inf)" },
  nmax     = { 4, "longest chain of a sum", range = "[2, inf)" },
  cold     = { 400, "clean rows of a cold start, gone over six times", range = "[6, inf)" },
  updates  = { 100, "of a specialist's reinforcement", range = "[2, inf)" },
  lr       = { 2e-4, "peak learning rate of reinforcement", range = "[0, inf)" },
  prompts  = { 64, "prompts an update of it, 8 answers each", range = "[1, inf)" },
  merge    = { 100, "updates of a merger", range = "[2, inf)" },
  merge_lr = { 1e-3, "its peak learning rate", range = "[0, inf)" },
  batch    = { 510, "answers an update of the student", range = "[4, inf)" },
  traces   = { 9000, "answers of the specialists for SFT, gone over four times", range = "[32, inf)" },
  start    = { "base", "where the student begins", choices = { "base", "average" } },
  held_out = { 300, "problems of each domain that are only measured", range = "[1, inf)" },
})
local tok, seed, nmax, names, stages, run = domains.tokenizer(), cfg.seed, cfg.nmax, domains.names
local how = { max_new_tokens = 12 * nmax, seed = seed }
local function adam(model) return optim.AdamW(model, { betas = { 0.9, 0.95 }, weight_decay = 0 }) end
local function falling(lr, n) return sched.warmup(10, sched.linear { from = lr, steps = math.max(n - 10, 2) }) end
local function pretrain(to) -- on answers of the corpus, none of them twice
  peri.seed(seed)
  local model = models.llama.new(domains.config(4, cfg.width), { std = 0.03 })
  local rows = domains.corpus_rows(peri.rng(seed), 64 * cfg.batches, { nmax = nmax })
  local stepper = algo.sft.new { model = model, optimizer = adam(model), examples = domains.examples(tok, rows),
    pad = tok.pad, packing = true, max_length = 64, batch_size = 22, seed = seed,
    schedule = sched.warmup(50, sched.linear { from = 2e-3, to = 2e-4, steps = cfg.batches - 50 }) }
  for _ = 1, cfg.batches do stepper:step() end
  return model:save(to)
end
local problems = domains.problems(peri.rng(0), 3 * cfg.held_out, { nmax = nmax, held_out = true })
local function measure(model)
  local texts = rl.rollout(model, tok, problems, domains.accuracy, how).texts
  local scores = domains.measure(problems, texts)
  scores.greedy = rl.summary(rl.rollout(model, tok, problems, domains.accuracy,
    { max_new_tokens = 12 * nmax, greedy = true })).reward
  for i = 1, 3 do run:text("  %s%s", problems[i].prompt, texts[i]) end
  return scores
end
local function specialists() -- by name, and as a list
  local teachers, list = {}, {}
  for k, name in ipairs(names) do
    list[k] = assert(models.load(stages:at(name)))
    teachers[name] = list[k]
  end
  return teachers, list
end
local function averaged(model) return optim.average_(model, select(2, specialists())) end

-- Stages.
local function sft(name, rows, epochs, rows_of)
  local steps = math.max(epochs * rows // 32, 1)
  return { name, from = "base", steps = steps, begin = function (model, rng)
    return algo.sft.new { model = model, optimizer = adam(model), examples = domains.examples(tok, rows_of(rng)),
      batch_size = 32, pad = tok.pad, seed = seed, schedule = falling(5e-4, steps) }
  end }
end
local function trained(name, rows, updates, domain) -- cold start and reinforcement, of a domain or of all
  local cold = name .. "_cold"
  local function clean(rng) return domains.clean_rows(rng, rows, { domain = domain, nmax = nmax }) end
  return sft(cold, rows, 6, clean), { name, from = cold, steps = updates, begin = function (model, rng)
    return algo.grpo.new { model = model, optimizer = adam(model), tokenizer = tok, seed = seed, group = 8,
      reward = { { "accuracy", domains.accuracy }, { "style", domains.style, 0.1 } }, prompts = cfg.prompts, micro = 64,
      rows = domains.problems(rng, 3000, { domain = domain, nmax = nmax }), max_new_tokens = 12 * nmax,
      schedule = sched.wsd { peak = cfg.lr, warmup = 10, steps = updates, decay = 0.3 } }
  end }
end
local function merger(name, batch, signal)
  return { name, from = "base", steps = cfg.merge, begin = function (model, rng)
    return algo.distill.new { model = cfg.start == "average" and averaged(model) or model, teachers = specialists(),
      on_policy = 1, signal = signal, divergence = not signal and "reverse" or nil, tokenizer = tok, seed = seed,
      rows = domains.problems(rng, 9000, { nmax = nmax }), batch_size = batch, micro = 64,
      optimizer = adam(model), schedule = falling(cfg.merge_lr, cfg.merge), max_new_tokens = 12 * nmax }
  end }
end
local function traces(rng, verified) -- of each domain by its specialist
  local rows, teachers = {}, specialists()
  for _, name in ipairs(names) do
    local asked = domains.problems(rng, cfg.traces // 3, { domain = name, nmax = nmax })
    local batch = rl.rollout(teachers[name], tok, asked, domains.worthy, how)
    for i, row in ipairs(batch.rows) do
      row.completion = batch.texts[i]
      if not verified or batch.total[i] == 1 then rows[#rows + 1] = row end
    end
  end
  return rows
end
local function verified(rng) return traces(rng, true) end
local list, quarter = {}, cfg.batch // 4
for _, name in ipairs(names) do list[#list + 1], list[#list + 2] = trained(name, cfg.cold, cfg.updates, name) end
list[7], list[8] = merger("student", cfg.batch), merger("small", quarter)
list[9] = merger("sampled", quarter, "sampled")
list[10], list[11] = sft("verified", cfg.traces, 4, verified), sft("unfiltered", cfg.traces, 4, traces)
list[12], list[13] = trained("mixed", 3 * cfg.cold, math.max(2, cfg.merge * cfg.batch * 5 // (32 * cfg.prompts)))
stages = recipe.stages(list, { seed = seed, measure = measure })
run = recipe.start { name = "opd", flags = cfg, total = stages.total, columns = { "stage", "rewards/accuracy/mean",
  "rewards/style/mean", "divergence", "loss" } }
run:alarms(rl.alarms()):track("stages", stages:place(run:path "models"))
stages:keep("base", assert(models.load(recipe.cached("v4_base", { batches = cfg.batches, width = cfg.width, nmax = nmax,
  seed = seed }, pretrain, cfg.runs))))
for step in run:steps() do run:log(step, stages:step()) end
stages:keep("average", averaged(assert(models.load(stages:at "base"))))
run:text("%s", stages:table { "english", "chinese", "lists", "mean", "greedy", "style", "english_style",
  "chinese_style", "lists_style" })
run:plot("curves.svg", { { "rewards/accuracy/mean", by = "stage" }, { "divergence", by = "stage" } })
run:finish()
