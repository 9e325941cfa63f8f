-- grm.lua - a generative reward model, trained by reinforcement on a rubric, judges the actor; beside a scalar one.
--
-- Teaches: DeepSeek-V4's reward model, which is the actor itself: asked what an answer is worth it thinks, then says
-- a score. English sums; the true utility of an answer, whether it is right, is a rule, so all can be held against it.
-- The base has read sums and verdicts on sums, both with mistakes (tasks.verdicts). From answers that the rule graded
--   scalar  the base with a head that gives a number learns to tell right from wrong (binary cross-entropy)
--   grm     the base learns by GRPO: a verdict's reward is that it is the rubric's
-- and three actors, the base again, learn by GRPO from what they are told of their answers:
--   by_truth   by the rule            by_scalar   by the scalar model            by_grm   by the generative one
-- Judged by how often a judge agrees with the rule on held-out answers, and by what the actors' held-out answers are
-- worth in truth, beside what their judge believes (rewards/truth has no weight and is logged).
-- Run:  ./perilune run recipes/v4/grm.lua     eight minutes on two cores, two of them for the base, which is cached
-- Departs from the paper: a rubric of one point; the judge is a copy of the base and does not go on with the actor.
local peri = require "perilune"
local models, optim, sched, rl, algo = peri.models, peri.optim, peri.sched, peri.rl, peri.algo
local recipe, reward, chain, verdicts = peri.recipe, peri.reward, peri.tasks.chain, peri.tasks.verdicts

local cfg = peri.flags(recipe.with_flags {
  batches  = { 2400, "of pre-training, 64 rows each", range = "[51, inf)" },
  width    = { 128, "of the four layers, a multiple of 32", range = "[32, inf)" },
  nmax     = { 4, "longest chain of a sum", range = "[2, inf)" },
  graded   = { 4000, "answers of the base that the rule grades", range = "[8, inf)" },
  judging  = { 200, "updates of the generative judge; the scalar one has as many", range = "[2, inf)" },
  updates  = { 80, "of an actor", range = "[2, inf)" },
  lr       = { 2e-4, "peak learning rate of reinforcement", range = "[0, inf)" },
  prompts  = { 64, "prompts an update, 8 answers each", range = "[1, inf)" },
  held_out = { 300, "problems that are only measured", range = "[1, inf)" },
})
local tok, seed, longest, how, stages, run = verdicts.tokenizer(), cfg.seed, 12 * cfg.nmax, { nmax = cfg.nmax }
local function adam(model) return optim.AdamW(model, { betas = { 0.9, 0.95 }, weight_decay = 0 }) end
local function judge(model)
  return reward.judge { model = model, tokenizer = tok, rubric = verdicts.rubric, part = "whole", lowest = 0,
    highest = 1, max_new_tokens = longest, batch_size = 128 }
end
local function scalar(model) return reward.model { model = model, tokenizer = tok } end
local function load(name) return assert(models.load(stages:at(name))) end
local function pretrain(to)
  peri.seed(seed)
  local model = models.llama.new(verdicts.config(4, cfg.width), { std = 0.03 })
  local rows = verdicts.corpus_rows(peri.rng(seed), 64 * cfg.batches, how)
  local stepper = algo.sft.new { model = model, optimizer = adam(model), examples = chain.examples(tok, rows),
    pad = tok.pad, packing = true, max_length = 96, batch_size = 22, seed = seed,
    schedule = sched.warmup(50, sched.linear { from = 2e-3, to = 2e-4, steps = cfg.batches - 50 }) }
  for _ = 1, cfg.batches do stepper:step() end
  return model:save(to)
end

-- What is measured: a judge by the rule, an actor by what its answers are worth and by what its judge believes.
local held_out, seen = verdicts.problems(peri.rng(0), cfg.held_out, { nmax = cfg.nmax, held_out = true }), nil
local function graded(model, rows) -- answers of the base, as many right as wrong
  return verdicts.balanced(rl.rollout(model, tok, rows, chain.accuracy, { group = 4, max_new_tokens = longest,
    seed = seed }))
end
local function says(told, limit, rows, texts) -- which answers a judge takes for right
  local values, out = told(rows, texts), {}
  for i = 1, #rows do out[i] = (values[i] or 0) > limit and 1 or 0 end
  return out
end
local function mean(list) return (peri.tasks.metrics.mean(list)) end
local function measure(model, name)
  seen = seen or table.pack(graded(model, held_out)) -- the base is measured first
  local told = (name == "grm" or name == "base") and judge(model) or name == "scalar" and scalar(model)
  local scores, right = {}, {}
  local said = told and says(told, name == "scalar" and 0 or 0.5, seen[1], seen[2])
  for i, grade in ipairs(said and seen[3] or {}) do right[i] = said[i] == grade and 1 or 0 end
  scores.agreement = told and mean(right) or nil
  if name == "grm" or name == "scalar" then return scores end
  local batch = rl.rollout(model, tok, held_out, chain.accuracy, { max_new_tokens = longest, seed = seed })
  scores.truth = mean(batch.total)
  if name == "by_grm" then scores.believed = mean(says(judge(load "grm"), 0.5, batch.rows, batch.texts)) end
  if name == "by_scalar" then scores.believed = mean(says(scalar(load "scalar"), 0, batch.rows, batch.texts)) end
  run:text("  %s%s", held_out[1].prompt, batch.texts[1])
  return scores
end

-- Stages.
local function reinforced(model, rows, told)
  return algo.grpo.new { model = model, optimizer = adam(model), tokenizer = tok, rows = rows, reward = told, group = 8,
    prompts = cfg.prompts, micro = 64, max_new_tokens = longest, seed = seed,
    schedule = sched.warmup(10, sched.constant(cfg.lr)) }
end
local function train_scalar(model, rng)
  local rows, texts, grades = graded(model, verdicts.problems(rng, cfg.graded // 4, how))
  local list, scorer = {}, models.scorer(model)
  for i, row in ipairs(rows) do list[i] = { prompt = row.prompt, completion = texts[i], label = grades[i] == 1 } end
  return algo.reward_model.new { model = scorer, optimizer = adam(scorer), tokenizer = tok, rows = list, level = "last",
    batch_size = 64, seed = seed, schedule = sched.warmup(10, sched.linear { from = 3e-4, steps = cfg.judging }) }
end
local function train_grm(model, rng)
  local rows, texts, grades = graded(model, verdicts.problems(rng, cfg.graded // 4, how))
  local asked = judge(model):ask(rows, texts)
  for i, row in ipairs(asked) do row.score = grades[i] end
  return reinforced(model, asked, reward.agreement { lowest = 0, highest = 1 })
end
local function actor(by)
  return { "by_" .. by, from = "base", steps = cfg.updates, begin = function (model, rng)
    local told = by == "grm" and judge(load "grm") or by == "scalar" and scalar(load "scalar") or chain.accuracy
    return reinforced(model, verdicts.problems(rng, 3000, how), { { "judge", told }, { "truth", chain.accuracy, 0 } })
  end }
end
stages = recipe.stages({ { "scalar", from = "base", steps = cfg.judging, begin = train_scalar },
  { "grm", from = "base", steps = cfg.judging, begin = train_grm }, actor "truth", actor "scalar", actor "grm" },
  { seed = seed, measure = measure })
run = recipe.start { name = "grm", flags = cfg, total = stages.total, columns = { "stage", "reward",
  "rewards/judge/mean", "rewards/truth/mean", "accuracy" } }
run:alarms(rl.alarms { metric = "rewards/truth/mean" }):track("stages", stages:place(run:path "models"))
stages:keep("base", assert(models.load(recipe.cached("v4_judge", { batches = cfg.batches, width = cfg.width,
  nmax = cfg.nmax, seed = seed }, pretrain, cfg.runs))))
for step in run:steps() do run:log(step, stages:step()) end
run:text("%s", stages:table { "agreement", "truth", "believed" })
run:plot("curves.svg", { { "rewards/judge/mean", by = "stage" }, { "rewards/truth/mean", by = "stage" } })
run:finish()
