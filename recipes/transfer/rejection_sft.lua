-- rejection_sft.lua - a model that learns its own right answers, round after round, and where that ends.
--
-- Teaches: rejection sampling and SFT (STaR, 2203.14465; RAFT, 2304.06767; stage 3 of DeepSeek-R1, 2501.12948) on
-- chains of sums in words. In each round every arm answers the same problems as often:
--   rejection  keeps right answers, at most --keep a problem, and learns them from the base anew (--from last: on from
--              where it is)
--   random     the control: learns as many answers to the same problems, drawn without a look
--   rl         GRPO on the answers as they come, wrong ones too
-- Measured on held-out problems: the share of right answers, and that one of four is right, which says what is left to
-- be found; the entropy of the answers, which falls as a model learns from itself.
-- Run:  ./perilune run recipes/transfer/rejection_sft.lua     two minutes on two cores; the base is cached
-- Departs from the papers: tiny models; the answers of a round are of one model, those of rl of one each update.
local peri = require "perilune"
local models, optim, sched, rl = peri.models, peri.optim, peri.sched, peri.rl
local recipe, algo, chain = peri.recipe, peri.algo, peri.tasks.chain

local cfg = peri.flags(recipe.with_flags {
  rounds   = { 12, "of sampling and learning", range = "[0, inf)", budget = true },
  problems = { 512, "in a round", range = "[1, inf)" },
  group    = { 8, "answers to each", range = "[2, inf)" },
  keep     = { 4, "right answers to a problem that are learned, at most", range = "[1, inf)" },
  from     = { "base", "where a round of learning begins", choices = { "base", "last" } },
  epochs   = { 3, "over what is kept", range = "[1, inf)" },
  sft_lr   = { 1e-3, "learning rate of SFT, falls to 0 in each round", range = "[0, inf)" },
  prompts  = { 64, "problems of an update of rl", range = "[1, inf)" },
  rl_lr    = { 5e-4, "learning rate of rl", range = "[0, inf)" },
  layers   = { 2, "of the model", range = "[1, inf)" },
  width    = { 64, "of the model, a multiple of 32", range = "[32, inf)" },
  nmax     = { 2, "longest chain", range = "[2, inf)" },
  batches  = { 2000, "of pre-training", range = "[51, inf)" },
  rows     = { 64, "of a batch of pre-training", range = "[3, inf)" },
  held_out = { 200, "problems that are only measured", range = "[1, inf)" },
})
local tok, how, longest = chain.tokenizer(), { nmax = cfg.nmax }, 12 * cfg.nmax
local function adam(model, lr)
  return optim.AdamW(model:parameters(), { lr = lr, betas = { 0.9, 0.95 }, weight_decay = 0 })
end

-- The base: packed rows of the corpus, which makes mistakes, without chat.
local base = assert(models.load(recipe.cached("rejection_sft_base", { batches = cfg.batches, rows = cfg.rows,
  layers = cfg.layers, width = cfg.width, nmax = cfg.nmax, seed = cfg.seed }, function (to)
  peri.seed(cfg.seed)
  local model = models.llama.new(chain.config(cfg.layers, cfg.width))
  local rows = chain.corpus_rows(peri.rng(cfg.seed), cfg.rows * cfg.batches, { nmax = cfg.nmax, chat = 0 })
  local stepper = algo.sft.new { model = model, optimizer = adam(model), examples = chain.examples(tok, rows),
    pad = tok.pad, packing = true, max_length = 64, batch_size = math.ceil(0.41 * cfg.rows), seed = cfg.seed,
    schedule = sched.warmup(50, sched.linear { from = 2e-3, to = 2e-4, steps = cfg.batches - 50 }) }
  for _ = 1, cfg.batches do stepper:step() end
  return model:save(to)
end, cfg.runs)))

-- Arms.
local run = recipe.start { name = "rejection_sft", flags = cfg, total = cfg.rounds,
  columns = { "rejection", "random", "rl", "rejection_4", "random_4", "rl_4", "kept" } }
local arms <const>, rng, nets = { "rejection", "random", "rl" }, peri.rng(cfg.seed), {}
for _, arm in ipairs(arms) do
  nets[arm] = base:copy():unfreeze()
  run:track(arm, nets[arm])
end
local pool = setmetatable({}, { __index = { draw = function (self) -- the problems of the round, one after the other
  self.at = self.at % #self.rows + 1
  return self.rows[self.at]
end, update = function () end } })
pool.rows, pool.at = chain.problems(peri.rng(0), 1, how), 0
local grpo = algo.grpo.new { model = nets.rl, tokenizer = tok, rows = pool, reward = chain.accuracy,
  optimizer = adam(nets.rl, cfg.rl_lr), prompts = cfg.prompts, group = cfg.group, micro = 128,
  max_new_tokens = longest }
run:track("rng", rng):track("grpo", grpo):track("optimizer", grpo.optimizer)

local function sft(model, batch, places) -- learn these answers
  if cfg.from == "base" then model:load_state_dict(base:state_dict()) end
  local rows = {}
  for k, i in ipairs(places) do rows[k] = { prompt = batch.rows[i].prompt, completion = batch.texts[i] } end
  local steps = cfg.epochs * math.ceil(#rows / 64)
  if steps == 0 then return end
  local stepper = algo.sft.new { model = model, optimizer = adam(model), examples = chain.examples(tok, rows),
    batch_size = 64, pad = tok.pad, seed = rng:int(1, 1 << 30),
    schedule = sched.linear { from = cfg.sft_lr, to = 0, steps = math.max(2, steps) } }
  for _ = 1, steps do stepper:step() end
end

local problems = chain.problems(peri.rng(0), cfg.held_out, { nmax = cfg.nmax, held_out = true })
local function measure(arm, row)
  local batch = rl.rollout(nets[arm], tok, problems, chain.accuracy, { group = 4, max_new_tokens = longest, seed = 1 })
  local seen = rl.pass(batch, { k = { 4 } })
  row[arm], row[arm .. "_4"], row[arm .. "_entropy"] = seen.pass_1, seen.pass_4, rl.summary(batch).entropy
end

-- Loop.
local first = {}
measure("rl", first)
if run.step == 0 then run:text("base: %.3f right, one of four right %.3f", first.rl, first.rl_4) end
for round in run:steps() do
  local row = {}
  pool.rows, pool.at = chain.problems(rng, cfg.problems, how), 0
  local kept
  for _, arm in ipairs { "rejection", "random" } do
    local batch = rl.rollout(nets[arm], tok, pool.rows, chain.accuracy, { group = cfg.group, max_new_tokens = longest })
    local right = rl.select(batch.total, { group = cfg.group, keep = cfg.keep, least = 1 })
    kept = kept or right
    sft(nets[arm], batch, arm == "rejection" and right
      or rl.select(batch.total, { by = "random_prompt", group = cfg.group, like = kept, rng = rng }))
  end
  for _ = 1, math.max(1, cfg.problems // cfg.prompts) do grpo:step() end
  row.kept = #kept
  for _, arm in ipairs(arms) do measure(arm, row) end
  run:log(round, row)
end
assert(nets.rejection:save(run:path "model"))
run:plot("curves.svg", { arms, { "rejection_4", "random_4", "rl_4" }, { "rejection_entropy", "rl_entropy" } })
for _, arm in ipairs(arms) do
  local row = {}
  measure(arm, row)
  run:text("%-9s %.3f right, one of four right %.3f", arm, row[arm], row[arm .. "_4"])
end
run:finish()
