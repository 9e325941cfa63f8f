-- grpo_gsm8k.lua - the R1-Zero loop on a real model and real problems: GSM8K, rules as rewards.
--
-- Teaches: GRPO (2402.03300) with the rewards of DeepSeek-R1-Zero (2501.12948, section 2.2.2), accuracy and format, on
-- a LoRA adapter - and how such a reward is hacked. Asked for a line "#### number" a model of this size learns to write
-- nothing else: the format is perfect, answers shrink, no more is solved than before, and an
-- alarm says so (--form bare --shots 0 --steps 9). A reward for the number behind worked steps keeps them;
-- two solved problems in the prompt show what is asked for.
-- Run:  ./perilune run recipes/grpo_gsm8k.lua --model FILE --data FILE     thirteen minutes on two cores
--       --model: Hugging Face folder or GGUF file with a chat template (default: SmolLM2-135M-Instruct),
--       --data: JSON lines with question and answer (default: GSM8K's train.jsonl)
-- Departs from the paper: starts from an instruction-tuned model of 135 million parameters, which answers few of these
-- problems, hence only problems of few steps; one on-policy epoch; no KL penalty.
local peri = require "perilune"
local models, optim, sched = require "perilune.models", require "perilune.optim", require "perilune.sched"
local peft, rl, recipe = require "perilune.peft", require "perilune.rl", require "perilune.recipe"
local gsm8k = require "perilune.tasks.gsm8k"

local cfg = peri.flags(recipe.with_flags {
  model       = { "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "model with a chat template" },
  data        = { "gsm8k/train.jsonl", "rows with question and answer" },
  updates     = { 40, "optimizer steps", range = "[0, inf)", budget = true },
  prompts     = { 4, "problems an update", range = "[1, inf)" },
  group       = { 8, "answers to each", range = "[2, inf)" },
  micro       = { 4, "answers in one forward and backward pass", range = "[1, inf)" },
  tokens      = { 128, "longest answer", range = "[1, inf)" },
  rank        = { 16, "of the low-rank matrices", range = "[1, inf)" },
  lr          = { 2e-4, "peak learning rate", range = "[0, inf)" },
  temperature = { 1.0, "of sampling", range = "(0, inf)" },
  format      = { 0.5, "reward for an answer in the form asked for, beside 1 for a right one", range = "[0, inf)" },
  form        = { "worked", "asked for: a number behind worked steps, or a bare one", choices = { "worked", "bare" } },
  steps       = { 2, "most calculations in a problem's published answer", range = "[1, inf)" },
  shots       = { 2, "solved problems in front of the question", range = "[0, inf)" },
  held_out    = { 64, "problems that are only measured", range = "[1, inf)" },
  eval_every  = { 10, "updates between two measurements", range = "[1, inf)" },
})

-- Task.
local function dataset(path)
  local train, held_out, shots = {}, {}, {}
  for _, row in ipairs(assert(gsm8k.rows(path))) do
    local list = #shots < cfg.shots and shots or train
    if row.steps <= cfg.steps then list[#list + 1] = row end
  end
  for _, row in ipairs(train) do row.prompt = gsm8k.prompt(row, true, shots) end
  for i = 1, math.min(cfg.held_out, #train - 1) do held_out[i] = table.remove(train) end
  return train, held_out
end

local form = cfg.form == "worked" and gsm8k.worked or function (text) return gsm8k.strict(text) and 1 or 0 end
local rewards = {
  { "accuracy", function (row, text) return gsm8k.lenient(text) == row.gold and 1 or 0 end },
  { "format", function (_, text) return form(text) end, cfg.format },
}

-- Model.
local path = recipe.find(cfg.model, "a model: --model FILE")
local train, held_out = dataset(recipe.find(cfg.data, "GSM8K's training rows: --data FILE"))
local tok = assert(peri.tokenizer.load(path))
local model = assert(models.load(path, { pack = true }))
local run = recipe.start { name = "grpo_gsm8k", flags = cfg, total = cfg.updates,
  columns = { "held_out_lenient", "held_out_format", "accuracy/mean", "format/mean", "completions/mean_length" } }
local adapter = peft.lora(model, { r = cfg.rank, alpha = 2 * cfg.rank })
local opt = optim.AdamW(adapter:parameters(), { lr = cfg.lr, weight_decay = 0 })
local schedule, rng = sched.warmup(3, sched.constant(cfg.lr)), peri.rng(cfg.seed)
run:alarms(rl.alarms { metric = "held_out_lenient", best = 1 + cfg.format })
run:track("adapter", adapter):track("optimizer", opt):track("rng", rng):restore()

-- Of greedy answers to held-out problems: shares that are right, and right in the form asked for; mean worked form.
local function evaluate(step, row)
  local phase <close> = run:phase "evaluate" -- luacheck: ignore 211
  local batch = rl.rollout(model, tok, held_out, {
    { "lenient", rewards[1][2] }, { "worked", function (_, text) return gsm8k.worked(text) end },
    { "strict", function (one, text) return gsm8k.strict(text) == one.gold and 1 or 0 end },
  }, { max_new_tokens = cfg.tokens, greedy = true, rows = 16 })
  run:sample(step, { question = held_out[1].question, answer = held_out[1].gold, completion = batch.texts[1] },
    ("  %s\n  -> %s\n  (right: %s)"):format(held_out[1].question, batch.texts[1], held_out[1].gold))
  local shown = rl.summary(batch)
  row.held_out_lenient, row.held_out_accuracy = shown["rewards/lenient/mean"], shown["rewards/strict/mean"]
  row.held_out_format, row.held_out_length = shown["rewards/worked/mean"], shown["completions/mean_length"]
  return row
end

-- Loop. Step 0 is the baseline.
local DIFFERENCE = "sampling/sampling_logp_difference/max" -- of log-probabilities, sampling from training
if run.step == 0 then run:log(0, evaluate(0, {})) end
for step in run:steps() do
  local began, rows, gap = peri.time(), {}, 0
  for i = 1, cfg.prompts do rows[i] = rng:choice(train) end
  local batch = rl.rollout(model, tok, rows, rewards,
    { group = cfg.group, max_new_tokens = cfg.tokens, temperature = cfg.temperature })
  local row = rl.summary(batch)
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
  row.grad_norm, row[DIFFERENCE] = opt.grad_norm, gap
  local took = peri.time() - began
  if step % cfg.eval_every == 0 or step == cfg.updates then evaluate(step, row) end
  run:log(step, row, { step_time = took })
end

assert(adapter:save(run:path "adapter"))
run:plot("curves.svg", { { "rewards/accuracy/mean", "rewards/format/mean", title = "rewards" },
  "completions/mean_length", { "held_out_lenient", "held_out_accuracy", title = "held out" } })
run:text("sampling and training log-probabilities differ by %g at most; all is in %s",
  math.max(0, table.unpack(run:history()[DIFFERENCE] or {})), run.folder)
run:finish()
