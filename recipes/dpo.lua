-- dpo.lua - learning from preferences: DPO, IPO, KTO, ORPO and SimPO on the same pairs, whose true utility is known.
--
-- Teaches: losses of preferences side by side (2305.18290, 2310.12036, 2402.01306, 2403.07691, 2405.14734). A prompt is
-- a digit, an answer some digits; its utility is how many of them are larger than the prompt less how many are smaller,
-- so for small prompts long answers are good and for large ones short answers. Two answers of a base model that knows
-- nothing of that, and which one is preferred (Bradley and Terry, with their noise), is all that is learned from.
-- Baselines: the base, and fine-tuning on the preferred answers. The table has the true utility, how often an answer is
-- better than one of the base, and what it costs: the KL divergence to the base.
-- Run:  ./perilune run recipes/dpo.lua     twenty seconds on two cores
--       --losses dpo,ipo: some of them;  --beta 0.05: nearer to the utility, further from the base
-- Departs from the papers: a model of 0.1M parameters; one beta for DPO and KTO, the others' at their usual size.
local peri = require "perilune"
local algo, models, optim, rl, recipe = peri.algo, peri.models, peri.optim, peri.rl, peri.recipe

local cfg = peri.flags(recipe.with_flags {
  losses      = { "sft,dpo,ipo,kto,orpo,simpo", "what is compared" },
  beta        = { 0.1, "of dpo and kto", range = "(0, inf)" },
  pairs       = { 2000, "pairs of answers", range = "[20, inf)" },
  updates     = { 150, "of each loss", range = "[0, inf)", budget = true },
  batch       = { 64, "pairs an update", range = "[2, inf)" },
  lr          = { 5e-4, "learning rate", range = "[0, inf)" },
  pretraining = { 300, "batches of the base", range = "[0, inf)" },
  width       = { 64, "of the model", range = "[16, inf)" },
  samples     = { 64, "answers to each prompt that are measured", range = "[1, inf)" },
})

-- Task.
local tok = peri.text.chars "0123456789:"
local LONGEST <const> = 8
local prompts = {}
for digit = 0, 9 do prompts[digit + 1] = { prompt = ("%d:"):format(digit) } end

local function utility(row, answer)
  local sum, than = 0, row.prompt:byte()
  for i = 1, #answer do sum = sum + (answer:byte(i) > than and 1 or answer:byte(i) < than and -1 or 0) end
  return sum
end

-- Base: any digits, each the last one with probability 0.25.
local run = recipe.start { name = "dpo", flags = cfg, total = cfg.updates, columns = { "dpo/rewards/accuracies" } }
local path = recipe.cached("dpo-base", { width = cfg.width, batches = cfg.pretraining, seed = cfg.seed }, function (to)
  local model = models.llama.new { architectures = { "LlamaForCausalLM" }, model_type = "llama", vocab_size = tok.size,
    hidden_size = cfg.width, intermediate_size = 2 * cfg.width, num_hidden_layers = 2,
    num_attention_heads = cfg.width // 16, max_position_embeddings = 16, eos_token_id = tok.eos,
    pad_token_id = tok.pad }
  local rng, rows = peri.rng(cfg.seed), {}
  for i = 1, math.max(cfg.pretraining * 64, 1) do
    local answer = { rng:int(0, 9) }
    while #answer < LONGEST - 1 and rng:uniform() > 0.25 do answer[#answer + 1] = rng:int(0, 9) end
    rows[i] = { prompt = rng:choice(prompts).prompt, completion = table.concat(answer) }
  end
  local opt = optim.AdamW(model, { lr = 2e-3 })
  local learner = algo.sft.new { model = model, tokenizer = tok, rows = rows, batch_size = 64, optimizer = opt }
  for _ = 1, cfg.pretraining do learner:step() end
  return model:save(to)
end, cfg.runs)
local base = assert(models.load(path))

-- Pairs: the same of one seed, whatever is learned from them.
local function sample(model, rows, group)
  return rl.rollout(model, tok, rows, utility, { group = group, max_new_tokens = LONGEST })
end
peri.seed(cfg.seed)
local rng, pairs_of, labels, chosen = peri.rng(cfg.seed), {}, {}, {}
while #pairs_of < cfg.pairs do
  local batch = sample(base, prompts, 40)
  for i = 1, #batch.texts, 2 do
    local one, two, prompt = batch.texts[i], batch.texts[i + 1], batch.rows[i].prompt
    local first = rng:uniform() < 1 / (1 + math.exp(batch.total[i + 1] - batch.total[i]))
    if one ~= two and #pairs_of < cfg.pairs then
      local row = { prompt = prompt, chosen = first and one or two, rejected = first and two or one }
      pairs_of[#pairs_of + 1], chosen[#chosen + 1] = row, { prompt = prompt, completion = row.chosen }
      labels[#labels + 1] = { prompt = prompt, completion = row.chosen, label = true }
      labels[#labels + 1] = { prompt = prompt, completion = row.rejected, label = false }
    end
  end
end

-- One stepper for each loss, all from the base.
local settings = { dpo = { beta = cfg.beta }, ipo = { beta = 0.5 }, kto = { beta = cfg.beta, rows = labels },
  orpo = { beta = 0.5 }, simpo = { beta = 2, gamma = 0.5 }, sft = { rows = chosen } }
local arms = {}
for name in cfg.losses:gmatch "[^,]+" do
  local o = settings[name] or error(("--losses: there is no %q"):format(name), 0)
  local model = assert(models.load(path))
  o.model, o.tokenizer, o.rows, o.batch_size, o.seed = model, tok, o.rows or pairs_of, cfg.batch, cfg.seed
  o.optimizer, o.loss = optim.AdamW(model, { lr = cfg.lr, weight_decay = 0 }), name ~= "sft" and name or nil
  arms[#arms + 1] = { name = name, model = model, stepper = algo[name == "sft" and "sft" or "dpo"].new(o) }
  run:track(name, model):track(name .. "_optimizer", o.optimizer):track(name .. "_stepper", arms[#arms].stepper)
end

-- Loop: an update of each loss a step.
for step in run:steps() do
  local row = {}
  for _, arm in ipairs(arms) do
    for name, value in pairs(arm.stepper:step()) do row[("%s/%s"):format(arm.name, name)] = value end
  end
  run:log(step, row)
end

-- The table.
peri.seed(cfg.seed)
local before = sample(base, prompts, cfg.samples)
run:text("%-6s %8s %9s %7s %7s", "", "utility", "better", "KL", "length")
for _, arm in ipairs { { name = "base", model = base }, table.unpack(arms) } do
  local batch, sum, wins, length = sample(arm.model, prompts, cfg.samples), 0, 0, 0
  for i, u in ipairs(batch.total) do
    sum, length = sum + u, length + #batch.texts[i]
    wins = wins + (u > before.total[i] and 1 or u == before.total[i] and 0.5 or 0)
  end
  local ref, n = peri.no_grad(function () return (base:token_logprobs(batch.sequences, batch.from)) end), #batch.total
  local kl = batch.logprobs:sub(ref):mul(batch.mask):sum():item() / n
  run:text("%-6s %8.2f %8.0f%% %7.2f %7.2f", arm.name, sum / n, 100 * wins / n, kl, length / n)
  run:sample(cfg.updates, { loss = arm.name, prompt = batch.rows[1].prompt, completion = batch.texts[1] })
end
run:plot("curves.svg", {
  { "dpo/rewards/margins", "ipo/rewards/margins", "kto/rewards/margins", title = "rewards/margins" },
  { "dpo/rewards/accuracies", "ipo/rewards/accuracies", "simpo/rewards/accuracies", "orpo/rewards/accuracies",
    title = "rewards/accuracies" } })
run:finish()
