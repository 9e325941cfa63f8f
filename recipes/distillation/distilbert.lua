-- distilbert.lua - half of the layers of a BERT, taught by the whole of it.
--
-- Teaches: DistilBERT (Sanh et al. 2019, arXiv 1910.01108): a student that begins as every second layer of its teacher
-- and learns three things at once: what the teacher says of every token (softened by 2, weight 5), the tokens that are
-- hidden (weight 2), the direction of its hidden states (weight 1). The teacher is a small BERT that guesses hidden
-- characters of plays; it is trained first and cached. Arms, all of half the depth and with the same batches:
--   half      every second layer, taught    random   as many layers drawn at random    scratch   random weights, taught
--   half_mlm  every second layer, untaught  alone    random weights, untaught
-- Run:  ./perilune run recipes/distillation/distilbert.lua    three minutes of one core, the teacher (cached) included
--       --text FILE: another text; --base_steps 8000 --layers 8 --width 128: larger
-- Departs from the paper: characters in place of word pieces, lines of 48, no dropout.
local peri = require "perilune"
local models, optim, sched, recipe = peri.models, peri.optim, peri.sched, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  text       = { "tinyshakespeare.txt.gz", "to learn, plain or gzipped; its last tenth is only measured" },
  layers     = { 6, "of the teacher", range = "[2, inf)" }, width = { 64, "of both, times 16", range = "[16, inf)" },
  base_steps = { 4000, "updates of the teacher", range = "[1, inf)" },
  steps      = { 300, "updates of every student", range = "[1, inf)", budget = true },
  batch      = { 24, "lines an update", range = "[1, inf)" }, length = { 48, "their characters", range = "[2, inf)" },
  rate       = { 0.15, "share of the characters that are hidden", range = "(0, 1)" },
  lr         = { 2e-3, "peak learning rate", range = "(0, inf)" },
  held_out   = { 100, "lines to measure by", range = "[1, inf)" },
  eval_every = { 50, "updates between measurements", range = "[1, inf)" },
})
local lines, id_of, size, list = {}, {}, 2, {} -- ids: 0 the mask, 1 a byte that the part to learn from has not
for line in assert(peri.files.lines(recipe.find(cfg.text, "a text: --text FILE"))) do lines[#lines + 1] = line end
local text = table.concat(lines, "\n")
local split <const> = #text * 9 // 10
for i = 1, #text do
  local byte = text:byte(i)
  if i <= split and not id_of[byte] then id_of[byte], size = size, size + 1 end
  list[i] = id_of[byte] or 1
end
local ids = peri.tensor(list, "i64")
assert(split > cfg.length and #text - split > cfg.length, "the text is too short: --length")
local function drawn(rng, from, to, n) -- lines (n, length), some of it hidden, and what it was
  local rows = {}
  for i = 1, n do rows[i] = ids:narrow(1, rng:int(from, to - cfg.length + 1), cfg.length) end
  return peri.text.mask_tokens(peri.stack(rows), { mask = 0, vocab = size, rate = cfg.rate, special = { 1 } })
end
local function guessed(model, hidden, labels) -- mean loss of what was hidden
  return model:logits(model:forward(hidden)):flatten(1, 2):cross_entropy(labels:flatten())
end
local function new(layers)
  return models.bert.new({ architectures = { "BertForMaskedLM" }, model_type = "bert", vocab_size = size,
    hidden_size = cfg.width, intermediate_size = 4 * cfg.width, num_hidden_layers = layers, type_vocab_size = 1,
    num_attention_heads = cfg.width // 16, max_position_embeddings = cfg.length, hidden_dropout_prob = 0,
    attention_probs_dropout_prob = 0 }, { std = 0.05 })
end
local function adam(model, steps)
  return optim.AdamW(model:parameters(), { lr = cfg.lr, weight_decay = 0.01 }),
    sched.warmup(math.max(1, steps // 10), sched.linear { from = cfg.lr, to = 0, steps = math.max(1, steps) })
end

-- The teacher, a folder.
local settings = { text = cfg.text, layers = cfg.layers, width = cfg.width, steps = cfg.base_steps, batch = cfg.batch,
  length = cfg.length, rate = cfg.rate, lr = cfg.lr, seed = cfg.seed }
local folder = recipe.cached("distilbert_base", settings, function (to)
  peri.seed(cfg.seed)
  local model, rng = new(cfg.layers), peri.rng(cfg.seed)
  local opt, rate = adam(model, cfg.base_steps)
  for step = 1, cfg.base_steps do
    local _ <close> = peri.scope()
    guessed(model, drawn(rng, 1, split, cfg.batch)):backward()
    opt:step { lr = rate(step), clip = 1 }:zero_grad()
  end
  return model:save(to)
end, cfg.runs)
local teacher = assert(models.load(folder)):freeze()
peri.seed(0)
local test, answers = drawn(peri.rng(0), split + 1, #text, cfg.held_out)
local function measure(model) return peri.no_grad(guessed, model, test, answers):item() end
-- Students: name, layers of the teacher or none, whether they are taught.
local rng, half, all, some = peri.rng(cfg.seed), {}, {}
for n = 1, cfg.layers, 2 do half[#half + 1] = n end
for n = 1, cfg.layers do all[n] = n end
repeat -- not every second one again
  rng:shuffle(all)
  some = table.move(all, 1, #half, 1, {})
  table.sort(some)
until table.concat(some, " ") ~= table.concat(half, " ")
local arms = { { "half", half, true }, { "random", some, true }, { "scratch", nil, true }, { "half_mlm", half },
  { "alone" } }
local run = recipe.start { name = "distilbert", flags = cfg, total = cfg.steps,
  columns = { "half", "random", "scratch", "half_mlm", "alone" } }
local at_first = {}
for i, arm in ipairs(arms) do
  peri.seed(cfg.seed + 1) -- random weights are those of every arm that begins with them
  local model = (arm[2] and models.with_layers(teacher, { layers = arm[2] }) or new(#half)):unfreeze()
  arm.model, at_first[i] = model, measure(model)
  arm.opt, arm.rate = adam(model, cfg.steps)
  arm.hints = arm[3] and peri.loss.Hints(model, teacher, { example = test:narrow(1, 1, 1), kind = "cosine",
    pairs = { { ("layers.%d"):format(#half - 1), ("layers.%d"):format(cfg.layers - 1) } } })
  run:track(arm[1], model):track(arm[1] .. "_adam", arm.opt)
end
run:track("rng", rng)
for step in run:steps() do
  local hidden, labels = drawn(rng, 1, split, cfg.batch)
  local says = peri.no_grad(function () return teacher:logits(teacher:forward(hidden)) end)
  local now = {}
  for _, arm in ipairs(arms) do
    local logits = arm.model:logits(arm.model:forward(hidden))
    local value = logits:flatten(1, 2):cross_entropy(labels:flatten())
    if arm[3] then value = value * 2 + peri.loss.distill(logits, says, { temperature = 2 }) * 5 + arm.hints:loss() end
    value:backward()
    arm.opt:step { lr = arm.rate(step), clip = 5 }:zero_grad()
    if step % cfg.eval_every == 0 or step == cfg.steps then now[arm[1]] = measure(arm.model) end
  end
  if next(now) then run:log(step, now) end
end
run:text("loss of hidden characters: the teacher of %d layers %.4f; of %d:", cfg.layers, measure(teacher), #half)
for i, arm in ipairs(arms) do
  local loss = measure(arm.model)
  run:text("%-9s %-8s first %.4f, then %.4f", arm[1], table.concat(arm[2] or {}, " "), at_first[i], loss)
  run:scores(arm[1], -loss) -- more is better
end
assert(arms[1].model:save(run:path "student"))
run:plot("curves.svg", { { "half", "random", "scratch", "half_mlm", "alone", ylabel = "nats" } })
run:finish()
