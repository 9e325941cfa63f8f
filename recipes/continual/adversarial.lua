-- adversarial.lua - nets that are attacked while they learn: what it costs on plain inputs, and what it buys.
--
-- Teaches: on handwritten digits the fast gradient sign method (Goodfellow et al. 2015, 1412.6572), projected gradient
-- descent (Madry et al. 2018, 1706.06083, eq. 2.1) and free training, which takes the attack out of the weights' own
-- backward pass (Shafahi et al. 2019, 1904.12843, algorithm 1), beside plain training. Each net is measured on plain
-- pictures, under FGSM, and under a PGD that is stronger than any that was trained with, which finds out a net that
-- only looks robust to the attack that it knows.
-- Run:  ./perilune run recipes/continual/adversarial.lua    13 seconds of one core; --arms clean,pgd; --eps 0.3
-- Departs from the papers: 1,000 pictures of 8 x 8 and a small net; all arms have as many passes, so PGD costs more.
local peri = require "perilune"
local nn, optim, loss, recipe = peri.nn, peri.optim, peri.loss, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  arms    = { "clean,fgsm,pgd,free", "what is compared" },
  images  = { "digits/images.idx3-ubyte.gz", "an IDX file" }, labels = { "digits/labels.idx1-ubyte.gz", "theirs" },
  train   = { 1000, "pictures to learn from, the first; the others are the test", range = "[1, inf)" },
  epochs  = { 40, "passes", range = "[1, inf)", budget = true },
  batch   = { 50, "pictures of an update", range = "[1, inf)" },
  eps     = { 0.2, "how far an attack moves a pixel; they are from 0 to 1", range = "[0, 1]" },
  steps   = { 7, "of PGD in training", range = "[1, inf)" },
  attack  = { 20, "steps of the PGD that measures, from two starts", range = "[1, inf)" },
  replays = { 4, "updates of free training on a batch, which has as many fewer batches", range = "[1, inf)" },
  width   = { 16, "channels of the first layer", range = "[1, inf)" },
  lr      = { 2e-3, "learning rate of Adam, down to 0 along a cosine", range = "(0, inf)" },
})
local run = recipe.start { name = "adversarial", flags = cfg, total = cfg.epochs,
  columns = { "clean/plain", "clean/pgd", "fgsm/pgd", "pgd/plain", "pgd/pgd" } }

-- Pictures, (N, 1, H, W) from 0 to 1.
local x, y = assert(peri.data.idx(recipe.find(cfg.images, "an IDX file"), recipe.find(cfg.labels, "an IDX file")))
local total, H, W, classes = x:size(1), x:size(2), x:size(3), y:max():item() + 1
assert(cfg.train < total and cfg.batch <= cfg.train, "too few pictures: --train, --batch")
x = peri.keep(x:to "f32":unsqueeze(2) / 255)
local test_x, test_y = x:narrow(1, cfg.train + 1, total - cfg.train), y:narrow(1, cfg.train + 1, total - cfg.train)

local function build()
  local c, h, w = cfg.width, (H + 1) // 2, (W + 1) // 2
  return nn.Sequential(nn.Conv2d(1, c, 3, { padding = 1 }), nn.ReLU(),
    nn.Conv2d(c, 2 * c, 3, { padding = 1, stride = 2 }), nn.ReLU(), nn.Flatten(), nn.Linear(2 * c * h * w, 8 * c),
    nn.ReLU(), nn.Linear(8 * c, classes))
end
local function losses(net, labels) -- one for each picture
  return function (at) return net(at):cross_entropy(labels, { reduction = "none" }) end
end
local function ball(more)
  more.eps, more.low, more.high = cfg.eps, 0, 1
  return more
end

-- Ways to learn from a batch: fn(arm, pictures, labels, lr) -> the mean loss.
local function update(arm, at, labels, lr)
  local value = losses(arm.net, labels)(at):mean()
  value:backward()
  arm.opt:step { lr = lr }:zero_grad()
  return value:item()
end
local ways = { clean = update }
function ways.fgsm(arm, at, labels, lr)
  return update(arm, loss.fgsm(losses(arm.net, labels), at, ball {}), labels, lr)
end
function ways.pgd(arm, at, labels, lr)
  return update(arm, loss.pgd(losses(arm.net, labels), at, ball { steps = cfg.steps }), labels, lr)
end
function ways.free(arm, at, labels, lr) -- the push goes on from batch to batch
  local sum = 0
  for _ = 1, cfg.replays do
    local from = (at + arm.net.push):clamp(0, 1):requires_grad_()
    sum = sum + update(arm, from, labels, lr) / cfg.replays
    arm.net.push:copy_(loss.ascend(at, from:detach(), from.grad, ball { step = cfg.eps }) - at)
  end
  return sum
end

local arms = {}
for name in cfg.arms:gmatch "[^,]+" do
  assert(ways[name], "--arms: clean, fgsm, pgd and free are known")
  peri.seed(cfg.seed) -- all begin alike
  local arm = { name = name, net = build(), rng = peri.rng(cfg.seed) }
  arm.net.push = peri.zeros { cfg.batch, 1, H, W } -- of free training, a buffer
  arm.opt, arms[#arms + 1] = optim.Adam(arm.net, { lr = cfg.lr }), arm
  run:track(name, arm.net):track(name .. "_optimizer", arm.opt):track(name .. "_rng", arm.rng)
end

local function measure(arm, row) -- shares of right answers
  local of, seen = losses(arm.net, test_y), { plain = test_x }
  seen.fgsm = loss.fgsm(of, test_x, ball {})
  seen.pgd = loss.pgd(of, test_x, ball { steps = cfg.attack, restarts = 2 })
  for name, at in pairs(seen) do
    row[arm.name .. "/" .. name] = peri.no_grad(arm.net, at):argmax(2):eq(test_y):to("f32"):mean():item()
  end
end

-- Loop: a pass of each arm.
local rate = peri.sched.cosine { from = cfg.lr, to = 0, steps = cfg.epochs }
for epoch in run:steps() do
  local row = {}
  for _, arm in ipairs(arms) do
    local order, sum, updates = arm.rng:shuffle(peri.arange(0, cfg.train, 1, "i64"):tolist()), 0, cfg.train // cfg.batch
    if arm.name == "free" then updates = math.max(updates // cfg.replays, 1) end
    for k = 0, updates - 1 do
      local _ <close> = peri.scope()
      local places = peri.tensor(table.move(order, k * cfg.batch + 1, (k + 1) * cfg.batch, 1, {}), "i64")
      sum = sum + ways[arm.name](arm, x:index_select(places, 1), y:index_select(places, 1), rate(epoch)) / updates
    end
    row[arm.name .. "/loss"] = sum
    if epoch % 10 == 0 or epoch == cfg.epochs then measure(arm, row) end
  end
  run:log(epoch, row)
end

run:text("%-6s %9s %9s %9s   of %d test pictures, eps %g", "", "plain", "FGSM", "PGD-" .. cfg.attack,
  total - cfg.train, cfg.eps)
local plain, robust = {}, {}
for i, arm in ipairs(arms) do
  plain[i], robust[i] = arm.name .. "/plain", arm.name .. "/pgd"
  run:text("%-6s %9.4f %9.4f %9.4f", arm.name, run:last(plain[i]), run:last(arm.name .. "/fgsm"), run:last(robust[i]))
  for _, name in ipairs { plain[i], robust[i] } do run:scores(name, run:last(name), 4) end
end
run:plot("curves.svg", { plain, robust })
run:finish()
