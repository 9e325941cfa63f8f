-- tool_use.lua - a model that cannot multiply learns to ask a calculator, because right answers are all that pays.
--
-- Teaches: reinforcement over conversations (ReTool, 2504.11536; ARTIST, 2505.01441): GRPO where a turn that ends in
-- "<tool> 1 2 3 * 4 5 6 7 </tool>" is answered with "<res> 5 6 1 7 4 1 </res>", which is read and never learned. Three
-- quarters of the problems have factors of three to five digits, the others of one, which can be known by heart. The
-- base calls in a tenth of its answers, copies carelessly and is right on one hard problem in twelve.
-- Judged by: hard, the share of 300 held-out hard problems that are answered exactly, by samples at temperature 1.
-- Run:  ./perilune run recipes/tools/tool_use.lua     twelve minutes on two cores; --pretrain 600 --updates 60: five
-- Arms: --tool false: calls are not answered, the control. --tp 0.3 --price 0.2: a call costs, and is made where it
--       must be. --tp 0.02: a base that seldom calls; with --pretrain 600 one that never copies right, nor learns to.
-- Departs from the papers: 0.8M weights, 22 tokens, one call; one on-policy epoch, so the clip is idle; no KL penalty.
local peri = require "perilune"
local models, optim, sched, rl, recipe = peri.models, peri.optim, peri.sched, peri.rl, peri.recipe
local sft, grpo, products = peri.algo.sft, peri.algo.grpo, peri.tasks.products

local cfg = peri.flags(recipe.with_flags {
  tool       = { true, "calls are answered" },
  price      = { 0.0, "taken off the reward for each call", range = "[0, inf)" },
  tp         = { 0.1, "share of the base's corpus that calls", range = "[0, 1]" },
  pretrain   = { 1500, "batches of 128 rows of that corpus", range = "[0, inf)" },
  updates    = { 150, "optimizer steps", range = "[0, inf)", budget = true },
  prompts    = { 64, "problems an update", range = "[1, inf)" },
  group      = { 8, "answers to each", range = "[2, inf)" },
  micro      = { 64, "answers in one forward and backward pass", range = "[1, inf)" },
  lr         = { 2e-4, "learning rate after 10 updates", range = "[0, inf)" },
  width      = { 128, "of the four layers, a multiple of 32", range = "[32, inf)" },
  held_out   = { 300, "hard problems that are only measured", range = "[1, inf)" },
  eval_every = { 25, "updates between two measurements", range = "[1, inf)" },
})

-- Task.
local LONGEST <const> = 48 -- tokens of a conversation: a call, its result, an answer
local tok = products.tokenizer()
local env = products.environment(tok, { tool = cfg.tool, price = cfg.price })
local held_out = products.problems(peri.rng(0), cfg.held_out, { easy = 0, held_out = true })
local shown = table.move(products.easy(), 1, 100, #held_out + 1, table.move(held_out, 1, #held_out, 1, {}))

-- Model.
local shape = products.config(4, cfg.width)
local function adam(model) return optim.AdamW(model:parameters(), { betas = { 0.9, 0.95 }, weight_decay = 0 }) end
local settings = { batches = cfg.pretrain, tp = cfg.tp, lr = 1e-3, std = 0.08, seed = cfg.seed, shape = shape }
local base = recipe.cached("products", settings, function (path)
  peri.seed(settings.seed)
  local model, rng = models.llama.new(shape, { std = settings.std }), peri.rng(settings.seed)
  local opt = adam(model)
  for i in peri.steps(cfg.pretrain) do
    local rows = products.examples(tok, products.corpus(rng, 128, { calls = cfg.tp }))
    local lr = settings.lr * math.min(i / 50, 1 - 0.9 * i / cfg.pretrain)
    local seen = sft.update(model, opt, rows, { lr = lr, pad = tok.pad })
    if i % 100 == 0 then print(("  pre-training %d/%d  loss %.4f"):format(i, cfg.pretrain, seen.loss)) end
  end
  return model:save(path)
end, cfg.runs)

local run = recipe.start { name = "tool_use", flags = cfg, total = cfg.updates,
  columns = { "hard", "easy", "calls_hard", "calls_easy", "reward", "tools/failure_frequency" } }
local model = assert(models.load(base))
local opt = adam(model)
local stepper = grpo.new { model = model, optimizer = opt, tokenizer = tok, environment = env, max_turns = 2,
  rows = products.problems(peri.rng(cfg.seed), 20000), prompts = cfg.prompts, group = cfg.group, micro = cfg.micro,
  max_new_tokens = LONGEST, seed = cfg.seed, schedule = sched.warmup(10, sched.constant(cfg.lr)) }
run:track("model", model):track("optimizer", opt):track("grpo", stepper):alarms(rl.alarms { metric = "hard" })

-- Shares of the held-out hard problems, and of the easy ones, that are right, and calls a conversation.
local function measure(row, step)
  local batch = rl.rollout(model, tok, shown, nil, { environment = env, max_turns = 2, max_new_tokens = LONGEST })
  local seen = { hard = { 0, 0, 0 }, easy = { 0, 0, 0 } }
  for i, talk in ipairs(batch.conversations) do
    local of = seen[talk.row.easy and "easy" or "hard"]
    of[1], of[2] = of[1] + 1, of[2] + (products.right(talk.row, talk) and 1 or 0)
    of[3] = of[3] + (batch.texts[i]:find("<tool>", 1, true) and 1 or 0)
  end
  for name, of in pairs(seen) do row[name], row["calls_" .. name] = of[2] / of[1], of[3] / of[1] end
  for i = 1, step and 3 or 0 do
    run:sample(step, { prompt = shown[i].prompt, completion = batch.texts[i], reward = batch.total[i] },
      ("  %s %s  (%g)"):format(shown[i].prompt, batch.texts[i], batch.total[i]))
  end
  return row
end

-- Loop.
for step in run:steps() do
  if step == 1 then
    local before = measure({})
    run:text("base: hard %.3f, easy %.3f; calls on hard %.3f, on easy %.3f", before.hard, before.easy,
      before.calls_hard, before.calls_easy)
  end
  local row = stepper:step()
  if step % cfg.eval_every == 0 or step == cfg.updates then measure(row, step) end
  run:log(step, row)
end
assert(model:save(run:path "model"))
run:plot("curves.svg", { { "hard", "easy" }, { "calls_hard", "calls_easy" }, "tools/failure_frequency" })
run:text("held-out hard %.3f, easy %.3f; calls on hard %.3f, on easy %.3f", run:last "hard" or 0, run:last "easy" or 0,
  run:last "calls_hard" or 0, run:last "calls_easy" or 0)
run:finish()
