-- distill_features.lua - what a teacher has inside of it: hidden states and where it looks, beside what it says.
--
-- Teaches: hints (FitNets, Romero et al. 2015, arXiv 1412.6550, eq. 3: hidden states through a projection to the
-- teacher's width), attention transfer (Zagoruyko and Komodakis 2017, 1612.03928, eq. 2: where the sum of squares over
-- channels is large), both by hooks on nets that know nothing of it (loss.Hints), and soft targets (1503.02531). Each
-- is an arm, alone and together, from the same weights; all see every picture and the labels of a few.
-- Run:  ./perilune run recipes/distillation/distill_features.lua    three seeds side by side: a minute of one core;
--       --few 1000: all labels; --images FILE --labels FILE: IDX files of others
-- Departs from the papers: residual nets of three blocks on 8 x 8 pictures; hints all the time, not in a stage before.
local peri = require "perilune"
local nn, recipe, optim, loss = peri.nn, require "perilune.recipe", peri.optim, peri.loss

local cfg = peri.flags(recipe.with_flags {
  images  = { "digits/images.idx3-ubyte.gz", "an IDX file" }, labels = { "digits/labels.idx1-ubyte.gz", "theirs" },
  train   = { 1000, "pictures to learn from, the first", range = "[2, inf)" },
  few     = { 100, "of them, the first, have labels for the students", range = "[2, inf)" },
  teacher = { 16, "channels of the teacher's first stage", range = "[1, inf)" },
  student = { 5, "of the student's: a tenth of the parameters", range = "[1, inf)" },
  temperature = { 4.0, "of soft targets", range = "(0, inf)" },
  soft    = { 1.0, "weight of soft targets", range = "[0, inf)" },
  hint    = { 0.3, "weight of hints", range = "[0, inf)" },
  attention = { 30.0, "weight of attention transfer", range = "[0, inf)" },
  epochs  = { 15, "of the teacher, then of all students", range = "[1, inf)", budget = true },
  batch   = { 50, "pictures of an update, and as many with labels", range = "[2, inf)" },
  lr      = { 3e-3, "peak learning rate", range = "(0, inf)" },
  seeds   = { 3, "of weights and orders, side by side", range = "[1, inf)" },
})
local x, y = peri.data.idx(recipe.find(cfg.images, "an IDX file"), recipe.find(cfg.labels, "an IDX file"))
local n, all = math.min(cfg.train, assert(x, y):size(1) - 1), x:size(1)
local few, classes = math.min(cfg.few, n), y:max():item() + 1
x = x:to "f32":unsqueeze(2) -- (N, 1, H, W)
x = (x - x:narrow(1, 1, n):mean()) / x:narrow(1, 1, n):std()
local test_x, test_y = x:narrow(1, n + 1, all - n), y:narrow(1, n + 1, all - n)

local function network(w) -- blocks at 3, 4 and 5
  return nn.Sequential(nn.Conv2d(1, w, 3, { padding = 1, bias = false }), nn.BatchNorm2d(w), nn.ReLU(),
    nn.BasicBlock(w, w), nn.BasicBlock(w, 2 * w, 2), nn.BasicBlock(2 * w, 4 * w, 2), nn.AdaptiveAvgPool2d(1),
    nn.Flatten(), nn.Linear(4 * w, classes))
end

-- Each arm: name, weight of soft targets, pairs of loss.Hints.
local function pairs_of(kind, weight, ...)
  local list = {}
  for i, path in ipairs { ... } do list[i] = { path, path, kind = kind, weight = weight } end
  return list
end
local hints, attention = pairs_of("mse", cfg.hint, "5"), pairs_of("attention", cfg.attention, "3", "4", "5")
local arms = { [0] = { "teacher", 0 }, { "plain", 0 }, { "soft", cfg.soft }, { "hints", 0, hints },
  { "attention", 0, attention }, { "soft, hints", cfg.soft, hints }, { "soft, attention", cfg.soft, attention } }
local run = recipe.start { name = "distill_features", flags = cfg, total = 2 * cfg.epochs,
  columns = { "teacher", "plain", "soft", "hints", "attention" } }
local updates = math.max(1, n // cfg.batch)
local rate, learners = peri.sched.cosine { from = cfg.lr, to = 0, steps = cfg.epochs * updates }, {} -- [arm][seed]
for s = 1, cfg.seeds do
  local teacher
  for a = 0, #arms do
    peri.seed(cfg.seed + 1000 * s + math.min(a, 1)) -- one student's weights in every arm
    local net, arm = network(a == 0 and cfg.teacher or cfg.student), arms[a]
    local watch = arm[3] and loss.Hints(net, teacher, { pairs = arm[3], example = x:narrow(1, 1, 2) })
    local trained = net:parameters()
    for _, p in ipairs(watch and watch:parameters() or {}) do trained[#trained + 1] = p end
    local opt, rng, l = optim.AdamW(trained, { lr = cfg.lr, weight_decay = 1e-3 }), peri.rng(cfg.seed + s), {}
    local function some(of) -- places of a batch of pictures, among the first
      local list = {}
      for i = 1, cfg.batch do list[i] = rng:int(0, of - 1) end
      return peri.tensor(list, "i64")
    end
    function l.update(step)
      teacher:eval()
      net:train()
      local known = some(a == 0 and n or few)
      local rows, label = x:index_select(known, 1), y:index_select(known, 1)
      local extra = arm[2] > 0 or watch
      if extra then rows = peri.cat({ rows, x:index_select(some(n), 1) }, 1) end
      local logits = net(rows)
      local value = logits:narrow(1, 1, cfg.batch):cross_entropy(label)
      if extra then
        local target = peri.no_grad(teacher, rows)
        if arm[2] > 0 then value = value + loss.distill(logits, target, { temperature = cfg.temperature }) * arm[2] end
        if watch then value = value + watch:loss() end
      end
      value:backward()
      opt:step { lr = rate(step), clip = 5 }:zero_grad()
    end
    function l.accuracy() return peri.no_grad(net:eval(), test_x):argmax(2):eq(test_y):to "f32":mean():item() end
    l.net, teacher, learners[a] = net, teacher or net, learners[a] or {}
    table.insert(learners[a], l)
    local name = ("_%d_%d"):format(a, s)
    run:track("net" .. name, net):track("adam" .. name, opt):track("rng" .. name, rng)
    if watch then run:track("hints" .. name, watch) end
  end
end
local function accuracies(a)
  local list = {}
  for i, l in ipairs(learners[a]) do list[i] = l.accuracy() end
  return list
end
for epoch in run:steps() do
  local early, now = epoch <= cfg.epochs, {}
  for a = early and 0 or 1, early and 0 or #arms do
    for _, l in ipairs(learners[a]) do
      for u = 1, updates do
        local _ <close> = peri.scope()
        l.update((early and epoch - 1 or epoch - cfg.epochs - 1) * updates + u)
      end
    end
    now[arms[a][1]] = peri.tensor(accuracies(a), "f64"):mean():item()
  end
  run:log(epoch, now)
end
local big, small = learners[0][1].net:num_parameters(), learners[1][1].net:num_parameters()
run:text("right of %d pictures; the student has %d of %d parameters (%.1f %%)", all - n, small, big, 100 * small / big)
for a = 0, #arms do run:text("%-16s %s", arms[a][1], run:scores(arms[a][1], accuracies(a), 4)) end
run:plot("curves.svg", { { "teacher", "plain", "soft", "hints", "attention" } })
run:finish()
