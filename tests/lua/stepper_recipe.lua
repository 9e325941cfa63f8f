-- stepper_recipe.lua - the steppers of perilune.post as recipes, for test_resume_steppers.lua: everything
-- that they draw, and where they are, goes through the checkpoints of the run.
local peri = require "perilune"
local optim, recipe, sched = require "perilune.optim", require "perilune.run.recipe", require "perilune.optim.sched"

local cfg = peri.flags(recipe.with_flags {
  which = { "grpo", "grpo, curriculum or sft" },
  steps = { 12, "updates" },
})

local tok = require("perilune.text").chars("0123456789,:", { separator = true })
local run = recipe.start { name = "steppers", flags = cfg, total = cfg.steps, console = true, tensorboard = false }
local model = require("perilune.models.llama").new({ model_type = "llama", vocab_size = tok.size, hidden_size = 16,
  intermediate_size = 24, num_hidden_layers = 1, num_attention_heads = 2, max_position_embeddings = 32,
  rms_norm_eps = 1e-6 }, { std = 0.1 })
local opt = optim.AdamW(model:parameters(), { lr = 1e-2 })
local how = { model = model, optimizer = opt, seed = cfg.seed,
  schedule = sched.warmup(3, sched.cosine { from = 1e-2, steps = cfg.steps }) }

local stepper
if cfg.which == "sft" then
  how.examples = {}
  for i = 1, 7 do
    local ids = tok:encode(("%d:%d,%d"):format(i, i, i))
    how.examples[i] = { ids = ids, mask = { 0, 0, 1, 1, 1 } }
  end
  how.batch_size = 3 -- an epoch ends within a checkpoint's reach, and at one
  stepper = require("perilune.algo.sft").new(how)
else
  local rows = {}
  for i = 0, 9 do rows[i + 1] = { prompt = ("%d:"):format(i) } end
  how.rows = cfg.which == "curriculum" and require("perilune.rl").curriculum(rows) or rows
  how.tokenizer, how.prompts, how.group, how.max_new_tokens = tok, 3, 4, 3
  how.reward = function (row, text)
    local _, n = text:gsub(row.prompt:sub(1, 1), "")
    return n / 3
  end
  stepper = require("perilune.algo.grpo").new(how)
end
run:track("model", model):track("optimizer", opt):track("stepper", stepper)

for step in run:steps() do
  local row = stepper:step()
  row.step = nil
  run:log(step, row)
end
assert(peri.safetensors.save(run:path "model.safetensors", (model:state_dict())))
run:finish()
