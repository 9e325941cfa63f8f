-- gkd.lua - a small language model learns from its own answers, of which a larger one says what it thinks.
--
-- Teaches: on-policy distillation (GKD, Agarwal et al. 2024, arXiv 2306.13649). What a teacher writes is dear and soon
-- learned by heart; what it thinks of a student's own answers is one pass over them, and those never end. Both do
-- chains of sums in words; the student's base has seen little. From that base, with as many updates each:
--   sft      learns samples of the teacher       forward  KL(teacher || student) of each token of such samples
--   gkd      JSD(beta) of its own answers        reverse  KL(student || teacher) of its own answers
--   stored   as reverse, in rounds: the student writes answers, the teacher's top k of each token goes to a file
-- Run:  ./perilune run recipes/distillation/gkd.lua    a minute of one core; both bases are cached
--       --width 128 --layers 4 --nmax 4: larger; --seed N
-- Departs from the paper: models of 0.4M and 0.03M parameters and a task whose answers a rule can check.
local peri = require "perilune"
local models, optim, sched, rl = peri.models, peri.optim, peri.sched, peri.rl
local recipe, algo, chain = peri.recipe, peri.algo, peri.tasks.chain

local cfg = peri.flags(recipe.with_flags {
  layers   = { 3, "of the teacher", range = "[1, inf)" }, width = { 96, "times 32; the student has 2 of 32" },
  nmax     = { 2, "longest chain", range = "[2, inf)" },
  batches  = { 600, "of the teacher's base", range = "[2, inf)" },
  little   = { 600, "of the student's, of 64 rows each", range = "[2, inf)" },
  updates  = { 400, "of each arm", range = "[1, inf)" }, rows = { 32, "answers of one", range = "[1, inf)" },
  samples  = { 400, "answers of the teacher, of which sft and forward learn", range = "[1, inf)" },
  beta     = { 0.5, "of gkd: near 0 as forward, near 1 as reverse", range = "(0, 1)" },
  round    = { 25, "updates between two files", range = "[1, inf)" }, k = { 8, "tokens in them", range = "[1, inf)" },
  lr       = { 2e-3, "peak learning rate of the arms", range = "(0, inf)" },
  held_out = { 300, "problems that are only measured", range = "[1, inf)" },
})
local tok, seed, longest = chain.tokenizer(), cfg.seed, 8 + 8 * cfg.nmax
local how, stages, run = { nmax = cfg.nmax, lang = "en" }, nil, nil
local function decay(steps)
  return sched.warmup(10, sched.linear { from = cfg.lr, to = 0, steps = math.max(2, steps - 10) })
end
local function adam(model) return optim.AdamW(model, { lr = cfg.lr, betas = { 0.9, 0.95 }, weight_decay = 0 }) end
local function learner(model, rows, steps, more)
  local o = { model = model, optimizer = adam(model), examples = chain.examples(tok, rows), batch_size = cfg.rows,
    pad = tok.pad, seed = seed, schedule = decay(steps) }
  for name, value in pairs(more or {}) do o[name] = value end
  return o
end
local function base(layers, width, batches) -- of right answers
  return assert(models.load(recipe.cached("gkd_base", { layers = layers, width = width, batches = batches,
    nmax = cfg.nmax, lr = cfg.lr, seed = seed }, function (to)
    peri.seed(seed)
    local model, rng, rows = models.llama.new(chain.config(layers, width), { std = 0.03 }), peri.rng(seed), {}
    for i = 1, 64 * batches do
      repeat rows[i] = chain.problem(rng, how) until not chain.held_out(rows[i])
      rows[i].completion = chain.clean(rows[i])
    end
    local sft = algo.sft.new(learner(model, rows, batches, { batch_size = 64 }))
    for _ = 1, batches do sft:step() end
    return model:save(to)
  end, cfg.runs)))
end
local function answered(model, rows, n, s) -- rows with sampled answers
  local batch = rl.rollout(model, tok, rows, chain.accuracy, { group = n, max_new_tokens = longest, seed = s })
  local out = {}
  for i, text in ipairs(batch.texts) do out[i] = { prompt = batch.rows[i].prompt, completion = text } end
  return out, rl.summary(batch).reward
end
local problems = chain.problems(peri.rng(0), cfg.held_out, { nmax = cfg.nmax, lang = "en", held_out = true })
local function measure(model)
  local own, accuracy = answered(model, problems, 1, seed)
  local best = rl.rollout(model, tok, problems, chain.accuracy, { max_new_tokens = longest, greedy = true })
  run:text("  %s%s", own[1].prompt, own[1].completion)
  return { accuracy = accuracy, greedy = rl.summary(best).reward }
end
local function teacher() return assert(models.load(stages:at "teacher")) end
local function arm(name, own, more) -- of samples of the teacher, or of the student's own
  return { name, from = "student", steps = cfg.updates, begin = function (model, rng)
    local prompts = chain.problems(rng, own and 1600 or cfg.samples, how)
    local o = learner(model, own and {} or answered(teacher(), prompts, 1, seed), cfg.updates, more)
    if own then o.examples, o.rows, o.tokenizer, o.on_policy, o.max_new_tokens = nil, prompts, tok, 1, longest end
    if name ~= "sft" then o.teacher = teacher() end
    return (name == "sft" and algo.sft or algo.distill).new(o)
  end }
end
-- The student's own answers with the teacher's top k of each token in a file, anew every round.
local Stored = {}
Stored.__index = Stored
function Stored:open(examples)
  local path, before = ("%s/teacher-%d.safetensors"):format(run.folder, self.done), self.done // cfg.round * cfg.round
  assert(rl.store_teacher(path, self.teacher, examples, { k = cfg.k }))
  self.inner = algo.distill.new { model = self.model, stored = assert(rl.open_teacher(path)), examples = examples,
    optimizer = self.optimizer, batch_size = cfg.rows, pad = tok.pad, seed = seed, divergence = "reverse",
    schedule = function (step) return self.rate(before + step) end }
  self.examples = examples
  os.remove(path)
end
function Stored:step()
  if self.done % cfg.round == 0 then
    local prompts = {}
    for i = 1, cfg.round * cfg.rows do prompts[i] = self.rng:choice(self.prompts) end
    self:open(chain.examples(tok, (answered(self.model, prompts, 1, seed + self.done))))
  end
  self.done = self.done + 1
  return self.inner:step()
end
function Stored:state()
  return { done = self.done, examples = self.examples, inner = self.inner:state(), rng = self.rng:state() }
end
function Stored:set_state(s)
  self.done = s.done
  self.rng:set_state(s.rng)
  self:open(s.examples)
  self.inner:set_state(s.inner)
end
stages = recipe.stages({ arm("sft"), arm("forward"), arm("gkd", true, { divergence = "jsd", beta = cfg.beta }),
  arm("reverse", true, { divergence = "reverse" }), { "stored", from = "student", steps = cfg.updates,
    begin = function (model, rng)
      return setmetatable({ model = model, optimizer = adam(model), teacher = teacher(), rng = rng, done = 0,
        rate = decay(cfg.updates), prompts = chain.problems(rng, 1600, how) }, Stored)
    end } }, { seed = seed, measure = measure })
run = recipe.start { name = "gkd", flags = cfg, total = stages.total, columns = { "stage", "divergence", "loss" } }
run:track("stages", stages:place(run:path "models"))
stages:keep("student", base(2, 32, cfg.little))
stages:keep("teacher", base(cfg.layers, cfg.width, cfg.batches))
for step in run:steps() do run:log(step, stages:step()) end
run:text("%s", stages:table { "accuracy", "greedy" })
run:plot("curves.svg", { { "loss", by = "stage" } })
run:finish()
