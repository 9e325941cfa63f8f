-- sft_rl_joint.lua - one encoder learns sums and facts from answers and from rewards at once.
--
-- Teaches: joint supervised and reinforcement learning. A BERT reads a question and the answer so far; a supervised and
-- a policy head, Linear-ReLU-Linear each, read its [CLS] vector, and one output layer gives the next token. The loss is
-- cross-entropy of the one plus 0.5 times the policy gradient of the other, whose whole answers are sampled and scored.
-- The questions are 300 sums "Calculate a + b = ?" with a, b in 1..50 and four facts; 300 other sums are held out.
-- Run:  ./perilune run recipes/transfer/sft_rl_joint.lua     a minute of one core, with the base
--       --model FOLDER begins with a BERT of Hugging Face; --read 0: with random weights; --weight 0: no reinforcement;
--       --cold: the policy head begins with random weights; --estimator reinforce: no baseline
-- Departs from the notes: whole answers and true rewards where theirs are one token and simulated; the small encoder
-- has read other sums before, "Add 12 + 34 = . 46", as BERT has read the world; the policy head begins as a copy of the
-- supervised one after --warm updates, for a policy that is never right learns nothing; more than 3 epochs.
local peri = require "perilune"
local models, optim, recipe = peri.models, peri.optim, peri.recipe

local cfg = peri.flags(recipe.with_flags {
  model     = { "", "Hugging Face folder of a BERT; empty: a small one that is trained here" },
  dim = { 64, "width of the small one, by 16", range = "[16, inf)" }, layers = { 2, "of it", range = "[1, inf)" },
  base      = { 6000, "updates of its pre-training", range = "[0, inf)" },
  read      = { 1900, "sums that it reads there, none of those asked or held out", range = "[0, inf)" },
  questions = { 300, "sums that are asked and taught", range = "[1, inf)" },
  facts     = { 8, "times that each fact is among them", range = "[1, inf)" },
  held_out  = { 300, "sums that are only measured", range = "[1, inf)" },
  largest   = { 50, "number that is added", range = "[1, inf)" },
  updates   = { 2000, "optimizer steps", range = "[0, inf)", budget = true },
  warm      = { 800, "updates before the policy is asked", range = "[0, inf)" },
  cold      = { false, "the policy head begins with random weights" },
  batch     = { 8, "questions of an update", range = "[1, inf)" },
  group     = { 8, "sampled answers to each", range = "[1, inf)" },
  weight    = { 0.5, "of the policy gradient", range = "[0, inf)" },
  estimator = { "grpo", "of advantages", choices = { "grpo", "dr_grpo", "rloo", "reinforce" } },
  top_k     = { 50, "likeliest tokens that may be sampled; 0: all", range = "[0, inf)" },
  lr        = { 1e-3, "peak learning rate; 5e-5 suits a large BERT", range = "[0, inf)" },
  eval_every = { 200, "updates between two evaluations", range = "[1, inf)" },
})
local run = recipe.start { name = "sft_rl_joint", flags = cfg, total = cfg.updates,
  columns = { "held_out_supervised", "held_out_rl", "facts_supervised", "facts_rl", "reward", "loss" } }

local LONGEST <const> = 12 -- tokens of an answer
local facts = { { prompt = "What is the capital of China ?", answer = "beijing" },
  { prompt = "What is the formula of water ?", answer = "h2o" },
  { prompt = "Where does the sun rise ?", answer = "in the east" },
  { prompt = "What goes around the earth ?", answer = "the moon" } }
local sums = peri.tasks.sums.rows { largest = cfg.largest }
peri.rng(0):shuffle(sums) -- the same for all seeds
for i, row in ipairs(sums) do sums[i] = { prompt = row.question, answer = tostring(row.answer) } end
local function part(from, n) return table.move(sums, from, from + n - 1, 1, {}) end
local taught, held_out = part(1, cfg.questions), part(cfg.questions + 1, cfg.held_out)
local rows = part(1, cfg.questions)
for i = 1, cfg.facts * #facts do rows[#rows + 1] = facts[(i - 1) % #facts + 1] end
local function reward(row, text) return text == row.answer and 1 or 0 end

-- Model.
local texts = { "calculate add + = ? ." } -- the words of a small vocabulary; numbers are cut into digits
for _, row in ipairs(facts) do texts[#texts + 1] = row.prompt .. " " .. row.answer end
local tok = cfg.model == "" and peri.text.word_pieces(texts) or assert(peri.tokenizer.load(cfg.model))
local function adam(net, lr) return optim.AdamW(net, { lr = lr, betas = { 0.9, 0.98 }, weight_decay = 0.1 }) end
local function schedule(lr, steps) return peri.sched.wsd { peak = lr, warmup = 50, steps = math.max(steps, 51) } end

local function joint(encoder)
  return models.joint.new(encoder, { stop = tok.sep, pad = tok.pad })
end
local function trained(model, opt, more) -- a stepper
  local how = { model = model, tokenizer = tok, optimizer = opt, reward = reward, seed = cfg.seed }
  for name, value in pairs(more) do how[name] = value end
  return peri.algo.joint.new(how)
end
local function base() -- a small encoder that has gone on from "Add 12 + 34 = ." with other heads
  local config = { model_type = "bert", vocab_size = tok.size, hidden_size = cfg.dim, intermediate_size = 4 * cfg.dim,
    num_hidden_layers = cfg.layers, num_attention_heads = cfg.dim // 16, max_position_embeddings = 64,
    hidden_dropout_prob = 0, attention_probs_dropout_prob = 0 }
  local settings = { config = config, updates = cfg.base, read = cfg.read, largest = cfg.largest, seed = cfg.seed,
    questions = cfg.questions, held_out = cfg.held_out }
  return recipe.cached("sft_rl_joint_base", settings, function (to)
    peri.seed(cfg.seed)
    local first, rows_read = joint(models.bert.new(config, { std = 0.08 })), {}
    for i, row in ipairs(part(cfg.questions + cfg.held_out + 1, cfg.read)) do
      rows_read[i] = { prompt = "Add " .. row.prompt:match "%d.*=" .. " .", answer = row.answer }
    end
    local reader = cfg.read > 0 and trained(first, adam(first, 1e-3), { rows = rows_read, weight = 0, batch_size = 16,
      schedule = schedule(1e-3, cfg.base) })
    for _ = 1, reader and cfg.base or 0 do reader:step() end
    return first.encoder:save(to)
  end, cfg.runs)
end
local model = joint(assert(models.load(cfg.model == "" and base() or cfg.model)))
local opt = adam(model, cfg.lr)
local stepper = trained(model, opt, { rows = rows, batch_size = cfg.batch, group = cfg.group, weight = cfg.weight,
  max_new_tokens = LONGEST, top_k = cfg.top_k, estimator = cfg.estimator, schedule = schedule(cfg.lr, cfg.updates) })
run:track("model", model):track("optimizer", opt):track("stepper", stepper)

local function right(list, mode) -- share of greedy answers, and the answers
  local said, sum = {}, 0
  for i, row in ipairs(list) do said[i] = row.prompt end
  said = model:reply(tok, said, { mode = mode, greedy = true, max_new_tokens = LONGEST })
  for i, row in ipairs(list) do sum = sum + reward(row, said[i]) end
  return sum / #list, said
end

-- Loop.
for step in run:steps() do
  if step == cfg.warm + 1 and not cfg.cold then model:start_policy() end
  stepper.weight = step > cfg.warm and cfg.weight or 0
  local row = stepper:step()
  if step % cfg.eval_every == 0 or step == cfg.updates then
    for _, mode in ipairs(models.joint.modes) do
      row["held_out_" .. mode], row["facts_" .. mode] = right(held_out, mode), right(facts, mode)
    end
  end
  run:log(step, row)
end
assert(model:save(run:path "model", tok))
run:plot("curves.svg", { { "held_out_supervised", "held_out_rl" }, { "facts_supervised", "facts_rl" }, "reward" })
run:text("mode         taught  held out  facts")
for _, mode in ipairs(models.joint.modes) do
  local of_facts, said = right(facts, mode)
  run:text("%-11s %7.3f %9.3f %6.2f   %s; %s is %s", mode, right(taught, mode), right(held_out, mode), of_facts,
    table.concat(said, ", "), held_out[1].prompt, select(2, right(held_out, mode))[1])
end
run:finish()
