-- grpo_gsm8k.lua - the R1-Zero loop on a real model and real problems: GSM8K, rules as rewards.
--
-- Teaches: GRPO (2402.03300) with the rewards of DeepSeek-R1-Zero (2501.12948, section 2.2.2), accuracy
-- and format, on a LoRA adapter. The prompt of a group is read once, forward and backward; there is never
-- a tensor of [tokens, vocabulary]; frozen weights get no gradients and are held once, packed.
-- Run:  ./perilune run recipes/grpo_gsm8k.lua --model FILE --data FILE     about half a minute a step on two cores
--       --model: Hugging Face folder or GGUF file with a chat template (default: SmolLM2-135M-Instruct),
--       --data: JSON lines with question and answer (default: GSM8K's train.jsonl)
-- Departs from the paper: starts from an instruction-tuned model of 135 million parameters, which answers few
-- of these problems (accuracy moves little, format a lot); one on-policy epoch; no KL penalty.
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
  micro       = { 2, "answers in one forward and backward pass", range = "[1, inf)" },
  tokens      = { 128, "longest answer", range = "[1, inf)" },
  rank        = { 16, "of the low-rank matrices", range = "[1, inf)" },
  lr          = { 2e-4, "peak learning rate", range = "[0, inf)" },
  clip        = { 0.2, "clip of the ratio", range = "(0, inf)" },
  temperature = { 1.0, "of sampling", range = "(0, inf)" },
  format      = { 0.5, "reward for an answer in the form asked for, beside 1 for a right one", range = "[0, inf)" },
  held_out    = { 32, "problems that are only measured", range = "[1, inf)" },
  eval_every  = { 10, "updates between two measurements", range = "[1, inf)" },
})

-- Task.
local function dataset(path)
  local list = assert(gsm8k.rows(path))
  for _, row in ipairs(list) do row.prompt = gsm8k.prompt(row, true) end
  local split = #list - cfg.held_out
  return table.move(list, 1, split, 1, {}), table.move(list, split + 1, #list, 1, {})
end

local rewards = {
  { "accuracy", function (row, text) return gsm8k.strict(text) == row.gold and 1 or 0 end },
  { "format", function (_, text) return gsm8k.strict(text) and 1 or 0 end, cfg.format },
}

local path = recipe.find(cfg.model, "a model: --model FILE")
local train, held_out = dataset(recipe.find(cfg.data, "GSM8K's training rows: --data FILE"))

-- Model.
local tok = assert(peri.tokenizer.load(path))
local model = assert(models.load(path, { pack = true }))
local run = recipe.start { name = "grpo_gsm8k", flags = cfg, total = cfg.updates,
  columns = { "reward", "held_out_accuracy", "held_out_lenient", "accuracy/mean", "format/mean" } }
local adapter = peft.lora(model, { r = cfg.rank, alpha = 2 * cfg.rank })
local opt = optim.AdamW(adapter:parameters(), { lr = cfg.lr, weight_decay = 0 })
local schedule, rng = sched.warmup(3, sched.constant(cfg.lr)), peri.rng(cfg.seed)
run:track("adapter", adapter):track("optimizer", opt):track("rng", rng)

-- Share of held-out problems whose greedy answer is right, and right whatever its form.
local function evaluate(step)
  local strict, lenient = 0, 0
  local batch = rl.rollout(model, tok, held_out, function () return 0 end,
    { group = 1, max_new_tokens = cfg.tokens, greedy = true })
  for i, row in ipairs(held_out) do
    if gsm8k.strict(batch.texts[i]) == row.gold then strict = strict + 1 end
    if gsm8k.lenient(batch.texts[i]) == row.gold then lenient = lenient + 1 end
  end
  run:sample(step, { question = held_out[1].question, answer = held_out[1].gold, completion = batch.texts[1] },
    ("  %s\n  -> %s\n  (right: %s)"):format(held_out[1].question, batch.texts[1], held_out[1].gold))
  return strict / #held_out, lenient / #held_out
end

-- Loop.
for step in run:steps() do
  local began, rows = peri.time(), {}
  for i = 1, cfg.prompts do rows[i] = rng:choice(train) end
  local batch = rl.rollout(model, tok, rows, rewards,
    { group = cfg.group, max_new_tokens = cfg.tokens, temperature = cfg.temperature })
  local row = rl.summary(batch)
  local advantage, weight = rl.advantages(batch)
  local tokens, clipped = math.max(weight:sum():item(), 1), 0
  local how = { clip = cfg.clip, tokens = tokens }
  for group in rl.groups(batch, advantage, weight) do
    local prompt = rl.shared_prompt(model, group.prompt)
    for part in group:parts(cfg.micro) do
      local logp = rl.completion_logprobs(model, prompt, part.completions, { temperature = cfg.temperature })
      local loss, stats = rl.clipped(logp, part.logprobs, part.advantage, part.weight, how)
      loss:backward()
      clipped = clipped + stats.clip_fraction:item()
    end
    prompt:backward()
  end
  opt:step { lr = schedule(step), clip = 1 }:zero_grad()
  row["clip_ratio/region_mean"], row.grad_norm = clipped, opt.grad_norm
  local took = peri.time() - began
  if step == 1 or step % cfg.eval_every == 0 or step == cfg.updates then
    row.held_out_accuracy, row.held_out_lenient = evaluate(step)
  end
  run:log(step, row, { step_time = took })
end

assert(adapter:save(run:path "adapter"))
run:plot("curves.svg", { "reward", { "rewards/accuracy/mean", "rewards/format/mean", title = "rewards" },
  { "held_out_accuracy", "held_out_lenient", title = "held out", ylabel = "share of problems" } })
run:text("curves, samples and the adapter are in %s", run.folder)
run:finish()
