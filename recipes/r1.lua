-- r1.lua - DeepSeek-R1 whole: four stages from a base model to one that reasons in one language and does no harm.
--
-- Teaches: R1's pipeline (2501.12948, section 2.3) on chains of sums in English and Chinese words. The base, trained on
-- answers that mix both languages, make mistakes and give up, is right when it is greedy and wrong when it samples.
--   zero      R1-Zero: GRPO from the base, accuracy and form; right, with longer answers that mix languages
--   cold      1a: SFT of the base on a few long clean chains, the cold start
--   reason    1b: GRPO with the share of the prompt's language in the thoughts as a third reward
--   reject    2a: SFT of the base on answers of 1b that are right, in one language, without repetition; and on chat
--   all       2b: GRPO on sums and chat; two reward models say how helpful a summary and how harmless an answer is
--   language  R1-Zero with the language reward: against zero, what one language costs
-- Run:  ./perilune run recipes/r1.lua   seven minutes on two cores; --stage NAME --models DIR: one stage alone
-- Departs from the paper: one on-policy epoch, so the clip is idle; a KL penalty in 2b alone; the base is its own.
local peri = require "perilune"
local models, optim, sched, rl = peri.models, peri.optim, peri.sched, peri.rl
local recipe, algo, chain = peri.recipe, peri.algo, peri.tasks.chain

local cfg = peri.flags(recipe.with_flags {
  stage    = { "", "one alone: zero, cold, reason, reject, helpful, harmless, all or language" },
  models   = { "", "folder of the stages' models; empty: in the run's folder" },
  batches  = { 2500, "of pre-training, 128 rows each", range = "[51, inf)" },
  width    = { 128, "of the four layers, a multiple of 32", range = "[32, inf)" },
  nmax     = { 4, "longest chain", range = "[2, inf)" },
  updates  = { 200, "of each stage of reinforcement; 2b has three tenths", range = "[2, inf)" },
  prompts  = { 64, "prompts an update", range = "[1, inf)" },
  group    = { 8, "answers to each", range = "[2, inf)" },
  lr       = { 2e-4, "peak learning rate of reinforcement", range = "[0, inf)" },
  language = { 0.5, "weight of the language reward", range = "[0, inf)" },
  beta     = { 0.1, "of the KL to 2a in 2b; 0: what the judges overrate is soon all that is said", range = "[0, inf)" },
  cold     = { 600, "rows of the cold start", range = "[6, inf)" },
  samples  = { 8000, "answers for rejection sampling; 8/5 of it pairs for reward models", range = "[40, inf)" },
})
local HELD_OUT <const> = 300 -- problems, and as many rows of chat, that are only measured
local tok, seed, how, longest, stages, run = chain.tokenizer(), cfg.seed, { nmax = cfg.nmax }, 12 * cfg.nmax
local function adam(model, lr)
  return optim.AdamW(model:parameters(), { lr = lr, betas = { 0.9, 0.95 }, weight_decay = 0 })
end
local function pretrain(to) -- on packed rows of the corpus, none of them twice
  peri.seed(seed)
  local model = models.llama.new(chain.config(4, cfg.width))
  local rows = chain.corpus_rows(peri.rng(seed), 128 * cfg.batches, how)
  local stepper = algo.sft.new { model = model, optimizer = adam(model), examples = chain.examples(tok, rows, true),
    pad = tok.pad, packing = true, max_length = 64, batch_size = 44, seed = seed,
    schedule = sched.warmup(50, sched.linear { from = 1e-3, to = 1e-4, steps = cfg.batches - 50 }) }
  for _ = 1, cfg.batches do stepper:step() end
  return model:save(to)
end

-- Measured by samples and by the likeliest answer: held-out problems, and chat, whose replies compete with the base's.
local problems = chain.problems(peri.rng(0), HELD_OUT, { nmax = cfg.nmax, held_out = true })
local asked, replies = table.move(problems, 1, #problems, HELD_OUT + 1, chain.chats(peri.rng(0), HELD_OUT))
local function measure(model, name, stepper)
  if model.kind == "scorer" then return stepper:evaluate(chain.pairs(peri.rng(0), 1000, { score = name })) end
  local texts = rl.rollout(model, tok, asked, chain.accuracy, { max_new_tokens = longest, seed = seed }).texts
  local best = rl.rollout(model, tok, problems, chain.accuracy, { max_new_tokens = longest, greedy = true })
  replies = replies or texts
  local scores = chain.measure(asked, texts, replies)
  scores.greedy = rl.summary(best).reward
  for i = HELD_OUT, HELD_OUT + 2 do run:text("  %s%s", asked[i].prompt, texts[i]) end
  return scores
end
local function grpo(name, from, steps, chats, rewards_of)
  return { name, from = from, steps = steps, begin = function (model, rng)
    return algo.grpo.new { model = model, optimizer = adam(model, cfg.lr), tokenizer = tok, reward = rewards_of(),
      rows = table.move(chain.chats(rng, chats), 1, chats, 5001, chain.problems(rng, 5000, how)), prompts = cfg.prompts,
      group = cfg.group, micro = 64, max_new_tokens = longest, seed = seed, beta = chats > 0 and cfg.beta or 0,
      reference = chats > 0 and model:copy() or nil,
      schedule = sched.wsd { peak = cfg.lr, warmup = 10, steps = steps, decay = 0.5 } }
  end }
end
local accuracy, format, language = { "accuracy", chain.accuracy }, { "format", chain.format, 0.1 },
  { "language", chain.language, cfg.language }
local function right() return { accuracy, format } end
local function consistent() return { accuracy, format, language } end
local function good() -- how helpful the summary is, how harmless the whole
  local function by(score, reward, kind)
    local function where(row) return row.kind == kind end
    return { score, reward { model = assert(models.load(stages:at(score))), tokenizer = tok, where = where } }
  end
  return { accuracy, format, language, by("helpful", peri.reward.helpfulness, "help"),
    by("harmless", peri.reward.harmlessness, "harm") }
end
local function judge(score) -- a reward model of two layers, from random weights; no pair occurs twice
  return { score, steps = cfg.samples // 40, begin = function (_, rng)
    local model = models.scorer(models.llama.new(chain.config(2, 64)))
    return algo.reward_model.new { model = model, optimizer = adam(model, 1e-3), tokenizer = tok, batch_size = 64,
      rows = chain.pairs(rng, cfg.samples * 8 // 5, { score = score }), seed = seed }
  end }
end
local function sft(name, rows, epochs, rows_of)
  local steps = math.max(epochs * rows // 32, 1)
  return { name, from = "base", steps = steps, begin = function (model, rng)
    return algo.sft.new { model = model, optimizer = adam(model), examples = chain.examples(tok, rows_of(rng)),
      batch_size = 32, pad = tok.pad, seed = seed,
      schedule = sched.warmup(10, sched.linear { from = 5e-4, to = 0, steps = math.max(steps - 10, 2) }) }
  end }
end
local function selected(rng) -- at most two answers a prompt, and chat
  local batch = rl.rollout(assert(models.load(stages:at "reason")), tok, chain.problems(rng, cfg.samples // 4, how),
    chain.worthy, { group = 4, max_new_tokens = longest, seed = seed })
  local rows, kept = chain.good_rows(rng, cfg.samples // 8), rl.select(batch.total, { group = 4, keep = 2, least = 1 })
  for _, i in ipairs(kept) do rows[#rows + 1] = { prompt = batch.rows[i].prompt, completion = batch.texts[i] } end
  run:text("rejection sampling keeps %d of %d answers", #kept, #batch.texts)
  return rows
end
local function clean(rng) return chain.clean_rows(rng, cfg.cold, how) end
stages = recipe.stages({ grpo("zero", "base", cfg.updates, 0, right), sft("cold", cfg.cold, 6, clean),
  grpo("reason", "cold", cfg.updates, 0, consistent),
  sft("reject", cfg.samples * 5 // 8, 2, selected), judge "helpful", judge "harmless",
  grpo("all", "reject", math.max(1, cfg.updates * 3 // 10), 5000, good),
  grpo("language", "base", cfg.updates, 0, consistent) }, { seed = seed, only = cfg.stage, measure = measure })
-- Loop, and R1's table.
run = recipe.start { name = "r1", flags = cfg, total = stages.total, columns = { "stage", "rewards/accuracy/mean",
  "completions/mean_length", "sampling/sampling_logp_difference/max", "rewards/language/mean" } }
run:alarms(rl.alarms()):track("stages", stages:place(cfg.models ~= "" and cfg.models or run:path "models"))
local settings = { batches = cfg.batches, width = cfg.width, nmax = cfg.nmax, seed = seed }
stages:keep("base", assert(models.load(recipe.cached("r1_base", settings, pretrain, cfg.runs))))
for step in run:steps() do run:log(step, stages:step()) end
run:text("%s", stages:table { "accuracy", "greedy", "format", "language", "mixed", "words", "steps", "win", "harmful" })
run:plot("curves.svg", { { "rewards/accuracy/mean", by = "stage" }, { "completions/mean_length", by = "stage" } })
run:finish()
