-- text_game.lua - a model learns to play a text game by playing: look around, remember, take the key, come back.
--
-- Teaches: reinforcement over many turns (RAGEN, 2504.20073): GRPO where the environment is a game of six rooms that
-- answers each command, "east ." with "study key :". A conversation of up to twelve turns has one reward, at its end: 1
-- for the chest that was opened, less 0.03 a turn. The base has read games of somebody who plays without a plan.
-- Judged by: won, the share of the games that were never trained on that are won within twelve turns, beside the base,
-- and turns, those of a won game beside the fewest of one who knows where key and chest are.
-- Run:  ./perilune run recipes/tools/text_game.lua     three minutes on two cores
-- Arms: --price 0: time costs nothing. --method sft: equal updates on the base's won games, the control.
-- Departs from the paper: 0.2M weights; one on-policy epoch, so the clip is idle; no KL penalty.
local peri = require "perilune"
local models, optim, sched, rl, recipe = peri.models, peri.optim, peri.sched, peri.rl, peri.recipe
local sft, grpo, quest = peri.algo.sft, peri.algo.grpo, peri.tasks.quest

local cfg = peri.flags(recipe.with_flags {
  method     = { "grpo", "what learns", choices = { "grpo", "sft" } },
  price      = { 0.03, "of each turn of a win", range = "[0, 1]" },
  turns      = { 12, "of a game", range = "[1, inf)" },
  updates    = { 120, "optimizer steps", range = "[0, inf)", budget = true },
  prompts    = { 32, "games an update", range = "[1, inf)" },
  group      = { 8, "plays of each", range = "[2, inf)" },
  micro      = { 64, "plays in one forward and backward pass", range = "[1, inf)" },
  lr         = { 1e-3, "learning rate after 10 updates", range = "[0, inf)" },
  pretrain   = { 300, "batches of 64 games", range = "[0, inf)" },
  width      = { 96, "of the two layers, a multiple of 32", range = "[32, inf)" },
  eval_every = { 20, "updates between two measurements", range = "[1, inf)" },
})

-- Game and model.
local tok, worlds, held_out = quest.tokenizer(), quest.worlds(false), quest.worlds(true)
local env = quest.environment(tok, { price = cfg.price })
local shape = quest.config(2, cfg.width)
local how = { environment = env, max_turns = cfg.turns, max_new_tokens = 6 * cfg.turns }
local function adam(model) return optim.AdamW(model:parameters(), { betas = { 0.9, 0.95 }, weight_decay = 0 }) end
local settings = { batches = cfg.pretrain, turns = cfg.turns, lr = 2e-3, std = 0.08, seed = cfg.seed, shape = shape }
local base = recipe.cached("quest", settings, function (path)
  peri.seed(settings.seed)
  local model, rng = models.llama.new(shape, { std = settings.std }), peri.rng(settings.seed)
  local opt = adam(model)
  for i in peri.steps(cfg.pretrain) do
    local rows = quest.examples(tok, quest.corpus(rng, worlds, 64, { turns = cfg.turns }))
    local lr = settings.lr * math.min(i / 30, 1 - 0.9 * i / cfg.pretrain)
    local seen = sft.update(model, opt, rows, { lr = lr, pad = tok.pad })
    if i % 100 == 0 then print(("  pre-training %d/%d  loss %.4f"):format(i, cfg.pretrain, seen.loss)) end
  end
  return model:save(path)
end, cfg.runs)

local run = recipe.start { name = "text_game", flags = cfg, total = cfg.updates,
  columns = { "won", "turns", "reward", "conversations/turns", "entropy" } }
local model = assert(models.load(base))
local opt, rng = adam(model), peri.rng(cfg.seed)
local schedule = sched.warmup(10, sched.constant(cfg.lr))
local stepper = cfg.method == "grpo" and grpo.new { model = model, optimizer = opt, tokenizer = tok, environment = env,
  rows = worlds, prompts = cfg.prompts, group = cfg.group, micro = cfg.micro, max_turns = cfg.turns,
  max_new_tokens = how.max_new_tokens, seed = cfg.seed, schedule = schedule } or nil
run:track("model", model):track("optimizer", opt):track("rng", rng):alarms(rl.alarms { metric = "won" })
if stepper then run:track("grpo", stepper) end

-- Won games that nobody planned, as many as an update of the other has plays.
local function imitate(step)
  local rows = {}
  while #rows < cfg.prompts * cfg.group do
    for _, row in ipairs(quest.corpus(rng, worlds, 64, { turns = cfg.turns })) do
      if row.won then rows[#rows + 1] = row end
    end
  end
  return sft.update(model, opt, quest.examples(tok, rows), { lr = schedule(step), pad = tok.pad })
end

-- Games that were never trained on: the share that is won, and the turns of those beside the fewest that do.
local function measure(row, step)
  local batch = rl.rollout(model, tok, held_out, nil, { group = 4, environment = env, max_turns = cfg.turns,
    max_new_tokens = how.max_new_tokens })
  local won, turns, fewest = 0, 0, 0
  for _, talk in ipairs(batch.conversations) do
    if talk.game and talk.game.won then won, turns, fewest = won + 1, turns + talk.turn, fewest + talk.row.shortest end
  end
  row.won, row.turns, row.fewest = won / #batch.texts, turns / math.max(won, 1), fewest / math.max(won, 1)
  for i = 1, step and 9 or 0, 4 do
    run:sample(step, { prompt = batch.rows[i].prompt, completion = batch.texts[i], reward = batch.total[i] },
      ("  %s %s  (%.2f)"):format(batch.rows[i].prompt, batch.texts[i], batch.total[i]))
  end
  return row
end

-- Loop.
for step in run:steps() do
  if step == 1 then
    local before = measure {}
    run:text("base: won %.3f in %.1f turns (fewest %.1f)", before.won, before.turns, before.fewest)
  end
  local row = stepper and stepper:step() or imitate(step)
  if step % cfg.eval_every == 0 or step == cfg.updates then measure(row, step) end
  run:log(step, row)
end
assert(model:save(run:path "model"))
run:plot("curves.svg", { "won", { "turns", "fewest" }, "conversations/turns", "entropy" })
run:text("won %.3f of the games it was not trained on, in %.1f turns (fewest %.1f)", run:last "won" or 0,
  run:last "turns" or 0, run:last "fewest" or 0)
run:finish()
