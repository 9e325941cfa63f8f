-- self_vote.lua - a model that is trained on its own majority: how far that goes, and how it falls.
--
-- Teaches: self-training without labels (TTRL, 2504.16084). Sums in English and Chinese; the reward of an answer is
-- whether it is that of the majority of 16. A majority is right far more often than a sample, so a base whose majority
-- is right in four of five problems learns nearly what labels would teach. One whose majority is wrong learns to agree
-- with itself on something else: its reward climbs all the same. What tells the two apart is pass@16 on few problems
-- with labels, which rl.alarms watches. Side by side, with equal updates:
--   vote   labels by the majority of the moment      fixed  by the base's majority of 32, voted once
--   true   labels that are right                     weak_vote, weak_true  the same from a weak base at twice the rate
-- Judged by held-out problems: samples at temperature 1, the majority of 16, pass@16.
-- Run:  ./perilune run recipes/v4/self_vote.lua     ten minutes on two cores, four of them for the bases, cached
-- Departs from the paper: a base that is right when it is greedy; group advantages on all answers, no separate votes.
local peri = require "perilune"
local models, optim, sched, rl, algo = peri.models, peri.optim, peri.sched, peri.rl, peri.algo
local recipe, domains, chain = peri.recipe, peri.tasks.domains, peri.tasks.chain

local cfg = peri.flags(recipe.with_flags {
  batches  = { 3200, "of pre-training, 64 rows each", range = "[51, inf)" },
  weak     = { 600, "of the weak base's", range = "[51, inf)" },
  width    = { 128, "of the four layers, a multiple of 32", range = "[32, inf)" },
  nmax     = { 4, "longest chain of a sum", range = "[2, inf)" },
  updates  = { 100, "of reinforcement", range = "[2, inf)" },
  lr       = { 1e-4, "its peak learning rate", range = "[0, inf)" },
  fast     = { 2e-4, "that of the weak base's half as many updates", range = "[0, inf)" },
  prompts  = { 32, "prompts an update, 16 answers each", range = "[1, inf)" },
  labelled = { 100, "problems with labels, which the alarm watches", range = "[1, inf)" },
  every    = { 5, "updates between two looks at them", range = "[1, inf)" },
  held_out = { 300, "problems that are only measured", range = "[1, inf)" },
})
local GROUP <const> = 16
local tok, seed, stages, run = domains.tokenizer(), cfg.seed, nil, nil
local function adam(model) return optim.AdamW(model, { betas = { 0.9, 0.95 }, weight_decay = 0 }) end
local function problems(rng, n, held_out) -- in both languages
  return chain.problems(rng, n, { nmax = cfg.nmax, held_out = held_out })
end
local function base(batches)
  local settings = { batches = batches, width = cfg.width, nmax = cfg.nmax, seed = seed }
  return assert(models.load(recipe.cached("v4_sums", settings, function (to) -- on answers, none of them twice
    peri.seed(seed)
    local model, rng = models.llama.new(domains.config(4, cfg.width), { std = 0.03 }), peri.rng(seed)
    local rows = domains.corpus_rows(rng, 32 * batches, { nmax = cfg.nmax, domain = "english" })
    for _, row in ipairs(domains.corpus_rows(rng, 32 * batches, { nmax = cfg.nmax, domain = "chinese" })) do
      rows[#rows + 1] = row
    end
    local stepper = algo.sft.new { model = model, optimizer = adam(model), examples = domains.examples(tok, rows),
      pad = tok.pad, packing = true, max_length = 64, batch_size = 26, seed = seed,
      schedule = sched.warmup(50, sched.linear { from = 2e-3, to = 2e-4, steps = batches - 50 }) }
    for _ = 1, batches do stepper:step() end
    return model:save(to)
  end, cfg.runs)))
end

-- What is measured: of all held-out problems at a stage's end, of the labelled ones on the way.
local held_out = problems(peri.rng(0), cfg.held_out + cfg.labelled, true)
local labelled = table.move(held_out, cfg.held_out + 1, #held_out, 1, {})
held_out = table.move(held_out, 1, cfg.held_out, 1, {})
local how = { group = GROUP, max_new_tokens = 12 * cfg.nmax, seed = seed }
local function measure(model)
  local batch = rl.rollout(model, tok, held_out, chain.accuracy, how)
  for i = 1, 2 do run:text("  %s%s", batch.rows[i * GROUP].prompt, batch.texts[i * GROUP]) end
  return rl.pass(batch, { k = { GROUP }, answer = chain.final })
end
local function watch(model)
  local seen = rl.pass(rl.rollout(model, tok, labelled, chain.accuracy, how), { k = { GROUP } })
  return { labelled_pass_1 = seen.pass_1, labelled_pass_16 = seen.pass_16 }
end

-- Stages.
local function voted(rng) -- problems with the answer that the base gives most often
  local rows, kept = problems(rng, 1000, false), {}
  local batch = rl.rollout(assert(models.load(stages:at "base")), tok, rows, chain.accuracy, { group = 32,
    max_new_tokens = 12 * cfg.nmax, seed = seed })
  for k, row in ipairs(rows) do
    local answers = {}
    for i = 1, 32 do answers[i] = chain.final(batch.texts[32 * k - 32 + i]) end
    row.answer = rl.majority(answers, 32)
    if row.answer then kept[#kept + 1] = row end
  end
  return kept
end
local function right(rng) return problems(rng, 3000, false) end
local function grpo(name, from, lr, steps, rows_of, reward)
  return { name, from = from, steps = steps, begin = function (model, rng)
    return algo.grpo.new { model = model, optimizer = adam(model), tokenizer = tok, rows = rows_of(rng), group = GROUP,
      reward = reward, prompts = cfg.prompts, micro = 64, max_new_tokens = 12 * cfg.nmax, seed = seed,
      schedule = sched.warmup(10, sched.constant(lr)) }
  end }
end
local vote, half = peri.reward.vote { answer = chain.final }, math.max(2, cfg.updates // 2)
stages = recipe.stages({ grpo("vote", "base", cfg.lr, cfg.updates, right, vote),
  grpo("fixed", "base", cfg.lr, cfg.updates, voted, chain.accuracy),
  grpo("true", "base", cfg.lr, cfg.updates, right, chain.accuracy),
  grpo("weak_vote", "weak", cfg.fast, half, right, vote),
  grpo("weak_true", "weak", cfg.fast, half, right, chain.accuracy),
}, { seed = seed, measure = measure, watch = watch, every = cfg.every })

-- Loop.
run = recipe.start { name = "self_vote", flags = cfg, total = stages.total, columns = { "stage", "reward",
  "labelled_pass_1", "labelled_pass_16", "entropy" } }
run:alarms(rl.alarms { metric = "labelled_pass_16" }):track("stages", stages:place(run:path "models"))
stages:keep("weak", base(cfg.weak))
stages:keep("base", base(cfg.batches))
for step in run:steps() do run:log(step, stages:step()) end
run:text("%s", stages:table { "pass_1", "majority", "pass_16" })
run:plot("curves.svg", { { "reward", by = "stage" }, { "labelled_pass_1", by = "stage" },
  { "labelled_pass_16", by = "stage" } })
run:finish()
