-- distill_classifier.lua - a classifier taught by one of ten times its parameters, in two phases.
--
-- Teaches: distillation (Hinton, Vinyals and Dean 2015, arXiv 1503.02531): alpha T^2 KL(teacher || student) of
-- distributions softened by T, and (1 - alpha) times the cross-entropy with the labels. First in general, on rows
-- without labels, of which the teacher alone can say what they are; then on the task. Beside it, with as many updates:
-- the labels alone (plain), the task alone in both phases, other temperatures.
-- Run:  ./perilune run recipes/distillation/distill_classifier.lua    three seeds: half a minute of one core
--       --images digits: IDX files of a folder; --few 50: labels that the student has; --student 64,64: a smaller one
-- Departs from the paper: networks and settings of the notes that this follows, without dropout, on data that can be
-- learnt (random labels cannot): a class is four clusters in 8 of 100 dims. The notes' student, 100-128-128-10, has
-- 30,730 of 319,498 parameters: 9.6 %. Of pictures the general rows are mixtures of two (mixup, 1710.09412).
local peri = require "perilune"
local nn, recipe = peri.nn, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  images   = { "", "folder with IDX files of images and labels; empty = generated rows" },
  rows     = { 1000, "the teacher learns from; the rest of the pictures, or 2,000 more, test", range = "[2, inf)" },
  few      = { 0, "of them have labels for the student; 0 = all", range = "[0, inf)" },
  teacher  = { "512,512", "widths of its hidden layers" }, student = { "128,128", "of the student's" },
  temperature = { 2.0, "of both distributions", range = "(0, inf)" },
  others   = { "1,4,8", "temperatures beside it" }, alpha = { 0.7, "share of the teacher", range = "[0, 1]" },
  epochs   = { 5, "of the teacher, and of each phase", range = "[1, inf)", budget = true },
  batch    = { 32, "of an update", range = "[2, inf)" }, lr = { 1e-3, "times .9 every ten epochs", range = "(0, inf)" },
  seeds    = { 3, "of data, weights and orders, side by side", range = "[1, inf)" },
})
local function numbers(flag, list)
  for word in cfg[flag]:gmatch "[^,%s]+" do list[#list + 1] = assert(tonumber(word), flag .. ": no number " .. word) end
  return list
end
local others, sizes = numbers("others", {}), { [0] = numbers("teacher", {}), numbers("student", {}) }
local function generated(seed) -- rows (N, 100), labels (N)
  local rng, list = peri.rng(seed), {}
  for i = 1, 6 * cfg.rows + 2000 do list[i] = rng:int(0, 39) end
  local cluster, n = peri.tensor(list, "i64"), #list
  local at = (peri.randn { 40, 8 } * 2):index_select(cluster, 1) + peri.randn { n, 8 } * 0.8
  return at:matmul(peri.randn { 8, 100 } / 8 ^ 0.5) + peri.randn { n, 100 } * 0.3, cluster % 10
end
local function pictures()
  local folder, found = recipe.find(cfg.images, "a folder of IDX files"), {}
  for _, name in ipairs(assert(peri.files.list(folder))) do
    local kind = not name:find "^t10k" and (name:match "images" or name:match "labels")
    if kind then found[kind] = folder .. "/" .. name end
  end
  local x, y = peri.data.idx(found.images or folder .. "/images", found.labels or folder .. "/labels")
  x = assert(x, y):flatten(2):to "f32"
  local seen = x:narrow(1, 1, math.min(cfg.rows, x:size(1) - 1))
  return (x - seen:mean()) / seen:std(), y
end

-- Each arm: name, share of the teacher, temperature, whether it has a general phase. The teacher stands before them.
local arms = { [0] = { "teacher", 0 }, { "plain", 0, 1 }, { "two phases", cfg.alpha, cfg.temperature, true },
  { "the task alone", cfg.alpha, cfg.temperature } }
for _, t in ipairs(others) do arms[#arms + 1] = { ("two phases, T %g"):format(t), cfg.alpha, t, true } end
local run = recipe.start { name = "distill_classifier", flags = cfg, total = 3 * cfg.epochs,
  columns = { "teacher", "two phases", "plain" } }
local rate, learners = peri.sched.step { from = cfg.lr, every = 10, factor = 0.9 }, {} -- [arm; 0 the teacher][seed]
for s = 1, cfg.seeds do
  peri.seed(cfg.seed + s - 1)
  local x, y = (cfg.images == "" and generated or pictures)(cfg.seed + s - 1)
  local n, all, classes = math.min(cfg.rows, x:size(1) - 1), x:size(1), y:max():item() + 1
  local few, tests = cfg.few > 0 and math.min(cfg.few, n) or n, cfg.images == "" and 2000 or all - n
  local size, test_x, test_y = math.min(cfg.batch, few), x:narrow(1, n + 1, tests), y:narrow(1, n + 1, tests)
  local function general() -- rows without labels: more of them, or mixtures of two pictures
    local function some(from, to) return x:index_select(peri.randint(from, to, { size }), 1) end
    if cfg.images == "" then return some(n + 2000, all) end
    local share = peri.rand { size, 1 }
    return some(0, n) * share + some(0, n) * (1 - share)
  end
  local teacher
  for a = 0, #arms do
    local widths, arm, labels = { x:size(2), table.unpack(sizes[math.min(a, 1)]) }, arms[a], a == 0 and n or few
    widths[#widths + 1] = classes
    local net = nn.MLP(widths)
    local opt, l = peri.optim.Adam(net, { lr = cfg.lr }), { net = net, test_x = test_x }
    local order = peri.data.list(peri.arange(0, labels, 1, "i64"):tolist()):shuffle(cfg.seed + s)
      :batch(size, { drop_last = true }):repeat_()
    function l.epoch(k)
      for _ = 1, n // size do
        local _ <close> = peri.scope()
        local at, early = peri.tensor(order(), "i64"), arm[4] and k <= cfg.epochs
        local rows, label = early and general() or x:index_select(at, 1), y:index_select(at, 1)
        local loss = arm[2] == 0 and net(rows):cross_entropy(label) or peri.loss.distill(net(rows),
          peri.no_grad(teacher, rows), { temperature = arm[3], hard = early and 0 or 1 - arm[2], labels = label })
        loss:backward()
        opt:step { lr = rate(k), clip = 1 }:zero_grad()
      end
    end
    function l.accuracy() return peri.no_grad(net, test_x):argmax(2):eq(test_y):to "f32":mean():item() end
    teacher, learners[a] = teacher or net, learners[a] or {}
    local name, _ = ("_%d_%d"):format(a, s), table.insert(learners[a], l)
    run:track("net" .. name, net):track("adam" .. name, opt):track("order" .. name, order)
  end
end
local function accuracies(a)
  local list = {}
  for s, l in ipairs(learners[a]) do list[s] = l.accuracy() end
  return list
end
for epoch in run:steps() do -- the teachers, then all students side by side
  local early, now = epoch <= cfg.epochs, {}
  local k = early and epoch or epoch - cfg.epochs
  for a = early and 0 or 1, early and 0 or #arms do
    for _, l in ipairs(learners[a]) do l.epoch(k) end
    now[arms[a][1]] = peri.tensor(accuracies(a), "f64"):mean():item()
  end
  run:log(epoch, now)
end
local function rows_a_second(l)
  local began <const>, _ <close> = peri.time(), peri.scope()
  for _ = 1, 20 do peri.no_grad(l.net, l.test_x) end
  return 20 * l.test_x:size(1) / (peri.time() - began)
end
local big, small, kept = learners[0][1], learners[2][1], peri.tensor(accuracies(2)) / peri.tensor(accuracies(0))
run:text("%-18s %s of the teacher's accuracy", "kept", run:scores("kept", kept:tolist(), 4))
local few, many = small.net:num_parameters(), big.net:num_parameters()
for a = 0, #arms do run:text("%-18s %s", arms[a][1], run:scores(arms[a][1], accuracies(a), 4)) end
run:text("the student has %d of %d parameters (%.1f %%); rows a second: %.0f, the teacher %.0f", few, many,
  100 * few / many, rows_a_second(small), rows_a_second(big))
run:plot("curves.svg", { { "teacher", "two phases", "plain" } })
run:finish()
