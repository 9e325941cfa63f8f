-- rlhf_ppo.lua - PPO against a reward model from preferences, and what comes of trusting that too much.
--
-- Teaches: the steps of InstructGPT (2203.02155): a base, a reward model from preferences (Bradley and Terry), PPO with
-- a critic against it, with and without a KL penalty; and the over-optimisation curve (Gao et al., 2210.10760), for the
-- true utility is known here. A prompt is a digit, an answer some digits; each that is larger is worth 1, each that is
-- smaller or was said before costs 1. The base seldom repeats itself, so the reward model learns little of that:
-- without a penalty its score goes on rising while the utility falls.
-- Baselines: the base, and the best of n of its answers by the reward model. Ablation: the arm without a penalty.
-- Run:  ./perilune run recipes/rlhf_ppo.lua     half a minute on two cores, a third of it for models that are cached
--       --kl 0.5,0.2,0.05,0: arms by their KL coefficient
-- Departs from the papers: models of 0.1M parameters; the reward is the judge's score as it is.
local peri = require "perilune"
local algo, models, optim, rl, recipe = peri.algo, peri.models, peri.optim, peri.rl, peri.recipe
local cfg = peri.flags(recipe.with_flags {
  kl          = { "0.2,0", "KL coefficients, an arm each" },
  pairs       = { 400, "preferences", range = "[20, inf)" },
  updates     = { 80, "of PPO", range = "[0, inf)", budget = true },
  pretraining = { 300, "batches of the base", range = "[0, inf)" },
  eval_every  = { 10, "updates between two measurements", range = "[1, inf)" },
})

-- Task.
local tok, prompts = peri.text.chars "0123456789:", {}
for digit = 0, 9 do prompts[digit + 1] = { prompt = ("%d:"):format(digit) } end
local function utility(row, answer)
  local sum, than, said = 0, row.prompt:sub(1, 1), {}
  for digit in answer:gmatch "." do
    sum, said[digit] = sum + ((said[digit] or digit < than) and -1 or digit > than and 1 or 0), true
  end
  return sum
end
local function sample(model, n) return rl.rollout(model, tok, prompts, utility, { group = n, max_new_tokens = 10 }) end

-- Base: any digits, each the last one with probability 0.25. Judge: of pairs of its answers.
local function learn(kind, model, rows, batches, lr)
  local learner = algo[kind].new { model = model, tokenizer = tok, rows = rows, batch_size = 64, seed = cfg.seed,
    optimizer = optim.AdamW(model, { lr = lr, weight_decay = 0.1 }) }
  for _ = 1, batches do learner:step() end
end
local function make(folder)
  local rng, rows, pairs_of = peri.rng(cfg.seed), {}, {}
  local base = models.llama.new { architectures = { "LlamaForCausalLM" }, model_type = "llama", vocab_size = tok.size,
    hidden_size = 64, intermediate_size = 128, num_hidden_layers = 2, num_attention_heads = 4,
    max_position_embeddings = 32, eos_token_id = tok.eos, pad_token_id = tok.pad }
  for i = 1, math.max(cfg.pretraining * 64, 1) do
    local answer = ("%d"):format(rng:int(0, 9))
    while #answer < 9 and rng:uniform() > 0.25 do answer = answer .. rng:int(0, 9) end
    rows[i] = { prompt = rng:choice(prompts).prompt, completion = answer }
  end
  learn("sft", base, rows, cfg.pretraining, 2e-3)
  while #pairs_of < cfg.pairs do
    local batch = sample(base, 2)
    for i = 1, #batch.texts, 2 do
      local one, two, gain = batch.texts[i], batch.texts[i + 1], batch.total[i] - batch.total[i + 1]
      if rng:uniform() > 1 / (1 + math.exp(-gain)) then one, two = two, one end
      if one ~= two then pairs_of[#pairs_of + 1] = { prompt = batch.rows[i].prompt, chosen = one, rejected = two } end
    end
  end
  local scorer = models.scorer(base)
  learn("reward_model", scorer, pairs_of, 60, 1e-3)
  return base:save(folder .. "/base") and scorer:save(folder .. "/judge")
end
local run = recipe.start { name = "rlhf_ppo", flags = cfg, total = cfg.updates }
local folder = recipe.cached("rlhf-models", { cfg.pretraining, cfg.seed, cfg.pairs }, make, cfg.runs)
local base = assert(models.load(folder .. "/base"))
local judge = peri.reward.model { model = assert(models.load(folder .. "/judge")), tokenizer = tok }

-- Means of score, utility, length and distance to the base, over a rollout or over the best of each group by the judge.
local function measure(of, best)
  local scores, sum = judge(of.rows, of.texts), { 0, 0, 0, 0 }
  local ref = peri.no_grad(function () return (base:token_logprobs(of.sequences, of.from)) end)
  local far, list = of.logprobs:sub(ref):mul(of.mask):sum(2):tolist(), rl.best_of_n(scores, best and of.group or 1)
  for _, i in ipairs(list) do
    for k, v in ipairs { scores[i], of.total[i], #of.texts[i], far[i] } do sum[k] = sum[k] + v / #list end
  end
  if best then sum[4] = math.log(of.group) - (of.group - 1) / of.group end
  return table.unpack(sum)
end

local arms, panels = {}, {}
for word in cfg.kl:gmatch "[^,]+" do
  local arm = { name = "kl_" .. word:gsub("%.", "_"), model = base:copy():unfreeze() }
  arm.critic, arm.optimizer = models.scorer(base, { std = 0 }), optim.AdamW(arm.model, { lr = 1e-3 })
  arm.critic_optimizer = optim.AdamW(arm.critic, { lr = 2e-3 })
  arm.stepper = algo.ppo.new { model = arm.model, optimizer = arm.optimizer, critic = arm.critic, tokenizer = tok,
    critic_optimizer = arm.critic_optimizer, reference = base, kl_coef = tonumber(word), rows = prompts,
    seed = cfg.seed, prompts = 128, max_new_tokens = 10, epochs = 2, mini_batches = 4, missing_eos = 1, vf_coef = 1,
    critic_warmup = 5, reward = { { "judge", judge, batch = true } } }
  for _, part in ipairs { "model", "optimizer", "critic", "critic_optimizer", "stepper" } do
    run:track(arm.name .. "_" .. part, arm[part])
  end
  arms[#arms + 1], panels[#panels + 1] = arm, { arm.name .. "/score", arm.name .. "/utility", title = arm.name }
end

-- Loop: an update of each arm a step.
for step in run:steps() do
  local row = {}
  for _, arm in ipairs(arms) do
    for name, value in pairs(arm.stepper:step()) do row[arm.name .. "/" .. name] = value end
    if step == 1 or step % cfg.eval_every == 0 or step == cfg.updates then
      local of = sample(arm.model, 40)
      local score, worth, _, far = measure(of)
      row[arm.name .. "/score"], row[arm.name .. "/utility"], row[arm.name .. "/distance"] = score, worth, far
      run:sample(step, { arm = arm.name, prompt = of.rows[1].prompt, completion = of.texts[1] })
    end
  end
  run:log(step, row)
end

-- The table, and the curves: where they part, the judge is wrong. What was sampled and what is trained on agree.
run:text("%-10s %8s %8s %8s %8s", "", "score", "utility", "length", "KL")
local function line(name, ...) run:text("%-10s %8.2f %8.2f %8.2f %8.2f", name, measure(...)) end
line("base", sample(base, 40))
for _, n in ipairs { 4, 16, 64 } do line("best of " .. n, sample(base, n), true) end
for _, arm in ipairs(arms) do line(arm.name, sample(arm.model, 40)) end
local gap = run:last(arms[1].name .. "/sampling/sampling_logp_difference/max")
run:text("largest difference of sampled and trained log-probabilities: %g", gap or 0)
run:plot("curves.svg", panels)
run:finish()
