-- maml_language.lua - a language model that learns a dialect from two lines of it: meta-learning on texts.
--
-- Teaches: MAML (Finn et al. 2017, 1703.03400) for a language task. A dialect is English whose vowels, and whose
-- letters t n s r h, stand for each other: there are 14,400. A small model (Bengio et al. 2003: the letters before,
-- embedded, and one hidden layer) is trained to read a dialect well behind a few steps of gradient descent on a piece
-- of it, through those steps (--order 2) or as if these were constants (--order 1). Beside it is the same model trained
-- on all dialects together, on as many texts, which then takes the same steps, also at the best of several sizes: the
-- control. Measured is another piece of dialects that neither has read, in bits a letter.
-- Run:  ./perilune run recipes/continual/maml_language.lua    a minute of one core; --order 1; --inner 1
-- Departs from the paper: a language task; Adam at a rate that falls to 0.
local peri = require "perilune"
local nn, optim, recipe = peri.nn, peri.optim, peri.recipe

local cfg = peri.flags(recipe.with_flags {
  text = { "tinyshakespeare.txt.gz", "plain or gzipped, English" },
  updates = { 1000, "outer steps", range = "[1, inf)", budget = true },
  tasks = { 4, "dialects of an update", range = "[1, inf)" },
  letters = { 400, "of a piece: steps are taken on one, and another is read behind them", range = "[8, inf)" },
  inner = { 5, "steps on a dialect", range = "[1, inf)" }, order = { 2, "of the outer gradient", range = "[1, 2]" },
  inner_lr = { 0.5, "size of these steps", range = "[0, inf)" },
  lr = { 3e-3, "of Adam, down to 0", range = "(0, inf)" }, context = { 5, "letters it sees", range = "[1, inf)" },
  hidden = { 96, "width of its layer", range = "[1, inf)" }, embed = { 16, "numbers of a letter", range = "[1, inf)" },
  tests = { 40, "dialects that are measured", range = "[2, inf)" }, log_every = { 100, "updates", range = "[1, inf)" },
})
local SIZE <const>, rates, best, size = 27, { 0.1, 0.2, 0.5, 1, 2, 4 }, math.huge, nil
local run = recipe.start { name = "maml_language", flags = cfg, total = cfg.updates,
  columns = { "loss", "before", "after", "control", "control_after" } }

-- Text: letters from 1 and blanks, 0; its last tenth is for the tests.
local parts, ids = {}, {}
for line in assert(peri.files.lines(recipe.find(cfg.text, "a text"))) do parts[#parts + 1] = line:lower() end
for word in table.concat(parts, " "):gmatch "%l+" do
  for i = 1, #word do ids[#ids + 1] = word:byte(i) - 96 end
  ids[#ids + 1] = 0
end
local split, groups = #ids * 9 // 10, { "aeiou", "tnsrh" }

local function dialect(rng) -- what each letter is in it
  local map = {}
  for id = 0, SIZE - 1 do map[id] = id end
  for _, group in ipairs(groups) do
    for i, byte in ipairs(rng:shuffle { group:byte(1, -1) }) do map[group:byte(i) - 96] = byte - 96 end
  end
  return map
end
local function piece(rng, map, from, to) -- contexts (letters, context), and what follows them (letters, 1)
  local x, y, at = {}, {}, rng:int(from + cfg.context, to - cfg.letters)
  for i = 1, cfg.letters do
    x[i], y[i] = {}, { map[ids[at + i]] }
    for k = 1, cfg.context do x[i][k] = map[ids[at + i - k]] end
  end
  return { x = peri.tensor(x, "i64"), y = peri.tensor(y, "i64") }
end
local function task(rng, from, to)
  local map = dialect(rng)
  return { support = piece(rng, map, from, to), query = piece(rng, map, from, to) }
end

-- Models.
local Model = nn.class("Model", function (self)
  self.letters = nn.Embedding(SIZE, cfg.embed)
  self.read, self.say = nn.Linear(cfg.context * cfg.embed, cfg.hidden), nn.Linear(cfg.hidden, SIZE)
end)
function Model:forward(x) return self.say(self.read(self.letters(x):flatten(2)):tanh()) end
local function bits(model, p) -- written out, for the fused loss has no second derivative
  return model(p.x):log_softmax(-1):gather(p.y, 2):mean():neg() / math.log(2)
end
local function adapted(model, t, how) -- its tensors behind steps on a piece of a dialect
  return (optim.adapt(model, function () return bits(model, t.support) end, how))
end
peri.seed(cfg.seed)
local meta, rng = Model(), peri.rng(cfg.seed)
peri.seed(cfg.seed) -- both begin alike
local control = Model()
local meta_opt, control_opt = optim.Adam(meta, { lr = cfg.lr }), optim.Adam(control, { lr = cfg.lr })
run:track("meta", meta):track("meta_optimizer", meta_opt):track("rng", rng)
run:track("control", control):track("control_optimizer", control_opt)

local test_rng, tests = peri.rng(1), {} -- the same for all seeds and settings
for i = 1, cfg.tests do tests[i] = task(test_rng, split + 1, #ids) end
local function measure(model, steps, lr) -- bits a letter of pieces behind steps on others
  local sum = 0
  for _, t in ipairs(tests) do
    local _ <close>, fast = peri.scope(), adapted(model, t, { steps = steps, order = 0, lr = lr or cfg.inner_lr })
    sum = sum + peri.no_grad(nn.with_tensors, model, fast, bits, model, t.query):item() / #tests
  end
  return sum
end

local rate = peri.sched.cosine { from = cfg.lr, to = 0, steps = cfg.updates }
for step in run:steps() do
  local row = { loss = 0 }
  for _ = 1, cfg.tasks do
    local _ <close>, t = peri.scope(), task(rng, 1, split)
    local fast = adapted(meta, t, { steps = cfg.inner, order = cfg.order, lr = cfg.inner_lr })
    local loss = nn.with_tensors(meta, fast, bits, meta, t.query) / cfg.tasks
    loss:backward();
    ((bits(control, t.support) + bits(control, t.query)) / (2 * cfg.tasks)):backward()
    row.loss = row.loss + loss:item()
  end
  meta_opt:step { lr = rate(step), clip = 1 }:zero_grad()
  control_opt:step { lr = rate(step), clip = 1 }:zero_grad()
  if step % cfg.log_every == 0 or step == cfg.updates then
    row.before, row.after = measure(meta, 0), measure(meta, cfg.inner)
    row.control, row.control_after = measure(control, 0), measure(control, cfg.inner)
  end
  run:log(step, row)
end
for _, lr in ipairs(rates) do
  local found = measure(control, cfg.inner, lr)
  if found < best then best, size = found, lr end
end
for _, steps in ipairs { 0, 1, cfg.inner, 3 * cfg.inner } do
  run:text("bits a letter behind %2d steps: meta-learned %.3f; pre-trained %.3f, at step size %g %.3f", steps,
    measure(meta, steps), measure(control, steps), size, measure(control, steps, size))
end
run:text("%d steps: meta-learned %s, pre-trained %s at the best of %d step sizes", cfg.inner,
  run:scores("meta", measure(meta, cfg.inner), 3), run:scores("pretrained", best, 3), #rates)
run:plot("curves.svg", { { "before", "after", "control", "control_after" } })
run:finish()
