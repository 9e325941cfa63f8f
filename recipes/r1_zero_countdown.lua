-- r1_zero_countdown.lua - a model that has read aimless play learns to search by reward alone: its answers grow.
--
-- Teaches: R1-Zero's growing answers (DeepSeek-R1, 2501.12948, figures 2 and 3) on TinyZero's Countdown, small enough
-- for a laptop. "2,7,8:42" asks for two steps of + - * from 2, 7 and 8 to 42. An answer is attempts: "2+7=9,9+8=17;
-- 8-2=6,7*6=42!"; the last counts: 1 if right, 0.1 if well formed, else 0. Pre-training is on attempts without aim that
-- end at a hit or when the player gives up, and shortly on where they end; RL needs its tail of long answers.
-- Run:  ./perilune run recipes/r1_zero_countdown.lua     4 minutes to pre-train, once, then 2 s an update
-- Controls, equal samples: --method rejection learns its own right answers, base_rejection the base's, text more play.
-- Departs from the papers: 0.8M weights, numbers from 1 to 9; one on-policy epoch, so the clip is idle; no KL penalty.
local peri = require "perilune"
local models, rl, recipe, sft, countdown = peri.models, peri.rl, peri.recipe, peri.algo.sft, peri.tasks.countdown

local cfg = peri.flags(recipe.with_flags {
  method     = { "grpo", "what learns", choices = { "grpo", "rejection", "base_rejection", "text" } },
  updates    = { 120, "optimizer steps", range = "[0, inf)", budget = true },
  prompts    = { 128, "prompts an update", range = "[1, inf)" },
  group      = { 8, "completions of each prompt", range = "[2, inf)" },
  micro      = { 32, "completions in one forward and backward pass", range = "[1, inf)" },
  lr         = { 1e-4, "learning rate; the last quarter of the updates it falls to 0", range = "[0, inf)" },
  longest    = { 160, "tokens of an answer", range = "[1, inf)" },
  eval_every = { 20, "updates between two evaluations", range = "[1, inf)" },
  samples    = { 8, "answers to each held-out problem in an evaluation", range = "[4, inf)" },
  held_out   = { 300, "problems that are not trained on", range = "[1, 1863]" },
  pretrain   = { 1000, "batches of 128 such texts", range = "[0, inf)" },
})

-- Task.
local tok = peri.text.chars(countdown.alphabet, { separator = true })
local train, held_out = countdown.split { held_out = cfg.held_out }
local play = { go_on = 0.75, most = 9 } -- a chance of .75 of another attempt after a miss
local reward = { { "tinyzero", countdown.reward }, -- attempts weigh nothing and are logged
  { "attempts", function (_, text) return #countdown.attempts(text) end, 0 } }
local function example(row, answer) return sft.example(tok:encode_batch({ row.prompt })[1], answer) end
local ends = { [tok:encode ";"[1]] = true, [tok:encode "!"[1]] = true }
local function examples(n, rng, make, how, alone) -- alone: of answers only what follows an attempt is learned
  local list = {}
  for i = 1, n do
    local row, text = make(train, rng, how)
    list[i] = example(row, tok:encode(text))
    for k, id in ipairs(alone and list[i].ids or {}) do if not ends[id] then list[i].mask[k] = 0 end end
  end
  return list
end

-- Model.
local shape = { architectures = { "LlamaForCausalLM" }, model_type = "llama", vocab_size = tok.size, hidden_size = 128,
  intermediate_size = 344, num_hidden_layers = 4, num_attention_heads = 4, num_key_value_heads = 4, rms_norm_eps = 1e-6,
  rope_theta = 10000, max_position_embeddings = 2048, eos_token_id = tok.eos, pad_token_id = tok.pad }
local settings = { play = play, batches = cfg.pretrain, rows = 128, lessons = 64, taught = { 1 / 3, 7 / 12 }, lr = 1e-3,
  std = 0.08, held_out = cfg.held_out, seed = 1, shape = shape }
local function optimizer(net) return peri.optim.AdamW(net:parameters(), { betas = { 0.9, 0.95 }, weight_decay = 0 }) end

local base = recipe.cached("countdown", settings, function (path)
  peri.seed(settings.seed)
  local model, rng = models.llama.new(shape, { std = settings.std }), peri.rng(settings.seed)
  local opt = optimizer(model)
  for i in peri.steps(cfg.pretrain) do
    local done = i / cfg.pretrain
    local how = { lr = settings.lr * math.min(i / 50, 1 - 0.9 * done), pad = tok.pad }
    local seen = sft.update(model, opt, examples(settings.rows, rng, countdown.played, play), how)
    if done > settings.taught[1] and done <= settings.taught[2] then
      sft.update(model, opt, examples(settings.lessons, rng, countdown.told, nil, true), how)
    end
    if i % 100 == 0 then print(("  pre-training %d/%d  loss %.4f"):format(i, cfg.pretrain, seen.loss)) end
  end
  return model:save(path)
end, cfg.runs)
local run = recipe.start { name = "r1_zero_countdown", flags = cfg, total = cfg.updates,
  columns = { "pass_1", "attempts", "right", "reward", "pass_4", "majority" } }
local model, rng = assert(models.load(base)), peri.rng(cfg.seed)
local schedule = peri.sched.wsd { peak = cfg.lr, warmup = 10, steps = math.max(cfg.updates, 1) }
local start, opt = model:copy(), optimizer(model)
local function asked(n) return { group = n, max_new_tokens = cfg.longest, stop = tok:encode(countdown.stop) } end
run:track("model", model):track("optimizer", opt):track("rng", rng):alarms(rl.alarms { metric = "pass_1" })

-- GRPO: advantages within the group of each prompt, the clipped loss. What it saw goes to the row.
local function reinforce(batch, lr, row)
  local advantage, weight = rl.advantages(batch)
  local how, gap = { tokens = math.max(weight:sum():item(), 1) }, 0
  for part in rl.parts(rl.with_signal(batch, advantage, weight), cfg.micro, { by_length = true }) do
    local logp = model:token_logprobs(part.sequences, part.from)
    rl.clipped(logp, part.logprobs, part.advantage, part.weight, how):backward { chain = true }
    gap = math.max(gap, logp:detach():sub(part.logprobs):mul(part.weight):abs():max():item())
  end
  opt:step { lr = lr, clip = 1 }:zero_grad()
  row["sampling/sampling_logp_difference/max"], row.grad_norm = gap, opt.grad_norm
end

-- Loop.
for step in run:steps() do
  local began, row, n, lr = peri.time(), {}, cfg.prompts * cfg.group, schedule(step)
  local rows, learned = {}, cfg.method == "text" and examples(n, rng, countdown.played, play) or {}
  if cfg.method ~= "text" then
    for i = 1, cfg.prompts do rows[i] = rng:choice(train) end
    local batch = rl.rollout(cfg.method == "base_rejection" and start or model, tok, rows, reward, asked(cfg.group))
    row = rl.summary(batch)
    row.right, row.attempts = rl.pass(batch).pass_1, row["rewards/attempts/mean"]
    for i = 1, cfg.method == "grpo" and 0 or n do
      if batch.total[i] == 1 then learned[#learned + 1] = example(batch.rows[i], batch.tokens[i]) end
    end
    if cfg.method == "grpo" then reinforce(batch, lr, row) end
  end
  if #learned > 0 then row.loss = sft.update(model, opt, learned, { lr = lr, pad = tok.pad }).loss end
  if step == 1 or step % cfg.eval_every == 0 or step == cfg.updates then
    local shown = rl.rollout(model, tok, held_out, reward, asked(cfg.samples))
    for name, share in pairs(rl.pass(shown, { k = { 4 }, answer = countdown.last })) do row[name] = share end
    local seen = rl.summary(shown)
    row.held_out_attempts, row.held_out_length = seen["rewards/attempts/mean"], seen["completions/mean_length"]
    row.kl = rl.kl_to(start, shown)
    for i = 1, 3 * cfg.samples, cfg.samples do
      run:sample(step, { prompt = shown.rows[i].prompt, completion = shown.texts[i], reward = shown.total[i] },
        ("  %s -> %s  (%g)"):format(shown.rows[i].prompt, shown.texts[i], shown.total[i]))
    end
  end
  run:log(step, row, { seconds = peri.time() - began })
end
assert(model:save(run:path "model"))
run:plot("curves.svg", { { "pass_1", "pass_4", "majority" }, "held_out_attempts", "held_out_length" })
run:text("held-out pass@1 %.3f; curves, samples and the model are in %s", run:last "pass_1" or 0, run.folder)
run:finish()
