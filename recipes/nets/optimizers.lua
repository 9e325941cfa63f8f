-- optimizers.lua - SGD, Adam, AdamW, LAMB and Muon side by side, at batches that grow.
--
-- Teaches: what an optimizer makes of a larger batch (You et al. 2020, arXiv 1904.00962: LAMB, whose steps are in
-- proportion to a layer's weights; Jordan et al. 2024: Muon, whose steps are near-orthogonal matrices). Each has the
-- same grid of learning rates around its customary one; the best counts: a comparison without tuning says nothing.
-- Every batch size has the same epochs, so that a batch of four times as many pictures has a quarter of the updates.
-- Run:  ./perilune run recipes/nets/optimizers.lua    a minute of one core; --seeds 10; --images FILE --labels FILE
-- Departs from the paper: a small net of linear layers on 1,000 digits instead of BERT; rates that are constant.
local peri = require "perilune"
local nn, optim, recipe = peri.nn, peri.optim, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  images  = { "digits/images.idx3-ubyte.gz", "an IDX file" }, labels = { "digits/labels.idx1-ubyte.gz", "theirs" },
  train   = { 1000, "pictures, the first", range = "[1, inf)" },
  batches = { "25,100,400", "batch sizes" },
  factors = { "0.1,0.3,1,3,10", "times an optimizer's customary learning rate: the grid" },
  epochs  = { 20, "passes over the pictures at every batch size", range = "[1, inf)" },
  target  = { 0.1, "loss over all training pictures that is to be reached", range = "(0, inf)" },
  hidden  = { 128, "width of both hidden layers", range = "[1, inf)" },
  seeds   = { 3, "of initial weights and orders", range = "[1, inf)" },
})

local x, y = peri.data.idx(recipe.find(cfg.images, "an IDX file"), recipe.find(cfg.labels, "an IDX file"))
local n = math.min(cfg.train, assert(x, y):size(1))
x, y = x:narrow(1, 1, n):flatten(2):to "f32", peri.keep(y:narrow(1, 1, n))
x = peri.keep((x - x:mean()) / x:std())
local classes = y:max():item() + 1

-- Each has its customary rate; make(net, lr) gives a list of optimizers.
local kinds = {
  { "SGD", 0.1, function (net, lr) return { optim.SGD(net, { lr = lr, momentum = 0.9 }) } end },
  { "Adam", 0.003, function (net, lr) return { optim.Adam(net, { lr = lr }) } end },
  { "AdamW", 0.003, function (net, lr) return { optim.AdamW(net, { lr = lr, weight_decay = 0.01 }) } end },
  { "LAMB", 0.02, function (net, lr) return { optim.Lamb(net, { lr = lr, weight_decay = 0.01 }) } end },
  { "Muon", 0.02, function (net, lr) -- hidden matrices; what is left by AdamW, at a rate that grows with it
    local hidden, rest = optim.split(net, { pattern = { "layers.0.weight", "layers.1.weight" } })
    return { optim.Muon(hidden, { lr = lr }), optim.AdamW(rest, { lr = lr * 0.15 }) }
  end },
}
local function numbers(text, flag)
  local list = {}
  for word in text:gmatch "[^,]+" do list[#list + 1] = assert(tonumber(word), flag .. ": no number: " .. word) end
  assert(#list > 0, flag .. " names nothing")
  return list
end
local sizes, factors, cells = numbers(cfg.batches, "--batches"), numbers(cfg.factors, "--factors"), {}
for _, size in ipairs(sizes) do
  assert(math.tointeger(size) and size >= 1 and size <= n, ("--batches: %g pictures of %d"):format(size, n))
end
for _, kind in ipairs(kinds) do
  for _, size in ipairs(sizes) do
    for _, factor in ipairs(factors) do
      for s = 1, cfg.seeds do
        cells[#cells + 1] = { kind = kind, size = math.tointeger(size), factor = factor, seed = cfg.seed + s }
      end
    end
  end
end
local done = {} -- of each cell: updates to the target, or -1; the loss at the end
local results = { state = function () return { done = done } end, set_state = function (_, s) done = s.done end }
local run = recipe.start { name = "optimizers", flags = cfg, total = #cells,
  columns = { "optimizer", "batch", "lr", "updates" } }
run:track("results", results)

local function learn(cell) -- one net from its first weights to the end of its epochs
  peri.seed(cell.seed)
  local net = nn.MLP { x:size(2), cfg.hidden, cfg.hidden, classes, activation = "relu", init = "uniform" }
  local opts, each = cell.kind[3](net, cell.kind[2] * cell.factor), n // cell.size
  local function whole() return peri.no_grad(function () return net(x):cross_entropy(y):item() end) end
  local update, reached, pause = 0, -1, math.max(each // 10, 1)
  for _ = 1, cfg.epochs do
    local order = peri.randperm(n)
    for k = 0, each - 1 do
      local _ <close> = peri.scope()
      local at = order:narrow(1, k * cell.size + 1, cell.size)
      net(x:index_select(at, 1)):cross_entropy(y:index_select(at, 1)):backward()
      for _, opt in ipairs(opts) do opt:step():zero_grad() end
      update = update + 1
      if reached < 0 and update % pause == 0 and whole() <= cfg.target then reached = update end
    end
  end
  return reached, whole()
end
for step in run:steps() do
  local cell = cells[step]
  local reached, loss = learn(cell)
  done[step] = { reached, loss }
  run:log(step, { optimizer = cell.kind[1], batch = cell.size, factor = cell.factor, lr = cell.kind[2] * cell.factor,
    updates = reached >= 0 and reached or nil, loss = loss })
end
-- Of each optimizer and batch size the rate that took all seeds to the target in the fewest updates, or came nearest.
local best = {}
for i = 1, #cells, cfg.seeds do
  local cell, updates, loss = cells[i], 0, 0
  for k = i, i + cfg.seeds - 1 do
    updates = updates + (done[k][1] >= 0 and done[k][1] or math.huge) / cfg.seeds
    loss = loss + done[k][2] / cfg.seeds
  end
  local key = cell.kind[1] .. cell.size
  local old = best[key]
  if not old or updates < old.updates or updates == old.updates and loss < old.loss then
    best[key] = { updates = updates, loss = loss, lr = cell.kind[2] * cell.factor }
  end
end
local lines, curves = {}, {}
for _, kind in ipairs(kinds) do
  local curve = { name = kind[1], x = {}, y = {} }
  for _, size in ipairs(sizes) do
    local b = best[kind[1] .. size]
    table.insert(curve.x, size)
    table.insert(curve.y, b.updates)
    lines[#lines + 1] = ("%-6s batch %4d, lr %-6.3g %7.1f updates, loss %.4f"):format(kind[1], size, b.lr, b.updates,
      b.loss)
  end
  table.insert(curves, curve)
end
peri.plot.save(run:path "updates.svg", { title = "updates to the target", xlabel = "batch", series = curves })
run:text("updates to a loss of %g, loss after %d epochs, means of %d seeds\n%s", cfg.target, cfg.epochs, cfg.seeds,
  table.concat(lines, "\n"))
run:finish()
