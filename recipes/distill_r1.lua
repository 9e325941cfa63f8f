-- distill_r1.lua - a small model learns more from a larger one's verified answers than from reinforcement of its own.
--
-- Teaches: the distillation table of DeepSeek-R1 (2501.12948, sections 2.4 and 4.1) on chains of sums in two languages
-- (see r1.lua). A teacher learns by reinforcement; its answers that are right, in the form that is asked for and in one
-- language are the traces. From one pre-trained student, side by side:
--   sft      SFT on the traces                    kl       the teacher's distribution over each of their tokens
--   rl       reinforcement of the student alone   sft_rl   SFT on the traces, then reinforcement
--   control  SFT on as many rows of the corpus
-- Run:  ./perilune run recipes/distill_r1.lua     four minutes on two cores; both bases are cached
--       larger: --layers 6 --width 192 --nmax 5 --batches 2000 --rows 128 --samples 16000
-- Departs from the paper: students of one family and size; traces of sums alone.
local peri = require "perilune"
local models, optim, sched, rl = peri.models, peri.optim, peri.sched, peri.rl
local recipe, algo, chain = peri.recipe, peri.algo, peri.tasks.chain

local cfg = peri.flags(recipe.with_flags {
  layers   = { 4, "of the teacher; the student has 3 of width 64", range = "[1, inf)" },
  width    = { 128, "of the teacher, a multiple of 32", range = "[32, inf)" },
  nmax     = { 4, "longest chain", range = "[2, inf)" },
  batches  = { 2400, "of the teacher's pre-training", range = "[51, inf)" },
  little   = { 500, "of the student's: few, so that it has much to learn", range = "[51, inf)" },
  rows     = { 64, "of a batch of pre-training", range = "[3, inf)" },
  updates  = { 120, "of the teacher's reinforcement", range = "[1, inf)" },
  student  = { 300, "updates of the student's", range = "[1, inf)" },
  after    = { 100, "updates behind the traces", range = "[1, inf)" },
  prompts  = { 64, "prompts an update", range = "[1, inf)" },
  group    = { 8, "answers to each", range = "[2, inf)" },
  lr       = { 2e-4, "peak learning rate of reinforcement", range = "[0, inf)" },
  language = { 0.2, "weight of the language reward", range = "[0, inf)" },
  samples  = { 10000, "answers of the teacher, 4 a prompt, of which at most 2 are traces", range = "[64, inf)" },
  epochs   = { 6, "over the traces", range = "[1, inf)" },
  held_out = { 300, "problems that are only measured", range = "[1, inf)" },
})
local tok, seed, how, longest = chain.tokenizer(), cfg.seed, { nmax = cfg.nmax }, 12 * cfg.nmax
local stages, run
local function adam(model, lr)
  return optim.AdamW(model:parameters(), { lr = lr, betas = { 0.9, 0.95 }, weight_decay = 0 })
end

-- A base of some size: packed rows of the corpus, none of them twice, without chat.
local function base(layers, width, batches)
  return assert(models.load(recipe.cached("distill_r1_base", { batches = batches, rows = cfg.rows, layers = layers,
    width = width, nmax = cfg.nmax, seed = seed }, function (to)
    peri.seed(seed)
    local model = models.llama.new(chain.config(layers, width), { std = 0.03 })
    local rows = chain.corpus_rows(peri.rng(seed), cfg.rows * batches, { nmax = cfg.nmax, chat = 0 })
    local stepper = algo.sft.new { model = model, optimizer = adam(model), examples = chain.examples(tok, rows),
      pad = tok.pad, packing = true, max_length = 64, batch_size = math.ceil(0.41 * cfg.rows), seed = seed,
      schedule = sched.warmup(50, sched.linear { from = 2e-3, to = 2e-4, steps = batches - 50 }) }
    for _ = 1, batches do stepper:step() end
    return model:save(to)
  end, cfg.runs)))
end

local problems = chain.problems(peri.rng(0), cfg.held_out, { nmax = cfg.nmax, held_out = true })
local function measure(model)
  local texts = rl.rollout(model, tok, problems, chain.accuracy, { max_new_tokens = longest, seed = seed }).texts
  local scores = chain.measure(problems, texts)
  scores.greedy = rl.summary(rl.rollout(model, tok, problems, chain.accuracy,
    { max_new_tokens = longest, greedy = true })).reward
  for i = 1, 2 do run:text("  %s%s", problems[i].prompt, texts[i]) end
  return scores
end

-- Stages.
local function grpo(model, rng)
  return algo.grpo.new { model = model, optimizer = adam(model, cfg.lr), tokenizer = tok, seed = seed, micro = 64,
    reward = { { "accuracy", chain.accuracy }, { "format", chain.format, 0.1 },
      { "language", chain.language, cfg.language } }, rows = chain.problems(rng, 5000, how), prompts = cfg.prompts,
    group = cfg.group, max_new_tokens = longest, schedule = sched.warmup(10, sched.constant(cfg.lr)) }
end
local function traces() -- the same for all who ask; at most two a prompt
  local batch = rl.rollout(assert(models.load(stages:at "teacher")), tok, chain.problems(peri.rng(seed),
    cfg.samples // 4, how), chain.worthy, { group = 4, max_new_tokens = longest, seed = seed })
  local rows, places = {}, rl.select(batch.total, { group = 4, keep = 2, least = 1 })
  for k, i in ipairs(places) do rows[k] = { prompt = batch.rows[i].prompt, completion = batch.texts[i] } end
  run:text("%d of %d answers of the teacher are traces", #places, #batch.texts)
  return rows
end
local function corpus(rng) -- as many rows
  return chain.corpus_rows(rng, #traces(), { nmax = cfg.nmax, chat = 0 })
end
local steps = cfg.epochs * cfg.samples // 2 // 32
local schedule = sched.warmup(10, sched.linear { from = 5e-4, to = 0, steps = math.max(steps - 10, 2) })
local function sft(rows_of)
  return function (model, rng)
    return algo.sft.new { model = model, optimizer = adam(model), examples = chain.examples(tok, rows_of(rng)),
      batch_size = 32, pad = tok.pad, seed = seed, schedule = schedule }
  end
end
local function kl(model)
  return algo.distill.new { model = model, teacher = assert(models.load(stages:at "teacher")), optimizer = adam(model),
    examples = chain.examples(tok, traces()), batch_size = 32, pad = tok.pad, seed = seed, schedule = schedule }
end
stages = recipe.stages({
  { "teacher", from = "teacher_base", steps = cfg.updates, begin = grpo },
  { "sft", from = "student_base", steps = steps, begin = sft(traces) },
  { "rl", from = "student_base", steps = cfg.student, begin = grpo },
  { "sft_rl", from = "sft", steps = cfg.after, begin = grpo },
  { "control", from = "student_base", steps = steps, begin = sft(corpus) },
  { "kl", from = "student_base", steps = steps, begin = kl },
}, { seed = seed, measure = measure })

-- Loop, and R1's table.
run = recipe.start { name = "distill_r1", flags = cfg, total = stages.total, columns = { "stage",
  "rewards/accuracy/mean", "completions/mean_length", "sampling/sampling_logp_difference/max", "loss" } }
run:alarms(rl.alarms()):track("stages", stages:place(run:path "models"))
stages:keep("student_base", base(3, 64, cfg.little))
stages:keep("teacher_base", base(cfg.layers, cfg.width, cfg.batches))
for step in run:steps() do run:log(step, stages:step()) end
run:text("%s", stages:table { "accuracy", "greedy", "format", "language", "words", "steps" })
run:plot("curves.svg", { { "rewards/accuracy/mean", by = "stage" }, { "completions/mean_length", by = "stage" } })
run:finish()
