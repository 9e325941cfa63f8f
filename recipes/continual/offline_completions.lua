-- offline_completions.lua - a log of answers and their rewards, and nobody to ask: what a language model makes of it.
--
-- Teaches: offline reinforcement on logged completions. A base that has read sums of which many are wrong answers each
-- problem a few times; what it said, with which probabilities, and whether it was right is the log. From it learn:
-- fine-tuning on all of it, and on what was right (2308.01825); advantage-weighted regression (Peng et al. 2019,
-- 1910.00177, eq. 9: weights e^(A / beta)); an off-policy policy gradient whose answers count by their ratio to the
-- logged probabilities, at most 2 (Degris et al. 2012, 1205.4839), and the same without the ratio, which pushes wrong
-- answers down for ever; DPO on pairs of a right and a wrong one (2305.18290), and DPO with the likelihood of the right
-- one (dpo_nll; 2404.19733), which falls otherwise. A is the reward less the mean of the problem's answers.
-- Run:  ./perilune run recipes/continual/offline_completions.lua    15 seconds of one core; --arms right,ratio
-- Departs from the papers: 0.1M weights, sums of two digits; no value function, for a problem has several answers.
local peri = require "perilune"
local algo, loss, models, optim, rl, recipe = peri.algo, peri.loss, peri.models, peri.optim, peri.rl, peri.recipe

local cfg = peri.flags(recipe.with_flags {
  arms = { "all,right,weighted,ratio,no_ratio,dpo,dpo_nll", "what is compared" },
  updates = { 300, "of an arm", range = "[1, inf)", budget = true }, width = { 64, "of 2 layers", range = "[16, inf)" },
  batch = { 64, "answers of an update", range = "[2, inf)" }, beta = { 0.1, "of e^(A / beta)", range = "(0, inf)" },
  problems = { 600, "in the log", range = "[1, 2000]" }, answers = { 4, "to each of them", range = "[2, inf)" },
  wrong = { 0.5, "share of the sums that the base has read which are wrong", range = "[0, 1)" },
  pretrain = { 600, "batches of 64 sums of the base", range = "[1, inf)" },
  most = { 2.0, "largest ratio to the logged probabilities", range = "(0, inf)" },
  lr = { 2e-4, "learning rate", range = "(0, inf)" },
})

-- Task: "37+45=28" is 82, the ones first.
local tok, LONGEST <const> = peri.text.chars "0123456789+=", 4
local rows = {}
for i = 0, 2499 do
  local a, b = 10 + i // 50, 10 + i % 50
  rows[i + 1] = { prompt = ("%d+%d="):format(a, b), answer = ("%d"):format(a + b):reverse() }
end
peri.rng(1):shuffle(rows)
local held, asked = table.move(rows, 1, 400, 1, {}), table.move(rows, 401, 400 + cfg.problems, 1, {}) -- none is both
local function right(row, text) return text == row.answer and 1 or 0 end
local function sample(model, list, group, greedy)
  return rl.rollout(model, tok, list, right, { group = group, max_new_tokens = LONGEST, greedy = greedy })
end

local run = recipe.start { name = "offline_completions", flags = cfg, total = cfg.updates, columns = { "right/loss" } }
local about = { width = cfg.width, batches = cfg.pretrain, wrong = cfg.wrong, problems = cfg.problems, seed = cfg.seed }
local path = recipe.cached("offline-completions", about, function (to)
  peri.seed(cfg.seed)
  local model = models.llama.new { architectures = { "LlamaForCausalLM" }, model_type = "llama", vocab_size = tok.size,
    hidden_size = cfg.width, intermediate_size = 2 * cfg.width, num_hidden_layers = 2,
    num_attention_heads = cfg.width // 16, max_position_embeddings = 16, eos_token_id = tok.eos,
    pad_token_id = tok.pad }
  local rng, read = peri.rng(cfg.seed), {}
  for i = 1, cfg.pretrain * 64 do
    local row = rows[rng:int(401, #rows)]
    local n = tonumber(row.answer:reverse()) + (rng:uniform() < cfg.wrong and rng:choice { -10, -1, 1, 10 } or 0)
    read[i] = { prompt = row.prompt, completion = ("%d"):format(n):reverse() }
  end
  local stepper = algo.sft.new { model = model, tokenizer = tok, rows = read, batch_size = 64,
    optimizer = optim.AdamW(model), schedule = peri.sched.cosine { from = 3e-3, to = 1e-4, steps = cfg.pretrain } }
  for _ = 1, cfg.pretrain do stepper:step() end
  return model:save(to)
end, cfg.runs)
-- The log: the same for all arms.
local base, G = assert(models.load(path)), cfg.answers
peri.seed(cfg.seed)
local log = sample(base, asked, G)
local reward, pairs_of, good = peri.tensor(log.total, "f32"):reshape { -1, G }, {}, {}
local advantage = (reward - reward:mean(2, true)):reshape { -1, 1 } -- (B, 1)
for first = 1, #log.texts, G do
  local yes, no
  for i = first, first + G - 1 do
    if log.total[i] == 1 then yes, good[#good + 1] = log.texts[i], i - 1 else no = log.texts[i] end
  end
  if yes and no then pairs_of[#pairs_of + 1] = { prompt = log.rows[first].prompt, chosen = yes, rejected = no } end
end

-- What each arm makes of log-probabilities (B, N), and of the log at these places.
local function weighed(logp, mask, weight) return logp:mul(mask):mul(weight):sum():neg() / mask:sum():item() end
local ways, arms = {}, {}
function ways.all(logp, at) return weighed(logp, at.mask, 1) end
ways.right = ways.all -- of other places
function ways.weighted(logp, at) return weighed(logp, at.mask, rl.advantage_weights(at.advantage, 1 / cfg.beta, 20)) end
function ways.ratio(logp, at)
  local factor = loss.importance(logp:detach(), at.logprobs, at.mask, { mode = "sequence_truncate", max = cfg.most })
  return (loss.policy(logp, at.logprobs, at.advantage, at.mask, { objective = "reinforce", factor = factor }))
end
function ways.no_ratio(logp, at) return weighed(logp, at.mask, at.advantage) end
for name in cfg.arms:gmatch "[^,]+" do
  local arm = { name = name, model = assert(models.load(path)), rng = peri.rng(cfg.seed) }
  arm.opt, arms[#arms + 1] = optim.AdamW(arm.model, { lr = cfg.lr, weight_decay = 0 }), arm
  run:track(name, arm.model):track(name .. "_optimizer", arm.opt):track(name .. "_rng", arm.rng)
  if name:find "^dpo" then
    arm.stepper = algo.dpo.new { model = arm.model, tokenizer = tok, rows = pairs_of, optimizer = arm.opt, beta = 0.1,
      batch_size = cfg.batch // 2, seed = cfg.seed, nll = name == "dpo_nll" and 1 or 0 }
    run:track(name .. "_stepper", arm.stepper)
  else assert(ways[name], "--arms: one that is not known") end
end
local function update(arm)
  local places = {}
  for i = 1, cfg.batch do places[i] = arm.name == "right" and arm.rng:choice(good) or arm.rng:int(0, #log.texts - 1) end
  local at = { mask = log.mask, logprobs = log.logprobs, advantage = advantage, ids = log.ids }
  for key, t in pairs(at) do at[key] = t:index_select(peri.tensor(places, "i64"), 1) end
  local value = ways[arm.name](arm.model:token_logprobs(at.ids, log.from), at)
  value:backward()
  arm.opt:step { clip = 1 }:zero_grad()
  return value:item()
end

for step in run:steps() do
  local _ <close>, row = peri.scope(), {}
  for _, arm in ipairs(arms) do row[arm.name .. "/loss"] = arm.stepper and arm.stepper:step().loss or update(arm) end
  run:log(step, row)
end

run:text("log: %d answers, %d right, %d pairs   sampled, greedy, KL", #log.texts, #good, #pairs_of)
for _, arm in ipairs { { name = "base", model = base }, table.unpack(arms) } do
  peri.seed(cfg.seed)
  local batch, greedy = sample(arm.model, held, 4), rl.pass(sample(arm.model, held, 1, true)).pass_1
  local sampled = rl.pass(batch).pass_1
  run:scores(arm.name, sampled, 3)
  run:text("%-9s %8.3f %8.3f %8.3f", arm.name, sampled, greedy, rl.kl_to(base, batch))
end
run:plot("curves.svg", { { "all/loss", "right/loss", "weighted/loss" }, { "ratio/loss", "no_ratio/loss" } })
run:finish()
