-- r1_zero.lua - a Llama that starts from random weights learns a task by reinforcement alone.
--
-- Teaches: GRPO (DeepSeekMath 2402.03300; DeepSeek-R1 2501.12948, section 2.2) without any supervised
-- step. The task is verl's digit completion: "3,5:9,4" asks for the next 4 numbers of the sequence
-- 3, 5, ... modulo 9, here "7,0,2,4". A character earns 1/(n+1) while everything before it is right.
-- Run:  ./perilune run recipes/r1_zero.lua    a few minutes on two cores; --terms 9 is verl's
--       original task, --model FOLDER starts from a Hugging Face folder
-- Departs from the paper: a dense rule reward instead of 0/1; one on-policy epoch, so the clip is
-- idle; no KL penalty (beta 0); credit by process supervision (2402.03300, 4.1.3) unless --whole;
-- prompts that are solved are drawn less often (--uniform: all alike): "reward" is of hard ones, "train_reward" of all.
local peri = require "perilune"
local models, optim, sched = require "perilune.models", require "perilune.optim", require "perilune.sched"
local rl, recipe, text = require "perilune.rl", require "perilune.recipe", require "perilune.text"

local cfg = peri.flags(recipe.with_flags {
  terms       = { 4, "most numbers to complete (verl: 9)", range = "[1, inf)" },
  model       = { "", "Hugging Face folder to start from; empty = random weights" },
  std         = { 0.08, "standard deviation of the random weights", range = "(0, inf)" },
  updates     = { 800, "optimizer steps", range = "[0, inf)", budget = true },
  prompts     = { 32, "prompts an update", range = "[1, inf)" },
  group       = { 16, "completions of each prompt", range = "[2, inf)" },
  micro       = { 512, "completions in one forward and backward pass", range = "[1, inf)" },
  lr          = { 3e-4, "peak learning rate", range = "[0, inf)" },
  warmup      = { 50, "updates of linear warm-up", range = "[0, inf)" },
  clip        = { 0.2, "clip of the ratio", range = "(0, inf)" },
  temperature = { 1.0, "of sampling", range = "(0, inf)" },
  whole       = { false, "one advantage for the whole answer instead of one for each character" },
  uniform     = { false, "draw all prompts alike" },
  eval_every  = { 50, "updates between two evaluations", range = "[1, inf)" },
})

local MAX = 9 -- Task: every (first, difference, count), shuffled, one fifth held out.
local tok = text.chars("0123456789,:", { separator = true })

local function dataset(rng)
  local rows = {}
  for i = 0, (MAX + 1) ^ 2 * (cfg.terms + 1) - 1 do
    local first, diff, n = i // (cfg.terms + 1) // (MAX + 1), i // (cfg.terms + 1) % (MAX + 1), i % (cfg.terms + 1)
    local second, list = (first + diff) % MAX, {}
    for k = 1, n do list[k] = (second + k * (second - first)) % MAX end
    local answer = table.concat(list, ",")
    local want = tok:encode(answer)
    want[#want + 1] = tok.eos
    rows[#rows + 1] = { prompt = ("%d,%d:%d,%d"):format(first, second, MAX, n), answer = answer, want = want }
  end
  rng:shuffle(rows)
  local split = #rows * 4 // 5
  return table.move(rows, 1, split, 1, {}), table.move(rows, split + 1, #rows, 1, {})
end

-- 1/(n+1) for each leading character that is right, the end of the answer included.
local function reward(row, _, tokens)
  local steps, total, each = {}, 0, 1 / #row.want
  for i = 1, math.min(#tokens, #row.want) do
    steps[i] = tokens[i] == row.want[i] and each or 0
    total = total + steps[i]
    if steps[i] == 0 then break end
  end
  return total, not cfg.whole and steps or nil
end

-- Model.
local run = recipe.start { name = "r1_zero", flags = cfg, total = cfg.updates,
  columns = { "reward", "held_out_exact", "train_reward", "kl", "entropy" } }
local train, held_out = dataset(peri.rng(0))
local shape = { architectures = { "LlamaForCausalLM" }, model_type = "llama", vocab_size = tok.size, hidden_size = 128,
  intermediate_size = 344, num_hidden_layers = 4, num_attention_heads = 4, num_key_value_heads = 4, rms_norm_eps = 1e-6,
  rope_theta = 10000, max_position_embeddings = 2048, eos_token_id = tok.eos, pad_token_id = tok.pad }
local model = cfg.model == "" and models.llama.new(shape, { std = cfg.std }) or assert(models.load(cfg.model))
local start, rng = model:copy(), peri.rng(cfg.seed)
local opt = optim.AdamW(model:parameters(), { lr = cfg.lr, betas = { 0.9, 0.95 }, weight_decay = 0 })
local schedule, longest = sched.warmup(cfg.warmup, sched.constant(cfg.lr)), 2 * cfg.terms + 1
local sampling = { group = cfg.group, max_new_tokens = longest, temperature = cfg.temperature }
local prompts = rl.curriculum(train, { floor = cfg.uniform and 1e9 or 0.1 })
run:alarms(rl.alarms { metric = "held_out_exact" })
run:track("model", model):track("optimizer", opt):track("rng", rng):track("prompts", prompts)

-- Share of held-out prompts that greedy decoding answers exactly; mean reward of samples of all others.
local function evaluate()
  local exact, once = 0, { group = 1, max_new_tokens = longest, temperature = cfg.temperature }
  local batch = rl.rollout(model, tok, held_out, reward, { group = 1, max_new_tokens = longest, greedy = true })
  for i, row in ipairs(held_out) do
    if batch.texts[i] == row.answer and #batch.tokens[i] == #row.want then exact = exact + 1 end
  end
  return batch, exact / #held_out, rl.summary(rl.rollout(model, tok, train, reward, once)).reward
end

-- Loop.
for step in run:steps() do
  local began, rows = peri.time(), {}
  for i = 1, cfg.prompts do rows[i] = prompts:draw(rng) end
  local batch = rl.rollout(model, tok, rows, reward, sampling)
  prompts:update(batch)
  local advantage, weight = rl.advantages(batch)
  local how, clipped = { clip = cfg.clip, tokens = math.max(weight:sum():item(), 1) }, 0
  for part in rl.parts(rl.with_signal(batch, advantage, weight), cfg.micro) do
    local logp = model:token_logprobs(part.sequences, part.from, { temperature = cfg.temperature })
    local loss, stats = rl.clipped(logp, part.logprobs, part.advantage, part.weight, how)
    loss:backward()
    clipped = clipped + stats.clip_fraction:item()
  end
  opt:step { lr = schedule(step), clip = 1 }:zero_grad()
  local row = rl.summary(batch)
  row["clip_ratio/region_mean"], row.grad_norm = clipped, opt.grad_norm
  if step == 1 or step % cfg.eval_every == 0 or step == cfg.updates then
    local shown, exact, mean = evaluate()
    row.held_out_exact, row.train_reward, row.kl = exact, mean, rl.kl_to(start, batch, cfg.temperature)
    for i = 1, 3 do
      run:sample(step, { prompt = held_out[i].prompt, answer = held_out[i].answer, completion = shown.texts[i] },
        ("  %s -> %s (right: %s)"):format(held_out[i].prompt, shown.texts[i], held_out[i].answer))
    end
  end
  run:log(step, row, { tok_s = batch.ids:numel() / (peri.time() - began) })
end

assert(model:save(run:path "model"))
run:plot("curves.svg", { "reward", { "train_reward", "held_out_exact" }, "entropy", { "kl", ylabel = "nats a token" } })
run:text("held-out exact %.2f, mean train reward %.2f (verl's bar for it is 0.2); curves, samples and model are in %s",
  run:last "held_out_exact" or 0, run:last "train_reward" or 0, run.folder)
run:finish()
