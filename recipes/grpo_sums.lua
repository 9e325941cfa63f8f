-- grpo_sums.lua - a small chat model learns to add by reinforcement, in a quarter of an hour.
--
-- Teaches: GRPO (2402.03300) on a published model with a LoRA adapter (2106.09685): "Calculate 17 + 4 = ?", eight
-- answers to each question, 1 for an answer whose last number is right, 0 for any other. Nobody shows the model how to
-- answer: what it does well by chance becomes what it does. A prompt is read once for its group, forward and backward.
-- Run:  ./perilune run recipes/grpo_sums.lua --model FILE     about five minutes on two cores
--       --model: Hugging Face folder or GGUF file with a chat template (default: SmolLM2-135M-Instruct)
--       --largest 50: the larger set of questions;  --updates 0: what the model knows before
-- Departs from the paper: one on-policy epoch, so the clip is idle; no KL penalty.
local peri = require "perilune"
local models, optim, sched = require "perilune.models", require "perilune.optim", require "perilune.sched"
local peft, rl, recipe = require "perilune.peft", require "perilune.rl", require "perilune.recipe"
local sums = require "perilune.tasks.sums"

local cfg = peri.flags(recipe.with_flags {
  model       = { "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "model with a chat template" },
  largest     = { 20, "number that is added", range = "[2, inf)" },
  updates     = { 60, "optimizer steps", range = "[0, inf)", budget = true },
  prompts     = { 8, "questions an update", range = "[1, inf)" },
  group       = { 8, "answers to each", range = "[2, inf)" },
  micro       = { 8, "answers in one forward and backward pass", range = "[1, inf)" },
  tokens      = { 32, "longest answer", range = "[1, inf)" },
  rank        = { 16, "of the low-rank matrices", range = "[1, inf)" },
  lr          = { 1e-4, "peak learning rate", range = "[0, inf)" },
  temperature = { 1.0, "of sampling", range = "(0, inf)" },
  held_out    = { 100, "questions that are only measured", range = "[1, inf)" },
  eval_every  = { 20, "updates between two measurements", range = "[1, inf)" },
})

-- Task: every sum, shuffled the same way for all seeds.
local held_out, train = {}, sums.rows { largest = cfg.largest }
peri.rng(0):shuffle(train)
for i = 1, math.min(cfg.held_out, #train - 1) do held_out[i] = table.remove(train) end

-- Model.
local path = recipe.find(cfg.model, "a model: --model FILE")
local tok = assert(peri.tokenizer.load(path))
local model = assert(models.load(path, { pack = true }))
local run = recipe.start { name = "grpo_sums", flags = cfg, total = cfg.updates,
  columns = { "reward", "held_out_sampled", "held_out_greedy", "completions/mean_length", "entropy" } }
local adapter = peft.lora(model, { r = cfg.rank, alpha = 2 * cfg.rank })
local opt = optim.AdamW(adapter:parameters(), { lr = cfg.lr, weight_decay = 0 })
local rng, last = peri.rng(cfg.seed), math.max(1, cfg.updates // 3) -- in which the rate falls to 0
local schedule = sched.warmup(3, sched.chain { { math.max(1, cfg.updates - last), sched.constant(cfg.lr) },
  { sched.linear { from = cfg.lr, steps = last } } })
local sampling = { group = cfg.group, max_new_tokens = cfg.tokens, temperature = cfg.temperature }
run:alarms(rl.alarms { metric = "held_out_sampled" })
run:track("adapter", adapter):track("optimizer", opt):track("rng", rng):restore()

-- Share of held-out questions answered right: by samples, two a question, and by the likeliest answer.
local function evaluate(step, row)
  local phase <close> = run:phase "evaluate" -- luacheck: ignore 211
  local how = { group = 2, max_new_tokens = cfg.tokens, temperature = cfg.temperature, rows = 64 } -- of them at a time
  local sampled = rl.rollout(model, tok, held_out, sums.reward, how)
  how.group, how.greedy = 1, true
  local greedy = rl.rollout(model, tok, held_out, sums.reward, how)
  for i = 1, math.min(3, #held_out) do
    local text = sampled.texts[2 * i]
    run:sample(step, { question = held_out[i].question, answer = held_out[i].answer, completion = text },
      ("  %s -> %s"):format(held_out[i].question, text))
  end
  row.held_out_sampled, row.held_out_greedy = rl.summary(sampled).reward, rl.summary(greedy).reward
  return row
end

-- Loop. Step 0 is the baseline.
local DIFFERENCE = "sampling/sampling_logp_difference/max" -- of log-probabilities, sampling from training
if run.step == 0 then run:log(0, evaluate(0, {})) end
for step in run:steps() do
  local began, rows, gap = peri.time(), {}, 0
  for i = 1, cfg.prompts do rows[i] = rng:choice(train) end
  local batch = rl.rollout(model, tok, rows, sums.reward, sampling)
  local advantage, weight = rl.advantages(batch)
  local tokens = math.max(weight:sum():item(), 1)
  for group in rl.groups(batch, advantage, weight) do
    local prompt = rl.shared_prompt(model, group.prompt)
    for part in group:parts(cfg.micro) do
      local logp = rl.completion_logprobs(model, prompt, part.completions, { temperature = cfg.temperature })
      rl.clipped(logp, part.logprobs, part.advantage, part.weight, { tokens = tokens }):backward()
      gap = math.max(gap, logp:detach():sub(part.logprobs):mul(part.weight):abs():max():item())
    end
    prompt:backward()
  end
  opt:step { lr = schedule(step), clip = 1 }:zero_grad()
  local row = rl.summary(batch)
  row.grad_norm, row[DIFFERENCE] = opt.grad_norm, gap
  local took = peri.time() - began
  if step % cfg.eval_every == 0 or step == cfg.updates then evaluate(step, row) end
  run:log(step, row, { step_time = took })
end

assert(adapter:save(run:path "adapter"))
run:plot("curves.svg", { "reward", "completions/mean_length", "entropy",
  { "held_out_sampled", "held_out_greedy", title = "held out", ylabel = "share right" } })
run:text("sampling and training log-probabilities differ by %g at most; all is in %s",
  math.max(0, table.unpack(run:history()[DIFFERENCE] or {})), run.folder)
run:finish()
