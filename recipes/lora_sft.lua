-- lora_sft.lua - a small chat model learns to write GSM8K's worked answers by supervised fine-tuning.
--
-- Teaches: LoRA (2106.09685) on every linear layer of a frozen model, loss on the answer's tokens only,
-- answers packed into rows that do not see each other, and an adapter that PEFT loads.
-- Run:  ./perilune run recipes/lora_sft.lua --model FILE --data FILE     about eight minutes on two cores
--       --model: Hugging Face folder or GGUF file with a chat template (default: SmolLM2-135M-Instruct),
--       --data: JSON lines with question and answer (default: GSM8K's train.jsonl),
--       --dtype file: keep quantised weights as they are and train over them (QLoRA, 2305.14314)
-- Departs from the papers: one pass over part of the data, no search for hyperparameters.
local peri = require "perilune"
local models, optim, sched = require "perilune.models", require "perilune.optim", require "perilune.sched"
local peft, sft, recipe = require "perilune.peft", require "perilune.algo.sft", require "perilune.recipe"
local rows, gsm8k = require "perilune.data.rows", require "perilune.tasks.gsm8k"

local cfg = peri.flags(recipe.with_flags {
  model      = { "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "model with a chat template" },
  data       = { "gsm8k/train.jsonl", "rows with question and answer" },
  dtype      = { "f32", "of the frozen weights: f32, bf16, f16, or file: as stored" },
  steps      = { 60, "optimizer steps", range = "[0, inf)", budget = true },
  batch      = { 2, "packed rows of a forward and backward pass", range = "[1, inf)" },
  accumulate = { 1, "passes of a step", range = "[1, inf)" },
  length     = { 1024, "tokens of a packed row", range = "[2, inf)" },
  rank       = { 16, "of the low-rank matrices", range = "[1, inf)" },
  alpha      = { 32, "scale is alpha / rank", range = "(0, inf)" },
  dropout    = { 0.05, "of the adapter's input", range = "[0, 1)" },
  lr         = { 5e-4, "peak learning rate", range = "[0, inf)" },
  held_out   = { 64, "rows that are only measured", range = "[1, inf)" },
  eval_every = { 20, "steps between two measurements", range = "[1, inf)" },
})

-- Task: the question is the user's, the worked answer the assistant's.
local function dataset(path)
  local list = assert(gsm8k.rows(path))
  for i, row in ipairs(list) do
    list[i] = { prompt = gsm8k.prompt(row, true),
                completion = { { role = "assistant", content = gsm8k.solution(row) } } }
  end
  local split = #list - cfg.held_out
  return table.move(list, 1, split, 1, {}), table.move(list, split + 1, #list, 1, {})
end

local path = recipe.find(cfg.model, "a model: --model FILE")
local train, held_out = dataset(recipe.find(cfg.data, "GSM8K's training rows: --data FILE"))
local tok = assert(peri.tokenizer.load(path))
local model = assert(models.load(path, { dtype = cfg.dtype, pack = true }))
local run = recipe.start { name = "lora_sft", flags = cfg, total = cfg.steps,
  columns = { "loss", "eval_loss", "learning_rate", "grad_norm", "epoch" } }
local measured, report = rows.examples(tok, held_out, { max_length = cfg.length })

-- Model.
local before = sft.evaluate(model, measured)
local adapter = peft.lora(model, { r = cfg.rank, alpha = cfg.alpha, dropout = cfg.dropout })
local opt = optim.AdamW(adapter:parameters(), { lr = cfg.lr, weight_decay = 0 })
local used = math.min(#train, cfg.steps * cfg.batch * cfg.accumulate * cfg.length // 128)
local stepper = sft.new { model = model, tokenizer = tok, rows = table.move(train, 1, used, 1, {}), optimizer = opt,
  batch_size = cfg.batch, accumulate = cfg.accumulate, max_length = cfg.length, packing = true, seed = cfg.seed,
  schedule = sched.warmup(5, sched.cosine { from = cfg.lr, steps = cfg.steps }) }
run:track("adapter", adapter):track("optimizer", opt):track("order", stepper):restore()
if report.dropped > 0 then run:text("held out: %s", report.text) end
if stepper.report.dropped > 0 then run:text("training: %s", stepper.report.text) end
run:text("%d parameters, %d trained; held-out loss %.3f nats a token before", model:num_parameters(),
  adapter:num_parameters(), before)

-- Loop.
for step in run:steps() do
  local began, seen = peri.time(), stepper.seen
  local row = stepper:step()
  if step % cfg.eval_every == 0 or step == cfg.steps then
    adapter:eval()
    row.eval_loss = sft.evaluate(model, measured)
    adapter:train()
  end
  run:log(step, row, { tok_s = (stepper.seen - seen) / (peri.time() - began) })
end

assert(adapter:save(run:path "adapter"))
run:plot("curves.svg", { { "loss", "eval_loss", ylabel = "nats a token" }, "learning_rate" })
run:text("held-out loss %.3f before, %.3f after; the adapter is in %s/adapter", before, run:last "eval_loss" or before,
  run.folder)
run:finish()
